//! What is kept of a session beside its log and its guardrails, so that another process can go on with it.
//!
//! The record says up to which offset its state is true; whoever reads it applies the events behind that. So it may be
//! older than the log, and most changes are written a while later, together. What nobody could find again in the log
//! is written before it is told to anybody: claim tokens, tasks that wait for the runtime, that there are secrets.
//!
//! Secrets are never in it. What the redactor would change is stored as the redactor leaves it, and marked.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use onlooker_protocol::{
    event::EventFrame,
    runtime::OpenSession,
    subscriber::NewTask,
    view::{EndReason, SessionStatus, TaskStatus},
};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use tokio::time::Instant;

use super::{
    holding::StoredTokens,
    owner::{Owner, OwnershipLost},
    reaching::StoredResult,
    state::{Applied, State},
    webhooks::StoredWebhook,
};
use crate::{
    engine::{EngineError, Record, RecordKey, RecordKind, Version},
    ids::SessionId,
};

/// The version of the stored form.
const VERSION: u32 = 1;
/// How long a change that others may ask about waits for its write …
const SOON: Duration = Duration::from_secs(5);
/// … and how long one that only saves reading at the next start.
const LATER: Duration = Duration::from_secs(30);
/// When a write that is not urgent failed.
const AGAIN: Duration = Duration::from_secs(1);

/// A session's record.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredSession {
    version: u32,
    pub project: String,
    pub asked: OpenSession,
    pub state: State,
    /// The state holds every event before this offset.
    pub next: u64,
    pub tokens: StoredTokens,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_secrets: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, StoredRules>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<Ran>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queued: Vec<StoredTask>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused_by_control: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sensitive_by_gateway: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub results: Vec<StoredResult>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub webhooks: BTreeMap<String, StoredWebhook>,
}

/// What a task's creator said about its course.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredRules {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminate_on_completion: bool,
}

/// How long the current task had run.
#[derive(Serialize, Deserialize)]
pub(super) struct Ran {
    pub task: String,
    pub ms: u64,
}

/// A task that the runtime was not known to have.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredTask {
    /// The number of its command.
    pub number: u64,
    pub task: NewTask,
    /// Nothing of it was left out.
    pub whole: bool,
}

/// Where the record stands.
#[derive(Default)]
pub(super) struct Keeping {
    pub version: Option<Version>,
    due: Option<Instant>,
    /// Events and bytes in the log that the record's state does not hold.
    behind: (u64, u64),
}

impl Keeping {
    pub(super) fn restored(version: Version) -> Self {
        Self { version: Some(version), ..Self::default() }
    }

    /// When the record is to be written.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn due_within(&mut self, wait: Duration) {
        let at = Instant::now() + wait;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Something changed that the log does not say.
    pub(super) fn changed(&mut self) {
        self.due_within(SOON);
    }

    /// Something changed that somebody would be contacted for, if it were forgotten.
    pub(super) fn changed_for_people(&mut self) {
        self.due_within(Duration::ZERO);
    }

    /// Events were appended. `changes_state`: some of them are more than something to look at. The record is never so
    /// far behind that the log could be trimmed in between.
    pub(super) fn appended(&mut self, events: u64, bytes: u64, changes_state: bool, bounds: KeptBehind) {
        self.behind = (self.behind.0 + events, self.behind.1 + bytes);
        let far = self.behind.0 > bounds.events || self.behind.1 > bounds.bytes;
        self.due_within(match (far, changes_state) {
            (true, _) => Duration::ZERO,
            (false, true) => SOON,
            (false, false) => LATER,
        });
    }
}

/// How far a record may be behind its log.
#[derive(Clone, Copy, Debug)]
pub struct KeptBehind {
    pub events: u64,
    pub bytes: u64,
}

impl StoredSession {
    /// # Errors
    /// It is damaged, or of a version that this gateway does not know.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if stored.version == VERSION { Ok(stored) } else { Err(format!("it has version {}", stored.version)) }
    }
}

/// A session as its record and its log have it, for whoever looks at a stopped gateway's data.
pub struct Kept {
    project: String,
    state: State,
    next: u64,
    has_secrets: bool,
}

impl Kept {
    /// # Errors
    /// The record is damaged, or of a version that this gateway does not know.
    pub fn read(record: &[u8]) -> Result<Self, String> {
        let StoredSession { project, state, next, has_secrets, .. } = StoredSession::decode(record)?;
        Ok(Self { project, state, next, has_secrets })
    }

    /// The offset from which on the log knows more.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Applies an event of the log behind the record. One that cannot be read changes nothing.
    pub fn apply(&mut self, record: &Record) {
        if State::is_changed_by(&record.kind)
            && let Ok(frame) = serde_json::from_slice::<EventFrame>(&record.frame)
        {
            let EventFrame { at, task, position, event, .. } = &frame;
            self.state.apply(Applied {
                kind: &record.kind,
                task: task.as_deref(),
                data: &event.data,
                at,
                position: *position,
            });
        }
    }

