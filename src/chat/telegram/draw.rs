//! A card as a message of Telegram: HTML, and a keyboard under it.
//!
//! What comes from outside is escaped, and nothing in it can be tapped: Telegram itself makes links of what looks like
//! one, except in code, so a text with such a thing is shown as code. Characters that cannot be seen but change what
//! others look like (directions, zero widths, controls) are left out.
//!
//! Lengths are counted in UTF-16 units, as Telegram counts places in a text; that is never less than characters.

use serde_json::{Value, json};
use url::{Host, Url};

use crate::{
    chat::{
        card::{Button, Card, cut},
        marks::Tap,
    },
    notifier::Message,
};
use onlooker_protocol::notice::Notice;

/// Of a message, after its markup was taken out.
pub(super) const MESSAGE: usize = 4096;
/// Of what stands under a picture.
pub(super) const CAPTION: usize = 1024;
/// A question that would keep less than this under a picture is sent without the picture.
const LEAST_QUESTION: usize = 400;
/// Of what a person is answered, in characters.
const REPLY: usize = MESSAGE / 4;
/// Names of hosts that mean nothing outside the operator's network. Telegram refuses buttons that lead there, and with
/// them the message.
const PRIVATE_NAMES: &[&str] = &["localhost", "local", "localdomain", "internal", "lan", "home", "test", "invalid"];

/// What is sent.
pub(super) struct Drawn {
    pub(super) html: String,
    /// `inline_keyboard`: rows of buttons, none when it is empty.
    pub(super) keyboard: Vec<Vec<Value>>,
}

/// A message.
pub(super) fn message(message: &Message, notice: &Notice) -> Drawn {
    drawn(&fitted(message, notice, MESSAGE))
}

/// What stands under a picture. `None`: too much would be missing there.
pub(super) fn caption(message: &Message, notice: &Notice) -> Option<Drawn> {
    let (whole, card) = (Card::of(message, notice, CAPTION), fitted(message, notice, CAPTION));
    let enough = !card.cut || units(&card.text) >= LEAST_QUESTION;
    (enough && card.facts.len() == whole.facts.len()).then(|| drawn(&card))
}

/// What takes the place of what stands under a picture.
pub(super) fn changed_caption(message: &Message, notice: &Notice) -> Drawn {
    drawn(&fitted(message, notice, CAPTION))
}

