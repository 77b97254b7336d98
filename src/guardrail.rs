//! Guardrails of one session: raising, answering, deadlines, claims. Pure; its owner gives the time and does the IO.
//!
//! The rules that matter most:
//! * A guardrail id is one question in the session's life. The same revision again is a repeat, never a second
//!   question; a higher one supersedes the last.
//! * The first answer wins. What wins is decided against the record's state, which the owner then writes by
//!   compare-and-set before anybody hears of it.
//! * Nothing here is ever approved by silence, unless the operator's configuration says so for that kind.

mod answer;
mod kept;
mod trigger;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use onlooker_protocol::{
    Position,
    code::{Code, Refusal},
    runtime::GuardrailOutcome,
    subscriber::{Answer, AnswerAction},
    view::{ClaimView, GuardrailKind, GuardrailState, GuardrailView, OnTimeout, Outcome, Resolution, WhyView},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;
use zeroize::Zeroize;

pub use answer::AnswerDigest;
pub use kept::StoredGuardrail;
pub use trigger::Trigger;

use crate::{
    control::Holder,
    engine::Version,
    ids::ConnectionId,
    sabotage::{self, Guard},
};

/// How many decisions a guardrail's record keeps.
const DECISIONS: usize = 16;

#[derive(Clone, Debug)]
pub struct GuardrailRules {
    /// Open at once in a session.
    pub open: usize,
    /// Distinct ids in a session's life, closed ones included: repeats must be recognised for as long as it lives.
    pub ids: usize,
    /// Fields or choices of one guardrail.
    pub items: usize,
    /// Bytes of text of one guardrail.
    pub text: usize,
    /// An unanswered guardrail ends after this, whatever it says itself.
    pub max_wait: Duration,
    /// Kinds for which silence may be an answer although they are purchase, security or policy.
    pub default_answer_allowed: Vec<GuardrailKind>,
    pub claim: Duration,
    pub claim_max: Duration,
    /// How long a claim outlives the connection that made it.
    pub claim_grace: Duration,
}

/// One question and everything about it.
#[cfg_attr(test, derive(Clone))]
pub struct Guardrail {
    pub view: GuardrailView,
    pub raised_at: Instant,
    /// When it closes by itself.
    pub deadline: Instant,
    pub default_answer: Option<String>,
    /// Values that fillers had already; they reach the runtime with the answer.
    prefilled: BTreeMap<String, String>,
    accepted: Option<Accepted>,
    claim: Option<Claim>,
    /// What the runtime is told, until it says that it has it. Holds secrets.
    outcome: Option<GuardrailOutcome>,
    /// The number of the command by which the runtime is told the outcome.
    pub command: Option<u64>,
    /// Fillers had values for it once: the same ones are not tried again.
    filled: bool,
    /// What the runtime gets with the outcome holds values of secret fields.
    hands_over_secrets: bool,
    pub decisions: VecDeque<WhyView>,
    /// Nobody is looking, and nobody is left who could be told. Found anew by each decision.
    pub unreachable: bool,
    /// The version of its record in the engine.
    pub version: Option<Version>,
}

/// Whose answer won. The digest recognises the same answer sent again; it is keyed per process and never stored, so
/// that after a restart the key alone says that it is the same.
#[derive(Clone, Debug)]
struct Accepted {
    idempotency_key: String,
    digest: Option<AnswerDigest>,
    /// What of it may be stored.
    plain: PlainAnswer,
}

/// The part of an answer that is no secret.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlainAnswer {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    choice: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    values: BTreeMap<String, String>,
    /// Nothing is missing here of what the runtime gets.
    whole: bool,
}

#[derive(Clone, Debug)]
struct Claim {
    holder: Holder,
    until: Instant,
    view: ClaimView,
}

/// What raising came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raising {
    /// A question that nobody has been asked: under this revision, after superseding the last one if there is one.
    New { revision: u32, supersedes: Option<u32> },
    /// The same as its last: the runtime is told the present state again.
    Repeat,
}

/// Who answers, claims or commands, and from where.
#[derive(Clone, Debug)]
pub struct Actor {
    pub holder: Holder,
    /// `websocket`, `rest`, …
    pub via: &'static str,
}

