//! Runtimes: who gets a session, who holds it, and what becomes of it while its runtime is away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::Arc, time::Duration};

use onlooker::config::key::Scope;
use onlooker_protocol::{
    Code,
    runtime::{GatewayToRuntime, OpenSession, PublishedEvent, Reclaim, RuntimeCommand, RuntimeToGateway},
    subscriber::{GapReason, GatewayToSubscriber},
    view::Outcome,
};
use serde_json::{Value, json};

use crate::{doors::add_key, harness::*};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// The next session that a runtime is offered, and its claim token.
async fn offered(runtime: &mut Runtime) -> (String, String) {
    runtime
        .until("assigned", |frame| match frame {
            GatewayToRuntime::Assigned { session, claim, .. } => Some((session.clone(), claim.clone())),
            _ => None,
        })
        .await
}

/// Asks for a session and says nothing more.
async fn send_claim(runtime: &mut Runtime, session: &str, claim: &str, commands: u64) {
    let reclaim = Reclaim { session: session.to_owned(), claim: claim.to_owned(), commands };
    runtime.send(RuntimeToGateway::Claim(reclaim)).await;
}

/// The code with which a session was refused or taken away.
async fn refused(runtime: &mut Runtime, session: &str) -> Code {
    runtime
        .until("a refusal", |frame| match frame {
            GatewayToRuntime::Error { session: Some(named), refusal, .. }
            | GatewayToRuntime::Released { session: named, refusal }
            | GatewayToRuntime::EventRefused { session: named, refusal, .. }
                if named == session =>
            {
                Some(refusal.code)
            }
            _ => None,
        })
        .await
}

async fn create(gateway: &TestGateway, body: Value) -> String {
    let (status, created) = gateway.post("/v1/sessions", body).await;
    assert_eq!(status, 201, "{created}");
    created["session"].as_str().unwrap().to_owned()
}

async fn state(gateway: &TestGateway, session: &str) -> Value {
    gateway.get(&format!("/v1/sessions/{session}")).await.1["state"].take()
}

async fn until_status(gateway: &TestGateway, session: &str, status: &str) {
    let what = format!("the session is {status}");
    wait_until(&what, || async { state(gateway, session).await["status"] == status }).await;
}

/// The types of the session's events, in order.
async fn kinds(gateway: &TestGateway, session: &str) -> Vec<String> {
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    let events = page["events"].as_array().unwrap_or_else(|| panic!("{page}"));
    events.iter().map(|frame| frame["event"]["type"].as_str().unwrap().to_owned()).collect()
}

async fn count_of(gateway: &TestGateway, session: &str, kind: &str) -> usize {
    kinds(gateway, session).await.iter().filter(|one| *one == kind).count()
}

async fn command(gateway: &TestGateway, session: &str, body: Value) -> Value {
    let (status, done) = gateway.post(&format!("/v1/sessions/{session}/commands"), body).await;
    assert_eq!(status, 200, "{done}");
    done
}

fn action(n: u64) -> PublishedEvent {
    PublishedEvent { n, kind: "action".to_owned(), task: None, data: json!({ "name": n.to_string() }), picture: None }
}

/// The next task that a runtime is given.
async fn task_given(runtime: &mut Runtime) -> String {
    runtime
        .command("a task", |command| match command {
            RuntimeCommand::NewTask { task } => task.task_id.clone(),
            _ => None,
        })
        .await
}

/// A session in which a task runs.
async fn running(gateway: &TestGateway, runtime: &mut Runtime, task: Value) -> (String, String) {
    create(gateway, json!({ "task": task })).await;
    let (session, _) = runtime.take_assigned().await;
    let task = task_given(runtime).await;
    runtime.publish(&session, "task_started", json!({ "taskId": task })).await;
    (session, task)
}

// --- who gets a session ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn sessions_go_to_the_runtime_whose_capacity_is_least_used() {
    let gateway = TestGateway::start().await;
    let mut large = Runtime::connect(&gateway, "large", 10, None).await;
    let mut small = Runtime::connect(&gateway, "small", 2, None).await;
    for _ in 0..3 {
        large.open(OpenSession::default()).await;
    }
    // Large has 3 of 10, small 0 of 2, then 1 of 2.
    let first = create(&gateway, json!({})).await;
    assert_eq!(offered(&mut small).await.0, first);
    let second = create(&gateway, json!({})).await;
    assert_eq!(offered(&mut large).await.0, second);
}

