//! What is counted: marks in payloads, wherever reads and frames cut them.

use memchr::memmem::Finder;

/// `TS#`, the time in 20 digits, `#`, the channel in 6, `#`, the number in 10.
pub const LEN: usize = 41;
const BEGIN: &[u8] = b"TS#";
/// Where the digits stand.
const AT: std::ops::Range<usize> = 3..23;
const CHANNEL: std::ops::Range<usize> = 24..30;
const NUMBER: std::ops::Range<usize> = 31..41;

/// Says which message a payload is, and when it was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Monotonic, in ns.
    pub at: u64,
    /// Below 1,000,000.
    pub channel: u32,
    /// In its channel, from 0, without a hole.
    pub number: u32,
}

impl Mark {
    /// Overwrites the first [`LEN`] bytes.
    pub fn write(self, to: &mut [u8]) {
        to[..BEGIN.len()].copy_from_slice(BEGIN);
        (to[AT.end], to[CHANNEL.end]) = (b'#', b'#');
        write_digits(self.at, &mut to[AT]);
        write_digits(u64::from(self.channel), &mut to[CHANNEL]);
        write_digits(u64::from(self.number), &mut to[NUMBER]);
    }

    fn read(bytes: &[u8; LEN]) -> Option<Self> {
        let form = bytes.starts_with(BEGIN) && bytes[AT.end] == b'#' && bytes[CHANNEL.end] == b'#';
        if !form {
            return None;
        }
        let channel = u32::try_from(digits(&bytes[CHANNEL])?).ok()?;
        let number = u32::try_from(digits(&bytes[NUMBER])?).ok()?;
        Some(Self { at: digits(&bytes[AT])?, channel, number })
    }
}

fn write_digits(mut number: u64, to: &mut [u8]) {
    for place in to.iter_mut().rev() {
        *place = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn digits(bytes: &[u8]) -> Option<u64> {
    bytes.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { number.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

/// Finds the beginning of marks. One is enough for all connections.
pub struct Search(Finder<'static>);

impl Default for Search {
    fn default() -> Self {
        Self(Finder::new(BEGIN))
    }
}

enum Seen {
    Whole(Mark),
    /// The bytes end before one can know.
    Begun,
    Nothing,
}

fn look(bytes: &[u8]) -> Seen {
    if let Some(bytes) = bytes.first_chunk::<LEN>() {
        return Mark::read(bytes).map_or(Seen::Nothing, Seen::Whole);
    }
    let fits = |(place, byte): (usize, &u8)| match place {
        0..3 => *byte == BEGIN[place],
        23 | 30 => *byte == b'#',
        _ => byte.is_ascii_digit(),
    };
    if bytes.iter().enumerate().all(fits) { Seen::Begun } else { Seen::Nothing }
}

/// Finds the marks in one connection's bytes, each once, wherever the bytes are cut.
#[derive(Clone, Debug)]
pub struct Scanner {
    held: u8,
    /// The beginning of a mark whose rest has not come yet.
    carry: [u8; LEN - 1],
}

impl Default for Scanner {
    fn default() -> Self {
        Self { held: 0, carry: [0; LEN - 1] }
    }
}

impl Scanner {
    pub fn feed(&mut self, search: &Search, bytes: &[u8], mut found: impl FnMut(Mark)) {
        if self.held == 0 {
            self.scan(search, bytes, found);
        } else if let Some(rest) = self.join(bytes, &mut found) {
            self.scan(search, rest, found);
        }
    }

    /// Marks that begin in the carry. Returns what follows them, or nothing if all was taken into the carry.
    fn join<'a>(&mut self, bytes: &'a [u8], found: &mut impl FnMut(Mark)) -> Option<&'a [u8]> {
        let held = usize::from(std::mem::take(&mut self.held));
        let taken = bytes.len().min(LEN - 1);
        let mut joined = [0; 2 * (LEN - 1)];
        joined[..held].copy_from_slice(&self.carry[..held]);
        joined[held..held + taken].copy_from_slice(&bytes[..taken]);
        let joined = &joined[..held + taken];
        let mut from = 0;
        while from < held {
            match look(&joined[from..]) {
                Seen::Whole(mark) => {
                    found(mark);
                    from += LEN;
                }
                Seen::Begun => {
                    self.hold(&joined[from..]);
                    return None;
                }
                Seen::Nothing => from += 1,
            }
        }
        Some(&bytes[from - held..])
    }

    fn scan(&mut self, search: &Search, mut bytes: &[u8], mut found: impl FnMut(Mark)) {
        while let Some(at) = search.0.find(bytes) {
            bytes = &bytes[at..];
            match look(bytes) {
                Seen::Whole(mark) => {
                    found(mark);
                    bytes = &bytes[LEN..];
                }
                Seen::Begun => return self.hold(bytes),
                Seen::Nothing => bytes = &bytes[BEGIN.len()..],
            }
        }
        let begun = [2, 1].into_iter().find(|length| bytes.ends_with(&BEGIN[..*length]));
        self.hold(&bytes[bytes.len() - begun.unwrap_or(0)..]);
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.carry[..bytes.len()].copy_from_slice(bytes);
        self.held = bytes.len() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(number: u32) -> Mark {
        Mark { at: 12_345_678_901_234 + u64::from(number), channel: 499, number }
    }

    fn text() -> (Vec<u8>, Vec<Mark>) {
        let mut text = b"T TS TS# TS#0000 TSTS#12TTS#".to_vec();
        let mut marks = Vec::new();
        for number in 0..3 {
            let mut payload = [b'x'; LEN];
            mark(number).write(&mut payload);
            marks.push(mark(number));
            text.extend_from_slice(b"{\"content\":\"T");
            text.extend_from_slice(&payload);
            text.extend_from_slice(&b"TS#01234567890123456789#12345TS"[..usize::try_from(number).unwrap() * 13]);
        }
        (text, marks)
    }

    fn found_in<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Mark> {
        let (search, mut scanner, mut found) = (Search::default(), Scanner::default(), Vec::new());
        for piece in pieces {
            scanner.feed(&search, piece, |mark| found.push(mark));
        }
        found
    }

    #[test]
    fn every_split_in_two_and_in_three_finds_each_mark_once() {
        let (text, marks) = text();
        for first in 0..=text.len() {
            assert_eq!(found_in([&text[..first], &text[first..]]), marks, "cut at {first}");
            for second in first..=text.len() {
                let pieces = [&text[..first], &text[first..second], &text[second..]];
                assert_eq!(found_in(pieces), marks, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn pieces_of_every_size_find_each_mark_once() {
        let (text, marks) = text();
        for size in 1..text.len() {
            assert_eq!(found_in(text.chunks(size)), marks, "pieces of {size}");
        }
    }

    #[test]
    fn what_only_looks_like_a_mark_is_none() {
        let mut payload = [0; LEN];
        mark(7).write(&mut payload);
        for place in 0..LEN {
            let mut wrong = payload;
            wrong[place] = b'x';
            assert_eq!(found_in([&wrong[..]]), [], "wrong at {place}");
        }
        assert_eq!(found_in([&payload[..LEN - 1]]), []);
    }

    #[test]
    fn a_mark_behind_a_broken_one_is_found() {
        let mut payload = [0; LEN];
        mark(1).write(&mut payload);
        for kept in 0..LEN {
            let joined = [&payload[..kept], &payload[..]].concat();
            for cut in 0..joined.len() {
                assert_eq!(found_in([&joined[..cut], &joined[cut..]]), [mark(1)], "{kept} bytes before, cut at {cut}");
            }
        }
    }
}
