//! A gateway is killed, and another one goes on with what it left. Nothing orderly happens in between: its tasks end
//! where they stand, and what they had not written is not there.
//!
//! An engine joins by one line in `on_every_engine!`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, pending};
use onlooker::{
    config::{Config, key::Scope},
    engine::{
        Batch, Before, Engine, EngineError, Head, ReadLimit, Record, RecordKey, RecordKind, Stored, Version,
        disk::{DiskEngine, DiskOptions},
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    gateway::{Gateway, bounds},
    ids::SessionId,
};
use onlooker_protocol::{
    Position,
    code::Code,
    event::{Epoch, Since},
    runtime::{GatewayToRuntime, NumberedCommand, OpenSession, PublishedEvent, RuntimeCommand, RuntimeToGateway},
    subscriber::{GatewayToSubscriber, SecretEntry, Subscribe},
    view::{OnTimeout, Outcome, ReachOutMode},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::harness::*;

const NONE: [Value; 0] = [];
const LONG: Duration = Duration::from_secs(60);

fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

// --- gateways that die -----------------------------------------------------------------------------------------------

/// What one gateway after the other keeps its sessions in.
#[derive(Clone)]
struct Ground {
    open: Arc<dyn Fn() -> Arc<dyn Engine> + Send + Sync>,
    /// Makes another one, on which nothing is kept yet.
    another: fn() -> Self,
}

/// The same engine for every gateway.
fn memory() -> Ground {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(bounds(&quick())));
    Ground { open: Arc::new(move || Arc::clone(&engine)), another: memory }
}

/// A directory that each gateway opens anew, and that goes with the last one.
fn disk() -> Ground {
    let folder = tempfile::tempdir().unwrap();
    let open = move || -> Arc<dyn Engine> {
        let durability = onlooker::config::Durability::Os;
        let options = DiskOptions { dir: folder.path().join("data"), bounds: bounds(&quick()), durability };
        Arc::new(DiskEngine::open(options).unwrap())
    };
    Ground { open: Arc::new(open), another: disk }
}

macro_rules! on_every_engine {
    ($($engine:ident: $ground:expr;)+) => {
        $(mod $engine {
            cases!($ground;
                a_session_is_found_again_with_its_log_its_state_its_labels_and_its_tasks
                after_an_orderly_stop_everything_is_there_too
                unacknowledged_events_that_are_sent_again_are_taken_once
                the_newest_claim_token_works_and_the_one_before_if_the_newest_never_arrived
                a_session_whose_runtime_does_not_come_back_after_a_restart_ends_as_instance_lost
                an_open_guardrail_is_listed_and_answerable_and_its_answer_reaches_the_runtime_when_it_is_back
                a_deadline_that_passed_while_no_gateway_ran_is_applied_at_the_start
                a_secret_answer_that_the_runtime_did_not_have_is_lost_and_asked_anew
                an_answer_that_only_its_record_calls_lost_is_called_lost_in_the_log_too
                a_secret_answer_that_the_runtime_had_applied_is_asked_of_nobody_again
                choices_declines_and_open_values_survive_and_reach_the_runtime_once
                the_same_answer_with_the_same_key_succeeds_again_after_the_restart
                a_runtime_that_says_too_early_that_it_has_the_answer_still_gets_it
                a_runtime_over_http_goes_on_after_the_restart
                a_runtime_over_http_announces_its_secrets_again
                after_a_machine_that_may_have_lost_its_last_writes_the_log_begins_anew_and_everybody_is_told
                a_session_with_secrets_takes_no_event_before_they_are_announced_again
                a_runtime_that_cannot_announce_its_secrets_ends_the_session_as_secrets_lost
                values_that_were_taken_before_the_restart_are_announced_and_redacted
                what_fillers_answered_is_not_filled_again_with_the_same_values
                a_task_that_the_runtime_never_got_is_given_again_and_one_with_secrets_fails
                a_task_that_is_only_in_the_record_is_gone
                what_waits_for_the_runtime_outlives_a_second_restart
                a_taken_answer_whose_record_was_not_written_stays_taken_over_a_second_death
                a_question_whose_record_was_not_written_stays_open_over_a_second_death
                a_log_whose_session_has_no_record_is_gone_after_a_restart
                a_task_for_a_session_whose_secrets_are_lost_waits_for_its_runtime
                a_confirmed_notice_is_not_sent_again_and_a_queued_one_is_sent
                a_notice_that_was_being_sent_is_sent_once_more_as_a_repeat
                the_card_of_a_question_that_closed_is_told_after_the_restart
                nobody_is_contacted_when_the_watchers_are_back_within_the_grace_after_the_start
                commands_get_higher_numbers_than_before_and_reach_the_runtime_once
                an_offered_session_can_be_claimed_with_the_token_from_before
                an_offered_session_that_nobody_claims_is_offered_to_another_runtime
                an_offered_session_ends_when_no_runtime_has_room_for_it
                a_claim_by_rest_holds_reach_out_back_after_the_restart_and_one_by_a_connection_does_not
                control_that_was_held_is_released_and_the_task_goes_on
                an_ended_session_is_readable_until_its_retention_is_over
                an_ended_session_makes_room_for_others
                the_last_picture_is_there_and_one_taken_under_control_is_not
                a_token_for_browsers_is_valid_after_the_restart
                a_result_that_nobody_had_seen_is_sent_and_one_that_was_seen_is_not
                a_task_webhook_that_was_due_is_sent_once_by_the_next_gateway
                a_task_webhook_that_was_being_sent_is_not_sent_again
                a_task_webhook_whose_authorization_was_lost_is_not_sent_without_it
                the_end_of_a_task_ends_its_questions_and_its_session_also_across_a_restart
                while_the_engine_is_unavailable_sessions_are_still_shown
                the_state_after_a_restart_is_the_state_before_it
                wherever_the_gateway_dies_the_task_is_done_once_and_nobody_is_asked_twice
            );
        })+
    };
}

macro_rules! cases {
    ($ground:expr; $($case:ident)+) => {
        $(#[tokio::test]
        async fn $case() {
            super::$case($ground).await;
        })+
    };
}

on_every_engine! {
    memory: super::memory();
    disk: super::disk();
}

/// What a gateway writes through: cut, nothing is written or read any more, and nobody hears why.
struct Lifeline {
    inner: Arc<dyn Engine>,
    cut: AtomicBool,
    /// The kind of write with which it is cut, and how many of its kind still go through.
    planned: std::sync::Mutex<Option<(Death, usize)>>,
    /// The planned write has begun: the cut comes, if it is not there yet.
    dying: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    Append,
    Put(RecordKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    /// The write never happens.
    Before(Moment),
    /// The write happens, and the gateway never hears of it.
    With(Moment),
}

impl Death {
    fn moment(self) -> Moment {
        match self {
            Self::Before(moment) | Self::With(moment) => moment,
        }
    }
}

impl Lifeline {
    async fn holds(&self) {
        if self.cut.load(Ordering::SeqCst) {
            pending().await
        }
    }

    async fn writes<F: Future>(&self, moment: Moment, write: impl FnOnce() -> F) -> F::Output {
        let death = match &mut *self.planned.lock().unwrap() {
            Some((death, left)) if death.moment() == moment => {
                let now = *left == 0;
                *left = left.saturating_sub(1);
                // Under the lock: who drops the plan must learn of a write that has begun and not ended.
                self.dying.fetch_or(now, Ordering::SeqCst);
                now.then_some(*death)
            }
            _ => None,
        };
        if matches!(death, Some(Death::Before(_))) {
            self.cut.store(true, Ordering::SeqCst);
        }
        self.holds().await;
        let written = write().await;
        if death.is_some() {
            self.cut.store(true, Ordering::SeqCst);
        }
        self.holds().await;
        written
    }
}

impl Engine for Lifeline {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        Box::pin(async move {
            self.holds().await;
            self.inner.create(session, epoch, term).await
        })
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        Box::pin(async move { self.writes(Moment::Append, || self.inner.append(session, batch)).await })
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        Box::pin(async move {
            self.holds().await;
            self.inner.read(session, from, limit).await
        })
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.inner.head(session)
    }

    fn logs(&self) -> Vec<SessionId> {
        self.inner.logs()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        Box::pin(async move {
            self.holds().await;
            self.inner.remove(session).await
        })
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        Box::pin(async move { self.writes(Moment::Put(key.kind), || self.inner.put(key, seen, value)).await })
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        Box::pin(async move {
            self.holds().await;
            self.inner.get(key).await
        })
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        Box::pin(async move {
            self.holds().await;
            self.inner.list(kind, session).await
        })
    }

    fn stored_bytes(&self) -> u64 {
        self.inner.stored_bytes()
    }

    fn before(&self) -> Before {
        self.inner.before()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// A gateway that can be killed, and the next one on the same ground.
struct Mortal {
    ground: Ground,
    /// For the next gateway.
    config: Config,
    life: Option<Life>,
    /// The way to the one that lives.
    at: TestGateway,
}

struct Life {
    gateway: Gateway,
    lifeline: Arc<Lifeline>,
    /// All that the gateway does, and nothing else.
    tasks: tokio::runtime::Runtime,
}

impl std::ops::Deref for Mortal {
    type Target = TestGateway;

    fn deref(&self) -> &TestGateway {
        &self.at
    }
}

impl Mortal {
    async fn begin(ground: Ground, config: Config) -> Self {
        let mut mortal = Self { ground, config, life: None, at: TestGateway::at(String::new()) };
        mortal.rise().await;
        mortal
    }

    /// Starts a gateway on what the last one left.
    async fn rise(&mut self) {
        let tasks = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inner = (self.ground.open)();
        let lifeline = Arc::new(Lifeline { inner, cut: false.into(), planned: None.into(), dying: false.into() });
        let starting = Gateway::start_on(self.config.clone(), Arc::clone(&lifeline) as Arc<dyn Engine>);
        let gateway = tasks.spawn(starting).await.unwrap().expect("the gateway starts");
        self.at = TestGateway::at(gateway.url());
        self.life = Some(Life { gateway, lifeline, tasks });
    }

    /// Ends the gateway where it stands. Returns when nothing of it runs any more.
    async fn kill(&mut self) {
        let Life { gateway, lifeline, tasks } = self.life.take().expect("it lives");
        lifeline.cut.store(true, Ordering::SeqCst);
        drop(lifeline);
        let end = move || {
            tasks.shutdown_timeout(BOUND);
            drop(gateway);
        };
        tokio::task::spawn_blocking(end).await.unwrap();
    }

    async fn killed_and_risen(&mut self) {
        self.kill().await;
        self.rise().await;
    }

    async fn stopped_and_risen(&mut self) {
        let Life { gateway, lifeline, tasks } = self.life.take().expect("it lives");
        drop(lifeline);
        tasks.spawn(gateway.stop()).await.unwrap();
        tasks.shutdown_background();
        self.rise().await;
    }

    /// From this write on nothing is written any more: `after` of its kind still are.
    fn dies_before(&self, moment: Moment, after: usize) {
        self.dies(Death::Before(moment), after);
    }

    fn dies(&self, death: Death, after: usize) {
        let life = self.life.as_ref().expect("it lives");
        *life.lifeline.planned.lock().unwrap() = Some((death, after));
    }

    async fn until_it_dies(&self) {
        wait_until("the planned write comes", || async { self.has_died() }).await;
    }

    fn has_died(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.lifeline.cut.load(Ordering::SeqCst))
    }

    /// Drops the plan, and returns whether it had come to pass.
    async fn dies_no_more(&self) -> bool {
        let lifeline = &self.life.as_ref().expect("it lives").lifeline;
        *lifeline.planned.lock().unwrap() = None;
        let dying = lifeline.dying.load(Ordering::SeqCst);
        if dying {
            self.until_it_dies().await;
        }
        dying
    }

    /// Everything that the engine holds, as text.
    async fn everything_kept(&self) -> String {
        let engine = &self.life.as_ref().expect("it lives").lifeline.inner;
        let mut text = String::new();
        let kinds = [RecordKind::Session, RecordKind::Guardrail, RecordKind::Notice, RecordKind::Lease];
        for kind in kinds.into_iter().chain([RecordKind::Picture, RecordKind::Gateway]) {
            for (key, _, value) in engine.list(kind, None).await.unwrap() {
                text += &format!("{key:?} {}\n", String::from_utf8_lossy(&value));
            }
        }
        for (key, ..) in engine.list(RecordKind::Session, None).await.unwrap() {
            let first = engine.head(key.session).unwrap().borrow().first;
            let all = ReadLimit { records: usize::MAX, bytes: usize::MAX };
            for record in engine.read(key.session, first, all).await.unwrap() {
                text += &format!("{}\n", String::from_utf8_lossy(&record.frame));
            }
        }
        text
    }

    // --- what a session looks like -----------------------------------------------------------------------------------

    async fn state(&self, session: &str) -> Value {
        let (status, view) = self.get(&format!("/v1/sessions/{session}")).await;
        assert_eq!(status, 200, "{view}");
        view["state"].clone()
    }

    async fn until_status(&self, session: &str, status: &str) -> Value {
        wait_until(status, || async { self.state(session).await["status"] == status }).await;
        self.state(session).await
    }

    /// The whole log, oldest first.
    async fn log(&self, session: &str) -> Vec<Value> {
        let (status, page) = self.get(&format!("/v1/sessions/{session}/events?since=start&limit=500")).await;
        assert_eq!((status, &page["gap"]), (200, &Value::Null), "{page}");
        page["events"].as_array().unwrap().clone()
    }

    /// The data of every event of a type.
    async fn logged(&self, session: &str, kind: &str) -> Vec<Value> {
        let log = self.log(session).await;
        log.iter().filter(|frame| frame["event"]["type"] == kind).map(|frame| frame["event"]["data"].clone()).collect()
    }

    async fn command(&self, session: &str, command: Value) -> Value {
        let (status, answer) = self.post(&format!("/v1/sessions/{session}/commands"), command).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    async fn guardrail(&self, session: &str, id: &str) -> Value {
        let (status, found) = self.get(&format!("/v1/guardrails/{id}?session={session}")).await;
        assert_eq!(status, 200, "{found}");
        found["guardrail"].clone()
    }

    async fn until_guardrail(&self, session: &str, id: &str, state: &str) -> Value {
        wait_until(state, || async { self.guardrail(session, id).await["state"] == state }).await;
        self.guardrail(session, id).await
    }

    /// Answers a question; `answer` has what is particular about it.
    async fn answer(&self, session: &str, id: &str, answer: Value) -> (u16, Value) {
        let mut body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit" });
        for (name, value) in answer.as_object().unwrap() {
            body[name] = value.clone();
        }
        self.post(&format!("/v1/guardrails/{id}/answer"), body).await
    }

    async fn answered(&self, session: &str, id: &str, answer: Value) {
        let (status, answered) = self.answer(session, id, answer).await;
        assert_eq!(status, 200, "{answered}");
    }

    /// A session of a runtime's own.
    async fn opened(&self, open: OpenSession) -> Opened {
        let mut runtime = self.runtime().await;
        let (session, claim) = runtime.open(open).await;
        Opened { runtime, session, claim }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            life.tasks.shutdown_background();
        }
    }
}

/// A session and its runtime.
struct Opened {
    runtime: Runtime,
    session: String,
    /// The newest claim token.
    claim: String,
}

impl Opened {
    async fn ask(&mut self, id: &str, more: Value) {
        self.runtime.ask(&self.session, id, more).await;
    }

    async fn publish(&mut self, kind: &str, data: Value) -> Position {
        self.runtime.publish(&self.session, kind, data).await
    }

    /// The runtime comes back and has applied the commands up to a number.
    async fn back(&mut self, gateway: &Mortal, commands: u64) -> Claimed {
        self.runtime = gateway.runtime().await;
        let claimed = self.runtime.reclaim(&self.session, &self.claim, commands).await;
        self.claim.clone_from(&claimed.claim);
        claimed
    }

    async fn commands(&mut self) -> Vec<NumberedCommand> {
        self.runtime.commands_so_far(&self.session).await
    }

    /// The outcomes among the commands that came since they were last asked for, by id.
    async fn outcomes(&mut self) -> Vec<Value> {
        let outcome = |command: NumberedCommand| match command.command {
            RuntimeCommand::Guardrail(outcome) => Some(serde_json::to_value(outcome).unwrap()),
            _ => None,
        };
        let mut outcomes: Vec<Value> = self.commands().await.into_iter().filter_map(outcome).collect();
        outcomes.sort_by_key(|outcome| outcome["guardrailId"].to_string());
        outcomes
    }

    /// The number of the last command that the runtime was given.
    async fn last_command(&mut self) -> u64 {
        self.commands().await.last().expect("a command was given").number
    }
}

fn labelled() -> OpenSession {
    OpenSession {
        external_id: Some("order 7".to_owned()),
        environment_id: Some("shop".to_owned()),
        labels: Map::from_iter([("tier".to_owned(), json!("gold"))]),
        ..OpenSession::default()
    }
}

fn secrets(site: &str, fields: &[(&str, &str)]) -> Vec<SecretEntry> {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    vec![SecretEntry { matches: site.to_owned(), fields }]
}

fn new_task(id: &str) -> Value {
    json!({ "command": "new_task", "task": { "taskId": id, "prompt": format!("do {id}") } })
}

/// The view without what a restart changes.
fn unchanged(mut view: Value) -> Value {
    for member in ["status", "runtime"] {
        view.as_object_mut().unwrap().remove(member);
    }
    view
}

// --- the session itself ----------------------------------------------------------------------------------------------

async fn a_session_is_found_again_with_its_log_its_state_its_labels_and_its_tasks(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(labelled()).await;
    let session = opened.session.clone();
    for task in ["first", "second"] {
        gateway.command(&session, new_task(task)).await;
    }
    opened.publish("task_started", json!({ "taskId": "first" })).await;
    opened.publish("action", json!({ "name": "click", "x": 5 })).await;
    let (seen, follower) = (opened.publish("x.mine", json!({ "deep": [1] })).await, gateway.subscriber().await);
    follower.close(1000).await;
    let (before, log) = (gateway.state(&session).await, gateway.log(&session).await);

    gateway.killed_and_risen().await;
    let after = gateway.state(&session).await;
    assert_eq!(after["status"], "orphaned");
    assert_eq!(after["runtime"], json!({ "name": "runtime", "connected": false }));
    assert_eq!(unchanged(after), unchanged(before));
    let (told, kept) =
        gateway.log(&session).await.split_last().map(|(last, kept)| (last.clone(), kept.to_vec())).unwrap();
    assert_eq!(kept, log, "what was there is there, under its positions and ids");
    assert_eq!(told["event"]["type"], "runtime_disconnected");
    assert_eq!(told["event"]["data"]["reason"], "restart");

    let mut follower = gateway.subscriber().await;
    let since = Since::After(seen);
    follower.subscribe(Subscribe { session: Some(session.clone()), since, ..follow() }).await;
    follower.live().await;
    let replayed: Vec<Value> = follower.seen.iter().filter_map(replayed).flatten().collect();
    assert_eq!(replayed, [told], "no gap, and nothing twice: {:?}", follower.seen);
    assert!(!follower.seen.iter().any(|frame| matches!(frame, GatewayToSubscriber::Gap { .. })));

    let claimed = opened.back(&gateway, 2).await;
    assert_eq!(claimed.expected, 4);
    assert!(!claimed.secrets_expected);
    opened.publish("task_completed", json!({ "message": "done" })).await;
    assert_eq!(follower.event("runtime_reconnected").await["runtime"], "runtime");
    assert_eq!(follower.event("task_completed").await["taskId"], "first");
    assert_eq!(gateway.state(&session).await["status"], "active");
}

/// The events of a replay, as JSON.
fn replayed(frame: &GatewayToSubscriber) -> Option<Vec<Value>> {
    let frame = serde_json::to_value(frame).unwrap();
    (frame["type"] == "replay").then(|| frame["events"].as_array().unwrap().clone())
}

async fn after_an_orderly_stop_everything_is_there_too(ground: Ground) {
    let mut config = quick();
    config.times.drain = milliseconds(200);
    let mut gateway = Mortal::begin(ground, config).await;
    let mut opened = gateway.opened(labelled()).await;
    let session = opened.session.clone();
    gateway.command(&session, new_task("first")).await;
    opened.publish("task_started", json!({ "taskId": "first" })).await;
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    let (before, log) = (gateway.state(&session).await, gateway.log(&session).await);
    gateway.stopped_and_risen().await;
    assert_eq!(unchanged(gateway.state(&session).await), unchanged(before));
    assert_eq!(gateway.log(&session).await[..log.len()], log);
    assert_eq!(gateway.logged(&session, "runtime_disconnected").await.len(), 1, "and it is said once");
    assert_eq!(opened.back(&gateway, 1).await.expected, 3);
    gateway.answered(&session, "g", json!({ "choice": "yes" })).await;
    assert_eq!(opened.runtime.outcome().await.choice.as_deref(), Some("yes"));
}

async fn unacknowledged_events_that_are_sent_again_are_taken_once(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.publish("x.one", json!({ "is": 1 })).await;
    // Of what follows the runtime hears nothing: one of the two is in the log.
    gateway.dies_before(Moment::Append, 1);
    opened.runtime.send_event(&session, "x.two", json!({ "is": 2 })).await;
    wait_until("it is in the log", || async { gateway.logged(&session, "x.two").await.len() == 1 }).await;
    opened.runtime.send_event(&session, "x.three", json!({ "is": 3 })).await;
    gateway.until_it_dies().await;

    gateway.killed_and_risen().await;
    assert_eq!(opened.back(&gateway, 0).await.expected, 3);
    let event = |n, kind: &str| PublishedEvent {
        n,
        kind: kind.to_owned(),
        task: None,
        data: json!({ "is": n }),
        picture: None,
    };
    let again = vec![event(1, "x.one"), event(2, "x.two"), event(3, "x.three"), event(4, "x.four")];
    opened.runtime.send(RuntimeToGateway::Events { session: session.clone(), events: again }).await;
    opened.runtime.accepted(&session, 4).await;
    let log = gateway.log(&session).await;
    let own: Vec<&Value> =
        log.iter().filter(|frame| frame["event"]["type"].as_str().unwrap().starts_with("x.")).collect();
    let data: Vec<&Value> = own.iter().map(|frame| &frame["event"]["data"]["is"]).collect();
    assert_eq!(data, [1, 2, 3, 4]);
}

async fn the_newest_claim_token_works_and_the_one_before_if_the_newest_never_arrived(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let first = opened.claim.clone();
    opened.back(&gateway, 0).await;
    gateway.killed_and_risen().await;
    opened.claim = "0".repeat(40);
    opened.runtime = gateway.runtime().await;
    let (session, claim) = (opened.session.clone(), opened.claim.clone());
    let wrong = onlooker_protocol::runtime::Reclaim { session: session.clone(), claim, commands: 0 };
    opened.runtime.send(RuntimeToGateway::Claim(wrong)).await;
    assert_eq!(opened.runtime.refusal(&session).await.code, Code::WrongClaim);
    // The answer to the claim never arrived, as far as this gateway can know.
    opened.claim = first;
    opened.back(&gateway, 0).await;
    opened.publish("x.here", Value::Null).await;

    gateway.killed_and_risen().await;
    opened.back(&gateway, 0).await;
    opened.publish("x.here", Value::Null).await;
    assert_eq!(gateway.logged(&session, "x.here").await.len(), 2);
}

async fn a_session_whose_runtime_does_not_come_back_after_a_restart_ends_as_instance_lost(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    opened.ask("g", json!({})).await;
    gateway.config.times.runtime_grace = milliseconds(300);
    gateway.killed_and_risen().await;
    let ended = gateway.until_status(&opened.session, "ended").await;
    assert_eq!(ended["reason"], "instance_lost");
    assert_eq!(gateway.guardrail(&opened.session, "g").await["state"], "cancelled");
}

// --- guardrails and answers ------------------------------------------------------------------------------------------

async fn an_open_guardrail_is_listed_and_answerable_and_its_answer_reaches_the_runtime_when_it_is_back(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    let more = json!({ "kind": "ambiguous", "value": "Which one?", "choices": [{ "id": "a" }, { "id": "b" }] });
    opened.ask("g", more).await;
    let before = gateway.guardrail(&session, "g").await;
    gateway.killed_and_risen().await;
    let (_, listed) = gateway.get("/v1/guardrails?state=open").await;
    assert_eq!(listed["guardrails"], json!([before]));
    assert_eq!(gateway.state(&session).await["guardrails"], json!([before]));
    gateway.answered(&session, "g", json!({ "text": "the blue one", "choice": "b" })).await;
    opened.back(&gateway, 0).await;
    let outcome = opened.runtime.outcome().await;
    assert_eq!((outcome.outcome, outcome.choice.as_deref()), (Outcome::Answered, Some("b")));
    assert_eq!(outcome.text.as_deref(), Some("the blue one"));
    assert_eq!(opened.outcomes().await, NONE, "once");
    opened.publish("guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    assert_eq!(gateway.guardrail(&session, "g").await["state"], "taken");
    assert_eq!(gateway.logged(&session, "guardrail_resolved").await.len(), 1);
}

async fn a_deadline_that_passed_while_no_gateway_ran_is_applied_at_the_start(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    let more = json!({ "expiresIn": 3000, "onTimeout": "default_answer", "defaultAnswer": "the first one" });
    opened.ask("g", more).await;
    opened.ask("later", json!({ "expiresIn": 60_000 })).await;
    gateway.kill().await;
    tokio::time::sleep(milliseconds(3000)).await;
    gateway.rise().await;
    gateway.until_guardrail(&session, "g", "expired").await;
    assert_eq!(gateway.guardrail(&session, "later").await["state"], "open");
    let log = gateway.log(&session).await;
    let at = |kind| log.iter().position(|frame| frame["event"]["type"] == kind).unwrap();
    assert!(at("runtime_disconnected") < at("guardrail_resolved"), "it passed while nobody was there");
    let (status, refusal) = gateway.answer(&session, "g", json!({ "text": "too late" })).await;
    assert_eq!((status, &refusal["error"]), (409, &json!("guardrail_closed")));
    opened.back(&gateway, 0).await;
    let outcome = opened.runtime.outcome().await;
    assert_eq!((outcome.outcome, outcome.on_timeout), (Outcome::TimedOut, Some(OnTimeout::DefaultAnswer)));
    assert_eq!(outcome.text.as_deref(), Some("the first one"));
    assert_eq!(opened.outcomes().await, NONE);
}

const TYPED: &str = "typed-Canary-4711";

/// A question for a secret whose card is out, answered; the gateway is killed, and another one started.
async fn answered_with_a_secret(ground: Ground, receiver: &Receiver) -> (Mortal, Opened, u64) {
    let mut gateway = Mortal::begin(ground, with_webhook(calm(LONG, LONG), receiver)).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    gateway.command(&session, new_task("t")).await;
    opened.publish("task_started", json!({ "taskId": "t" })).await;
    opened.ask("g", json!({ "fields": [{ "id": "otp" }] })).await;
    receiver.wait_for("guardrail.opened", 1).await;
    let confirmed = || async { gateway.why(&session, "g").await["notices"][0]["state"] == "confirmed" };
    wait_until("the card is out", confirmed).await;
    gateway.answered(&session, "g", json!({ "values": { "otp": TYPED } })).await;
    let number = opened.last_command().await;
    receiver.wait_for("guardrail.resolved", 1).await;
    gateway.killed_and_risen().await;
    assert_eq!(gateway.guardrail(&session, "g").await["state"], "accepted");
    (gateway, opened, number)
}

async fn a_secret_answer_that_the_runtime_did_not_have_is_lost_and_asked_anew(ground: Ground) {
    let receiver = Receiver::start().await;
    let (gateway, mut opened, number) = answered_with_a_secret(ground, &receiver).await;
    let session = opened.session.clone();
    opened.back(&gateway, number - 1).await;
    let asked = gateway.until_guardrail(&session, "g", "open").await;
    assert_eq!((&asked["revision"], &asked["asked"]), (&json!(2), &json!(1)));
    let resolved = gateway.logged(&session, "guardrail_resolved").await;
    let outcomes: Vec<&Value> = resolved.iter().map(|data| &data["outcome"]).collect();
    assert_eq!(outcomes, ["answered", "lost"]);
    let triggers = gateway.logged(&session, "guardrail_trigger").await;
    assert_eq!((triggers.len(), &triggers[1]["revision"], &triggers[1]["asked"]), (2, &json!(2), &json!(1)));
    assert_eq!(opened.outcomes().await, NONE, "the runtime is told of no answer");
    let cards = receiver.wait_for("guardrail.opened", 2).await;
    assert_eq!(cards[1].body["guardrail"]["revision"], 2);

    let (status, refusal) = gateway.answer(&session, "g", json!({ "values": { "otp": TYPED } })).await;
    assert_eq!((status, &refusal["error"]), (409, &json!("stale_revision")));
    gateway.answered(&session, "g", json!({ "revision": 2, "values": { "otp": "another-1" } })).await;
    let outcome = opened.runtime.outcome().await;
    assert_eq!((outcome.revision, outcome.asked, outcome.values["otp"].as_str()), (2, 1, "another-1"));
    opened.publish("guardrail_taken", json!({ "guardrailId": "g", "revision": 2 })).await;
    assert_eq!(gateway.guardrail(&session, "g").await["state"], "taken");
    assert_eq!(gateway.metric("onlooker_answers_lost_total").await, 1.0);
}

/// Killed again between the record that says so and the log.
async fn an_answer_that_only_its_record_calls_lost_is_called_lost_in_the_log_too(ground: Ground) {
    let receiver = Receiver::start().await;
    let (mut gateway, mut opened, number) = answered_with_a_secret(ground, &receiver).await;
    let session = opened.session.clone();
    gateway.dies(Death::With(Moment::Put(RecordKind::Guardrail)), 0);
    opened.runtime = gateway.runtime().await;
    let claim = onlooker_protocol::runtime::Reclaim {
        session: session.clone(),
        claim: opened.claim.clone(),
        commands: number - 1,
    };
    opened.runtime.send(RuntimeToGateway::Claim(claim)).await;
    gateway.until_it_dies().await;
    gateway.killed_and_risen().await;
    assert_eq!(gateway.guardrail(&session, "g").await["state"], "lost");
    opened.back(&gateway, number - 1).await;
    let asked = gateway.until_guardrail(&session, "g", "open").await;
    assert_eq!(asked["revision"], 2);
    let of_the_question = |frame: &&Value| {
        let kind = frame["event"]["type"].as_str().unwrap();
        kind.starts_with("guardrail_")
    };
    let told = |frame: &Value| {
        let data = &frame["event"]["data"];
        (data["revision"].as_u64().unwrap(), data["outcome"].as_str().unwrap_or("asked").to_owned())
    };
    let log = gateway.log(&session).await;
    let told: Vec<_> = log.iter().filter(of_the_question).map(told).collect();
    let expected = [(1, "asked"), (1, "answered"), (1, "lost"), (2, "asked")].map(|(n, what)| (n, what.to_owned()));
    assert_eq!(told, expected);
}

async fn a_secret_answer_that_the_runtime_had_applied_is_asked_of_nobody_again(ground: Ground) {
    let receiver = Receiver::start().await;
    let (gateway, mut opened, number) = answered_with_a_secret(ground, &receiver).await;
    let session = opened.session.clone();
    let claimed = opened.back(&gateway, number).await;
    // It may type what it was given, and only it knows what that was.
    assert!(claimed.secrets_expected);
    let values = vec![TYPED.to_owned()];
    opened.runtime.send(RuntimeToGateway::Secrets { session: session.clone(), secrets: Vec::new(), values }).await;
    opened.publish("action", json!({ "name": "type", "text": format!("I type {TYPED}") })).await;
    opened.publish("guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    let taken = gateway.guardrail(&session, "g").await;
    assert_eq!((&taken["state"], &taken["revision"]), (&json!("taken"), &json!(1)));
    assert_eq!(opened.outcomes().await, NONE);
    assert_eq!(gateway.logged(&session, "guardrail_trigger").await.len(), 1);
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    assert!(!gateway.everything_kept().await.contains(TYPED));
}

async fn choices_declines_and_open_values_survive_and_reach_the_runtime_once(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("choice", json!({ "choices": [{ "id": "red" }, { "id": "blue" }] })).await;
    opened.ask("declined", json!({})).await;
    opened.ask("values", json!({ "fields": [{ "id": "city", "secret": false }] })).await;
    gateway.answered(&session, "choice", json!({ "choice": "blue" })).await;
    gateway.answered(&session, "declined", json!({ "action": "decline" })).await;
    gateway.answered(&session, "values", json!({ "values": { "city": "Bern" } })).await;
    gateway.killed_and_risen().await;
    opened.back(&gateway, 0).await;
    let expected = [
        json!({ "guardrailId": "choice", "revision": 1, "asked": 1, "outcome": "answered", "choice": "blue" }),
        json!({ "guardrailId": "declined", "revision": 1, "asked": 1, "outcome": "declined" }),
        json!({ "guardrailId": "values", "revision": 1, "asked": 1, "outcome": "answered", "values": { "city": "Bern" } }),
    ];
    assert_eq!(opened.outcomes().await, expected);
    for id in ["choice", "declined", "values"] {
        opened.runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": id, "revision": 1 })).await;
    }
    assert_eq!(opened.outcomes().await, NONE);
    gateway.killed_and_risen().await;
    opened.back(&gateway, u64::MAX >> 11).await;
    assert_eq!(opened.outcomes().await, NONE);
}

async fn the_same_answer_with_the_same_key_succeeds_again_after_the_restart(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }, { "id": "no" }] })).await;
    let answer = json!({ "choice": "yes", "idempotencyKey": "mine" });
    gateway.answered(&session, "g", answer.clone()).await;
    gateway.killed_and_risen().await;
    let (status, again) = gateway.answer(&session, "g", answer).await;
    assert_eq!((status, &again["guardrail"]["resolution"]["choice"]), (200, &json!("yes")), "{again}");
    let (status, refusal) = gateway.answer(&session, "g", json!({ "choice": "no", "idempotencyKey": "else" })).await;
    assert_eq!((status, &refusal["error"]), (409, &json!("already_answered")));
    assert_eq!(gateway.logged(&session, "guardrail_resolved").await.len(), 1);
}