#[tokio::test]
async fn without_room_a_session_is_refused_until_a_place_is_free() {
    let gateway = TestGateway::start().await;
    let (status, body) = gateway.post("/v1/sessions", json!({})).await;
    assert_eq!((status, &body["error"]), (503, &json!("no_runtime")));
    let mut runtime = Runtime::connect(&gateway, "one", 1, None).await;
    let session = create(&gateway, json!({})).await;
    runtime.take_assigned().await;
    let (status, body) = gateway.post("/v1/sessions", json!({})).await;
    assert_eq!((status, &body["code"]), (503, &json!(2003)), "{body}");
    command(&gateway, &session, json!({ "command": "terminate" })).await;
    create(&gateway, json!({})).await;
}

#[tokio::test]
async fn only_runtimes_that_may_serve_the_project_count() {
    let mut config = quick();
    let client = add_key(&mut config, "client", "red", &[Scope::Control]);
    let other = add_key(&mut config, "other", "blue", &[Scope::Publish]);
    let pool = add_key(&mut config, "pool", "blue", &[Scope::Publish]);
    config.pools = vec!["pool".to_owned()];
    let gateway = TestGateway::with(config).await;
    let ask = || gateway.request(gateway.http.post(format!("{}/v1/sessions", gateway.url)).bearer_auth(&client));
    let mut blue = Runtime::connect(&gateway, "blue", 10, Some(&other)).await;
    let (status, body) = ask().await;
    assert_eq!((status, &body["error"]), (503, &json!("no_runtime")));
    let mut all = Runtime::connect(&gateway, "all", 1, Some(&pool)).await;
    let (status, body) = ask().await;
    assert_eq!(status, 201, "{body}");
    let (session, claim) = offered(&mut all).await;
    assert_eq!(body["session"], session.as_str());
    // The other project's runtime learns nothing, even with the token.
    send_claim(&mut blue, &session, &claim, 0).await;
    assert_eq!(refused(&mut blue, &session).await, Code::UnknownSession);
    all.claim(&session, &claim).await;
    assert_eq!(ask().await.0, 503, "the pool is full, and blue does not count");
}

#[tokio::test]
async fn a_declined_offer_goes_to_the_next_runtime_and_ends_when_none_is_left() {
    let gateway = TestGateway::start().await;
    let mut first = Runtime::connect(&gateway, "first", 10, None).await;
    let mut second = Runtime::connect(&gateway, "second", 10, None).await;
    second.open(OpenSession::default()).await;
    let session = create(&gateway, json!({})).await;
    for runtime in [&mut first, &mut second] {
        assert_eq!(offered(runtime).await.0, session);
        runtime.send(RuntimeToGateway::Decline { session: session.clone(), reason: "not now".to_owned() }).await;
    }
    until_status(&gateway, &session, "ended").await;
    assert_eq!(state(&gateway, &session).await["reason"], "no_runtime");
}

#[tokio::test]
async fn an_offer_that_nobody_answers_goes_to_the_next_runtime() {
    let mut config = quick();
    config.times.offer = MS(300);
    let gateway = TestGateway::with(config).await;
    let mut silent = Runtime::connect(&gateway, "silent", 10, None).await;
    let mut ready = Runtime::connect(&gateway, "ready", 10, None).await;
    ready.open(OpenSession::default()).await;
    let session = create(&gateway, json!({})).await;
    assert_eq!(offered(&mut silent).await.0, session);
    assert_eq!(ready.take_assigned().await.0, session);
    assert_eq!(state(&gateway, &session).await["runtime"]["name"], "ready");
}

#[tokio::test]
async fn an_offer_to_a_runtime_that_leaves_goes_to_the_next_one() {
    let gateway = TestGateway::start().await;
    let mut leaves = Runtime::connect(&gateway, "leaves", 10, None).await;
    let mut stays = Runtime::connect(&gateway, "stays", 10, None).await;
    stays.open(OpenSession::default()).await;
    let session = create(&gateway, json!({})).await;
    offered(&mut leaves).await;
    drop(leaves);
    assert_eq!(stays.take_assigned().await.0, session);
}

#[tokio::test]
async fn a_session_whose_first_task_is_wrong_is_offered_to_no_runtime() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (status, body) = gateway.post("/v1/sessions", json!({ "task": { "taskId": "no spaces" } })).await;
    assert_eq!((status, &body["error"]), (400, &json!("invalid")));
    let right = create(&gateway, json!({})).await;
    assert_eq!(offered(&mut runtime).await.0, right, "the first offer is the right session's");
}

