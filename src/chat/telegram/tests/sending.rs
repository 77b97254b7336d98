use bytes::Bytes;
use onlooker_protocol::notice::FormLink;
use tokio::{sync::Notify, time::timeout};
use zeroize::Zeroizing;

use super::*;
use crate::{
    chat::marks::Tap,
    config::Config,
    engine::memory::MemoryEngine,
    gateway::bounds,
    ids::SessionId,
    images::{ImageBounds, Images, Placed, Reducer},
    ingest::NewPicture,
    notifier::Notifiers,
    outbox::{Draft, NoticeKey, NoticeState, NoticeSubject, Outbox, OutboxTimes, Owners, Verdict},
    reach_out::ladder::Rung,
};

const VIEW: &str = "https://onlooker.example/view/abcdefghij0123456789";

fn marks() -> crate::chat::marks::Marks {
    MarkKey::new(Zeroizing::new([1; 32])).marks(NOTICE).unwrap()
}

/// A question, as the outbox hands it over.
fn question(guardrail: &Value) -> Message {
    let body = json!({
        "type": "guardrail.opened", "id": NOTICE, "session": "s", "at": "2026-01-02T03:04:05.678Z",
        "guardrail": guardrail,
    });
    Message {
        id: NOTICE.to_owned(),
        address: "77".to_owned(),
        body: body.to_string().into(),
        extras: Extras { marks: Some(marks()), ..Extras::default() },
        ..Message::default()
    }
}

fn purchase(value: &str) -> Message {
    question(&json!({"guardrailId": "g", "revision": 1, "kind": "purchase", "value": value}))
}

fn closed(card: Option<Receipt>, value: &str) -> Message {
    let guardrail = json!({
        "guardrailId": "g", "revision": 1, "value": value, "outcome": "answered", "by": "Ann", "via": "telegram",
    });
    let body = json!({
        "type": "guardrail.resolved", "id": NOTICE, "session": "s", "at": "2026-01-02T03:04:05.678Z",
        "guardrail": guardrail,
    });
    Message { body: body.to_string().into(), card, extras: Extras::default(), ..purchase(value) }
}

fn picture(bytes: usize) -> Arc<Picture> {
    let reducer = Reducer::new(Default::default(), Default::default(), Default::default());
    let images = Images::new(ImageBounds { count: 1, bytes: usize::MAX }, reducer);
    let new = NewPicture { media: "image/jpeg".to_owned(), bytes: Bytes::from(vec![0xd8; bytes]) };
    images.add(SessionId::random(), new, Placed { id: "p".into(), offset: 0, only_for: None });
    images.latest_for_all(1).unwrap()
}

fn with_picture(mut message: Message, bytes: usize) -> Message {
    message.extras.picture = Some(picture(bytes));
    message
}

fn receipt(delivery: &Delivery) -> Receipt {
    let Delivery::Shown(receipt) = delivery else { panic!("{delivery:?}") };
    receipt.clone()
}

