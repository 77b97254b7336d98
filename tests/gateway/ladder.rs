//! When nobody answers: the steps after the first notice, and what stops them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use onlooker::{
    config::Config,
    engine::{Bounds, Engine, memory::MemoryEngine},
    reach_out::ladder::Step,
};
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::harness::*;

const LONG: Duration = Duration::from_secs(60);
const COVERED: &str = "has demonstrably got the question";

fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn step(after: u64, repeat: u32) -> Step {
    Step { after: milliseconds(after), targets: vec!["webhook".to_owned()], repeat, project: None }
}

struct Scene {
    gateway: TestGateway,
    receiver: Receiver,
    runtime: Runtime,
    session: String,
}

impl Scene {
    async fn begin(steps: Vec<Step>) -> Self {
        let receiver = Receiver::start().await;
        let gateway = TestGateway::with(config(steps, &receiver)).await;
        let mut runtime = gateway.runtime().await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        Self { gateway, receiver, runtime, session }
    }

    async fn ask(&mut self) {
        self.runtime.ask(&self.session, "g", json!({})).await;
    }

    async fn watcher(&self) -> Kept {
        let mut subscriber = self.gateway.subscriber().await;
        subscriber.watch(&self.session).await;
        subscriber.live().await;
        subscriber.keep()
    }

    async fn claim(&self, milliseconds: u64) {
        let body = json!({ "session": self.session, "revision": 1, "for": milliseconds });
        let (status, claimed) = self.gateway.post("/v1/guardrails/g/claim", body).await;
        assert_eq!(status, 200, "{claimed}");
    }

    /// The steps of what was sent, in order; the first notice has none.
    fn steps(&self) -> Vec<Value> {
        steps(&self.receiver)
    }
}

fn steps(receiver: &Receiver) -> Vec<Value> {
    receiver.of("guardrail.opened").iter().map(|got| got.body["step"].clone()).collect()
}

fn config(steps: Vec<Step>, receiver: &Receiver) -> Config {
    let mut config = with_webhook(calm(LONG, LONG), receiver);
    config.reach_out.ladder = steps;
    config
}

#[tokio::test]
async fn while_nobody_answers_each_step_follows_the_one_below_and_the_last_is_the_end() {
    let mut scene = Scene::begin(vec![step(300, 1), step(500, 0)]).await;
    scene.ask().await;
    let began = Instant::now();
    let got = scene.receiver.wait_for("guardrail.opened", 4).await;
    assert!(began.elapsed() >= milliseconds(1_000), "{:?}", began.elapsed());
    assert_eq!(scene.steps(), [json!(null), json!(1), json!(1), json!(2)]);
    let ids: std::collections::BTreeSet<_> = got.iter().map(|got| got.id().to_owned()).collect();
    assert_eq!(ids.len(), 4, "each is a notice of its own");
    sleep(milliseconds(800)).await;
    assert_eq!(scene.steps().len(), 4, "above the last step there is none");
    let why = scene.gateway.why(&scene.session, "g").await;
    let steps: Vec<&Value> = why["notices"].as_array().unwrap().iter().map(|notice| &notice["step"]).collect();
    assert_eq!(steps, [&json!(null), &json!(1), &json!(1), &json!(2)], "{why}");
    scene.gateway.stop().await;
}

