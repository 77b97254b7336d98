//! One Engine.IO session: its transport, its heartbeat, and what it has joined.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use onlooker_protocol::code::Code;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    super::App,
    forms::Item,
    hearing::Partial,
    joining::Joined,
    packet::{CLOSE, DISCONNECT, EnginePacket, NOOP, PING},
    payload::{self, Part},
    pings::Pings,
    transport::{Transport, Turn},
};
use crate::{config::secret::Secret, hub::Signal, ids::ConnectionId, subscriber::Step, watch::Leave};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The peer has said so, or is gone.
    ByPeer,
    /// It broke the protocol.
    Misused,
    TooLarge,
    /// It did not join in time.
    NotJoined,
    /// Nothing came from it for too long.
    Dead,
    /// It takes nothing.
    TooSlow,
    /// The session that it followed has ended, and had its time.
    SessionOver,
    /// The session's owner or the engine does not answer, or the grant has expired.
    Unavailable,
    Stopping,
}

/// From where it came and what it brought: what a join is judged by.
pub(super) struct Door {
    pub address: IpAddr,
    /// The key of the handshake's `Authorization` header.
    pub key: Option<Secret>,
}

pub(super) struct Connection {
    pub app: App,
    pub id: ConnectionId,
    pub transport: Transport,
    pub door: Box<Door>,
    pub signal: Arc<Signal>,
    pub joined: Option<Box<Joined>>,
    /// Until when it has to join, while it has not.
    pub join_until: Instant,
    pub partial: Option<Box<Partial>>,
    pings: Pings,
    last_heard: Instant,
}

impl Connection {
    pub(super) fn new(app: App, transport: Transport, door: Door) -> Self {
        let now = Instant::now();
        let times = &app.config.times;
        let (next, join_until) = (now + times.ping_every, now + times.auth_within);
        Self {
            id: ConnectionId::random(),
            transport,
            door: Box::new(door),
            signal: Arc::default(),
            joined: None,
            join_until,
            partial: None,
            pings: Pings::new(next),
            last_heard: now,
            app,
        }
    }

    pub(super) fn send(&mut self, text: impl Into<Utf8Bytes>) {
        self.transport.queue(Item::Text(text.into()));
    }

    /// Serves it until something ends it.
    pub(super) async fn run(&mut self) -> Ended {
        let app = self.app.clone();
        let timer = sleep_until(self.next_deadline());
        tokio::pin!(timer);
        loop {
            if let Err(ended) = Box::pin(self.fill()).await {
                return ended;
            }
            let deadline = self.next_deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let wants_more = self.joined.is_some() && self.transport.wants_more();
            let turn = tokio::select! {
                biased;
                () = app.stopping.cancelled() => return Ended::Stopping,
                turn = self.transport.turn() => turn,
                () = self.signal.wait(), if wants_more => continue,
                () = timer.as_mut() => match self.on_time(Instant::now()) {
                    Ok(()) => continue,
                    Err(ended) => return ended,
                },
            };
            if let Err(ended) = Box::pin(self.take(turn)).await {
                return ended;
            }
        }
    }

    async fn take(&mut self, turn: Turn) -> Result<(), Ended> {
        let now = Instant::now();
        if let Some(position) = self.transport.take_proof()
            && let Some(joined) = &mut self.joined
        {
            joined.following.acknowledged(position, now);
        }
        match turn {
            Turn::Moved => {}
            Turn::Gone => return Err(Ended::ByPeer),
            Turn::Misused => return Err(Ended::Misused),
            Turn::TooLarge => return Err(Ended::TooLarge),
            Turn::Text(text) => self.receive(Part::Text(&text)).await?,
            Turn::Binary(bytes) => self.receive(Part::Binary(bytes)).await?,
            Turn::Posted { body, reply } => {
                for part in payload::split(&body).map_err(|_| Ended::Misused)? {
                    let received = self.receive(part).await;
                    if received == Err(Ended::ByPeer) {
                        let _ = reply.send(());
                        return received;
                    }
                    received?;
                }
                // Its sender may have gone; its packets are taken all the same.
                let _ = reply.send(());
            }
        }
        // A peer that asks and never fetches the answers.
        if self.transport.unfetched() > self.app.config.limits.send_queue_bytes {
            return Err(Ended::TooSlow);
        }
        Ok(())
    }

