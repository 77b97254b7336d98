//! The cases of Engine.IO 4: handshake, messages, heartbeat, close. Upgrades have a file of their own.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::client::*;
use crate::harness::*;

async fn asked(gateway: &TestGateway, method: &str, query: &str) -> (u16, Value) {
    let method = method.parse().unwrap();
    gateway.request(gateway.http.request(method, format!("{}/socket.io/?{query}", gateway.url))).await
}

#[tokio::test]
async fn polling_and_websocket_open_with_what_the_client_needs() {
    let gateway = TestGateway::with(patient()).await;
    for by in BOTH {
        let client = Client::open(&gateway, by).await;
        let mut open = client.open;
        let sid = open["sid"].take();
        assert!(sid.as_str().unwrap().len() >= 20, "{sid}");
        let upgrades: &[&str] = if by == By::Polling { &["websocket"] } else { &[] };
        let wanted = json!({
            "sid": null, "upgrades": upgrades, "pingInterval": 10_000, "pingTimeout": 20_000, "maxPayload": 65_536,
        });
        assert_eq!(open, wanted);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_wrong_handshake_is_refused_in_the_protocols_own_words() {
    let gateway = TestGateway::with(patient()).await;
    let table = [
        ("GET", "transport=polling", 5, "Unsupported protocol version"),
        ("GET", "EIO=abc&transport=polling", 5, "Unsupported protocol version"),
        ("GET", "EIO=3&transport=polling", 5, "Unsupported protocol version"),
        ("GET", "EIO=4", 0, "Transport unknown"),
        ("GET", "EIO=4&transport=abc", 0, "Transport unknown"),
        ("POST", "EIO=4&transport=polling", 2, "Bad handshake method"),
        ("PUT", "EIO=4&transport=polling", 2, "Bad handshake method"),
        ("POST", "EIO=4&transport=websocket", 2, "Bad handshake method"),
        ("GET", "EIO=4&transport=websocket", 3, "Bad request"),
        ("GET", "EIO=4&transport=polling&sid=none", 1, "Session ID unknown"),
        ("POST", "EIO=4&transport=polling&sid=none", 1, "Session ID unknown"),
    ];
    for (method, query, code, message) in table {
        let got = asked(&gateway, method, query).await;
        assert_eq!(got, (400, json!({ "code": code, "message": message })), "{method} {query}");
    }
    for query in ["transport=websocket", "EIO=abc&transport=websocket", "EIO=4&transport=abc"] {
        assert!(websocket(&gateway, query).await.is_err(), "{query}");
    }
    assert!(websocket(&gateway, "EIO=4&transport=websocket&sid=none").await.is_err());
    gateway.stop().await;
}

#[tokio::test]
async fn several_packets_of_one_payload_are_taken_in_order() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    let connect = format!("40{}", json!({ "sessionId": session }));
    let payload = format!("{connect}\u{1e}421[\"a\"]\u{1e}422[\"b\"]");
    assert_eq!(polls.post(payload).await, (200, "ok".to_owned()));
    let mut got = String::new();
    while !got.contains("432[") {
        let (status, body) = polls.get().await;
        assert_eq!(status, 200);
        got.push_str(&body);
        got.push('\u{1e}');
    }
    let kinds: Vec<&str> = got.split('\u{1e}').filter_map(|packet| packet.get(..3)).collect();
    assert_eq!(kinds, ["40{", "42[", "431", "42[", "432"], "{got}");
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_no_packet_ends_the_session_and_no_other() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut other = Client::join(&gateway, By::Websocket, &session).await;
    for garbage in ["abc", "", "7", "2", "5", "bAAEC", "b?", "4", "0{}", "\u{1e}", "4\u{fc}", "😀", "42[\"\u{1e}"] {
        let mut polls = Polls::open(&gateway).await;
        let (status, body) = polls.post(garbage).await;
        assert_eq!(status, 400, "{garbage}: {body}");
        assert_eq!(polls.get().await.0, 400, "{garbage}");
        let mut client = Client::open(&gateway, By::Websocket).await;
        client.send(garbage).await;
        assert_eq!(client.closed().await, Some(1002), "{garbage}");
    }
    let mut polls = Polls::open(&gateway).await;
    assert_eq!(polls.post(vec![0xff, 0xfe]).await.0, 400);
    assert_eq!(polls.get().await.0, 400);
    let mut client = Client::open(&gateway, By::Websocket).await;
    client.send_binary(&[1, 2, 3, 4]).await;
    assert_eq!(client.closed().await, Some(1002));
    runtime.publish(&session, "agent", json!({ "content": "still here" })).await;
    assert_eq!(other.message("agent").await["content"], "still here");
    gateway.stop().await;
}

#[tokio::test]
async fn a_poll_that_is_given_up_ends_the_session() {
    let gateway = TestGateway::with(patient()).await;
    let polls = Polls::open(&gateway).await;
    let waiting = polls.get_with("first");
    assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
    let unknown = || async { polls.post("3").await.0 == 400 };
    wait_until("the session is over", unknown).await;
    gateway.stop().await;
}

#[tokio::test]
async fn two_polls_at_once_end_the_session() {
    let gateway = TestGateway::with(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    let (first, other) = (polls.clone(), polls.clone());
    let first = tokio::spawn(async move { first.get_with("first").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(other.get_with("burst").await.0, 400);
    assert_eq!(first.await.unwrap(), (200, "1".to_owned()));
    assert_eq!(polls.get().await.0, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_ends_the_session() {
    let gateway = TestGateway::with(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    assert_eq!(polls.post("4".repeat(65_537)).await.0, 413);
    assert_eq!(polls.get().await.0, 400);
    let mut client = Client::open(&gateway, By::Websocket).await;
    client.send(&"4".repeat(65_537)).await;
    assert_eq!(client.closed().await, Some(1009));
    gateway.stop().await;
}

/// A heartbeat of 200 ms with 300 ms to answer, and more time to join than a test needs.
fn hasty() -> onlooker::config::Config {
    let mut config = patient();
    config.times.ping_every = Duration::from_millis(200);
    config.times.live_window = Duration::from_millis(300);
    config.times.auth_within = Duration::from_secs(20);
    config
}

#[tokio::test]
async fn who_answers_pings_stays_and_the_first_comes_after_the_interval() {
    for by in BOTH {
        let gateway = TestGateway::with(hasty()).await;
        let mut client = Client::open(&gateway, by).await;
        for _ in 0..4 {
            let since = Instant::now();
            assert_eq!(client.raw().await, Got::Text("2".to_owned()));
            assert!(since.elapsed() > Duration::from_millis(150), "{:?}", since.elapsed());
            client.send("3").await;
        }
        gateway.stop().await;
    }
}

#[tokio::test]
async fn who_answers_no_ping_is_closed_after_interval_and_timeout() {
    for by in BOTH {
        let gateway = TestGateway::with(hasty()).await;
        let mut client = Client::open(&gateway, by).await;
        client.silent = true;
        let since = Instant::now();
        let code = client.closed().await;
        // Its clock began a little before.
        assert!(since.elapsed() >= Duration::from_millis(350), "{:?}", since.elapsed());
        assert_eq!(code, (by == By::Websocket).then_some(1000));
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_session_that_nobody_polls_expires() {
    let gateway = TestGateway::with(hasty()).await;
    let polls = Polls::open(&gateway).await;
    let mut left = 0;
    // Packets are signs of life; whoever fetches nothing is gone all the same.
    while polls.post("3").await.0 == 200 {
        left += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(left < 200, "it does not expire");
    }
    wait_until("nothing is left", || async { gateway.metric("onlooker_connections").await == 0.0 }).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_closes_over_polling_and_over_a_websocket() {
    let gateway = TestGateway::with(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    let waiting = polls.clone();
    let waiting = tokio::spawn(async move { waiting.get_with("first").await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(polls.post("1").await, (200, "ok".to_owned()));
    assert_eq!(waiting.await.unwrap(), (200, "6".to_owned()));
    assert_eq!(polls.get().await.0, 400);
    let mut socket = websocket(&gateway, "EIO=4&transport=websocket").await.unwrap();
    next_of(&mut socket).await;
    socket.send(Message::text("1")).await.unwrap();
    assert!(matches!(next_of(&mut socket).await, Got::Closed(_)));
    assert!(socket.next().await.is_none());
    gateway.stop().await;
}

#[tokio::test]
async fn pages_of_any_origin_are_answered_and_preflights_too() {
    let config = with_keys(patient(), &[("k", &[])]);
    let gateway = TestGateway::with(config).await;
    let url = format!("{}/socket.io/?EIO=4&transport=polling", gateway.url);
    let origin = "https://app.example";
    let response = gateway.http.get(&url).header("origin", origin).send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["access-control-allow-origin"]),
        (200, &"*".parse().unwrap())
    );
    assert!(!response.headers().contains_key("access-control-allow-credentials"));
    let preflight = gateway
        .http
        .request(reqwest::Method::OPTIONS, &url)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type,authorization")
        .send()
        .await
        .unwrap();
    assert_eq!(preflight.status(), 200);
    assert_eq!(preflight.headers()["access-control-allow-methods"], "GET,POST,DELETE");
    assert_eq!(preflight.headers()["access-control-allow-headers"], "content-type,authorization");
    gateway.stop().await;

    // Without keys only this machine's own pages.
    let gateway = TestGateway::with(patient()).await;
    let url = format!("{}/socket.io/?EIO=4&transport=polling", gateway.url);
    let of = async |origin: &str| gateway.http.get(&url).header("origin", origin).send().await.unwrap().status();
    assert_eq!(of("http://localhost:3000").await, 200);
    assert_eq!(of(origin).await, 403);
    gateway.stop().await;
}
