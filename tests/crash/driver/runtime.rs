//! A runtime that keeps the protocol whatever happens to its connection: it numbers its events, keeps what is not
//! acknowledged, sends it again from the number expected on, and applies each command and each outcome once.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use onlooker_protocol::{
    Code,
    code::{ComeBack, Refusal},
    event::kind,
    runtime::{
        GatewayToRuntime, GuardrailOutcome, InlinePicture, NumberedCommand, OpenSession, PublishedEvent, Reclaim,
        RuntimeCommand, RuntimeToGateway,
    },
    subscriber::SecretEntry,
    view::ReachOutMode,
};
use rand::{RngExt as _, rngs::SmallRng};
use serde_json::{Map, Value, json};
use tokio::{sync::watch, time::Instant};

use super::{Door, Line, Phase, back_off};
use crate::history::{History, Question, Trace, What};

/// What one runtime is like.
#[derive(Clone, Debug)]
pub struct Habits {
    pub name: String,
    pub sessions: usize,
    /// Between two turns, on average.
    pub pace: Duration,
    /// Every so many turns a question is raised.
    pub ask_every: u32,
    /// In milliseconds, of questions that have one.
    pub longest_deadline: u64,
}

/// What a runtime has come to, for whoever waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub held: usize,
    /// Events, and sessions, that are not acknowledged.
    pub unacknowledged: usize,
    pub acknowledged: u64,
    /// Refusals with `unavailable` since the start.
    pub unavailable: u64,
    /// Sessions whose events got neither word for longer than [`PATIENCE`].
    pub unheard: usize,
}

/// How long an event may wait for an acknowledgement or a refusal.
pub const PATIENCE: Duration = Duration::from_secs(2);

pub struct Runtime {
    door: Door,
    habits: Habits,
    history: History,
    phase: watch::Receiver<Phase>,
    progress: watch::Sender<Progress>,
    rng: SmallRng,
    held: BTreeMap<String, Held>,
    opened: usize,
    unavailable: u64,
}

/// One session of its own.
struct Held {
    claim: String,
    claimed: bool,
    /// Not acknowledged, by number, oldest first.
    pending: VecDeque<(PublishedEvent, Trace)>,
    /// How many of them were sent on this connection.
    sent: usize,
    /// The next new number.
    next: u64,
    acknowledged: u64,
    /// After a refusal that passes by itself, nothing is sent until then.
    quiet_until: Option<Instant>,
    /// Since when something that was sent waits for a word.
    waits_since: Option<Instant>,
    commands: u64,
    applied: HashSet<(String, u32)>,
    /// Guardrails that it waits for, with the runtime's own number.
    open: BTreeMap<String, u32>,
    asked: u32,
    task: Option<String>,
    tasks: VecDeque<String>,
    seen_tasks: HashSet<String>,
    made_tasks: u32,
    sensitive: bool,
    secrets: Vec<SecretEntry>,
    values: Vec<String>,
}

impl Held {
    fn new(claim: String, secrets: Vec<SecretEntry>) -> Self {
        Self {
            claim,
            claimed: true,
            pending: VecDeque::new(),
            sent: 0,
            next: 1,
            acknowledged: 0,
            quiet_until: None,
            waits_since: None,
            commands: 0,
            applied: HashSet::new(),
            open: BTreeMap::new(),
            asked: 0,
            task: None,
            tasks: VecDeque::new(),
            seen_tasks: HashSet::new(),
            made_tasks: 0,
            sensitive: false,
            secrets,
            values: Vec::new(),
        }
    }

    fn is_quiet(&self) -> bool {
        self.quiet_until.is_some_and(|until| Instant::now() < until)
    }

    fn acknowledge(&mut self, n: u64) {
        self.waits_since = None;
        self.acknowledged = self.acknowledged.max(n);
        while self.pending.front().is_some_and(|(event, _)| event.n <= n) {
            self.pending.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }
}

impl Runtime {
    pub fn new(
        door: Door,
        habits: Habits,
        history: History,
        phase: watch::Receiver<Phase>,
        rng: SmallRng,
    ) -> (Self, watch::Receiver<Progress>) {
        let (progress, seen) = watch::channel(Progress::default());
        let held = BTreeMap::new();
        (Self { door, habits, history, phase, progress, rng, held, opened: 0, unavailable: 0 }, seen)
    }

    /// Comes back for ever, until the run is over.
    pub async fn run(mut self) {
        let mut tries = 0;
        loop {
            let mut phase = self.phase.clone();
            let over = phase.wait_for(|phase| *phase == Phase::Over);
            tokio::select! {
                _ = over => return,
                _gone = self.serve(&mut tries) => {}
            }
            for held in self.held.values_mut() {
                (held.claimed, held.sent, held.waits_since) = (false, 0, None);
            }
            self.report(false);
            back_off(&mut self.rng, &mut tries).await;
        }
    }

