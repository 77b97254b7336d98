//! What a session's runtime is told of who looks.

use std::sync::Arc;

use onlooker::{
    ids::{ConnectionId, SessionId},
    runtime_link::{Link, Outlet},
};
use onlooker_protocol::{runtime::GatewayToRuntime, view::WatcherCounts};
use tokio::time::Instant;

use super::{lookers::End, *};

fn counts_of(frame: &GatewayToRuntime) -> Option<WatcherCounts> {
    match frame {
        GatewayToRuntime::Watchers { counts, .. } => Some(*counts),
        _ => None,
    }
}

fn counts(watching: u32, able: u32, following: u32) -> WatcherCounts {
    WatcherCounts { watching, able, following }
}

#[tokio::test]
async fn a_runtime_is_told_who_looks_at_its_session_and_at_no_other() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let (mut runtime, mut other) = (gateway.runtime().await, gateway.runtime().await);
    let (session, _) = runtime.open(OpenSession::default()).await;
    other.open(OpenSession::default()).await;
    let looker = Looker::look(&gateway.url, Surface::Native, &session, None).await;
    let now = async |runtime: &mut Runtime, wanted: WatcherCounts| {
        runtime.until("watchers", |frame| counts_of(frame).filter(|counts| *counts == wanted).map(drop)).await;
    };
    now(&mut runtime, counts(1, 1, 1)).await;
    looker.attend(false);
    now(&mut runtime, counts(0, 0, 1)).await;
    looker.end(End::Clean).await;
    now(&mut runtime, counts(0, 0, 0)).await;
    other.send_text(r#"{"type":"mark"}"#).await;
    other.until("an error", |frame| matches!(frame, GatewayToRuntime::Error { .. }).then_some(())).await;
    assert!(other.seen.iter().all(|frame| counts_of(frame).is_none()));
    gateway.stop().await;
}

#[tokio::test]
async fn a_runtime_is_told_at_most_once_a_second_and_in_the_end_the_truth() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(2_500) {
        Looker::look(&gateway.url, Surface::SocketIo, &session, None).await.end(End::Clean).await;
    }
    let _last = Looker::look(&gateway.url, Surface::Native, &session, None).await;
    let _and = Looker::look(&gateway.url, Surface::Native, &session, None).await;
    runtime.until("both", |frame| counts_of(frame).filter(|told| *told == counts(2, 2, 2)).map(drop)).await;
    let seconds = begun.elapsed().as_secs_f64();
    // The last one is not among them: one at the beginning, and one for each second.
    let told = runtime.seen.iter().filter_map(counts_of).count();
    assert!(told >= 1 && (told as f64) <= seconds + 1.0, "{told} and the last in {seconds} s");
    gateway.stop().await;
}

/// The counts that another connection was told meant nothing to this one: it stayed blind until somebody came or left.
#[tokio::test]
async fn a_runtime_that_comes_back_is_told_who_looks_already() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, claim) = runtime.open(OpenSession::default()).await;
    let _looker = Looker::look(&gateway.url, Surface::Native, &session, None).await;
    runtime.until("one", |frame| counts_of(frame).filter(|told| *told == counts(1, 1, 1)).map(drop)).await;
    drop(runtime);
    let mut back = gateway.runtime().await;
    back.claim(&session, &claim).await;
    assert_eq!(back.until("watchers", counts_of).await, counts(1, 1, 1));
    gateway.stop().await;
}

/// A runtime that takes nothing makes nothing wait for it but the last word.
#[test]
fn of_many_changes_that_nobody_takes_the_last_one_waits() {
    let (link, connection, outlet) = (Link::new(SessionId::random()), ConnectionId::random(), Arc::<Outlet>::default());
    link.connect(connection, outlet, 0);
    for watching in 1..=10_000 {
        link.watchers(counts(watching, 0, watching));
    }
    let told: Vec<_> = link.take(connection).iter().filter_map(counts_of).collect();
    assert_eq!(told, [counts(10_000, 0, 10_000)]);
    link.watchers(counts(10_000, 0, 10_000));
    assert!(link.take(connection).is_empty(), "nothing has changed");
    link.connect(ConnectionId::random(), Arc::default(), 0);
    assert!(link.take(connection).is_empty(), "the session is another's");
}
