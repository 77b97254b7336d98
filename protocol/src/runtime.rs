//! Frames between a runtime and the gateway on `/v1/runtime`, and the bodies of the HTTP pair.
//!
//! JSON text frames told apart by `type`, and the binary frames of [`crate::picture`].

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    code::Refusal,
    event::Position,
    subscriber::{AuthNeed, NewTask, SecretEntry},
    view::{OnTimeout, Outcome, ReachOutMode},
};

/// A numbered event. `n` counts 1, 2, 3 … in its session, and is kept over reconnects.
///
/// It has not passed the redactor yet, so `Debug` shows neither its data nor its picture.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedEvent {
    pub n: u64,
    #[serde(rename = "type")]
    pub kind: String,
    /// The task it belongs to; the running one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
    /// The bytes of a `screenshot` where no binary frame can be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub picture: Option<InlinePicture>,
}

impl std::fmt::Debug for PublishedEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PublishedEvent").field("n", &self.n).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// A picture inside JSON. `Debug` shows no bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlinePicture {
    pub media: String,
    pub base64: String,
}

impl std::fmt::Debug for InlinePicture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InlinePicture").field("media", &self.media).finish_non_exhaustive()
    }
}

/// A session that a runtime says it has, after a reconnect.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    pub session: String,
    /// The claim token of `assigned`, `opened` or the last `claimed`.
    pub claim: String,
    /// The number of the last command that it applied.
    #[serde(default)]
    pub commands: u64,
}

/// What a runtime sends.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum RuntimeToGateway {
    Auth {
        token: String,
    },
    Register {
        name: String,
        /// How many sessions it can hold at once.
        capacity: u32,
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        labels: Map<String, Value>,
    },
    /// Takes an assigned session, or one of its own after a reconnect.
    Claim(Reclaim),
    /// Does not want an assigned session.
    Decline {
        session: String,
        reason: String,
    },
    /// A session of the runtime's own.
    Open {
        #[serde(rename = "ref")]
        reference: String,
        #[serde(flatten)]
        session: Box<OpenSession>,
    },
    Events {
        session: String,
        events: Vec<PublishedEvent>,
    },
    /// The runtime no longer has the events that the gateway expects. `from` is the number of its next event, at least
    /// the one expected; the log goes on from there in a new epoch.
    NLost {
        session: String,
        from: u64,
    },
    /// Applied all commands up to this number.
    CommandsDone {
        session: String,
        commands: u64,
    },
    /// Announces the session's secrets again, after the gateway lost them.
    Secrets {
        session: String,
        secrets: Vec<SecretEntry>,
        /// Values of secret fields that the runtime has taken.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        values: Vec<String>,
    },
    /// Ends a session that the runtime has closed.
    End {
        session: String,
    },
    Pong {
        id: u64,
    },
    #[serde(other)]
    Unknown,
}

/// A session as its creator asks for it. `Debug` shows no secret.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenSession {
    /// The creator's own name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(default)]
    pub reach_out_mode: ReachOutMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretEntry>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub labels: Map<String, Value>,
    /// What else the runtime should know; passed on as it is.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub parameters: Map<String, Value>,
    /// The first task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<NewTask>,
}

impl std::fmt::Debug for OpenSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenSession")
            .field("external_id", &self.external_id)
            .field("reach_out_mode", &self.reach_out_mode)
            .finish_non_exhaustive()
    }
}

/// What the gateway asks of a runtime. Numbered per session by [`NumberedCommand`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum RuntimeCommand {
    NewTask {
        task: NewTask,
    },
    Pause,
    Resume,
    /// Ends the task at once; the session stays usable.
    Stop {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<String>,
    },
    /// Ends the session.
    Terminate,
    Interaction {
        action: Map<String, Value>,
    },
    TakeControl,
    ReleaseControl,
    Guardrail(GuardrailOutcome),
    #[serde(other)]
    Unknown,
}

impl std::fmt::Debug for RuntimeCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NewTask { .. } => "NewTask",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stop { .. } => "Stop",
            Self::Terminate => "Terminate",
            Self::Interaction { .. } => "Interaction",
            Self::TakeControl => "TakeControl",
            Self::ReleaseControl => "ReleaseControl",
            Self::Guardrail(_) => "Guardrail",
            Self::Unknown => "Unknown",
        })
    }
}

/// A command and its number in its session: 1, 2, 3 … . A runtime applies each number once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumberedCommand {
    pub number: u64,
    #[serde(flatten)]
    pub command: RuntimeCommand,
}

/// How a guardrail ended. The runtime applies it once by (`guardrailId`, `revision`) and publishes `guardrail_taken`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardrailOutcome {
    pub guardrail_id: String,
    /// The revision that was answered.
    pub revision: u32,
    /// The runtime's own number for it.
    pub asked: u32,
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<String>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub values: std::collections::BTreeMap<String, String>,
}

/// What the gateway sends to a runtime.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum GatewayToRuntime {
    Hello {
        version: u32,
        connection: String,
        auth: AuthNeed,
        auth_within: u64,
        ping_every: u64,
        /// Bytes of one frame.
        frame: u64,
        /// Events of one batch.
        batch: u64,
    },
    Registered {
        runtime: String,
    },
    /// A session to take: answer with `claim` or `decline`.
    Assigned {
        session: String,
        claim: String,
        #[serde(flatten)]
        parameters: Box<OpenSession>,
    },
    Opened {
        #[serde(rename = "ref")]
        reference: String,
        session: String,
        claim: String,
    },
    /// The session is this connection's. `claim` replaces the token that was used.
    Claimed {
        session: String,
        claim: String,
        /// The number that the next event must carry.
        expected: u64,
        /// Whether the session's secrets must be announced with `secrets` before events are accepted.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        secrets_expected: bool,
    },
    /// The session is no longer this connection's.
    Released {
        session: String,
        #[serde(flatten)]
        refusal: Refusal,
    },
    /// The gateway's word that everything up to `n` is in the log.
    Accepted {
        session: String,
        n: u64,
        position: Position,
    },
    /// Events up to `n` are in the log; the one after it was refused, and with it those behind it.
    EventRefused {
        session: String,
        n: u64,
        #[serde(flatten)]
        refusal: Refusal,
    },
    Command {
        session: String,
        #[serde(flatten)]
        command: NumberedCommand,
    },
    /// How many look, at most once a second.
    Watchers {
        session: String,
        #[serde(flatten)]
        counts: crate::view::WatcherCounts,
    },
    Error {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        #[serde(flatten)]
        refusal: Refusal,
    },
    Ping {
        id: u64,
    },
    Goaway {
        reason: String,
        after: u64,
    },
    #[serde(other)]
    Unknown,
}

/// The answer to `POST /v1/sessions/{id}/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventsAccepted {
    /// The last number in the log.
    pub n: u64,
    pub position: Position,
}

/// The answer to `GET /v1/sessions/{id}/commands`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommandsPage {
    pub commands: Vec<NumberedCommand>,
}
