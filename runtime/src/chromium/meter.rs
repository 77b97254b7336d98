//! How long a task has worked: the time that it waits for people does not count.

use std::{
    convert::Infallible,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use onlooker_protocol::event::kind::USAGE;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::link::TaskLink;

/// Between two `usage` events of a task that works.
const USAGE_EVERY: Duration = Duration::from_secs(5);

pub(super) struct Meter(Mutex<Clock>);

struct Clock {
    counted: Duration,
    /// Waits that are under way.
    resting: u32,
    /// Since when time counts that `counted` does not have yet.
    since: Instant,
}

/// A wait for people; the meter stands still while it lives.
pub(super) struct Rest<'a>(&'a Meter);

impl Meter {
    pub(super) fn start() -> Self {
        Self(Mutex::new(Clock { counted: Duration::ZERO, resting: 0, since: Instant::now() }))
    }

    pub(super) fn rest(&self) -> Rest<'_> {
        let mut clock = self.clock();
        clock.counted = clock.worked();
        clock.resting += 1;
        Rest(self)
    }

    /// What the task has used so far. No model is asked, so that there are no tokens and no cost.
    pub(super) fn usage(&self) -> Value {
        let seconds = self.clock().worked().as_millis() as f64 / 1000.0;
        json!({"inputTokens": 0, "outputTokens": 0, "computeTime": seconds, "cost": 0})
    }

    /// Publishes what was used for as long as it is polled, and while that grows.
    pub(super) async fn run(&self, link: &impl TaskLink) -> Infallible {
        let mut said = self.usage();
        loop {
            sleep(USAGE_EVERY).await;
            let usage = self.usage();
            if usage != said {
                link.publish(USAGE, usage.clone()).await;
                said = usage;
            }
        }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    fn worked(&self) -> Duration {
        self.counted + if self.resting == 0 { self.since.elapsed() } else { Duration::ZERO }
    }
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let mut clock = self.0.clock();
        clock.resting -= 1;
        clock.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_people_does_not_count() {
        let meter = Meter::start();
        sleep(Duration::from_millis(1_500)).await;
        let (asked, held) = (meter.rest(), meter.rest());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(meter.usage()["computeTime"], 1.5);
        drop(asked);
        sleep(Duration::from_secs(60)).await;
        drop(held);
        sleep(Duration::from_millis(250)).await;
        assert_eq!(meter.usage()["computeTime"], 1.75);
    }
}
