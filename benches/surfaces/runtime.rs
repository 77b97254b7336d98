//! The runtimes of these measurements: one that publishes to everybody, one that finishes tasks at once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt, stream::SplitSink};
use onlooker_protocol::runtime::{
    GatewayToRuntime, OpenSession, PublishedEvent, Reclaim, RuntimeCommand, RuntimeToGateway,
};
use serde_json::{Map, json};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config, tungstenite::Message};

use crate::{Outcome, subscribers::Audience};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Events that may be on their way to the audience at full speed.
const AHEAD: u64 = 64;

async fn send(socket: &mut (impl SinkExt<Message> + Unpin), frame: &RuntimeToGateway) -> Outcome<()> {
    let text = serde_json::to_string(frame)?;
    socket.send(Message::text(text)).await.map_err(|_| "the runtime's connection broke".into())
}

async fn register(address: &str) -> Outcome<Socket> {
    // Small frames go at once, as those of every runtime in earnest do.
    let (mut socket, _) = connect_async_with_config(format!("ws://{address}/v1/runtime"), None, true).await?;
    let labels = Map::new();
    send(&mut socket, &RuntimeToGateway::Register { name: "bench".to_owned(), capacity: 1_000_000, labels }).await?;
    Ok(socket)
}

async fn next(socket: &mut Socket) -> Outcome<GatewayToRuntime> {
    loop {
        match socket.next().await.ok_or("the runtime's connection ended")?? {
            Message::Text(text) => return Ok(serde_json::from_str(&text)?),
            Message::Close(_) => return Err("the runtime's connection was closed".into()),
            _ => {}
        }
    }
}

/// Publishes events of one session that it opened.
pub(crate) struct Publisher {
    sender: SplitSink<Socket, Message>,
    session: String,
    published: u64,
    reading: JoinHandle<()>,
}

impl Publisher {
    pub(crate) async fn open(address: &str) -> Outcome<Self> {
        let mut socket = register(address).await?;
        let session = Box::new(OpenSession::default());
        send(&mut socket, &RuntimeToGateway::Open { reference: "r".to_owned(), session }).await?;
        let session = loop {
            match next(&mut socket).await? {
                GatewayToRuntime::Opened { session, .. } => break session,
                GatewayToRuntime::Error { refusal, .. } => return Err(refusal.to_string().into()),
                _ => {}
            }
        };
        let (sender, mut receiver) = socket.split();
        // Nothing that it hears matters; what is not read would stop the gateway's writing.
        let reading = tokio::spawn(async move { while receiver.next().await.is_some_and(|frame| frame.is_ok()) {} });
        Ok(Self { sender, session, published: 0, reading })
    }

    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Publishes for a while: at a rate, or as fast as the slowest of the audience follows.
    pub(crate) async fn publish_for(&mut self, time: Duration, rate: Option<f64>, audience: &Audience) -> Outcome<()> {
        let (began, first) = (Instant::now(), self.published);
        while began.elapsed() < time {
            match rate {
                Some(rate) => {
                    let due = began + Duration::from_secs_f64((self.published - first) as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                }
                None if self.published >= audience.slowest() + AHEAD => {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                    continue;
                }
                None => {}
            }
            self.publish().await?;
        }
        Ok(())
    }

    async fn publish(&mut self) -> Outcome<()> {
        self.published += 1;
        let content = format!("{:0>60}", self.published);
        let data = json!({ "content": content });
        let event = PublishedEvent { n: self.published, kind: "agent".to_owned(), task: None, data, picture: None };
        let session = self.session.clone();
        send(&mut self.sender, &RuntimeToGateway::Events { session, events: vec![event] }).await
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Takes every session that it is offered and completes every task at once.
pub(crate) struct Answering {
    took: Arc<Mutex<Duration>>,
    task: JoinHandle<Outcome<()>>,
}

impl Answering {
    pub(crate) async fn connect(address: &str) -> Outcome<Self> {
        let mut socket = register(address).await?;
        while !matches!(next(&mut socket).await?, GatewayToRuntime::Registered { .. }) {}
        let took = Arc::<Mutex<Duration>>::default();
        let task = tokio::spawn(answer(socket, Arc::clone(&took)));
        Ok(Self { took, task })
    }

    /// From hearing of the last task to having sent its result.
    pub(crate) fn last_took(&self) -> Duration {
        *self.took.lock().expect("no holder panics")
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut socket: Socket, took: Arc<Mutex<Duration>>) -> Outcome<()> {
    let mut numbers: HashMap<String, u64> = HashMap::new();
    loop {
        match next(&mut socket).await? {
            GatewayToRuntime::Ping { id } => send(&mut socket, &RuntimeToGateway::Pong { id }).await?,
            GatewayToRuntime::Assigned { session, claim, .. } => {
                send(&mut socket, &RuntimeToGateway::Claim(Reclaim { session, claim, commands: 0 })).await?;
            }
            GatewayToRuntime::Command { session, command } => {
                let heard = Instant::now();
                if let RuntimeCommand::NewTask { task } = command.command {
                    let n = numbers.entry(session.clone()).or_default();
                    let mut event = |kind: &str, data| {
                        *n += 1;
                        let task = task.task_id.clone();
                        PublishedEvent { n: *n, kind: kind.to_owned(), task, data, picture: None }
                    };
                    let id = &task.task_id;
                    let events = vec![
                        event("task_started", json!({ "taskId": id })),
                        event("task_completed", json!({ "taskId": id, "message": "done" })),
                    ];
                    send(&mut socket, &RuntimeToGateway::Events { session: session.clone(), events }).await?;
                    *took.lock().expect("no holder panics") = heard.elapsed();
                }
                let commands = command.number;
                send(&mut socket, &RuntimeToGateway::CommandsDone { session, commands }).await?;
            }
            GatewayToRuntime::Released { session, .. } => drop(numbers.remove(&session)),
            _ => {}
        }
    }
}
