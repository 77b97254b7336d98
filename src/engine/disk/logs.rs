//! What readers see of the logs: committed heads, and the most recent records.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use dashmap::DashMap;
use tokio::sync::watch;

use super::{encoding::LogRow, opening::Slot};
use crate::{
    engine::{EngineError, Head, ReadLimit, Record, RecordKey},
    ids::SessionId,
};

/// What the committer publishes and readers read.
pub(super) struct Shared {
    pub logs: DashMap<SessionId, Arc<Log>>,
    /// Which records there are, in the order of their keys.
    pub records: Mutex<BTreeMap<RecordKey, Slot>>,
    pub stored: AtomicU64,
    /// Held from before a commit until all of it is published. A reader that finds something missing passes through
    /// it once: whatever the commit took away is then known to be gone.
    pub publishing: Mutex<()>,
    pub closed: AtomicBool,
    /// Nothing more is written: the disk failed to keep something.
    pub failed: AtomicBool,
}

impl Shared {
    pub(super) fn log(&self, session: SessionId) -> Result<Arc<Log>, EngineError> {
        self.logs.get(&session).map(|log| Arc::clone(&log)).ok_or(EngineError::UnknownLog)
    }

    pub(super) fn lock_records(&self) -> MutexGuard<'_, BTreeMap<RecordKey, Slot>> {
        self.records.lock().expect("no holder panics")
    }

    /// Waits until what is being committed is published.
    pub(super) fn await_publication(&self) {
        drop(self.publishing.lock());
    }
}

/// A log as it is committed.
pub(super) struct Log {
    pub session: SessionId,
    pub number: i64,
    pub head: watch::Sender<Head>,
    /// Records from here on are in the journal and in memory only; those before are in chunks of the log. The committer's.
    settled: AtomicU64,
    /// The newest records, without a hole up to the head, and at least those that are not settled.
    recent: Mutex<VecDeque<Record>>,
    /// Damage is told once.
    pub told_of_damage: AtomicBool,
}

impl Log {
    /// `settled`: up to there it is in the store; `recent` are the records from there on.
    pub(super) fn new(row: &LogRow, settled: u64, recent: Vec<Record>) -> Self {
        Self {
            session: row.session,
            number: row.number,
            head: watch::Sender::new(row.head),
            settled: settled.into(),
            recent: Mutex::new(recent.into()),
            told_of_damage: AtomicBool::new(false),
        }
    }

    fn lock_recent(&self) -> MutexGuard<'_, VecDeque<Record>> {
        self.recent.lock().expect("no holder panics")
    }

    /// Moves the head. Under the lock: a reader that sees the head finds the records.
    pub(super) fn publish(&self, head: Head, records: Vec<Record>) {
        let mut recent = self.lock_recent();
        recent.extend(records);
        while recent.front().is_some_and(|record| record.offset < head.first) {
            recent.pop_front();
        }
        self.head.send_replace(head);
    }

    pub(super) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// Everything below is in chunks.
    pub(super) fn settle(&self, below: u64) {
        self.settled.store(below, Ordering::Relaxed);
    }

    /// The newest records, from an offset on that is not settled.
    pub(super) fn since(&self, offset: u64) -> Vec<Record> {
        let recent = self.lock_recent();
        let start = recent.partition_point(|record| record.offset < offset);
        recent.range(start..).cloned().collect()
    }

    /// Of the records that are in memory, those from an offset on; at most so many.
    pub(super) fn in_memory(&self, from: u64, most: usize) -> Vec<Record> {
        let recent = self.lock_recent();
        let start = recent.partition_point(|record| record.offset < from);
        recent.range(start..).take(most).cloned().collect()
    }

    fn forget_below(&self, offset: u64) {
        let mut recent = self.lock_recent();
        while recent.front().is_some_and(|record| record.offset < offset) {
            recent.pop_front();
        }
        if recent.is_empty() {
            recent.shrink_to_fit();
        }
    }

    /// What a read finds in memory. `None`: it is in the store, below the head that is returned with it.
    pub(super) fn read_recent(&self, from: u64, limit: ReadLimit) -> Result<Result<Vec<Record>, Head>, EngineError> {
        let recent = self.lock_recent();
        let head = *self.head.borrow();
        if from < head.first {
            return Err(EngineError::Trimmed { first: head.first });
        }
        if from >= head.next {
            return Ok(Ok(Vec::new()));
        }
        let Some(start) = recent.front().and_then(|record| from.checked_sub(record.offset)) else {
            return Ok(Err(head));
        };
        let mut page = Page::new(limit);
        let start = usize::try_from(start).unwrap_or(usize::MAX).min(recent.len());
        for record in recent.range(start..) {
            if !page.take(record) {
                break;
            }
        }
        Ok(Ok(page.records))
    }
}

/// The answer of one read, as it grows.
pub(super) struct Page {
    limit: ReadLimit,
    bytes: usize,
    pub records: Vec<Record>,
}

impl Page {
    pub(super) fn new(limit: ReadLimit) -> Self {
        Self { limit, bytes: 0, records: Vec::new() }
    }

    /// Takes those that follow what is there, as far as there is room.
    pub(super) fn go_on<'a>(&mut self, records: impl Iterator<Item = &'a Record>, from: u64, next: u64) {
        for record in records {
            let end = from + self.records.len() as u64;
            if record.offset >= end && (record.offset != end || record.offset >= next || !self.take(record)) {
                return;
            }
        }
    }

    /// Takes the record if there is room. The first one always has.
    pub(super) fn take(&mut self, record: &Record) -> bool {
        let bytes = self.bytes.saturating_add(record.frame.len());
        let fits = self.records.is_empty() || (self.records.len() < self.limit.records && bytes <= self.limit.bytes);
        if fits {
            self.bytes = bytes;
            self.records.push(record.clone());
        }
        fits
    }
}

/// The order in which recent records leave memory: the oldest batch of all logs first, once it is settled.
pub(super) struct Recent {
    bound: usize,
    bytes: usize,
    batches: VecDeque<(Weak<Log>, u64, usize)>,
}

impl Recent {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, bytes: 0, batches: VecDeque::new() }
    }

    /// The log's records up to `next` now hold so many bytes more.
    pub(super) fn add(&mut self, log: &Arc<Log>, next: u64, bytes: usize) {
        self.bytes += bytes;
        self.batches.push_back((Arc::downgrade(log), next, bytes));
        self.evict();
    }

    /// Lets go of what is too much.
    pub(super) fn evict(&mut self) {
        while self.bytes > self.bound
            && let Some((log, next, bytes)) = self.batches.front()
        {
            if let Some(log) = log.upgrade() {
                if log.settled() < *next {
                    return;
                }
                log.forget_below(*next);
            }
            self.bytes -= bytes;
            self.batches.pop_front();
        }
    }
}
