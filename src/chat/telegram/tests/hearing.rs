use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;

const PUBLIC: &str = "https://onlooker.example/";

/// A request as Telegram makes it.
fn call(telegram: &Telegram, body: impl Into<Bytes>) -> Hook {
    let mut headers = HeaderMap::new();
    headers.insert("x-telegram-bot-api-secret-token", HeaderValue::from_str(&telegram.secret).unwrap());
    Hook { headers, body: body.into() }
}

async fn calls(telegram: &Telegram, desk: &Listener, update: &Value) -> HookAnswer {
    telegram.hook(call(telegram, update.to_string()), desk).await
}

fn ann() -> Value {
    json!({"id": 7, "is_bot": false, "first_name": "Ann", "last_name": "Lee", "username": "ann"})
}

fn bot() -> Value {
    json!({"id": BOT, "is_bot": true, "first_name": "Watch", "username": "watch_bot"})
}

fn chat() -> Value {
    json!({"id": 77, "type": "private", "first_name": "Ann"})
}

fn card(id: i64) -> Value {
    json!({"message_id": id, "date": 1_700_000_000, "chat": chat(), "from": bot(), "text": "A session waits for you"})
}

fn tap(update_id: i64, mark: &str) -> Value {
    json!({
        "update_id": update_id,
        "callback_query": {
            "id": format!("query {update_id}"), "from": ann(), "message": card(501), "chat_instance": "1", "data": mark,
        },
    })
}

fn said(update_id: i64, text: &str) -> Value {
    let message =
        json!({"message_id": 600, "date": 1_700_000_000, "chat": chat(), "from": ann(), "text": text, "entities": []});
    json!({"update_id": update_id, "message": message})
}

fn answer(update_id: i64, text: &str) -> Value {
    let mut update = said(update_id, text);
    update["message"]["reply_to_message"] = card(501);
    update
}

fn refused(answer: &HookAnswer) -> (u16, Option<&'static str>) {
    (answer.status, answer.refused)
}

#[tokio::test]
async fn a_call_without_the_secret_is_not_heard() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    let body = tap(1, "mark").to_string();
    let mut forged = call(&telegram, body.clone());
    let almost = format!("{}x", &telegram.secret[..telegram.secret.len() - 1]);
    forged.headers.insert("x-telegram-bot-api-secret-token", HeaderValue::from_str(&almost).unwrap());
    let missing = Hook { headers: HeaderMap::new(), body: body.into() };
    for request in [forged, missing] {
        assert_eq!(refused(&telegram.hook(request, &desk).await), (401, Some("signature")));
    }
    assert_eq!(desk.heard(), []);
    assert_eq!(fake.calls("answerCallbackQuery").len(), 0);
}

#[tokio::test]
async fn what_is_too_large_or_no_update_is_refused_and_changes_nothing() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    let large = said(1, &"x".repeat(65 * 1024)).to_string();
    assert_eq!(refused(&telegram.hook(call(&telegram, large), &desk).await), (413, Some("too_large")));
    let malformed = [
        "",
        "[]",
        "{}",
        "nonsense",
        "{\"update_id\":\"1\"}",
        "{\"update_id\":1,\"update_id\":1}",
        "{\"update_id\":1,\"message\":{\"message_id\":1}}",
        "{\"update_id\":1} x",
        "\u{feff}{\"update_id\":1}",
        "{\"update_id\":1,\"callback_query\":{\"id\":1}}",
    ];
    for body in malformed {
        let answer = telegram.hook(call(&telegram, body), &desk).await;
        assert_eq!(refused(&answer), (400, Some("malformed")), "{body}");
    }
    assert_eq!(desk.heard(), []);
    // Of a kind that was not asked for.
    let other = json!({"update_id": 1, "my_chat_member": {}});
    assert_eq!(refused(&calls(&telegram, &desk, &other).await), (200, None));
    assert_eq!(desk.heard(), []);
}

#[tokio::test]
async fn an_update_that_comes_again_is_heard_once() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    for update in [tap(1, "a"), tap(1, "a"), tap(2, "b"), tap(1, "a")] {
        assert_eq!(calls(&telegram, &desk, &update).await.status, 200);
    }
    assert_eq!(desk.texts(), ["a on t501", "b on t501"]);
    assert_eq!(fake.calls("answerCallbackQuery").len(), 2);
}

