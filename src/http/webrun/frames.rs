//! What the log has, in the form that WebRun clients read: arguments of Socket.IO events, and the bodies of polls.

use onlooker_protocol::{
    event::{EventFrame, kind},
    view::{EndReason, GuardrailView},
};
use serde_json::{Map, Value, json};

use crate::engine::Record;
pub use crate::task_result::{result_data, usage};

/// What a client hears of one event: a Socket.IO event's name and its argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub event: &'static str,
    pub argument: Value,
}

/// How long clients are told to wait for an instance that is away, in milliseconds: as documented, not as configured.
const GRACE_PERIOD: u64 = 300_000;

/// What WebRun clients hear of an event; `None` for what their protocol has no words for.
pub fn of_record(record: &Record) -> Option<Said> {
    is_heard(&record.kind).then(|| of_event(&serde_json::from_slice(&record.frame).ok()?)).flatten()
}

/// Whether events of this type are heard at all: tells without reading the frame.
pub fn is_heard(kind: &str) -> bool {
    matches!(
        kind,
        kind::AGENT
            | kind::ACTION
            | kind::RESPONSE_UPDATE
            | kind::TASK_STARTED
            | kind::TASK_COMPLETED
            | kind::ERROR
            | kind::GUARDRAIL_TRIGGER
            | kind::SESSION_ENDED
            | kind::RUNTIME_DISCONNECTED
            | kind::RUNTIME_RECONNECTED
    )
}

pub fn of_event(frame: &EventFrame) -> Option<Said> {
    let data = &frame.event.data;
    let mut argument = match frame.event.kind.as_str() {
        kind::AGENT => json!({ "type": "agent", "content": data["content"] }),
        kind::ACTION => json!({ "type": "action", "data": data }),
        kind::RESPONSE_UPDATE => json!({ "type": "response_update", "data": data }),
        kind::TASK_STARTED => json!({ "type": "task_started", "data": { "taskId": frame.task } }),
        kind::TASK_COMPLETED => completed(data),
        kind::ERROR => json!({ "type": "error", "error": data["error"], "code": data["code"] }),
        kind::GUARDRAIL_TRIGGER => question(data),
        kind::SESSION_ENDED => return Some(ended(data)),
        kind::RUNTIME_DISCONNECTED => return Some(disconnected()),
        kind::RUNTIME_RECONNECTED => return Some(reconnected()),
        _ => return None,
    };
    argument["sessionId"] = json!(frame.session);
    if let Some(task) = &frame.task {
        argument["taskId"] = json!(task);
    }
    Some(Said { event: "message", argument })
}

/// An open question, for a client that joins.
pub fn of_guardrail(view: &GuardrailView) -> Said {
    let mut argument = json!({
        "type": "guardrail_trigger",
        "data": { "type": "human_input_needed", "value": view.value },
        "sessionId": view.session,
        "guardrailId": view.guardrail_id,
        "revision": view.revision,
    });
    if let Some(task) = &view.task {
        argument["taskId"] = json!(task);
    }
    if !view.fields.is_empty() {
        argument["data"]["fields"] = json!(view.fields);
    }
    if !view.choices.is_empty() {
        argument["data"]["choices"] = json!(view.choices);
    }
    Said { event: "message", argument }
}

fn question(data: &Value) -> Value {
    let mut shown = Map::new();
    shown.insert("type".to_owned(), "human_input_needed".into());
    shown.insert("value".to_owned(), data["value"].clone());
    for name in ["fields", "choices"] {
        if data[name].as_array().is_some_and(|items| !items.is_empty()) {
            shown.insert(name.to_owned(), data[name].clone());
        }
    }
    json!({
        "type": "guardrail_trigger",
        "data": shown,
        "guardrailId": data["guardrailId"],
        "revision": data["revision"],
    })
}

fn completed(data: &Value) -> Value {
    let usage = usage(data["usage"].as_object(), None);
    json!({ "type": "task_completed", "data": result_data(data, &usage), "usage": usage })
}

fn ended(data: &Value) -> Said {
    let reason = serde_json::from_value::<EndReason>(data["reason"].clone()).map_or("terminated", end_reason);
    Said {
        event: "end_session",
        argument: json!({ "type": "end_session", "reason": reason, "message": "Session ended" }),
    }
}

/// The documented reason that says the same.
pub fn end_reason(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Completed => "completed",
        EndReason::Terminated | EndReason::OverCapacity => "terminated",
        EndReason::Expired => "expired",
        EndReason::TerminateOnCompletion => "terminateOnCompletion",
        EndReason::InstanceLost | EndReason::NoRuntime | EndReason::SecretsLost => "instance_lost",
    }
}

fn disconnected() -> Said {
    Said {
        event: "instance:disconnected",
        argument: json!({
            "type": "instance:disconnected",
            "message": "Instance connection lost. Attempting reconnection...",
            "gracePeriod": GRACE_PERIOD,
        }),
    }
}

fn reconnected() -> Said {
    Said {
        event: "instance:reconnected",
        argument: json!({ "type": "instance:reconnected", "message": "Instance connection restored" }),
    }
}
