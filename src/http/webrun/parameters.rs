//! What a WebRun client may say of a session and of a task, in every documented generation, checked and brought into
//! the core's terms. What is valid reaches the runtime whole, members that nobody here knows included.
//!
//! Three forms of a start are documented: flat, with `initialTask`, with `task`. They come apart into what belongs to
//! the session and what belongs to its first task; old names become today's. A `null` is as good as nothing.
//! No refusal echoes a text that a client sent: it could be a secret.

mod countries;
mod output;
mod proxy;
mod values;
mod webhook;

use axum::http::StatusCode;
use onlooker_protocol::{
    runtime::OpenSession,
    subscriber::{NewTask, SecretEntry},
    view::ReachOutMode,
};
use serde_json::{Map, Value};

use self::values::Members;
use super::problem::Problem;
use crate::ids::is_outside_id;

/// What a task may run, in milliseconds, when nothing is said: as documented.
const DURATION_DEFAULT: u64 = 300_000;
/// Documented samples exceed these, so that what lies outside is brought inside.
const DURATION: (u64, u64) = (1_000, 300_000);
const TOKENS: (u64, u64) = (0, 100_000);
const FILES_MAX: usize = 100;

/// Members of a task, today's names and older ones.
const OF_TASK: &[&str] = &[
    "prompt",
    "taskDetails",
    "startingUrl",
    "startingPoint",
    "maxDuration",
    "maxInputTokens",
    "maxOutputTokens",
    "terminateOnCompletion",
    "outputType",
    "outputSchema",
    "secrets",
    "files",
    "webhook",
];
/// Fixed for a whole session, and never inside a task.
const OF_SESSION: &[&str] = &["proxy", "environmentId", "profileId", "policyId", "reachOutMode"];

/// A session as `start-session` has it. Without a prompt it has no first task; what else was said of one is its own.
///
/// # Errors
/// 400, naming the parameter.
pub fn start(body: Map<String, Value>) -> Result<OpenSession, Problem> {
    let form = Form::of(body)?;
    let mut session = session(form.session)?;
    let task = read_task(form.task)?;
    if task.prompt.as_deref().is_some_and(|prompt| !prompt.trim().is_empty()) {
        session.task = Some(with_defaults(task));
    } else {
        keep_without_prompt(&mut session, task);
    }
    Ok(session)
}

/// A session for one task, as `run-task` has it: it ends with the task.
///
/// # Errors
/// 400, naming the parameter.
pub fn run(body: Map<String, Value>) -> Result<OpenSession, Problem> {
    let form = Form::of(body)?;
    let required = match (form.is_nested, form.task.is_empty()) {
        (false, false) => "taskDetails",
        _ => "task.prompt",
    };
    let old = says_old_prompt(&form.task);
    let mut session = session(form.session)?;
    let mut task = read_task(form.task)?;
    check_prompt(&task, old, || match required {
        "taskDetails" => {
            let problem = Problem::new(StatusCode::BAD_REQUEST, "MISSING_REQUIRED_FIELD", "taskDetails is required");
            problem.with("field", required)
        }
        _ => Problem::missing(required),
    })?;
    task.terminate_on_completion = true;
    session.task = Some(with_defaults(task));
    Ok(session)
}

/// A task as a `newTask` message has it.
///
/// # Errors
/// 400, naming the parameter.
pub fn task(members: Map<String, Value>) -> Result<NewTask, Problem> {
    let old = says_old_prompt(&members);
    let task = read_task(members)?;
    check_prompt(&task, old, || Problem::missing("prompt"))?;
    Ok(with_defaults(task))
}

/// A start, taken apart.
struct Form {
    session: Map<String, Value>,
    task: Map<String, Value>,
    /// The task stood in an object of its own.
    is_nested: bool,
}

impl Form {
    fn of(mut body: Map<String, Value>) -> Result<Self, Problem> {
        // In some documented samples of run-task; it means nothing there.
        body.remove("sessionId");
        let nested = match (body.take("task"), body.take("initialTask")) {
            (Some(_), Some(_)) => {
                return Err(Problem::parameter("initialTask", "is the old name of task; send one of them"));
            }
            (Some(task), None) => Some(("task", task)),
            (None, Some(task)) => Some(("initialTask", task)),
            (None, None) => None,
        };
        let Some((name, task)) = nested else { return Ok(Self::flat(body)) };
        let Value::Object(mut task) = task else { return Err(Problem::parameter(name, "must be an object")) };
        if let Some(misplaced) = OF_TASK.iter().find(|member| body.has(member)) {
            let place = format!("belongs inside {name}");
            return Err(Problem::parameter(misplaced, &place).with("expected", format!("{name}.{misplaced}")));
        }
        for lenient in ["taskId", "avoidDomains"] {
            if let Some(value) = body.take(lenient) {
                task.entry(lenient).or_insert(value);
            }
        }
        Ok(Self { session: body, task, is_nested: true })
    }

    fn flat(mut body: Map<String, Value>) -> Self {
        let of_task = OF_TASK.iter().chain(&["taskId", "avoidDomains"]);
        let task = of_task.filter_map(|name| Some(((*name).to_owned(), body.take(name)?))).collect();
        Self { session: body, task, is_nested: false }
    }
}