async fn a_runtime_that_says_too_early_that_it_has_the_answer_still_gets_it(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    opened.publish("guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    gateway.answered(&session, "g", json!({ "choice": "yes" })).await;
    gateway.killed_and_risen().await;
    assert_eq!(gateway.guardrail(&session, "g").await["state"], "accepted");
    opened.back(&gateway, 0).await;
    assert_eq!(opened.runtime.outcome().await.choice.as_deref(), Some("yes"));
}

async fn a_runtime_over_http_goes_on_after_the_restart(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let (status, created) = gateway.post("/v1/sessions", json!({ "runtime": "self" })).await;
    assert_eq!(status, 201, "{created}");
    let (session, claim) = (created["session"].as_str().unwrap().to_owned(), created["claim"].as_str().unwrap());
    async fn publish(gateway: &Mortal, session: &str, claim: &str, events: Value) -> (u16, Value) {
        let url = format!("{}/v1/sessions/{session}/events", gateway.url);
        let request = gateway.http.post(url).header("onlooker-claim", claim);
        gateway.request(request.json(&json!({ "events": events }))).await
    }
    async fn commands(gateway: &Mortal, session: &str, claim: &str, since: u64) -> Vec<NumberedCommand> {
        let url = format!("{}/v1/sessions/{session}/commands?since={since}&wait=0", gateway.url);
        let (status, page) = gateway.request(gateway.http.get(url).header("onlooker-claim", claim)).await;
        assert_eq!(status, 200, "{page}");
        serde_json::from_value(page["commands"].clone()).unwrap()
    }
    assert_eq!(publish(&gateway, &session, claim, json!([{ "n": 1, "type": "x.one" }])).await.0, 200);
    gateway.command(&session, new_task("t")).await;
    gateway.killed_and_risen().await;
    assert_eq!(publish(&gateway, &session, "wrong", json!([])).await.1["error"], "wrong_claim");
    let (status, accepted) =
        publish(&gateway, &session, claim, json!([{ "n": 1, "type": "x.one" }, { "n": 2, "type": "x.two" }])).await;
    assert_eq!((status, &accepted["n"]), (200, &json!(2)), "{accepted}");
    assert_eq!(gateway.state(&session).await["status"], "active");
    let given = commands(&gateway, &session, claim, 0).await;
    assert_eq!(tasks(&given), ["t"]);
    gateway.killed_and_risen().await;
    assert_eq!(tasks(&commands(&gateway, &session, claim, given[0].number).await), NO_TASK);
    assert_eq!(gateway.logged(&session, "x.one").await.len(), 1);
}

// --- secrets ---------------------------------------------------------------------------------------------------------

const GIVEN: &str = "given-Canary-0815";

async fn announce(opened: &mut Opened, entries: Vec<SecretEntry>, values: &[&str]) {
    let (session, values) = (opened.session.clone(), values.iter().map(|value| (*value).to_owned()).collect());
    opened.runtime.send(RuntimeToGateway::Secrets { session, secrets: entries, values }).await;
}

async fn a_session_with_secrets_takes_no_event_before_they_are_announced_again(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let entries = || secrets("shop.example", &[("password", GIVEN)]);
    let parameters = Map::from_iter([("proxy".to_owned(), json!({ "password": "proxy-Canary-1" }))]);
    let open = OpenSession { secrets: entries(), parameters, ..OpenSession::default() };
    let mut opened = gateway.opened(open).await;
    let session = opened.session.clone();
    gateway.killed_and_risen().await;
    assert!(opened.back(&gateway, 0).await.secrets_expected);
    opened.runtime.send_event(&session, "action", json!({ "name": "type", "text": GIVEN })).await;
    assert_eq!(opened.runtime.refusal(&session).await.code, Code::SecretsExpected);
    announce(&mut opened, entries(), &[]).await;
    opened.runtime.numbers.insert(session.clone(), 0);
    opened.publish("action", json!({ "name": "type", "text": format!("typed {GIVEN} here") })).await;
    let logged = gateway.logged(&session, "action").await;
    assert_eq!(logged.len(), 1);
    assert!(logged[0]["text"].as_str().unwrap().starts_with("typed "), "{}", logged[0]);
    assert!(!gateway.everything_kept().await.contains("Canary"));
    // What was announced once is known in this process: a mere reconnect asks for nothing.
    assert!(!opened.back(&gateway, 0).await.secrets_expected);
}

async fn a_runtime_that_cannot_announce_its_secrets_ends_the_session_as_secrets_lost(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let open = OpenSession { secrets: secrets("all", &[("password", GIVEN)]), ..OpenSession::default() };
    let mut opened = gateway.opened(open).await;
    gateway.killed_and_risen().await;
    assert!(opened.back(&gateway, 0).await.secrets_expected);
    opened.runtime.send(RuntimeToGateway::End { session: opened.session.clone() }).await;
    assert_eq!(gateway.until_status(&opened.session, "ended").await["reason"], "secrets_lost");
}

async fn values_that_were_taken_before_the_restart_are_announced_and_redacted(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "fields": [{ "id": "otp" }] })).await;
    gateway.answered(&session, "g", json!({ "values": { "otp": TYPED } })).await;
    opened.publish("guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    gateway.killed_and_risen().await;
    assert!(opened.back(&gateway, 9).await.secrets_expected);
    announce(&mut opened, Vec::new(), &[TYPED]).await;
    opened.publish("agent", json!({ "content": format!("the code is {TYPED}") })).await;
    assert!(!gateway.everything_kept().await.contains(TYPED));

    // The same where the task ended before the runtime said that it has the answer.
    gateway.command(&session, new_task("t")).await;
    opened.publish("task_started", json!({ "taskId": "t" })).await;
    let mut other = gateway.opened(OpenSession::default()).await;
    let session = other.session.clone();
    gateway.command(&session, new_task("t")).await;
    other.publish("task_started", json!({ "taskId": "t" })).await;
    other.ask("g", json!({ "fields": [{ "id": "otp" }] })).await;
    gateway.answered(&session, "g", json!({ "values": { "otp": TYPED } })).await;
    let number = other.last_command().await;
    other.publish("task_completed", json!({ "message": "done" })).await;
    gateway.killed_and_risen().await;
    assert!(other.back(&gateway, number).await.secrets_expected);
}

