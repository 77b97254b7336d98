//! What durability costs, measured on the released program as a user runs it: `cargo bench --bench durable`.
//!
//! * `publish`: batching publishers; acknowledged events a second, the latency of acknowledgements at full speed and at
//!   a fixed rate, and processor time per event, in memory, given to the system, and on the disk.
//! * `restart`: 1,000,000 events in 10,000 sessions, `kill -9`, and the next start: time and memory.
//! * `resume`: appends while subscribers read histories that are no longer in memory.
//!
//! Rounds are interleaved, figures are medians with the least and the greatest. The publishers run on the same machine
//! as the gateway: their share of the processors is in the table.

#[path = "../measuring/figures.rs"]
mod figures;
mod history;
mod publisher;
#[path = "../measuring/server.rs"]
mod server;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::json;

use self::{
    figures::{Table, Times},
    history::Readers,
    publisher::{Fleet, Load, Measured, Pace},
    server::{Keeping, Server},
};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
cargo bench --bench durable -- [publish] [restart] [resume] [options]
  --quick          less of everything: to see that it works
  --rounds N       rounds of each measurement
  --seconds N      length of one measured stretch
  --batch N        events in a batch
  --window N       batches of a session that are not acknowledged, at full speed
  --rate N         events a second where the rate is fixed
  --only WAY       ephemeral, os or fsync alone, to look at it with a profiler
  --beside FILE    measures another build of the program in the same rounds
  --dir DIR        where data directories are made
  --json FILE      writes every figure of every round";

const CONNECTIONS: usize = 4;
const SESSIONS: usize = 32;
/// Events after which a session's log is at its bound and every append trims.
const FULL_LOG: u64 = 10_000;

