//! Who gets in: loopback and origins in open mode, keys, scopes, projects and tokens in closed mode, TLS.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, time::Duration};

use futures::{SinkExt, StreamExt};
use onlooker::{
    config::{Config, key::Scope},
    gateway::{Gateway, StartError},
};
use onlooker_protocol::{
    Code, SUBPROTOCOL,
    runtime::{GatewayToRuntime, OpenSession, Reclaim, RuntimeToGateway},
    subscriber::GatewayToSubscriber,
};
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

use crate::harness::*;

/// Adds a key to a configuration; the gateway is closed from then on.
pub fn add_key(config: &mut Config, id: &str, project: &str, scopes: &[Scope]) -> String {
    let (key, entry) = onlooker::auth::key::generate(id, project, scopes).unwrap();
    config.keys.push(entry);
    key.expose().to_owned()
}

/// A request and all of its answer.
async fn ask(
    gateway: &TestGateway,
    method: &Method,
    path: &str,
    key: Option<&str>,
    body: &Value,
) -> (u16, HeaderMap, Value) {
    let mut request = gateway.http.request(method.clone(), format!("{}{path}", gateway.url));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    if !body.is_null() {
        request = request.json(body);
    }
    let response = request.send().await.expect("the gateway answers");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    (status, headers, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn get_as(gateway: &TestGateway, key: &str, path: &str) -> (u16, Value) {
    let (status, _, body) = ask(gateway, &Method::GET, path, Some(key), &Value::Null).await;
    (status, body)
}

async fn post_as(gateway: &TestGateway, key: &str, path: &str, body: Value) -> (u16, Value) {
    let (status, _, body) = ask(gateway, &Method::POST, path, Some(key), &body).await;
    (status, body)
}

/// The status with which an upgrade is answered: 101 where it is accepted.
async fn upgrade(gateway: &TestGateway, path: &str, headers: &[(&'static str, &str)]) -> u16 {
    let mut request = format!("{}{path}", gateway.url.replacen("http", "ws", 1)).into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((_, response)) => response.status().as_u16(),
        Err(tungstenite::Error::Http(response)) => response.status().as_u16(),
        Err(error) => panic!("{error}"),
    }
}

/// The code of the next error that a subscriber is told.
async fn refused(subscriber: &mut Subscriber) -> Code {
    subscriber
        .until("an error", |frame| match frame {
            GatewayToSubscriber::Error { refusal, .. } => Some(refusal.code),
            _ => None,
        })
        .await
}

// --- open ------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_open_gateway_answers_to_loopback_only_whatever_the_key() {
    let gateway = TestGateway::start().await;
    let with = |name: &'static str, value: &'static str| {
        gateway.request(gateway.http.get(format!("{}/v1/sessions", gateway.url)).header(name, value))
    };
    let mut hosts_refused = 0.0;
    for (name, value, wanted) in [
        ("host", "evil.example", "host_refused"),
        ("host", "localhost.evil.example", "host_refused"),
        ("host", "10.0.0.1", "host_refused"),
        ("origin", "https://evil.example", "origin_refused"),
        ("origin", "null", "origin_refused"),
    ] {
        let (status, body) = with(name, value).await;
        assert_eq!((status, &body["error"]), (403, &json!(wanted)), "{name}: {value}");
        hosts_refused += f64::from(u8::from(wanted == "host_refused"));
    }
    for (name, value) in [
        ("host", "localhost:1"),
        ("origin", "http://localhost:3000"),
        ("authorization", "Bearer nonsense"),
        ("authorization", "Basic bm9uc2Vuc2U="),
    ] {
        assert_eq!(with(name, value).await.0, 200, "{name}: {value}");
    }
    for path in ["/v1/ws", "/v1/runtime"] {
        assert_eq!(upgrade(&gateway, path, &[("origin", "https://evil.example")]).await, 403, "{path}");
        assert_eq!(upgrade(&gateway, path, &[("host", "evil.example")]).await, 403, "{path}");
        assert_eq!(upgrade(&gateway, path, &[("origin", "http://127.0.0.1:5173")]).await, 101, "{path}");
        hosts_refused += 1.0;
    }
    let counted = gateway.metric("onlooker_refusals_total{code=\"host_refused\"}").await;
    assert_eq!(counted, hosts_refused);
    let mut subscriber = Subscriber::connect(&gateway, Some("nonsense")).await;
    subscriber.until("ready", |frame| matches!(frame, GatewayToSubscriber::Ready { .. }).then_some(())).await;
    Runtime::connect(&gateway, "any", 1, Some("nonsense")).await;
}

// --- keys and scopes -------------------------------------------------------------------------------------------------

struct Doors {
    gateway: TestGateway,
    keys: BTreeMap<&'static str, String>,
}

/// A closed gateway: project red has one key a scope, and blue one with all of them.
async fn closed() -> Doors {
    let mut config = quick();
    config.listen.origins = vec!["https://console.example".to_owned()];
    let mut keys: BTreeMap<&'static str, String> =
        Scope::ALL.iter().map(|scope| (scope.name(), add_key(&mut config, scope.name(), "red", &[*scope]))).collect();
    keys.insert("red", add_key(&mut config, "red", "red", &Scope::ALL));
    keys.insert("blue", add_key(&mut config, "blue", "blue", &Scope::ALL));
    Doors { gateway: TestGateway::with(config).await, keys }
}

impl Doors {
    /// A session of project red, with an open question and a picture.
    async fn session(&self) -> (Runtime, String) {
        let mut runtime = Runtime::connect(&self.gateway, "red", 10, Some(&self.keys["red"])).await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        runtime.publish_picture(&session, b"\x89PNG").await;
        runtime.ask(&session, "g", json!({})).await;
        (runtime, session)
    }
}

#[tokio::test]
async fn every_route_asks_for_its_scope() {
    let Doors { gateway, keys } = closed().await;
    let mut runtime = Runtime::connect(&gateway, "red", 10, Some(&keys["red"])).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let of_session = |rest: &str| format!("/v1/sessions/{session}{rest}");
    let answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "t" });
    let token = json!({ "scopes": ["watch"] });
    let none = Value::Null;
    let table = [
        (Method::GET, "/v1/sessions".to_owned(), none.clone(), "watch"),
        (Method::POST, "/v1/sessions".to_owned(), json!({}), "control"),
        (Method::POST, "/v1/sessions".to_owned(), json!({ "runtime": "self" }), "publish"),
        (Method::GET, of_session(""), none.clone(), "watch"),
        (Method::GET, of_session("/events"), none.clone(), "watch"),
        (Method::POST, of_session("/events"), json!({ "events": [] }), "publish"),
        (Method::GET, of_session("/commands"), none.clone(), "publish"),
        (Method::POST, of_session("/commands"), json!({ "command": "pause" }), "control"),
        (Method::GET, of_session("/watchers"), none.clone(), "watch"),
        (Method::GET, of_session("/tasks/t"), none.clone(), "watch"),
        (Method::GET, of_session("/pictures/p"), none.clone(), "watch"),
        (Method::GET, "/v1/guardrails".to_owned(), none.clone(), "watch"),
        (Method::GET, "/v1/guardrails/g".to_owned(), none.clone(), "watch"),
        (Method::GET, "/v1/guardrails/g/why".to_owned(), none.clone(), "watch"),
        (Method::POST, "/v1/guardrails/g/answer".to_owned(), answer.clone(), "answer"),
        (Method::POST, "/v1/guardrails/g/claim".to_owned(), json!({ "revision": 1 }), "answer"),
        (Method::POST, "/v1/guardrails/g/release".to_owned(), json!({ "revision": 1 }), "answer"),
        (Method::POST, "/v1/notices/n/retry".to_owned(), json!({}), "admin"),
        (Method::POST, "/v1/subscribers/s/alive".to_owned(), json!({}), "watch"),
        (Method::POST, "/v1/tokens".to_owned(), token, "admin"),
        (Method::GET, "/metrics".to_owned(), none.clone(), "admin"),
        (Method::DELETE, of_session(""), none, "control"),
    ];
    for (method, path, body, needed) in &table {
        let (status, headers, refusal) = ask(&gateway, method, path, None, body).await;
        assert_eq!((status, &refusal["error"]), (401, &json!("unauthorized")), "{method} {path}");
        assert_eq!(headers["www-authenticate"], "Bearer");
        let (status, _, wrong) = ask(&gateway, method, path, Some("olk_wrong"), body).await;
        assert_eq!((status, &wrong), (401, &refusal), "{method} {path}");
        for scope in Scope::ALL.map(Scope::name) {
            let (status, _, answer) = ask(&gateway, method, path, Some(&keys[scope]), body).await;
            let allowed = answer["error"] != "forbidden" && status != 401;
            assert_eq!(allowed, scope == *needed, "{method} {path} with {scope}: {status} {answer}");
        }
    }
    for path in ["/", "/app.js", "/healthz", "/readyz"] {
        assert_eq!(ask(&gateway, &Method::GET, path, None, &Value::Null).await.0, 200, "{path} holds no data");
    }
}

