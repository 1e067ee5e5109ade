//! The CA on a socket: TLS with a certificate of its own, bounded in connections
//! and in time. Dropping the future of [`serve`] closes every connection.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response};
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{CaError, DAY, Server};
use crate::identifier::Identifier;
use crate::time::Timestamp;

const CONNECTIONS: usize = 256;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
const LIFETIME: Duration = Duration::from_secs(30 * 86_400);
/// The pause after a failed accept, for example without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The CA's own TLS certificate, for `localhost`, the loopback addresses and
/// the address listened on; renewed before it expires.
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
        let (config, renew_at) = make(server, &identifiers)?;
        Ok(Self {
            server: server.clone(),
            identifiers,
            renew_at,
            config,
        })
    }

    fn acceptor(&mut self) -> TlsAcceptor {
        if self.server.now() >= self.renew_at {
            match make(&self.server, &self.identifiers) {
                Ok((config, renew_at)) => (self.config, self.renew_at) = (config, renew_at),
                // The current certificate is still valid for days.
                Err(error) => tracing::error!(%error, "the CA's own certificate was not renewed"),
            }
        }
        TlsAcceptor::from(self.config.clone())
    }
}

fn make(
    server: &Server,
    identifiers: &[Identifier],
) -> Result<(Arc<ServerConfig>, Timestamp), CaError> {
    let now = server.now();
    let signed = server
        .0
        .authority
        .sign_own(identifiers, now + LIFETIME, now);
    let (key, chain_pem) = signed?;
    let failed = |error: &dyn Error| CaError::Tls(error.to_string());
    let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::try_from(key.serialize_der())
        .map_err(|error| CaError::Tls(error.to_owned()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| failed(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
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

/// Serves `service` over TLS as `identity` until the future is dropped. A
/// service that fails ends the connection without a reply.
pub async fn serve<S>(listener: TcpListener, mut identity: Identity, service: S)
where
    S: tower_service::Service<Request<hyper::body::Incoming>, Response = Response<Body>>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(permit) = permits.clone().acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (acceptor, service) = (identity.acceptor(), service.clone());
        connections.spawn(async move {
            converse(stream, acceptor, TowerToHyperService::new(service)).await;
            drop(permit);
        });
    }
}

async fn converse<S>(stream: TcpStream, acceptor: TlsAcceptor, service: S)
where
    S: Service<Request<hyper::body::Incoming>, Response = Response<Body>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
{
    // Small replies should not wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    let accepted = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await;
    let Ok(Ok(stream)) = accepted else {
        return;
    };
    // A connection error concerns only this client.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
