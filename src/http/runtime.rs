//! The runtime's surfaces: `/v1/runtime` for those that hold a socket, and the HTTP pair for those that cannot.
//!
//! Frames in go to the sessions' owners; what the owners have to say waits in each session's link and is taken from
//! there at the runtime's own pace.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use futures::FutureExt;
use onlooker_protocol::{
    Code, VERSION,
    code::Refusal,
    picture,
    runtime::{CommandsPage, EventsAccepted, GatewayToRuntime, OpenSession, Reclaim, RuntimeToGateway},
    subscriber::{AuthNeed, SecretEntry},
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::Message;

use super::{
    App, Body, Caller, Path, Query, Refused, allowed, bearer,
    upgrade::Upgrade,
    wire::{self, Together, Turn, Wire, close_code},
};
use crate::{
    auth::Grant,
    config::key::Scope,
    ids::ConnectionId,
    ingest::{self, IngestLimits, Published, Unreadable},
    runtime_link::{Outgoing, Outlet, RuntimeEntry},
    session::{NewSession, Origin, Session},
};

/// Bytes that are read at once.
const READ: u32 = 64 * 1024;
/// What a quiet runtime's connection keeps for its next frame.
const ROOM: u32 = 16 * 1024;
const GOODBYE: Duration = Duration::from_secs(2);
/// A runtime that is silent for this many pings is gone.
const SILENT_PINGS: u32 = 3;
/// Bytes that wait to be sent before links are asked for more.
const FILL: usize = 64 * 1024;
/// Frames that are read before anything is said to them.
const READ_AT_ONCE: usize = 64;
/// How long one `GET …/commands` may wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

pub async fn upgrade(State(app): State<App>, headers: HeaderMap, upgrade: Upgrade) -> Response {
    let token = bearer(&headers).map(str::to_owned);
    let limits = wire::Limits { message: wire::limit(app.config.limits.runtime_frame_bytes), read: READ, room: ROOM };
    let tasks = app.tasks.clone();
    upgrade.begin(&tasks, limits, async move |wire| {
        app.metrics.runtimes_opened.inc();
        let tasks = app.tasks.clone();
        tasks.spawn(serve(app, wire, token));
    })
}

async fn serve(app: App, mut wire: Wire, token: Option<String>) {
    let id = ConnectionId::random();
    let times = &app.config.times;
    wire.send(&GatewayToRuntime::Hello {
        version: VERSION,
        connection: id.to_string(),
        auth: if app.auth.is_open() { AuthNeed::None } else { AuthNeed::Required },
        auth_within: times.auth_within.as_millis() as u64,
        ping_every: times.ping_every.as_millis() as u64,
        frame: app.config.limits.runtime_frame_bytes as u64,
        batch: app.config.limits.batch_events as u64,
    });
    let ended = match greet(&app, &mut wire, token).await {
        Ok((grant, registration)) => {
            let mut link = RuntimeConnection::new(app.clone(), wire, id, grant, registration);
            let ended = link.run().await;
            app.directory.services().runtimes.remove(id);
            wire = link.wire;
            ended
        }
        Err(ended) => ended,
    };
    match ended {
        Ended::Gone => {}
        Ended::Close(code, why) => {
            app.metrics.closed(code);
            wire.close(code, why, GOODBYE).await;
        }
        Ended::Stopping => {
            let (reason, after) = ("the gateway is stopping".to_owned(), app.spread().as_millis() as u64);
            wire.send(&GatewayToRuntime::Goaway { reason, after });
            app.metrics.closed(Code::GoingAway);
            wire.close(Code::GoingAway, "the gateway is stopping", GOODBYE).await;
        }
    }
    app.metrics.runtimes_closed.inc();
}

enum Ended {
    Gone,
    Close(Code, &'static str),
    Stopping,
}

struct Registration {
    name: String,
    capacity: u32,
    labels: Map<String, Value>,
}

/// Authentication, if it is needed, and registration, within the deadline.
async fn greet(app: &App, wire: &mut Wire, token: Option<String>) -> Result<(Grant, Registration), Ended> {
    let deadline = Instant::now() + app.config.times.auth_within;
    let mut token = token;
    loop {
        let open = app.auth.is_open();
        let frame = first_frame(app, wire, deadline).await?;
        match frame {
            RuntimeToGateway::Auth { token: given } => token = Some(given),
            RuntimeToGateway::Register { name, capacity, labels } => {
                let given = token.as_deref().unwrap_or_default();
                let grant = app.auth.authenticate(if open { "" } else { given }).map_err(|error| {
                    tracing::debug!(%error, "a runtime was refused");
                    Ended::Close(Code::AuthFailed, "the key is unknown")
                })?;
                if !grant.may(Scope::Publish) || grant.sessions.is_some() {
                    return Err(Ended::Close(Code::NotAllowed, "runtimes need a key with the scope `publish`"));
                }
                if name.is_empty() || name.len() > 128 {
                    return Err(Ended::Close(Code::UnreadableFrame, "a runtime's name has 1 to 128 bytes"));
                }
                return Ok((grant, Registration { name, capacity, labels }));
            }
            _ => return Err(Ended::Close(Code::AuthFailed, "the first frames are auth and register")),
        }
    }
}

async fn first_frame(app: &App, wire: &mut Wire, deadline: Instant) -> Result<RuntimeToGateway, Ended> {
    loop {
        let turn = timeout_at(deadline, wire.turn()).await;
        let text = match turn.map_err(|_| Ended::Close(Code::AuthTimeout, "no register frame came in time"))? {
            Turn::Received(Message::Text(text)) => text,
            Turn::Received(Message::Ping(_) | Message::Pong(_)) | Turn::Flushed => continue,
            Turn::Received(_) => return Err(Ended::Close(Code::UnreadableFrame, "the first frames are JSON text")),
            Turn::Broken(error) => {
                return Err(close_code(&error).map_or(Ended::Gone, |(code, why)| Ended::Close(code, why)));
            }
            Turn::Closed(_) => return Err(Ended::Gone),
        };
        if text.len() > app.config.limits.auth_frame_bytes {
            return Err(Ended::Close(Code::FrameTooLarge, "frames before registration are smaller"));
        }
        let frame = serde_json::from_str(&text);
        return frame.map_err(|_| Ended::Close(Code::UnreadableFrame, "the frame could not be read"));
    }
}

struct RuntimeConnection {
    app: App,
    wire: Wire,
    id: ConnectionId,
    grant: Grant,
    entry: Arc<RuntimeEntry>,
    outlet: Arc<Outlet>,
    last_ping: u64,
    next_ping: Instant,
    last_heard: Instant,
    unreadable: u32,
    gathered: Option<Gathered>,
}

/// What has come in one frame, or in several that follow one another.
struct Gathered {
    session: Session,
    events: Vec<Published>,
    unreadable: Option<Unreadable>,
    room: OwnedSemaphorePermit,
}

impl Gathered {
    /// Takes over what goes on right where this ends, if all of it is only to be looked at: whether it came in one frame
    /// or in two makes no difference then. Gives back anything else.
    fn take_over(&mut self, next: Self, most: usize) -> Option<Self> {
        let continues = self.unreadable.is_none()
            && next.unreadable.is_none()
            && self.session.id == next.session.id
            && self.events.len() + next.events.len() <= most;
        let last = self.events.last().filter(|event| event.data.is_text()).map(|event| event.n);
        let follows = last.is_some_and(|last| {
            next.events.iter().zip(last + 1..).all(|(event, n)| event.n == n && event.data.is_text())
        });
        if !continues || !follows {
            return Some(next);
        }
        self.events.extend(next.events);
        self.room.merge(next.room);
        None
    }
}

/// The events of a batch as they came: each is parsed and checked by itself.
#[derive(Deserialize)]
struct EventsFrame<'a> {
    /// It is known when this is read; it must not be there twice.
    #[serde(rename = "type", borrow)]
    _kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    session: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Tag<'a> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'a, str>,
}

impl RuntimeConnection {
    fn new(app: App, mut wire: Wire, id: ConnectionId, grant: Grant, registration: Registration) -> Self {
        let outlet = Arc::new(Outlet::default());
        let serves = (Arc::clone(&grant.project), grant.pool);
        let Registration { name, capacity, labels } = registration;
        let entry = RuntimeEntry::new(id, name, serves, capacity, labels, Arc::clone(&outlet));
        wire.send(&GatewayToRuntime::Registered { runtime: id.to_string() });
        app.directory.services().runtimes.register(Arc::clone(&entry));
        let now = Instant::now();
        let next_ping = now + app.config.times.ping_every;
        tracing::info!(runtime = %entry.name, capacity = entry.capacity, "runtime registered");
        Self {
            app,
            wire,
            id,
            grant,
            entry,
            outlet,
            last_ping: 0,
            next_ping,
            last_heard: now,
            unreadable: 0,
            gathered: None,
        }
    }

    async fn run(&mut self) -> Ended {
        let stopping = self.app.stopping.clone();
        let timer = sleep_until(self.next_ping);
        tokio::pin!(timer);
        loop {
            self.fill();
            if timer.deadline() != self.next_ping {
                timer.as_mut().reset(self.next_ping);
            }
            let wants_more = self.wire.is_idle();
            let outlet = Arc::clone(&self.outlet);
            let turn = tokio::select! {
                biased;
                () = stopping.cancelled() => return Ended::Stopping,
                turn = self.wire.turn() => turn,
                () = outlet.wait(), if wants_more => {
                    // Who is about to run may have a word for this runtime too: all of them are one write.
                    tokio::task::yield_now().await;
                    continue;
                }
                () = timer.as_mut() => match self.on_time(Instant::now()) {
                    Ok(()) => continue,
                    Err(ended) => return ended,
                },
            };
            if let Err(ended) = self.take_in(turn).await {
                return ended;
            }
        }
    }

    /// Takes what has come, and what is there behind it: what is to be said to all of it goes out together.
    async fn take_in(&mut self, turn: Turn) -> Result<(), Ended> {
        let taken = self.take_what_is_there(turn).await;
        self.hand_over().await;
        taken
    }

    async fn take_what_is_there(&mut self, turn: Turn) -> Result<(), Ended> {
        let mut next = Some(turn);
        for more in (0..READ_AT_ONCE).rev() {
            match next.take() {
                None => break,
                Some(Turn::Flushed) => {}
                Some(Turn::Received(message)) => self.take_message(message).await?,
                Some(Turn::Closed(_)) => return Err(Ended::Gone),
                Some(Turn::Broken(error)) => {
                    return Err(close_code(&error).map_or(Ended::Gone, |(code, why)| Ended::Close(code, why)));
                }
            }
            // Where nothing is there, whoever waits asks again.
            if more > 0 {
                next = self.wire.turn().now_or_never();
            }
        }
        Ok(())
    }

    async fn take_message(&mut self, message: Message) -> Result<(), Ended> {
        self.last_heard = Instant::now();
        let done = match message {
            Message::Text(text) => self.receive(text.as_str()).await,
            Message::Binary(bytes) => {
                self.hand_over().await;
                self.receive_picture(bytes).await
            }
            _ => Ok(()),
        };
        if let Err(refusal) = done {
            self.refuse(None, refusal);
        }
        if self.unreadable >= 10 {
            return Err(Ended::Close(Code::UnreadableFrame, "too many frames could not be read"));
        }
        Ok(())
    }

    fn fill(&mut self) {
        let mut frames = Together::default();
        while self.wire.waiting() + frames.bytes() < FILL {
            match self.outlet.take() {
                Some(Outgoing::Frame(frame)) => frames.add(&frame),
                Some(Outgoing::Session(id)) => {
                    let session = self.app.directory.get_any(id);
                    let told = session.map(|session| session.link.take(self.id)).unwrap_or_default();
                    told.iter().for_each(|frame| frames.add(frame));
                }
                None => break,
            }
        }
        self.wire.send_together(frames);
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Ended> {
        let times = &self.app.config.times;
        if self.grant.is_expired(SystemTime::now()) {
            return Err(Ended::Close(Code::TokenExpired, "the token has expired"));
        }
        if self.outlet.has_overflowed()
            || self.wire.stalled_since().is_some_and(|since| now >= since + times.send_stall)
        {
            return Err(Ended::Close(Code::TooSlow, "nothing was read for too long"));
        }
        if now >= self.last_heard + times.ping_every * SILENT_PINGS {
            return Err(Ended::Close(Code::NoPong, "nothing was heard for too long"));
        }
        self.last_ping += 1;
        self.wire.send(&GatewayToRuntime::Ping { id: self.last_ping });
        self.next_ping = now + times.ping_every;
        Ok(())
    }

    fn refuse(&mut self, session: Option<String>, refusal: Refusal) {
        self.app.metrics.refused(refusal.code);
        if refusal.code == Code::BadFrame {
            self.unreadable += 1;
        }
        self.wire.send(&GatewayToRuntime::Error { reference: None, session, refusal });
    }

    /// A session that this runtime may have to do with; whether it holds it is its owner's word.
    fn session(&self, id: &str) -> Result<Session, Refusal> {
        let unknown = || Refusal::plain(Code::UnknownSession);
        let session = self.app.directory.get_any(id.parse().map_err(|()| unknown())?).ok_or_else(unknown)?;
        if self.grant.may_serve(&session.project) { Ok(session) } else { Err(unknown()) }
    }

    async fn receive(&mut self, text: &str) -> Result<(), Refusal> {
        // As most frames begin: a member of that name that follows would be refused.
        if text.starts_with(r#"{"type":"events","#) {
            return self.events(text).await;
        }
        let tag: Tag<'_> = serde_json::from_str(text).map_err(|error| super::unreadable(&error))?;
        if tag.kind == "events" {
            return self.events(text).await;
        }
        let frame = serde_json::from_str(text).map_err(|error| super::unreadable(&error))?;
        self.hand_over().await;
        self.serve(frame).await
    }

    async fn events(&mut self, text: &str) -> Result<(), Refusal> {
        let frame: EventsFrame<'_> = serde_json::from_str(text).map_err(|error| super::unreadable(&error))?;
        let session = self.session(&frame.session)?;
        let gathers = self.gathered.as_ref().is_some_and(|gathered| gathered.session.id == session.id);
        let room = if gathers { session.room_now(text.len()) } else { None };
        let room = match room {
            Some(room) => room,
            None => {
                self.hand_over().await;
                session.room(text.len()).await
            }
        };
        let (events, unreadable) = read_batch(&frame.events, &self.app);
        let batch = Gathered { session, events, unreadable, room };
        let most = self.app.config.limits.batch_events;
        let left = match &mut self.gathered {
            Some(gathered) => gathered.take_over(batch, most),
            None => Some(batch),
        };
        if let Some(batch) = left {
            self.hand_over().await;
            self.gathered = Some(batch);
        }
        Ok(())
    }

    /// Hands what was gathered to its owner. Everything that comes behind it waits for this.
    async fn hand_over(&mut self) {
        let Some(Gathered { session, events, unreadable, room }) = self.gathered.take() else { return };
        if let Err(refusal) = session.publish(self.id, events, unreadable, room).await {
            self.refuse(None, refusal);
        }
    }

    async fn receive_picture(&mut self, frame: Bytes) -> Result<(), Refusal> {
        let (header, from) = picture::split(&frame).map_err(|error| Refusal::new(Code::BadFrame, error.to_string()))?;
        let text = std::str::from_utf8(header).map_err(|_| Refusal::plain(Code::NotUtf8))?;
        #[derive(Deserialize)]
        struct Named {
            session: String,
        }
        let named: Named = serde_json::from_str(text).map_err(|error| super::unreadable(&error))?;
        let session = self.session(&named.session)?;
        let room = session.room(frame.len()).await;
        let (events, unreadable) = match ingest::read_picture(text, frame.slice(from..), &ingest_limits(&self.app)) {
            Ok(event) => (vec![event], None),
            Err(unreadable) => (Vec::new(), Some(unreadable)),
        };
        session.publish(self.id, events, unreadable, room).await
    }

    async fn serve(&mut self, frame: RuntimeToGateway) -> Result<(), Refusal> {
        match frame {
            RuntimeToGateway::Claim(reclaim) => self.claim(reclaim).await,
            RuntimeToGateway::Decline { session, reason } => self.session(&session)?.decline(self.id, reason).await,
            RuntimeToGateway::Open { reference, session } => self.open(reference, *session).await,
            RuntimeToGateway::NLost { session, from } => self.session(&session)?.numbers_lost(self.id, from).await,
            RuntimeToGateway::CommandsDone { session, commands } => {
                self.session(&session)?.commands_done(self.id, commands).await
            }
            RuntimeToGateway::Secrets { session, secrets, values } => {
                self.session(&session)?.announce(self.id, secrets, values).await
            }
            RuntimeToGateway::End { session } => self.session(&session)?.end_by_runtime(self.id).await,
            RuntimeToGateway::Pong { .. } | RuntimeToGateway::Auth { .. } => Ok(()),
            RuntimeToGateway::Register { .. } => Err(Refusal::new(Code::Invalid, "this runtime is registered")),
            RuntimeToGateway::Events { .. } => unreachable!("read before, event by event"),
            RuntimeToGateway::Unknown => Err(Refusal::new(Code::Invalid, "this version does not know that frame type")),
        }
    }

    async fn claim(&mut self, reclaim: Reclaim) -> Result<(), Refusal> {
        let session = match self.session(&reclaim.session) {
            Ok(session) => session,
            Err(refusal) => {
                let session = reclaim.session;
                self.wire.send(&GatewayToRuntime::Released { session, refusal });
                return Ok(());
            }
        };
        session.claim_session(reclaim.claim, reclaim.commands, self.entry.seat_anyway()).await
    }

    async fn open(&mut self, reference: String, asked: OpenSession) -> Result<(), Refusal> {
        let origin = Origin::Runtime(self.entry.seat_anyway());
        let (project, by) = (Arc::clone(&self.grant.project), self.entry.name.clone());
        match self.app.directory.create(NewSession { project, asked, origin, by }).await {
            Ok(created) => {
                let session = created.session.id.to_string();
                let claim = created.claim.expect("a runtime's own session has a claim");
                self.wire.send(&GatewayToRuntime::Opened { reference, session, claim });
            }
            Err(refusal) => {
                self.app.metrics.refused(refusal.code);
                self.wire.send(&GatewayToRuntime::Error { reference: Some(reference), session: None, refusal });
            }
        }
        Ok(())
    }
}

fn ingest_limits(app: &App) -> IngestLimits {
    let limits = &app.config.limits;
    IngestLimits { payload: limits.event_payload_bytes, depth: 32, picture: limits.runtime_frame_bytes }
}

/// Reads a batch up to the first event that cannot be read.
fn read_batch(raw: &[&RawValue], app: &App) -> (Vec<Published>, Option<Unreadable>) {
    let (limits, most) = (ingest_limits(app), app.config.limits.batch_events);
    let mut events = Vec::with_capacity(raw.len().min(most));
    for text in raw.iter().take(most) {
        match ingest::read(text.get(), &limits) {
            Ok(event) => events.push(event),
            Err(unreadable) => return (events, Some(unreadable)),
        }
    }
    let too_many = raw.len() > most;
    let refusal = || Refusal::plain(Code::TooLarge).with_details(json!({ "limit": most, "events": raw.len() }));
    (events, too_many.then(|| Unreadable::new(None, refusal())))
}

// --- the HTTP pair ---------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
struct EventsBody<'a> {
    #[serde(borrow)]
    events: Vec<&'a RawValue>,
}

/// The claim token of a request: header `Onlooker-Claim`.
fn claim_token(headers: &HeaderMap) -> Result<String, Refusal> {
    let claim = headers.get("onlooker-claim").and_then(|claim| claim.to_str().ok());
    let message = "send the session's claim token in the header `Onlooker-Claim`";
    claim.map(str::to_owned).ok_or_else(|| Refusal::new(Code::WrongClaim, message))
}

fn served(app: &App, grant: &Grant, id: &str) -> Result<Session, Refusal> {
    allowed(grant, Scope::Publish)?;
    let unknown = || Refusal::plain(Code::UnknownSession);
    let session = app.directory.get_any(id.parse().map_err(|()| unknown())?).ok_or_else(unknown)?;
    if grant.may_serve(&session.project) { Ok(session) } else { Err(unknown()) }
}

pub async fn publish_over_http(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, axum::extract::rejection::BytesRejection>,
) -> Result<Json<EventsAccepted>, Refused> {
    let session = served(&app, &caller.0, &id)?;
    let claim = claim_token(&headers)?;
    let body = body.map_err(|_| Refusal::plain(Code::TooLarge))?;
    let text = std::str::from_utf8(&body).map_err(|_| Refusal::plain(Code::NotUtf8))?;
    let batch: EventsBody<'_> = serde_json::from_str(text).map_err(|error| super::unreadable(&error))?;
    let room = session.room(text.len()).await;
    let (events, unreadable) = read_batch(&batch.events, &app);
    Ok(Json(session.publish_and_wait(claim, events, unreadable, room).await?))
}

#[derive(Deserialize)]
pub struct Announcement {
    secrets: Vec<SecretEntry>,
    /// Values of secret fields that the runtime has taken.
    #[serde(default)]
    values: Vec<String>,
}

/// The session's secrets once more, after the gateway lost them.
pub async fn announce_over_http(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    Body(announced): Body<Announcement>,
) -> Result<Json<Value>, Refused> {
    let session = served(&app, &caller.0, &id)?;
    let claim = claim_token(&headers)?;
    session.http_announce(claim, announced.secrets, announced.values).await?;
    Ok(Json(json!({})))
}

#[derive(Deserialize)]
pub struct CommandsQuery {
    #[serde(default)]
    since: u64,
    /// Seconds.
    #[serde(default)]
    wait: u64,
}

/// Commands after `since`; asking is also the word that everything up to it is applied.
pub async fn commands_over_http(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<CommandsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let session = served(&app, &caller.0, &id)?;
    let claim = claim_token(&headers)?;
    session.http_contact(claim, query.since).await?;
    let mut changes = session.link.follow();
    let wait = Duration::from_secs(query.wait).min(WAIT_MAX);
    let waiting = async {
        loop {
            let commands = session.link.since(query.since);
            if !commands.is_empty() || changes.changed().await.is_err() {
                return commands;
            }
        }
    };
    let commands = tokio::select! {
        commands = timeout(wait, waiting) => commands.unwrap_or_default(),
        () = app.stopping.cancelled() => Vec::new(),
    };
    Ok(Json(CommandsPage { commands }).into_response())
}

/// The answer to a session that an HTTP runtime opened.
pub fn opened_over_http(session: &Session, claim: &str) -> Map<String, Value> {
    Map::from_iter([("session".to_owned(), json!(session.id.as_str())), ("claim".to_owned(), json!(claim))])
}
