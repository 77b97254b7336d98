//! Proves from a history and a final reading that nothing was lost, doubled, revived or swallowed. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    fmt,
    time::Duration,
};

use onlooker_protocol::{
    Position,
    code::Code,
    event::{EventFrame, kind},
    view::{GuardrailState, Outcome, SessionStatus},
};

use crate::history::{Delivered, Entry, Question, Reaction, Reading, Reply, Said, SessionRead, Trace, What};

/// The promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    LostEvent,
    DoubledEvent,
    ReorderedEvent,
    /// An event of a runtime's that no runtime sent.
    ForeignEvent,
    HoleInPositions,
    /// A subscriber was shown what the log does not have.
    ShownOtherwise,
    /// A subscriber missed events, or saw some twice, and no gap said so.
    BrokenResume,
    UnexpectedGap,
    LostSession,
    LostGuardrail,
    RevivedGuardrail,
    /// A guardrail is closed, and no event says so, or the other way round.
    UntoldEnd,
    /// More than one outcome won a revision.
    TwoWinners,
    ContradictedAnswer,
    /// The same answer under the same key was told that somebody else had won, though nobody else had answered.
    DisownedAnswer,
    SwallowedAnswer,
    IgnoredDeadline,
    DoubledNotice,
    /// A repeat that does not say so.
    UnmarkedRepeat,
    LostTask,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// What a run allows.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long before the gateway's death a confirmation must have come so that it counts as known to the gateway.
    /// `None`: never, because the disk did not take everything.
    pub confirmation_kept_after: Option<Duration>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { confirmation_kept_after: Some(Duration::from_secs(2)) }
    }
}

/// How long after the gateway's death a request of its may still be read.
const LATE: Duration = Duration::from_millis(500);

/// Every broken promise. Empty: the run is right.
pub fn check(history: &[Entry], reading: &Reading, terms: Terms) -> Vec<Fault> {
    let mut checker = Checker { history, reading, faults: Vec::new() };
    checker.sessions();
    checker.positions();
    checker.published();
    checker.subscribers();
    checker.guardrails();
    checker.snapshots();
    checker.answers();
    checker.deadlines();
    checker.notices(terms);
    checker.tasks();
    checker.faults
}

struct Checker<'a> {
    history: &'a [Entry],
    reading: &'a Reading,
    faults: Vec<Fault>,
}

/// What a runtime said and heard about one session's numbers.
#[derive(Default)]
struct Numbers {
    sent: BTreeMap<u64, Trace>,
    acknowledged: u64,
}

impl<'a> Checker<'a> {
    fn fault(&mut self, rule: Rule, what: impl Into<String>) {
        self.faults.push(Fault { rule, what: what.into() });
    }

    fn whats(&self) -> impl Iterator<Item = &'a What> + use<'a> {
        self.history.iter().map(|entry| &entry.what)
    }

