//! Reach-out as a model that is explored whole: every order of comings and goings, answers, claims, outcomes, crashes
//! and take-overs within small bounds, over the very functions that the gateway runs.
//!
//! **What is production code here:** [`decide`](super::decide), [`Told`](super::told::Told) and what follows from a
//! decision, the verdict at the moment of sending, the ladder, the watch's [`Book`](crate::watch::Book), the book of
//! guardrails with its answers and claims and its stored form, and the record of a notice: its states, leases, names.
//! **What is written again here**, step by step as the owner (`session/*`) and the outbox's attempt have it: in which
//! order these are called, what is written when, and what a process that ends leaves behind. One tick is one second,
//! and the windows are a few ticks.
//!
//! A state's hash sees times only as distances from now, versions only as "still the same", and no identifiers. So
//! states that differ in age alone are one, and there is no bound on time: the bounds are on how often something
//! happens ([`Bounds`]).
//!
//! **Assumed**, and named so that nobody takes it for shown:
//! * Between an owner's word at the moment of sending and the first byte nothing else happens.
//! * A process does not begin to send under a lease that is older than half its length.
//! * Of two processes over one engine, leases and notices of one that has lost the session are refused (`fenced`), as
//!   the engine's contract has it for logs. What it had leased before, it may still send: this is counted, not excused
//!   for anybody else.
//! * A process that is not frozen does what is due before the next tick.

mod dispatch;
mod owner;
#[cfg(test)]
mod tests;
mod time;
mod view;
mod world;

use stateright::{Model, Property};

use self::world::{Broken, Mark, World};
use crate::sabotage::{self, Guard};

/// How often what may happen.
#[derive(Clone, Debug)]
struct Bounds {
    /// 1: another process starts where one has ended, and nobody else uses the engine. 2: it may start while the other
    /// one still runs.
    nodes: usize,
    /// Of each person who may come, whether they may answer.
    able: &'static [bool],
    /// Who is told first, in groups.
    tiers: &'static [&'static [&'static str]],
    /// There is a ladder with one step, two ticks above the ground, to this target.
    step: Option<&'static str>,
    /// Revisions of the question.
    raises: u8,
    /// Comings, goings, proofs, words about attention.
    acts: u8,
    /// Answers under two keys, to any revision.
    answers: u8,
    /// Claims and releases.
    claims: u8,
    withdrawals: u8,
    /// Ticks until the question closes by itself.
    expires: Option<u32>,
    /// Outcomes other than "confirmed".
    bad: u8,
    crashes: u8,
    /// Ends in order: the owner first, what is being sent later.
    stops: u8,
    take_overs: u8,
    /// A process stands still.
    freezes: u8,
    /// The owner does not hear what became of a notice.
    unheard: u8,
    /// The engine does not take a notice.
    refused_writes: u8,
    /// Every write is a step of its own.
    fine: bool,
}

impl Bounds {
    const NONE: Self = Self {
        nodes: 1,
        able: &[],
        tiers: &[&["a"]],
        step: None,
        raises: 1,
        acts: 0,
        answers: 0,
        claims: 0,
        withdrawals: 0,
        expires: None,
        bad: 0,
        crashes: 0,
        stops: 0,
        take_overs: 0,
        freezes: 0,
        unheard: 0,
        refused_writes: 0,
        fine: false,
    };
}

/// A check that is left out, to see that the model finds what it prevents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// A check of production code.
    Without(Guard),
    /// A message leaves before its lease is written.
    LeaseNotWritten,
    /// A process that has lost the session writes on.
    FenceIgnored,
    /// Nobody asks again once the lease is written.
    OnlyAskedBeforeTheLease,
    /// Where a session has no owner, its notices are dropped, and stay so.
    DroppedForGood,
    /// A lease is sent under however long ago it was taken.
    OldLeaseUsed,
}

/// The model: bounds, and at most one planted fault.
#[derive(Clone, Debug)]
struct ReachOut {
    bounds: Bounds,
    fault: Option<Fault>,
}

#[derive(Clone, Debug, PartialEq)]
enum Act {
    Tick,
    Come(usize, usize),
    /// A person's client proves the newest revision.
    Prove(usize),
    Idle(usize),
    Active(usize),
    /// The client's code stops answering; its connection stays.
    Vanish(usize),
    Leave(usize, crate::watch::Leave),
    Raise(usize),
    Withdraw(usize),
    /// Under a key, to a revision.
    Answer(usize, u8, u32),
    Claim(usize),
    Release(usize),
    /// The owner's next write.
    Write(usize),
    WriteRefused(usize),
    /// The dispatcher takes what is due.
    Begin(usize, world::Name),
    /// An attempt's next step that has one way to go.
    Step(usize, world::Name),
    /// … whose message arrives, or does not.
    Send(usize, world::Name, bool),
    Outcome(usize, world::Name, Sent),
    /// The owner hears, or does not hear, what became of a notice.
    Tell(usize, world::Name, bool),
    Crash(usize),
    EndOwner(usize),
    Exit(usize),
    Start(usize),
    Freeze(usize),
    Thaw(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sent {
    Confirmed,
    Refused,
    Rejected,
    Unknown,
}

impl ReachOut {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn guard(&self) -> Option<Guard> {
        match self.fault {
            Some(Fault::Without(guard)) => Some(guard),
            _ => None,
        }
    }
}

impl Model for ReachOut {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![sabotage::without(self.guard(), || World::begin(self))]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        world.acts(self, acts);
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        sabotage::without(self.guard(), || {
            let mut next = world.clone();
            next.act(self, act);
            Some(next)
        })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            // An open guardrail is covered, claimed, within one of its windows, or has a notice that is confirmed or
            // has its next try set; otherwise, and only when no target is left, it is counted as unreached.
            Property::always("no miss", |model: &Self, world: &World| !view::is_missed(model, world)),
            // … and nobody moves its windows: after their length, and the wait between two looks, somebody is told.
            Property::always("no miss for long", |_, world: &World| !world.seen.is(Broken::Late)),
            // No message begins to be sent while somebody who may answer has the question and is there, or somebody
            // claims it, unless it is a step of the ladder that was due.
            Property::always("no nag", |_, world: &World| !world.seen.is(Broken::Nag)),
            Property::always("at most one confirmed", |_, world: &World| !world.seen.is(Broken::ConfirmedTwice)),
            // At most one repeat that may have arrived.
            Property::always("at most one repeat", |_, world: &World| !world.seen.is(Broken::RepeatedTwice)),
            // A person gets a key's message at most twice, and the second says that it is a repeat.
            Property::always("the second says so", |_, world: &World| !world.seen.is(Broken::Unmarked)),
            // At most one answer is accepted per revision; another one is refused, also after it closed otherwise.
            Property::always("one answer", |_, world: &World| !world.seen.is(Broken::TwoAnswers)),
            // Nothing is sent after the closing except the edit that says so.
            Property::always("nothing after closed", |_, world: &World| !world.seen.is(Broken::AfterClosed)),
        ]
        .into_iter()
        .chain(Mark::sometimes())
        .collect()
    }
}