// --- who holds a session ---------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_runtime_that_comes_back_goes_on_where_it_was() {
    let gateway = TestGateway::start().await;
    let mut before = gateway.runtime().await;
    let (session, first) = before.open(OpenSession::default()).await;
    before.publish(&session, "action", json!({ "name": "one" })).await;
    before.publish(&session, "action", json!({ "name": "two" })).await;
    drop(before);
    until_status(&gateway, &session, "orphaned").await;
    let mut after = gateway.runtime().await;
    let (second, expected) = after.claim(&session, &first).await;
    assert_eq!(expected, 3);
    assert_ne!(first, second);
    after.numbers.insert(session.clone(), 2);
    after.publish(&session, "action", json!({ "name": "three" })).await;
    // The new token has been used: the old one is void.
    let mut third = gateway.runtime().await;
    send_claim(&mut third, &session, &first, 0).await;
    assert_eq!(refused(&mut third, &session).await, Code::WrongClaim);
    third.claim(&session, &second).await;
    let kinds = kinds(&gateway, &session).await;
    let of_runtimes: Vec<_> = kinds.iter().filter(|kind| kind.starts_with("runtime_")).collect();
    assert_eq!(of_runtimes, ["runtime_connected", "runtime_disconnected", "runtime_reconnected"]);
}

#[tokio::test]
async fn a_session_is_nobodys_without_its_token() {
    let gateway = TestGateway::start().await;
    let mut owner = gateway.runtime().await;
    let (session, _) = owner.open(OpenSession::default()).await;
    let mut thief = gateway.runtime().await;
    for token in ["", "x", &"a".repeat(5000)] {
        send_claim(&mut thief, &session, token, 0).await;
        assert_eq!(refused(&mut thief, &session).await, Code::WrongClaim);
    }
    send_claim(&mut thief, "aaaaaaaaaaaaaaaaaaaa", "x", 0).await;
    assert_eq!(refused(&mut thief, "aaaaaaaaaaaaaaaaaaaa").await, Code::UnknownSession);
    owner.publish(&session, "action", json!({ "name": "still mine" })).await;
}

#[tokio::test]
async fn a_runtime_whose_claims_went_unanswered_twice_is_not_locked_out() {
    let gateway = TestGateway::start().await;
    let mut first = gateway.runtime().await;
    let (session, token) = first.open(OpenSession::default()).await;
    first.publish(&session, "action", json!({ "name": "one" })).await;
    drop(first);
    for _ in 0..3 {
        // It never reads the answer, so that it knows the first token only.
        let mut unlucky = gateway.runtime().await;
        assert_eq!(unlucky.claim(&session, &token).await.1, 2);
        drop(unlucky);
    }
    let mut lucky = gateway.runtime().await;
    let (newest, _) = lucky.claim(&session, &token).await;
    lucky.numbers.insert(session.clone(), 1);
    lucky.publish(&session, "action", json!({ "name": "two" })).await;
    let mut late = gateway.runtime().await;
    send_claim(&mut late, &session, &token, 0).await;
    assert_eq!(refused(&mut late, &session).await, Code::WrongClaim);
    late.claim(&session, &newest).await;
}

#[tokio::test]
async fn two_live_runtimes_cannot_take_a_session_from_each_other_without_end() {
    let gateway = TestGateway::start().await;
    let mut a = gateway.runtime().await;
    let (session, token) = a.open(OpenSession::default()).await;
    let mut b = gateway.runtime().await;
    let (of_b, _) = b.claim(&session, &token).await;
    assert_eq!(refused(&mut a, &session).await, Code::Fenced);
    // B has not used its token yet, so that the old one is good once more; then B's is void.
    let (of_a, _) = a.claim(&session, &token).await;
    assert_eq!(refused(&mut b, &session).await, Code::Fenced);
    a.publish(&session, "action", json!({ "name": "mine" })).await;
    for void in [&of_b, &token] {
        send_claim(&mut b, &session, void, 0).await;
        assert_eq!(refused(&mut b, &session).await, Code::WrongClaim);
    }
    a.publish(&session, "action", json!({ "name": "still mine" })).await;
    a.claim(&session, &of_a).await;
}

