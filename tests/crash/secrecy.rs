//! Every byte that a killed gateway left on the disk, searched for every secret that it was given.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use aho_corasick::AhoCorasick;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use onlooker_protocol::{
    runtime::{GatewayToRuntime, OpenSession, PublishedEvent, Reclaim, RuntimeCommand, RuntimeToGateway},
    subscriber::{NewTask, SecretEntry},
};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::{
    driver::{Door, Line, receiver::Receiver},
    gateway::Gateway,
    history::{History, What},
};

pub const BOUND: Duration = Duration::from_secs(20);

/// What must not be found, by name.
#[derive(Default)]
pub struct Canaries(BTreeMap<String, String>);

impl Canaries {
    /// A new secret whose JSON, percent and base64 forms all differ from it.
    pub fn make(&mut self, name: &str) -> String {
        let secret = format!("Kanari\"{:016x}\\vögel/{:08x}+?", rand::random::<u64>(), rand::random::<u32>());
        self.keep(name, &secret)
    }

    /// A new secret that can stand in a URL as it is.
    pub fn make_plain(&mut self, name: &str) -> String {
        self.keep(name, &format!("kanari{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()))
    }

    pub fn keep(&mut self, name: &str, secret: &str) -> String {
        self.0.insert(name.to_owned(), secret.to_owned());
        secret.to_owned()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    pub fn all(&self) -> Vec<String> {
        self.0.values().cloned().collect()
    }

    pub fn of(&self, name: &str) -> String {
        self.0[name].clone()
    }

    pub fn without(&self, names: &[&str]) -> Self {
        let kept = self.iter().filter(|(name, _)| !names.contains(&name.as_str()));
        Self(kept.map(|(name, secret)| (name.clone(), secret.clone())).collect())
    }

    /// Every form of every secret that stands in a file below the folder.
    fn found_in(&self, folder: &Path) -> Vec<String> {
        let forms: Vec<_> =
            self.0.iter().flat_map(|(name, secret)| forms(secret).into_iter().map(move |form| (name, form))).collect();
        let searcher = AhoCorasick::new(forms.iter().map(|(_, (_, text))| text)).unwrap();
        let mut found = Vec::new();
        for file in files(folder) {
            let bytes = fs::read(&file).unwrap();
            let hits: BTreeSet<_> =
                searcher.find_overlapping_iter(&bytes).map(|hit| hit.pattern().as_usize()).collect();
            let said = |hit: usize| format!("{} ({}) in {}", forms[hit].0, forms[hit].1.0, file.display());
            found.extend(hits.into_iter().map(said));
        }
        found
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

pub fn forms(secret: &str) -> Vec<(&'static str, String)> {
    let json = serde_json::to_string(secret).unwrap();
    let ascii: String =
        json.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) }).collect();
    let hex = |upper: bool| -> String {
        let byte = |b: &u8| if upper { format!("%{b:02X}") } else { format!("%{b:02x}") };
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.~".contains(b);
        secret.as_bytes().iter().map(|b| if plain(b) { char::from(*b).to_string() } else { byte(b) }).collect()
    };
    let mut forms = vec![
        ("as it is", secret.to_owned()),
        ("in JSON", json.trim_matches('"').to_owned()),
        ("in ASCII JSON", ascii.trim_matches('"').to_owned()),
        ("percent", hex(true)),
        ("percent", hex(false)),
    ];
    for shift in 0..3 {
        // What comes before and after it changes the characters at both ends.
        let shifted = [&b"\0\0"[..shift], secret.as_bytes()].concat();
        let whole = 3 * (shifted.len() / 3);
        let cut = [0, 2, 3][shift];
        forms.push(("base64", STANDARD_NO_PAD.encode(&shifted[..whole])[cut..].to_owned()));
        forms.push(("base64url", URL_SAFE_NO_PAD.encode(&shifted[..whole])[cut..].to_owned()));
    }
    forms
}

/// The two ends of one gateway, as this test needs them.
struct Session {
    door: Door,
    http: reqwest::Client,
    line: Line,
    session: String,
    claim: String,
    n: u64,
}

impl Session {
    /// The next frame from the gateway that fits.
    async fn until<T>(&mut self, what: &str, fits: impl Fn(&GatewayToRuntime) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let frame: GatewayToRuntime =
                    self.line.next().await.unwrap_or_else(|| panic!("it ended before {what}"));
                if let GatewayToRuntime::EventRefused { refusal, .. } = &frame {
                    panic!("{refusal}");
                }
                if let Some(found) = fits(&frame) {
                    return found;
                }
            }
        };
        timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
    }

    async fn publish(&mut self, kind: &str, data: Value) {
        self.n += 1;
        let (n, session) = (self.n, self.session.clone());
        let event = PublishedEvent { n, kind: kind.to_owned(), task: None, data, picture: None };
        self.line.send(&RuntimeToGateway::Events { session, events: vec![event] }).await.unwrap();
        self.until("accepted", |frame| {
            matches!(frame, GatewayToRuntime::Accepted { n: up_to, .. } if *up_to >= n).then_some(())
        })
        .await;
    }

