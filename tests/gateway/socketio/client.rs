//! A raw client: packets as text, over long-polling or a websocket.

use std::{collections::VecDeque, time::Duration};

use futures::{SinkExt, StreamExt};
use onlooker::config::Config;
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
};

use crate::harness::*;

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Windows in which a busy machine ends nobody.
pub fn patient() -> Config {
    calm(Duration::from_millis(250), Duration::from_millis(500))
}

/// A gateway with a runtime and a session that it opened.
pub async fn with_session(config: Config) -> (TestGateway, Runtime, String) {
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (gateway, runtime, session)
}

/// What came.
#[derive(Clone, Debug, PartialEq)]
pub enum Got {
    Text(String),
    Binary(Vec<u8>),
    Closed(Option<u16>),
}

impl Got {
    pub fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            other => panic!("no text: {other:?}"),
        }
    }
}

pub fn websocket_url(gateway: &TestGateway, query: &str) -> String {
    format!("{}/socket.io/?{query}", gateway.url.replacen("http", "ws", 1))
}

pub async fn websocket(gateway: &TestGateway, query: &str) -> Result<Socket, tokio_tungstenite::tungstenite::Error> {
    let request = websocket_url(gateway, query).into_client_request().unwrap();
    Ok(tokio_tungstenite::connect_async(request).await?.0)
}

