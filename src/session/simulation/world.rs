//! One run: its processes one after the other over one engine, and all that lives longer than they do.
//!
//! Each process is a runtime of its own with its clock paused: dropping it stops every task where it stands, as a kill
//! does. What was committed, and what people and runtimes remember, is the world's.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, pending};
use onlooker_protocol::{
    event::{Epoch, EventFrame, kind},
    view::ReachOutMode,
};
use rand::{RngExt, rngs::StdRng};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use super::{
    people,
    plan::{self, End, Plan},
    runtimes::{self, Memory},
    targets::Carrier,
    trace::{Event, Subject, Trace},
};
use crate::{
    chat::marks::MarkKey,
    clock,
    config::Config,
    control::ControlTimes,
    engine::{
        Batch, Before, Bounds, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version,
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    forms::Forms,
    guardrail::GuardrailRules,
    hub::Hub,
    ids::{Project, SessionId},
    images::{ImageBounds, Reducer},
    links::{Link, Links},
    metrics::Metrics,
    notifier::{Notifier, Notifiers},
    outbox::{NoticeKey, NoticeSubject, Outbox, OutboxTimes},
    reach_out::Windows,
    session::{Directory, KeptBehind, Services, Session, SessionLimits, SessionTimes, Targets},
    task_webhook::{CarrierOptions, TaskWebhooks},
    watch::WatchTimes,
};

/// Wall time at the beginning of each run.
const BEGINNING: OffsetDateTime = time::macros::datetime!(2026-01-01 12:00 UTC);
/// Longer than every wait that something may still be in when nothing goes wrong any more.
const QUIET: Duration = Duration::from_secs(240);
pub(super) const PROJECT: &str = "shop";
pub(super) const ENVIRONMENT: &str = "prod";

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) trace: Arc<Trace>,
    pub(super) kill: Arc<Kill>,
    pub(super) memories: Vec<Arc<Mutex<Memory>>>,
    /// Where each subscriber was, to come back to.
    engine: Arc<dyn Engine>,
    faults: Arc<Faults>,
    random: Mutex<StdRng>,
    quiet: AtomicBool,
    jumped_ms: AtomicI64,
}

/// One process. Cheap to clone.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) world: Arc<World>,
    pub(super) directory: Directory,
    pub(super) hub: Hub,
    nth: u64,
}

impl World {
    pub(super) fn new(plan: Plan) -> Arc<Self> {
        let (trace, kill) = (Arc::new(Trace::default()), Arc::new(Kill::default()));
        let bounds = Bounds {
            log_records: 10_000,
            log_bytes: 16 << 20,
            log_age: Duration::from_secs(604_800),
            total_bytes: 1 << 30,
        };
        let tap = Tap {
            memory: MemoryEngine::new(bounds),
            trace: Arc::clone(&trace),
            kill: Arc::clone(&kill),
            seen: Mutex::default(),
        };
        let faults = Arc::new(Faults::default());
        Arc::new(Self {
            memories: plan.modes.iter().map(|mode| Arc::new(Mutex::new(Memory::new(*mode)))).collect(),
            engine: Arc::new(FaultyEngine::new(tap, Arc::clone(&faults), plan.seed)),
            random: Mutex::new(plan.random(1)),
            plan,
            trace,
            kill,
            faults,
            quiet: AtomicBool::new(false),
            jumped_ms: AtomicI64::new(0),
        })
    }

