use std::{path::PathBuf, sync::atomic::AtomicUsize};

use axum::{
    Extension,
    body::Bytes,
    routing::{get, post},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::*;

const LARGE: usize = 64 * 1024 * 1024;

/// A listener on port 0 with short times, and its end.
struct Running {
    address: SocketAddr,
    counts: Arc<ListenerCounts>,
    shutdown: CancellationToken,
    task: JoinHandle<Drained>,
}

fn short() -> ListenerLimits {
    ListenerLimits {
        connections: 16,
        header_read: Duration::from_millis(300),
        body_read: Duration::from_millis(300),
        send_stall: Duration::from_secs(30),
        tls_handshake: Duration::from_millis(300),
        keep_alive: Duration::from_secs(60),
        drain: Duration::from_millis(300),
    }
}

async fn start(router: Router, limits: ListenerLimits, tls: Option<Arc<ServerConfig>>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (counts, shutdown) = (Arc::new(ListenerCounts::default()), CancellationToken::new());
    let task = tokio::spawn(serve(listener, tls, router, limits, counts.clone(), shutdown.clone()));
    Running { address, counts, shutdown, task }
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" })).route("/echo", post(|body: Bytes| async { body }))
}

/// Waits for a condition that must come; fails after five seconds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(5), "never came: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    // A reset is an end too.
    let _ = timeout(Duration::from_secs(5), stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        timeout(Duration::from_secs(5), stream.read_exact(&mut byte)).await.unwrap().unwrap();
        text.push(char::from(byte[0]));
    }
    text
}

#[tokio::test]
async fn a_client_that_sends_its_head_byte_by_byte_is_cut() {
    let running = start(hello(), short(), None).await;
    let mut client = TcpStream::connect(running.address).await.unwrap();
    let began = Instant::now();
    for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx-very-long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".iter().cycle() {
        if client.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() < Duration::from_secs(3), "still open");
    }
    until("the end", || running.counts.connections_closed.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_silent_client_is_cut_but_one_between_requests_may_wait_longer() {
    let running = start(hello(), short(), None).await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    let mut polite = TcpStream::connect(running.address).await.unwrap();
    polite.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut polite, "hello").await;
    assert_eq!(read_all(&mut silent).await, "");
    // Longer than the time for a head, which the silent one has just used up.
    tokio::time::sleep(Duration::from_millis(400)).await;
    polite.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut polite, "hello").await;
    // The second head's clock must run too.
    polite.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    assert_eq!(read_all(&mut polite).await, "");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_cut() {
    let running = start(hello(), short(), None).await;
    let mut client = TcpStream::connect(running.address).await.unwrap();
    client.write_all(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345").await.unwrap();
    let answer = read_all(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn over_the_limit_a_connection_gets_503_and_a_freed_place_is_used_again() {
    let running =
        start(hello(), ListenerLimits { connections: 1, header_read: Duration::from_secs(30), ..short() }, None).await;
    let first = TcpStream::connect(running.address).await.unwrap();
    until("the first", || running.counts.connections_opened.load(Ordering::Relaxed) == 1).await;
    let mut second = TcpStream::connect(running.address).await.unwrap();
    let answer = read_all(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"over_capacity\""), "{answer}");
    assert_eq!(running.counts.connections_refused.load(Ordering::Relaxed), 1);
    drop(first);
    until("the place", || running.counts.connections_closed.load(Ordering::Relaxed) == 1).await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    third.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    read_until(&mut third, "hello").await;
}

/// Answers with a body and reports whether its response was written: `true` called, `false` dropped uncalled.
fn proving(body: fn() -> Body) -> (Router, mpsc::UnboundedReceiver<bool>) {
    struct Report(mpsc::UnboundedSender<bool>, bool);
    impl Drop for Report {
        fn drop(&mut self) {
            let _ = self.0.send(self.1);
        }
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    let answer = move |Extension(written): Extension<Written>| async move {
        let report = Report(sender, false);
        written.after_response(Box::new(move || {
            let mut report = report;
            report.1 = true;
        }));
        body()
    };
    (Router::new().route("/", get(answer)), receiver)
}

async fn proof(receiver: &mut mpsc::UnboundedReceiver<bool>) -> bool {
    timeout(Duration::from_secs(5), receiver.recv()).await.expect("a report").unwrap()
}

fn unsized_body() -> Body {
    Body::from_stream(futures::stream::iter((0..64).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 64 * 1024])))))
}

