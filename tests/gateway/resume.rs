//! Following from a position: nothing missing, nothing twice, and a gap where that cannot be.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{SinkExt, StreamExt};
use onlooker::{
    config::Config,
    engine::{
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    gateway::bounds,
};
use onlooker_protocol::{
    Position,
    event::{Epoch, EventFrame, Since},
    picture,
    runtime::{GatewayToRuntime, OpenSession, RuntimeToGateway},
    subscriber::{GapReason, GatewayToSubscriber, NewTask, SessionCommand, Subscribe, SubscriberToGateway},
    view::{GuardrailState, SessionStatus, SessionView, TaskStatus},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{harness::*, model::Watched};

/// The log holds this many events.
const HELD: u64 = 16;

fn small_log() -> Config {
    let mut config = quick();
    config.limits.log_events = HELD as usize;
    // A runtime that does nothing for a while is not to be taken for gone.
    config.times.live_window = Duration::from_secs(20);
    config.times.ping_every = Duration::from_secs(2);
    config
}

/// What a subscription got from its beginning until it was live.
#[derive(Debug)]
struct Beginning {
    gap: Option<(GapReason, Option<Position>)>,
    snapshot: Position,
    state: SessionView,
    replayed: Vec<EventFrame>,
    chunks: usize,
    live: Position,
}

impl Beginning {
    fn offsets(&self) -> Vec<u64> {
        self.replayed.iter().map(|event| event.position.offset).collect()
    }
}

/// The next frame, pings among them, which are answered.
async fn next(subscriber: &mut Subscriber) -> GatewayToSubscriber {
    loop {
        let message = timeout(BOUND, subscriber.socket.next()).await.expect("something comes");
        match message.expect("the connection is open").expect("the connection is sound") {
            Message::Text(text) => {
                let frame = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
                if let GatewayToSubscriber::Ping { id, .. } = frame {
                    subscriber.send(SubscriberToGateway::Pong { id }).await;
                }
                return frame;
            }
            Message::Close(frame) => panic!("closed: {frame:?}"),
            _ => {}
        }
    }
}

/// A whole event frame, as it stands in a replay.
pub fn replayed(event: Value) -> EventFrame {
    match serde_json::from_value(event) {
        Ok(GatewayToSubscriber::Event(frame)) => frame,
        other => panic!("a replay holds event frames, not {other:?}"),
    }
}

/// Reads up to `live` and checks the order of what comes before it.
async fn beginning(subscriber: &mut Subscriber, followed: &str) -> Beginning {
    let (mut gap, mut snapshot, mut replay, mut chunks) = (None, None, Vec::new(), 0);
    loop {
        match next(subscriber).await {
            GatewayToSubscriber::Gap { session, reason, from } if session == followed => {
                assert!(snapshot.is_none(), "a gap comes before its snapshot");
                assert_eq!(gap.replace((reason, from)), None, "two gaps");
            }
            GatewayToSubscriber::Snapshot { session, position, state, .. } if session == followed => {
                assert!(replay.is_empty() && snapshot.is_none(), "one snapshot, before everything replayed");
                snapshot = Some((position, *state));
            }
            GatewayToSubscriber::Replay { session, replay: mark, events } if session == followed => {
                assert!(mark, "a chunk of history says that it is one");
                assert!(snapshot.is_some(), "history comes after the snapshot");
                chunks += 1;
                replay.extend(events.into_iter().map(replayed));
            }
            GatewayToSubscriber::Live { session, position } if session == followed => {
                let (snapshot, state) = snapshot.expect("live comes after the snapshot");
                assert!(replay.iter().all(|event| event.position.offset <= snapshot.offset), "history is history");
                return Beginning { gap, snapshot, state, replayed: replay, chunks, live: position };
            }
            GatewayToSubscriber::Event(event) if event.session == followed => panic!("an event before live: {event:?}"),
            GatewayToSubscriber::Error { refusal, .. } => panic!("refused: {refusal}"),
            _ => {}
        }
    }
}

async fn follow_since(subscriber: &mut Subscriber, session: &str, since: Since) -> Beginning {
    subscriber.subscribe(Subscribe { session: Some(session.to_owned()), since, ..follow() }).await;
    beginning(subscriber, session).await
}

async fn unsubscribe(subscriber: &mut Subscriber, session: &str) {
    subscriber.send(SubscriberToGateway::Unsubscribe { session: Some(session.to_owned()), project: false }).await;
}

fn at(epoch: Epoch, offset: u64) -> Position {
    Position { epoch, offset }
}

/// A session whose newest event is at this offset.
async fn session_up_to(runtime: &mut Runtime, newest: u64) -> (String, Epoch) {
    let (session, _) = runtime.open(OpenSession::default()).await;
    // Offsets 0 and 1 are the gateway's own.
    let mut last = None;
    for i in 2..=newest {
        last = Some(runtime.publish(&session, "x.step", json!({ "i": i })).await);
    }
    let last = last.expect("something was published");
    assert_eq!(last.offset, newest);
    (session, last.epoch)
}

#[tokio::test]
async fn from_every_position_exactly_what_is_missing_comes_or_a_gap_is_told() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let mut subscriber = gateway.subscriber().await;
    for newest in [9, HELD, 30] {
        let (session, epoch) = session_up_to(&mut runtime, newest).await;
        let first = (newest + 1).saturating_sub(HELD);
        for offset in 0..=newest {
            let position = at(epoch, offset);
            let begun = follow_since(&mut subscriber, &session, Since::After(position)).await;
            let expected = if offset + 1 < first {
                assert_eq!(begun.gap, Some((GapReason::Trimmed, Some(position))), "{offset} of {newest}");
                first
            } else {
                assert_eq!(begun.gap, None, "{offset} of {newest}");
                offset + 1
            };
            assert_eq!(begun.offsets(), Vec::from_iter(expected..=newest), "{offset} of {newest}");
            assert_eq!((begun.snapshot, begun.live), (at(epoch, newest), at(epoch, newest)));
            unsubscribe(&mut subscriber, &session).await;
        }
    }
    gateway.stop().await;
}

#[tokio::test]
async fn start_and_latest_and_positions_of_no_use_begin_where_they_say() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let mut subscriber = gateway.subscriber().await;
    let (short, _) = session_up_to(&mut runtime, 7).await;
    let (long, epoch) = session_up_to(&mut runtime, 30).await;
    let elsewhere = at(Epoch::new("nowhere0").unwrap(), 20);
    let (trimmed, foreign, ahead) = (GapReason::Trimmed, GapReason::Epoch, GapReason::Ahead);
    let table = [
        (&short, Since::Start, None, 0..8),
        (&short, Since::Latest, None, 8..8),
        (&long, Since::Start, Some((trimmed, None)), 15..31),
        (&long, Since::Latest, None, 31..31),
        (&long, Since::After(elsewhere), Some((foreign, Some(elsewhere))), 31..31),
        (&long, Since::After(at(epoch, 31)), Some((ahead, Some(at(epoch, 31)))), 31..31),
        (&long, Since::After(at(epoch, u64::MAX)), Some((ahead, Some(at(epoch, u64::MAX)))), 31..31),
    ];
    for (session, since, gap, offsets) in table {
        let begun = follow_since(&mut subscriber, session, since).await;
        assert_eq!(begun.gap, gap, "{since}");
        assert_eq!(begun.offsets(), Vec::from_iter(offsets), "{since}");
        assert_eq!(begun.state.status, SessionStatus::Active);
        unsubscribe(&mut subscriber, session).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_filter_leaves_holes_and_the_next_ping_teaches_the_position() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let (session, epoch) = session_up_to(&mut runtime, 5).await;
    let mut subscriber = gateway.subscriber().await;
    let filter = vec!["x.wanted".to_owned()];
    let wanted = Subscribe { session: Some(session.clone()), filter, since: Since::Start, ..follow() };
    subscriber.subscribe(wanted).await;
    let begun = beginning(&mut subscriber, &session).await;
    assert_eq!((begun.offsets(), begun.live), (vec![], at(epoch, 5)));
    runtime.publish(&session, "x.wanted", json!({})).await;
    let mut last = at(epoch, 0);
    for _ in 0..9 {
        last = runtime.publish(&session, "x.other", json!({})).await;
    }
    let (mut events, mut learnt) = (Vec::new(), at(epoch, 5));
    while learnt != last {
        match next(&mut subscriber).await {
            GatewayToSubscriber::Event(event) => {
                events.push(event.event.kind);
                learnt = event.position;
            }
            GatewayToSubscriber::Ping { positions, .. } => {
                learnt = positions.get(&session).copied().unwrap_or(learnt);
            }
            GatewayToSubscriber::Gap { .. } => panic!("a filter's holes are no loss"),
            _ => {}
        }
    }
    assert_eq!(events, ["x.wanted"]);
    // From what the ping taught there is nothing to repeat.
    let mut again = gateway.subscriber().await;
    let begun = follow_since(&mut again, &session, Since::After(learnt)).await;
    assert_eq!((begun.gap, begun.offsets()), (None, vec![]));
    gateway.stop().await;
}

#[tokio::test]
async fn nothing_is_doubled_around_live_while_the_runtime_goes_on() {
    const BEFORE: u64 = 1_500;
    const DURING: u64 = 1_500;
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut n = 0;
    for _ in 0..BEFORE {
        n = runtime.send_event(&session, "x.step", json!({})).await;
    }
    runtime.accepted(&session, n).await;
    let publishing = tokio::spawn({
        let session = session.clone();
        async move {
            let mut n = 0;
            for _ in 0..DURING {
                n = runtime.send_event(&session, "x.step", json!({})).await;
            }
            runtime.accepted(&session, n).await;
            runtime
        }
    });
    let mut subscriber = gateway.subscriber().await;
    let begun = follow_since(&mut subscriber, &session, Since::Start).await;
    assert!(begun.chunks >= 2, "{} chunks are no stream", begun.chunks);
    let mut offsets = begun.offsets();
    assert_eq!(offsets.last(), Some(&begun.live.offset));
    while offsets.len() as u64 != 2 + BEFORE + DURING {
        if let GatewayToSubscriber::Event(event) = next(&mut subscriber).await {
            offsets.push(event.position.offset);
        }
    }
    assert!(offsets.iter().copied().eq(0..2 + BEFORE + DURING), "something is missing or came twice");
    publishing.await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_closed_guardrail_is_not_revived_and_an_open_one_is_there_once() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "closed", json!({})).await;
    runtime.publish(&session, "guardrail_withdrawn", json!({ "guardrailId": "closed" })).await;
    runtime.ask(&session, "open", json!({})).await;
    let mut subscriber = gateway.subscriber().await;
    let begun = follow_since(&mut subscriber, &session, Since::Start).await;
    let kinds: Vec<_> = begun.replayed.iter().map(|event| event.event.kind.as_str()).collect();
    assert_eq!(kinds[2..], ["guardrail_trigger", "guardrail_resolved", "guardrail_trigger"]);
    assert_eq!(open_guardrails(&begun.state), ["open"]);
    unsubscribe(&mut subscriber, &session).await;
    // Also when its own event is long gone from the log.
    for _ in 0..2 * HELD {
        runtime.publish(&session, "x.step", json!({})).await;
    }
    for since in [Since::Latest, Since::Start] {
        let begun = follow_since(&mut subscriber, &session, since).await;
        assert_eq!(open_guardrails(&begun.state), ["open"]);
        assert!(begun.replayed.iter().all(|event| event.event.kind == "x.step"));
        unsubscribe(&mut subscriber, &session).await;
    }
    gateway.stop().await;
}

