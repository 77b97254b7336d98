//! The way from an event to the log: redacted, encoded, appended, and only then applied to the state.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::{Epoch, kind},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Look, Request, Snapshot,
    owner::{Owner, OwnershipLost},
    state::{Applied, State},
};
use crate::{
    clock,
    engine::{Batch, EngineError, Head, Numbers, Record},
    ids,
    ingest::{self, Data, Frames},
    outbox::Verdict,
};

/// Where the log ends, as its only writer knows.
pub(super) struct LogEnd {
    pub epoch: Epoch,
    pub next: u64,
    pub n: u64,
    pub term: u64,
}

impl LogEnd {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, next: 0, n: 0, term: 1 }
    }

    /// Where another owner left it, to be continued under the next term.
    pub(super) fn restored(head: Head) -> Self {
        Self { epoch: head.epoch, next: head.next, n: head.n, term: head.term + 1 }
    }
}

/// Requests that may wait for an engine to answer.
const DEFERRED: usize = 64;

/// How long to wait for an engine that does not answer: longer each time, up to a second.
pub(super) struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_millis(10))
    }
}

/// When the gateway received events.
struct Received {
    text: String,
    /// Of wall time.
    milliseconds: u64,
}

impl Received {
    fn now() -> Self {
        let now = clock::now();
        Self { text: clock::text(now), milliseconds: clock::milliseconds(now) }
    }
}

/// An event that is about to be appended. Its data is redacted on the way.
pub(super) struct Draft {
    pub kind: Arc<str>,
    pub task: Option<String>,
    pub data: Data,
}

impl Draft {
    pub(super) fn new(kind: &str, task: Option<String>, data: Value) -> Self {
        Self { kind: kind.into(), task, data: data.into() }
    }
}

impl Owner {
    /// Appends events, and applies them when they are durable. Returns where the first one is.
    pub(super) async fn append(
        &mut self,
        mut drafts: Vec<Draft>,
        numbers: Option<Numbers>,
    ) -> Result<Position, EngineError> {
        let received = Received::now();
        let first = Position { epoch: self.log.epoch, offset: self.log.next };
        let (batch, mut bytes) = self.batch(&mut drafts, &received, numbers);
        let mut appended = self.services.engine.append(self.id(), batch).await;
        if matches!(appended, Err(EngineError::Full)) && self.services.make_room(self.id()).await {
            let batch;
            (batch, bytes) = self.batch(&mut drafts, &received, numbers);
            appended = self.services.engine.append(self.id(), batch).await;
        }
        let head = appended?;
        self.log.next = head.next;
        self.log.n = head.n;
        self.apply(&drafts, first, &received);
        let changes_state = drafts.iter().any(|draft| State::is_changed_by(&draft.kind));
        self.summary_stale |= changes_state;
        self.keeping.appended(drafts.len() as u64, bytes, changes_state, self.services.kept_behind);
        self.clock.follow(&self.state, Instant::now());
        self.snapshot = None;
        self.services.metrics.events.inc_by(drafts.len() as u64);
        Ok(first)
    }

    /// What these events are in the log, and how many bytes they count there.
    fn batch(&self, drafts: &mut [Draft], received: &Received, numbers: Option<Numbers>) -> (Batch, u64) {
        let epoch = self.log.epoch;
        let mut frames = Frames::for_events(drafts.len());
        for (draft, offset) in drafts.iter_mut().zip(self.log.next..) {
            self.encode(draft, Position { epoch, offset }, &received.text, &mut frames);
        }
        let drafts = drafts.iter().zip(self.log.next..);
        let record = |((draft, offset), frame): ((&Draft, u64), Bytes)| Record {
            offset,
            at: received.milliseconds,
            kind: Arc::clone(&draft.kind),
            frame,
        };
        let records: Vec<Record> = drafts.zip(frames.finish()).map(record).collect();
        let bytes = records.iter().map(|record| record.size() as u64).sum();
        (Batch { term: self.log.term, epoch, records, numbers }, bytes)
    }

    fn apply(&mut self, drafts: &[Draft], first: Position, received: &Received) {
        for (Draft { kind, task, data }, offset) in drafts.iter().zip(first.offset..) {
            let position = Position { offset, ..first };
            let (at, data) = (received.text.as_str(), data.value());
            self.state.apply(Applied { kind, task: task.as_deref(), data, at, position });
            if **kind == *kind::SCREENSHOT {
                self.pictures.changed();
            }
        }
    }

