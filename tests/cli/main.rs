//! The program as its users run it: its first line, its exit status, its end.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the right answer, also outside of the test functions")]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// The program without what the environment of the tests may say.
fn onlooker(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_onlooker"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ONLOOKER_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = onlooker(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A gateway in a process of its own, killed when the test is over. Without a word about data it keeps them in a
/// directory that goes with it.
struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Serving {
    fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut serve = onlooker(&[&["serve", "--listen", "127.0.0.1:0"], arguments].concat());
        let mut child = serve.current_dir(folder.path()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on http://").expect(&line).trim_end().parse().expect(&line);
        Self { child, stdout, address, folder }
    }

    fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    fn wait(&mut self, within: Duration) -> Option<i32> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "still running after {within:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_line_of_serve_is_its_address_and_the_port_is_open() {
    let mut gateway = Serving::start(&[]);
    TcpStream::connect(gateway.address).unwrap();
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.wait(Duration::from_secs(5)), Some(0), "SIGTERM stops it within 5 s, and that is no failure");
    let (mut more, mut log) = (String::new(), String::new());
    gateway.stdout.read_to_string(&mut more).unwrap();
    gateway.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(more, "", "the log goes elsewhere");
    let open: Vec<_> = log.lines().filter(|line| line.contains("open: no keys are configured")).collect();
    assert_eq!(open.len(), 1, "{log}");
    assert!(TcpStream::connect(gateway.address).is_err());
}

