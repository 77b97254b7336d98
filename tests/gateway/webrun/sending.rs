//! `POST /start/send-message`: commands, interactions and answers of every generation.

use serde_json::{Value, json};

use super::*;

fn state(new: &str) -> Value {
    json!({ "actionType": "state", "newState": new })
}

fn interaction(action: &Value) -> Value {
    json!({ "actionType": "interaction", "action": action })
}

#[tokio::test]
async fn state_commands_reach_the_runtime() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    assert_eq!(scene.comes_to(&session, state("pause")).await, RuntimeCommand::Pause);
    assert_eq!(scene.comes_to(&session, state("resume")).await, RuntimeCommand::Resume);
    assert_eq!(scene.comes_to(&session, state("manual")).await, RuntimeCommand::TakeControl, "in one old sample");
    let stop = RuntimeCommand::Stop { task: Some("t".to_owned()) };
    assert_eq!(scene.comes_to(&session, state("stop")).await, stop);
    assert_eq!(scene.send(&session, state("terminate")).await, (200, sent_successfully()));
}

#[tokio::test]
async fn a_command_with_nothing_to_command_says_so() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.start(json!({})).await;
    let nothing = (409, refused("NO_RUNNING_TASK", "No task is running in this session"));
    assert_eq!(scene.send(&session, state("pause")).await, nothing);
    assert_eq!(scene.send(&session, state("resume")).await, nothing);
    let mut already = sent_successfully();
    already["applied"] = json!(false);
    assert_eq!(scene.send(&session, state("stop")).await, (200, already.clone()), "so it is");
    assert_eq!(scene.send(&session, state("terminate")).await, (200, sent_successfully()));
    assert_eq!(scene.send(&session, state("terminate")).await, (200, already));
    let ended = (409, refused("SESSION_EXPIRED", "Session has ended; start a new one"));
    assert_eq!(scene.send(&session, state("pause")).await, ended);
    assert_eq!(scene.send(&session, json!({ "actionType": "newTask", "prompt": "p" })).await, ended);
}

#[tokio::test]
async fn a_click_in_the_window_is_a_click_in_the_page_below_the_browsers_own_155_pixels() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    for (kind, x, y, page_y) in
        [("CLICK", 500.0, 300.0, 145.0), ("DOUBLE_CLICK", 0.0, 155.0, 0.0), ("CLICK", 1024.0, 755.0, 600.0)]
    {
        let command = scene.comes_to(&session, interaction(&json!({ "type": kind, "x": x, "y": y }))).await;
        let RuntimeCommand::Interaction { action } = command else { panic!("{command:?}") };
        assert_eq!(Value::Object(action), json!({ "type": kind, "x": x, "y": page_y }));
    }
    for (action, name, low, high) in [
        (json!({ "type": "CLICK", "x": 500, "y": 154 }), "y", 155.0, 755.0),
        (json!({ "type": "CLICK", "x": 500, "y": 756 }), "y", 155.0, 755.0),
        (json!({ "type": "CLICK", "x": -1, "y": 300 }), "x", 0.0, 1024.0),
        (json!({ "type": "DOUBLE_CLICK", "x": 1025, "y": 300 }), "x", 0.0, 1024.0),
        (json!({ "type": "CLICK", "x": "500", "y": 300 }), "x", 0.0, 1024.0),
        (json!({ "type": "CLICK", "x": 500 }), "y", 155.0, 755.0),
    ] {
        let (status, body) = scene.send(&session, interaction(&action)).await;
        let message = format!("Invalid parameter 'action.{name}': must be a number from {low} to {high}");
        let mut wanted = refused("INVALID_PARAMETER", &message);
        wanted["details"] = json!({ "parameter": format!("action.{name}"), "min": low, "max": high });
        assert_eq!((status, body), (400, wanted));
    }
}

