//! A small Bot API that listens on this machine: it takes what the documentation allows (core.telegram.org/bots/api),
//! keeps messages, hands out updates, and notes whatever a bot did that the documentation does not allow.

#![allow(dead_code, reason = "shared by two test binaries, neither of which needs all of it")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequest as _, Multipart, Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, timeout},
};

pub(crate) const TOKEN: &str = "4242:AAtoken-of-the_bot";
pub(crate) const BOT: i64 = 4242;
/// For what has to happen.
const BOUND: Duration = Duration::from_secs(20);

/// Parameters by their types: integer, string, boolean, object, array; capitals are required.
const METHODS: &[(&str, &[(&str, char)])] = &[
    ("getMe", &[]),
    (
        "sendMessage",
        &[
            ("chat_id", 'I'),
            ("text", 'S'),
            ("parse_mode", 's'),
            ("link_preview_options", 'o'),
            ("reply_parameters", 'o'),
            ("reply_markup", 'o'),
            ("disable_notification", 'b'),
        ],
    ),
    (
        "sendPhoto",
        &[
            ("chat_id", 'I'),
            ("caption", 's'),
            ("parse_mode", 's'),
            ("reply_parameters", 'o'),
            ("reply_markup", 'o'),
            ("disable_notification", 'b'),
        ],
    ),
    (
        "editMessageText",
        &[
            ("chat_id", 'I'),
            ("message_id", 'I'),
            ("text", 'S'),
            ("parse_mode", 's'),
            ("link_preview_options", 'o'),
            ("reply_markup", 'o'),
        ],
    ),
    (
        "editMessageCaption",
        &[("chat_id", 'I'), ("message_id", 'I'), ("caption", 's'), ("parse_mode", 's'), ("reply_markup", 'o')],
    ),
    ("deleteMessage", &[("chat_id", 'I'), ("message_id", 'I')]),
    ("answerCallbackQuery", &[("callback_query_id", 'S'), ("text", 's'), ("show_alert", 'b')]),
    ("setWebhook", &[("url", 'S'), ("secret_token", 's'), ("allowed_updates", 'a'), ("drop_pending_updates", 'b')]),
    ("deleteWebhook", &[("drop_pending_updates", 'b')]),
    ("getUpdates", &[("offset", 'i'), ("limit", 'i'), ("timeout", 'i'), ("allowed_updates", 'a')]),
];

/// Dropped, it says what was against the documentation.
pub(crate) struct Fake {
    pub(crate) url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) parameters: Value,
    /// Media type and bytes.
    pub(crate) file: Option<(String, Bytes)>,
    pub(crate) at: Instant,
}

/// What a call is answered with instead.
#[derive(Clone, Debug)]
pub(crate) enum Instead {
    Error {
        code: u16,
        description: &'static str,
        parameters: Value,
    },
    /// No answer of the Bot API.
    Page(u16, &'static str),
    /// Taken, and then the connection breaks.
    TakenAndBroken,
}

impl Instead {
    pub(crate) fn error(code: u16, description: &'static str) -> Self {
        Self::Error { code, description, parameters: Value::Null }
    }

    pub(crate) fn wait(seconds: u64) -> Self {
        let parameters = json!({ "retry_after": seconds });
        Self::Error { code: 429, description: "Too Many Requests: retry after some", parameters }
    }
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    calls: Vec<Call>,
    instead: HashMap<String, VecDeque<Instead>>,
    updates: BTreeMap<i64, Value>,
    last_update: i64,
    /// The newest of the questions for updates that are held open.
    poll: u64,
    webhook: Option<String>,
    messages: BTreeMap<i64, Message>,
    wrong: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) chat: i64,
    pub(crate) is_photo: bool,
    /// As people read it.
    pub(crate) text: String,
    pub(crate) keyboard: Vec<Vec<Value>>,
}

type Refusal = (u16, String);

fn bad(description: impl Into<String>) -> Refusal {
    (400, format!("Bad Request: {}", description.into()))
}

