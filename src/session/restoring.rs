//! Sessions that another process kept, found again at the start: the record, then the events behind it, then what was
//! between two writes when that process ended. What their runtimes missed is settled when those come back.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use onlooker_protocol::{
    Position,
    event::{EventFrame, kind},
    picture,
    view::{EndReason, GuardrailState, GuardrailView, Resolution, SessionStatus},
};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Directory, LOOKS, MAILBOX, Session, Shared,
    appending::{Draft, LogEnd},
    holding::{ClaimTokens, RuntimeSide},
    kept::{Keeping, StoredSession, StoredTask},
    owner::{Owner, OwnershipLost},
    questions::resolved_data,
    run_clock::{RunClock, TaskRules},
    settling::Unsettled,
    state::{Applied, State},
};
use crate::{
    clock,
    control::Wheel,
    engine::{EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version},
    guardrail::{Guardrail, StoredGuardrail},
    ids::{self, SessionId},
    images::Placed,
    ingest::NewPicture,
    outbox::NoticeSubject,
};

/// Sessions that are read at once.
const AT_ONCE: usize = 256;
/// One page of a log.
const PAGE: ReadLimit = ReadLimit { records: 1_000, bytes: 1 << 20 };
/// The place that one term has for the numbers of commands. Not every command leaves a trace in the engine, so each
/// owner numbers its commands from a range of its own. 2 million owners later the numbers would no longer be exact in
/// a client that reads them as floating point.
const NUMBERS_PER_TERM: u64 = 1 << 32;

/// A session's record as it was found.
struct Found {
    id: SessionId,
    version: Version,
    stored: StoredSession,
}

fn decoded((key, version, value): Stored) -> Option<Found> {
    match StoredSession::decode(&value) {
        Ok(stored) => Some(Found { id: key.session, version, stored }),
        Err(reason) => {
            tracing::error!(session.id = ?key.session, reason, "a kept session cannot be read and is not served");
            None
        }
    }
}

/// What the owner of a restored session begins with.
pub(super) struct Restored {
    /// Tasks that the runtime was not known to have.
    queued: Vec<StoredTask>,
    /// Guardrails whose records may be behind the log.
    behind: BTreeSet<String>,
}

