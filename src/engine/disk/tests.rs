use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use onlooker_protocol::event::Epoch;
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    DiskEngine, DiskOptions, Inspection, LOG_READERS, Message, OpenError,
    encoding::LastRun,
    opening,
    store::{self, Fault, Writer},
};
use crate::{
    config::Durability,
    engine::{
        Batch, Bounds, Engine, EngineError, Head, Numbers, ReadLimit, Record, RecordKey, RecordKind,
        memory::MemoryEngine,
    },
    ids::{SessionId, random_epoch},
};

const MANY: Bounds = Bounds { log_records: 10_000, log_bytes: 16 << 20, log_age: Duration::MAX, total_bytes: 1 << 30 };
const ALL: ReadLimit = ReadLimit { records: usize::MAX, bytes: usize::MAX };

fn open_with(dir: &Path, bounds: Bounds, durability: Durability) -> Result<DiskEngine, OpenError> {
    DiskEngine::open(DiskOptions { dir: dir.to_owned(), bounds, durability })
}

fn open(dir: &Path) -> DiskEngine {
    open_with(dir, MANY, Durability::Os).unwrap()
}

/// What a killed process leaves: the files as they are now. Nothing may be under way.
fn killed(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for (name, content) in contents(dir) {
        fs::write(copy.path().join(name), content).unwrap();
    }
    copy
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .filter(|entry| !entry.file_name().to_string_lossy().ends_with("-shm"))
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

/// A record whose frame can be told from its session and offset.
fn record(session: SessionId, offset: u64, bytes: usize) -> Record {
    let mut frame = format!("{session}:{offset}:").into_bytes();
    frame.resize(frame.len().max(bytes), b'a' + (offset % 26) as u8);
    Record {
        offset,
        at: offset * 10,
        kind: if offset.is_multiple_of(3) { "x.third" } else { "x.other" }.into(),
        frame: frame.into(),
    }
}

fn assert_is_right(session: SessionId, found: &Record) {
    let right = record(session, found.offset, found.frame.len());
    assert_eq!((&found.frame, &*found.kind, found.at), (&right.frame, &*right.kind, right.at));
}

fn batch(session: SessionId, epoch: Epoch, offsets: std::ops::Range<u64>, bytes: usize) -> Batch {
    let records = offsets.map(|offset| record(session, offset, bytes)).collect();
    Batch { term: 1, epoch, records, numbers: None }
}

fn key(session: SessionId, kind: RecordKind, name: &str) -> RecordKey {
    RecordKey { kind, session, name: name.to_owned() }
}

fn head(engine: &DiskEngine, session: SessionId) -> Head {
    *engine.head(session).unwrap().borrow()
}

async fn assert_reads_back(engine: &dyn Engine, session: SessionId, from: u64, next: u64) {
    let read = engine.read(session, from, ALL).await.unwrap();
    assert!(read.iter().map(|record| record.offset).eq(from..next), "not all from {from} to {next}");
    read.iter().for_each(|record| assert_is_right(session, record));
}

/// Waits until a condition holds of what is committed.
async fn eventually(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to be");
}

fn chunks_in(dir: &Path, log: i64) -> usize {
    let mut found = 0;
    let writer = Writer::open(&store::file(dir)).unwrap();
    writer
        .chunk_heads(log, 0, |_, _| {
            found += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    found
}

// --- opening again ---------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_was_committed_is_there_after_a_close_and_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { log_records: 50, ..MANY };
    let engine = open_with(dir.path(), bounds, Durability::Os).unwrap();
    let (kept, renewed, gone) = (SessionId::random(), SessionId::random(), SessionId::random());
    let (epoch, second) = (random_epoch(), random_epoch());
    for session in [kept, renewed, gone] {
        engine.create(session, epoch, 1).await.unwrap();
        engine.append(session, batch(session, epoch, 0..20, 100)).await.unwrap();
    }
    let numbers = Some(Numbers { from: 0, to: 7 });
    engine.append(kept, Batch { term: 4, numbers, ..batch(kept, epoch, 20..75, 100) }).await.unwrap();
    engine.append(renewed, Batch { term: 2, ..batch(renewed, second, 20..23, 100) }).await.unwrap();
    for session in [kept, gone] {
        engine.put(key(session, RecordKind::Guardrail, "g"), None, "one".into()).await.unwrap();
        engine.put(key(session, RecordKind::Guardrail, "g"), Some(1), "two".into()).await.unwrap();
        engine.put(key(session, RecordKind::Picture, ""), None, vec![7; 100_000].into()).await.unwrap();
    }
    engine.remove(gone).await.unwrap();
    let stored = engine.stored_bytes();
    let after_kill = killed(dir.path());
    engine.close().await;
    drop(engine);

    for (dir, _) in [(dir.path(), "closed"), (after_kill.path(), "killed")] {
        for _ in 0..2 {
            let engine = open_with(dir, bounds, Durability::Os).unwrap();
            assert_eq!(head(&engine, kept), Head { epoch, term: 4, first: 25, next: 75, n: 7 });
            assert_eq!(head(&engine, renewed), Head { epoch: second, term: 2, first: 20, next: 23, n: 0 });
            assert_reads_back(&engine, kept, 25, 75).await;
            assert_reads_back(&engine, renewed, 20, 23).await;
            assert!(matches!(engine.head(gone), Err(EngineError::UnknownLog)));
            assert_eq!(engine.stored_bytes(), stored);
            let found = engine.get(key(kept, RecordKind::Guardrail, "g")).await.unwrap();
            assert_eq!(found, Some((2, "two".into())));
            assert_eq!(engine.get(key(kept, RecordKind::Picture, "")).await.unwrap().unwrap().1, vec![7; 100_000]);
            assert_eq!(engine.get(key(gone, RecordKind::Guardrail, "g")).await.unwrap(), None);
            assert_eq!(engine.list(RecordKind::Picture, None).await.unwrap().len(), 1);
            engine.close().await;
        }
        // It goes on where it was: the fence, the numbers, the trimming.
        let engine = open_with(dir, bounds, Durability::Fsync).unwrap();
        let fenced = engine.append(kept, Batch { term: 3, ..batch(kept, epoch, 75..76, 10) }).await;
        assert!(matches!(fenced, Err(EngineError::Fenced { term: 4 })));
        let head = engine.append(kept, Batch { term: 4, ..batch(kept, epoch, 75..76, 10) }).await.unwrap();
        assert_eq!((head.first, head.next, head.n), (26, 76, 7));
        assert_reads_back(&engine, kept, 26, 76).await;
        let conflict = engine.put(key(kept, RecordKind::Guardrail, "g"), Some(1), "x".into()).await;
        assert!(matches!(conflict, Err(EngineError::Conflict { found: Some(2) })));
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_the_engine_was_only_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    let engine = open(dir.path());
    engine.create(session, epoch, 1).await.unwrap();
    engine.append(session, batch(session, epoch, 0..5, 50)).await.unwrap();
    drop(engine);
    assert_reads_back(&open(dir.path()), session, 0, 5).await;
}

#[tokio::test]
async fn records_are_read_however_many_logs_are_being_read() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(open(dir.path()));
    let key = key(SessionId::random(), RecordKind::Guardrail, "g");
    engine.put(key.clone(), None, "value".into()).await.unwrap();
    // Every thread that reads logs is busy until this is over, and more wait for one.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(std::sync::Mutex::new(held));
    let busy: Vec<_> = (0..LOG_READERS + 10)
        .map(|_| {
            let (engine, held) = (Arc::clone(&engine), Arc::clone(&held));
            tokio::spawn(async move {
                // It ends when the test lets go of the other end.
                let wait = move |_: &store::Reader| Ok(held.lock().unwrap().recv().is_err());
                assert!(engine.log_readers.run(wait).await.unwrap());
            })
        })
        .collect();
    let read = tokio::time::timeout(Duration::from_secs(20), engine.get(key.clone())).await;
    assert_eq!(read.expect("it waits behind nobody").unwrap().unwrap().1, "value");
    assert_eq!(engine.list(RecordKind::Guardrail, None).await.unwrap().len(), 1);
    assert!(busy.iter().all(|task| !task.is_finished()));
    drop(release);
    futures::future::join_all(busy).await.into_iter().for_each(|ended| ended.unwrap());
}

#[tokio::test]
async fn a_closed_engine_answers_nothing_and_can_be_closed_again() {
    let dir = tempfile::tempdir().unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    let engine = open(dir.path());
    engine.create(session, epoch, 1).await.unwrap();
    engine.close().await;
    engine.close().await;
    let unavailable = |error| matches!(error, EngineError::Unavailable(_));
    assert!(unavailable(engine.append(session, batch(session, epoch, 0..1, 9)).await.unwrap_err()));
    assert!(unavailable(engine.read(session, 0, ALL).await.unwrap_err()));
    assert!(unavailable(engine.head(session).unwrap_err()));
    assert!(unavailable(engine.list(RecordKind::Session, None).await.unwrap_err()));
    drop(open(dir.path()));
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let refused = open_with(dir.path(), MANY, Durability::Os).err().unwrap();
    assert!(matches!(refused, OpenError::InUse(_)), "{refused}");
    let sentence = refused.to_string();
    assert!(sentence.contains(dir.path().to_str().unwrap()) && sentence.contains("stop that one"), "{sentence}");
    assert!(matches!(Inspection::open(dir.path()), Err(OpenError::InUse(_))));
    engine.close().await;
    Inspection::open(dir.path()).unwrap();
    open(dir.path());
}

#[tokio::test]
async fn a_directory_of_another_format_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    for (format, expected) in [(2, "newer onlooker (format 2; this one knows 1)"), (0, "format 0")] {
        let connection = rusqlite::Connection::open(store::file(dir.path())).unwrap();
        connection.pragma_update(None, "user_version", format).unwrap();
        drop(connection);
        let before = contents(dir.path());
        let refused = open_with(dir.path(), MANY, Durability::Os).err().unwrap();
        assert!(refused.to_string().contains(expected), "{refused}");
        assert!(Inspection::open(dir.path()).is_err());
        assert!(before == contents(dir.path()), "the directory was changed");
    }
}

#[tokio::test]
async fn what_is_no_data_directory_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Inspection::open(dir.path()), Err(OpenError::Nothing(_))));
    fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert!(matches!(open_with(dir.path(), MANY, Durability::Os), Err(OpenError::Foreign(_))));
    assert_eq!(contents(dir.path()).len(), 1);

    for content in [&b""[..], b"short", &[b'x'; 20_000]] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(store::file(dir.path()), content).unwrap();
        let refused = open_with(dir.path(), MANY, Durability::Os).err().unwrap();
        assert!(matches!(refused, OpenError::Damaged { .. }), "{refused}");
        assert!(refused.to_string().contains("restore a backup"), "{refused}");
        assert_eq!(fs::read(store::file(dir.path())).unwrap(), content);
    }
}

