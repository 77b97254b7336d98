//! Answers: what a fitting one is, and how the same one is recognised.

use std::sync::LazyLock;

use hmac::{Hmac, KeyInit, Mac};
use onlooker_protocol::{
    code::{Code, Refusal},
    subscriber::{Answer, AnswerAction},
    view::{GuardrailView, Outcome, Resolution},
};
use sha2::Sha256;

use super::Actor;

/// The longest text or value of an answer, in bytes.
const VALUE_MAX: usize = 16 * 1024;

/// Recognises an answer without keeping it: keyed by a secret of this process, so that a dump of the digest cannot be
/// searched for a six-digit code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AnswerDigest([u8; 32]);

impl std::fmt::Debug for AnswerDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnswerDigest")
    }
}

impl AnswerDigest {
    pub fn of(answer: &Answer) -> Self {
        static KEY: LazyLock<String> = LazyLock::new(crate::ids::random_token);
        let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).expect("any length is a key");
        let mut part = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_be_bytes());
            mac.update(bytes);
        };
        part(&answer.revision.to_be_bytes());
        part(if answer.action == AnswerAction::Submit { b"submit" } else { b"decline" });
        for text in [&answer.text, &answer.choice] {
            part(&[u8::from(text.is_some())]);
            part(text.as_deref().unwrap_or_default().as_bytes());
        }
        for (field, value) in &answer.values {
            part(field.as_bytes());
            part(value.as_bytes());
        }
        Self(mac.finalize().into_bytes().into())
    }
}

/// Whether an answer fits its question. Messages name fields, never values.
pub(super) fn check(view: &GuardrailView, answer: &Answer) -> Result<(), Refusal> {
    let key = &answer.idempotency_key;
    if key.is_empty() || key.len() > 128 {
        return Err(invalid("idempotencyKey is 1 to 128 bytes long"));
    }
    if answer.text.as_ref().is_some_and(|text| text.len() > VALUE_MAX)
        || answer.values.values().any(|value| value.len() > VALUE_MAX)
    {
        return Err(Refusal::new(Code::TooLarge, format!("texts and values have at most {VALUE_MAX} bytes")));
    }
    if answer.action == AnswerAction::Decline {
        return Ok(());
    }
    if let Some(unknown) = answer.values.keys().find(|id| !view.fields.iter().any(|field| field.id == **id)) {
        let shortened: String = unknown.chars().take(64).collect();
        return Err(invalid(format!("the question has no field `{shortened}`")));
    }
    let missing = view.fields.iter().find(|field| field.required && !answer.values.contains_key(&field.id));
    // Words alone answer a question as a whole: who sends them may not know of fields, and its runtime reads them.
    let in_words = answer.text.is_some() && answer.values.is_empty();
    if let Some(field) = missing.filter(|_| !in_words) {
        return Err(invalid(format!("the field `{}` is required", field.id)));
    }
    let fits = |choice: &String| view.choices.iter().any(|offered| offered.id == *choice);
    if answer.choice.as_ref().is_some_and(|choice| !fits(choice)) {
        return Err(invalid("the question does not offer that choice"));
    }
    if !view.choices.is_empty() && answer.choice.is_none() && answer.text.is_none() {
        return Err(invalid("the question wants one of its choices, or a text"));
    }
    Ok(())
}

/// How an answer closes its question: names of fields, never values.
pub(super) fn resolution(view: &GuardrailView, answer: &Answer, actor: &Actor, at: &str) -> Resolution {
    let outcome = match answer.action {
        AnswerAction::Submit => Outcome::Answered,
        AnswerAction::Decline => Outcome::Declined,
    };
    Resolution {
        outcome,
        at: at.to_owned(),
        by: Some(actor.holder.who.clone()),
        via: actor.via.to_owned(),
        fields: view
            .fields
            .iter()
            .map(|field| &field.id)
            .filter(|id| answer.values.contains_key(*id))
            .cloned()
            .collect(),
        choice: answer.choice.clone(),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Invalid, message)
}
