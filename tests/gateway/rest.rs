//! REST, pages of events, event streams, the operator's surfaces, and the stop.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use futures::StreamExt;
use onlooker_protocol::{
    runtime::{GatewayToRuntime, OpenSession},
    subscriber::GatewayToSubscriber,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::harness::*;

async fn open(gateway: &TestGateway) -> (Runtime, String) {
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (runtime, session)
}

/// The events of a page, by type.
fn kinds(page: &Value) -> Vec<&str> {
    page["events"].as_array().unwrap().iter().map(|frame| frame["event"]["type"].as_str().unwrap()).collect()
}

// --- sessions --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_session_is_created_read_steered_and_ended() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let asked =
        json!({ "externalId": "mine", "labels": { "shop": "a" }, "reachOutMode": "off", "task": { "taskId": "t1" } });
    let (status, created) = gateway.post("/v1/sessions", asked).await;
    assert_eq!((status, &created["task"], &created["claim"]), (201, &json!("t1"), &Value::Null));
    let (session, _) = runtime.take_assigned().await;
    let path = format!("/v1/sessions/{session}");
    let (status, got) = gateway.get(&path).await;
    assert_eq!((status, &got["state"]["externalId"]), (200, &json!("mine")));
    assert_eq!(got["state"]["labels"]["shop"], "a");
    assert_eq!(got["state"]["status"], "active");
    assert_eq!(got["watchers"]["watching"], 0);
    assert!(got["position"].as_str().is_some_and(|position| position.contains(':')), "{got}");
    let (status, task) = gateway.get(&format!("{path}/tasks/t1")).await;
    assert_eq!((status, &task["task"]["status"]), (200, &json!("queued")));
    assert_eq!(gateway.get(&format!("{path}/tasks/t2")).await.1["error"], "unknown_task");
    let (status, done) = gateway.post(&format!("{path}/commands"), json!({ "command": "take_control" })).await;
    assert_eq!(status, 200);
    assert!(done["token"].is_u64(), "{done}");
    let (status, _) = gateway.request(gateway.http.delete(format!("{}{path}", gateway.url))).await;
    assert_eq!(status, 204);
    let (_, ended) = gateway.get(&path).await;
    assert_eq!((&ended["state"]["status"], &ended["state"]["reason"]), (&json!("ended"), &json!("terminated")));
    let (status, again) = gateway.request(gateway.http.delete(format!("{}{path}", gateway.url))).await;
    assert_eq!((status, &again["error"]), (409, &json!("session_ended")));
}

