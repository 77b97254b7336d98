//! Makes a recording of a session's first task, while it runs or from what its log still has.
//!
//! It follows as an observer, so that it never counts as somebody looking. Only what the runtime published goes into
//! the recording; ids, and what the client of a replay publishes by itself, are left out. The clock stands while a
//! guardrail waits and while the task is paused. A picture whose bytes did not come is left out: the gateway sends
//! pictures to who follows live, and withholds those of sensitive windows.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use onlooker_protocol::{
    code::Refusal,
    event::{EventFrame, Since, kind},
    picture::ShownPicture,
    subscriber::{GatewayToSubscriber, PictureLevel, Role, Subscribe},
};
use serde_json::{Map, Value, json};
use tokio::time::timeout;
use url::Url;

use crate::{
    follow::{Follow, FollowError, Frame},
    recording::{Line, RecordingError, Writer, extension_of},
};

/// How long the bytes of pictures may come after the task's end.
const LATE_PICTURES: Duration = Duration::from_secs(2);

/// What is followed. Has no `Debug`: the token is a secret.
#[derive(Clone)]
pub struct RecordOptions {
    /// The gateway's base address, `http(s)://` or `ws(s)://`.
    pub gateway: Url,
    pub token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the gateway cannot be followed")]
    Follow(#[source] FollowError),
    #[error("the gateway refused: {0}")]
    Refused(Box<Refusal>),
    #[error("the gateway's log no longer has the whole task")]
    Gap,
    #[error("the session ended before a task began")]
    NoTask,
    #[error("the gateway ended the subscription: {0}")]
    Unsubscribed(String),
    #[error("the recording cannot be written")]
    Recording(#[source] RecordingError),
}

/// Writes a recording of the session's first task into a folder, which holds none yet. Returns when the task has
/// ended; `progress` gets a sentence for every line written.
///
/// # Errors
/// When the session cannot be followed from its beginning to the task's end, or the folder cannot be written.
pub async fn record(
    options: RecordOptions,
    session: &str,
    into: &Path,
    mut progress: impl FnMut(&str) + Send,
) -> Result<(), RecordError> {
    let writer = Writer::create(into).map_err(RecordError::Recording)?;
    let mut follow = Follow::connect(&options.gateway, options.token).await.map_err(RecordError::Follow)?;
    let subscribe = Subscribe {
        session: Some(session.to_owned()),
        since: Since::Start,
        pictures: PictureLevel::Full,
        role: Role::Observer,
        ..Subscribe::default()
    };
    follow.subscribe(subscribe).expect("nothing waits on a new connection");
    let mut recorder = Recorder::default();
    while !recorder.ended {
        let Some(frame) = follow.next().await else { return Err(end_of(&follow)) };
        recorder.take(frame, &writer, &mut progress)?;
    }
    let late = async {
        while recorder.waits_for_pictures() {
            let Some(frame) = follow.next().await else { break };
            if let Frame::Picture(header, bytes) = frame {
                recorder.picture(&header, &bytes, &writer)?;
            }
        }
        Ok(())
    };
    timeout(LATE_PICTURES, late).await.unwrap_or(Ok(()))?;
    follow.close().await;
    writer.finish(&recorder.lines()).map_err(RecordError::Recording)
}

/// What an export wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    pub lines: usize,
    /// Screenshots whose bytes were not there.
    pub without_picture: usize,
    /// The log ended before the task did; the recording then ends with an error that says so.
    pub unfinished: bool,
}

/// Writes a recording of a task from events that somebody kept, in the order of the log, and the pictures that are
/// there. `task`: the first one when nobody names one.
///
/// # Errors
/// There is no such task, or the folder cannot be written.
pub fn export(
    events: impl IntoIterator<Item = EventFrame>,
    pictures: &[(ShownPicture, Vec<u8>)],
    task: Option<&str>,
    into: &Path,
) -> Result<Exported, RecordError> {
    let mut recorder = Recorder { wanted: task.map(str::to_owned), ..Recorder::default() };
    for event in events {
        recorder.event(event, &mut |_| {})?;
    }
    if recorder.task.is_none() {
        return Err(RecordError::NoTask);
    }
    let unfinished = !recorder.ended;
    if unfinished {
        recorder.cut_off("the task was still running when it was exported", "unfinished", &mut |_| {});
    }
    let writer = Writer::create(into).map_err(RecordError::Recording)?;
    for (header, bytes) in pictures {
        recorder.picture(header, bytes, &writer)?;
    }
    let lines = recorder.lines();
    let without_picture = recorder.lines.len() - lines.len();
    writer.finish(&lines).map_err(RecordError::Recording)?;
    Ok(Exported { lines: lines.len(), without_picture, unfinished })
}

fn end_of(follow: &Follow) -> RecordError {
    let reason = follow.error().map(ToString::to_string).unwrap_or_default();
    RecordError::Follow(FollowError::lost(reason))
}

/// Turns events of a session into lines of a recording.
#[derive(Default)]
struct Recorder {
    /// The task that somebody asked for; the first one otherwise.
    wanted: Option<String>,
    task: Option<String>,
    clock: Clock,
    /// Each line, and the id of its picture.
    lines: Vec<(Line, Option<String>)>,
    /// Names of the images written, by picture id.
    files: BTreeMap<String, String>,
    open: BTreeSet<String>,
    paused: bool,
    ended: bool,
}

impl Recorder {
    fn take(&mut self, frame: Frame, writer: &Writer, progress: &mut impl FnMut(&str)) -> Result<(), RecordError> {
        match frame {
            Frame::Picture(header, bytes) => return self.picture(&header, &bytes, writer),
            Frame::Text(GatewayToSubscriber::Replay { events, .. }) => {
                for event in events {
                    if let Ok(event) = serde_json::from_value(event) {
                        self.event(event, progress)?;
                    }
                }
            }
            Frame::Text(GatewayToSubscriber::Event(event)) => self.event(event, progress)?,
            Frame::Text(GatewayToSubscriber::Gap { .. }) => return Err(RecordError::Gap),
            Frame::Text(GatewayToSubscriber::Error { refusal, .. }) => {
                return Err(RecordError::Refused(Box::new(refusal)));
            }
            Frame::Text(GatewayToSubscriber::Unsubscribed { reason, .. }) => {
                return Err(RecordError::Unsubscribed(reason));
            }
            Frame::Text(_) => {}
        }
        Ok(())
    }

