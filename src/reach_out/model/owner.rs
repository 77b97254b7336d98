//! The session's owner as it goes through its work (`session/{owner,questions,reaching,restoring}.rs`): what it decides
//! by production code, and in which order it writes.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{Hash, Hasher},
    sync::{Arc, LazyLock},
};

use onlooker_protocol::{
    Position,
    event::Epoch,
    subscriber::{Answer, AnswerAction},
    view::{GuardrailState, Outcome, ReachOutMode, Resolution},
};
use serde_json::json;

use super::{
    Fault, ReachOut,
    dispatch::{Due, due},
    time::{CLAIM, START_GRACE, STEP_AFTER, WATCH, WINDOWS, at, ms, seen, wall},
    view,
    world::{Broken, Engine, GUARDRAIL, Logged, Mark, Name, Process, World, revision_of},
};
use crate::{
    clock,
    control::{Holder, HolderKey},
    guardrail::{self, Actor, Answering, Guardrail, GuardrailRules, Raised, Raising, StoredGuardrail, Trigger},
    ids::SessionId,
    outbox::{
        NoticeKey, NoticeState, NoticeSubject, Verdict,
        modelled::{self, Record},
    },
    reach_out::{
        self, Inputs, Subject, Why,
        ladder::{Ladder, Rung, Step},
        told::{self, Next, Told},
    },
    watch::{self, Attentive, Newcomer, Presence},
};

#[derive(Clone)]
pub(super) struct Owner {
    pub(super) watch: Arc<watch::Book>,
    pub(super) book: Arc<guardrail::Book>,
    pub(super) told: BTreeMap<u32, Told>,
    pub(super) start_grace_until: u32,
    pub(super) unreached: bool,
    /// Where the log ends, as far as it knows.
    pub(super) log_end: usize,
    /// What it has to write, in this order. Until then it serves nobody.
    pub(super) work: VecDeque<Work>,
    /// The engine has refused a notice: it is tried again then.
    pub(super) again_at: Option<u32>,
}

/// One write, or what follows when all before it are done.
#[derive(Clone, Debug, Hash)]
pub(super) enum Work {
    /// The first append under a new term, with the end of a question that its record has and the log has not.
    GoOn {
        resolve: Option<u32>,
    },
    Raise {
        asked: u32,
        revision: u32,
    },
    Store,
    Resolve {
        revision: u32,
    },
    CloseAll {
        revision: u32,
        put_again: bool,
    },
    Close {
        name: Name,
        put_again: bool,
    },
    Queue {
        revision: u32,
        target: String,
        rung: Rung,
    },
    Climbed {
        revision: u32,
        rung: Rung,
    },
    /// The answerer hears that the answer won.
    Reply {
        revision: u32,
        key: u8,
    },
}

fn rules() -> &'static GuardrailRules {
    static RULES: LazyLock<GuardrailRules> = LazyLock::new(|| GuardrailRules {
        open: 2,
        ids: 3,
        items: 4,
        text: 100,
        max_wait: std::time::Duration::from_secs(10_000),
        default_answer_allowed: Vec::new(),
        claim: CLAIM,
        claim_max: CLAIM,
        claim_grace: WINDOWS.grace,
    });
    &RULES
}

fn trigger(model: &ReachOut, asked: u32, now: u32) -> Trigger {
    let mut data = json!({ "value": "May I?", "guardrailId": GUARDRAIL, "revision": asked });
    if let Some(ticks) = model.bounds.expires {
        data["onTimeout"] = json!("fail");
        data["expiresIn"] = json!(u64::from(ticks) * 1000);
    }
    Trigger::read(&data, "", wall(now), rules()).expect("it is valid")
}

fn epoch() -> Epoch {
    Epoch::new("abcdefgh").expect("eight characters")
}

/// Who holds a claim or answers, over REST or in a chat: it outlives the process.
fn actor(name: &str) -> Actor {
    Actor { holder: Holder { who: name.to_owned(), by: HolderKey::Credential(name.into()) }, via: "rest" }
}

fn unanswered(outcome: Outcome) -> Resolution {
    Resolution { outcome, at: String::new(), by: None, via: "test".to_owned(), fields: Vec::new(), choice: None }
}

