//! Questions and their answers: one wins, everybody hears the same, the runtime hears it once.

use std::time::Duration;

use onlooker_protocol::{
    code::Code,
    runtime::{GuardrailOutcome, OpenSession, RuntimeCommand},
    view::{OnTimeout, Outcome},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::*;

const LONG: Duration = Duration::from_secs(60);

async fn begin() -> (TestGateway, Runtime, String) {
    with_config(calm(Duration::from_millis(250), LONG)).await
}

async fn with_config(config: onlooker::config::Config) -> (TestGateway, Runtime, String) {
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (gateway, runtime, session)
}

fn body(session: &str, key: &str, text: &str) -> Value {
    json!({ "session": session, "revision": 1, "idempotencyKey": key, "action": "submit", "text": text })
}

fn frame(session: &str, guardrail: &str, key: &str, text: &str) -> Value {
    let mut frame = body(session, key, text);
    (frame["type"], frame["guardrailId"]) = (json!("answer"), json!(guardrail));
    frame
}

async fn post_answer(gateway: &TestGateway, guardrail: &str, body: Value) -> (u16, Value) {
    gateway.post(&format!("/v1/guardrails/{guardrail}/answer"), body).await
}

async fn shown(gateway: &TestGateway, session: &str, guardrail: &str) -> Value {
    gateway.get(&format!("/v1/guardrails/{guardrail}?session={session}")).await.1["guardrail"].clone()
}

async fn command(gateway: &TestGateway, session: &str, body: Value) -> (u16, Value) {
    gateway.post(&format!("/v1/sessions/{session}/commands"), body).await
}

/// Everything that the runtime was told of guardrails, after an event of its own has made the round trip.
async fn outcomes(runtime: &mut Runtime, session: &str) -> Vec<GuardrailOutcome> {
    runtime.publish(session, "agent", json!({ "content": "still here" })).await;
    let told = std::mem::take(&mut runtime.seen);
    told.into_iter()
        .filter_map(|frame| match frame {
            onlooker_protocol::runtime::GatewayToRuntime::Command { command, .. } => match command.command {
                RuntimeCommand::Guardrail(outcome) => Some(outcome),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

fn assert_code(refused: &(u16, Value), code: Code) {
    assert_eq!((refused.0, &refused.1["error"]), (code.http_status(), &json!(code.name())), "{}", refused.1);
}

/// Guards `Guard::CompareAndSet`: fails under `ONLOOKER_SABOTAGE=compare_and_set`.
#[tokio::test]
async fn of_two_answers_at_the_same_instant_exactly_one_wins() {
    let (gateway, mut runtime, session) = begin().await;
    let (mut ada, mut bob) = (gateway.subscriber().await, gateway.subscriber().await);
    for round in 0..30 {
        let id = format!("g{round}");
        runtime.ask(&session, &id, json!({})).await;
        let (first, second) = if round % 2 == 0 {
            let frames = (frame(&session, &id, "a", "from ada"), frame(&session, &id, "b", "from bob"));
            let (a, b) = tokio::join!(ada.request(frames.0), bob.request(frames.1));
            (a.map(drop).map_err(|refusal| json!(refusal)), b.map(drop).map_err(|refusal| json!(refusal)))
        } else {
            let asked = ada.request(frame(&session, &id, "a", "from ada"));
            let (a, b) = tokio::join!(asked, post_answer(&gateway, &id, body(&session, "b", "from rest")));
            (a.map(drop).map_err(|refusal| json!(refusal)), if b.0 == 200 { Ok(()) } else { Err(b.1) })
        };
        let refusal = match (first, second) {
            (Ok(()), Err(refusal)) | (Err(refusal), Ok(())) => refusal,
            both => panic!("round {round}: {both:?}"),
        };
        assert_eq!(refusal["error"], "already_answered");
        let winner = shown(&gateway, &session, &id).await["resolution"].clone();
        assert_eq!((&refusal["details"]["by"], &refusal["details"]["via"]), (&winner["by"], &winner["via"]));
        let told = outcomes(&mut runtime, &session).await;
        assert_eq!(told.len(), 1, "round {round}");
        assert_eq!((told[0].guardrail_id.as_str(), told[0].outcome), (id.as_str(), Outcome::Answered));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_same_answer_again_succeeds_again_and_another_one_is_refused() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.ask(&session, "g", json!({})).await;
    let first = post_answer(&gateway, "g", body(&session, "k", "yes")).await;
    assert_eq!(first.0, 200, "{}", first.1);
    assert_eq!(post_answer(&gateway, "g", body(&session, "k", "yes")).await, first);
    assert_code(&post_answer(&gateway, "g", body(&session, "k", "no")).await, Code::AlreadyAnswered);
    assert_code(&post_answer(&gateway, "g", body(&session, "other", "yes")).await, Code::AlreadyAnswered);
    assert_eq!(outcomes(&mut runtime, &session).await.len(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_at_the_deadline_ends_the_same_for_everybody() {
    let (gateway, mut runtime, session) = begin().await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    for round in 0..6 {
        let id = format!("g{round}");
        runtime.ask(&session, &id, json!({ "expiresIn": 100, "onTimeout": "fail" })).await;
        sleep(Duration::from_millis(85 + 5 * round)).await;
        let (status, answered) = post_answer(&gateway, &id, body(&session, "k", "yes")).await;
        let outcome = runtime.outcome().await;
        let resolved = subscriber.event("guardrail_resolved").await;
        let view = shown(&gateway, &session, &id).await;
        let (expected, word) = match status {
            200 => (Outcome::Answered, "answered"),
            _ => (Outcome::TimedOut, "timed_out"),
        };
        assert_eq!((outcome.guardrail_id.as_str(), outcome.outcome), (id.as_str(), expected), "{answered}");
        assert_eq!((&resolved["outcome"], &view["resolution"]["outcome"]), (&json!(word), &json!(word)));
        assert_eq!(outcomes(&mut runtime, &session).await.len(), 0);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn each_way_to_time_out_says_what_the_runtime_is_to_do() {
    let (gateway, mut runtime, session) = begin().await;
    let table = [
        ("fail", OnTimeout::Fail, None),
        ("deny", OnTimeout::Deny, None),
        ("default_answer", OnTimeout::DefaultAnswer, Some("take the train")),
    ];
    for (name, on_timeout, text) in table {
        let more = json!({ "expiresIn": 50, "onTimeout": name, "defaultAnswer": "take the train" });
        runtime.ask(&session, name, more).await;
        let outcome = runtime.outcome().await;
        assert_eq!((outcome.guardrail_id.as_str(), outcome.outcome), (name, Outcome::TimedOut));
        assert_eq!((outcome.on_timeout, outcome.text.as_deref()), (Some(on_timeout), text));
        assert_eq!(shown(&gateway, &session, name).await["state"], "expired");
        assert_code(&post_answer(&gateway, name, body(&session, "k", "late")).await, Code::GuardrailClosed);
    }
    // One that keeps waiting does so beyond what it says itself.
    runtime.ask(&session, "patient", json!({ "expiresIn": 50 })).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(post_answer(&gateway, "patient", body(&session, "k", "yes")).await.0, 200);
    gateway.stop().await;
}

/// The refusal of the next event of this session.
async fn refused(runtime: &mut Runtime, session: &str, data: Value) -> onlooker_protocol::Code {
    let n = runtime.send_event(session, "guardrail_trigger", data).await;
    let refusal = runtime
        .until("a refusal", |frame| match frame {
            onlooker_protocol::runtime::GatewayToRuntime::EventRefused { n: last, refusal, .. } if last + 1 == n => {
                Some(refusal.clone())
            }
            _ => None,
        })
        .await;
    // Its number is free again.
    *runtime.numbers.get_mut(session).unwrap() -= 1;
    refusal.code
}

fn trigger(id: &str, more: Value) -> Value {
    let mut data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id });
    let Value::Object(more) = more else { panic!("members") };
    data.as_object_mut().unwrap().extend(more);
    data
}

#[tokio::test]
async fn nothing_of_weight_is_approved_by_silence() {
    let mut config = calm(LONG, LONG);
    config.guardrails.allow_default_answer = vec![onlooker_protocol::view::GuardrailKind::Policy];
    let (gateway, mut runtime, session) = with_config(config).await;
    let by_silence = |kind: &str| json!({ "kind": kind, "onTimeout": "default_answer", "defaultAnswer": "yes" });
    for kind in ["purchase", "security"] {
        let code = refused(&mut runtime, &session, trigger(kind, by_silence(kind))).await;
        assert_eq!(code, Code::DefaultAnswerRefused);
    }
    runtime.ask(&session, "policy", by_silence("policy")).await;
    runtime.ask(&session, "captcha", by_silence("captcha")).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_trigger_that_is_repeated_gives_the_outcome_again_and_asks_no_second_time() {
    let (gateway, mut runtime, session) = begin().await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    runtime.ask(&session, "g", json!({})).await;
    runtime.ask(&session, "g", json!({})).await;
    assert_eq!(post_answer(&gateway, "g", body(&session, "k", "yes")).await.0, 200);
    assert_eq!(runtime.outcome().await.text.as_deref(), Some("yes"));
    runtime.ask(&session, "g", json!({})).await;
    assert_eq!(runtime.outcome().await.text.as_deref(), Some("yes"));
    runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    runtime.ask(&session, "g", json!({})).await;
    let again = runtime.outcome().await;
    assert_eq!((again.outcome, again.text), (Outcome::Answered, None), "the payload is gone once it was taken");
    subscriber.event("guardrail_taken").await;
    let triggers = subscriber.seen.iter().filter(|frame| {
        matches!(frame, onlooker_protocol::subscriber::GatewayToSubscriber::Event(event) if event.event.kind == "guardrail_trigger")
    });
    assert_eq!(triggers.count(), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn revisions_only_go_up_and_an_answer_to_an_old_one_is_stale() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.ask(&session, "g", json!({ "revision": 2 })).await;
    assert_eq!(refused(&mut runtime, &session, trigger("g", json!({ "revision": 1 }))).await, Code::LowerRevision);
    runtime.ask(&session, "g", json!({ "revision": 5, "value": "Really?" })).await;
    let mut stale = body(&session, "k", "yes");
    stale["revision"] = json!(2);
    let refusal = post_answer(&gateway, "g", stale.clone()).await;
    assert_code(&refusal, Code::StaleRevision);
    assert_eq!(refusal.1["details"]["revision"], 5);
    stale["revision"] = json!(9);
    assert_code(&post_answer(&gateway, "g", stale.clone()).await, Code::Invalid);
    stale["revision"] = json!(5);
    assert_eq!(post_answer(&gateway, "g", stale).await.0, 200);
    let told = outcomes(&mut runtime, &session).await;
    assert_eq!(told.iter().map(|o| (o.revision, o.asked)).collect::<Vec<_>>(), [(5, 5)]);
    gateway.stop().await;
}

#[tokio::test]
async fn what_ends_the_need_cancels_the_question() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.ask(&session, "withdrawn", json!({})).await;
    runtime.publish(&session, "guardrail_withdrawn", json!({ "guardrailId": "withdrawn" })).await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t1" })).await;
    runtime.ask(&session, "completed", json!({})).await;
    runtime.publish(&session, "task_completed", json!({ "message": "done" })).await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t2" })).await;
    runtime.ask(&session, "stopped", json!({})).await;
    assert_eq!(command(&gateway, &session, json!({ "command": "stop" })).await.0, 200);
    runtime.ask(&session, "terminated", json!({})).await;
    assert_eq!(command(&gateway, &session, json!({ "command": "terminate" })).await.0, 200);
    let mut cancelled = Vec::new();
    while cancelled.len() < 3 {
        let outcome = runtime.outcome().await;
        assert_eq!(outcome.outcome, Outcome::Cancelled);
        cancelled.push(outcome.guardrail_id);
    }
    assert_eq!(cancelled, ["withdrawn", "completed", "stopped"]);
    // The end of the session says it all.
    runtime.command("the end", |command| matches!(command, RuntimeCommand::Terminate).then_some(())).await;
    cancelled.push("terminated".to_owned());
    let vias = ["runtime", "task", "task", "session"];
    for (id, via) in cancelled.iter().zip(vias) {
        let view = shown(&gateway, &session, id).await;
        assert_eq!((&view["state"], &view["resolution"]["via"]), (&json!("cancelled"), &json!(via)));
        assert_code(&post_answer(&gateway, id, body(&session, "k", "late")).await, Code::GuardrailClosed);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_accepted_answer_whose_task_stops_is_cancelled_and_its_answerer_sees_it() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    runtime.ask(&session, "g", json!({})).await;
    assert_eq!(post_answer(&gateway, "g", body(&session, "k", "yes")).await.0, 200);
    command(&gateway, &session, json!({ "command": "stop" })).await;
    assert_eq!(runtime.outcome().await.outcome, Outcome::Answered);
    assert_eq!(runtime.outcome().await.outcome, Outcome::Cancelled);
    assert_eq!(shown(&gateway, &session, "g").await["state"], "cancelled");
    let again = post_answer(&gateway, "g", body(&session, "k", "yes")).await;
    assert_eq!((again.0, &again.1["guardrail"]["state"]), (200, &json!("cancelled")));
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_waits_for_a_runtime_that_is_away() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, claim) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    drop(runtime);
    wait_until("the runtime is away", || async {
        gateway.get(&format!("/v1/sessions/{session}")).await.1["state"]["status"] == "orphaned"
    })
    .await;
    assert_eq!(post_answer(&gateway, "g", body(&session, "k", "yes")).await.0, 200);
    let mut runtime = gateway.runtime().await;
    let (_, expected) = runtime.claim(&session, &claim).await;
    assert_eq!(expected, 2);
    runtime.numbers.insert(session.clone(), expected - 1);
    assert_eq!(runtime.outcome().await.text.as_deref(), Some("yes"));
    assert_eq!(outcomes(&mut runtime, &session).await.len(), 0);
    gateway.stop().await;
}

#[tokio::test]
async fn one_claim_at_a_time_which_hinders_nobodys_answer() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.ask(&session, "g", json!({})).await;
    let (mut ada, mut bob) = (gateway.subscriber().await, gateway.subscriber().await);
    let claim = |kind: &str| json!({ "type": kind, "session": session, "guardrailId": "g", "revision": 1 });
    let first = ada.request(claim("claim")).await.unwrap();
    let until = first["guardrail"]["claim"]["until"].as_str().unwrap().to_owned();
    let refusal = bob.request(claim("claim")).await.unwrap_err();
    assert_eq!((refusal.code, &refusal.details["by"]), (Code::Claimed, &first["guardrail"]["claim"]["by"]));
    assert_eq!(bob.request(claim("release")).await.unwrap_err().code, Code::Claimed);
    sleep(Duration::from_millis(20)).await;
    let renewed = ada.request(claim("claim")).await.unwrap();
    assert!(renewed["guardrail"]["claim"]["until"].as_str().unwrap() > until.as_str());
    assert!(ada.request(claim("release")).await.unwrap()["guardrail"].get("claim").is_none());
    bob.request(claim("claim")).await.unwrap();
    ada.request(frame(&session, "g", "k", "yes")).await.unwrap();
    assert_eq!(bob.request(claim("claim")).await.unwrap_err().code, Code::AlreadyAnswered);
    gateway.stop().await;
}

#[tokio::test]
async fn a_claim_ends_a_moment_after_its_connection_and_one_by_rest_stays() {
    let (gateway, mut runtime, session) = begin().await;
    runtime.ask(&session, "socket", json!({})).await;
    runtime.ask(&session, "rest", json!({})).await;
    let by_rest = json!({ "session": session, "revision": 1 });
    assert_eq!(gateway.post("/v1/guardrails/rest/claim", by_rest.clone()).await.0, 200);
    let mut ada = gateway.subscriber().await;
    let claim = json!({ "type": "claim", "session": session, "guardrailId": "socket", "revision": 1 });
    ada.request(claim).await.unwrap();
    ada.vanish();
    wait_until("its claim has ended", || async { shown(&gateway, &session, "socket").await.get("claim").is_none() })
        .await;
    assert!(shown(&gateway, &session, "rest").await.get("claim").is_some());
    gateway.stop().await;
}

#[tokio::test]
async fn control_pauses_is_one_persons_and_its_token_fences() {
    let mut config = calm(LONG, LONG);
    config.times.control_grace = Duration::from_millis(250);
    let (gateway, mut runtime, session) = with_config(config).await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    runtime.ask(&session, "g", json!({})).await;
    let (mut ada, mut bob) = (gateway.subscriber().await, gateway.subscriber().await);
    let take = json!({ "type": "command", "session": session, "command": "take_control" });
    let input = |token: Value| json!({ "type": "command", "session": session, "command": "interaction", "action": { "name": "click" }, "token": token });
    bob.request(input(Value::Null)).await.expect("with nobody in control an input passes");
    let token = ada.request(take.clone()).await.unwrap()["token"].clone();
    let state = gateway.get(&format!("/v1/sessions/{session}")).await.1["state"].clone();
    assert_eq!((&state["tasks"][0]["status"], &state["guardrails"][0]["state"]), (&json!("paused"), &json!("open")));
    assert_eq!(bob.request(take.clone()).await.unwrap_err().code, Code::ControlHeld);
    assert_eq!(bob.request(input(Value::Null)).await.unwrap_err().code, Code::ControlHeld);
    ada.request(input(token.clone())).await.unwrap();
    let release = json!({ "type": "command", "session": session, "command": "release_control", "token": token });
    ada.request(release).await.unwrap();
    let state = gateway.get(&format!("/v1/sessions/{session}")).await.1["state"].clone();
    assert_eq!(state["tasks"][0]["status"], "waiting", "the question is still open");
    let newer = bob.request(take.clone()).await.unwrap()["token"].clone();
    assert!(newer.as_u64() > token.as_u64());
    bob.vanish();
    wait_until("the grace of the lost connection is over", || async {
        gateway.get(&format!("/v1/sessions/{session}")).await.1["state"].get("control").is_none()
    })
    .await;
    ada.request(take).await.unwrap();
    assert_eq!(ada.request(input(token)).await.unwrap_err().code, Code::NotInControl, "an old token");
    gateway.stop().await;
}

#[tokio::test]
async fn a_lease_of_control_runs_out_unless_inputs_renew_it() {
    let mut config = calm(LONG, LONG);
    config.times.control_lease = Duration::from_millis(600);
    config.times.control_grace = Duration::from_millis(100);
    let (gateway, mut runtime, session) = with_config(config).await;
    runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    let mut subscriber = gateway.subscriber().await;
    subscriber.watch(&session).await;
    let (_, taken) = command(&gateway, &session, json!({ "command": "take_control" })).await;
    assert!(taken["token"].is_u64(), "{taken}");
    assert_eq!(subscriber.event("control_released").await["reason"], "expired");
    assert_eq!(subscriber.event("task_resumed").await["taskId"], "t");
    runtime.command("release", |c| matches!(c, RuntimeCommand::ReleaseControl).then_some(())).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_guardrail_must_be_known_and_named_without_doubt() {
    let (gateway, mut runtime, session) = begin().await;
    assert_code(&post_answer(&gateway, "none", body(&session, "k", "yes")).await, Code::UnknownGuardrail);
    let (other, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    let unnamed = json!({ "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" });
    let (status, found) = gateway.get("/v1/guardrails/g").await;
    assert_eq!((status, &found["guardrail"]["session"]), (200, &json!(session)));
    runtime.ask(&other, "g", json!({})).await;
    assert_code(&post_answer(&gateway, "g", unnamed).await, Code::Ambiguous);
    assert_eq!(post_answer(&gateway, "g", body(&other, "k", "yes")).await.0, 200);
    assert_eq!(shown(&gateway, &session, "g").await["state"], "open");
    gateway.stop().await;
}

#[tokio::test]
async fn so_many_questions_are_open_at_once_and_no_more() {
    let (gateway, mut runtime, session) = begin().await;
    for number in 0..16 {
        runtime.ask(&session, &format!("g{number}"), json!({})).await;
    }
    assert_eq!(refused(&mut runtime, &session, trigger("more", json!({}))).await, Code::TooManyGuardrails);
    runtime.ask(&session, "g0", json!({ "revision": 2 })).await;
    assert_eq!(post_answer(&gateway, "g1", body(&session, "k", "yes")).await.0, 200);
    runtime.ask(&session, "more", json!({})).await;
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_fits_its_questions_fields_and_choices() {
    let (gateway, mut runtime, session) = begin().await;
    let fields = json!([{ "id": "code", "secret": false }, { "id": "note", "required": false, "secret": false }]);
    runtime.ask(&session, "fields", json!({ "fields": fields })).await;
    runtime.ask(&session, "choices", json!({ "choices": [{ "id": "red" }, { "id": "blue" }] })).await;
    let of = |more: Value| {
        let mut answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit" });
        answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        answer
    };
    let refused = [
        ("fields", json!({})),
        ("fields", json!({ "values": { "note": "x" } })),
        ("fields", json!({ "values": { "code": "1", "other": "2" } })),
        ("fields", json!({ "values": { "code": "1" }, "idempotencyKey": "" })),
        ("choices", json!({})),
        ("choices", json!({ "choice": "green" })),
    ];
    for (id, answer) in refused {
        assert_code(&post_answer(&gateway, id, of(answer)).await, Code::Invalid);
    }
    let long = json!({ "values": { "code": "x".repeat(17 * 1024) } });
    assert_code(&post_answer(&gateway, "fields", of(long)).await, Code::TooLarge);
    assert_eq!(post_answer(&gateway, "fields", of(json!({ "values": { "code": "1" } }))).await.0, 200);
    assert_eq!(post_answer(&gateway, "choices", of(json!({ "choice": "blue" }))).await.0, 200);
    let told = outcomes(&mut runtime, &session).await;
    assert_eq!((told[0].values["code"].as_str(), told[1].choice.as_deref()), ("1", Some("blue")));
    assert_eq!(shown(&gateway, &session, "fields").await["resolution"]["fields"], json!(["code"]));
    gateway.stop().await;
}