    /// The whole run.
    pub(super) fn run(self: &Arc<Self>) {
        for (nth, life) in self.plan.lives.iter().enumerate() {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                self.trace.begin_life(life.after_ms);
                self.set_wall();
                self.kill.arm(life.end);
                tokio::select! {
                    biased;
                    () = self.kill.struck() => self.trace.push(Event::Killed),
                    () = self.live(nth as u64, *life) => {}
                }
                self.trace.end_life();
            });
        }
    }

    async fn live(self: &Arc<Self>, nth: u64, plan: plan::Life) {
        self.heal();
        let (life, process) = Life::start(self, nth).await;
        let mut actors = JoinSet::new();
        life.spawn_actors(&mut actors);
        tokio::select! {
            biased;
            () = self.kill.stopping.notified() => {}
            () = sleep(Duration::from_millis(plan.lasts_ms)) => {}
        }
        match plan.end {
            End::Killed | End::KilledAtWrite { .. } => self.trace.push(Event::Killed),
            End::Stopped | End::StoppedAtWrite { .. } => {
                self.trace.push(Event::Stopped);
                process.stop(actors).await;
            }
            End::Quiet => {
                self.quiet.store(true, Ordering::Relaxed);
                self.heal();
                self.trace.push(Event::Quiet);
                sleep(QUIET).await;
                life.look().await;
            }
        }
    }

    fn set_wall(&self) {
        let since = self.trace.now().cast_signed() + self.jumped_ms.load(Ordering::Relaxed);
        clock::pretended::set(BEGINNING + time::Duration::milliseconds(since));
    }

    fn heal(&self) {
        self.faults.failing_per_mille.store(0, Ordering::Relaxed);
        self.faults.unreadable.store(false, Ordering::Relaxed);
        self.faults.delay_us.store(self.plan.lag_ms * 1000, Ordering::Relaxed);
        self.trace.push(Event::Trouble { begins: false });
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    pub(super) fn with_random<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.random.lock().unwrap())
    }
}

/// What of a process is stopped in order.
struct Process {
    owners: CancellationToken,
    outbox: CancellationToken,
    owner_tasks: TaskTracker,
    dispatching: tokio::task::JoinHandle<()>,
}

impl Process {
    /// As the gateway does it: no new sends, then the owners, then whoever is connected.
    async fn stop(self, mut actors: JoinSet<()>) {
        self.outbox.cancel();
        self.owners.cancel();
        actors.abort_all();
        self.owner_tasks.close();
        let drain = Duration::from_secs(10);
        let _: Result<(), _> = tokio::time::timeout(drain, self.owner_tasks.wait()).await;
        let _: Result<_, _> = tokio::time::timeout(drain, self.dispatching).await;
    }
}

impl Life {
    async fn start(world: &Arc<World>, nth: u64) -> (Self, Process) {
        world.trace.push(Event::Started);
        let times = OutboxTimes::default();
        let carrier = |name: &'static str| -> (String, Arc<dyn Notifier>) {
            (name.to_owned(), Arc::new(Carrier { world: Arc::clone(world), name }))
        };
        let notifiers: Notifiers = ["telegram", "slack", "webhook"].map(carrier).into_iter().collect();
        let (outbox, dispatcher) = Outbox::new(Arc::clone(&world.engine), notifiers, times);
        let services = Arc::new(services(world, outbox));
        let process = (CancellationToken::new(), CancellationToken::new(), TaskTracker::new());
        let (owners, outbox, owner_tasks) = process;
        let directory = Directory::new(services, owner_tasks.clone(), owners.clone());
        directory.restore().await.expect("reading does not fail at a start");
        let dispatching = tokio::spawn(dispatcher.run(Arc::new(directory.clone()), outbox.clone()));
        let hub = Hub::new(TaskTracker::new(), CancellationToken::new(), Default::default());
        let life = Self { world: Arc::clone(world), directory, hub, nth };
        (life, Process { owners, outbox, owner_tasks, dispatching })
    }

    /// A generator for one actor of this life.
    pub(super) fn random(&self, salt: u64) -> StdRng {
        self.world.plan.random((self.nth + 1) * 1000 + salt)
    }

    pub(super) fn trace(&self) -> &Trace {
        &self.world.trace
    }

    fn spawn_actors(&self, actors: &mut JoinSet<()>) {
        let plan = &self.world.plan;
        for nth in 0..plan.modes.len() {
            actors.spawn(runtimes::runtime(self.clone(), nth));
        }
        for nth in 0..plan.subscribers as u64 {
            actors.spawn(people::subscriber(self.clone(), 100 + nth, false));
        }
        for nth in 0..plan.flappers as u64 {
            actors.spawn(people::subscriber(self.clone(), 200 + nth, true));
        }
        for nth in 0..plan.pollers as u64 {
            actors.spawn(people::poller(self.clone(), 300 + nth));
        }
        if plan.answers || plan.claims || plan.control {
            for nth in 0..2 {
                actors.spawn(people::operator(self.clone(), 400 + nth));
            }
        }
        if plan.engine_fails {
            actors.spawn(fail(self.clone()));
        }
        if plan.jumps {
            actors.spawn(jump(self.clone()));
        }
    }

    /// Every session of which somebody knows, in their order.
    pub(super) fn sessions(&self) -> Vec<Session> {
        let known = self.world.memories.iter().filter_map(|memory| memory.lock().unwrap().session);
        known.filter_map(|id| self.directory.get_any(id)).collect()
    }

    pub(super) fn some_session(&self, random: &mut StdRng) -> Option<Session> {
        let sessions = self.sessions();
        (!sessions.is_empty()).then(|| sessions[random.random_range(0..sessions.len())].clone())
    }

    /// What the gateway says of itself at the end.
    async fn look(&self) {
        let services = self.directory.services();
        let mut sessions: Vec<SessionId> = Vec::new();
        for memory in &self.world.memories {
            let (session, earlier) = {
                let memory = memory.lock().unwrap();
                (memory.session, memory.earlier.clone())
            };
            sessions.extend(session.into_iter().chain(earlier));
        }
        for id in sessions {
            let nth = self.trace().nth(id);
            match self.directory.get_any(id) {
                Some(session) if session.snapshot().await.is_ok() => {}
                _ => self.trace().push(Event::Gone { session: nth }),
            }
            for (key, state, _) in services.outbox.resume(id).await.expect("the engine answers") {
                let NoticeKey { subject, target, rung, .. } = key;
                let subject = match subject {
                    NoticeSubject::Guardrail { id, revision } => Subject::Question { session: nth, id, revision },
                    NoticeSubject::Result { task } => Subject::Result { session: nth, task },
                };
                let rung = (rung.step, rung.round);
                self.trace().push(Event::Final { subject, target, rung, state: state.as_str() });
            }
        }
        let count = services.unreached.totals(tokio::time::Instant::now()).0;
        self.trace().push(Event::Unreached { count });
    }
}

