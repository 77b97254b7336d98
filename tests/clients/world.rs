//! A gateway and a runtime that does what the test says.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use onlooker::config::Config;
use onlooker_runtime::{Agent, Completed, Failed, Options, Task};
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::{TestGateway, quick, wait_until};

/// Windows of liveness as they are outside of tests: a busy machine is not somebody who has left.
pub fn ordinary() -> Config {
    let mut config = quick();
    let times = Config::default().times;
    config.times.ping_every = times.ping_every;
    config.times.live_window = times.live_window;
    // Clients that were killed are not waited for.
    config.times.drain = Duration::from_millis(100);
    config
}

/// As [`ordinary`], with another time for inline answers.
pub fn answering_within(wait: Duration) -> Config {
    let mut config = ordinary();
    config.webrun.inline_wait = wait;
    config
}

/// Long enough that nothing in a test outlasts it.
pub const LONG: Duration = Duration::from_secs(50);
/// Over before a runtime has done anything.
pub const SHORT: Duration = Duration::from_millis(20);

/// What an agent does with a task.
struct Work<F>(F);

impl<F, W> Agent for Work<F>
where
    F: Fn(Task) -> W + Send + Sync + 'static,
    W: Future<Output = Result<Completed, Failed>> + Send + 'static,
{
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>> {
        Box::pin((self.0)(task))
    }
}

/// A gateway with one runtime, which is the one that ships and works as the test says.
pub struct World {
    pub gateway: TestGateway,
    runtime: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl World {
    pub async fn start<F, W>(config: Config, work: F) -> Self
    where
        F: Fn(Task) -> W + Send + Sync + 'static,
        W: Future<Output = Result<Completed, Failed>> + Send + 'static,
    {
        Self::with_token(config, None, work).await
    }

    pub async fn with_token<F, W>(config: Config, token: Option<&str>, work: F) -> Self
    where
        F: Fn(Task) -> W + Send + Sync + 'static,
        W: Future<Output = Result<Completed, Failed>> + Send + 'static,
    {
        let gateway = TestGateway::with(config).await;
        let shutdown = CancellationToken::new();
        let options = Options {
            gateway: gateway.url.parse().unwrap(),
            token: token.map(str::to_owned),
            name: "clients".to_owned(),
            capacity: 100,
            labels: Map::new(),
        };
        let running = onlooker_runtime::run(options, Arc::new(Work(work)), shutdown.clone());
        let runtime = tokio::spawn(async move { running.await.expect("the runtime runs") });
        let world = Self { gateway, runtime, shutdown };
        world.has_room(token).await;
        world
    }

    pub fn url(&self) -> &str {
        &self.gateway.url
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.runtime.await.unwrap();
        self.gateway.stop().await;
    }

    /// Waits until a session can be begun.
    async fn has_room(&self, token: Option<&str>) {
        let begin = || async {
            let request = self.gateway.http.post(format!("{}/v1/sessions", self.url())).json(&json!({}));
            let request = token.iter().fold(request, |request, token| request.bearer_auth(token));
            let (status, created) = self.gateway.request(request).await;
            let Some(session) = created["session"].as_str() else {
                assert_eq!(status, 503, "{created}");
                return false;
            };
            let ended = self.gateway.http.delete(format!("{}/v1/sessions/{session}", self.url()));
            let ended = token.iter().fold(ended, |request, token| request.bearer_auth(token));
            self.gateway.request(ended).await;
            true
        };
        wait_until("the runtime is there", begin).await;
    }
}

/// A task that ended well, with what a result can have.
pub fn completed(message: impl Into<String>) -> Result<Completed, Failed> {
    let Value::Object(data) = json!({
        "usage": { "inputTokens": 12450, "outputTokens": 3200, "computeTime": 23.5, "cost": 0.0124 },
        "files": [{ "source": "https://example.com/report.zip", "downloadUrl": "https://example.com/report.zip",
                    "filename": "report.zip", "timestamp": 1_771_138_379_108_u64 }],
        "network": [],
    }) else {
        unreachable!("written as an object")
    };
    Ok(Completed { message: message.into(), data })
}

pub fn failed(error: &str, code: &str) -> Result<Completed, Failed> {
    Err(Failed { error: error.to_owned(), code: code.to_owned() })
}
