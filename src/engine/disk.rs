//! The engine on a disk: one directory, one process.
//!
//! All writes go through one thread, which commits what waits as one group ([`committer`]). The newest records stay in
//! memory for those who follow; older ones are read on threads of their own ([`readers`]) and never wait for a commit.
//! Everything stored carries a checksum ([`encoding`]): damage is an error, never another record. What is particular to
//! the store is in [`store`].
//!
//! A full disk refuses writes as unavailable until there is room; reads go on. A disk that failed to sync refuses
//! writes until the process restarts, because nothing is known of what it has kept. Nothing is ever deleted to get
//! going.

mod checkpoints;
mod committer;
mod encoding;
mod inspection;
mod journal;
mod logs;
mod opening;
mod readers;
mod store;

#[cfg(test)]
mod tests;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use dashmap::DashMap;
use futures::future::{BoxFuture, FutureExt};
use onlooker_protocol::event::Epoch;
use tokio::sync::{Semaphore, oneshot, watch};

use self::{
    checkpoints::Checkpoints,
    committer::{Committer, Message, Operation, Reply, What},
    encoding::LastRun,
    logs::{Log, Shared},
    opening::{Contents, FoundLog, Lock},
    readers::Readers,
    store::{Sync, Writer},
};
pub use self::{
    inspection::{Inspection, InspectionError, LogSummary},
    opening::OpenError,
};
use super::{
    Batch, Before, Bounds, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version,
};
use crate::{config::Durability, ids::SessionId};

/// What waits for the committer at most, in bytes; an operation counts at least 512.
const QUEUE_BYTES: usize = 32 << 20;
/// Threads that read logs for whoever follows, and those that read records for owners and the outbox. They are apart:
/// however many read histories, a decision does not wait behind them.
const LOG_READERS: usize = 2;
const RECORD_READERS: usize = 1;
/// Records that one turn of a reader thread reads for a list.
const LISTED_AT_ONCE: usize = 256;
/// Of all logs together, the newest records that stay in memory.
const RECENT_BYTES: usize = 32 << 20;

#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Made where it does not exist.
    pub dir: PathBuf,
    pub bounds: Bounds,
    pub durability: Durability,
}

pub struct DiskEngine {
    shared: Arc<Shared>,
    log_readers: Readers,
    record_readers: Readers,
    /// Room in the queue, in bytes.
    room: Arc<Semaphore>,
    queue: mpsc::Sender<Message>,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Changes to true when the committer has ended.
    ended: watch::Receiver<bool>,
    before: Before,
    /// Let go when everything has ended.
    lock: Mutex<Option<Lock>>,
}

impl DiskEngine {
    /// Opens the directory for this process alone. Reads what is known of every log; blocks while it does.
    pub fn open(options: DiskOptions) -> Result<Self, OpenError> {
        Self::open_with_recent(options, RECENT_BYTES)
    }

    fn open_with_recent(options: DiskOptions, recent_bytes: usize) -> Result<Self, OpenError> {
        let DiskOptions { dir, bounds, durability } = options;
        let lock = opening::take(&dir)?;
        let contents = opening::load_offline(&dir)?;
        let file = store::file(&dir);
        let cut = store::log_is_cut(&dir).map_err(|source| OpenError::Io { path: dir.clone(), source })?;
        if cut {
            tracing::error!(
                "the write-ahead log in {} is damaged: the commits from there on are lost, what was before is used",
                dir.display()
            );
        }
        let failed = |error| opening::from_store(&file, error);
        let writer = Writer::open(&file).map_err(failed)?;
        let log_readers = Readers::start(&file, LOG_READERS).map_err(failed)?;
        let record_readers = Readers::start(&file, RECORD_READERS).map_err(failed)?;
        let checkpoints = Checkpoints::start(&file).map_err(failed)?;

        let boot = opening::machine_start();
        let last = &contents.last_run;
        let restarted = boot.is_empty() || boot != last.boot;
        let may_have_lost = cut || last.may_have_lost || (last.os && !last.closed && restarted);
        let os = durability == Durability::Os;
        let run = LastRun { os, closed: false, may_have_lost, boot };
        let sync = if os { Sync::System } else { Sync::Disk };

        let shared = Arc::new(share(&contents));
        let (queue, waiting) = mpsc::channel();
        let (end, ended) = watch::channel(false);
        let committer = Committer::new(
            writer,
            checkpoints,
            Arc::clone(&shared),
            bounds,
            waiting,
            &contents,
            (sync, run, recent_bytes),
        );
        let work = move || {
            // Also when it panics: whoever waits for the end must not wait for ever.
            let _ended = EndOnDrop(end);
            committer.run();
        };
        let named = std::thread::Builder::new().name("disk-commit".to_owned());
        let thread = named.spawn(work).map_err(|source| OpenError::Io { path: dir, source })?;
        Ok(Self {
            shared,
            log_readers,
            record_readers,
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            queue,
            committer: Mutex::new(Some(thread)),
            ended,
            before: Before { sole_user: true, may_have_lost },
            lock: Mutex::new(Some(lock)),
        })
    }