/// Fails with the feature `sabotage` and `ONLOOKER_SABOTAGE=fence`.
#[tokio::test]
async fn events_of_a_runtime_that_was_replaced_are_refused_as_fenced() {
    let gateway = TestGateway::start().await;
    let mut old = gateway.runtime().await;
    let (session, token) = old.open(OpenSession::default()).await;
    old.publish(&session, "action", json!({ "name": "one" })).await;
    let mut new = gateway.runtime().await;
    let (_, expected) = new.claim(&session, &token).await;
    assert_eq!(expected, 2);
    assert_eq!(refused(&mut old, &session).await, Code::Fenced, "it is told at once");
    old.send_event(&session, "action", json!({ "name": "of the past" })).await;
    assert_eq!(refused(&mut old, &session).await, Code::Fenced);
    old.send(RuntimeToGateway::NLost { session: session.clone(), from: 9 }).await;
    old.send(RuntimeToGateway::End { session: session.clone() }).await;
    old.send_event(&session, "action", json!({ "name": "after the end" })).await;
    assert_eq!(refused(&mut old, &session).await, Code::Fenced);
    new.numbers.insert(session.clone(), 1);
    new.publish(&session, "action", json!({ "name": "two" })).await;
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events")).await;
    assert!(!page.to_string().contains("of the past"), "{page}");
    let told = |frame: &GatewayToRuntime| matches!(frame, GatewayToRuntime::EventRefused { .. });
    assert!(!new.seen.iter().any(told), "the holder hears nothing of another's refusals");
}

// --- numbers ---------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_repeat_is_acknowledged_without_effect_and_a_hole_is_refused_with_the_number_expected() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let send = |events| RuntimeToGateway::Events { session: session.clone(), events };
    runtime.send(send(vec![action(1), action(2)])).await;
    let position = runtime.accepted(&session, 2).await;
    runtime.send(send(vec![action(1), action(2)])).await;
    assert_eq!(runtime.accepted(&session, 2).await, position);
    // What precedes the hole is taken, what follows it is not.
    runtime.send(send(vec![action(2), action(3), action(5), action(6)])).await;
    let (n, refusal) = runtime
        .until("the hole is refused", |frame| match frame {
            GatewayToRuntime::EventRefused { n, refusal, .. } => Some((*n, refusal.clone())),
            _ => None,
        })
        .await;
    assert_eq!((n, refusal.code, &refusal.details["expected"]), (3, Code::NumberExpected, &json!(4)));
    assert_eq!(count_of(&gateway, &session, "action").await, 3);
}

#[tokio::test]
async fn a_batch_holds_500_events_and_of_a_larger_one_the_first_500_are_taken() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let send = |events| RuntimeToGateway::Events { session: session.clone(), events };
    runtime.send(send((1..=500).map(action).collect())).await;
    runtime.accepted(&session, 500).await;
    runtime.send(send((501..=1001).map(action).collect())).await;
    let (n, refusal) = runtime
        .until("the batch is refused", |frame| match frame {
            GatewayToRuntime::EventRefused { n, refusal, .. } => Some((*n, refusal.clone())),
            _ => None,
        })
        .await;
    assert_eq!((n, refusal.code, &refusal.details["limit"]), (1000, Code::TooLarge, &json!(500)));
    runtime.send(send(vec![action(1001)])).await;
    runtime.accepted(&session, 1001).await;
}

#[tokio::test]
async fn a_runtime_that_lost_its_events_goes_on_in_a_new_epoch_and_subscribers_get_a_gap() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.publish(&session, "action", json!({ "name": "one" })).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    let before = subscriber.live().await;
    runtime.send(RuntimeToGateway::NLost { session: session.clone(), from: 7 }).await;
    let reason = subscriber
        .until("a gap", |frame| match frame {
            GatewayToSubscriber::Gap { reason, .. } => Some(*reason),
            _ => None,
        })
        .await;
    assert_eq!(reason, GapReason::Epoch);
    let (position, _) = subscriber.snapshot().await;
    assert_ne!(position.epoch, before.epoch);
    runtime.numbers.insert(session.clone(), 6);
    let position = runtime.publish(&session, "action", json!({ "name": "seven" })).await;
    assert_ne!(position.epoch, before.epoch);
    assert_eq!(subscriber.event("action").await["name"], "seven");
    assert_eq!(gateway.metric("onlooker_epochs_broken_total").await, 1.0);
}

