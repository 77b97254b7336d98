//! A whole run: a gateway with everybody around it, until the history is complete, and what the gateway then says.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use onlooker_protocol::{
    event::{EventFrame, kind},
    view::{GuardrailState, GuardrailView, SessionStatus, SessionSummary},
};
use serde::{Deserialize, de::DeserializeOwned};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    checker::{self, Fault, Rule, Terms},
    driver::{
        Door, Phase, chance,
        operator::{self, Operator},
        receiver::Receiver,
        runtime::{self, Runtime},
    },
    gateway::Gateway,
    history::{History, Reading, SessionRead, What},
};

/// Who is around the gateway.
#[derive(Clone, Debug)]
pub struct Cast {
    pub runtimes: usize,
    pub sessions: usize,
    pub operators: usize,
    pub pace: Duration,
    /// Every so many turns a question is raised.
    pub ask_every: u32,
    /// In milliseconds, of questions that have one.
    pub longest_deadline: u64,
    pub slowest: Duration,
    pub tasks: f64,
    /// The share of notices that are not confirmed.
    pub trouble: f64,
    /// Further lines of the configuration.
    pub settings: String,
}

impl Cast {
    pub fn busy() -> Self {
        Self {
            runtimes: 2,
            sessions: 3,
            operators: 2,
            pace: Duration::from_millis(30),
            ask_every: 12,
            longest_deadline: 1_500,
            slowest: Duration::from_millis(900),
            tasks: 0.3,
            trouble: 0.5,
            settings: String::new(),
        }
    }

    /// Few, and quick to answer: every kind of commit comes soon.
    pub fn small() -> Self {
        Self {
            runtimes: 1,
            sessions: 1,
            operators: 1,
            pace: Duration::from_millis(15),
            ask_every: 3,
            longest_deadline: 300,
            slowest: Duration::from_millis(40),
            tasks: 0.5,
            trouble: 0.3,
            ..Self::busy()
        }
    }
}

pub struct Scenario {
    pub gateway: Gateway,
    pub history: History,
    pub seed: u64,
    phase: watch::Sender<Phase>,
    runtimes: Vec<watch::Receiver<runtime::Progress>>,
    operators: Vec<watch::Receiver<operator::Progress>>,
    tasks: JoinSet<()>,
    _receiver: Receiver,
    http: reqwest::Client,
}

/// How long everything may take that was under way.
const SETTLES_WITHIN: Duration = Duration::from_secs(40);

