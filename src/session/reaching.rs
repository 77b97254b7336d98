//! Feeds reach-out: gives the decision fresh inputs whenever something changed or is due, and acts on it.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use onlooker_protocol::view::{
    GuardrailState, GuardrailView, ReachOutMode, Resolution, TaskStatus, WhyInputs, WhyView,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::owner::Owner;
use crate::{
    clock,
    outbox::{Draft as NoticeDraft, NoticeKey, NoticeState, NoticeSubject, Queued, Thread, Verdict},
    reach_out::{
        self, Action, Decision, Inputs, Subject, Why,
        ladder::Rung,
        told::{self, Next, Told},
    },
    watch::Presence,
};

/// How often it is looked whether there is somebody to tell by now.
const UNREACHABLE_EVERY: Duration = Duration::from_secs(5);
/// Results that somebody is still to see.
const RESULTS: usize = 32;

/// Ends of questions that the engine did not take from the outbox yet. What does not fit is found by the next start.
const CLOSINGS: usize = 64;

/// What is under way for this session's guardrails and results.
#[derive(Default)]
pub(super) struct Reaching {
    told: HashMap<NoticeSubject, Told>,
    results: Vec<ResultDue>,
    closings: VecDeque<Closing>,
    next_look: Option<Instant>,
}

/// A closed revision whose messages do not say so yet.
struct Closing {
    guardrail: String,
    revision: u32,
    body: Map<String, Value>,
}

struct ResultDue {
    task: String,
    offset: u64,
    at: Instant,
}

impl ResultDue {
    fn subject(&self) -> NoticeSubject {
        NoticeSubject::Result { task: self.task.clone() }
    }
}

/// A result that somebody was still to see.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredResult {
    task: String,
    offset: u64,
}

impl Reaching {
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    pub(super) fn stored_results(&self) -> Vec<StoredResult> {
        let stored = |due: &ResultDue| StoredResult { task: due.task.clone(), offset: due.offset };
        self.results.iter().map(stored).collect()
    }

    /// Their time is now: who could have seen them before is gone.
    pub(super) fn restore_results(&mut self, stored: &[StoredResult]) {
        let at = Instant::now();
        let due = |result: &StoredResult| ResultDue { task: result.task.clone(), offset: result.offset, at };
        self.results = stored.iter().map(due).collect();
    }

    /// What the outbox has.
    pub(super) fn restore_notices(&mut self, states: Vec<(NoticeKey, NoticeState, u64)>) {
        let (now, wall) = (Instant::now(), clock::milliseconds(clock::now()));
        for (key, state, at_ms) in states {
            let at = now.checked_sub(Duration::from_millis(wall.saturating_sub(at_ms))).unwrap_or(now);
            self.told.entry(key.subject).or_default().restored(&key.target, key.rung, state, at);
        }
    }

    fn is_told(&self, subject: &NoticeSubject) -> bool {
        self.told.get(subject).is_some_and(|told| !told.is_empty())
    }

    fn look_at(&mut self, at: Option<Instant>) {
        self.next_look = self.next_look.into_iter().chain(at).min();
    }
}

impl Owner {
    /// Decides for everything that is open, and sends what is to be sent.
    pub(super) async fn reach_out(&mut self, now: Instant) {
        self.reaching.next_look = None;
        self.close_again(now).await;
        let open: Vec<(String, u32)> =
            self.book.open().map(|open| (open.view.guardrail_id.clone(), open.view.revision)).collect();
        if open.is_empty() && self.reaching.results.is_empty() {
            return;
        }
        let presence = self.session.watch.presence(now);
        let offsets = self.book.open().map(|open| open.view.position.offset);
        let interest = offsets.chain(self.reaching.results.iter().map(|result| result.offset)).min();
        self.session.watch.set_interest(interest);
        for (id, revision) in open {
            Box::pin(self.reach_out_for_guardrail(&id, revision, &presence, now)).await;
        }
        Box::pin(self.reach_out_for_results(&presence, now)).await;
    }