fn open_guardrails(state: &SessionView) -> Vec<&str> {
    assert!(state.guardrails.iter().all(|guardrail| guardrail.state == GuardrailState::Open));
    state.guardrails.iter().map(|guardrail| guardrail.guardrail_id.as_str()).collect()
}

#[tokio::test]
async fn a_runtime_that_lost_events_breaks_the_epoch_and_a_live_subscriber_gets_a_gap() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let (session, epoch) = session_up_to(&mut runtime, 6).await;
    let mut subscriber = gateway.subscriber().await;
    follow_since(&mut subscriber, &session, Since::Latest).await;
    runtime.send(RuntimeToGateway::NLost { session: session.clone(), from: 100 }).await;
    let broken = runtime.accepted(&session, 99).await;
    assert_ne!(broken.epoch, epoch);
    let begun = beginning(&mut subscriber, &session).await;
    assert_eq!(begun.gap, Some((GapReason::Epoch, Some(at(epoch, 6)))));
    assert_eq!((begun.snapshot, begun.live), (broken, broken));
    runtime.numbers.insert(session.clone(), 99);
    let after = runtime.publish(&session, "x.after", json!({})).await;
    assert_eq!(after, at(broken.epoch, broken.offset + 1));
    loop {
        if let GatewayToSubscriber::Event(event) = next(&mut subscriber).await {
            assert_eq!((event.position, event.event.kind.as_str()), (after, "x.after"));
            break;
        }
    }
    // Who was away while it broke hears of it too; positions of the new epoch are good.
    let mut later = gateway.subscriber().await;
    let begun = follow_since(&mut later, &session, Since::After(at(epoch, 6))).await;
    assert_eq!(begun.gap, Some((GapReason::Epoch, Some(at(epoch, 6)))));
    unsubscribe(&mut later, &session).await;
    let begun = follow_since(&mut later, &session, Since::After(broken)).await;
    assert_eq!((begun.gap, begun.offsets()), (None, vec![after.offset]));
    gateway.stop().await;
}

