//! How long a task has run: not the time that it waits or is paused.

use std::time::Duration;

use onlooker_protocol::view::TaskStatus;
use tokio::time::Instant;

use super::state::State;

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
    /// What a stored task had run before this process.
    pub(super) fn resumed(task: Option<String>, before: Duration) -> Self {
        Self { task, before, since: None }
    }

    /// The task and how long it has run.
    pub(super) fn ran(&self, now: Instant) -> (Option<&str>, Duration) {
        let running = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        (self.task.as_deref(), self.before + running)
    }

    pub(super) fn follow(&mut self, state: &State, now: Instant) {
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
    pub(super) fn reaches(&self, limit: Duration) -> Option<Instant> {
        self.since.map(|since| since + limit.saturating_sub(self.before))
    }
}
