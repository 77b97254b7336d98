//! What people and handlers ask of a session: tasks, pauses, the wheel, the end.

use onlooker_protocol::{
    code::{Code, Refusal},
    event::kind,
    runtime::RuntimeCommand,
    subscriber::{NewTask, SessionCommand},
    view::{EndReason, TaskStatus},
};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::{
    appending::Draft,
    by,
    holding::RuntimeSide,
    owner::{Owner, OwnershipLost},
    publishing::invalid,
    run_clock::TaskRules,
};
use crate::{
    control::{ControlRefused, Taken},
    guardrail::Actor,
    ids,
};

/// Tasks that one session may see in its life: their names must be recognised for as long as it lives.
pub(super) const TASKS: usize = 10_000;

type Outcome = Result<Result<Map<String, Value>, Refusal>, OwnershipLost>;

impl Owner {
    pub(super) async fn command(&mut self, command: SessionCommand, actor: &Actor) -> Outcome {
        if self.state.is_ended() {
            return Ok(Err(Refusal::plain(Code::SessionEnded)));
        }
        self.active();
        match command {
            SessionCommand::NewTask { task } => self.new_task(task, actor).await,
            SessionCommand::Pause => self.pause(actor).await,
            SessionCommand::Resume => self.resume(actor).await,
            SessionCommand::Stop => self.stop(actor).await,
            SessionCommand::Terminate => {
                self.end(EndReason::Terminated).await?;
                Ok(Ok(Map::new()))
            }
            SessionCommand::Interaction { action, token } => Ok(self.interaction(action, token, actor)),
            SessionCommand::TakeControl => self.take_control(actor).await,
            SessionCommand::ReleaseControl { token } => self.release_control(token, actor).await,
        }
    }

