//! How often the holder of a key may begin something: a sliding window of 60 s, as documented. Answers, interactions,
//! commands, polls and sockets are not counted: an answer lost to a limit is a question missed.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::{HeaderMap, HeaderName};
use onlooker_protocol::code::{Code, Refusal};
use tokio::time::Instant;

use super::problem::Problem;
use crate::auth::{CredentialId, Grant};

pub const WINDOW: Duration = Duration::from_secs(60);

/// When each counted caller last began something. Callers are keys and, for tokens, projects: as many as the
/// configuration names.
pub struct Rates {
    limit: usize,
    callers: Mutex<HashMap<String, VecDeque<Instant>>>,
}

/// Where a caller stands after its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    limit: usize,
    remaining: usize,
    /// Until the oldest counted request leaves the window.
    frees_in: Duration,
    exceeded: bool,
}

impl Rates {
    /// `limit` requests of one caller in any [`WINDOW`].
    pub fn new(limit: usize) -> Self {
        Self { limit, callers: Mutex::default() }
    }

    /// Counts a request, unless there are too many. `None` where nobody is counted: without keys.
    pub fn take(&self, grant: &Grant, now: Instant) -> Option<Rate> {
        let caller = match &grant.credential {
            CredentialId::Open => return None,
            // However many tokens somebody makes, they share one window.
            CredentialId::Token(_) => format!("tokens:{}", grant.project),
            other => other.to_string(),
        };
        let mut callers = self.callers.lock().expect("no holder panics");
        let began = callers.entry(caller).or_default();
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
        let mut grant = Grant::of_session(&"p".into(), "s");
        grant.credential = CredentialId::Key(id.into());
        grant
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
    fn each_key_has_its_own_window_and_tokens_of_a_project_share_one() {
        let (rates, now) = (Rates::new(1), Instant::now());
        let token = |id: &str| Grant { credential: CredentialId::Token(id.into()), ..key("") };
        for (grant, exceeded) in [(key("a"), false), (key("b"), false), (key("a"), true), (token("1"), false)] {
            assert_eq!(rates.take(&grant, now).unwrap().exceeded().is_some(), exceeded, "{:?}", grant.credential);
        }
        assert!(rates.take(&token("2"), now).unwrap().exceeded().is_some());
        let open = Grant { credential: CredentialId::Open, ..key("") };
        assert_eq!(rates.take(&open, now), None);
    }

    #[test]
    fn a_limit_of_none_refuses_and_says_when_to_come_back() {
        let rate = Rates::new(0).take(&key("a"), Instant::now()).unwrap();
        assert!(rate.exceeded().is_some());
        assert_eq!((rate.remaining, rate.frees_in), (0, WINDOW));
    }
}
