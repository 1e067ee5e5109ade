//! TLS of a client: its trusted roots, and a handshake over a connection of any kind.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
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
    ) -> Result<Self, String> {
        let config = trusting(extra_roots, Some(system))?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Takes any certificate: it protects from listeners only.
    ///
    /// # Errors
    /// When the library offers no version of TLS.
    pub(crate) fn unverified() -> Result<Self, String> {
        let config = tls::accepting_any().map_err(|error| error.to_string())?;
        Ok(Self(TlsConnector::from(Arc::new(config))))
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
