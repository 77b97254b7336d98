use reqwest::header::HeaderMap;

use super::*;
use crate::chat::{Person, What};

const NOW: i64 = 1_531_420_618;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

/// A request as Slack signs it at a time.
fn signed(kind: &str, body: &str, seconds: i64) -> Hook {
    let timestamp = seconds.to_string();
    let signature = Signing::new(Secret::new(SIGNING_SECRET)).sign(&timestamp, body.as_bytes());
    let mut headers = HeaderMap::new();
    headers.insert("content-type", kind.parse().unwrap());
    headers.insert("x-slack-request-timestamp", timestamp.parse().unwrap());
    headers.insert("x-slack-signature", signature.parse().unwrap());
    Hook { headers, body: body.to_owned().into() }
}

fn form(payload: &Value) -> String {
    url::form_urlencoded::Serializer::new(String::new()).append_pair("payload", &payload.to_string()).finish()
}

fn interactive(payload: &Value) -> Hook {
    signed("application/x-www-form-urlencoded", &form(payload), NOW)
}

fn event_request(payload: &Value) -> Hook {
    signed("application/json", &payload.to_string(), NOW)
}

/// As the block_actions page and Slack's own payloads have it.
pub(super) fn tap(action_ts: &str) -> Value {
    json!({
        "type": "block_actions",
        "user": { "id": "U2CERLKJA", "username": "roadrunner", "name": "roadrunner", "team_id": "T1DC2JH3J" },
        "api_app_id": "A111", "token": "verification",
        "container": { "type": "message", "message_ts": "1503435956.000247", "channel_id": "C123", "is_ephemeral": false },
        "trigger_id": "398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c",
        "team": { "id": "T1DC2JH3J", "domain": "testteamnow" },
        "enterprise": null, "is_enterprise_install": false,
        "channel": { "id": "C123", "name": "foobar" },
        "message": { "type": "message", "ts": "1503435956.000247", "user": "U0BOT", "bot_id": "B1", "text": "…" },
        "state": { "values": {} },
        "actions": [{
            "type": "button", "action_id": "tap-a", "block_id": "x", "text": text("Approve"), "value": "the mark",
            "action_ts": action_ts,
        }],
    })
}

/// A message event as the Events API wraps it.
pub(super) fn event(id: &str, event: &Value) -> Value {
    json!({
        "token": "verification", "team_id": "T1DC2JH3J", "api_app_id": "A111", "type": "event_callback", "event_id": id,
        "event_time": NOW, "is_ext_shared_channel": false, "event": event,
        "authorizations": [{ "enterprise_id": null, "team_id": "T1DC2JH3J", "user_id": "U0BOT", "is_bot": true }],
    })
}

pub(super) fn direct(ts: &str, text: &str) -> Value {
    json!({
        "type": "message", "channel": "D024BE91L", "user": "U2CERLKJA", "text": text, "ts": ts, "event_ts": ts,
        "channel_type": "im", "team": "T1DC2JH3J", "client_msg_id": "f0582a78-72db-4feb-b2f3-1e47d66365c8",
    })
}

/// A reply in a channel, in a thread that somebody has begun.
fn in_thread(ts: &str, begun_by: &str, text: &str) -> Value {
    json!({
        "type": "message", "channel": "C123", "user": "U2CERLKJA", "text": text, "ts": ts, "event_ts": ts,
        "thread_ts": "1503435956.000247", "parent_user_id": begun_by, "channel_type": "channel", "team": "T1DC2JH3J",
    })
}

fn with(mut value: Value, name: &str, member: impl Into<Value>) -> Value {
    value[name] = member.into();
    value
}

fn replied(text: &str) -> Reply {
    Reply::text(text)
}

#[tokio::test]
async fn a_tap_reaches_the_desk_after_it_was_acknowledged_and_its_reply_the_tapper_alone() {
    let fake = FakeSlack::start().await;
    let mut running = Running::with_slow_desk(requests(&fake), replied("It is <done>."));
    let respond = format!("http://{}/respond/r1", fake.at);
    let request = interactive(&with(tap("1.1"), "response_url", respond));
    let answer = running.slack.hear_request(&request, at(NOW));
    assert_eq!((answer.status, answer.body.len(), answer.refused), (200, 0, None));

    let said = running.hears().await;
    assert_eq!((said.connector, said.address.as_str()), ("slack", "C123"));
    assert_eq!(said.by, Person { id: "T1DC2JH3J:U2CERLKJA".to_owned(), name: "roadrunner".to_owned() });
    let What::Tapped { mark, on } = said.what else { panic!("no tap") };
    assert_eq!((mark.as_str(), on.0.as_str()), ("the mark", "C123:1503435956.000247"));
    assert!(fake.calls("respond/r1").is_empty(), "the desk has not answered");

    running.desk.may_answer.add_permits(1);
    let expected = json!({
        "response_type": "ephemeral",
        "replace_original": false,
        "text": "It is &lt;done&gt;.",
        "blocks": [{ "type": "section", "text": text("It is &lt;done&gt;.") }],
    });
    assert_eq!(fake.called("respond/r1", 0).await, expected);
}

