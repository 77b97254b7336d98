//! Native REST: sessions, commands, guardrails, tokens. JSON in and out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use onlooker_protocol::{
    code::{Code, Refusal},
    runtime::OpenSession,
    subscriber::{Answer, PictureLevel, SessionCommand},
    view::{GuardrailState, GuardrailView, GuardrailWhy, SessionStatus, SessionSummary},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};

use super::{App, Body, Caller, Path, Query, Refused, credential_holder};
use crate::{
    auth::{Grant, token::TokenRequest},
    clock,
    config::key::Scope,
    images::Picture,
    session::{NewSession, Origin, Session},
};

/// How long a request waits for a picture that is being reduced.
const REDUCING: Duration = Duration::from_secs(10);
const LIST: usize = 100;
const LIST_MAX: usize = 1000;

type Answered = Result<Json<Value>, Refused>;

// --- sessions --------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
pub struct NewSessionBody {
    /// `self`: the caller is the runtime and has no socket.
    runtime: Option<String>,
    #[serde(flatten)]
    asked: OpenSession,
}

pub async fn create_session(
    State(app): State<App>,
    caller: Caller,
    Body(body): Body<NewSessionBody>,
) -> Result<Response, Refused> {
    let origin = match body.runtime.as_deref() {
        None => {
            caller.may(Scope::Control)?;
            Origin::Client
        }
        Some("self") => {
            caller.may(Scope::Publish)?;
            Origin::HttpRuntime
        }
        Some(_) => return Err(Refusal::new(Code::Invalid, "`runtime` is left out, or is `self`").into()),
    };
    if caller.0.sessions.is_some() {
        return Err(Refusal::new(Code::Forbidden, "this token is limited to its sessions").into());
    }
    let (project, by) = (caller.0.project.clone(), caller.0.who.to_string());
    let created = app.directory.create(NewSession { project, asked: body.asked, origin, by }).await?;
    let mut answer = json!({ "session": created.session.id.as_str() });
    for (name, value) in [("claim", created.claim), ("task", created.task)] {
        if let Some(value) = value {
            answer[name] = json!(value);
        }
    }
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

#[derive(Deserialize)]
pub struct ListQuery {
    status: Option<SessionStatus>,
    limit: Option<usize>,
    /// The last session of the page before.
    after: Option<String>,
}

pub async fn list_sessions(State(app): State<App>, caller: Caller, Query(query): Query<ListQuery>) -> Answered {
    caller.may(Scope::Watch)?;
    let board = app.directory.services().boards.of(&caller.0.project);
    let mut sessions: Vec<_> = board
        .since(0, usize::MAX)
        .0
        .into_iter()
        .filter(|(session, _)| caller.0.may_see(&caller.0.project, session.as_str()))
        .map(|(_, summary)| summary)
        .collect();
    // Newest first; the id breaks ties, so that `after` names one place.
    sessions.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.session.cmp(&b.session)));
    // Looked for among all: the last session of the page before may have another status by now.
    let from = match &query.after {
        None => 0,
        Some(after) => {
            let at = sessions.iter().position(|summary| summary.session == *after);
            let gone = || Refusal::new(Code::Invalid, "`after` names no session of this list any more; begin anew");
            at.ok_or_else(gone)? + 1
        }
    };
    let fits = |summary: &&Arc<SessionSummary>| query.status.is_none_or(|status| summary.status == status);
    let limit = query.limit.unwrap_or(LIST).clamp(1, LIST_MAX);
    let page: Vec<_> = sessions.iter().skip(from).filter(fits).take(limit).map(|s| (**s).clone()).collect();
    Ok(Json(json!({ "sessions": page })))
}

