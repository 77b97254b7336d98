//! The servers: each is started on a free port, in a directory of its own, and is gone when its [`Server`] is.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::{launch::Process, programs::Programs};
use crate::{
    Outcome,
    spec::{Keys, Speech, Target},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Peer {
    Limit,
    Coalescing,
    Onlooker,
    OnlookerInMemory,
    Nats,
    Nchan,
    Ws,
    SocketIo,
    Redis,
}

impl Peer {
    pub const ALL: [Self; 9] = [
        Self::Limit,
        Self::Coalescing,
        Self::Onlooker,
        Self::OnlookerInMemory,
        Self::Nats,
        Self::Nchan,
        Self::Ws,
        Self::SocketIo,
        Self::Redis,
    ];

    /// What it is asked for with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Coalescing => "coalescing",
            Self::Onlooker | Self::OnlookerInMemory => "onlooker",
            Self::Nats => "nats",
            Self::Nchan => "nchan",
            Self::Ws => "ws",
            Self::SocketIo => "socket.io",
            Self::Redis => "redis",
        }
    }

    pub fn is_onlooker(self) -> bool {
        matches!(self, Self::Onlooker | Self::OnlookerInMemory)
    }
}

const STARTED_WITHIN: Duration = Duration::from_secs(20);
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// Connections that servers are told to allow: more than there are, so that returning ones fit beside leaving ones.
const CONNECTIONS: usize = 30_000;

/// On the disk that the figures are about, and not in memory.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/runs").join(std::process::id().to_string())
}

/// Removes everything that servers of this process have written.
pub(crate) fn remove_scratch() {
    drop(fs::remove_dir_all(scratch()));
}

/// Removes what processes have left that were killed.
pub(crate) fn remove_left_over() {
    let Some(runs) = scratch().parent().and_then(|runs| fs::read_dir(runs).ok()) else { return };
    for run in runs.flatten() {
        if !Path::new("/proc").join(run.file_name()).exists() {
            drop(fs::remove_dir_all(run.path()));
        }
    }
}

struct Directory(PathBuf);

impl Directory {
    fn new() -> Outcome<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let path = scratch().join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
        // Gone with the last one.
        drop(fs::remove_dir(scratch()));
    }
}

pub(crate) struct Server {
    pub target: Target,
    /// Kept open: whoever prints into a closed pipe may end.
    _output: Option<BufReader<ChildStdout>>,
    // Before the directory: what still runs may still write.
    _process: Process,
    directory: Directory,
}

/// What is being started, and where it may write.
struct Start<'a> {
    cpus: &'a [usize],
    directory: Directory,
    speech: Speech,
}

impl Server {
    pub fn start(peer: Peer, speech: Speech, programs: &Programs, cpus: &[usize]) -> Outcome<Self> {
        let start = Start { cpus, directory: Directory::new()?, speech };
        let need = |program: &Option<PathBuf>| program.clone().ok_or("it is missing");
        match peer {
            Peer::Limit => start.floor(&programs.floor, &[]),
            Peer::Coalescing => start.floor(&programs.floor, &["--coalescing"]),
            Peer::Onlooker => start.onlooker(&programs.onlooker, false),
            Peer::OnlookerInMemory => start.onlooker(&programs.onlooker, true),
            Peer::Nats => start.nats(&need(&programs.nats)?),
            Peer::Nchan => start.nchan(&need(&programs.nginx)?, &need(&programs.nchan)?),
            Peer::Ws => start.node(&need(&programs.node)?, "ws.js"),
            Peer::SocketIo => start.node(&need(&programs.node)?, "socketio.js"),
            Peer::Redis => start.redis(&need(&programs.redis)?),
        }
    }

    /// The end of what it wrote to its log.
    pub fn last_words(&self) -> Option<String> {
        let text = fs::read_to_string(self.directory.0.join("log")).ok()?;
        text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
    }
}