async fn what_fillers_answered_is_not_filled_again_with_the_same_values(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let entries = || secrets("shop.example", &[("password", GIVEN)]);
    let mut opened = gateway.opened(OpenSession { secrets: entries(), ..OpenSession::default() }).await;
    let session = opened.session.clone();
    let login = |revision: u32| {
        let fields = json!([{ "id": "password" }]);
        json!({ "kind": "login", "domain": "shop.example", "fields": fields, "revision": revision })
    };
    opened.ask("login", login(1)).await;
    assert_eq!(opened.runtime.outcome().await.values["password"], GIVEN);
    opened.publish("guardrail_taken", json!({ "guardrailId": "login", "revision": 1 })).await;
    gateway.killed_and_risen().await;
    opened.back(&gateway, 9).await;
    announce(&mut opened, entries(), &[]).await;
    opened.ask("login", login(2)).await;
    let asked = gateway.guardrail(&session, "login").await;
    assert_eq!((&asked["state"], &asked["fields"][0]["id"]), (&json!("open"), &json!("password")));
    // Another question is filled as before.
    let mut another = login(1);
    another["value"] = json!("Sign in again");
    opened.ask("another", another).await;
    assert_eq!(opened.runtime.outcome().await.values["password"], GIVEN);
    assert!(!gateway.everything_kept().await.contains(GIVEN));
}

