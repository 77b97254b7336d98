//! Socket Mode: we open a WebSocket, and Slack brings over it what it would bring by requests
//! (docs.slack.dev, using Socket Mode).
//!
//! Each envelope is acknowledged at once; what is not is brought again. Slack renews connections every few hours and
//! says so before: the old one is heard until Slack ends it, so that nothing falls between them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{Message as Frame, protocol::WebSocketConfig},
};
use url::Url;

use super::{
    Shared, TakenIn,
    api::{Failure, Token},
    heard::{self, Came},
};
use crate::ids::up_to;

/// Payloads repeat the message that they are about; Slack's are at most some 100 KiB.
const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Of waits that double.
const DOUBLINGS_MAX: u32 = 16;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Clone, Copy, Debug)]
pub(super) struct SocketTimes {
    /// For a connection and the greeting on it, and for each write.
    pub(super) patience: Duration,
    /// Waits between tries: up to this long after the first failure, doubling …
    pub(super) retry_first: Duration,
    /// … up to this.
    pub(super) retry_longest: Duration,
    /// Where only an operator can help.
    pub(super) retry_refused: Duration,
    /// Slack pings more often than this; after as long again without an answer to ours, the connection is lost.
    pub(super) quiet: Duration,
    /// A connection that ends sooner counts as a failure, because opening them is limited.
    pub(super) steady: Duration,
}

impl Default for SocketTimes {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(30),
            retry_refused: Duration::from_secs(60),
            quiet: Duration::from_secs(30),
            steady: Duration::from_secs(30),
        }
    }
}

/// How a connection ended.
enum End {
    /// Slack wants us on another one, and still brings what it has on this one.
    Renew,
    Lost,
}

/// What a frame was.
enum Took {
    Hello,
    End(End),
    Other,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(rename = "type")]
    kind: String,
    envelope_id: Option<String>,
    reason: Option<String>,
    #[serde(default)]
    payload: Value,
}

/// Hears until it is dropped.
pub(super) async fn listen(shared: &Arc<Shared>, times: &SocketTimes) {
    let listening = Listening { shared, times };
    let mut old: Option<Socket> = None;
    let mut failures = 0;
    loop {
        let mut socket = tokio::select! {
            socket = listening.open(&mut failures) => socket,
            never = listening.drain(old.as_mut()) => match never {},
        };
        let opened = Instant::now();
        let end = tokio::select! {
            end = listening.hear(&mut socket) => end,
            never = listening.drain(old.as_mut()) => match never {},
        };
        failures = if opened.elapsed() >= times.steady { 0 } else { failures + 1 };
        if let End::Renew = end {
            old = Some(socket);
        }
    }
}

struct Listening<'a> {
    shared: &'a Arc<Shared>,
    times: &'a SocketTimes,
}

