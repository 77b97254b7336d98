//! Keys, capabilities and rates.

use serde_json::{Value, json};

use super::*;

const BEGIN: &[&str] = &["/start/start-session", "/start/run-task"];

fn no_key() -> (u16, Value) {
    (401, refused("UNAUTHORIZED", "API key required. Provide Authorization: Bearer <api_key>"))
}

#[tokio::test]
async fn a_key_is_asked_for_in_the_documented_words() {
    let closed = Closed::begin(hasty(), Vec::new()).await;
    let wrong = (401, refused("INVALID_API_KEY", "Invalid or revoked API key"));
    for path in BEGIN.iter().chain(&["/start/send-message"]) {
        assert_eq!(closed.post(path, None, json!({})).await, no_key(), "{path}");
        assert_eq!(closed.post(path, Some("nobody"), json!({})).await, wrong, "{path}");
        let basic = closed.to(path, None, &json!({})).header("authorization", "Basic a2V5");
        assert_eq!(closed.gateway.request(basic).await, no_key(), "{path}");
    }
    let response = closed.to("/start/run-task", None, &json!({})).send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer");
}

#[tokio::test]
async fn another_projects_session_looks_like_none() {
    let mut closed = Closed::begin(hasty(), Vec::new()).await;
    let session = closed.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    let none = "aaaaaaaaaaaaaaaaaaaa";
    let messages = [
        json!({ "actionType": "state", "newState": "terminate" }),
        json!({ "actionType": "newTask", "prompt": "p" }),
        json!({ "actionType": "guardrail", "prompt": "yes" }),
        json!({ "actionType": "nonsense" }),
    ];
    for message in messages {
        let foreign = closed.send(Some("other"), &session, message.clone()).await;
        assert_eq!(foreign, (401, refused("SESSION_NOT_FOUND", "Session not found or unauthorized")));
        assert_eq!(foreign, closed.send(Some("other"), none, message).await);
    }
    let (_, status) = closed.get(&format!("/start/session-status/{session}"), None).await;
    assert_eq!(status["status"], "active");
}

#[tokio::test]
async fn a_session_of_a_project_goes_to_a_runtime_of_that_project() {
    let mut closed = Closed::begin(hasty(), Vec::new()).await;
    let (_, started) = closed.post("/start/start-session", Some("other"), json!({})).await;
    assert_eq!(started["sessionId"], closed.others.take_assigned().await.0);
    let mine = closed.start(json!({})).await;
    assert_ne!(started["sessionId"], mine.as_str());
    let count = async |key| closed.get("/start/active-sockets", key).await.1["count"].clone();
    assert_eq!((count(Some("user")).await, count(None).await), (json!(1), json!(2)));
}

#[tokio::test]
async fn the_session_id_is_enough_to_read() {
    let mut closed = Closed::begin(hasty(), Vec::new()).await;
    let session = closed.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    for path in [format!("/task/{session}/t"), format!("/start/session-status/{session}")] {
        for key in [None, Some("nobody"), Some("other"), Some("user")] {
            assert_eq!(closed.get(&path, key).await.0, 200, "{path} {key:?}");
        }
    }
}

#[tokio::test]
async fn where_the_operator_wants_it_reading_needs_a_key_of_the_project_as_well() {
    let mut config = hasty();
    config.webrun.require_key = true;
    let mut closed = Closed::begin(config, vec![key("commands", "p", &[Scope::Control])]).await;
    let session = closed.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    let none = "aaaaaaaaaaaaaaaaaaaa";
    for path in ["/task/{}/t", "/start/session-status/{}"] {
        let of = |session: &str| path.replace("{}", session);
        assert_eq!(closed.get(&of(&session), None).await, no_key());
        assert_eq!(closed.get(&of(&session), Some("nobody")).await.0, 401);
        assert_eq!(closed.get(&of(&session), Some("user")).await.0, 200);
        assert_eq!(closed.get(&of(&session), Some("commands")).await.0, 403);
        let foreign = closed.get(&of(&session), Some("other")).await;
        assert_eq!(foreign, (404, refused("SESSION_NOT_FOUND", "Session not found")));
        assert_eq!(foreign, closed.get(&of(none), Some("other")).await);
    }
}

#[tokio::test]
async fn a_key_may_do_what_its_scopes_say() {
    let keys = vec![
        key("reads", "p", &[Scope::Watch]),
        key("answers", "p", &[Scope::Answer]),
        key("steers", "p", &[Scope::Control]),
    ];
    let mut closed = Closed::begin(hasty(), keys).await;
    let session = closed.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    closed.runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    closed.runtime.ask(&session, "g", json!({})).await;
    let pause = json!({ "actionType": "state", "newState": "pause" });
    let task = json!({ "actionType": "newTask", "prompt": "p" });
    let answer = json!({ "actionType": "guardrail", "prompt": "yes" });
    for (key, message, wanted) in [
        ("reads", &pause, 403),
        ("reads", &task, 403),
        ("reads", &answer, 403),
        ("answers", &pause, 403),
        ("answers", &task, 403),
        ("steers", &answer, 403),
        ("steers", &pause, 200),
        ("steers", &task, 200),
        ("answers", &answer, 200),
    ] {
        let (status, body) = closed.send(Some(key), &session, message.clone()).await;
        assert_eq!(status, wanted, "{key} {message}: {body}");
        if status == 403 {
            assert_eq!((&body["success"], &body["code"]), (&json!(false), &json!("FORBIDDEN")));
        }
    }
    for path in BEGIN {
        assert_eq!(closed.post(path, Some("answers"), json!({ "prompt": "p" })).await.0, 403);
    }
}

