//! A recording as an agent: every task plays it from its first line.
//!
//! The clock is that of the recording divided by the speed. It stands while a guardrail waits for its answer, while
//! the task is paused and while the gateway takes no more events, so that the intervals between the lines stay those
//! recorded. Lines for what the client
//! publishes by itself (`task_started`, `guardrail_taken`) and withdrawals, for which a stopped clock leaves no place,
//! are left out.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use onlooker_protocol::runtime::GuardrailOutcome;
use onlooker_protocol::{
    event::kind,
    view::{OnTimeout, Outcome},
};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep_until};

use crate::{
    agent::{Agent, Completed, Failed, Task},
    ids,
    recording::{Line, Recording},
};

/// What a very low speed comes to: far from what the clock can count.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// Plays a recording for every task. Sessions of one runtime share the recording's images.
#[derive(Clone, Debug)]
pub struct Replay {
    pub recording: Arc<Recording>,
    /// 2.0 plays in half the time. What is not above 0 plays without any waiting.
    pub speed: f64,
}

impl Replay {
    pub fn new(recording: Recording, speed: f64) -> Self {
        Self { recording: Arc::new(recording), speed }
    }
}

impl Agent for Replay {
    fn work(&self, task: Task) -> BoxFuture<'static, Result<Completed, Failed>> {
        let Self { recording, speed } = self.clone();
        async move { play(&recording, speed, &task).await }.boxed()
    }
}

async fn play(recording: &Recording, speed: f64, task: &Task) -> Result<Completed, Failed> {
    let began = Instant::now();
    let mut stood = Duration::ZERO;
    let mut ids = HashMap::new();
    for line in recording.lines() {
        sleep_until(began + stood + after(line.at, speed)).await;
        let due = Instant::now();
        task.ready().await;
        match line.kind.as_str() {
            kind::TASK_STARTED | kind::GUARDRAIL_TAKEN | kind::GUARDRAIL_WITHDRAWN => {}
            kind::TASK_COMPLETED => return Ok(completed(&line.data)),
            kind::ERROR => return Err(failed(&line.data)),
            kind::GUARDRAIL_TRIGGER => go_on(&task.ask(fresh(&line.data, &mut ids)).await)?,
            _ => publish(recording, line, task).await,
        }
        stood += due.elapsed();
    }
    Err(Failed { error: "the recording has no end".to_owned(), code: "bad_recording".to_owned() })
}

/// When a line is due after the start, had the clock never stood.
fn after(at: f64, speed: f64) -> Duration {
    if speed > 0.0 { Duration::try_from_secs_f64(at / speed).unwrap_or(YEAR).min(YEAR) } else { Duration::ZERO }
}

async fn publish(recording: &Recording, line: &Line, task: &Task) {
    match line.file.as_deref().and_then(|file| recording.picture(file)) {
        Some((media, bytes)) => task.picture(media, bytes, line.data.clone()).await,
        None => task.publish(&line.kind, line.data.clone()).await,
    }
}

/// The recorded question under an id that is new for this play, the same for all lines with one recorded id.
fn fresh(data: &Value, ids: &mut HashMap<String, String>) -> Value {
    let mut data = data.as_object().cloned().unwrap_or_default();
    let id = match data.get("guardrailId").and_then(Value::as_str) {
        Some(recorded) => ids.entry(recorded.to_owned()).or_insert_with(ids::fresh).clone(),
        None => ids::fresh(),
    };
    data.insert("guardrailId".to_owned(), id.into());
    Value::Object(data)
}

/// Whether the play goes on after a guardrail.
fn go_on(outcome: &GuardrailOutcome) -> Result<(), Failed> {
    let (error, code) = match outcome.outcome {
        Outcome::Answered => return Ok(()),
        Outcome::TimedOut if outcome.on_timeout == Some(OnTimeout::DefaultAnswer) => return Ok(()),
        Outcome::TimedOut => ("nobody answered the question in time", "guardrail_timed_out"),
        Outcome::Declined => ("the question was declined", "guardrail_declined"),
        Outcome::Cancelled | Outcome::Superseded | Outcome::Lost => {
            ("the question was cancelled", "guardrail_cancelled")
        }
    };
    Err(Failed { error: error.to_owned(), code: code.to_owned() })
}

fn completed(data: &Value) -> Completed {
    let mut data = data.as_object().cloned().unwrap_or_default();
    Completed { message: take_text(&mut data, "message").unwrap_or_default(), data }
}

fn failed(data: &Value) -> Failed {
    let mut data = data.as_object().cloned().unwrap_or_default();
    Failed {
        error: take_text(&mut data, "error").unwrap_or_else(|| "the recorded task failed".to_owned()),
        code: take_text(&mut data, "code").unwrap_or_else(|| "failed".to_owned()),
    }
}

fn take_text(data: &mut Map<String, Value>, name: &str) -> Option<String> {
    match data.shift_remove(name)? {
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}
