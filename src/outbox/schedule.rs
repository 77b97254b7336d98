//! Which notices are due when, and which of them may be worked on now. Memory only: the engine has the truth.
//!
//! Bounded: above its limit it forgets what is due last and asks for a reload once there is room again. No key is
//! worked on twice at a time, no target has more than its share, and targets take turns.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    engine::{RecordKey, Version},
    ids::SessionId,
};

/// When a record is to be looked at.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub(super) at: Instant,
    /// The record's version that `at` was computed from. At another version `at` says nothing, and for a lease found
    /// at this version it says that the lease has run out. 0: no version.
    pub(super) version: Version,
    pub(super) target: Arc<str>,
}

pub(super) struct Schedule {
    inner: Mutex<Inner>,
    wake: Notify,
    limit: usize,
    per_target: usize,
}

#[derive(Default)]
struct Inner {
    /// Distinguishes an entry from an earlier one of the same key, and makes times unique.
    serial: u64,
    entries: HashMap<RecordKey, Entry>,
    timed: BTreeMap<(Instant, u64), RecordKey>,
    /// What is due, by target; entries that were replaced meanwhile are skipped.
    ready: HashMap<Arc<str>, VecDeque<(RecordKey, u64)>>,
    turns: VecDeque<Arc<str>>,
    running: HashMap<RecordKey, Running>,
    busy: HashMap<Arc<str>, usize>,
    overflowed: bool,
}

struct Entry {
    due: Due,
    serial: u64,
}

struct Running {
    target: Arc<str>,
    /// What was put meanwhile.
    again: Option<Due>,
}

impl Due {
    /// A newer version knows better; of the same version, the earlier.
    fn beats(&self, other: &Self) -> bool {
        self.version > other.version || (self.version == other.version && self.at < other.at)
    }
}

impl Schedule {
    pub(super) fn new(limit: usize, per_target: usize) -> Self {
        Self { inner: Mutex::default(), wake: Notify::new(), limit: limit.max(2), per_target }
    }

    /// Resolves after something was put. One `put` before the call counts.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }

    pub(super) fn put(&self, key: RecordKey, due: Due) {
        self.lock().put(key, due, self.limit);
        self.wake.notify_one();
    }

    /// The next key that may be worked on, with its version. The caller says [`Schedule::finish`] afterwards.
    pub(super) fn take(&self, now: Instant) -> Option<(RecordKey, Due)> {
        self.lock().take(now, self.per_target)
    }

    /// Ends the work on a key, with when to look at it again.
    pub(super) fn finish(&self, key: &RecordKey, next: Option<Due>) {
        let mut inner = self.lock();
        if let Some(running) = inner.running.remove(key) {
            inner.release(&running.target);
            for due in [running.again, next].into_iter().flatten() {
                inner.put(key.clone(), due, self.limit);
            }
        }
    }

    /// When the next key is due that is not due yet.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.lock().timed.first_key_value().map(|((at, _), _)| *at)
    }

    /// Whether something was forgotten that there is room for again. Says so once.
    pub(super) fn wants_reload(&self) -> bool {
        let mut inner = self.lock();
        let wants = inner.overflowed && inner.entries.len() < self.limit / 2;
        inner.overflowed &= !wants;
        wants
    }

    pub(super) fn forget(&self, session: SessionId) {
        let mut inner = self.lock();
        inner.entries.retain(|key, _| key.session != session);
        inner.timed.retain(|_, key| key.session != session);
        for (_, running) in inner.running.iter_mut().filter(|(key, _)| key.session == session) {
            running.again = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }
}

