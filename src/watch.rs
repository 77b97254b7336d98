//! Who is looking at a session: the one place that knows.
//!
//! A watcher is a subscription that is at once live (its own code answered within the window), attentive, and no
//! observer. Every subscription holds a [`Guard`]; however it ends, its end is reported exactly once. What is known is
//! in a [`Book`], to which time is an argument, so that a decision made from a [`Presence`] can be made again in a test
//! and in a model.
//!
//! What happens by the passing of time alone (a pong that never came, a lease that ran out) is found when somebody
//! looks; [`Presence::next_change`] says when to look again.

mod book;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use onlooker_protocol::{
    event::Epoch,
    view::{WatcherCounts, WatcherView},
};
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::book::Book;
use crate::ids::ConnectionId;

/// The windows that watching depends on.
#[derive(Clone, Copy, Debug)]
pub struct WatchTimes {
    /// How long after its last sign of life a subscription's code counts as alive.
    pub live_window: Duration,
    /// How long `active` holds unless renewed.
    pub attention_lease: Duration,
    /// How long after its response a poller still counts.
    pub poll_window: Duration,
    /// How long a departure can matter to a decision; older ones are forgotten.
    pub remember: Duration,
}

/// What a subscription says of its person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attentive {
    /// The client cannot say; it is attentive while it is live.
    CannotSay,
    /// It said `active`; this holds for the lease.
    Active,
    Idle,
}

/// What a subscription is called. Most are a connection's, and kept by the thousand.
#[derive(Clone, Debug)]
pub enum Subscriber {
    Connection(ConnectionId),
    Other(Box<str>),
}

impl From<ConnectionId> for Subscriber {
    fn from(id: ConnectionId) -> Self {
        Self::Connection(id)
    }
}

impl From<&str> for Subscriber {
    fn from(name: &str) -> Self {
        Self::Other(name.into())
    }
}

impl std::fmt::Display for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Connection(id) => id.fmt(f),
            Self::Other(name) => f.write_str(name),
        }
    }
}

/// A subscription as it begins.
#[derive(Clone, Debug)]
pub struct Newcomer {
    pub subscriber: Subscriber,
    pub who: Arc<str>,
    /// The surface: `websocket`, `socketio`, `sse`.
    pub via: &'static str,
    pub observer: bool,
    /// Its grant may answer, and its filter lets guardrails through.
    pub able: bool,
    /// Its filter lets results through.
    pub sees_results: bool,
    pub attentive: Attentive,
}

/// How a subscription ended. Only [`Leave::Abnormal`] leaves a grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// `unsubscribe`, close 1000, a Socket.IO disconnect packet, or the end of its session.
    Clean,
    Abnormal,
}

/// The watchers of one session. Cheap to clone.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

struct Shared {
    book: Mutex<Book>,
    changed: Notify,
}

/// A watcher that no longer is one. Of departures that differ in time and proof alone, only those that could still
/// matter are kept: a later one with at least the same proof replaces an earlier one, unless something was raised
/// between the two. Who left before a raising opens a grace for it that nobody who comes and goes later may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    pub at: Instant,
    pub leave: Leave,
    pub able: bool,
    pub proved: Option<u64>,
    /// It was the last able watcher that was there.
    pub last_able: bool,
    /// It was the last watcher that was there, able or not.
    pub last: bool,
}

/// A current watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watcher {
    pub able: bool,
    pub proved: Option<u64>,
}

/// Who looks at one instant, as reach-out needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub watchers: Vec<Watcher>,
    pub departures: Vec<Departure>,
    /// Every result up to here has reached somebody.
    pub results_proved: Option<u64>,
    /// Results that have reached somebody by themselves.
    pub results_read: Vec<u64>,
    /// When somebody stops counting unless they do something before.
    pub next_change: Option<Instant>,
}

impl Presence {
    /// Whether a current, able watcher has proof of what was raised at `offset`.
    pub fn covers(&self, offset: u64) -> bool {
        self.watchers.iter().any(|watcher| watcher.able && watcher.proved >= Some(offset))
    }

    /// Whether anybody has ever had the result at `offset`.
    pub fn has_had(&self, offset: u64) -> bool {
        self.results_proved >= Some(offset) || self.results_read.contains(&offset)
    }

