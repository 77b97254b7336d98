//! Every byte that leaves the gateway for anybody but a session's own runtime, at the finest log level, searched for
//! every secret that it was given.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio, time::Duration};

use aho_corasick::AhoCorasick;
use futures::{SinkExt as _, StreamExt as _};
use onlooker_protocol::runtime::{GatewayToRuntime, PublishedEvent, Reclaim, RuntimeCommand, RuntimeToGateway};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{process::Command, task::JoinHandle, time::timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    driver::{Door, Line, receiver::Receiver},
    gateway::Gateway,
    history::{History, What},
    secrecy::{BOUND, Canaries, forms},
    tap::Tap,
};

/// What stands where secrets may not: found by the search, so that a search that finds nothing means something.
const PUBLIC: &str = "public-marker-7d41c0";

#[tokio::test]
async fn no_byte_that_leaves_the_gateway_is_a_secret() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut canaries = Canaries::default();
    let history = History::begin();
    let hooks = Receiver::start(history.clone(), 1, 0.0).await;
    let host = |url: &str| url.strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let (notices, task_hook) = (Tap::on(&host(&hooks.url)).await, Tap::on(&host(&hooks.url)).await);
    let key = canaries.keep("API key", &format!("wr_{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()));
    let digest: String = Sha256::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
    let settings = format!(
        "[[keys]]\nid = \"all\"\nproject = \"p\"\nsha256 = \"{digest}\"\n\
         scopes = [\"publish\", \"watch\", \"answer\", \"control\", \"admin\"]\n\
         [webrun]\nprivate_webhooks = true\nrequests_per_minute = 1000\n\
         [notify_webhook]\nurl = \"http://{}/hook\"\n",
        notices.address
    );
    let mut gateway = Gateway::new("outgoing", &settings, &history);
    gateway.log_filter = Some("trace");
    gateway.start().await;
    let wire = Tap::on(&host(&gateway.url)).await;
    let mut stage = Stage::set(&gateway, &wire, key, &mut canaries, &task_hook).await;
    let recording = stage.play(&mut canaries, &history, &gateway).await;
    let session = stage.session.clone();
    drop(stage);
    gateway.stop().await;

    let log = gateway.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "the log is as fine as it gets:\n{log}");
    assert!(!log.contains(&session), "a session's id opens it, so the log shows only its hash");
    let all = &canaries;
    search("what clients got", &wire.back(), all);
    search("notices", &notices.there(), all);
    search("the recording", &bytes_of(&recording), all);
    search("the data directory", &bytes_of(&gateway.data()), all);
    assert_eq!(found(log.as_bytes(), all), NOTHING, "in the log");
    // The one header is what the client asked for; what follows it is not.
    let own = ["task webhook auth", "task webhook userinfo"];
    let sent = task_hook.there();
    let head = sent.windows(4).position(|part| part == b"\r\n\r\n").expect("a whole request");
    search("the task's webhook", &sent[head..], all);
    assert_eq!(found(&sent, &all.without(&own)), NOTHING, "in the head of the task's webhook");
    assert!(found(&sent, all).iter().any(|found| found.starts_with("task webhook auth")), "it was asked for");
    gateway.remove().await;
}

const NOTHING: Vec<String> = Vec::new();

#[track_caller]
fn search(place: &str, bytes: &[u8], canaries: &Canaries) {
    let is_there = bytes.windows(PUBLIC.len()).any(|part| part == PUBLIC.as_bytes());
    assert!(is_there, "{place}: the search finds what is no secret");
    assert_eq!(found(bytes, canaries), NOTHING, "in {place}");
}

fn found(bytes: &[u8], canaries: &Canaries) -> Vec<String> {
    let forms: Vec<_> =
        canaries.iter().flat_map(|(name, secret)| forms(secret).into_iter().map(move |form| (name, form))).collect();
    let searcher = AhoCorasick::new(forms.iter().map(|(_, (_, text))| text)).unwrap();
    let hits: BTreeSet<_> = searcher.find_overlapping_iter(bytes).map(|hit| hit.pattern().as_usize()).collect();
    hits.into_iter().map(|hit| format!("{} ({})", forms[hit].0, forms[hit].1.0)).collect()
}

fn bytes_of(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        bytes.extend(if path.is_dir() { bytes_of(&path) } else { fs::read(path).unwrap() });
    }
    bytes
}

/// Everybody who is there: a runtime, and clients of every surface behind the tap.
struct Stage {
    door: Door,
    http: reqwest::Client,
    runtime: Line,
    session: String,
    task: String,
    n: u64,
    /// They read to the end.
    followers: Vec<JoinHandle<()>>,
    socket: tokio::sync::mpsc::UnboundedSender<String>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.followers.iter().for_each(JoinHandle::abort);
    }
}

