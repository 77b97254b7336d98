//! Each rule of watching, at every surface that it is about.

use futures::future::join_all;
use onlooker::config::key::Scope;
use onlooker_protocol::subscriber::{Attention, Role, Subscribe};
use tokio::time::Instant;

use super::{
    lookers::{ALL, ATTENTIVE, CONNECTED, End, POLLS},
    *,
};

/// Does the same at several surfaces at once, each in a session of its own.
async fn each(surfaces: &[Surface], scene: impl AsyncFn(Surface)) {
    join_all(surfaces.iter().map(|surface| Box::pin(scene(*surface)))).await;
}

/// The heartbeat is a minute away: only a ping behind the question itself can have proved it.
#[tokio::test]
async fn whoever_looks_covers_a_question_at_once_at_every_surface() {
    let mut config = calm(LONG, LONG);
    (config.times.ping_every, config.times.live_window) = (LONG, 2 * LONG);
    config.times.poll_window = LONG;
    let stage = Stage::begin(config).await;
    each(&ALL, async |surface| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        stage.wait_counts(&session, (1, 1)).await;
        let asked = stage.ask(&session, "g").await;
        stage.wait_why(&session, "g", COVERED).await;
        let one = &stage.watchers(&session).await["watchers"][0];
        assert_eq!((&one["via"], &one["counts"], &one["able"]), (&json!(surface.via()), &json!(true), &json!(true)));
        let proved: Position = one["proved"].as_str().unwrap().parse().unwrap();
        assert!(proved.offset >= asked.offset, "{surface:?}: {one}");
        assert_eq!(stage.told("guardrail.opened", &session), 0, "{surface:?}");
        drop(looker);
    })
    .await;
    stage.gateway.stop().await;
}

/// The same for a result: who has had it settles it, and then may leave.
#[tokio::test]
async fn whoever_looks_settles_a_result_at_once_at_every_surface() {
    let mut config = calm(Duration::ZERO, LONG);
    (config.times.ping_every, config.times.live_window) = (LONG, 2 * LONG);
    config.times.poll_window = Duration::from_secs(2);
    let stage = Stage::begin(config).await;
    each(&ALL, async |surface| {
        let session = stage.session_of(ReachOutMode::Full).await;
        let looker = stage.look(surface, &session).await;
        stage.wait_counts(&session, (1, 1)).await;
        let ended = stage.publish(&session, "task_completed", json!({ "message": "done" })).await;
        // For a page proof of a result shows in what is sent, not in the list, which is of questions.
        if !POLLS.contains(&surface) {
            let proves = || async {
                let one = &stage.watchers(&session).await["watchers"][0];
                one["proved"].as_str().is_some_and(|at| at.parse::<Position>().unwrap().offset >= ended.offset)
            };
            wait_until("the result is proved", proves).await;
        } else {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        looker.end(End::Reset).await;
        stage.wait_counts(&session, (0, 0)).await;
    })
    .await;
    // What nobody has had comes, and so would have come what was sent for the others.
    let unseen = stage.session_of(ReachOutMode::Full).await;
    stage.publish(&unseen, "task_completed", json!({ "message": "unseen" })).await;
    let told = stage.receiver.wait_for("task.completed", 1).await;
    assert_eq!((told.len(), &told[0].body["session"]), (1, &json!(unseen)));
    stage.gateway.stop().await;
}

#[tokio::test]
async fn who_reads_a_page_with_a_later_result_has_not_had_an_earlier_one() {
    let stage = Stage::begin(calm(LONG, Duration::from_millis(600))).await;
    let session = stage.session_of(ReachOutMode::Full).await;
    let begin = stage.publish(&session, "agent", json!({ "content": "busy" })).await;
    // Somebody reads, so that nobody is told at once, and begins behind the first result.
    stage.get(&format!("/v1/sessions/{session}/events?since={begin}")).await;
    stage.publish(&session, "task_completed", json!({ "message": "first" })).await;
    stage.publish(&session, "task_started", json!({ "taskId": "u" })).await;
    let between = stage.publish(&session, "agent", json!({ "content": "busy again" })).await;
    stage.publish(&session, "task_completed", json!({ "message": "second" })).await;
    let page = stage.get(&format!("/v1/sessions/{session}/events?since={between}")).await;
    assert_eq!(page["events"].as_array().unwrap().len(), 1, "{page}");
    let told = stage.receiver.wait_for("task.completed", 1).await;
    assert_eq!((told.len(), &told[0].body["result"]["message"]), (1, &json!("first")));
    stage.gateway.stop().await;
}

/// The connection stays, and so may everything below its code.
#[tokio::test]
async fn whose_code_stands_still_is_nobody_at_every_surface() {
    let mut config = short();
    config.times.attention_lease = LONG;
    let stage = Stage::begin(config).await;
    each(&CONNECTED, async |surface| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        stage.wait_counts(&session, (1, 1)).await;
        let frozen = Instant::now();
        looker.freeze();
        stage.wait_reason(&session, (false, SILENT)).await;
        let took = frozen.elapsed();
        assert!(took < Duration::from_secs(4), "{surface:?}: {took:?} for a window of 2 s");
        drop(looker);
    })
    .await;
    stage.gateway.stop().await;
}