    fn log(&self, session: &str) -> Option<&'a SessionRead> {
        self.reading.sessions.get(session)
    }

    fn sessions(&mut self) {
        for what in self.whats() {
            match what {
                What::Opened { session } => match self.log(session).map(|read| read.status) {
                    None => self.fault(Rule::LostSession, format!("{session} is not there any more")),
                    Some(SessionStatus::Ended) => self.fault(Rule::LostSession, format!("{session} has ended")),
                    Some(_) => {}
                },
                What::ClaimRefused { session, code } => {
                    self.fault(Rule::LostSession, format!("{session}: its runtime's claim was refused: {code}"));
                }
                _ => {}
            }
        }
    }

    fn positions(&mut self) {
        for (session, read) in &self.reading.sessions {
            if let Some(first) = read.events.first()
                && first.position.offset != 0
            {
                self.fault(Rule::HoleInPositions, format!("{session} begins at {}", first.position));
            }
            for pair in read.events.windows(2) {
                let (before, after) = (pair[0].position, pair[1].position);
                if before.epoch != after.epoch || after.offset != before.offset + 1 {
                    self.fault(Rule::HoleInPositions, format!("{session}: {after} follows {before}"));
                }
            }
        }
    }

    fn numbers(&mut self) -> BTreeMap<&'a str, Numbers> {
        let mut numbers = BTreeMap::<&str, Numbers>::new();
        for what in self.whats() {
            match what {
                What::Sent { session, n, trace } => {
                    numbers.entry(session).or_default().sent.insert(*n, trace.clone());
                }
                What::Acknowledged { session, n, .. } => {
                    let of = numbers.entry(session).or_default();
                    of.acknowledged = of.acknowledged.max(*n);
                }
                What::Expected { session, n } => {
                    let of = numbers.entry(session).or_default();
                    let (acknowledged, sent) = (of.acknowledged, of.sent.keys().next_back().copied().unwrap_or(0));
                    // What the gateway has, it need not be sent again: that is its word too.
                    of.acknowledged = acknowledged.max(n - 1);
                    if *n <= acknowledged {
                        let what = format!("{session}: {n} is expected, and {acknowledged} was acknowledged");
                        self.fault(Rule::LostEvent, what);
                    }
                    if *n > sent + 1 {
                        self.fault(Rule::ForeignEvent, format!("{session}: {n} is expected, and {sent} was the last"));
                    }
                }
                _ => {}
            }
        }
        numbers
    }

    /// Every acknowledged event exactly once and in order, every other one at most once.
    fn published(&mut self) {
        let numbers = self.numbers();
        for (session, numbers) in &numbers {
            let Some(read) = self.log(session) else { continue };
            self.published_in(session, numbers, &read.events);
        }
        self.acknowledged_positions(&numbers);
    }

    fn published_in(&mut self, session: &str, numbers: &Numbers, events: &[EventFrame]) {
        let leaves = |(_, trace): &(&u64, &Trace)| **trace != Trace::Nothing;
        let mut due: VecDeque<(u64, &Trace)> =
            numbers.sent.iter().filter(leaves).map(|(n, trace)| (*n, trace)).collect();
        let mut skipped: Vec<(u64, &Trace)> = Vec::new();
        let mut seen = HashSet::new();
        let mut raised = HashMap::new();
        for event in events {
            let Some(trace) = trace_of(event) else { continue };
            let at = event.position;
            let anew = is_asked_anew(&mut raised, &trace, event);
            if due.front().is_some_and(|(_, next)| **next == trace) {
                due.pop_front();
            } else if anew {
                continue;
            } else if let Some(place) = skipped.iter().position(|(_, left_out)| **left_out == trace) {
                let (n, _) = skipped.remove(place);
                self.fault(Rule::ReorderedEvent, format!("{session}: number {n} is at {at}, behind a later one"));
            } else if seen.contains(&trace) {
                self.fault(Rule::DoubledEvent, format!("{session}: {trace:?} is there again at {at}"));
            } else if let Some(place) = due.iter().position(|(_, next)| **next == trace) {
                skipped.extend(due.drain(..place));
                due.pop_front();
            } else {
                self.fault(Rule::ForeignEvent, format!("{session}: {trace:?} at {at} was not sent"));
            }
            seen.insert(trace);
        }
        for (n, trace) in skipped {
            self.fault(Rule::LostEvent, format!("{session}: number {n} ({trace:?}) is missing before a later one"));
        }
        for (n, trace) in due.into_iter().filter(|(n, _)| *n <= numbers.acknowledged) {
            self.fault(Rule::LostEvent, format!("{session}: number {n} ({trace:?}) was acknowledged"));
        }
    }

    /// An acknowledgement names a position at or behind what it acknowledges.
    fn acknowledged_positions(&mut self, numbers: &BTreeMap<&str, Numbers>) {
        let mut places = HashMap::new();
        for (session, read) in &self.reading.sessions {
            for event in &read.events {
                if let Some(Trace::Numbered(n)) = trace_of(event) {
                    places.insert((session.as_str(), n), event.position);
                }
            }
        }
        for what in self.whats() {
            let What::Acknowledged { session, n, position } = what else { continue };
            let numbered = numbers.get(session.as_str()).and_then(|of| of.sent.get(n));
            let Some(Trace::Numbered(_)) = numbered else { continue };
            let Some(place) = places.get(&(session.as_str(), *n)) else { continue };
            if place.epoch != position.epoch || place.offset > position.offset {
                let what = format!("{session}: number {n} was acknowledged up to {position} and is at {place}");
                self.fault(Rule::LostEvent, what);
            }
        }
    }

    /// Each subscriber resumes from its last position: it must have seen every event once, as the log has it.
    fn subscribers(&mut self) {
        let mut last: HashMap<(&str, &str), Option<Position>> = HashMap::new();
        for what in self.whats() {
            match what {
                What::Gap { subscriber, session, reason } => {
                    self.fault(Rule::UnexpectedGap, format!("{subscriber} in {session}: {reason:?}"));
                    last.insert((subscriber, session), None);
                }
                What::Saw { subscriber, frame } => {
                    let at = frame.position;
                    let before = last.insert((subscriber, &frame.session), Some(at));
                    let next = match before {
                        None => Some(0),
                        Some(None) => None,
                        Some(Some(before)) => Some(before.offset + 1),
                    };
                    if next.is_some_and(|next| next != at.offset) {
                        let what = format!("{subscriber} in {}: {at} came where {next:?} was due", frame.session);
                        self.fault(Rule::BrokenResume, what);
                    }
                    self.shown(subscriber, frame);
                }
                _ => {}
            }
        }
    }

    fn shown(&mut self, subscriber: &str, frame: &EventFrame) {
        let Some(read) = self.log(&frame.session) else { return };
        let there = usize::try_from(frame.position.offset).ok().and_then(|offset| read.events.get(offset));
        if there != Some(frame) {
            let (what, has) = (&frame.event.kind, there.map(|there| (&there.position, &there.event.kind)));
            let what = format!("{subscriber} saw {what} at {} in {}; log: {has:?}", frame.position, frame.session);
            self.fault(Rule::ShownOtherwise, what);
        }
    }

    /// Revisions rise, each has one winner, and what REST says is what the log says.
    fn guardrails(&mut self) {
        let sessions: Vec<_> = self.reading.sessions.iter().collect();
        for (session, read) in sessions {
            let courses = self.courses(session, &read.events);
            for ((guardrail, revision), course) in &courses {
                let newest = courses.range((guardrail.clone(), revision + 1)..).next();
                if newest.is_some_and(|((other, _), _)| other == guardrail) {
                    if course.is_open() {
                        let what = format!("{session}/{guardrail} revision {revision} was never closed");
                        self.fault(Rule::UntoldEnd, what);
                    }
                    continue;
                }
                self.as_shown(session, read, guardrail, *revision, course);
            }
        }
    }

    fn courses(&mut self, session: &str, events: &[EventFrame]) -> BTreeMap<(String, u32), Course> {
        let mut courses = BTreeMap::<(String, u32), Course>::new();
        for event in events {
            let Some((guardrail, revision)) = guardrail_of(event) else { continue };
            let name = format!("{session}/{guardrail} revision {revision} at {}", event.position);
            let key = (guardrail.clone(), revision);
            match &*event.event.kind {
                kind::GUARDRAIL_TRIGGER => {
                    let higher = courses.range(key.clone()..).next().is_some_and(|((other, _), _)| *other == guardrail);
                    if higher {
                        self.fault(Rule::RevivedGuardrail, format!("{name} is raised again"));
                    }
                    courses.entry(key).or_default();
                }
                kind::GUARDRAIL_RESOLVED => {
                    let Some(outcome) = outcome_of(event) else { continue };
                    let course = courses.entry(key).or_default();
                    if !course.may_end_as(outcome) {
                        let what = format!("{name}: {outcome:?} after {:?}", course.outcomes);
                        self.fault(Rule::TwoWinners, what);
                    }
                    course.outcomes.push(outcome);
                }
                _ => {}
            }
        }
        courses
    }

    fn as_shown(&mut self, session: &str, read: &SessionRead, guardrail: &str, revision: u32, course: &Course) {
        let name = format!("{session}/{guardrail} revision {revision}");
        let Some(view) = read.guardrails.iter().find(|view| view.guardrail_id == guardrail) else {
            if course.is_open() {
                self.fault(Rule::LostGuardrail, format!("{name} is open and nobody can find it"));
            }
            return;
        };
        if view.revision != revision {
            self.fault(Rule::LostGuardrail, format!("{name} is the newest, REST has revision {}", view.revision));
            return;
        }
        let open = view.state == GuardrailState::Open;
        if open && !course.is_open() {
            self.fault(Rule::RevivedGuardrail, format!("{name} was {:?} and is open", course.outcomes));
        } else if !open && course.is_open() {
            self.fault(Rule::UntoldEnd, format!("{name} is {:?}, and the log does not say so", view.state));
        }
    }

    /// A snapshot shows as open what the log has as open at its position, no more and no less.
    fn snapshots(&mut self) {
        for what in self.whats() {
            let What::Snapshot { session, position, open } = what else { continue };
            let Some(read) = self.log(session) else { continue };
            let mut really = BTreeSet::new();
            for event in read.events.iter().take_while(|event| event.position.offset <= position.offset) {
                let Some(question) = guardrail_of(event) else { continue };
                match &*event.event.kind {
                    kind::GUARDRAIL_TRIGGER => really.insert(question),
                    kind::GUARDRAIL_RESOLVED => really.remove(&question),
                    _ => false,
                };
            }
            let shown: BTreeSet<_> = open.iter().cloned().collect();
            for (guardrail, revision) in shown.difference(&really) {
                let what = format!("{session}/{guardrail} revision {revision} is open in the snapshot at {position}");
                self.fault(Rule::RevivedGuardrail, what);
            }
            for (guardrail, revision) in really.difference(&shown) {
                let what = format!("{session}/{guardrail} revision {revision} is not in the snapshot at {position}");
                self.fault(Rule::LostGuardrail, what);
            }
        }
    }

    fn answers(&mut self) {
        let mut asked: HashMap<&str, (&Question, &Said)> = HashMap::new();
        let mut answerers: HashMap<&Question, usize> = HashMap::new();
        let mut accepted: BTreeMap<&Question, BTreeSet<&str>> = BTreeMap::new();
        let mut disowned = Vec::new();
        for what in self.whats() {
            match what {
                What::Answered { key, question, said } => {
                    let again = asked.insert(key, (question, said)).is_some();
                    *answerers.entry(question).or_default() += usize::from(!again);
                }
                What::Replied { key, reply } => {
                    let Some((question, _)) = asked.get(key.as_str()) else { continue };
                    match reply {
                        Reply::Accepted => _ = accepted.entry(question).or_default().insert(key),
                        Reply::Refused(Code::AlreadyAnswered) => disowned.push(*question),
                        Reply::Refused(_) => {}
                    }
                }
                _ => {}
            }
        }
        for question in disowned.into_iter().filter(|question| answerers[question] == 1) {
            self.fault(Rule::DisownedAnswer, format!("{question}: the only answer was told that another one had won"));
        }
        let outcomes = self.outcomes();
        for (question, keys) in accepted {
            if keys.len() > 1 {
                self.fault(Rule::TwoWinners, format!("{question}: {} answers were accepted", keys.len()));
                continue;
            }
            let said = keys.first().map(|key| asked[key].1).expect("an entry has a key");
            self.accepted(question, said, outcomes.get(question).map_or(&[], Vec::as_slice));
        }
    }

    /// What runtimes were told, by question; it must not change, except that what was asked is over by now.
    fn outcomes(&mut self) -> BTreeMap<&'a Question, Vec<(Outcome, Option<&'a str>)>> {
        let mut told = BTreeMap::<&Question, Vec<(Outcome, Option<&str>)>>::new();
        for what in self.whats() {
            let What::Outcome { question, outcome, choice } = what else { continue };
            let outcomes = told.entry(question).or_default();
            let now = (*outcome, choice.as_deref());
            if outcomes.last().is_some_and(|before| *before != now && !ends_anything(*outcome)) {
                self.fault(Rule::ContradictedAnswer, format!("{question}: told {outcomes:?}, then {now:?}"));
            }
            outcomes.push(now);
        }
        told
    }

    /// An accepted answer reached the runtime as it was given, or everybody was told that it did not.
    fn accepted(&mut self, question: &Question, said: &Said, told: &[(Outcome, Option<&str>)]) {
        let Some(read) = self.log(&question.session) else { return };
        let name = (question.guardrail.clone(), question.revision);
        let of = |event: &&EventFrame| guardrail_of(event).as_ref() == Some(&name);
        let resolved: Vec<_> =
            read.events.iter().filter(of).filter_map(|event| Some((event, outcome_of(event)?))).collect();
        let as_given = resolved.first().is_some_and(|(event, outcome)| {
            *outcome == said.outcome && event.event.data["choice"].as_str() == said.choice.as_deref()
        });
        if !as_given {
            let has: Vec<_> = resolved.iter().map(|(_, outcome)| outcome).collect();
            self.fault(Rule::ContradictedAnswer, format!("{question}: accepted as {said:?}, the log has {has:?}"));
        }
        let reached = told.iter().find(|(outcome, _)| !ends_anything(*outcome));
        if reached.is_some_and(|(outcome, choice)| *outcome != said.outcome || *choice != said.choice.as_deref()) {
            self.fault(Rule::ContradictedAnswer, format!("{question}: accepted as {said:?}, the runtime has {told:?}"));
        }
        if reached.is_some() {
            return;
        }
        match resolved.iter().map(|(_, outcome)| *outcome).find(|outcome| ends_anything(*outcome)) {
            None => self.fault(Rule::SwallowedAnswer, format!("{question}: {said:?} was accepted and went nowhere")),
            Some(Outcome::Lost) => self.lost(question, said, read),
            // The runtime withdrew it, asked the next one, or its task is over: nobody waits for the answer.
            Some(_) => {}
        }
    }

    fn lost(&mut self, question: &Question, said: &Said, read: &SessionRead) {
        if !said.secret {
            self.fault(Rule::SwallowedAnswer, format!("{question}: {said:?} was lost and holds no secret"));
        }
        let anew = |event: &EventFrame| {
            event.event.kind == kind::GUARDRAIL_TRIGGER
                && guardrail_of(event)
                    .is_some_and(|(id, revision)| id == question.guardrail && revision > question.revision)
        };
        if !read.events.iter().any(anew) {
            self.fault(Rule::SwallowedAnswer, format!("{question}: the answer was lost and nobody is asked anew"));
        }
    }

    fn deadlines(&mut self) {
        for (session, read) in &self.reading.sessions {
            let due = |view: &&onlooker_protocol::view::GuardrailView| {
                view.state == GuardrailState::Open && view.expires_at < self.reading.settled_at
            };
            let late: Vec<_> = read.guardrails.iter().filter(due).cloned().collect();
            for view in late {
                let what = format!("{session}/{} is open since {}", view.guardrail_id, view.expires_at);
                self.fault(Rule::IgnoredDeadline, what);
            }
        }
    }

    fn notices(&mut self, terms: Terms) {
        let mut ids = BTreeMap::<_, BTreeSet<&str>>::new();
        let mut deliveries: BTreeMap<&str, Vec<(Duration, &Delivered)>> = BTreeMap::new();
        for entry in self.history {
            let What::Delivered(delivered) = &entry.what else { continue };
            let key = (&*delivered.session, &*delivered.kind, &delivered.about);
            ids.entry(key).or_default().insert(&delivered.id);
            deliveries.entry(&delivered.id).or_default().push((entry.at, delivered));
        }
        for (key, ids) in ids.into_iter().filter(|(_, ids)| ids.len() > 1) {
            self.fault(Rule::DoubledNotice, format!("{key:?} has the ids {ids:?}"));
        }
        for (id, deliveries) in deliveries {
            for pair in deliveries.windows(2) {
                self.again(id, pair[0], pair[1].1, terms);
            }
        }
    }

    /// A notice came once more. Only one that was surely refused may be sent again as if for the first time.
    fn again(&mut self, id: &str, (at, before): (Duration, &Delivered), after: &Delivered, terms: Terms) {
        let may_have_arrived = before.reaction != Reaction::Refused;
        let name = format!("{id} ({} {:?}, {:?})", before.kind, before.about, before.reaction);
        if before.repeat && may_have_arrived {
            self.fault(Rule::DoubledNotice, format!("{name} was repeated more than once"));
        }
        if (may_have_arrived || before.repeat) && !after.repeat {
            self.fault(Rule::UnmarkedRepeat, format!("{name} came again without a word"));
        }
        let Some(margin) = terms.confirmation_kept_after else { return };
        // A request of a process that has just died may still be read after its death.
        let near = |died: Duration| died + LATE >= at && died <= at + margin;
        let kept = !self.history.iter().any(|entry| matches!(entry.what, What::GatewayKilled) && near(entry.at));
        if before.reaction == Reaction::Confirmed && kept {
            self.fault(Rule::DoubledNotice, format!("{name} was confirmed long before, and came again"));
        }
    }

    /// A queued task reaches its runtime, or the log says how it ended.
    fn tasks(&mut self) {
        let received: HashSet<(&str, &str)> = self
            .whats()
            .filter_map(|what| match what {
                What::TaskReceived { session, task } => Some((session.as_str(), task.as_str())),
                _ => None,
            })
            .collect();
        for what in self.whats() {
            let What::TaskQueued { session, task } = what else { continue };
            let Some(read) = self.log(session) else { continue };
            let ended = |event: &EventFrame| {
                event.task.as_ref() == Some(task)
                    && (kind::is_result(&event.event.kind) || event.event.kind == kind::TASK_STOPPED)
            };
            if !received.contains(&(session, task)) && !read.events.iter().any(ended) {
                self.fault(Rule::LostTask, format!("{session}: {task} never reached its runtime"));
            }
        }
    }
}