    fn event(&mut self, frame: EventFrame, progress: &mut impl FnMut(&str)) -> Result<(), RecordError> {
        if self.ended {
            return Ok(());
        }
        let now = milliseconds(&frame.at).unwrap_or(self.clock.now);
        let EventFrame { task, event, .. } = frame;
        if self.task.is_none() {
            if event.kind == kind::SESSION_ENDED {
                return Err(RecordError::NoTask);
            }
            if event.kind == kind::TASK_STARTED {
                let id = task.or_else(|| text(&event.data, "taskId")).unwrap_or_default();
                if self.wanted.as_ref().is_none_or(|wanted| *wanted == id) {
                    self.task = Some(id);
                    self.clock = Clock::start(now);
                }
            }
            return Ok(());
        }
        self.clock.now = self.clock.now.max(now);
        if task.is_some() && task != self.task {
            return Ok(());
        }
        self.of_the_task(&event.kind, event.data, progress);
        Ok(())
    }

    fn of_the_task(&mut self, kind: &str, data: Value, progress: &mut impl FnMut(&str)) {
        match kind {
            kind::GUARDRAIL_TRIGGER => {
                self.open.extend(text(&data, "guardrailId"));
                // A deadline of the day of the recording has passed on every other day.
                let question = without(data, &["guardrailId", "revision", "asked", "type", "expiresAt"]);
                self.line(kind, question, None, progress);
            }
            kind::GUARDRAIL_RESOLVED | kind::GUARDRAIL_TAKEN | kind::GUARDRAIL_WITHDRAWN => self.closed(&data),
            kind::TASK_PAUSED => self.paused = true,
            kind::TASK_RESUMED => self.paused = false,
            kind::TASK_STOPPED => self.cut_off("the recorded task was stopped", "stopped", progress),
            kind::SESSION_ENDED => self.cut_off("the recorded session ended", "session_ended", progress),
            kind::SCREENSHOT => {
                let id = text(&data, "id");
                self.line(kind, without(data, &["id", "size", "media", "type"]), id, progress);
            }
            kind::TASK_STARTED => {}
            // The gateway opens the same window when the answer of a replay is handed over.
            kind::SENSITIVE if data.get("by").is_some_and(|by| by == "gateway") => {}
            _ if kind::is_result(kind) => {
                self.line(kind, result(data), None, progress);
                self.ended = true;
            }
            _ if kind::PUBLISHED.contains(&kind) || kind.starts_with("x.") => self.line(kind, data, None, progress),
            _ => {}
        }
        self.clock.stand(self.paused || !self.open.is_empty());
    }

