//! A million records over ten thousand sessions, a kill, and what the next start costs.

use std::{
    io::{Write, stdout},
    thread,
    time::{Duration, Instant},
};

use super::{Figures, Run};
use crate::{measure, stores::Outcome, workload::Load};

const SESSIONS: usize = 10_000;
const CHUNKS_EACH: usize = 4;
const RECORDS: usize = 25;
const GROUP: usize = 20;
/// The word by which the filling process says that it can be killed.
pub const FILLED: &str = "filled";

/// Fills the store, says so, and waits to be killed.
pub fn fill(run: &Run) -> Outcome<Figures> {
    let mut store = run.open()?;
    let mut load = Load::new(SESSIONS, None);
    for _ in 0..SESSIONS * CHUNKS_EACH / GROUP {
        store.commit(&load.group(GROUP, RECORDS))?;
    }
    println!("{FILLED}");
    stdout().flush()?;
    thread::sleep(Duration::from_secs(600));
    Err("nobody killed the process that filled the store".into())
}

/// Opens the store and reads every head.
pub fn open(run: &Run) -> Outcome<Figures> {
    let (before, _) = measure::memory()?;
    let start = Instant::now();
    let store = run.open()?;
    let opened = start.elapsed();
    let (mut heads, mut records) = (0_u64, 0_u64);
    store.reader()?.heads(&mut |_, head| {
        heads += 1;
        records += head.first_chunk().map_or(0, |next| u64::from_be_bytes(*next));
    })?;
    let ready = start.elapsed();
    let (resident, peak) = measure::memory()?;
    if (heads, records) != (SESSIONS as u64, (SESSIONS * CHUNKS_EACH * RECORDS) as u64) {
        return Err(format!("after the kill there are {heads} heads and {records} records").into());
    }
    let figures = [
        ("open ms", opened.as_secs_f64() * 1000.0),
        ("open and heads ms", ready.as_secs_f64() * 1000.0),
        ("RSS MiB", resident),
        ("peak RSS MiB", peak),
        ("RSS before MiB", before),
        ("directory MiB", measure::size_of(&run.dir)?),
    ];
    Ok(figures.into_iter().map(|(name, figure)| (name.to_owned(), figure.into())).collect())
}