fn error(delivery: &Delivery) -> &str {
    match delivery {
        Delivery::Refused { error, .. } | Delivery::Rejected { error } | Delivery::Unknown { error } => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_question_is_one_message_whose_buttons_carry_marks() {
    let fake = Fake::start().await;
    let mut message = question(&json!({
        "guardrailId": "g", "revision": 1, "kind": "purchase", "value": "Buy \"Tom & Jerry\" <now>?",
        "domain": "shop.example",
    }));
    message.extras.view = Some(VIEW.to_owned());
    let delivery = telegram(&fake).send(&message).await;
    let (id, _) = fake.only_message();
    assert_eq!(receipt(&delivery), Receipt(format!("t{id}")));
    let text = "<b>A session wants to buy something</b>\n\nBuy &quot;Tom &amp; Jerry&quot; &lt;now&gt;?\n\n\
                Site: <code>shop.example</code>\n\nTap, or reply to this message in your own words.";
    let tap = |label: &str, tap| json!({"text": label, "callback_data": marks().of(tap)});
    let expected = json!({
        "chat_id": 77,
        "parse_mode": "HTML",
        "text": text,
        "link_preview_options": {"is_disabled": true},
        "reply_markup": {"inline_keyboard": [
            [{"text": "Look at the session", "url": VIEW}],
            [tap("Approve", Tap::Approve), tap("Reject", Tap::Decline), tap("I have it", Tap::Claim)],
        ]},
    });
    assert_eq!(fake.last("sendMessage"), expected);
}

#[tokio::test]
async fn nothing_that_a_page_says_is_markup_or_can_be_tapped() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let hostile = [
        ("<a href=\"https://evil.example\">Approve</a>", true),
        ("</b></code><pre>&lt;&#60;", true),
        ("read https://evil.example/now", true),
        ("ask @evil_bot", true),
        ("mail a@evil.example", true),
        ("send /start EVIL", true),
        ("(/link EVIL)", true),
        ("see evil.example.", true),
        ("call +1 555 0100", true),
        ("#evil, $EVIL", true),
        ("at 10.0.0.1", true),
        ("tg://resolve", true),
        ("Pay 59.99 or 60, and/or stop. Really? #3", false),
    ];
    for (text, as_code) in hostile {
        assert!(matches!(telegram.send(&purchase(text)).await, Delivery::Shown(_)), "{text}");
        let html = fake.last("sendMessage")["text"].as_str().unwrap().to_owned();
        assert!(!html.contains("<a") && !html.contains("<pre"), "{html}");
        assert!(fake::plain(&html).unwrap().contains(text), "{html}");
        assert_eq!(html.contains("<code>"), as_code, "{html}");
    }
}

#[tokio::test]
async fn what_cannot_be_seen_is_left_out() {
    let fake = Fake::start().await;
    telegram(&fake).send(&purchase("pay\u{202e}evil\u{2069}\u{200b}\0 now\u{2028}👩\u{200d}💻")).await;
    let (_, message) = fake.only_message();
    assert!(message.text.contains("payevil now\n👩\u{200d}💻"), "{message:?}");
}

#[tokio::test]
async fn a_long_question_is_cut_with_a_link_to_the_rest() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    for letter in ["x", "&", "👩", "\u{200b}x"] {
        let mut message = purchase(&letter.repeat(100_000));
        message.extras.view = Some(VIEW.to_owned());
        fake.forget_messages();
        assert!(matches!(telegram.send(&message).await, Delivery::Shown(_)), "{letter}");
        let (_, message) = fake.only_message();
        let length = message.text.encode_utf16().count();
        assert!((4090..=4096).contains(&length), "{length} of {letter}");
        assert!(message.text.contains("…\n"), "{letter}");
        assert_eq!(message.keyboard[0][0]["url"], VIEW);
        assert_eq!(message.keyboard.len(), 2, "it can still be answered");
    }
    let delivery = telegram.send(&purchase(&"x".repeat(100_000))).await;
    assert!(matches!(delivery, Delivery::Shown(_)));
    let html = fake.last("sendMessage")["text"].to_string();
    assert!(html.contains("own words. The text is cut; the console shows the whole of it."), "{html}");
}

#[tokio::test]
async fn links_that_telegram_refuses_on_buttons_are_text() {
    let fake = Fake::start().await;
    let mut message = question(&json!({
        "guardrailId": "g", "revision": 1, "kind": "login", "value": "x".repeat(9000),
        "fields": [{"id": "p", "type": "password", "secret": true}],
    }));
    let form = "http://127.0.0.1:8787/form/token".to_owned();
    message.extras.form = Some(FormLink { url: form.clone(), expires_at: "2026-01-02T03:19:05.678Z".to_owned() });
    message.extras.view = Some("https://localhost/view/abc".to_owned());
    assert!(matches!(telegram(&fake).send(&message).await, Delivery::Shown(_)));
    let (_, message) = fake.only_message();
    assert!(message.text.contains(&format!("Open the form: {form}\nLook at the session: https://localhost/view/abc")));
    assert!(message.text.contains("Never type passwords or codes here."));
    let labels: Vec<_> = message.keyboard[0].iter().map(|button| button["text"].clone()).collect();
    assert_eq!(labels, ["New link", "Reject", "I have it"]);
    assert_eq!(message.keyboard.len(), 1);
}

