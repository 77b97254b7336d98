//! The runtime of the demonstration: a recording in this process, or a program.

use std::{process::Stdio, sync::Arc, time::Duration};

use onlooker_runtime::{Options, RunError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Map;
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::super::failure::Failure;

/// For a program to close its browser.
const STOP_WITHIN: Duration = Duration::from_secs(10);
const CAPACITY: u32 = 100;

pub(super) enum Kind {
    Recording(Arc<onlooker_runtime::Replay>),
    /// A program and its arguments, separated by blanks.
    Program(String),
}

pub(super) enum Runtime {
    Here { task: JoinHandle<Result<(), RunError>>, shutdown: CancellationToken },
    Program { child: Child, name: String },
}

impl Runtime {
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn start(kind: Kind, gateway: &Url) -> Result<Self, Failure> {
        match kind {
            Kind::Recording(replay) => {
                let options = Options {
                    gateway: gateway.clone(),
                    token: None,
                    name: "demo".to_owned(),
                    capacity: CAPACITY,
                    labels: Map::new(),
                };
                let shutdown = CancellationToken::new();
                let task = tokio::spawn(onlooker_runtime::run(options, replay, shutdown.clone()));
                Ok(Self::Here { task, shutdown })
            }
            Kind::Program(command) => {
                let mut words = command.split_whitespace();
                let name = words.next().ok_or_else(|| Failure::usage("--runtime-command names no program"))?.to_owned();
                let mut program = Command::new(&name);
                program.args(words).args(["--gateway", gateway.as_str().trim_end_matches('/')]);
                // Standard output is for what the demonstration itself says.
                program.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
                let child = program
                    .spawn()
                    .map_err(|error| Failure::usage(format!("cannot start {name}: {error}; is the path right?")))?;
                Ok(Self::Program { child, name })
            }
        }
    }

    /// Returns when the runtime ends by itself, which it should not. Cancel safe.
    pub(super) async fn ended(&mut self) -> Failure {
        match self {
            Self::Here { task, .. } => match task.await {
                Ok(Err(error)) => error.into(),
                Ok(Ok(())) | Err(_) => Failure::failed("the runtime of the demonstration ended"),
            },
            Self::Program { child, name } => match child.wait().await {
                Ok(status) => Failure::failed(format!("{name} ended ({status}); what it said is above")),
                Err(error) => Failure::failed(format!("{name}: {error}")),
            },
        }
    }

    pub(super) async fn stop(self) {
        match self {
            Self::Here { task, .. } if task.is_finished() => {}
            Self::Here { task, shutdown } => {
                shutdown.cancel();
                // Ends in the time that the client gives itself.
                let _ = task.await;
            }
            Self::Program { mut child, .. } => {
                // `None` once it has ended and was waited for.
                let process = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
                let Some(process) = process else { return };
                let _ = kill_process(process, Signal::TERM);
                if timeout(STOP_WITHIN, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
    }
}
