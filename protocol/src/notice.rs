//! Notices: what a webhook's receiver gets, and what chats draw their messages from.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::view::{Choice, Field, GuardrailKind, GuardrailState, Outcome};

/// What a notice says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoticeType {
    /// A question waits for a person.
    #[serde(rename = "guardrail.opened")]
    GuardrailOpened,
    /// A question that was told is put again, under another revision.
    #[serde(rename = "guardrail.updated")]
    GuardrailUpdated,
    /// A question that was told is closed.
    #[serde(rename = "guardrail.resolved")]
    GuardrailResolved,
    #[serde(rename = "task.completed")]
    TaskCompleted,
    #[serde(rename = "task.failed")]
    TaskFailed,
    /// Somebody tries whether notices arrive.
    #[serde(rename = "test")]
    Test,
}

/// One message to a person. Absent members are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    #[serde(rename = "type")]
    pub kind: NoticeType,
    /// The idempotency id: the same for every attempt and for the repeat. Empty until it is sent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub session: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// When it was written.
    pub at: String,
    /// Why somebody is contacted at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The step of the ladder; absent on the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardrail: Option<NoticeGuardrail>,
    /// What the task said at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Where the session can be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// Where secret fields can be answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<FormLink>,
    /// An earlier attempt may have arrived.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeat: bool,
}

/// A question as notices tell it: while it is open what is asked, afterwards how it ended. Never a value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeGuardrail {
    pub guardrail_id: String,
    pub revision: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<GuardrailKind>,
    /// The question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    #[serde(default, skip_serializing_if = "NoticeFields::is_empty")]
    pub fields: NoticeFields,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Choice>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub website_error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<GuardrailState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<String>,
}

/// Of an open question its fields, of a closed one the names of those that were filled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum NoticeFields {
    Asked(Vec<Field>),
    Filled(Vec<String>),
}

impl Default for NoticeFields {
    fn default() -> Self {
        Self::Asked(Vec::new())
    }
}

impl NoticeFields {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Asked(fields) => fields.is_empty(),
            Self::Filled(names) => names.is_empty(),
        }
    }

    /// The fields of an open question.
    pub fn asked(&self) -> &[Field] {
        match self {
            Self::Asked(fields) => fields,
            Self::Filled(_) => &[],
        }
    }
}

/// A page that takes what must not be typed into a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FormLink {
    pub url: String,
    pub expires_at: String,
}
