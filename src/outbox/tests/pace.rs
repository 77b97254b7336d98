//! What the other end asks for: a pace, and silence.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A notice of its own session.
fn draft_of(nth: usize, target: &str) -> Draft {
    let key = NoticeKey { session: format!("s{nth:019}").parse().unwrap(), ..key(target) };
    Draft { key, ..draft(target) }
}

fn paced(script: &[Act], address: Duration, overall: Duration) -> Target {
    Target { pace: Pace { address, overall }, ..Target::new(script, Act::Confirm) }
}

async fn queue(running: &Running, targets: impl IntoIterator<Item = String>) {
    for (nth, target) in targets.into_iter().enumerate() {
        running.outbox.queue(draft_of(nth, &target)).await.unwrap();
    }
}

fn to<'t>(times: &'t [(Instant, String)], address: &str) -> Vec<&'t Instant> {
    times.iter().filter(|(_, to)| to == address).map(|(at, _)| at).collect()
}

fn apart(times: &[&Instant], gap: Duration) -> bool {
    times.windows(2).all(|pair| *pair[1] - *pair[0] >= gap)
}

#[tokio::test(start_paused = true)]
async fn the_pace_of_an_address_and_of_the_whole_notifier_is_kept() {
    let (address, overall) = (SECOND, Duration::from_millis(100));
    let chat = Target { latency: Duration::from_millis(250), ..paced(&[], address, overall) };
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &chat)], &Owner::new(Verdict::Send));
    let began = Instant::now();
    queue(&running, (0..200).map(|nth| format!("chat:{}", nth % 20))).await;
    chat.seen_times(200).await;
    let times = chat.times();
    assert!(apart(&times.iter().map(|(at, _)| at).collect::<Vec<_>>(), overall));
    for nth in 0..20 {
        let times = to(&times, &nth.to_string());
        assert!(times.len() == 10 && apart(&times, address), "{times:?}");
    }
    // No slower than they allow: the latency of one holds up no other.
    assert!(began.elapsed() < 22 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_silence_holds_the_whole_target_and_no_other() {
    let chat = paced(&[Act::Later(30)], SECOND / 10, Duration::ZERO);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &chat)], &Owner::new(Verdict::Send));
    queue(&running, ["chat:a"; 5].map(str::to_owned)).await;
    chat.seen_times(1).await;
    let asked = Instant::now();
    for nth in 5..10 {
        running.outbox.queue(draft_of(nth, "chat:b")).await.unwrap();
    }
    chat.seen_times(11).await;
    let times = chat.times();
    assert!(to(&times, "b").iter().all(|at| **at < asked + SECOND));
    assert!(to(&times, "a")[1..].iter().all(|at| **at >= asked + 30 * SECOND));
    assert_eq!(count(&running.outbox.stats().refused), 1, "nobody else ran into it");
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_silence_can_be_for_the_whole_notifier_and_holds_no_other_one() {
    let chat = paced(&[Act::Silence(30)], SECOND / 10, SECOND / 10);
    let other = Target::new(&[], Act::Confirm);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &chat), ("other", &other)], &Owner::new(Verdict::Send));
    queue(&running, ["chat:a", "chat:b", "chat:c", "other"].map(str::to_owned)).await;
    let began = Instant::now();
    other.seen_times(1).await;
    assert!(began.elapsed() < SECOND);
    chat.seen_times(4).await;
    assert!(chat.times()[1..].iter().all(|(at, _)| *at >= began + 30 * SECOND), "{:?}", chat.times());
}

#[tokio::test(start_paused = true)]
async fn what_is_about_to_be_sent_when_silence_is_asked_for_waits_and_is_no_repeat() {
    let hook = Target::new(&[Act::Later(30)], Act::Confirm);
    let owner = Owner::new(Verdict::Send);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &hook)], &owner);
    running.outbox.queue(draft_of(0, "t")).await.unwrap();
    hook.seen_times(0).await;
    *owner.dressing.lock().unwrap() = SECOND;
    tokio::task::yield_now().await;
    running.outbox.queue(draft_of(1, "t")).await.unwrap();
    let seen = hook.seen_times(3).await;
    assert!(hook.times()[1..].iter().all(|(at, _)| *at - hook.times()[0].0 >= 30 * SECOND), "{:?}", hook.times());
    assert!(seen.iter().all(|(message, _)| !message.repeat));
    owner.told(NoticeState::Confirmed).await;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(hook.seen().len(), 3);
    let second = running.outbox.notices(draft_of(1, "t").key.session, "g1").await.unwrap();
    assert_eq!((second[0].state.as_str(), second[0].attempts), ("confirmed", 1), "a lease given back is no try");
}

#[tokio::test(start_paused = true)]
async fn a_question_that_closes_while_its_notice_is_held_back_is_not_asked_and_its_end_is_told_to_nobody() {
    let hook = Target::new(&[Act::Later(30)], Act::Confirm);
    let owner = Owner::new(Verdict::Send);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &hook)], &owner);
    *owner.dressing.lock().unwrap() = SECOND;
    let keys = [0, 1].map(|nth| draft_of(nth, "t").key);
    running.outbox.queue(draft_of(0, "t")).await.unwrap();
    tokio::time::sleep(SECOND / 2).await;
    running.outbox.queue(draft_of(1, "t")).await.unwrap();
    // The first is refused while the second is about to be sent.
    tokio::time::sleep(SECOND / 4).await;
    assert_eq!(running.outbox.state(&keys[1]).await.unwrap(), Some(NoticeState::Leased));
    running.outbox.close(keys[1].session, "g1", 1, body("guardrail.resolved")).await.unwrap();
    hook.seen_times(2).await;
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(hook.seen().iter().map(|(message, _)| kind(message)).collect::<Vec<_>>(), ["guardrail.opened"; 2]);
    assert_eq!(running.outbox.state(&keys[1]).await.unwrap(), Some(NoticeState::Dropped));
}

#[tokio::test(start_paused = true)]
async fn a_notifier_all_of_whose_addresses_hang_holds_up_no_other_one() {
    let (chat, hook) = (Target::new(&[], Act::Hang), Target::new(&[], Act::Confirm));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &chat), ("hook", &hook)], &Owner::new(Verdict::Send));
    queue(&running, (0..100).map(|nth| format!("chat:{nth}"))).await;
    chat.seen_times(PER_NOTIFIER).await;
    let began = Instant::now();
    for nth in 100..200 {
        running.outbox.queue(draft_of(nth, "hook")).await.unwrap();
    }
    hook.seen_times(100).await;
    assert!(began.elapsed() < SECOND);
    assert_eq!(chat.seen().len(), PER_NOTIFIER);
}

#[tokio::test(start_paused = true)]
async fn what_is_covered_does_not_use_up_the_pace() {
    let chat = paced(&[], SECOND, SECOND);
    let owner = Owner::new(Verdict::LookAgain(SECOND));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &chat)], &owner);
    queue(&running, (0..50).map(|nth| format!("chat:{nth}"))).await;
    tokio::time::sleep(10 * SECOND).await;
    assert!(chat.seen().is_empty());
    *owner.verdict.lock().unwrap() = Verdict::Send;
    let began = Instant::now();
    chat.seen_times(50).await;
    assert!(began.elapsed() <= 52 * SECOND, "{:?}", began.elapsed());
}
