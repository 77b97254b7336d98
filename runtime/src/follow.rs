//! A subscriber on `/v1/ws` that reconnects and resumes by itself.
//!
//! There is no task behind it: frames are read, pings answered and connections made anew inside [`Follow::next`]. So
//! a pong is sent only after the caller has taken every frame before the ping, and proves what the gateway takes it
//! for; a program that no longer calls `next` no longer counts as live. A reader resumes after the last frame that
//! `next` returned, so that it gets every event once, or a `gap` frame.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use onlooker_protocol::{
    Position, SUBPROTOCOL, VERSION,
    code::ComeBack,
    event::Since,
    picture::{self, ShownPicture},
    subscriber::{AuthNeed, GatewayToSubscriber, Subscribe, SubscriberToGateway},
};
use serde_json::Value;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tracing::{debug, warn};
use url::Url;

use crate::{
    backoff::Backoff,
    socket::{self, Socket, SocketError},
};

pub use crate::socket::SocketError as FollowError;

/// Frames that wait for a connection or for room in it.
const OUTGOING_MAX: usize = 256;
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// What a subscriber gets. Pings and hellos are answered here and not shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Text(GatewayToSubscriber),
    Picture(ShownPicture, Bytes),
}

/// A connection to `/v1/ws` and what it follows. Dropped, it closes without a word; see [`Follow::close`].
pub struct Follow {
    url: Url,
    token: Option<String>,
    subscriptions: Vec<Subscription>,
    outgoing: VecDeque<SubscriberToGateway>,
    link: Link,
    backoff: Backoff,
    /// A pong for this ping goes out with the next call of `next`.
    pong: Option<u64>,
    goaway_until: Option<Instant>,
    error: Option<SocketError>,
}

struct Subscription {
    /// `since` is kept at the last position shown.
    ask: Subscribe,
    /// The next snapshot is the new base: what was before it is gone or was not asked for.
    rebase: bool,
}

enum Link {
    Down { until: Instant },
    Up { socket: Box<Socket>, since: Instant, heard: Instant, silence_max: Duration },
    Over,
}

/// The frame was not taken, because too many wait or because there will be no connection any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame was not taken: the gateway is away or does not read")]
pub struct NotSent;

impl Follow {
    /// Connects once, so that a wrong address or key is an error here and not a retry.
    ///
    /// # Errors
    /// When the gateway cannot be reached, asks for a key that is not given, or speaks another version.
    pub async fn connect(gateway: &Url, token: Option<String>) -> Result<Self, FollowError> {
        let url = socket::address(gateway, "/v1/ws")?;
        let mut follow = Self {
            url,
            token,
            subscriptions: Vec::new(),
            outgoing: VecDeque::new(),
            link: Link::Down { until: Instant::now() },
            backoff: Backoff::new(),
            pong: None,
            goaway_until: None,
            error: None,
        };
        follow.link = greet(&follow.url, follow.token.as_deref()).await?;
        Ok(follow)
    }

    /// Follows a session or the project, now and after every reconnect, until `unsubscribe` or `unsubscribed`.
    ///
    /// # Errors
    /// When too many frames wait to be sent.
    pub fn subscribe(&mut self, ask: Subscribe) -> Result<(), NotSent> {
        // While the link is down the subscription goes out with all others once it is up.
        if let Link::Up { .. } = self.link {
            self.send(SubscriberToGateway::Subscribe(ask.clone()))?;
        }
        let rebase = ask.since == Since::Latest;
        self.subscriptions.push(Subscription { ask, rebase });
        Ok(())
    }

    /// Queues a frame; it goes out with the next call of [`Self::next`]. A frame that waits while the connection is
    /// lost goes out on the next one: one that was sent may be lost with the connection, so send it again when its
    /// `ok` does not come.
    ///
    /// # Errors
    /// When too many frames wait, or the end has come.
    pub fn send(&mut self, frame: SubscriberToGateway) -> Result<(), NotSent> {
        if matches!(self.link, Link::Over) || self.outgoing.len() >= OUTGOING_MAX {
            return Err(NotSent);
        }
        if let SubscriberToGateway::Unsubscribe { session, project } = &frame {
            self.forget(session.as_deref(), *project);
        }
        self.outgoing.push_back(frame);
        Ok(())
    }

