//! A session's events over plain HTTP: a JSON page, or server-sent events.
//!
//! A page is a poll: its reader counts as looking from its arrival until a while after its response, and a completely
//! written response proves what it carried. An event stream can prove nothing and is an observer, until its page says
//! `POST /v1/subscribers/{id}/alive`: that is its pong, its ack and its word that somebody is looking.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::{Body as HttpBody, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use dashmap::DashMap;
use futures::stream;
use onlooker_protocol::{
    Code, Position,
    code::Refusal,
    event::Since,
    subscriber::{Attention, GapReason, PictureLevel},
};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{App, Body, Caller, Path, Query, Refused, allowed, credential_holder, written::Written};
use crate::{
    auth::Grant,
    config::key::Scope,
    engine::{EngineError, Head, ReadLimit, Record},
    hub::Signal,
    ids::{ConnectionId, SessionId},
    session::{Session, Snapshot},
    subscriber::{Following, Step, Wanted},
    watch::{Attentive, Newcomer},
};

/// The most events of one page, and what it returns when nothing is said.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 1 << 20;
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Keeps proxies from closing a quiet stream.
const COMMENT_EVERY: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
pub struct EventsQuery {
    since: Option<String>,
    /// Seconds.
    #[serde(default)]
    wait: u64,
    limit: Option<usize>,
    /// Types, separated by commas.
    #[serde(default)]
    filter: String,
}

pub async fn read(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Refused> {
    caller.may(Scope::Watch)?;
    let session = app.session(&caller.0, &id)?;
    let wants_stream = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    let since = since(&query, &headers, wants_stream)?;
    let filter: Vec<String> = query.filter.split(',').filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
    if wants_stream {
        return Ok(stream(app, &caller.0, session, since, filter));
    }
    let written = request.extensions().get::<Written>().cloned();
    page(&app, &caller, &session, Asked { since, filter, query }, written).await.map_err(Refused)
}

fn since(query: &EventsQuery, headers: &HeaderMap, wants_stream: bool) -> Result<Since, Refusal> {
    match asked_since(query.since.as_deref(), headers)? {
        Some(since) => Ok(since),
        None if wants_stream => Ok(Since::Latest),
        None => Ok(Since::Start),
    }
}

/// Where a reader wants to begin: what its browser has read already counts more than what its page once asked for.
///
/// # Errors
/// `invalid`.
pub fn asked_since(query: Option<&str>, headers: &HeaderMap) -> Result<Option<Since>, Refusal> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).filter(|id| !id.is_empty());
    match last.or(query) {
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Refusal::new(Code::Invalid, "since is `start`, `latest` or a position epoch:offset")),
        None => Ok(None),
    }
}

// --- pages -----------------------------------------------------------------------------------------------------------

struct Asked {
    since: Since,
    filter: Vec<String>,
    query: EventsQuery,
}

async fn page(
    app: &App,
    caller: &Caller,
    session: &Session,
    asked: Asked,
    written: Option<Written>,
) -> Result<Response, Refusal> {
    let wanted = Wanted {
        since: asked.since,
        filter: asked.filter,
        pictures: PictureLevel::None,
        viewer: credential_holder(&caller.0).by,
    };
    let credential: Arc<str> = format!("{:?}", caller.0.credential).into();
    let able = caller.0.may(Scope::Answer) && wanted.sees_guardrails();
    let poll = session.watch.poll(credential, &caller.0.who, able, Instant::now());
    let found = find(app, session, &wanted, &asked.query).await?;
    // Open questions are state: every page carries them, also one that begins after they were raised.
    let snapshot = match session.snapshot().await {
        Ok(snapshot) => Some(snapshot),
        // The owners go before the connections: a poll under way is still answered with what the log has.
        Err(_) if app.stopping.is_cancelled() => None,
        Err(refusal) => return Err(refusal),
    };
    let body = page_body(&found, snapshot.as_ref());
    if let (Some(written), Some(snapshot)) = (written, snapshot) {
        let questions = Some(snapshot.position.offset);
        let is_result = |record: &&Record| onlooker_protocol::event::kind::is_result(&record.kind);
        // One by one: who reads a later one here need not have read an earlier one.
        let results: Vec<u64> = found.records.iter().filter(is_result).map(|record| record.offset).collect();
        written.after_response(Box::new(move || {
            poll.written(questions, None);
            results.into_iter().for_each(|offset| poll.written_result(offset));
        }));
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json), no_store()], body).into_response())
}

