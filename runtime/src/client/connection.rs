//! One connection of a runtime: greeting, claims, frames in, frames out, farewell.
//!
//! Reading and writing are two futures of one task, so that a gateway which reads slowly does not keep the runtime
//! from reading. Control frames (claims, pongs, `commands_done`) go before events; events are taken from the sessions'
//! windows when the socket has room, one frame a session and round.

use std::{pin::Pin, time::Duration};

use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use onlooker_protocol::{
    Code, VERSION,
    code::Refusal,
    runtime::{GatewayToRuntime, OpenSession, RuntimeToGateway},
    subscriber::AuthNeed,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Client, FAREWELL, Sessions,
    session::{Applied, Session, ends_session},
    window::FrameLimits,
};
use crate::socket::{self, Socket, SocketError};

const HELLO_WITHIN: Duration = Duration::from_secs(10);
const WRITE_WITHIN: Duration = Duration::from_secs(30);
/// More replies than this waiting means that the gateway does not read.
const REPLIES_MAX: usize = 1_024;

pub(super) type Sink = SplitSink<Socket, Message>;

pub(super) struct Connection {
    stream: SplitStream<Socket>,
    limits: FrameLimits,
    /// Silence for longer than this means that the gateway is gone: three of its pings.
    silence_max: Duration,
    replies: mpsc::Sender<Message>,
    to_write: Option<mpsc::Receiver<Message>>,
    registered: bool,
    goaway_until: Option<Instant>,
}

impl Connection {
    /// Reads the gateway's hello, authenticates and registers.
    pub(super) async fn greet(client: &Client, socket: Socket) -> Result<(Self, Sink), SocketError> {
        let (mut sink, mut stream) = socket.split();
        let hello = timeout(HELLO_WITHIN, next_frame(&mut stream))
            .await
            .map_err(|_| SocketError::lost("the gateway did not say hello"))??;
        let GatewayToRuntime::Hello { version, auth, ping_every, frame, batch, .. } = hello else {
            return Err(SocketError::lost("the gateway's first frame is not hello"));
        };
        if version != VERSION {
            return Err(SocketError::Version { theirs: version, ours: VERSION });
        }
        if auth == AuthNeed::Required {
            let token = client.options.token.clone().ok_or(SocketError::KeyNeeded)?;
            send(&mut sink, socket::text(&RuntimeToGateway::Auth { token })).await?;
        }
        let register = RuntimeToGateway::Register {
            name: client.options.name.clone(),
            capacity: client.options.capacity,
            labels: client.options.labels.clone(),
        };
        send(&mut sink, socket::text(&register)).await?;
        let (replies, to_write) = mpsc::channel(REPLIES_MAX);
        let connection = Self {
            stream,
            limits: FrameLimits { bytes: to_usize(frame), events: to_usize(batch) },
            silence_max: Duration::from_millis(ping_every.max(1_000)) * 3,
            replies,
            to_write: Some(to_write),
            registered: false,
            goaway_until: None,
        };
        Ok((connection, sink))
    }

