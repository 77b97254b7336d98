//! What must be true of every run, written from the rules as people are told them and not from the code that decides.
//!
//! From the trace it computes for each question when it was open and when somebody was excused from being told of it:
//! because it was covered, held, in a grace or in its first look. What is sent although all of the time before it was
//! excused is a nag; what is not sent although it is no longer excused is a miss. Every other promise is about the
//! messages themselves, and looks at them one by one.

use std::collections::{BTreeMap, BTreeSet};

use onlooker_protocol::view::ReachOutMode;

use super::{
    plan::Plan,
    spans::Spans,
    trace::{Attention, Event, Nth, Outcome, Subject},
    world::reaches_out,
};
use crate::notifier::split_target;

const LIVE: u64 = 20_000;
const LEASE: u64 = 30_000;
const POLL: u64 = 10_000;
const GRACE: u64 = 5_000;
const FIRST_LOOK: u64 = 10_000;
const START: u64 = 15_000;
const CLAIM_GRACE: u64 = 5_000;
const CONTROL: u64 = 60_000;
/// Waits that are under way when an engine comes back.
const AFTER_TROUBLE: u64 = 6_000;
/// Sends that one target, and all of one chat, get at once.
const AT_ONCE: (usize, usize) = (8, 16);

type At = (u64, Event);

/// From when somebody was to be told, to when somebody was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    pub(super) class: Class,
    pub(super) ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Nobody watched and no grace ran: from the raising.
    Nobody,
    /// Whoever had the question was connected and dead: from their last sign of life, or the raising.
    Dead,
    /// Somebody able was there and never proved to have it: from the raising, or the end of cover.
    Unproved,
    /// Held, covered by who left, restarted, or the engine was in trouble: from the end of that.
    Other,
}

/// Somebody who counts, for a while.
#[derive(Clone, Debug)]
struct Counting {
    who: u64,
    from: u64,
    to: u64,
    able: bool,
    results: bool,
    end: Left,
    proofs: Vec<(u64, u64)>,
    /// For those that lapsed: when their code was last heard.
    last_sign: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Clean,
    Abnormal,
    /// With the process, or not at all.
    Stayed,
}

impl Counting {
    /// From when on it covers what is at this offset.
    fn covers(&self, offset: u64) -> Option<(u64, u64)> {
        let proved = self.proofs.iter().filter(|(_, proof)| *proof >= offset).map(|(at, _)| *at).min()?;
        let from = proved.max(self.from);
        (from < self.to).then_some((from, self.to))
    }
}

#[derive(Clone, Debug)]
struct Due {
    subject: Subject,
    raised: u64,
    offset: u64,
    /// Until when somebody is to be told of it.
    until: u64,
    closed: Option<u64>,
}

#[derive(Clone, Debug)]
struct Message {
    at: u64,
    target: String,
    id: String,
    kind: String,
    repeat: bool,
    step: u32,
    subject: Subject,
    card: bool,
    arrived: bool,
    outcome: Option<Outcome>,
    /// When it was over, one way or the other.
    over: u64,
    /// For how long after that the other end wants to hear nothing, and whether at any address.
    wish: (u64, bool),
}

impl Message {
    fn may_have_arrived(&self) -> bool {
        !matches!(self.outcome, Some(Outcome::Refused | Outcome::Rejected))
    }
}

struct Claim {
    subject: Subject,
    maybe: (u64, u64),
    surely: (u64, u64),
}

/// The times at which somebody need not be told, by reason.
struct Excuses {
    cover: Spans,
    held: Spans,
    held_perhaps: Spans,
    grace: Spans,
    first_look: Spans,
}

impl Excuses {
    fn surely(&self) -> Spans {
        self.cover.or(&self.held).or(&self.grace).or(&self.first_look)
    }
}

pub(super) struct Checker<'a> {
    plan: &'a Plan,
    trace: &'a [At],
    end: u64,
    quiet: u64,
    /// Beginning and end of each process.
    lives: Vec<(u64, u64)>,
    trouble: Spans,
    modes: BTreeMap<Nth, ReachOutMode>,
    counting: BTreeMap<Nth, Vec<Counting>>,
    dues: Vec<Due>,
    messages: Vec<Message>,
    claims: Vec<Claim>,
    control: BTreeMap<Nth, (Spans, Spans)>,
    gone: BTreeMap<Nth, u64>,
    wrong: Vec<String>,
    delays: Vec<Delay>,
}