pub(super) fn key(revision: u32, target: &str, rung: Rung) -> NoticeKey {
    let subject = NoticeSubject::Guardrail { id: GUARDRAIL.to_owned(), revision };
    NoticeKey { session: SessionId::NONE, subject, target: target.to_owned(), rung }
}

impl Owner {
    fn new(book: guardrail::Book, start_grace_until: u32) -> Self {
        Self {
            watch: Arc::new(watch::Book::new(WATCH)),
            book: Arc::new(book),
            told: BTreeMap::new(),
            start_grace_until,
            unreached: false,
            log_end: 0,
            work: VecDeque::new(),
            again_at: None,
        }
    }

    pub(super) fn guardrail(&self) -> Option<&Guardrail> {
        self.book.get(GUARDRAIL)
    }

    fn guardrail_mut(&mut self) -> &mut Guardrail {
        Arc::make_mut(&mut self.book).get_mut(GUARDRAIL).expect("it was raised")
    }

    pub(super) fn open_revision(&self) -> Option<u32> {
        let open = self.guardrail().filter(|guardrail| guardrail.view.state == GuardrailState::Open)?;
        Some(open.view.revision)
    }

    pub(super) fn enter(&mut self, able: bool, now: u32) -> u64 {
        let newcomer = Newcomer {
            subscriber: "".into(),
            who: "".into(),
            via: "websocket",
            observer: false,
            able,
            sees_results: true,
            attentive: Attentive::Active,
        };
        Arc::make_mut(&mut self.watch).enter(newcomer, at(now))
    }

    pub(super) fn presence(&self, now: u32) -> Presence {
        // Asking takes note of lapses, which changes nothing for whoever asks later.
        watch::Book::clone(&self.watch).presence(at(now))
    }

    pub(super) fn told(&self, revision: u32) -> Told {
        self.told.get(&revision).cloned().unwrap_or_default()
    }

    pub(super) fn inputs<'a>(
        &self,
        (notified, next_step): (bool, Option<tokio::time::Instant>),
        presence: &'a Presence,
        now: u32,
    ) -> Inputs<'a> {
        let guardrail = self.guardrail().expect("it was raised");
        Inputs {
            now: at(now),
            mode: ReachOutMode::GuardrailOnly,
            subject: Subject::Guardrail { closed: guardrail.view.state.is_closed() },
            raised_at: guardrail.raised_at,
            offset: guardrail.view.position.offset,
            held_until: guardrail.claimed_until(),
            notified,
            next_step,
            presence,
            start_grace_until: at(self.start_grace_until),
            windows: WINDOWS,
        }
    }

    /// Decides again, at the moment of sending.
    pub(super) fn recheck(&self, key: &NoticeKey, now: u32) -> (Verdict, Option<Why>) {
        let current = self.guardrail().is_some_and(|guardrail| guardrail.view.revision == revision_of(key));
        if !current {
            return (Verdict::Drop, None);
        }
        let presence = self.presence(now);
        let decision = reach_out::decide(&self.inputs(told::at_sending(key.rung, at(now)), &presence, now));
        (told::verdict(decision, at(now)), Some(decision.why))
    }

    /// What it decides about the open question, and what follows.
    pub(super) fn decide(&self, model: &ReachOut, now: u32) -> (reach_out::Decision, Next, bool) {
        let guardrail = self.guardrail().expect("it was raised");
        let told = self.told(guardrail.view.revision);
        let missing = told.missing(&model.tiers());
        let rung = model.ladder().and_then(|ladder| told.next_rung(&ladder, guardrail.raised_at));
        let notified = missing.is_empty() && !told.is_empty();
        let presence = self.presence(now);
        let inputs = self.inputs((notified, rung.map(|(_, due)| due)), &presence, now);
        let decision = reach_out::decide(&inputs);
        let held = guardrail.claimed_until().is_some();
        let unreached = told::is_unreached(&inputs, true, held, told.is_confirmed());
        (decision, told.next(decision, missing, rung.map(|(rung, _)| rung)), unreached)
    }

    fn close_unanswered(&mut self, state: GuardrailState, outcome: Outcome) {
        let guardrail = self.guardrail_mut();
        guardrail.end(state, unanswered(outcome));
        let revision = guardrail.view.revision;
        let put_again = state == GuardrailState::Superseded;
        self.work.extend([Work::Store, Work::Resolve { revision }, Work::CloseAll { revision, put_again }]);
    }

    pub(super) fn outline(&self, world: &World, hasher: &mut impl Hasher) {
        self.watch.outline(at(world.now), hasher);
        self.guardrail().map(|guardrail| world.outline_of(guardrail)).hash(hasher);
        let stored = world.engine.guardrail.as_ref().map(|(version, _)| *version);
        (self.guardrail().and_then(|guardrail| guardrail.version) == stored).hash(hasher);
        for (revision, told) in &self.told {
            (revision, told.outline(at(world.now), u64::from(super::time::FAR))).hash(hasher);
        }
        (seen(self.start_grace_until, world.now), self.unreached, &self.work).hash(hasher);
        (self.log_end == world.engine.log.len()).hash(hasher);
        self.again_at.map(|tick| seen(tick, world.now)).hash(hasher);
    }
}

