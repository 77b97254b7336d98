//! What knowing who looks costs: `cargo bench --bench reach_out`.
//!
//! * `watch`: the watch alone: processor time per edge with 1, 100 and 10,000 watchers in a session, as a pong that
//!   changes nothing, as one that proves, and as attention that comes and goes, with the look that the owner then takes.
//! * `edges`: whole sessions on the released program, each with an open question, where attention that comes and goes
//!   wakes the owner each time: at 1,000,000 edges a minute, and as fast as the gateway takes them.
//! * `leave`: 10,000 sessions, each with an open question, lose their watchers in the same instant: how long until the
//!   last notice is out, at what rate, and what that takes.
//!
//! Clients, runtime and receiver share the machine with the gateway, whose own processor time is what is counted.

#[path = "measuring/figures.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod figures;
#[path = "measuring/server.rs"]
#[allow(dead_code, reason = "shared with other benchmarks")]
mod server;

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, SinkExt, StreamExt, stream::SplitSink};
use onlooker::watch::{Attentive, Guard, Newcomer, Watch, WatchTimes};
use onlooker_protocol::runtime::{GatewayToRuntime, OpenSession, PublishedEvent, RuntimeToGateway};
use serde_json::{Map, Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use self::{
    figures::{Table, Times},
    server::{Keeping, Server, Usage},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
cargo bench --bench reach_out -- [watch] [edges] [leave] [options]
  --quick         less of everything: to see that it works
  --rounds N      rounds of each measurement
  --seconds N     length of one measured stretch
  --sessions N    sessions of `edges` and `leave`, in thousands";

/// What is promised.
const EDGES_A_MINUTE: f64 = 1_000_000.0;
/// As many as one connection may have subscriptions.
const BLOCK: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(120);

struct Options {
    parts: Vec<String>,
    rounds: usize,
    seconds: u64,
    blocks: usize,
    watchers: Vec<usize>,
}

impl Options {
    fn read() -> Outcome<Self> {
        let mut options =
            Self { parts: Vec::new(), rounds: 3, seconds: 10, blocks: 10, watchers: vec![1, 100, 10_000] };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(USAGE);
            match word.as_str() {
                "watch" | "edges" | "leave" => options.parts.push(word),
                "--quick" => (options.rounds, options.seconds, options.blocks) = (1, 1, 1),
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--sessions" => options.blocks = value()?.parse()?,
                // What cargo adds.
                "--bench" => {}
                _ => return Err(USAGE.into()),
            }
        }
        Ok(options)
    }

    fn runs(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|asked| asked == part)
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::read()?;
    if options.runs("watch") {
        watch(&options)?;
    }
    if options.runs("edges") || options.runs("leave") {
        server::build()?;
    }
    if options.runs("edges") {
        edges(&options).await?;
    }
    if options.runs("leave") {
        leave(&options).await?;
    }
    Ok(())
}

// --- the watch alone -------------------------------------------------------------------------------------------------

const TIMES: WatchTimes = WatchTimes {
    live_window: Duration::from_secs(20),
    attention_lease: Duration::from_secs(30),
    poll_window: Duration::from_secs(10),
    remember: Duration::from_secs(10),
};

/// What one watcher does at a time.
#[derive(Clone, Copy, Debug)]
enum Edge {
    Pong,
    Proof,
    Attention,
}

fn watch(options: &Options) -> Outcome<()> {
    let columns = options.watchers.iter().map(|watchers| format!("{watchers} watchers"));
    let mut table = Table::new("watch: ns of processor time per edge", columns);
    for _ in 0..options.rounds {
        for watchers in &options.watchers {
            for edge in [Edge::Pong, Edge::Proof, Edge::Attention] {
                let (row, figure) = watch_edges(*watchers, edge, Duration::from_secs(options.seconds.min(2)))?;
                table.add(&format!("{watchers} watchers"), row, figure);
            }
        }
    }
    table.print();
    Ok(())
}

fn watch_edges(watchers: usize, edge: Edge, time: Duration) -> Outcome<(&'static str, f64)> {
    let watch = Watch::new(TIMES);
    let begin = tokio::time::Instant::now();
    let guards: Vec<Guard> = (0..watchers).map(|i| enter(&watch, i, begin)).collect();
    // Everybody answers once in 10 s of the watch's own time, as everybody does.
    let step = Duration::from_secs(10) / u32::try_from(watchers)?;
    let (mut now, mut edges, mut offset) = (begin, 0_u64, 0);
    let mut active = vec![true; watchers];
    watch.set_interest(Some(0));
    let (before, began) = (Usage::of_this()?, Instant::now());
    while began.elapsed() < time {
        // A clock is read now and then only.
        for _ in 0..64 {
            let i = usize::try_from(edges)? % watchers;
            now += step;
            match edge {
                Edge::Pong => guards[i].alive(now),
                Edge::Proof => {
                    offset += 1;
                    guards[i].proved(offset, now);
                }
                Edge::Attention => {
                    guards[i].alive(now);
                    active[i] = !active[i];
                    guards[i].attention(active[i], now);
                }
            }
            edges += 1;
            // The owner, where it was told.
            if watch.changed().now_or_never().is_some() {
                std::hint::black_box((watch.settle(now), watch.presence(now), watch.counts(now)));
            }
        }
    }
    let used = Usage::of_this()?.since(&before);
    let row = match edge {
        Edge::Pong => "a pong that changes nothing",
        Edge::Proof => "a proof, and the owner's look",
        Edge::Attention => "attention that comes or goes, and the owner's look",
    };
    Ok((row, used.cpu / edges as f64 * 1e9))
}

fn enter(watch: &Watch, number: usize, now: tokio::time::Instant) -> Guard {
    let newcomer = Newcomer {
        subscriber: format!("connection {number}").as_str().into(),
        who: "ada".into(),
        via: "websocket",
        observer: false,
        able: true,
        sees_results: true,
        attentive: Attentive::Active,
    };
    watch.enter(newcomer, now)
}

// --- the gateway, its runtime, its watchers and its webhook ----------------------------------------------------------

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Sessions of one runtime, each with an open question.
struct Sessions {
    ids: Vec<String>,
    frames: mpsc::UnboundedSender<RuntimeToGateway>,
    accepted: Arc<AtomicU64>,
    task: JoinHandle<Outcome<()>>,
}

impl Sessions {
    async fn open(address: &str, count: usize) -> Outcome<Self> {
        let (mut socket, _) = connect_async(format!("ws://{address}/v1/runtime")).await?;
        let labels = Map::new();
        let register = RuntimeToGateway::Register { name: "bench".to_owned(), capacity: 1_000_000, labels };
        socket.send(Message::text(serde_json::to_string(&register)?)).await?;
        let (frames, to_send) = mpsc::unbounded_channel();
        let (opened, mut ids) = mpsc::unbounded_channel();
        let accepted = Arc::<AtomicU64>::default();
        let task = tokio::spawn(run(socket, to_send, opened, Arc::clone(&accepted)));
        let mut sessions = Self { ids: Vec::new(), frames, accepted, task };
        for _ in 0..count {
            let session = Box::new(OpenSession::default());
            sessions.frames.send(RuntimeToGateway::Open { reference: "r".to_owned(), session })?;
        }
        while sessions.ids.len() < count {
            let next = tokio::time::timeout(WITHIN, ids.recv()).await?;
            sessions.ids.push(next.ok_or("the runtime's connection broke")?);
        }
        Ok(sessions)
    }

    async fn ask_in_each(&self) -> Outcome<()> {
        for session in &self.ids {
            let data = json!({ "type": "human_input_needed", "value": "May I?", "guardrailId": "g" });
            let event = PublishedEvent { n: 1, kind: "guardrail_trigger".to_owned(), task: None, data, picture: None };
            self.frames.send(RuntimeToGateway::Events { session: session.clone(), events: vec![event] })?;
        }
        let count = self.ids.len() as u64;
        until(|| self.accepted.load(Ordering::Relaxed) >= count).await
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut socket: Socket,
    mut to_send: mpsc::UnboundedReceiver<RuntimeToGateway>,
    opened: mpsc::UnboundedSender<String>,
    accepted: Arc<AtomicU64>,
) -> Outcome<()> {
    loop {
        let frame = tokio::select! {
            frame = to_send.recv() => frame.ok_or("nobody needs it any more")?,
            message = socket.next() => {
                let Message::Text(text) = message.ok_or("the runtime's connection ended")?? else { continue };
                match serde_json::from_str(&text)? {
                    GatewayToRuntime::Ping { id } => RuntimeToGateway::Pong { id },
                    GatewayToRuntime::Opened { session, .. } => {
                        opened.send(session)?;
                        continue;
                    }
                    GatewayToRuntime::Accepted { .. } => {
                        accepted.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    GatewayToRuntime::Error { refusal, .. } | GatewayToRuntime::EventRefused { refusal, .. } => {
                        return Err(refusal.to_string().into());
                    }
                    _ => continue,
                }
            }
        };
        socket.send(Message::text(serde_json::to_string(&frame)?)).await?;
    }
}

async fn until(fits: impl Fn() -> bool) -> Outcome<()> {
    let began = Instant::now();
    while !fits() {
        if began.elapsed() > WITHIN {
            return Err("it takes too long".into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A connection that watches up to a thousand sessions and answers pings.
struct Viewer {
    sender: Arc<tokio::sync::Mutex<SplitSink<Socket, Message>>>,
    live: Arc<AtomicU64>,
    /// Answers to what nobody can do, which show that everything before was heard.
    errors: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Viewer {
    async fn watch(address: &str, sessions: &[String]) -> Outcome<Self> {
        let mut request = format!("ws://{address}/v1/ws").into_client_request()?;
        request.headers_mut().insert("sec-websocket-protocol", "onlooker.v1".parse()?);
        let (socket, _) = connect_async(request).await?;
        if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
            // Dropped, it is reset: whoever watched is gone without a word.
            stream.set_zero_linger()?;
        }
        let (sender, mut receiver) = socket.split();
        let sender = Arc::new(tokio::sync::Mutex::new(sender));
        let (live, errors) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (answers, counted, refused) = (Arc::clone(&sender), Arc::clone(&live), Arc::clone(&errors));
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = receiver.next().await {
                let Message::Text(text) = message else { continue };
                if text.starts_with(r#"{"type":"live""#) {
                    counted.fetch_add(1, Ordering::Relaxed);
                } else if text.starts_with(r#"{"type":"error""#) {
                    refused.fetch_add(1, Ordering::Relaxed);
                } else if let Some(rest) = text.strip_prefix(r#"{"type":"ping","id":"#) {
                    let id = rest.split([',', '}']).next().unwrap_or_default();
                    let pong = Message::text(format!(r#"{{"type":"pong","id":{id}}}"#));
                    if answers.lock().await.send(pong).await.is_err() {
                        return;
                    }
                }
            }
        });
        let viewer = Self { sender, live, errors, task };
        for session in sessions {
            let subscribe = json!({ "type": "subscribe", "session": session, "attention": "active" });
            viewer.say(&subscribe).await?;
        }
        let count = sessions.len() as u64;
        until(|| viewer.live.load(Ordering::Relaxed) >= count).await?;
        Ok(viewer)
    }

    async fn say(&self, frame: &Value) -> Outcome<()> {
        Ok(self.sender.lock().await.send(Message::text(frame.to_string())).await?)
    }

    /// One edge in each of its sessions.
    async fn attend(&self, active: bool) -> Outcome<()> {
        self.say(&json!({ "type": "attention", "state": if active { "active" } else { "idle" } })).await
    }

    /// Waits until everything that was said is heard.
    async fn is_heard(&self) -> Outcome<()> {
        let before = self.errors.load(Ordering::Relaxed);
        self.say(&json!({ "type": "attention", "session": "a".repeat(20), "state": "active" })).await?;
        while self.errors.load(Ordering::Relaxed) == before {
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The webhook's receiver: when each notice came.
struct Hook {
    url: String,
    came: Arc<Mutex<Vec<Instant>>>,
    server: JoinHandle<()>,
}

impl Hook {
    async fn listen() -> Outcome<Self> {
        let came = Arc::<Mutex<Vec<Instant>>>::default();
        let keeps = Arc::clone(&came);
        let take = move || {
            keeps.lock().expect("no holder panics").push(Instant::now());
            std::future::ready(())
        };
        let router = axum::Router::new().route("/hook", axum::routing::post(take));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        Ok(Self { url, came, server })
    }

    fn count(&self) -> usize {
        self.came.lock().expect("no holder panics").len()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A gateway whose sessions each have a watcher that covers an open question.
struct Stage {
    server: Server,
    hook: Hook,
    viewers: Vec<Viewer>,
    _sessions: Sessions,
}

impl Stage {
    async fn set(blocks: usize, watchers: usize) -> Outcome<Self> {
        let hook = Hook::listen().await?;
        let settings = [("ONLOOKER_NOTIFY_WEBHOOK", hook.url.as_str()), ("ONLOOKER_TIMES_START_GRACE", "0s")];
        let binary = Path::new(env!("CARGO_BIN_EXE_onlooker"));
        let server = Server::start_with(binary, Keeping::Memory, Path::new(""), &settings)?;
        let sessions = Sessions::open(&server.address, blocks * BLOCK).await?;
        let mut viewers = Vec::new();
        for block in sessions.ids.chunks(BLOCK) {
            for _ in 0..watchers {
                viewers.push(Viewer::watch(&server.address, block).await?);
            }
        }
        sessions.ask_in_each().await?;
        let stage = Self { server, hook, viewers, _sessions: sessions };
        let began = Instant::now();
        while stage.unreached()? > 0.0 {
            if began.elapsed() > WITHIN {
                return Err("not every question is covered".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if stage.hook.count() > 0 {
            return Err("somebody was told although everybody looks".into());
        }
        Ok(stage)
    }

    fn unreached(&self) -> Outcome<f64> {
        let text = self.server.get("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix("onlooker_guardrails_unreached "));
        Ok(line.ok_or("there is no such metric")?.trim().parse()?)
    }
}

// --- whole sessions --------------------------------------------------------------------------------------------------

async fn edges(options: &Options) -> Outcome<()> {
    let ways = [(options.blocks, 1), (1, 10)];
    let name = |(blocks, watchers): (usize, usize)| format!("{} sessions, {watchers} watching each", blocks * BLOCK);
    let mut table = Table::new("edges: attention that comes and goes over an open question", ways.map(name));
    for _ in 0..options.rounds {
        for way in ways {
            let stage = Stage::set(way.0, way.1).await?;
            let mut add = |row: &str, figure| table.add(&name(way), row, figure);
            for (load, rate) in [("at 1,000,000 a minute", Some(EDGES_A_MINUTE / 60.0)), ("full speed", None)] {
                let before = stage.server.usage()?;
                let edges = flip(&stage.viewers, Duration::from_secs(options.seconds), rate).await?;
                let used = stage.server.usage()?.since(&before);
                add(&format!("{load}, edges/s"), edges as f64 / used.seconds);
                add(&format!("{load}, server ns/edge"), used.cpu / edges as f64 * 1e9);
                add(&format!("{load}, cores"), used.cpu / used.seconds);
            }
            // Attention was never away for as long as the grace.
            if stage.hook.count() > 0 {
                return Err("somebody was told although everybody was there within the grace".into());
            }
            stage.server.kill()?;
        }
    }
    table.print();
    Ok(())
}

/// Lets attention come and go, at a rate or as fast as the gateway hears it. Returns how many edges that made.
async fn flip(viewers: &[Viewer], time: Duration, rate: Option<f64>) -> Outcome<u64> {
    let (began, mut edges) = (Instant::now(), 0_u64);
    let mut active = vec![true; viewers.len()];
    'time: loop {
        for (viewer, active) in viewers.iter().zip(&mut active) {
            if began.elapsed() >= time {
                break 'time;
            }
            *active = !*active;
            viewer.attend(*active).await?;
            edges += BLOCK as u64;
            match rate {
                Some(rate) => {
                    let due = began + Duration::from_secs_f64(edges as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                }
                None => viewer.is_heard().await?,
            }
        }
    }
    for (viewer, active) in viewers.iter().zip(&active) {
        if !active {
            viewer.attend(true).await?;
        }
        viewer.is_heard().await?;
    }
    Ok(edges)
}

async fn leave(options: &Options) -> Outcome<()> {
    let count = options.blocks * BLOCK;
    let title = format!("leave: {count} sessions lose their watchers in the same instant, grace 5 s");
    let mut table = Table::new(title, ["one webhook"]);
    for _ in 0..options.rounds {
        let mut stage = Stage::set(options.blocks, 1).await?;
        let mut add = |row: &str, figure| table.add("one webhook", row, figure);
        add("MiB before", stage.server.memory("VmRSS:")?);
        let (left, before) = (Instant::now(), stage.server.usage()?);
        stage.viewers.clear();
        until(|| stage.hook.count() >= count).await?;
        let used = stage.server.usage()?.since(&before);
        // What would come too much would come now.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut came = stage.hook.came.lock().expect("no holder panics").clone();
        came.sort_unstable();
        if came.len() != count || stage.unreached()? > 0.0 {
            return Err(format!("{} notices for {count} questions", came.len()).into());
        }
        let (first, last) = (came[0] - left, came[count - 1] - left);
        let mut times = Times::default();
        came.iter().for_each(|at| times.add(*at - left));
        add("first notice after s", first.as_secs_f64());
        add("p50 after s", times.at(0.5) / 1e3);
        add("last notice after s", last.as_secs_f64());
        add("notices/s", count as f64 / (last - first).as_secs_f64());
        add("server µs/notice", used.cpu / count as f64 * 1e6);
        add("MiB at most", stage.server.memory("VmHWM:")?);
        stage.server.kill()?;
    }
    table.print();
    Ok(())
}