/// Everything that is wrong with a run, and how long people waited in it.
pub(super) fn check(plan: &Plan, trace: &[At]) -> (Vec<String>, Vec<Delay>) {
    let mut checker = Checker::new(plan, trace);
    checker.check_dues();
    checker.check_keys();
    checker.check_records();
    checker.check_closing();
    checker.check_answers();
    checker.check_ladder();
    checker.check_the_end();
    (checker.wrong, checker.delays)
}

impl<'a> Checker<'a> {
    fn new(plan: &'a Plan, trace: &'a [At]) -> Self {
        let end = trace.last().map_or(0, |last| last.0);
        let lives = lives(trace, end);
        let mut checker = Self {
            plan,
            trace,
            end,
            quiet: trace.iter().find(|(_, event)| *event == Event::Quiet).map_or(end, |quiet| quiet.0),
            trouble: trouble(trace, end),
            modes: BTreeMap::new(),
            counting: counting(trace, &lives),
            dues: Vec::new(),
            messages: messages(trace, &lives),
            claims: Vec::new(),
            control: BTreeMap::new(),
            gone: BTreeMap::new(),
            wrong: Vec::new(),
            delays: Vec::new(),
            lives,
        };
        checker.read();
        checker.read_claims();
        checker.read_control();
        checker
    }

    fn read(&mut self) {
        let mut closed = BTreeMap::new();
        for (at, event) in self.trace {
            match event {
                Event::Opened { session, mode } => {
                    self.modes.insert(*session, *mode);
                }
                Event::Raised { subject, offset } | Event::ResultDue { subject, offset } => {
                    let (subject, raised, offset) = (subject.clone(), *at, *offset);
                    self.dues.push(Due { subject, raised, offset, until: self.end, closed: None });
                }
                Event::Closed { subject } => {
                    closed.entry(subject.clone()).or_insert(*at);
                }
                Event::Forgotten { session } => {
                    self.gone.entry(*session).or_insert(*at);
                }
                _ => {}
            }
        }
        for due in &mut self.dues {
            due.closed = closed.get(&due.subject).copied();
            let gone = self.gone.get(&due.subject.session()).copied();
            due.until = due.closed.into_iter().chain(gone).chain([due.until]).min().unwrap();
        }
    }

    fn life_of(&self, at: u64) -> (u64, u64) {
        self.lives.iter().rev().find(|life| life.0 <= at).copied().unwrap_or((0, self.end))
    }

    fn read_claims(&mut self) {
        for (index, (asked, event)) in self.trace.iter().enumerate() {
            let Event::ClaimAsked { subject, length_ms, by, connection } = event else { continue };
            let after = || self.trace[index..].iter();
            let life = self.life_of(*asked);
            let told = |wanted: &dyn Fn(&Event) -> bool| after().find(|(_, event)| wanted(event)).map(|at| at.0);
            let again = |event: &Event| matches!(event, Event::ClaimAsked { by: other, .. } if other == by);
            let next = self.trace[index + 1..].iter().find(|(_, event)| again(event)).map_or(self.end, |at| at.0);
            let mine = |event: &Event| matches!(event, Event::Claimed { by: other, .. } if other == by);
            let answer = after().find(|(_, event)| mine(event)).filter(|answer| answer.0 <= life.1.min(next));
            if matches!(answer, Some((_, Event::Claimed { granted: false, .. }))) {
                continue;
            }
            let granted = answer.map(|answer| answer.0);
            let release = |event: &Event| matches!(event, Event::ReleaseAsked { by: other, subject: of } if other == by && of == subject);
            let lost = |event: &Event| matches!(event, Event::ConnectionLost { by: other } if other == by);
            let mut maybe = (*asked, granted.unwrap_or(life.1) + length_ms);
            // In the millisecond of its granting, what was decided just before is sent.
            let mut surely = (granted.map_or(u64::MAX, |at| at + 1), *asked + length_ms);
            surely.1 = surely.1.min(told(&release).unwrap_or(u64::MAX)).min(next);
            if *connection {
                let left = told(&lost).unwrap_or(u64::MAX).saturating_add(CLAIM_GRACE).min(life.1);
                (maybe.1, surely.1) = (maybe.1.min(left + 100), surely.1.min(left));
            } else if self.plan.jumps {
                surely.1 = surely.1.min(life.1);
                // Who starts behind a clock that went back holds a claim once more for as long as it was given.
                let restart = self.lives.iter().map(|life| life.0).filter(|start| *start > *asked).max();
                maybe.1 = maybe.1.max(restart.map_or(0, |start| start + length_ms));
            }
            self.claims.push(Claim { subject: subject.clone(), maybe, surely });
        }
    }