#[tokio::test]
async fn a_beginning_that_was_cut_short_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("onlooker.db.new"), "half").unwrap();
    fs::write(dir.path().join("lock"), "").unwrap();
    drop(open(dir.path()));
    assert!(!dir.path().join("onlooker.db.new").exists());
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_can_read_the_directory() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made");
    let engine = open(&dir);
    engine.create(SessionId::random(), random_epoch(), 1).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    let files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 4, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn only_an_unclean_end_and_a_restarted_machine_may_have_lost_what_the_system_had() {
    let restart = |dir: &Path| {
        let contents = opening::load_offline(dir).unwrap();
        let writer = Writer::open(&store::file(dir)).unwrap();
        let run = LastRun { boot: "another".to_owned(), ..contents.last_run };
        writer.put_state(LastRun::NAME, &run.encode()).unwrap();
    };
    for (durability, expected) in [(Durability::Os, true), (Durability::Fsync, false)] {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_with(dir.path(), MANY, durability).unwrap();
        assert!(!engine.before().may_have_lost);
        engine.create(SessionId::random(), random_epoch(), 1).await.unwrap();
        let (same_machine, restarted) = (killed(dir.path()), killed(dir.path()));
        engine.close().await;
        drop(engine);
        restart(dir.path());
        assert!(!open(dir.path()).before().may_have_lost, "closed cleanly");
        assert!(!open(same_machine.path()).before().may_have_lost, "the machine is the same");
        restart(restarted.path());
        // It is remembered until a process that has written ends cleanly.
        for _ in 0..2 {
            let engine = open(restarted.path());
            assert_eq!(engine.before().may_have_lost, expected, "{durability:?}");
            engine.create(SessionId::random(), random_epoch(), 1).await.unwrap();
            drop(engine);
        }
        let engine = open(restarted.path());
        engine.create(SessionId::random(), random_epoch(), 1).await.unwrap();
        engine.close().await;
        drop(engine);
        assert!(!open(restarted.path()).before().may_have_lost);
    }
}

