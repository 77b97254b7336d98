//! Readers that are too slow, and many that are idle: measured on a gateway in a process of its own.
//!
//! The child is this test binary again, told by an environment variable to be a gateway.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::StreamExt;
use onlooker::{config::Config, gateway::Gateway};
use onlooker_protocol::{
    event::Since,
    picture::{self, PublishedPicture},
    runtime::{GatewayToRuntime, OpenSession},
    subscriber::{GatewayToSubscriber, PictureLevel, Subscribe, SubscriberToGateway},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::watch,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    harness::*,
    socketio::client::{By, Client},
};

const MIB: u64 = 1 << 20;
/// Set: this process is a gateway for tests of another one, with these settings.
const SERVE: &str = "ONLOOKER_TEST_SERVE";
/// Set: the idle connections are 10,000 instead of 2,000.
const FULL: &str = "ONLOOKER_TEST_FULL";

/// Not a test by itself: the gateway of the tests below, when it is told to be one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_in_a_process_of_its_own() {
    let Ok(settings) = std::env::var(SERVE) else { return };
    let gateway = Gateway::start(settings_of(&settings)).await.unwrap();
    println!("\nlistening {}", gateway.url());
    // Until the parent is gone, however it went.
    let _ = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await;
    gateway.stop().await;
}

fn settings_of(name: &str) -> Config {
    let mut config = Config::default();
    config.listen.address = ([127, 0, 0, 1], 0).into();
    config.data.ephemeral = true;
    // Small enough to be full before anything is measured.
    config.limits.log_bytes = 4 << 20;
    config.limits.picture_bytes = 4 << 20;
    config.limits.log_bytes_total = 4 << 30;
    config.limits.connections = 12_000;
    match name {
        // Nobody is closed: what a stalled reader costs is to be seen for as long as it lasts.
        "patient" => {
            config.times.send_stall = Duration::from_secs(600);
            config.times.live_window = Duration::from_secs(600);
        }
        "strict" => config.times.send_stall = Duration::from_secs(1),
        other => panic!("{SERVE} is no {other}"),
    }
    config
}

struct ChildGateway {
    gateway: TestGateway,
    child: Child,
    /// Kept open: the child's test harness has a last word.
    _said: Lines<BufReader<ChildStdout>>,
}

impl ChildGateway {
    async fn start(settings: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "slow::a_gateway_in_a_process_of_its_own", "--nocapture", "--test-threads=1"])
            .env(SERVE, settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = loop {
            let line = lines.next_line().await.unwrap().expect("the child says where it listens");
            if let Some(url) = line.strip_prefix("listening ") {
                break url.to_owned();
            }
        };
        Self { gateway: TestGateway::at(url), child, _said: lines }
    }

    /// Resident memory of the child, in bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    async fn stop(mut self) {
        drop(self.child.stdin.take());
        tokio::time::timeout(BOUND, self.child.wait()).await.expect("the child stops").unwrap();
    }
}

/// How often the gateway has closed a connection with this code.
async fn closes(gateway: &TestGateway, code: &str) -> u64 {
    let (_, text) = gateway.get("/metrics").await;
    let of_code = format!("onlooker_closes_total{{code=\"{code}\"}} ");
    let text = text.as_str().unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(&of_code)).map_or(0, |count| count.parse().unwrap())
}

fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap()
}

/// A runtime's socket, as one that publishes fast uses it: pictures and events, never far ahead of a reader.
struct Firehose {
    runtime: Runtime,
    session: String,
    n: u64,
    began: Instant,
    sent_bytes: u64,
    text: String,
    picture: Vec<u8>,
}

impl Firehose {
    async fn open(gateway: &TestGateway, began: Instant) -> Self {
        let mut runtime = gateway.runtime().await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        let (text, picture) = ("lorem ipsum ".repeat(60 * 1024 / 12), vec![7; 200 * 1024]);
        Self { runtime, session, n: 0, began, sent_bytes: 0, text, picture }
    }