impl Listening<'_> {
    /// Tries until a connection has greeted.
    async fn open(&self, failures: &mut u32) -> Socket {
        loop {
            sleep(self.wait(*failures)).await;
            match self.try_open().await {
                Ok(socket) => return socket,
                Err(failure) => {
                    *failures += 1;
                    sleep(self.told(&failure)).await;
                }
            }
        }
    }

    /// Exponential with full jitter.
    fn wait(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        let bound = self.times.retry_first.saturating_mul(1 << doublings.min(DOUBLINGS_MAX));
        up_to(bound.min(self.times.retry_longest))
    }

    /// Logs why there is no connection, and gives what to wait beside the usual.
    fn told(&self, failure: &Failure) -> Duration {
        tracing::warn!(?failure, "no connection for Slack's Socket Mode");
        match failure {
            Failure::Busy { wait, .. } => wait.unwrap_or_default(),
            Failure::Wrong { .. } | Failure::Credential { .. } => self.times.retry_refused,
            Failure::Unknown { .. } => Duration::ZERO,
        }
    }

    async fn try_open(&self) -> Result<Socket, Failure> {
        let answer = self.shared.api.call("apps.connections.open", Token::App, None).await?;
        let wrong = |error: &str| Failure::Wrong { code: String::new(), error: error.to_owned() };
        let url = answer["url"].as_str().and_then(|url| Url::parse(url).ok());
        let url = url.filter(|url| url.scheme() == "wss" || (url.scheme() == "ws" && self.shared.api.is_plain()));
        let url = url.ok_or_else(|| wrong("Slack named no WebSocket"))?;
        let opening = async {
            let config = WebSocketConfig::default()
                .max_message_size(Some(FRAME_BYTES_MAX))
                .max_frame_size(Some(FRAME_BYTES_MAX));
            let (mut socket, _) = connect_async_with_config(url.as_str(), Some(config), true).await.ok()?;
            self.greeted(&mut socket).await.then_some(socket)
        };
        // The error's own text would hold the URL, whose ticket opens the connection.
        let busy = || Failure::Busy { error: "the WebSocket could not be opened".to_owned(), wait: None };
        timeout(self.times.patience, opening).await.ok().flatten().ok_or_else(busy)
    }

    async fn greeted(&self, socket: &mut Socket) -> bool {
        while let Some(Ok(frame)) = socket.next().await {
            match self.take(socket, &frame).await {
                Took::Hello => {
                    tracing::info!("Slack's Socket Mode is connected");
                    return true;
                }
                Took::End(_) => return false,
                Took::Other => {}
            }
        }
        false
    }

    async fn hear(&self, socket: &mut Socket) -> End {
        let mut asked = false;
        loop {
            let frame = match timeout(self.times.quiet, socket.next()).await {
                Ok(Some(Ok(frame))) => frame,
                Err(_) if !asked => {
                    asked = true;
                    if !self.write(socket, Frame::Ping(Default::default())).await {
                        return End::Lost;
                    }
                    continue;
                }
                _ => return End::Lost,
            };
            asked = false;
            if let Took::End(end) = self.take(socket, &frame).await {
                return end;
            }
        }
    }

    /// Hears what a connection that is replaced still brings. Dropped between hearing something and acknowledging it,
    /// it leaves that to come again, and to be known.
    async fn drain(&self, old: Option<&mut Socket>) -> Infallible {
        if let Some(old) = old {
            while let End::Renew = self.hear(old).await {}
        }
        std::future::pending().await
    }

    /// Pings are answered by the WebSocket itself.
    async fn take(&self, socket: &mut Socket, frame: &Frame) -> Took {
        let text = match frame {
            Frame::Text(text) => text,
            Frame::Close(_) => return Took::End(End::Lost),
            _ => return Took::Other,
        };
        let Ok(envelope) = serde_json::from_str::<Envelope>(text) else {
            tracing::warn!("Slack's Socket Mode brought something malformed");
            return Took::Other;
        };
        match envelope.kind.as_str() {
            "hello" => Took::Hello,
            "disconnect" => Took::End(renewal(envelope.reason.as_deref())),
            _ => self.acknowledge(socket, &envelope).await,
        }
    }

    async fn acknowledge(&self, socket: &mut Socket, envelope: &Envelope) -> Took {
        let Some(id) = &envelope.envelope_id else { return Took::Other };
        let came = match envelope.kind.as_str() {
            "interactive" => heard::interaction(&envelope.payload),
            "events_api" => heard::event(&envelope.payload, self.shared.own()),
            _ => Some(Came::Nothing),
        };
        let mut identity = vec![format!("envelope {id}")];
        match came {
            Some(Came::Said { identity: own, heard }) => {
                identity.extend(own);
                if let TakenIn::Full = self.shared.take_in(None, identity, *heard) {
                    // Not acknowledged, it comes again.
                    tracing::warn!("too much is said in Slack at once");
                    return Took::Other;
                }
            }
            Some(Came::Nothing | Came::Challenge(_)) => {}
            None => tracing::warn!("Slack's Socket Mode brought something malformed"),
        }
        let acknowledgement = json!({ "envelope_id": id }).to_string();
        if self.write(socket, Frame::text(acknowledgement)).await { Took::Other } else { Took::End(End::Lost) }
    }

    async fn write(&self, socket: &mut Socket, frame: Frame) -> bool {
        matches!(timeout(self.times.patience, socket.send(frame)).await, Ok(Ok(())))
    }
}

fn renewal(reason: Option<&str>) -> End {
    match reason {
        // Switched off in the app's settings, or too many connections: nothing comes here any more.
        Some("link_disabled" | "too_many_websockets") => {
            tracing::warn!(reason, "Slack ended Socket Mode");
            End::Lost
        }
        _ => End::Renew,
    }
}
