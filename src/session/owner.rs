//! The owner's task: one mailbox, one writer, every deadline of its session.

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    event::{Epoch, kind},
    runtime::{OpenSession, RuntimeCommand},
    subscriber::ClaimedGuardrail,
    view::{EndReason, OpenGuardrail, Outcome, Resolution, SessionSummary, TaskStatus},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize;

use super::{
    Request, Services, Session, Snapshot,
    reaching::Reaching,
    state::{Applied, State},
};
use crate::{
    clock,
    control::Wheel,
    engine::{Batch, EngineError, Numbers, Record},
    guardrail::Book,
    hub::Side,
    ids::{self, ConnectionId, SessionId},
    ingest,
    redact::Redactor,
    runtime_link::Seat,
    secrets::Fillers,
};

/// How often the `watchers` frame may change.
const SIDE_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Owner {
    pub(super) session: Session,
    pub(super) services: Arc<Services>,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) side: watch::Sender<Side>,
    pub(super) log: LogEnd,
    pub(super) state: State,
    pub(super) book: Book,
    pub(super) wheel: Wheel,
    pub(super) redactor: Redactor,
    pub(super) fillers: Fillers,
    pub(super) asked: OpenSession,
    pub(super) runtime: RuntimeSide,
    pub(super) tokens: ClaimTokens,
    pub(super) tasks: HashMap<String, TaskRules>,
    pub(super) clock: RunClock,
    pub(super) reaching: Reaching,
    /// A sensitive window that the gateway opened itself ends here.
    pub(super) sensitive_until: Option<Instant>,
    pub(super) paused_by_control: bool,
    /// Since when nothing has happened here that keeps a session alive.
    pub(super) idle_since: Option<Instant>,
    pub(super) ended_at: Option<Instant>,
    /// The session has ended, and its room is needed.
    forget: CancellationToken,
    side_told_at: Option<Instant>,
    /// Who watches or claims may have changed since it was last told.
    pub(super) side_stale: bool,
    /// When somebody stops counting by the passing of time alone.
    next_lapse: Option<Instant>,
    summary_stale: bool,
    snapshot: Option<Snapshot>,
}

/// Where the log ends, as its only writer knows.
pub(super) struct LogEnd {
    pub epoch: Epoch,
    pub next: u64,
    pub n: u64,
    pub term: u64,
}

/// Who runs the session.
pub(super) enum RuntimeSide {
    /// Offered to a runtime, which has not answered yet.
    Offered {
        seat: Seat,
        tried: HashSet<ConnectionId>,
        until: Instant,
    },
    Connected(Seat),
    Http {
        last_contact: Instant,
    },
    Away {
        until: Instant,
    },
    /// The session has ended.
    None,
}

/// The digests of the tokens that may claim the session. The one that was shown last stays good until the runtime has
/// shown that it got the newest one: answers that never arrived, however many, must not lock it out.
#[derive(Default)]
pub(super) struct ClaimTokens {
    current: Option<[u8; 32]>,
    previous: Option<[u8; 32]>,
}

impl ClaimTokens {
    /// The only token from now on: for a new offer, so that whoever was offered it before is out.
    pub(super) fn issue(&mut self) -> String {
        let token = ids::random_token();
        *self = Self { current: Some(digest(&token)), previous: None };
        token
    }

    /// A new token in place of the one that was just used.
    pub(super) fn rotate(&mut self, used: &str) -> String {
        let token = ids::random_token();
        *self = Self { current: Some(digest(&token)), previous: Some(digest(used)) };
        token
    }

    /// The runtime has the current token.
    pub(super) fn confirm(&mut self) {
        self.previous = None;
    }

