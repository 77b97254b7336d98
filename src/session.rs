//! A session as the rest of the gateway sees it: a cheap handle to its one owner.
//!
//! The owner is a task; it alone appends to the session's log, decides its guardrails and its reach-out, and keeps its
//! deadlines. Everybody else asks it through a bounded mailbox, or reads what it shares: the committed head, the
//! pictures, who watches, and the state frames.

mod appending;
mod commands;
mod directory;
mod holding;
mod kept;
mod last_picture;
mod owner;
mod publishing;
mod questions;
mod reaching;
mod restoring;
mod run_clock;
mod settling;
#[cfg(test)]
mod simulation;
pub mod state;
mod telling;
pub mod unnamed;
mod webhooks;

use std::sync::Arc;

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    runtime::{EventsAccepted, OpenSession},
    subscriber::{Answer, SecretEntry, SessionCommand},
    view::{ClaimView, GuardrailView, GuardrailWhy, SessionView, TaskView},
};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

pub use directory::{Directory, Services, SessionLimits, SessionTimes, Targets, Unreached};
pub use kept::{Kept, KeptBehind, KeptSummary};
pub use restoring::{RestoreError, picture_key};

use crate::{
    control::Holder,
    engine::Head,
    guardrail::Actor,
    hub::{Side, Source},
    ids::{ConnectionId, Project, SessionId},
    images::Images,
    ingest::{Published, Unreadable},
    outbox::{NoticeKey, NoticeState, Verdict},
    reach_out::told::verdict_without_owner,
    runtime_link::{Link, Seat},
    task_webhook::Post,
    watch::Watch,
};
use unnamed::{Heard, ShownToPollers, Unnamed};

/// Requests that may wait for one owner. A runtime that publishes faster feels this, and nobody else.
const MAILBOX: usize = 64;
/// Who wants to see the session without changing it has a mailbox of its own: it is served also while the engine does
/// not answer, and everything else waits.
const LOOKS: usize = 64;
/// Bytes of published events that may wait for one owner.
const IN_FLIGHT_BYTES: usize = 16 << 20;

/// A handle to a session. Cheap to clone.
#[derive(Clone)]
pub struct Session(Arc<Shared>);

/// What a session shares with those who follow it.
pub struct Shared {
    pub id: SessionId,
    pub project: Project,
    pub images: Images,
    pub watch: Watch,
    pub link: Link,
    pub shown_to_pollers: ShownToPollers,
    head: watch::Receiver<Head>,
    side: watch::Receiver<Side>,
    /// Boxed: a mailbox that nobody has written to yet has room for many already.
    requests: mpsc::Sender<Box<Request>>,
    looks: mpsc::Sender<Look>,
    in_flight: Arc<Semaphore>,
}

impl std::ops::Deref for Session {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// State that is true at a position.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub position: Position,
    pub state: Arc<SessionView>,
}

/// Who publishes: the connection that holds the session, or an HTTP runtime that shows its claim token.
#[derive(Clone, Debug)]
pub enum Publisher {
    Connection(ConnectionId),
    Http { claim: String },
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// Events on their way to the log.
pub(crate) struct Publish {
    pub publisher: Publisher,
    pub events: Vec<Published>,
    /// What followed them could not be read.
    pub unreadable: Option<Unreadable>,
    /// Present for HTTP; a connection hears through its link.
    pub reply: Option<Reply<EventsAccepted>>,
    pub _bytes: OwnedSemaphorePermit,
}

/// A runtime takes a session, for the first time or again.
pub(crate) struct ClaimSession {
    pub token: String,
    /// The last command that it applied.
    pub commands: u64,
    pub seat: Seat,
}

pub(crate) enum Request {
    Publish(Publish),
    ClaimSession(ClaimSession),
    Decline { connection: ConnectionId, reason: String },
    CommandsDone { connection: ConnectionId, commands: u64 },
    NumbersLost { connection: ConnectionId, from: u64 },
    Announce { connection: ConnectionId, secrets: Vec<SecretEntry>, values: Vec<String> },
    EndByRuntime { connection: ConnectionId },
    HttpContact { claim: String, done: u64, reply: Reply<()> },
    HttpAnnounce { claim: String, secrets: Vec<SecretEntry>, values: Vec<String>, reply: Reply<()> },
    Command { command: SessionCommand, actor: Actor, reply: Reply<Map<String, Value>> },
    Answer { guardrail: String, answer: Answer, actor: Actor, reply: Reply<GuardrailView> },
    AnswerUnnamed { unnamed: Unnamed, actor: Actor, reply: Reply<Heard> },
    Claim { guardrail: String, revision: u32, duration_ms: Option<u64>, actor: Actor, reply: Reply<ClaimView> },
    Release { guardrail: String, revision: u32, actor: Actor, reply: Reply<()> },
    ConnectionLost(ConnectionId),
    Recheck { key: NoticeKey, reply: oneshot::Sender<Verdict> },
    NoticeSettled { key: NoticeKey, state: NoticeState },
    BeginWebhook { task: String, reply: oneshot::Sender<Option<Post>> },
    WebhookDone { task: String },
}

/// What is asked without changing anything.
pub(crate) enum Look {
    Snapshot(oneshot::Sender<Snapshot>),
    Task { id: String, reply: oneshot::Sender<Option<TaskView>> },
    Guardrail { id: String, reply: Reply<GuardrailView> },
    Why { id: String, reply: Reply<GuardrailWhy> },
}

/// How a session came to be.
pub enum Origin {
    /// A client asked for it; a runtime with room is offered it.
    Client,
    /// A connected runtime opened it.
    Runtime(Seat),
    /// A runtime without a socket opened it.
    HttpRuntime,
}

/// A session that has just begun.
pub struct Created {
    pub session: Session,
    /// For runtimes that opened it themselves.
    pub claim: Option<String>,
    pub task: Option<String>,
    /// What the runtime says of itself that it was offered to.
    pub labels: Arc<Map<String, Value>>,
}

pub(crate) struct NewSession {
    pub project: Project,
    pub asked: OpenSession,
    pub origin: Origin,
    pub by: String,
}

impl Session {
    /// The committed head now.
    pub fn head(&self) -> Head {
        *self.0.head.borrow()
    }

