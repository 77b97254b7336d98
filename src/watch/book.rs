//! Who is looking at one session, as a value: time is an argument, nothing waits, nothing is told.
//!
//! An edge (somebody comes, goes, answers, proves) costs O(log n) in those who follow: who stops counting when is kept
//! in order, and so are the proofs of those who count. What the passing of time alone has done is found by
//! [`Book::settle`], which every question and every edge asks first; it takes each lapse once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use onlooker_protocol::{
    event::{Epoch, Position},
    view::{WatcherCounts, WatcherView},
};
use tokio::time::Instant;

use super::{Attentive, Departure, Leave, Newcomer, Presence, WatchTimes, Watcher};

/// Results of one session that are remembered as read one by one: as many as somebody may still have to see.
pub(super) const RESULTS_READ: usize = 32;
/// Departures of one nature that are remembered. Above it the oldest is forgotten: a grace may then end early.
const DEPARTURES: usize = 64;

/// The watchers of one session.
#[derive(Clone)]
pub(crate) struct Book {
    times: WatchTimes,
    next_id: u64,
    /// Boxed: a map has room for more than there are.
    entries: HashMap<u64, Box<Entry>>,
    /// By credential: one poller however often it polls. Each of them counts.
    pollers: HashMap<Arc<str>, Poller>,
    /// Who counts and when that ends, unless they do something before. A poll under way has no end.
    lapses: BTreeSet<(Instant, Who)>,
    /// The proofs of those who count: of those who may answer, and of those who may not.
    able: Proofs,
    others: Proofs,
    departures: Departures,
    /// The newest offset that any watcher has proved while it counted and could see results.
    results_proved: Option<u64>,
    /// Results that were read one by one, the newest last: who has read a later one need not have read an earlier one.
    results_read: VecDeque<u64>,
    /// Proofs at or above this offset are worth telling the owner about.
    interest: Option<u64>,
}

/// At one instant subscriptions lapse before pollers, each in their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Entry(u64),
    Poller(Arc<str>),
}

#[derive(Clone)]
struct Entry {
    newcomer: Newcomer,
    live_until: Instant,
    attention: Attention,
    proved: Option<u64>,
    /// Until when it counts; `None`: it does not.
    counted_until: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Attention {
    CannotSay,
    Until(Instant),
    Idle,
}

#[derive(Clone)]
struct Poller {
    who: String,
    able: bool,
    in_flight: u32,
    until: Instant,
    proved: Option<u64>,
}

/// A multiset of proofs.
#[derive(Clone, Default)]
struct Proofs {
    by_offset: BTreeMap<Option<u64>, u32>,
    total: u32,
}

impl Proofs {
    fn add(&mut self, proved: Option<u64>) {
        *self.by_offset.entry(proved).or_default() += 1;
        self.total += 1;
    }

    fn remove(&mut self, proved: Option<u64>) {
        if let Some(count) = self.by_offset.get_mut(&proved) {
            *count -= 1;
            self.total -= 1;
            if *count == 0 {
                self.by_offset.remove(&proved);
            }
        }
    }

    fn best(&self) -> Option<Option<u64>> {
        self.by_offset.last_key_value().map(|(proved, _)| *proved)
    }
}

impl Book {
    pub(crate) fn new(times: WatchTimes) -> Self {
        Self {
            times,
            next_id: 0,
            entries: HashMap::new(),
            pollers: HashMap::new(),
            lapses: BTreeSet::new(),
            able: Proofs::default(),
            others: Proofs::default(),
            departures: Departures::default(),
            results_proved: None,
            results_read: VecDeque::new(),
            interest: None,
        }
    }

