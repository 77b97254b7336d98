//! Runtimes: each has one session, asks in it, crashes, comes back with what it remembers, and takes outcomes or not.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use onlooker_protocol::{
    code::Code,
    event::kind,
    runtime::{GatewayToRuntime, GuardrailOutcome, OpenSession, RuntimeCommand},
    view::ReachOutMode,
};
use rand::{RngExt, rngs::StdRng};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    trace::Event,
    world::{ENVIRONMENT, Life, project},
};
use crate::{
    ids::{ConnectionId, SessionId},
    ingest::Published,
    runtime_link::{Outgoing, RuntimeEntry},
    session::{NewSession, Origin, Session},
};

/// What a runtime remembers, also after it crashed.
pub(super) struct Memory {
    mode: ReachOutMode,
    pub(super) session: Option<SessionId>,
    /// Sessions that it had before.
    pub(super) earlier: Vec<SessionId>,
    claim: String,
    /// The number of its last event in the log, as far as it knows.
    n: u64,
    pending: Option<Draft>,
    applied: u64,
    task: Option<String>,
    tasks: u32,
    questions: Vec<(String, u32)>,
    /// Outcomes that it has, and is to say so.
    taken: VecDeque<(String, u32)>,
    values: Vec<String>,
}

#[derive(Clone)]
struct Draft {
    kind: &'static str,
    task: Option<String>,
    data: Value,
}

impl Memory {
    pub(super) fn new(mode: ReachOutMode) -> Self {
        Self {
            mode,
            session: None,
            earlier: Vec::new(),
            claim: String::new(),
            n: 0,
            pending: None,
            applied: 0,
            task: None,
            tasks: 0,
            questions: Vec::new(),
            taken: VecDeque::new(),
            values: Vec::new(),
        }
    }

    /// Its session is over: the next thing that it does is to begin another one.
    fn over(&mut self) {
        let tasks = self.tasks;
        let earlier = std::mem::take(&mut self.earlier);
        let ended = self.session;
        *self = Self { tasks, ..Self::new(self.mode) };
        self.earlier = earlier.into_iter().chain(ended).collect();
    }
}

pub(super) async fn runtime(life: Life, nth: usize) {
    let mut random = life.random(20 + nth as u64);
    let memory = Arc::clone(&life.world.memories[nth]);
    loop {
        sleep(Duration::from_millis(random.random_range(0..3_000))).await;
        if let Some(connection) = Connection::open(&life, Arc::clone(&memory)).await {
            connection.run(&mut random).await;
            sleep(Duration::from_millis(random.random_range(0..30_000))).await;
        }
    }
}

struct Connection {
    life: Life,
    memory: Arc<Mutex<Memory>>,
    entry: Arc<RuntimeEntry>,
    session: Session,
    /// It has the session, and the gateway has all that it needs to take events.
    claimed: bool,
    /// When to send what is pending; none while the gateway's word on it is awaited.
    send_at: Option<Instant>,
    over: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.life.directory.services().runtimes.remove(self.entry.connection);
    }
}

impl Connection {
    async fn open(life: &Life, memory: Arc<Mutex<Memory>>) -> Option<Self> {
        let runtimes = &life.directory.services().runtimes;
        let entry = RuntimeEntry::new(
            ConnectionId::random(),
            "r".to_owned(),
            (project(), false),
            9,
            Map::new(),
            Arc::default(),
        );
        runtimes.register(Arc::clone(&entry));
        let known = memory.lock().unwrap().session;
        let begun = match known {
            Some(id) => Self::claim(life, &memory, id, &entry).await,
            None => Self::begin(life, &memory, &entry).await,
        };
        let Some((session, claimed)) = begun else {
            runtimes.remove(entry.connection);
            return None;
        };
        let send_at = claimed.then(Instant::now);
        Some(Self { life: life.clone(), memory, entry, session, claimed, send_at, over: false })
    }

    async fn begin(life: &Life, memory: &Mutex<Memory>, entry: &Arc<RuntimeEntry>) -> Option<(Session, bool)> {
        let mode = memory.lock().unwrap().mode;
        let asked = OpenSession {
            reach_out_mode: mode,
            environment_id: Some(ENVIRONMENT.to_owned()),
            ..OpenSession::default()
        };
        let origin = Origin::Runtime(entry.seat()?);
        let new = NewSession { project: project(), asked, origin, by: "r".to_owned() };
        let created = life.directory.create(new).await.ok()?;
        let mut memory = memory.lock().unwrap();
        memory.session = Some(created.session.id);
        memory.claim = created.claim?;
        life.trace().push(Event::Opened { session: life.trace().nth(created.session.id), mode });
        Some((created.session, true))
    }

