//! The surfaces over HTTP. Each translates at the edge and has no behaviour of its own.

pub mod body;
pub mod cors;
#[cfg(feature = "echo")]
pub mod echo;
pub mod events;
pub mod form;
pub mod guard;
pub mod hooks;
pub mod links;
pub mod listener;
pub mod notices;
pub mod operator;
pub mod rest;
pub mod runtime;
pub mod socket;
pub mod socketio;
pub mod ticks;
pub mod tls;
pub mod upgrade;
pub mod view;
pub mod webrun;
pub mod wire;
pub mod written;
pub mod ws;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequestParts, State},
    http::{HeaderMap, StatusCode, Uri, header, request},
    middleware,
    response::{IntoResponse, Response},
    routing::{any, delete, get, post},
};
use onlooker_protocol::code::{Code, Refusal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    auth::{Auth, CredentialId, Grant},
    chat::{Connectors, Desk},
    config::{Config, key::Scope},
    control::{Holder, HolderKey},
    files::Files,
    guardrail::Actor,
    hub::Hub,
    ids::SessionId,
    metrics::Metrics,
    session::{Directory, Session},
    tries::Tries,
};

/// What every surface uses.
#[derive(Clone)]
pub struct App(Arc<Parts>);

pub struct Parts {
    pub directory: Directory,
    pub hub: Hub,
    pub auth: Auth,
    pub config: Config,
    pub files: Files,
    pub metrics: Arc<Metrics>,
    pub guard: Arc<guard::Guard>,
    pub alive: events::Alive,
    /// How often the holders of keys may begin something on the WebRun surfaces.
    pub rates: webrun::rates::Rates,
    pub connectors: Connectors,
    pub desk: Arc<dyn Desk>,
    /// How often forms are sent, by notice.
    pub form_posts: Tries<String>,
    /// How often links are tried, by project.
    pub link_tests: Tries<String>,
    pub socketio: socketio::SocketIo,
    /// Pokes WebSocket connections when they are to look at the time.
    pub ticks: ticks::Ticks,
    /// Open WebSockets and event streams, for the metric.
    pub connections: AtomicUsize,
    pub ready: AtomicBool,
    /// The gateway is stopping: connections say goodbye.
    pub stopping: CancellationToken,
    pub tasks: TaskTracker,
}

impl std::ops::Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl App {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Spreads the return of connections that are sent away: up to 5 s, so that they do not all come at once.
    pub fn spread(&self) -> Duration {
        crate::ids::up_to(Duration::from_secs(5))
    }

    /// The session that an id opens by itself, on the WebRun surfaces, and what it allows.
    ///
    /// # Errors
    /// `unknown_session`.
    pub fn opened_by_id(&self, id: &str) -> Result<(Session, Grant), Refusal> {
        let unknown = || Refusal::plain(Code::UnknownSession);
        let parsed: SessionId = id.parse().map_err(|()| unknown())?;
        let session = self.directory.get_any(parsed).ok_or_else(unknown)?;
        let grant = Grant::of_session(&session.project, id);
        Ok((session, grant))
    }

    /// A session that this grant may see.
    ///
    /// # Errors
    /// `unknown_session`, also for a session that is another project's.
    pub fn session(&self, grant: &Grant, id: &str) -> Result<Session, Refusal> {
        let unknown = || Refusal::plain(Code::UnknownSession);
        let parsed: SessionId = id.parse().map_err(|()| unknown())?;
        if !grant.may_see(&grant.project, id) {
            return Err(unknown());
        }
        self.directory.get(&grant.project, parsed).ok_or_else(unknown)
    }
}