impl Fake {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let shared = Arc::new(Shared::default());
        shared.lock().last_update = 1000;
        let router = Router::new().fallback(serve).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, task }
    }

    /// Calls of one method, in the order in which they came.
    pub(crate) fn calls(&self, method: &str) -> Vec<Call> {
        self.shared.lock().calls.iter().filter(|call| call.method == method).cloned().collect()
    }

    pub(crate) fn last(&self, method: &str) -> Value {
        self.calls(method).pop().unwrap_or_else(|| panic!("{method} was called")).parameters
    }

    /// The next call of a method that has no such answer waiting yet is answered with this.
    pub(crate) fn instead(&self, method: &str, instead: Instead) {
        self.shared.lock().instead.entry(method.to_owned()).or_default().push_back(instead);
    }

    pub(crate) fn message(&self, id: i64) -> Option<Message> {
        self.shared.lock().messages.get(&id).cloned()
    }

    pub(crate) fn only_message(&self) -> (i64, Message) {
        let messages = self.shared.lock().messages.clone();
        assert_eq!(messages.len(), 1, "{messages:?}");
        messages.into_iter().next().unwrap()
    }

    pub(crate) fn forget_messages(&self) {
        self.shared.lock().messages.clear();
    }

    /// Something has happened. The update's number.
    pub(crate) fn happened(&self, mut update: Value) -> i64 {
        let mut inner = self.shared.lock();
        inner.last_update += 1;
        let id = inner.last_update;
        update["update_id"] = id.into();
        inner.updates.insert(id, update);
        drop(inner);
        self.shared.changed.notify_waiters();
        id
    }

    /// What no bot has confirmed.
    pub(crate) fn unconfirmed(&self) -> usize {
        self.shared.lock().updates.len()
    }

    /// Waits until so many calls of a method came.
    pub(crate) async fn until_called(&self, method: &str, count: usize) -> Vec<Call> {
        self.until(|| self.calls(method).len() >= count, method).await;
        self.calls(method)
    }

    pub(crate) async fn until(&self, mut holds: impl FnMut() -> bool, what: &str) {
        let waiting = async {
            loop {
                let changed = self.shared.changed.notified();
                if holds() {
                    return;
                }
                changed.await;
            }
        };
        if timeout(BOUND, waiting).await.is_err() {
            panic!("{what}: {:?}", self.shared.lock().calls);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
        if !std::thread::panicking() {
            let wrong = self.shared.lock().wrong.clone();
            assert!(wrong.is_empty(), "against the documentation: {wrong:#?}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let post = request.method() == "POST";
    let Some(method) = path.strip_prefix(&format!("/bot{TOKEN}/")).map(str::to_owned) else {
        let known = path.starts_with("/bot");
        return answer(Err(if known { (401, "Unauthorized".to_owned()) } else { (404, "Not Found".to_owned()) }));
    };
    let (parameters, file) = match read(request, &method).await {
        Ok(read) => read,
        Err(wrong) => {
            shared.lock().wrong.push(format!("{method}: {wrong}"));
            return answer(Err(bad(wrong)));
        }
    };
    let has_file = file.is_some();
    let call = Call { method: method.clone(), parameters: parameters.clone(), file, at: Instant::now() };
    let instead = {
        let mut inner = shared.lock();
        inner.calls.push(call);
        let mut wrong = check(&method, &parameters);
        if !post {
            wrong.push("not a POST".to_owned());
        }
        if has_file != (method == "sendPhoto") {
            wrong.push("a file where none belongs, or none where one does".to_owned());
        }
        inner.wrong.extend(wrong.into_iter().map(|wrong| format!("{method}: {wrong}")));
        inner.instead.get_mut(&method).and_then(VecDeque::pop_front)
    };
    shared.changed.notify_waiters();
    let broken = match instead {
        Some(Instead::Error { code, description, parameters }) => return error(code, description, &parameters),
        Some(Instead::Page(code, page)) => {
            return (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "text/html")], page).into_response();
        }
        Some(Instead::TakenAndBroken) => true,
        None => false,
    };
    let done = if method == "getUpdates" {
        updates(&shared, &parameters).await
    } else {
        shared.lock().act(&method, &parameters)
    };
    shared.changed.notify_waiters();
    if broken {
        let breaks = futures::stream::iter([Err::<Bytes, _>(std::io::Error::other("the connection breaks"))]);
        return Body::from_stream(breaks).into_response();
    }
    answer(done)
}

fn answer(done: Result<Value, Refusal>) -> Response {
    match done {
        Ok(result) => axum::Json(json!({ "ok": true, "result": result })).into_response(),
        Err((code, description)) => error(code, &description, &Value::Null),
    }
}

fn error(code: u16, description: &str, parameters: &Value) -> Response {
    let mut body = json!({ "ok": false, "error_code": code, "description": description });
    if !parameters.is_null() {
        body["parameters"] = parameters.clone();
    }
    (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
}

/// JSON, or a form whose parameters that are no text are JSON.
async fn read(request: Request, method: &str) -> Result<(Value, Option<(String, Bytes)>), String> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("multipart/form-data") {
        if kind != "application/json" {
            return Err(format!("content type {kind}"));
        }
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.map_err(|error| error.to_string())?;
        let parameters = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
        return Ok((parameters, None));
    }
    let mut form = Multipart::from_request(request, &()).await.map_err(|error| error.to_string())?;
    let (mut parameters, mut file) = (Map::new(), None);
    while let Some(field) = form.next_field().await.map_err(|error| error.to_string())? {
        let name = field.name().unwrap_or_default().to_owned();
        if field.file_name().is_some() {
            let media = field.content_type().unwrap_or_default().to_owned();
            file = Some((media, field.bytes().await.map_err(|error| error.to_string())?));
            if name != "photo" {
                return Err(format!("a file in {name}"));
            }
            continue;
        }
        let text = field.text().await.map_err(|error| error.to_string())?;
        let is_text = types(method).iter().any(|(known, kind)| *known == name && matches!(kind, 's' | 'S'));
        let value = if is_text { Value::from(text) } else { serde_json::from_str(&text).map_err(|_| name.clone())? };
        parameters.insert(name, value);
    }
    Ok((parameters.into(), file))
}

fn types(method: &str) -> &'static [(&'static str, char)] {
    METHODS.iter().find(|(name, _)| *name == method).map(|(_, types)| *types).unwrap_or_default()
}

