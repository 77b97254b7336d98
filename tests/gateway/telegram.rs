//! A whole gateway beside a small Bot API: linked, told, answered and redrawn, heard both ways.

#[path = "../../src/chat/telegram/tests/fake.rs"]
mod fake;

use std::time::{Duration, Instant};

use onlooker::config::{Config, secret::Secret};
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use self::fake::{BOT, Fake, Instead, TOKEN};
use crate::harness::*;

const PERSON: i64 = 77;

fn config(fake: &Fake, public: bool) -> Config {
    let mut config = quick();
    config.telegram.token = Some(Secret::new(TOKEN));
    config.telegram.api = fake.url.parse().unwrap();
    config.listen.public_url = public.then(|| "https://onlooker.example/".parse().unwrap());
    config
}

fn ann() -> Value {
    json!({"id": PERSON, "is_bot": false, "first_name": "Ann"})
}

fn said(text: &str) -> Value {
    let chat = json!({"id": PERSON, "type": "private"});
    json!({"message": {"message_id": 9, "date": 1_700_000_000, "chat": chat, "from": ann(), "text": text}})
}

fn tap(message: i64, mark: &Value) -> Value {
    let bot = json!({"id": BOT, "is_bot": true, "first_name": "Watch"});
    let chat = json!({"id": PERSON, "type": "private"});
    let message = json!({"message_id": message, "date": 1_700_000_000, "chat": chat, "from": bot, "text": "x"});
    json!({"callback_query": {"id": "q", "from": ann(), "message": message, "chat_instance": "1", "data": mark}})
}

fn numbered(mut update: Value, id: i64) -> Value {
    update["update_id"] = id.into();
    update
}

/// A call of Telegram's.
async fn call(gateway: &TestGateway, secret: Option<&str>, body: String) -> u16 {
    let mut request = gateway.http.post(format!("{}/v1/hooks/telegram", gateway.url)).body(body);
    if let Some(secret) = secret {
        request = request.header("X-Telegram-Bot-Api-Secret-Token", secret);
    }
    gateway.request(request).await.0
}

async fn secret(fake: &Fake) -> String {
    let announced = fake.until_called("setWebhook", 1).await.pop().unwrap();
    announced.parameters["secret_token"].as_str().unwrap().to_owned()
}

async fn code(gateway: &TestGateway) -> String {
    let (status, answer) = gateway.post("/v1/links/codes", json!({})).await;
    assert_eq!(status, 201, "{answer}");
    answer["say"]["telegram"].as_str().unwrap().to_owned()
}

async fn session(gateway: &TestGateway) -> (Runtime, String) {
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (runtime, session)
}

fn button(message: &fake::Message, label: &str) -> Value {
    let found = message.keyboard.iter().flatten().find(|button| button["text"] == label);
    found.unwrap_or_else(|| panic!("{label} on {message:?}"))["callback_data"].clone()
}

/// The question's message, once it is there.
async fn question(fake: &Fake, nth: usize) -> (i64, fake::Message) {
    fake.until_called("sendMessage", nth).await;
    fake.until(|| fake.message(500 + nth as i64).is_some(), "the message is there").await;
    let id = 500 + nth as i64;
    (id, fake.message(id).unwrap())
}