// --- tasks and commands ----------------------------------------------------------------------------------------------

async fn the_end_of_a_task_ends_its_questions_and_its_session_also_across_a_restart(ground: Ground) {
    for (moment, after) in [(Moment::Append, 1), (Moment::Append, 2), (Moment::Put(RecordKind::Guardrail), 0)] {
        let mut gateway = Mortal::begin((ground.another)(), quick()).await;
        let mut opened = gateway.opened(OpenSession::default()).await;
        let session = opened.session.clone();
        let mut task = new_task("t");
        task["task"]["terminateOnCompletion"] = json!(true);
        gateway.command(&session, task).await;
        opened.publish("task_started", json!({ "taskId": "t" })).await;
        opened.ask("g", json!({})).await;
        gateway.dies_before(moment, after);
        opened.runtime.send_event(&session, "task_completed", json!({ "message": "done" })).await;
        gateway.until_it_dies().await;
        gateway.killed_and_risen().await;
        let ended = gateway.until_status(&session, "ended").await;
        assert_eq!(ended["reason"], "terminate_on_completion", "died at {moment:?} {after}");
        assert_eq!(gateway.guardrail(&session, "g").await["state"], "cancelled");
        assert_eq!(gateway.logged(&session, "guardrail_resolved").await.len(), 1);
        assert_eq!(gateway.logged(&session, "task_completed").await.len(), 1);
    }
}

/// The ids of the tasks among commands.
fn tasks(commands: &[NumberedCommand]) -> Vec<String> {
    let task = |command: &NumberedCommand| match &command.command {
        RuntimeCommand::NewTask { task } => task.task_id.clone(),
        _ => None,
    };
    commands.iter().filter_map(task).collect()
}

async fn a_task_that_the_runtime_never_got_is_given_again_and_one_with_secrets_fails(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    let mut with_secrets = new_task("secret");
    with_secrets["task"]["secrets"] = json!([{ "match": "all", "fields": { "key": GIVEN } }]);
    with_secrets["task"]["prompt"] = json!(format!("use {GIVEN}"));
    for task in [new_task("applied"), new_task("plain"), with_secrets] {
        gateway.command(&session, task).await;
    }
    let given = opened.commands().await;
    assert_eq!(tasks(&given), ["applied", "plain", "secret"]);
    gateway.killed_and_risen().await;
    assert!(opened.back(&gateway, given[0].number).await.secrets_expected);
    announce(&mut opened, Vec::new(), &[]).await;
    let again = opened.commands().await;
    assert_eq!(tasks(&again), ["plain"]);
    let RuntimeCommand::NewTask { task } = &again.last().unwrap().command else { panic!("a task is the last one") };
    assert_eq!(task.prompt.as_deref(), Some("do plain"));
    let errors = gateway.logged(&session, "error").await;
    assert_eq!((errors.len(), &errors[0]["taskId"], &errors[0]["code"]), (1, &json!("secret"), &json!("secrets_lost")));
    let (_, failed) = gateway.get(&format!("/v1/sessions/{session}/tasks/secret")).await;
    assert_eq!(failed["task"]["status"], "failed");
    assert!(!gateway.everything_kept().await.contains(GIVEN));
}

async fn a_task_that_is_only_in_the_record_is_gone(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    gateway.dies_before(Moment::Append, 0);
    let (url, http) = (format!("{}/v1/sessions/{session}/commands", gateway.url), gateway.http.clone());
    let asked = tokio::spawn(async move { http.post(url).json(&new_task("t")).send().await });
    gateway.until_it_dies().await;
    gateway.killed_and_risen().await;
    assert!(asked.await.unwrap().is_err(), "nobody was told that it was taken");
    opened.back(&gateway, 0).await;
    assert_eq!(tasks(&opened.commands().await), NO_TASK);
    assert_eq!(gateway.state(&session).await["tasks"], json!([]));
    // Its name is free.
    gateway.command(&session, new_task("t")).await;
    assert_eq!(tasks(&opened.commands().await), ["t"]);
}

const NO_TASK: [String; 0] = [];

async fn what_waits_for_the_runtime_outlives_a_second_restart(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    for task in ["running", "waiting"] {
        gateway.command(&session, new_task(task)).await;
    }
    let given = opened.commands().await;
    opened.publish("task_started", json!({ "taskId": "running" })).await;
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    gateway.answered(&session, "g", json!({ "choice": "yes" })).await;
    gateway.killed_and_risen().await;
    opened.back(&gateway, given[0].number).await;
    // Of what it is told now it applies only the first.
    let again = opened.commands().await;
    assert_eq!(tasks(&again), ["waiting"]);
    assert!(matches!(again[0].command, RuntimeCommand::Resume), "{again:?}");
    gateway.killed_and_risen().await;
    opened.back(&gateway, again[0].number).await;
    let third = opened.commands().await;
    assert_eq!(tasks(&third), ["waiting"]);
    assert_eq!(third.iter().filter(|command| matches!(command.command, RuntimeCommand::Guardrail(_))).count(), 1);
}

async fn a_taken_answer_whose_record_was_not_written_stays_taken_over_a_second_death(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    gateway.answered(&session, "g", json!({ "choice": "yes" })).await;
    let told = opened.last_command().await;
    gateway.dies(Death::Before(Moment::Put(RecordKind::Guardrail)), 0);
    let taken = json!({ "guardrailId": "g", "revision": 1 });
    opened.runtime.send_event(&session, "guardrail_taken", taken).await;
    wait_until("it has died", || async { gateway.has_died() }).await;
    gateway.killed_and_risen().await;
    // The session's record passes by the event.
    opened.back(&gateway, told).await;
    gateway.killed_and_risen().await;
    let (_, found) = gateway.get(&format!("/v1/guardrails/g?session={session}")).await;
    assert_eq!(found["guardrail"]["state"], "taken", "{found}");
}

async fn a_question_whose_record_was_not_written_stays_open_over_a_second_death(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    gateway.dies(Death::Before(Moment::Put(RecordKind::Guardrail)), 0);
    let question = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": "g" });
    opened.runtime.send_event(&session, "guardrail_trigger", question).await;
    wait_until("it has died", || async { gateway.has_died() }).await;
    gateway.killed_and_risen().await;
    opened.back(&gateway, 0).await;
    gateway.killed_and_risen().await;
    let (_, found) = gateway.get(&format!("/v1/guardrails/g?session={session}")).await;
    assert_eq!((&found["guardrail"]["state"], &found["guardrail"]["value"]), (&json!("open"), &json!("May I?")));
}

