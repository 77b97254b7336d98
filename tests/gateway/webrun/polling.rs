//! `GET /task/{session}/{task}`: every state of a task, and what reading it proves.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_running_task_shows_its_usage_live_under_both_namings() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    let (status, queued) = scene.poll(&session, "t").await;
    assert_eq!((status, &queued["usage"]["completion_time"]), (200, &json!(0.0)), "not begun yet");
    scene.runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    let said = json!({ "taskId": "t", "inputTokens": 10, "outputTokens": 5, "cost": 0.5 });
    scene.runtime.publish(&session, "usage", said).await;
    let (_, first) = scene.poll(&session, "t").await;
    let usage = &first["usage"];
    let wanted = json!({ "success": true, "sessionId": session, "taskId": "t", "status": "running", "pending": true,
        "usage": usage });
    assert_eq!(first, wanted);
    let numbers = |name: &str| usage[name].as_f64().unwrap();
    for (new, old) in [("prompt_tokens", "inputTokens"), ("completion_tokens", "outputTokens")] {
        assert_eq!(usage[new], usage[old], "{usage}");
    }
    assert_eq!(usage["completion_time"], usage["computeTime"]);
    assert_eq!((numbers("prompt_tokens"), numbers("total_tokens"), numbers("cost")), (10.0, 15.0, 0.5));
    wait_until("time goes on", || async {
        scene.poll(&session, "t").await.1["usage"]["completion_time"].as_f64() > usage["completion_time"].as_f64()
    })
    .await;
    scene.send(&session, json!({ "actionType": "state", "newState": "pause" })).await;
    let (_, paused) = scene.poll(&session, "t").await;
    assert_eq!((&paused["status"], &paused["pending"]), (&json!("running"), &json!(true)));
}

#[tokio::test]
async fn a_question_stays_in_the_poll_until_it_is_answered() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    let choices = json!({ "choices": [{ "id": "yes" }, { "id": "no" }] });
    scene.runtime.ask(&session, "first", choices).await;
    scene.runtime.ask(&session, "second", json!({ "value": "And now?" })).await;
    for _ in 0..2 {
        let (status, body) = scene.poll(&session, "t").await;
        assert_eq!((status, &body["type"], &body["success"]), (200, &json!("guardrail_trigger"), &json!(true)));
        assert_eq!((&body["guardrailId"], &body["data"]["choices"][0]["id"]), (&json!("first"), &json!("yes")));
        assert_ne!(body["status"], "failed");
    }
    let answer = json!({ "actionType": "guardrail", "prompt": "YES", "newState": "resume" });
    assert_eq!(scene.send(&session, answer).await, (200, sent_successfully()));
    assert_eq!(scene.runtime.outcome().await.choice.as_deref(), Some("yes"));
    assert_eq!(scene.poll(&session, "t").await.1["data"]["value"], "And now?", "the oldest that is open");
}

#[tokio::test]
async fn a_structured_result_stays_a_string() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    let text = r#"{"price": 5, "list": [1, 2]}"#;
    scene.runtime.publish(&session, "task_completed", json!({ "message": text })).await;
    assert_eq!(scene.poll(&session, "t").await.1["data"]["message"], text);
}

#[tokio::test]
async fn a_stopped_task_is_terminated_and_its_session_goes_on() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.running().await;
    let stop = json!({ "actionType": "state", "newState": "stop" });
    assert_eq!(scene.send(&session, stop).await, (200, sent_successfully()));
    let (status, body) = scene.poll(&session, "t").await;
    let message = "Task was stopped before it finished";
    let wanted = json!({
        "success": true, "sessionId": session, "taskId": "t", "status": "terminated", "pending": false,
        "message": message, "data": { "message": message, "files": [], "network": [] },
        "usage": body["usage"], "completedAt": body["completedAt"],
    });
    assert_eq!((status, &body), (200, &wanted));
    let (status, next) = scene.send(&session, json!({ "actionType": "newTask", "prompt": "again" })).await;
    assert_eq!((status, &next["status"]), (200, &json!("pending")));
}

#[tokio::test]
async fn a_task_stopped_before_its_instance_was_lost_did_not_fail() {
    let mut config = quick();
    config.times.runtime_grace = Duration::from_millis(50);
    let mut scene = Scene::begin(config).await;
    let session = scene.running().await;
    scene.send(&session, json!({ "actionType": "state", "newState": "stop" })).await;
    drop(scene.runtime);
    let gateway = &scene.gateway;
    wait_until("the session has failed", || async {
        gateway.get(&format!("/start/session-status/{session}")).await.1["status"] == "failed"
    })
    .await;
    assert_eq!(gateway.get(&format!("/task/{session}/t")).await.1["status"], "terminated");
}

