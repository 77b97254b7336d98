//! One session that this runtime holds: its unacknowledged events, its commands, its tasks and its open questions.
//!
//! Three parties share it: the connection (frames in and out), the worker (runs the tasks one after the other), and
//! the agent's [`crate::Task`]s. All state stands behind one mutex whose sections are short and never await. Whoever
//! changes something that another waits for notifies after the section.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use onlooker_protocol::{
    Code,
    code::{ComeBack, Refusal},
    event::kind,
    runtime::{GuardrailOutcome, NumberedCommand, OpenSession, Reclaim, RuntimeCommand, RuntimeToGateway},
    subscriber::{NewTask, SecretEntry},
};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeroize::Zeroize;

use super::{
    questions::{Questions, Received},
    window::{FrameLimits, NextFrame, Unnumbered, Window},
};
use crate::socket;

/// Twice what a gateway queues.
const TASKS_MAX: usize = 64;
/// Inputs of a person that the agent has not asked for; the oldest goes first.
const INTERACTIONS_MAX: usize = 256;
/// How long an event waits that the gateway cannot take now and gives no time for.
const REFUSED_WAIT: Duration = Duration::from_secs(1);
/// The code of the error that takes the place of a result which the gateway refused.
const RESULT_REFUSED: &str = "result_refused";

pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) parameters: OpenSession,
    /// Cancelled once, when the session is no longer this runtime's.
    pub(crate) ended: CancellationToken,
    /// Why its task must not go on at this moment.
    pub(crate) stillness: watch::Sender<Stillness>,
    /// The writer of the connection looks at the sessions again.
    outgoing: Arc<Notify>,
    room: Notify,
    queued: Notify,
    interacted: Notify,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stillness {
    pub(crate) paused: bool,
    pub(crate) controlled: bool,
    /// Questions that the task waits for.
    pub(crate) asking: u32,
}

impl Stillness {
    /// Whether a person wants the task to rest.
    pub(crate) fn held(self) -> bool {
        self.paused || self.controlled
    }

    /// Whether the clock of `maxDuration` runs.
    pub(crate) fn running(self) -> bool {
        !self.held() && self.asking == 0
    }
}

/// A task from its start to its end.
pub(crate) struct Running {
    pub(crate) id: String,
    pub(crate) parameters: NewTask,
    /// Cancelled when somebody stops the task.
    pub(crate) stop: CancellationToken,
}

struct State {
    window: Window,
    claim: String,
    /// Whether this connection's claim was confirmed: nothing is sent before.
    claimed: bool,
    /// The number of the last command applied.
    commands: u64,
    secrets_due: bool,
    lost_from: Option<u64>,
    /// Nothing is sent before this instant: the gateway could not take an event.
    hold: Option<Instant>,
    ending: Ending,
    queue: VecDeque<NewTask>,
    running: Option<Arc<Running>>,
    questions: Questions,
    interactions: VecDeque<Map<String, Value>>,
    /// Secrets of the session and of its tasks, and secret values that it took: kept to be announced again.
    secrets: Vec<SecretEntry>,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    /// `end` follows the last event.
    Due,
    Sent,
}

/// The copies of secrets that are held here are overwritten when nobody holds the session any longer.
impl Drop for Session {
    fn drop(&mut self) {
        overwrite(&mut self.parameters.secrets);
        let task = self.parameters.task.as_mut();
        task.into_iter().for_each(|task| overwrite(&mut task.secrets));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        overwrite(&mut self.secrets);
        self.queue.iter_mut().for_each(|task| overwrite(&mut task.secrets));
        self.values.iter_mut().for_each(Zeroize::zeroize);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        overwrite(&mut self.parameters.secrets);
    }
}

fn overwrite(secrets: &mut [SecretEntry]) {
    secrets.iter_mut().flat_map(|entry| entry.fields.values_mut()).for_each(Zeroize::zeroize);
}

/// What a command asks of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Say how far the commands are applied.
    Done(u64),
    /// The same, and the session is over.
    Terminated(u64),
}

