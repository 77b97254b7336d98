//! An operator who follows every session from the last position seen, looks away now and then, and answers questions:
//! each answer under a key of its own, sent again under the same key until there is a reply.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use onlooker_protocol::{
    Code, Position,
    code::{ComeBack, Refusal},
    event::{EventFrame, Since, kind},
    subscriber::{
        Answer, AnswerAction, Attention, GatewayToSubscriber, NewTask, SessionCommand, Subscribe, SubscriberToGateway,
    },
    view::{GuardrailState, GuardrailView, Outcome},
};
use rand::{RngExt as _, rngs::SmallRng};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use super::{Door, Line, Phase, back_off};
use crate::history::{History, Question, Reply, Said, What};

/// What an operator is like.
#[derive(Clone, Debug)]
pub struct Habits {
    pub name: String,
    /// The share of questions that are answered.
    pub answers: f64,
    /// The longest time that an answer takes to come.
    pub slowest: Duration,
    /// The share of turns, twice a second, at which a task is given to a session.
    pub tasks: f64,
}

/// What an operator has come to, for whoever waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Requests without a reply.
    pub waiting: usize,
    /// The last event seen, by session.
    pub seen: BTreeMap<String, Position>,
}

pub struct Operator {
    door: Door,
    habits: Habits,
    history: History,
    phase: watch::Receiver<Phase>,
    progress: watch::Sender<Progress>,
    rng: SmallRng,
    seen: BTreeMap<String, Position>,
    following: HashSet<String>,
    considered: HashSet<Question>,
    planned: Vec<(Instant, Question, Answer, Said)>,
    /// Requests without a reply, by their key.
    waiting: BTreeMap<String, SubscriberToGateway>,
    /// To be sent again: refused for now, or accepted and asked once more.
    again: Vec<(Instant, String, SubscriberToGateway)>,
    asked: u64,
    active: bool,
}