/// The card, with as much of its text as there is room for beside everything else that it says. Short facts are left
/// out only where they alone would be too long.
fn fitted(message: &Message, notice: &Notice, most: usize) -> Card {
    let mut whole = Card::of(message, notice, usize::MAX);
    whole.text = visible(&whole.text);
    if words(&whole).units <= most {
        return whole;
    }
    let mut cut = Card::of(message, notice, 0);
    if words(&cut).units > most {
        cut.facts.clear();
    }
    let mut room = most.saturating_sub(words(&cut).units);
    let first_out = whole.text.char_indices().find(|(_, c)| {
        let fits = c.len_utf16() <= room;
        room = room.saturating_sub(c.len_utf16());
        !fits
    });
    let end = first_out.map_or(whole.text.len(), |(at, _)| at);
    cut.text.insert_str(0, &whole.text[..end]);
    cut
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

fn drawn(card: &Card) -> Drawn {
    Drawn { html: words(card).html, keyboard: keyboard(card) }
}

/// Some text of ours, with a page to open.
pub(super) fn reply(text: &str, link: Option<&(String, String)>) -> Drawn {
    let mut words = Words::default();
    let mut keyboard = Vec::new();
    words.outside(&cut(text, REPLY).0, "");
    if let Some((label, url)) = link {
        match url_button(label, url) {
            Some(button) => keyboard.push(vec![button]),
            None => words.line(&format!("{label}: {url}")),
        }
        if words.html.is_empty() {
            words.line(label);
        }
    }
    Drawn { html: words.html, keyboard }
}

/// HTML, and how long it is without markup.
#[derive(Default)]
struct Words {
    html: String,
    units: usize,
}

impl Words {
    /// Text of ours on a line of its own.
    fn line(&mut self, text: &str) {
        self.next_line();
        self.add(text, "");
    }

    fn next_line(&mut self) {
        if !self.html.is_empty() {
            self.add("\n", "");
        }
    }

    /// A text that somebody else may have written, in whole or in part.
    fn outside(&mut self, text: &str, tag: &str) {
        let shown = visible(text);
        self.add(&shown, if has_links(&shown) { "code" } else { tag });
    }

    fn add(&mut self, text: &str, tag: &str) {
        if text.is_empty() {
            return;
        }
        self.units += units(text);
        let escaped = escaped(text);
        match tag {
            "" => self.html.push_str(&escaped),
            _ => self.html.push_str(&format!("<{tag}>{escaped}</{tag}>")),
        }
    }
}

fn words(card: &Card) -> Words {
    let mut words = Words::default();
    // May hold the name of whoever answered.
    words.outside(&card.heading, "b");
    if !card.text.is_empty() {
        words.line("\n");
        words.outside(&card.text, "");
    }
    if !card.facts.is_empty() {
        words.line("");
    }
    for (name, value) in &card.facts {
        words.line(&format!("{name}: "));
        words.add(&visible(value), "code");
    }
    if let Some(hint) = &card.hint {
        words.line("\n");
        words.add(hint, "");
    }
    for (label, url) in card.links.iter().filter(|(_, url)| !may_be_button(url)) {
        words.line(&format!("{label}: {url}"));
    }
    words
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// Without what nobody sees. Joiners stay: emoji and some scripts are made with them.
pub(super) fn visible(text: &str) -> String {
    let line = |c| if matches!(c, '\r' | '\u{2028}' | '\u{2029}') { '\n' } else { c };
    let shown = |c: &char| {
        let hidden = matches!(
            c,
            // Soft hyphen, fillers, zero widths and directions, invisible operators, variation of nothing.
            '\u{ad}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{61c}' | '\u{180e}' | '\u{200b}'
                | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}'
        );
        !hidden && (!c.is_control() || matches!(c, '\n' | '\t'))
    };
    text.replace("\r\n", "\n").chars().map(line).filter(shown).collect()
}

/// Whether Telegram may make something of it that can be tapped. Rather too often than too seldom.
fn has_links(text: &str) -> bool {
    text.contains("://") || text.split_whitespace().any(is_link)
}

fn is_link(word: &str) -> bool {
    let mut before = ' ';
    let mut dots_in_numbers = 0;
    for (at, c) in word.char_indices() {
        let rest = &word[at + c.len_utf8()..];
        let next = rest.chars().next().unwrap_or(' ');
        let begins = !before.is_alphanumeric();
        match c {
            // Addresses, names of people; telephone numbers.
            '@' if next.is_alphanumeric() => return true,
            '+' if next.is_ascii_digit() => return true,
            // Commands, cashtags, hashtags.
            '/' | '$' if begins && next.is_alphabetic() => return true,
            '#' if begins && rest.contains(char::is_alphabetic) => return true,
            '.' if !begins && next.is_alphabetic() => return true,
            '.' if before.is_ascii_digit() && next.is_ascii_digit() => dots_in_numbers += 1,
            _ => {}
        }
        before = c;
    }
    dots_in_numbers >= 3
}

fn keyboard(card: &Card) -> Vec<Vec<Value>> {
    let mut rows: Vec<Vec<Value>> =
        card.links.iter().filter_map(|(label, url)| Some(vec![url_button(label, url)?])).collect();
    let is_choice = |button: &&Button| matches!(button.tap, Tap::Choice(_));
    rows.extend(card.buttons.iter().filter(is_choice).map(|button| vec![tap_button(button)]));
    let others: Vec<Value> = card.buttons.iter().filter(|button| !is_choice(button)).map(tap_button).collect();
    if !others.is_empty() {
        rows.push(others);
    }
    rows
}

fn tap_button(button: &Button) -> Value {
    json!({ "text": label(button), "callback_data": button.mark })
}

/// A button without a word would cost the whole message.
fn label(button: &Button) -> String {
    let shown = visible(&button.label).replace(['\n', '\t'], " ");
    let is_blank = |c: char| c.is_whitespace() || matches!(c, '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}');
    match button.tap {
        Tap::Choice(nth) if shown.chars().all(is_blank) => format!("Choice {}", u32::from(nth) + 1),
        _ => shown,
    }
}

fn url_button(label: &str, url: &str) -> Option<Value> {
    may_be_button(url).then(|| json!({ "text": label, "url": url }))
}

/// Whether Telegram takes it for a button's URL: it refuses names without a dot.
fn may_be_button(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    url.scheme() == "https" && is_public_name(&url)
}

/// Whether the URL's host is a name that others than the operator can look up.
pub(super) fn is_public_name(url: &Url) -> bool {
    let Some(Host::Domain(name)) = url.host() else { return false };
    let ending = name.trim_end_matches('.').rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| !PRIVATE_NAMES.contains(&ending))
}