    /// One connection, until it is gone.
    async fn serve(&mut self, tries: &mut u32) -> Option<()> {
        let mut line = Line::open(&self.door, "/v1/runtime").await?;
        *tries = 0;
        let (name, capacity) = (self.habits.name.clone(), 100);
        line.send(&RuntimeToGateway::Register { name, capacity, labels: Map::new() }).await?;
        for (session, held) in &self.held {
            let claim = Reclaim { session: session.clone(), claim: held.claim.clone(), commands: held.commands };
            line.send(&RuntimeToGateway::Claim(claim)).await?;
        }
        let mut asked_to_open = None;
        let mut next_turn = Instant::now();
        loop {
            self.report(asked_to_open.is_some());
            if asked_to_open.is_none() && self.held.len() < self.habits.sessions && self.is_busy() {
                asked_to_open = Some(self.open(&mut line).await?);
            }
            tokio::select! {
                frame = line.next() => self.take(&mut line, frame?, &mut asked_to_open).await?,
                () = tokio::time::sleep_until(next_turn) => {
                    next_turn = Instant::now() + self.habits.pace.mul_f64(self.rng.random_range(0.2..1.8));
                    self.turn(&mut line).await?;
                }
            }
        }
    }

    fn is_busy(&self) -> bool {
        *self.phase.borrow() == Phase::Busy
    }

    fn report(&self, opening: bool) {
        let mut progress = Progress { unavailable: self.unavailable, ..Progress::default() };
        progress.unacknowledged += usize::from(opening);
        for held in self.held.values() {
            progress.held += 1;
            // A session that is not its own again may yet be told an outcome.
            progress.unacknowledged += held.pending.len() + usize::from(!held.claimed);
            progress.acknowledged += held.acknowledged;
            progress.unheard += usize::from(held.waits_since.is_some_and(|since| since.elapsed() > PATIENCE));
        }
        self.progress.send_if_modified(|now| std::mem::replace(now, progress) != progress);
    }

    async fn open(&mut self, line: &mut Line) -> Option<(String, Vec<SecretEntry>)> {
        self.opened += 1;
        let reference = format!("{}-{}", self.habits.name, self.opened);
        let mut secrets = Vec::new();
        if self.opened.is_multiple_of(2) {
            let fields = [("password".to_owned(), format!("pw-{:016x}", self.rng.random::<u64>()))].into();
            secrets.push(SecretEntry { matches: "nowhere.example".to_owned(), fields });
        }
        let reach_out_mode = if self.rng.random_bool(0.5) { ReachOutMode::Full } else { ReachOutMode::GuardrailOnly };
        let external_id = Some(reference.clone());
        let session = OpenSession { external_id, reach_out_mode, secrets: secrets.clone(), ..OpenSession::default() };
        line.send(&RuntimeToGateway::Open { reference: reference.clone(), session: Box::new(session) }).await?;
        Some((reference, secrets))
    }

    async fn take(
        &mut self,
        line: &mut Line,
        frame: GatewayToRuntime,
        asked_to_open: &mut Option<(String, Vec<SecretEntry>)>,
    ) -> Option<()> {
        match frame {
            GatewayToRuntime::Opened { reference, session, claim } => {
                let opened = asked_to_open.take_if(|(asked, _)| *asked == reference);
                let Some((_, secrets)) = opened else { return Some(()) };
                self.history.record(What::Opened { session: session.clone() });
                self.held.insert(session, Held::new(claim, secrets));
            }
            GatewayToRuntime::Claimed { session, claim, expected, secrets_expected } => {
                self.claimed(line, session, claim, expected, secrets_expected).await?;
            }
            GatewayToRuntime::Released { session, refusal } => self.released(session, &refusal),
            GatewayToRuntime::Accepted { session, n, position } => {
                if let Some(held) = self.held.get_mut(&session) {
                    held.acknowledge(n);
                    self.history.record(What::Acknowledged { session, n, position });
                }
            }
            GatewayToRuntime::EventRefused { session, n, refusal } => self.event_refused(&session, n, &refusal),
            GatewayToRuntime::Command { session, command } => self.command(line, session, command).await?,
            GatewayToRuntime::Error { reference, session, refusal } => {
                self.count(&refusal);
                if asked_to_open.as_ref().is_some_and(|(asked, _)| Some(asked) == reference.as_ref()) {
                    *asked_to_open = None;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                } else if let Some(session) = session {
                    self.released(session, &refusal);
                }
            }
            GatewayToRuntime::Ping { id } => line.send(&RuntimeToGateway::Pong { id }).await?,
            GatewayToRuntime::Goaway { .. } => return None,
            _ => {}
        }
        Some(())
    }

