//! The gateway as a process: started, killed, started again on the same port and the same data.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rand::RngExt as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

use crate::{
    history::{History, What},
    shim::{self, Plan},
};

/// How long a start, and an end, may take.
pub const BOUND: Duration = Duration::from_secs(30);

/// One place on the disk and one port, and the process that has them at the moment.
pub struct Gateway {
    pub folder: PathBuf,
    pub url: String,
    /// How much it says; as little as by default where nothing is asked for.
    pub log_filter: Option<&'static str>,
    address: String,
    config: PathBuf,
    history: History,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// Kept, so that nothing that it says breaks a pipe.
    _stdout: Lines<BufReader<ChildStdout>>,
}

impl Gateway {
    /// A place for a gateway that is not started yet. `settings` is added to a configuration with short windows.
    pub fn new(name: &str, settings: &str, history: &History) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let folder = folder.canonicalize().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let config = folder.join("onlooker.toml");
        fs::write(&config, format!("{settings}\n{SHORT_TIMES}")).unwrap();
        Self {
            folder,
            url: format!("http://{address}"),
            address,
            config,
            history: history.clone(),
            running: None,
            log_filter: None,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn counted(&self) -> (u64, u64) {
        shim::counted(&self.folder.join("counts"))
    }

    fn command(&self, address: &str, plan: Option<&Plan>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onlooker"));
        for (name, _) in std::env::vars_os() {
            let switch = name == "ONLOOKER_SABOTAGE";
            if !switch && name.to_string_lossy().starts_with("ONLOOKER_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        command.args(["serve", "--listen", address, "--config"]).arg(&self.config);
        command.arg("--data-dir").arg(self.data()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        if let Some(plan) = plan {
            command.envs(plan.environment(&self.data(), &self.folder.join("counts")));
        }
        if let Some(filter) = self.log_filter {
            command.env("ONLOOKER_LOG", filter);
        }
        command.kill_on_drop(true);
        command
    }

    /// Starts it; `false` when it ended before it was ready.
    pub async fn start_with(&mut self, plan: Option<&Plan>) -> bool {
        let mut child = self.command(&self.address, plan).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(BOUND, stdout.next_line()).await;
        let Ok(line) = line else { panic!("not ready after {BOUND:?}\n{}", self.last_words()) };
        let ready = line.unwrap().is_some_and(|line| line.starts_with("listening on"));
        if ready {
            self.history.record(What::GatewayUp);
        } else {
            timeout(BOUND, child.wait()).await.expect("it ends").unwrap();
            self.history.record(What::GatewayKilled);
        }
        self.running = ready.then_some(Running { child, _stdout: stdout });
        ready
    }

    pub async fn start(&mut self) {
        assert!(self.start_with(None).await, "it ended before it was ready\n{}", self.last_words());
    }

    /// As `kill -9` does it.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.child.kill().await.unwrap();
            self.history.record(What::GatewayKilled);
        }
    }

    /// As an operator does it: everything that it still has to say is said.
    pub async fn stop(&mut self) {
        if let Some(running) = &self.running {
            let process = running.child.id().expect("it runs").to_string();
            let asked = Command::new("kill").args(["-TERM", &process]).status().await.unwrap();
            assert!(asked.success());
        }
        assert!(self.ended_within(BOUND).await, "it does not stop\n{}", self.last_words());
    }

    /// Waits until it ends by itself; `false` when it still runs after that long.
    pub async fn ended_within(&mut self, bound: Duration) -> bool {
        let Some(running) = &mut self.running else { return true };
        let ended = timeout(bound, running.child.wait()).await.is_ok();
        if ended {
            self.running = None;
            self.history.record(What::GatewayKilled);
        }
        ended
    }

    /// A second process on the same data, on another port: its exit status and what it says.
    pub async fn second(&self) -> (Option<i32>, String) {
        let mut command = self.command("127.0.0.1:0", None);
        command.stderr(Stdio::piped());
        let output = timeout(BOUND, command.output()).await.expect("it ends").unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code(), said.concat())
    }

    /// Puts a copy of its data aside. It does not run meanwhile.
    pub fn set_aside(&self) {
        assert!(self.running.is_none());
        copy(&self.data(), &self.folder.join("aside"));
    }

    /// Its data is again what was put aside.
    pub fn fall_back(&self) {
        assert!(self.running.is_none());
        fs::remove_dir_all(self.data()).unwrap();
        copy(&self.folder.join("aside"), &self.data());
    }

    /// The end of its log, for whoever looks at a failure.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// The run was right: nothing of it is kept.
    pub async fn remove(mut self) {
        self.kill().await;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Below the range from which systems take the near ends of connections: while the gateway is down, a client that
/// comes back again and again would else be given this port and connect to itself.
fn free_port() -> u16 {
    let mut rng = rand::rng();
    let mut ports = std::iter::repeat_with(|| rng.random_range(20_000..32_000));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("there is no end of ports to try")
}

/// Windows are short, so that what has to happen happens within a run.
const SHORT_TIMES: &str = r#"
[times]
ping_every = "500ms"
live_window = "1s"
attention_lease = "1s"
poll_window = "500ms"
grace = "250ms"
first_look = "300ms"
start_grace = "300ms"
notice_timeout = "600ms"
sensitive_window = "1s"
drain = "1s"
"#;