/// All routes.
pub fn router(app: App) -> Router {
    let limits = &app.config.limits;
    let publishing = Router::new()
        .route("/v1/sessions/{id}/events", post(runtime::publish_over_http))
        .layer(DefaultBodyLimit::max(limits.events_body_bytes));
    let socketio = Router::new()
        .route("/socket.io/", any(socketio::handle))
        .layer(DefaultBodyLimit::max(limits.client_frame_bytes))
        .layer(cors::layer());
    let checked = Router::new()
        .route("/v1/ws", get(ws::upgrade))
        .route("/v1/runtime", get(runtime::upgrade))
        .route("/v1/sessions", get(rest::list_sessions).post(rest::create_session))
        .route("/v1/sessions/{id}", get(rest::get_session).delete(rest::terminate_session))
        .route("/v1/sessions/{id}/events", get(events::read))
        .route("/v1/sessions/{id}/commands", get(runtime::commands_over_http).post(rest::command))
        .route("/v1/sessions/{id}/secrets", post(runtime::announce_over_http))
        .route("/v1/sessions/{id}/watchers", get(rest::watchers))
        .route("/v1/sessions/{id}/tasks/{task}", get(rest::get_task))
        .route("/v1/sessions/{id}/pictures/{picture}", get(rest::picture))
        .route("/v1/guardrails", get(rest::list_guardrails))
        .route("/v1/guardrails/{id}", get(rest::get_guardrail))
        .route("/v1/guardrails/{id}/answer", post(rest::answer))
        .route("/v1/guardrails/{id}/claim", post(rest::claim))
        .route("/v1/guardrails/{id}/release", post(rest::release))
        .route("/v1/guardrails/{id}/why", get(rest::why))
        .route("/v1/notices", get(notices::list))
        .route("/v1/notices/{id}/retry", post(notices::retry))
        .route("/v1/subscribers/{id}/alive", post(events::alive))
        .route("/v1/tokens", post(rest::issue_token))
        .route("/v1/hooks/{connector}", post(hooks::hear))
        .route("/v1/links", get(links::list))
        .route("/v1/links/codes", post(links::issue_code))
        .route("/v1/links/{id}", delete(links::remove))
        .route("/v1/links/{id}/test", post(links::test))
        .merge(operator::dashboard())
        .merge(view::routes())
        .merge(form::routes())
        .layer(DefaultBodyLimit::max(limits.http_body_bytes))
        .merge(publishing)
        .merge(webrun::routes(limits).layer(cors::layer()))
        .merge(socketio)
        .route("/healthz", get(operator::healthz))
        .route("/readyz", get(operator::readyz))
        .route("/metrics", get(operator::metrics))
        .fallback(no_such_path)
        .method_not_allowed_fallback(wrong_method);
    #[cfg(feature = "echo")]
    let checked = checked.route("/v1/echo", get(echo::upgrade));
    checked
        .layer(middleware::from_fn_with_state(Arc::clone(&app.guard), guard::check))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::map_response_with_state(app.clone(), count_refusals))
        .with_state(app)
}

/// A handler's panic is its own: whoever asked is told, and the connection goes on. What the panic says stays here.
fn panicked(_: Box<dyn Any + Send>) -> Response {
    Refused(Refusal::plain(Code::Internal)).into_response()
}

async fn no_such_path(uri: Uri) -> Response {
    match webrun::is_ours(uri.path()) {
        true => webrun::problem::Problem::no_such_path().into_response(),
        false => Refused(Refusal::plain(Code::NotFound)).into_response(),
    }
}

async fn wrong_method(uri: Uri) -> Response {
    match webrun::is_ours(uri.path()) {
        true => webrun::problem::Problem::wrong_method().into_response(),
        false => Refused(Refusal::plain(Code::WrongMethod)).into_response(),
    }
}

/// Every refusal of every route counts, wherever it was decided.
async fn count_refusals(State(app): State<App>, response: Response) -> Response {
    if let Some(code) = response.extensions().get::<Code>() {
        app.metrics.refused(*code);
    }
    response
}

/// A refusal as an HTTP response.
pub struct Refused(pub Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (code, retry_after) = (self.0.code, self.0.retry_after);
        let mut response = (status, Json(self.0)).into_response();
        response.extensions_mut().insert(code);
        if status == StatusCode::UNAUTHORIZED {
            let challenge = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(milliseconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, milliseconds.div_ceil(1000).into());
        }
        response
    }
}