#[tokio::test]
async fn a_poller_counts_until_its_window_is_over_and_leaves_no_grace() {
    let mut config = short();
    (config.times.grace, config.times.first_look) = (LONG, LONG);
    let stage = Stage::begin(config).await;
    each(&POLLS, async |surface| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        stage.wait_reason(&session, (true, "it read the session within the poll window")).await;
        stage.ask(&session, "g").await;
        stage.wait_why(&session, "g", COVERED).await;
        let stopped = Instant::now();
        looker.freeze();
        stage.wait_told(&session).await;
        // The last response came at most one interval, and what a request takes, before.
        assert!(stopped.elapsed() >= Duration::from_millis(500), "{surface:?}: {:?}", stopped.elapsed());
        assert_eq!(stage.watchers(&session).await["counts"]["following"], 0);
    })
    .await;
    stage.gateway.stop().await;
}

#[tokio::test]
async fn whoever_can_say_that_nobody_looks_is_believed() {
    let stage = Stage::begin(calm(LONG, LONG)).await;
    each(&ATTENTIVE, async |surface| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        let saying = "its code answers, and it says that somebody is looking";
        stage.wait_reason(&session, (true, saying)).await;
        looker.attend(false);
        stage.wait_reason(&session, (false, NO_WORD)).await;
        looker.attend(true);
        stage.wait_reason(&session, (true, saying)).await;
    })
    .await;
    stage.gateway.stop().await;
}

#[tokio::test]
async fn the_word_that_somebody_looks_is_a_lease_at_every_surface_that_has_it() {
    let mut config = calm(LONG, LONG);
    config.times.attention_lease = Duration::from_millis(1_500);
    let stage = Stage::begin(config).await;
    each(&ATTENTIVE, async |surface| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        stage.wait_counts(&session, (1, 1)).await;
        looker.freeze();
        stage.wait_reason(&session, (false, RUN_OUT)).await;
    })
    .await;
    stage.gateway.stop().await;
}

#[tokio::test]
async fn who_cannot_say_it_looks_while_its_code_answers() {
    let mut config = short();
    config.times.attention_lease = Duration::from_millis(100);
    let stage = Stage::begin(config).await;
    each(&[Surface::SocketIo, Surface::SocketIoPolling], async |surface| {
        let session = stage.session().await;
        let _looker = stage.look(surface, &session).await;
        stage.wait_reason(&session, (true, "its code answers")).await;
    })
    .await;
    stage.gateway.stop().await;
}

#[tokio::test]
async fn an_observer_never_counts_and_covers_nothing() {
    let stage = Stage::begin(calm(LONG, LONG)).await;
    let session = stage.session().await;
    let mut observer = stage.gateway.subscriber().await;
    let (role, attention) = (Role::Observer, Attention::Active);
    observer.subscribe(Subscribe { session: Some(session.clone()), role, attention, ..follow() }).await;
    observer.live().await;
    let _observer = observer.keep();
    stage.wait_reason(&session, (false, "it is an observer")).await;
    stage.ask(&session, "g").await;
    stage.wait_told(&session).await;
    stage.gateway.stop().await;
}

