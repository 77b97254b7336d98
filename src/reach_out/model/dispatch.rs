//! The outbox of one process as it goes through its attempts (`outbox/{dispatcher,attempt,schedule}.rs`), over the
//! production record.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use super::{
    Act, Fault, ReachOut, Sent,
    time::{LEASE, TICK, at, ms, seen, ticks},
    world::{Broken, Left, Mark, Name, Process, World, revision_of},
};
use crate::{
    notifier::Delivery,
    outbox::{
        NoticeKey, NoticeState, Verdict,
        modelled::{self, Record},
    },
    reach_out::{Why, told},
    sabotage::{self, Guard},
};

/// When a record is to be looked at, and the version that this was computed from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) at: u32,
    pub(super) version: u64,
}

pub(super) fn due(record: &Record, version: u64, now: u32) -> Option<Due> {
    Some(Due { at: now + ticks(record.due_in(ms(now))?), version })
}

/// One attempt, between two of its steps.
#[derive(Clone)]
pub(super) enum Attempt {
    /// It reads the record, and asks the owner.
    Look(Due),
    /// It has something to write over the version that it saw.
    Put { known: Due, version: u64, record: Arc<Record>, write: Write },
    /// The record is leased to it. It asks once more, and sends.
    Ready { known: Due, version: u64, record: Arc<Record>, token: String, leased_at: u32 },
    /// The message has left.
    Away { sent: modelled::Sent, token: String, arrived: bool, since: u32 },
    /// The owner is still to hear of it.
    Tell { state: NoticeState, next: Option<Due> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Write {
    Lease,
    /// The lease of a process that is taken for dead.
    Dead,
    Drop,
}

impl std::fmt::Debug for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Look(due) => write!(f, "Look({due:?})"),
            Self::Put { write, .. } => write!(f, "Put({write:?})"),
            Self::Ready { .. } => f.write_str("Ready"),
            Self::Away { arrived, since, .. } => write!(f, "Away(arrived: {arrived}, since: {since})"),
            Self::Tell { state, .. } => write!(f, "Tell({state:?})"),
        }
    }
}

impl Attempt {
    /// Whether a tick may pass before its next step. What is being sent is cut off after half its lease.
    pub(super) fn may_wait(&self, now: u32) -> bool {
        matches!(self, Self::Away { since, .. } if now < since + LEASE / 2)
    }

    pub(super) fn is_telling(&self) -> bool {
        matches!(self, Self::Tell { .. } | Self::Put { .. })
    }

    /// `free`: the owner has time, or there is none.
    pub(super) fn acts(&self, node: usize, name: &Name, (free, left): (bool, &Left), acts: &mut Vec<Act>) {
        let name = || Arc::clone(name);
        match self {
            Self::Look(_) if free => acts.push(Act::Step(node, name())),
            Self::Put { .. } => acts.push(Act::Step(node, name())),
            Self::Ready { .. } if free => {
                acts.push(Act::Send(node, name(), true));
                if left.bad > 0 {
                    acts.push(Act::Send(node, name(), false));
                }
            }
            Self::Away { arrived: true, .. } => {
                acts.push(Act::Outcome(node, name(), Sent::Confirmed));
                if left.bad > 0 {
                    acts.push(Act::Outcome(node, name(), Sent::Unknown));
                }
            }
            Self::Away { arrived: false, .. } => {
                let outcomes = [Sent::Refused, Sent::Rejected, Sent::Unknown];
                acts.extend(outcomes.map(|outcome| Act::Outcome(node, name(), outcome)));
            }
            Self::Tell { .. } if free => {
                acts.push(Act::Tell(node, name(), true));
                if left.unheard > 0 {
                    acts.push(Act::Tell(node, name(), false));
                }
            }
            Self::Look(_) | Self::Ready { .. } | Self::Tell { .. } => {}
        }
    }

    pub(super) fn outline(&self, stored: u64, now: u32, hasher: &mut impl Hasher) {
        let known = |due: &Due| (seen(due.at, now).max(0), due.version == stored);
        match self {
            Self::Look(due) => (0, known(due)).hash(hasher),
            Self::Put { known: due, version, record, write } => {
                (1, known(due), *version == stored, write).hash(hasher);
                record.outline(ms(now), hasher);
            }
            Self::Ready { known: due, version, record, token, leased_at } => {
                (2, known(due), *version == stored, token, seen(*leased_at, now)).hash(hasher);
                record.outline(ms(now), hasher);
            }
            Self::Away { sent, token, arrived, since } => {
                (3, sent.repeat, sent.asks, token, arrived, seen(*since, now)).hash(hasher);
            }
            Self::Tell { state, next } => (4, state, next.as_ref().map(known)).hash(hasher),
        }
    }
}