#[tokio::test]
async fn ten_beginnings_a_minute_and_then_429_with_when_to_come_back() {
    let mut closed = Closed::begin(hasty(), vec![key("second", "p", CLIENT)]).await;
    let session = closed.start(json!({})).await;
    let new_task = json!({ "sessionId": session, "message": { "actionType": "newTask", "prompt": "p" } });
    let run = json!({ "prompt": "p" });
    let bodies = [("/start/start-session", json!({})), ("/start/run-task", run), ("/start/send-message", new_task)];
    for (index, (path, body)) in bodies.iter().cycle().take(9).enumerate() {
        let response = closed.to(path, Some("user"), body).send().await.unwrap();
        let number = |name: &str| response.headers()[name].to_str().unwrap().parse::<usize>().unwrap();
        assert_eq!((response.status().as_u16(), number("x-ratelimit-limit")), (200, 10), "{path}");
        assert_eq!(number("x-ratelimit-remaining"), 8 - index);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as usize;
        assert!((now..=now + 61).contains(&number("x-ratelimit-reset")), "seconds since 1970");
    }
    for (path, body) in &bodies {
        let response = closed.to(path, Some("user"), body).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-ratelimit-remaining"]),
            (429, &"0".parse().unwrap())
        );
        let after: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&after), "{after}");
        let wanted = refused("RATE_LIMIT_EXCEEDED", "Rate limit exceeded. Please try again later.");
        assert_eq!(response.json::<Value>().await.unwrap(), wanted, "{path}");
    }
    assert_eq!(closed.post("/start/start-session", Some("second"), json!({})).await.0, 200, "each key has its own");
    closed.runtime.ask(&session, "g", json!({})).await;
    for _ in 0..20 {
        assert_eq!(closed.get(&format!("/start/session-status/{session}"), Some("user")).await.0, 200);
        let take = json!({ "actionType": "interaction", "action": { "type": "takeOverControl" } });
        assert_eq!(closed.send(Some("user"), &session, take).await.0, 200);
    }
    let answered = closed.send(Some("user"), &session, json!({ "actionType": "guardrail", "prompt": "yes" })).await;
    assert_eq!(answered, (200, sent_successfully()), "an answer is never lost to a limit");
}

#[tokio::test]
async fn nobody_is_counted_without_keys() {
    let mut config = hasty();
    config.webrun.requests_per_minute = 1;
    let scene = Scene::begin(config).await;
    for _ in 0..3 {
        let request = scene.gateway.http.post(format!("{}/start/start-session", scene.gateway.url));
        let response = request.send().await.unwrap();
        assert_eq!((response.status().as_u16(), response.headers().get("x-ratelimit-limit")), (200, None));
    }
}

#[tokio::test]
async fn no_log_line_and_no_refusal_shows_a_session_id() {
    let log = crate::secrecy::log();
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.running().await;
    let message = |message: Value| json!({ "sessionId": session, "message": message });
    let mut refusals = String::new();
    for path in [format!("/task/{session}/u"), format!("/task/{session}"), format!("/start/{session}/x")] {
        let (status, body) = scene.gateway.get(&path).await;
        assert_eq!(status, 404);
        refusals.push_str(&body.to_string());
        let foreign = scene.gateway.http.get(format!("{}{path}", scene.gateway.url)).header("host", "evil.example");
        let (status, body) = scene.gateway.request(foreign).await;
        assert_eq!(status, 403);
        refusals.push_str(&body.to_string());
    }
    for said in [
        json!({ "actionType": "guardrail", "prompt": "yes" }),
        json!({ "actionType": "newTask", "prompt": "p", "taskId": "t" }),
        json!({ "actionType": "interaction", "action": { "type": "CLICK" } }),
        json!({ "actionType": "state", "newState": "terminate" }),
        json!({ "actionType": "state", "newState": "pause" }),
    ] {
        let (status, body) = scene.gateway.post("/start/send-message", message(said)).await;
        if status != 200 {
            refusals.push_str(&body.to_string());
        }
    }
    assert!(!refusals.contains(&session), "{refusals}");
    scene.gateway.stop().await;
    let log = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    assert!(log.contains("session ended"), "the log is read");
    assert!(!log.contains(&session), "a log line shows the session's id");
}

#[tokio::test]
async fn a_token_begins_as_much_as_the_key_that_issued_it() {
    let mut config = hasty();
    config.webrun.requests_per_minute = 2;
    let issuer = &[Scope::Admin, Scope::Control][..];
    let off = KeyEntry { account: onlooker::config::key::Account::Deactivated, ..key("off", "p", issuer) };
    let closed = Closed::begin(config, vec![key("issuer", "p", issuer), off]).await;
    let token = async |key: &str| {
        let (status, issued) = closed.post("/v1/tokens", Some(key), json!({ "scopes": ["control"] })).await;
        assert_eq!(status, 200, "{issued}");
        issued["token"].as_str().unwrap().to_owned()
    };
    let start = async |token: &str| {
        let request = closed.to("/start/start-session", None, &json!({})).bearer_auth(token);
        closed.gateway.request(request).await
    };
    assert_eq!(start(&token("off").await).await, (403, refused("ACCOUNT_DEACTIVATED", "Account is deactivated")));
    assert_eq!(start(&token("issuer").await).await.0, 200);
    assert_eq!(start(&token("issuer").await).await.0, 200, "another token");
    assert_eq!(start(&token("issuer").await).await.0, 429);
    assert_eq!(closed.post("/start/start-session", Some("issuer"), json!({})).await.0, 429, "the same window");
}
