//! What every engine promises, as one list of cases. An engine joins by one line in `every_engine!`.
//!
//! What an engine refuses as unavailable is asked again: it has not happened.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use onlooker::{
    config::Durability,
    engine::{
        Batch, Before, Bounds, Engine, EngineError, Head, Numbers, ReadLimit, Record, RecordKey, RecordKind, Stored,
        Version,
        disk::{DiskEngine, DiskOptions},
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    ids::{SessionId, random_epoch},
};
use onlooker_protocol::event::Epoch;
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet};

const MANY: Bounds = Bounds { log_records: 10_000, log_bytes: 16 << 20, log_age: Duration::MAX, total_bytes: 1 << 30 };
const ALL: ReadLimit = ReadLimit { records: usize::MAX, bytes: usize::MAX };

fn memory(bounds: Bounds) -> Arc<dyn Engine> {
    Arc::new(MemoryEngine::new(bounds))
}

fn faulty(bounds: Bounds) -> Arc<dyn Engine> {
    let faults = Faults { failing_per_mille: 300.into(), delay_us: 2_000.into(), ..Faults::default() };
    Arc::new(FaultyEngine::new(MemoryEngine::new(bounds), Arc::new(faults), 7))
}

fn disk(bounds: Bounds) -> Arc<dyn Engine> {
    Arc::new(OnDisk::new(bounds, Durability::Fsync))
}

fn disk_os(bounds: Bounds) -> Arc<dyn Engine> {
    Arc::new(OnDisk::new(bounds, Durability::Os))
}

fn faulty_disk(bounds: Bounds) -> Arc<dyn Engine> {
    let faults = Faults { failing_per_mille: 300.into(), delay_us: 2_000.into(), ..Faults::default() };
    Arc::new(FaultyEngine::new(OnDisk::new(bounds, Durability::Os), Arc::new(faults), 7))
}

/// A disk engine whose directory goes with it.
struct OnDisk {
    engine: DiskEngine,
    _directory: TempDir,
}

impl OnDisk {
    fn new(bounds: Bounds, durability: Durability) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = DiskOptions { dir: directory.path().join("data"), bounds, durability };
        Self { engine: DiskEngine::open(options).unwrap(), _directory: directory }
    }
}

impl Engine for OnDisk {
    fn logs(&self) -> Vec<SessionId> {
        self.engine.logs()
    }

    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        self.engine.create(session, epoch, term)
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        self.engine.append(session, batch)
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        self.engine.read(session, from, limit)
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.engine.head(session)
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.engine.remove(session)
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        self.engine.put(key, seen, value)
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        self.engine.get(key)
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        self.engine.list(kind, session)
    }

    fn stored_bytes(&self) -> u64 {
        self.engine.stored_bytes()
    }

    fn before(&self) -> Before {
        self.engine.before()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.engine.close()
    }
}

type Factory = fn(Bounds) -> Subject;

macro_rules! every_engine {
    ($($engine:ident: $make:expr;)+) => {
        $(mod $engine {
            use super::Subject;

            cases!(|bounds| Subject($make(bounds));
                records_come_back_in_order_under_dense_offsets
                a_batch_is_taken_wholly_or_not_at_all
                an_offset_that_is_not_the_next_is_refused
                a_lower_term_is_fenced_and_changes_nothing
                the_runtimes_number_must_be_the_one_that_was_seen
                a_new_epoch_hides_what_was_before
                a_log_is_trimmed_by_count
                a_log_is_trimmed_by_bytes
                a_log_is_trimmed_by_age
                a_read_returns_no_more_than_asked_and_one_at_least
                a_read_below_the_first_says_so_and_one_at_the_head_is_empty
                the_head_moves_forward_and_all_below_it_can_be_read
                appends_to_many_sessions_at_once_leave_each_log_right
                writers_of_one_log_never_take_each_others_place
                an_append_that_is_given_up_has_happened_wholly_or_not_at_all
                exactly_one_writer_wins_each_version
                records_are_listed_by_kind_and_session_in_the_order_of_keys
                a_removed_log_is_gone_with_its_records
                nothing_is_counted_after_everything_is_removed_while_it_is_written
                a_full_engine_refuses_and_changes_nothing
                a_full_engine_takes_what_replaces_as_much_as_it_adds
            );
        })+
    };
}

