//! The stored form of a guardrail, and what becomes of it in another process.
//!
//! Values and texts of answers are not stored, except choices and values of fields that say `secret: false`. An answer
//! of which something is missing here is lost with the process, unless the runtime has it already.

use std::collections::BTreeMap;

use onlooker_protocol::{
    runtime::GuardrailOutcome,
    view::{ClaimView, GuardrailState, GuardrailView, OnTimeout, Outcome, WhyView},
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{Accepted, Claim, Guardrail, PlainAnswer};
use crate::{
    clock,
    control::{Holder, HolderKey},
    engine::Version,
};

/// The version of the stored form.
const VERSION: u32 = 1;

/// The stored form: nothing secret.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredGuardrail {
    version: u32,
    pub view: GuardrailView,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<PlainAnswer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    default_answer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<StoredClaim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    filled: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hands_over_secrets: bool,
    decisions: Vec<WhyView>,
}

/// A claim by a credential. One by a connection ends with its process.
#[derive(Debug, Serialize, Deserialize)]
struct StoredClaim {
    credential: String,
    view: ClaimView,
}

impl StoredGuardrail {
    /// # Errors
    /// It is damaged, or of a version that this gateway does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let stored: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if stored.version == VERSION { Ok(stored) } else { Err(format!("it has version {}", stored.version)) }
    }
}

impl Guardrail {
    /// `is_plain` says of a text that no secret is in it.
    pub fn stored(&self, is_plain: impl Fn(&str) -> bool) -> StoredGuardrail {
        let claim = self.claim.as_ref().and_then(|claim| match &claim.holder.by {
            HolderKey::Credential(credential) => {
                Some(StoredClaim { credential: credential.to_string(), view: claim.view.clone() })
            }
            HolderKey::Connection(_) => None,
        });
        StoredGuardrail {
            version: VERSION,
            view: self.view.clone(),
            idempotency_key: self.accepted.as_ref().map(|accepted| accepted.idempotency_key.clone()),
            answer: self.accepted.as_ref().map(|accepted| accepted.plain.clone()),
            default_answer: self.default_answer.clone().filter(|text| is_plain(text)),
            claim,
            command: self.command,
            filled: self.filled,
            hands_over_secrets: self.hands_over_secrets,
            decisions: self.decisions.iter().cloned().collect(),
        }
    }

    /// As its record has it. Deadlines and claims go on in wall time: what passed meanwhile has passed.
    pub fn restored(stored: StoredGuardrail, version: Version, now: Instant, wall: OffsetDateTime) -> Self {
        let view = stored.view;
        let claim = stored.claim.filter(|_| view.state == GuardrailState::Open).map(|stored| Claim {
            holder: Holder { who: stored.view.by.clone(), by: HolderKey::Credential(stored.credential.into()) },
            until: now + clock::until(&stored.view.until, wall),
            view: stored.view,
        });
        let plain = stored.answer.unwrap_or_default();
        let accepted = stored.idempotency_key;
        let mut guardrail = Self {
            raised_at: now.checked_sub(clock::since(&view.opened_at, wall)).unwrap_or(now),
            deadline: now + clock::until(&view.expires_at, wall),
            view,
            default_answer: stored.default_answer,
            prefilled: BTreeMap::new(),
            accepted: None,
            claim,
            outcome: None,
            command: stored.command,
            filled: stored.filled,
            hands_over_secrets: stored.hands_over_secrets,
            decisions: stored.decisions.into(),
            unreachable: false,
            version: Some(version),
        };
        guardrail.outcome = guardrail.outcome_after_restart(&plain);
        guardrail.accepted = accepted.map(|idempotency_key| Accepted { idempotency_key, digest: None, plain });
        guardrail
    }

    /// An open question that is in the log, and whose record did not become as new.
    pub fn from_log(view: GuardrailView, last: Option<&Self>, now: Instant, wall: OffsetDateTime) -> Self {
        Self {
            raised_at: now.checked_sub(clock::since(&view.opened_at, wall)).unwrap_or(now),
            deadline: now + clock::until(&view.expires_at, wall),
            view,
            default_answer: None,
            prefilled: BTreeMap::new(),
            accepted: None,
            claim: None,
            outcome: None,
            command: None,
            filled: last.is_some_and(|last| last.filled),
            hands_over_secrets: false,
            decisions: Default::default(),
            unreachable: false,
            version: last.and_then(|last| last.version),
        }
    }

    /// What can still be told to the runtime.
    fn outcome_after_restart(&self, plain: &PlainAnswer) -> Option<GuardrailOutcome> {
        let resolution = self.view.resolution.as_ref()?;
        let mut outcome = self.outcome_without_values(resolution.outcome);
        match self.view.state {
            GuardrailState::Open | GuardrailState::Superseded | GuardrailState::Lost => return None,
            GuardrailState::Accepted if !plain.whole => return None,
            GuardrailState::Accepted => {
                outcome.choice.clone_from(&plain.choice);
                outcome.values.clone_from(&plain.values);
            }
            GuardrailState::Taken => outcome.choice.clone_from(&plain.choice),
            GuardrailState::Expired | GuardrailState::Cancelled => {}
        }
        if resolution.outcome == Outcome::TimedOut {
            outcome.on_timeout = Some(self.view.on_timeout);
            if self.view.on_timeout == OnTimeout::DefaultAnswer {
                outcome.text.clone_from(&self.default_answer);
            }
        }
        Some(outcome)
    }

    /// What the runtime should get died with another process, and the question was not put again yet.
    pub fn has_lost_its_answer(&self) -> bool {
        self.view.state == GuardrailState::Lost
            || (self.view.state == GuardrailState::Accepted && self.outcome.is_none())
    }

    /// Whether the runtime, which has applied the commands up to `applied`, was given secret values that died with
    /// another process.
    pub fn gave_lost_values(&self, applied: u64) -> bool {
        let given = self.command.is_some_and(|command| command <= applied);
        self.hands_over_secrets && given && self.view.state == GuardrailState::Accepted && self.outcome.is_none()
    }

    /// Whether the runtime, which has applied the commands up to `applied`, still has to be told how it ended. From
    /// `own_from` on commands are this process's own, and wait for it already.
    pub fn is_untold(&self, applied: u64, own_from: u64) -> bool {
        let tells =
            matches!(self.view.state, GuardrailState::Accepted | GuardrailState::Expired | GuardrailState::Cancelled);
        self.view.state == GuardrailState::Lost
            || (tells && self.command.is_none_or(|command| command > applied && command < own_from))
    }

    /// The same question under the next revision, after its answer was lost. Its deadline stays.
    pub fn asked_anew(&self) -> GuardrailView {
        let mut view = self.view.clone();
        view.revision += 1;
        view.state = GuardrailState::Open;
        view.resolution = None;
        view.claim = None;
        view
    }
}
