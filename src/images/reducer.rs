//! The workers that make reduced pictures for every session of the gateway, off the hot path.
//!
//! A session has one place in the queue, and which of its pictures is made is decided when its turn has come. So a
//! gateway that is too slow makes fewer pictures; it never falls behind, and nobody waits for it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, Weak},
    thread::available_parallelism,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Shelf,
    scaling::{self, Reduced, Unfit},
};
use crate::metrics::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub struct Reducer(Arc<Inner>);

struct Inner {
    tasks: TaskTracker,
    shutdown: CancellationToken,
    metrics: Arc<Metrics>,
    /// How many pictures are made at a time.
    workers: usize,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Each session at most once.
    waiting: VecDeque<Weak<Shelf>>,
    working: usize,
}

impl Reducer {
    /// Its workers, half as many as there are cores, are blocking tasks of `tasks`. They end when nothing is left to
    /// make, and at `shutdown` after the picture that they are at.
    pub fn new(tasks: TaskTracker, shutdown: CancellationToken, metrics: Arc<Metrics>) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_workers((cores / 2).max(1), tasks, shutdown, metrics)
    }

    pub(super) fn with_workers(
        workers: usize,
        tasks: TaskTracker,
        shutdown: CancellationToken,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner { tasks, shutdown, metrics, workers, queue: Mutex::default() }))
    }

    /// Gives a session its place. The caller sees to it that it has none yet.
    pub(super) fn enqueue(&self, shelf: &Arc<Shelf>) {
        let begins = {
            let mut queue = self.lock();
            queue.waiting.push_back(Arc::downgrade(shelf));
            let begins = queue.working < self.0.workers;
            queue.working += usize::from(begins);
            begins
        };
        if begins {
            let worker = self.clone();
            self.0.tasks.spawn_blocking(move || worker.work());
        }
    }

    fn work(&self) {
        while let Some(shelf) = self.next() {
            self.make(&shelf);
        }
    }

    fn next(&self) -> Option<Arc<Shelf>> {
        let mut queue = self.lock();
        while !self.0.shutdown.is_cancelled() {
            match queue.waiting.pop_front() {
                // A session that is gone has no pictures any more.
                Some(shelf) => match shelf.upgrade() {
                    Some(shelf) => return Some(shelf),
                    None => continue,
                },
                None => break,
            }
        }
        queue.working -= 1;
        None
    }

    /// Makes one picture of a session, and gives it the last place if there is another one to make.
    pub(super) fn make(&self, shelf: &Arc<Shelf>) {
        let Some(original) = shelf.begin() else { return };
        // A decoder that fails on a stranger's bytes takes no other picture with it.
        let reduced = catch_unwind(AssertUnwindSafe(|| scaling::reduce(&original.bytes())));
        let (variant, outcome) = match reduced.unwrap_or(Err(Unfit::Failed)) {
            Ok(Reduced::Smaller(jpeg)) => (Some(Arc::new(original.reduced_to(&jpeg))), "made"),
            Ok(Reduced::AsItIs) => (Some(Arc::clone(&original)), "passed_on"),
            Err(unfit) => {
                tracing::debug!(session.id = ?original.session, %unfit, "a picture was not reduced");
                (None, "skipped")
            }
        };
        self.0.metrics.picture_reduced(outcome);
        if shelf.finish(&original, variant) {
            self.lock().waiting.push_back(Arc::downgrade(shelf));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().expect("no holder panics")
    }
}
