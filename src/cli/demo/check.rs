//! `onlooker demo --check`: a program in the person's place, which looks, answers and checks what it sees.
//!
//! It uses the public surfaces only: a native subscriber whose attention is active, and REST to look once more at the
//! end. It holds what a person would rely on: pictures come live, every guardrail is opened, answered and taken once,
//! no secret of an answer comes back, and the task completes with its usage.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use onlooker_protocol::{
    event::{EventFrame, Since, kind},
    subscriber::{
        Answer, AnswerAction, Attention, GatewayToSubscriber, PictureLevel, Role, Subscribe, SubscriberToGateway,
    },
    view::GuardrailView,
};
use onlooker_runtime::{Follow, Frame};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use url::Url;

use super::super::{
    failure::Failure,
    line,
    remote::Remote,
    say,
    watch::{ATTENTION_EVERY, end_of},
};

const DEADLINE: Duration = Duration::from_secs(120);
const EMAIL: &str = "ada@example.com";
const PASSWORD: &str = "correct horse";
const CODE: &str = "246810";
/// What is given in answers and must be seen nowhere.
pub(super) const SECRETS: [&str; 2] = [PASSWORD, CODE];

/// # Errors
/// Says what did not hold.
pub(super) async fn run(gateway: &Url, remote: &Remote, session: &str) -> Result<(), Failure> {
    let began = Instant::now();
    let mut seen = Seen::default();
    let mut follow = Follow::connect(gateway, None).await?;
    let subscribe = Subscribe {
        session: Some(session.to_owned()),
        since: Since::Start,
        pictures: PictureLevel::Full,
        role: Role::Watcher,
        attention: Attention::Active,
        ..Subscribe::default()
    };
    follow.subscribe(subscribe).expect("nothing waits on a new connection");
    let in_time = timeout(DEADLINE, look(&mut follow, remote, session, &mut seen)).await;
    follow.close().await;
    match in_time {
        Ok(looked) => looked?,
        Err(_) => seen.wrong.push(format!("the task did not end within {} s", DEADLINE.as_secs())),
    }
    look_again(remote, session, &mut seen).await?;
    seen.conclude();
    let summary = format!(
        "{} events, {} pictures, {} guardrails, {:.1} s",
        seen.events,
        seen.pictures,
        seen.guardrails.len(),
        began.elapsed().as_secs_f64()
    );
    if seen.wrong.is_empty() {
        return say(format_args!("demo check: ok: {summary}"));
    }
    say(format_args!("demo check: FAILED: {summary}"))?;
    Err(Failure::failed(seen.wrong.join("; ")))
}

