//! Who is looking at a session: the one place that knows.
//!
//! A watcher is a subscription that is at once live (its own code answered within the window), attentive, and no
//! observer. Every subscription holds a [`Guard`]; however it ends, its end is reported exactly once. Time is always
//! an argument, so that a decision made from a [`Presence`] can be made again in a test.
//!
//! What happens by the passing of time alone (a pong that never came, a lease that ran out) is found when somebody
//! looks; [`Presence::next_change`] says when to look again.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use onlooker_protocol::{
    event::{Epoch, Position},
    view::{WatcherCounts, WatcherView},
};
use tokio::{sync::Notify, time::Instant};

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

/// A subscription as it begins.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// The connection's id, as people see it.
    pub subscriber: String,
    pub who: String,
    /// The surface: `websocket`, `socketio`, `sse`.
    pub via: &'static str,
    pub observer: bool,
    /// Its grant may answer, and its filter lets guardrails through.
    pub able: bool,
    /// Its filter lets results through.
    pub sees_results: bool,
    pub attentive: Attentive,
}

/// Results of one session that are remembered as read one by one: as many as somebody may still have to see.
const RESULTS_READ: usize = 32;

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
    times: WatchTimes,
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Default)]
struct Book {
    next_id: u64,
    entries: HashMap<u64, Entry>,
    /// By credential: one poller however often it polls.
    pollers: HashMap<Arc<str>, Poller>,
    departures: Vec<Departure>,
    /// When a question was last raised, or a task last ended.
    raised: Option<Instant>,
    /// The newest offset that any watcher has proved while it counted and could see results.
    results_proved: Option<u64>,
    /// Results that were read one by one, the newest last: who has read a later one need not have read an earlier one.
    results_read: VecDeque<u64>,
    /// Proofs at or above this offset are worth telling the owner about.
    interest: Option<u64>,
    /// Nobody lapses before this: with ten thousand watchers, not every pong may look at every watcher.
    horizon: Option<Instant>,
}

struct Entry {
    newcomer: Newcomer,
    live_until: Instant,
    attention: Attention,
    proved: Option<u64>,
    /// Whether it counted when last looked at: its lapse is reported once.
    counted: bool,
}

#[derive(Clone, Copy)]
enum Attention {
    CannotSay,
    Until(Instant),
    Idle,
}

struct Poller {
    who: String,
    able: bool,
    in_flight: u32,
    until: Instant,
    proved: Option<u64>,
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
        Self { shared: Arc::new(Shared { times, book: Mutex::default(), changed: Notify::new() }) }
    }

    /// Begins a subscription. It is live from now on, until its window passes without a sign of life.
    pub fn enter(&self, newcomer: Newcomer, now: Instant) -> Guard {
        let times = self.shared.times;
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        let attention = match newcomer.attentive {
            Attentive::CannotSay => Attention::CannotSay,
            Attentive::Active => Attention::Until(now + times.attention_lease),
            Attentive::Idle => Attention::Idle,
        };
        let mut entry =
            Entry { newcomer, live_until: now + times.live_window, attention, proved: None, counted: false };
        entry.counted = entry.counts(now);
        book.expect_lapse(entry.counts_until());
        let id = book.next_id;
        book.next_id += 1;
        book.entries.insert(id, entry);
        drop(book);
        self.shared.changed.notify_one();
        Guard { watch: self.clone(), id, leave: Leave::Abnormal }
    }

    /// Begins a poll that reads the session. The poller counts from now until its window after the response.
    ///
    /// `credential` names the poller: however many polls it has under way, it is one.
    pub fn poll(&self, credential: Arc<str>, who: &str, able: bool, now: Instant) -> PollGuard {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        let poller = book.pollers.entry(Arc::clone(&credential)).or_insert_with(|| Poller {
            who: who.to_owned(),
            able,
            in_flight: 0,
            until: now,
            proved: None,
        });
        poller.in_flight += 1;
        poller.able = able;
        drop(book);
        self.shared.changed.notify_one();
        PollGuard { watch: self.clone(), credential, able }
    }

    /// Who looks, now.
    pub fn presence(&self, now: Instant) -> Presence {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        book.presence(now)
    }

    pub fn counts(&self, now: Instant) -> WatcherCounts {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        let watchers = book.watchers(now);
        let watching = watchers.clone().count();
        let able = watchers.filter(|watcher| watcher.able).count();
        WatcherCounts {
            watching: watching as u32,
            able: able as u32,
            following: (book.entries.len() + book.pollers.len()) as u32,
        }
    }

    /// Everybody who follows, and why each counts or does not.
    pub fn list(&self, epoch: Epoch, now: Instant) -> Vec<WatcherView> {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        let position = |proved: Option<u64>| proved.map(|offset| Position { epoch, offset });
        let mut views: Vec<WatcherView> = book
            .entries
            .values()
            .map(|entry| WatcherView {
                subscriber: entry.newcomer.subscriber.clone(),
                who: entry.newcomer.who.clone(),
                via: entry.newcomer.via.to_owned(),
                counts: entry.counts(now),
                able: entry.newcomer.able,
                why: entry.why(now).to_owned(),
                proved: position(entry.proved),
            })
            .collect();
        views.extend(book.pollers.iter().map(|(credential, poller)| WatcherView {
            subscriber: credential.to_string(),
            who: poller.who.clone(),
            via: "poll".to_owned(),
            counts: true,
            able: poller.able,
            why: "it read the session within the poll window".to_owned(),
            proved: position(poller.proved),
        }));
        views.sort_by(|a, b| a.subscriber.cmp(&b.subscriber));
        views
    }

    /// Takes note of who has lapsed by now, and says when the next one may.
    pub fn settle(&self, now: Instant) -> Option<Instant> {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        book.horizon
    }

    /// Resolves when something changed that may matter to a decision. One waiter: the session's owner.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// A question was raised, or a task ended: who left before this stays remembered as such.
    pub fn raised(&self, now: Instant) {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        book.raised = book.raised.max(Some(now));
    }

    /// Says which proofs matter: those at or above this offset.
    pub fn set_interest(&self, offset: Option<u64>) {
        self.lock().interest = offset;
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.shared.book.lock().expect("no holder panics")
    }

    /// Changes one entry, and tells the owner if that may matter.
    fn change(&self, id: u64, now: Instant, change: impl FnOnce(&mut Entry, WatchTimes)) {
        let mut book = self.lock();
        book.settle(now, self.shared.times);
        let interest = book.interest;
        let Some(entry) = book.entries.get_mut(&id) else { return };
        let before = (entry.counted, entry.proved);
        change(entry, self.shared.times);
        let counts = entry.counts(now);
        let after = (counts, entry.proved);
        let left = before.0 && !counts;
        entry.counted = counts;
        let until = entry.counts_until();
        let proof_matters = before.1 != after.1 && interest.is_some_and(|interest| after.1 >= Some(interest));
        let sees_results = entry.newcomer.sees_results;
        let able = entry.newcomer.able;
        if left {
            book.depart(now, Leave::Abnormal, able, after.1, self.shared.times);
        }
        book.expect_lapse(until);
        if counts && sees_results {
            book.results_proved = book.results_proved.max(after.1);
        }
        drop(book);
        if before.0 != counts || proof_matters {
            self.shared.changed.notify_one();
        }
    }
}