    fn read_control(&mut self) {
        let mut taken: BTreeMap<Nth, Vec<(u64, bool)>> = BTreeMap::new();
        for (at, event) in self.trace {
            if let Event::Control { session, taken: is } = event {
                taken.entry(*session).or_default().push((*at, *is));
            }
        }
        for (session, changes) in taken {
            let (mut perhaps, mut surely) = (Vec::new(), Vec::new());
            for (index, (from, _)) in changes.iter().enumerate().filter(|(_, change)| change.1) {
                let to = changes.get(index + 1).map_or(self.end, |next| next.0);
                // Before its event is in the log, while the engine takes its time.
                perhaps.push((from.saturating_sub(self.lag()), to));
                surely.push((*from, to.min(*from + CONTROL - self.lag()).min(self.life_of(*from).1)));
            }
            self.control.insert(session, (Spans::of(perhaps), Spans::of(surely)));
        }
    }

    /// What several writes in a row take, when nothing is wrong.
    fn lag(&self) -> u64 {
        self.plan.lag_ms * 16
    }

    fn mode(&self, subject: &Subject) -> ReachOutMode {
        self.modes.get(&subject.session()).copied().unwrap_or(ReachOutMode::Off)
    }

    fn is_wanted(&self, subject: &Subject) -> bool {
        match subject {
            Subject::Question { .. } => reaches_out(self.mode(subject)),
            Subject::Result { .. } => self.mode(subject) == ReachOutMode::Full,
        }
    }

    fn starts(&self) -> Spans {
        Spans::of(self.lives.iter().map(|(start, _)| (*start, start + START)))
    }

    fn down(&self) -> Spans {
        Spans::of([(0, self.end + 1)]).without(&Spans::of(self.lives.iter().copied()))
    }

    fn of_session(&self, session: Nth) -> &[Counting] {
        self.counting.get(&session).map_or(&[], Vec::as_slice)
    }

    fn excuses(&self, due: &Due) -> Excuses {
        let question = matches!(due.subject, Subject::Question { .. });
        let relevant: Vec<&Counting> =
            self.of_session(due.subject.session()).iter().filter(|counting| counting.able || !question).collect();
        let cover = Spans::of(relevant.iter().filter_map(|counting| counting.covers(due.offset)));
        let had_it = || relevant.iter().filter(|counting| counting.covers(due.offset).is_some());
        let mut grace: Vec<(u64, u64)> =
            had_it().filter(|counting| counting.end == Left::Abnormal).map(|c| (c.to, c.to + GRACE)).collect();
        grace.extend(grace_before(&relevant, due.raised));
        let there = Spans::of(relevant.iter().map(|counting| (counting.from, counting.to)));
        let origins = had_it().map(|counting| counting.to).chain([due.raised]).filter(|at| *at >= due.raised);
        let first_look = Spans::of(origins.map(|at| (at, at + FIRST_LOOK))).and(&there);
        let (control_perhaps, control) = self.control.get(&due.subject.session()).cloned().unwrap_or_default();
        let claims = || self.claims.iter().filter(|claim| claim.subject == due.subject);
        Excuses {
            cover: if question { cover } else { Spans::default() },
            held: Spans::of(claims().map(|claim| claim.surely)).or(&control),
            held_perhaps: Spans::of(claims().map(|claim| claim.maybe)).or(&control_perhaps),
            grace: Spans::of(grace).or(&self.starts()),
            first_look,
        }
    }

    /// When a result was first seen by somebody, for certain.
    fn seen_at(&self, due: &Due) -> Option<u64> {
        if matches!(due.subject, Subject::Question { .. }) {
            return None;
        }
        let counting = self.of_session(due.subject.session()).iter().filter(|counting| counting.results);
        let proved = counting.filter_map(|counting| counting.covers(due.offset)).map(|(from, _)| from).min();
        let mut session = None;
        let read = self.trace.iter().find_map(|(at, event)| match event {
            Event::PollBegins { who, session: of, .. } if *of == due.subject.session() => {
                session = Some(*who);
                None
            }
            Event::PollRead { who, result, .. } if session == Some(*who) && *result == Some(due.offset) => Some(*at),
            _ => None,
        });
        proved.into_iter().chain(read).min()
    }

