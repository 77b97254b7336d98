//! A client's program as a child process: what it says, line by line, and how it ends.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::harness::BOUND;

/// Where `make clients` puts Python's packages.
const VENV: &str = "target/clients/venv";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that has not been started.
pub struct Start {
    name: String,
    command: Command,
}

impl Start {
    pub fn node(script: &str) -> Self {
        Self::installed("tests/clients/node_modules");
        Self::of("node".into(), script)
    }

    pub fn python(script: &str) -> Self {
        Self::installed(VENV);
        Self::of(root().join(VENV).join("bin/python"), script)
    }

    pub fn shell(script: &str) -> Self {
        Self::of("sh".into(), script)
    }

    /// The program itself, as a client.
    pub fn onlooker(words: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onlooker"));
        command.args(words);
        Self::alone(words[0].to_owned(), command)
    }

    /// The same in a network namespace.
    pub fn inside(self, namespace: &str) -> Self {
        let inner = self.command.as_std();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(inner.get_program()).args(inner.get_args());
        for (name, value) in inner.get_envs().filter_map(|(name, value)| Some((name, value?))) {
            command.env(name, value);
        }
        Self::alone(self.name, command)
    }

    fn installed(folder: &str) {
        let done = root().join(folder).join(".installed");
        assert!(done.exists(), "the clients are not installed ({folder}): run  make clients");
    }

    fn of(interpreter: PathBuf, script: &str) -> Self {
        let mut command = Command::new(interpreter);
        command.arg(root().join("tests/clients").join(script));
        Self::alone(script.to_owned(), command)
    }

    fn alone(name: String, mut command: Command) -> Self {
        // Nothing on loopback goes through a proxy.
        for name in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NODE_OPTIONS"]
        {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Self { name, command }
    }

    /// One more word in its environment.
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.command.env(name, value.as_ref());
        self
    }

    /// Starts it with the gateway's address, which is all that it knows.
    pub fn against(self, url: &str) -> Program {
        self.with("BASE_URL", url).run()
    }

    /// Starts it.
    ///
    /// # Panics
    /// Where its interpreter is missing.
    pub fn run(mut self) -> Program {
        let started = self.command.spawn();
        let mut child =
            started.unwrap_or_else(|error| panic!("{}: {error}; `make clients` says what it needs", self.name));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = tokio::spawn(async move {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said).await;
            String::from_utf8_lossy(&said).into_owned()
        });
        Program { name: self.name, child, lines, stderr, said: Vec::new() }
    }
}

/// A running program. Killed when it is dropped.
pub struct Program {
    name: String,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<String>,
    /// What it has said so far, for whoever has to find out what went wrong.
    said: Vec<String>,
}

impl Program {
    /// The next line that says this; the ones before it are passed over.
    pub async fn says(&mut self, at: &str) -> Value {
        loop {
            let line = self.next(at).await;
            if line["at"] == at {
                return line;
            }
            let wrong = matches!(line["at"].as_str(), Some("error" | "connect_error" | "end"));
            assert!(!wrong, "{}: {line} instead of “{at}”", self.name);
        }
    }

    /// The next line that fits; the ones before it are passed over.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let line = self.next(what).await;
            if fits(&line) {
                return line;
            }
        }
    }

    /// The next line, whatever it says.
    pub async fn next(&mut self, awaited: &str) -> Value {
        match timeout(BOUND, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => {
                self.said.push(line.clone());
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.name))
            }
            Ok(_) => {
                let status = self.child.wait().await.unwrap();
                let stderr = (&mut self.stderr).await.unwrap();
                panic!("{} ended ({status}) before “{awaited}”; it said {:#?}\n{stderr}", self.name, self.said)
            }
            Err(_) => {
                let _ = self.child.kill().await;
                let stderr = (&mut self.stderr).await.unwrap();
                panic!("{} never said “{awaited}”; it said {:#?}\n{stderr}", self.name, self.said)
            }
        }
    }

    /// Its last words. It ends by itself and successfully.
    pub async fn ends(mut self) -> Value {
        let last = self.says("end").await;
        let status = self.exited().await;
        assert!(status.success(), "{} ended with {status}", self.name);
        last
    }

    async fn exited(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        if let Ok(status) = timeout(BOUND, self.child.wait()).await {
            return status.unwrap();
        }
        let _ = self.child.kill().await;
        let stderr = (&mut self.stderr).await.unwrap();
        panic!("{} does not end; it said {:#?}\n{stderr}", self.name, self.said)
    }

    /// Tells it to go on.
    pub async fn go_on(&mut self) {
        self.child.stdin.as_mut().expect("not told to end").write_all(b"\n").await.unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("running").try_into().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }
}