macro_rules! cases {
    ($make:expr; $($case:ident)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            super::$case($make).await;
        })+
    };
}

every_engine! {
    memory: super::memory;
    disk: super::disk;
    disk_os: super::disk_os;
    faulty: super::faulty;
    faulty_disk: super::faulty_disk;
}

/// An engine that is asked again where it does not answer.
#[derive(Clone)]
struct Subject(Arc<dyn Engine>);

/// Repeats what was refused as unavailable.
async fn again<T, F: Future<Output = Result<T, EngineError>>>(ask: impl Fn() -> F) -> Result<T, EngineError> {
    loop {
        match ask().await {
            Err(EngineError::Unavailable(_)) => tokio::task::yield_now().await,
            result => return result,
        }
    }
}

impl Subject {
    async fn create(&self) -> Log {
        let (session, epoch) = (SessionId::random(), random_epoch());
        again(|| self.0.create(session, epoch, 1)).await.unwrap();
        Log { engine: self.clone(), session, epoch }
    }

    async fn put(&self, key: &RecordKey, seen: Option<Version>, value: &str) -> Result<Version, EngineError> {
        again(|| self.0.put(key.clone(), seen, Bytes::copy_from_slice(value.as_bytes()))).await
    }

    async fn get(&self, key: &RecordKey) -> Option<(Version, Bytes)> {
        again(|| self.0.get(key.clone())).await.unwrap()
    }
}

#[derive(Clone)]
struct Log {
    engine: Subject,
    session: SessionId,
    epoch: Epoch,
}

impl Log {
    fn head(&self) -> Head {
        *self.engine.0.head(self.session).unwrap().borrow()
    }

    async fn append(&self, batch: Batch) -> Result<Head, EngineError> {
        again(|| self.engine.0.append(self.session, batch.clone())).await
    }

    async fn read(&self, from: u64, limit: ReadLimit) -> Result<Vec<Record>, EngineError> {
        again(|| self.engine.0.read(self.session, from, limit)).await
    }

    /// A batch of small records from an offset on, each of which names its offset.
    fn batch(&self, offsets: std::ops::Range<u64>) -> Batch {
        Batch { term: 1, epoch: self.epoch, records: offsets.map(small).collect(), numbers: None }
    }

    async fn offsets(&self) -> Vec<u64> {
        let records = self.read(self.head().first, ALL).await.unwrap();
        assert!(records.iter().all(|record| record.frame == record.offset.to_string()), "a record is another's");
        records.into_iter().map(|record| record.offset).collect()
    }
}

fn small(offset: u64) -> Record {
    Record { offset, at: 0, kind: "x.small".into(), frame: offset.to_string().into() }
}

fn large(offset: u64, bytes: usize) -> Record {
    Record { offset, at: 0, kind: "x.large".into(), frame: vec![b'a'; bytes].into() }
}

fn key(session: SessionId, kind: RecordKind, name: &str) -> RecordKey {
    RecordKey { kind, session, name: name.to_owned() }
}

// --- logs ------------------------------------------------------------------------------------------------------------

async fn records_come_back_in_order_under_dense_offsets(make: Factory) {
    let log = make(MANY).create().await;
    assert_eq!((log.head().first, log.head().next), (0, 0));
    for from in (0..60).step_by(3) {
        let head = log.append(log.batch(from..from + 3)).await.unwrap();
        assert_eq!((head.first, head.next, head.epoch), (0, from + 3, log.epoch));
        assert_eq!(head, log.head());
    }
    assert_eq!(log.offsets().await, Vec::from_iter(0..60));
    let tail = log.read(57, ALL).await.unwrap();
    assert_eq!(tail.iter().map(|record| record.offset).collect::<Vec<_>>(), [57, 58, 59]);
    assert_eq!(&*tail[0].kind, "x.small");
}