    /// Begins a subscription, and names it.
    pub(crate) fn enter(&mut self, newcomer: Newcomer, now: Instant) -> u64 {
        self.settle(now);
        let attention = match newcomer.attentive {
            Attentive::CannotSay => Attention::CannotSay,
            Attentive::Active => Attention::Until(now + self.times.attention_lease),
            Attentive::Idle => Attention::Idle,
        };
        let live_until = now + self.times.live_window;
        let mut entry = Box::new(Entry { newcomer, live_until, attention, proved: None, counted_until: None });
        entry.counted_until = entry.counts_until(now);
        let id = self.next_id;
        self.next_id += 1;
        self.count(id, &entry);
        self.entries.insert(id, entry);
        id
    }

    /// A sign of life of the subscriber's own code. Returns whether the owner wants to know.
    pub(crate) fn alive(&mut self, id: u64, now: Instant) -> bool {
        self.change(id, now, |entry, times| entry.live_until = now + times.live_window)
    }

    /// The subscriber has demonstrably got everything up to `offset`. Returns whether the owner wants to know.
    pub(crate) fn proved(&mut self, id: u64, offset: u64, now: Instant) -> bool {
        self.change(id, now, |entry, times| {
            entry.live_until = now + times.live_window;
            entry.proved = entry.proved.max(Some(offset));
        })
    }

    /// Returns whether the owner wants to know.
    pub(crate) fn attention(&mut self, id: u64, active: bool, now: Instant) -> bool {
        self.change(id, now, |entry, times| {
            entry.attention = if active { Attention::Until(now + times.attention_lease) } else { Attention::Idle };
        })
    }

    /// Ends a subscription. `false`: there was none.
    pub(crate) fn leave(&mut self, id: u64, leave: Leave, now: Instant) -> bool {
        self.settle(now);
        let Some(entry) = self.entries.remove(&id) else { return false };
        if self.uncount(id, &entry) {
            self.depart(now, leave, entry.newcomer.able, entry.proved);
        }
        true
    }

    /// Changes one entry. Returns whether the owner wants to know.
    fn change(&mut self, id: u64, now: Instant, change: impl FnOnce(&mut Entry, WatchTimes)) -> bool {
        self.settle(now);
        let Some(mut entry) = self.entries.remove(&id) else { return false };
        let counted = self.uncount(id, &entry);
        let proved_before = entry.proved;
        change(&mut entry, self.times);
        entry.counted_until = entry.counts_until(now);
        self.count(id, &entry);
        let counts = entry.counted_until.is_some();
        let (able, proved) = (entry.newcomer.able, entry.proved);
        if counted && !counts {
            self.depart(now, Leave::Abnormal, able, proved);
        }
        if counts && entry.newcomer.sees_results {
            self.results_proved = self.results_proved.max(proved);
        }
        self.entries.insert(id, entry);
        let proof_matters = proved_before != proved && self.interest.is_some_and(|interest| proved >= Some(interest));
        counted != counts || proof_matters
    }

    fn proofs(&mut self, able: bool) -> &mut Proofs {
        if able { &mut self.able } else { &mut self.others }
    }

    fn count(&mut self, id: u64, entry: &Entry) {
        if let Some(until) = entry.counted_until {
            self.lapses.insert((until, Who::Entry(id)));
            self.proofs(entry.newcomer.able).add(entry.proved);
        }
    }

    /// Returns whether it counted.
    fn uncount(&mut self, id: u64, entry: &Entry) -> bool {
        let Some(until) = entry.counted_until else { return false };
        self.lapses.remove(&(until, Who::Entry(id)));
        self.proofs(entry.newcomer.able).remove(entry.proved);
        true
    }

    /// Begins a poll that reads the session.
    pub(crate) fn poll(&mut self, credential: &Arc<str>, who: &str, able: bool, now: Instant) {
        self.settle(now);
        if !self.pollers.contains_key(credential) {
            let poller = Poller { who: who.to_owned(), able, in_flight: 0, until: now, proved: None };
            self.pollers.insert(Arc::clone(credential), poller);
            self.proofs(able).add(None);
        }
        self.change_poller(credential, |poller| {
            poller.in_flight += 1;
            poller.able = able;
        });
    }

