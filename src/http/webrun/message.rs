//! What a client says to a session: the same object over `POST /start/send-message` and on the socket.

use onlooker_protocol::{
    code::Refusal,
    subscriber::{NewTask, SessionCommand},
    view::GuardrailView,
};
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{parameters, problem::Problem};
use crate::{
    guardrail::Actor,
    session::{
        Session,
        unnamed::{Heard, Shown, Unnamed},
    },
};

/// The browser's own chrome above the page: clients give coordinates of the window, runtimes take those of the page.
pub const CHROME_HEIGHT: f64 = 155.0;
pub const PAGE_WIDTH: f64 = 1024.0;
pub const PAGE_HEIGHT: f64 = 600.0;

/// The longest text that an interaction types, in bytes.
const TEXT_MAX: usize = 16 * 1024;

/// One message, understood.
pub enum Message {
    NewTask(Box<NewTask>),
    /// Pause, resume, stop, terminate, the wheel, and what a person does in the page.
    Command(SessionCommand),
    Answer(Reply),
}

/// An answer as its sender put it.
pub struct Reply {
    text: Zeroizing<String>,
    decline: bool,
    /// Named by clients that read the extra members of `guardrail_trigger`.
    named: Option<Shown>,
    /// The task that it is about, where the sender says so.
    task: Option<String>,
}

/// What a message came to.
pub enum Done {
    /// The task's id.
    Queued(String),
    Accepted,
    Answered(Heard),
}

impl Message {
    /// # Errors
    /// 400, naming what is wrong. Never a value: it could be a secret.
    pub fn read(message: Value) -> Result<Self, Problem> {
        let Value::Object(mut members) = message else {
            return Err(Problem::malformed("A message is a JSON object"));
        };
        let action = members.remove("actionType");
        match action.as_ref().and_then(Value::as_str) {
            Some("newTask") => new_task(members),
            Some("state") => state(&members),
            Some("interaction") => interaction(members),
            Some("guardrail") => reply(members),
            _ => {
                let problem = "must be one of: newTask, state, interaction, guardrail";
                Err(Problem::parameter("actionType", problem))
            }
        }
    }

    /// Hands it to the session. `shown` is what its sender was last shown, if the sender is a socket; for others it is
    /// what their polls were.
    ///
    /// # Errors
    /// What the core refuses.
    pub async fn send(self, session: &Session, actor: Actor, shown: Option<Shown>) -> Result<Done, Refusal> {
        match self {
            Self::NewTask(task) => {
                let done = session.command(SessionCommand::NewTask { task: *task }, actor).await?;
                let id = done.get("task").and_then(Value::as_str).unwrap_or_default();
                Ok(Done::Queued(id.to_owned()))
            }
            Self::Command(command) => session.command(command, actor).await.map(|_| Done::Accepted),
            Self::Answer(reply) => {
                let polled = || session.shown_to_pollers.last(reply.task.as_deref());
                let shown = reply.named.or(shown).or_else(polled);
                let unnamed = Unnamed { shown, text: reply.text, decline: reply.decline };
                session.answer_unnamed(unnamed, actor).await.map(Done::Answered)
            }
        }
    }
}

fn new_task(mut members: Map<String, Value>) -> Result<Message, Problem> {
    // Documented as required, and left out by documented samples.
    match members.remove("newState") {
        None => {}
        Some(Value::String(state)) if state == "start" => {}
        Some(_) => return Err(Problem::parameter("newState", "must be start for a newTask")),
    }
    parameters::task(members).map(|task| Message::NewTask(Box::new(task)))
}

fn state(members: &Map<String, Value>) -> Result<Message, Problem> {
    let command = match members.get("newState").and_then(Value::as_str) {
        Some("pause") => SessionCommand::Pause,
        Some("resume") => SessionCommand::Resume,
        Some("stop") => SessionCommand::Stop,
        Some("terminate") => SessionCommand::Terminate,
        // In one old sample: the take-over of today.
        Some("manual") => SessionCommand::TakeControl,
        _ => return Err(Problem::parameter("newState", "must be one of: pause, resume, stop, terminate")),
    };
    Ok(Message::Command(command))
}

fn reply(mut members: Map<String, Value>) -> Result<Message, Problem> {
    let decline = match members.get("newState").map(Value::as_str) {
        None | Some(Some("resume")) => false,
        Some(Some("stop")) => true,
        Some(_) => return Err(Problem::parameter("newState", "must be resume or stop for a guardrail")),
    };
    let said = members.remove("prompt").or_else(|| members.remove("taskDetails"));
    let text = match said {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text,
        Some(_) => return Err(Problem::parameter("prompt", "must be a string")),
    };
    let text = Zeroizing::new(text);
    let name = |member: &str| members.get(member).and_then(Value::as_str).map(str::to_owned);
    let revision = members.get("revision").and_then(Value::as_u64).and_then(|revision| u32::try_from(revision).ok());
    let named = name("guardrailId").map(|guardrail| Shown { guardrail, revision });
    Ok(Message::Answer(Reply { text, decline, named, task: name("taskId") }))
}

