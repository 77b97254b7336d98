//! The page that takes what must not be typed into a chat.

use std::{sync::Arc, time::Duration};

use onlooker::{
    auth::SigningKey,
    engine::{Engine, RecordKey, RecordKind, memory::MemoryEngine},
    forms::{Forms, LIFE},
    gateway::bounds,
    ids::SessionId,
};
use onlooker_protocol::{runtime::OpenSession, view::Outcome};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::{
    harness::*,
    pages::chromium::{Chromium, Page},
    parley::*,
    secrecy::log,
};

const ANN: (&str, &str) = ("ann-chat", "ann");
const PASSWORD: &str = "Canary&<7 form=pass+word ü";

struct Scene {
    hall: Hall,
    engine: Arc<dyn Engine>,
    runtime: Runtime,
    session: String,
}

/// What came back, with its headers.
struct Got {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Scene {
    async fn begin() -> Self {
        Self::of(OpenSession { external_id: Some("order 42".to_owned()), ..OpenSession::default() }).await
    }

    async fn of(open: OpenSession) -> Self {
        let config = for_chats();
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new(bounds(&config)));
        let hall = Hall::on(config, Arc::clone(&engine), Arc::default()).await;
        hall.link(ANN, None).await;
        let mut runtime = hall.gateway.runtime().await;
        let (session, _) = runtime.open(open).await;
        Self { hall, engine, runtime, session }
    }

    /// Asks, and gives the path of the form that the chat was sent.
    async fn ask(&mut self, id: &str, more: Value) -> String {
        let before = self.hall.parley.in_chat("ann-chat").len();
        self.runtime.ask(&self.session, id, more).await;
        self.hall.told(&self.session, id).await;
        path(&self.hall.parley.newest("ann-chat", before + 1).await.form())
    }

