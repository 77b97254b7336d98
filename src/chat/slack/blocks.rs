//! Cards and replies in Block Kit.
//!
//! Every text is a `plain_text` object with `emoji` off, and its three control characters are escaped, so that nothing
//! in it is a mention, a link, markup or an emoji. Links are buttons, whose URLs are the gateway's own. Lengths are those
//! of Block Kit's reference; they are kept after escaping and in UTF-16 units, the longest way of counting them.

use onlooker_protocol::notice::Notice;
use serde_json::{Value, json};

use crate::{
    chat::{
        Reply,
        card::{Button, Card},
        marks::Tap,
    },
    notifier::Message,
};

const HEADER: usize = 150;
const TEXT: usize = 3000;
const LABEL: usize = 75;
/// Of one `actions` block.
const ELEMENTS: usize = 25;
/// Of the text that notifications show.
const FALLBACK: usize = 400;
/// The `action_id` of what can be tapped begins with it. Of links, taps are reported as well, and say nothing.
pub(super) const TAP: &str = "tap-";
const LINK: &str = "link-";
/// Stands where a label has nothing to show.
const NO_LABEL: &str = "(no label)";
const ERASE: &str =
    "Please delete your message: what is secret must not stay in a chat, and a Slack app cannot delete it for you.";
const CUT: &str = "The text is cut; the session's page has the whole of it.";

/// A message in Slack's form.
pub(super) struct Drawn {
    /// For notifications and screen readers.
    pub(super) text: String,
    pub(super) blocks: Value,
}

pub(super) fn card(message: &Message, notice: &Notice) -> Drawn {
    let card = fitting(message, notice);
    let mut blocks = vec![json!({ "type": "header", "text": plain(&card.heading, HEADER) })];
    if !card.text.trim().is_empty() {
        blocks.push(section(&card.text));
    }
    if !card.facts.is_empty() {
        blocks.push(context(card.facts.iter().map(|(name, value)| format!("{name}: {value}"))));
    }
    let cut = (card.cut && !card.links.is_empty()).then(|| CUT.to_owned());
    let hints: Vec<String> = card.hint.clone().into_iter().chain(cut).collect();
    if !hints.is_empty() {
        blocks.push(context(hints.into_iter()));
    }
    let taps = card.buttons.iter().map(tap);
    let links = card.links.iter().enumerate().map(|(nth, (label, url))| link(nth, label, url));
    blocks.extend(actions(&taps.chain(links).collect::<Vec<_>>()));
    let text = inert(&format!("{}\n{}", card.heading, card.text));
    Drawn { text: escaped(text.trim(), FALLBACK), blocks: blocks.into() }
}

/// What whoever said something is told. `None`: nothing.
pub(super) fn reply(reply: &Reply) -> Option<Drawn> {
    let lines = [reply.text.as_str(), if reply.erase { ERASE } else { "" }];
    let lines: Vec<&str> = lines.into_iter().filter(|line| !line.trim().is_empty()).collect();
    let mut blocks: Vec<Value> = lines.iter().map(|line| section(line)).collect();
    let links: Vec<Value> = reply.link.iter().map(|(label, url)| link(0, label, url)).collect();
    blocks.extend(actions(&links));
    let text = match (lines.is_empty(), &reply.link) {
        (false, _) => lines.join("\n"),
        (true, Some((label, _))) => label.clone(),
        (true, None) => return None,
    };
    Some(Drawn { text: escaped(&inert(&text), FALLBACK), blocks: blocks.into() })
}

/// The card with as much text as one section takes once it is escaped.
fn fitting(message: &Message, notice: &Notice) -> Card {
    let card = Card::of(message, notice, TEXT);
    match chars_within(&card.text, TEXT) {
        None => card,
        Some(chars) => Card::of(message, notice, chars),
    }
}

fn section(text: &str) -> Value {
    json!({ "type": "section", "text": plain(text, TEXT) })
}

