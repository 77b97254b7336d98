//! A gateway, its runtimes, its subscribers and a webhook's receiver, all real and all on loopback.
//!
//! Waits are bounded and wait for a level, never for a time. Windows are DESIGN's, twenty times shorter.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use futures::{SinkExt, StreamExt};
use onlooker::{
    config::{
        Config,
        key::{KeyDigest, KeyEntry, Scope},
    },
    engine::Engine,
    gateway::Gateway,
};
use onlooker_protocol::{
    Position, SUBPROTOCOL,
    code::Refusal,
    picture,
    picture::{PublishedPicture, ShownPicture},
    runtime::{GatewayToRuntime, OpenSession, PublishedEvent, RuntimeCommand, RuntimeToGateway},
    subscriber::{
        Answer, AnswerAction, Attention, GatewayToSubscriber, PictureLevel, Role, Subscribe, SubscriberToGateway,
    },
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, client_async_tls_with_config, connect_async_tls_with_config,
    tungstenite::{Message, client::IntoClientRequest, protocol::CloseFrame},
};

/// The longest that anything is waited for.
pub const BOUND: Duration = Duration::from_secs(20);
/// Windows are this much shorter than DESIGN's.
pub const SHORTER: u32 = 20;

/// A configuration on port 0 in memory, with every window twenty times shorter and no grace after the start.
pub fn quick() -> Config {
    let mut config = Config::default();
    config.listen.address = ([127, 0, 0, 1], 0).into();
    config.data.ephemeral = true;
    let times = &mut config.times;
    let windows = [
        &mut times.ping_every,
        &mut times.live_window,
        &mut times.attention_lease,
        &mut times.poll_window,
        &mut times.grace,
        &mut times.first_look,
    ];
    for window in windows {
        *window /= SHORTER;
    }
    times.start_grace = Duration::ZERO;
    times.drain = Duration::from_secs(3);
    config
}

/// Adds a webhook to a configuration.
pub fn with_webhook(mut config: Config, receiver: &Receiver) -> Config {
    let toml = format!("[notify_webhook]\nurl = \"{}\"\nsecret = \"{SECRET}\"\n", receiver.url);
    config.reach_out = from_toml(&toml).reach_out;
    config
}

/// Windows as DESIGN has them for whoever looks, so that load ends nobody's attention; a grace and a first look of
/// the test's own.
pub fn calm(grace: Duration, first_look: Duration) -> Config {
    let mut config = quick();
    let defaults = Config::default().times;
    config.times.ping_every = defaults.ping_every;
    config.times.live_window = defaults.live_window;
    config.times.attention_lease = defaults.attention_lease;
    (config.times.grace, config.times.first_look) = (grace, first_look);
    // Its tests end with people still connected, who would all be waited for.
    config.times.drain = Duration::from_millis(100);
    config
}

/// Adds keys of one project: `key-` and its id is the key.
pub fn with_keys(mut config: Config, keys: &[(&str, &[Scope])]) -> Config {
    let entry = |(id, scopes): &(&str, &[Scope])| KeyEntry {
        id: (*id).to_owned(),
        project: "p".to_owned(),
        scopes: scopes.to_vec(),
        sha256: KeyDigest(Sha256::digest(format!("key-{id}").as_bytes()).into()),
        pool: false,
        account: Default::default(),
        balance: None,
    };
    config.keys = keys.iter().map(entry).collect();
    config
}

/// The webhook's secret in tests.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A configuration read from a file's text.
pub fn from_toml(text: &str) -> Config {
    let path = std::env::temp_dir().join(format!("onlooker-{}.toml", uuid::Uuid::now_v7()));
    std::fs::write(&path, text).unwrap();
    let sources = onlooker::config::load::Sources { file: Some(path.clone()), ..Default::default() };
    let loaded = onlooker::config::load::load(&sources).expect("the test's configuration is right");
    std::fs::remove_file(path).unwrap();
    loaded.config
}

/// A gateway that is stopped when it is dropped.
pub struct TestGateway {
    gateway: Option<Gateway>,
    pub url: String,
    pub http: reqwest::Client,
    /// Whom its WebSocket clients trust, where it speaks TLS.
    trusted: Option<Arc<rustls::ClientConfig>>,
}

/// A folder with a fresh certificate for `localhost` and its key; removed when dropped.
pub struct Certificate {
    folder: std::path::PathBuf,
    pub pem: String,
}