    async fn login(&mut self, id: &str) -> String {
        self.ask(id, login()).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Got {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Got { status, headers, text: response.text().await.unwrap() }
    }

    async fn get(&self, path: &str) -> Got {
        self.send(self.client().get(format!("{}{path}", self.hall.gateway.url))).await
    }

    /// Does not follow redirects.
    fn client(&self) -> reqwest::Client {
        reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap()
    }

    fn posting(&self, path: &str, values: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(values).finish();
        let request = self.client().post(format!("{}{path}", self.hall.gateway.url)).body(body);
        request.header("content-type", "application/x-www-form-urlencoded")
    }

    /// Fills the form that is got there.
    async fn fill(&self, path: &str, values: &[(&str, &str)]) -> Got {
        let seal = seal(&self.get(path).await.text);
        let values: Vec<(&str, &str)> = values.iter().copied().chain([("seal", &*seal)]).collect();
        self.send(self.posting(path, &values)).await
    }

    async fn state(&self, id: &str) -> Value {
        self.hall.guardrail(&self.session, id).await["state"].clone()
    }
}

fn login() -> Value {
    json!({ "kind": "login", "value": "Log in to <the> shop", "domain": "shop.example", "websiteError": "Wrong password",
            "fields": [{ "id": "user", "label": "E-mail", "type": "email", "secret": false, "hint": "the shop's one" },
                       { "id": "password", "label": "Password", "type": "password" }] })
}

fn path(link: &str) -> String {
    link.strip_prefix("https://onlooker.example").unwrap().to_owned()
}

/// The value of an attribute in the tag that has this in it.
fn attribute(page: &str, tag: &str, name: &str) -> Option<String> {
    let tag = page.split('<').find(|part| part.contains(tag))?.split('>').next()?;
    Some(tag.split_once(&format!(" {name}=\""))?.1.split('"').next()?.to_owned())
}

fn seal(page: &str) -> String {
    attribute(page, "name=\"seal\"", "value").unwrap_or_else(|| panic!("no form: {page}"))
}

const FITTING: &[(&str, &str)] = &[("value-0", "a@b.example"), ("value-1", PASSWORD), ("action", "submit")];

#[track_caller]
fn assert_strict(got: &Got) {
    let header = |name: &str| got.headers[name].to_str().unwrap();
    assert_eq!(
        header("content-security-policy"),
        "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    assert_eq!((header("cache-control"), header("referrer-policy")), ("no-store", "no-referrer"));
    assert_eq!((header("x-content-type-options"), header("x-robots-tag")), ("nosniff", "noindex"));
    assert!(!got.headers.contains_key("set-cookie"));
}

#[tokio::test]
async fn getting_the_page_changes_nothing_and_it_names_the_site_and_the_session() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    for _ in 0..3 {
        let got = scene.get(&path).await;
        assert_eq!(got.status, 200);
        assert_strict(&got);
        for shown in ["shop.example", "order 42", "Log in to &lt;the&gt; shop", "Wrong password", "the shop&#39;s one"]
        {
            assert!(got.text.contains(shown), "{shown}: {}", got.text);
        }
        assert!(!got.text.contains(&scene.session) && !got.text.contains("<script"), "{}", got.text);
        assert_eq!(attribute(&got.text, "id=\"value-0\"", "autocomplete").as_deref(), Some("username"));
        assert_eq!(attribute(&got.text, "id=\"value-0\"", "inputmode").as_deref(), Some("email"));
        assert_eq!(attribute(&got.text, "id=\"value-1\"", "autocomplete").as_deref(), Some("current-password"));
        assert_eq!(attribute(&got.text, "id=\"value-1\"", "type").as_deref(), Some("password"));
    }
    let head = scene.send(scene.client().head(format!("{}{path}", scene.hall.gateway.url))).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_strict(&head);
    let style = scene.get("/form/static/form.css").await;
    assert_eq!((style.status, style.headers["content-type"].to_str().unwrap()), (200, "text/css; charset=utf-8"));
    // Behind a proxy the request has the public name.
    let public = scene.client().get(format!("{}{path}", scene.hall.gateway.url)).header("host", "onlooker.example");
    assert_eq!(scene.send(public).await.status, 200);
    assert_eq!(scene.state("g").await, "open");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_session_without_a_name_is_shown_by_a_part_of_its_id() {
    let mut scene = Scene::of(OpenSession::default()).await;
    let path = scene.login("g").await;
    let got = scene.get(&path).await;
    assert!(got.text.contains(&format!("{}…", &scene.session[..4])) && !got.text.contains(&scene.session[..8]));
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn the_first_answer_wins_the_same_again_succeeds_and_the_page_shows_the_outcome() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    let sealed = seal(&scene.get(&path).await.text);
    let with = |password| [("value-0", "a@b.example"), ("value-1", password), ("seal", &*sealed)];
    let (one, two) = (with("one-password"), with("two-password"));
    let (first, second) = tokio::join!(scene.send(scene.posting(&path, &one)), scene.send(scene.posting(&path, &two)));
    let outcome = scene.runtime.outcome().await;
    let (won, lost, winning) = match outcome.values["password"].as_str() {
        "one-password" => (first, second, one),
        _ => (second, first, two),
    };
    assert_eq!((won.status, won.headers["location"].to_str().unwrap()), (303, &*path));
    assert_strict(&won);
    assert_eq!(lost.status, 409);
    assert!(lost.text.contains("Answered by Ann (parley) (form). What you sent was not used."), "{}", lost.text);
    let again = scene.send(scene.posting(&path, &winning)).await;
    assert_eq!(again.status, 303);
    let shown = scene.get(&path).await;
    assert_eq!(shown.status, 200);
    assert!(shown.text.contains("Answered by Ann (parley) (form)") && !shown.text.contains("<form"), "{}", shown.text);
    let resolution = scene.hall.guardrail(&scene.session, "g").await["resolution"].clone();
    assert_eq!((&resolution["by"], &resolution["via"]), (&json!("Ann (parley)"), &json!("form")));
    assert_eq!(resolution["fields"], json!(["user", "password"]));
    let card = scene.hall.parley.in_chat("ann-chat")[0].id.clone();
    scene.hall.parley.reads(&card, "Answered by Ann (parley) (form)").await;
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_rejection_needs_no_field() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    assert_eq!(scene.fill(&path, &[("action", "decline")]).await.status, 303);
    assert_eq!(scene.runtime.outcome().await.outcome, Outcome::Declined);
    assert!(scene.get(&path).await.text.contains("Rejected by Ann (parley)"));
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn what_is_missing_is_said_beside_its_field_and_what_is_not_secret_is_kept() {
    let mut scene = Scene::begin().await;
    let mut asked = login();
    asked["choices"] = json!([{ "id": "a", "label": "Account A" }, { "id": "b", "label": "Account B" }]);
    asked["fields"][0]["required"] = json!(false);
    asked["fields"].as_array_mut().unwrap().push(json!({ "id": "pin", "secret": true }));
    let path = scene.ask("g", asked).await;
    let got = scene.fill(&path, &[("value-0", "a@\"b"), ("value-1", PASSWORD), ("value-2", " ")]).await;
    assert_eq!(got.status, 422);
    assert_strict(&got);
    assert_eq!(attribute(&got.text, "id=\"value-0\"", "value").as_deref(), Some("a@&quot;b"));
    assert!(!got.text.contains("Canary"), "{}", got.text);
    assert!(got.text.contains("id=\"value-2-error\"") && got.text.contains("id=\"choice-error\""), "{}", got.text);
    assert!(!got.text.contains("id=\"value-1-error\""), "it was there");
    assert_eq!(scene.state("g").await, "open");
    let got = scene.fill(&path, &[("value-1", PASSWORD), ("value-2", "77"), ("choice", "1")]).await;
    assert_eq!(got.status, 303, "{}", got.text);
    let outcome = scene.runtime.outcome().await;
    assert_eq!(outcome.choice.as_deref(), Some("b"));
    assert_eq!(
        outcome.values.into_iter().collect::<Vec<_>>(),
        [("password".to_owned(), PASSWORD.to_owned()), ("pin".to_owned(), "77".to_owned())]
    );
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn only_the_forms_own_page_is_heard() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    let other = scene.login("h").await;
    let right = seal(&scene.get(&path).await.text);
    let others = seal(&scene.get(&other).await.text);
    let with = |seal: &str| {
        let values: Vec<(&str, &str)> = FITTING.iter().copied().chain([("seal", seal)]).collect();
        scene.posting(&path, &values)
    };
    for (what, request, status) in [
        ("no seal", scene.posting(&path, FITTING), 403),
        ("another link's seal", with(&others), 403),
        ("another site", with(&right).header("sec-fetch-site", "cross-site").header("origin", "null"), 403),
        ("a neighbour", with(&right).header("sec-fetch-site", "same-site"), 403),
        ("another origin", with(&right).header("origin", "https://evil.example"), 403),
        ("JSON", with(&right).header("content-type", "application/json"), 415),
        ("too much", with(&right).body(format!("value-1={}", "x".repeat(70_000))), 413),
        ("another link", scene.posting(&format!("{path}A"), FITTING), 404),
    ] {
        let request = if what == "JSON" {
            let mut built = request.build().unwrap();
            built.headers_mut().insert("content-type", "application/json".parse().unwrap());
            reqwest::RequestBuilder::from_parts(scene.client(), built)
        } else {
            request
        };
        assert_eq!(scene.send(request).await.status, status, "{what}");
    }
    assert_eq!(scene.state("g").await, "open");
    let own = with(&right).header("sec-fetch-site", "same-origin").header("origin", "null");
    assert_eq!(scene.send(own).await.status, 303);
    let public = with(&right).header("origin", "https://onlooker.example").header("host", "onlooker.example");
    assert_eq!(scene.send(public).await.status, 303, "the same again, from behind a proxy");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn a_link_that_opens_nothing_says_why_and_what_to_do() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    let garbage = scene.get("/form/AAAA").await;
    assert_eq!(garbage.status, 404);
    assert_strict(&garbage);

    let key = RecordKey { kind: RecordKind::Gateway, session: SessionId::NONE, name: "signing-key".to_owned() };
    let (_, key) = scene.engine.get(key).await.unwrap().unwrap();
    let key = SigningKey::from_bytes(<[u8; 32]>::try_from(&*key).unwrap());
    let forms = Forms::new(key.derive("forms"), Some("https://onlooker.example/".parse().unwrap()));
    let notice = scene.hall.parley.in_chat("ann-chat")[0].notice.id.clone();
    let old = forms.link(&notice, OffsetDateTime::now_utc() - LIFE - Duration::from_secs(1)).unwrap().url;
    let old = self::path(&old);
    let expired = scene.get(&old).await;
    assert_eq!(expired.status, 410);
    assert!(expired.text.contains("too old") && expired.text.contains("New link"), "{}", expired.text);
    let seal = forms.seal(old.strip_prefix("/form/").unwrap());
    let values: Vec<(&str, &str)> = FITTING.iter().copied().chain([("seal", &*seal)]).collect();
    assert_eq!(scene.send(scene.posting(&old, &values)).await.status, 410);
    assert_eq!(scene.state("g").await, "open");

    let mut again = login();
    again["revision"] = json!(2);
    let newer = scene.ask("g", again).await;
    let superseded = scene.get(&path).await;
    assert_eq!(superseded.status, 410);
    assert!(superseded.text.contains("replaced by a newer one"), "{}", superseded.text);
    assert_eq!(scene.fill(&newer, &[("action", "decline")]).await.status, 303);
    assert!(scene.get(&old).await.text.contains("replaced"), "an old link to an old question");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn unlinking_shuts_the_form() {
    let mut scene = Scene::begin().await;
    let path = scene.login("g").await;
    let sealed = seal(&scene.get(&path).await.text);
    scene.hall.tell(ANN, "unlink").await;
    let got = scene.get(&path).await;
    assert_eq!(got.status, 403);
    assert!(got.text.contains("no longer linked") && !got.text.contains("shop.example"), "{}", got.text);
    let values: Vec<(&str, &str)> = FITTING.iter().copied().chain([("seal", &*sealed)]).collect();
    assert_eq!(scene.send(scene.posting(&path, &values)).await.status, 403);
    assert_eq!(scene.state("g").await, "open");
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn answers_are_limited_for_each_link() {
    let mut scene = Scene::begin().await;
    let (path, other) = (scene.login("g").await, scene.login("h").await);
    for _ in 0..10 {
        assert_eq!(scene.fill(&path, &[]).await.status, 422);
    }
    let got = scene.fill(&path, FITTING).await;
    assert_eq!(got.status, 429);
    assert!(got.headers.contains_key("retry-after"));
    assert_eq!(scene.fill(&other, FITTING).await.status, 303);
    scene.hall.gateway.stop().await;
}

#[tokio::test]
async fn what_is_typed_into_a_form_reaches_the_runtime_and_nothing_else() {
    let log = log();
    let folder = tempfile::tempdir().unwrap();
    let mut config = for_chats();
    config.data.ephemeral = false;
    config.data.dir = Some(folder.path().to_owned());
    let options = onlooker::engine::disk::DiskOptions {
        dir: folder.path().to_owned(),
        bounds: bounds(&config),
        durability: onlooker::config::Durability::Os,
    };
    let engine = Arc::new(onlooker::engine::disk::DiskEngine::open(options).unwrap());
    let hall = Hall::on(config, engine.clone(), Arc::default()).await;
    hall.link(ANN, None).await;
    let mut runtime = hall.gateway.runtime().await;
    let (session, _) = runtime.open(OpenSession::default()).await;
    let mut scene = Scene { hall, engine, runtime, session };
    let path = scene.login("g").await;
    let card = scene.hall.parley.in_chat("ann-chat")[0].clone();
    // Somebody who does not know better types it into the chat first.
    assert!(scene.hall.reply("ann", &card, PASSWORD).await.erase);
    let missing = scene.fill(&path, &[("value-1", PASSWORD)]).await;
    assert_eq!(missing.status, 422);
    let sent = scene.fill(&path, FITTING).await;
    assert_eq!(sent.status, 303, "{}", sent.text);
    let outcome = scene.runtime.outcome().await;
    assert_eq!(outcome.values["password"], PASSWORD);
    scene.runtime.publish(&scene.session, "guardrail_taken", json!({ "guardrailId": "g", "revision": 1 })).await;
    scene.runtime.publish(&scene.session, "agent", json!({ "content": format!("typed {PASSWORD}") })).await;
    scene.hall.parley.reads(&card.id, "Answered").await;
    let events = scene.hall.gateway.get(&format!("/v1/sessions/{}/events?since=start", scene.session)).await.1;
    assert!(events.to_string().contains("typed [redacted]"), "{events}");
    let shown = [
        events.to_string(),
        scene.hall.gateway.get("/v1/guardrails/g").await.1.to_string(),
        scene.hall.gateway.why(&scene.session, "g").await.to_string(),
        scene.hall.gateway.get("/metrics").await.1.to_string(),
        format!("{:?}", scene.hall.parley.all()),
        scene.get(&path).await.text,
        missing.text,
    ];
    scene.hall.gateway.stop().await;
    let log = String::from_utf8_lossy(&log.lock().unwrap()).into_owned();
    assert!(log.contains("notice attempted"), "the log is there");
    for (nth, text) in shown.iter().chain([&log]).enumerate() {
        assert!(!text.contains("Canary&"), "place {nth} shows it: {text}");
    }
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(8).any(|part| part == b"Canary&<" || part == b"Canary%2");
            assert!(!found, "{} holds it", path.display());
            files += 1;
        }
    }
    assert!(files > 0, "something is on the disk");
}

/// A phone as small as they are.
async fn phone(page: &mut Page) {
    let screen = json!({ "width": 320, "height": 568, "deviceScaleFactor": 2, "mobile": true });
    page.call("Emulation.setDeviceMetricsOverride", screen).await;
    page.call("Emulation.setTouchEmulationEnabled", json!({ "enabled": true })).await;
}

#[tokio::test]
async fn a_real_browser_on_a_small_phone_can_fill_the_form() {
    let Some(browser) = Chromium::shared() else { return };
    let mut scene = Scene::begin().await;
    let mut asked = login();
    asked["value"] = json!(format!("Log in. {}", "A_very_long_word_without_any_space".repeat(8)));
    asked["choices"] = json!([{ "id": "a", "label": "Account A" }, { "id": "b", "label": "Account B" }]);
    let path = scene.ask("g", asked).await;
    let mut page = browser.page("about:blank").await;
    phone(&mut page).await;
    page.call("Page.navigate", json!({ "url": format!("{}{path}", scene.hall.gateway.url) })).await;
    page.wait_for("document.readyState === 'complete' && document.querySelector('form')").await;
    // The style came, nothing is wider than the screen, and what is tapped is large enough.
    let fits = "document.documentElement.scrollWidth <= 320 && getComputedStyle(document.querySelector('main')).display === 'grid'";
    assert_eq!(page.evaluate(fits).await, true);
    let small = "[...document.querySelectorAll('button, .choice, input:not([type=hidden]):not([type=radio])')]\
                 .filter((e) => e.getBoundingClientRect().height < 44).length";
    assert_eq!(page.evaluate(small).await, 0);
    page.keep_picture("form", (320, 568)).await;

    // The browser itself asks for what is missing.
    page.click("document.querySelector('.choice:nth-of-type(2)')").await;
    page.click("document.querySelector('button.primary')").await;
    page.wait_for("document.activeElement.id === 'value-0'").await;
    page.type_text("a@b.example").await;
    page.click("document.querySelector('#value-1')").await;
    page.type_text("a pass word").await;
    page.click("document.querySelector('button.primary')").await;
    page.wait_for("document.readyState === 'complete' && document.body.innerText.includes('Answered by Ann')").await;
    let outcome = scene.runtime.outcome().await;
    assert_eq!((outcome.choice.as_deref(), outcome.values["password"].as_str()), (Some("b"), "a pass word"));
    page.keep_picture("form-answered", (320, 568)).await;
    page.close().await;
    scene.hall.gateway.stop().await;
}