    /// A target has its hands full, so that a message to it may wait.
    fn busy(&self, target: &str) -> Spans {
        let flights = |all: Vec<(u64, u64)>, most: usize| {
            let full = |at: u64| all.iter().filter(|(from, to)| (*from..=*to).contains(&at)).count() >= most;
            Spans::of(all.iter().filter(|(from, _)| full(*from)).map(|(from, to)| (*from, to + 2_000)))
        };
        let same_chat = |message: &&Message| split_target(&message.target).0 == split_target(target).0;
        let chat: Vec<&Message> = self.messages.iter().filter(same_chat).collect();
        let flight = |message: &&Message| (message.at, message.over);
        let own = chat.iter().copied().filter(|message| message.target == target);
        let silent = chat.iter().filter(|message| message.wish.0 > 0 && (message.wish.1 || message.target == target));
        let silent = Spans::of(silent.map(|message| (message.over, message.over + message.wish.0 + 2_000)));
        let full = flights(own.map(|message| flight(&message)).collect(), AT_ONCE.0);
        full.or(&flights(chat.iter().map(flight).collect(), AT_ONCE.1)).or(&silent)
    }

    // --- no miss, no nag -----------------------------------------------------------------------------------------

    fn check_dues(&mut self) {
        for due in self.dues.clone() {
            let asks = |message: &&Message| message.subject == due.subject && message.kind != "update";
            let sent: Vec<Message> = self.messages.iter().filter(asks).cloned().collect();
            if !self.is_wanted(&due.subject) {
                if !sent.is_empty() {
                    self.wrong.push(format!("{:?} is sent although its mode says no", due.subject));
                }
                continue;
            }
            let excuses = self.excuses(&due);
            self.check_nag(&due, &excuses, &sent);
            self.check_miss(&due, &excuses, &sent);
        }
    }

    fn check_nag(&mut self, due: &Due, excuses: &Excuses, sent: &[Message]) {
        let slack = 5 + self.lag();
        let (covered, surely, starts) = (excuses.cover.clone(), excuses.surely(), self.starts());
        let seen = self.seen_at(due);
        for message in sent {
            let from = message.at.saturating_sub(slack);
            if self.trouble.meets(from, message.at + 1) {
                continue;
            }
            let because = match () {
                () if message.step > 0 && !excuses.held.has_all(from, message.at) => continue,
                () if covered.has_all(from, message.at) => "it was covered",
                () if excuses.held.has_all(from, message.at) => "it was held",
                () if starts.has_all(from, message.at) => "the gateway had just started",
                () if surely.has_all(from, message.at) => "a grace or a first look ran",
                () if due.closed.is_some_and(|closed| closed < from) => "it was closed",
                () if seen.is_some_and(|seen| seen < from && self.is_kept(seen, message.at)) => "it was seen",
                () => continue,
            };
            self.wrong
                .push(format!("nag: at {} {} is told of {:?}: {because}", message.at, message.target, due.subject));
        }
    }

    /// That a result was seen is written down at once; a process that ends before that forgets it.
    fn is_kept(&self, seen: u64, at: u64) -> bool {
        let life = self.life_of(seen);
        life.1 >= at || (life.1 > seen + 200 + self.lag() && !self.trouble.meets(seen, life.1))
    }

    fn check_miss(&mut self, due: &Due, excuses: &Excuses, sent: &[Message]) {
        let quiet = excuses.surely().or(&excuses.held_perhaps).or(&self.trouble).or(&self.down());
        let to_be_told = match self.seen_at(due) {
            Some(seen) => Spans::of([(due.raised, due.until.min(seen))]),
            None => Spans::of([(due.raised, due.until)]),
        };
        let to_be_told = to_be_told.without(&quiet);
        for tier in 0..self.plan.tiers.len() {
            let dead =
                if tier == 0 { Spans::of([(0, self.end + 1)]) } else { self.tier_is_dead(&due.subject, tier - 1) };
            for target in self.plan.targets(tier).collect::<Vec<_>>() {
                let first = sent.iter().filter(|message| message.target == target && message.step == 0);
                let first = first.map(|message| message.at).min();
                let wanted = to_be_told.and(&dead).without(&self.busy(target));
                for (from, to) in wanted.iter().filter(|(from, _)| first.is_none_or(|first| first > *from)) {
                    let slack = if from == due.raised { 1_000 } else { 2_000 } + self.lag();
                    let told = first.unwrap_or(u64::MAX).min(to);
                    if told > from + slack {
                        let line = format!("miss: {target} is not told of {:?} from {from} to {told}", due.subject);
                        self.wrong.push(line);
                    }
                }
            }
        }
        let first = sent.iter().filter(|message| message.step == 0).min_by_key(|message| message.at);
        if let Some(first) = first {
            self.measure(due, excuses, first);
        }
    }

