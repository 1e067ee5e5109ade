//! A TLS client as strict as a browser: it verifies the chain up to a trusted root,
//! the name and the dates (RFC 5280, RFC 6125). It never resumes a session, so that
//! every connection shows the served certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::net::tls;

/// Why a connection failed.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum DialError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("the certificate is not trusted: {0}")]
    Certificate(rustls::Error),
    #[error("the handshake failed: {0}")]
    Handshake(std::io::Error),
    #[error("`{0}` is not a valid server name")]
    Name(Identifier),
}

/// Connects to a TLS server and verifies it.
#[derive(Clone)]
pub struct Dialer(TlsConnector);

impl Dialer {
    /// A dialer that trusts only the root certificates of `roots` (PEM).
    ///
    /// # Errors
    /// When `roots` contains no certificate, or an invalid one.
    pub fn new(roots: &[u8]) -> Result<Self, String> {
        let mut trusted = RootCertStore::empty();
        tls::add_roots(&mut trusted, roots)?;
        let mut config = tls::trusting(trusted).map_err(|error| error.to_string())?;
        config.resumption = Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Connects to `address` for `name`; returns the stream and the served leaf.
    ///
    /// # Errors
    /// When the connection or handshake fails, or the certificate does not verify.
    pub async fn connect(
        &self,
        address: SocketAddr,
        name: &Identifier,
    ) -> Result<(TlsStream<TcpStream>, Fingerprint), DialError> {
        let server_name =
            ServerName::try_from(name.to_string()).map_err(|_| DialError::Name(name.clone()))?;
        let stream = TcpStream::connect(address)
            .await
            .map_err(DialError::Connect)?;
        // A request is one small write; Nagle's algorithm would only delay it.
        stream.set_nodelay(true).map_err(DialError::Connect)?;
        let stream = self
            .0
            .connect(server_name, stream)
            .await
            .map_err(classify)?;
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first);
        let leaf = leaf.map(|leaf| Fingerprint::of(leaf));
        let no_leaf = || DialError::Certificate(rustls::Error::NoCertificatesPresented);
        Ok((stream, leaf.ok_or_else(no_leaf)?))
    }
}

fn classify(error: std::io::Error) -> DialError {
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
    use crate::tls::fakes::{Authority, identifier, lineage, publisher, serve};

    #[tokio::test]
    async fn dialer_trusts_only_its_root_and_only_for_the_name() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (publisher, credentials, _) = publisher(&[&["*.example.com"], &["192.0.2.1"]]);
        for name in ["*.example.com", "192.0.2.1"] {
            publisher
                .publish(&lineage(name), &authority.bundle(&[name]))
                .unwrap();
        }
        let address = serve(&credentials);
        let name = identifier("www.example.com");
        assert!(authority.dialer().connect(address, &name).await.is_ok());
        let untrusted = other.dialer().connect(address, &name).await;
        assert!(matches!(untrusted, Err(DialError::Certificate(_))));
        // Without a server name the front serves the first pair, which is not for the address.
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
