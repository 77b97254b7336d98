//! Builds the parts, owns every task, and drains in order. The only file that knows all modules.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{Auth, SigningKey},
    chat::{
        Connector, Connectors, Desk,
        desk::ChatDesk,
        marks::MarkKey,
        slack::{Slack, SlackOptions},
        telegram::Telegram,
    },
    config::{Config, ConfigError},
    control::ControlTimes,
    engine::{
        Bounds, Engine, EngineError, RecordKey, RecordKind,
        disk::{DiskEngine, DiskOptions, OpenError},
        memory::MemoryEngine,
    },
    files::{Files, FilesOptions},
    forms::Forms,
    guardrail::GuardrailRules,
    http::{self, App, Parts, events::Alive, guard::Guard, listener, ticks::Ticks, tls, webrun::rates::Rates},
    hub::Hub,
    ids::SessionId,
    images::{ImageBounds, Reducer},
    links::Links,
    metrics::Metrics,
    notifier::{
        Notifier, Notifiers,
        webhook::{SigningSecret, Webhook, WebhookError},
    },
    outbox::{Outbox, OutboxTimes},
    reach_out::Windows,
    session::{Directory, KeptBehind, RestoreError, Services, SessionLimits, SessionTimes, Targets},
    task_webhook::{CarrierOptions, TaskWebhooks},
    watch::WatchTimes,
};