impl Scenario {
    /// Everybody is there; the gateway is not started yet.
    pub async fn begin(name: &str, seed: u64, cast: &Cast) -> Self {
        println!("{name}: seed {seed}");
        let history = History::begin();
        let receiver = Receiver::start(history.clone(), seed, cast.trouble).await;
        let settings = format!("{}\n[notify_webhook]\nurl = \"{}\"\n", cast.settings, receiver.url);
        let gateway = Gateway::new(&format!("{name}-{seed}"), &settings, &history);
        let door = Door { url: gateway.url.clone(), token: None };
        let (phase, _) = watch::channel(Phase::Busy);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(20)).no_proxy().build().unwrap();
        let (mut tasks, mut runtimes, mut operators) = (JoinSet::new(), Vec::new(), Vec::new());
        for i in 0..cast.runtimes {
            let habits = runtime::Habits {
                name: format!("runtime{i}"),
                sessions: cast.sessions,
                pace: cast.pace,
                ask_every: cast.ask_every,
                longest_deadline: cast.longest_deadline,
            };
            let rng = chance(seed, i as u64);
            let (runtime, progress) = Runtime::new(door.clone(), habits, history.clone(), phase.subscribe(), rng);
            runtimes.push(progress);
            tasks.spawn(runtime.run());
        }
        for i in 0..cast.operators {
            let habits = operator::Habits {
                name: format!("operator{i}"),
                answers: 0.7,
                slowest: cast.slowest,
                tasks: cast.tasks,
            };
            let rng = chance(seed, 100 + i as u64);
            let (operator, progress) = Operator::new(door.clone(), habits, history.clone(), phase.subscribe(), rng);
            operators.push(progress);
            tasks.spawn(operator.run());
        }
        Self { gateway, history, seed, phase, runtimes, operators, tasks, _receiver: receiver, http }
    }

    /// Everything that was under way comes to its end; then what the gateway says is held against what everybody saw.
    pub async fn settle_and_check(mut self, terms: Terms) {
        let unsettled = self.settle_within(SETTLES_WITHIN).await;
        let (faults, reading) = self.faults(terms).await;
        if let Some(why) = unsettled {
            self.write_down(&reading);
            let (seed, folder, log) = (self.seed, self.gateway.folder.display(), self.gateway.last_words());
            panic!(
                "seed {seed}: it does not settle: {why}\n{faults:#?}\nkept in {folder}; the gateway's log ends:\n{log}"
            );
        }
        if !faults.is_empty() {
            self.write_down(&reading);
            let shown: Vec<_> = faults.iter().take(20).map(|fault| format!("{fault:?}")).collect();
            let (seed, folder, log) = (self.seed, self.gateway.folder.display(), self.gateway.last_words());
            let (all, shown) = (faults.len(), shown.join("\n  "));
            panic!("seed {seed}: {all} faults:\n  {shown}\nkept in {folder}; the gateway's log ends:\n{log}");
        }
        self.gateway.remove().await;
    }

    /// As [`Self::settle_and_check`], for a run that is known to be wrong and need not settle: the promises that were
    /// broken.
    pub async fn settle_and_find(mut self, terms: Terms) -> BTreeSet<Rule> {
        self.settle_within(Duration::from_secs(3)).await;
        let (faults, _) = self.faults(terms).await;
        self.gateway.remove().await;
        faults.into_iter().map(|fault| fault.rule).collect()
    }

    async fn faults(&mut self, terms: Terms) -> (Vec<Fault>, Reading) {
        // What is seen from here on may be newer than what is read.
        let history = self.history.entries();
        let reading = self.read().await;
        self.phase.send_replace(Phase::Over);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("nobody around the gateway panics");
        }
        let events: usize = reading.sessions.values().map(|read| read.events.len()).sum();
        let count = |fits: fn(&What) -> bool| self.history.count(fits);
        println!(
            "  {} sessions, {events} events, {} answers, {} outcomes, {} deliveries, {} deaths",
            reading.sessions.len(),
            count(|what| matches!(what, What::Answered { .. })),
            count(|what| matches!(what, What::Outcome { .. })),
            count(|what| matches!(what, What::Delivered(_))),
            count(|what| matches!(what, What::GatewayKilled)),
        );
        (checker::check(&history, &reading, terms), reading)
    }

    /// What the run was, beside its data.
    fn write_down(&self, reading: &Reading) {
        let lines: Vec<_> = self.history.entries().iter().map(|entry| format!("{entry:?}")).collect();
        std::fs::write(self.gateway.folder.join("history"), lines.join("\n")).unwrap();
        let events = reading.sessions.values().flat_map(|read| &read.events);
        let lines: Vec<_> = events.map(|event| serde_json::to_string(event).unwrap()).collect();
        std::fs::write(self.gateway.folder.join("logs"), lines.join("\n")).unwrap();
    }

    /// Waits until all numbers are acknowledged, all requests have replies, all accepted answers are taken, all
    /// deadlines have passed, and all operators have seen everything. Says what is missing when it takes too long.
    async fn settle_within(&mut self, bound: Duration) -> Option<String> {
        self.phase.send_replace(Phase::Settle);
        let until = Instant::now() + bound;
        loop {
            let why = self.unsettled().await?;
            if Instant::now() >= until {
                return Some(why);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn unsettled(&self) -> Option<String> {
        for progress in &self.runtimes {
            let progress = *progress.borrow();
            if progress.unacknowledged > 0 {
                return Some(format!("a runtime: {progress:?}"));
            }
        }
        let now = text(OffsetDateTime::now_utc() - Duration::from_secs(1));
        let listed: Listed = self.get("/v1/guardrails").await;
        let waits = |view: &&GuardrailView| match view.state {
            GuardrailState::Accepted => true,
            // Those that wait for a day are left open; a deadline of this run is applied soon.
            GuardrailState::Open => view.expires_at < now,
            _ => false,
        };
        if let Some(view) = listed.guardrails.iter().find(waits) {
            return Some(format!("{view:?}"));
        }
        let short = |view: &&GuardrailView| {
            view.state == GuardrailState::Open
                && view.expires_at < text(OffsetDateTime::now_utc() + Duration::from_secs(3))
        };
        if let Some(view) = listed.guardrails.iter().find(short) {
            return Some(format!("a deadline is near: {view:?}"));
        }
        let mut heads = BTreeMap::new();
        for session in self.history.sessions() {
            let page: Page = self.get(&format!("/v1/sessions/{session}/events?since=latest")).await;
            heads.insert(session, page.position);
        }
        for progress in &self.operators {
            let progress = progress.borrow().clone();
            if progress.waiting > 0 {
                return Some(format!("an operator waits for {} replies", progress.waiting));
            }
            for (session, head) in &heads {
                let seen = progress.seen.get(session).map(ToString::to_string);
                if seen.as_ref() != Some(head) {
                    return Some(format!("an operator saw {session} up to {seen:?} of {head}"));
                }
            }
        }
        None
    }

    /// Everything that the gateway says, page by page.
    pub async fn read(&self) -> Reading {
        let mut sessions = BTreeMap::new();
        for summary in self.summaries().await {
            let events = self.events(&summary.session).await;
            let guardrails = self.guardrails(&summary.session, &events).await;
            let status: SessionStatus = summary.status;
            sessions.insert(summary.session, SessionRead { status, events, guardrails });
        }
        // Timers have had their time.
        Reading { settled_at: text(OffsetDateTime::now_utc() - Duration::from_secs(1)), sessions }
    }

    async fn summaries(&self) -> Vec<SessionSummary> {
        let mut all: Vec<SessionSummary> = Vec::new();
        loop {
            let after = all.last().map_or(String::new(), |last| format!("&after={}", last.session));
            let page: Sessions = self.get(&format!("/v1/sessions?limit=100{after}")).await;
            if page.sessions.is_empty() {
                return all;
            }
            all.extend(page.sessions);
        }
    }

    async fn events(&self, session: &str) -> Vec<EventFrame> {
        let mut all: Vec<EventFrame> = Vec::new();
        let mut since = "start".to_owned();
        loop {
            let page: Page = self.get(&format!("/v1/sessions/{session}/events?since={since}")).await;
            if page.events.is_empty() {
                return all;
            }
            since = page.position;
            all.extend(page.events);
        }
    }

    async fn guardrails(&self, session: &str, events: &[EventFrame]) -> Vec<GuardrailView> {
        let raised = events.iter().filter(|event| event.event.kind == kind::GUARDRAIL_TRIGGER);
        let ids: BTreeSet<_> = raised.filter_map(|event| event.event.data["guardrailId"].as_str()).collect();
        let mut views = Vec::new();
        for id in ids {
            // One that is not there is for the checker to say.
            if let Ok(text) = self.ask(&format!("/v1/guardrails/{id}?session={session}"), SETTLES_WITHIN).await {
                views.push(serde_json::from_str::<One>(&text).unwrap().guardrail);
            }
        }
        views
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let text = self.ask(path, SETTLES_WITHIN).await;
        let text =
            text.unwrap_or_else(|why| panic!("seed {}: {path}: {why}\n{}", self.seed, self.gateway.last_words()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    /// The text of an answer, or what came instead of one.
    async fn ask(&self, path: &str, bound: Duration) -> Result<String, String> {
        let response = self.http.get(format!("{}{path}", self.gateway.url)).timeout(bound).send().await;
        let response = response.map_err(|error| format!("{error:?}"))?;
        let status = response.status();
        let text = response.text().await.map_err(|error| format!("{error:?}"))?;
        if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
    }

    /// Every kind of read of every session, each within a bound; those that were not served.
    pub async fn unserved_reads(&self, bound: Duration) -> Vec<String> {
        let mut unserved = Vec::new();
        let mut paths = vec!["/v1/sessions".to_owned(), "/v1/guardrails".to_owned()];
        for session in self.history.sessions() {
            paths.push(format!("/v1/sessions/{session}"));
            paths.push(format!("/v1/sessions/{session}/events?since=start"));
            for guardrail in self.raised_in(&session) {
                paths.push(format!("/v1/guardrails/{guardrail}?session={session}"));
            }
        }
        let asked = paths.iter().map(|path| async move { (path, self.ask(path, bound).await) });
        for (path, answer) in futures::future::join_all(asked).await {
            unserved.extend(answer.err().map(|why| format!("{path}: {why}")));
        }
        unserved
    }

    /// Guardrails that somebody has seen in the log.
    fn raised_in(&self, session: &str) -> BTreeSet<String> {
        let raised = |what: &What| match what {
            What::Saw { frame, .. } if frame.session == session && frame.event.kind == kind::GUARDRAIL_TRIGGER => {
                frame.event.data["guardrailId"].as_str().map(str::to_owned)
            }
            _ => None,
        };
        self.history.entries().iter().filter_map(|entry| raised(&entry.what)).collect()
    }

    pub fn runtimes(&self) -> runtime::Progress {
        let mut sum = runtime::Progress::default();
        for progress in &self.runtimes {
            let one = *progress.borrow();
            sum.held += one.held;
            sum.unacknowledged += one.unacknowledged;
            sum.acknowledged += one.acknowledged;
            sum.unavailable += one.unavailable;
            sum.unheard += one.unheard;
        }
        sum
    }

    /// Waits until the runtimes have come to something.
    pub async fn wait_runtimes(&self, what: &str, bound: Duration, fits: impl Fn(runtime::Progress) -> bool) {
        let waiting = async {
            while !fits(self.runtimes()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if timeout(bound, waiting).await.is_err() {
            let (seed, now) = (self.seed, self.runtimes());
            panic!("seed {seed}: waited in vain until {what}: {now:?}\n{}", self.gateway.last_words());
        }
    }
}

#[derive(Deserialize)]
struct Sessions {
    sessions: Vec<SessionSummary>,
}

#[derive(Deserialize)]
struct Listed {
    guardrails: Vec<GuardrailView>,
}

#[derive(Deserialize)]
struct One {
    guardrail: GuardrailView,
}

#[derive(Deserialize)]
struct Page {
    events: Vec<EventFrame>,
    position: String,
}

const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

fn text(time: OffsetDateTime) -> String {
    time.format(MILLISECONDS).expect("a time has a text")
}
