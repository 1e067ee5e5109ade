//! The TLS listener: it accepts, completes the handshake within a deadline, and
//! passes the decrypted stream to a [`Handler`].
//!
//! A silent client occupies one of a bounded number of connections for ten seconds.
//! Once stopped, the listener accepts no connection and waits for the open ones. It
//! never restarts for a new certificate: see [`super::credentials`].

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::credentials::Credentials;
use crate::net::sockets::BACKLOG;

const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// OpenConnections still open by then are cut: a stopped process must end.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// A connection after its handshake, decrypted.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// The most connections; any further one is closed at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// From one address.
    pub by_address: usize,
}

impl Default for Limits {
    /// A connection takes about 40 KiB; an office behind one address has hundreds.
    fn default() -> Self {
        Self {
            connections: 4096,
            by_address: 512,
        }
    }
}

/// Resolves when the listener is stopped.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Waits until the listener is stopped.
    pub async fn wait(&mut self) {
        // An error means that the listener is gone, so it has stopped.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

/// Serves decrypted connections.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Serves until the connection ends, and ends it soon after `stopping` resolves.
    async fn converse(&self, stream: Stream, peer: SocketAddr, stopping: Stopping);
}

/// A bound socket that is not served yet.
#[derive(Debug)]
pub struct Terminator {
    socket: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
}

impl Terminator {
    /// Binds `address`.
    ///
    /// # Errors
    /// When the address is in use or not permitted.
    pub fn bind(
        address: SocketAddr,
        credentials: &Arc<Credentials>,
        limits: Limits,
    ) -> io::Result<Self> {
        let config = credentials.server_config().map_err(io::Error::other)?;
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self {
            socket: socket.listen(BACKLOG)?,
            config,
            limits,
        })
    }

    /// The bound address, with the port that the system chose.
    ///
    /// # Errors
    /// When the system does not report it.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` resolves, then until the last connection ends. Dropping the
    /// future cuts all connections at once.
    pub async fn serve(self, handler: Arc<dyn Handler>, stop: impl Future<Output = ()>) {
        let (stopped, stopping) = watch::channel(false);
        let connections = Arc::new(OpenConnections::new(self.limits));
        let acceptor = TlsAcceptor::from(self.config);
        let mut conversations = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = conversations.join_next() => {}
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some(permit) = connections.admit(peer.ip()) {
                            let (acceptor, stopping) = (acceptor.clone(), Stopping(stopping.clone()));
                            conversations.spawn(converse(acceptor, stream, peer, handler.clone(), stopping, permit));
                        }
                    }
                    Err(error) => {
                        // Most likely out of file descriptors, which is temporary.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    }
                }
            }
        }
        drop(self.socket);
        stopped.send_replace(true);
        let ended = async { while conversations.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_DEADLINE, ended).await.is_err() {
            tracing::warn!("cut the connections that did not end in time");
        }
    }
}

async fn converse(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    handler: Arc<dyn Handler>,
    stopping: Stopping,
    permit: Permit,
) {
    // Only latency depends on it, so an error is ignored.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream));
    // Any client can make a handshake fail; logging it would flood the log.
    if let Ok(Ok(stream)) = handshake.await {
        handler.converse(stream, peer, stopping).await;
    }
    drop(permit);
}

