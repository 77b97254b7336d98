//! Thousands of sessions that need somebody in the same second.

use std::collections::HashSet;

use super::*;

/// Takes everything after a while, and keeps when and to whom.
struct Crowd {
    pace: Pace,
    latency: Duration,
    log: Mutex<Log>,
    enough: watch::Sender<usize>,
}

#[derive(Default)]
struct Log {
    begun: Vec<(Instant, String)>,
    ids: HashSet<String>,
    at_once: usize,
    most_at_once: usize,
}

impl Crowd {
    fn new(pace: Pace) -> Arc<Self> {
        let latency = Duration::from_millis(5);
        Arc::new(Self { pace, latency, log: Mutex::default(), enough: watch::Sender::new(0) })
    }

    async fn wait_for(&self, number: usize) {
        self.enough.subscribe().wait_for(|taken| *taken >= number).await.unwrap();
    }
}

impl Notifier for Crowd {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        async move {
            {
                let mut log = self.log.lock().unwrap();
                log.begun.push((Instant::now(), message.address.clone()));
                assert!(log.ids.insert(message.id.clone()), "each once");
                log.at_once += 1;
                log.most_at_once = log.most_at_once.max(log.at_once);
            }
            tokio::time::sleep(self.latency).await;
            self.log.lock().unwrap().at_once -= 1;
            self.enough.send_modify(|taken| *taken += 1);
            Delivery::Confirmed
        }
        .boxed()
    }

    fn pace(&self) -> Pace {
        self.pace
    }
}

/// Everything is wanted, and nobody keeps what is told.
struct Willing;

impl Owners for Willing {
    fn recheck<'a>(&'a self, _: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
        async { Verdict::Send }.boxed()
    }

    fn settled<'a>(&'a self, _: &'a NoticeKey, _: NoticeState) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }
}

/// Queues notices of so many sessions, waits until all are sent, and returns the most that waited in memory.
async fn burst(crowd: &Arc<Crowd>, waiting: usize, sessions: usize, target: impl Fn(usize) -> String) -> usize {
    let notifier = Arc::clone(crowd) as Arc<dyn Notifier>;
    let notifiers = [("n".to_owned(), notifier)].into_iter().collect();
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let (outbox, dispatcher) = Outbox::with_room_for(waiting, Arc::clone(&engine), notifiers, OutboxTimes::default());
    let mut most = 0;
    for nth in 0..sessions {
        let target = target(nth);
        let key = NoticeKey { session: format!("s{nth:019}").parse().unwrap(), ..key(&target) };
        outbox.queue(Draft { key, ..draft(&target) }).await.unwrap();
        most = most.max(outbox.shared.schedule.len());
    }
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(dispatcher.run(Arc::new(Willing), shutdown.clone()));
    for taken in 0..=sessions / 100 {
        crowd.wait_for(taken * 100).await;
        most = most.max(outbox.shared.schedule.len());
    }
    crowd.wait_for(sessions).await;
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(count(&outbox.stats().confirmed), sessions as u64);
    assert_eq!(count(&outbox.stats().repeated), 0);
    most
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_sessions_at_once_reach_a_webhook_a_few_at_a_time_and_none_is_lost() {
    let crowd = Crowd::new(Pace::default());
    let most = burst(&crowd, SCHEDULE_LIMIT, 10_000, |_| "n".to_owned()).await;
    let log = crowd.log.lock().unwrap();
    assert_eq!((log.ids.len(), log.most_at_once), (10_000, PER_TARGET));
    assert!(most <= SCHEDULE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_sessions_at_once_reach_ten_chats_at_their_pace_in_turns_and_none_is_lost() {
    let pace = Pace { address: Duration::from_secs(1), overall: Duration::from_millis(34) };
    let crowd = Crowd::new(pace);
    burst(&crowd, SCHEDULE_LIMIT, 10_000, |nth| format!("n:{}", nth % 10)).await;
    let log = crowd.log.lock().unwrap();
    assert_eq!(log.ids.len(), 10_000);
    assert!(log.begun.windows(2).all(|pair| pair[1].0 - pair[0].0 >= pace.overall));
    let mut last: HashMap<&str, Instant> = HashMap::new();
    for (at, address) in &log.begun {
        if let Some(before) = last.insert(address, *at) {
            assert!(*at - before >= pace.address, "{address}");
        }
    }
    // Each of them had its turn before another one had many more.
    for (nth, ten) in log.begun.chunks(10).enumerate() {
        let addresses: HashSet<_> = ten.iter().map(|(_, address)| address).collect();
        assert!(addresses.len() >= 9, "round {nth}: {ten:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_memory_has_room_for_wait_in_the_engine_and_none_is_lost() {
    let crowd = Crowd::new(Pace::default());
    let most = burst(&crowd, SCHEDULE_LIMIT, 70_000, |_| "n".to_owned()).await;
    assert_eq!((crowd.log.lock().unwrap().ids.len(), most), (70_000, SCHEDULE_LIMIT));
}

#[tokio::test(start_paused = true)]
async fn many_targets_in_little_memory_are_all_reached() {
    let crowd = Crowd::new(Pace { address: Duration::from_secs(1), overall: Duration::from_millis(10) });
    let most = burst(&crowd, 200, 2_000, |nth| format!("n:{}", nth % 300)).await;
    assert_eq!((crowd.log.lock().unwrap().ids.len(), most), (2_000, 200));
}

/// The same on several threads and in real time; how fast it is, is no promise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_in_real_time_is_sent_once_each_and_no_more_at_once_than_allowed() {
    let crowd = Crowd::new(Pace { address: Duration::ZERO, overall: Duration::from_micros(100) });
    burst(&crowd, 500, 2_000, |nth| format!("n:{}", nth % 50)).await;
    let log = crowd.log.lock().unwrap();
    assert_eq!(log.ids.len(), 2_000);
    assert!(log.most_at_once <= PER_NOTIFIER);
}