pub async fn next_of(socket: &mut Socket) -> Got {
    loop {
        match timeout(BOUND, socket.next()).await.expect("something comes") {
            Some(Ok(Message::Text(text))) => return Got::Text(text.to_string()),
            Some(Ok(Message::Binary(bytes))) => return Got::Binary(bytes.to_vec()),
            Some(Ok(Message::Close(frame))) => return Got::Closed(frame.map(|frame| frame.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Got::Closed(None),
        }
    }
}

/// A session that polls, request by request.
#[derive(Clone)]
pub struct Polls {
    pub http: reqwest::Client,
    pub url: String,
    pub sid: String,
    pub open: Value,
    next_t: u64,
}

impl Polls {
    pub async fn open(gateway: &TestGateway) -> Self {
        let url = format!("{}/socket.io/?EIO=4&transport=polling", gateway.url);
        let response = gateway.http.get(&url).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.text().await.unwrap();
        let open: Value = serde_json::from_str(body.strip_prefix('0').expect("an open packet")).unwrap();
        let sid = open["sid"].as_str().unwrap().to_owned();
        Self { http: gateway.http.clone(), url: format!("{url}&sid={sid}"), sid, open, next_t: 0 }
    }

    pub async fn get(&mut self) -> (u16, String) {
        self.next_t += 1;
        let t = format!("t{}", self.next_t);
        self.get_with(&t).await
    }

    pub async fn get_with(&self, t: &str) -> (u16, String) {
        let response = self.http.get(format!("{}&t={t}", self.url)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, String) {
        let response = self.http.post(&self.url).body(body).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

enum Carrier {
    Websocket(Box<Socket>),
    Polling { polls: Polls, got: VecDeque<Got> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Websocket,
    Polling,
}

pub const BOTH: [By; 2] = [By::Websocket, By::Polling];

/// A client that behaves: it polls, it answers pings unless it is told to be silent, and it remembers the offset.
pub struct Client {
    carrier: Carrier,
    pub open: Value,
    pub silent: bool,
    pub pings: u32,
    pub offset: Option<String>,
    pub pid: Option<String>,
}

/// An event as a client's handlers get it, without the offset.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub argument: Value,
    pub offset: Option<String>,
}

impl Client {
    pub async fn open(gateway: &TestGateway, by: By) -> Self {
        let (carrier, open) = match by {
            By::Websocket => {
                let mut socket = websocket(gateway, "EIO=4&transport=websocket").await.unwrap();
                let open = next_of(&mut socket).await.text();
                let open = serde_json::from_str(open.strip_prefix('0').expect("an open packet")).unwrap();
                (Carrier::Websocket(Box::new(socket)), open)
            }
            By::Polling => {
                let polls = Polls::open(gateway).await;
                let open = polls.open.clone();
                (Carrier::Polling { polls, got: VecDeque::new() }, open)
            }
        };
        Self::of(carrier, open)
    }

    fn of(carrier: Carrier, open: Value) -> Self {
        Self { carrier, open, silent: false, pings: 0, offset: None, pid: None }
    }

    /// A client whose kernel takes little: what it does not read soon waits in the gateway.
    pub async fn narrow(gateway: &TestGateway) -> Self {
        let address = gateway.url.trim_start_matches("http://");
        let request = websocket_url(gateway, "EIO=4&transport=websocket").into_client_request().unwrap();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(96 * 1024).unwrap();
        let stream = MaybeTlsStream::Plain(socket.connect(address.parse().unwrap()).await.unwrap());
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let open = next_of(&mut socket).await.text();
        let open = serde_json::from_str(open.strip_prefix('0').unwrap()).unwrap();
        Self::of(Carrier::Websocket(Box::new(socket)), open)
    }

    /// Opens and joins; panics when it is refused.
    pub async fn join(gateway: &TestGateway, by: By, session: &str) -> Self {
        Self::join_with(gateway, by, json!({ "sessionId": session })).await
    }

    pub async fn join_with(gateway: &TestGateway, by: By, auth: Value) -> Self {
        let mut client = Self::open(gateway, by).await;
        client.connect(auth).await.unwrap_or_else(|error| panic!("refused: {error}"));
        client
    }

    /// Comes back as the npm client does: with what it was told and has had.
    pub async fn rejoin(&self, gateway: &TestGateway, by: By, session: &str) -> Self {
        let mut auth = json!({ "sessionId": session, "pid": self.pid });
        if let Some(offset) = &self.offset {
            auth["offset"] = json!(offset);
        }
        let mut client = Self::join_with(gateway, by, auth).await;
        client.offset = client.offset.or(self.offset.clone());
        client
    }

    /// Sends CONNECT; the error is what `connect_error` would show.
    pub async fn connect(&mut self, auth: Value) -> Result<Value, Value> {
        self.send(&format!("40{auth}")).await;
        loop {
            let text = self.packet().await.text();
            if let Some(connected) = text.strip_prefix("40") {
                let connected: Value = serde_json::from_str(connected).unwrap();
                self.pid = connected["pid"].as_str().map(str::to_owned);
                return Ok(connected);
            }
            if let Some(error) = text.strip_prefix("44") {
                return Err(serde_json::from_str(error).unwrap());
            }
        }
    }

    pub async fn send(&mut self, packet: &str) {
        match &mut self.carrier {
            // A peer that has closed is found out by what comes next.
            Carrier::Websocket(socket) => drop(socket.send(Message::text(packet)).await),
            Carrier::Polling { polls, .. } => drop(polls.post(packet.to_owned()).await),
        }
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        match &mut self.carrier {
            Carrier::Websocket(socket) => drop(socket.send(Message::binary(bytes.to_vec())).await),
            Carrier::Polling { polls, .. } => drop(polls.post(format!("b{}", base64(bytes))).await),
        }
    }

    pub async fn say(&mut self, message: Value) {
        self.send(&format!("42{}", json!(["message", message]))).await;
    }

    /// The next packet, whatever it is.
    pub async fn raw(&mut self) -> Got {
        match &mut self.carrier {
            Carrier::Websocket(socket) => next_of(socket).await,
            Carrier::Polling { polls, got } => loop {
                if let Some(got) = got.pop_front() {
                    return got;
                }
                let (status, body) = polls.get().await;
                if status != 200 {
                    return Got::Closed(Some(status));
                }
                got.extend(body.split('\u{1e}').map(|packet| match packet.strip_prefix('b') {
                    Some(text) => Got::Binary(unbase64(text)),
                    None => Got::Text(packet.to_owned()),
                }));
            },
        }
    }

    /// The next packet that is no ping; pings are answered unless it is silent.
    pub async fn packet(&mut self) -> Got {
        loop {
            match self.raw().await {
                Got::Text(ping) if ping == "2" => {
                    self.pings += 1;
                    if !self.silent {
                        self.send("3").await;
                    }
                }
                Got::Text(noop) if noop == "6" => {}
                Got::Text(close) if close == "1" => return Got::Closed(None),
                other => return other,
            }
        }
    }

    /// The next packet, pings too; those are answered unless it is silent.
    pub async fn packet_or_ping(&mut self) -> Got {
        let got = self.raw().await;
        if got == Got::Text("2".to_owned()) {
            self.pings += 1;
            if !self.silent {
                self.send("3").await;
            }
        }
        got
    }

    /// The next event; the offset is remembered.
    pub async fn event(&mut self) -> Event {
        loop {
            let text = self.packet().await.text();
            if let Some(event) = event_of(&text) {
                self.offset = event.offset.clone().or(self.offset.take());
                return event;
            }
        }
    }

    /// The next message of a type; others are passed over.
    pub async fn message(&mut self, kind: &str) -> Value {
        let waiting = async {
            loop {
                let event = self.event().await;
                if event.name == "message" && event.argument["type"] == kind {
                    return event.argument;
                }
            }
        };
        timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {kind}"))
    }

    /// The next event of a name; others are passed over.
    pub async fn named(&mut self, name: &str) -> Value {
        let waiting = async {
            loop {
                let event = self.event().await;
                if event.name == name {
                    return event.argument;
                }
            }
        };
        timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {name}"))
    }

    /// The texts of the next `agent` messages up to one.
    pub async fn contents_until(&mut self, last: &str) -> Vec<String> {
        let mut contents = Vec::new();
        while contents.last().map(String::as_str) != Some(last) {
            contents.push(self.message("agent").await["content"].as_str().unwrap().to_owned());
        }
        contents
    }

    /// How the connection is ended.
    pub async fn closed(&mut self) -> Option<u16> {
        let waiting = async {
            loop {
                if let Got::Closed(code) = self.packet().await {
                    return code;
                }
            }
        };
        timeout(BOUND, waiting).await.expect("it is closed")
    }

    /// It is told to leave for good: by a disconnect, behind which a websocket is closed. A client that polls closes
    /// by itself.
    pub async fn sent_away(&mut self) {
        assert_eq!(self.packet().await, Got::Text("41".to_owned()));
        if matches!(self.carrier, Carrier::Websocket(_)) {
            assert_eq!(self.closed().await, Some(1000));
        }
    }

    /// The requests that carry it, where it polls.
    pub fn polls(&self) -> Option<Polls> {
        match &self.carrier {
            Carrier::Websocket(_) => None,
            Carrier::Polling { polls, .. } => Some(polls.clone()),
        }
    }

    /// A pong of the WebSocket protocol, which no code of a client sends.
    pub async fn pong_below(&mut self) {
        if let Carrier::Websocket(socket) = &mut self.carrier {
            let _ = socket.send(Message::Pong(Vec::new().into())).await;
        }
    }

    /// Closes the websocket with a code.
    pub async fn close(self, code: u16) {
        if let Carrier::Websocket(mut socket) = self.carrier {
            let frame = CloseFrame { code: code.into(), reason: "".into() };
            let _ = socket.send(Message::Close(Some(frame))).await;
            while let Some(Ok(_)) = socket.next().await {}
        }
    }

    /// Vanishes without a word.
    pub fn vanish(self) {
        if let Carrier::Websocket(socket) = &self.carrier
            && let MaybeTlsStream::Plain(stream) = socket.get_ref()
        {
            let _ = stream.set_zero_linger();
        }
    }
}

/// Reads an event without attachments.
pub fn event_of(packet: &str) -> Option<Event> {
    let mut arguments: Vec<Value> = serde_json::from_str(packet.strip_prefix("42")?).unwrap();
    let name = arguments.remove(0).as_str().unwrap().to_owned();
    let argument = if arguments.is_empty() { Value::Null } else { arguments.remove(0) };
    let offset = arguments.first().and_then(Value::as_str).map(str::to_owned);
    Some(Event { name, argument, offset })
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn unbase64(text: &str) -> Vec<u8> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(text).unwrap()
}