async fn a_log_whose_session_has_no_record_is_gone_after_a_restart(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let kept = gateway.opened(OpenSession::default()).await.session;
    let engine = |gateway: &Mortal| Arc::clone(&gateway.life.as_ref().expect("it lives").lifeline.inner);
    engine(&gateway).create(SessionId::random(), onlooker::ids::random_epoch(), 1).await.unwrap();
    assert_eq!(engine(&gateway).logs().len(), 2);
    gateway.killed_and_risen().await;
    assert_eq!(gateway.state(&kept).await["status"], "orphaned");
    let logs: Vec<String> = engine(&gateway).logs().iter().map(ToString::to_string).collect();
    assert_eq!(logs, [kept]);
}

async fn a_task_for_a_session_whose_secrets_are_lost_waits_for_its_runtime(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let secrets = secrets("shop.example", &[("password", "correct horse battery")]);
    let mut opened = gateway.opened(OpenSession { secrets: secrets.clone(), ..OpenSession::default() }).await;
    let session = opened.session.clone();
    gateway.killed_and_risen().await;
    let mut task = new_task("t");
    task["task"]["prompt"] = json!("Log in with correct horse battery");
    let path = format!("/v1/sessions/{session}/commands");
    let (status, refused) = gateway.post(&path, task.clone()).await;
    assert_eq!((status, &refused["error"]), (503, &json!("runtime_away")), "nobody could redact it");
    opened.back(&gateway, 0).await;
    let announce = |secrets| RuntimeToGateway::Secrets { session: session.clone(), secrets, values: Vec::new() };
    let wrong = vec![SecretEntry { matches: String::new(), fields: Default::default() }];
    opened.runtime.send(announce(wrong)).await;
    let refused = opened.runtime.until("a word on what does not fit", |frame| match frame {
        GatewayToRuntime::Error { refusal, .. } => Some(refusal.code),
        _ => None,
    });
    assert_eq!(refused.await, Code::Invalid);
    opened.runtime.send(announce(secrets)).await;
    opened.publish("x.after", json!({})).await;
    assert_eq!(gateway.post(&path, task).await.0, 200);
    assert!(!gateway.everything_kept().await.contains("correct horse"));
}

async fn commands_get_higher_numbers_than_before_and_reach_the_runtime_once(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    gateway.command(&session, new_task("t")).await;
    let mut last = opened.last_command().await;
    opened.publish("task_started", json!({ "taskId": "t" })).await;
    for life in 0..3 {
        gateway.killed_and_risen().await;
        gateway.command(&session, new_task(&format!("life{life}"))).await;
        opened.back(&gateway, last).await;
        let given = opened.commands().await;
        assert_eq!(tasks(&given), [format!("life{life}")], "once");
        assert!(given.iter().all(|command| command.number > last), "{given:?} after {last}");
        assert!(given.is_sorted_by(|a, b| a.number < b.number));
        last = given.last().unwrap().number;
    }
    opened.runtime.send(RuntimeToGateway::CommandsDone { session: session.clone(), commands: last }).await;
    opened.back(&gateway, last).await;
    assert_eq!(opened.commands().await, []);
}

// --- notices ---------------------------------------------------------------------------------------------------------

/// A gateway with a webhook that tells somebody at once where nobody looks.
async fn reaching(ground: Ground) -> (Mortal, Receiver) {
    let receiver = Receiver::start().await;
    let config = with_webhook(calm(Duration::ZERO, LONG), &receiver);
    (Mortal::begin(ground, config).await, receiver)
}

async fn until_confirmed(gateway: &Mortal, session: &str, id: &str) {
    let confirmed = || async { gateway.why(session, id).await["notices"][0]["state"] == "confirmed" };
    wait_until("the notice is confirmed", confirmed).await;
}

async fn a_confirmed_notice_is_not_sent_again_and_a_queued_one_is_sent(ground: Ground) {
    let (mut gateway, receiver) = reaching(ground).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("first", json!({})).await;
    until_confirmed(&gateway, &session, "first").await;
    gateway.dies_before(Moment::Put(RecordKind::Notice), 1);
    opened.runtime.send_event(&session, "guardrail_trigger", question("second")).await;
    gateway.until_it_dies().await;
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    gateway.killed_and_risen().await;
    until_confirmed(&gateway, &session, "second").await;
    let got = receiver.of("guardrail.opened");
    let asked: Vec<&Value> = got.iter().map(|got| &got.body["guardrail"]["guardrailId"]).collect();
    assert_eq!(asked, ["first", "second"]);
    assert_eq!(got[1].body.get("repeat"), None);
    assert_eq!(gateway.metric("onlooker_guardrails_unreached").await, 0.0);
}

fn question(id: &str) -> Value {
    json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id })
}

async fn a_notice_that_was_being_sent_is_sent_once_more_as_a_repeat(ground: Ground) {
    let (mut gateway, receiver) = reaching(ground).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    // Queued and leased: what came of it is never written.
    gateway.dies_before(Moment::Put(RecordKind::Notice), 2);
    opened.runtime.send_event(&session, "guardrail_trigger", question("g")).await;
    gateway.until_it_dies().await;
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    gateway.killed_and_risen().await;
    // A lease runs for half a minute.
    let repeated = tokio::time::timeout(LONG, async {
        while receiver.of("guardrail.opened").len() < 2 {
            tokio::time::sleep(milliseconds(50)).await;
        }
    });
    repeated.await.expect("it is sent again");
    until_confirmed(&gateway, &session, "g").await;
    let got = receiver.of("guardrail.opened");
    assert_eq!((got.len(), got[0].id()), (2, got[1].id()));
    assert_eq!((got[0].body.get("repeat"), &got[1].body["repeat"]), (None, &json!(true)));
}

async fn the_card_of_a_question_that_closed_is_told_after_the_restart(ground: Ground) {
    let (mut gateway, receiver) = reaching(ground).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    until_confirmed(&gateway, &session, "g").await;
    gateway.dies_before(Moment::Put(RecordKind::Notice), 0);
    let (url, http) = (format!("{}/v1/guardrails/g/answer", gateway.url), gateway.http.clone());
    let answer = json!({ "revision": 1, "idempotencyKey": "k", "action": "submit", "choice": "yes" });
    let answering = tokio::spawn(async move { http.post(url).json(&answer).send().await });
    gateway.until_it_dies().await;
    gateway.killed_and_risen().await;
    let _ = answering.await;
    let told = receiver.wait_for("guardrail.resolved", 1).await;
    assert_eq!(told[0].body["guardrail"]["choice"], "yes");
    gateway.killed_and_risen().await;
    opened.back(&gateway, 0).await;
    opened.ask("h", json!({})).await;
    receiver.wait_for("guardrail.opened", 2).await;
    assert_eq!(receiver.of("guardrail.resolved").len(), 1, "once");
}

async fn watching(gateway: &Mortal, session: &str) -> Kept {
    let mut watcher = gateway.subscriber().await;
    watcher.watch(session).await;
    watcher.live().await;
    watcher.keep()
}

const COVERED: &str = "has demonstrably got the question";

async fn nobody_is_contacted_when_the_watchers_are_back_within_the_grace_after_the_start(ground: Ground) {
    let receiver = Receiver::start().await;
    let mut gateway = Mortal::begin(ground, with_webhook(calm(LONG, LONG), &receiver)).await;
    let mut seen = gateway.opened(OpenSession::default()).await;
    let mut alone = gateway.opened(OpenSession::default()).await;
    let watchers = [watching(&gateway, &seen.session).await, watching(&gateway, &alone.session).await];
    for opened in [&mut seen, &mut alone] {
        opened.ask("g", json!({})).await;
        gateway.wait_why(&opened.session, "g", COVERED).await;
    }
    gateway.config.times.start_grace = Duration::from_secs(2);
    gateway.killed_and_risen().await;
    drop(watchers);
    let back = watching(&gateway, &seen.session).await;
    gateway.wait_why(&seen.session, "g", COVERED).await;
    let got = receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(got[0].body["session"], alone.session.as_str(), "whom nobody watches");
    gateway.wait_why(&seen.session, "g", COVERED).await;
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    drop(back);
}

async fn a_claim_by_rest_holds_reach_out_back_after_the_restart_and_one_by_a_connection_does_not(ground: Ground) {
    let receiver = Receiver::start().await;
    let mut gateway = Mortal::begin(ground, with_webhook(calm(LONG, LONG), &receiver)).await;
    let mut stored = gateway.opened(OpenSession::default()).await;
    let mut connected = gateway.opened(OpenSession::default()).await;
    let mut claimant = gateway.subscriber().await;
    let watchers = [watching(&gateway, &stored.session).await, watching(&gateway, &connected.session).await];
    for opened in [&mut stored, &mut connected] {
        opened.ask("g", json!({})).await;
        gateway.wait_why(&opened.session, "g", COVERED).await;
    }
    let claim = json!({ "session": stored.session, "revision": 1, "for": 120_000 });
    let (status, claimed) = gateway.post("/v1/guardrails/g/claim", claim).await;
    assert_eq!(status, 200, "{claimed}");
    let claim = json!({ "type": "claim", "session": connected.session, "guardrailId": "g", "revision": 1 });
    claimant.request(claim).await.unwrap();
    gateway.killed_and_risen().await;
    drop(watchers);
    let got = receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(got[0].body["session"], connected.session.as_str());
    gateway.wait_why(&stored.session, "g", "has claimed the guardrail").await;
    assert_eq!(gateway.guardrail(&stored.session, "g").await["claim"], claimed["guardrail"]["claim"]);
    assert_eq!(gateway.guardrail(&connected.session, "g").await["claim"], Value::Null);
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
}