// --- commands --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn commands_wait_for_a_runtime_that_is_away_and_are_given_again_until_they_are_done() {
    let gateway = TestGateway::start().await;
    let mut first = gateway.runtime().await;
    let (session, token) = first.open(OpenSession::default()).await;
    drop(first);
    until_status(&gateway, &session, "orphaned").await;
    let task = command(&gateway, &session, json!({ "command": "new_task", "task": { "prompt": "wait" } })).await;
    let given = |frame: &GatewayToRuntime| match frame {
        GatewayToRuntime::Command { command, .. } => Some(command.number),
        _ => None,
    };
    let mut token = token;
    for _ in 0..2 {
        let mut runtime = gateway.runtime().await;
        token = runtime.claim(&session, &token).await.0;
        assert_eq!(task_given(&mut runtime).await, task["task"].as_str().unwrap());
        drop(runtime);
        until_status(&gateway, &session, "orphaned").await;
    }
    let mut done = gateway.runtime().await;
    token = done.claim(&session, &token).await.0;
    assert_eq!(done.until("the task", given).await, 1);
    done.send(RuntimeToGateway::CommandsDone { session: session.clone(), commands: 1 }).await;
    done.publish(&session, "action", json!({ "name": "a frame behind it" })).await;
    drop(done);
    until_status(&gateway, &session, "orphaned").await;
    command(&gateway, &session, json!({ "command": "stop" })).await;
    let mut last = gateway.runtime().await;
    let (token, _) = last.claim(&session, &token).await;
    assert_eq!(last.until("the stop, and not the task before it", given).await, 2);
    // `commands` of a claim says the same as `commands_done`.
    let mut next = gateway.runtime().await;
    send_claim(&mut next, &session, &token, 2).await;
    next.until("claimed", |frame| matches!(frame, GatewayToRuntime::Claimed { .. }).then_some(())).await;
    command(&gateway, &session, json!({ "command": "new_task" })).await;
    assert_eq!(next.until("only the new one", given).await, 3);
}

#[tokio::test]
async fn what_people_ask_for_reaches_the_runtime_in_order() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = running(&gateway, &mut runtime, json!({ "prompt": "go" })).await;
    command(&gateway, &session, json!({ "command": "pause" })).await;
    assert_eq!(state(&gateway, &session).await["tasks"][0]["status"], "paused");
    command(&gateway, &session, json!({ "command": "resume" })).await;
    command(&gateway, &session, json!({ "command": "interaction", "action": { "type": "click", "x": 3 } })).await;
    command(&gateway, &session, json!({ "command": "stop" })).await;
    command(&gateway, &session, json!({ "command": "terminate" })).await;
    let mut got = Vec::new();
    while got.last().is_none_or(|last| last != "Terminate") {
        got.push(runtime.command("commands", |command| Some(format!("{command:?}"))).await);
    }
    // What had not been read when the session ended may have given way to its end.
    let all = ["Pause", "Resume", "Interaction", "Stop", "Terminate"];
    assert!(
        got.iter().all(|one| all.contains(&one.as_str()))
            && got.is_sorted_by_key(|one| all.iter().position(|a| a == one)),
        "{got:?}"
    );
    let kinds = kinds(&gateway, &session).await;
    let after: Vec<_> = kinds.iter().skip_while(|kind| *kind != "task_started").collect();
    assert_eq!(after, ["task_started", "task_paused", "task_resumed", "task_stopped", "session_ended"]);
    let (status, body) = gateway.post(&format!("/v1/sessions/{session}/commands"), json!({ "command": "pause" })).await;
    assert_eq!((status, &body["error"]), (409, &json!("session_ended")));
}

#[tokio::test]
async fn a_runtime_with_hundreds_of_commands_waiting_still_learns_that_its_session_has_ended() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let path = format!("/v1/sessions/{session}/commands");
    let input = json!({ "command": "interaction", "action": { "type": "click" } });
    for _ in 0..256 {
        assert_eq!(gateway.post(&path, input.clone()).await.0, 200);
    }
    let (status, body) = gateway.post(&path, input).await;
    assert_eq!((status, &body["error"]), (429, &json!("too_many_commands")));
    command(&gateway, &session, json!({ "command": "terminate" })).await;
    runtime.command("the end", |command| matches!(command, RuntimeCommand::Terminate).then_some(())).await;
}

