//! The scenarios. Each runs in a process of its own, so that its CPU, bytes and memory are the store's alone.

pub mod append;
pub mod full_disk;
pub mod reads;
pub mod restart;

use std::{path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use crate::stores::{self, Durability, Outcome, Store};

/// What a scenario is run with.
pub struct Run {
    pub store: String,
    pub durability: Durability,
    pub dir: PathBuf,
    /// An append ends after this time or this payload, whichever is first.
    pub time: Duration,
    pub payload: u64,
}

impl Run {
    fn open(&self) -> Outcome<Box<dyn Store>> {
        stores::open(&self.store, &self.dir, self.durability)
    }
}

/// Figures by name; a figure is a number or a few words.
pub type Figures = Map<String, Value>;

pub fn run(scenario: &str, run: &Run) -> Outcome<Figures> {
    match scenario {
        "batches" => append::append(run, &append::BATCHES),
        "eight" => append::append(run, &append::EIGHT),
        "one" => append::append(run, &append::ONE),
        "trim" => append::append(run, &append::TRIM),
        "reads" => reads::reads(run),
        "fill" => restart::fill(run),
        "open" => restart::open(run),
        "full" => full_disk::full(run),
        other => Err(format!("there is no scenario {other}").into()),
    }
}
