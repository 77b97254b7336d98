//! A session's state as the sum of its events. Nothing changes it but an event that is in the log.
//!
//! Guardrails have their own book; what is kept of them here is which of them hold up a task.

use std::collections::{BTreeMap, HashSet, VecDeque};

use onlooker_protocol::{
    Position,
    event::kind,
    view::{ControlView, EndReason, PictureView, RuntimeView, SessionStatus, SessionView, TaskStatus, TaskView},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Finished tasks whose results can still be asked for.
const FINISHED: usize = 32;

#[derive(Clone, Serialize, Deserialize)]
pub struct State {
    view: SessionView,
    finished: VecDeque<TaskView>,
    /// The task that is running, waiting or paused.
    current: Option<TaskView>,
    queued: VecDeque<TaskView>,
    /// Open guardrails and the task that each holds up.
    holding: BTreeMap<String, Option<String>>,
    ids: HashSet<String>,
}

/// An event as the state sees it.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    pub kind: &'a str,
    pub task: Option<&'a str>,
    pub data: &'a Value,
    pub at: &'a str,
    pub position: Position,
}

impl State {
    pub fn new(view: SessionView) -> Self {
        Self {
            view,
            finished: VecDeque::new(),
            current: None,
            queued: VecDeque::new(),
            holding: BTreeMap::new(),
            ids: HashSet::new(),
        }
    }

    /// The names that the session was given, once they are fit to be shown.
    pub fn rename(&mut self, external_id: Option<String>, labels: serde_json::Map<String, Value>) {
        self.view.external_id = external_id;
        self.view.labels = labels;
    }

    /// The last picture is this one: a newer one did not outlive the gateway's process.
    pub fn set_picture(&mut self, id: String, media: String, size: u64) {
        if let Some(picture) = self.view.picture.as_mut().filter(|picture| picture.id != id) {
            *picture = PictureView { id, media, size, at: picture.at.clone() };
        }
    }

    /// No picture outlived the gateway's process.
    pub fn forget_picture(&mut self) {
        self.view.picture = None;
    }

    /// Tasks that somebody stopped and that are still known.
    pub fn stopped(&self) -> impl Iterator<Item = &TaskView> {
        self.finished.iter().filter(|task| task.status == TaskStatus::Stopped)
    }

    /// Open guardrails as the log has them.
    pub fn holding(&self) -> impl Iterator<Item = &str> {
        self.holding.keys().map(String::as_str)
    }

    /// The view without guardrails.
    pub fn view(&self) -> SessionView {
        let mut view = self.view.clone();
        view.tasks = self.finished.back().into_iter().chain(&self.current).chain(&self.queued).cloned().collect();
        view
    }

    pub fn status(&self) -> SessionStatus {
        self.view.status
    }

    pub fn is_ended(&self) -> bool {
        self.view.status == SessionStatus::Ended
    }

    pub fn session(&self) -> &SessionView {
        &self.view
    }

    pub fn current(&self) -> Option<&TaskView> {
        self.current.as_ref()
    }

    pub fn queued(&self) -> impl ExactSizeIterator<Item = &TaskView> {
        self.queued.iter()
    }

    /// Any task that is still known.
    pub fn task(&self, id: &str) -> Option<&TaskView> {
        self.finished.iter().chain(&self.current).chain(&self.queued).find(|task| task.task == id)
    }