/// What an answer came to.
#[derive(Clone, Debug)]
pub enum Answering {
    /// It wins, if the record is still as it was seen.
    Wins(Resolution),
    /// The same answer had won before.
    Again,
}

/// Every guardrail of a session, by id.
#[cfg_attr(test, derive(Clone))]
pub struct Book {
    rules: GuardrailRules,
    by_id: BTreeMap<String, Guardrail>,
    /// Versions of records whose guardrails the log does not know: their raising was not taken.
    unraised: HashMap<String, Version>,
}

impl Book {
    pub fn new(rules: GuardrailRules) -> Self {
        Self { rules, by_id: BTreeMap::new(), unraised: HashMap::new() }
    }

    /// A guardrail as its record or the log has it.
    pub fn restore(&mut self, guardrail: Guardrail) {
        self.by_id.insert(guardrail.view.guardrail_id.clone(), guardrail);
    }

    /// Forgets a guardrail whose raising was not taken, but not that it has a record.
    pub fn not_raised(&mut self, id: &str) {
        if let Some(version) = self.by_id.remove(id).and_then(|guardrail| guardrail.version) {
            self.unraised.insert(id.to_owned(), version);
        }
    }

    pub fn rules(&self) -> &GuardrailRules {
        &self.rules
    }

    pub fn get(&self, id: &str) -> Option<&Guardrail> {
        self.by_id.get(id)
    }

