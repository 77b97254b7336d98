mod fake;
mod hearing;
mod socket_mode;

use onlooker_protocol::notice::FormLink;
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use zeroize::Zeroizing;

use self::fake::{APP_TOKEN, BOT_TOKEN, FakeSlack, soon};
use super::*;
use crate::{
    chat::{
        Reply, Said,
        marks::{MarkKey, Tap},
    },
    notifier::Extras,
};

const NOTICE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const VIEW: &str = "https://onlooker.example/view/abc";
const SIGNING_SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";

fn slack_at(at: std::net::SocketAddr, hearing: Hearing) -> Slack {
    // The second installation in a process fails, and that is fine.
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
    let api = format!("http://{at}/api/").parse().unwrap();
    let bot_token = Secret::new(BOT_TOKEN);
    Slack::new(SlackOptions { api, bot_token, hearing, timeout: Duration::from_millis(800) }).unwrap()
}

fn sending(fake: &FakeSlack) -> Slack {
    slack_at(fake.at, Hearing::Nothing)
}

fn requests(fake: &FakeSlack) -> Slack {
    slack_at(fake.at, Hearing::Requests { signing_secret: Secret::new(SIGNING_SECRET) })
}

/// Notes what it hears, and answers once it may.
struct TestDesk {
    heard: mpsc::UnboundedSender<Said>,
    reply: Reply,
    may_answer: Semaphore,
}

impl Desk for TestDesk {
    fn hear(&self, said: Said) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            self.heard.send(said).unwrap();
            self.may_answer.acquire().await.unwrap().forget();
            self.reply.clone()
        })
    }
}

struct Running {
    slack: Arc<Slack>,
    desk: Arc<TestDesk>,
    heard: mpsc::UnboundedReceiver<Said>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// With a desk that answers at once.
    fn start(slack: Slack, reply: Reply) -> Self {
        let running = Self::with_slow_desk(slack, reply);
        running.desk.may_answer.add_permits(1000);
        running
    }

