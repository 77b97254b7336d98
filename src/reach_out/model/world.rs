//! Everything that there is: people, processes, the engine; and what has been seen of them.

use std::{
    collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher},
    hash::{Hash, Hasher},
    sync::Arc,
};

use onlooker_protocol::view::{GuardrailState, GuardrailView};
use stateright::Property;

use super::{
    Act, Bounds, ReachOut,
    dispatch::{Attempt, Due},
    owner::{Owner, Work},
    time::{at, ms, seen_at},
    view,
};
use crate::{
    guardrail::Guardrail,
    outbox::{NoticeKey, NoticeState, NoticeSubject, modelled::Record},
    watch::Leave,
};

pub(super) const NODES: usize = 2;
pub(super) const GUARDRAIL: &str = "g";

/// A notice's record by its name in the engine.
pub(super) type Name = Arc<str>;

#[derive(Clone)]
pub(super) struct World {
    pub(super) now: u32,
    /// What may still happen, and how often.
    pub(super) left: Left,
    pub(super) people: Vec<Person>,
    pub(super) nodes: [Option<Process>; NODES],
    pub(super) engine: Engine,
    pub(super) seen: Seen,
}

#[derive(Clone, Copy, Debug, Hash)]
pub(super) struct Left {
    pub(super) raises: u8,
    pub(super) acts: u8,
    pub(super) answers: u8,
    pub(super) claims: u8,
    pub(super) withdrawals: u8,
    pub(super) bad: u8,
    pub(super) crashes: u8,
    pub(super) stops: u8,
    pub(super) take_overs: u8,
    pub(super) freezes: u8,
    pub(super) unheard: u8,
    pub(super) refused_writes: u8,
}

impl Left {
    fn of(bounds: &Bounds) -> Self {
        Self {
            raises: bounds.raises,
            acts: bounds.acts,
            answers: bounds.answers,
            claims: bounds.claims,
            withdrawals: bounds.withdrawals,
            bad: bounds.bad,
            crashes: bounds.crashes,
            stops: bounds.stops,
            take_overs: bounds.take_overs,
            freezes: bounds.freezes,
            unheard: bounds.unheard,
            refused_writes: bounds.refused_writes,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Person {
    /// The process that they are connected to, and their subscription there.
    pub(super) there: Option<(usize, u64)>,
    /// Their client's code answers every ping.
    pub(super) answers_pings: bool,
    pub(super) active: bool,
    /// The newest revision that was proved on this connection.
    pub(super) proved: u32,
}

/// One process: the session's owner, if it has one, and its outbox.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) owner: Option<Owner>,
    /// The number of its ownership.
    pub(super) term: u32,
    pub(super) frozen: bool,
    /// It ends in order: nothing new is begun.
    pub(super) stopping: bool,
    pub(super) schedule: BTreeMap<Name, Due>,
    pub(super) attempts: BTreeMap<Name, Attempt>,
}

/// What outlives processes.
#[derive(Clone, Default)]
pub(super) struct Engine {
    /// The highest term that was given out, and the one that the log has seen.
    pub(super) given: u32,
    pub(super) term: u32,
    pub(super) log: Vec<Logged>,
    /// The guardrail's record; it is encoded when it is read.
    pub(super) guardrail: Option<(u64, Arc<Guardrail>)>,
    pub(super) notices: BTreeMap<Name, (u64, Arc<Record>)>,
}

#[derive(Clone)]
pub(super) enum Logged {
    Raised(Arc<GuardrailView>),
    Resolved { revision: u32 },
}

impl Engine {
    /// The newest revision in the log.
    pub(super) fn raised(&self) -> Option<&Arc<GuardrailView>> {
        self.log.iter().rev().find_map(|event| match event {
            Logged::Raised(view) => Some(view),
            Logged::Resolved { .. } => None,
        })
    }

    pub(super) fn is_resolved(&self, of: u32) -> bool {
        self.log.iter().any(|event| matches!(event, Logged::Resolved { revision } if *revision == of))
    }

    /// The notices of one revision.
    pub(super) fn notices_of(&self, revision: u32) -> impl Iterator<Item = (&Name, NoticeKey, &Arc<Record>)> {
        let notices = self.notices.iter().map(|(name, (_, record))| (name, record.key(), record));
        notices.filter(move |(_, key, _)| revision_of(key) == revision)
    }
}

pub(super) fn revision_of(key: &NoticeKey) -> u32 {
    match &key.subject {
        NoticeSubject::Guardrail { revision, .. } => *revision,
        NoticeSubject::Result { .. } => unreachable!("there are no results here"),
    }
}

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Broken {
    Late,
    Nag,
    ConfirmedTwice,
    RepeatedTwice,
    Unmarked,
    TwoAnswers,
    AfterClosed,
}

/// What people got of one key, and what was said of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Got {
    pub(super) plain: u8,
    pub(super) marked: u8,
    pub(super) confirmed: u8,
    /// Repeats that may have arrived.
    pub(super) repeats: u8,
}

/// What the last step did, where that is worth to be seen. All of it happens somewhere, or the model shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mark {
    Arrived,
    RepeatArrived,
    ConfirmedLate,
    GivenUp,
    NextTier,
    Climbed,
    HeldBackByCover,
    HeldBackByClaim,
    Fenced,
    TakenForDead,
    AnswerWon,
    AnswerAgain,
    AnswerRefused,
    Superseded,
    Expired,
    ToldAfterClosing,
    Unreached,
    StaleSent,
    GraceRuns,
    Edited,
}