#[tokio::test]
async fn lists_of_sessions_have_pages_and_statuses() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let mut all = Vec::new();
    for _ in 0..5 {
        all.push(runtime.open(OpenSession::default()).await.0);
    }
    let page = |query: String| {
        let gateway = &gateway;
        async move {
            let (status, page) = gateway.get(&format!("/v1/sessions{query}")).await;
            assert_eq!(status, 200, "{page}");
            let sessions = page["sessions"].as_array().unwrap();
            sessions.iter().map(|one| one["session"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    let listed = page(String::new()).await;
    assert_eq!(listed.len(), 5);
    let mut walked = page("?limit=2".to_owned()).await;
    while let [.., last] = walked.as_slice() {
        let next = page(format!("?limit=2&after={last}")).await;
        if next.is_empty() {
            break;
        }
        walked.extend(next);
    }
    assert_eq!(walked, listed, "pages side by side are the whole, newest first");
    gateway.request(gateway.http.delete(format!("{}/v1/sessions/{}", gateway.url, all[0]))).await;
    assert_eq!(page("?status=ended".to_owned()).await, [all[0].clone()]);
    assert_eq!(page("?status=active".to_owned()).await.len(), 4);
    for query in ["?status=nonsense", "?limit=many", "?after=aaaaaaaaaaaaaaaaaaaa"] {
        let (status, refusal) = gateway.get(&format!("/v1/sessions{query}")).await;
        assert_eq!((status, &refusal["error"]), (400, &json!("invalid")), "{query}");
    }
}

#[tokio::test]
async fn paging_through_sessions_of_one_status_does_not_begin_again_when_one_changes_its_status() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    for _ in 0..3 {
        runtime.open(OpenSession::default()).await;
    }
    let (_, first) = gateway.get("/v1/sessions?status=active&limit=2").await;
    let seen: Vec<&Value> = first["sessions"].as_array().unwrap().iter().map(|one| &one["session"]).collect();
    let last = seen[1].as_str().unwrap();
    gateway.request(gateway.http.delete(format!("{}/v1/sessions/{last}", gateway.url))).await;
    let (_, second) = gateway.get(&format!("/v1/sessions?status=active&limit=2&after={last}")).await;
    let rest = second["sessions"].as_array().unwrap();
    assert_eq!(rest.len(), 1);
    assert!(!seen.contains(&&rest[0]["session"]));
}

#[tokio::test]
async fn watchers_and_pictures_can_be_asked_for() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    let path = format!("/v1/sessions/{session}");
    runtime.publish_picture(&session, b"\x89PNG one").await;
    let (_, got) = gateway.get(&path).await;
    let picture = &got["state"]["picture"];
    assert_eq!((&picture["media"], &picture["size"]), (&json!("image/png"), &json!(8)));
    let url = format!("{}{path}/pictures/{}", gateway.url, picture["id"].as_str().unwrap());
    let response = gateway.http.get(url).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "image/png");
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.bytes().await.unwrap().as_ref(), b"\x89PNG one");
    assert_eq!(gateway.get(&format!("{path}/pictures/none")).await.1["error"], "unknown_picture");
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    let (_, watchers) = gateway.get(&format!("{path}/watchers")).await;
    assert_eq!(watchers["counts"], json!({ "watching": 1, "able": 1, "following": 1 }));
    assert_eq!(watchers["watchers"][0]["via"], "websocket");
}

#[tokio::test]
async fn what_is_not_there_is_said_in_json() {
    let gateway = TestGateway::start().await;
    for path in ["/v1/nothing", "/v1/sessions/x/y/z", "/favicon.ico", "/v1/sessions/%ff"] {
        let (status, body) = gateway.get(path).await;
        assert_eq!((status, &body["error"]), (404, &json!("not_found")), "{path}");
    }
    for path in ["/v1/sessions/x", "/v1/sessions/aaaaaaaaaaaaaaaaaaaa", "/v1/sessions/aaaaaaaaaaaaaaaaaaaa/events"] {
        let (status, body) = gateway.get(path).await;
        assert_eq!((status, &body["error"]), (404, &json!("unknown_session")), "{path}");
    }
    for (method, path) in
        [("PUT", "/v1/sessions"), ("DELETE", "/v1/guardrails"), ("POST", "/healthz"), ("PATCH", "/v1/ws")]
    {
        let url = format!("{}{path}", gateway.url);
        let (status, body) = gateway.request(gateway.http.request(method.parse().unwrap(), url)).await;
        assert_eq!(
            (status, &body["error"], &body["code"]),
            (405, &json!("wrong_method"), &json!(3025)),
            "{method} {path}"
        );
    }
}