#[tokio::test]
async fn an_update_whose_hearing_broke_off_is_heard_when_it_comes_again() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    *desk.stuck.lock().unwrap() = true;
    // As where Telegram hangs up.
    let hung_up = timeout(Duration::from_millis(50), calls(&telegram, &desk, &tap(1, "a"))).await;
    assert!(hung_up.is_err());
    assert_eq!(calls(&telegram, &desk, &tap(1, "a")).await.status, 200);
    assert_eq!(desk.texts(), ["a on t501", "a on t501"]);
    assert_eq!(fake.calls("answerCallbackQuery").len(), 1);
}

#[tokio::test]
async fn a_tap_is_answered_above_the_chat_and_a_refusal_must_be_read() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let desk =
        Listener::answering([Reply::text("You approved it."), Reply::refused("Bob was faster."), Reply::default()]);
    for update in [tap(1, "a"), tap(2, "b"), tap(3, "c")] {
        assert_eq!(calls(&telegram, &desk, &update).await.status, 200, "also where the desk refuses");
    }
    let expected = [
        json!({"callback_query_id": "query 1", "text": "You approved it.", "show_alert": false}),
        json!({"callback_query_id": "query 2", "text": "Bob was faster.", "show_alert": true}),
        json!({"callback_query_id": "query 3"}),
    ];
    let answers: Vec<_> = fake.calls("answerCallbackQuery").into_iter().map(|call| call.parameters).collect();
    assert_eq!(answers, expected);
    assert_eq!(desk.heard()[0], ("77".to_owned(), "7".to_owned(), "tapped", "a on t501".to_owned()));
    assert_eq!(desk.said.lock().unwrap()[0].by.name, "Ann Lee");
    assert_eq!(fake.calls("sendMessage").len(), 0);
}

#[tokio::test]
async fn what_does_not_fit_above_the_chat_is_said_in_it() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let link = Some(("Open <the> form".to_owned(), "https://onlooker.example/form/abc".to_owned()));
    let long = "y".repeat(300);
    let desk = Listener::answering([
        Reply { link, ..Reply::text("Here is a link") },
        Reply::text(long.clone()),
        Reply { link: Some(("Form".to_owned(), "http://localhost/form/abc".to_owned())), ..Reply::default() },
    ]);
    let mut photo = tap(3, "c");
    photo["callback_query"]["message"]["photo"] = json!([{"file_id": "x"}]);
    for update in [tap(1, "a"), tap(2, "b"), photo] {
        calls(&telegram, &desk, &update).await;
    }
    let toasts = fake.calls("answerCallbackQuery");
    assert_eq!(toasts[1].parameters["text"].as_str().unwrap().chars().count(), 200);
    let messages: Vec<_> = fake.calls("sendMessage").into_iter().map(|call| call.parameters).collect();
    assert_eq!(
        messages[0],
        json!({
            "chat_id": 77,
            "text": "Here is a link",
            "parse_mode": "HTML",
            "link_preview_options": {"is_disabled": true},
            "reply_parameters": {"message_id": 501, "allow_sending_without_reply": true},
            "reply_markup": {"inline_keyboard": [
                [{"text": "Open <the> form", "url": "https://onlooker.example/form/abc"}],
            ]},
        })
    );
    assert_eq!(messages[1]["text"], long);
    assert_eq!(messages[2]["text"], "Form: http://localhost/form/abc");
    assert_eq!(desk.texts()[2], "c on p501", "the same receipt as at sending");
}

#[tokio::test]
async fn a_button_out_of_reach_is_refused_without_the_desk() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    let mut inaccessible = tap(1, "a");
    inaccessible["callback_query"]["message"] = json!({"message_id": 501, "date": 0, "chat": chat()});
    let inline = json!({
        "update_id": 2,
        "callback_query": {"id": "q", "from": ann(), "inline_message_id": "x", "chat_instance": "1", "data": "a"},
    });
    let mut game = tap(3, "a");
    game["callback_query"].as_object_mut().unwrap().remove("data");
    for update in [inaccessible, inline, game, tap(4, &"x".repeat(65))] {
        assert_eq!(calls(&telegram, &desk, &update).await.status, 200);
        assert_eq!(fake.last("answerCallbackQuery")["show_alert"], true);
    }
    assert_eq!(fake.calls("answerCallbackQuery").len(), 4);
    assert_eq!(desk.heard(), []);
}

