//! The owner's task: one mailbox, one writer, every deadline of its session.

use std::{collections::HashMap, sync::Arc, time::Duration};

use onlooker_protocol::{
    event::kind,
    runtime::{OpenSession, RuntimeCommand},
    view::{EndReason, Outcome, Resolution},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize;

use super::{
    Request, Services, Session, Snapshot,
    appending::{Draft, LogEnd},
    holding::{ClaimTokens, RuntimeSide, runtime_gone},
    reaching::Reaching,
    run_clock::{RunClock, TaskRules},
    state::State,
};
use crate::{
    clock,
    control::Wheel,
    guardrail::Book,
    hub::Side,
    ids::{ConnectionId, SessionId},
    redact::Redactor,
    secrets::Fillers,
};

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
    pub(super) side_told_at: Option<Instant>,
    /// Who watches or claims may have changed since it was last told.
    pub(super) side_stale: bool,
    /// When somebody stops counting by the passing of time alone.
    next_lapse: Option<Instant>,
    pub(super) summary_stale: bool,
    pub(super) snapshot: Option<Snapshot>,
}

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

    fn connection_lost(&mut self, connection: ConnectionId) {
        let now = Instant::now();
        self.wheel.connection_lost(connection, now, self.services.times.control);
        self.book.connection_lost(connection, now);
    }
}

/// The log is another owner's, or gone: this owner ends.
#[derive(Debug)]
pub(super) struct OwnershipLost;