    /// One event of 60 KiB and nine pictures of 200 KiB, and the gateway's word on them.
    async fn publish(&mut self) {
        let data = json!({ "sent": microseconds(self.began), "text": self.text });
        self.runtime.numbers.insert(self.session.clone(), self.n);
        self.runtime.send_event(&self.session.clone(), "x.large", data).await;
        self.n += 1;
        for _ in 0..9 {
            self.n += 1;
            let header = PublishedPicture {
                session: self.session.clone(),
                n: self.n,
                media: "image/png".to_owned(),
                task: None,
                data: json!({ "sent": microseconds(self.began) }),
            };
            let frame = picture::encode(&header, &self.picture);
            self.sent_bytes += frame.len() as u64;
            futures::SinkExt::send(&mut self.runtime.socket, Message::binary(frame)).await.unwrap();
        }
        self.sent_bytes += self.text.len() as u64;
        self.runtime.seen.clear();
        let (session, n) = (self.session.clone(), self.n);
        self.runtime
            .until("accepted", |frame| match frame {
                GatewayToRuntime::Accepted { session: of, n: up_to, .. } => {
                    (*of == session && *up_to >= n).then_some(())
                }
                GatewayToRuntime::EventRefused { refusal, .. } => panic!("refused: {refusal}"),
                _ => None,
            })
            .await;
    }

    async fn publish_bytes(&mut self, bytes: u64) {
        let until = self.sent_bytes + bytes;
        while self.sent_bytes < until {
            self.publish().await;
        }
    }
}

/// Reads everything of a session; returns its latencies in microseconds once the last event has come.
async fn read_all(
    mut subscriber: Subscriber,
    began: Instant,
    reached: Arc<AtomicU64>,
    mut end: watch::Receiver<Option<u64>>,
) -> Vec<u64> {
    let (mut latencies, mut next) = (Vec::new(), None);
    loop {
        if end.borrow_and_update().is_some_and(|end| next > Some(end)) {
            return latencies;
        }
        let message = tokio::select! {
            message = subscriber.socket.next() => message.expect("open").expect("sound"),
            Ok(()) = end.changed() => continue,
        };
        let Message::Text(text) = message else { continue };
        match serde_json::from_str(&text).unwrap() {
            GatewayToSubscriber::Ping { id, .. } => subscriber.send(SubscriberToGateway::Pong { id }).await,
            GatewayToSubscriber::Gap { reason, .. } => panic!("the good reader was given a gap: {reason:?}"),
            GatewayToSubscriber::Live { position, .. } => next = Some(position.offset + 1),
            GatewayToSubscriber::Event(event) => {
                assert_eq!(Some(event.position.offset), next, "the good reader misses something");
                next = Some(event.position.offset + 1);
                reached.store(event.position.offset, Ordering::Release);
                if let Some(sent) = event.event.data["sent"].as_u64() {
                    latencies.push(microseconds(began) - sent);
                }
            }
            _ => {}
        }
    }
}

fn percentile(values: &mut [u64], per_mille: usize) -> Duration {
    values.sort_unstable();
    Duration::from_micros(values[(values.len() * per_mille / 1000).min(values.len() - 1)])
}