impl Certificate {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let folder = std::env::temp_dir().join(format!("onlooker-tls-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let pem = made.cert.pem();
        std::fs::write(folder.join("cert.pem"), &pem).unwrap();
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Self { folder, pem }
    }

    pub fn put_into(&self, config: &mut Config) {
        config.listen.tls_cert = Some(self.folder.join("cert.pem"));
        config.listen.tls_key = Some(self.folder.join("key.pem"));
    }

    /// A client that trusts this certificate and no other.
    pub fn trusted(&self) -> Arc<rustls::ClientConfig> {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        Arc::new(rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl TestGateway {
    pub async fn start() -> Self {
        Self::with(quick()).await
    }

    pub async fn with(config: Config) -> Self {
        Self::of(Gateway::start(config).await.expect("the gateway starts"))
    }

    pub async fn on(config: Config, engine: Arc<dyn Engine>) -> Self {
        Self::of(Gateway::start_on(config, engine).await.expect("the gateway starts"))
    }

    /// One that speaks TLS. Its WebSocket clients are those of the harness; `http` does not trust it.
    pub async fn over_tls(mut config: Config) -> Self {
        let certificate = Certificate::new();
        certificate.put_into(&mut config);
        let gateway = Self::with(config).await;
        Self { trusted: Some(certificate.trusted()), ..gateway }
    }

    pub fn of(gateway: Gateway) -> Self {
        let url = gateway.url();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build().unwrap();
        Self { gateway: Some(gateway), url, http, trusted: None }
    }

    /// A gateway that runs in another process.
    pub fn at(url: String) -> Self {
        // A gateway of this process would have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).no_proxy().build().unwrap();
        Self { gateway: None, url, http, trusted: None }
    }

    pub async fn stop(mut self) {
        self.gateway.take().expect("running").stop().await;
    }

    fn connector(&self) -> Option<Connector> {
        self.trusted.clone().map(Connector::Rustls)
    }

    /// Where its WebSockets are.
    fn socket_url(&self, path: &str) -> String {
        format!("{}{path}", self.url.replacen("http", "ws", 1))
    }

    pub async fn runtime(&self) -> Runtime {
        Runtime::connect(self, "runtime", 100, None).await
    }

    pub async fn subscriber(&self) -> Subscriber {
        Subscriber::connect(self, None).await
    }

    /// `GET` of a path, as status and JSON.
    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.request(self.http.get(format!("{}{path}", self.url))).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.request(self.http.post(format!("{}{path}", self.url)).json(&body)).await
    }

    pub async fn request(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.expect("the gateway answers");
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// The value of a metric; 0 where it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let text = text.as_str().unwrap_or_default().to_owned();
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// The record of why somebody was or was not told.
    pub async fn why(&self, session: &str, guardrail: &str) -> Value {
        self.get(&format!("/v1/guardrails/{guardrail}/why?session={session}")).await.1
    }

    /// Waits until the last recorded reason has this in it.
    pub async fn wait_why(&self, session: &str, guardrail: &str, part: &str) {
        let says = || async {
            let why = self.why(session, guardrail).await;
            let last = why["decisions"].as_array().and_then(|decisions| decisions.last()?["why"].as_str());
            last.is_some_and(|last| last.contains(part))
        };
        wait_until(&format!("why says “{part}”"), says).await;
    }
}

/// Waits until a condition holds, and fails with what was waited for.
pub async fn wait_until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn open(gateway: &TestGateway, path: &str, token: Option<&str>) -> Socket {
    let mut request = gateway.socket_url(path).into_client_request().unwrap();
    if path == "/v1/ws" {
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    }
    if let Some(token) = token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    connect_async_tls_with_config(request, None, false, gateway.connector()).await.expect("the gateway accepts").0
}

/// What a subscriber receives.
#[derive(Debug)]
pub enum Received {
    Frame(GatewayToSubscriber),
    Picture(ShownPicture, Vec<u8>),
    Closed(Option<u16>),
}

/// A subscriber on `/v1/ws`. It answers pings by itself, unless it was told to be silent.
pub struct Subscriber {
    pub socket: Socket,
    pub silent: bool,
    /// Frames that were read while waiting for another.
    pub seen: VecDeque<GatewayToSubscriber>,
}

impl Subscriber {
    pub async fn connect(gateway: &TestGateway, token: Option<&str>) -> Self {
        Self { socket: open(gateway, "/v1/ws", token).await, silent: false, seen: VecDeque::new() }
    }

    /// A subscriber whose kernel takes little: what it does not read soon waits in the gateway.
    pub async fn narrow(gateway: &TestGateway) -> Self {
        let address = gateway.url.split("://").nth(1).unwrap();
        let mut request = gateway.socket_url("/v1/ws").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // Twice this is taken, half of it is the window: less than a segment of loopback (64 KiB) would make it crawl.
        socket.set_recv_buffer_size(96 * 1024).unwrap();
        let stream = socket.connect(address.parse().unwrap()).await.expect("the gateway accepts");
        let upgraded = client_async_tls_with_config(request, stream, None, gateway.connector()).await;
        let (socket, _) = upgraded.expect("the gateway upgrades");
        Self { socket, silent: false, seen: VecDeque::new() }
    }

    pub async fn send(&mut self, frame: SubscriberToGateway) {
        self.send_text(serde_json::to_string(&frame).unwrap()).await;
    }

    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.expect("the gateway reads");
    }

    /// Follows a session as somebody who is looking.
    pub async fn watch(&mut self, session: &str) {
        self.subscribe(Subscribe { session: Some(session.to_owned()), attention: Attention::Active, ..follow() }).await;
    }

    pub async fn subscribe(&mut self, subscribe: Subscribe) {
        self.send(SubscriberToGateway::Subscribe(subscribe)).await;
    }

    /// The next thing that is no ping; pings are answered.
    pub async fn receive(&mut self) -> Received {
        loop {
            let next = timeout(BOUND, self.socket.next()).await.expect("something comes");
            match next {
                Some(Ok(Message::Text(text))) => {
                    let frame = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                    match frame {
                        GatewayToSubscriber::Ping { id, .. } if !self.silent => {
                            self.send(SubscriberToGateway::Pong { id }).await;
                        }
                        GatewayToSubscriber::Ping { .. } => {}
                        frame => return Received::Frame(frame),
                    }
                }
                Some(Ok(Message::Binary(bytes))) => {
                    let (header, picture) = picture::decode::<ShownPicture>(&bytes).expect("a picture");
                    return Received::Picture(header, picture.to_vec());
                }
                Some(Ok(Message::Close(frame))) => return Received::Closed(frame.map(|frame| frame.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Received::Closed(None),
            }
        }
    }

    /// The next frame that fits; the others are kept in `seen`.
    pub async fn until<T>(&mut self, what: &str, fits: impl Fn(&GatewayToSubscriber) -> Option<T>) -> T {
        let waiting = async {
            loop {
                match self.receive().await {
                    Received::Frame(frame) => match fits(&frame) {
                        Some(found) => return found,
                        None => self.seen.push_back(frame),
                    },
                    Received::Picture(..) => {}
                    Received::Closed(code) => panic!("closed with {code:?} before {what}; saw {:?}", self.seen),
                }
            }
        };
        // The bound of each receive is not the bound of all of them.
        match timeout(BOUND, waiting).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}"),
        }
    }

    /// The next live event of a type.
    pub async fn event(&mut self, kind: &str) -> Value {
        self.until(kind, |frame| match frame {
            GatewayToSubscriber::Event(event) if event.event.kind == kind => Some(event.event.data.clone()),
            _ => None,
        })
        .await
    }

    pub async fn snapshot(&mut self) -> (Position, onlooker_protocol::view::SessionView) {
        self.until("snapshot", |frame| match frame {
            GatewayToSubscriber::Snapshot { position, state, .. } => Some((*position, (**state).clone())),
            _ => None,
        })
        .await
    }

    pub async fn live(&mut self) -> Position {
        self.until("live", |frame| match frame {
            GatewayToSubscriber::Live { position, .. } => Some(*position),
            _ => None,
        })
        .await
    }

    /// The close code with which the gateway ends the connection.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            if let Received::Closed(code) = self.receive().await {
                return code;
            }
        }
    }

    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "".into() };
        let _ = self.socket.close(Some(frame)).await;
        while let Some(Ok(_)) = self.socket.next().await {}
    }

    /// Vanishes without a word: the transport is reset.
    pub fn vanish(self) {
        if let MaybeTlsStream::Plain(stream) = self.socket.get_ref() {
            let _ = socket_linger_zero(stream);
        }
    }
}

