//! What a session's events look like to a client, and what its own messages do.

use onlooker_protocol::{
    runtime::{OpenSession, RuntimeCommand},
    view::Outcome,
};
use serde_json::{Value, json};

use super::client::*;
use crate::harness::*;

#[tokio::test]
async fn a_session_is_followed_answered_and_ended() {
    for by in BOTH {
        let (gateway, mut runtime, session) = with_session(patient()).await;
        let mut client = Client::join(&gateway, by, &session).await;
        client
            .say(json!({ "actionType": "newTask", "newState": "start", "prompt": "Buy a lamp", "taskId": "t1" }))
            .await;
        let new_task = |command: &RuntimeCommand| matches!(command, RuntimeCommand::NewTask { .. }).then_some(());
        runtime.command("the task", new_task).await;
        runtime.publish(&session, "task_started", json!({ "taskId": "t1" })).await;
        assert_eq!(client.message("task_started").await["data"]["taskId"], "t1");
        runtime.publish(&session, "agent", json!({ "content": "thinking" })).await;
        let agent = client.message("agent").await;
        assert_eq!(agent, json!({ "type": "agent", "content": "thinking", "sessionId": session, "taskId": "t1" }));
        runtime.publish(&session, "action", json!({ "name": "click_element", "target": "search" })).await;
        assert_eq!(client.message("action").await["data"]["name"], "click_element");
        let position = runtime.ask(&session, "g", json!({})).await;
        let asked = client.event().await;
        assert_eq!(asked.offset, Some(position.to_string()));
        assert_eq!(asked.argument["data"], json!({ "type": "human_input_needed", "value": "May I?" }));
        client.say(json!({ "actionType": "guardrail", "taskDetails": "you may", "newState": "resume" })).await;
        let outcome = runtime.outcome().await;
        assert_eq!((outcome.outcome, outcome.text.as_deref()), (Outcome::Answered, Some("you may")));
        runtime.publish(&session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
        let result = json!({ "message": "bought", "usage": { "inputTokens": 3, "outputTokens": 4, "cost": 0.5 } });
        runtime.publish(&session, "task_completed", result).await;
        let completed = client.message("task_completed").await;
        assert_eq!((&completed["taskId"], &completed["sessionId"]), (&json!("t1"), &json!(session)));
        assert_eq!(completed["data"]["message"], "bought");
        assert_eq!((&completed["usage"]["total_tokens"], &completed["usage"]["cost"]), (&json!(7), &json!(0.5)));
        client.say(json!({ "actionType": "state", "newState": "terminate" })).await;
        let ended = client.named("end_session").await;
        assert_eq!(ended, json!({ "type": "end_session", "reason": "terminated", "message": "Session ended" }));
        // It proved the end: there is nothing to come back to.
        client.sent_away().await;
        gateway.stop().await;
    }
}

#[tokio::test]
async fn a_runtime_that_is_lost_and_comes_back_is_told() {
    let gateway = TestGateway::with(patient()).await;
    let mut runtime = gateway.runtime().await;
    let (session, claim) = runtime.open(OpenSession::default()).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    drop(runtime);
    let lost = client.named("instance:disconnected").await;
    assert_eq!((&lost["type"], &lost["gracePeriod"]), (&json!("instance:disconnected"), &json!(300_000)));
    let mut runtime = gateway.runtime().await;
    runtime.claim(&session, &claim).await;
    client.named("instance:reconnected").await;
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_refused_comes_as_error_and_never_as_message() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    let said: [(Value, &str); 7] = [
        (json!("text"), "INVALID_PARAMS"),
        (json!(null), "INVALID_PARAMS"),
        (json!({}), "INVALID_PARAMETER"),
        (json!({ "actionType": "newTask", "prompt": " " }), "INVALID_TASK_DETAILS"),
        (json!({ "actionType": "state", "newState": "status" }), "INVALID_PARAMETER"),
        (json!({ "actionType": "guardrail", "prompt": "yes" }), "NO_OPEN_GUARDRAIL"),
        (json!({ "actionType": "guardrail", "guardrailId": "none", "prompt": "x" }), "GUARDRAIL_NOT_FOUND"),
    ];
    for (message, code) in said {
        client.say(message.clone()).await;
        let event = client.event().await;
        assert_eq!((event.name.as_str(), &event.argument["code"]), ("error", &json!(code)), "{message}");
        assert_eq!((&event.argument["success"], event.offset), (&json!(false), None));
    }
    client.send(r#"42["message"]"#).await;
    assert_eq!(client.event().await.name, "error");
    client.send(r#"42["state",{"actionType":"state"}]"#).await;
    assert_eq!(client.event().await.name, "error");
    runtime.publish(&session, "agent", json!({ "content": "on" })).await;
    assert_eq!(client.event().await.name, "message");
    gateway.stop().await;
}

/// Two see the question; the second one's answer is for that question, and closes no other.
#[tokio::test]
async fn an_answer_that_comes_too_late_is_told_who_was_first() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut first = Client::join(&gateway, By::Websocket, &session).await;
    let mut second = Client::join(&gateway, By::Polling, &session).await;
    runtime.ask(&session, "g", json!({})).await;
    first.message("guardrail_trigger").await;
    second.message("guardrail_trigger").await;
    first.say(json!({ "actionType": "guardrail", "prompt": "me", "newState": "resume" })).await;
    assert_eq!(runtime.outcome().await.text.as_deref(), Some("me"));
    second.say(json!({ "actionType": "guardrail", "prompt": "me too", "newState": "resume" })).await;
    let lost = second.named("error").await;
    assert_eq!(
        (&lost["code"], &lost["applied"], &lost["answeredVia"]),
        (&json!("ALREADY_ANSWERED"), &json!(false), &json!("socketio")),
        "{lost}"
    );
    assert_eq!((&lost["answeredBy"], &lost["guardrailId"]), (&json!("client"), &json!("g")));
    assert!(lost["message"].as_str().unwrap().contains("client via socketio"), "{lost}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_guardrail_is_declined_by_stop() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut client = Client::join(&gateway, By::Websocket, &session).await;
    runtime.ask(&session, "g", json!({})).await;
    client.message("guardrail_trigger").await;
    client.say(json!({ "actionType": "guardrail", "prompt": "no", "newState": "stop" })).await;
    assert_eq!(runtime.outcome().await.outcome, Outcome::Declined);
    gateway.stop().await;
}

#[tokio::test]
async fn pictures_come_when_they_are_asked_for() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    for by in BOTH {
        let mut without = Client::join(&gateway, by, &session).await;
        let auth = json!({ "sessionId": session, "pictures": true });
        let mut with = Client::join_with(&gateway, by, auth).await;
        let bytes = vec![by as u8; 3000];
        runtime.publish_picture(&session, &bytes).await;
        // The newest picture comes first, whenever it was made.
        let (header, got) = loop {
            let packet = with.packet().await.text();
            let Some(header) = packet.strip_prefix("451-") else { continue };
            let Got::Binary(got) = with.raw().await else { panic!("the attachment is next, and nothing between") };
            if got[0] == by as u8 {
                break (serde_json::from_str::<Value>(header).unwrap(), got);
            }
        };
        assert_eq!(got, bytes);
        let argument = &header[1];
        let wanted = json!({
            "sessionId": session, "id": argument["id"], "media": "image/png", "size": 3000,
            "data": { "_placeholder": true, "num": 0 },
        });
        assert_eq!((&header[0], argument), (&json!("screenshot"), &wanted));
        runtime.publish(&session, "agent", json!({ "content": "after" })).await;
        assert_eq!(without.event().await.argument["content"], "after");
        assert_eq!(with.message("agent").await["content"], "after");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_gets_pictures_of_the_level_that_it_asks_for() {
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let original = crate::pictures::page(40);
    for by in BOTH {
        let mut full = Client::join_with(&gateway, by, json!({ "sessionId": session, "pictures": "full" })).await;
        let mut small = Client::join_with(&gateway, by, json!({ "sessionId": session, "pictures": "reduced" })).await;
        runtime.publish_picture(&session, &original).await;
        let (of_full, bytes) = next_picture(&mut full).await;
        assert!(bytes == original);
        let (of_small, jpeg) = next_picture(&mut small).await;
        assert_eq!((&of_small["id"], &of_small["media"]), (&of_full["id"], &json!("image/jpeg")));
        assert_eq!(of_small["size"], jpeg.len());
        assert!(jpeg.len() < original.len() / 2);
    }
    gateway.stop().await;
}

/// The newest picture with its header, passing over one that was there before.
async fn next_picture(client: &mut Client) -> (Value, Vec<u8>) {
    loop {
        let packet = client.packet().await.text();
        let Some(header) = packet.strip_prefix("451-") else { continue };
        let Got::Binary(bytes) = client.raw().await else { panic!("the attachment is next, and nothing between") };
        let header: Value = serde_json::from_str(header).unwrap();
        return (header[1].clone(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_pictures_the_newest_comes_and_every_event() {
    const PICTURES: usize = 60;
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut client = Client::narrow(&gateway).await;
    client.connect(json!({ "sessionId": session, "pictures": "full" })).await.unwrap();
    for _ in 0..PICTURES {
        runtime.publish_picture(&session, &vec![7; 200 * 1024]).await;
        runtime.publish(&session, "agent", json!({ "content": "between" })).await;
    }
    runtime.publish_picture(&session, &[8; 10]).await;
    let (mut events, mut pictures) = (0, 0);
    loop {
        match client.packet().await {
            Got::Text(text) => events += usize::from(event_of(&text).is_some()),
            Got::Binary(bytes) => {
                pictures += 1;
                if bytes == [8; 10] {
                    break;
                }
            }
            Got::Closed(code) => panic!("closed with {code:?}"),
        }
    }
    assert_eq!(events, PICTURES);
    assert!(pictures < PICTURES, "it was slow, and got every picture");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_get_every_event_in_order() {
    const CLIENTS: usize = 100;
    const EVENTS: usize = 100;
    let (gateway, mut runtime, session) = with_session(patient()).await;
    let mut reading = Vec::new();
    for number in 0..CLIENTS {
        let by = if number % 10 == 0 { By::Polling } else { By::Websocket };
        let mut client = Client::join(&gateway, by, &session).await;
        reading.push(tokio::spawn(async move { client.contents_until(&(EVENTS - 1).to_string()).await }));
    }
    for number in 0..EVENTS {
        runtime.publish(&session, "agent", json!({ "content": number.to_string() })).await;
    }
    let wanted: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    for client in reading {
        assert_eq!(client.await.unwrap(), wanted);
    }
    gateway.stop().await;
}
