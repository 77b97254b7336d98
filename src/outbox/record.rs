//! A notice as it is stored, and its state machine. Pure: no clock, no IO, no randomness.
//!
//! One record holds the message that asks (`opened`) and, once the guardrail has closed, the message that says how
//! (`update`), so that one compare-and-set moves both. Each of them is a [`Delivery`] and goes the same way:
//!
//! ```text
//! queued ──lease──▶ leased ──confirmed──▶ confirmed
//!   ▲  ▲               ├─────refused──▶ failed ──lease──▶ leased …
//!   │  └──repetition 1─┤ unknown, repetition 0
//!   │                  └ unknown, repetition 1 ──▶ given up
//!   └── dropped: nobody was told, and nobody needs to be told any more
//! ```
//!
//! **A refusal after an unknown outcome keeps the repeat alive.** An attempt that was refused has reached nobody, so it
//! cannot be the second time that somebody is asked; to give up there would turn "may have arrived" into a possible
//! miss, which is worse. So the repeat is tried again until one of its attempts *may have arrived*: confirmed, and the
//! key is done; unknown, and it is given up. Over all attempts of a key at most two can have reached a person, the
//! second says that it is a repeat, and both carry one id by which the other end can tell.
//!
//! **A lease that ran out is an unknown outcome**, for its holder may have died at any point of sending.
//!
//! **A late confirmation holds.** Where a lease was taken for dead and its holder then reports success, the record says
//! confirmed whatever it said before: a repeat that has not begun is then never sent. Where a message comes to light that
//! way after its update went out without it, the update is sent once more, as an edit.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{NoticeKey, NoticeState, NoticeSubject};
use crate::{
    ids::{SessionId, time_ordered_id},
    notifier::{self, Extras, Message, Receipt, split_target},
    reach_out::ladder::Rung,
    sabotage::{self, Guard},
};

/// The type of an update that says that the question is put again, under another revision.
pub(super) const PUT_AGAIN: &str = "guardrail.updated";
/// The version of the stored form.
const VERSION: u32 = 1;
/// No wish of another end and no step of the wall clock makes a notice wait longer.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Notice {
    v: u32,
    pub(super) project: String,
    subject: Subject,
    pub(super) target: String,
    step: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    round: u32,
    /// The question under whose message a result belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) thread: Option<Thread>,
    pub(super) opened: Delivery,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) update: Option<Delivery>,
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Clone))]
#[serde(rename_all = "snake_case")]
enum Subject {
    Guardrail { id: String, revision: u32 },
    Result { task: String },
}

/// A guardrail whose message at the same target another one belongs under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    pub guardrail: String,
    pub revision: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Delivery {
    pub(super) id: String,
    body: Map<String, Value>,
    #[serde(flatten)]
    stage: Stage,
    /// 1 once an outcome was unknown.
    pub(super) repetition: u8,
    /// How often a lease was taken.
    pub(super) attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Where its message lies, once it is there and can be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) receipt: Option<Receipt>,
    /// Of an update: the message that its last attempt was to take the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    card: Option<Receipt>,
    /// When it was first written, in wall time.
    pub(super) at_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Hash))]
#[serde(tag = "state", rename_all = "snake_case")]
enum Stage {
    Queued,
    /// `length_ms` is a promise of the holder, counted by whoever finds the lease from when they found it: no two
    /// clocks are compared.
    Leased {
        token: String,
        length_ms: u64,
    },
    Confirmed,
    Failed {
        not_before_ms: u64,
        /// How long that was when it was decided: a clock that is set back does not make it longer.
        #[serde(default = "longest_wait_ms")]
        wait_ms: u64,
        /// The other end takes nothing until somebody changes something there.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        rejected: bool,
    },
    GivenUp,
    Dropped,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error("the stored notice has version {0}, which this gateway does not know")]
    Version(u32),
    #[error("the stored notice is damaged")]
    Damaged(#[source] serde_json::Error),
}

impl Delivery {
    fn new(mut body: Map<String, Value>, now_ms: u64) -> Self {
        body.retain(|_, value| !value.is_null());
        let id = time_ordered_id();
        Self {
            id,
            body,
            stage: Stage::Queued,
            repetition: 0,
            attempts: 0,
            error: None,
            receipt: None,
            card: None,
            at_ms: now_ms,
        }
    }

    pub(super) fn state(&self) -> NoticeState {
        match self.stage {
            Stage::Queued => NoticeState::Queued,
            Stage::Leased { .. } => NoticeState::Leased,
            Stage::Confirmed => NoticeState::Confirmed,
            Stage::Failed { rejected: false, .. } => NoticeState::Failed,
            Stage::Failed { rejected: true, .. } => NoticeState::Rejected,
            Stage::GivenUp => NoticeState::GivenUp,
            Stage::Dropped => NoticeState::Dropped,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Confirmed | Stage::GivenUp | Stage::Dropped)
    }