    /// Queues an operation and waits for its group. Until it is queued, giving up means that it never was.
    async fn ask<T>(&self, what: impl FnOnce(Reply<T>) -> What) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        let what = what(reply);
        let weight = what.weight().min(QUEUE_BYTES) as u32;
        let closed = || EngineError::Unavailable(None);
        let room = Arc::clone(&self.room).acquire_many_owned(weight).await.map_err(|_| closed())?;
        self.queue.send(Message::Do(Operation { what, _room: room })).map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    fn open_log(&self, session: SessionId) -> Result<Arc<Log>, EngineError> {
        self.refuse_if_closed()?;
        self.shared.log(session)
    }

    fn refuse_if_closed(&self) -> Result<(), EngineError> {
        if self.shared.closed.load(Ordering::Relaxed) { Err(EngineError::Unavailable(None)) } else { Ok(()) }
    }

    /// Nothing more is taken; what was taken is done, then the committer ends.
    fn end(&self, clean: bool) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.room.close();
        // Where it is gone it has ended.
        drop(self.queue.send(Message::End { clean }));
    }

    fn join(&self) {
        let thread = self.committer.lock().expect("no holder panics").take();
        if let Some(thread) = thread {
            // A panic was reported when it happened.
            drop(thread.join());
        }
        self.log_readers.stop();
        self.record_readers.stop();
        drop(self.lock.lock().expect("no holder panics").take());
    }
}

/// What readers see at first.
fn share(contents: &Contents) -> Shared {
    let logs = DashMap::with_capacity(contents.logs.len());
    let mut stored = 0;
    for FoundLog { row, settled, unsettled, .. } in &contents.logs {
        stored += row.bytes();
        logs.insert(row.session, Arc::new(Log::new(row, *settled, unsettled.clone())));
    }
    Shared {
        logs,
        records: Mutex::new(contents.records.clone()),
        stored: AtomicU64::new(stored),
        publishing: Mutex::default(),
        closed: AtomicBool::new(false),
        failed: AtomicBool::new(false),
    }
}

struct EndOnDrop(watch::Sender<bool>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl Drop for DiskEngine {
    fn drop(&mut self) {
        self.end(false);
        self.join();
    }
}

impl Engine for DiskEngine {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        self.ask(move |reply| What::Create { session, epoch, term, reply }).boxed()
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        self.ask(move |reply| What::Append { session, batch, reply }).boxed()
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        async move {
            let log = self.open_log(session)?;
            let head = match log.read_recent(from, limit)? {
                Ok(records) => return Ok(records),
                Err(head) => head,
            };
            let shared = Arc::clone(&self.shared);
            self.log_readers.run(move |reader| readers::read_log(reader, &shared, &log, from, head, limit)).await
        }
        .boxed()
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        Ok(self.open_log(session)?.head.subscribe())
    }

    fn logs(&self) -> Vec<SessionId> {
        self.shared.logs.iter().map(|log| *log.key()).collect()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.ask(move |reply| What::Remove { session, reply }).boxed()
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        self.ask(move |reply| What::Put { key, seen, value, reply }).boxed()
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        async move {
            self.refuse_if_closed()?;
            if !self.shared.lock_records().contains_key(&key) {
                return Ok(None);
            }
            let shared = Arc::clone(&self.shared);
            self.record_readers.run(move |reader| readers::read_record(reader, &shared, &key)).await
        }
        .boxed()
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        async move {
            self.refuse_if_closed()?;
            let keys = readers::keys(&self.shared, kind, session);
            let mut found = Vec::with_capacity(keys.len());
            for some in keys.chunks(LISTED_AT_ONCE) {
                let (shared, some) = (Arc::clone(&self.shared), some.to_vec());
                found
                    .extend(self.record_readers.run(move |reader| readers::read_records(reader, &shared, some)).await?);
            }
            Ok(found)
        }
        .boxed()
    }

    fn stored_bytes(&self) -> u64 {
        self.shared.stored.load(Ordering::Relaxed)
    }

    fn before(&self) -> Before {
        self.before
    }

    fn needs_restart(&self) -> bool {
        self.shared.failed.load(Ordering::Relaxed)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.end(true);
            let mut ended = self.ended.clone();
            // The sender is gone only after it has said so.
            drop(ended.wait_for(|ended| *ended).await);
            self.join();
        }
        .boxed()
    }
}
