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
use crate::net::sockets::BACKLOG;

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
    place: Slot,
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
struct Slot {
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

    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
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
        Some(Slot {
            caps: self.clone(),
            address,
            _permit: permit,
        })
    }
}

impl Drop for Slot {
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

    /// The other end closes, in whatever manner.
    async fn closed(stream: &mut TcpStream) {
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_cut_at_the_deadline_and_keeps_nobody_out() {
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
            "the deadline is the handshake's alone"
        );
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_its_place_comes_back() {
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
    async fn told_to_stop_it_takes_nobody_and_waits_for_who_is_there() {
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
        // The handler was told, closed in good manners, and everything ends.
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        serving.await.unwrap();
        assert!(matches!(
            dialer.connect(address, &name).await,
            Err(crate::tls::dialer::DialError::Connect(_))
        ));
    }

    /// Talks for ever and heeds nobody.
    struct Deaf;

    #[async_trait]
    impl Handler for Deaf {
        async fn converse(&self, _stream: Stream, _peer: SocketAddr, _stopping: Stopping) {
            pending::<()>().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_conversation_that_does_not_end_is_cut() {
        let authority = Authority::new();
        let local = "127.0.0.1:0".parse().unwrap();
        let terminator =
            Terminator::bind(local, &published(&authority), Limits::default()).unwrap();
        let address = terminator.address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(terminator.serve(Arc::new(Deaf), async {
            let _ = stopped.await;
        }));
        let name = identifier("example.com");
        let _held = authority.dialer().connect(address, &name).await.unwrap();
        stop.send(()).unwrap();
        let begun = Instant::now();
        serving.await.unwrap();
        assert!(begun.elapsed() >= LAST_WORDS);
    }
}
