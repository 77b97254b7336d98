//! npm's Socket.IO clients: four versions, each with websocket only, with polling and an upgrade, and with polling only.

use onlooker::config::Config;
use onlooker_protocol::runtime::RuntimeCommand;
use serde_json::{Value, json};

use crate::{
    harness::*,
    program::{Program, Start},
    proxy::Proxy,
    world::ordinary,
};

/// A version of the client and the transports that it may use.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    package: &'static str,
    mode: &'static str,
}

impl Client {
    fn program(self, script: &str, session: &str) -> Start {
        Start::node(script).with("CLIENT", self.package).with("MODE", self.mode).with("SESSION_ID", session)
    }

    /// Where it ends up.
    fn transport(self) -> &'static str {
        if self.mode == "polling" { "polling" } else { "websocket" }
    }
}

/// `every_client!(follow)` makes the tests `follow::newest::by_websocket` and so on.
macro_rules! every_client {
    ($test:ident) => {
        every_client!($test: v4_0 "socket.io-client-4.0", v4_5 "socket.io-client-4.5", v4_6 "socket.io-client-4.6",
            newest "socket.io-client");
    };
    ($test:ident: $($version:ident $package:literal),+) => {
        mod $test {
            $(mod $version {
                use crate::socket::{self, Client};

                #[tokio::test]
                async fn by_websocket() {
                    socket::$test(Client { package: $package, mode: "websocket" }).await;
                }

                #[tokio::test]
                async fn by_polling_and_an_upgrade() {
                    socket::$test(Client { package: $package, mode: "upgrade" }).await;
                }

                #[tokio::test]
                async fn by_polling() {
                    socket::$test(Client { package: $package, mode: "polling" }).await;
                }
            })+
        }
    };
}

const SECRET_ANSWER: &str = "secret answer 1";

/// A session with a task that a test's own runtime works on.
pub struct Scene {
    pub gateway: TestGateway,
    pub runtime: Runtime,
    pub session: String,
    pub task: String,
    /// What its runtime claims the session with.
    claim: String,
}

impl Scene {
    pub async fn begin(config: Config) -> Self {
        let gateway = TestGateway::with(config).await;
        let mut runtime = gateway.runtime().await;
        let asked = json!({ "task": { "prompt": "Buy a lamp", "terminateOnCompletion": true } });
        let (status, created) = gateway.post("/v1/sessions", asked).await;
        assert_eq!(status, 201, "{created}");
        let (session, claim) = runtime.take_assigned().await;
        let task = runtime
            .command("the task", |command| match command {
                RuntimeCommand::NewTask { task } => task.task_id.clone(),
                _ => None,
            })
            .await;
        runtime.publish(&session, "task_started", json!({ "taskId": task })).await;
        Self { gateway, runtime, session, task, claim }
    }

    /// Actions with these numbers, as fast as they can be sent.
    pub async fn act(&mut self, numbers: std::ops::RangeInclusive<u64>) {
        let mut last = 0;
        for n in numbers {
            last = self.runtime.send_event(&self.session, "action", json!({ "name": "click_element", "n": n })).await;
        }
        self.runtime.accepted(&self.session, last).await;
    }

    pub async fn complete(&mut self) {
        let usage = json!({ "inputTokens": 1, "outputTokens": 2, "computeTime": 3.5, "cost": 0.5 });
        let data = json!({ "message": "It is bought", "usage": usage });
        self.runtime.publish(&self.session, "task_completed", data).await;
    }

