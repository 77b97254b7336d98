//! The connector against a small Bot API on this machine.

mod fake;
mod hearing;
mod sending;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::future::BoxFuture;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use self::fake::{BOT, Call, Fake, Instead, TOKEN};
use super::*;
use crate::{
    chat::{Reply, Said, What, marks::MarkKey},
    config::secret::Secret,
    notifier::{Extras, Receipt},
};

const NOTICE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const SECOND: Duration = Duration::from_secs(1);

fn telegram_at(api: &str, public_url: Option<&str>) -> Telegram {
    // The second installation in a process fails, and that is fine.
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
    let settings = config::Telegram { token: Some(Secret::new(TOKEN)), api: api.parse().unwrap() };
    let public_url = public_url.map(|url| url.parse().unwrap());
    Telegram::new(&settings, public_url.as_ref(), 2 * SECOND).unwrap().unwrap()
}

fn telegram(fake: &Fake) -> Telegram {
    telegram_at(&fake.url, None)
}

/// Takes one connection, reads the request's beginning, and does something with the connection. Where it listens.
async fn raw<F, Fut>(then: F) -> String
where
    F: FnOnce(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        then(stream).await;
    });
    url
}

/// Gives the replies that a test wants, and keeps what was said.
#[derive(Default)]
struct Listener {
    said: Mutex<Vec<Said>>,
    replies: Mutex<VecDeque<Reply>>,
    /// The next to be heard is never answered, or breaks.
    stuck: Mutex<bool>,
    broken: Mutex<bool>,
}

impl Listener {
    fn answering(replies: impl IntoIterator<Item = Reply>) -> Arc<Self> {
        Arc::new(Self { replies: Mutex::new(replies.into_iter().collect()), ..Self::default() })
    }

    /// Where, who, what kind, and the words or the mark.
    fn heard(&self) -> Vec<(String, String, &'static str, String)> {
        let of = |said: &Said| {
            let (kind, text) = match &said.what {
                What::Tapped { mark, on } => ("tapped", format!("{mark} on {}", on.0)),
                What::Replied { to, text } => ("replied", format!("{text} to {}", to.0)),
                What::Told { text } => ("told", text.clone()),
            };
            (said.address.clone(), said.by.id.clone(), kind, text)
        };
        self.said.lock().unwrap().iter().map(of).collect()
    }

    fn texts(&self) -> Vec<String> {
        self.heard().into_iter().map(|(_, _, _, text)| text).collect()
    }
}

impl Desk for Listener {
    fn hear(&self, said: Said) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            assert_eq!(said.connector, "telegram");
            self.said.lock().unwrap().push(said);
            let stuck = std::mem::take(&mut *self.stuck.lock().unwrap());
            if stuck {
                std::future::pending::<()>().await;
            }
            assert!(!std::mem::take(&mut *self.broken.lock().unwrap()), "the desk breaks, as the test wants");
            self.replies.lock().unwrap().pop_front().unwrap_or_default()
        })
    }
}
