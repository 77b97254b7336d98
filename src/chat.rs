//! Chats that people answer from. A connector translates between one chat's API and [`Desk`]; it decides nothing.
//!
//! A connector is a [`Notifier`] that also hears: through requests of the chat's own ([`Connector::hook`]) where the
//! gateway has a public address, otherwise by asking the chat itself ([`Connector::run`]). Whatever was said comes to
//! the desk as [`Said`], and the desk's [`Reply`] goes back to whoever said it. Cards are never changed because of a
//! tap: the outbox has them redrawn from the outcome.
//!
//! A new chat is one file here: its requests, its limits ([`Notifier::pace`]), and what its words mean in [`Said`].

pub mod card;
pub mod desk;
pub mod marks;
pub mod slack;
pub mod telegram;

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use reqwest::header::HeaderMap;
use tokio_util::sync::CancellationToken;

use crate::notifier::{Notifier, Receipt};

/// One chat.
pub trait Connector: Notifier {
    /// The first part of its targets, the last one of its path under `/v1/hooks/`, and the channel of its answers.
    fn name(&self) -> &'static str;

    /// A request that claims to come from the chat. Nothing is heard unless it proves that.
    fn hook<'a>(&'a self, request: Hook, desk: &'a dyn Desk) -> BoxFuture<'a, HookAnswer>;

    /// Whatever it does by itself, until `stop`: announcing where it can be reached, or listening where nobody can
    /// reach it.
    fn run<'a>(&'a self, desk: Arc<dyn Desk>, stop: CancellationToken) -> BoxFuture<'a, ()>;

    /// Whether it works; if not, what an operator is to do.
    fn health(&self) -> Health;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Working,
    /// The chat does not accept our credential. Nothing arrives until somebody changes that.
    Disabled(String),
}

/// The chats that are configured. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connectors(Arc<[Arc<dyn Connector>]>);

impl Connectors {
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Connector>> {
        self.iter().find(|connector| connector.name() == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Connector>> {
        self.0.iter()
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.iter().map(|connector| connector.name()).collect()
    }
}

impl FromIterator<Arc<dyn Connector>> for Connectors {
    fn from_iter<I: IntoIterator<Item = Arc<dyn Connector>>>(connectors: I) -> Self {
        Self(connectors.into_iter().collect())
    }
}

/// A request to `/v1/hooks/{connector}`.
pub struct Hook {
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// The response to it.
#[derive(Debug)]
pub struct HookAnswer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    /// Why it was refused, for the metric: `signature`, `malformed`, …
    pub refused: Option<&'static str>,
}

impl HookAnswer {
    /// Heard, and nothing to say.
    pub fn empty() -> Self {
        Self { status: 200, content_type: "text/plain", body: Bytes::new(), refused: None }
    }

    pub fn json(value: &serde_json::Value) -> Self {
        Self { content_type: "application/json", body: value.to_string().into(), ..Self::empty() }
    }

    pub fn refused(status: u16, why: &'static str) -> Self {
        Self { status, refused: Some(why), ..Self::empty() }
    }
}

/// Where everything that is said in chats is understood.
pub trait Desk: Send + Sync + 'static {
    fn hear(&self, said: Said) -> BoxFuture<'_, Reply>;
}

/// Something that somebody said or tapped. The connector has checked that the chat itself says so.
#[derive(Clone)]
pub struct Said {
    pub connector: &'static str,
    /// The chat, as in targets.
    pub address: String,
    pub by: Person,
    pub what: What,
}

/// A chat's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// The chat's own lasting id of them, not a name that they can choose.
    pub id: String,
    /// What others may call them.
    pub name: String,
}

/// May hold what somebody typed: no `Debug`.
#[derive(Clone)]
pub enum What {
    /// A button of ours.
    Tapped {
        mark: String,
        /// The message that it is on.
        on: Receipt,
    },
    /// Words in answer to a message of ours.
    Replied { to: Receipt, text: String },
    /// Other words to the bot: a code that links, or anything.
    Told { text: String },
}

/// What whoever said something is told; nobody else is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Empty: nothing.
    pub text: String,
    /// A page to open, with what its link says.
    pub link: Option<(String, String)>,
    /// What was said should not stay in the chat: it may be a secret.
    pub erase: bool,
    /// Nothing came of it: shown so that it is not overlooked.
    pub refused: bool,
}

impl Reply {
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    pub fn refused(text: impl Into<String>) -> Self {
        Self { refused: true, ..Self::text(text) }
    }
}
