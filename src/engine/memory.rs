//! The engine that lives in the process's memory. Durable means: in the map.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use dashmap::DashMap;
use futures::future::{self, BoxFuture, FutureExt};
use onlooker_protocol::event::Epoch;
use tokio::sync::watch;

use super::{
    Batch, Before, Bounds, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version,
};
use crate::{
    ids::SessionId,
    sabotage::{self, Guard},
};

pub struct MemoryEngine {
    bounds: Bounds,
    logs: DashMap<SessionId, Arc<Log>>,
    records: Mutex<BTreeMap<RecordKey, (Version, Bytes)>>,
    stored: AtomicU64,
}

struct Log {
    content: Mutex<Content>,
    head: watch::Sender<Head>,
}

struct Content {
    records: VecDeque<Record>,
    bytes: usize,
    /// Somebody may still hold the log: what it would count then is counted nowhere.
    removed: bool,
}

impl MemoryEngine {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, logs: DashMap::new(), records: Mutex::default(), stored: AtomicU64::new(0) }
    }

    fn log(&self, session: SessionId) -> Result<Arc<Log>, EngineError> {
        self.logs.get(&session).map(|log| Arc::clone(&log)).ok_or(EngineError::UnknownLog)
    }

    fn append_now(&self, session: SessionId, batch: Batch) -> Result<Head, EngineError> {
        let log = self.log(session)?;
        let mut content = log.lock();
        if content.removed {
            return Err(EngineError::UnknownLog);
        }
        let head = *log.head.borrow();
        let mut next_head = check(&head, &batch)?;
        let before = content.bytes;
        let continues = batch.epoch == head.epoch;
        let after = self.bytes_after(&content, continues, &batch.records);
        if after > before && self.stored.load(Ordering::Relaxed) + (after - before) as u64 > self.bounds.total_bytes {
            return Err(EngineError::Full);
        }
        if !continues {
            content.records.clear();
            content.bytes = 0;
        }
        content.bytes += batch.records.iter().map(Record::size).sum::<usize>();
        content.records.extend(batch.records);
        self.trim(&mut content);
        next_head.first = content.records.front().map_or(next_head.next, |record| record.offset);
        if content.bytes >= before {
            self.stored.fetch_add((content.bytes - before) as u64, Ordering::Relaxed);
        } else {
            self.stored.fetch_sub((before - content.bytes) as u64, Ordering::Relaxed);
        }
        // Under the lock: a reader that sees the head finds the records.
        log.head.send_replace(next_head);
        Ok(next_head)
    }

    fn trim(&self, content: &mut Content) {
        while let (Some(oldest), Some(newest)) = (content.records.front(), content.records.back())
            && self.bounds.is_too_long(content.records.len(), content.bytes, (oldest.at, newest.at))
        {
            let oldest = content.records.pop_front().expect("just seen");
            content.bytes -= oldest.size();
        }
    }

    /// What the log will hold with these records, trimmed: at its own bound it does not grow, and is not refused.
    fn bytes_after(&self, content: &Content, continues: bool, added: &[Record]) -> usize {
        let kept = content.records.iter().filter(|_| continues);
        let mut records = added.len() + if continues { content.records.len() } else { 0 };
        let mut bytes = added.iter().map(Record::size).sum::<usize>() + if continues { content.bytes } else { 0 };
        let newest = added.last().or(content.records.back()).map_or(0, |record| record.at);
        for oldest in kept.chain(added) {
            if !self.bounds.is_too_long(records, bytes, (oldest.at, newest)) {
                break;
            }
            records -= 1;
            bytes -= oldest.size();
        }
        bytes
    }

    fn read_now(&self, session: SessionId, from: u64, limit: ReadLimit) -> Result<Vec<Record>, EngineError> {
        let log = self.log(session)?;
        let content = log.lock();
        let head = *log.head.borrow();
        if from < head.first {
            return Err(EngineError::Trimmed { first: head.first });
        }
        let start = usize::try_from(from - head.first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let page = content.records.range(start.min(content.records.len())..).take(limit.records.max(1));
        Ok(page
            .take_while(|record| {
                let first = bytes == 0;
                bytes += record.frame.len();
                first || bytes <= limit.bytes
            })
            .cloned()
            .collect())
    }

    fn put_now(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> Result<Version, EngineError> {
        let mut records = self.lock_records();
        let found = records.get(&key).map(|(version, _)| *version);
        if found != seen && !sabotage::is_off(Guard::CompareAndSet) {
            return Err(EngineError::Conflict { found });
        }
        let version = found.unwrap_or(0) + 1;
        records.insert(key, (version, value));
        Ok(version)
    }

    fn lock_records(&self) -> MutexGuard<'_, BTreeMap<RecordKey, (Version, Bytes)>> {
        self.records.lock().expect("no writer panics")
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().expect("no writer panics")
    }
}

/// The head after the batch, or why it may not be appended.
pub(super) fn check(head: &Head, batch: &Batch) -> Result<Head, EngineError> {
    if batch.term < head.term && !sabotage::is_off(Guard::Fence) {
        return Err(EngineError::Fenced { term: head.term });
    }
    if let Some(numbers) = batch.numbers
        && numbers.from != head.n
    {
        return Err(EngineError::NumberExpected { n: head.n });
    }
    let in_order = batch.records.iter().zip(head.next..).all(|(record, expected)| record.offset == expected);
    if !in_order {
        return Err(EngineError::OffsetExpected { epoch: head.epoch, next: head.next });
    }
    Ok(Head {
        epoch: batch.epoch,
        term: batch.term.max(head.term),
        first: head.first,
        next: head.next + batch.records.len() as u64,
        n: batch.numbers.map_or(head.n, |numbers| numbers.to),
    })
}

impl Engine for MemoryEngine {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        let head = Head { epoch, term, first: 0, next: 0, n: 0 };
        let log = Log {
            content: Mutex::new(Content { records: VecDeque::new(), bytes: 0, removed: false }),
            head: watch::Sender::new(head),
        };
        self.logs.entry(session).or_insert_with(|| Arc::new(log));
        future::ready(Ok(())).boxed()
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        future::ready(self.append_now(session, batch)).boxed()
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        future::ready(self.read_now(session, from, limit)).boxed()
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        Ok(self.log(session)?.head.subscribe())
    }

    fn logs(&self) -> Vec<SessionId> {
        self.logs.iter().map(|log| *log.key()).collect()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        if let Some((_, log)) = self.logs.remove(&session) {
            let mut content = log.lock();
            content.removed = true;
            self.stored.fetch_sub(content.bytes as u64, Ordering::Relaxed);
        }
        self.lock_records().retain(|key, _| key.session != session);
        future::ready(Ok(())).boxed()
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        future::ready(self.put_now(key, seen, value)).boxed()
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        future::ready(Ok(self.lock_records().get(&key).cloned())).boxed()
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        let records = self.lock_records();
        let found = records
            .iter()
            .filter(|(key, _)| key.kind == kind && session.is_none_or(|session| key.session == session))
            .map(|(key, (version, value))| (key.clone(), *version, value.clone()))
            .collect();
        future::ready(Ok(found)).boxed()
    }

    fn stored_bytes(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    fn before(&self) -> Before {
        Before { sole_user: true, may_have_lost: false }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        future::ready(()).boxed()
    }
}