#[tokio::test]
async fn two_sessions_on_one_connection_are_each_complete_and_end_apart() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (one, epoch_one) = session_up_to(&mut runtime, 4).await;
    let (two, epoch_two) = session_up_to(&mut runtime, 8).await;
    let mut subscriber = gateway.subscriber().await;
    assert_eq!(follow_since(&mut subscriber, &one, Since::Start).await.offsets(), Vec::from_iter(0..5));
    assert_eq!(follow_since(&mut subscriber, &two, Since::After(at(epoch_two, 5))).await.offsets(), [6, 7, 8]);
    for _ in 0..20 {
        runtime.send_event(&one, "x.one", json!({})).await;
        runtime.send_event(&two, "x.two", json!({})).await;
    }
    let mut seen: BTreeMap<String, Vec<Position>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < 40 {
        if let GatewayToSubscriber::Event(event) = next(&mut subscriber).await {
            seen.entry(event.session).or_default().push(event.position);
        }
    }
    assert_eq!(seen[&one], Vec::from_iter((5..25).map(|offset| at(epoch_one, offset))));
    assert_eq!(seen[&two], Vec::from_iter((9..29).map(|offset| at(epoch_two, offset))));
    unsubscribe(&mut subscriber, &one).await;
    subscriber.send_text(json!({ "type": "unsubscribe", "session": one }).to_string()).await;
    let refused = subscriber.until("not subscribed", |frame| match frame {
        GatewayToSubscriber::Error { refusal, .. } => Some(refusal.code.name()),
        _ => None,
    });
    assert_eq!(refused.await, "not_subscribed");
    runtime.publish(&one, "x.unseen", json!({})).await;
    runtime.publish(&two, "x.seen", json!({})).await;
    subscriber.event("x.seen").await;
    let unseen =
        |frame: &GatewayToSubscriber| matches!(frame, GatewayToSubscriber::Event(event) if event.session == one);
    assert!(!subscriber.seen.iter().any(unseen));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_with_much_to_replay_does_not_hold_up_another_on_the_same_connection() {
    const MUCH: u64 = 10_000;
    let mut config = quick();
    config.limits.log_events = 2 * MUCH as usize;
    let engine = Watched::new(MemoryEngine::new(bounds(&config)), Duration::from_millis(5));
    let gateway = TestGateway::on(config, Arc::new(engine)).await;
    let mut runtime = gateway.runtime().await;
    let (long, _) = runtime.open(OpenSession::default()).await;
    let (other, _) = runtime.open(OpenSession::default()).await;
    let mut n = 0;
    for _ in 0..MUCH {
        n = runtime.send_event(&long, "x.step", json!({})).await;
    }
    runtime.accepted(&long, n).await;
    let mut subscriber = gateway.subscriber().await;
    follow_since(&mut subscriber, &other, Since::Latest).await;
    let all = Subscribe { session: Some(long.clone()), since: Since::Start, ..follow() };
    subscriber.subscribe(all).await;
    let raised = tokio::spawn(async move {
        for i in 0..10 {
            runtime.publish(&other, "x.urgent", json!({ "i": i })).await;
        }
        runtime
    });
    let mut urgent = 0;
    loop {
        match next(&mut subscriber).await {
            GatewayToSubscriber::Event(event) if event.event.kind == "x.urgent" => urgent += 1,
            GatewayToSubscriber::Live { session, .. } if session == long => break,
            _ => {}
        }
    }
    assert_eq!(urgent, 10, "events of one session waited for the history of another");
    raised.await.unwrap();
    gateway.stop().await;
}

