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
    Snapshot,
    owner::{Owner, OwnershipLost},
    state::Applied,
};
use crate::{
    clock,
    engine::{Batch, EngineError, Numbers, Record},
    ids, ingest,
};

/// Where the log ends, as its only writer knows.
pub(super) struct LogEnd {
    pub epoch: Epoch,
    pub next: u64,
    pub n: u64,
    pub term: u64,
}

/// An event that is about to be appended. Its data is redacted on the way.
pub(super) struct Draft {
    pub kind: Arc<str>,
    pub task: Option<String>,
    pub data: Value,
}

impl Draft {
    pub(super) fn new(kind: &str, task: Option<String>, data: Value) -> Self {
        Self { kind: kind.into(), task, data }
    }
}

impl Owner {
    /// Appends events, and applies them when they are durable.
    pub(super) async fn append(
        &mut self,
        drafts: Vec<Draft>,
        numbers: Option<Numbers>,
    ) -> Result<Vec<Position>, EngineError> {
        let at = clock::now_text();
        let (mut records, mut applied) = (Vec::with_capacity(drafts.len()), Vec::with_capacity(drafts.len()));
        for (draft, offset) in drafts.into_iter().zip(self.log.next..) {
            let position = Position { epoch: self.log.epoch, offset };
            let (frame, data) = self.encode(&draft, position, &at);
            records.push(Record { offset, kind: Arc::clone(&draft.kind), frame });
            applied.push((draft.kind, draft.task, data, position));
        }
        let batch = Batch { term: self.log.term, epoch: self.log.epoch, records, numbers };
        let mut appended = self.services.engine.append(self.id(), batch.clone()).await;
        if matches!(appended, Err(EngineError::Full)) && self.services.make_room(self.id()).await {
            appended = self.services.engine.append(self.id(), batch).await;
        }
        let head = appended?;
        self.log.next = head.next;
        self.log.n = head.n;
        for (kind, task, data, position) in &applied {
            self.state.apply(Applied { kind, task: task.as_deref(), data, at: &at, position: *position });
            self.summary_stale |= changes_summary(kind);
        }
        self.clock.follow(&self.state, Instant::now());
        self.snapshot = None;
        self.services.metrics.events.inc_by(applied.len() as u64);
        Ok(applied.into_iter().map(|(.., position)| position).collect())
    }

    fn encode(&self, draft: &Draft, position: Position, at: &str) -> (Bytes, Value) {
        let mut data = draft.data.clone();
        // Questions and their ends are made of redacted texts and checked ids; an id is never redacted.
        if !matches!(&*draft.kind, kind::GUARDRAIL_TRIGGER | kind::GUARDRAIL_RESOLVED) {
            ingest::redact(&mut data, &self.redactor);
        }
        let id = ids::time_ordered_id();
        let envelope =
            ingest::Envelope { session: self.session.id.as_str(), position, id: &id, at, task: draft.task.as_deref() };
        (ingest::encode(envelope, &draft.kind, &data), data)
    }

    /// Appends events of the gateway's own: they must not be lost, so an engine that does not answer is asked again
    /// until it does. Meanwhile this session's mailbox waits, and no other's.
    pub(super) async fn append_surely(&mut self, drafts: Vec<Draft>) -> Result<Vec<Position>, OwnershipLost> {
        let mut wait = Duration::from_millis(10);
        loop {
            let again = drafts.iter().map(|draft| Draft {
                kind: Arc::clone(&draft.kind),
                task: draft.task.clone(),
                data: draft.data.clone(),
            });
            match self.append(again.collect(), None).await {
                Ok(positions) => return Ok(positions),
                Err(EngineError::Unavailable(_) | EngineError::Full) => {
                    self.services.metrics.engine_retries.inc();
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(1));
                }
                Err(_) => return Err(OwnershipLost),
            }
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

/// Whether an event of this type shows in a summary.
fn changes_summary(kind: &str) -> bool {
    !matches!(kind, kind::AGENT | kind::ACTION | kind::RESPONSE_UPDATE | kind::SENSITIVE) && !kind.starts_with("x.")
}
