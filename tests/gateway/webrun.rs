//! Existing WebRun clients over REST: what they send and expect, in every documented generation.

mod access;
mod attaching;
mod malformed;
mod polling;
mod sending;
mod starting;
mod waiting;

use std::time::Duration;

use onlooker::config::{
    Config,
    key::{KeyDigest, KeyEntry, Scope},
};
use onlooker_protocol::{
    runtime::{OpenSession, RuntimeCommand},
    subscriber::NewTask,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::harness::*;

/// A configuration whose inline answers do not wait for long.
fn hasty() -> Config {
    let mut config = quick();
    config.webrun.inline_wait = Duration::from_millis(30);
    config
}

/// A gateway without keys, and a runtime that does what the test says.
struct Scene {
    gateway: TestGateway,
    runtime: Runtime,
}

impl Scene {
    async fn begin(config: Config) -> Self {
        let gateway = TestGateway::with(config).await;
        let runtime = gateway.runtime().await;
        Self { gateway, runtime }
    }

    /// Starts a session that its runtime has taken.
    async fn start(&mut self, body: Value) -> String {
        let (status, started) = self.gateway.post("/start/start-session", body).await;
        assert_eq!(status, 200, "{started}");
        let (session, _) = self.runtime.take_assigned().await;
        assert_eq!(started["sessionId"], session.as_str());
        session
    }

    /// Starts a session whose first task `t` is running.
    async fn running(&mut self) -> String {
        let session = self.start(json!({ "task": { "prompt": "Buy a lamp", "taskId": "t" } })).await;
        self.runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
        session
    }

    async fn send(&self, session: &str, message: Value) -> (u16, Value) {
        self.gateway.post("/start/send-message", json!({ "sessionId": session, "message": message })).await
    }

    async fn poll(&self, session: &str, task: &str) -> (u16, Value) {
        self.gateway.get(&format!("/task/{session}/{task}")).await
    }

    /// The command that a message comes to at the runtime.
    async fn comes_to(&mut self, session: &str, message: Value) -> RuntimeCommand {
        let sent = self.send(session, message.clone()).await;
        assert_eq!(sent, (200, sent_successfully()), "{message}");
        self.runtime.commands_so_far(session).await.pop().expect("a command came").command
    }
}

fn sent_successfully() -> Value {
    json!({ "success": true, "message": "Message sent successfully" })
}

/// The next task that a runtime is given.
async fn task_of(runtime: &mut Runtime) -> NewTask {
    runtime
        .command("a task", |command| match command {
            RuntimeCommand::NewTask { task } => Some(task.clone()),
            _ => None,
        })
        .await
}

/// The next session that a runtime is offered, as it is told of it.
async fn assigned(runtime: &mut Runtime) -> (String, OpenSession) {
    use onlooker_protocol::runtime::GatewayToRuntime;
    let (session, claim, parameters) = runtime
        .until("assigned", |frame| match frame {
            GatewayToRuntime::Assigned { session, claim, parameters } => {
                Some((session.clone(), claim.clone(), (**parameters).clone()))
            }
            _ => None,
        })
        .await;
    runtime.claim(&session, &claim).await;
    (session, parameters)
}

/// A refusal's body without details.
fn refused(code: &str, message: &str) -> Value {
    json!({ "success": false, "message": message, "error": message, "code": code })
}

/// A key of a project: `key-` and its id.
fn key(id: &str, project: &str, scopes: &[Scope]) -> KeyEntry {
    KeyEntry {
        id: id.to_owned(),
        project: project.to_owned(),
        scopes: scopes.to_vec(),
        sha256: KeyDigest(Sha256::digest(format!("key-{id}").as_bytes()).into()),
        pool: false,
        account: Default::default(),
        balance: None,
    }
}

/// A gateway with keys: `user` of project `p`, `other` of project `q`, and runtimes of both.
struct Closed {
    gateway: TestGateway,
    runtime: Runtime,
    /// Of the other project.
    others: Runtime,
}

/// What a WebRun client's key is given.
const CLIENT: &[Scope] = &[Scope::Watch, Scope::Answer, Scope::Control];

impl Closed {
    async fn begin(mut config: Config, more: Vec<KeyEntry>) -> Self {
        config.keys = vec![
            key("user", "p", CLIENT),
            key("other", "q", CLIENT),
            key("runtime", "p", &[Scope::Publish]),
            key("runtime-q", "q", &[Scope::Publish]),
        ];
        config.keys.extend(more);
        let gateway = TestGateway::with(config).await;
        let runtime = Runtime::connect(&gateway, "of p", 100, Some("key-runtime")).await;
        let others = Runtime::connect(&gateway, "of q", 100, Some("key-runtime-q")).await;
        Self { gateway, runtime, others }
    }

    fn to(&self, path: &str, key: Option<&str>, body: &Value) -> reqwest::RequestBuilder {
        let request = self.gateway.http.post(format!("{}{path}", self.gateway.url)).json(body);
        match key {
            Some(key) => request.bearer_auth(format!("key-{key}")),
            None => request,
        }
    }

    async fn post(&self, path: &str, key: Option<&str>, body: Value) -> (u16, Value) {
        self.gateway.request(self.to(path, key, &body)).await
    }

    async fn get(&self, path: &str, key: Option<&str>) -> (u16, Value) {
        let request = self.gateway.http.get(format!("{}{path}", self.gateway.url));
        let request = match key {
            Some(key) => request.bearer_auth(format!("key-{key}")),
            None => request,
        };
        self.gateway.request(request).await
    }

    async fn send(&self, key: Option<&str>, session: &str, message: Value) -> (u16, Value) {
        self.post("/start/send-message", key, json!({ "sessionId": session, "message": message })).await
    }

    /// Starts a session of project `p` that its runtime has taken.
    async fn start(&mut self, body: Value) -> String {
        let (status, started) = self.post("/start/start-session", Some("user"), body).await;
        assert_eq!(status, 200, "{started}");
        self.runtime.take_assigned().await.0
    }
}