    /// Serves until the connection is lost, or until everything is said after `shutdown`.
    pub(super) async fn run(
        &mut self,
        client: &mut Client,
        mut sink: Sink,
        shutdown: &CancellationToken,
    ) -> Result<(), SocketError> {
        let to_write = self.to_write.take().expect("a connection runs once");
        let sessions = client.sessions.clone();
        let ended = {
            let writing = write(&mut sink, to_write, &sessions, self.limits);
            tokio::pin!(writing);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => self.farewell(client, writing).await,
                error = &mut writing => Err(error),
                error = self.read(client) => Err(error),
            }
        };
        ended?;
        self.close(client, sink).await;
        Ok(())
    }

    /// Ends every session, running tasks with an error, and waits until that is sent.
    async fn farewell(
        &mut self,
        client: &mut Client,
        writing: Pin<&mut impl Future<Output = SocketError>>,
    ) -> Result<(), SocketError> {
        for session in client.sessions.all() {
            if !session.end_now() {
                client.let_go(&session.id);
            }
        }
        let sessions = client.sessions.clone();
        tokio::select! {
            biased;
            error = writing => return Err(error),
            () = sessions.all_gone() => {}
            error = self.read(client) => return Err(error),
            () = tokio::time::sleep(FAREWELL) => warn!("the gateway did not take the last events in time"),
        }
        Ok(())
    }

    /// Closes, then reads what the gateway still says: a socket closed over unread bytes would lose those on the
    /// way to the gateway.
    async fn close(&mut self, client: &mut Client, mut sink: Sink) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "the runtime stops".into() };
        if send(&mut sink, Message::Close(Some(frame))).await.is_ok() {
            let _ = timeout(FAREWELL, self.read(client)).await;
        }
    }

    /// What is left of the time after which the gateway wants its peers back.
    pub(super) fn goaway_left(&self) -> Duration {
        self.goaway_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()))
    }

    async fn read(&mut self, client: &mut Client) -> SocketError {
        loop {
            if let Err(error) = self.read_one(client).await {
                return error;
            }
        }
    }

    async fn read_one(&mut self, client: &mut Client) -> Result<(), SocketError> {
        let frame = timeout(self.silence_max, next_frame(&mut self.stream))
            .await
            .map_err(|_| SocketError::lost("the gateway is silent"))??;
        self.take(client, frame)
    }

    fn take(&mut self, client: &mut Client, frame: GatewayToRuntime) -> Result<(), SocketError> {
        match frame {
            GatewayToRuntime::Registered { runtime } => {
                debug!(runtime, "registered");
                self.registered = true;
                for session in client.sessions.all() {
                    self.reply(&RuntimeToGateway::Claim(session.reclaim()))?;
                }
            }
            GatewayToRuntime::Assigned { session, claim, parameters } => {
                self.assigned(client, session, claim, *parameters)?;
            }
            GatewayToRuntime::Claimed { session, claim, expected, secrets_expected } => {
                if let Some(session) = client.sessions.get(&session) {
                    session.claimed(claim, expected, secrets_expected);
                }
            }
            GatewayToRuntime::Released { session, refusal } => {
                info!(session.id = %session, code = %refusal.code, "session released");
                client.let_go(&session);
            }
            GatewayToRuntime::Accepted { session, n, .. } => {
                if let Some(session) = client.sessions.get(&session) {
                    session.accepted(n);
                }
            }
            GatewayToRuntime::EventRefused { session, n, refusal } => refused(client, &session, n, &refusal),
            GatewayToRuntime::Command { session, command } => {
                if let Some(session) = client.sessions.get(&session) {
                    let applied = session.apply(command);
                    self.applied(&session, applied)?;
                }
            }
            GatewayToRuntime::Ping { id } => self.reply(&RuntimeToGateway::Pong { id })?,
            GatewayToRuntime::Error { session, refusal, .. } => self.error(client, session.as_deref(), &refusal)?,
            GatewayToRuntime::Goaway { reason, after } => {
                info!(reason, after_ms = after, "the gateway goes away");
                self.goaway_until = Some(Instant::now() + Duration::from_millis(after));
            }
            GatewayToRuntime::Hello { .. }
            | GatewayToRuntime::Opened { .. }
            | GatewayToRuntime::Watchers { .. }
            | GatewayToRuntime::Unknown => {}
        }
        Ok(())
    }

    fn assigned(
        &self,
        client: &mut Client,
        id: String,
        claim: String,
        parameters: OpenSession,
    ) -> Result<(), SocketError> {
        if let Some(session) = client.sessions.get(&id) {
            session.reassigned(claim);
            return self.reply(&RuntimeToGateway::Claim(session.reclaim()));
        }
        if client.sessions.len() >= client.options.capacity as usize {
            let reason = "no room".to_owned();
            return self.reply(&RuntimeToGateway::Decline { session: id, reason });
        }
        info!(session.id = %id, "session assigned");
        let outgoing = client.sessions.outgoing.clone();
        let session = client.take(Session::new(id, claim, parameters, outgoing));
        self.reply(&RuntimeToGateway::Claim(session.reclaim()))
    }

    fn applied(&self, session: &Session, applied: Applied) -> Result<(), SocketError> {
        let (Applied::Done(commands) | Applied::Terminated(commands)) = applied;
        self.reply(&RuntimeToGateway::CommandsDone { session: session.id.clone(), commands })?;
        if let Applied::Terminated(_) = applied {
            info!(session.id = %session.id, "session terminated");
            session.end_after_events();
        }
        Ok(())
    }

    fn error(&self, client: &Client, session: Option<&str>, refusal: &Refusal) -> Result<(), SocketError> {
        match session {
            Some(session) if ends_session(refusal.code) => {
                warn!(session.id = session, code = %refusal.code, "session lost");
                client.let_go(session);
            }
            None if !self.registered => return Err(SocketError::of_code(refusal.code, &refusal.message)),
            _ => warn!(session.id = session, code = %refusal.code, message = refusal.message, "the gateway refused"),
        }
        Ok(())
    }

    fn reply(&self, frame: &RuntimeToGateway) -> Result<(), SocketError> {
        let sent = self.replies.try_send(socket::text(frame));
        sent.map_err(|_| SocketError::lost("the gateway does not read"))
    }
}

