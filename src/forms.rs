//! Links to the page that takes what must not be typed into a chat.
//!
//! A link names a notice and the time until which it opens, and is signed: nothing is stored for it, and it outlives a
//! restart. What it opens is one revision of one guardrail; once that is closed, by whomever, it shows the outcome.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use hmac::{Hmac, KeyInit as _, Mac as _};
use onlooker_protocol::notice::FormLink;
use sha2::Sha256;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::clock;

/// How long a link opens its form.
pub const LIFE: Duration = Duration::from_secs(15 * 60);
/// Of the signature, in bytes.
const TAG: usize = 16;
/// The notice's id and the end in seconds of wall time.
const SIGNED: usize = 16 + 8;

/// Makes and reads links to forms.
pub struct Forms {
    key: Zeroizing<[u8; 32]>,
    /// `None`: nobody outside could open one, and no link is made.
    public_url: Option<Url>,
}

/// What a link opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opens {
    /// The notice's id.
    pub notice: String,
    /// It is too late to answer with it.
    pub expired: bool,
}

impl Forms {
    pub fn new(key: Zeroizing<[u8; 32]>, public_url: Option<Url>) -> Self {
        Self { key, public_url }
    }

    /// A link for the person who got a notice. `None` without a public address.
    pub fn link(&self, notice: &str, now: OffsetDateTime) -> Option<FormLink> {
        let notice = Uuid::try_parse(notice).ok()?;
        let end = now + LIFE;
        let mut token = [0; SIGNED + TAG];
        token[..16].copy_from_slice(notice.as_bytes());
        token[16..SIGNED].copy_from_slice(&end.unix_timestamp().to_be_bytes());
        let tag = self.mac(&token[..SIGNED]).finalize().into_bytes();
        token[SIGNED..].copy_from_slice(&tag[..TAG]);
        let url = self.public_url.as_ref()?.join(&format!("form/{}", BASE64.encode(token))).ok()?;
        Some(FormLink { url: url.into(), expires_at: clock::text(end) })
    }

    /// `None` for what was not made here.
    pub fn read(&self, token: &str, now: OffsetDateTime) -> Option<Opens> {
        let token = BASE64.decode(token).ok().filter(|token| token.len() == SIGNED + TAG)?;
        let (signed, tag) = token.split_at(SIGNED);
        self.mac(signed).verify_truncated_left(tag).ok()?;
        let (notice, end) = signed.split_at(16);
        let end = i64::from_be_bytes(end.try_into().ok()?);
        let notice = Uuid::from_slice(notice).ok()?.to_string();
        Some(Opens { notice, expired: now.unix_timestamp() >= end })
    }

    /// What the form of a link carries, so that only a page that was got with the link can be sent back.
    pub fn seal(&self, token: &str) -> String {
        let tag = self.mac(format!("seal.{token}").as_bytes()).finalize().into_bytes();
        BASE64.encode(&tag[..TAG])
    }

    /// Whether [`Self::seal`] made it for this link. Takes as long whatever is wrong.
    pub fn is_sealed(&self, token: &str, seal: &str) -> bool {
        let tag = BASE64.decode(seal).ok().filter(|tag| tag.len() == TAG);
        tag.is_some_and(|tag| self.mac(format!("seal.{token}").as_bytes()).verify_truncated_left(&tag).is_ok())
    }

    /// Where a session can be looked at, for people outside.
    pub fn view(&self, session: &str) -> Option<String> {
        self.public_url.as_ref()?.join(&format!("view/{session}")).ok().map(String::from)
    }

    fn mac(&self, signed: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_ref()).expect("any length is a key");
        mac.update(signed);
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTICE: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

    fn forms(byte: u8) -> Forms {
        Forms::new(Zeroizing::new([byte; 32]), Some("https://onlooker.example/".parse().unwrap()))
    }

    fn token(link: &FormLink) -> &str {
        link.url.strip_prefix("https://onlooker.example/form/").unwrap()
    }

    #[test]
    fn a_link_opens_for_a_quarter_of_an_hour_and_then_says_that_it_is_too_late() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let link = forms(1).link(NOTICE, now).unwrap();
        let read = |later| forms(1).read(token(&link), now + later);
        let opens = |expired| Some(Opens { notice: NOTICE.to_owned(), expired });
        assert_eq!(read(Duration::ZERO), opens(false));
        assert_eq!(read(LIFE - Duration::from_secs(1)), opens(false));
        assert_eq!(read(LIFE), opens(true));
        assert!(Forms::new(Zeroizing::new([1; 32]), None).link(NOTICE, now).is_none());
    }

    #[test]
    fn a_link_that_was_not_made_here_opens_nothing() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let link = forms(1).link(NOTICE, now).unwrap();
        let whole = token(&link);
        assert_eq!(forms(2).read(whole, now), None);
        for at in 0..whole.len() {
            let mut changed = whole.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(forms(1).read(std::str::from_utf8(&changed).unwrap(), now), None, "at {at}");
        }
        assert_eq!(forms(1).read(&whole[1..], now), None);
    }

    #[test]
    fn a_seal_is_one_links_own() {
        let seal = forms(1).seal("one");
        assert!(forms(1).is_sealed("one", &seal));
        assert!(!forms(1).is_sealed("other", &seal) && !forms(2).is_sealed("one", &seal));
        assert!(!forms(1).is_sealed("one", &seal[1..]) && !forms(1).is_sealed("one", ""));
    }
}