impl ReachOut {
    pub(super) fn tiers(&self) -> Vec<Vec<String>> {
        let owned = |tier: &&[&str]| tier.iter().map(|target| (*target).to_owned()).collect();
        self.bounds.tiers.iter().map(owned).collect()
    }

    fn step(&self) -> Option<Step> {
        let target = self.bounds.step?;
        Some(Step { after: STEP_AFTER, targets: vec![target.to_owned()], repeat: 0, project: None })
    }

    pub(super) fn ladder(&self) -> Option<Ladder> {
        self.step().map(|step| Ladder::of(&[step], "p"))
    }
}

impl World {
    /// A process starts, and takes the session up as its records have it.
    pub(super) fn start(&mut self, model: &ReachOut, node: usize) {
        self.engine.given += 1;
        let (now, term) = (self.now, self.engine.given);
        let mut book = guardrail::Book::new(rules().clone());
        if let Some((version, guardrail)) = &self.engine.guardrail {
            let bytes = serde_json::to_vec(&guardrail.stored(|_| true)).expect("plain data");
            let stored = StoredGuardrail::decode(&bytes).expect("just encoded");
            book.restore(Guardrail::restored(stored, *version, at(now), wall(now)));
        }
        let mut work = VecDeque::new();
        let mut behind = false;
        if let Some(view) = self.engine.raised() {
            let last = book.get(GUARDRAIL);
            if last.is_none_or(|last| last.view.revision < view.revision) {
                let guardrail = Guardrail::from_log(view.as_ref().clone(), last, at(now), wall(now));
                book.restore(guardrail);
                behind = true;
            }
        }
        let mut owner = Owner::new(book, now + START_GRACE);
        for (_, record) in self.engine.notices.values() {
            let key = record.key();
            let ago = ms(now).saturating_sub(record.at_ms());
            let told = owner.told.entry(revision_of(&key)).or_default();
            told.restored(&key.target, key.rung, record.state(), at(now) - std::time::Duration::from_millis(ago));
        }
        let closed = owner.guardrail().filter(|guardrail| guardrail.view.state.is_closed());
        let closed = closed.map(|guardrail| guardrail.view.revision);
        if let Some(revision) = closed
            && !self.engine.notices.is_empty()
        {
            work.push_back(Work::CloseAll { revision, put_again: false });
        }
        let resolve = closed.filter(|revision| !self.engine.is_resolved(*revision));
        work.push_back(Work::GoOn { resolve });
        work.extend(behind.then_some(Work::Store));
        owner.work = work;
        owner.log_end = self.engine.log.len();
        let process = self.nodes[node].get_or_insert_with(|| Process {
            owner: None,
            term,
            frozen: false,
            stopping: false,
            schedule: BTreeMap::new(),
            attempts: BTreeMap::new(),
        });
        (process.owner, process.term) = (Some(owner), term);
        self.schedule_all(model, node);
        (self.seen.alone, self.seen.untried) = (0, 0);
    }

    pub(super) fn raise(&mut self, model: &ReachOut, node: usize) {
        let asked = u32::from(model.bounds.raises - self.left.raises) + 1;
        self.left.raises -= 1;
        let trigger = trigger(model, asked, self.now);
        let owner = self.owner(node);
        let Ok(Raising::New { revision, supersedes }) = owner.book.raising(&trigger) else { return };
        if supersedes.is_some() {
            owner.close_unanswered(GuardrailState::Superseded, Outcome::Superseded);
            self.seen.mark = Some(Mark::Superseded);
        }
        self.owner(node).work.push_back(Work::Raise { asked, revision });
    }