fn interaction(mut members: Map<String, Value>) -> Result<Message, Problem> {
    let Some(Value::Object(action)) = members.remove("action") else {
        return Err(Problem::parameter("action", "must be an object"));
    };
    let kind = action.get("type").and_then(Value::as_str);
    let command = match kind {
        Some("takeOverControl") => SessionCommand::TakeControl,
        Some("releaseControl") => SessionCommand::ReleaseControl { token: None },
        Some(kind @ ("CLICK" | "DOUBLE_CLICK")) => click(kind, &action)?,
        Some("TYPE") => typing(&action)?,
        Some("KEY_PRESS") => key_press(&action)?,
        _ => {
            let problem = "must be one of: takeOverControl, releaseControl, CLICK, DOUBLE_CLICK, TYPE, KEY_PRESS";
            return Err(Problem::parameter("action.type", problem));
        }
    };
    Ok(Message::Command(command))
}

fn passed_on(action: Value) -> SessionCommand {
    let Value::Object(action) = action else { unreachable!("built as an object") };
    SessionCommand::Interaction { action, token: None }
}

fn click(kind: &str, action: &Map<String, Value>) -> Result<SessionCommand, Problem> {
    let between = |name: &str, low: f64, high: f64| {
        let number = action.get(name).and_then(Value::as_f64).filter(|number| (low..=high).contains(number));
        number.ok_or_else(|| {
            Problem::parameter(&format!("action.{name}"), &format!("must be a number from {low} to {high}"))
                .with("min", low)
                .with("max", high)
        })
    };
    let x = between("x", 0.0, PAGE_WIDTH)?;
    let y = between("y", CHROME_HEIGHT, CHROME_HEIGHT + PAGE_HEIGHT)?;
    Ok(passed_on(json!({ "type": kind, "x": x, "y": y - CHROME_HEIGHT })))
}

fn typing(action: &Map<String, Value>) -> Result<SessionCommand, Problem> {
    let text = action.get("text").and_then(Value::as_str).filter(|text| text.len() <= TEXT_MAX);
    let text = text
        .ok_or_else(|| Problem::parameter("action.text", &format!("must be a string of at most {TEXT_MAX} bytes")))?;
    let human_like = match action.get("humanLike") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(human_like)) => *human_like,
        Some(_) => return Err(Problem::parameter("action.humanLike", "must be true or false")),
    };
    Ok(passed_on(json!({ "type": "TYPE", "text": text, "humanLike": human_like })))
}

/// The documented names, beside single characters.
const KEYS: &[&str] = &[
    "Enter",
    "Escape",
    "Tab",
    "Backspace",
    "Delete",
    "ArrowUp",
    "ArrowDown",
    "ArrowLeft",
    "ArrowRight",
    "PageUp",
    "PageDown",
    "Home",
    "End",
];

fn key_press(action: &Map<String, Value>) -> Result<SessionCommand, Problem> {
    let key = action.get("key").and_then(Value::as_str).filter(|key| is_key(key));
    let key = key.ok_or_else(|| {
        Problem::parameter("action.key", &format!("must be a single character or one of: {}", KEYS.join(", ")))
    })?;
    Ok(passed_on(json!({ "type": "KEY_PRESS", "key": key })))
}

/// A documented name or one character; either may follow modifiers, as in `Control+a`.
fn is_key(key: &str) -> bool {
    let mut rest = key;
    while let Some((modifier, after)) = rest.split_once('+').filter(|(_, after)| !after.is_empty()) {
        if !matches!(modifier, "Control" | "Shift" | "Alt" | "Meta") {
            break;
        }
        rest = after;
    }
    KEYS.contains(&rest) || rest.chars().count() == 1
}

/// What a late answer's sender is told beside the documented body.
pub fn too_late(view: &GuardrailView) -> Map<String, Value> {
    let resolution = view.resolution.as_ref();
    let mut members = Map::new();
    members.insert("applied".to_owned(), false.into());
    members.insert("guardrailId".to_owned(), view.guardrail_id.clone().into());
    members.insert("state".to_owned(), json!(view.state));
    members.insert("answeredBy".to_owned(), json!(resolution.and_then(|resolution| resolution.by.as_deref())));
    members.insert("answeredVia".to_owned(), json!(resolution.map(|resolution| resolution.via.as_str())));
    members
}