#[tokio::test]
async fn the_whole_way_in_checks_the_signature_against_the_clock() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(requests(&fake), Reply::default());
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let fresh = signed("application/x-www-form-urlencoded", &form(&tap("1.1")), now);
    let desk = Arc::clone(&running.desk);
    assert_eq!(running.slack.hook(fresh, &*desk).await.status, 200);
    running.hears().await;
    let stale = signed("application/x-www-form-urlencoded", &form(&tap("1.2")), now - 3600);
    assert_eq!(running.slack.hook(stale, &*desk).await.refused, Some("signature"));
}

#[tokio::test]
async fn a_reply_goes_nowhere_but_to_slack() {
    let fake = FakeSlack::start().await;
    let elsewhere = FakeSlack::start().await;
    let running = Running::start(requests(&fake), replied("Done."));
    for (nth, url) in [format!("http://{}/respond/r1", elsewhere.at), "no url".to_owned()].into_iter().enumerate() {
        let request = interactive(&with(tap(&format!("{nth}.1")), "response_url", url));
        assert_eq!(running.slack.hear_request(&request, at(NOW)).status, 200);
        let expected = json!({
            "channel": "C123", "user": "U2CERLKJA", "text": "Done.", "parse": "none", "link_names": false,
            "blocks": [{ "type": "section", "text": text("Done.") }],
        });
        assert_eq!(fake.called("chat.postEphemeral", nth).await, expected);
    }
    assert!(elsewhere.calls("respond/r1").is_empty());
}

#[tokio::test]
async fn a_reply_whose_address_has_expired_still_arrives() {
    let fake = FakeSlack::start().await;
    let running = Running::start(requests(&fake), replied("Done."));
    fake.answer("respond/r1", 404, None, json!("expired_url"));
    let request = interactive(&with(tap("1.1"), "response_url", format!("http://{}/respond/r1", fake.at)));
    running.slack.hear_request(&request, at(NOW));
    assert_eq!(fake.called("chat.postEphemeral", 0).await["text"], "Done.");
}

#[tokio::test]
async fn words_to_the_bot_are_told_and_answered_where_nobody_else_reads() {
    let fake = FakeSlack::start().await;
    let reply = Reply {
        text: "Never here.".to_owned(),
        link: Some(("Open the form".to_owned(), "https://onlooker.example/form/t".to_owned())),
        erase: true,
        refused: true,
    };
    let mut running = Running::start(requests(&fake), reply);
    let request = event_request(&event("Ev1", &direct("1.1", "my password is &lt;b&amp;c&gt;")));
    assert_eq!(running.slack.hear_request(&request, at(NOW)).status, 200);
    let said = running.hears().await;
    assert_eq!((said.address.as_str(), said.by.id.as_str()), ("D024BE91L", "T1DC2JH3J:U2CERLKJA"));
    let What::Told { text: told } = said.what else { panic!("not told") };
    assert_eq!(told, "my password is <b&c>");

    let body = fake.called("chat.postMessage", 0).await;
    assert_eq!(body["channel"], "D024BE91L");
    let shown = texts(&body["blocks"]);
    assert_eq!(shown[0], "Never here.");
    assert!(shown[1].contains("delete your message"), "{shown:?}");
    assert_eq!(urls(&body), ["https://onlooker.example/form/t"]);
}

