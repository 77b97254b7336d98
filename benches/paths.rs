//! What each piece of the way of an event takes, by itself: `cargo bench --bench paths [-- NAME]`, about a minute.
//!
//! Append (in memory and on the disk), encode (native and Socket.IO), redact, decide, an event to 1,000 followers, and
//! edges of the watch. Times are for whoever works on one of these pieces; instructions, which CI compares, are counted
//! by `make instructions`.

#![expect(clippy::unwrap_used, reason = "a measurement that fails ends")]

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use criterion::{BatchSize, Bencher, Criterion, Throughput};
use onlooker::{
    config::Durability,
    engine::{
        Batch, Bounds, Engine, Record,
        disk::{DiskEngine, DiskOptions},
        memory::MemoryEngine,
    },
    http::socketio,
    hub::{At, Caller, Form, Frames, Hub, Outlet, PICTURE_PIECES, Side, Source},
    ids::{SessionId, random_epoch, time_ordered_id},
    images::{Newest, Picture},
    ingest::{self, Data, Envelope},
    reach_out::{self, Inputs, Subject, Windows},
    redact::{Nature, Redactor},
    watch::{Attentive, Guard, Leave, Newcomer, Presence, Watch, WatchTimes, Watcher},
};
use onlooker_protocol::{Position, event::Epoch, subscriber::PictureLevel, view::ReachOutMode};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const BATCH: u64 = 100;
const FOLLOWERS: usize = 1_000;
const BOUNDS: Bounds =
    Bounds { log_records: 10_000, log_bytes: 16 << 20, log_age: Duration::from_secs(3600), total_bytes: 8 << 30 };

fn main() {
    let settings = Criterion::default().warm_up_time(Duration::from_millis(300));
    let mut criterion = settings.measurement_time(Duration::from_millis(1500)).sample_size(30).configure_from_args();
    append(&mut criterion);
    encode(&mut criterion);
    redact(&mut criterion);
    decide(&mut criterion);
    fan_out(&mut criterion);
    edges(&mut criterion);
    criterion.final_summary();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

// --- the log ---------------------------------------------------------------------------------------------------------

/// A batch of 100 events of 300 bytes, until it is as durable as the engine promises.
fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append 100 events");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("memory", |bencher| append_to(bencher, &MemoryEngine::new(BOUNDS)));
    for (name, durability) in [("disk, os", Durability::Os), ("disk, fsync", Durability::Fsync)] {
        group.bench_function(name, |bencher| {
            let directory = tempfile::tempdir().unwrap();
            let options = DiskOptions { dir: directory.path().join("data"), bounds: BOUNDS, durability };
            let engine = DiskEngine::open(options).unwrap();
            append_to(bencher, &engine);
            runtime().block_on(engine.close());
        });
    }
}

fn append_to(bencher: &mut Bencher<'_>, engine: &dyn Engine) {
    let (runtime, session, epoch) = (runtime(), SessionId::random(), random_epoch());
    runtime.block_on(engine.create(session, epoch, 1)).unwrap();
    let mut next = 0;
    bencher.iter_batched(
        || {
            next += BATCH;
            batch(epoch, next - BATCH)
        },
        |batch| runtime.block_on(engine.append(session, batch)).unwrap(),
        // Offsets count on: one batch is made and appended at a time.
        BatchSize::PerIteration,
    );
}

fn batch(epoch: Epoch, next: u64) -> Batch {
    let frame = Bytes::from_static(&[b'x'; 300]);
    let record = |offset| Record { offset, at: offset, kind: "x.measured".into(), frame: frame.clone() };
    Batch { term: 1, epoch, records: (next..next + BATCH).map(record).collect(), numbers: None }
}

// --- one event -------------------------------------------------------------------------------------------------------

fn event() -> Value {
    json!({
        "kind": "click",
        "selector": "#checkout > button.primary",
        "note": "opens the page and reads the terms of delivery for order No. 4711, then goes on to the checkout",
        "page": { "url": "https://shop.example.com/cart?step=2&lang=en", "title": "Your cart — 3 items" },
        "x": 412, "y": 96.5,
    })
}

