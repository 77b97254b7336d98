//! The runtime's side: who can take sessions, and what each session has to tell its runtime.
//!
//! A session's [`Link`] holds the commands that its runtime has not applied yet, and the gateway's latest word on its
//! events. Runtimes read from it at their own pace: over their socket, woken through the connection's [`Outlet`], or
//! over HTTP. Nothing waits for a slow runtime, and every queue here has a bound.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
};

use dashmap::DashMap;
use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    runtime::{GatewayToRuntime, NumberedCommand, RuntimeCommand},
    subscriber::NewTask,
    view::WatcherCounts,
};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroize;

use crate::ids::{ConnectionId, Project, SessionId};

/// Commands that may wait for one session's runtime.
const COMMANDS: usize = 256;
/// Frames that may wait for one connection; one that takes none of them is closed.
const FRAMES: usize = 4096;
/// Refusals kept for a runtime that has not read them; it stops at the first one.
const REFUSALS: usize = 8;

/// Every runtime that is connected here.
#[derive(Default)]
pub struct Runtimes {
    entries: DashMap<ConnectionId, Arc<RuntimeEntry>>,
}

/// One connected runtime.
pub struct RuntimeEntry {
    pub connection: ConnectionId,
    pub name: String,
    pub project: Project,
    /// Its key is marked by the operator as serving every project.
    pub pool: bool,
    pub capacity: u32,
    /// What it said of itself when it registered.
    pub labels: Arc<Map<String, Value>>,
    pub outlet: Arc<Outlet>,
    /// Cancelled when the connection has ended.
    pub gone: CancellationToken,
    load: AtomicU32,
}

impl RuntimeEntry {
    pub fn new(
        connection: ConnectionId,
        name: String,
        (project, pool): (Project, bool),
        capacity: u32,
        labels: Map<String, Value>,
        outlet: Arc<Outlet>,
    ) -> Arc<Self> {
        let (gone, load, labels) = (CancellationToken::new(), AtomicU32::new(0), Arc::new(labels));
        Arc::new(Self { connection, name, project, pool, capacity, labels, outlet, gone, load })
    }

    fn serves(&self, project: &Project) -> bool {
        self.pool || self.project == *project
    }

    /// Takes a place, if there is one.
    pub fn seat(self: &Arc<Self>) -> Option<Seat> {
        let taken = self
            .load
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |load| (load < self.capacity).then_some(load + 1));
        taken.ok().map(|_| Seat { entry: Arc::clone(self) })
    }

    /// Takes a place in any case: for a session that the runtime has already.
    pub fn seat_anyway(self: &Arc<Self>) -> Seat {
        self.load.fetch_add(1, Ordering::AcqRel);
        Seat { entry: Arc::clone(self) }
    }
}

/// A session's place at a runtime; dropping it gives the place back.
pub struct Seat {
    entry: Arc<RuntimeEntry>,
}

impl std::ops::Deref for Seat {
    type Target = RuntimeEntry;

