//! What others fell into, each with a test.

use std::time::Duration;

use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::{client::*, packets::following};
use crate::harness::*;

#[tokio::test]
async fn a_second_connect_replaces_nothing() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::join(&gateway, by, &session).await;
        client.send(&format!("40{}", json!({ "sessionId": session }))).await;
        client.send("40{\"sessionId\":\"aaaaaaaaaaaaaaaaaaaa\"}").await;
        runtime.publish(&session, "agent", json!({ "content": "once" })).await;
        let packet = client.packet().await.text();
        assert_eq!(event_of(&packet).unwrap().argument["content"], "once", "{packet}");
        assert_eq!(following(&gateway, &session).await, 1);
        client.send("41").await;
        wait_until("it is left", || async { following(&gateway, &session).await == 0 }).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_is_not_finished_leaves_nothing_behind() {
    let mut config = patient();
    config.times.ping_every = Duration::from_millis(200);
    config.times.live_window = Duration::from_millis(300);
    let (gateway, _runtime, session) = with_session(config).await;
    let mut sockets = Vec::new();
    for probe in [None, Some("2probe")] {
        let mut polls = Polls::open(&gateway).await;
        polls.post(format!("40{}", json!({ "sessionId": session }))).await;
        polls.get().await;
        let mut socket = websocket(&gateway, &format!("EIO=4&transport=websocket&sid={}", polls.sid)).await.unwrap();
        if let Some(probe) = probe {
            socket.send(Message::text(probe)).await.unwrap();
            next_of(&mut socket).await;
        }
        sockets.push((polls, socket));
    }
    // They neither poll nor finish.
    wait_until("they are gone", || async { following(&gateway, &session).await == 0 }).await;
    for (polls, mut socket) in sockets {
        assert!(matches!(next_of(&mut socket).await, Got::Closed(_)));
        assert_eq!(polls.post("3").await.0, 400);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn cut_characters_hurt_nobody() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut other = Client::join(&gateway, By::Websocket, &session).await;
    for text in ["ü", "4ü", "42ü", "451ü-[]", "42/ü", "40/ü,", "42😀[\"message\"]", "b😀", "4\u{1e}ü", "42[\"\u{fffd}"]
    {
        let mut client = Client::join(&gateway, By::Websocket, &session).await;
        client.send(text).await;
        let polls = Polls::open(&gateway).await;
        polls.post(text).await;
    }
    runtime.publish(&session, "agent", json!({ "content": "on" })).await;
    other.message("agent").await;
    gateway.stop().await;
}

fn with_attachments(count: &str) -> String {
    format!("45{count}-[\"message\",{{\"_placeholder\":true,\"num\":0}}]")
}

#[tokio::test]
async fn attachments_are_bounded_in_number_and_in_bytes() {
    let mut config = patient();
    config.times.auth_within = BOUND * 2;
    let (gateway, _runtime, session) = with_session(config).await;
    for count in ["9", "1000000", "99999999999999999999", "-1", ""] {
        let mut client = Client::join(&gateway, By::Websocket, &session).await;
        client.send(&with_attachments(count)).await;
        assert_eq!(client.closed().await, Some(1002), "{count}");
    }
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.send(&with_attachments("3")).await;
    for _ in 0..2 {
        client.send_binary(&vec![0; 40_000]).await;
    }
    assert_eq!(client.closed().await, Some(1009));
    // A text in between.
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.send(&with_attachments("2")).await;
    client.send_binary(&[1]).await;
    client.send("42[\"message\",{}]").await;
    assert_eq!(client.closed().await, Some(1002));
    // A pong is no packet of Socket.IO: it may come in between.
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.send(&with_attachments("1")).await;
    client.send("3").await;
    client.send_binary(&[1]).await;
    client.named("error").await;
    gateway.stop().await;
}

#[tokio::test]
async fn attachments_that_never_come_are_not_awaited_for_ever() {
    let mut config = patient();
    config.times.auth_within = Duration::from_millis(300);
    let (gateway, _runtime, session) = with_session(config).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.send(&with_attachments("1")).await;
    assert_eq!(client.closed().await, Some(1002));
    gateway.stop().await;
}

#[tokio::test]
async fn who_asks_and_never_polls_is_closed() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    let payload = vec!["42[\"x\"]"; 256].join("\u{1e}");
    let mut posts = 0;
    while polls.post(payload.clone()).await.0 == 200 {
        posts += 1;
        assert!(posts < 50, "answers pile up without end");
    }
    assert_eq!(polls.get().await.0, 400);
    gateway.stop().await;
}

#[tokio::test]
async fn polling_sessions_are_bounded() {
    let mut config = patient();
    config.limits.connections = 5;
    let gateway = TestGateway::with(config).await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(Polls::open(&gateway).await);
    }
    let (status, body) = gateway.get("/socket.io/?EIO=4&transport=polling").await;
    assert_eq!((status, &body["code"]), (503, &json!(4)));
    sessions[0].post("1").await;
    wait_until("a place is free", || async { gateway.get("/socket.io/?EIO=4&transport=polling").await.0 == 200 }).await;
    gateway.stop().await;
}

/// One that reads nothing is closed after the stall time; the one beside it gets everything meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_closed_and_resumes_and_hurts_nobody() {
    const EVENTS: usize = 400;
    let mut config = patient();
    config.times.send_stall = Duration::from_millis(500);
    config.limits.log_bytes = 64 << 20;
    let (gateway, mut runtime, session) = with_session(config).await;
    let mut slow = Client::narrow(&gateway).await;
    slow.connect(json!({ "sessionId": session })).await.unwrap();
    let mut good = Client::join(&gateway, By::Websocket, &session).await;
    let last = (EVENTS - 1).to_string();
    let reading = tokio::spawn(async move { contents(&mut good, EVENTS).await });
    let filler = "x".repeat(60 * 1024);
    for number in 0..EVENTS {
        runtime.publish(&session, "agent", json!({ "content": number.to_string(), "filler": filler })).await;
        runtime.publish(&session, "action", json!({ "name": filler })).await;
    }
    let wanted: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    assert_eq!(reading.await.unwrap(), wanted);
    wait_until("the slow one is closed", || async { following(&gateway, &session).await <= 1 }).await;
    // What it has of it, and the rest.
    let mut got = Vec::new();
    while let Got::Text(text) = slow.packet().await {
        let Some(event) = event_of(&text) else { continue };
        slow.offset = event.offset.or(slow.offset.take());
        got.extend(event.argument["content"].as_str().map(str::to_owned));
    }
    assert!(got.len() < EVENTS, "it was not slow");
    let mut back = slow.rejoin(&gateway, By::Websocket, &session).await;
    got.extend(back.contents_until(&last).await);
    assert_eq!(got, wanted);
    gateway.stop().await;
}

async fn contents(client: &mut Client, count: usize) -> Vec<String> {
    let mut contents = Vec::new();
    while contents.len() < count {
        contents.push(client.message("agent").await["content"].as_str().unwrap().to_owned());
    }
    contents
}
