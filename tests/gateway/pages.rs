//! Real pages in a real Chromium: they count while somebody may be looking, and stop counting when nobody can be.
//!
//! Without Chromium each test says so and passes; with `CI=true` it fails.

pub mod chromium;

use std::time::{Duration, Instant};

use onlooker::config::Config;
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use self::chromium::{Chromium, Page};
use crate::harness::*;

/// A page on a loaded machine may need this long for what an idle one does at once.
const SLACK: Duration = Duration::from_secs(4);
/// The reload of a browser that shares two busy cores takes longer than an ordinary one.
const GRACE: Duration = Duration::from_secs(2);
/// Twice as long as `quick()`, because a renderer starts while others work.
const LIVE_WINDOW: Duration = Duration::from_secs(2);

/// With the lease of attention as the page knows it, whose renewals are timed for 30 s, and with pings that leave the
/// test's runtime time: it answers only while it is waited for. Questions are proved at once all the same.
fn for_pages() -> Config {
    let mut config = quick();
    config.times.live_window = Duration::from_secs(20);
    config.times.ping_every = Duration::from_secs(8);
    config.times.attention_lease = Duration::from_secs(30);
    config
}

/// For pages that fall silent; the runtime is not needed any more then.
fn for_silent_pages() -> Config {
    let mut config = for_pages();
    config.times.live_window = LIVE_WINDOW;
    config.times.ping_every = LIVE_WINDOW / 4;
    config
}

/// The dashboard, opened on a session by somebody with a mouse.
struct Scene {
    gateway: TestGateway,
    runtime: Runtime,
    session: String,
    page: Page,
}

impl Scene {
    async fn set(browser: &Chromium, config: Config) -> Self {
        let gateway = TestGateway::with(config).await;
        let mut runtime = gateway.runtime().await;
        let named = OpenSession { external_id: Some("order 42".to_owned()), ..OpenSession::default() };
        let (session, _) = runtime.open(named).await;
        let mut page = browser.page(&format!("{}/", gateway.url)).await;
        page.click("document.querySelector('.session-row')").await;
        page.wait_for("document.querySelector('#session-name').textContent === 'order 42'").await;
        let scene = Self { gateway, runtime, session, page };
        scene.counts().await;
        scene
    }

    /// Whoever follows the session.
    async fn watchers(&self) -> Vec<Value> {
        let (status, body) = self.gateway.get(&format!("/v1/sessions/{}/watchers", self.session)).await;
        assert_eq!(status, 200, "{body}");
        body["watchers"].as_array().unwrap().clone()
    }

    async fn counts(&self) {
        wait_until("the page counts", || async { self.watchers().await.iter().any(|w| w["counts"] == true) }).await;
    }

    /// Waits until nobody counts any more; returns how long that took.
    async fn stops_counting(&self) -> Duration {
        let started = Instant::now();
        wait_until("the page stops counting", || async { self.watchers().await.iter().all(|w| w["counts"] == false) })
            .await;
        started.elapsed()
    }

    /// Whether the page has proved what is at this position.
    async fn proves(&self, position: onlooker_protocol::Position) {
        let proved = |watcher: &Value| {
            let proved = watcher["proved"].as_str().and_then(|text| text.parse().ok());
            proved.is_some_and(|proved: onlooker_protocol::Position| proved.offset >= position.offset)
        };
        wait_until("the page proves the event", || async { self.watchers().await.iter().any(proved) }).await;
    }

    /// A person moves the mouse over the page.
    async fn deed(&mut self) {
        self.page.move_mouse(300.0, 30.0).await;
        self.page.move_mouse(310.0, 35.0).await;
    }
}

