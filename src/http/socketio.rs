//! Socket.IO at `/socket.io/`, for existing WebRun clients: Engine.IO 4 and Socket.IO 5, long-polling, websocket and
//! the upgrade between them.
//!
//! One task an Engine.IO session, which follows one session of the core. Requests of long-polling hand over what they
//! bring and wait for what they are answered ([`desk`]). An Engine.IO pong comes from the client's own code: the answer
//! to a ping that was sent after an event proves that event.

mod connection;
mod desk;
mod forms;
mod hearing;
mod joining;
mod joins;
mod packet;
mod payload;
mod pings;
mod polling;
mod transport;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::{ConnectInfo, FromRequest as _, Request, State, ws::rejection::WebSocketUpgradeRejection},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use connection::{Connection, Door, serve};
use desk::Desks;
use forms::{Forms, Item};
use joins::FailedJoins;
use polling::Polling;
use serde_json::json;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use transport::Transport;

use super::{App, bearer, upgrade::Upgrade, wire};
use crate::{config::secret::Secret, engine::Record, ids::random_token};

/// Bytes that are read at once.
const READ: u32 = 4 * 1024;
/// What idle connections keep for their next frame: most are pongs of one byte.
const ROOM: u32 = 32;
/// The longest `t` that is remembered, in bytes.
const T: usize = 64;

/// What all Socket.IO connections share.
#[derive(Default)]
pub struct SocketIo {
    desks: Desks,
    forms: Forms,
    failed_joins: FailedJoins,
}

/// What Engine.IO refuses, with its own numbers and texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    UnknownTransport,
    UnknownSid,
    BadHandshakeMethod,
    BadRequest,
    UnsupportedVersion,
    TooLarge,
    /// All places are taken.
    Full,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::UnknownTransport => (StatusCode::BAD_REQUEST, 0, "Transport unknown"),
            Self::UnknownSid => (StatusCode::BAD_REQUEST, 1, "Session ID unknown"),
            Self::BadHandshakeMethod => (StatusCode::BAD_REQUEST, 2, "Bad handshake method"),
            Self::BadRequest => (StatusCode::BAD_REQUEST, 3, "Bad request"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, 3, "Bad request"),
            Self::Full => (StatusCode::SERVICE_UNAVAILABLE, 4, "Forbidden"),
            Self::UnsupportedVersion => (StatusCode::BAD_REQUEST, 5, "Unsupported protocol version"),
        };
        (status, Json(json!({ "code": code, "message": message }))).into_response()
    }
}

/// What a request says after `?`.
struct Asked {
    websocket: bool,
    sid: Option<String>,
    t: Option<Box<str>>,
}

impl Asked {
    fn read(uri: &Uri) -> Result<Self, Refused> {
        let (mut version, mut transport, mut sid, mut t) = (None, None, None, None);
        for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let place = match &*name {
                "EIO" => &mut version,
                "transport" => &mut transport,
                "sid" => &mut sid,
                "t" => &mut t,
                _ => continue,
            };
            place.get_or_insert(value.into_owned());
        }
        let websocket = match transport.as_deref() {
            Some("websocket") => true,
            Some("polling") => false,
            _ => return Err(Refused::UnknownTransport),
        };
        // Asked for at the handshake only, as the reference does.
        if sid.is_none() && version.as_deref() != Some("4") {
            return Err(Refused::UnsupportedVersion);
        }
        let t = t.filter(|t| !t.is_empty() && t.len() <= T).map(String::into_boxed_str);
        Ok(Self { websocket, sid, t })
    }
}

