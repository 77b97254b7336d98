//! The cases of Socket.IO 5: connect, disconnect, events, acknowledgements, attachments.

use std::time::Duration;

use serde_json::json;

use super::client::*;
use crate::harness::*;

#[tokio::test]
async fn a_session_id_connects_to_the_default_namespace() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::open(&gateway, by).await;
        let connected = client.connect(json!({ "sessionId": session })).await.unwrap();
        assert!(connected["sid"].as_str().unwrap().len() >= 20, "{connected}");
        assert_ne!(connected["sid"], client.open["sid"]);
        assert!(connected["pid"].is_string());
        // Named in full it is the same.
        let mut client = Client::open(&gateway, by).await;
        client.send(&format!("40/,{}", json!({ "sessionId": session }))).await;
        assert!(client.packet().await.text().starts_with("40{"));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn other_namespaces_are_invalid() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::open(&gateway, by).await;
        for (connect, answer) in [
            ("40/custom", r#"44/custom,{"message":"Invalid namespace"}"#),
            (r#"40/random,{"token":"abc"}"#, r#"44/random,{"message":"Invalid namespace"}"#),
        ] {
            client.send(connect).await;
            assert_eq!(client.packet().await.text(), answer);
        }
        client.connect(json!({ "sessionId": session })).await.unwrap();
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_wrong_connect_and_anything_before_it_closes() {
    let gateway = TestGateway::with(patient()).await;
    for first in ["4abc", "40[]", "40\"x\"", "42[\"message\",{}]", "41", "431[]", "42/custom,[\"a\"]"] {
        let mut client = Client::open(&gateway, By::Websocket).await;
        client.send(first).await;
        assert_eq!(client.closed().await, Some(1002), "{first}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn who_does_not_connect_in_time_is_closed() {
    let mut config = patient();
    config.times.auth_within = Duration::from_millis(100);
    let gateway = TestGateway::with(config).await;
    for by in BOTH {
        let mut client = Client::open(&gateway, by).await;
        let code = client.closed().await;
        assert_eq!(code, (by == By::Websocket).then_some(1008));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_disconnect_leaves_the_session_and_keeps_the_transport() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::join(&gateway, by, &session).await;
        wait_until("it is followed", || async { following(&gateway, &session).await == 1 }).await;
        client.send("41").await;
        wait_until("it is left", || async { following(&gateway, &session).await == 0 }).await;
        runtime.publish(&session, "agent", json!({ "content": "unheard" })).await;
        client.connect(json!({ "sessionId": session })).await.unwrap();
        runtime.publish(&session, "agent", json!({ "content": "heard" })).await;
        assert_eq!(client.message("agent").await["content"], "heard");
        client.send("41").await;
        client.send("42[\"message\",{}]").await;
        assert_eq!(client.closed().await, Some(if by == By::Websocket { 1002 } else { 400 }));
    }
    gateway.stop().await;
}

pub async fn following(gateway: &TestGateway, session: &str) -> usize {
    let (_, watchers) = gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
    watchers["watchers"].as_array().unwrap_or_else(|| panic!("{watchers}")).len()
}

#[tokio::test]
async fn events_are_acknowledged_where_it_is_asked_for() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::join(&gateway, by, &session).await;
        let task = format!("{by:?}");
        let message = json!({ "actionType": "newTask", "prompt": "Go", "taskId": task });
        client.send(&format!("42456{}", json!(["message", message, "more", "arguments"]))).await;
        let acknowledged = json!([{ "success": true, "taskId": task }]);
        assert_eq!(client.packet().await.text(), format!("43456{acknowledged}"));
        // Refused with an event of its own, and acknowledged too.
        client.send(r#"42457["message-with-ack",1,"2",{"3":[false]}]"#).await;
        let refused = event_of(&client.packet().await.text()).unwrap();
        assert_eq!((refused.name.as_str(), refused.offset), ("error", None));
        assert_eq!(refused.argument["code"], "INVALID_PARAMS");
        assert_eq!(client.packet().await.text(), format!("43457[{}]", refused.argument));
        // Without an id there is no acknowledgement: what follows is the next event.
        client.send(r#"42["message",{"actionType":"nonsense"}]"#).await;
        assert_eq!(client.named("error").await["code"], "INVALID_PARAMETER");
        client.send("431[]").await;
        runtime.publish(&session, "agent", json!({ "content": "next" })).await;
        client.message("agent").await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn attachments_are_awaited_and_refused_by_an_event() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut client = Client::join(&gateway, by, &session).await;
        let two = r#"["message",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#;
        for (header, acknowledged) in [(format!("452-{two}"), false), (format!("452-789{two}"), true)] {
            client.send(&header).await;
            client.send_binary(&[1, 2, 3]).await;
            client.send_binary(&[4, 5, 6]).await;
            assert_eq!(client.named("error").await["code"], "INVALID_PARAMS");
            if acknowledged {
                assert!(client.packet().await.text().starts_with("43789["));
            }
        }
        // An acknowledgement with attachments is heard and dropped.
        client.send("461-789[{\"_placeholder\":true,\"num\":0}]").await;
        client.send_binary(&[1]).await;
        client.send(r#"421["x"]"#).await;
        client.named("error").await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_packet_in_the_wrong_form_closes() {
    let (gateway, _runtime, session) = with_session(patient()).await;
    for packet in ["4abc", "42{}", "42abc[\"message-with-ack\",1,\"2\",{\"3\":[false]}]", "42[]", "42[1]", "49", "44{}"]
    {
        let mut client = Client::join(&gateway, By::Websocket, &session).await;
        client.send(packet).await;
        assert_eq!(client.closed().await, Some(1002), "{packet}");
    }
    gateway.stop().await;
}