    /// The page that the runtime sees repeats what was typed, in every form.
    async fn echo(&mut self, secret: &str) {
        let plain = forms(secret).into_iter().filter(|(name, _)| !name.starts_with("base64"));
        let echoed: Vec<_> = plain.map(|(_, form)| format!("The page says {form} to you.")).collect();
        let around = |i: usize| format!("{}{secret}&next=1", &"p=="[..i]);
        let encoded: Vec<_> =
            (0..3).flat_map(|i| [STANDARD_NO_PAD.encode(around(i)), URL_SAFE_NO_PAD.encode(around(i))]).collect();
        self.publish("x.page", json!({ "seen": secret, "forms": echoed, "encoded": encoded })).await;
        self.publish("agent", json!({ "content": format!("I typed {secret} into the field") })).await;
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let mut request = self.http.post(format!("{}{path}", self.door.url)).json(&body);
        if let Some(token) = &self.door.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn ask_and_answer(&mut self, id: &str, more: Value, answer: Value) {
        let mut data = json!({ "type": "human_input_needed", "value": "What now?", "guardrailId": id });
        let mut body = json!({ "revision": 1, "idempotencyKey": id, "action": "submit" });
        for (all, part) in [(&mut data, more), (&mut body, answer)] {
            for (name, value) in part.as_object().into_iter().flatten() {
                all[name] = value.clone();
            }
        }
        self.publish("guardrail_trigger", data).await;
        self.post(&format!("/v1/guardrails/{id}/answer?session={}", self.session), body).await;
        self.until("an outcome", |frame| match frame {
            GatewayToRuntime::Command { command, .. } => {
                matches!(command.command, RuntimeCommand::Guardrail(_)).then_some(())
            }
            _ => None,
        })
        .await;
    }
}

async fn register(door: &Door) -> Line {
    let mut line = Line::open(door, "/v1/runtime").await.expect("it listens");
    let register = RuntimeToGateway::Register { name: "runtime".to_owned(), capacity: 10, labels: Map::new() };
    line.send(&register).await.unwrap();
    line
}

fn secrets(host: &str, secret: &str) -> Vec<SecretEntry> {
    vec![SecretEntry { matches: host.to_owned(), fields: [("password".to_owned(), secret.to_owned())].into() }]
}

#[tokio::test]
async fn no_byte_on_the_disk_of_a_killed_gateway_is_a_secret() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut canaries = Canaries::default();
    let history = History::begin();
    let receiver = Receiver::start(history.clone(), 1, 0.3).await;
    let key = canaries.keep("API key", &format!("olk_{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()));
    let hook =
        receiver.url.replacen("http://", &format!("http://bell:{}@", canaries.make_plain("webhook userinfo")), 1);
    let signing = canaries.keep("webhook secret", &STANDARD_NO_PAD.encode(rand::random::<[u8; 30]>()));
    let digest: String = Sha256::digest(&key).iter().map(|byte| format!("{byte:02x}")).collect();
    let settings = format!(
        "[[keys]]\nid = \"all\"\nproject = \"p\"\nsha256 = \"{digest}\"\n\
         scopes = [\"publish\", \"watch\", \"answer\", \"control\", \"admin\"]\n\
         [notify_webhook]\nurl = \"{hook}\"\nsecret = \"whsec_{signing}\"\n"
    );
    let mut gateway = Gateway::new("secrecy", &settings, &history);
    gateway.start().await;

    let door = Door { url: gateway.url.clone(), token: Some(key) };
    let public = format!("public{:032x}", rand::random::<u128>());
    let mut session = open(&door, &mut canaries, &public).await;
    everything_secret(&mut session, &mut canaries).await;
    let token = session.post("/v1/tokens", json!({ "scopes": ["watch"], "expiresIn": 60_000, "who": "ada" })).await;
    canaries.keep("short-lived token", token["token"].as_str().expect("a token"));
    let told = || history.count(|what| matches!(what, What::Delivered(_))) > 0;
    let until = tokio::time::Instant::now() + BOUND;
    while !told() {
        assert!(tokio::time::Instant::now() < until, "no notice came\n{}", gateway.last_words());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    gateway.kill().await;
    search(&gateway, &canaries, &public);
    gateway.start().await;
    come_back(&mut session, &mut canaries).await;
    gateway.kill().await;
    search(&gateway, &canaries, &public);
    gateway.remove().await;
}

fn search(gateway: &Gateway, canaries: &Canaries, public: &str) {
    let there = Canaries([("public".to_owned(), public.to_owned())].into());
    assert!(!there.found_in(&gateway.data()).is_empty(), "the search finds what is no secret");
    assert_eq!(canaries.found_in(&gateway.data()), Vec::<String>::new());
    let log = gateway.log();
    let logged = canaries.0.iter().filter(|(_, secret)| forms(secret).iter().any(|(_, form)| log.contains(form)));
    assert_eq!(logged.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new(), "in the gateway's log");
}

/// A session with secrets in every place that takes some, and a marker that is none.
async fn open(door: &Door, canaries: &mut Canaries, public: &str) -> Session {
    let mut line = register(door).await;
    let proxy = canaries.make_plain("proxy userinfo");
    let parameters = json!({
        "proxy": { "server": format!("http://ada:{proxy}@proxy.example:3128"), "password": canaries.make("proxy password") },
        "webhook": { "url": "https://hooks.example/", "auth": canaries.make("webhook auth") },
    });
    let task = NewTask {
        task_id: Some("first".to_owned()),
        secrets: secrets("task.example", &canaries.make("secret of the first task")),
        ..NewTask::default()
    };
    let asked = OpenSession {
        external_id: Some(public.to_owned()),
        secrets: secrets("shop.example", &canaries.make("session secret")),
        parameters: parameters.as_object().unwrap().clone(),
        task: Some(task),
        ..OpenSession::default()
    };
    line.send(&RuntimeToGateway::Open { reference: "r".to_owned(), session: Box::new(asked) }).await.unwrap();
    let http = reqwest::Client::builder().timeout(BOUND).no_proxy().build().unwrap();
    let (session, claim) = (String::new(), String::new());
    let mut opened = Session { door: door.clone(), http, line, session, claim, n: 0 };
    let (session, claim) = opened
        .until("opened", |frame| match frame {
            GatewayToRuntime::Opened { session, claim, .. } => Some((session.clone(), claim.clone())),
            GatewayToRuntime::Error { refusal, .. } => panic!("{refusal}"),
            _ => None,
        })
        .await;
    (opened.session, opened.claim) = (session, canaries.keep("claim token", &claim));
    opened
}

async fn everything_secret(session: &mut Session, canaries: &mut Canaries) {
    for secret in canaries.0.clone().into_iter().filter(|(name, _)| name.contains("session") || name.contains("task")) {
        session.echo(&secret.1).await;
    }
    session.publish("task_started", json!({ "taskId": "first" })).await;
    let task = json!({
        "taskId": "second", "prompt": "Look",
        "secrets": [{ "match": "all", "fields": { "code": canaries.make("secret of a queued task") } }],
    });
    session
        .post(&format!("/v1/sessions/{}/commands", session.session), json!({ "command": "new_task", "task": task }))
        .await;
    let fields = json!({ "fields": [{ "id": "password", "type": "password" }, { "id": "name", "secret": false }] });
    let typed = canaries.make("typed value");
    session.ask_and_answer("typed", fields.clone(), json!({ "values": { "password": typed, "name": "ada" } })).await;
    session.echo(&typed).await;
    let data = json!({ "guardrailId": "typed", "revision": 1 });
    session.publish("guardrail_taken", data).await;
    // Accepted, told, and never taken: it waits for the runtime when the gateway dies.
    let waiting = canaries.make("waiting value");
    session.ask_and_answer("waiting", fields, json!({ "values": { "password": waiting, "name": "ada" } })).await;
    session.ask_and_answer("text", json!({}), json!({ "text": canaries.make("text of an answer") })).await;
    // Nobody looks and nobody answers: a notice goes out.
    let value = format!("Is {typed} right?");
    let data = json!({ "type": "human_input_needed", "value": value, "guardrailId": "open", "domain": "shop.example" });
    session.publish("guardrail_trigger", data).await;
}

/// The runtime of the killed gateway comes back, announces its secrets and goes on.
async fn come_back(session: &mut Session, canaries: &mut Canaries) {
    session.line = register(&session.door).await;
    let (id, claim) = (session.session.clone(), session.claim.clone());
    let reclaim = Reclaim { session: id.clone(), claim, commands: 100 };
    session.line.send(&RuntimeToGateway::Claim(reclaim)).await.unwrap();
    let (claim, expected) = session
        .until("claimed", |frame| match frame {
            GatewayToRuntime::Claimed { claim, secrets_expected, .. } => Some((claim.clone(), *secrets_expected)),
            GatewayToRuntime::Error { refusal, .. } => panic!("{refusal}"),
            _ => None,
        })
        .await;
    canaries.keep("second claim token", &claim);
    assert!(expected, "a session that was given secrets is asked for them");
    let of = |name: &str| canaries.0[name].clone();
    let again =
        [secrets("shop.example", &of("session secret")), secrets("task.example", &of("secret of the first task"))];
    let values = vec![of("typed value"), of("secret of a queued task")];
    let announce = RuntimeToGateway::Secrets { session: id, secrets: again.concat(), values };
    session.line.send(&announce).await.unwrap();
    for name in ["session secret", "secret of the first task", "typed value"] {
        session.echo(&of(name)).await;
    }
}
