//! A wire that is listened to: connections go through it to where they wanted to go, and every byte is written down.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

type Heard = Arc<Mutex<Vec<u8>>>;

pub struct Tap {
    /// Where to connect instead.
    pub address: String,
    /// From who connects.
    there: Heard,
    /// To who connects.
    back: Heard,
    task: JoinHandle<()>,
}

impl Tap {
    pub async fn on(target: &str) -> Self {
        let target = target.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (there, back) = (Heard::default(), Heard::default());
        let heard = (Arc::clone(&there), Arc::clone(&back));
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                // Who is not there is not there behind the tap either.
                let Ok(far) = TcpStream::connect(&target).await else { continue };
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(from_near, to_far, Arc::clone(&heard.0)));
                tokio::spawn(carry(from_far, to_near, Arc::clone(&heard.1)));
            }
        });
        Self { address, there, back, task }
    }

    pub fn there(&self) -> Vec<u8> {
        self.there.lock().unwrap().clone()
    }

    pub fn back(&self) -> Vec<u8> {
        self.back.lock().unwrap().clone()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, heard: Heard) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        heard.lock().unwrap().extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
