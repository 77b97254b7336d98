//! Slack: cards by the Web API; taps and words by signed requests, or over Socket Mode where nobody can reach us.
//!
//! Made from Slack's documents (docs.slack.dev): `chat.postMessage`, `chat.update`, `chat.postEphemeral`, `auth.test`,
//! `apps.connections.open`, Block Kit, interaction payloads, the Events API, verifying requests, Socket Mode and rate
//! limits.
//!
//! * One attempt is one new connection and one call, as with webhooks, so that it is known whether a call has left.
//!   Slack has no argument that names a message for repeats (`client_msg_id` occurs among its errors only), so what a
//!   repeat looks like is the card's to say.
//! * Whatever is heard is acknowledged at once, because Slack waits three seconds and the desk may take longer. It then
//!   waits in a bounded queue for the task that runs the connector; what finds no room is not acknowledged.
//! * Pictures are not uploaded: that takes three calls and another permission. The link to the view shows the picture.

mod api;
mod blocks;
mod heard;
mod replying;
mod signing;
mod socket;

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;

use self::{
    api::{Api, Failure, Token},
    heard::{Admission, Came, Heard, Seen},
    signing::Signing,
    socket::SocketTimes,
};
use super::{Connector, Desk, Health, Hook, HookAnswer};
use crate::{
    config::{Config, secret::Secret},
    notifier::{Delivery, Message, Notifier, Pace, Receipt},
};

const NAME: &str = "slack";
/// What Slack takes (docs.slack.dev, rate limits): one message a second in a channel, and several hundred a minute in a
/// workspace, of which this is three hundred.
const PACE: Pace = Pace { address: Duration::from_secs(1), overall: Duration::from_millis(200) };
/// What was said and waits for the desk.
const QUEUE: usize = 256;
/// What the desk is asked at once.
const AT_ONCE: usize = 16;

/// Errors of a reply in a thread that a message outside of it does not meet.
const THREAD_ERRORS: [&str; 4] = [
    "cannot_reply_to_message",
    "restricted_action_non_threadable_channel",
    "restricted_action_thread_locked",
    "thread_not_found",
];

/// How it is set up.
pub struct SlackOptions {
    pub api: Url,
    pub bot_token: Secret,
    pub hearing: Hearing,
    /// For a whole call.
    pub timeout: Duration,
}

/// How answers come.
pub enum Hearing {
    /// Slack asks us, and signs.
    Requests { signing_secret: Secret },
    /// We ask Slack.
    SocketMode { app_token: Secret },
    /// Not at all: cards go out, and are answered elsewhere.
    Nothing,
}

impl SlackOptions {
    /// `None` where no Slack app is configured.
    pub fn from_config(config: &Config) -> Option<Self> {
        let slack = &config.slack;
        let hearing = match (&config.listen.public_url, &slack.signing_secret, &slack.app_token) {
            (Some(_), Some(secret), _) => Hearing::Requests { signing_secret: secret.clone() },
            (None, _, Some(token)) => Hearing::SocketMode { app_token: token.clone() },
            _ => Hearing::Nothing,
        };
        let bot_token = slack.bot_token.clone()?;
        Some(Self { api: slack.api.clone(), bot_token, hearing, timeout: config.times.notice_timeout })
    }
}

/// One app in one workspace.
pub struct Slack {
    shared: Arc<Shared>,
    signing: Option<Signing>,
    socket: Option<SocketTimes>,
    /// Taken by [`Connector::run`].
    heard: Mutex<Option<mpsc::Receiver<Heard>>>,
}

struct Shared {
    api: Api,
    queue: mpsc::Sender<Heard>,
    seen: Mutex<Seen>,
    /// The bot's own user id, once Slack has said it.
    own: OnceLock<String>,
}

/// What became of something that was heard.
enum TakenIn {
    Queued,
    /// It was heard before.
    Again(Admission),
    /// No room: it must not be acknowledged.
    Full,
}

impl Slack {
    /// # Errors
    /// The HTTP client cannot be built. A default TLS provider must be installed.
    pub fn new(options: SlackOptions) -> Result<Self, reqwest::Error> {
        let SlackOptions { api, bot_token, hearing, timeout } = options;
        let (signing, app_token) = match hearing {
            Hearing::Requests { signing_secret } => (Some(Signing::new(signing_secret)), None),
            Hearing::SocketMode { app_token } => (None, Some(app_token)),
            Hearing::Nothing => (None, None),
        };
        let socket = app_token.is_some().then(SocketTimes::default);
        let (queue, heard) = mpsc::channel(QUEUE);
        let api = Api::new(api, bot_token, app_token, timeout)?;
        let shared = Shared { api, queue, seen: Mutex::default(), own: OnceLock::new() };
        Ok(Self { shared: Arc::new(shared), signing, socket, heard: Mutex::new(Some(heard)) })
    }

    fn hear_request(&self, request: &Hook, now: OffsetDateTime) -> HookAnswer {
        let signature = self.signing.as_ref().and_then(|signing| signing.check(request, now));
        let Some(signature) = signature else { return HookAnswer::refused(401, "signature") };
        let Some(came) = heard::request(request, self.shared.own()) else {
            return HookAnswer::refused(400, "malformed");
        };
        match came {
            Came::Challenge(challenge) => HookAnswer::json(&json!({ "challenge": challenge })),
            Came::Nothing => HookAnswer::empty(),
            Came::Said { identity, heard } => match self.shared.take_in(Some(signature), identity, *heard) {
                TakenIn::Queued | TakenIn::Again(Admission::Redelivered) => HookAnswer::empty(),
                TakenIn::Again(_) => HookAnswer::refused(401, "replayed"),
                TakenIn::Full => HookAnswer::refused(503, "busy"),
            },
        }
    }