#[tokio::test]
async fn an_inspection_shows_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    let head = engine.append(session, batch(session, epoch, 0..300, 200)).await.unwrap();
    let mine = key(session, RecordKind::Notice, "n");
    engine.put(mine.clone(), None, "value".into()).await.unwrap();
    let after_kill = killed(dir.path());
    let stored = engine.stored_bytes();
    engine.close().await;
    for dir in [dir.path(), after_kill.path()] {
        let before = contents(dir);
        let inspection = Inspection::open(dir).unwrap();
        assert_eq!(inspection.format(), 1);
        let logs = inspection.logs();
        assert_eq!((logs.len(), logs[0].session, logs[0].head, logs[0].bytes), (1, session, head, stored));
        let read = inspection.read(session, 100, ReadLimit { records: 150, bytes: usize::MAX }).unwrap();
        assert!(read.iter().map(|record| record.offset).eq(100..250));
        read.iter().for_each(|record| assert_is_right(session, record));
        assert_eq!(inspection.get(&mine).unwrap(), Some((1, "value".into())));
        assert_eq!(inspection.list(RecordKind::Notice).unwrap(), [(mine.clone(), 1, "value".into())]);
        assert!(inspection.files().iter().any(|(path, bytes)| path.ends_with("onlooker.db") && *bytes > 0));
        drop(inspection);
        assert!(before == contents(dir), "the directory was changed");
    }
}

