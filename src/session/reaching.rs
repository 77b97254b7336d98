//! Feeds reach-out: gives the decision fresh inputs whenever something changed or is due, and acts on it.

use std::collections::HashMap;

use onlooker_protocol::view::{GuardrailState, GuardrailView, ReachOutMode, Resolution, TaskStatus, WhyView};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::owner::Owner;
use crate::{
    clock,
    outbox::{Draft as NoticeDraft, NoticeKey, NoticeState, NoticeSubject, Verdict},
    reach_out::{self, Action, Decision, Inputs, NextStep, Subject, Why},
    watch::Presence,
};

/// Results that somebody is still to see.
const RESULTS: usize = 32;

/// What is under way for this session's guardrails and results.
#[derive(Default)]
pub(super) struct Reaching {
    notices: HashMap<NoticeSubject, Progress>,
    results: Vec<ResultDue>,
    next_look: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// In the outbox, on its way.
    Queued,
    Confirmed,
    /// No target is left: the guardrail counts as unreached.
    GivenUp,
}

struct ResultDue {
    task: String,
    offset: u64,
    at: Instant,
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

    /// What the outbox has. A notice that was dropped before anybody had it may be asked for again.
    pub(super) fn restore_notices(&mut self, states: Vec<(NoticeSubject, NoticeState)>) {
        for (subject, state) in states {
            let progress = match state {
                NoticeState::Confirmed => Progress::Confirmed,
                NoticeState::GivenUp => Progress::GivenUp,
                NoticeState::Dropped => continue,
                _ => Progress::Queued,
            };
            if let (Progress::Confirmed, NoticeSubject::Result { task }) = (progress, &subject) {
                self.results.retain(|result| result.task != *task);
            }
            self.notices.insert(subject, progress);
        }
    }

    fn look_at(&mut self, at: Option<Instant>) {
        self.next_look = self.next_look.into_iter().chain(at).min();
    }
}

impl Owner {
    /// Decides for everything that is open, and sends what is to be sent.
    pub(super) async fn reach_out(&mut self, now: Instant) {
        self.reaching.next_look = None;
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
        let progress = self.reaching.notices.get(&subject).copied();
        let Some(inputs) = self.guardrail_inputs(id, progress.map(|_| NextStep::None), presence, now) else { return };
        let decision = reach_out::decide(&inputs);
        let covered = presence.covers(inputs.offset);
        let mut why = decision.why.sentence();
        if decision.action == Action::Send {
            let targets = self.services.targets.of(&self.session.project, self.asked.environment_id.as_deref());
            if targets.is_empty() {
                why = NO_TARGET;
            }
            self.notify_of_guardrail(id, &subject, &targets, decision.why, now).await;
        }
        if let Action::LookAgain(at) = decision.action {
            self.reaching.look_at(at);
        }
        self.count_unreached(id, &subject, covered);
        self.keep_why(id, decision, why, now).await;
    }