impl Mark {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Arrived => "a message arrives",
            Self::RepeatArrived => "a repeat arrives",
            Self::ConfirmedLate => "a confirmation comes late",
            Self::GivenUp => "a key is given up",
            Self::NextTier => "the next tier is told",
            Self::Climbed => "the ladder is climbed",
            Self::HeldBackByCover => "cover holds a written notice back",
            Self::HeldBackByClaim => "a claim holds a written notice back",
            Self::Fenced => "an old owner is fenced",
            Self::TakenForDead => "a lease is taken for dead",
            Self::AnswerWon => "an answer wins",
            Self::AnswerAgain => "an answer is repeated",
            Self::AnswerRefused => "an answer is refused",
            Self::Superseded => "a revision supersedes another",
            Self::Expired => "a question expires",
            Self::ToldAfterClosing => "a notice is dropped because its question closed",
            Self::Unreached => "a question counts as unreached with nobody left",
            Self::StaleSent => "an old owner finishes what it had leased",
            Self::GraceRuns => "a grace runs",
            Self::Edited => "an edit is sent",
        }
    }

    pub(super) fn sometimes() -> Vec<Property<ReachOut>> {
        macro_rules! sometimes {
            ($($mark:ident)*) => {
                vec![$(Property::sometimes(Mark::$mark.name(), |_, world: &World| world.seen.mark == Some(Mark::$mark))),*]
            };
        }
        sometimes!(
            Arrived RepeatArrived ConfirmedLate GivenUp NextTier Climbed HeldBackByCover HeldBackByClaim Fenced
            TakenForDead AnswerWon AnswerAgain AnswerRefused Superseded Expired ToldAfterClosing Unreached StaleSent
            GraceRuns Edited
        )
    }
}

/// What is watched over all of it.
#[derive(Clone, Debug, Default, Hash)]
pub(super) struct Seen {
    pub(super) broken: BTreeSet<Broken>,
    pub(super) got: BTreeMap<Name, Got>,
    /// Whose answer was accepted, by revision.
    pub(super) winners: BTreeMap<u32, u8>,
    /// Ticks for which nobody was told although nobody has it.
    pub(super) alone: u8,
    /// Ticks for which nobody was even tried to be told.
    pub(super) untried: u8,
    pub(super) mark: Option<Mark>,
}

impl Seen {
    pub(super) fn is(&self, broken: Broken) -> bool {
        self.broken.contains(&broken)
    }

    pub(super) fn got(&mut self, name: &Name) -> &mut Got {
        self.got.entry(Arc::clone(name)).or_default()
    }

    /// What keys have come to breaks no promise.
    pub(super) fn judge(&mut self, name: &Name) {
        let Got { plain, marked, confirmed, repeats } = self.got[name];
        let broken = [
            (confirmed > 1, Broken::ConfirmedTwice),
            (repeats > 1, Broken::RepeatedTwice),
            (plain > 1 || marked > 1, Broken::Unmarked),
        ];
        self.broken.extend(broken.into_iter().filter(|(is, _)| *is).map(|(_, broken)| broken));
    }
}

impl World {
    pub(super) fn begin(model: &ReachOut) -> Self {
        let mut world = Self {
            now: 100,
            left: Left::of(&model.bounds),
            people: vec![Person::default(); model.bounds.able.len()],
            nodes: [None, None],
            engine: Engine::default(),
            seen: Seen::default(),
        };
        world.start(model, 0);
        world.settle(model);
        while world.has_work(0) == Some(true) {
            world.write(model, 0);
        }
        // It has been running for a while.
        world.now += 10;
        world
    }