    async fn reach_out_for_guardrail(&mut self, id: &str, revision: u32, presence: &Presence, now: Instant) {
        let subject = NoticeSubject::Guardrail { id: id.to_owned(), revision };
        let Some(raised_at) = self.book.get(id).map(|guardrail| guardrail.raised_at) else { return };
        let missing = self.missing(&subject);
        let rung = self.next_rung(&subject, raised_at);
        let notified = missing.is_empty() && self.reaching.is_told(&subject);
        let Some(inputs) = self.guardrail_inputs(id, (notified, rung.map(|(_, due)| due)), presence, now) else {
            return;
        };
        let decision = reach_out::decide(&inputs);
        let shown = self.why_inputs(&inputs);
        let mut why = decision.why.sentence();
        let nobody = Told::default();
        let told = self.reaching.told.get(&subject).unwrap_or(&nobody);
        match told.next(decision, missing, rung.map(|(rung, _)| rung)) {
            Next::Climb(rung) => self.climb(id, &subject, rung, now).await,
            Next::Tell(missing) => {
                self.notify_of_guardrail(id, &subject, (&missing, Rung::default()), decision.why, now).await;
            }
            Next::NoTarget => why = NO_TARGET,
            Next::NobodyLeft => why = NOBODY_LEFT,
            Next::LookAgain(at) => self.reaching.look_at(at),
            Next::Nothing => {}
        }
        if let Some(guardrail) = self.book.get_mut(id) {
            let unreachable = why == NO_TARGET || why == NOBODY_LEFT;
            self.summary_stale |= guardrail.unreachable != unreachable;
            guardrail.unreachable = unreachable;
            if unreachable {
                // Somebody may be linked meanwhile.
                self.reaching.look_at(Some(now + UNREACHABLE_EVERY));
            }
        }
        self.count_unreached(id, &subject, &inputs);
        self.keep_why(id, (decision, why, shown), now).await;
    }

    /// Whom to tell first and who has no notice yet.
    fn missing(&self, subject: &NoticeSubject) -> Vec<String> {
        let tiers = self.services.targets.tiers(&self.session.project, self.asked.environment_id.as_deref());
        self.reaching.told.get(subject).unwrap_or(&Told::default()).missing(&tiers)
    }

    fn next_rung(&self, subject: &NoticeSubject, raised_at: Instant) -> Option<(Rung, Instant)> {
        let ladder = self.services.targets.ladder(&self.session.project)?;
        self.reaching.told.get(subject).unwrap_or(&Told::default()).next_rung(&ladder, raised_at)
    }

    /// Tells those on the next rung of the ladder.
    async fn climb(&mut self, id: &str, subject: &NoticeSubject, rung: Rung, now: Instant) {
        let Some(ladder) = self.services.targets.ladder(&self.session.project) else { return };
        let Some(step) = ladder.step(rung) else { return };
        let environment = self.asked.environment_id.as_deref();
        let targets = self.services.targets.expand(&step.targets, &self.session.project, environment);
        if !self.notify_of_guardrail(id, subject, (&targets, rung), Why::StepDue, now).await {
            return;
        }
        let told = self.reaching.told.entry(subject.clone()).or_default();
        told.climbed(rung, now);
        let next = told.next_rung(&ladder, now).map(|(_, due)| due);
        self.reaching.look_at(next);
    }