async fn a_batch_is_taken_wholly_or_not_at_all(make: Factory) {
    let log = make(MANY).create().await;
    let before = log.append(log.batch(0..2)).await.unwrap();
    for wrong in [vec![2, 3, 5], vec![2, 2, 3], vec![3, 2], vec![2, 3, 1]] {
        let batch = Batch { records: wrong.into_iter().map(small).collect(), ..log.batch(0..0) };
        let refused = log.append(batch).await.unwrap_err();
        assert!(matches!(refused, EngineError::OffsetExpected { next: 2, .. }), "{refused}");
        assert_eq!(log.head(), before);
    }
    assert_eq!(log.offsets().await, [0, 1]);
}

async fn an_offset_that_is_not_the_next_is_refused(make: Factory) {
    let log = make(MANY).create().await;
    log.append(log.batch(0..5)).await.unwrap();
    for from in [0, 4, 6, 100] {
        let refused = log.append(log.batch(from..from + 1)).await.unwrap_err();
        assert!(matches!(refused, EngineError::OffsetExpected { next: 5, epoch } if epoch == log.epoch), "{refused}");
    }
    assert_eq!(log.append(log.batch(5..6)).await.unwrap().next, 6);
}

async fn a_lower_term_is_fenced_and_changes_nothing(make: Factory) {
    let log = make(MANY).create().await;
    log.append(Batch { term: 1, ..log.batch(0..1) }).await.unwrap();
    let taken_over = log.append(Batch { term: 3, ..log.batch(1..2) }).await.unwrap();
    assert_eq!(taken_over.term, 3);
    for term in [0, 1, 2] {
        let numbers = Some(Numbers { from: 0, to: 1 });
        let refused = log.append(Batch { term, numbers, ..log.batch(2..3) }).await.unwrap_err();
        assert!(matches!(refused, EngineError::Fenced { term: 3 }), "{refused}");
        let refused = log.append(Batch { term, epoch: random_epoch(), ..log.batch(2..3) }).await.unwrap_err();
        assert!(matches!(refused, EngineError::Fenced { term: 3 }), "{refused}");
        assert_eq!(log.head(), taken_over);
    }
    assert_eq!(log.offsets().await, [0, 1]);
    assert_eq!(log.append(Batch { term: 3, ..log.batch(2..3) }).await.unwrap().next, 3);
}

async fn the_runtimes_number_must_be_the_one_that_was_seen(make: Factory) {
    let log = make(MANY).create().await;
    let numbered = |from, to, at| Batch { numbers: Some(Numbers { from, to }), ..log.batch(at..at + 1) };
    assert_eq!(log.append(numbered(0, 4, 0)).await.unwrap().n, 4);
    // The gateway's own events move no number.
    assert_eq!(log.append(log.batch(1..2)).await.unwrap().n, 4);
    for from in [0, 3, 5] {
        let refused = log.append(numbered(from, from + 1, 2)).await.unwrap_err();
        assert!(matches!(refused, EngineError::NumberExpected { n: 4 }), "{refused}");
    }
    assert_eq!(log.head().next, 2);
    assert_eq!(log.append(numbered(4, 5, 2)).await.unwrap().n, 5);
}

async fn a_new_epoch_hides_what_was_before(make: Factory) {
    let log = make(MANY).create().await;
    log.append(log.batch(0..10)).await.unwrap();
    let before = log.engine.0.stored_bytes();
    let epoch = random_epoch();
    let head = log.append(Batch { epoch, ..log.batch(10..11) }).await.unwrap();
    assert_eq!((head.epoch, head.first, head.next), (epoch, 10, 11));
    assert_eq!(log.offsets().await, [10]);
    for from in 0..10 {
        let refused = log.read(from, ALL).await.unwrap_err();
        assert!(matches!(refused, EngineError::Trimmed { first: 10 }), "{refused}");
    }
    assert!(log.engine.0.stored_bytes() < before / 5);
}

async fn a_log_is_trimmed_by_count(make: Factory) {
    let log = make(Bounds { log_records: 8, ..MANY }).create().await;
    for from in 0..20 {
        let head = log.append(log.batch(from..from + 1)).await.unwrap();
        assert_eq!((head.first, head.next), ((from + 1).saturating_sub(8), from + 1));
    }
    assert_eq!(log.offsets().await, Vec::from_iter(12..20));
    let head = log.append(log.batch(20..40)).await.unwrap();
    assert_eq!((head.first, head.next), (32, 40));
    assert_eq!(log.offsets().await, Vec::from_iter(32..40));
}

