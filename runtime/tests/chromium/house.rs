//! A real gateway with the Chromium runtime at it, and a page that tells what was done to it.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    response::Html,
    routing::{get, post},
};
use onlooker::{config::Config, gateway::Gateway, http::webrun::message::Message};
use onlooker_runtime::{Options, RunError, chromium::labels, run};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use url::Url;

use crate::script::Stage;

/// The longest that anything is waited for; a browser on a busy machine needs its time.
const BOUND: Duration = Duration::from_secs(60);

pub(crate) struct House {
    stage: Stage,
    gateway: Gateway,
    url: String,
    http: reqwest::Client,
    stop: CancellationToken,
    runtime: JoinHandle<Result<(), RunError>>,
}

impl House {
    pub(crate) async fn of(stage: Stage) -> Self {
        let mut config = Config::default();
        config.listen.address = ([127, 0, 0, 1], 0).into();
        config.data.ephemeral = true;
        config.times.drain = Duration::from_secs(1);
        let gateway = Gateway::start(config).await.unwrap();
        let url = gateway.url();
        let options = Options {
            gateway: Url::parse(&url).unwrap(),
            token: None,
            name: "chromium".to_owned(),
            capacity: 8,
            labels: labels(),
        };
        let stop = CancellationToken::new();
        let runtime = tokio::spawn(run(options, Arc::new(stage.agent.clone()), stop.clone()));
        let http = reqwest::Client::builder().timeout(BOUND).no_proxy().build().unwrap();
        Self { stage, gateway, url, http, stop, runtime }
    }

    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.runtime.await.unwrap().unwrap();
        self.stage.agent.shutdown().await;
        self.gateway.stop().await;
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.http.get(format!("{}{path}", self.url)).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self.http.post(format!("{}{path}", self.url)).json(body).send().await.unwrap();
        let (status, body) = (response.status(), response.json::<Value>().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Starts a session and returns its id.
    pub(crate) async fn start(&self, wanted: &Value) -> String {
        self.until("a runtime has room", || async {
            let response = self.http.post(format!("{}/v1/sessions", self.url)).json(wanted).send().await.unwrap();
            let body = response.json::<Value>().await.unwrap();
            body["session"].as_str().map(str::to_owned)
        })
        .await
    }

    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        until(what, look).await
    }

    /// The open question of a session.
    pub(crate) async fn question(&self, session: &str, kind: &str) -> Value {
        let path = format!("/v1/guardrails?state=open&session={session}");
        let open = || async {
            let mut answer = self.get(&path).await;
            let asked = answer["guardrails"].as_array_mut().unwrap().pop()?;
            (asked["kind"] == kind).then_some(asked)
        };
        self.until(&format!("the question about the {kind}"), open).await
    }

    pub(crate) async fn answer(&self, question: &Value, mut answer: Value) {
        answer["revision"] = question["revision"].clone();
        answer["idempotencyKey"] = json!(format!("{}-{}", question["guardrailId"], question["revision"]));
        let (id, session) = (question["guardrailId"].as_str().unwrap(), question["session"].as_str().unwrap());
        self.post(&format!("/v1/guardrails/{id}/answer?session={session}"), &answer).await;
    }

    /// The data of a session's events of a type, so far.
    pub(crate) async fn events(&self, session: &str, kind: &str) -> Vec<Value> {
        let page = self.get(&format!("/v1/sessions/{session}/events?since=start&filter={kind}")).await;
        page["events"].as_array().unwrap().iter().map(|frame| frame["event"]["data"].clone()).collect()
    }

    /// What a WebRun client says of a person in the window.
    pub(crate) async fn person(&self, session: &str, action: Value) {
        let message = json!({"actionType": "interaction", "action": action});
        let Ok(Message::Command(command)) = Message::read(message) else { panic!("an interaction is a command") };
        self.post(&format!("/v1/sessions/{session}/commands"), &serde_json::to_value(command).unwrap()).await;
    }
}

pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl Fn() -> F) -> T {
    let waiting = async {
        loop {
            match look().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"))
}

/// A page of the right kind for the agent to stop at, which tells what a person does in it.
const TELLING: &str = r#"<!doctype html>
<body data-page="login" style="margin:0">
<button id="mark" style="position:fixed;left:480px;top:135px;width:40px;height:20px">x</button>
<textarea id="text" style="position:fixed;left:100px;top:300px;width:400px;height:100px"></textarea>
<script>
let last = Promise.resolve();
const tell = (what) => { last = last.then(() => fetch('/seen', {method: 'POST', body: JSON.stringify(what)})); };
for (const kind of ['click', 'dblclick']) document.addEventListener(kind, (event) => tell({
  kind, x: event.clientX, y: event.clientY, trusted: event.isTrusted, target: event.target.id,
  there: document.elementFromPoint(event.clientX, event.clientY).id,
}));
document.addEventListener('keydown', (event) => tell({
  kind: 'keydown', key: event.key, at: event.timeStamp, control: event.ctrlKey, shift: event.shiftKey,
}));
document.addEventListener('input', (event) => tell({kind: 'input', value: event.target.value}));
tell({kind: 'size', width: innerWidth, height: innerHeight});
</script>"#;

/// The page's server.
pub(crate) struct Telling {
    pub(crate) url: Url,
    seen: Arc<Mutex<Vec<Value>>>,
    _server: AbortOnDropHandle<()>,
}

impl Telling {
    pub(crate) async fn start() -> Self {
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let router = Router::new()
            .route("/", get(|| async { Html(TELLING) }))
            .route("/seen", post(note))
            .with_state(Arc::clone(&seen));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, _server: AbortOnDropHandle::new(server) }
    }

    pub(crate) fn seen(&self, kind: &str) -> Vec<Value> {
        self.seen.lock().unwrap().iter().filter(|seen| seen["kind"] == kind).cloned().collect()
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    pub(crate) async fn until(&self, what: &str, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let look = || async { self.seen(kind).into_iter().find(|seen| fits(seen)) };
        until(what, look).await
    }
}

async fn note(State(seen): State<Arc<Mutex<Vec<Value>>>>, body: String) {
    seen.lock().unwrap().push(serde_json::from_str(&body).unwrap());
}
