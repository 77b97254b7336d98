//! What the threads of the load generator tell one another.

use std::{
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::Thread,
    time::Duration,
};

use crate::Outcome;

#[derive(Default)]
pub(super) struct Board {
    /// Messages that arrived, counted for each subscriber.
    pub delivered: AtomicU64,
    pub skipped: AtomicU64,
    pub repeated: AtomicU64,
    /// Messages that everybody has.
    pub completed: AtomicU64,
    pub published: AtomicU64,
    /// Messages that the server has acknowledged.
    pub accepted: AtomicU64,
    /// Phases of publishing that are over.
    pub phases: AtomicU64,
    /// Latencies count.
    pub measuring: AtomicBool,
    pub published_enough: AtomicBool,
    pub stop: AtomicBool,
    /// The publisher sleeps, or is about to.
    waiting: AtomicBool,
    publisher: OnceLock<Thread>,
    publishing: AtomicBool,
    /// What the publisher has to send beside its messages.
    say: Mutex<Vec<u8>>,
    position: Mutex<Option<String>>,
    failure: Mutex<Option<String>>,
}

impl Board {
    pub fn fail(&self, failure: String) {
        lock(&self.failure).get_or_insert(failure);
        self.published_enough.store(true, SeqCst);
        self.stop.store(true, SeqCst);
        self.wake();
    }

    /// Fails if something has failed.
    pub fn check(&self) -> Outcome<()> {
        lock(&self.failure).as_ref().map_or(Ok(()), |failure| Err(failure.clone().into()))
    }

    pub fn say(&self, bytes: &[u8]) {
        lock(&self.say).extend_from_slice(bytes);
        self.wake();
    }

    pub fn take_said(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.say))
    }

    pub fn accept(&self, messages: u64) {
        self.accepted.fetch_add(messages, SeqCst);
        self.wake();
    }

    pub fn stand(&self, position: String) {
        *lock(&self.position) = Some(position);
    }

    pub fn position(&self) -> Option<String> {
        lock(&self.position).clone()
    }

    /// The publisher is this thread, until [`Self::i_published`].
    pub fn i_publish(&self) {
        self.publisher.get_or_init(std::thread::current);
        self.publishing.store(true, SeqCst);
    }

    pub fn i_published(&self) {
        self.publishing.store(false, SeqCst);
    }

    /// Whether there is a thread that sends what [`Self::say`] is told.
    pub fn is_publishing(&self) -> bool {
        self.publishing.load(SeqCst)
    }

    /// Ends the publisher's sleep.
    pub fn wake(&self) {
        if self.waiting.swap(false, SeqCst)
            && let Some(publisher) = self.publisher.get()
        {
            publisher.unpark();
        }
    }

    /// Sleeps until [`Self::wake`], and at most for this long, unless there is something to do already.
    pub fn sleep(&self, most: Duration, has_work: impl Fn() -> bool) {
        // Said before the look: a change after the look finds somebody to wake.
        self.waiting.store(true, SeqCst);
        if !has_work() && lock(&self.say).is_empty() {
            std::thread::park_timeout(most);
        }
        self.waiting.store(false, SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
