//! Who has a notice of one question or result, and from that: who is told next, and whether anybody is left. Pure.

use std::{collections::BTreeMap, time::Duration};

use onlooker_protocol::view::ReachOutMode;
use tokio::time::Instant;

use super::{
    Action, Decision, Inputs, Why,
    ladder::{Ladder, Rung},
};
use crate::outbox::{NoticeState, Verdict};

/// How long a notice that may not be sent now waits at most until it is asked about again: a change of presence is
/// found by then.
pub const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);

/// A session that has no owner here is being let go of, or is another process's: nobody can say that its notices are not
/// wanted. They go with its records.
const NOBODY_TO_ASK: Duration = Duration::from_secs(10);

/// Who has a notice of one question or result, and how far the ladder was climbed for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Told {
    notices: BTreeMap<(String, Rung), NoticeState>,
    /// When the first notice was written.
    first_at: Option<Instant>,
    /// The highest rung, with the time at which it was reached.
    reached: Option<(Rung, Instant)>,
    /// The process ended on that rung, perhaps before everybody on it had a notice.
    unfinished: bool,
}

/// What follows from a decision, given who was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Tell those on this rung of the ladder.
    Climb(Rung),
    /// Tell those who are told first and have no notice yet.
    Tell(Vec<String>),
    /// There is nobody to tell.
    NoTarget,
    /// Everybody was tried, and nobody waits for an answer any more.
    NobodyLeft,
    LookAgain(Option<Instant>),
    Nothing,
}

impl Told {
    /// A notice was written, or was found to be there. One that was dropped before anybody had it is as none, and may be
    /// asked for again.
    pub fn wrote(&mut self, target: &str, rung: Rung, state: NoticeState, at: Instant) {
        if state == NoticeState::Dropped {
            return;
        }
        self.notices.insert((target.to_owned(), rung), state);
        if rung == Rung::default() {
            self.first_at = Some(self.first_at.map_or(at, |first| first.min(at)));
        }
    }

    /// What the outbox has of the time before this process.
    pub fn restored(&mut self, target: &str, rung: Rung, state: NoticeState, at: Instant) {
        if state == NoticeState::Dropped {
            return;
        }
        self.wrote(target, rung, state, at);
        if rung > self.reached.map(|(rung, _)| rung).unwrap_or_default() {
            self.reached = Some((rung, at));
            self.unfinished = true;
        }
    }

    /// A notice that was written changed its state. One that was dropped may be asked for again.
    pub fn settled(&mut self, target: &str, rung: Rung, state: NoticeState) {
        let key = (target.to_owned(), rung);
        if state == NoticeState::Dropped {
            self.notices.remove(&key);
        } else if let Some(known) = self.notices.get_mut(&key) {
            *known = state;
        }
    }

    /// Everybody on this rung has a notice.
    pub fn climbed(&mut self, rung: Rung, now: Instant) {
        self.unfinished = false;
        if self.reached.is_none_or(|(reached, _)| reached < rung) {
            self.reached = Some((rung, now));
        }
    }

    /// Whether anybody has a notice.
    pub fn is_empty(&self) -> bool {
        self.notices.is_empty()
    }

    pub fn is_confirmed(&self) -> bool {
        self.notices.values().any(|state| *state == NoticeState::Confirmed)
    }

    /// Somebody has it, and nobody else is still to get it.
    pub fn is_done(&self) -> bool {
        let over = |state: &NoticeState| *state == NoticeState::Confirmed || is_dead(*state);
        self.is_confirmed() && self.notices.values().all(over)
    }

    fn first(&self, target: &str) -> Option<NoticeState> {
        self.notices.get(&(target.to_owned(), Rung::default())).copied()
    }

    /// Whom to tell first and who has no notice yet: of the tier that was told, and of the next one once nobody in it
    /// can be reached.
    pub fn missing(&self, tiers: &[Vec<String>]) -> Vec<String> {
        let is_alive = |target: &String| self.first(target).is_some_and(|state| !is_dead(state));
        let told = tiers.iter().find(|tier| tier.iter().any(is_alive));
        let left = || tiers.iter().find(|tier| tier.iter().any(|target| self.first(target).is_none()));
        let tier = told.or_else(left).map(Vec::as_slice).unwrap_or_default();
        tier.iter().filter(|target| self.first(target).is_none()).cloned().collect()
    }

    /// The next place on the ladder, and when it is due.
    pub fn next_rung(&self, ladder: &Ladder, raised_at: Instant) -> Option<(Rung, Instant)> {
        match self.reached {
            Some(reached) if self.unfinished => Some(reached),
            Some((rung, at)) => ladder.above(rung, at),
            None => ladder.above(Rung::default(), self.first_at.unwrap_or(raised_at)),
        }
    }

    /// Everybody who could be told refused for good, or may have been told twice for nothing.
    fn nobody_is_left(&self) -> bool {
        !self.is_empty() && self.notices.values().all(|state| is_dead(*state))
    }

    /// What follows from a decision, where `missing` have no notice yet and `rung` is the next one.
    pub fn next(&self, decision: Decision, missing: Vec<String>, rung: Option<Rung>) -> Next {
        match (decision.action, decision.why, rung) {
            (Action::Send, Why::StepDue, Some(rung)) => Next::Climb(rung),
            (Action::Send, ..) if missing.is_empty() => Next::NoTarget,
            (Action::Send, ..) => Next::Tell(missing),
            (Action::LookAgain(at), ..) => Next::LookAgain(at),
            (Action::Nothing, Why::AlreadyNotified, _) if self.nobody_is_left() => Next::NobodyLeft,
            (Action::Nothing, ..) => Next::Nothing,
        }
    }
}

/// Whether nobody should wait for it any more.
fn is_dead(state: NoticeState) -> bool {
    matches!(state, NoticeState::GivenUp | NoticeState::Rejected)
}

/// What a notice on this rung is asked again with at the moment of sending: whether somebody is notified, and when the
/// next step is due. A rung of the ladder was due when it was written, and stays so.
pub fn at_sending(rung: Rung, now: Instant) -> (bool, Option<Instant>) {
    (rung.step > 0, (rung.step > 0).then_some(now))
}

/// Whether a notice that is written is still to be sent.
pub fn verdict(decision: Decision, now: Instant) -> Verdict {
    match decision.action {
        Action::Send => Verdict::Send,
        Action::Nothing => Verdict::Drop,
        Action::LookAgain(at) => Verdict::LookAgain(at.map_or(LOOK_AGAIN_MAX, |at| (at - now).min(LOOK_AGAIN_MAX))),
    }
}

/// What is said of a notice whose session has no owner here.
pub fn verdict_without_owner() -> Verdict {
    Verdict::LookAgain(NOBODY_TO_ASK)
}

/// Open, the mode reaches out, and neither covered, held, nor notified: what somebody is woken by.
pub fn is_unreached(inputs: &Inputs<'_>, open: bool, held: bool, confirmed: bool) -> bool {
    open && inputs.mode != ReachOutMode::Off && !inputs.is_covered() && !held && !confirmed
}

/// What tells two of them apart for whoever decides by them, as seen at one time, in whole seconds. What is further back
/// than `far` looks the same.
#[cfg(test)]
impl Told {
    pub(crate) fn outline(&self, now: Instant, far: u64) -> impl std::hash::Hash + use<'_> {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs().min(far);
        let reached = self.reached.map(|(rung, at)| (rung, ago(at)));
        (&self.notices, self.first_at.map(ago), reached, self.unfinished)
    }
}