    async fn receive(&mut self, part: Part<'_>) -> Result<(), Ended> {
        self.last_heard = Instant::now();
        let text = match part {
            Part::Text(text) => text,
            Part::Binary(bytes) => return self.hear_attachment(&bytes),
        };
        match EnginePacket::parse(text).map_err(|_| Ended::Misused)? {
            EnginePacket::Close => Err(Ended::ByPeer),
            EnginePacket::Noop => Ok(()),
            EnginePacket::Pong => {
                self.pong();
                Ok(())
            }
            EnginePacket::Message(message) => self.hear(message).await,
        }
    }

    /// Asks for what there is, until enough waits or nothing is left.
    async fn fill(&mut self) -> Result<(), Ended> {
        while self.transport.has_room() {
            let Some(joined) = &mut self.joined else { break };
            if self.signal.take().is_none() {
                break;
            }
            joined.set_outlet(&self.transport);
            match joined.following.step().await {
                Ok(Step::Ended) => return Err(Ended::SessionOver),
                Ok(step) => {
                    self.pings.owed |= joined.following.take_urgent();
                    self.pings.owed |= joined.tell(step, &self.app, &mut self.transport);
                }
                // Owners are the first to end.
                Err(_) if self.app.stopping.is_cancelled() => return Err(Ended::Stopping),
                Err(_) => return Err(Ended::Unavailable),
            }
        }
        self.ping();
        let joined = self.joined.as_ref().filter(|joined| joined.live);
        self.transport.deliver(|| joined.and_then(|joined| joined.following.position()));
        Ok(())
    }

    // --- pings ---------------------------------------------------------------------------------------------------

    /// Queues a ping if there is to be one: behind everything that it proves.
    fn ping(&mut self) {
        let (pings, transport) = (&mut self.pings, &mut self.transport);
        // While history is on its way, a pong would prove questions in it that were not sent yet.
        let proves = self.joined.as_ref().is_some_and(|joined| joined.live);
        let wanted = pings.due || pings.owed && proves;
        if !wanted || !transport.takes_pings() || !pings.has_room(|place| transport.has_left(place)) {
            return;
        }
        transport.queue(Item::Text(Utf8Bytes::from_static(PING)));
        let number = pings.queued(transport.place_of_last());
        (pings.due, pings.next) = (false, Instant::now() + self.app.config.times.ping_every);
        if let Some(joined) = self.joined.as_mut().filter(|_| proves) {
            pings.owed = false;
            joined.following.mark(number);
        }
    }