impl Process {
    /// A newer version knows better; of the same version, the earlier.
    pub(super) fn put_due(&mut self, name: &Name, due: Due) {
        let beats = |old: &Due| due.version > old.version || (due.version == old.version && due.at < old.at);
        if self.schedule.get(name).is_none_or(beats) {
            self.schedule.insert(Arc::clone(name), due);
        }
    }

    fn finish(&mut self, name: &Name, next: Option<Due>) {
        self.attempts.remove(name);
        if let Some(due) = next {
            self.put_due(name, due);
        }
    }
}

impl World {
    pub(super) fn begin_attempt(&mut self, model: &ReachOut, node: usize, name: &Name) {
        let process = self.process(node);
        let due = process.schedule.remove(name).expect("it is due");
        process.attempts.insert(Arc::clone(name), Attempt::Look(due));
        let steps = |world: &Self| {
            let attempt = world.nodes[node].as_ref().and_then(|process| process.attempts.get(name));
            matches!(attempt, Some(Attempt::Look(_) | Attempt::Put { .. }))
        };
        while !model.bounds.fine && steps(self) {
            self.step(model, node, name);
        }
        self.tell_at_once(model, node, name);
    }

    /// Nothing can come between where not every write is a step of its own, and the owner always listens.
    fn tell_at_once(&mut self, model: &ReachOut, node: usize, name: &Name) {
        let attempt = self.nodes[node].as_ref().and_then(|process| process.attempts.get(name));
        if !model.bounds.fine && self.left.unheard == 0 && matches!(attempt, Some(Attempt::Tell { .. })) {
            self.tell(node, name, true);
        }
    }

    fn go_on_with(&mut self, node: usize, name: &Name, attempt: Attempt) {
        self.process(node).attempts.insert(Arc::clone(name), attempt);
    }

    fn attempt(&self, node: usize, name: &Name) -> Attempt {
        self.nodes[node].as_ref().expect("it runs").attempts[name].clone()
    }

    /// What the session's owner says here, if there is one.
    fn ask(&mut self, model: &ReachOut, node: usize, key: &NoticeKey) -> Verdict {
        if sabotage::is_off(Guard::Recheck) {
            return Verdict::Send;
        }
        let now = self.now;
        let Some(owner) = self.process(node).owner.as_ref() else {
            let drops = model.has(Fault::DroppedForGood);
            return if drops { Verdict::Drop } else { told::verdict_without_owner() };
        };
        let (verdict, why) = owner.recheck(key, now);
        match (verdict, why) {
            (Verdict::LookAgain(_), Some(Why::Covered)) => self.seen.mark = Some(Mark::HeldBackByCover),
            (Verdict::LookAgain(_), Some(Why::Held)) => self.seen.mark = Some(Mark::HeldBackByClaim),
            (Verdict::Drop, Some(Why::Closed)) => self.seen.mark = Some(Mark::ToldAfterClosing),
            _ => {}
        }
        verdict
    }

    /// When a notice is looked at again that may not be sent now. How long a session without owner waits is cut: only
    /// that it is looked at again matters.
    fn again(&self, wait: Duration, version: u64) -> Option<Due> {
        Some(Due { at: self.now + ticks(wait.min(TICK)), version })
    }

    pub(super) fn step(&mut self, model: &ReachOut, node: usize, name: &Name) {
        match self.attempt(node, name) {
            Attempt::Look(known) => self.look(model, node, name, known),
            Attempt::Put { known, version, record, write } => {
                self.put_or_look_anew(model, (node, name), (known, version), &record, write);
            }
            attempt => unreachable!("{attempt:?} is no such step"),
        }
    }

    /// Everything up to the lease.
    fn look(&mut self, model: &ReachOut, node: usize, name: &Name, known: Due) {
        let now = self.now;
        let Some((version, record)) = self.engine.notices.get(name).cloned() else {
            return self.process(node).finish(name, None);
        };
        let put = |write| Attempt::Put { known, version, record: Arc::clone(&record), write };
        match due(&record, version, now) {
            None => {
                return self.go_on_with(node, name, Attempt::Tell { state: record.state(), next: None });
            }
            Some(next) if version != known.version && next.at > now => {
                return self.process(node).finish(name, Some(next));
            }
            Some(_) => {}
        }
        if record.is_leased() {
            return self.go_on_with(node, name, put(Write::Dead));
        }
        let verdict = if record.asks() { self.ask(model, node, &record.key()) } else { Verdict::Send };
        match verdict {
            Verdict::LookAgain(wait) => {
                let next = self.again(wait, version);
                self.process(node).finish(name, next);
            }
            Verdict::Drop => self.go_on_with(node, name, put(Write::Drop)),
            Verdict::Send if self.process(node).stopping => self.process(node).finish(name, None),
            Verdict::Send => self.go_on_with(node, name, put(Write::Lease)),
        }
    }