async fn follow_pictures(subscriber: &mut Subscriber, session: &str) {
    let pictures = PictureLevel::Full;
    subscriber
        .subscribe(Subscribe { session: Some(session.to_owned()), pictures, since: Since::Start, ..follow() })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_never_reads_costs_no_memory_and_hurts_nobody() {
    const PASSING: u64 = 1024 * MIB;
    let child = ChildGateway::start("patient").await;
    let began = Instant::now();
    let mut firehose = Firehose::open(&child.gateway, began).await;
    // Full once: log and pictures are as large as they get, and the allocator has what it needs for that.
    firehose.publish_bytes(160 * MIB).await;

    let mut stalled = child.gateway.subscriber().await;
    follow_pictures(&mut stalled, &firehose.session).await;
    let mut good = child.gateway.subscriber().await;
    good.watch(&firehose.session).await;
    let (_, snapshot) = good.snapshot().await;
    assert_eq!(snapshot.session, firehose.session);
    let (ended, end) = watch::channel(None);
    let reached = Arc::new(AtomicU64::new(0));
    let reading = tokio::spawn(read_all(good, began, Arc::clone(&reached), end));
    let before = child.resident();
    let mut most = before;
    let (start, until) = (Instant::now(), firehose.sent_bytes + PASSING);
    while firehose.sent_bytes < until {
        firehose.publish().await;
        most = most.max(child.resident());
    }
    let took = start.elapsed();
    // Offsets 0 and 1 are the gateway's own, so number n is at n + 1.
    ended.send_replace(Some(firehose.n + 1));
    let mut latencies = tokio::time::timeout(BOUND, reading).await.expect("the good reader gets everything").unwrap();
    let (p50, p99) = (percentile(&mut latencies, 500), percentile(&mut latencies, 990));
    let grown = most.saturating_sub(before) / 1024;
    println!(
        "1 GiB past a stalled reader in {took:.1?}: RSS {} KiB before, at most {grown} KiB more; good reader: {} \
         latencies, p50 {p50:?}, p99 {p99:?}",
        before / 1024,
        latencies.len(),
    );
    // The stalled reader was there all the time, and the good one has left.
    wait_until("one is left", || async { child.gateway.metric("onlooker_connections").await == 1.0 }).await;
    assert!(grown < 32 * 1024, "a reader that reads nothing made memory grow by {grown} KiB");
    assert!(p99 < Duration::from_secs(1), "the good reader waited: p99 {p99:?}");
    drop(stalled);
    child.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_nothing_for_the_stall_time_is_closed_with_4001_and_resumes() {
    let child = ChildGateway::start("strict").await;
    let mut firehose = Firehose::open(&child.gateway, Instant::now()).await;
    let mut stalled = Subscriber::narrow(&child.gateway).await;
    follow_pictures(&mut stalled, &firehose.session).await;
    stalled.live().await;
    // The kernel takes some megabytes before anything waits.
    let start = Instant::now();
    while closes(&child.gateway, "too_slow").await == 0 {
        assert!(start.elapsed() < BOUND, "it takes nothing, and is not closed");
        firehose.publish().await;
    }
    // What the kernel holds comes first, then the code. The goodbye waits for two seconds.
    assert_eq!(stalled.closed().await, Some(4001));
    let mut back = child.gateway.subscriber().await;
    back.watch(&firehose.session).await;
    back.live().await;
    firehose.publish().await;
    back.event("x.large").await;
    child.stop().await;
}

/// A reader that is slower than what comes is still there: it reads, it answers, and it must not be taken for dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_but_steady_reader_is_pinged_and_stays() {
    let mut config = quick();
    config.limits.log_bytes = 64 << 20;
    // Without a pong it is closed after three of these.
    let dead = config.times.live_window * 3;
    let gateway = TestGateway::with(config).await;
    let mut firehose = Firehose::open(&gateway, Instant::now()).await;
    for _ in 0..400 {
        firehose.runtime.numbers.insert(firehose.session.clone(), firehose.n);
        let data = json!({ "text": firehose.text });
        firehose.runtime.send_event(&firehose.session.clone(), "x.large", data).await;
        firehose.n += 1;
    }
    firehose.runtime.accepted(&firehose.session.clone(), firehose.n).await;
    let mut slow = Subscriber::narrow(&gateway).await;
    let all = Subscribe { session: Some(firehose.session.clone()), since: Since::Start, ..follow() };
    slow.subscribe(all).await;
    let (start, mut pings) = (Instant::now(), 0);
    loop {
        tokio::time::sleep(Duration::from_millis(15)).await;
        match tokio::time::timeout(BOUND, slow.socket.next()).await.unwrap() {
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text).unwrap() {
                GatewayToSubscriber::Ping { id, .. } => {
                    pings += 1;
                    slow.send(SubscriberToGateway::Pong { id }).await;
                }
                GatewayToSubscriber::Live { .. } => break,
                _ => {}
            },
            other => panic!("after {:?} and {pings} pings it was left with {other:?}", start.elapsed()),
        }
    }
    assert!(start.elapsed() > dead, "{:?} is too short to tell", start.elapsed());
    assert!(pings > 0, "it was never pinged while it caught up");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_subscriber_skips_pictures_and_never_events() {
    const PICTURES: u64 = 150;
    let gateway = TestGateway::with({
        let mut config = quick();
        config.times.live_window = Duration::from_secs(60);
        config
    })
    .await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut slow = Subscriber::narrow(&gateway).await;
    follow_pictures(&mut slow, &session).await;
    slow.live().await;
    for _ in 0..PICTURES {
        runtime.publish_picture(&session, &vec![7; 200 * 1024]).await;
    }
    let last = runtime.publish(&session, "x.last", json!({})).await;
    let (mut events, mut pictures, mut newest) = (Vec::new(), Vec::new(), String::new());
    // The last event, and after it the newest picture.
    while events.len() as u64 <= PICTURES || pictures.last() != Some(&newest) {
        match slow.receive().await {
            Received::Frame(GatewayToSubscriber::Event(event)) => {
                if let Some(id) = event.event.data["id"].as_str() {
                    newest = id.to_owned();
                }
                events.push(event.position.offset);
            }
            Received::Picture(header, bytes) => {
                assert_eq!((bytes.len(), header.size), (200 * 1024, 200 * 1024));
                pictures.push(header.id);
            }
            Received::Frame(GatewayToSubscriber::Gap { reason, .. }) => panic!("events were lost: {reason:?}"),
            Received::Frame(_) => {}
            Received::Closed(code) => panic!("closed with {code:?}"),
        }
    }
    assert_eq!(events, Vec::from_iter(2..=last.offset));
    assert!((pictures.len() as u64) < PICTURES, "it was slow, and got every picture");
    let different: std::collections::BTreeSet<_> = pictures.iter().collect();
    assert_eq!(different.len(), pictures.len(), "a picture came twice");
    gateway.stop().await;
}

/// Whoever asks and does not read the answers is not read from any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_asks_and_never_reads_costs_no_memory() {
    let child = ChildGateway::start("patient").await;
    let mut peer = Subscriber::narrow(&child.gateway).await;
    let ask = Message::text(json!({ "type": "subscribe", "session": "no", "ref": "r".repeat(1000) }).to_string());
    let before = child.resident();
    // Sending stops when the gateway no longer reads; until then it may take 128 MiB.
    let sending = async {
        for _ in 0..128 * 1024 {
            futures::SinkExt::feed(&mut peer.socket, ask.clone()).await.unwrap();
        }
    };
    let all_taken = tokio::time::timeout(Duration::from_secs(5), sending).await.is_ok();
    let grown = child.resident().saturating_sub(before) / 1024;
    println!("asking without reading: {grown} KiB more, everything taken: {all_taken}");
    assert!(grown < 16 * 1024, "answers that nobody reads take {grown} KiB");
    child.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_subscribers_cost_at_most_ten_kilobytes_each() {
    let count: u64 = if std::env::var_os(FULL).is_some() { 10_000 } else { 2_000 };
    if !may_open(count + 500) {
        return;
    }
    let child = ChildGateway::start("patient").await;
    let mut runtime = child.gateway.runtime().await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(runtime.open(OpenSession::default()).await.0);
    }
    // Once, so that what is made at the first use is there.
    let mut first = child.gateway.subscriber().await;
    first.watch(&sessions[0]).await;
    first.live().await;
    let before = child.resident();
    let connecting = (0..count).map(|i| {
        let (gateway, session) = (&child.gateway, &sessions[i as usize % 10]);
        async move {
            let mut subscriber = gateway.subscriber().await;
            subscriber.watch(session).await;
            subscriber.live().await;
            subscriber
        }
    });
    let subscribers: Vec<_> = futures::stream::iter(connecting).buffer_unordered(32).collect().await;
    let after = child.resident();
    let each = after.saturating_sub(before) / count;
    println!("{count} idle subscribed connections: {each} bytes each, {} KiB in all", after / 1024);
    assert_eq!(child.gateway.metric("onlooker_connections").await, (count + 1) as f64);
    assert!(each < 10 * 1024, "{each} bytes for an idle connection");
    assert!(after < 100 * MIB, "{} KiB", after / 1024);
    // They are all still followed.
    let (_, page) = child.gateway.get(&format!("/v1/sessions/{}", sessions[3])).await;
    assert!(page != Value::Null);
    drop(subscribers);
    child.stop().await;
}