// --- while a runtime is away -----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_session_whose_runtime_does_not_come_back_ends_as_instance_lost() {
    let mut config = quick();
    config.times.runtime_grace = MS(300);
    let gateway = TestGateway::with(config).await;
    let mut subscriber = gateway.subscriber().await;
    let mut runtime = gateway.runtime().await;
    let (session, token) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    drop(runtime);
    assert_eq!(subscriber.event("runtime_disconnected").await["gracePeriod"], 300);
    assert_eq!(subscriber.event("guardrail_resolved").await["outcome"], "cancelled");
    assert_eq!(subscriber.event("session_ended").await["reason"], "instance_lost");
    let mut late = gateway.runtime().await;
    send_claim(&mut late, &session, &token, 0).await;
    assert_eq!(refused(&mut late, &session).await, Code::SessionEnded);
}

#[tokio::test]
async fn a_runtime_may_end_its_session() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.send(RuntimeToGateway::End { session: session.clone() }).await;
    until_status(&gateway, &session, "ended").await;
    assert_eq!(state(&gateway, &session).await["reason"], "completed");
    runtime.send_event(&session, "action", json!({})).await;
    assert_eq!(refused(&mut runtime, &session).await, Code::SessionEnded);
}

// --- tasks -----------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn one_task_runs_and_at_most_32_wait() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, first) = running(&gateway, &mut runtime, json!({ "prompt": "first" })).await;
    for task in 0..32 {
        command(&gateway, &session, json!({ "command": "new_task", "task": { "taskId": format!("t{task}") } })).await;
    }
    let path = format!("/v1/sessions/{session}/commands");
    let (status, body) = gateway.post(&path, json!({ "command": "new_task" })).await;
    assert_eq!((status, &body["error"], &body["details"]["limit"]), (429, &json!("too_many_tasks"), &json!(32)));
    let twice = json!({ "command": "new_task", "task": { "taskId": "t0" } });
    assert_eq!(gateway.post(&path, twice.clone()).await.1["error"], "too_many_tasks");
    let statuses = |state: &Value| -> Vec<String> {
        state["tasks"].as_array().unwrap().iter().map(|task| task["status"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(statuses(&state(&gateway, &session).await)[..2], ["running", "queued"]);
    runtime.publish(&session, "task_completed", json!({ "taskId": first, "message": "done" })).await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t0" })).await;
    assert_eq!(statuses(&state(&gateway, &session).await)[..3], ["completed", "running", "queued"]);
    assert_eq!(gateway.post(&path, twice).await.1["error"], "conflict");
    command(&gateway, &session, json!({ "command": "new_task" })).await;
    let metric = gateway.metric("onlooker_refusals_total{code=\"too_many_tasks\"}").await;
    assert_eq!(metric, 2.0);
}

#[tokio::test]
async fn a_session_may_end_with_its_task() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = running(&gateway, &mut runtime, json!({ "terminateOnCompletion": true })).await;
    runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    runtime.command("the end", |command| matches!(command, RuntimeCommand::Terminate).then_some(())).await;
    assert_eq!(state(&gateway, &session).await["reason"], "terminate_on_completion");
}

#[tokio::test]
async fn the_gateway_ends_a_task_that_runs_longer_than_it_may_and_pauses_do_not_count() {
    let mut config = quick();
    config.times.task_slack = MS(200);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, task) = running(&gateway, &mut runtime, json!({ "maxDuration": 400 })).await;
    command(&gateway, &session, json!({ "command": "pause" })).await;
    // Longer than limit and slack together: it would be over by now, had its clock not stood.
    tokio::time::sleep(MS(900)).await;
    let paused = state(&gateway, &session).await;
    if paused["tasks"][0]["status"] != "paused" {
        // 600 ms passed before the pause came through: this machine is too slow for this half.
        assert_eq!(paused["tasks"][0]["result"]["code"], "TASK_TIMEOUT");
    }
    command(&gateway, &session, json!({ "command": "resume" })).await;
    let stopped = runtime
        .command("a stop", |command| match command {
            RuntimeCommand::Stop { task } => Some(task.clone()),
            _ => None,
        })
        .await;
    assert_eq!(stopped.as_deref(), Some(task.as_str()));
    wait_until("the task has failed", || async {
        let state = state(&gateway, &session).await;
        state["tasks"][0]["status"] == "failed" && state["tasks"][0]["result"]["code"] == "TASK_TIMEOUT"
    })
    .await;
}