fn session(mut members: Map<String, Value>) -> Result<OpenSession, Problem> {
    let reach_out_mode = match members.take("reachOutMode") {
        None => ReachOutMode::default(),
        Some(mode) => reach_out_mode(&mode)?,
    };
    let profile = members.take("profileId");
    let environment_id = id("environmentId", members.take("environmentId").or(profile))?;
    if let Some(policy) = id("policyId", members.take("policyId"))? {
        members.insert("policyId".to_owned(), policy.into());
    }
    members.one_of("mode", &["default"])?;
    proxy::check(&mut members)?;
    Ok(OpenSession { reach_out_mode, environment_id, parameters: members, ..OpenSession::default() })
}

fn reach_out_mode(mode: &Value) -> Result<ReachOutMode, Problem> {
    mode.as_str().unwrap_or_default().parse().map_err(|documented: &str| {
        Problem::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER", documented).with("parameter", "reachOutMode")
    })
}

/// An id that somebody else made. An empty one, as samples with unset variables have it, is none.
fn id(name: &str, said: Option<Value>) -> Result<Option<String>, Problem> {
    match said {
        None => Ok(None),
        Some(Value::String(id)) if id.is_empty() => Ok(None),
        Some(Value::String(id)) if is_outside_id(&id) => Ok(Some(id)),
        Some(_) => Err(Problem::parameter(name, "must be 1 to 64 characters of A-Z a-z 0-9 _ -")),
    }
}

/// Checks a task and brings its old names up to date. Its prompt may be missing.
fn read_task(mut members: Map<String, Value>) -> Result<NewTask, Problem> {
    if let Some(misplaced) = OF_SESSION.iter().find(|member| members.has(member)) {
        let place = "belongs to the session, beside task; a session keeps it for all its tasks";
        return Err(Problem::parameter(misplaced, place).with("expected", *misplaced));
    }
    for (old, new) in [("taskDetails", "prompt"), ("startingPoint", "startingUrl")] {
        if let Some(value) = members.take(old)
            && !members.has(new)
        {
            members.insert(new.to_owned(), value);
        }
    }
    let task_id = id("taskId", members.take("taskId"))?;
    let prompt = members.take_text("prompt")?;
    let max_duration = members.take_number("maxDuration", DURATION)?;
    for name in ["maxInputTokens", "maxOutputTokens"] {
        if let Some(tokens) = members.take_number(name, TOKENS)? {
            members.insert(name.to_owned(), tokens.into());
        }
    }
    let terminate_on_completion = members.take_flag("terminateOnCompletion")?;
    let secrets = secrets(members.take("secrets"))?;
    members.text("startingUrl")?;
    members.texts("files", FILES_MAX)?;
    members.texts("avoidDomains", usize::MAX)?;
    output::check(&mut members)?;
    webhook::check(&mut members)?;
    Ok(NewTask { task_id, prompt, max_duration, terminate_on_completion, secrets, parameters: members })
}

fn secrets(said: Option<Value>) -> Result<Vec<SecretEntry>, Problem> {
    let Some(said) = said else { return Ok(Vec::new()) };
    let Value::Array(entries) = said else { return Err(Problem::parameter("secrets", "must be an array")) };
    let entries = entries.into_iter().enumerate().map(|(index, entry)| secret(index, entry));
    let entries: Vec<SecretEntry> = entries.collect::<Result<_, _>>()?;
    crate::secrets::check(&entries).map_err(|what| Problem::parameter("secrets", &what))?;
    Ok(entries)
}

/// Names of fields are not shown either: somebody may have put a value there.
fn secret(index: usize, entry: Value) -> Result<SecretEntry, Problem> {
    let Value::Object(mut entry) = entry else {
        return Err(Problem::parameter(&format!("secrets[{index}]"), "must be an object"));
    };
    let named = |member: &str| format!("secrets[{index}].{member}");
    let matches = match entry.take("match") {
        Some(Value::String(matches)) => matches,
        Some(_) => return Err(Problem::parameter(&named("match"), "must be a string")),
        None => return Err(Problem::missing(&named("match"))),
    };
    let fields = match entry.take("fields") {
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(Problem::parameter(&named("fields"), "must be an object")),
        None => return Err(Problem::missing(&named("fields"))),
    };
    let text = |(name, value)| match value {
        Value::String(text) => Ok((name, text)),
        Value::Number(number) => Ok((name, number.to_string())),
        _ => Err(Problem::parameter(&named("fields"), "must have strings as its values")),
    };
    Ok(SecretEntry { matches, fields: fields.into_iter().map(text).collect::<Result<_, _>>()? })
}

fn says_old_prompt(members: &Map<String, Value>) -> bool {
    members.has("taskDetails") && !members.has("prompt")
}

fn check_prompt(task: &NewTask, old: bool, missing: impl FnOnce() -> Problem) -> Result<(), Problem> {
    let Some(prompt) = &task.prompt else { return Err(missing()) };
    if !prompt.trim().is_empty() {
        return Ok(());
    }
    let name = if old { "taskDetails" } else { "prompt" };
    Err(Problem::new(StatusCode::BAD_REQUEST, "INVALID_TASK_DETAILS", format!("{name} cannot be empty")))
}

fn with_defaults(mut task: NewTask) -> NewTask {
    task.max_duration.get_or_insert(DURATION_DEFAULT);
    task
}

/// What was said of a task that is not there: its secrets are the session's, the rest its runtime may use.
fn keep_without_prompt(session: &mut OpenSession, mut task: NewTask) {
    session.secrets = std::mem::take(&mut task.secrets);
    task.prompt = None;
    if task == NewTask::default() {
        return;
    }
    let kept = serde_json::to_value(task).expect("made of JSON");
    session.parameters.insert("task".to_owned(), kept);
}

#[cfg(test)]
mod tests;
