//! Whether to contact a chat user: a pure decision over everything it needs, the time included, and why.
//!
//! The seven rules of reach-out stand below in their order; the first that fits decides. No clock, no IO, no
//! randomness: the same inputs give the same decision, so that it can be made again at the moment of sending, in a
//! test, and in a model. Windows are half open: at their end they are over.

pub mod ladder;
pub mod told;

use std::time::Duration;

use onlooker_protocol::view::ReachOutMode;
use tokio::time::Instant;

use crate::{
    sabotage::{self, Guard},
    watch::{Departure, Leave, Presence},
};

/// The windows of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    /// After an abnormal leave (rule 5).
    pub grace: Duration,
    /// For an able watcher to prove that it has the question (rule 6).
    pub first_look: Duration,
}

/// What the decision is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    Guardrail {
        /// Nothing can answer it any more.
        closed: bool,
    },
    Result {
        /// A client stopped the task: its end is no news to anybody.
        stopped: bool,
    },
}

/// Everything the decision needs.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    pub now: Instant,
    pub mode: ReachOutMode,
    pub subject: Subject,
    /// When the guardrail's revision was raised, or the task ended.
    pub raised_at: Instant,
    /// Its offset in the log: proof at or above it is proof of it.
    pub offset: u64,
    /// Until when a live holder has control or a claim on this revision runs.
    pub held_until: Option<Instant>,
    /// Whether everybody who is told first has a notice.
    pub notified: bool,
    /// When the next step of the ladder is due, where there is one.
    pub next_step: Option<Instant>,
    pub presence: &'a Presence,
    /// After a start or a change of owner, everybody has until here to come back.
    pub start_grace_until: Instant,
    pub windows: Windows,
}

/// What to do, by which rule, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub action: Action,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, and nothing later unless something changes.
    Nothing,
    /// Decide again then, or when something changes before.
    LookAgain(Option<Instant>),
    Send,
}

/// The reason, in the order of the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    ModeOff,
    ModeLeavesResultsOut,
    Closed,
    StoppedByClient,
    Held,
    AlreadyNotified,
    StepNotDue,
    StepDue,
    Covered,
    ResultProved,
    GraceAfterProof,
    GraceBeforeRaising,
    GraceAfterStart,
    FirstLook,
    NobodyLooks,
    NoProofInTime,
}

impl Why {
    /// The number of the rule that decided.
    pub fn rule(self) -> u8 {
        match self {
            Self::ModeOff | Self::ModeLeavesResultsOut | Self::Closed | Self::StoppedByClient => 1,
            Self::Held => 2,
            Self::AlreadyNotified | Self::StepNotDue | Self::StepDue => 3,
            Self::Covered | Self::ResultProved => 4,
            Self::GraceAfterProof | Self::GraceBeforeRaising | Self::GraceAfterStart => 5,
            Self::FirstLook => 6,
            Self::NobodyLooks | Self::NoProofInTime => 7,
        }
    }

    /// A sentence for somebody at three in the morning.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::ModeOff => "the session's reachOutMode is off",
            Self::ModeLeavesResultsOut => "the session's reachOutMode sends guardrails only, no results",
            Self::Closed => "the guardrail is closed",
            Self::StoppedByClient => "a client stopped the task, so its end is no news",
            Self::Held => "somebody has control of the session or has claimed the guardrail",
            Self::AlreadyNotified => "a notice for this question exists already",
            Self::StepNotDue => "a notice exists, and the next step of the ladder is not due yet",
            Self::StepDue => "the next step of the ladder is due",
            Self::Covered => "somebody who may answer is looking and has demonstrably got the question",
            Self::ResultProved => "somebody who was looking has demonstrably got the result",
            Self::GraceAfterProof => "somebody who had the question left a moment ago and may be back in seconds",
            Self::GraceBeforeRaising => "the last person able to answer left just before it was asked",
            Self::GraceAfterStart => "the gateway has just started, and everybody gets time to come back",
            Self::FirstLook => "somebody who may answer is looking but has not proved to have it yet",
            Self::NobodyLooks => "nobody who may answer is looking",
            Self::NoProofInTime => "somebody is connected, but nothing proves that the question reached them",
        }
    }
}

/// The first rule that fits.
pub fn decide(inputs: &Inputs<'_>) -> Decision {
    rule_1_off_or_closed(inputs)
        .or_else(|| result_proved(inputs))
        .or_else(|| rule_2_held(inputs))
        .or_else(|| rule_3_notified(inputs))
        .or_else(|| rule_4_covered(inputs))
        .or_else(|| rule_5_grace(inputs))
        .or_else(|| rule_6_first_look(inputs))
        .unwrap_or_else(|| rule_7_send(inputs))
}

fn nothing(why: Why) -> Option<Decision> {
    Some(Decision { action: Action::Nothing, why })
}

fn look_again(at: Option<Instant>, why: Why) -> Option<Decision> {
    Some(Decision { action: Action::LookAgain(at), why })
}

fn rule_1_off_or_closed(inputs: &Inputs<'_>) -> Option<Decision> {
    match (inputs.mode, inputs.subject) {
        (ReachOutMode::Off, _) => nothing(Why::ModeOff),
        (_, Subject::Guardrail { closed: true }) => nothing(Why::Closed),
        (ReachOutMode::GuardrailOnly, Subject::Result { .. }) => nothing(Why::ModeLeavesResultsOut),
        (ReachOutMode::Full, Subject::Result { stopped: true }) => nothing(Why::StoppedByClient),
        _ => None,
    }
}

