//! Random sessions against a simple model of following: of what the log held, a subscriber has seen every event that
//! its filter lets through, once and in order, and every hole was announced by a gap.
//!
//! The engine notes what it took; each subscriber notes what it saw; the two are compared afterwards. A run is planned
//! by its seed, though not its timing. A seed that ever failed stays in `SEEDS`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture};
use onlooker::{
    config::Config,
    engine::{
        Batch, Before, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version,
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    gateway::bounds,
    ids::SessionId,
};
use onlooker_protocol::{
    Position,
    event::{Epoch, EventFrame, Since},
    runtime::{GatewayToRuntime, OpenSession, PublishedEvent, RuntimeToGateway},
    subscriber::{GapReason, GatewayToSubscriber, PictureLevel, Subscribe, SubscriberToGateway},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{harness::*, resume::replayed};

/// Seeds that have failed before: these on receive windows so small that they never came to their end.
const SEEDS: &[u64] = &[9222781926235756843, 1489280097865378317];
/// Random runs in each test.
const RUNS: usize = 105;
/// Runs that are under way at once.
const AT_ONCE: usize = 8;
/// Events that a log holds.
const HELD: usize = 12;
const KINDS: [&str; 5] = ["x.a", "x.b", "x.c", "agent", "action"];
/// Ends every session, and passes every filter.
const LAST: &str = "x.last";

// --- what the log held -----------------------------------------------------------------------------------------------

/// An engine that notes every record that it took, and may be slow to read.
pub struct Watched<E> {
    inner: E,
    read_delay: Duration,
    taken: Taken,
}

/// Every record that was ever taken, by session, in the order of taking.
type Taken = Arc<Mutex<HashMap<SessionId, Vec<(Epoch, Record)>>>>;

impl<E: Engine> Watched<E> {
    pub fn new(inner: E, read_delay: Duration) -> Self {
        Self { inner, read_delay, taken: Taken::default() }
    }
}

impl<E: Engine> Engine for Watched<E> {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        self.inner.create(session, epoch, term)
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        Box::pin(async move {
            let (epoch, records) = (batch.epoch, batch.records.clone());
            let head = self.inner.append(session, batch).await?;
            let mut taken = self.taken.lock().unwrap();
            taken.entry(session).or_default().extend(records.into_iter().map(|record| (epoch, record)));
            Ok(head)
        })
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        Box::pin(async move {
            if !self.read_delay.is_zero() {
                sleep(self.read_delay).await;
            }
            self.inner.read(session, from, limit).await
        })
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.inner.head(session)
    }

    fn logs(&self) -> Vec<SessionId> {
        self.inner.logs()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.inner.remove(session)
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        self.inner.put(key, seen, value)
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        self.inner.get(key)
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        self.inner.list(kind, session)
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }

    fn before(&self) -> Before {
        self.inner.before()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

// --- the runtime -----------------------------------------------------------------------------------------------------

struct Publisher {
    runtime: Runtime,
    random: StdRng,
    /// The last number of each session.
    numbers: HashMap<String, u64>,
    questions: u32,
}

impl Publisher {
    async fn open(&mut self) -> String {
        loop {
            let open = RuntimeToGateway::Open { reference: "r".to_owned(), session: Box::<OpenSession>::default() };
            self.runtime.send(open).await;
            match self.runtime.receive().await.expect("the runtime stays connected") {
                GatewayToRuntime::Opened { session, .. } => return session,
                GatewayToRuntime::Error { .. } => {}
                other => panic!("{}", serde_json::to_string(&other).unwrap()),
            }
        }
    }

    /// Publishes until all of it is in the log; what is refused as unavailable is sent again.
    async fn publish(&mut self, session: &str, kinds: Vec<(&str, serde_json::Value)>) -> Position {
        let before = *self.numbers.entry(session.to_owned()).or_default();
        let event = |(index, (kind, data)): (usize, (&str, serde_json::Value))| PublishedEvent {
            n: before + 1 + index as u64,
            kind: kind.to_owned(),
            task: None,
            data,
            picture: None,
        };
        let mut events: Vec<_> = kinds.into_iter().enumerate().map(event).collect();
        let last = before + events.len() as u64;
        self.numbers.insert(session.to_owned(), last);
        loop {
            let frame = RuntimeToGateway::Events { session: session.to_owned(), events: events.clone() };
            self.runtime.send(frame).await;
            let taken = loop {
                match self.runtime.receive().await.expect("the runtime stays connected") {
                    GatewayToRuntime::Accepted { session: of, n, position } if of == session && n == last => {
                        return position;
                    }
                    GatewayToRuntime::EventRefused { session: of, n, refusal } if of == session => {
                        assert_eq!(refusal.code.name(), "unavailable", "{refusal}");
                        break n;
                    }
                    _ => {}
                }
            };
            events.retain(|event| event.n > taken);
        }
    }

    async fn lose(&mut self, session: &str) {
        let from = self.numbers[session] + self.random.random_range(2..5);
        self.runtime.send(RuntimeToGateway::NLost { session: session.to_owned(), from }).await;
        let told = |frame: &GatewayToRuntime| match frame {
            GatewayToRuntime::Accepted { session: of, n, .. } => (of == session && *n == from - 1).then_some(()),
            _ => None,
        };
        self.runtime.until("the new epoch", told).await;
        self.numbers.insert(session.to_owned(), from - 1);
    }

    /// Random events until the plan is done, then the last one in each session; returns where those are.
    async fn run(mut self, sessions: Vec<String>) -> HashMap<String, Position> {
        let heavy = self.random.random_bool(0.35);
        for _ in 0..self.random.random_range(5..40) {
            let session = &sessions[self.random.random_range(0..sessions.len())];
            let batch = (0..self.random.random_range(1..8)).map(|_| self.event(heavy)).collect();
            self.publish(session, batch).await;
            match self.random.random_range(0..40) {
                0 => self.lose(session).await,
                1..6 => sleep(Duration::from_millis(self.random.random_range(0..8))).await,
                _ => {}
            }
        }
        let mut ends = HashMap::new();
        for session in sessions {
            let last = self.publish(&session, vec![(LAST, json!({}))]).await;
            ends.insert(session, last);
        }
        ends
    }

    fn event(&mut self, heavy: bool) -> (&'static str, serde_json::Value) {
        if self.random.random_bool(0.05) {
            self.questions += 1;
            let id = format!("g{}", self.questions % 6);
            let data =
                json!({ "type": "human_input_needed", "value": "?", "guardrailId": id, "revision": self.questions });
            return ("guardrail_trigger", data);
        }
        let pad = if heavy { self.random.random_range(0..12_000) } else { 0 };
        (KINDS[self.random.random_range(0..KINDS.len())], json!({ "pad": "a".repeat(pad) }))
    }
}

// --- subscribers -----------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Seen {
    /// Subscribed from here with this filter.
    Since(Since, Vec<String>),
    Gap(GapReason),
    Snapshot(Position),
    Replay(Vec<EventFrame>),
    Live(Position),
    Event(Box<EventFrame>),
    Ping(Position),
}

/// One session as one subscriber has followed it.
#[derive(Default)]
struct Following {
    trace: Vec<Seen>,
    last: Option<Position>,
}

struct Follower {
    random: StdRng,
    /// What it does with each frame that it gets: of 1,000, how often it stalls, cuts the connection, subscribes anew.
    habits: (u32, u32, u32),
    narrow: bool,
    followed: BTreeMap<String, Following>,
}

impl Follower {
    fn new(seed: u64, sessions: &[String]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let habits = (random.random_range(0..60), random.random_range(0..25), random.random_range(0..25));
        let mut followed: BTreeMap<_, _> = sessions.iter().map(|id| (id.clone(), Following::default())).collect();
        if random.random_bool(0.3) && followed.len() > 1 {
            followed.pop_first();
        }
        Self { narrow: random.random_bool(0.5), random, habits, followed }
    }

    async fn connect(&mut self, gateway: &TestGateway) -> Subscriber {
        let mut subscriber =
            if self.narrow { Subscriber::narrow(gateway).await } else { Subscriber::connect(gateway, None).await };
        for session in self.followed.keys().cloned().collect::<Vec<_>>() {
            self.subscribe(&mut subscriber, &session).await;
        }
        subscriber
    }

    async fn subscribe(&mut self, subscriber: &mut Subscriber, session: &str) {
        let mut filter: Vec<String> = Vec::new();
        if self.random.random_bool(0.4) {
            filter.extend(KINDS.iter().filter(|_| self.random.random_bool(0.4)).map(|kind| (*kind).to_owned()));
            filter.push(LAST.to_owned());
        }
        let fresh = if self.random.random_bool(0.7) { Since::Start } else { Since::Latest };
        let followed = self.followed.get_mut(session).unwrap();
        let since = followed.last.map_or(fresh, Since::After);
        followed.trace.push(Seen::Since(since, filter.clone()));
        let subscribe =
            Subscribe { session: Some(session.to_owned()), since, filter, pictures: PictureLevel::None, ..follow() };
        subscriber.subscribe(subscribe).await;
    }

    /// Follows until it has reached the end of every session.
    async fn run(mut self, gateway: Arc<TestGateway>, mut ends: watch::Receiver<HashMap<String, Position>>) -> Self {
        let mut subscriber = self.connect(&gateway).await;
        while !self.is_done(&ends.borrow_and_update()) {
            let message = tokio::select! {
                message = subscriber.socket.next() => message,
                Ok(()) = ends.changed() => continue,
            };
            let Some(Ok(message)) = message else {
                subscriber = self.connect(&gateway).await;
                continue;
            };
            let Message::Text(text) = message else { continue };
            let frame = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            if let GatewayToSubscriber::Ping { id, .. } = frame {
                subscriber.send(SubscriberToGateway::Pong { id }).await;
            }
            self.note(frame);
            subscriber = self.live_on(subscriber, &gateway).await;
        }
        self
    }

    fn is_done(&self, ends: &HashMap<String, Position>) -> bool {
        let reached = |(session, followed): (&String, &Following)| {
            let (Some(last), Some(end)) = (followed.last, ends.get(session)) else { return false };
            last.epoch == end.epoch && last.offset >= end.offset
        };
        self.followed.iter().all(reached)
    }

    /// Stalls, cuts, or changes its subscription, as its habits are.
    async fn live_on(&mut self, mut subscriber: Subscriber, gateway: &TestGateway) -> Subscriber {
        let (stalls, cuts, anew) = self.habits;
        let dice = self.random.random_range(0..1000);
        if dice < stalls {
            sleep(Duration::from_millis(self.random.random_range(0..25))).await;
        } else if dice < stalls + cuts {
            subscriber.vanish();
            return self.connect(gateway).await;
        } else if dice < stalls + cuts + anew {
            // What is under way when it unsubscribes still comes: a new connection keeps the two apart.
            let sessions: Vec<_> = self.followed.keys().cloned().collect();
            subscriber.close(1000).await;
            subscriber = Subscriber::connect(gateway, None).await;
            for session in sessions {
                self.subscribe(&mut subscriber, &session).await;
            }
        }
        subscriber
    }

    fn note(&mut self, frame: GatewayToSubscriber) {
        let mut note = |session: &str, seen: Seen, last: Option<Position>| {
            let followed = self.followed.get_mut(session).expect("only what was subscribed comes");
            followed.trace.push(seen);
            followed.last = last.or(followed.last);
        };
        match frame {
            GatewayToSubscriber::Gap { session, reason, .. } => note(&session, Seen::Gap(reason), None),
            GatewayToSubscriber::Snapshot { session, position, .. } => note(&session, Seen::Snapshot(position), None),
            GatewayToSubscriber::Replay { session, events, .. } => {
                let events: Vec<_> = events.into_iter().map(replayed).collect();
                let last = events.last().map(|event| event.position);
                note(&session, Seen::Replay(events), last);
            }
            GatewayToSubscriber::Live { session, position } => note(&session, Seen::Live(position), Some(position)),
            GatewayToSubscriber::Event(event) => {
                let (session, position) = (event.session.clone(), event.position);
                note(&session, Seen::Event(Box::new(event)), Some(position));
            }
            GatewayToSubscriber::Ping { positions, .. } => {
                positions.iter().for_each(|(session, at)| note(session, Seen::Ping(*at), Some(*at)));
            }
            GatewayToSubscriber::Error { refusal, .. } => panic!("refused: {refusal}"),
            GatewayToSubscriber::Unsubscribed { code, .. } => panic!("unsubscribed: {code:?}"),
            _ => {}
        }
    }
}

// --- the comparison --------------------------------------------------------------------------------------------------

/// What a subscriber may have missed by right, as its trace is read.
struct Checker<'a> {
    held: &'a [(Epoch, Record)],
    filter: Vec<String>,
    /// Everything up to here has come, or was announced as lost. `None`: nothing yet.
    cursor: Option<Position>,
    /// What is missing before the next event was announced, or was never wanted.
    excused: bool,
    /// The snapshot whose `live` has not come yet.
    snapshot: Option<Position>,
    live: bool,
}

impl Checker<'_> {
    fn check(&mut self, seen: &Seen) {
        match seen {
            Seen::Since(since, filter) => self.subscribed(*since, filter),
            Seen::Gap(reason) => self.gap(*reason),
            Seen::Snapshot(position) => {
                assert_eq!(self.snapshot.replace(*position), None, "two snapshots before one live");
                self.live = false;
            }
            Seen::Replay(events) => {
                let snapshot = self.snapshot.expect("history comes between a snapshot and its live");
                for event in events {
                    assert!(event.position.offset <= snapshot.offset, "history after the snapshot");
                    self.event(event);
                }
            }
            Seen::Live(position) => {
                assert_eq!(self.snapshot.take(), Some(*position), "live at another place than its snapshot");
                self.live = true;
                self.complete_up_to(*position);
            }
            Seen::Event(event) => {
                assert!(self.live, "an event outside of live");
                self.event(event);
            }
            Seen::Ping(position) => self.complete_up_to(*position),
        }
    }

    fn subscribed(&mut self, since: Since, filter: &[String]) {
        self.filter = filter.to_vec();
        (self.snapshot, self.live) = (None, false);
        (self.cursor, self.excused) = match since {
            Since::After(position) => (Some(position), false),
            Since::Start => (None, false),
            Since::Latest => (None, true),
        };
    }

    fn gap(&mut self, reason: GapReason) {
        let epochs = self.held.iter().filter(|(epoch, _)| *epoch != self.held[0].0).count();
        let behind = self.held.len() as u64 > self.cursor.map_or(0, |cursor| cursor.offset + 1) + HELD as u64;
        match reason {
            GapReason::Ahead => panic!("no position was ahead of the log"),
            GapReason::Epoch => assert!(epochs > 0, "no epoch ended"),
            GapReason::Trimmed => assert!(behind || epochs > 0, "nothing that it waited for was trimmed"),
        }
        (self.excused, self.snapshot, self.live) = (true, None, false);
    }

    fn event(&mut self, event: &EventFrame) {
        let at = event.position;
        let held = self.held.iter().find(|(epoch, record)| *epoch == at.epoch && record.offset == at.offset);
        let (_, record) = held.unwrap_or_else(|| panic!("{at} was never in the log"));
        let frame: EventFrame = serde_json::from_slice(&record.frame).unwrap();
        assert_eq!(frame, *event, "another event than the log holds");
        assert!(self.passes(record), "{at} of type {} is not in the filter {:?}", record.kind, self.filter);
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.epoch == at.epoch) {
            assert!(at.offset > cursor.offset, "{at} came again, or late, after {cursor}");
        }
        self.complete_before(at);
        self.cursor = Some(at);
    }

    /// Everything up to a position is said to have come.
    fn complete_up_to(&mut self, at: Position) {
        if let Some(cursor) = self.cursor.filter(|cursor| cursor.epoch == at.epoch) {
            assert!(at.offset >= cursor.offset, "the position {at} goes back from {cursor}");
        }
        self.complete_before(Position { offset: at.offset + 1, ..at });
        self.cursor = Some(at);
    }

    /// Nothing that passes the filter is missing before a position, unless that was announced.
    fn complete_before(&mut self, at: Position) {
        if std::mem::take(&mut self.excused) {
            return;
        }
        if let Some(cursor) = self.cursor {
            assert_eq!(cursor.epoch, at.epoch, "another epoch without a gap");
        }
        let from = self.cursor.map_or(0, |cursor| cursor.offset + 1);
        let missing: Vec<_> = self
            .held
            .iter()
            .filter(|(epoch, record)| *epoch == at.epoch && (from..at.offset).contains(&record.offset))
            .filter(|(_, record)| self.passes(record))
            .map(|(_, record)| record.offset)
            .collect();
        assert!(missing.is_empty(), "{missing:?} never came before {at}");
    }

    fn passes(&self, record: &Record) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|kind| **kind == *record.kind)
    }
}