impl Entry {
    fn counts(&self, now: Instant) -> bool {
        !self.newcomer.observer && self.counts_until().is_some_and(|until| now < until)
    }

    /// When it stops counting unless it gives a sign of life; `None` for one that cannot count.
    fn counts_until(&self) -> Option<Instant> {
        match self.attention {
            _ if self.newcomer.observer => None,
            Attention::Idle => None,
            Attention::CannotSay => Some(self.live_until),
            Attention::Until(until) => Some(until.min(self.live_until)),
        }
    }

    fn why(&self, now: Instant) -> &'static str {
        if self.newcomer.observer {
            return "it is an observer";
        }
        if now >= self.live_until {
            return "its own code has not answered a ping within the window";
        }
        match self.attention {
            Attention::Idle => "it says that nobody is looking, or has not said that somebody is",
            Attention::Until(until) if now >= until => "its word that somebody is looking has run out",
            Attention::Until(_) => "its code answers, and it says that somebody is looking",
            Attention::CannotSay => "its code answers",
        }
    }
}

impl Poller {
    fn counts(&self, now: Instant) -> bool {
        self.in_flight > 0 || now < self.until
    }
}

impl Book {
    fn watchers(&self, now: Instant) -> impl Iterator<Item = Watcher> + Clone {
        let entries = self.entries.values().filter(move |entry| entry.counts(now));
        let pollers = self.pollers.values().filter(move |poller| poller.counts(now));
        entries
            .map(|entry| Watcher { able: entry.newcomer.able, proved: entry.proved })
            .chain(pollers.map(|poller| Watcher { able: poller.able, proved: poller.proved }))
    }

    /// Two watchers stand for all of them: of those who may answer, and of those who may not, the best proof counts.
    fn presence(&self, now: Instant) -> Presence {
        let best = |able: bool| {
            let proofs = self.watchers(now).filter(|watcher| watcher.able == able).map(|watcher| watcher.proved);
            proofs.max().map(|proved| Watcher { able, proved })
        };
        let lapses = self.entries.values().filter(|entry| entry.counts(now)).filter_map(Entry::counts_until);
        let windows = self.pollers.values().filter(|poller| poller.in_flight == 0).map(|poller| poller.until);
        Presence {
            watchers: [best(true), best(false)].into_iter().flatten().collect(),
            departures: self.departures.clone(),
            results_proved: self.results_proved,
            results_read: self.results_read.iter().copied().collect(),
            next_change: lapses.chain(windows).min(),
        }
    }