/// How one revision went.
#[derive(Default)]
struct Course {
    outcomes: Vec<Outcome>,
}

impl Course {
    fn is_open(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// An answer that was accepted may still be lost, withdrawn or overtaken, once; nothing else is undone.
    fn may_end_as(&self, outcome: Outcome) -> bool {
        match self.outcomes.as_slice() {
            [] => true,
            [Outcome::Answered | Outcome::Declined] => ends_anything(outcome),
            _ => false,
        }
    }
}

/// Outcomes that may also follow an accepted answer.
fn ends_anything(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Cancelled | Outcome::Superseded | Outcome::Lost)
}

fn guardrail_of(event: &EventFrame) -> Option<(String, u32)> {
    let is_one = event.event.kind == kind::GUARDRAIL_TRIGGER || event.event.kind == kind::GUARDRAIL_RESOLVED;
    let data = &event.event.data;
    let revision = data["revision"].as_u64().and_then(|revision| u32::try_from(revision).ok())?;
    is_one.then(|| Some((data["guardrailId"].as_str()?.to_owned(), revision)))?
}

fn outcome_of(event: &EventFrame) -> Option<Outcome> {
    let resolved = event.event.kind == kind::GUARDRAIL_RESOLVED;
    resolved.then(|| serde_json::from_value(event.event.data["outcome"].clone()).ok())?
}