    fn is_leased_by(&self, holder: &str) -> bool {
        matches!(&self.stage, Stage::Leased { token, .. } if token == holder)
    }

    fn may_have_arrived(&self) -> bool {
        self.repetition > 0 || matches!(self.stage, Stage::Confirmed | Stage::GivenUp)
    }

    fn was_repeated(&self) -> bool {
        self.repetition > 0 && !sabotage::is_off(Guard::OneRepeat)
    }

    /// How long until something is to be done. `None`: never.
    pub(super) fn due_in(&self, now_ms: u64) -> Option<Duration> {
        match self.stage {
            Stage::Queued => Some(Duration::ZERO),
            Stage::Leased { length_ms, .. } => Some(Duration::from_millis(length_ms)),
            Stage::Failed { not_before_ms, wait_ms, .. } => {
                let left = not_before_ms.saturating_sub(now_ms).min(wait_ms);
                Some(Duration::from_millis(left).min(LONGEST_WAIT))
            }
            Stage::Confirmed | Stage::GivenUp | Stage::Dropped => None,
        }
    }

    fn message(&self, extras: Extras) -> Message {
        let mut body = self.body.clone();
        body.insert("id".to_owned(), Value::from(self.id.as_str()));
        let repeat = self.repetition > 0;
        if repeat {
            body.insert("repeat".to_owned(), Value::from(true));
        }
        body.extend(extras.view.iter().map(|view| ("view".to_owned(), Value::from(view.as_str()))));
        body.extend(
            extras
                .form
                .iter()
                .map(|form| ("form".to_owned(), json!({ "url": form.url, "expiresAt": form.expires_at }))),
        );
        let body = Bytes::from(serde_json::to_vec(&body).expect("JSON has a text"));
        Message { id: self.id.clone(), body, repeat, extras, ..Message::default() }
    }
}

impl Notice {
    pub(super) fn new(key: &NoticeKey, project: &str, body: Map<String, Value>, now_ms: u64) -> Self {
        let subject = match &key.subject {
            NoticeSubject::Guardrail { id, revision } => Subject::Guardrail { id: id.clone(), revision: *revision },
            NoticeSubject::Result { task } => Subject::Result { task: task.clone() },
        };
        let opened = Delivery::new(body, now_ms);
        let target = key.target.clone();
        let Rung { step, round } = key.rung;
        Self {
            v: VERSION,
            project: project.to_owned(),
            subject,
            target,
            step,
            round,
            thread: None,
            opened,
            update: None,
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        #[derive(Deserialize)]
        struct Versioned {
            v: u32,
        }
        let Versioned { v } = serde_json::from_slice(bytes).map_err(DecodeError::Damaged)?;
        if v != VERSION {
            return Err(DecodeError::Version(v));
        }
        serde_json::from_slice(bytes).map_err(DecodeError::Damaged)
    }

    pub(super) fn encode(&self) -> Bytes {
        Bytes::from(serde_json::to_vec(self).expect("a notice has a JSON form"))
    }

    pub(super) fn key(&self, session: SessionId) -> NoticeKey {
        let subject = match &self.subject {
            Subject::Guardrail { id, revision } => NoticeSubject::Guardrail { id: id.clone(), revision: *revision },
            Subject::Result { task } => NoticeSubject::Result { task: task.clone() },
        };
        NoticeKey { session, subject, target: self.target.clone(), rung: Rung { step: self.step, round: self.round } }
    }

    /// The step of the ladder, above the first notice.
    pub(super) fn step(&self) -> Option<u32> {
        (self.step > 0).then_some(self.step)
    }

    /// The delivery that is to be worked on: the update only after the opened one is over.
    pub(super) fn current(&self) -> &Delivery {
        self.update.as_ref().filter(|_| self.opened.is_over()).unwrap_or(&self.opened)
    }

    fn current_mut(&mut self) -> &mut Delivery {
        self.update.as_mut().filter(|_| self.opened.is_over()).unwrap_or(&mut self.opened)
    }

    /// Whether the message that asks is still to be sent, as opposed to the one that says how it ended.
    pub(super) fn asks(&self) -> bool {
        !self.opened.is_over()
    }

    pub(super) fn due_in(&self, now_ms: u64) -> Option<Duration> {
        self.current().due_in(now_ms)
    }

    /// What is to be sent now. Its thread is not looked up here.
    pub(super) fn message(&self, extras: Extras) -> Message {
        let address = split_target(&self.target).1.to_owned();
        Message { address, card: self.card(), ..self.current().message(extras) }
    }

    /// The message that the current one takes the place of.
    fn card(&self) -> Option<Receipt> {
        self.opened.receipt.clone().filter(|_| !self.asks())
    }

    pub(super) fn is_leased_by(&self, token: &str) -> bool {
        self.current().is_leased_by(token)
    }

    pub(super) fn is_leased(&self) -> bool {
        matches!(self.current().stage, Stage::Leased { .. })
    }

    pub(super) fn lease(&mut self, token: &str, length: Duration) {
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let card = self.card();
        let delivery = self.current_mut();
        delivery.stage = Stage::Leased { token: token.to_owned(), length_ms };
        delivery.attempts += 1;
        delivery.card = card;
    }

    /// Gives a lease back under which nothing was sent. A question that closed meanwhile is not asked any more.
    pub(super) fn release(&mut self) {
        let closed = self.asks() && self.update.is_some();
        let delivery = self.current_mut();
        delivery.stage = Stage::Queued;
        delivery.attempts -= 1;
        if closed {
            self.drop_opened();
        }
    }

    /// A question's notice was dropped before anybody had it, and is wanted again. `false`: it was not. A result's is
    /// dropped because somebody has seen the result, and stays so.
    pub(super) fn revive(&mut self) -> bool {
        let asks_anew = matches!(self.subject, Subject::Guardrail { .. }) && self.update.is_none();
        let dropped = asks_anew && self.opened.stage == Stage::Dropped;
        if dropped {
            self.opened.stage = Stage::Queued;
        }
        dropped
    }

    /// It is no longer to be sent. What may have arrived before stays known by `repetition`; where nothing can have,
    /// there is nothing to update.
    pub(super) fn drop_opened(&mut self) {
        self.opened.stage = Stage::Dropped;
        if !self.opened.may_have_arrived() {
            self.update = None;
        }
    }

    /// Makes a refused or rejected one due now.
    ///
    /// # Errors
    /// Why there is nothing to try again.
    pub(super) fn retry(&mut self, now_ms: u64) -> Result<(), &'static str> {
        match &mut self.current_mut().stage {
            Stage::Failed { not_before_ms, .. } => {
                *not_before_ms = now_ms;
                Ok(())
            }
            Stage::Queued => Err("it waits for its turn, or until it is wanted: there is nothing to try again"),
            Stage::Leased { .. } => Err("it is being sent at this moment"),
            Stage::Confirmed => Err("it has arrived"),
            Stage::GivenUp => Err("it may have arrived twice already: nothing is repeated more than once"),
            Stage::Dropped => Err("it was dropped, because nobody needs it any more"),
        }
    }

