//! What bad requests get: always a body in WebRun's form, and never what was sent.

use serde_json::{Value, json};

use super::*;

const POSTS: &[&str] = &["/start/start-session", "/start/run-task", "/start/send-message"];

async fn post_text(gateway: &TestGateway, path: &str, media: &str, body: impl Into<String>) -> (u16, Value) {
    let request = gateway.http.post(format!("{}{path}", gateway.url)).header("content-type", media);
    gateway.request(request.body(body.into())).await
}

#[tokio::test]
async fn what_is_no_json_is_told_where_it_is_wrong() {
    let gateway = TestGateway::start().await;
    for path in POSTS {
        for (text, message, line, column) in [
            ("{\"prompt\": s3cr3t}", "The body is not JSON: line 1 column 12", 1, 12),
            ("{\n  \"prompt\": \"s3cr3t\"", "The JSON body ends too early: line 2 column 20", 2, 20),
            ("{} s3cr3t", "The body is not JSON: line 1 column 4", 1, 4),
            ("{\"a\": NaN}", "The body is not JSON: line 1 column 7", 1, 7),
        ] {
            let (status, body) = post_text(&gateway, path, "application/json", text).await;
            let mut wanted = refused("INVALID_JSON", message);
            wanted["details"] = json!({ "line": line, "column": column });
            assert_eq!((status, body), (400, wanted), "{path}");
        }
        let deep = "[".repeat(200);
        assert_eq!(post_text(&gateway, path, "application/json", deep).await.0, 400);
        for text in ["[]", "\"s3cr3t\"", "null", "1"] {
            let wanted = (400, refused("INVALID_PARAMS", "The body must be a JSON object"));
            assert_eq!(post_text(&gateway, path, "application/json", text).await, wanted, "{path} {text}");
        }
    }
}

#[tokio::test]
async fn other_content_types_are_415_and_json_by_any_name_is_not() {
    let gateway = TestGateway::start().await;
    let wanted = (415, refused("UNSUPPORTED_MEDIA_TYPE", "The content type must be application/json"));
    for path in POSTS {
        for media in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
            assert_eq!(post_text(&gateway, path, media, "{}").await, wanted, "{path} {media}");
        }
        for media in ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"] {
            assert_ne!(post_text(&gateway, path, media, "{}").await.0, 415, "{path} {media}");
        }
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let mut config = quick();
    config.limits.http_body_bytes = 4096;
    let gateway = TestGateway::with(config).await;
    for path in POSTS {
        let body = json!({ "prompt": "x".repeat(5000) }).to_string();
        let (status, body) = post_text(&gateway, path, "application/json", body).await;
        let mut wanted = refused("PAYLOAD_TOO_LARGE", "The request body is too large");
        wanted["details"] = json!({ "limit": 4096 });
        assert_eq!((status, body), (413, wanted), "{path}");
    }
    assert_eq!(gateway.metric("onlooker_refusals_total{code=\"too_large\"}").await, 3.0);
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_told_in_webruns_form() {
    let gateway = TestGateway::start().await;
    for path in [
        "/start",
        "/start/",
        "/start/nothing",
        "/task",
        "/task/a",
        "/task/a/b/c",
        "/files/x/y/z",
        "/start/session-status",
    ] {
        let wanted = (404, refused("NOT_FOUND", "No such path"));
        assert_eq!(gateway.get(path).await, wanted, "{path}");
    }
    for path in POSTS {
        let wanted = (405, refused("METHOD_NOT_ALLOWED", "This path does not take this method"));
        assert_eq!(gateway.get(path).await, wanted, "{path}");
    }
    assert_eq!(gateway.post("/task/a/b", json!({})).await.0, 405);
    for native in ["/starting", "/tasks", "/v1/nothing"] {
        assert_eq!(gateway.get(native).await.1["error"], "not_found", "{native} is not WebRun's");
    }
}

#[tokio::test]
async fn a_refused_parameter_is_named_by_every_way_in() {
    let mut scene = Scene::begin(hasty()).await;
    let session = scene.start(json!({})).await;
    let mut wanted = refused("INVALID_PARAMETER", "Invalid parameter 'maxDuration': must be at least 1000");
    wanted["details"] = json!({ "parameter": "maxDuration", "value": -1, "min": 1000 });
    let task = json!({ "prompt": "p", "maxDuration": -1 });
    let mut message = task.clone();
    message["actionType"] = json!("newTask");
    for (path, body) in [
        ("/start/start-session", json!({ "task": task })),
        ("/start/start-session", task.clone()),
        ("/start/run-task", json!({ "initialTask": task })),
        ("/start/send-message", json!({ "sessionId": session, "message": message })),
    ] {
        assert_eq!(scene.gateway.post(path, body).await, (400, wanted.clone()), "{path}");
    }
    let mut mode = refused("INVALID_PARAMETER", "reachOutMode must be one of: off, guardrail_only, full");
    mode["details"] = json!({ "parameter": "reachOutMode" });
    for path in ["/start/start-session", "/start/run-task"] {
        let body = json!({ "prompt": "p", "reachOutMode": "always" });
        assert_eq!(scene.gateway.post(path, body).await, (400, mode.clone()), "{path}");
    }
}
