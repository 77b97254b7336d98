//! No secret shows: canaries go in at every door, their echoes in every form, and nothing that comes out has one.

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::StreamExt;
use onlooker_protocol::{
    runtime::OpenSession,
    subscriber::{Attention, PictureLevel, SecretEntry, Subscribe},
    view::{Outcome, ReachOutMode},
};
use serde_json::{Value, json};

use crate::harness::*;

const LONG: Duration = Duration::from_secs(60);
/// Given at the session's start, with a task, as the value of a secret field, as free text.
const CANARIES: [&str; 4] =
    ["Can4ry/session?\"q", "Can4ry-task\\b=7", "Can4ry+field&ü9", "my Can4ry is a text with 5 words"];

fn entry(site: &str, fields: &[(&str, &str)]) -> SecretEntry {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SecretEntry { matches: site.to_owned(), fields }
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A value as an agent may echo it.
fn echoes(secret: &str) -> Vec<Value> {
    let quoted = Value::String(secret.to_owned()).to_string();
    let aligned = |before: &str| BASE64_STANDARD.encode(format!("{before}{secret} after"));
    let mut keyed = json!({ "deep": [{}] });
    keyed["deep"][0][format!("typed {secret}")] = json!(true);
    vec![
        json!(secret),
        json!(format!("I typed {secret} into the form")),
        json!(format!("{{\"password\":{quoted}}}")),
        json!(format!("https://shop.example/?p={}", percent(secret))),
        json!(aligned("")),
        json!(aligned("a")),
        json!(aligned("ab")),
        keyed,
    ]
}

/// What must not be in anything that is shown: the value, its JSON and percent forms, and the middle of each of its
/// base64 forms.
fn traces(secret: &str) -> Vec<String> {
    let quoted = Value::String(secret.to_owned()).to_string();
    let escaped = quoted[1..quoted.len() - 1].to_owned();
    // A part of the value is as bad as all of it.
    let mut traces =
        vec!["Can4ry".to_owned(), secret.to_owned(), percent(secret), escaped.replace('\\', "\\\\"), escaped];
    for before in ["", "a", "ab"] {
        let encoded = BASE64_STANDARD.encode(format!("{before}{secret}"));
        traces.push(encoded[4..encoded.len() - 4].to_owned());
    }
    traces
}

#[track_caller]
fn assert_clean(place: &str, text: &str) {
    for secret in CANARIES {
        for trace in traces(secret) {
            let at = text.find(&trace);
            assert!(
                at.is_none(),
                "{place} shows `{trace}`: …{}…",
                &text[at.unwrap()..text.floor_char_boundary((at.unwrap() + 80).min(text.len()))]
            );
        }
    }
}

/// Everything that this process writes to its log, at the finest level of our own targets.
pub fn log() -> Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    let begin = || {
        let log = Arc::<Mutex<Vec<u8>>>::default();
        let (writer, filter) = (Arc::clone(&log), tracing_subscriber::EnvFilter::new("info,onlooker=trace"));
        let make = move || LogWriter(Arc::clone(&writer));
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(make).finish();
        tracing::subscriber::set_global_default(subscriber).expect("no other test of this binary listens");
        log
    };
    Arc::clone(LOG.get_or_init(begin))
}

struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Guards `Guard::Redactor`: fails under `ONLOOKER_SABOTAGE=redactor`.
#[tokio::test]
async fn no_canary_shows_anywhere_after_it_was_echoed_in_every_form() {
    let log = log();
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook(calm(LONG, LONG), &receiver)).await;
    let mut runtime = gateway.runtime().await;
    let secrets = vec![entry("shop.example", &[("password", CANARIES[0])])];
    let open = OpenSession { reach_out_mode: ReachOutMode::Full, secrets, ..Default::default() };
    let (session, _) = runtime.open(open).await;
    let mut follower = gateway.subscriber().await;
    let watching = Subscribe { session: Some(session.clone()), pictures: PictureLevel::Full, ..follow() };
    follower.subscribe(watching).await;
    follower.live().await;
    let events = format!("/v1/sessions/{session}/events?since=start");
    let stream = gateway.http.get(format!("{}{events}", gateway.url)).header("accept", "text/event-stream");
    let mut stream = stream.send().await.unwrap().bytes_stream();

    let task = json!({ "prompt": format!("Log in with {}", CANARIES[1]), "secrets": [{ "match": "all", "fields": { "key": CANARIES[1] } }] });
    let (status, queued) =
        gateway.post(&format!("/v1/sessions/{session}/commands"), json!({ "command": "new_task", "task": task })).await;
    assert_eq!(status, 200, "{queued}");
    runtime.publish(&session, "task_started", json!({ "taskId": queued["task"] })).await;
    runtime.ask(&session, "code", json!({ "fields": [{ "id": "otp" }] })).await;
    let answer = json!({
        "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit",
        "values": { "otp": CANARIES[2] }, "text": CANARIES[3],
    });
    let (status, answered) = gateway.post("/v1/guardrails/code/answer", answer).await;
    assert_eq!(status, 200, "{answered}");
    let outcome = runtime.outcome().await;
    assert_eq!((outcome.values["otp"].as_str(), outcome.text.as_deref()), (CANARIES[2], Some(CANARIES[3])));

    for (number, echo) in CANARIES.iter().flat_map(|secret| echoes(secret)).enumerate() {
        runtime.publish(&session, "action", json!({ "name": "type", "text": echo })).await;
        runtime.publish(&session, "x.echo", json!({ "nested": [{ "list": [echo] }], "echo": echo })).await;
        if let Value::String(text) = &echo {
            let id = format!("echo{number}");
            let more = json!({ "value": text, "domain": text, "websiteError": text, "kind": "captcha",
                "fields": [{ "id": "f", "label": text, "hint": text, "secret": false, "required": false }],
                "choices": [{ "id": "c", "label": text }] });
            runtime.ask(&session, &id, more).await;
            gateway.get(&format!("/v1/guardrails/{id}/why?session={session}")).await;
            runtime.publish(&session, "guardrail_withdrawn", json!({ "guardrailId": id })).await;
        }
    }
    // A refused event must not be quoted either.
    let wrong = json!({ "type": "human_input_needed", "value": "?", "guardrailId": "w", "revision": CANARIES[0] });
    runtime.send_event(&session, "guardrail_trigger", wrong).await;
    let refusal = runtime
        .until("a refusal", |frame| match frame {
            onlooker_protocol::runtime::GatewayToRuntime::EventRefused { refusal, .. } => Some(refusal.clone()),
            _ => None,
        })
        .await;
    assert_clean("a refusal", &serde_json::to_string(&refusal).unwrap());
    *runtime.numbers.get_mut(&session).unwrap() -= 1;
    runtime.ask(&session, "open", json!({ "value": format!("Is {} right?", CANARIES[0]) })).await;
    let why = gateway.why(&session, "open").await;
    let done =
        json!({ "message": format!("Logged in with {}", CANARIES[2]), "files": [], "usage": { "key": CANARIES[3] } });
    runtime.publish(&session, "task_completed", done).await;
    receiver.wait_for("task.completed", 1).await;
    receiver.wait_for("guardrail.resolved", 2).await;

    follower.event("task_completed").await;
    assert_clean("a subscriber", &serde_json::to_string(&Vec::from(std::mem::take(&mut follower.seen))).unwrap());
    let mut streamed = String::new();
    while !streamed.contains("event: task_completed") {
        let piece = tokio::time::timeout(BOUND, stream.next()).await.expect("it streams").unwrap().unwrap();
        streamed.push_str(&String::from_utf8_lossy(&piece));
    }
    assert_clean("an event stream", &streamed);
    let mut late = gateway.subscriber().await;
    late.subscribe(Subscribe {
        session: Some(session.clone()),
        since: onlooker_protocol::event::Since::Start,
        ..follow()
    })
    .await;
    late.live().await;
    assert_clean("a replay", &serde_json::to_string(&Vec::from(late.seen)).unwrap());
    assert_clean("why", &why.to_string());
    let paths = [
        events,
        format!("/v1/sessions/{session}"),
        "/v1/sessions".to_owned(),
        "/v1/guardrails".to_owned(),
        format!("/v1/guardrails/code?session={session}"),
        format!("/v1/guardrails/code/why?session={session}"),
        format!("/v1/sessions/{session}/watchers"),
        format!("/v1/sessions/{session}/tasks/{}", queued["task"].as_str().unwrap()),
        "/metrics".to_owned(),
    ];
    for path in paths {
        let (status, body) = gateway.get(&path).await;
        assert_eq!(status, 200, "{path}: {body}");
        assert_clean(&path, &body.to_string());
    }
    for delivered in receiver.got() {
        assert_clean("a webhook", std::str::from_utf8(&delivered.raw).unwrap());
    }
    gateway.stop().await;
    let written = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    assert!(written.contains(&onlooker::auth::session_hash(&session)), "the log is listened to");
    assert_clean("the log", &written);
}