#[tokio::test]
async fn a_visible_page_with_somebody_at_it_counts() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    let watchers = scene.watchers().await;
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    assert_eq!((&watchers[0]["via"], &watchers[0]["able"]), (&json!("websocket"), &json!(true)));
    scene.page.wait_for("document.querySelector('#attention').textContent === 'You count as looking'").await;
    scene.page.wait_for("document.querySelector('#watchers-line').textContent.startsWith('1 is looking')").await;

    scene.runtime.publish(&scene.session, "agent", json!({ "content": "Looking for lamps" })).await;
    scene.page.wait_for("document.querySelector('#events').textContent.includes('Looking for lamps')").await;
    let asked = scene.runtime.ask(&scene.session, "g", json!({})).await;
    scene.proves(asked).await;
    scene.page.close().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_page_that_nobody_touched_does_not_count() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    let before = scene.watchers().await[0]["subscriber"].clone();
    // The choice of the session is in the history: a new document follows it without anybody's deed.
    scene.page.reload().await;
    wait_until("the new page follows", || async {
        let watchers = scene.watchers().await;
        watchers.len() == 1 && watchers[0]["subscriber"] != before
    })
    .await;
    let watchers = scene.watchers().await;
    assert!(watchers[0]["why"].as_str().unwrap().contains("nobody is looking"), "{watchers:?}");
    scene.deed().await;
    scene.counts().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_page_whose_process_is_stopped_does_not_count_until_it_goes_on() {
    // Its own browser: every renderer of it is stopped.
    let Some(browser) = Chromium::start() else { return };
    let scene = Scene::set(&browser, for_silent_pages()).await;
    let renderers = browser.renderers().await;
    assert!(!renderers.is_empty());
    renderers.iter().for_each(|renderer| renderer.signal("STOP"));
    let took = scene.stops_counting().await;
    assert!(took < LIVE_WINDOW + SLACK, "{took:?}");
    let watchers = scene.watchers().await;
    assert_eq!(watchers.len(), 1, "the connection stays: {watchers:?}");
    assert!(watchers[0]["why"].as_str().unwrap().contains("has not answered a ping"), "{watchers:?}");

    renderers.iter().for_each(|renderer| renderer.signal("CONT"));
    scene.counts().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_page_whose_main_thread_hangs_does_not_count() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_silent_pages()).await;
    scene.page.begin("{ const end = Date.now() + 15_000; while (Date.now() < end) {} }").await;
    let took = scene.stops_counting().await;
    assert!(took < LIVE_WINDOW + SLACK, "{took:?}");
    let watchers = scene.watchers().await;
    assert_eq!(watchers.len(), 1, "the connection stays: {watchers:?}");
    assert!(watchers[0]["why"].as_str().unwrap().contains("has not answered a ping"), "{watchers:?}");
    scene.page.close().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_page_that_was_left_does_not_count_and_counts_again_when_somebody_comes_back() {
    let Some(browser) = Chromium::shared() else { return };
    let elsewhere = TestGateway::start().await;
    let mut scene = Scene::set(browser, for_pages()).await;
    let other = elsewhere.url.replace("127.0.0.1", "localhost");
    scene.page.call("Page.navigate", json!({ "url": format!("{other}/") })).await;
    let took = scene.stops_counting().await;
    assert!(took < LIVE_WINDOW + SLACK, "{took:?}");
    scene.page.wait_for(&format!("location.href.startsWith('{other}') && document.readyState === 'complete'")).await;

    scene.page.begin("history.back()").await;
    let back = scene.gateway.url.clone();
    scene.page.wait_for(&format!("location.href.startsWith('{back}') && document.querySelector('#events li')")).await;
    scene.deed().await;
    scene.counts().await;
    elsewhere.stop().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_tab_behind_another_is_idle_at_once() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    scene.page.cover().await;
    scene.page.wait_for("document.visibilityState === 'hidden'").await;
    scene.stops_counting().await;
    let watchers = scene.watchers().await;
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    assert!(watchers[0]["why"].as_str().unwrap().contains("says that nobody is looking"), "{watchers:?}");

    scene.page.bring_to_front().await;
    scene.page.wait_for("document.visibilityState === 'visible'").await;
    scene.deed().await;
    scene.counts().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_frozen_page_is_idle_at_once() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    scene.page.call("Page.setWebLifecycleState", json!({ "state": "frozen" })).await;
    scene.stops_counting().await;
    let watchers = scene.watchers().await;
    assert_eq!(watchers.len(), 1, "{watchers:?}");
    assert!(watchers[0]["why"].as_str().unwrap().contains("says that nobody is looking"), "{watchers:?}");

    // DevTools freeze a page by hiding it first, and do not show it again by themselves.
    scene.page.call("Page.setWebLifecycleState", json!({ "state": "active" })).await;
    scene.page.cover().await;
    scene.page.bring_to_front().await;
    scene.page.wait_for("document.visibilityState === 'visible'").await;
    scene.deed().await;
    scene.counts().await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_question_is_answered_in_the_page_and_the_runtime_has_the_values() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    let fields = json!([
        { "id": "email", "label": "E-mail", "type": "email", "secret": false }, { "id": "password", "type": "password" },
    ]);
    let more = json!({ "kind": "login", "domain": "shop.example", "value": "Please sign in", "fields": fields });
    scene.runtime.ask(&scene.session, "sign-in", more).await;
    scene.page.wait_for("document.querySelector('.card h4')?.textContent === 'Please sign in'").await;
    scene.page.wait_for("document.title.startsWith('(1)')").await;
    scene.page.keep_picture("question", (1280, 800)).await;
    scene.page.keep_picture("question", (390, 844)).await;
    scene.page.click("document.querySelectorAll('.card input')[0]").await;
    scene.page.type_text("ada@shop.example").await;
    scene.page.click("document.querySelectorAll('.card input')[1]").await;
    scene.page.type_text("Tr0ub4dor").await;
    scene.page.click("document.querySelector('.card button[type=submit]')").await;

    let outcome = scene.runtime.outcome().await;
    assert_eq!(outcome.outcome, onlooker_protocol::view::Outcome::Answered);
    assert_eq!((&*outcome.values["email"], &*outcome.values["password"]), ("ada@shop.example", "Tr0ub4dor"));
    scene.page.wait_for("!document.querySelector('.card')").await;
    scene.page.wait_for("document.querySelector('.closed')?.textContent.includes('on its way to the agent')").await;
    let taken = json!({ "guardrailId": "sign-in", "revision": 1 });
    scene.runtime.publish(&scene.session, "guardrail_taken", taken).await;
    scene.page.wait_for("document.querySelector('.closed')?.textContent.includes('the agent has it')").await;
    let leaked = scene.page.evaluate("document.documentElement.outerHTML.includes('Tr0ub4dor')").await;
    assert_eq!(leaked, false);
    scene.page.keep_picture("answered", (1280, 800)).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn the_page_shows_who_has_a_question_and_until_when() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    scene.runtime.ask(&scene.session, "g", json!({ "choices": [{ "id": "yes", "label": "Buy it" }] })).await;
    scene.page.wait_for("document.querySelector('.choice')?.textContent === 'Buy it'").await;
    let path = format!("/v1/guardrails/g/claim?session={}", scene.session);
    let (status, claimed) = scene.gateway.post(&path, json!({ "revision": 1 })).await;
    assert_eq!(status, 200, "{claimed}");
    let line = "[...document.querySelectorAll('.card > .status')].find((p) => p.textContent.includes('has it'))";
    scene.page.wait_for(&format!("/ has it until \\d/.test({line}?.textContent)")).await;
    scene.page.keep_picture("claimed", (390, 844)).await;
    let path = format!("/v1/guardrails/g/release?session={}", scene.session);
    let (status, released) = scene.gateway.post(&path, json!({ "revision": 1 })).await;
    assert_eq!(status, 200, "{released}");
    scene.page.wait_for(&format!("!({line}) || {line}.hidden")).await;

    scene.page.click("document.querySelector('.choice')").await;
    let outcome = scene.runtime.outcome().await;
    assert_eq!(outcome.choice.as_deref(), Some("yes"));
    scene.gateway.stop().await;
}

