//! A task link that answers from a script and keeps what was published, and an agent with a shop for it.

use std::{
    collections::VecDeque,
    io::Write,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use onlooker_protocol::{runtime::GuardrailOutcome, view::Outcome};
use onlooker_runtime::{
    chromium::{ChromiumAgent, Settings, TaskLink, find_chromium},
    shop::Shop,
};
use serde_json::{Map, Value};
use tokio::sync::watch;
use url::Url;

/// One browser at a time: several at once take longer than one after the other on a small machine.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A shop and an agent, or nothing where no Chromium is installed.
pub(crate) struct Stage {
    _turn: tokio::sync::MutexGuard<'static, ()>,
    pub(crate) shop: Shop,
    pub(crate) agent: ChromiumAgent,
}

impl Stage {
    pub(crate) async fn set() -> Option<Self> {
        Self::at(None).await
    }

    /// With an agent that takes another site for its shop.
    pub(crate) async fn at(elsewhere: Option<Url>) -> Option<Self> {
        let Ok(executable) = find_chromium(None) else {
            // Written past the test harness, which keeps what passing tests print to itself.
            let mut out = std::io::stderr();
            writeln!(out, "SKIPPED: no Chromium is installed (apt-get install chromium)").unwrap();
            return None;
        };
        let shop = Shop::start().await.unwrap();
        let url = elsewhere.unwrap_or_else(|| shop.url.clone());
        let settings = Settings { executable, sandbox: true, shop: url, pace: Duration::ZERO };
        Some(Self { _turn: TURN.lock().await, agent: ChromiumAgent::new(settings), shop })
    }
}

/// What the scripted person does with a guardrail.
#[derive(Clone)]
pub(crate) enum Reply {
    Values(Vec<(&'static str, &'static str)>),
    Choice(&'static str),
    Decline,
    /// Leaves it open for as long as the test runs.
    Silence,
}

#[derive(Clone, Debug)]
pub(crate) enum Seen {
    Event(String, Value),
    Picture(Bytes),
    Asked(Value),
    Sensitive(bool),
}

pub(crate) struct Script {
    session: String,
    prompt: String,
    replies: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Seen>>,
    /// How much was seen, for tests that wait.
    count: watch::Sender<usize>,
    paused: watch::Sender<bool>,
    interactions: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Value>>,
    person: tokio::sync::mpsc::Sender<Value>,
}

impl Script {
    pub(crate) fn new(session: &str, prompt: &str, replies: impl IntoIterator<Item = Reply>) -> Self {
        let (person, interactions) = tokio::sync::mpsc::channel(16);
        Self {
            session: session.to_owned(),
            prompt: prompt.to_owned(),
            replies: Mutex::new(replies.into_iter().collect()),
            seen: Mutex::default(),
            count: watch::Sender::new(0),
            paused: watch::Sender::new(false),
            interactions: tokio::sync::Mutex::new(interactions),
            person,
        }
    }

    pub(crate) fn pause(&self, on: bool) {
        self.paused.send_replace(on);
    }

    pub(crate) async fn interact(&self, action: Value) {
        self.person.send(action).await.unwrap();
    }

    /// Waits until the agent has taken every interaction.
    pub(crate) async fn all_done(&self) {
        let taken = async {
            while self.person.capacity() < self.person.max_capacity() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), taken).await.is_ok(), "an interaction was never taken");
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn asked(&self) -> Vec<Value> {
        let seen = self.seen();
        seen.iter().filter_map(|one| if let Seen::Asked(asked) = one { Some(asked.clone()) } else { None }).collect()
    }

    /// The data of all events of this type.
    pub(crate) fn events(&self, kind: &str) -> Vec<Value> {
        let seen = self.seen();
        seen.iter()
            .filter_map(|one| match one {
                Seen::Event(is, data) if is == kind => Some(data.clone()),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn pictures(&self) -> Vec<Bytes> {
        let seen = self.seen();
        seen.iter().filter_map(|one| if let Seen::Picture(bytes) = one { Some(bytes.clone()) } else { None }).collect()
    }

    /// Waits until something that was seen fits.
    pub(crate) async fn until(&self, what: &str, fits: impl Fn(&Seen) -> bool) {
        let mut count = self.count.subscribe();
        let found = count.wait_for(|_| self.seen().iter().any(&fits));
        let waited = tokio::time::timeout(Duration::from_secs(60), found).await;
        assert!(waited.is_ok(), "waited too long for {what}");
    }

    fn note(&self, seen: Seen) {
        self.seen().push(seen);
        self.count.send_modify(|count| *count += 1);
    }
}

impl TaskLink for Script {
    fn session(&self) -> &str {
        &self.session
    }

    fn id(&self) -> &str {
        "task"
    }

    fn prompt(&self) -> &str {
        &self.prompt
    }

    fn starting_url(&self) -> Option<&str> {
        None
    }

    fn proxy(&self) -> &Value {
        &Value::Null
    }

    async fn publish(&self, kind: &str, data: Value) {
        self.note(Seen::Event(kind.to_owned(), data));
    }

    async fn picture(&self, media: &str, bytes: Bytes, _data: Value) {
        assert_eq!(media, "image/jpeg");
        self.note(Seen::Picture(bytes));
    }

    async fn ask(&self, guardrail: Value) -> GuardrailOutcome {
        let revision = u32::try_from(guardrail["revision"].as_u64().unwrap()).unwrap();
        let mut outcome = GuardrailOutcome {
            guardrail_id: guardrail["guardrailId"].as_str().unwrap().to_owned(),
            revision,
            asked: revision,
            outcome: Outcome::Answered,
            on_timeout: None,
            text: None,
            choice: None,
            values: Default::default(),
        };
        self.note(Seen::Asked(guardrail));
        let reply = self.replies.lock().unwrap().pop_front().expect("the script has a reply for every question");
        match reply {
            Reply::Values(values) => {
                outcome.values = values.into_iter().map(|(id, value)| (id.to_owned(), value.to_owned())).collect();
            }
            Reply::Choice(choice) => outcome.choice = Some(choice.to_owned()),
            Reply::Decline => outcome.outcome = Outcome::Declined,
            Reply::Silence => std::future::pending().await,
        }
        outcome
    }

    async fn sensitive(&self, on: bool) {
        self.note(Seen::Sensitive(on));
    }

    async fn ready(&self) {
        let mut paused = self.paused.subscribe();
        paused.wait_for(|paused| !paused).await.unwrap();
    }

    async fn held(&self) {
        let mut paused = self.paused.subscribe();
        paused.wait_for(|paused| *paused).await.unwrap();
    }

    fn is_held(&self) -> bool {
        *self.paused.borrow()
    }

    async fn interaction(&self) -> Map<String, Value> {
        let Some(Value::Object(action)) = self.interactions.lock().await.recv().await else { unreachable!() };
        action
    }
}