    async fn deliver(&self, message: &Message) -> Delivery {
        let Some(notice) = message.notice() else {
            return Delivery::Rejected { error: "the notice is in a form of a newer gateway".to_owned() };
        };
        let drawn = blocks::card(message, &notice);
        let sent = match &message.card {
            Some(card) => self.update(card, drawn).await,
            None => self.post(message, drawn).await,
        };
        match sent {
            Ok(answer) => place(&answer).map_or(Delivery::Confirmed, Delivery::Shown),
            Err(failure) => failure.into(),
        }
    }

    async fn post(&self, message: &Message, drawn: blocks::Drawn) -> Result<Value, Failure> {
        let mut body = json!({
            "channel": message.address,
            "text": drawn.text,
            "blocks": drawn.blocks,
            "parse": "none",
            "link_names": false,
            "mrkdwn": false,
            // Previews would fetch the links.
            "unfurl_links": false,
            "unfurl_media": false,
        });
        if let Some((channel, ts)) = message.thread.as_ref().and_then(split) {
            // Where the message above lies: an address may be a user, whose direct messages have an id of their own.
            body["channel"] = channel.into();
            body["thread_ts"] = ts.into();
        }
        match self.shared.api.call("chat.postMessage", Token::Bot, Some(&body)).await {
            Err(Failure::Wrong { code, .. }) if message.thread.is_some() && THREAD_ERRORS.contains(&&*code) => {
                body.as_object_mut().and_then(|body| body.remove("thread_ts"));
                self.shared.api.call("chat.postMessage", Token::Bot, Some(&body)).await
            }
            sent => sent,
        }
    }

    async fn update(&self, card: &Receipt, drawn: blocks::Drawn) -> Result<Value, Failure> {
        let Some((channel, ts)) = split(card) else {
            return Err(Failure::Wrong { code: String::new(), error: "the message's place cannot be read".to_owned() });
        };
        let body = json!({
            "channel": channel,
            "ts": ts,
            "text": drawn.text,
            "blocks": drawn.blocks,
            // Its default would make links of what looks like some.
            "parse": "none",
            "link_names": false,
        });
        self.shared.api.call("chat.update", Token::Bot, Some(&body)).await
    }

    async fn listen(&self) {
        let hearing = async {
            match &self.socket {
                Some(times) => socket::listen(&self.shared, times).await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.shared.introduce(), hearing);
    }
}

impl Shared {
    fn own(&self) -> Option<&str> {
        self.own.get().map(String::as_str)
    }

    /// Learns who we are, and is loud at the start about a token that is no good.
    async fn introduce(&self) {
        if let Ok(answer) = self.api.call("auth.test", Token::Bot, None).await
            && let Some(own) = answer["user_id"].as_str()
        {
            self.own.get_or_init(|| own.to_owned());
        }
    }

    /// Queues what was said unless it was heard before.
    fn take_in(&self, signature: Option<&str>, identity: Vec<String>, heard: Heard) -> TakenIn {
        let Ok(place) = self.queue.try_reserve() else { return TakenIn::Full };
        match self.seen.lock().expect("no holder panics").admit(signature, identity) {
            Admission::New => {
                place.send(heard);
                TakenIn::Queued
            }
            before => TakenIn::Again(before),
        }
    }
}

/// Brings what was said to the desk, and the replies back. Dropped, it leaves nothing running.
async fn attend(shared: Arc<Shared>, mut queue: mpsc::Receiver<Heard>, desk: Arc<dyn Desk>) {
    let mut hearing = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = hearing.join_next() => if let Err(error) = ended {
                tracing::error!(panicked = error.is_panic(), "hearing what was said in Slack broke");
            },
            Some(heard) = queue.recv(), if hearing.len() < AT_ONCE => {
                let (shared, desk) = (Arc::clone(&shared), Arc::clone(&desk));
                hearing.spawn(async move {
                    let Heard { said, back } = heard;
                    let reply = desk.hear(said).await;
                    replying::reply(&shared.api, &back, &reply).await;
                });
            }
        }
    }
}

/// Where a message lies, in Slack's answer.
fn place(answer: &Value) -> Option<Receipt> {
    Some(receipt(answer["channel"].as_str()?, answer["ts"].as_str()?))
}

fn receipt(channel: &str, ts: &str) -> Receipt {
    Receipt(format!("{channel}:{ts}"))
}

fn split(receipt: &Receipt) -> Option<(&str, &str)> {
    receipt.0.split_once(':')
}

impl Notifier for Slack {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        Box::pin(self.deliver(message))
    }

    fn pace(&self) -> Pace {
        PACE
    }
}

impl Connector for Slack {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The desk is asked by [`Connector::run`], after the request is answered.
    fn hook<'a>(&'a self, request: Hook, _: &'a dyn Desk) -> BoxFuture<'a, HookAnswer> {
        Box::pin(async move { self.hear_request(&request, OffsetDateTime::now_utc()) })
    }

    fn run<'a>(&'a self, desk: Arc<dyn Desk>, stop: CancellationToken) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Some(queue) = self.heard.lock().expect("no holder panics").take() else { return };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = attend(Arc::clone(&self.shared), queue, desk) => {}
                () = self.listen() => {}
            }
        })
    }

    fn health(&self) -> Health {
        self.shared.api.health()
    }
}

#[cfg(test)]
mod tests;
