//! An agent that shops with a real Chromium.
//!
//! It drives the browser through the DevTools protocol with real mouse and key events, on the demo shop of
//! [`crate::shop`]. There is one browser for the process, started with the first task, and one fresh incognito
//! context with one page for every session. A browser that died fails the tasks that used it; the next task starts a
//! new one. What a task does is decided from the page that is shown, step by step, so that a person who took the
//! wheel may leave it anywhere.
//!
//! Dropping the future of a task ends everything the task does. [`ChromiumAgent::shutdown`] kills the browser and
//! removes its profile.

mod answer;
mod browser;
mod camera;
mod find;
mod journey;
mod keyboard;
mod link;
mod meter;
mod person;
mod proxy;
mod tab;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use onlooker_protocol::event::kind::USAGE;
use serde_json::{Map, Value, json};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use url::Url;

use crate::agent::{Agent, Completed, Failed, Task};
use browser::Browser;
use camera::Camera;
pub use find::{NoChromium, find_chromium};
use journey::Journey;
pub use link::TaskLink;
use meter::Meter;
use proxy::{Proxy, ProxyError};
use tab::Tab;

/// The size of every page, in page pixels.
pub const VIEWPORT: (u32, u32) = (1024, 600);

/// What a runtime with this agent says of itself when it registers.
pub fn labels() -> Map<String, Value> {
    let (width, height) = VIEWPORT;
    let dimensions = json!({"width": width, "height": height});
    Map::from_iter([("browser".to_owned(), json!("chromium")), ("dimensions".to_owned(), dimensions)])
}

/// How to start Chromium, and where to shop.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program; [`find_chromium`] finds it.
    pub executable: PathBuf,
    /// Chromium's sandbox. It cannot be used by root.
    pub sandbox: bool,
    /// The front page of the shop.
    pub shop: Url,
    /// The rest between two steps, so that people can follow. Zero for tests.
    pub pace: Duration,
}

