//! `GET /view/{session}`: a small page with one session's picture, events and open guardrail, and what it asks for.
//!
//! The session's id in the address is its capability, and opens nothing else. The page may stand in anybody's frame
//! (`webViewURL`). Nothing here has a cookie or asks a third party, and no `Referer` leaves the page. What changes
//! something is taken from the gateway's own pages only: by its `Origin`.

use axum::{
    Json, Router,
    extract::{FromRequestParts, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use onlooker_protocol::{
    code::{Code, Refusal},
    event::{Position, Since},
    subscriber::Answer,
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{App, Body, Path, Query, Refused, allowed, bearer, credential_holder, events, rest};
use crate::{
    auth::Grant,
    config::key::Scope,
    engine::{EngineError, ReadLimit, Record},
    guardrail::Actor,
    session::Session,
};

/// The events that the page begins with.
const HISTORY: ReadLimit = ReadLimit { records: 200, bytes: 512 * 1024 };

pub fn routes() -> Router<App> {
    files()
        .route("/view/{session}", get(page))
        .route("/view/{session}/state", get(state))
        .route("/view/{session}/events", get(follow))
        .route("/view/{session}/picture/{picture}", get(picture))
        .route("/view/{session}/alive", post(alive))
        .route("/view/{session}/answer", post(answer))
}

// --- who may ---------------------------------------------------------------------------------------------------------

/// The session that the address names, and what its reader may do there.
pub struct Opened {
    session: Session,
    grant: Grant,
}

impl Opened {
    /// # Errors
    /// `unknown_session`; `unauthorized` and `forbidden` where the id alone opens nothing.
    fn read(app: &App, id: &str, headers: &HeaderMap) -> Result<Self, Refusal> {
        if !app.config.webrun.require_key || app.auth.is_open() {
            let (session, grant) = app.opened_by_id(id)?;
            return Ok(Self { session, grant });
        }
        let message = "this gateway asks for a key or token of the session's project as well";
        let grant = app.auth.authenticate(bearer(headers).unwrap_or_default());
        let grant = grant.map_err(|_| Refusal::new(Code::Unauthorized, message))?;
        allowed(&grant, Scope::Watch)?;
        Ok(Self { session: app.session(&grant, id)?, grant })
    }

    fn actor(&self) -> Actor {
        Actor { holder: credential_holder(&self.grant), via: "view" }
    }
}

#[derive(Deserialize)]
struct Named {
    session: String,
}

impl FromRequestParts<App> for Opened {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Refused> {
        let Path(Named { session }) = Path::from_request_parts(parts, app).await?;
        Self::read(app, &session, &parts.headers).map_err(Refused)
    }
}

/// The same, for what changes something: whoever frames the view or knows its address cannot speak through the browser
/// of the person in it.
pub struct OpenedByOwnPage(Opened);

impl FromRequestParts<App> for OpenedByOwnPage {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Refused> {
        if !is_own_page(app, &parts.headers) {
            let message = "only the page itself may say this, with its own `Origin`";
            return Err(Refused(Refusal::new(Code::OriginRefused, message)));
        }
        Opened::from_request_parts(parts, app).await.map(Self)
    }
}

/// Whether the request's page came from the name that the request is for, or from the gateway's public address. The
/// scheme is not compared: a proxy in front may speak another one than we do.
pub fn is_own_page(app: &App, headers: &HeaderMap) -> bool {
    let once = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())?.to_str().ok()
    };
    let Some(origin) = once(header::ORIGIN) else { return false };
    let public = app.config.listen.public_url.as_ref().map(|url| url.origin().ascii_serialization());
    if public.is_some_and(|public| public == origin) {
        return true;
    }
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    matches!((authority, once(header::HOST)), (Some(own), Some(host)) if own.eq_ignore_ascii_case(host))
}

// --- what the page asks for ------------------------------------------------------------------------------------------

/// State, open questions and the last events, and the position from which [`follow`] goes on.
async fn state(State(app): State<App>, Opened { session, grant }: Opened) -> Result<Response, Refused> {
    let snapshot = session.snapshot().await?;
    let records = latest(&app, &session).await?;
    let epoch = session.head().epoch;
    let events = records.iter().map(|record| serde_json::from_slice::<&RawValue>(&record.frame));
    let events = events.collect::<Result<Vec<_>, _>>().map_err(|_| Refusal::plain(Code::Unavailable))?;
    let since = records.last().map(|last| Position { epoch, offset: last.offset });
    let body = json!({
        "position": snapshot.position,
        "state": *snapshot.state,
        "events": events,
        "since": since,
        "able": grant.may(Scope::Answer),
        "aliveEvery": u64::try_from(app.config.times.ping_every.as_millis()).unwrap_or(u64::MAX),
    });
    Ok(([no_store()], Json(body)).into_response())
}

/// The newest events; where they are too large for one answer, the stream brings what is missing at their end.
async fn latest(app: &App, session: &Session) -> Result<Vec<Record>, Refusal> {
    let head = session.head();
    let mut from = head.first.max(head.next.saturating_sub(HISTORY.records as u64));
    loop {
        match app.directory.services().engine.read(session.id, from, HISTORY).await {
            Ok(records) => return Ok(records),
            // A log is trimmed at its beginning, which only moves on.
            Err(EngineError::Trimmed { first }) if first > from => from = first,
            Err(_) => return Err(Refusal::plain(Code::Unavailable)),
        }
    }
}

#[derive(Deserialize)]
struct FollowQuery {
    since: Option<String>,
}

async fn follow(
    State(app): State<App>,
    Opened { session, grant }: Opened,
    Query(query): Query<FollowQuery>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let since = events::asked_since(query.since.as_deref(), &headers)?.unwrap_or(Since::Latest);
    Ok(events::stream(app, &grant, session, since, Vec::new()))
}

#[derive(Deserialize)]
struct NamedPicture {
    picture: String,
}

async fn picture(
    Opened { session, grant }: Opened,
    Path(NamedPicture { picture }): Path<NamedPicture>,
) -> Result<Response, Refused> {
    Ok(rest::picture_of(&session, &grant, &picture)?)
}

#[derive(Deserialize)]
struct AliveBody {
    subscriber: String,
    #[serde(flatten)]
    said: events::Said,
}

async fn alive(
    State(app): State<App>,
    OpenedByOwnPage(opened): OpenedByOwnPage,
    Body(body): Body<AliveBody>,
) -> Result<Json<Value>, Refused> {
    Ok(events::hear(&app, &opened.grant, &body.subscriber, body.said)?)
}

#[derive(Deserialize)]
struct AnswerBody {
    guardrail: String,
    #[serde(flatten)]
    answer: Answer,
}

async fn answer(
    OpenedByOwnPage(opened): OpenedByOwnPage,
    Body(body): Body<AnswerBody>,
) -> Result<Json<Value>, Refused> {
    allowed(&opened.grant, Scope::Answer)?;
    let view = opened.session.answer(body.guardrail, body.answer, opened.actor()).await?;
    Ok(Json(json!({ "guardrail": view })))
}

// --- the page --------------------------------------------------------------------------------------------------------

const PAGE: &str = include_str!("../../dashboard/session/index.html");
const REFUSED_PAGE: &str = include_str!("../../dashboard/session/refused.html");

/// The page says nothing of its session; what it asks for does.
async fn page(opened: Result<Opened, Refused>) -> Response {
    match opened {
        Ok(_) => file("text/html; charset=utf-8", PAGE),
        Err(Refused(refusal)) => refused_page(&refusal),
    }
}

fn refused_page(refusal: &Refusal) -> Response {
    let (title, text) = match refusal.code {
        Code::Unauthorized | Code::Forbidden => (
            "A key is needed",
            "This gateway opens a session only to whoever also has a key of its project. Ask whoever gave you this \
             address, or open the session in the dashboard.",
        ),
        Code::UnknownSession | Code::NotFound => (
            "Nothing to see here",
            "There is no such session, or it ended long enough ago to be forgotten. Ask whoever gave you this address \
             for a new one.",
        ),
        _ => ("Not now", "The gateway cannot show this session at the moment. Try again soon."),
    };
    let page = REFUSED_PAGE.replace("{{title}}", title).replace("{{text}}", text);
    let status = StatusCode::from_u16(refusal.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, file("text/html; charset=utf-8", page)).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response.extensions_mut().insert(refusal.code);
    response
}

/// What the page is made of. No session has the id `static`: theirs have 20 characters.
fn files() -> Router<App> {
    macro_rules! files {
        ($($name:literal $kind:literal;)+) => {
            Router::new()$(.route(concat!("/view/static/", $name), get(|| async {
                file($kind, include_str!(concat!("../../dashboard/", $name)))
            })))+
        };
    }
    files! {
        "style.css" "text/css; charset=utf-8";
        "icon.svg" "image/svg+xml";
        "attention.js" "text/javascript; charset=utf-8";
        "cards.js" "text/javascript; charset=utf-8";
        "connection.js" "text/javascript; charset=utf-8";
        "state.js" "text/javascript; charset=utf-8";
        "view.js" "text/javascript; charset=utf-8";
        "session/page.css" "text/css; charset=utf-8";
        "session/page.js" "text/javascript; charset=utf-8";
    }
}

const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                              connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors *";

fn file(kind: &'static str, text: impl Into<axum::body::Body>) -> Response {
    let fixed = HeaderValue::from_static;
    let headers: [(HeaderName, HeaderValue); 6] = [
        (header::CONTENT_TYPE, fixed(kind)),
        (header::CONTENT_SECURITY_POLICY, fixed(CONTENT_POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
        (header::REFERRER_POLICY, fixed("no-referrer")),
        (HeaderName::from_static("x-robots-tag"), fixed("noindex")),
        no_store(),
    ];
    (headers, text.into()).into_response()
}

fn no_store() -> (HeaderName, HeaderValue) {
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))
}
