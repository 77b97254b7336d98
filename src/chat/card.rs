//! What a notice says in a chat, before any chat's markup: a heading, a text, what can be tapped, and where to look.
//!
//! Everything that came from outside (the question, the site, choices, results) is plain text here, and stays that:
//! connectors escape it, and no link is ever made of it. Links are the gateway's own.

use onlooker_protocol::{
    notice::{Notice, NoticeGuardrail, NoticeType},
    view::{GuardrailKind, Outcome},
};
use serde_json::Value;

use super::marks::Tap;
use crate::notifier::Message;

/// What every chat shows. The texts are not escaped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// One line of ours.
    pub heading: String,
    /// What was asked or said, as it came; cut to the connector's limit.
    pub text: String,
    /// Whether `text` was cut.
    pub cut: bool,
    /// Short facts: a name of ours and a value from outside.
    pub facts: Vec<(&'static str, String)>,
    /// One line of ours that says what to do.
    pub hint: Option<String>,
    pub buttons: Vec<Button>,
    /// Pages of the gateway: what their link says, and where.
    pub links: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Button {
    pub label: String,
    /// What a tap brings back.
    pub mark: String,
    pub tap: Tap,
}

/// Labels of choices are cut to this many characters: chats cut them anyway.
const LABEL: usize = 40;
/// Names of people, with their chat, are cut to this many.
const NAME: usize = 64;
/// More choices than this are answered in words or in the view.
const BUTTONS: usize = 20;
/// Of a fact, in characters.
const FACT: usize = 200;

impl Card {
    /// Draws a message. `limit`: how many characters of text the chat takes.
    pub fn of(message: &Message, notice: &Notice, limit: usize) -> Self {
        let mut card = match notice.kind {
            NoticeType::GuardrailOpened => Self::opened(message, notice),
            NoticeType::GuardrailUpdated | NoticeType::GuardrailResolved => Self::closed(notice),
            NoticeType::TaskCompleted | NoticeType::TaskFailed => Self::result(notice),
            NoticeType::Test => Self {
                heading: "This is a test".to_owned(),
                text: "Messages from Onlooker arrive here.".to_owned(),
                ..Self::default()
            },
        };
        (card.text, card.cut) = cut(&card.text, limit);
        if card.cut && card.links.is_empty() {
            let whole = "The text is cut; the console shows the whole of it.";
            card.hint = Some(card.hint.map_or_else(|| whole.to_owned(), |hint| format!("{hint} {whole}")));
        }
        card
    }

    fn opened(message: &Message, notice: &Notice) -> Self {
        let nothing = NoticeGuardrail::default();
        let asked = notice.guardrail.as_ref().unwrap_or(&nothing);
        let mut heading = heading_of(asked.kind).to_owned();
        if notice.step.is_some() {
            heading = format!("Still waiting: {heading}");
        }
        if notice.repeat {
            heading.push_str(" (sent again: the first one may not have arrived)");
        }
        let mut card =
            Self { heading, text: asked.value.clone().unwrap_or_default(), facts: facts(notice), ..Self::default() };
        let secret = asked.fields.asked().iter().any(|field| field.secret);
        let mut tap = |label: &str, tap: Tap| {
            if let Some(marks) = &message.extras.marks {
                card.buttons.push(Button { label: cut(label, LABEL).0, mark: marks.of(tap), tap });
            }
        };
        if secret || !asked.fields.is_empty() {
            if message.extras.form.is_some() {
                tap("New link", Tap::Form);
            }
        } else if asked.choices.is_empty() {
            if !wants_words(asked.kind) {
                tap("Approve", Tap::Approve);
            }
        } else {
            for (nth, choice) in asked.choices.iter().enumerate().take(BUTTONS) {
                tap(choice.label.as_deref().unwrap_or(&choice.id), Tap::Choice(nth as u8));
            }
        }
        tap("Reject", Tap::Decline);
        tap("I have it", Tap::Claim);
        card.hint = Some(hint(message, asked).to_owned());
        if let Some(form) = &message.extras.form {
            card.links.push(("Open the form", form.url.clone()));
        }
        card.links.extend(message.extras.view.iter().map(|view| ("Look at the session", view.clone())));
        card
    }

    fn closed(notice: &Notice) -> Self {
        let nothing = NoticeGuardrail::default();
        let ended = notice.guardrail.as_ref().unwrap_or(&nothing);
        let heading = ending(ended.outcome, ended.by.as_deref(), ended.via.as_deref());
        Self { heading, text: ended.value.clone().unwrap_or_default(), facts: facts(notice), ..Self::default() }
    }

    fn result(notice: &Notice) -> Self {
        let done = notice.kind == NoticeType::TaskCompleted;
        let heading = if done { "The task is done" } else { "The task has failed" };
        let result = notice.result.as_ref();
        let said = result
            .and_then(|result| ["message", "error"].iter().find_map(|name| result.get(name).and_then(Value::as_str)));
        let text = said.map_or_else(|| result.map(Value::to_string).unwrap_or_default(), str::to_owned);
        Self { heading: heading.to_owned(), text, facts: facts(notice), ..Self::default() }
    }
}

/// How a question ended, in one line.
pub fn ending(outcome: Option<Outcome>, by: Option<&str>, via: Option<&str>) -> String {
    let channel = via.map(|via| format!(" ({})", channel(via))).unwrap_or_default();
    // A chat's people are called by their name and chat already.
    let channel = if by.is_some_and(|by| by.ends_with(&channel)) { String::new() } else { channel };
    let by = by.map(|by| format!(" by {}", cut(by, NAME).0)).unwrap_or_default();
    match outcome {
        Some(Outcome::Answered) => format!("Answered{by}{channel}"),
        Some(Outcome::Declined) => format!("Rejected{by}{channel}"),
        Some(Outcome::TimedOut) => "Nobody answered in time".to_owned(),
        Some(Outcome::Superseded) => "Asked again, below: this question is replaced".to_owned(),
        Some(Outcome::Lost) => "Asked again: the answer was lost with the gateway before it was used".to_owned(),
        Some(Outcome::Cancelled) | None => "No longer needed".to_owned(),
    }
}

pub fn heading_of(kind: Option<GuardrailKind>) -> &'static str {
    match kind {
        Some(GuardrailKind::Login) => "A session needs a login",
        Some(GuardrailKind::TwoFactor) => "A session needs a code",
        Some(GuardrailKind::Captcha) => "A session is stopped by a CAPTCHA",
        Some(GuardrailKind::Purchase) => "A session wants to buy something",
        Some(GuardrailKind::Security) => "A session met a security warning",
        Some(GuardrailKind::Policy) => "A policy stopped a session",
        Some(GuardrailKind::Ambiguous) => "A session has a question",
        Some(GuardrailKind::Other) | None => "A session waits for you",
    }
}