impl Stage {
    async fn set(gateway: &Gateway, wire: &Tap, key: String, canaries: &mut Canaries, hook: &Tap) -> Self {
        let straight = Door { url: gateway.url.clone(), token: Some(key.clone()) };
        let door = Door { url: format!("http://{}", wire.address), token: Some(key) };
        let mut runtime = Line::open(&straight, "/v1/runtime").await.expect("it listens");
        let (name, capacity, labels) = ("runtime".to_owned(), 10, Map::new());
        runtime.send(&RuntimeToGateway::Register { name, capacity, labels }).await.unwrap();
        let http = reqwest::Client::builder().timeout(BOUND).no_proxy().build().unwrap();
        let (socket, _) = tokio::sync::mpsc::unbounded_channel();
        let (session, task) = (String::new(), "first".to_owned());
        let mut stage = Self { door, http, runtime, session, task, n: 0, followers: Vec::new(), socket };
        stage.until("registered", |frame| matches!(frame, GatewayToRuntime::Registered { .. }).then_some(())).await;
        let userinfo = canaries.make_plain("task webhook userinfo");
        let page = canaries.make_plain("userinfo of the first page");
        let asked = json!({
            "reachOutMode": "full",
            "environmentId": PUBLIC,
            "proxy": {
                "source": "custom", "type": "http", "host": "proxy.example", "port": "3128",
                "username": "ada", "password": canaries.make("proxy password"),
            },
            "task": {
                "taskId": "first",
                "prompt": PUBLIC,
                "startingUrl": format!("https://ada:{page}@shop.example/"),
                "secrets": [{ "match": "*.shop.example", "fields": { "password": canaries.make("session secret") } }],
                "webhook": {
                    "name": PUBLIC,
                    "url": format!("http://bell:{userinfo}@{}/hook", hook.address),
                    "auth": canaries.make_plain("task webhook auth"),
                    "submittedData": "full_response",
                },
            },
        });
        let started = stage.post("/start/start-session", &asked, 200).await;
        stage.session = started["sessionId"].as_str().expect("a session").to_owned();
        stage.take_over(canaries).await;
        stage.follow().await;
        stage
    }

    /// The runtime claims what it is offered.
    async fn take_over(&mut self, canaries: &mut Canaries) {
        let claim = self
            .until("assigned", |frame| match frame {
                GatewayToRuntime::Assigned { claim, .. } => Some(claim.clone()),
                _ => None,
            })
            .await;
        canaries.keep("claim token", &claim);
        let reclaim = Reclaim { session: self.session.clone(), claim, commands: 0 };
        self.runtime.send(&RuntimeToGateway::Claim(reclaim)).await.unwrap();
        self.until("the task", |frame| match frame {
            GatewayToRuntime::Command { command, .. } => {
                matches!(command.command, RuntimeCommand::NewTask { .. }).then_some(())
            }
            _ => None,
        })
        .await;
    }

    /// Somebody on every surface, all behind the tap.
    async fn follow(&mut self) {
        let mut native = Line::open(&self.door, "/v1/ws").await.expect("it listens");
        let subscribe = json!({ "type": "subscribe", "session": self.session, "since": "start", "pictures": "full" });
        native.send(&subscribe).await.unwrap();
        let url = self.door.url.replacen("http", "ws", 1) + "/socket.io/?EIO=4&transport=websocket";
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let connect = json!({ "sessionId": self.session });
        socket.send(Message::text(format!("40{connect}"))).await.unwrap();
        let stream = self.http.get(format!("{}/v1/sessions/{}/events", self.door.url, self.session));
        let token = self.door.token.clone().expect("a key");
        let stream = stream.header("accept", "text/event-stream").bearer_auth(token).send().await.unwrap();
        assert!(stream.status().is_success());
        let (sender, mut to_send) = tokio::sync::mpsc::unbounded_channel::<String>();
        self.socket = sender;
        self.followers.push(tokio::spawn(async move { while native.next::<Value>().await.is_some() {} }));
        self.followers.push(tokio::spawn(async move {
            let mut stream = stream.bytes_stream();
            while stream.next().await.is_some_and(|piece| piece.is_ok()) {}
        }));
        self.followers.push(tokio::spawn(async move {
            loop {
                tokio::select! {
                    text = to_send.recv() => match text {
                        Some(text) => socket.send(Message::text(text)).await.unwrap(),
                        None => return,
                    },
                    frame = socket.next() => if frame.is_none_or(|frame| frame.is_err()) { return },
                }
            }
        }));
    }