/// The open connections, in all and by address.
struct OpenConnections {
    all: Arc<Semaphore>,
    each: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A permit for one connection, released when dropped.
struct Permit {
    connections: Arc<OpenConnections>,
    address: IpAddr,
    _one_of_all: OwnedSemaphorePermit,
}

impl OpenConnections {
    fn new(limits: Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            each: limits.by_address,
            by_address: Mutex::default(),
        }
    }

    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Permit> {
        let one_of_all = self.all.clone().try_acquire_owned().ok()?;
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Permit {
            connections: self.clone(),
            address,
            _one_of_all: one_of_all,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut by_address = self
            .connections
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::AsyncReadExt;
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;
    use crate::tls::fixture::{Authority, Echo, echoes, identifier, lineage, publisher, serve};

    fn published(authority: &Authority) -> Arc<Credentials> {
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        publisher
            .publish(&lineage("example.com"), &authority.bundle(&["example.com"]))
            .unwrap();
        credentials
    }

    /// Waits until the peer closes the connection, with or without an error.
    async fn closed(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }

    #[tokio::test(start_paused = true)]
    async fn silent_client_is_cut_at_the_deadline_and_blocks_no_other() {
        let authority = Authority::new();
        let limits = Limits {
            connections: 9,
            by_address: 9,
        };
        let address = serve(&published(&authority), limits);
        let begun = Instant::now();
        let mut stalled = Vec::new();
        for _ in 0..8 {
            stalled.push(TcpStream::connect(address).await.unwrap());
        }
        let name = identifier("example.com");
        let (mut served, _) = authority.dialer().connect(address, &name).await.unwrap();
        assert!(echoes(&mut served).await);
        for stream in &mut stalled {
            closed(stream).await;
        }
        let waited = begun.elapsed();
        assert!(waited >= HANDSHAKE_DEADLINE, "{waited:?}");
        assert!(waited < HANDSHAKE_DEADLINE * 2, "{waited:?}");
        assert!(
            echoes(&mut served).await,
            "the deadline is only for the handshake"
        );
    }

    #[tokio::test]
    async fn connection_above_the_limit_is_closed_until_a_permit_is_released() {
        let authority = Authority::new();
        for (connections, by_address) in [(2, 9), (9, 2)] {
            let limits = Limits {
                connections,
                by_address,
            };
            let address = serve(&published(&authority), limits);
            let (dialer, name) = (authority.dialer(), identifier("example.com"));
            let (first, _) = dialer.connect(address, &name).await.unwrap();
            let (mut second, _) = dialer.connect(address, &name).await.unwrap();
            assert!(dialer.connect(address, &name).await.is_err());
            drop(first);
            let again = async { while dialer.connect(address, &name).await.is_err() {} };
            let patience = Duration::from_secs(20);
            tokio::time::timeout(patience, again).await.unwrap();
            assert!(echoes(&mut second).await);
        }
    }

    #[tokio::test]
    async fn stopped_listener_accepts_no_connection_and_waits_for_open_ones() {
        let authority = Authority::new();
        let local = "127.0.0.1:0".parse().unwrap();
        let terminator =
            Terminator::bind(local, &published(&authority), Limits::default()).unwrap();
        let address = terminator.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(terminator.serve(Arc::new(Echo), async {
            let _ = stopped.await;
        }));
        let (dialer, name) = (authority.dialer(), identifier("example.com"));
        let (mut stream, _) = dialer.connect(address, &name).await.unwrap();
        assert!(echoes(&mut stream).await);
        stop.send(()).unwrap();
        // The handler closes its stream, then the listener ends.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        serving.await.unwrap();
        assert!(matches!(
            dialer.connect(address, &name).await,
            Err(crate::tls::dialer::DialError::Connect(_))
        ));
    }

    /// Ignores the stop and never ends.
    struct NeverEnds;

    #[async_trait]
    impl Handler for NeverEnds {
        async fn converse(&self, _stream: Stream, _peer: SocketAddr, _stopping: Stopping) {
            pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_cut_when_it_does_not_end() {
        let authority = Authority::new();
        let local = "127.0.0.1:0".parse().unwrap();
        let terminator =
            Terminator::bind(local, &published(&authority), Limits::default()).unwrap();
        let address = terminator.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(terminator.serve(Arc::new(NeverEnds), async {
            let _ = stopped.await;
        }));
        let name = identifier("example.com");
        let _open = authority.dialer().connect(address, &name).await.unwrap();
        stop.send(()).unwrap();
        let begun = Instant::now();
        serving.await.unwrap();
        assert!(begun.elapsed() >= STOP_DEADLINE);
    }
}