struct Found {
    records: Vec<Record>,
    position: Position,
    gap: Option<GapReason>,
}

/// What follows the position, waiting for it if there is nothing and the caller waits.
async fn find(app: &App, session: &Session, wanted: &Wanted, query: &EventsQuery) -> Result<Found, Refusal> {
    let deadline = Instant::now() + Duration::from_secs(query.wait).min(WAIT_MAX);
    let limit = ReadLimit { records: query.limit.unwrap_or(PAGE).clamp(1, PAGE), bytes: PAGE_BYTES };
    let mut head = session.follow_head();
    let now = *head.borrow_and_update();
    let (mut next, mut gap) = beginning(wanted.since, &now);
    loop {
        let current = *head.borrow_and_update();
        let records = app.directory.services().engine.read(session.id, next, limit).await;
        let records = match records {
            Ok(records) => records,
            Err(EngineError::Trimmed { first }) => {
                (next, gap) = (first, gap.or(Some(GapReason::Trimmed)));
                continue;
            }
            Err(_) => return Err(Refusal::plain(Code::Unavailable)),
        };
        let reached = records.last().map_or(next, |record| record.offset + 1);
        let position = Position { epoch: current.epoch, offset: reached.saturating_sub(1) };
        let kept: Vec<Record> = records.into_iter().filter(|record| wanted.lets_through(&record.kind)).collect();
        let nothing = kept.is_empty() && gap.is_none();
        next = reached;
        if nothing && reached < current.next {
            continue;
        }
        if !nothing || Instant::now() >= deadline {
            return Ok(Found { records: kept, position, gap });
        }
        tokio::select! {
            changed = head.changed() => if changed.is_err() { return Ok(Found { records: kept, position, gap }) },
            () = sleep_until(deadline) => {}
            () = app.stopping.cancelled() => return Ok(Found { records: kept, position, gap }),
        }
    }
}

fn beginning(since: Since, head: &Head) -> (u64, Option<GapReason>) {
    match since {
        Since::Latest => (head.next, None),
        Since::Start => (head.first, (head.first > 0).then_some(GapReason::Trimmed)),
        Since::After(position) if position.epoch != head.epoch => (head.first, Some(GapReason::Epoch)),
        Since::After(position) if position.offset >= head.next => (head.first, Some(GapReason::Ahead)),
        Since::After(position) if position.offset + 1 < head.first => (head.first, Some(GapReason::Trimmed)),
        Since::After(position) => (position.offset + 1, None),
    }
}