    pub fn follow_head(&self) -> watch::Receiver<Head> {
        self.0.head.clone()
    }

    /// Whether its owner has ended: nothing more will come.
    pub fn is_gone(&self) -> bool {
        self.0.requests.is_closed()
    }

    /// What the hub follows.
    pub fn source(&self) -> Source {
        let session = self.clone();
        Source {
            head: self.0.head.clone(),
            side: self.0.side.clone(),
            pictures: self.0.images.follow_reduced(),
            newest_picture: Box::new(move |committed| session.images.newest(committed)),
        }
    }

    /// Who watches and who has claimed, as last told.
    pub fn side(&self) -> Side {
        self.0.side.borrow().clone()
    }

    /// Room for events of this size, waiting until there is.
    pub async fn room(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from(bytes.clamp(1, IN_FLIGHT_BYTES)).expect("below 16 MiB");
        Arc::clone(&self.0.in_flight).acquire_many_owned(permits).await.expect("never closed")
    }

    /// The same if there is now.
    pub fn room_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.clamp(1, IN_FLIGHT_BYTES)).expect("below 16 MiB");
        Arc::clone(&self.0.in_flight).try_acquire_many_owned(permits).ok()
    }

    /// Hands over events of a connection; the gateway's word on them comes through the link.
    pub async fn publish(
        &self,
        connection: ConnectionId,
        events: Vec<Published>,
        unreadable: Option<Unreadable>,
        bytes: OwnedSemaphorePermit,
    ) -> Result<(), Refusal> {
        let publisher = Publisher::Connection(connection);
        self.tell(Request::Publish(Publish { publisher, events, unreadable, reply: None, _bytes: bytes })).await
    }

    /// Hands over events of an HTTP runtime and waits for the gateway's word on them.
    pub async fn publish_and_wait(
        &self,
        claim: String,
        events: Vec<Published>,
        unreadable: Option<Unreadable>,
        bytes: OwnedSemaphorePermit,
    ) -> Result<EventsAccepted, Refusal> {
        let publisher = Publisher::Http { claim };
        self.ask(|reply| Request::Publish(Publish { publisher, events, unreadable, reply: Some(reply), _bytes: bytes }))
            .await
    }

    pub async fn claim_session(&self, token: String, commands: u64, seat: Seat) -> Result<(), Refusal> {
        self.tell(Request::ClaimSession(ClaimSession { token, commands, seat })).await
    }

    pub async fn decline(&self, connection: ConnectionId, reason: String) -> Result<(), Refusal> {
        self.tell(Request::Decline { connection, reason }).await
    }

    pub async fn commands_done(&self, connection: ConnectionId, commands: u64) -> Result<(), Refusal> {
        self.tell(Request::CommandsDone { connection, commands }).await
    }

    pub async fn numbers_lost(&self, connection: ConnectionId, from: u64) -> Result<(), Refusal> {
        self.tell(Request::NumbersLost { connection, from }).await
    }

    pub async fn announce(
        &self,
        connection: ConnectionId,
        secrets: Vec<SecretEntry>,
        values: Vec<String>,
    ) -> Result<(), Refusal> {
        self.tell(Request::Announce { connection, secrets, values }).await
    }

    pub async fn end_by_runtime(&self, connection: ConnectionId) -> Result<(), Refusal> {
        self.tell(Request::EndByRuntime { connection }).await
    }

    /// An HTTP runtime shows that it is there and what it has applied.
    pub async fn http_contact(&self, claim: String, done: u64) -> Result<(), Refusal> {
        self.ask(|reply| Request::HttpContact { claim, done, reply }).await
    }

    /// An HTTP runtime announces the session's secrets again.
    pub async fn http_announce(
        &self,
        claim: String,
        secrets: Vec<SecretEntry>,
        values: Vec<String>,
    ) -> Result<(), Refusal> {
        self.ask(|reply| Request::HttpAnnounce { claim, secrets, values, reply }).await
    }

    pub async fn snapshot(&self) -> Result<Snapshot, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.look(Look::Snapshot(reply)).await?;
        answer.await.map_err(|_| gone())
    }

    pub async fn task(&self, id: String) -> Result<Option<TaskView>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.look(Look::Task { id, reply }).await?;
        answer.await.map_err(|_| gone())
    }

    pub async fn command(&self, command: SessionCommand, actor: Actor) -> Result<Map<String, Value>, Refusal> {
        self.ask(|reply| Request::Command { command, actor, reply }).await
    }

    pub async fn answer(&self, guardrail: String, answer: Answer, actor: Actor) -> Result<GuardrailView, Refusal> {
        self.ask(|reply| Request::Answer { guardrail, answer, actor, reply }).await
    }

    /// An answer that names no question.
    ///
    /// # Errors
    /// `no_open_guardrail`, `ambiguous`, `unknown_guardrail`, `invalid`. An answer that comes too late is no error.
    pub async fn answer_unnamed(&self, unnamed: Unnamed, actor: Actor) -> Result<Heard, Refusal> {
        self.ask(|reply| Request::AnswerUnnamed { unnamed, actor, reply }).await
    }

    pub async fn claim(
        &self,
        guardrail: String,
        revision: u32,
        duration_ms: Option<u64>,
        actor: Actor,
    ) -> Result<ClaimView, Refusal> {
        self.ask(|reply| Request::Claim { guardrail, revision, duration_ms, actor, reply }).await
    }

    pub async fn release(&self, guardrail: String, revision: u32, actor: Actor) -> Result<(), Refusal> {
        self.ask(|reply| Request::Release { guardrail, revision, actor, reply }).await
    }

    pub async fn guardrail(&self, id: String) -> Result<GuardrailView, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.look(Look::Guardrail { id, reply }).await?;
        answer.await.map_err(|_| gone())?
    }

    pub async fn why(&self, id: String) -> Result<GuardrailWhy, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.look(Look::Why { id, reply }).await?;
        answer.await.map_err(|_| gone())?
    }

    /// A subscriber's connection was lost: what it held by connection ends after its grace.
    pub async fn connection_lost(&self, connection: ConnectionId) {
        // An owner that is gone has nothing to let go of.
        let _ = self.tell(Request::ConnectionLost(connection)).await;
    }

    pub(crate) async fn recheck(&self, key: NoticeKey) -> Verdict {
        let (reply, answer) = oneshot::channel();
        if self.tell(Request::Recheck { key, reply }).await.is_err() {
            return verdict_without_owner();
        }
        answer.await.unwrap_or_else(|_| verdict_without_owner())
    }

    pub(crate) async fn notice_settled(&self, key: NoticeKey, state: NoticeState) {
        let _ = self.tell(Request::NoticeSettled { key, state }).await;
    }

    /// The request of a task's webhook, once it is recorded that it is being sent.
    pub(crate) async fn begin_webhook(&self, task: String) -> Option<Post> {
        let (reply, answer) = oneshot::channel();
        self.tell(Request::BeginWebhook { task, reply }).await.ok()?;
        answer.await.ok().flatten()
    }

    pub(crate) async fn webhook_done(&self, task: String) {
        // An owner that is gone keeps nothing.
        let _ = self.tell(Request::WebhookDone { task }).await;
    }

    async fn tell(&self, request: Request) -> Result<(), Refusal> {
        self.0.requests.send(Box::new(request)).await.map_err(|_| gone())
    }

    async fn look(&self, look: Look) -> Result<(), Refusal> {
        self.0.looks.send(look).await.map_err(|_| gone())
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.tell(request(reply)).await?;
        answer.await.map_err(|_| gone())?
    }
}

/// The owner has ended: its session's retention is over, or the gateway stops.
fn gone() -> Refusal {
    Refusal::plain(Code::UnknownSession)
}

/// Names whoever does something, for events.
pub(crate) fn by(holder: &Holder) -> Value {
    Value::String(holder.who.clone())
}
