//! Who may do what: a key or a token becomes a [`Grant`], and a grant answers questions.
//!
//! Keys are compared as SHA-256 digests, in constant time and always against the whole list. Tokens are signed by this
//! process and limited in project, scopes, sessions and life. Without keys the gateway is open: one grant that may do
//! everything in the project `default`, and bearer tokens are ignored.
//!
//! Nothing here says whether a session exists: a session of another project and none at all are the same `false`.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::{
    Config,
    key::{KeyEntry, Scope},
};

pub mod exposure;
pub mod key;
pub mod token;

pub use token::SigningKey;

/// The project of everything in open mode.
pub const OPEN_PROJECT: &str = "default";

/// Keys are 44 characters and tokens a few hundred; what is longer is refused unread.
const LONGEST_CREDENTIAL: usize = 8 * 1024;

/// Names the credential behind a grant; two grants of one credential are the same holder.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CredentialId {
    /// Open mode.
    Open,
    /// By the key's id.
    Key(Arc<str>),
    /// By the token's own random id.
    Token(Arc<str>),
    /// A session id, shown as a capability; here by a prefix of its hash.
    Session(Arc<str>),
}

impl std::fmt::Display for CredentialId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Key(id) => write!(f, "key:{id}"),
            Self::Token(id) => write!(f, "token:{id}"),
            Self::Session(hash) => write!(f, "session:{hash}"),
        }
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    pub fn contains(self, scope: Scope) -> bool {
        self.0 & (1 << scope as u8) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Scope> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope))
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<T: IntoIterator<Item = Scope>>(scopes: T) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | 1 << scope as u8))
    }
}

impl std::fmt::Debug for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// What a credential allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub project: Arc<str>,
    pub scopes: Scopes,
    /// What others see of its holder.
    pub who: Arc<str>,
    /// Only these sessions; `None`: all of the project.
    pub sessions: Option<Arc<BTreeSet<String>>>,
    /// When it ends; long connections must look again. `None`: it does not.
    pub expires: Option<SystemTime>,
    /// Whether its runtimes serve every project.
    pub pool: bool,
    pub credential: CredentialId,
    /// The key behind it, by its id; a token's is the one that issued it. `None`: there is none.
    pub key: Option<Arc<str>>,
}

impl Grant {
    /// What a session id allows whoever knows it, on the WebRun surfaces: this one session, for as long as it is known.
    pub fn of_session(project: &Arc<str>, session: &str) -> Self {
        Self {
            project: Arc::clone(project),
            scopes: [Scope::Watch, Scope::Answer, Scope::Control].into_iter().collect(),
            who: "client".into(),
            sessions: Some(Arc::new(BTreeSet::from([session.to_owned()]))),
            expires: None,
            pool: false,
            credential: CredentialId::Session(session_hash(session).into()),
            key: None,
        }
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(scope)
    }

    /// Whether it reaches this session at all; what it may do there is [`Grant::may`].
    pub fn may_see(&self, project: &str, session: &str) -> bool {
        *self.project == *project && self.sessions.as_ref().is_none_or(|sessions| sessions.contains(session))
    }

    /// Whether its runtimes may serve sessions of this project.
    pub fn may_serve(&self, project: &str) -> bool {
        self.may(Scope::Publish) && self.sessions.is_none() && (self.pool || *self.project == *project)
    }

    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }
}

/// A session id as logs, metrics and error texts may show it: enough to tell two apart, too little to use.
pub fn session_hash(session: &str) -> String {
    Sha256::digest(session.as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

/// Why a credential is refused. To clients all are `unauthorized`; the difference is for the operator's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no key or token was given")]
    Missing,
    #[error("the key or token is unknown")]
    Unknown,
    #[error("the token has expired")]
    Expired,
}

/// The keys and the signing key of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Auth {
    inner: Arc<Inner>,
}