    async fn claimed(
        &mut self,
        line: &mut Line,
        session: String,
        claim: String,
        expected: u64,
        secrets_expected: bool,
    ) -> Option<()> {
        let held = self.held.get_mut(&session)?;
        self.history.record(What::Expected { session: session.clone(), n: expected });
        (held.claim, held.claimed) = (claim, true);
        let forgotten = expected <= held.acknowledged;
        held.acknowledge(expected - 1);
        held.sent = 0;
        if secrets_expected {
            let (secrets, values) = (held.secrets.clone(), held.values.clone());
            line.send(&RuntimeToGateway::Secrets { session: session.clone(), secrets, values }).await?;
        }
        if forgotten {
            // What was acknowledged is not kept.
            let from = held.pending.front().map_or(held.next, |(event, _)| event.n);
            line.send(&RuntimeToGateway::NLost { session: session.clone(), from }).await?;
        }
        self.flush(line, &session).await
    }

    fn released(&mut self, session: String, refusal: &Refusal) {
        // A gateway that cannot do it now is asked again when the connection is new; it does not take the session away.
        if refusal.code.come_back() == ComeBack::Never || refusal.code == Code::Fenced {
            self.held.remove(&session);
            self.history.record(What::ClaimRefused { session, code: refusal.code });
        }
    }

    fn count(&mut self, refusal: &Refusal) {
        self.unavailable += u64::from(refusal.code == Code::Unavailable);
    }

    fn event_refused(&mut self, session: &str, n: u64, refusal: &Refusal) {
        self.count(refusal);
        let Some(held) = self.held.get_mut(session) else { return };
        held.acknowledge(n);
        held.sent = 0;
        match refusal.code.come_back() {
            ComeBack::Now => {}
            ComeBack::Later => held.quiet_until = Some(Instant::now() + Duration::from_millis(100)),
            // Its number is used for another event: those behind it wait for it.
            ComeBack::Never => {
                let Some((event, trace)) = held.pending.front_mut() else { return };
                if let Trace::Trigger { guardrail, .. } = &trace {
                    held.open.remove(guardrail);
                }
                *event = published(event.n, "x.refused", json!({ "n": event.n, "code": refusal.code.number() }));
                *trace = Trace::Numbered(event.n);
                let (session, n) = (session.to_owned(), event.n);
                self.history.record(What::Sent { session, n, trace: Trace::Numbered(n) });
            }
        }
    }

    /// Sends what waits, in batches.
    async fn flush(&mut self, line: &mut Line, session: &str) -> Option<()> {
        let Some(held) = self.held.get_mut(session).filter(|held| held.claimed && !held.is_quiet()) else {
            return Some(());
        };
        while held.sent < held.pending.len() {
            let batch = self.rng.random_range(1..=20);
            let events: Vec<_> =
                held.pending.iter().skip(held.sent).take(batch).map(|(event, _)| event.clone()).collect();
            held.sent += events.len();
            held.waits_since.get_or_insert_with(Instant::now);
            line.send(&RuntimeToGateway::Events { session: session.to_owned(), events }).await?;
        }
        Some(())
    }

    async fn turn(&mut self, line: &mut Line) -> Option<()> {
        let sessions: Vec<_> = self.held.keys().cloned().collect();
        for session in sessions {
            if self.is_busy() {
                self.work(&session);
            }
            self.flush(line, &session).await?;
        }
        Some(())
    }

    /// Something to publish.
    fn work(&mut self, session: &str) {
        let Some(held) = self.held.get(session).filter(|held| held.claimed && held.pending.len() < 200) else { return };
        let (task, sensitive, next_task) = (held.task.clone(), held.sensitive, held.tasks.front().cloned());
        let turn = self.rng.random_range(0..100);
        if self.rng.random_range(0..self.habits.ask_every) == 0 {
            self.ask(session);
        }
        match turn {
            0..10 => {
                let picture = vec![u8::try_from(turn).unwrap(); self.rng.random_range(100..2_000)];
                self.publish_picture(session, &picture);
            }
            10..16 => {
                self.publish(session, kind::SENSITIVE, json!({ "on": !sensitive }), Some(Trace::Sensitive(!sensitive)))
            }
            16..24 => match (task, next_task) {
                (Some(task), _) => self.publish(session, kind::TASK_COMPLETED, json!({ "message": task }), None),
                (None, next) => self.begin_task(session, next),
            },
            _ => {
                for _ in 0..self.rng.random_range(1..6) {
                    self.publish(session, "x.count", json!({}), None);
                }
            }
        }
    }

    fn begin_task(&mut self, session: &str, queued: Option<String>) {
        let held = self.held.get_mut(session).expect("just seen");
        let task = queued.unwrap_or_else(|| {
            held.made_tasks += 1;
            format!("own-{}", held.made_tasks)
        });
        held.tasks.retain(|waiting| *waiting != task);
        held.seen_tasks.insert(task.clone());
        self.publish(session, kind::TASK_STARTED, json!({ "taskId": task }), None);
    }