/// By what an event in the log is recognised as a runtime's. `None`: the gateway's own.
fn trace_of(event: &EventFrame) -> Option<Trace> {
    let data = &event.event.data;
    let number = |name: &str| data[name].as_u64().and_then(|number| u32::try_from(number).ok());
    match &*event.event.kind {
        kind::SENSITIVE => data["by"].is_null().then(|| data["on"].as_bool().map(Trace::Sensitive))?,
        kind::GUARDRAIL_TRIGGER => {
            Some(Trace::Trigger { guardrail: data["guardrailId"].as_str()?.to_owned(), asked: number("asked")? })
        }
        kind::GUARDRAIL_TAKEN => {
            Some(Trace::Taken { guardrail: data["guardrailId"].as_str()?.to_owned(), revision: number("revision")? })
        }
        kind::TASK_STARTED | kind::TASK_COMPLETED | kind::SCREENSHOT => Some(Trace::Numbered(data["n"].as_u64()?)),
        other if other.starts_with("x.") => Some(Trace::Numbered(data["n"].as_u64()?)),
        _ => None,
    }
}

/// Whether the gateway asks a question of a runtime's anew: the same one under a higher revision.
fn is_asked_anew(raised: &mut HashMap<Trace, u64>, trace: &Trace, event: &EventFrame) -> bool {
    let Trace::Trigger { .. } = trace else { return false };
    let revision = event.event.data["revision"].as_u64().unwrap_or_default();
    raised.insert(trace.clone(), revision).is_some_and(|before| revision > before)
}

#[cfg(test)]
mod tests;
