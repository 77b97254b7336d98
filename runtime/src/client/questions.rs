//! The guardrails that tasks of one session wait for, and the outcomes that were applied.
//!
//! An outcome reaches at most one waiting task, once: the wait ends with it. A repeat is recognised by
//! (`guardrailId`, `revision`). Plain state without clock or IO.

use std::collections::VecDeque;

use onlooker_protocol::{runtime::GuardrailOutcome, view::Outcome};
use tokio::sync::oneshot;

/// Four times the guardrails that a gateway lets a session have open; older repeats are confirmed again, no more.
const APPLIED_MAX: usize = 64;

#[derive(Default)]
pub(crate) struct Questions {
    waiting: Vec<Waiting>,
    applied: VecDeque<(String, u32)>,
}

struct Waiting {
    id: String,
    asked: u32,
    /// Fields whose values are no secret.
    open_fields: Vec<String>,
    tell: oneshot::Sender<GuardrailOutcome>,
}

pub(crate) enum Received {
    /// The task that asked has it. Its secret values are kept for re-announcing.
    HandedOver(Vec<String>),
    /// It was applied before.
    Again,
    /// No task waits for it.
    NobodyAsks,
}

impl Questions {
    /// A task waits for the outcome of its own question number `asked`. A wait for the same question ends.
    pub(crate) fn ask(
        &mut self,
        id: &str,
        asked: u32,
        open_fields: Vec<String>,
    ) -> oneshot::Receiver<GuardrailOutcome> {
        self.waiting.retain(|w| w.id != id || w.asked != asked);
        let (tell, told) = oneshot::channel();
        self.waiting.push(Waiting { id: id.to_owned(), asked, open_fields, tell });
        told
    }

    pub(crate) fn abandon(&mut self, id: &str, asked: u32) {
        self.waiting.retain(|w| w.id != id || w.asked != asked || !w.tell.is_closed());
    }

    /// The gateway never took the question.
    pub(crate) fn refuse(&mut self, id: &str, asked: u32) {
        self.waiting.retain(|w| w.id != id || w.asked != asked);
    }

    pub(crate) fn receive(&mut self, outcome: GuardrailOutcome) -> Received {
        // The gateway asks anew by itself under the next revision; the task goes on waiting for that.
        if outcome.outcome == Outcome::Lost {
            return Received::Again;
        }
        let key = (outcome.guardrail_id.clone(), outcome.revision);
        let place = self.waiting.iter().position(|w| w.id == outcome.guardrail_id && w.asked == outcome.asked);
        let Some(waiting) = place.map(|place| self.waiting.swap_remove(place)) else {
            return self.without_waiting(key);
        };
        let secret = waiting.secret_values(&outcome);
        if waiting.tell.send(outcome).is_err() {
            return self.without_waiting(key);
        }
        self.remember(key);
        Received::HandedOver(secret)
    }

    /// A repeat of this outcome is confirmed again.
    pub(crate) fn forget(&mut self, id: &str, revision: u32) {
        self.applied.retain(|(i, r)| i != id || *r != revision);
    }

    pub(crate) fn forget_all(&mut self) {
        self.applied.clear();
    }

    fn without_waiting(&mut self, key: (String, u32)) -> Received {
        if self.applied.contains(&key) {
            return Received::Again;
        }
        self.remember(key);
        Received::NobodyAsks
    }

    fn remember(&mut self, key: (String, u32)) {
        if self.applied.contains(&key) {
            return;
        }
        if self.applied.len() >= APPLIED_MAX {
            self.applied.pop_front();
        }
        self.applied.push_back(key);
    }
}

impl Waiting {
    /// Everything in an answer is a secret, unless its field says otherwise or it is a choice.
    fn secret_values(&self, outcome: &GuardrailOutcome) -> Vec<String> {
        let values = outcome.values.iter().filter(|(field, _)| !self.open_fields.contains(field)).map(|(_, v)| v);
        values.chain(&outcome.text).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(id: &str, revision: u32, asked: u32) -> GuardrailOutcome {
        GuardrailOutcome {
            guardrail_id: id.to_owned(),
            revision,
            asked,
            outcome: Outcome::Answered,
            on_timeout: None,
            text: None,
            choice: None,
            values: [("user".to_owned(), "ada".to_owned()), ("password".to_owned(), "lovelace".to_owned())].into(),
        }
    }

    #[test]
    fn an_outcome_is_handed_over_once_and_only_secret_values_are_kept() {
        let mut questions = Questions::default();
        let mut told = questions.ask("g", 1, vec!["user".to_owned()]);
        let Received::HandedOver(values) = questions.receive(outcome("g", 1, 1)) else { panic!("handed over") };
        assert_eq!(values, ["lovelace"]);
        assert!(told.try_recv().is_ok());
        assert!(matches!(questions.receive(outcome("g", 1, 1)), Received::Again));
    }

    #[test]
    fn an_outcome_of_an_older_question_does_not_answer_a_newer_one() {
        let mut questions = Questions::default();
        let mut told = questions.ask("g", 2, Vec::new());
        assert!(matches!(questions.receive(outcome("g", 1, 1)), Received::NobodyAsks));
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_lost_answer_lets_the_task_wait_on_for_the_next_revision() {
        let mut questions = Questions::default();
        let mut told = questions.ask("g", 1, Vec::new());
        questions.receive(GuardrailOutcome { outcome: Outcome::Lost, ..outcome("g", 1, 1) });
        assert!(matches!(questions.receive(outcome("g", 2, 1)), Received::HandedOver(_)));
        assert_eq!(told.try_recv().unwrap().revision, 2);
    }
}
