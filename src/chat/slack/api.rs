//! Calls to the Web API, and what their answers mean.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use reqwest::{Client, RequestBuilder, Response, StatusCode, header, redirect::Policy};
use serde_json::Value;
use url::Url;

use crate::{chat::Health, config::secret::Secret, notifier::Delivery};

/// Within it, nothing was sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Slack repeats a message in its answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// After "too many" without a time.
const BUSY_WAIT: Duration = Duration::from_secs(10);
/// While a workspace moves, or has used up its messages.
const SLOW_WAIT: Duration = Duration::from_secs(60);
/// Where Slack takes replies to what somebody tapped.
const HOOKS_HOST: &str = "hooks.slack.com";

/// Which credential a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// `xoxb-…`
    Bot,
    /// `xapp-…`
    App,
}

impl Token {
    fn setting(self) -> &'static str {
        match self {
            Self::Bot => "slack.bot_token",
            Self::App => "slack.app_token",
        }
    }
}

/// Why a call has no result. The texts hold no token and no URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not carried out; later it may be.
    Busy { error: String, wait: Option<Duration> },
    /// Not carried out, and not later either: what was asked cannot be done there.
    Wrong { code: String, error: String },
    /// Not carried out: the credential does not allow it.
    Credential { error: String },
    /// It may have been carried out.
    Unknown { error: String },
}

impl From<Failure> for Delivery {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Busy { error, wait } => Self::Refused { error, retry_after: wait },
            Failure::Wrong { error, .. } | Failure::Credential { error } => Self::Rejected { error },
            Failure::Unknown { error } => Self::Unknown { error },
        }
    }
}

pub(super) struct Api {
    client: Client,
    base: Url,
    bot: Secret,
    app: Option<Secret>,
    /// What an operator is to do about the bot's and the app's token.
    advice: Mutex<[Option<String>; 2]>,
}