#[tokio::test]
async fn a_choice_without_a_word_has_a_number_and_does_not_cost_the_message() {
    let fake = Fake::start().await;
    let choices = json!([{"id": "a", "label": "\u{200b} "}, {"id": "b", "label": "<Blue>\n"}, {"id": "c"}]);
    let message =
        question(&json!({"guardrailId": "g", "revision": 1, "kind": "ambiguous", "value": "?", "choices": choices}));
    assert!(matches!(telegram(&fake).send(&message).await, Delivery::Shown(_)));
    let (_, message) = fake.only_message();
    let rows: Vec<_> = message.keyboard[..3].iter().map(|row| row[0]["text"].as_str().unwrap()).collect();
    assert_eq!(rows, ["Choice 1", "<Blue> ", "c"]);
    assert_eq!(message.keyboard[1][0]["callback_data"], marks().of(Tap::Choice(1)));
}

#[tokio::test]
async fn a_picture_carries_the_question_and_its_caption_is_edited() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let delivery = telegram.send(&with_picture(purchase("Buy?"), 3000)).await;
    let (id, message) = fake.only_message();
    assert_eq!(receipt(&delivery), Receipt(format!("p{id}")));
    assert!(message.is_photo && message.text.contains("\n\nBuy?\n\n"), "{message:?}");
    assert_eq!(message.keyboard.len(), 1);
    let Call { file, parameters, .. } = fake.calls("sendPhoto").pop().unwrap();
    assert_eq!(file, Some(("image/jpeg".to_owned(), Bytes::from(vec![0xd8; 3000]))));
    assert_eq!(parameters.get("link_preview_options"), None);

    let edited = telegram.send(&closed(Some(receipt(&delivery)), &"Buy? ".repeat(1000))).await;
    assert_eq!(receipt(&edited), receipt(&delivery));
    let (_, message) = fake.only_message();
    assert!(message.text.starts_with("Answered by Ann (Telegram)"), "{message:?}");
    assert_eq!(message.keyboard, Vec::<Vec<Value>>::new());
}

#[tokio::test]
async fn a_picture_takes_nothing_from_the_question() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    // A long question is cut under a picture, but not to a stump: many facts leave it a message of its own.
    telegram.send(&with_picture(purchase(&"x".repeat(5000)), 10)).await;
    assert_eq!(fake.calls("sendPhoto").len(), 1);
    let facts = json!({
        "guardrailId": "g", "revision": 1, "kind": "purchase", "value": "x".repeat(900),
        "domain": "d".repeat(200), "websiteError": "e".repeat(200), "expiresAt": "f".repeat(200),
    });
    telegram.send(&with_picture(question(&facts), 10)).await;
    assert_eq!(fake.calls("sendMessage").len(), 1);
    // Telegram takes no larger one, and says what it thinks of this one.
    telegram.send(&with_picture(purchase("Buy?"), PICTURE + 1)).await;
    assert_eq!((fake.calls("sendPhoto").len(), fake.calls("sendMessage").len()), (1, 2));
    for instead in [Instead::error(400, "Bad Request: PHOTO_INVALID_DIMENSIONS"), Instead::Page(413, "too large")] {
        fake.forget_messages();
        fake.instead("sendPhoto", instead);
        let delivery = telegram.send(&with_picture(purchase("Buy?"), 10)).await;
        let (id, message) = fake.only_message();
        assert_eq!(receipt(&delivery), Receipt(format!("t{id}")));
        assert!(!message.is_photo && message.keyboard.len() == 1);
    }
    // The repeat goes without.
    let repeat = Message { repeat: true, ..with_picture(purchase("Buy?"), 10) };
    let pictures = fake.calls("sendPhoto").len();
    assert!(receipt(&telegram.send(&repeat).await).0.starts_with('t'));
    assert_eq!(fake.calls("sendPhoto").len(), pictures);
}

