//! An engine that misbehaves on purpose: it delays, fails and finishes out of order. For tests.
//!
//! It never breaks the contract: what it refuses has not happened, and what it acknowledges has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use onlooker_protocol::event::Epoch;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::sync::watch;

use super::{Batch, Before, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version};
use crate::ids::SessionId;

/// What goes wrong, adjustable while it runs.
#[derive(Debug, Default)]
pub struct Faults {
    /// Of 1,000 writes, how many are refused as unavailable.
    pub failing_per_mille: AtomicU32,
    /// The longest delay before a write happens, in microseconds; drawn anew for each, so that writes overtake.
    pub delay_us: AtomicU64,
    /// Every write is refused as if the disk were full.
    pub full: AtomicBool,
    /// Every read is refused as unavailable.
    pub unreadable: AtomicBool,
    /// Another process may be using it.
    pub shared: AtomicBool,
}

pub struct FaultyEngine<E> {
    inner: E,
    faults: Arc<Faults>,
    random: std::sync::Mutex<StdRng>,
}

impl<E: Engine> FaultyEngine<E> {
    pub fn new(inner: E, faults: Arc<Faults>, seed: u64) -> Self {
        Self { inner, faults, random: std::sync::Mutex::new(StdRng::seed_from_u64(seed)) }
    }

    /// Waits, then says whether the write may go ahead.
    async fn before_write(&self) -> Result<(), EngineError> {
        let delay_us = self.faults.delay_us.load(Ordering::Relaxed);
        let (delay, fails) = {
            let mut random = self.random.lock().expect("no holder panics");
            let delay = if delay_us == 0 { 0 } else { random.random_range(0..=delay_us) };
            (delay, random.random_range(0..1000) < self.faults.failing_per_mille.load(Ordering::Relaxed))
        };
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        if self.faults.full.load(Ordering::Relaxed) {
            return Err(EngineError::Full);
        }
        if fails { Err(EngineError::Unavailable(None)) } else { Ok(()) }
    }

    fn readable(&self) -> Result<(), EngineError> {
        if self.faults.unreadable.load(Ordering::Relaxed) { Err(EngineError::Unavailable(None)) } else { Ok(()) }
    }
}

impl<E: Engine> Engine for FaultyEngine<E> {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        async move {
            self.before_write().await?;
            self.inner.create(session, epoch, term).await
        }
        .boxed()
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        async move {
            self.before_write().await?;
            self.inner.append(session, batch).await
        }
        .boxed()
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        async move {
            self.readable()?;
            self.inner.read(session, from, limit).await
        }
        .boxed()
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.inner.head(session)
    }

    fn logs(&self) -> Vec<SessionId> {
        self.inner.logs()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.inner.remove(session)
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        async move {
            self.before_write().await?;
            self.inner.put(key, seen, value).await
        }
        .boxed()
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        async move {
            self.readable()?;
            self.inner.get(key).await
        }
        .boxed()
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        async move {
            self.readable()?;
            self.inner.list(kind, session).await
        }
        .boxed()
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }

    fn before(&self) -> Before {
        let before = self.inner.before();
        Before { sole_user: before.sole_user && !self.faults.shared.load(Ordering::Relaxed), ..before }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}