fn refused(client: &Client, id: &str, n: u64, refusal: &Refusal) {
    let Some(session) = client.sessions.get(id) else { return };
    if refusal.code != Code::NumberExpected {
        warn!(session.id = id, n, code = %refusal.code, message = refusal.message, "event refused");
    }
    if !session.refused(n, refusal) {
        client.let_go(id);
    }
}

async fn write(
    sink: &mut Sink,
    mut replies: mpsc::Receiver<Message>,
    sessions: &Sessions,
    limits: FrameLimits,
) -> SocketError {
    loop {
        match write_round(sink, &mut replies, sessions, limits).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(error) => return error,
        }
        let hold = sessions.all().iter().filter_map(|session| session.hold_until()).min();
        let reply = tokio::select! {
            biased;
            reply = replies.recv() => reply,
            () = sessions.outgoing.notified() => None,
            () = tokio::time::sleep_until(hold.unwrap_or_else(Instant::now)), if hold.is_some() => None,
        };
        if let Some(reply) = reply
            && let Err(error) = send(sink, reply).await
        {
            return error;
        }
    }
}

/// Sends what waits: the replies, then one frame of each session. Returns whether there was anything.
async fn write_round(
    sink: &mut Sink,
    replies: &mut mpsc::Receiver<Message>,
    sessions: &Sessions,
    limits: FrameLimits,
) -> Result<bool, SocketError> {
    let mut wrote = false;
    while let Ok(reply) = replies.try_recv() {
        feed(sink, reply).await?;
        wrote = true;
    }
    for session in sessions.all() {
        if let Some(frame) = session.next_frame(limits) {
            feed(sink, frame).await?;
            wrote = true;
        }
        if session.said_goodbye() {
            sessions.remove(&session.id);
        }
    }
    if wrote {
        within(sink.flush()).await?;
    }
    Ok(wrote)
}

async fn feed(sink: &mut Sink, message: Message) -> Result<(), SocketError> {
    within(sink.feed(message)).await
}

async fn send(sink: &mut Sink, message: Message) -> Result<(), SocketError> {
    within(sink.send(message)).await
}

async fn within<F>(write: F) -> Result<(), SocketError>
where
    F: Future<Output = Result<(), tokio_tungstenite::tungstenite::Error>>,
{
    match timeout(WRITE_WITHIN, write).await {
        Ok(result) => result.map_err(|error| SocketError::lost(error.to_string())),
        Err(_) => Err(SocketError::lost("the gateway does not read")),
    }
}

/// The next frame that has a meaning here. Protocol pings are answered by the library.
async fn next_frame(stream: &mut SplitStream<Socket>) -> Result<GatewayToRuntime, SocketError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text)
                    .map_err(|_| SocketError::lost("a frame of the gateway cannot be read"));
            }
            Some(Ok(Message::Close(frame))) => return Err(SocketError::of_close(frame.as_ref())),
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(SocketError::lost(error.to_string())),
            None => return Err(SocketError::of_close(None)),
        }
    }
}

fn to_usize(limit: u64) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
