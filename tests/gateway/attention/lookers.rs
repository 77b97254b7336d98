//! Somebody at each surface, on a connection of their own, who does what a client's code does there until told to stop.

use std::{convert::Infallible, pin::pin, time::Duration};

use futures::{SinkExt, StreamExt};
use onlooker_protocol::subscriber::{Attention, GatewayToSubscriber, SubscriberToGateway};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    harness::*,
    socketio::client::{By, Client, Polls},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// `/v1/ws`.
    Native,
    SocketIo,
    SocketIoPolling,
    /// `/v1/sessions/{id}/events` as a stream, and `/v1/subscribers/{id}/alive`.
    Stream,
    /// The page `/view/{session}`.
    View,
    /// `/v1/sessions/{id}/events?since=`.
    Page,
    /// `/task/{session}/{task}`.
    Task,
}

/// Those that are there between what they say.
pub const CONNECTED: [Surface; 5] =
    [Surface::Native, Surface::SocketIo, Surface::SocketIoPolling, Surface::Stream, Surface::View];
/// Those that say whether somebody is there.
pub const ATTENTIVE: [Surface; 3] = [Surface::Native, Surface::Stream, Surface::View];
/// Those that only read.
pub const POLLS: [Surface; 2] = [Surface::Page, Surface::Task];
pub const ALL: [Surface; 7] = [
    Surface::Native,
    Surface::SocketIo,
    Surface::SocketIoPolling,
    Surface::Stream,
    Surface::View,
    Surface::Page,
    Surface::Task,
];

impl Surface {
    /// Its name in the list of watchers.
    pub fn via(self) -> &'static str {
        match self {
            Self::Native => "websocket",
            Self::SocketIo | Self::SocketIoPolling => "socketio",
            Self::Stream | Self::View => "sse",
            Self::Page | Self::Task => "poll",
        }
    }
}

/// How somebody goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With the surface's word for it: close 1000, a disconnect packet, the last word `idle`.
    Clean,
    /// As a browser goes from a page: close 1001; a transport that has none just ends.
    Going,
    /// A connection that is reset.
    Reset,
    /// Native: `unsubscribe`. Socket.IO: the packet that closes the transport.
    Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Its code stands still. Its connection is there, and its kernel takes what comes.
    Frozen,
    /// The same, while something below its code answers for it.
    FrozenButPonging,
    Over(End),
}

pub struct Looker {
    state: watch::Sender<State>,
    attention: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// How often the word that somebody looks is renewed, and how often is polled.
const OFTEN: Duration = Duration::from_millis(250);

impl Looker {
    /// Begins to look, and has what there is. `url` is the gateway's or that of something before it.
    pub async fn look(url: &str, surface: Surface, session: &str, key: Option<&str>) -> Self {
        let body = Body::begin(TestGateway::at(url.to_owned()), surface, session, key).await;
        let (state, states) = watch::channel(State::Running);
        let (attention, attentive) = watch::channel(true);
        Self { state, attention, task: tokio::spawn(be(body, states, attentive)) }
    }

    /// Somebody who was never there.
    pub fn nobody() -> Self {
        let (state, attention) = (watch::Sender::new(State::Running), watch::Sender::new(false));
        Self { state, attention, task: tokio::spawn(async {}) }
    }

    pub fn freeze(&self) {
        self.state.send_replace(State::Frozen);
    }

    pub fn freeze_but_pong(&self) {
        self.state.send_replace(State::FrozenButPonging);
    }

    /// Its person looks, or looks elsewhere.
    pub fn attend(&self, active: bool) {
        self.attention.send_replace(active);
    }