#[tokio::test]
async fn an_edit_removes_the_buttons_and_can_be_repeated() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let sent = receipt(&telegram.send(&purchase("Buy?")).await);
    let update = closed(Some(sent.clone()), "Buy?");
    assert_eq!(telegram.send(&update).await, Delivery::Shown(sent.clone()));
    let (id, message) = fake.only_message();
    assert_eq!(message.keyboard, Vec::<Vec<Value>>::new());
    let expected = json!({
        "chat_id": 77, "message_id": id, "parse_mode": "HTML", "reply_markup": {"inline_keyboard": []},
        "text": "<b>Answered by Ann (Telegram)</b>\n\nBuy?", "link_preview_options": {"is_disabled": true},
    });
    assert_eq!(fake.last("editMessageText"), expected);
    assert_eq!(telegram.send(&update).await, Delivery::Shown(sent), "it is as it should be");
    assert_eq!(fake.calls("sendMessage").len(), 1);
}

#[tokio::test]
async fn there_is_nothing_left_to_edit_where_the_message_is_gone() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let gone = closed(Some(Receipt("t999".to_owned())), "Buy?");
    assert_eq!(telegram.send(&gone).await, Delivery::Confirmed);
    fake.instead("editMessageText", Instead::error(400, "Bad Request: message can't be edited"));
    assert_eq!(telegram.send(&gone).await, Delivery::Confirmed);
}

#[tokio::test]
async fn an_end_without_a_message_to_edit_is_told_quietly() {
    let fake = Fake::start().await;
    telegram(&fake).send(&closed(None, "Buy?")).await;
    let sent = fake.last("sendMessage");
    assert_eq!((&sent["disable_notification"], sent.get("reply_markup")), (&Value::from(true), None));
}

#[tokio::test]
async fn a_result_lies_under_its_question_and_is_sent_alone_where_that_is_refused() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let body = json!({
        "type": "task.completed", "session": "s", "at": "2026-01-02T03:04:05.678Z", "result": {"message": "Done."},
    });
    let message = Message {
        body: body.to_string().into(),
        thread: Some(Receipt("p321".to_owned())),
        extras: Extras::default(),
        ..purchase("")
    };
    assert!(matches!(telegram.send(&message).await, Delivery::Shown(_)));
    let under = json!({"message_id": 321, "allow_sending_without_reply": true});
    assert_eq!(fake.last("sendMessage")["reply_parameters"], under);
    fake.instead("sendMessage", Instead::error(400, "Bad Request: message to be replied not found"));
    assert!(matches!(telegram.send(&message).await, Delivery::Shown(_)));
    assert_eq!(fake.last("sendMessage").get("reply_parameters"), None);
}

#[tokio::test]
async fn each_refusal_is_what_it_means_and_shows_no_token_and_no_address() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let migrated = Instead::Error {
        code: 400,
        description: "Bad Request: group chat was upgraded to a supergroup chat",
        parameters: json!({"migrate_to_chat_id": -1_001_234_567_890_i64}),
    };
    let rejected = |text: &str| Delivery::Rejected { error: text.to_owned() };
    let refused = |text: &str| Delivery::Refused { error: text.to_owned(), retry_after: None };
    let echo = "Bad Request: inline keyboard button URL https://onlooker.example/form/secret is invalid";
    let table = [
        (Instead::error(403, "Forbidden: bot was blocked by the user"), rejected("the person has blocked the bot")),
        (
            Instead::error(403, "Forbidden: bot was kicked from the group chat"),
            rejected("the bot was removed from the chat"),
        ),
        (Instead::error(400, "Bad Request: chat not found"), rejected("Telegram knows no such chat: link it again")),
        (migrated, rejected("the group has become a supergroup with another id: link it again")),
        (Instead::error(400, echo), rejected("Telegram refuses the message")),
        (Instead::error(500, "Internal Server Error"), refused("Telegram answered HTTP 500")),
        (Instead::Page(502, "<html>"), refused("Telegram answered HTTP 502")),
        (
            Instead::Page(200, "<html>"),
            Delivery::Unknown { error: "the answer broke off, or did not come from the Bot API".to_owned() },
        ),
        (Instead::Page(403, "<html>"), rejected("Telegram refuses the message")),
    ];
    for (instead, expected) in table {
        fake.instead("sendMessage", instead);
        let delivery = telegram.send(&purchase("Buy?")).await;
        assert_eq!(delivery, expected);
        assert!(!error(&delivery).contains("token-of") && !error(&delivery).contains("http://"));
        assert_eq!(telegram.health(), Health::Working);
    }
    let elsewhere = Message { address: "@channel".to_owned(), ..purchase("Buy?") };
    assert!(matches!(telegram.send(&elsewhere).await, Delivery::Rejected { .. }));
    assert_eq!(fake.calls("sendMessage").len(), 9, "an address that is none is not tried");
}

