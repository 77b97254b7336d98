//! A gateway played by hand: accepts on port 0, sends and expects one frame at a time, each within a bound.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt, SinkExt, StreamExt, future::BoxFuture};
use onlooker_protocol::{
    VERSION,
    runtime::{GatewayToRuntime, NumberedCommand, PublishedEvent, Reclaim, RuntimeCommand, RuntimeToGateway},
    subscriber::{AuthNeed, NewTask},
};
use onlooker_runtime::{Agent, Completed, Failed, Options, RunError, Task, run};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Map;
use tokio::{net::TcpListener, net::TcpStream, task::JoinHandle};
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{Message, protocol::CloseFrame},
};
use tokio_util::sync::CancellationToken;
use url::Url;

/// Far more than any step takes; a test that waits this long has failed.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(BOUND, future).await.expect("it did not happen in time")
}

pub(crate) struct Gateway {
    listener: TcpListener,
}

/// One accepted connection.
pub(crate) struct Peer {
    pub(crate) socket: WebSocketStream<TcpStream>,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn url(&self) -> Url {
        format!("http://{}", self.listener.local_addr().unwrap()).parse().unwrap()
    }

    pub(crate) async fn stream(&self) -> TcpStream {
        soon(self.listener.accept()).await.unwrap().0
    }

    pub(crate) async fn accept(&self) -> Peer {
        Peer { socket: soon(accept_async(self.stream().await)).await.unwrap() }
    }

    /// Accepts a runtime and lets it register.
    pub(crate) async fn register(&self) -> Peer {
        let mut peer = self.accept().await;
        peer.send(&hello(AuthNeed::None)).await;
        assert!(matches!(peer.receive().await, RuntimeToGateway::Register { .. }));
        peer.send(&GatewayToRuntime::Registered { runtime: "r".to_owned() }).await;
        peer
    }

    /// Accepts a runtime and gives it the session `s`, expecting event 1.
    pub(crate) async fn assign(&self) -> Peer {
        let mut peer = self.register().await;
        let assigned = GatewayToRuntime::Assigned {
            session: "s".to_owned(),
            claim: "first".to_owned(),
            parameters: Box::default(),
        };
        peer.send(&assigned).await;
        let claim = peer.claim().await;
        assert_eq!((claim.claim.as_str(), claim.commands), ("first", 0));
        peer.claimed("second", 1).await;
        peer
    }
}

impl Peer {
    pub(crate) async fn send<F: Serialize>(&mut self, frame: &F) {
        self.socket.send(Message::text(serde_json::to_string(frame).unwrap())).await.unwrap();
    }

    pub(crate) async fn receive<F: DeserializeOwned>(&mut self) -> F {
        match soon(self.socket.next()).await.expect("the other end is there").unwrap() {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("a text frame was expected, not {other:?}"),
        }
    }

    pub(crate) async fn claim(&mut self) -> Reclaim {
        match self.receive().await {
            RuntimeToGateway::Claim(claim) => claim,
            _ => panic!("a claim was expected"),
        }
    }

    pub(crate) async fn claimed(&mut self, claim: &str, expected: u64) {
        let (session, claim) = ("s".to_owned(), claim.to_owned());
        self.send(&GatewayToRuntime::Claimed { session, claim, expected, secrets_expected: false }).await;
    }

    /// Sends a command and waits until it is applied. Returns the events that came before that word.
    pub(crate) async fn command(&mut self, number: u64, command: RuntimeCommand) -> Vec<PublishedEvent> {
        let command = NumberedCommand { number, command };
        self.send(&GatewayToRuntime::Command { session: "s".to_owned(), command }).await;
        let mut before = Vec::new();
        loop {
            match self.receive().await {
                RuntimeToGateway::CommandsDone { commands, .. } if commands >= number => return before,
                RuntimeToGateway::CommandsDone { .. } => {}
                RuntimeToGateway::Events { events, .. } => before.extend(events),
                _ => panic!("commands_done was expected"),
            }
        }
    }

    /// Receives events until there are this many, without acknowledging them.
    pub(crate) async fn events(&mut self, count: usize) -> Vec<PublishedEvent> {
        let mut all = Vec::new();
        while all.len() < count {
            match self.receive().await {
                RuntimeToGateway::Events { events, .. } => all.extend(events),
                RuntimeToGateway::CommandsDone { .. } => {}
                _ => panic!("events were expected"),
            }
        }
        assert_eq!(all.len(), count, "more events than expected: {all:?}");
        all
    }

    pub(crate) async fn accept_up_to(&mut self, n: u64) {
        let position = format!("aaaaaaaa:{n}").parse().unwrap();
        self.send(&GatewayToRuntime::Accepted { session: "s".to_owned(), n, position }).await;
    }

    /// Asks for a pong and fails when anything else comes first: nothing else was under way.
    pub(crate) async fn is_quiet(&mut self) {
        self.send(&GatewayToRuntime::Ping { id: 77 }).await;
        assert!(matches!(self.receive().await, RuntimeToGateway::Pong { id: 77 }));
    }

    pub(crate) async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "because".into() };
        self.socket.close(Some(frame)).await.unwrap();
        while let Some(Ok(_)) = soon(self.socket.next()).await {}
    }
}

pub(crate) fn hello(auth: AuthNeed) -> GatewayToRuntime {
    GatewayToRuntime::Hello {
        version: VERSION,
        connection: "c".to_owned(),
        auth,
        auth_within: 5_000,
        ping_every: 10_000,
        frame: 8 << 20,
        batch: 500,
    }
}

pub(crate) fn new_task(id: &str) -> RuntimeCommand {
    RuntimeCommand::NewTask { task: NewTask { task_id: Some(id.to_owned()), ..NewTask::default() } }
}

pub(crate) fn kinds(events: &[PublishedEvent]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

/// An agent that is one asynchronous function.
struct Does<F>(F);

impl<F, W> Agent for Does<F>
where
    F: Fn(Task) -> W + Send + Sync + 'static,
    W: Future<Output = Result<Completed, Failed>> + Send + 'static,
{
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>> {
        (self.0)(task).boxed()
    }
}

pub(crate) struct Running {
    pub(crate) shutdown: CancellationToken,
    pub(crate) result: JoinHandle<Result<(), RunError>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.result.abort();
    }
}

/// Runs an agent against this gateway.
pub(crate) fn runs<F, W>(gateway: &Gateway, work: F) -> Running
where
    F: Fn(Task) -> W + Send + Sync + 'static,
    W: Future<Output = Result<Completed, Failed>> + Send + 'static,
{
    let shutdown = CancellationToken::new();
    let options =
        Options { gateway: gateway.url(), token: None, name: "test".to_owned(), capacity: 2, labels: Map::new() };
    let result = tokio::spawn(run(options, Arc::new(Does(work)), shutdown.clone()));
    Running { shutdown, result }
}

pub(crate) fn done() -> Result<Completed, Failed> {
    Ok(Completed { message: "done".to_owned(), data: Map::new() })
}
