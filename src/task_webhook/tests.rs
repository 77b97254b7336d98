use onlooker_protocol::view::{EndReason, SessionView, TaskStatus, TaskView};
use serde_json::{Map, Value, json};

use super::*;

fn read(webhook: Value) -> Result<Option<Webhook>, &'static str> {
    Webhook::read(&Map::from_iter([("webhook".to_owned(), webhook)]))
}

fn authorization(webhook: Value) -> Option<String> {
    match read(webhook).unwrap().unwrap().authorization {
        Authorization::Held(value) => Some(value.to_string()),
        Authorization::None | Authorization::Lost => None,
    }
}

#[test]
fn a_webhook_is_read_as_documented() {
    let asked = json!({ "name": "n", "url": "https://h.example/a?b=c", "submittedData": "ai_response" });
    let webhook = read(asked).unwrap().unwrap();
    assert_eq!((webhook.name.as_str(), webhook.url.as_str()), ("n", "https://h.example/a?b=c"));
    assert_eq!((webhook.form, webhook.structured), (SubmittedData::AiResponse, false));
    assert!(read(json!({})).unwrap().is_none() && read(Value::Null).unwrap().is_none());
    assert!(Webhook::read(&Map::new()).unwrap().is_none());
    let wrong = [
        (json!("https://h.example/"), "webhook must be an object"),
        (json!({ "url": "h.example", "submittedData": "just_ping" }), "webhook.url must be an http or https URL"),
        (json!({ "url": "ftp://h.example/", "submittedData": "just_ping" }), "webhook.url must be"),
        (json!({ "url": 7, "submittedData": "just_ping" }), "webhook.url must be"),
        (
            json!({ "url": format!("http://h/{}", "a".repeat(9000)), "submittedData": "just_ping" }),
            "webhook.url must be",
        ),
        (json!({ "url": "https://h.example/" }), "webhook.submittedData must be one of"),
        (json!({ "url": "https://h.example/", "submittedData": "all" }), "webhook.submittedData must be one of"),
        (json!({ "url": "http://h/", "submittedData": "just_ping", "auth": "a\r\nx: y" }), "webhook.auth must be"),
        (json!({ "url": "http://h/", "submittedData": "just_ping", "auth": { "token": "t" } }), "webhook.auth must be"),
    ];
    for (webhook, problem) in wrong {
        let said = read(webhook.clone()).err();
        assert!(said.is_some_and(|said| said.starts_with(problem)), "{webhook}: {said:?}");
    }
}

