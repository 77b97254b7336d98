//! Where logs and records live: the contract that every engine keeps.
//!
//! * A log is appended to by one owner at a time. The owner's term fences: an append under a lower term than the log
//!   has seen fails with [`EngineError::Fenced`] and changes nothing.
//! * An append is one batch: all of it or nothing. It resolves when the batch is as durable as the engine promises,
//!   and only then does the committed head move. What a reader finds below the head never changes, except that the
//!   oldest records are trimmed.
//! * Records are small values under compare-and-set: the write succeeds only against the version that the writer saw.
//!
//! Implementations: [`memory`], [`disk`], and [`faulty`], which wraps another one and makes it slow, failing and out of
//! order.
//! `tests/gateway/engine.rs` holds one suite that every implementation passes.

pub mod disk;
pub mod faulty;
pub mod memory;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use onlooker_protocol::event::Epoch;
use tokio::sync::watch;

use crate::{
    ids::SessionId,
    sabotage::{self, Guard},
};

/// How much an engine keeps. Older records of a log go first; the newest one stays whatever its size and age.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub log_records: usize,
    pub log_bytes: usize,
    /// Records that are older than the newest one of an append by more than this are trimmed with it.
    pub log_age: Duration,
    /// Over all logs. An append that would pass it fails with [`EngineError::Full`].
    pub total_bytes: u64,
}

impl Bounds {
    /// Whether the oldest of so many records goes. `ages` are the times of the oldest and the newest one.
    pub(crate) fn is_too_long(&self, records: usize, bytes: usize, ages: (u64, u64)) -> bool {
        let too_old = u128::from(ages.1.saturating_sub(ages.0)) > self.log_age.as_millis();
        let over = records > self.log_records || bytes > self.log_bytes || too_old;
        records > 1 && over && !sabotage::is_off(Guard::ByteBound)
    }
}

/// An event as the log keeps it: redacted and encoded as its native frame.
#[derive(Clone, Debug)]
pub struct Record {
    pub offset: u64,
    /// When the gateway received it, in milliseconds of wall time.
    pub at: u64,
    /// The event's type, for filters.
    pub kind: Arc<str>,
    /// The whole event frame, UTF-8 JSON without insignificant white space.
    pub frame: Bytes,
}

impl Record {
    /// What it counts against the log's bounds, in bytes.
    pub fn size(&self) -> usize {
        self.frame.len() + std::mem::size_of::<Self>()
    }
}

/// What an owner appends at once.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The owner's number; not lower than the log has seen.
    pub term: u64,
    /// The log's content is a continuation only while this is the log's epoch. Another epoch begins a new log: what
    /// the old one held can no longer be read.
    pub epoch: Epoch,
    /// Offsets begin where the log ends; the engine refuses anything else.
    pub records: Vec<Record>,
    /// The runtime's last number that the writer saw in the log, and the one after this batch.
    pub numbers: Option<Numbers>,
}

/// How a batch moves the last accepted number `n` of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    pub from: u64,
    pub to: u64,
}

/// The committed end of a log, and its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub epoch: Epoch,
    pub term: u64,
    /// The oldest offset that can be read; equals `next` in an empty log.
    pub first: u64,
    /// The offset that the next record gets.
    pub next: u64,
    /// The runtime's last accepted number.
    pub n: u64,
}

/// How much one read may return. At least one record is returned where there is one.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    pub records: usize,
    pub bytes: usize,
}

/// The name of a record. `kind` groups them for [`Engine::list`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey {
    pub kind: RecordKind,
    pub session: SessionId,
    pub name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKind {
    Session,
    Guardrail,
    Notice,
    Lease,
    /// The last picture of a session.
    Picture,
    /// What the gateway itself keeps; its session is [`SessionId::NONE`].
    Gateway,
}

/// What an engine knows about the time before this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// Nobody else can be using it: a lease that it holds is a dead process's.
    pub sole_user: bool,
    /// What was committed may be missing at the logs' ends, because the machine stopped before it was on the disk.
    pub may_have_lost: bool,
}

/// A record's version: 1 when it was created, one more with every write.
pub type Version = u64;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("another owner with term {term} has the log")]
    Fenced { term: u64 },
    #[error("the record is at version {found:?}")]
    Conflict { found: Option<Version> },
    #[error("the log expects the runtime's number after {n}")]
    NumberExpected { n: u64 },
    #[error("the log expects offset {next} in epoch {epoch}")]
    OffsetExpected { epoch: Epoch, next: u64 },
    #[error("the oldest offset that can be read is {first}")]
    Trimmed { first: u64 },
    #[error("there is no such log")]
    UnknownLog,
    #[error("the engine's limit on stored bytes is reached")]
    Full,
    #[error("the engine does not answer")]
    Unavailable(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

/// A record as it is listed: its name, its version, its value.
pub type Stored = (RecordKey, Version, Bytes);

/// The contract. All futures may be dropped at any time: an append or write then has happened wholly or not at all, and
/// the next one to the same log or record finds it decided.
pub trait Engine: Send + Sync + 'static {
    /// Begins a session's log. The head follows with the first append.
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>>;

    /// Appends a batch; resolves with the new head when it is durable.
    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>>;

    /// Records from offset `from` on, in order, below the committed head. Empty at the head.
    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>>;

    /// The committed head, to be followed. It only moves forward in `next` and `term`.
    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError>;

    /// Every session that has a log, in no order.
    fn logs(&self) -> Vec<SessionId>;

    /// Removes a log and everything that is recorded for its session.
    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>>;

    /// Writes a record if it is at the version `seen` (`None`: if there is none), and returns the new version.
    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>>;

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>>;

    /// Every record of a kind, in the order of keys; of one session where given.
    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>>;

    /// Bytes that all logs hold, as the bounds count them.
    fn stored_bytes(&self) -> u64;

    fn before(&self) -> Before;

    /// Whether writes fail until the process is started again: waiting does not help.
    fn needs_restart(&self) -> bool {
        false
    }

    /// Ends it: what was asked before is done, and on the disk where there is one. What is asked later fails as
    /// unavailable. Idempotent.
    fn close(&self) -> BoxFuture<'_, ()>;
}
