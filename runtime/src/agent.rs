//! What the author of a runtime writes, an [`Agent`], and what it is given, a [`Task`].
//!
//! [`run`] keeps the connection, the numbering and the queue of tasks; an agent does the work and publishes what
//! happens. Sessions run beside each other, the tasks of one session one after the other.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use onlooker_protocol::{
    event::kind,
    runtime::{GuardrailOutcome, OpenSession},
    subscriber::NewTask,
    view::Outcome,
};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    client::{
        self,
        session::{Running, Session},
        window::Unnumbered,
    },
    ids,
};

pub use crate::socket::SocketError as RunError;

/// Does the work of a runtime's sessions.
pub trait Agent: Send + Sync + 'static {
    /// Works on one task and returns how it ended. Dropped (cancelled) when the task is stopped or its session ends.
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>>;

    /// The session ended: let go of what it held (a browser page, say). Called once a session, after the last work
    /// was dropped.
    fn session_ended(&self, session: &str) {
        let _ = session;
    }
}

/// A task that ended well. `data` (files, network, usage …) is merged into `task_completed`'s data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Completed {
    pub message: String,
    pub data: Map<String, Value>,
}

/// A task that ended badly: the data of its `error` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    pub error: String,
    pub code: String,
}

/// How a runtime connects and what it says of itself. Has no `Debug`: the token is a secret.
#[derive(Clone)]
pub struct Options {
    /// The gateway's base address, `http(s)://` or `ws(s)://`.
    pub gateway: Url,
    pub token: Option<String>,
    pub name: String,
    /// How many sessions it holds at once.
    pub capacity: u32,
    pub labels: Map<String, Value>,
}

/// Runs an agent until `shutdown`, reconnecting for as long as that can help.
///
/// At shutdown running tasks end with an error, their sessions are ended, and what was published has 5 s to be
/// acknowledged. For `https` and `wss` the process has installed rustls's default provider before.
///
/// # Errors
/// When another attempt would fail the same way: a wrong address or key, another version of the protocol, a runtime
/// that was replaced or refused for good.
pub async fn run(options: Options, agent: Arc<dyn Agent>, shutdown: CancellationToken) -> Result<(), RunError> {
    client::run(options, agent, shutdown).await
}

/// One task, as the agent that works on it sees it. Cheap to clone; after the task's end a clone publishes nothing.
#[derive(Clone)]
pub struct Task {
    session: Arc<Session>,
    running: Arc<Running>,
}

impl Task {
    pub(crate) fn new(session: Arc<Session>, running: Arc<Running>) -> Self {
        Self { session, running }
    }

    pub fn session(&self) -> &str {
        &self.session.id
    }

    pub fn id(&self) -> &str {
        &self.running.id
    }

    /// What is to be done; empty when the task came without a prompt.
    pub fn prompt(&self) -> &str {
        self.running.parameters.prompt.as_deref().unwrap_or_default()
    }

    pub fn parameters(&self) -> &NewTask {
        &self.running.parameters
    }

    pub fn session_parameters(&self) -> &OpenSession {
        &self.session.parameters
    }

    /// Publishes an event: returns when there is room for it among those that the gateway has not acknowledged.
    /// Cancel safe: an event is either taken whole or not at all.
    pub async fn publish(&self, kind: &str, data: Value) {
        if !self.running.stop.is_cancelled() {
            self.session.publish(Unnumbered::new(kind, Some(self.id()), data)).await;
        }
    }

    /// Publishes a `screenshot` with its bytes. `media` is `image/jpeg`, `image/png` or `image/webp`.
    pub async fn picture(&self, media: &str, bytes: Bytes, data: Value) {
        if !self.running.stop.is_cancelled() {
            self.session.publish(Unnumbered::picture(Some(self.id()), media, bytes, data)).await;
        }
    }

    /// Raises a guardrail, waits for its outcome and says that it was taken.
    ///
    /// `guardrail` is the data of the `guardrail_trigger` event; `type`, a missing `guardrailId` and a missing
    /// `revision` (1) are filled in. A question that the gateway refuses comes back as `cancelled`.
    pub async fn ask(&self, guardrail: Value) -> GuardrailOutcome {
        let mut data = match guardrail {
            Value::Object(members) => members,
            question => Map::from_iter([("value".to_owned(), question)]),
        };
        let id = match data.get("guardrailId").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => ids::fresh(),
        };
        let asked = data.get("revision").and_then(Value::as_u64).and_then(|r| u32::try_from(r).ok()).unwrap_or(1);
        data.insert("type".to_owned(), "human_input_needed".into());
        data.insert("guardrailId".to_owned(), id.clone().into());
        data.insert("revision".to_owned(), asked.into());
        let mut question = Question::new(self.session.clone(), id, asked, open_fields(&data));
        self.publish(kind::GUARDRAIL_TRIGGER, Value::Object(data)).await;
        let outcome = question.outcome().await;
        if !question.refused {
            let taken = json!({"guardrailId": outcome.guardrail_id, "revision": outcome.revision});
            self.publish(kind::GUARDRAIL_TAKEN, taken).await;
        }
        outcome
    }

    /// Opens or closes a window in which no picture is stored or shown.
    pub async fn sensitive(&self, on: bool) {
        self.publish(kind::SENSITIVE, json!({"on": on})).await;
    }

    /// Waits while the task is paused or a person has control.
    pub async fn ready(&self) {
        let mut stillness = self.session.stillness.subscribe();
        stillness.wait_for(|s| !s.held()).await.expect("the session that is borrowed here holds the sender");
    }

    /// Waits until [`Self::ready`] would wait.
    pub async fn held(&self) {
        let mut stillness = self.session.stillness.subscribe();
        stillness.wait_for(|s| s.held()).await.expect("the session that is borrowed here holds the sender");
    }

    /// Whether the task is paused or a person has control at this moment.
    pub fn is_held(&self) -> bool {
        self.session.stillness.borrow().held()
    }

    /// The next input of a person to the session's browser. The last 256 that nobody asked for are kept; those from
    /// before the task are not.
    pub async fn interaction(&self) -> Map<String, Value> {
        self.session.interaction().await
    }
}

/// The ids of fields that say `"secret": false`.
fn open_fields(guardrail: &Map<String, Value>) -> Vec<String> {
    let fields = guardrail.get("fields").and_then(Value::as_array).into_iter().flatten();
    let open = fields.filter(|field| field.get("secret") == Some(&Value::Bool(false)));
    open.filter_map(|field| field.get("id")?.as_str().map(str::to_owned)).collect()
}

/// The wait for one outcome. Dropped with it, or with the task that waits.
struct Question {
    session: Arc<Session>,
    id: String,
    asked: u32,
    told: oneshot::Receiver<GuardrailOutcome>,
    refused: bool,
}

impl Question {
    fn new(session: Arc<Session>, id: String, asked: u32, open_fields: Vec<String>) -> Self {
        let told = session.ask(&id, asked, open_fields);
        Self { session, id, asked, told, refused: false }
    }

    async fn outcome(&mut self) -> GuardrailOutcome {
        match (&mut self.told).await {
            Ok(outcome) => outcome,
            // The gateway refused the question, so that nobody was asked.
            Err(_) => {
                self.refused = true;
                GuardrailOutcome {
                    guardrail_id: self.id.clone(),
                    revision: self.asked,
                    asked: self.asked,
                    outcome: Outcome::Cancelled,
                    on_timeout: None,
                    text: None,
                    choice: None,
                    values: Default::default(),
                }
            }
        }
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.told.close();
        self.session.asked_enough(&self.id, self.asked);
    }
}
