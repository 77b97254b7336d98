//! The store below: SQLite with a write-ahead log. Everything that is particular to it is in this file.
//!
//! It knows numbers, names and bytes. What the bytes mean, and whether they are whole, is for [`super::encoding`].

use std::{
    fs::File,
    io::{self, BufReader, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, config::DbConfig, ffi, params};

/// The format of what this version writes.
pub(super) const FORMAT: i64 = 1;
/// Says in the file's header whose it is: "onlk".
const APPLICATION: i64 = 0x6f6e_6c6b;
const FILE: &str = "onlooker.db";
/// Chunks lie in the order in which they were committed, so that a commit for many logs writes neighbouring pages.
const SCHEMA: [&str; 6] = [
    "CREATE TABLE state(name TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE logs(number INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE removed(number INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE chunks(log INTEGER NOT NULL, last INTEGER NOT NULL, heads BLOB NOT NULL, frames BLOB NOT NULL)",
    "CREATE UNIQUE INDEX chunks_by_log ON chunks(log, last)",
    "CREATE TABLE records(kind INTEGER NOT NULL, session BLOB NOT NULL, name BLOB NOT NULL, head BLOB NOT NULL, \
     value BLOB NOT NULL, PRIMARY KEY(kind, session, name))",
];
const PAGE_BYTES: u32 = 8 << 10;
/// The write-ahead log's file is cut to this once all of it is in the main file.
const LOG_FILE_BYTES: u32 = 128 << 20;
const WRITER_CACHE_KIB: i64 = 16 << 10;
const READER_CACHE_KIB: i64 = 2 << 10;
/// Nothing here waits for another's lock for long; this is for the moments in which one connection opens.
const BUSY: Duration = Duration::from_secs(5);
/// How long a checkpoint waits for reads that began before it. Where reads never pause, the log would otherwise never
/// begin anew, and writing into a file that grows costs more than into one that does not.
const READERS_LEAVE: Duration = Duration::from_millis(20);

/// Why the store did not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error("the disk is full")]
    Full(#[source] Arc<rusqlite::Error>),
    /// What is on the disk is not known any more.
    #[error("the disk failed to keep what was written")]
    Sync(#[source] Arc<rusqlite::Error>),
    #[error("the store's files are damaged")]
    Damaged(#[source] Option<Arc<rusqlite::Error>>),
    #[error("the store failed")]
    Failed(#[source] Arc<rusqlite::Error>),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let code = error.sqlite_error().map(|error| (error.code, error.extended_code));
        let error = Arc::new(error);
        match code {
            Some((ErrorCode::DiskFull, _)) => Self::Full(error),
            // The index of the log has no room; SQLite does not say why, and this is why.
            Some((_, ffi::SQLITE_IOERR_SHMSIZE)) => Self::Full(error),
            Some((_, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)) => Self::Sync(error),
            Some((_, ffi::SQLITE_IOERR_SHORT_READ | ffi::SQLITE_IOERR_CORRUPTFS)) => Self::Damaged(Some(error)),
            Some((ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _)) => Self::Damaged(Some(error)),
            // A column of another type than the one that was written.
            None => Self::Damaged(Some(error)),
            Some(_) => Self::Failed(error),
        }
    }
}

type Result<T> = std::result::Result<T, StoreError>;

/// What a file says of itself before anything is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Known,
    Other(i64),
}

/// A record's place.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordPlace<'a> {
    pub kind: u8,
    pub session: &'a [u8],
    pub name: &'a [u8],
}

/// What one call of [`Writer::purge`] removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purged {
    pub chunks: usize,
    pub bytes: usize,
}

/// How a commit is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// On the disk when the commit returns.
    Disk,
    /// With the operating system when the commit returns.
    System,
}

/// The one connection that writes.
pub(super) struct Writer {
    connection: Connection,
    sync: std::cell::Cell<Sync>,
    #[cfg(test)]
    fails_to_sync: std::cell::Cell<bool>,
}

/// What a test makes go wrong.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Full,
    NoMore,
    Sync,
}

/// A connection that reads what is committed.
pub(super) struct Reader {
    connection: Connection,
}

pub(super) fn file(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// Every file that the store keeps in a directory.
pub(super) fn files(directory: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|end| directory.join(format!("{FILE}{end}")))
}

