//! Sessions and their parameters: what a start answers, and what of it reaches the runtime.

use onlooker::config::key::Account;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_started_session_is_described_in_the_documented_words() {
    let mut scene = Scene::begin(quick()).await;
    let body = json!({ "task": { "prompt": "Go to amazon.com", "taskId": "abc" } });
    let (status, started) = scene.gateway.post("/start/start-session", body).await;
    let (session, _) = scene.runtime.take_assigned().await;
    let url = &scene.gateway.url;
    let wanted = json!({
        "success": true,
        "sessionId": session,
        "taskId": "abc",
        "socketURL": url,
        "streaming": { "webViewURL": format!("{url}/view/{session}"), "dimensions": { "width": 1024, "height": 600 } },
        "initialPrompt": "Go to amazon.com",
        "expiresIn": 300_000,
        "message": "Connect to instance using sessionId in auth",
    });
    assert_eq!((status, started), (200, wanted));
}

#[tokio::test]
async fn a_start_may_say_nothing_at_all() {
    let mut scene = Scene::begin(quick()).await;
    let bare = || scene.gateway.http.post(format!("{}/start/start-session", scene.gateway.url));
    for request in [bare(), bare().json(&json!({}))] {
        let (status, started) = scene.gateway.request(request).await;
        assert_eq!((status, &started["initialPrompt"], &started["taskId"]), (200, &json!(""), &Value::Null));
        let (_, asked) = assigned(&mut scene.runtime).await;
        assert_eq!(asked, OpenSession::default());
    }
}

#[tokio::test]
async fn what_every_generation_asks_for_reaches_the_runtime_whole() {
    let secrets = json!([{ "match": "*.a.example", "fields": { "email": "me@a.example", "password": "hunter2" } }]);
    let proxy = json!({ "source": "custom", "type": "socks", "host": "p.example", "port": "1080", "username": "u",
        "password": "sesame-proxy", "level": "system" });
    let webhook =
        json!({ "name": "n", "url": "https://h.example/x", "auth": "Bearer tok-en", "submittedData": "full_response" });
    let schema = json!({ "type": "object", "properties": { "price": { "type": "number" } } });
    let session = json!({ "policyId": "pol_1", "mode": "default", "proxy": proxy, "own": { "top": 1 } });
    let task = json!({ "startingUrl": "https://a.example", "maxInputTokens": 1000, "maxOutputTokens": 100,
        "outputType": "structured_json", "outputSchema": schema, "files": [], "webhook": webhook });
    let with = |base: &Value, more: Value| {
        let mut all = base.as_object().unwrap().clone();
        all.extend(more.as_object().unwrap().clone());
        Value::Object(all)
    };
    let said = json!({ "maxDuration": 60000, "terminateOnCompletion": true, "secrets": secrets, "taskId": "t" });
    let today = with(&task, with(&said, json!({ "prompt": "Buy", "own": [1] })));
    let mut old = with(&task, with(&said, json!({ "taskDetails": "Buy", "own": [1] })));
    let old_members = old.as_object_mut().unwrap();
    let url = old_members.remove("startingUrl").unwrap();
    old_members.insert("startingPoint".to_owned(), url);
    let flat = {
        let mut flat = with(&session, with(&task, with(&said, json!({ "prompt": "Buy" }))));
        flat["profileId"] = json!("e1");
        flat["reachOutMode"] = json!("off");
        flat
    };
    let top = with(&session, json!({ "environmentId": "e1", "reachOutMode": "off" }));
    let mut scene = Scene::begin(hasty()).await;
    for (path, body, own) in [
        ("start-session", with(&top, json!({ "task": today })), json!({ "own": [1] })),
        ("start-session", with(&top, json!({ "initialTask": old })), json!({ "own": [1] })),
        ("start-session", flat.clone(), json!({})),
        ("run-task", with(&top, json!({ "task": today, "sessionId": "ignored" })), json!({ "own": [1] })),
        ("run-task", flat, json!({})),
    ] {
        let (status, answer) = scene.gateway.post(&format!("/start/{path}"), body.clone()).await;
        assert_eq!((status, &answer["taskId"]), (200, &json!("t")), "{answer}");
        let (_, asked) = assigned(&mut scene.runtime).await;
        let wanted = json!({ "reachOutMode": "off", "environmentId": "e1", "parameters": session });
        assert_eq!(serde_json::to_value(asked).unwrap(), wanted, "{path} {body}");
        let given = serde_json::to_value(task_of(&mut scene.runtime).await).unwrap();
        let wanted = with(&with(&task, with(&said, json!({ "prompt": "Buy" }))), own);
        assert_eq!(given, wanted, "{path} {body}");
    }
}