    /// Whether a task of this name was ever seen here.
    pub fn has_seen(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    pub fn tasks_seen(&self) -> usize {
        self.ids.len()
    }

    pub fn has_tasks_to_do(&self) -> bool {
        self.current.is_some() || !self.queued.is_empty()
    }

    /// The last word on what the tasks come to, for summaries.
    pub fn task_status(&self) -> Option<TaskStatus> {
        self.current.as_ref().or(self.queued.front()).or(self.finished.back()).map(|task| task.status)
    }

    /// Whether events of this type are more than something to look at.
    pub fn is_changed_by(kind: &str) -> bool {
        !matches!(kind, kind::AGENT | kind::ACTION | kind::RESPONSE_UPDATE) && !kind.starts_with("x.")
    }

    pub fn apply(&mut self, event: Applied<'_>) {
        match event.kind {
            kind::SESSION_STARTED => self.view.runtime = read::<RuntimeName>(event.data).and_then(RuntimeName::view),
            kind::RUNTIME_CONNECTED | kind::RUNTIME_RECONNECTED => {
                self.view.status = SessionStatus::Active;
                self.view.runtime = read::<RuntimeName>(event.data).and_then(RuntimeName::view);
            }
            kind::RUNTIME_DISCONNECTED => {
                self.view.status = SessionStatus::Orphaned;
                if let Some(runtime) = &mut self.view.runtime {
                    runtime.connected = false;
                }
            }
            kind::SESSION_ENDED => self.ended(event),
            kind::SCREENSHOT => self.view.picture = picture(event).or(self.view.picture.take()),
            kind::SENSITIVE => self.view.sensitive = event.data["on"].as_bool().unwrap_or(false),
            kind::CONTROL_TAKEN => self.view.control = read::<ControlView>(event.data),
            kind::CONTROL_RELEASED => self.view.control = None,
            kind::GUARDRAIL_TRIGGER => self.held(event),
            kind::GUARDRAIL_RESOLVED => self.resolved(event),
            _ => self.apply_to_task(event),
        }
    }

    fn apply_to_task(&mut self, event: Applied<'_>) {
        let Some(id) = event.task else { return };
        match event.kind {
            kind::TASK_QUEUED => self.queue(id, event),
            kind::TASK_STARTED => self.started(id, event),
            kind::USAGE => self.used(id, event),
            kind::TASK_PAUSED => self.set_current(id, TaskStatus::Paused),
            kind::TASK_RESUMED => self.resumed(id),
            kind::TASK_COMPLETED => self.finished(id, TaskStatus::Completed, event),
            kind::ERROR => self.finished(id, TaskStatus::Failed, event),
            kind::TASK_STOPPED => self.finished(id, TaskStatus::Stopped, event),
            _ => {}
        }
    }

    fn queue(&mut self, id: &str, event: Applied<'_>) {
        if self.ids.insert(id.to_owned()) {
            self.queued.push_back(new_task(id, TaskStatus::Queued, event));
        }
    }

    /// A task begins only when none is current: one runs at a time.
    fn started(&mut self, id: &str, event: Applied<'_>) {
        if self.current.is_some() {
            return;
        }
        let queued = self.queued.iter().position(|task| task.task == id).and_then(|at| self.queued.remove(at));
        let mut task = match queued {
            Some(task) => task,
            None if self.ids.insert(id.to_owned()) => new_task(id, TaskStatus::Running, event),
            // It has ended before: an end is final.
            None => return,
        };
        task.status = TaskStatus::Running;
        task.started_at = Some(event.at.to_owned());
        self.current = Some(task);
    }

    fn used(&mut self, id: &str, event: Applied<'_>) {
        if let Some(task) = self.current.as_mut().filter(|task| task.task == id)
            && let Some(usage) = event.data.as_object()
        {
            task.usage.clone_from(usage);
        }
    }

    fn set_current(&mut self, id: &str, status: TaskStatus) {
        if let Some(task) = self.current.as_mut().filter(|task| task.task == id) {
            task.status = status;
        }
    }

    fn resumed(&mut self, id: &str) {
        let waits = self.is_held(id);
        self.set_current(id, if waits { TaskStatus::Waiting } else { TaskStatus::Running });
    }

    fn finished(&mut self, id: &str, status: TaskStatus, event: Applied<'_>) {
        let ends_current = self.current.as_ref().is_some_and(|task| task.task == id);
        let task = if ends_current {
            self.current.take()
        } else {
            self.queued.iter().position(|task| task.task == id).and_then(|at| self.queued.remove(at))
        };
        let Some(mut task) = task else { return };
        task.status = status;
        task.ended_at = Some(event.at.to_owned());
        task.ended = Some(event.position);
        if status != TaskStatus::Stopped {
            task.result = event.data.clone();
        }
        if let Some(usage) = event.data["usage"].as_object() {
            task.usage.clone_from(usage);
        }
        if self.finished.len() == FINISHED {
            self.finished.pop_front();
        }
        self.finished.push_back(task);
    }

    fn held(&mut self, event: Applied<'_>) {
        let Some(id) = event.data["guardrailId"].as_str() else { return };
        self.holding.insert(id.to_owned(), event.task.map(str::to_owned));
        if let Some(task) = self.current.as_mut().filter(|task| Some(task.task.as_str()) == event.task)
            && task.status == TaskStatus::Running
        {
            task.status = TaskStatus::Waiting;
        }
    }

    fn resolved(&mut self, event: Applied<'_>) {
        let Some(id) = event.data["guardrailId"].as_str() else { return };
        let Some(Some(task)) = self.holding.remove(id) else { return };
        if self.is_held(&task) {
            return;
        }
        if let Some(current) = self.current.as_mut().filter(|current| current.task == task)
            && current.status == TaskStatus::Waiting
        {
            current.status = TaskStatus::Running;
        }
    }

    fn is_held(&self, task: &str) -> bool {
        self.holding.values().any(|held| held.as_deref() == Some(task))
    }

    fn ended(&mut self, event: Applied<'_>) {
        self.view.status = SessionStatus::Ended;
        self.view.reason = read::<Ended>(event.data).map(|ended| ended.reason);
        self.view.ended_at = Some(event.at.to_owned());
        self.view.control = None;
        self.view.sensitive = false;
        if let Some(runtime) = &mut self.view.runtime {
            runtime.connected = false;
        }
    }
}

#[derive(Deserialize)]
struct RuntimeName {
    runtime: Option<String>,
}

impl RuntimeName {
    fn view(self) -> Option<RuntimeView> {
        self.runtime.map(|name| RuntimeView { name, connected: true })
    }
}

#[derive(Deserialize)]
struct Ended {
    reason: EndReason,
}

fn read<T: for<'de> Deserialize<'de>>(data: &Value) -> Option<T> {
    T::deserialize(data).ok()
}

fn picture(event: Applied<'_>) -> Option<PictureView> {
    Some(PictureView {
        id: event.data["id"].as_str()?.to_owned(),
        media: event.data["media"].as_str()?.to_owned(),
        size: event.data["size"].as_u64()?,
        at: event.at.to_owned(),
    })
}

fn new_task(id: &str, status: TaskStatus, event: Applied<'_>) -> TaskView {
    TaskView {
        task: id.to_owned(),
        status,
        prompt: event.data["prompt"].as_str().map(str::to_owned),
        queued_at: Some(event.at.to_owned()),
        started_at: None,
        ended_at: None,
        usage: Map::new(),
        result: Value::Null,
        ended: None,
    }
}