#[tokio::test]
async fn replies_to_a_card_are_answers_and_other_threads_are_none_of_ours() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(requests(&fake), replied("Thanks."));
    let mention = |ts: &str| {
        let text = "<@U0BOT> 123456";
        json!({ "type": "app_mention", "channel": "C123", "user": "U2CERLKJA", "text": text, "ts": ts, "team": "T1DC2JH3J" })
    };
    let card = "1503435956.000247";
    let said = [
        (in_thread("2.1", "U0BOT", "the red one"), Some((Some("C123"), "the red one"))),
        (in_thread("2.2", "U0OTHER", "what do you think?"), None),
        (
            with(in_thread("2.3", "U0BOT", "shown to all"), "subtype", "thread_broadcast"),
            Some((Some("C123"), "shown to all")),
        ),
        // Begins a thread itself.
        (with(in_thread(card, "U0BOT", "top"), "thread_ts", card), None),
        (with(direct("2.4", "in the thread"), "thread_ts", card), Some((Some("D024BE91L"), "in the thread"))),
        (mention("2.5"), Some((None, "123456"))),
        (with(mention("2.6"), "thread_ts", card), Some((Some("C123"), "123456"))),
    ];
    for (nth, (payload, expected)) in said.iter().enumerate() {
        let request = event_request(&event(&format!("Ev{nth}"), payload));
        let answer = running.slack.hear_request(&request, at(NOW));
        assert_eq!((answer.status, answer.refused), (200, None));
        let Some((channel, words)) = expected else { continue };
        match (running.hears().await.what, channel) {
            (What::Replied { to, text }, Some(channel)) => {
                assert_eq!((to.0, text.as_str()), (format!("{channel}:{card}"), *words));
            }
            (What::Told { text }, None) => assert_eq!(text, *words),
            _ => panic!("{payload}"),
        }
    }
    // In the channel only the one who wrote sees the reply, below the card.
    let body = fake.called("chat.postEphemeral", 0).await;
    assert_eq!((&body["user"], &body["thread_ts"]), (&json!("U2CERLKJA"), &json!(card)));
    assert!(running.stop().await.try_recv().is_err(), "more was heard");
}

#[tokio::test]
async fn what_nobody_said_is_not_heard() {
    let fake = FakeSlack::start().await;
    let running = Running::start(requests(&fake), replied("?"));
    let said = direct("1.1", "hello");
    let mut ephemeral = tap("1.2");
    ephemeral["container"]["is_ephemeral"] = true.into();
    let mut link = tap("1.3");
    link["actions"][0] = json!({ "type": "button", "action_id": "link-0", "url": VIEW, "action_ts": "1.3" });
    let mut foreign = tap("1.4");
    foreign["actions"][0]["action_id"] = "approve".into();
    let events = [
        with(said.clone(), "bot_id", "B2"),
        with(said.clone(), "user", "U0BOT"),
        with(said.clone(), "subtype", "message_changed"),
        with(said.clone(), "subtype", "message_deleted"),
        with(said.clone(), "subtype", "bot_message"),
        with(with(said.clone(), "channel_type", "channel"), "channel", "C123"),
        json!({ "type": "reaction_added", "user": "U1", "item": {}, "event_ts": "1.1" }),
        json!({ "type": "channel_created", "channel": { "id": "C1" } }),
    ];
    let taps = [ephemeral, link, foreign, json!({ "type": "view_closed" }), json!({ "type": "shortcut" })];
    let requests =
        events.iter().map(|payload| event_request(&event("Ev1", payload))).chain(taps.iter().map(interactive));
    for request in requests {
        let answer = running.slack.hear_request(&request, at(NOW));
        assert_eq!((answer.status, answer.body.len(), answer.refused), (200, 0, None), "{:?}", request.body);
    }
    assert!(running.stop().await.try_recv().is_err(), "something was heard");
}

#[tokio::test]
async fn what_slack_brings_again_and_what_anybody_replays_is_heard_once() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(requests(&fake), Reply::default());
    let hear = |request: &Hook, seconds| {
        let answer = running.slack.hear_request(request, at(seconds));
        (answer.status, answer.refused)
    };
    let heard = (200, None);
    let request = interactive(&tap("1.1"));
    assert_eq!(hear(&request, NOW), heard);
    assert_eq!(hear(&request, NOW + 10), (401, Some("replayed")));
    assert_eq!(hear(&signed("application/x-www-form-urlencoded", &form(&tap("1.1")), NOW + 60), NOW + 60), heard);

    let body = event("Ev1", &direct("2.1", "once")).to_string();
    assert_eq!(hear(&signed("application/json", &body, NOW), NOW), heard);
    for again in [1, 60, 300] {
        assert_eq!(hear(&signed("application/json", &body, NOW + again), NOW + again), heard);
    }
    // A mention is brought as two events.
    let mention = with(in_thread("3.1", "U0BOT", "<@U0BOT> twice"), "type", "app_mention");
    for (id, payload) in [("Ev2", &in_thread("3.1", "U0BOT", "<@U0BOT> twice")), ("Ev3", &mention)] {
        assert_eq!(hear(&event_request(&event(id, payload)), NOW), heard);
    }
    // A second tap on the same button is a tap of its own.
    assert_eq!(hear(&interactive(&tap("1.2")), NOW), heard);
    for _ in 0..4 {
        running.hears().await;
    }
    assert!(running.stop().await.try_recv().is_err(), "something was heard twice");
}