#[tokio::test]
async fn a_response_that_was_read_fires_for_every_kind_of_body() {
    let bodies: [fn() -> Body; 4] =
        [|| Body::empty(), || Body::from("small"), || Body::from(vec![b'x'; LARGE]), unsized_body];
    for body in bodies {
        let (router, mut reports) = proving(body);
        let running = start(router, short(), None).await;
        let mut client = TcpStream::connect(running.address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(read_all(&mut client).await.starts_with("HTTP/1.1 200"));
        assert!(proof(&mut reports).await);
    }
}

#[tokio::test]
async fn a_client_that_goes_before_it_has_read_a_large_body_never_fires() {
    let bodies: [fn() -> Body; 2] = [|| Body::from(vec![b'x'; LARGE]), unsized_large];
    for body in bodies {
        let (router, mut reports) = proving(body);
        let running = start(router, short(), None).await;
        let mut client = TcpStream::connect(running.address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        assert!(reports.try_recv().is_err(), "nothing is decided while the body is on its way");
        drop(client);
        assert!(!proof(&mut reports).await);
    }
}

fn unsized_large() -> Body {
    Body::from_stream(futures::stream::iter((0..1024).map(|_| Ok::<_, Infallible>(Bytes::from(vec![b'x'; 64 * 1024])))))
}

#[tokio::test]
async fn a_head_request_proves_nothing_and_leaves_nothing_to_the_next_response() {
    let (router, mut reports) = proving(|| Body::from("text"));
    let running = start(router, short(), None).await;
    let mut client = TcpStream::connect(running.address).await.unwrap();
    client.write_all(b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(!proof(&mut reports).await);
    read_until(&mut client, "\r\n\r\n").await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(proof(&mut reports).await);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let (router, mut reports) = proving(|| Body::from(vec![b'x'; LARGE]));
    let limits = ListenerLimits { send_stall: Duration::from_millis(200), ..short() };
    let running = start(router, limits, None).await;
    let mut client = TcpStream::connect(running.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert!(!proof(&mut reports).await);
    until("the end", || running.counts.connections_closed.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_cuts_them_at_the_deadline() {
    let entered = Arc::new(AtomicUsize::new(0));
    let slow = |time: Duration, entered: Arc<AtomicUsize>| {
        get(move || async move {
            entered.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(time).await;
            "done"
        })
    };
    let router = Router::new()
        .route("/slow", slow(Duration::from_millis(150), entered.clone()))
        .route("/stuck", slow(Duration::from_secs(60), entered.clone()));
    let running = start(router, ListenerLimits { drain: Duration::from_secs(1), ..short() }, None).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut stuck = TcpStream::connect(running.address).await.unwrap();
    stuck.write_all(b"GET /stuck HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("both", || entered.load(Ordering::Relaxed) == 2).await;
    running.shutdown.cancel();
    assert!(read_all(&mut slow).await.ends_with("done"));
    assert_eq!(read_all(&mut stuck).await, "");
    assert_eq!(running.task.await.unwrap(), Drained { left: 1 });
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place_and_has_no_deadline_for_heads() {
    use axum::extract::ws::{Message, WebSocketUpgrade};
    let (sender, receiver) = oneshot::channel();
    let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
    let upgrade = move |upgrade: WebSocketUpgrade| async move {
        upgrade.on_upgrade(move |mut socket| async move {
            while let Some(Ok(Message::Text(text))) = socket.recv().await {
                let _ = socket.send(Message::Text(text)).await;
            }
            let _ = sender.lock().unwrap().take().unwrap().send(());
        })
    };
    let running = start(Router::new().route("/ws", get(upgrade)), short(), None).await;
    let (mut client, _) = tokio_tungstenite::connect_async(format!("ws://{}/ws", running.address)).await.unwrap();
    use futures::{SinkExt as _, StreamExt as _};
    for _ in 0..2 {
        client.send("hi".into()).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().to_text().unwrap(), "hi");
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(running.counts.connections_closed.load(Ordering::Relaxed), 0);
    drop(client);
    receiver.await.unwrap();
    until("the place", || running.counts.connections_closed.load(Ordering::Relaxed) == 1).await;
    running.shutdown.cancel();
    assert_eq!(running.task.await.unwrap(), Drained { left: 0 });
}

fn pem_files() -> (PathBuf, PathBuf, rustls::pki_types::CertificateDer<'static>) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let directory = std::env::temp_dir().join(format!("onlooker-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    std::fs::write(&certificate, cert.pem()).unwrap();
    std::fs::write(&key, signing_key.serialize_pem()).unwrap();
    (certificate, key, cert.der().clone())
}

#[tokio::test]
async fn tls_is_spoken_from_pem_files_and_wrong_files_are_named() {
    use crate::http::tls;
    let (certificate, key, der) = pem_files();
    let missing = certificate.with_file_name("missing.pem");
    for (certificate, key, message) in [
        (&missing, &key, "missing.pem"),
        (&certificate, &missing, "missing.pem"),
        (&key, &key, "certificate file"),
        (&certificate, &certificate, "key file"),
    ] {
        let error = tls::load(certificate, key).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let config = tls::load(&certificate, &key).unwrap();
    std::fs::remove_dir_all(certificate.parent().unwrap()).unwrap();

    let running = start(hello(), short(), Some(config)).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(running.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(read_until(&mut stream, "hello").await.starts_with("HTTP/1.1 200"));

    // One that never shakes hands gives its place back.
    let silent = TcpStream::connect(running.address).await.unwrap();
    until("the silent one's end", || running.counts.tls_failed.load(Ordering::Relaxed) == 1).await;
    drop(silent);
}

#[tokio::test]
async fn a_request_for_a_foreign_name_is_refused_with_a_typed_body() {
    use crate::{config::Listen, http::guard};
    let guard = Arc::new(guard::Guard::new(&Listen::default(), "127.0.0.1:1".parse().unwrap(), true));
    let router = hello().layer(axum::middleware::from_fn_with_state(guard, guard::check));
    let running = start(router, short(), None).await;
    let requests = [
        ("GET / HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n", "3013"),
        ("GET http://evil.example/ HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", "3013"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\nconnection: close\r\n\r\n", "3013"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\norigin: https://evil.example\r\nconnection: close\r\n\r\n", "3012"),
        ("GET / HTTP/1.1\r\nhost: localhost\r\norigin: http://localhost\r\nconnection: close\r\n\r\n", "hello"),
    ];
    for (request, wanted) in requests {
        let mut client = TcpStream::connect(running.address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_all(&mut client).await;
        assert!(answer.contains(wanted), "{request} got {answer}");
    }
}
