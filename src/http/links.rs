//! `/v1/links`: which chats are linked to the caller's project, and the codes that link more.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use onlooker_protocol::{
    code::{Code, Refusal},
    notice::{Notice, NoticeType},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use super::{App, Body, Caller, Path, Refused};
use crate::{
    chat::Connector,
    clock,
    config::key::Scope,
    ids,
    links::{Link, LinkError, codes},
    notifier::{Delivery, Message},
    tries::Tries,
};

/// Environments' names, in bytes.
const ENVIRONMENT: usize = 128;
/// Test messages of one project …
const TESTS: usize = 10;
/// … within this time.
const TESTS_WITHIN: Duration = Duration::from_secs(60);
/// Projects whose test messages are counted.
const PROJECTS: usize = 1024;
/// A chat that takes longer leaves it unknown whether the test message has arrived.
const TEST_TAKES: Duration = Duration::from_secs(15);

/// Counts test messages, by project.
pub fn tests() -> Tries<String> {
    Tries::new(TESTS, TESTS_WITHIN, PROJECTS)
}

/// Links say where people can be reached, and let them answer: the project's keys with `admin` alone.
fn may(caller: &Caller) -> Result<(), Refusal> {
    caller.may(Scope::Admin)?;
    match caller.0.sessions {
        None => Ok(()),
        Some(_) => Err(Refusal::new(Code::Forbidden, "this token is limited to its sessions")),
    }
}

#[derive(Deserialize)]
pub struct CodeBody {
    environment: Option<String>,
}

/// A code for somebody to send to the bot.
pub async fn issue_code(
    State(app): State<App>,
    caller: Caller,
    Body(body): Body<CodeBody>,
) -> Result<Response, Refused> {
    may(&caller)?;
    let is_name = |name: &String| (1..=ENVIRONMENT).contains(&name.len()) && !name.chars().any(char::is_control);
    if body.environment.as_ref().is_some_and(|name| !is_name(name)) {
        let message = format!("`environment` is 1 to {ENVIRONMENT} bytes without control characters");
        return Err(Refusal::new(Code::Invalid, message).into());
    }
    if app.connectors.iter().next().is_none() {
        let message = "no chat is configured that a code could be sent in; see [telegram] and [slack]";
        return Err(Refusal::new(Code::Invalid, message).into());
    }
    let scope = codes::Scope { project: caller.0.project.clone(), environment: body.environment };
    let issued = app.directory.services().targets.links.codes.issue(scope, Instant::now());
    let code = issued.map_err(|wait| {
        let message = "too many codes wait to be used";
        Refusal::new(Code::RateLimited, message).with_retry_after(milliseconds(wait))
    })?;
    let say = app.connectors.names().into_iter().map(|chat| (chat.to_owned(), json!(what_to_say(chat, &code))));
    let answer = json!({
        "code": code.to_string(),
        "expiresAt": clock::text(OffsetDateTime::now_utc() + codes::LIFE),
        "say": Map::from_iter(say),
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// What is sent to the bot. Slack takes what begins with `/` for a command of its own.
fn what_to_say(chat: &str, code: &codes::Code) -> String {
    let command = if chat == "telegram" { "/start" } else { "link" };
    format!("{command} {code}")
}

pub async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Value>, Refused> {
    may(&caller)?;
    let links = app.directory.services().targets.links.of_project(&caller.0.project);
    Ok(Json(json!({ "links": links.iter().map(shown).collect::<Vec<_>>() })))
}

fn shown(link: &Link) -> Value {
    let mut shown = serde_json::to_value(link).expect("a link is plain data");
    shown["target"] = json!(link.target());
    shown
}

pub async fn remove(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Refused> {
    may(&caller)?;
    let removed = app.directory.services().targets.links.remove(&caller.0.project, &id).await;
    match removed.map_err(|error| not_changed(&error))? {
        Some(link) => {
            tracing::info!(link.id = link.id, chat = link.connector, project = link.project, "unlinked");
            Ok(StatusCode::NO_CONTENT)
        }
        None => Err(unknown_link().into()),
    }
}

fn not_changed(error: &LinkError) -> Refusal {
    tracing::warn!(%error, "links could not be changed");
    Refusal::plain(Code::Unavailable)
}

fn unknown_link() -> Refusal {
    Refusal::new(Code::NotFound, "this project has no such link")
}

/// Sends a real message to the link's chat, and says what came of it.
pub async fn test(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Value>, Refused> {
    may(&caller)?;
    let links = app.directory.services().targets.links.of_project(&caller.0.project);
    let link = links.into_iter().find(|link| link.id == id).ok_or_else(unknown_link)?;
    let gone = || Refusal::new(Code::Unavailable, "the link's chat is not configured any more");
    let connector = app.connectors.get(&link.connector).ok_or_else(gone)?;
    if let Err(wait) = app.link_tests.take(caller.0.project.to_string(), Instant::now()) {
        return Err(Refusal::plain(Code::RateLimited).with_retry_after(milliseconds(wait)).into());
    }
    let delivery = send(&**connector, &link).await;
    tracing::info!(link.id = id, chat = link.connector, ?delivery, "test message sent");
    Ok(Json(outcome(&link, &delivery)))
}

async fn send(connector: &dyn Connector, link: &Link) -> Delivery {
    let notice = Notice {
        kind: NoticeType::Test,
        id: ids::time_ordered_id(),
        session: String::new(),
        external_id: None,
        environment_id: link.environment.clone(),
        task: None,
        at: clock::now_text(),
        why: Some("somebody tries whether messages arrive".to_owned()),
        step: None,
        guardrail: None,
        result: None,
        view: None,
        form: None,
        repeat: false,
    };
    let body = Bytes::from(serde_json::to_vec(&notice).expect("a notice is plain data"));
    let message = Message { id: notice.id, address: link.address.clone(), body, ..Message::default() };
    let unknown = |_| Delivery::Unknown { error: "the chat took too long".to_owned() };
    timeout(TEST_TAKES, connector.send(&message)).await.unwrap_or_else(unknown)
}

fn outcome(link: &Link, delivery: &Delivery) -> Value {
    let (word, error, retry_after) = match delivery {
        Delivery::Confirmed | Delivery::Shown(_) => ("confirmed", None, None),
        Delivery::Refused { error, retry_after } => ("refused", Some(error), *retry_after),
        Delivery::Throttled { error, retry_after } => ("refused", Some(error), Some(*retry_after)),
        Delivery::Rejected { error } => ("rejected", Some(error), None),
        Delivery::Unknown { error } => ("unknown", Some(error), None),
    };
    let mut answer = json!({ "link": link.id, "target": link.target(), "outcome": word });
    if let Some(error) = error {
        answer["error"] = json!(error);
    }
    if let Some(wait) = retry_after {
        answer["retryAfter"] = json!(milliseconds(wait));
    }
    answer
}

fn milliseconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)
}