    fn deref(&self) -> &RuntimeEntry {
        &self.entry
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.entry.load.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Runtimes {
    pub fn register(&self, entry: Arc<RuntimeEntry>) {
        self.entries.insert(entry.connection, entry);
    }

    /// The connection has ended: its sessions learn it from the entry's token.
    pub fn remove(&self, connection: ConnectionId) {
        if let Some((_, entry)) = self.entries.remove(&connection) {
            entry.gone.cancel();
        }
    }

    /// Sends a frame to a connection, if it is still there.
    pub fn tell(&self, connection: ConnectionId, frame: GatewayToRuntime) {
        if let Some(entry) = self.entries.get(&connection) {
            entry.outlet.send(frame);
        }
    }

    /// A place at the least loaded runtime that may serve the project and was not tried before.
    pub fn seat(&self, project: &Project, tried: &HashSet<ConnectionId>) -> Option<Seat> {
        let mut candidates: Vec<Arc<RuntimeEntry>> = self
            .entries
            .iter()
            .filter(|entry| entry.serves(project) && !tried.contains(&entry.connection))
            .map(|entry| Arc::clone(&entry))
            .collect();
        let share =
            |entry: &RuntimeEntry| f64::from(entry.load.load(Ordering::Acquire)) / f64::from(entry.capacity.max(1));
        candidates.sort_by(|a, b| share(a).total_cmp(&share(b)));
        // Another session may take the last place between looking and taking; then the next one is tried.
        candidates.iter().find_map(RuntimeEntry::seat)
    }

    /// How many are connected, and how many sessions they hold.
    pub fn totals(&self) -> (usize, u32) {
        let load = self.entries.iter().map(|entry| entry.load.load(Ordering::Relaxed)).sum();
        (self.entries.len(), load)
    }

    /// Connections of runtimes that may serve this project; of all without one.
    pub fn connections(&self, project: Option<&Project>) -> Vec<ConnectionId> {
        let serves = |entry: &RuntimeEntry| project.is_none_or(|project| entry.serves(project));
        self.entries.iter().filter(|entry| serves(entry)).map(|entry| entry.connection).collect()
    }

    /// Whether a session for this project, or for any, would find a place now.
    pub fn have_room(&self, project: Option<&Project>) -> bool {
        let serves = |entry: &RuntimeEntry| project.is_none_or(|project| entry.serves(project));
        self.entries.iter().any(|entry| serves(&entry) && entry.load.load(Ordering::Relaxed) < entry.capacity)
    }
}

/// What a runtime's connection waits on.
#[derive(Default)]
pub struct Outlet {
    waiting: Mutex<Waiting>,
    notify: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Frames for this connection itself: assignments, claims, releases.
    frames: VecDeque<GatewayToRuntime>,
    overflowed: bool,
    sessions: VecDeque<SessionId>,
    listed: HashSet<SessionId>,
}

/// What a runtime's connection has to send next.
pub enum Outgoing {
    Frame(GatewayToRuntime),
    /// This session's link has something.
    Session(SessionId),
}

impl Outlet {
    pub fn send(&self, frame: GatewayToRuntime) {
        let mut waiting = self.lock();
        if waiting.frames.len() < FRAMES {
            waiting.frames.push_back(frame);
        } else {
            waiting.overflowed = true;
        }
        drop(waiting);
        self.notify.notify_one();
    }

    /// Says that a session's link has something. However often: it is listed once.
    pub fn ready(&self, session: SessionId) {
        let mut waiting = self.lock();
        if waiting.listed.insert(session) {
            waiting.sessions.push_back(session);
        }
        drop(waiting);
        self.notify.notify_one();
    }

    pub fn take(&self) -> Option<Outgoing> {
        let mut waiting = self.lock();
        if let Some(frame) = waiting.frames.pop_front() {
            return Some(Outgoing::Frame(frame));
        }
        let session = waiting.sessions.pop_front()?;
        waiting.listed.remove(&session);
        Some(Outgoing::Session(session))
    }

    /// Whether a frame was lost because nobody took the others: the connection cannot go on.
    pub fn has_overflowed(&self) -> bool {
        self.lock().overflowed
    }

    /// Resolves when there is something to take. Cancel safe.
    pub async fn wait(&self) {
        loop {
            {
                let waiting = self.lock();
                if !waiting.frames.is_empty() || !waiting.sessions.is_empty() {
                    return;
                }
            }
            self.notify.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder panics")
    }
}

/// What one session tells its runtime.
pub struct Link {
    session: SessionId,
    state: Mutex<LinkState>,
    /// For HTTP runtimes that wait: the number of the last command.
    last: watch::Sender<u64>,
}

#[derive(Default)]
struct LinkState {
    commands: VecDeque<NumberedCommand>,
    last: u64,
    /// Commands from here on are not given out yet.
    held_from: Option<u64>,
    outlet: Option<(ConnectionId, Arc<Outlet>)>,
    /// The last command that the connection was given.
    given: u64,
    accepted: Option<(u64, Position)>,
    refused: VecDeque<(u64, Refusal)>,
    /// How many look; whatever changes before it is taken, the last one counts.
    counts: WatcherCounts,
    counts_due: bool,
}

impl Link {
    pub fn new(session: SessionId) -> Self {
        Self { session, state: Mutex::default(), last: watch::Sender::new(0) }
    }

    /// Gives the runtime a command and returns its number.
    ///
    /// # Errors
    /// `too_many_commands` when the runtime has not applied hundreds of them.
    pub fn command(&self, command: RuntimeCommand) -> Result<u64, Refusal> {
        let mut state = self.lock();
        let number = state.push(command)?;
        state.wake(self.session);
        drop(state);
        self.last.send_replace(number);
        Ok(number)
    }

    /// Numbers a command without giving it out: what must be stored with it is stored first. Until
    /// [`Link::release`] nothing behind it is given out either.
    ///
    /// # Errors
    /// As [`Link::command`].
    pub fn hold(&self, command: RuntimeCommand) -> Result<u64, Refusal> {
        let mut state = self.lock();
        let number = state.push(command)?;
        state.held_from.get_or_insert(number);
        Ok(number)
    }

    /// Gives out what was held.
    pub fn release(&self) {
        let mut state = self.lock();
        state.held_from = None;
        let last = state.last;
        state.wake(self.session);
        drop(state);
        self.last.send_replace(last);
    }

    /// The number that the next command gets.
    pub fn next_number(&self) -> u64 {
        self.lock().last + 1
    }

    /// Numbers continue behind this one, which is above every number that the runtime may have seen.
    pub fn continue_behind(&self, number: u64) {
        let mut state = self.lock();
        state.last = state.last.max(number);
    }

    /// Tasks that the runtime is not known to have, without their secrets.
    pub fn waiting_tasks(&self) -> Vec<WaitingTask> {
        let state = self.lock();
        let tasks = state.commands.iter().filter_map(|command| match &command.command {
            RuntimeCommand::NewTask { task } => Some(WaitingTask::new(command.number, task)),
            _ => None,
        });
        tasks.collect()
    }

    /// The runtime has applied everything up to this number.
    pub fn done(&self, number: u64) {
        let mut state = self.lock();
        let applied = number.min(state.last);
        while state.commands.front().is_some_and(|command| command.number <= applied) {
            state.commands.pop_front();
        }
    }

    /// The runtime has a guardrail's outcome: the copy that waits here no longer needs what was secret about it.
    pub fn forget_values(&self, guardrail: &str) {
        for command in &mut self.lock().commands {
            if let RuntimeCommand::Guardrail(outcome) = &mut command.command
                && outcome.guardrail_id == guardrail
            {
                outcome.text.zeroize();
                outcome.values.values_mut().for_each(Zeroize::zeroize);
                outcome.values.clear();
            }
        }
    }

    /// Drops commands that no longer mean anything: of a session that has ended.
    pub fn clear(&self) {
        self.lock().commands.clear();
    }

    /// From now on this connection gets what there is, from the command after `given` on.
    pub fn connect(&self, connection: ConnectionId, outlet: Arc<Outlet>, given: u64) {
        let mut state = self.lock();
        state.given = given.min(state.last);
        state.accepted = None;
        state.refused.clear();
        // Whatever another connection was told: on a new one nobody looks until it is told otherwise.
        state.counts_due = state.counts != WatcherCounts::default();
        state.outlet = Some((connection, outlet));
        state.wake(self.session);
    }

    pub fn disconnect(&self) {
        self.lock().outlet = None;
    }

    /// Everything up to `n` is in the log.
    pub fn accepted(&self, n: u64, position: Position) {
        let mut state = self.lock();
        state.accepted = Some((n, position));
        state.wake(self.session);
    }

    /// The event after `n` was refused.
    pub fn refused(&self, n: u64, refusal: Refusal) {
        let mut state = self.lock();
        if state.refused.len() < REFUSALS {
            state.refused.push_back((n, refusal));
        }
        state.wake(self.session);
    }

    pub fn watchers(&self, counts: WatcherCounts) {
        let mut state = self.lock();
        if state.counts != counts {
            (state.counts, state.counts_due) = (counts, true);
            state.wake(self.session);
        }
    }

    /// Takes what there is for a connection; nothing, if the session is another's by now.
    pub fn take(&self, connection: ConnectionId) -> Vec<GatewayToRuntime> {
        let mut state = self.lock();
        if state.outlet.as_ref().is_none_or(|(owner, _)| *owner != connection) {
            return Vec::new();
        }
        let session = || self.session.to_string();
        let mut frames = Vec::new();
        if let Some((n, position)) = state.accepted.take() {
            frames.push(GatewayToRuntime::Accepted { session: session(), n, position });
        }
        frames.extend(state.refused.drain(..).map(|(n, refusal)| GatewayToRuntime::EventRefused {
            session: session(),
            n,
            refusal,
        }));
        let given = state.given;
        let commands = state.visible().filter(|command| command.number > given);
        frames
            .extend(commands.map(|command| GatewayToRuntime::Command { session: session(), command: command.clone() }));
        state.given = state.held_from.map_or(state.last, |from| from - 1);
        if std::mem::take(&mut state.counts_due) {
            frames.push(GatewayToRuntime::Watchers { session: session(), counts: state.counts });
        }
        frames
    }

    /// Commands after `since`, for a runtime without a socket.
    pub fn since(&self, since: u64) -> Vec<NumberedCommand> {
        self.lock().visible().filter(|command| command.number > since).cloned().collect()
    }

    /// Follows the number of the last command.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().expect("no holder panics")
    }
}

/// A task whose command the runtime is not known to have.
pub struct WaitingTask {
    pub number: u64,
    /// Without its secrets.
    pub task: NewTask,
    pub had_secrets: bool,
}

impl WaitingTask {
    fn new(number: u64, task: &NewTask) -> Self {
        let plain = NewTask {
            task_id: task.task_id.clone(),
            prompt: task.prompt.clone(),
            max_duration: task.max_duration,
            terminate_on_completion: task.terminate_on_completion,
            secrets: Vec::new(),
            parameters: task.parameters.clone(),
        };
        Self { number, task: plain, had_secrets: !task.secrets.is_empty() }
    }
}

impl LinkState {
    fn push(&mut self, command: RuntimeCommand) -> Result<u64, Refusal> {
        if self.commands.len() >= COMMANDS {
            return Err(Refusal::plain(Code::TooManyCommands));
        }
        self.last += 1;
        self.commands.push_back(NumberedCommand { number: self.last, command });
        Ok(self.last)
    }

    fn visible(&self) -> impl Iterator<Item = &NumberedCommand> {
        let held_from = self.held_from.unwrap_or(u64::MAX);
        self.commands.iter().take_while(move |command| command.number < held_from)
    }

    fn wake(&self, session: SessionId) {
        if let Some((_, outlet)) = &self.outlet {
            outlet.ready(session);
        }
    }
}
