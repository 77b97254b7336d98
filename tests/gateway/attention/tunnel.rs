//! A TCP relay that can lose what passes through it without a word to either end.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// They pass, and so does the end of either side.
    Clear,
    /// They vanish both ways, and neither end hears of the other: no FIN, no RST. The relay's kernel acknowledges
    /// what it gets, so that nobody's window fills.
    Dark,
    /// They pass, but the end of a client is not passed on: its connection to the gateway stays open, and if it was
    /// upgraded, the relay keeps it alive with pings and pongs of the WebSocket protocol.
    KeepsUpstream,
}

pub struct Tunnel {
    pub url: String,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Tunnel {
    /// A tunnel to the gateway at this address.
    pub async fn to(url: &str) -> Self {
        let gateway: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (weather, is) = watch::channel(Weather::Clear);
        let task = tokio::spawn(async move {
            // They end with this task.
            let mut relays = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                relays.spawn(relay(client, gateway, is.clone()));
            }
        });
        Self { url, weather, task }
    }

    pub fn turns(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(client: TcpStream, gateway: SocketAddr, weather: watch::Receiver<Weather>) {
    let server = TcpStream::connect(gateway).await.unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(there(from_client, to_server, weather.clone()), back(from_server, to_client, weather));
}

async fn there(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let (mut buffer, mut upgraded) = (vec![0; 16 * 1024], false);
    loop {
        let read = client.read(&mut buffer).await.unwrap_or(0);
        let now = *weather.borrow();
        match (read, now) {
            (0, Weather::Clear) => return drop(server.shutdown().await),
            (0, Weather::Dark) => return hold(server, weather).await,
            (0, Weather::KeepsUpstream) if upgraded => return keep_alive(server).await,
            (0, Weather::KeepsUpstream) => return hold(server, weather).await,
            (_, Weather::Dark) => {}
            (read, _) => {
                upgraded |= is_upgrade(&buffer[..read]);
                if server.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn back(mut server: OwnedReadHalf, mut client: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = server.read(&mut buffer).await.unwrap_or(0);
        let now = *weather.borrow();
        match (read, now) {
            (0, Weather::Dark) => return std::future::pending().await,
            (0, _) => return drop(client.shutdown().await),
            (_, Weather::Dark) => {}
            // Nobody may be there any more; what the gateway says is read all the same.
            (read, _) => drop(client.write_all(&buffer[..read]).await),
        }
    }
}

async fn hold(server: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let _ = weather.wait_for(|weather| *weather == Weather::Clear).await;
    drop(server);
}

/// The gateway sends no pings of the WebSocket protocol that could be answered, so these go unasked.
async fn keep_alive(mut server: OwnedWriteHalf) {
    // Empty and masked, as from a client (RFC 6455, 5.5.2 and 5.5.3).
    const PING_AND_PONG: [u8; 12] = [0x89, 0x80, 1, 2, 3, 4, 0x8a, 0x80, 1, 2, 3, 4];
    while server.write_all(&PING_AND_PONG).await.is_ok() {
        sleep(Duration::from_millis(50)).await;
    }
}

fn is_upgrade(head: &[u8]) -> bool {
    head.starts_with(b"GET ") && String::from_utf8_lossy(head).to_lowercase().contains("upgrade: websocket")
}