fn check(method: &str, parameters: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if METHODS.iter().all(|(name, _)| *name != method) {
        wrong.push("no such method".to_owned());
    }
    let Some(given) = parameters.as_object() else { return vec!["parameters are no object".to_owned()] };
    for (name, kind) in types(method) {
        let Some(value) = given.get(*name) else {
            if kind.is_ascii_uppercase() {
                wrong.push(format!("{name} is missing"));
            }
            continue;
        };
        let fits = match kind.to_ascii_lowercase() {
            'i' => value.is_i64(),
            's' => value.is_string(),
            'b' => value.is_boolean(),
            'a' => value.is_array(),
            _ => value.is_object(),
        };
        if !fits {
            wrong.push(format!("{name} is of another type"));
        }
    }
    wrong.extend(given.keys().filter(|name| types(method).iter().all(|(known, _)| known != name)).cloned());
    if let Some(reply) = given.get("reply_parameters") {
        if !reply["message_id"].is_i64() || reply["allow_sending_without_reply"] != true {
            wrong.push(format!("reply_parameters {reply}"));
        }
    }
    if given.contains_key("link_preview_options") && given["link_preview_options"] != json!({ "is_disabled": true }) {
        wrong.push("link_preview_options".to_owned());
    }
    wrong
}

async fn updates(shared: &Shared, parameters: &Value) -> Result<Value, Refusal> {
    let poll = {
        let mut inner = shared.lock();
        if inner.webhook.is_some() {
            return Err((409, "Conflict: can't use getUpdates method while webhook is active".to_owned()));
        }
        if let Some(offset) = parameters["offset"].as_i64() {
            inner.updates = inner.updates.split_off(&offset);
        }
        inner.poll += 1;
        inner.poll
    };
    shared.changed.notify_waiters();
    let limit = parameters["limit"].as_u64().unwrap_or(100) as usize;
    let hold = Duration::from_secs(parameters["timeout"].as_u64().unwrap_or_default());
    let waiting = async {
        loop {
            let changed = shared.changed.notified();
            {
                let inner = shared.lock();
                if inner.poll != poll {
                    return Err((409, "Conflict: terminated by other getUpdates request".to_owned()));
                }
                if !inner.updates.is_empty() {
                    return Ok(inner.updates.values().take(limit).cloned().collect::<Vec<_>>().into());
                }
            }
            changed.await;
        }
    };
    timeout(hold, waiting).await.unwrap_or(Ok(json!([])))
}

