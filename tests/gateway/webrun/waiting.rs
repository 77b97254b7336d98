//! Inline results: a run or a new task answers with what became of it, or with where to poll.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

fn run() -> Value {
    json!({ "task": { "prompt": "Buy a lamp", "taskId": "t" } })
}

/// Takes the next session and begins its task.
async fn begun(runtime: &mut Runtime) -> String {
    let (session, _) = runtime.take_assigned().await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    session
}

#[tokio::test]
async fn a_result_is_answered_inline_in_the_words_of_every_generation() {
    let mut scene = Scene::begin(quick()).await;
    let Scene { gateway, runtime } = &mut scene;
    let said = json!({ "message": "Bought", "files": [{ "filename": "a.zip" }], "x": 1,
        "usage": { "prompt_tokens": 12450, "completion_tokens": 3200, "completion_time": 23.5, "cost": 0.0124 } });
    let script = async {
        let session = begun(runtime).await;
        runtime.publish(&session, "task_completed", said).await;
        session
    };
    let ((status, body), session) = tokio::join!(gateway.post("/start/run-task", run()), script);
    let usage = json!({ "prompt_tokens": 12450, "completion_tokens": 3200, "total_tokens": 15650,
        "completion_time": 23.5, "cost": 0.0124, "inputTokens": 12450, "outputTokens": 3200, "computeTime": 23.5 });
    let data = json!({ "message": "Bought", "files": [{ "filename": "a.zip" }], "network": [], "x": 1,
        "prompt_tokens": 12450, "completion_tokens": 3200, "total_tokens": 15650, "completion_time": 23.5 });
    let wanted = json!({
        "success": true, "sessionId": session, "taskId": "t", "type": "task_completed", "status": "complete",
        "pending": false, "data": data, "usage": usage, "completedAt": body["completedAt"],
        "result": { "type": "task_completed", "data": data, "usage": usage },
    });
    assert_eq!((status, &body), (200, &wanted));
    assert!(body["completedAt"].as_str().is_some_and(|at| at.ends_with('Z')), "{body}");
    assert_eq!(gateway.get(&format!("/task/{session}/t")).await, (200, wanted), "a poll says the same");
}

#[tokio::test]
async fn a_failed_task_is_answered_with_200() {
    let mut scene = Scene::begin(quick()).await;
    let Scene { gateway, runtime } = &mut scene;
    let script = async {
        let session = begun(runtime).await;
        let error = json!({ "error": "Navigation timeout after 30 seconds", "code": "NAVIGATION_TIMEOUT" });
        runtime.publish(&session, "error", error).await;
        session
    };
    let ((status, body), session) = tokio::join!(gateway.post("/start/run-task", run()), script);
    let wanted = json!({
        "success": false, "sessionId": session, "taskId": "t", "status": "failed", "pending": false,
        "error": "Navigation timeout after 30 seconds", "message": "Navigation timeout after 30 seconds",
        "code": "NAVIGATION_TIMEOUT", "usage": body["usage"], "completedAt": body["completedAt"],
    });
    assert_eq!((status, &body), (200, &wanted));
    assert_eq!(body["usage"]["cost"], 0.0);
}

#[tokio::test]
async fn a_question_is_the_inline_answer_when_one_is_asked_meanwhile() {
    let mut scene = Scene::begin(quick()).await;
    let Scene { gateway, runtime } = &mut scene;
    let script = async {
        let session = begun(runtime).await;
        runtime.ask(&session, "g", json!({ "value": "What is the code?" })).await;
        session
    };
    let ((status, body), session) = tokio::join!(gateway.post("/start/run-task", run()), script);
    let wanted = json!({
        "success": true, "sessionId": session, "taskId": "t", "type": "guardrail_trigger",
        "data": { "type": "human_input_needed", "value": "What is the code?" },
        "guardrailId": "g", "revision": 1, "status": "guardrail_trigger", "pending": false, "usage": body["usage"],
    });
    assert_eq!((status, body), (200, wanted));
    let sent = scene.send(&session, json!({ "actionType": "guardrail", "prompt": "1234", "newState": "resume" })).await;
    assert_eq!(sent, (200, sent_successfully()));
    assert_eq!(scene.runtime.outcome().await.text.as_deref(), Some("1234"));
    scene.runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    assert_eq!(scene.poll(&session, "t").await.1["status"], "running", "the same task goes on");
    scene.runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    assert_eq!(scene.poll(&session, "t").await.1["status"], "complete");
}

#[tokio::test]
async fn who_waits_hears_of_the_end_of_the_session() {
    let mut scene = Scene::begin(quick()).await;
    let Scene { gateway, runtime } = &mut scene;
    let script = async {
        let session = begun(runtime).await;
        let message = json!({ "sessionId": session, "message": { "actionType": "state", "newState": "terminate" } });
        assert_eq!(gateway.post("/start/send-message", message).await, (200, sent_successfully()));
    };
    let ((status, body), ()) = tokio::join!(gateway.post("/start/run-task", run()), script);
    assert_eq!((status, &body["status"], &body["success"]), (200, &json!("terminated"), &json!(true)), "{body}");
    assert_eq!((&body["pending"], &body["taskId"]), (&json!(false), &json!("t")));
}