    /// The update is too old to be of use.
    pub(super) fn give_update_up(&mut self) {
        if let Some(update) = &mut self.update {
            update.stage = Stage::GivenUp;
        }
    }

    /// Writes what came of the leased delivery. `wait` is how long a refused one waits.
    pub(super) fn settle(&mut self, outcome: &notifier::Delivery, now_ms: u64, wait: Duration) -> NoticeState {
        let closed = self.asks() && self.update.is_some();
        let delivery = self.current_mut();
        let (stage, error, state) = match outcome {
            notifier::Delivery::Confirmed => (Stage::Confirmed, None, NoticeState::Confirmed),
            notifier::Delivery::Shown(receipt) => {
                delivery.receipt = Some(receipt.clone());
                (Stage::Confirmed, None, NoticeState::Confirmed)
            }
            notifier::Delivery::Refused { error, .. }
            | notifier::Delivery::Throttled { error, .. }
            | notifier::Delivery::Rejected { error }
                if closed =>
            {
                (Stage::Dropped, Some(error), NoticeState::Dropped)
            }
            // The message is gone, and nobody sees its buttons any more.
            notifier::Delivery::Rejected { error } if delivery.card.is_some() => {
                (Stage::GivenUp, Some(error), NoticeState::GivenUp)
            }
            notifier::Delivery::Refused { error, .. } | notifier::Delivery::Throttled { error, .. } => {
                (failed(now_ms, wait, false), Some(error), NoticeState::Failed)
            }
            notifier::Delivery::Rejected { error } => (failed(now_ms, wait, true), Some(error), NoticeState::Rejected),
            // A closed question is not asked again, also not as a repeat.
            notifier::Delivery::Unknown { error } if closed || delivery.was_repeated() => {
                (Stage::GivenUp, Some(error), NoticeState::GivenUp)
            }
            notifier::Delivery::Unknown { error } => {
                delivery.repetition = 1;
                (Stage::Queued, Some(error), NoticeState::Unknown)
            }
        };
        delivery.stage = stage;
        delivery.error = error.cloned();
        if closed && !self.opened.may_have_arrived() {
            self.update = None;
        }
        self.edit_what_came_to_light(now_ms);
        state
    }