/// As the usual event is read: it stays text.
fn text(data: &Value) -> Data {
    Data::Text(data.to_string().into())
}

fn native(frames: &mut ingest::Frames, data: &Data, session: &SessionId, epoch: Epoch) {
    let id = time_ordered_id();
    let position = Position { epoch, offset: 4711 };
    let at = "2026-11-20T12:00:00.000Z";
    let envelope = Envelope { session: session.as_str(), position, id: &id, at, task: Some("task_01") };
    frames.encode(envelope, "action", data);
}

/// One event to its native frame, and a native frame to what Socket.IO's clients get.
fn encode(criterion: &mut Criterion) {
    let (data, session, epoch) = (text(&event()), SessionId::random(), random_epoch());
    let mut group = criterion.benchmark_group("encode 1 event");
    group.bench_function("native", |bencher| {
        bencher.iter(|| {
            let mut frames = ingest::Frames::for_events(1);
            native(&mut frames, black_box(&data), &session, epoch);
            frames.finish()
        });
    });
    let mut frames = ingest::Frames::for_events(1);
    native(&mut frames, &data, &session, epoch);
    let record = Record { offset: 4711, at: 0, kind: "action".into(), frame: frames.finish().remove(0) };
    assert!(socketio::encoded(&record).is_some(), "clients have words for it");
    group.bench_function("socket.io", |bencher| bencher.iter(|| socketio::encoded(black_box(&record))));
}

/// One event's data of some 300 bytes; a hit is one secret in it.
fn redact(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("redact 1 event");
    for (secrets, hit) in [(0, false), (1, false), (1, true), (50, false), (50, true)] {
        let mut redactor = Redactor::default();
        for number in 0..secrets {
            redactor.register(&format!("s3cret-{number}-of-somebody"), Nature::Credential).unwrap();
        }
        let mut data = event();
        if hit {
            data["note"] =
                json!("types s3cret-0-of-somebody into the field of the password and goes on to the checkout");
        }
        let found = redactor.redact_value(&mut data.clone());
        assert_eq!(found, hit, "what is measured is a hit, or none");
        let data = text(&data);
        let name = format!("{secrets} secrets, {}", if hit { "hit" } else { "no hit" });
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(|| data.clone(), |data| ingest::redact(data, &redactor), BatchSize::SmallInput);
        });
    }
}

// --- who looks -------------------------------------------------------------------------------------------------------

/// A question that nobody has yet, with so many who look.
fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for watchers in [0, 1, 100] {
        let presence =
            Presence { watchers: vec![Watcher { able: true, proved: Some(1) }; watchers], ..Presence::default() };
        let now = Instant::now();
        let inputs = Inputs {
            now,
            mode: ReachOutMode::Full,
            subject: Subject::Guardrail { closed: false },
            raised_at: now,
            offset: 4711,
            held_until: None,
            notified: false,
            next_step: None,
            presence: &presence,
            start_grace_until: now,
            windows: Windows { grace: Duration::from_secs(5), first_look: Duration::from_secs(10) },
        };
        group.bench_function(format!("{watchers} watchers"), |bencher| {
            bencher.iter(|| reach_out::decide(black_box(&inputs)));
        });
    }
}

const TIMES: WatchTimes = WatchTimes {
    live_window: Duration::from_secs(20),
    attention_lease: Duration::from_secs(30),
    poll_window: Duration::from_secs(10),
    remember: Duration::from_secs(10),
};

fn enter(watch: &Watch, number: usize, now: Instant) -> Guard {
    let newcomer = Newcomer {
        subscriber: format!("connection {number}").as_str().into(),
        who: "ada".into(),
        via: "websocket",
        observer: false,
        able: true,
        sees_results: true,
        attentive: Attentive::Active,
    };
    watch.enter(newcomer, now)
}

