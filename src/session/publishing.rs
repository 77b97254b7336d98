//! What a runtime publishes: numbered events on their way into the log, and the secrets it announces.

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::kind,
    runtime::{EventsAccepted, GatewayToRuntime},
    subscriber::SecretEntry,
    view::EndReason,
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    Publish, Publisher,
    appending::{Draft, Patience},
    owner::{Owner, OwnershipLost},
};
use crate::{
    engine::{EngineError, Numbers},
    ids::{self, ConnectionId},
    images::Placed,
    ingest::{NewPicture, Published},
    redact::Nature,
};

/// Why the events from here on are refused: those before are in the log.
enum Stop {
    Refused(Refusal),
    Lost(OwnershipLost),
}

impl From<OwnershipLost> for Stop {
    fn from(lost: OwnershipLost) -> Self {
        Self::Lost(lost)
    }
}

impl Owner {
    pub(super) async fn publish(&mut self, publish: Publish) -> Result<(), OwnershipLost> {
        let Publish { publisher, events, unreadable, reply, _bytes } = publish;
        let admitted = self.admit(&publisher).await?;
        if let (Err(refusal), Publisher::Connection(connection)) = (&admitted, &publisher) {
            self.refuse_stranger(*connection, refusal.clone());
            return Ok(());
        }
        let result = match admitted {
            Ok(()) => match self.take_events(events).await {
                Ok(()) => self.check_unreadable(unreadable),
                Err(Stop::Refused(mut refusal)) => {
                    // It may quote what it refuses.
                    refusal.message = self.redactor.redact_str(&refusal.message).into_owned();
                    Err(refusal)
                }
                Err(Stop::Lost(lost)) => return Err(lost),
            },
            Err(refusal) => Err(refusal),
        };
        let position = Position { epoch: self.log.epoch, offset: self.log.next.saturating_sub(1) };
        let n = self.log.n;
        match reply {
            Some(reply) => {
                let numbered = |refusal: Refusal| with_number(refusal, n);
                let _ = reply.send(result.map(|()| EventsAccepted { n, position }).map_err(numbered));
            }
            None => {
                self.session.link.accepted(n, position);
                if let Err(refusal) = result {
                    self.services.metrics.refused(refusal.code);
                    self.session.link.refused(n, refusal);
                }
            }
        }
        Ok(())
    }

    /// While the engine does not answer: nothing of it is taken, and it is to be sent again.
    pub(super) fn refuse_for_now(&mut self, publish: Publish) {
        let unavailable = Self::refuse_append(&EngineError::Unavailable(None));
        match publish.publisher {
            Publisher::Connection(connection) => match self.hold(connection) {
                Ok(()) => {
                    self.services.metrics.refused(unavailable.code);
                    self.session.link.refused(self.log.n, unavailable);
                }
                Err(refusal) => self.refuse_stranger(connection, refusal),
            },
            Publisher::Http { claim } => {
                let known = self.tokens.fits(&claim);
                let refusal =
                    if known { with_number(unavailable, self.log.n) } else { Refusal::plain(Code::WrongClaim) };
                let _ = publish.reply.map(|reply| reply.send(Err(refusal)));
            }
        }
    }

    /// The link speaks to whoever holds the session; another connection is told over its own outlet.
    fn refuse_stranger(&self, connection: ConnectionId, refusal: Refusal) {
        self.services.metrics.refused(refusal.code);
        let session = self.session.id.to_string();
        self.services.runtimes.tell(connection, GatewayToRuntime::EventRefused { session, n: self.log.n, refusal });
    }

    /// What could not be read is refused for what is wrong with it only if it was its turn: behind a refused event
    /// everything else is out of order first.
    fn check_unreadable(&self, unreadable: Option<crate::ingest::Unreadable>) -> Result<(), Refusal> {
        let Some(unreadable) = unreadable else { return Ok(()) };
        let expected = self.log.n + 1;
        match unreadable.n {
            Some(n) if n != expected => Err(number_expected(expected)),
            _ => Err(unreadable.refusal(&self.redactor)),
        }
    }