#[tokio::test]
async fn texts_and_keys_reach_the_runtime() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    for (said, wanted) in [
        (json!({ "type": "TYPE", "text": "hello" }), json!({ "type": "TYPE", "text": "hello", "humanLike": false })),
        (
            json!({ "type": "TYPE", "text": "", "humanLike": true }),
            json!({ "type": "TYPE", "text": "", "humanLike": true }),
        ),
        (json!({ "type": "KEY_PRESS", "key": "Enter" }), json!({ "type": "KEY_PRESS", "key": "Enter" })),
        (json!({ "type": "KEY_PRESS", "key": "ä" }), json!({ "type": "KEY_PRESS", "key": "ä" })),
        (json!({ "type": "KEY_PRESS", "key": "+" }), json!({ "type": "KEY_PRESS", "key": "+" })),
        (json!({ "type": "KEY_PRESS", "key": "Control+a" }), json!({ "type": "KEY_PRESS", "key": "Control+a" })),
        (json!({ "type": "KEY_PRESS", "key": "Control++" }), json!({ "type": "KEY_PRESS", "key": "Control++" })),
    ] {
        let command = scene.comes_to(&session, interaction(&said)).await;
        let RuntimeCommand::Interaction { action } = command else { panic!("{command:?}") };
        assert_eq!(Value::Object(action), wanted);
    }
    for (action, parameter) in [
        (json!({ "type": "TYPE" }), "action.text"),
        (json!({ "type": "TYPE", "text": "x".repeat(16 * 1024 + 1) }), "action.text"),
        (json!({ "type": "TYPE", "text": "a", "humanLike": "yes" }), "action.humanLike"),
        (json!({ "type": "KEY_PRESS" }), "action.key"),
        (json!({ "type": "KEY_PRESS", "key": "" }), "action.key"),
        (json!({ "type": "KEY_PRESS", "key": "Return" }), "action.key"),
        (json!({ "type": "KEY_PRESS", "key": "Hyper+a" }), "action.key"),
        (json!({ "type": "SHELL" }), "action.type"),
        (json!({}), "action.type"),
        (json!("CLICK"), "action"),
    ] {
        let (status, body) = scene.send(&session, interaction(&action)).await;
        assert_eq!((status, &body["details"]["parameter"]), (400, &json!(parameter)), "{action}: {body}");
    }
}

#[tokio::test]
async fn a_take_over_pauses_the_task_and_a_release_lets_it_go_on() {
    let mut closed = Closed::begin(hasty(), vec![key("second", "p", CLIENT)]).await;
    let session = closed.start(json!({ "task": { "prompt": "p", "taskId": "t" } })).await;
    closed.runtime.publish(&session, "task_started", json!({ "taskId": "t" })).await;
    let task = async || {
        let (_, got) = closed.get(&format!("/v1/sessions/{session}"), Some("user")).await;
        got["state"]["tasks"][0]["status"].clone()
    };
    let (take, release) =
        (interaction(&json!({ "type": "takeOverControl" })), interaction(&json!({ "type": "releaseControl" })));
    assert_eq!(closed.send(Some("user"), &session, take.clone()).await, (200, sent_successfully()));
    assert_eq!(task().await, "paused");
    let mut held = refused("CONTROL_HELD", "user has control");
    held["details"] = json!({ "holder": "user" });
    let click = interaction(&json!({ "type": "CLICK", "x": 1, "y": 200 }));
    for message in [take, click.clone(), release.clone()] {
        assert_eq!(closed.send(Some("second"), &session, message).await, (409, held.clone()));
    }
    assert_eq!(closed.send(Some("user"), &session, click).await, (200, sent_successfully()));
    assert_eq!(closed.send(Some("user"), &session, release).await, (200, sent_successfully()));
    assert_eq!(task().await, "running");
}