impl Subscriber {
    /// Sends a request with a `ref` of its own and waits for what it came to.
    pub async fn request(&mut self, mut request: Value) -> Result<Map<String, Value>, Refusal> {
        let reference = uuid::Uuid::now_v7().to_string();
        request["ref"] = json!(reference);
        self.send_text(request.to_string()).await;
        self.until("a reply", |frame| match frame {
            GatewayToSubscriber::Ok { reference: Some(of), result } if *of == reference => Some(Ok(result.clone())),
            GatewayToSubscriber::Error { reference: Some(of), refusal } if *of == reference => {
                Some(Err(refusal.clone()))
            }
            _ => None,
        })
        .await
    }

    /// Reads and answers pings on a task of its own, until it is taken back or dropped.
    pub fn keep(mut self) -> Kept {
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    biased;
                    _ = &mut stopped => return self,
                    message = self.socket.next() => message,
                };
                let Some(Ok(message)) = message else { return self };
                let Message::Text(text) = message else { continue };
                match serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")) {
                    GatewayToSubscriber::Ping { .. } if self.silent => {}
                    GatewayToSubscriber::Ping { id, .. } => {
                        let pong = serde_json::to_string(&SubscriberToGateway::Pong { id }).unwrap();
                        let _ = self.socket.send(Message::text(pong)).await;
                    }
                    frame => self.seen.push_back(frame),
                }
            }
        });
        Kept { stop, task }
    }
}