// --- guardrails ------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn guardrails_are_listed_by_state_and_session_and_found_by_id() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (first, _) = runtime.open(OpenSession::default()).await;
    let (second, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&first, "both", json!({})).await;
    runtime.ask(&second, "both", json!({})).await;
    runtime.ask(&second, "one", json!({})).await;
    let list = |query: &'static str| {
        let gateway = &gateway;
        async move {
            let (_, list) = gateway.get(&format!("/v1/guardrails{query}")).await;
            let ids = list["guardrails"].as_array().unwrap_or_else(|| panic!("{list}")).iter();
            ids.map(|one| one["guardrailId"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        }
    };
    // Oldest first; two that were asked in one millisecond have no order.
    let mut open = list("?state=open").await;
    open.sort();
    assert_eq!(open, ["both", "both", "one"]);
    assert_eq!(list("?limit=1").await.len(), 1);
    let (_, of_second) = gateway.get(&format!("/v1/guardrails?session={second}")).await;
    assert_eq!(of_second["guardrails"].as_array().unwrap().len(), 2);
    assert_eq!(gateway.get("/v1/guardrails/one").await.1["guardrail"]["session"], second.as_str());
    let (status, ambiguous) = gateway.get("/v1/guardrails/both").await;
    assert_eq!((status, &ambiguous["error"]), (409, &json!("ambiguous")));
    let (status, named) = gateway.get(&format!("/v1/guardrails/both?session={first}")).await;
    assert_eq!((status, &named["guardrail"]["session"]), (200, &json!(first)));
    assert_eq!(gateway.get("/v1/guardrails/none").await.1["error"], "unknown_guardrail");
    assert_eq!(gateway.get("/v1/guardrails?state=nonsense").await.0, 400);
}

#[tokio::test]
async fn accepted_guardrails_are_listed_also_where_none_is_open() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    runtime.ask(&session, "g", json!({})).await;
    let body = json!({ "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
    assert_eq!(gateway.post("/v1/guardrails/g/answer", body).await.0, 200);
    assert_eq!(gateway.get("/v1/guardrails?state=open").await.1, json!({ "guardrails": [] }));
    for query in ["", "?state=accepted"] {
        let (_, list) = gateway.get(&format!("/v1/guardrails{query}")).await;
        assert_eq!(list["guardrails"][0]["state"], "accepted", "{query}: {list}");
    }
    runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    assert_eq!(gateway.get("/v1/guardrails").await.1, json!({ "guardrails": [] }));
}

// --- pages of events -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn pages_go_on_from_positions_and_skip_what_is_filtered() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    for name in ["a", "b", "c"] {
        runtime.publish(&session, "action", json!({ "name": name })).await;
        runtime.publish(&session, "x.noise", json!({})).await;
    }
    let path = format!("/v1/sessions/{session}/events");
    let (_, whole) = gateway.get(&path).await;
    assert_eq!(kinds(&whole)[..4], ["session_started", "runtime_connected", "action", "x.noise"]);
    assert!(whole.get("gap").is_none());
    let mut walked = Vec::new();
    let mut since = "start".to_owned();
    loop {
        let (_, page) = gateway.get(&format!("{path}?since={since}&limit=3")).await;
        if kinds(&page).is_empty() {
            break;
        }
        assert!(kinds(&page).len() <= 3);
        walked.extend(page["events"].as_array().unwrap().clone());
        since = page["position"].as_str().unwrap().to_owned();
    }
    assert_eq!(json!(walked), whole["events"]);
    let (_, filtered) = gateway.get(&format!("{path}?filter=action,task_completed")).await;
    assert_eq!(kinds(&filtered), ["action", "action", "action"]);
    assert_eq!(filtered["position"], whole["position"], "filters leave holes, not older positions");
    assert_eq!(kinds(&gateway.get(&format!("{path}?since=latest")).await.1), [""; 0]);
    let gaps = [("aaaaaaaa:1".to_owned(), "epoch"), (format!("{}999", whole["position"].as_str().unwrap()), "ahead")];
    for (since, reason) in gaps {
        let (_, page) = gateway.get(&format!("{path}?since={since}")).await;
        assert_eq!((&page["gap"], kinds(&page).len()), (&json!(reason), kinds(&whole).len()), "{since}");
    }
    for query in ["since=nonsense", "since=aaaaaaaa:-1", "limit=x", "wait=x"] {
        let (status, refusal) = gateway.get(&format!("{path}?{query}")).await;
        assert_eq!((status, &refusal["error"]), (400, &json!("invalid")), "{query}");
    }
}