    /// Whether the publisher holds the session.
    async fn admit(&mut self, publisher: &Publisher) -> Result<Result<(), Refusal>, OwnershipLost> {
        if let Publisher::Http { claim } = publisher {
            let admitted = Box::pin(self.http_contact(claim, None)).await?;
            return Ok(admitted.and_then(|()| self.check_secrets()));
        }
        if self.state.is_ended() {
            return Ok(Err(Refusal::plain(Code::SessionEnded)));
        }
        let Publisher::Connection(connection) = publisher else { unreachable!("HTTP is served above") };
        Ok(self.hold(*connection).and_then(|()| self.check_secrets()))
    }

    /// Nothing is taken that the redactor could not look through.
    fn check_secrets(&self) -> Result<(), Refusal> {
        if self.secrets.are_lost() { Err(Refusal::plain(Code::SecretsExpected)) } else { Ok(()) }
    }

    async fn take_events(&mut self, events: Vec<Published>) -> Result<(), Stop> {
        let mut plain = Plain::default();
        plain.drafts.reserve(events.len());
        for event in events {
            let last = self.log.n + plain.drafts.len() as u64;
            if event.n <= last {
                continue;
            }
            if event.n != last + 1 {
                self.append_plain(&mut plain).await?;
                return Err(Stop::Refused(number_expected(self.log.n + 1)));
            }
            self.active();
            if is_plain(&event.kind) {
                let draft = self.plain_draft(event, &mut plain);
                plain.drafts.push(draft);
            } else {
                self.append_plain(&mut plain).await?;
                Box::pin(self.take_stateful(event.read_out())).await?;
            }
        }
        self.append_plain(&mut plain).await
    }

    /// Events that change nothing but the picture go into the log as one batch.
    async fn append_plain(&mut self, plain: &mut Plain) -> Result<(), Stop> {
        let drafts = std::mem::take(&mut plain.drafts);
        let pictures = std::mem::take(&mut plain.pictures);
        if drafts.is_empty() {
            return Ok(());
        }
        let numbers = Numbers { from: self.log.n, to: self.log.n + drafts.len() as u64 };
        // Before the head moves: whoever is woken by the event finds its picture.
        let first = self.log.next;
        for (id, index, picture) in pictures {
            let only_for = self.wheel.lease().map(|lease| lease.holder.by.clone());
            let at = Placed { id: id.into(), offset: first + index as u64, only_for };
            self.session.images.add(self.session.id, picture, at);
        }
        let appended = self.append_or_refuse(drafts, numbers).await;
        if appended.is_err() {
            self.session.images.remove_from(first);
        }
        appended
    }

    async fn append_or_refuse(&mut self, drafts: Vec<Draft>, numbers: Numbers) -> Result<(), Stop> {
        match self.append(drafts, Some(numbers)).await {
            Ok(_) => Ok(()),
            Err(error @ EngineError::Fenced { .. }) => {
                tracing::warn!(session.id = ?self.id(), %error, "append refused");
                Err(Stop::Lost(OwnershipLost))
            }
            Err(error) => Err(Stop::Refused(Self::refuse_append(&error))),
        }
    }

    fn plain_draft(&mut self, event: Published, plain: &mut Plain) -> Draft {
        let task = self.task_of(&event);
        let Some(picture) = event.picture else { return Draft { kind: event.kind, task, data: event.data } };
        let mut data = event.data.into_value();
        if data.is_null() {
            data = json!({});
        }
        if self.state.session().sensitive {
            data["withheld"] = Value::Bool(true);
        } else {
            let id = ids::random_id();
            data["id"] = Value::String(id.clone());
            data["media"] = Value::String(picture.media.clone());
            data["size"] = picture.bytes.len().into();
            plain.pictures.push((id, plain.drafts.len(), picture));
        }
        Draft { kind: event.kind, task, data: data.into() }
    }

    /// The task that an event names, or the current one.
    fn task_of<D>(&self, event: &Published<D>) -> Option<String> {
        event.task.clone().or_else(|| self.state.current().map(|task| task.task.clone()))
    }

