//! A task's result in the words of WebRun's clients: polls, sockets and task webhooks say the same.

use onlooker_protocol::view::{EndReason, SessionView, TaskView};
use serde_json::{Map, Value, json};

use crate::clock;

/// An end that nobody wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: &'static str,
    pub message: &'static str,
}

impl Failure {
    /// What a session ended of, where nobody wanted it to end.
    pub fn of(reason: EndReason) -> Option<Self> {
        let (code, message) = match reason {
            EndReason::InstanceLost => ("INSTANCE_LOST", "The session's instance was lost"),
            EndReason::NoRuntime => ("NO_INSTANCES_AVAILABLE", "No available instances."),
            EndReason::SecretsLost => ("SECRETS_LOST", "The session's secrets were lost; start a new session"),
            _ => return None,
        };
        Some(Self { code, message })
    }

    /// A session that ends stops its tasks in one batch with its end. Nobody asked for a task to be lost with its
    /// instance; what somebody stopped or terminated went as wanted.
    pub fn of_stopped(task: &TaskView, session: &SessionView) -> Option<Self> {
        let with_its_session = session.ended_at.is_some() && session.ended_at == task.ended_at;
        session.reason.filter(|_| with_its_session).and_then(Self::of)
    }
}

/// A task's usage under both namings, and live: where its runtime says nothing of time, it is measured.
pub fn usage_of(task: &TaskView) -> Map<String, Value> {
    let ended = task.ended_at.as_deref().and_then(clock::parse).unwrap_or_else(clock::now);
    let took = task.started_at.as_deref().map(|started| clock::since(started, ended));
    usage(Some(&task.usage), took.map(|took| took.as_millis() as f64 / 1000.0))
}

/// `data` of a completed task: what the runtime said, the documented members always, the old token members too.
pub fn result_data(data: &Value, usage: &Map<String, Value>) -> Value {
    let mut shown = data.as_object().cloned().unwrap_or_default();
    shown.remove("usage");
    shown.remove("taskId");
    shown.entry("message").or_insert_with(|| "".into());
    for name in ["files", "network"] {
        shown.entry(name).or_insert_with(|| json!([]));
    }
    for name in ["prompt_tokens", "completion_tokens", "total_tokens", "completion_time"] {
        shown.insert(name.to_owned(), usage[name].clone());
    }
    Value::Object(shown)
}

/// Usage under both namings. `seconds` is how long the task has taken so far, for runtimes that do not say.
pub fn usage(said: Option<&Map<String, Value>>, seconds: Option<f64>) -> Map<String, Value> {
    let number = |names: [&str; 2]| {
        let said = said?;
        names.iter().find_map(|name| said.get(*name).and_then(Value::as_f64))
    };
    let whole = |number: f64| if number.fract() == 0.0 { json!(number as u64) } else { json!(number) };
    let input = number(["prompt_tokens", "inputTokens"]).unwrap_or(0.0);
    let output = number(["completion_tokens", "outputTokens"]).unwrap_or(0.0);
    let total = number(["total_tokens", "totalTokens"]).unwrap_or(input + output);
    let time = number(["completion_time", "computeTime"]).or(seconds).unwrap_or(0.0);
    let cost = number(["cost", "cost"]).unwrap_or(0.0);
    Map::from_iter([
        ("prompt_tokens".to_owned(), whole(input)),
        ("completion_tokens".to_owned(), whole(output)),
        ("total_tokens".to_owned(), whole(total)),
        ("completion_time".to_owned(), json!(time)),
        ("cost".to_owned(), json!(cost)),
        ("inputTokens".to_owned(), whole(input)),
        ("outputTokens".to_owned(), whole(output)),
        ("computeTime".to_owned(), json!(time)),
    ])
}