/// Every request of the surface.
pub async fn handle(
    State(app): State<App>,
    upgrade: Result<Upgrade, WebSocketUpgradeRejection>,
    request: Request,
) -> Response {
    let asked = match Asked::read(request.uri()) {
        Ok(asked) => asked,
        Err(refused) => return refused.into_response(),
    };
    let answered = match (asked.websocket, &asked.sid) {
        (true, _) => match upgrade {
            Ok(upgrade) => over_websocket(app, &asked, upgrade, &request),
            Err(_) if asked.sid.is_none() && request.method() != Method::GET => Err(Refused::BadHandshakeMethod),
            Err(_) => Err(Refused::BadRequest),
        },
        (false, None) => handshake(app, &request),
        (false, Some(sid)) => match *request.method() {
            Method::GET => poll(&app, sid, asked.t).await,
            Method::POST => post(&app, sid, request).await,
            _ => Err(Refused::BadRequest),
        },
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// What clients get of one record, made anew; `None` for what they have no words for. Those who follow a session share
/// it, so that connections never ask here.
pub fn encoded(record: &Record) -> Option<Utf8Bytes> {
    forms::encode(record).text
}

fn text(body: impl Into<Body>) -> Response {
    let kind = HeaderValue::from_static("text/plain; charset=UTF-8");
    let store = HeaderValue::from_static("no-store");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, store)], body.into()).into_response()
}

fn opening(app: &App, sid: &str, upgrades: &[&str]) -> String {
    let times = &app.config.times;
    let milliseconds = |time: std::time::Duration| time.as_millis() as u64;
    let heartbeat = (milliseconds(times.ping_every), milliseconds(times.live_window));
    packet::open(sid, upgrades, heartbeat, app.config.limits.client_frame_bytes)
}

fn door(app: &App, headers: &HeaderMap, request: &Request) -> Door {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(peer)| peer.ip());
    let address = joins::client_address(peer, headers, &app.config.webrun.trusted_proxies);
    Door { address, key: bearer(headers).map(Secret::new) }
}

/// Begins a session by polling.
fn handshake(app: App, request: &Request) -> Result<Response, Refused> {
    if request.method() != Method::GET {
        return Err(Refused::BadHandshakeMethod);
    }
    if app.stopping.is_cancelled() {
        return Err(Refused::Full);
    }
    let (place, asked) = app.socketio.desks.begin(app.config.limits.connections).ok_or(Refused::Full)?;
    let opening = opening(&app, &place.sid, &["websocket"]);
    let door = door(&app, request.headers(), request);
    let transport = Transport::polling(Polling::new(place, asked));
    let tasks = app.tasks.clone();
    tasks.spawn(serve(Box::new(Connection::new(app, transport, door))));
    Ok(text(opening))
}

async fn poll(app: &App, sid: &str, t: Option<Box<str>>) -> Result<Response, Refused> {
    let desk = app.socketio.desks.get(sid).ok_or(Refused::UnknownSid)?;
    desk.poll(t).await.map(text).ok_or(Refused::BadRequest)
}

async fn post(app: &App, sid: &str, request: Request) -> Result<Response, Refused> {
    let desk = app.socketio.desks.get(sid).ok_or(Refused::UnknownSid)?;
    let Some(_posting) = desk.begin_post() else {
        desk.misused().await;
        return Err(Refused::BadRequest);
    };
    let body = match Bytes::from_request(request, app).await {
        Ok(body) => body,
        Err(rejection) => {
            desk.misused().await;
            let too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
            return Err(if too_large { Refused::TooLarge } else { Refused::BadRequest });
        }
    };
    if desk.post(body).await { Ok(text("ok")) } else { Err(Refused::BadRequest) }
}

/// A websocket: a session of its own, or the upgrade of one that polls.
fn over_websocket(app: App, asked: &Asked, upgrade: Upgrade, request: &Request) -> Result<Response, Refused> {
    let limits = wire::Limits { message: wire::limit(app.config.limits.client_frame_bytes), read: READ, room: ROOM };
    let tasks = app.tasks.clone();
    if let Some(sid) = &asked.sid {
        let desk = app.socketio.desks.get(sid).ok_or(Refused::UnknownSid)?;
        return Ok(upgrade.begin(&tasks, limits, async move |wire| desk.upgrade(wire).await));
    }
    let door = door(&app, request.headers(), request);
    let response = upgrade.begin(&tasks, limits, async move |wire| {
        let mut transport = Transport::websocket(wire);
        transport.queue(Item::Text(opening(&app, &random_token(), &[]).into()));
        // A task of its own, so that the upgrade's larger future does not live as long as the connection.
        let tasks = app.tasks.clone();
        tasks.spawn(serve(Box::new(Connection::new(app, transport, door))));
    });
    Ok(response)
}