/// A subscriber that is there and answers pings.
pub struct Kept {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Subscriber>,
}

impl Kept {
    pub async fn back(self) -> Subscriber {
        let _ = self.stop.send(());
        self.task.await.unwrap()
    }
}

/// A reset instead of a polite end.
fn socket_linger_zero(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_zero_linger()
}

/// A subscription with nothing said.
pub fn follow() -> Subscribe {
    Subscribe { role: Role::Watcher, pictures: PictureLevel::None, ..Subscribe::default() }
}

/// An answer with a text.
pub fn answer(revision: u32, key: &str, text: &str) -> Answer {
    Answer {
        revision,
        idempotency_key: key.to_owned(),
        action: AnswerAction::Submit,
        text: Some(text.to_owned()),
        choice: None,
        values: Default::default(),
    }
}

/// A runtime on `/v1/runtime` that does what the test says, frame by frame.
pub struct Runtime {
    pub socket: Socket,
    /// The number of the last event, by session.
    pub numbers: std::collections::HashMap<String, u64>,
    /// Frames that were read while waiting for another.
    pub seen: VecDeque<GatewayToRuntime>,
}

impl Runtime {
    pub async fn connect(gateway: &TestGateway, name: &str, capacity: u32, token: Option<&str>) -> Self {
        Self::announcing(gateway, name, capacity, token, Map::new()).await
    }

    /// A runtime that says more of itself.
    pub async fn announcing(
        gateway: &TestGateway,
        name: &str,
        capacity: u32,
        token: Option<&str>,
        labels: Map<String, Value>,
    ) -> Self {
        let socket = open(gateway, "/v1/runtime", token).await;
        let mut runtime = Self { socket, numbers: Default::default(), seen: VecDeque::new() };
        let name = name.to_owned();
        runtime.send(RuntimeToGateway::Register { name, capacity, labels }).await;
        runtime.until("registered", |frame| matches!(frame, GatewayToRuntime::Registered { .. }).then_some(())).await;
        runtime
    }

