//! The main job, end to end.

use onlooker_protocol::{
    runtime::{OpenSession, RuntimeCommand},
    subscriber::{GatewayToSubscriber, SubscriberToGateway},
    view::{GuardrailState, Outcome, SessionStatus, TaskStatus},
};
use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn a_session_streams_pauses_is_answered_and_completes() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (status, created) = gateway.post("/v1/sessions", json!({ "task": { "prompt": "Buy a lamp" } })).await;
    assert_eq!(status, 201, "{created}");
    let (session, _) = runtime.take_assigned().await;
    assert_eq!(created["session"], session.as_str());
    let task = runtime
        .command("the task", |command| match command {
            RuntimeCommand::NewTask { task } => task.task_id.clone(),
            _ => None,
        })
        .await;
    assert_eq!(created["task"], task.as_str());

    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    let (_, state) = subscriber.snapshot().await;
    assert_eq!(state.status, SessionStatus::Active);
    assert_eq!(state.tasks[0].status, TaskStatus::Queued);
    subscriber.live().await;

    runtime.publish(&session, "task_started", json!({ "taskId": task })).await;
    runtime.publish(&session, "action", json!({ "name": "click", "x": 5, "y": 7 })).await;
    assert_eq!(subscriber.event("action").await["x"], 5);
    runtime.ask(&session, "pay", json!({ "kind": "purchase", "choices": [{ "id": "yes" }, { "id": "no" }] })).await;
    assert_eq!(subscriber.event("guardrail_trigger").await["guardrailId"], "pay");

    let mut reply = answer(1, "k1", "");
    (reply.text, reply.choice) = (None, Some("yes".to_owned()));
    let frame = SubscriberToGateway::Answer {
        reference: Some("a".to_owned()),
        session: session.clone(),
        guardrail_id: "pay".to_owned(),
        answer: reply,
    };
    subscriber.send(frame).await;
    let outcome = runtime.outcome().await;
    assert_eq!((outcome.outcome, outcome.choice.as_deref()), (Outcome::Answered, Some("yes")));
    runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": "pay", "revision": 1 })).await;
    runtime.publish(&session, "task_completed", json!({ "message": "done", "usage": { "cost": 0 } })).await;
    let resolved = subscriber.event("guardrail_resolved").await;
    assert_eq!(resolved["via"], "websocket");
    assert_eq!(subscriber.event("task_completed").await["message"], "done");
    assert!(subscriber.seen.iter().any(|frame| matches!(frame, GatewayToSubscriber::Ok { .. })));

    let (_, guardrail) = gateway.get(&format!("/v1/guardrails/pay?session={session}")).await;
    assert_eq!(guardrail["guardrail"]["state"], json!(GuardrailState::Taken));
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_that_a_runtime_opens_is_seen_by_those_who_follow_the_project() {
    let gateway = TestGateway::start().await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.send_text(r#"{"type":"subscribe","project":true}"#).await;
    subscriber
        .until("the first summaries", |frame| matches!(frame, GatewayToSubscriber::Summaries { .. }).then_some(()))
        .await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    subscriber
        .until("a summary with the question", |frame| match frame {
            GatewayToSubscriber::Summary(summary) if summary.session == session => {
                (summary.guardrails.len() == 1).then_some(())
            }
            _ => None,
        })
        .await;
    gateway.stop().await;
}

#[tokio::test]
async fn with_nobody_looking_the_webhook_is_told_and_told_again_when_it_is_answered() {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook(quick(), &receiver)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    let opened = receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(opened[0].body["guardrail"]["guardrailId"], "g");
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
    let (status, answered) = gateway.post("/v1/guardrails/g/answer", body).await;
    assert_eq!(status, 200, "{answered}");
    receiver.wait_for("guardrail.resolved", 1).await;
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    assert_eq!(gateway.metric("onlooker_guardrails_unreached").await, 0.0);
    gateway.stop().await;
}
