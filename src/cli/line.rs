//! Events as lines for people.
//!
//! Texts come from web pages and agents, so that they are shown without control characters: none of them may move the
//! cursor of the terminal that shows them.

use onlooker_protocol::{
    event::{EventFrame, kind},
    view::GuardrailView,
};
use serde_json::Value;

/// Characters of one text in a line.
const TEXT_MAX: usize = 300;

/// One event in one line: its time, its type, and what it says.
pub(crate) fn of_event(frame: &EventFrame) -> String {
    let data = &frame.event.data;
    let said = match frame.event.kind.as_str() {
        kind::AGENT => text(data, "content"),
        kind::RESPONSE_UPDATE => text(data, "message"),
        kind::TASK_COMPLETED => join([text(data, "message"), member("usage", data)]),
        kind::ERROR => join([text(data, "error"), in_brackets(text(data, "code"))]),
        kind::ACTION => action(data),
        kind::SCREENSHOT if data["id"].is_null() => "withheld".to_owned(),
        kind::SCREENSHOT => join([text(data, "id"), text(data, "media"), number("bytes", data.get("size"))]),
        kind::GUARDRAIL_TRIGGER => join([
            in_brackets(text(data, "kind")),
            text(data, "value"),
            choices("fields", data),
            choices("choices", data),
            guardrail(data),
        ]),
        kind::GUARDRAIL_RESOLVED => {
            let by = prefixed("by ", text(data, "by"));
            join([
                text(data, "outcome"),
                by,
                prefixed("via ", text(data, "via")),
                names("fields", data),
                guardrail(data),
            ])
        }
        kind::GUARDRAIL_TAKEN | kind::GUARDRAIL_WITHDRAWN => guardrail(data),
        kind::SENSITIVE => if data["on"] == true { "on: pictures are withheld" } else { "off" }.to_owned(),
        _ if data.is_null() => String::new(),
        _ => plain(&data.to_string()),
    };
    format!("{} {:<20} {said}", time(&frame.at), plain(&frame.event.kind)).trim_end().to_owned()
}

/// One guardrail in one line.
pub(crate) fn of_guardrail(view: &GuardrailView) -> String {
    let items =
        |name: &str, ids: Vec<&str>| if ids.is_empty() { String::new() } else { format!("{name}: {}", ids.join(", ")) };
    join([
        plain(&view.guardrail_id),
        view.session.clone(),
        word(&view.state),
        format!("since {}", time(&view.opened_at)),
        format!("[{}]", word(&view.kind)),
        plain(&view.value),
        plain(&items("fields", view.fields.iter().map(|field| field.id.as_str()).collect())),
        plain(&items("choices", view.choices.iter().map(|choice| choice.id.as_str()).collect())),
        view.claim.as_ref().map(|claim| format!("claimed by {}", plain(&claim.by))).unwrap_or_default(),
    ])
}

/// A value of an enumeration as it is written on the wire.
pub(crate) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

/// The time of day of an RFC 3339 time.
pub(crate) fn time(at: &str) -> &str {
    at.get(11..23).unwrap_or(at)
}

/// A text that is safe in a terminal, and no longer than a line should be.
pub(crate) fn plain(text: &str) -> String {
    // Format characters (category Cf) that turn the direction of writing could make a line read as another.
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out: String =
        text.chars().take(TEXT_MAX).map(|c| if c.is_control() || turns(c) { ' ' } else { c }).collect();
    if text.chars().nth(TEXT_MAX).is_some() {
        out.push('…');
    }
    out
}

/// The parts that are there, with a space between them.
pub(crate) fn join<const N: usize>(parts: [String; N]) -> String {
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("  ")
}

fn action(data: &Value) -> String {
    let place = match (data["x"].as_f64(), data["y"].as_f64()) {
        (Some(x), Some(y)) => format!("at {x:.0},{y:.0}"),
        _ => String::new(),
    };
    join([text(data, "name"), text(data, "target"), place, text(data, "text"), text(data, "url")])
}

fn text(data: &Value, name: &str) -> String {
    match data.get(name) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => plain(text),
        Some(other) => plain(&other.to_string()),
    }
}

fn member(name: &str, data: &Value) -> String {
    prefixed(&format!("{name} "), text(data, name))
}

fn guardrail(data: &Value) -> String {
    let revision = data.get("revision").and_then(Value::as_u64).filter(|revision| *revision > 1);
    let revision = revision.map(|revision| format!(" revision {revision}")).unwrap_or_default();
    in_brackets(format!("{}{revision}", text(data, "guardrailId")))
}

/// The ids of fields or choices.
fn choices(name: &str, data: &Value) -> String {
    let ids = data.get(name).and_then(Value::as_array).into_iter().flatten();
    listed(name, ids.filter_map(|item| item.get("id")?.as_str()))
}

fn names(name: &str, data: &Value) -> String {
    listed(name, data.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str))
}

fn listed<'a>(name: &str, items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<_> = items.collect();
    prefixed(&format!("{name}: "), plain(&items.join(", ")))
}

fn number(unit: &str, value: Option<&Value>) -> String {
    value.map(|value| format!("{value} {unit}")).unwrap_or_default()
}

fn prefixed(before: &str, text: String) -> String {
    if text.is_empty() { text } else { format!("{before}{text}") }
}

fn in_brackets(text: String) -> String {
    if text.is_empty() { text } else { format!("[{text}]") }
}

#[cfg(test)]
mod tests {
    use onlooker_protocol::event::Event;
    use serde_json::json;

    use super::*;

    fn line(kind: &str, data: Value) -> String {
        of_event(&EventFrame {
            session: "s".to_owned(),
            position: "aaaaaaaa:1".parse().unwrap(),
            id: String::new(),
            at: "2026-03-01T12:00:01.250Z".to_owned(),
            task: None,
            event: Event { kind: kind.to_owned(), data },
        })
    }

    #[test]
    fn an_event_is_one_readable_line() {
        let click = line("action", json!({"name": "click", "target": "Buy", "x": 12.4, "y": 30, "url": "http://a/"}));
        assert_eq!(click, "12:00:01.250 action               click  Buy  at 12,30  http://a/");
        let taken = line("guardrail_taken", json!({"guardrailId": "g1", "revision": 2}));
        assert_eq!(taken, "12:00:01.250 guardrail_taken      [g1 revision 2]");
        assert_eq!(line("session_started", Value::Null), "12:00:01.250 session_started");
        assert!(line("x.own", json!({"a": [1]})).ends_with(r#"{"a":[1]}"#));
    }

    #[test]
    fn a_page_cannot_move_the_cursor_or_begin_a_line() {
        let shown = line("agent", json!({"content": "a\u{1b}[2Jb\nc\u{202e}d\u{9b}e"}));
        assert!(shown.ends_with("a [2Jb c d e"), "{shown:?}");
        assert!(plain(&"x".repeat(10_000)).len() < 400);
    }
}