impl Session {
    pub(crate) fn new(id: String, claim: String, parameters: OpenSession, outgoing: Arc<Notify>) -> Self {
        let secrets = parameters.secrets.clone();
        let state = State {
            window: Window::new(),
            claim,
            claimed: false,
            commands: 0,
            secrets_due: false,
            lost_from: None,
            hold: None,
            ending: Ending::No,
            queue: VecDeque::new(),
            running: None,
            questions: Questions::default(),
            interactions: VecDeque::new(),
            secrets,
            values: Vec::new(),
        };
        Self {
            id,
            parameters,
            ended: CancellationToken::new(),
            stillness: watch::Sender::new(Stillness::default()),
            outgoing,
            room: Notify::new(),
            queued: Notify::new(),
            interacted: Notify::new(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no section of this mutex panics")
    }

    // What the connection does.

    pub(crate) fn reclaim(&self) -> Reclaim {
        let state = self.state();
        Reclaim { session: self.id.clone(), claim: state.claim.clone(), commands: state.commands }
    }

    /// The session was assigned once more, before a claim was confirmed.
    pub(crate) fn reassigned(&self, claim: String) {
        self.state().claim = claim;
    }

    pub(crate) fn claimed(&self, claim: String, expected: u64, secrets_expected: bool) {
        let mut state = self.state();
        state.claim = claim;
        state.claimed = true;
        state.secrets_due = secrets_expected;
        state.hold = None;
        let lost = state.window.resume(expected);
        state.note_loss(&self.id, lost);
        drop(state);
        self.room.notify_waiters();
        self.outgoing.notify_one();
    }

    /// The connection is gone: nothing is sent until the next claim is confirmed.
    pub(crate) fn disconnected(&self) {
        self.state().claimed = false;
    }

    pub(crate) fn accepted(&self, n: u64) {
        self.state().window.accepted(n);
        self.room.notify_waiters();
    }

    /// The next frame to send for this session, in the order that the gateway needs: secrets before events.
    pub(crate) fn next_frame(&self, limits: FrameLimits) -> Option<Message> {
        let mut state = self.state();
        if !state.claimed || state.hold.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        state.hold = None;
        if std::mem::take(&mut state.secrets_due) {
            let (secrets, values) = (state.secrets.clone(), state.values.clone());
            return Some(socket::text(&RuntimeToGateway::Secrets { session: self.id.clone(), secrets, values }));
        }
        if let Some(from) = state.lost_from.take() {
            return Some(socket::text(&RuntimeToGateway::NLost { session: self.id.clone(), from }));
        }
        loop {
            match state.window.next_frame(&self.id, limits) {
                NextFrame::Send(message) => return Some(message),
                NextFrame::TooLarge(event) => {
                    let refusal = Refusal::plain(Code::TooLarge);
                    state.give_up(&self.id, &event, &refusal);
                }
                NextFrame::Nothing => break,
            }
        }
        if state.ending != Ending::Due {
            return None;
        }
        state.ending = Ending::Sent;
        Some(socket::text(&RuntimeToGateway::End { session: self.id.clone() }))
    }

    /// When the writer looks again without being notified.
    pub(crate) fn hold_until(&self) -> Option<Instant> {
        let state = self.state();
        if state.claimed { state.hold } else { None }
    }

    /// Everything was said, `end` included.
    pub(crate) fn said_goodbye(&self) -> bool {
        self.state().ending == Ending::Sent
    }

    /// `end` follows the last event.
    pub(crate) fn end_after_events(&self) {
        self.ended.cancel();
        self.state().ending = Ending::Due;
        self.outgoing.notify_one();
    }

    /// The process stops: a running task ends with an error, then the session ends. Returns false when the gateway
    /// cannot be told on this connection.
    pub(crate) fn end_now(&self) -> bool {
        let mut state = self.state();
        if !state.claimed {
            return false;
        }
        if let Some(running) = state.running.take_if(|running| !running.stop.is_cancelled()) {
            let data = json!({"error": "the runtime was stopped", "code": "runtime_stopped"});
            state.window.push(Unnumbered::new(kind::ERROR, Some(&running.id), data));
        }
        drop(state);
        self.end_after_events();
        true
    }

    /// Events up to `n` are in the log, the next one was refused. Returns false when that ends the session.
    pub(crate) fn refused(&self, n: u64, refusal: &Refusal) -> bool {
        if ends_session(refusal.code) {
            return false;
        }
        let mut state = self.state();
        match (refusal.code, refusal.code.come_back()) {
            (Code::NumberExpected, _) => {
                let expected = refusal.details.get("expected").and_then(Value::as_u64).unwrap_or(n + 1);
                let lost = state.window.number_expected(expected);
                state.note_loss(&self.id, lost);
            }
            (Code::SecretsExpected, _) => {
                state.window.again_after(n);
                state.secrets_due = true;
            }
            // One more open question would have to wait for those before it, and hold up all events behind it.
            (Code::TooManyGuardrails, _) | (_, ComeBack::Never) => {
                if let Some(event) = state.window.drop_after(n) {
                    state.give_up(&self.id, &event, refusal);
                }
            }
            (_, ComeBack::Now | ComeBack::Later) => {
                let wait = refusal.retry_after.map_or(REFUSED_WAIT, Duration::from_millis);
                warn!(session.id = %self.id, code = %refusal.code, ?wait, "the gateway cannot take events now");
                state.window.again_after(n);
                state.hold = Some(Instant::now() + wait);
            }
        }
        drop(state);
        self.room.notify_waiters();
        self.outgoing.notify_one();
        true
    }

    /// Applies a command, once by its number.
    pub(crate) fn apply(&self, command: NumberedCommand) -> Applied {
        {
            let mut state = self.state();
            if command.number <= state.commands {
                return Applied::Done(state.commands);
            }
            state.commands = command.number;
        }
        debug!(session.id = %self.id, command = ?command.command, number = command.number, "command");
        let number = command.number;
        match command.command {
            RuntimeCommand::NewTask { task } => self.enqueue(task),
            RuntimeCommand::Pause => self.still(|s| s.paused = true),
            RuntimeCommand::Resume => self.still(|s| s.paused = false),
            RuntimeCommand::TakeControl => self.still(|s| s.controlled = true),
            RuntimeCommand::ReleaseControl => self.still(|s| s.controlled = false),
            RuntimeCommand::Stop { task } => self.stop(task.as_deref()),
            RuntimeCommand::Interaction { action } => self.interact(action),
            RuntimeCommand::Guardrail(outcome) => self.outcome(outcome),
            RuntimeCommand::Terminate => return Applied::Terminated(number),
            RuntimeCommand::Unknown => warn!(session.id = %self.id, "a command of a later version is left out"),
        }
        Applied::Done(number)
    }

    fn enqueue(&self, task: NewTask) {
        let mut state = self.state();
        if state.queue.len() >= TASKS_MAX {
            warn!(session.id = %self.id, "too many tasks wait; one is refused");
            let data = json!({"error": "too many tasks wait in this session", "code": "too_many_tasks"});
            state.push_if_room(Unnumbered::new(kind::ERROR, task.task_id.as_deref(), data));
        } else {
            if state.running.is_none() && state.queue.is_empty() {
                // A pause that came too late for the task before is not meant for this one.
                self.still(|s| s.paused = false);
            }
            state.keep_secrets(&task.secrets);
            state.queue.push_back(task);
        }
        drop(state);
        self.queued.notify_one();
        self.outgoing.notify_one();
    }

    fn stop(&self, task: Option<&str>) {
        let mut state = self.state();
        match &state.running {
            Some(running) if task.is_none_or(|id| id == running.id) => {
                running.stop.cancel();
                // Now, not when its work is dropped: a pause that follows belongs to the next task.
                self.still(|s| s.paused = false);
            }
            None if task.is_none() => drop(state.queue.pop_front()),
            _ => state.queue.retain(|queued| queued.task_id.as_deref() != task),
        }
    }

    fn interact(&self, action: Map<String, Value>) {
        let mut state = self.state();
        if state.interactions.len() >= INTERACTIONS_MAX {
            state.interactions.pop_front();
        }
        state.interactions.push_back(action);
        drop(state);
        self.interacted.notify_one();
    }

    fn outcome(&self, outcome: GuardrailOutcome) {
        let (id, revision) = (outcome.guardrail_id.clone(), outcome.revision);
        let mut state = self.state();
        match state.questions.receive(outcome) {
            Received::HandedOver(values) => state.keep_values(values),
            Received::Again => debug!(session.id = %self.id, guardrail = %id, revision, "outcome applied before"),
            Received::NobodyAsks => {
                // The task that asked is over. Saying that it was taken keeps the gateway from sending it for ever.
                let data = json!({"guardrailId": id, "revision": revision});
                if !state.push_if_room(Unnumbered::new(kind::GUARDRAIL_TAKEN, None, data)) {
                    state.questions.forget(&id, revision);
                }
            }
        }
        drop(state);
        self.outgoing.notify_one();
    }

    fn still(&self, change: impl FnOnce(&mut Stillness)) {
        self.stillness.send_modify(change);
    }

    // What the worker and the tasks do.

    /// Takes the next task from the queue as the running one. Cancel safe: a task is taken when this returns.
    pub(crate) async fn next_task(&self) -> Arc<Running> {
        loop {
            let queued = self.queued.notified();
            if let Some(running) = self.take_task() {
                return running;
            }
            queued.await;
        }
    }

    fn take_task(&self) -> Option<Arc<Running>> {
        let mut state = self.state();
        let parameters = state.queue.pop_front()?;
        let id = parameters.task_id.clone().unwrap_or_else(crate::ids::fresh);
        let running = Arc::new(Running { id, parameters, stop: CancellationToken::new() });
        state.running = Some(running.clone());
        // What a person typed into the browser before was not meant for this task.
        state.interactions.clear();
        Some(running)
    }

    pub(crate) fn task_is_over(&self) {
        let over = self.state().running.take();
        if over.is_some_and(|task| !task.stop.is_cancelled()) {
            self.still(|s| s.paused = false);
        }
    }

    /// Waits for room in the window, then takes the event. Returns at once, without effect, when the session has
    /// ended. Cancel safe: the event is taken when this returns.
    pub(crate) async fn publish(&self, event: Unnumbered) {
        let mut event = Some(event);
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.ended.is_cancelled() || self.state().take_if_room(&mut event) {
                break;
            }
            tokio::select! {
                biased;
                () = self.ended.cancelled() => break,
                () = room => {}
            }
        }
        self.outgoing.notify_one();
    }

    /// `open_fields` are those whose values are no secret. Ends with [`Self::asked_enough`].
    pub(crate) fn ask(&self, id: &str, asked: u32, open_fields: Vec<String>) -> oneshot::Receiver<GuardrailOutcome> {
        self.still(|s| s.asking += 1);
        self.state().questions.ask(id, asked, open_fields)
    }

    /// Nobody waits for this outcome any longer, whether it came or not.
    pub(crate) fn asked_enough(&self, id: &str, asked: u32) {
        self.state().questions.abandon(id, asked);
        self.still(|s| s.asking = s.asking.saturating_sub(1));
    }

    pub(crate) async fn interaction(&self) -> Map<String, Value> {
        loop {
            let interacted = self.interacted.notified();
            let next = self.state().interactions.pop_front();
            if let Some(action) = next {
                return action;
            }
            interacted.await;
        }
    }
}

impl State {
    fn take_if_room(&mut self, event: &mut Option<Unnumbered>) -> bool {
        let fits = event.as_ref().is_none_or(|event| self.window.has_room(event));
        if fits && let Some(event) = event.take() {
            self.window.push(event);
        }
        fits
    }

