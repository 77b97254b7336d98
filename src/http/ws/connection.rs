//! One subscriber connection: its subscriptions, and what it sends next.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt};
use onlooker_protocol::{Code, Position, code::Refusal, subscriber::GatewayToSubscriber};
use tokio::{sync::watch, time::Instant};
use tokio_tungstenite::tungstenite::Message;

use super::{
    super::{
        App, ticks,
        wire::{Turn, Wire, close_code},
    },
    followings::{Followed, Followings},
    outlet::Native,
};
use crate::{
    auth::Grant,
    board::Board,
    control::{Holder, HolderKey},
    engine::Record,
    guardrail::Actor,
    hub::{Form, Side, Signal},
    ids::{ConnectionId, SessionId},
    session::Session,
    subscriber::Step,
    watch::Leave,
};

/// Steps are asked for while less than this waits.
const FILL: usize = 64 * 1024;
/// A connection without any pong for this many live windows is dead.
const DEAD_WINDOWS: u32 = 3;
/// Frames that could not be read, after which a connection is closed.
const UNREADABLE: u32 = 10;
/// Summaries in one frame.
const SUMMARIES: usize = 100;

/// Why a connection ends.
pub(super) enum Ended {
    ByPeer(Option<u16>),
    Lost,
    Close(Code, &'static str),
    Stopping,
}

pub(super) struct Connection {
    pub app: App,
    pub wire: Wire,
    pub id: ConnectionId,
    pub grant: Arc<Grant>,
    pub signal: Arc<Signal>,
    pub followings: Followings,
    pub board: Option<Box<BoardFollowing>>,
    /// Sessions in which this connection may hold control or claims.
    #[expect(clippy::box_collection, reason = "an empty set would take three times as much of every connection")]
    pub touched: Option<Box<BTreeSet<SessionId>>>,
    last_ping: u64,
    next_ping: Instant,
    /// A ping was due while something waited: it goes out before anything else is asked for.
    owes_ping: bool,
    last_pong: Instant,
    /// When it will be poked to look at the time.
    poked_at: Option<Instant>,
    unreadable: u32,
}

/// What a connection has to see to.
pub(super) enum Event {
    Turn(Turn),
    /// A subscription may have something, or a summary has changed.
    Called,
    Time,
    Stopping,
}

/// The following of a project's summaries.
pub(super) struct BoardFollowing {
    pub board: Arc<Board>,
    change: BoxFuture<'static, watch::Receiver<u64>>,
    pub version: u64,
    /// Until the first pass is through, summaries go out in chunks.
    pub first_pass: bool,
    pub reference: Option<String>,
}

impl Connection {
    pub(super) fn new(app: App, wire: Wire, id: ConnectionId, grant: Arc<Grant>) -> Self {
        let now = Instant::now();
        let next_ping = now + app.config.times.ping_every;
        Self {
            app,
            wire,
            id,
            grant,
            signal: Arc::default(),
            followings: Followings::default(),
            board: None,
            touched: None,
            last_ping: 0,
            next_ping,
            owes_ping: false,
            last_pong: now,
            poked_at: None,
            unreadable: 0,
        }
    }

    pub(super) fn actor(&self) -> Actor {
        let holder = Holder { who: self.grant.who.to_string(), by: HolderKey::Connection(self.id) };
        Actor { holder, via: "websocket" }
    }

    pub(super) fn session(&self, id: &str) -> Result<Session, Refusal> {
        self.app.session(&self.grant, id)
    }

    /// What happens next. Cancel safe.
    pub(super) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.app.stopping.is_cancelled() {
            return Poll::Ready(Event::Stopping);
        }
        if let Poll::Ready(turn) = self.wire.poll_turn(cx) {
            return Poll::Ready(Event::Turn(turn));
        }
        let wants_more = self.wire.is_idle();
        if wants_more
            && let Some(board) = &mut self.board
            && board.poll_changed(cx).is_ready()
        {
            return Poll::Ready(Event::Called);
        }
        let called = self.signal.poll_wait(cx, wants_more).is_ready();
        match self.poked_at {
            Some(at) if Instant::now() >= at => {
                self.poked_at = None;
                Poll::Ready(Event::Time)
            }
            _ if called => Poll::Ready(Event::Called),
            _ => {
                // Also when the fan-out has woken it: what that wrote may have begun to wait.
                self.watch_the_time();
                Poll::Pending
            }
        }
    }

    /// Sees to it that it is poked when something is due.
    fn watch_the_time(&mut self) {
        let deadline = self.next_deadline();
        if self.poked_at.is_none_or(|at| deadline + ticks::GRAIN <= at) {
            self.app.ticks.poke_at(deadline, &self.signal);
            self.poked_at = Some(deadline);
        }
    }

    /// Whether [`Self::fill`] may have something to do.
    pub(super) fn has_to_fill(&self) -> bool {
        self.owes_ping || self.board.is_some() || self.signal.is_ready()
    }