impl Operator {
    pub fn new(
        door: Door,
        habits: Habits,
        history: History,
        phase: watch::Receiver<Phase>,
        rng: SmallRng,
    ) -> (Self, watch::Receiver<Progress>) {
        let (progress, seen) = watch::channel(Progress::default());
        let operator = Self {
            door,
            habits,
            history,
            phase,
            progress,
            rng,
            seen: BTreeMap::new(),
            following: HashSet::new(),
            considered: HashSet::new(),
            planned: Vec::new(),
            waiting: BTreeMap::new(),
            again: Vec::new(),
            asked: 0,
            active: false,
        };
        (operator, seen)
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
            back_off(&mut self.rng, &mut tries).await;
        }
    }

    /// One connection, until it is gone.
    async fn serve(&mut self, tries: &mut u32) -> Option<()> {
        let mut line = Line::open(&self.door, "/v1/ws").await?;
        *tries = 0;
        self.following.clear();
        while !matches!(line.next().await?, GatewayToSubscriber::Ready { .. }) {}
        for request in self.waiting.values() {
            line.send(request).await?;
        }
        let mut next_turn = Instant::now();
        let mut next_glance = Instant::now();
        loop {
            self.report();
            tokio::select! {
                frame = line.next() => self.take(&mut line, frame?).await?,
                () = tokio::time::sleep_until(next_turn) => {
                    next_turn = Instant::now() + Duration::from_millis(20);
                    self.follow(&mut line).await?;
                    self.send_due(&mut line).await?;
                    if Instant::now() >= next_glance {
                        next_glance = Instant::now() + Duration::from_millis(500);
                        self.glance(&mut line).await?;
                    }
                }
            }
        }
    }

    fn report(&self) {
        let waiting = self.waiting.len() + self.again.len() + self.planned.len();
        let progress = Progress { waiting, seen: self.seen.clone() };
        self.progress.send_if_modified(|now| {
            *now != progress && {
                *now = progress;
                true
            }
        });
    }

    fn is_busy(&self) -> bool {
        *self.phase.borrow() == Phase::Busy
    }

    /// Subscribes to what is new, each from where it was left.
    async fn follow(&mut self, line: &mut Line) -> Option<()> {
        for session in self.history.sessions() {
            if self.following.insert(session.clone()) {
                let since = self.seen.get(&session).map_or(Since::Start, |position| Since::After(*position));
                let subscribe = Subscribe { session: Some(session), since, ..Subscribe::default() };
                line.send(&SubscriberToGateway::Subscribe(subscribe)).await?;
            }
        }
        Some(())
    }

    /// Looks at it, or away, for a while; now and then gives a task.
    async fn glance(&mut self, line: &mut Line) -> Option<()> {
        if self.rng.random_bool(0.2) {
            self.active = !self.active;
        }
        let state = if self.active { Attention::Active } else { Attention::Idle };
        line.send(&SubscriberToGateway::Attention { session: None, state }).await?;
        if self.is_busy() && self.rng.random_bool(self.habits.tasks) {
            self.give_task(line).await?;
        }
        Some(())
    }

    async fn give_task(&mut self, line: &mut Line) -> Option<()> {
        let sessions: Vec<_> = self.following.iter().cloned().collect();
        let Some(session) = sessions.get(self.rng.random_range(0..sessions.len().max(1))).cloned() else {
            return Some(());
        };
        let key = self.key();
        let task =
            NewTask { task_id: Some(format!("task-{key}")), prompt: Some("Look".to_owned()), ..NewTask::default() };
        let command = SessionCommand::NewTask { task };
        self.request(line, key.clone(), SubscriberToGateway::Command { reference: Some(key), session, command }).await
    }

    fn key(&mut self) -> String {
        self.asked += 1;
        format!("{}-{}", self.habits.name, self.asked)
    }

    async fn request(&mut self, line: &mut Line, key: String, request: SubscriberToGateway) -> Option<()> {
        self.waiting.insert(key, request.clone());
        line.send(&request).await
    }

    async fn send_due(&mut self, line: &mut Line) -> Option<()> {
        let now = Instant::now();
        for (_, key, request) in self.again.extract_if(.., |(due, ..)| *due <= now).collect::<Vec<_>>() {
            self.request(line, key, request).await?;
        }
        for (_, question, answer, said) in self.planned.extract_if(.., |(due, ..)| *due <= now).collect::<Vec<_>>() {
            let key = answer.idempotency_key.clone();
            self.history.record(What::Answered { key: key.clone(), question: question.clone(), said });
            let (session, guardrail_id) = (question.session, question.guardrail);
            let request = SubscriberToGateway::Answer { reference: Some(key.clone()), session, guardrail_id, answer };
            self.request(line, key, request).await?;
        }
        Some(())
    }

    async fn take(&mut self, line: &mut Line, frame: GatewayToSubscriber) -> Option<()> {
        match frame {
            GatewayToSubscriber::Snapshot { session, position, state, .. } => {
                let open = state.guardrails.iter().filter(|view| view.state == GuardrailState::Open);
                let open: Vec<_> = open.map(|view| (view.guardrail_id.clone(), view.revision)).collect();
                self.history.record(What::Snapshot { session, position, open });
                for view in state.guardrails.into_iter().filter(|view| view.state == GuardrailState::Open) {
                    self.consider(&view);
                }
            }
            GatewayToSubscriber::Replay { events, .. } => {
                for event in events {
                    self.saw(serde_json::from_value(event).expect("an event frame"));
                }
            }
            GatewayToSubscriber::Event(event) => {
                let raised = event.event.kind == kind::GUARDRAIL_TRIGGER;
                let (session, position, data) = (event.session.clone(), event.position, event.event.data.clone());
                self.saw(event);
                if raised {
                    self.consider_event(&session, &data);
                }
                if self.rng.random_bool(0.1) {
                    line.send(&SubscriberToGateway::Ack { session, position }).await?;
                }
            }
            GatewayToSubscriber::Gap { session, reason, .. } => {
                self.history.record(What::Gap { subscriber: self.habits.name.clone(), session, reason });
            }
            GatewayToSubscriber::Ping { id, .. } => line.send(&SubscriberToGateway::Pong { id }).await?,
            GatewayToSubscriber::Ok { reference: Some(key), .. } => self.replied(&key, None),
            GatewayToSubscriber::Error { reference: Some(key), refusal } => self.replied(&key, Some(&refusal)),
            GatewayToSubscriber::Goaway { .. } => return None,
            _ => {}
        }
        Some(())
    }

    fn saw(&mut self, frame: EventFrame) {
        self.seen.insert(frame.session.clone(), frame.position);
        self.history.record(What::Saw { subscriber: self.habits.name.clone(), frame: Arc::new(frame) });
    }

    fn consider_event(&mut self, session: &str, data: &Value) {
        let mut view = data.clone();
        // What a view has and its event does not.
        for (name, value) in [
            ("session", session),
            ("state", "open"),
            ("openedAt", ""),
            ("position", "aaaaaaaa:0"),
            ("onTimeout", "keep_waiting"),
        ] {
            view[name] = Value::from(value);
        }
        self.consider(&serde_json::from_value(view).expect("the event holds the question"));
    }

    /// Decides whether to answer a question, how and when.
    fn consider(&mut self, view: &GuardrailView) {
        let (session, guardrail) = (view.session.clone(), view.guardrail_id.clone());
        let question = Question { session, guardrail, revision: view.revision };
        if !self.considered.insert(question.clone()) || !self.is_busy() || !self.rng.random_bool(self.habits.answers) {
            return;
        }
        let mut answer = Answer {
            revision: view.revision,
            idempotency_key: self.key(),
            action: AnswerAction::Submit,
            text: None,
            choice: None,
            values: BTreeMap::new(),
        };
        if self.rng.random_bool(0.2) {
            answer.action = AnswerAction::Decline;
        } else if view.choices.is_empty() {
            for field in &view.fields {
                answer.values.insert(field.id.clone(), format!("value-{:016x}", self.rng.random::<u64>()));
            }
            if view.fields.is_empty() {
                answer.text = Some(format!("By all means, and note {:016x}", self.rng.random::<u64>()));
            }
        } else {
            let choice = &view.choices[self.rng.random_range(0..view.choices.len())];
            answer.choice = Some(choice.id.clone());
        }
        let said = Said {
            outcome: if answer.action == AnswerAction::Decline { Outcome::Declined } else { Outcome::Answered },
            choice: answer.choice.clone(),
            secret: answer.text.is_some() || !answer.values.is_empty(),
        };
        let due = Instant::now() + self.habits.slowest.mul_f64(self.rng.random::<f64>());
        self.planned.push((due, question, answer, said));
    }

    fn replied(&mut self, key: &str, refusal: Option<&Refusal>) {
        let Some(request) = self.waiting.remove(key) else { return };
        let soon = Instant::now() + Duration::from_millis(100);
        match (&request, refusal) {
            (_, Some(refusal)) if refusal.code.come_back() == ComeBack::Later => {
                self.again.push((soon, key.to_owned(), request));
            }
            (SubscriberToGateway::Answer { .. }, _) => {
                let reply = refusal.map_or(Reply::Accepted, |refusal| Reply::Refused(refusal.code));
                self.history.record(What::Replied { key: key.to_owned(), reply });
                // Somebody who is not sure asks again: it is still the same answer.
                if reply == Reply::Accepted && self.is_busy() && self.rng.random_bool(0.2) {
                    let later = Instant::now() + Duration::from_millis(self.rng.random_range(0..1_000));
                    self.again.push((later, key.to_owned(), request));
                }
            }
            (SubscriberToGateway::Command { session, command: SessionCommand::NewTask { task }, .. }, refusal)
                if refusal.is_none_or(|refusal| refusal.code == Code::Conflict) =>
            {
                let task = task.task_id.clone().expect("it was named");
                self.history.record(What::TaskQueued { session: session.clone(), task });
            }
            _ => {}
        }
    }
}