    pub(super) fn fits(&self, token: &str) -> bool {
        let shown = digest(token);
        let fits = |kept: &Option<[u8; 32]>| kept.is_some_and(|kept| bool::from(kept.ct_eq(&shown)));
        fits(&self.current) | fits(&self.previous)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// What a task's creator said about its course.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskRules {
    pub max_duration: Option<Duration>,
    pub terminate_on_completion: bool,
}

/// Counts the running time of the current task: not the time that it waits or is paused.
#[derive(Default)]
pub(super) struct RunClock {
    task: Option<String>,
    before: Duration,
    since: Option<Instant>,
}

impl RunClock {
    fn follow(&mut self, state: &State, now: Instant) {
        let current = state.current();
        if self.task.as_deref() != current.map(|task| task.task.as_str()) {
            *self = Self { task: current.map(|task| task.task.clone()), ..Self::default() };
        }
        let runs = current.is_some_and(|task| task.status == TaskStatus::Running);
        match (self.since, runs) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.before += now - since;
                self.since = None;
            }
            _ => {}
        }
    }

    /// When it will have run for this long, if it goes on running.
    fn reaches(&self, limit: Duration) -> Option<Instant> {
        self.since.map(|since| since + limit.saturating_sub(self.before))
    }
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

/// The log is another owner's, or gone: this owner ends.
#[derive(Debug)]
pub(super) struct OwnershipLost;

impl Owner {
    #[expect(clippy::too_many_arguments, reason = "built in one place, from parts that have nothing in common")]
    pub(super) fn new(
        session: Session,
        services: Arc<Services>,
        requests: mpsc::Receiver<Request>,
        side: watch::Sender<Side>,
        log: LogEnd,
        state: State,
        asked: OpenSession,
        runtime: RuntimeSide,
    ) -> Self {
        let book = Book::new(services.guardrails.clone());
        Self {
            session,
            services,
            requests,
            side,
            log,
            state,
            book,
            wheel: Wheel::default(),
            redactor: Redactor::default(),
            fillers: Fillers::default(),
            asked,
            runtime,
            tokens: ClaimTokens::default(),
            tasks: HashMap::new(),
            clock: RunClock::default(),
            reaching: Reaching::default(),
            sensitive_until: None,
            paused_by_control: false,
            idle_since: None,
            ended_at: None,
            forget: CancellationToken::new(),
            side_told_at: None,
            side_stale: false,
            next_lapse: None,
            summary_stale: true,
            snapshot: None,
        }
    }

    pub(super) fn id(&self) -> SessionId {
        self.session.id
    }

