//! TLS 1.2 and 1.3 by aws-lc-rs, with the same parameters for every client and listener.
//! An error means that the library offers neither version.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ResolvesServerCert;
use rustls::{ClientConfig, ConfigBuilder, Error, RootCertStore, ServerConfig, WantsVerifier};

/// A client's configuration, which still lacks the verification of the server.
pub(crate) fn client() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
}

/// A client that trusts `roots`.
pub(crate) fn trusting(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let client = client()?.with_root_certificates(roots);
    Ok(client.with_no_client_auth())
}

/// A listener for HTTP/1.1 with the pairs that `pairs` selects.
pub(crate) fn server(pairs: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(pairs);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The public roots that are built in.
pub(crate) fn public_roots() -> RootCertStore {
    RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned())
}

/// Adds the root certificates of a CA in `pem` to `roots`.
///
/// # Errors
/// When `pem` contains no certificate, or an invalid one.
pub(crate) fn add_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), String> {
    let before = roots.len();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|_| "the CA's root is not readable PEM")?;
        let added = roots.add(root);
        added.map_err(|error| format!("the CA's root is not usable: {error}"))?;
    }
    match roots.len() > before {
        true => Ok(()),
        false => Err("there is no certificate in the file of the CA's root".into()),
    }
}
