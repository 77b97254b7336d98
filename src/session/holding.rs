//! Who runs the session: offers, claims and their tokens, a runtime that leaves and comes back.

use std::{collections::HashSet, future::pending, sync::Arc};

use onlooker_protocol::{
    code::{Code, Refusal},
    event::kind,
    runtime::GatewayToRuntime,
    view::EndReason,
};
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
            Some(seat) => {
                self.offer(seat, tried);
                Ok(())
            }
            None => self.end(EndReason::NoRuntime).await,
        }
    }

    pub(super) fn offer(&mut self, seat: Seat, tried: HashSet<ConnectionId>) {
        let claim = self.tokens.issue();
        seat.outlet.send(onlooker_protocol::runtime::GatewayToRuntime::Assigned {
            session: self.session.id.to_string(),
            claim,
            parameters: Box::new(self.asked.clone()),
        });
        self.runtime = RuntimeSide::Offered { seat, tried, until: Instant::now() + self.services.times.offer };
    }

    /// The runtime's connection has ended, or an HTTP runtime has been silent for too long.
    pub(super) async fn runtime_left(&mut self) -> Result<(), OwnershipLost> {
        if matches!(self.runtime, RuntimeSide::Offered { .. }) {
            return self.offer_next().await;
        }
        let grace = self.services.times.runtime_grace;
        self.runtime = RuntimeSide::Away { until: Instant::now() + grace };
        self.session.link.disconnect();
        let data = json!({ "gracePeriod": grace.as_millis() as u64 });
        self.append_surely(vec![Draft::new(kind::RUNTIME_DISCONNECTED, None, data)]).await?;
        Ok(())
    }

    pub(super) async fn expire_runtime(&mut self, now: Instant) -> Result<(), OwnershipLost> {
        match &self.runtime {
            RuntimeSide::Offered { until, .. } if now >= *until => self.offer_next().await,
            RuntimeSide::Away { until } if now >= *until => self.end(EndReason::InstanceLost).await,
            RuntimeSide::Http { last_contact } if now >= *last_contact + self.services.times.http_away => {
                self.runtime_left().await
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
        if self.hold(connection).is_ok() { self.end(EndReason::Completed).await } else { Ok(()) }
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
            RuntimeSide::Offered { .. } => Some(kind::RUNTIME_CONNECTED),
            RuntimeSide::Away { .. } => Some(kind::RUNTIME_RECONNECTED),
            RuntimeSide::Connected(old) if old.connection != seat.connection => {
                let refusal = Refusal::plain(Code::Fenced);
                old.outlet.send(GatewayToRuntime::Released { session: session.clone(), refusal });
                None
            }
            _ => None,
        };
        self.log.term += 1;
        self.session.link.done(commands);
        let claim = self.tokens.rotate(&token);
        let expected = self.log.n + 1;
        seat.outlet.send(GatewayToRuntime::Claimed { session, claim, expected, secrets_expected: false });
        self.session.link.connect(seat.connection, Arc::clone(&seat.outlet), commands);
        self.runtime = RuntimeSide::Connected(seat);
        if let Some(event) = event {
            self.append_surely(vec![Draft::new(event, None, json!({ "runtime": name }))]).await?;
        }
        Ok(())
    }

    pub(super) async fn declined(&mut self, connection: ConnectionId, reason: &str) -> Result<(), OwnershipLost> {
        let offered = matches!(&self.runtime, RuntimeSide::Offered { seat, .. } if seat.connection == connection);
        if offered {
            let reason: String = self.redactor.redact_str(reason).chars().take(200).collect();
            tracing::info!(session.id = %self.id(), reason, "the runtime declined the session");
            self.offer_next().await?;
        }
        Ok(())
    }

    /// An HTTP runtime shows its token: it is there, and has applied commands up to `done`.
    pub(super) async fn http_contact(&mut self, claim: &str, done: u64) -> Result<Result<(), Refusal>, OwnershipLost> {
        if !self.tokens.fits(claim) {
            return Ok(Err(Refusal::plain(Code::WrongClaim)));
        }
        if self.state.is_ended() {
            return Ok(Err(Refusal::plain(Code::SessionEnded)));
        }
        let was_away = match &self.runtime {
            RuntimeSide::Http { .. } => false,
            RuntimeSide::Away { .. } => true,
            _ => return Ok(Err(Refusal::plain(Code::Fenced))),
        };
        self.runtime = RuntimeSide::Http { last_contact: Instant::now() };
        self.session.link.done(done);
        if was_away {
            let data = json!({ "runtime": self.state.session().runtime.as_ref().map(|runtime| &runtime.name) });
            self.append_surely(vec![Draft::new(kind::RUNTIME_RECONNECTED, None, data)]).await?;
        }
        Ok(Ok(()))
    }
}

/// Resolves when the connection that holds the session, or is offered it, has ended.
pub(super) async fn runtime_gone(runtime: &RuntimeSide) {
    match runtime {
        RuntimeSide::Connected(seat) | RuntimeSide::Offered { seat, .. } => seat.gone.cancelled().await,
        RuntimeSide::Http { .. } | RuntimeSide::Away { .. } | RuntimeSide::None => pending().await,
    }
}