    pub fn summary(&self) -> KeptSummary {
        let view = self.state.session();
        KeptSummary {
            project: self.project.clone(),
            external_id: view.external_id.clone(),
            status: view.status,
            reason: view.reason,
            task_status: self.state.task_status(),
            created_at: view.created_at.clone(),
            has_secrets: self.has_secrets,
        }
    }
}

/// What is shown of a kept session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptSummary {
    pub project: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    pub status: SessionStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<EndReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_status: Option<TaskStatus>,
    pub created_at: String,
    pub has_secrets: bool,
}

/// The name of a session's record.
pub(super) fn record_key(session: SessionId) -> RecordKey {
    RecordKey { kind: RecordKind::Session, session, name: String::new() }
}

impl Owner {
    /// Writes the session's record.
    ///
    /// # Errors
    /// As the engine's; a conflict means that another owner has the session.
    pub(super) async fn keep(&mut self) -> Result<(), EngineError> {
        let value = Bytes::from(serde_json::to_vec(&self.stored()).expect("a record is plain data"));
        let key = record_key(self.id());
        let version = self.services.engine.put(key, self.keeping.version, value).await?;
        self.keeping = Keeping::restored(version);
        Ok(())
    }

    /// As [`Self::keep`], until the engine answers.
    pub(super) async fn keep_surely(&mut self) -> Result<(), OwnershipLost> {
        let mut patience = super::appending::Patience::default();
        loop {
            match self.keep().await {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_for_engine(error, &mut patience).await?,
            }
        }
    }

    /// Writes the record when it is due. What cannot be written now is tried again, and nobody waits for it.
    pub(super) async fn keep_when_due(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        if self.keeping.due.is_none_or(|due| now < due) {
            return Ok(());
        }
        match self.keep().await {
            Ok(()) => Ok(()),
            Err(EngineError::Unavailable(_) | EngineError::Full) => {
                self.keeping.due = Some(Instant::now() + AGAIN);
                Ok(())
            }
            Err(_) => Err(OwnershipLost),
        }
    }

    fn stored(&self) -> StoredSession {
        let (task, ran) = self.clock.ran(Instant::now());
        let rules = self.tasks.iter().map(|(task, rules)| {
            let max_duration_ms = rules.max_duration.map(milliseconds);
            (task.clone(), StoredRules { max_duration_ms, terminate_on_completion: rules.terminate_on_completion })
        });
        StoredSession {
            version: VERSION,
            project: self.session.project.to_string(),
            asked: self.storable_request(),
            state: self.state.clone(),
            next: self.log.next,
            tokens: self.tokens.stored(),
            has_secrets: self.secrets.has_any(),
            rules: rules.collect(),
            ran: task.map(|task| Ran { task: task.to_owned(), ms: milliseconds(ran) }),
            queued: self.storable_tasks(),
            paused_by_control: self.paused_by_control,
            sensitive_by_gateway: self.sensitive_until.is_some(),
            results: self.reaching.stored_results(),
            webhooks: self.webhooks.stored(),
        }
    }

    /// What the session was asked for, without its secrets.
    fn storable_request(&self) -> OpenSession {
        let asked = &self.asked;
        let mut parameters = Map::new();
        // Of an ended session the redactor has been cleared, and nobody needs its parameters.
        if !self.state.is_ended() {
            parameters.clone_from(&asked.parameters);
            self.redactor.redact_members(&mut parameters, &[]);
        }
        OpenSession {
            external_id: asked.external_id.clone(),
            reach_out_mode: asked.reach_out_mode,
            environment_id: asked.environment_id.clone(),
            secrets: Vec::new(),
            labels: asked.labels.clone(),
            parameters,
            task: None,
        }
    }

    fn storable_tasks(&self) -> Vec<StoredTask> {
        if self.state.is_ended() {
            return Vec::new();
        }
        let waiting = self.session.link.waiting_tasks().into_iter().map(|waiting| {
            let (mut task, mut whole) = (waiting.task, !waiting.had_secrets);
            if let Some(prompt) = &mut task.prompt {
                let redacted = self.redactor.redact_str(prompt).into_owned();
                whole &= redacted == *prompt;
                *prompt = redacted;
            }
            whole &= !self.redactor.redact_members(&mut task.parameters, &[]);
            StoredTask { number: waiting.number, task, whole }
        });
        let unsettled = self.unsettled.iter().flat_map(|unsettled| unsettled.queued.iter().cloned());
        unsettled.chain(waiting).collect()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
