//! Identifiers that are made here.

use rand::RngExt;

/// 20 characters `[a-z0-9]` from a generator seeded by the system: about 103 bits.
pub(crate) fn fresh() -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..20).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}
