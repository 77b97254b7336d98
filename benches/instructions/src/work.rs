//! What goes through the stages: texts as runtimes publish them, in batches, with five secrets of which one shows now
//! and then, a log that trims, one follower, and a question that somebody has.

use std::{hint::black_box, time::Duration};

use onlooker::{
    clock,
    engine::{Bounds, Engine, Head, memory::MemoryEngine},
    ids::{SessionId, random_epoch},
    ingest::{Frames, IngestLimits, Published},
    reach_out::{Inputs, Subject, Windows},
    redact::{Nature, Redactor},
    watch::{Presence, Watcher},
};
use onlooker_protocol::{Position, view::ReachOutMode};
use serde_json::json;
use tokio::{sync::watch, time::Instant};

use crate::stages::{self, Place};

/// As many as there are texts.
const BATCH: u64 = 32;
const SECRETS: [&str; 5] =
    ["ada@example.com", "correct horse battery", "4929-1827-3645", "sk-71f0c2d9ab", "t0ps3cret!"];
const LIMITS: IngestLimits = IngestLimits { payload: 256 << 10, depth: 32, picture: 16 << 20 };
/// Small enough that it trims in the shorter run.
const BOUNDS: Bounds =
    Bounds { log_records: 1_000, log_bytes: 16 << 20, log_age: Duration::from_secs(86_400), total_bytes: 1 << 30 };

pub(crate) fn run(events: u64) {
    let engine = MemoryEngine::new(BOUNDS);
    let redactor = redactor();
    let texts = texts();
    let (session, epoch) = (SessionId::random(), random_epoch());
    stages::now(engine.create(session, epoch, 1)).expect("it is new");
    let mut head = engine.head(session).expect("just made");
    let mut place = Place { session, epoch, next: 0, at: 0 };
    let mut read = 0;
    while place.next < events {
        all(&engine, &redactor, &texts, &mut place, (&mut head, &mut read));
    }
    assert_eq!((place.next, read), (events, events), "every event has come through");
}

/// One batch through every stage, with what lies between them.
#[inline(never)]
fn all(
    engine: &dyn Engine,
    redactor: &Redactor,
    texts: &[String],
    place: &mut Place,
    (head, read): (&mut watch::Receiver<Head>, &mut u64),
) {
    let mut events: Vec<Published> = texts.iter().map(|text| stages::read(text, &LIMITS)).collect();
    let received = clock::now();
    let at = clock::text(received);
    place.at = clock::milliseconds(received);
    let mut frames = Frames::for_events(events.len());
    for (event, offset) in events.iter_mut().zip(place.next..) {
        stages::redact(event, redactor);
        let position = Position { epoch: place.epoch, offset };
        stages::encode(event, &place.session, position, &at, &mut frames);
    }
    place.next = stages::append(engine, place, &events, frames).next;
    let presence = presence(place.next);
    let inputs = inputs(&presence, place.next);
    for record in stages::follow(engine, place.session, head, read) {
        stages::socketio(&record);
        black_box(stages::decide(&inputs));
    }
}

fn redactor() -> Redactor {
    let mut redactor = Redactor::default();
    for secret in SECRETS {
        redactor.register(secret, Nature::Credential).expect("it is short");
    }
    redactor
}

/// What an agent says and does while it browses: four kinds in turn, of 100 to 600 bytes. One in sixteen shows a secret.
fn texts() -> Vec<String> {
    let words = ["opens", "the", "page", "and", "reads", "“terms”", "of", "delivery", "for", "order", "No. 4711", "—"];
    let sentence = |n: usize| (0..12 + n).map(|i| words[(i * 7 + n) % words.len()]).collect::<Vec<_>>().join(" ");
    let text = |n: u64| {
        let i = n as usize;
        let said = if n % 16 == 5 { format!("{} {}", sentence(i % 9), SECRETS[i % 5]) } else { sentence(i % 9) };
        let (kind, data) = match n % 4 {
            0 => ("agent", json!({ "content": said })),
            1 => (
                "action",
                json!({ "kind": "click", "selector": "#checkout > button.primary", "x": 412, "y": 96.5, "note": said,
                    "page": { "url": "https://shop.example.com/cart?step=2&lang=en", "title": sentence(3) } }),
            ),
            2 => (
                "response_update",
                json!({ "content": said, "items": [1, 2, 3, { "done": true, "part": sentence(1) }] }),
            ),
            _ => ("x.shop.progress", json!({ "percent": n, "step": said, "ok": true, "error": null })),
        };
        json!({ "n": n + 1, "type": kind, "task": "task_01", "data": data }).to_string()
    };
    (0..BATCH).map(text).collect()
}

fn presence(offset: u64) -> Presence {
    let watcher = |proved| Watcher { able: true, proved };
    Presence { watchers: vec![watcher(None), watcher(Some(1)), watcher(Some(offset))], ..Presence::default() }
}

fn inputs(presence: &Presence, offset: u64) -> Inputs<'_> {
    let now = Instant::now();
    Inputs {
        now,
        mode: ReachOutMode::Full,
        subject: Subject::Guardrail { closed: false },
        raised_at: now,
        offset,
        held_until: None,
        notified: false,
        next_step: None,
        presence,
        start_grace_until: now,
        windows: Windows { grace: Duration::from_secs(5), first_look: Duration::from_secs(10) },
    }
}