#[tokio::test]
async fn words_are_answers_to_a_question_or_told_and_are_answered_in_their_chat() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let desk = Listener::answering([Reply::text("Thank you <3"), Reply::text("Linked."), Reply::default()]);
    for update in [answer(1, "the blue one"), said(2, "/start K7F"), said(3, "hello")] {
        assert_eq!(calls(&telegram, &desk, &update).await.status, 200);
    }
    let heard = |kind, text: &str| ("77".to_owned(), "7".to_owned(), kind, text.to_owned());
    let expected = [heard("replied", "the blue one to t501"), heard("told", "K7F"), heard("told", "hello")];
    assert_eq!(desk.heard(), expected);
    let messages = fake.calls("sendMessage");
    assert_eq!(messages.len(), 2);
    let expected = json!({
        "chat_id": 77,
        "text": "Thank you &lt;3",
        "parse_mode": "HTML",
        "link_preview_options": {"is_disabled": true},
        "reply_parameters": {"message_id": 600, "allow_sending_without_reply": true},
    });
    assert_eq!(messages[0].parameters, expected);
}

#[tokio::test]
async fn an_answer_without_words_is_not_taken_for_one() {
    let fake = Fake::start().await;
    let (telegram, desk) = (telegram(&fake), Listener::default());
    let mut voice = answer(1, "");
    voice["message"].as_object_mut().unwrap().remove("text");
    voice["message"]["voice"] = json!({"file_id": "x"});
    calls(&telegram, &desk, &voice).await;
    assert!(fake.last("sendMessage")["text"].as_str().unwrap().contains("not taken as an answer"));
    assert_eq!(desk.heard(), []);
}

#[tokio::test]
async fn what_must_not_stay_in_the_chat_is_deleted() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let erase = || Reply { erase: true, ..Reply::refused("Never type passwords here.") };
    let desk = Listener::answering([erase(), erase()]);
    calls(&telegram, &desk, &answer(1, "hunter2")).await;
    assert_eq!(fake.last("deleteMessage"), json!({"chat_id": 77, "message_id": 600}));
    let said = fake.last("sendMessage");
    assert_eq!((&said["text"], said.get("reply_parameters")), (&Value::from("Never type passwords here."), None));

    fake.instead("deleteMessage", Instead::error(400, "Bad Request: message can't be deleted"));
    calls(&telegram, &desk, &answer(2, "hunter2")).await;
    let text = fake.last("sendMessage")["text"].to_string();
    assert!(text.contains("please delete it yourself"), "{text}");
}

#[tokio::test]
async fn somebody_is_answered_although_telegram_wants_to_wait_a_moment() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let desk = Listener::answering([Reply::text("Linked.")]);
    fake.instead("sendMessage", Instead::wait(0));
    fake.instead("sendMessage", Instead::error(500, "Internal Server Error"));
    calls(&telegram, &desk, &said(1, "K7F")).await;
    assert_eq!(fake.calls("sendMessage").len(), 3);
    assert_eq!(fake.only_message().1.text, "Linked.");
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    fn start(telegram: &Arc<Telegram>, desk: &Arc<Listener>) -> Self {
        let stop = CancellationToken::new();
        let (telegram, desk, stopping) = (Arc::clone(telegram), Arc::clone(desk), stop.clone());
        Self { stop, task: tokio::spawn(async move { telegram.run(desk, stopping).await }) }
    }

    /// Long before the 50 s for which Telegram holds a question.
    async fn stop(self) {
        self.stop.cancel();
        timeout(5 * SECOND, self.task).await.expect("it ends at once").unwrap();
    }
}

/// Without a number, which the Bot API gives.
fn happens(mut update: Value) -> Value {
    update.as_object_mut().unwrap().remove("update_id");
    update
}

#[tokio::test]
async fn with_a_public_address_it_is_announced_until_telegram_has_it() {
    let fake = Fake::start().await;
    fake.instead("getMe", Instead::error(500, "Internal Server Error"));
    fake.instead("setWebhook", Instead::error(429, "Too Many Requests: retry after 0"));
    let telegram = Arc::new(telegram_at(&fake.url, Some(PUBLIC)));
    let running = Running::start(&telegram, &Arc::default());
    let announced = fake.until_called("setWebhook", 2).await.pop().unwrap().parameters;
    let expected = json!({
        "url": "https://onlooker.example/v1/hooks/telegram",
        "secret_token": *telegram.secret,
        "allowed_updates": ["message", "callback_query"],
        "drop_pending_updates": false,
    });
    assert_eq!(announced, expected);
    assert_eq!(*telegram.secret, *telegram_at(&fake.url, None).secret, "the same after a restart");
    running.stop().await;
    assert_eq!((fake.calls("getUpdates").len(), fake.calls("deleteWebhook").len()), (0, 0));
}