#[tokio::test]
async fn without_steps_the_first_notice_is_the_only_one() {
    let mut scene = Scene::begin(Vec::new()).await;
    scene.ask().await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.wait_why(&scene.session, "g", "exists already").await;
    assert_eq!(scene.steps(), [json!(null)]);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_claim_stops_the_climb_and_when_it_has_run_out_unanswered_one_step_follows_and_not_all() {
    let mut scene = Scene::begin(vec![step(1_000, 3)]).await;
    scene.ask().await;
    scene.receiver.wait_for("guardrail.opened", 1).await;
    let claimed = Instant::now();
    scene.claim(2_500).await;
    scene.receiver.wait_for("guardrail.opened", 2).await;
    assert!(claimed.elapsed() >= milliseconds(2_500), "nobody is told while somebody has it");
    let resumed = Instant::now();
    scene.receiver.wait_for("guardrail.opened", 3).await;
    assert!(resumed.elapsed() >= milliseconds(800), "the steps that were due meanwhile do not come at once");
    scene.gateway.stop().await;
}

#[tokio::test]
async fn an_answer_ends_the_climb_and_every_card_is_told() {
    let mut scene = Scene::begin(vec![step(300, 100)]).await;
    scene.ask().await;
    scene.receiver.wait_for("guardrail.opened", 2).await;
    let (status, answered) = scene
        .gateway
        .post(
            "/v1/guardrails/g/answer",
            json!({ "session": scene.session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes" }),
        )
        .await;
    assert_eq!(status, 200, "{answered}");
    let sent = scene.steps().len();
    scene.receiver.wait_for("guardrail.resolved", sent).await;
    sleep(milliseconds(700)).await;
    assert_eq!(scene.steps().len(), sent);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn somebody_who_looks_and_does_not_answer_stops_the_first_notice_but_not_the_climb() {
    let mut scene = Scene::begin(vec![step(1_200, 0)]).await;
    let watcher = scene.watcher().await;
    scene.ask().await;
    scene.gateway.wait_why(&scene.session, "g", COVERED).await;
    let asked = Instant::now();
    scene.receiver.wait_for("guardrail.opened", 1).await;
    assert!(asked.elapsed() >= milliseconds(900), "{:?}", asked.elapsed());
    assert_eq!(scene.steps(), [json!(1)]);
    // When the one who looked has gone, whoever is told first is.
    watcher.back().await.close(1000).await;
    scene.receiver.wait_for("guardrail.opened", 2).await;
    assert_eq!(scene.steps(), [json!(1), json!(null)]);
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_restart_neither_loses_nor_repeats_a_step() {
    let receiver = Receiver::start().await;
    let bounds = Bounds { log_records: 1000, log_bytes: 1 << 20, log_age: Duration::MAX, total_bytes: 1 << 24 };
    let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(bounds));
    let mut settings = config(vec![step(600, 0), step(900, 0)], &receiver);
    settings.times.start_grace = Duration::ZERO;
    let gateway = TestGateway::on(settings.clone(), Arc::clone(&engine)).await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    runtime.ask(&session, "g", json!({})).await;
    receiver.wait_for("guardrail.opened", 2).await;
    gateway.stop().await;
    let gateway = TestGateway::on(settings, engine).await;
    receiver.wait_for("guardrail.opened", 3).await;
    assert_eq!(steps(&receiver), [json!(null), json!(1), json!(2)]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_ladder_is_read_from_the_configuration_and_mistakes_in_it_are_named() {
    let text = "notify_webhook = \"http://localhost:1/x\"\n[[ladder]]\nafter = \"2min\"\ntargets = [\"webhook\"]\nrepeat = 2\n\n\
                [[ladder]]\nafter = \"10min\"\ntargets = [\"default\", \"linked\"]\nproject = \"shop\"\n";
    let ladder = from_toml(text).reach_out.ladder;
    assert_eq!(ladder.len(), 2);
    assert_eq!((ladder[0].after, ladder[0].repeat, ladder[0].project.as_deref()), (Duration::from_secs(120), 2, None));
    assert_eq!(ladder[1].project.as_deref(), Some("shop"));
    for (wrong, names) in [
        ("[[ladder]]\nafter = \"1s\"\ntargets = [\"webhook\"]", "at least 10s"),
        ("[[ladder]]\ntargets = [\"webhook\"]", "ladder.after"),
        ("[[ladder]]\nafter = \"1min\"\ntargets = []", "ladder.targets"),
        ("[[ladder]]\nafter = \"1min\"\ntargets = [\"webhook\"]\nrepeat = 101", "ladder.repeat"),
        ("[[ladder]]\nafter = \"1min\"\ntargets = [\"webhook\"]\nafterwards = 1", "afterwards"),
        ("[ladder]\nafter = \"1min\"", "ladder"),
    ] {
        let error = load_error(wrong);
        assert!(error.contains(names), "{wrong}: {error}");
    }
}

fn load_error(text: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let sources = onlooker::config::load::Sources { file: Some(file.path().to_owned()), ..Default::default() };
    onlooker::config::load::load(&sources).unwrap_err().to_string()
}