/// The same for clients of Socket.IO, joined over a websocket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_socketio_clients_cost_at_most_five_kilobytes_each() {
    let count: u64 = if std::env::var_os(FULL).is_some() { 10_000 } else { 2_000 };
    if !may_open(count + 500) {
        return;
    }
    let child = ChildGateway::start("patient").await;
    let mut runtime = child.gateway.runtime().await;
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(runtime.open(OpenSession::default()).await.0);
    }
    let _first = Client::join(&child.gateway, By::Websocket, &sessions[0]).await;
    let before = child.resident();
    let connecting = (0..count).map(|i| Client::join(&child.gateway, By::Websocket, &sessions[i as usize % 10]));
    let mut clients: Vec<_> = futures::stream::iter(connecting).buffer_unordered(32).collect().await;
    let after = child.resident();
    let each = after.saturating_sub(before) / count;
    println!("{count} idle Socket.IO clients: {each} bytes each, {} KiB in all", after / 1024);
    assert_eq!(child.gateway.metric("onlooker_connections").await, (count + 1) as f64);
    assert!(each < 5 * 1024, "{each} bytes for an idle client");
    // They are all still followed.
    for session in &sessions {
        runtime.publish(session, "agent", json!({ "content": "on" })).await;
    }
    for client in &mut clients {
        assert_eq!(client.message("agent").await["content"], "on");
    }
    drop(clients);
    child.stop().await;
}

/// Whether this process may have so many files; says so where not.
fn may_open(files: u64) -> bool {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let limit: u64 = limit.split_whitespace().next().unwrap().parse().unwrap_or(u64::MAX);
    if limit < files {
        println!("skipped: this needs more than the {limit} files that may be open; raise `ulimit -n`");
    }
    limit >= files
}