/// Why a step could not be done.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("the browser is gone")]
    BrowserLost,
    #[error("the browser could not be started: {0}")]
    Start(String),
    #[error("the page did not load within {} s", tab::NAVIGATION_LIMIT.as_secs())]
    NavigationTimeout,
    #[error("the page cannot be reached")]
    Unreachable,
    #[error("startingUrl is not an http or https address")]
    StartingUrl,
    #[error("{0}")]
    Proxy(#[from] ProxyError),
    /// Begins anew from what the page shows, once the person is done.
    #[error("a person took the wheel")]
    Disturbed,
    #[error("the page has no {0}")]
    ElementNotFound(String),
    #[error("the browser refused a command")]
    Refused(#[source] chromiumoxide::error::CdpError),
    #[error("the shop refused every {0} it was given")]
    TriesSpent(&'static str),
    #[error("the question about the {0} was not answered in time")]
    TimedOut(&'static str),
    #[error("the question about the {0} was cancelled")]
    Cancelled(&'static str),
    #[error("the order was not finished within {} steps", journey::STEPS_MAX)]
    StepsSpent,
}

impl StepError {
    fn code(&self) -> &'static str {
        match self {
            Self::BrowserLost | Self::Start(_) => "BROWSER_LOST",
            Self::NavigationTimeout => "NAVIGATION_TIMEOUT",
            Self::Unreachable => "NAVIGATION_FAILED",
            Self::StartingUrl => "INVALID_STARTING_URL",
            Self::Proxy(ProxyError::NoPool) => "PROXY_UNAVAILABLE",
            Self::Proxy(ProxyError::SocksLogin | ProxyError::Wrong(_)) => "INVALID_PROXY",
            Self::Disturbed => "DISTURBED",
            Self::ElementNotFound(_) => "ELEMENT_NOT_FOUND",
            Self::Refused(_) => "BROWSER_ERROR",
            Self::TriesSpent(_) => "LOGIN_FAILED",
            Self::TimedOut(_) => "GUARDRAIL_TIMED_OUT",
            Self::Cancelled(_) => "GUARDRAIL_CANCELLED",
            Self::StepsSpent => "STEPS_SPENT",
        }
    }

    /// Whether it may come of a page that a person changed meanwhile.
    fn is_about_the_page(&self) -> bool {
        matches!(self, Self::ElementNotFound(_) | Self::NavigationTimeout | Self::Refused(_))
    }

    /// Whether the same page may still do for the next task.
    fn leaves_the_tab_usable(&self) -> bool {
        matches!(self, Self::TriesSpent(_) | Self::TimedOut(_) | Self::Cancelled(_) | Self::StartingUrl)
    }
}

/// Shops with a real Chromium. Clones share the browser.
#[derive(Clone)]
pub struct ChromiumAgent {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    /// Held while a browser starts, so that two tasks never start two.
    browser: tokio::sync::Mutex<Option<Arc<Browser>>>,
    /// One a session. The gateway gives no more sessions than the capacity that was registered.
    tabs: Mutex<HashMap<String, Arc<Tab>>>,
    /// Owns the task of every browser, and those that close contexts.
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

impl ChromiumAgent {
    pub fn new(settings: Settings) -> Self {
        let stop = CancellationToken::new();
        let inner = Inner {
            settings,
            browser: tokio::sync::Mutex::new(None),
            tabs: Mutex::default(),
            tasks: TaskTracker::new(),
            _stop_on_drop: stop.clone().drop_guard(),
            stop,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Kills the browser, removes its profile and waits until both are done. Tasks that still run fail.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The process id of the browser that lives, if any.
    pub async fn browser_process(&self) -> Option<u32> {
        self.inner.browser.lock().await.as_ref().filter(|browser| browser.lives()).and_then(|browser| browser.process)
    }

    /// Does the task behind `link` in its session's page.
    pub async fn work_on(&self, link: &impl TaskLink) -> Result<Completed, Failed> {
        let meter = Meter::start();
        let result = match self.inner.tab(link).await {
            Ok(tab) => self.inner.shop(link, &tab, &meter).await,
            Err(error) => Err(error),
        };
        let usage = meter.usage();
        link.publish(USAGE, usage.clone()).await;
        let result = result.map(|mut completed| {
            completed.data.insert("usage".to_owned(), usage);
            completed
        });
        result.map_err(|error| {
            if !error.leaves_the_tab_usable() {
                self.inner.tabs().remove(link.session());
            }
            tracing::warn!(error = &error as &dyn std::error::Error, "a task failed");
            Failed { code: error.code().to_owned(), error: error.to_string() }
        })
    }
}

impl Agent for ChromiumAgent {
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>> {
        let agent = self.clone();
        Box::pin(async move { agent.work_on(&task).await })
    }

    fn session_ended(&self, session: &str) {
        self.inner.tabs().remove(session);
    }
}

impl Inner {
    fn tabs(&self) -> MutexGuard<'_, HashMap<String, Arc<Tab>>> {
        self.tabs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session's page, in a fresh context when it has none that lives.
    async fn tab(&self, link: &impl TaskLink) -> Result<Arc<Tab>, StepError> {
        let proxy = Proxy::read(link.proxy())?;
        let known = self.tabs().get(link.session()).filter(|tab| tab.lives()).cloned();
        if let Some(tab) = known {
            return Ok(tab);
        }
        let tab = Arc::new(Tab::open(self.browser().await?, &proxy).await?);
        self.tabs().insert(link.session().to_owned(), Arc::clone(&tab));
        Ok(tab)
    }

    /// The browser, started when there is none that lives.
    async fn browser(&self) -> Result<Arc<Browser>, StepError> {
        let mut slot = self.browser.lock().await;
        if let Some(browser) = slot.as_ref().filter(|browser| browser.lives()) {
            return Ok(Arc::clone(browser));
        }
        if self.stop.is_cancelled() {
            return Err(StepError::BrowserLost);
        }
        let browser = Arc::new(Browser::start(&self.settings, &self.tasks, &self.stop).await?);
        Ok(Arc::clone(slot.insert(browser)))
    }

    /// Does the journey, while the camera looks and a person may reach into the page.
    async fn shop(&self, link: &impl TaskLink, tab: &Tab, meter: &Meter) -> Result<Completed, StepError> {
        let camera = Camera::new(link, tab);
        let journey = Journey::new(link, tab, &camera, meter, &self.settings);
        tokio::select! {
            biased;
            () = tab.lost() => Err(StepError::BrowserLost),
            // Before the journey: what a person did before handing the wheel back is done before the journey goes on.
            never = person::follow(link, tab, &camera) => match never {},
            result = journey.run() => result,
            never = camera.run() => match never {},
            never = meter.run(link) => match never {},
        }
    }
}
