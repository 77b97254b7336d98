//! From long-polling to a websocket, with nothing lost, doubled or out of order.

use std::time::Duration;

use futures::SinkExt;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use super::client::*;
use crate::harness::*;

async fn upgrade_socket(gateway: &TestGateway, sid: &str) -> Socket {
    websocket(gateway, &format!("EIO=4&transport=websocket&sid={sid}")).await.unwrap()
}

#[tokio::test]
async fn a_polling_session_is_upgraded_and_then_polls_no_more() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    assert!(polls.get().await.1.starts_with("40{"));
    let waiting = polls.clone();
    let waiting = tokio::spawn(async move { waiting.get_with("waits").await });
    let mut socket = upgrade_socket(&gateway, &polls.sid).await;
    socket.send(Message::text("2probe")).await.unwrap();
    assert_eq!(next_of(&mut socket).await, Got::Text("3probe".to_owned()));
    assert_eq!(waiting.await.unwrap(), (200, "6".to_owned()));
    socket.send(Message::text("5")).await.unwrap();
    runtime.publish(&session, "agent", json!({ "content": "over the websocket" })).await;
    let event = event_of(&next_of(&mut socket).await.text()).unwrap();
    assert_eq!(event.argument["content"], "over the websocket");

    assert_eq!(polls.get().await, (400, r#"{"code":3,"message":"Bad request"}"#.to_owned()));
    assert_eq!(polls.post("3").await.0, 400);
    let mut second = upgrade_socket(&gateway, &polls.sid).await;
    assert!(matches!(next_of(&mut second).await, Got::Closed(_)));
    // None of that hurt.
    runtime.publish(&session, "agent", json!({ "content": "again" })).await;
    assert_eq!(event_of(&next_of(&mut socket).await.text()).unwrap().argument["content"], "again");
    drop(socket);
    wait_until("it is gone", || async { gateway.metric("onlooker_connections").await == 0.0 }).await;
    assert_eq!(polls.get().await, (400, r#"{"code":1,"message":"Session ID unknown"}"#.to_owned()));
    gateway.stop().await;
}

#[tokio::test]
async fn a_failed_probe_leaves_polling_as_it_was() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    polls.get().await;
    for probe in ["nonsense", "5", "2prob", "42[\"message\",{}]"] {
        let mut socket = upgrade_socket(&gateway, &polls.sid).await;
        socket.send(Message::text(probe)).await.unwrap();
        assert!(matches!(next_of(&mut socket).await, Got::Closed(_)), "{probe}");
        runtime.publish(&session, "agent", json!({ "content": probe })).await;
        let (status, body) = polls.get().await;
        assert_eq!(status, 200);
        assert_eq!(event_of(&body).unwrap().argument["content"], probe);
    }
    // One that vanishes after the answer.
    let mut socket = upgrade_socket(&gateway, &polls.sid).await;
    socket.send(Message::text("2probe")).await.unwrap();
    next_of(&mut socket).await;
    drop(socket);
    let mut socket = upgrade_socket(&gateway, &polls.sid).await;
    // The one before is given up when its end was seen.
    socket.send(Message::text("2probe")).await.unwrap();
    runtime.publish(&session, "agent", json!({ "content": "last" })).await;
    let mut body = polls.get().await.1;
    while body == "6" {
        body = polls.get().await.1;
    }
    assert_eq!(event_of(&body).unwrap().argument["content"], "last");
    gateway.stop().await;
}

/// A client as the npm one upgrades: it probes, waits until its poll has come back, and only then changes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_traffic_nothing_is_lost_or_out_of_order() {
    const EVENTS: usize = 300;
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let publishing = {
        let session = session.clone();
        async move {
            for number in 0..EVENTS {
                runtime.publish(&session, "agent", json!({ "content": number.to_string() })).await;
            }
            runtime
        }
    };
    let mut clients = Vec::new();
    for delay in [0, 5, 20, 50] {
        let mut polls = Polls::open(&gateway).await;
        polls.post(format!("40{}", json!({ "sessionId": session }))).await;
        assert!(polls.get().await.1.starts_with("40{"));
        let mut socket = upgrade_socket(&gateway, &polls.sid).await;
        clients.push(tokio::spawn(async move {
            let mut got = Vec::new();
            let polling = {
                let (mut polls, (stop, mut stopped)) = (polls.clone(), tokio::sync::oneshot::channel::<()>());
                let task = tokio::spawn(async move {
                    let mut bodies = Vec::new();
                    while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                        let (status, body) = polls.get().await;
                        assert_eq!(status, 200);
                        bodies.push(body);
                    }
                    bodies
                });
                (stop, task)
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            socket.send(Message::text("2probe")).await.unwrap();
            assert_eq!(next_of(&mut socket).await, Got::Text("3probe".to_owned()));
            let _ = polling.0.send(());
            for body in polling.1.await.unwrap() {
                got.extend(body.split('\u{1e}').filter_map(event_of).map(|event| event.argument["content"].clone()));
            }
            let by_polling = got.len();
            socket.send(Message::text("5")).await.unwrap();
            while got.len() < EVENTS {
                let Got::Text(text) = next_of(&mut socket).await else { panic!("closed after {}", got.len()) };
                got.extend(event_of(&text).map(|event| event.argument["content"].clone()));
            }
            (got, by_polling)
        }));
    }
    let _runtime = tokio::spawn(publishing).await.unwrap();
    let wanted: Vec<_> = (0..EVENTS).map(|number| json!(number.to_string())).collect();
    for client in clients {
        let (got, by_polling) = client.await.unwrap();
        assert_eq!(got, wanted, "{by_polling} of them came by polling");
    }
    gateway.stop().await;
}

/// What nobody has fetched by polling comes over the websocket, before anything newer.
#[tokio::test]
async fn what_waits_is_carried_over() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    polls.get().await;
    let mut socket = upgrade_socket(&gateway, &polls.sid).await;
    socket.send(Message::text("2probe")).await.unwrap();
    next_of(&mut socket).await;
    polls.post("421[\"a\"]\u{1e}422[\"b\"]").await;
    socket.send(Message::text("5")).await.unwrap();
    runtime.publish(&session, "agent", json!({ "content": "newer" })).await;
    let mut got = Vec::new();
    for _ in 0..5 {
        got.push(next_of(&mut socket).await.text()[..3].to_owned());
    }
    assert_eq!(got, ["42[", "431", "42[", "432", "42["]);
    gateway.stop().await;
}
