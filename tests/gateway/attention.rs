//! Who is looking, on every surface: the same promises for a native client, Socket.IO over both transports, an event
//! stream's page, the view, and whoever polls.
//!
//! [`lookers`] stands for somebody at each surface. `sentences` shows each rule at all of them, `scenes` what the ways
//! in which people disappear look like, `told` what runtimes hear of it, `bound` how soon somebody else is told, and
//! `work` what it costs.

mod bound;
mod lookers;
mod scenes;
mod sentences;
mod told;
mod tunnel;
mod work;

use std::time::Duration;

use onlooker::config::Config;
use onlooker_protocol::{Position, runtime::OpenSession, view::ReachOutMode};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use self::lookers::{Looker, Surface};
use crate::harness::*;

/// Longer than any test.
const LONG: Duration = Duration::from_secs(60);
/// Parts of reasons.
const COVERED: &str = "has demonstrably got the question";
const GRACE: &str = "may be back in seconds";
const SILENT: &str = "its own code has not answered a ping within the window";
const NO_WORD: &str = "it says that nobody is looking, or has not said that somebody is";
const RUN_OUT: &str = "its word that somebody is looking has run out";

/// Windows that end soon, and not before a busy machine has run everybody's code.
fn short() -> Config {
    let mut config = quick();
    let times = &mut config.times;
    (times.ping_every, times.live_window) = (Duration::from_millis(700), Duration::from_secs(2));
    (times.attention_lease, times.poll_window) = (Duration::from_secs(2), Duration::from_secs(1));
    (times.grace, times.first_look) = (Duration::from_millis(600), Duration::from_secs(2));
    times.drain = Duration::from_millis(100);
    config
}

/// A gateway with a webhook, and a runtime that answers pings and asks what it is told to ask.
struct Stage {
    gateway: TestGateway,
    receiver: Receiver,
    orders: mpsc::UnboundedSender<Order>,
    /// The key of whoever asks for lists, where there are keys.
    key: Option<&'static str>,
}

enum Order {
    Open(Box<OpenSession>, oneshot::Sender<String>),
    Publish(String, &'static str, Value, oneshot::Sender<Position>),
}

impl Stage {
    async fn begin(config: Config) -> Self {
        Self::with_key(config, None, None).await
    }

    async fn with_key(config: Config, of_runtime: Option<&str>, key: Option<&'static str>) -> Self {
        let receiver = Receiver::start().await;
        let config = with_webhook(config, &receiver);
        Self::set(config, receiver, of_runtime, key).await
    }

    /// Whom to tell is in the configuration.
    async fn set(config: Config, receiver: Receiver, of_runtime: Option<&str>, key: Option<&'static str>) -> Self {
        let gateway = TestGateway::with(config).await;
        let runtime = Runtime::connect(&gateway, "runtime", 10_000, of_runtime).await;
        let (orders, ordered) = mpsc::unbounded_channel();
        tokio::spawn(obey(runtime, ordered));
        Self { gateway, receiver, orders, key }
    }

    /// A new session in which the task `t` runs.
    async fn session(&self) -> String {
        self.session_of(ReachOutMode::GuardrailOnly).await
    }

    async fn session_of(&self, reach_out_mode: ReachOutMode) -> String {
        let (opened, session) = oneshot::channel();
        let asked = OpenSession { reach_out_mode, ..OpenSession::default() };
        self.orders.send(Order::Open(Box::new(asked), opened)).ok().unwrap();
        let session = session.await.unwrap();
        self.publish(&session, "task_started", json!({ "taskId": "t" })).await;
        session
    }

    async fn publish(&self, session: &str, kind: &'static str, data: Value) -> Position {
        let (published, position) = oneshot::channel();
        self.orders.send(Order::Publish(session.to_owned(), kind, data, published)).ok().unwrap();
        position.await.unwrap()
    }

    async fn ask(&self, session: &str, id: &str) -> Position {
        let data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id });
        self.publish(session, "guardrail_trigger", data).await
    }

    async fn look(&self, surface: Surface, session: &str) -> Looker {
        Looker::look(&self.gateway.url, surface, session, None).await
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.gateway.http.get(format!("{}{path}", self.gateway.url));
        let request = self.key.iter().fold(request, |request, key| request.bearer_auth(key));
        self.gateway.request(request).await.1
    }

    async fn watchers(&self, session: &str) -> Value {
        self.get(&format!("/v1/sessions/{session}/watchers")).await
    }

    async fn wait_counts(&self, session: &str, (watching, able): (u32, u32)) {
        let there = || async {
            let counts = &self.watchers(session).await["counts"];
            counts["watching"] == watching && counts["able"] == able
        };
        wait_until(&format!("{watching} watch and {able} of them are able"), there).await;
    }

    /// Waits until the one who follows this session is listed with this reason.
    async fn wait_reason(&self, session: &str, (counts, why): (bool, &str)) {
        let listed = || async {
            let one = &self.watchers(session).await["watchers"][0];
            one["counts"] == counts && one["why"] == why
        };
        wait_until(&format!("the list says “{why}”"), listed).await;
    }

    async fn why(&self, session: &str, guardrail: &str) -> Vec<String> {
        let why = self.get(&format!("/v1/guardrails/{guardrail}/why?session={session}")).await;
        let decisions = why["decisions"].as_array().cloned().unwrap_or_default();
        decisions.iter().map(|decision| decision["why"].as_str().unwrap().to_owned()).collect()
    }

    async fn wait_why(&self, session: &str, guardrail: &str, part: &str) {
        let says = || async { self.why(session, guardrail).await.last().is_some_and(|last| last.contains(part)) };
        wait_until(&format!("why says “{part}”"), says).await;
    }

    /// Notices of this kind about this session.
    fn told(&self, kind: &str, session: &str) -> usize {
        self.receiver.of(kind).iter().filter(|got| got.body["session"] == session).count()
    }

    async fn wait_told(&self, session: &str) {
        wait_until("somebody is told", || async { self.told("guardrail.opened", session) > 0 }).await;
    }
}

async fn obey(mut runtime: Runtime, mut ordered: mpsc::UnboundedReceiver<Order>) {
    loop {
        tokio::select! {
            biased;
            order = ordered.recv() => match order {
                Some(Order::Open(asked, opened)) => {
                    let _ = opened.send(runtime.open(*asked).await.0);
                }
                Some(Order::Publish(session, kind, data, published)) => {
                    let _ = published.send(runtime.publish(&session, kind, data).await);
                }
                None => return,
            },
            frame = runtime.receive() => if frame.is_none() { return },
        }
        runtime.seen.clear();
    }
}
