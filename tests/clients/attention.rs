//! A connected client is somebody who looks, until its code no longer runs or nothing of it arrives: measured on real
//! processes.

use std::time::{Duration, Instant};

use onlooker::config::{Config, key::Scope};
use onlooker_protocol::runtime::OpenSession;
use rustix::process::Signal;
use serde_json::json;

use crate::{
    harness::*,
    namespace::Namespace,
    program::{Program, Start},
    tunnel::{Tunnel, Weather},
};

/// Parts of reasons.
const COVERED: &str = "has demonstrably got the question";
const GRACE: &str = "may be back in seconds";

/// Windows that are short, but longer than a busy machine keeps a process waiting.
fn watchful() -> Config {
    let mut config = quick();
    config.times.ping_every = Duration::from_millis(500);
    config.times.live_window = Duration::from_secs(3);
    // What the command line renews every 10 s.
    config.times.attention_lease = Config::default().times.attention_lease;
    config.times.grace = Duration::from_secs(1);
    config.times.first_look = Duration::from_secs(2);
    config.times.drain = Duration::from_millis(100);
    config
}

/// A client that does nothing but look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// npm's `socket.io-client`, by its transports.
    SocketIo(&'static str),
    /// `onlooker watch --attend`.
    Native,
}

const CLIENTS: [Client; 4] =
    [Client::SocketIo("websocket"), Client::SocketIo("upgrade"), Client::SocketIo("polling"), Client::Native];

impl Client {
    fn start(self, url: &str, session: &str) -> Start {
        match self {
            Self::SocketIo(mode) => {
                let start = Start::node("socket/watch.mjs").with("CLIENT", "socket.io-client");
                start.with("MODE", mode).with("SESSION_ID", session).with("BASE_URL", url)
            }
            Self::Native => {
                let words = ["watch", session, "--attend", "--json", "--gateway", url];
                Start::onlooker(&words).with("ONLOOKER_TOKEN", "key-ada")
            }
        }
    }

    async fn is_connected(self, program: &mut Program) {
        match self {
            Self::SocketIo(_) => drop(program.says("connected").await),
            Self::Native => drop(program.until("live", |line| line["type"] == "live").await),
        }
    }

    async fn is_asked(self, program: &mut Program) {
        match self {
            Self::SocketIo(_) => drop(program.says("asked").await),
            Self::Native => {
                program.until("the question", |line| line["event"]["type"] == "guardrail_trigger").await;
            }
        }
    }
}

/// A client of the gateway at `url`, which has a question and covers it.
struct Scene {
    gateway: TestGateway,
    receiver: Receiver,
    runtime: Runtime,
    session: String,
    program: Program,
}

impl Scene {
    /// `reach` says where the client reaches the gateway, and how it is started there.
    async fn begin(client: Client, config: Config, reach: impl AsyncFnOnce(&str) -> String) -> Self {
        Self::within(client, config, reach, |start| start).await
    }

    async fn within(
        client: Client,
        config: Config,
        reach: impl AsyncFnOnce(&str) -> String,
        place: impl FnOnce(Start) -> Start,
    ) -> Self {
        let receiver = Receiver::start().await;
        let has_keys = !config.keys.is_empty();
        let gateway = TestGateway::with(with_webhook(config, &receiver)).await;
        let key = has_keys.then_some("key-runtime");
        let mut runtime = Runtime::connect(&gateway, "runtime", 10, key).await;
        let (session, _) = runtime.open(OpenSession::default()).await;
        let url = reach(&gateway.url).await;
        let mut program = place(client.start(&url, &session)).run();
        meanwhile(&mut runtime, client.is_connected(&mut program)).await;
        runtime.ask(&session, "g", json!({})).await;
        meanwhile(&mut runtime, client.is_asked(&mut program)).await;
        let mut scene = Self { gateway, receiver, runtime, session, program };
        scene.wait_why(COVERED).await;
        scene
    }

    async fn why(gateway: &TestGateway, session: &str) -> Vec<String> {
        let request = gateway.http.get(format!("{}/v1/guardrails/g/why?session={session}", gateway.url));
        let (_, why) = gateway.request(request.bearer_auth("key-ada")).await;
        let decisions = why["decisions"].as_array().cloned().unwrap_or_default();
        decisions.iter().map(|decision| decision["why"].as_str().unwrap().to_owned()).collect()
    }

    async fn wait_why(&mut self, part: &str) {
        let Self { gateway, session, runtime, .. } = self;
        let says = || async { Self::why(gateway, session).await.last().is_some_and(|last| last.contains(part)) };
        meanwhile(runtime, wait_until(&format!("why says “{part}”"), says)).await;
    }

    /// Somebody else is told, once, and not before the grace was over.
    async fn somebody_is_told_once(&mut self, client: Client, what: &str) {
        let gone = Instant::now();
        meanwhile(&mut self.runtime, self.receiver.wait_for("guardrail.opened", 1)).await;
        let took = gone.elapsed();
        println!("{client:?}, {what}: told after {took:.2?}");
        assert!(took >= watchful().times.grace, "{client:?}: {took:?}");
        let why = Self::why(&self.gateway, &self.session).await;
        assert!(why.iter().any(|why| why.contains(GRACE)), "{client:?}: {why:?}");
    }