/// Whether commits follow behind a place in the write-ahead log that is damaged. Opening the store leaves them out, as
/// if they had never been finished. Only the very last commit can be damaged unnoticed: it looks like a torn write.
pub(super) fn log_is_cut(directory: &Path) -> io::Result<bool> {
    let [_, log, _] = files(directory);
    let mut file = match File::open(log) {
        Ok(file) => BufReader::with_capacity(1 << 20, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut header = [0; 32];
    if !fill(&mut file, &mut header)? {
        return Ok(false);
    }
    let big_endian = header[3] & 1 == 1;
    let mut sum = LogSum { words: (0, 0), big_endian };
    sum.add(&header[..24]);
    let page_bytes = word(&header, 8) as usize;
    if sum.words != (word(&header, 24), word(&header, 28)) || !(512..=65_536).contains(&page_bytes) {
        return Ok(true);
    }
    let (mut frame, mut whole) = (vec![0; 24 + page_bytes], true);
    while fill(&mut file, &mut frame)? {
        // What an earlier round of the log left behind has other salts.
        let of_this_round = frame[8..16] == header[16..24];
        if whole {
            sum.add(&frame[..8]);
            sum.add(&frame[24..]);
            whole = of_this_round && sum.words == (word(&frame, 16), word(&frame, 20));
        }
        let ends_a_commit = word(&frame, 4) != 0;
        if !whole && of_this_round && ends_a_commit {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Fills the buffer, or says that the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The running checksum of the write-ahead log, as its format defines it.
struct LogSum {
    words: (u32, u32),
    big_endian: bool,
}

impl LogSum {
    fn add(&mut self, bytes: &[u8]) {
        let read = |four: &[u8]| {
            let four = four.try_into().expect("four bytes");
            if self.big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
        };
        let (mut first, mut second) = self.words;
        for eight in bytes.chunks_exact(8) {
            first = first.wrapping_add(read(&eight[..4])).wrapping_add(second);
            second = second.wrapping_add(read(&eight[4..])).wrapping_add(first);
        }
        self.words = (first, second);
    }
}

/// Writes an empty store beside the place where it will be, so that a store is either complete or not there.
/// `path` is an empty file that exists.
pub(super) fn create(path: &Path) -> Result<()> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.execute_batch(&format!(
        "BEGIN; {}; PRAGMA application_id={APPLICATION}; PRAGMA user_version={FORMAT}; COMMIT",
        SCHEMA.join("; ")
    ))?;
    connection.close().map_err(|(_, error)| error.into())
}

impl Writer {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        prepare(&connection, WRITER_CACHE_KIB)?;
        connection.pragma_update(None, "journal_size_limit", LOG_FILE_BYTES)?;
        // The committer says when.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        let mode = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get::<_, String>(0))?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        if mode == "wal" {
            Ok(Self {
                connection,
                sync: Sync::Disk.into(),
                #[cfg(test)]
                fails_to_sync: false.into(),
            })
        } else {
            Err(StoreError::Damaged(None))
        }
    }

    /// How the next commits are kept. Not inside of one.
    pub(super) fn sync(&self, sync: Sync) -> Result<()> {
        if self.sync.get() != sync {
            // Without FULL the log is still synced before it is written to the main file: a lost machine costs the
            // last commits, not the store.
            let level = if sync == Sync::Disk { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.sync.set(sync);
        }
        Ok(())
    }

    pub(super) fn close(self) -> Result<()> {
        self.connection.close().map_err(|(_, error)| error.into())
    }

    pub(super) fn begin(&self) -> Result<()> {
        self.run("BEGIN IMMEDIATE", [])
    }

    pub(super) fn commit(&self) -> Result<()> {
        #[cfg(test)]
        if self.fails_to_sync.get() {
            let error = ffi::Error::new(ffi::SQLITE_IOERR_FSYNC);
            return Err(rusqlite::Error::SqliteFailure(error, None).into());
        }
        self.run("COMMIT", [])
    }

    /// Undoes what was written since `begin`. Some failures have undone it already.
    pub(super) fn roll_back(&self) -> Result<()> {
        if self.connection.is_autocommit() { Ok(()) } else { self.run("ROLLBACK", []) }
    }

    pub(super) fn put_state(&self, name: &str, value: &[u8]) -> Result<()> {
        self.run("INSERT OR REPLACE INTO state(name, value) VALUES(?1, ?2)", params![name, value])
    }

    pub(super) fn put_log(&self, number: i64, value: &[u8]) -> Result<()> {
        self.run("INSERT OR REPLACE INTO logs(number, value) VALUES(?1, ?2)", params![number, value])
    }

    /// Takes the log away; what it held is purged later.
    pub(super) fn remove_log(&self, number: i64, mark: &[u8]) -> Result<()> {
        self.run("DELETE FROM logs WHERE number = ?1", [number])?;
        self.run("INSERT INTO removed(number, value) VALUES(?1, ?2)", params![number, mark])
    }

    pub(super) fn forget_removed(&self, number: i64) -> Result<()> {
        self.run("DELETE FROM removed WHERE number = ?1", [number])
    }

    pub(super) fn put_chunk(&self, log: i64, last: i64, heads: &[u8], frames: &[u8]) -> Result<()> {
        let sql = "INSERT INTO chunks(log, last, heads, frames) VALUES(?1, ?2, ?3, ?4)";
        self.run(sql, params![log, last, heads, frames])
    }

    pub(super) fn remove_chunk(&self, log: i64, last: i64) -> Result<()> {
        self.run("DELETE FROM chunks WHERE log = ?1 AND last = ?2", [log, last])
    }

    /// The heads of a log's chunks that end at `from` or later, in order, with their last offsets.
    pub(super) fn chunk_heads(
        &self,
        log: i64,
        from: i64,
        mut each: impl FnMut(i64, &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let sql = "SELECT last, heads FROM chunks WHERE log = ?1 AND last >= ?2 ORDER BY last";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([log, from])?;
        while let Some(row) = rows.next()? {
            if each(row.get(0)?, blob(row, 1)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Removes the log's chunks that end below an offset, oldest first, until so many or about so many bytes are gone.
    pub(super) fn purge(&self, log: i64, below: i64, chunks: usize, bytes: usize) -> Result<Purged> {
        let (mut found, mut sum) = (Vec::new(), 0);
        {
            let sql = "SELECT rowid, octet_length(frames) FROM chunks WHERE log = ?1 AND last < ?2 ORDER BY last";
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query([log, below])?;
            while found.len() < chunks
                && sum < bytes
                && let Some(row) = rows.next()?
            {
                found.push(row.get::<_, i64>(0)?);
                sum += usize::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
            }
        }
        for row in &found {
            self.run("DELETE FROM chunks WHERE rowid = ?1", [row])?;
        }
        Ok(Purged { chunks: found.len(), bytes: sum })
    }

    pub(super) fn put_record(&self, place: RecordPlace<'_>, head: &[u8], value: &[u8]) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO records(kind, session, name, head, value) VALUES(?1, ?2, ?3, ?4, ?5)";
        self.run(sql, params![place.kind, place.session, place.name, head, value])
    }

    pub(super) fn remove_record(&self, place: RecordPlace<'_>) -> Result<()> {
        let sql = "DELETE FROM records WHERE kind = ?1 AND session = ?2 AND name = ?3";
        self.run(sql, params![place.kind, place.session, place.name])
    }

    /// Moves what is committed from the write-ahead log to the main file, as far as no reader needs the old.
    pub(super) fn checkpoint(&self) -> Result<()> {
        self.connection.busy_timeout(READERS_LEAVE)?;
        let moved = checkpoint(&self.connection, "RESTART");
        self.connection.busy_timeout(BUSY)?;
        moved
    }

    /// The same with all of it, and empties the log. For the end.
    pub(super) fn checkpoint_fully(&self) -> Result<()> {
        checkpoint(&self.connection, "TRUNCATE")
    }

    fn run(&self, sql: &str, values: impl rusqlite::Params) -> Result<()> {
        let mut statement: CachedStatement<'_> = self.connection.prepare_cached(sql)?;
        statement.execute(values)?;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn break_with(&self, fault: Fault) {
        let limit = |pages: u32| {
            self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
        };
        match fault {
            // Below what it has already is taken as what it has.
            Fault::Full => limit(1),
            Fault::NoMore => limit(u32::MAX - 1),
            Fault::Sync => self.fails_to_sync.set(true),
        }
    }
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        prepare(&connection, READER_CACHE_KIB)?;
        Ok(Self { connection })
    }

    /// Opens a store that nobody else has open, without changing any file.
    pub(super) fn open_offline(directory: &Path) -> Result<Self> {
        let [main, log, _] = files(directory);
        let left = std::fs::metadata(log).map_or(0, |found| found.len());
        let connection = if left == 0 {
            // Nothing is in the log: the main file is all there is, and is not locked.
            let uri = format!("file:{}?immutable=1", percent_encoded(&main));
            Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?
        } else {
            let connection = Connection::open_with_flags(&main, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            // The log's index stays in memory, and the log stays as it is at the end.
            connection.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.pragma_update(None, "query_only", true)?;
            connection
        };
        prepare(&connection, READER_CACHE_KIB)?;
        Ok(Self { connection })
    }

    pub(super) fn format(&self) -> Result<Format> {
        format(&self.connection)
    }

    /// The store's own check that its tables are those that [`create`] wrote.
    pub(super) fn has_known_tables(&self) -> Result<bool> {
        has_known_tables(&self.connection)
    }

    pub(super) fn state(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut statement = self.connection.prepare_cached("SELECT value FROM state WHERE name = ?1")?;
        let mut rows = statement.query([name])?;
        Ok(rows.next()?.map(|row| blob(row, 0).map(<[u8]>::to_vec)).transpose()?)
    }

    pub(super) fn logs(&self, each: impl FnMut(i64, &[u8])) -> Result<()> {
        self.numbered("SELECT number, value FROM logs ORDER BY number", each)
    }

    pub(super) fn removed(&self, each: impl FnMut(i64, &[u8])) -> Result<()> {
        self.numbered("SELECT number, value FROM removed ORDER BY number", each)
    }

    fn numbered(&self, sql: &str, mut each: impl FnMut(i64, &[u8])) -> Result<()> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(row.get(0)?, blob(row, 1)?);
        }
        Ok(())
    }

    /// A log's chunks that end at `from` or later, in order: their last offsets, heads and frames.
    pub(super) fn chunks(
        &self,
        log: i64,
        from: i64,
        mut each: impl FnMut(i64, &[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let sql = "SELECT last, heads, frames FROM chunks WHERE log = ?1 AND last >= ?2 ORDER BY last";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query([log, from])?;
        while let Some(row) = rows.next()? {
            if each(row.get(0)?, blob(row, 1)?, blob(row, 2)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The heads of all records.
    pub(super) fn record_heads(&self, mut each: impl FnMut(RecordPlace<'_>, &[u8])) -> Result<()> {
        let mut statement = self.connection.prepare_cached("SELECT kind, session, name, head FROM records")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(RecordPlace { kind: row.get(0)?, session: blob(row, 1)?, name: blob(row, 2)? }, blob(row, 3)?);
        }
        Ok(())
    }

    /// A record's head and value.
    pub(super) fn record(&self, place: RecordPlace<'_>) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let sql = "SELECT head, value FROM records WHERE kind = ?1 AND session = ?2 AND name = ?3";
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![place.kind, place.session, place.name])?;
        match rows.next()? {
            Some(row) => Ok(Some((blob(row, 0)?.to_vec(), blob(row, 1)?.to_vec()))),
            None => Ok(None),
        }
    }
}

fn failed_with(code: i32) -> StoreError {
    rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
}

fn prepare(connection: &Connection, cache_kib: i64) -> Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.set_prepared_statement_cache_capacity(32);
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Looks at a page's cells before they are followed.
    connection.pragma_update(None, "cell_size_check", true)?;
    Ok(())
}

fn format(connection: &Connection) -> Result<Format> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    if number("application_id")? != APPLICATION {
        return Err(StoreError::Damaged(None));
    }
    let found = number("user_version")?;
    Ok(if found == FORMAT { Format::Known } else { Format::Other(found) })
}

fn has_known_tables(connection: &Connection) -> Result<bool> {
    let mut statement = connection.prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid")?;
    let found = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(found == SCHEMA)
}

fn checkpoint(connection: &Connection, mode: &str) -> Result<()> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    // Busy says that somebody still reads the old: the next one goes further.
    Ok(connection.query_row(&sql, [], |_| Ok(()))?)
}

fn blob<'a>(row: &'a rusqlite::Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    Ok(row.get_ref(column)?.as_blob()?)
}

/// A path as part of a URI, in which `?`, `#` and `%` mean something.
fn percent_encoded(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

/// A connection that only moves what is committed to the main file, beside the one that writes.
pub(super) struct Checkpointer {
    connection: Connection,
    main: Arc<File>,
}

impl Checkpointer {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        prepare(&connection, READER_CACHE_KIB)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
        let main = File::open(path).map_err(|_| failed_with(ffi::SQLITE_CANTOPEN))?;
        Ok(Self { connection, main: Arc::new(main) })
    }

    /// SQLite syncs the main file only when all of the log is in it. That is in a commit's way then, so most of it is
    /// on the disk before.
    pub(super) fn run(&self) -> Result<()> {
        checkpoint(&self.connection, "PASSIVE")?;
        self.main.sync_data().map_err(|_| failed_with(ffi::SQLITE_IOERR_FSYNC))
    }

    /// To be kept until every connection is closed: closing any handle of a file gives up the process's locks on it.
    pub(super) fn main(&self) -> Arc<File> {
        Arc::clone(&self.main)
    }
}
