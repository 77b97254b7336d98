//! The task that sends what is due: a bounded number at once for each notifier, woken by time and by new notices.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Owners, Shared,
    attempt::{Attempt, Stop},
    schedule::Due,
};
use crate::engine::{EngineError, RecordKey};

/// How long a shutdown waits for sends that are under way before they count as unknown …
const SHUTDOWN_SENDS: Duration = Duration::from_secs(5);
/// … and then for their states to be written.
const SHUTDOWN_WRITES: Duration = Duration::from_secs(1);
const RELOAD_RETRY: Duration = Duration::from_secs(1);

/// Sends notices while it runs. One for each [`super::Outbox`].
pub struct Dispatcher {
    shared: Arc<Shared>,
}

enum Finished {
    Attempt(RecordKey, Option<Due>),
    Reload(Result<(), EngineError>),
}

/// What one run of the dispatcher holds. Dropped, it stops every attempt where it stands.
struct Run {
    shared: Arc<Shared>,
    owners: Arc<dyn Owners>,
    stop: Stop,
    tasks: JoinSet<Finished>,
    /// Which attempt a task makes, for the case that it panics.
    attempts: HashMap<Id, (RecordKey, Due)>,
    reload_at: Option<Instant>,
}

impl Dispatcher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs until `shutdown`; then nothing new is sent, and what is under way gets 5 s. Dropping the future is as a
    /// crash: leases stay and are found by the next one.
    pub async fn run(self, owners: Arc<dyn Owners>, shutdown: CancellationToken) {
        // The same token: who is asked whether a notice is wanted may end before this task runs again.
        let stop = Stop { soft: shutdown.clone(), ..Stop::default() };
        let mut run = Run {
            shared: self.shared,
            owners,
            stop,
            tasks: JoinSet::new(),
            attempts: HashMap::new(),
            reload_at: Some(Instant::now()),
        };
        let shared = Arc::clone(&run.shared);
        if shared.engine.before().sole_user {
            // Before the first lease of our own: every lease there is belongs to a process that has ended.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = take_up_dead_leases(&shared) => {}
            }
        }
        while !shutdown.is_cancelled() {
            run.start_what_is_due();
            let next = run.next_at();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = run.tasks.join_next_with_id() => run.end(ended),
                () = shared.schedule.changed() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
        run.shut_down().await;
    }
}

impl Run {
    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        if self.shared.schedule.wants_reload() {
            self.reload_at.get_or_insert(now);
        }
        if self.reload_at.is_some_and(|at| at <= now) {
            self.reload_at = None;
            let shared = Arc::clone(&self.shared);
            self.tasks.spawn(async move { Finished::Reload(reload(&shared).await) });
        }
        while let Some((name, due)) = self.shared.schedule.take(now) {
            let (shared, owners) = (Arc::clone(&self.shared), Arc::clone(&self.owners));
            let attempt = Attempt::new(shared, owners, self.stop.clone(), name.clone());
            let taken = (name.clone(), due.clone());
            let task = self.tasks.spawn(async move { Finished::Attempt(name, attempt.run(due).await) });
            self.attempts.insert(task.id(), taken);
        }
    }

    /// What has no room waits for the end of a send.
    fn next_at(&self) -> Option<Instant> {
        [self.shared.schedule.next_at(), self.reload_at].into_iter().flatten().min()
    }

    fn end(&mut self, ended: Result<(Id, Finished), JoinError>) {
        match ended {
            Ok((id, Finished::Attempt(name, next))) => {
                self.attempts.remove(&id);
                self.shared.schedule.finish(&name, next);
            }
            Ok((_, Finished::Reload(Ok(())))) => {}
            Ok((_, Finished::Reload(Err(error)))) => {
                tracing::warn!(error = %error, "stored notices cannot be listed yet");
                self.reload_at = Some(Instant::now() + RELOAD_RETRY);
            }
            Err(error) => self.end_broken(&error),
        }
    }

    /// A violated invariant ended an attempt. Its lease, if it has one, is looked at like that of a dead process.
    fn end_broken(&mut self, error: &JoinError) {
        tracing::error!(panicked = error.is_panic(), "an attempt to send a notice broke");
        match self.attempts.remove(&error.id()) {
            Some((name, due)) => {
                let later = Due { at: Instant::now() + self.shared.times.lease, version: 0, ..due };
                self.shared.schedule.finish(&name, Some(later));
            }
            None => self.reload_at = Some(Instant::now() + RELOAD_RETRY),
        }
    }

    async fn shut_down(mut self) {
        self.stop.soft.cancel();
        if timeout(SHUTDOWN_SENDS, self.drain()).await.is_err() {
            self.stop.hard.cancel();
            // What is not written by then is found as a lease that ran out.
            let _: Result<(), _> = timeout(SHUTDOWN_WRITES, self.drain()).await;
        }
        self.tasks.shutdown().await;
    }

    async fn drain(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.end(ended);
        }
    }
}

/// Schedules every stored lease as run out, so that what a dead process was sending is repeated now and not a lease's
/// length later.
async fn take_up_dead_leases(shared: &Shared) {
    loop {
        match shared.list(None).await {
            Ok(found) => {
                for (name, version, notice) in found.filter(|(_, _, notice)| notice.is_leased()) {
                    let target = notice.target.as_str().into();
                    shared.schedule.put(name, Due { at: Instant::now(), version, target });
                }
                return;
            }
            Err(error) => {
                tracing::warn!(error = %error, "stored notices cannot be listed yet");
                tokio::time::sleep(RELOAD_RETRY).await;
            }
        }
    }
}

async fn reload(shared: &Shared) -> Result<(), EngineError> {
    for (name, version, notice) in shared.list(None).await? {
        shared.schedule(name, &notice, version);
    }
    Ok(())
}