fn page_body(found: &Found, snapshot: Option<&Snapshot>) -> Vec<u8> {
    let bytes: usize = found.records.iter().map(|record| record.frame.len() + 1).sum();
    let mut body = Vec::with_capacity(bytes + 96);
    body.extend_from_slice(br#"{"events":["#);
    for (index, record) in found.records.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&record.frame);
    }
    body.extend_from_slice(br#"],"position":""#);
    body.extend_from_slice(found.position.to_string().as_bytes());
    body.push(b'"');
    if let Some(snapshot) = snapshot.filter(|snapshot| !snapshot.state.guardrails.is_empty()) {
        body.extend_from_slice(br#","guardrails":"#);
        serde_json::to_writer(&mut body, &snapshot.state.guardrails).expect("writing to memory does not fail");
    }
    if let Some(gap) = found.gap {
        body.extend_from_slice(br#","gap":"#);
        serde_json::to_writer(&mut body, &gap).expect("writing to memory does not fail");
    }
    body.push(b'}');
    body
}

fn no_store() -> (header::HeaderName, HeaderValue) {
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
}

// --- event streams ---------------------------------------------------------------------------------------------------

/// Event streams by their id, so that their pages can speak for them.
#[derive(Default)]
pub struct Alive {
    streams: DashMap<String, Arc<Voice>>,
}

/// What a stream's page says arrives here; the stream applies it.
struct Voice {
    session: SessionId,
    project: Arc<str>,
    able: bool,
    said: Mutex<Vec<Said>>,
    signal: Arc<Signal>,
}

#[derive(Deserialize)]
pub struct Said {
    position: Option<Position>,
    #[serde(default)]
    attention: Attention,
}

/// Words of a page that may wait for its stream.
const SAID: usize = 16;

pub async fn alive(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Body(said): Body<Said>,
) -> Result<Json<serde_json::Value>, Refused> {
    hear(&app, &caller.0, &id, said).map_err(Refused)
}

/// Takes what the page of an event stream says, and answers what the stream counts as.
///
/// # Errors
/// `forbidden`, `unknown_subscriber`.
pub fn hear(app: &App, grant: &Grant, id: &str, said: Said) -> Result<Json<serde_json::Value>, Refusal> {
    allowed(grant, Scope::Watch)?;
    let unknown = || Refusal::plain(Code::UnknownSubscriber);
    let voice = app.alive.streams.get(id).map(|voice| Arc::clone(&voice)).ok_or_else(unknown)?;
    if !grant.may_see(&voice.project, voice.session.as_str()) {
        return Err(unknown());
    }
    {
        let mut waiting = voice.said.lock().expect("no holder panics");
        if waiting.len() < SAID {
            waiting.push(said);
        }
    }
    voice.signal.poke();
    Ok(Json(json!({ "able": voice.able })))
}

/// The stream's end takes its voice away.
struct Streaming {
    app: App,
    id: ConnectionId,
    voice: Arc<Voice>,
    following: Following,
    out: VecDeque<Bytes>,
    quiet_since: Instant,
    /// When the token with which it was opened expires.
    expires: Option<Instant>,
    over: bool,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.app.alive.streams.remove(&self.id.to_string());
        self.app.connections.fetch_sub(1, Ordering::Relaxed);
        self.app.metrics.subscribers_closed.inc();
    }
}

/// A session's events as a stream that lasts for as long as the grant and the session do.
pub fn stream(app: App, grant: &Grant, session: Session, since: Since, filter: Vec<String>) -> Response {
    let (id, signal) = (ConnectionId::random(), Arc::<Signal>::default());
    let viewer = credential_holder(grant).by;
    let wanted = Wanted { since, filter, pictures: PictureLevel::None, viewer };
    let able = grant.may(Scope::Answer) && wanted.sees_guardrails();
    let newcomer = Newcomer {
        subscriber: id.into(),
        who: Arc::clone(&grant.who),
        via: "sse",
        observer: false,
        able,
        sees_results: wanted.sees_results(),
        attentive: Attentive::Idle,
    };
    let voice = Arc::new(Voice {
        session: session.id,
        project: Arc::clone(&session.project),
        able,
        said: Mutex::default(),
        signal: Arc::clone(&signal),
    });
    app.alive.streams.insert(id.to_string(), Arc::clone(&voice));
    app.connections.fetch_add(1, Ordering::Relaxed);
    app.metrics.subscribers_opened.inc();
    let engine = Arc::clone(&app.directory.services().engine);
    let hub = app.hub.clone();
    let following = Following::begin(session, engine, &hub, (&signal, 0), wanted, newcomer);
    let hello = event("hello", None, json!({ "subscriber": id.to_string() }).to_string().as_bytes());
    let out = VecDeque::from([hello]);
    let now = Instant::now();
    let left = |expires: SystemTime| expires.duration_since(SystemTime::now()).unwrap_or_default();
    let expires = grant.expires.map(|expires| now + left(expires));
    let streaming = Streaming { app, id, voice, following, out, quiet_since: now, expires, over: false };
    let body = stream::unfold(streaming, |mut streaming| async move {
        let piece = streaming.next_piece().await?;
        Some((Ok::<_, Infallible>(piece), streaming))
    });
    let kind = HeaderValue::from_static("text/event-stream");
    // nginx would hold events back otherwise.
    let unbuffered = ("x-accel-buffering", HeaderValue::from_static("no"));
    ([(header::CONTENT_TYPE, kind), no_store()], [unbuffered], HttpBody::from_stream(body)).into_response()
}

impl Streaming {
    /// The next piece of the stream; `None` at its end.
    async fn next_piece(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.out.pop_front() {
                self.quiet_since = Instant::now();
                return Some(piece);
            }
            if self.over {
                return None;
            }
            if self.expires.is_some_and(|at| Instant::now() >= at) {
                self.end(&Refusal::plain(Code::TokenExpired));
                continue;
            }
            self.listen();
            while self.voice.signal.take().is_some() {}
            match self.following.step().await {
                Ok(Step::Nothing) => {}
                Ok(step) => {
                    self.take(step);
                    continue;
                }
                Err(refusal) => {
                    self.end(&refusal);
                    continue;
                }
            }
            let stopping = self.app.stopping.clone();
            let deadline = self.following.deadline();
            tokio::select! {
                () = self.voice.signal.wait() => {}
                () = stopping.cancelled() => self.end(&Refusal::plain(Code::Stopping)),
                () = sleep_until(self.expires.unwrap_or(self.quiet_since)), if self.expires.is_some() => {}
                () = sleep_until(deadline.unwrap_or(self.quiet_since)), if deadline.is_some() => self.following.wake(),
                () = sleep_until(self.quiet_since + COMMENT_EVERY) => {
                    self.out.push_back(Bytes::from_static(b": ping\n\n"));
                    self.following.wake();
                }
            }
        }
    }

    /// What the page has said since: its pong, its ack, its attention.
    fn listen(&mut self) {
        let said = std::mem::take(&mut *self.voice.said.lock().expect("no holder panics"));
        let now = Instant::now();
        for said in said {
            self.following.guard().attention(said.attention == Attention::Active, now);
            match said.position {
                Some(position) => self.following.acknowledged(position, now),
                None => self.following.guard().alive(now),
            }
        }
    }

    fn take(&mut self, step: Step) {
        let session = self.following.session().id;
        match step {
            Step::Nothing => {}
            Step::Gap { reason, from } => {
                self.app.metrics.gaps.inc();
                self.push("gap", None, &json!({ "session": session.as_str(), "reason": reason, "from": from }));
            }
            Step::Snapshot(snapshot) => {
                let data =
                    json!({ "session": session.as_str(), "position": snapshot.position, "state": *snapshot.state });
                self.push("snapshot", None, &data);
            }
            Step::Replay(records) | Step::Events(records) => self.records(&records),
            Step::Live(position) => {
                self.push("live", Some(position), &json!({ "session": session.as_str(), "position": position }));
            }
            Step::Side(side) => {
                let mut data = serde_json::to_value(side.counts).expect("plain data");
                data["session"] = json!(session.as_str());
                self.push("watchers", None, &data);
            }
            Step::Picture(_) => {}
            Step::Ended => self.end(&Refusal::plain(Code::SessionEnded)),
        }
    }

    fn records(&mut self, records: &[Record]) {
        for record in records {
            let frame: &[u8] = &record.frame;
            let position = Position { epoch: self.following.epoch(), offset: record.offset };
            self.out.push_back(event(&record.kind, Some(position), frame));
        }
    }

    fn push(&mut self, name: &str, id: Option<Position>, data: &serde_json::Value) {
        self.out.push_back(event(name, id, data.to_string().as_bytes()));
    }

    fn end(&mut self, refusal: &Refusal) {
        self.over = true;
        let data = json!({ "code": refusal.code, "error": refusal.error, "message": refusal.message });
        self.push("unsubscribed", None, &data);
    }
}

/// One server-sent event. Frames hold no line break, so that one data line is enough.
fn event(name: &str, id: Option<Position>, data: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(data.len() + 64);
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out.into()
}
