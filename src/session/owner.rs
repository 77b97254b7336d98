//! The owner's task: one mailbox, one writer, every deadline of its session.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

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
    Look, Request, Services, Session, Snapshot,
    appending::{Draft, LogEnd},
    holding::{ClaimTokens, RuntimeSide, SecretsHeld, runtime_gone},
    kept::Keeping,
    last_picture::LastPicture,
    reaching::Reaching,
    restoring::Restored,
    run_clock::{RunClock, TaskRules},
    settling::Unsettled,
    state::State,
    webhooks::Webhooks,
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

/// Requests that may be served between being told to end and ending.
const ENDS_WITHIN: u32 = 16;

pub(super) struct Owner {
    pub(super) session: Session,
    pub(super) services: Arc<Services>,
    pub(super) requests: mpsc::Receiver<Box<Request>>,
    pub(super) looks: mpsc::Receiver<Look>,
    /// Requests that came while the engine did not answer, in their order.
    pub(super) deferred: VecDeque<Box<Request>>,
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
    pub(super) webhooks: Webhooks,
    pub(super) clock: RunClock,
    pub(super) reaching: Reaching,
    pub(super) secrets: SecretsHeld,
    pub(super) keeping: Keeping,
    pub(super) pictures: LastPicture,
    /// Since a restart the runtime has not said what it knows.
    pub(super) unsettled: Option<Unsettled>,
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
        (requests, looks): (mpsc::Receiver<Box<Request>>, mpsc::Receiver<Look>),
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
            looks,
            deferred: VecDeque::new(),
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
            webhooks: Webhooks::default(),
            clock: RunClock::default(),
            reaching: Reaching::default(),
            secrets: SecretsHeld::default(),
            keeping: Keeping::default(),
            pictures: LastPicture::default(),
            unsettled: None,
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
    ///
    /// Idle sessions are as many tasks as large as this future. So whatever is rare has its place on the heap, for as
    /// long as it takes.
    pub(super) async fn run(&mut self, restored: Option<Box<Restored>>, shutdown: CancellationToken) -> Ended {
        if let Some(restored) = restored {
            let gone_on = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ended::Stopped,
                gone_on = Box::pin(self.go_on(*restored)) => gone_on,
            };
            if gone_on.is_err() {
                return self.lost();
            }
        }
        let timer = tokio::time::sleep_until(Instant::now());
        let forget = self.forget.clone();
        let (stopped, forgotten) = (shutdown.cancelled(), forget.cancelled());
        tokio::pin!(timer, stopped, forgotten);
        let mut turns = 0_u32;
        loop {
            // What comes most is looked at first below, so that the rest is not asked in between; but no mailbox can hold up
            // the end.
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(ENDS_WITHIN) && shutdown.is_cancelled() {
                self.leave().await;
                return Ended::Stopped;
            }
            if self.catch_up().await.is_err() {
                return self.lost();
            }
            if self.is_forgotten() || turns.is_multiple_of(ENDS_WITHIN) && forget.is_cancelled() {
                return Ended::Forgotten;
            }
            if let Some(request) = self.deferred.pop_front() {
                if self.serve_one(request).await.is_err() {
                    return self.lost();
                }
                continue;
            }
            let deadline = self.next_deadline();
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let done = tokio::select! {
                biased;
                Some(look) = self.looks.recv() => self.show_and_serve(look).await,
                request = self.requests.recv() => match request {
                    Some(request) => self.serve_one(request).await,
                    None => return Ended::Stopped,
                },
                () = stopped.as_mut() => {
                    self.leave().await;
                    return Ended::Stopped;
                }
                () = forgotten.as_mut() => return Ended::Forgotten,
                () = runtime_gone(&self.runtime) => Box::pin(self.runtime_left()).await,
                () = self.session.watch.changed() => {
                    self.side_stale = true;
                    Ok(())
                }
                () = self.pictures.written() => Ok(()),
                () = timer.as_mut() => Ok(()),
            };
            if done.is_err() {
                return self.lost();
            }
        }
    }

    fn lost(&self) -> Ended {
        tracing::error!(session.id = ?self.id(), "the session's log is no longer ours; letting go of it");
        self.services.metrics.owners_fenced.inc();
        Ended::NotOurs
    }

    /// The gateway stops: the next start has less to read when the record is as new as the log.
    async fn leave(&mut self) {
        if self.keeping.due().is_some()
            && let Err(error) = self.keep().await
        {
            tracing::debug!(session.id = ?self.id(), %error, "the record stays behind its log");
        }
    }

    /// One request after each look: neither a busy runtime nor many who look can keep the other waiting.
    async fn show_and_serve(&mut self, look: Look) -> Result<(), OwnershipLost> {
        self.show(look).await;
        match self.requests.try_recv() {
            Ok(request) => self.serve_one(request).await,
            Err(_) => Ok(()),
        }
    }

    async fn serve_one(&mut self, request: Box<Request>) -> Result<(), OwnershipLost> {
        match *request {
            Request::Publish(publish) => self.publish(publish).await,
            other => Box::pin(self.serve(other)).await,
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
            Request::HttpAnnounce { claim, secrets, values, reply } => {
                let result = self.http_announced(&claim, secrets, &values).await?;
                let _ = reply.send(result);
            }
            Request::EndByRuntime { connection } => self.ended_by_runtime(connection).await?,
            Request::HttpContact { claim, done, reply } => {
                let result = self.http_contact(&claim, Some(done)).await?;
                let _ = reply.send(result);
            }
            Request::Command { command, actor, reply } => {
                let result = self.command(command, &actor).await?;
                let _ = reply.send(result);
            }
            Request::Answer { guardrail, answer, actor, reply } => {
                let result = self.answer(&guardrail, answer, &actor).await?;
                let _ = reply.send(result);
            }
            Request::AnswerUnnamed { unnamed, actor, reply } => {
                let result = self.answer_unnamed(unnamed, &actor).await?;
                let _ = reply.send(result);
            }
            Request::Claim { guardrail, revision, duration_ms, actor, reply } => {
                let result = self.claim_guardrail(&guardrail, revision, duration_ms, &actor).await?;
                let _ = reply.send(result);
            }
            Request::Release { guardrail, revision, actor, reply } => {
                let result = self.release_guardrail(&guardrail, revision, &actor).await?;
                let _ = reply.send(result);
            }
            Request::ConnectionLost(connection) => self.connection_lost(connection),
            Request::Recheck { key, reply } => {
                let _ = reply.send(self.recheck(&key));
            }
            Request::NoticeSettled { key, state } => self.notice_settled(&key, state),
            Request::BeginWebhook { task, reply } => {
                let post = self.begin_webhook(&task).await?;
                let _ = reply.send(post);
            }
            Request::WebhookDone { task } => self.webhook_done(&task),
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
        self.offer_webhooks(now);
        self.reach_out(now).await;
        self.tell_side(Instant::now());
        self.tell_summary();
        self.keep_picture(now);
        self.keep_when_due(now).await
    }

    async fn expire(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        if self.book.expire_claims(now) {
            self.touch();
        }
        if self.wheel.expire(now).is_some() {
            Box::pin(self.control_ended("expired")).await?;
        }
        if self.sensitive_until.is_some_and(|until| now >= until) {
            self.sensitive_until = None;
            let data = json!({ "on": false, "by": "gateway" });
            Box::pin(self.append_surely(vec![Draft::new(kind::SENSITIVE, None, data)])).await?;
        }
        self.expire_guardrails(now).await?;
        self.expire_runtime(now).await?;
        if self.secrets.is_overdue(now) {
            Box::pin(self.end(EndReason::SecretsLost)).await?;
        }
        self.expire_task(now).await?;
        self.follow_idleness(now);
        if let Some(since) = self.idle_since
            && now >= since + self.services.times.inactivity
        {
            Box::pin(self.end(EndReason::Expired)).await?;
        }
        Ok(())
    }

    /// The runtime keeps its own clock; the gateway's comes a while later.
    async fn expire_task(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        let Some((task, limit)) = self.task_limit() else { return Ok(()) };
        if self.clock.reaches(limit + self.services.times.task_slack).is_none_or(|at| now < at) {
            return Ok(());
        }
        Box::pin(self.task_timed_out(task, limit)).await
    }

    async fn task_timed_out(&mut self, task: String, limit: Duration) -> Result<(), OwnershipLost> {
        let milliseconds = limit.as_millis();
        let error = format!("Task exceeded maximum duration of {milliseconds}ms");
        let _ = self.session.link.command(RuntimeCommand::Stop { task: Some(task.clone()) });
        self.cancel_guardrails_of(Some(&task), "task").await?;
        let data = json!({ "taskId": task, "error": error, "code": "TASK_TIMEOUT" });
        let position = self.append_surely(vec![Draft::new(kind::ERROR, Some(task.clone()), data)]).await?;
        self.task_ended(&task, position).await
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
            RuntimeSide::Unclaimed { next, .. } => Some(*next),
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
            self.ended_at.filter(|_| self.webhooks.are_settled()).map(|at| at + self.services.times.retention),
            self.reaching.next_look(),
            self.next_lapse,
            self.side_due(),
            self.secrets.announce_by(),
            self.keeping.due(),
            self.pictures.due(),
            self.webhooks.next_offer(),
        ];
        times.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn is_forgotten(&self) -> bool {
        let over = self.ended_at.is_some_and(|at| Instant::now() >= at + self.services.times.retention);
        over && self.webhooks.are_settled()
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
        self.list_as_ended();
        self.forget_secrets();
        self.keeping.changed();
        self.services.metrics.sessions_ended.inc();
        tracing::info!(session.id = ?self.id(), ?reason, "session ended");
        Ok(())
    }

    /// From now on it may have to make room for others.
    pub(super) fn list_as_ended(&self) {
        let ended = (self.id(), self.forget.clone());
        self.services.ended.lock().expect("no holder panics").push_back(ended);
    }

    /// The copies that we own are overwritten.
    fn forget_secrets(&mut self) {
        self.redactor.clear();
        self.fillers = Fillers::default();
        self.secrets = SecretsHeld::default();
        self.unsettled = None;
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

    pub(super) fn connection_lost(&mut self, connection: ConnectionId) {
        let now = Instant::now();
        self.wheel.connection_lost(connection, now, self.services.times.control);
        self.book.connection_lost(connection, now);
    }
}

/// The log is another owner's, or gone: this owner ends.
#[derive(Debug)]
pub(super) struct OwnershipLost;

/// Why an owner ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The session's retention is over, or its room is needed.
    Forgotten,
    /// The log is another owner's.
    NotOurs,
    /// The gateway stops.
    Stopped,
}
