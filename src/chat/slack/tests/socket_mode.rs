use axum::extract::ws::Message as Frame;

use super::{
    hearing::{direct, event, tap},
    *,
};
use crate::chat::What;

fn socket_mode(fake: &FakeSlack) -> Slack {
    let mut slack = slack_at(fake.at, Hearing::SocketMode { app_token: Secret::new(APP_TOKEN) });
    let soon = Duration::from_millis(20);
    let times = SocketTimes { retry_first: soon, retry_longest: soon, retry_refused: soon, ..SocketTimes::default() };
    slack.socket = Some(times);
    slack
}

fn interactive(id: &str, payload: &Value) -> Value {
    json!({ "envelope_id": id, "type": "interactive", "accepts_response_payload": false, "payload": payload })
}

fn events_api(id: &str, payload: &Value) -> Value {
    json!({
        "envelope_id": id, "type": "events_api", "accepts_response_payload": false, "retry_attempt": 0, "retry_reason": "",
        "payload": payload,
    })
}

fn disconnect(reason: &str) -> Value {
    json!({ "type": "disconnect", "reason": reason, "debug_info": { "host": "applink-1" } })
}

#[tokio::test]
async fn envelopes_are_acknowledged_before_the_desk_has_answered() {
    let fake = FakeSlack::start().await;
    let mut running = Running::with_slow_desk(socket_mode(&fake), Reply::text("Done."));
    let mut link = fake.link().await;
    link.send(&interactive("e1", &tap("1.1")));
    assert_eq!(link.acknowledged().await, json!({ "envelope_id": "e1" }));
    let What::Tapped { mark, .. } = running.hears().await.what else { panic!("no tap") };
    assert_eq!(mark, "the mark");
    link.send(&events_api("e2", &event("Ev1", &direct("2.1", "hello"))));
    assert_eq!(link.acknowledged().await, json!({ "envelope_id": "e2" }));
    assert!(matches!(running.hears().await.what, What::Told { .. }));
    assert!(fake.calls("chat.postEphemeral").is_empty(), "the desk has not answered");
    running.desk.may_answer.add_permits(2);
    assert_eq!(fake.called("chat.postEphemeral", 0).await["text"], "Done.");
    assert_eq!(fake.called("chat.postMessage", 0).await["text"], "Done.");
}

#[tokio::test]
async fn an_envelope_that_comes_again_is_acknowledged_and_heard_once() {
    let fake = FakeSlack::start().await;
    let running = Running::start(socket_mode(&fake), Reply::default());
    let mut link = fake.link().await;
    let tapped = interactive("e1", &tap("1.1"));
    let told = |id| events_api(id, &event("Ev1", &direct("2.1", "once")));
    for envelope in [&tapped, &tapped, &told("e2"), &told("e3")] {
        link.send(envelope);
        assert_eq!(link.acknowledged().await["envelope_id"], envelope["envelope_id"]);
    }
    let mut running = running;
    running.hears().await;
    running.hears().await;
    assert!(running.stop().await.try_recv().is_err(), "something was heard twice");
}

#[tokio::test]
async fn what_is_not_understood_is_acknowledged_and_the_connection_lives_on() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(socket_mode(&fake), Reply::default());
    let mut link = fake.link().await;
    link.frame(Frame::Text("{".into()));
    link.frame(Frame::Text("[]".into()));
    link.frame(Frame::Binary(vec![0, 1].into()));
    link.send(&json!({ "type": "of_tomorrow" }));
    for (id, envelope) in [
        ("e1", json!({ "envelope_id": "e1", "type": "slash_commands", "payload": { "command": "/x" } })),
        ("e2", interactive("e2", &json!({ "type": "block_actions" }))),
        ("e3", events_api("e3", &json!([]))),
    ] {
        link.send(&envelope);
        assert_eq!(link.acknowledged().await, json!({ "envelope_id": id }));
    }
    link.send(&interactive("e4", &tap("1.1")));
    link.acknowledged().await;
    running.hears().await;
}