struct Options {
    parts: Vec<String>,
    quick: bool,
    rounds: usize,
    seconds: u64,
    batch: usize,
    window: usize,
    rate: f64,
    only: Option<String>,
    beside: Option<PathBuf>,
    dir: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read() -> Outcome<Self> {
        let mut options = Self {
            parts: Vec::new(),
            quick: false,
            rounds: 5,
            seconds: 5,
            batch: 200,
            window: 2,
            rate: 100_000.0,
            only: None,
            beside: None,
            dir: env!("CARGO_TARGET_TMPDIR").into(),
            json: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(USAGE);
            match word.as_str() {
                "publish" | "restart" | "resume" => options.parts.push(word),
                "--quick" => (options.quick, options.rounds, options.seconds) = (true, 1, 2),
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.seconds = value()?.parse()?,
                "--batch" => options.batch = value()?.parse()?,
                "--window" => options.window = value()?.parse()?,
                "--rate" => options.rate = value()?.parse()?,
                "--only" => options.only = Some(value()?),
                "--beside" => options.beside = Some(value()?.into()),
                "--dir" => options.dir = value()?.into(),
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

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// As fast as acknowledgements come.
    fn full(&self) -> Load {
        Load { pace: Pace::Full { window: self.window }, batch: self.batch }
    }

    fn paced(&self, rate: f64) -> Load {
        Load { pace: Pace::Rate(rate), batch: self.batch }
    }

    /// The builds to measure, each with what its columns begin with.
    fn builds(&self) -> Vec<(PathBuf, &'static str)> {
        let this = (PathBuf::from(env!("CARGO_BIN_EXE_onlooker")), "");
        let beside = self.beside.iter().map(|beside| (beside.clone(), "beside: "));
        std::iter::once(this).chain(beside).collect()
    }
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let options = Options::read()?;
    server::build()?;
    println!("load of the machine before: {}", machine_load());
    println!("{}\n", plain_write(&options.dir)?);
    let mut tables = Vec::new();
    if options.runs("publish") {
        tables.push(publish(&options).await?);
    }
    if options.runs("restart") {
        tables.push(restart(&options).await?);
    }
    if options.runs("resume") {
        tables.push(resume(&options).await?);
    }
    println!("load of the machine after: {}", machine_load());
    if let Some(file) = &options.json {
        let tables: Vec<_> = tables.iter().map(Table::json).collect();
        std::fs::write(file, serde_json::to_vec_pretty(&json!({ "tables": tables }))?)?;
    }
    Ok(())
}

async fn publish(options: &Options) -> Outcome<Table> {
    let ways = [Keeping::Memory, Keeping::Os, Keeping::Fsync].into_iter();
    let ways: Vec<Keeping> = ways.filter(|way| options.only.as_ref().is_none_or(|only| only == way.name())).collect();
    let builds = options.builds();
    let columns = builds.iter().flat_map(|(_, name)| ways.iter().map(move |way| format!("{name}{}", way.name())));
    let title = format!("publish: {CONNECTIONS} × {} sessions, batches of {}", SESSIONS / CONNECTIONS, options.batch);
    let mut table = Table::new(title, columns);
    for _ in 0..options.rounds {
        for &way in &ways {
            for (binary, name) in &builds {
                let directory = tempfile::tempdir_in(&options.dir)?;
                let server = Server::start(binary, way, directory.path())?;
                let mut fleet = Fleet::connect(&server, CONNECTIONS, SESSIONS).await?;
                fleet.fill(options.full(), FULL_LOG).await?;
                let column = format!("{name}{}", way.name());
                let full = fleet.measure(&server, options.full(), options.time()).await?;
                add_load(&mut table, &column, "full speed", &full);
                let paced = fleet.measure(&server, options.paced(options.rate), options.time()).await?;
                add_load(&mut table, &column, &format!("{:.0}/s", options.rate), &paced);
                server.kill()?;
            }
        }
    }
    for row in ["full speed, events/s", "full speed, server µs/event"] {
        table.compare(row, Keeping::Memory.name());
    }
    table.print();
    Ok(table)
}

fn add_load(table: &mut Table, column: &str, load: &str, measured: &Measured) {
    let events = measured.events;
    let mut add = |row: &str, figure: f64| table.add(column, &format!("{load}, {row}"), figure);
    add("events/s", measured.rate());
    add("ack p50 ms", measured.acks.at(0.5));
    add("ack p99 ms", measured.acks.at(0.99));
    add("sent late p99 ms", measured.late.at(0.99));
    add("server µs/event", measured.server.cpu / events * 1e6);
    add("of it disk threads", measured.server.disk_cpu / events * 1e6);
    add("publishers µs/event", measured.generator.cpu / events * 1e6);
    add("server, processors", measured.server.cpu / measured.server.seconds);
    add("publishers, processors", measured.generator.cpu / measured.generator.seconds);
    add("written B/event", measured.server.written / events);
}

async fn restart(options: &Options) -> Outcome<Table> {
    let (sessions, events) = (if options.quick { 1_000 } else { 10_000 }, 100);
    let builds = options.builds();
    let columns = builds.iter().map(|(_, name)| format!("{name}fsync"));
    let mut table = Table::new(format!("restart: {sessions} sessions of {events} events, killed"), columns);
    for (binary, name) in &builds {
        let column = format!("{name}fsync");
        let directory = tempfile::tempdir_in(&options.dir)?;
        let began = Instant::now();
        let server = Server::start(binary, Keeping::Os, directory.path())?;
        let mut fleet = Fleet::connect(&server, CONNECTIONS, sessions).await?;
        let load = Load { pace: Pace::Full { window: 1 }, batch: events as usize };
        fleet.fill(load, events).await?;
        table.add(&column, "filling s", began.elapsed().as_secs_f64());
        table.add(&column, "stored MiB", size_of(directory.path())?);
        table.add(&column, "filled: VmRSS MiB", server.memory("VmRSS:")?);
        let known: Vec<String> = fleet.sessions().step_by(sessions / 10).map(str::to_owned).collect();
        server.kill()?;
        for round in 0..options.rounds {
            // Each start is killed too; only the first one finds records that are as old as the sessions.
            let when = if round == 0 { "first start" } else { "later starts" };
            let server = Server::start(binary, Keeping::Fsync, directory.path())?;
            let mut add = |row: &str, figure: f64| table.add(&column, &format!("{when}, {row}"), figure);
            add("listening ms", server.listening.as_secs_f64() * 1e3);
            add("ready ms", server.ready.as_secs_f64() * 1e3);
            add("VmRSS MiB", server.memory("VmRSS:")?);
            add("VmHWM MiB", server.memory("VmHWM:")?);
            tokio::time::sleep(Duration::from_secs(if options.quick { 2 } else { 10 })).await;
            add("VmRSS MiB 10 s later", server.memory("VmRSS:")?);
            add("VmHWM MiB 10 s later", server.memory("VmHWM:")?);
            add("server s", server.usage()?.since_start());
            check(&server, &known, events)?;
            server.kill()?;
        }
    }
    table.print();
    Ok(table)
}

/// What was acknowledged is there.
fn check(server: &Server, sessions: &[String], events: u64) -> Outcome<()> {
    for session in sessions {
        let found = server.get(&format!("/v1/sessions/{session}/events?since=start&limit=500"))?;
        let found = found.matches(r#""type":"action""#).count() as u64;
        if found != events {
            return Err(format!("session {session} has {found} of {events} events").into());
        }
    }
    Ok(())
}

/// How histories are read beside the appends.
#[derive(Clone, Copy)]
struct Reading {
    name: &'static str,
    readers: usize,
    /// In a second, of all readers.
    resumes: Option<f64>,
}

const READINGS: [Reading; 4] = [
    Reading { name: "no reader", readers: 0, resumes: None },
    Reading { name: "10 resumes/s", readers: 1, resumes: Some(10.0) },
    Reading { name: "1 reader", readers: 1, resumes: None },
    Reading { name: "2 readers", readers: 2, resumes: None },
];
/// Sessions with a history, and how long it is. More than what the engine keeps in memory.
const HISTORIES: (usize, u64) = (64, 2_000);

async fn resume(options: &Options) -> Outcome<Table> {
    let (histories, events) = HISTORIES;
    let directory = tempfile::tempdir_in(&options.dir)?;
    let (binary, _) = &options.builds()[0];
    let server = Server::start(binary, Keeping::Fsync, directory.path())?;
    let mut old = Fleet::connect(&server, CONNECTIONS, histories).await?;
    old.fill(options.full(), events).await?;
    let sessions: Vec<String> = old.sessions().map(str::to_owned).collect();
    drop(old);
    let mut fleet = Fleet::connect(&server, CONNECTIONS, SESSIONS).await?;
    fleet.fill(options.full(), FULL_LOG).await?;
    let half = fleet.measure(&server, options.full(), options.time()).await?.rate() / 2.0;
    let title = format!("resume: histories of {events} events beside appends");
    let mut table = Table::new(title, READINGS.iter().map(|reading| reading.name));
    for _ in 0..options.rounds {
        for reading in READINGS {
            for (name, load) in [("half", options.paced(half)), ("full speed", options.full())] {
                let readers = Readers::start(&server.address, &sessions, reading.readers, reading.resumes);
                let measured = fleet.measure(&server, load, options.time()).await?;
                let read = readers.end().await?;
                let mut add = |row: &str, figure: f64| table.add(reading.name, &format!("{name}, {row}"), figure);
                add("events/s", measured.rate());
                add("ack p50 ms", measured.acks.at(0.5));
                add("ack p99 ms", measured.acks.at(0.99));
                add("read MB/s", read / 1e6);
                add("server, processors", measured.server.cpu / measured.server.seconds);
                add("publishers and readers, processors", measured.generator.cpu / measured.generator.seconds);
            }
        }
    }
    for row in ["half, ack p50 ms", "half, ack p99 ms", "full speed, events/s"] {
        table.compare(row, READINGS[0].name);
    }
    table.print();
    Ok(table)
}

fn machine_load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

/// What a commit costs on this disk whatever the store: written to the end of a plain file and synced.
fn plain_write(directory: &Path) -> Outcome<String> {
    let mut file = File::create(tempfile::tempdir_in(directory)?.path().join("plain"))?;
    let (block, mut times) = (vec![1; 256 << 10], Times::default());
    for _ in 0..50 {
        let began = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        times.add(began.elapsed());
    }
    let (middle, most) = (times.at(0.5), times.at(0.99));
    Ok(format!("256 KiB to a plain file, synced: median {middle:.1} ms, p99 {most:.1} ms"))
}

/// MiB that the files of a directory take on the disk.
fn size_of(directory: &Path) -> Outcome<f64> {
    use std::os::unix::fs::MetadataExt;
    let mut blocks = 0;
    for entry in std::fs::read_dir(directory)? {
        blocks += entry?.metadata()?.blocks();
    }
    Ok(blocks as f64 * 512.0 / f64::from(1 << 20))
}
