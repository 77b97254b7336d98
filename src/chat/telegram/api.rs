//! Calls of the Bot API (core.telegram.org/bots/api): one attempt each, and what came of it.
//!
//! The bot's token is part of every path, so no error here holds a URL, and those of the HTTP client, which do, are
//! never passed on.

use std::{error::Error as _, time::Duration};

use reqwest::{Client, RequestBuilder, Response, StatusCode, header, redirect::Policy};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use crate::{chat::card::cut, config::secret::Secret, ids::random_token};

/// Within it, nothing was sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a response. A page of updates is the longest; each of them is some 70 KB at most.
const RESPONSE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Of Telegram's own words in a log, in characters.
const DESCRIPTION: usize = 200;

/// Why a call brought nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// Telegram has not got it, for certain. The text is ours.
    Unreachable(&'static str),
    /// Telegram's own no.
    Told(Told),
    /// Telegram may have done it. The text is ours.
    Unclear(&'static str),
}

/// An error of the Bot API.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Those of HTTP.
    pub(super) code: u16,
    /// Telegram's words. They may repeat parts of what was sent.
    pub(super) description: String,
    pub(super) retry_after: Option<Duration>,
    /// The group goes on under another id.
    pub(super) migrated: bool,
}

/// A bot at a Bot API server.
pub(super) struct Api {
    client: Client,
    /// Up to and with the `/` before a method's name.
    base: Zeroizing<String>,
    timeout: Duration,
}

/// What is uploaded beside a call's other parameters.
pub(super) struct Upload<'a> {
    pub(super) parameter: &'static str,
    pub(super) file_name: &'static str,
    pub(super) media: &'a str,
    pub(super) bytes: &'a [u8],
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    result: Value,
    error_code: Option<u16>,
    description: Option<String>,
    parameters: Option<Parameters>,
}

#[derive(Default, Deserialize)]
struct Parameters {
    retry_after: Option<u64>,
    migrate_to_chat_id: Option<i64>,
}

impl Api {
    /// `timeout` is for a whole call. A default TLS provider must be installed.
    pub(super) fn new(server: &Url, token: &Secret, timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .user_agent(concat!("Onlooker/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            // Both would send a second request within one attempt, or leave open whether the first has left.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout / 2))
            .build()?;
        // Joining would take the digits before the token's colon for a scheme.
        let base = Zeroizing::new(format!("{server}bot{}/", token.expose()));
        Ok(Self { client, base, timeout })
    }

    /// Its `result`.
    pub(super) async fn call(&self, method: &str, parameters: &impl Serialize) -> Result<Value, Failed> {
        outcome(self.post(method, self.timeout).json(parameters)).await
    }

    /// One that Telegram answers only when it has something to say, or after `hold`.
    pub(super) async fn wait(
        &self,
        method: &str,
        parameters: &impl Serialize,
        hold: Duration,
    ) -> Result<Value, Failed> {
        outcome(self.post(method, hold + self.timeout).json(parameters)).await
    }

    /// With a file. Parameters that are no text are sent as JSON, as the documentation wants it.
    pub(super) async fn upload(&self, method: &str, parameters: &Value, file: &Upload<'_>) -> Result<Value, Failed> {
        let boundary = random_token();
        let kind = format!("multipart/form-data; boundary={boundary}");
        let body = form(&boundary, parameters, file);
        outcome(self.post(method, self.timeout).header(header::CONTENT_TYPE, kind).body(body)).await
    }

    /// A text of Telegram's, in case that it repeats the token.
    pub(super) fn without_token(&self, text: &str) -> String {
        let token = self.base.rsplit("/bot").next().unwrap_or_default().trim_end_matches('/');
        cut(&text.replace(token, "[token]"), DESCRIPTION).0
    }

    fn post(&self, method: &str, timeout: Duration) -> RequestBuilder {
        self.client.post(format!("{}{method}", *self.base)).timeout(timeout)
    }
}

/// multipart/form-data (RFC 7578). Names and the file's name are ours; no value holds the boundary, which is random.
fn form(boundary: &str, parameters: &Value, file: &Upload<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(file.bytes.len() + 8 * 1024);
    for (name, value) in parameters.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let part = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
        body.extend_from_slice(part.as_bytes());
    }
    let Upload { parameter, file_name, media, bytes } = file;
    let disposition = format!("form-data; name=\"{parameter}\"; filename=\"{file_name}\"");
    let head = format!("--{boundary}\r\nContent-Disposition: {disposition}\r\nContent-Type: {media}\r\n\r\n");
    body.extend_from_slice(head.as_bytes());
    body.extend_from_slice(bytes);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    body
}

async fn outcome(request: RequestBuilder) -> Result<Value, Failed> {
    let response = request.send().await.map_err(|error| judge(&error))?;
    let status = response.status();
    let wait = retry_after(&response);
    let answer = read(response).await.and_then(|body| serde_json::from_slice::<Answer>(&body).ok());
    let success = status.is_success();
    match answer {
        Some(answer) if success && answer.ok => Ok(answer.result),
        Some(answer) => Err(Failed::Told(told(status, answer, wait))),
        None if success => Err(Failed::Unclear("the answer broke off, or did not come from the Bot API")),
        None => Err(Failed::Told(Told {
            code: status.as_u16(),
            description: String::new(),
            retry_after: wait,
            migrated: false,
        })),
    }
}

fn told(status: StatusCode, answer: Answer, wait: Option<Duration>) -> Told {
    let parameters = answer.parameters.unwrap_or_default();
    let code = if status.is_success() { answer.error_code.unwrap_or(400) } else { status.as_u16() };
    Told {
        code,
        description: answer.description.unwrap_or_default(),
        retry_after: parameters.retry_after.map(Duration::from_secs).or(wait),
        migrated: parameters.migrate_to_chat_id.is_some(),
    }
}

/// `None`: it broke off, or is longer than it can be.
async fn read(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

fn judge(error: &reqwest::Error) -> Failed {
    if error.is_builder() {
        return Failed::Unreachable("the request could not be made");
    }
    if error.is_connect() {
        return Failed::Unreachable(if error.is_timeout() {
            "Telegram could not be reached in time"
        } else {
            "Telegram could not be reached (name, connection or TLS)"
        });
    }
    tracing::debug!(cause = error.source().map(ToString::to_string), "a call of the Bot API broke");
    Failed::Unclear(if error.is_timeout() {
        "no answer from Telegram in time"
    } else {
        "the connection to Telegram broke before an answer"
    })
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}
