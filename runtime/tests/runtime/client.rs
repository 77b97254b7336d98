use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use onlooker_protocol::{
    Code,
    code::Refusal,
    picture::{self, PublishedPicture},
    runtime::{GatewayToRuntime, GuardrailOutcome, NumberedCommand, RuntimeCommand, RuntimeToGateway},
    subscriber::{AuthNeed, NewTask, SecretEntry},
    view::Outcome,
};
use onlooker_runtime::RunError;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};

use crate::peer::{Gateway, done, hello, kinds, new_task, runs, soon};

fn answered(revision: u32) -> RuntimeCommand {
    RuntimeCommand::Guardrail(GuardrailOutcome {
        guardrail_id: "g".to_owned(),
        revision,
        asked: 1,
        outcome: Outcome::Answered,
        on_timeout: None,
        text: Some("yes".to_owned()),
        choice: None,
        values: Default::default(),
    })
}

#[tokio::test]
async fn a_task_is_published_from_its_start_to_its_result() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |task| async move {
        task.publish("action", json!({"name": "click"})).await;
        done()
    });
    let mut peer = gateway.assign().await;
    let mut events = peer.command(1, new_task("t1")).await;
    events.extend(peer.events(3 - events.len()).await);
    assert_eq!(kinds(&events), ["task_started", "action", "task_completed"]);
    assert_eq!(events.iter().map(|e| e.n).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(events.iter().all(|e| e.task.as_deref() == Some("t1")));
    assert_eq!(events[0].data, json!({"taskId": "t1"}));
    assert_eq!(events[2].data, json!({"message": "done"}));
}

#[tokio::test]
async fn a_reconnect_sends_again_exactly_what_was_not_acknowledged() {
    let gateway = Gateway::start().await;
    let more = Arc::new(Notify::new());
    let told = more.clone();
    let _running = runs(&gateway, move |task| {
        let more = more.clone();
        async move {
            for n in 2..=6 {
                task.publish("action", json!({"n": n})).await;
            }
            more.notified().await;
            task.publish("action", json!({"n": 7})).await;
            std::future::pending().await
        }
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(6 - before.len()).await;
    peer.accept_up_to(2).await;
    peer.is_quiet().await;
    // Events up to 4 had reached the log when the connection was lost, only those up to 2 were acknowledged.
    drop(peer);
    told.notify_one();
    let mut peer = gateway.register().await;
    let claim = peer.claim().await;
    assert_eq!((claim.claim.as_str(), claim.commands), ("second", 1));
    peer.is_quiet().await;
    peer.claimed("third", 5).await;
    let events = peer.events(3).await;
    assert_eq!(
        events.iter().map(|e| (e.n, e.data["n"].as_u64().unwrap())).collect::<Vec<_>>(),
        [(5, 5), (6, 6), (7, 7)]
    );
    peer.accept_up_to(7).await;
    peer.is_quiet().await;
}

#[tokio::test]
async fn a_command_delivered_twice_is_applied_once() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |_| async { done() });
    let mut peer = gateway.assign().await;
    let mut events = peer.command(1, new_task("t")).await;
    events.extend(peer.events(2 - events.len()).await);
    assert_eq!(kinds(&events), ["task_started", "task_completed"]);
    assert_eq!(peer.command(1, new_task("t")).await, []);
    peer.is_quiet().await;
    drop(peer);
    let mut peer = gateway.register().await;
    assert_eq!(peer.claim().await.commands, 1);
    peer.claimed("third", 3).await;
    assert_eq!(peer.command(1, new_task("t")).await, []);
    peer.is_quiet().await;
}

#[tokio::test]
async fn an_outcome_delivered_twice_is_applied_once() {
    let gateway = Gateway::start().await;
    let (heard, mut hears) = mpsc::channel(8);
    let _running = runs(&gateway, move |task| {
        let heard = heard.clone();
        async move {
            let outcome = task.ask(json!({"guardrailId": "g", "value": "Go on?"})).await;
            heard.send((outcome.revision, outcome.text)).await.unwrap();
            std::future::pending().await
        }
    });
    let mut peer = gateway.assign().await;
    let mut events = peer.command(1, new_task("t")).await;
    events.extend(peer.events(2 - events.len()).await);
    let question = json!({"guardrailId": "g", "value": "Go on?", "type": "human_input_needed", "revision": 1});
    assert_eq!((events[1].kind.as_str(), &events[1].data), ("guardrail_trigger", &question));
    let mut taken = peer.command(2, answered(3)).await;
    taken.extend(peer.events(1 - taken.len()).await);
    assert_eq!((kinds(&taken), &taken[0].data), (vec!["guardrail_taken"], &json!({"guardrailId": "g", "revision": 3})));
    // The same outcome under a new number, as after a change of owner.
    assert_eq!(peer.command(3, answered(3)).await, []);
    peer.is_quiet().await;
    assert_eq!(soon(hears.recv()).await, Some((3, Some("yes".to_owned()))));
    assert!(hears.try_recv().is_err());
}

