//! What a button carries: which notice, what the tap means, and our signature.
//!
//! Clients of chats can send any text as if a button had carried it, so a mark that was not made here is refused.
//! At most 64 bytes, as the narrowest chat allows (Telegram's `callback_data`).

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Of the signature, in bytes: guesses go through a chat, one at a time.
const TAG: usize = 12;

/// Signs marks. Cheap to clone.
#[derive(Clone)]
pub struct MarkKey(Arc<Zeroizing<[u8; 32]>>);

impl MarkKey {
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(Arc::new(bytes))
    }

    /// What the buttons of a notice carry. `None` for an id that is not of ours.
    pub fn marks(&self, notice: &str) -> Option<Marks> {
        Some(Marks { notice: Uuid::try_parse(notice).ok()?, key: self.clone() })
    }

    /// The notice and the tap that a mark stands for, if it was made here.
    pub fn read(&self, mark: &str) -> Option<(String, Tap)> {
        let (signed, tag) = mark.rsplit_once('.')?;
        let tag = BASE64.decode(tag).ok().filter(|tag| tag.len() == TAG)?;
        self.mac(signed).verify_truncated_left(&tag).ok()?;
        let (notice, tap) = signed.split_once('.')?;
        let notice = Uuid::from_slice(&BASE64.decode(notice).ok()?).ok()?;
        Some((notice.to_string(), Tap::read(tap)?))
    }

    fn mac(&self, signed: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_ref().as_ref()).expect("any length is a key");
        mac.update(signed.as_bytes());
        mac
    }
}

impl fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MarkKey")
    }
}

/// What the buttons of one notice carry.
#[derive(Clone, Debug)]
pub struct Marks {
    notice: Uuid,
    key: MarkKey,
}

impl Marks {
    pub fn of(&self, tap: Tap) -> String {
        let signed = format!("{}.{tap}", BASE64.encode(self.notice.as_bytes()));
        let tag = self.key.mac(&signed).finalize().into_bytes();
        format!("{signed}.{}", BASE64.encode(&tag[..TAG]))
    }
}

/// What a tap means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Go on.
    Approve,
    Decline,
    /// One of the question's choices, by its place.
    Choice(u8),
    /// "I have it."
    Claim,
    /// A fresh link to the form.
    Form,
}

impl Tap {
    fn read(text: &str) -> Option<Self> {
        match text {
            "a" => Some(Self::Approve),
            "d" => Some(Self::Decline),
            "k" => Some(Self::Claim),
            "f" => Some(Self::Form),
            _ => text.strip_prefix('c')?.parse().ok().map(Self::Choice),
        }
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Approve => f.write_str("a"),
            Self::Decline => f.write_str("d"),
            Self::Claim => f.write_str("k"),
            Self::Form => f.write_str("f"),
            Self::Choice(nth) => write!(f, "c{nth}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn key(byte: u8) -> MarkKey {
        MarkKey::new(Zeroizing::new([byte; 32]))
    }

    #[test]
    fn a_mark_comes_back_as_it_was_and_fits_the_narrowest_chat() {
        let marks = key(1).marks(NOTICE).unwrap();
        for tap in [Tap::Approve, Tap::Decline, Tap::Claim, Tap::Form, Tap::Choice(0), Tap::Choice(255)] {
            let mark = marks.of(tap);
            assert!(mark.len() <= 64, "{mark}");
            assert_eq!(key(1).read(&mark), Some((NOTICE.to_owned(), tap)));
        }
        assert!(key(1).marks("no id").is_none());
    }

    #[test]
    fn a_forged_or_changed_mark_is_none() {
        let mark = key(1).marks(NOTICE).unwrap().of(Tap::Decline);
        assert_eq!(key(2).read(&mark), None, "another gateway's");
        assert_eq!(key(1).read(&mark.replacen(".d.", ".a.", 1)), None);
        for cut in 0..mark.len() {
            assert_eq!(key(1).read(&mark[..cut]), None);
        }
        for at in 0..mark.len() {
            let mut changed = mark.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(key(1).read(std::str::from_utf8(&changed).unwrap()), None, "at {at}");
        }
    }
}