/// Why the sessions could not be restored.
#[derive(Debug, thiserror::Error)]
#[error("the sessions that were kept cannot be read")]
pub struct RestoreError(#[from] EngineError);

impl Directory {
    /// Takes up every session that the engine has. Returns how many, when each of them can be asked.
    ///
    /// A session that cannot be read is left where it is, is not served, and is named in the log.
    ///
    /// # Errors
    /// The engine does not answer.
    pub async fn restore(&self) -> Result<usize, RestoreError> {
        let kept = self.services().engine.list(RecordKind::Session, None).await?;
        self.remove_logs_without_record(&kept).await;
        let mut kept: Vec<Found> = kept.into_iter().filter_map(decoded).collect();
        // What began together lies together in the store, and is read and written together.
        kept.sort_by(|a, b| a.stored.state.session().created_at.cmp(&b.stored.state.session().created_at));
        let restored = stream::iter(kept).map(|kept| self.take_up(kept)).buffered(AT_ONCE);
        tokio::pin!(restored);
        let (mut count, mut ended) = (0, Vec::new());
        while let Some(taken) = restored.next().await {
            let Some((mut owner, restored)) = taken? else { continue };
            count += 1;
            // Listed from the start, also while its owner waits for an engine that does not write.
            self.insert(owner.session.clone());
            owner.tell_summary();
            if owner.state.is_ended() {
                ended.push(owner);
            } else {
                self.run(owner, Some(Box::new(restored)));
            }
        }
        // Those that ended first are the first to go when room is needed.
        ended.sort_by(|a, b| a.state.session().ended_at.cmp(&b.state.session().ended_at));
        for owner in ended {
            owner.list_as_ended();
            self.run(owner, None);
        }
        Ok(count)
    }

    /// A log is made before its session's record: where the process ended in between, nobody was told of the session.
    async fn remove_logs_without_record(&self, kept: &[Stored]) {
        let known: HashSet<SessionId> = kept.iter().map(|(key, ..)| key.session).collect();
        let logs = self.services().engine.logs();
        for session in logs.into_iter().filter(|session| !known.contains(session)) {
            self.remove_unbegun(session).await;
        }
    }

    /// `None` for what is not served because it was never begun.
    async fn take_up(&self, Found { id, version, stored }: Found) -> Result<Option<(Owner, Restored)>, EngineError> {
        let services = Arc::clone(self.services());
        let engine = Arc::clone(&services.engine);
        let head = match engine.head(id) {
            Ok(head) if head.borrow().next > 0 => head,
            // Its start never came into the log: nobody was told of it.
            Ok(_) | Err(EngineError::UnknownLog) => {
                self.remove_unbegun(id).await;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let at = *head.borrow();
        let mut owner = self.owner_of(id, &stored, version, head);
        owner.restore_guardrails(engine.list(RecordKind::Guardrail, Some(id)).await?);
        let behind = owner.restore_tail(&stored, at).await?;
        owner.restore_picture(engine.get(picture_key(id)).await?);
        owner.restore_notices().await?;
        if owner.state.is_ended() {
            owner.ended_before(clock::now());
        }
        Ok(Some((owner, Restored { queued: stored.queued, behind })))
    }

    /// What cannot be removed now is found again by the next start.
    async fn remove_unbegun(&self, session: SessionId) {
        if let Err(error) = self.services().engine.remove(session).await {
            tracing::warn!(session.id = ?session, %error, "a session that never began is not removed yet");
        }
    }

    /// The owner of a kept session, as far as its record says.
    fn owner_of(&self, id: SessionId, stored: &StoredSession, version: Version, head: watch::Receiver<Head>) -> Owner {
        let services = self.services();
        let (side_sender, side) = watch::channel(Default::default());
        let (sender, requests) = mpsc::channel(MAILBOX);
        let (look, looks) = mpsc::channel(LOOKS);
        let log = LogEnd::restored(*head.borrow());
        let session =
            Session(Arc::new(Shared::new(id, stored.project.as_str().into(), services, head, side, (sender, look))));
        session.link.continue_behind(log.term * NUMBERS_PER_TERM);
        let runtime = RuntimeSide::None;
        let (state, asked) = (stored.state.clone(), stored.asked.clone());
        let mut owner =
            Owner::new(session, Arc::clone(services), (requests, looks), side_sender, log, state, asked, runtime);
        owner.wheel = Wheel::continue_behind(owner.log.term * NUMBERS_PER_TERM);
        owner.keeping = Keeping::restored(version);
        owner.tokens = ClaimTokens::restored(&stored.tokens);
        owner.secrets.restored(stored.has_secrets);
        owner.paused_by_control = stored.paused_by_control;
        owner.tasks = stored
            .rules
            .iter()
            .map(|(task, rules)| {
                let max_duration = rules.max_duration_ms.map(Duration::from_millis);
                let terminate_on_completion = rules.terminate_on_completion;
                (task.clone(), TaskRules { max_duration, terminate_on_completion })
            })
            .collect();
        if let Some(ran) = &stored.ran {
            owner.clock = RunClock::resumed(Some(ran.task.clone()), Duration::from_millis(ran.ms));
        }
        if stored.sensitive_by_gateway {
            owner.sensitive_until = Some(Instant::now() + services.times.sensitive);
        }
        owner.reaching.restore_results(&stored.results);
        owner.restore_webhooks(&stored.webhooks);
        owner
    }
}

impl Owner {
    fn restore_guardrails(&mut self, records: Vec<Stored>) {
        let (now, wall) = (Instant::now(), clock::now());
        for (key, version, value) in records {
            match StoredGuardrail::decode(&value) {
                Ok(stored) => {
                    let guardrail = Guardrail::restored(stored, version, now, wall);
                    self.show_on_board(&guardrail.view.guardrail_id);
                    if guardrail.was_filled() {
                        self.fillers.mark_tried(&guardrail.view.guardrail_id);
                    }
                    self.book.restore(guardrail);
                }
                Err(reason) => {
                    tracing::error!(session.id = ?self.id(), guardrail.id = key.name, reason, "a kept guardrail cannot be read");
                }
            }
        }
    }

    /// Applies what the log has behind the record.
    /// Returns the guardrails whose records may be behind it.
    async fn restore_tail(&mut self, stored: &StoredSession, head: Head) -> Result<BTreeSet<String>, EngineError> {
        let mut behind = BTreeSet::new();
        let mut from = stored.next.max(head.first);
        while from < head.next {
            let page = match self.services.engine.read(self.id(), from, PAGE).await {
                Ok(page) => page,
                Err(EngineError::Trimmed { first }) => {
                    from = first;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(last) = page.last() else { break };
            from = last.offset + 1;
            for record in page.iter().filter(|record| State::is_changed_by(&record.kind)) {
                behind.extend(self.restore_event(record));
            }
        }
        Ok(behind)
    }

    /// Returns the guardrail that it changed beyond its record.
    fn restore_event(&mut self, record: &Record) -> Option<String> {
        let frame: EventFrame = match serde_json::from_slice(&record.frame) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::error!(session.id = ?self.id(), offset = record.offset, %error, "a kept event cannot be read");
                return None;
            }
        };
        let (data, task) = (&frame.event.data, frame.task.as_deref());
        let mut behind = None;
        match &*record.kind {
            kind::GUARDRAIL_TRIGGER => behind = self.restore_question(&frame),
            kind::GUARDRAIL_TAKEN => behind = self.restore_taken(data),
            kind::SENSITIVE => {
                let by_gateway = data["on"] == true && data["by"] == "gateway";
                self.sensitive_until = by_gateway.then(|| Instant::now() + self.services.times.sensitive);
            }
            kind::CONTROL_RELEASED => self.paused_by_control = false,
            kind::TASK_PAUSED => self.paused_by_control = data["reason"] == "control",
            kind::TASK_COMPLETED | kind::ERROR => self.restore_result(task, frame.position),
            _ => {}
        }
        let event = Applied { kind: &record.kind, task, data, at: &frame.at, position: frame.position };
        self.state.apply(event);
        behind
    }

    /// A question whose record did not become as new as the log.
    fn restore_question(&mut self, frame: &EventFrame) -> Option<String> {
        let view = view_of(frame)?;
        let id = view.guardrail_id.clone();
        let last = self.book.get(&id);
        if last.is_some_and(|last| last.view.revision >= view.revision) {
            return None;
        }
        let guardrail = Guardrail::from_log(view, last, Instant::now(), clock::now());
        self.show_on_board(&id);
        self.book.restore(guardrail);
        Some(id)
    }

    /// Whoever asks for the guardrail by its id alone finds the session.
    fn show_on_board(&self, guardrail: &str) {
        self.services.boards.of(&self.session.project).guardrail_raised(self.session.id, guardrail);
    }

    fn restore_taken(&mut self, data: &Value) -> Option<String> {
        // Where it is still open in the log, the runtime spoke too early, and the record is ahead.
        let closed = |id: &&str| self.state.holding().all(|open| open != *id);
        let guardrail = data["guardrailId"].as_str().filter(closed).and_then(|id| self.book.get_mut(id))?;
        if data["revision"].as_u64() != Some(u64::from(guardrail.view.revision)) {
            return None;
        }
        guardrail.taken();
        Some(guardrail.view.guardrail_id.clone())
    }

    fn restore_result(&mut self, task: Option<&str>, position: Position) {
        let running = |task: &&str| self.state.task(task).is_some_and(|task| !task.status.is_over());
        if let Some(task) = task.filter(running).map(str::to_owned) {
            self.result_due(&task, position.offset, Instant::now());
        }
    }

    fn restore_picture(&mut self, kept: Option<(Version, Bytes)>) {
        let Some((version, frame)) = kept else { return self.state.forget_picture() };
        let Ok((shown, bytes)) = picture::decode::<picture::ShownPicture>(&frame) else {
            return self.state.forget_picture();
        };
        self.state.set_picture(shown.id.clone(), shown.media.clone(), shown.size);
        let picture = NewPicture { media: shown.media, bytes: Bytes::copy_from_slice(bytes) };
        let placed = Placed { id: shown.id.as_str().into(), offset: 0, only_for: None };
        self.session.images.add(self.id(), picture, placed);
        self.pictures.restored(&shown.id, version);
    }

    /// What the outbox has of this session's questions and results. A card of a question that closed is told so, in
    /// case the process ended in between.
    async fn restore_notices(&mut self) -> Result<(), EngineError> {
        let states = self.services.outbox.resume(self.id()).await?;
        if states.is_empty() {
            return Ok(());
        }
        let is_older = |id: &str, revision| self.book.get(id).is_some_and(|last| last.view.revision > revision);
        let outlived = states.iter().filter_map(|(key, ..)| match &key.subject {
            NoticeSubject::Guardrail { id, revision } if is_older(id, *revision) => Some((id.clone(), *revision)),
            NoticeSubject::Guardrail { .. } | NoticeSubject::Result { .. } => None,
        });
        let outlived: BTreeSet<(String, u32)> = outlived.collect();
        self.reaching.restore_notices(states);
        self.forget_told_results();
        let closed: Vec<String> = self
            .book
            .iter()
            .filter(|guardrail| guardrail.view.state.is_closed())
            .map(|guardrail| guardrail.view.guardrail_id.clone())
            .collect();
        for id in closed {
            self.notices_closed(&id).await;
        }
        for (id, revision) in outlived {
            self.notices_outlived(&id, revision).await;
        }
        Ok(())
    }

    /// Of a session that has ended nothing is left to do but to wait for the end of its retention.
    fn ended_before(&mut self, wall: OffsetDateTime) {
        let now = Instant::now();
        let ago = self.state.session().ended_at.as_deref().map(|at| clock::since(at, wall)).unwrap_or_default();
        self.ended_at = Some(now.checked_sub(ago).unwrap_or(now));
        self.secrets = Default::default();
    }

    /// The log says what the restart did to the session; from then on its owner is this process.
    pub(super) async fn go_on(&mut self, restored: Restored) -> Result<(), OwnershipLost> {
        let Restored { queued, behind } = restored;
        let now = Instant::now();
        let grace = self.services.times.runtime_grace;
        self.runtime = match self.state.status() {
            SessionStatus::Pending => {
                RuntimeSide::Unclaimed { until: now + grace, next: now + self.services.times.offer }
            }
            _ => RuntimeSide::Away { until: now + grace },
        };
        let known = |task: &&StoredTask| task.task.task_id.as_deref().is_some_and(|id| self.state.has_seen(id));
        let queued = queued.iter().filter(known).cloned().collect();
        let was_controlled = self.state.session().control.is_some();
        self.unsettled = Some(Unsettled { queued, was_controlled, own_from: self.session.link.next_number() });
        let mut drafts = Vec::new();
        if self.services.engine.before().may_have_lost {
            let before = std::mem::replace(&mut self.log.epoch, ids::random_epoch());
            let data = json!({ "reason": "restart", "before": before.to_string() });
            drafts.push(Draft::new(kind::EPOCH_CHANGED, None, data));
        }
        if self.state.status() == SessionStatus::Active {
            let data = json!({ "gracePeriod": grace.as_millis() as u64, "reason": "restart" });
            drafts.push(Draft::new(kind::RUNTIME_DISCONNECTED, None, data));
        }
        if was_controlled {
            drafts.push(Draft::new(kind::CONTROL_RELEASED, None, json!({ "reason": "restart" })));
            if std::mem::take(&mut self.paused_by_control)
                && let Some(task) = self.state.current()
            {
                let data = json!({ "taskId": task.task, "reason": "control" });
                drafts.push(Draft::new(kind::TASK_RESUMED, Some(task.task.clone()), data));
            }
        }
        drafts.extend(self.unlogged_ends());
        // Also with nothing to say: the log then knows this owner's term.
        self.append_surely(drafts).await?;
        // Before the session's record passes by what they were made from.
        for id in behind {
            self.store_surely(&id).await?;
        }
        self.end_what_was_over().await?;
        if self.book.open().next().is_some() {
            self.session.watch.raised(now);
        }
        self.touch();
        Ok(())
    }

    /// The process may have ended between a task's end and what that brings with it: the end of the task's questions,
    /// and of a session that was to end with it.
    async fn end_what_was_over(&mut self) -> Result<(), OwnershipLost> {
        let ended_after = |guardrail: &Guardrail| {
            let task = self.state.task(guardrail.view.task.as_deref()?)?;
            task.ended.filter(|ended| ended.offset > guardrail.view.position.offset).map(|_| task.task.clone())
        };
        let over: Vec<String> =
            self.book.iter().filter(|guardrail| !guardrail.is_over()).filter_map(ended_after).collect();
        for task in over {
            self.cancel_guardrails_of(Some(&task), "task").await?;
        }
        let is_over = |task: &String| self.state.task(task).is_some_and(|task| task.status.is_over());
        if self.tasks.iter().any(|(task, rules)| rules.terminate_on_completion && is_over(task)) {
            self.end(EndReason::TerminateOnCompletion).await?;
        }
        Ok(())
    }

    /// Questions that were closed by their record, and not yet by the log. That an answer is lost is said when it is asked
    /// for anew.
    fn unlogged_ends(&self) -> Vec<Draft> {
        let holding = self.state.holding().filter_map(|id| self.book.get(id));
        let holding = holding.filter(|guardrail| guardrail.view.state != GuardrailState::Lost);
        let ends = holding.filter_map(|guardrail| Some((guardrail, guardrail.view.resolution.as_ref()?)));
        ends.map(|(guardrail, resolution)| {
            let data = resolved_data(&guardrail.view, resolution);
            Draft::new(kind::GUARDRAIL_RESOLVED, guardrail.view.task.clone(), data)
        })
        .collect()
    }
}

/// The record of a session's last picture: the binary frame that subscribers get.
pub fn picture_key(session: SessionId) -> RecordKey {
    RecordKey { kind: RecordKind::Picture, session, name: String::new() }
}

/// The question that a `guardrail_trigger` of the log shows.
fn view_of(frame: &EventFrame) -> Option<GuardrailView> {
    let mut members = frame.event.data.as_object()?.clone();
    members.insert("session".to_owned(), json!(frame.session));
    members.insert("state".to_owned(), json!(GuardrailState::Open));
    members.insert("openedAt".to_owned(), json!(frame.at));
    members.insert("position".to_owned(), json!(frame.position));
    members.insert("task".to_owned(), json!(frame.task));
    members.insert("claim".to_owned(), Value::Null);
    members.insert("resolution".to_owned(), json!(None::<Resolution>));
    serde_json::from_value(Value::Object(members)).ok()
}