    async fn is_answered(&mut self) {
        let body = json!({
            "session": self.session, "revision": 1, "idempotencyKey": "k", "action": "submit", "text": "yes"
        });
        let request = self.gateway.http.post(format!("{}/v1/guardrails/g/answer", self.gateway.url));
        let (status, answered) = self.gateway.request(request.bearer_auth("key-ada").json(&body)).await;
        assert_eq!(status, 200, "{answered}");
        self.receiver.wait_for("guardrail.resolved", 1).await;
        assert_eq!(self.receiver.of("guardrail.opened").len(), 1);
    }

    async fn end(mut self) {
        self.is_answered().await;
        drop(self.program);
        self.gateway.stop().await;
    }
}

/// Waits for something and answers pings: a runtime that is silent for long is taken for dead.
async fn meanwhile<T>(runtime: &mut Runtime, something: impl Future<Output = T>) -> T {
    let mut something = std::pin::pin!(something);
    loop {
        tokio::select! {
            biased;
            done = something.as_mut() => return done,
            frame = runtime.receive() => drop(frame.expect("the connection stays")),
        }
    }
}

/// The same for several clients at once, each with a gateway of its own.
async fn each(clients: impl IntoIterator<Item = Client>, scene: impl AsyncFn(Client)) {
    futures::future::join_all(clients.into_iter().map(|client| Box::pin(scene(client)))).await;
}

async fn straight(url: &str) -> String {
    url.to_owned()
}

async fn a_client_is_believed_while_its_code_runs(client: Client) {
    let config = watchful();
    let window = config.times.live_window;
    let mut scene = Scene::begin(client, config, straight).await;
    // Nothing can be waited for here: for longer than any window nothing happens.
    meanwhile(&mut scene.runtime, tokio::time::sleep(window + Duration::from_secs(1))).await;
    assert_eq!(scene.receiver.got().len(), 0, "somebody was looking");
    // The process is there, and so is its connection: its kernel still acknowledges what comes.
    scene.program.signal(Signal::STOP);
    scene.somebody_is_told_once(client, "SIGSTOP").await;
    scene.program.signal(Signal::CONT);
    scene.end().await;
}

#[tokio::test]
async fn a_stopped_process_on_a_websocket_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(Client::SocketIo("websocket")).await;
}

#[tokio::test]
async fn a_stopped_process_that_was_upgraded_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(Client::SocketIo("upgrade")).await;
}

#[tokio::test]
async fn a_stopped_process_that_polls_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(Client::SocketIo("polling")).await;
}

#[tokio::test]
async fn a_stopped_process_of_the_command_line_is_nobody_who_looks() {
    a_client_is_believed_while_its_code_runs(Client::Native).await;
}

#[tokio::test]
async fn a_killed_process_leaves_its_grace_and_no_more() {
    each(CLIENTS, async |client| {
        let mut config = watchful();
        // Its kernel says so at once: no window is waited for.
        config.times.live_window = Duration::from_secs(30);
        let mut scene = Scene::begin(client, config, straight).await;
        scene.program.signal(Signal::KILL);
        scene.somebody_is_told_once(client, "SIGKILL").await;
        scene.end().await;
    })
    .await;
}

/// What npm's client says at its `disconnect()` is understood over every transport: nobody comes back.
#[tokio::test]
async fn a_client_that_disconnects_leaves_no_grace() {
    each(CLIENTS.into_iter().filter(|client| *client != Client::Native), async |client| {
        let mut config = watchful();
        config.times.grace = Duration::from_secs(60);
        let mut scene = Scene::begin(client, config, straight).await;
        scene.program.go_on().await;
        meanwhile(&mut scene.runtime, scene.program.says("left")).await;
        meanwhile(&mut scene.runtime, scene.receiver.wait_for("guardrail.opened", 1)).await;
        scene.end().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_is_half_open_behind_our_own_tunnel_is_nobody_who_looks() {
    each(CLIENTS, async |client| {
        let mut tunnel = None;
        let through = async |url: &str| tunnel.insert(Tunnel::to(url).await).url.clone();
        let mut scene = Scene::begin(client, watchful(), through).await;
        tunnel.as_ref().unwrap().turns(Weather::Dark);
        scene.somebody_is_told_once(client, "half-open TCP by a tunnel of ours, whose kernel acknowledges").await;
        scene.end().await;
    })
    .await;
}

/// In a namespace of its own, where the system permits one; elsewhere the tunnel above has to do.
#[tokio::test]
async fn a_connection_that_is_half_open_in_a_network_namespace_is_nobody_who_looks() {
    each(CLIENTS, async |client| {
        let namespace = match Namespace::make() {
            Ok(namespace) => namespace,
            Err(why) => {
                println!("half-open TCP: no network namespace here ({why}); shown by a tunnel of ours alone");
                return;
            }
        };
        let keys: &[(&str, &[Scope])] = &[("runtime", &[Scope::Publish]), ("ada", &[Scope::Watch, Scope::Answer])];
        let mut config = with_keys(watchful(), keys);
        config.listen.address = (namespace.near, 0).into();
        config.listen.plaintext_behind_proxy = true;
        let inside = |start: Start| start.inside(&namespace.name);
        let mut scene = Scene::within(client, config, straight, inside).await;
        namespace.lose_everything();
        scene.somebody_is_told_once(client, "half-open TCP in a network namespace").await;
        scene.end().await;
    })
    .await;
}
