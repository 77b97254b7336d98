//! What a journey needs of its task. [`Task`] gives it; tests give it from a script.

use std::future::Future;

use bytes::Bytes;
use onlooker_protocol::runtime::GuardrailOutcome;
use serde_json::{Map, Value};

use crate::agent::Task;

/// One task, seen from the agent that works on it. Each member means what it means on [`Task`].
pub trait TaskLink: Send + Sync {
    fn session(&self) -> &str;
    fn id(&self) -> &str;
    fn prompt(&self) -> &str;
    /// Where the task wants to begin.
    fn starting_url(&self) -> Option<&str>;
    /// The session's `proxy` parameter; null without one.
    fn proxy(&self) -> &Value;
    fn publish(&self, kind: &str, data: Value) -> impl Future<Output = ()> + Send;
    fn picture(&self, media: &str, bytes: Bytes, data: Value) -> impl Future<Output = ()> + Send;
    fn ask(&self, guardrail: Value) -> impl Future<Output = GuardrailOutcome> + Send;
    fn sensitive(&self, on: bool) -> impl Future<Output = ()> + Send;
    fn ready(&self) -> impl Future<Output = ()> + Send;
    fn held(&self) -> impl Future<Output = ()> + Send;
    fn is_held(&self) -> bool;
    fn interaction(&self) -> impl Future<Output = Map<String, Value>> + Send;
}

impl TaskLink for Task {
    fn session(&self) -> &str {
        Task::session(self)
    }

    fn id(&self) -> &str {
        Task::id(self)
    }

    fn prompt(&self) -> &str {
        Task::prompt(self)
    }

    fn starting_url(&self) -> Option<&str> {
        self.parameters().parameters.get("startingUrl")?.as_str().filter(|url| !url.is_empty())
    }

    fn proxy(&self) -> &Value {
        self.session_parameters().parameters.get("proxy").unwrap_or(&Value::Null)
    }

    async fn publish(&self, kind: &str, data: Value) {
        Task::publish(self, kind, data).await;
    }

    async fn picture(&self, media: &str, bytes: Bytes, data: Value) {
        Task::picture(self, media, bytes, data).await;
    }

    async fn ask(&self, guardrail: Value) -> GuardrailOutcome {
        Task::ask(self, guardrail).await
    }

    async fn sensitive(&self, on: bool) {
        Task::sensitive(self, on).await;
    }

    async fn ready(&self) {
        Task::ready(self).await;
    }

    async fn held(&self) {
        Task::held(self).await;
    }

    fn is_held(&self) -> bool {
        Task::is_held(self)
    }

    async fn interaction(&self) -> Map<String, Value> {
        Task::interaction(self).await
    }
}
