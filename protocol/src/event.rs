//! Events and their positions.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

/// A place in a session's log, written `epoch:offset`.
///
/// Offsets are dense within an epoch. A position is also the cursor from which a reader resumes (exclusive).
/// Compare positions of one epoch only: another epoch is another log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    pub epoch: Epoch,
    pub offset: u64,
}

/// Names one log: 8 characters `[a-z0-9]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; 8]);

/// The text is no `epoch:offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAPosition;

impl Epoch {
    /// Takes 8 characters `[a-z0-9]`; anything else is `None`.
    pub fn new(text: &str) -> Option<Self> {
        let bytes: [u8; 8] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).then_some(Self(bytes))
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("an epoch is made of ASCII")
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.offset)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NotAPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a position is written epoch:offset, for instance k3v9x0aa:17")
    }
}

impl std::error::Error for NotAPosition {}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        let (epoch, offset) = text.split_once(':').ok_or(NotAPosition)?;
        if offset.is_empty() || !offset.bytes().all(|b| b.is_ascii_digit()) {
            return Err(NotAPosition);
        }
        Ok(Self { epoch: Epoch::new(epoch).ok_or(NotAPosition)?, offset: offset.parse().map_err(|_| NotAPosition)? })
    }
}

impl Serialize for Position {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Position {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Where a reader wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Since {
    /// At the oldest event that the log still has.
    Start,
    /// After the newest event.
    #[default]
    Latest,
    /// After this position.
    After(Position),
}

impl FromStr for Since {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, NotAPosition> {
        match text {
            "start" => Ok(Self::Start),
            "latest" => Ok(Self::Latest),
            _ => text.parse().map(Self::After),
        }
    }
}

impl fmt::Display for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Latest => f.write_str("latest"),
            Self::After(position) => fmt::Display::fmt(position, f),
        }
    }
}

impl Serialize for Since {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Since {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|_| de::Error::custom("since is `start`, `latest` or a position epoch:offset"))
    }
}

/// What happened: the inner object of an event frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

/// An event as every subscriber gets it. It holds nothing that differs between subscribers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventFrame {
    pub session: String,
    pub position: Position,
    /// UUIDv7.
    pub id: String,
    /// When the gateway received it: RFC 3339, UTC, milliseconds.
    pub at: String,
    /// The task it belongs to, when one was named or running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    pub event: Event,
}

/// Event types with a meaning to the gateway. Runtimes may publish types of their own under `x.`.
pub mod kind {
    pub const TASK_STARTED: &str = "task_started";
    pub const AGENT: &str = "agent";
    pub const ACTION: &str = "action";
    pub const SCREENSHOT: &str = "screenshot";
    pub const RESPONSE_UPDATE: &str = "response_update";
    /// What the running task has used so far.
    pub const USAGE: &str = "usage";
    pub const GUARDRAIL_TRIGGER: &str = "guardrail_trigger";
    pub const GUARDRAIL_WITHDRAWN: &str = "guardrail_withdrawn";
    pub const GUARDRAIL_TAKEN: &str = "guardrail_taken";
    pub const SENSITIVE: &str = "sensitive";
    pub const TASK_COMPLETED: &str = "task_completed";
    pub const ERROR: &str = "error";

    pub const SESSION_STARTED: &str = "session_started";
    pub const TASK_QUEUED: &str = "task_queued";
    pub const TASK_PAUSED: &str = "task_paused";
    pub const TASK_RESUMED: &str = "task_resumed";
    pub const TASK_STOPPED: &str = "task_stopped";
    pub const GUARDRAIL_RESOLVED: &str = "guardrail_resolved";
    pub const CONTROL_TAKEN: &str = "control_taken";
    pub const CONTROL_RELEASED: &str = "control_released";
    /// A runtime has taken the session for the first time: it is active now.
    pub const RUNTIME_CONNECTED: &str = "runtime_connected";
    pub const RUNTIME_DISCONNECTED: &str = "runtime_disconnected";
    pub const RUNTIME_RECONNECTED: &str = "runtime_reconnected";
    /// The runtime lost events: the log's content is no continuation, and its epoch is new.
    pub const EPOCH_CHANGED: &str = "epoch_changed";
    pub const SESSION_ENDED: &str = "session_ended";

    /// What a runtime may publish, beside `x.*`.
    pub const PUBLISHED: &[&str] = &[
        TASK_STARTED,
        AGENT,
        ACTION,
        SCREENSHOT,
        RESPONSE_UPDATE,
        USAGE,
        GUARDRAIL_TRIGGER,
        GUARDRAIL_WITHDRAWN,
        GUARDRAIL_TAKEN,
        SENSITIVE,
        TASK_COMPLETED,
        ERROR,
    ];

    /// Whether an event of this type ends a task with a result.
    pub fn is_result(kind: &str) -> bool {
        matches!(kind, TASK_COMPLETED | ERROR)
    }
}