    fn guardrail_inputs<'a>(
        &self,
        id: &str,
        (notified, next_step): (bool, Option<Instant>),
        presence: &'a Presence,
        now: Instant,
    ) -> Option<Inputs<'a>> {
        let guardrail = self.book.get(id)?;
        Some(Inputs {
            now,
            mode: self.asked.reach_out_mode,
            subject: Subject::Guardrail { closed: guardrail.view.state.is_closed() },
            raised_at: guardrail.raised_at,
            offset: guardrail.view.position.offset,
            held_until: guardrail.claimed_until().into_iter().chain(self.wheel.until()).max(),
            notified,
            next_step,
            presence,
            start_grace_until: self.services.start_grace_until,
            windows: self.services.windows,
        })
    }

    async fn notify_of_guardrail(
        &mut self,
        id: &str,
        subject: &NoticeSubject,
        (targets, rung): (&[String], Rung),
        why: Why,
        now: Instant,
    ) -> bool {
        let Some(view) = self.book.get(id).map(|guardrail| guardrail.shown()) else { return false };
        let body = self.opened_body(&view, rung, why);
        self.queue(subject, (targets, rung), (&body, None), now).await
    }

    /// Writes a notice for each target. `false`: not for all of them, and tried again soon.
    async fn queue(
        &mut self,
        subject: &NoticeSubject,
        (targets, rung): (&[String], Rung),
        (body, thread): (&Map<String, Value>, Option<&Thread>),
        now: Instant,
    ) -> bool {
        let mut all = true;
        for target in targets {
            let key = NoticeKey { session: self.session.id, subject: subject.clone(), target: target.clone(), rung };
            let project = std::sync::Arc::clone(&self.session.project);
            let draft = NoticeDraft { key, project, body: body.clone(), thread: thread.cloned() };
            match self.services.outbox.queue(draft).await {
                Ok(queued) => {
                    let state = match queued {
                        Queued::New => NoticeState::Queued,
                        Queued::AlreadyThere(state) => state,
                    };
                    self.reaching.told.entry(subject.clone()).or_default().wrote(target, rung, state, now);
                }
                Err(error) => {
                    tracing::warn!(session.id = ?self.id(), %error, "a notice could not be queued; trying again");
                    self.reaching.look_at(Some(now + Duration::from_secs(1)));
                    all = false;
                }
            }
        }
        all
    }

    /// Open, the mode reaches out, and neither covered, held, nor notified.
    fn count_unreached(&self, id: &str, subject: &NoticeSubject, inputs: &Inputs<'_>) {
        let Some(guardrail) = self.book.get(id) else { return };
        let confirmed = self.reaching.told.get(subject).is_some_and(Told::is_confirmed);
        let held = guardrail.claimed_until().is_some() || self.wheel.lease().is_some();
        let open = guardrail.view.state == GuardrailState::Open;
        let unreached = told::is_unreached(inputs, open, held, confirmed);
        self.services.unreached.set(self.session.id, id, unreached.then_some(guardrail.raised_at));
    }

    /// What the decision was made from, in short.
    fn why_inputs(&self, inputs: &Inputs<'_>) -> WhyInputs {
        let counts = self.session.watch.counts(inputs.now);
        let ahead = |at: Option<Instant>| at.filter(|at| *at > inputs.now).map(|at| millis(at - inputs.now));
        let last = inputs.presence.departures.iter().max_by_key(|departure| departure.at);
        WhyInputs {
            mode: inputs.mode,
            raised_ms_ago: millis(inputs.now.saturating_duration_since(inputs.raised_at)),
            watching: counts.watching,
            able: counts.able,
            covered: inputs.is_covered(),
            notified: inputs.notified,
            held_for_ms: ahead(inputs.held_until),
            next_step_in_ms: ahead(inputs.next_step),
            start_grace_for_ms: ahead(Some(inputs.start_grace_until)),
            last_left_ms_ago: last.map(|left| millis(inputs.now.saturating_duration_since(left.at))),
        }
    }

    async fn keep_why(&mut self, id: &str, (decision, why, inputs): (Decision, &str, WhyInputs), now: Instant) {
        let (word, again) = match decision.action {
            Action::Nothing => ("nothing", None),
            Action::LookAgain(at) => ("look_again", at),
            Action::Send => ("send", None),
        };
        let view = WhyView {
            at: clock::now_text(),
            decision: word.to_owned(),
            rule: decision.why.rule(),
            why: why.to_owned(),
            again_in_ms: again.map(|at| millis(at - now)),
            inputs: Some(inputs),
        };
        let changed = self.book.get_mut(id).is_some_and(|guardrail| guardrail.decided(view));
        if changed {
            tracing::debug!(session.id = ?self.id(), guardrail.id = id, decision = word, why, "reach-out decided");
            // Losing one reason to an engine that does not answer costs nobody anything; the next one is kept.
            let _ = self.store(id).await;
        }
    }

    /// A task has ended with a result.
    pub(super) fn result_due(&mut self, task: &str, offset: u64, at: Instant) {
        if self.asked.reach_out_mode != ReachOutMode::Full {
            return;
        }
        if self.reaching.results.len() == RESULTS {
            self.reaching.results.remove(0);
        }
        self.session.watch.raised(at);
        self.reaching.results.push(ResultDue { task: task.to_owned(), offset, at });
    }

    async fn reach_out_for_results(&mut self, presence: &Presence, now: Instant) {
        for task in self.reaching.results.iter().map(|result| result.task.clone()).collect::<Vec<_>>() {
            let subject = NoticeSubject::Result { task: task.clone() };
            let notified = self.reaching.is_told(&subject) && self.missing(&subject).is_empty();
            let Some(inputs) = self.result_inputs(&task, notified, presence, now) else { continue };
            let decision = reach_out::decide(&inputs);
            match decision.action {
                Action::Send => self.notify_of_result(&task, &subject, decision.why, now).await,
                Action::LookAgain(at) => self.reaching.look_at(at),
                Action::Nothing if decision.why == Why::AlreadyNotified => {}
                Action::Nothing => {
                    self.reaching.results.retain(|result| result.task != task);
                    self.keeping.changed_for_people();
                }
            }
        }
    }

    fn result_inputs<'a>(
        &self,
        task: &str,
        notified: bool,
        presence: &'a Presence,
        now: Instant,
    ) -> Option<Inputs<'a>> {
        let result = self.reaching.results.iter().find(|result| result.task == task)?;
        Some(Inputs {
            now,
            mode: self.asked.reach_out_mode,
            subject: Subject::Result { stopped: false },
            raised_at: result.at,
            offset: result.offset,
            held_until: self.wheel.until(),
            notified,
            next_step: None,
            presence,
            start_grace_until: self.services.start_grace_until,
            windows: self.services.windows,
        })
    }

    async fn notify_of_result(&mut self, task: &str, subject: &NoticeSubject, why: Why, now: Instant) {
        let targets = self.missing(subject);
        let Some(body) = self.result_body(task, why) else { return };
        if targets.is_empty() {
            self.services.metrics.no_target.inc();
            self.reaching.results.retain(|result| result.task != task);
            return;
        }
        let thread = self.thread_of(task);
        self.queue(subject, (&targets, Rung::default()), (&body, thread.as_ref()), now).await;
    }

    /// The last question of this task that was answered in a chat: its result belongs under that.
    fn thread_of(&self, task: &str) -> Option<Thread> {
        let answered = self.book.iter().filter(|guardrail| guardrail.view.task.as_deref() == Some(task));
        let in_chat = answered.filter(|guardrail| {
            let resolution = guardrail.view.resolution.as_ref();
            resolution.is_some_and(|resolution| self.services.targets.is_chat(&resolution.via))
        });
        let last = in_chat.max_by_key(|guardrail| guardrail.view.position.offset)?;
        Some(Thread { guardrail: last.view.guardrail_id.clone(), revision: last.view.revision })
    }

    /// Decides again with fresh inputs, at the moment of sending.
    pub(super) fn recheck(&mut self, key: &NoticeKey) -> Verdict {
        let now = Instant::now();
        let presence = self.session.watch.presence(now);
        let inputs = match &key.subject {
            NoticeSubject::Guardrail { id, revision } => {
                let current = self.book.get(id).is_some_and(|guardrail| guardrail.view.revision == *revision);
                let due = told::at_sending(key.rung, now);
                current.then(|| self.guardrail_inputs(id, due, &presence, now)).flatten()
            }
            NoticeSubject::Result { task } => self.result_inputs(task, false, &presence, now),
        };
        let Some(inputs) = inputs else { return Verdict::Drop };
        let environment = self.asked.environment_id.as_deref();
        if !self.services.targets.may_be_told(&key.target, &self.session.project, environment) {
            return Verdict::Drop;
        }
        told::verdict(reach_out::decide(&inputs), now)
    }

    pub(super) fn notice_settled(&mut self, key: &NoticeKey, state: NoticeState) {
        let Some(told) = self.reaching.told.get_mut(&key.subject) else { return };
        told.settled(&key.target, key.rung, state);
        self.forget_told_results();
    }

    /// Nobody is still to be told of these.
    pub(super) fn forget_told_results(&mut self) {
        let is_done = |result: &ResultDue| {
            let told = self.reaching.told.get(&result.subject());
            told.is_some_and(Told::is_done) && self.missing(&result.subject()).is_empty()
        };
        let done: Vec<String> =
            self.reaching.results.iter().filter(|result| is_done(result)).map(|result| result.task.clone()).collect();
        self.reaching.results.retain(|result| !done.contains(&result.task));
    }

    /// Its messages say how it ended; nobody is contacted for it any more.
    pub(super) async fn notices_closed(&mut self, id: &str) {
        self.services.unreached.set(self.session.id, id, None);
        let Some(guardrail) = self.book.get(id) else { return };
        let revision = guardrail.view.revision;
        let Some(resolution) = guardrail.view.resolution.clone() else { return };
        let view = guardrail.view.clone();
        self.reaching.told.remove(&NoticeSubject::Guardrail { id: id.to_owned(), revision });
        let body = self.resolved_body(&view, &resolution);
        self.close_notices(Closing { guardrail: id.to_owned(), revision, body }, Instant::now()).await;
    }

    /// What could not be closed is tried again: a message whose buttons no longer work must not stay.
    async fn close_again(&mut self, now: Instant) {
        for closing in std::mem::take(&mut self.reaching.closings) {
            self.close_notices(closing, now).await;
        }
    }

    async fn close_notices(&mut self, closing: Closing, now: Instant) {
        let Closing { guardrail, revision, body } = &closing;
        let closed = self.services.outbox.close(self.session.id, guardrail, *revision, body.clone()).await;
        if let Err(error) = closed {
            tracing::warn!(session.id = ?self.id(), %error, "a notice could not be closed; trying again");
            let closings = &mut self.reaching.closings;
            if closings.len() == CLOSINGS {
                closings.pop_front();
            }
            closings.push_back(closing);
            self.reaching.look_at(Some(now + Duration::from_secs(1)));
        }
    }

    // --- what notices say: redacted text only --------------------------------------------------------------------

    fn opened_body(&self, view: &GuardrailView, rung: Rung, why: Why) -> Map<String, Value> {
        let mut guardrail = json!({
            "guardrailId": view.guardrail_id,
            "revision": view.revision,
            "kind": view.kind,
            "value": view.value,
            "domain": view.domain,
            "fields": view.fields,
            "choices": view.choices,
            "websiteError": view.website_error,
            "expiresAt": view.expires_at,
        });
        leave_out_nulls(&mut guardrail);
        let mut body = self.body("guardrail.opened", view.task.as_deref());
        body.insert("why".to_owned(), json!(why.sentence()));
        body.insert("guardrail".to_owned(), guardrail);
        if rung.step > 0 {
            body.insert("step".to_owned(), json!(rung.step));
        }
        body
    }

    fn resolved_body(&self, view: &GuardrailView, resolution: &Resolution) -> Map<String, Value> {
        let put_again = matches!(view.state, GuardrailState::Superseded | GuardrailState::Lost);
        let kind = if put_again { "guardrail.updated" } else { "guardrail.resolved" };
        let mut body = self.body(kind, view.task.as_deref());
        let mut guardrail = super::questions::resolved_data(view, resolution);
        guardrail["state"] = json!(view.state);
        guardrail["kind"] = json!(view.kind);
        guardrail["value"] = json!(view.value);
        guardrail["domain"] = json!(view.domain);
        leave_out_nulls(&mut guardrail);
        body.insert("guardrail".to_owned(), guardrail);
        body
    }

    fn result_body(&self, task: &str, why: Why) -> Option<Map<String, Value>> {
        let view = self.state.task(task)?;
        let kind = if view.status == TaskStatus::Completed { "task.completed" } else { "task.failed" };
        let mut body = self.body(kind, Some(task));
        body.insert("why".to_owned(), json!(why.sentence()));
        body.insert("result".to_owned(), view.result.clone());
        Some(body)
    }

    fn body(&self, kind: &str, task: Option<&str>) -> Map<String, Value> {
        let mut body = json!({
            "type": kind,
            "session": self.session.id.as_str(),
            "externalId": self.asked.external_id,
            "environmentId": self.asked.environment_id,
            "task": task,
            "at": clock::now_text(),
        });
        leave_out_nulls(&mut body);
        match body {
            Value::Object(body) => body,
            _ => unreachable!("written as an object"),
        }
    }
}

const NOBODY_LEFT: &str = "everybody who could be told was tried, and nobody was reached: look at the notices below";
const NO_TARGET: &str = "no_target: nobody is looking, and no chat or webhook is configured to tell anybody";

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn leave_out_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null() && *member != json!([]));
    }
}