    /// A response of this poller was written completely.
    pub(crate) fn polled(&mut self, credential: &Arc<str>, able: bool, questions: Option<u64>, results: Option<u64>) {
        self.change_poller(credential, |poller| {
            poller.able = able;
            poller.proved = poller.proved.max(questions);
        });
        self.results_proved = self.results_proved.max(results);
    }

    /// Somebody has had the result at this offset, and not necessarily those before it.
    pub(crate) fn result_read(&mut self, offset: u64) {
        if !self.results_read.contains(&offset) {
            if self.results_read.len() == RESULTS_READ {
                self.results_read.pop_front();
            }
            self.results_read.push_back(offset);
        }
    }

    /// One poll of this poller is over.
    pub(crate) fn poll_ended(&mut self, credential: &Arc<str>, now: Instant) {
        let until = now + self.times.poll_window;
        self.change_poller(credential, |poller| {
            poller.in_flight -= 1;
            poller.until = until;
        });
    }

    fn change_poller(&mut self, credential: &Arc<str>, change: impl FnOnce(&mut Poller)) {
        let Some(poller) = self.pollers.get_mut(credential) else { return };
        let before = (poller.able, poller.proved, poller.ends_at());
        change(poller);
        let after = (poller.able, poller.proved, poller.ends_at());
        self.proofs(before.0).remove(before.1);
        self.proofs(after.0).add(after.1);
        let lapse = |at| (at, Who::Poller(Arc::clone(credential)));
        if let Some(at) = before.2 {
            self.lapses.remove(&lapse(at));
        }
        self.lapses.extend(after.2.map(lapse));
    }

    /// A question was raised, or a task ended: who left before this stays remembered as such.
    pub(crate) fn raised(&mut self, now: Instant) {
        self.settle(now);
        self.departures.raised = self.departures.raised.max(Some(now));
    }

    /// Says which proofs matter: those at or above this offset.
    pub(crate) fn set_interest(&mut self, offset: Option<u64>) {
        self.interest = offset;
    }

    /// Two watchers stand for all of them: of those who may answer, and of those who may not, the best proof counts.
    pub(crate) fn presence(&mut self, now: Instant) -> Presence {
        self.settle(now);
        let best = |able, proofs: &Proofs| proofs.best().map(|proved| Watcher { able, proved });
        Presence {
            watchers: [best(true, &self.able), best(false, &self.others)].into_iter().flatten().collect(),
            departures: self.departures.all(),
            results_proved: self.results_proved,
            results_read: self.results_read.iter().copied().collect(),
            next_change: self.next_lapse(),
        }
    }

    pub(crate) fn counts(&mut self, now: Instant) -> WatcherCounts {
        self.settle(now);
        WatcherCounts {
            watching: self.able.total + self.others.total,
            able: self.able.total,
            following: (self.entries.len() + self.pollers.len()) as u32,
        }
    }

