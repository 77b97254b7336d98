//! Coming back as the npm client does: `pid` and the last offset, without loss and without anything twice.

use onlooker_protocol::Position;
use serde_json::{Value, json};

use super::client::*;
use crate::harness::*;

async fn publish(runtime: &mut Runtime, session: &str, contents: &[&str]) {
    for content in contents {
        runtime.publish(session, "agent", json!({ "content": content })).await;
    }
}

#[tokio::test]
async fn who_comes_back_gets_what_was_missed_once() {
    for (by, again) in [
        (By::Websocket, By::Websocket),
        (By::Websocket, By::Polling),
        (By::Polling, By::Websocket),
        (By::Polling, By::Polling),
    ] {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        let mut client = Client::join(&gateway, by, &session).await;
        publish(&mut runtime, &session, &["a", "b"]).await;
        assert_eq!(client.contents_until("b").await, ["a", "b"]);
        let before = client;
        publish(&mut runtime, &session, &["c", "d"]).await;
        let mut client = before.rejoin(&gateway, again, &session).await;
        assert_eq!(client.pid, before.pid, "the same word says that it goes on");
        before.vanish();
        publish(&mut runtime, &session, &["e"]).await;
        assert_eq!(client.contents_until("e").await, ["c", "d", "e"]);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn who_had_no_event_goes_on_from_where_it_connected() {
    for by in BOTH {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        publish(&mut runtime, &session, &["before"]).await;
        let client = Client::join(&gateway, by, &session).await;
        publish(&mut runtime, &session, &["missed"]).await;
        let mut back = client.rejoin(&gateway, by, &session).await;
        assert_eq!(back.pid, client.pid);
        publish(&mut runtime, &session, &["live"]).await;
        assert_eq!(back.contents_until("live").await, ["missed", "live"]);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn an_offset_alone_resumes_and_one_that_cannot_be_read_begins_live() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let first = runtime.publish(&session, "agent", json!({ "content": "a" })).await;
    publish(&mut runtime, &session, &["b"]).await;
    let auth = json!({ "sessionId": session, "offset": first.to_string() });
    let mut client = Client::join_with(&gateway, By::Websocket, auth).await;
    assert_eq!(client.contents_until("b").await, ["b"]);
    for offset in [json!("nonsense"), json!(5), json!(null), json!("abcdefgh:x"), json!("ü:1")] {
        let auth = json!({ "sessionId": session, "offset": offset, "pid": client.pid });
        let mut client = Client::join_with(&gateway, By::Websocket, auth).await;
        publish(&mut runtime, &session, &["live"]).await;
        assert_eq!(client.contents_until("live").await, ["live"], "{offset}");
    }
    assert_eq!(gateway.metric("onlooker_gaps_total").await, 0.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_place_that_is_gone_is_counted_and_open_questions_are_shown() {
    let mut config = patient();
    config.limits.log_events = 10;
    let (gateway, mut runtime, session) = with_session(config).await;
    let first = runtime.publish(&session, "agent", json!({ "content": "a" })).await;
    runtime.ask(&session, "g", json!({})).await;
    for number in 0..20 {
        publish(&mut runtime, &session, &[&number.to_string()]).await;
    }
    let elsewhere = Position { epoch: onlooker_protocol::event::Epoch::new("zzzzzzzz").unwrap(), offset: 3 };
    let ahead = Position { offset: 1000, ..first };
    for (place, replayed) in [(first, 10), (elsewhere, 0), (ahead, 0)] {
        let auth = json!({ "sessionId": session, "offset": place.to_string(), "pid": "p" });
        let mut client = Client::join_with(&gateway, By::Websocket, auth).await;
        assert_ne!(client.pid.as_deref(), Some("p"), "it does not go on where it was");
        assert_eq!(client.event().await.argument["guardrailId"], "g", "{place}");
        publish(&mut runtime, &session, &["live"]).await;
        let contents = client.contents_until("live").await;
        assert!(contents.len() > replayed && contents.len() <= replayed + 1, "{place}: {contents:?}");
    }
    assert_eq!(gateway.metric("onlooker_gaps_total").await, 3.0);
    gateway.stop().await;
}

/// Of the questions that were raised while it was away, those that are still open come, where they belong; of those
/// that it has seen none comes again.
#[tokio::test]
async fn who_comes_back_is_asked_what_is_open_and_was_not_seen() {
    for by in BOTH {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        let mut client = Client::join(&gateway, by, &session).await;
        runtime.ask(&session, "seen", json!({})).await;
        client.message("guardrail_trigger").await;
        let before = client;
        runtime.ask(&session, "closed", json!({})).await;
        publish(&mut runtime, &session, &["a"]).await;
        runtime.ask(&session, "new", json!({})).await;
        publish(&mut runtime, &session, &["b"]).await;
        runtime.publish(&session, "guardrail_withdrawn", json!({ "guardrailId": "closed", "revision": 1 })).await;
        let mut client = before.rejoin(&gateway, by, &session).await;
        let mut got = Vec::new();
        for _ in 0..3 {
            let event = client.event().await.argument;
            got.push(event.get("content").or(event.get("guardrailId")).and_then(Value::as_str).unwrap().to_owned());
        }
        assert_eq!(got, ["a", "new", "b"]);
        publish(&mut runtime, &session, &["c"]).await;
        assert_eq!(client.event().await.argument["content"], "c");
        // One that was seen before is remembered as what was shown.
        let mut again = client.rejoin(&gateway, by, &session).await;
        again.say(json!({ "actionType": "guardrail", "prompt": "x" })).await;
        assert_eq!(super::joining::answered(&mut runtime).await, "new");
        gateway.stop().await;
    }
}

/// A client that is cut off between the first and the second of two questions gets the second one when it is back.
#[tokio::test]
async fn cut_off_between_two_questions_the_second_one_still_comes() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    runtime.ask(&session, "first", json!({})).await;
    runtime.ask(&session, "second", json!({})).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    assert_eq!(client.event().await.argument["guardrailId"], "first");
    let mut back = client.rejoin(&gateway, By::Websocket, &session).await;
    assert_eq!(back.event().await.argument["guardrailId"], "second");
    gateway.stop().await;
}

#[tokio::test]
async fn a_session_that_ended_meanwhile_is_joined_by_who_missed_its_end_only() {
    for by in BOTH {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        let client = Client::join(&gateway, by, &session).await;
        publish(&mut runtime, &session, &["last"]).await;
        let delete = gateway.http.delete(format!("{}/v1/sessions/{session}", gateway.url));
        gateway.request(delete).await;
        let mut back = client.rejoin(&gateway, by, &session).await;
        assert_eq!(back.event().await.argument["content"], "last");
        back.named("end_session").await;
        back.sent_away().await;
        let mut client = Client::open(&gateway, by).await;
        let auth = json!({ "sessionId": session, "pid": back.pid, "offset": back.offset });
        let error = client.connect(auth).await.expect_err("nothing is left");
        assert_eq!(error["data"]["code"], "SESSION_EXPIRED");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_stop_says_no_disconnect_and_who_comes_back_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = || {
        let mut config = patient();
        config.data.ephemeral = false;
        config.data.dir = Some(directory.path().to_owned());
        config.times.drain = std::time::Duration::from_secs(3);
        config
    };
    let (gateway, mut runtime, session) = with_session(config()).await;
    let mut clients = Vec::new();
    for by in BOTH {
        let mut client = Client::join(&gateway, by, &session).await;
        publish(&mut runtime, &session, &["a"]).await;
        client.contents_until("a").await;
        clients.push((by, client));
    }
    let reading = clients.into_iter().map(|(by, mut client)| {
        tokio::spawn(async move {
            let mut packets = Vec::new();
            loop {
                match client.raw().await {
                    Got::Text(text) if text == "1" => return (by, client, packets, None),
                    Got::Text(text) => packets.push(text),
                    Got::Closed(code) => return (by, client, packets, code),
                    Got::Binary(_) => panic!("no picture was asked for"),
                }
            }
        })
    });
    let reading: Vec<_> = reading.collect();
    wait_until("both follow", || async { super::packets::following(&gateway, &session).await == 2 }).await;
    gateway.stop().await;
    let mut ended = Vec::new();
    for reading in reading {
        let (by, client, packets, code) = reading.await.unwrap();
        assert!(!packets.iter().any(|packet| packet.starts_with("41")), "{packets:?}");
        assert_eq!(code, (by == By::Websocket).then_some(1001));
        ended.push((by, client));
    }
    let gateway = TestGateway::with(config()).await;
    for (by, before) in ended {
        let client = before.rejoin(&gateway, by, &session).await;
        assert_eq!(client.pid, before.pid);
    }
    gateway.stop().await;
}

/// A client that falls out of the log is not asked again what it was asked on the same connection.
#[tokio::test]
async fn after_a_gap_an_open_question_is_not_shown_a_second_time() {
    let mut config = patient();
    config.limits.log_events = 10;
    let (gateway, mut runtime, session) = with_session(config).await;
    let mut client = Client::join(&gateway, By::Polling, &session).await;
    runtime.ask(&session, "g", json!({})).await;
    assert_eq!(client.message("guardrail_trigger").await["guardrailId"], "g");
    // It asks for nothing meanwhile.
    for number in 0..30 {
        publish(&mut runtime, &session, &[&number.to_string()]).await;
    }
    let reading = tokio::spawn(async move { client.event().await });
    wait_until("it has a gap", || async { gateway.metric("onlooker_gaps_total").await == 1.0 }).await;
    publish(&mut runtime, &session, &["next"]).await;
    assert_eq!(reading.await.unwrap().argument["content"], "next");
    gateway.stop().await;
}