    fn guardrail_inputs<'a>(
        &self,
        id: &str,
        notified: Option<NextStep>,
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
            presence,
            start_grace_until: self.services.start_grace_until,
            windows: self.services.windows,
        })
    }

    async fn notify_of_guardrail(
        &mut self,
        id: &str,
        subject: &NoticeSubject,
        targets: &[String],
        why: Why,
        now: Instant,
    ) {
        let Some(view) = self.book.get(id).map(|guardrail| guardrail.shown()) else { return };
        let body = self.opened_body(&view, why);
        self.queue(subject, targets, &body, now).await;
    }

    async fn queue(&mut self, subject: &NoticeSubject, targets: &[String], body: &Map<String, Value>, now: Instant) {
        for target in targets {
            let key = NoticeKey { session: self.session.id, subject: subject.clone(), target: target.clone(), step: 0 };
            let project = std::sync::Arc::clone(&self.session.project);
            match self.services.outbox.queue(NoticeDraft { key, project, body: body.clone() }).await {
                Ok(_) => {
                    self.reaching.notices.entry(subject.clone()).or_insert(Progress::Queued);
                }
                Err(error) => {
                    tracing::warn!(session.id = ?self.id(), %error, "a notice could not be queued; trying again");
                    self.reaching.look_at(Some(now + std::time::Duration::from_secs(1)));
                }
            }
        }
    }

    /// Open, the mode reaches out, and neither covered, held, nor notified.
    fn count_unreached(&self, id: &str, subject: &NoticeSubject, covered: bool) {
        let Some(guardrail) = self.book.get(id) else { return };
        let confirmed = self.reaching.notices.get(subject) == Some(&Progress::Confirmed);
        let held = guardrail.claimed_until().is_some() || self.wheel.lease().is_some();
        let reaches_out = self.asked.reach_out_mode != ReachOutMode::Off;
        let open = guardrail.view.state == GuardrailState::Open;
        let unreached = open && reaches_out && !covered && !held && !confirmed;
        self.services.unreached.set(self.session.id, id, unreached.then_some(guardrail.raised_at));
    }

    async fn keep_why(&mut self, id: &str, decision: Decision, why: &str, now: Instant) {
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
            again_in_ms: again.map(|at| (at - now).as_millis() as u64),
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
            let notified = self.reaching.notices.get(&subject).map(|_| NextStep::None);
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
        notified: Option<NextStep>,
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
            presence,
            start_grace_until: self.services.start_grace_until,
            windows: self.services.windows,
        })
    }

    async fn notify_of_result(&mut self, task: &str, subject: &NoticeSubject, why: Why, now: Instant) {
        let targets = self.services.targets.of(&self.session.project, self.asked.environment_id.as_deref());
        let Some(body) = self.result_body(task, why) else { return };
        if targets.is_empty() {
            self.services.metrics.no_target.inc();
            self.reaching.results.retain(|result| result.task != task);
            return;
        }
        self.queue(subject, &targets, &body, now).await;
    }

    /// Decides again with fresh inputs, at the moment of sending.
    pub(super) fn recheck(&mut self, key: &NoticeKey) -> Verdict {
        let now = Instant::now();
        let presence = self.session.watch.presence(now);
        let inputs = match &key.subject {
            NoticeSubject::Guardrail { id, revision } => {
                let current = self.book.get(id).is_some_and(|guardrail| guardrail.view.revision == *revision);
                current.then(|| self.guardrail_inputs(id, None, &presence, now)).flatten()
            }
            NoticeSubject::Result { task } => self.result_inputs(task, None, &presence, now),
        };
        let Some(inputs) = inputs else { return Verdict::Drop };
        let decision = reach_out::decide(&inputs);
        match decision.action {
            Action::Send => Verdict::Send,
            Action::Nothing => Verdict::Drop,
            // Covered for as long as it is: a change of presence is found at the latest with the next look.
            Action::LookAgain(at) => {
                let longest = std::time::Duration::from_secs(1);
                Verdict::LookAgain(at.map_or(longest, |at| (at - now).min(longest)))
            }
        }
    }

    pub(super) fn notice_settled(&mut self, key: &NoticeKey, state: NoticeState) {
        let Some(progress) = self.reaching.notices.get_mut(&key.subject) else { return };
        match state {
            NoticeState::Confirmed => *progress = Progress::Confirmed,
            NoticeState::GivenUp if *progress != Progress::Confirmed => *progress = Progress::GivenUp,
            _ => {}
        }
        if let (NoticeState::Confirmed, NoticeSubject::Result { task }) = (state, &key.subject) {
            self.reaching.results.retain(|result| result.task != *task);
        }
    }

    /// Its messages say how it ended; nobody is contacted for it any more.
    pub(super) async fn notices_closed(&mut self, id: &str) {
        self.services.unreached.set(self.session.id, id, None);
        let Some(guardrail) = self.book.get(id) else { return };
        let revision = guardrail.view.revision;
        let Some(resolution) = guardrail.view.resolution.clone() else { return };
        let view = guardrail.view.clone();
        self.reaching.notices.remove(&NoticeSubject::Guardrail { id: id.to_owned(), revision });
        let body = self.resolved_body(&view, &resolution);
        if let Err(error) = self.services.outbox.close(self.session.id, id, revision, body).await {
            tracing::warn!(session.id = ?self.id(), %error, "a notice could not be closed");
        }
    }

    // --- what notices say: redacted text only --------------------------------------------------------------------

    fn opened_body(&self, view: &GuardrailView, why: Why) -> Map<String, Value> {
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
        body
    }

    fn resolved_body(&self, view: &GuardrailView, resolution: &Resolution) -> Map<String, Value> {
        let put_again = matches!(view.state, GuardrailState::Superseded | GuardrailState::Lost);
        let kind = if put_again { "guardrail.updated" } else { "guardrail.resolved" };
        let mut body = self.body(kind, view.task.as_deref());
        let mut guardrail = super::questions::resolved_data(view, resolution);
        guardrail["state"] = json!(view.state);
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

const NO_TARGET: &str = "no_target: nobody is looking, and no chat or webhook is configured to tell anybody";

fn leave_out_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, member| !member.is_null() && *member != json!([]));
    }
}
