//! One-time codes that link a chat: four words of five letters, 64 bits.
//!
//! The words alternate consonants and vowels, so that they can be said and typed on a phone; `i`, `l` and `1`, which
//! look alike, are not among the letters, and neither are digits. Case, spaces and signs between words do not matter.
//! A code is known here by its hash alone.

use std::{collections::HashMap, fmt, sync::Mutex, time::Duration};

use rand::{TryRng as _, rngs::SysRng};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::{ids::Project, tries::Tries};

/// How long a code links.
pub const LIFE: Duration = Duration::from_secs(600);
/// Codes of one project that may be outstanding.
const PER_PROJECT: usize = 32;
/// Codes that may be outstanding in all.
const IN_ALL: usize = 1024;
/// Wrong codes of one person within [`LIFE`].
const WRONG_BY_ONE: usize = 5;
/// Wrong codes of everybody within [`LIFE`]: 2⁻⁴⁴ of what would be needed with all codes outstanding.
const WRONG_BY_ALL: usize = 1024;
/// People whose wrong codes are remembered.
const GUESSERS: usize = 4096;

const CONSONANTS: &[u8; 16] = b"bdfghjkmnprstvwz";
const VOWELS: &[u8; 4] = b"aeou";
const WORDS: usize = 4;
const LETTERS: usize = 5;

/// A code in its one form: small letters, nothing between the words. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Code(String);

impl Code {
    fn random() -> Self {
        let mut random = [0; 2 * WORDS];
        SysRng.try_fill_bytes(&mut random).expect("the system's random generator works");
        let words = random.chunks_exact(2).map(|bytes| word(u16::from_be_bytes([bytes[0], bytes[1]])));
        Self(words.collect())
    }

    /// The first code in a text, whatever stands around it.
    pub fn find(text: &str) -> Option<Self> {
        // Who reads a code aloud or copies it by hand may take `o` for `0`.
        let letters = |c: char| if c == '0' { 'o' } else { c.to_ascii_lowercase() };
        let text: String = text.chars().map(letters).collect();
        let parts: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
        let apart =
            parts.windows(WORDS).find(|parts| parts.iter().all(|part| is_word(part))).map(|parts| parts.concat());
        let joined = || parts.iter().find(|part| is_words(part)).map(|part| (*part).to_owned());
        apart.or_else(joined).map(Self)
    }

    fn hash(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }
}

/// As people are shown it.
impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, letter) in self.0.chars().enumerate() {
            if nth > 0 && nth.is_multiple_of(LETTERS) {
                f.write_str("-")?;
            }
            write!(f, "{letter}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code")
    }
}

/// Consonant, vowel, consonant, vowel, consonant: 4 + 2 + 4 + 2 + 4 bits.
fn word(bits: u16) -> String {
    let consonant = |shift: u16| CONSONANTS[usize::from(bits >> shift & 15)];
    let vowel = |shift: u16| VOWELS[usize::from(bits >> shift & 3)];
    [consonant(12), vowel(10), consonant(6), vowel(4), consonant(0)].into_iter().map(char::from).collect()
}

fn is_word(part: &str) -> bool {
    let fits = |(nth, letter): (usize, u8)| match nth % 2 {
        0 => CONSONANTS.contains(&letter),
        _ => VOWELS.contains(&letter),
    };
    part.len() == LETTERS && part.bytes().enumerate().all(fits)
}

fn is_words(part: &str) -> bool {
    part.is_ascii()
        && part.len() == WORDS * LETTERS
        && part.as_bytes().chunks(LETTERS).all(|word| std::str::from_utf8(word).is_ok_and(is_word))
}

/// What a code links to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub project: Project,
    /// `None`: the whole project.
    pub environment: Option<String>,
}

/// A code was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Never given out, used already, or too old.
    Unknown,
    /// Too many wrong ones: for so long none is accepted.
    TooMany(Duration),
}

struct Outstanding {
    scope: Scope,
    until: Instant,
}

/// A code that has been taken out, so that nobody else can use it.
pub struct Taken {
    hash: [u8; 32],
    outstanding: Outstanding,
}

impl Taken {
    pub fn scope(&self) -> &Scope {
        &self.outstanding.scope
    }
}

/// The codes that have been given out and not been used.
pub struct Codes {
    outstanding: Mutex<HashMap<[u8; 32], Outstanding>>,
    wrong: Tries<(&'static str, String)>,
    wrong_by_all: Tries<()>,
}

impl Default for Codes {
    fn default() -> Self {
        Self {
            outstanding: Mutex::default(),
            wrong: Tries::new(WRONG_BY_ONE, LIFE, GUESSERS),
            wrong_by_all: Tries::new(WRONG_BY_ALL, LIFE, 1),
        }
    }
}

impl Codes {
    /// A fresh code.
    ///
    /// # Errors
    /// Too many are outstanding: how long until one is not.
    pub fn issue(&self, scope: Scope, now: Instant) -> Result<Code, Duration> {
        let mut outstanding = self.outstanding.lock().expect("no holder panics");
        outstanding.retain(|_, code| now < code.until);
        let frees = |of: &dyn Fn(&Outstanding) -> bool, limit: usize| {
            let ours: Vec<Instant> = outstanding.values().filter(|code| of(code)).map(|code| code.until).collect();
            ours.iter().min().filter(|_| ours.len() >= limit).map(|until| *until - now)
        };
        let full = frees(&|code| code.scope.project == scope.project, PER_PROJECT).or_else(|| frees(&|_| true, IN_ALL));
        if let Some(wait) = full {
            return Err(wait);
        }
        let code = Code::random();
        outstanding.insert(code.hash(), Outstanding { scope, until: now + LIFE });
        Ok(code)
    }