#[tokio::test]
async fn stop_cancels_the_work_and_the_next_queued_task_runs() {
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let gateway = Gateway::start().await;
    let dropped = Arc::new(AtomicU32::new(0));
    let counter = dropped.clone();
    let _running = runs(&gateway, move |task| {
        let guard = Dropped(counter.clone());
        async move {
            let _guard = guard;
            if task.id() == "endless" { std::future::pending().await } else { done() }
        }
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("endless")).await;
    peer.events(1 - before.len()).await;
    assert_eq!(peer.command(2, new_task("next")).await, []);
    peer.is_quiet().await;
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    let mut events = peer.command(3, RuntimeCommand::Stop { task: None }).await;
    events.extend(peer.events(2 - events.len()).await);
    let named: Vec<_> = events.iter().map(|e| (e.kind.as_str(), e.task.as_deref().unwrap())).collect();
    assert_eq!(named, [("task_started", "next"), ("task_completed", "next")]);
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_paused_task_waits_until_it_is_resumed() {
    let gateway = Gateway::start().await;
    let go = Arc::new(Notify::new());
    let told = go.clone();
    let _running = runs(&gateway, move |task| {
        let go = go.clone();
        async move {
            go.notified().await;
            task.ready().await;
            done()
        }
    });
    let mut peer = gateway.assign().await;
    // The pause follows at once: it may not be lost between the queue and the task's start.
    let command = NumberedCommand { number: 1, command: new_task("t") };
    peer.send(&GatewayToRuntime::Command { session: "s".to_owned(), command }).await;
    let before = peer.command(2, RuntimeCommand::Pause).await;
    peer.events(1 - before.len()).await;
    told.notify_one();
    peer.is_quiet().await;
    let mut events = peer.command(3, RuntimeCommand::Resume).await;
    events.extend(peer.events(1 - events.len()).await);
    assert_eq!(kinds(&events), ["task_completed"]);
}

#[tokio::test]
async fn an_event_that_is_refused_for_good_is_left_out_and_those_behind_it_move_up() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |task| async move {
        task.publish("nonsense", json!({})).await;
        task.publish("action", json!({"name": "click"})).await;
        std::future::pending().await
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(3 - before.len()).await;
    let refusal = Refusal::plain(Code::Invalid);
    peer.send(&GatewayToRuntime::EventRefused { session: "s".to_owned(), n: 1, refusal }).await;
    let again = peer.events(1).await;
    assert_eq!((again[0].n, again[0].kind.as_str()), (2, "action"));
    // What the gateway says of frames that were under way when it refused changes nothing.
    let refusal = Refusal::plain(Code::NumberExpected).with_details(json!({"expected": 2}));
    peer.send(&GatewayToRuntime::EventRefused { session: "s".to_owned(), n: 1, refusal }).await;
    peer.is_quiet().await;
}

#[tokio::test]
async fn a_refused_question_comes_back_as_cancelled() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |task| async move {
        let outcome = task.ask(json!({"value": "Go on?"})).await;
        task.publish("agent", json!({"content": outcome.outcome})).await;
        std::future::pending().await
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(2 - before.len()).await;
    let refusal = Refusal::plain(Code::DefaultAnswerRefused);
    peer.send(&GatewayToRuntime::EventRefused { session: "s".to_owned(), n: 1, refusal }).await;
    let events = peer.events(1).await;
    assert_eq!((events[0].n, &events[0].data), (2, &json!({"content": "cancelled"})));
}

#[tokio::test]
async fn events_that_the_gateway_needs_and_nobody_has_are_told_as_lost() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |_| std::future::pending());
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(1 - before.len()).await;
    peer.accept_up_to(1).await;
    peer.is_quiet().await;
    drop(peer);
    let mut peer = gateway.register().await;
    peer.claim().await;
    peer.claimed("third", 1).await;
    assert!(matches!(peer.receive().await, RuntimeToGateway::NLost { from: 1, .. }));
}

