//! `onlooker demo`: a gateway, a runtime and a session with a task, in one call.
//!
//! Nothing is kept and nothing leaves this machine: the gateway listens on loopback without keys, in memory, and the
//! recording is inside the binary. `--check` is the same with a program in the person's place.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use clap::Args;
use onlooker::{
    config::Config,
    gateway::{Gateway, StartError},
};
use onlooker_protocol::code::Code;
use onlooker_runtime::{Line, Recording, recording::LINES_FILE};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    failure::{Failure, chain},
    log::{self, Format},
    recordings,
    remote::{At, Remote},
    say,
    signals::Signals,
};
use runtime::{Kind, Runtime};

mod check;
mod runtime;

/// The files of `demo/recording/`: names and bytes.
const SHIPPED: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/demo_recording.rs"));
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8787);
const PROMPT: &str = "Buy a reading lamp";
/// A program may have to start a browser first.
const RUNTIME_WITHIN: Duration = Duration::from_secs(30);
/// People look at a demonstration, leave and come back.
const INACTIVITY: Duration = Duration::from_secs(24 * 3600);

const EXAMPLES: &str = "\
Examples:
  onlooker demo
  onlooker demo --listen 127.0.0.1:9000 --speed 2
  onlooker demo --recording recordings/lamp
  onlooker demo --runtime-command \"onlooker-chromium --capacity 4\"
  onlooker demo --check

It runs until Ctrl-C. --check does what a person would do and exits with 0 when everything held.";

/// Shows everything at once: a gateway, a runtime and a session to look at
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Try it without a person: follow, answer, check, and exit
    #[arg(long)]
    check: bool,
    /// Where to listen [default: 127.0.0.1:8787, or a free port when that one is taken]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The speed of the recording [default: 1, with --check 10]
    #[arg(long, value_name = "N", value_parser = recordings::speed)]
    speed: Option<f64>,
    /// Another recording than the one inside
    #[arg(long, value_name = "DIR", conflicts_with = "runtime_command")]
    recording: Option<PathBuf>,
    /// A program that is the runtime instead of a recording; `--gateway URL` is appended
    #[arg(long, value_name = "PROGRAM ARGS", conflicts_with = "speed")]
    runtime_command: Option<String>,
}

impl Demo {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        log::start(Format::Text, if self.check { "error" } else { "warn" })?;
        let kind = self.kind()?;
        let mut signals = Signals::listen()?;
        let gateway = self.gateway().await?;
        let mut ended = Ok(());
        let url: Url = gateway.url().parse().expect("the gateway's own address");
        match Runtime::start(kind, &url) {
            Ok(mut runtime) => {
                tokio::select! {
                    shown = self.show(&url) => ended = shown,
                    failure = runtime.ended() => ended = Err(failure),
                    () = signals.next() => {}
                }
                signals.or_at_once(runtime.stop()).await?;
            }
            Err(failure) => ended = Err(failure),
        }
        signals.or_at_once(gateway.stop()).await?;
        ended
    }

    fn kind(&self) -> Result<Kind, Failure> {
        if let Some(command) = &self.runtime_command {
            return Ok(Kind::Program(command.clone()));
        }
        let recording = match &self.recording {
            Some(folder) => recordings::open(folder)?,
            None => shipped()?,
        };
        let speed = self.speed.unwrap_or(if self.check { 10.0 } else { 1.0 });
        Ok(Kind::Recording(Arc::new(onlooker_runtime::Replay::new(recording, speed))))
    }

    async fn gateway(&self) -> Result<Gateway, Failure> {
        let start = |address| {
            let mut config = Config::default();
            config.listen.address = address;
            config.data.ephemeral = true;
            config.times.inactivity = INACTIVITY;
            Gateway::start(config)
        };
        let free = SocketAddr::new(ADDRESS.ip(), 0);
        let wanted = self.listen.unwrap_or(if self.check { free } else { ADDRESS });
        match start(wanted).await {
            Err(StartError::Listen { .. }) if self.listen.is_none() => {
                eprintln!("{wanted} is taken by another program; taking a free port");
                Ok(start(free).await?)
            }
            started => Ok(started?),
        }
    }

    async fn show(&self, url: &Url) -> Result<(), Failure> {
        let remote = Remote::new(At { gateway: url.clone(), token: None })?;
        let session = start_session(&remote).await?;
        if self.check {
            return check::run(url, &remote, &session).await;
        }
        say(format_args!("The live page: {url}"))?;
        say("1. Open it in a browser and choose the session that is there: you see what the agent sees.")?;
        say(self.hint())?;
        say("3. Pause it, take over the wheel, or start another task on the page.")?;
        say("Ctrl-C ends it; nothing is kept.")?;
        std::future::pending().await
    }

    fn hint(&self) -> &'static str {
        match self.runtime_command {
            None => "2. It will ask for a login, a code and an approval. Answer on the page; any answer will do.",
            Some(_) => {
                "2. It will ask: the login is ada@example.com with `correct horse`, the code 246810; then approve."
            }
        }
    }
}

/// The recording that is inside the binary.
fn shipped() -> Result<Recording, Failure> {
    let file = |wanted: &str| SHIPPED.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| *bytes);
    let broken = |error: &dyn std::error::Error| Failure::failed(format!("the recording inside: {}", chain(error)));
    let mut lines: Vec<Line> = Vec::new();
    for line in file(LINES_FILE).unwrap_or_default().split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        lines.push(serde_json::from_slice(line).map_err(|error| broken(&error))?);
    }
    let pictures: BTreeMap<_, _> = SHIPPED
        .iter()
        .filter(|(name, _)| *name != LINES_FILE)
        .map(|(name, bytes)| ((*name).to_owned(), Bytes::from_static(bytes)))
        .collect();
    Recording::new(lines, pictures).map_err(|error| broken(&error))
}

/// Creates the session as any client would, once the runtime is there.
async fn start_session(remote: &Remote) -> Result<String, Failure> {
    let deadline = Instant::now() + RUNTIME_WITHIN;
    let body = json!({ "externalId": "demo", "task": { "prompt": PROMPT } });
    loop {
        match remote.ask::<Value>(&["v1", "sessions"], &body).await? {
            Ok(created) => match created["session"].as_str() {
                Some(session) => return Ok(session.to_owned()),
                None => return Err(Failure::failed("the gateway named no session")),
            },
            Err(refusal) if refusal.code == Code::NoRuntime && Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_inside_is_whole_and_small() {
        let recording = shipped().unwrap();
        assert!(recording.lines().iter().any(|line| line.kind == "guardrail_trigger"));
        assert!(recording.lines().iter().any(|line| line.kind == "screenshot"));
        let bytes: usize = SHIPPED.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(bytes <= 3 << 20, "{bytes} bytes make every binary larger");
    }

    #[test]
    fn the_recording_inside_holds_no_answer() {
        for (name, bytes) in SHIPPED {
            let text = String::from_utf8_lossy(bytes);
            for secret in check::SECRETS {
                assert!(!text.contains(secret), "{name} holds an answer");
            }
        }
    }
}