async fn a_log_is_trimmed_by_bytes(make: Factory) {
    let log = make(Bounds { log_bytes: 10_000, ..MANY }).create().await;
    for from in 0..50 {
        let head = log.append(Batch { records: vec![large(from, 1_000)], ..log.batch(0..0) }).await.unwrap();
        let held = log.read(head.first, ALL).await.unwrap();
        let bytes: usize = held.iter().map(Record::size).sum();
        assert!(bytes <= 10_000, "{bytes} bytes are held");
        assert_eq!(log.engine.0.stored_bytes(), bytes as u64);
        assert!(held.len() as u64 >= 9.min(from + 1), "{} are held", held.len());
    }
    // The newest is kept, however large it is.
    let head = log.append(Batch { records: vec![large(50, 20_000)], ..log.batch(0..0) }).await.unwrap();
    assert_eq!((head.first, head.next), (50, 51));
    assert_eq!(log.read(50, ALL).await.unwrap().len(), 1);
}

async fn a_log_is_trimmed_by_age(make: Factory) {
    let log = make(Bounds { log_age: Duration::from_secs(60), ..MANY }).create().await;
    let record = |offset: u64, seconds: u64| Record { at: seconds * 1000, ..small(offset) };
    log.append(Batch { records: vec![record(0, 0), record(1, 30)], ..log.batch(0..0) }).await.unwrap();
    let head = log.append(Batch { records: vec![record(2, 60)], ..log.batch(0..0) }).await.unwrap();
    assert_eq!(head.first, 0, "exactly as old as allowed");
    let head = log.append(Batch { records: vec![record(3, 61)], ..log.batch(0..0) }).await.unwrap();
    assert_eq!((head.first, head.next), (1, 4));
    let head = log.append(Batch { records: vec![record(4, 9_000)], ..log.batch(0..0) }).await.unwrap();
    assert_eq!((head.first, head.next), (4, 5), "the newest stays");
}

async fn a_read_returns_no_more_than_asked_and_one_at_least(make: Factory) {
    let log = make(MANY).create().await;
    log.append(Batch { records: (0..10).map(|offset| large(offset, 100)).collect(), ..log.batch(0..0) }).await.unwrap();
    let table =
        [(3, usize::MAX, 3), (0, usize::MAX, 1), (10, 250, 2), (10, 200, 2), (10, 199, 1), (10, 1, 1), (10, 0, 1)];
    for (records, bytes, expected) in table {
        let read = log.read(2, ReadLimit { records, bytes }).await.unwrap();
        assert_eq!(read.len(), expected, "{records} records, {bytes} bytes");
        assert!(read.iter().zip(2..).all(|(record, offset)| record.offset == offset));
    }
    assert_eq!(log.read(9, ALL).await.unwrap().len(), 1);
}

async fn a_read_below_the_first_says_so_and_one_at_the_head_is_empty(make: Factory) {
    let engine = make(Bounds { log_records: 4, ..MANY });
    let log = engine.create().await;
    assert!(log.read(0, ALL).await.unwrap().is_empty());
    log.append(log.batch(0..10)).await.unwrap();
    for from in 0..6 {
        let refused = log.read(from, ALL).await.unwrap_err();
        assert!(matches!(refused, EngineError::Trimmed { first: 6 }), "{refused}");
    }
    for from in [10, 11, 1_000_000] {
        assert!(log.read(from, ALL).await.unwrap().is_empty());
    }
    let nowhere = Log { session: SessionId::random(), ..log };
    assert!(matches!(nowhere.read(0, ALL).await, Err(EngineError::UnknownLog)));
    assert!(matches!(nowhere.append(nowhere.batch(0..1)).await, Err(EngineError::UnknownLog)));
    assert!(matches!(engine.0.head(nowhere.session), Err(EngineError::UnknownLog)));
}

