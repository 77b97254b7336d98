//! What an operator can set: one [`Config`] in parts, each handed to the module that needs it.
//!
//! Values come from the defaults, then the TOML file, then the environment (`ONLOOKER_…`), then flags; the last one
//! wins. Everything is checked, also limits against each other, before a port is opened. A file with an unknown key is
//! refused with the nearest right name and the line. Unknown variables of the environment are only warned about:
//! orchestrators add some of their own (`ONLOOKER_PORT`, `ONLOOKER_SERVICE_HOST`).
//!
//! Secrets are held in [`secret::Secret`], which no `Debug` shows and which is overwritten when it is dropped.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use onlooker_protocol::view::GuardrailKind;
use url::Url;

pub mod check;
pub mod key;
pub mod load;
pub mod secret;
mod settings;
mod units;

use crate::reach_out::ladder::Step;
use key::KeyEntry;
use secret::{Secret, SecretUrl};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const GIB: usize = 1024 * MIB;

/// The exit status of a program with a wrong configuration: `EX_USAGE` of sysexits.h.
pub const EXIT_STATUS: u8 = 64;

/// Everything an operator can set. Tests change fields of `Config::default()`.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub listen: Listen,
    pub data: Data,
    pub limits: Limits,
    pub times: Times,
    pub guardrails: Guardrails,
    pub reach_out: ReachOut,
    pub telegram: Telegram,
    pub slack: Slack,
    pub webrun: WebRun,
    /// None: open, on loopback only.
    pub keys: Vec<KeyEntry>,
    /// Ids of keys whose runtimes serve every project; the same as `pool = true` at the key.
    pub pools: Vec<String>,
}

/// Where it listens and under which names it is reached.
#[derive(Clone, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// The operator's word that a proxy in front of it speaks TLS.
    pub plaintext_behind_proxy: bool,
    /// Where chat users and their browsers reach forms, session views and callbacks.
    pub public_url: Option<Url>,
    /// Origins (`https://console.example.com`) whose pages may use the native surfaces when there are keys.
    pub origins: Vec<String>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8787)),
            tls_cert: None,
            tls_key: None,
            plaintext_behind_proxy: false,
            public_url: None,
            origins: Vec::new(),
        }
    }
}

/// The data directory when nobody names one, in the working directory.
pub const DATA_DIR: &str = "onlooker-data";

/// Where the embedded engine keeps its data.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// None: [`DATA_DIR`].
    pub dir: Option<PathBuf>,
    /// In memory only; nothing outlives the process.
    pub ephemeral: bool,
    pub durability: Durability,
}

impl Data {
    /// The directory, unless nothing is kept.
    pub fn directory(&self) -> Option<PathBuf> {
        (!self.ephemeral).then(|| self.dir.clone().unwrap_or_else(|| DATA_DIR.into()))
    }
}

/// When something counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is on the disk: it outlives the machine's power.
    #[default]
    Fsync,
    /// Once the operating system has it: it outlives this process, whatever ends that, but not the machine's power.
    Os,
}

#[derive(Clone, Debug, Default)]
pub struct Guardrails {
    /// Purchase, security and policy guardrails may be answered by default only when listed here.
    pub allow_default_answer: Vec<GuardrailKind>,
}

/// Whom a guardrail reaches when a project names nobody, and what follows when nobody answers.
#[derive(Clone, Debug, Default)]
pub struct ReachOut {
    pub notify_webhook: Option<NotifyWebhook>,
    /// None: the first notice is the only one.
    pub ladder: Vec<Step>,
}

/// The Telegram bot. Off without a token.
#[derive(Clone, Debug)]
pub struct Telegram {
    pub token: Option<Secret>,
    /// Of the Bot API; another one is for a server of one's own, and for tests.
    pub api: Url,
}

impl Default for Telegram {
    fn default() -> Self {
        Self { token: None, api: "https://api.telegram.org/".parse().expect("a URL") }
    }
}