/// The engine is slow, fails, or cannot be read, for a while.
async fn fail(life: Life) {
    let mut random = life.random(10);
    let faults = &life.world.faults;
    loop {
        sleep(Duration::from_millis(random.random_range(5_000..60_000))).await;
        if life.world.is_quiet() {
            return;
        }
        life.trace().push(Event::Trouble { begins: true });
        match random.random_range(0..4) {
            0 => faults.delay_us.store(3_000_000, Ordering::Relaxed),
            1 => faults.failing_per_mille.store(1000, Ordering::Relaxed),
            2 => faults.failing_per_mille.store(300, Ordering::Relaxed),
            _ => faults.unreadable.store(true, Ordering::Relaxed),
        }
        sleep(Duration::from_millis(random.random_range(200..12_000))).await;
        life.world.heal();
    }
}

/// The wall clock is set.
async fn jump(life: Life) {
    let mut random = life.random(11);
    loop {
        sleep(Duration::from_millis(random.random_range(5_000..60_000))).await;
        if life.world.is_quiet() {
            return;
        }
        let by_ms = random.random_range(-3 * 3_600_000..=3 * 3_600_000);
        life.world.jumped_ms.fetch_add(by_ms, Ordering::Relaxed);
        life.world.set_wall();
        life.trace().push(Event::Jumped { by_ms });
    }
}

/// What happens at a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Strike {
    KillBefore,
    KillAfter,
    Stop,
}

/// Ends the process where it stands.
#[derive(Default)]
pub(super) struct Kill {
    armed: Mutex<Option<(u32, Strike)>>,
    /// It is to be stopped in order.
    stopping: Notify,
    /// The last process of a run is not killed.
    last: AtomicBool,
    notify: Notify,
}

impl Kill {
    fn arm(&self, end: End) {
        self.last.store(matches!(end, End::Quiet), Ordering::Relaxed);
        *self.armed.lock().unwrap() = match end {
            End::KilledAtWrite { nth, after } => {
                Some((nth, if after { Strike::KillAfter } else { Strike::KillBefore }))
            }
            End::StoppedAtWrite { nth } => Some((nth, Strike::Stop)),
            _ => None,
        };
    }

    pub(super) fn may_strike(&self) -> bool {
        !self.last.load(Ordering::Relaxed)
    }

    pub(super) fn strike(&self) {
        self.notify.notify_one();
    }

    async fn struck(&self) {
        self.notify.notified().await;
    }