#[tokio::test]
async fn sockets_ask_for_their_scopes_at_the_door_and_with_every_frame() {
    let doors = closed().await;
    let (_runtime, session) = doors.session().await;
    let Doors { gateway, keys } = &doors;
    for scope in ["publish", "answer", "control", "admin"] {
        let mut subscriber = Subscriber::connect(gateway, Some(&keys[scope])).await;
        assert_eq!(subscriber.closed().await, Some(4503), "{scope}");
    }
    for scope in ["watch", "answer", "control", "admin"] {
        assert_eq!(runtime_close(gateway, Some(&keys[scope])).await, Some(4503), "{scope}");
    }
    let mut subscriber = Subscriber::connect(gateway, Some(&keys["watch"])).await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    for frame in [
        json!({ "type": "answer", "guardrailId": "g", "revision": 1, "idempotencyKey": "k", "action": "decline" }),
        json!({ "type": "claim", "guardrailId": "g", "revision": 1 }),
        json!({ "type": "release", "guardrailId": "g", "revision": 1 }),
        json!({ "type": "command", "command": "terminate" }),
        json!({ "type": "command", "command": "take_control" }),
    ] {
        let mut frame = frame;
        frame["session"] = json!(session);
        subscriber.send_text(frame.to_string()).await;
        assert_eq!(refused(&mut subscriber).await, Code::Forbidden, "{frame}");
    }
    let closed = metric_as(gateway, &keys["red"], "onlooker_closes_total{code=\"not_allowed\"}").await;
    assert_eq!(closed, 8.0);
}

