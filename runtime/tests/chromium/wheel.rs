//! A person at the wheel, through a real gateway, in the coordinates and words of WebRun's clients.

use onlooker_runtime::shop::{CODE, EMAIL, PASSWORD};
use serde_json::json;

use crate::{
    house::{House, Telling},
    script::Stage,
};

const NAMED_KEYS: &[&str] = &[
    "Enter",
    "Escape",
    "Tab",
    "Backspace",
    "Delete",
    "ArrowUp",
    "ArrowDown",
    "ArrowLeft",
    "ArrowRight",
    "PageUp",
    "PageDown",
    "Home",
    "End",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_person_reaches_the_place_and_the_keys_that_they_meant() {
    let page = Telling::start().await;
    let Some(stage) = Stage::at(Some(page.url.clone())).await else { return };
    let house = House::of(stage).await;
    let session = house.start(&json!({"task": {"prompt": "stop at the login"}})).await;
    house.question(&session, "login").await;
    let size = page.until("the page says its size", "size", |_| true).await;
    assert_eq!((&size["width"], &size["height"]), (&json!(1024), &json!(600)));

    house.person(&session, json!({"type": "takeOverControl"})).await;
    // The window's chrome is 155 px high.
    house.person(&session, json!({"type": "CLICK", "x": 500, "y": 300})).await;
    let click = page.until("the click arrives", "click", |_| true).await;
    let expected = json!({"kind": "click", "x": 500, "y": 145, "trusted": true, "target": "mark", "there": "mark"});
    assert_eq!(click, expected);
    house.person(&session, json!({"type": "DOUBLE_CLICK", "x": 500, "y": 300})).await;
    let double = page.until("the double click arrives", "dblclick", |_| true).await;
    assert_eq!((&double["x"], &double["y"], &double["target"]), (&json!(500), &json!(145), &json!("mark")));

    let text = "Grüße, 7% ß\n„x“ – A";
    house.person(&session, json!({"type": "CLICK", "x": 300, "y": 505})).await;
    house.person(&session, json!({"type": "TYPE", "text": text})).await;
    page.until("the text is typed", "input", |seen| seen["value"] == text).await;
    house.person(&session, json!({"type": "KEY_PRESS", "key": "Control+a"})).await;
    house.person(&session, json!({"type": "KEY_PRESS", "key": "é"})).await;
    page.until("a character takes the place of all", "input", |seen| seen["value"] == "é").await;
    let long = "0123456789".repeat(100);
    house.person(&session, json!({"type": "TYPE", "text": long})).await;
    page.until("a long text is pasted", "input", |seen| seen["value"] == format!("é{long}")).await;

    page.forget();
    house.person(&session, json!({"type": "KEY_PRESS", "key": "Control+a"})).await;
    house.person(&session, json!({"type": "TYPE", "text": "like a human", "humanLike": true})).await;
    page.until("it is typed like a human", "input", |seen| seen["value"] == "like a human").await;
    let keys = page.seen("keydown");
    let keys: Vec<_> = keys.iter().filter(|key| key["control"] == false && key["key"] != "Control").collect();
    assert_eq!(keys.len(), "like a human".len(), "{keys:?}");
    let times: Vec<_> = keys.iter().map(|key| key["at"].as_f64().unwrap()).collect();
    let rests: Vec<_> = times.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(rests.iter().all(|rest| *rest >= 35.0), "{rests:?}");
    let (shortest, longest) = rests.iter().fold((f64::MAX, 0.0), |(s, l): (f64, f64), r| (s.min(*r), l.max(*r)));
    assert!(longest - shortest > 5.0, "nobody types like a clock: {rests:?}");

    page.forget();
    for key in NAMED_KEYS.iter().chain(&["a", "Z", "7", "%", " ", "+"]) {
        house.person(&session, json!({"type": "KEY_PRESS", "key": key})).await;
        page.until(&format!("the key {key} arrives"), "keydown", |seen| seen["key"] == **key).await;
    }
    house.person(&session, json!({"type": "KEY_PRESS", "key": "Shift+Tab"})).await;
    page.until("Shift+Tab arrives", "keydown", |seen| seen["key"] == "Tab" && seen["shift"] == true).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn take_over_pauses_the_task_and_release_continues_it_to_its_end() {
    let Some(stage) = Stage::set().await else { return };
    let house = House::of(stage).await;
    let wanted = json!({
        "secrets": [{"match": "shop.localhost", "fields": {"email": EMAIL}}],
        "task": {"prompt": "a mug", "terminateOnCompletion": true},
    });
    let session = house.start(&wanted).await;
    let login = house.question(&session, "login").await;
    let asked: Vec<_> = login["fields"].as_array().unwrap().iter().map(|field| &field["id"]).collect();
    assert_eq!(asked, ["password"], "the session's secret fills the other field");

    house.person(&session, json!({"type": "takeOverControl"})).await;
    house.answer(&login, json!({"action": "submit", "values": {"password": PASSWORD}})).await;
    house.until("the runtime has the answer", || async { house.events(&session, "guardrail_taken").await.pop() }).await;
    let typed = |actions: Vec<serde_json::Value>| actions.iter().filter(|action| action["name"] == "type").count();
    let page = house.get(&format!("/v1/sessions/{session}/events?since=latest&filter=action,agent&wait=1")).await;
    assert_eq!(page["events"], json!([]), "it does nothing while a person has the wheel");
    assert_eq!(typed(house.events(&session, "action").await), 0);

    house.person(&session, json!({"type": "releaseControl"})).await;
    let code = house.question(&session, "two_factor").await;
    assert_eq!(typed(house.events(&session, "action").await), 2, "the shop has taken e-mail and password");
    house.answer(&code, json!({"action": "submit", "values": {"code": CODE}})).await;
    let purchase = house.question(&session, "purchase").await;
    house.answer(&purchase, json!({"action": "submit", "choice": "reject"})).await;

    let ended = || async {
        let session = house.get(&format!("/v1/sessions/{session}")).await;
        (session["state"]["status"] == "ended").then_some(session)
    };
    let ended = house.until("the session ends with its task", ended).await;
    let task = &ended["state"]["tasks"][0];
    assert!(task["result"]["message"].to_string().contains("Nothing was bought"), "{task}");
    let said = house.events(&session, "usage").await.pop().expect("a task says what it has used");
    assert!(said["computeTime"].as_f64().unwrap() > 0.0, "{said}");
    assert_eq!(
        (&task["usage"], &task["result"]["usage"]["computeTime"]),
        (&task["result"]["usage"], &said["computeTime"])
    );
    let log = house.get(&format!("/v1/sessions/{session}/events?since=start")).await.to_string();
    for secret in [EMAIL, PASSWORD, CODE] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    house.close().await;
}
