//! The ways in which a secret is written inside other text.
//!
//! A form is found whatever stands around it. Encodings that leave the writer a choice (which characters to escape,
//! the case of hex digits) appear here in their common spellings; other spellings are found by decoding the text that
//! is searched, see [`super::view`].

use std::{borrow::Borrow, collections::HashMap, fmt::Write as _};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use zeroize::Zeroize;

/// RFC 3986, section 2.3: everything else is percent-encoded.
const NOT_UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Bytes that are overwritten when they are dropped.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct SecretBytes(Vec<u8>);

impl SecretBytes {
    pub(super) fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Borrow<[u8]> for SecretBytes {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for SecretBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// How far a form reaches beyond the bytes that are searched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    Exact,
    /// The base64 characters at a form's ends hold bits of its neighbours, so that they cannot be searched for. They
    /// hold bits of the secret as well, so that they go with it.
    Base64 {
        before: bool,
        after: bool,
    },
}

pub(super) type Forms = HashMap<SecretBytes, Reach>;

/// Adds every form that is searched for inside strings. The value has at least 4 characters.
pub(super) fn add_inside(value: &str, forms: &mut Forms) {
    let plain = json_escaped(value, false);
    let ascii = json_escaped(value, true);
    for text in [value, &plain, &plain.replace('/', "\\/"), &ascii, &ascii.replace('/', "\\/")] {
        add(forms, text.as_bytes(), Reach::Exact);
        add_base64(text.as_bytes(), forms);
    }
    // JSON inside JSON. Decoding finds it too, unless a stray backslash stands right before it.
    for text in [json_escaped(&plain, false), json_escaped(&ascii, false)] {
        add(forms, text.as_bytes(), Reach::Exact);
    }
    let percent = percent_encode(value.as_bytes(), NOT_UNRESERVED).to_string();
    let lower = lower_hex(&percent);
    for text in [&percent.replace("%20", "+"), &lower.replace("%20", "+"), &percent, &lower] {
        add(forms, text.as_bytes(), Reach::Exact);
    }
}

/// The forms that a whole string may have, beside those that decoding it shows.
pub(super) fn whole(value: &str) -> [SecretBytes; 5] {
    [
        SecretBytes::new(value),
        SecretBytes::new(STANDARD.encode(value)),
        SecretBytes::new(STANDARD_NO_PAD.encode(value)),
        SecretBytes::new(URL_SAFE.encode(value)),
        SecretBytes::new(URL_SAFE_NO_PAD.encode(value)),
    ]
}

fn add(forms: &mut Forms, bytes: &[u8], reach: Reach) {
    let known = forms.get(bytes).copied();
    if known.is_none() || known == Some(Reach::Exact) {
        forms.insert(SecretBytes::new(bytes), reach);
    }
}

/// A value that begins `shift` bytes into a group of three shares its first character with what stands before it, and
/// its last with what follows. Only the characters between are the value's own (RFC 4648, section 4: 6 bits each).
fn add_base64(value: &[u8], forms: &mut Forms) {
    for shift in 0..3 {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(value);
        let bits = 8 * shifted.len();
        let own = (8 * shift).div_ceil(6)..bits / 6;
        let reach = Reach::Base64 { before: shift != 0, after: bits % 6 != 0 };
        for mut text in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
            add(forms, &text.as_bytes()[own.clone()], reach);
            text.zeroize();
        }
        shifted.zeroize();
    }
}

/// As it stands between the quotes: serde_json's spelling, or with `ascii` Python's, which escapes everything that is
/// not printable ASCII.
fn json_escaped(value: &str, ascii: bool) -> String {
    let mut text = String::with_capacity(value.len() + 8);
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            c if c < ' ' || (ascii && !matches!(c, ' '..='~')) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(text, "\\u{unit:04x}").expect("a string takes all text");
                }
            }
            c => text.push(c),
        }
    }
    text
}

/// Only the digits of `%XX`, never the text between.
fn lower_hex(percent: &str) -> String {
    let mut digits = 0;
    let lowered = percent.chars().map(|c| {
        if digits > 0 {
            digits -= 1;
            return c.to_ascii_lowercase();
        }
        if c == '%' {
            digits = 2;
        }
        c
    });
    lowered.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spelled_as_serde_json_and_python_spell_it() {
        let value = "a\"\\/\n\u{1}\u{7f}é😀";
        let quoted = serde_json::to_string(value).unwrap();
        assert_eq!(json_escaped(value, false), quoted[1..quoted.len() - 1]);
        assert_eq!(json_escaped(value, true), r#"a\"\\/\n\u0001\u007f\u00e9\ud83d\ude00"#);
    }

    #[test]
    fn only_hex_digits_are_lowered() {
        assert_eq!(lower_hex("AB%C3%A9CD%2F"), "AB%c3%a9CD%2f");
    }

    #[test]
    fn base64_forms_are_what_all_neighbours_have_in_common() {
        let mut forms = Forms::new();
        add_base64(b"secret", &mut forms);
        for around in [[0_u8; 2], [0xff; 2]] {
            for shift in 0..3 {
                let text = STANDARD.encode([&around[..shift], b"secret", &around].concat());
                let found = forms.keys().filter(|form| text.contains(std::str::from_utf8(form.as_ref()).unwrap()));
                assert_eq!(found.count(), 1, "{text}");
            }
        }
        assert_eq!(forms.len(), 3);
    }
}