    async fn play(&mut self, canaries: &mut Canaries, history: &History, gateway: &Gateway) -> std::path::PathBuf {
        let recording = gateway.folder.join("recording");
        let mut recorder = self.record(&recording);
        self.publish("task_started", json!({ "taskId": self.task })).await;
        // What the session was given; no page knows keys and tokens.
        for secret in canaries.without(&["API key", "claim token"]).all() {
            self.echo(&secret).await;
        }
        self.answers(canaries).await;
        let told = |times: usize| history.count(|what| matches!(what, What::Delivered(_))) >= times;
        self.wait("a notice of the question that nobody answers", || told(1)).await;
        self.bad_requests(canaries).await;
        self.look_everywhere().await;
        let (typed, text) = (canaries.of("typed value"), canaries.of("text of an answer"));
        let message = format!("{PUBLIC}: logged in with {typed}, said {text}");
        let files = json!([{ "filename": "a.txt", "downloadUrl": format!("https://files.example/?k={typed}") }]);
        self.publish("task_completed", json!({ "taskId": self.task, "message": message, "files": files })).await;
        let poll = self.get(&format!("/task/{}/{}", self.session, self.task)).await;
        assert_eq!(poll["status"], "complete", "{poll}");
        let recorded = timeout(BOUND, recorder.wait()).await.expect("the task is over").unwrap();
        assert!(recorded.success(), "the recorder failed");
        self.wait("the task's webhook", || told(2)).await;
        recording
    }

