//! Departures that are kept, and the book against the simplest thing that does the same.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const TIMES: WatchTimes = WatchTimes {
    live_window: Duration::from_secs(20),
    attention_lease: Duration::from_secs(30),
    poll_window: Duration::from_secs(10),
    remember: Duration::from_secs(10),
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn departure(at: Instant, proved: Option<u64>) -> Departure {
    Departure { at, leave: Leave::Abnormal, able: true, proved, last_able: true, last: true }
}

#[test]
fn of_departures_only_those_that_could_still_matter_are_kept() {
    let start = Instant::now();
    let mut book = Book::new(TIMES);
    let mut depart = |second: u64, proved| book.depart(start + seconds(second), Leave::Abnormal, true, proved);
    depart(0, Some(5));
    depart(1, Some(3));
    depart(2, Some(4));
    let kept = |book: &Book| book.departures.all();
    assert_eq!(kept(&book), [departure(start, Some(5)), departure(start + seconds(2), Some(4))]);
    book.depart(start + seconds(3), Leave::Clean, true, Some(9));
    assert_eq!(kept(&book).len(), 3, "a clean leave is of another nature");
    book.depart(start + seconds(11), Leave::Abnormal, true, None);
    assert_eq!(kept(&book).len(), 3, "after its time the oldest is forgotten");
    assert!(!kept(&book).contains(&departure(start, Some(5))));
}

#[test]
fn who_left_before_a_first_raising_is_remembered_although_another_one_leaves_at_the_instant_of_a_second() {
    let start = Instant::now();
    let mut book = Book::new(TIMES);
    book.depart(start, Leave::Abnormal, true, None);
    book.raised(start);
    book.raised(start + seconds(1));
    book.depart(start + seconds(1), Leave::Abnormal, true, None);
    assert_eq!(book.departures.all(), [departure(start, None), departure(start + seconds(1), None)]);
}

#[test]
fn however_many_leave_in_falling_order_of_proof_few_are_remembered() {
    let start = Instant::now();
    let mut book = Book::new(TIMES);
    for offset in (0..1_000).rev() {
        book.depart(start, Leave::Abnormal, true, Some(offset));
    }
    assert_eq!(book.departures.all().len(), DEPARTURES);
}

/// The same without any order: it looks at everybody each time.
struct Simple {
    entries: BTreeMap<u64, Entry>,
    pollers: BTreeMap<Arc<str>, Poller>,
    departures: Vec<Departure>,
    raised: Option<Instant>,
    results_proved: Option<u64>,
}

impl Simple {
    fn lapse(&self, now: Instant) -> Option<(Instant, Who)> {
        let entries = self.entries.iter().filter_map(|(id, entry)| Some((entry.counted_until?, Who::Entry(*id))));
        let pollers = self.pollers.iter().filter_map(|(name, p)| Some((p.ends_at()?, Who::Poller(Arc::clone(name)))));
        entries.chain(pollers).filter(|(at, _)| *at <= now).min()
    }

    fn settle(&mut self, now: Instant) {
        while let Some((at, who)) = self.lapse(now) {
            let (leave, able, proved) = match who {
                Who::Entry(id) => {
                    let entry = self.entries.get_mut(&id).unwrap();
                    entry.counted_until = None;
                    (Leave::Abnormal, entry.newcomer.able, entry.proved)
                }
                Who::Poller(name) => {
                    let poller = self.pollers.remove(&name).unwrap();
                    (Leave::Clean, poller.able, poller.proved)
                }
            };
            self.depart(at, leave, able, proved);
        }
    }

    fn watchers(&self) -> Vec<Watcher> {
        let entries = self.entries.values().filter(|entry| entry.counted_until.is_some());
        let entries = entries.map(|entry| Watcher { able: entry.newcomer.able, proved: entry.proved });
        entries.chain(self.pollers.values().map(|p| Watcher { able: p.able, proved: p.proved })).collect()
    }

    fn depart(&mut self, at: Instant, leave: Leave, able: bool, proved: Option<u64>) {
        let last_able = able && !self.watchers().iter().any(|watcher| watcher.able);
        let last = self.watchers().is_empty();
        let departure = Departure { at, leave, able, proved, last_able, last };
        let raised = self.raised;
        self.departures.retain(|old| {
            let same_nature = leave == old.leave && able == old.able && (last_able, last) == (old.last_able, old.last);
            let raised_between = raised.is_some_and(|raised| old.at <= raised && raised <= at);
            let replaced = same_nature && at >= old.at && proved >= old.proved && !raised_between;
            !replaced && at < old.at + TIMES.remember
        });
        self.departures.push(departure);
    }

    fn change(&mut self, id: u64, now: Instant, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let counted = entry.counted_until.is_some();
        change(entry);
        entry.counted_until = entry.counts_until(now);
        let (able, proved, counts) = (entry.newcomer.able, entry.proved, entry.counted_until.is_some());
        if counts && entry.newcomer.sees_results {
            self.results_proved = self.results_proved.max(proved);
        }
        if counted && !counts {
            self.depart(now, Leave::Abnormal, able, proved);
        }
    }

    fn presence(&self) -> Presence {
        let best = |able| {
            let proofs = self.watchers().into_iter().filter(|watcher| watcher.able == able);
            proofs.map(|watcher| watcher.proved).max().map(|proved| Watcher { able, proved })
        };
        let lapses = self.entries.values().filter_map(|entry| entry.counted_until);
        Presence {
            watchers: [best(true), best(false)].into_iter().flatten().collect(),
            departures: self.departures.clone(),
            results_proved: self.results_proved,
            results_read: Vec::new(),
            next_change: lapses.chain(self.pollers.values().filter_map(Poller::ends_at)).min(),
        }
    }
}