async fn metric_as(gateway: &TestGateway, key: &str, name: &str) -> f64 {
    let (_, text) = get_as(gateway, key, "/metrics").await;
    let text = text.as_str().expect("metrics are text").to_owned();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0.0)
}

/// The close code that a runtime gets which registers with this key.
async fn runtime_close(gateway: &TestGateway, key: Option<&str>) -> Option<u16> {
    let mut request = format!("{}/v1/runtime", gateway.url.replacen("http", "ws", 1)).into_client_request().unwrap();
    if let Some(key) = key {
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    }
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    let register = RuntimeToGateway::Register { name: "r".to_owned(), capacity: 1, labels: Default::default() };
    socket.send(Message::text(serde_json::to_string(&register).unwrap())).await.unwrap();
    loop {
        match tokio::time::timeout(BOUND, socket.next()).await.expect("something comes") {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(Message::Text(text))) => assert!(!text.contains("registered"), "{text}"),
            Some(Ok(_)) => {}
            _ => return None,
        }
    }
}

#[tokio::test]
async fn keys_are_taken_from_the_header_or_the_first_frame() {
    let Doors { gateway, keys } = closed().await;
    let ready = |frame: &GatewayToSubscriber| match frame {
        GatewayToSubscriber::Ready { project, scopes, who, .. } => Some((project.clone(), scopes.clone(), who.clone())),
        _ => None,
    };
    let wanted = ("red".to_owned(), vec!["watch".to_owned()], "watch".to_owned());
    let mut by_header = Subscriber::connect(&gateway, Some(&keys["watch"])).await;
    assert_eq!(by_header.until("ready", ready).await, wanted);
    let mut by_frame = Subscriber::connect(&gateway, None).await;
    by_frame.send_text(json!({ "type": "auth", "token": keys["watch"] }).to_string()).await;
    assert_eq!(by_frame.until("ready", ready).await, wanted);

    let mut wrong_header = Subscriber::connect(&gateway, Some("wrong")).await;
    assert_eq!(wrong_header.closed().await, Some(4500));
    for frame in [r#"{"type":"auth","token":"wrong"}"#, r#"{"type":"subscribe","project":true}"#, "not JSON"] {
        let mut wrong = Subscriber::connect(&gateway, None).await;
        wrong.send_text(frame).await;
        assert_eq!(wrong.closed().await, Some(4500), "{frame}");
    }
    let mut large = Subscriber::connect(&gateway, None).await;
    large.send_text(json!({ "type": "auth", "token": "x".repeat(5000) }).to_string()).await;
    assert_eq!(large.closed().await, Some(4504));

    assert_eq!(runtime_close(&gateway, Some("wrong")).await, Some(4500));
    assert_eq!(runtime_close(&gateway, None).await, Some(4500));
    let request = format!("{}/v1/runtime", gateway.url.replacen("http", "ws", 1)).into_client_request().unwrap();
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.unwrap();
    for frame in
        [json!({ "type": "auth", "token": keys["publish"] }), json!({ "type": "register", "name": "r", "capacity": 1 })]
    {
        socket.send(Message::text(frame.to_string())).await.unwrap();
    }
    let registered = async {
        while let Some(Ok(message)) = socket.next().await {
            if message.to_text().is_ok_and(|text| text.contains("registered")) {
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(BOUND, registered).await.unwrap());
}

#[tokio::test]
async fn pages_of_foreign_origins_do_not_reach_a_closed_gateway() {
    let Doors { gateway, keys } = closed().await;
    let bearer = format!("Bearer {}", keys["watch"]);
    let own = gateway.url.clone();
    for (origin, status) in [("https://evil.example", 403), ("https://console.example", 101), (own.as_str(), 101)] {
        let headers = [("origin", origin), ("authorization", bearer.as_str())];
        assert_eq!(upgrade(&gateway, "/v1/ws", &headers).await, status, "{origin}");
    }
    let refused = metric_as(&gateway, &keys["red"], "onlooker_refusals_total{code=\"origin_refused\"}").await;
    assert_eq!(refused, 1.0);
}

// --- projects --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_foreign_session_is_as_unknown_as_none_at_all() {
    let doors = closed().await;
    let (mut runtime, session) = doors.session().await;
    let Doors { gateway, keys } = &doors;
    let (blue, red) = (&keys["blue"], &keys["red"]);
    let (_, own) = get_as(gateway, red, &format!("/v1/sessions/{session}")).await;
    let picture = own["state"]["picture"]["id"].as_str().expect("red sees its picture").to_owned();
    let unknown = "aaaaaaaaaaaaaaaaaaaa";
    let answer = |session: &str| json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "t" });
    type Route = (Method, fn(&str, &str) -> String);
    let routes: [Route; 13] = [
        (Method::GET, |s, _| format!("/v1/sessions/{s}")),
        (Method::DELETE, |s, _| format!("/v1/sessions/{s}")),
        (Method::GET, |s, _| format!("/v1/sessions/{s}/events")),
        (Method::POST, |s, _| format!("/v1/sessions/{s}/events")),
        (Method::GET, |s, _| format!("/v1/sessions/{s}/commands")),
        (Method::GET, |s, _| format!("/v1/sessions/{s}/watchers")),
        (Method::GET, |s, _| format!("/v1/sessions/{s}/tasks/t")),
        (Method::GET, |s, p| format!("/v1/sessions/{s}/pictures/{p}")),
        (Method::GET, |s, _| format!("/v1/guardrails/g?session={s}")),
        (Method::GET, |s, _| format!("/v1/guardrails/g/why?session={s}")),
        (Method::POST, |s, _| format!("/v1/guardrails/g/answer?session={s}")),
        (Method::POST, |s, _| format!("/v1/guardrails/g/claim?session={s}")),
        (Method::POST, |s, _| format!("/v1/guardrails/g/release?session={s}")),
    ];
    for (method, path) in &routes {
        let body = |session: &str| match *method {
            Method::POST if path(session, "").ends_with("events") => json!({ "events": [] }),
            Method::POST => answer(session),
            _ => Value::Null,
        };
        let foreign = ask(gateway, method, &path(&session, &picture), Some(blue), &body(&session)).await;
        let none = ask(gateway, method, &path(unknown, "x"), Some(blue), &body(unknown)).await;
        assert_eq!((foreign.0, &foreign.2), (none.0, &none.2), "{method} {}", path(&session, ""));
        assert_eq!(foreign.0, 404, "{method} {}", path(&session, ""));
    }
    let command = json!({ "command": "terminate" });
    for id in [session.as_str(), unknown] {
        let (status, refusal) = post_as(gateway, blue, &format!("/v1/sessions/{id}/commands"), command.clone()).await;
        assert_eq!((status, &refusal["error"]), (404, &json!("unknown_session")));
    }
    // Without naming a session, a foreign guardrail is an unknown one.
    let foreign = get_as(gateway, blue, "/v1/guardrails/g").await;
    let none = get_as(gateway, blue, "/v1/guardrails/h").await;
    assert_eq!(foreign, none);
    assert_eq!(get_as(gateway, blue, "/v1/sessions").await.1, json!({ "sessions": [] }));
    assert_eq!(get_as(gateway, blue, "/v1/guardrails").await.1, json!({ "guardrails": [] }));
    let after = |id: &str| format!("/v1/sessions?after={id}");
    assert_eq!(get_as(gateway, blue, &after(&session)).await, get_as(gateway, blue, &after(unknown)).await);

    sockets_show_nothing(gateway, blue, &session, unknown).await;
    let (_, state) = get_as(gateway, red, &format!("/v1/guardrails/g?session={session}")).await;
    assert_eq!(state["guardrail"]["state"], "open", "nothing of all this had an effect");
    runtime.publish(&session, "action", json!({ "name": "on" })).await;
}