/// Kinds whose question a bare "go on" does not answer.
pub fn wants_words(kind: Option<GuardrailKind>) -> bool {
    matches!(kind, Some(GuardrailKind::Ambiguous | GuardrailKind::Login | GuardrailKind::TwoFactor))
}

fn hint(message: &Message, asked: &NoticeGuardrail) -> &'static str {
    if !asked.fields.is_empty() {
        return match message.extras.form {
            Some(_) => "Use the form. Never type passwords or codes here.",
            None => "Answer in the console: passwords and codes must not be typed here.",
        };
    }
    if asked.choices.is_empty() && wants_words(asked.kind) {
        return "Answer by replying to this message.";
    }
    "Tap, or reply to this message in your own words."
}

fn facts(notice: &Notice) -> Vec<(&'static str, String)> {
    let asked = notice.guardrail.as_ref();
    let facts = [
        ("Site", asked.and_then(|asked| asked.domain.clone())),
        ("The site says", asked.and_then(|asked| asked.website_error.clone())),
        ("Session", notice.external_id.clone()),
        ("Task", notice.task.clone()),
        ("Answer until", asked.and_then(|asked| asked.expires_at.clone())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, cut(&value?, FACT).0))).collect()
}

/// A channel in words.
pub fn channel(via: &str) -> &str {
    match via {
        "websocket" | "socketio" => "live",
        "rest" => "API",
        "view" => "session view",
        "form" => "form",
        "telegram" => "Telegram",
        "slack" => "Slack",
        other => other,
    }
}

/// At most so many characters, and whether there were more. Ends between characters, with a sign that it was cut.
pub fn cut(text: &str, limit: usize) -> (String, bool) {
    match text.char_indices().nth(limit) {
        None => (text.to_owned(), false),
        Some(_) => {
            let end = text.char_indices().nth(limit.saturating_sub(1)).map_or(text.len(), |(at, _)| at);
            (format!("{}…", &text[..end]), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 3), ("äöü".to_owned(), false));
        assert_eq!(cut("äöüß", 3), ("äö…".to_owned(), true));
        assert_eq!(cut("", 0), (String::new(), false));
    }
}