    pub(super) fn withdraw(&mut self, node: usize) {
        self.left.withdrawals -= 1;
        self.owner(node).close_unanswered(GuardrailState::Cancelled, Outcome::Cancelled);
    }

    /// First answer wins: the record, the log, the notices, then the word that it won.
    pub(super) fn answer(&mut self, node: usize, key: u8, revision: u32) {
        self.left.answers -= 1;
        let now = self.now;
        let answer = Answer {
            revision,
            idempotency_key: key.to_string(),
            action: AnswerAction::Submit,
            text: None,
            choice: None,
            values: BTreeMap::new(),
        };
        let actor = actor(&key.to_string());
        let owner = self.owner(node);
        let guardrail = owner.guardrail_mut();
        match guardrail.answering(&answer, &actor, &clock::text(wall(now))) {
            Ok(Answering::Wins(resolution)) => {
                guardrail.accept(answer, resolution, |_| true);
                let close = Work::CloseAll { revision, put_again: false };
                owner.work.extend([Work::Store, Work::Resolve { revision }, close, Work::Reply { revision, key }]);
            }
            Ok(Answering::Again) => {
                self.accepted(revision, key);
                self.seen.mark = Some(Mark::AnswerAgain);
            }
            Err(_) => self.seen.mark = Some(Mark::AnswerRefused),
        }
    }

    /// Somebody heard that an answer was accepted.
    fn accepted(&mut self, revision: u32, key: u8) {
        if *self.seen.winners.entry(revision).or_insert(key) != key {
            self.seen.broken.insert(Broken::TwoAnswers);
        }
        self.seen.mark = Some(Mark::AnswerWon);
    }

    pub(super) fn claim(&mut self, node: usize) {
        self.left.claims -= 1;
        let now = (at(self.now), wall(self.now));
        let owner = self.owner(node);
        let guardrail = owner.guardrail_mut();
        let revision = guardrail.view.revision;
        if guardrail.claim(revision, &actor("c").holder, now, None, rules()).is_ok() {
            owner.work.push_back(Work::Store);
        }
    }

    pub(super) fn release(&mut self, node: usize) {
        self.left.claims -= 1;
        let owner = self.owner(node);
        let guardrail = owner.guardrail_mut();
        let revision = guardrail.view.revision;
        if guardrail.release(revision, &actor("c").holder).is_ok() {
            owner.work.push_back(Work::Store);
        }
    }

    /// Everything that follows from what has happened and from the time. Returns whether there is something to write.
    pub(super) fn catch_up(&mut self, model: &ReachOut, node: usize) -> bool {
        let now = self.now;
        let owner = self.owner(node);
        if let Some(work) = owner.work.front() {
            unreachable!("{work:?} is not written");
        }
        Arc::make_mut(&mut owner.watch).settle(at(now));
        let Some(guardrail) = owner.guardrail() else { return false };
        if guardrail.claimed_until().is_some_and(|until| until <= at(now)) {
            Arc::make_mut(&mut owner.book).expire_claims(at(now));
        }
        let Some(revision) = owner.open_revision() else { return false };
        if owner.guardrail().is_some_and(|guardrail| at(now) >= guardrail.deadline) {
            owner.close_unanswered(GuardrailState::Expired, Outcome::TimedOut);
            self.seen.mark = Some(Mark::Expired);
            return true;
        }
        let (decision, next, unreached) = owner.decide(model, now);
        owner.unreached = unreached;
        let waits = owner.again_at.is_some_and(|again| now < again);
        let queue = |target: &String, rung| Work::Queue { revision, target: target.clone(), rung };
        match next {
            Next::Climb(rung) if !waits => {
                let step = model.step().expect("it is a rung of the ladder");
                owner.work.extend(step.targets.iter().map(|target| queue(target, rung)));
                owner.work.push_back(Work::Climbed { revision, rung });
            }
            Next::Tell(missing) if !waits => {
                let is_next = !owner.told(revision).is_empty();
                owner.work.extend(missing.iter().map(|target| queue(target, Rung::default())));
                if is_next {
                    self.seen.mark = Some(Mark::NextTier);
                }
            }
            Next::NobodyLeft if unreached => {
                self.seen.mark.get_or_insert(Mark::Unreached);
            }
            Next::LookAgain(_) if matches!(decision.why, Why::GraceAfterProof | Why::GraceBeforeRaising) => {
                self.seen.mark.get_or_insert(Mark::GraceRuns);
            }
            _ => {}
        }
        !self.owner(node).work.is_empty()
    }