/// The Slack app. Off without a bot token.
#[derive(Clone, Debug)]
pub struct Slack {
    pub bot_token: Option<Secret>,
    /// Checks that requests come from Slack. Needed where Slack reaches the gateway at `public_url`.
    pub signing_secret: Option<Secret>,
    /// Opens Socket Mode where there is no public address.
    pub app_token: Option<Secret>,
    pub api: Url,
}

impl Default for Slack {
    fn default() -> Self {
        let api = "https://slack.com/api/".parse().expect("a URL");
        Self { bot_token: None, signing_secret: None, app_token: None, api }
    }
}

/// What clients of the WebRun surfaces may do and how long they wait.
#[derive(Clone, Debug)]
pub struct WebRun {
    /// The session id alone opens nothing: polls and sockets need a key of the session's project as well.
    pub require_key: bool,
    /// How long `run-task` and `newTask` wait for a result before they answer with where to poll.
    pub inline_wait: Duration,
    /// `newTask`, starts, runs and uploads of one key in any 60 s.
    pub requests_per_minute: usize,
    /// Failed joins of one address in any 60 s.
    pub failed_joins_per_minute: usize,
    /// Addresses whose `X-Forwarded-…` headers say under which name and from where they were asked.
    pub trusted_proxies: Vec<IpAddr>,
    /// Task webhooks may go to private, loopback and link-local addresses.
    pub private_webhooks: bool,
    /// Of one uploaded file.
    pub file_bytes: usize,
    /// Of all files together.
    pub files_bytes_total: usize,
    /// How long a file without an environment is kept.
    pub orphan_file: Duration,
}

impl Default for WebRun {
    fn default() -> Self {
        Self {
            require_key: false,
            inline_wait: Duration::from_secs(50),
            requests_per_minute: 10,
            failed_joins_per_minute: 30,
            trusted_proxies: Vec::new(),
            private_webhooks: false,
            file_bytes: 100 * MIB,
            files_bytes_total: 10 * GIB,
            orphan_file: Duration::from_secs(3600),
        }
    }
}

#[derive(Clone, Debug)]
pub struct NotifyWebhook {
    pub url: SecretUrl,
    /// The Standard Webhooks secret, `whsec_…`. None: notices are not signed.
    pub secret: Option<Secret>,
}

/// What is bounded, and where. Names end in `bytes` where they count bytes; the others count things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub client_frame_bytes: usize,
    pub runtime_frame_bytes: usize,
    pub event_payload_bytes: usize,
    pub batch_events: usize,
    /// What a connection may send before it has authenticated.
    pub auth_frame_bytes: usize,
    pub subscriptions_per_connection: usize,
    pub log_events: usize,
    pub log_bytes: usize,
    /// Over all sessions; ended ones go first.
    pub log_bytes_total: usize,
    /// Per connection; above it the subscriber reads from the log.
    pub send_queue_bytes: usize,
    /// Per session.
    pub open_guardrails: usize,
    /// Fields or choices of one guardrail.
    pub guardrail_items: usize,
    pub guardrail_text_bytes: usize,
    /// Per session.
    pub queued_tasks: usize,
    /// Per session, whichever of the two is reached first.
    pub pictures: usize,
    pub picture_bytes: usize,
    /// In all, also before authentication.
    pub connections: usize,
    /// In all, ended ones within retention included.
    pub sessions: usize,
    pub http_body_bytes: usize,
    /// Of `POST /v1/sessions/{id}/events`.
    pub events_body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_frame_bytes: 64 * KIB,
            runtime_frame_bytes: 8 * MIB,
            event_payload_bytes: 256 * KIB,
            batch_events: 500,
            auth_frame_bytes: 4 * KIB,
            subscriptions_per_connection: 1_000,
            log_events: 10_000,
            log_bytes: 16 * MIB,
            log_bytes_total: GIB,
            send_queue_bytes: 256 * KIB,
            open_guardrails: 16,
            guardrail_items: 32,
            guardrail_text_bytes: 16 * KIB,
            queued_tasks: 32,
            pictures: 64,
            picture_bytes: 16 * MIB,
            connections: 10_240,
            sessions: 100_000,
            http_body_bytes: MIB,
            events_body_bytes: 8 * MIB,
        }
    }
}