#[tokio::test]
async fn a_page_says_that_what_it_asked_for_was_trimmed() {
    let mut config = quick();
    config.limits.log_events = 10;
    let gateway = TestGateway::with(config).await;
    let (mut runtime, session) = open(&gateway).await;
    let early = runtime.publish(&session, "action", json!({ "name": "early" })).await;
    for _ in 0..30 {
        runtime.publish(&session, "action", json!({})).await;
    }
    for since in ["start".to_owned(), early.to_string()] {
        let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?since={since}")).await;
        assert_eq!(page["gap"], "trimmed", "{since}");
        let count = kinds(&page).len();
        assert!((1..=10).contains(&count), "{count}");
    }
}

#[tokio::test]
async fn a_long_poll_wakes_at_the_event_that_it_waits_for() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    let path = format!("/v1/sessions/{session}/events?since=latest&wait=25&filter=action");
    let began = Instant::now();
    let (page, ()) = tokio::join!(gateway.get(&path), async {
        // What is filtered wakes nobody.
        runtime.publish(&session, "x.noise", json!({})).await;
        wait_until("the poll is there", || async {
            gateway.get(&format!("/v1/sessions/{session}/watchers")).await.1["counts"]["watching"] == 1
        })
        .await;
        runtime.publish(&session, "action", json!({ "name": "now" })).await;
    });
    assert_eq!(kinds(&page.1), ["action"]);
    assert!(began.elapsed() < Duration::from_secs(20), "it did not wait for its time");
    let (_, empty) = gateway.get(&format!("/v1/sessions/{session}/events?since=latest&wait=1")).await;
    assert_eq!(kinds(&empty), [""; 0]);
}

// --- event streams ---------------------------------------------------------------------------------------------------

/// One server-sent event.
#[derive(Clone, Debug, Default)]
struct Sent {
    id: Option<String>,
    name: String,
    data: Value,
}

/// A client that reads an event stream as browsers do.
struct EventSource {
    body: futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    buffer: String,
    comments: usize,
}

impl EventSource {
    async fn open(gateway: &TestGateway, session: &str, last: Option<&str>) -> Self {
        let url = format!("{}/v1/sessions/{session}/events", gateway.url);
        let mut request = gateway.http.get(url).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { body: response.bytes_stream().boxed(), buffer: String::new(), comments: 0 }
    }

    /// The next event; `None` at the stream's end.
    async fn next(&mut self) -> Option<Sent> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                let mut sent = Sent::default();
                for line in block.lines() {
                    match line.split_once(": ") {
                        Some(("id", id)) => sent.id = Some(id.to_owned()),
                        Some(("event", name)) => sent.name = name.to_owned(),
                        Some(("data", data)) => sent.data = serde_json::from_str(data).expect("data is JSON"),
                        Some(("", _)) => self.comments += 1,
                        _ if line.is_empty() => {}
                        _ => panic!("no line of an event stream: {line}"),
                    }
                }
                if !sent.name.is_empty() {
                    return Some(sent);
                }
                continue;
            }
            let piece = timeout(BOUND, self.body.next()).await.expect("something comes")?;
            self.buffer.push_str(std::str::from_utf8(&piece.expect("the stream is whole")).unwrap());
        }
    }

    async fn until(&mut self, name: &str) -> Sent {
        loop {
            let sent = self.next().await.unwrap_or_else(|| panic!("the stream ended before {name}"));
            if sent.name == name {
                return sent;
            }
        }
    }
}