    /// When nobody in a tier could be told any more.
    fn tier_is_dead(&self, subject: &Subject, tier: usize) -> Spans {
        let mut dead = Spans::of([(0, self.end + 1)]);
        for earlier in 0..=tier {
            for target in self.plan.targets(earlier) {
                let mut spans: Vec<(u64, u64)> = Vec::new();
                let mut since: Option<u64> = None;
                for (at, event) in self.trace {
                    let Event::Kept { subject: of, target: to, rung: (0, 0), opened, .. } = event else { continue };
                    if of != subject || to != target {
                        continue;
                    }
                    match (opened == "rejected" || opened == "given_up", since) {
                        (true, None) => since = Some(*at),
                        (false, Some(from)) => {
                            spans.push((from, *at));
                            since = None;
                        }
                        _ => {}
                    }
                }
                spans.extend(since.map(|from| (from, self.end + 1)));
                dead = dead.and(&Spans::of(spans));
            }
        }
        dead
    }

    fn measure(&mut self, due: &Due, excuses: &Excuses, first: &Message) {
        let (from, at, starts) = (due.raised, first.at, self.starts());
        let others = excuses.held_perhaps.or(&self.trouble).or(&self.down()).or(&starts).or(&self.busy(&first.target));
        let (met, looked) = (|spans: &Spans| spans.meets(from, at.max(from + 1)), excuses.first_look.clone());
        let covered = |counting: &&Counting| counting.covers(due.offset).is_some_and(|(_, to)| to > from && to <= at);
        let session = self.of_session(due.subject.session());
        let last = session.iter().filter(covered).max_by_key(|counting| counting.to);
        let lapsed = last.filter(|last| last.end == Left::Abnormal && last.last_sign + LIVE == last.to);
        let sign = lapsed.map(|last| last.last_sign);
        let ended = |spans: &Spans| spans.iter().map(|(_, to)| to).filter(|to| *to <= at).max();
        let graces = excuses.grace.without(&starts);
        let (class, since) = match sign {
            _ if met(&others) => (Class::Other, None),
            Some(sign) if !self.somebody_else(due, at) => (Class::Dead, Some(sign.max(from))),
            _ if met(&excuses.cover) && !met(&looked) || met(&graces) => (Class::Other, None),
            _ if met(&looked) => (Class::Unproved, ended(&excuses.cover).into_iter().chain([from]).max()),
            _ => (Class::Nobody, Some(from)),
        };
        let since = since.unwrap_or_else(|| {
            let excused = excuses.surely().or(&others);
            ended(&excused).filter(|ended| *ended > from).unwrap_or(from)
        });
        let ms = at.saturating_sub(since);
        let bound = match class {
            Class::Nobody => 1_000,
            Class::Dead => LIVE + GRACE + 2_000,
            Class::Unproved => FIRST_LOOK + 2_000,
            Class::Other => u64::MAX / 2,
        };
        if ms > bound + self.lag() {
            self.wrong.push(format!("{:?} is told after {ms} ms, as one of {class:?}", due.subject));
        }
        self.delays.push(Delay { class, ms });
    }

    /// Whether somebody was there who had no proof when the last cover ended.
    fn somebody_else(&self, due: &Due, at: u64) -> bool {
        let question = matches!(due.subject, Subject::Question { .. });
        let session = self.of_session(due.subject.session()).iter().filter(|counting| counting.able || !question);
        let mut without =
            session.filter(|counting| counting.covers(due.offset).is_none_or(|(from, _)| from > counting.from));
        without.any(|counting| counting.from < at && counting.to > due.raised && counting.covers(due.offset).is_none())
    }

    // --- the messages of one key ---------------------------------------------------------------------------------

    fn check_keys(&mut self) {
        let mut by_id: BTreeMap<&str, Vec<&Message>> = BTreeMap::new();
        for message in &self.messages {
            by_id.entry(&message.id).or_default().push(message);
        }
        let mut wrong = Vec::new();
        for (id, messages) in &by_id {
            let arrived: Vec<_> = messages.iter().filter(|message| message.may_have_arrived()).collect();
            if arrived.len() > 2 {
                wrong.push(format!("{} messages under {id} may have arrived", arrived.len()));
            }
            if arrived.get(1).is_some_and(|second| !second.repeat) {
                wrong.push(format!("the second message under {id} does not say that it is a repeat"));
            }
            if messages.iter().filter(|message| message.arrived).count() > 2 {
                wrong.push(format!("more than two messages under {id} arrived"));
            }
        }
        let first = self.messages.iter().filter(|message| message.step == 0);
        let mut ids: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
        for message in first.filter(|message| message.kind != "update") {
            ids.entry((&message.subject, &message.target)).or_default().insert(&message.id);
        }
        for ((subject, target), ids) in ids.into_iter().filter(|(_, ids)| ids.len() > 1) {
            wrong.push(format!("{subject:?} is told to {target} under several ids: {ids:?}"));
        }
        self.wrong.extend(wrong);
    }

