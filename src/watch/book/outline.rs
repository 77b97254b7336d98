//! What tells two books apart for whoever decides by them about a question, as seen at one time.

use std::hash::{Hash, Hasher};

use super::*;

/// How far back a time can matter to anybody, in seconds. What is further back looks the same.
const FAR: u64 = 3;

/// A time as it is seen from another one, in seconds.
fn seen(at: Instant, now: Instant) -> i64 {
    let far = |duration: std::time::Duration| duration.as_secs().min(FAR).cast_signed();
    if at >= now { far(at - now) } else { -far(now - at) }
}

impl Book {
    /// By instants of whole seconds. Names of subscribers do not count, the order in which they came does.
    pub(crate) fn outline(&self, now: Instant, hasher: &mut impl Hasher) {
        let mut ids: Vec<&u64> = self.entries.keys().collect();
        ids.sort();
        for entry in ids.into_iter().map(|id| &self.entries[id]) {
            let attention = match entry.attention {
                Attention::CannotSay => None,
                Attention::Until(until) => Some(seen(until, now)),
                Attention::Idle => Some(i64::MIN),
            };
            let until = entry.counted_until.map(|until| seen(until, now));
            (entry.newcomer.able, seen(entry.live_until, now), attention, entry.proved, until).hash(hasher);
        }
        for left in self.departures.all() {
            let abnormal = left.leave == Leave::Abnormal;
            (seen(left.at, now), abnormal, left.able, left.proved, left.last_able).hash(hasher);
        }
        self.departures.raised.map(|at| seen(at, now)).hash(hasher);
    }
}