    /// Ends it; returns when it is gone.
    pub async fn end(self, end: End) {
        self.state.send_replace(State::Over(end));
        self.task.await.unwrap();
    }
}

async fn be(mut body: Body, mut states: watch::Receiver<State>, attentive: watch::Receiver<bool>) {
    // A poll that is given up ends a session of long-polling, so what is to be said before that goes beside it.
    let beside = body.beside();
    let end = {
        let mut living = pin!(body.live(attentive));
        loop {
            let state = *states.borrow_and_update();
            match state {
                State::Running => tokio::select! {
                    never = living.as_mut() => match never {},
                    changed = states.changed() => if changed.is_err() { return },
                },
                State::Frozen => {
                    if states.changed().await.is_err() {
                        return;
                    }
                }
                State::FrozenButPonging => break None,
                State::Over(end) => {
                    match (beside, end) {
                        (Some(polls), End::Clean) => drop(polls.post("41").await),
                        (Some(polls), End::Word) => drop(polls.post("1").await),
                        _ => {}
                    }
                    break Some(end);
                }
            }
        }
    };
    let end = match end {
        Some(end) => end,
        None => loop {
            tokio::select! {
                changed = states.changed() => match (changed, *states.borrow_and_update()) {
                    (Ok(()), State::Over(end)) => break end,
                    (Ok(()), _) => {}
                    (Err(_), _) => return,
                },
                () = body.pong_below() => {}
            }
        },
    };
    body.end(end).await;
}

/// What is at a surface.
enum Body {
    Native { subscriber: Box<Subscriber>, session: String },
    SocketIo(Box<Client>, By),
    Stream(Box<Streaming>),
    Poll { door: Box<TestGateway>, url: String, key: Option<String> },
}

impl Body {
    async fn begin(door: TestGateway, surface: Surface, session: &str, key: Option<&str>) -> Self {
        let socketio = async |by| {
            let auth = json!({ "sessionId": session, "apiKey": key });
            Self::SocketIo(Box::new(Client::join_with(&door, by, auth).await), by)
        };
        let key = key.map(str::to_owned);
        match surface {
            Surface::Native => {
                let mut subscriber = Subscriber::connect(&door, key.as_deref()).await;
                subscriber.watch(session).await;
                subscriber.live().await;
                Self::Native { subscriber: Box::new(subscriber), session: session.to_owned() }
            }
            Surface::SocketIo => socketio(By::Websocket).await,
            Surface::SocketIoPolling => socketio(By::Polling).await,
            Surface::Stream | Surface::View => {
                Self::Stream(Box::new(Streaming::open(door, session, surface == Surface::View, key).await))
            }
            Surface::Page | Surface::Task => {
                let is_page = surface == Surface::Page;
                let path = if is_page {
                    format!("/v1/sessions/{session}/events?since=start")
                } else {
                    format!("/task/{session}/t")
                };
                Self::Poll { url: format!("{}{path}", door.url), door: Box::new(door), key }
            }
        }
    }

    /// The requests of long-polling.
    fn beside(&self) -> Option<Polls> {
        match self {
            Self::SocketIo(client, _) => client.polls(),
            _ => None,
        }
    }

    /// Does what its client's code does, for ever.
    async fn live(&mut self, mut attentive: watch::Receiver<bool>) -> Infallible {
        match self {
            Self::Native { subscriber, .. } => live_natively(subscriber, attentive).await,
            Self::SocketIo(client, _) => loop {
                if let crate::socketio::client::Got::Closed(_) = client.packet().await {
                    std::future::pending::<()>().await;
                }
            },
            Self::Stream(streaming) => streaming.live(attentive).await,
            Self::Poll { door, url, key } => loop {
                drop(attentive.wait_for(|active| *active).await);
                let request = key.iter().fold(door.http.get(&*url), |request, key| request.bearer_auth(key));
                if let Ok(response) = request.send().await {
                    let _ = response.bytes().await;
                }
                sleep(OFTEN).await;
            },
        }
    }

    /// What a browser or a proxy does for a page whose code stands still.
    async fn pong_below(&mut self) {
        let pong = Message::Pong(Vec::new().into());
        match self {
            Self::Native { subscriber, .. } => drop(subscriber.socket.send(pong).await),
            Self::SocketIo(client, _) => client.pong_below().await,
            Self::Stream(_) | Self::Poll { .. } => {}
        }
        sleep(Duration::from_millis(50)).await;
    }