    fn pong(&mut self) {
        let answered = self.pings.answered(|place| self.transport.has_left(place));
        if let (Some(number), Some(joined)) = (answered, &mut self.joined) {
            joined.following.answered(number, Instant::now());
        }
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /// A client that is silent for so long is dead, as it was told at the beginning.
    fn patience(&self) -> Duration {
        self.app.config.times.ping_every + self.app.config.times.live_window
    }

    fn next_deadline(&self) -> Instant {
        let patience = self.patience();
        let joined = self.joined.as_deref();
        let expires = joined.and_then(|joined| joined.rights.expires).map(|expires| {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            Instant::now() + left
        });
        let deadlines = [
            Some(self.pings.next),
            Some(self.last_heard + patience),
            self.transport.stalled_since().map(|since| since + self.app.config.times.send_stall),
            self.transport.quiet_since().map(|since| since + patience),
            self.partial.as_ref().map(|partial| partial.until),
            self.joined.is_none().then_some(self.join_until),
            joined.filter(|_| self.transport.has_room()).and_then(|joined| joined.following.deadline()),
            expires,
        ];
        deadlines.into_iter().flatten().min().expect("a ping is always due")
    }

    fn on_time(&mut self, now: Instant) -> Result<(), Ended> {
        let patience = self.patience();
        let passed = |since: Option<Instant>, patience| since.is_some_and(|since| now >= since + patience);
        if now >= self.last_heard + patience || passed(self.transport.quiet_since(), patience) {
            return Err(Ended::Dead);
        }
        if passed(self.transport.stalled_since(), self.app.config.times.send_stall) {
            return Err(Ended::TooSlow);
        }
        if self.partial.as_ref().is_some_and(|partial| now >= partial.until) {
            return Err(Ended::Misused);
        }
        match &self.joined {
            None if now >= self.join_until => return Err(Ended::NotJoined),
            Some(joined) if joined.rights.expires.is_some_and(|at| at <= SystemTime::now()) => {
                return Err(Ended::Unavailable);
            }
            Some(joined) if joined.following.deadline().is_some_and(|at| now >= at) => joined.following.wake(),
            _ => {}
        }
        if now >= self.pings.next {
            self.pings.due = true;
            self.pings.next = now + self.app.config.times.ping_every;
        }
        Ok(())
    }

    // --- the end -------------------------------------------------------------------------------------------------

    /// Lets go of its session, saying how its watcher left.
    pub(super) async fn leave(&mut self, leave: Leave) {
        let Some(joined) = self.joined.take() else { return };
        let Joined { mut following, touched, .. } = *joined;
        let session = following.session().clone();
        if leave == Leave::Clean {
            following.set_leave(leave);
        }
        drop(following);
        if touched {
            session.connection_lost(self.id).await;
        }
    }

    /// Says goodbye and lets go. With a Socket.IO disconnect only where there is nothing to come back to: after that a
    /// client does not come back by itself.
    pub(super) async fn finish(mut self: Box<Self>, ended: Ended) {
        tracing::debug!(connection = %self.id, ?ended, "a Socket.IO connection ends");
        if let Some(code) = ended.code() {
            self.app.metrics.closed(code);
        }
        self.leave(Leave::Abnormal).await;
        let (wire, polling) = self.transport.into_parts();
        match (wire, polling) {
            (Some(mut wire), _) => {
                if ended == Ended::SessionOver {
                    wire.send_text_shared(Utf8Bytes::from_static(DISCONNECT));
                }
                if let Some((code, reason)) = ended.close() {
                    wire.close_with(code, reason, GOODBYE, ended != Ended::TooSlow).await;
                }
            }
            (None, Some(mut polling)) => polling.say_goodbye(match ended {
                Ended::ByPeer => NOOP,
                // Without a close behind it: that would be heard first.
                Ended::SessionOver => DISCONNECT,
                _ => CLOSE,
            }),
            (None, None) => {}
        }
    }
}

impl Ended {
    /// The close frame of a websocket (RFC 6455, 7.4.1); none for a peer that is gone.
    fn close(self) -> Option<(u16, &'static str)> {
        match self {
            Self::ByPeer => Some((1000, "")),
            Self::Misused => Some((1002, "this breaks the protocol")),
            Self::TooLarge => Some((1009, "the frame is larger than allowed")),
            Self::NotJoined => Some((1008, "no session was joined in time")),
            Self::Dead => Some((1000, "nothing was heard for too long")),
            Self::TooSlow => Some((1000, "nothing was read for too long")),
            Self::SessionOver => Some((1000, "the session has ended")),
            Self::Unavailable => Some((1011, "the session is not available")),
            Self::Stopping => Some((1001, "the gateway is stopping")),
        }
    }

    /// What it counts as in the metric of closes.
    fn code(self) -> Option<Code> {
        match self {
            Self::ByPeer | Self::SessionOver => None,
            Self::Misused => Some(Code::UnreadableFrame),
            Self::TooLarge => Some(Code::FrameTooLarge),
            Self::NotJoined => Some(Code::AuthTimeout),
            Self::Dead => Some(Code::NoPong),
            Self::TooSlow => Some(Code::TooSlow),
            Self::Unavailable => Some(Code::Unavailable),
            Self::Stopping => Some(Code::GoingAway),
        }
    }
}

/// Counts it, runs it and says goodbye.
pub(super) async fn serve(connection: Box<Connection>) {
    let mut connection = connection;
    let app = connection.app.clone();
    app.metrics.subscribers_opened.inc();
    app.connections.fetch_add(1, Ordering::Relaxed);
    let ended = connection.run().await;
    Box::pin(connection.finish(ended)).await;
    app.connections.fetch_sub(1, Ordering::Relaxed);
    app.metrics.subscribers_closed.inc();
}