/// Where the id alone opens nothing, a key that may not answer makes nobody able: the owner's phone rings.
#[tokio::test]
async fn who_may_not_answer_watches_and_silences_nobodys_phone_at_every_surface() {
    let keys: &[(&str, &[Scope])] = &[("runtime", &[Scope::Publish]), ("reader", &[Scope::Watch])];
    let mut config = with_keys(calm(LONG, LONG), keys);
    config.webrun.require_key = true;
    config.times.poll_window = LONG;
    let stage = Stage::with_key(config, Some("key-runtime"), Some("key-reader")).await;
    each(&ALL, async |surface| {
        let session = stage.session().await;
        let _looker = Looker::look(&stage.gateway.url, surface, &session, Some("key-reader")).await;
        stage.wait_counts(&session, (1, 0)).await;
        stage.ask(&session, "g").await;
        stage.wait_told(&session).await;
        let one = &stage.watchers(&session).await["watchers"][0];
        assert_eq!((&one["who"], &one["able"], &one["counts"]), (&json!("reader"), &json!(false), &json!(true)));
    })
    .await;
    stage.gateway.stop().await;
}

/// Only reading counts, whatever else a client asks for.
#[tokio::test]
async fn starts_commands_answers_lists_and_health_are_no_looks() {
    let stage = Stage::begin(calm(LONG, LONG)).await;
    let session = stage.session().await;
    stage.ask(&session, "g").await;
    stage.ask(&session, "h").await;
    let paths = [
        "/v1/sessions".to_owned(),
        format!("/v1/sessions/{session}"),
        format!("/v1/sessions/{session}/watchers"),
        "/v1/guardrails?state=open".to_owned(),
        format!("/v1/guardrails/g?session={session}"),
        format!("/v1/guardrails/g/why?session={session}"),
        format!("/start/session-status/{session}"),
        format!("/view/{session}"),
        "/health".to_owned(),
        "/healthz".to_owned(),
        "/readyz".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in paths {
        stage.get(&path).await;
        assert_eq!(stage.watchers(&session).await["counts"]["following"], 0, "{path}");
    }
    let answer = |key: &str| json!({ "session": session, "revision": 1, "idempotencyKey": key, "action": "decline" });
    let message = |action: Value| json!({ "sessionId": session, "message": action });
    let posts = [
        ("/v1/guardrails/g/claim".to_owned(), json!({ "session": session, "revision": 1 })),
        ("/v1/guardrails/g/release".to_owned(), json!({ "session": session, "revision": 1 })),
        ("/v1/guardrails/g/answer".to_owned(), answer("k")),
        (format!("/v1/sessions/{session}/commands"), json!({ "command": "pause" })),
        ("/start/send-message".to_owned(), message(json!({ "actionType": "guardrail", "prompt": "yes" }))),
        ("/start/send-message".to_owned(), message(json!({ "actionType": "state", "newState": "resume" }))),
    ];
    for (path, body) in posts {
        let (status, answered) = stage.gateway.post(&path, body).await;
        assert!(status < 500, "{path}: {answered}");
        assert_eq!(stage.watchers(&session).await["counts"]["following"], 0, "{path}: {answered}");
    }
    stage.gateway.stop().await;
}

/// The body that an inline answer carries is proof of the question in it; its reader is no longer there, and counts
/// until the window is over.
#[tokio::test]
async fn an_inline_answer_proves_the_question_that_it_carries() {
    let mut config = calm(LONG, LONG);
    config.times.poll_window = Duration::from_secs(2);
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook(config, &receiver)).await;
    let mut runtime = gateway.runtime().await;
    let run = gateway.post("/start/run-task", json!({ "task": { "prompt": "Buy a lamp", "taskId": "t" } }));
    let script = async {
        let (session, _) = runtime.take_assigned().await;
        runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
        runtime.ask(&session, "g", json!({})).await;
        session
    };
    let ((status, body), session) = tokio::join!(run, script);
    assert_eq!((status, &body["guardrailId"]), (200, &json!("g")), "{body}");
    gateway.wait_why(&session, "g", COVERED).await;
    assert!(receiver.got().is_empty());
    receiver.wait_for("guardrail.opened", 1).await;
    gateway.stop().await;
}