    fn encode(&self, draft: &mut Draft, position: Position, at: &str, frames: &mut Frames) {
        // Questions and their ends are made of redacted texts and checked ids; an id is never redacted.
        if !matches!(&*draft.kind, kind::GUARDRAIL_TRIGGER | kind::GUARDRAIL_RESOLVED) {
            ingest::redact(&mut draft.data, &self.redactor);
        }
        let mut id = ids::IdText::default();
        let id = ids::write_time_ordered_id(&mut id);
        let envelope =
            ingest::Envelope { session: self.session.id.as_str(), position, id, at, task: draft.task.as_deref() };
        frames.encode(envelope, &draft.kind, &draft.data);
    }

    /// Appends events of the gateway's own: they must not be lost, so an engine that does not answer is asked again
    /// until it does. Meanwhile this session's mailbox waits, and no other's.
    pub(super) async fn append_surely(&mut self, drafts: Vec<Draft>) -> Result<Position, OwnershipLost> {
        let mut patience = Patience::default();
        loop {
            let again = drafts.iter().map(|draft| Draft {
                kind: Arc::clone(&draft.kind),
                task: draft.task.clone(),
                data: draft.data.clone(),
            });
            match self.append(again.collect(), None).await {
                Ok(first) => return Ok(first),
                Err(error) => self.wait_for_engine(error, &mut patience).await?,
            }
        }
    }

    /// Waits before the engine is asked again. Meanwhile whoever only wants to see the session is served, and events
    /// are refused; what else is asked waits for its turn.
    ///
    /// # Errors
    /// Waiting does not help: the log is another owner's.
    pub(super) async fn wait_for_engine(
        &mut self,
        error: EngineError,
        patience: &mut Patience,
    ) -> Result<(), OwnershipLost> {
        if !matches!(error, EngineError::Unavailable(_) | EngineError::Full) {
            return Err(OwnershipLost);
        }
        self.services.metrics.engine_retries.inc();
        let until = Instant::now() + patience.0;
        patience.0 = (patience.0 * 2).min(Duration::from_secs(1));
        loop {
            let room = self.deferred.len() < DEFERRED;
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => return Ok(()),
                Some(look) = self.looks.recv() => self.show(look).await,
                Some(request) = self.requests.recv(), if room => self.put_off(request),
            }
        }
    }

    /// What can be said without the engine is said now.
    fn put_off(&mut self, request: Box<Request>) {
        match *request {
            Request::Publish(publish) => self.refuse_for_now(publish),
            Request::CommandsDone { connection, commands } => self.commands_done(connection, commands),
            Request::ConnectionLost(connection) => self.connection_lost(connection),
            Request::Recheck { reply, .. } => {
                let _ = reply.send(Verdict::LookAgain(Duration::from_secs(1)));
            }
            Request::NoticeSettled { key, state } => self.notice_settled(&key, state),
            later => self.deferred.push_back(Box::new(later)),
        }
    }

    /// What a runtime is told when the engine did not take its events.
    pub(super) fn refuse_append(error: &EngineError) -> Refusal {
        match error {
            EngineError::Full => Refusal::plain(Code::OverCapacity),
            EngineError::Fenced { .. } => Refusal::plain(Code::Fenced),
            EngineError::NumberExpected { n } => {
                Refusal::plain(Code::NumberExpected).with_details(json!({ "expected": n + 1 }))
            }
            _ => Refusal::plain(Code::Unavailable).with_retry_after(1000),
        }
    }

    /// Serves whoever only wants to see the session. While a change is being written, that is the session before it.
    pub(super) async fn show(&mut self, look: Look) {
        match look {
            Look::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Look::Task { id, reply } => {
                let _ = reply.send(self.state.task(&id).cloned());
            }
            Look::Guardrail { id, reply } => {
                let _ = reply.send(self.shown_guardrail(&id));
            }
            Look::Why { id, reply } => {
                let _ = reply.send(Box::pin(self.why(&id)).await);
            }
        }
    }

    pub(super) fn snapshot(&mut self) -> Snapshot {
        if let Some(snapshot) = &self.snapshot {
            return snapshot.clone();
        }
        let mut state = self.state.view();
        state.guardrails = self.book.unfinished();
        let position = Position { epoch: self.log.epoch, offset: self.log.next.saturating_sub(1) };
        let snapshot = Snapshot { position, state: Arc::new(state) };
        self.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// A claim or a record changed without an event: the next snapshot is made anew.
    pub(super) fn touch(&mut self) {
        self.snapshot = None;
        self.summary_stale = true;
        self.side_stale = true;
    }
}