#[tokio::test]
async fn an_event_stream_shows_events_resumes_and_ends_with_its_session() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    runtime.publish(&session, "action", json!({ "name": "before" })).await;
    let mut stream = EventSource::open(&gateway, &session, None).await;
    assert!(stream.next().await.is_some_and(|sent| sent.name == "hello"));
    let snapshot = stream.until("snapshot").await;
    assert_eq!(snapshot.data["state"]["status"], "active");
    let live = stream.until("live").await;
    assert_eq!(live.id.as_deref(), live.data["position"].as_str(), "a new stream begins at the end");
    let position = runtime.publish(&session, "action", json!({ "name": "one\ntwo" })).await;
    let sent = stream.until("action").await;
    assert_eq!(sent.id, Some(position.to_string()));
    assert_eq!(sent.data["position"], position.to_string());
    assert_eq!(sent.data["event"]["data"]["name"], "one\ntwo");
    drop(stream);
    for name in ["a", "b"] {
        runtime.publish(&session, "action", json!({ "name": name })).await;
    }
    let mut stream = EventSource::open(&gateway, &session, sent.id.as_deref()).await;
    let hello = stream.until("hello").await;
    for name in ["a", "b"] {
        assert_eq!(stream.until("action").await.data["event"]["data"]["name"], name);
    }
    runtime.publish(&session, "action", json!({ "name": "c" })).await;
    assert_eq!(stream.until("action").await.data["event"]["data"]["name"], "c");
    gateway.request(gateway.http.delete(format!("{}/v1/sessions/{session}", gateway.url))).await;
    let ended = stream.until("session_ended").await;
    assert_eq!(ended.data["event"]["data"]["reason"], "terminated");
    // Its page says that it has the end; otherwise the stream stays open for 10 s more.
    let alive = format!("/v1/subscribers/{}/alive", hello.data["subscriber"].as_str().unwrap());
    assert_eq!(gateway.post(&alive, json!({ "position": ended.id })).await.0, 200);
    assert_eq!(stream.until("unsubscribed").await.data["error"], "session_ended");
    assert!(stream.next().await.is_none(), "the stream is over");
    wait_until("its connection is let go", || async { gateway.metric("onlooker_connections").await == 0.0 }).await;
}

#[tokio::test]
async fn a_stream_from_another_log_gets_a_gap() {
    let gateway = TestGateway::start().await;
    let (_runtime, session) = open(&gateway).await;
    let mut stream = EventSource::open(&gateway, &session, Some("aaaaaaaa:5")).await;
    assert_eq!(stream.until("gap").await.data["reason"], "epoch");
    stream.until("snapshot").await;
    stream.until("live").await;
}

#[tokio::test]
async fn a_stream_counts_as_looking_only_while_its_page_says_so() {
    let gateway = TestGateway::start().await;
    let (_runtime, session) = open(&gateway).await;
    let mut stream = EventSource::open(&gateway, &session, None).await;
    let hello = stream.next().await.unwrap();
    let position = stream.until("live").await.id.unwrap();
    let watching = || async {
        gateway.get(&format!("/v1/sessions/{session}/watchers")).await.1["counts"]["watching"].as_u64().unwrap()
    };
    assert_eq!(watching().await, 0);
    let subscriber = hello.data["subscriber"].as_str().unwrap();
    let path = format!("/v1/subscribers/{subscriber}/alive");
    let says = json!({ "position": position, "attention": "active" });
    assert_eq!(gateway.post(&path, says.clone()).await, (200, json!({ "able": true })));
    wait_until("it counts", || async { watching().await == 1 }).await;
    wait_until("its silence lets it lapse", || async { watching().await == 0 }).await;
    assert_eq!(gateway.post("/v1/subscribers/00000000-0000-7000-8000-000000000000/alive", says.clone()).await.0, 404);
    drop(stream);
    wait_until("its voice is gone", || async { gateway.post(&path, says.clone()).await.0 == 404 }).await;
}

// --- the operator's surfaces -----------------------------------------------------------------------------------------

#[tokio::test]
async fn health_readiness_and_metrics_are_as_their_readers_expect() {
    let gateway = TestGateway::start().await;
    let (mut runtime, session) = open(&gateway).await;
    runtime.publish(&session, "action", json!({})).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    assert_eq!(gateway.get("/healthz").await, (200, json!("ok\n")));
    assert_eq!(gateway.get("/readyz").await, (200, json!("ready\n")));
    gateway.get("/v1/nothing").await;
    let response = gateway.http.get(format!("{}/metrics", gateway.url)).send().await.unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut families = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(families.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a sample and its value");
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
            let name = name.split('{').next().unwrap();
            assert!(name.starts_with("onlooker_"), "{line}");
            let known = families.get(name).map(String::as_str) == Some("gauge")
                || name
                    .strip_suffix("_total")
                    .is_some_and(|name| families.get(name).map(String::as_str) == Some("counter"));
            assert!(known, "a sample without its family: {line}");
        }
    }
    for (name, value) in [
        ("onlooker_sessions", 1.0),
        ("onlooker_connections", 1.0),
        ("onlooker_events_total", 3.0),
        ("onlooker_sessions_created_total", 1.0),
        ("onlooker_runtimes_opened_total", 1.0),
        ("onlooker_subscribers_opened_total", 1.0),
        ("onlooker_refusals_total{code=\"not_found\"}", 1.0),
    ] {
        assert_eq!(gateway.metric(name).await, value, "{name}");
    }
}

