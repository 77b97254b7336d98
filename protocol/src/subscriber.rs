//! Frames between a subscriber and the gateway on `/v1/ws`: JSON text, one object a frame, told apart by `type`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    code::{Code, Refusal},
    event::{EventFrame, Position, Since},
    view::{ClaimView, GuardrailView, SessionSummary, SessionView, WatcherCounts},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureLevel {
    #[default]
    None,
    /// Small ones, for grids.
    Reduced,
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    #[default]
    Watcher,
    /// Follows and never counts as looking: recorders, loggers, tiles of a grid.
    Observer,
}

/// What a client says of its person. `active` is a lease of 30 s that the client's code renews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    Active,
    #[default]
    Idle,
}

#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subscribe {
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The session to follow. Exactly one of `session` and `project` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `true` follows summaries of every session that the grant allows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub project: bool,
    #[serde(default)]
    pub since: Since,
    /// Only events of these types; empty means all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filter: Vec<String>,
    #[serde(default)]
    pub pictures: PictureLevel,
    #[serde(default)]
    pub role: Role,
    #[serde(default)]
    pub attention: Attention,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerAction {
    Submit,
    Decline,
}

/// An answer to a guardrail. The first one wins. `values` and `text` are secrets: `Debug` does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub revision: u32,
    /// Made by the client; the same answer sent again under it gets the same success.
    pub idempotency_key: String,
    pub action: AnswerAction,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, String>,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("revision", &self.revision)
            .field("action", &self.action)
            .field("choice", &self.choice)
            .field("fields", &self.values.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// A change to a session's course. `Debug` shows the command's name only: prompts and typed text may hold secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum SessionCommand {
    NewTask {
        #[serde(default)]
        task: NewTask,
    },
    Pause,
    Resume,
    Stop,
    Terminate,
    /// Passed to the browser of the session.
    Interaction {
        action: Map<String, Value>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<u64>,
    },
    TakeControl,
    ReleaseControl {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<u64>,
    },
}

impl std::fmt::Debug for SessionCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NewTask { .. } => "NewTask",
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stop => "Stop",
            Self::Terminate => "Terminate",
            Self::Interaction { .. } => "Interaction",
            Self::TakeControl => "TakeControl",
            Self::ReleaseControl { .. } => "ReleaseControl",
        })
    }
}

/// A piece of work. Members that the gateway does not know reach the runtime as they are.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewTask {
    /// Chosen by the client, `[A-Za-z0-9_-]{1,64}`; made here when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Running time in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminate_on_completion: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretEntry>,
    #[serde(flatten)]
    pub parameters: Map<String, Value>,
}

impl std::fmt::Debug for NewTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewTask").field("task_id", &self.task_id).finish_non_exhaustive()
    }
}

/// Credentials for the sites that `match` selects. `Debug` shows no value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretEntry {
    /// A host, `*.host` for its subdomains, or `all`.
    #[serde(rename = "match")]
    pub matches: String,
    pub fields: BTreeMap<String, String>,
}

impl std::fmt::Debug for SecretEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretEntry").field("matches", &self.matches).finish_non_exhaustive()
    }
}

/// What a subscriber sends.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum SubscriberToGateway {
    /// Within 5 s where `hello.auth` says `required`.
    Auth {
        token: String,
    },
    Subscribe(Subscribe),
    Unsubscribe {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        project: bool,
    },
    /// For one session, or for all of this connection.
    Attention {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        state: Attention,
    },
    /// "I have everything up to here."
    Ack {
        session: String,
        position: Position,
    },
    /// Answers a ping. Proof that everything sent before the ping has reached the client's own code.
    Pong {
        id: u64,
    },
    Answer {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        session: String,
        guardrail_id: String,
        #[serde(flatten)]
        answer: Answer,
    },
    Claim {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        session: String,
        guardrail_id: String,
        revision: u32,
        /// Milliseconds; 2 min when absent, at most 15 min.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        duration: Option<u64>,
    },
    Release {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        session: String,
        guardrail_id: String,
        revision: u32,
    },
    Command {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        session: String,
        #[serde(flatten)]
        command: SessionCommand,
    },
    /// A frame type of a later version: answered with an error, otherwise without effect.
    #[serde(other)]
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthNeed {
    None,
    Required,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriberLimits {
    /// Bytes of one frame.
    pub frame: u64,
    pub subscriptions: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The log no longer has what follows the position.
    Trimmed,
    /// The position is of another epoch: the log's content is no continuation of it.
    Epoch,
    /// The position is after the newest event.
    Ahead,
}

/// What the gateway sends to a subscriber.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum GatewayToSubscriber {
    /// The first frame.
    Hello {
        version: u32,
        connection: String,
        auth: AuthNeed,
        /// Milliseconds within which `auth` must come.
        auth_within: u64,
        /// Milliseconds between application pings.
        ping_every: u64,
        /// Milliseconds after which a subscriber without a pong no longer counts as live.
        live_window: u64,
        limits: SubscriberLimits,
    },
    /// Authenticated.
    Ready {
        project: String,
        scopes: Vec<String>,
        who: String,
        at: String,
    },
    /// State that is true at `position`. Comes first after `subscribe`, and after every `gap`.
    Snapshot {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        session: String,
        position: Position,
        state: Box<SessionView>,
        watchers: WatcherCounts,
    },
    /// What was missed before the snapshot: history, never applied to state.
    Replay {
        session: String,
        replay: bool,
        events: Vec<Value>,
    },
    /// Everything up to `position` has been sent; what follows is live.
    Live {
        session: String,
        position: Position,
    },
    /// Events are missing between `from` and the snapshot that follows.
    Gap {
        session: String,
        reason: GapReason,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Position>,
    },
    Event(EventFrame),
    /// Everything a `subscribe {project}` knows at its start, in chunks; the one with `more: false` ends it.
    Summaries {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        sessions: Vec<SessionSummary>,
        /// Whether more chunks follow.
        more: bool,
    },
    /// One session of a followed project changed.
    Summary(SessionSummary),
    /// At most one a second a session.
    Watchers {
        session: String,
        #[serde(flatten)]
        counts: WatcherCounts,
    },
    /// Who has said "I have it", in full; sent when it changes.
    Claims {
        session: String,
        claims: Vec<ClaimedGuardrail>,
    },
    /// `positions` are resume positions of the sessions that moved since the last ping.
    Ping {
        id: u64,
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        positions: BTreeMap<String, Position>,
    },
    /// A request succeeded.
    Ok {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        #[serde(default, skip_serializing_if = "Map::is_empty")]
        result: Map<String, Value>,
    },
    /// A request was refused, or a frame could not be read.
    Error {
        #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
        reference: Option<String>,
        #[serde(flatten)]
        refusal: Refusal,
    },
    /// The gateway ended a subscription.
    Unsubscribed {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<String>,
        code: Code,
        reason: String,
    },
    /// The gateway goes away. Come back after `after` milliseconds, and resume.
    Goaway {
        reason: String,
        after: u64,
        resume: bool,
    },
    /// A frame type of a later version: to be ignored.
    #[serde(other)]
    Unknown,
}

/// A guardrail that somebody has claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedGuardrail {
    pub guardrail_id: String,
    pub revision: u32,
    #[serde(flatten)]
    pub claim: ClaimView,
}

/// The result of a claim or an answer, inside `ok.result` and REST bodies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuardrailResult {
    pub guardrail: GuardrailView,
}