#[tokio::test]
async fn a_session_expires_only_while_nothing_is_to_be_done() {
    let mut config = quick();
    config.times.inactivity = MS(500);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (busy, _) = running(&gateway, &mut runtime, json!({})).await;
    let (asking, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&asking, "g", json!({})).await;
    let (idle, _) = runtime.open(OpenSession::default()).await;
    // The idle one is the youngest: when it has expired, the others had more time to.
    until_status(&gateway, &idle, "ended").await;
    assert_eq!(state(&gateway, &idle).await["reason"], "expired");
    for session in [&busy, &asking] {
        assert_eq!(state(&gateway, session).await["status"], "active");
    }
    runtime.publish(&busy, "task_completed", json!({ "message": "done" })).await;
    runtime.publish(&asking, "guardrail_withdrawn", json!({ "guardrailId": "g" })).await;
    for session in [&busy, &asking] {
        until_status(&gateway, session, "ended").await;
        assert_eq!(state(&gateway, session).await["reason"], "expired");
    }
}

// --- runtimes without a socket ---------------------------------------------------------------------------------------

/// A runtime that knows HTTP only.
struct HttpRuntime<'a> {
    gateway: &'a TestGateway,
    session: String,
    claim: String,
}

impl HttpRuntime<'_> {
    async fn publish(&self, events: Value) -> (u16, Value) {
        let url = format!("{}/v1/sessions/{}/events", self.gateway.url, self.session);
        let request = self.gateway.http.post(url).header("onlooker-claim", &self.claim);
        self.gateway.request(request.json(&json!({ "events": events }))).await
    }

    async fn commands(&self, since: u64, wait: u64) -> (u16, Value) {
        let url = format!("{}/v1/sessions/{}/commands?since={since}&wait={wait}", self.gateway.url, self.session);
        self.gateway.request(self.gateway.http.get(url).header("onlooker-claim", &self.claim)).await
    }
}

#[tokio::test]
async fn a_runtime_over_http_publishes_waits_for_commands_leaves_and_comes_back() {
    let mut config = quick();
    config.times.http_runtime_away = MS(1000);
    let gateway = TestGateway::with(config).await;
    let (status, created) = gateway.post("/v1/sessions", json!({ "runtime": "self" })).await;
    assert_eq!(status, 201, "{created}");
    let (session, claim) = (created["session"].as_str().unwrap(), created["claim"].as_str().unwrap());
    let runtime = HttpRuntime { gateway: &gateway, session: session.to_owned(), claim: claim.to_owned() };
    let (status, accepted) = runtime
        .publish(json!([
            { "n": 1, "type": "action", "data": { "name": "one" } },
            { "n": 2, "type": "screenshot", "picture": { "media": "image/png", "base64": "AAAA" } },
        ]))
        .await;
    assert_eq!((status, &accepted["n"]), (200, &json!(2)), "{accepted}");
    let again = runtime.publish(json!([{ "n": 2, "type": "action", "data": {} }])).await;
    assert_eq!(again, (200, accepted.clone()), "a repeat is acknowledged without effect");
    let (status, refused) = runtime.publish(json!([{ "n": 9, "type": "action", "data": {} }])).await;
    assert_eq!((status, &refused["error"]), (409, &json!("number_expected")));
    assert_eq!((&refused["details"]["expected"], &refused["details"]["n"]), (&json!(3), &json!(2)));

    let (waited, ()) = tokio::join!(runtime.commands(0, 20), async {
        command(&gateway, session, json!({ "command": "new_task", "task": { "prompt": "p" } })).await;
    });
    assert_eq!(waited.1["commands"][0]["command"], "new_task", "{waited:?}");
    assert_eq!(waited.1["commands"][0]["number"], 1);
    assert_eq!(runtime.commands(1, 0).await, (200, json!({ "commands": [] })), "what is applied is not given again");

    until_status(&gateway, session, "orphaned").await;
    assert_eq!(runtime.commands(1, 0).await.0, 200);
    assert_eq!(state(&gateway, session).await["status"], "active");
    assert_eq!(count_of(&gateway, session, "runtime_reconnected").await, 1);
    let task = waited.1["commands"][0]["task"]["taskId"].clone();
    let (status, _) = runtime.publish(json!([{ "n": 3, "type": "task_started", "data": { "taskId": task } }])).await;
    assert_eq!(status, 200);

    let stranger = HttpRuntime { claim: "wrong".to_owned(), ..runtime };
    assert_eq!(stranger.commands(0, 0).await.1["error"], "wrong_claim");
    assert_eq!(stranger.publish(json!([])).await.1["error"], "wrong_claim");
}