async fn the_head_moves_forward_and_all_below_it_can_be_read(make: Factory) {
    const RECORDS: u64 = 600;
    let log = make(MANY).create().await;
    let mut followed = log.engine.0.head(log.session).unwrap();
    let beginning = *followed.borrow_and_update();
    let reader = tokio::spawn({
        let log = log.clone();
        async move {
            let (mut last, mut read_up_to) = (beginning, 0);
            while last.next < RECORDS {
                followed.changed().await.unwrap();
                let head = *followed.borrow_and_update();
                assert!(head.next >= last.next && head.term >= last.term, "{head:?} after {last:?}");
                let read = log.read(read_up_to, ALL).await.unwrap();
                assert!(read.iter().zip(read_up_to..).all(|(record, offset)| record.offset == offset));
                read_up_to += read.len() as u64;
                assert!(read_up_to >= head.next, "not all below {head:?} could be read");
                last = head;
            }
            read_up_to
        }
    });
    for from in (0..RECORDS).step_by(2) {
        log.append(log.batch(from..from + 2)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(reader.await.unwrap(), RECORDS);
}

async fn appends_to_many_sessions_at_once_leave_each_log_right(make: Factory) {
    const SESSIONS: usize = 40;
    const APPENDS: u64 = 20;
    let engine = make(MANY);
    let mut writers = JoinSet::new();
    for _ in 0..SESSIONS {
        let log = engine.create().await;
        writers.spawn(async move {
            for at in 0..APPENDS {
                let numbers = Some(Numbers { from: at, to: at + 1 });
                log.append(Batch { numbers, ..log.batch(at..at + 1) }).await.unwrap();
            }
            log
        });
    }
    let logs = writers.join_all().await;
    assert_eq!(logs.len(), SESSIONS);
    for log in logs {
        assert_eq!(log.offsets().await, Vec::from_iter(0..APPENDS));
        assert_eq!(log.head().n, APPENDS);
    }
}

async fn writers_of_one_log_never_take_each_others_place(make: Factory) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 15;
    let log = make(MANY).create().await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let log = log.clone();
        writers.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let next = log.head().next;
                let frame = format!("{writer}:{done}");
                let record = Record { offset: next, at: 0, kind: "x.w".into(), frame: frame.into() };
                match log.append(Batch { records: vec![record], ..log.batch(0..0) }).await {
                    Ok(head) => {
                        assert_eq!(head.next, next + 1);
                        done += 1;
                    }
                    Err(EngineError::OffsetExpected { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    writers.join_all().await;
    let records = log.read(0, ALL).await.unwrap();
    assert!(records.iter().zip(0..).all(|(record, offset)| record.offset == offset));
    let mut frames: Vec<_> = records.iter().map(|record| record.frame.clone()).collect();
    frames.sort();
    frames.dedup();
    assert_eq!(frames.len() as u64, WRITERS * EACH, "an append was lost or happened twice");
}

async fn an_append_that_is_given_up_has_happened_wholly_or_not_at_all(make: Factory) {
    let log = make(MANY).create().await;
    for round in 0..100 {
        let next = log.head().next;
        let appending = log.engine.0.append(log.session, log.batch(next..next + 3));
        let patience = Duration::from_micros(round * 20);
        let given_up = tokio::time::timeout(patience, appending).await;
        // What was given up may still be under way; what is asked after it finds it decided.
        let now = log.append(log.batch(0..0)).await.unwrap().next;
        match given_up {
            Ok(Ok(head)) => assert_eq!((now, head.next), (next + 3, next + 3)),
            Ok(Err(_)) => assert_eq!(now, next),
            Err(_) => assert!(now == next || now == next + 3, "{now} after {next}"),
        }
    }
    assert_eq!(log.offsets().await, Vec::from_iter(0..log.head().next));
}

// --- records ---------------------------------------------------------------------------------------------------------

async fn exactly_one_writer_wins_each_version(make: Factory) {
    const WRITERS: u64 = 16;
    const VERSIONS: u64 = 12;
    let engine = make(MANY);
    let key = key(SessionId::random(), RecordKind::Guardrail, "g");
    let absent = engine.put(&key, Some(1), "x").await.unwrap_err();
    assert!(matches!(absent, EngineError::Conflict { found: None }), "{absent}");
    for version in 0..VERSIONS {
        let seen = (version > 0).then_some(version);
        let mut writers = JoinSet::new();
        for writer in 0..WRITERS {
            let (engine, key) = (engine.clone(), key.clone());
            writers.spawn(async move { (writer, engine.put(&key, seen, &writer.to_string()).await) });
        }
        let mut winner = None;
        for (writer, result) in writers.join_all().await {
            match result {
                Ok(new) => {
                    assert_eq!(new, version + 1);
                    assert_eq!(winner.replace(writer), None, "two won version {new}");
                }
                Err(EngineError::Conflict { found }) => assert_eq!(found, Some(version + 1)),
                Err(other) => panic!("{other}"),
            }
        }
        let winner = winner.expect("one wins").to_string();
        assert_eq!(engine.get(&key).await, Some((version + 1, Bytes::from(winner))));
    }
}

async fn records_are_listed_by_kind_and_session_in_the_order_of_keys(make: Factory) {
    let engine = make(MANY);
    let (one, other) = (SessionId::random(), SessionId::random());
    for session in [one, other] {
        for name in ["b", "c", "a"] {
            for kind in [RecordKind::Notice, RecordKind::Guardrail] {
                engine.put(&key(session, kind, name), None, name).await.unwrap();
            }
        }
    }
    engine.put(&key(one, RecordKind::Guardrail, "b"), Some(1), "again").await.unwrap();
    let of_one = again(|| engine.0.list(RecordKind::Guardrail, Some(one))).await.unwrap();
    let shown: Vec<_> = of_one.iter().map(|(key, version, value)| (key.name.as_str(), *version, &value[..])).collect();
    assert_eq!(shown, [("a", 1, &b"a"[..]), ("b", 2, b"again"), ("c", 1, b"c")]);
    assert!(of_one.iter().all(|(key, ..)| key.session == one && key.kind == RecordKind::Guardrail));
    let all = again(|| engine.0.list(RecordKind::Guardrail, None)).await.unwrap();
    assert_eq!(all.len(), 6);
    assert!(all.is_sorted_by(|(a, ..), (b, ..)| a < b));
}

// --- room ------------------------------------------------------------------------------------------------------------

async fn a_removed_log_is_gone_with_its_records(make: Factory) {
    let engine = make(MANY);
    let (log, other) = (engine.create().await, engine.create().await);
    let mine = key(log.session, RecordKind::Guardrail, "g");
    let theirs = key(other.session, RecordKind::Guardrail, "g");
    for log in [&log, &other] {
        log.append(log.batch(0..5)).await.unwrap();
    }
    let with_both = engine.0.stored_bytes();
    for key in [&mine, &theirs] {
        engine.put(key, None, "v").await.unwrap();
    }
    let mut head = engine.0.head(log.session).unwrap();
    again(|| engine.0.remove(log.session)).await.unwrap();
    assert!(matches!(log.read(0, ALL).await, Err(EngineError::UnknownLog)));
    assert!(matches!(engine.0.head(log.session), Err(EngineError::UnknownLog)));
    assert_eq!(engine.get(&mine).await, None);
    assert!(engine.get(&theirs).await.is_some());
    assert_eq!(other.offsets().await, Vec::from_iter(0..5));
    assert_eq!(engine.0.stored_bytes(), with_both / 2);
    // Whoever follows the head learns that nothing will come.
    let ended = tokio::time::timeout(super::harness::BOUND, async { while head.changed().await.is_ok() {} }).await;
    assert!(ended.is_ok(), "the head of a removed log does not end");
    again(|| engine.0.remove(log.session)).await.unwrap();
}

async fn nothing_is_counted_after_everything_is_removed_while_it_is_written(make: Factory) {
    let engine = make(MANY);
    for _ in 0..100 {
        let log = engine.create().await;
        let writer = tokio::spawn({
            let log = log.clone();
            async move {
                let mut at = 0;
                while log.append(log.batch(at..at + 1)).await.is_ok() {
                    at += 1;
                }
            }
        });
        while log.head().next == 0 {
            tokio::task::yield_now().await;
        }
        again(|| engine.0.remove(log.session)).await.unwrap();
        writer.await.unwrap();
    }
    assert_eq!(engine.0.stored_bytes(), 0);
}

async fn a_full_engine_refuses_and_changes_nothing(make: Factory) {
    let engine = make(Bounds { total_bytes: 10_000, ..MANY });
    let (log, other) = (engine.create().await, engine.create().await);
    let fill = |log: &Log, offset| Batch { records: vec![large(offset, 1_500)], ..log.batch(0..0) };
    let mut full = 0;
    while let Ok(head) = log.append(fill(&log, full)).await {
        full = head.next;
    }
    assert!((5..=6).contains(&full), "{full} fit");
    let (before, stored) = (log.head(), engine.0.stored_bytes());
    assert!(stored <= 10_000);
    for log in [&log, &other] {
        let refused = log.append(fill(log, log.head().next)).await.unwrap_err();
        assert!(matches!(refused, EngineError::Full), "{refused}");
    }
    assert_eq!((log.head(), engine.0.stored_bytes()), (before, stored));
    assert_eq!(log.read(0, ALL).await.unwrap().len() as u64, full);
    again(|| engine.0.remove(log.session)).await.unwrap();
    other.append(fill(&other, 0)).await.unwrap();
}

async fn a_full_engine_takes_what_replaces_as_much_as_it_adds(make: Factory) {
    let engine = make(Bounds { log_records: 4, total_bytes: 10_000, ..MANY });
    let (log, other) = (engine.create().await, engine.create().await);
    let one = |log: &Log, bytes| Batch { records: vec![large(log.head().next, bytes)], ..log.batch(0..0) };
    for log in [&log, &other] {
        for _ in 0..4 {
            log.append(one(log, 1_100)).await.unwrap();
        }
    }
    for _ in 0..10 {
        let head = log.append(one(&log, 1_100)).await.unwrap();
        assert_eq!(head.next - head.first, 4);
    }
    let before = log.head();
    assert!(matches!(log.append(one(&log, 3_000)).await, Err(EngineError::Full)));
    assert_eq!(log.head(), before);
    // A new epoch lets go of all that was before it.
    let renewed = Batch { epoch: random_epoch(), ..one(&log, 4_000) };
    assert_eq!(log.append(renewed).await.unwrap().first, before.next);
    assert!(engine.0.stored_bytes() <= 10_000);
}

// --- the faulty engine itself ----------------------------------------------------------------------------------------

#[tokio::test]
async fn the_faulty_engine_finishes_out_of_order_and_fails_as_it_is_told() {
    let faults = Arc::new(Faults { delay_us: 20_000.into(), ..Faults::default() });
    let engine = Subject(Arc::new(FaultyEngine::new(MemoryEngine::new(MANY), Arc::clone(&faults), 1)));
    let finished = Arc::new(AtomicU64::new(0));
    let mut writers = JoinSet::new();
    for began in 0..20 {
        let log = engine.create().await;
        let finished = Arc::clone(&finished);
        writers.spawn(async move {
            log.append(log.batch(0..1)).await.unwrap();
            (began, finished.fetch_add(1, Ordering::SeqCst))
        });
    }
    let order = writers.join_all().await;
    assert!(order.iter().any(|(began, ended)| began != ended), "everything finished in the order of its beginning");

    let log = engine.create().await;
    faults.full.store(true, Ordering::Relaxed);
    assert!(matches!(log.append(log.batch(0..1)).await, Err(EngineError::Full)));
    faults.full.store(false, Ordering::Relaxed);
    faults.unreadable.store(true, Ordering::Relaxed);
    assert!(matches!(engine.0.read(log.session, 0, ALL).await, Err(EngineError::Unavailable(_))));
    faults.unreadable.store(false, Ordering::Relaxed);
    faults.failing_per_mille.store(1000, Ordering::Relaxed);
    assert!(matches!(engine.0.append(log.session, log.batch(0..1)).await, Err(EngineError::Unavailable(_))));
    assert_eq!(log.head().next, 0);
}
