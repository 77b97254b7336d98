//! "Open or closed": on which addresses a gateway may listen, given its keys and its certificate.

use std::net::SocketAddr;

use crate::config::Listen;

/// Who can reach the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// No keys: everybody on this machine may do everything.
    Open,
    /// Keys decide.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExposureError {
    #[error(
        "without keys the gateway listens on loopback only, not on {0}: add a [[keys]] entry to the configuration, or \
         listen on 127.0.0.1"
    )]
    NoKeys(SocketAddr),
    #[error(
        "on {0} keys would cross the network in clear text: set tls_cert and tls_key, or say plaintext_behind_proxy \
         when a proxy in front speaks TLS, or listen on 127.0.0.1"
    )]
    ClearText(SocketAddr),
}

/// Without keys loopback only; any other address needs keys and a certificate or a proxy that has one.
pub fn exposure(listen: &Listen, has_keys: bool) -> Result<Exposure, ExposureError> {
    let encrypted = listen.tls_cert.is_some() && listen.tls_key.is_some() || listen.plaintext_behind_proxy;
    match (listen.address.ip().to_canonical().is_loopback(), has_keys) {
        (true, false) => Ok(Exposure::Open),
        (true, true) => Ok(Exposure::Closed),
        (false, false) => Err(ExposureError::NoKeys(listen.address)),
        (false, true) if encrypted => Ok(Exposure::Closed),
        (false, true) => Err(ExposureError::ClearText(listen.address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_or_closed_follows_address_keys_and_encryption() {
        use Exposure::{Closed, Open};
        let refused = |text: &'static str| Err(text);
        let (no_keys, clear) = (refused("without keys"), refused("clear text"));
        let table = [
            ("127.0.0.1:1", false, "none", Ok(Open)),
            ("127.9.9.9:1", false, "none", Ok(Open)),
            ("[::1]:1", false, "none", Ok(Open)),
            ("[::ffff:127.0.0.1]:1", false, "none", Ok(Open)),
            ("127.0.0.1:1", true, "none", Ok(Closed)),
            ("0.0.0.0:1", false, "none", no_keys),
            ("0.0.0.0:1", false, "tls", no_keys),
            ("[::]:1", false, "proxy", no_keys),
            ("10.0.0.7:1", true, "none", clear),
            ("10.0.0.7:1", true, "certificate without key", clear),
            ("10.0.0.7:1", true, "tls", Ok(Closed)),
            ("[2001:db8::1]:1", true, "proxy", Ok(Closed)),
        ];
        for (address, keys, encryption, wanted) in table {
            let listen = Listen {
                address: address.parse().unwrap(),
                tls_cert: encryption
                    .contains("tls")
                    .then(|| "c".into())
                    .or(encryption.contains("cert").then(|| "c".into())),
                tls_key: (encryption == "tls").then(|| "k".into()),
                plaintext_behind_proxy: encryption == "proxy",
                ..Listen::default()
            };
            match (exposure(&listen, keys), wanted) {
                (Ok(got), Ok(wanted)) => assert_eq!(got, wanted, "{address} {keys} {encryption}"),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{address} {keys}: {error}"),
                (got, _) => panic!("{address} {keys} {encryption}: {got:?}"),
            }
        }
    }
}
