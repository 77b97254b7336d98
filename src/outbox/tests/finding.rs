//! Notices by id, by message and by state; dead ones, and trying them again.

use uuid::Uuid;

use super::*;

async fn one(running: &Running, target: &str) -> String {
    running.outbox.queue(draft(target)).await.unwrap();
    let notices = running.outbox.notices(key(target).session, "g1").await.unwrap();
    notices.into_iter().find(|notice| notice.target == target).unwrap().id
}

fn asked(states: &[NoticeState]) -> Listing<'_> {
    Listing { project: "p", sessions: None, states, before: None, limit: 100 }
}

const DEAD: [NoticeState; 2] = [NoticeState::Rejected, NoticeState::GivenUp];

#[tokio::test(start_paused = true)]
async fn a_notice_is_found_by_its_id_and_its_message_also_after_a_restart_until_it_is_forgotten() {
    let (target, owner) = (Target::new(&[Act::Show(7)], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let mut running = Running::start(&engine, &[("chat", &target)], &owner);
    let id = one(&running, "chat:a").await;
    let at = Receipt("7".to_owned());
    assert_eq!(running.outbox.find_message("chat:a", &at).await.unwrap(), None, "not there yet");
    owner.told(NoticeState::Confirmed).await;
    running.outbox.close(key("").session, "g1", 1, body("guardrail.resolved")).await.unwrap();
    for _ in 0..2 {
        let found = running.outbox.find(&id).await.unwrap().expect("it is found");
        assert_eq!((&found.key, found.state), (&key("chat:a"), NoticeState::Confirmed));
        assert_eq!((&*found.project, &found.receipt), ("p", &Some(at.clone())));
        assert_eq!(running.outbox.find_message("chat:a", &at).await.unwrap(), Some(found));
        for (target, receipt) in [("chat:b", &at), ("chat:a", &Receipt("8".to_owned()))] {
            assert_eq!(running.outbox.find_message(target, receipt).await.unwrap(), None);
        }
        running.crash().await;
        running = Running::start(&engine, &[("chat", &target)], &owner);
        let states = running.outbox.resume(key("").session).await.unwrap();
        assert_eq!(
            states.iter().map(|(key, state, _)| (key, *state)).collect::<Vec<_>>(),
            [(&key("chat:a"), NoticeState::Confirmed)]
        );
    }
    assert_eq!(running.outbox.find(&Uuid::now_v7().to_string()).await.unwrap(), None);
    running.outbox.forget(key("").session).await;
    assert_eq!(running.outbox.find(&id).await.unwrap(), None);
    assert_eq!(running.outbox.find_message("chat:a", &at).await.unwrap(), None);
    assert!(running.outbox.list(&asked(&NoticeState::STORED)).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_was_forgotten_while_its_notice_was_sent_stays_forgotten() {
    let target = Target { latency: Duration::from_secs(1), ..Target::new(&[], Act::Show(1)) };
    let owner = Owner::new(Verdict::Send);
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    let id = one(&running, "t").await;
    target.seen_times(1).await;
    running.outbox.forget(key("t").session).await;
    owner.told(NoticeState::Confirmed).await;
    assert_eq!(running.outbox.find(&id).await.unwrap(), None);
    assert_eq!(running.outbox.find_message("t", &Receipt("1".to_owned())).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn lists_are_of_one_project_by_state_newest_first_and_in_pages() {
    let (target, owner) = (Target::new(&[], Act::Confirm), Owner::new(Verdict::LookAgain(Duration::from_secs(900))));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    let session = |nth: usize| format!("s{nth:019}");
    for nth in 0..10 {
        let key = NoticeKey { session: session(nth).parse().unwrap(), ..key("t") };
        let project = if nth == 9 { "other".into() } else { "p".into() };
        running.outbox.queue(Draft { key, project, ..draft("t") }).await.unwrap();
    }
    let list = async |listing: Listing<'_>| {
        let found = running.outbox.list(&listing).await.unwrap();
        found.into_iter().map(|listed| (listed.session, listed.notice.id)).collect::<Vec<_>>()
    };
    let sessions = |page: &[(String, String)]| page.iter().map(|(session, _)| session.clone()).collect::<Vec<_>>();
    let queued = asked(&[NoticeState::Queued]);
    let first = list(Listing { limit: 5, ..queued }).await;
    assert_eq!(sessions(&first), [8, 7, 6, 5, 4].map(session));
    let before = Some(first[4].1.parse().unwrap());
    assert_eq!(sessions(&list(Listing { before, ..queued }).await), [3, 2, 1, 0].map(session));
    assert!(list(asked(&DEAD)).await.is_empty());
    let seen = [session(2), session(5), session(9)].into_iter().collect();
    let theirs = Listing { sessions: Some(&seen), ..asked(&NoticeState::STORED) };
    assert_eq!(sessions(&list(theirs).await), [5, 2].map(session));
    assert_eq!(sessions(&list(Listing { limit: 1, ..theirs }).await), [session(5)]);
    assert_eq!(sessions(&list(Listing { before, ..theirs }).await), [session(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_notice_is_dead_until_it_is_tried_again_and_taken() {
    let (target, owner) = (Target::new(&[Act::Reject, Act::Reject], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("chat", &target)], &owner);
    let id = one(&running, "chat:a").await;
    owner.told(NoticeState::Rejected).await;
    let dead = running.outbox.list(&asked(&DEAD)).await.unwrap();
    assert_eq!((dead.len(), &*dead[0].notice.id, &*dead[0].notifier), (1, &*id, "chat"));
    assert_eq!((dead[0].guardrail_id.as_deref(), dead[0].revision), (Some("g1"), Some(1)));
    assert_eq!(running.outbox.dead(), HashMap::from([("chat", 1), (NO_NOTIFIER, 0)]));
    let before = Instant::now();
    for tries in 2..=3 {
        let again = running.outbox.retry(&id).await.unwrap().unwrap().expect("it can be tried again");
        assert_eq!(again.notice.next_try_in_ms, Some(0));
        target.seen_times(tries).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(before.elapsed() < Duration::from_secs(1));
    assert!(running.outbox.list(&asked(&DEAD)).await.unwrap().is_empty());
    assert_eq!(running.outbox.dead()["chat"], 0);
    let why = running.outbox.retry(&id).await.unwrap().unwrap().unwrap_err();
    assert_eq!(why, "it has arrived");
    let (_, stats) = running.outbox.stats_by_notifier().find(|(name, _)| *name == "chat").unwrap();
    assert_eq!((count(&stats.rejected), count(&stats.confirmed), count(&stats.refused)), (2, 1, 0));
    assert_eq!(running.outbox.retry(&Uuid::now_v7().to_string()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_stays_so_however_often_it_is_tried_again() {
    let (target, owner) = (Target::new(&[Act::Unknown, Act::Unknown], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    let id = one(&running, "t").await;
    owner.told(NoticeState::GivenUp).await;
    assert_eq!(running.outbox.list(&asked(&DEAD)).await.unwrap().len(), 1);
    let why = running.outbox.retry(&id).await.unwrap().unwrap().unwrap_err();
    assert!(why.contains("nothing is repeated more than once"), "{why}");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(target.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_notice_that_is_tried_again_is_still_asked_for_whether_it_is_wanted() {
    let (target, owner) = (Target::new(&[Act::Reject], Act::Confirm), Owner::new(Verdict::Send));
    let engine: Arc<dyn Engine> = Arc::new(memory());
    let running = Running::start(&engine, &[("t", &target)], &owner);
    let id = one(&running, "t").await;
    owner.told(NoticeState::Rejected).await;
    *owner.verdict.lock().unwrap() = Verdict::Drop;
    running.outbox.retry(&id).await.unwrap().unwrap().unwrap();
    owner.told(NoticeState::Dropped).await;
    assert_eq!(target.seen().len(), 1);
}

#[test]
fn a_target_is_said_to_reject_once_and_to_take_again_once() {
    let rejecting = Rejecting::default();
    assert!(rejecting.begins("a") && !rejecting.begins("a") && rejecting.begins("b"));
    assert!(rejecting.ends("a") && !rejecting.ends("a") && rejecting.begins("a"));
}