    pub fn any_able(&self) -> bool {
        self.watchers.iter().any(|watcher| watcher.able)
    }
}

impl Watch {
    pub fn new(times: WatchTimes) -> Self {
        Self { shared: Arc::new(Shared { book: Mutex::new(Book::new(times)), changed: Notify::new() }) }
    }

    /// Begins a subscription. It is live from now on, until its window passes without a sign of life.
    pub fn enter(&self, newcomer: Newcomer, now: Instant) -> Guard {
        let id = self.book().enter(newcomer, now);
        self.tell(true);
        Guard { watch: self.clone(), id, leave: Leave::Abnormal }
    }

    /// Begins a poll that reads the session. The poller counts from now until its window after the response.
    ///
    /// `credential` names the poller: however many polls it has under way, it is one.
    pub fn poll(&self, credential: Arc<str>, who: &str, able: bool, now: Instant) -> PollGuard {
        self.book().poll(&credential, who, able, now);
        self.tell(true);
        PollGuard { watch: self.clone(), credential, able }
    }

    /// Who looks, now.
    pub fn presence(&self, now: Instant) -> Presence {
        self.book().presence(now)
    }

    pub fn counts(&self, now: Instant) -> WatcherCounts {
        self.book().counts(now)
    }

    /// Everybody who follows, and why each counts or does not.
    pub fn list(&self, epoch: Epoch, now: Instant) -> Vec<WatcherView> {
        self.book().list(epoch, now)
    }

    /// Takes note of who has lapsed by now, and says when the next one may.
    pub fn settle(&self, now: Instant) -> Option<Instant> {
        self.book().settle(now)
    }

    /// Resolves when something changed that may matter to a decision. One waiter: the session's owner.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// A question was raised, or a task ended: who left before this stays remembered as such.
    pub fn raised(&self, now: Instant) {
        self.book().raised(now);
    }

    /// Says which proofs matter: those at or above this offset.
    pub fn set_interest(&self, offset: Option<u64>) {
        self.book().set_interest(offset);
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().expect("no holder panics")
    }

    fn tell(&self, it_matters: bool) {
        if it_matters {
            self.shared.changed.notify_one();
        }
    }
}

/// One subscription's place among the watchers. Dropping it reports its end: as abnormal, unless
/// [`Guard::leave`] said otherwise.
pub struct Guard {
    watch: Watch,
    id: u64,
    leave: Leave,
}

impl Guard {
    /// A sign of life of the subscriber's own code.
    pub fn alive(&self, now: Instant) {
        let matters = self.watch.book().alive(self.id, now);
        self.watch.tell(matters);
    }

    /// The subscriber has demonstrably got everything up to `offset`.
    pub fn proved(&self, offset: u64, now: Instant) {
        let matters = self.watch.book().proved(self.id, offset, now);
        self.watch.tell(matters);
    }

    pub fn attention(&self, active: bool, now: Instant) {
        let matters = self.watch.book().attention(self.id, active, now);
        self.watch.tell(matters);
    }

    /// Ends it; the leave says whether a grace follows.
    pub fn leave(mut self, leave: Leave) {
        self.leave = leave;
    }

    /// Says how it will have ended when it is dropped.
    pub fn set_leave(&mut self, leave: Leave) {
        self.leave = leave;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let was_there = self.watch.book().leave(self.id, self.leave, Instant::now());
        self.watch.tell(was_there);
    }
}

/// One poll under way. Dropped unanswered, the poller counts no longer than if it had been answered.
pub struct PollGuard {
    watch: Watch,
    credential: Arc<str>,
    able: bool,
}

impl PollGuard {
    /// The response was written completely: proof of what it carried. `questions`: every question that was open at
    /// or before this offset; `results`: the newest result in it.
    pub fn written(&self, questions: Option<u64>, results: Option<u64>) {
        self.watch.book().polled(&self.credential, self.able, questions, results);
        self.watch.tell(true);
    }

    /// The response was written completely, and of all results it carried the one at this offset.
    pub fn written_result(&self, offset: u64) {
        self.watch.book().result_read(offset);
        self.watch.tell(true);
    }
}

impl Drop for PollGuard {
    fn drop(&mut self) {
        self.watch.book().poll_ended(&self.credential, Instant::now());
        self.watch.tell(true);
    }
}

#[cfg(test)]
mod tests;
