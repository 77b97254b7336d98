//! A pong proves what was sent before its ping, and nothing else does.

use std::time::Duration;

use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use super::client::*;
use crate::harness::*;

async fn watched(config: onlooker::config::Config) -> (TestGateway, Receiver, Runtime, String) {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook(config, &receiver)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (gateway, receiver, runtime, session)
}

async fn proved(gateway: &TestGateway, session: &str) -> Vec<Value> {
    let (_, watchers) = gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
    watchers["watchers"].as_array().unwrap().iter().map(|watcher| watcher["proved"].clone()).collect()
}

/// The heartbeat is far away: the ping behind the question is the one that is answered.
#[tokio::test]
async fn a_pong_covers_a_question_and_nobody_is_told() {
    for by in BOTH {
        let (gateway, receiver, mut runtime, session) = watched(patient()).await;
        let mut client = Client::join(&gateway, by, &session).await;
        let position = runtime.ask(&session, "g", json!({})).await;
        let mut bytes = Vec::new();
        while client.pings == 0 {
            match client.packet_or_ping().await {
                Got::Text(text) => bytes.push(text),
                other => panic!("{other:?}"),
            }
        }
        assert!(
            event_of(&bytes[0]).unwrap().argument["type"] == "guardrail_trigger",
            "the ping is behind the question"
        );
        let is_proved = || async { proved(&gateway, &session).await == [json!(position)] };
        let reading = tokio::spawn(async move { (client.packet().await, client) });
        wait_until("it is proved", is_proved).await;
        gateway.wait_why(&session, "g", "demonstrably got").await;
        assert!(receiver.got().is_empty());
        // Gone for good: now somebody is told.
        reading.abort();
        receiver.wait_for("guardrail.opened", 1).await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_question_that_was_open_before_is_proved_by_who_joins() {
    for by in BOTH {
        let (gateway, _receiver, mut runtime, session) = watched(patient()).await;
        let position = runtime.ask(&session, "g", json!({})).await;
        let mut client = Client::join(&gateway, by, &session).await;
        let reading = tokio::spawn(async move { client.closed().await });
        let is_proved = || async { proved(&gateway, &session).await.iter().any(|proof| *proof == json!(position)) };
        wait_until("it is proved", is_proved).await;
        reading.abort();
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_frozen_client_proves_nothing() {
    for by in BOTH {
        let (gateway, receiver, mut runtime, session) = watched(patient()).await;
        let mut client = Client::join(&gateway, by, &session).await;
        client.silent = true;
        let position = runtime.ask(&session, "g", json!({})).await;
        client.message("guardrail_trigger").await;
        // It has the bytes; its code never said so. A poll that waits would say it.
        receiver.wait_for("guardrail.opened", 1).await;
        assert_ne!(proved(&gateway, &session).await, [json!(position)]);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn the_ping_is_in_the_same_payload_as_the_question() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    polls.get().await;
    runtime.ask(&session, "g", json!({})).await;
    let (_, body) = polls.get().await;
    let packets: Vec<&str> = body.split('\u{1e}').collect();
    assert_eq!(packets.len(), 2, "{body}");
    assert!(packets[0].contains("guardrail_trigger"));
    assert_eq!(packets[1], "2");
    gateway.stop().await;
}

#[tokio::test]
async fn a_poll_repeated_gets_the_same_body_and_a_new_one_proves_it() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut polls = Polls::open(&gateway).await;
    polls.post(format!("40{}", json!({ "sessionId": session }))).await;
    polls.get().await;
    let position = runtime.ask(&session, "g", json!({})).await;
    let (_, body) = polls.get_with("same").await;
    for _ in 0..3 {
        assert_eq!(polls.get_with("same").await, (200, body.clone()));
    }
    assert_ne!(proved(&gateway, &session).await, [json!(position)], "a repetition shows that the body was lost");
    runtime.publish(&session, "agent", json!({ "content": "next" })).await;
    let (_, next) = polls.get_with("new").await;
    assert!(event_of(&next).unwrap().argument["content"] == "next");
    assert_eq!(proved(&gateway, &session).await, [json!(position)]);
    gateway.stop().await;
}

/// What comes without having been asked for is a sign of life, and stands for no ping that is to come.
#[tokio::test]
async fn pongs_that_nobody_asked_for_prove_nothing() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.silent = true;
    for _ in 0..20 {
        client.send("3").await;
    }
    // Everything before is heard when this is answered.
    client.say(json!({ "actionType": "nonsense" })).await;
    client.named("error").await;
    let position = runtime.ask(&session, "g", json!({})).await;
    client.message("guardrail_trigger").await;
    client.say(json!({ "actionType": "nonsense" })).await;
    client.named("error").await;
    assert_eq!(client.pings, 1);
    assert_eq!(proved(&gateway, &session).await, [Value::Null]);
    client.send("3").await;
    wait_until("it is proved", || async { proved(&gateway, &session).await == [json!(position)] }).await;
    // Too many do no harm.
    for _ in 0..20 {
        client.send("3").await;
    }
    runtime.publish(&session, "agent", json!({ "content": "on" })).await;
    client.message("agent").await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_disconnect_leaves_no_grace_and_a_lost_transport_does() {
    let mut config = patient();
    config.times.grace = Duration::from_secs(60);
    for (clean, why) in [(true, None), (false, Some("grace"))] {
        let (gateway, receiver, mut runtime, session) = watched(config.clone()).await;
        let mut client = Client::join(&gateway, By::Websocket, &session).await;
        if clean {
            client.send("41").await;
        }
        wait_until("it follows or has left", || async {
            proved(&gateway, &session).await.len() == usize::from(!clean)
        })
        .await;
        client.vanish();
        wait_until("nobody follows", || async { proved(&gateway, &session).await.is_empty() }).await;
        runtime.ask(&session, "g", json!({})).await;
        match why {
            None => drop(receiver.wait_for("guardrail.opened", 1).await),
            Some(_) => {
                let why = gateway.why(&session, "g").await;
                assert_ne!(why["decisions"].as_array().unwrap().last().unwrap()["decision"], "send", "{why}");
                assert!(receiver.got().is_empty());
            }
        }
        gateway.stop().await;
    }
}

/// A pong in the middle of history would prove the question at its end before it was sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_history_is_on_its_way_no_ping_goes_out() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let first = runtime.publish(&session, "agent", json!({ "content": "seen" })).await;
    let filler = "x".repeat(50 * 1024);
    for _ in 0..40 {
        runtime.publish(&session, "agent", json!({ "content": filler })).await;
    }
    let position = runtime.ask(&session, "g", json!({})).await;
    for by in BOTH {
        let auth = json!({ "sessionId": session, "offset": first.to_string() });
        let mut client = Client::join_with(&gateway, by, auth).await;
        let mut missed = 0;
        loop {
            let packet = client.raw().await.text();
            assert_ne!(packet, "2", "after {missed} of 40");
            match event_of(&packet) {
                Some(event) if event.argument["guardrailId"] == "g" => break,
                Some(_) => missed += 1,
                None => {}
            }
        }
        assert_eq!(missed, 40);
        let reading = tokio::spawn(async move { client.closed().await });
        let is_proved = || async { proved(&gateway, &session).await.contains(&json!(position)) };
        wait_until("it is proved", is_proved).await;
        reading.abort();
    }
    gateway.stop().await;
}

/// The offset that a client comes back with is its own word that it has everything before.
#[tokio::test]
async fn the_offset_of_who_comes_back_is_a_proof() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    client.silent = true;
    let position = runtime.ask(&session, "g", json!({})).await;
    client.message("guardrail_trigger").await;
    let auth = json!({ "sessionId": session, "pid": client.pid, "offset": client.offset });
    client.vanish();
    let _back = Client::join_with(&gateway, By::Websocket, auth).await;
    wait_until("it is proved", || async { proved(&gateway, &session).await.contains(&json!(position)) }).await;
    gateway.stop().await;
}
