//! Notices as operators see them, and as receivers get them.

use std::{sync::Arc, time::Duration};

use onlooker::{
    config::{Config, key::Scope},
    engine::{Engine, memory::MemoryEngine},
    notifier::Delivery,
    reach_out::ladder::Step,
};
use onlooker_protocol::{
    notice::{Notice, NoticeType},
    runtime::OpenSession,
    view::{ListedNotice, ReachOutMode},
};
use serde_json::{Value, json};

use crate::{
    doors::add_key,
    harness::*,
    parley::{Hall, for_chats},
};

const LONG: Duration = Duration::from_secs(60);

/// Whoever is not looking is told at once.
fn reaching(receiver: &Receiver) -> Config {
    with_webhook(calm(Duration::ZERO, LONG), receiver)
}

async fn get(gateway: &TestGateway, path: &str, key: Option<&str>) -> (u16, Value) {
    let request = gateway.http.get(format!("{}{path}", gateway.url));
    gateway
        .request(match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
        .await
}

async fn post(gateway: &TestGateway, path: &str, key: &str, body: Value) -> (u16, Value) {
    gateway.request(gateway.http.post(format!("{}{path}", gateway.url)).bearer_auth(key).json(&body)).await
}

/// The ids of a list.
async fn ids(gateway: &TestGateway, query: &str, key: Option<&str>) -> Vec<String> {
    let (status, list) = get(gateway, &format!("/v1/notices{query}"), key).await;
    assert_eq!(status, 200, "{list}");
    let id = |notice: &Value| notice["id"].as_str().unwrap().to_owned();
    list["notices"].as_array().unwrap().iter().map(id).collect()
}

async fn until_listed(gateway: &TestGateway, query: &str, count: usize) -> Vec<String> {
    wait_until(&format!("{count} notices are listed{query}"), || async {
        ids(gateway, query, None).await.len() == count
    })
    .await;
    ids(gateway, query, None).await
}

#[tokio::test]
async fn a_notice_that_is_rejected_is_listed_and_counted_until_it_is_tried_again_and_taken() {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(reaching(&receiver)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    receiver.script([Reaction::Status(404)]);
    runtime.ask(&session, "g", json!({ "value": "Which of the two lamps?" })).await;
    let dead = until_listed(&gateway, "?state=dead", 1).await;
    let dead_metric = "onlooker_notices_dead{notifier=\"webhook\"}";
    let outcome = |of: &str| format!("onlooker_notice_outcomes_total{{notifier=\"webhook\",outcome=\"{of}\"}}");
    assert_eq!(gateway.metric(dead_metric).await, 1.0);
    assert_eq!(gateway.metric(&outcome("rejected")).await, 1.0);

    let (_, list) = gateway.get("/v1/notices?state=rejected").await;
    let listed: ListedNotice = serde_json::from_value(list["notices"][0].clone()).unwrap();
    assert_eq!((&*listed.notice.state, &*listed.notice.target, &*listed.notifier), ("rejected", "webhook", "webhook"));
    assert_eq!((&*listed.session, listed.guardrail_id.as_deref(), listed.revision), (&*session, Some("g"), Some(1)));
    assert_eq!(listed.notice.error.as_deref(), Some("the receiver answered HTTP 404"));
    assert!(listed.notice.next_try_in_ms.is_some_and(|ms| ms > 30_000), "slowly: {listed:?}");
    assert!(!list.to_string().contains("lamps"), "what it says is shown nowhere: {list}");

    let retry = format!("/v1/notices/{}/retry", dead[0]);
    let (status, retried) = gateway.post(&retry, json!({})).await;
    assert_eq!((status, &retried["notice"]["nextTryInMs"]), (200, &json!(0)), "{retried}");
    receiver.wait_for("guardrail.opened", 2).await;
    assert_eq!(until_listed(&gateway, "?state=confirmed", 1).await, dead);
    assert!(ids(&gateway, "?state=dead", None).await.is_empty());
    assert_eq!((gateway.metric(dead_metric).await, gateway.metric(&outcome("confirmed")).await), (0.0, 1.0));

    let (status, refusal) = gateway.post(&retry, json!({})).await;
    assert_eq!((status, &refusal["error"]), (409, &json!("conflict")));
    assert!(refusal["message"].as_str().unwrap().contains("it has arrived"), "{refusal}");
    for unknown in ["01890a5d-ac96-774b-bcce-b302099a8057", "nonsense"] {
        assert_eq!(gateway.post(&format!("/v1/notices/{unknown}/retry"), json!({})).await.0, 404);
    }
    for wrong in ["?state=nonsense", "?after=nonsense"] {
        assert_eq!(gateway.get(&format!("/v1/notices{wrong}")).await.0, 400, "{wrong}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn notices_are_listed_newest_first_and_in_pages() {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(reaching(&receiver)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    for nth in 1..=5 {
        runtime.ask(&session, &format!("g{nth}"), json!({})).await;
        receiver.wait_for("guardrail.opened", nth).await;
    }
    let all = until_listed(&gateway, "?state=confirmed", 5).await;
    assert!(all.windows(2).all(|pair| pair[0] > pair[1]), "ids are ordered by time: {all:?}");
    let mut paged = ids(&gateway, "?limit=2", None).await;
    while let Some(last) = paged.last().filter(|_| paged.len() < 5) {
        let page = ids(&gateway, &format!("?limit=2&after={last}"), None).await;
        assert!(!page.is_empty());
        paged.extend(page);
    }
    assert_eq!(paged, all);
    assert_eq!(ids(&gateway, &format!("?session={session}"), None).await.len(), 5);
    assert!(ids(&gateway, "?session=aaaaaaaaaaaaaaaaaaaa", None).await.is_empty());
    gateway.stop().await;
}

#[tokio::test]
async fn notices_are_for_those_who_may_answer_or_administrate_their_project_and_their_sessions() {
    let receiver = Receiver::start().await;
    let mut config = reaching(&receiver);
    let keys = Scope::ALL.map(|scope| (scope, add_key(&mut config, scope.name(), "red", &[scope])));
    let red = add_key(&mut config, "red", "red", &Scope::ALL);
    let blue = add_key(&mut config, "blue", "blue", &Scope::ALL);
    let gateway = TestGateway::with(config).await;
    let mut runtime = Runtime::connect(&gateway, "red", 10, Some(&red)).await;
    let (one, _) = runtime.open(OpenSession::default()).await;
    let (two, _) = runtime.open(OpenSession::default()).await;
    receiver.script([Reaction::Status(410)]);
    runtime.ask(&one, "g", json!({})).await;
    receiver.wait_for("guardrail.opened", 1).await;
    runtime.ask(&two, "g", json!({})).await;
    receiver.wait_for("guardrail.opened", 2).await;
    wait_until("one is dead", || async { ids(&gateway, "?state=dead", Some(&red)).await.len() == 1 }).await;
    let dead = ids(&gateway, "?state=dead", Some(&red)).await.remove(0);
    let retry = format!("/v1/notices/{dead}/retry");

    for (scope, key) in &keys {
        let sees = matches!(scope, Scope::Answer | Scope::Admin);
        assert_eq!(get(&gateway, "/v1/notices", Some(key)).await.0, if sees { 200 } else { 403 }, "{scope:?}");
        if *scope != Scope::Admin {
            assert_eq!(post(&gateway, &retry, key, json!({})).await.0, 403, "{scope:?}");
        }
    }
    assert_eq!(get(&gateway, "/v1/notices", None).await.0, 401);
    assert!(ids(&gateway, "", Some(&blue)).await.is_empty());
    assert!(ids(&gateway, &format!("?session={one}"), Some(&blue)).await.is_empty());
    assert_eq!(post(&gateway, &retry, &blue, json!({})).await.0, 404);

    let asked = json!({ "scopes": ["answer"], "sessions": [two], "who": "ann" });
    let (_, issued) = post(&gateway, "/v1/tokens", &red, asked).await;
    let token = issued["token"].as_str().unwrap();
    let (_, list) = get(&gateway, "/v1/notices", Some(token)).await;
    let sessions: Vec<_> = list["notices"].as_array().unwrap().iter().map(|notice| &notice["session"]).collect();
    assert_eq!(sessions, [&json!(two)]);
    assert!(ids(&gateway, &format!("?session={one}"), Some(token)).await.is_empty());
    assert!(ids(&gateway, "?state=dead", Some(token)).await.is_empty());
    assert_eq!(post(&gateway, &retry, &keys[4].1, json!({})).await.0, 200, "{:?}", keys[4].0);
    gateway.stop().await;
}

#[tokio::test]
async fn the_notices_of_closed_questions_and_ended_sessions_are_known_after_a_restart() {
    let receiver = Receiver::start().await;
    let config = reaching(&receiver);
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(onlooker::gateway::bounds(&config)));
    let gateway = TestGateway::on(config.clone(), Arc::clone(&engine)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let (ended, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "answered", json!({})).await;
    runtime.ask(&session, "open", json!({})).await;
    runtime.ask(&ended, "cancelled", json!({})).await;
    receiver.wait_for("guardrail.opened", 3).await;
    let mut before = until_listed(&gateway, "?state=confirmed", 3).await;
    let answer = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(gateway.post("/v1/guardrails/answered/answer", answer).await.0, 200);
    gateway.http.delete(format!("{}/v1/sessions/{ended}", gateway.url)).send().await.unwrap();
    receiver.wait_for("guardrail.resolved", 2).await;
    gateway.stop().await;

    let gateway = TestGateway::on(config, engine).await;
    let mut after = ids(&gateway, "", None).await;
    before.sort_unstable();
    after.sort_unstable();
    assert_eq!(after, before);
    for id in after {
        let (status, refusal) = gateway.post(&format!("/v1/notices/{id}/retry"), json!({})).await;
        assert_eq!(status, 409, "it is found by its id: {refusal}");
    }
    gateway.stop().await;
}

/// What came, read as the protocol's type, and nothing of it lost by that.
fn typed(delivered: &Delivered) -> Notice {
    let notice: Notice =
        serde_json::from_slice(&delivered.raw).unwrap_or_else(|error| panic!("{error}: {delivered:?}"));
    assert_eq!(serde_json::to_value(&notice).unwrap(), delivered.body, "every member is one of the type's");
    assert_eq!(notice.id, delivered.id(), "the idempotency id");
    notice
}

#[tokio::test]
async fn every_notice_is_of_the_protocols_type() {
    for public_url in [None, Some("https://onlooker.example")] {
        let receiver = Receiver::start().await;
        let mut config = reaching(&receiver);
        config.listen.public_url = public_url.map(|url| url.parse().unwrap());
        let gateway = TestGateway::with(config).await;
        let mut runtime = gateway.runtime().await;
        let (external_id, environment_id) = (Some("order-7".to_owned()), Some("shop".to_owned()));
        let open =
            OpenSession { external_id, environment_id, reach_out_mode: ReachOutMode::Full, ..Default::default() };
        let (session, _) = runtime.open(open).await;
        runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;

        let fields = json!([{ "id": "user", "label": "User", "type": "text", "required": true, "secret": false },
                            { "id": "pass", "type": "password", "required": true, "secret": true, "hint": "of the shop" }]);
        let login = json!({ "kind": "login", "domain": "shop.example", "fields": fields, "websiteError": "Try again" });
        runtime.ask(&session, "login", login).await;
        let opened = typed(&receiver.wait_for("guardrail.opened", 1).await[0]);
        let asked = opened.guardrail.as_ref().unwrap();
        assert_eq!(
            (opened.kind, &*opened.session, opened.task.as_deref()),
            (NoticeType::GuardrailOpened, &*session, Some("t"))
        );
        assert_eq!((opened.external_id.as_deref(), opened.environment_id.as_deref()), (Some("order-7"), Some("shop")));
        assert_eq!((asked.fields.asked().len(), asked.website_error.as_deref()), (2, Some("Try again")));
        assert!(opened.why.is_some() && !opened.repeat);
        let view = public_url.map(|url| format!("{url}/view/{session}"));
        assert_eq!(opened.view, view);
        assert_eq!(opened.form.is_some(), public_url.is_some());
        assert!(opened.form.is_none_or(|form| form.url.starts_with("https://onlooker.example/form/")));

        let values = json!({ "user": "ann", "pass": "correct horse" });
        let answer =
            json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "submit", "values": values });
        let (status, answered) = gateway.post("/v1/guardrails/login/answer", answer).await;
        assert_eq!(status, 200, "{answered}");
        let resolved = receiver.wait_for("guardrail.resolved", 1).await.remove(0);
        assert!(!String::from_utf8_lossy(&resolved.raw).contains("correct horse"));
        let resolved = typed(&resolved);
        assert_eq!(resolved.guardrail.unwrap().by.as_deref(), Some("local"), "who answered");
        assert!(resolved.form.is_none(), "there is nothing to fill in any more");

        runtime.ask(&session, "choice", json!({ "choices": [{ "id": "a", "label": "A" }, { "id": "b" }] })).await;
        let opened = typed(&receiver.wait_for("guardrail.opened", 2).await[1]);
        assert_eq!((opened.guardrail.unwrap().choices.len(), opened.form), (2, None));
        runtime.ask(&session, "choice", json!({ "revision": 2 })).await;
        let updated = typed(&receiver.wait_for("guardrail.updated", 1).await[0]);
        assert_eq!(updated.kind, NoticeType::GuardrailUpdated);
        let withdrawn = json!({ "guardrailId": "choice", "revision": 2 });
        receiver.wait_for("guardrail.opened", 3).await;
        runtime.publish(&session, "guardrail_withdrawn", withdrawn).await;
        typed(&receiver.wait_for("guardrail.resolved", 2).await[1]);

        runtime.publish(&session, "task_completed", json!({ "message": "done", "usage": { "steps": 3 } })).await;
        let completed = typed(&receiver.wait_for("task.completed", 1).await[0]);
        assert_eq!((completed.result.unwrap()["message"].as_str(), completed.view), (Some("done"), view));
        runtime.publish(&session, "task_started", json!({ "taskId": "u" })).await;
        runtime.publish(&session, "error", json!({ "error": "no", "code": "X" })).await;
        let failed = typed(&receiver.wait_for("task.failed", 1).await[0]);
        assert_eq!((failed.kind, failed.task.as_deref()), (NoticeType::TaskFailed, Some("u")));
        receiver.got().iter().for_each(|got| drop(typed(got)));
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_wish_for_silence_holds_back_the_notices_of_every_session() {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(reaching(&receiver)).await;
    let mut runtime = gateway.runtime().await;
    receiver.script([Reaction::Later(2)]);
    let begun = std::time::Instant::now();
    for nth in 1..=3 {
        let (session, _) = runtime.open(OpenSession::default()).await;
        runtime.ask(&session, "g", json!({})).await;
        if nth == 1 {
            until_listed(&gateway, "?state=failed", 1).await;
        }
    }
    receiver.wait_for("guardrail.opened", 4).await;
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(gateway.metric("onlooker_notices{state=\"refused\"}").await, 1.0, "nobody else ran into it");
    gateway.stop().await;
}

#[tokio::test]
async fn a_chat_gets_the_last_picture_that_everybody_may_see_and_none_during_a_sensitive_window() {
    let hall = Hall::open(for_chats()).await;
    hall.link(("ann-chat", "ann"), None).await;
    let mut runtime = hall.gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "without", json!({})).await;
    assert_eq!(hall.parley.newest("ann-chat", 1).await.picture, None, "there is none yet");
    runtime.publish_picture(&session, b"\x89PNG old").await;
    runtime.publish_picture(&session, b"\x89PNG new").await;
    runtime.ask(&session, "with", json!({})).await;
    let shown = hall.parley.newest("ann-chat", 2).await.picture.expect("it has a picture");
    let url = format!("{}/v1/sessions/{session}/pictures/{shown}", hall.gateway.url);
    assert_eq!(&*hall.gateway.http.get(url).send().await.unwrap().bytes().await.unwrap(), b"\x89PNG new");

    runtime.publish(&session, "sensitive", json!({ "on": true })).await;
    runtime.publish_picture(&session, b"\x89PNG secret").await;
    runtime.ask(&session, "during", json!({})).await;
    assert_eq!(hall.parley.newest("ann-chat", 3).await.picture, None);
    runtime.publish(&session, "sensitive", json!({ "on": false })).await;
    runtime.ask(&session, "after", json!({})).await;
    assert_eq!(hall.parley.newest("ann-chat", 4).await.picture, Some(shown), "none of the window, ever");
    hall.gateway.stop().await;
}

#[tokio::test]
async fn a_step_of_the_ladder_is_listed_as_one_and_a_chat_that_wants_silence_holds_up_no_other() {
    let mut config = for_chats();
    let step =
        Step { after: Duration::from_millis(100), targets: vec!["parley:late".into()], repeat: 0, project: None };
    config.reach_out.ladder = vec![step];
    let hall = Hall::open(config).await;
    for person in [("ann-chat", "ann"), ("bob-chat", "bob")] {
        hall.link(person, None).await;
    }
    let error = "too much".to_owned();
    hall.parley.breaks("ann-chat", Delivery::Refused { error, retry_after: Some(LONG) });
    let mut runtime = hall.gateway.runtime().await;
    for nth in 1..=3 {
        let (session, _) = runtime.open(OpenSession::default()).await;
        runtime.ask(&session, "g", json!({})).await;
        hall.parley.newest("bob-chat", nth).await;
        hall.parley.newest("late", nth).await;
    }
    let (_, list) = hall.gateway.get("/v1/notices").await;
    let listed: Vec<ListedNotice> = serde_json::from_value(list["notices"].clone()).unwrap();
    let of = |target: &str| listed.iter().filter(|listed| listed.notice.target == target).collect::<Vec<_>>();
    assert!(of("parley:late").iter().all(|listed| listed.notice.step == Some(1)));
    assert!(of("parley:bob-chat").iter().all(|listed| listed.notice.step.is_none()));
    let states: Vec<_> = of("parley:ann-chat").iter().map(|listed| listed.notice.state.clone()).collect();
    assert_eq!(states, ["queued", "queued", "failed"], "only the first ran into it: {list}");
    hall.gateway.stop().await;
}
