//! What a receiver is told, made of what the log has: redacted.

use onlooker_protocol::view::{SessionView, TaskStatus, TaskView};
use serde_json::{Value, json};

use super::SubmittedData;
use crate::task_result::{Failure, result_data, usage_of};

/// How a task stands, for its webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    NotOver,
    /// It is over as somebody wished.
    NothingToTell,
    Over(Ending),
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    Completed,
    Failed { error: String, code: String },
}

impl Standing {
    pub fn of(task: &TaskView, session: &SessionView) -> Self {
        match task.status {
            TaskStatus::Completed => Self::Over(Ending::Completed),
            TaskStatus::Failed => {
                let said = |name: &str| task.result.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
                Self::failed(said("error").unwrap_or("Task failed"), said("code").unwrap_or("TASK_FAILED"))
            }
            TaskStatus::Stopped => Self::stopped(task, session),
            TaskStatus::Queued | TaskStatus::Running | TaskStatus::Waiting | TaskStatus::Paused => Self::NotOver,
        }
    }

    fn stopped(task: &TaskView, session: &SessionView) -> Self {
        match Failure::of_stopped(task, session) {
            Some(failure) => Self::failed(failure.message, failure.code),
            None => Self::NothingToTell,
        }
    }

    fn failed(error: &str, code: &str) -> Self {
        Self::Over(Ending::Failed { error: error.to_owned(), code: code.to_owned() })
    }
}

/// The JSON that is sent. `structured`: the output is JSON in a text, and is sent as what it says.
pub fn body(session: &str, task: &TaskView, ending: &Ending, form: SubmittedData, structured: bool) -> Value {
    let kind = match ending {
        Ending::Completed => "task_completed",
        Ending::Failed { .. } => "task_failed",
    };
    let mut body = match (form, ending) {
        (SubmittedData::AiResponse, Ending::Completed) => return output(task, structured),
        // There is no output; nothing that could be taken for one is sent.
        (SubmittedData::AiResponse, Ending::Failed { error, code }) => return json!({ "error": error, "code": code }),
        (SubmittedData::JustPing, _) => json!({ "event": kind }),
        (SubmittedData::FullResponse, _) => json!({ "type": kind }),
    };
    body["sessionId"] = json!(session);
    body["taskId"] = json!(task.task);
    if form == SubmittedData::FullResponse {
        let usage = usage_of(task);
        if let Ending::Failed { error, code } = ending {
            body["error"] = json!(error);
            body["code"] = json!(code);
        }
        body["data"] = result_data(&task.result, &usage);
        body["usage"] = usage.into();
    }
    body["completedAt"] = json!(task.ended_at);
    body
}

fn output(task: &TaskView, structured: bool) -> Value {
    let said = task.result.get("message").cloned().unwrap_or_else(|| "".into());
    let parsed = said.as_str().filter(|_| structured).and_then(|text| serde_json::from_str(text).ok());
    parsed.unwrap_or(said)
}