async fn a_result_that_nobody_had_seen_is_sent_and_one_that_was_seen_is_not(ground: Ground) {
    let (mut gateway, receiver) = reaching(ground).await;
    let full = || OpenSession { reach_out_mode: ReachOutMode::Full, ..OpenSession::default() };
    let (mut seen, mut unseen) = (gateway.opened(full()).await, gateway.opened(full()).await);
    for opened in [&mut seen, &mut unseen] {
        gateway.command(&opened.session, new_task("t")).await;
        opened.publish("task_started", json!({ "taskId": "t" })).await;
    }
    let watcher = watching(&gateway, &seen.session).await;
    seen.publish("task_completed", json!({ "message": "seen" })).await;
    let kept = || async {
        let kept = gateway.everything_kept().await;
        let record = kept.lines().find(|line| line.contains("Session") && line.contains(&seen.session)).unwrap();
        record.contains(r#""message":"seen""#) && !record.contains(r#""results""#)
    };
    wait_until("it is kept that the result was seen", kept).await;
    gateway.dies_before(Moment::Put(RecordKind::Notice), 0);
    unseen.publish("task_completed", json!({ "message": "unseen" })).await;
    gateway.until_it_dies().await;
    gateway.killed_and_risen().await;
    drop(watcher);
    let got = receiver.wait_for("task.completed", 1).await;
    assert_eq!(
        (&got[0].body["session"], &got[0].body["result"]["message"]),
        (&json!(unseen.session), &json!("unseen"))
    );
    // Whatever else would be sent would have been sent with a question that follows.
    seen.back(&gateway, 9).await;
    seen.ask("g", json!({})).await;
    receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(receiver.of("task.completed").len(), 1);
}

// --- task webhooks ---------------------------------------------------------------------------------------------------

async fn open_hearted(ground: Ground) -> Mortal {
    let mut config = quick();
    config.webrun.private_webhooks = true;
    Mortal::begin(ground, config).await
}

/// A task with a webhook, begun.
async fn with_task_webhook(gateway: &Mortal, opened: &mut Opened, id: &str, url: &str, auth: Option<&str>) {
    let mut webhook = json!({ "name": "mine", "url": url, "submittedData": "full_response" });
    webhook["auth"] = json!(auth);
    let task = json!({ "taskId": id, "prompt": "do it", "webhook": webhook, "terminateOnCompletion": id == "last" });
    gateway.command(&opened.session, json!({ "command": "new_task", "task": task })).await;
    opened.publish("task_started", json!({ "taskId": id })).await;
}

async fn until_webhook_counted(gateway: &Mortal, outcome: &str) {
    let name = format!("onlooker_task_webhooks_total{{outcome=\"{outcome}\"}}");
    wait_until(outcome, || async { gateway.metric(&name).await == 1.0 }).await;
}

async fn a_task_webhook_that_was_due_is_sent_once_by_the_next_gateway(ground: Ground) {
    let receiver = Receiver::start().await;
    let mut gateway = open_hearted(ground).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    with_task_webhook(&gateway, &mut opened, "first", &receiver.url, None).await;
    gateway.dies_before(Moment::Put(RecordKind::Session), 0);
    opened.runtime.send_event(&opened.session, "task_completed", json!({ "taskId": "first", "message": "1" })).await;
    gateway.until_it_dies().await;
    assert_eq!(receiver.got().len(), 0, "it is recorded before it leaves");
    gateway.killed_and_risen().await;
    let got = receiver.wait_for("task_completed", 1).await;
    assert_eq!((&got[0].body["taskId"], &got[0].body["data"]["message"]), (&json!("first"), &json!("1")));
    until_webhook_counted(&gateway, "delivered").await;
    // The end of its session is no hindrance.
    opened.back(&gateway, 9).await;
    with_task_webhook(&gateway, &mut opened, "last", &receiver.url, None).await;
    gateway.dies(Death::With(Moment::Append), 1);
    opened.runtime.send_event(&opened.session, "task_completed", json!({ "taskId": "last", "message": "2" })).await;
    gateway.until_it_dies().await;
    gateway.killed_and_risen().await;
    let got = receiver.wait_for("task_completed", 2).await;
    assert_eq!((&got[1].body["taskId"], &got[1].body["data"]["message"]), (&json!("last"), &json!("2")));
    until_webhook_counted(&gateway, "delivered").await;
    let session = opened.session.clone();
    let settled = || async {
        let kept = gateway.everything_kept().await;
        kept.lines().any(|line| line.contains(&session) && line.contains("Session") && !line.contains("submittedData"))
    };
    wait_until("it is kept that nothing is due", settled).await;
    gateway.stopped_and_risen().await;
    // What would be sent again would be sent before what follows.
    let mut other = gateway.opened(OpenSession::default()).await;
    with_task_webhook(&gateway, &mut other, "other", &receiver.url, None).await;
    other.publish("task_completed", json!({ "taskId": "other" })).await;
    let got = receiver.wait_for("task_completed", 3).await;
    assert_eq!((got.len(), &got[2].body["taskId"]), (3, &json!("other")));
}

async fn a_task_webhook_that_was_being_sent_is_not_sent_again(ground: Ground) {
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", receiver.local_addr().unwrap());
    let mut gateway = open_hearted(ground).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    with_task_webhook(&gateway, &mut opened, "t", &url, None).await;
    opened.publish("task_completed", json!({ "taskId": "t" })).await;
    // It has arrived, and is not answered.
    let unanswered = tokio::time::timeout(BOUND, receiver.accept()).await.expect("it comes").unwrap();
    gateway.killed_and_risen().await;
    until_webhook_counted(&gateway, "unknown").await;
    drop(unanswered);
    gateway.killed_and_risen().await;
    opened.back(&gateway, 9).await;
    with_task_webhook(&gateway, &mut opened, "next", &url, None).await;
    opened.publish("task_completed", json!({ "taskId": "next" })).await;
    let (mut stream, _) = tokio::time::timeout(BOUND, receiver.accept()).await.expect("it comes").unwrap();
    let (mut request, mut piece) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"}") {
        let read = tokio::time::timeout(BOUND, tokio::io::AsyncReadExt::read(&mut stream, &mut piece)).await;
        request.extend_from_slice(&piece[..read.expect("it comes").unwrap()]);
    }
    let request = String::from_utf8(request).unwrap();
    assert!(request.contains(r#""taskId":"next""#), "the first to come after the kill: {request}");
}

async fn a_task_webhook_whose_authorization_was_lost_is_not_sent_without_it(ground: Ground) {
    let receiver = Receiver::start().await;
    let mut gateway = open_hearted(ground).await;
    let (mut first, mut second) =
        (gateway.opened(OpenSession::default()).await, gateway.opened(OpenSession::default()).await);
    let auth = "Bearer cnry-4711-auth";
    let userinfo = receiver.url.replace("http://", "http://me:cnry-4711-user@");
    with_task_webhook(&gateway, &mut first, "t", &receiver.url, Some(auth)).await;
    with_task_webhook(&gateway, &mut second, "t", &userinfo, None).await;
    let kept = gateway.everything_kept().await;
    assert!(kept.contains(r#""submittedData":"full_response""#) && !kept.contains("cnry-4711"), "{kept}");
    gateway.killed_and_risen().await;
    for (opened, count) in [(&mut first, 1.0), (&mut second, 2.0)] {
        opened.back(&gateway, 9).await;
        announce(opened, secrets("all", &[("token", "cnry-4711-auth")]), &["cnry-4711-user"]).await;
        opened.publish("task_completed", json!({ "taskId": "t" })).await;
        let lost = "onlooker_task_webhooks_total{outcome=\"secrets_lost\"}";
        wait_until("it is counted as lost", || async { gateway.metric(lost).await == count }).await;
    }
    with_task_webhook(&gateway, &mut first, "u", &receiver.url, Some(auth)).await;
    first.publish("task_completed", json!({ "taskId": "u" })).await;
    let got = receiver.wait_for("task_completed", 1).await;
    assert_eq!((got.len(), &got[0].body["taskId"]), (1, &json!("u")));
    assert_eq!(got[0].headers["authorization"], auth);
}

// --- sessions that nobody has taken, control, ends -------------------------------------------------------------------

/// A session with a task that was offered to a runtime, which has not taken it.
async fn offered(gateway: &Mortal) -> Opened {
    let mut runtime = gateway.runtime().await;
    let (status, created) = gateway.post("/v1/sessions", json!({ "task": { "taskId": "t" } })).await;
    assert_eq!(status, 201, "{created}");
    let (session, claim) = assigned(&mut runtime).await;
    Opened { runtime, session, claim }
}

async fn assigned(runtime: &mut Runtime) -> (String, String) {
    let assigned = |frame: &GatewayToRuntime| match frame {
        GatewayToRuntime::Assigned { session, claim, .. } => Some((session.clone(), claim.clone())),
        _ => None,
    };
    runtime.until("assigned", assigned).await
}

async fn an_offered_session_can_be_claimed_with_the_token_from_before(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = offered(&gateway).await;
    gateway.killed_and_risen().await;
    assert_eq!(gateway.state(&opened.session).await["status"], "pending");
    assert_eq!(opened.back(&gateway, 0).await.expected, 1);
    assert_eq!(tasks(&opened.commands().await), ["t"]);
    assert_eq!(gateway.logged(&opened.session, "runtime_connected").await.len(), 1);
    assert_eq!(gateway.state(&opened.session).await["status"], "active");
}

async fn an_offered_session_that_nobody_claims_is_offered_to_another_runtime(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = offered(&gateway).await;
    gateway.config.times.offer = milliseconds(200);
    gateway.killed_and_risen().await;
    let mut other = Runtime::connect(&gateway, "other", 1, None).await;
    let (session, claim) = assigned(&mut other).await;
    assert_eq!(session, opened.session);
    let old = std::mem::replace(&mut opened.claim, claim);
    opened.runtime = gateway.runtime().await;
    let late = onlooker_protocol::runtime::Reclaim { session: session.clone(), claim: old, commands: 0 };
    opened.runtime.send(RuntimeToGateway::Claim(late)).await;
    assert_eq!(opened.runtime.refusal(&session).await.code, Code::WrongClaim, "it is another's by now");
    opened.runtime = other;
    opened.runtime.reclaim(&session, &opened.claim, 0).await;
    assert_eq!(tasks(&opened.commands().await), ["t"]);
    assert_eq!(gateway.state(&session).await["runtime"]["name"], "other");
}

async fn an_offered_session_ends_when_no_runtime_has_room_for_it(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let opened = offered(&gateway).await;
    (gateway.config.times.offer, gateway.config.times.runtime_grace) = (milliseconds(50), milliseconds(300));
    gateway.killed_and_risen().await;
    assert_eq!(gateway.until_status(&opened.session, "ended").await["reason"], "no_runtime");
}

async fn control_that_was_held_is_released_and_the_task_goes_on(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    gateway.command(&session, new_task("t")).await;
    opened.publish("task_started", json!({ "taskId": "t" })).await;
    gateway.command(&session, json!({ "command": "take_control" })).await;
    let applied = opened.last_command().await;
    assert_eq!(gateway.state(&session).await["tasks"][0]["status"], "paused");
    gateway.killed_and_risen().await;
    let state = gateway.state(&session).await;
    assert_eq!((&state["control"], &state["tasks"][0]["status"]), (&Value::Null, &json!("running")));
    assert_eq!(gateway.logged(&session, "control_released").await[0]["reason"], "restart");
    opened.back(&gateway, applied).await;
    let given = opened.commands().await;
    assert!(given.iter().any(|command| matches!(command.command, RuntimeCommand::ReleaseControl)), "{given:?}");
    assert!(given.iter().any(|command| matches!(command.command, RuntimeCommand::Resume)), "{given:?}");

    // Who paused it by hand finds it paused.
    gateway.command(&session, json!({ "command": "pause" })).await;
    let applied = opened.last_command().await;
    gateway.killed_and_risen().await;
    assert_eq!(gateway.state(&session).await["tasks"][0]["status"], "paused");
    opened.back(&gateway, applied).await;
    let given = opened.commands().await;
    assert!(given.iter().all(|command| !matches!(command.command, RuntimeCommand::Resume)), "{given:?}");
}

async fn an_ended_session_is_readable_until_its_retention_is_over(ground: Ground) {
    let retention = Duration::from_secs(3);
    let mut gateway = Mortal::begin(ground, quick()).await;
    gateway.config.times.retention = retention;
    gateway.killed_and_risen().await;
    let mut opened = gateway.opened(labelled()).await;
    opened.publish("x.mine", json!({ "is": 1 })).await;
    let before_its_end = std::time::Instant::now();
    gateway.command(&opened.session, json!({ "command": "terminate" })).await;
    let (before, log) = (gateway.state(&opened.session).await, gateway.log(&opened.session).await);
    gateway.killed_and_risen().await;
    assert_eq!(gateway.state(&opened.session).await, before);
    assert_eq!(gateway.log(&opened.session).await, log, "a restart says nothing in it");
    let (session, claim) = (opened.session.clone(), opened.claim.clone());
    opened.runtime = gateway.runtime().await;
    let late = onlooker_protocol::runtime::Reclaim { session: session.clone(), claim, commands: 0 };
    opened.runtime.send(RuntimeToGateway::Claim(late)).await;
    assert_eq!(opened.runtime.refusal(&session).await.code, Code::SessionEnded);
    tokio::time::sleep(milliseconds(1500)).await;
    gateway.killed_and_risen().await;
    let risen = std::time::Instant::now();
    let path = format!("/v1/sessions/{session}");
    wait_until("it is forgotten", || async { gateway.get(&path).await.0 == 404 }).await;
    assert!(before_its_end.elapsed() >= retention);
    assert!(risen.elapsed() < retention, "its retention began with its end, not with the start: {:?}", risen.elapsed());
    wait_until("nothing is left", || async { !gateway.everything_kept().await.contains(&session) }).await;
}

async fn an_ended_session_makes_room_for_others(ground: Ground) {
    let mut config = quick();
    config.limits.sessions = 5;
    let mut gateway = Mortal::begin(ground, config).await;
    let mut ended = Vec::new();
    for _ in 0..5 {
        let opened = gateway.opened(OpenSession::default()).await;
        gateway.command(&opened.session, json!({ "command": "terminate" })).await;
        tokio::time::sleep(milliseconds(5)).await;
        ended.push(opened.session);
    }
    gateway.killed_and_risen().await;
    let opened = gateway.opened(OpenSession::default()).await;
    let gone = || async { gateway.get(&format!("/v1/sessions/{}", ended[0])).await.0 == 404 };
    wait_until("the one that ended first is gone", gone).await;
    assert_eq!(gateway.state(&ended[1]).await["status"], "ended");
    assert_eq!(gateway.state(&opened.session).await["status"], "active");
}

async fn the_last_picture_is_there_and_one_taken_under_control_is_not(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.runtime.publish_picture(&session, b"for everybody").await;
    let kept = || async { gateway.everything_kept().await.contains("for everybody") };
    wait_until("it is kept", kept).await;
    let shown = gateway.state(&session).await["picture"].clone();
    let mut private = gateway.opened(OpenSession::default()).await;
    for opened in [&mut opened, &mut private] {
        gateway.command(&opened.session, json!({ "command": "take_control" })).await;
        opened.runtime.publish_picture(&opened.session, b"for one alone").await;
    }
    gateway.killed_and_risen().await;
    assert_eq!(gateway.state(&session).await["picture"]["id"], shown["id"]);
    assert_eq!(gateway.state(&session).await["picture"]["size"], shown["size"]);
    let path = format!("{}/v1/sessions/{session}/pictures/{}", gateway.url, shown["id"].as_str().unwrap());
    let response = gateway.http.get(path).send().await.unwrap();
    assert_eq!((response.status().as_u16(), &*response.bytes().await.unwrap()), (200, &b"for everybody"[..]));
    let mut follower = gateway.subscriber().await;
    let pictures = onlooker_protocol::subscriber::PictureLevel::Full;
    follower.subscribe(Subscribe { session: Some(session.clone()), pictures, ..follow() }).await;
    loop {
        if let Received::Picture(header, bytes) = follower.receive().await {
            assert_eq!((header.id.as_str(), &*bytes), (shown["id"].as_str().unwrap(), &b"for everybody"[..]));
            break;
        }
    }
    assert_eq!(gateway.state(&private.session).await["picture"], Value::Null, "nobody could get it");
    assert!(!gateway.everything_kept().await.contains("for one alone"));
}

async fn a_token_for_browsers_is_valid_after_the_restart(ground: Ground) {
    let all = [Scope::Publish, Scope::Watch, Scope::Answer, Scope::Control, Scope::Admin];
    let mut gateway = Mortal::begin(ground, with_keys(quick(), &[("admin", &all)])).await;
    let issue = gateway.http.post(format!("{}/v1/tokens", gateway.url)).bearer_auth("key-admin");
    let (status, issued) = gateway.request(issue.json(&json!({ "scopes": ["watch"] }))).await;
    assert!(status < 300, "{issued}");
    let token = issued["token"].as_str().unwrap().to_owned();
    gateway.killed_and_risen().await;
    let listed = |token: String| gateway.http.get(format!("{}/v1/sessions", gateway.url)).bearer_auth(token);
    assert_eq!(gateway.request(listed(token.clone())).await.0, 200);
    let (front, last) = token.split_at(token.len() - 1);
    let other = if last == "A" { "B" } else { "A" };
    assert_eq!(gateway.request(listed(format!("{front}{other}"))).await.0, 401, "not just any");
}

async fn a_runtime_over_http_announces_its_secrets_again(ground: Ground) {
    let mut gateway = Mortal::begin(ground, quick()).await;
    let secrets = json!([{ "match": "shop.example", "fields": { "password": "correct horse battery" } }]);
    let (status, created) = gateway.post("/v1/sessions", json!({ "runtime": "self", "secrets": secrets })).await;
    assert_eq!(status, 201, "{created}");
    let (session, claim) = (created["session"].as_str().unwrap().to_owned(), created["claim"].as_str().unwrap());
    let ask = async |gateway: &Mortal, what: &str, body: Value| {
        let url = format!("{}/v1/sessions/{session}/{what}", gateway.url);
        gateway.request(gateway.http.post(url).header("onlooker-claim", claim).json(&body)).await
    };
    gateway.killed_and_risen().await;
    let event = json!({ "events": [{ "n": 1, "type": "x.echo", "data": { "said": "correct horse battery" } }] });
    let (status, refused) = ask(&gateway, "events", event.clone()).await;
    assert_eq!((status, &refused["error"]), (409, &json!("secrets_expected")));
    assert_eq!(ask(&gateway, "secrets", json!({ "secrets": secrets })).await.0, 200);
    assert_eq!(ask(&gateway, "events", event).await.0, 200);
    assert_eq!(gateway.logged(&session, "x.echo").await.len(), 1);
    assert!(!gateway.everything_kept().await.contains("correct horse"));
}

/// What an engine says that was told to leave syncing to the system, after the power went.
async fn after_a_machine_that_may_have_lost_its_last_writes_the_log_begins_anew_and_everybody_is_told(ground: Ground) {
    let before = Before { sole_user: true, may_have_lost: true };
    let inner = Arc::clone(&ground.open);
    let after = Ground { open: Arc::new(move || Arc::new(Inner(inner(), Some(before)))), ..ground.clone() };
    let mut gateway = Mortal::begin(ground, quick()).await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    let seen = opened.publish("x.last", json!({})).await;
    gateway.ground = after;
    gateway.killed_and_risen().await;

    let mut follower = gateway.subscriber().await;
    let since = Since::After(seen);
    follower.subscribe(Subscribe { session: Some(session.clone()), since, ..follow() }).await;
    let live = follower.live().await;
    assert_ne!(live.epoch, seen.epoch, "no position of before names anything else now");
    let gap = |frame: &GatewayToSubscriber| matches!(frame, GatewayToSubscriber::Gap { .. });
    assert_eq!(follower.seen.iter().filter(|frame| gap(frame)).count(), 1);
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    let first = &page["events"][0]["event"];
    assert_eq!((&first["type"], &first["data"]["reason"]), (&json!("epoch_changed"), &json!("restart")));
    assert_eq!(opened.back(&gateway, 0).await.expected, 3);
    gateway.answered(&session, "g", json!({ "choice": "yes" })).await;
    assert_eq!(opened.runtime.outcome().await.choice.as_deref(), Some("yes"));
    opened.publish("x.next", json!({})).await;
    follower.event("x.next").await;
}

/// Two gateways on one engine, as nobody should have them: the later one has the session.
#[tokio::test]
async fn an_owner_whose_log_is_another_owners_lets_go_of_it_and_removes_nothing() {
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(bounds(&quick())));
    let first = TestGateway::on(quick(), Arc::clone(&engine)).await;
    let mut runtime = first.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let second = TestGateway::on(quick(), Arc::clone(&engine)).await;
    let path = format!("/v1/sessions/{session}");
    wait_until("the second has it", || async { second.get(&path).await.1["state"]["status"] == "orphaned" }).await;
    runtime.send_event(&session, "x.late", json!({})).await;
    wait_until("the first lets go", || async { first.get(&path).await.0 == 404 }).await;
    first.stop().await;
    assert_eq!(second.get(&path).await.1["state"]["status"], "orphaned");
    let (_, page) = second.get(&format!("{path}/events?since=start")).await;
    assert_eq!(page["events"][0]["event"]["type"], "session_started", "{page}");
    second.stop().await;
}

// --- an engine that does not answer ----------------------------------------------------------------------------------

async fn while_the_engine_is_unavailable_sessions_are_still_shown(ground: Ground) {
    let faults = Arc::new(Faults::default());
    let inner = Inner((ground.open)(), None);
    let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(inner, Arc::clone(&faults), 7));
    let ground = Ground { open: Arc::new(move || Arc::clone(&engine)), ..ground };
    let mut gateway = Mortal::begin(ground, quick()).await;
    gateway.killed_and_risen().await;
    let mut opened = gateway.opened(OpenSession::default()).await;
    let session = opened.session.clone();
    opened.ask("g", json!({ "choices": [{ "id": "yes" }] })).await;
    faults.failing_per_mille.store(1000, Ordering::SeqCst);
    let ask = |path: &str, body: Option<Value>| {
        let url = format!("{}{path}", gateway.url);
        let request = body.map_or_else(|| gateway.http.get(&url), |body| gateway.http.post(&url).json(&body));
        tokio::spawn(async move {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.json::<Value>().await.unwrap())
        })
    };
    let answer = json!({ "revision": 1, "idempotencyKey": "k", "action": "submit", "choice": "yes" });
    let answering = ask("/v1/guardrails/g/answer", Some(answer));
    wait_until("the owner waits", || async { gateway.metric("onlooker_engine_retries_total").await > 0.0 }).await;
    let (_, why) = ask(&format!("/v1/guardrails/g/why?session={session}"), None).await.unwrap();
    assert_eq!(why["state"], "open", "what is not written is not shown");
    let pausing = ask(&format!("/v1/sessions/{session}/commands"), Some(new_task("t")));
    for _ in 0..3 {
        let state = gateway.state(&session).await;
        assert_eq!(state["guardrails"][0]["state"], "open", "what is not written is not shown");
        assert_eq!(gateway.logged(&session, "guardrail_trigger").await.len(), 1);
    }
    let mut follower = gateway.subscriber().await;
    follower.subscribe(Subscribe { session: Some(session.clone()), since: Since::Start, ..follow() }).await;
    follower.live().await;
    assert!(!answering.is_finished() && !pausing.is_finished());
    faults.failing_per_mille.store(0, Ordering::SeqCst);
    let (status, answered) = answering.await.unwrap();
    assert_eq!((status, &answered["guardrail"]["state"]), (200, &json!("accepted")), "{answered}");
    assert_eq!(pausing.await.unwrap().0, 200);
    assert_eq!(follower.event("guardrail_resolved").await["choice"], "yes");
    assert_eq!(opened.runtime.outcome().await.choice.as_deref(), Some("yes"));
}

/// An engine behind a pointer, to be wrapped; with a past of its own where one is given.
struct Inner(Arc<dyn Engine>, Option<Before>);

impl Engine for Inner {
    fn create(&self, session: SessionId, epoch: Epoch, term: u64) -> BoxFuture<'_, Result<(), EngineError>> {
        self.0.create(session, epoch, term)
    }

    fn append(&self, session: SessionId, batch: Batch) -> BoxFuture<'_, Result<Head, EngineError>> {
        self.0.append(session, batch)
    }

    fn read(&self, session: SessionId, from: u64, limit: ReadLimit) -> BoxFuture<'_, Result<Vec<Record>, EngineError>> {
        self.0.read(session, from, limit)
    }

    fn head(&self, session: SessionId) -> Result<watch::Receiver<Head>, EngineError> {
        self.0.head(session)
    }

    fn logs(&self) -> Vec<SessionId> {
        self.0.logs()
    }

    fn remove(&self, session: SessionId) -> BoxFuture<'_, Result<(), EngineError>> {
        self.0.remove(session)
    }

    fn put(&self, key: RecordKey, seen: Option<Version>, value: Bytes) -> BoxFuture<'_, Result<Version, EngineError>> {
        self.0.put(key, seen, value)
    }

    fn get(&self, key: RecordKey) -> BoxFuture<'_, Result<Option<(Version, Bytes)>, EngineError>> {
        self.0.get(key)
    }

    fn list(&self, kind: RecordKind, session: Option<SessionId>) -> BoxFuture<'_, Result<Vec<Stored>, EngineError>> {
        self.0.list(kind, session)
    }

    fn stored_bytes(&self) -> u64 {
        self.0.stored_bytes()
    }

    fn before(&self) -> Before {
        self.1.unwrap_or_else(|| self.0.before())
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.0.close()
    }
}