impl Start<'_> {
    fn floor(self, program: &Path, arguments: &[&str]) -> Outcome<Server> {
        self.speaking(program, arguments, "listening on ", Keys::default())
    }

    fn node(self, program: &Path, script: &str) -> Outcome<Server> {
        let script = Programs::script(script);
        self.speaking(program, &[path(&script)?], "listening on ", Keys::default())
    }

    /// With all that a user has on: the log, positions, who watches, metrics, pings, keys; and, where sessions are kept on
    /// the disk, what the system has counts as kept.
    fn onlooker(self, program: &Path, in_memory: bool) -> Outcome<Server> {
        let (runtime, runtime_entry) = key(program, "runtime", "publish")?;
        let (subscriber, subscriber_entry) = key(program, "subscriber", "watch,answer,control")?;
        let config = self.directory.0.join("onlooker.toml");
        let settings = format!(
            "durability = \"os\"\n[limits]\nconnections = {CONNECTIONS}\nsessions = 200000\n\
             [times]\ninactivity = \"1h\"\n{runtime_entry}\n{subscriber_entry}\n"
        );
        fs::write(&config, settings)?;
        let data = self.directory.0.join("data");
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--config", path(&config)?];
        match in_memory {
            true => arguments.push("--ephemeral"),
            false => arguments.extend(["--data-dir", path(&data)?]),
        }
        self.speaking(program, &arguments, "listening on http://", Keys { runtime, subscriber })
    }

    /// One that prints where it listens: for subscribers, and where that differs for the publisher.
    fn speaking(self, program: &Path, arguments: &[&str], greeting: &str, keys: Keys) -> Outcome<Server> {
        let log = fs::File::create(self.directory.0.join("log"))?;
        let mut process = Process::start(self.cpus, program, arguments, |command| {
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        })?;
        let mut output = BufReader::new(process.child.stdout.take().ok_or("it has no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let addresses = line.trim().strip_prefix(greeting).unwrap_or_default().split(' ');
        let addresses: Vec<SocketAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
        let (Some(subscribe), Some(publish)) = (addresses.first(), addresses.last()) else {
            let said = fs::read_to_string(self.directory.0.join("log")).unwrap_or_default();
            return Err(format!("it did not start: {line}{said}").into());
        };
        let target =
            Target { speech: self.speech, subscribe: *subscribe, publish: *publish, group: process.group(), keys };
        Ok(Server { target, _output: Some(output), _process: process, directory: self.directory })
    }

    fn nats(self, program: &Path) -> Outcome<Server> {
        let (publish, subscribe) = (free()?, free()?);
        let config = format!(
            "listen: \"{publish}\"\nmax_connections: {CONNECTIONS}\n\
             websocket {{ listen: \"{subscribe}\", no_tls: true, compression: false }}\n"
        );
        let file = self.directory.0.join("nats.conf");
        fs::write(&file, config)?;
        self.listening(program, &["-c", path(&file)?], subscribe, publish)
    }

    fn redis(self, program: &Path) -> Outcome<Server> {
        let address = free()?;
        let (port, most) = (address.port().to_string(), CONNECTIONS.to_string());
        let directory = path(&self.directory.0)?.to_owned();
        let mut arguments = vec!["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        arguments.extend(["--maxclients", &most, "--client-output-buffer-limit", "pubsub 0 0 0", "--dir", &directory]);
        self.listening(program, &arguments, address, address)
    }

    fn nchan(self, program: &Path, module: &Path) -> Outcome<Server> {
        let address = free()?;
        let directory = path(&self.directory.0)?.to_owned();
        let file = self.directory.0.join("nginx.conf");
        fs::write(&file, nginx_config(address, &directory, path(module)?))?;
        let log = format!("{directory}/log");
        let own = ["-c", path(&file)?, "-p", &directory, "-e", &log];
        let Some(apart) = apart() else { return self.listening(program, &own, address, address) };
        let arguments: Vec<&str> = apart.iter().copied().chain([path(program)?]).chain(own).collect();
        self.listening(Path::new("unshare"), &arguments, address, address)
    }

    /// One that says nothing: it is there when both ports answer.
    fn listening(
        self,
        program: &Path,
        arguments: &[&str],
        subscribe: SocketAddr,
        publish: SocketAddr,
    ) -> Outcome<Server> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.directory.0.join("log"))?;
        let mut process = Process::start(self.cpus, program, arguments, |command| {
            Programs::prepare(command);
            let output = log.try_clone().map_or_else(|_| Stdio::null(), Stdio::from);
            command.stdin(Stdio::null()).stdout(output).stderr(log);
        })?;
        let began = Instant::now();
        while ![subscribe, publish].into_iter().all(answers) {
            if process.child.try_wait()?.is_some() || began.elapsed() > STARTED_WITHIN {
                let said = fs::read_to_string(self.directory.0.join("log")).unwrap_or_default();
                return Err(format!("it did not start: {said}").into());
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let target = Target { speech: self.speech, subscribe, publish, group: process.group(), keys: Keys::default() };
        Ok(Server { target, _output: None, _process: process, directory: self.directory })
    }
}

/// Whether somebody answers a line there, with whatever words. That somebody listens is too little: nginx does so before
/// its worker is there.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<usize> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        stream.read(&mut [0])
    };
    ask().is_ok_and(|count| count > 0)
}

/// What `unshare` is told so that nginx is by itself, where that is allowed. With its own processes: its worker would
/// outlive it. With its own `/var/lib`: nchan has it make a directory in `/var/lib/nginx`, whatever the configuration
/// says.
fn apart() -> Option<Vec<&'static str>> {
    const THEN: &str = r#"mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/nginx && exec "$0" "$@""#;
    let mut flags = vec!["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", THEN];
    if !rustix::process::geteuid().is_root() {
        flags.splice(0..0, ["--user", "--map-root-user"]);
    }
    let works = Command::new("unshare").args(&flags).arg("true").stderr(Stdio::null()).status();
    works.is_ok_and(|status| status.success()).then_some(flags)
}

/// A port that is free at this moment, for servers that cannot choose one themselves.
fn free() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn path(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| "paths have to be UTF-8".into())
}

/// A key of Onlooker's, and its entry for the configuration.
fn key(program: &Path, id: &str, scopes: &str) -> Outcome<(String, String)> {
    let made = Command::new(program).args(["key", "--id", id, "--project", "bench", "--scopes", scopes]).output()?;
    let text = String::from_utf8(made.stdout)?;
    let key = text.lines().find_map(|line| line.strip_prefix("# ").filter(|word| word.starts_with("olk_")));
    let key = key.ok_or("`onlooker key` printed no key")?.to_owned();
    Ok((key, text))
}

/// One worker, messages in memory, bodies too, any number of requests on one connection.
fn nginx_config(address: SocketAddr, directory: &str, module: &str) -> String {
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {directory}/{kind};"))
        .join(" ");
    format!(
        "load_module {module};
user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/pid;
error_log {directory}/log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    tcp_nodelay on;
    {temporary}
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_max_body_size 1m;
    client_body_buffer_size 128k;
    nchan_shared_memory_size 512m;
    server {{
        listen {address} backlog=4096;
        location ~ ^/pub/(\\d+)$ {{
            nchan_publisher;
            nchan_channel_id $1;
            nchan_message_buffer_length 16;
            nchan_message_timeout 1m;
        }}
        location ~ ^/sub/(\\d+)$ {{
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
",
        files = crate::machine::raise_open_files().unwrap_or(CONNECTIONS),
        connections = crate::machine::raise_open_files().unwrap_or(CONNECTIONS).min(CONNECTIONS),
    )
}