/// Follows until the task is over.
async fn look(follow: &mut Follow, remote: &Remote, session: &str, seen: &mut Seen) -> Result<(), Failure> {
    let mut attention = interval(ATTENTION_EVERY);
    attention.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !seen.over() {
        tokio::select! {
            frame = follow.next() => {
                let Some(frame) = frame else { return Err(end_of(follow)) };
                if seen.take(frame)? {
                    answer_open(follow, remote, session, seen).await?;
                }
            }
            _ = attention.tick() => {
                let _ = follow.send(SubscriberToGateway::Attention { session: None, state: Attention::Active });
            }
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Open {
    guardrails: Vec<GuardrailView>,
}

/// Answers what is open and not answered yet, on the socket.
async fn answer_open(follow: &mut Follow, remote: &Remote, session: &str, seen: &mut Seen) -> Result<(), Failure> {
    let open: Open = remote.get(&["v1", "guardrails"], &[("session", session), ("state", "open")]).await?;
    for view in open.guardrails {
        let key = (view.guardrail_id.clone(), view.revision);
        let course = seen.guardrails.entry(key).or_default();
        if std::mem::replace(&mut course.given, true) {
            continue;
        }
        let frame = SubscriberToGateway::Answer {
            reference: Some(format!("{}/{}", view.guardrail_id, view.revision)),
            session: session.to_owned(),
            guardrail_id: view.guardrail_id.clone(),
            answer: answer_to(&view),
        };
        follow.send(frame).map_err(|error| Failure::failed(error.to_string()))?;
    }
    Ok(())
}

/// What the demo shop wants to hear; a recording takes any answer of the right form.
fn answer_to(view: &GuardrailView) -> Answer {
    let value = |id: &str, kind: Option<&str>| match (id, kind) {
        ("email", _) | (_, Some("email")) => EMAIL,
        ("password", _) | (_, Some("password")) => PASSWORD,
        ("code", _) | (_, Some("code" | "totp")) => CODE,
        _ => "Ada",
    };
    let approve = view.choices.iter().find(|choice| choice.id == "approve").or(view.choices.first());
    Answer {
        revision: view.revision,
        idempotency_key: uuid::Uuid::now_v7().to_string(),
        action: AnswerAction::Submit,
        text: (view.fields.is_empty() && view.choices.is_empty()).then(|| "yes".to_owned()),
        choice: approve.map(|choice| choice.id.clone()),
        values: view
            .fields
            .iter()
            .map(|field| (field.id.clone(), value(&field.id, field.kind.as_deref()).to_owned()))
            .collect(),
    }
}

/// What REST says must hold as well: nothing open, no secret.
async fn look_again(remote: &Remote, session: &str, seen: &mut Seen) -> Result<(), Failure> {
    let events: Value = remote.get(&["v1", "sessions", session, "events"], &[("since", "start")]).await?;
    seen.check_for_secrets(&events.to_string(), "the log");
    let state: Value = remote.get(&["v1", "sessions", session], &[]).await?;
    seen.check_for_secrets(&state.to_string(), "the session's state");
    let open: Open = remote.get(&["v1", "guardrails"], &[("session", session)]).await?;
    for view in open.guardrails {
        seen.wrong.push(format!("guardrail {} is still {}", view.guardrail_id, line::word(&view.state)));
    }
    for id in seen.guardrails.keys().map(|(id, _)| id.clone()).collect::<Vec<_>>() {
        let why: Value = remote.get(&["v1", "guardrails", &id, "why"], &[("session", session)]).await?;
        seen.check_for_secrets(&why.to_string(), "a why");
    }
    Ok(())
}

/// How often each thing happened to one guardrail under one revision.
#[derive(Debug, Default, PartialEq, Eq)]
struct Course {
    given: bool,
    opened: u32,
    answered: u32,
    taken: u32,
}

#[derive(Default)]
struct Seen {
    events: usize,
    pictures: usize,
    guardrails: BTreeMap<(String, u32), Course>,
    /// The data of the event that ended the task.
    completed: Option<Value>,
    wrong: Vec<String>,
}

impl Seen {
    fn over(&self) -> bool {
        self.completed.is_some() || !self.wrong.is_empty()
    }

    /// Notes a frame. `true` when guardrails may be open that were not looked at.
    fn take(&mut self, frame: Frame) -> Result<bool, Failure> {
        match frame {
            Frame::Picture(header, bytes) => {
                self.pictures += 1;
                if bytes.is_empty() || bytes.len() as u64 != header.size {
                    self.wrong.push(format!("picture {} has {} bytes, not {}", header.id, bytes.len(), header.size));
                }
                Ok(false)
            }
            Frame::Text(frame) => {
                let text = serde_json::to_string(&frame).expect("a frame is plain data");
                self.check_for_secrets(&text, "a frame");
                self.text(frame)
            }
        }
    }

    fn text(&mut self, frame: GatewayToSubscriber) -> Result<bool, Failure> {
        match frame {
            GatewayToSubscriber::Snapshot { state, .. } => Ok(!state.guardrails.is_empty()),
            GatewayToSubscriber::Replay { events, .. } => {
                for event in events {
                    let event = serde_json::from_value(event)
                        .map_err(|error| Failure::failed(format!("an event cannot be read: {error}")))?;
                    self.event(&event)?;
                }
                Ok(false)
            }
            GatewayToSubscriber::Event(event) => {
                self.event(&event)?;
                Ok(event.event.kind == kind::GUARDRAIL_TRIGGER)
            }
            GatewayToSubscriber::Error { refusal, .. } => {
                self.wrong.push(format!("the gateway refused: {refusal}"));
                Ok(false)
            }
            GatewayToSubscriber::Gap { .. } => {
                self.wrong.push("events were lost".to_owned());
                Ok(false)
            }
            GatewayToSubscriber::Unsubscribed { reason, .. } => {
                self.wrong.push(format!("the subscription was ended: {reason}"));
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn event(&mut self, frame: &EventFrame) -> Result<(), Failure> {
        self.events += 1;
        say(line::of_event(frame))?;
        let data = &frame.event.data;
        match frame.event.kind.as_str() {
            kind::GUARDRAIL_TRIGGER => self.course(data).opened += 1,
            kind::GUARDRAIL_RESOLVED if data["outcome"] == "answered" => self.course(data).answered += 1,
            kind::GUARDRAIL_RESOLVED => self.wrong.push(format!("a guardrail was {}", data["outcome"])),
            kind::GUARDRAIL_TAKEN => self.course(data).taken += 1,
            kind::TASK_COMPLETED => self.completed = Some(data.clone()),
            kind::ERROR => self.wrong.push(format!("the task failed: {}", line::plain(&data.to_string()))),
            kind::SESSION_ENDED => self.wrong.push("the session ended before the task".to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn course(&mut self, data: &Value) -> &mut Course {
        let id = data["guardrailId"].as_str().unwrap_or_default().to_owned();
        let revision = data["revision"].as_u64().and_then(|revision| u32::try_from(revision).ok()).unwrap_or(1);
        self.guardrails.entry((id, revision)).or_default()
    }

    fn check_for_secrets(&mut self, text: &str, place: &str) {
        let forms = |secret: &str| {
            let plus = secret.replace(' ', "+");
            [secret.to_owned(), secret.replace(' ', "%20"), plus, STANDARD.encode(secret)]
        };
        if SECRETS.iter().flat_map(|secret| forms(secret)).any(|form| text.contains(&form)) {
            self.wrong.push(format!("{place} shows the secret of an answer"));
        }
    }

    /// What holds only at the end.
    fn conclude(&mut self) {
        if self.pictures == 0 {
            self.wrong.push("no picture came live".to_owned());
        }
        if self.guardrails.is_empty() {
            self.wrong.push("no guardrail was opened".to_owned());
        }
        let once = Course { given: true, opened: 1, answered: 1, taken: 1 };
        for ((id, revision), course) in &self.guardrails {
            if *course != once {
                self.wrong.push(format!("guardrail {id} revision {revision} went wrong: {course:?}"));
            }
        }
        match &self.completed {
            Some(data) if data["usage"].is_object() => {}
            Some(_) => self.wrong.push("the task completed without usage".to_owned()),
            None => self.wrong.push("the task did not complete".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seen(kinds: &[(&str, Value)]) -> Seen {
        let mut seen = Seen { pictures: 1, ..Seen::default() };
        for (kind, data) in kinds {
            let frame = json!({"session": "s", "position": "aaaaaaaa:1", "id": "", "at": "2026-03-01T12:00:01.250Z",
                               "event": {"type": kind, "data": data}});
            seen.event(&serde_json::from_value(frame).unwrap()).unwrap();
        }
        seen.guardrails.values_mut().for_each(|course| course.given = true);
        seen.conclude();
        seen
    }

    #[test]
    fn a_guardrail_that_is_answered_twice_fails_the_check() {
        let guardrail = json!({"guardrailId": "g", "revision": 1, "outcome": "answered"});
        let of = |kind| (kind, guardrail.clone());
        let end = ("task_completed", json!({"usage": {}}));
        let good = [of("guardrail_trigger"), of("guardrail_resolved"), of("guardrail_taken"), end.clone()];
        assert_eq!(seen(&good).wrong, Vec::<String>::new());
        let twice =
            [of("guardrail_trigger"), of("guardrail_resolved"), of("guardrail_taken"), of("guardrail_taken"), end];
        assert!(seen(&twice).wrong[0].contains("taken: 2"));
        assert!(seen(&good[..2]).wrong.iter().any(|wrong| wrong.contains("did not complete")));
    }

    #[test]
    fn a_secret_is_found_in_every_plain_form() {
        for text in ["correct horse", "a=correct+horse", "correct%20horse", "Y29ycmVjdCBob3JzZQ==", "246810"] {
            let mut seen = Seen::default();
            seen.check_for_secrets(text, "here");
            assert_eq!(seen.wrong, ["here shows the secret of an answer"], "{text}");
        }
    }
}
