//! The CA on a socket: TLS with a certificate of its own, which is renewed before it
//! expires, and plain HTTP on the same port for what a client needs before it can trust TLS.
//! Dropping the future of [`serve`] closes every connection.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::net::TcpListener;

use super::{CaError, DAY, Server};
use crate::identifier::Identifier;
use crate::net::listen::{Connections, Limits, Socket, TlsConfig};
use crate::net::tls;
use crate::time::Timestamp;

const LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// The CA's own TLS certificate, for `localhost`, the loopback addresses, the address
/// listened on and the host of its URL; renewed before it expires.
pub struct Identity {
    server: Server,
    identifiers: Vec<Identifier>,
    renew_at: Timestamp,
    config: Arc<ServerConfig>,
}

impl Identity {
    /// A certificate for `address` beside the loopback names, signed by the CA.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn new(server: &Server, address: IpAddr) -> Result<Self, CaError> {
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let mut identifiers: Vec<_> = loopback.map(Identifier::Ip).into();
        identifiers.extend(Identifier::parse("localhost"));
        if !loopback.contains(&address) && !address.is_unspecified() {
            identifiers.push(Identifier::Ip(address));
        }
        identifiers.extend(server.host());
        let (config, renew_at) = make(server, &identifiers)?;
        Ok(Self {
            server: server.clone(),
            identifiers,
            renew_at,
            config,
        })
    }

    fn config(&mut self) -> Arc<ServerConfig> {
        if self.server.now() >= self.renew_at {
            match make(&self.server, &self.identifiers) {
                Ok((config, renew_at)) => (self.config, self.renew_at) = (config, renew_at),
                // The current certificate is still valid for days.
                Err(error) => tracing::error!(%error, "the CA's own certificate was not renewed"),
            }
        }
        self.config.clone()
    }
}

fn make(
    server: &Server,
    identifiers: &[Identifier],
) -> Result<(Arc<ServerConfig>, Timestamp), CaError> {
    let now = server.now();
    let authority = &server.0.authority;
    let (key, chain_pem) = authority.sign_own(identifiers, now + LIFETIME, now)?;
    let failed = |error: &dyn Error| CaError::Tls(error.to_string());
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|error| CaError::Tls(error.to_owned()))?;
    let config = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .and_then(|pair| tls::server(Arc::new(SingleCertAndKey::from(pair))))
        .map_err(|error| failed(&error))?;
    Ok((Arc::new(config), now + (LIFETIME - 10 * DAY)))
}

impl Server {
    /// Serves the ACME server over TLS until the future is dropped.
    ///
    /// # Errors
    /// Only when it cannot start.
    pub async fn serve(self, listener: TcpListener) -> Result<(), CaError> {
        let address = listener
            .local_addr()
            .map_err(|error| CaError::Tls(error.to_string()))?;
        let identity = Identity::new(&self, address.ip())?;
        serve(listener, identity, self.router()).await;
        Ok(())
    }
}

/// Serves `router` over TLS as `identity` until the future is dropped. Clients without TLS
/// get the revocation lists and the root alone.
pub async fn serve(listener: TcpListener, mut identity: Identity, router: Router) {
    let plain = identity.server.public_router();
    let tls: TlsConfig = Box::new(move || identity.config());
    Connections::new(Limits::default())
        .serve_both(Socket::Tcp(listener), Some(tls), router, Some(plain))
        .await;
}