// --- a snapshot and what follows it ----------------------------------------------------------------------------------

/// The part of a session's state that its events change, as a client keeps it.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    status: SessionStatus,
    connected: Option<bool>,
    tasks: Vec<(String, TaskStatus, Value)>,
    guardrails: Vec<(String, u32, GuardrailState)>,
    control: Option<String>,
    sensitive: bool,
    picture: Option<String>,
}

impl Kept {
    fn of(view: &SessionView) -> Self {
        Self {
            status: view.status,
            connected: view.runtime.as_ref().map(|runtime| runtime.connected),
            tasks: view.tasks.iter().map(|t| (t.task.clone(), t.status, t.result.clone())).collect(),
            guardrails: view.guardrails.iter().map(|g| (g.guardrail_id.clone(), g.revision, g.state)).collect(),
            control: view.control.as_ref().map(|control| control.holder.clone()),
            sensitive: view.sensitive,
            picture: view.picture.as_ref().map(|picture| picture.id.clone()),
        }
    }

    fn apply(&mut self, frame: &EventFrame) {
        let data = &frame.event.data;
        let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
        match frame.event.kind.as_str() {
            "runtime_connected" | "runtime_reconnected" => {
                (self.status, self.connected) = (SessionStatus::Active, Some(true));
            }
            "runtime_disconnected" => (self.status, self.connected) = (SessionStatus::Orphaned, Some(false)),
            "session_ended" => {
                (self.status, self.connected) = (SessionStatus::Ended, Some(false));
                (self.control, self.sensitive) = (None, false);
            }
            "sensitive" => self.sensitive = data["on"] == true,
            "screenshot" if data["id"].is_string() => self.picture = Some(text("id")),
            "control_taken" => self.control = Some(text("holder")),
            "control_released" => self.control = None,
            "guardrail_trigger" => self.asked(frame),
            "guardrail_resolved" => self.resolved(frame),
            "guardrail_taken" => self.guardrails.retain(|(id, ..)| *id != text("guardrailId")),
            "task_queued" => self.tasks.push((text("taskId"), TaskStatus::Queued, Value::Null)),
            "task_started" => self.set(&text("taskId"), TaskStatus::Running),
            "task_paused" => self.set(&text("taskId"), TaskStatus::Paused),
            "task_resumed" => {
                let task = text("taskId");
                let waits = self.guardrails.iter().any(|(.., state)| *state == GuardrailState::Open);
                self.set(&task, if waits { TaskStatus::Waiting } else { TaskStatus::Running });
            }
            "task_completed" => self.ended(frame, TaskStatus::Completed),
            "error" => self.ended(frame, TaskStatus::Failed),
            "task_stopped" => self.ended(frame, TaskStatus::Stopped),
            _ => {}
        }
    }

