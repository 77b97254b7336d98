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
        let due = began + after(line.at, speed);
        stood += wait(task, due + stood).await;
        let reached = Instant::now();
        match line.kind.as_str() {
            kind::TASK_STARTED | kind::GUARDRAIL_TAKEN | kind::GUARDRAIL_WITHDRAWN => {}
            kind::TASK_COMPLETED => return Ok(completed(&line.data, task)),
            kind::ERROR => return Err(failed(&line.data)),
            kind::GUARDRAIL_TRIGGER => go_on(&task.ask(fresh(&line.data, &mut ids)).await)?,
            _ => publish(recording, line, task).await,
        }
        stood += reached.elapsed();
    }
    Err(Failed { error: "the recording has no end".to_owned(), code: "bad_recording".to_owned() })
}

/// Waits until an instant that moves while the task is held. Returns how far it moved.
async fn wait(task: &Task, due: Instant) -> Duration {
    let mut stood = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            () = task.held() => {
                let since = Instant::now();
                task.ready().await;
                stood += since.elapsed();
            }
            () = sleep_until(due + stood) => return stood,
        }
    }
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

/// The recorded question under an id that is new for this play, the same for all lines with one recorded id, and
/// without a deadline of the day on which it was recorded.
fn fresh(data: &Value, ids: &mut HashMap<String, String>) -> Value {
    let mut data = data.as_object().cloned().unwrap_or_default();
    let id = match data.get("guardrailId").and_then(Value::as_str) {
        Some(recorded) => ids.entry(recorded.to_owned()).or_insert_with(ids::fresh).clone(),
        None => ids::fresh(),
    };
    data.insert("guardrailId".to_owned(), id.into());
    data.shift_remove("expiresAt");
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

/// The recorded result, under the ids of this play.
fn completed(data: &Value, task: &Task) -> Completed {
    let mut data = data.as_object().cloned().unwrap_or_default();
    for entry in data.get_mut("network").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Value::Object(entry) = entry {
            entry.insert("id".to_owned(), task.session().into());
            entry.insert("taskId".to_owned(), task.id().into());
        }
    }
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

#[cfg(test)]
mod tests {
    use onlooker_protocol::{
        picture::{self, PublishedPicture},
        runtime::{NumberedCommand, OpenSession, RuntimeCommand, RuntimeToGateway},
        subscriber::NewTask,
    };
    use serde_json::json;
    use tokio::{sync::Notify, task::JoinHandle};

    use super::*;
    use crate::client::{session::Session, window::FrameLimits};

    /// A replay of a task on a session whose gateway is the test.
    struct Stage {
        session: Arc<Session>,
        outgoing: Arc<Notify>,
        began: Instant,
        play: JoinHandle<Result<Completed, Failed>>,
        commands: u64,
    }

    impl Stage {
        async fn start(lines: Value, speed: f64) -> Self {
            let lines: Vec<Line> = serde_json::from_value(lines).unwrap();
            let pictures = [("0001.png".to_owned(), "png".into())].into();
            let replay = Replay::new(Recording::new(lines, pictures).unwrap(), speed);
            let outgoing = Arc::new(Notify::new());
            let session = Session::new("s".to_owned(), "c".to_owned(), OpenSession::default(), outgoing.clone());
            let session = Arc::new(session);
            session.claimed("c".to_owned(), 1, false);
            let task = NewTask { task_id: Some("t".to_owned()), ..NewTask::default() };
            session.apply(NumberedCommand { number: 1, command: RuntimeCommand::NewTask { task } });
            let running = session.next_task().await;
            let play = tokio::spawn(replay.work(Task::new(session.clone(), running)));
            Self { session, outgoing, began: Instant::now(), play, commands: 1 }
        }

        /// The next event's time in milliseconds since the start, type and data.
        async fn next(&mut self) -> (u128, String, Value) {
            loop {
                if let Some(message) = self.session.next_frame(FrameLimits { bytes: 1 << 20, events: 1 }) {
                    let at = self.began.elapsed().as_millis();
                    if message.is_binary() {
                        let data = message.into_data();
                        let (header, bytes): (PublishedPicture, _) = picture::decode(&data).unwrap();
                        return (at, header.media, json!(bytes));
                    }
                    let RuntimeToGateway::Events { mut events, .. } =
                        serde_json::from_str(message.to_text().unwrap()).unwrap()
                    else {
                        panic!("an event")
                    };
                    let event = events.remove(0);
                    return (at, event.kind, event.data);
                }
                self.outgoing.notified().await;
            }
        }

        fn command(&mut self, command: RuntimeCommand) {
            self.commands += 1;
            self.session.apply(NumberedCommand { number: self.commands, command });
        }

        fn answer(&mut self, question: &Value, outcome: Outcome) {
            self.command(RuntimeCommand::Guardrail(GuardrailOutcome {
                guardrail_id: question["guardrailId"].as_str().unwrap().to_owned(),
                revision: 1,
                asked: 1,
                outcome,
                on_timeout: None,
                text: None,
                choice: None,
                values: Default::default(),
            }));
        }
    }

    fn lines() -> Value {
        json!([
            {"at": 0.0, "type": "task_started"},
            {"at": 1.0, "type": "action", "data": {"name": "click"}},
            {"at": 3.0, "type": "screenshot", "file": "0001.png"},
            {"at": 4.0, "type": "guardrail_trigger", "data": {"guardrailId": "recorded", "value": "Go?",
                                                               "expiresAt": "2020-01-01T00:00:00.000Z"}},
            {"at": 5.5, "type": "x.own"},
            {"at": 6.0, "type": "task_completed", "data": {"message": "done", "network": [{"urls": []}]}},
        ])
    }

    #[tokio::test(start_paused = true)]
    async fn the_intervals_are_those_recorded_and_the_clock_stands_at_a_guardrail() {
        let mut stage = Stage::start(lines(), 2.0).await;
        let (at, kind, data) = stage.next().await;
        assert_eq!((at, kind.as_str(), data), (500, "action", json!({"name": "click"})));
        let (at, media, bytes) = stage.next().await;
        assert_eq!((at, media.as_str(), bytes), (1_500, "image/png", json!(b"png")));
        let (at, kind, question) = stage.next().await;
        assert_eq!((at, kind.as_str(), &question["value"]), (2_000, "guardrail_trigger", &json!("Go?")));
        assert_ne!(question["guardrailId"], "recorded");
        assert!(question["expiresAt"].is_null(), "it would have expired before it was asked");
        tokio::time::sleep(Duration::from_secs(600)).await;
        stage.answer(&question, Outcome::Answered);
        assert_eq!(stage.next().await.1, "guardrail_taken");
        let (at, kind, _) = stage.next().await;
        assert_eq!((at, kind.as_str()), (602_750, "x.own"));
        let completed = stage.play.await.unwrap().unwrap();
        assert_eq!((stage.began.elapsed().as_millis(), completed.message.as_str()), (603_000, "done"));
        assert_eq!(Value::Object(completed.data), json!({"network": [{"urls": [], "id": "s", "taskId": "t"}]}));
    }

    #[tokio::test(start_paused = true)]
    async fn a_declined_guardrail_ends_the_task_with_an_error() {
        let mut stage = Stage::start(lines(), 0.0).await;
        let question = loop {
            let (at, kind, data) = stage.next().await;
            assert_eq!(at, 0, "a speed of 0 does not wait");
            if kind == "guardrail_trigger" {
                break data;
            }
        };
        stage.answer(&question, Outcome::Declined);
        assert_eq!(stage.play.await.unwrap().unwrap_err().code, "guardrail_declined");
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_stands_while_the_task_is_paused() {
        let mut stage = Stage::start(lines(), 1.0).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        stage.command(RuntimeCommand::Pause);
        tokio::time::sleep(Duration::from_secs(11)).await;
        stage.command(RuntimeCommand::Resume);
        assert_eq!(stage.next().await.0, 12_000);
        assert_eq!(stage.next().await.0, 14_000);
    }
}
