//! What an agent is, and what it may do with its task.

use bytes::Bytes;
use futures::future::BoxFuture;
use onlooker_protocol::{runtime::GuardrailOutcome, subscriber::NewTask};
use serde_json::{Map, Value};

/// Works on tasks.
pub trait Agent: Send + Sync + 'static {
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>>;
    fn session_ended(&self, _session: &str) {}
}

/// A finished task. `data` (files, network, usage …) is merged into that of `task_completed`.
#[derive(Clone, Debug)]
pub struct Completed {
    pub message: String,
    pub data: Map<String, Value>,
}

/// A task that could not be finished.
#[derive(Clone, Debug)]
pub struct Failed {
    pub error: String,
    pub code: String,
}

/// One piece of work, and the way back to whoever asked for it.
#[derive(Clone)]
pub struct Task {
    session: String,
    id: String,
    parameters: NewTask,
}

impl Task {
    pub fn session(&self) -> &str {
        &self.session
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn prompt(&self) -> &str {
        self.parameters.prompt.as_deref().unwrap_or_default()
    }

    pub fn parameters(&self) -> &NewTask {
        &self.parameters
    }

    pub async fn publish(&self, _kind: &str, _data: Value) {}

    pub async fn picture(&self, _media: &str, _bytes: Bytes, _data: Value) {}

    pub async fn ask(&self, _guardrail: Value) -> GuardrailOutcome {
        std::future::pending().await
    }

    pub async fn sensitive(&self, _on: bool) {}

    pub async fn ready(&self) {}

    pub async fn interaction(&self) -> Map<String, Value> {
        std::future::pending().await
    }
}