#[test]
fn an_interrupt_stops_it_as_well() {
    let mut gateway = Serving::start(&["--log-format", "json"]);
    gateway.signal(Signal::INT);
    assert_eq!(gateway.wait(Duration::from_secs(5)), Some(0));
    let mut log = String::new();
    gateway.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    for line in log.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_name_and_no_port_is_opened() {
    let folder = std::env::temp_dir().join(format!("onlooker-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("onlooker.toml");
    // A port that is free until this is over: the program must not take it.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    std::fs::write(&file, format!("listen = \"{free}\"\nephemerall = true\n")).unwrap();
    let began = Instant::now();
    let (status, stdout, stderr) = output(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!((status, stdout.as_str()), (Some(64), ""), "{stderr}");
    assert!(stderr.contains("unknown key `ephemerall`") && stderr.contains("did you mean `ephemeral`"), "{stderr}");
    assert!(stderr.contains(":2:"), "the line is named: {stderr}");
    assert!(TcpStream::connect(free).is_err() && began.elapsed() < READY_WITHIN);
    let (status, ..) = output(&["check-config", "--config", file.to_str().unwrap()]);
    assert_eq!(status, Some(64));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn exit_statuses_tell_usage_and_absence_apart() {
    let (status, _, stderr) = output(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(status, Some(64), "{stderr}");
    assert!(stderr.contains("without keys"), "{stderr}");
    assert_eq!(output(&["no-such-command"]).0, Some(64));
    assert_eq!(output(&["--help"]).0, Some(0));
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (status, _, stderr) = output(&["sessions", "--gateway", &format!("http://{free}")]);
    assert_eq!(status, Some(69), "{stderr}");
    assert!(stderr.contains("onlooker serve"), "it says what to do next: {stderr}");
    let (status, ..) = output(&["watch", "--project", "--gateway", &format!("http://{free}")]);
    assert_eq!(status, Some(69));
}

#[test]
fn a_key_from_the_command_opens_what_its_entry_is_put_into() {
    let (status, made, _) = output(&["key", "--id", "reader", "--project", "shop", "--scopes", "watch"]);
    assert_eq!(status, Some(0));
    let plain = made.lines().find_map(|line| line.strip_prefix("# olk_")).expect(&made);
    let folder = std::env::temp_dir().join(format!("onlooker-cli-key-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("onlooker.toml");
    let entry: String = made.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert!(!entry.contains(plain));
    std::fs::write(&file, entry).unwrap();
    let gateway = Serving::start(&["--config", file.to_str().unwrap()]);
    let (status, stdout, stderr) = output(&["sessions", "--gateway", &gateway.url()]);
    assert_eq!((status, stdout.as_str()), (Some(77), ""), "{stderr}");
    assert!(stderr.contains("--token"), "{stderr}");
    let token = format!("olk_{plain}");
    let (status, stdout, stderr) = output(&["sessions", "--gateway", &gateway.url(), "--token", &token]);
    assert_eq!((status, stdout.as_str()), (Some(0), ""), "{stderr}");
    let (status, _, stderr) = output(&["start", "--prompt", "x", "--gateway", &gateway.url(), "--token", &token]);
    assert_eq!(status, Some(77), "reading is not starting: {stderr}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_a_killed_gateway_kept_is_there_to_be_inspected_and_exported() {
    let recording = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/recording");
    let mut gateway = Serving::start(&[]);
    let data = gateway.folder.path().join("onlooker-data");
    let dir = data.to_str().unwrap();
    let replay = ["replay", recording, "--gateway", &gateway.url(), "--speed", "50"].map(str::to_owned);
    let mut runtime = onlooker(&replay.each_ref().map(String::as_str)).spawn().unwrap();
    let begun = Instant::now();
    let session = loop {
        let (status, stdout, _) = output(&["start", "--prompt", "Buy a lamp", "--gateway", &gateway.url()]);
        if status == Some(0) {
            break stdout.trim().to_owned();
        }
        assert!(begun.elapsed() < READY_WITHIN, "no runtime came");
    };
    while !output(&["guardrails", "--gateway", &gateway.url()]).1.contains("[login]") {
        assert!(begun.elapsed() < READY_WITHIN, "it never asks");
    }
    let (status, _, stderr) = output(&["inspect", dir]);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains(dir) && stderr.contains("in use by another process"), "{stderr}");
    let (status, _, stderr) = output(&["serve", "--listen", "127.0.0.1:0", "--data-dir", dir]);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");

    gateway.signal(Signal::KILL);
    gateway.wait(Duration::from_secs(5));
    runtime.kill().unwrap();
    runtime.wait().unwrap();
    let (status, stdout, stderr) = output(&["inspect", dir]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains(&session) && stdout.contains("active") && stdout.contains("1 open guardrails"), "{stdout}");
    let (status, json, _) = output(&["inspect", dir, "--json"]);
    let found: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((status, &found["sessions"][0]["session"]), (Some(0), &session.as_str().into()));
    assert_eq!(found["guardrails"][0]["kind"], "login");

    let into = gateway.folder.path().join("exported");
    let export = ["export", &session, "--data-dir", dir, "--into", into.to_str().unwrap()];
    let (status, stdout, stderr) = output(&export);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("screenshots without a picture") && stderr.contains("had not ended"), "{stdout}{stderr}");
    let lines = std::fs::read_to_string(into.join("recording.jsonl")).unwrap();
    assert!(lines.contains("guardrail_trigger") && lines.trim_end().ends_with('}'), "{lines}");
    let (status, _, stderr) = output(&["export", "nosuch", "--data-dir", dir]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("has no session nosuch"), "{stderr}");
    let (status, _, stderr) = output(&["inspect", gateway.folder.path().to_str().unwrap()]);
    assert_eq!(status, Some(1));
    assert!(stderr.contains("holds no onlooker data"), "{stderr}");
}

#[test]
fn the_demo_checks_itself() {
    let (status, stdout, stderr) = output(&["demo", "--check", "--speed", "20"]);
    assert_eq!(status, Some(0), "{stdout}\n{stderr}");
    let last = stdout.lines().last().unwrap();
    assert!(last.starts_with("demo check: ok"), "{last}");
    for secret in ["correct horse", "246810"] {
        assert!(!stdout.contains(secret) && !stderr.contains(secret));
    }
}