/// A result that somebody has seen stays seen, also after they left, and whoever has control: that settles it before
/// the other rules, for who has seen it is forgotten with the process.
fn result_proved(inputs: &Inputs<'_>) -> Option<Decision> {
    let seen = matches!(inputs.subject, Subject::Result { .. }) && inputs.presence.has_had(inputs.offset);
    if seen { nothing(Why::ResultProved) } else { None }
}

fn rule_2_held(inputs: &Inputs<'_>) -> Option<Decision> {
    let until = inputs.held_until.filter(|until| inputs.now < *until)?;
    look_again(Some(until), Why::Held)
}

fn rule_3_notified(inputs: &Inputs<'_>) -> Option<Decision> {
    match inputs.next_step {
        _ if !inputs.notified => None,
        None => nothing(Why::AlreadyNotified),
        Some(due) if inputs.now < due => look_again(Some(due), Why::StepNotDue),
        Some(_) => Some(Decision { action: Action::Send, why: Why::StepDue }),
    }
}

fn rule_4_covered(inputs: &Inputs<'_>) -> Option<Decision> {
    if !inputs.is_covered() || inputs.step_is_due() {
        return None;
    }
    look_again(inputs.presence.next_change.into_iter().chain(inputs.next_step).min(), Why::Covered)
}

/// The three origins of a grace, and no others: a newcomer without proof never moves one.
fn rule_5_grace(inputs: &Inputs<'_>) -> Option<Decision> {
    let graces = [
        (grace_after_proof(inputs), Why::GraceAfterProof),
        (grace_before_raising(inputs), Why::GraceBeforeRaising),
        (Some(inputs.start_grace_until), Why::GraceAfterStart),
    ];
    let (end, why) = graces
        .into_iter()
        .filter_map(|(end, why)| end.map(|end| (end, why)))
        .filter(|(end, _)| inputs.now < *end)
        .max_by_key(|(end, _)| *end)?;
    look_again(Some(end), why)
}

/// 5 s after a watcher with proof of this revision left abnormally.
fn grace_after_proof(inputs: &Inputs<'_>) -> Option<Instant> {
    let left = inputs.presence.departures.iter().filter(|departure| {
        departure.leave == Leave::Abnormal && relevant(inputs, departure.able) && had_it(inputs, departure)
    });
    left.map(|departure| departure.at + inputs.windows.grace).max()
}

/// Whoever left without proof of it was no cover, and its leaving moves no time.
fn had_it(inputs: &Inputs<'_>, departure: &Departure) -> bool {
    departure.proved >= Some(inputs.offset) || sabotage::is_off(Guard::GraceOrigin)
}

/// 5 s after the last able watcher left (for a result: the last one), if that was abnormally and before the raising.
fn grace_before_raising(inputs: &Inputs<'_>) -> Option<Instant> {
    let last = inputs
        .presence
        .departures
        .iter()
        .filter(|departure| relevant(inputs, departure.able) && departure.at <= inputs.raised_at)
        .max_by_key(|departure| departure.at)?;
    let was_last = if inputs.presence_must_be_able() { last.last_able } else { last.last };
    (last.leave == Leave::Abnormal && was_last).then_some(last.at + inputs.windows.grace)
}

/// Rule 6: an able watcher without proof has 10 s from the raising, or from when cover last ended.
fn rule_6_first_look(inputs: &Inputs<'_>) -> Option<Decision> {
    let somebody = inputs.presence.watchers.iter().any(|watcher| relevant(inputs, watcher.able));
    let somebody = somebody && !inputs.is_covered();
    let end = first_look_origin(inputs) + inputs.windows.first_look;
    if somebody && inputs.now < end { look_again(Some(end), Why::FirstLook) } else { None }
}

fn first_look_origin(inputs: &Inputs<'_>) -> Instant {
    let cover_ended = inputs
        .presence
        .departures
        .iter()
        .filter(|departure| relevant(inputs, departure.able) && had_it(inputs, departure))
        .map(|departure| departure.at)
        .max();
    cover_ended.map_or(inputs.raised_at, |ended| ended.max(inputs.raised_at))
}

fn rule_7_send(inputs: &Inputs<'_>) -> Decision {
    if inputs.is_covered() {
        return Decision { action: Action::Send, why: Why::StepDue };
    }
    let somebody = inputs.presence.watchers.iter().any(|watcher| relevant(inputs, watcher.able));
    let why = if somebody { Why::NoProofInTime } else { Why::NobodyLooks };
    Decision { action: Action::Send, why }
}

/// A guardrail needs somebody who may answer; a result only somebody.
fn relevant(inputs: &Inputs<'_>, able: bool) -> bool {
    able || !inputs.presence_must_be_able()
}

impl Inputs<'_> {
    /// Somebody who may answer the guardrail is looking and has it.
    pub fn is_covered(&self) -> bool {
        matches!(self.subject, Subject::Guardrail { .. }) && self.presence.covers(self.offset)
    }

    fn step_is_due(&self) -> bool {
        self.next_step.is_some_and(|due| self.now >= due)
    }

    fn presence_must_be_able(&self) -> bool {
        matches!(self.subject, Subject::Guardrail { .. })
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
