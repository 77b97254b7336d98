//! The one thread that writes. It takes what waits as one group, checks each operation against what the ones before it
//! in the group have done, and commits all of it at once; only then do heads move and callers hear of it. While one
//! group is being synced the next one collects: the slower the disk, the larger the groups. Where processors are few, those
//! who ask run before the group is closed ([`Committer::next`]).
//!
//! What a group appends is one row of the [`journal`]. When that has become long, log after log is settled: its records
//! move to chunks of its own, in bounded steps between the groups.
//!
//! A group that fails has not happened, and every caller in it is told so.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlooker_protocol::event::Epoch;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    checkpoints::Checkpoints,
    encoding::{self, Heads, KINDS, LastRun, LogRow, RecordHead, Totals},
    journal::{self, Entries, Journal, StoredRow},
    logs::{Log, Recent, Shared},
    opening::{Contents, FoundJournal, FoundLog, Slot, place_of},
    readers::unavailable,
    store::{StoreError, Sync, Writer},
};
use crate::{
    engine::{Batch, Bounds, EngineError, Head, Record, RecordKey, Version, memory::check},
    ids::{ByRandomness, SessionId},
    sabotage::{self, Guard},
};

const GROUP_OPERATIONS: usize = 4096;
const GROUP_BYTES: usize = 4 << 20;
/// Hidden records of a log wait until there are so many before they are purged: neighbours go together.
const PURGED_AT_ONCE: u64 = 64;
/// What one step of purging removes at most: more than a group can add, so that what is hidden does not pile up.
const PURGE_STEP_BYTES: usize = 2 * GROUP_BYTES;
const PURGE_STEP_CHUNKS: usize = 256;
/// Beside as many logs as the group had operations, how many one step settles.
const SETTLED_AT_ONCE: usize = 16;
/// What one step of settling moves at most, about, in bytes of frames.
const SETTLE_STEP_BYTES: usize = 1 << 20;
/// The journal is settled when it has this share of what stays in memory of the newest records.
const SETTLED_SHARE: usize = 4;
/// Rows of the journal that one step removes.
const JOURNAL_STEP_ROWS: usize = 64;
/// Records of a log that are settled together are one chunk up to this size, in bytes of frames: whoever reads one of
/// them reads them all.
const CHUNK_BYTES: usize = 64 << 10;
/// What a commit costs in the log beside what is written, about: pages that are hardly changed.
const COMMIT_BYTES: usize = 24 << 10;
/// The same for a log that is settled.
const SETTLE_BYTES: usize = 12 << 10;
/// After a purge or settling has failed.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

pub(super) enum Message {
    Do(Operation),
    /// Everything before it is done; nothing comes after it. The end is clean or just an end.
    End {
        clean: bool,
    },
    #[cfg(test)]
    Break(super::store::Fault),
}

pub(super) struct Operation {
    pub what: What,
    /// Its share of the queue.
    pub _room: OwnedSemaphorePermit,
}

pub(super) enum What {
    Create { session: SessionId, epoch: Epoch, term: u64, reply: Reply<()> },
    Append { session: SessionId, batch: Batch, reply: Reply<Head> },
    Remove { session: SessionId, reply: Reply<()> },
    Put { key: RecordKey, seen: Option<Version>, value: Bytes, reply: Reply<Version> },
}

impl What {
    /// What it weighs in the queue and in a group, in bytes.
    pub(super) fn weight(&self) -> usize {
        let own = match self {
            Self::Append { batch, .. } => batch.records.iter().map(Record::size).sum(),
            Self::Put { value, .. } => value.len(),
            Self::Create { .. } | Self::Remove { .. } => 0,
        };
        own + 512
    }

    fn session(&self) -> SessionId {
        match self {
            Self::Create { session, .. } | Self::Append { session, .. } | Self::Remove { session, .. } => *session,
            Self::Put { key, .. } => key.session,
        }
    }

    fn is_given_up(&self) -> bool {
        match self {
            Self::Create { reply, .. } | Self::Remove { reply, .. } => reply.is_closed(),
            Self::Append { reply, .. } => reply.is_closed(),
            Self::Put { reply, .. } => reply.is_closed(),
        }
    }

