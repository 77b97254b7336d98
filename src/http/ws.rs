//! The native WebSocket of subscribers: translates frames to requests and steps to frames.
//!
//! One task a connection. It asks its subscriptions for steps only while little waits to be sent, so a slow reader
//! finds its events in the log later instead of in a queue here.

mod connection;
mod followings;
mod outlet;
mod requests;

use std::{
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{extract::State, http::HeaderMap, response::Response};
use connection::{Connection, Ended, Event};
use onlooker_protocol::{
    Code, SUBPROTOCOL, VERSION,
    subscriber::{AuthNeed, GatewayToSubscriber, SubscriberLimits, SubscriberToGateway},
};
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::{
    App, bearer,
    upgrade::Upgrade,
    wire::{self, Turn, Wire, close_code},
};
use crate::{auth::Grant, config::key::Scope, ids::ConnectionId, watch::Leave};

/// Bytes that are read at once.
const READ: u32 = 4 * 1024;
/// What idle connections keep for their next frame: most are pongs.
const ROOM: u32 = 32;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

pub async fn upgrade(State(app): State<App>, headers: HeaderMap, upgrade: Upgrade) -> Response {
    let token = bearer(&headers).map(str::to_owned);
    let limits = wire::Limits { message: wire::limit(app.config.limits.client_frame_bytes), read: READ, room: ROOM };
    let tasks = app.tasks.clone();
    upgrade.protocol(SUBPROTOCOL).begin(&tasks, limits, move |wire| serve(app, wire, token))
}

async fn serve(app: App, wire: Wire, token: Option<String>) {
    app.metrics.subscribers_opened.inc();
    app.connections.fetch_add(1, Ordering::Relaxed);
    // A task of its own, so that the upgrade's larger future does not live as long as the connection. What it needs at
    // its beginning and at its end only is boxed: idle connections are many, and pay for what is in the task's future.
    let tasks = app.tasks.clone();
    let greeting = Box::pin(greet(app.clone(), wire, token));
    let handle = tasks.spawn(async move {
        if let Some(mut connection) = greeting.await {
            let ended = run(&mut connection).await;
            Box::pin(finish(connection, ended)).await;
        }
        app.connections.fetch_sub(1, Ordering::Relaxed);
        app.metrics.subscribers_closed.inc();
    });
    drop(handle);
}

/// Says hello and learns who it is. `None`: it was refused, or has left.
async fn greet(app: App, mut wire: Wire, token: Option<String>) -> Option<Box<Connection>> {
    let id = ConnectionId::random();
    wire.send(&hello(&app, id));
    let grant = match authenticate(&app, &mut wire, token).await {
        Ok(grant) => grant,
        Err(Refusing::Code(code, reason)) => {
            app.metrics.closed(code);
            wire.close(code, reason, GOODBYE).await;
            return None;
        }
        Err(Refusing::Gone) => return None,
    };
    wire.send(&GatewayToSubscriber::Ready {
        project: grant.project.to_string(),
        scopes: grant.scopes.iter().map(|scope| scope.name().to_owned()).collect(),
        who: grant.who.to_string(),
        at: crate::clock::now_text(),
    });
    Some(Box::new(Connection::new(app, wire, id, grant)))
}

/// What ends the greeting.
enum Refusing {
    Code(Code, &'static str),
    Gone,
}

fn hello(app: &App, id: ConnectionId) -> GatewayToSubscriber {
    let (limits, times) = (&app.config.limits, &app.config.times);
    GatewayToSubscriber::Hello {
        version: VERSION,
        connection: id.to_string(),
        auth: if app.auth.is_open() { AuthNeed::None } else { AuthNeed::Required },
        auth_within: times.auth_within.as_millis() as u64,
        ping_every: times.ping_every.as_millis() as u64,
        live_window: times.live_window.as_millis() as u64,
        limits: SubscriberLimits {
            frame: limits.client_frame_bytes as u64,
            subscriptions: limits.subscriptions_per_connection as u64,
        },
    }
}

/// Who it is: from the upgrade's header, from the first frame, or everybody in open mode.
async fn authenticate(app: &App, wire: &mut Wire, token: Option<String>) -> Result<Arc<Grant>, Refusing> {
    let token = match token {
        _ if app.auth.is_open() => String::new(),
        Some(token) => token,
        None => auth_frame(app, wire).await?,
    };
    let grant = app.auth.authenticate_shared(&token).map_err(|error| {
        tracing::debug!(%error, "a subscriber was refused");
        Refusing::Code(Code::AuthFailed, "the key or token is unknown or has expired")
    })?;
    if !grant.may(Scope::Watch) {
        return Err(Refusing::Code(Code::NotAllowed, "following needs the scope `watch`"));
    }
    Ok(grant)
}

async fn auth_frame(app: &App, wire: &mut Wire) -> Result<String, Refusing> {
    let deadline = Instant::now() + app.config.times.auth_within;
    loop {
        let turn = timeout_at(deadline, wire.turn()).await;
        let turn = turn.map_err(|_| Refusing::Code(Code::AuthTimeout, "no auth frame came in time"))?;
        let text = match turn {
            Turn::Flushed => continue,
            Turn::Received(Message::Text(text)) => text,
            Turn::Received(Message::Ping(_) | Message::Pong(_)) => continue,
            Turn::Received(_) => return Err(Refusing::Code(Code::UnreadableFrame, "the first frame is auth")),
            Turn::Broken(error) => {
                return Err(close_code(&error).map_or(Refusing::Gone, |(code, why)| Refusing::Code(code, why)));
            }
            Turn::Closed(_) => return Err(Refusing::Gone),
        };
        if text.len() > app.config.limits.auth_frame_bytes {
            return Err(Refusing::Code(Code::FrameTooLarge, "frames before authentication are smaller"));
        }
        return match serde_json::from_str(&text) {
            Ok(SubscriberToGateway::Auth { token }) => Ok(token),
            _ => Err(Refusing::Code(Code::AuthFailed, "the first frame is auth, with a token")),
        };
    }
}

/// Serves the connection until something ends it. Whatever is rare is boxed: idle connections are many, and pay for what
/// is in this future.
async fn run(connection: &mut Connection) -> Ended {
    loop {
        let done = if connection.has_to_fill() { Box::pin(connection.fill()).await } else { Ok(()) };
        if let Err(ended) = done {
            return ended;
        }
        let done = match poll_fn(|cx| connection.poll_event(cx)).await {
            Event::Stopping => return Ended::Stopping,
            Event::Called => Ok(()),
            Event::Time => connection.on_time(Instant::now()),
            Event::Turn(turn) => Box::pin(connection.take_turn(turn)).await,
        };
        if let Err(ended) = done {
            return ended;
        }
    }
}

async fn finish(mut connection: Box<Connection>, ended: Ended) {
    let app = connection.app.clone();
    // Only 1000 says that nobody comes back: a browser sends 1001 on every reload.
    let leave = if matches!(ended, Ended::ByPeer(Some(1000))) { Leave::Clean } else { Leave::Abnormal };
    connection.let_go(leave).await;
    let wire = connection.into_wire();
    match ended {
        Ended::ByPeer(_) | Ended::Lost => {}
        Ended::Close(code, why) => {
            app.metrics.closed(code);
            wire.close(code, why, GOODBYE).await;
        }
        Ended::Stopping => {
            let mut wire = wire;
            let after = app.spread().as_millis() as u64;
            let reason = "the gateway is stopping".to_owned();
            wire.send(&GatewayToSubscriber::Goaway { reason, after, resume: true });
            app.metrics.closed(Code::GoingAway);
            wire.close(Code::GoingAway, "the gateway is stopping", GOODBYE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<F: Future>(_: impl FnOnce(&'static mut Connection) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        // Each is held once by every idle connection with one subscription. What makes one larger is to be boxed, unless
        // every connection needs it.
        assert!(future_size(run) <= 96, "run {}", future_size(run));
        let sizes = [
            ("connection", size_of::<Connection>(), 400),
            ("subscription", size_of::<followings::Followed>(), 392),
            ("socket", size_of::<super::super::socket::Socket>(), 192),
        ];
        for (what, size, most) in sizes {
            assert!(size <= most, "{what}: {size} bytes");
        }
    }
}