    /// The engine does not take a notice; the owner tries again soon.
    pub(super) fn write_refused(&mut self, node: usize) {
        self.left.refused_writes -= 1;
        self.owner(node).work.pop_front();
        self.not_queued(node);
    }

    fn not_queued(&mut self, node: usize) {
        let again = self.now + 1;
        let owner = self.owner(node);
        owner.again_at = Some(again);
        owner.work.retain(|work| !matches!(work, Work::Climbed { .. }));
    }

    fn is_fenced(&self, model: &ReachOut, node: usize) -> bool {
        let term = self.nodes[node].as_ref().expect("it runs").term;
        term < self.engine.term && !model.has(Fault::FenceIgnored)
    }

    /// The next write of the owner, and what follows from it.
    pub(super) fn write(&mut self, model: &ReachOut, node: usize) {
        let Some(work) = self.owner(node).work.pop_front() else { return };
        match work {
            Work::GoOn { resolve } => self.go_on(model, node, resolve),
            Work::Raise { asked, revision } => self.write_raised(model, node, (asked, revision)),
            Work::Store => self.store(model, node),
            Work::Resolve { revision } => {
                self.append(model, node, Some(Logged::Resolved { revision }));
            }
            Work::CloseAll { revision, put_again } => {
                let names: Vec<Name> = self.engine.notices_of(revision).map(|(name, ..)| Arc::clone(name)).collect();
                let owner = self.owner(node);
                owner.told.remove(&revision);
                owner.unreached = false;
                for name in names {
                    owner.work.push_front(Work::Close { name, put_again });
                }
            }
            Work::Close { name, put_again } => self.close_notice(node, &name, put_again),
            Work::Queue { revision, target, rung } => self.queue(model, node, &key(revision, &target, rung)),
            Work::Climbed { revision, rung } => {
                let now = at(self.now);
                self.owner(node).told.entry(revision).or_default().climbed(rung, now);
                self.seen.mark = Some(Mark::Climbed);
            }
            Work::Reply { revision, key } => self.accepted(revision, key),
        }
    }

    /// Whether the log takes an event of this owner; where not, the session is another's. It takes it where the owner
    /// thinks that the log ends, and nowhere else.
    fn append(&mut self, model: &ReachOut, node: usize, event: Option<Logged>) -> bool {
        let end = self.owner(node).log_end;
        if self.is_fenced(model, node) || end != self.engine.log.len() {
            self.seen.mark = Some(Mark::Fenced);
            self.end_owner(node);
            return false;
        }
        let term = self.process(node).term;
        self.engine.term = self.engine.term.max(term);
        self.engine.log.extend(event);
        self.owner(node).log_end = self.engine.log.len();
        true
    }

    fn go_on(&mut self, model: &ReachOut, node: usize, resolve: Option<u32>) {
        if !self.append(model, node, resolve.map(|revision| Logged::Resolved { revision })) {
            return;
        }
        let now = at(self.now);
        let owner = self.owner(node);
        if owner.open_revision().is_some() {
            Arc::make_mut(&mut owner.watch).raised(now);
        }
    }

    fn write_raised(&mut self, model: &ReachOut, node: usize, (asked, revision): (u32, u32)) {
        let now = self.now;
        let trigger = trigger(model, asked, now);
        let position = Position { epoch: epoch(), offset: u64::from(revision) };
        let at_text = clock::text(wall(now));
        let raised = Raised { session: "s".to_owned(), task: None, revision, position, at: &at_text, wall: wall(now) };
        let view = trigger.view(raised, rules());
        if !self.append(model, node, Some(Logged::Raised(Arc::new(view.clone())))) {
            return;
        }
        let owner = self.owner(node);
        Arc::make_mut(&mut owner.watch).raised(at(now));
        Arc::make_mut(&mut owner.book).opened(view, &trigger, BTreeMap::new(), at(now));
        owner.work.push_front(Work::Store);
        (self.seen.alone, self.seen.untried) = (0, 0);
    }