/// The bearer token of a request, if it has one.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Who asks, over plain HTTP: from the `Authorization` header, or everybody in open mode.
pub struct Caller(pub Grant);

impl Caller {
    /// # Errors
    /// `forbidden` without the scope.
    pub fn may(&self, scope: Scope) -> Result<(), Refusal> {
        allowed(&self.0, scope)
    }

    pub fn actor(&self) -> Actor {
        Actor { holder: credential_holder(&self.0), via: "rest" }
    }
}

/// # Errors
/// `forbidden` without the scope.
pub fn allowed(grant: &Grant, scope: Scope) -> Result<(), Refusal> {
    if grant.may(scope) {
        return Ok(());
    }
    let message = format!("this needs a key or token with the scope `{}`", scope.name());
    Err(Refusal::new(Code::Forbidden, message))
}

/// A credential as a holder of control or of claims.
pub fn credential_holder(grant: &Grant) -> Holder {
    let key = match &grant.credential {
        CredentialId::Open => "open".to_owned(),
        other => format!("{other:?}"),
    };
    Holder { who: grant.who.to_string(), by: HolderKey::Credential(key.into()) }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Refused> {
        let token = bearer(&parts.headers).unwrap_or_default();
        app.auth.authenticate(token).map(Self).map_err(|error| {
            tracing::debug!(%error, "a request was refused");
            Refused(Refusal::new(Code::Unauthorized, "send a key or token: `Authorization: Bearer …`"))
        })
    }
}

/// What follows `?`, with errors that are refusals. They name no value: links end up in logs.
pub struct Query<T>(pub T);

impl<T: serde::de::DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Refused> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, app).await;
        let wrong = |_| Refused(Refusal::new(Code::Invalid, "a parameter after `?` has a wrong value"));
        query.map(|axum::extract::Query(value)| Self(value)).map_err(wrong)
    }
}

/// The names in a path. A path that is not UTF-8 names nothing.
pub struct Path<T>(pub T);

impl<T: serde::de::DeserializeOwned + Send> FromRequestParts<App> for Path<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Refused> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, app).await;
        path.map(|axum::extract::Path(names)| Self(names)).map_err(|_| Refused(Refusal::plain(Code::NotFound)))
    }
}

/// A JSON body whose errors are refusals.
pub struct Body<T>(pub T);

impl<T: serde::de::DeserializeOwned> axum::extract::FromRequest<App> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: axum::extract::Request, app: &App) -> Result<Self, Refused> {
        let bytes = axum::body::Bytes::from_request(request, app).await.map_err(|rejection| {
            let code =
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { Code::TooLarge } else { Code::BadFrame };
            Refused(Refusal::plain(code))
        })?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let value = T::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
        value.map(Self).map_err(|error| Refused(unreadable(&error)))
    }
}

/// A refusal that says where JSON is wrong. serde names members and positions; a wrong value's text is left out,
/// because it could be a secret.
pub fn unreadable(error: &serde_json::Error) -> Refusal {
    let place = format!("line {} column {}", error.line(), error.column());
    let what = match error.classify() {
        serde_json::error::Category::Data => {
            let text = error.to_string();
            let known = ["missing field", "unknown variant", "duplicate field", "unknown field"];
            match known.iter().find(|known| text.starts_with(**known)) {
                Some(known) if *known == "missing field" => text.split(" at line").next().unwrap_or(known).to_owned(),
                Some(known) => (*known).to_owned(),
                None => "a value of the wrong type".to_owned(),
            }
        }
        _ => "this is not JSON".to_owned(),
    };
    Refusal::new(Code::BadFrame, format!("{what}, at {place}"))
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;

    #[tokio::test]
    async fn who_asks_a_handler_that_panics_hears_of_an_error_and_of_nothing_else() {
        async fn panics() -> StatusCode {
            panic!("typed: {}", String::from("hunter2"))
        }
        let router: Router = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(panicked));
        let response = router.oneshot(request::Request::new(axum::body::Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains("internal") && !body.contains("hunter2"), "{body}");
    }
}