#[tokio::test]
async fn what_is_unknown_is_404_and_names_no_session() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    assert_eq!(scene.poll(&session, "u").await, (404, refused("TASK_NOT_FOUND", "Task not found")));
    for unknown in ["aaaaaaaaaaaaaaaaaaaa", "a1b2c3d4e5f6", "%FF", "x%20y"] {
        let (status, body) = scene.poll(unknown, "t").await;
        assert_eq!(status, 404);
        assert!(!body.to_string().contains(unknown), "{body}");
        let (status, body) = scene.gateway.get(&format!("/start/session-status/{unknown}")).await;
        assert_eq!((status, body["success"].as_bool()), (404, Some(false)));
    }
    let unknown = scene.poll("aaaaaaaaaaaaaaaaaaaa", "t").await;
    assert_eq!(unknown, (404, refused("SESSION_NOT_FOUND", "Session not found")));
}

#[tokio::test]
async fn nobody_is_contacted_while_a_poller_reads_the_question_and_somebody_is_when_it_stops() {
    let receiver = Receiver::start().await;
    let mut scene = Scene::begin(with_webhook(quick(), &receiver)).await;
    let session = scene.running().await;
    scene.poll(&session, "t").await;
    scene.runtime.ask(&session, "g", json!({})).await;
    wait_until("the question counts as seen", || async {
        scene.poll(&session, "t").await;
        let why = scene.gateway.why(&session, "g").await;
        let last = why["decisions"].as_array().and_then(|all| all.last()?["why"].as_str()).map(str::to_owned);
        last.is_some_and(|last| last.contains("has demonstrably got the question"))
    })
    .await;
    // Longer than a poller's window and a first look together: only reading keeps everybody else from being told.
    let until = std::time::Instant::now() + Duration::from_millis(1_200);
    while std::time::Instant::now() < until {
        assert_eq!(scene.poll(&session, "t").await.1["guardrailId"], "g");
    }
    assert!(receiver.got().is_empty());
    receiver.wait_for("guardrail.opened", 1).await;
}

#[tokio::test]
async fn who_reads_a_tasks_question_has_not_seen_an_older_one_of_another_task() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.running().await;
    let older = scene.runtime.ask(&session, "older", json!({})).await.offset;
    scene.send(&session, json!({ "actionType": "newTask", "prompt": "next", "taskId": "u" })).await;
    let question = json!({ "type": "human_input_needed", "value": "And this?", "guardrailId": "newer" });
    let event = json!({ "n": 3, "type": "guardrail_trigger", "task": "u", "data": question });
    let frame = json!({ "type": "events", "session": session, "events": [event] });
    scene.runtime.send_text(frame.to_string()).await;
    scene.runtime.accepted(&session, 3).await;
    let proved = async || {
        let (_, list) = scene.gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
        let proved = list["watchers"][0]["proved"].as_str().map(str::to_owned);
        proved.and_then(|position| position.split(':').nth(1)?.parse::<u64>().ok())
    };
    for _ in 0..3 {
        assert_eq!(scene.poll(&session, "u").await.1["guardrailId"], "newer");
        assert_eq!(proved().await, None, "the older one is not in what was read");
    }
    wait_until("the older one is proved, and nothing behind it", || async {
        scene.poll(&session, "t").await;
        proved().await == Some(older)
    })
    .await;
}

#[tokio::test]
async fn a_start_a_command_and_health_are_no_looks() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    scene.send(&session, json!({ "actionType": "state", "newState": "pause" })).await;
    scene.gateway.get(&format!("/start/session-status/{session}")).await;
    let (_, seen) = scene.gateway.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(seen["watchers"]["watching"], 0);
    scene.poll(&session, "t").await;
    let (_, seen) = scene.gateway.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(seen["watchers"]["watching"], 1);
}

#[tokio::test]
async fn a_result_that_a_poll_carried_is_not_sent_to_a_chat_and_another_is() {
    let receiver = Receiver::start().await;
    let mut scene = Scene::begin(with_webhook(quick(), &receiver)).await;
    let session = scene.start(json!({ "reachOutMode": "full", "task": { "prompt": "p", "taskId": "t" } })).await;
    scene.runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    scene.poll(&session, "t").await;
    scene.runtime.publish(&session, "task_completed", json!({ "message": "seen" })).await;
    assert_eq!(scene.poll(&session, "t").await.1["data"]["message"], "seen");
    scene.runtime.publish(&session, "task_started", json!({ "taskId": "u" })).await;
    scene.runtime.publish(&session, "task_completed", json!({ "message": "unseen" })).await;
    let told = receiver.wait_for("task.completed", 1).await;
    assert_eq!(told[0].body["task"], "u");
    assert_eq!(receiver.of("task.completed").len(), 1);
}

