//! `python-socketio`, blocking and asynchronous.

use serde_json::json;

use crate::{harness::*, program::Start, proxy::Proxy, socket::Scene, world::ordinary};

fn transport(mode: &str) -> &str {
    if mode == "polling" { "polling" } else { "websocket" }
}

async fn follow(script: &str, mode: &str) {
    let mut scene = Scene::begin(ordinary()).await;
    let start = Start::python(script).with("MODE", mode).with("SESSION_ID", &scene.session);
    let end = scene.play(start.against(&scene.gateway.url)).await;
    scene.was_heard_in_full(&end);
    assert_eq!(end["transport"], transport(mode));
    scene.gateway.stop().await;
}

async fn refused(mode: &str) {
    let gateway = TestGateway::with(ordinary()).await;
    let end = Start::python("python/refused.py").with("MODE", mode).against(&gateway.url).ends().await;
    let said = end["said"].as_array().unwrap();
    assert_eq!(said.len(), 2, "{end}");
    for refusal in said {
        assert!(refusal["message"].as_str().is_some_and(|message| message.contains("ession")), "{end}");
    }
    gateway.stop().await;
}

async fn resume(mode: &str) {
    let mut scene = Scene::begin(ordinary()).await;
    let proxy = Proxy::to(&scene.gateway.url).await;
    let start = Start::python("python/resume.py").with("MODE", mode).with("SESSION_ID", &scene.session);
    let mut program = start.against(&proxy.url);
    program.says("connected").await;
    scene.act(1..=5).await;
    while program.says("action").await["n"] != 5 {}
    proxy.cut();
    program.says("disconnected").await;
    scene.act(6..=10).await;
    proxy.restore();
    program.says("connected").await;
    scene.act(11..=15).await;
    scene.complete().await;
    assert_eq!(program.ends().await["numbers"], json!((1..=15).collect::<Vec<_>>()));
    scene.gateway.stop().await;
}

macro_rules! by_mode {
    ($($mode:ident $name:literal),+) => {$(
        mod $mode {
            #[tokio::test]
            async fn the_blocking_client_follows_and_answers() {
                super::follow("python/follow_sync.py", $name).await;
            }

            #[tokio::test]
            async fn the_asynchronous_client_follows_and_answers() {
                super::follow("python/follow_async.py", $name).await;
            }

            #[tokio::test]
            async fn both_are_told_why_they_are_refused() {
                super::refused($name).await;
            }

            #[tokio::test]
            async fn the_blocking_client_resumes_by_its_last_offset() {
                super::resume($name).await;
            }
        }
    )+};
}

by_mode! { websocket "websocket", upgrade "upgrade", polling "polling" }
