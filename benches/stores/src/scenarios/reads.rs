//! Reads of 200 records from a random position: cold, warm, and beside appends.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Figures, Run};
use crate::{
    measure::{self, Times},
    stores::{Outcome, Reader, Store},
    workload::{CHUNK_HEADER, Load, RECORD},
};

const SESSIONS: usize = 100;
const GROUP: usize = 20;
const RECORDS: usize = 25;
/// Records of one read.
const READ: u64 = 200;
/// Different positions that are read cold, then again warm.
const POSITIONS: usize = 300;
const WARM_ROUNDS: usize = 10;
/// The moderate rate of appends: 20,000 records a second.
const PACED_COMMITS: u32 = 40;
/// The moderate rate of reads: 40,000 records a second.
const PACED_READS: u32 = 200;

struct Bench<'a> {
    run: &'a Run,
    store: Box<dyn Store>,
    load: Load,
    /// Records that each session had when the reading began.
    each: u64,
}

/// How long appends took, and what was read meanwhile.
struct Phase {
    p50: f64,
    p99: f64,
    per_second: f64,
    reads_per_second: f64,
}

pub fn reads(run: &Run) -> Outcome<Figures> {
    let mut bench = filled(run)?;
    let cold = bench.read_all(1)?;
    let warm = bench.read_all(WARM_ROUNDS)?;
    let paced = Some(PACED_COMMITS);
    let [alone, beside, after] =
        [bench.append(paced, None)?, bench.append(paced, Some(None))?, bench.append(paced, None)?];
    let moderate = Some(Some(PACED_READS));
    let [fast, slowed, again] = [bench.append(None, None)?, bench.append(None, moderate)?, bench.append(None, None)?];
    let figures = [
        ("read of 200, cold, p50 ms", cold[0]),
        ("read of 200, cold, p99 ms", cold[1]),
        ("read of 200, warm, p50 ms", warm[0]),
        ("read of 200, warm, p99 ms", warm[1]),
        ("20,000 records/s: commit p50 ms", mean(alone.p50, after.p50)),
        ("the same beside a reader at full speed", beside.p50),
        ("20,000 records/s: commit p99 ms", mean(alone.p99, after.p99)),
        ("same, p99, beside a reader at full speed", beside.p99),
        ("reads/s of that reader", beside.reads_per_second),
        ("full speed: records/s", mean(fast.per_second, again.per_second)),
        ("the same beside 200 reads/s", slowed.per_second),
        ("slowed to", slowed.per_second / mean(fast.per_second, again.per_second)),
        ("reads/s of that reader, done", slowed.reads_per_second),
    ];
    Ok(figures.into_iter().map(|(name, figure)| (name.to_owned(), figure.into())).collect())
}

fn mean(one: f64, other: f64) -> f64 {
    f64::midpoint(one, other)
}

/// A store with 40 % of the run's payload, opened anew, its files out of the page cache.
fn filled(run: &Run) -> Outcome<Bench<'_>> {
    let rounds = run.payload * 2 / 5 / (SESSIONS * RECORDS * RECORD) as u64;
    let mut load = Load::new(SESSIONS, None);
    let mut store = run.open()?;
    for _ in 0..rounds * (SESSIONS / GROUP) as u64 {
        store.commit(&load.group(GROUP, RECORDS))?;
    }
    drop(store);
    let store = run.open()?;
    measure::forget(&run.dir)?;
    Ok(Bench { run, store, load, each: rounds * RECORDS as u64 })
}

impl Bench<'_> {
    fn read_all(&self, rounds: usize) -> Outcome<[f64; 2]> {
        let mut reader = self.store.reader()?;
        let mut times = Times::default();
        for _ in 0..rounds {
            let mut random = StdRng::seed_from_u64(11);
            for _ in 0..POSITIONS {
                let start = Instant::now();
                read(&mut *reader, self.each, &mut random)?;
                times.add(start.elapsed());
            }
        }
        let ([p50, p99, _], _) = times.at([0.5, 0.99, 1.0]);
        Ok([p50, p99])
    }

    /// Appends for a part of the run's time, `commits` a second or as fast as it goes, beside a reader: none, one at
    /// full speed (`Some(None)`), or one with so many reads a second.
    fn append(&mut self, commits: Option<u32>, reader: Option<Option<u32>>) -> Outcome<Phase> {
        let (over, each) = (&AtomicBool::new(false), self.each);
        let reading = reader.map(|rate| self.store.reader().map(|reader| (rate, reader))).transpose()?;
        thread::scope(|scope| {
            let reading =
                reading.map(|(rate, mut reader)| scope.spawn(move || read_until(over, &mut *reader, each, rate)));
            let appended = self.append_for(self.run.time / 4, commits);
            over.store(true, Ordering::Relaxed);
            let reads = reading.map_or(Ok(Ok(0.0)), thread::ScopedJoinHandle::join);
            let mut phase = appended?;
            phase.reads_per_second = reads.map_err(|_| "the reader panicked")??;
            Ok(phase)
        })
    }

    fn append_for(&mut self, time: Duration, commits: Option<u32>) -> Outcome<Phase> {
        let (start, mut times) = (Instant::now(), Times::default());
        while start.elapsed() < time {
            let group = self.load.group(GROUP, RECORDS);
            pace(start, times.count(), commits);
            let at = Instant::now();
            self.store.commit(&group)?;
            times.add(at.elapsed());
        }
        let per_second = (times.count() * GROUP * RECORDS) as f64 / start.elapsed().as_secs_f64();
        let ([p50, p99, _], _) = times.at([0.5, 0.99, 1.0]);
        Ok(Phase { p50, p99, per_second, reads_per_second: 0.0 })
    }
}

/// Waits until it is time for the one after `done`.
fn pace(start: Instant, done: usize, rate: Option<u32>) {
    let due = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(done as f64 / f64::from(rate)));
    thread::sleep(due.saturating_sub(start.elapsed()));
}

fn read_until(over: &AtomicBool, reader: &mut dyn Reader, each: u64, rate: Option<u32>) -> Outcome<f64> {
    let (start, mut done, mut random) = (Instant::now(), 0, StdRng::seed_from_u64(13));
    while !over.load(Ordering::Relaxed) {
        pace(start, done, rate);
        read(reader, each, &mut random)?;
        done += 1;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// One read; an error where the store gave too little or the wrong chunks.
fn read(reader: &mut dyn Reader, each: u64, random: &mut StdRng) -> Outcome<()> {
    let (session, position) = (random.random_range(0..SESSIONS as u64), random.random_range(0..each - READ));
    let mut bytes = Vec::with_capacity(100 * 1024);
    let chunks = reader.read(session, position, READ, &mut bytes)?;
    let first = position / RECORDS as u64 * RECORDS as u64;
    let last = (position + READ).div_ceil(RECORDS as u64) * RECORDS as u64;
    let right = chunks as u64 == (last - first) / RECORDS as u64
        && bytes.len() == chunks * (CHUNK_HEADER + RECORDS * RECORD)
        && bytes.starts_with(&first.to_be_bytes());
    if right { Ok(()) } else { Err(format!("a read at {position} gave {chunks} chunks").into()) }
}