    async fn claim(
        life: &Life,
        memory: &Mutex<Memory>,
        id: SessionId,
        entry: &Arc<RuntimeEntry>,
    ) -> Option<(Session, bool)> {
        let Some(session) = life.directory.get_any(id) else {
            memory.lock().unwrap().over();
            return None;
        };
        let (claim, applied) = {
            let memory = memory.lock().unwrap();
            (memory.claim.clone(), memory.applied)
        };
        session.claim_session(claim, applied, entry.seat_anyway()).await.ok()?;
        Some((session, false))
    }

    /// Until it crashes, or its session is over.
    async fn run(mut self, random: &mut StdRng) {
        let plan = &Arc::clone(&self.life.world).plan;
        let crash = match plan.runtime_crashes {
            true => Instant::now() + Duration::from_millis(random.random_range(1_000..60_000)),
            false => Instant::now() + Duration::from_secs(1_000_000),
        };
        let mut act = Instant::now();
        while !self.over {
            let outlet = Arc::clone(&self.entry.outlet);
            let send_at = self.send_at.filter(|_| self.claimed && self.memory.lock().unwrap().pending.is_some());
            tokio::select! {
                biased;
                () = sleep_until(crash), if !self.life.world.is_quiet() => return,
                () = outlet.wait() => self.hear(random).await,
                () = sleep_until(send_at.unwrap_or(crash)), if send_at.is_some() => self.send().await,
                () = sleep_until(act) => {
                    self.act(random);
                    act = Instant::now() + Duration::from_millis(random.random_range(200..plan.questions_every_ms));
                }
            }
        }
    }

    async fn hear(&mut self, random: &mut StdRng) {
        while let Some(outgoing) = self.entry.outlet.take() {
            match outgoing {
                Outgoing::Frame(frame) => self.frame(frame, random).await,
                Outgoing::Session(_) => {
                    for frame in self.session.link.take(self.entry.connection) {
                        self.frame(frame, random).await;
                    }
                }
            }
        }
    }

    async fn frame(&mut self, frame: GatewayToRuntime, random: &mut StdRng) {
        match frame {
            GatewayToRuntime::Claimed { claim, expected, secrets_expected, .. } => {
                let values = {
                    let mut memory = self.memory.lock().unwrap();
                    memory.claim = claim;
                    if expected > memory.n + 1 {
                        // The gateway's word on it was lost.
                        memory.pending = None;
                    }
                    memory.n = expected - 1;
                    memory.values.clone()
                };
                if secrets_expected {
                    let _ = self.session.announce(self.entry.connection, Vec::new(), values).await;
                }
                self.claimed = true;
                self.send_at = Some(Instant::now());
            }
            GatewayToRuntime::Accepted { n, .. } => {
                let mut memory = self.memory.lock().unwrap();
                if n > memory.n {
                    memory.n = n;
                    memory.pending = None;
                }
            }
            GatewayToRuntime::EventRefused { refusal, .. } => self.refused(refusal.code),
            GatewayToRuntime::Command { command, .. } => {
                self.apply(command.command, random);
                self.memory.lock().unwrap().applied = command.number;
                let _ = self.session.commands_done(self.entry.connection, command.number).await;
            }
            GatewayToRuntime::Released { refusal, .. } if refusal.code == Code::SessionEnded => self.end(),
            GatewayToRuntime::Released { .. } | GatewayToRuntime::Error { .. } => self.over = true,
            _ => {}
        }
    }

    fn refused(&mut self, code: Code) {
        match code {
            Code::Unavailable | Code::OverCapacity | Code::SecretsExpected => {
                self.send_at = Some(Instant::now() + Duration::from_secs(1));
            }
            Code::NumberExpected | Code::Fenced => self.over = true,
            Code::SessionEnded => self.end(),
            _ => self.memory.lock().unwrap().pending = None,
        }
    }

    fn end(&mut self) {
        self.memory.lock().unwrap().over();
        self.over = true;
    }

    fn apply(&mut self, command: RuntimeCommand, random: &mut StdRng) {
        match command {
            RuntimeCommand::Guardrail(outcome) => self.outcome(outcome, random),
            RuntimeCommand::Stop { task } => {
                let mut memory = self.memory.lock().unwrap();
                if memory.task == task {
                    memory.task = None;
                }
            }
            RuntimeCommand::Terminate => self.end(),
            _ => {}
        }
    }

