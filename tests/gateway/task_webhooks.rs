//! Task webhooks over real sockets: what arrives, when nothing does, and where none goes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::any};
use onlooker::config::Config;
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use crate::harness::*;

/// A gateway that sends task webhooks to this machine too.
fn open_hearted() -> Config {
    let mut config = quick();
    config.webrun.private_webhooks = true;
    config
}

fn outcome(name: &str) -> String {
    format!("onlooker_task_webhooks_total{{outcome=\"{name}\"}}")
}

async fn until_counted(gateway: &TestGateway, name: &str, count: f64) {
    wait_until(&format!("{count} × {name}"), || async { gateway.metric(&outcome(name)).await >= count }).await;
    assert_eq!(gateway.metric(&outcome(name)).await, count, "{name}");
}

/// A session, its runtime, and the tasks that it is given.
struct Given {
    runtime: Runtime,
    session: String,
}

impl Given {
    async fn by(gateway: &TestGateway) -> Self {
        let mut runtime = gateway.runtime().await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        Self { runtime, session }
    }

    /// Starts a task with a webhook; `more` has what is particular about both.
    async fn task(&mut self, gateway: &TestGateway, id: &str, url: &str, form: &str, more: Value) {
        let mut task = json!({ "taskId": id, "webhook": { "name": "n", "url": url, "submittedData": form } });
        for (name, value) in more.as_object().into_iter().flatten() {
            match name.as_str() {
                "auth" => task["webhook"]["auth"] = value.clone(),
                _ => task[name] = value.clone(),
            }
        }
        let (status, answer) = self.command(gateway, json!({ "command": "new_task", "task": task })).await;
        assert_eq!(status, 200, "{answer}");
        self.runtime.publish(&self.session, "task_started", json!({ "taskId": id })).await;
    }

    async fn command(&self, gateway: &TestGateway, command: Value) -> (u16, Value) {
        gateway.post(&format!("/v1/sessions/{}/commands", self.session), command).await
    }

    async fn publish(&mut self, kind: &str, data: Value) {
        self.runtime.publish(&self.session, kind, data).await;
    }
}

async fn got(receiver: &Receiver, count: usize) -> Vec<Delivered> {
    wait_until(&format!("{count} came"), || async { receiver.got().len() >= count }).await;
    let got = receiver.got();
    assert_eq!(got.len(), count);
    got
}

/// A receiver that answers everything with one status, and counts.
async fn answering(status: StatusCode, location: &str) -> (String, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (counts, location) = (Arc::clone(&asked), location.to_owned());
    let answer = move || {
        counts.fetch_add(1, Ordering::SeqCst);
        let location = location.clone();
        async move { (status, [("location", location)]) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(any(answer))).await });
    (url, asked)
}

