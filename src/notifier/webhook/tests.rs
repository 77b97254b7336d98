use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode as Status},
    response::IntoResponse,
    routing::post,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;

/// From the test suites of the Standard Webhooks reference libraries.
const VECTOR_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

type Seen = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

struct Receiver {
    at: SocketAddr,
    seen: Seen,
    task: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn receiver<R: IntoResponse + Clone + Send + Sync + 'static>(answer: R) -> Receiver {
    let seen = Seen::default();
    let kept = Arc::clone(&seen);
    let take = move |headers: HeaderMap, body: Bytes| async move {
        kept.lock().unwrap().push((headers, body));
        answer
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let router = Router::new().route("/hook", post(take));
    Receiver { at, seen, task: tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }) }
}

/// Takes one connection, reads the request's beginning, and does something with the connection.
async fn raw<F, Fut>(then: F) -> SocketAddr
where
    F: FnOnce(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 1024];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        then(stream).await;
    });
    at
}

fn webhook(url: &str, secrets: &[&str]) -> Webhook {
    // The second installation in a process fails, and that is fine.
    let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
    let secrets = secrets.iter().map(|text| SigningSecret::parse(text).unwrap()).collect();
    Webhook::new(url.parse().unwrap(), secrets, Duration::from_millis(800)).unwrap()
}

fn message() -> Message {
    let body = json!({"type": "guardrail.opened", "id": "01a", "why": "nobody looks"}).to_string();
    Message { id: "01a".to_owned(), body: body.into(), repeat: false, ..Message::default() }
}

async fn outcome_at(at: SocketAddr) -> Delivery {
    webhook(&format!("http://{at}/hook"), &[]).send(&message()).await
}

#[test]
fn the_signature_is_that_of_the_reference_libraries() {
    let secret = SigningSecret::parse(VECTOR_SECRET).unwrap();
    let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
    assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn secrets_of_another_form_or_length_are_refused_and_none_is_shown() {
    for bad in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_***", ""] {
        assert!(SigningSecret::parse(bad).is_err(), "{bad}");
    }
    assert!(SigningSecret::parse(OTHER_SECRET.trim_end_matches('=')).is_ok());
    let webhook = webhook("https://someone:hunter2@example.org/T0/secret-path", &[VECTOR_SECRET]);
    let shown = format!("{webhook:?} {:?}", webhook.secrets[0]);
    for hidden in ["someone", "hunter2", "secret-path", "MfKQ"] {
        assert!(!shown.contains(hidden), "{shown}");
    }
}

#[test]
fn only_http_urls_are_webhooks() {
    for bad in ["ftp://example.org/", "mailto:a@example.org"] {
        assert!(matches!(Webhook::new(bad.parse().unwrap(), vec![], CONNECT_TIMEOUT), Err(WebhookError::Url)));
    }
}

#[tokio::test]
async fn a_taken_notice_carries_the_specified_headers_and_every_signature() {
    let receiver = receiver(Status::NO_CONTENT).await;
    let webhook = webhook(&format!("http://us%40er:pa%3Ass@{}/hook", receiver.at), &[VECTOR_SECRET, OTHER_SECRET]);
    assert_eq!(webhook.send(&message()).await, Delivery::Confirmed);

    let (headers, body) = receiver.seen.lock().unwrap().pop().unwrap();
    assert_eq!(body, message().body);
    let text = |name: &str| headers[name].to_str().unwrap();
    assert_eq!(text("content-type"), "application/json");
    assert_eq!(text("user-agent"), concat!("Onlooker/", env!("CARGO_PKG_VERSION")));
    assert_eq!(text("webhook-id"), "01a");
    assert_eq!(text("authorization"), format!("Basic {}", STANDARD.encode("us@er:pa:ss")));

    // HMAC written out (RFC 2104), so that it shares no code with what it checks.
    let timestamp: u64 = text("webhook-timestamp").parse().unwrap();
    let signed = [format!("01a.{timestamp}.").as_bytes(), &body].concat();
    let expected = [VECTOR_SECRET, OTHER_SECRET].map(|secret| {
        use sha2::Digest;
        let mut key = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
        key.resize(64, 0);
        let padded = |with: u8| key.iter().map(|byte| byte ^ with).collect::<Vec<_>>();
        let inner = Sha256::digest([padded(0x36), signed.clone()].concat());
        format!("v1,{}", STANDARD.encode(Sha256::digest([padded(0x5c), inner.to_vec()].concat())))
    });
    assert_eq!(text("webhook-signature"), expected.join(" "));
}

