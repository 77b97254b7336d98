use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use futures::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::*;

const BOUND: Duration = Duration::from_secs(20);

/// Sessions whose webhooks all go to one place.
struct Sessions {
    url: url::Url,
    done: Mutex<Vec<String>>,
    changed: Notify,
}

impl Sessions {
    fn new(url: &str) -> Arc<Self> {
        Arc::new(Self { url: url.parse().unwrap(), done: Mutex::default(), changed: Notify::new() })
    }

    async fn until_done(&self, count: usize) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if self.done.lock().unwrap().len() >= count {
                    return;
                }
                changed.await;
            }
        };
        timeout(BOUND, waiting).await.expect("they are carried");
    }
}

impl Owners for Sessions {
    fn begin<'a>(&'a self, _: &'a Due) -> BoxFuture<'a, Option<Post>> {
        let post = Post { url: self.url.clone(), authorization: None, body: b"{}".to_vec() };
        std::future::ready(Some(post)).boxed()
    }

    fn done<'a>(&'a self, due: &'a Due) -> BoxFuture<'a, ()> {
        self.done.lock().unwrap().push(due.task.clone());
        self.changed.notify_waiters();
        std::future::ready(()).boxed()
    }
}

struct Running {
    webhooks: TaskWebhooks,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    carrier: tokio::task::JoinHandle<()>,
}

fn run(options: CarrierOptions, sessions: &Arc<Sessions>) -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = Arc::new(Metrics::new());
    let (webhooks, carrier) = TaskWebhooks::new(options, Arc::clone(&metrics)).unwrap();
    let stop = CancellationToken::new();
    let carrier = tokio::spawn(carrier.run(Arc::clone(sessions) as Arc<dyn Owners>, stop.clone()));
    Running { webhooks, metrics, stop, carrier }
}

impl Running {
    fn offer(&self, task: &str) -> bool {
        self.webhooks.offer(Due { session: SessionId::random(), task: task.to_owned() })
    }

    fn count(&self, outcome: &str) -> bool {
        self.metrics.text(Default::default()).contains(&format!("task_webhooks_total{{outcome=\"{outcome}\"}} 1\n"))
    }
}

fn options(timeout: Duration) -> CarrierOptions {
    CarrierOptions { private: true, timeout }
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_has_its_time_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sessions = Sessions::new(&format!("http://{}/", listener.local_addr().unwrap()));
    let running = run(options(Duration::from_millis(200)), &sessions);
    assert!(running.offer("t"));
    sessions.until_done(1).await;
    assert!(running.count("timed_out"));
    assert_eq!(CarrierOptions::new(false).timeout, Duration::from_secs(30));
}

#[tokio::test]
async fn a_receiver_that_is_not_there_is_tried_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sessions = Sessions::new(&format!("http://{}/", listener.local_addr().unwrap()));
    drop(listener);
    let running = run(options(BOUND), &sessions);
    assert!(running.offer("t"));
    sessions.until_done(1).await;
    assert!(running.count("failed"));
}

#[tokio::test]
async fn so_many_at_once_and_the_rest_waits_and_a_stop_waits_for_what_has_begun() {
    const OFFERED: usize = AT_ONCE + 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sessions = Sessions::new(&format!("http://{}/", listener.local_addr().unwrap()));
    let (open, most, answers) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (now_open, at_most, may_answer) = (Arc::clone(&open), Arc::clone(&most), Arc::clone(&answers));
    let receiver = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            at_most.fetch_max(now_open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let (now_open, may_answer) = (Arc::clone(&now_open), Arc::clone(&may_answer));
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                may_answer.acquire().await.unwrap().forget();
                now_open.fetch_sub(1, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            });
        }
    });
    let running = run(options(BOUND), &sessions);
    for n in 0..OFFERED {
        assert!(running.offer(&n.to_string()));
    }
    let full = async {
        while open.load(Ordering::SeqCst) < AT_ONCE {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, full).await.expect("all places are taken");
    answers.add_permits(10);
    sessions.until_done(10).await;
    let full_again = async {
        while open.load(Ordering::SeqCst) < AT_ONCE {
            tokio::task::yield_now().await;
        }
    };
    timeout(BOUND, full_again).await.expect("who waited has their places");
    assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);

    running.stop.cancel();
    assert!(!running.carrier.is_finished());
    answers.add_permits(OFFERED);
    timeout(BOUND, running.carrier).await.expect("it ends").unwrap();
    assert_eq!(sessions.done.lock().unwrap().len(), AT_ONCE + 10, "what had not begun is left to the next process");
    receiver.abort();
}

#[tokio::test]
async fn a_queue_without_room_says_so() {
    let (webhooks, _carrier) = {
        let _ = rustls::crypto::ring::default_provider().install_default();
        TaskWebhooks::new(options(BOUND), Arc::default()).unwrap()
    };
    let due = || Due { session: SessionId::NONE, task: "t".to_owned() };
    assert!((0..QUEUE).all(|_| webhooks.offer(due())));
    assert!(!webhooks.offer(due()));
}
