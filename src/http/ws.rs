//! The native WebSocket of subscribers: translates frames to requests and steps to frames.
//!
//! One task a connection. It asks its subscriptions for steps only while little waits to be sent, so a slow reader
//! finds its events in the log later instead of in a queue here.

mod connection;
mod requests;

use std::{sync::atomic::Ordering, time::Duration};

use axum::{
    extract::{State, WebSocketUpgrade, ws::Message},
    http::HeaderMap,
    response::Response,
};
use connection::{BoardFollowing, Connection, Ended};
use onlooker_protocol::{
    Code, SUBPROTOCOL, VERSION,
    subscriber::{AuthNeed, GatewayToSubscriber, SubscriberLimits, SubscriberToGateway},
};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{
    App, bearer,
    wire::{Turn, Wire, close_code},
};
use crate::{auth::Grant, config::key::Scope, ids::ConnectionId, watch::Leave};

/// Bytes that tungstenite reads at once: idle connections keep this buffer.
const READ_BUFFER: usize = 1024;
/// Frames up to this size together become one write.
const WRITE_BUFFER: usize = 4 * 1024;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

pub async fn upgrade(State(app): State<App>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let token = bearer(&headers).map(str::to_owned);
    let limits = &app.config.limits;
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(limits.send_queue_bytes + limits.picture_bytes)
        .max_frame_size(limits.client_frame_bytes)
        .max_message_size(limits.client_frame_bytes)
        .on_upgrade(move |socket| serve(app, Wire::new(socket), token))
}

async fn serve(app: App, wire: Wire, token: Option<String>) {
    app.metrics.subscribers_opened.inc();
    app.connections.fetch_add(1, Ordering::Relaxed);
    // A task of its own, so that the upgrade's larger future does not live as long as the connection.
    let tasks = app.tasks.clone();
    let handle = tasks.spawn(async move {
        let metrics = std::sync::Arc::clone(&app.metrics);
        let counted = app.clone();
        greet_and_run(app, wire, token).await;
        counted.connections.fetch_sub(1, Ordering::Relaxed);
        metrics.subscribers_closed.inc();
    });
    drop(handle);
}

async fn greet_and_run(app: App, mut wire: Wire, token: Option<String>) {
    let id = ConnectionId::random();
    wire.send(&hello(&app, id));
    let grant = match Box::pin(authenticate(&app, &mut wire, token)).await {
        Ok(grant) => grant,
        Err(Refusing::Code(code, reason)) => {
            app.metrics.closed(code);
            return wire.close(code, reason, GOODBYE).await;
        }
        Err(Refusing::Gone) => return,
    };
    wire.send(&GatewayToSubscriber::Ready {
        project: grant.project.to_string(),
        scopes: grant.scopes.iter().map(|scope| scope.name().to_owned()).collect(),
        who: grant.who.to_string(),
        at: crate::clock::now_text(),
    });
    let mut connection = Connection::new(app.clone(), wire, id, grant);
    let ended = run(&mut connection).await;
    finish(app, connection, ended).await;
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
async fn authenticate(app: &App, wire: &mut Wire, token: Option<String>) -> Result<Grant, Refusing> {
    let token = match token {
        _ if app.auth.is_open() => String::new(),
        Some(token) => token,
        None => auth_frame(app, wire).await?,
    };
    let grant = app.auth.authenticate(&token).map_err(|error| {
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

/// Serves the connection until something ends it.
async fn run(connection: &mut Connection) -> Ended {
    let app = connection.app.clone();
    let timer = sleep_until(connection.next_deadline());
    tokio::pin!(timer);
    loop {
        if let Err(ended) = connection.fill().await {
            return ended;
        }
        let deadline = connection.next_deadline();
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        let wants_more = connection.wants_more();
        let (wire, signal, board) = connection.parts();
        let turn = tokio::select! {
            biased;
            () = app.stopping.cancelled() => return Ended::Stopping,
            turn = wire.turn() => turn,
            () = signal.wait(), if wants_more => continue,
            () = BoardFollowing::changed(board), if wants_more => continue,
            () = timer.as_mut() => match connection.on_time(Instant::now()) {
                Ok(()) => continue,
                Err(ended) => return ended,
            },
        };
        match turn {
            Turn::Flushed => {}
            Turn::Closed(code) => return Ended::ByPeer(code),
            Turn::Broken(error) => {
                return close_code(&error).map_or(Ended::Lost, |(code, why)| Ended::Close(code, why));
            }
            Turn::Received(Message::Text(text)) => {
                if let Err(ended) = Box::pin(connection.receive(&text)).await {
                    return ended;
                }
            }
            Turn::Received(Message::Binary(_)) => {
                connection.unreadable("subscribers send text frames");
                if let Err(ended) = connection.check_patience() {
                    return ended;
                }
            }
            Turn::Received(_) => {}
        }
    }
}

async fn finish(app: App, mut connection: Connection, ended: Ended) {
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