// --- the journal -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_append_that_comes_alone_is_not_held_up_for_others_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    let mut took = Vec::new();
    for offset in 0..40 {
        let began = std::time::Instant::now();
        engine.append(session, batch(session, epoch, offset..offset + 1, 200)).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    // Beside other tests; on a quiet machine it is a tenth of a millisecond.
    assert!(took[10] < Duration::from_millis(20), "{took:?}");
}

#[tokio::test]
async fn what_is_asked_for_together_is_answered_in_its_order_and_the_head_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let (sessions, epoch): (Vec<_>, _) = ((0..3).map(|_| SessionId::random()).collect(), random_epoch());
    for session in &sessions {
        engine.create(*session, epoch, 1).await.unwrap();
    }
    let heads: Vec<_> = sessions.iter().map(|session| engine.head(*session).unwrap()).collect();
    // So many that one round of polling asks for all of them.
    let asked = (0..10).flat_map(|offset| sessions.iter().map(move |session| (*session, offset)));
    let answers = asked.map(|(session, offset)| {
        let (engine, head) = (&engine, &heads[sessions.iter().position(|known| *known == session).unwrap()]);
        async move {
            let answer = engine.append(session, batch(session, epoch, offset..offset + 1, 30)).await.unwrap();
            assert_eq!(answer.next, offset + 1);
            assert!(head.borrow().next > offset, "answered before the head moved");
        }
    });
    futures::future::join_all(answers).await;
    for session in &sessions {
        assert_reads_back(&engine, *session, 0, 10).await;
    }
}

/// A few logs, with records in turn, in a directory whose journal holds all of them.
async fn journaled(dir: &Path) -> Vec<SessionId> {
    let engine = open(dir);
    let (sessions, epoch): (Vec<_>, _) = ((0..3).map(|_| SessionId::random()).collect(), random_epoch());
    for session in &sessions {
        engine.create(*session, epoch, 1).await.unwrap();
    }
    for offset in 0..20 {
        for session in &sessions {
            engine.append(*session, batch(*session, epoch, offset..offset + 1, 100)).await.unwrap();
        }
    }
    sessions
}

#[tokio::test]
async fn what_the_journal_holds_is_found_again_and_moves_to_its_logs() {
    let dir = tempfile::tempdir().unwrap();
    let sessions = journaled(dir.path()).await;
    assert_eq!((chunks_in(dir.path(), 0), chunks_in(dir.path(), 1)), (60, 0));
    let inspection = Inspection::open(dir.path()).unwrap();
    for session in &sessions {
        assert_eq!(inspection.read(*session, 5, ALL).unwrap().len(), 15);
    }
    drop(inspection);
    let engine = open(dir.path());
    for session in &sessions {
        assert_reads_back(&engine, *session, 3, 20).await;
        let epoch = head(&engine, *session).epoch;
        engine.append(*session, batch(*session, epoch, 20..22, 100)).await.unwrap();
    }
    engine.close().await;
    drop(engine);
    // Nothing is left of it, and each log has what is its own in one piece.
    assert_eq!((chunks_in(dir.path(), 0), chunks_in(dir.path(), 1)), (0, 1));
    let engine = open(dir.path());
    for session in &sessions {
        assert_reads_back(&engine, *session, 0, 22).await;
    }
}

#[tokio::test]
async fn a_journal_with_a_row_missing_is_refused() {
    for missing in [1, 30, 60] {
        let dir = tempfile::tempdir().unwrap();
        journaled(dir.path()).await;
        let writer = Writer::open(&store::file(dir.path())).unwrap();
        writer.remove_chunk(0, missing).unwrap();
        writer.close().unwrap();
        assert!(matches!(open_with(dir.path(), MANY, Durability::Os), Err(OpenError::Damaged { .. })), "{missing}");
    }
}

#[tokio::test]
async fn a_page_goes_on_from_what_is_settled_to_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = DiskOptions { dir: dir.path().to_owned(), bounds: MANY, durability: Durability::Os };
    // Settled whenever there are 10,000 bytes, of which as many stay in memory.
    let engine = DiskEngine::open_with_recent(options, 40_000).unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    for offset in 0..600 {
        engine.append(session, batch(session, epoch, offset..offset + 1, 300)).await.unwrap();
        if offset % 7 == 0 {
            assert_reads_back(&engine, session, offset / 3, offset + 1).await;
        }
    }
    assert!(chunks_in(dir.path(), 1) > 1 && chunks_in(dir.path(), 0) < 300);
    let killed = killed(dir.path());
    assert_reads_back(&open(killed.path()), session, 0, 600).await;
}