// --- what arrives ----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn each_form_arrives_once_with_its_authorization() {
    let (gateway, receiver) = (TestGateway::with(open_hearted()).await, Receiver::start().await);
    let mut given = Given::by(&gateway).await;
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": 3, "cost": 0.25, "completion_time": 2.5 });
    let result = |id: &str| json!({ "taskId": id, "message": "{\"price\":12}", "usage": usage });

    given.task(&gateway, "full", &receiver.url, "full_response", json!({ "auth": "Bearer hook-secret-1" })).await;
    given.publish("task_completed", result("full")).await;
    let full = got(&receiver, 1).await.remove(0);
    assert_eq!(
        (&full.headers["content-type"], &full.headers["authorization"]),
        (&"application/json".parse().unwrap(), &"Bearer hook-secret-1".parse().unwrap())
    );
    assert_eq!(full.body["type"], "task_completed");
    assert_eq!((&full.body["sessionId"], &full.body["taskId"]), (&json!(given.session), &json!("full")));
    assert_eq!((&full.body["data"]["message"], &full.body["data"]["files"]), (&json!("{\"price\":12}"), &json!([])));
    let (old, new) = (&full.body["usage"]["inputTokens"], &full.body["usage"]["prompt_tokens"]);
    assert_eq!((old, new, &full.body["usage"]["computeTime"]), (&json!(7), &json!(7), &json!(2.5)));
    assert!(full.body["completedAt"].as_str().and_then(onlooker::clock::parse).is_some(), "{}", full.body);

    given.task(&gateway, "ai", &receiver.url, "ai_response", json!({})).await;
    given.publish("task_completed", result("ai")).await;
    let ai = got(&receiver, 2).await.remove(1);
    assert_eq!((&ai.body, ai.headers.get("authorization")), (&json!("{\"price\":12}"), None));

    let userinfo = receiver.url.replace("http://", "http://me:hook-secret-2@");
    given.task(&gateway, "json", &userinfo, "ai_response", json!({ "outputType": "structured_json" })).await;
    given.publish("task_completed", result("json")).await;
    let json = got(&receiver, 3).await.remove(2);
    assert_eq!(
        (&json.body, &json.headers["authorization"]),
        (&json!({ "price": 12 }), &"Basic bWU6aG9vay1zZWNyZXQtMg==".parse().unwrap())
    );

    given.task(&gateway, "ping", &receiver.url, "just_ping", json!({})).await;
    given.publish("task_completed", result("ping")).await;
    let ping = got(&receiver, 4).await.remove(3);
    let mut members: Vec<_> = ping.body.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["completedAt", "event", "sessionId", "taskId"]);
    assert_eq!((&ping.body["event"], &ping.body["taskId"]), (&json!("task_completed"), &json!("ping")));

    given.task(&gateway, "failed", &receiver.url, "full_response", json!({})).await;
    given.publish("error", json!({ "taskId": "failed", "error": "It broke", "code": "PAGE_CRASH" })).await;
    let failed = got(&receiver, 5).await.remove(4);
    assert_eq!(
        (&failed.body["type"], &failed.body["error"], &failed.body["code"]),
        (&json!("task_failed"), &json!("It broke"), &json!("PAGE_CRASH"))
    );
    until_counted(&gateway, "delivered", 5.0).await;
    gateway.stop().await;
    assert_eq!(receiver.got().len(), 5);
}

#[tokio::test]
async fn what_ends_its_session_is_told_also_when_nothing_is_retained() {
    let receiver = Receiver::start().await;
    let mut config = open_hearted();
    config.times.retention = Duration::ZERO;
    let gateway = TestGateway::with(config).await;
    let mut given = Given::by(&gateway).await;
    let more = json!({ "terminateOnCompletion": true, "auth": "Bearer hook-secret-3" });
    given.task(&gateway, "t", &receiver.url, "full_response", more).await;
    given.publish("task_completed", json!({ "taskId": "t", "message": "done" })).await;
    let told = got(&receiver, 1).await.remove(0);
    assert_eq!(
        (&told.body["data"]["message"], &told.headers["authorization"]),
        (&json!("done"), &"Bearer hook-secret-3".parse().unwrap())
    );
    let path = format!("/v1/sessions/{}", given.session);
    wait_until("the session is forgotten", || async { gateway.get(&path).await.0 == 404 }).await;
}

#[tokio::test]
async fn a_task_that_is_lost_with_its_session_is_told_and_one_that_was_stopped_is_not() {
    let receiver = Receiver::start().await;
    let mut config = open_hearted();
    config.times.runtime_grace = Duration::from_millis(200);
    let gateway = TestGateway::with(config).await;
    let mut stopped = Given::by(&gateway).await;
    stopped.task(&gateway, "stopped", &receiver.url, "full_response", json!({})).await;
    assert_eq!(stopped.command(&gateway, json!({ "command": "stop" })).await.0, 200);
    stopped.task(&gateway, "terminated", &receiver.url, "full_response", json!({})).await;
    assert_eq!(stopped.command(&gateway, json!({ "command": "terminate" })).await.0, 200);
    let mut lost = Given::by(&gateway).await;
    lost.task(&gateway, "lost", &receiver.url, "full_response", json!({})).await;
    drop(lost.runtime);
    let told = got(&receiver, 1).await.remove(0);
    assert_eq!(
        (&told.body["type"], &told.body["taskId"], &told.body["code"]),
        (&json!("task_failed"), &json!("lost"), &json!("INSTANCE_LOST"))
    );
    gateway.stop().await;
    assert_eq!(receiver.got().len(), 1);
}

