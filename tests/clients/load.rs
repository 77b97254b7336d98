//! Many Socket.IO clients on one session: each gets everything, in order.

use std::time::Instant;

use futures::{SinkExt, StreamExt};
use onlooker::config::Config;
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_tungstenite::{connect_async, tungstenite::Message};

use crate::{harness::*, socket::Scene};

/// Set: 5,000 clients instead of 500. They need two descriptors each: `ulimit -n 12000`.
const FULL: &str = "ONLOOKER_TEST_FULL";
const EVENTS: u64 = 100;
/// Clients that are connecting at the same time.
const AT_ONCE: usize = 100;

/// A client that knows just enough: it joins, answers pings, and counts actions until all are there.
async fn counts(url: String, session: String, joined: mpsc::Sender<()>) -> Vec<u64> {
    let (mut socket, _) = connect_async(url).await.expect("the gateway accepts");
    let mut numbers = Vec::new();
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message.expect("the connection holds") else { continue };
        match text.as_bytes() {
            [b'0', ..] => {
                let join = format!(r#"40{{"sessionId":"{session}"}}"#);
                socket.send(Message::text(join)).await.unwrap();
            }
            [b'2'] => socket.send(Message::text("3")).await.unwrap(),
            [b'4', b'0', ..] => joined.send(()).await.unwrap(),
            [b'4', b'2', event @ ..] => {
                let event: Value = serde_json::from_slice(event).expect("JSON");
                if event[1]["type"] == "action" {
                    numbers.push(event[1]["data"]["n"].as_u64().unwrap());
                }
                if numbers.len() as u64 == EVENTS {
                    break;
                }
            }
            other => panic!("{}", String::from_utf8_lossy(other)),
        }
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_of_a_crowd_gets_every_event_in_order() {
    let crowd = if std::env::var_os(FULL).is_some() { 5_000 } else { 500 };
    let mut config = quick();
    let times = Config::default().times;
    (config.times.ping_every, config.times.live_window) = (times.ping_every, times.live_window);
    config.limits.connections = 2 * crowd;
    let mut scene = Scene::begin(config).await;
    let url = format!("{}/socket.io/?EIO=4&transport=websocket", scene.gateway.url.replacen("http", "ws", 1));
    let (joined, mut join) = mpsc::channel(crowd);
    let mut clients = JoinSet::new();
    for begun in 0..crowd + AT_ONCE {
        if begun < crowd {
            clients.spawn(counts(url.clone(), scene.session.clone(), joined.clone()));
        }
        if begun >= AT_ONCE {
            timeout(BOUND, join.recv()).await.expect("they join").unwrap();
        }
    }
    let began = Instant::now();
    scene.act(1..=EVENTS).await;
    let all: Vec<u64> = (1..=EVENTS).collect();
    let everybody = async {
        while let Some(numbers) = clients.join_next().await {
            assert!(numbers.unwrap() == all, "each of them once, and in order");
        }
    };
    timeout(3 * BOUND, everybody).await.expect("everybody gets everything");
    println!("{crowd} clients × {EVENTS} events in {:?}", began.elapsed());
    scene.gateway.stop().await;
}
