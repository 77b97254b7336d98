//! The owner's part in guardrails: what is asked of the fillers, the records, the log, the runtime and the outbox,
//! in the order that keeps each promise.

use std::time::Duration;

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::kind,
    runtime::{GuardrailOutcome, RuntimeCommand},
    subscriber::{Answer, AnswerAction},
    view::{ClaimView, GuardrailKind, GuardrailState, GuardrailView, GuardrailWhy, Outcome, Resolution},
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    appending::{Draft, Patience},
    owner::{Owner, OwnershipLost},
    publishing::{StatefulStop, invalid},
};
use crate::{
    clock,
    control::HolderKey,
    engine::{EngineError, Numbers, RecordKey, RecordKind},
    guardrail::{Actor, Answering, Raised, Raising, Trigger},
    ids,
    ingest::Published,
    redact::{Nature, Redactor},
    secrets::{Ask, Filling},
};

impl Owner {
    /// A runtime raises a guardrail. Fillers are asked before anybody is disturbed.
    pub(super) async fn raise(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let wall = clock::now();
        let rules = self.book.rules().clone();
        let trigger = Trigger::read(&event.data, &ids::time_ordered_id(), wall, &rules)?;
        let task = self.task_of_guardrail(&event);
        let (revision, supersedes) = match self.book.raising(&trigger)? {
            Raising::New { revision, supersedes } => (revision, supersedes),
            Raising::Repeat => return self.repeat(&trigger.guardrail_id, numbers).await,
        };
        let filling = self.fill(&trigger);
        let (id, filled) = (trigger.guardrail_id.clone(), !filling.values.is_empty());
        let raised = self.raise_new(trigger, (revision, supersedes), task, filling, numbers).await;
        if filled && matches!(raised, Err(StatefulStop::Engine(_))) {
            // The runtime was refused and will ask again: these values were not tried.
            self.fillers.untried(&id);
        }
        raised
    }

    async fn raise_new(
        &mut self,
        mut trigger: Trigger,
        (revision, supersedes): (u32, Option<u32>),
        task: Option<String>,
        filling: Filling,
        numbers: Numbers,
    ) -> Result<(), StatefulStop> {
        self.services.boards.of(&self.session.project).guardrail_raised(self.session.id, &trigger.guardrail_id);
        let wall = clock::now();
        let rules = self.book.rules().clone();
        if supersedes.is_some() {
            self.close_unanswered(&trigger.guardrail_id, GuardrailState::Superseded, Outcome::Superseded, "runtime")
                .await?;
        }
        if filling.is_complete() {
            return self.filled(&trigger, revision, task, filling, numbers).await;
        }
        trigger.fields.clone_from(&filling.missing);
        trigger.redact(&self.redactor);
        let position = Position { epoch: self.log.epoch, offset: self.log.next };
        let at = clock::text(wall);
        let session = self.session.id.to_string();
        let raised = Raised { session, task: task.clone(), revision, position, at: &at, wall };
        let view = trigger.view(raised, &rules);
        let draft = Draft::new(kind::GUARDRAIL_TRIGGER, task, trigger_data(&view));
        self.append(vec![draft], Some(numbers)).await?;
        let id = trigger.guardrail_id.clone();
        let now = Instant::now();
        self.session.watch.raised(now);
        self.book.opened(view, &trigger, filling.values, now);
        self.store_surely(&id).await?;
        self.services.metrics.guardrails_raised.inc();
        self.touch();
        Ok(())
    }

    fn task_of_guardrail(&self, event: &Published<Value>) -> Option<String> {
        event.task.clone().or_else(|| self.state.current().map(|task| task.task.clone()))
    }

    fn fill(&mut self, trigger: &Trigger) -> Filling {
        let login = matches!(trigger.kind, GuardrailKind::Login | GuardrailKind::TwoFactor);
        let nothing = || Filling { values: Default::default(), missing: trigger.fields.clone() };
        if !login {
            return nothing();
        }
        let ask = Ask { kind: trigger.kind, domain: trigger.domain.as_deref(), fields: &trigger.fields };
        self.fillers.fill(&trigger.guardrail_id, &ask)
    }