    /// Asks subscriptions for what they have, until enough waits or nothing is left.
    pub(super) async fn fill(&mut self) -> Result<(), Ended> {
        // Whoever reads slowly is never idle for long, and is alive all the same.
        if self.owes_ping && self.wire.is_idle() {
            self.ping();
        }
        // Questions and results shall be proved soon.
        let mut urgent = false;
        while self.wire.waiting() < FILL {
            let Some(slot) = self.signal.take() else { break };
            let Some(Followed { following, .. }) = self.followings.get_mut(slot) else { continue };
            match following.step().await {
                Ok(step) => {
                    urgent |= following.take_urgent();
                    self.send_step(slot, step);
                }
                Err(refusal) => self.end_following(slot, &refusal),
            }
        }
        self.fill_from_board();
        if urgent {
            self.ping();
        }
        Ok(())
    }

    fn send_step(&mut self, slot: u32, step: Step) {
        let Followed { following, reference } = self.followings.get_mut(slot).expect("just stepped");
        let session = following.session().id.to_string();
        match step {
            Step::Nothing => return,
            Step::Gap { reason, from } => {
                self.app.metrics.gaps.inc();
                self.wire.send(&GatewayToSubscriber::Gap { session, reason, from });
            }
            Step::Snapshot(snapshot) => self.wire.send(&GatewayToSubscriber::Snapshot {
                reference: reference.take().map(String::from),
                session,
                position: snapshot.position,
                state: Box::new((*snapshot.state).clone()),
                watchers: following.session().watch.counts(Instant::now()),
            }),
            Step::Replay(records) if records.is_empty() => {}
            Step::Replay(records) => self.wire.send_text(replay(&session, &records)),
            Step::Live(position) => self.wire.send(&GatewayToSubscriber::Live { session, position }),
            Step::Events(records) => {
                let frames = Native.frames(following.epoch(), &records);
                self.app.metrics.frames_sent.inc_by(u64::from(frames.messages));
                self.wire.send_frames(frames.bytes, frames.messages);
                return;
            }
            Step::Side(side) => self.send_side(session, &side),
            Step::Picture(picture) => self.wire.send_binary(picture.frame.clone()),
            Step::Ended => return self.end_following(slot, &Refusal::plain(Code::SessionEnded)),
        }
        if let Some(Followed { following, .. }) = self.followings.get_mut(slot) {
            following.wake();
        }
    }

    fn send_side(&mut self, session: String, side: &Side) {
        self.wire.send(&GatewayToSubscriber::Watchers { session: session.clone(), counts: side.counts });
        self.wire.send(&GatewayToSubscriber::Claims { session, claims: side.claims.to_vec() });
    }

    /// The gateway ends a subscription.
    fn end_following(&mut self, slot: u32, refusal: &Refusal) {
        let Some(following) = self.followings.remove(slot) else { return };
        let session = following.session().id;
        let leave = if refusal.code == Code::SessionEnded { Leave::Clean } else { Leave::Abnormal };
        following.end(leave);
        self.wire.send(&GatewayToSubscriber::Unsubscribed {
            session: Some(session.to_string()),
            code: refusal.code,
            reason: refusal.message.clone(),
        });
    }

    // --- project summaries ---------------------------------------------------------------------------------------

    fn fill_from_board(&mut self) {
        let Some(board) = self.board.as_mut() else { return };
        while self.wire.waiting() < FILL {
            let (changed, reached) = board.board.since(board.version, SUMMARIES);
            let more = changed.len() == SUMMARIES;
            board.version = reached;
            let allowed = changed
                .into_iter()
                .filter(|(session, _)| self.grant.may_see(&self.grant.project, session.as_str()))
                .map(|(_, summary)| (*summary).clone());
            if board.first_pass {
                let (reference, sessions) = (board.reference.clone(), allowed.collect());
                self.wire.send(&GatewayToSubscriber::Summaries { reference, sessions, more });
                board.first_pass = more;
            } else {
                for summary in allowed {
                    self.wire.send(&GatewayToSubscriber::Summary(summary));
                }
            }
            if !more {
                return;
            }
        }
    }

    // --- time ----------------------------------------------------------------------------------------------------

    pub(super) fn next_deadline(&self) -> Instant {
        let stall = self.wire.stalled_since().map(|since| since + self.app.config.times.send_stall);
        let expiry = self
            .grant
            .expires
            .map(|expires| Instant::now() + expires.duration_since(SystemTime::now()).unwrap_or_default());
        [Some(self.next_ping), stall, expiry].into_iter().flatten().min().expect("the ping is always due")
    }

