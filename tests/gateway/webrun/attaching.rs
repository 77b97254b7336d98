//! Files that tasks name, and what uploads share with everything else that begins something.

use onlooker::config::key::Account;
use serde_json::{Value, json};

use super::*;

/// An upload of one small file, without an environment.
fn upload(gateway: &TestGateway, key: Option<&str>) -> reqwest::RequestBuilder {
    let body = "--b\r\ncontent-disposition: form-data; name=\"files\"; filename=\"a.txt\"\r\n\r\nhello\r\n--b--\r\n";
    let request = gateway.http.post(format!("{}/files/upload", gateway.url));
    let request = request.header("content-type", "multipart/form-data; boundary=b").body(body);
    match key {
        Some(key) => request.bearer_auth(format!("key-{key}")),
        None => request,
    }
}

async fn uploaded(gateway: &TestGateway, key: Option<&str>) -> String {
    let (status, answer) = gateway.request(upload(gateway, key)).await;
    assert_eq!(status, 200, "{answer}");
    answer["files"][0]["fileId"].as_str().unwrap().to_owned()
}

fn no_such_file(index: usize) -> (u16, Value) {
    let mut wanted = refused("INVALID_PARAMETER", "Invalid parameter 'files': names a file that does not exist");
    wanted["details"] = json!({ "parameter": "files", "index": index });
    (400, wanted)
}

#[tokio::test]
async fn a_task_names_files_of_its_project_only() {
    let mut closed = Closed::begin(hasty(), Vec::new()).await;
    let (mine, others) =
        (uploaded(&closed.gateway, Some("user")).await, uploaded(&closed.gateway, Some("other")).await);
    let session = closed.start(json!({})).await;
    let ways = |files: Value| {
        let task = json!({ "prompt": "p", "files": files });
        let mut message = task.clone();
        message["actionType"] = json!("newTask");
        [
            ("/start/start-session", json!({ "task": task })),
            ("/start/run-task", task),
            ("/start/send-message", json!({ "sessionId": session, "message": message })),
        ]
    };
    for (path, body) in ways(json!([mine, others])) {
        assert_eq!(closed.post(path, Some("user"), body).await, no_such_file(1), "{path}");
    }
    for (path, body) in ways(json!([mine])) {
        assert_eq!(closed.post(path, Some("user"), body).await.0, 200, "{path}");
        if path != "/start/send-message" {
            closed.runtime.take_assigned().await;
        }
        assert_eq!(task_of(&mut closed.runtime).await.parameters["files"], json!([mine]));
    }
}

#[tokio::test]
async fn a_file_used_in_an_environment_stays_there() {
    let mut scene = Scene::begin(hasty()).await;
    let (first, second) = (uploaded(&scene.gateway, None).await, uploaded(&scene.gateway, None).await);
    let task = json!({ "prompt": "p", "files": [first] });
    let session = scene.start(json!({ "environmentId": "e1", "task": task })).await;
    let kept = async |gateway: &TestGateway| {
        let (_, listed) = gateway.get("/environments/e1/files").await;
        let files = listed["files"].as_array().unwrap();
        files.iter().map(|file| file["fileId"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(kept(&scene.gateway).await, [first.clone()].into());
    let next = json!({ "actionType": "newTask", "prompt": "p", "files": [first, second] });
    assert_eq!(scene.send(&session, next).await.0, 200);
    assert_eq!(kept(&scene.gateway).await, [first, second].into());
}

#[tokio::test]
async fn uploads_are_counted_with_everything_else_that_begins_something() {
    let mut config = hasty();
    config.webrun.requests_per_minute = 2;
    let off = KeyEntry { account: Account::Deactivated, ..key("off", "p", CLIENT) };
    let closed = Closed::begin(config, vec![off]).await;
    let response = upload(&closed.gateway, Some("user")).send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-ratelimit-remaining"]),
        (200, &"1".parse().unwrap())
    );
    assert_eq!(closed.post("/start/start-session", Some("user"), json!({})).await.0, 200);
    let response = upload(&closed.gateway, Some("user")).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body, refused("RATE_LIMIT_EXCEEDED", "Rate limit exceeded. Please try again later."));
    let (status, body) = closed.gateway.request(upload(&closed.gateway, Some("off"))).await;
    assert_eq!((status, body), (403, refused("ACCOUNT_DEACTIVATED", "Account is deactivated")));
}
