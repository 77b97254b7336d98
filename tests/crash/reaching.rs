//! Questions that somebody must hear of, over a gateway that is killed while it tells them, and over a wall clock that
//! jumps: nobody is missed, and nobody is asked twice without being told that it is a repeat.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::future::join_all;
use onlooker_protocol::{
    runtime::{GatewayToRuntime, OpenSession, PublishedEvent, Reclaim, RuntimeToGateway},
    subscriber::{Attention, GatewayToSubscriber, Subscribe, SubscriberToGateway},
};
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    driver::{Door, Line},
    gateway::Gateway,
    history::History,
    is_full,
    shim::{self, Fault, Plan},
    telegram::{Fake, TOKEN},
};

const BOUND: Duration = Duration::from_secs(20);
/// Longer than every window of these gateways.
const PAST_EVERYTHING: Duration = Duration::from_millis(2_500);

/// One request, as it came.
#[derive(Clone, Debug, PartialEq)]
struct Came {
    id: String,
    repeat: bool,
    guardrail: String,
    /// 0: the first notice.
    step: u64,
    confirmed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reaction {
    Confirm,
    Refuse,
    /// Takes the request and never answers.
    Hold,
}

/// A webhook's receiver.
struct Hook {
    url: String,
    came: Arc<Mutex<Vec<Came>>>,
    reaction: watch::Sender<Reaction>,
    server: JoinHandle<()>,
}

impl Hook {
    async fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (reaction, reacts) = watch::channel(Reaction::Confirm);
        let came = Arc::<Mutex<Vec<Came>>>::default();
        let keeps = Arc::clone(&came);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reaction = *reacts.borrow();
                tokio::spawn(serve(stream, reaction, Arc::clone(&keeps)));
            }
        });
        Self { url, came, reaction, server }
    }

    fn reacts(&self, reaction: Reaction) {
        self.reaction.send_replace(reaction);
    }

    fn of(&self, guardrail: &str) -> Vec<Came> {
        self.came.lock().unwrap().iter().filter(|came| came.guardrail == guardrail).cloned().collect()
    }

    async fn wait_for(&self, guardrail: &str, fits: impl Fn(&[Came]) -> bool) {
        let waiting = async {
            while !fits(&self.of(guardrail)) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(BOUND, waiting).await.is_err() {
            panic!("of {guardrail} came {:?}", self.of(guardrail));
        }
    }

    async fn confirms(&self, guardrail: &str) {
        self.wait_for(guardrail, |came| came.iter().any(|came| came.confirmed)).await;
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// One request on one connection.
async fn serve(mut stream: TcpStream, reaction: Reaction, came: Arc<Mutex<Vec<Came>>>) -> Option<()> {
    let mut bytes = Vec::new();
    let body: Value = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let head = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(body) = head.and_then(|end| serde_json::from_slice(&bytes[end + 4..]).ok()) {
            break body;
        }
    };
    let confirmed = reaction == Reaction::Confirm;
    if body["type"] == "guardrail.opened" {
        came.lock().unwrap().push(Came {
            id: body["id"].as_str().unwrap().to_owned(),
            repeat: body["repeat"] == true,
            guardrail: body["guardrail"]["guardrailId"].as_str().unwrap().to_owned(),
            step: body["step"].as_u64().unwrap_or_default(),
            confirmed,
        });
    }
    let answer = match reaction {
        Reaction::Confirm => "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        Reaction::Refuse => "HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
        Reaction::Hold => return std::future::pending().await,
    };
    stream.write_all(answer.as_bytes()).await.ok()
}

/// A gateway with a receiver, and a session whose runtime comes and goes.
struct Stage {
    gateway: Gateway,
    hook: Hook,
    http: reqwest::Client,
    session: String,
    claim: String,
    runtime: Option<Line>,
    next: u64,
}

impl Stage {
    async fn set(name: &str, settings: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let hook = Hook::listen().await;
        let settings = format!("{settings}\n[notify_webhook]\nurl = \"{}\"\n", hook.url);
        let gateway = Gateway::new(&format!("reaching-{name}"), &settings, &History::begin());
        let http = reqwest::Client::builder().timeout(BOUND).no_proxy().build().unwrap();
        Self { gateway, hook, http, session: String::new(), claim: String::new(), runtime: None, next: 1 }
    }

    fn door(&self) -> Door {
        Door { url: self.gateway.url.clone(), token: None }
    }

    /// The clock's file of this gateway.
    fn clock(&self) -> PathBuf {
        self.gateway.folder.join("clock")
    }

    async fn runtime(&self) -> Option<Line> {
        let mut line = Line::open(&self.door(), "/v1/runtime").await?;
        let (name, capacity, labels) = ("runtime".to_owned(), 10, Map::new());
        line.send(&RuntimeToGateway::Register { name, capacity, labels }).await?;
        Some(line)
    }

    /// `None`: the gateway died.
    async fn opens(&mut self) -> Option<()> {
        let mut line = self.runtime().await?;
        let session = Box::new(OpenSession::default());
        line.send(&RuntimeToGateway::Open { reference: "r".to_owned(), session }).await?;
        loop {
            if let GatewayToRuntime::Opened { session, claim, .. } = line.next().await? {
                (self.session, self.claim) = (session, claim);
                break;
            }
        }
        self.runtime = Some(line);
        Some(())
    }

    /// The runtime comes back to a gateway that was started again.
    async fn comes_back(&mut self) {
        let mut line = self.runtime().await.expect("it listens");
        let (session, claim) = (self.session.clone(), self.claim.clone());
        line.send(&RuntimeToGateway::Claim(Reclaim { session, claim, commands: 0 })).await.unwrap();
        loop {
            match line.next().await.expect("the connection stays") {
                GatewayToRuntime::Claimed { claim, expected, .. } => {
                    (self.claim, self.next) = (claim, expected);
                    break;
                }
                GatewayToRuntime::Released { refusal, .. } => panic!("{refusal}"),
                _ => {}
            }
        }
        self.runtime = Some(line);
    }

    /// Raises a question. `None`: the gateway died before it said that it has it.
    async fn asks(&mut self, id: &str, more: Value) -> Option<()> {
        let mut data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": id });
        for (name, value) in more.as_object().into_iter().flatten() {
            data[name] = value.clone();
        }
        let (n, kind) = (self.next, "guardrail_trigger".to_owned());
        let events = vec![PublishedEvent { n, kind, task: None, data, picture: None }];
        let line = self.runtime.as_mut()?;
        line.send(&RuntimeToGateway::Events { session: self.session.clone(), events }).await?;
        loop {
            match line.next().await? {
                GatewayToRuntime::Accepted { n: accepted, .. } if accepted >= n => break,
                GatewayToRuntime::EventRefused { refusal, .. } => panic!("{refusal}"),
                _ => {}
            }
        }
        self.next = n + 1;
        Some(())
    }

    async fn get(&self, path: &str) -> Value {
        let response = self.http.get(format!("{}{path}", self.gateway.url)).send().await.unwrap();
        serde_json::from_str(&response.text().await.unwrap()).unwrap()
    }

    async fn guardrail(&self, id: &str) -> Value {
        self.get(&format!("/v1/guardrails/{id}?session={}", self.session)).await["guardrail"].clone()
    }

    async fn why(&self, id: &str) -> Value {
        self.get(&format!("/v1/guardrails/{id}/why?session={}", self.session)).await
    }

    async fn wait_until(&self, what: &str, fits: impl AsyncFn() -> bool) {
        let waiting = async {
            while !fits().await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let within = timeout(BOUND, waiting).await;
        assert!(within.is_ok(), "waited in vain until {what}\n{}", self.gateway.last_words());
    }

    async fn wait_why(&self, id: &str, part: &str) {
        let says = async || {
            let why = self.why(id).await;
            let last = why["decisions"].as_array().and_then(|all| all.last()?["why"].as_str().map(str::to_owned));
            last.is_some_and(|last| last.contains(part))
        };
        self.wait_until(&format!("why says “{part}”"), says).await;
    }

    /// Somebody who looks and answers pings, until it is aborted.
    async fn watcher(&self) -> JoinHandle<()> {
        let mut line = Line::open(&self.door(), "/v1/ws").await.expect("it listens");
        let session = Some(self.session.clone());
        let subscribe = Subscribe { session, attention: Attention::Active, ..Subscribe::default() };
        line.send(&SubscriberToGateway::Subscribe(subscribe)).await.unwrap();
        tokio::spawn(async move {
            let mut renew = tokio::time::interval(Duration::from_millis(200));
            loop {
                let sent = tokio::select! {
                    frame = line.next() => match frame {
                        Some(GatewayToSubscriber::Ping { id, .. }) => line.send(&SubscriberToGateway::Pong { id }).await,
                        Some(_) => Some(()),
                        None => return,
                    },
                    _ = renew.tick() => {
                        let state = Attention::Active;
                        line.send(&SubscriberToGateway::Attention { session: None, state }).await
                    }
                };
                if sent.is_none() {
                    return;
                }
            }
        })
    }

    /// What came of a question, once everything that could follow has followed: per step one id, at most two requests
    /// that may have reached somebody, and of those the second one a repeat that says so.
    #[track_caller]
    fn check_came(&self, id: &str, steps: &[u64]) {
        let came = self.hook.of(id);
        for step in steps {
            let of_step: Vec<_> = came.iter().filter(|came| came.step == *step).collect();
            assert!(of_step.iter().any(|came| came.confirmed), "{id} step {step}: missed: {came:?}");
            assert!(of_step.iter().all(|came| came.id == of_step[0].id), "{id} step {step}: two notices: {came:?}");
            let repeats: Vec<_> = of_step.iter().map(|came| came.repeat).collect();
            assert!(repeats == [false] || repeats == [false, true] || repeats == [true], "{id} step {step}: {came:?}");
        }
        assert!(came.iter().all(|came| steps.contains(&came.step)), "{id}: {came:?}");
    }
}

// --- kill -9 ---------------------------------------------------------------------------------------------------------

/// The request is out, nobody has answered it, and the lease is in the record.
#[tokio::test]
async fn killed_while_a_notice_is_leased_it_is_repeated_once_and_says_so() {
    let mut stage = Stage::set("leased", "").await;
    stage.gateway.start().await;
    stage.opens().await.unwrap();
    stage.hook.reacts(Reaction::Hold);
    stage.asks("g", json!({})).await.unwrap();
    stage.hook.wait_for("g", |came| came.len() == 1).await;
    stage.gateway.kill().await;
    stage.hook.reacts(Reaction::Confirm);
    stage.gateway.start().await;
    stage.hook.confirms("g").await;
    sleep(PAST_EVERYTHING).await;
    let repeats: Vec<_> = stage.hook.of("g").iter().map(|came| (came.repeat, came.confirmed)).collect();
    assert_eq!(repeats, [(false, false), (true, true)]);
    stage.check_came("g", &[0]);
    assert_eq!(stage.why("g").await["notices"][0]["state"], "confirmed");
    stage.gateway.remove().await;
}

/// Refused once, it waits for its next try when the gateway dies.
#[tokio::test]
async fn killed_while_a_notice_waits_for_its_next_try_it_is_tried_again() {
    let mut stage = Stage::set("refused", "").await;
    stage.gateway.start().await;
    stage.opens().await.unwrap();
    stage.hook.reacts(Reaction::Refuse);
    stage.asks("g", json!({})).await.unwrap();
    stage.wait_until("it is refused", async || stage.why("g").await["notices"][0]["state"] == "failed").await;
    stage.gateway.kill().await;
    let refused = stage.hook.of("g").len();
    stage.hook.reacts(Reaction::Confirm);
    stage.gateway.start().await;
    stage.hook.confirms("g").await;
    sleep(PAST_EVERYTHING).await;
    let came = stage.hook.of("g");
    assert_eq!(came.len(), refused + 1, "{came:?}");
    assert!(came.iter().all(|one| one.id == came[0].id && !one.repeat), "a refusal has reached nobody: {came:?}");
    stage.gateway.remove().await;
}

/// Twice, each time before the grace after the start is over: nobody is told within it, and somebody is after it.
#[tokio::test]
async fn killed_within_the_grace_after_a_start_it_misses_nobody() {
    let mut stage = Stage::set("start-grace", "").await;
    stage.gateway.start().await;
    stage.opens().await.unwrap();
    let watcher = stage.watcher().await;
    stage.asks("g", json!({})).await.unwrap();
    stage.wait_why("g", "has demonstrably got the question").await;
    for _ in 0..2 {
        stage.gateway.kill().await;
        stage.gateway.start().await;
        assert_eq!(stage.hook.of("g"), [], "everybody has time to come back");
    }
    watcher.abort();
    stage.hook.confirms("g").await;
    sleep(PAST_EVERYTHING).await;
    stage.check_came("g", &[0]);
    assert_eq!(stage.hook.of("g").len(), 1);
    stage.gateway.remove().await;
}

/// The second message of a question, to whoever comes next on the ladder, dies as the first one does, and the first
/// one is not sent again for it.
#[tokio::test]
async fn killed_while_the_next_step_is_leased_only_that_one_is_repeated() {
    let mut stage = Stage::set("step", "[[ladder]]\nafter = \"10s\"\ntargets = [\"webhook\"]").await;
    stage.gateway.start().await;
    stage.opens().await.unwrap();
    stage.asks("g", json!({})).await.unwrap();
    stage.hook.confirms("g").await;
    stage.hook.reacts(Reaction::Hold);
    stage.hook.wait_for("g", |came| came.iter().any(|came| came.step == 1)).await;
    stage.gateway.kill().await;
    stage.hook.reacts(Reaction::Confirm);
    stage.gateway.start().await;
    stage.hook.wait_for("g", |came| came.iter().any(|came| came.step == 1 && came.confirmed)).await;
    sleep(PAST_EVERYTHING).await;
    stage.check_came("g", &[0, 1]);
    let came = stage.hook.of("g");
    assert_eq!(came.iter().filter(|came| came.step == 0).count(), 1, "{came:?}");
    assert_ne!(came[0].id, came[1].id, "another key, another notice");
    stage.gateway.remove().await;
}

/// Before each write and after each commit from the question to the confirmation: decided, queued, leased, told.
#[tokio::test]
async fn killed_at_each_write_between_a_question_and_its_confirmation_it_misses_and_doubles_nothing() {
    let mut stage = Stage::set("count", "").await;
    let points = points_of_a_question(&mut stage, 1).await;
    stage.gateway.remove().await;
    let mut died = Vec::new();
    for points in points.chunks(AT_ONCE) {
        died.extend(join_all(points.iter().map(|(fault, k)| Box::pin(dies_at(*fault, *k)))).await);
    }
    // The number of writes differs by a few from run to run; most points are reached.
    let reached = died.iter().filter(|died| **died).count();
    println!("one webhook: {reached} of {} points were reached", died.len());
    assert!(reached * 2 >= died.len());
}

/// How many runs share the machine: each waits most of its time.
const AT_ONCE: usize = 12;

/// Every write and commit from a question to the confirmation of all its notices. What a killed process has written
/// is there; so a commit is lost by dying before its write, and not before its sync.
async fn points_of_a_question(stage: &mut Stage, notices: usize) -> Vec<(Fault, u64)> {
    assert!(stage.gateway.start_with(Some(&Plan::count())).await);
    stage.opens().await.unwrap();
    let (writes, commits) = stage.gateway.counted();
    stage.asks("g", json!({})).await.unwrap();
    are_confirmed(stage, notices).await;
    let (last_write, last_commit) = stage.gateway.counted();
    let before_writes = (writes + 1..=last_write).map(|k| (Fault::KillBeforeWrite, k));
    let points = before_writes.chain((commits + 1..=last_commit).map(|k| (Fault::KillAfterSync, k)));
    // Others each time.
    let every = if is_full() { 1 } else { 4 };
    points.skip(rand::random_range(0..every)).step_by(every).collect()
}

async fn are_confirmed(stage: &Stage, count: usize) {
    let confirmed = async || {
        let why = stage.why("g").await;
        let notices = why["notices"].as_array().cloned().unwrap_or_default();
        notices.len() == count && notices.iter().all(|notice| notice["state"] == "confirmed")
    };
    stage.wait_until("all notices are confirmed", confirmed).await;
}

/// `false`: it never came to that point.
async fn dies_at(fault: Fault, k: u64) -> bool {
    let mut stage = Stage::set(&format!("{fault:?}-{k}"), "").await;
    let died = dies_around_a_question(&mut stage, fault, k).await;
    stage.hook.confirms("g").await;
    sleep(PAST_EVERYTHING).await;
    stage.check_came("g", &[0]);
    assert_eq!(stage.why("g").await["notices"][0]["state"], "confirmed", "{fault:?} {k}");
    stage.gateway.remove().await;
    died
}

/// Starts, asks, dies at that point and starts again; a question that was not taken is asked again.
async fn dies_around_a_question(stage: &mut Stage, fault: Fault, k: u64) -> bool {
    let started = stage.gateway.start_with(Some(&Plan::at(fault, k))).await;
    let opened = started && timeout(BOUND, stage.opens()).await.is_ok_and(|opened| opened.is_some());
    let asked = opened && timeout(BOUND, stage.asks("g", json!({}))).await.is_ok_and(|asked| asked.is_some());
    let died = stage.gateway.ended_within(Duration::from_secs(2)).await;
    stage.gateway.kill().await;
    stage.gateway.start().await;
    if !opened {
        stage.opens().await.unwrap();
    } else if !asked {
        stage.comes_back().await;
    }
    if !asked && stage.next == 1 {
        stage.asks("g", json!({})).await.unwrap();
    }
    died
}

/// Two people in their chats, who are both told first.
const CHATS: [i64; 2] = [11, 22];

/// A gateway that knows both, and is not running.
async fn with_two_chats(name: &str) -> (Stage, Fake) {
    let fake = Fake::start().await;
    let settings = format!("[telegram]\ntoken = \"{TOKEN}\"\napi = \"{}\"\n", fake.url);
    let mut stage = Stage::set(name, &settings).await;
    stage.gateway.start().await;
    for chat in CHATS {
        let issued = stage.http.post(format!("{}/v1/links/codes", stage.gateway.url)).json(&json!({})).send().await;
        let issued: Value = serde_json::from_str(&issued.unwrap().text().await.unwrap()).unwrap();
        let person = json!({ "id": chat, "is_bot": false, "first_name": "Ann" });
        let text = format!("/start {}", issued["code"].as_str().unwrap());
        let chat = json!({ "id": chat, "type": "private" });
        fake.happened(json!({ "message": {
            "message_id": 1, "date": 1_700_000_000, "chat": chat, "from": person, "text": text,
        }}));
    }
    let are_linked = async || stage.get("/v1/links").await["links"].as_array().is_some_and(|links| links.len() == 2);
    stage.wait_until("both are linked", are_linked).await;
    stage.gateway.kill().await;
    (stage, fake)
}

/// What each of the two was asked, in order.
fn asked(fake: &Fake) -> [Vec<String>; 2] {
    let sent = fake.calls("sendMessage");
    CHATS.map(|chat| {
        let to_it = sent.iter().filter(|call| call.parameters["chat_id"] == chat);
        let texts = to_it.map(|call| call.parameters["text"].as_str().unwrap().to_owned());
        texts.filter(|text| text.contains("May I?")).collect()
    })
}

/// Two notices are under way at once, and a kill finds each of them somewhere else.
#[tokio::test]
async fn killed_at_each_write_while_two_chats_are_told_it_misses_neither_and_asks_neither_a_third_time() {
    let (mut stage, fake) = with_two_chats("chats-count").await;
    let points = points_of_a_question(&mut stage, 2).await;
    stage.gateway.remove().await;
    assert_eq!(asked(&fake).map(|texts| texts.len()), [1, 1]);
    let mut outcomes = Vec::new();
    for points in points.chunks(AT_ONCE) {
        outcomes.extend(join_all(points.iter().map(|(fault, k)| Box::pin(dies_among_chats(*fault, *k)))).await);
    }
    let (reached, repeated) = (outcomes.iter().filter(|(died, _)| *died).count(), outcomes.iter().map(|(_, n)| n));
    println!("two chats: {reached} of {} points were reached, {} repeats", outcomes.len(), repeated.sum::<usize>());
    assert!(reached * 2 >= outcomes.len());
}

/// Whether it came to that point, and how many were asked twice.
async fn dies_among_chats(fault: Fault, k: u64) -> (bool, usize) {
    let (mut stage, fake) = with_two_chats(&format!("chats-{fault:?}-{k}")).await;
    let died = dies_around_a_question(&mut stage, fault, k).await;
    are_confirmed(&stage, 2).await;
    sleep(PAST_EVERYTHING).await;
    let asked = asked(&fake);
    for texts in &asked {
        let says_so = |text: &String| text.contains("sent again");
        let first_and_again = texts.len() == 2 && !says_so(&texts[0]) && says_so(&texts[1]);
        assert!(texts.len() == 1 || first_and_again, "{fault:?} {k}: {asked:?}");
    }
    stage.gateway.remove().await;
    (died, asked.iter().filter(|texts| texts.len() == 2).count())
}

// --- the wall clock --------------------------------------------------------------------------------------------------

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const JUMPS: [i64; 4] = [HOUR, -HOUR, DAY, -DAY];

/// While the process lives its windows and deadlines run by the monotonic clock, and nothing notices the jump.
#[tokio::test]
async fn a_wall_clock_that_jumps_while_a_question_is_open_misses_and_doubles_nothing() {
    join_all(JUMPS.map(|jump| Box::pin(jumps_while_it_runs(jump)))).await;
}

async fn jumps_while_it_runs(jump: i64) {
    let mut stage = Stage::set(&format!("jump{jump}"), "").await;
    let clock = stage.clock();
    shim::shift(&clock, 0);
    assert!(stage.gateway.start_with(Some(&Plan::clock(&clock))).await);
    stage.opens().await.unwrap();
    // One was told, one is refused, one is covered, and one has a deadline.
    stage.asks("told", json!({})).await.unwrap();
    stage.hook.confirms("told").await;
    stage.hook.reacts(Reaction::Refuse);
    stage.asks("refused", json!({})).await.unwrap();
    stage.wait_until("it is refused", async || stage.why("refused").await["notices"][0]["state"] == "failed").await;
    let watcher = stage.watcher().await;
    stage
        .wait_until("somebody looks", async || {
            stage.get(&format!("/v1/sessions/{}/watchers", stage.session)).await["counts"]["able"] == 1
        })
        .await;
    stage.asks("covered", json!({})).await.unwrap();
    stage.wait_why("covered", "has demonstrably got the question").await;
    let raised = Instant::now();
    stage.asks("expires", json!({ "expiresIn": 4_000, "onTimeout": "fail" })).await.unwrap();
    let before = seconds_of(&stage.guardrail("expires").await["openedAt"]);

    shim::shift(&clock, jump);
    sleep(PAST_EVERYTHING).await;
    assert_eq!(stage.hook.of("covered"), [], "{jump}: it is still covered");
    assert_eq!(stage.hook.of("told").len(), 1, "{jump}");
    assert_eq!(stage.guardrail("expires").await["state"], "open", "{jump}: after {:?}", raised.elapsed());
    stage.wait_until("it expires", async || stage.guardrail("expires").await["state"] == "expired").await;
    assert!(raised.elapsed() >= Duration::from_millis(3_900), "{jump}: after {:?}", raised.elapsed());
    let ended = seconds_of(&stage.guardrail("expires").await["resolution"]["at"]);
    assert!((ended - before - jump).abs() < 60, "{jump}: the clock that it shows has jumped: {before} {ended}");

    stage.hook.reacts(Reaction::Confirm);
    watcher.abort();
    for question in ["refused", "covered"] {
        stage.hook.confirms(question).await;
    }
    sleep(PAST_EVERYTHING).await;
    stage.check_came("told", &[0]);
    stage.check_came("covered", &[0]);
    let refused = stage.hook.of("refused");
    assert_eq!(refused.iter().filter(|came| came.confirmed).count(), 1, "{jump}: {refused:?}");
    assert!(refused.iter().all(|came| came.id == refused[0].id && !came.repeat), "{jump}: {refused:?}");
    stage.gateway.remove().await;
}

/// Seconds since 1970 of a time as frames show it.
fn seconds_of(text: &Value) -> i64 {
    let text = text.as_str().unwrap();
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap().unix_timestamp()
}

/// A process that starts by another clock has only wall time to go by: a deadline that has passed by that clock has
/// passed, one that is to come is to come; what was told is not told again, and what was refused is tried again soon.
#[tokio::test]
async fn a_wall_clock_that_jumped_while_the_gateway_was_down_misses_and_doubles_nothing() {
    join_all(JUMPS.map(|jump| Box::pin(jumps_while_it_is_down(jump)))).await;
}

async fn jumps_while_it_is_down(jump: i64) {
    let mut stage = Stage::set(&format!("down{jump}"), "").await;
    let clock = stage.clock();
    shim::shift(&clock, 0);
    assert!(stage.gateway.start_with(Some(&Plan::clock(&clock))).await);
    stage.opens().await.unwrap();
    stage.asks("told", json!({})).await.unwrap();
    stage.hook.confirms("told").await;
    stage.asks("expires", json!({ "expiresIn": 1_800_000, "onTimeout": "fail" })).await.unwrap();
    stage.hook.confirms("expires").await;
    stage.hook.reacts(Reaction::Refuse);
    stage.asks("refused", json!({})).await.unwrap();
    stage.wait_until("it is refused", async || stage.why("refused").await["notices"][0]["state"] == "failed").await;
    stage.gateway.kill().await;
    shim::shift(&clock, jump);
    stage.hook.reacts(Reaction::Confirm);
    let refused = stage.hook.of("refused").len();
    assert!(stage.gateway.start_with(Some(&Plan::clock(&clock))).await);
    let started = Instant::now();
    if jump < DAY {
        stage.hook.confirms("refused").await;
        // The grace after a start, and at most the wait that was decided before: some seconds at its second try.
        assert!(started.elapsed() < Duration::from_secs(8), "{jump}: {:?}", started.elapsed());
    } else {
        // A question waits for a day at most, and by this clock it has.
        stage.wait_until("it expires", async || stage.guardrail("refused").await["state"] == "expired").await;
    }
    sleep(PAST_EVERYTHING).await;
    assert_eq!(stage.hook.of("told").len(), 1, "{jump}");
    assert_eq!(stage.hook.of("refused").len(), refused + usize::from(jump < DAY), "{jump}");
    let state = stage.guardrail("expires").await["state"].clone();
    assert_eq!(state, if jump > 0 { "expired" } else { "open" }, "{jump}");
    stage.gateway.remove().await;
}