    /// The next frame, or `None` when no further connection can help; [`Self::error`] then says why. Cancel safe.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match &self.link {
                Link::Over => return None,
                Link::Down { until } => {
                    sleep_until(*until).await;
                    self.reconnect().await;
                }
                Link::Up { .. } => match self.exchange().await {
                    Ok(Some(frame)) => return Some(frame),
                    Ok(None) => {}
                    Err(error) => self.lost(error),
                },
            }
        }
    }

    /// Why there is no further frame.
    pub fn error(&self) -> Option<&FollowError> {
        self.error.as_ref()
    }

    /// Sends what waits, at most a second long, and closes with a word: the gateway keeps no grace for who leaves so.
    pub async fn close(mut self) {
        let farewell = async {
            if self.flush().await.is_ok()
                && let Link::Up { socket, .. } = &mut self.link
            {
                let frame = CloseFrame { code: CloseCode::Normal, reason: Default::default() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                while let Some(Ok(_)) = socket.next().await {}
            }
        };
        let _ = timeout(Duration::from_secs(1), farewell).await;
    }

    /// Sends what waits, then reads one frame. `None` is a frame that is not shown.
    async fn exchange(&mut self) -> Result<Option<Frame>, SocketError> {
        self.flush().await?;
        let Link::Up { socket, heard, silence_max, .. } = &mut self.link else { return Ok(None) };
        let message = timeout_at(*heard + *silence_max, socket.next()).await;
        let message = message.map_err(|_| SocketError::lost("the gateway is silent"))?;
        *heard = Instant::now();
        match message {
            Some(Ok(Message::Text(text))) => {
                let unreadable = |_| SocketError::lost("a frame of the gateway cannot be read");
                Ok(self.take(serde_json::from_str(&text).map_err(unreadable)?))
            }
            Some(Ok(Message::Binary(bytes))) => {
                let (header, end) = shown(&bytes)?;
                Ok(Some(Frame::Picture(header, bytes.slice(end..))))
            }
            Some(Ok(Message::Close(frame))) => Err(SocketError::of_close(frame.as_ref())),
            Some(Ok(_)) => Ok(None),
            Some(Err(error)) => Err(SocketError::lost(error.to_string())),
            None => Err(SocketError::of_close(None)),
        }
    }

    /// A frame leaves the queue only when the socket has room for it, so that none is lost when this is cancelled.
    async fn flush(&mut self) -> Result<(), SocketError> {
        let Link::Up { socket, .. } = &mut self.link else { return Ok(()) };
        let lost = |error: tokio_tungstenite::tungstenite::Error| SocketError::lost(error.to_string());
        loop {
            let waits = self.pong.is_some() || !self.outgoing.is_empty();
            if !waits {
                return socket.flush().await.map_err(lost);
            }
            futures::future::poll_fn(|cx| socket.poll_ready_unpin(cx)).await.map_err(lost)?;
            let pong = self.pong.take().map(|id| SubscriberToGateway::Pong { id });
            let frame = pong.or_else(|| self.outgoing.pop_front()).expect("something waits");
            socket.start_send_unpin(socket::text(&frame)).map_err(lost)?;
        }
    }

    async fn reconnect(&mut self) {
        match greet(&self.url, self.token.as_deref()).await {
            Ok(link) => {
                debug!(gateway = %socket::shown(&self.url), "connected again");
                self.link = link;
                let asks = self.subscriptions.iter().map(|s| SubscriberToGateway::Subscribe(s.ask.clone()));
                // Before what waits: an answer or a command may speak of a followed session.
                let asks: VecDeque<_> = asks.chain(self.outgoing.drain(..)).collect();
                self.outgoing = asks;
            }
            Err(error) => self.lost(error),
        }
    }

    fn lost(&mut self, error: SocketError) {
        self.pong = None;
        // They go out again with the next connection, each with its newest position.
        self.outgoing.retain(|frame| !matches!(frame, SubscriberToGateway::Subscribe(_)));
        if error.come_back() == ComeBack::Never {
            self.error = Some(error);
            self.link = Link::Over;
            return;
        }
        let began = match self.link {
            Link::Up { since, .. } => since,
            Link::Down { .. } | Link::Over => Instant::now(),
        };
        let goaway = self.goaway_until.take().map_or(Duration::ZERO, |t| t.saturating_duration_since(Instant::now()));
        let wait = self.backoff.after_loss(began, error.come_back(), goaway);
        warn!(%error, wait_ms = wait.as_millis(), "not connected to the gateway");
        self.link = Link::Down { until: Instant::now() + wait };
    }

    /// Notes what a frame says of positions, and answers what needs no caller.
    fn take(&mut self, frame: GatewayToSubscriber) -> Option<Frame> {
        match &frame {
            GatewayToSubscriber::Hello { .. } | GatewayToSubscriber::Unknown => return None,
            GatewayToSubscriber::Ping { id, positions } => {
                self.pong = Some(*id);
                for (session, position) in positions {
                    self.resume_after(session, *position);
                }
                return None;
            }
            GatewayToSubscriber::Gap { session, .. } => {
                self.of(session, |subscription| subscription.rebase = true);
            }
            GatewayToSubscriber::Snapshot { session, position, .. } => {
                self.of(session, |subscription| {
                    if std::mem::take(&mut subscription.rebase) {
                        subscription.ask.since = Since::After(*position);
                    }
                });
            }
            GatewayToSubscriber::Replay { session, events, .. } => {
                if let Some(position) = events.last().and_then(position_of) {
                    self.resume_after(session, position);
                }
            }
            GatewayToSubscriber::Live { session, position } => self.resume_after(session, *position),
            GatewayToSubscriber::Event(event) => self.resume_after(&event.session, event.position),
            GatewayToSubscriber::Unsubscribed { session, .. } => self.forget(session.as_deref(), session.is_none()),
            GatewayToSubscriber::Goaway { after, .. } => {
                self.goaway_until = Some(Instant::now() + Duration::from_millis(*after));
            }
            _ => {}
        }
        Some(Frame::Text(frame))
    }

    fn resume_after(&mut self, session: &str, position: Position) {
        self.of(session, |subscription| subscription.ask.since = Since::After(position));
    }

    fn of(&mut self, session: &str, act: impl FnOnce(&mut Subscription)) {
        if let Some(subscription) = self.subscriptions.iter_mut().find(|s| s.ask.session.as_deref() == Some(session)) {
            act(subscription);
        }
    }

    fn forget(&mut self, session: Option<&str>, project: bool) {
        self.subscriptions.retain(|s| if project { !s.ask.project } else { s.ask.session.as_deref() != session });
    }
}

