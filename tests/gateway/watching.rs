//! Who counts as looking, over real sockets.

use std::time::{Duration, Instant};

use futures::{SinkExt, StreamExt};
use onlooker::config::key::Scope;
use onlooker_protocol::{
    runtime::OpenSession,
    subscriber::{Attention, GatewayToSubscriber, Role, Subscribe, SubscriberToGateway},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::*;

const LONG: Duration = Duration::from_secs(60);

async fn watchers(gateway: &TestGateway, session: &str) -> Value {
    gateway.get(&format!("/v1/sessions/{session}/watchers")).await.1
}

/// Waits until so many watch, are able, and follow.
async fn wait_counts(gateway: &TestGateway, session: &str, (watching, able, following): (u32, u32, u32)) {
    let expected = json!({ "watching": watching, "able": able, "following": following });
    let there = || async { watchers(gateway, session).await["counts"] == expected };
    wait_until(&format!("{expected} are there"), there).await;
}

async fn one_why(gateway: &TestGateway, session: &str) -> String {
    watchers(gateway, session).await["watchers"][0]["why"].as_str().unwrap().to_owned()
}

async fn session(gateway: &TestGateway) -> (Runtime, String) {
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (runtime, session)
}

async fn attention(subscriber: &mut Subscriber, state: Attention) {
    subscriber.send(SubscriberToGateway::Attention { session: None, state }).await;
}

#[tokio::test]
async fn a_subscription_counts_while_it_says_that_somebody_looks() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (_runtime, session) = session(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.subscribe(Subscribe { session: Some(session.clone()), ..follow() }).await;
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    assert!(one_why(&gateway, &session).await.contains("has not said that somebody is"));
    attention(&mut subscriber, Attention::Active).await;
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    attention(&mut subscriber, Attention::Idle).await;
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    subscriber.close(1000).await;
    wait_counts(&gateway, &session, (0, 0, 0)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_observer_follows_and_never_counts() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (_runtime, session) = session(&gateway).await;
    let mut observer = gateway.subscriber().await;
    let role = Role::Observer;
    let subscribe = Subscribe { session: Some(session.clone()), role, attention: Attention::Active, ..follow() };
    observer.subscribe(subscribe).await;
    observer.live().await;
    attention(&mut observer, Attention::Active).await;
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    assert_eq!(one_why(&gateway, &session).await, "it is an observer");
    gateway.stop().await;
}

#[tokio::test]
async fn a_grant_that_may_not_answer_watches_but_is_not_able() {
    let keys: &[(&str, &[Scope])] = &[("runtime", &[Scope::Publish]), ("reader", &[Scope::Watch])];
    let gateway = TestGateway::with(with_keys(calm(LONG, LONG), keys)).await;
    let mut runtime = Runtime::connect(&gateway, "runtime", 1, Some("key-runtime")).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut reader = Subscriber::connect(&gateway, Some("key-reader")).await;
    reader.watch(&session).await;
    reader.live().await;
    let list = gateway.http.get(format!("{}/v1/sessions/{session}/watchers", gateway.url)).bearer_auth("key-reader");
    let (_, list) = gateway.request(list).await;
    assert_eq!(list["counts"], json!({ "watching": 1, "able": 0, "following": 1 }));
    assert_eq!((&list["watchers"][0]["who"], &list["watchers"][0]["able"]), (&json!("reader"), &json!(false)));
    gateway.stop().await;
}

#[tokio::test]
async fn a_filter_without_questions_makes_nobody_able() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (_runtime, session) = session(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    let filter = vec!["action".to_owned()];
    let subscribe =
        Subscribe { session: Some(session.clone()), filter, attention: Attention::Active, ..follow() };
    subscriber.subscribe(subscribe).await;
    wait_counts(&gateway, &session, (1, 0, 1)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn pongs_of_the_protocol_alone_stop_counting_within_the_window() {
    let mut config = quick();
    config.times.attention_lease = LONG;
    let gateway = TestGateway::with(config).await;
    let (_runtime, session) = session(&gateway).await;
    let mut frozen = gateway.subscriber().await;
    frozen.watch(&session).await;
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    // What a browser goes on doing for a page whose code has stopped.
    let stopped = async {
        while watchers(&gateway, &session).await["counts"]["watching"] != 0 {
            frozen.socket.send(Message::Pong(Vec::new().into())).await.unwrap();
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(BOUND, stopped).await.expect("it stops counting");
    assert_eq!(one_why(&gateway, &session).await, "its own code has not answered a ping within the window");
    gateway.stop().await;
}

#[tokio::test]
async fn who_answers_pings_goes_on_counting() {
    let mut config = calm(LONG, LONG);
    (config.times.ping_every, config.times.live_window) = (Duration::from_millis(200), Duration::from_millis(1_500));
    let gateway = TestGateway::with(config).await;
    let (_runtime, session) = session(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    let kept = subscriber.keep();
    let until = Instant::now() + Duration::from_millis(3_200);
    while Instant::now() < until {
        assert_eq!(watchers(&gateway, &session).await["counts"]["watching"], 1);
        sleep(Duration::from_millis(100)).await;
    }
    drop(kept);
    gateway.stop().await;
}

#[tokio::test]
async fn the_word_that_somebody_looks_runs_out_unless_it_is_renewed() {
    let mut config = calm(LONG, LONG);
    config.times.attention_lease = Duration::from_millis(400);
    let gateway = TestGateway::with(config).await;
    let (_runtime, session) = session(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    assert_eq!(one_why(&gateway, &session).await, "its word that somebody is looking has run out");
    attention(&mut subscriber, Attention::Active).await;
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_poller_counts_for_its_window_and_lists_do_not() {
    let mut config = calm(LONG, LONG);
    config.times.poll_window = Duration::from_secs(1);
    let gateway = TestGateway::with(config).await;
    let (_runtime, session) = session(&gateway).await;
    gateway.get(&format!("/v1/sessions/{session}")).await;
    gateway.get("/v1/sessions").await;
    gateway.get("/v1/guardrails").await;
    assert_eq!(watchers(&gateway, &session).await["counts"]["following"], 0, "only reading counts");
    let polled = Instant::now();
    gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    let list = watchers(&gateway, &session).await;
    assert_eq!((&list["watchers"][0]["via"], &list["watchers"][0]["counts"]), (&json!("poll"), &json!(true)));
    gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    assert_eq!(watchers(&gateway, &session).await["counts"]["watching"], 1, "the same reader is one poller");
    wait_counts(&gateway, &session, (0, 0, 0)).await;
    assert!(polled.elapsed() >= Duration::from_secs(1));
    gateway.stop().await;
}

#[tokio::test]
async fn a_poller_that_waits_counts_all_the_while() {
    let mut config = calm(LONG, LONG);
    config.times.poll_window = Duration::from_millis(200);
    let gateway = TestGateway::with(config).await;
    let (mut runtime, session) = session(&gateway).await;
    let (_, page) = gateway.get(&format!("/v1/sessions/{session}/events?since=start")).await;
    let since = page["position"].as_str().unwrap();
    let url = format!("{}/v1/sessions/{session}/events?since={since}&wait=20", gateway.url);
    let waiting = tokio::spawn(gateway.http.get(url).send());
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    sleep(Duration::from_millis(700)).await;
    assert_eq!(watchers(&gateway, &session).await["counts"]["watching"], 1);
    runtime.publish(&session, "action", json!({ "name": "click" })).await;
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    wait_counts(&gateway, &session, (0, 0, 0)).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_event_stream_counts_only_while_its_page_says_that_it_is_alive() {
    let mut config = calm(LONG, LONG);
    (config.times.live_window, config.times.ping_every) = (Duration::from_secs(2), Duration::from_millis(500));
    let gateway = TestGateway::with(config).await;
    let (mut runtime, session) = session(&gateway).await;
    let asked = runtime.ask(&session, "g", json!({})).await;
    let url = format!("{}/v1/sessions/{session}/events", gateway.url);
    let response = gateway.http.get(url).header("accept", "text/event-stream").send().await.unwrap();
    let mut stream = response.bytes_stream();
    let mut text = String::new();
    while !text.contains("event: live") {
        let piece = tokio::time::timeout(BOUND, stream.next()).await.expect("it streams").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    let hello = text.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let id = serde_json::from_str::<Value>(hello).unwrap()["subscriber"].as_str().unwrap().to_owned();
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    let alive = |attention: &str| json!({ "position": asked.to_string(), "attention": attention });
    let path = format!("/v1/subscribers/{id}/alive");
    assert_eq!(gateway.post(&path, alive("active")).await.0, 200);
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    gateway.wait_why(&session, "g", "has demonstrably got the question").await;
    assert_eq!(gateway.post(&path, alive("idle")).await.0, 200);
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    assert_eq!(gateway.post(&path, alive("active")).await.0, 200);
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    // The page falls silent; its stream stays open.
    wait_counts(&gateway, &session, (0, 0, 1)).await;
    assert_eq!(one_why(&gateway, &session).await, "its own code has not answered a ping within the window");
    drop(stream);
    wait_counts(&gateway, &session, (0, 0, 0)).await;
    assert_eq!(gateway.post(&path, alive("active")).await.0, 404);
    gateway.stop().await;
}

#[tokio::test]
async fn two_connections_of_one_person_are_two_watchers_and_either_is_enough() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (mut runtime, session) = session(&gateway).await;
    let (mut first, mut second) = (gateway.subscriber().await, gateway.subscriber().await);
    first.watch(&session).await;
    second.watch(&session).await;
    wait_counts(&gateway, &session, (2, 2, 2)).await;
    second.live().await;
    let second = second.keep();
    first.close(1000).await;
    wait_counts(&gateway, &session, (1, 1, 1)).await;
    runtime.ask(&session, "g", json!({})).await;
    gateway.wait_why(&session, "g", "has demonstrably got the question").await;
    drop(second);
    gateway.stop().await;
}

#[tokio::test]
async fn watching_one_session_is_not_watching_another() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (mut runtime, first) = session(&gateway).await;
    let (second, _) = runtime.open(OpenSession::default()).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&first).await;
    subscriber.subscribe(Subscribe { session: Some(second.clone()), ..follow() }).await;
    wait_counts(&gateway, &first, (1, 1, 1)).await;
    wait_counts(&gateway, &second, (0, 0, 1)).await;
    let state = Attention::Active;
    subscriber.send(SubscriberToGateway::Attention { session: Some(second.clone()), state }).await;
    wait_counts(&gateway, &second, (1, 1, 1)).await;
    subscriber.send_text(json!({ "type": "unsubscribe", "session": first }).to_string()).await;
    wait_counts(&gateway, &first, (0, 0, 0)).await;
    assert_eq!(watchers(&gateway, &second).await["counts"]["watching"], 1);
    gateway.stop().await;
}

#[tokio::test]
async fn following_a_projects_summaries_is_no_watching() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (_runtime, session) = session(&gateway).await;
    let mut grid = gateway.subscriber().await;
    grid.send_text(r#"{"type":"subscribe","project":true,"attention":"active"}"#).await;
    grid.until("summaries", |frame| matches!(frame, GatewayToSubscriber::Summaries { .. }).then_some(())).await;
    attention(&mut grid, Attention::Active).await;
    assert_eq!(watchers(&gateway, &session).await["counts"]["following"], 0);
    gateway.stop().await;
}

#[tokio::test]
async fn the_watchers_frame_comes_at_most_once_a_second_and_ends_with_the_truth() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (_runtime, session) = session(&gateway).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    subscriber.live().await;
    let kept = subscriber.keep();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        let mut passer_by = gateway.subscriber().await;
        passer_by.watch(&session).await;
        passer_by.live().await;
        passer_by.close(1000).await;
    }
    let mut last = gateway.subscriber().await;
    last.watch(&session).await;
    last.live().await;
    wait_counts(&gateway, &session, (2, 2, 2)).await;
    let mut subscriber = kept.back().await;
    let of_counts = |frame: &GatewayToSubscriber| match frame {
        GatewayToSubscriber::Watchers { counts, .. } => Some(*counts),
        _ => None,
    };
    let mut frames: Vec<_> = subscriber.seen.drain(..).filter_map(|frame| of_counts(&frame)).collect();
    while frames.last().is_none_or(|counts| counts.watching != 2 || counts.following != 2) {
        frames.push(subscriber.until("watchers", of_counts).await);
    }
    let seconds = begun.elapsed().as_secs_f64();
    // One at the beginning, and one for each second that has passed.
    assert!(frames.len() as f64 <= seconds + 2.0, "{} frames in {seconds} s", frames.len());
    gateway.stop().await;
}