/// One edge; the numbers name a subscription, a poller, an offset.
#[derive(Clone, Debug)]
enum Edge {
    Enter { able: bool, observer: bool, attentive: Attentive },
    Alive(u64),
    Proved(u64, u64),
    Attention(u64, bool),
    Leave(u64, Leave),
    Poll(u64, bool),
    Polled(u64, bool, Option<u64>),
    PollEnded(u64),
    Raised,
    Wait(u64),
}

fn any_edge() -> impl Strategy<Value = Edge> {
    let attentive = prop_oneof![Just(Attentive::CannotSay), Just(Attentive::Active), Just(Attentive::Idle)];
    let leave = prop_oneof![Just(Leave::Clean), Just(Leave::Abnormal)];
    prop_oneof![
        (any::<bool>(), proptest::bool::weighted(0.1), attentive).prop_map(|(able, observer, attentive)| Edge::Enter {
            able,
            observer,
            attentive
        }),
        (0..6u64).prop_map(Edge::Alive),
        (0..6u64, 0..9u64).prop_map(|(who, offset)| Edge::Proved(who, offset)),
        (0..6u64, any::<bool>()).prop_map(|(who, active)| Edge::Attention(who, active)),
        (0..6u64, leave).prop_map(|(who, leave)| Edge::Leave(who, leave)),
        (0..2u64, any::<bool>()).prop_map(|(who, able)| Edge::Poll(who, able)),
        (0..2u64, any::<bool>(), proptest::option::of(0..9u64)).prop_map(|(a, b, c)| Edge::Polled(a, b, c)),
        (0..2u64).prop_map(Edge::PollEnded),
        Just(Edge::Raised),
        (0..12u64).prop_map(Edge::Wait),
    ]
}

proptest! {
    #[test]
    fn the_book_says_what_the_simplest_one_says(edges in proptest::collection::vec(any_edge(), 1..80)) {
        let mut now = Instant::now();
        let mut book = Book::new(TIMES);
        let (entries, pollers) = (BTreeMap::new(), BTreeMap::new());
        let mut simple = Simple { entries, pollers, departures: Vec::new(), raised: None, results_proved: None };
        for edge in edges {
            simple.settle(now);
            apply(&edge, &mut book, &mut simple, now);
            if let Edge::Wait(n) = edge {
                now += seconds(n);
            }
            simple.settle(now);
            let counts = book.counts(now);
            let watchers = simple.watchers();
            prop_assert_eq!(counts.watching as usize, watchers.len());
            prop_assert_eq!(counts.able as usize, watchers.iter().filter(|watcher| watcher.able).count());
            prop_assert_eq!(counts.following as usize, simple.entries.len() + simple.pollers.len());
            let presence = book.presence(now);
            prop_assert_eq!(&presence, &simple.presence(), "after {:?}", edge);
            prop_assert_eq!(book.settle(now), presence.next_change);
        }
    }
}

fn apply(edge: &Edge, book: &mut Book, simple: &mut Simple, now: Instant) {
    let name = |n: u64| -> Arc<str> { n.to_string().into() };
    match *edge {
        Edge::Enter { able, observer, attentive } => {
            let (subscriber, who) = ("".into(), "".into());
            let newcomer =
                Newcomer { subscriber, who, via: "websocket", observer, able, sees_results: able, attentive };
            let id = book.enter(newcomer, now);
            simple.entries.insert(id, (*book.entries[&id]).clone());
        }
        Edge::Alive(id) => {
            book.alive(id, now);
            simple.change(id, now, |entry| entry.live_until = now + TIMES.live_window);
        }
        Edge::Proved(id, offset) => {
            book.proved(id, offset, now);
            simple.change(id, now, |entry| {
                entry.live_until = now + TIMES.live_window;
                entry.proved = entry.proved.max(Some(offset));
            });
        }
        Edge::Attention(id, active) => {
            book.attention(id, active, now);
            let until = Attention::Until(now + TIMES.attention_lease);
            simple.change(id, now, |entry| entry.attention = if active { until } else { Attention::Idle });
        }
        Edge::Leave(id, leave) => {
            book.leave(id, leave, now);
            if let Some(entry) = simple.entries.remove(&id)
                && entry.counted_until.is_some()
            {
                simple.depart(now, leave, entry.newcomer.able, entry.proved);
            }
        }
        Edge::Poll(n, able) => {
            book.poll(&name(n), "ada", able, now);
            let new = Poller { who: "ada".to_owned(), able, in_flight: 0, until: now, proved: None };
            let poller = simple.pollers.entry(name(n)).or_insert(new);
            poller.in_flight += 1;
            poller.able = able;
        }
        // What only a poll under way can do.
        Edge::Polled(n, able, questions) => {
            if let Some(poller) = simple.pollers.get_mut(&name(n)).filter(|poller| poller.in_flight > 0) {
                poller.able = able;
                poller.proved = poller.proved.max(questions);
                book.polled(&name(n), able, questions, None);
            }
        }
        Edge::PollEnded(n) => {
            if let Some(poller) = simple.pollers.get_mut(&name(n)).filter(|poller| poller.in_flight > 0) {
                poller.in_flight -= 1;
                poller.until = now + TIMES.poll_window;
                book.poll_ended(&name(n), now);
            }
        }
        Edge::Raised => {
            book.raised(now);
            simple.raised = Some(now);
        }
        Edge::Wait(_) => {}
    }
}