// --- trimming --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn what_was_trimmed_or_removed_leaves_the_store_and_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { log_records: 10, ..MANY };
    let engine = open_with(dir.path(), bounds, Durability::Os).unwrap();
    let (long, gone, epoch) = (SessionId::random(), SessionId::random(), random_epoch());
    for session in [long, gone] {
        engine.create(session, epoch, 1).await.unwrap();
    }
    for offset in 0..400 {
        engine.append(long, batch(long, epoch, offset..offset + 1, 50)).await.unwrap();
    }
    for offset in (0..3000).step_by(5) {
        engine.append(gone, batch(gone, epoch, offset..offset + 5, 50)).await.unwrap();
    }
    engine.remove(gone).await.unwrap();
    let cut_short = killed(dir.path());
    eventually(|| chunks_in(dir.path(), 1) <= 75 && chunks_in(dir.path(), 2) == 0).await;
    assert_reads_back(&engine, long, 390, 400).await;
    drop(engine);
    let engine = open_with(cut_short.path(), bounds, Durability::Os).unwrap();
    assert!(matches!(engine.head(gone), Err(EngineError::UnknownLog)));
    assert_reads_back(&engine, long, 390, 400).await;
    eventually(|| chunks_in(cut_short.path(), 2) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_from_the_store_that_trimming_overtakes_says_trimmed_and_never_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { log_records: 100, ..MANY };
    let options = DiskOptions { dir: dir.path().to_owned(), bounds, durability: Durability::Os };
    // Nothing stays in memory.
    let engine = Arc::new(DiskEngine::open_with_recent(options, 0).unwrap());
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    let writer = tokio::spawn({
        let engine = Arc::clone(&engine);
        async move {
            for offset in (0..3000).step_by(3) {
                engine.append(session, batch(session, epoch, offset..offset + 3, 60)).await.unwrap();
            }
            engine.remove(session).await.unwrap();
        }
    });
    let (mut read, mut trimmed) = (0, 0);
    loop {
        let Ok(head) = engine.head(session).map(|head| *head.borrow()) else { break };
        match engine.read(session, head.first, ReadLimit { records: 7, bytes: usize::MAX }).await {
            Ok(records) => {
                assert!(records.iter().zip(head.first..).all(|(record, offset)| record.offset == offset));
                records.iter().for_each(|record| assert_is_right(session, record));
                read += 1;
            }
            Err(EngineError::Trimmed { first }) => {
                assert!(first > head.first);
                trimmed += 1;
            }
            Err(EngineError::UnknownLog) => break,
            Err(error) => panic!("{error:?}"),
        }
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    assert!(read > 10, "{read} reads, {trimmed} trimmed");
}

// --- a disk that fails -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_takes_writes_again_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), MANY, Durability::Fsync).unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    engine.append(session, batch(session, epoch, 0..10, 100)).await.unwrap();
    engine.put(key(session, RecordKind::Session, "s"), None, "v".into()).await.unwrap();
    let before = (head(&engine, session), engine.stored_bytes());
    engine.queue.send(Message::Break(Fault::Full)).unwrap();
    for _ in 0..3 {
        let refused = engine.append(session, batch(session, epoch, 10..400, 300)).await.unwrap_err();
        let EngineError::Unavailable(Some(source)) = refused else { panic!("{refused}") };
        assert_eq!(source.to_string(), "the disk is full");
        assert_eq!((head(&engine, session), engine.stored_bytes()), before);
        assert_reads_back(&engine, session, 0, 10).await;
        assert_eq!(engine.get(key(session, RecordKind::Session, "s")).await.unwrap(), Some((1, "v".into())));
    }
    engine.queue.send(Message::Break(Fault::NoMore)).unwrap();
    let head = engine.append(session, batch(session, epoch, 10..400, 300)).await.unwrap();
    assert_eq!(head.next, 400);
    assert_reads_back(&engine, session, 0, 400).await;
    drop(engine);
    assert_reads_back(&open(dir.path()), session, 0, 400).await;
}