pub async fn get_session(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answered {
    caller.may(Scope::Watch)?;
    let session = app.session(&caller.0, &id)?;
    let snapshot = session.snapshot().await?;
    let watchers = session.watch.counts(Instant::now());
    Ok(Json(json!({ "position": snapshot.position, "state": *snapshot.state, "watchers": watchers })))
}

pub async fn terminate_session(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refused> {
    caller.may(Scope::Control)?;
    let session = app.session(&caller.0, &id)?;
    session.command(SessionCommand::Terminate, caller.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn command(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Body(command): Body<SessionCommand>,
) -> Answered {
    caller.may(Scope::Control)?;
    let session = app.session(&caller.0, &id)?;
    Ok(Json(Value::Object(session.command(command, caller.actor()).await?)))
}

pub async fn get_task(State(app): State<App>, caller: Caller, Path((id, task)): Path<(String, String)>) -> Answered {
    caller.may(Scope::Watch)?;
    let session = app.session(&caller.0, &id)?;
    let task = session.task(task).await?.ok_or_else(|| Refusal::plain(Code::UnknownTask))?;
    Ok(Json(json!({ "task": task })))
}

pub async fn watchers(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Answered {
    caller.may(Scope::Watch)?;
    let session = app.session(&caller.0, &id)?;
    let now = Instant::now();
    let watchers = session.watch.list(session.head().epoch, now);
    Ok(Json(json!({ "counts": session.watch.counts(now), "watchers": watchers })))
}

#[derive(Deserialize)]
pub struct PictureQuery {
    level: Option<PictureLevel>,
}

pub async fn picture(
    State(app): State<App>,
    caller: Caller,
    Path((id, picture)): Path<(String, String)>,
    Query(query): Query<PictureQuery>,
) -> Result<Response, Refused> {
    caller.may(Scope::Watch)?;
    let session = app.session(&caller.0, &id)?;
    Ok(match query.level.unwrap_or(PictureLevel::Full) {
        PictureLevel::Full => picture_of(&session, &caller.0, &picture)?,
        PictureLevel::Reduced => reduced_picture_of(&session, &caller.0, &picture).await?,
        PictureLevel::None => return Err(Refusal::new(Code::Invalid, "`level` is full or reduced").into()),
    })
}

/// A picture's bytes, for whoever may see it now.
///
/// # Errors
/// `unknown_picture`.
pub fn picture_of(session: &Session, grant: &Grant, picture: &str) -> Result<Response, Refusal> {
    let viewer = credential_holder(grant).by;
    to_response(session.images.get(picture, &viewer))
}

async fn reduced_picture_of(session: &Session, grant: &Grant, picture: &str) -> Result<Response, Refusal> {
    let viewer = credential_holder(grant).by;
    let made = timeout(REDUCING, session.images.get_reduced(picture, &viewer)).await;
    to_response(made.map_err(|_| Refusal::plain(Code::Unavailable).with_retry_after(1000))?)
}

fn to_response(picture: Option<Arc<Picture>>) -> Result<Response, Refusal> {
    let picture = picture.ok_or_else(|| Refusal::plain(Code::UnknownPicture))?;
    let media = HeaderValue::from_str(&picture.media).expect("one of three media types");
    let headers = [
        (header::CONTENT_TYPE, media),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox")),
    ];
    Ok((headers, picture.bytes()).into_response())
}

// --- guardrails ------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
pub struct GuardrailsQuery {
    state: Option<GuardrailState>,
    session: Option<String>,
    limit: Option<usize>,
}

/// Open and accepted ones; closed ones are asked for by id.
pub async fn list_guardrails(State(app): State<App>, caller: Caller, Query(query): Query<GuardrailsQuery>) -> Answered {
    caller.may(Scope::Watch)?;
    let limit = query.limit.unwrap_or(LIST).clamp(1, LIST_MAX);
    let board = app.directory.services().boards.of(&caller.0.project);
    let mut guardrails: Vec<GuardrailView> = Vec::new();
    // Not the summaries: they follow the events, and whoever has seen a question asks for it at once.
    for id in board.asking() {
        let asked_for = query.session.as_deref().is_none_or(|session| session == id.as_str());
        if !asked_for || !caller.0.may_see(&caller.0.project, id.as_str()) {
            continue;
        }
        let Some(session) = app.directory.get(&caller.0.project, id) else { continue };
        // A session that goes while the list is made has nothing to show.
        let Ok(snapshot) = session.snapshot().await else { continue };
        let fits = |view: &&GuardrailView| query.state.is_none_or(|state| view.state == state);
        guardrails.extend(snapshot.state.guardrails.iter().filter(fits).cloned());
    }
    guardrails.sort_by(|a, b| a.opened_at.cmp(&b.opened_at));
    guardrails.truncate(limit);
    Ok(Json(json!({ "guardrails": guardrails })))
}

#[derive(Deserialize)]
pub struct InSession {
    session: Option<String>,
}

/// The session that a guardrail id means: the one named, or the only one of the project that uses it.
fn session_of(app: &App, caller: &Caller, guardrail: &str, named: Option<&str>) -> Result<Session, Refusal> {
    if let Some(named) = named {
        return app.session(&caller.0, named);
    }
    let board = app.directory.services().boards.of(&caller.0.project);
    let mut using = board
        .sessions_with(guardrail)
        .into_iter()
        .filter(|session| caller.0.may_see(&caller.0.project, session.as_str()))
        .filter_map(|session| app.directory.get(&caller.0.project, session));
    match (using.next(), using.next()) {
        (Some(session), None) => Ok(session),
        (Some(_), Some(_)) => {
            Err(Refusal::new(Code::Ambiguous, "several sessions use that guardrail id; add ?session="))
        }
        (None, _) => Err(Refusal::plain(Code::UnknownGuardrail)),
    }
}

fn guardrail_json(view: &GuardrailView) -> Json<Value> {
    Json(json!({ "guardrail": view }))
}

pub async fn get_guardrail(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<InSession>,
) -> Answered {
    caller.may(Scope::Watch)?;
    let session = session_of(&app, &caller, &id, query.session.as_deref())?;
    Ok(guardrail_json(&session.guardrail(id).await?))
}

#[derive(Deserialize)]
pub struct AnswerBody {
    session: Option<String>,
    #[serde(flatten)]
    answer: Answer,
}

pub async fn answer(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<InSession>,
    Body(body): Body<AnswerBody>,
) -> Answered {
    caller.may(Scope::Answer)?;
    let named = body.session.as_deref().or(query.session.as_deref());
    let session = session_of(&app, &caller, &id, named)?;
    Ok(guardrail_json(&session.answer(id, body.answer, caller.actor()).await?))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimBody {
    session: Option<String>,
    revision: u32,
    /// Milliseconds.
    #[serde(rename = "for")]
    duration: Option<u64>,
}

pub async fn claim(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<InSession>,
    Body(body): Body<ClaimBody>,
) -> Answered {
    caller.may(Scope::Answer)?;
    let named = body.session.as_deref().or(query.session.as_deref());
    let session = session_of(&app, &caller, &id, named)?;
    session.claim(id.clone(), body.revision, body.duration, caller.actor()).await?;
    Ok(guardrail_json(&session.guardrail(id).await?))
}

pub async fn release(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<InSession>,
    Body(body): Body<ClaimBody>,
) -> Answered {
    caller.may(Scope::Answer)?;
    let named = body.session.as_deref().or(query.session.as_deref());
    let session = session_of(&app, &caller, &id, named)?;
    session.release(id.clone(), body.revision, caller.actor()).await?;
    Ok(guardrail_json(&session.guardrail(id).await?))
}

pub async fn why(
    State(app): State<App>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<InSession>,
) -> Result<Json<GuardrailWhy>, Refused> {
    caller.may(Scope::Watch)?;
    let session = session_of(&app, &caller, &id, query.session.as_deref())?;
    Ok(Json(session.why(id).await?))
}

// --- tokens ----------------------------------------------------------------------------------------------------------

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenBody {
    scopes: Vec<String>,
    sessions: Option<BTreeSet<String>>,
    who: Option<String>,
    /// Milliseconds.
    #[serde(rename = "for")]
    life: Option<u64>,
}

/// A short-lived token for a browser: the caller's key, narrowed.
pub async fn issue_token(State(app): State<App>, caller: Caller, Body(body): Body<TokenBody>) -> Answered {
    caller.may(Scope::Admin)?;
    let scope = |name: &String| {
        let message = format!("`{}` is no scope", name.chars().take(32).collect::<String>());
        Scope::from_name(name).ok_or_else(|| Refusal::new(Code::Invalid, message))
    };
    let scopes = body.scopes.iter().map(scope).collect::<Result<_, _>>()?;
    let life = body.life.map(Duration::from_millis);
    let request = TokenRequest { scopes, sessions: body.sessions, who: body.who, life };
    let issued = app.auth.issue(&caller.0, &request, std::time::SystemTime::now());
    let issued = issued.map_err(|error| Refusal::new(Code::Invalid, error.to_string()))?;
    let answer: Map<String, Value> = Map::from_iter([
        ("token".to_owned(), json!(issued.token.expose())),
        ("expiresAt".to_owned(), json!(clock::text(issued.expires.into()))),
    ]);
    Ok(Json(Value::Object(answer)))
}