    /// The process that owns the session, as far as the engine knows.
    pub(super) fn owning(&self) -> Option<usize> {
        (0..NODES).find(|node| {
            let process = self.nodes[*node].as_ref();
            process.is_some_and(|process| process.owner.is_some() && process.term == self.engine.given)
        })
    }

    pub(super) fn is_stale(&self, node: usize) -> bool {
        self.nodes[node].as_ref().is_some_and(|process| process.term < self.engine.given)
    }

    pub(super) fn acts(&self, model: &ReachOut, acts: &mut Vec<Act>) {
        if !self.seen.broken.is_empty() {
            return;
        }
        for node in 0..model.bounds.nodes {
            match &self.nodes[node] {
                Some(process) if process.frozen => acts.push(Act::Thaw(node)),
                Some(process) => self.acts_of_process(model, node, process, acts),
                None => {}
            }
            if self.may_start(node) {
                acts.push(Act::Start(node));
            }
        }
        if (0..model.bounds.nodes).all(|node| self.is_idle(node)) {
            acts.push(Act::Tick);
        }
    }

    /// A process starts where none has the session, or although another one has.
    fn may_start(&self, node: usize) -> bool {
        let here = self.nodes[node].as_ref();
        let has_room = here.is_none_or(|process| process.owner.is_none() && !process.frozen && !process.stopping);
        let nobody =
            self.owning().is_none() && self.nodes.iter().flatten().all(|process| process.frozen || !process.stopping);
        has_room && (nobody || self.left.take_overs > 0)
    }

    fn is_idle(&self, node: usize) -> bool {
        let Some(process) = self.nodes[node].as_ref().filter(|process| !process.frozen) else { return true };
        self.has_work(node) != Some(true)
            && process.attempts.values().all(|attempt| attempt.may_wait(self.now))
            && (process.stopping || process.schedule.values().all(|due| due.at > self.now))
    }

    fn acts_of_process(&self, model: &ReachOut, node: usize, process: &Process, acts: &mut Vec<Act>) {
        let free = process.owner.as_ref().is_none_or(|owner| owner.work.is_empty());
        self.acts_of_people(node, process, acts);
        if let Some(owner) = &process.owner {
            match owner.work.front() {
                None => self.acts_of_owner(node, owner, acts),
                Some(work) => {
                    acts.push(Act::Write(node));
                    if self.left.refused_writes > 0 && matches!(work, Work::Queue { .. }) {
                        acts.push(Act::WriteRefused(node));
                    }
                }
            }
        }
        self.acts_of_outbox(node, process, free, acts);
        if self.left.crashes > 0 {
            acts.push(Act::Crash(node));
        }
        if self.left.stops > 0 && free && process.owner.is_some() {
            acts.push(Act::EndOwner(node));
        }
        if process.stopping {
            acts.push(Act::Exit(node));
        }
        if self.left.freezes > 0 && model.bounds.nodes > 1 {
            acts.push(Act::Freeze(node));
        }
    }

    fn acts_of_people(&self, node: usize, process: &Process, acts: &mut Vec<Act>) {
        if self.left.acts == 0 || process.owner.is_none() {
            return;
        }
        let newest = self.engine.raised().map_or(0, |view| view.revision);
        for (who, person) in self.people.iter().enumerate() {
            match person.there {
                None => acts.push(Act::Come(who, node)),
                Some((there, _)) if there == node => {
                    if person.proved < newest && person.answers_pings {
                        acts.push(Act::Prove(who));
                    }
                    acts.push(if person.active { Act::Idle(who) } else { Act::Active(who) });
                    if person.answers_pings {
                        acts.push(Act::Vanish(who));
                    }
                    acts.extend([Act::Leave(who, Leave::Clean), Act::Leave(who, Leave::Abnormal)]);
                }
                Some(_) => {}
            }
        }
    }

    fn acts_of_owner(&self, node: usize, owner: &Owner, acts: &mut Vec<Act>) {
        if self.left.raises > 0 {
            acts.push(Act::Raise(node));
        }
        let Some(guardrail) = owner.book.get(GUARDRAIL) else { return };
        let open = guardrail.view.state == GuardrailState::Open;
        if self.left.withdrawals > 0 && open {
            acts.push(Act::Withdraw(node));
        }
        if self.left.answers > 0 {
            let revisions = 1..=guardrail.view.revision;
            acts.extend(revisions.flat_map(|revision| (0..2).map(move |key| Act::Answer(node, key, revision))));
        }
        if self.left.claims > 0 && open {
            acts.push(if guardrail.claimed_until().is_some() { Act::Release(node) } else { Act::Claim(node) });
        }
    }

