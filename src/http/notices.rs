//! Notices over REST: which were sent, which wait, which reached nobody.
//!
//! They show whom the gateway tells, which is for those who may answer or administrate. What they say is shown nowhere.

use std::collections::BTreeSet;

use axum::{Json, extract::State};
use onlooker_protocol::code::{Code, Refusal};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, Caller, Path, Query, Refused};
use crate::{
    config::key::Scope,
    engine::EngineError,
    outbox::{Listing, NoticeState},
};

const LIST: usize = 100;
const LIST_MAX: usize = 1000;
/// The word for all that nobody should wait for.
const DEAD: &str = "dead";

#[derive(Deserialize)]
pub struct NoticesQuery {
    state: Option<String>,
    session: Option<String>,
    limit: Option<usize>,
    /// The last notice of the page before.
    after: Option<String>,
}

/// The caller's notices, newest first.
pub async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(query): Query<NoticesQuery>,
) -> Result<Json<Value>, Refused> {
    if caller.may(Scope::Admin).is_err() && caller.may(Scope::Answer).is_err() {
        let message = "this needs a key or token with the scope `answer` or `admin`";
        return Err(Refusal::new(Code::Forbidden, message).into());
    }
    let states = states_of(query.state.as_deref())?;
    let before = query.after.as_deref().map(|after| {
        after.parse().map_err(|_| Refusal::new(Code::Invalid, "`after` is the id of a notice, the last of a page"))
    });
    // A session of somebody else's has no notices here, as one that nobody knows.
    let named = query.session.map(|session| {
        let seen = caller.0.may_see(&caller.0.project, &session);
        BTreeSet::from_iter(seen.then_some(session))
    });
    let asked = Listing {
        project: &caller.0.project,
        sessions: named.as_ref().or(caller.0.sessions.as_deref()),
        states: &states,
        before: before.transpose()?,
        limit: query.limit.unwrap_or(LIST).clamp(1, LIST_MAX),
    };
    let notices = app.directory.services().outbox.list(&asked).await.map_err(|error| unavailable(&error))?;
    Ok(Json(json!({ "notices": notices })))
}

fn states_of(name: Option<&str>) -> Result<Vec<NoticeState>, Refusal> {
    let states: Vec<_> = NoticeState::STORED
        .into_iter()
        .filter(|state| name.is_none_or(|name| name == state.as_str() || (name == DEAD && state.is_dead())))
        .collect();
    if states.is_empty() {
        let known: Vec<_> = NoticeState::STORED.iter().map(|state| state.as_str()).collect();
        return Err(Refusal::new(Code::Invalid, format!("`state` is `{DEAD}` or one of: {}", known.join(", "))));
    }
    Ok(states)
}

/// Makes one due now that was refused or rejected.
pub async fn retry(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    caller.may(Scope::Admin)?;
    let outbox = &app.directory.services().outbox;
    let unknown = || Refusal::new(Code::NotFound, "no such notice");
    let found = outbox.find(&id).await.map_err(|error| unavailable(&error))?;
    let ours = |session: &str, project: &str| project == &*caller.0.project && caller.0.may_see(project, session);
    found.filter(|found| ours(found.key.session.as_str(), &found.project)).ok_or_else(unknown)?;
    match outbox.retry(&id).await.map_err(|error| unavailable(&error))?.ok_or_else(unknown)? {
        Ok(notice) => Ok(Json(json!({ "notice": notice }))),
        Err(why) => Err(Refusal::new(Code::Conflict, format!("this notice is not tried again: {why}")).into()),
    }
}

fn unavailable(error: &EngineError) -> Refusal {
    tracing::warn!(%error, "notices cannot be read or written");
    Refusal::plain(Code::Unavailable)
}
