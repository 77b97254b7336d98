//! A connected client is somebody who looks, until its code no longer runs: measured on real processes.

use std::time::Duration;

use onlooker::config::Config;
use onlooker_protocol::runtime::OpenSession;
use rustix::process::Signal;
use serde_json::json;

use crate::{harness::*, program::Start};

/// Part of the reason for which nobody is told.
const COVERED: &str = "has demonstrably got the question";

/// Windows that are short, but longer than a busy machine keeps a process waiting.
fn watchful() -> Config {
    let mut config = quick();
    config.times.ping_every = Duration::from_millis(500);
    config.times.live_window = Duration::from_secs(3);
    config.times.first_look = Duration::from_secs(2);
    config.times.drain = Duration::from_millis(100);
    config
}

/// Waits for something and answers pings: a runtime that is silent for long is taken for dead.
async fn meanwhile<T>(runtime: &mut Runtime, something: impl Future<Output = T>) -> T {
    let mut something = std::pin::pin!(something);
    loop {
        tokio::select! {
            biased;
            done = something.as_mut() => return done,
            frame = runtime.receive() => drop(frame.expect("the connection stays")),
        }
    }
}

async fn a_client_is_believed_while_its_code_runs(start: Start) {
    let config = watchful();
    let window = config.times.live_window;
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook(config, &receiver)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut program = start.with("SESSION_ID", &session).against(&gateway.url);
    meanwhile(&mut runtime, program.says("connected")).await;
    runtime.ask(&session, "g", json!({})).await;
    meanwhile(&mut runtime, program.says("asked")).await;
    meanwhile(&mut runtime, gateway.wait_why(&session, "g", COVERED)).await;
    // Nothing can be waited for here: for longer than any window nothing happens.
    meanwhile(&mut runtime, tokio::time::sleep(window + Duration::from_secs(1))).await;
    assert_eq!(receiver.got().len(), 0, "somebody was looking");

    // The process is there, and so is its connection: its kernel still acknowledges what comes.
    program.signal(Signal::STOP);
    meanwhile(&mut runtime, receiver.wait_for("guardrail.opened", 1)).await;
    program.signal(Signal::CONT);
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
    let (status, answered) = gateway.post("/v1/guardrails/g/answer", body).await;
    assert_eq!(status, 200, "{answered}");
    receiver.wait_for("guardrail.resolved", 1).await;
    assert_eq!(receiver.of("guardrail.opened").len(), 1);
    gateway.stop().await;
}

fn node(mode: &str) -> Start {
    Start::node("socket/watch.mjs").with("CLIENT", "socket.io-client").with("MODE", mode)
}

#[tokio::test]
async fn a_stopped_process_on_a_websocket_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(node("websocket")).await;
}

#[tokio::test]
async fn a_stopped_process_that_was_upgraded_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(node("upgrade")).await;
}

#[tokio::test]
async fn a_stopped_process_that_polls_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(node("polling")).await;
}
