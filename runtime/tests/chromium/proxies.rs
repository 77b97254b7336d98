//! Sessions that ask for a proxy get it, or nothing.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::{house::House, script::Stage};

type Seen = Arc<Mutex<Vec<(String, Option<String>, bool)>>>;

/// A proxy that serves every site itself, to whoever logs in. It keeps each request's address, its login at the proxy,
/// and whether the site was given one.
async fn proxy() -> (u16, Seen, AbortOnDropHandle<()>) {
    let seen = Seen::default();
    let router = Router::new().fallback(serve).with_state(Arc::clone(&seen));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (port, seen, AbortOnDropHandle::new(server))
}

async fn serve(State(seen): State<Seen>, request: Request<Body>) -> Response {
    let login = request.headers().get(header::PROXY_AUTHORIZATION).map(|login| login.to_str().unwrap().to_owned());
    let told_site = request.headers().contains_key(header::AUTHORIZATION);
    seen.lock().unwrap().push((request.uri().to_string(), login.clone(), told_site));
    match (login.as_deref(), request.uri().path()) {
        // base64 of user:pass word
        (Some("Basic dXNlcjpwYXNzIHdvcmQ="), "/") => {
            Html("<title>Through the proxy</title><img src='/closed.png'><script src='/closed.js'></script>")
                .into_response()
        }
        (Some("Basic dXNlcjpwYXNzIHdvcmQ="), _) => {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=\"site\"")]).into_response()
        }
        _ => {
            let challenge = [(header::PROXY_AUTHENTICATE, "Basic realm=\"proxy\"")];
            (StatusCode::PROXY_AUTHENTICATION_REQUIRED, challenge).into_response()
        }
    }
}

async fn result(house: &House, session: &str) -> Value {
    let path = format!("/v1/sessions/{session}");
    let look = || async {
        let mut found = house.get(&path).await;
        let task = found["state"]["tasks"][0].take();
        task["result"].is_object().then_some(task)
    };
    house.until("the task is over", look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_a_proxy_goes_through_it_and_no_site_gets_its_password() {
    let Some(stage) = Stage::set().await else { return };
    let house = House::of(stage).await;
    let (port, seen, _server) = proxy().await;
    let proxy = json!({
        "source": "custom", "type": "http", "host": "127.0.0.1", "port": port.to_string(),
        "username": "user", "password": "pass word",
    });
    let task = json!({"prompt": "look", "startingUrl": "http://site.example/"});
    let session = house.start(&json!({"parameters": {"proxy": proxy}, "task": task})).await;
    let task = result(&house, &session).await;
    assert!(task["result"]["message"].to_string().contains("Through the proxy"), "{task}");
    let seen = seen.lock().unwrap().clone();
    assert!(seen.iter().any(|(url, _, _)| url == "http://site.example/closed.js"), "{seen:?}");
    assert!(seen.iter().all(|(_, _, told_site)| !told_site), "a site was given a login: {seen:?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_the_proxy_that_it_asks_for_fails_and_loads_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let house = House::of(stage).await;
    for (proxy, code) in [
        (json!({"source": "WebRun", "country": "DE"}), "PROXY_UNAVAILABLE"),
        (
            json!({"source": "custom", "type": "socks", "host": "a.example", "port": 1, "username": "u"}),
            "INVALID_PROXY",
        ),
    ] {
        let session = house.start(&json!({"parameters": {"proxy": proxy}, "task": {"prompt": "a mug"}})).await;
        let task = result(&house, &session).await;
        assert_eq!((&task["status"], &task["result"]["code"]), (&json!("failed"), &json!(code)), "{task}");
        assert_eq!(house.events(&session, "action,screenshot").await, [] as [Value; 0]);
    }
    let wanted = json!({"task": {"prompt": "look", "startingUrl": "file:///etc/hostname"}});
    let session = house.start(&wanted).await;
    assert_eq!(result(&house, &session).await["result"]["code"], "INVALID_STARTING_URL");
    house.close().await;
}