#[tokio::test]
async fn who_waits_hears_that_the_instance_was_lost() {
    let mut config = quick();
    config.times.runtime_grace = Duration::from_millis(50);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let script = async {
        begun(&mut runtime).await;
        drop(runtime);
    };
    let ((status, body), ()) = tokio::join!(gateway.post("/start/run-task", run()), script);
    assert_eq!((status, &body["status"], &body["code"]), (200, &json!("failed"), &json!("INSTANCE_LOST")), "{body}");
    let (_, state) = gateway.get(&format!("/start/session-status/{}", body["sessionId"].as_str().unwrap())).await;
    assert_eq!((&state["status"], &state["data"]["status"]), (&json!("failed"), &json!("failed")));
    assert_eq!(state["data"]["error"], "The session's instance was lost");
}

#[tokio::test]
async fn a_gateway_that_stops_says_where_to_poll() {
    let mut scene = Scene::begin(quick()).await;
    let (url, http) = (scene.gateway.url.clone(), scene.gateway.http.clone());
    let waiting = tokio::spawn(async move {
        let response = http.post(format!("{url}/start/run-task")).json(&run()).send().await.unwrap();
        (response.status().as_u16(), response.json::<Value>().await.unwrap())
    });
    begun(&mut scene.runtime).await;
    scene.gateway.stop().await;
    let (status, body) = waiting.await.unwrap();
    assert_eq!((status, &body["status"], &body["pending"]), (200, &json!("pending"), &json!(true)), "{body}");
}

#[tokio::test]
async fn after_a_while_the_answer_is_where_to_poll() {
    let mut scene = Scene::begin(hasty()).await;
    let (status, body) = scene.gateway.post("/start/run-task", run()).await;
    let session = begun(&mut scene.runtime).await;
    let poll = format!("{}/task/{session}/t", scene.gateway.url);
    let wanted = json!({
        "success": true, "sessionId": session, "taskId": "t", "status": "pending", "pending": true, "pollUrl": poll,
        "message": "Task still running. Poll GET /task/:sessionId/:taskId for result.",
    });
    assert_eq!((status, body), (200, wanted));
    let (status, running) = scene.gateway.request(scene.gateway.http.get(poll)).await;
    assert_eq!((status, &running["status"], &running["pending"]), (200, &json!("running"), &json!(true)));
}

#[tokio::test]
async fn who_waits_is_looking_and_a_client_that_leaves_leaves_its_task_running() {
    let mut scene = Scene::begin(quick()).await;
    let (url, http) = (scene.gateway.url.clone(), scene.gateway.http.clone());
    let waiting = tokio::spawn(async move { http.post(format!("{url}/start/run-task")).json(&run()).send().await });
    let session = begun(&mut scene.runtime).await;
    let gateway = &scene.gateway;
    let watching = async |wanted: u64| {
        let path = format!("/v1/sessions/{session}");
        let now = || async { gateway.get(&path).await.1["watchers"]["watching"] == wanted };
        wait_until(&format!("{wanted} watch"), now).await;
    };
    watching(1).await;
    waiting.abort();
    watching(0).await;
    scene.runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    assert_eq!(scene.poll(&session, "t").await.1["data"]["message"], "done");
}

#[tokio::test]
async fn a_second_new_task_waits_for_the_first_and_each_answers_with_its_own_result() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.start(json!({})).await;
    let Scene { gateway, runtime } = &mut scene;
    let send = |prompt: &str| {
        let message = json!({ "actionType": "newTask", "newState": "start", "taskDetails": prompt, "taskId": prompt });
        gateway.post("/start/send-message", json!({ "sessionId": session, "message": message }))
    };
    let script = async {
        for _ in 0..2 {
            let task = task_of(runtime).await.task_id.unwrap();
            runtime.publish(&session, "task_started", json!({ "taskId": task })).await;
            runtime.publish(&session, "task_completed", json!({ "message": format!("did {task}") })).await;
        }
    };
    let (one, two, ()) = tokio::join!(send("one"), send("two"), script);
    for (prompt, (status, body)) in [("one", one), ("two", two)] {
        assert_eq!((status, &body["taskId"]), (200, &json!(prompt)), "{body}");
        assert_eq!(body["data"]["message"], format!("did {prompt}"));
    }
}

#[tokio::test]
async fn a_question_of_another_task_ends_nobodys_wait() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.running().await;
    scene.runtime.ask(&session, "g", json!({})).await;
    let (status, body) =
        scene.send(&session, json!({ "actionType": "newTask", "prompt": "next", "taskId": "u" })).await;
    assert_eq!((status, &body["status"]), (200, &json!("pending")), "{body}");
    let (_, queued) = scene.poll(&session, "u").await;
    assert_eq!((&queued["status"], &queued["pending"]), (&json!("running"), &json!(true)));
}

#[tokio::test]
async fn a_task_id_is_used_once() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.running().await;
    let (status, body) = scene.send(&session, json!({ "actionType": "newTask", "prompt": "p", "taskId": "t" })).await;
    assert_eq!((status, &body["code"]), (409, &json!("CONFLICT")), "{body}");
}
