//! What carries a notice to a person: a webhook or a chat connector, under the name of a target.
//!
//! A notifier makes one attempt and says what came of it. It does not retry, keeps nothing, and decides nothing:
//! repeating, and never repeating too often, is the outbox's work. The one thing that it must get right is the
//! difference between [`Delivery::Refused`] (nobody can have got it) and [`Delivery::Unknown`] (somebody may have).

pub mod webhook;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;

/// One kind of carrier, made for one target.
pub trait Notifier: Send + Sync + 'static {
    /// Makes one attempt. Dropping the future leaves its outcome unknown.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery>;
}

/// What is sent. `Debug` does not show the body.
#[derive(Clone)]
pub struct Message {
    /// The idempotency id: a UUIDv7, the same for every attempt and for the one repeat.
    pub id: String,
    /// JSON.
    pub body: Bytes,
    /// Whether an earlier attempt may have arrived.
    pub repeat: bool,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("id", &self.id).field("repeat", &self.repeat).finish_non_exhaustive()
    }
}

/// What came of one attempt. Errors are for operators: they hold no body, no URL and no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The other end has taken it.
    Confirmed,
    /// The other end has not taken it, for certain.
    Refused {
        error: String,
        /// The other end's own wish, or the notifier's where trying soon has no sense.
        retry_after: Option<Duration>,
    },
    /// It may have arrived, or not.
    Unknown { error: String },
}

/// The carriers by target.
#[derive(Clone, Default)]
pub struct Notifiers(Arc<HashMap<String, Arc<dyn Notifier>>>);

impl Notifiers {
    pub fn new(by_target: HashMap<String, Arc<dyn Notifier>>) -> Self {
        Self(Arc::new(by_target))
    }

    /// `None` where no such target is configured (any more).
    pub fn get(&self, target: &str) -> Option<&Arc<dyn Notifier>> {
        self.0.get(target)
    }

    pub fn targets(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl FromIterator<(String, Arc<dyn Notifier>)> for Notifiers {
    fn from_iter<I: IntoIterator<Item = (String, Arc<dyn Notifier>)>>(pairs: I) -> Self {
        Self::new(pairs.into_iter().collect())
    }
}
