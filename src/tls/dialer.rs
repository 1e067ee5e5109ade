//! A client that is as strict as a browser: the chain up to a trusted root, the
//! name, the dates (RFC 5280, RFC 6125). It resumes no session, so that every
//! connection shows which certificate is served.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::certificate::Fingerprint;
use crate::identifier::Identifier;

/// A verified connection, decrypted.
pub type Stream = tokio_rustls::client::TlsStream<TcpStream>;

/// Why there is no connection.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum DialError {
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    #[error("the certificate is not to be trusted: {0}")]
    Certificate(rustls::Error),
    #[error("no handshake: {0}")]
    Handshake(std::io::Error),
    #[error("`{0}` cannot be asked for")]
    Name(Identifier),
}

/// Connects and verifies.
#[derive(Clone)]
pub struct Dialer(TlsConnector);

impl Dialer {
    /// Trusts the certificates of `roots` (PEM) and nothing else.
    ///
    /// # Errors
    /// When there is none that is readable, in words.
    pub fn new(roots: &[u8]) -> Result<Self, String> {
        let mut trusted = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots) {
            let root = root.map_err(|error| error.to_string())?;
            trusted.add(root).map_err(|error| error.to_string())?;
        }
        if trusted.is_empty() {
            return Err("there is no root certificate to trust".to_owned());
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(trusted)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// One connection to `address` for `name`, and the leaf that was shown.
    ///
    /// # Errors
    /// Also when the certificate does not verify.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &Identifier,
    ) -> Result<(Stream, Fingerprint), DialError> {
        let asked =
            ServerName::try_from(name.to_string()).map_err(|_| DialError::Name(name.clone()))?;
        let stream = TcpStream::connect(address)
            .await
            .map_err(DialError::Connect)?;
        // A request is one small write: waiting for more only delays it.
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let stream = self.0.connect(asked, stream).await.map_err(sort)?;
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let leaf = leaf.map(|leaf| Fingerprint::of(leaf));
        let nothing_shown = || DialError::Certificate(rustls::Error::NoCertificatesPresented);
        Ok((stream, leaf.ok_or_else(nothing_shown)?))
    }
}

fn sort(error: std::io::Error) -> DialError {
    let inner = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(inner @ rustls::Error::InvalidCertificate(_)) => DialError::Certificate(inner.clone()),
        _ => DialError::Handshake(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::fixture::{Authority, identifier, lineage, publisher, serve};
    use crate::tls::terminator::Limits;

    #[tokio::test]
    async fn trusts_its_root_alone_and_only_for_the_name() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (publisher, credentials, _) = publisher(&[&["*.example.com"], &["192.0.2.1"]]);
        for name in ["*.example.com", "192.0.2.1"] {
            publisher
                .publish(&lineage(name), &authority.bundle(&[name]))
                .unwrap();
        }
        let address = serve(&credentials, Limits::default());
        let name = identifier("www.example.com");
        assert!(authority.dialer().connect(address, &name).await.is_ok());
        let untrusted = other.dialer().connect(address, &name).await;
        assert!(matches!(untrusted, Err(DialError::Certificate(_))));
        // Without a name the first pair is shown, and it is not for the address.
        let misnamed = authority
            .dialer()
            .connect(address, &identifier("192.0.2.1"))
            .await;
        assert!(matches!(misnamed, Err(DialError::Certificate(_))));
        let wildcard = authority
            .dialer()
            .connect(address, &identifier("*.example.com"))
            .await;
        assert!(matches!(wildcard, Err(DialError::Name(_))));
        assert!(Dialer::new(b"").is_err());
    }
}