    /// Writes what came of an attempt that sent `delivery_id` under the lease `token`, also where that was lost
    /// meanwhile. `None`: nothing is left to write.
    pub(super) fn conclude(
        &mut self,
        (token, delivery_id): (&str, &str),
        outcome: &notifier::Delivery,
        now_ms: u64,
        wait: Duration,
    ) -> Option<NoticeState> {
        if self.is_leased_by(token) {
            return Some(self.settle(outcome, now_ms, wait));
        }
        let receipt = match outcome {
            notifier::Delivery::Confirmed => None,
            notifier::Delivery::Shown(receipt) => Some(receipt),
            _ => return None,
        };
        self.confirm_late(delivery_id, receipt, now_ms).then_some(NoticeState::Confirmed)
    }

    fn edit_what_came_to_light(&mut self, now_ms: u64) {
        let went_without = |update: &&Delivery| update.is_over() && update.card != self.opened.receipt;
        if self.opened.receipt.is_some()
            && let Some(update) = self.update.as_ref().filter(went_without)
        {
            self.update = Some(Delivery::new(update.body.clone(), now_ms));
        }
    }

    /// Success was reported under a lease that had been taken for dead. `false`: it was known already.
    pub(super) fn confirm_late(&mut self, delivery_id: &str, receipt: Option<&Receipt>, now_ms: u64) -> bool {
        let sent = [Some(&mut self.opened), self.update.as_mut()].into_iter().flatten().find(|d| d.id == delivery_id);
        match sent {
            Some(delivery) if delivery.stage != Stage::Confirmed => {
                delivery.stage = Stage::Confirmed;
                delivery.error = None;
                delivery.receipt = receipt.cloned();
                self.edit_what_came_to_light(now_ms);
                true
            }
            _ => false,
        }
    }

    /// The guardrail's revision closed. `false`: nothing changes. Of what was told as closed, only that it is put again
    /// after all is told once more.
    pub(super) fn close(&mut self, body: &Map<String, Value>, now_ms: u64) -> bool {
        if let Some(told) = &self.update {
            let put_again = |body: &Map<String, Value>| body.get("type").is_some_and(|kind| kind == PUT_AGAIN);
            if put_again(&told.body) || !put_again(body) {
                return false;
            }
            self.update = Some(Delivery::new(body.clone(), now_ms));
            return true;
        }
        let waits = matches!(self.opened.stage, Stage::Queued | Stage::Failed { .. });
        if waits {
            self.drop_opened();
        }
        // Under way: its outcome will say whether there is anything to update.
        let may_be_there = self.opened.may_have_arrived() || matches!(self.opened.stage, Stage::Leased { .. });
        if may_be_there {
            self.update = Some(Delivery::new(body.clone(), now_ms));
        }
        waits || may_be_there
    }
}

fn failed(now_ms: u64, wait: Duration, rejected: bool) -> Stage {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    Stage::Failed { not_before_ms: now_ms.saturating_add(wait_ms), wait_ms, rejected }
}

fn longest_wait_ms() -> u64 {
    u64::try_from(LONGEST_WAIT.as_millis()).unwrap_or(u64::MAX)
}

/// The name of a notice's record in its session: the parts of the key, so that a race has one winner.
pub(super) fn name(key: &NoticeKey) -> String {
    let target = escaped(&key.target);
    let step = match key.rung {
        Rung { step, round: 0 } => step.to_string(),
        Rung { step, round } => format!("{step}-{round}"),
    };
    match &key.subject {
        NoticeSubject::Guardrail { id, revision } => {
            let revision = if sabotage::is_off(Guard::KeyRevision) { &0 } else { revision };
            format!("g.{}.{revision}.{step}.{target}", escaped(id))
        }
        NoticeSubject::Result { task } => format!("r.{}.{step}.{target}", escaped(task)),
    }
}

/// Keeps the parts apart, and to characters that every engine can name a record by.
fn escaped(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("={byte:02x}"));
        }
    }
    out
}

/// What tells two records apart for whoever works on them, as seen at one time.
#[cfg(test)]
impl Notice {
    pub(super) fn outline(&self, now_ms: u64) -> impl std::hash::Hash + use<> {
        let of = |delivery: &Delivery| {
            let stage = match delivery.stage.clone() {
                Stage::Failed { not_before_ms, wait_ms, rejected } => {
                    Stage::Failed { not_before_ms: not_before_ms.saturating_sub(now_ms), wait_ms, rejected }
                }
                stage => stage,
            };
            (stage, delivery.repetition, delivery.attempts)
        };
        let told = self.update.as_ref().map(|update| update.body.get("type").is_some_and(|kind| kind == PUT_AGAIN));
        (of(&self.opened), self.update.as_ref().map(of), told)
    }
}

#[cfg(test)]
mod tests;
