//! The outbox with scripted notifiers, on paused time.

mod finding;
mod pace;
mod resuming;
mod scale;

use std::{collections::VecDeque, sync::Mutex};

use futures::FutureExt;
use proptest::prelude::*;
use serde_json::json;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    engine::{
        Bounds,
        faulty::{Faults, FaultyEngine},
        memory::MemoryEngine,
    },
    notifier::{Delivery, Message, Notifier, Pace},
};

/// What a scripted target does with one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Confirm,
    /// Confirms, with a receipt.
    Show(u8),
    Refuse,
    /// Refuses, and wants silence for so many seconds for this target …
    Later(u64),
    /// … or for all of the notifier.
    Silence(u64),
    Reject,
    Unknown,
    /// Never answers: until it is cut off, or the process "dies".
    Hang,
}

impl Act {
    fn may_arrive(self) -> bool {
        matches!(self, Self::Confirm | Self::Show(_) | Self::Unknown | Self::Hang)
    }
}

#[derive(Clone)]
struct Target {
    script: Arc<Mutex<VecDeque<Act>>>,
    /// What it does when the script is over.
    then: Act,
    pace: Pace,
    /// How long it takes to answer.
    latency: Duration,
    seen: Arc<watch::Sender<Vec<(Message, Act)>>>,
    times: Arc<Mutex<Vec<Instant>>>,
}

impl Target {
    fn new(script: &[Act], then: Act) -> Self {
        let script = Arc::new(Mutex::new(script.iter().copied().collect()));
        Self {
            script,
            then,
            pace: Pace::default(),
            latency: Duration::ZERO,
            seen: Arc::new(watch::Sender::new(Vec::new())),
            times: Arc::default(),
        }
    }

    /// When each message came, with its address.
    fn times(&self) -> Vec<(Instant, String)> {
        let addresses = self.seen().into_iter().map(|(message, _)| message.address);
        self.times.lock().unwrap().iter().copied().zip(addresses).collect()
    }

    fn seen(&self) -> Vec<(Message, Act)> {
        self.seen.borrow().clone()
    }

    async fn seen_times(&self, times: usize) -> Vec<(Message, Act)> {
        let mut seen = self.seen.subscribe();
        let enough = seen.wait_for(|seen| seen.len() >= times);
        tokio::time::timeout(Duration::from_secs(3600), enough).await.expect("it is sent in time").unwrap().clone()
    }
}

impl Notifier for Target {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        async move {
            let act = self.script.lock().unwrap().pop_front().unwrap_or(self.then);
            self.times.lock().unwrap().push(Instant::now());
            self.seen.send_modify(|seen| seen.push((message.clone(), act)));
            if !self.latency.is_zero() {
                tokio::time::sleep(self.latency).await;
            }
            let error = || "HTTP 500".to_owned();
            match act {
                Act::Confirm => Delivery::Confirmed,
                Act::Show(at) => Delivery::Shown(Receipt(at.to_string())),
                Act::Refuse => Delivery::Refused { error: error(), retry_after: None },
                Act::Later(s) => Delivery::Refused { error: error(), retry_after: Some(Duration::from_secs(s)) },
                Act::Silence(s) => Delivery::Throttled { error: error(), retry_after: Duration::from_secs(s) },
                Act::Reject => Delivery::Rejected { error: error() },
                Act::Unknown => Delivery::Unknown { error: "no answer".to_owned() },
                Act::Hang => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn pace(&self) -> Pace {
        self.pace
    }
}

/// Says one verdict to everything, and keeps what it is told.
struct Owner {
    verdict: Mutex<Verdict>,
    /// How long it takes to dress a message.
    dressing: Mutex<Duration>,
    told: watch::Sender<Vec<NoticeState>>,
}

impl Owner {
    fn new(verdict: Verdict) -> Arc<Self> {
        Arc::new(Self {
            verdict: Mutex::new(verdict),
            dressing: Mutex::default(),
            told: watch::Sender::new(Vec::new()),
        })
    }

