//! What an append costs in each engine: 8 sessions at once, batches of 500 records of 300 bytes.
//!
//! First as fast as they can, then 100,000 events a second in all.
//!
//! Then how long a store of 1,000,000 events in 10,000 sessions takes to open, in a process of its own.
//!
//! `cargo bench --bench engine [-- SECONDS [DIRECTORY]]`. The directory decides which disk is measured.

#![expect(clippy::unwrap_used, reason = "a measurement that fails ends")]

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use onlooker::{
    config::Durability,
    engine::{
        Batch, Bounds, Engine, Record,
        disk::{DiskEngine, DiskOptions},
        memory::MemoryEngine,
    },
    ids::{SessionId, random_epoch},
};

const SESSIONS: usize = 8;
const PACED: f64 = 100_000.0;
const BATCH: u64 = 500;
const FRAME: usize = 300;
const BOUNDS: Bounds =
    Bounds { log_records: 10_000, log_bytes: 16 << 20, log_age: Duration::from_secs(3600), total_bytes: 8 << 30 };

fn main() {
    if let Some(directory) = std::env::var_os("ONLOOKER_BENCH_OPEN") {
        return open(Path::new(&directory));
    }
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let seconds: u64 = arguments.next().map_or(5, |text| text.parse().unwrap());
    let within = arguments.next().map_or_else(std::env::temp_dir, Into::into);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!(
        "{:14} {:>10} {:>9} {:>9} {:>9} {:>12}",
        "engine", "events/s", "p50 ms", "p99 ms", "max ms", "CPU ns/event"
    );
    let measure = |name, engine: Arc<dyn Engine>, rate| {
        runtime.block_on(measure(name, engine, Duration::from_secs(seconds), rate));
    };
    measure("memory", Arc::new(MemoryEngine::new(BOUNDS)), None);
    measure("memory, paced", Arc::new(MemoryEngine::new(BOUNDS)), Some(PACED));
    for (name, durability, rate) in [
        ("os", Durability::Os, None),
        ("os, paced", Durability::Os, Some(PACED)),
        ("fsync", Durability::Fsync, None),
        ("fsync, paced", Durability::Fsync, Some(PACED)),
    ] {
        let directory = tempfile::tempdir_in(&within).unwrap();
        measure(name, on_disk(directory.path(), durability), rate);
    }
    let directory = tempfile::tempdir_in(&within).unwrap();
    runtime.block_on(fill(on_disk(directory.path(), Durability::Os)));
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.env("ONLOOKER_BENCH_OPEN", directory.path()).status().unwrap();
}

/// 1,000,000 events in 10,000 sessions, in batches of 10 that come to the sessions in turn.
async fn fill(engine: Arc<dyn Engine>) {
    let writers: Vec<_> = (0..100).map(|_| tokio::spawn(fill_some(Arc::clone(&engine)))).collect();
    for writer in writers {
        writer.await.unwrap();
    }
}

async fn fill_some(engine: Arc<dyn Engine>) {
    let (sessions, epoch): (Vec<_>, _) = ((0..100).map(|_| SessionId::random()).collect(), random_epoch());
    for session in &sessions {
        engine.create(*session, epoch, 1).await.unwrap();
    }
    let frame = Bytes::from(vec![b'x'; FRAME]);
    for next in (0..100).step_by(10) {
        let record = |offset| Record { offset, at: offset, kind: "x.measured".into(), frame: frame.clone() };
        let batch = Batch { term: 1, epoch, records: (next..next + 10).map(record).collect(), numbers: None };
        for session in &sessions {
            engine.append(*session, batch.clone()).await.unwrap();
        }
    }
}

/// Opens what a process left that did not close it.
fn open(directory: &Path) {
    let began = Instant::now();
    let engine = on_disk(directory, Durability::Fsync);
    let took = began.elapsed().as_millis();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    println!("open with {} bytes stored: {took} ms, {resident}", engine.stored_bytes());
}

fn on_disk(directory: &Path, durability: Durability) -> Arc<dyn Engine> {
    Arc::new(DiskEngine::open(DiskOptions { dir: directory.join("data"), bounds: BOUNDS, durability }).unwrap())
}

async fn measure(name: &str, engine: Arc<dyn Engine>, patience: Duration, rate: Option<f64>) {
    let pause = rate.map(|rate| Duration::from_secs_f64(BATCH as f64 * SESSIONS as f64 / rate));
    let (began, cpu) = (Instant::now(), cpu_ticks());
    let writers: Vec<_> =
        (0..SESSIONS).map(|_| tokio::spawn(write(Arc::clone(&engine), began + patience, pause))).collect();
    let mut latencies = Vec::new();
    for writer in writers {
        latencies.extend(writer.await.unwrap());
    }
    let (took, cpu) = (began.elapsed(), cpu_ticks() - cpu);
    engine.close().await;
    latencies.sort_unstable();
    let events = latencies.len() as u64 * BATCH;
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "{name:14} {:10.0} {:9.2} {:9.2} {:9.2} {:12.0}",
        events as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0),
        cpu as f64 * 1e7 / events as f64,
    );
}

/// Appends batch after batch; returns how long each took.
async fn write(engine: Arc<dyn Engine>, until: Instant, pause: Option<Duration>) -> Vec<Duration> {
    let (session, epoch) = (SessionId::random(), random_epoch());
    engine.create(session, epoch, 1).await.unwrap();
    let frame = Bytes::from(vec![b'x'; FRAME]);
    let (mut latencies, mut next) = (Vec::new(), 0);
    let mut ticks = pause.map(tokio::time::interval);
    while Instant::now() < until {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let record = |offset| Record { offset, at: offset, kind: "x.measured".into(), frame: frame.clone() };
        let batch = Batch { term: 1, epoch, records: (next..next + BATCH).map(record).collect(), numbers: None };
        next += BATCH;
        let began = Instant::now();
        engine.append(session, batch).await.unwrap();
        latencies.push(began.elapsed());
    }
    latencies
}

/// CPU time of this process, user and system, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