    async fn end(self, end: End) {
        match (self, end) {
            (Self::Native { subscriber, .. }, End::Clean) => subscriber.close(1000).await,
            (Self::Native { subscriber, .. }, End::Going) => subscriber.close(1001).await,
            (Self::Native { subscriber, .. }, End::Reset) => subscriber.vanish(),
            (Self::Native { mut subscriber, session }, End::Word) => {
                subscriber.send_text(json!({ "type": "unsubscribe", "session": session }).to_string()).await;
                // For its connection stays.
                sleep(Duration::from_secs(1)).await;
            }
            (Self::SocketIo(mut client, By::Websocket), End::Clean) => {
                client.send("41").await;
                client.close(1000).await;
            }
            (Self::SocketIo(client, By::Websocket), End::Going) => client.close(1001).await,
            (Self::SocketIo(mut client, By::Websocket), End::Word) => client.send("1").await,
            (Self::SocketIo(client, _), _) => client.vanish(),
            (Self::Stream(streaming), End::Clean) => streaming.say(false).await,
            (Self::Stream(_) | Self::Poll { .. }, _) => {}
        }
    }
}

async fn live_natively(subscriber: &mut Subscriber, mut attentive: watch::Receiver<bool>) -> Infallible {
    let mut renew = interval(OFTEN);
    renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = subscriber.socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    if let GatewayToSubscriber::Ping { id, .. } = serde_json::from_str(&text).unwrap() {
                        let pong = serde_json::to_string(&SubscriberToGateway::Pong { id }).unwrap();
                        let _ = subscriber.socket.send(Message::text(pong)).await;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => std::future::pending::<()>().await,
            },
            _ = renew.tick() => {
                let active = *attentive.borrow();
                say_natively(subscriber, active).await;
            }
            _ = attentive.changed() => {
                let active = *attentive.borrow_and_update();
                say_natively(subscriber, active).await;
            }
        }
    }
}

async fn say_natively(subscriber: &mut Subscriber, active: bool) {
    let state = if active { Attention::Active } else { Attention::Idle };
    let word = serde_json::to_string(&SubscriberToGateway::Attention { session: None, state }).unwrap();
    let _ = subscriber.socket.send(Message::text(word)).await;
}

/// A page that reads an event stream and speaks for it.
struct Streaming {
    door: TestGateway,
    alive: String,
    key: Option<String>,
    subscriber: String,
    response: reqwest::Response,
    text: String,
    /// The last event that it has.
    position: Option<String>,
}

impl Streaming {
    async fn open(door: TestGateway, session: &str, is_view: bool, key: Option<String>) -> Self {
        let path = if is_view { format!("/view/{session}/events") } else { format!("/v1/sessions/{session}/events") };
        let request = door.http.get(format!("{}{path}", door.url)).header("accept", "text/event-stream");
        let request = key.iter().fold(request, |request, key| request.bearer_auth(key));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let alive = if is_view { format!("{}/view/{session}/alive", door.url) } else { String::new() };
        let (text, position) = (String::new(), None);
        let mut streaming = Self { door, alive, key, subscriber: String::new(), response, text, position };
        while !streaming.text.contains("event: live") {
            let piece = streaming.response.chunk().await.unwrap().expect("the stream begins");
            streaming.text.push_str(std::str::from_utf8(&piece).unwrap());
        }
        let hello = streaming.text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        streaming.subscriber = serde_json::from_str::<Value>(hello).unwrap()["subscriber"].as_str().unwrap().to_owned();
        if !is_view {
            streaming.alive = format!("{}/v1/subscribers/{}/alive", streaming.door.url, streaming.subscriber);
        }
        streaming.take_positions();
        streaming.say(true).await;
        streaming
    }

    fn take_positions(&mut self) {
        while let Some(end) = self.text.find('\n') {
            let line: String = self.text.drain(..=end).collect();
            if let Some(id) = line.strip_prefix("id: ") {
                self.position = Some(id.trim_end().to_owned());
            }
        }
    }

    /// Its pong, its ack and its attention.
    async fn say(&self, active: bool) {
        let attention = if active { "active" } else { "idle" };
        let words = json!({ "subscriber": self.subscriber, "position": self.position, "attention": attention });
        let request = self.door.http.post(&self.alive).header("origin", &self.door.url).json(&words);
        let request = self.key.iter().fold(request, |request, key| request.bearer_auth(key));
        if let Ok(response) = request.send().await {
            let _ = response.bytes().await;
        }
    }

    async fn live(&mut self, mut attentive: watch::Receiver<bool>) -> Infallible {
        let mut renew = interval(OFTEN);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                piece = self.response.chunk() => match piece {
                    Ok(Some(piece)) => {
                        self.text.push_str(std::str::from_utf8(&piece).unwrap());
                        self.take_positions();
                    }
                    _ => std::future::pending::<()>().await,
                },
                _ = renew.tick() => {
                    let active = *attentive.borrow();
                    self.say(active).await;
                }
                _ = attentive.changed() => {
                    let active = *attentive.borrow_and_update();
                    self.say(active).await;
                }
            }
        }
    }
}