// --- the stop --------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_stop_says_goodbye_to_everybody_and_frees_the_port() {
    let gateway = TestGateway::start().await;
    let address: std::net::SocketAddr = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    let (mut runtime, session) = open(&gateway).await;
    runtime.ask(&session, "g", json!({})).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    let mut stream = EventSource::open(&gateway, &session, None).await;
    stream.until("live").await;
    let poll = gateway.http.get(format!("{}/v1/sessions/{session}/events?since=latest&wait=25", gateway.url));
    let poll = tokio::spawn(async move { poll.send().await.map(|response| response.status().as_u16()) });
    wait_until("the poll is there", || async {
        gateway.get(&format!("/v1/sessions/{session}/watchers")).await.1["counts"]["watching"] == 2
    })
    .await;
    let stopping = tokio::spawn(gateway.stop());
    let after = subscriber
        .until("goaway", |frame| match frame {
            GatewayToSubscriber::Goaway { after, resume, .. } => Some((*after, *resume)),
            _ => None,
        })
        .await;
    assert!(after.0 <= 5000 && after.1, "{after:?}");
    assert_eq!(subscriber.closed().await, Some(4000));
    let delay = runtime
        .until("goaway", |frame| match frame {
            GatewayToRuntime::Goaway { after, .. } => Some(*after),
            _ => None,
        })
        .await;
    assert!(delay <= 5000, "{delay}");
    assert!(runtime.receive().await.is_none());
    assert_eq!(stream.until("unsubscribed").await.data["error"], "stopping");
    assert_eq!(timeout(BOUND, poll).await.unwrap().unwrap().unwrap(), 200, "a poll is answered, not cut");
    stopping.await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens");
    let mut config = quick();
    config.listen.address = address;
    TestGateway::with(config).await.stop().await;
}

#[tokio::test]
async fn a_stop_with_a_hundred_deaf_connections_ends_within_its_time() {
    let gateway = TestGateway::start().await;
    let (_runtime, session) = open(&gateway).await;
    let mut subscribers = Vec::new();
    for _ in 0..100 {
        let mut subscriber = gateway.subscriber().await;
        // What it reads after the stop needs no pong: nobody would take it.
        subscriber.silent = true;
        subscriber.watch(&session).await;
        subscribers.push(subscriber);
    }
    for subscriber in &mut subscribers {
        subscriber.live().await;
    }
    let address: std::net::SocketAddr = gateway.url.strip_prefix("http://").unwrap().parse().unwrap();
    let began = Instant::now();
    // Nobody reads, so that nobody answers the goodbye.
    gateway.stop().await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "3 s to drain, and what a slow machine adds: {took:?}");
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.closed().await, Some(4000));
    }
}

#[tokio::test]
async fn a_question_that_a_subscriber_has_just_seen_is_in_the_list_at_once() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    for round in 0..12 {
        let id = format!("g{round}");
        let data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id });
        runtime.send_event(&session, "guardrail_trigger", data).await;
        subscriber.event("guardrail_trigger").await;
        let (_, list) = gateway.get("/v1/guardrails?state=open").await;
        let listed = list["guardrails"].as_array().unwrap().iter().any(|view| view["guardrailId"] == id.as_str());
        assert!(listed, "{id} is not in {list}");
    }
    gateway.stop().await;
}
