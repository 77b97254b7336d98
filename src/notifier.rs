//! What carries a notice to a person: a webhook or a chat connector, under the name of a target.
//!
//! A notifier makes one attempt and says what came of it. It does not retry, keeps nothing, and decides nothing:
//! repeating, and never repeating too often, is the outbox's work. The one thing that it must get right is the
//! difference between [`Delivery::Refused`] (nobody can have got it) and [`Delivery::Unknown`] (somebody may have).

pub mod webhook;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use onlooker_protocol::notice::{FormLink, Notice};
use serde::{Deserialize, Serialize};

use crate::{chat::marks::Marks, images::Picture};

/// One kind of carrier. A target is its name, and behind a colon an address that only it understands.
pub trait Notifier: Send + Sync + 'static {
    /// Makes one attempt. Dropping the future leaves its outcome unknown.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery>;

    /// How often the other end wants to hear from us.
    fn pace(&self) -> Pace {
        Pace::default()
    }
}

/// The shortest times between the beginnings of two sends; the outbox keeps them. Zero: none. With a pace for addresses,
/// each of them is sent one message at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// To one address.
    pub address: Duration,
    /// Over all addresses of the notifier.
    pub overall: Duration,
}

/// What is sent. `Debug` does not show the body.
#[derive(Clone, Default)]
pub struct Message {
    /// The idempotency id: a UUIDv7, the same for every attempt and for the one repeat.
    pub id: String,
    /// The target without the notifier's name.
    pub address: String,
    /// A [`Notice`] as JSON.
    pub body: Bytes,
    /// Whether an earlier attempt may have arrived.
    pub repeat: bool,
    /// Where the message lies that this one takes the place of.
    pub card: Option<Receipt>,
    /// Where the message lies that this one belongs under.
    pub thread: Option<Receipt>,
    pub extras: Extras,
}

impl Message {
    /// What it says, taken apart. `None`: a newer gateway wrote it.
    pub fn notice(&self) -> Option<Notice> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// What a message gets at the moment of sending, because it holds for a while only or must not be stored.
#[derive(Clone, Default)]
pub struct Extras {
    /// Where the session can be looked at.
    pub view: Option<String>,
    /// Where what is secret can be typed.
    pub form: Option<FormLink>,
    /// What its buttons carry.
    pub marks: Option<Marks>,
    /// What the session's browser shows, unless that is sensitive.
    pub picture: Option<Arc<Picture>>,
}

/// Where a message lies, in words that only its notifier understands. No secret: it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Receipt(pub String);

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("id", &self.id).field("repeat", &self.repeat).finish_non_exhaustive()
    }
}

/// What came of one attempt. Errors are for operators: they hold no body, no URL and no secret.
///
/// Where the other end wants to be left alone for a while, that holds back everything for this target
/// ([`Delivery::Refused`]) or for all of the notifier ([`Delivery::Throttled`]). What does not say which of them it means
/// is for the target: another one that is meant as well says so itself at the cost of one request, and a chat that is
/// asked too much silences no other. So a 429 of Telegram (of the chat or of the bot) and of Slack (of the method in the
/// workspace or in the channel) holds back the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other end has taken it.
    Confirmed,
    /// The other end has taken it, and it can be changed there.
    Shown(Receipt),
    /// The other end has not taken it, for certain.
    Refused {
        error: String,
        /// The other end's own wish, or the notifier's where trying soon has no sense: nothing is sent to this target
        /// before.
        retry_after: Option<Duration>,
    },
    /// As refused, and the other end has said that it wants to hear nothing of this notifier, to whatever address.
    Throttled { error: String, retry_after: Duration },
    /// The other end has not taken it, for certain, and will not take a later one unless somebody changes something
    /// there: the credential is revoked, the chat is gone or has blocked us, the request itself is wrong. What is asked is
    /// tried again, slowly; an edit is not: its message is gone.
    Rejected { error: String },
    /// It may have arrived, or not.
    Unknown { error: String },
}

/// The carriers by name.
#[derive(Clone, Default)]
pub struct Notifiers(Arc<HashMap<String, Arc<dyn Notifier>>>);

impl Notifiers {
    pub fn new(by_name: HashMap<String, Arc<dyn Notifier>>) -> Self {
        Self(Arc::new(by_name))
    }

    /// Who carries to this target; `None` where no such notifier is configured (any more).
    pub fn get(&self, target: &str) -> Option<&Arc<dyn Notifier>> {
        self.0.get(split_target(target).0)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn paces(&self) -> impl Iterator<Item = (String, Pace)> {
        self.0.iter().map(|(name, notifier)| (name.clone(), notifier.pace()))
    }
}

/// A target's notifier and its address there.
pub fn split_target(target: &str) -> (&str, &str) {
    target.split_once(':').unwrap_or((target, ""))
}

impl FromIterator<(String, Arc<dyn Notifier>)> for Notifiers {
    fn from_iter<I: IntoIterator<Item = (String, Arc<dyn Notifier>)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().collect())
    }
}