    /// What is confirmed is not sent again, and one key has one id.
    fn check_records(&mut self) {
        let mut ids: BTreeMap<(&Subject, &str, (u32, u32)), &str> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (at, event) in self.trace {
            let Event::Kept { subject, target, rung, id, opened, .. } = event else { continue };
            let known = *ids.entry((subject, target, *rung)).or_insert(id);
            if known != id {
                wrong.push(format!("{subject:?} to {target} at {rung:?} has the ids {known} and {id}"));
            }
            let later = |message: &&Message| message.id == *id && message.at > *at;
            if opened == "confirmed" && self.messages.iter().any(|message| later(&message)) {
                wrong.push(format!("{subject:?} is sent to {target} again after it was confirmed at {at}"));
            }
        }
        self.wrong.extend(wrong);
    }

    // --- the end of a question -----------------------------------------------------------------------------------

    fn check_closing(&mut self) {
        let mut wrong = Vec::new();
        for due in &self.dues {
            let Some(closed) = due.closed else { continue };
            let of = |message: &&Message| message.subject == due.subject;
            let early = self.messages.iter().filter(of).find(|message| message.kind == "update" && message.at < closed);
            if let Some(early) = early {
                wrong.push(format!("{:?} is told as closed at {}, and was closed at {closed}", due.subject, early.at));
            }
            if self.gone.contains_key(&due.subject.session()) {
                continue;
            }
            for card in self.messages.iter().filter(of).filter(|message| message.kind == "opened" && message.arrived) {
                let updated = |update: &&Message| {
                    // Where the edit of a message is rejected, that message is gone.
                    let is_gone = update.card && update.outcome == Some(Outcome::Rejected);
                    let told = update.may_have_arrived() || is_gone;
                    update.kind == "update" && update.target == card.target && update.step == 0 && told
                };
                if !self.messages.iter().filter(of).any(|message| updated(&message)) {
                    let line =
                        format!("the card at {} of {:?} never says that it was closed", card.target, due.subject);
                    wrong.push(line);
                }
            }
        }
        wrong.dedup();
        self.wrong.extend(wrong);
    }

    fn check_answers(&mut self) {
        let mut keys: BTreeMap<&Subject, BTreeSet<&str>> = BTreeMap::new();
        for (_, event) in self.trace {
            if let Event::Answered { subject, key } = event {
                keys.entry(subject).or_default().insert(key);
            }
        }
        for (subject, keys) in keys.into_iter().filter(|(_, keys)| keys.len() > 1) {
            self.wrong.push(format!("{} answers to {subject:?} were told that they won", keys.len()));
        }
    }

    fn check_ladder(&mut self) {
        let after = self.plan.ladder.first().map(|step| step.after.as_millis() as u64);
        let mut wrong = Vec::new();
        for message in self.messages.iter().filter(|message| message.step > 0 && message.kind == "opened") {
            let due = self.dues.iter().find(|due| due.subject == message.subject);
            let due = due.map(|due| due.raised + after.unwrap_or(u64::MAX / 2));
            let step = message.step as usize;
            if !self.plan.jumps && due.is_none_or(|due| message.at + 5 < due) || step > self.plan.ladder.len() {
                wrong.push(format!("step {step} of {:?} comes too early, at {}", message.subject, message.at));
            }
        }
        self.wrong.extend(wrong);
    }

    // --- when all is quiet ---------------------------------------------------------------------------------------