    async fn told(&self, state: NoticeState) -> Vec<NoticeState> {
        let mut told = self.told.subscribe();
        let found = told.wait_for(|told| told.contains(&state));
        tokio::time::timeout(Duration::from_secs(7200), found).await.expect("it is told in time").unwrap().clone()
    }
}

impl Owners for Owner {
    fn recheck<'a>(&'a self, _: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
        let verdict = *self.verdict.lock().unwrap();
        async move { verdict }.boxed()
    }

    fn dress<'a>(&'a self, _: &'a NoticeKey, _: &'a str) -> BoxFuture<'a, Extras> {
        let dressing = *self.dressing.lock().unwrap();
        async move {
            if !dressing.is_zero() {
                tokio::time::sleep(dressing).await;
            }
            Extras::default()
        }
        .boxed()
    }

    fn settled<'a>(&'a self, _: &'a NoticeKey, state: NoticeState) -> BoxFuture<'a, ()> {
        self.told.send_modify(|told| told.push(state));
        async {}.boxed()
    }
}

fn memory() -> MemoryEngine {
    MemoryEngine::new(Bounds { log_records: 10, log_bytes: 1000, log_age: Duration::MAX, total_bytes: 1000 })
}

struct Running {
    outbox: Outbox,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(engine: &Arc<dyn Engine>, targets: &[(&str, &Target)], owner: &Arc<Owner>) -> Self {
        let notifiers = targets
            .iter()
            .map(|(name, target)| ((*name).to_owned(), Arc::new((*target).clone()) as Arc<dyn Notifier>))
            .collect();
        let (outbox, dispatcher) = Outbox::new(Arc::clone(engine), notifiers, OutboxTimes::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(dispatcher.run(Arc::clone(owner) as Arc<dyn Owners>, shutdown.clone()));
        Self { outbox, shutdown, task }
    }

    /// Stops as a killed process does.
    async fn crash(self) -> Outbox {
        self.task.abort();
        drop(self.task.await);
        self.outbox
    }
}

fn key(target: &str) -> NoticeKey {
    let subject = NoticeSubject::Guardrail { id: "g1".to_owned(), revision: 1 };
    NoticeKey { session: "s".repeat(20).parse().unwrap(), subject, target: target.to_owned(), rung: Rung::default() }
}

fn body(kind: &str) -> Map<String, Value> {
    json!({"type": kind, "task": null}).as_object().unwrap().clone()
}

fn draft(target: &str) -> Draft {
    Draft { key: key(target), project: "p".into(), body: body("guardrail.opened"), thread: None }
}

fn kind(message: &Message) -> String {
    let body: Value = serde_json::from_slice(&message.body).unwrap();
    body["type"].as_str().unwrap().to_owned()
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_is_refused_five_times_is_confirmed_once_under_one_id() {
    let (target, owner) = (Target::new(&[Act::Refuse; 5], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    assert_eq!(running.outbox.queue(draft("t")).await.unwrap(), Queued::New);
    let told = owner.told(NoticeState::Confirmed).await;
    assert_eq!(told.iter().filter(|state| **state == NoticeState::Failed).count(), 5);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let seen = target.seen();
    assert_eq!(seen.len(), 6);
    assert!(seen.iter().all(|(message, _)| message.id == seen[0].0.id && !message.repeat));
    let again = running.outbox.queue(draft("t")).await.unwrap();
    assert_eq!(again, Queued::AlreadyThere(NoticeState::Confirmed));
    let notices = running.outbox.notices(key("t").session, "g1").await.unwrap();
    assert_eq!((notices[0].state.as_str(), notices[0].attempts, notices.len()), ("confirmed", 6, 1));
    assert_eq!((count(&running.outbox.stats().refused), count(&running.outbox.stats().confirmed)), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_notice_is_repeated_exactly_once_and_marked() {
    let (target, owner) = (Target::new(&[Act::Unknown], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    assert_eq!(owner.told(NoticeState::Confirmed).await, [NoticeState::Unknown, NoticeState::Confirmed]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let seen = target.seen();
    assert_eq!(seen.iter().map(|(message, _)| message.repeat).collect::<Vec<_>>(), [false, true]);
    assert_eq!(seen[0].0.id, seen[1].0.id);
    assert_eq!(count(&running.outbox.stats().repeated), 1);
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_is_unknown_twice_is_given_up() {
    // A hanging notifier is cut off, which is unknown too.
    let (target, owner) = (Target::new(&[Act::Unknown, Act::Hang], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::GivenUp).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(target.seen().len(), 2);
    assert_eq!(running.outbox.state(&key("t")).await.unwrap(), Some(NoticeState::GivenUp));
    assert_eq!(count(&running.outbox.stats().given_up), 1);
}

#[tokio::test(start_paused = true)]
async fn two_outboxes_that_race_on_one_key_send_once() {
    for seed in 0..20 {
        let faults = Arc::new(Faults { delay_us: AtomicU64::new(5000), ..Faults::default() });
        let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(memory(), faults, seed));
        let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
        let running = [(); 2].map(|()| Running::start(&engine, &[("t", &target)], &owner));
        let queue = |running: &Running| {
            let outbox = running.outbox.clone();
            async move { outbox.queue(draft("t")).await.unwrap() }
        };
        let (a, b) = tokio::join!(queue(&running[0]), queue(&running[1]));
        assert_eq!([a, b].iter().filter(|queued| **queued == Queued::New).count(), 1);
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(target.seen().len(), 1, "seed {seed}");
        for running in running {
            running.crash().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_while_sending_is_found_by_the_next_process_and_repeated_once() {
    let (target, owner) = (Target::new(&[Act::Hang], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let first = Running::start(&engine, &[("t", &target)], &owner);
    first.outbox.queue(draft("t")).await.unwrap();
    target.seen_times(1).await;
    first.crash().await;

    let second = Running::start(&engine, &[("t", &target)], &owner);
    assert_eq!(second.outbox.state(&key("t")).await.unwrap(), Some(NoticeState::Leased));
    assert_eq!(owner.told(NoticeState::Confirmed).await, [NoticeState::Unknown, NoticeState::Confirmed]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    let seen = target.seen();
    assert_eq!(seen.iter().map(|(message, _)| message.repeat).collect::<Vec<_>>(), [false, true]);
    assert_eq!(seen[0].0.id, seen[1].0.id);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_taken_up_by_the_next_process() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let (outbox, never_run) = Outbox::new(Arc::clone(&engine), Notifiers::default(), OutboxTimes::default());
    outbox.queue(draft("t")).await.unwrap();
    drop((outbox, never_run));
    let _running = Running::start(&engine, &[("t", &target)], &owner);
    target.seen_times(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_is_no_longer_wanted_at_sending_is_not_sent() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Drop));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::Dropped).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(target.seen().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_notice_whose_owner_ends_with_the_gateway_is_not_dropped() {
    /// Ends when the gateway stops, as owners of sessions do.
    struct Ending(CancellationToken);

    impl Owners for Ending {
        fn recheck<'a>(&'a self, _: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
            async move {
                self.0.cancelled().await;
                Verdict::Drop
            }
            .boxed()
        }

        fn settled<'a>(&'a self, _: &'a NoticeKey, _: NoticeState) -> BoxFuture<'a, ()> {
            async {}.boxed()
        }
    }

    let (engine, shutdown) = (Arc::new(memory()) as Arc<dyn Engine>, CancellationToken::new());
    let (outbox, dispatcher) = Outbox::new(Arc::clone(&engine), Notifiers::default(), OutboxTimes::default());
    let task = tokio::spawn(dispatcher.run(Arc::new(Ending(shutdown.clone())), shutdown.clone()));
    outbox.queue(draft("t")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(outbox.state(&key("t")).await.unwrap(), Some(NoticeState::Queued));
}

#[tokio::test(start_paused = true)]
async fn an_update_is_sent_although_the_clock_was_set_forward() {
    let (target, owner) = (Target::new(&[Act::Confirm, Act::Refuse], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    let wall = crate::clock::now();
    crate::clock::pretended::set(wall);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::Confirmed).await;
    running.outbox.close(key("t").session, "g1", 1, body("guardrail.resolved")).await.unwrap();
    target.seen_times(2).await;
    crate::clock::pretended::set(wall + Duration::from_secs(3 * 3600));
    assert_eq!(kind(&target.seen_times(3).await[2].0), "guardrail.resolved");
    crate::clock::pretended::end();
}

#[tokio::test(start_paused = true)]
async fn a_covered_notice_waits_and_queueing_it_again_asks_at_once() {
    let owner = Owner::new(Verdict::LookAgain(Duration::from_secs(900)));
    let target = Target::new(&[], Act::Confirm);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(target.seen().is_empty());
    *owner.verdict.lock().unwrap() = Verdict::Send;
    let before = Instant::now();
    let again = running.outbox.queue(draft("t")).await.unwrap();
    assert_eq!(again, Queued::AlreadyThere(NoticeState::Queued));
    target.seen_times(1).await;
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn closing_updates_only_targets_that_may_have_the_card() {
    let owner = Owner::new(Verdict::Send);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let took_it = Target::new(&[Act::Confirm, Act::Refuse, Act::Unknown], Act::Confirm);
    let may_have_it = Target::new(&[Act::Unknown, Act::Unknown], Act::Confirm);
    let refused_it = Target::new(&[], Act::Refuse);
    let targets = [("took", &took_it), ("may", &may_have_it), ("refused", &refused_it)];
    let running = Running::start(&engine, &targets, &owner);
    for (name, _) in targets {
        running.outbox.queue(draft(name)).await.unwrap();
    }
    took_it.seen_times(1).await;
    may_have_it.seen_times(2).await;
    let refusals = refused_it.seen_times(1).await.len();
    tokio::time::sleep(Duration::from_millis(1)).await;

    for _ in 0..2 {
        let close = running.outbox.close(key("t").session, "g1", 1, body("guardrail.resolved"));
        close.await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(600)).await;
    let took = took_it.seen();
    let kinds: Vec<_> = took.iter().map(|(message, _)| kind(message)).collect();
    let resolved = "guardrail.resolved";
    assert_eq!(kinds, ["guardrail.opened", resolved, resolved, resolved]);
    assert!(took[1].0.id != took[0].0.id && took[1].0.id == took[3].0.id, "an id of its own, stable");
    assert!(took[3].0.repeat && !took[2].0.repeat);
    assert_eq!(may_have_it.seen().iter().filter(|(message, _)| kind(message) == resolved).count(), 1);
    assert!(refused_it.seen().len() <= refusals + 1);
    assert!(refused_it.seen().iter().all(|(message, _)| kind(message) == "guardrail.opened"));
    assert_eq!(running.outbox.state(&key("refused")).await.unwrap(), Some(NoticeState::Dropped));
    assert_eq!(count(&running.outbox.stats().updates), 2);
}

#[tokio::test(start_paused = true)]
async fn another_revision_of_the_same_guardrail_is_left_alone() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::Confirmed).await;
    running.outbox.close(key("t").session, "g1", 2, body("guardrail.resolved")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(target.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_hangs_does_not_hold_up_another() {
    let (slow, quick) = (Target::new(&[], Act::Hang), Target::new(&[], Act::Confirm));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("slow", &slow), ("quick", &quick)], &Owner::new(Verdict::Send));
    for step in 0..30 {
        let key = NoticeKey { rung: Rung { step, round: 0 }, ..key("slow") };
        running.outbox.queue(Draft { key, ..draft("slow") }).await.unwrap();
    }
    slow.seen_times(PER_TARGET).await;
    let before = Instant::now();
    running.outbox.queue(draft("quick")).await.unwrap();
    quick.seen_times(1).await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert_eq!(slow.seen().len(), PER_TARGET);
}

#[tokio::test(start_paused = true)]
async fn a_target_without_a_notifier_is_no_silence() {
    let owner = Owner::new(Verdict::Send);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[], &owner);
    running.outbox.queue(draft("gone")).await.unwrap();
    owner.told(NoticeState::Rejected).await;
    let notices = running.outbox.notices(key("gone").session, "g1").await.unwrap();
    assert!(notices[0].error.is_some() && notices[0].next_try_in_ms.is_some());
}

#[tokio::test(start_paused = true)]
async fn at_shutdown_a_send_gets_five_seconds_and_is_then_unknown() {
    let (target, owner) = (Target::new(&[Act::Hang], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    target.seen_times(1).await;
    let before = Instant::now();
    running.shutdown.cancel();
    running.task.await.unwrap();
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&before.elapsed()));
    assert_eq!(*owner.told.borrow(), [NoticeState::Unknown]);
    assert_eq!(target.seen().len(), 1, "nothing new is sent");
    let _next = Running::start(&engine, &[("t", &target)], &owner);
    assert!(target.seen_times(2).await[1].0.repeat);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_forgotten_is_no_longer_notified() {
    let (target, owner) = (Target::new(&[], Act::Refuse), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::Failed).await;
    engine.remove(key("t").session).await.unwrap();
    running.outbox.forget(key("t").session).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = target.seen().len();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(target.seen().len(), before);
}

#[test]
fn waits_grow_to_their_bound_and_honour_the_other_end() {
    let times = OutboxTimes::default();
    let plain = Delivery::Refused { error: String::new(), retry_after: None };
    for (attempts, bound_s) in [(1, 1), (2, 2), (5, 16), (7, 60), (u32::MAX, 60)] {
        let longest = (0..200).map(|_| attempt::wait_after(&times, attempts, &plain)).max().unwrap();
        let bound = Duration::from_secs(bound_s);
        assert!(longest <= bound && longest > bound / 2, "{attempts}: {longest:?}");
    }
    let wish = |wish_s| Delivery::Refused { error: String::new(), retry_after: Some(Duration::from_secs(wish_s)) };
    assert!(attempt::wait_after(&times, 1, &wish(30)) >= Duration::from_secs(30));
    assert!(attempt::wait_after(&times, 1, &wish(u64::MAX)) <= Duration::from_secs(3600));
}

/// What was refused together does not come back together.
#[test]
fn every_wait_has_jitter() {
    let times = OutboxTimes::default();
    let error = String::new;
    let (wish, longest) = (Duration::from_secs(30), times.retry_longest);
    for (outcome, from, to) in [
        (Delivery::Refused { error: error(), retry_after: None }, Duration::ZERO, times.retry_first * 4),
        (Delivery::Refused { error: error(), retry_after: Some(wish) }, wish, wish + times.retry_first),
        (Delivery::Throttled { error: error(), retry_after: wish }, wish, wish + times.retry_first),
        (Delivery::Rejected { error: error() }, longest, longest + longest / 4),
    ] {
        let waits: Vec<_> = (0..200).map(|_| attempt::wait_after(&times, 3, &outcome)).collect();
        let (least, most) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
        assert!(least >= from && most <= to, "{outcome:?}: {least:?} to {most:?}");
        assert!(most - least > (to - from) / 2, "{outcome:?}: {least:?} to {most:?}");
    }
}

/// Runs one key through a script, with a crash at every `Hang`, on an engine that fails and delays.
async fn run_script(script: &[Act], failing_per_mille: u32, seed: u64) -> (Vec<(Message, Act)>, Option<NoticeState>) {
    let faults = Arc::new(Faults::default());
    faults.failing_per_mille.store(failing_per_mille, Ordering::Relaxed);
    faults.delay_us.store(20_000, Ordering::Relaxed);
    let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(memory(), faults, seed));
    let (target, owner) = (Target::new(script, Act::Confirm), Owner::new(Verdict::Send));
    let mut running = Running::start(&engine, &[("t", &target)], &owner);
    while running.outbox.queue(draft("t")).await.is_err() {}
    for _ in script.iter().filter(|act| **act == Act::Hang) {
        let mut seen = target.seen.subscribe();
        let hangs = seen.wait_for(|seen| seen.last().is_some_and(|(_, act)| *act == Act::Hang));
        if tokio::time::timeout(Duration::from_secs(3600), hangs).await.is_err() {
            break;
        }
        running.crash().await;
        // The crashed one stays the last seen until the next is sent: wait for that, or for the end.
        let seen_before = target.seen().len();
        running = Running::start(&engine, &[("t", &target)], &owner);
        let mut seen = target.seen.subscribe();
        let more = seen.wait_for(|seen| seen.len() > seen_before);
        drop(tokio::time::timeout(Duration::from_secs(3600), more).await);
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let state = running.outbox.state(&key("t")).await.unwrap();
    running.crash().await;
    (target.seen(), state)
}

/// Kills the process after each of the times, wherever it stands, and starts the next; two run at once in the end.
async fn run_crashes(
    script: &[Act],
    crashes_at_ms: &[u64],
    failing_per_mille: u32,
    seed: u64,
) -> (Vec<(Message, Act)>, Option<NoticeState>) {
    let faults = Arc::new(Faults::default());
    faults.failing_per_mille.store(failing_per_mille, Ordering::Relaxed);
    faults.delay_us.store(3_000_000, Ordering::Relaxed);
    let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(memory(), faults, seed));
    let (target, owner) = (Target::new(script, Act::Confirm), Owner::new(Verdict::Send));
    let mut running = Running::start(&engine, &[("t", &target)], &owner);
    while running.outbox.queue(draft("t")).await.is_err() {}
    for after_ms in crashes_at_ms {
        tokio::time::sleep(Duration::from_millis(*after_ms)).await;
        running.crash().await;
        running = Running::start(&engine, &[("t", &target)], &owner);
    }
    let other = Running::start(&engine, &[("t", &target)], &owner);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let state = other.outbox.state(&key("t")).await.unwrap();
    running.crash().await;
    other.crash().await;
    (target.seen(), state)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_key_is_silent_confirmed_twice_or_repeated_twice(
        script in prop::collection::vec(
            prop_oneof![
                Just(Act::Confirm),
                Just(Act::Show(1)),
                Just(Act::Refuse),
                Just(Act::Refuse),
                Just(Act::Reject),
                Just(Act::Later(20)),
                Just(Act::Silence(20)),
                Just(Act::Unknown),
                Just(Act::Hang),
            ],
            0..8,
        ),
        failing_per_mille in 0_u32..400,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (seen, state) = runtime.block_on(run_script(&script, failing_per_mille, seed));

        // The model: refusals reach nobody; the first doubtful outcome leaves one repeat; the second ends it.
        let mut expected = Vec::new();
        let mut doubts = 0;
        let mut acts = script.iter().copied().chain(std::iter::repeat(Act::Confirm));
        let end = loop {
            let act = acts.next().unwrap();
            expected.push((act, doubts > 0));
            match act {
                Act::Confirm | Act::Show(_) => break NoticeState::Confirmed,
                Act::Refuse | Act::Reject | Act::Later(_) | Act::Silence(_) => {}
                Act::Unknown | Act::Hang if doubts == 1 => break NoticeState::GivenUp,
                Act::Unknown | Act::Hang => doubts = 1,
            }
        };
        let happened: Vec<_> = seen.iter().map(|(message, act)| (*act, message.repeat)).collect();
        prop_assert_eq!(happened, expected);
        prop_assert_eq!(state, Some(end));
        prop_assert!(seen.iter().all(|(message, _)| message.id == seen[0].0.id));
        let arrived = |repeat: bool| seen.iter().filter(|(m, act)| m.repeat == repeat && act.may_arrive()).count();
        prop_assert!(arrived(true) <= 1 && arrived(false) <= 1);
    }

    #[test]
    fn a_crash_at_any_moment_costs_at_most_one_repeat(
        script in prop::collection::vec(
            prop_oneof![Just(Act::Refuse), Just(Act::Refuse), Just(Act::Unknown), Just(Act::Hang)],
            0..4,
        ),
        crashes_at_ms in prop::collection::vec(0_u64..50_000, 1..5),
        failing_per_mille in 0_u32..600,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let (seen, state) = runtime.block_on(run_crashes(&script, &crashes_at_ms, failing_per_mille, seed));
        let arrived = |repeat: bool| seen.iter().filter(|(m, act)| m.repeat == repeat && act.may_arrive()).count();
        prop_assert!(arrived(true) <= 1 && arrived(false) <= 1, "{:?}", seen);
        prop_assert!(matches!(state, Some(NoticeState::Confirmed | NoticeState::GivenUp)), "{:?}", state);
        prop_assert!(seen.iter().all(|(message, _)| message.id == seen[0].0.id));
    }
}

#[tokio::test(start_paused = true)]
async fn what_changes_while_the_message_is_made_ready_holds_it_back() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
    *owner.dressing.lock().unwrap() = Duration::from_secs(3);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.outbox.state(&key("t")).await.unwrap(), Some(NoticeState::Leased));
    *owner.verdict.lock().unwrap() = Verdict::LookAgain(Duration::from_secs(20));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(target.seen().is_empty(), "covered since it was asked");
    assert_eq!(running.outbox.state(&key("t")).await.unwrap(), Some(NoticeState::Queued), "and no lease is left");
    *owner.verdict.lock().unwrap() = Verdict::Send;
    let seen = target.seen_times(1).await;
    assert!(!seen[0].0.repeat);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_closes_while_its_message_is_made_ready_is_told_to_nobody() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
    *owner.dressing.lock().unwrap() = Duration::from_secs(3);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    *owner.verdict.lock().unwrap() = Verdict::Drop;
    running.outbox.close(key("t").session, "g1", 1, body("guardrail.resolved")).await.unwrap();
    owner.told(NoticeState::Dropped).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(target.seen().len(), 0, "neither asked, nor told how it ended");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_was_dropped_and_is_wanted_again_is_sent() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Drop));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    running.outbox.queue(draft("t")).await.unwrap();
    owner.told(NoticeState::Dropped).await;
    *owner.verdict.lock().unwrap() = Verdict::Send;
    let again = running.outbox.queue(draft("t")).await.unwrap();
    assert_eq!(again, Queued::AlreadyThere(NoticeState::Queued));
    owner.told(NoticeState::Confirmed).await;
    assert_eq!(target.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_has_grown_old_before_sending_is_given_back_where_others_may_take_it() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::Send));
    *owner.dressing.lock().unwrap() = Duration::from_secs(6);
    let faults = Arc::new(Faults { shared: true.into(), ..Faults::default() });
    let engine: Arc<dyn Engine> = Arc::new(FaultyEngine::new(memory(), faults, 1));
    let notifiers = [("t".to_owned(), Arc::new(target.clone()) as Arc<dyn Notifier>)].into_iter().collect();
    let times = OutboxTimes { lease: Duration::from_secs(10), ..OutboxTimes::default() };
    let (outbox, dispatcher) = Outbox::new(engine, notifiers, times);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(dispatcher.run(Arc::clone(&owner) as Arc<dyn Owners>, shutdown));
    outbox.queue(draft("t")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(target.seen().is_empty(), "another process could have sent it at any moment");
    *owner.dressing.lock().unwrap() = Duration::ZERO;
    assert!(!target.seen_times(1).await[0].0.repeat);
    task.abort();
}

/// Does not listen at first.
struct Deaf {
    turns: AtomicU64,
    told: watch::Sender<Vec<NoticeState>>,
}

impl Owners for Deaf {
    fn recheck<'a>(&'a self, _: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
        async { Verdict::Send }.boxed()
    }

    fn settled<'a>(&'a self, _: &'a NoticeKey, state: NoticeState) -> BoxFuture<'a, ()> {
        async move {
            if self.turns.fetch_add(1, Ordering::Relaxed) < 2 {
                std::future::pending::<()>().await;
            }
            self.told.send_modify(|told| told.push(state));
        }
        .boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_did_not_listen_is_told_again_how_a_notice_ended() {
    let target = Target::new(&[], Act::Confirm);
    let owner = Arc::new(Deaf { turns: AtomicU64::new(0), told: watch::Sender::new(Vec::new()) });
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let notifiers = [("t".to_owned(), Arc::new(target.clone()) as Arc<dyn Notifier>)].into_iter().collect();
    let (outbox, dispatcher) = Outbox::new(engine, notifiers, OutboxTimes::default());
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(dispatcher.run(Arc::clone(&owner) as Arc<dyn Owners>, shutdown));
    outbox.queue(draft("t")).await.unwrap();
    let mut told = owner.told.subscribe();
    let heard = told.wait_for(|told| told.contains(&NoticeState::Confirmed));
    tokio::time::timeout(Duration::from_secs(120), heard).await.expect("it is told again").unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(*owner.told.borrow(), [NoticeState::Confirmed], "and once it has heard, no more");
    assert_eq!(target.seen().len(), 1);
    task.abort();
}