    fn with_slow_desk(slack: Slack, reply: Reply) -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let desk = Arc::new(TestDesk { heard: sender, reply, may_answer: Semaphore::new(0) });
        let (slack, stop) = (Arc::new(slack), CancellationToken::new());
        let task = {
            let (slack, desk, stop) = (Arc::clone(&slack), Arc::clone(&desk), stop.clone());
            tokio::spawn(async move { slack.run(desk, stop).await })
        };
        Self { slack, desk, heard, stop, task }
    }

    /// The next thing that the desk hears.
    async fn hears(&mut self) -> Said {
        soon(self.heard.recv()).await.unwrap()
    }

    async fn stop(mut self) -> mpsc::UnboundedReceiver<Said> {
        self.stop.cancel();
        soon(&mut self.task).await.unwrap();
        std::mem::replace(&mut self.heard, mpsc::unbounded_channel().1)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn marks() -> crate::chat::marks::Marks {
    MarkKey::new(Zeroizing::new([7; 32])).marks(NOTICE).unwrap()
}

fn message(address: &str, body: &Value) -> Message {
    Message {
        id: NOTICE.to_owned(),
        address: address.to_owned(),
        body: body.to_string().into(),
        extras: Extras { marks: Some(marks()), view: Some(VIEW.to_owned()), ..Extras::default() },
        ..Message::default()
    }
}

fn opened(guardrail: &Value) -> Value {
    json!({ "type": "guardrail.opened", "id": NOTICE, "session": "abc", "at": "2026-01-01T00:00:00.000Z", "guardrail": guardrail })
}

fn purchase() -> Value {
    opened(&json!({
        "guardrailId": "g1", "revision": 1, "kind": "purchase", "value": "Buy the red one for 12 €?", "domain": "shop.example",
    }))
}

fn resolved() -> Value {
    json!({
        "type": "guardrail.resolved", "id": NOTICE, "session": "abc", "at": "2026-01-01T00:00:00.000Z",
        "guardrail": {
            "guardrailId": "g1", "revision": 1, "value": "Buy the red one for 12 €?", "outcome": "declined",
            "by": "<!channel> :fire:", "via": "slack",
        },
    })
}

fn text(text: &str) -> Value {
    json!({ "type": "plain_text", "text": text, "emoji": false })
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let own = members.get("text").and_then(Value::as_str).map(str::to_owned);
            own.into_iter().chain(members.values().flat_map(texts)).collect()
        }
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

fn urls(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(members) => {
            members.get("url").and_then(Value::as_str).into_iter().chain(members.values().flat_map(urls)).collect()
        }
        Value::Array(items) => items.iter().flat_map(urls).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn a_card_is_posted_as_the_documents_say() {
    let fake = FakeSlack::start().await;
    let sent = sending(&fake).send(&message("C123", &purchase())).await;
    assert_eq!(sent, Delivery::Shown(Receipt("C123:1503435956.000000".to_owned())));
    let button = |label: &str, tap: Tap| json!({ "type": "button", "text": text(label), "action_id": format!("tap-{tap}"), "value": marks().of(tap) });
    let mut buttons =
        [button("Approve", Tap::Approve), button("Reject", Tap::Decline), button("I have it", Tap::Claim)];
    buttons[0]["style"] = "primary".into();
    buttons[1]["style"] = "danger".into();
    let [approve, reject, claim] = buttons;
    let look = json!({ "type": "button", "text": text("Look at the session"), "action_id": "link-0", "url": VIEW });
    let expected = json!({
        "channel": "C123",
        "text": "A session wants to buy something\nBuy the red one for 12 €?",
        "blocks": [
            { "type": "header", "text": text("A session wants to buy something") },
            { "type": "section", "text": text("Buy the red one for 12 €?") },
            { "type": "context", "elements": [text("Site: shop.example")] },
            { "type": "context", "elements": [text("Tap, or reply to this message in your own words.")] },
            { "type": "actions", "elements": [approve, reject, claim, look] },
        ],
        "parse": "none",
        "link_names": false,
        "mrkdwn": false,
        "unfurl_links": false,
        "unfurl_media": false,
    });
    assert_eq!(fake.calls("chat.postMessage"), [expected]);
}

#[tokio::test]
async fn nothing_that_comes_from_a_page_is_a_mention_a_link_markup_or_an_emoji() {
    let hostile = "<!channel> <!here> <@U1> <https://evil.example|Approve> :fire: *bold* `code` & done";
    let choices: Vec<Value> = [hostile, "", " ", "&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&&", "b"]
        .iter()
        .enumerate()
        .map(|(nth, label)| json!({ "id": format!("c{nth}"), "label": label }))
        .collect();
    let asked = json!({
        "guardrailId": "g1", "revision": 1, "value": hostile, "domain": hostile, "websiteError": hostile, "choices": choices,
    });
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    assert!(matches!(slack.send(&message("C1", &opened(&asked))).await, Delivery::Shown(_)));
    let update = Message { card: Some(Receipt("C1:1.2".to_owned())), ..message("C1", &resolved()) };
    assert!(matches!(slack.send(&update).await, Delivery::Shown(_)));
    for body in [fake.calls("chat.postMessage"), fake.calls("chat.update")].concat() {
        for text in texts(&body) {
            assert!(!text.contains(['<', '>']), "{text}");
            let rest = text.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            assert!(!rest.contains('&'), "{text}");
        }
        assert!(!body["text"].as_str().unwrap().contains(":fire:"), "notifications show emojis");
        assert!(urls(&body).iter().all(|url| *url == VIEW), "{body}");
    }
}

#[tokio::test]
async fn a_hundred_kilobytes_are_cut_with_a_link_to_the_rest() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    for long in ["a".repeat(100 << 10), "<&>".repeat(40_000), "😀".repeat(25_600)] {
        let asked = opened(&json!({ "guardrailId": "g1", "revision": 1, "value": long }));
        assert!(matches!(slack.send(&message("C1", &asked)).await, Delivery::Shown(_)));
        let body = fake.calls("chat.postMessage").pop().unwrap();
        let shown = body["blocks"][1]["text"]["text"].as_str().unwrap();
        assert!(shown.ends_with('…') && shown.encode_utf16().count() > 2900, "{}", shown.len());
        assert_eq!(urls(&body), [VIEW]);
        assert!(texts(&body).iter().any(|text| text.contains("The text is cut")));
        assert!(body.to_string().len() < 30_000, "{}", body.to_string().len());
    }
}

#[tokio::test]
async fn what_is_secret_is_asked_for_by_a_link_and_the_most_choices_fit() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    let field = json!({ "id": "password", "type": "password", "required": true, "secret": true });
    let login = opened(&json!({ "guardrailId": "g1", "revision": 1, "kind": "login", "fields": [field] }));
    let form = FormLink { url: "https://onlooker.example/form/t".to_owned(), expires_at: "soon".to_owned() };
    let mut asking = message("C1", &login);
    asking.extras.form = Some(form.clone());
    assert!(matches!(slack.send(&asking).await, Delivery::Shown(_)));
    assert_eq!(urls(&fake.calls("chat.postMessage")[0]), [form.url.as_str(), VIEW]);

    let choices: Vec<Value> =
        (0..40).map(|nth| json!({ "id": format!("c{nth}"), "label": format!("No. {nth}") })).collect();
    let many = opened(&json!({ "guardrailId": "g1", "revision": 1, "value": "Which?", "choices": choices }));
    assert!(matches!(slack.send(&message("C1", &many)).await, Delivery::Shown(_)));
}