#[tokio::test]
async fn pings_are_answered() {
    let fake = FakeSlack::start().await;
    let _running = Running::start(socket_mode(&fake), Reply::default());
    let mut link = fake.link().await;
    link.frame(Frame::Ping("abc".into()));
    assert_eq!(link.got().await, Some(Frame::Pong("abc".into())));
}

#[tokio::test]
async fn a_renewed_connection_loses_nothing() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(socket_mode(&fake), Reply::default());
    let mut old = fake.link().await;
    for reason in ["warning", "refresh_requested"] {
        // Opening the next one takes a while.
        fake.answer("apps.connections.open", 503, None, json!("later"));
        old.send(&disconnect(reason));
        old.send(&interactive(reason, &tap(reason)));
        assert_eq!(old.acknowledged().await, json!({ "envelope_id": reason }));
        running.hears().await;
        let mut next = fake.link().await;
        let on_next = format!("next {reason}");
        next.send(&interactive(&on_next, &tap(&on_next)));
        next.acknowledged().await;
        running.hears().await;
        // Until Slack ends it, the old one is heard beside the next.
        let late = format!("late {reason}");
        old.send(&interactive(&late, &tap(&late)));
        assert_eq!(old.acknowledged().await, json!({ "envelope_id": late }));
        running.hears().await;
        old = next;
    }
}

#[tokio::test]
async fn a_lost_connection_is_opened_again() {
    let fake = FakeSlack::start().await;
    let mut running = Running::start(socket_mode(&fake), Reply::default());
    drop(fake.link().await);
    let link = fake.link().await;
    link.frame(Frame::Close(None));
    let link = fake.link().await;
    // More than any frame may hold.
    link.frame(Frame::Text("x".repeat(2 << 20).into()));
    let mut link = fake.link().await;
    link.send(&disconnect("link_disabled"));
    while link.got().await.is_some() {}
    let mut link = fake.link().await;
    link.send(&interactive("e1", &tap("1.1")));
    link.acknowledged().await;
    running.hears().await;
    assert_eq!(fake.calls("apps.connections.open").len(), 5);
}

#[tokio::test]
async fn a_silent_connection_is_asked_and_then_given_up() {
    let fake = FakeSlack::start().await;
    let mut slack = socket_mode(&fake);
    let times = slack.socket.unwrap();
    slack.socket = Some(SocketTimes { quiet: Duration::from_millis(50), ..times });
    // A Slack whose WebSocket takes everything and says nothing after its greeting.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}/link", listener.local_addr().unwrap());
    fake.answer("apps.connections.open", 200, None, json!({ "ok": true, "url": url }));
    let dead = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        futures::SinkExt::send(&mut socket, tokio_tungstenite::tungstenite::Message::text(r#"{"type":"hello"}"#))
            .await
            .unwrap();
        std::future::pending::<()>().await;
    });
    let _running = Running::start(slack, Reply::default());
    fake.link().await;
    dead.abort();
}

#[tokio::test]
async fn a_bad_app_token_is_loud_and_cards_still_go_out() {
    let fake = FakeSlack::start().await;
    fake.refuse("apps.connections.open", "invalid_auth");
    fake.answer("apps.connections.open", 429, Some(0), json!({ "ok": false, "error": "ratelimited" }));
    fake.answer("apps.connections.open", 200, None, json!({ "ok": true, "url": "http://127.0.0.1/no-socket" }));
    let running = Running::start(socket_mode(&fake), Reply::default());
    while running.slack.health() == Health::Working {
        tokio::task::yield_now().await;
    }
    let Health::Disabled(advice) = running.slack.health() else { panic!("works") };
    assert!(advice.contains("slack.app_token") && !advice.contains("xapp"), "{advice}");
    assert!(matches!(running.slack.send(&message("C1", &purchase())).await, Delivery::Shown(_)));
    fake.link().await;
    assert_eq!(running.slack.health(), Health::Working);
}

#[tokio::test]
async fn a_stop_ends_the_connection_at_once() {
    let fake = FakeSlack::start().await;
    let running = Running::start(socket_mode(&fake), Reply::default());
    let mut link = fake.link().await;
    let began = std::time::Instant::now();
    running.stop().await;
    assert!(link.got().await.is_none());
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
}