    async fn take_stateful(&mut self, event: Published<Value>) -> Result<(), Stop> {
        let numbers = Numbers { from: self.log.n, to: event.n };
        match &*event.kind {
            kind::GUARDRAIL_TRIGGER => self.raise(event, numbers).await,
            kind::GUARDRAIL_WITHDRAWN => self.withdrawn(event, numbers).await,
            kind::GUARDRAIL_TAKEN => self.taken(event, numbers).await,
            kind::SENSITIVE => self.sensitive(event, numbers).await,
            kind::TASK_STARTED => self.task_started(event, numbers).await,
            kind::USAGE => self.used(event, numbers).await,
            _ => self.task_result(event, numbers).await,
        }
        .map_err(|stop| match stop {
            StatefulStop::Refused(refusal) => Stop::Refused(refusal),
            StatefulStop::Engine(error @ EngineError::Fenced { .. }) => {
                tracing::warn!(session.id = ?self.id(), %error, "append refused");
                Stop::Lost(OwnershipLost)
            }
            StatefulStop::Engine(error) => Stop::Refused(Self::refuse_append(&error)),
            StatefulStop::Lost(lost) => Stop::Lost(lost),
        })
    }

    async fn sensitive(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let Some(on) = event.data["on"].as_bool() else {
            return Err(invalid("sensitive has `data.on`, true or false").into());
        };
        // From here on the window is the runtime's: the gateway no longer closes it by time.
        self.sensitive_until = None;
        let draft = Draft::new(kind::SENSITIVE, self.task_of(&event), json!({ "on": on }));
        self.append(vec![draft], Some(numbers)).await?;
        Ok(())
    }

    async fn task_started(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let task = event.data["taskId"].as_str().map(str::to_owned).or_else(|| event.task.clone());
        let task = task.filter(|task| ids::is_outside_id(task));
        let task = task.ok_or_else(|| invalid("task_started names its task in `data.taskId`"))?;
        if self.state.tasks_seen() >= super::commands::TASKS && !self.state.has_seen(&task) {
            return Err(Refusal::plain(Code::TooManyTasks).into());
        }
        let mut data = event.data;
        data["taskId"] = Value::String(task.clone());
        self.append(vec![Draft::new(kind::TASK_STARTED, Some(task), data)], Some(numbers)).await?;
        Ok(())
    }

    /// What the task has used so far: it goes on.
    async fn used(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let draft = Draft { task: self.task_of(&event), kind: event.kind, data: event.data.into() };
        self.append(vec![draft], Some(numbers)).await?;
        Ok(())
    }

    /// `task_completed`, or the `error` that ends a task.
    async fn task_result(&mut self, event: Published<Value>, numbers: Numbers) -> Result<(), StatefulStop> {
        let Some(task) = self.task_of(&event) else {
            let draft = Draft { kind: event.kind, task: None, data: event.data.into() };
            self.append(vec![draft], Some(numbers)).await?;
            return Ok(());
        };
        let mut data = event.data;
        if data.is_null() {
            data = json!({});
        }
        data["taskId"] = Value::String(task.clone());
        let ends = self.state.task(&task).is_some_and(|task| !task.status.is_over());
        let draft = Draft { kind: event.kind, task: Some(task.clone()), data: data.into() };
        let position = self.append(vec![draft], Some(numbers)).await?;
        if ends {
            self.cancel_guardrails_of(Some(&task), "task").await?;
            self.task_ended(&task, position).await?;
        }
        Ok(())
    }

    /// A task has ended with a result: somebody is to see it, and it may end its session.
    pub(super) async fn task_ended(&mut self, task: &str, position: Position) -> Result<(), OwnershipLost> {
        self.result_due(task, position.offset, Instant::now());
        self.keeping.changed();
        let rules = self.tasks.remove(task).unwrap_or_default();
        if rules.terminate_on_completion {
            self.end(EndReason::TerminateOnCompletion).await?;
        }
        Ok(())
    }

