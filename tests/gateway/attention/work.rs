//! What watching costs beside time: nothing that runs or waits is made for a watcher, and nobody wakes for one who only
//! goes on looking.

use futures::{FutureExt, future::join_all};
use onlooker::watch::{Attentive, Guard, Newcomer, Watch, WatchTimes};
use onlooker_protocol::subscriber::GatewayToSubscriber;
use tokio::time::Instant;

use super::*;

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// A hundred connections that follow and look have the tasks that they had before they did.
#[tokio::test]
async fn who_looks_has_no_task_of_their_own() {
    let stage = Stage::begin(calm(LONG, LONG)).await;
    let session = stage.session().await;
    let mut first = stage.gateway.subscriber().await;
    first.watch(&session).await;
    first.live().await;
    let mut connected = join_all((0..100).map(|_| stage.gateway.subscriber())).await;
    let ready = async |subscriber: &mut Subscriber| {
        let is_ready = |frame: &GatewayToSubscriber| matches!(frame, GatewayToSubscriber::Ready { .. }).then_some(());
        subscriber.until("ready", is_ready).await;
    };
    join_all(connected.iter_mut().map(ready)).await;
    // Makes the connection for what is asked below.
    stage.wait_counts(&session, (1, 1)).await;
    let before = tasks();
    join_all(connected.iter_mut().map(async |subscriber| {
        subscriber.watch(&session).await;
        subscriber.live().await;
    }))
    .await;
    stage.wait_counts(&session, (101, 101)).await;
    assert_eq!(tasks(), before);
    stage.gateway.stop().await;
}

const TIMES: WatchTimes = WatchTimes {
    live_window: Duration::from_secs(20),
    attention_lease: Duration::from_secs(30),
    poll_window: Duration::from_secs(10),
    remember: Duration::from_secs(10),
};

fn enter(watch: &Watch, now: Instant) -> Guard {
    let newcomer = Newcomer {
        subscriber: "connection".into(),
        who: "ada".into(),
        via: "websocket",
        observer: false,
        able: true,
        sees_results: true,
        attentive: Attentive::CannotSay,
    };
    watch.enter(newcomer, now)
}

/// Two minutes of so many watchers who answer every 10 s. How often a session's owner would wake: because it is told
/// of a change, and because it asked to look again.
fn wakes(watchers: u32) -> (usize, usize) {
    let (watch, begin) = (Watch::new(TIMES), Instant::now());
    let apart = Duration::from_secs(10) / watchers;
    let guards: Vec<_> = (0..watchers).map(|i| enter(&watch, begin + apart * i)).collect();
    let _ = watch.changed().now_or_never();
    let (mut told, mut looked) = (0, 0);
    let mut next = watch.settle(begin + Duration::from_secs(10));
    for round in 1..=12 {
        for (i, guard) in (0..watchers).zip(&guards) {
            let now = begin + Duration::from_secs(10) * round + apart * i;
            while let Some(due) = next.filter(|due| *due <= now) {
                looked += 1;
                next = watch.settle(due);
            }
            guard.proved(u64::from(round), now);
            told += usize::from(watch.changed().now_or_never().is_some());
        }
    }
    assert_eq!(watch.counts(begin + Duration::from_secs(130)).watching, watchers);
    (told, looked)
}

#[test]
fn however_many_go_on_looking_a_sessions_owner_wakes_as_often_as_for_one() {
    for watchers in [1, 100, 2_000] {
        let (told, looked) = wakes(watchers);
        assert_eq!(told, 0, "{watchers}: nothing has changed for anybody");
        assert!(looked <= 13, "{watchers}: looked {looked} times in two minutes");
    }
}