#[test]
fn telegram_calls_only_where_its_servers_can() {
    let public: Url = "http://localhost:8787/".parse().unwrap();
    let own: Url = "http://127.0.0.1:8081/".parse().unwrap();
    assert_eq!(callback_url(&own, Some(&public)).unwrap().as_str(), "http://localhost:8787/v1/hooks/telegram");
    assert_eq!(callback_url(&config::Telegram::default().api, Some(&public)), None);
    assert_eq!(callback_url(&own, None), None);
}

#[tokio::test]
async fn without_a_public_address_updates_are_asked_for_and_a_restart_loses_and_repeats_none() {
    let fake = Fake::start().await;
    let desk = Arc::<Listener>::default();
    let first = fake.happened(happens(said(0, "before the start")));
    let running = Running::start(&Arc::new(telegram(&fake)), &desk);
    let polls = fake.until_called("getUpdates", 2).await;
    assert_eq!(fake.last("deleteWebhook"), json!({"drop_pending_updates": false}));
    let allowed = json!(["message", "callback_query"]);
    assert_eq!(polls[0].parameters, json!({"limit": 20, "timeout": 50, "allowed_updates": allowed}));
    assert_eq!(polls[1].parameters["offset"], first + 1);
    for nth in 0..25 {
        fake.happened(happens(said(0, &format!("word {nth}"))));
    }
    fake.until(|| fake.unconfirmed() == 0, "everything is confirmed").await;
    running.stop().await;
    assert_eq!(desk.heard().len(), 26);

    fake.happened(happens(tap(0, "a")));
    let running = Running::start(&Arc::new(telegram(&fake)), &desk);
    fake.until_called("answerCallbackQuery", 1).await;
    running.stop().await;
    assert_eq!(fake.unconfirmed(), 0, "a stop right behind an update confirms it");
    assert_eq!(desk.texts()[26..], ["a on t501"]);
}

#[tokio::test]
async fn a_stop_leaves_to_the_next_process_what_it_could_not_hear() {
    let fake = Fake::start().await;
    let desk = Arc::<Listener>::default();
    *desk.stuck.lock().unwrap() = true;
    fake.happened(happens(tap(0, "a")));
    let running = Running::start(&Arc::new(telegram(&fake)), &desk);
    timeout(20 * SECOND, async {
        while desk.heard().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    running.stop().await;
    assert_eq!(fake.unconfirmed(), 1);
    let running = Running::start(&Arc::new(telegram(&fake)), &desk);
    fake.until_called("answerCallbackQuery", 1).await;
    running.stop().await;
    assert_eq!(desk.texts(), ["a on t501", "a on t501"]);
}

#[tokio::test]
async fn nothing_that_goes_wrong_ends_the_listening() {
    let fake = Fake::start().await;
    let desk = Arc::<Listener>::default();
    fake.instead("deleteWebhook", Instead::Page(502, "<html>"));
    let conflict = "Conflict: terminated by other getUpdates request";
    let failures = [
        Instead::error(409, conflict),
        Instead::error(401, "Unauthorized"),
        Instead::Page(200, "<html>"),
        Instead::error(429, "Too Many Requests: retry after 0"),
    ];
    for instead in failures {
        fake.instead("getUpdates", instead);
    }
    let telegram = Arc::new(telegram(&fake));
    let running = Running::start(&telegram, &desk);
    fake.until_called("getUpdates", 5).await;
    assert_eq!(fake.calls("deleteWebhook").len(), 2);
    assert_eq!(desk.heard(), []);
    *desk.broken.lock().unwrap() = true;
    fake.happened(happens(said(0, "breaks")));
    fake.happened(json!({"message": {"message_id": "no number"}}));
    fake.until(|| fake.unconfirmed() == 0, "both are passed over").await;
    assert_eq!(telegram.health(), Health::Working);
    fake.happened(happens(said(0, "heard")));
    fake.until(|| fake.unconfirmed() == 0, "heard").await;
    assert_eq!(desk.texts(), ["breaks", "heard"]);
    running.stop().await;
}
