//! Those around the gateway: they come back for ever, and write down what they saw before they act on it.

pub mod operator;
pub mod receiver;
pub mod runtime;

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use onlooker_protocol::SUBPROTOCOL;
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Message, client::IntoClientRequest as _},
};

/// What everybody is to do at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// New work all the time.
    Busy,
    /// Nothing new; what is under way is brought to its end.
    Settle,
    Over,
}

/// How to find the gateway, and who is asking.
#[derive(Clone, Debug)]
pub struct Door {
    /// `http://…`
    pub url: String,
    pub token: Option<String>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A connection that carries JSON frames.
pub struct Line {
    socket: Socket,
}

impl Line {
    /// `None`: nobody is there.
    pub async fn open(door: &Door, path: &str) -> Option<Self> {
        let url = format!("{}{path}", door.url.replacen("http", "ws", 1));
        let mut request = url.into_client_request().unwrap();
        if path == "/v1/ws" {
            request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
        }
        if let Some(token) = &door.token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let connecting = tokio_tungstenite::connect_async(request);
        let connected = tokio::time::timeout(Duration::from_secs(5), connecting).await;
        Some(Self { socket: connected.ok()?.ok()?.0 })
    }

    /// `None`: the connection is gone.
    pub async fn send(&mut self, frame: &impl Serialize) -> Option<()> {
        self.socket.send(Message::text(serde_json::to_string(frame).unwrap())).await.ok()
    }

    /// The next text frame. `None`: the connection is gone. Safe to drop.
    pub async fn next<F: DeserializeOwned>(&mut self) -> Option<F> {
        loop {
            match self.socket.next().await?.ok()? {
                Message::Text(text) => {
                    let frame = serde_json::from_str(&text);
                    return Some(frame.unwrap_or_else(|error| panic!("{error}: {text}")));
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

/// A generator for one of several, from the run's seed.
pub fn chance(seed: u64, who: u64) -> SmallRng {
    SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(who))
}

/// Waits a little before it is tried again, longer after each time in vain.
async fn back_off(rng: &mut SmallRng, tries: &mut u32) {
    let longest = 20u64 << (*tries).min(4);
    *tries += 1;
    tokio::time::sleep(Duration::from_millis(5 + rng.random_range(0..longest))).await;
}
