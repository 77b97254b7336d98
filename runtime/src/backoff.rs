//! When to connect again: at once the first time, then after a random time below a growing bound (full jitter), so
//! that the peers of a restarted gateway do not return all together.

use std::time::Duration;

use onlooker_protocol::code::ComeBack;
use rand::RngExt;
use tokio::time::Instant;

const FIRST_BOUND: Duration = Duration::from_millis(250);
const LAST_BOUND: Duration = Duration::from_secs(30);
/// A connection that lived this long was a good one: the next loss begins from the first step again.
const GOOD_AFTER: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { failures: 0 }
    }

    /// The time to wait after a connection that began at `began` was lost. `advice` is that of its close code;
    /// `at_least` comes from the gateway's `goaway`.
    pub(crate) fn after_loss(&mut self, began: Instant, advice: ComeBack, at_least: Duration) -> Duration {
        if began.elapsed() >= GOOD_AFTER {
            self.failures = 0;
        }
        if advice != ComeBack::Now {
            self.failures = self.failures.max(1);
        }
        let bound = bound(self.failures);
        self.failures = self.failures.saturating_add(1);
        at_least + bound.mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}

/// The bound of the random wait after this many failures in a row: 0, 250 ms, 500 ms … 30 s.
fn bound(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => FIRST_BOUND.saturating_mul(1 << (n - 1).min(10)).min(LAST_BOUND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_is_immediate_and_the_bound_grows_to_thirty_seconds() {
        let bounds: Vec<_> = (0..12).map(|n| bound(n).as_millis()).collect();
        assert_eq!(bounds[..4], [0, 250, 500, 1000]);
        assert_eq!(bounds[11], 30_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_lived_long_starts_over_and_a_short_one_does_not() {
        let mut backoff = Backoff::new();
        let began = Instant::now();
        assert_eq!(backoff.after_loss(began, ComeBack::Now, Duration::ZERO), Duration::ZERO);
        assert_eq!(backoff.failures, 1);
        backoff.after_loss(began, ComeBack::Now, Duration::ZERO);
        assert_eq!(backoff.failures, 2);
        tokio::time::advance(GOOD_AFTER).await;
        assert_eq!(backoff.after_loss(began, ComeBack::Now, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn the_gateways_own_delay_comes_on_top() {
        let delay = Backoff::new().after_loss(Instant::now(), ComeBack::Now, Duration::from_secs(3));
        assert_eq!(delay, Duration::from_secs(3));
    }
}