#[tokio::test]
async fn a_revoked_token_disables_the_connector_until_it_is_accepted_again() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    for code in [401, 404] {
        fake.instead("sendMessage", Instead::error(code, "Unauthorized"));
        let delivery = telegram.send(&purchase("Buy?")).await;
        assert!(matches!(&delivery, Delivery::Rejected { .. }) && error(&delivery).contains("@BotFather"));
        let Health::Disabled(what_to_do) = telegram.health() else { panic!("{code}") };
        assert!(what_to_do.contains("`telegram.token`") && !what_to_do.contains("token-of"));
        assert!(matches!(telegram.send(&purchase("Buy?")).await, Delivery::Shown(_)));
        assert_eq!(telegram.health(), Health::Working);
    }
}

#[tokio::test]
async fn what_cannot_have_arrived_is_refused_and_what_may_have_is_unknown() {
    let closed_port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for api in [format!("http://{closed_port}/"), "http://no.such.host.invalid/".to_owned()] {
        let delivery = telegram_at(&api, None).send(&purchase("Buy?")).await;
        assert!(matches!(&delivery, Delivery::Refused { .. }), "{delivery:?}");
        assert!(!error(&delivery).contains("token-of") && !error(&delivery).contains("http"));
    }
    let broken = raw(|stream| async move { drop(stream) }).await;
    let silent = raw(|stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });
    let half = raw(|mut stream| async move {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"ok\":true").await);
    });
    for (what, api) in [("broken", broken), ("silent", silent.await), ("half", half.await)] {
        let delivery = telegram_at(&api, None).send(&purchase("Buy?")).await;
        assert!(matches!(&delivery, Delivery::Unknown { .. }), "{what}: {delivery:?}");
        assert!(!error(&delivery).contains("token-of") && !error(&delivery).contains("http"));
    }
}

#[tokio::test]
async fn a_wait_that_telegram_asks_for_is_kept_in_that_chat() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let to = |address: &str| Message { address: address.to_owned(), ..purchase("Buy?") };
    fake.instead("sendMessage", Instead::wait(1));
    let told = telegram.send(&to("77")).await;
    let told_at = Instant::now();
    let wait = Delivery::Refused { error: "Telegram asks to wait for 1 s".to_owned(), retry_after: Some(SECOND) };
    assert_eq!(told, wait);
    let Delivery::Refused { retry_after: Some(left), .. } = telegram.send(&to("77")).await else { panic!("early") };
    let edit = telegram.send(&closed(Some(Receipt("t501".to_owned())), "Buy?")).await;
    assert!(matches!(edit, Delivery::Refused { retry_after: Some(_), .. }));
    assert_eq!(fake.calls("sendMessage").len(), 1, "nothing was sent");
    assert!(matches!(telegram.send(&to("78")).await, Delivery::Shown(_)), "another chat");
    tokio::time::sleep(left).await;
    assert!(matches!(telegram.send(&to("77")).await, Delivery::Shown(_)));
    assert!(fake.calls("sendMessage")[2].at >= told_at + SECOND - Duration::from_millis(50));
}

