//! One writer appends as fast as the store takes it.

use std::time::{Duration, Instant};

use super::{Figures, Run};
use crate::{
    measure::{self, Times},
    stores::Outcome,
    workload::{Load, RECORD},
};

/// What each commit holds, and how many records a session keeps.
pub struct Shape {
    sessions: usize,
    records: usize,
    bound: Option<u64>,
}

const SESSIONS: usize = 100;
pub const BATCHES: Shape = Shape { sessions: 20, records: 25, bound: None };
pub const EIGHT: Shape = Shape { sessions: 8, records: 1, bound: None };
pub const ONE: Shape = Shape { sessions: 1, records: 1, bound: None };
pub const TRIM: Shape = Shape { sessions: 20, records: 25, bound: Some(2_000) };

pub fn append(run: &Run, shape: &Shape) -> Outcome<Figures> {
    let plain = measure::plain_write(&run.dir, shape.sessions * shape.records * RECORD)?;
    let mut store = run.open()?;
    let mut load = Load::new(SESSIONS, shape.bound);
    let mut times = Times::default();
    let (mut payload, mut largest) = (0, 0.0_f64);
    let (before, start) = (measure::usage()?, Instant::now());
    let mut sized = start;
    while start.elapsed() < run.time && payload < run.payload {
        let group = load.group(shape.sessions, shape.records);
        payload += (shape.sessions * shape.records * RECORD) as u64;
        let at = Instant::now();
        store.commit(&group)?;
        times.add(at.elapsed());
        if sized.elapsed() > Duration::from_secs(1) {
            largest = largest.max(measure::size_of(&run.dir)?);
            sized = Instant::now();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let (_, peak) = measure::memory()?;
    drop(store);
    let after = measure::usage()?;
    let records = payload as f64 / RECORD as f64;
    let size = measure::size_of(&run.dir)?;
    let commits = times.count();
    let ([p50, p99, max], _) = times.at([0.5, 0.99, 1.0]);
    let figures = [
        ("records/s", records / seconds),
        ("commits", commits as f64),
        ("commit p50 ms", p50),
        ("commit p99 ms", p99),
        ("commit max ms", max),
        ("plain write and fsync p50 ms", plain),
        ("CPU µs/record", (after.cpu - before.cpu) * 1e6 / records),
        ("bytes written/byte", (after.written - before.written) / payload as f64),
        ("payload MiB", payload as f64 / f64::from(1 << 20)),
        ("directory MiB, largest", largest.max(size)),
        ("directory MiB, closed", size),
        ("peak RSS MiB", peak),
    ];
    Ok(figures.into_iter().map(|(name, figure)| (name.to_owned(), figure.into())).collect())
}