#[tokio::test]
async fn an_update_redraws_the_card_where_it_lies_and_takes_its_buttons() {
    let fake = FakeSlack::start().await;
    let card = Receipt("D123:1503435956.000247".to_owned());
    let update = Message { card: Some(card.clone()), ..message("U123", &resolved()) };
    assert_eq!(sending(&fake).send(&update).await, Delivery::Shown(card));
    let expected = json!({
        "channel": "D123",
        "ts": "1503435956.000247",
        "text": "Rejected by &lt;!channel&gt; :\u{200b}fire:\u{200b} (Slack)\nBuy the red one for 12 €?",
        "blocks": [
            { "type": "header", "text": text("Rejected by &lt;!channel&gt; :fire: (Slack)") },
            { "type": "section", "text": text("Buy the red one for 12 €?") },
        ],
        "parse": "none",
        "link_names": false,
    });
    assert_eq!(fake.calls("chat.update"), [expected]);
    assert!(fake.calls("chat.postMessage").is_empty());
}

#[tokio::test]
async fn an_update_that_cannot_be_made_is_rejected() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    let update = Message { card: Some(Receipt("C1:1.2".to_owned())), ..message("C1", &resolved()) };
    for error in ["message_not_found", "cant_update_message", "edit_window_closed"] {
        fake.refuse("chat.update", error);
        assert_eq!(slack.send(&update).await, Delivery::Rejected { error: format!("Slack answered `{error}`") });
    }
    let lost = Message { card: Some(Receipt("elsewhere".to_owned())), ..update };
    assert!(matches!(slack.send(&lost).await, Delivery::Rejected { .. }));
    assert_eq!(slack.health(), Health::Working);
}

#[tokio::test]
async fn a_result_is_a_reply_in_the_thread_of_its_question_or_beside_it() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    let result = json!({
        "type": "task.completed", "id": NOTICE, "session": "abc", "at": "2026-01-01T00:00:00.000Z", "result": { "message": "Bought." },
    });
    let below = Message { thread: Some(Receipt("D123:5.6".to_owned())), ..message("U123", &result) };
    assert!(matches!(slack.send(&below).await, Delivery::Shown(_)));
    fake.refuse("chat.postMessage", "restricted_action_thread_locked");
    assert!(matches!(slack.send(&below).await, Delivery::Shown(_)));
    let calls = fake.calls("chat.postMessage");
    let places: Vec<_> = calls.iter().map(|call| (&call["channel"], call.get("thread_ts"))).collect();
    let (direct, ts) = (json!("D123"), json!("5.6"));
    assert_eq!(places, [(&direct, Some(&ts)), (&direct, Some(&ts)), (&direct, None)]);
}

#[tokio::test]
async fn a_person_as_address_leaves_the_receipt_of_their_direct_messages() {
    let fake = FakeSlack::start().await;
    let sent = sending(&fake).send(&message("U123", &purchase())).await;
    assert_eq!(sent, Delivery::Shown(Receipt("D123:1503435956.000000".to_owned())));
}

#[tokio::test]
async fn too_many_requests_wait_as_long_as_slack_says() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    fake.answer("chat.postMessage", 429, Some(30), json!({ "ok": false, "error": "ratelimited" }));
    fake.answer("chat.postMessage", 200, Some(7), json!({ "ok": false, "error": "ratelimited" }));
    fake.refuse("chat.postMessage", "rate_limited");
    for (wait, error) in [(30, "HTTP 429"), (7, "`ratelimited`"), (10, "`rate_limited`")] {
        let error = format!("Slack answered {error}");
        let expected = Delivery::Refused { error, retry_after: Some(Duration::from_secs(wait)) };
        assert_eq!(slack.send(&message("C1", &purchase())).await, expected);
    }
    assert_eq!(slack.health(), Health::Working);
}

