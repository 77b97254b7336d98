//! What an outcome means for the question that was asked.
//!
//! Answers come with values from forms, or as one text from chats and older clients; both are understood.

use onlooker_protocol::{
    runtime::GuardrailOutcome,
    view::{OnTimeout, Outcome},
};

use super::StepError;

/// Whether to go on with what the outcome carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Answered,
    Declined,
}

/// Sorts outcomes; `what` names the question in errors.
pub(super) fn verdict(outcome: &GuardrailOutcome, what: &'static str) -> Result<Verdict, StepError> {
    match (outcome.outcome, outcome.on_timeout) {
        (Outcome::Answered, _) | (Outcome::TimedOut, Some(OnTimeout::DefaultAnswer)) => Ok(Verdict::Answered),
        (Outcome::Declined, _) | (Outcome::TimedOut, Some(OnTimeout::Deny)) => Ok(Verdict::Declined),
        (Outcome::TimedOut, _) => Err(StepError::TimedOut(what)),
        (Outcome::Cancelled | Outcome::Superseded | Outcome::Lost, _) => Err(StepError::Cancelled(what)),
    }
}

/// The e-mail address and the password, empty where none was given.
pub(super) fn login(outcome: &GuardrailOutcome) -> (&str, &str) {
    let value = |id: &str| outcome.values.get(id).map_or("", String::as_str);
    match outcome.text.as_deref().map(str::trim) {
        Some(text) if outcome.values.is_empty() => {
            let (email, password) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
            let password = password.trim_start_matches(|c: char| c.is_whitespace() || c == '/');
            (email.trim_end_matches([',', ';', ':', '/']), password)
        }
        _ => (value("email"), value("password")),
    }
}

/// The code, empty where none was given.
pub(super) fn code(outcome: &GuardrailOutcome) -> &str {
    outcome.values.get("code").or(outcome.text.as_ref()).map_or("", |code| code.trim())
}

/// Whether the answer approves. Anything but a clear yes does not.
pub(super) fn approves(outcome: &GuardrailOutcome) -> bool {
    if let Some(choice) = &outcome.choice {
        return choice == "approve";
    }
    let text = outcome.text.as_deref().unwrap_or_default().trim().trim_end_matches(['.', '!']);
    ["approve", "approved", "yes", "ok", "okay"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> GuardrailOutcome {
        GuardrailOutcome {
            guardrail_id: "g".to_owned(),
            revision: 1,
            asked: 1,
            outcome: Outcome::Answered,
            on_timeout: None,
            text: None,
            choice: None,
            values: Default::default(),
        }
    }

    #[test]
    fn a_login_is_read_from_values_or_from_one_text() {
        let mut form = outcome();
        form.values = [("email", "a@b.c"), ("password", " two words ")].map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(login(&form), ("a@b.c", " two words "));
        for text in ["a@b.c two words", "a@b.c, two words", "a@b.c / two words", "a@b.c\ntwo words"] {
            assert_eq!(login(&GuardrailOutcome { text: Some(text.into()), ..outcome() }), ("a@b.c", "two words"));
        }
        assert_eq!(login(&outcome()), ("", ""));
    }

    #[test]
    fn only_a_clear_yes_approves() {
        let choice = |choice: &str| GuardrailOutcome { choice: Some(choice.into()), ..outcome() };
        let text = |text: &str| GuardrailOutcome { text: Some(text.into()), ..outcome() };
        assert!(approves(&choice("approve")) && approves(&text(" Yes! ")));
        for no in [choice("reject"), choice(""), text("yes, but cheaper"), text("no"), outcome()] {
            assert!(!approves(&no));
        }
        let contradictory = GuardrailOutcome { choice: Some("reject".into()), ..text("yes") };
        assert!(!approves(&contradictory));
    }

    #[test]
    fn silence_is_declined_only_where_the_question_said_so() {
        let silent = |on_timeout| GuardrailOutcome { outcome: Outcome::TimedOut, on_timeout, ..outcome() };
        assert_eq!(verdict(&silent(Some(OnTimeout::Deny)), "purchase").unwrap(), Verdict::Declined);
        assert!(matches!(verdict(&silent(Some(OnTimeout::Fail)), "purchase"), Err(StepError::TimedOut("purchase"))));
        let cancelled = GuardrailOutcome { outcome: Outcome::Cancelled, ..outcome() };
        assert!(matches!(verdict(&cancelled, "login"), Err(StepError::Cancelled("login"))));
    }
}