    /// Records what has happened by the passing of time alone, in the order in which it happened.
    fn settle(&mut self, now: Instant, times: WatchTimes) {
        if self.horizon.is_none_or(|horizon| now < horizon) {
            return;
        }
        self.settle_lapses(now, times);
        let lapses = self.entries.values().filter(|entry| entry.counted).filter_map(Entry::counts_until);
        let windows = self.pollers.values().filter(|poller| poller.in_flight == 0).map(|poller| poller.until);
        self.horizon = lapses.chain(windows).min();
    }

    fn settle_lapses(&mut self, now: Instant, times: WatchTimes) {
        loop {
            let lapsed = self
                .entries
                .iter()
                .filter(|(_, entry)| entry.counted && !entry.counts(now))
                .filter_map(|(id, entry)| entry.counts_until().map(|until| (until, *id)))
                .min();
            let expired = self
                .pollers
                .iter()
                .filter(|(_, poller)| !poller.counts(now))
                .map(|(credential, poller)| (poller.until, Arc::clone(credential)))
                .min();
            match (lapsed, expired) {
                (Some((at, id)), other) if other.as_ref().is_none_or(|(until, _)| at <= *until) => {
                    let entry = self.entries.get_mut(&id).expect("just found");
                    entry.counted = false;
                    let (able, proved) = (entry.newcomer.able, entry.proved);
                    self.depart(at, Leave::Abnormal, able, proved, times);
                }
                (_, Some((at, credential))) => {
                    let poller = self.pollers.remove(&credential).expect("just found");
                    self.depart(at, Leave::Clean, poller.able, poller.proved, times);
                }
                (Some(_), None) | (None, None) => return,
            }
        }
    }

    /// Remembers that a watcher stopped being one. It is no longer counted when this is called.
    fn depart(&mut self, at: Instant, leave: Leave, able: bool, proved: Option<u64>, times: WatchTimes) {
        let others = self.entries.values().any(|entry| entry.counted && entry.newcomer.able)
            || self.pollers.values().any(|poller| poller.able);
        let departure = Departure { at, leave, able, proved, last_able: able && !others };
        let raised = self.raised;
        let raised_between = |old: &Departure| raised.is_some_and(|raised| old.at <= raised && raised < at);
        self.departures.retain(|old| {
            let replaced = departure.replaces(old) && !raised_between(old);
            !replaced && at < old.at + times.remember
        });
        self.departures.push(departure);
    }

    /// Somebody may lapse at this time, and not before what was expected so far.
    fn expect_lapse(&mut self, until: Option<Instant>) {
        self.horizon = self.horizon.into_iter().chain(until).min();
    }
}

impl Departure {
    fn replaces(&self, old: &Self) -> bool {
        let same_nature = self.leave == old.leave && self.able == old.able && self.last_able == old.last_able;
        same_nature && self.at >= old.at && self.proved >= old.proved
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
        self.watch.change(self.id, now, |entry, times| entry.live_until = now + times.live_window);
    }

    /// The subscriber has demonstrably got everything up to `offset`.
    pub fn proved(&self, offset: u64, now: Instant) {
        self.watch.change(self.id, now, |entry, times| {
            entry.live_until = now + times.live_window;
            entry.proved = entry.proved.max(Some(offset));
        });
    }

    pub fn attention(&self, active: bool, now: Instant) {
        self.watch.change(self.id, now, |entry, times| {
            entry.attention = if active { Attention::Until(now + times.attention_lease) } else { Attention::Idle };
        });
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
        let now = Instant::now();
        let times = self.watch.shared.times;
        let mut book = self.watch.lock();
        book.settle(now, times);
        let Some(entry) = book.entries.remove(&self.id) else { return };
        if entry.counted {
            book.depart(now, self.leave, entry.newcomer.able, entry.proved, times);
        }
        drop(book);
        self.watch.shared.changed.notify_one();
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
        let mut book = self.watch.lock();
        let able = self.able;
        if let Some(poller) = book.pollers.get_mut(&self.credential) {
            poller.able = able;
            poller.proved = poller.proved.max(questions);
        }
        book.results_proved = book.results_proved.max(results);
        drop(book);
        self.watch.shared.changed.notify_one();
    }

    /// The response was written completely, and of all results it carried the one at this offset.
    pub fn written_result(&self, offset: u64) {
        let mut book = self.watch.lock();
        if !book.results_read.contains(&offset) {
            if book.results_read.len() == RESULTS_READ {
                book.results_read.pop_front();
            }
            book.results_read.push_back(offset);
        }
        drop(book);
        self.watch.shared.changed.notify_one();
    }
}

impl Drop for PollGuard {
    fn drop(&mut self) {
        let now = Instant::now();
        let window = self.watch.shared.times.poll_window;
        let mut book = self.watch.lock();
        if let Some(poller) = book.pollers.get_mut(&self.credential) {
            poller.in_flight -= 1;
            poller.until = now + window;
        }
        book.expect_lapse(Some(now + window));
        drop(book);
        self.watch.shared.changed.notify_one();
    }
}

#[cfg(test)]
mod tests;