    fn acts_of_outbox(&self, node: usize, process: &Process, free: bool, acts: &mut Vec<Act>) {
        for (name, attempt) in &process.attempts {
            attempt.acts(node, name, (free, &self.left), acts);
        }
        if !process.stopping {
            let due = process
                .schedule
                .iter()
                .filter(|(name, due)| due.at <= self.now && !process.attempts.contains_key(*name));
            acts.extend(due.map(|(name, _)| Act::Begin(node, Arc::clone(name))));
        }
    }

    pub(super) fn act(&mut self, model: &ReachOut, act: Act) {
        self.seen.mark = None;
        match act {
            Act::Tick => self.tick(),
            Act::Come(who, node) => self.come(model, who, node),
            Act::Prove(who) => self.prove(who),
            Act::Idle(who) => self.attention(who, false),
            Act::Active(who) => self.attention(who, true),
            Act::Vanish(who) => {
                self.left.acts -= 1;
                self.people[who].answers_pings = false;
            }
            Act::Leave(who, leave) => {
                self.left.acts -= 1;
                self.leave(who, leave);
            }
            Act::Raise(node) => self.raise(model, node),
            Act::Withdraw(node) => self.withdraw(node),
            Act::Answer(node, key, revision) => self.answer(node, key, revision),
            Act::Claim(node) => self.claim(node),
            Act::Release(node) => self.release(node),
            Act::Write(node) => self.write(model, node),
            Act::WriteRefused(node) => self.write_refused(node),
            Act::Begin(node, name) => self.begin_attempt(model, node, &name),
            Act::Step(node, name) => self.step(model, node, &name),
            Act::Send(node, name, arrives) => self.send(model, node, &name, arrives),
            Act::Outcome(node, name, outcome) => self.outcome(model, node, &name, outcome),
            Act::Tell(node, name, heard) => self.tell(node, &name, heard),
            Act::Crash(node) => {
                self.left.crashes -= 1;
                self.end_process(node);
            }
            Act::EndOwner(node) => {
                self.left.stops -= 1;
                self.process(node).stopping = true;
                self.end_owner(node);
            }
            Act::Exit(node) => self.end_process(node),
            Act::Start(node) => {
                if self.owning().is_some() {
                    self.left.take_overs -= 1;
                }
                self.start(model, node);
            }
            Act::Freeze(node) => {
                self.left.freezes -= 1;
                self.process(node).frozen = true;
            }
            Act::Thaw(node) => self.process(node).frozen = false,
        }
        self.settle(model);
        if view::nobody_has_it(self).is_none() {
            (self.seen.alone, self.seen.untried) = (0, 0);
        }
    }

