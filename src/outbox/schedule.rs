//! Which notices are due when, and which of them may be worked on now. Memory only: the engine has the truth.
//!
//! Each target has its notices by time. Targets of one notifier take turns, and so do notifiers. A target or notifier
//! that is heard less often than it has something to say has an alarm instead of a turn, so that it holds up no other:
//! no step here looks at more than the front of something sorted.
//!
//! Bounded: above its limit it forgets what is due last of the target that has most, and asks for a reload once there
//! is room again. No key is worked on twice at a time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    engine::{RecordKey, RecordKind, Version},
    ids::SessionId,
    notifier::{Pace, split_target},
};

/// How long a notice may wait between the question whether it is still wanted and its sending, for the pace of its
/// notifier.
const STALE: Duration = Duration::from_millis(250);
/// How many may be that far at once, of a notifier with a pace.
const PREPARING: u128 = 4;

/// When a record is to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub(super) at: Instant,
    /// The record's version that `at` was computed from. At another version `at` says nothing, and for a lease found
    /// at this version it says that the lease has run out. 0: no version.
    pub(super) version: Version,
    pub(super) target: Arc<str>,
}

impl Due {
    /// A newer version knows better; of the same version, the earlier.
    fn beats(&self, other: &Self) -> bool {
        self.version > other.version || (self.version == other.version && self.at < other.at)
    }
}

/// How much at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shares {
    /// Notices that wait in memory.
    pub(super) waiting: usize,
    /// Sends to all targets of one notifier.
    pub(super) per_notifier: usize,
    /// Sends to one target of a notifier that gives its addresses no pace; of another one it is 1.
    pub(super) per_target: usize,
}

/// What an attempt may do that is about to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    Now,
    /// It asks again then.
    At(Instant),
    /// Meanwhile the other end has asked for silence until then. It ends.
    Held(Instant),
}

/// Who is to hear nothing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Target,
    Notifier,
}

pub(super) struct Schedule {
    inner: Mutex<Inner>,
    wake: Notify,
}

struct Inner {
    shares: Shares,
    /// Before everything: for times that hold nothing back.
    long_ago: Instant,
    /// Distinguishes an entry from an earlier one of the same key, and makes times unique.
    serial: u64,
    entries: BTreeMap<Arc<RecordKey>, Entry>,
    targets: HashMap<Arc<str>, Target>,
    /// How many wait for each target that has any.
    sizes: BTreeSet<(usize, Arc<str>)>,
    /// By the name of the notifier. Those that are not configured share the empty name.
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes that have something to send and may.
    turns: VecDeque<Arc<str>>,
    /// When something that has no turn can have one. Each target and lane has at most one.
    alarms: BTreeSet<(Instant, Gate)>,
    running: BTreeMap<Arc<RecordKey>, Running>,
    overflowed: bool,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Gate {
    Lane(Arc<str>),
    Target(Arc<str>),
}

struct Entry {
    due: Due,
    serial: u64,
}

struct Target {
    lane: Arc<str>,
    waiting: BTreeMap<(Instant, u64), Arc<RecordKey>>,
    busy: usize,
    not_before: Instant,
    in_turn: bool,
    alarm: Option<Instant>,
}

struct Lane {
    pace: Pace,
    /// Targets that have something due, and may.
    turns: VecDeque<Arc<str>>,
    busy: usize,
    /// Of those, how many have not begun to send.
    preparing: usize,
    held_until: Instant,
    /// When the next send can begin that has no time yet.
    next: Instant,
    last: Option<Instant>,
    in_turn: bool,
    alarm: Option<Instant>,
}

struct Running {
    target: Arc<str>,
    preparing: bool,
    /// When it may begin, by the notifier's pace.
    slot: Option<Instant>,
    /// What was put meanwhile.
    again: Option<Due>,
    forgotten: bool,
}

impl Schedule {
    pub(super) fn new(shares: Shares, paces: impl IntoIterator<Item = (String, Pace)>) -> Self {
        let long_ago = Instant::now();
        let none = [(String::new(), Pace::default())];
        let lanes = paces.into_iter().chain(none).map(|(name, pace)| (name.into(), Lane::new(pace, long_ago)));
        let inner = Inner {
            shares: Shares { waiting: shares.waiting.max(2), ..shares },
            long_ago,
            serial: 0,
            entries: BTreeMap::new(),
            targets: HashMap::new(),
            sizes: BTreeSet::new(),
            lanes: lanes.collect(),
            turns: VecDeque::new(),
            alarms: BTreeSet::new(),
            running: BTreeMap::new(),
            overflowed: false,
        };
        Self { inner: Mutex::new(inner), wake: Notify::new() }
    }