// --- the client that ships with the gateway --------------------------------------------------------------------------

fn recording() -> onlooker_runtime::replay::Replay {
    use onlooker_runtime::recording::{Line, Recording};
    let line = |kind: &str, data: Value| Line { at: 0.0, kind: kind.to_owned(), data, file: None };
    let picture = Line { file: Some("1.png".to_owned()), ..line("screenshot", Value::Null) };
    let question = json!({
        "type": "human_input_needed", "value": "Buy it?", "guardrailId": "buy", "kind": "purchase",
        "choices": [{ "id": "yes" }, { "id": "no" }],
    });
    let lines = vec![
        line("action", json!({ "name": "click" })),
        picture,
        line("guardrail_trigger", question),
        line("task_completed", json!({ "message": "bought" })),
    ];
    let png = bytes::Bytes::from_static(b"\x89PNG\r\n\x1a\n");
    let recording = Recording::new(lines, [("1.png".to_owned(), png)].into()).unwrap();
    onlooker_runtime::replay::Replay::new(recording, 0.0)
}

/// Plays until a question is open, answers it, and waits for the task's end.
async fn play_once(gateway: &TestGateway) {
    wait_until("a runtime takes a task", || async {
        gateway.post("/v1/sessions", json!({ "task": { "prompt": "buy" } })).await.0 == 201
    })
    .await;
    // Of an empty list the first is null.
    let open = || async { gateway.get("/v1/guardrails?state=open").await.1["guardrails"][0].clone() };
    wait_until("a question is open", || async { !open().await.is_null() }).await;
    let guardrail = open().await;
    let id = guardrail["guardrailId"].as_str().unwrap();
    let session = guardrail["session"].as_str().unwrap();
    let body = json!({
        "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "choice": "yes",
    });
    let (status, answered) = gateway.post(&format!("/v1/guardrails/{id}/answer"), body).await;
    assert_eq!(status, 200, "{answered}");
    assert_eq!(answered["guardrail"]["resolution"]["outcome"], json!(Outcome::Answered));
    wait_until("the task is completed", || async {
        state(gateway, session).await["tasks"][0]["status"] == "completed"
    })
    .await;
    let (_, guardrail) = gateway.get(&format!("/v1/guardrails/{id}?session={session}")).await;
    assert_eq!(guardrail["guardrail"]["state"], "taken");
}

#[tokio::test]
async fn the_shipped_client_plays_tasks_and_copes_with_a_gateway_that_starts_again() {
    let gateway = TestGateway::start().await;
    let address = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let options = onlooker_runtime::agent::Options {
        gateway: gateway.url.parse().unwrap(),
        token: None,
        name: "replay".to_owned(),
        capacity: 4,
        labels: Default::default(),
    };
    let client = tokio::spawn(onlooker_runtime::run(options, Arc::new(recording()), shutdown.clone()));
    play_once(&gateway).await;
    gateway.stop().await;
    let mut config = quick();
    config.listen.address = address;
    let again = TestGateway::with(config).await;
    play_once(&again).await;
    shutdown.cancel();
    client.await.unwrap().expect("the client ends in peace");
}

#[tokio::test]
async fn usage_taken_for_a_result_ended_the_task_and_its_session() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let wanted = json!({ "task": { "taskId": "t", "prompt": "p", "terminateOnCompletion": true } });
    let (status, created) = gateway.post("/v1/sessions", wanted).await;
    assert_eq!(status, 201, "{created}");
    let (session, _) = runtime.take_assigned().await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    runtime.ask(&session, "g", json!({})).await;
    let used = json!({ "inputTokens": 3, "computeTime": 1.5 });
    runtime.publish(&session, "usage", used.clone()).await;
    let (_, found) = gateway.get(&format!("/v1/sessions/{session}")).await;
    let state = &found["state"];
    assert_eq!((&state["status"], &state["guardrails"][0]["state"]), (&json!("active"), &json!("open")), "{state}");
    assert_eq!((&state["tasks"][0]["status"], &state["tasks"][0]["usage"]), (&json!("waiting"), &used), "{state}");

    runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    let (_, found) = gateway.get(&format!("/v1/sessions/{session}")).await;
    let state = &found["state"];
    assert_eq!((&state["status"], &state["tasks"][0]["status"]), (&json!("ended"), &json!("completed")), "{state}");
    gateway.stop().await;
}