fn context(lines: impl Iterator<Item = String>) -> Value {
    json!({ "type": "context", "elements": lines.map(|line| plain(&line, TEXT)).collect::<Vec<_>>() })
}

fn actions(elements: &[Value]) -> Vec<Value> {
    elements.chunks(ELEMENTS).map(|some| json!({ "type": "actions", "elements": some })).collect()
}

fn tap(button: &Button) -> Value {
    let mut drawn = json!({
        "type": "button",
        "text": label(&button.label),
        "action_id": format!("{TAP}{}", button.tap),
        "value": button.mark,
    });
    match button.tap {
        Tap::Approve => drawn["style"] = "primary".into(),
        Tap::Decline => drawn["style"] = "danger".into(),
        Tap::Choice(_) | Tap::Claim | Tap::Form => {}
    }
    drawn
}

fn link(nth: usize, says: &str, url: &str) -> Value {
    json!({ "type": "button", "text": label(says), "action_id": format!("{LINK}{nth}"), "url": url })
}

fn label(text: &str) -> Value {
    plain(if text.trim().is_empty() { NO_LABEL } else { text }, LABEL)
}

fn plain(text: &str, limit: usize) -> Value {
    json!({ "type": "plain_text", "text": escaped(text, limit), "emoji": false })
}

/// A character as it is sent; nothing for one that shows nothing.
fn piece(c: char) -> Option<&'static str> {
    match c {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '\n' | '\t' => None,
        c if c.is_control() => Some(""),
        _ => None,
    }
}

fn units(c: char) -> usize {
    piece(c).map_or_else(|| c.len_utf16(), str::len)
}

/// To how many characters the text is to be cut, the sign for it included; `None`: all of it fits.
fn chars_within(text: &str, limit: usize) -> Option<usize> {
    let mut used = 0;
    let mut fit = 0;
    for c in text.chars() {
        used += units(c);
        if used > limit {
            return Some(fit);
        }
        fit += usize::from(used < limit);
    }
    None
}

/// Escaped, and cut to the limit with a sign that it is.
fn escaped(text: &str, limit: usize) -> String {
    let text = crate::chat::card::cut(text, chars_within(text, limit).unwrap_or(usize::MAX)).0;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match piece(c) {
            Some(piece) => out.push_str(piece),
            None => out.push(c),
        }
    }
    out
}

/// Fallback texts have no `emoji: false`: a zero-width space behind each colon leaves no name of an emoji.
fn inert(text: &str) -> String {
    text.replace(':', ":\u{200b}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_after_escaping_and_are_cut_between_characters() {
        assert_eq!(escaped("a<b>&c", 100), "a&lt;b&gt;&amp;c");
        assert_eq!(escaped("\u{0}a\u{7}b\n", 100), "ab\n");
        for text in ["&".repeat(40), "😀".repeat(40), "ab".repeat(20), "a&😀".repeat(20)] {
            for limit in 2..80 {
                let fitted = escaped(&text, limit);
                assert!(fitted.encode_utf16().count() <= limit, "{limit}: {fitted}");
                let whole = text.chars().map(units).sum::<usize>() <= limit;
                assert_eq!(!fitted.ends_with('…'), whole, "{limit}: {fitted}");
                let entity = fitted.rfind('&').map(|at| fitted[at..].contains(';'));
                assert_ne!(entity, Some(false), "{limit}: half an entity in {fitted}");
            }
        }
    }

    #[test]
    fn a_reply_that_says_nothing_is_none() {
        assert!(reply(&Reply::default()).is_none());
        let erase = reply(&Reply { erase: true, ..Reply::default() }).unwrap();
        assert_eq!(erase.text, inert(ERASE));
        let link = Reply { link: Some(("Open".to_owned(), "https://a.example/f".to_owned())), ..Reply::default() };
        let drawn = reply(&link).unwrap();
        assert_eq!(drawn.blocks[0]["elements"][0]["url"], "https://a.example/f");
        assert_eq!(drawn.text, "Open");
    }
}