    fn outcome(&mut self, outcome: GuardrailOutcome, random: &mut StdRng) {
        let mut memory = self.memory.lock().unwrap();
        memory.values.extend(outcome.values.into_values());
        if random.random_bool(0.9) {
            memory.taken.push_back((outcome.guardrail_id, outcome.revision));
        }
    }

    async fn send(&mut self) {
        self.send_at = None;
        let (draft, n) = {
            let memory = self.memory.lock().unwrap();
            (memory.pending.clone(), memory.n + 1)
        };
        let Some(Draft { kind, task, data }) = draft else { return };
        let event = Published { n, kind: kind.into(), task, data: data.into(), picture: None };
        let room = self.session.room(200).await;
        self.over |= self.session.publish(self.entry.connection, vec![event], None, room).await.is_err();
    }

    /// Decides what to say next, unless something is still to be said.
    fn act(&mut self, random: &mut StdRng) {
        let mut memory = self.memory.lock().unwrap();
        if memory.pending.is_none() {
            memory.pending = memory.next(random, self.life.world.is_quiet());
            self.send_at = Some(Instant::now());
        }
    }
}

impl Memory {
    fn next(&mut self, random: &mut StdRng, quiet: bool) -> Option<Draft> {
        if let Some((id, revision)) = self.taken.pop_front() {
            let data = json!({ "guardrailId": id, "revision": revision });
            return Some(Draft { kind: kind::GUARDRAIL_TAKEN, task: self.task.clone(), data });
        }
        if quiet {
            return None;
        }
        let Some(task) = self.task.clone() else {
            self.tasks += 1;
            let task = format!("t{}", self.tasks);
            self.task = Some(task.clone());
            let data = json!({ "taskId": task });
            return Some(Draft { kind: kind::TASK_STARTED, task: Some(task), data });
        };
        let task = Some(task);
        Some(match random.random_range(0..20) {
            0..=8 => self.ask(random, task),
            9..=11 => self.ask_again(random, task),
            12 => Draft { kind: kind::GUARDRAIL_WITHDRAWN, task, data: json!({ "guardrailId": self.last()? }) },
            13..=15 => Draft { kind: kind::AGENT, task, data: json!({ "content": "looking around" }) },
            16 => Draft { kind: kind::ERROR, task: self.task.take(), data: json!({ "error": "no way", "code": "E" }) },
            _ => Draft { kind: kind::TASK_COMPLETED, task: self.task.take(), data: json!({ "message": "done" }) },
        })
    }

    fn last(&self) -> Option<String> {
        self.questions.last().map(|(id, _)| id.clone())
    }

    fn ask(&mut self, random: &mut StdRng, task: Option<String>) -> Draft {
        let id = format!("q{}", self.questions.len() + 1);
        self.questions.push((id.clone(), 1));
        Draft { kind: kind::GUARDRAIL_TRIGGER, task, data: question(&id, 1, random) }
    }

    /// The same again, or under a higher revision.
    fn ask_again(&mut self, random: &mut StdRng, task: Option<String>) -> Draft {
        let known = self.questions.len();
        if known == 0 {
            return self.ask(random, task);
        }
        let (id, asked) = &mut self.questions[random.random_range(0..known)];
        *asked += u32::from(random.random_bool(0.7));
        Draft { kind: kind::GUARDRAIL_TRIGGER, task, data: question(id, *asked, random) }
    }
}

fn question(id: &str, revision: u32, random: &mut StdRng) -> Value {
    let mut data = json!({ "type": "human_input_needed", "value": "Go on?", "guardrailId": id, "revision": revision });
    match random.random_range(0..4) {
        0 => data["choices"] = json!([{ "id": "yes" }, { "id": "no" }]),
        1 => data["fields"] = json!([{ "id": "code", "secret": true }]),
        2 => data["fields"] = json!([{ "id": "size", "secret": false }]),
        _ => {}
    }
    match random.random_range(0..8) {
        0 => {
            data["expiresIn"] = json!(random.random_range(1_000..60_000));
            data["onTimeout"] = json!("fail");
        }
        1 => {
            data["expiresIn"] = json!(random.random_range(1_000..60_000));
            data["onTimeout"] = json!("default_answer");
            data["defaultAnswer"] = json!("no");
        }
        _ => {}
    }
    data
}
