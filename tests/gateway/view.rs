//! The page of one session, opened by its id: its headers, what it opens and what not, and a real browser at it.

use std::time::Duration;

use onlooker::config::{Config, key::Scope};
use onlooker_protocol::runtime::OpenSession;
use serde_json::{Value, json};

use crate::{
    harness::*,
    pages::chromium::{Chromium, Page},
};

/// Opens a session on a gateway with keys, by its runtime's.
async fn closed(config: Config) -> (TestGateway, Runtime, String) {
    let keys: &[(&str, &[Scope])] = &[("agent", &[Scope::Publish]), ("reader", &[Scope::Watch, Scope::Answer])];
    let gateway = TestGateway::with(with_keys(config, keys)).await;
    let mut runtime = Runtime::connect(&gateway, "runtime", 10, Some("key-agent")).await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    (gateway, runtime, session)
}

/// A `POST` as the page at this origin makes it.
async fn say(gateway: &TestGateway, origin: Option<&str>, path: &str, body: &Value) -> (u16, Value) {
    let mut request = gateway.http.post(format!("{}{path}", gateway.url)).json(body);
    if let Some(origin) = origin {
        request = request.header("origin", origin);
    }
    gateway.request(request).await
}

/// An event stream that is read for as long as this lives, and its subscriber's id.
struct Stream {
    response: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(gateway: &TestGateway, path: &str) -> (Self, String) {
        let response = gateway.http.get(format!("{}{path}", gateway.url)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let mut stream = Self { response, text: String::new() };
        let hello = stream.until("event: hello").await;
        (stream, hello["subscriber"].as_str().unwrap().to_owned())
    }

    /// The data of the next event whose text has this in it.
    async fn until(&mut self, part: &str) -> Value {
        let waiting = async {
            loop {
                while let Some(end) = self.text.find("\n\n") {
                    let event: String = self.text.drain(..end + 2).collect();
                    if event.contains(part) {
                        let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                        return serde_json::from_str(data).unwrap();
                    }
                }
                let piece = self.response.chunk().await.unwrap().expect("the stream goes on");
                self.text.push_str(std::str::from_utf8(&piece).unwrap());
            }
        };
        tokio::time::timeout(BOUND, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {part}"))
    }
}

#[tokio::test]
async fn the_page_may_be_framed_by_anybody_and_tells_nobody_where_it_is() {
    let gateway = TestGateway::start().await;
    let mut runtime = gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    for path in [format!("/view/{session}"), "/view/static/session/page.js".to_owned()] {
        let response = gateway.http.get(format!("{}{path}", gateway.url)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        let policy = headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && policy.ends_with("frame-ancestors *"), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        assert!(headers.get("x-frame-options").is_none());
        for (name, value) in
            [("referrer-policy", "no-referrer"), ("cache-control", "no-store"), ("x-content-type-options", "nosniff")]
        {
            assert_eq!(headers[name], value, "{path}");
        }
        let text = response.text().await.unwrap();
        assert!(!text.contains("://") && !text.contains("<script>") && !text.contains(" onclick"), "{path}");
        assert!(!text.contains(&session), "the page itself names no session");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_unknown_session_gets_a_friendly_page_that_names_nothing() {
    let gateway = TestGateway::start().await;
    for id in ["aaaaaaaaaaaaaaaaaaaa", "zzyzx", "%3Cmarquee%3E"] {
        let response = gateway.http.get(format!("{}/view/{id}", gateway.url)).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (404, &"text/html; charset=utf-8".parse().unwrap())
        );
        let text = response.text().await.unwrap();
        assert!(
            text.contains("There is no such session")
                && !text.contains(id)
                && !text.contains("marquee")
                && !text.contains("{{"),
            "{text}"
        );
    }
    let (status, refusal) = gateway.get("/view/aaaaaaaaaaaaaaaaaaaa/state").await;
    assert_eq!((status, &refusal["error"]), (404, &json!("unknown_session")));
    gateway.stop().await;
}

#[tokio::test]
async fn the_id_opens_its_session_on_a_gateway_with_keys_and_no_other() {
    let (gateway, mut runtime, session) = closed(quick()).await;
    let (other, _) = runtime.open(OpenSession::default()).await;
    runtime.publish(&session, "agent", json!({ "content": "I look around" })).await;
    runtime.publish(&other, "agent", json!({ "content": "of the other" })).await;
    runtime.ask(&session, "g", json!({ "value": "Which one?" })).await;
    runtime.publish_picture(&session, b"\x89PNG picture").await;
    let (status, state) = gateway.get(&format!("/view/{session}/state")).await;
    assert_eq!(status, 200, "{state}");
    assert_eq!(state["state"]["guardrails"][0]["value"], "Which one?");
    let text = state.to_string();
    assert!(text.contains("I look around") && !text.contains("of the other") && !text.contains(&other), "{text}");
    assert_eq!((&state["able"], &state["aliveEvery"]), (&json!(true), &json!(quick().times.ping_every.as_millis())));

    let picture = state["state"]["picture"]["id"].as_str().unwrap().to_owned();
    let url = format!("{}/view/{session}/picture/{picture}", gateway.url);
    let shown = gateway.http.get(url).send().await.unwrap();
    assert_eq!((shown.status().as_u16(), &*shown.bytes().await.unwrap()), (200, &b"\x89PNG picture"[..]));
    assert_eq!(gateway.get(&format!("/view/{other}/picture/{picture}")).await.0, 404);
    assert_eq!(gateway.get(&format!("/v1/sessions/{session}")).await.0, 401, "native surfaces ask for a key");
    gateway.stop().await;
}

#[tokio::test]
async fn the_page_counts_as_looking_while_it_says_so_and_proves_what_it_has() {
    let (gateway, mut runtime, session) = closed(calm(Duration::from_secs(5), Duration::from_secs(5))).await;
    let own = gateway.url.clone();
    let since = gateway.get(&format!("/view/{session}/state")).await.1["since"].as_str().unwrap().to_owned();
    let (mut stream, subscriber) = Stream::open(&gateway, &format!("/view/{session}/events?since={since}")).await;
    stream.until("event: live").await;
    let watchers = || async {
        let request = gateway.http.get(format!("{own}/v1/sessions/{session}/watchers")).bearer_auth("key-reader");
        gateway.request(request).await.1["watchers"][0].clone()
    };
    assert_eq!(watchers().await["counts"], false, "a stream alone is nobody");
    let asked = runtime.ask(&session, "g", json!({})).await;
    stream.until("event: guardrail_trigger").await;

    let path = format!("/view/{session}/alive");
    let words = json!({ "subscriber": subscriber, "position": asked, "attention": "active" });
    let (status, answer) = say(&gateway, Some(&own), &path, &words).await;
    assert_eq!((status, &answer["able"]), (200, &json!(true)), "{answer}");
    wait_until("the page counts and has proved the question", || async {
        let watcher = watchers().await;
        watcher["counts"] == true && watcher["proved"] == json!(asked)
    })
    .await;
    let idle = json!({ "subscriber": subscriber, "attention": "idle" });
    assert_eq!(say(&gateway, Some(&own), &path, &idle).await.0, 200);
    wait_until("the page no longer counts", || async { watchers().await["counts"] == false }).await;

    let (other, _) = runtime.open(OpenSession::default()).await;
    let (status, refusal) = say(&gateway, Some(&own), &format!("/view/{other}/alive"), &words).await;
    assert_eq!((status, &refusal["error"]), (404, &json!("unknown_subscriber")), "not for another session's stream");
    gateway.stop().await;
}

#[tokio::test]
async fn an_answer_is_taken_from_the_page_itself_alone() {
    let (gateway, mut runtime, session) = closed(quick()).await;
    runtime.ask(&session, "g", json!({ "choices": [{ "id": "yes", "label": "Yes" }] })).await;
    let path = format!("/view/{session}/answer");
    let answer = json!({ "guardrail": "g", "revision": 1, "idempotencyKey": "k", "action": "submit", "choice": "yes" });
    let elsewhere = gateway.url.replace("127.0.0.1", "localhost");
    for origin in [None, Some("null"), Some("https://evil.example"), Some(&*elsewhere), Some("http://127.0.0.1")] {
        let (status, refusal) = say(&gateway, origin, &path, &answer).await;
        assert_eq!((status, &refusal["error"]), (403, &json!("origin_refused")), "{origin:?}");
    }
    let own = gateway.url.clone();
    let wrong = format!("/view/{}/answer", "a".repeat(20));
    assert_eq!(say(&gateway, Some(&own), &wrong, &answer).await.0, 404);
    let (status, answered) = say(&gateway, Some(&own), &path, &answer).await;
    assert_eq!((status, &answered["guardrail"]["resolution"]["via"]), (200, &json!("view")), "{answered}");
    assert_eq!(runtime.outcome().await.choice.as_deref(), Some("yes"));
    let late = json!({ "guardrail": "g", "revision": 1, "idempotencyKey": "l", "action": "submit", "choice": "yes" });
    let (status, refusal) = say(&gateway, Some(&own), &path, &late).await;
    assert_eq!((status, &refusal["error"]), (409, &json!("already_answered")));
    gateway.stop().await;
}

#[tokio::test]
async fn where_a_key_is_asked_for_the_id_alone_opens_a_page_that_says_so() {
    let mut config = quick();
    config.webrun.require_key = true;
    let (gateway, _runtime, session) = closed(config).await;
    for id in [session.clone(), "a".repeat(20)] {
        let response = gateway.http.get(format!("{}/view/{id}", gateway.url)).send().await.unwrap();
        assert_eq!(response.status(), 401, "the same for sessions that are there and for others");
        assert!(response.text().await.unwrap().contains("A key is needed"));
        for path in ["state", "events", "picture/x"] {
            assert_eq!(gateway.get(&format!("/view/{id}/{path}")).await.0, 401, "{path}");
        }
    }
    let own = gateway.url.clone();
    let answer = json!({ "guardrail": "g", "revision": 1, "idempotencyKey": "k", "action": "decline" });
    assert_eq!(say(&gateway, Some(&own), &format!("/view/{session}/answer"), &answer).await.0, 401);
    let request = gateway.http.get(format!("{own}/view/{session}/state")).bearer_auth("key-reader");
    assert_eq!(gateway.request(request).await.0, 200);
    gateway.stop().await;
}

// --- a real browser --------------------------------------------------------------------------------------------------

async fn is_looking(gateway: &TestGateway, session: &str) -> bool {
    let (_, body) = gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
    body["watchers"].as_array().unwrap().iter().any(|watcher| watcher["counts"] == true && watcher["via"] == "sse")
}

/// A picture of one blue pixel, and so a real one.
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPj/HwADBwIAMCbHYQAAAABJRU5ErkJggg==";

#[tokio::test]
async fn a_person_at_the_framed_view_counts_and_answers() {
    use base64::Engine;

    let Some(browser) = Chromium::shared() else { return };
    let mut config = quick();
    let defaults = Config::default().times;
    config.times.live_window = defaults.live_window;
    config.times.attention_lease = defaults.attention_lease;
    // The runtime answers pings only while it is waited for.
    config.times.ping_every = Duration::from_secs(8);
    let gateway = TestGateway::with(config).await;
    let mut runtime = gateway.runtime().await;
    let named = OpenSession { external_id: Some("order 42".to_owned()), ..OpenSession::default() };
    let (session, _) = runtime.open(named).await;
    let host = FramingPage::start(&format!("{}/view/{session}", gateway.url)).await;
    let mut page = browser.page(&host.url).await;
    // The frame is another origin's, so that it is looked at through its own page.
    let mut view = browser.page(&format!("{}/view/{session}", gateway.url)).await;
    live(&mut view).await;
    live_in_frame(&mut page, &gateway, &session).await;

    runtime.publish(&session, "agent", json!({ "content": "Looking for lamps" })).await;
    runtime.publish_picture(&session, &base64::prelude::BASE64_STANDARD.decode(PIXEL).unwrap()).await;
    view.wait_for("document.querySelector('#events').textContent.includes('Looking for lamps')").await;
    view.wait_for("document.querySelector('#picture').naturalWidth === 1").await;
    view.move_mouse(200.0, 30.0).await;
    view.move_mouse(210.0, 35.0).await;
    wait_until("the view counts", || is_looking(&gateway, &session)).await;

    let fields = json!([
        { "id": "email", "label": "E-mail", "type": "email", "secret": false }, { "id": "password", "type": "password" },
    ]);
    let more = json!({ "kind": "login", "domain": "shop.example", "value": "Please sign in", "fields": fields });
    runtime.ask(&session, "sign-in", more).await;
    view.wait_for("document.querySelector('.card h4')?.textContent === 'Please sign in'").await;
    view.wait_for("document.title.startsWith('(1)')").await;
    let phone = json!({ "width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true });
    view.call("Emulation.setDeviceMetricsOverride", phone).await;
    view.wait_for("document.querySelector('.card button[type=submit]').getClientRects().length").await;
    view.wait_for("document.documentElement.scrollWidth <= 390 && innerWidth === 390").await;
    view.keep_picture("view", (390, 844)).await;
    view.keep_picture("view", (1024, 600)).await;
    view.call("Emulation.clearDeviceMetricsOverride", json!({})).await;
    page.keep_picture("view-framed", (1280, 800)).await;
    view.click("document.querySelectorAll('.card input')[0]").await;
    view.type_text("ada@shop.example").await;
    view.click("document.querySelectorAll('.card input')[1]").await;
    view.type_text("Tr0ub4dor").await;
    view.click("document.querySelector('.card button[type=submit]')").await;
    let outcome = runtime.outcome().await;
    assert_eq!((&*outcome.values["email"], &*outcome.values["password"]), ("ada@shop.example", "Tr0ub4dor"));
    view.wait_for("!document.querySelector('.card')").await;
    view.wait_for("document.querySelector('.closed')?.textContent.includes('on its way to the agent')").await;
    assert_eq!(view.evaluate("document.documentElement.outerHTML.includes('Tr0ub4dor')").await, false);
    view.cover().await;
    wait_until("a hidden view no longer counts", || async { !is_looking(&gateway, &session).await }).await;
    gateway.stop().await;
}

async fn live(page: &mut Page) {
    page.wait_for("document.querySelector('#connection')?.dataset.state === 'live'").await;
    page.wait_for("document.querySelector('#session-name').textContent === 'order 42'").await;
}

/// The frame's stream is there beside the view's own.
async fn live_in_frame(page: &mut Page, gateway: &TestGateway, session: &str) {
    page.wait_for("document.querySelector('iframe').contentDocument === null").await;
    wait_until("the frame follows too", || async {
        let (_, body) = gateway.get(&format!("/v1/sessions/{session}/watchers")).await;
        body["watchers"].as_array().unwrap().len() == 2
    })
    .await;
}

/// Somebody else's page with the view in a frame.
struct FramingPage {
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl FramingPage {
    async fn start(view: &str) -> Self {
        let html = format!(
            "<!doctype html><title>Elsewhere</title><body style='margin:20px'><iframe src='{view}' \
             style='width:1024px;height:600px;border:1px solid'></iframe>"
        );
        let router = axum::Router::new()
            .route("/", axum::routing::get(move || std::future::ready(axum::response::Html(html.clone()))));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, server }
    }
}

impl Drop for FramingPage {
    fn drop(&mut self) {
        self.server.abort();
    }
}
