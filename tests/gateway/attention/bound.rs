//! How soon somebody else is told, in real time and with the windows that a gateway has by default.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, routing::post};
use futures::{SinkExt, StreamExt, future::join_all};
use onlooker::config::Times;
use onlooker_protocol::subscriber::{GatewayToSubscriber, SubscriberToGateway};
use tokio::{net::TcpListener, task::JoinHandle, time::Instant};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::socketio::client::{By, Client, Got, event_of};

/// What the bounds leave for everything that is no window.
const SLACK: Duration = Duration::from_secs(2);
/// Sessions of each kind.
const MANY: usize = 60;

/// When the first notice about each session came.
#[derive(Clone, Default)]
struct Arrivals(Arc<Mutex<HashMap<String, Instant>>>);

impl Arrivals {
    async fn listen(&self) -> (String, JoinHandle<()>) {
        let router = Router::new().route("/hook", post(arrive)).with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }

    fn of(&self, session: &str) -> Option<Instant> {
        self.0.lock().unwrap().get(session).copied()
    }
}

async fn arrive(State(arrivals): State<Arrivals>, Json(body): Json<Value>) {
    if body["type"] == "guardrail.opened" {
        let session = body["session"].as_str().unwrap().to_owned();
        arrivals.0.lock().unwrap().entry(session).or_insert_with(Instant::now);
    }
}