    fn closed(&mut self, data: &Value) {
        // A guardrail whose answer was lost, or that was asked anew, goes on waiting.
        let goes_on = matches!(data.get("outcome").and_then(Value::as_str), Some("lost" | "superseded"));
        if let Some(id) = text(data, "guardrailId").filter(|_| !goes_on) {
            self.open.remove(&id);
        }
    }

    fn cut_off(&mut self, error: &str, code: &str, progress: &mut impl FnMut(&str)) {
        self.line(kind::ERROR, json!({"error": error, "code": code}), None, progress);
        self.ended = true;
    }

    fn line(&mut self, kind: &str, data: Value, picture: Option<String>, progress: &mut impl FnMut(&str)) {
        let at = self.clock.seconds();
        progress(&format!("{at:.3} {kind}"));
        self.lines.push((Line { at, kind: kind.to_owned(), data, file: None }, picture));
    }

    fn picture(&mut self, header: &ShownPicture, bytes: &[u8], writer: &Writer) -> Result<(), RecordError> {
        let Some(extension) = extension_of(&header.media) else { return Ok(()) };
        if self.task.is_some() && !self.files.contains_key(&header.id) {
            let name = format!("{:04}.{extension}", self.files.len() + 1);
            writer.picture(&name, bytes).map_err(RecordError::Recording)?;
            self.files.insert(header.id.clone(), name);
        }
        Ok(())
    }

    fn waits_for_pictures(&self) -> bool {
        self.lines.iter().filter_map(|(_, id)| id.as_ref()).any(|id| !self.files.contains_key(id))
    }

    /// The lines with the names of their images, without screenshots that have none.
    fn lines(&self) -> Vec<Line> {
        let named = self.lines.iter().map(|(line, id)| {
            let file = id.as_ref().and_then(|id| self.files.get(id)).cloned();
            Line { file, ..line.clone() }
        });
        named.filter(|line| line.kind != kind::SCREENSHOT || line.file.is_some()).collect()
    }
}

/// Time since the start of the task, without the time that it stood. In milliseconds, and never going back.
#[derive(Default)]
struct Clock {
    start: i64,
    now: i64,
    stood: i64,
    standing_since: Option<i64>,
}

impl Clock {
    fn start(at: i64) -> Self {
        Self { start: at, now: at, stood: 0, standing_since: None }
    }

    fn stand(&mut self, stands: bool) {
        match (stands, self.standing_since) {
            (true, None) => self.standing_since = Some(self.now),
            (false, Some(since)) => {
                self.stood += self.now - since;
                self.standing_since = None;
            }
            _ => {}
        }
    }

