//! SQLite: one writing connection with a write-ahead log; each reader has its own connection.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

use super::{Durability, Outcome, Reader, Store};
use crate::workload::{SessionWrite, records_of};

/// `layout-page size-pages of WAL between checkpoints`. Layout `key`: a table without rowid. `row`: rowid and index.
pub const VARIANTS: &[&str] = &[
    "key-4096-1000",
    "key-4096-4000",
    "key-8192-2000",
    "key-16384-1000",
    "row-4096-1000",
    "row-4096-4000",
    "row-8192-250",
    "row-8192-500",
    "row-8192-1000",
    "row-8192-2000",
    "row-16384-1000",
    "row-16384-4000",
];
/// The least that keeps the 99th percentile of commits low: a checkpoint is made by the commit that reaches it.
const BEST: &str = "row-8192-500";
/// Page cache of each connection.
const CACHE_KIB: u32 = 16 * 1024;

struct Sqlite {
    connection: Connection,
    file: PathBuf,
}

struct SqliteReader {
    connection: Connection,
}

pub fn open(dir: &Path, durability: Durability, variant: &str) -> Outcome<Box<dyn Store>> {
    let variant = if variant.is_empty() { BEST } else { variant };
    let mut parts = variant.split('-');
    let (Some(layout), Some(page), Some(pages)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("no variant of SQLite: {variant}").into());
    };
    let file = dir.join("log.sqlite");
    let connection = Connection::open(&file)?;
    let synchronous = if durability == Durability::Fsync { "FULL" } else { "NORMAL" };
    connection.execute_batch(&format!(
        "PRAGMA page_size={page}; PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};
         PRAGMA wal_autocheckpoint={pages}; PRAGMA mmap_size=0; PRAGMA cache_size=-{CACHE_KIB};
         CREATE TABLE IF NOT EXISTS heads(session INTEGER PRIMARY KEY, head BLOB NOT NULL);"
    ))?;
    connection.execute_batch(match layout {
        "key" => {
            "CREATE TABLE IF NOT EXISTS chunks(session INTEGER, first INTEGER, chunk BLOB NOT NULL,
             PRIMARY KEY(session, first)) WITHOUT ROWID;"
        }
        _ => {
            "CREATE TABLE IF NOT EXISTS chunks(id INTEGER PRIMARY KEY, session INTEGER NOT NULL,
             first INTEGER NOT NULL, chunk BLOB NOT NULL);
             CREATE UNIQUE INDEX IF NOT EXISTS by_session ON chunks(session, first);"
        }
    })?;
    Ok(Box::new(Sqlite { connection, file }))
}

impl Store for Sqlite {
    fn commit(&mut self, group: &[SessionWrite]) -> Outcome<()> {
        let transaction = self.connection.transaction()?;
        {
            let mut chunks =
                transaction.prepare_cached("INSERT INTO chunks(session, first, chunk) VALUES(?1, ?2, ?3)")?;
            let mut heads = transaction.prepare_cached("INSERT OR REPLACE INTO heads(session, head) VALUES(?1, ?2)")?;
            let mut trims = transaction.prepare_cached("DELETE FROM chunks WHERE session = ?1 AND first = ?2")?;
            for write in group {
                let session = write.session as i64;
                chunks.execute(params![session, write.first as i64, write.chunk])?;
                heads.execute(params![session, &write.head[..]])?;
                for first in &write.trimmed {
                    trims.execute(params![session, *first as i64])?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    fn reader(&self) -> Outcome<Box<dyn Reader>> {
        let connection = Connection::open(&self.file)?;
        connection.execute_batch(&format!("PRAGMA mmap_size=0; PRAGMA cache_size=-{CACHE_KIB};"))?;
        Ok(Box::new(SqliteReader { connection }))
    }
}

impl Reader for SqliteReader {
    fn read(&mut self, session: u64, position: u64, records: u64, into: &mut Vec<u8>) -> Outcome<usize> {
        let session = session as i64;
        let transaction = self.connection.transaction()?;
        let first: Option<i64> = transaction
            .prepare_cached("SELECT first FROM chunks WHERE session = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1")?
            .query_row(params![session, position as i64], |row| row.get(0))
            .optional()?;
        let mut statement = transaction.prepare_cached(
            "SELECT first, chunk FROM chunks WHERE session = ?1 AND first >= ?2 AND first < ?3 ORDER BY first",
        )?;
        let mut rows =
            statement.query(params![session, first.unwrap_or(position as i64), (position + records) as i64])?;
        let mut chunks = 0;
        while let Some(row) = rows.next()? {
            let chunk = row.get_ref(1)?.as_blob()?;
            into.extend_from_slice(chunk);
            chunks += 1;
            if row.get::<_, i64>(0)? as u64 + records_of(chunk) >= position + records {
                break;
            }
        }
        Ok(chunks)
    }

    fn heads(&mut self, each: &mut dyn FnMut(u64, &[u8])) -> Outcome<()> {
        let mut statement = self.connection.prepare_cached("SELECT session, head FROM heads")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(row.get::<_, i64>(0)? as u64, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }
}
