//! The one trait that every store is measured through, and which stores there are.

mod fjall;
mod redb;
mod sqlite;

use std::path::Path;

use crate::workload::SessionWrite;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T> = Result<T, Failure>;

/// What a commit waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The disk has it.
    Fsync,
    /// The operating system has it: a killed process loses nothing.
    Os,
}

pub trait Store: Send {
    /// All writes of the group, or none.
    fn commit(&mut self, group: &[SessionWrite]) -> Outcome<()>;
    /// A handle for another thread.
    fn reader(&self) -> Outcome<Box<dyn Reader>>;
}

pub trait Reader: Send {
    /// Appends to `into`, oldest first, the chunks from the one that holds `position` until `records` records from
    /// there are complete. Returns how many chunks that were.
    fn read(&mut self, session: u64, position: u64, records: u64, into: &mut Vec<u8>) -> Outcome<usize>;
    /// Calls `each` for every session's head.
    fn heads(&mut self, each: &mut dyn FnMut(u64, &[u8])) -> Outcome<()>;
}

/// The stores by name. A name is `store` or `store:variant`; the bare name is the best variant found.
pub const STORES: [&str; 3] = ["redb", "fjall", "sqlite"];

/// Every variant that `--tune` compares.
pub fn variants() -> Vec<String> {
    [redb::VARIANTS, fjall::VARIANTS, sqlite::VARIANTS]
        .iter()
        .zip(STORES)
        .flat_map(|(variants, store)| variants.iter().map(move |variant| format!("{store}:{variant}")))
        .collect()
}

/// Opens the store in `dir`, and makes it where there is none.
pub fn open(name: &str, dir: &Path, durability: Durability) -> Outcome<Box<dyn Store>> {
    std::fs::create_dir_all(dir)?;
    let (store, variant) = name.split_once(':').unwrap_or((name, ""));
    match store {
        "redb" => redb::open(dir, durability, variant),
        "fjall" => fjall::open(dir, durability, variant),
        "sqlite" => sqlite::open(dir, durability, variant),
        other => Err(format!("there is no store {other}").into()),
    }
}

/// The key of a chunk: session, then first offset, both big-endian.
fn key(session: u64, first: u64) -> [u8; 16] {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&session.to_be_bytes());
    key[8..].copy_from_slice(&first.to_be_bytes());
    key
}

fn session_of(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}