impl Inner {
    fn put(&mut self, key: RecordKey, due: Due, limit: usize) {
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
            self.timed.remove(&(old.due.at, old.serial));
        } else if self.entries.len() >= limit && !self.make_room(due.at) {
            return;
        }
        self.serial += 1;
        self.timed.insert((due.at, self.serial), key.clone());
        self.entries.insert(key, Entry { due, serial: self.serial });
    }

    /// Forgets what is due last. `false`: that would be the newcomer.
    fn make_room(&mut self, at: Instant) -> bool {
        self.overflowed = true;
        match self.timed.last_entry() {
            Some(last) if last.key().0 > at => {
                let key = last.remove();
                self.entries.remove(&key);
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, now: Instant, per_target: usize) -> Option<(RecordKey, Due)> {
        self.promote(now);
        for _ in 0..self.turns.len() {
            let target = self.turns.pop_front()?;
            let found = if self.busy.get(&target).is_some_and(|busy| *busy >= per_target) {
                None
            } else {
                self.take_from(&target)
            };
            if self.ready.get(&target).is_some_and(|queue| !queue.is_empty()) {
                self.turns.push_back(Arc::clone(&target));
            } else {
                self.ready.remove(&target);
            }
            if let Some((key, due)) = found {
                *self.busy.entry(Arc::clone(&target)).or_default() += 1;
                self.running.insert(key.clone(), Running { target, again: None });
                return Some((key, due));
            }
        }
        None
    }

    /// Moves what has become due to its target's queue.
    fn promote(&mut self, now: Instant) {
        while let Some(first) = self.timed.first_entry().filter(|first| first.key().0 <= now) {
            let serial = first.key().1;
            let key = first.remove();
            let Some(entry) = self.entries.get(&key) else { continue };
            let target = Arc::clone(&entry.due.target);
            if let hash_map::Entry::Vacant(vacant) = self.ready.entry(Arc::clone(&target)) {
                vacant.insert(VecDeque::new());
                self.turns.push_back(Arc::clone(&target));
            }
            self.ready.entry(target).or_default().push_back((key, serial));
        }
    }

    fn take_from(&mut self, target: &Arc<str>) -> Option<(RecordKey, Due)> {
        let queue = self.ready.get_mut(target)?;
        while let Some((key, serial)) = queue.pop_front() {
            if self.entries.get(&key).is_some_and(|entry| entry.serial == serial) {
                return self.entries.remove(&key).map(|entry| (key, entry.due));
            }
        }
        None
    }

    fn release(&mut self, target: &Arc<str>) {
        if let Some(busy) = self.busy.get_mut(target) {
            *busy -= 1;
            if *busy == 0 {
                self.busy.remove(target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::RecordKind;

    fn key(name: &str) -> RecordKey {
        RecordKey { kind: RecordKind::Notice, session: "a".repeat(20).parse().unwrap(), name: name.to_owned() }
    }

    fn due(at: Instant, version: Version, target: &str) -> Due {
        Due { at, version, target: target.into() }
    }

    fn names(schedule: &Schedule, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| schedule.take(now)).map(|(key, _)| key.name).collect()
    }

    #[test]
    fn targets_take_turns_and_none_has_more_than_its_share() {
        let (schedule, now) = (Schedule::new(100, 2), Instant::now());
        for name in ["s1", "s2", "s3", "s4"] {
            schedule.put(key(name), due(now, 1, "slow"));
        }
        schedule.put(key("q1"), due(now, 1, "quick"));
        assert_eq!(names(&schedule, now), ["s1", "q1", "s2"]);
        schedule.finish(&key("s1"), None);
        assert_eq!(names(&schedule, now), ["s3"]);
    }

    #[test]
    fn a_newer_version_replaces_and_an_older_one_does_not() {
        let (schedule, now) = (Schedule::new(100, 2), Instant::now());
        let later = now + Duration::from_secs(9);
        schedule.put(key("a"), due(now, 1, "t"));
        schedule.put(key("a"), due(later, 2, "t"));
        schedule.put(key("a"), due(now, 1, "t"));
        assert!(schedule.take(now).is_none());
        assert_eq!(schedule.next_at(), Some(later));
        assert_eq!(schedule.take(later).map(|(_, due)| due.version), Some(2));
    }

    #[test]
    fn what_is_put_during_the_work_is_kept_for_after_it() {
        let (schedule, now) = (Schedule::new(100, 2), Instant::now());
        schedule.put(key("a"), due(now, 1, "t"));
        schedule.take(now).unwrap();
        schedule.put(key("a"), due(now, 3, "t"));
        assert!(schedule.take(now).is_none(), "never twice at a time");
        schedule.finish(&key("a"), Some(due(now + Duration::from_secs(5), 2, "t")));
        assert_eq!(schedule.take(now).map(|(_, due)| due.version), Some(3));
    }

    #[test]
    fn above_the_limit_what_is_due_last_is_forgotten_and_reloaded_later() {
        let (schedule, now) = (Schedule::new(4, 9), Instant::now());
        for (nth, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
            schedule.put(key(name), due(now + Duration::from_secs(nth as u64), 1, "t"));
        }
        schedule.put(key("urgent"), due(now, 1, "t"));
        schedule.put(key("late"), due(now + Duration::from_secs(99), 1, "t"));
        assert!(!schedule.wants_reload(), "no room yet");
        assert_eq!(names(&schedule, now + Duration::from_secs(100)), ["a", "urgent", "b", "c"]);
        assert!(schedule.wants_reload());
        assert!(!schedule.wants_reload());
    }

    #[test]
    fn a_forgotten_session_is_never_due() {
        let (schedule, now) = (Schedule::new(4, 9), Instant::now());
        schedule.put(key("a"), due(now, 1, "t"));
        schedule.forget(key("a").session);
        assert!(schedule.take(now).is_none());
    }
}