/// With a grace that outlasts the test: whoever left none is followed by a notice at once.
#[tokio::test]
async fn only_a_word_that_nobody_comes_back_leaves_no_grace() {
    let mut config = calm(LONG, LONG);
    config.times.poll_window = Duration::from_millis(800);
    let stage = Stage::begin(config).await;
    let table = [
        (Surface::Native, End::Clean, false),
        (Surface::Native, End::Word, false),
        (Surface::Native, End::Going, true),
        (Surface::Native, End::Reset, true),
        (Surface::SocketIo, End::Clean, false),
        (Surface::SocketIo, End::Word, true),
        (Surface::SocketIo, End::Going, true),
        (Surface::SocketIo, End::Reset, true),
        (Surface::SocketIoPolling, End::Clean, false),
        (Surface::SocketIoPolling, End::Word, true),
        (Surface::SocketIoPolling, End::Reset, true),
        (Surface::Stream, End::Clean, true),
        (Surface::Stream, End::Reset, true),
        (Surface::View, End::Clean, true),
        (Surface::View, End::Reset, true),
        (Surface::Page, End::Reset, false),
        (Surface::Task, End::Reset, false),
    ];
    let scene = async |surface: Surface, end: End, grace: bool| {
        let session = stage.session().await;
        let looker = stage.look(surface, &session).await;
        stage.wait_counts(&session, (1, 1)).await;
        stage.ask(&session, "g").await;
        stage.wait_why(&session, "g", COVERED).await;
        looker.end(end).await;
        if grace {
            stage.wait_why(&session, "g", GRACE).await;
            assert_eq!(stage.told("guardrail.opened", &session), 0, "{surface:?} {end:?}");
        } else {
            stage.wait_told(&session).await;
            let why = stage.why(&session, "g").await;
            assert!(!why.iter().any(|why| why.contains(GRACE)), "{surface:?} {end:?}: {why:?}");
        }
    };
    join_all(table.into_iter().map(|(surface, end, grace)| Box::pin(scene(surface, end, grace)))).await;
    stage.gateway.stop().await;
}

/// A desktop, a phone and a script with the same key are three lines in the list; whichever of them has the question
/// covers it, and only the end of the last one is the end of the cover.
#[tokio::test]
async fn of_several_connections_of_one_person_the_last_one_counts() {
    let mut config = calm(LONG, LONG);
    (config.times.ping_every, config.times.live_window) = (Duration::from_millis(700), Duration::from_secs(2));
    config.times.poll_window = Duration::from_millis(800);
    let keys: &[(&str, &[Scope])] = &[("runtime", &[Scope::Publish]), ("ada", &[Scope::Watch, Scope::Answer])];
    let stage = Stage::with_key(with_keys(config, keys), Some("key-runtime"), Some("key-ada")).await;
    let session = stage.session().await;
    let look = async |surface| Looker::look(&stage.gateway.url, surface, &session, Some("key-ada")).await;
    let (desktop, second_tab) = (look(Surface::Native).await, look(Surface::Native).await);
    let (phone, script) = (look(Surface::SocketIo).await, look(Surface::Page).await);
    stage.wait_counts(&session, (4, 4)).await;
    let list = stage.watchers(&session).await;
    let who: Vec<_> = list["watchers"].as_array().unwrap().iter().map(|one| one["who"].clone()).collect();
    assert_eq!(who, vec![json!("ada"); 4], "{list}");
    stage.ask(&session, "g").await;
    stage.wait_why(&session, "g", COVERED).await;
    second_tab.freeze();
    stage.wait_counts(&session, (3, 3)).await;
    desktop.end(End::Clean).await;
    stage.wait_counts(&session, (2, 2)).await;
    script.freeze();
    stage.wait_counts(&session, (1, 1)).await;
    assert_eq!(stage.told("guardrail.opened", &session), 0, "the phone is there");
    assert!(stage.why(&session, "g").await.last().unwrap().contains(COVERED));
    phone.end(End::Clean).await;
    // The tab that froze left abnormally, with proof, longer ago than no grace; a grace of a minute is still running.
    stage.wait_why(&session, "g", GRACE).await;
    stage.gateway.stop().await;
}
