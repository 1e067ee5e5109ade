//! The TLS listener: accepts, shakes hands within a deadline, and gives the
//! decrypted stream to a [`Handler`].
//!
//! A stranger who connects and says nothing costs one bounded place for ten
//! seconds. Told to stop, it takes no new connection and lets those it has
//! come to their end. A new certificate needs neither: see
//! [`super::credentials`].

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

const BACKLOG: u32 = 1024;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// What is not over by then is cut: a process that was told to stop must end.
const LAST_WORDS: Duration = Duration::from_secs(8);
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// A connection after its handshake, decrypted.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// How many connections are taken; one too many is closed at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In all.
    pub connections: usize,
    /// From one address.
    pub by_address: usize,
}

impl Default for Limits {
    /// Each costs some 40 KiB; an office behind one address has hundreds.
    fn default() -> Self {
        Self {
            connections: 4096,
            by_address: 512,
        }
    }
}

/// Resolves when the listener was told to stop.
#[derive(Clone, Debug)]
pub struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Waits for it.
    pub async fn wait(&mut self) {
        // A listener that is gone has stopped as well.
        let _ = self.0.wait_for(|stopping| *stopping).await;
    }
}

/// Whoever talks on decrypted connections.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Talks until the connection ends, and soon ends it once `stopping`
    /// resolves.
    async fn converse(&self, stream: Stream, peer: SocketAddr, stopping: Stopping);
}

/// A socket that is bound and not served yet.
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
    /// When it is not to be had.
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

    /// The address that is listened on, with the port the system chose.
    ///
    /// # Errors
    /// As the system has them.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Serves until `stop` resolves, and then until the last conversation is
    /// over. Dropping the future cuts everything at once.
    pub async fn serve(self, handler: Arc<dyn Handler>, stop: impl Future<Output = ()>) {
        let (tell, told) = watch::channel(false);
        let caps = Arc::new(Caps::new(self.limits));
        let acceptor = TlsAcceptor::from(self.config);
        let mut conversations = JoinSet::new();
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                Some(_) = conversations.join_next() => {}
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => {
                        if let Some(place) = caps.admit(peer.ip()) {
                            let (acceptor, stopping) = (acceptor.clone(), Stopping(told.clone()));
                            conversations.spawn(converse(acceptor, stream, peer, handler.clone(), stopping, place));
                        }
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: that passes.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    }
                }
            }
        }
        drop(self.socket);
        tell.send_replace(true);
        let over = async { while conversations.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_WORDS, over).await.is_err() {
            tracing::warn!("connections that did not end were cut");
        }
    }
}

async fn converse(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    handler: Arc<dyn Handler>,
    stopping: Stopping,
    place: Place,
) {
    // Latency only; a stream without it works as well.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream));
    // What a stranger's handshake failed with is not worth a log line.
    if let Ok(Ok(stream)) = handshake.await {
        handler.converse(stream, peer, stopping).await;
    }
    drop(place);
}

/// How many connections there are, in all and by address.
struct Caps {
    all: Arc<Semaphore>,
    each: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the connections, given back when dropped.
struct Place {
    caps: Arc<Caps>,
    address: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Caps {
    fn new(limits: Limits) -> Self {
        Self {
            all: Arc::new(Semaphore::new(limits.connections)),
            each: limits.by_address,
            by_address: Mutex::default(),
        }
    }

    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let count = by_address.entry(address).or_insert(0);
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Place {
            caps: self.clone(),
            address,
            _permit: permit,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut by_address = self
            .caps
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
