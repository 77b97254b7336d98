//! A text as it reads after decoding, with the way back to where each byte came from.
//!
//! Decoding finds the spellings of a secret that nobody can list (every mix of escaped and plain characters), and
//! secrets in JSON inside JSON or in JSON inside a URL. A stray `\` or `%` right before a secret may swallow its first
//! characters here; for the common spellings that does not matter, because they are searched for as they are.

use std::borrow::Cow;

/// One layer of encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decoding {
    /// The escapes of RFC 8259, section 7.
    Json,
    /// `%XX`.
    Percent,
    /// `%XX`, and `+` for a space.
    Form,
}

impl Decoding {
    pub(super) const ALL: [Self; 3] = [Self::Json, Self::Percent, Self::Form];

    fn may_apply(self, bytes: &[u8]) -> bool {
        let sign = match self {
            Self::Json => b'\\',
            Self::Percent => b'%',
            Self::Form => b'+',
        };
        bytes.contains(&sign)
    }

    /// The bytes that the beginning of `rest` stands for, and how many it takes; `None` where it stands for itself.
    fn unit(self, rest: &[u8]) -> Option<(Unit, usize)> {
        match (self, rest.first()?) {
            (Self::Json, b'\\') => json_escape(rest),
            (Self::Percent | Self::Form, b'%') => Some((Unit::byte(hex(rest.get(1..3)?)? as u8), 3)),
            (Self::Form, b'+') => Some((Unit::byte(b' '), 1)),
            _ => None,
        }
    }
}

/// Up to four decoded bytes.
struct Unit {
    bytes: [u8; 4],
    len: usize,
}

impl Unit {
    fn byte(byte: u8) -> Self {
        Self { bytes: [byte, 0, 0, 0], len: 1 }
    }

    fn char(c: char) -> Self {
        let mut bytes = [0; 4];
        let len = c.encode_utf8(&mut bytes).len();
        Self { bytes, len }
    }
}

fn json_escape(rest: &[u8]) -> Option<(Unit, usize)> {
    let byte = match rest.get(1)? {
        same @ (b'"' | b'\\' | b'/') => *same,
        b'b' => 8,
        b'f' => 12,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => return unicode_escape(rest),
        _ => return None,
    };
    Some((Unit::byte(byte), 2))
}

/// Half a surrogate pair stands for itself.
fn unicode_escape(rest: &[u8]) -> Option<(Unit, usize)> {
    let first = hex(rest.get(2..6)?)?;
    if let Some(c) = char::from_u32(first) {
        return Some((Unit::char(c), 6));
    }
    let second = rest.get(6..8).filter(|sign| sign == b"\\u").and_then(|_| hex(rest.get(8..12)?))?;
    let pair = char::decode_utf16([first as u16, second as u16]).next()?.ok()?;
    Some((Unit::char(pair), 12))
}

fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number, digit| Some(number * 16 + char::from(*digit).to_digit(16)?))
}

/// Decoded bytes and their origin in the text that is searched.
pub(super) struct View<'a> {
    pub(super) bytes: Cow<'a, [u8]>,
    /// For each byte the range that it came from; `None` for the text itself.
    origins: Option<Vec<(usize, usize)>>,
}

impl<'a> View<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        Self { bytes: Cow::Borrowed(text.as_bytes()), origins: None }
    }

    /// `None` where decoding changes nothing.
    pub(super) fn decoded(&self, decoding: Decoding) -> Option<View<'static>> {
        if !decoding.may_apply(&self.bytes) {
            return None;
        }
        let mut bytes = Vec::with_capacity(self.bytes.len());
        let mut origins = Vec::with_capacity(self.bytes.len());
        let mut changed = false;
        let mut at = 0;
        while at < self.bytes.len() {
            let unit = decoding.unit(&self.bytes[at..]);
            changed |= unit.is_some();
            let (unit, taken) = unit.unwrap_or((Unit::byte(self.bytes[at]), 1));
            bytes.extend_from_slice(&unit.bytes[..unit.len]);
            origins.extend(std::iter::repeat_n(self.origin(at, at + taken), unit.len));
            at += taken;
        }
        changed.then_some(View { bytes: Cow::Owned(bytes), origins: Some(origins) })
    }

    /// Where in the text the bytes from `start` to before `end` came from. Not for empty ranges.
    pub(super) fn origin(&self, start: usize, end: usize) -> (usize, usize) {
        match &self.origins {
            None => (start, end),
            Some(origins) => (origins[start].0, origins[end - 1].1),
        }
    }

    /// Without white space at its ends.
    pub(super) fn trimmed(&self) -> &[u8] {
        match std::str::from_utf8(&self.bytes) {
            Ok(text) => text.trim().as_bytes(),
            Err(_) => self.bytes.trim_ascii(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str, decoding: Decoding) -> Option<String> {
        View::of(text).decoded(decoding).map(|view| String::from_utf8_lossy(&view.bytes).into_owned())
    }

    #[test]
    fn each_layer_decodes_its_own_signs_only() {
        assert_eq!(decode(r#"\"\\\/\n\u00e9\uD83D\ude00"#, Decoding::Json).unwrap(), "\"\\/\né😀");
        assert_eq!(decode("a+b%20%C3%a9", Decoding::Percent).unwrap(), "a+b é");
        assert_eq!(decode("a+b%2B", Decoding::Form).unwrap(), "a b+");
    }

    #[test]
    fn what_is_no_escape_stands_for_itself() {
        for text in ["\\", "\\x", "\\u12", "\\ud83d", "\\ud83d\\x", "\\u+123", "%", "%4", "%zz", "%+1", "é"] {
            assert_eq!(decode(text, Decoding::Json), None, "{text}");
            assert_eq!(decode(text, Decoding::Percent), None, "{text}");
        }
    }

    #[test]
    fn a_byte_of_two_layers_knows_where_it_came_from() {
        let text = "x%5Cu00e9y";
        let view = View::of(text).decoded(Decoding::Percent).unwrap().decoded(Decoding::Json).unwrap();
        assert_eq!(view.bytes.as_ref(), "xéy".as_bytes());
        assert_eq!(view.origin(1, 3), (1, 9));
    }
}
