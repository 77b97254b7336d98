//! Whether a request comes from Slack (docs.slack.dev, verifying requests from Slack).

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

use crate::{chat::Hook, config::secret::Secret};

/// How far Slack's clock and ours may be apart, in seconds; what is older may be a replay.
const WINDOW: u64 = 5 * 60;

pub(super) struct Signing(Secret);

impl Signing {
    pub(super) fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// The signature, if it is Slack's, over this very body, and of now. Nothing is parsed but the time.
    pub(super) fn check<'a>(&self, request: &'a Hook, now: OffsetDateTime) -> Option<&'a str> {
        let header = |name| request.headers.get(name)?.to_str().ok();
        let (timestamp, signature) = (header("x-slack-request-timestamp")?, header("x-slack-signature")?);
        let at: i64 = timestamp.parse().ok()?;
        let expected = self.sign(timestamp, &request.body);
        let genuine = bool::from(expected.as_bytes().ct_eq(signature.as_bytes()));
        (genuine && at.abs_diff(now.unix_timestamp()) <= WINDOW).then_some(signature)
    }

    /// `v0=` and the signature in hexadecimal digits.
    pub(super) fn sign(&self, timestamp: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.expose().as_bytes()).expect("any length is a key");
        mac.update(format!("v0:{timestamp}:").as_bytes());
        mac.update(body);
        let digits = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("v0={digits}")
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use reqwest::header::HeaderMap;

    use super::*;

    // The example of the document.
    const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
    const TIMESTAMP: &str = "1531420618";
    const BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V\
                        &channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=\
                        &response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F\
                        96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";

    fn request(timestamp: &str, signature: &str, body: &str) -> Hook {
        let mut headers = HeaderMap::new();
        headers.insert("x-slack-request-timestamp", timestamp.parse().unwrap());
        headers.insert("x-slack-signature", signature.parse().unwrap());
        Hook { headers, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn passes(request: &Hook, seconds_later: i64) -> bool {
        let now = OffsetDateTime::from_unix_timestamp(1_531_420_618 + seconds_later).unwrap();
        Signing::new(Secret::new(SECRET)).check(request, now).is_some()
    }

    #[test]
    fn the_documented_example_has_its_documented_signature() {
        assert_eq!(Signing::new(Secret::new(SECRET)).sign(TIMESTAMP, BODY.as_bytes()), SIGNATURE);
        assert!(passes(&request(TIMESTAMP, SIGNATURE, BODY), 0));
    }

    #[test]
    fn a_request_passes_within_five_minutes_only() {
        let request = request(TIMESTAMP, SIGNATURE, BODY);
        for (later, passing) in [(300, true), (-300, true), (301, false), (-301, false), (86_400, false)] {
            assert_eq!(passes(&request, later), passing, "{later}");
        }
    }

    #[test]
    fn anything_forged_does_not_pass() {
        let signed_by_another = Signing::new(Secret::new("another")).sign(TIMESTAMP, BODY.as_bytes());
        for (timestamp, signature, body) in [
            (TIMESTAMP, signed_by_another.as_str(), BODY),
            (TIMESTAMP, SIGNATURE, "token=other"),
            ("1531420619", SIGNATURE, BODY),
            (TIMESTAMP, &SIGNATURE[..SIGNATURE.len() - 1], BODY),
            (TIMESTAMP, &SIGNATURE.replacen("v0", "v1", 1), BODY),
            (TIMESTAMP, "", BODY),
            ("", SIGNATURE, BODY),
            ("now", SIGNATURE, BODY),
            ("9223372036854775807", SIGNATURE, BODY),
            ("-9223372036854775808", SIGNATURE, BODY),
        ] {
            assert!(!passes(&request(timestamp, signature, body), 0), "{timestamp} {signature}");
        }
        assert!(!passes(&Hook { headers: HeaderMap::new(), body: Bytes::new() }, 0));
    }
}