    fn seconds(&self) -> f64 {
        let until = self.standing_since.unwrap_or(self.now);
        // Exact: milliseconds of a day fit a double many times over, and one division rounds to the shortest text.
        (until - self.start - self.stood).max(0) as f64 / 1_000.0
    }
}

/// Milliseconds since 1970 of `2026-03-01T12:00:00.250Z`, the one form that the gateway writes.
fn milliseconds(at: &str) -> Option<i64> {
    let part = |from: usize, to: usize| at.get(from..to)?.parse::<i64>().ok();
    let separators = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')];
    if at.len() != 24 || separators.iter().any(|(place, byte)| at.as_bytes()[*place] != *byte) {
        return None;
    }
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    // Years that begin in March put the leap day last; 719,468 days lie between 0000-03-01 and 1970-01-01.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + part(11, 13)?) * 60 + part(14, 16)?) * 60 + part(17, 19)?;
    Some(seconds * 1_000 + part(20, 23)?)
}

/// A result without the ids of the session and the task, which every replay has its own of.
fn result(data: Value) -> Value {
    let mut data = without(data, &["taskId"]);
    for entry in data.get_mut("network").and_then(Value::as_array_mut).into_iter().flatten() {
        *entry = without(entry.take(), &["id", "taskId"]);
    }
    data
}

fn text(data: &Value, name: &str) -> Option<String> {
    data.get(name)?.as_str().map(str::to_owned)
}

fn without(data: Value, names: &[&str]) -> Value {
    let members: Map<_, _> = match data {
        Value::Object(members) => members.into_iter().filter(|(name, _)| !names.contains(&name.as_str())).collect(),
        other => return other,
    };
    Value::Object(members)
}

#[cfg(test)]
mod tests {
    use onlooker_protocol::event::Event;

    use super::*;

    fn frame(second: u32, kind: &str, data: Value) -> EventFrame {
        EventFrame {
            session: "s".to_owned(),
            position: "aaaaaaaa:1".parse().unwrap(),
            id: String::new(),
            at: format!("2026-03-01T00:00:{second:02}.500Z"),
            task: Some("t".to_owned()),
            event: Event { kind: kind.to_owned(), data },
        }
    }

    #[test]
    fn the_gateways_times_are_read_over_leap_days_and_years() {
        assert_eq!(milliseconds("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(milliseconds("2000-02-29T12:00:00.250Z"), Some(951_825_600_250));
        assert_eq!(milliseconds("2026-03-01T00:00:00.000Z"), Some(1_772_323_200_000));
        assert_eq!(milliseconds("2026-03-01T00:00:00Z"), None);
    }

    #[test]
    fn the_wait_for_an_answer_is_not_recorded_and_gateway_made_events_are_left_out() {
        let mut recorder = Recorder::default();
        let question = json!({"type": "human_input_needed", "guardrailId": "g", "revision": 1, "value": "Go?",
                              "expiresAt": "2026-03-02T00:00:00.000Z"});
        for event in [
            frame(0, "session_started", Value::Null),
            frame(1, "task_started", json!({"taskId": "t"})),
            frame(2, "action", json!({"name": "click"})),
            frame(3, "guardrail_trigger", question),
            frame(30, "guardrail_resolved", json!({"guardrailId": "g", "outcome": "answered"})),
            frame(30, "sensitive", json!({"on": true, "by": "gateway"})),
            frame(31, "guardrail_taken", json!({"guardrailId": "g", "revision": 1})),
            frame(
                32,
                "task_completed",
                json!({"message": "done", "taskId": "t", "network": [{"id": "s", "urls": []}]}),
            ),
        ] {
            recorder.event(event, &mut |_| {}).unwrap();
        }
        let lines: Vec<_> = recorder.lines().into_iter().map(|l| (l.at, l.kind, l.data)).collect();
        let expected = [
            (1.0, "action".to_owned(), json!({"name": "click"})),
            (2.0, "guardrail_trigger".to_owned(), json!({"value": "Go?"})),
            (4.0, "task_completed".to_owned(), json!({"message": "done", "network": [{"urls": []}]})),
        ];
        assert_eq!(lines, expected);
        assert!(recorder.ended);
    }
}
