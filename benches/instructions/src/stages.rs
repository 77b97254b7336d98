//! What is counted. Each stage is a function that is never inlined, so that callgrind knows it by its name; with what
//! it calls, it is what production does at this place for an event.

use std::{hint::black_box, sync::Arc};

use futures::FutureExt as _;
use onlooker::{
    engine::{Batch, Engine, Head, Numbers, ReadLimit, Record},
    http::socketio,
    ids::{self, SessionId},
    ingest::{self, Envelope, Frames, IngestLimits, Published},
    reach_out::{self, Decision, Inputs},
    redact::Redactor,
};
use onlooker_protocol::{Position, event::Epoch};
use tokio::sync::watch;

/// In the order of an event's way.
pub(crate) const NAMES: [&str; 8] = ["read", "redact", "encode", "append", "follow", "socketio", "decide", "all"];

/// From its text: strict JSON, checked.
#[inline(never)]
pub(crate) fn read(text: &str, limits: &IngestLimits) -> Published {
    ingest::read(text, limits).expect("the texts are right")
}

#[inline(never)]
pub(crate) fn redact(event: &mut Published, redactor: &Redactor) {
    ingest::redact(&mut event.data, redactor);
}

/// To the native frame, with a new id.
#[inline(never)]
pub(crate) fn encode(event: &Published, session: &SessionId, position: Position, at: &str, frames: &mut Frames) {
    let id = ids::time_ordered_id();
    let envelope = Envelope { session: session.as_str(), position, id: &id, at, task: event.task.as_deref() };
    frames.encode(envelope, &event.kind, &event.data);
}

/// Where a batch goes.
pub(crate) struct Place {
    pub session: SessionId,
    pub epoch: Epoch,
    pub next: u64,
    pub at: u64,
}

/// A batch: its frames finished, and in the log.
#[inline(never)]
pub(crate) fn append(engine: &dyn Engine, place: &Place, events: &[Published], frames: Frames) -> Head {
    let record = |((event, frame), offset): ((&Published, _), u64)| Record {
        offset,
        at: place.at,
        kind: Arc::clone(&event.kind),
        frame,
    };
    let records: Vec<Record> = events.iter().zip(frames.finish()).zip(place.next..).map(record).collect();
    let numbers = Some(Numbers { from: place.next, to: place.next + records.len() as u64 });
    let batch = Batch { term: 1, epoch: place.epoch, records, numbers };
    now(engine.append(place.session, batch)).expect("there is room")
}

/// One follower's look at the head, and its read from its own position.
#[inline(never)]
pub(crate) fn follow(
    engine: &dyn Engine,
    session: SessionId,
    head: &mut watch::Receiver<Head>,
    next: &mut u64,
) -> Vec<Record> {
    const STEP: ReadLimit = ReadLimit { records: 256, bytes: 64 * 1024 };
    now(head.changed()).expect("the log is there");
    let records = now(engine.read(session, *next, STEP)).expect("the log has it");
    *next += records.len() as u64;
    records
}

/// To the Socket.IO packet that all who follow by it share.
#[inline(never)]
pub(crate) fn socketio(record: &Record) {
    black_box(socketio::encoded(record));
}

#[inline(never)]
pub(crate) fn decide(inputs: &Inputs<'_>) -> Decision {
    reach_out::decide(black_box(inputs))
}

/// What the engine in memory is asked is done at once. So there is no runtime, whose budget would end a turn.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("memory does not wait")
}