    /// Writes over the version that was seen. Where that has gone, it begins anew.
    fn put_or_look_anew(
        &mut self,
        model: &ReachOut,
        (node, name): (usize, &Name),
        (known, version): (Due, u64),
        record: &Arc<Record>,
        write: Write,
    ) {
        let now = self.now;
        if self.engine.notices.get(name).is_none_or(|(found, _)| *found != version) {
            return self.go_on_with(node, name, Attempt::Look(known));
        }
        let mut record = Record::clone(record);
        match write {
            Write::Lease => self.lease(model, (node, name), (known, version), record),
            Write::Dead => {
                self.seen.mark = Some(Mark::TakenForDead);
                let asks = record.asks();
                let state = record.settle(&unknown(), ms(now), Duration::ZERO);
                let version = self.put(name, version, record.clone());
                let next = due(&record, version, now);
                self.tell_or_finish(node, name, (state, asks), next);
            }
            Write::Drop => {
                record.drop_opened();
                let version = self.put(name, version, record.clone());
                let next = due(&record, version, now);
                self.go_on_with(node, name, Attempt::Tell { state: NoticeState::Dropped, next });
            }
        }
    }

    /// The lease is written before the first byte is sent. One that has lost the session gets none.
    fn lease(
        &mut self,
        model: &ReachOut,
        (node, name): (usize, &Name),
        (known, version): (Due, u64),
        mut record: Record,
    ) {
        let now = self.now;
        if self.is_stale(node) && !model.has(Fault::FenceIgnored) {
            let next = self.again(TICK, version);
            self.seen.mark = Some(Mark::Fenced);
            return self.process(node).finish(name, next);
        }
        let token = format!("{node}.{}", record.attempts());
        record.lease(&token, super::time::outbox_lease());
        let written = if model.has(Fault::LeaseNotWritten) { version } else { self.put(name, version, record.clone()) };
        let record = Arc::new(record);
        self.go_on_with(node, name, Attempt::Ready { known, version: written, record, token, leased_at: now });
    }

    fn tell_or_finish(&mut self, node: usize, name: &Name, (state, asks): (NoticeState, bool), next: Option<Due>) {
        if state == NoticeState::GivenUp && asks {
            self.seen.mark = Some(Mark::GivenUp);
        }
        if asks {
            self.go_on_with(node, name, Attempt::Tell { state, next });
        } else {
            self.process(node).finish(name, next);
        }
    }

    /// Asks once more under the lease, and sends.
    pub(super) fn send(&mut self, model: &ReachOut, node: usize, name: &Name, arrives: bool) {
        let now = self.now;
        let Attempt::Ready { known, version, record, token, leased_at } = self.attempt(node, name) else {
            unreachable!("it is not ready")
        };
        let is_old = now >= leased_at + LEASE / 2 && !model.has(Fault::OldLeaseUsed);
        let asks_again = record.asks() && !model.has(Fault::OnlyAskedBeforeTheLease);
        let verdict = match asks_again {
            _ if is_old => Verdict::LookAgain(Duration::ZERO),
            true => self.ask(model, node, &record.key()),
            false => Verdict::Send,
        };
        let is_mine = self.engine.notices.get(name).is_some_and(|(found, _)| *found == version);
        match verdict {
            Verdict::Send => self.leaves(node, name, &record, token, arrives),
            _ if !is_mine => self.go_on_with(node, name, Attempt::Look(known)),
            Verdict::LookAgain(wait) => {
                let mut record = Record::clone(&record);
                record.release();
                let version = self.put(name, version, record);
                let next = self.again(wait, version);
                self.process(node).finish(name, next);
            }
            Verdict::Drop => {
                let mut record = Record::clone(&record);
                record.drop_opened();
                let version = self.put(name, version, record.clone());
                let next = due(&record, version, now);
                self.go_on_with(node, name, Attempt::Tell { state: NoticeState::Dropped, next });
            }
        }
    }

