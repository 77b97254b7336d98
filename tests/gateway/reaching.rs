//! Who is told, when, and when nobody is: the seven rules over real sockets and a real webhook.

use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use onlooker::config::{Config, key::Scope};
use onlooker_protocol::{
    runtime::OpenSession,
    subscriber::{Role, Subscribe},
    view::ReachOutMode,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::sleep,
};

use crate::harness::*;

const LONG: Duration = Duration::from_secs(60);
/// Sentences of the reasons, in part.
const COVERED: &str = "has demonstrably got the question";
const GRACE: &str = "may be back in seconds";
const HELD: &str = "has claimed the guardrail";

fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A gateway with a webhook, and a session of a runtime's own.
struct Scene {
    gateway: TestGateway,
    receiver: Receiver,
    runtime: Runtime,
    session: String,
}

impl Scene {
    async fn begin(config: Config) -> Self {
        Self::of_mode(config, ReachOutMode::GuardrailOnly).await
    }

    async fn of_mode(config: Config, mode: ReachOutMode) -> Self {
        let receiver = Receiver::start().await;
        let gateway = TestGateway::with(with_webhook(config, &receiver)).await;
        let mut runtime = gateway.runtime().await;
        let (session, _) = runtime.open(OpenSession { reach_out_mode: mode, ..Default::default() }).await;
        Self { gateway, receiver, runtime, session }
    }

    /// Somebody who looks, answers pings, and is live.
    async fn watcher(&self) -> Kept {
        let mut subscriber = self.gateway.subscriber().await;
        subscriber.watch(&self.session).await;
        subscriber.live().await;
        subscriber.keep()
    }

    /// Somebody who looks but whose code answers no ping.
    async fn silent_watcher(&self) -> Subscriber {
        let mut subscriber = self.gateway.subscriber().await;
        subscriber.silent = true;
        subscriber.watch(&self.session).await;
        subscriber.live().await;
        subscriber
    }

    async fn ask(&mut self, id: &str) {
        self.runtime.ask(&self.session, id, json!({})).await;
    }

    async fn wait_why(&self, id: &str, part: &str) {
        self.gateway.wait_why(&self.session, id, part).await;
    }