#[tokio::test]
async fn secrets_are_announced_again_before_any_event() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |task| async move {
        let fields = json!([{"id": "user", "secret": false}, {"id": "password"}]);
        task.ask(json!({"guardrailId": "g", "value": "Log in", "fields": fields})).await;
        std::future::pending().await
    });
    let mut peer = gateway.assign().await;
    let entry = SecretEntry { matches: "all".to_owned(), fields: [("pin".to_owned(), "4711".to_owned())].into() };
    let task = NewTask { task_id: Some("t".to_owned()), secrets: vec![entry.clone()], ..NewTask::default() };
    let before = peer.command(1, RuntimeCommand::NewTask { task }).await;
    peer.events(2 - before.len()).await;
    let RuntimeCommand::Guardrail(mut outcome) = answered(1) else { unreachable!() };
    outcome.text = None;
    outcome.values = [("user", "ada"), ("password", "lovelace")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    peer.command(2, RuntimeCommand::Guardrail(outcome)).await;
    drop(peer);
    let mut peer = gateway.register().await;
    peer.claim().await;
    let (session, claim) = ("s".to_owned(), "third".to_owned());
    peer.send(&GatewayToRuntime::Claimed { session, claim, expected: 1, secrets_expected: true }).await;
    let RuntimeToGateway::Secrets { secrets, values, .. } = peer.receive().await else { panic!("secrets first") };
    assert_eq!((secrets, values), (vec![entry], vec!["lovelace".to_owned()]));
    assert_eq!(kinds(&peer.events(3).await), ["task_started", "guardrail_trigger", "guardrail_taken"]);
}

#[tokio::test]
async fn a_picture_goes_out_as_a_numbered_binary_frame() {
    use futures::StreamExt;
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |task| async move {
        task.picture("image/png", Bytes::from_static(b"png"), Value::Null).await;
        std::future::pending().await
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(1 - before.len()).await;
    let message = soon(peer.socket.next()).await.unwrap().unwrap();
    let (header, bytes): (PublishedPicture, _) =
        picture::decode(&message.into_data()).map(|(h, b)| (h, b.to_vec())).unwrap();
    assert_eq!((header.n, header.session.as_str(), bytes.as_slice()), (2, "s", b"png".as_slice()));
}

#[tokio::test]
async fn terminate_ends_the_work_and_then_the_session() {
    let gateway = Gateway::start().await;
    let _running = runs(&gateway, |_| std::future::pending());
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(1 - before.len()).await;
    assert_eq!(peer.command(2, RuntimeCommand::Terminate).await, []);
    assert!(matches!(peer.receive().await, RuntimeToGateway::End { .. }));
    drop(peer);
    // Nothing is claimed after a reconnect.
    gateway.register().await.is_quiet().await;
}

#[tokio::test]
async fn shutdown_ends_running_tasks_with_an_error_and_their_sessions() {
    let gateway = Gateway::start().await;
    let mut running = runs(&gateway, |_| std::future::pending());
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(1 - before.len()).await;
    running.shutdown.cancel();
    let events = peer.events(1).await;
    assert_eq!((events[0].kind.as_str(), &events[0].data["code"]), ("error", &json!("runtime_stopped")));
    assert!(matches!(peer.receive().await, RuntimeToGateway::End { .. }));
    peer.close(1000).await;
    assert!(soon(&mut running.result).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_close_for_good_ends_the_runtime_and_says_what_to_do() {
    let gateway = Gateway::start().await;
    let mut running = runs(&gateway, |_| async { done() });
    gateway.register().await.close(4507).await;
    let error = soon(&mut running.result).await.unwrap().unwrap_err();
    assert!(matches!(&error, RunError::Refused { code: Code::Replaced, .. }));
    assert!(error.to_string().contains("run only one"), "{error}");
}

#[tokio::test]
async fn a_gateway_that_asks_for_a_key_ends_a_runtime_without_one() {
    let gateway = Gateway::start().await;
    let mut running = runs(&gateway, |_| async { done() });
    gateway.accept().await.send(&hello(AuthNeed::Required)).await;
    assert!(matches!(soon(&mut running.result).await.unwrap(), Err(RunError::KeyNeeded)));
}

#[tokio::test]
async fn a_released_session_is_let_go_with_its_work() {
    let gateway = Gateway::start().await;
    let (gone, mut is_gone) = mpsc::channel::<()>(1);
    let _running = runs(&gateway, move |_| {
        let gone = gone.clone();
        async move {
            let _gone = gone;
            std::future::pending().await
        }
    });
    let mut peer = gateway.assign().await;
    let before = peer.command(1, new_task("t")).await;
    peer.events(1 - before.len()).await;
    let refusal = Refusal::plain(Code::Fenced);
    peer.send(&GatewayToRuntime::Released { session: "s".to_owned(), refusal }).await;
    peer.is_quiet().await;
    drop(peer);
    gateway.register().await.is_quiet().await;
    assert!(is_gone.try_recv().is_err());
}