    /// Queues a task: its secrets are known to the redactor before the runtime hears of them.
    pub(super) async fn new_task(&mut self, mut task: NewTask, actor: &Actor) -> Outcome {
        // Its prompt is shown and stored, and nobody here could find a secret in it.
        if self.secrets.are_lost() {
            let message = "the gateway was restarted; start the task when the session's runtime is back";
            return Ok(Err(Refusal::new(Code::RuntimeAway, message)));
        }
        if let Err(refusal) = self.check_task(&task) {
            return Ok(Err(refusal));
        }
        let id = task.task_id.get_or_insert_with(ids::random_id).clone();
        let learnt = self.learn_secrets(task.secrets.clone()).and_then(|()| self.learn_parameters(&task.parameters));
        let webhook = match learnt.and_then(|()| self.webhook_of(&task)) {
            Ok(webhook) => webhook,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let rules = TaskRules {
            max_duration: task.max_duration.map(std::time::Duration::from_millis),
            terminate_on_completion: task.terminate_on_completion,
        };
        let data = json!({ "taskId": id, "prompt": task.prompt, "by": by(&actor.holder) });
        // The command first: it can be refused, the event cannot be taken back. Both are stored before the runtime
        // has it.
        if let Err(refusal) = self.session.link.hold(RuntimeCommand::NewTask { task }) {
            return Ok(Err(refusal));
        }
        self.tasks.insert(id.clone(), rules);
        if let Some(webhook) = webhook {
            self.webhooks.insert(id.clone(), webhook);
        }
        self.keep_surely().await?;
        self.append_surely(vec![Draft::new(kind::TASK_QUEUED, Some(id.clone()), data)]).await?;
        self.session.link.release();
        Ok(Ok(result("task", id)))
    }

    pub(super) fn check_task(&self, task: &NewTask) -> Result<(), Refusal> {
        let limit = self.services.limits.queued_tasks;
        if self.state.queued().len() >= limit {
            return Err(Refusal::plain(Code::TooManyTasks).with_details(json!({ "limit": limit })));
        }
        if let Some(id) = &task.task_id {
            if !ids::is_outside_id(id) {
                return Err(invalid("taskId is 1 to 64 characters of A-Z a-z 0-9 _ -"));
            }
            if self.state.has_seen(id) {
                return Err(Refusal::new(Code::Conflict, "this session has a task of that id already"));
            }
        }
        if self.state.tasks_seen() >= TASKS {
            return Err(Refusal::plain(Code::TooManyTasks).with_details(json!({ "limit": TASKS })));
        }
        if task.max_duration == Some(0) {
            return Err(invalid("maxDuration is at least 1 ms"));
        }
        crate::secrets::check(&task.secrets).map_err(invalid)
    }

    async fn pause(&mut self, actor: &Actor) -> Outcome {
        let Some(task) = self.current_task() else { return Ok(Err(no_task())) };
        if self.state.current().is_some_and(|current| current.status == TaskStatus::Paused) {
            return Ok(Ok(result("task", task)));
        }
        if let Err(refusal) = self.session.link.command(RuntimeCommand::Pause) {
            return Ok(Err(refusal));
        }
        self.paused_by_control = false;
        let data = json!({ "taskId": task, "by": by(&actor.holder) });
        self.append_surely(vec![Draft::new(kind::TASK_PAUSED, Some(task.clone()), data)]).await?;
        Ok(Ok(result("task", task)))
    }

    async fn resume(&mut self, actor: &Actor) -> Outcome {
        let Some(task) = self.current_task() else { return Ok(Err(no_task())) };
        if self.state.current().is_some_and(|current| current.status != TaskStatus::Paused) {
            return Ok(Ok(result("task", task)));
        }
        if let Err(refusal) = self.session.link.command(RuntimeCommand::Resume) {
            return Ok(Err(refusal));
        }
        let data = json!({ "taskId": task, "by": by(&actor.holder) });
        self.append_surely(vec![Draft::new(kind::TASK_RESUMED, Some(task.clone()), data)]).await?;
        Ok(Ok(result("task", task)))
    }

    /// Ends the current task at once; what it asked is cancelled.
    async fn stop(&mut self, actor: &Actor) -> Outcome {
        let Some(task) = self.current_task().or_else(|| self.state.queued().next().map(|task| task.task.clone()))
        else {
            return Ok(Err(no_task()));
        };
        if let Err(refusal) = self.session.link.command(RuntimeCommand::Stop { task: Some(task.clone()) }) {
            return Ok(Err(refusal));
        }
        self.cancel_guardrails_of(Some(&task), "task").await?;
        let data = json!({ "taskId": task, "by": by(&actor.holder) });
        self.append_surely(vec![Draft::new(kind::TASK_STOPPED, Some(task.clone()), data)]).await?;
        if self.tasks.remove(&task).is_some_and(|rules| rules.terminate_on_completion) {
            self.end(EndReason::TerminateOnCompletion).await?;
        }
        Ok(Ok(result("task", task)))
    }

    fn interaction(
        &mut self,
        action: Map<String, Value>,
        token: Option<u64>,
        actor: &Actor,
    ) -> Result<Map<String, Value>, Refusal> {
        let times = self.services.times.control;
        self.wheel.input(&actor.holder, token, Instant::now(), times).map_err(control_refused)?;
        if !matches!(self.runtime, RuntimeSide::Connected(_) | RuntimeSide::Http { .. }) {
            return Err(Refusal::plain(Code::RuntimeAway));
        }
        self.session.link.command(RuntimeCommand::Interaction { action })?;
        Ok(Map::new())
    }

    /// Take-over pauses the task, leaves a guardrail open and answers nothing.
    async fn take_control(&mut self, actor: &Actor) -> Outcome {
        let since = crate::clock::now_text();
        let times = self.services.times.control;
        let token = match self.wheel.take(&actor.holder, &since, Instant::now(), times) {
            Ok(Taken::Renewed(token)) => return Ok(Ok(result("token", token))),
            Ok(Taken::New(token)) => token,
            Err(refused) => return Ok(Err(control_refused(refused))),
        };
        if let Err(refusal) = self.session.link.command(RuntimeCommand::TakeControl) {
            self.wheel.end();
            return Ok(Err(refusal));
        }
        let data = json!({ "holder": by(&actor.holder), "since": since });
        let mut drafts = vec![Draft::new(kind::CONTROL_TAKEN, None, data)];
        let runs = self
            .state
            .current()
            .filter(|task| matches!(task.status, TaskStatus::Running | TaskStatus::Waiting))
            .map(|task| task.task.clone());
        if let Some(task) = runs {
            self.paused_by_control = true;
            let data = json!({ "taskId": task, "by": by(&actor.holder), "reason": "control" });
            drafts.push(Draft::new(kind::TASK_PAUSED, Some(task), data));
        }
        self.append_surely(drafts).await?;
        Ok(Ok(result("token", token)))
    }

    async fn release_control(&mut self, token: Option<u64>, actor: &Actor) -> Outcome {
        if let Err(refused) = self.wheel.release(&actor.holder, token) {
            return Ok(Err(control_refused(refused)));
        }
        self.control_ended("released").await?;
        Ok(Ok(Map::new()))
    }

    /// The lease is gone: the agent goes on where it was paused for it.
    pub(super) async fn control_ended(&mut self, reason: &str) -> Result<(), OwnershipLost> {
        let _ = self.session.link.command(RuntimeCommand::ReleaseControl);
        self.session.images.forget_private();
        let mut drafts = vec![Draft::new(kind::CONTROL_RELEASED, None, json!({ "reason": reason }))];
        if std::mem::take(&mut self.paused_by_control)
            && let Some(task) = self.current_task()
        {
            let data = json!({ "taskId": task, "reason": "control" });
            drafts.push(Draft::new(kind::TASK_RESUMED, Some(task), data));
        }
        self.append_surely(drafts).await?;
        Ok(())
    }

    fn current_task(&self) -> Option<String> {
        self.state.current().map(|task| task.task.clone())
    }
}

fn result(name: &str, value: impl Into<Value>) -> Map<String, Value> {
    Map::from_iter([(name.to_owned(), value.into())])
}

fn no_task() -> Refusal {
    Refusal::new(Code::UnknownTask, "no task is running in this session")
}

fn control_refused(refused: ControlRefused) -> Refusal {
    match refused {
        ControlRefused::HeldBy(who) => {
            Refusal::new(Code::ControlHeld, format!("{who} has control")).with_details(json!({ "holder": who }))
        }
        ControlRefused::OldToken | ControlRefused::NotHeld => Refusal::plain(Code::NotInControl),
    }
}