    fn check_the_end(&mut self) {
        let mut unreached = 0;
        let mut wrong = Vec::new();
        for (_, event) in self.trace {
            if let Event::Gone { session } = event
                && !self.gone.contains_key(session)
            {
                wrong.push(format!("session {session} has no owner any more"));
            }
        }
        for due in &self.dues {
            let question = matches!(due.subject, Subject::Question { .. });
            let known = self.modes.contains_key(&due.subject.session());
            if due.until < self.end || !known || !self.is_wanted(&due.subject) || self.seen_at(due).is_some() {
                continue;
            }
            let excuses = self.excuses(due);
            let states: Vec<(&str, &str)> = self.final_states(&due.subject).collect();
            let confirmed = states.iter().any(|(_, state)| *state == "confirmed");
            let now = self.end - 1;
            let (covered, held) = (excuses.cover.has(now), excuses.held_perhaps.has(now));
            unreached += usize::from(question && !confirmed && !covered && !held);
            let excused = excuses.surely().or(&excuses.held_perhaps);
            // Something was to be done, and had time to be.
            let free = Spans::of([(self.quiet.max(due.raised), self.end)]).without(&excused);
            let had_time = free.iter().any(|(from, to)| to - from > 150_000);
            let over = |state: &str| matches!(state, "confirmed" | "given_up");
            if had_time && !self.plan.tiers.is_empty() && !states.iter().any(|(_, state)| over(state)) {
                wrong.push(format!("nobody was reached about {:?} in the end: {states:?}", due.subject));
            }
        }
        let told = self.trace.iter().rev().find_map(|(_, event)| match event {
            Event::Unreached { count } => Some(*count),
            _ => None,
        });
        if told != Some(unreached) {
            wrong.push(format!("{told:?} questions count as unreached, and {unreached} are"));
        }
        self.wrong.extend(wrong);
    }

    fn final_states(&self, subject: &'a Subject) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.trace.iter().filter_map(move |(_, event)| match event {
            Event::Final { subject: of, target, state, .. } if of == subject => Some((target.as_str(), *state)),
            _ => None,
        })
    }
}

fn lives(trace: &[At], end: u64) -> Vec<(u64, u64)> {
    let mut lives: Vec<(u64, u64)> = Vec::new();
    for (at, event) in trace {
        match event {
            Event::Started => lives.push((*at, end + 1)),
            Event::Killed | Event::Stopped => lives.last_mut().expect("it has started").1 = *at,
            _ => {}
        }
    }
    lives
}

fn trouble(trace: &[At], end: u64) -> Spans {
    let (mut spans, mut since) = (Vec::new(), None);
    for (at, event) in trace {
        match event {
            Event::Trouble { begins: true } => since = Some(*at),
            Event::Trouble { begins: false } => spans.extend(since.take().map(|from| (from, at + AFTER_TROUBLE))),
            _ => {}
        }
    }
    spans.extend(since.map(|from| (from, end)));
    Spans::of(spans)
}

/// The last able watcher left abnormally just before the raising.
fn grace_before(relevant: &[&Counting], raised: u64) -> Option<(u64, u64)> {
    let gone = || relevant.iter().filter(|counting| counting.to <= raised && counting.end != Left::Stayed);
    let last = gone().max_by_key(|counting| counting.to)?;
    let others = relevant.iter().any(|other| other.who != last.who && other.from < last.to && other.to > last.to);
    let ambiguous = gone().any(|other| other.to == last.to && other.end != last.end);
    (last.end == Left::Abnormal && !others && !ambiguous).then_some((last.to, last.to + GRACE))
}

/// One subscription, as its pongs and words show it.
struct Following {
    session: Nth,
    counting: Counting,
    observer: bool,
    live_until: u64,
    attentive_until: u64,
    is_counting: bool,
    sign: u64,
}

impl Following {
    fn until(&self) -> u64 {
        if self.observer { 0 } else { self.live_until.min(self.attentive_until) }
    }

    /// What happened by the passing of time, up to `at`.
    fn pass(&mut self, at: u64, out: &mut BTreeMap<Nth, Vec<Counting>>) {
        if self.is_counting && self.until() <= at {
            self.end(self.until(), Left::Abnormal, out);
        }
    }

    fn settle(&mut self, at: u64, out: &mut BTreeMap<Nth, Vec<Counting>>) {
        match (self.is_counting, self.until() > at) {
            (false, true) => {
                self.is_counting = true;
                self.counting.from = at;
            }
            (true, false) => self.end(at, Left::Abnormal, out),
            _ => {}
        }
    }

    fn end(&mut self, at: u64, end: Left, out: &mut BTreeMap<Nth, Vec<Counting>>) {
        if std::mem::take(&mut self.is_counting) {
            let counting = Counting { to: at, end, last_sign: self.sign, ..self.counting.clone() };
            out.entry(self.session).or_default().push(counting);
        }
    }
}

