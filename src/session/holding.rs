//! Who runs the session: offers, claims and their tokens, a runtime that leaves and comes back.

use std::{collections::HashSet, future::pending, sync::Arc, time::Duration};

use onlooker_protocol::{
    code::{Code, Refusal},
    event::kind,
    runtime::GatewayToRuntime,
    subscriber::SecretEntry,
    view::EndReason,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;

use super::{
    ClaimSession,
    appending::Draft,
    owner::{Owner, OwnershipLost},
};
use crate::{
    ids::{self, ConnectionId},
    redact::Nature,
    runtime_link::Seat,
    sabotage::{self, Guard},
};

/// Who runs the session.
pub(super) enum RuntimeSide {
    /// Offered to a runtime, which has not answered yet.
    Offered {
        seat: Seat,
        tried: HashSet<ConnectionId>,
        until: Instant,
    },
    Connected(Seat),
    Http {
        last_contact: Instant,
    },
    Away {
        until: Instant,
    },
    /// After a restart nobody has taken it yet: whoever was offered it may, and from `next` on it is offered anew.
    Unclaimed {
        until: Instant,
        next: Instant,
    },
    /// The session has ended.
    None,
}

/// The digests of the tokens that may claim the session. The one that was shown last stays good until the runtime has
/// shown that it got the newest one: answers that never arrived, however many, must not lock it out.
#[derive(Default)]
pub(super) struct ClaimTokens {
    current: Option<[u8; 32]>,
    previous: Option<[u8; 32]>,
}

impl ClaimTokens {
    /// The only token from now on: for a new offer, so that whoever was offered it before is out.
    pub(super) fn issue(&mut self) -> String {
        let token = ids::random_token();
        *self = Self { current: Some(digest(&token)), previous: None };
        token
    }

    /// A new token in place of the one that was just used.
    pub(super) fn rotate(&mut self, used: &str) -> String {
        let token = ids::random_token();
        *self = Self { current: Some(digest(&token)), previous: Some(digest(used)) };
        token
    }

    /// The runtime has the current token.
    pub(super) fn confirm(&mut self) {
        self.previous = None;
    }

    pub(super) fn fits(&self, token: &str) -> bool {
        let shown = digest(token);
        let fits = |kept: &Option<[u8; 32]>| kept.is_some_and(|kept| bool::from(kept.ct_eq(&shown)));
        fits(&self.current) | fits(&self.previous)
    }
}

/// Claim tokens as they are stored: SHA-256, hexadecimal.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredTokens {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    previous: Option<String>,
}

impl ClaimTokens {
    pub(super) fn stored(&self) -> StoredTokens {
        let text = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect();
        StoredTokens { current: self.current.map(text), previous: self.previous.map(text) }
    }

    pub(super) fn restored(stored: &StoredTokens) -> Self {
        let digest = |text: &Option<String>| text.as_deref().and_then(read_digest);
        Self { current: digest(&stored.current), previous: digest(&stored.previous) }
    }
}

fn read_digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

/// How long a runtime that has taken a session again has to announce its secrets.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(30);

/// Whether the session was given secrets, and whether this process knows them.
#[derive(Default)]
pub(super) enum SecretsHeld {
    #[default]
    None,
    Known,
    /// Another process had them. With a time, a runtime is here that has until then to announce them.
    Lost {
        announce_by: Option<Instant>,
    },
}

impl SecretsHeld {
    /// Whether there are any.
    pub(super) fn has_any(&self) -> bool {
        !matches!(self, Self::None)
    }

    pub(super) fn are_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// The session is given some.
    pub(super) fn given(&mut self) {
        if let Self::None = self {
            *self = Self::Known;
        }
    }

    pub(super) fn restored(&mut self, has_any: bool) {
        *self = if has_any { Self::Lost { announce_by: None } } else { Self::None };
    }

    fn announced(&mut self) {
        if self.are_lost() {
            *self = Self::Known;
        }
    }

    /// A runtime has the session.
    fn expected(&mut self, now: Instant) {
        if let Self::Lost { announce_by } = self {
            *announce_by = Some(now + ANNOUNCE_WITHIN);
        }
    }

    /// The runtime is away again.
    fn not_expected(&mut self) {
        if let Self::Lost { announce_by } = self {
            *announce_by = None;
        }
    }

    pub(super) fn announce_by(&self) -> Option<Instant> {
        match self {
            Self::Lost { announce_by } => *announce_by,
            Self::None | Self::Known => None,
        }
    }

    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.announce_by().is_some_and(|by| now >= by)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

impl Owner {
    /// Offers the session to the next runtime with room, or ends it.
    pub(super) async fn offer_next(&mut self) -> Result<(), OwnershipLost> {
        let RuntimeSide::Offered { seat, tried, .. } = std::mem::replace(&mut self.runtime, RuntimeSide::None) else {
            return Ok(());
        };
        let mut tried = tried;
        tried.insert(seat.connection);
        drop(seat);
        match self.services.runtimes.seat(&self.session.project, &tried) {
            Some(seat) => self.offer(seat, tried).await,
            None => self.end(EndReason::NoRuntime).await,
        }
    }

