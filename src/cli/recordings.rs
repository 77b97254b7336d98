//! `onlooker replay` and `onlooker record`.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use onlooker_runtime::{Options, Recording, record};
use serde_json::Map;
use tokio_util::sync::CancellationToken;

use super::{
    failure::{Failure, chain},
    log::{self, Format},
    remote::At,
    say,
    signals::Signals,
};

const REPLAY_EXAMPLES: &str = "\
Examples:
  onlooker replay demo/recording --gateway http://127.0.0.1:8787
  onlooker replay demo/recording --speed 10 --capacity 1000
  onlooker replay demo/recording --gateway https://onlooker.example.com --token \"$KEY\"

Every task that the gateway gives it plays the recording from its first line. It stops with SIGINT or SIGTERM.";

/// A runtime that plays a recording for every task
#[derive(Args)]
#[command(after_help = REPLAY_EXAMPLES)]
pub(crate) struct Replay {
    #[command(flatten)]
    at: At,
    /// The folder with recording.jsonl and its images
    recording: PathBuf,
    /// 2 plays in half the time; 0 does not wait at all
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// Sessions at once
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    capacity: u32,
    /// The name under which it registers
    #[arg(long, default_value = "replay")]
    name: String,
}

/// Takes a speed that a clock can run at.
pub(crate) fn speed(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|speed: &f64| speed.is_finite() && *speed >= 0.0).ok_or("a number, 0 or more")
}

impl Replay {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        log::start(Format::Text, "info")?;
        let recording = open(&self.recording)?;
        eprintln!("replaying {:.1} s of {} for every task", recording.length(), self.recording.display());
        let options = Options {
            gateway: self.at.gateway,
            token: self.at.token,
            name: self.name,
            capacity: self.capacity,
            labels: Map::new(),
        };
        let mut signals = Signals::listen()?;
        let shutdown = CancellationToken::new();
        let agent = Arc::new(onlooker_runtime::Replay::new(recording, self.speed));
        let mut running = std::pin::pin!(onlooker_runtime::run(options, agent, shutdown.clone()));
        let ended = tokio::select! {
            ended = running.as_mut() => Some(ended),
            () = signals.next() => None,
        };
        match ended {
            Some(ended) => Ok(ended?),
            None => {
                shutdown.cancel();
                let mut ended = Ok(());
                signals.or_at_once(async { ended = running.await }).await?;
                Ok(ended?)
            }
        }
    }
}

/// # Errors
/// When the folder holds no recording; the failure names the file and the line.
pub(crate) fn open(folder: &PathBuf) -> Result<Recording, Failure> {
    Recording::open(folder)
        .map_err(|error| Failure::usage(format!("{} is no recording: {}", folder.display(), chain(&error))))
}

const RECORD_EXAMPLES: &str = "\
Examples:
  onlooker record k3v9x0aab2c4d6e8f0g1 --into recordings/lamp
  onlooker record $(onlooker start --prompt \"Buy a reading lamp\") --into recordings/lamp

Records the session's first task until it ends. Pictures come live only, so start it with the session. The waits for
answers are left out, and answers are not in it. It counts as nobody looking.";

/// Writes a session's first task as a recording
#[derive(Args)]
#[command(after_help = RECORD_EXAMPLES)]
pub(crate) struct Record {
    #[command(flatten)]
    at: At,
    /// The session's id
    session: String,
    /// A folder that holds no recording yet; it is made when it is not there
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

impl Record {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        log::start(Format::Text, "warn")?;
        let options = record::RecordOptions { gateway: self.at.gateway, token: self.at.token };
        let mut gone = Ok(());
        let recorded = record::record(options, &self.session, &self.into, |line| {
            if gone.is_ok() {
                gone = say(line);
            }
        });
        recorded.await.map_err(failure)?;
        eprintln!("recorded in {}", self.into.display());
        gone
    }
}

fn failure(error: record::RecordError) -> Failure {
    use record::RecordError;
    match error {
        RecordError::Follow(error) => error.into(),
        RecordError::Refused(refusal) => (*refusal).into(),
        other => Failure::failed(chain(&other)),
    }
}
