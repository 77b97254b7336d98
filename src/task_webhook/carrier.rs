//! Carries task webhooks: a bounded queue, a bounded number at once, one attempt each.

use std::{error::Error, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use reqwest::{
    Client,
    header::{self, HeaderValue},
    redirect::Policy,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Post,
    address::{NotPublic, PublicOnly, names_private_address},
};
use crate::{
    ids::SessionId,
    metrics::Metrics,
    sabotage::{self, Guard},
};

/// Posts at once, over all sessions.
const AT_ONCE: usize = 64;
/// Webhooks that wait for a place among them. What finds no room is offered again by its session.
const QUEUE: usize = 10_000;
/// How long a receiver has for its answer (section 4.3 of the contract).
const TIMEOUT: Duration = Duration::from_secs(30);

/// How webhooks are carried.
#[derive(Clone, Copy, Debug)]
pub struct CarrierOptions {
    /// Private, loopback and link-local addresses are allowed.
    pub private: bool,
    /// For a whole attempt.
    pub timeout: Duration,
}

impl CarrierOptions {
    pub fn new(private: bool) -> Self {
        Self { private: private || sabotage::is_off(Guard::AddressCheck), timeout: TIMEOUT }
    }
}

/// A webhook that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    pub session: SessionId,
    pub task: String,
}

/// The sessions whose webhooks are carried.
pub trait Owners: Send + Sync + 'static {
    /// The request, once it is recorded that it is being sent; `None` when it is not to be sent.
    fn begin<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, Option<Post>>;

    /// The only attempt is over.
    fn done<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, ()>;
}

/// Where sessions hand in what is due. Cheap to clone.
#[derive(Clone)]
pub struct TaskWebhooks(mpsc::Sender<Due>);

impl TaskWebhooks {
    /// # Errors
    /// The HTTP client cannot be built. A default TLS provider must be installed.
    pub fn new(options: CarrierOptions, metrics: Arc<Metrics>) -> Result<(Self, Carrier), reqwest::Error> {
        let (sender, queue) = mpsc::channel(QUEUE);
        let sending = Arc::new(Sending { client: client(options)?, private: options.private, metrics });
        Ok((Self(sender), Carrier { queue, sending }))
    }

    /// Whether there was room for it.
    pub fn offer(&self, due: Due) -> bool {
        self.0.try_send(due).is_ok()
    }
}

/// Sends while it runs.
pub struct Carrier {
    queue: mpsc::Receiver<Due>,
    sending: Arc<Sending>,
}

impl Carrier {
    /// Runs until `stop`; then nothing new is sent, and what is under way is waited for. Dropping the future is as a
    /// crash.
    pub async fn run(mut self, owners: Arc<dyn Owners>, stop: CancellationToken) {
        let mut posts = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(_) = posts.join_next() => {}
                due = self.queue.recv(), if posts.len() < AT_ONCE => match due {
                    Some(due) => {
                        posts.spawn(Arc::clone(&self.sending).carry(Arc::clone(&owners), due));
                    }
                    None => break,
                },
            }
        }
        while posts.join_next().await.is_some() {}
    }
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Delivered,
    /// The receiver answered something else than 2xx, a redirect among it.
    Refused(u16),
    /// Its address is not public.
    Blocked,
    TimedOut,
    /// No connection, or none that lasted.
    Failed,
}

impl Outcome {
    fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Refused(_) => "refused",
            Self::Blocked => "blocked",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
        }
    }
}

struct Sending {
    client: Client,
    private: bool,
    metrics: Arc<Metrics>,
}

fn client(options: CarrierOptions) -> Result<Client, reqwest::Error> {
    let builder = Client::builder()
        .user_agent(concat!("Onlooker/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        // Either would be a second attempt.
        .retry(reqwest::retry::never())
        .pool_max_idle_per_host(0)
        .timeout(options.timeout);
    if options.private { builder.build() } else { builder.dns_resolver(Arc::new(PublicOnly)).build() }
}

impl Sending {
    async fn carry(self: Arc<Self>, owners: Arc<dyn Owners>, due: Due) {
        let Some(post) = owners.begin(&due).await else { return };
        let outcome = self.send(post).await;
        self.metrics.task_webhook(outcome.name());
        match outcome {
            Outcome::Delivered => tracing::debug!(session.id = ?due.session, "a task webhook was delivered"),
            Outcome::Blocked => {
                let hint = "allow it with webrun.private_webhooks";
                tracing::warn!(session.id = ?due.session, hint, "a task webhook leads to an address that is not public");
            }
            outcome => tracing::warn!(session.id = ?due.session, ?outcome, "a task webhook was not delivered"),
        }
        owners.done(&due).await;
    }

    async fn send(&self, post: Post) -> Outcome {
        if !self.private && names_private_address(&post.url) {
            return Outcome::Blocked;
        }
        let mut request = self.client.post(post.url).header(header::CONTENT_TYPE, "application/json").body(post.body);
        if let Some(authorization) = post.authorization {
            let Ok(mut value) = HeaderValue::from_str(&authorization) else { return Outcome::Failed };
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        match request.send().await {
            Ok(response) if response.status().is_success() => Outcome::Delivered,
            Ok(response) => Outcome::Refused(response.status().as_u16()),
            Err(error) if is_blocked(&error) => Outcome::Blocked,
            Err(error) if error.is_timeout() => Outcome::TimedOut,
            // Its text would hold the URL.
            Err(_) => Outcome::Failed,
        }
    }
}

fn is_blocked(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<NotPublic>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