    /// Everything was known: only the outcome enters the log, and nobody is pinged.
    async fn filled(
        &mut self,
        trigger: &Trigger,
        revision: u32,
        task: Option<String>,
        filling: Filling,
        numbers: Numbers,
    ) -> Result<(), StatefulStop> {
        let rules = self.book.rules().clone();
        let wall = clock::now();
        let at = clock::text(wall);
        let position = Position { epoch: self.log.epoch, offset: self.log.next };
        let session = self.session.id.to_string();
        let raised = Raised { session, task: task.clone(), revision, position, at: &at, wall };
        let view = trigger.view(raised, &rules);
        let resolution = Resolution {
            outcome: Outcome::Answered,
            at: at.clone(),
            by: None,
            via: "secrets".to_owned(),
            fields: filling.values.keys().cloned().collect(),
            choice: None,
        };
        let mut drafts = vec![Draft::new(kind::GUARDRAIL_RESOLVED, task, resolved_data(&view, &resolution))];
        drafts.extend(self.open_sensitive_window());
        let id = trigger.guardrail_id.clone();
        let number = self.session.link.next_number();
        let guardrail = self.book.opened(view, trigger, filling.values, Instant::now());
        let answer = Answer {
            revision,
            idempotency_key: ids::random_id(),
            action: AnswerAction::Submit,
            text: None,
            choice: None,
            values: Default::default(),
        };
        guardrail.accept(answer, resolution, |_| false);
        guardrail.command = Some(number);
        // The record first: only it knows the question, should this process end in between.
        self.store_surely(&id).await?;
        if let Err(error) = self.append(drafts, Some(numbers)).await {
            self.book.not_raised(&id);
            return Err(error.into());
        }
        self.tell_runtime(&id);
        self.touch();
        Ok(())
    }

    /// The same as its last: the runtime is told where it stands.
    async fn repeat(&mut self, id: &str, numbers: Numbers) -> Result<(), StatefulStop> {
        self.append(Vec::new(), Some(numbers)).await?;
        self.tell_runtime(id);
        Ok(())
    }

    /// Gives the runtime the outcome, if there is one. It applies each once by id and revision.
    pub(super) fn tell_runtime(&mut self, id: &str) {
        let Some(outcome) = self.book.get(id).and_then(|guardrail| guardrail.outcome()).cloned() else { return };
        if self.session.link.command(RuntimeCommand::Guardrail(outcome)).is_err() {
            // It is asked for again when the runtime repeats its trigger, which it does after a reconnect.
            tracing::warn!(session.id = ?self.id(), "too many commands wait for the runtime to take another outcome");
        }
    }

    pub(super) async fn withdrawn(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let id = guardrail_id(&event)?;
        self.append(Vec::new(), Some(numbers)).await?;
        let open = self.book.get(&id).is_some_and(|guardrail| !guardrail.is_over());
        if open {
            self.close_unanswered(&id, GuardrailState::Cancelled, Outcome::Cancelled, "runtime").await?;
        }
        Ok(())
    }

    pub(super) async fn taken(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let id = guardrail_id(&event)?;
        let revision = event.data["revision"].as_u64();
        let task = self.task_of_guardrail(&event);
        self.values_given(&id).await?;
        let data = json!({ "guardrailId": id, "revision": revision });
        self.append(vec![Draft::new(kind::GUARDRAIL_TAKEN, task, data)], Some(numbers)).await?;
        if let Some(guardrail) = self.book.get_mut(&id)
            && revision == Some(u64::from(guardrail.view.revision))
        {
            guardrail.taken();
            self.session.link.forget_values(&id);
            self.store_surely(&id).await?;
            self.touch();
        }
        Ok(())
    }

    /// The runtime has secret values from here, or may have: after a restart only it knows them, so that they were given
    /// is stored before anything else is said of the question.
    async fn values_given(&mut self, id: &str) -> Result<(), OwnershipLost> {
        if !self.secrets.has_any() && self.book.get(id).is_some_and(|guardrail| guardrail.hands_over_secrets()) {
            self.secrets.given();
            self.keep_surely().await?;
        }
        Ok(())
    }