// --- whatever happened before ----------------------------------------------------------------------------------------

/// The record is written when the session begins and then not for seconds: what these runs do is in the log alone.
async fn the_state_after_a_restart_is_the_state_before_it(ground: Ground) {
    for seed in 0..12 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut gateway = Mortal::begin((ground.another)(), quick()).await;
        let mut opened = gateway.opened(labelled()).await;
        let session = opened.session.clone();
        for step in 0..40 {
            random_step(&gateway, &mut opened, &mut random, step).await;
        }
        let before = gateway.state(&session).await;
        let mut guardrails = Vec::new();
        for id in QUESTIONS {
            guardrails.push(gateway.get(&format!("/v1/guardrails/{id}?session={session}")).await);
        }
        gateway.killed_and_risen().await;
        assert_eq!(unchanged(gateway.state(&session).await), unchanged(before), "seed {seed}");
        for (id, before) in QUESTIONS.into_iter().zip(guardrails) {
            let after = gateway.get(&format!("/v1/guardrails/{id}?session={session}")).await;
            assert_eq!(after, before, "seed {seed}");
        }
    }
}

const QUESTIONS: [&str; 3] = ["g0", "g1", "g2"];

async fn random_step(gateway: &Mortal, opened: &mut Opened, random: &mut StdRng, step: u32) {
    let session = opened.session.clone();
    let task = format!("t{}", random.random_range(0..4));
    let question = QUESTIONS[random.random_range(0..3)];
    let revision = random.random_range(1..4);
    // Refusals are as good as anything else: they change nothing, before and after.
    let path = format!("/v1/sessions/{session}/commands");
    let command = |command: Value| gateway.post(&path, command);
    match random.random_range(0..14) {
        0 | 1 => drop(command(new_task(&task)).await),
        2 => drop(command(json!({ "command": "pause" })).await),
        3 => drop(command(json!({ "command": "resume" })).await),
        4 => drop(command(json!({ "command": "stop" })).await),
        5 | 6 => opened.attempt("task_started", json!({ "taskId": task })).await,
        7 => opened.attempt("task_completed", json!({ "message": format!("step {step}") })).await,
        8 => opened.attempt("error", json!({ "error": format!("step {step}"), "code": "failed" })).await,
        9 | 10 => {
            let data = json!({
                "type": "human_input_needed", "value": format!("step {step}?"), "guardrailId": question,
                "revision": revision, "choices": [{ "id": "yes" }, { "id": "no" }],
            });
            opened.attempt("guardrail_trigger", data).await;
        }
        11 => {
            let action =
                if random.random_bool(0.5) { json!({ "choice": "yes" }) } else { json!({ "action": "decline" }) };
            let mut answer = json!({ "revision": revision, "idempotencyKey": format!("k{step}") });
            answer.as_object_mut().unwrap().extend(action.as_object().unwrap().clone());
            drop(gateway.answer(&session, question, answer).await);
        }
        12 => {
            let kind = if random.random_bool(0.5) { "guardrail_taken" } else { "guardrail_withdrawn" };
            opened.attempt(kind, json!({ "guardrailId": question, "revision": revision })).await;
        }
        _ => opened.attempt("sensitive", json!({ "on": random.random_bool(0.5) })).await,
    }
}