    /// Counts a write. Some, if the process ends at this one: after it has happened?
    fn write(&self) -> Option<bool> {
        let mut armed = self.armed.lock().unwrap();
        let (left, strike) = armed.as_mut()?;
        *left -= 1;
        if *left > 0 {
            return None;
        }
        let strike = *strike;
        *armed = None;
        if strike == Strike::Stop {
            self.stopping.notify_one();
            return None;
        }
        self.strike();
        Some(strike == Strike::KillAfter)
    }
}

/// The engine itself, with everything that is committed told to the trace.
struct Tap {
    memory: MemoryEngine,
    trace: Arc<Trace>,
    kill: Arc<Kill>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Tasks that are not over.
    tasks: Vec<(SessionId, String)>,
    closed: Vec<Subject>,
    /// Of notices, what was said of them last.
    notices: BTreeMap<RecordKey, Event>,
}

impl Tap {
    fn appended(&self, session: SessionId, records: &[Record]) {
        let nth = self.trace.nth(session);
        for record in records {
            let frame = || serde_json::from_slice::<EventFrame>(&record.frame).expect("an event");
            match &*record.kind {
                kind::GUARDRAIL_TRIGGER => {
                    let data = frame().event.data;
                    let id = data["guardrailId"].as_str().unwrap().to_owned();
                    let revision = u32::try_from(data["revision"].as_u64().unwrap()).unwrap();
                    let subject = Subject::Question { session: nth, id, revision };
                    self.trace.push(Event::Raised { subject, offset: record.offset });
                }
                kind::TASK_QUEUED | kind::TASK_STARTED => {
                    let task = (session, frame().task.unwrap());
                    let mut seen = self.seen.lock().unwrap();
                    if !seen.tasks.contains(&task) {
                        seen.tasks.push(task);
                    }
                }
                kind::TASK_COMPLETED | kind::ERROR | kind::TASK_STOPPED => {
                    self.task_over(session, frame().task, (&record.kind, record.offset));
                }
                kind::CONTROL_TAKEN => self.trace.push(Event::Control { session: nth, taken: true }),
                kind::CONTROL_RELEASED => self.trace.push(Event::Control { session: nth, taken: false }),
                kind::SESSION_ENDED => self.trace.push(Event::Ended { session: nth }),
                _ => {}
            }
        }
    }

    fn task_over(&self, session: SessionId, task: Option<String>, (kind, offset): (&str, u64)) {
        let Some(task) = task else { return };
        let mut seen = self.seen.lock().unwrap();
        let known = (session, task);
        let Some(at) = seen.tasks.iter().position(|task| *task == known) else { return };
        seen.tasks.remove(at);
        if kind != kind::TASK_STOPPED {
            let subject = Subject::Result { session: self.trace.nth(session), task: known.1 };
            self.trace.push(Event::ResultDue { subject, offset });
        }
    }

    fn written(&self, key: &RecordKey, value: &[u8]) {
        match key.kind {
            RecordKind::Guardrail => self.guardrail_written(key, value),
            RecordKind::Notice => self.notice_written(key, value),
            _ => {}
        }
    }

    fn guardrail_written(&self, key: &RecordKey, value: &[u8]) {
        let record: Value = serde_json::from_slice(value).expect("a record");
        let view = &record["view"];
        if view["state"] == "open" {
            return;
        }
        let revision = u32::try_from(view["revision"].as_u64().unwrap()).unwrap();
        let subject = Subject::Question { session: self.trace.nth(key.session), id: key.name.clone(), revision };
        let mut seen = self.seen.lock().unwrap();
        if !seen.closed.contains(&subject) {
            seen.closed.push(subject.clone());
            self.trace.push(Event::Closed { subject });
        }
    }

    fn notice_written(&self, key: &RecordKey, value: &[u8]) {
        let record: Value = serde_json::from_slice(value).expect("a record");
        let (session, number) = (self.trace.nth(key.session), |value: &Value| value.as_u64().unwrap_or(0) as u32);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let subject = match &record["subject"]["guardrail"] {
            Value::Null => Subject::Result { session, task: text(&record["subject"]["result"]["task"]) },
            question => {
                Subject::Question { session, id: text(&question["id"]), revision: number(&question["revision"]) }
            }
        };
        let state = |delivery: &Value| match delivery["rejected"] == true {
            true => "rejected".to_owned(),
            false => text(&delivery["state"]),
        };
        let event = Event::Kept {
            subject,
            target: text(&record["target"]),
            rung: (number(&record["step"]), number(&record["round"])),
            id: text(&record["opened"]["id"]),
            opened: state(&record["opened"]),
            update: record.get("update").map(state),
        };
        if self.seen.lock().unwrap().notices.insert(key.clone(), event.clone()).as_ref() != Some(&event) {
            self.trace.push(event);
        }
    }
}