impl Inner {
    fn act(&mut self, method: &str, parameters: &Value) -> Result<Value, Refusal> {
        let chat = parameters["chat_id"].as_i64().unwrap_or_default();
        let words = parameters["text"].as_str().or(parameters["caption"].as_str()).unwrap_or_default();
        match method {
            "getMe" => Ok(json!({ "id": BOT, "is_bot": true, "first_name": "Watch", "username": "watch_bot" })),
            "sendMessage" | "sendPhoto" => {
                let is_photo = method == "sendPhoto";
                let message = drawn(chat, is_photo, words, &parameters["reply_markup"])?;
                let id = 500 + self.messages.keys().last().map_or(1, |last| last - 499);
                self.messages.insert(id, message);
                Ok(json!({ "message_id": id, "date": 1, "chat": { "id": chat, "type": "private" } }))
            }
            "editMessageText" | "editMessageCaption" => {
                let id = parameters["message_id"].as_i64().unwrap_or_default();
                let was = self.messages.get(&id).ok_or_else(|| bad("message to edit not found"))?;
                if was.is_photo != (method == "editMessageCaption") {
                    return Err(bad("there is no text in the message to edit"));
                }
                let message = drawn(chat, was.is_photo, words, &parameters["reply_markup"])?;
                if message == *was {
                    return Err(bad("message is not modified: specified new message content is exactly the same"));
                }
                self.messages.insert(id, message);
                Ok(json!({ "message_id": id }))
            }
            "deleteMessage" => Ok(true.into()),
            "answerCallbackQuery" => match parameters["text"].as_str().unwrap_or_default().chars().count() {
                0..=200 => Ok(true.into()),
                _ => Err(bad("MESSAGE_TOO_LONG")),
            },
            "setWebhook" => {
                let secret = parameters["secret_token"].as_str().unwrap_or_default();
                let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                if secret.len() > 256 || !secret.chars().all(allowed) {
                    return Err(bad("secret token contains unallowed characters"));
                }
                self.webhook = parameters["url"].as_str().map(str::to_owned);
                Ok(true.into())
            }
            "deleteWebhook" => {
                self.webhook = None;
                Ok(true.into())
            }
            _ => Err((404, "Not Found: method not found".to_owned())),
        }
    }
}

fn drawn(chat: i64, is_photo: bool, html: &str, markup: &Value) -> Result<Message, Refusal> {
    let text = plain(html).map_err(|error| bad(format!("can't parse entities: {error}")))?;
    let most = if is_photo { 1024 } else { 4096 };
    match text.encode_utf16().count() {
        0 if !is_photo => return Err(bad("message text is empty")),
        length if length > most => return Err(bad("message is too long")),
        _ => {}
    }
    let keyboard: Vec<Vec<Value>> = serde_json::from_value(markup["inline_keyboard"].clone()).unwrap_or_default();
    for button in keyboard.iter().flatten() {
        let members = button.as_object().map_or(0, Map::len);
        let carries = button["callback_data"].as_str().map(|data| (1..=64).contains(&data.len()));
        let leads = button["url"].as_str().map(|url| {
            let host = url.strip_prefix("https://").unwrap_or_default();
            host.split(['/', ':']).next().is_some_and(|host| host.contains('.'))
        });
        let label = button["text"].as_str().unwrap_or_default();
        if members != 2 || label.trim().is_empty() || !carries.or(leads).unwrap_or_default() {
            return Err(bad(format!("inline keyboard button {button} is invalid")));
        }
    }
    Ok(Message { chat, is_photo, text, keyboard })
}

/// Reads `parse_mode` HTML as Telegram does, for the tags that are used here.
pub(crate) fn plain(html: &str) -> Result<String, String> {
    let (mut text, mut open, mut rest) = (String::new(), Vec::new(), html);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '<' => {
                let (tag, after) = rest.split_once('>').ok_or("unclosed start tag")?;
                rest = after;
                match tag.strip_prefix('/') {
                    Some(tag) if open.pop() == Some(tag) => {}
                    Some(tag) => return Err(format!("unmatched end tag {tag}")),
                    None if ["b", "i", "code", "pre"].contains(&tag) => open.push(tag),
                    None => return Err(format!("unsupported start tag {tag}")),
                }
            }
            '&' => {
                let (entity, after) = rest.split_once(';').ok_or("a bare &")?;
                rest = after;
                text.push(match entity {
                    "lt" => '<',
                    "gt" => '>',
                    "amp" => '&',
                    "quot" => '"',
                    _ => return Err(format!("unknown entity {entity}")),
                });
            }
            '>' => return Err("a bare >".to_owned()),
            c => text.push(c),
        }
    }
    if open.is_empty() { Ok(text.trim().to_owned()) } else { Err("unclosed tag".to_owned()) }
}