#[tokio::test]
async fn after_a_sync_that_failed_nothing_is_written_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), MANY, Durability::Fsync).unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    engine.append(session, batch(session, epoch, 0..10, 100)).await.unwrap();
    engine.queue.send(Message::Break(Fault::Sync)).unwrap();
    for _ in 0..3 {
        let refused = engine.append(session, batch(session, epoch, 10..11, 100)).await.unwrap_err();
        assert!(matches!(refused, EngineError::Unavailable(Some(_))), "{refused}");
        assert_reads_back(&engine, session, 0, 10).await;
    }
    assert!(engine.put(key(session, RecordKind::Session, "s"), None, "v".into()).await.is_err());
    engine.close().await;
    drop(engine);
    assert_reads_back(&open(dir.path()), session, 0, 10).await;
}

// --- damage ----------------------------------------------------------------------------------------------------------

/// A directory with everything in it, as a process that was closed and one that was killed leave it.
struct Sample {
    closed: BTreeMap<String, Vec<u8>>,
    killed: BTreeMap<String, Vec<u8>>,
    /// Where the last commit begins in the killed one's write-ahead log.
    last_commit: usize,
    sessions: Vec<(SessionId, Head)>,
}

const VERSIONS: u64 = 3;

fn value(session: SessionId, kind: RecordKind, version: u64) -> Bytes {
    let long = if kind == RecordKind::Picture { 9000 } else { 30 };
    format!("{session}{kind:?}{version}").repeat(long / 30).into()
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut sessions: Vec<_> = (0..6).map(|_| (SessionId::random(), random_epoch())).collect();
            sessions.sort_by_key(|(session, _)| *session);
            let mut last_commit = 0;
            for half in 0..2 {
                let engine = open_with(dir.path(), Bounds { log_records: 60, ..MANY }, Durability::Os).unwrap();
                for (index, (session, epoch)) in sessions.iter().copied().enumerate() {
                    if half == 0 {
                        engine.create(session, epoch, 1).await.unwrap();
                    }
                    for _ in 0..6 {
                        let next = head(&engine, session).next;
                        let many = 1 + 4 * index as u64;
                        engine.append(session, batch(session, epoch, next..next + many, 40 << index)).await.unwrap();
                    }
                    for kind in [RecordKind::Guardrail, RecordKind::Picture] {
                        for version in (0..VERSIONS).map(|version| version + half * VERSIONS) {
                            let seen = (version > 0).then_some(version);
                            let value = value(session, kind, version + 1);
                            let log = dir.path().join("onlooker.db-wal");
                            last_commit = fs::metadata(log).map_or(0, |log| log.len() as usize);
                            engine.put(key(session, kind, "r"), seen, value).await.unwrap();
                        }
                    }
                }
                if half == 1 {
                    let killed = contents(dir.path());
                    let sessions = sessions.iter().map(|(session, _)| (*session, head(&engine, *session))).collect();
                    engine.close().await;
                    assert!(killed["onlooker.db-wal"].len() > 100_000);
                    return Sample { closed: contents(dir.path()), killed, last_commit, sessions };
                }
                engine.close().await;
            }
            unreachable!()
        })
    })
}