    /// After a restart: to whoever has room, for as long as a runtime may be away.
    async fn offer_anew(&mut self, now: Instant, until: Instant) -> Result<(), OwnershipLost> {
        if self.secrets.are_lost() {
            return self.end(EndReason::SecretsLost).await;
        }
        match self.services.runtimes.seat(&self.session.project, &HashSet::new()) {
            Some(seat) => self.offer(seat, HashSet::new()).await,
            None if now >= until => self.end(EndReason::NoRuntime).await,
            None => {
                let next = (now + self.services.times.offer).min(until);
                self.runtime = RuntimeSide::Unclaimed { until, next };
                Ok(())
            }
        }
    }

    /// The token is stored before anybody has it: whoever has it must be known after a restart.
    pub(super) async fn offer(&mut self, seat: Seat, tried: HashSet<ConnectionId>) -> Result<(), OwnershipLost> {
        let claim = self.tokens.issue();
        self.keep_surely().await?;
        seat.outlet.send(onlooker_protocol::runtime::GatewayToRuntime::Assigned {
            session: self.session.id.to_string(),
            claim,
            parameters: Box::new(self.asked.clone()),
        });
        self.runtime = RuntimeSide::Offered { seat, tried, until: Instant::now() + self.services.times.offer };
        Ok(())
    }

    /// The runtime's connection has ended, or an HTTP runtime has been silent for too long.
    pub(super) async fn runtime_left(&mut self) -> Result<(), OwnershipLost> {
        if matches!(self.runtime, RuntimeSide::Offered { .. }) {
            return self.offer_next().await;
        }
        let grace = self.services.times.runtime_grace;
        self.runtime = RuntimeSide::Away { until: Instant::now() + grace };
        self.session.link.disconnect();
        self.secrets.not_expected();
        let data = json!({ "gracePeriod": grace.as_millis() as u64 });
        self.append_surely(vec![Draft::new(kind::RUNTIME_DISCONNECTED, None, data)]).await?;
        Ok(())
    }

    pub(super) async fn expire_runtime(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        match &self.runtime {
            RuntimeSide::Offered { until, .. } if now >= *until => Box::pin(self.offer_next()).await,
            RuntimeSide::Away { until } if now >= *until => Box::pin(self.end(EndReason::InstanceLost)).await,
            RuntimeSide::Unclaimed { until, next } if now >= *next => Box::pin(self.offer_anew(now, *until)).await,
            RuntimeSide::Http { last_contact } if now >= *last_contact + self.services.times.http_away => {
                Box::pin(self.runtime_left()).await
            }
            _ => Ok(()),
        }
    }

    /// Whether this connection holds the session; if so, it has its token.
    pub(super) fn hold(&mut self, connection: ConnectionId) -> Result<(), Refusal> {
        let fence_off = sabotage::is_off(Guard::Fence);
        match &self.runtime {
            RuntimeSide::Connected(seat) if seat.connection == connection || fence_off => {
                self.tokens.confirm();
                Ok(())
            }
            _ if self.state.is_ended() => Err(Refusal::plain(Code::SessionEnded)),
            _ => Err(Refusal::plain(Code::Fenced)),
        }
    }

    pub(super) fn commands_done(&mut self, connection: ConnectionId, commands: u64) {
        if self.hold(connection).is_ok() {
            self.session.link.done(commands);
        }
    }

    /// The runtime has closed the session.
    pub(super) async fn ended_by_runtime(&mut self, connection: ConnectionId) -> Result<(), OwnershipLost> {
        if self.hold(connection).is_err() {
            return Ok(());
        }
        let lost = self.secrets.are_lost();
        self.end(if lost { EndReason::SecretsLost } else { EndReason::Completed }).await
    }