    /// Everybody who follows, and why each counts or does not.
    pub(crate) fn list(&mut self, epoch: Epoch, now: Instant) -> Vec<WatcherView> {
        self.settle(now);
        let position = |proved: Option<u64>| proved.map(|offset| Position { epoch, offset });
        let mut views: Vec<WatcherView> = self
            .entries
            .values()
            .map(|entry| WatcherView {
                subscriber: entry.newcomer.subscriber.to_string(),
                who: entry.newcomer.who.to_string(),
                via: entry.newcomer.via.to_owned(),
                counts: entry.counted_until.is_some(),
                able: entry.newcomer.able,
                why: entry.why(now).to_owned(),
                proved: position(entry.proved),
            })
            .collect();
        views.extend(self.pollers.iter().map(|(credential, poller)| WatcherView {
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

    /// Records what has happened by the passing of time alone, in the order in which it happened, and says when the
    /// next such thing may.
    pub(crate) fn settle(&mut self, now: Instant) -> Option<Instant> {
        while self.next_lapse().is_some_and(|at| at <= now)
            && let Some((at, who)) = self.lapses.pop_first()
        {
            match who {
                Who::Entry(id) => {
                    let Some(mut entry) = self.entries.remove(&id) else { continue };
                    self.uncount(id, &entry);
                    entry.counted_until = None;
                    let (able, proved) = (entry.newcomer.able, entry.proved);
                    self.entries.insert(id, entry);
                    self.depart(at, Leave::Abnormal, able, proved);
                }
                Who::Poller(credential) => {
                    let Some(poller) = self.pollers.remove(&credential) else { continue };
                    self.proofs(poller.able).remove(poller.proved);
                    self.depart(at, Leave::Clean, poller.able, poller.proved);
                }
            }
        }
        self.next_lapse()
    }

    fn next_lapse(&self) -> Option<Instant> {
        self.lapses.first().map(|(at, _)| *at)
    }

    /// Remembers that a watcher stopped being one. It is no longer counted when this is called.
    fn depart(&mut self, at: Instant, leave: Leave, able: bool, proved: Option<u64>) {
        let last_able = able && self.able.total == 0;
        let last = self.able.total == 0 && self.others.total == 0;
        self.departures.add(Departure { at, leave, able, proved, last_able, last }, self.times.remember);
    }
}

impl Entry {
    /// Until when it counts, unless it gives a sign of life; `None` for one that does not count at `now`.
    fn counts_until(&self, now: Instant) -> Option<Instant> {
        let until = match self.attention {
            _ if self.newcomer.observer => None,
            Attention::Idle => None,
            Attention::CannotSay => Some(self.live_until),
            Attention::Until(until) => Some(until.min(self.live_until)),
        };
        until.filter(|until| now < *until)
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
    /// When it stops counting; a poll under way has no end.
    fn ends_at(&self) -> Option<Instant> {
        (self.in_flight == 0).then_some(self.until)
    }
}

/// What tells departures apart for a decision, beside time and proof: abnormal, able, the last able one, the last one.
type Nature = (bool, bool, bool, bool);

/// Those who left, as far as that can still matter: of the same nature, a later one with at least the same proof
/// replaces an earlier one, unless something was raised between the two, or at the instant of either: only the last
/// raising is remembered, and what was raised before it may still need the earlier one.
///
/// So in each nature's queue proofs only fall, between two raisings, and what is replaced is always at its end.
#[derive(Clone, Default)]
struct Departures {
    /// With their numbers in the order in which they left, which at one instant times do not tell.
    by_nature: BTreeMap<Nature, VecDeque<(u64, Departure)>>,
    next: u64,
    /// When a question was last raised, or a task last ended.
    raised: Option<Instant>,
}

impl Departures {
    fn add(&mut self, departure: Departure, remember: std::time::Duration) {
        let raised_between =
            |old: &Departure| self.raised.is_some_and(|raised| old.at <= raised && raised <= departure.at);
        let nature = (departure.leave == Leave::Abnormal, departure.able, departure.last_able, departure.last);
        let queue = self.by_nature.entry(nature).or_default();
        let is_replaced = |old: &Departure| departure.at >= old.at && departure.proved >= old.proved;
        while queue.back().is_some_and(|(_, old)| is_replaced(old) && !raised_between(old)) {
            queue.pop_back();
        }
        if queue.len() == DEPARTURES {
            queue.pop_front();
        }
        queue.push_back((self.next, departure));
        self.next += 1;
        for queue in self.by_nature.values_mut() {
            while queue.front().is_some_and(|(_, old)| departure.at >= old.at + remember) {
                queue.pop_front();
            }
        }
    }

    /// In the order in which they left.
    fn all(&self) -> Vec<Departure> {
        let mut all: Vec<&(u64, Departure)> = self.by_nature.values().flatten().collect();
        all.sort_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, departure)| *departure).collect()
    }
}

#[cfg(test)]
mod outline;
#[cfg(test)]
mod tests;
