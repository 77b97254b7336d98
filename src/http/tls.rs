//! The certificate and key of the listener, read from PEM files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

/// Why TLS cannot be used. Names the file; never holds its content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the certificate file {path}: {problem}")]
    Certificate { path: PathBuf, problem: String },
    #[error("cannot read the key file {path}: {problem}")]
    Key { path: PathBuf, problem: String },
    #[error("the certificate in {certificate} and the key in {key} cannot be used together")]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
}

/// TLS 1.2 and 1.3 with HTTP/1.1.
pub fn load(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let bad_certificate = |problem: String| TlsError::Certificate { path: certificate.to_owned(), problem };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|error| bad_certificate(sentence(&error)))?;
    if chain.is_empty() {
        return Err(bad_certificate("it holds no PEM certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| TlsError::Key { path: key.to_owned(), problem: sentence(&error) })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider speaks the default versions")
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn sentence(error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => "it holds nothing of that kind in PEM form".to_owned(),
        pem::Error::Io(error) => error.to_string(),
        // The others may repeat lines of the file.
        _ => "it is not well-formed PEM".to_owned(),
    }
}