#[tokio::test]
async fn answers_of_every_generation_reach_the_runtime() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    for (index, (message, outcome, text)) in [
        (json!({ "prompt": "1234", "newState": "resume" }), "answered", Some("1234")),
        (json!({ "taskDetails": "5678" }), "answered", Some("5678")),
        (json!({ "prompt": "no", "newState": "stop" }), "declined", None),
        (json!({ "newState": "stop" }), "declined", None),
    ]
    .into_iter()
    .enumerate()
    {
        let guardrail = format!("g{index}");
        scene.runtime.ask(&session, &guardrail, json!({})).await;
        scene.poll(&session, "t").await;
        let mut message = message;
        message["actionType"] = json!("guardrail");
        assert_eq!(scene.send(&session, message.clone()).await, (200, sent_successfully()), "{message}");
        let got = scene.runtime.outcome().await;
        assert_eq!((json!(got.outcome), got.guardrail_id), (json!(outcome), guardrail), "{message}");
        if outcome == "answered" {
            assert_eq!(got.text.as_deref(), text);
        }
    }
}

#[tokio::test]
async fn an_answer_where_nothing_was_ever_asked_is_refused() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    let wanted = (409, refused("NO_OPEN_GUARDRAIL", "No guardrail is open in this session"));
    assert_eq!(scene.send(&session, json!({ "actionType": "guardrail", "prompt": "yes" })).await, wanted);
}

#[tokio::test]
async fn a_message_that_is_incomplete_or_for_nobody_is_refused_in_the_documented_words() {
    let mut scene = Scene::begin(quick()).await;
    let session = scene.running().await;
    let pause = state("pause");
    let incomplete = (400, refused("MISSING_REQUIRED_FIELD", "sessionId and message are required"));
    for body in [
        json!({}),
        json!({ "sessionId": session }),
        json!({ "message": pause }),
        json!({ "sessionId": session, "message": "pause" }),
        json!({ "sessionId": 1, "message": pause }),
        json!({ "sessionId": "", "message": pause }),
        json!({ "sessionId": session, "message": null }),
    ] {
        assert_eq!(scene.gateway.post("/start/send-message", body.clone()).await, incomplete, "{body}");
    }
    let unknown = (401, refused("SESSION_NOT_FOUND", "Session not found or unauthorized"));
    for id in ["aaaaaaaaaaaaaaaaaaaa", "a1b2c3d4e5f6", "x y"] {
        assert_eq!(scene.send(id, pause.clone()).await, unknown);
    }
    for (message, parameter) in [
        (json!({ "actionType": "dance" }), "actionType"),
        (json!({}), "actionType"),
        (json!({ "actionType": "state", "newState": "status" }), "newState"),
        (json!({ "actionType": "state" }), "newState"),
        (json!({ "actionType": "newTask", "newState": "pause", "prompt": "p" }), "newState"),
        (json!({ "actionType": "guardrail", "newState": "maybe" }), "newState"),
        (json!({ "actionType": "guardrail", "prompt": 1 }), "prompt"),
    ] {
        let (status, body) = scene.send(&session, message.clone()).await;
        assert_eq!((status, &body["details"]["parameter"]), (400, &json!(parameter)), "{message}: {body}");
        assert_eq!((&body["code"], &body["message"]), (&json!("INVALID_PARAMETER"), &body["error"]));
    }
    let empty = scene.send(&session, json!({ "actionType": "newTask", "prompt": "" })).await;
    assert_eq!(empty, (400, refused("INVALID_TASK_DETAILS", "prompt cannot be empty")));
}

#[tokio::test]
async fn a_new_task_reaches_the_runtime_whole_under_every_name() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.start(json!({})).await;
    for (id, message) in [
        ("a", json!({ "newState": "start", "prompt": "Buy", "startingUrl": "https://a.example", "own": 1 })),
        ("b", json!({ "taskDetails": "Buy", "startingPoint": "https://a.example", "own": 1 })),
    ] {
        let mut message = message;
        (message["actionType"], message["taskId"]) = (json!("newTask"), json!(id));
        let (status, body) = scene.send(&session, message).await;
        assert_eq!((status, &body["taskId"], &body["pending"]), (200, &json!(id), &json!(true)), "{body}");
        let task = serde_json::to_value(task_of(&mut scene.runtime).await).unwrap();
        let wanted = json!({ "taskId": id, "prompt": "Buy", "maxDuration": 300_000, "startingUrl": "https://a.example",
            "own": 1 });
        assert_eq!(task, wanted);
    }
}