/// What a narrow socket got of each session, as offsets: so many events in all. Stops reading now and then, at places of
/// its own.
async fn read_in_fits(mut subscriber: Subscriber, seed: u64, events: usize) -> BTreeMap<String, Vec<u64>> {
    let (mut got, mut random) = (BTreeMap::<_, Vec<u64>>::new(), seed | 1);
    while got.values().map(Vec::len).sum::<usize>() < events {
        rest_now_and_then(&mut random).await;
        let message = tokio::time::timeout(BOUND, subscriber.socket.next()).await.expect("more comes");
        let Message::Text(text) = message.expect("open").expect("sound") else { continue };
        match serde_json::from_str(&text).unwrap() {
            GatewayToSubscriber::Ping { id, .. } => subscriber.send(SubscriberToGateway::Pong { id }).await,
            GatewayToSubscriber::Gap { reason, .. } => panic!("the log has all of it: {reason:?}"),
            GatewayToSubscriber::Event(event) => got.entry(event.session).or_default().push(event.position.offset),
            _ => {}
        }
    }
    got
}

async fn rest_now_and_then(random: &mut u64) {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    if *random >> 60 == 0 {
        // Long enough for its socket to fill: there is no condition to wait for in doing nothing.
        tokio::time::sleep(Duration::from_millis(*random >> 33 & 31)).await;
    }
}

fn with_room() -> Config {
    let mut config = quick();
    config.limits.log_bytes = 256 << 20;
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_in_fits_and_starts_gets_every_event_once_and_in_order() {
    everybody_reads_in_fits(TestGateway::with(with_room()).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_who_reads_in_fits_and_starts_gets_every_event_once_and_in_order() {
    everybody_reads_in_fits(TestGateway::over_tls(with_room()).await).await;
}

async fn everybody_reads_in_fits(gateway: TestGateway) {
    const EVENTS: u64 = 600;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let first = runtime.publish(&session, "x.first", json!({})).await.offset + 1;
    let mut readers = Vec::new();
    for seed in 0..20_u64 {
        let mut subscriber = Subscriber::narrow(&gateway).await;
        subscriber.watch(&session).await;
        assert_eq!(subscriber.live().await.offset + 1, first);
        let seed = seed.wrapping_mul(2_862_933_555_777_941_757);
        readers.push(tokio::spawn(read_in_fits(subscriber, seed, EVENTS as usize)));
    }
    // From a few bytes to more than a narrow socket takes, and often many at once.
    for n in 0..EVENTS {
        let text = "x".repeat((n as usize * 7919) % 97 * (1 + n as usize % 7 * 40));
        runtime.send_event(&session, "x.some", json!({ "text": text })).await;
    }
    runtime.accepted(&session, EVENTS + 1).await;
    for reader in readers {
        let got = tokio::time::timeout(BOUND, reader).await.expect("everybody gets everything").unwrap();
        assert_eq!(got, BTreeMap::from([(session.clone(), (first..first + EVENTS).collect::<Vec<_>>())]));
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_narrow_connection_that_follows_many_sessions_gets_every_event_of_each_once_and_in_order() {
    const SESSIONS: usize = 16;
    const EVENTS: u64 = 60;
    let gateway = TestGateway::with(with_room()).await;
    let mut runtime = gateway.runtime().await;
    let mut subscriber = Subscriber::narrow(&gateway).await;
    let mut expected = BTreeMap::new();
    for _ in 0..SESSIONS {
        let (session, _) = runtime.open(OpenSession::default()).await;
        let first = runtime.publish(&session, "x.first", json!({})).await.offset + 1;
        subscriber.watch(&session).await;
        assert_eq!(subscriber.live().await.offset + 1, first);
        expected.insert(session, (first..first + EVENTS).collect::<Vec<_>>());
    }
    let sessions: Vec<String> = expected.keys().cloned().collect();
    let reader = tokio::spawn(read_in_fits(subscriber, 7, EVENTS as usize * SESSIONS));
    // Small ones that go out together, and sometimes more than a narrow socket takes.
    for n in 0..EVENTS {
        for (number, session) in sessions.iter().enumerate() {
            let text = "x".repeat((n as usize * 7919 + number * 31) % 97 * (1 + n as usize % 11 * 40));
            runtime.send_event(session, "x.some", json!({ "text": text })).await;
        }
    }
    for session in &sessions {
        runtime.accepted(session, EVENTS + 1).await;
    }
    let got = tokio::time::timeout(BOUND, reader).await.expect("everything comes").unwrap();
    assert_eq!(got, expected);
    gateway.stop().await;
}
