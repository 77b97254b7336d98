//! Who may join, and what a newcomer is shown first.

use onlooker::config::key::Scope;
use onlooker_protocol::{runtime::OpenSession, view::Outcome};
use serde_json::{Value, json};

use super::{client::*, packets::following};
use crate::harness::*;

async fn refused(gateway: &TestGateway, by: By, auth: Value) -> Value {
    Client::open(gateway, by).await.connect(auth).await.expect_err("refused")
}

#[tokio::test]
async fn an_unknown_and_an_ended_session_are_refused_with_words() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    for by in BOTH {
        for auth in [json!({ "sessionId": "aaaaaaaaaaaaaaaaaaaa" }), json!({ "sessionId": "no" })] {
            let error = refused(&gateway, by, auth).await;
            assert_eq!(
                (&error["message"], &error["data"]["code"]),
                (&json!("Session not found"), &json!("SESSION_NOT_FOUND"))
            );
        }
        for auth in [json!({}), json!({ "sessionId": 5 })] {
            let error = refused(&gateway, by, auth).await;
            assert_eq!(error["data"]["code"], "INVALID_PARAMS");
            assert!(error["message"].as_str().unwrap().contains("sessionId"), "{error}");
        }
    }
    gateway.request(gateway.http.delete(format!("{}/v1/sessions/{session}", gateway.url))).await;
    let error = refused(&gateway, By::Websocket, json!({ "sessionId": session })).await;
    assert_eq!(error["data"]["code"], "SESSION_EXPIRED", "{error}");
    assert!(error["message"].as_str().unwrap().contains("start a new one"), "{error}");
    // Who is refused does not count as watching.
    assert_eq!(following(&gateway, &session).await, 0);
    gateway.stop().await;
}

#[tokio::test]
async fn who_guesses_is_told_to_wait() {
    let mut config = patient();
    config.webrun.failed_joins_per_minute = 3;
    config.webrun.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    let (gateway, _runtime, session) = with_session(config).await;
    let mut client = Client::open(&gateway, By::Websocket).await;
    for _ in 0..3 {
        let error = client.connect(json!({ "sessionId": "aaaaaaaaaaaaaaaaaaaa" })).await.expect_err("a guess");
        assert_eq!(error["data"]["code"], "SESSION_NOT_FOUND");
    }
    // The right one too: otherwise its success would tell.
    let error = client.connect(json!({ "sessionId": session })).await.expect_err("too many");
    assert_eq!(error["data"]["code"], "RATE_LIMIT_EXCEEDED");
    let wait = error["data"]["details"]["retryAfter"].as_u64().unwrap();
    assert!((50..=61).contains(&wait), "{error}");
    // Behind a trusted proxy others are others.
    let url = format!("{}/socket.io/?EIO=4&transport=polling", gateway.url);
    let opened =
        gateway.http.get(&url).header("x-forwarded-for", "10.1.2.3").send().await.unwrap().text().await.unwrap();
    let opened: Value = serde_json::from_str(opened.strip_prefix('0').unwrap()).unwrap();
    let url = format!("{url}&sid={}", opened["sid"].as_str().unwrap());
    let connect = format!("40{}", json!({ "sessionId": session }));
    gateway.http.post(&url).body(connect).send().await.unwrap();
    let joined = gateway.http.get(&url).send().await.unwrap().text().await.unwrap();
    assert!(joined.starts_with("40{"), "{joined}");
    gateway.stop().await;
}

#[tokio::test]
async fn where_a_key_is_asked_for_the_id_alone_opens_nothing() {
    let keys: &[(&str, &[Scope])] = &[
        ("runtime", &[Scope::Publish]),
        ("app", &[Scope::Watch, Scope::Answer, Scope::Control]),
        ("reader", &[Scope::Watch]),
    ];
    let mut config = with_keys(patient(), keys);
    config.webrun.require_key = true;
    config.keys[1].project = "p".to_owned();
    config.keys.push({
        let mut other = with_keys(patient(), &[("other", &[Scope::Watch])]).keys.remove(0);
        other.project = "q".to_owned();
        other
    });
    let gateway = TestGateway::with(config).await;
    let mut runtime = Runtime::connect(&gateway, "runtime", 1, Some("key-runtime")).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    for auth in [
        json!({ "sessionId": session }),
        json!({ "sessionId": session, "apiKey": "wrong" }),
        json!({ "sessionId": session, "apiKey": "key-other" }),
    ] {
        let error = refused(&gateway, By::Websocket, auth).await;
        assert_eq!(error["data"]["code"], "UNAUTHORIZED", "{error}");
    }
    for name in ["apiKey", "token"] {
        Client::join_with(&gateway, By::Websocket, json!({ "sessionId": session, name: "key-app" })).await;
    }
    let url = format!("{}/socket.io/?EIO=4&transport=polling", gateway.url);
    let opened = gateway.http.get(&url).bearer_auth("key-app").send().await.unwrap().text().await.unwrap();
    let opened: Value = serde_json::from_str(opened.strip_prefix('0').unwrap()).unwrap();
    let url = format!("{url}&sid={}", opened["sid"].as_str().unwrap());
    gateway.http.post(&url).body(format!("40{}", json!({ "sessionId": session }))).send().await.unwrap();
    assert!(gateway.http.get(&url).send().await.unwrap().text().await.unwrap().starts_with("40{"));
    // What the key may not do, its holder may not.
    let mut reader =
        Client::join_with(&gateway, By::Websocket, json!({ "sessionId": session, "token": "key-reader" })).await;
    reader.say(json!({ "actionType": "state", "newState": "terminate" })).await;
    assert_eq!(reader.named("error").await["code"], "FORBIDDEN");
    gateway.stop().await;
}