    /// Writes the guardrail's record against the version that this owner saw last.
    fn store(&mut self, model: &ReachOut, node: usize) {
        let guardrail = self.owner(node).guardrail().expect("it was raised").clone();
        let found = self.engine.guardrail.as_ref().map(|(version, _)| *version);
        if guardrail.version != found || self.is_fenced(model, node) {
            self.seen.mark = Some(Mark::Fenced);
            self.end_owner(node);
            return;
        }
        let version = found.unwrap_or(0) + 1;
        self.engine.guardrail = Some((version, Arc::new(guardrail)));
        self.owner(node).guardrail_mut().version = Some(version);
    }

    fn close_notice(&mut self, node: usize, name: &Name, put_again: bool) {
        let now = self.now;
        let Some((version, record)) = self.engine.notices.get(name).cloned() else { return };
        let mut record = Record::clone(&record);
        if record.close(put_again, ms(now)) {
            self.put(name, version, record.clone());
            self.schedule(node, name, due(&record, version + 1, now));
        }
    }

    fn queue(&mut self, model: &ReachOut, node: usize, key: &NoticeKey) {
        if self.is_fenced(model, node) {
            return self.not_queued(node);
        }
        let (now, name) = (self.now, Name::from(modelled::name(key)));
        let (version, record) = match self.engine.notices.get(&name).cloned() {
            None => {
                let record = Record::new(key, ms(now));
                (self.put(&name, 0, record.clone()), Arc::new(record))
            }
            Some((version, found)) => {
                let mut record = Record::clone(&found);
                if !model.has(Fault::DroppedForGood) && record.revive() {
                    (self.put(&name, version, record.clone()), Arc::new(record))
                } else {
                    (version, found)
                }
            }
        };
        let owner = self.owner(node);
        let told = owner.told.entry(revision_of(key)).or_default();
        let state = if model.has(Fault::DroppedForGood) { NoticeState::Queued } else { record.state() };
        told.wrote(&key.target, key.rung, state, at(now));
        owner.again_at = None;
        self.schedule(node, &name, due(&record, version, now));
    }

    /// Writes a notice's record over the version that was seen, and returns the new one.
    pub(super) fn put(&mut self, name: &Name, seen: u64, record: Record) -> u64 {
        self.engine.notices.insert(Arc::clone(name), (seen + 1, Arc::new(record)));
        seen + 1
    }

    fn schedule(&mut self, node: usize, name: &Name, due: Option<Due>) {
        if let Some(due) = due {
            self.process(node).put_due(name, due);
        }
    }

    /// Takes up every notice. Where nobody else can be using the engine, a lease is a dead process's.
    fn schedule_all(&mut self, model: &ReachOut, node: usize) {
        let (now, sole_user) = (self.now, model.bounds.nodes == 1);
        let found: Vec<(Name, Due)> = self
            .engine
            .notices
            .iter()
            .filter_map(|(name, (version, record))| {
                let dead = (sole_user && record.is_leased()).then_some(Due { at: now, version: *version });
                Some((Arc::clone(name), dead.or_else(|| due(record, *version, now))?))
            })
            .collect();
        for (name, due) in found {
            self.process(node).put_due(&name, due);
        }
    }

    /// Before a tick passes: for how long nobody has been told although nobody has the question.
    pub(super) fn count_ticks(&mut self) {
        let counted = view::nobody_has_it(self);
        let step = |counter: u8, counts: bool| if counts { counter.saturating_add(1) } else { 0 };
        self.seen.alone = step(self.seen.alone, counted.is_some_and(|revision| !view::is_served(self, revision)));
        self.seen.untried = step(self.seen.untried, counted.is_some_and(|revision| !view::was_tried(self, revision)));
        let longest = super::time::LONGEST_WINDOW;
        if self.seen.alone > longest || self.seen.untried > longest + 1 {
            self.seen.broken.insert(Broken::Late);
        }
    }
}

impl Engine {
    pub(super) fn state_of(&self, name: &Name) -> Option<NoticeState> {
        self.notices.get(name).map(|(_, record)| record.state())
    }
}
