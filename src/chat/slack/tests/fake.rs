//! A Slack of our own: it takes what the documents say, notes whatever is not as they say, and answers as they show.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::{
        Path, State, WebSocketUpgrade,
        ws::{Message as Frame, WebSocket},
    },
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, post},
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
    task::JoinHandle,
};

/// What comes, unless it takes so long that it will not.
pub(super) async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(std::time::Duration::from_secs(10), coming).await.expect("it comes soon")
}

pub(super) const BOT_TOKEN: &str = "xoxb-17653672481-19874698323-pdFZKVeTuE8sk7oOcBrzbqgy";
pub(super) const APP_TOKEN: &str = "xapp-1-A111-222-xyz";
pub(super) const BOT_USER: &str = "U0BOT";

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) method: String,
    pub(super) body: Value,
}

pub(super) struct FakeSlack {
    pub(super) at: SocketAddr,
    shared: Arc<Shared>,
    links: tokio::sync::Mutex<mpsc::UnboundedReceiver<Link>>,
    task: JoinHandle<()>,
}

struct Shared {
    at: SocketAddr,
    calls: Mutex<Vec<Call>>,
    called: Notify,
    answers: Mutex<HashMap<String, VecDeque<Scripted>>>,
    /// What was not as the documents say.
    wrong: Mutex<Vec<String>>,
    messages: AtomicUsize,
    links: mpsc::UnboundedSender<Link>,
}

/// A status, what `Retry-After` says, and the body.
type Scripted = (u16, Option<u64>, Value);

/// The other end of one WebSocket.
pub(super) struct Link {
    frames: mpsc::UnboundedSender<Frame>,
    got: mpsc::UnboundedReceiver<Frame>,
}

impl FakeSlack {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (sender, links) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            at,
            calls: Mutex::default(),
            called: Notify::new(),
            answers: Mutex::default(),
            wrong: Mutex::default(),
            messages: AtomicUsize::new(0),
            links: sender,
        });
        let router = Router::new()
            .route("/api/{method}", post(call))
            .route("/respond/{id}", post(respond))
            .route("/link", any(link))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { at, shared, links: tokio::sync::Mutex::new(links), task }
    }

    /// What the next call of a method is answered, instead of the usual.
    pub(super) fn answer(&self, method: &str, status: u16, retry_after: Option<u64>, body: Value) {
        let mut answers = self.shared.answers.lock().unwrap();
        answers.entry(method.to_owned()).or_default().push_back((status, retry_after, body));
    }

    pub(super) fn refuse(&self, method: &str, error: &str) {
        self.answer(method, 200, None, json!({ "ok": false, "error": error }));
    }

    pub(super) fn calls(&self, method: &str) -> Vec<Value> {
        let calls = self.shared.calls.lock().unwrap();
        calls.iter().filter(|call| call.method == method).map(|call| call.body.clone()).collect()
    }

    /// The body of the nth call of a method, once there is one.
    pub(super) async fn called(&self, method: &str, nth: usize) -> Value {
        loop {
            let called = self.shared.called.notified();
            if let Some(body) = self.calls(method).into_iter().nth(nth) {
                return body;
            }
            soon(called).await;
        }
    }

    /// The next WebSocket that is opened.
    pub(super) async fn link(&self) -> Link {
        soon(self.links.lock().await.recv()).await.unwrap()
    }
}

impl Drop for FakeSlack {
    fn drop(&mut self) {
        self.task.abort();
        if !std::thread::panicking() {
            assert_eq!(*self.shared.wrong.lock().unwrap(), Vec::<String>::new(), "not as Slack's documents say");
        }
    }
}

impl Link {
    pub(super) fn send(&self, value: &Value) {
        self.frame(Frame::Text(value.to_string().into()));
    }

    pub(super) fn frame(&self, frame: Frame) {
        self.frames.send(frame).unwrap();
    }

    /// The next frame; `None` once the connection has ended.
    pub(super) async fn got(&mut self) -> Option<Frame> {
        soon(self.got.recv()).await
    }