#[tokio::test]
async fn a_key_that_is_not_asked_for_names_its_holder() {
    let keys: &[(&str, &[Scope])] = &[("runtime", &[Scope::Publish]), ("app", &[Scope::Watch])];
    let gateway = TestGateway::with(with_keys(patient(), keys)).await;
    let mut runtime = Runtime::connect(&gateway, "runtime", 1, Some("key-runtime")).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let _client = Client::join(&gateway, By::Websocket, &session).await;
    let _named = Client::join_with(&gateway, By::Websocket, json!({ "sessionId": session, "apiKey": "key-app" })).await;
    let watchers = gateway.http.get(format!("{}/v1/sessions/{session}/watchers", gateway.url)).bearer_auth("key-app");
    let (_, watchers) = gateway.request(watchers).await;
    let mut who: Vec<&str> =
        watchers["watchers"].as_array().unwrap().iter().map(|it| it["who"].as_str().unwrap()).collect();
    who.sort_unstable();
    assert_eq!(who, ["app", "client"]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_newcomer_is_shown_what_is_open_once_and_nothing_that_is_closed() {
    for by in BOTH {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        for id in ["closed", "first", "second"] {
            runtime.ask(&session, id, json!({ "fields": [{ "id": "code", "type": "code" }] })).await;
        }
        let withdrawn = json!({ "guardrailId": "closed", "revision": 1 });
        runtime.publish(&session, "guardrail_withdrawn", withdrawn).await;
        let mut client = Client::join(&gateway, by, &session).await;
        for id in ["first", "second"] {
            let shown = client.event().await;
            assert_eq!((shown.name.as_str(), &shown.argument["guardrailId"]), ("message", &json!(id)));
            assert_eq!(shown.argument["data"]["value"], "May I?");
            assert_eq!(shown.argument["data"]["fields"][0]["id"], "code");
        }
        runtime.publish(&session, "agent", json!({ "content": "next" })).await;
        assert_eq!(client.event().await.argument["content"], "next");
        // An answer that names none is for what was shown last.
        client.say(json!({ "actionType": "guardrail", "prompt": "123" })).await;
        assert_eq!(answered(&mut runtime).await, "second");
        gateway.stop().await;
    }
}

/// The question whose answer the runtime gets next.
pub async fn answered(runtime: &mut Runtime) -> String {
    loop {
        let outcome = runtime.outcome().await;
        if outcome.outcome == Outcome::Answered {
            return outcome.guardrail_id;
        }
    }
}

async fn complete(runtime: &mut Runtime, session: &str, task: &str, kind: &str, data: Value) {
    runtime.publish(session, "task_started", json!({ "taskId": task })).await;
    runtime.publish(session, kind, data).await;
}

/// A session with two tasks, the second of which ended while nobody was there.
async fn with_result(kind: &str, data: Value) -> (TestGateway, Runtime, String) {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    complete(&mut runtime, &session, "t1", "task_completed", json!({ "message": "old" })).await;
    complete(&mut runtime, &session, "t2", kind, data).await;
    (gateway, runtime, session)
}

#[tokio::test]
async fn the_last_result_is_shown_until_somebody_has_had_it() {
    let (gateway, mut runtime, session) = with_result("task_completed", json!({ "message": "done" })).await;
    // One that never answers has not had it, as far as anybody knows.
    let mut silent = Client::open(&gateway, By::Websocket).await;
    silent.silent = true;
    silent.connect(json!({ "sessionId": session })).await.unwrap();
    assert_eq!(silent.message("task_completed").await["data"]["message"], "done");
    let mut client = Client::join(&gateway, By::Polling, &session).await;
    let result = client.event().await;
    assert_eq!((&result.argument["type"], &result.argument["taskId"]), (&json!("task_completed"), &json!("t2")));
    assert_eq!((&result.argument["data"]["message"], &result.argument["sessionId"]), (&json!("done"), &json!(session)));
    // A poll with a new name says that the body before was read.
    let reading = tokio::spawn(async move { client.event().await });
    wait_until("it is proved", || async { proved(&gateway, &session).await.is_some() }).await;
    let mut late = Client::join(&gateway, By::Websocket, &session).await;
    runtime.publish(&session, "agent", json!({ "content": "next" })).await;
    assert_eq!(late.event().await.argument["content"], "next");
    reading.await.unwrap();
    gateway.stop().await;
}

async fn proved(gateway: &TestGateway, session: &str) -> Option<String> {
    let (_, watchers) = gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
    let mut proofs = watchers["watchers"].as_array()?.iter().filter_map(|watcher| watcher["proved"].as_str());
    proofs.next().map(str::to_owned)
}

#[tokio::test]
async fn a_failed_task_is_a_result_too_and_a_newer_task_hides_it() {
    let failed = json!({ "error": "Navigation timeout", "code": "NAVIGATION_TIMEOUT" });
    let (gateway, mut runtime, session) = with_result("error", failed).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.silent = true;
    let error = client.event().await;
    assert_eq!(error.name, "message");
    assert_eq!((&error.argument["type"], &error.argument["error"]), (&json!("error"), &json!("Navigation timeout")));
    assert_eq!((&error.argument["code"], &error.argument["taskId"]), (&json!("NAVIGATION_TIMEOUT"), &json!("t2")));
    runtime.publish(&session, "task_started", json!({ "taskId": "t3" })).await;
    let mut late = Client::join(&gateway, By::Websocket, &session).await;
    runtime.publish(&session, "agent", json!({ "content": "next" })).await;
    assert_eq!(late.event().await.argument["content"], "next");
    gateway.stop().await;
}