#[tokio::test]
async fn a_run_ends_its_session_with_its_task_whatever_it_says() {
    let mut scene = Scene::begin(quick()).await;
    let run = json!({ "prompt": "Buy", "taskId": "t", "terminateOnCompletion": false });
    let Scene { gateway, runtime } = &mut scene;
    let script = async {
        let (session, _) = runtime.take_assigned().await;
        assert!(task_of(runtime).await.terminate_on_completion);
        runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
        runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
        session
    };
    let ((status, result), session) = tokio::join!(gateway.post("/start/run-task", run), script);
    assert_eq!((status, &result["data"]["message"]), (200, &json!("done")));
    wait_until("the session has ended", || async {
        gateway.get(&format!("/start/session-status/{session}")).await.1["status"] == "completed"
    })
    .await;
    let (status, polled) = gateway.get(&format!("/task/{session}/t")).await;
    assert_eq!((status, &polled["data"]["message"]), (200, &json!("done")), "kept after the end");
}

#[tokio::test]
async fn what_the_runtime_announces_of_its_streams_is_passed_on() {
    let gateway = TestGateway::with(quick()).await;
    let labels =
        json!({ "webRTCURL": "https://video.example/{session}/whep", "dimensions": { "width": 800, "height": 500 } });
    let labels = labels.as_object().unwrap().clone();
    let _runtime = Runtime::announcing(&gateway, "films", 1, None, labels).await;
    let (_, started) = gateway.post("/start/start-session", json!({})).await;
    let session = started["sessionId"].as_str().unwrap();
    assert_eq!(started["streaming"]["webRTCURL"], format!("https://video.example/{session}/whep"));
    assert_eq!(started["streaming"]["dimensions"], json!({ "width": 800, "height": 500 }));
}

#[tokio::test]
async fn without_an_instance_with_room_nothing_starts() {
    let gateway = TestGateway::with(quick()).await;
    let wanted = (503, refused("NO_INSTANCES_AVAILABLE", "No available instances."));
    assert_eq!(gateway.post("/start/start-session", json!({})).await, wanted);
    assert_eq!(gateway.post("/start/run-task", json!({ "prompt": "p" })).await, wanted);
    let _full = Runtime::connect(&gateway, "full", 0, None).await;
    assert_eq!(gateway.post("/start/start-session", json!({})).await, wanted);
}

#[tokio::test]
async fn clients_are_told_the_name_under_which_they_came() {
    let mut config = hasty();
    config.webrun.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    for (config, wanted) in [(config, "https://localhost:8443"), (hasty(), "http://localhost:1234")] {
        let scene = Scene::begin(config).await;
        let request = scene.gateway.http.post(format!("{}/start/run-task", scene.gateway.url));
        let request = request.header("host", "localhost:1234").json(&json!({ "prompt": "p" }));
        let request = request.header("x-forwarded-host", "localhost:8443").header("x-forwarded-proto", "https");
        let (_, pending) = scene.gateway.request(request).await;
        let poll = pending["pollUrl"].as_str().unwrap();
        assert!(poll.starts_with(&format!("{wanted}/task/")), "{poll}");
    }
}

#[tokio::test]
async fn a_host_that_is_none_gets_into_no_url() {
    let closed = Closed::begin(hasty(), Vec::new()).await;
    let request = closed.to("/start/start-session", Some("user"), &json!({})).header("host", "user@evil.example");
    let (status, body) = closed.gateway.request(request).await;
    let message = "The Host header is not a name or address with an optional port";
    assert_eq!((status, body), (400, refused("INVALID_HOST", message)));
    let request = closed.to("/start/start-session", Some("user"), &json!({})).header("host", "any.example");
    assert_eq!(closed.gateway.request(request).await.1["socketURL"], "http://any.example");
}

#[tokio::test]
async fn the_account_behind_a_key_decides_what_it_may_begin_and_nothing_else() {
    let with = |id: &str, account, balance| KeyEntry { account, balance, ..key(id, "p", CLIENT) };
    let keys = vec![
        with("rich", Account::Active, Some(12.5)),
        with("poor", Account::InsufficientBalance, Some(0.15)),
        with("off", Account::Deactivated, None),
    ];
    let mut closed = Closed::begin(hasty(), keys).await;
    let session = closed.start(json!({})).await;
    let mut poor = refused("INSUFFICIENT_BALANCE", "Insufficient balance.");
    poor["balance"] = json!(0.15);
    let off = refused("ACCOUNT_DEACTIVATED", "Account is deactivated");
    let new_task = json!({ "sessionId": session, "message": { "actionType": "newTask", "prompt": "p" } });
    let begins = [
        ("/start/start-session", json!({})),
        ("/start/run-task", json!({ "prompt": "p" })),
        ("/start/send-message", new_task),
    ];
    for (path, body) in begins {
        assert_eq!(closed.post(path, Some("poor"), body.clone()).await, (402, poor.clone()), "{path}");
        assert_eq!(closed.post(path, Some("off"), body).await, (403, off.clone()), "{path}");
    }
    let (_, started) = closed.post("/start/start-session", Some("rich"), json!({})).await;
    assert_eq!(started["balance"], 12.5);
    let (_, started) = closed.post("/start/start-session", Some("user"), json!({})).await;
    assert_eq!(started.get("balance"), None);
    closed.runtime.ask(&session, "g", json!({})).await;
    let answered = closed.send(Some("off"), &session, json!({ "actionType": "guardrail", "prompt": "yes" })).await;
    assert_eq!(answered, (200, sent_successfully()), "an answer begins nothing");
}