    /// First answer wins: the record by compare-and-set, then the redactor, then the log, then the runtime.
    pub(super) async fn answer(
        &mut self,
        id: &str,
        answer: Answer,
        actor: &Actor,
    ) -> Result<Result<GuardrailView, Refusal>, OwnershipLost> {
        let at = clock::now_text();
        let Some(guardrail) = self.book.get(id) else { return Ok(Err(unknown_guardrail())) };
        // At its deadline a question is closed, also when this comes before the timer.
        if guardrail.view.state == GuardrailState::Open && Instant::now() >= guardrail.deadline {
            self.expire_guardrails(Instant::now()).await?;
        }
        let guardrail = self.book.get(id).expect("just seen");
        let resolution = match guardrail.answering(&answer, actor, &at) {
            Ok(Answering::Wins(resolution)) => resolution,
            Ok(Answering::Again) => return Ok(Ok(guardrail.shown())),
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(refusal) = self.register_answer(id, &answer) {
            return Ok(Err(refusal));
        }
        let task = self.book.get(id).and_then(|guardrail| guardrail.view.task.clone());
        let number = self.session.link.next_number();
        // Whoever asks while the engine does not answer sees what was before.
        self.snapshot();
        let redactor = &self.redactor;
        let guardrail = self.book.get_mut(id).expect("just seen");
        guardrail.accept(answer, resolution.clone(), |value| is_plain(redactor, value));
        guardrail.command = Some(number);
        let secret = guardrail.hands_over_secrets();
        let data = resolved_data(&guardrail.view, &resolution);
        self.store_surely(id).await?;
        let mut drafts = vec![Draft::new(kind::GUARDRAIL_RESOLVED, task, data)];
        if secret {
            drafts.extend(self.open_sensitive_window());
        }
        self.append_surely(drafts).await?;
        self.tell_runtime(id);
        self.notices_closed(id).await;
        self.services.metrics.guardrails_answered.inc();
        self.touch();
        Ok(Ok(self.book.get(id).expect("just seen").shown()))
    }

    /// Before anything could echo them, the redactor knows the values.
    fn register_answer(&mut self, id: &str, answer: &Answer) -> Result<(), Refusal> {
        let Some(guardrail) = self.book.get(id) else { return Ok(()) };
        let plain = |field: &String| guardrail.view.fields.iter().any(|asked| asked.id == *field && !asked.secret);
        let values = answer.values.iter().filter(|(field, _)| !plain(field)).map(|(_, value)| value);
        let natures = values.map(|value| (value.as_str(), Nature::Credential));
        let text = answer.text.iter().map(|text| (text.as_str(), Nature::FreeText));
        let secret = guardrail.view.fields.iter().any(|field| field.secret);
        let parts = answer.text.iter().filter(|_| secret).flat_map(|text| values_in(text));
        let parts = parts.map(|part| (part, Nature::Credential));
        for (value, nature) in natures.chain(text).chain(parts) {
            let registered = self.redactor.register(value, nature);
            registered.map_err(|error| Refusal::new(Code::TooLarge, error.to_string()))?;
        }
        Ok(())
    }

    /// No picture of what is being typed. The runtime closes the window, or time does.
    fn open_sensitive_window(&mut self) -> Option<Draft> {
        let until = Some(Instant::now() + self.services.times.sensitive);
        if self.state.session().sensitive {
            // A window of our own lasts for these values too; the runtime's is the runtime's to close.
            self.sensitive_until = self.sensitive_until.and(until);
            return None;
        }
        self.sensitive_until = until;
        Some(Draft::new(kind::SENSITIVE, None, json!({ "on": true, "by": "gateway" })))
    }

    pub(super) async fn claim_guardrail(
        &mut self,
        id: &str,
        revision: u32,
        duration_ms: Option<u64>,
        actor: &Actor,
    ) -> Result<Result<ClaimView, Refusal>, OwnershipLost> {
        let rules = self.book.rules().clone();
        let Some(guardrail) = self.book.get_mut(id) else { return Ok(Err(unknown_guardrail())) };
        let times = (Instant::now(), clock::now());
        let duration = duration_ms.map(Duration::from_millis);
        let claimed = guardrail.claim(revision, &actor.holder, times, duration, &rules);
        self.claim_changed(id, claimed, actor).await
    }

    pub(super) async fn release_guardrail(
        &mut self,
        id: &str,
        revision: u32,
        actor: &Actor,
    ) -> Result<Result<(), Refusal>, OwnershipLost> {
        let Some(guardrail) = self.book.get_mut(id) else { return Ok(Err(unknown_guardrail())) };
        let released = guardrail.release(revision, &actor.holder);
        self.claim_changed(id, released, actor).await
    }

    /// Claims of credentials are stored; those of connections end with them.
    async fn claim_changed<T>(
        &mut self,
        id: &str,
        changed: Result<T, Refusal>,
        actor: &Actor,
    ) -> Result<Result<T, Refusal>, OwnershipLost> {
        if changed.is_ok() {
            if matches!(actor.holder.by, HolderKey::Credential(_)) {
                self.store_surely(id).await?;
            }
            self.touch();
        }
        Ok(changed)
    }

    pub(super) fn shown_guardrail(&mut self, id: &str) -> Result<GuardrailView, Refusal> {
        let snapshot = self.snapshot();
        let unfinished = snapshot.state.guardrails.iter().find(|guardrail| guardrail.guardrail_id == id);
        let shown = unfinished.cloned().or_else(|| self.book.get(id).map(|guardrail| guardrail.shown()));
        shown.ok_or_else(unknown_guardrail)
    }

    pub(super) async fn why(&mut self, id: &str) -> Result<GuardrailWhy, Refusal> {
        let view = self.shown_guardrail(id)?;
        let notices = self.services.outbox.notices(self.session.id, id).await;
        let notices = notices.map_err(|error| Self::refuse_append(&error))?;
        let guardrail = self.book.get(id).ok_or_else(unknown_guardrail)?;
        Ok(GuardrailWhy {
            session: self.session.id.to_string(),
            guardrail_id: id.to_owned(),
            revision: view.revision,
            state: view.state,
            unreached: self.services.unreached.contains(self.session.id, id),
            decisions: guardrail.decisions.iter().cloned().collect(),
            notices,
            watchers: self.session.watch.list(self.log.epoch, Instant::now()),
        })
    }

    /// Deadlines that have passed. An accepted answer is never undone by one.
    pub(super) async fn expire_guardrails(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        let due: Vec<String> = self
            .book
            .open()
            .filter(|guardrail| now >= guardrail.deadline)
            .map(|guardrail| guardrail.view.guardrail_id.clone())
            .collect();
        for id in due {
            Box::pin(self.close_unanswered(&id, GuardrailState::Expired, Outcome::TimedOut, "deadline")).await?;
        }
        Ok(())
    }

    /// The end of a task, or of everything, ends its questions; an answerer whose answer was on its way is told.
    pub(super) async fn cancel_guardrails_of(&mut self, task: Option<&str>, via: &str) -> Result<(), OwnershipLost> {
        let unfinished: Vec<String> = self
            .book
            .iter()
            .filter(|guardrail| !guardrail.is_over())
            .filter(|guardrail| task.is_none() || guardrail.view.task.as_deref() == task)
            .map(|guardrail| guardrail.view.guardrail_id.clone())
            .collect();
        for id in unfinished {
            self.close_unanswered(&id, GuardrailState::Cancelled, Outcome::Cancelled, via).await?;
        }
        Ok(())
    }

    pub(super) async fn close_unanswered(
        &mut self,
        id: &str,
        state: GuardrailState,
        outcome: Outcome,
        via: &str,
    ) -> Result<(), OwnershipLost> {
        let resolution = Self::unanswered(outcome, via);
        // A superseded question needs no word: the next one takes its place.
        let tells = outcome != Outcome::Superseded;
        self.values_given(id).await?;
        self.snapshot();
        let number = self.session.link.next_number();
        let Some(guardrail) = self.book.get_mut(id) else { return Ok(()) };
        let told: GuardrailOutcome = guardrail.end(state, resolution.clone());
        guardrail.command = tells.then_some(number);
        let (task, data) = (guardrail.view.task.clone(), resolved_data(&guardrail.view, &resolution));
        self.store_surely(id).await?;
        self.append_surely(vec![Draft::new(kind::GUARDRAIL_RESOLVED, task, data)]).await?;
        if tells {
            let _ = self.session.link.command(RuntimeCommand::Guardrail(told));
        }
        self.notices_closed(id).await;
        self.touch();
        Ok(())
    }

    /// Writes the guardrail's record against the version that this owner saw last.
    pub(super) async fn store(&mut self, id: &str) -> Result<(), EngineError> {
        let Some(guardrail) = self.book.get(id) else { return Ok(()) };
        let key = RecordKey { kind: RecordKind::Guardrail, session: self.session.id, name: id.to_owned() };
        let stored = guardrail.stored(|text| is_plain(&self.redactor, text));
        let value = serde_json::to_vec(&stored).expect("a record is plain data").into();
        let version = self.services.engine.put(key, guardrail.version, value).await?;
        self.book.get_mut(id).expect("just seen").version = Some(version);
        Ok(())
    }

    /// As [`Self::store`], until the engine answers. A conflict means that another owner has the session.
    pub(super) async fn store_surely(&mut self, id: &str) -> Result<(), OwnershipLost> {
        let mut patience = Patience::default();
        loop {
            match self.store(id).await {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_for_engine(error, &mut patience).await?,
            }
        }
    }
}

/// The data of `guardrail_trigger` as the log has it: what the runtime said, normalised and redacted.
pub(super) fn trigger_data(view: &GuardrailView) -> Value {
    let mut data = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() && value != json!([]) {
            data.insert(name.to_owned(), value);
        }
    };
    put("type", json!("human_input_needed"));
    put("value", json!(view.value));
    put("guardrailId", json!(view.guardrail_id));
    put("revision", json!(view.revision));
    put("asked", json!(view.asked));
    put("kind", json!(view.kind));
    put("domain", json!(view.domain));
    put("fields", json!(view.fields));
    put("choices", json!(view.choices));
    put("websiteError", json!(view.website_error));
    put("expiresAt", json!(view.expires_at));
    put("onTimeout", json!(view.on_timeout));
    Value::Object(data)
}

