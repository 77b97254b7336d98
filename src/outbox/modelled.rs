//! A notice's record as the model of reach-out moves it: the record itself, driven by given times.

use std::{hash::Hash, time::Duration};

use serde_json::{Map, Value};

use super::{
    NoticeKey, NoticeState,
    record::{self, Notice},
};
use crate::notifier::{Delivery, Extras};

#[derive(Clone)]
pub(crate) struct Record(Notice);

/// What one attempt sends.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) id: String,
    pub(crate) repeat: bool,
    /// It asks, as opposed to saying how it ended.
    pub(crate) asks: bool,
}

/// The name of a record: two keys with one name are one notice.
pub(crate) fn name(key: &NoticeKey) -> String {
    record::name(key)
}

impl Record {
    pub(crate) fn new(key: &NoticeKey, now_ms: u64) -> Self {
        Self(Notice::new(key, "p", Map::new(), now_ms))
    }

    pub(crate) fn key(&self) -> NoticeKey {
        self.0.key(crate::ids::SessionId::NONE)
    }

    pub(crate) fn state(&self) -> NoticeState {
        self.0.opened.state()
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.0.opened.attempts
    }

    pub(crate) fn repetition(&self) -> u8 {
        self.0.opened.repetition
    }

    pub(crate) fn at_ms(&self) -> u64 {
        self.0.opened.at_ms
    }

    pub(crate) fn asks(&self) -> bool {
        self.0.asks()
    }

    pub(crate) fn due_in(&self, now_ms: u64) -> Option<Duration> {
        self.0.due_in(now_ms)
    }

    pub(crate) fn is_leased(&self) -> bool {
        self.0.is_leased()
    }

    pub(crate) fn is_leased_by(&self, token: &str) -> bool {
        self.0.is_leased_by(token)
    }

    pub(crate) fn lease(&mut self, token: &str, length: Duration) {
        self.0.lease(token, length);
    }

    pub(crate) fn release(&mut self) {
        self.0.release();
    }

    pub(crate) fn drop_opened(&mut self) {
        self.0.drop_opened();
    }

    pub(crate) fn revive(&mut self) -> bool {
        self.0.revive()
    }

    pub(crate) fn message(&self) -> Sent {
        let message = self.0.message(Extras::default());
        Sent { id: message.id, repeat: message.repeat, asks: self.0.asks() }
    }

    pub(crate) fn settle(&mut self, outcome: &Delivery, now_ms: u64, wait: Duration) -> NoticeState {
        self.0.settle(outcome, now_ms, wait)
    }

    pub(crate) fn conclude(
        &mut self,
        (token, sent): (&str, &Sent),
        outcome: &Delivery,
        now_ms: u64,
        wait: Duration,
    ) -> Option<NoticeState> {
        self.0.conclude((token, &sent.id), outcome, now_ms, wait)
    }

    pub(crate) fn close(&mut self, put_again: bool, now_ms: u64) -> bool {
        let kind = if put_again { record::PUT_AGAIN } else { "guardrail.resolved" };
        self.0.close(&Map::from_iter([("type".to_owned(), Value::from(kind))]), now_ms)
    }

    pub(crate) fn outline(&self, now_ms: u64, hasher: &mut impl std::hash::Hasher) {
        self.0.outline(now_ms).hash(hasher);
    }
}