#[tokio::test]
async fn a_linked_person_is_told_answers_with_a_button_and_sees_what_came_of_it() {
    let fake = Fake::start().await;
    let gateway = TestGateway::with(config(&fake, true)).await;
    let secret = secret(&fake).await;
    let hears = async |update: Value, id: i64| {
        let status = call(&gateway, Some(&secret), numbered(update, id).to_string()).await;
        assert_eq!(status, 200);
    };
    hears(said(&code(&gateway).await), 1).await;
    assert_eq!(fake.calls("sendMessage").len(), 1, "linked, and told so");

    let (mut runtime, session) = session(&gateway).await;
    let asked = json!({"kind": "purchase", "value": "Buy <b>two</b> for $30?", "domain": "shop.example"});
    runtime.ask(&session, "g", asked).await;
    let (id, message) = question(&fake, 2).await;
    assert_eq!(message.chat, PERSON);
    assert!(message.text.contains("Buy <b>two</b> for $30?\n\nSite: shop.example"), "{message:?}");
    let link = format!("https://onlooker.example/view/{session}");
    assert_eq!(message.keyboard[0][0]["url"], link);

    let approve = button(&message, "Approve");
    hears(tap(id, &approve), 2).await;
    let outcome = runtime.outcome().await;
    assert_eq!(outcome.guardrail_id, "g");
    fake.until_called("editMessageText", 1).await;
    fake.until(|| fake.message(id).is_some_and(|message| message.keyboard.is_empty()), "redrawn").await;
    assert!(fake.message(id).unwrap().text.starts_with("Answered by Ann"));
    assert_eq!(fake.last("answerCallbackQuery")["show_alert"], false);

    hears(tap(id, &button(&message, "Reject")), 3).await;
    assert_eq!(fake.last("answerCallbackQuery")["show_alert"], true, "too late");
    hears(tap(id, &json!("forged")), 4).await;
    assert_eq!(fake.last("answerCallbackQuery")["show_alert"], true);
    assert_eq!(fake.calls("sendMessage").len(), 2);
    gateway.stop().await;
}

#[tokio::test]
async fn callbacks_that_are_not_telegrams_are_refused_and_counted() {
    let fake = Fake::start().await;
    let gateway = TestGateway::with(config(&fake, true)).await;
    let secret = secret(&fake).await;
    let update = numbered(said("hello"), 1).to_string();
    assert_eq!(call(&gateway, None, update.clone()).await, 401);
    assert_eq!(call(&gateway, Some("forged"), update.clone()).await, 401);
    assert_eq!(call(&gateway, Some(&secret), "{}".to_owned()).await, 400);
    let large = numbered(said(&"x".repeat(70_000)), 2).to_string();
    assert_eq!(call(&gateway, Some(&secret), large).await, 413);
    assert_eq!(fake.calls("sendMessage").len(), 0, "nothing was heard");
    let (_, metrics) = gateway.get("/metrics").await;
    let metrics = metrics.as_str().unwrap();
    for (reason, count) in [("signature", 2), ("malformed", 1), ("too_large", 1)] {
        let line = format!("{{chat=\"telegram\",reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    for _ in 0..2 {
        assert_eq!(call(&gateway, Some(&secret), update.clone()).await, 200);
    }
    assert_eq!(fake.calls("sendMessage").len(), 1, "heard once");
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_public_address_the_same_works_and_a_stop_does_not_wait_for_telegram() {
    let fake = Fake::start().await;
    let mut config = config(&fake, false);
    config.times.drain = Duration::from_secs(30);
    let gateway = TestGateway::with(config).await;
    fake.happened(said(&code(&gateway).await));
    let (mut runtime, session) = session(&gateway).await;
    fake.until_called("sendMessage", 1).await;
    runtime.ask(&session, "g", json!({"kind": "purchase"})).await;
    let (id, message) = question(&fake, 2).await;
    fake.happened(tap(id, &button(&message, "Reject")));
    runtime.outcome().await;
    fake.until(|| fake.message(id).is_some_and(|message| message.keyboard.is_empty()), "redrawn").await;
    fake.until(|| fake.unconfirmed() == 0, "heard").await;
    drop(runtime);
    let began = Instant::now();
    gateway.stop().await;
    assert!(began.elapsed() < Duration::from_secs(20), "long before Telegram would have answered");
}

#[tokio::test]
async fn who_cannot_be_reached_in_telegram_leaves_it_to_the_next_target() {
    let refusals = [Instead::error(401, "Unauthorized"), Instead::error(403, "Forbidden: bot was blocked by the user")];
    for instead in refusals {
        let (fake, receiver) = (Fake::start().await, Receiver::start().await);
        let gateway = TestGateway::with(with_webhook(config(&fake, true), &receiver)).await;
        let secret = secret(&fake).await;
        let linking = numbered(said(&code(&gateway).await), 1).to_string();
        assert_eq!(call(&gateway, Some(&secret), linking).await, 200);
        fake.instead("sendMessage", instead);
        let (mut runtime, session) = session(&gateway).await;
        runtime.ask(&session, "g", json!({})).await;
        receiver.wait_for("guardrail.opened", 1).await;
        assert_eq!(fake.calls("sendMessage").len(), 2, "it was tried first");
        gateway.stop().await;
    }
}