#[tokio::test]
async fn statuses_outside_2xx_are_refused_and_wishes_are_honoured() {
    let error = |status: u16| format!("the receiver answered HTTP {status}");
    for status in [Status::INTERNAL_SERVER_ERROR, Status::REQUEST_TIMEOUT, Status::TOO_EARLY] {
        let receiver = receiver(status).await;
        let refused = Delivery::Refused { error: error(status.as_u16()), retry_after: None };
        assert_eq!(outcome_at(receiver.at).await, refused);
    }
    for status in [Status::TOO_MANY_REQUESTS, Status::SERVICE_UNAVAILABLE] {
        let busy = receiver((status, [("retry-after", "7")])).await;
        let later = Delivery::Refused { error: error(status.as_u16()), retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(outcome_at(busy.at).await, later);
    }
}

#[tokio::test]
async fn what_will_not_pass_by_itself_is_rejected() {
    for status in
        [Status::GONE, Status::NOT_FOUND, Status::UNAUTHORIZED, Status::BAD_REQUEST, Status::MOVED_PERMANENTLY]
    {
        let receiver = receiver(status).await;
        let error = format!("the receiver answered HTTP {}", status.as_u16());
        assert_eq!(outcome_at(receiver.at).await, Delivery::Rejected { error });
    }
}

#[tokio::test]
async fn a_redirect_is_rejected_and_not_followed() {
    let elsewhere = receiver(Status::OK).await;
    let location = format!("http://{}/hook", elsewhere.at);
    let receiver = receiver((Status::TEMPORARY_REDIRECT, [("location", location)])).await;
    assert!(matches!(outcome_at(receiver.at).await, Delivery::Rejected { .. }));
    assert!(elsewhere.seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_fails_before_the_request_left_is_refused() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let no_tls =
        raw(|mut stream| async move { drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await) }).await;
    for url in [
        format!("http://{closed}/hook"),
        format!("https://{no_tls}/hook"),
        "http://no.such.host.invalid/hook".to_owned(),
    ] {
        let outcome = webhook(&url, &[]).send(&message()).await;
        let Delivery::Refused { error, .. } = outcome else { panic!("{url}: {outcome:?}") };
        assert!(!error.contains("/hook"), "{error}");
    }
}

#[tokio::test]
async fn what_breaks_after_the_request_may_have_left_is_unknown() {
    let broken = raw(|stream| async move { drop(stream) }).await;
    let silent = raw(|stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    });
    let half = raw(|mut stream| async move { drop(stream.write_all(b"HTTP/1.1 200 O").await) });
    for (what, at) in [("broken", broken), ("silent", silent.await), ("half", half.await)] {
        assert!(matches!(outcome_at(at).await, Delivery::Unknown { .. }), "{what}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off_and_counts_by_its_status() {
    let endless = raw(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(b"400\r\n").await;
            sent = sent.and(stream.write_all(&[b'x'; 0x400]).await).and(stream.write_all(b"\r\n").await);
        }
    });
    assert_eq!(outcome_at(endless.await).await, Delivery::Confirmed);
}

#[test]
fn a_wait_is_given_in_seconds_or_as_a_date() {
    let now = time::macros::datetime!(2015-10-21 07:28:00 UTC);
    assert_eq!(wait_from("120", now), Some(Duration::from_secs(120)));
    assert_eq!(wait_from("Wed, 21 Oct 2015 07:29:30 GMT", now), Some(Duration::from_secs(90)));
    assert_eq!(wait_from("Wed, 21 Oct 2015 07:00:00 GMT", now), Some(Duration::ZERO));
    assert_eq!(wait_from("soon", now), None);
}