    fn asked(&mut self, frame: &EventFrame) {
        let data = &frame.event.data;
        let id = data["guardrailId"].as_str().unwrap().to_owned();
        self.guardrails.retain(|(other, ..)| *other != id);
        self.guardrails.push((id, data["revision"].as_u64().unwrap() as u32, GuardrailState::Open));
        self.turn(frame.task.as_deref(), TaskStatus::Running, TaskStatus::Waiting);
    }

    fn resolved(&mut self, frame: &EventFrame) {
        let data = &frame.event.data;
        let answered = data["outcome"] == "answered" || data["outcome"] == "declined";
        let id = data["guardrailId"].as_str().unwrap();
        if answered {
            for guardrail in self.guardrails.iter_mut().filter(|(other, ..)| other == id) {
                guardrail.2 = GuardrailState::Accepted;
            }
        } else {
            self.guardrails.retain(|(other, ..)| other != id);
        }
        if !self.guardrails.iter().any(|(.., state)| *state == GuardrailState::Open) {
            self.turn(frame.task.as_deref(), TaskStatus::Waiting, TaskStatus::Running);
        }
    }

    fn turn(&mut self, task: Option<&str>, from: TaskStatus, to: TaskStatus) {
        for (_, status, _) in
            self.tasks.iter_mut().filter(|(id, status, _)| Some(id.as_str()) == task && *status == from)
        {
            *status = to;
        }
    }

