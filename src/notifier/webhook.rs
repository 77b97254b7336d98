//! Notices as signed HTTP posts: Standard Webhooks (github.com/standard-webhooks/standard-webhooks, spec version 1).
//!
//! One attempt is one new connection and one POST. What cannot have reached the receiver's code is refused; whatever
//! breaks after the request may have left is unknown. A status outside 2xx is the receiver's word that it did not
//! take the notice. Of those, 4xx other than 408, 425 and 429 (410 among them) and redirects will hardly pass by
//! themselves: they are rejected, which others need not wait for, and still tried again slowly, because the operator may
//! be repairing the receiver while somebody waits. Redirects are not followed: they would carry the question to somebody
//! else.
//!
//! The URL may hold userinfo and its path may be a capability, so neither errors nor `Debug` show any of it.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use futures::future::{BoxFuture, FutureExt};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use reqwest::{Client, RequestBuilder, Response, StatusCode, header, redirect::Policy};
use sha2::Sha256;
use time::{OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem, macros::format_description};
use url::Url;
use zeroize::Zeroizing;

use super::{Delivery, Message, Notifier};

/// Within it, nothing was sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A response's body says nothing that counts; this much of it is taken so that the receiver can finish writing.
const RESPONSE_BYTES_MAX: usize = 4 * 1024;
const RESPONSE_BODY_TIMEOUT: Duration = Duration::from_secs(1);
/// Of a signing secret, in bytes. The specification's bounds.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Base64 with or without padding: both are in use for secrets.
const BASE64_LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    #[error("a webhook's URL begins with http:// or https:// and names a host")]
    Url,
    #[error("a webhook's secret is `whsec_` and 24 to 64 bytes in base64")]
    Secret,
    #[error("the HTTP client cannot be built")]
    Client(#[source] reqwest::Error),
}

/// A key that signs. `Debug` hides it; it is overwritten when dropped.
pub struct SigningSecret(Zeroizing<Vec<u8>>);

impl SigningSecret {
    /// Reads `whsec_…`.
    pub fn parse(text: &str) -> Result<Self, WebhookError> {
        let encoded = text.strip_prefix("whsec_").ok_or(WebhookError::Secret)?;
        let bytes = Zeroizing::new(BASE64_LENIENT.decode(encoded).map_err(|_| WebhookError::Secret)?);
        if SECRET_BYTES.contains(&bytes.len()) { Ok(Self(bytes)) } else { Err(WebhookError::Secret) }
    }

    /// The signature of one message, with its version: `v1,…`.
    fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(hidden)")
    }
}

/// The credentials of a URL.
struct Userinfo {
    name: Zeroizing<String>,
    password: Option<Zeroizing<String>>,
}

/// One receiver.
pub struct Webhook {
    client: Client,
    url: Url,
    userinfo: Option<Userinfo>,
    secrets: Vec<SigningSecret>,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl Webhook {
    /// Signs with every secret, so that a receiver can change from one to the next; without one, it does not sign.
    /// `timeout` is for a whole attempt. A default TLS provider must be installed.
    pub fn new(mut url: Url, secrets: Vec<SigningSecret>, timeout: Duration) -> Result<Self, WebhookError> {
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(WebhookError::Url);
        }
        let userinfo = take_userinfo(&mut url);
        let client = Client::builder()
            .user_agent(concat!("Onlooker/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::none())
            // Both would send a second request within one attempt, or leave open whether the first has left: a
            // receiver that closes an idle connection just as it is used again.
            .retry(reqwest::retry::never())
            .pool_max_idle_per_host(0)
            .connect_timeout(CONNECT_TIMEOUT.min(timeout / 2))
            .timeout(timeout)
            .build()
            .map_err(WebhookError::Client)?;
        Ok(Self { client, url, userinfo, secrets })
    }

    fn request(&self, message: &Message) -> RequestBuilder {
        let timestamp = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = self
            .client
            .post(self.url.clone())
            .header(header::CONTENT_TYPE, "application/json")
            .header("webhook-id", &message.id)
            .header("webhook-timestamp", timestamp)
            .body(message.body.clone());
        if !self.secrets.is_empty() {
            let sign = |secret: &SigningSecret| secret.sign(&message.id, timestamp, &message.body);
            let signatures: Vec<_> = self.secrets.iter().map(sign).collect();
            request = request.header("webhook-signature", signatures.join(" "));
        }
        match &self.userinfo {
            Some(Userinfo { name, password }) => {
                request.basic_auth(name.as_str(), password.as_ref().map(|password| password.as_str()))
            }
            None => request,
        }
    }
}

impl Notifier for Webhook {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Delivery> {
        async move {
            match self.request(message).send().await {
                Ok(response) => {
                    let delivery = judge(response.status(), retry_after(&response));
                    discard(response).await;
                    delivery
                }
                Err(error) => judge_error(&error),
            }
        }
        .boxed()
    }
}

fn take_userinfo(url: &mut Url) -> Option<Userinfo> {
    let decoded = |part: &str| Zeroizing::new(percent_decode_str(part).decode_utf8_lossy().into_owned());
    let userinfo = (!url.username().is_empty() || url.password().is_some())
        .then(|| Userinfo { name: decoded(url.username()), password: url.password().map(decoded) });
    url.set_username("").and_then(|()| url.set_password(None)).expect("a URL with a host can have no userinfo");
    userinfo
}

fn judge(status: StatusCode, retry_after: Option<Duration>) -> Delivery {
    if status.is_success() {
        return Delivery::Confirmed;
    }
    let passes_by_itself =
        matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    let error = format!("the receiver answered HTTP {}", status.as_u16());
    if (status.is_client_error() && !passes_by_itself) || status.is_redirection() {
        Delivery::Rejected { error }
    } else {
        Delivery::Refused { error, retry_after }
    }
}

/// The texts are our own: those of the client hold the URL.
fn judge_error(error: &reqwest::Error) -> Delivery {
    let refused = |text: &str| Delivery::Refused { error: text.to_owned(), retry_after: None };
    if error.is_builder() {
        return refused("the request could not be made");
    }
    if error.is_connect() {
        let what = if error.is_timeout() { "in time" } else { "(name, connection or TLS)" };
        return refused(&format!("the receiver could not be reached {what}"));
    }
    let text = if error.is_timeout() { "no answer in time" } else { "the connection broke before an answer" };
    Delivery::Unknown { error: text.to_owned() }
}

const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");

/// Seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    wait_from(text, OffsetDateTime::now_utc())
}

fn wait_from(text: &str, now: OffsetDateTime) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = PrimitiveDateTime::parse(text, HTTP_DATE).ok()?.assume_utc();
    Some(Duration::try_from(at - now).unwrap_or_default())
}

/// Takes a bounded part of the body, so that most receivers can finish writing. Its failure changes nothing.
async fn discard(mut response: Response) {
    let read = async {
        let mut left = RESPONSE_BYTES_MAX;
        while left > 0
            && let Ok(Some(chunk)) = response.chunk().await
        {
            left = left.saturating_sub(chunk.len());
        }
    };
    let _: Result<(), _> = tokio::time::timeout(RESPONSE_BODY_TIMEOUT, read).await;
}

#[cfg(test)]
mod tests;