struct Inner {
    keys: Vec<Entry>,
    /// What everybody may do while there are no keys.
    open: Arc<Grant>,
    signing: SigningKey,
}

struct Entry {
    digest: [u8; 32],
    grant: Arc<Grant>,
}

impl Auth {
    /// Signs tokens with a fresh random key: they end with the process.
    pub fn from_config(config: &Config) -> Self {
        Self::with_signing_key(config, SigningKey::generate())
    }

    /// For a signing key that is kept, so that tokens survive a restart or are known to several nodes.
    pub fn with_signing_key(config: &Config, signing: SigningKey) -> Self {
        let keys = config.keys.iter().map(|key| Entry::new(key, config.pools.contains(&key.id))).collect();
        let open = Arc::new(Grant {
            project: OPEN_PROJECT.into(),
            scopes: Scopes::all(),
            who: "local".into(),
            sessions: None,
            expires: None,
            pool: true,
            credential: CredentialId::Open,
            key: None,
        });
        Self { inner: Arc::new(Inner { keys, open, signing }) }
    }

    /// Whether there are no keys.
    pub fn is_open(&self) -> bool {
        self.inner.keys.is_empty()
    }

    /// The one grant of open mode; `None` when there are keys.
    pub fn open_grant(&self) -> Option<Grant> {
        self.is_open().then(|| (*self.inner.open).clone())
    }

    /// What a key or token (without `Bearer `) allows. In open mode it is not looked at.
    pub fn authenticate(&self, credential: &str) -> Result<Grant, AuthError> {
        self.authenticate_at(credential, SystemTime::now())
    }

    /// As [`Self::authenticate`], for those who keep it as long as a connection: all of one key share its grant.
    pub fn authenticate_shared(&self, credential: &str) -> Result<Arc<Grant>, AuthError> {
        self.shared(credential, SystemTime::now())
    }

    /// [`Auth::authenticate`] at a given time.
    pub fn authenticate_at(&self, credential: &str, now: SystemTime) -> Result<Grant, AuthError> {
        self.shared(credential, now).map(Arc::unwrap_or_clone)
    }

    fn shared(&self, credential: &str, now: SystemTime) -> Result<Arc<Grant>, AuthError> {
        if self.is_open() {
            return Ok(Arc::clone(&self.inner.open));
        }
        match credential {
            "" => Err(AuthError::Missing),
            long if long.len() > LONGEST_CREDENTIAL => Err(AuthError::Unknown),
            token if token.starts_with(token::PREFIX) => self.verify(token, now).map(Arc::new),
            key => self.find(key).ok_or(AuthError::Unknown),
        }
    }

    /// Looks at every entry, so that neither the place of the right one nor a partial match shows in the time.
    fn find(&self, key: &str) -> Option<Arc<Grant>> {
        let digest: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let none = u32::MAX;
        let found = self.inner.keys.iter().zip(0u32..).fold(none, |found, (entry, index)| {
            let same: Choice = entry.digest.ct_eq(&digest);
            u32::conditional_select(&found, &index, same)
        });
        self.inner.keys.get(found as usize).map(|entry| Arc::clone(&entry.grant))
    }

    /// The grant of a key by its id.
    fn key(&self, id: &str) -> Option<&Grant> {
        self.inner.keys.iter().map(|entry| &*entry.grant).find(|grant| *grant.who == *id)
    }
}

impl Entry {
    fn new(key: &KeyEntry, pool: bool) -> Self {
        let id: Arc<str> = key.id.as_str().into();
        let grant = Arc::new(Grant {
            project: key.project.as_str().into(),
            scopes: key.scopes.iter().copied().collect(),
            who: id.clone(),
            sessions: None,
            expires: None,
            pool: key.pool || pool,
            credential: CredentialId::Key(Arc::clone(&id)),
            key: Some(id),
        });
        Self { digest: key.sha256.0, grant }
    }
}

#[cfg(test)]
mod tests;
