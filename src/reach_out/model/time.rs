//! Ticks as the times that production code takes.

use std::{sync::LazyLock, time::Duration};

use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{outbox::OutboxTimes, reach_out::Windows, watch::WatchTimes};

pub(super) const TICK: Duration = Duration::from_secs(1);
const TWO: Duration = Duration::from_secs(2);

pub(super) const WINDOWS: Windows = Windows { grace: TICK, first_look: TWO };
pub(super) const WATCH: WatchTimes =
    WatchTimes { live_window: TWO, attention_lease: TWO, poll_window: TICK, remember: TWO };
pub(super) const START_GRACE: u32 = 2;
pub(super) const CLAIM: Duration = TWO;
/// The length of a notice's lease. A notifier is cut off after half of it.
pub(super) const LEASE: u32 = 2;
pub(super) const STEP_AFTER: Duration = TWO;
/// The longest of the windows in which nobody is told.
pub(super) const LONGEST_WINDOW: u8 = 2;
/// How far back a time can matter.
pub(super) const FAR: u32 = 3;

pub(super) fn at(tick: u32) -> Instant {
    static BASE: LazyLock<Instant> = LazyLock::new(|| Instant::now() + Duration::from_secs(1000));
    *BASE + TICK * tick
}

pub(super) fn wall(tick: u32) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000) + TICK * tick
}

pub(super) fn ms(tick: u32) -> u64 {
    crate::clock::milliseconds(wall(tick))
}

/// How many ticks a wait takes.
pub(super) fn ticks(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(TICK.as_millis())).expect("a short wait")
}

/// A tick as seen from another one: how far ahead, or how far back as far as that matters.
pub(super) fn seen(tick: u32, now: u32) -> i64 {
    if tick >= now { i64::from(tick - now) } else { -i64::from((now - tick).min(FAR)) }
}

/// An instant as seen from a tick.
pub(super) fn seen_at(instant: Instant, now: u32) -> i64 {
    let now = at(now);
    if instant >= now {
        (instant - now).as_secs().cast_signed()
    } else {
        -((now - instant).as_secs().min(u64::from(FAR)).cast_signed())
    }
}

/// Only the length of its leases matters here.
pub(super) fn outbox_lease() -> Duration {
    let times = OutboxTimes { lease: TICK * LEASE, ..OutboxTimes::default() };
    times.lease
}
