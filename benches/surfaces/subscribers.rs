//! Subscribers that count what they get and answer pings, and do nothing else.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{SinkExt, StreamExt};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::Outcome;

const JOIN_WITHIN: Duration = Duration::from_secs(60);
/// Handshakes under way at once.
const AT_ONCE: usize = 64;

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Surface {
    Native,
    SocketIo,
}

impl Surface {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::SocketIo => "Socket.IO",
        }
    }

    async fn join(self, address: &str, session: &str) -> Outcome<Socket> {
        match self {
            Self::Native => {
                let mut request = format!("ws://{address}/v1/ws").into_client_request()?;
                request.headers_mut().insert("sec-websocket-protocol", "onlooker.v1".parse()?);
                let (mut socket, _) = connect_async(request).await?;
                let subscribe = serde_json::json!({ "type": "subscribe", "session": session, "attention": "active" });
                socket.send(Message::text(subscribe.to_string())).await?;
                until(&mut socket, |text| text.starts_with(r#"{"type":"live""#)).await?;
                Ok(socket)
            }
            Self::SocketIo => {
                let (mut socket, _) =
                    connect_async(format!("ws://{address}/socket.io/?EIO=4&transport=websocket")).await?;
                until(&mut socket, |text| text.starts_with("0{")).await?;
                let connect = serde_json::json!({ "sessionId": session });
                socket.send(Message::text(format!("40{connect}"))).await?;
                until(&mut socket, |text| text.starts_with("40{")).await?;
                Ok(socket)
            }
        }
    }

    fn is_event(self, text: &str) -> bool {
        match self {
            Self::Native => text.starts_with(r#"{"type":"event""#),
            Self::SocketIo => text.starts_with(r#"42["message""#),
        }
    }

    /// The answer to a ping, if this is one.
    fn pong(self, text: &str) -> Option<String> {
        match self {
            Self::Native => {
                let id = text.strip_prefix(r#"{"type":"ping","id":"#)?.split([',', '}']).next()?;
                Some(format!(r#"{{"type":"pong","id":{id}}}"#))
            }
            Self::SocketIo => (text == "2").then(|| "3".to_owned()),
        }
    }
}

async fn until(socket: &mut Socket, fits: impl Fn(&str) -> bool) -> Outcome<()> {
    loop {
        match socket.next().await.ok_or("a subscriber was cut off")?? {
            Message::Text(text) if fits(&text) => return Ok(()),
            Message::Text(text) if text.starts_with("44") || text.starts_with(r#"{"type":"error""#) => {
                return Err(format!("a subscriber was refused: {text}").into());
            }
            _ => {}
        }
    }
}

pub(crate) struct Audience {
    counts: Arc<Vec<AtomicU64>>,
    lost: Arc<AtomicU64>,
    /// Ends with this.
    _readers: JoinSet<()>,
}

impl Audience {
    pub(crate) async fn join(address: &str, session: &str, surface: Surface, size: usize) -> Outcome<Self> {
        let counts: Arc<Vec<AtomicU64>> = Arc::new((0..size).map(|_| AtomicU64::new(0)).collect());
        let lost = Arc::<AtomicU64>::default();
        let joining = futures::stream::iter(0..size)
            .map(|_| async { tokio::time::timeout(JOIN_WITHIN, surface.join(address, session)).await? })
            .buffer_unordered(AT_ONCE);
        let sockets: Vec<Outcome<Socket>> = joining.collect().await;
        let mut readers = JoinSet::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            readers.spawn(read(socket?, surface, number, Arc::clone(&counts), Arc::clone(&lost)));
        }
        Ok(Self { counts, lost, _readers: readers })
    }

    /// Delivered to all together.
    pub(crate) fn events(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// What the one with the fewest has.
    pub(crate) fn slowest(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).min().unwrap_or(0)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Waits until everybody has so many.
    pub(crate) async fn all_have(&self, events: u64) -> Outcome<()> {
        let began = Instant::now();
        while self.slowest() < events {
            if self.lost() > 0 {
                return Err("a subscriber was cut off".into());
            }
            if began.elapsed() > JOIN_WITHIN {
                return Err(format!("a subscriber has {} of {events} events", self.slowest()).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

async fn read(mut socket: Socket, surface: Surface, number: usize, counts: Arc<Vec<AtomicU64>>, lost: Arc<AtomicU64>) {
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        if surface.is_event(&text) {
            counts[number].fetch_add(1, Ordering::Relaxed);
        } else if let Some(pong) = surface.pong(&text)
            && socket.send(Message::text(pong)).await.is_err()
        {
            break;
        }
    }
    lost.fetch_add(1, Ordering::Relaxed);
}