/// Opens a connection, reads the hello and authenticates.
async fn greet(url: &Url, token: Option<&str>) -> Result<Link, SocketError> {
    let mut socket = socket::connect(url, Some(SUBPROTOCOL)).await?;
    let hello = loop {
        let message = timeout(HELLO_WITHIN, socket.next()).await;
        match message.map_err(|_| SocketError::lost("the gateway did not say hello"))? {
            Some(Ok(Message::Text(text))) => break serde_json::from_str(&text).ok(),
            Some(Ok(Message::Close(frame))) => return Err(SocketError::of_close(frame.as_ref())),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(SocketError::lost(error.to_string())),
            None => return Err(SocketError::of_close(None)),
        }
    };
    let Some(GatewayToSubscriber::Hello { version, auth, ping_every, .. }) = hello else {
        return Err(SocketError::lost("the gateway's first frame is not hello"));
    };
    if version != VERSION {
        return Err(SocketError::Version { theirs: version, ours: VERSION });
    }
    if auth == AuthNeed::Required {
        let token = token.ok_or(SocketError::KeyNeeded)?.to_owned();
        let frame = socket::text(&SubscriberToGateway::Auth { token });
        socket.send(frame).await.map_err(|error| SocketError::lost(error.to_string()))?;
    }
    let silence_max = Duration::from_millis(ping_every.max(1_000)) * 3;
    let now = Instant::now();
    Ok(Link::Up { socket: Box::new(socket), since: now, heard: now, silence_max })
}

fn shown(bytes: &Bytes) -> Result<(ShownPicture, usize), SocketError> {
    let unreadable = || SocketError::lost("a picture of the gateway cannot be read");
    let (header, end) = picture::split(bytes).map_err(|_| unreadable())?;
    Ok((serde_json::from_slice(header).map_err(|_| unreadable())?, end))
}

fn position_of(event: &Value) -> Option<Position> {
    event.get("position")?.as_str()?.parse().ok()
}
