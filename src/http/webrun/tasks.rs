//! How a task stands, as a poll and an inline body say it; and waiting for it to be worth saying.
//!
//! Whoever polls or waits is looking: from the arrival of the request until a while after its response. A completely
//! written response proves what it carried, and an answer that names no question is for the one that it carried.

use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderValue, StatusCode, header, request},
    response::{IntoResponse, Response},
};
use onlooker_protocol::{
    code::{Code, Refusal},
    view::{GuardrailState, GuardrailView, SessionView, TaskStatus, TaskView},
};
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep_until};

use super::{access, frames, problem::Problem, urls::Base};
use crate::{
    auth::Grant,
    config::key::Scope,
    http::{App, Path, Refused, written::Written},
    ids::SessionId,
    session::{Session, unnamed::Shown},
    task_result::{Failure, usage_of},
    watch::PollGuard,
};

/// `GET /task/{session}/{task}`.
pub async fn poll(
    State(app): State<App>,
    path: Result<Path<(String, String)>, Refused>,
    headers: HeaderMap,
    response: ResponseEnd,
) -> Result<Response, Problem> {
    let Path((session, task)) = path.map_err(|_| Problem::no_such_path())?;
    let (session, grant) = access::reader(&app, &headers, &session)?;
    let looking = Looking::begin(&session, &grant, response);
    let standing = match Standing::of(&session, &task).await {
        Ok(Some(standing)) => standing,
        Ok(None) => return Err(Refusal::plain(Code::UnknownTask).into()),
        Err(_) if app.stopping.is_cancelled() => return Err(Refusal::plain(Code::Stopping).into()),
        Err(refusal) => return Err(refusal.into()),
    };
    Ok(looking.respond(standing))
}

/// Waits for what becomes of a task, and answers with that or with where to poll for it. Dropped when the client goes
/// away; the task goes on.
pub async fn inline(app: &App, session: &Session, task: &str, base: &Base, looking: Looking) -> Response {
    match news(app, session, task).await {
        Some(standing) => looking.respond(standing),
        None => pending(session.id, task, base).into_response(),
    }
}

fn pending(session: SessionId, task: &str, base: &Base) -> Json<Value> {
    Json(json!({
        "success": true,
        "sessionId": session.as_str(),
        "taskId": task,
        "status": "pending",
        "pending": true,
        "pollUrl": base.poll(session, task),
        "message": "Task still running. Poll GET /task/:sessionId/:taskId for result.",
    }))
}

/// The task's end or a question of its own; `None` when neither comes in time, or the gateway stops.
async fn news(app: &App, session: &Session, task: &str) -> Option<Standing> {
    let deadline = Instant::now() + app.config.webrun.inline_wait;
    let mut head = session.follow_head();
    loop {
        // Before looking: what is appended meanwhile wakes us again.
        head.borrow_and_update();
        // An owner that is gone says nothing more.
        let standing = Standing::of(session, task).await.ok()??;
        if !standing.is_running {
            return Some(standing);
        }
        tokio::select! {
            biased;
            () = app.stopping.cancelled() => return None,
            () = sleep_until(deadline) => return None,
            changed = head.changed() => changed.ok()?,
        }
    }
}

/// The end of the response to a request, where the connection can tell.
pub struct ResponseEnd(Option<Written>);

impl<S: Sync> FromRequestParts<S> for ResponseEnd {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut request::Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<Written>().cloned()))
    }
}

/// Somebody reads a session: a watcher for as long as this lives, and a while longer.
pub struct Looking {
    session: Session,
    poll: PollGuard,
    response: ResponseEnd,
}

impl Looking {
    pub fn begin(session: &Session, grant: &Grant, response: ResponseEnd) -> Self {
        let credential = format!("{:?}", grant.credential).into();
        let poll = session.watch.poll(credential, &grant.who, grant.may(Scope::Answer), Instant::now());
        Self { session: session.clone(), poll, response }
    }

    /// What the body carries is proved, and remembered as shown, once it is written.
    fn respond(self, standing: Standing) -> Response {
        let Self { session, poll, response } = self;
        let Standing { body, carried, .. } = standing;
        if let Some(written) = response.0 {
            written.after_response(Box::new(move || {
                poll.written(carried.questions, None);
                carried.result.into_iter().for_each(|offset| poll.written_result(offset));
                if let Some((task, shown)) = carried.question {
                    session.shown_to_pollers.set(&task, shown);
                }
            }));
        }
        let no_store = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A failed task too: documented pollers throw at any other status before they read the body.
        (StatusCode::OK, [no_store], Json(body)).into_response()
    }
}

/// A task, as its pollers read it.
struct Standing {
    body: Value,
    carried: Carried,
    is_running: bool,
}

/// What a body holds that somebody must see.
#[derive(Default)]
struct Carried {
    question: Option<(String, Shown)>,
    /// Every question that was open at or before this offset is in the body.
    questions: Option<u64>,
    /// Where the result stands that is in the body.
    result: Option<u64>,
}