    /// What every client is to be shown between joining and the end, in this order.
    pub async fn play(&mut self, mut program: Program) -> Value {
        program.says("connected").await;
        // Beside the upgrade, where there is one.
        self.act(1..=30).await;
        self.runtime.publish(&self.session, "agent", json!({ "content": "Which lamp? ↦ 💡" })).await;
        self.runtime.publish(&self.session, "response_update", json!({ "message": "Browsing …" })).await;
        self.runtime.ask(&self.session, "g", json!({ "value": "Which colour?" })).await;
        assert_eq!(program.says("asked").await["value"], "Which colour?");
        let outcome = self.runtime.outcome().await;
        assert_eq!((outcome.guardrail_id.as_str(), outcome.text.as_deref()), ("g", Some(SECRET_ANSWER)));
        self.runtime.publish(&self.session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
        self.act(31..=40).await;
        self.complete().await;
        program.ends().await
    }

    /// What [`Self::play`] must have looked like.
    pub fn was_heard_in_full(&self, end: &Value) {
        let heard: Vec<&Value> = end["heard"].as_array().unwrap().iter().collect();
        let kinds: Vec<&str> = heard.iter().map(|said| said["type"].as_str().unwrap()).collect();
        let mut expected = vec!["action"; 30];
        expected.extend(["agent", "response_update", "guardrail_trigger"]);
        expected.extend(["action"; 10]);
        expected.push("task_completed");
        assert_eq!(kinds, expected);
        let numbers: Vec<u64> = heard.iter().filter_map(|said| said["data"]["n"].as_u64()).collect();
        assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
        for said in &heard {
            assert_eq!((&said["sessionId"], &said["taskId"]), (&json!(self.session), &json!(self.task)), "{said}");
        }
        assert_eq!(heard[0]["data"]["name"], "click_element");
        assert_eq!(heard[30]["content"], "Which lamp? ↦ 💡");
        assert_eq!(heard[31]["data"]["message"], "Browsing …");
        assert_eq!(heard[32]["data"]["type"], "human_input_needed");
        assert_eq!(heard[32]["guardrailId"], "g");
        let result = heard[43];
        assert_eq!((&result["data"]["message"], &result["usage"]["cost"]), (&json!("It is bought"), &json!(0.5)));
        let ended = json!({ "type": "end_session", "reason": "terminateOnCompletion", "message": "Session ended" });
        for (name, value) in ended.as_object().unwrap() {
            assert_eq!(end["ended"][name], *value, "{end}");
        }
    }
}

async fn follow(client: Client) {
    let mut scene = Scene::begin(ordinary()).await;
    let program = client.program("socket/follow.mjs", &scene.session).against(&scene.gateway.url);
    let end = scene.play(program).await;
    scene.was_heard_in_full(&end);
    assert_eq!(end["transport"], client.transport());
    scene.gateway.stop().await;
}

every_client!(follow);

/// A session that does not exist.
async fn refused(client: Client) {
    let gateway = TestGateway::with(ordinary()).await;
    let end = client.program("socket/refused.mjs", "").against(&gateway.url).ends().await;
    let message = end["message"].as_str().unwrap();
    assert!(message.contains("ession"), "it says what is wrong: {message}");
    assert!(!end.to_string().contains("a1b2c3d4e5f6"), "a session's id is never in an error: {end}");
    // The library gives a refused client up by itself; its first version does not say so.
    if client.package != "socket.io-client-4.0" {
        assert_eq!(end["active"], false, "{end}");
    }
    gateway.stop().await;
}

every_client!(refused);

/// Plays a lost transport: `before` actions that the client gets, five that it misses, five after it is back.
async fn lose_the_transport(client: Client, how: &str, before: u64) -> (Value, Value) {
    let mut scene = Scene::begin(ordinary()).await;
    let proxy = Proxy::to(&scene.gateway.url).await;
    let mut program = client.program("socket/resume.mjs", &scene.session).with("HOW", how).against(&proxy.url);
    assert_eq!(program.says("connected").await["transport"], client.transport());
    if before > 0 {
        scene.act(1..=before).await;
        while program.says("action").await["n"] != before {}
    }
    proxy.cut();
    program.says("disconnected").await;
    scene.act(before + 1..=before + 5).await;
    proxy.restore();
    let back = program.says("connected").await;
    scene.act(before + 6..=before + 10).await;
    scene.complete().await;
    let end = program.ends().await;
    scene.gateway.stop().await;
    (back, end)
}

fn each_once(end: &Value, numbers: std::ops::RangeInclusive<u64>) {
    let got: Vec<u64> = end["numbers"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(got, numbers.collect::<Vec<_>>());
}

/// Clients since 4.6 send `pid` and `offset` by themselves.
async fn resume(client: Client) {
    let (back, end) = lose_the_transport(client, "built_in", 5).await;
    assert_eq!(back["recovered"], true, "{back}");
    assert_eq!(end["sameId"], true);
    each_once(&end, 1..=15);
}

every_client!(resume: v4_6 "socket.io-client-4.6", newest "socket.io-client");

/// A client that has seen no event has no offset: it goes on where it joined.
async fn resume_before_the_first_event(client: Client) {
    let (back, end) = lose_the_transport(client, "built_in", 0).await;
    assert_eq!(back["recovered"], true, "{back}");
    each_once(&end, 1..=10);
}

every_client!(resume_before_the_first_event: v4_6 "socket.io-client-4.6", newest "socket.io-client");

/// The gateway itself is stopped, and started again over the same data.
async fn resume_after_a_restart(client: Client) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ordinary();
    (config.data.ephemeral, config.data.dir) = (false, Some(folder.path().to_owned()));
    let mut scene = Scene::begin(config.clone()).await;
    config.listen.address = scene.gateway.url.trim_start_matches("http://").parse().unwrap();
    let start = client.program("socket/resume.mjs", &scene.session).with("HOW", "built_in");
    let mut program = start.against(&scene.gateway.url);
    program.says("connected").await;
    scene.act(1..=5).await;
    while program.says("action").await["n"] != 5 {}

    scene.gateway.stop().await;
    let disconnected = program.says("disconnected").await;
    assert_ne!(disconnected["reason"], "io server disconnect", "after that it would not come back");
    scene.gateway = TestGateway::with(config).await;
    scene.runtime = scene.gateway.runtime().await;
    scene.runtime.reclaim(&scene.session, &scene.claim, 1).await;
    scene.act(6..=10).await;
    let back = program.says("connected").await;
    assert_eq!(back["recovered"], true, "{back}");
    scene.act(11..=15).await;
    scene.complete().await;
    each_once(&program.ends().await, 1..=15);
    scene.gateway.stop().await;
}

every_client!(resume_after_a_restart: newest "socket.io-client");

/// Every version can give the last offset that it saw in `auth`.
async fn resume_by_hand(client: Client) {
    let (_, end) = lose_the_transport(client, "by_hand", 5).await;
    each_once(&end, 1..=15);
}

every_client!(resume_by_hand);

/// A client from before recovery that does nothing about it: what comes after its return comes once, and in order.
async fn join_anew(client: Client) {
    let (back, end) = lose_the_transport(client, "anew", 5).await;
    assert_ne!(back["recovered"], true, "{back}");
    let got: Vec<u64> = end["numbers"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert_eq!(got, [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
}

every_client!(join_anew: v4_0 "socket.io-client-4.0", v4_5 "socket.io-client-4.5");

async fn pictures(client: Client) {
    let bytes: Vec<u8> = (0..20_000_u32).map(|n| (n * 7 % 256) as u8).collect();
    let mut scene = Scene::begin(ordinary()).await;
    let asked = client.program("socket/pictures.mjs", &scene.session).with("PICTURES", "1");
    let mut asks = asked.against(&scene.gateway.url);
    let mut plain = client.program("socket/pictures.mjs", &scene.session).against(&scene.gateway.url);
    asks.says("connected").await;
    plain.says("connected").await;
    scene.runtime.publish_picture(&scene.session, &bytes).await;
    // Events do not wait for pictures.
    asks.says("picture").await;
    scene.complete().await;
    let got = asks.ends().await;
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let pictures = got["pictures"].as_array().unwrap();
    let events: Vec<_> = pictures.iter().map(|picture| &picture["event"]).collect();
    assert_eq!(events, ["screenshot"]);
    assert!(pictures[0]["binary"] == BASE64_STANDARD.encode(&bytes), "the picture is whole");
    assert_eq!(plain.ends().await["pictures"], json!([]));
    scene.gateway.stop().await;
}

every_client!(pictures);

const NEWEST: Client = Client { package: "socket.io-client", mode: "websocket" };

#[tokio::test]
async fn who_joins_gets_an_open_guardrail_at_once() {
    let mut scene = Scene::begin(ordinary()).await;
    scene.runtime.ask(&scene.session, "g", json!({ "value": "Which colour?" })).await;
    let mut program = NEWEST.program("socket/join.mjs", &scene.session).against(&scene.gateway.url);
    let heard = program.says("heard").await;
    assert_eq!((&heard["event"], &heard["data"]["data"]["value"]), (&json!("message"), &json!("Which colour?")));
    program.go_on().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_lost_and_a_found_runtime_are_told() {
    let mut scene = Scene::begin(ordinary()).await;
    let mut program = NEWEST.program("socket/join.mjs", &scene.session).against(&scene.gateway.url);
    program.says("connected").await;
    drop(scene.runtime);
    let heard = program.says("heard").await;
    assert_eq!(heard["event"], "instance:disconnected");
    assert_eq!(heard["data"]["type"], "instance:disconnected");
    assert_eq!(heard["data"]["gracePeriod"], 300_000);
    scene.runtime = scene.gateway.runtime().await;
    scene.gateway.stop().await;
}

async fn a_client_stays_away_after_the_end(client: Client) {
    let mut scene = Scene::begin(ordinary()).await;
    let mut program = client.program("socket/join.mjs", &scene.session).against(&scene.gateway.url);
    program.says("connected").await;
    scene.complete().await;
    let words = [program.next("the result").await, program.next("the end").await, program.next("the leave").await];
    assert_eq!(words[0]["data"]["type"], "task_completed");
    assert_eq!(words[1]["event"], "end_session");
    // What its library calls a disconnect by the server: it does not come back, only to be refused.
    assert_eq!(words[2], json!({ "at": "disconnected", "reason": "io server disconnect" }));
    scene.gateway.stop().await;
}

every_client!(a_client_stays_away_after_the_end: newest "socket.io-client");

#[tokio::test]
async fn a_session_that_has_ended_refuses_who_comes_too_late() {
    let scene = Scene::begin(ordinary()).await;
    let ended = scene.gateway.http.delete(format!("{}/v1/sessions/{}", scene.gateway.url, scene.session));
    scene.gateway.request(ended).await;
    let mut program = NEWEST.program("socket/join.mjs", &scene.session).against(&scene.gateway.url);
    let refused = program.next("the refusal").await;
    assert_eq!(refused["at"], "connect_error", "{refused}");
    assert!(refused["message"].as_str().is_some_and(|message| message.contains("ended")), "{refused}");
    scene.gateway.stop().await;
}