impl Api {
    pub(super) fn new(base: Url, bot: Secret, app: Option<Secret>, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("Onlooker/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            // Either would leave open whether a call has left.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout / 2))
            .timeout(timeout)
            .build()?;
        Ok(Self { client, base, bot, app, advice: Mutex::default() })
    }

    /// Makes one call. With a body it is JSON, without one an empty form, as the methods without arguments want.
    pub(super) async fn call(&self, method: &str, token: Token, body: Option<&Value>) -> Result<Value, Failure> {
        let secret = match token {
            Token::Bot => Some(&self.bot),
            Token::App => self.app.as_ref(),
        };
        let url = self.base.join(method).expect("a method is a path");
        let request = self.client.post(url).bearer_auth(secret.map(Secret::expose).unwrap_or_default());
        let answer = answered(with_body(request, body)).await;
        self.remember(token, &answer);
        answer
    }

    /// Replies where Slack has said that it takes a reply.
    pub(super) async fn respond(&self, url: &Url, body: &Value) -> Result<(), Failure> {
        let response =
            with_body(self.client.post(url.clone()), Some(body)).send().await.map_err(|error| unsent(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        Err(by_status(status, retry_after(&response)))
    }

    /// Whether a reply may go there: the URL came with a payload, and what we know must not go just anywhere.
    pub(super) fn may_respond(&self, url: &Url) -> bool {
        (url.scheme() == "https" && url.host_str() == Some(HOOKS_HOST) && url.port().is_none())
            || url.origin() == self.base.origin()
    }

    /// Whether Slack itself is asked without TLS, as in tests.
    pub(super) fn is_plain(&self) -> bool {
        self.base.scheme() == "http"
    }

    pub(super) fn health(&self) -> Health {
        match self.advice().iter().flatten().next() {
            Some(advice) => Health::Disabled(advice.clone()),
            None => Health::Working,
        }
    }

    fn advice(&self) -> MutexGuard<'_, [Option<String>; 2]> {
        self.advice.lock().expect("no holder panics")
    }

    /// Loud once when a credential stops working, and when it works again.
    fn remember(&self, token: Token, answer: &Result<Value, Failure>) {
        let setting = token.setting();
        match answer {
            Ok(_) => {
                if self.advice()[token as usize].take().is_some() {
                    tracing::info!(setting, "Slack accepts the credential again");
                }
            }
            Err(Failure::Credential { error }) => {
                let advice = format!(
                    "{error}: Slack does not accept `{setting}`; check the app's scopes and its installation, and set the \
                     token that Slack shows"
                );
                if self.advice()[token as usize].replace(advice).is_none() {
                    tracing::error!(setting, error, "Slack does not accept our credential");
                }
            }
            Err(_) => {}
        }
    }
}

fn with_body(request: RequestBuilder, body: Option<&Value>) -> RequestBuilder {
    match body {
        Some(body) => request.header(header::CONTENT_TYPE, "application/json; charset=utf-8").body(body.to_string()),
        None => request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(""),
    }
}

async fn answered(request: RequestBuilder) -> Result<Value, Failure> {
    let response = request.send().await.map_err(|error| unsent(&error))?;
    let (status, wait) = (response.status(), retry_after(&response));
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(by_status(status, wait));
    }
    let answer = read(response).await.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let Some(answer) = answer.filter(|answer| answer["ok"].is_boolean()) else { return Err(by_status(status, wait)) };
    if answer["ok"] == true && status.is_success() {
        return Ok(answer);
    }
    let code = answer["error"].as_str().filter(|code| is_code(code)).unwrap_or("an error that cannot be shown");
    Err(by_code(code, wait))
}

/// `None` when it broke, or is longer than any answer is.
async fn read(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// Seconds, as Slack documents it.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Slack's errors are words; whatever else stands there is not repeated.
fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The meaning of an `error`, as the methods' pages describe it. One that is not listed will hardly pass by itself.
fn by_code(code: &str, wait: Option<Duration>) -> Failure {
    let error = format!("Slack answered `{code}`");
    match code {
        "ratelimited" | "rate_limited" => Failure::Busy { error, wait: wait.or(Some(BUSY_WAIT)) },
        // The request did not arrive whole, or was not taken up.
        "service_unavailable" | "request_timeout" | "update_failed" => Failure::Busy { error, wait },
        "message_limit_exceeded" | "team_added_to_org" | "org_login_required" | "external_channel_migrating" => {
            Failure::Busy { error, wait: Some(wait.unwrap_or_default().max(SLOW_WAIT)) }
        }
        // "It's possible some aspect of the operation succeeded before the error was raised."
        "fatal_error" | "internal_error" => Failure::Unknown { error },
        "invalid_auth"
        | "not_authed"
        | "account_inactive"
        | "token_revoked"
        | "token_expired"
        | "missing_scope"
        | "not_allowed_token_type"
        | "two_factor_setup_required"
        | "accesslimited"
        | "missing_args"
        | "forbidden_team" => Failure::Credential { error },
        _ => Failure::Wrong { code: code.to_owned(), error },
    }
}

/// The meaning of an answer that is none of Slack's own code.
fn by_status(status: StatusCode, wait: Option<Duration>) -> Failure {
    let error = format!("Slack answered HTTP {}", status.as_u16());
    match status {
        StatusCode::TOO_MANY_REQUESTS => Failure::Busy { error, wait: wait.or(Some(BUSY_WAIT)) },
        // The server's word that it did not handle the request (RFC 9110, 15.5.9 and 15.6.4).
        StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => Failure::Busy { error, wait },
        // What stands before Slack's code says so also after that has done its work; and a success that cannot be read
        // is one.
        _ if status.is_server_error() || status.is_success() => Failure::Unknown { error },
        _ => Failure::Wrong { code: String::new(), error },
    }
}

/// The texts are our own: those of the client hold the URL.
fn unsent(error: &reqwest::Error) -> Failure {
    let busy = |error: &str| Failure::Busy { error: error.to_owned(), wait: None };
    if error.is_builder() {
        return busy("the request could not be made");
    }
    if error.is_connect() {
        let what = if error.is_timeout() { "in time" } else { "(name, connection or TLS)" };
        return busy(&format!("Slack could not be reached {what}"));
    }
    let text = if error.is_timeout() { "no answer in time" } else { "the connection broke before an answer" };
    Failure::Unknown { error: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_mean_what_their_pages_say() {
        let delivery = |code| Delivery::from(by_code(code, None));
        for code in ["ratelimited", "rate_limited", "service_unavailable", "request_timeout", "team_added_to_org"] {
            assert!(matches!(delivery(code), Delivery::Refused { .. }), "{code}");
        }
        for code in ["fatal_error", "internal_error"] {
            assert!(matches!(delivery(code), Delivery::Unknown { .. }), "{code}");
        }
        for code in
            ["invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope"]
        {
            assert!(matches!(by_code(code, None), Failure::Credential { .. }), "{code}");
        }
        let gone = ["channel_not_found", "is_archived", "not_in_channel", "user_not_found", "restricted_action"];
        let stuck = ["message_not_found", "cant_update_message", "edit_window_closed", "something_of_tomorrow"];
        for code in gone.into_iter().chain(stuck) {
            assert!(matches!(by_code(code, None), Failure::Wrong { .. }), "{code}");
        }
    }

    #[test]
    fn answers_that_are_not_slacks_own_are_unknown_only_where_it_may_have_worked() {
        let of = |status: u16| by_status(StatusCode::from_u16(status).unwrap(), None);
        for status in [200, 500, 502, 504] {
            assert!(matches!(of(status), Failure::Unknown { .. }), "{status}");
        }
        for status in [408, 429, 503] {
            assert!(matches!(of(status), Failure::Busy { .. }), "{status}");
        }
        for status in [301, 403, 404] {
            assert!(matches!(of(status), Failure::Wrong { .. }), "{status}");
        }
    }

    #[test]
    fn an_error_shows_nothing_but_a_code() {
        for shown in ["https://slack.com/x?token=xoxb-1", "xoxb-12-ab", "", &"a".repeat(65)] {
            assert!(!is_code(shown), "{shown}");
        }
        assert!(is_code("restricted_action_read_only_channel"));
    }

    #[test]
    fn replies_go_to_slack_alone() {
        let _: Result<(), _> = rustls::crypto::ring::default_provider().install_default();
        let base = "http://127.0.0.1:9/api/".parse().unwrap();
        let api = Api::new(base, Secret::new("xoxb-1"), None, Duration::from_secs(1)).unwrap();
        for (url, may) in [
            ("https://hooks.slack.com/actions/T1/2/x", true),
            ("http://127.0.0.1:9/respond", true),
            ("http://hooks.slack.com/actions/T1/2/x", false),
            ("https://hooks.slack.com:8443/actions", false),
            ("https://hooks.slack.com.evil.example/actions", false),
            ("https://evil.example/hooks.slack.com", false),
            ("http://127.0.0.1:10/respond", false),
            ("http://169.254.169.254/latest", false),
        ] {
            assert_eq!(api.may_respond(&url.parse().unwrap()), may, "{url}");
        }
    }
}
