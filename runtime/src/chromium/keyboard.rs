//! Keys by their DOM names, alone or with modifiers, as the events that a keyboard sends.

use chromiumoxide::{
    cdp::browser_protocol::input::{DispatchKeyEventParams, DispatchKeyEventType},
    keys::{KeyDefinition, get_key_definition},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Modifier {
    Alt,
    Control,
    Meta,
    Shift,
}

impl Modifier {
    const ALL: [Self; 4] = [Self::Alt, Self::Control, Self::Meta, Self::Shift];

    fn name(self) -> &'static str {
        match self {
            Self::Alt => "Alt",
            Self::Control => "Control",
            Self::Meta => "Meta",
            Self::Shift => "Shift",
        }
    }

    /// The DevTools protocol's bit for it.
    fn bit(self) -> i64 {
        match self {
            Self::Alt => 1,
            Self::Control => 2,
            Self::Meta => 4,
            Self::Shift => 8,
        }
    }
}

/// A key and the modifiers held with it: `Enter`, `ß`, `Control+a`, `Shift+Tab`, `Control++`.
///
/// Has no `Debug`: what a person presses may be part of a secret.
#[derive(PartialEq)]
pub(super) struct Chord<'a> {
    held: Vec<Modifier>,
    key: &'a str,
}

impl<'a> Chord<'a> {
    /// `None` for what is neither a key's name nor one character.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut held = Vec::new();
        let mut key = text;
        while let Some((name, rest)) = key.split_once('+').filter(|(_, rest)| !rest.is_empty()) {
            let Some(modifier) = Modifier::ALL.into_iter().find(|modifier| modifier.name() == name) else { break };
            if !held.contains(&modifier) {
                held.push(modifier);
            }
            key = rest;
        }
        let is_key = key.chars().count() == 1 || get_key_definition(key).is_some();
        is_key.then_some(Self { held, key })
    }

    /// One key by itself.
    pub(super) fn of(key: &'a str) -> Self {
        Self { held: Vec::new(), key }
    }

    /// What to insert where no key has the character and no modifier makes it a command.
    pub(super) fn text(&self) -> Option<&'a str> {
        self.types().then_some(self.key)
    }

    /// The events of pressing and releasing all of it; `None` when the keyboard lacks the key.
    pub(super) fn strokes(&self) -> Option<Vec<DispatchKeyEventParams>> {
        let shifted = self.held.contains(&Modifier::Shift).then(|| self.key.to_uppercase());
        let known = shifted.as_deref().and_then(get_key_definition).or_else(|| get_key_definition(self.key))?;
        let mut strokes = Vec::with_capacity(2 * (self.held.len() + 1));
        let mut bits = 0;
        for modifier in &self.held {
            bits |= modifier.bit();
            strokes.extend(stroke(modifier_key(*modifier), DispatchKeyEventType::RawKeyDown, bits, None));
        }
        let text = known.text.or((known.key.chars().count() == 1).then_some(known.key)).filter(|_| self.types());
        let down = if text.is_some() { DispatchKeyEventType::KeyDown } else { DispatchKeyEventType::RawKeyDown };
        strokes.extend(stroke(Some(known), down, bits, text));
        strokes.extend(stroke(Some(known), DispatchKeyEventType::KeyUp, bits, None));
        for modifier in self.held.iter().rev() {
            bits &= !modifier.bit();
            strokes.extend(stroke(modifier_key(*modifier), DispatchKeyEventType::KeyUp, bits, None));
        }
        Some(strokes)
    }

    /// Whether it writes, rather than commands.
    fn types(&self) -> bool {
        self.held.iter().all(|modifier| *modifier == Modifier::Shift)
    }
}

fn modifier_key(modifier: Modifier) -> Option<&'static KeyDefinition> {
    get_key_definition(modifier.name())
}

fn stroke(
    key: Option<&'static KeyDefinition>,
    kind: DispatchKeyEventType,
    modifiers: i64,
    text: Option<&str>,
) -> Option<DispatchKeyEventParams> {
    let key = key?;
    let mut event = DispatchKeyEventParams::new(kind);
    event.modifiers = Some(modifiers);
    event.key = Some(key.key.to_owned());
    event.code = Some(key.code.to_owned());
    event.windows_virtual_key_code = Some(key.key_code);
    event.native_virtual_key_code = Some(key.key_code);
    event.text = text.map(str::to_owned);
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(text: &str) -> Vec<(String, i64, Option<String>)> {
        let strokes = Chord::parse(text).unwrap().strokes().unwrap();
        strokes.into_iter().map(|s| (s.key.unwrap(), s.modifiers.unwrap(), s.text)).collect()
    }

    #[test]
    fn every_documented_key_has_its_strokes() {
        let names = [
            "Enter",
            "Escape",
            "Tab",
            "Backspace",
            "Delete",
            "ArrowUp",
            "ArrowDown",
            "ArrowLeft",
            "ArrowRight",
            "PageUp",
            "PageDown",
            "Home",
            "End",
            "a",
            "A",
            "7",
            "%",
            " ",
            "+",
        ];
        for name in names {
            let strokes = brief(name);
            assert_eq!(strokes.len(), 2, "{name}");
            assert!(strokes.iter().all(|(key, held, _)| key == name && *held == 0), "{name}");
        }
    }

    #[test]
    fn modifiers_are_held_around_the_key_and_turn_letters_into_commands() {
        let press = |key: &str, held| (key.to_owned(), held, None);
        let expected = [press("Control", 2), press("a", 2), press("a", 2), press("Control", 0)];
        assert_eq!(brief("Control+a"), expected);
        assert_eq!(brief("Control+Shift+ArrowLeft")[2], press("ArrowLeft", 10));
        assert_eq!(brief("Control++")[1], press("+", 2));
        assert_eq!(brief("Shift+a")[1], ("A".to_owned(), 8, Some("A".to_owned())));
    }

    #[test]
    fn a_character_that_no_key_has_is_text_unless_it_is_a_command() {
        let chord = Chord::parse("ß").unwrap();
        assert!(chord.strokes().is_none() && chord.text() == Some("ß"));
        assert!(Chord::parse("Control+ß").unwrap().text().is_none());
        for nothing in ["", "Enterr", "Control+", "Hyper+a", "ab"] {
            assert!(Chord::parse(nothing).is_none(), "{nothing}");
        }
    }
}