    pub fn get_mut(&mut self, id: &str) -> Option<&mut Guardrail> {
        self.by_id.get_mut(id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Guardrail> {
        self.by_id.values()
    }

    pub fn open(&self) -> impl Iterator<Item = &Guardrail> {
        self.by_id.values().filter(|guardrail| guardrail.view.state == GuardrailState::Open)
    }

    /// Those that a snapshot shows: open, and accepted but not taken yet. In the order of raising.
    pub fn unfinished(&self) -> Vec<GuardrailView> {
        let unfinished = |state| matches!(state, GuardrailState::Open | GuardrailState::Accepted);
        let mut views: Vec<_> =
            self.by_id.values().filter(|guardrail| unfinished(guardrail.view.state)).map(Guardrail::shown).collect();
        views.sort_by_key(|view| view.position.offset);
        views
    }

    /// What a trigger would come to.
    ///
    /// # Errors
    /// `lower_revision`, `default_answer_refused`, `too_many_guardrails`.
    pub fn raising(&self, trigger: &Trigger) -> Result<Raising, Refusal> {
        trigger.check_default_answer(&self.rules)?;
        let last = self.by_id.get(&trigger.guardrail_id);
        let raising = match last {
            None => Raising::New { revision: trigger.revision.max(1), supersedes: None },
            Some(last) if trigger.revision == last.view.asked => Raising::Repeat,
            Some(last) if trigger.revision < last.view.asked => {
                return Err(Refusal::plain(Code::LowerRevision).with_details(json!({ "last": last.view.asked })));
            }
            Some(last) => Raising::New {
                revision: trigger.revision.max(last.view.revision + 1),
                supersedes: (!last.is_over()).then_some(last.view.revision),
            },
        };
        let supersedes_open =
            last.is_some_and(|last| last.view.state == GuardrailState::Open) && raising != Raising::Repeat;
        let open = self.open().count() - usize::from(supersedes_open);
        let too_many = open >= self.rules.open || (last.is_none() && self.by_id.len() >= self.rules.ids);
        if too_many && raising != Raising::Repeat {
            return Err(Refusal::plain(Code::TooManyGuardrails).with_details(json!({ "limit": self.rules.open })));
        }
        Ok(raising)
    }

    /// Opens a question. `view` is what everybody sees; it is in the log at its position already.
    pub fn opened(
        &mut self,
        view: GuardrailView,
        trigger: &Trigger,
        prefilled: BTreeMap<String, String>,
        raised_at: Instant,
    ) -> &mut Guardrail {
        let id = view.guardrail_id.clone();
        let last = self.by_id.get(&id);
        let version = last.and_then(|last| last.version).or_else(|| self.unraised.remove(&id));
        let filled = !prefilled.is_empty() || last.is_some_and(|last| last.filled);
        let guardrail = Guardrail {
            view,
            raised_at,
            deadline: raised_at + trigger.closes_after(&self.rules),
            default_answer: trigger.default_answer.clone(),
            prefilled,
            accepted: None,
            claim: None,
            outcome: None,
            command: None,
            filled,
            hands_over_secrets: false,
            decisions: VecDeque::new(),
            unreachable: false,
            version,
        };
        self.by_id.insert(id.clone(), guardrail);
        self.by_id.get_mut(&id).expect("just inserted")
    }

    /// The next time at which something here happens by itself.
    pub fn next_deadline(&self) -> Option<Instant> {
        let claims = self.by_id.values().filter_map(|guardrail| guardrail.claim.as_ref()).map(|claim| claim.until);
        self.open().map(|guardrail| guardrail.deadline).chain(claims).min()
    }

    /// A connection was lost: its claims end after the grace, unless they end before.
    pub fn connection_lost(&mut self, connection: ConnectionId, now: Instant) {
        let until = now + self.rules.claim_grace;
        for claim in self.by_id.values_mut().filter_map(|guardrail| guardrail.claim.as_mut()) {
            if claim.holder.by == crate::control::HolderKey::Connection(connection) {
                claim.until = claim.until.min(until);
            }
        }
    }

    /// Ends claims whose time is over. Returns whether any ended. Their records need no write: a stored claim says
    /// until when it runs.
    pub fn expire_claims(&mut self, now: Instant) -> bool {
        let mut any = false;
        for guardrail in self.by_id.values_mut() {
            if guardrail.claim.take_if(|claim| now >= claim.until).is_some() {
                any = true;
            }
        }
        any
    }
}

impl Guardrail {
    /// What everybody sees of it now.
    pub fn shown(&self) -> GuardrailView {
        let mut view = self.view.clone();
        view.claim = self.claim.as_ref().map(|claim| claim.view.clone());
        view
    }

    /// Nothing more will come of it: neither open nor waiting for the runtime to take its outcome.
    pub fn is_over(&self) -> bool {
        !matches!(self.view.state, GuardrailState::Open | GuardrailState::Accepted)
    }

    /// Until when a claim on it runs.
    pub fn claimed_until(&self) -> Option<Instant> {
        self.claim.as_ref().map(|claim| claim.until)
    }

    pub fn claim_view(&self) -> Option<&ClaimView> {
        self.claim.as_ref().map(|claim| &claim.view)
    }

    /// What the runtime is or was told, while it is kept.
    pub fn outcome(&self) -> Option<&GuardrailOutcome> {
        self.outcome.as_ref()
    }

    /// Whether fillers had values for it, which reach the runtime with the answer.
    pub fn is_prefilled(&self) -> bool {
        !self.prefilled.is_empty()
    }

    /// What an answer would come to. Changes nothing.
    ///
    /// # Errors
    /// `stale_revision`, `already_answered`, `guardrail_closed`, `invalid`.
    pub fn answering(&self, answer: &Answer, actor: &Actor, at: &str) -> Result<Answering, Refusal> {
        if answer.revision != self.view.revision {
            return Err(self.refuse_revision(answer.revision));
        }
        if let Some(accepted) = &self.accepted
            && accepted.idempotency_key == answer.idempotency_key
            && accepted.digest.is_none_or(|digest| digest == AnswerDigest::of(answer))
        {
            return Ok(Answering::Again);
        }
        if self.view.state.is_closed() && !sabotage::is_off(Guard::CompareAndSet) {
            return Err(self.refuse_closed());
        }
        answer::check(&self.view, answer)?;
        Ok(Answering::Wins(answer::resolution(&self.view, answer, actor, at)))
    }

    /// The answer has won. `is_plain` says of a value that no secret is in it.
    pub fn accept(&mut self, mut answer: Answer, resolution: Resolution, is_plain: impl Fn(&str) -> bool) {
        let declined = resolution.outcome == Outcome::Declined;
        self.hands_over_secrets = !declined && (self.is_prefilled() || self.has_secret_values(&answer));
        self.accepted = Some(Accepted {
            idempotency_key: answer.idempotency_key.clone(),
            digest: Some(AnswerDigest::of(&answer)),
            plain: self.plain(&answer, is_plain),
        });
        let mut values = std::mem::take(&mut self.prefilled);
        values.extend(std::mem::take(&mut answer.values));
        if declined {
            // Who declines hands nothing over, neither what was typed nor what was known already.
            values.values_mut().for_each(Zeroize::zeroize);
            values.clear();
        }
        let mut outcome = self.outcome_without_values(resolution.outcome);
        outcome.text = answer.text.take();
        outcome.choice = answer.choice.take();
        outcome.values = values;
        self.outcome = Some(outcome);
        self.close(GuardrailState::Accepted, resolution);
    }

    fn has_secret_values(&self, answer: &Answer) -> bool {
        let in_words = answer.text.is_some() && self.view.fields.iter().any(|field| field.secret);
        in_words
            || answer.values.keys().any(|id| !self.view.fields.iter().any(|field| field.id == *id && !field.secret))
    }

    /// What of an answer may be stored: choices, and values of fields that are no secret.
    fn plain(&self, answer: &Answer, is_plain: impl Fn(&str) -> bool) -> PlainAnswer {
        if answer.action == AnswerAction::Decline {
            return PlainAnswer { choice: None, values: BTreeMap::new(), whole: answer.text.is_none() };
        }
        let storable = |(id, value): &(&String, &String)| {
            self.view.fields.iter().any(|field| field.id == **id && !field.secret) && is_plain(value)
        };
        let pairs = answer.values.iter().filter(storable).map(|(id, value)| (id.clone(), value.clone()));
        let values = BTreeMap::from_iter(pairs);
        let whole = !self.is_prefilled() && answer.text.is_none() && values.len() == answer.values.len();
        PlainAnswer { choice: answer.choice.clone(), values, whole }
    }

    /// Whether the runtime gets values of secret fields with the outcome.
    pub fn hands_over_secrets(&self) -> bool {
        self.hands_over_secrets
    }

    /// Whether fillers had values for it, now or before a restart.
    pub fn was_filled(&self) -> bool {
        self.filled
    }

    /// It ends without an answer. Returns what the runtime is told.
    pub fn end(&mut self, state: GuardrailState, resolution: Resolution) -> GuardrailOutcome {
        let mut outcome = self.outcome_without_values(resolution.outcome);
        if resolution.outcome == Outcome::TimedOut {
            outcome.on_timeout = Some(self.view.on_timeout);
            if self.view.on_timeout == OnTimeout::DefaultAnswer {
                outcome.text.clone_from(&self.default_answer);
            }
        }
        self.forget_payload();
        self.outcome = Some(outcome.clone());
        self.close(state, resolution);
        outcome
    }

    /// The runtime has it: what was secret about the answer is forgotten, the plain outcome stays for repeats.
    pub fn taken(&mut self) {
        if self.view.state == GuardrailState::Accepted {
            self.view.state = GuardrailState::Taken;
        }
        self.forget_payload();
    }

    fn close(&mut self, state: GuardrailState, resolution: Resolution) {
        self.view.state = state;
        self.view.resolution = Some(resolution);
        self.claim = None;
    }

    fn outcome_without_values(&self, outcome: Outcome) -> GuardrailOutcome {
        GuardrailOutcome {
            guardrail_id: self.view.guardrail_id.clone(),
            revision: self.view.revision,
            asked: self.view.asked,
            outcome,
            on_timeout: None,
            text: None,
            choice: None,
            values: BTreeMap::new(),
        }
    }

    fn forget_payload(&mut self) {
        for value in self.prefilled.values_mut() {
            value.zeroize();
        }
        self.prefilled.clear();
        if let Some(outcome) = &mut self.outcome {
            outcome.text.zeroize();
            outcome.text = None;
            for value in outcome.values.values_mut() {
                value.zeroize();
            }
            outcome.values.clear();
        }
    }

    /// "I have it." Renewed by repeating it.
    ///
    /// # Errors
    /// `stale_revision`, `guardrail_closed`, `claimed`.
    pub fn claim(
        &mut self,
        revision: u32,
        holder: &Holder,
        (now, wall): (Instant, time::OffsetDateTime),
        duration: Option<Duration>,
        rules: &GuardrailRules,
    ) -> Result<ClaimView, Refusal> {
        self.check_open(revision)?;
        if let Some(claim) = &self.claim
            && claim.holder.by != holder.by
            && now < claim.until
        {
            let details = json!({ "by": claim.view.by, "until": claim.view.until });
            return Err(Refusal::plain(Code::Claimed).with_details(details));
        }
        let duration = duration.unwrap_or(rules.claim).min(rules.claim_max);
        let view = ClaimView { by: holder.who.clone(), until: crate::clock::text(wall + duration) };
        self.claim = Some(Claim { holder: holder.clone(), until: now + duration, view: view.clone() });
        Ok(view)
    }

    /// Ends one's own claim.
    ///
    /// # Errors
    /// `stale_revision`, `guardrail_closed`, `claimed` by somebody else.
    pub fn release(&mut self, revision: u32, holder: &Holder) -> Result<(), Refusal> {
        self.check_open(revision)?;
        match &self.claim {
            Some(claim) if claim.holder.by != holder.by => {
                Err(Refusal::plain(Code::Claimed).with_details(json!({ "by": claim.view.by })))
            }
            _ => {
                self.claim = None;
                Ok(())
            }
        }
    }

    /// Keeps why somebody was or was not contacted, unless it is what was decided last.
    pub fn decided(&mut self, why: WhyView) -> bool {
        let same = self.decisions.back().is_some_and(|last| last.decision == why.decision && last.why == why.why);
        if same {
            return false;
        }
        if self.decisions.len() == DECISIONS {
            self.decisions.pop_front();
        }
        self.decisions.push_back(why);
        true
    }

    fn check_open(&self, revision: u32) -> Result<(), Refusal> {
        if revision != self.view.revision {
            return Err(self.refuse_revision(revision));
        }
        if self.view.state.is_closed() { Err(self.refuse_closed()) } else { Ok(()) }
    }

    fn refuse_revision(&self, revision: u32) -> Refusal {
        let current = self.view.revision;
        let code = if revision < current { Code::StaleRevision } else { Code::Invalid };
        let message = format!("the question is at revision {current} now; look at it and answer that one");
        Refusal::new(code, message).with_details(json!({ "revision": current }))
    }

    fn refuse_closed(&self) -> Refusal {
        let resolution = self.view.resolution.as_ref();
        let (by, via, at) = resolution.map_or((None, "", ""), |r| (r.by.as_deref(), r.via.as_str(), r.at.as_str()));
        let details = json!({ "state": self.view.state, "by": by, "via": via, "at": at });
        match self.view.state {
            GuardrailState::Accepted | GuardrailState::Taken => {
                let by = by.unwrap_or("somebody");
                Refusal::new(Code::AlreadyAnswered, format!("{by} answered first, by {via}")).with_details(details)
            }
            _ => Refusal::plain(Code::GuardrailClosed).with_details(details),
        }
    }
}

/// Where a raised question stands, for the view.
pub struct Raised<'a> {
    pub session: String,
    pub task: Option<String>,
    pub revision: u32,
    pub position: Position,
    pub at: &'a str,
    pub wall: time::OffsetDateTime,
}

impl Trigger {
    /// The view of a question raised by this trigger. `missing` are the fields that fillers left.
    pub fn view(&self, raised: Raised<'_>, rules: &GuardrailRules) -> GuardrailView {
        GuardrailView {
            session: raised.session,
            guardrail_id: self.guardrail_id.clone(),
            revision: raised.revision,
            asked: self.revision,
            task: raised.task,
            kind: self.kind,
            value: self.value.clone(),
            domain: self.domain.clone(),
            fields: self.fields.clone(),
            choices: self.choices.clone(),
            website_error: self.website_error.clone(),
            state: GuardrailState::Open,
            opened_at: raised.at.to_owned(),
            expires_at: crate::clock::text(raised.wall + self.closes_after(rules)),
            on_timeout: self.on_timeout,
            position: raised.position,
            claim: None,
            resolution: None,
        }
    }
}

#[cfg(test)]
mod tests;
