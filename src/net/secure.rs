//! TLS of a client: its trusted roots, and a handshake over a connection of any kind.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, Error};
use tokio_rustls::TlsConnector;

use super::roots::SystemRoots;
use super::{Stream, tls};

/// Trusts the public roots that are built in, those of `system` and those of `extra_roots`
/// (PEM).
///
/// # Errors
/// When the extra roots are not readable.
pub(crate) fn trusting(
    extra_roots: Option<&[u8]>,
    system: Option<&SystemRoots>,
) -> Result<ClientConfig, String> {
    let mut roots = tls::public_roots();
    if let Some(system) = system {
        system.add_to(&mut roots);
    }
    let own = match extra_roots {
        Some(extra) => tls::add_roots(&mut roots, extra)?,
        None => Vec::new(),
    };
    tls::trusting_own(roots, own).map_err(|error| error.to_string())
}

/// Why a client's certificate and key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairFault {
    Certificate,
    Key,
    /// The key is of another certificate.
    Mismatch,
}

/// The certificate and key of a client, for a server that demands them.
#[derive(Clone, Debug)]
pub(crate) struct ClientPair(Arc<CertifiedKey>);

impl ClientPair {
    /// The pair of a chain and a key in PEM.
    pub(crate) fn parse(chain: &[u8], key: &[u8]) -> Result<Self, PairFault> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|_| PairFault::Certificate)?;
        if chain.is_empty() {
            return Err(PairFault::Certificate);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| PairFault::Key)?;
        let pair = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let pair = pair.map_err(|error| match error {
            Error::InconsistentKeys(_) => PairFault::Mismatch,
            Error::InvalidCertificate(_) => PairFault::Certificate,
            _ => PairFault::Key,
        });
        pair.map(|pair| Self(Arc::new(pair)))
    }

    /// A client of `config` presents this pair where a server demands one.
    pub(crate) fn present(&self, config: &mut ClientConfig) {
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(self.0.clone()));
    }
}

/// Makes a connection one of TLS.
#[derive(Clone)]
pub(crate) struct Secure(TlsConnector);

impl Secure {
    /// Verifies the server as [`trusting`] says.
    ///
    /// # Errors
    /// When the extra roots are not readable.
    pub(crate) fn verified(
        extra_roots: Option<&[u8]>,
        system: &SystemRoots,
        pair: Option<&ClientPair>,
    ) -> Result<Self, String> {
        Ok(Self::over(trusting(extra_roots, Some(system))?, pair))
    }

    /// Takes any certificate: it protects from listeners only.
    ///
    /// # Errors
    /// When the library offers no version of TLS.
    pub(crate) fn unverified(pair: Option<&ClientPair>) -> Result<Self, String> {
        let config = tls::accepting_any().map_err(|error| error.to_string())?;
        Ok(Self::over(config, pair))
    }

    fn over(mut config: ClientConfig, pair: Option<&ClientPair>) -> Self {
        if let Some(pair) = pair {
            pair.present(&mut config);
        }
        Self(TlsConnector::from(Arc::new(config)))
    }

    /// The connection to `host`, a name or an address.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: Box<dyn Stream>,
    ) -> io::Result<Box<dyn Stream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::new(self.0.connect(name, stream).await?))
    }
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secure")
    }
}
