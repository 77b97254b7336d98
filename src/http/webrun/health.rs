//! What can be asked without looking at a session: instances, and whether a session is ready.

use axum::{Json, extract::State, http::HeaderMap};
use onlooker_protocol::view::{EndReason, SessionStatus};
use serde_json::{Value, json};

use super::{access, problem::Problem};
use crate::{
    clock,
    http::{App, Path, Refused, bearer},
    ids::Project,
    task_result::Failure,
};

/// `GET /start/health`. A caller with a key is told of the instances that would serve it, others of all.
pub async fn health(State(app): State<App>, headers: HeaderMap) -> Json<Value> {
    let project = project(&app, &headers);
    let runtimes = &app.directory.services().runtimes;
    Json(json!({
        "success": true,
        "status": "healthy",
        "instancesAvailable": runtimes.have_room(project.as_ref()),
        "instanceCount": runtimes.connections(project.as_ref()).len(),
        "timestamp": clock::now_text(),
    }))
}

/// `GET /start/active-sockets`: connections of instances. Their ids open nothing and say nothing of sessions.
pub async fn active_sockets(State(app): State<App>, headers: HeaderMap) -> Json<Value> {
    let project = project(&app, &headers);
    let mut sockets = app.directory.services().runtimes.connections(project.as_ref());
    sockets.sort_unstable();
    let sockets: Vec<String> = sockets.iter().map(ToString::to_string).collect();
    Json(json!({
        "success": true,
        "count": sockets.len(),
        "sockets": sockets,
        "timestamp": clock::now_text(),
    }))
}

fn project(app: &App, headers: &HeaderMap) -> Option<Project> {
    let given = bearer(headers).unwrap_or_default();
    app.auth.authenticate(given).ok().map(|grant| grant.project)
}

/// `GET /start/session-status/{session}`. Does not count as looking: it shows nothing that somebody should see.
pub async fn session_status(
    State(app): State<App>,
    path: Result<Path<String>, Refused>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let Path(id) = path.map_err(|_| Problem::no_such_path())?;
    let (session, _) = access::reader(&app, &headers, &id)?;
    let state = session.snapshot().await?.state;
    let status = status(state.status, state.reason);
    let mut body = json!({
        "success": true,
        "sessionId": state.session,
        "status": status,
        "data": { "sessionId": state.session, "status": status },
    });
    if let Some(failure) = state.reason.and_then(Failure::of) {
        body["data"]["error"] = failure.message.into();
        body["data"]["code"] = failure.code.into();
    }
    Ok(Json(body))
}

fn status(status: SessionStatus, reason: Option<EndReason>) -> &'static str {
    match (status, reason) {
        (SessionStatus::Pending, _) => "pending",
        (SessionStatus::Active, _) => "active",
        (SessionStatus::Orphaned, _) => "orphaned",
        (SessionStatus::Ended, Some(reason)) if Failure::of(reason).is_some() => "failed",
        (SessionStatus::Ended, Some(EndReason::Completed | EndReason::TerminateOnCompletion)) => "completed",
        (SessionStatus::Ended, _) => "terminated",
    }
}