    /// The runtime no longer has its events from a number on: the log goes on in a new epoch.
    pub(super) async fn numbers_lost(&mut self, connection: ConnectionId, from: u64) -> Result<(), OwnershipLost> {
        if self.hold(connection).is_err() || from <= self.log.n {
            return Ok(());
        }
        self.services.metrics.epochs_broken.inc();
        tracing::warn!(session.id = ?self.id(), n = from, expected = self.log.n + 1, "the runtime lost events");
        // Whoever asks while the engine does not answer sees what was before.
        self.snapshot();
        let before = self.log.epoch;
        self.log.epoch = ids::random_epoch();
        let numbers = Numbers { from: self.log.n, to: from - 1 };
        let data = json!({ "reason": "n_lost", "from": from, "before": before.to_string() });
        let draft = || vec![Draft::new(kind::EPOCH_CHANGED, None, data.clone())];
        let mut patience = Patience::default();
        while let Err(error) = self.append(draft(), Some(numbers)).await {
            self.wait_for_engine(error, &mut patience).await?;
        }
        let position = Position { epoch: self.log.epoch, offset: self.log.next - 1 };
        self.session.link.accepted(self.log.n, position);
        Ok(())
    }

    /// The redactor knows them before anything else does.
    ///
    /// # Errors
    /// `invalid` or `too_large`, without a value; what brought them is refused.
    pub(super) fn learn_secrets(&mut self, secrets: Vec<SecretEntry>) -> Result<(), Refusal> {
        for value in secrets.iter().flat_map(|entry| entry.fields.values()) {
            let registered = self.redactor.register(value, Nature::Credential);
            registered.map_err(|error| Refusal::new(Code::TooLarge, error.to_string()))?;
        }
        if !secrets.is_empty() {
            self.secrets.given();
        }
        self.fillers.add(secrets).map_err(invalid)
    }

    /// What among the parameters for a runtime is secret.
    ///
    /// # Errors
    /// As [`Self::learn_secrets`].
    pub(super) fn learn_parameters(&mut self, parameters: &Map<String, Value>) -> Result<(), Refusal> {
        for value in crate::secrets::in_parameters(parameters) {
            let registered = self.redactor.register(&value, Nature::Credential);
            registered.map_err(|error| Refusal::new(Code::TooLarge, error.to_string()))?;
            self.secrets.given();
        }
        Ok(())
    }

    /// The session's own names and labels are shown to everybody: no secret stands in them.
    pub(super) fn redact_names(&mut self) {
        if let Some(name) = &mut self.asked.external_id {
            *name = self.redactor.redact_str(name).into_owned();
        }
        self.redactor.redact_members(&mut self.asked.labels, &[]);
        self.state.rename(self.asked.external_id.clone(), self.asked.labels.clone());
    }
}

/// Events that wait to be appended together.
#[derive(Default)]
struct Plain {
    drafts: Vec<Draft>,
    /// Id, place among the drafts, bytes.
    pictures: Vec<(String, usize, NewPicture)>,
}

/// Why an event that changes state was not taken.
pub(super) enum StatefulStop {
    Refused(Refusal),
    Engine(EngineError),
    Lost(OwnershipLost),
}

impl From<Refusal> for StatefulStop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<EngineError> for StatefulStop {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<OwnershipLost> for StatefulStop {
    fn from(lost: OwnershipLost) -> Self {
        Self::Lost(lost)
    }
}

fn is_plain(kind: &str) -> bool {
    matches!(kind, kind::AGENT | kind::ACTION | kind::RESPONSE_UPDATE | kind::SCREENSHOT) || kind.starts_with("x.")
}

pub(super) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Invalid, message)
}

fn number_expected(expected: u64) -> Refusal {
    Refusal::plain(Code::NumberExpected).with_details(json!({ "expected": expected }))
}

/// Says up to which number an HTTP batch is in the log.
fn with_number(mut refusal: Refusal, n: u64) -> Refusal {
    if refusal.details.is_null() {
        refusal.details = json!({});
    }
    refusal.details["n"] = n.into();
    refusal
}
