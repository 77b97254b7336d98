//! From a directory to an open store: whose it is, who has it, what it says of its past. Nothing is ever deleted or
//! repaired to get going.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io,
    ops::ControlFlow,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    encoding::{self, LastRun, LogRow, RecordHead, Total, Totals},
    journal::{self, StoredRow},
    store::{self, FORMAT, Format, Reader, RecordPlace, StoreError, Writer},
};
use crate::{
    engine::{Head, Record, RecordKey, Version},
    ids::SessionId,
};

const LOCK: &str = "lock";
/// A new store is written under this name and renamed when it is complete.
const UNFINISHED: &str = "onlooker.db.new";

/// Why a data directory cannot be used. Each is one sentence for the operator; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process: stop that one, or name another data directory", .0.display())]
    InUse(PathBuf),
    #[error(
        "{} was written by a newer onlooker (format {found}; this one knows {FORMAT}): use that version",
        .directory.display()
    )]
    Newer { directory: PathBuf, found: i64 },
    #[error(
        "{} has format {found}, which this onlooker does not know (it knows {FORMAT}): use the version that wrote it",
        .directory.display()
    )]
    Unknown { directory: PathBuf, found: i64 },
    #[error("{} holds files but no onlooker data: name an empty directory or one that does not exist", .0.display())]
    Foreign(PathBuf),
    #[error("{} holds no onlooker data", .0.display())]
    Nothing(PathBuf),
    #[error(
        "{} is damaged and nothing was changed: restore a backup of its directory, or move the directory away to begin \
         with an empty one",
        .file.display()
    )]
    Damaged {
        file: PathBuf,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("{} cannot be read or written", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} cannot be opened", .file.display())]
    Store { file: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
}

/// The directory's lock; whoever holds it is the only one that has the store open. Ends with the process at the latest.
pub(super) struct Lock {
    _file: File,
}

/// What a whole store holds, except frames and values.
pub(super) struct Contents {
    pub logs: Vec<FoundLog>,
    pub journal: FoundJournal,
    /// Numbers of logs whose content is not all purged.
    pub removed: Vec<i64>,
    pub records: BTreeMap<RecordKey, Slot>,
    pub totals: Totals,
    pub last_run: LastRun,
}

/// A log with what the journal says of it.
pub(super) struct FoundLog {
    pub row: LogRow,
    /// The checksum of its own row.
    pub stored_sum: u64,
    /// Up to there its records are in chunks.
    pub settled: u64,
    /// From there on.
    pub unsettled: Vec<Record>,
    /// The journal has said something of it.
    pub is_journaled: bool,
}

#[derive(Default)]
pub(super) struct FoundJournal {
    /// The number of its next row.
    pub next: i64,
    pub rows: Vec<StoredRow>,
}

/// What is known of a record without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub version: Version,
    /// Its head's checksum, as the totals have it.
    pub sum: u64,
}

/// Takes the directory, and makes an empty store where there is none.
pub(super) fn take(directory: &Path) -> Result<Lock, OpenError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io(directory))?;
    let main = store::file(directory);
    let exists = main.try_exists().map_err(io(&main))?;
    if !exists {
        refuse_foreign(directory)?;
    }
    let path = directory.join(LOCK);
    let file = private().open(&path).map_err(io(&path))?;
    let lock = lock(file, directory, &path)?;
    // Another process may have made it in between.
    if !main.try_exists().map_err(io(&main))? {
        create(directory, &main)?;
    }
    Ok(lock)
}

/// Takes the directory of a stopped gateway; changes nothing in it.
pub(super) fn take_offline(directory: &Path) -> Result<Lock, OpenError> {
    let path = directory.join(LOCK);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Nothing(directory.to_owned())),
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let lock = lock(file, directory, &path)?;
    if store::file(directory).exists() { Ok(lock) } else { Err(OpenError::Nothing(directory.to_owned())) }
}

fn lock(file: File, directory: &Path, path: &Path) -> Result<Lock, OpenError> {
    match file.try_lock() {
        Ok(()) => Ok(Lock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(directory.to_owned())),
        Err(TryLockError::Error(source)) => Err(OpenError::Io { path: path.to_owned(), source }),
    }
}

