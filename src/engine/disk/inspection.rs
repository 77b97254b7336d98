//! A stopped gateway's data directory, to look at. Changes nothing in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    opening::{self, Contents, FoundLog, Lock, OpenError},
    readers::{self, Damage},
    store::{self, FORMAT, Reader, StoreError},
};
use crate::{
    engine::{Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version},
    ids::SessionId,
};

/// Why something could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    #[error("there is no such session")]
    UnknownLog,
    #[error("the oldest offset that can be read is {first}")]
    Trimmed { first: u64 },
    #[error(transparent)]
    Damaged(Box<dyn std::error::Error + Send + Sync>),
    #[error("the store cannot be read")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for InspectionError {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}

/// A log as it is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSummary {
    pub session: SessionId,
    pub head: Head,
    /// As the bounds count them.
    pub bytes: u64,
}

/// The directory, with its lock held: no gateway starts on it meanwhile. A gateway that was killed leaves a write-ahead
/// log; it is read into memory and left as it is, for which the main file must be writable nevertheless.
pub struct Inspection {
    reader: Reader,
    contents: Contents,
    directory: PathBuf,
    _lock: Lock,
}

impl Inspection {
    /// Blocks while it reads what is known of every log.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let lock = opening::take_offline(directory)?;
        let (reader, contents) = opening::read_offline(directory)?;
        Ok(Self { reader, contents, directory: directory.to_owned(), _lock: lock })
    }

    /// The number of the directory's format.
    pub fn format(&self) -> i64 {
        FORMAT
    }

    /// The store's files and their sizes in bytes.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let size = |path: PathBuf| fs::metadata(&path).ok().map(|found| (path, found.len()));
        store::files(&self.directory).into_iter().filter_map(size).collect()
    }

    /// Every log, in the order of their creation.
    pub fn logs(&self) -> Vec<LogSummary> {
        let summary =
            |FoundLog { row, .. }: &FoundLog| LogSummary { session: row.session, head: row.head, bytes: row.bytes() };
        self.contents.logs.iter().map(summary).collect()
    }

    /// A page of a log from `from` on; empty at its end.
    pub fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> Result<Vec<Record>, InspectionError> {
        let log = self.contents.logs.iter().find(|log| log.row.session == session);
        let FoundLog { row, unsettled, .. } = log.ok_or(InspectionError::UnknownLog)?;
        if from < row.head.first {
            return Err(InspectionError::Trimmed { first: row.head.first });
        }
        if from >= row.head.next {
            return Ok(Vec::new());
        }
        let source = match readers::page(&self.reader, row.number, from, row.head.next, limit) {
            Ok(mut page) => {
                let end = from + page.records.len() as u64;
                page.go_on(unsettled.iter().skip_while(|record| record.offset < end), from, row.head.next);
                if !page.records.is_empty() {
                    return Ok(page.records);
                }
                None
            }
            Err(error @ StoreError::Damaged(_)) => Some(error),
            Err(error) => return Err(error.into()),
        };
        Err(InspectionError::Damaged(Box::new(Damage::Log { session, offset: from, source })))
    }

    /// Every record of a kind, in the order of keys.
    pub fn list(&self, kind: RecordKind) -> Result<Vec<Stored>, InspectionError> {
        let keys = self.contents.records.keys().filter(|key| key.kind == kind);
        keys.map(|key| {
            let (version, value) = self.existing(key)?;
            Ok((key.clone(), version, value))
        })
        .collect()
    }

    pub fn get(&self, key: &RecordKey) -> Result<Option<(Version, bytes::Bytes)>, InspectionError> {
        if self.contents.records.contains_key(key) { self.existing(key).map(Some) } else { Ok(None) }
    }

    fn existing(&self, key: &RecordKey) -> Result<(Version, bytes::Bytes), InspectionError> {
        match readers::record(&self.reader, key) {
            Ok(Some(found)) => Ok(found),
            Ok(None) | Err(StoreError::Damaged(_)) => {
                Err(InspectionError::Damaged(Box::new(Damage::Record(key.clone()))))
            }
            Err(error) => Err(error.into()),
        }
    }
}