#[tokio::test]
async fn a_revoked_token_disables_the_connector_until_slack_accepts_it_again() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    for error in ["token_revoked", "invalid_auth", "account_inactive", "missing_scope"] {
        fake.refuse("chat.postMessage", error);
        let sent = slack.send(&message("C1", &purchase())).await;
        assert_eq!(sent, Delivery::Rejected { error: format!("Slack answered `{error}`") });
        let Health::Disabled(advice) = slack.health() else { panic!("works after {error}") };
        assert!(advice.contains(error) && advice.contains("slack.bot_token") && !advice.contains("xoxb"), "{advice}");
    }
    assert!(matches!(slack.send(&message("C1", &purchase())).await, Delivery::Shown(_)));
    assert_eq!(slack.health(), Health::Working);
}

#[tokio::test]
async fn a_bad_token_is_found_before_anything_is_sent() {
    let fake = FakeSlack::start().await;
    fake.refuse("auth.test", "invalid_auth");
    let running = Running::start(sending(&fake), Reply::default());
    while running.slack.health() == Health::Working {
        tokio::task::yield_now().await;
    }
    assert!(matches!(running.slack.health(), Health::Disabled(_)));
}

#[tokio::test]
async fn an_archived_channel_is_rejected_and_another_one_is_not() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    for error in ["is_archived", "channel_not_found", "not_in_channel", "user_not_found", "restricted_action"] {
        fake.refuse("chat.postMessage", error);
        assert!(matches!(slack.send(&message("C1", &purchase())).await, Delivery::Rejected { .. }), "{error}");
        assert_eq!(slack.health(), Health::Working);
        assert!(matches!(slack.send(&message("C2", &purchase())).await, Delivery::Shown(_)));
    }
}

#[tokio::test]
async fn what_may_have_worked_is_unknown_and_what_cannot_have_is_refused() {
    let fake = FakeSlack::start().await;
    let slack = sending(&fake);
    let html = json!("<html>https://slack.com/secret</html>");
    for (status, body, unknown) in [
        (200, json!({ "ok": false, "error": "fatal_error" }), true),
        (500, json!({ "ok": false, "error": "internal_error" }), true),
        (200, json!({ "ok": false, "error": "service_unavailable" }), false),
        (200, json!({ "ok": false, "error": "request_timeout" }), false),
        (502, html.clone(), true),
        (503, html.clone(), false),
        (200, html, true),
    ] {
        fake.answer("chat.postMessage", status, None, body.clone());
        match slack.send(&message("C1", &purchase())).await {
            Delivery::Unknown { error } if unknown => assert!(!error.contains("secret"), "{error}"),
            Delivery::Refused { error, .. } if !unknown => assert!(!error.contains("secret"), "{error}"),
            other => panic!("{status} {body}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_leaves_the_outcome_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let cutting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        drop(stream);
        // The next connection gets no answer.
        let (stream, _) = listener.accept().await.unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let slack = slack_at(at, Hearing::Nothing);
    for text in ["the connection broke before an answer", "no answer in time"] {
        let unknown = Delivery::Unknown { error: text.to_owned() };
        assert_eq!(slack.send(&message("C1", &purchase())).await, unknown);
    }
    cutting.abort();
    let _ = cutting.await;
    let refused = slack.send(&message("C1", &purchase())).await;
    let Delivery::Refused { error, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(error, "Slack could not be reached (name, connection or TLS)");
}

#[test]
fn how_answers_come_follows_from_the_configuration() {
    let secret = || Some(Secret::new("word"));
    let mut config = Config::default();
    assert!(SlackOptions::from_config(&config).is_none());
    config.slack.bot_token = secret();
    let hearing = |config: &Config| SlackOptions::from_config(config).unwrap().hearing;
    assert!(matches!(hearing(&config), Hearing::Nothing));
    (config.slack.app_token, config.slack.signing_secret) = (secret(), secret());
    assert!(matches!(hearing(&config), Hearing::SocketMode { .. }));
    config.listen.public_url = Some("https://onlooker.example/".parse().unwrap());
    assert!(matches!(hearing(&config), Hearing::Requests { .. }));
}