impl Opened {
    /// Publishes an event that may be refused.
    async fn attempt(&mut self, kind: &str, data: Value) {
        let n = self.runtime.send_event(&self.session, kind, data).await;
        let session = self.session.clone();
        let taken = |frame: &GatewayToRuntime| match frame {
            GatewayToRuntime::Accepted { session: of, n: up_to, .. } if *of == session && *up_to >= n => Some(true),
            GatewayToRuntime::EventRefused { session: of, .. } if *of == session => Some(false),
            _ => None,
        };
        if !self.runtime.until("a word on the event", taken).await {
            self.runtime.numbers.insert(self.session.clone(), n - 1);
        }
    }
}

// --- wherever it dies ------------------------------------------------------------------------------------------------

/// Gateways that are killed at once.
const AT_ONCE: usize = 16;

/// A runtime plays a task with two questions, and somebody answers them. The gateway dies at each of its writes in
/// turn.
async fn wherever_the_gateway_dies_the_task_is_done_once_and_nobody_is_asked_twice(ground: Ground) {
    let records = [RecordKind::Session, RecordKind::Guardrail, RecordKind::Notice].map(Moment::Put);
    for moment in records.into_iter().chain([Moment::Append]) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        // Until one run after the other comes to its end before its gateway dies.
        let runs = (0..AT_ONCE).map(|_| async {
            loop {
                let run = next.fetch_add(1, Ordering::SeqCst);
                let death = if run.is_multiple_of(2) { Death::Before(moment) } else { Death::With(moment) };
                if !dies_and_goes_on((ground.another)(), death, run / 2).await {
                    return;
                }
            }
        });
        futures::future::join_all(runs).await;
        assert!(next.into_inner() > AT_ONCE + 4, "{moment:?} is written more than once or twice");
    }
}

/// Returns whether the gateway died before the task was done.
async fn dies_and_goes_on(ground: Ground, death: Death, after: usize) -> bool {
    let receiver = Receiver::start().await;
    let mut gateway = Mortal::begin(ground, with_webhook(calm(Duration::ZERO, LONG), &receiver)).await;
    gateway.config.listen.address = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let options = onlooker_runtime::agent::Options {
        gateway: gateway.url.parse().unwrap(),
        token: None,
        name: "replay".to_owned(),
        capacity: 100,
        labels: Default::default(),
    };
    let client = tokio::spawn(onlooker_runtime::run(options, Arc::new(two_questions()), shutdown.clone()));
    let has_runtime = || async { gateway.metric("onlooker_runtimes_opened_total").await > 0.0 };
    wait_until("the runtime is there", has_runtime).await;
    gateway.dies(death, after);
    let http = reqwest::Client::builder().timeout(Duration::from_secs(2)).no_proxy().build().unwrap();
    let mut person = Person { http, url: gateway.url.clone(), session: None };
    let mut died = false;
    let done = tokio::time::timeout(LONG, async {
        while !person.looks_after_it().await {
            if gateway.has_died() {
                died = true;
                gateway.killed_and_risen().await;
            }
            tokio::time::sleep(milliseconds(20)).await;
        }
    });
    done.await.unwrap_or_else(|_| panic!("the task is never done after a death at {death:?} {after}"));
    if gateway.dies_no_more().await {
        died = true;
        gateway.killed_and_risen().await;
    }
    let what = format!("died: {died} at {death:?} {after}");
    check_log(&gateway.log(person.session.as_ref().unwrap()).await, &what);
    check_notices(&receiver.got(), &what);
    assert!(!gateway.everything_kept().await.contains(TYPED), "{what}");
    shutdown.cancel();
    client.await.unwrap().expect("the client ends in peace");
    died
}

fn two_questions() -> onlooker_runtime::replay::Replay {
    use onlooker_runtime::recording::{Line, Recording};
    let line = |kind: &str, data: Value| Line { at: 0.0, kind: kind.to_owned(), data, file: None };
    let ask = |value: &str| json!({ "type": "human_input_needed", "value": value });
    let (mut choose, mut secret) = (ask("Which?"), ask("The code?"));
    choose["choices"] = json!([{ "id": "yes" }]);
    secret["fields"] = json!([{ "id": "otp" }]);
    let lines = vec![
        line("x.first", json!({})),
        line("guardrail_trigger", choose),
        line("x.second", json!({})),
        line("guardrail_trigger", secret),
        line("x.third", json!({ "typed": TYPED })),
        line("task_completed", json!({ "message": "done" })),
    ];
    onlooker_runtime::replay::Replay::new(Recording::new(lines, Default::default()).unwrap(), 0.0)
}

/// Starts the task, and answers what is open until it is done; from a gateway that is not there it expects nothing.
struct Person {
    http: reqwest::Client,
    url: String,
    session: Option<String>,
}

impl Person {
    async fn ask(&self, request: reqwest::RequestBuilder) -> Option<Value> {
        request.send().await.ok()?.error_for_status().ok()?.json().await.ok()
    }

    /// Returns whether it is done.
    async fn looks_after_it(&mut self) -> bool {
        let Some(session) = self.session.clone() else {
            let asked = json!({ "reachOutMode": "full", "task": { "taskId": "t" } });
            let created = self.ask(self.http.post(format!("{}/v1/sessions", self.url)).json(&asked)).await;
            self.session = created.and_then(|created| Some(created["session"].as_str()?.to_owned()));
            return false;
        };
        let open = self.ask(self.http.get(format!("{}/v1/guardrails?state=open", self.url))).await;
        for asked in open.iter().flat_map(|open| open["guardrails"].as_array().unwrap()) {
            let (id, revision) = (asked["guardrailId"].as_str().unwrap(), asked["revision"].as_u64().unwrap());
            let mut answer = json!({ "session": asked["session"], "revision": revision, "action": "submit" });
            answer["idempotencyKey"] = json!(format!("{id}-{revision}"));
            if asked["fields"].is_null() {
                answer["choice"] = json!("yes");
            } else {
                answer["values"] = json!({ "otp": TYPED });
            }
            self.ask(self.http.post(format!("{}/v1/guardrails/{id}/answer", self.url)).json(&answer)).await;
        }
        let state = self.ask(self.http.get(format!("{}/v1/sessions/{session}", self.url))).await;
        state.is_some_and(|view| view["state"]["tasks"][0]["status"] == "completed")
    }
}

#[track_caller]
fn check_log(log: &[Value], what: &str) {
    let of = |kind: &str| log.iter().filter(|frame| frame["event"]["type"] == kind).collect::<Vec<_>>();
    for kind in ["session_started", "task_queued", "task_started", "x.first", "x.second", "x.third", "task_completed"] {
        assert_eq!(of(kind).len(), 1, "{what}: {kind} in {log:#?}");
    }
    let offset =
        |frame: &Value| frame["position"].as_str().unwrap().rsplit(':').next().unwrap().parse::<usize>().unwrap();
    assert!(log.iter().map(offset).eq(0..log.len()), "{what}: {log:#?}");
    // Each question is open, then closed, revision by revision, and what is lost is asked anew at once.
    let mut open = std::collections::BTreeMap::new();
    for frame in log {
        let data = &frame["event"]["data"];
        let (id, revision) = (data["guardrailId"].as_str().unwrap_or_default().to_owned(), data["revision"].as_u64());
        match frame["event"]["type"].as_str().unwrap() {
            "guardrail_trigger" => assert!(open.insert(id, revision) < Some(revision), "{what}: {log:#?}"),
            "guardrail_resolved" => assert_eq!(open.get(&id), Some(&revision), "{what}: {log:#?}"),
            _ => {}
        }
    }
    assert_eq!(open.len(), 2, "{what}: {log:#?}");
    let resolved = |trigger: &Value, outcome: &str| {
        let same = |data: &Value| ["guardrailId", "revision"].iter().all(|name| data[name] == trigger[name]);
        let resolved = of("guardrail_resolved").into_iter().map(|frame| &frame["event"]["data"]);
        resolved.filter(|data| same(data) && data["outcome"] == outcome).count()
    };
    for trigger in of("guardrail_trigger").into_iter().map(|frame| &frame["event"]["data"]) {
        let is_last = open[trigger["guardrailId"].as_str().unwrap()] == trigger["revision"].as_u64();
        let found = (resolved(trigger, "answered"), resolved(trigger, "lost"));
        assert_eq!(found, (1, usize::from(!is_last)), "{what}: {log:#?}");
    }
    let taken: std::collections::BTreeMap<String, Option<u64>> = of("guardrail_taken")
        .iter()
        .map(|frame| &frame["event"]["data"])
        .map(|data| (data["guardrailId"].as_str().unwrap().to_owned(), data["revision"].as_u64()))
        .collect();
    assert_eq!((of("guardrail_taken").len(), &taken), (2, &open), "{what}: {log:#?}");
}

/// At most one of each, and one repeat that says so.
#[track_caller]
fn check_notices(got: &[Delivered], what: &str) {
    let mut seen = std::collections::BTreeSet::new();
    for notice in got {
        let body = &notice.body;
        let guardrail = &body["guardrail"];
        let key = [&body["type"], &body["session"], &body["task"], &guardrail["guardrailId"], &guardrail["revision"]];
        let key = (key.map(Value::to_string), body["repeat"] == true);
        assert!(seen.insert(key), "{what}: {body} came twice");
    }
}