fn check(session: &str, followed: &Following, taken: &Taken) {
    let held = taken.lock().unwrap()[&session.parse::<SessionId>().unwrap()].clone();
    let mut checker =
        Checker { held: &held, filter: vec![], cursor: None, excused: false, snapshot: None, live: false };
    for (index, seen) in followed.trace.iter().enumerate() {
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| checker.check(seen)));
        if checked.is_err() {
            let shown: Vec<_> = followed.trace[index.saturating_sub(12)..=index].iter().map(brief).collect();
            panic!("after {}", shown.join("; "));
        }
    }
}

fn brief(seen: &Seen) -> String {
    match seen {
        Seen::Replay(events) => format!("Replay{:?}", events.iter().map(|event| event.position).collect::<Vec<_>>()),
        Seen::Event(event) => format!("Event({})", event.position),
        other => format!("{other:?}"),
    }
}

// --- runs ------------------------------------------------------------------------------------------------------------

async fn one_run(gateway: Arc<TestGateway>, taken: Taken, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let runtime = Runtime::connect(&gateway, "runtime", 10, None).await;
    let planned = StdRng::seed_from_u64(random.random());
    let mut publisher = Publisher { runtime, random: planned, numbers: HashMap::new(), questions: 0 };
    let mut sessions = Vec::new();
    for _ in 0..random.random_range(1..=3) {
        sessions.push(publisher.open().await);
    }
    let (told, ends) = watch::channel(HashMap::new());
    let mut followers = JoinSet::new();
    for _ in 0..random.random_range(1..=3) {
        let follower = Follower::new(random.random(), &sessions);
        followers.spawn(follower.run(Arc::clone(&gateway), ends.clone()));
    }
    told.send_replace(publisher.run(sessions).await);
    while let Some(follower) = followers.join_next().await {
        let follower = follower.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        follower.followed.iter().for_each(|(session, followed)| check(session, followed, &taken));
    }
}