    pub async fn send(&mut self, frame: RuntimeToGateway) {
        self.send_text(serde_json::to_string(&frame).unwrap()).await;
    }

    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.socket.send(Message::text(text.into())).await.expect("the gateway reads");
    }

    /// The next frame; pings are answered. `None` when the connection is over.
    pub async fn receive(&mut self) -> Option<GatewayToRuntime> {
        loop {
            match timeout(BOUND, self.socket.next()).await.expect("something comes") {
                Some(Ok(Message::Text(text))) => {
                    match serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")) {
                        GatewayToRuntime::Ping { id } => self.send(RuntimeToGateway::Pong { id }).await,
                        frame => return Some(frame),
                    }
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => {}
            }
        }
    }

    pub async fn until<T>(&mut self, what: &str, fits: impl Fn(&GatewayToRuntime) -> Option<T>) -> T {
        if let Some(at) = self.seen.iter().position(|frame| fits(frame).is_some()) {
            let frame = self.seen.remove(at).expect("just found");
            return fits(&frame).expect("just fitted");
        }
        let waiting = async {
            loop {
                let Some(frame) = self.receive().await else { panic!("the connection ended before {what}") };
                match fits(&frame) {
                    Some(found) => return found,
                    None => self.seen.push_back(frame),
                }
            }
        };
        // The bound of each receive is not the bound of all of them: pings come for ever.
        timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    /// Opens a session of its own; returns its id and claim token.
    pub async fn open(&mut self, session: OpenSession) -> (String, String) {
        self.send(RuntimeToGateway::Open { reference: "r".to_owned(), session: Box::new(session) }).await;
        self.until("opened", |frame| match frame {
            GatewayToRuntime::Opened { session, claim, .. } => Some((session.clone(), claim.clone())),
            _ => None,
        })
        .await
    }

    /// Takes the next session that it is assigned; returns its id and its claim token.
    pub async fn take_assigned(&mut self) -> (String, String) {
        let (session, claim) = self
            .until("assigned", |frame| match frame {
                GatewayToRuntime::Assigned { session, claim, .. } => Some((session.clone(), claim.clone())),
                _ => None,
            })
            .await;
        let (claim, _) = self.claim(&session, &claim).await;
        (session, claim)
    }

    /// Claims a session; returns the new token and the number expected.
    pub async fn claim(&mut self, session: &str, claim: &str) -> (String, u64) {
        let reclaim =
            onlooker_protocol::runtime::Reclaim { session: session.to_owned(), claim: claim.to_owned(), commands: 0 };
        self.send(RuntimeToGateway::Claim(reclaim)).await;
        self.until("claimed", |frame| match frame {
            GatewayToRuntime::Claimed { session: claimed, claim, expected, .. } if claimed == session => {
                Some((claim.clone(), *expected))
            }
            _ => None,
        })
        .await
    }

    /// Publishes one event and waits until it is in the log.
    pub async fn publish(&mut self, session: &str, kind: &str, data: Value) -> Position {
        let n = self.send_event(session, kind, data).await;
        self.accepted(session, n).await
    }

    /// Publishes one event without waiting.
    pub async fn send_event(&mut self, session: &str, kind: &str, data: Value) -> u64 {
        let n = self.numbers.entry(session.to_owned()).or_default();
        *n += 1;
        let n = *n;
        let event = PublishedEvent { n, kind: kind.to_owned(), task: None, data, picture: None };
        self.send(RuntimeToGateway::Events { session: session.to_owned(), events: vec![event] }).await;
        n
    }

    pub async fn publish_picture(&mut self, session: &str, bytes: &[u8]) -> Position {
        let n = self.numbers.entry(session.to_owned()).or_default();
        *n += 1;
        let n = *n;
        let (session, media) = (session.to_owned(), "image/png".to_owned());
        let header = PublishedPicture { session, n, media, task: None, data: json!({}) };
        self.socket.send(Message::binary(picture::encode(&header, bytes))).await.unwrap();
        self.accepted(&header.session, n).await
    }

    /// Waits for the gateway's word on everything up to `n`.
    pub async fn accepted(&mut self, session: &str, n: u64) -> Position {
        self.until("accepted", |frame| match frame {
            GatewayToRuntime::Accepted { session: accepted, n: up_to, position }
                if accepted == session && *up_to >= n =>
            {
                Some(*position)
            }
            GatewayToRuntime::EventRefused { session: refused, refusal, .. } if refused == session => {
                panic!("refused: {refusal}")
            }
            _ => None,
        })
        .await
    }

    /// Raises a question.
    pub async fn ask(&mut self, session: &str, id: &str, more: Value) -> Position {
        let mut data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id });
        for (name, value) in more.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        self.publish(session, "guardrail_trigger", data).await
    }

    /// The next command of a kind.
    pub async fn command<T>(&mut self, what: &str, fits: impl Fn(&RuntimeCommand) -> Option<T>) -> T {
        self.until(what, |frame| match frame {
            GatewayToRuntime::Command { command, .. } => fits(&command.command),
            _ => None,
        })
        .await
    }

    /// The next outcome of a guardrail.
    pub async fn outcome(&mut self) -> onlooker_protocol::runtime::GuardrailOutcome {
        self.command("an outcome", |command| match command {
            RuntimeCommand::Guardrail(outcome) => Some(outcome.clone()),
            _ => None,
        })
        .await
    }
}

/// What a webhook's receiver got.
#[derive(Clone, Debug)]
pub struct Delivered {
    pub headers: HeaderMap,
    pub body: Value,
    pub raw: Bytes,
}