    /// The first byte.
    fn leaves(&mut self, node: usize, name: &Name, record: &Record, token: String, arrives: bool) {
        let sent = record.message();
        if !arrives {
            self.left.bad -= 1;
        }
        if sent.asks {
            self.judge_sending(node, &record.key());
            self.seen.mark = arrives.then_some(if sent.repeat { Mark::RepeatArrived } else { Mark::Arrived });
            let got = self.seen.got(name);
            got.repeats += u8::from(sent.repeat);
            match (arrives, sent.repeat) {
                (true, true) => got.marked += 1,
                (true, false) => {
                    got.plain += 1;
                    // What comes after the repeat, or a second time, should have said so.
                    got.plain += got.marked;
                }
                (false, _) => {}
            }
            self.seen.judge(name);
        } else {
            self.seen.mark = Some(Mark::Edited);
        }
        if sent.asks && self.is_stale(node) {
            self.seen.mark = Some(Mark::StaleSent);
        }
        let since = self.now;
        self.go_on_with(node, name, Attempt::Away { sent, token, arrived: arrives, since });
    }

    /// Whether a message that asks may leave now, as everybody but its sender sees it.
    fn judge_sending(&mut self, node: usize, key: &NoticeKey) {
        if self.is_stale(node) {
            return;
        }
        if self.engine.is_resolved(revision_of(key)) {
            self.seen.broken.insert(Broken::AfterClosed);
        }
        let Some(owner) = self.owning().and_then(|node| self.nodes[node].as_ref()?.owner.as_ref()) else { return };
        let Some(guardrail) = owner.guardrail() else { return };
        let covered = owner.presence(self.now).covers(u64::from(revision_of(key)));
        let claimed = guardrail.claimed_until().is_some_and(|until| at(self.now) < until);
        if claimed || (covered && key.rung.step == 0) {
            self.seen.broken.insert(Broken::Nag);
        }
    }

    /// The attempt hears what came of it and writes it, however often it has to read before.
    pub(super) fn outcome(&mut self, model: &ReachOut, node: usize, name: &Name, outcome: Sent) {
        let now = self.now;
        let Attempt::Away { sent, token, arrived, .. } = self.attempt(node, name) else {
            unreachable!("it is not away")
        };
        if arrived && outcome != Sent::Confirmed {
            self.left.bad -= 1;
        }
        let delivery = match outcome {
            Sent::Confirmed => Delivery::Confirmed,
            Sent::Refused => Delivery::Refused { error: String::new(), retry_after: None },
            Sent::Rejected => Delivery::Rejected { error: String::new() },
            Sent::Unknown => unknown(),
        };
        if sent.asks && sent.repeat && matches!(outcome, Sent::Refused | Sent::Rejected) {
            self.seen.got(name).repeats -= 1;
        }
        let Some((version, record)) = self.engine.notices.get(name).cloned() else {
            return self.process(node).finish(name, None);
        };
        let mut record = Record::clone(&record);
        if model.has(Fault::LeaseNotWritten) && !record.is_leased() {
            record.lease(&token, super::time::outbox_lease());
        }
        let late = !record.is_leased_by(&token);
        let Some(state) = record.conclude((&token, &sent), &delivery, ms(now), TICK) else {
            return self.process(node).finish(name, due(&record, version, now));
        };
        let version = self.put(name, version, record.clone());
        if sent.asks && state == NoticeState::Confirmed {
            self.seen.got(name).confirmed += 1;
            self.seen.judge(name);
            self.seen.mark = late.then_some(Mark::ConfirmedLate);
        }
        self.tell_or_finish(node, name, (state, sent.asks), due(&record, version, now));
        self.tell_at_once(model, node, name);
    }

    /// The owner hears of it, if there is one here.
    pub(super) fn tell(&mut self, node: usize, name: &Name, heard: bool) {
        let Attempt::Tell { state, next } = self.attempt(node, name) else { unreachable!("it has nothing to tell") };
        let now = self.now;
        let (version, record) = self.engine.notices[name].clone();
        if !heard {
            self.left.unheard -= 1;
            return self.process(node).finish(name, next.or(Some(Due { at: now + 1, version })));
        }
        let key = record.key();
        let process = self.process(node);
        if let Some(told) = process.owner.as_mut().and_then(|owner| owner.told.get_mut(&revision_of(&key))) {
            told.settled(&key.target, key.rung, state);
        }
        process.finish(name, next);
    }
}

fn unknown() -> Delivery {
    Delivery::Unknown { error: String::new() }
}