    /// Runs until the session's retention is over or the gateway stops.
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let timer = tokio::time::sleep_until(Instant::now());
        tokio::pin!(timer);
        loop {
            if self.catch_up().await.is_err() {
                tracing::error!(session.id = %self.id(), "the session's log is no longer ours; letting go of it");
                self.services.metrics.owners_fenced.inc();
                return;
            }
            if self.is_forgotten() {
                return;
            }
            let deadline = self.next_deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let done = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.forget.cancelled() => return,
                request = self.requests.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => return,
                },
                () = runtime_gone(&self.runtime) => self.runtime_left().await,
                () = self.session.watch.changed() => {
                    self.side_stale = true;
                    Ok(())
                }
                () = timer.as_mut() => Ok(()),
            };
            if done.is_err() {
                tracing::error!(session.id = %self.id(), "the session's log is no longer ours; letting go of it");
                self.services.metrics.owners_fenced.inc();
                return;
            }
        }
    }

    async fn serve(&mut self, request: Request) -> Result<(), OwnershipLost> {
        match request {
            Request::Publish(publish) => self.publish(publish).await?,
            Request::ClaimSession(claim) => self.claimed_by_runtime(claim).await?,
            Request::Decline { connection, reason } => self.declined(connection, &reason).await?,
            Request::CommandsDone { connection, commands } => self.commands_done(connection, commands),
            Request::NumbersLost { connection, from } => self.numbers_lost(connection, from).await?,
            Request::Announce { connection, secrets, values } => self.announced(connection, secrets, &values),
            Request::EndByRuntime { connection } => self.ended_by_runtime(connection).await?,
            Request::HttpContact { claim, done, reply } => {
                let result = self.http_contact(&claim, done).await?;
                let _ = reply.send(result);
            }
            Request::Snapshot(reply) => {
                let _ = reply.send(self.snapshot());
            }
            Request::Task { id, reply } => {
                let _ = reply.send(self.state.task(&id).cloned());
            }
            Request::Command { command, actor, reply } => {
                let result = self.command(command, &actor).await?;
                let _ = reply.send(result);
            }
            Request::Answer { guardrail, answer, actor, reply } => {
                let result = self.answer(&guardrail, answer, &actor).await?;
                let _ = reply.send(result);
            }
            Request::Claim { guardrail, revision, duration_ms, actor, reply } => {
                let _ = reply.send(self.claim_guardrail(&guardrail, revision, duration_ms, &actor));
            }
            Request::Release { guardrail, revision, actor, reply } => {
                let _ = reply.send(self.release_guardrail(&guardrail, revision, &actor));
            }
            Request::Guardrail { id, reply } => {
                let _ = reply.send(self.shown_guardrail(&id));
            }
            Request::Why { id, reply } => {
                let _ = reply.send(self.why(&id).await);
            }
            Request::ConnectionLost(connection) => self.connection_lost(connection),
            Request::Recheck { key, reply } => {
                let _ = reply.send(self.recheck(&key));
            }
            Request::NoticeSettled { key, state } => self.notice_settled(&key, state),
        }
        Ok(())
    }

    /// Everything that follows from what has happened and from the time.
    async fn catch_up(&mut self) -> Result<(), OwnershipLost> {
        let now = Instant::now();
        self.clock.follow(&self.state, now);
        self.side_stale |= self.next_lapse.is_some_and(|lapse| now >= lapse);
        self.next_lapse = self.session.watch.settle(now);
        self.expire(now).await?;
        self.reach_out(now).await;
        self.tell_side(Instant::now());
        self.tell_summary();
        Ok(())
    }

    async fn expire(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        self.side_stale |= self.book.expire_claims(now);
        if self.wheel.expire(now).is_some() {
            self.control_ended("expired").await?;
        }
        if self.sensitive_until.is_some_and(|until| now >= until) {
            self.sensitive_until = None;
            let data = json!({ "on": false, "by": "gateway" });
            self.append_surely(vec![Draft::new(kind::SENSITIVE, None, data)]).await?;
        }
        self.expire_guardrails(now).await?;
        self.expire_runtime(now).await?;
        self.expire_task(now).await?;
        self.follow_idleness(now);
        if let Some(since) = self.idle_since
            && now >= since + self.services.times.inactivity
        {
            self.end(EndReason::Expired).await?;
        }
        Ok(())
    }

    async fn expire_runtime(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        match &self.runtime {
            RuntimeSide::Offered { until, .. } if now >= *until => self.offer_next().await,
            RuntimeSide::Away { until } if now >= *until => self.end(EndReason::InstanceLost).await,
            RuntimeSide::Http { last_contact } if now >= *last_contact + self.services.times.http_away => {
                self.runtime_left().await
            }
            _ => Ok(()),
        }
    }

    /// The runtime keeps its own clock; the gateway's comes a while later.
    async fn expire_task(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        let Some((task, limit)) = self.task_limit() else { return Ok(()) };
        if self.clock.reaches(limit + self.services.times.task_slack).is_none_or(|at| now < at) {
            return Ok(());
        }
        let milliseconds = limit.as_millis();
        let error = format!("Task exceeded maximum duration of {milliseconds}ms");
        let _ = self.session.link.command(RuntimeCommand::Stop { task: Some(task.clone()) });
        self.cancel_guardrails_of(Some(&task), "task").await?;
        let data = json!({ "taskId": task, "error": error, "code": "TASK_TIMEOUT" });
        let positions = self.append_surely(vec![Draft::new(kind::ERROR, Some(task.clone()), data)]).await?;
        self.task_ended(&task, positions[0]).await
    }

    fn task_limit(&self) -> Option<(String, Duration)> {
        let current = self.state.current()?;
        Some((current.task.clone(), self.tasks.get(&current.task)?.max_duration?))
    }

    fn follow_idleness(&mut self, now: Instant) {
        let connected = matches!(self.runtime, RuntimeSide::Connected(_) | RuntimeSide::Http { .. });
        let unfinished = self.book.iter().any(|guardrail| !guardrail.is_over());
        let busy = self.state.has_tasks_to_do() || unfinished || self.wheel.lease().is_some() || self.state.is_ended();
        if busy || !connected {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert(now);
        }
    }

    /// Something was done here: the inactivity clock starts anew.
    pub(super) fn active(&mut self) {
        if self.idle_since.is_some() {
            self.idle_since = Some(Instant::now());
        }
    }

    fn next_deadline(&self) -> Instant {
        let runtime = match &self.runtime {
            RuntimeSide::Offered { until, .. } | RuntimeSide::Away { until } => Some(*until),
            RuntimeSide::Http { last_contact } => Some(*last_contact + self.services.times.http_away),
            RuntimeSide::Connected(_) | RuntimeSide::None => None,
        };
        let task = self.task_limit().and_then(|(_, limit)| self.clock.reaches(limit + self.services.times.task_slack));
        let times = [
            runtime,
            task,
            self.wheel.until(),
            self.sensitive_until,
            self.book.next_deadline(),
            self.idle_since.map(|since| since + self.services.times.inactivity),
            self.ended_at.map(|at| at + self.services.times.retention),
            self.reaching.next_look(),
            self.next_lapse,
            self.side_due(),
        ];
        times.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn is_forgotten(&self) -> bool {
        self.ended_at.is_some_and(|at| Instant::now() >= at + self.services.times.retention)
    }

    // --- the log -------------------------------------------------------------------------------------------------

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
        let head = self.services.engine.append(self.id(), batch).await?;
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
        ingest::redact(&mut data, &self.redactor);
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
                Err(EngineError::Full) if self.services.make_room(self.id()).await => {}
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

    // --- what others are told ------------------------------------------------------------------------------------

    fn side_now(&self, now: Instant) -> Side {
        let claims = self.book.open().filter_map(|guardrail| {
            Some(ClaimedGuardrail {
                guardrail_id: guardrail.view.guardrail_id.clone(),
                revision: guardrail.view.revision,
                claim: guardrail.claim_view()?.clone(),
            })
        });
        Side { counts: self.session.watch.counts(now), claims: Arc::new(claims.collect()) }
    }

    fn side_due(&self) -> Option<Instant> {
        self.side_told_at.filter(|_| self.side_stale).map(|told| told + SIDE_EVERY)
    }

    /// Tells subscribers and the runtime who watches, at most once a second.
    fn tell_side(&mut self, now: Instant) {
        if !self.side_stale || self.side_told_at.is_some_and(|told| now < told + SIDE_EVERY) {
            return;
        }
        self.side_stale = false;
        let side = self.side_now(now);
        if *self.side.borrow() != side {
            self.side_told_at = Some(now);
            self.session.link.watchers(side.counts);
            self.side.send_replace(side);
        }
    }

    fn tell_summary(&mut self) {
        if !std::mem::take(&mut self.summary_stale) {
            return;
        }
        let session = self.state.session();
        let mut guardrails: Vec<_> = self.book.open().collect();
        guardrails.sort_by_key(|guardrail| guardrail.view.position.offset);
        let summary = SessionSummary {
            session: self.session.id.to_string(),
            external_id: session.external_id.clone(),
            status: session.status,
            reason: session.reason,
            task_status: self.state.task_status(),
            created_at: session.created_at.clone(),
            guardrails: guardrails
                .into_iter()
                .map(|guardrail| OpenGuardrail {
                    guardrail_id: guardrail.view.guardrail_id.clone(),
                    revision: guardrail.view.revision,
                    kind: guardrail.view.kind,
                    value: guardrail.view.value.clone(),
                })
                .collect(),
            picture: session.picture.as_ref().map(|picture| picture.id.clone()),
            position: Some(Position { epoch: self.log.epoch, offset: self.log.next.saturating_sub(1) }),
        };
        self.services.boards.of(&self.session.project).set(self.id(), summary);
    }

    fn connection_lost(&mut self, connection: ConnectionId) {
        let now = Instant::now();
        self.wheel.connection_lost(connection, now, self.services.times.control);
        self.book.connection_lost(connection, now);
    }

    // --- the end -------------------------------------------------------------------------------------------------

    /// Ends the session: everything open in it ends first, in one batch with the end itself.
    pub(super) async fn end(&mut self, reason: EndReason) -> Result<(), OwnershipLost> {
        if self.state.is_ended() {
            return Ok(());
        }
        self.cancel_guardrails_of(None, "session").await?;
        let mut drafts = Vec::new();
        if self.wheel.end().is_some() {
            drafts.push(Draft::new(kind::CONTROL_RELEASED, None, json!({ "reason": "session_ended" })));
        }
        for task in self.state.current().into_iter().chain(self.state.queued()) {
            let data = json!({ "taskId": task.task, "by": "session_ended" });
            drafts.push(Draft::new(kind::TASK_STOPPED, Some(task.task.clone()), data));
        }
        drafts.push(Draft::new(kind::SESSION_ENDED, None, json!({ "reason": reason })));
        self.append_surely(drafts).await?;
        // What waited for the runtime means nothing any more, and may hold secrets.
        self.session.link.clear();
        let _ = self.session.link.command(RuntimeCommand::Terminate);
        self.runtime = RuntimeSide::None;
        self.ended_at = Some(Instant::now());
        let ended = (self.id(), self.forget.clone());
        self.services.ended.lock().expect("no holder panics").push_back(ended);
        self.forget_secrets();
        self.services.metrics.sessions_ended.inc();
        tracing::info!(session.id = %self.id(), ?reason, "session ended");
        Ok(())
    }

    /// The copies that we own are overwritten.
    fn forget_secrets(&mut self) {
        self.redactor.clear();
        self.fillers = Fillers::default();
        self.sensitive_until = None;
        self.session.images.forget_private();
        let task_secrets = self.asked.task.iter_mut().flat_map(|task| task.secrets.iter_mut());
        for entry in self.asked.secrets.iter_mut().chain(task_secrets) {
            for value in entry.fields.values_mut() {
                value.zeroize();
            }
        }
    }

    /// How something ends that nobody answered.
    pub(super) fn unanswered(outcome: Outcome, via: &str) -> Resolution {
        Resolution { outcome, at: clock::now_text(), by: None, via: via.to_owned(), fields: Vec::new(), choice: None }
    }

    // --- runtimes ------------------------------------------------------------------------------------------------

    /// Offers the session to the next runtime with room, or ends it.
    pub(super) async fn offer_next(&mut self) -> Result<(), OwnershipLost> {
        let RuntimeSide::Offered { seat, tried, .. } = std::mem::replace(&mut self.runtime, RuntimeSide::None) else {
            return Ok(());
        };
        let mut tried = tried;
        tried.insert(seat.connection);
        drop(seat);
        match self.services.runtimes.seat(&self.session.project, &tried) {
            Some(seat) => {
                self.offer(seat, tried);
                Ok(())
            }
            None => self.end(EndReason::NoRuntime).await,
        }
    }

    pub(super) fn offer(&mut self, seat: Seat, tried: HashSet<ConnectionId>) {
        let claim = self.tokens.issue();
        seat.outlet.send(onlooker_protocol::runtime::GatewayToRuntime::Assigned {
            session: self.session.id.to_string(),
            claim,
            parameters: Box::new(self.asked.clone()),
        });
        self.runtime = RuntimeSide::Offered { seat, tried, until: Instant::now() + self.services.times.offer };
    }

    /// The runtime's connection has ended, or an HTTP runtime has been silent for too long.
    pub(super) async fn runtime_left(&mut self) -> Result<(), OwnershipLost> {
        if matches!(self.runtime, RuntimeSide::Offered { .. }) {
            return self.offer_next().await;
        }
        let grace = self.services.times.runtime_grace;
        self.runtime = RuntimeSide::Away { until: Instant::now() + grace };
        self.session.link.disconnect();
        let data = json!({ "gracePeriod": grace.as_millis() as u64 });
        self.append_surely(vec![Draft::new(kind::RUNTIME_DISCONNECTED, None, data)]).await?;
        Ok(())
    }
}

/// Whether an event of this type shows in a summary.
fn changes_summary(kind: &str) -> bool {
    !matches!(kind, kind::AGENT | kind::ACTION | kind::RESPONSE_UPDATE | kind::SENSITIVE) && !kind.starts_with("x.")
}

/// Resolves when the connection that holds the session, or is offered it, has ended.
async fn runtime_gone(runtime: &RuntimeSide) {
    match runtime {
        RuntimeSide::Connected(seat) | RuntimeSide::Offered { seat, .. } => seat.gone.cancelled().await,
        RuntimeSide::Http { .. } | RuntimeSide::Away { .. } | RuntimeSide::None => pending().await,
    }
}