/// One of 1,000 watchers does something. `--bench reach_out` has more of this, over sockets too.
fn edges(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("watch, 1000 watchers");
    let (watch, now) = (Watch::new(TIMES), Instant::now());
    let guards: Vec<Guard> = (0..1_000).map(|number| enter(&watch, number, now)).collect();
    watch.set_interest(Some(0));
    let mut turn = 0_usize;
    let mut next = || {
        turn += 1;
        (&guards[turn % guards.len()], turn as u64, now + Duration::from_micros(turn as u64))
    };
    group.bench_function("pong", |bencher| {
        bencher.iter(|| {
            let (guard, _, now) = next();
            guard.alive(now);
        });
    });
    group.bench_function("proof", |bencher| {
        bencher.iter(|| {
            let (guard, offset, now) = next();
            guard.proved(offset, now);
        });
    });
    group.bench_function("attention", |bencher| {
        bencher.iter(|| {
            let (guard, turn, now) = next();
            guard.attention(turn % 2_000 < 1_000, now);
        });
    });
    group.bench_function("comes and goes", |bencher| {
        bencher.iter(|| enter(&watch, 1_001, now).leave(Leave::Clean));
    });
    group.bench_function("the owner's look", |bencher| bencher.iter(|| watch.presence(now)));
}

// --- fan-out ---------------------------------------------------------------------------------------------------------

/// Outlets that take everything, and how many events they took.
#[derive(Default)]
struct Taken(AtomicU64);

impl Outlet for Taken {
    fn take(&self, pieces: &[Bytes], messages: u32) -> bool {
        black_box(pieces);
        self.0.fetch_add(u64::from(messages), Ordering::Relaxed);
        true
    }

    fn form(&self) -> &dyn Form {
        &Joined
    }
}

struct Joined;

impl Form for Joined {
    fn frames(&self, _: Epoch, records: &[Record]) -> Frames {
        let bytes: Vec<u8> = records.iter().flat_map(|record| record.frame.to_vec()).collect();
        Frames { bytes: bytes.into(), messages: records.len() as u32 }
    }

    fn picture(&self, _: &Picture) -> ([Bytes; PICTURE_PIECES], u32) {
        ([Bytes::new(), Bytes::new()], 0)
    }
}

/// An event that is appended, until each of 1,000 followers has been handed it: all but the sockets.
fn fan_out(criterion: &mut Criterion) {
    let runtime = runtime();
    let (tasks, stop, session) = (TaskTracker::new(), CancellationToken::new(), SessionId::random());
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(BOUNDS));
    let (epoch, taken) = (random_epoch(), Arc::new(Taken::default()));
    let side = watch::Sender::new(Side::default());
    let pictures = watch::Sender::new(());
    let hub = Hub::new(tasks.clone(), stop.clone(), Default::default());
    let followers: Vec<_> = runtime.block_on(async {
        engine.create(session, epoch, 1).await.unwrap();
        let attach = |_| {
            let source = Source {
                head: engine.head(session).unwrap(),
                side: side.subscribe(),
                pictures: pictures.subscribe(),
                newest_picture: Box::new(|_| Newest::None),
            };
            let caller = Caller { signal: &Arc::default(), slot: 0, pictures: PictureLevel::None };
            let attachment = hub.attach(session, source, &engine, caller);
            attachment.hand_over(At { epoch, next: 0 }, Arc::clone(&taken) as _);
            attachment
        };
        (0..FOLLOWERS).map(attach).collect()
    });
    let mut group = criterion.benchmark_group("fan-out");
    group.throughput(Throughput::Elements(FOLLOWERS as u64));
    let (mut next, frame) = (0, Bytes::from(vec![b'x'; 400]));
    group.bench_function("an event to 1000 followers", |bencher| {
        bencher.iter(|| {
            let record = Record { offset: next, at: 0, kind: "agent".into(), frame: frame.clone() };
            next += 1;
            let batch = Batch { term: 1, epoch, records: vec![record], numbers: None };
            runtime.block_on(async {
                engine.append(session, batch).await.unwrap();
                while taken.0.load(Ordering::Relaxed) < next * FOLLOWERS as u64 {
                    tokio::task::yield_now().await;
                }
            });
        });
    });
    drop(followers);
    stop.cancel();
    tasks.close();
    runtime.block_on(tasks.wait());
}
