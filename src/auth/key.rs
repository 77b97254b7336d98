//! Makes API keys.

use rand::{TryRng as _, rngs::SysRng};
use sha2::{Digest, Sha256};

use crate::config::{
    key::{KeyDigest, KeyEntry, Scope},
    secret::Secret,
};

/// How every key begins, so that scanners for leaked secrets can find one.
pub const PREFIX: &str = "olk_";

/// 32 characters that are hard to mistake for one another: five bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// A new key of 200 random bits, shown once, and the entry for the configuration, which cannot give it back.
///
/// Fails only when the system's generator does.
pub fn generate(id: &str, project: &str, scopes: &[Scope]) -> Result<(Secret, KeyEntry), rand::rngs::SysError> {
    let plain = Secret::new(format!("{PREFIX}{}", random_text::<40>()?.expose()));
    let entry = KeyEntry {
        id: id.to_owned(),
        project: project.to_owned(),
        scopes: scopes.to_vec(),
        sha256: KeyDigest(Sha256::digest(plain.expose().as_bytes()).into()),
        pool: false,
        account: Default::default(),
        balance: None,
    };
    Ok((plain, entry))
}

/// `N` characters of five random bits each.
pub(super) fn random_text<const N: usize>() -> Result<Secret, rand::rngs::SysError> {
    let mut bytes = zeroize::Zeroizing::new([0u8; N]);
    SysRng.try_fill_bytes(bytes.as_mut())?;
    Ok(Secret::new(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect::<String>()))
}