async fn with_secrets(receiver: &Receiver, fields: &[(&str, &str)]) -> (TestGateway, Runtime, String) {
    let gateway = TestGateway::with(with_webhook(calm(LONG, LONG), receiver)).await;
    let mut runtime = gateway.runtime().await;
    let open = OpenSession { secrets: vec![entry("shop.example", fields)], ..Default::default() };
    let (session, _) = runtime.open(open).await;
    (gateway, runtime, session)
}

fn login(more: Value) -> Value {
    let mut login = json!({ "kind": "login", "domain": "https://shop.example/login",
        "fields": [{ "id": "username" }, { "id": "password" }] });
    let Value::Object(more) = more else { panic!("members") };
    login.as_object_mut().unwrap().extend(more);
    login
}

/// The types of all events of a session, from its page.
async fn kinds(gateway: &TestGateway, session: &str) -> Vec<String> {
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    let events = page["events"].as_array().unwrap();
    events.iter().map(|event| event["event"]["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_login_that_the_secrets_fill_pings_nobody_and_a_second_revision_asks_a_person() {
    let receiver = Receiver::start().await;
    let (gateway, mut runtime, session) =
        with_secrets(&receiver, &[("username", "jane@shop.example"), ("password", "hunter22")]).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    runtime.ask(&session, "login", login(json!({}))).await;
    let outcome = runtime.outcome().await;
    assert_eq!(outcome.outcome, Outcome::Answered);
    assert_eq!(
        (outcome.values["username"].as_str(), outcome.values["password"].as_str()),
        ("jane@shop.example", "hunter22")
    );
    let resolved = subscriber.event("guardrail_resolved").await;
    assert_eq!((&resolved["via"], &resolved["fields"]), (&json!("secrets"), &json!(["password", "username"])));
    assert!(!kinds(&gateway, &session).await.contains(&"guardrail_trigger".to_owned()));
    assert_eq!(gateway.get(&format!("/v1/guardrails/login?session={session}")).await.0, 200);
    subscriber.close(1000).await;
    // The values were wrong: the same ones are not tried again.
    runtime.ask(&session, "login", login(json!({ "revision": 2, "websiteError": "Wrong password" }))).await;
    let opened = receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(opened[0].body["guardrail"]["revision"], 2);
    assert_eq!(opened[0].body["guardrail"]["fields"].as_array().unwrap().len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn what_the_secrets_do_not_have_is_asked_for_and_both_parts_come_in_one_answer() {
    let receiver = Receiver::start().await;
    let (gateway, mut runtime, session) = with_secrets(&receiver, &[("password", "hunter22")]).await;
    let fields = json!({ "fields": [{ "id": "username", "secret": false }, { "id": "password" }] });
    runtime.ask(&session, "login", login(fields)).await;
    let opened = receiver.wait_for("guardrail.opened", 1).await;
    let asked = opened[0].body["guardrail"]["fields"].as_array().unwrap();
    assert_eq!(asked.iter().map(|field| &field["id"]).collect::<Vec<_>>(), ["username"]);
    let answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit",
        "values": { "username": "jane" } });
    assert_eq!(gateway.post("/v1/guardrails/login/answer", answer).await.0, 200);
    let outcome = runtime.outcome().await;
    assert_eq!((outcome.values["username"].as_str(), outcome.values["password"].as_str()), ("jane", "hunter22"));
    let (_, state) = gateway.get(&format!("/v1/sessions/{session}")).await;
    assert_eq!(state["state"]["sensitive"], true, "a password was handed over, though nobody typed it");
    gateway.stop().await;
}

#[tokio::test]
async fn a_login_that_a_person_declines_gets_no_values() {
    let receiver = Receiver::start().await;
    let (gateway, mut runtime, session) = with_secrets(&receiver, &[("password", "hunter22")]).await;
    runtime.ask(&session, "login", login(json!({}))).await;
    let answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(gateway.post("/v1/guardrails/login/answer", answer).await.0, 200);
    let outcome = runtime.outcome().await;
    assert_eq!((outcome.outcome, outcome.values.len()), (Outcome::Declined, 0));
    gateway.stop().await;
}

#[tokio::test]
async fn only_the_right_site_and_kind_are_filled() {
    let receiver = Receiver::start().await;
    let (gateway, mut runtime, session) =
        with_secrets(&receiver, &[("username", "jane@shop.example"), ("password", "hunter22")]).await;
    runtime.ask(&session, "elsewhere", login(json!({ "domain": "shop.example.evil.test" }))).await;
    runtime.ask(&session, "purchase", login(json!({ "kind": "purchase" }))).await;
    let opened = receiver.wait_for("guardrail.opened", 2).await;
    assert!(opened.iter().all(|opened| opened.body["guardrail"]["fields"].as_array().unwrap().len() == 2));
    gateway.stop().await;
}

const PICTURE: &[u8] = b"\x89PNG of what is being typed";

async fn viewer(gateway: &TestGateway, session: &str) -> Subscriber {
    let mut viewer = gateway.subscriber().await;
    let pictures = PictureLevel::Full;
    let subscribe = Subscribe { session: Some(session.to_owned()), pictures, attention: Attention::Active, ..follow() };
    viewer.subscribe(subscribe).await;
    viewer.live().await;
    viewer
}

async fn next_picture(viewer: &mut Subscriber) -> Vec<u8> {
    loop {
        match viewer.receive().await {
            Received::Picture(_, bytes) => return bytes,
            Received::Frame(_) => {}
            Received::Closed(code) => panic!("closed with {code:?}"),
        }
    }
}

#[tokio::test]
async fn no_picture_from_a_sensitive_window_is_stored_shown_or_sent() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut viewer = viewer(&gateway, &session).await;
    runtime.publish(&session, "sensitive", json!({ "on": true })).await;
    runtime.publish_picture(&session, PICTURE).await;
    let withheld = viewer.event("screenshot").await;
    assert_eq!((&withheld["withheld"], withheld.get("id")), (&json!(true), None));
    runtime.publish(&session, "sensitive", json!({ "on": false })).await;
    runtime.publish_picture(&session, b"\x89PNG after it").await;
    assert_eq!(next_picture(&mut viewer).await, b"\x89PNG after it", "the first that is shown");
    gateway.stop().await;
}

#[tokio::test]
async fn handing_over_a_secret_value_opens_a_window_that_closes_by_time() {
    let mut config = calm(LONG, LONG);
    config.times.sensitive_window = Duration::from_millis(500);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    runtime.ask(&session, "plain", json!({ "fields": [{ "id": "a", "secret": false }] })).await;
    runtime.ask(&session, "secret", json!({ "fields": [{ "id": "a" }] })).await;
    for id in ["plain", "secret"] {
        let answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit",
            "values": { "a": "a value 1" } });
        assert_eq!(gateway.post(&format!("/v1/guardrails/{id}/answer"), answer).await.0, 200);
    }
    let opened = subscriber.event("sensitive").await;
    assert_eq!((&opened["on"], &opened["by"]), (&json!(true), &json!("gateway")));
    let closed = subscriber.event("sensitive").await;
    assert_eq!((&closed["on"], &closed["by"]), (&json!(false), &json!("gateway")));
    assert_eq!(kinds(&gateway, &session).await.iter().filter(|kind| *kind == "sensitive").count(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn under_control_pictures_go_to_the_holder_alone() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let (mut holder, mut other) = (viewer(&gateway, &session).await, viewer(&gateway, &session).await);
    let take = json!({ "type": "command", "session": session, "command": "take_control" });
    let token = holder.request(take).await.unwrap()["token"].clone();
    runtime.publish_picture(&session, PICTURE).await;
    assert_eq!(next_picture(&mut holder).await, PICTURE);
    let id = other.event("screenshot").await["id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.get(&format!("/v1/sessions/{session}/pictures/{id}")).await.0, 404);
    let release = json!({ "type": "command", "session": session, "command": "release_control", "token": token });
    holder.request(release).await.unwrap();
    runtime.publish_picture(&session, b"\x89PNG for all").await;
    assert_eq!(next_picture(&mut other).await, b"\x89PNG for all", "the first that the other gets");
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_also_a_choice_leaves_the_next_questions_choices_readable() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    runtime.ask(&session, "first", json!({})).await;
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
    assert_eq!(gateway.post("/v1/guardrails/first/answer", body).await.0, 200);
    subscriber.event("guardrail_resolved").await;
    runtime.ask(&session, "second", json!({ "choices": [{ "id": "yes" }, { "id": "no" }] })).await;
    let asked = loop {
        let asked = subscriber.event("guardrail_trigger").await;
        if asked["guardrailId"] == "second" {
            break asked;
        }
    };
    assert_eq!(asked["choices"][0]["id"], "yes");
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "l", "action": "submit", "choice": "yes" });
    assert_eq!(gateway.post("/v1/guardrails/second/answer", body).await.0, 200);
    assert_eq!(subscriber.event("guardrail_resolved").await["choice"], "yes");
    gateway.stop().await;
}