    fn fail(self, error: EngineError) {
        match self {
            Self::Create { reply, .. } | Self::Remove { reply, .. } => drop(reply.send(Err(error))),
            Self::Append { reply, .. } => drop(reply.send(Err(error))),
            Self::Put { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What an operation came to, to be told when the group is committed.
enum Outcome {
    Done,
    Head(Head),
    Version(Version),
    Refused(EngineError),
}

#[derive(Clone, Copy)]
struct Length {
    bytes: usize,
    at: u64,
}

/// What the committer knows of a log.
struct Book {
    /// With what the group has done so far.
    row: LogRow,
    /// As committed. None: the group creates it.
    committed: Option<LogRow>,
    /// The checksum of its row in the store.
    stored_sum: u64,
    /// The journal has records of it.
    is_journaled: bool,
    /// Of the newest records, up to the end; those before it are in the store only.
    lengths: VecDeque<Length>,
    /// Up to here chunks were purged, or are about to be.
    purged: u64,
    /// It is among the garbage.
    queued: bool,
    /// None: the group creates it.
    log: Option<Arc<Log>>,
}

/// What the group has changed and is not committed yet.
#[derive(Default)]
struct Pending {
    touched: HashSet<SessionId, ByRandomness>,
    removed: HashSet<SessionId>,
    /// The journal's row, once it is written.
    row: Option<StoredRow>,
    records: HashMap<RecordKey, Option<Slot>>,
    totals: Totals,
    stored: u64,
}

/// What can no longer be read and is still in the store.
enum Garbage {
    /// What a log has below its first offset.
    Hidden(SessionId),
    /// All of a log that is gone, then its mark.
    Removed(i64),
}

pub(super) struct Committer {
    writer: Writer,
    checkpoints: Checkpoints,
    shared: Arc<Shared>,
    bounds: Bounds,
    queue: Receiver<Message>,
    /// The first operation of the next group, where it did not fit into the last one.
    carried: Option<Operation>,
    end: Option<bool>,
    books: HashMap<SessionId, Book, ByRandomness>,
    totals: Totals,
    pending: Pending,
    recent: Recent,
    journal: Journal,
    /// What becomes the journal's next row.
    entries: Entries,
    garbage: VecDeque<Garbage>,
    tidy_again: Option<Instant>,
    sync: Sync,
    /// What this run leaves for the next one, and whether the store has it.
    run: LastRun,
    marked: bool,
    /// The disk was full at the last write.
    full: bool,
    /// The disk failed to keep something: what is on it is not known, so nothing is added to it.
    failed: Option<StoreError>,
}

impl Committer {
    pub(super) fn new(
        writer: Writer,
        checkpoints: Checkpoints,
        shared: Arc<Shared>,
        bounds: Bounds,
        queue: Receiver<Message>,
        contents: &Contents,
        (sync, run, recent_bytes): (Sync, LastRun, usize),
    ) -> Self {
        let (mut books, mut journaled) = (HashMap::default(), Vec::new());
        let mut recent = Recent::new(recent_bytes);
        for FoundLog { row, stored_sum, unsettled, is_journaled, .. } in &contents.logs {
            let log = shared.logs.get(&row.session).map(|log| Arc::clone(&log));
            if let Some(log) = log.as_ref().filter(|_| *is_journaled) {
                journaled.push(row.session);
                recent.add(log, row.head.next, unsettled.iter().map(Record::size).sum());
            }
            let book = Book {
                row: *row,
                committed: Some(*row),
                stored_sum: *stored_sum,
                is_journaled: *is_journaled,
                lengths: VecDeque::new(),
                // What was hidden before and is not purged goes with the next that is hidden.
                purged: 0,
                queued: false,
                log,
            };
            books.insert(row.session, book);
        }
        let FoundJournal { next, rows } = &contents.journal;
        let journal = Journal::new(*next, rows, journaled, recent_bytes / SETTLED_SHARE);
        let garbage = contents.removed.iter().copied().map(Garbage::Removed).collect();
        Self {
            writer,
            checkpoints,
            bounds,
            queue,
            carried: None,
            end: None,
            books,
            totals: contents.totals,
            pending: Pending::default(),
            recent,
            journal,
            entries: Entries::default(),
            garbage,
            tidy_again: None,
            sync,
            run,
            marked: false,
            full: false,
            failed: None,
            shared,
        }
    }

    /// Until the end is asked for, or nobody can ask any more.
    pub(super) fn run(mut self) {
        while let Some(first) = self.first() {
            let group = self.collect(first);
            if let Some(failed) = &self.failed {
                fail(group, failed);
                continue;
            }
            let operations = group.len();
            self.commit(group);
            self.checkpoint();
            self.tidy(operations);
        }
        self.finish();
    }

    /// The first operation of a group. While nothing is asked for, what was begun is gone on with.
    fn first(&mut self) -> Option<Operation> {
        loop {
            if let Some(operation) = self.carried.take() {
                return Some(operation);
            }
            if self.end.is_some() {
                return None;
            }
            let rests = self.failed.is_some() || (self.garbage.is_empty() && !self.journal.is_settling());
            let message = if rests {
                self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                let pause = self.tidy_again.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
                self.queue.recv_timeout(pause)
            };
            match message {
                Ok(Message::Do(operation)) => return Some(operation),
                Ok(Message::End { clean }) => self.end = Some(clean),
                #[cfg(test)]
                Ok(Message::Break(fault)) => self.writer.break_with(fault),
                Err(RecvTimeoutError::Timeout) => {
                    self.tidy(0);
                    self.checkpoint();
                }
                Err(RecvTimeoutError::Disconnected) => self.end = Some(false),
            }
        }
    }

    /// What waits, as far as it may be one group.
    fn collect(&mut self, first: Operation) -> Vec<Operation> {
        let mut bytes = first.what.weight();
        let mut removed = HashSet::new();
        let mut group = Vec::new();
        let mut next = Some(first);
        while let Some(operation) = next.take() {
            // A session that the group removes is begun anew in the next one only.
            if removed.contains(&operation.what.session()) {
                self.carried = Some(operation);
                break;
            }
            if let What::Remove { session, .. } = operation.what {
                removed.insert(session);
            }
            if !operation.what.is_given_up() {
                group.push(operation);
            }
            if group.len() >= GROUP_OPERATIONS || bytes >= GROUP_BYTES || self.end.is_some() {
                break;
            }
            next = match self.next() {
                Ok(Message::Do(operation)) => {
                    bytes += operation.what.weight();
                    Some(operation)
                }
                Ok(Message::End { clean }) => {
                    self.end = Some(clean);
                    None
                }
                #[cfg(test)]
                Ok(Message::Break(fault)) => {
                    self.writer.break_with(fault);
                    None
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
            };
        }
        group
    }

    /// What waits. Where nothing does, whoever is about to ask may need this processor: they run first. With nobody
    /// else to run it costs less than a microsecond, so that an operation that comes alone is not held up.
    fn next(&mut self) -> Result<Message, TryRecvError> {
        match self.queue.try_recv() {
            Err(TryRecvError::Empty) => {
                std::thread::yield_now();
                self.queue.try_recv()
            }
            other => other,
        }
    }

    fn commit(&mut self, mut group: Vec<Operation>) {
        match self.try_commit(&mut group) {
            Ok(outcomes) => {
                for (operation, outcome) in group.into_iter().zip(outcomes) {
                    tell(operation.what, outcome);
                }
            }
            // One damaged log must not keep the others from being written.
            Err(StoreError::Damaged(_)) if group.len() > 1 => {
                for operation in group {
                    self.commit(vec![operation]);
                }
            }
            Err(error) => {
                self.note(&error);
                fail(group, &error);
            }
        }
    }

    /// Says once that writes fail. After a sync that failed nothing is known of what is on the disk: nothing is added.
    fn note(&mut self, error: &StoreError) {
        if matches!(error, StoreError::Full(_)) && !self.full {
            tracing::error!("the disk is full: writes are refused until there is room, reads go on");
            self.full = true;
        }
        if matches!(error, StoreError::Sync(_)) && self.failed.is_none() {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the disk failed to keep what was written: nothing more is written until a restart"
            );
            self.failed = Some(error.clone());
            self.shared.failed.store(true, Ordering::Relaxed);
        }
    }

    fn checkpoint(&mut self) {
        if let Err(error) = self.checkpoints.follow(&self.writer) {
            self.note(&error);
        }
    }

    fn try_commit(&mut self, group: &mut [Operation]) -> Result<Vec<Outcome>, StoreError> {
        if group.is_empty() {
            return Ok(Vec::new());
        }
        while self.journal.is_too_long() {
            self.journal.settle_all();
            self.settle(usize::MAX)?;
        }
        let shared = Arc::clone(&self.shared);
        let committed = self.apply(group).and_then(|outcomes| {
            let publishing = shared.publishing.lock().expect("no holder panics");
            self.writer.commit()?;
            Ok((outcomes, publishing))
        });
        match committed {
            Ok((outcomes, _publishing)) => {
                self.publish(group, &outcomes);
                Ok(outcomes)
            }
            Err(error) => {
                self.discard();
                // Where this fails too, so does the next begin.
                drop(self.writer.roll_back());
                Err(error)
            }
        }
    }

    /// Writes the group into a transaction that is open when this returns.
    fn apply(&mut self, group: &[Operation]) -> Result<Vec<Outcome>, StoreError> {
        let stored = self.shared.stored.load(Ordering::Relaxed);
        self.pending = Pending { totals: self.totals, stored, ..Pending::default() };
        self.entries.clear();
        // The mark of this run is on the disk before anything that could be lost.
        self.writer.sync(if self.marked { self.sync } else { Sync::Disk })?;
        self.writer.begin()?;
        let mut outcomes = Vec::with_capacity(group.len());
        for operation in group {
            outcomes.push(match &operation.what {
                What::Create { session, epoch, term, .. } => self.create(*session, *epoch, *term)?,
                What::Append { session, batch, .. } => self.append(*session, batch)?,
                What::Remove { session, .. } => self.remove(*session)?,
                What::Put { key, seen, value, .. } => self.put(key, *seen, value)?,
            });
        }
        self.write_rows()?;
        Ok(outcomes)
    }

    /// The journal's row and the totals, once for the whole group.
    fn write_rows(&mut self) -> Result<(), StoreError> {
        if !self.entries.is_empty() {
            let number = self.journal.next();
            let (heads, frames) = self.entries.seal(number);
            self.writer.put_chunk(journal::LOG, number, heads, frames)?;
            let row = StoredRow { sum: encoding::sum_of(heads), bytes: heads.len() + frames.len() };
            self.checkpoints.written(row.bytes + COMMIT_BYTES);
            self.pending.totals.logs.add(row.sum);
            self.pending.row = Some(row);
        }
        if !self.marked {
            self.writer.put_state(LastRun::NAME, &self.run.encode())?;
        }
        self.writer.put_state(Totals::NAME, &self.pending.totals.encode())
    }

    fn create(&mut self, session: SessionId, epoch: Epoch, term: u64) -> Result<Outcome, StoreError> {
        if !self.books.contains_key(&session) {
            let number = self.pending.totals.next_number;
            self.pending.totals.next_number += 1;
            let head = Head { epoch, term, first: 0, next: 0, n: 0 };
            let row = LogRow { number, session, head, frame_bytes: 0, oldest_at: 0 };
            let value = row.encode(self.journal.next());
            self.writer.put_log(number, &value)?;
            let stored_sum = encoding::sum_of(&value);
            self.pending.totals.logs.add(stored_sum);
            let book = Book {
                row,
                committed: None,
                stored_sum,
                is_journaled: false,
                lengths: VecDeque::new(),
                purged: 0,
                queued: false,
                log: None,
            };
            self.books.insert(session, book);
            self.pending.touched.insert(session);
        }
        Ok(Outcome::Done)
    }

    fn append(&mut self, session: SessionId, batch: &Batch) -> Result<Outcome, StoreError> {
        let Some(book) = self.books.get_mut(&session) else { return Ok(Outcome::Refused(EngineError::UnknownLog)) };
        let head = match check(&book.row.head, batch) {
            Ok(head) => head,
            Err(refused) => return Ok(Outcome::Refused(refused)),
        };
        let row = book.after(head, batch, &self.bounds, &self.writer)?;
        let (before, after) = (book.row.bytes(), row.bytes());
        if after > before && self.pending.stored + (after - before) > self.bounds.total_bytes {
            return Ok(Outcome::Refused(EngineError::Full));
        }
        self.entries.add(&row, &batch.records);
        book.move_to(row, batch);
        self.pending.stored = self.pending.stored + after - before;
        self.pending.touched.insert(session);
        Ok(Outcome::Head(row.head))
    }

    fn remove(&mut self, session: SessionId) -> Result<Outcome, StoreError> {
        for key in self.keys_of(session) {
            self.writer.remove_record(place_of(&key))?;
            if let Some(slot) = self.slot(&key) {
                self.pending.totals.records.take(slot.sum);
            }
            self.pending.records.insert(key, None);
        }
        let Some(book) = self.books.get(&session) else { return Ok(Outcome::Done) };
        // What the group has done to the log before is not written: its row goes.
        self.pending.touched.remove(&session);
        self.pending.removed.insert(session);
        self.pending.stored -= book.row.bytes();
        self.pending.totals.logs.take(book.stored_sum);
        self.writer.remove_log(book.row.number, &encoding::removed_mark(book.row.number))?;
        Ok(Outcome::Done)
    }

    fn keys_of(&self, session: SessionId) -> Vec<RecordKey> {
        let mut keys = Vec::new();
        {
            let records = self.shared.lock_records();
            for kind in KINDS {
                let least = RecordKey { kind, session, name: String::new() };
                let of_kind = records.range(least..).map(|(key, _)| key);
                keys.extend(of_kind.take_while(|key| key.kind == kind && key.session == session).cloned());
            }
        }
        let added = self.pending.records.keys().filter(|key| key.session == session);
        keys.extend(added.cloned());
        keys.sort();
        keys.dedup();
        keys
    }

    /// A record as the group has it so far.
    fn slot(&self, key: &RecordKey) -> Option<Slot> {
        match self.pending.records.get(key) {
            Some(changed) => *changed,
            None => self.shared.lock_records().get(key).copied(),
        }
    }

    fn put(&mut self, key: &RecordKey, seen: Option<Version>, value: &[u8]) -> Result<Outcome, StoreError> {
        let found = self.slot(key);
        let version = found.map(|slot| slot.version);
        if version != seen && !sabotage::is_off(Guard::CompareAndSet) {
            return Ok(Outcome::Refused(EngineError::Conflict { found: version }));
        }
        let version = version.unwrap_or(0) + 1;
        let head = RecordHead::new(version, value).encode(key);
        self.checkpoints.written(value.len());
        self.writer.put_record(place_of(key), &head, value)?;
        let slot = Slot { version, sum: encoding::sum_of(&head) };
        if let Some(found) = found {
            self.pending.totals.records.take(found.sum);
        }
        self.pending.totals.records.add(slot.sum);
        self.pending.records.insert(key.clone(), Some(slot));
        Ok(Outcome::Version(version))
    }

    /// After the commit: heads move, and readers find what is new.
    fn publish(&mut self, group: &mut [Operation], outcomes: &[Outcome]) {
        let pending = std::mem::take(&mut self.pending);
        self.totals = pending.totals;
        if let Some(row) = pending.row {
            self.journal.push(row);
        }
        self.marked = true;
        if std::mem::take(&mut self.full) {
            tracing::info!("there is room on the disk again: writes are taken");
        }
        {
            let mut records = self.shared.lock_records();
            for (key, slot) in pending.records {
                match slot {
                    Some(slot) => records.insert(key, slot),
                    None => records.remove(&key),
                };
            }
        }
        self.shared.stored.store(pending.stored, Ordering::Relaxed);
        for session in pending.removed {
            self.shared.logs.remove(&session);
            if let Some(book) = self.books.remove(&session) {
                self.garbage.push_back(Garbage::Removed(book.row.number));
            }
        }
        for (operation, outcome) in group.iter_mut().zip(outcomes) {
            match (&mut operation.what, outcome) {
                (What::Append { session, batch, .. }, Outcome::Head(head)) => {
                    self.publish_append(*session, *head, std::mem::take(&mut batch.records));
                }
                (What::Create { session, epoch, term, .. }, Outcome::Done) => {
                    self.publish_log(*session, Head { epoch: *epoch, term: *term, first: 0, next: 0, n: 0 });
                }
                _ => {}
            }
        }
        for session in pending.touched {
            if let Some(book) = self.books.get_mut(&session) {
                book.committed = Some(book.row);
            }
        }
    }

    /// A log that was not there before.
    fn publish_log(&mut self, session: SessionId, head: Head) {
        let Some(book) = self.books.get_mut(&session).filter(|book| book.log.is_none()) else { return };
        let log = Arc::new(Log::new(&LogRow { head, ..book.row }, 0, Vec::new()));
        self.shared.logs.insert(session, Arc::clone(&log));
        book.log = Some(log);
    }

    fn publish_append(&mut self, session: SessionId, head: Head, records: Vec<Record>) {
        // Where there is none, the group has removed it.
        let Some(book) = self.books.get_mut(&session) else { return };
        let Some(log) = &book.log else { return };
        if !std::mem::replace(&mut book.is_journaled, true) {
            self.journal.waits(session);
        }
        if let Some(last) = records.last() {
            let (next, bytes) = (last.offset + 1, records.iter().map(Record::size).sum());
            log.publish(head, records);
            self.recent.add(log, next, bytes);
        } else {
            log.publish(head, records);
        }
        let row = &book.row;
        if !book.queued && row.head.first - book.purged >= PURGED_AT_ONCE {
            book.queued = true;
            self.garbage.push_back(Garbage::Hidden(session));
        }
    }

    /// After a failure: what the group did is forgotten.
    fn discard(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for session in pending.touched.into_iter().chain(pending.removed) {
            let Some(book) = self.books.get_mut(&session) else { continue };
            match book.committed {
                Some(committed) => {
                    book.row = committed;
                    book.lengths.clear();
                }
                None => drop(self.books.remove(&session)),
            }
        }
    }

    /// One bounded step each of settling and of removing what can no longer be read, in commits of their own that nobody
    /// waits for.
    fn tidy(&mut self, group: usize) {
        if self.failed.is_some() || self.tidy_again.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.tidy_again = None;
        self.journal.settle_if_due();
        if let Err(error) = self.settle(SETTLED_AT_ONCE + group) {
            self.note(&error);
            tracing::warn!(error = &error as &dyn std::error::Error, "the journal is not settled yet");
            self.tidy_again = Some(Instant::now() + PAUSE);
        }
        self.purge(group);
    }

    /// Settles so many logs, or removes rows of the journal that are needed no more.
    fn settle(&mut self, logs: usize) -> Result<(), StoreError> {
        if !self.journal.is_settling() {
            return Ok(());
        }
        let mut settled = Vec::new();
        match self.try_settle(&mut settled, logs) {
            Ok(rows) => {
                self.journal.removed(rows);
                for (session, stored_sum) in settled {
                    let Some(book) = self.books.get_mut(&session) else { continue };
                    book.stored_sum = stored_sum;
                    book.is_journaled = false;
                    if let Some(log) = &book.log {
                        log.settle(book.row.head.next);
                    }
                }
                self.recent.evict();
                Ok(())
            }
            Err(error) => {
                drop(self.writer.roll_back());
                for (session, _) in settled.into_iter().rev() {
                    self.journal.put_back(session);
                }
                Err(error)
            }
        }
    }

    /// Returns how many rows of the journal were removed. Sessions that were taken are in `settled` also after a failure,
    /// except those that are gone.
    fn try_settle(&mut self, settled: &mut Vec<(SessionId, u64)>, logs: usize) -> Result<usize, StoreError> {
        // The next group's sync covers it; until then a lost machine only finds it in the journal.
        self.writer.sync(Sync::System)?;
        self.writer.begin()?;
        let (mut totals, mut bytes) = (self.totals, 0);
        while settled.len() < logs
            && bytes < SETTLE_STEP_BYTES
            && let Some(session) = self.journal.take()
        {
            let Some(book) = self.books.get(&session) else { continue };
            settled.push((session, book.stored_sum));
            bytes += book.write_chunks(&self.writer)?;
            let value = book.row.encode(self.journal.next());
            self.writer.put_log(book.row.number, &value)?;
            let sum = encoding::sum_of(&value);
            totals.logs.take(book.stored_sum);
            totals.logs.add(sum);
            if let Some((_, stored_sum)) = settled.last_mut() {
                *stored_sum = sum;
            }
        }
        let mut rows = 0;
        for (number, row) in self.journal.obsolete().take(JOURNAL_STEP_ROWS) {
            self.writer.remove_chunk(journal::LOG, number)?;
            totals.logs.take(row.sum);
            rows += 1;
        }
        self.writer.put_state(Totals::NAME, &totals.encode())?;
        self.writer.commit()?;
        self.checkpoints.written(bytes + settled.len() * SETTLE_BYTES + COMMIT_BYTES);
        self.totals = totals;
        Ok(rows)
    }

    /// One bounded step.
    fn purge(&mut self, group: usize) {
        if self.garbage.is_empty() {
            return;
        }
        let mut done = Vec::new();
        match self.try_purge(&mut done, PURGE_STEP_CHUNKS + 2 * group) {
            Ok(()) => {
                for garbage in done {
                    if let Garbage::Hidden(session) = garbage
                        && let Some(book) = self.books.get_mut(&session)
                    {
                        book.queued = false;
                        book.purged = book.row.head.first;
                    }
                }
            }
            Err(error) => {
                drop(self.writer.roll_back());
                self.note(&error);
                tracing::warn!(error = &error as &dyn std::error::Error, "old records are not purged yet");
                self.tidy_again = Some(Instant::now() + PAUSE);
                // A damaged place would fail for ever; what is hidden stays hidden.
                if matches!(error, StoreError::Damaged(_)) {
                    self.garbage.pop_front();
                }
                self.garbage.extend(done);
            }
        }
    }

    /// What is purged wholly moves to `done`; the rest stays.
    fn try_purge(&mut self, done: &mut Vec<Garbage>, mut chunks: usize) -> Result<(), StoreError> {
        let mut bytes = PURGE_STEP_BYTES;
        // The next group's sync covers it; until then a lost machine only finds it unpurged.
        self.writer.sync(Sync::System)?;
        self.writer.begin()?;
        while let Some(garbage) = self.garbage.front() {
            let (log, below) = match garbage {
                Garbage::Removed(number) => (*number, i64::MAX),
                Garbage::Hidden(session) => match self.books.get(session) {
                    Some(book) => (book.row.number, book.row.head.first.cast_signed()),
                    // It was removed meanwhile, and is in the queue as that.
                    None => (0, 0),
                },
            };
            let purged = self.writer.purge(log, below, chunks, bytes)?;
            chunks = chunks.saturating_sub(purged.chunks);
            bytes = bytes.saturating_sub(purged.bytes);
            if chunks == 0 || bytes == 0 {
                break;
            }
            if let Garbage::Removed(number) = garbage {
                self.writer.forget_removed(*number)?;
            }
            done.extend(self.garbage.pop_front());
        }
        self.writer.commit()?;
        self.checkpoints.written(64 << 10);
        Ok(())
    }

    fn finish(mut self) {
        self.checkpoints.stop();
        if self.end == Some(true) && self.failed.is_none() {
            if let Err(error) = self.settle_all() {
                tracing::warn!(error = &error as &dyn std::error::Error, "the journal is settled at the next start");
            }
            self.run.closed = true;
            // Who has written nothing has not seen to what was lost.
            self.run.may_have_lost &= !self.marked;
            if let Err(error) = self.mark_closed() {
                tracing::error!(error = &error as &dyn std::error::Error, "the data directory is not closed cleanly");
            }
        }
        if let Err(error) = self.writer.close() {
            tracing::warn!(error = &error as &dyn std::error::Error, "the store did not close");
        }
    }

    fn settle_all(&mut self) -> Result<(), StoreError> {
        self.journal.settle_all();
        while self.journal.is_settling() {
            self.settle(usize::MAX)?;
        }
        Ok(())
    }

    fn mark_closed(&self) -> Result<(), StoreError> {
        self.writer.sync(Sync::Disk)?;
        self.writer.begin()?;
        self.writer.put_state(LastRun::NAME, &self.run.encode())?;
        self.writer.commit()?;
        self.writer.checkpoint_fully()
    }
}

impl Book {
    /// The row after the batch, trimmed. Reads the lengths of older records from the store where trimming needs them.
    fn after(&mut self, head: Head, batch: &Batch, bounds: &Bounds, writer: &Writer) -> Result<LogRow, StoreError> {
        let continues = batch.epoch == self.row.head.epoch;
        let mut row = if continues {
            LogRow { head, ..self.row }
        } else {
            LogRow { head: Head { first: self.row.head.next, ..head }, frame_bytes: 0, oldest_at: 0, ..self.row }
        };
        let Some(newest) = batch.records.last() else { return Ok(row) };
        if row.head.first == self.row.head.next {
            row.oldest_at = batch.records[0].at;
        }
        row.frame_bytes += batch.records.iter().map(|record| record.frame.len() as u64).sum::<u64>();
        while bounds.is_too_long(records(&row), row.bytes() as usize, (row.oldest_at, newest.at)) {
            let oldest = self.length(row.head.first, batch, writer)?;
            row.frame_bytes -= oldest.bytes as u64;
            row.head.first += 1;
            row.oldest_at = self.length(row.head.first, batch, writer)?.at;
        }
        Ok(row)
    }

    /// The length of a record that is in the log or in the batch that comes after it.
    fn length(&mut self, offset: u64, batch: &Batch, writer: &Writer) -> Result<Length, StoreError> {
        let end = self.row.head.next;
        if offset >= end {
            let record = &batch.records[(offset - end) as usize];
            return Ok(Length { bytes: record.frame.len(), at: record.at });
        }
        if offset < end - self.lengths.len() as u64 {
            self.load_lengths(writer)?;
        }
        Ok(self.lengths[(offset - (end - self.lengths.len() as u64)) as usize])
    }

    /// Those of all records that can be read: of settled ones from their chunks, of the others from memory.
    fn load_lengths(&mut self, writer: &Writer) -> Result<(), StoreError> {
        let Head { first, next, .. } = self.row.head;
        let known_from = next - self.lengths.len() as u64;
        let settled = self.log.as_ref().map_or(0, |log| log.settled()).clamp(first, known_from);
        let (mut lengths, mut whole) = (VecDeque::new(), true);
        writer.chunk_heads(self.row.number, first.cast_signed(), |last, bytes| {
            let expected = first + lengths.len() as u64;
            let heads = Heads::decode(self.row.number, last, bytes).filter(|(heads, _)| heads.first <= expected);
            let Some((heads, _)) = heads.filter(|_| expected < settled) else {
                whole &= expected >= settled;
                return ControlFlow::Break(());
            };
            let new = heads.entries.iter().skip((expected - heads.first) as usize);
            lengths.extend(new.map(|entry| Length { bytes: entry.frame_bytes, at: entry.at }));
            ControlFlow::Continue(())
        })?;
        lengths.truncate((settled - first) as usize);
        let unsettled = self.log.iter().flat_map(|log| log.since(settled));
        let unsettled = unsettled.take_while(|record| record.offset < known_from);
        lengths.extend(unsettled.map(|record| Length { bytes: record.frame.len(), at: record.at }));
        lengths.append(&mut self.lengths);
        if !whole || lengths.len() as u64 != next - first {
            return Err(StoreError::Damaged(None));
        }
        self.lengths = lengths;
        Ok(())
    }

    /// Writes the committed records that are only in the journal; returns how many bytes their frames are.
    fn write_chunks(&self, writer: &Writer) -> Result<usize, StoreError> {
        let Some(log) = &self.log else { return Ok(0) };
        let records = log.since(log.settled().max(self.row.head.first));
        let (mut rest, mut total) = (&records[..], 0);
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |record: &&Record| {
                bytes += record.frame.len();
                bytes <= CHUNK_BYTES
            };
            let (chunk, behind) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            let last = chunk.last().map_or(0, |record| record.offset);
            let encoded = encoding::encode_chunk(self.row.number, chunk);
            writer.put_chunk(self.row.number, last.cast_signed(), &encoded.heads, &encoded.frames)?;
            total += encoded.frames.len();
            rest = behind;
        }
        Ok(total)
    }

    /// Takes the batch over. Its lengths are kept from now on.
    fn move_to(&mut self, row: LogRow, batch: &Batch) {
        self.lengths.extend(batch.records.iter().map(|record| Length { bytes: record.frame.len(), at: record.at }));
        self.row = row;
        while self.lengths.len() > records(&self.row) {
            self.lengths.pop_front();
        }
    }
}

fn records(row: &LogRow) -> usize {
    usize::try_from(row.head.next - row.head.first).unwrap_or(usize::MAX)
}

fn tell(what: What, outcome: Outcome) {
    match (what, outcome) {
        (what, Outcome::Refused(error)) => what.fail(error),
        (What::Create { reply, .. } | What::Remove { reply, .. }, _) => drop(reply.send(Ok(()))),
        (What::Append { reply, .. }, Outcome::Head(head)) => drop(reply.send(Ok(head))),
        (What::Put { reply, .. }, Outcome::Version(version)) => drop(reply.send(Ok(version))),
        // Each operation has its own outcome; where it had not, it would count as not answered.
        (what, _) => what.fail(EngineError::Unavailable(None)),
    }
}

fn fail(group: Vec<Operation>, error: &StoreError) {
    for operation in group {
        operation.what.fail(unavailable(error.clone()));
    }
}