    fn push_if_room(&mut self, event: Unnumbered) -> bool {
        self.take_if_room(&mut Some(event))
    }

    fn note_loss(&mut self, session: &str, lost: Option<u64>) {
        let Some(from) = lost else { return };
        warn!(session.id = session, from, "the gateway needs events that are no longer kept here");
        self.lost_from = Some(from);
        // What said that an outcome was taken may be among them: the next repeat of one is confirmed again.
        self.questions.forget_all();
    }

    /// An event that the gateway never takes: says so, and lets nobody wait for what it would have led to.
    fn give_up(&mut self, session: &str, event: &Unnumbered, refusal: &Refusal) {
        warn!(session.id = session, kind = %event.kind, code = %refusal.code, "an event was refused and is left out");
        match event.kind.as_str() {
            kind::GUARDRAIL_TRIGGER => {
                let id = event.data.get("guardrailId").and_then(Value::as_str).unwrap_or_default();
                let asked = event.data.get("revision").and_then(Value::as_u64).unwrap_or(1);
                self.questions.refuse(id, u32::try_from(asked).unwrap_or(u32::MAX));
            }
            // Without this the task would count as running for ever.
            kind::TASK_COMPLETED | kind::ERROR if event.data.get("code").is_none_or(|code| code != RESULT_REFUSED) => {
                let error = format!("the result was refused by the gateway: {}", refusal.code);
                let data = json!({"error": error, "code": RESULT_REFUSED});
                self.window.push(Unnumbered::new(kind::ERROR, event.task.as_deref(), data));
            }
            _ => {}
        }
    }

    fn keep_secrets(&mut self, secrets: &[SecretEntry]) {
        for entry in secrets {
            if !self.secrets.contains(entry) {
                self.secrets.push(entry.clone());
            }
        }
    }

    fn keep_values(&mut self, values: Vec<String>) {
        for value in values {
            if !self.values.contains(&value) {
                self.values.push(value);
            }
        }
    }
}

/// Whether a refusal means that the session is not this runtime's, now and later.
pub(crate) fn ends_session(code: Code) -> bool {
    matches!(
        code,
        Code::Fenced
            | Code::SessionEnded
            | Code::UnknownSession
            | Code::WrongClaim
            | Code::SecretsLost
            | Code::Forbidden
    )
}