impl Delivered {
    pub fn id(&self) -> &str {
        self.headers["webhook-id"].to_str().unwrap()
    }

    pub fn kind(&self) -> &str {
        self.body["type"].as_str().unwrap_or_default()
    }
}

/// A webhook's receiver: it answers 200, or what the test scripted.
pub struct Receiver {
    pub url: String,
    state: Arc<ReceiverState>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct ReceiverState {
    got: Mutex<Vec<Delivered>>,
    script: Mutex<VecDeque<Reaction>>,
}

/// How the receiver reacts to one request.
#[derive(Clone, Copy, Debug)]
pub enum Reaction {
    Status(u16),
    /// Refuses, and says after how many seconds to come again.
    Later(u32),
}

impl Receiver {
    pub async fn start() -> Self {
        let state = Arc::<ReceiverState>::default();
        let router = Router::new().route("/hook", post(receive)).with_state(Arc::clone(&state));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state, server }
    }

    /// The next requests get these reactions, then 200 again.
    pub fn script(&self, reactions: impl IntoIterator<Item = Reaction>) {
        self.state.script.lock().unwrap().extend(reactions);
    }

    pub fn got(&self) -> Vec<Delivered> {
        self.state.got.lock().unwrap().clone()
    }

    /// Everything of one type that has come.
    pub fn of(&self, kind: &str) -> Vec<Delivered> {
        self.got().into_iter().filter(|delivered| delivered.kind() == kind).collect()
    }

    pub async fn wait_for(&self, kind: &str, count: usize) -> Vec<Delivered> {
        wait_until(&format!("{count} × {kind} came"), || async { self.of(kind).len() >= count }).await;
        self.of(kind)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(state): State<Arc<ReceiverState>>, headers: HeaderMap, raw: Bytes) -> Response {
    let body = serde_json::from_slice(&raw).unwrap_or(Value::Null);
    state.got.lock().unwrap().push(Delivered { headers, body, raw });
    let reaction = state.script.lock().unwrap().pop_front();
    match reaction {
        Some(Reaction::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Reaction::Later(seconds)) => {
            (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", seconds.to_string())]).into_response()
        }
        None => StatusCode::OK.into_response(),
    }
}

/// What a runtime is told when a session is its own again.
#[derive(Debug)]
pub struct Claimed {
    pub claim: String,
    pub expected: u64,
    pub secrets_expected: bool,
}

impl Runtime {
    /// Claims a session, having applied the commands up to a number. Its next event has the number expected.
    pub async fn reclaim(&mut self, session: &str, claim: &str, commands: u64) -> Claimed {
        let (session, claim) = (session.to_owned(), claim.to_owned());
        let reclaim = onlooker_protocol::runtime::Reclaim { session: session.clone(), claim, commands };
        self.send(RuntimeToGateway::Claim(reclaim)).await;
        let claimed = self
            .until("claimed", |frame| match frame {
                GatewayToRuntime::Claimed { session: claimed, claim, expected, secrets_expected }
                    if *claimed == session =>
                {
                    let (claim, expected, secrets_expected) = (claim.clone(), *expected, *secrets_expected);
                    Some(Claimed { claim, expected, secrets_expected })
                }
                _ => None,
            })
            .await;
        self.numbers.insert(session, claimed.expected - 1);
        claimed
    }

    /// The next refusal of a session's events, of its claim, or of the session itself.
    pub async fn refusal(&mut self, of: &str) -> Refusal {
        self.until("a refusal", |frame| match frame {
            GatewayToRuntime::EventRefused { session, refusal, .. }
            | GatewayToRuntime::Released { session, refusal }
                if session == of =>
            {
                Some(refusal.clone())
            }
            GatewayToRuntime::Error { session: Some(session), refusal, .. } if session == of => Some(refusal.clone()),
            _ => None,
        })
        .await
    }

    /// The commands that a session has been given since they were last asked for, in order.
    pub async fn commands_so_far(&mut self, of: &str) -> Vec<onlooker_protocol::runtime::NumberedCommand> {
        // What the first of them found waiting comes at the latest before the gateway's word on the second one.
        self.publish(of, "x.mark", Value::Null).await;
        self.publish(of, "x.mark", Value::Null).await;
        let mut given = Vec::new();
        for frame in std::mem::take(&mut self.seen) {
            match frame {
                GatewayToRuntime::Command { session, command } if session == of => given.push(command),
                other => self.seen.push_back(other),
            }
        }
        given
    }
}