/// Every time that the gateway waits for, keeps or promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// How long a connection may take to authenticate.
    pub auth_within: Duration,
    pub ping_every: Duration,
    /// Without a pong for this long a subscriber is no longer live.
    pub live_window: Duration,
    pub attention_lease: Duration,
    /// For how long after its response a poll counts as looking.
    pub poll_window: Duration,
    /// After the last watcher left abnormally.
    pub grace: Duration,
    /// How long an able watcher has for its proof before somebody is reached out to.
    pub first_look: Duration,
    /// After a start or a change of owner.
    pub start_grace: Duration,
    /// How long a runtime has to take a session that it was offered.
    pub offer: Duration,
    /// How long the receiver of a notice has to answer; after that nobody knows whether it has it.
    pub notice_timeout: Duration,
    /// How long a session waits for its runtime to come back.
    pub runtime_grace: Duration,
    /// A runtime over HTTP is away after this long without contact.
    pub http_runtime_away: Duration,
    pub inactivity: Duration,
    /// How long after a task's own limit the gateway ends it: the limit is the runtime's to keep.
    pub task_slack: Duration,
    /// For guardrails without a deadline of their own.
    pub guardrail_max_wait: Duration,
    pub claim: Duration,
    pub claim_max: Duration,
    pub control_lease: Duration,
    /// After the holder's connection was lost.
    pub control_grace: Duration,
    /// How long a sensitive window that the gateway opened lasts at most.
    pub sensitive_window: Duration,
    /// How long an ended session is kept.
    pub retention: Duration,
    /// Events of a running session that are older than its newest one by more than this are trimmed.
    pub log_age: Duration,
    /// A connection whose peer takes nothing for this long is closed.
    pub send_stall: Duration,
    /// From a request's first byte (or the connection's start) to the end of its head.
    pub header_read: Duration,
    /// What a request's body may take; honest slow uploads earn more, see `http::body`.
    pub body_read: Duration,
    pub tls_handshake: Duration,
    /// For how long a connection without a request is kept.
    pub keep_alive: Duration,
    /// How long a stop waits for connections to finish.
    pub drain: Duration,
}

impl Default for Times {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        let minutes = |n: u64| seconds(60 * n);
        Self {
            auth_within: seconds(5),
            ping_every: seconds(10),
            live_window: seconds(20),
            attention_lease: seconds(30),
            poll_window: seconds(10),
            grace: seconds(5),
            first_look: seconds(10),
            start_grace: seconds(15),
            offer: seconds(10),
            notice_timeout: seconds(10),
            runtime_grace: seconds(300),
            http_runtime_away: seconds(60),
            inactivity: minutes(5),
            task_slack: seconds(30),
            guardrail_max_wait: minutes(24 * 60),
            claim: minutes(2),
            claim_max: minutes(15),
            control_lease: seconds(60),
            control_grace: seconds(5),
            sensitive_window: seconds(30),
            retention: minutes(60),
            log_age: minutes(7 * 24 * 60),
            send_stall: seconds(30),
            header_read: seconds(5),
            body_read: seconds(30),
            tls_handshake: seconds(10),
            keep_alive: seconds(75),
            drain: seconds(10),
        }
    }
}

/// Where a wrong value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File { path: PathBuf, line: usize },
    Environment(String),
    Flag(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Why a configuration is refused. No message holds a value that could be a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{place}: this is not TOML: {problem}")]
    NotToml { place: Place, problem: String },
    #[error("{place}: unknown key `{key}`{}", did_you_mean(.nearest.as_deref()))]
    UnknownKey { place: Place, key: String, nearest: Option<String> },
    #[error("{place}: `{key}` {problem}")]
    WrongValue { place: Place, key: String, problem: String },
    /// Each value is fine alone, but not beside the others.
    #[error("{0}")]
    DoNotFit(String),
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}