    pub(super) fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].as_mut().expect("it runs")
    }

    pub(super) fn owner(&mut self, node: usize) -> &mut Owner {
        self.process(node).owner.as_mut().expect("it has an owner")
    }

    /// Every owner that can does what follows from what has happened; what it writes is a step of its own where every
    /// write is.
    fn settle(&mut self, model: &ReachOut) {
        for node in 0..NODES {
            loop {
                while !model.bounds.fine && self.has_work(node) == Some(true) {
                    self.write(model, node);
                }
                if self.has_work(node) != Some(false) || !self.catch_up(model, node) {
                    break;
                }
            }
        }
    }

    /// Whether the owner has something to write; `None` where there is none, or it stands still.
    fn has_work(&self, node: usize) -> Option<bool> {
        let process = self.nodes[node].as_ref().filter(|process| !process.frozen)?;
        process.owner.as_ref().map(|owner| !owner.work.is_empty())
    }

    fn tick(&mut self) {
        self.count_ticks();
        self.now += 1;
        for who in 0..self.people.len() {
            let Person { there, answers_pings, active, .. } = self.people[who];
            let Some((node, id)) = there else { continue };
            if !answers_pings || self.process(node).frozen {
                continue;
            }
            let now = at(self.now);
            let watch = Arc::make_mut(&mut self.owner(node).watch);
            watch.alive(id, now);
            if active {
                watch.attention(id, true, now);
            }
        }
    }

    fn come(&mut self, model: &ReachOut, who: usize, node: usize) {
        self.left.acts -= 1;
        let (able, now) = (model.bounds.able[who], self.now);
        let id = self.owner(node).enter(able, now);
        self.people[who] = Person { there: Some((node, id)), answers_pings: true, active: true, proved: 0 };
    }

    /// The process and the subscription of somebody who is there.
    fn place(&self, who: usize) -> (usize, u64) {
        self.people[who].there.expect("they are there")
    }

    fn prove(&mut self, who: usize) {
        self.left.acts -= 1;
        let newest = self.engine.raised().map_or(0, |view| view.revision);
        let ((node, id), now) = (self.place(who), at(self.now));
        Arc::make_mut(&mut self.owner(node).watch).proved(id, u64::from(newest), now);
        self.people[who].proved = newest;
    }

    fn attention(&mut self, who: usize, active: bool) {
        self.left.acts -= 1;
        let ((node, id), now) = (self.place(who), at(self.now));
        Arc::make_mut(&mut self.owner(node).watch).attention(id, active, now);
        self.people[who].active = active;
    }

    fn leave(&mut self, who: usize, leave: Leave) {
        let ((node, id), now) = (self.place(who), at(self.now));
        Arc::make_mut(&mut self.owner(node).watch).leave(id, leave, now);
        self.people[who] = Person::default();
    }

    /// Whoever is connected there loses the connection.
    pub(super) fn disconnect(&mut self, node: usize) {
        for person in self.people.iter_mut().filter(|person| person.there.is_some_and(|(there, _)| there == node)) {
            *person = Person::default();
        }
    }

    fn end_process(&mut self, node: usize) {
        self.disconnect(node);
        self.nodes[node] = None;
    }

    /// The owner ends; what its process is sending goes on.
    pub(super) fn end_owner(&mut self, node: usize) {
        self.disconnect(node);
        let process = self.process(node);
        process.owner = None;
        process.schedule.clear();
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.left.hash(hasher);
        self.seen.hash(hasher);
        // In the order in which they came; who has not come looks like all who have not.
        let mut there: Vec<_> = self.people.iter().filter_map(|person| Some((person.there?, person))).collect();
        there.sort_unstable_by_key(|(there, _)| *there);
        for ((node, _), person) in there {
            (node, person.answers_pings, person.active, person.proved).hash(hasher);
        }
        for process in &self.nodes {
            process.is_some().hash(hasher);
            if let Some(process) = process {
                self.hash_process(process, hasher);
            }
        }
        (self.engine.term == self.engine.given).hash(hasher);
        for event in &self.engine.log {
            match event {
                Logged::Raised(view) => (0, view.revision).hash(hasher),
                Logged::Resolved { revision } => (1, *revision).hash(hasher),
            }
        }
        self.engine.guardrail.as_ref().map(|(_, guardrail)| self.outline_of(guardrail)).hash(hasher);
        for (name, (_, record)) in &self.engine.notices {
            name.hash(hasher);
            record.outline(ms(self.now), hasher);
        }
    }
}

impl World {
    /// What tells two guardrails apart.
    pub(super) fn outline_of(&self, guardrail: &Guardrail) -> impl Hash + use<> {
        let view = &guardrail.view;
        let by = view.resolution.as_ref().and_then(|resolution| resolution.by.clone());
        let deadline = seen_at(guardrail.deadline, self.now).min(16);
        let claim = guardrail.claimed_until().map(|until| seen_at(until, self.now));
        (view.revision, view.state as u8, by, seen_at(guardrail.raised_at, self.now), deadline, claim)
    }

    fn hash_process(&self, process: &Process, hasher: &mut impl Hasher) {
        (process.term == self.engine.given, process.term == self.engine.term).hash(hasher);
        (process.frozen, process.stopping, process.owner.is_some()).hash(hasher);
        if let Some(owner) = &process.owner {
            owner.outline(self, hasher);
        }
        let version = |name: &Name| self.engine.notices.get(name).map_or(0, |(version, _)| *version);
        for (name, due) in &process.schedule {
            let at = super::time::seen(due.at, self.now).max(0);
            (name, at, due.version == version(name)).hash(hasher);
        }
        for (name, attempt) in &process.attempts {
            name.hash(hasher);
            attempt.outline(version(name), self.now, hasher);
        }
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let hash = |world: &Self| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

/// Whether a notice in this state may still reach somebody, or has.
pub(super) fn is_alive(state: NoticeState) -> bool {
    !matches!(state, NoticeState::GivenUp | NoticeState::Dropped | NoticeState::Rejected)
}
