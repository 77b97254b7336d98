//! redb: one file, a tree for the chunks and one for the heads.

use std::{fs::OpenOptions, io, path::Path, sync::Arc};

use ::redb::{
    Builder, Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, backends::FileBackend,
};

use super::{Durability, Outcome, Reader, Store};
use crate::workload::{SessionWrite, records_of};

/// `quick`: every commit saves what a restart needs. `walk`: a restart after a kill walks the whole file. The number:
/// MiB of cache.
pub const VARIANTS: &[&str] = &["quick-48", "walk-48"];
const BEST: &str = "quick-48";

const CHUNKS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("chunks");
const HEADS: TableDefinition<u64, &[u8]> = TableDefinition::new("heads");

struct Redb {
    database: Arc<Database>,
    quick: bool,
}

struct RedbReader {
    database: Arc<Database>,
}

/// redb's own `Durability::None` keeps commits in the process, where a kill loses them. A file whose sync does nothing
/// is what "the operating system has it" means.
#[derive(Debug)]
struct WithoutSync(FileBackend);

impl StorageBackend for WithoutSync {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}

pub fn open(dir: &Path, durability: Durability, variant: &str) -> Outcome<Box<dyn Store>> {
    let variant = if variant.is_empty() { BEST } else { variant };
    let (repair, cache) = variant.split_once('-').ok_or("a variant of redb is repair-MiB")?;
    let file = dir.join("log.redb");
    let mut builder = Builder::new();
    builder.set_cache_size(cache.parse::<usize>()? << 20);
    let database = match durability {
        Durability::Fsync => builder.create(file)?,
        Durability::Os => {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(file)?;
            builder.create_with_backend(WithoutSync(FileBackend::new(file)?))?
        }
    };
    let transaction = database.begin_write()?;
    transaction.open_table(CHUNKS)?;
    transaction.open_table(HEADS)?;
    transaction.commit()?;
    Ok(Box::new(Redb { database: Arc::new(database), quick: repair == "quick" }))
}

impl Store for Redb {
    fn commit(&mut self, group: &[SessionWrite]) -> Outcome<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(::redb::Durability::Immediate)?;
        transaction.set_quick_repair(self.quick);
        {
            let mut chunks = transaction.open_table(CHUNKS)?;
            let mut heads = transaction.open_table(HEADS)?;
            for write in group {
                chunks.insert((write.session, write.first), write.chunk.as_slice())?;
                heads.insert(write.session, &write.head[..])?;
                for first in &write.trimmed {
                    chunks.remove((write.session, *first))?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn reader(&self) -> Outcome<Box<dyn Reader>> {
        Ok(Box::new(RedbReader { database: Arc::clone(&self.database) }))
    }
}

impl Reader for RedbReader {
    fn read(&mut self, session: u64, position: u64, records: u64, into: &mut Vec<u8>) -> Outcome<usize> {
        let chunks = self.database.begin_read()?.open_table(CHUNKS)?;
        let first = match chunks.range((session, 0)..=(session, position))?.next_back() {
            Some(found) => found?.0.value(),
            None => (session, position),
        };
        let mut count = 0;
        for found in chunks.range(first..(session, position + records))? {
            let (key, chunk) = found?;
            into.extend_from_slice(chunk.value());
            count += 1;
            if key.value().1 + records_of(chunk.value()) >= position + records {
                break;
            }
        }
        Ok(count)
    }

    fn heads(&mut self, each: &mut dyn FnMut(u64, &[u8])) -> Outcome<()> {
        for found in self.database.begin_read()?.open_table(HEADS)?.iter()? {
            let (session, head) = found?;
            each(session.value(), head.value());
        }
        Ok(())
    }
}