/// A session, and since when its notice is waited for.
type Waiting = (String, Instant);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_guardrail_to_its_notice_it_takes_no_longer_than_promised() {
    let times = Times { start_grace: Duration::ZERO, drain: Duration::from_millis(100), ..Config::default().times };
    let (window, grace, first_look) = (times.live_window, times.grace, times.first_look);
    let arrivals = Arrivals::default();
    let (url, server) = arrivals.listen().await;
    let mut config = Config { times, ..quick() };
    config.reach_out = from_toml(&format!("[notify_webhook]\nurl = \"{url}\"\n")).reach_out;
    let stage = Stage::set(config, Receiver::start().await, None, None).await;
    let ((alone, dead), (doubtful, uncovered)) =
        tokio::join!(async { tokio::join!(nobody_watches(&stage), the_watchers_with_proof_are_dead(&stage)) }, async {
            tokio::join!(a_watcher_never_proves(&stage), cover_ends_and_a_watcher_never_proves(&stage))
        },);
    let all = [&alone, &dead.0, &doubtful.0, &uncovered.0];
    let came = || async { all.iter().all(|waiting| waiting.iter().all(|(session, _)| arrivals.of(session).is_some())) };
    let longest = window + grace + 2 * SLACK;
    let waiting = async {
        while !came().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(longest, waiting).await.expect("every notice comes");
    let check = |what: &str, waiting: &[Waiting], least: Duration, bound: Duration| {
        let took = waiting.iter().map(|(session, since)| arrivals.of(session).unwrap().duration_since(*since));
        let mut took: Vec<Duration> = took.collect();
        took.sort_unstable();
        let at = |share: f64| took[((took.len() - 1) as f64 * share).round() as usize];
        let (least_took, most) = (took[0], took[took.len() - 1]);
        println!(
            "{what}: n {}, min {least_took:.2?}, p50 {:.2?}, p99 {:.2?}, max {most:.2?}, bound {bound:?}",
            took.len(),
            at(0.5),
            at(0.99)
        );
        assert!(most <= bound, "{what}: {most:?} is more than {bound:?}");
        assert!(least_took >= least, "{what}: {least_took:?} is sooner than {least:?}");
    };
    check("nobody watches", &alone, Duration::ZERO, Duration::from_secs(1));
    check("who had proof is connected but dead", &dead.0, window + grace, window + grace + SLACK);
    check("an able watcher never proves, from the raising", &doubtful.0, first_look, first_look + SLACK);
    check("an able watcher never proves, from the end of cover", &uncovered.0, first_look, first_look + SLACK);
    server.abort();
    stage.gateway.stop().await;
}

async fn nobody_watches(stage: &Stage) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    for _ in 0..MANY {
        let session = stage.session().await;
        let raised = Instant::now();
        stage.ask(&session, "g").await;
        waiting.push((session, raised));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waiting
}

/// What is still connected, and is not read.
enum Dead {
    Native(#[expect(dead_code, reason = "held open")] Box<Subscriber>),
    SocketIo(#[expect(dead_code, reason = "held open")] Box<Client>),
}

async fn the_watchers_with_proof_are_dead(stage: &Stage) -> (Vec<Waiting>, Vec<Dead>) {
    let scene = async |native: bool| {
        let session = stage.session().await;
        let dies = dies_after_its_proof(stage, &session, native).await;
        let raised = Instant::now();
        stage.ask(&session, "g").await;
        ((session, raised), dies.await)
    };
    join_all((0..MANY).map(|i| scene(i % 2 == 0))).await.into_iter().unzip()
}

/// Somebody who has the question, answers the ping behind it, and nothing after that.
async fn dies_after_its_proof(stage: &Stage, session: &str, native: bool) -> impl Future<Output = Dead> + use<> {
    let mut native_one = None;
    let mut socket_one = None;
    if native {
        let mut subscriber = stage.gateway.subscriber().await;
        subscriber.watch(session).await;
        subscriber.live().await;
        native_one = Some(subscriber);
    } else {
        socket_one = Some(Client::join(&stage.gateway, By::Websocket, session).await);
    }
    async move {
        match (native_one, socket_one) {
            (Some(mut subscriber), _) => {
                subscriber.event("guardrail_trigger").await;
                pong_once(&mut subscriber).await;
                Dead::Native(Box::new(subscriber))
            }
            (None, Some(mut client)) => {
                let mut has_it = false;
                loop {
                    match client.raw().await {
                        Got::Text(ping) if ping == "2" => {
                            client.send("3").await;
                            if has_it {
                                return Dead::SocketIo(Box::new(client));
                            }
                        }
                        Got::Text(text) => {
                            has_it |=
                                event_of(&text).is_some_and(|event| event.argument["type"] == "guardrail_trigger");
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            (None, None) => unreachable!("one of both"),
        }
    }
}

async fn pong_once(subscriber: &mut Subscriber) {
    loop {
        let Some(Ok(Message::Text(text))) = subscriber.socket.next().await else { panic!("no ping came") };
        if let Ok(GatewayToSubscriber::Ping { id, .. }) = serde_json::from_str(&text) {
            let pong = serde_json::to_string(&SubscriberToGateway::Pong { id }).unwrap();
            return subscriber.socket.send(Message::text(pong)).await.unwrap();
        }
    }
}

/// Somebody who is there, says so, and whose code answers nothing.
async fn silent(stage: &Stage, session: &str) -> Subscriber {
    let mut subscriber = stage.gateway.subscriber().await;
    subscriber.silent = true;
    subscriber.watch(session).await;
    subscriber.live().await;
    subscriber
}

async fn a_watcher_never_proves(stage: &Stage) -> (Vec<Waiting>, Vec<Subscriber>) {
    let scene = async || {
        let session = stage.session().await;
        let watcher = silent(stage, &session).await;
        let raised = Instant::now();
        stage.ask(&session, "g").await;
        ((session, raised), watcher)
    };
    join_all((0..MANY).map(|_| scene())).await.into_iter().unzip()
}

async fn cover_ends_and_a_watcher_never_proves(stage: &Stage) -> (Vec<Waiting>, Vec<Subscriber>) {
    let scene = async || {
        let session = stage.session().await;
        let mut covers = stage.gateway.subscriber().await;
        covers.watch(&session).await;
        covers.live().await;
        stage.ask(&session, "g").await;
        covers.event("guardrail_trigger").await;
        pong_once(&mut covers).await;
        // Later than the one that covers, so that it is still live when its time is over.
        let watcher = silent(stage, &session).await;
        stage.wait_why(&session, "g", COVERED).await;
        let ended = Instant::now();
        covers.close(1000).await;
        ((session, ended), watcher)
    };
    join_all((0..MANY).map(|_| scene())).await.into_iter().unzip()
}
