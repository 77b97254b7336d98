//! Who may do what on the WebRun surfaces.
//!
//! Starting and changing something needs a key where there are keys, and only what begins work looks at the key's
//! account and is counted against its rate. Reading needs nothing but the session id, unless the operator asks for a
//! key as well.

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, StatusCode, request},
    response::{IntoResponse, Response},
};
use onlooker_protocol::code::{Code, Refusal};
use tokio::time::Instant;

use super::problem::Problem;
use crate::{
    auth::{AuthError, Grant},
    config::key::{Account, KeyEntry, Scope},
    control::Holder,
    guardrail::Actor,
    http::{App, allowed, bearer, credential_holder},
    session::Session,
};

/// Who starts or changes something: the holder of a key, or everybody where there are none.
pub struct Client(pub Grant);

impl Client {
    /// # Errors
    /// 401 in the documented words.
    pub fn of(app: &App, headers: &HeaderMap) -> Result<Self, Problem> {
        let given = bearer(headers).unwrap_or_default();
        app.auth.authenticate(given).map(Self).map_err(|error| {
            tracing::debug!(%error, "a WebRun client was refused");
            match error {
                AuthError::Missing => {
                    let message = "API key required. Provide Authorization: Bearer <api_key>";
                    Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message)
                }
                AuthError::Unknown | AuthError::Expired => {
                    Problem::new(StatusCode::UNAUTHORIZED, "INVALID_API_KEY", "Invalid or revoked API key")
                }
            }
        })
    }

    /// # Errors
    /// 403 without the scope.
    pub fn may(&self, scope: Scope) -> Result<(), Problem> {
        allowed(&self.0, scope).map_err(Problem::from)
    }

    /// A session that commands of this client may be for.
    ///
    /// # Errors
    /// 401, the same for a session that is another project's and for none.
    pub fn session(&self, app: &App, id: &str) -> Result<Session, Problem> {
        app.session(&self.0, id).map_err(|_| {
            let message = "Session not found or unauthorized";
            Problem::new(StatusCode::UNAUTHORIZED, "SESSION_NOT_FOUND", message)
        })
    }

    pub fn actor(&self) -> Actor {
        Actor { holder: self.holder(), via: "rest" }
    }

    fn holder(&self) -> Holder {
        credential_holder(&self.0)
    }

    /// US dollars, where the operator has named a balance for this key.
    pub fn balance(&self, app: &App) -> Option<f64> {
        self.entry(app)?.balance
    }

    fn entry<'a>(&self, app: &'a App) -> Option<&'a KeyEntry> {
        let id = self.0.key.as_ref()?;
        app.config.keys.iter().find(|key| key.id == **id)
    }

    /// Whether the operator lets the account behind the key begin anything.
    fn may_begin(&self, app: &App) -> Result<(), Problem> {
        self.may(Scope::Control)?;
        match self.entry(app).map(|entry| entry.account).unwrap_or_default() {
            Account::Active => Ok(()),
            Account::Deactivated => Err(Refusal::plain(Code::Deactivated).into()),
            Account::InsufficientBalance => {
                let balance = self.balance(app).unwrap_or(0.0);
                Err(Problem::from(Refusal::plain(Code::InsufficientBalance)).with_member("balance", balance))
            }
        }
    }
}

impl FromRequestParts<App> for Client {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut request::Parts, app: &App) -> Result<Self, Problem> {
        Self::of(app, &parts.headers)
    }
}

/// Does work that begins something (a start, a run, a new task, an upload) if the client's account and rate allow it.
/// Where there are keys, whatever comes of it says how much of the rate is left.
pub async fn metered(app: &App, client: &Client, work: impl Future<Output = Result<Response, Problem>>) -> Response {
    if let Err(problem) = client.may_begin(app) {
        return problem.into_response();
    }
    let Some(rate) = app.rates.take(&client.0, Instant::now()) else {
        return work.await.unwrap_or_else(Problem::into_response);
    };
    let mut response = match rate.exceeded() {
        Some(problem) => problem.into_response(),
        None => work.await.unwrap_or_else(Problem::into_response),
    };
    rate.tell(response.headers_mut());
    response
}

/// The session that somebody reads, and what the reader may do.
///
/// # Errors
/// 404 for an unknown session; 401 and 403 where a key is asked for as well.
pub fn reader(app: &App, headers: &HeaderMap, session: &str) -> Result<(Session, Grant), Problem> {
    if !app.config.webrun.require_key || app.auth.is_open() {
        return app.opened_by_id(session).map_err(Problem::from);
    }
    let client = Client::of(app, headers)?;
    client.may(Scope::Watch)?;
    let session = app.session(&client.0, session)?;
    Ok((session, client.0))
}
