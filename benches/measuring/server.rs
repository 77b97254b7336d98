//! The gateway under test: the released binary as a process of its own, and what the kernel says about it.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crate::Outcome;

/// Clock ticks a second of `/proc/PID/stat`; 100 on every Linux that matters here.
const TICKS: f64 = 100.0;
const START_WITHIN: Duration = Duration::from_secs(120);

/// Where the gateway keeps its data, and when something counts as kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Keeping {
    Memory,
    Os,
    Fsync,
}

impl Keeping {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "ephemeral",
            Self::Os => "os",
            Self::Fsync => "fsync",
        }
    }
}

/// With a benchmark cargo builds the program with what tests ask of its dependencies, such as a clock that can be
/// stopped. What is measured is built as it is released.
pub(crate) fn build() -> Outcome<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let built = Command::new(cargo).args(["build", "--release", "--quiet", "--bin", "onlooker"]).status()?;
    if built.success() { Ok(()) } else { Err("the program could not be built".into()) }
}

pub(crate) struct Server {
    child: Child,
    /// Kept open: whoever prints into a closed pipe ends.
    _output: BufReader<ChildStdout>,
    pub(crate) address: String,
    /// From the start of the process to `listening on`.
    pub(crate) listening: Duration,
    /// From the start of the process to the first `/readyz` that says 200.
    pub(crate) ready: Duration,
}

impl Server {
    pub(crate) fn start(binary: &Path, keeping: Keeping, directory: &Path) -> Outcome<Self> {
        Self::start_with(binary, keeping, directory, &[])
    }

    /// The same with more settings, as its environment names them.
    pub(crate) fn start_with(
        binary: &Path,
        keeping: Keeping,
        directory: &Path,
        settings: &[(&str, &str)],
    ) -> Outcome<Self> {
        let mut command = Command::new(binary);
        command.envs(settings.iter().copied());
        command.args(["serve", "--listen", "127.0.0.1:0"]).env("ONLOOKER_LOG", "error");
        match keeping {
            Keeping::Memory => command.arg("--ephemeral"),
            _ => command.arg("--data-dir").arg(directory).args(["--durability", keeping.name()]),
        };
        let began = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let mut output = BufReader::new(child.stdout.take().ok_or("the gateway has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let listening = began.elapsed();
        let address = line.trim().strip_prefix("listening on http://").ok_or("the gateway did not start")?.to_owned();
        let mut server = Self { child, _output: output, address, listening, ready: Duration::ZERO };
        while !server.get("/readyz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            if began.elapsed() > START_WITHIN {
                return Err("the gateway did not get ready".into());
            }
        }
        server.ready = began.elapsed();
        Ok(server)
    }

    /// One request on a connection of its own: the whole answer with its head.
    pub(crate) fn get(&self, path: &str) -> Outcome<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    pub(crate) fn usage(&self) -> Outcome<Usage> {
        Usage::of(&self.proc())
    }

    /// A line of `/proc/PID/status`, in MiB.
    pub(crate) fn memory(&self, name: &str) -> Outcome<f64> {
        Ok(field(&self.proc().join("status"), name)? / 1024.0)
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.child.id().to_string())
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) -> Outcome<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where it is gone, that is what was wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a process has used so far.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    at: Instant,
    /// User and system time by the name of the thread, in seconds.
    threads: BTreeMap<String, f64>,
    /// Bytes that the kernel has written, or will write, to a disk for it.
    written: f64,
}

/// What was used between two moments.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    pub(crate) seconds: f64,
    pub(crate) cpu: f64,
    /// What the threads that own the disk took of it.
    pub(crate) disk_cpu: f64,
    pub(crate) written: f64,
}

impl Usage {
    pub(crate) fn of_this() -> Outcome<Self> {
        Self::of(Path::new("/proc/self"))
    }

    fn of(process: &Path) -> Outcome<Self> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(process.join("task"))? {
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else { continue };
            let (name, rest) = stat.rsplit_once(')').ok_or("a thread has no name")?;
            let name = name.split_once('(').map_or("", |(_, name)| name);
            let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
            *threads.entry(name.to_owned()).or_default() += ticks.sum::<f64>() / TICKS;
        }
        Ok(Self { at: Instant::now(), threads, written: field(&process.join("io"), "write_bytes:")? })
    }

    /// Seconds of processor time since the process began.
    pub(crate) fn since_start(&self) -> f64 {
        self.threads.values().sum()
    }

    pub(crate) fn since(&self, before: &Self) -> Used {
        let cpu = |usage: &Self, part: &str| -> f64 {
            usage.threads.iter().filter(|(name, _)| name.starts_with(part)).map(|(_, seconds)| seconds).sum()
        };
        Used {
            seconds: (self.at - before.at).as_secs_f64(),
            cpu: cpu(self, "") - cpu(before, ""),
            disk_cpu: cpu(self, "disk-") - cpu(before, "disk-"),
            written: self.written - before.written,
        }
    }
}

fn field(file: &Path, name: &str) -> Outcome<f64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| format!("{} has no {name}", file.display()).into())
}
