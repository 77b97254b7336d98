//! What the surfaces cost, measured on the released program: `cargo bench --bench surfaces`.
//!
//! * `fanout`: one session, many subscribers: processor time of the gateway per delivered event, native and Socket.IO.
//! * `idle`: memory per idle subscriber, native and Socket.IO.
//! * `rest`: what `POST /start/run-task` adds to the time that the runtime takes.
//!
//! Ways are interleaved round by round, figures are medians with the least and the greatest. Clients and runtime share
//! the machine with the gateway, whose own processor time is what is counted.

#[path = "../measuring/figures.rs"]
#[allow(dead_code, reason = "shared with another benchmark")]
mod figures;
mod runtime;
#[path = "../measuring/server.rs"]
#[allow(dead_code, reason = "shared with another benchmark")]
mod server;
mod subscribers;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use self::{
    figures::{Table, Times},
    runtime::{Answering, Publisher},
    server::{Keeping, Server},
    subscribers::{Audience, Surface},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
cargo bench --bench surfaces -- [fanout] [idle] [rest] [options]
  --quick           less of everything: to see that it works
  --rounds N        rounds of each measurement
  --seconds N       length of one measured stretch
  --subscribers N   of the fan-out
  --idle N          idle subscribers
  --json FILE       writes every figure of every round";

const SURFACES: [Surface; 2] = [Surface::Native, Surface::SocketIo];

struct Options {
    parts: Vec<String>,
    rounds: usize,
    seconds: u64,
    subscribers: usize,
    idle: usize,
    tasks: usize,
    json: Option<PathBuf>,
}

impl Options {
    fn read() -> Outcome<Self> {
        let mut options =
            Self { parts: Vec::new(), rounds: 5, seconds: 5, subscribers: 500, idle: 4_000, tasks: 2_000, json: None };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(USAGE);
            match word.as_str() {
                "fanout" | "idle" | "rest" => options.parts.push(word),
                "--quick" => {
                    (options.rounds, options.seconds, options.subscribers) = (1, 1, 50);
                    (options.idle, options.tasks) = (200, 100);
                }
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--subscribers" => options.subscribers = value()?.parse()?,
                "--idle" => options.idle = value()?.parse()?,
                "--json" => options.json = Some(value()?.into()),
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
    server::build()?;
    let mut tables = Vec::new();
    if options.runs("fanout") {
        tables.push(fanout(&options).await?);
    }
    if options.runs("idle") {
        tables.push(idle(&options).await?);
    }
    if options.runs("rest") {
        tables.push(rest(&options).await?);
    }
    if let Some(file) = &options.json {
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        std::fs::write(file, serde_json::to_vec_pretty(&json!({ "tables": tables }))?)?;
    }
    Ok(())
}

fn start() -> Outcome<Server> {
    Server::start(Path::new(env!("CARGO_BIN_EXE_onlooker")), Keeping::Memory, Path::new(""))
}

/// Events a second of the paced load: each is written by itself.
const PACED: f64 = 100.0;

async fn fanout(options: &Options) -> Outcome<Table> {
    let title = format!("fanout: 1 session, {} subscribers, events of 200 B", options.subscribers);
    let mut table = Table::new(title, SURFACES.map(Surface::name));
    let time = Duration::from_secs(options.seconds);
    for _ in 0..options.rounds {
        for surface in SURFACES {
            let server = start()?;
            let mut publisher = Publisher::open(&server.address).await?;
            let session = publisher.session().to_owned();
            let audience = Audience::join(&server.address, &session, surface, options.subscribers).await?;
            for (load, rate) in [("at 100 events/s", Some(PACED)), ("full speed", None)] {
                // A first stretch is not counted.
                for measured in [false, true] {
                    let (before, had) = (server.usage()?, audience.events());
                    publisher.publish_for(if measured { time } else { time / 4 }, rate, &audience).await?;
                    audience.all_have(publisher.published()).await?;
                    let used = server.usage()?.since(&before);
                    let delivered = (audience.events() - had) as f64;
                    if measured {
                        let mut add = |row: &str, figure| table.add(surface.name(), &format!("{load}, {row}"), figure);
                        add("server µs/delivered event", used.cpu / delivered * 1e6);
                        add("delivered events/s", delivered / used.seconds);
                    }
                }
            }
            server.kill()?;
        }
    }
    for load in ["at 100 events/s", "full speed"] {
        table.compare(&format!("{load}, server µs/delivered event"), Surface::Native.name());
    }
    table.print();
    Ok(table)
}

async fn idle(options: &Options) -> Outcome<Table> {
    let mut table =
        Table::new(format!("idle: {} subscribers of one session", options.idle), SURFACES.map(Surface::name));
    for _ in 0..options.rounds.min(3) {
        for surface in SURFACES {
            let server = start()?;
            let publisher = Publisher::open(&server.address).await?;
            // What the first few cost is the gateway's own.
            let first = Audience::join(&server.address, publisher.session(), surface, 100).await?;
            let before = server.memory("VmRSS:")?;
            let began = (server.usage()?, Instant::now());
            let audience = Audience::join(&server.address, publisher.session(), surface, options.idle).await?;
            let accepting = server.usage()?.since(&began.0);
            // Through a heartbeat, so that all that a living connection needs has been made.
            tokio::time::sleep(Duration::from_secs(12)).await;
            let each = (server.memory("VmRSS:")? - before) * 1024.0 / options.idle as f64;
            table.add(surface.name(), "KiB/subscriber", each);
            table.add(surface.name(), "server µs/accepted", accepting.cpu / options.idle as f64 * 1e6);
            if first.lost() + audience.lost() > 0 {
                return Err("a subscriber was cut off".into());
            }
            server.kill()?;
        }
    }
    table.print();
    Ok(table)
}

async fn rest(options: &Options) -> Outcome<Table> {
    let mut table = Table::new("rest: run-task, one after the other", ["run-task"]);
    // The client wants one although it never speaks TLS here. Another may be installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build()?;
    for _ in 0..options.rounds {
        let server = start()?;
        let runtime = Answering::connect(&server.address).await?;
        let url = format!("http://{}/start/run-task", server.address);
        let (mut whole, mut added) = (Times::default(), Times::default());
        for number in 0..options.tasks + options.tasks / 10 {
            let began = Instant::now();
            let body = json!({ "task": { "prompt": "Look" } });
            let answer: serde_json::Value = http.post(&url).json(&body).send().await?.json().await?;
            let took = began.elapsed();
            if answer["status"] != "complete" {
                return Err(format!("no result: {answer}").into());
            }
            let own = runtime.last_took();
            // The first ones warm everything up.
            if number >= options.tasks / 10 {
                whole.add(took);
                added.add(took.saturating_sub(own));
            }
        }
        let mut add = |row: &str, figure| table.add("run-task", row, figure);
        add("whole p50 ms", whole.at(0.5));
        add("added to the runtime's own time p50 ms", added.at(0.5));
        add("added p99 ms", added.at(0.99));
        server.kill()?;
    }
    table.print();
    Ok(table)
}