#[tokio::test]
async fn a_reload_disturbs_nobody() {
    let Some(browser) = Chromium::shared() else { return };
    let receiver = Receiver::start().await;
    let mut config = with_webhook(for_pages(), &receiver);
    config.times.grace = GRACE;
    let mut scene = Scene::set(browser, config).await;
    let asked = scene.runtime.ask(&scene.session, "seen", json!({})).await;
    scene.proves(asked).await;
    let before = scene.watchers().await[0]["subscriber"].clone();
    scene.page.reload().await;
    scene.page.wait_for("document.querySelector('.card')").await;
    scene.deed().await;
    wait_until("the new page counts and has the question", || async {
        let watchers = scene.watchers().await;
        watchers.iter().any(|w| w["subscriber"] != before && w["counts"] == true && !w["proved"].is_null())
    })
    .await;

    // Longer than the grace that the reload began: a notice that was only put off would have come.
    tokio::time::sleep(GRACE + Duration::from_millis(500)).await;
    let why = scene.gateway.why(&scene.session, "seen").await;
    assert_eq!(why["decisions"].as_array().unwrap().last().unwrap()["rule"], 4, "{why}");
    assert!(receiver.got().is_empty(), "{:?}", receiver.got());

    // The receiver is there and would have been told: it is, once the tab is closed and its grace is over.
    scene.page.close().await;
    receiver.wait_for("guardrail.opened", 1).await;
    scene.gateway.stop().await;
}

#[tokio::test]
async fn the_page_says_when_nobody_could_be_told_of_a_question() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::set(browser, for_pages()).await;
    let (other, _) = scene.runtime.open(OpenSession::default()).await;
    scene.runtime.ask(&other, "g", json!({})).await;
    scene.page.wait_for("!document.querySelector('#unreachable').hidden").await;
    let said = scene.page.evaluate("document.querySelector('#unreachable').textContent").await;
    assert_eq!(said, "A question waits of which nobody could be told: no chat or webhook took it.");
    scene.page.keep_picture("unreachable", (390, 844)).await;
    let body = json!({ "session": other, "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(scene.gateway.post("/v1/guardrails/g/answer", body).await.0, 200);
    scene.page.wait_for("document.querySelector('#unreachable').hidden").await;
    scene.gateway.stop().await;
}
