//! A TCP relay in front of the gateway that can lose its connections.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub struct Proxy {
    pub url: String,
    up: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// A relay to the gateway at this address.
    pub async fn to(url: &str) -> Self {
        let gateway: SocketAddr = url.trim_start_matches("http://").parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (up, is_up) = watch::channel(true);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, gateway, is_up.clone()));
            }
        });
        Self { url, up, task }
    }

    /// Resets every connection, and lets none through until [`Self::restore`].
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    pub fn restore(&self) {
        self.up.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(mut client: TcpStream, gateway: SocketAddr, mut up: watch::Receiver<bool>) {
    let reset = |stream: &TcpStream| stream.set_zero_linger();
    if *up.borrow_and_update() {
        let mut server = TcpStream::connect(gateway).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = up.wait_for(|up| !up) => {}
        }
        let _ = reset(&server);
    }
    let _ = reset(&client);
}