    /// Resolves after something was put or has become free. One change before the call counts.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }

    pub(super) fn put(&self, key: RecordKey, due: Due) {
        self.lock().put(key.into(), due);
        self.wake.notify_one();
    }

    /// The next key that may be worked on, with its version. The caller says [`Schedule::finish`] afterwards.
    pub(super) fn take(&self, now: Instant) -> Option<(RecordKey, Due)> {
        self.lock().take(now).map(|(key, due)| ((*key).clone(), due))
    }

    /// Asked by whoever works on a key, until it may send.
    pub(super) fn begin(&self, key: &RecordKey, now: Instant) -> Begin {
        let begin = self.lock().begin(key, now);
        if begin == Begin::Now {
            self.wake.notify_one();
        }
        begin
    }

    /// The other end of this target wants silence until then.
    pub(super) fn hold(&self, target: &str, who: Held, until: Instant) {
        self.lock().hold(target, who, until);
    }

    /// Ends the work on a key, with when to look at it again.
    pub(super) fn finish(&self, key: &RecordKey, next: Option<Due>) {
        self.lock().finish(key, next);
    }

    /// When the next key is due that is not due yet, or may be worked on that may not yet.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.lock().alarms.first().map(|(at, _)| *at)
    }

    /// Whether something was forgotten that there is room for again. Says so once.
    pub(super) fn wants_reload(&self) -> bool {
        let mut inner = self.lock();
        let wants = inner.overflowed && inner.entries.len() < inner.shares.waiting / 2;
        inner.overflowed &= !wants;
        wants
    }

