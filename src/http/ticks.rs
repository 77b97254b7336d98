//! One coarse clock for all connections: each says when it wants to look at the time, and is poked then or a little
//! later. So an idle connection has no timer of its own.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::hub::Signal;

/// How much later than asked for a connection may be poked.
pub const GRAIN: Duration = Duration::from_millis(50);

/// Cheap to clone.
#[derive(Clone)]
pub struct Ticks(Arc<Shared>);

struct Shared {
    begun: Instant,
    due: Mutex<Due>,
    /// Something is due earlier than what was waited for.
    earlier: Notify,
}

#[derive(Default)]
struct Due {
    /// By the number of the tick.
    ticks: BTreeMap<u64, Vec<Arc<Signal>>>,
    stopped: bool,
}

impl Ticks {
    /// Its task belongs to `tasks`. At `stopping` everybody is poked, and whoever comes later at once.
    pub fn begin(tasks: &TaskTracker, stopping: CancellationToken) -> Self {
        let shared = Arc::new(Shared { begun: Instant::now(), due: Mutex::default(), earlier: Notify::new() });
        let ticks = Self(Arc::clone(&shared));
        tasks.spawn(async move {
            loop {
                let next = shared.next();
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => return shared.stop(),
                    () = shared.earlier.notified() => {}
                    () = sleep_until(next.unwrap_or(shared.begun)), if next.is_some() => shared.poke_due(),
                }
            }
        });
        ticks
    }

    /// Pokes the signal once, not before `at`.
    pub fn poke_at(&self, at: Instant, signal: &Arc<Signal>) {
        let after = at.saturating_duration_since(self.0.begun);
        let tick = after.as_nanos().div_ceil(GRAIN.as_nanos()).try_into().unwrap_or(u64::MAX);
        let mut due = self.0.lock();
        if due.stopped {
            return signal.poke();
        }
        let is_first = due.ticks.first_key_value().is_none_or(|(first, _)| tick < *first);
        due.ticks.entry(tick).or_default().push(Arc::clone(signal));
        drop(due);
        if is_first {
            self.0.earlier.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Due> {
        self.due.lock().expect("no holder panics")
    }

    fn at(&self, tick: u64) -> Instant {
        let after = GRAIN.saturating_mul(u32::try_from(tick).unwrap_or(u32::MAX));
        self.begun + after
    }

    fn next(&self) -> Option<Instant> {
        self.lock().ticks.first_key_value().map(|(tick, _)| self.at(*tick))
    }

    fn poke_due(&self) {
        let now = Instant::now();
        loop {
            let mut due = self.lock();
            let Some(first) = due.ticks.first_entry().filter(|first| self.at(*first.key()) <= now) else { return };
            let signals = first.remove();
            drop(due);
            signals.iter().for_each(|signal| signal.poke());
        }
    }

    fn stop(&self) {
        let mut due = self.lock();
        due.stopped = true;
        let ticks = std::mem::take(&mut due.ticks);
        drop(due);
        ticks.into_values().flatten().for_each(|signal| signal.poke());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> (Ticks, TaskTracker, CancellationToken) {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        (Ticks::begin(&tasks, stopping.clone()), tasks, stopping)
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_poked_after_its_time_and_not_much_later() {
        let (ticks, ..) = begin();
        let begun = Instant::now();
        let wait = async |after: u64| {
            let (signal, at) = (Arc::<Signal>::default(), begun + Duration::from_millis(after));
            ticks.poke_at(at, &signal);
            signal.wait().await;
            let late = Instant::now().saturating_duration_since(at);
            assert!(Instant::now() >= at && late <= GRAIN + Duration::from_millis(1), "{after} ms: {late:?} late");
        };
        futures::join!(wait(10_000), wait(20), wait(0), wait(500), wait(501), wait(549));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_everybody_is_poked_and_who_comes_later_too() {
        let (ticks, tasks, stopping) = begin();
        let (early, late) = (Arc::<Signal>::default(), Arc::<Signal>::default());
        let far = Instant::now() + Duration::from_secs(3600);
        ticks.poke_at(far, &early);
        stopping.cancel();
        early.wait().await;
        ticks.poke_at(far, &late);
        late.wait().await;
        tasks.close();
        tasks.wait().await;
        assert!(Instant::now() < far);
    }
}