    async fn command(&self, body: Value) -> Value {
        let (status, answer) = self.gateway.post(&format!("/v1/sessions/{}/commands", self.session), body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn opened(&self) -> usize {
        self.receiver.of("guardrail.opened").len()
    }
}

#[tokio::test]
async fn with_nobody_looking_it_is_sent_at_once_and_only_once() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    scene.ask("g").await;
    let got = scene.receiver.wait_for("guardrail.opened", 1).await;
    assert_eq!(got[0].body["session"], scene.session.as_str());
    assert_eq!(got[0].body["why"], "nobody who may answer is looking");
    // The runtime repeats its trigger, as it does after a reconnect: no second message.
    scene.ask("g").await;
    scene.ask("h").await;
    scene.receiver.wait_for("guardrail.opened", 2).await;
    let asked: Vec<Value> =
        scene.receiver.of("guardrail.opened").iter().map(|got| got.body["guardrail"]["guardrailId"].clone()).collect();
    assert_eq!(asked, ["g", "h"]);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn while_it_is_covered_nobody_is_told_and_when_the_watcher_vanishes_somebody_is_after_the_grace() {
    let mut scene = Scene::begin(calm(milliseconds(300), milliseconds(300))).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    // Longer than the first look and the grace together: only the cover holds it back.
    sleep(milliseconds(900)).await;
    assert_eq!(scene.opened(), 0);
    let left = Instant::now();
    watcher.back().await.vanish();
    scene.receiver.wait_for("guardrail.opened", 1).await;
    assert!(left.elapsed() >= milliseconds(300), "not before the grace was over");
    let why = scene.gateway.why(&scene.session, "g").await;
    let rules: Vec<u64> = why["decisions"].as_array().unwrap().iter().map(|d| d["rule"].as_u64().unwrap()).collect();
    let order: Vec<u64> = rules.into_iter().filter(|rule| *rule >= 4 && *rule != 6).collect();
    assert_eq!(order, [4, 5, 7], "{why}");
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_page_refresh_sends_nothing() {
    let grace = Duration::from_secs(2);
    let mut scene = Scene::begin(calm(grace, grace)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let left = Instant::now();
    watcher.back().await.close(1001).await;
    let again = scene.watcher().await;
    scene.wait_why("g", COVERED).await;
    sleep((left + grace + milliseconds(500)).saturating_duration_since(Instant::now())).await;
    assert_eq!(scene.opened(), 0);
    drop(again);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_clean_close_leaves_no_grace() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    watcher.back().await.close(1000).await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn unsubscribing_leaves_no_grace() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let mut subscriber = watcher.back().await;
    subscriber.send_text(json!({ "type": "unsubscribe", "session": scene.session }).to_string()).await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_watcher_that_comes_and_goes_without_proving_does_not_starve_the_notice() {
    let mut scene = Scene::begin(calm(milliseconds(250), milliseconds(500))).await;
    let first = scene.silent_watcher().await;
    scene.ask("g").await;
    let raised = Instant::now();
    let mut current = first;
    while scene.opened() == 0 {
        assert!(raised.elapsed() < Duration::from_secs(10), "the notice starves");
        sleep(milliseconds(200)).await;
        current.vanish();
        current = scene.silent_watcher().await;
    }
    assert!(raised.elapsed() >= milliseconds(250));
    scene.gateway.stop().await;
}

#[tokio::test]
async fn another_watcher_that_leaves_within_the_grace_neither_ends_nor_prolongs_it() {
    let grace = Duration::from_secs(1);
    let mut scene = Scene::begin(calm(grace, milliseconds(100))).await;
    let proved = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let left = Instant::now();
    proved.back().await.vanish();
    scene.wait_why("g", GRACE).await;
    scene.silent_watcher().await.close(1000).await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    assert!(left.elapsed() >= grace);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_grace_from_before_the_raising_is_not_ended_by_a_passer_by() {
    let grace = Duration::from_secs(2);
    let mut scene = Scene::begin(calm(grace, milliseconds(100))).await;
    let before = scene.silent_watcher().await;
    let left = Instant::now();
    before.vanish();
    wait_until("it has left", || async {
        scene.gateway.get(&format!("/v1/sessions/{}/watchers", scene.session)).await.1["counts"]["watching"] == 0
    })
    .await;
    scene.ask("g").await;
    scene.wait_why("g", "left just before it was asked").await;
    scene.silent_watcher().await.vanish();
    scene.receiver.wait_for("guardrail.opened", 1).await;
    assert!(left.elapsed() >= grace);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_poller_covers_for_its_window_and_leaves_no_grace() {
    let mut config = calm(LONG, LONG);
    config.times.poll_window = Duration::from_secs(2);
    let mut scene = Scene::begin(config).await;
    let events = format!("/v1/sessions/{}/events?since=start", scene.session);
    scene.gateway.get(&events).await;
    scene.ask("g").await;
    scene.gateway.get(&events).await;
    scene.wait_why("g", COVERED).await;
    assert_eq!(scene.opened(), 0);
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

/// Guards `Guard::Recheck`: fails under `ONLOOKER_SABOTAGE=recheck`.
#[tokio::test]
async fn a_watcher_that_comes_between_decision_and_sending_holds_the_notice_back() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    scene.receiver.script([Reaction::Later(2)]);
    scene.ask("g").await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    let refused = Instant::now();
    let watcher = scene.watcher().await;
    wait_until("the watcher has proved the question", || async {
        let (_, guardrail) = scene.gateway.get(&format!("/v1/guardrails/g?session={}", scene.session)).await;
        let (_, list) = scene.gateway.get(&format!("/v1/sessions/{}/watchers", scene.session)).await;
        list["watchers"].as_array().unwrap().iter().any(|w| offset(&w["proved"]) >= offset(&guardrail["guardrail"]["position"]))
    })
    .await;
    assert!(refused.elapsed() < Duration::from_secs(2), "too slow a machine for this test");
    // The next try is due 2 s to 3 s after the refusal.
    sleep((refused + milliseconds(3_500)).saturating_duration_since(Instant::now())).await;
    assert_eq!(scene.opened(), 1, "it was held back");
    watcher.back().await.close(1000).await;
    scene.receiver.wait_for("guardrail.opened", 2).await;
    scene.gateway.stop().await;
}

fn offset(position: &Value) -> Option<u64> {
    position.as_str()?.split_once(':')?.1.parse().ok()
}

#[tokio::test]
async fn a_claim_holds_it_back_and_its_release_lets_it_go() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let body = json!({ "session": scene.session, "revision": 1 });
    assert_eq!(scene.gateway.post("/v1/guardrails/g/claim", body.clone()).await.0, 200);
    watcher.back().await.close(1000).await;
    scene.wait_why("g", HELD).await;
    assert_eq!(scene.opened(), 0);
    assert_eq!(scene.gateway.metric("onlooker_guardrails_unreached").await, 0.0);
    let (status, released) = scene.gateway.post("/v1/guardrails/g/release", body).await;
    assert_eq!(status, 200, "{released}");
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_claim_that_runs_out_lets_it_go() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let body = json!({ "session": scene.session, "revision": 1, "for": 1_500 });
    let claimed = Instant::now();
    assert_eq!(scene.gateway.post("/v1/guardrails/g/claim", body).await.0, 200);
    watcher.back().await.close(1000).await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    assert!(claimed.elapsed() >= milliseconds(1_500));
    scene.gateway.stop().await;
}

#[tokio::test]
async fn control_holds_it_back_and_its_release_lets_it_go() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let token = scene.command(json!({ "command": "take_control" })).await["token"].clone();
    scene.ask("g").await;
    scene.wait_why("g", HELD).await;
    assert_eq!(scene.opened(), 0);
    scene.command(json!({ "command": "release_control", "token": token })).await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn the_mode_says_what_is_sent() {
    let table = [
        (ReachOutMode::Off, vec![]),
        (ReachOutMode::GuardrailOnly, vec!["guardrail.opened"]),
        (ReachOutMode::Full, vec!["guardrail.opened", "task.completed"]),
    ];
    for (mode, expected) in table {
        let mut scene = Scene::of_mode(calm(LONG, LONG), mode).await;
        scene.runtime.publish(&scene.session, "task_started", json!({ "taskId": "t" })).await;
        scene.ask("g").await;
        if mode == ReachOutMode::Off {
            scene.wait_why("g", "reachOutMode is off").await;
            assert_eq!(scene.gateway.metric("onlooker_guardrails_unreached").await, 0.0);
        } else {
            scene.receiver.wait_for("guardrail.opened", 1).await;
        }
        scene.runtime.publish(&scene.session, "task_completed", json!({ "message": "done" })).await;
        // A session of mode `full` after it: what this one has to send has been sent when that one's has.
        if mode == ReachOutMode::Full {
            scene.receiver.wait_for("task.completed", 1).await;
        } else {
            let full = OpenSession { reach_out_mode: ReachOutMode::Full, ..Default::default() };
            let (other, _) = scene.runtime.open(full).await;
            scene.runtime.ask(&other, "later", json!({})).await;
            let came = || async { scene.receiver.got().iter().any(|got| got.body["session"] == other.as_str()) };
            wait_until("the other session's notice came", came).await;
        }
        let got = scene.receiver.got();
        let sent: Vec<&str> = got
            .iter()
            .filter(|got| got.body["session"] == scene.session.as_str())
            .map(Delivered::kind)
            .filter(|kind| matches!(*kind, "guardrail.opened" | "task.completed"))
            .collect();
        assert_eq!(sent, expected, "{mode:?}");
        scene.gateway.stop().await;
    }
}

/// Keys for a runtime, a person who may answer, and one who may only look.
fn with_a_reader(config: Config) -> Config {
    with_keys(
        config,
        &[
            ("runtime", &[Scope::Publish]),
            ("reader", &[Scope::Watch]),
            ("owner", &[Scope::Watch, Scope::Answer, Scope::Control]),
        ],
    )
}

async fn keyed(config: Config, mode: ReachOutMode) -> Scene {
    let receiver = Receiver::start().await;
    let gateway = TestGateway::with(with_webhook_and_keys(config, &receiver)).await;
    let mut runtime = Runtime::connect(&gateway, "runtime", 10, Some("key-runtime")).await;
    let (session, _) = runtime.open(OpenSession { reach_out_mode: mode, ..Default::default() }).await;
    Scene { gateway, receiver, runtime, session }
}

fn with_webhook_and_keys(config: Config, receiver: &Receiver) -> Config {
    with_a_reader(with_webhook(config, receiver))
}

async fn reader(scene: &Scene) -> Kept {
    let mut reader = Subscriber::connect(&scene.gateway, Some("key-reader")).await;
    reader.watch(&scene.session).await;
    reader.live().await;
    reader.keep()
}

#[tokio::test]
async fn a_read_only_watcher_does_not_silence_the_owners_phone() {
    let mut scene = keyed(calm(LONG, LONG), ReachOutMode::GuardrailOnly).await;
    let reader = reader(&scene).await;
    scene.ask("g").await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    drop(reader);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_result_that_anybody_proved_is_settled_for_good() {
    let mut scene = keyed(calm(milliseconds(200), Duration::from_secs(5)), ReachOutMode::Full).await;
    let reader = reader(&scene).await;
    let (session, runtime) = (&scene.session, &mut scene.runtime);
    runtime.publish(session, "task_started", json!({ "taskId": "seen" })).await;
    let ended = runtime.publish(session, "task_completed", json!({ "message": "seen" })).await;
    let request = || scene.gateway.http.get(format!("{}/v1/sessions/{session}/watchers", scene.gateway.url));
    wait_until("the result is proved", || async {
        let (_, list) = scene.gateway.request(request().bearer_auth("key-reader")).await;
        list["watchers"].as_array().unwrap().iter().any(|w| offset(&w["proved"]) >= Some(ended.offset))
    })
    .await;
    reader.back().await.close(1000).await;
    runtime.publish(session, "task_started", json!({ "taskId": "unseen" })).await;
    runtime.publish(session, "error", json!({ "error": "no way", "code": "X" })).await;
    let failed = scene.receiver.wait_for("task.failed", 1).await;
    assert_eq!(failed[0].body["task"], "unseen");
    assert_eq!(failed[0].body["result"]["error"], "no way");
    assert_eq!(scene.receiver.of("task.completed").len(), 0);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn the_end_of_a_task_that_a_client_stopped_is_no_news() {
    let mut scene = Scene::of_mode(calm(LONG, LONG), ReachOutMode::Full).await;
    scene.runtime.publish(&scene.session, "task_started", json!({ "taskId": "stopped" })).await;
    scene.command(json!({ "command": "stop" })).await;
    // Its runtime says so as well, a moment later.
    scene.runtime.publish(&scene.session, "error", json!({ "error": "stopped", "code": "STOPPED" })).await;
    scene.runtime.publish(&scene.session, "task_started", json!({ "taskId": "next" })).await;
    scene.runtime.publish(&scene.session, "task_completed", json!({ "message": "done" })).await;
    let completed = scene.receiver.wait_for("task.completed", 1).await;
    assert_eq!(completed[0].body["task"], "next");
    assert_eq!(scene.receiver.of("task.failed").len(), 0);
    scene.gateway.stop().await;
}

/// As Standard Webhooks has it: HMAC-SHA256 over `id.timestamp.body`.
fn assert_signed(delivered: &Delivered) {
    let text = |name: &str| delivered.headers[name].to_str().unwrap();
    let key = BASE64_STANDARD.decode(SECRET.strip_prefix("whsec_").unwrap()).unwrap();
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap();
    mac.update(format!("{}.{}.", text("webhook-id"), text("webhook-timestamp")).as_bytes());
    mac.update(&delivered.raw);
    let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
    assert!(text("webhook-signature").split(' ').any(|signature| signature == expected));
    let at: i64 = text("webhook-timestamp").parse().unwrap();
    assert!((time::OffsetDateTime::now_utc().unix_timestamp() - at).abs() < 60);
    assert_eq!(delivered.body["id"], delivered.id());
}

#[tokio::test]
async fn a_webhook_that_fails_is_tried_again_under_the_same_id_until_it_confirms_once() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    scene.receiver.script([Reaction::Status(500), Reaction::Status(404)]);
    scene.ask("g").await;
    let got = scene.receiver.wait_for("guardrail.opened", 3).await;
    for delivered in &got {
        assert_signed(delivered);
        assert_eq!(delivered.id(), got[0].id());
        assert_eq!(delivered.raw, got[0].raw, "the same message");
    }
    wait_until("the notice is confirmed", || async {
        scene.gateway.why(&scene.session, "g").await["notices"][0]["state"] == "confirmed"
    })
    .await;
    let notices = scene.gateway.why(&scene.session, "g").await["notices"].clone();
    assert_eq!((notices[0]["attempts"].clone(), notices[0]["repetition"].clone()), (json!(3), json!(0)));
    assert_eq!(notices.as_array().unwrap().len(), 1);
    scene.ask("h").await;
    let got = scene.receiver.wait_for("guardrail.opened", 4).await;
    assert_ne!(got[3].id(), got[0].id());
    scene.gateway.stop().await;
}

/// A receiver that takes the first request and breaks the connection; it answers the later ones.
async fn breaking_receiver() -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, requests) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut request = Vec::new();
            while !is_whole(&request) {
                let mut piece = [0; 4096];
                match stream.read(&mut piece).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => request.extend_from_slice(&piece[..read]),
                }
            }
            if number > 0 {
                let answer = "HTTP/1.1 204 No Content\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            if sender.send(String::from_utf8_lossy(&request).to_lowercase()).await.is_err() {
                return;
            }
        }
    });
    (url, requests)
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

fn header<'r>(request: &'r str, name: &str) -> Option<&'r str> {
    request.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn an_unknown_outcome_is_repeated_once_and_marked() {
    let (url, mut requests) = breaking_receiver().await;
    let mut config = calm(LONG, LONG);
    config.reach_out = from_toml(&format!("notify_webhook = \"{url}\"\n")).reach_out;
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    let first = requests.recv().await.unwrap();
    let second = tokio::time::timeout(BOUND, requests.recv()).await.expect("it is repeated").unwrap();
    assert_eq!(header(&first, "webhook-id"), header(&second, "webhook-id"));
    wait_until("the repeat is confirmed", || async {
        gateway.why(&session, "g").await["notices"][0]["state"] == "confirmed"
    })
    .await;
    let why = gateway.why(&session, "g").await;
    assert_eq!(why["notices"][0]["repetition"], 1, "{why}");
    assert_eq!(why["unreached"], false);
    gateway.stop().await;
}

#[tokio::test]
async fn without_a_target_it_is_counted_and_said_until_it_is_answered() {
    let gateway = TestGateway::with(calm(LONG, LONG)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    gateway.wait_why(&session, "g", "no_target").await;
    assert_eq!(gateway.why(&session, "g").await["unreached"], true);
    assert_eq!(gateway.metric("onlooker_guardrails_unreached").await, 1.0);
    let age = gateway.metric("onlooker_oldest_unreached_seconds").await;
    wait_until("it grows", || async { gateway.metric("onlooker_oldest_unreached_seconds").await > age }).await;
    let body = json!({ "session": session, "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(gateway.post("/v1/guardrails/g/answer", body).await.0, 200);
    assert_eq!(gateway.metric("onlooker_guardrails_unreached").await, 0.0);
    assert_eq!(gateway.metric("onlooker_oldest_unreached_seconds").await, 0.0);
    gateway.stop().await;
}

#[tokio::test]
async fn a_higher_revision_is_a_new_question_and_the_old_message_is_updated() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    scene.ask("g").await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.runtime.ask(&scene.session, "g", json!({ "revision": 2, "value": "Really?" })).await;
    let opened = scene.receiver.wait_for("guardrail.opened", 2).await;
    let updated = scene.receiver.wait_for("guardrail.updated", 1).await;
    assert_ne!(opened[0].id(), opened[1].id());
    assert_eq!((&opened[1].body["guardrail"]["revision"], &opened[1].body["guardrail"]["value"]), (&json!(2), &json!("Really?")));
    assert_eq!(updated[0].body["guardrail"]["revision"], 1);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn the_record_of_why_is_readable() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let watcher = scene.watcher().await;
    scene.ask("g").await;
    scene.wait_why("g", COVERED).await;
    let why = scene.gateway.why(&scene.session, "g").await;
    assert_eq!((&why["session"], &why["guardrailId"], &why["state"]), (&json!(scene.session), &json!("g"), &json!("open")));
    let last = why["decisions"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["decision"], &last["rule"]), (&json!("look_again"), &json!(4)));
    assert!(last["againInMs"].as_u64().is_some_and(|again| again <= 20_000), "{last}");
    assert_eq!(why["watchers"][0]["counts"], true);
    assert_eq!(why["watchers"][0]["why"], "its code answers, and it says that somebody is looking");
    assert_eq!(why["notices"], json!([]));
    drop(watcher);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn an_observer_does_not_cover() {
    let mut scene = Scene::begin(calm(LONG, LONG)).await;
    let mut observer = scene.gateway.subscriber().await;
    let subscribe = Subscribe {
        session: Some(scene.session.clone()),
        role: Role::Observer,
        attention: onlooker_protocol::subscriber::Attention::Active,
        ..follow()
    };
    observer.subscribe(subscribe).await;
    observer.live().await;
    let observer = observer.keep();
    scene.ask("g").await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    drop(observer);
    scene.gateway.stop().await;
}