    pub(super) fn on_time(&mut self, now: Instant) -> Result<(), Ended> {
        let times = &self.app.config.times;
        if self.grant.is_expired(SystemTime::now()) {
            return Err(Ended::Close(Code::TokenExpired, "the token has expired; get a new one and resume"));
        }
        if self.wire.stalled_since().is_some_and(|since| now >= since + times.send_stall) {
            return Err(Ended::Close(Code::TooSlow, "nothing was read for too long; reconnect and resume"));
        }
        if now >= self.last_pong + times.live_window * DEAD_WINDOWS {
            return Err(Ended::Close(Code::NoPong, "no pong came; reconnect and resume"));
        }
        if now >= self.next_ping {
            // A ping behind a full queue proves nothing sooner.
            if self.wire.is_idle() {
                self.ping();
            } else {
                self.owes_ping = true;
                self.next_ping = now + times.ping_every;
            }
            for following in self.followings.iter().filter(|f| f.deadline().is_some_and(|at| now >= at)) {
                following.wake();
            }
        }
        Ok(())
    }

    pub(super) fn ping(&mut self) {
        self.owes_ping = false;
        self.last_ping += 1;
        let id = self.last_ping;
        let positions: BTreeMap<String, Position> = self
            .followings
            .iter_mut()
            .filter_map(|following| Some((following.session().id.to_string(), following.mark(id)?)))
            .collect();
        self.wire.send(&GatewayToSubscriber::Ping { id, positions });
        self.next_ping = Instant::now() + self.app.config.times.ping_every;
    }

    pub(super) fn pong(&mut self, id: u64) {
        if id == 0 || id > self.last_ping {
            return self.unreadable("that ping was never sent");
        }
        let now = Instant::now();
        self.last_pong = now;
        for following in self.followings.iter_mut() {
            following.answered(id, now);
        }
    }

    // --- what comes ---------------------------------------------------------------------------------------------

    pub(super) async fn take_turn(&mut self, turn: Turn) -> Result<(), Ended> {
        match turn {
            Turn::Flushed => Ok(()),
            Turn::Closed(code) => Err(Ended::ByPeer(code)),
            Turn::Broken(error) => Err(close_code(&error).map_or(Ended::Lost, |(code, why)| Ended::Close(code, why))),
            Turn::Received(Message::Text(text)) => self.receive(&text).await,
            Turn::Received(Message::Binary(_)) => {
                self.unreadable("subscribers send text frames");
                self.check_patience()
            }
            Turn::Received(_) => Ok(()),
        }
    }

    // --- errors and the end --------------------------------------------------------------------------------------

    pub(super) fn unreadable(&mut self, why: &str) {
        self.refuse(None, Refusal::new(Code::BadFrame, why));
    }

    pub(super) fn refuse(&mut self, reference: Option<String>, refusal: Refusal) {
        self.app.metrics.refused(refusal.code);
        if refusal.code == Code::BadFrame {
            self.unreadable += 1;
        }
        self.wire.send(&GatewayToSubscriber::Error { reference, refusal });
    }

    /// Whether the peer has sent too much that could not be read.
    pub(super) fn check_patience(&self) -> Result<(), Ended> {
        if self.unreadable < UNREADABLE {
            return Ok(());
        }
        Err(Ended::Close(Code::UnreadableFrame, "too many frames could not be read"))
    }

    /// Everything that it held ends, once.
    pub(super) async fn let_go(&mut self, leave: Leave) {
        for following in self.followings.take_all() {
            following.end(leave);
        }
        for id in self.touched.take().into_iter().flat_map(|touched| *touched) {
            if let Some(session) = self.app.directory.get_any(id) {
                session.connection_lost(self.id).await;
            }
        }
    }

    pub(super) fn into_wire(self: Box<Self>) -> Wire {
        self.wire
    }
}

impl BoardFollowing {
    pub(super) fn new(board: Arc<Board>, reference: Option<String>) -> Self {
        let change = next_change(board.follow());
        Self { board, change, version: 0, first_pass: true, reference }
    }

    /// Ready when the followed project has changed.
    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let changes = std::task::ready!(self.change.as_mut().poll(cx));
        self.change = next_change(changes);
        Poll::Ready(())
    }
}

/// Resolves when it has changed.
fn next_change(mut changes: watch::Receiver<u64>) -> BoxFuture<'static, watch::Receiver<u64>> {
    async move {
        // A board lives as long as its project is known.
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        changes
    }
    .boxed()
}

/// A chunk of history: finished event frames in one array, none of them encoded again.
fn replay(session: &str, records: &[Record]) -> Bytes {
    let bytes: usize = records.iter().map(|record| record.frame.len() + 1).sum();
    let mut frame = BytesMut::with_capacity(bytes + 96);
    frame.put_slice(br#"{"type":"replay","session":""#);
    frame.put_slice(session.as_bytes());
    frame.put_slice(br#"","replay":true,"events":["#);
    for (index, record) in records.iter().enumerate() {
        if index > 0 {
            frame.put_u8(b',');
        }
        frame.put_slice(&record.frame);
    }
    frame.put_slice(b"]}");
    frame.freeze()
}
