//! Reads from the store, on threads of their own: they wait for the disk, and never for the committer.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex, atomic::Ordering, mpsc},
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::{Semaphore, oneshot};

use super::{
    encoding::{Heads, RecordHead},
    logs::{Log, Page, Shared},
    opening::place_of,
    store::{Reader, StoreError},
};
use crate::{
    engine::{EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version},
    ids::SessionId,
};

/// A reader that finds something missing looks again after what was being committed is published. Every look can lose
/// the race against another commit, but not so often.
const LOOKS: usize = 8;

type Job = Box<dyn FnOnce(&Reader) + Send>;

/// What a damaged place is called in an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damage {
    #[error("what is stored for session {session} from offset {offset} on is damaged")]
    Log {
        session: SessionId,
        offset: u64,
        #[source]
        source: Option<StoreError>,
    },
    #[error("the record {:?} {:?} of session {} is damaged", .0.kind, .0.name, .0.session)]
    Record(RecordKey),
}

pub(super) fn unavailable(error: impl std::error::Error + Send + Sync + 'static) -> EngineError {
    EngineError::Unavailable(Some(Box::new(error)))
}

pub(super) struct Readers {
    /// As many as there are threads: whoever asks waits here.
    free: Arc<Semaphore>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Readers {
    pub(super) fn start(path: &Path, count: usize) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut threads = Vec::new();
        for _ in 0..count {
            let reader = Reader::open(path)?;
            let receiver = Arc::clone(&receiver);
            let work = move || {
                loop {
                    let job = receiver.lock().expect("receiving does not panic").recv();
                    let Ok(job) = job else { return };
                    job(&reader);
                }
            };
            let named = std::thread::Builder::new().name("disk-reader".to_owned());
            threads.push(named.spawn(work).expect("the system has a thread to give"));
        }
        Ok(Self { free: Arc::new(Semaphore::new(count)), jobs: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    /// Runs a read on one of the threads.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let closed = |_| EngineError::Unavailable(None);
        let turn = Arc::clone(&self.free).acquire_owned().await.map_err(closed)?;
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |reader| {
            // The turn ends with the read, also where nobody waits for it any more.
            let _turn = turn;
            if !answer.is_closed() {
                drop(answer.send(read(reader)));
            }
        });
        let sent = self.jobs.lock().expect("no holder panics").as_ref().map(|jobs| jobs.send(job));
        if !matches!(sent, Some(Ok(()))) {
            return Err(EngineError::Unavailable(None));
        }
        answered.await.unwrap_or(Err(EngineError::Unavailable(None)))
    }

    /// Ends the threads after what they do now. Idempotent.
    pub(super) fn stop(&self) {
        self.free.close();
        drop(self.jobs.lock().expect("no holder panics").take());
        for thread in self.threads.lock().expect("no holder panics").drain(..) {
            // A panic was reported when it happened.
            drop(thread.join());
        }
    }
}

/// A page of a log from the store. `head` is the committed head that the reader saw.
pub(super) fn read_log(
    reader: &Reader,
    shared: &Shared,
    log: &Log,
    from: u64,
    mut head: Head,
    limit: ReadLimit,
) -> Result<Vec<Record>, EngineError> {
    let mut source = None;
    for _ in 0..LOOKS {
        // First what is in memory: what is before that is in chunks already, and what leaves it meanwhile is held here.
        let newest = log.in_memory(from, limit.records);
        match page(reader, log.number, from, head.next, limit) {
            Ok(mut page) => {
                page.go_on(newest.iter(), from, head.next);
                if !page.records.is_empty() {
                    return Ok(page.records);
                }
            }
            Err(error @ StoreError::Damaged(_)) => source = Some(error),
            Err(error) => return Err(unavailable(error)),
        }
        shared.await_publication();
        // It may have been trimmed or removed in between.
        if shared.logs.get(&log.session).is_none_or(|now| now.number != log.number) {
            return Err(EngineError::UnknownLog);
        }
        let now = *log.head.borrow();
        if from < now.first {
            return Err(EngineError::Trimmed { first: now.first });
        }
        if now == head {
            break;
        }
        head = now;
    }
    let damage = Damage::Log { session: log.session, offset: from, source };
    if !log.told_of_damage.swap(true, Ordering::Relaxed) {
        tracing::error!(session = %log.session, offset = from, "{damage}; other sessions are not touched by it");
    }
    Err(unavailable(damage))
}

/// A page of records from `from` on and below `next`, as far as they are in chunks. Empty where what should be there is
/// not, or is not whole.
pub(super) fn page(reader: &Reader, log: i64, from: u64, next: u64, limit: ReadLimit) -> Result<Page, StoreError> {
    let (mut page, mut expected) = (Page::new(limit), from);
    reader.chunks(log, from.cast_signed(), |last, heads, frames| {
        // A damaged chunk ends a page that is not empty; the next read then begins there.
        let taken = take_chunk(&mut page, &mut expected, next, (log, last), heads, frames);
        taken.unwrap_or(ControlFlow::Break(()))
    })?;
    Ok(page)
}

fn take_chunk(
    page: &mut Page,
    expected: &mut u64,
    next: u64,
    (log, last): (i64, i64),
    heads: &[u8],
    frames: &[u8],
) -> Option<ControlFlow<()>> {
    let (heads, sum) = Heads::decode(log, last, heads)?;
    if heads.first > *expected {
        return None;
    }
    for record in heads.records(frames, sum)? {
        if record.offset >= next {
            return Some(ControlFlow::Break(()));
        }
        if record.offset < *expected {
            continue;
        }
        if !page.take(&record) {
            return Some(ControlFlow::Break(()));
        }
        *expected += 1;
    }
    Some(if *expected < next { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
}

/// A record that the index has.
pub(super) fn read_record(
    reader: &Reader,
    shared: &Shared,
    key: &RecordKey,
) -> Result<Option<(Version, Bytes)>, EngineError> {
    let mut seen = None;
    for _ in 0..LOOKS {
        match record(reader, key) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) | Err(StoreError::Damaged(_)) => {}
            Err(error) => return Err(unavailable(error)),
        }
        shared.await_publication();
        let Some(now) = shared.lock_records().get(key).copied() else { return Ok(None) };
        if seen == Some(now) {
            break;
        }
        seen = Some(now);
    }
    let damage = Damage::Record(key.clone());
    tracing::error!("{damage}");
    Err(unavailable(damage))
}

/// None: there is none, or it is not whole.
pub(super) fn record(reader: &Reader, key: &RecordKey) -> Result<Option<(Version, Bytes)>, StoreError> {
    let Some((head, value)) = reader.record(place_of(key))? else { return Ok(None) };
    let head = RecordHead::decode(key, &head).filter(|head| head.is_of(&value));
    Ok(head.map(|head| (head.version, value.into())))
}

/// The keys of a kind that the index has, in order; of one session where given.
pub(super) fn keys(shared: &Shared, kind: RecordKind, session: Option<SessionId>) -> Vec<RecordKey> {
    let records = shared.lock_records();
    // The empty name is before all others, and so is the least session.
    let least = RecordKey { kind, session: session.unwrap_or(SessionId::NONE), name: String::new() };
    records
        .range(least..)
        .map(|(key, _)| key)
        .take_while(|key| key.kind == kind && session.is_none_or(|session| key.session == session))
        .cloned()
        .collect()
}

/// The records under these keys, as far as they still are when they are read.
pub(super) fn read_records(reader: &Reader, shared: &Shared, keys: Vec<RecordKey>) -> Result<Vec<Stored>, EngineError> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        if let Some((version, value)) = read_record(reader, shared, &key)? {
            found.push((key, version, value));
        }
    }
    Ok(found)
}