    pub(super) fn forget(&self, session: SessionId) {
        let mut inner = self.lock();
        let first = RecordKey { kind: RecordKind::Notice, session, name: String::new() };
        let theirs = inner.entries.range::<RecordKey, _>(&first..).map(|(key, _)| Arc::clone(key));
        for key in theirs.take_while(|key| key.session == session).collect::<Vec<_>>() {
            inner.remove(&key);
        }
        for (_, running) in inner.running.iter_mut().filter(|(key, _)| key.session == session) {
            running.forgotten = true;
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Lane {
    fn new(pace: Pace, long_ago: Instant) -> Self {
        Self {
            pace,
            turns: VecDeque::new(),
            busy: 0,
            preparing: 0,
            held_until: long_ago,
            next: long_ago,
            last: None,
            in_turn: false,
            alarm: None,
        }
    }

    /// So many that the last of them does not wait for too long.
    fn preparing_max(&self) -> usize {
        match self.pace.overall.as_nanos() {
            0 => usize::MAX,
            gap => usize::try_from((STALE.as_nanos() / gap).clamp(1, PREPARING)).unwrap_or(1),
        }
    }

    fn has_room(&self, shares: &Shares) -> bool {
        self.busy < shares.per_notifier && self.preparing < self.preparing_max()
    }

    fn target_share(&self, shares: &Shares) -> usize {
        if self.pace.address.is_zero() { shares.per_target } else { 1 }
    }

    fn ready_at(&self) -> Instant {
        self.held_until.max(self.next)
    }
}

impl Inner {
    fn put(&mut self, key: Arc<RecordKey>, due: Due) {
        if let Some(running) = self.running.get_mut(&key) {
            if running.again.as_ref().is_none_or(|again| due.beats(again)) {
                running.again = Some(due);
            }
            return;
        }
        if let Some(old) = self.entries.get(&key) {
            if !due.beats(&old.due) {
                return;
            }
            self.remove(&key);
        } else if self.entries.len() >= self.shares.waiting && !self.make_room(&due) {
            return;
        }
        self.insert(key, &due);
    }

    fn insert(&mut self, key: Arc<RecordKey>, due: &Due) {
        self.serial += 1;
        let serial = self.serial;
        let name = self.known(&due.target);
        let target = self.targets.get_mut(&name).expect("just made");
        target.waiting.insert((due.at, serial), Arc::clone(&key));
        let size = target.waiting.len();
        self.resize(&name, size - 1, size);
        self.entries.insert(key, Entry { due: Due { target: Arc::clone(&name), ..*due }, serial });
        self.settle_target(&name);
    }

    fn remove(&mut self, key: &RecordKey) -> Option<Due> {
        let Entry { due, serial } = self.entries.remove(key)?;
        if let Some(target) = self.targets.get_mut(&due.target) {
            target.waiting.remove(&(due.at, serial));
            let size = target.waiting.len();
            self.resize(&due.target, size + 1, size);
            self.settle_target(&due.target);
        }
        Some(due)
    }

    fn resize(&mut self, target: &Arc<str>, before: usize, after: usize) {
        self.sizes.remove(&(before, Arc::clone(target)));
        if after > 0 {
            self.sizes.insert((after, Arc::clone(target)));
        }
    }

    /// The one copy of a target's name, and its place.
    fn known(&mut self, target: &str) -> Arc<str> {
        if let Some((name, _)) = self.targets.get_key_value(target) {
            return Arc::clone(name);
        }
        let name: Arc<str> = target.into();
        let (lane, _) =
            self.lanes.get_key_value(split_target(target).0).or(self.lanes.get_key_value("")).expect("made");
        let place = Target {
            lane: Arc::clone(lane),
            waiting: BTreeMap::new(),
            busy: 0,
            not_before: self.long_ago,
            in_turn: false,
            alarm: None,
        };
        self.targets.insert(Arc::clone(&name), place);
        name
    }

    /// Forgets what is due last of the target that has most, so that a backlog keeps nobody else out. `false`: that
    /// would be the newcomer.
    fn make_room(&mut self, newcomer: &Due) -> bool {
        self.overflowed = true;
        let own = self.targets.get(&newcomer.target).map_or(0, |target| target.waiting.len());
        let Some((most, largest)) = self.sizes.last() else { return false };
        let Some((last, key)) = self.targets.get(largest).and_then(|target| target.waiting.last_key_value()) else {
            return false;
        };
        let (is_backlog, is_later) = (*most > own + 1, last.0 > newcomer.at);
        let gives_way = if **largest == *newcomer.target { is_later } else { is_backlog || is_later };
        let key = Arc::clone(key);
        if gives_way {
            self.remove(&key);
        }
        gives_way
    }

    fn take(&mut self, now: Instant) -> Option<(Arc<RecordKey>, Due)> {
        loop {
            self.ring(now);
            let name = self.turns.pop_front()?;
            if let Some(lane) = self.lanes.get_mut(&name) {
                lane.in_turn = false;
            }
            let found = self.take_from(&name, now);
            self.settle_lane(&name);
            if found.is_some() {
                return found;
            }
        }
    }

    /// Gives turns to those whose time has come.
    fn ring(&mut self, now: Instant) {
        while self.alarms.first().is_some_and(|(at, _)| *at <= now) {
            match self.alarms.pop_first() {
                Some((_, Gate::Target(name))) => self.ring_target(&name, now),
                Some((_, Gate::Lane(name))) => self.ring_lane(&name),
                None => return,
            }
        }
    }

    fn ring_target(&mut self, name: &Arc<str>, now: Instant) {
        let Some(target) = self.targets.get_mut(name) else { return };
        target.alarm = None;
        if target.not_before <= now {
            target.not_before = self.long_ago;
        }
        if target.waiting.is_empty() {
            return self.settle_target(name);
        }
        target.in_turn = true;
        let lane = Arc::clone(&target.lane);
        self.lanes.get_mut(&lane).expect("a target's lane is there").turns.push_back(Arc::clone(name));
        self.settle_lane(&lane);
    }

    fn ring_lane(&mut self, name: &Arc<str>) {
        if let Some(lane) = self.lanes.get_mut(name) {
            lane.alarm = None;
            lane.in_turn = true;
            self.turns.push_back(Arc::clone(name));
        }
    }

    /// What is due first of the lane's next target. Things may have changed since they got their turns.
    fn take_from(&mut self, name: &Arc<str>, now: Instant) -> Option<(Arc<RecordKey>, Due)> {
        let lane = self.lanes.get_mut(name)?;
        if !lane.has_room(&self.shares) || lane.ready_at() > now {
            return None;
        }
        let target_name = lane.turns.pop_front()?;
        let share = lane.target_share(&self.shares);
        let target = self.targets.get_mut(&target_name)?;
        target.in_turn = false;
        let may = target.busy < share && target.not_before <= now;
        let key = target.waiting.first_key_value().filter(|((at, _), _)| may && *at <= now);
        let Some(key) = key.map(|(_, key)| Arc::clone(key)) else {
            self.settle_target(&target_name);
            return None;
        };
        target.busy += 1;
        lane.busy += 1;
        lane.preparing += 1;
        let due = self.remove(&key)?;
        let running = Running { target: target_name, preparing: true, slot: None, again: None, forgotten: false };
        self.running.insert(Arc::clone(&key), running);
        Some((key, due))
    }

    fn begin(&mut self, key: &RecordKey, now: Instant) -> Begin {
        let Some(running) = self.running.get_mut(key) else { return Begin::Now };
        let Some(target) = self.targets.get_mut(&running.target) else { return Begin::Now };
        let name = Arc::clone(&target.lane);
        let Some(lane) = self.lanes.get_mut(&name) else { return Begin::Now };
        let held = lane.held_until.max(target.not_before);
        if held > now {
            return Begin::Held(held);
        }
        let gap = lane.pace.overall;
        let slot = *running.slot.get_or_insert_with(|| {
            let slot = lane.next.max(now);
            lane.next = slot + gap;
            slot
        });
        // A timer that was late must not bring two together.
        let at = lane.last.map_or(slot, |last| slot.max(last + gap));
        if at > now {
            return Begin::At(at);
        }
        lane.last = Some(now);
        lane.next = lane.next.max(now + gap);
        if std::mem::take(&mut running.preparing) {
            lane.preparing -= 1;
        }
        if !lane.pace.address.is_zero() {
            target.not_before = now + lane.pace.address;
        }
        self.settle_lane(&name);
        Begin::Now
    }

    fn hold(&mut self, target: &str, who: Held, until: Instant) {
        let name = self.known(target);
        let place = self.targets.get_mut(&name).expect("just made");
        match who {
            Held::Target => place.not_before = place.not_before.max(until),
            Held::Notifier => {
                let lane_name = Arc::clone(&place.lane);
                let lane = self.lanes.get_mut(&lane_name).expect("a target's lane is there");
                lane.held_until = lane.held_until.max(until);
                self.settle_lane(&lane_name);
            }
        }
        self.settle_target(&name);
    }

    fn finish(&mut self, key: &RecordKey, next: Option<Due>) {
        let Some((key, running)) = self.running.remove_entry(key) else { return };
        if let Some(target) = self.targets.get_mut(&running.target) {
            target.busy -= 1;
            let name = Arc::clone(&target.lane);
            let lane = self.lanes.get_mut(&name).expect("a target's lane is there");
            lane.busy -= 1;
            lane.preparing -= usize::from(running.preparing);
            self.settle_target(&running.target);
            self.settle_lane(&name);
        }
        for due in [running.again, next].into_iter().flatten().filter(|_| !running.forgotten) {
            self.put(Arc::clone(&key), due);
        }
    }

    /// Sets the alarm for a target's next turn, unless it has one; a target of which there is nothing to say is
    /// forgotten.
    fn settle_target(&mut self, name: &Arc<str>) {
        let Some(target) = self.targets.get_mut(name) else { return };
        if let Some(at) = target.alarm.take() {
            self.alarms.remove(&(at, Gate::Target(Arc::clone(name))));
        }
        if target.in_turn {
            return;
        }
        let share = self.lanes.get(&target.lane).map_or(1, |lane| lane.target_share(&self.shares));
        let alarm = match target.waiting.first_key_value() {
            Some(((at, _), _)) if target.busy < share => Some(target.not_before.max(*at)),
            // Remembered for as long as it is held.
            None if target.busy == 0 && target.not_before > self.long_ago => Some(target.not_before),
            None if target.busy == 0 => {
                self.targets.remove(name);
                return;
            }
            _ => None,
        };
        if let Some(at) = alarm {
            target.alarm = Some(at);
            self.alarms.insert((at, Gate::Target(Arc::clone(name))));
        }
    }

    /// Sets the alarm for a lane's next turn, unless it has one.
    fn settle_lane(&mut self, name: &Arc<str>) {
        let Some(lane) = self.lanes.get_mut(name) else { return };
        if let Some(at) = lane.alarm.take() {
            self.alarms.remove(&(at, Gate::Lane(Arc::clone(name))));
        }
        if lane.in_turn || lane.turns.is_empty() || !lane.has_room(&self.shares) {
            return;
        }
        let at = lane.ready_at();
        lane.alarm = Some(at);
        self.alarms.insert((at, Gate::Lane(Arc::clone(name))));
    }
}

#[cfg(test)]
mod tests;