#[tokio::test]
async fn a_group_gets_twenty_messages_a_minute() {
    let fake = Fake::start().await;
    let telegram = telegram(&fake);
    let group = Message { address: "-100".to_owned(), ..purchase("Buy?") };
    for _ in 0..20 {
        assert!(matches!(telegram.send(&group).await, Delivery::Shown(_)));
    }
    let Delivery::Refused { retry_after: Some(wait), .. } = telegram.send(&group).await else { panic!("too many") };
    assert!(wait > 30 * SECOND && wait <= 60 * SECOND, "{wait:?}");
    assert_eq!(fake.calls("sendMessage").len(), 20);
    assert_eq!(telegram.pace(), Pace { address: SECOND, overall: Duration::from_millis(34) });
}

/// Wants every notice sent, and knows what became of it.
#[derive(Default)]
struct Wants {
    settled: Mutex<Vec<NoticeState>>,
    changed: Notify,
}

impl Wants {
    async fn until(&self, states: &[NoticeState]) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if *self.settled.lock().unwrap() == states {
                    return;
                }
                changed.await;
            }
        };
        timeout(20 * SECOND, waiting).await.unwrap();
    }
}

impl Owners for Wants {
    fn recheck<'a>(&'a self, _: &'a NoticeKey) -> BoxFuture<'a, Verdict> {
        Box::pin(async { Verdict::Send })
    }

    fn dress<'a>(&'a self, _: &'a NoticeKey, _: &'a str) -> BoxFuture<'a, Extras> {
        Box::pin(async { Extras { marks: Some(marks()), picture: Some(picture(10)), ..Extras::default() } })
    }

    fn settled<'a>(&'a self, _: &'a NoticeKey, state: NoticeState) -> BoxFuture<'a, ()> {
        self.settled.lock().unwrap().push(state);
        self.changed.notify_waiters();
        Box::pin(async {})
    }
}

#[tokio::test]
async fn after_an_unknown_outcome_one_marked_repeat_is_sent_and_then_edited() {
    let fake = Fake::start().await;
    let engine = Arc::new(MemoryEngine::new(bounds(&Config::default())));
    let notifier = Arc::new(telegram(&fake)) as Arc<dyn Notifier>;
    let notifiers = Notifiers::from_iter([(NAME.to_owned(), notifier)]);
    let (outbox, dispatcher) = Outbox::new(engine, notifiers, OutboxTimes::default());
    let wants = Arc::new(Wants::default());
    let stop = CancellationToken::new();
    let running = tokio::spawn(dispatcher.run(Arc::clone(&wants) as Arc<dyn Owners>, stop.clone()));

    fake.instead("sendPhoto", Instead::TakenAndBroken);
    let session = SessionId::random();
    let subject = NoticeSubject::Guardrail { id: "g".to_owned(), revision: 1 };
    let key = NoticeKey { session, subject, target: "telegram:77".to_owned(), rung: Rung::default() };
    let body: Value = serde_json::from_slice(&purchase("Buy?").body).unwrap();
    let body = body.as_object().unwrap().clone();
    let draft = Draft { key, project: "p".into(), body, thread: None };
    outbox.queue(draft).await.unwrap();
    fake.until_called("sendMessage", 1).await;
    let repeat = fake.last("sendMessage")["text"].as_str().unwrap().to_owned();
    assert!(repeat.contains("sent again: the first one may not have arrived"), "{repeat}");
    wants.until(&[NoticeState::Unknown, NoticeState::Confirmed]).await;

    let ended: Value = serde_json::from_slice(&closed(None, "Buy?").body).unwrap();
    outbox.close(session, "g", 1, ended.as_object().unwrap().clone()).await.unwrap();
    fake.until_called("editMessageText", 1).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!((fake.calls("sendPhoto").len(), fake.calls("sendMessage").len()), (1, 1));
    assert_eq!(fake.last("editMessageText")["message_id"], 502, "the repeat's message");
}