    fn record(&self, into: &Path) -> tokio::process::Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onlooker"));
        command.args(["record", &self.session, "--gateway", &self.door.url, "--into"]).arg(into);
        command.env("ONLOOKER_TOKEN", self.door.token.as_ref().expect("a key"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap()
    }

    /// Answers by every way that WebRun clients have, each echoed by the page.
    async fn answers(&mut self, canaries: &mut Canaries) {
        let password = json!({ "fields": [{ "id": "password", "type": "password" }] });
        let typed = canaries.make("typed value");
        self.ask("by-rest", password.clone()).await;
        let message = json!({ "actionType": "guardrail", "newState": "resume", "prompt": typed });
        let body = json!({ "sessionId": self.session, "message": message });
        self.post("/start/send-message", &body, 200).await;
        self.outcome(&typed).await;

        let text = canaries.make("text of an answer");
        self.ask("by-socket", json!({})).await;
        let message = json!(["message", { "actionType": "guardrail", "prompt": text, "newState": "resume" }]);
        self.socket.send(format!("42{message}")).unwrap();
        self.outcome(&text).await;

        // Words for a question with several secret fields: the page gets them one by one.
        let (name, code) = (canaries.make_plain("name in words"), canaries.make_plain("code in words"));
        self.ask("in-words", json!({ "fields": [{ "id": "name" }, { "id": "code" }] })).await;
        let message = json!({ "actionType": "guardrail", "prompt": format!("{name} {code}") });
        self.post("/start/send-message", &json!({ "sessionId": self.session, "message": message }), 200).await;
        self.outcome(&name).await;
        self.echo(&code).await;

        // Nobody looks and nobody answers.
        self.publish(
            "guardrail_trigger",
            json!({
                "type": "human_input_needed", "guardrailId": "open", "value": format!("{PUBLIC}: is {typed} right?"),
            }),
        )
        .await;
    }

    async fn ask(&mut self, id: &str, more: Value) {
        let mut data = json!({ "type": "human_input_needed", "value": PUBLIC, "guardrailId": id });
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.publish("guardrail_trigger", data).await;
        let shown = self.get(&format!("/task/{}/{}", self.session, self.task)).await;
        assert_eq!(shown["type"], "guardrail_trigger", "{shown}");
    }

    /// The runtime gets it, says so, and the page repeats it.
    async fn outcome(&mut self, secret: &str) {
        let (id, revision) = self
            .until("an outcome", |frame| match frame {
                GatewayToRuntime::Command { command, .. } => match &command.command {
                    RuntimeCommand::Guardrail(outcome) => Some((outcome.guardrail_id.clone(), outcome.revision)),
                    _ => None,
                },
                _ => None,
            })
            .await;
        self.echo(secret).await;
        self.publish("guardrail_taken", json!({ "guardrailId": id, "revision": revision })).await;
        self.echo(secret).await;
    }

    /// Errors say what is wrong and not what was sent.
    async fn bad_requests(&mut self, canaries: &mut Canaries) {
        let refused = canaries.make("value of a refused request");
        let start = "/start/start-session";
        for body in [
            json!({ "reachOutMode": refused }),
            json!({ "proxy": refused }),
            json!({ "proxy": { "source": "custom", "type": refused, "host": refused, "port": refused } }),
            json!({ "task": { "maxDuration": refused, "secrets": [{ "match": "all", "fields": refused }] } }),
            json!({ "task": { "secrets": [{ "match": refused, "fields": { "a": 1 } }] } }),
            json!({ "task": { "prompt": "x", "webhook": { "name": "a", "url": refused, "auth": refused } } }),
            json!({ "task": { "prompt": "x", "outputType": refused } }),
        ] {
            self.post(start, &body, 400).await;
        }
        for message in [
            json!({ "actionType": refused }),
            json!({ "actionType": "state", "newState": refused }),
            json!({ "actionType": "interaction", "action": { "type": "KEY_PRESS", "key": refused } }),
            json!({ "actionType": "interaction", "action": { "type": "CLICK", "x": refused, "y": 1 } }),
        ] {
            self.post("/start/send-message", &json!({ "sessionId": self.session, "message": message }), 400).await;
            let frame = json!(["message", message]);
            self.socket.send(format!("42{frame}")).unwrap();
        }
        let torn = format!("{{\"task\": {{\"prompt\": \"{}\"", refused.replace(['"', '\\'], ""));
        canaries.keep("torn body", &refused.replace(['"', '\\'], ""));
        let request = self.http.post(format!("{}{start}", self.door.url)).header("content-type", "application/json");
        let response = request.bearer_auth(self.door.token.clone().unwrap()).body(torn).send().await.unwrap();
        assert_eq!(response.status(), 400);
        let stranger = canaries.make_plain("a wrong key");
        let request = self.http.post(format!("{}{start}", self.door.url)).json(&json!({}));
        assert_eq!(request.bearer_auth(stranger).send().await.unwrap().status(), 401);
    }

    async fn look_everywhere(&self) {
        let id = &self.session;
        for path in [
            format!("/v1/sessions/{id}"),
            format!("/v1/sessions/{id}/events?since=start"),
            format!("/v1/sessions/{id}/watchers"),
            format!("/start/session-status/{id}"),
            format!("/view/{id}"),
            "/v1/sessions".to_owned(),
            "/v1/guardrails".to_owned(),
            format!("/v1/guardrails/open/why?session={id}"),
            "/start/health".to_owned(),
            "/start/active-sockets".to_owned(),
            "/metrics".to_owned(),
            "/healthz".to_owned(),
        ] {
            self.get(&path).await;
        }
    }

    /// The page that the runtime sees repeats a secret, in every form.
    async fn echo(&mut self, secret: &str) {
        let echoed: Vec<_> = forms(secret)
            .into_iter()
            .filter(|(name, _)| !name.starts_with("base64"))
            .map(|(_, form)| format!("The page says {form} to you."))
            .collect();
        self.publish("agent", json!({ "content": format!("I see {secret}") })).await;
        self.publish("action", json!({ "name": "TYPE", "text": secret, "url": echoed[0] })).await;
        self.publish("response_update", json!({ "message": echoed })).await;
    }

    async fn publish(&mut self, kind: &str, data: Value) {
        self.n += 1;
        let (n, session) = (self.n, self.session.clone());
        let event = PublishedEvent { n, kind: kind.to_owned(), task: None, data, picture: None };
        self.runtime.send(&RuntimeToGateway::Events { session, events: vec![event] }).await.unwrap();
        self.until("accepted", |frame| {
            matches!(frame, GatewayToRuntime::Accepted { n: up_to, .. } if *up_to >= n).then_some(())
        })
        .await;
    }

    async fn until<T>(&mut self, what: &str, fits: impl Fn(&GatewayToRuntime) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let frame: GatewayToRuntime =
                    self.runtime.next().await.unwrap_or_else(|| panic!("it ended before {what}"));
                match &frame {
                    GatewayToRuntime::EventRefused { refusal, .. } => panic!("{refusal}"),
                    GatewayToRuntime::Ping { id } => {
                        self.runtime.send(&RuntimeToGateway::Pong { id: *id }).await.unwrap();
                    }
                    _ => {}
                }
                if let Some(found) = fits(&frame) {
                    return found;
                }
            }
        };
        timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    async fn wait(&self, what: &str, is_there: impl Fn() -> bool) {
        let until = tokio::time::Instant::now() + BOUND;
        while !is_there() {
            assert!(tokio::time::Instant::now() < until, "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.door.url));
        let response = request.bearer_auth(self.door.token.clone().unwrap()).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn post(&self, path: &str, body: &Value, expected: u16) -> Value {
        let request = self.http.post(format!("{}{path}", self.door.url)).json(body);
        let response = request.bearer_auth(self.door.token.clone().unwrap()).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, expected, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }
}