    pub(super) async fn acknowledged(&mut self) -> Value {
        match self.got().await {
            Some(Frame::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("no acknowledgement: {other:?}"),
        }
    }
}

impl Shared {
    fn note(&self, method: &str, body: &Value) {
        self.calls.lock().unwrap().push(Call { method: method.to_owned(), body: body.clone() });
        self.called.notify_waiters();
    }

    fn wrong(&self, method: &str, what: impl std::fmt::Display) {
        self.wrong.lock().unwrap().push(format!("{method}: {what}"));
    }

    fn usual(&self, method: &str, body: &Value) -> Value {
        let nth = self.messages.fetch_add(1, Ordering::Relaxed);
        let ts = format!("1503435956.{nth:06}");
        match method {
            "chat.postMessage" => {
                let channel = body["channel"].as_str().unwrap_or_default();
                let channel = channel.strip_prefix('U').map_or(channel.to_owned(), |user| format!("D{user}"));
                json!({ "ok": true, "channel": channel, "ts": ts, "message": { "type": "message", "ts": ts } })
            }
            "chat.update" => json!({ "ok": true, "channel": body["channel"], "ts": body["ts"], "text": body["text"] }),
            "chat.postEphemeral" => json!({ "ok": true, "message_ts": ts }),
            "auth.test" => json!({ "ok": true, "team_id": "T1", "user_id": BOT_USER, "bot_id": "B1" }),
            "apps.connections.open" => {
                json!({ "ok": true, "url": format!("ws://{}/link?ticket=t1cket&app_id=A111", self.at) })
            }
            _ => json!({ "ok": false, "error": "unknown_method" }),
        }
    }
}

async fn call(
    State(fake): State<Arc<Shared>>,
    Path(method): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let of = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let token = if method == "apps.connections.open" { APP_TOKEN } else { BOT_TOKEN };
    if of(header::AUTHORIZATION) != format!("Bearer {token}") {
        fake.wrong(&method, "the token");
    }
    let (kind, sent) = if method.starts_with("chat.") {
        ("application/json; charset=utf-8", serde_json::from_slice(&body).unwrap_or_default())
    } else {
        ("application/x-www-form-urlencoded", Value::Null)
    };
    if of(header::CONTENT_TYPE) != kind {
        fake.wrong(&method, "the content type");
    }
    for what in arguments(&method, &sent) {
        fake.wrong(&method, what);
    }
    fake.note(&method, &sent);
    let scripted = fake.answers.lock().unwrap().get_mut(&method).and_then(VecDeque::pop_front);
    let (status, retry_after, answer) = scripted.unwrap_or_else(|| (200, None, fake.usual(&method, &sent)));
    let answer = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
    let mut response = (StatusCode::from_u16(status).unwrap(), answer).into_response();
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

async fn respond(State(fake): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    let method = format!("respond/{id}");
    if headers.contains_key(header::AUTHORIZATION) {
        fake.wrong(&method, "a token where none belongs");
    }
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    for what in arguments("respond", &sent) {
        fake.wrong(&method, what);
    }
    fake.note(&method, &sent);
    let scripted = fake.answers.lock().unwrap().get_mut(&method).and_then(VecDeque::pop_front);
    let status = scripted.map_or(200, |(status, ..)| status);
    (StatusCode::from_u16(status).unwrap(), "ok").into_response()
}

async fn link(State(fake): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| linked(fake, socket))
}

async fn linked(fake: Arc<Shared>, mut socket: WebSocket) {
    let (frames, mut to_send) = mpsc::unbounded_channel();
    let (received, got) = mpsc::unbounded_channel();
    let debug = json!({ "host": "applink-1", "approximate_connection_time": 18060 });
    let hello = json!({
        "type": "hello", "connection_info": { "app_id": "A111" }, "num_connections": 1, "debug_info": debug,
    });
    if socket.send(Frame::Text(hello.to_string().into())).await.is_err() {
        return;
    }
    let _ = fake.links.send(Link { frames, got });
    loop {
        tokio::select! {
            frame = to_send.recv() => match frame {
                Some(frame) => if socket.send(frame).await.is_err() {
                    return;
                },
                None => return,
            },
            frame = socket.recv() => match frame {
                Some(Ok(frame)) => drop(received.send(frame)),
                _ => return,
            },
        }
    }
}

const POST: &[&str] =
    &["channel", "text", "blocks", "parse", "link_names", "mrkdwn", "unfurl_links", "unfurl_media", "thread_ts"];
const UPDATE: &[&str] = &["channel", "ts", "text", "blocks", "parse", "link_names"];
const EPHEMERAL: &[&str] = &["channel", "user", "text", "blocks", "parse", "link_names", "thread_ts"];
const RESPOND: &[&str] = &["response_type", "replace_original", "text", "blocks"];

/// What is not as a method's page says.
fn arguments(method: &str, body: &Value) -> Vec<String> {
    let (known, required): (&[&str], &[&str]) = match method {
        "chat.postMessage" => (POST, &["channel", "text", "blocks"]),
        "chat.update" => (UPDATE, &["channel", "ts", "text", "blocks"]),
        "chat.postEphemeral" => (EPHEMERAL, &["channel", "user", "text", "blocks"]),
        "respond" => (RESPOND, &["response_type", "text", "blocks"]),
        "auth.test" | "apps.connections.open" => return Vec::new(),
        _ => return vec!["an unknown method".to_owned()],
    };
    let Some(body) = body.as_object() else { return vec!["no JSON object".to_owned()] };
    let unknown = body.keys().filter(|name| !known.contains(&name.as_str())).map(|name| format!("argument {name}"));
    let missing = required.iter().filter(|name| !body.contains_key(**name)).map(|name| format!("no {name}"));
    let mut wrong: Vec<String> = unknown.chain(missing).collect();
    if method == "chat.update" && !body["channel"].as_str().is_some_and(|id| id.starts_with(['C', 'D', 'G'])) {
        wrong.push("updates need the id of a channel".to_owned());
    }
    if body["text"].as_str().is_none_or(str::is_empty) {
        wrong.push("no text".to_owned());
    }
    let Some(blocks) = body["blocks"].as_array() else { return wrong };
    if !(1..=50).contains(&blocks.len()) {
        wrong.push("1 to 50 blocks".to_owned());
    }
    let mut ids = HashSet::new();
    for block in blocks {
        let result = match block["type"].as_str() {
            Some("header") => text(&block["text"], 150),
            Some("section") => text(&block["text"], 3000),
            Some("context") => all(&block["elements"], 10, |element| text(element, 3000)),
            Some("actions") => all(&block["elements"], 25, |element| button(element, &mut ids)),
            _ => Err("a block of an unknown type".to_owned()),
        };
        wrong.extend(result.err());
    }
    wrong
}

fn all(elements: &Value, most: usize, mut check: impl FnMut(&Value) -> Result<(), String>) -> Result<(), String> {
    let elements = elements.as_array().ok_or("no elements")?;
    if !(1..=most).contains(&elements.len()) {
        return Err(format!("1 to {most} elements"));
    }
    elements.iter().try_for_each(&mut check)
}

fn text(object: &Value, most: usize) -> Result<(), String> {
    let text = object["text"].as_str().ok_or("a text object without text")?;
    let has_form = object["type"] == "plain_text" && object["emoji"].is_boolean();
    if !has_form || object.as_object().unwrap().len() != 3 {
        return Err(format!("no plain_text: {object}"));
    }
    let length = text.encode_utf16().count();
    if text.trim().is_empty() || length > most { Err(format!("a text of {length}, at most {most}")) } else { Ok(()) }
}

fn button(element: &Value, ids: &mut HashSet<String>) -> Result<(), String> {
    text(&element["text"], 75)?;
    let within = |name: &str, most: usize| element[name].as_str().is_none_or(|text| text.len() <= most);
    let id = element["action_id"].as_str().ok_or("no action_id")?;
    let known = ["type", "text", "action_id", "url", "value", "style"];
    let is_known = element.as_object().unwrap().keys().all(|name| known.contains(&name.as_str()));
    let style = element.get("style").is_none_or(|style| style == "primary" || style == "danger");
    let fits = within("action_id", 255) && within("value", 2000) && within("url", 3000);
    if element["type"] != "button" || !is_known || !style || !fits || !ids.insert(id.to_owned()) {
        return Err(format!("no button: {element}"));
    }
    Ok(())
}