/// The data of `guardrail_resolved`: who, when, how; names of fields, never values.
pub(super) fn resolved_data(view: &GuardrailView, resolution: &Resolution) -> Value {
    let mut data = serde_json::to_value(resolution).expect("plain data");
    data["guardrailId"] = json!(view.guardrail_id);
    data["revision"] = json!(view.revision);
    data["asked"] = json!(view.asked);
    data
}

/// Words for a question with secret fields hold their values, and the page gets them apart: each word, and from each of
/// the first on all that follows, for a password may be of several words. Without the signs that separate them.
fn values_in(text: &str) -> impl Iterator<Item = &str> {
    const WORDS: usize = 8;
    let rests = std::iter::successors(Some(text.trim()), |rest| {
        rest.split_once(char::is_whitespace).map(|(_, rest)| rest.trim_start())
    });
    let parts = text.split_whitespace().chain(rests.take(WORDS));
    parts
        .map(|part| part.trim_end_matches(|c: char| c.is_whitespace() || ",;:/".contains(c)))
        .map(|part| part.trim_start_matches(|c: char| c.is_whitespace() || c == '/'))
        .filter(|part| !part.is_empty())
}

fn guardrail_id(event: &Published<Value>) -> Result<String, Refusal> {
    let id = event.data["guardrailId"].as_str().filter(|id| ids::is_outside_id(id));
    id.map(str::to_owned).ok_or_else(|| invalid(format!("{} names its guardrail in `data.guardrailId`", event.kind)))
}

/// Whether there is no secret in a text.
fn is_plain(redactor: &Redactor, text: &str) -> bool {
    redactor.redact_str(text) == text
}

fn unknown_guardrail() -> Refusal {
    Refusal::plain(Code::UnknownGuardrail)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::values_in;

    #[test]
    fn every_value_of_an_answer_in_words_is_known_apart_from_the_others() {
        for text in ["a@b.c two words", "a@b.c, two words", "a@b.c / two words", " a@b.c\ntwo words "] {
            let values: BTreeSet<_> = values_in(text).collect();
            for value in ["a@b.c", "two words", "words"] {
                assert!(values.contains(value), "{value} is missing of {text:?}: {values:?}");
            }
        }
        assert_eq!(values_in(" , / ").count(), 0);
        assert!(values_in(&"w ".repeat(10_000)).count() < 10_020, "what follows is taken for the first words only");
    }
}