    /// A runtime takes the session, for the first time or again.
    pub(super) async fn claimed_by_runtime(&mut self, claim: ClaimSession) -> Result<(), OwnershipLost> {
        let ClaimSession { token, commands, seat } = claim;
        let session = self.session.id.to_string();
        if !self.tokens.fits(&token) {
            self.services.metrics.refused(Code::WrongClaim);
            let refusal = Refusal::plain(Code::WrongClaim);
            seat.outlet.send(GatewayToRuntime::Error { reference: None, session: Some(session), refusal });
            return Ok(());
        }
        if self.state.is_ended() {
            let refusal = Refusal::plain(Code::SessionEnded);
            seat.outlet.send(GatewayToRuntime::Released { session, refusal });
            return Ok(());
        }
        let name = seat.name.clone();
        let before = std::mem::replace(&mut self.runtime, RuntimeSide::None);
        let event = match before {
            RuntimeSide::Offered { .. } | RuntimeSide::Unclaimed { .. } => Some(kind::RUNTIME_CONNECTED),
            RuntimeSide::Away { .. } => Some(kind::RUNTIME_RECONNECTED),
            RuntimeSide::Connected(old) if old.connection != seat.connection => {
                let refusal = Refusal::plain(Code::Fenced);
                old.outlet.send(GatewayToRuntime::Released { session: session.clone(), refusal });
                None
            }
            _ => None,
        };
        self.log.term += 1;
        self.session.link.disconnect();
        self.session.link.done(commands);
        self.misses_values(commands);
        let claim = self.tokens.rotate(&token);
        self.keep_surely().await?;
        let expected = self.log.n + 1;
        let secrets_expected = self.secrets.are_lost();
        self.secrets.expected(Instant::now());
        seat.outlet.send(GatewayToRuntime::Claimed { session, claim, expected, secrets_expected });
        let (connection, outlet) = (seat.connection, Arc::clone(&seat.outlet));
        self.runtime = RuntimeSide::Connected(seat);
        if let Some(event) = event {
            self.append_surely(vec![Draft::new(event, None, json!({ "runtime": name }))]).await?;
        }
        self.settle_with_runtime(commands).await?;
        self.session.link.connect(connection, outlet, commands);
        Ok(())
    }

    /// The runtime announces the session's secrets again. Ignored where it does not have the session.
    pub(super) fn announced(&mut self, connection: ConnectionId, secrets: Vec<SecretEntry>, values: &[String]) {
        if self.hold(connection).is_err() {
            return;
        }
        if let Err(refusal) = self.learn_announced(secrets, values) {
            self.services.metrics.refused(refusal.code);
            let session = Some(self.session.id.to_string());
            self.services.runtimes.tell(connection, GatewayToRuntime::Error { reference: None, session, refusal });
        }
    }

    pub(super) async fn http_announced(
        &mut self,
        claim: &str,
        secrets: Vec<SecretEntry>,
        values: &[String],
    ) -> Result<Result<(), Refusal>, OwnershipLost> {
        match self.http_contact(claim, None).await? {
            Ok(()) => Ok(self.learn_announced(secrets, values)),
            refused => Ok(refused),
        }
    }

    fn learn_announced(&mut self, secrets: Vec<SecretEntry>, values: &[String]) -> Result<(), Refusal> {
        for value in values {
            let registered = self.redactor.register(value, Nature::Credential);
            registered.map_err(|error| Refusal::new(Code::TooLarge, error.to_string()))?;
        }
        self.learn_secrets(secrets)?;
        self.secrets.announced();
        Ok(())
    }

    pub(super) async fn declined(&mut self, connection: ConnectionId, reason: &str) -> Result<(), OwnershipLost> {
        let offered = matches!(&self.runtime, RuntimeSide::Offered { seat, .. } if seat.connection == connection);
        if offered {
            let reason: String = self.redactor.redact_str(reason).chars().take(200).collect();
            tracing::info!(session.id = ?self.id(), reason, "the runtime declined the session");
            self.offer_next().await?;
        }
        Ok(())
    }

    /// An HTTP runtime shows its token: it is there, and has applied commands up to `done`, where it says so.
    pub(super) async fn http_contact(
        &mut self,
        claim: &str,
        done: Option<u64>,
    ) -> Result<Result<(), Refusal>, OwnershipLost> {
        if !self.tokens.fits(claim) {
            return Ok(Err(Refusal::plain(Code::WrongClaim)));
        }
        if self.state.is_ended() {
            return Ok(Err(Refusal::plain(Code::SessionEnded)));
        }
        let was_away = match &self.runtime {
            RuntimeSide::Http { .. } => false,
            RuntimeSide::Away { .. } => true,
            RuntimeSide::Unclaimed { .. } => true,
            _ => return Ok(Err(Refusal::plain(Code::Fenced))),
        };
        self.runtime = RuntimeSide::Http { last_contact: Instant::now() };
        self.session.link.done(done.unwrap_or(0));
        // Who does not say what it has applied may have applied everything.
        if self.misses_values(done.unwrap_or(u64::MAX)) {
            self.keep_surely().await?;
        }
        if was_away {
            self.secrets.expected(Instant::now());
            let data = json!({ "runtime": self.state.session().runtime.as_ref().map(|runtime| &runtime.name) });
            self.append_surely(vec![Draft::new(kind::RUNTIME_RECONNECTED, None, data)]).await?;
        }
        if let Some(done) = done {
            self.settle_with_runtime(done).await?;
        }
        Ok(Ok(()))
    }
}

/// Resolves when the connection that holds the session, or is offered it, has ended.
pub(super) async fn runtime_gone(runtime: &RuntimeSide) {
    match runtime {
        RuntimeSide::Connected(seat) | RuntimeSide::Offered { seat, .. } => seat.gone.cancelled().await,
        RuntimeSide::Http { .. } | RuntimeSide::Away { .. } | RuntimeSide::Unclaimed { .. } | RuntimeSide::None => {
            pending().await
        }
    }
}