impl Engine for Tap {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        self.memory.create(session, epoch, term)
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        async move {
            let dies = self.kill.write();
            if dies == Some(false) {
                return pending().await;
            }
            let records = batch.records.clone();
            let head = self.memory.append(session, batch).await?;
            self.appended(session, &records);
            if dies.is_some() { pending().await } else { Ok(head) }
        }
        .boxed()
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        self.memory.read(session, from, limit)
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.memory.head(session)
    }

    fn logs(&self) -> Vec<SessionId> {
        let mut logs = self.memory.logs();
        logs.sort();
        logs
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.trace.push(Event::Forgotten { session: self.trace.nth(session) });
        self.memory.remove(session)
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        async move {
            let dies = self.kill.write();
            if dies == Some(false) {
                return pending().await;
            }
            let version = self.memory.put(key.clone(), seen, value.clone()).await?;
            self.written(&key, &value);
            if dies.is_some() { pending().await } else { Ok(version) }
        }
        .boxed()
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        self.memory.get(key)
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        self.memory.list(kind, session)
    }

    fn stored_bytes(&self) -> u64 {
        self.memory.stored_bytes()
    }

    fn before(&self) -> Before {
        self.memory.before()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.memory.close()
    }
}

fn linked(target: &str, environment: Option<&str>) -> Link {
    let (connector, address) = target.split_once(':').unwrap();
    Link {
        id: target.to_owned(),
        project: PROJECT.to_owned(),
        environment: environment.map(str::to_owned),
        connector: connector.to_owned(),
        address: address.to_owned(),
        user: "1".to_owned(),
        name: "Ann".to_owned(),
        at: String::new(),
    }
}

/// One for all runs: no task here has a webhook.
fn task_webhooks() -> TaskWebhooks {
    static WEBHOOKS: OnceLock<TaskWebhooks> = OnceLock::new();
    let new = || {
        let _ = rustls::crypto::ring::default_provider().install_default();
        TaskWebhooks::new(CarrierOptions::new(false), Arc::new(Metrics::new())).expect("a client").0
    };
    WEBHOOKS.get_or_init(new).clone()
}

fn targets(world: &World) -> Targets {
    let all: Vec<&str> = world.plan.tiers.iter().flatten().map(|(target, _)| *target).collect();
    let links = all.iter().filter(|target| **target != "webhook");
    let links = links.map(|target| linked(target, target.starts_with("telegram").then_some(ENVIRONMENT)));
    Targets {
        links: Arc::new(Links::with(Arc::clone(&world.engine), links.collect())),
        fallback: all.contains(&"webhook").then(|| "webhook".to_owned()),
        ladder: world.plan.ladder.clone(),
        chats: vec!["telegram", "slack"],
    }
}

/// As the gateway makes them, without a configuration of its own.
fn services(world: &World, outbox: Outbox) -> Services {
    let Config { times, limits, .. } = Config::default();
    Services {
        engine: Arc::clone(&world.engine),
        boards: Default::default(),
        runtimes: Default::default(),
        outbox,
        webhooks: task_webhooks(),
        targets: targets(world),
        forms: Forms::new(Zeroizing::new([1; 32]), Some("https://onlooker.example/".parse().unwrap())),
        marks: MarkKey::new(Zeroizing::new([2; 32])),
        unreached: Default::default(),
        metrics: Arc::new(Metrics::new()),
        guardrails: GuardrailRules {
            open: limits.open_guardrails,
            ids: 4096,
            items: limits.guardrail_items,
            text: limits.guardrail_text_bytes,
            max_wait: times.guardrail_max_wait,
            default_answer_allowed: Vec::new(),
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
        reducer: Reducer::new(Default::default(), Default::default(), Default::default()),
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
        start_grace_until: tokio::time::Instant::now() + times.start_grace,
        ended: Mutex::default(),
    }
}

pub(super) fn project() -> Project {
    PROJECT.into()
}

/// The modes that reach out for questions.
pub(super) fn reaches_out(mode: ReachOutMode) -> bool {
    mode != ReachOutMode::Off
}
