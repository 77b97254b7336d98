//! A restored session and its runtime, when that comes back: what it is told again, and what is lost.
//!
//! Between a start and a runtime's first word nobody knows what that runtime had still heard. So a restored session
//! waits, away, with its questions open; only what its runtime says (the number of the last command that it applied)
//! decides which tasks and outcomes it is told again, and whether an answer is lost.

use onlooker_protocol::{
    Position,
    event::kind,
    runtime::RuntimeCommand,
    view::{GuardrailState, Outcome, TaskStatus},
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    appending::Draft,
    kept::StoredTask,
    owner::{Owner, OwnershipLost},
    questions::{resolved_data, trigger_data},
};
use crate::{clock, guardrail::Guardrail};

/// What a restored session and its runtime still have to agree on.
pub(super) struct Unsettled {
    /// Tasks whose commands the runtime may not have got.
    pub queued: Vec<StoredTask>,
    /// Somebody had control, and the runtime may still think so.
    pub was_controlled: bool,
    /// This process gave the commands from here on; the link has them.
    pub own_from: u64,
}

impl Owner {
    /// The runtime is back and has applied the commands up to `applied`: it is told again what it missed, and what
    /// died with the other process is said to be lost.
    ///
    /// All of it is stored under its new numbers before the runtime is given any command of this process: under the
    /// old ones it would seem to be applied, should this process end too.
    pub(super) async fn settle_with_runtime(&mut self, applied: u64) -> Result<(), OwnershipLost> {
        let Some(unsettled) = self.unsettled.take() else { return Ok(()) };
        self.keeping.changed();
        for stopped in self.state.stopped().map(|task| task.task.clone()).collect::<Vec<_>>() {
            self.tell(RuntimeCommand::Stop { task: Some(stopped) });
        }
        if unsettled.was_controlled {
            self.tell(RuntimeCommand::ReleaseControl);
        }
        match self.state.current().map(|task| task.status) {
            Some(TaskStatus::Paused) => self.tell(RuntimeCommand::Pause),
            Some(_) => self.tell(RuntimeCommand::Resume),
            None => {}
        }
        let missed: Vec<StoredTask> = unsettled.queued.into_iter().filter(|task| task.number > applied).collect();
        if !missed.is_empty() {
            for task in missed {
                self.settle_task(task).await?;
            }
            self.keep_surely().await?;
        }
        let untold: Vec<String> = self
            .book
            .iter()
            .filter(|guardrail| guardrail.is_untold(applied, unsettled.own_from))
            .map(|guardrail| guardrail.view.guardrail_id.clone())
            .collect();
        for id in untold {
            self.settle_guardrail(&id).await?;
        }
        Ok(())
    }

    /// The runtime, which has applied the commands up to `applied`, may type values that only the process before this
    /// one knew: it has to say which.
    ///
    /// Returns whether that is new, and to be stored.
    pub(super) fn misses_values(&mut self, applied: u64) -> bool {
        let misses = self.unsettled.is_some()
            && !self.secrets.has_any()
            && self.book.iter().any(|guardrail| guardrail.gave_lost_values(applied));
        if misses {
            self.secrets.restored(true);
        }
        misses
    }

    /// Commands to a runtime that has just come back: nothing waits for it yet, so there is room.
    fn tell(&self, command: RuntimeCommand) {
        if self.session.link.command(command).is_err() {
            tracing::error!(session.id = ?self.id(), "too many commands wait for the runtime");
        }
    }

    /// A task that the runtime never got: it goes there now, unless its secrets are gone.
    async fn settle_task(&mut self, waiting: StoredTask) -> Result<(), OwnershipLost> {
        let id = waiting.task.task_id.clone().unwrap_or_default();
        if self.state.task(&id).is_none_or(|task| task.status != TaskStatus::Queued) {
            return Ok(());
        }
        if waiting.whole {
            self.tell(RuntimeCommand::NewTask { task: waiting.task });
            return Ok(());
        }
        let data = json!({
            "taskId": id,
            "error": "The gateway restarted before the task began, and its secrets are lost: start it again",
            "code": "secrets_lost",
        });
        let position = self.append_surely(vec![Draft::new(kind::ERROR, Some(id.clone()), data)]).await?;
        self.task_ended(&id, position).await
    }

    async fn settle_guardrail(&mut self, id: &str) -> Result<(), OwnershipLost> {
        let Some(guardrail) = self.book.get(id) else { return Ok(()) };
        if guardrail.has_lost_its_answer() {
            return self.ask_anew(id).await;
        }
        let number = self.session.link.next_number();
        let Some(guardrail) = self.book.get_mut(id) else { return Ok(()) };
        guardrail.command = Some(number);
        self.store_surely(id).await?;
        self.tell_runtime(id);
        Ok(())
    }

    /// The answer died with the process that had accepted it: everybody is told, and the question is put again under
    /// the next revision.
    ///
    /// Both are one append: where the record alone says that the answer is lost, the log says neither.
    async fn ask_anew(&mut self, id: &str) -> Result<(), OwnershipLost> {
        if self.book.get(id).is_some_and(|guardrail| guardrail.view.state != GuardrailState::Lost) {
            self.lose_answer(id).await?;
        }
        let Some(guardrail) = self.book.get(id) else { return Ok(()) };
        tracing::warn!(session.id = ?self.id(), guardrail.id = id, "an accepted answer was lost; asking anew");
        let ended = guardrail.view.resolution.clone();
        let ended = ended.unwrap_or_else(|| Self::unanswered(Outcome::Lost, "restart"));
        let lost = resolved_data(&guardrail.view, &ended);
        let mut view = guardrail.asked_anew();
        view.position = Position { epoch: self.log.epoch, offset: self.log.next + 1 };
        view.opened_at = clock::now_text();
        let mut data = trigger_data(&view);
        data["reason"] = json!("answer_lost");
        let drafts = vec![
            Draft::new(kind::GUARDRAIL_RESOLVED, view.task.clone(), lost),
            Draft::new(kind::GUARDRAIL_TRIGGER, view.task.clone(), data),
        ];
        self.append_surely(drafts).await?;
        self.notices_closed(id).await;
        let now = Instant::now();
        self.session.watch.raised(now);
        let last = self.book.get(id);
        let guardrail = Guardrail::from_log(view, last, now, clock::now());
        self.book.restore(guardrail);
        self.store_surely(id).await?;
        self.services.metrics.answers_lost.inc();
        self.touch();
        Ok(())
    }

    /// The record says that the answer is lost. The log says so with the question that comes next.
    async fn lose_answer(&mut self, id: &str) -> Result<(), OwnershipLost> {
        self.snapshot();
        let Some(guardrail) = self.book.get_mut(id) else { return Ok(()) };
        guardrail.end(GuardrailState::Lost, Self::unanswered(Outcome::Lost, "restart"));
        guardrail.command = None;
        self.store_surely(id).await
    }
}