/// A directory without a store may hold what an unfinished beginning left, and nothing else.
fn refuse_foreign(directory: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: directory.to_owned(), source };
    let [main, log, _] = store::files(directory);
    if log.try_exists().map_err(io)? {
        return Err(OpenError::Damaged { file: main, source: None });
    }
    for entry in fs::read_dir(directory).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let ours = name.to_str().is_some_and(|name| name == LOCK || name.starts_with(UNFINISHED));
        if !ours && name != "lost+found" {
            return Err(OpenError::Foreign(directory.to_owned()));
        }
    }
    Ok(())
}

fn create(directory: &Path, main: &Path) -> Result<(), OpenError> {
    let unfinished = directory.join(UNFINISHED);
    let io = |source| OpenError::Io { path: unfinished.clone(), source };
    for end in ["", "-wal", "-shm", "-journal"] {
        match fs::remove_file(directory.join(format!("{UNFINISHED}{end}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
    }
    drop(private().open(&unfinished).map_err(io)?);
    store::create(&unfinished).map_err(|error| from_store(&unfinished, error))?;
    write_first_state(&unfinished).map_err(|error| from_store(&unfinished, error))?;
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io)?;
    fs::rename(&unfinished, main).map_err(io)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)
}

fn write_first_state(path: &Path) -> Result<(), StoreError> {
    let writer = Writer::open(path)?;
    writer.begin()?;
    writer.put_state(Totals::NAME, &Totals { next_number: 1, ..Totals::default() }.encode())?;
    writer.put_state(LastRun::NAME, &LastRun { closed: true, ..LastRun::default() }.encode())?;
    writer.commit()?;
    writer.checkpoint_fully()?;
    writer.close()
}

/// How files are opened or made that nobody else needs to read.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

/// What the store's failure means for the one who wants to open it.
pub(super) fn from_store(file: &Path, error: StoreError) -> OpenError {
    let file = file.to_owned();
    match error {
        StoreError::Damaged(source) => {
            OpenError::Damaged { file, source: source.map(|source| Box::new(source) as Box<_>) }
        }
        other => OpenError::Store { file, source: Box::new(other) },
    }
}

/// Refuses a format that this version does not know.
fn refuse_other_format(directory: &Path, format: Format) -> Result<(), OpenError> {
    match format {
        Format::Known => Ok(()),
        Format::Other(found) if found > FORMAT => Err(OpenError::Newer { directory: directory.to_owned(), found }),
        Format::Other(found) => Err(OpenError::Unknown { directory: directory.to_owned(), found }),
    }
}

/// Reads and checks all that [`Contents`] holds, without changing anything. The directory is taken.
pub(super) fn load_offline(directory: &Path) -> Result<Contents, OpenError> {
    read_offline(directory).map(|(_, contents)| contents)
}

/// The same, with what more can be read through.
pub(super) fn read_offline(directory: &Path) -> Result<(Reader, Contents), OpenError> {
    let file = store::file(directory);
    let reader = Reader::open_offline(directory).map_err(|error| from_store(&file, error))?;
    refuse_other_format(directory, reader.format().map_err(|error| from_store(&file, error))?)?;
    match try_load(&reader) {
        Ok(Some(contents)) => Ok((reader, contents)),
        Ok(None) => Err(OpenError::Damaged { file, source: None }),
        // What fails to be read here, although the file could be opened, is not what was written.
        Err(StoreError::Failed(source)) => Err(OpenError::Damaged { file, source: Some(Box::new(source)) }),
        Err(error) => Err(from_store(&file, error)),
    }
}

/// None: something is not what was written.
fn try_load(reader: &Reader) -> Result<Option<Contents>, StoreError> {
    if !reader.has_known_tables()? {
        return Ok(None);
    }
    let totals = reader.state(Totals::NAME)?.and_then(|value| Totals::decode(&value));
    let last_run = reader.state(LastRun::NAME)?.and_then(|value| LastRun::decode(&value));
    let (Some(totals), Some(last_run)) = (totals, last_run) else { return Ok(None) };
    let Some((logs, journal)) = load_logs(reader, &totals)? else { return Ok(None) };
    let Some(records) = load_records(reader, &totals)? else { return Ok(None) };
    let Some(removed) = load_removed(reader)? else { return Ok(None) };
    let revived = removed.iter().any(|number| logs.iter().any(|log| log.row.number == *number));
    Ok((!revived).then_some(Contents { logs, journal, removed, records, totals, last_run }))
}

fn load_logs(reader: &Reader, totals: &Totals) -> Result<Option<(Vec<FoundLog>, FoundJournal)>, StoreError> {
    let (mut logs, mut total, mut whole) = (Vec::new(), Total::default(), true);
    let mut places = HashMap::new();
    let mut journal = FoundJournal { next: 1, rows: Vec::new() };
    reader.logs(|number, value| {
        let stored_sum = encoding::sum_of(value);
        total.add(stored_sum);
        let Some((row, since)) = LogRow::decode(number, value) else {
            whole = false;
            return;
        };
        journal.next = journal.next.max(since);
        places.insert(number, (logs.len(), since));
        logs.push(FoundLog { row, stored_sum, settled: row.head.next, unsettled: Vec::new(), is_journaled: false });
    })?;
    let mut expected = None;
    reader.chunks(journal::LOG, 0, |number, heads, frames| {
        let sum = encoding::sum_of(heads);
        total.add(sum);
        let Some(entries) = journal::decode(number, heads, frames) else {
            whole = false;
            return ControlFlow::Break(());
        };
        whole &= expected.is_none_or(|expected| number == expected);
        expected = Some(number + 1);
        journal.next = journal.next.max(number + 1);
        journal.rows.push(StoredRow { sum, bytes: heads.len() + frames.len() });
        for entry in entries {
            // Of a log that is gone, or before it was settled.
            let Some((place, _)) = places.get(&entry.row.number).filter(|(_, since)| number >= *since) else {
                continue;
            };
            let log = &mut logs[*place];
            let next = log.unsettled.last().map_or(log.settled, |record| record.offset + 1);
            whole &= entry.records.first().is_none_or(|record| record.offset == next);
            log.row = entry.row;
            log.is_journaled = true;
            log.unsettled.extend(entry.records);
        }
        ControlFlow::Continue(())
    })?;
    for log in &mut logs {
        let Head { first, next, .. } = log.row.head;
        whole &= log.unsettled.last().map_or(log.settled, |record| record.offset + 1) == next;
        log.unsettled.retain(|record| record.offset >= first);
    }
    Ok((whole && total == totals.logs).then_some((logs, journal)))
}

fn load_removed(reader: &Reader) -> Result<Option<Vec<i64>>, StoreError> {
    let mut removed = Vec::new();
    reader.removed(|number, value| removed.push(encoding::is_removed_mark(number, value).then_some(number)))?;
    Ok(removed.into_iter().collect())
}

fn load_records(reader: &Reader, totals: &Totals) -> Result<Option<BTreeMap<RecordKey, Slot>>, StoreError> {
    let (mut records, mut total, mut whole) = (BTreeMap::new(), Total::default(), true);
    reader.record_heads(|place, value| {
        let sum = encoding::sum_of(value);
        total.add(sum);
        let head = key_at(place).and_then(|key| Some((RecordHead::decode(&key, value)?, key)));
        whole &= head.is_some();
        if let Some((head, key)) = head {
            records.insert(key, Slot { version: head.version, sum });
        }
    })?;
    Ok((whole && total == totals.records).then_some(records))
}

fn key_at(place: RecordPlace<'_>) -> Option<RecordKey> {
    let session: SessionId = std::str::from_utf8(place.session).ok()?.parse().ok()?;
    let name = std::str::from_utf8(place.name).ok()?.to_owned();
    Some(RecordKey { kind: encoding::kind_from(place.kind)?, session, name })
}

/// The place of a key.
pub(super) fn place_of(key: &RecordKey) -> RecordPlace<'_> {
    RecordPlace {
        kind: encoding::kind_number(key.kind),
        session: key.session.as_str().as_bytes(),
        name: key.name.as_bytes(),
    }
}

/// What tells one start of the machine from another; empty where that is not known.
pub(super) fn machine_start() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
