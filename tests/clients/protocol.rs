//! What the documents of Engine.IO 4 and Socket.IO 5 ask of a server, of the gateway and of npm's own server.

use std::time::Duration;

use serde_json::json;

use crate::{harness::*, program::Start, world::ordinary};

/// The cases of both test suites; sixteen are in both.
const CASES: u64 = 25 + 32;
/// Cases in which the gateway is meant to differ: `differences.mjs` says why.
const DIFFERENT: u64 = 10;

async fn passes(target: &str, url: &str, session: &str) {
    let suite = Start::node("protocol/suite.mjs").with("TARGET", target).with("SESSION_ID", session);
    let end = suite.against(url).ends().await;
    assert_eq!(end["failed"], json!([]), "{}", serde_json::to_string_pretty(&end["failed"]).unwrap());
    assert_eq!((&end["asked"], &end["differences"]), (&json!(CASES), &json!(DIFFERENT)));
}

#[tokio::test]
async fn npms_own_server_passes_so_that_the_cases_are_right() {
    let mut server = Start::node("protocol/reference.mjs").run();
    let url = server.says("listening").await["url"].as_str().unwrap().to_owned();
    passes("reference", &url, "").await;
}

#[tokio::test]
async fn the_gateway_passes() {
    let mut config = ordinary();
    config.times.ping_every = Duration::from_millis(600);
    config.times.live_window = Duration::from_millis(1200);
    config.times.auth_within = Duration::from_millis(2500);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(Default::default()).await;
    // It answers pings: a runtime that is lost is told to everybody.
    let runtime = tokio::spawn(async move { while runtime.receive().await.is_some() {} });
    passes("gateway", &gateway.url, &session).await;
    runtime.abort();
    gateway.stop().await;
}
