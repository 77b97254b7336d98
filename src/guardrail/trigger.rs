//! What a runtime raises: the data of a `guardrail_trigger` event, read and checked.

use std::time::Duration;

use onlooker_protocol::{
    code::{Code, Refusal},
    view::{Choice, Field, GuardrailKind, OnTimeout},
};
use serde::Deserialize;
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::GuardrailRules;
use crate::{ids::is_outside_id, redact::Redactor};

/// A question as it is raised.
#[derive(Clone, Debug)]
pub struct Trigger {
    pub guardrail_id: String,
    /// The runtime's own number: it orders the runtime's triggers of one id.
    pub revision: u32,
    pub kind: GuardrailKind,
    pub value: String,
    pub domain: Option<String>,
    pub fields: Vec<Field>,
    pub choices: Vec<Choice>,
    pub default_answer: Option<String>,
    pub expires_in: Option<Duration>,
    pub on_timeout: OnTimeout,
    pub website_error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(rename = "type")]
    kind_of_trigger: Option<String>,
    value: Option<String>,
    guardrail_id: Option<String>,
    revision: Option<u32>,
    #[serde(default)]
    kind: GuardrailKind,
    domain: Option<String>,
    #[serde(default)]
    fields: Vec<Field>,
    #[serde(default)]
    choices: Vec<Choice>,
    default_answer: Option<String>,
    /// Milliseconds.
    expires_in: Option<u64>,
    expires_at: Option<String>,
    #[serde(default)]
    on_timeout: OnTimeout,
    website_error: Option<String>,
}

impl Trigger {
    /// Reads the data of a `guardrail_trigger`. `fallback_id` is the event's id, which names a guardrail without one.
    ///
    /// # Errors
    /// `invalid`, naming the member; `too_large` for too much text or too many fields or choices.
    pub fn read(
        data: &Value,
        fallback_id: &str,
        wall: OffsetDateTime,
        rules: &GuardrailRules,
    ) -> Result<Self, Refusal> {
        let raw = Raw::deserialize(data).map_err(|error| invalid(format!("guardrail_trigger: {error}")))?;
        if raw.kind_of_trigger.as_deref().is_some_and(|kind| kind != "human_input_needed") {
            return Err(invalid("data.type of a guardrail_trigger is `human_input_needed`"));
        }
        let expires_in = expiry(&raw, wall)?;
        let trigger = Self {
            guardrail_id: raw.guardrail_id.unwrap_or_else(|| fallback_id.to_owned()),
            revision: raw.revision.unwrap_or(1),
            kind: raw.kind,
            value: raw.value.ok_or_else(|| invalid("data.value, the question, is missing"))?,
            domain: raw.domain,
            fields: raw.fields,
            choices: raw.choices,
            default_answer: raw.default_answer,
            expires_in,
            on_timeout: raw.on_timeout,
            website_error: raw.website_error,
        };
        trigger.check(rules)?;
        Ok(trigger)
    }

    /// Replaces secrets in everything that people will read. Ids stay: they are checked already.
    pub fn redact(&mut self, redactor: &Redactor) {
        let redact = |text: &mut String| *text = redactor.redact_str(text).into_owned();
        redact(&mut self.value);
        let texts = [&mut self.domain, &mut self.website_error];
        let fields = self.fields.iter_mut().flat_map(|field| [&mut field.label, &mut field.hint]);
        let choices = self.choices.iter_mut().map(|choice| &mut choice.label);
        texts.into_iter().chain(fields).chain(choices).filter_map(Option::as_mut).for_each(redact);
    }

    fn check(&self, rules: &GuardrailRules) -> Result<(), Refusal> {
        if !is_outside_id(&self.guardrail_id) {
            return Err(invalid("data.guardrailId is 1 to 64 characters of A-Z a-z 0-9 _ -"));
        }
        if self.revision == 0 {
            return Err(invalid("data.revision counts from 1"));
        }
        if self.fields.len() > rules.items || self.choices.len() > rules.items {
            return Err(too_large(format!("a guardrail has at most {} fields or choices", rules.items)));
        }
        if self.text_bytes() > rules.text {
            return Err(too_large(format!("a guardrail has at most {} bytes of text", rules.text)));
        }
        let ids = self.fields.iter().map(|field| &field.id).chain(self.choices.iter().map(|choice| &choice.id));
        if ids.clone().any(|id| id.is_empty() || id.len() > 128) {
            return Err(invalid("ids of fields and choices are 1 to 128 bytes long"));
        }
        let mut seen = std::collections::HashSet::new();
        if !self.fields.iter().all(|field| seen.insert(&field.id)) {
            return Err(invalid("ids of fields are unique"));
        }
        if self.on_timeout == OnTimeout::DefaultAnswer && self.default_answer.is_none() {
            return Err(invalid("onTimeout `default_answer` needs a data.defaultAnswer"));
        }
        Ok(())
    }

    /// Nothing is approved by silence: such kinds need the operator's word.
    pub(super) fn check_default_answer(&self, rules: &GuardrailRules) -> Result<(), Refusal> {
        let guarded = matches!(self.kind, GuardrailKind::Purchase | GuardrailKind::Security | GuardrailKind::Policy);
        let by_silence = self.on_timeout == OnTimeout::DefaultAnswer;
        if guarded && by_silence && !rules.default_answer_allowed.contains(&self.kind) {
            return Err(Refusal::plain(Code::DefaultAnswerRefused));
        }
        Ok(())
    }

    /// How long after its raising it closes by itself. One that keeps waiting does so until the operator's limit.
    pub(super) fn closes_after(&self, rules: &GuardrailRules) -> Duration {
        match (self.on_timeout, self.expires_in) {
            (OnTimeout::KeepWaiting, _) | (_, None) => rules.max_wait,
            (_, Some(expires_in)) => expires_in.min(rules.max_wait),
        }
    }

    fn text_bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let fields = self
            .fields
            .iter()
            .map(|field| field.id.len() + optional(&field.label) + optional(&field.kind) + optional(&field.hint));
        let choices = self.choices.iter().map(|choice| choice.id.len() + optional(&choice.label));
        self.value.len()
            + optional(&self.domain)
            + optional(&self.default_answer)
            + optional(&self.website_error)
            + fields.sum::<usize>()
            + choices.sum::<usize>()
    }
}

fn expiry(raw: &Raw, wall: OffsetDateTime) -> Result<Option<Duration>, Refusal> {
    match (raw.expires_in, &raw.expires_at) {
        (Some(milliseconds), _) => Ok(Some(Duration::from_millis(milliseconds))),
        (None, Some(at)) => {
            let at = OffsetDateTime::parse(at, &Rfc3339).map_err(|_| invalid("data.expiresAt is an RFC 3339 time"))?;
            Ok(Some(Duration::try_from(at - wall).unwrap_or(Duration::ZERO)))
        }
        (None, None) => Ok(None),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::Invalid, message)
}

fn too_large(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::TooLarge, message)
}