#[test]
fn userinfo_is_taken_out_of_the_url_and_auth_comes_before_it() {
    let with = |url: &str, auth: Value| json!({ "url": url, "submittedData": "just_ping", "auth": auth });
    assert_eq!(authorization(with("https://h.example/", Value::Null)), None);
    assert_eq!(authorization(with("https://h.example/", json!("Bearer x"))).as_deref(), Some("Bearer x"));
    // RFC 7617, 2: Aladdin and open sesame.
    let basic = authorization(with("https://Aladdin:open%20sesame@h.example/", Value::Null));
    assert_eq!(basic.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
    assert_eq!(authorization(with("https://token@h.example/", json!(""))).as_deref(), Some("Basic dG9rZW46"));
    assert_eq!(authorization(with("https://a:b@h.example/", json!("Bearer x"))).as_deref(), Some("Bearer x"));
    let webhook = read(with("https://a:b@h.example/p", Value::Null)).unwrap().unwrap();
    assert_eq!(webhook.url.as_str(), "https://h.example/p");
}

fn task(status: TaskStatus, result: Value) -> TaskView {
    let usage = result["usage"].as_object().cloned().unwrap_or_default();
    TaskView {
        task: "t".to_owned(),
        status,
        prompt: None,
        queued_at: None,
        started_at: Some("2024-01-15T10:29:58.500Z".to_owned()),
        ended_at: Some("2024-01-15T10:30:00.000Z".to_owned()),
        usage,
        result,
        ended: None,
    }
}

fn session(reason: Option<EndReason>, ended_at: &str) -> SessionView {
    let mut view: SessionView = serde_json::from_value(json!({
        "session": "s", "status": "ended", "reachOutMode": "off", "createdAt": ended_at, "endedAt": ended_at,
        "labels": {}, "tasks": [], "guardrails": [], "control": null, "sensitive": false, "picture": null, "runtime": null,
    }))
    .unwrap();
    view.reason = reason;
    view
}

fn sent(task: &TaskView, form: SubmittedData, structured: bool) -> Value {
    match Standing::of(task, &session(None, "")) {
        Standing::Over(ending) => body("s", task, &ending, form, structured),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_form_says_what_it_should_of_a_completed_task() {
    let usage = json!({ "inputTokens": 10, "outputTokens": 5, "cost": 0.5 });
    let done = task(TaskStatus::Completed, json!({ "taskId": "t", "message": "{\"a\":1}", "usage": usage }));
    let full = sent(&done, SubmittedData::FullResponse, true);
    assert_eq!(
        full,
        json!({
            "type": "task_completed", "sessionId": "s", "taskId": "t",
            "data": {
                "message": "{\"a\":1}", "files": [], "network": [],
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "completion_time": 1.5,
            },
            "usage": {
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "completion_time": 1.5, "cost": 0.5,
                "inputTokens": 10, "outputTokens": 5, "computeTime": 1.5,
            },
            "completedAt": "2024-01-15T10:30:00.000Z",
        })
    );
    assert_eq!(sent(&done, SubmittedData::AiResponse, true), json!({ "a": 1 }));
    assert_eq!(sent(&done, SubmittedData::AiResponse, false), json!("{\"a\":1}"));
    let no_json = task(TaskStatus::Completed, json!({ "message": "no JSON" }));
    assert_eq!(sent(&no_json, SubmittedData::AiResponse, true), json!("no JSON"));
    let nothing = task(TaskStatus::Completed, Value::Null);
    assert_eq!(sent(&nothing, SubmittedData::AiResponse, true), json!(""));
    let ping = json!({ "event": "task_completed", "sessionId": "s", "taskId": "t", "completedAt": done.ended_at });
    assert_eq!(sent(&done, SubmittedData::JustPing, false), ping);
}

#[test]
fn a_failed_task_is_told_as_failed() {
    let failed = task(TaskStatus::Failed, json!({ "taskId": "t", "error": "Too long", "code": "TASK_TIMEOUT" }));
    let full = sent(&failed, SubmittedData::FullResponse, false);
    assert_eq!(
        (&full["type"], &full["error"], &full["code"]),
        (&json!("task_failed"), &json!("Too long"), &json!("TASK_TIMEOUT"))
    );
    assert_eq!((&full["data"]["error"], &full["usage"]["cost"]), (&json!("Too long"), &json!(0.0)));
    let ai = json!({ "error": "Too long", "code": "TASK_TIMEOUT" });
    assert_eq!(sent(&failed, SubmittedData::AiResponse, true), ai);
    assert_eq!(sent(&failed, SubmittedData::JustPing, false)["event"], "task_failed");
    let wordless = sent(&task(TaskStatus::Failed, json!({})), SubmittedData::AiResponse, false);
    assert_eq!(wordless, json!({ "error": "Task failed", "code": "TASK_FAILED" }));
}

#[test]
fn who_stopped_a_task_is_not_told_and_who_lost_it_is() {
    let stopped = task(TaskStatus::Stopped, Value::Null);
    let at = stopped.ended_at.clone().unwrap();
    let of = |reason, at: &str| Standing::of(&stopped, &session(reason, at));
    for reason in [EndReason::InstanceLost, EndReason::NoRuntime, EndReason::SecretsLost] {
        assert!(matches!(of(Some(reason), &at), Standing::Over(Ending::Failed { .. })), "{reason:?}");
        assert_eq!(of(Some(reason), "2024-01-15T11:00:00.000Z"), Standing::NothingToTell, "stopped long before");
    }
    for reason in [EndReason::Terminated, EndReason::TerminateOnCompletion, EndReason::Completed] {
        assert_eq!(of(Some(reason), &at), Standing::NothingToTell, "{reason:?}");
    }
    for status in [TaskStatus::Queued, TaskStatus::Running, TaskStatus::Waiting, TaskStatus::Paused] {
        assert_eq!(Standing::of(&task(status, Value::Null), &session(None, &at)), Standing::NotOver);
    }
}