#[tokio::test]
async fn what_slack_has_not_signed_now_is_not_even_read() {
    let fake = FakeSlack::start().await;
    let running = Running::start(requests(&fake), Reply::default());
    let refused = |request: &Hook, seconds| {
        let answer = running.slack.hear_request(request, at(seconds));
        (answer.status, answer.refused) == (401, Some("signature"))
    };
    let request = interactive(&tap("1.1"));
    assert!(refused(&request, NOW + 301) && refused(&request, NOW - 301), "stale");
    let forged = Hook { body: form(&tap("1.2")).into(), headers: request.headers.clone() };
    assert!(refused(&forged, NOW));
    assert!(refused(&Hook { headers: HeaderMap::new(), body: "{".into() }, NOW));
    let challenge = json!({ "type": "url_verification", "challenge": "x" });
    assert!(refused(&Hook { body: challenge.to_string().into(), ..forged }, NOW));
    // Nobody signs for a connector that hears otherwise.
    let other = slack_at(fake.at, Hearing::SocketMode { app_token: Secret::new(APP_TOKEN) });
    assert_eq!(other.hear_request(&request, at(NOW)).refused, Some("signature"));
    assert!(running.stop().await.try_recv().is_err());
}

#[tokio::test]
async fn malformed_payloads_are_refused_and_change_nothing() {
    let fake = FakeSlack::start().await;
    let running = Running::start(requests(&fake), Reply::default());
    let (json, form_kind) = ("application/json", "application/x-www-form-urlencoded");
    let without = |name: &str| {
        let mut payload = tap("1.1");
        payload.as_object_mut().unwrap().remove(name);
        form(&payload)
    };
    let mut nowhere = tap("1.1");
    for member in ["container", "message"] {
        nowhere.as_object_mut().unwrap().remove(member);
    }
    for (kind, body) in [
        (json, String::new()),
        (json, "{".to_owned()),
        (json, "[]".to_owned()),
        (json, "\"event_callback\"".to_owned()),
        (json, json!({ "type": "event_callback" }).to_string()),
        (json, json!({ "type": "event_callback", "event": [] }).to_string()),
        (json, json!({ "type": "url_verification" }).to_string()),
        (json, "[".repeat(100_000)),
        (form_kind, String::new()),
        (form_kind, "payload=%7B".to_owned()),
        (form_kind, "command=%2Fapprove&text=x".to_owned()),
        (form_kind, without("user")),
        (form_kind, without("actions")),
        (form_kind, form(&nowhere)),
        (form_kind, form(&json!({ "user": {} }))),
        ("text/plain", form(&tap("1.1"))),
        ("multipart/form-data", "x".to_owned()),
    ] {
        let answer = running.slack.hear_request(&signed(kind, &body, NOW), at(NOW));
        assert_eq!((answer.status, answer.refused), (400, Some("malformed")), "{kind} {body:.80}");
    }
    assert!(running.stop().await.try_recv().is_err());
}

#[tokio::test]
async fn a_challenge_is_answered() {
    let fake = FakeSlack::start().await;
    let challenge = "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P";
    let body = json!({ "token": "Jhj5dZrVaK7ZwHHjRyZWjbDl", "challenge": challenge, "type": "url_verification" });
    let answer = requests(&fake).hear_request(&event_request(&body), at(NOW));
    assert_eq!((answer.status, answer.content_type), (200, "application/json"));
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap(), json!({ "challenge": challenge }));
}

#[tokio::test]
async fn what_finds_no_room_is_refused_and_heard_when_it_comes_again() {
    let fake = FakeSlack::start().await;
    let slack = requests(&fake);
    for nth in 0..QUEUE {
        assert_eq!(slack.hear_request(&interactive(&tap(&format!("1.{nth}"))), at(NOW)).status, 200);
    }
    let one_more = interactive(&tap("2.0"));
    let answer = slack.hear_request(&one_more, at(NOW));
    assert_eq!((answer.status, answer.refused), (503, Some("busy")));
    let mut running = Running::start(slack, Reply::default());
    running.hears().await;
    assert_eq!(running.slack.hear_request(&one_more, at(NOW)).status, 200);
    for _ in 0..QUEUE {
        running.hears().await;
    }
}

#[tokio::test]
async fn a_stop_ends_what_the_desk_is_asked_at_once() {
    let fake = FakeSlack::start().await;
    let mut running = Running::with_slow_desk(requests(&fake), replied("Too late."));
    running.slack.hear_request(&interactive(&tap("1.1")), at(NOW));
    running.hears().await;
    let began = std::time::Instant::now();
    running.stop().await;
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}