#[tokio::test]
async fn what_authorizes_a_webhook_is_in_no_payload_and_no_log() {
    let log = crate::secrecy::log();
    let (gateway, receiver) = (TestGateway::with(open_hearted()).await, Receiver::start().await);
    let mut given = Given::by(&gateway).await;
    let (auth, user) = ("Bearer cnry-webhook-auth-81726354", "cnry-webhook-user-91827364");
    let url = receiver.url.replace("http://", &format!("http://me:{user}@"));
    given.task(&gateway, "t", &url, "full_response", json!({ "auth": auth })).await;
    let message = format!("the page says {auth} and {user}");
    given.publish("task_completed", json!({ "taskId": "t", "message": message })).await;
    let told = got(&receiver, 1).await.remove(0);
    assert_eq!(told.headers["authorization"], auth);
    let text = String::from_utf8(told.raw.to_vec()).unwrap();
    assert!(text.contains("the page says") && !text.contains("cnry-webhook"), "{text}");
    // One that goes wrong is logged.
    let nowhere = format!("http://me:{user}@127.0.0.1:1/{user}");
    given.task(&gateway, "u", &nowhere, "just_ping", json!({ "auth": auth })).await;
    given.publish("task_completed", json!({ "taskId": "u" })).await;
    until_counted(&gateway, "failed", 1.0).await;
    gateway.stop().await;
    let log = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    assert!(log.contains("a task webhook was not delivered"));
    assert!(!log.contains("cnry-webhook"));
}

// --- where none goes -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn none_goes_to_this_machine_unless_it_is_allowed() {
    let (gateway, receiver) = (TestGateway::start().await, Receiver::start().await);
    let mut given = Given::by(&gateway).await;
    let port = receiver.url.rsplit_once(':').unwrap().1.to_owned();
    let inside = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "0.0.0.0", "2130706433"];
    for (n, host) in inside.iter().enumerate() {
        let id = format!("t{n}");
        given.task(&gateway, &id, &format!("http://{host}:{port}"), "just_ping", json!({})).await;
        given.publish("task_completed", json!({ "taskId": id })).await;
        until_counted(&gateway, "blocked", (n + 1) as f64).await;
    }
    assert_eq!(receiver.got().len(), 0);
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_a_refusal_not_tried_again() {
    let (gateway, receiver) = (TestGateway::with(open_hearted()).await, Receiver::start().await);
    let mut given = Given::by(&gateway).await;
    let statuses = [301, 303, 307, 308, 400, 410, 429, 500, 503];
    for (n, status) in statuses.into_iter().enumerate() {
        let (url, asked) = answering(StatusCode::from_u16(status).unwrap(), &receiver.url).await;
        let id = format!("t{status}");
        given.task(&gateway, &id, &url, "full_response", json!({ "auth": "Bearer hook-secret-4" })).await;
        given.publish("task_completed", json!({ "taskId": id })).await;
        until_counted(&gateway, "refused", (n + 1) as f64).await;
        assert_eq!(asked.load(Ordering::SeqCst), 1, "{status}");
    }
    assert_eq!(receiver.got().len(), 0, "nothing went where redirects lead");
}

#[tokio::test]
async fn a_webhook_that_cannot_be_sent_is_refused_with_its_task() {
    let gateway = TestGateway::start().await;
    let given = Given::by(&gateway).await;
    let wrong = [
        (json!("https://h.example/"), "webhook must be an object"),
        (
            json!({ "name": "n", "url": "ftp://h.example/", "submittedData": "just_ping" }),
            "webhook.url must be an http or https URL",
        ),
        (
            json!({ "name": "n", "url": "https://h.example/", "submittedData": "all" }),
            "webhook.submittedData must be one of",
        ),
    ];
    for (webhook, message) in wrong {
        let task = json!({ "taskId": "t", "webhook": webhook });
        let (status, answer) = given.command(&gateway, json!({ "command": "new_task", "task": task })).await;
        assert_eq!((status, &answer["error"]), (400, &json!("invalid")), "{answer}");
        assert!(answer["message"].as_str().unwrap().starts_with(message), "{answer}");
    }
    let (_, view) = gateway.get(&format!("/v1/sessions/{}", given.session)).await;
    assert_eq!(view["state"]["tasks"], json!([]));
}