/// Opens a damaged directory. Whatever it shows must be right, and the newest where it does not say that something may
/// be lost. `last_may_go`: the damage may look like a commit that was never finished.
async fn assert_shows_nothing_wrong(files: &BTreeMap<String, Vec<u8>>, last_may_go: bool) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let engine = match open_with(dir.path(), MANY, Durability::Os) {
        Ok(engine) => engine,
        Err(refused) => {
            assert!(!refused.to_string().contains('\n'), "{refused}");
            assert!(*files == contents(dir.path()), "a directory that was refused was changed: {refused}");
            return;
        }
    };
    let exact = !last_may_go && !engine.before().may_have_lost;
    for (session, newest) in &sample().sessions {
        let Ok(found) = engine.head(*session).map(|head| *head.borrow()) else {
            assert!(!exact, "a session is missing");
            continue;
        };
        assert!(if exact { found == *newest } else { found.next <= newest.next }, "{found:?}, {newest:?}");
        let mut from = found.first;
        while from < found.next {
            match engine.read(*session, from, ReadLimit { records: 16, bytes: usize::MAX }).await {
                Ok(records) => {
                    assert!(!records.is_empty());
                    assert!(records.iter().zip(from..).all(|(record, offset)| record.offset == offset));
                    records.iter().for_each(|record| assert_is_right(*session, record));
                    from += records.len() as u64;
                }
                Err(EngineError::Unavailable(Some(_))) => from += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        for kind in [RecordKind::Guardrail, RecordKind::Picture] {
            match engine.get(key(*session, kind, "r")).await {
                Ok(Some((version, found))) => {
                    assert_eq!(found, value(*session, kind, version));
                    assert!(!exact || version == 2 * VERSIONS);
                }
                Ok(None) => assert!(!exact, "a record is missing"),
                Err(EngineError::Unavailable(Some(_))) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        // Writing over it may be refused, but makes nothing wrong.
        let more = batch(*session, found.epoch, found.next..found.next + 5, 500);
        if engine.append(*session, Batch { term: found.term, ..more }).await.is_ok() {
            let read = engine.read(*session, found.next, ALL).await.unwrap();
            read.iter().for_each(|record| assert_is_right(*session, record));
        }
    }
    engine.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(96), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_never_shown(place in 0.0..1.0_f64, bit in 0..8_u8, of_killed: bool, of_log: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut files = if of_killed { sample().killed.clone() } else { sample().closed.clone() };
        let in_log = of_killed && of_log;
        let file = files.get_mut(if in_log { "onlooker.db-wal" } else { "onlooker.db" }).unwrap();
        let at = (file.len() as f64 * place) as usize;
        file[at] ^= 1 << bit;
        let last_may_go = in_log && at >= sample().last_commit;
        runtime.block_on(assert_shows_nothing_wrong(&files, last_may_go));
    }

    #[test]
    fn an_overwritten_piece_is_never_shown(place in 0.0..1.0_f64, bytes in 1..20_000_usize, fill: u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut files = sample().closed.clone();
        let file = files.get_mut("onlooker.db").unwrap();
        let at = (file.len() as f64 * place) as usize;
        let end = (at + bytes).min(file.len());
        file[at..end].fill(fill);
        runtime.block_on(assert_shows_nothing_wrong(&files, false));
    }
}

/// So many, or as many as `ONLOOKER_TEST_CASES` says.
fn cases(usual: u32) -> u32 {
    std::env::var("ONLOOKER_TEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[tokio::test]
async fn a_log_that_was_torn_holds_everything_up_to_its_last_whole_commit() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open_with(dir.path(), MANY, Durability::Fsync).unwrap();
    let (session, epoch) = (SessionId::random(), random_epoch());
    let mark = key(session, RecordKind::Session, "next");
    engine.create(session, epoch, 1).await.unwrap();
    let mut commits = Vec::new();
    let log_bytes = || fs::metadata(dir.path().join("onlooker.db-wal")).unwrap().len();
    for offset in (0..60).step_by(2) {
        engine.append(session, batch(session, epoch, offset..offset + 2, 700)).await.unwrap();
        commits.push((log_bytes(), offset + 2));
        let seen = (offset > 0).then_some(offset / 2);
        engine.put(mark.clone(), seen, (offset + 2).to_string().into()).await.unwrap();
    }
    let whole = contents(dir.path());
    engine.close().await;
    let full = whole["onlooker.db-wal"].len() as u64;
    for cut in (commits[0].0..full).step_by(24_007) {
        for zeroed in [false, true] {
            let torn = tempfile::tempdir().unwrap();
            for (name, content) in &whole {
                let mut content = content.clone();
                if name.ends_with("-wal") {
                    content.truncate(cut as usize);
                    content.resize(if zeroed { full as usize } else { cut as usize }, 0);
                }
                fs::write(torn.path().join(name), content).unwrap();
            }
            let engine = open(torn.path());
            let expected = commits.iter().take_while(|(end, _)| *end <= cut).last().unwrap().1;
            assert_eq!(head(&engine, session).next, expected, "cut at {cut}");
            assert_reads_back(&engine, session, 0, expected).await;
            // A commit is whole or not there: the record is not ahead of the log.
            let marked = engine.get(mark.clone()).await.unwrap().map_or(0, |(version, _)| version * 2);
            assert!(marked == expected || marked + 2 == expected, "{marked}, {expected}");
        }
    }
}

// --- against the engine in memory ------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Create(usize),
    Append { log: usize, records: u64, bytes: usize, later: u64, numbers: u64 },
    NewEpoch { log: usize, records: u64 },
    Wrong { log: usize, offset: u64, term: u64 },
    Remove(usize),
    Put { log: usize, kind: usize, seen: Option<u64> },
    Close,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let log = 0..4_usize;
    prop_oneof![
        2 => log.clone().prop_map(Step::Create),
        8 => (log.clone(), 0..12_u64, 1..900_usize, 0..9_u64, 0..3_u64)
            .prop_map(|(log, records, bytes, later, numbers)| Step::Append { log, records, bytes, later, numbers }),
        1 => (log.clone(), 0..5_u64).prop_map(|(log, records)| Step::NewEpoch { log, records }),
        1 => (log.clone(), 0..50_u64, 0..3_u64).prop_map(|(log, offset, term)| Step::Wrong { log, offset, term }),
        1 => log.clone().prop_map(Step::Remove),
        3 => (log, 0..2_usize, proptest::option::of(1..4_u64))
            .prop_map(|(log, kind, seen)| Step::Put { log, kind, seen }),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
    ]
}

/// Both engines, and what an owner would know.
struct Both {
    memory: MemoryEngine,
    disk: DiskEngine,
    dir: TempDir,
    sessions: [SessionId; 4],
    now: u64,
}

const TIGHT: Bounds =
    Bounds { log_records: 30, log_bytes: 12_000, log_age: Duration::from_millis(60), total_bytes: 30_000 };

impl Both {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = Self::open(dir.path());
        let sessions = std::array::from_fn(|_| SessionId::random());
        Self { memory: MemoryEngine::new(TIGHT), disk, dir, sessions, now: 0 }
    }

    /// So little stays in memory that most is read from the store.
    fn open(dir: &Path) -> DiskEngine {
        let options = DiskOptions { dir: dir.to_owned(), bounds: TIGHT, durability: Durability::Os };
        DiskEngine::open_with_recent(options, 4_000).unwrap()
    }

    async fn append(&self, session: SessionId, batch: Batch) {
        let expected = self.memory.append(session, batch.clone()).await;
        let found = self.disk.append(session, batch).await;
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
    }

    fn batch(&mut self, session: SessionId, records: u64, bytes: usize, later: u64) -> Option<Batch> {
        let head = *self.memory.head(session).ok()?.borrow();
        let records = (head.next..head.next + records).map(|offset| {
            self.now += later;
            Record { at: self.now, ..record(session, offset, bytes) }
        });
        Some(Batch { term: head.term, epoch: head.epoch, records: records.collect(), numbers: None })
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Create(log) => {
                let epoch = random_epoch();
                self.memory.create(self.sessions[log], epoch, 1).await.unwrap();
                self.disk.create(self.sessions[log], epoch, 1).await.unwrap();
            }
            Step::Append { log, records, bytes, later, numbers } => {
                let session = self.sessions[log];
                let Some(batch) = self.batch(session, records, bytes, later) else { return };
                let n = self.memory.head(session).unwrap().borrow().n;
                let numbers = (numbers > 0).then_some(Numbers { from: n, to: n + numbers });
                self.append(session, Batch { numbers, ..batch }).await;
            }
            Step::NewEpoch { log, records } => {
                let session = self.sessions[log];
                let Some(batch) = self.batch(session, records, 40, 1) else { return };
                self.append(session, Batch { epoch: random_epoch(), term: batch.term + 1, ..batch }).await;
            }
            Step::Wrong { log, offset, term } => {
                let session = self.sessions[log];
                self.append(session, Batch { term, ..batch(session, random_epoch(), offset..offset + 1, 10) }).await;
            }
            Step::Remove(log) => {
                self.memory.remove(self.sessions[log]).await.unwrap();
                self.disk.remove(self.sessions[log]).await.unwrap();
            }
            Step::Put { log, kind, seen } => {
                let kind = [RecordKind::Guardrail, RecordKind::Notice][kind];
                let key = key(self.sessions[log], kind, "r");
                let value = Bytes::from(format!("{seen:?}{}", self.now));
                let expected = self.memory.put(key.clone(), seen, value.clone()).await;
                let found = self.disk.put(key, seen, value).await;
                assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            }
            Step::Close => {
                self.disk.close().await;
                self.disk = Self::open(self.dir.path());
            }
            Step::Kill => {
                // What is purged meanwhile is in neither copy's way.
                let dir = self.settled_copy();
                self.disk = Self::open(dir.path());
                self.dir = dir;
            }
        }
    }

    /// A copy between two purges: the files do not change while they are read.
    fn settled_copy(&self) -> TempDir {
        loop {
            let before = contents(self.dir.path());
            let copy = killed(self.dir.path());
            if before == contents(copy.path()) && before == contents(self.dir.path()) {
                return copy;
            }
        }
    }

    async fn assert_alike(&self) {
        assert_eq!(self.disk.stored_bytes(), self.memory.stored_bytes());
        for session in self.sessions {
            let expected = self.memory.head(session).map(|head| *head.borrow());
            let found = self.disk.head(session).map(|head| *head.borrow());
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            let first = expected.map_or(0, |head| head.first);
            for from in [first.saturating_sub(1), first, first + 3] {
                let expected = self.memory.read(session, from, ALL).await;
                let found = self.disk.read(session, from, ALL).await;
                assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            }
        }
        for kind in [RecordKind::Guardrail, RecordKind::Notice] {
            assert_eq!(self.disk.list(kind, None).await.unwrap(), self.memory.list(kind, None).await.unwrap());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_answers_as_the_engine_in_memory_does_through_every_reopening(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut both = Both::new();
            for step in steps {
                both.take(step).await;
                both.assert_alike().await;
            }
        });
    }
}