/// The name of the gateway's own webhook as a target of notices.
const WEBHOOK: &str = "webhook";
/// How often an engine that does not answer is asked for the key that signs tokens, within half a second.
const SIGNING_KEY_TRIES: u32 = 25;
/// Distinct guardrail ids in one session's life.
const GUARDRAIL_IDS: usize = 4096;

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the configuration is wrong: {0}")]
    Config(#[from] ConfigError),
    #[error("cannot listen on {address}, perhaps because another program uses the port")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("TLS: {0}")]
    Tls(#[from] tls::TlsError),
    #[error("the notify webhook: {0}")]
    Webhook(#[from] WebhookError),
    #[error("the HTTP client of the chats cannot be built")]
    Chats(#[source] reqwest::Error),
    #[error("the data directory cannot be used")]
    Data(#[from] OpenError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error("the stored links of chats cannot be read")]
    Links(#[source] EngineError),
    #[error("the directory of uploaded files cannot be used")]
    Files(#[source] io::Error),
    #[error("the key that signs tokens cannot be read or kept")]
    SigningKey(#[source] EngineError),
}

/// A running gateway.
pub struct Gateway {
    address: SocketAddr,
    scheme: &'static str,
    directory: Directory,
    app: App,
    engine: Arc<dyn Engine>,
    stop: Stop,
    serving: JoinHandle<listener::Drained>,
    dispatching: JoinHandle<()>,
    carrying: JoinHandle<()>,
}

/// The tokens that end the parts, in the order in which they are cancelled.
struct Stop {
    accepting: CancellationToken,
    connections: CancellationToken,
    owners: CancellationToken,
    hub: CancellationToken,
    outbox: CancellationToken,
    /// Connections and streams.
    tasks: TaskTracker,
    owner_tasks: TaskTracker,
    hub_tasks: TaskTracker,
    drain: Duration,
}

impl Gateway {
    /// Starts on the engine that the configuration names.
    ///
    /// # Errors
    /// Nothing is left running, and no port is open.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        config.check()?;
        let engine = open_engine(&config).await?;
        Self::start_on(config, engine).await
    }

    /// Starts on a given engine.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_on(config: Config, engine: Arc<dyn Engine>) -> Result<Self, StartError> {
        Self::start_with(config, engine, Vec::new()).await
    }

    /// Starts on a given engine, with chats beside those of the configuration.
    ///
    /// # Errors
    /// As [`Gateway::start`].
    pub async fn start_with(
        config: Config,
        engine: Arc<dyn Engine>,
        chats: Vec<Arc<dyn Connector>>,
    ) -> Result<Self, StartError> {
        config.check_beside(&chats.iter().map(|chat| chat.name()).collect::<Vec<_>>())?;
        // Another part of the process may have installed one: then that one serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = match (&config.listen.tls_cert, &config.listen.tls_key) {
            (Some(certificate), Some(key)) => Some(tls::load(certificate, key)?),
            _ => None,
        };
        let times = outbox_times(&config);
        let connectors = connectors(&config).map_err(StartError::Chats)?;
        let connectors: Connectors = connectors.iter().cloned().chain(chats).collect();
        let (outbox, dispatcher) = Outbox::new(Arc::clone(&engine), notifiers(&config, times, &connectors)?, times);
        let stop = Stop::new(config.times.drain);
        let files = Files::open(FilesOptions::from(&config)).await.map_err(StartError::Files)?;
        let signing_key = signing_key(&*engine).await?;
        let chats = Chats {
            links: Arc::new(Links::load(Arc::clone(&engine)).await.map_err(StartError::Links)?),
            forms: Forms::new(signing_key.derive("forms"), config.listen.public_url.clone()),
            marks: MarkKey::new(signing_key.derive("chat marks")),
            connectors: connectors.clone(),
        };
        let auth = Auth::with_signing_key(&config, signing_key);
        let metrics = Arc::new(Metrics::new());
        let (webhooks, carrier) =
            TaskWebhooks::new(CarrierOptions::new(config.webrun.private_webhooks), Arc::clone(&metrics))
                .map_err(WebhookError::Client)?;
        let reducer = Reducer::new(stop.hub_tasks.clone(), stop.hub.clone(), Arc::clone(&metrics));
        let services = Arc::new(services(&config, Arc::clone(&engine), (outbox, webhooks), chats, (metrics, reducer)));
        let directory = Directory::new(Arc::clone(&services), stop.owner_tasks.clone(), stop.owners.clone());
        let listen = |source| StartError::Listen { address: config.listen.address, source };
        let listener = TcpListener::bind(config.listen.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        // Whoever connects meanwhile waits, and then finds what was there.
        let restored = directory.restore().await.inspect_err(|_| stop.owners.cancel())?;
        if restored > 0 {
            tracing::info!(sessions = restored, "sessions restored");
        }
        let scheme = if tls.is_some() { "https" } else { "http" };

        let guard = Arc::new(Guard::new(&config.listen, address, auth.is_open()));
        let limits = listener::ListenerLimits::from(&config);
        let rates = Rates::new(config.webrun.requests_per_minute);
        stop.tasks.spawn(files.clone().expire(stop.connections.clone()));
        let desk: Arc<dyn Desk> = Arc::new(ChatDesk::new(directory.clone()));
        for connector in connectors.iter() {
            let (connector, desk) = (Arc::clone(connector), Arc::clone(&desk));
            let stopping = stop.connections.clone();
            stop.tasks.spawn(async move { connector.run(desk, stopping).await });
        }
        let app = App::new(Parts {
            directory: directory.clone(),
            hub: Hub::new(stop.hub_tasks.clone(), stop.hub.clone(), services.metrics.frames_sent.clone()),
            auth,
            config,
            files,
            metrics: Arc::clone(&services.metrics),
            guard,
            alive: Alive::default(),
            rates,
            connectors,
            desk,
            form_posts: http::form::posts(),
            link_tests: http::links::tests(),
            socketio: Default::default(),
            ticks: Ticks::begin(&stop.tasks, stop.connections.clone()),
            connections: AtomicUsize::new(0),
            ready: AtomicBool::new(true),
            stopping: stop.connections.clone(),
            tasks: stop.tasks.clone(),
        });
        let counts = Arc::default();
        let accepting = stop.accepting.clone();
        let serving =
            tokio::spawn(listener::serve(listener, tls, http::router(app.clone()), limits, counts, accepting));
        let dispatching = tokio::spawn(dispatcher.run(Arc::new(directory.clone()), stop.outbox.clone()));
        let carrying = tokio::spawn(carrier.run(Arc::new(directory.clone()), stop.outbox.clone()));
        Ok(Self { address, scheme, directory, app, engine, stop, serving, dispatching, carrying })
    }

    /// Where it listens: with port 0 in the configuration, the port that it got.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Sessions that are known now.
    pub fn sessions(&self) -> usize {
        self.directory.len()
    }

    /// Stops in order, each step with a deadline: no new connections; runtimes and subscribers are told, with spread
    /// delays; the owners end without counting anybody as gone; notices under way finish; the rest ends.
    pub async fn stop(self) {
        let Self { stop, serving, dispatching, mut carrying, app, engine, .. } = self;
        app.ready.store(false, Ordering::Release);
        stop.accepting.cancel();
        // First: what follows looks like everybody leaving, and must not be taken for it.
        stop.outbox.cancel();
        stop.owners.cancel();
        stop.connections.cancel();
        stop.tasks.close();
        stop.owner_tasks.close();
        let deadline = Instant::now() + stop.drain;
        let _ = tokio::time::timeout_at(deadline, stop.tasks.wait()).await;
        let _ = tokio::time::timeout_at(deadline, stop.owner_tasks.wait()).await;
        let _ = tokio::time::timeout_at(deadline, dispatching).await;
        if tokio::time::timeout_at(deadline, &mut carrying).await.is_err() {
            carrying.abort();
        }
        stop.hub.cancel();
        stop.hub_tasks.close();
        let _ = tokio::time::timeout_at(deadline, stop.hub_tasks.wait()).await;
        match tokio::time::timeout_at(deadline + Duration::from_secs(1), serving).await {
            Ok(Ok(drained)) if drained.left > 0 => tracing::warn!(left = drained.left, "connections were cut off"),
            Ok(_) => {}
            Err(_) => tracing::warn!("connections did not end in time"),
        }
        engine.close().await;
    }
}

impl Stop {
    fn new(drain: Duration) -> Self {
        Self {
            accepting: CancellationToken::new(),
            connections: CancellationToken::new(),
            owners: CancellationToken::new(),
            hub: CancellationToken::new(),
            outbox: CancellationToken::new(),
            tasks: TaskTracker::new(),
            owner_tasks: TaskTracker::new(),
            hub_tasks: TaskTracker::new(),
            drain,
        }
    }
}

async fn open_engine(config: &Config) -> Result<Arc<dyn Engine>, StartError> {
    let Some(dir) = config.data.directory() else { return Ok(Arc::new(MemoryEngine::new(bounds(config)))) };
    let options = DiskOptions { dir, bounds: bounds(config), durability: config.data.durability };
    let (began, place) = (Instant::now(), options.dir.clone());
    let opened = tokio::task::spawn_blocking(move || DiskEngine::open(options)).await;
    let engine = opened.expect("opening does not panic")?;
    let took = began.elapsed();
    tracing::info!(dir = %place.display(), durability = ?config.data.durability, ?took, "data directory opened");
    Ok(Arc::new(engine))
}

/// What an engine keeps under this configuration.
pub fn bounds(config: &Config) -> Bounds {
    let limits = &config.limits;
    Bounds {
        log_records: limits.log_events,
        log_bytes: limits.log_bytes,
        log_age: config.times.log_age,
        total_bytes: limits.log_bytes_total as u64,
    }
}

/// The key that signs tokens: made once, and kept so that tokens outlive the process. An engine that does not answer at
/// once is asked again for a moment.
async fn signing_key(engine: &dyn Engine) -> Result<SigningKey, StartError> {
    let mut tries = 0;
    loop {
        match kept_signing_key(engine).await {
            Ok(key) => return Ok(key),
            Err(EngineError::Unavailable(_) | EngineError::Conflict { .. }) if tries < SIGNING_KEY_TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(StartError::SigningKey(error)),
        }
    }
}

async fn kept_signing_key(engine: &dyn Engine) -> Result<SigningKey, EngineError> {
    let name = RecordKey { kind: RecordKind::Gateway, session: SessionId::NONE, name: "signing-key".to_owned() };
    if let Some((_, kept)) = engine.get(name.clone()).await? {
        let bytes = <[u8; 32]>::try_from(&*kept).map_err(|error| EngineError::Unavailable(Some(Box::new(error))))?;
        return Ok(SigningKey::from_bytes(bytes));
    }
    let fresh = SigningKey::generate();
    engine.put(name, None, Bytes::copy_from_slice(fresh.as_bytes())).await?;
    Ok(fresh)
}

fn outbox_times(config: &Config) -> OutboxTimes {
    OutboxTimes {
        retention: config.times.retention,
        webhook_timeout: config.times.notice_timeout,
        ..OutboxTimes::default()
    }
}

/// What the chats share with the sessions.
struct Chats {
    links: Arc<Links>,
    forms: Forms,
    marks: MarkKey,
    connectors: Connectors,
}

/// The chats that the configuration names.
fn connectors(config: &Config) -> Result<Connectors, reqwest::Error> {
    let mut chats: Vec<Arc<dyn Connector>> = Vec::new();
    let public_url = config.listen.public_url.as_ref();
    if let Some(telegram) = Telegram::new(&config.telegram, public_url, config.times.notice_timeout)? {
        chats.push(Arc::new(telegram));
    }
    if let Some(options) = SlackOptions::from_config(config) {
        chats.push(Arc::new(Slack::new(options)?));
    }
    Ok(chats.into_iter().collect())
}

fn notifiers(config: &Config, times: OutboxTimes, chats: &Connectors) -> Result<Notifiers, WebhookError> {
    let of = |chat: &Arc<dyn Connector>| (chat.name().to_owned(), Arc::clone(chat) as Arc<dyn Notifier>);
    let mut by_name: HashMap<String, Arc<dyn Notifier>> = chats.iter().map(of).collect();
    if let Some(webhook) = &config.reach_out.notify_webhook {
        let secrets = webhook.secret.iter().map(|secret| SigningSecret::parse(secret.expose()));
        let secrets = secrets.collect::<Result<Vec<_>, _>>()?;
        let url = webhook.url.expose().parse().expect("checked by the configuration");
        let notifier = Webhook::new(url, secrets, times.webhook_timeout)?;
        by_name.insert(WEBHOOK.to_owned(), Arc::new(notifier));
    }
    Ok(Notifiers::new(by_name))
}

fn services(
    config: &Config,
    engine: Arc<dyn Engine>,
    (outbox, webhooks): (Outbox, TaskWebhooks),
    chats: Chats,
    (metrics, reducer): (Arc<Metrics>, Reducer),
) -> Services {
    let (limits, times) = (&config.limits, &config.times);
    Services {
        engine,
        boards: Default::default(),
        runtimes: Default::default(),
        outbox,
        webhooks,
        targets: Targets {
            links: chats.links,
            fallback: config.reach_out.notify_webhook.as_ref().map(|_| WEBHOOK.to_owned()),
            ladder: config.reach_out.ladder.clone(),
            chats: chats.connectors.names(),
        },
        forms: chats.forms,
        marks: chats.marks,
        unreached: Default::default(),
        metrics,
        guardrails: GuardrailRules {
            open: limits.open_guardrails,
            ids: GUARDRAIL_IDS,
            items: limits.guardrail_items,
            text: limits.guardrail_text_bytes,
            max_wait: times.guardrail_max_wait,
            default_answer_allowed: config.guardrails.allow_default_answer.clone(),
            claim: times.claim,
            claim_max: times.claim_max,
            claim_grace: times.grace,
        },
        windows: Windows { grace: times.grace, first_look: times.first_look },
        watch: WatchTimes {
            live_window: times.live_window,
            attention_lease: times.attention_lease,
            poll_window: times.poll_window,
            remember: times.grace.max(times.first_look),
        },
        images: ImageBounds { count: limits.pictures, bytes: limits.picture_bytes },
        reducer,
        times: SessionTimes {
            offer: times.offer,
            runtime_grace: times.runtime_grace,
            http_away: times.http_runtime_away,
            inactivity: times.inactivity,
            retention: times.retention,
            sensitive: times.sensitive_window,
            task_slack: times.task_slack,
            control: ControlTimes { lease: times.control_lease, grace: times.control_grace },
        },
        kept_behind: KeptBehind { events: (limits.log_events / 4) as u64, bytes: (limits.log_bytes / 4) as u64 },
        limits: SessionLimits { sessions: limits.sessions, queued_tasks: limits.queued_tasks },
        start_grace_until: Instant::now() + times.start_grace,
        ended: Mutex::default(),
    }
}
