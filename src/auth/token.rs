//! Short-lived tokens for browsers, signed by the gateway.
//!
//! A token is `olt_<payload>.<mac>`: both parts base64url without padding, the payload a JSON object, the mac the
//! HMAC-SHA256 of [`CONTEXT`] and the encoded payload. There is one algorithm, and no header that could name another.
//! The payload is signed, not hidden. It names the key that issued it: a token dies with its key, or with that key's
//! `admin` scope.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::{TryRng as _, rngs::SysRng};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Auth, AuthError, CredentialId, Grant, key::random_text};
use crate::config::{key::Scope, secret::Secret};

pub(super) const PREFIX: &str = "olt_";
/// Keeps these signatures apart from others that may be made with the same key.
const CONTEXT: &[u8] = b"onlooker token 1\n";

pub const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
pub const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The most sessions that one token names; it must fit the first frame of a connection (4 KiB).
pub const MOST_SESSIONS: usize = 100;

/// What a token is to allow.
#[derive(Clone, Debug, Default)]
pub struct TokenRequest {
    /// Of `watch`, `answer` and `control`.
    pub scopes: Vec<Scope>,
    /// None: every session of the issuer's project.
    pub sessions: Option<BTreeSet<String>>,
    /// What others see of its holder; the issuer's name when absent.
    pub who: Option<String>,
    /// [`DEFAULT_LIFE`] when absent.
    pub life: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct IssuedToken {
    pub token: Secret,
    pub expires: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    #[error("only a key with the scope `admin` issues tokens")]
    NotAllowed,
    #[error("a token carries at least one of the scopes watch, answer and control, and no other")]
    Scopes,
    #[error("a token lives from 1 second to 24 hours")]
    Life,
    #[error("a token names 1 to {MOST_SESSIONS} sessions, by their ids, or none at all")]
    Sessions,
    #[error("a token's `who` is 1 to 64 visible characters")]
    Who,
    #[error("the system's random generator failed")]
    NoRandomness,
}

/// What signs tokens. Whoever has it can make any token.
pub struct SigningKey(Zeroizing<[u8; 32]>);

impl SigningKey {
    /// A fresh one.
    ///
    /// # Panics
    /// When the system's random generator fails, which it does only before a machine is fully started.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(bytes.as_mut()).expect("the system's random generator works");
        Self(bytes)
    }

    /// One that was kept.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// To be kept, and shown to nobody.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for another purpose, from which this one cannot be found.
    pub fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref()).expect("HMAC takes keys of every length");
        mac.update(b"onlooker derived key 1\n");
        mac.update(purpose.as_bytes());
        Zeroizing::new(mac.finalize().into_bytes().into())
    }

    fn mac(&self, payload: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref()).expect("HMAC takes keys of every length");
        mac.update(CONTEXT);
        mac.update(payload.as_bytes());
        mac
    }
}

/// The payload. Short names: it travels in every request.
#[derive(Serialize, Deserialize)]
struct Claims {
    #[serde(rename = "i")]
    id: String,
    #[serde(rename = "k")]
    issuer: String,
    #[serde(rename = "p")]
    project: String,
    #[serde(rename = "s")]
    scopes: Vec<String>,
    #[serde(rename = "w")]
    who: String,
    #[serde(rename = "n", default, skip_serializing_if = "Option::is_none")]
    sessions: Option<BTreeSet<String>>,
    /// Seconds since 1970.
    #[serde(rename = "x")]
    expires: u64,
}

impl Auth {
    /// Signs a token for the issuer's project. In open mode it can be issued, and is ignored like any other.
    pub fn issue(&self, issuer: &Grant, request: &TokenRequest, now: SystemTime) -> Result<IssuedToken, IssueError> {
        let is_token = matches!(issuer.credential, CredentialId::Token(_));
        if is_token || !issuer.may(Scope::Admin) || issuer.is_expired(now) {
            return Err(IssueError::NotAllowed);
        }
        check(request)?;
        let ends = now + request.life.unwrap_or(DEFAULT_LIFE);
        let seconds = ends.duration_since(UNIX_EPOCH).map_err(|_| IssueError::Life)?.as_secs();
        let claims = Claims {
            id: random_text::<20>().map_err(|_| IssueError::NoRandomness)?.expose().to_owned(),
            issuer: issuer.who.to_string(),
            project: issuer.project.to_string(),
            scopes: request.scopes.iter().map(ToString::to_string).collect(),
            who: request.who.clone().unwrap_or_else(|| issuer.who.to_string()),
            sessions: request.sessions.clone(),
            expires: seconds,
        };
        let json = serde_json::to_vec(&claims).expect("texts and numbers can be written as JSON");
        let payload = URL_SAFE_NO_PAD.encode(json);
        let mac = URL_SAFE_NO_PAD.encode(self.inner.signing.mac(&payload).finalize().into_bytes());
        let expires = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(IssuedToken { token: Secret::new(format!("{PREFIX}{payload}.{mac}")), expires })
    }

    /// Nothing of the payload is read before the signature is right.
    pub(super) fn verify(&self, token: &str, now: SystemTime) -> Result<Grant, AuthError> {
        let body = token.strip_prefix(PREFIX).ok_or(AuthError::Unknown)?;
        let (payload, mac) = body.split_once('.').ok_or(AuthError::Unknown)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| AuthError::Unknown)?;
        // `verify_slice` compares in constant time.
        self.inner.signing.mac(payload).verify_slice(&mac).map_err(|_| AuthError::Unknown)?;
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| AuthError::Unknown)?;
        let claims: Claims = serde_json::from_slice(&json).map_err(|_| AuthError::Unknown)?;
        let issuer = self.key(&claims.issuer).filter(|key| key.may(Scope::Admin) && *key.project == *claims.project);
        issuer.ok_or(AuthError::Unknown)?;
        let grant = claims.into_grant().ok_or(AuthError::Unknown)?;
        if grant.is_expired(now) { Err(AuthError::Expired) } else { Ok(grant) }
    }
}

impl Claims {
    fn into_grant(self) -> Option<Grant> {
        Some(Grant {
            project: self.project.into(),
            scopes: self.scopes.iter().map(|name| Scope::from_name(name)).collect::<Option<_>>()?,
            who: self.who.into(),
            sessions: self.sessions.map(Arc::new),
            expires: Some(UNIX_EPOCH.checked_add(Duration::from_secs(self.expires))?),
            pool: false,
            credential: CredentialId::Token(self.id.into()),
            key: Some(self.issuer.into()),
        })
    }
}

fn check(request: &TokenRequest) -> Result<(), IssueError> {
    let allowed = |scope: &Scope| matches!(scope, Scope::Watch | Scope::Answer | Scope::Control);
    if request.scopes.is_empty() || !request.scopes.iter().all(allowed) {
        return Err(IssueError::Scopes);
    }
    let life = request.life.unwrap_or(DEFAULT_LIFE);
    if life < Duration::from_secs(1) || life > LONGEST_LIFE {
        return Err(IssueError::Life);
    }
    let is_id = |id: &String| (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if let Some(sessions) = &request.sessions
        && (sessions.is_empty() || sessions.len() > MOST_SESSIONS || !sessions.iter().all(is_id))
    {
        return Err(IssueError::Sessions);
    }
    let visible = |who: &String| (1..=64).contains(&who.chars().count()) && !who.chars().any(char::is_control);
    if request.who.as_ref().is_some_and(|who| !visible(who)) { Err(IssueError::Who) } else { Ok(()) }
}