fn tiny_logs() -> Config {
    let mut config = quick();
    config.limits.log_events = HELD;
    // A runtime without a sign of life for three of these is closed; questions are followed by a ping at once.
    config.times.ping_every = Duration::from_secs(4);
    config.times.live_window = Duration::from_secs(20);
    config
}

async fn many_runs(engine: impl FnOnce(Watched<MemoryEngine>) -> Arc<dyn Engine>) {
    let config = tiny_logs();
    let watched = Watched::new(MemoryEngine::new(bounds(&config)), Duration::ZERO);
    let taken = Arc::clone(&watched.taken);
    let gateway = Arc::new(TestGateway::on(config, engine(watched)).await);
    let seeds = SEEDS.iter().copied().chain((0..RUNS).map(|_| rand::random()));
    let runs = seeds.map(|seed| {
        let run = tokio::spawn(timeout(3 * BOUND, one_run(Arc::clone(&gateway), Arc::clone(&taken), seed)));
        async move {
            match run.await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => panic!("the run with seed {seed} does not end"),
                Err(error) => panic!("the run with seed {seed} failed: {error}"),
            }
        }
    });
    futures::stream::iter(runs).buffer_unordered(AT_ONCE).collect::<()>().await;
    // Otherwise the runs were too tame to show anything.
    assert!(gateway.metric("onlooker_gaps_total").await > 0.0, "nobody ever fell behind");
    Arc::into_inner(gateway).expect("every run has ended").stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_see_what_the_log_held() {
    many_runs(|engine| Arc::new(engine)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_see_what_the_log_held_on_an_engine_that_delays_and_refuses() {
    let faults = Faults { failing_per_mille: 100.into(), delay_us: 1_000.into(), ..Faults::default() };
    many_runs(|engine| Arc::new(FaultyEngine::new(engine, Arc::new(faults), rand::random()))).await;
}
