//! How often the holder of a key may begin something: a sliding window of 60 s, as documented. Answers, interactions,
//! commands, polls and sockets are not counted: an answer lost to a limit is a question missed.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName};
use onlooker_protocol::code::{Code, Refusal};
use tokio::time::Instant;

use super::problem::Problem;
use crate::auth::Grant;

pub const WINDOW: Duration = Duration::from_secs(60);

/// When something was last begun with each key: with itself and with the tokens that it issued, however many. There are
/// as many as the configuration names.
pub struct Rates {
    limit: usize,
    keys: Mutex<HashMap<Arc<str>, VecDeque<Instant>>>,
}

/// Where the holder of a key stands after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    limit: usize,
    remaining: usize,
    /// Until the oldest counted request leaves the window.
    frees_in: Duration,
    exceeded: bool,
}

impl Rates {
    /// `limit` requests with one key in any [`WINDOW`].
    pub fn new(limit: usize) -> Self {
        Self { limit, keys: Mutex::default() }
    }

    /// Counts a request, unless there are too many. `None` where nobody is counted: without keys.
    pub fn take(&self, grant: &Grant, now: Instant) -> Option<Rate> {
        let key = grant.key.as_ref()?;
        let mut keys = self.keys.lock().expect("no holder panics");
        let began = keys.entry(Arc::clone(key)).or_default();
        began.retain(|at| now < *at + WINDOW);
        let exceeded = began.len() >= self.limit;
        if !exceeded {
            began.push_back(now);
        }
        let frees_in = began.front().map_or(WINDOW, |oldest| *oldest + WINDOW - now);
        Some(Rate { limit: self.limit, remaining: self.limit - began.len(), frees_in, exceeded })
    }
}

impl Rate {
    /// 429, if there were too many.
    pub fn exceeded(self) -> Option<Problem> {
        let milliseconds = self.frees_in.as_millis() as u64;
        let refusal = Refusal::plain(Code::RateLimited).with_retry_after(milliseconds.max(1));
        self.exceeded.then(|| refusal.into())
    }

    /// The documented headers. The reset is a time in seconds since 1970.
    pub fn tell(self, headers: &mut HeaderMap) {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let reset = (since_1970 + self.frees_in).as_secs_f64().ceil() as u64;
        for (name, number) in [
            ("x-ratelimit-limit", self.limit as u64),
            ("x-ratelimit-remaining", self.remaining as u64),
            ("x-ratelimit-reset", reset),
        ] {
            headers.insert(HeaderName::from_static(name), number.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Grant {
        Grant { key: Some(id.into()), ..Grant::of_session(&"p".into(), "s") }
    }

    #[test]
    fn the_window_slides() {
        let (rates, start) = (Rates::new(2), Instant::now());
        let at = |seconds| rates.take(&key("a"), start + Duration::from_secs(seconds)).unwrap();
        assert_eq!((at(0).remaining, at(30).remaining), (1, 0));
        let refused = at(59);
        assert!(refused.exceeded().is_some());
        assert_eq!(refused.frees_in, Duration::from_secs(1));
        assert!(at(60).exceeded().is_none(), "the first one has left the window");
        assert!(at(61).exceeded().is_some(), "the second one has not, and a refused one does not count");
        assert!(at(90).exceeded().is_none());
    }

    #[test]
    fn each_key_has_its_own_window() {
        let (rates, now) = (Rates::new(1), Instant::now());
        for (id, exceeded) in [("a", false), ("b", false), ("a", true)] {
            assert_eq!(rates.take(&key(id), now).unwrap().exceeded().is_some(), exceeded, "{id}");
        }
        assert_eq!(rates.take(&Grant { key: None, ..key("") }, now), None);
    }

    #[test]
    fn a_limit_of_none_refuses_and_says_when_to_come_back() {
        let rate = Rates::new(0).take(&key("a"), Instant::now()).unwrap();
        assert!(rate.exceeded().is_some());
        assert_eq!((rate.remaining, rate.frees_in), (0, WINDOW));
    }
}