    fn set(&mut self, task: &str, to: TaskStatus) {
        for (_, status, _) in self.tasks.iter_mut().filter(|(id, ..)| id == task) {
            *status = to;
        }
    }

    /// The last finished one is shown first, and no other finished one.
    fn ended(&mut self, frame: &EventFrame, to: TaskStatus) {
        let task = frame.event.data["taskId"].as_str().unwrap_or_default();
        let Some(at) = self.tasks.iter().position(|(id, ..)| id == task) else { return };
        let (id, ..) = self.tasks.remove(at);
        self.tasks.retain(|(_, status, _)| !status.is_over());
        let result = if to == TaskStatus::Stopped { Value::Null } else { frame.event.data.clone() };
        self.tasks.insert(0, (id, to, result));
    }
}

/// Changes a session's state step by step, and after each step asks for a fresh snapshot.
struct Stage<'a> {
    runtime: Runtime,
    person: Subscriber,
    prober: Subscriber,
    gateway: &'a TestGateway,
    session: String,
    /// What fresh snapshots said, by offset.
    probes: BTreeMap<u64, Kept>,
    commands: u32,
}

impl Stage<'_> {
    async fn probe(&mut self) {
        let begun = follow_since(&mut self.prober, &self.session, Since::Latest).await;
        self.probes.insert(begun.snapshot.offset, Kept::of(&begun.state));
        unsubscribe(&mut self.prober, &self.session).await;
    }

    async fn publish(&mut self, kind: &str, data: Value) {
        self.runtime.publish(&self.session.clone(), kind, data).await;
        self.probe().await;
    }

    async fn ask(&mut self, id: &str, more: Value) {
        self.runtime.ask(&self.session.clone(), id, more).await;
        self.probe().await;
    }

    async fn command(&mut self, command: SessionCommand) {
        self.commands += 1;
        let reference = self.commands.to_string();
        let (session, asked) = (self.session.clone(), Some(reference.clone()));
        self.person.send(SubscriberToGateway::Command { reference: asked, session, command }).await;
        let answered = self.person.until("ok", |frame| match frame {
            GatewayToSubscriber::Ok { reference: Some(of), .. } if *of == reference => Some(()),
            GatewayToSubscriber::Error { refusal, .. } => panic!("refused: {refusal}"),
            _ => None,
        });
        answered.await;
        self.probe().await;
    }

    async fn answer(&mut self, id: &str) {
        let body =
            json!({ "session": self.session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
        assert_eq!(self.gateway.post(&format!("/v1/guardrails/{id}/answer"), body).await.0, 200);
        self.probe().await;
    }

    /// Everything that changes a session's state.
    async fn play(&mut self) {
        for id in ["t1", "t2", "t3", "t4"] {
            let (task_id, prompt) = (Some(id.to_owned()), Some("p".to_owned()));
            self.command(SessionCommand::NewTask { task: NewTask { task_id, prompt, ..NewTask::default() } }).await;
        }
        self.publish("task_started", json!({ "taskId": "t1" })).await;
        self.publish("action", json!({ "name": "click" })).await;
        self.command(SessionCommand::Pause).await;
        self.command(SessionCommand::Resume).await;
        self.ask("g1", json!({})).await;
        self.ask("g2", json!({})).await;
        self.publish("guardrail_withdrawn", json!({ "guardrailId": "g1" })).await;
        self.answer("g2").await;
        self.publish("guardrail_taken", json!({ "guardrailId": "g2", "revision": 1 })).await;
        self.runtime.publish_picture(&self.session.clone(), b"picture").await;
        self.probe().await;
        self.publish("sensitive", json!({ "on": true })).await;
        self.publish("sensitive", json!({ "on": false })).await;
        self.command(SessionCommand::TakeControl).await;
        self.command(SessionCommand::ReleaseControl { token: None }).await;
        self.publish("task_completed", json!({ "taskId": "t1", "message": "done" })).await;
        self.publish("task_started", json!({ "taskId": "t2" })).await;
        self.ask("g3", json!({})).await;
        self.ask("g3", json!({ "revision": 2 })).await;
        self.command(SessionCommand::Pause).await;
        self.command(SessionCommand::Resume).await;
        self.publish("error", json!({ "error": "no" })).await;
        self.publish("task_started", json!({ "taskId": "t3" })).await;
        self.ask("g4", json!({})).await;
        self.command(SessionCommand::Stop).await;
        self.publish("task_started", json!({ "taskId": "t4" })).await;
        self.ask("g5", json!({})).await;
        self.command(SessionCommand::Terminate).await;
    }
}

#[tokio::test]
async fn a_snapshot_and_the_events_after_it_come_to_what_a_fresh_snapshot_says() {
    let gateway = TestGateway::with(small_log()).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut follower = gateway.subscriber().await;
    let begun = follow_since(&mut follower, &session, Since::Latest).await;
    let following = tokio::spawn(async move {
        let (mut kept, mut states) = (Kept::of(&begun.state), BTreeMap::new());
        while kept.status != SessionStatus::Ended {
            if let GatewayToSubscriber::Event(event) = next(&mut follower).await {
                kept.apply(&event);
                states.insert(event.position.offset, (event.event.kind, kept.clone()));
            }
        }
        states
    });
    let (person, prober) = (gateway.subscriber().await, gateway.subscriber().await);
    let probes = BTreeMap::new();
    let mut stage = Stage { runtime, person, prober, gateway: &gateway, session, probes, commands: 0 };
    stage.play().await;
    let states = following.await.unwrap();
    assert!(stage.probes.len() > 30, "only {} moments were looked at", stage.probes.len());
    for (offset, probe) in &stage.probes {
        let (kind, kept) = &states[offset];
        assert_eq!(kept, probe, "after {kind} at {offset}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_epoch_that_breaks_between_subscribing_and_the_snapshot_is_told() {
    let config = small_log();
    let faults = Arc::new(Faults::default());
    let engine = FaultyEngine::new(MemoryEngine::new(bounds(&config)), Arc::clone(&faults), 1);
    let gateway = TestGateway::on(config, Arc::new(engine)).await;
    let mut runtime = gateway.runtime().await;
    let (session, epoch) = session_up_to(&mut runtime, 6).await;
    let mut subscriber = gateway.subscriber().await;
    // The engine takes its time to break the epoch; meanwhile somebody resumes, and waits for its snapshot.
    faults.delay_us.store(600_000, Ordering::Relaxed);
    runtime.send(RuntimeToGateway::NLost { session: session.clone(), from: 100 }).await;
    let broken = || async { gateway.metric("onlooker_epochs_broken_total").await == 1.0 };
    wait_until("the epoch is about to break", broken).await;
    let since = Since::After(at(epoch, 3));
    subscriber.subscribe(Subscribe { session: Some(session.clone()), since, ..follow() }).await;
    faults.delay_us.store(0, Ordering::Relaxed);
    let begun = beginning(&mut subscriber, &session).await;
    assert_eq!(begun.gap, Some((GapReason::Epoch, Some(at(epoch, 3)))));
    assert_ne!(begun.snapshot.epoch, epoch);
    gateway.stop().await;
}

// --- project summaries -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_project_of_250_sessions_is_told_in_chunks_and_nothing_is_left_out() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let mut opened = Vec::new();
    for _ in 0..250 {
        opened.push(runtime.open(OpenSession::default()).await.0);
    }
    let mut subscriber = gateway.subscriber().await;
    subscriber.send_text(r#"{"type":"subscribe","project":true,"ref":"p"}"#).await;
    let (mut told, mut chunks) = (Vec::new(), 0);
    loop {
        if let GatewayToSubscriber::Summaries { reference, sessions, more } = next(&mut subscriber).await {
            assert_eq!(reference.as_deref(), Some("p"));
            assert!(sessions.len() <= 100);
            chunks += 1;
            told.extend(sessions.into_iter().map(|summary| summary.session));
            if !more {
                break;
            }
        }
    }
    assert!(chunks >= 3);
    told.sort();
    opened.sort();
    assert_eq!(told, opened);
    runtime.send(RuntimeToGateway::End { session: opened[7].clone() }).await;
    let ended = subscriber.until("the summary of the end", |frame| match frame {
        GatewayToSubscriber::Summary(summary) if summary.status == SessionStatus::Ended => {
            Some(summary.session.clone())
        }
        _ => None,
    });
    assert_eq!(ended.await, opened[7]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_slow_reader_of_summaries_skips_states_and_ends_with_the_last() {
    const CHANGES: u64 = 4_000;
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = Subscriber::narrow(&gateway).await;
    subscriber.send_text(r#"{"type":"subscribe","project":true}"#).await;
    while !matches!(next(&mut subscriber).await, GatewayToSubscriber::Summaries { more: false, .. }) {}
    let header = |n| onlooker_protocol::picture::PublishedPicture {
        session: session.clone(),
        n,
        media: "image/png".to_owned(),
        task: None,
        data: Value::Null,
    };
    for n in 1..=CHANGES {
        runtime.socket.feed(Message::binary(picture::encode(&header(n), b"p"))).await.unwrap();
    }
    runtime.socket.flush().await.unwrap();
    let mut last = None;
    while last.is_none() {
        last = runtime
            .until("accepted", |frame| match frame {
                GatewayToRuntime::Accepted { n, position, .. } => Some((*n == CHANGES).then_some(*position)),
                _ => None,
            })
            .await;
    }
    let mut summaries = 0;
    loop {
        if let GatewayToSubscriber::Summary(summary) = next(&mut subscriber).await {
            summaries += 1;
            if summary.position == last {
                break;
            }
        }
    }
    assert!(summaries < CHANGES, "{summaries} summaries of {CHANGES} changes");
    gateway.stop().await;
}