/// The two sockets of a foreign project.
async fn sockets_show_nothing(gateway: &TestGateway, key: &str, session: &str, unknown: &str) {
    let mut subscriber = Subscriber::connect(gateway, Some(key)).await;
    subscriber.send_text(r#"{"type":"subscribe","project":true}"#).await;
    let sessions = subscriber
        .until("summaries", |frame| match frame {
            GatewayToSubscriber::Summaries { sessions, .. } => Some(sessions.len()),
            _ => None,
        })
        .await;
    assert_eq!(sessions, 0);
    for frame in [
        json!({ "type": "subscribe" }),
        json!({ "type": "answer", "guardrailId": "g", "revision": 1, "idempotencyKey": "k", "action": "decline" }),
        json!({ "type": "claim", "guardrailId": "g", "revision": 1 }),
        json!({ "type": "command", "command": "terminate" }),
        json!({ "type": "ack", "position": "aaaaaaaa:0" }),
    ] {
        let mut answers = Vec::new();
        for id in [session, unknown] {
            let mut frame = frame.clone();
            frame["session"] = json!(id);
            subscriber.send_text(frame.to_string()).await;
            let fits =
                |frame: &GatewayToSubscriber| matches!(frame, GatewayToSubscriber::Error { .. }).then(|| frame.clone());
            answers.push(subscriber.until("an error", fits).await);
        }
        assert_eq!(answers[0], answers[1], "{frame}");
    }
    let mut runtime = Runtime::connect(gateway, "blue", 10, Some(key)).await;
    let mut answers = Vec::new();
    for id in [session, unknown] {
        let reclaim = Reclaim { session: id.to_owned(), claim: "x".to_owned(), commands: 0 };
        runtime.send(RuntimeToGateway::Claim(reclaim)).await;
        answers.push(
            runtime
                .until("released", |frame| match frame {
                    GatewayToRuntime::Released { refusal, .. } => Some(refusal.clone()),
                    _ => None,
                })
                .await,
        );
        runtime.send(RuntimeToGateway::End { session: id.to_owned() }).await;
        answers.push(
            runtime
                .until("an error", |frame| match frame {
                    GatewayToRuntime::Error { refusal, .. } => Some(refusal.clone()),
                    _ => None,
                })
                .await,
        );
    }
    assert_eq!(answers[..2], answers[2..]);
    assert!(subscriber.seen.iter().all(|frame| !matches!(frame, GatewayToSubscriber::Summary(_))));
}

// --- tokens ----------------------------------------------------------------------------------------------------------

async fn token(gateway: &TestGateway, key: &str, request: Value) -> String {
    let (status, issued) = post_as(gateway, key, "/v1/tokens", request).await;
    assert_eq!(status, 200, "{issued}");
    issued["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_reaches_its_sessions_and_scopes_and_nothing_else() {
    let doors = closed().await;
    let (mut runtime, session) = doors.session().await;
    let Doors { gateway, keys } = &doors;
    let (other, _) = runtime.open(OpenSession::default()).await;
    let token =
        token(gateway, &keys["admin"], json!({ "scopes": ["watch"], "sessions": [session], "who": "Ada" })).await;
    let path = |session: &str| format!("/v1/sessions/{session}");
    assert_eq!(get_as(gateway, &token, &path(&session)).await.0, 200);
    assert_eq!(
        get_as(gateway, &token, &path(&other)).await,
        get_as(gateway, &token, &path("aaaaaaaaaaaaaaaaaaaa")).await
    );
    let (_, listed) = get_as(gateway, &token, "/v1/sessions").await;
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1);
    let (status, refusal) = post_as(gateway, &token, "/v1/guardrails/g/claim", json!({ "revision": 1 })).await;
    assert_eq!((status, &refusal["error"]), (403, &json!("forbidden")));
    for path in ["/v1/sessions", "/v1/tokens"] {
        assert_eq!(post_as(gateway, &token, path, json!({ "scopes": ["watch"] })).await.0, 403, "{path}");
    }
    assert_eq!(get_as(gateway, &token, "/metrics").await.0, 403);
    assert_eq!(runtime_close(gateway, Some(&token)).await, Some(4503));

    let mut subscriber = Subscriber::connect(gateway, Some(&token)).await;
    let who = subscriber.until("ready", |frame| match frame {
        GatewayToSubscriber::Ready { who, .. } => Some(who.clone()),
        _ => None,
    });
    assert!(who.await.contains("Ada"));
    subscriber.watch(&other).await;
    assert_eq!(refused(&mut subscriber).await, Code::UnknownSession);
    subscriber.send_text(r#"{"type":"subscribe","project":true}"#).await;
    let seen = subscriber
        .until("summaries", |frame| match frame {
            GatewayToSubscriber::Summaries { sessions, .. } => Some(sessions.clone()),
            _ => None,
        })
        .await;
    assert_eq!(seen.iter().map(|summary| &summary.session).collect::<Vec<_>>(), [&session]);
    // A token of one project names a session of another: it is unknown there.
    let blue = self::token(gateway, &keys["blue"], json!({ "scopes": ["watch"], "sessions": [session] })).await;
    assert_eq!(get_as(gateway, &blue, &path(&session)).await.0, 404);
    let mut forged = token.clone();
    forged.replace_range(20..21, if &token[20..21] == "A" { "B" } else { "A" });
    assert_eq!(get_as(gateway, &forged, &path(&session)).await.0, 401);
}

#[tokio::test]
async fn only_a_key_with_admin_issues_tokens_and_none_beyond_what_tokens_carry() {
    let Doors { gateway, keys } = closed().await;
    for (body, wanted) in [
        (json!({ "scopes": [] }), "invalid"),
        (json!({ "scopes": ["admin"] }), "invalid"),
        (json!({ "scopes": ["publish"] }), "invalid"),
        (json!({ "scopes": ["nonsense"] }), "invalid"),
        (json!({ "scopes": ["watch"], "for": 0 }), "invalid"),
        (json!({ "scopes": ["watch"], "for": 86_400_001u64 }), "invalid"),
        (json!({ "scopes": ["watch"], "sessions": [] }), "invalid"),
        (json!({ "scopes": "watch" }), "bad_frame"),
    ] {
        let (status, refusal) = post_as(&gateway, &keys["admin"], "/v1/tokens", body.clone()).await;
        assert_eq!((status, &refusal["error"]), (400, &json!(wanted)), "{body}");
    }
    for scope in ["publish", "watch", "answer", "control"] {
        let (status, _) = post_as(&gateway, &keys[scope], "/v1/tokens", json!({ "scopes": ["watch"] })).await;
        assert_eq!(status, 403, "{scope}");
    }
}

#[tokio::test]
async fn what_a_token_opened_ends_when_it_expires() {
    let doors = closed().await;
    let (_runtime, session) = doors.session().await;
    let Doors { gateway, keys } = &doors;
    let token = token(gateway, &keys["admin"], json!({ "scopes": ["watch"], "for": 1500 })).await;
    let mut subscriber = Subscriber::connect(gateway, Some(&token)).await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    let url = format!("{}/v1/sessions/{session}/events", gateway.url);
    let stream = gateway.http.get(url).bearer_auth(&token).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    assert_eq!(subscriber.closed().await, Some(4004));
    // The stream ends by itself: reading it to its end comes back.
    let text = tokio::time::timeout(BOUND, stream.text()).await.expect("the stream ends").unwrap();
    assert!(text.trim_end().ends_with('}') && text.contains("event: unsubscribed") && text.contains("4004"), "{text}");
    let (status, refusal) = get_as(gateway, &token, "/v1/sessions").await;
    assert_eq!((status, &refusal["error"]), (401, &json!("unauthorized")));
    let closed = metric_as(gateway, &keys["red"], "onlooker_closes_total{code=\"token_expired\"}").await;
    assert_eq!(closed, 1.0);
    let mut late = Subscriber::connect(gateway, Some(&token)).await;
    assert_eq!(late.closed().await, Some(4500));
}

// --- TLS and addresses -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn https_and_wss_work_from_end_to_end() {
    let certificate = Certificate::new();
    let mut config = quick();
    certificate.put_into(&mut config);
    let key = add_key(&mut config, "k", "red", &Scope::ALL);
    let gateway = Gateway::start(config).await.expect("the gateway starts");
    assert!(gateway.url().starts_with("https://"), "{}", gateway.url());
    let root = reqwest::Certificate::from_pem(certificate.pem.as_bytes()).unwrap();
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
    let created = http.post(format!("{}/v1/sessions", gateway.url())).bearer_auth(&key);
    let created: Value = created.json(&json!({ "runtime": "self" })).send().await.unwrap().json().await.unwrap();
    let session = created["session"].as_str().expect("a session").to_owned();

    let stream = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(certificate.trusted()).connect(name, stream).await.unwrap();
    let mut request = format!("wss://localhost:{}/v1/ws", gateway.address().port()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL.parse().unwrap());
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    socket.send(Message::text(json!({ "type": "subscribe", "session": session }).to_string())).await.unwrap();
    let mut live = false;
    while !live {
        let message = tokio::time::timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap();
        live = message.to_text().unwrap().contains(r#""type":"live""#);
    }
    // Clear text on the same port is no request.
    let plain = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    assert!(plain.get(format!("http://{}/healthz", gateway.address())).send().await.is_err());
}

#[tokio::test]
async fn a_gateway_that_would_be_open_to_others_does_not_start_and_opens_no_port() {
    let certificate = Certificate::new();
    type Change = fn(&mut Config, &Certificate);
    let with_key = |config: &mut Config| drop(add_key(config, "k", "red", &Scope::ALL));
    let table: [(&str, bool, Change); 3] = [
        ("without keys", false, |_, _| {}),
        ("without keys", false, |config, certificate| certificate.put_into(config)),
        ("clear text", true, |_, _| {}),
    ];
    for (wanted, keys, change) in table {
        let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let mut config = quick();
        config.listen.address = ([0, 0, 0, 0], port).into();
        if keys {
            with_key(&mut config);
        }
        change(&mut config, &certificate);
        match Gateway::start(config).await {
            Err(StartError::Config(error)) => assert!(error.to_string().contains(wanted), "{error}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it started, though {wanted}"),
        }
        std::net::TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
    }
    let missing = quick();
    let mut config = missing.clone();
    config.listen.tls_cert = Some("/nowhere/cert.pem".into());
    config.listen.tls_key = Some("/nowhere/key.pem".into());
    assert!(matches!(Gateway::start(config).await, Err(StartError::Tls(_))));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = missing;
    config.listen.address = taken.local_addr().unwrap();
    assert!(matches!(Gateway::start(config).await, Err(StartError::Listen { .. })));
}

#[tokio::test]
async fn the_page_and_its_files_carry_strict_headers() {
    let gateway = TestGateway::start().await;
    for path in ["/", "/app.js", "/style.css", "/icon.svg"] {
        let (status, headers, _) = ask(&gateway, &Method::GET, path, None, &Value::Null).await;
        assert_eq!(status, 200, "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "same-origin");
    }
    let (_, _, page) = ask(&gateway, &Method::GET, "/", None, &Value::Null).await;
    let page = page.as_str().unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "the page loads nothing from elsewhere");
    assert!(!page.contains("onclick=") && !page.contains("style=\""), "the policy would stop it");
}
