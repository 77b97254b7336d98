//! fjall: a log-structured tree for the chunks and one for the heads, with one journal.

use std::path::Path;

use ::fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode, Readable};

use super::{Durability, Outcome, Reader, Store, key, session_of};
use crate::workload::{SessionWrite, records_of};

/// `tree`: chunks in the tree. `blob`: chunks of 1 KiB and more in separate files. The number: MiB of the memtable.
pub const VARIANTS: &[&str] = &["tree-16", "tree-32", "blob-16", "blob-32"];
const BEST: &str = "blob-16";
const CACHE: u64 = 16 << 20;
const HEADS_MEMTABLE: u64 = 4 << 20;
/// The least that fjall allows is 64 MiB.
const JOURNALS: u64 = 128 << 20;

struct Fjall {
    database: Database,
    chunks: Keyspace,
    heads: Keyspace,
    persist: PersistMode,
}

struct FjallReader {
    database: Database,
    chunks: Keyspace,
    heads: Keyspace,
}

pub fn open(dir: &Path, durability: Durability, variant: &str) -> Outcome<Box<dyn Store>> {
    let variant = if variant.is_empty() { BEST } else { variant };
    let (layout, memtable) = variant.split_once('-').ok_or("a variant of fjall is layout-MiB")?;
    let memtable = memtable.parse::<u64>()? << 20;
    let separation = (layout == "blob").then(KvSeparationOptions::default);
    let database = Database::builder(dir).cache_size(CACHE).max_journaling_size(JOURNALS).worker_threads(2).open()?;
    let chunks = database.keyspace("chunks", || {
        KeyspaceCreateOptions::default().max_memtable_size(memtable).with_kv_separation(separation.clone())
    })?;
    let heads = database.keyspace("heads", || KeyspaceCreateOptions::default().max_memtable_size(HEADS_MEMTABLE))?;
    let persist = if durability == Durability::Fsync { PersistMode::SyncData } else { PersistMode::Buffer };
    Ok(Box::new(Fjall { database, chunks, heads, persist }))
}

impl Store for Fjall {
    fn commit(&mut self, group: &[SessionWrite]) -> Outcome<()> {
        let mut batch = self.database.batch().durability(Some(self.persist));
        for write in group {
            batch.insert(&self.chunks, key(write.session, write.first), write.chunk.as_slice());
            batch.insert(&self.heads, write.session.to_be_bytes(), &write.head[..]);
            for first in &write.trimmed {
                batch.remove(&self.chunks, key(write.session, *first));
            }
        }
        Ok(batch.commit()?)
    }

    fn reader(&self) -> Outcome<Box<dyn Reader>> {
        let (database, chunks, heads) = (self.database.clone(), self.chunks.clone(), self.heads.clone());
        Ok(Box::new(FjallReader { database, chunks, heads }))
    }
}

impl Reader for FjallReader {
    fn read(&mut self, session: u64, position: u64, records: u64, into: &mut Vec<u8>) -> Outcome<usize> {
        let snapshot = self.database.snapshot();
        let before = key(session, 0)..=key(session, position);
        let first = match snapshot.range(&self.chunks, before).next_back() {
            Some(found) => found.key()?.to_vec(),
            None => key(session, position).to_vec(),
        };
        let end = key(session, position + records);
        let mut chunks = 0;
        for found in snapshot.range(&self.chunks, first..end.to_vec()) {
            let (key, chunk) = found.into_inner()?;
            into.extend_from_slice(&chunk);
            chunks += 1;
            if session_of(&key[8..]) + records_of(&chunk) >= position + records {
                break;
            }
        }
        Ok(chunks)
    }

    fn heads(&mut self, each: &mut dyn FnMut(u64, &[u8])) -> Outcome<()> {
        for found in self.database.snapshot().iter(&self.heads) {
            let (key, head) = found.into_inner()?;
            each(session_of(&key), &head);
        }
        Ok(())
    }
}