impl Standing {
    /// `None`: the session has no such task, or no longer.
    async fn of(session: &Session, task: &str) -> Result<Option<Self>, Refusal> {
        let state = session.snapshot().await?.state;
        let view = match state.tasks.iter().find(|view| view.task == task) {
            Some(view) => Some(view.clone()),
            None => session.task(task.to_owned()).await?,
        };
        Ok(view.map(|view| Self::from_views(&state, &view)))
    }

    fn from_views(session: &SessionView, task: &TaskView) -> Self {
        let mut body = Map::new();
        body.insert("success".to_owned(), true.into());
        body.insert("sessionId".to_owned(), session.session.clone().into());
        body.insert("taskId".to_owned(), task.task.clone().into());
        let mut standing = Self { body: Value::Null, carried: Carried::default(), is_running: false };
        match task.status {
            TaskStatus::Completed => completed(&mut body, task),
            TaskStatus::Failed => failed(&mut body, task, task.result["error"].as_str(), task.result["code"].as_str()),
            TaskStatus::Stopped => stopped(&mut body, session, task),
            _ => match question(session, task) {
                Some(view) => standing.carried = asking(&mut body, session, task, view),
                None => {
                    standing.is_running = true;
                    body.insert("status".to_owned(), "running".into());
                    body.insert("pending".to_owned(), true.into());
                    body.insert("usage".to_owned(), usage_of(task).into());
                }
            },
        }
        if matches!(task.status, TaskStatus::Completed | TaskStatus::Failed) {
            standing.carried.result = task.ended.map(|position| position.offset);
        }
        standing.body = Value::Object(body);
        standing
    }
}

/// The oldest open question that holds the task up. One of no task holds up every task.
fn question<'a>(session: &'a SessionView, task: &TaskView) -> Option<&'a GuardrailView> {
    let holds = |view: &&GuardrailView| view.task.as_ref().is_none_or(|holds| *holds == task.task);
    open(session).filter(holds).min_by_key(|view| view.position.offset)
}

fn open(session: &SessionView) -> impl Iterator<Item = &GuardrailView> {
    session.guardrails.iter().filter(|view| view.state == GuardrailState::Open)
}

fn asking(body: &mut Map<String, Value>, session: &SessionView, task: &TaskView, view: &GuardrailView) -> Carried {
    if let Value::Object(question) = frames::of_guardrail(view).argument {
        body.extend(question);
    }
    // Of the task that was asked for, also where the question is of none.
    body.insert("taskId".to_owned(), task.task.clone().into());
    body.insert("status".to_owned(), "guardrail_trigger".into());
    body.insert("pending".to_owned(), false.into());
    body.insert("usage".to_owned(), usage_of(task).into());
    let shown = Shown { guardrail: view.guardrail_id.clone(), revision: Some(view.revision) };
    let offset = view.position.offset;
    // Proof is a mark on the log: an older question of another task would count as seen.
    let is_oldest = open(session).all(|other| other.position.offset >= offset);
    Carried { question: Some((task.task.clone(), shown)), questions: is_oldest.then_some(offset), result: None }
}

fn completed(body: &mut Map<String, Value>, task: &TaskView) {
    let usage = usage_of(task);
    let data = frames::result_data(&task.result, &usage);
    // The oldest clients read `result`, later ones the members beside it.
    let result = json!({ "type": "task_completed", "data": data, "usage": usage });
    body.insert("type".to_owned(), "task_completed".into());
    body.insert("status".to_owned(), "complete".into());
    body.insert("pending".to_owned(), false.into());
    body.insert("data".to_owned(), data);
    body.insert("usage".to_owned(), usage.into());
    body.insert("result".to_owned(), result);
    body.insert("completedAt".to_owned(), json!(task.ended_at));
}

fn failed(body: &mut Map<String, Value>, task: &TaskView, error: Option<&str>, code: Option<&str>) {
    let error = error.unwrap_or("Task failed");
    body.insert("success".to_owned(), false.into());
    body.insert("status".to_owned(), "failed".into());
    body.insert("pending".to_owned(), false.into());
    body.insert("error".to_owned(), error.into());
    body.insert("message".to_owned(), error.into());
    body.insert("code".to_owned(), code.unwrap_or("TASK_FAILED").into());
    body.insert("usage".to_owned(), usage_of(task).into());
    body.insert("completedAt".to_owned(), json!(task.ended_at));
}

/// What went as wanted is no failure: documented clients look for `terminated` in `status`, and those that look at `success`
/// first throw an error at `false` that nobody made.
fn stopped(body: &mut Map<String, Value>, session: &SessionView, task: &TaskView) {
    if let Some(failure) = Failure::of_stopped(task, session) {
        return failed(body, task, Some(failure.message), Some(failure.code));
    }
    let message = "Task was stopped before it finished";
    body.insert("status".to_owned(), "terminated".into());
    body.insert("pending".to_owned(), false.into());
    body.insert("message".to_owned(), message.into());
    body.insert("data".to_owned(), json!({ "message": message, "files": [], "network": [] }));
    body.insert("usage".to_owned(), usage_of(task).into());
    body.insert("completedAt".to_owned(), json!(task.ended_at));
}
