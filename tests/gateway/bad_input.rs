//! What must not disturb: unreadable, oversized and forbidden input, and clients that do nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use onlooker_protocol::{
    Code,
    runtime::{GatewayToRuntime, OpenSession, RuntimeToGateway},
    subscriber::GatewayToSubscriber,
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{doors::add_key, harness::*};

/// The code of the next error that a subscriber is told.
async fn refused(subscriber: &mut Subscriber) -> Code {
    subscriber
        .until("an error", |frame| match frame {
            GatewayToSubscriber::Error { refusal, .. } => Some(refusal.code),
            _ => None,
        })
        .await
}

/// The next refusal that a runtime is told, of an event or of a frame, with the number that it names.
async fn refused_runtime(runtime: &mut Runtime) -> (Option<u64>, Code) {
    runtime
        .until("a refusal", |frame| match frame {
            GatewayToRuntime::EventRefused { n, refusal, .. } => Some((Some(*n), refusal.code)),
            GatewayToRuntime::Error { refusal, .. } => Some((None, refusal.code)),
            _ => None,
        })
        .await
}

/// The close code of a runtime's connection.
async fn runtime_closed(runtime: &mut Runtime) -> Option<u16> {
    loop {
        match timeout(BOUND, runtime.socket.next()).await.expect("something comes") {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

/// Sends a final frame of this opcode with these bytes, which no honest client would send. Masked with zeros.
async fn send_raw(subscriber: &mut Subscriber, opcode: u8, bytes: &[u8]) {
    let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(bytes.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(bytes);
    subscriber.socket.get_mut().write_all(&frame).await.unwrap();
}

async fn counted(gateway: &TestGateway, kind: &str, code: Code) -> f64 {
    gateway.metric(&format!("onlooker_{kind}_total{{code=\"{}\"}}", code.name())).await
}

/// Somebody who follows a session of an own runtime, and must notice nothing of what others do.
struct Witness {
    runtime: Runtime,
    subscriber: Subscriber,
    session: String,
    sent: u64,
}

impl Witness {
    async fn of(gateway: &TestGateway) -> Self {
        let mut runtime = Runtime::connect(gateway, "witness", 1, None).await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        let mut subscriber = gateway.subscriber().await;
        subscriber.watch(&session).await;
        subscriber.live().await;
        Self { runtime, subscriber, session, sent: 0 }
    }

    async fn is_undisturbed(&mut self) {
        self.sent += 1;
        self.runtime.publish(&self.session, "action", json!({ "name": self.sent.to_string() })).await;
        assert_eq!(self.subscriber.event("action").await["name"], self.sent.to_string());
        let bad = |frame: &GatewayToSubscriber| {
            matches!(frame, GatewayToSubscriber::Error { .. } | GatewayToSubscriber::Gap { .. })
        };
        assert!(!self.subscriber.seen.iter().any(bad), "{:?}", self.subscriber.seen);
    }
}

// --- subscribers -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_subscriber_survives_frames_that_cannot_be_read() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    for (text, code) in [
        ("{", Code::BadFrame),
        ("", Code::BadFrame),
        ("[]", Code::BadFrame),
        (r#"{"no":"type"}"#, Code::BadFrame),
        (r#"{"type":"subscribe","session":7}"#, Code::BadFrame),
        (r#"{"type":"ack","session":"s","position":"nowhere"}"#, Code::BadFrame),
        (r#"{"type":"of_tomorrow","session":"s"}"#, Code::Invalid),
        (r#"{"type":"subscribe"}"#, Code::Invalid),
        (r#"{"type":"subscribe","session":"s","project":true}"#, Code::Invalid),
        (r#"{"type":"subscribe","session":"../etc"}"#, Code::UnknownSession),
        (r#"{"type":"pong","id":99}"#, Code::BadFrame),
    ] {
        subscriber.send_text(text).await;
        assert_eq!(refused(&mut subscriber).await, code, "{text}");
    }
    subscriber.socket.send(Message::binary(vec![0, 1, 2])).await.unwrap();
    assert_eq!(refused(&mut subscriber).await, Code::BadFrame);
    // A frame with members of tomorrow is understood as far as it can be.
    let follow = json!({ "type": "subscribe", "session": witness.session, "colour": { "deep": [1] }, "ref": "r" });
    subscriber.send_text(follow.to_string()).await;
    subscriber.live().await;
    assert_eq!(counted(&gateway, "refusals", Code::BadFrame).await, 8.0);
    witness.is_undisturbed().await;
}

#[tokio::test]
async fn an_error_names_the_request_that_it_answers() {
    let gateway = TestGateway::start().await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.send_text(r#"{"type":"claim","ref":"mine","session":7}"#).await;
    let reference = subscriber
        .until("an error", |frame| match frame {
            GatewayToSubscriber::Error { reference, .. } => Some(reference.clone()),
            _ => None,
        })
        .await;
    assert_eq!(reference.as_deref(), Some("mine"));
}

#[tokio::test]
async fn ten_frames_that_cannot_be_read_close_their_connection_and_no_other() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut text = gateway.subscriber().await;
    let mut binary = gateway.subscriber().await;
    let mut runtime = gateway.runtime().await;
    for _ in 0..10 {
        text.send_text("{").await;
        binary.socket.send(Message::binary(vec![7])).await.unwrap();
        runtime.send_text("{").await;
    }
    assert_eq!(text.closed().await, Some(4501));
    assert_eq!(binary.closed().await, Some(4501));
    assert_eq!(runtime_closed(&mut runtime).await, Some(4501));
    assert_eq!(counted(&gateway, "closes", Code::UnreadableFrame).await, 3.0);
    witness.is_undisturbed().await;
}

#[tokio::test]
async fn text_that_is_not_utf8_and_frames_that_break_the_protocol_close_only_their_connection() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    send_raw(&mut subscriber, 1, b"{\"type\":\"\xff\xfe\"}").await;
    assert_eq!(subscriber.closed().await, Some(4501));
    let mut subscriber = gateway.subscriber().await;
    send_raw(&mut subscriber, 5, b"no such opcode").await;
    assert_eq!(subscriber.closed().await, Some(4501));
    witness.is_undisturbed().await;
}

#[tokio::test]
async fn frames_above_the_limit_close_only_their_connection() {
    let mut config = quick();
    config.limits.client_frame_bytes = 8 << 10;
    config.limits.runtime_frame_bytes = 512 << 10;
    let gateway = TestGateway::with(config).await;
    let mut witness = Witness::of(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.send_text(json!({ "type": "of_tomorrow", "x": "x".repeat(8 << 10) }).to_string()).await;
    assert_eq!(subscriber.closed().await, Some(4504));
    let mut runtime = gateway.runtime().await;
    runtime.send_text(json!({ "type": "of_tomorrow", "x": "x".repeat(512 << 10) }).to_string()).await;
    assert_eq!(runtime_closed(&mut runtime).await, Some(4504));
    assert_eq!(counted(&gateway, "closes", Code::FrameTooLarge).await, 2.0);
    witness.is_undisturbed().await;
}

#[tokio::test]
async fn subscriptions_are_counted_and_each_session_is_followed_once() {
    let mut config = quick();
    config.limits.subscriptions_per_connection = 2;
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(runtime.open(OpenSession::default()).await.0);
    }
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&sessions[0]).await;
    subscriber.watch(&sessions[0]).await;
    assert_eq!(refused(&mut subscriber).await, Code::AlreadySubscribed);
    subscriber.watch(&sessions[1]).await;
    subscriber.watch(&sessions[2]).await;
    assert_eq!(refused(&mut subscriber).await, Code::TooManySubscriptions);
    subscriber.send_text(r#"{"type":"subscribe","project":true}"#).await;
    assert_eq!(refused(&mut subscriber).await, Code::TooManySubscriptions);
    for frame in [
        json!({ "type": "ack", "session": sessions[2], "position": "aaaaaaaa:0" }),
        json!({ "type": "attention", "session": sessions[2], "state": "active" }),
        json!({ "type": "unsubscribe", "session": sessions[2] }),
        json!({ "type": "unsubscribe", "project": true }),
        json!({ "type": "unsubscribe" }),
    ] {
        subscriber.send_text(frame.to_string()).await;
        assert_eq!(refused(&mut subscriber).await, Code::NotSubscribed, "{frame}");
    }
    subscriber.send_text(json!({ "type": "unsubscribe", "session": sessions[0] }).to_string()).await;
    subscriber.watch(&sessions[2]).await;
    subscriber
        .until("the third is live", |frame| match frame {
            GatewayToSubscriber::Live { session, .. } => (*session == sessions[2]).then_some(()),
            _ => None,
        })
        .await;
    for (code, times) in [(Code::AlreadySubscribed, 1.0), (Code::TooManySubscriptions, 2.0), (Code::NotSubscribed, 5.0)]
    {
        assert_eq!(counted(&gateway, "refusals", code).await, times, "{code}");
    }
}

// --- events ----------------------------------------------------------------------------------------------------------

/// The next event as a raw frame.
fn frame(session: &str, event: &str) -> String {
    format!(r#"{{"type":"events","session":"{session}","events":[{event}]}}"#)
}

#[tokio::test]
async fn an_event_that_is_wrong_is_refused_with_its_code_and_takes_nothing_with_it() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    let large = "x".repeat(256 << 10);
    let fields: Vec<Value> = (0..33).map(|id| json!({ "id": format!("f{id}") })).collect();
    let wrong: Vec<(String, Code)> = vec![
        (r#""type":"x.a","data":{"a":1,"a":2}"#.to_owned(), Code::DuplicateKey),
        (r#""type":"x.a","type":"x.b""#.to_owned(), Code::DuplicateKey),
        (format!(r#""type":"x.a","data":{{"a":{deep}}}"#), Code::TooDeep),
        (format!(r#""type":"x.a","data":{{"a":"{large}"}}"#), Code::TooLarge),
        (r#""type":"session_ended","data":{}"#.to_owned(), Code::Invalid),
        (r#""type":"nonsense""#.to_owned(), Code::Invalid),
        (r#""type":"x.UPPER""#.to_owned(), Code::Invalid),
        (r#""data":{}"#.to_owned(), Code::Invalid),
        (r#""type":"x.a","data":"text""#.to_owned(), Code::Invalid),
        (r#""type":"x.a","task":"no spaces""#.to_owned(), Code::Invalid),
        (r#""type":"x.a","picture":{"media":"image/png","base64":"AAAA"}"#.to_owned(), Code::Invalid),
        (r#""type":"screenshot","picture":{"media":"image/svg+xml","base64":"AAAA"}"#.to_owned(), Code::Invalid),
        (r#""type":"screenshot","picture":{"media":"image/png","base64":"!"}"#.to_owned(), Code::Invalid),
        (r#""type":"sensitive","data":{"on":"yes"}"#.to_owned(), Code::Invalid),
        (r#""type":"task_started","data":{}"#.to_owned(), Code::Invalid),
        (r#""type":"guardrail_trigger","data":{"type":"human_input_needed"}"#.to_owned(), Code::Invalid),
        (
            format!(
                r#""type":"guardrail_trigger","data":{}"#,
                json!({ "type": "human_input_needed", "value": "v", "fields": fields })
            ),
            Code::TooLarge,
        ),
        (
            format!(
                r#""type":"guardrail_trigger","data":{}"#,
                json!({ "type": "human_input_needed", "value": "v".repeat(17 << 10) })
            ),
            Code::TooLarge,
        ),
    ];
    for (n, (members, code)) in (1u64..).zip(&wrong) {
        runtime.send_text(frame(&session, &format!(r#"{{"n":{n},{members}}}"#))).await;
        let shown = &members[..members.len().min(100)];
        assert_eq!(refused_runtime(&mut runtime).await, (Some(n - 1), *code), "{shown}");
        // The number is still free, and what comes under it is taken.
        runtime.send_text(frame(&session, &format!(r#"{{"n":{n},"type":"x.good","data":{{"n":{n}}}}}"#))).await;
        runtime.accepted(&session, n).await;
    }
    for members in [r#""type":"x.a""#, r#""n":0,"type":"x.a""#, r#""n":-1,"type":"x.a""#, r#""n":"1","type":"x.a""#] {
        runtime.send_text(frame(&session, &format!("{{{members}}}"))).await;
        assert_eq!(refused_runtime(&mut runtime).await.1, Code::Invalid, "{members}");
    }
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?filter=x.good")).await;
    let numbers: Vec<u64> =
        page["events"].as_array().unwrap().iter().map(|event| event["event"]["data"]["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=wrong.len() as u64).collect::<Vec<_>>(), "what was acknowledged is there, once");
    for code in [Code::DuplicateKey, Code::TooDeep, Code::TooLarge, Code::Invalid] {
        let times = wrong.iter().filter(|(_, other)| *other == code).count() as f64;
        let extra = if code == Code::Invalid { 4.0 } else { 0.0 };
        assert_eq!(counted(&gateway, "refusals", code).await, times + extra, "{code}");
    }
    witness.is_undisturbed().await;
}

#[tokio::test]
async fn of_a_batch_everything_before_the_wrong_event_is_taken() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let batch =
        r#"{"n":1,"type":"x.a"},{"n":2,"type":"x.a"},{"n":3,"type":"x.a","data":{"b":1,"b":1}},{"n":4,"type":"x.a"}"#;
    runtime.send_text(frame(&session, batch)).await;
    runtime.accepted(&session, 2).await;
    assert_eq!(refused_runtime(&mut runtime).await, (Some(2), Code::DuplicateKey));
    runtime.send_text(frame(&session, r#"{"n":3,"type":"x.a"},{"n":4,"type":"x.a"}"#)).await;
    runtime.accepted(&session, 4).await;
}

#[tokio::test]
async fn a_runtime_survives_frames_that_mean_nothing() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let unknown = "aaaaaaaaaaaaaaaaaaaa";
    let end = json!({ "type": "end", "session": unknown });
    for (text, code) in [
        ("{".to_owned(), Code::BadFrame),
        (r#"["events"]"#.to_owned(), Code::BadFrame),
        (r#"{"type":"events","session":"s"}"#.to_owned(), Code::BadFrame),
        (r#"{"type":"of_tomorrow"}"#.to_owned(), Code::Invalid),
        (r#"{"type":"register","name":"again","capacity":1}"#.to_owned(), Code::Invalid),
        (frame(unknown, r#"{"n":1,"type":"x.a"}"#), Code::UnknownSession),
        (frame("../x", r#"{"n":1,"type":"x.a"}"#), Code::UnknownSession),
        (end.to_string(), Code::UnknownSession),
    ] {
        runtime.send_text(text.clone()).await;
        assert_eq!(refused_runtime(&mut runtime).await, (None, code), "{text}");
    }
    for bytes in [vec![], vec![0, 0], vec![255, 255, 255, 255, 1], vec![0, 0, 0, 1, b'{'], vec![0, 0, 0, 2, b'{', b'}']]
    {
        runtime.socket.send(Message::binary(bytes.clone())).await.unwrap();
        assert_eq!(refused_runtime(&mut runtime).await, (None, Code::BadFrame), "{bytes:?}");
    }
    // Members of tomorrow are no reason to refuse.
    runtime.send_text(r#"{"type":"pong","id":1,"later":true}"#).await;
    runtime.publish(&session, "x.a", json!({})).await;
    runtime.send(RuntimeToGateway::End { session: session.clone() }).await;
    runtime.send_event(&session, "x.a", json!({})).await;
    assert_eq!(refused_runtime(&mut runtime).await.1, Code::SessionEnded);
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_in_json() {
    let mut config = quick();
    config.limits.http_body_bytes = 64 << 10;
    let gateway = TestGateway::with(config).await;
    let send =
        |path: &str, body: Vec<u8>| gateway.request(gateway.http.post(format!("{}{path}", gateway.url)).body(body));
    for (body, status, error) in [
        (b"{".to_vec(), 400, "bad_frame"),
        (b"[]".to_vec(), 400, "bad_frame"),
        (b"{\"task\":7}".to_vec(), 400, "bad_frame"),
        (b"{\"externalId\":\"\xff\"}".to_vec(), 400, "bad_frame"),
        (b"{} {}".to_vec(), 400, "bad_frame"),
        (vec![b' '; 65 << 10], 413, "too_large"),
        ([b"{\"task\":".as_slice(), &b"[".repeat(10_000)].concat(), 400, "bad_frame"),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
        let (got, refusal) = send("/v1/sessions", body).await;
        assert_eq!((got, &refusal["error"]), (status, &json!(error)), "{shown}");
    }
    assert_eq!(counted(&gateway, "refusals", Code::BadFrame).await, 6.0);
    assert_eq!(counted(&gateway, "refusals", Code::TooLarge).await, 1.0);
    let (_, created) = gateway.post("/v1/sessions", json!({ "runtime": "self" })).await;
    let path = format!("{}/v1/sessions/{}/events", gateway.url, created["session"].as_str().unwrap());
    let publish = |body: Vec<u8>| {
        let claim = created["claim"].as_str().unwrap();
        gateway.request(gateway.http.post(&path).header("onlooker-claim", claim).body(body))
    };
    for (body, error) in [
        (b"{".to_vec(), "bad_frame"),
        (b"\xff".to_vec(), "not_utf8"),
        (b"{\"events\":[{\"n\":1,\"type\":\"x.a\",\"data\":{\"a\":1,\"a\":1}}]}".to_vec(), "duplicate_key"),
    ] {
        assert_eq!(publish(body).await.1["error"], error);
    }
    assert_eq!(publish(b"{\"events\":[{\"n\":1,\"type\":\"x.a\"}]}".to_vec()).await.0, 200);
}

// --- clients that do nothing -----------------------------------------------------------------------------------------

#[tokio::test]
async fn who_never_says_who_it_is_is_closed() {
    let mut config = quick();
    config.times.auth_within = Duration::from_millis(300);
    add_key(&mut config, "k", "red", &onlooker::config::key::Scope::ALL);
    let gateway = TestGateway::with(config).await;
    let mut subscriber = gateway.subscriber().await;
    assert_eq!(subscriber.closed().await, Some(4502));
    let url = format!("{}/v1/runtime", gateway.url.replacen("http", "ws", 1));
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
    let code = loop {
        match timeout(BOUND, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
            _ => continue,
        }
    };
    assert_eq!(code, Some(4502));
}

#[tokio::test]
async fn who_never_reads_is_closed_and_nobody_waits_for_it() {
    let mut config = quick();
    config.times.send_stall = Duration::from_millis(500);
    // Otherwise the pong that never comes is found first.
    config.times.live_window = Duration::from_secs(60);
    config.times.ping_every = Duration::from_secs(30);
    let gateway = TestGateway::with(config).await;
    let mut witness = Witness::of(&gateway).await;
    let mut deaf = gateway.subscriber().await;
    deaf.watch(&witness.session).await;
    deaf.live().await;
    let large = "x".repeat(200 << 10);
    for _ in 0..75 {
        witness.runtime.publish(&witness.session.clone(), "x.large", json!({ "x": large })).await;
        witness.subscriber.event("x.large").await;
    }
    wait_until("the deaf one is closed", || async { counted(&gateway, "closes", Code::TooSlow).await >= 1.0 }).await;
    witness.is_undisturbed().await;
    drop(deaf);
}

#[tokio::test]
async fn a_request_that_comes_byte_by_byte_is_cut() {
    let mut config = quick();
    config.times.header_read = Duration::from_millis(500);
    let gateway = TestGateway::with(config).await;
    let mut witness = Witness::of(&gateway).await;
    let address = gateway.url.strip_prefix("http://").unwrap();
    let (mut reader, mut writer) = TcpStream::connect(address).await.unwrap().into_split();
    let dripping = tokio::spawn(async move {
        for byte in b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n".iter().cycle() {
            if writer.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut got = Vec::new();
    // A reset is as good an end as an empty read.
    let _ = timeout(BOUND, reader.read_to_end(&mut got)).await.expect("the connection is cut");
    assert!(!String::from_utf8_lossy(&got).contains("200 OK"));
    dripping.abort();
    witness.is_undisturbed().await;
}

// --- anything at all -------------------------------------------------------------------------------------------------

const FUZZED: usize = 400;

/// Frames that mean something; what is made of them may still mean something, or nothing.
fn seeds(session: &str) -> Vec<String> {
    [
        json!({ "type": "subscribe", "session": session, "since": "start", "filter": ["action"], "pictures": "full" }),
        json!({ "type": "subscribe", "project": true }),
        json!({ "type": "unsubscribe", "session": session }),
        json!({ "type": "attention", "session": session, "state": "active" }),
        json!({ "type": "ack", "session": session, "position": "aaaaaaaa:3" }),
        json!({ "type": "pong", "id": 1 }),
        json!({ "type": "answer", "session": session, "guardrailId": "g", "revision": 1, "idempotencyKey": "k", "action": "submit", "values": { "a": "b" } }),
        json!({ "type": "claim", "session": session, "guardrailId": "g", "revision": 1, "for": 1000 }),
        json!({ "type": "command", "session": session, "command": "interaction", "action": { "type": "click" } }),
        json!({ "type": "command", "session": session, "command": "new_task", "task": { "prompt": "p", "maxDuration": 5 } }),
        json!({ "type": "open", "ref": "r", "labels": { "a": 1 }, "secrets": [{ "match": "all", "fields": { "p": "v" } }] }),
        json!({ "type": "events", "session": session, "events": [{ "n": 1, "type": "action", "data": { "name": "x" } }] }),
        json!({ "type": "events", "session": session, "events": [{ "n": 2, "type": "guardrail_trigger", "data": { "type": "human_input_needed", "value": "v" } }] }),
        json!({ "type": "claim", "session": session, "claim": "t", "commands": 3 }),
        json!({ "type": "n_lost", "session": session, "from": 7 }),
        json!({ "type": "secrets", "session": session, "secrets": [], "values": ["v"] }),
        json!({ "type": "decline", "session": session, "reason": "r" }),
    ]
    .map(|seed| seed.to_string())
    .to_vec()
}

/// A seed with a few places overwritten, doubled or cut out; or anything.
fn mutated(seeds: Vec<String>) -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        Just(b"null".to_vec()),
        Just(b"18446744073709551615".to_vec()),
        Just(b"-1".to_vec()),
        Just(b"1e999".to_vec()),
        Just(b"\\u0000".to_vec()),
        Just(b"{\"a\":".to_vec()),
        Just(b"[[[[".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..8),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), 0usize..12, pieces), 0..4);
    let changed = (proptest::sample::select(seeds), changes).prop_map(|(seed, changes)| {
        let mut bytes = seed.into_bytes();
        for (at, cut, piece) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, piece);
        }
        bytes
    });
    prop_oneof![4 => changed, 1 => proptest::collection::vec(any::<u8>(), 0..200)]
}

/// The same inputs at every run, so that a failure can be found again.
fn inputs(seed: u8, session: &str) -> Vec<Vec<u8>> {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    let strategy = mutated(seeds(session));
    (0..FUZZED).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Text where the bytes are text, so that the frame itself is right.
fn message(bytes: Vec<u8>) -> Message {
    match String::from_utf8(bytes) {
        Ok(text) => Message::text(text),
        Err(error) => Message::binary(error.into_bytes()),
    }
}

#[tokio::test]
async fn no_input_of_a_subscriber_disturbs_another_or_breaks_its_connection() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = gateway.subscriber().await;
    for (index, input) in inputs(1, &session).into_iter().enumerate() {
        let sent = subscriber.socket.send(message(input.clone())).await;
        // Only the gateway's own word ends a connection: no code would mean that its task had died.
        if sent.is_err() || index % 5 == 4 {
            let code = subscriber_code(&mut subscriber).await;
            assert!(matches!(code, None | Some(4501)), "{code:?} after {:?}", String::from_utf8_lossy(&input));
            subscriber = gateway.subscriber().await;
        }
        if index % 100 == 99 {
            witness.is_undisturbed().await;
        }
    }
    assert_eq!(gateway.get("/healthz").await.0, 200);
}

/// Shows that the connection still answers (`None`), or the code with which it was closed.
async fn subscriber_code(subscriber: &mut Subscriber) -> Option<u16> {
    let asked = json!({ "type": "claim", "ref": "still there", "session": "x", "guardrailId": "g", "revision": 1 });
    let _ = subscriber.socket.send(Message::text(asked.to_string())).await;
    loop {
        match subscriber.receive().await {
            Received::Frame(GatewayToSubscriber::Error { reference: Some(reference), .. })
                if reference == "still there" =>
            {
                return None;
            }
            Received::Closed(code) => return Some(code.expect("closed with a code")),
            _ => {}
        }
    }
}

#[tokio::test]
async fn no_input_of_a_runtime_disturbs_another_or_breaks_its_connection() {
    let gateway = TestGateway::start().await;
    let mut witness = Witness::of(&gateway).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    for (index, input) in inputs(2, &session).into_iter().enumerate() {
        let sent = runtime.socket.send(message(input.clone())).await;
        if sent.is_err() || index % 5 == 4 {
            let asked = json!({ "type": "claim", "session": "aaaaaaaaaaaaaaaaaaab", "claim": "x" });
            let _ = runtime.socket.send(Message::text(asked.to_string())).await;
            let code = loop {
                match timeout(BOUND, runtime.socket.next()).await.expect("something comes") {
                    Some(Ok(Message::Text(text))) if text.contains("aaaaaaaaaaaaaaaaaaab") => break None,
                    Some(Ok(Message::Close(frame))) => break Some(frame.map(|frame| u16::from(frame.code))),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => break Some(None),
                }
            };
            assert!(matches!(code, None | Some(Some(4501))), "{code:?} after {:?}", String::from_utf8_lossy(&input));
            runtime = gateway.runtime().await;
        }
        if index % 100 == 99 {
            witness.is_undisturbed().await;
        }
    }
    assert_eq!(gateway.get("/healthz").await.0, 200);
}
