//! Identifiers. Plain values: no IO, no wire.
//!
//! Session ids are capabilities: 20 characters `[a-z0-9]` from the system's generator, always made here. Task and
//! guardrail ids may come from outside and are unique in their session only.

use std::{fmt, str::FromStr, sync::Arc};

use onlooker_protocol::event::Epoch;
use rand::{RngExt, rngs::SysRng};
use uuid::Uuid;

const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

fn fill(bytes: &mut [u8]) {
    use rand::TryRng;
    #[cfg(test)]
    if seeded::fill(bytes) {
        return;
    }
    SysRng.try_fill_bytes(bytes).expect("the system's random generator works");
}

/// Fills `N` characters `[a-z0-9]` from the system's generator, without modulo bias.
fn random_text<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    let mut filled = 0;
    while filled < N {
        let mut raw = [0u8; 64];
        fill(&mut raw);
        // 252 is the largest multiple of 36 in a byte.
        for byte in raw.into_iter().filter(|b| *b < 252) {
            if filled == N {
                break;
            }
            out[filled] = ALPHABET[usize::from(byte % 36)];
            filled += 1;
        }
    }
    out
}

/// A session's id: 20 characters `[a-z0-9]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; 20]);

impl SessionId {
    /// No session: for what belongs to none. Never made by [`SessionId::random`], whose ids have 103 random bits.
    pub const NONE: Self = Self([b'0'; 20]);

    pub fn random() -> Self {
        Self(random_text())
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a session id is made of ASCII")
    }
}

/// Hashes session ids by what is random in them: for maps whose ids are all of our making.
pub type ByRandomness = std::hash::BuildHasherDefault<RandomBytes>;

/// Of what is hashed, its first bytes.
#[derive(Default)]
pub struct RandomBytes(u64);

impl std::hash::Hasher for RandomBytes {
    fn write(&mut self, bytes: &[u8]) {
        // Letters and digits: 5 bits of each byte are enough to tell them apart, spread over the whole number.
        let first = bytes.first_chunk::<16>().map_or(0, |first| u128::from_le_bytes(*first));
        let (low, high) = (first as u64, (first >> 64) as u64);
        self.0 = (low ^ high.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

impl FromStr for SessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes: [u8; 20] = text.as_bytes().try_into().map_err(|_| ())?;
        bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()).then_some(Self(bytes)).ok_or(())
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A session's id opens its session on the WebRun surfaces: logs show the hash that tells two apart.
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::auth::session_hash(self.as_str()))
    }
}

/// The tenant's name.
pub type Project = Arc<str>;

/// A fresh id of 20 characters for a task or a guardrail.
pub fn random_id() -> String {
    String::from_utf8(random_text::<20>().to_vec()).expect("ASCII")
}

/// A fresh claim token: 40 characters, about 206 bits.
pub fn random_token() -> String {
    String::from_utf8(random_text::<40>().to_vec()).expect("ASCII")
}

/// A fresh name for a log.
pub fn random_epoch() -> Epoch {
    Epoch::new(std::str::from_utf8(&random_text::<8>()).expect("ASCII")).expect("8 characters [a-z0-9]")
}

/// A UUIDv7: for events, notices and connections.
pub fn time_ordered_id() -> String {
    time_ordered().to_string()
}

/// Room for the text of a time ordered id.
pub struct IdText([u8; uuid::fmt::Hyphenated::LENGTH]);

impl Default for IdText {
    fn default() -> Self {
        Self([0; uuid::fmt::Hyphenated::LENGTH])
    }
}

/// As [`time_ordered_id`], into memory that is there.
pub fn write_time_ordered_id(text: &mut IdText) -> &str {
    time_ordered().hyphenated().encode_lower(&mut text.0)
}

fn time_ordered() -> Uuid {
    #[cfg(test)]
    if let Some(id) = seeded::time_ordered() {
        return id;
    }
    Uuid::now_v7()
}

/// Whether a task's or guardrail's id from outside may be used: `[A-Za-z0-9_-]{1,64}`.
pub fn is_outside_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Names one connection for the life of the process.
///
/// Packed, because what holds one would otherwise be aligned, and padded, to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(Rust, packed(8))]
pub struct ConnectionId(pub u128);

impl ConnectionId {
    pub fn random() -> Self {
        Self(time_ordered().as_u128())
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_u128(self.0), f)
    }
}

/// Jitter: a duration between zero and `max`.
pub fn up_to(max: std::time::Duration) -> std::time::Duration {
    max.mul_f64(fraction())
}

fn fraction() -> f64 {
    #[cfg(test)]
    if let Some(fraction) = seeded::fraction() {
        return fraction;
    }
    rand::rng().random()
}

/// Everything here that is random from one seed, for one thread, so that what it does there can be repeated.
#[cfg(test)]
pub(crate) mod seeded {
    use std::cell::RefCell;

    use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
    use uuid::Uuid;

    struct Source {
        random: StdRng,
        last_ms: u64,
    }

    thread_local! {
        static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
    }

    pub(crate) fn begin(seed: u64) {
        SOURCE.set(Some(Source { random: StdRng::seed_from_u64(seed), last_ms: 0 }));
    }

    pub(crate) fn end() {
        SOURCE.set(None);
    }

    fn with<T>(draw: impl FnOnce(&mut Source) -> T) -> Option<T> {
        SOURCE.with_borrow_mut(|source| source.as_mut().map(draw))
    }

    pub(super) fn fill(bytes: &mut [u8]) -> bool {
        with(|source| source.random.fill_bytes(bytes)).is_some()
    }

    pub(super) fn fraction() -> Option<f64> {
        with(|source| source.random.random())
    }

    /// In the order in which they were made, also within one millisecond and when the wall clock jumps.
    pub(super) fn time_ordered() -> Option<Uuid> {
        let now_ms = crate::clock::milliseconds(crate::clock::now());
        with(|source| {
            source.last_ms = now_ms.max(source.last_ms + 1);
            uuid::Builder::from_unix_timestamp_millis(source.last_ms, &source.random.random()).into_uuid()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_shape_and_differ() {
        let (a, b) = (SessionId::random(), SessionId::random());
        assert_ne!(a, b);
        assert_eq!(a.as_str().parse::<SessionId>(), Ok(a));
        assert!("ABCDEFGHIJ0123456789".parse::<SessionId>().is_err());
        assert!("short".parse::<SessionId>().is_err());
    }

    #[test]
    fn outside_ids_are_of_a_narrow_alphabet() {
        assert!(is_outside_id("task_1-A"));
        for bad in ["", "a b", "ä", "a/b", &"x".repeat(65)] {
            assert!(!is_outside_id(bad), "{bad}");
        }
    }
}