#[tokio::test]
async fn who_polls_a_later_result_has_not_had_an_earlier_one() {
    let receiver = Receiver::start().await;
    let mut scene = Scene::begin(with_webhook(quick(), &receiver)).await;
    let session = scene.start(json!({ "reachOutMode": "full", "task": { "prompt": "p", "taskId": "t" } })).await;
    for task in ["t", "u"] {
        scene.runtime.publish(&session, "task_started", json!({ "taskId": task })).await;
        // Somebody is there, and has a moment to see what comes.
        scene.poll(&session, task).await;
        scene.runtime.publish(&session, "task_completed", json!({ "message": task })).await;
    }
    assert_eq!(scene.poll(&session, "u").await.1["data"]["message"], "u");
    let told = receiver.wait_for("task.completed", 1).await;
    assert_eq!(told[0].body["task"], "t");
}

#[tokio::test]
async fn an_answer_is_for_the_question_that_the_poll_showed() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    scene.runtime.ask(&session, "shown", json!({})).await;
    assert_eq!(scene.poll(&session, "t").await.1["guardrailId"], "shown");
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "mine" });
    assert_eq!(scene.gateway.post("/v1/guardrails/shown/answer", body).await.0, 200);
    scene.runtime.ask(&session, "next", json!({ "value": "Delete everything?" })).await;
    let late = scene.send(&session, json!({ "actionType": "guardrail", "prompt": "yes", "newState": "resume" })).await;
    let mut wanted = sent_successfully();
    let too_late = json!({ "applied": false, "guardrailId": "shown", "state": "accepted", "answeredBy": "local", "answeredVia": "rest" });
    wanted.as_object_mut().unwrap().extend(too_late.as_object().unwrap().clone());
    assert_eq!(late, (200, wanted));
    let (_, next) = scene.gateway.get(&format!("/v1/guardrails/next?session={session}")).await;
    assert_eq!(next["guardrail"]["state"], "open", "what nobody was shown is not answered");
    assert_eq!(scene.poll(&session, "t").await.1["guardrailId"], "next");
    let sent = scene.send(&session, json!({ "actionType": "guardrail", "prompt": "no", "newState": "stop" })).await;
    assert_eq!(sent, (200, sent_successfully()));
    assert_eq!(scene.runtime.outcome().await.text.as_deref(), Some("mine"));
    assert_eq!(json!(scene.runtime.outcome().await.outcome), "declined");
}

#[tokio::test]
async fn results_are_kept_for_polls_for_as_long_as_the_session_and_no_longer() {
    let mut config = quick();
    config.times.retention = Duration::from_millis(700);
    let mut scene = Scene::begin(config).await;
    let session = scene.running().await;
    scene.runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    scene.send(&session, json!({ "actionType": "state", "newState": "terminate" })).await;
    assert_eq!(scene.poll(&session, "t").await.1["status"], "complete");
    wait_until("it is forgotten", || async { scene.poll(&session, "t").await.0 == 404 }).await;
    assert_eq!(scene.poll(&session, "t").await.1, refused("SESSION_NOT_FOUND", "Session not found"));
}

#[tokio::test]
async fn a_session_says_how_it_stands() {
    let scene = Scene::begin(quick()).await;
    let (_, started) = scene.gateway.post("/start/start-session", json!({})).await;
    let session = started["sessionId"].as_str().unwrap().to_owned();
    let Scene { gateway, mut runtime } = scene;
    let status = async || gateway.get(&format!("/start/session-status/{session}")).await;
    let wanted = |status: &str| {
        let data = json!({ "sessionId": session, "status": status });
        (200, json!({ "success": true, "sessionId": session, "status": status, "data": data }))
    };
    assert_eq!(status().await, wanted("pending"));
    runtime.take_assigned().await;
    assert_eq!(status().await, wanted("active"));
    drop(runtime);
    wait_until("its instance is away", || async { status().await == wanted("orphaned") }).await;
    let end = json!({ "sessionId": session, "message": { "actionType": "state", "newState": "terminate" } });
    gateway.post("/start/send-message", end).await;
    assert_eq!(status().await, wanted("terminated"));
}

#[tokio::test]
async fn health_and_sockets_tell_of_instances_and_of_no_session() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    let (status, health) = scene.gateway.get("/start/health").await;
    let wanted = json!({ "success": true, "status": "healthy", "instancesAvailable": true, "instanceCount": 1,
        "timestamp": health["timestamp"] });
    assert_eq!((status, &health), (200, &wanted));
    let (status, sockets) = scene.gateway.get("/start/active-sockets").await;
    assert_eq!((status, &sockets["count"], &sockets["success"]), (200, &json!(1), &Value::Bool(true)));
    assert_eq!(sockets["sockets"].as_array().unwrap().len(), 1);
    assert!(!sockets.to_string().contains(&session));
    drop(scene.runtime);
    let gateway = &scene.gateway;
    wait_until("none is left", || async {
        let (_, health) = gateway.get("/start/health").await;
        health["instanceCount"] == 0 && health["instancesAvailable"] == false
    })
    .await;
}