fn counting(trace: &[At], lives: &[(u64, u64)]) -> BTreeMap<Nth, Vec<Counting>> {
    let mut out = BTreeMap::new();
    let mut there: BTreeMap<u64, Following> = BTreeMap::new();
    for (at, event) in trace {
        let at = *at;
        there.values_mut().for_each(|following| following.pass(at, &mut out));
        match event {
            Event::Enters { who, session, able, sees_results, observer, attention } => {
                let attentive_until = match attention {
                    Attention::CannotSay => u64::MAX,
                    Attention::Active => at + LEASE,
                    Attention::Idle => 0,
                };
                let (who, session) = (*who, *session);
                let (from, to, end, proofs, last_sign) = (at, at, Left::Stayed, Vec::new(), at);
                let counting = Counting { who, from, to, able: *able, results: *sees_results, end, proofs, last_sign };
                let (live_until, is_counting, sign, observer) = (at + LIVE, false, at, *observer);
                let following =
                    Following { session, counting, observer, live_until, attentive_until, is_counting, sign };
                there.insert(who, following);
            }
            Event::Alive { who } | Event::Proves { who, .. } => {
                if let Some(following) = there.get_mut(who) {
                    (following.live_until, following.sign) = (at + LIVE, at);
                    if let Event::Proves { offset, .. } = event {
                        following.counting.proofs.push((at, *offset));
                    }
                }
            }
            Event::Says { who, active } => {
                if let Some(following) = there.get_mut(who) {
                    following.attentive_until = if *active { at + LEASE } else { 0 };
                }
            }
            Event::Leaves { who, clean } => {
                if let Some(mut following) = there.remove(who) {
                    following.end(at, if *clean { Left::Clean } else { Left::Abnormal }, &mut out);
                }
            }
            Event::Killed | Event::Stopped => {
                for mut following in std::mem::take(&mut there).into_values() {
                    following.end(at, Left::Stayed, &mut out);
                }
            }
            _ => {}
        }
        there.values_mut().for_each(|following| following.settle(at, &mut out));
    }
    let end = trace.last().map_or(0, |last| last.0);
    for mut following in there.into_values() {
        following.end(end + 1, Left::Stayed, &mut out);
    }
    for (session, counting) in polls(trace, lives) {
        out.entry(session).or_default().push(counting);
    }
    out
}

/// Pollers count from their request until a while after its response.
fn polls(trace: &[At], lives: &[(u64, u64)]) -> Vec<(Nth, Counting)> {
    let mut out: Vec<(Nth, Counting)> = Vec::new();
    for (index, (at, event)) in trace.iter().enumerate() {
        let Event::PollBegins { who, session, able } = event else { continue };
        let mine = |event: &&At| match event.1 {
            Event::PollRead { who: other, .. } | Event::PollEnds { who: other } => other == *who,
            _ => false,
        };
        let life = lives.iter().rev().find(|life| life.0 <= *at).map_or(0, |life| life.1);
        let (mut to, mut proofs) = (life, Vec::new());
        for (at, event) in trace[index..].iter().filter(mine).filter(|event| event.0 <= life) {
            match event {
                Event::PollRead { questions, .. } => proofs.push((*at, *questions)),
                _ => to = (at + POLL).min(life),
            }
        }
        let end = if to == life { Left::Stayed } else { Left::Clean };
        let (who, able) = (*who, *able);
        let last = out.iter_mut().rev().find(|(of, last)| of == session && last.to >= *at && last.to < life);
        match last {
            // It polled again in time: one watcher that was never away.
            Some((_, last)) => {
                last.proofs.extend(proofs);
                (last.to, last.end) = (to, end);
            }
            None => {
                let counting =
                    Counting { who, from: *at, to, able, results: false, end, proofs, last_sign: u64::MAX / 2 };
                out.push((*session, counting));
            }
        }
    }
    out
}

fn messages(trace: &[At], lives: &[(u64, u64)]) -> Vec<Message> {
    let mut messages: BTreeMap<u64, Message> = BTreeMap::new();
    for (at, event) in trace {
        match event {
            Event::Sends { nth, target, id, kind, repeat, step, subject, card } => {
                let life = lives.iter().rev().find(|life| life.0 <= *at).map_or(*at, |life| life.1);
                let message = Message {
                    at: *at,
                    target: target.clone(),
                    id: id.clone(),
                    kind: kind.clone(),
                    repeat: *repeat,
                    step: *step,
                    subject: subject.clone(),
                    card: *card,
                    arrived: false,
                    outcome: None,
                    over: life.min(at + 15_000),
                    wish: (0, false),
                };
                messages.insert(*nth, message);
            }
            Event::Arrives { nth } => {
                if let Some(message) = messages.get_mut(nth) {
                    message.arrived = true;
                }
            }
            Event::Sent { nth, outcome, wish_ms, all } => {
                if let Some(message) = messages.get_mut(nth) {
                    message.outcome = Some(*outcome);
                    message.wish = (*wish_ms, *all);
                    message.over = *at;
                }
            }
            _ => {}
        }
    }
    messages.into_values().collect()
}