    /// Takes a code out: it can be used once. Who sends too many wrong ones is not heard for a while.
    ///
    /// # Errors
    /// [`Wrong`]
    pub fn take(&self, code: &Code, by: (&'static str, &str), now: Instant) -> Result<Taken, Wrong> {
        let by = (by.0, by.1.to_owned());
        let wait = self.wrong.wait(&by, now).into_iter().chain(self.wrong_by_all.wait(&(), now)).max();
        if let Some(wait) = wait {
            return Err(Wrong::TooMany(wait));
        }
        let hash = code.hash();
        let taken = self.outstanding.lock().expect("no holder panics").remove(&hash);
        match taken.filter(|code| now < code.until) {
            Some(outstanding) => Ok(Taken { hash, outstanding }),
            None => {
                self.wrong.count(by, now);
                self.wrong_by_all.count((), now);
                Err(Wrong::Unknown)
            }
        }
    }

    /// Nothing came of it: it can be used again.
    pub fn put_back(&self, code: Taken) {
        self.outstanding.lock().expect("no holder panics").insert(code.hash, code.outstanding);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: (&str, &str) = ("telegram", "1");

    fn scope(project: &str) -> Scope {
        Scope { project: project.into(), environment: None }
    }

    #[test]
    fn codes_are_four_words_without_letters_that_look_alike_and_forgive_how_they_are_typed() {
        for _ in 0..100 {
            let code = Code::random();
            let shown = code.to_string();
            assert_eq!(shown.len(), 23, "{shown}");
            assert!(shown.bytes().all(|b| b == b'-' || (b.is_ascii_lowercase() && !b"il".contains(&b))), "{shown}");
            let spaced = shown.replace('-', "  ");
            for typed in [
                shown.clone(),
                shown.to_uppercase(),
                format!("/start {shown}"),
                format!("/link@OurBot  {spaced} "),
                format!("my code is {}.", shown.replace('-', "")),
                shown.replace('o', "0"),
                shown.replace('-', "\u{2011}"),
            ] {
                assert_eq!(Code::find(&typed), Some(code.clone()), "{typed}");
            }
        }
        for other in ["", "hello", "/start", "tofuk tofuk tofuk", "tofuk tofuk tofuk lofuk", "ötofuktofuktofuktofu"] {
            assert_eq!(Code::find(other), None, "{other}");
        }
        assert_eq!((word(0), word(u16::MAX)), ("babab".to_owned(), "zuzuz".to_owned()));
    }

    #[test]
    fn a_code_is_good_once_and_for_ten_minutes_and_can_be_put_back() {
        let (codes, now) = (Codes::default(), Instant::now());
        let code = codes.issue(scope("shop"), now).unwrap();
        let taken = codes.take(&code, ANN, now).ok().unwrap();
        assert_eq!(taken.scope(), &scope("shop"));
        assert_eq!(codes.take(&code, ANN, now).err(), Some(Wrong::Unknown));
        codes.put_back(taken);
        assert!(codes.take(&code, ANN, now).is_ok());
        let late = codes.issue(scope("shop"), now).unwrap();
        assert_eq!(codes.take(&late, ANN, now + LIFE).err(), Some(Wrong::Unknown));
    }

    #[test]
    fn guesses_are_limited_for_each_person_and_in_all() {
        let (codes, now) = (Codes::default(), Instant::now());
        let code = codes.issue(scope("shop"), now).unwrap();
        for _ in 0..WRONG_BY_ONE {
            assert_eq!(codes.take(&Code::random(), ANN, now).err(), Some(Wrong::Unknown));
        }
        assert_eq!(codes.take(&code, ANN, now).err(), Some(Wrong::TooMany(LIFE)), "also for the right one");
        codes.put_back(codes.take(&code, ("telegram", "2"), now).ok().unwrap());
        for guesser in 0..WRONG_BY_ALL - WRONG_BY_ONE {
            assert_eq!(codes.take(&Code::random(), ("slack", &guesser.to_string()), now).err(), Some(Wrong::Unknown));
        }
        assert_eq!(codes.take(&code, ("telegram", "2"), now).err(), Some(Wrong::TooMany(LIFE)));
    }

    #[test]
    fn outstanding_codes_are_bounded_and_free_their_room_when_they_are_old() {
        let (codes, now) = (Codes::default(), Instant::now());
        for _ in 0..PER_PROJECT {
            codes.issue(scope("shop"), now).unwrap();
        }
        assert_eq!(codes.issue(scope("shop"), now), Err(LIFE));
        assert!(codes.issue(scope("other"), now).is_ok());
        assert!(codes.issue(scope("shop"), now + LIFE).is_ok());
        assert_eq!(codes.outstanding.lock().unwrap().len(), 1, "old ones are gone");
    }
}