    fn ask(&mut self, session: &str) {
        let held = self.held.get_mut(session).expect("just seen");
        if held.open.len() >= 4 {
            return;
        }
        // Now and then the same question is asked again, or anew.
        let known = held.open.iter().next().map(|(id, asked)| (id.clone(), *asked));
        let again = self.rng.random_range(0..100);
        let (guardrail, asked, repeat) = match known {
            Some((id, asked)) if again < 10 => (id, asked, true),
            Some((id, asked)) if again < 20 => (id, asked + 1, false),
            _ => {
                held.asked += 1;
                (format!("g{}", held.asked), 1, false)
            }
        };
        held.open.insert(guardrail.clone(), asked);
        let mut data = json!({
            "type": "human_input_needed", "value": format!("May I go on with {guardrail}?"),
            "guardrailId": guardrail, "revision": asked,
        });
        match self.rng.random_range(0..6) {
            0 | 1 => data["fields"] = json!([{ "id": "password", "type": "password" }]),
            2 => data["choices"] = json!([{ "id": "yes" }, { "id": "no" }]),
            3 => data["expiresIn"] = json!(self.rng.random_range(100..=self.habits.longest_deadline)),
            _ => {}
        }
        let trace = if repeat { Trace::Nothing } else { Trace::Trigger { guardrail, asked } };
        self.publish(session, kind::GUARDRAIL_TRIGGER, data, Some(trace));
    }

    /// Under the next number, which is put into the data of what leaves the number as its trace.
    fn publish(&mut self, session: &str, kind: &str, mut data: Value, trace: Option<Trace>) {
        let held = self.held.get_mut(session).expect("a session of its own");
        let n = held.next;
        let trace = trace.unwrap_or_else(|| {
            data["n"] = json!(n);
            Trace::Numbered(n)
        });
        match kind {
            kind::SENSITIVE => held.sensitive = data["on"] == true,
            kind::TASK_STARTED => held.task = data["taskId"].as_str().map(str::to_owned),
            kind::TASK_COMPLETED => held.task = None,
            _ => {}
        }
        self.push(session, published(n, kind, data), trace);
    }

    fn publish_picture(&mut self, session: &str, bytes: &[u8]) {
        let n = self.held[session].next;
        let picture = InlinePicture { media: "image/png".to_owned(), base64: BASE64_STANDARD.encode(bytes) };
        let event = PublishedEvent { picture: Some(picture), ..published(n, kind::SCREENSHOT, json!({ "n": n })) };
        self.push(session, event, Trace::Numbered(n));
    }

    fn push(&mut self, session: &str, event: PublishedEvent, trace: Trace) {
        let n = event.n;
        self.history.record(What::Sent { session: session.to_owned(), n, trace: trace.clone() });
        let held = self.held.get_mut(session).expect("a session of its own");
        held.next = n + 1;
        held.pending.push_back((event, trace));
    }

    async fn command(&mut self, line: &mut Line, session: String, command: NumberedCommand) -> Option<()> {
        let Some(held) = self.held.get_mut(&session) else { return Some(()) };
        if command.number > held.commands {
            held.commands = command.number;
            match command.command {
                RuntimeCommand::Guardrail(outcome) => self.outcome(&session, outcome),
                RuntimeCommand::NewTask { task } => {
                    let task = task.task_id.unwrap_or_default();
                    self.history.record(What::TaskReceived { session: session.clone(), task: task.clone() });
                    if held.seen_tasks.insert(task.clone()) {
                        held.tasks.push_back(task);
                    }
                }
                _ => {}
            }
        }
        let commands = self.held[&session].commands;
        line.send(&RuntimeToGateway::CommandsDone { session: session.clone(), commands }).await?;
        self.flush(line, &session).await
    }

    fn outcome(&mut self, session: &str, told: GuardrailOutcome) {
        let GuardrailOutcome { guardrail_id: guardrail, revision, outcome, choice, values, text, asked, .. } = told;
        let question = Question { session: session.to_owned(), guardrail: guardrail.clone(), revision };
        self.history.record(What::Outcome { question, outcome, choice });
        let held = self.held.get_mut(session).expect("just seen");
        if held.applied.insert((guardrail.clone(), revision)) {
            held.values.extend(values.into_values().chain(text));
            if held.open.get(&guardrail) == Some(&asked) {
                held.open.remove(&guardrail);
            }
        }
        let data = json!({ "guardrailId": guardrail, "revision": revision });
        self.publish(session, kind::GUARDRAIL_TAKEN, data, Some(Trace::Taken { guardrail, revision }));
    }
}

fn published(n: u64, kind: &str, data: Value) -> PublishedEvent {
    PublishedEvent { n, kind: kind.to_owned(), task: None, data, picture: None }
}
