//! The bounds of every listener for HTTP/1.1: the number of connections, in all and from
//! one network, and the time for a TLS handshake, for the head of a request and for a
//! connection.
//!
//! A listener for TLS may also answer clients that begin without it ([`Connections::serve_both`]).
//!
//! If there are too many connections, the client with the most loses one without a request
//! in progress ([`open`]): one that opens many idle connections cannot lock out others.

mod open;
mod progress;

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use axum::Router;
use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use tower_service::Service;

use self::open::{Full, Open, Stage};
use self::progress::{Progress, Reply, Watched};
use super::Stream;

/// The usual time for a TLS handshake.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Most likely the process is out of file descriptors, which passes.
const AFTER_ACCEPT_ERROR: Duration = Duration::from_millis(100);

/// The limit of open files in which all listeners of `certs run` find their places.
const USUAL_OPEN_FILES: usize = 1024;
/// A lasting error is logged this often.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// The bounds of one listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections on which a client has sent nothing yet, half of them from one network.
    pub(crate) silent: usize,
    /// The other open connections.
    pub(crate) connections: usize,
    /// Those from one address, or from one /64 of IPv6.
    pub(crate) by_address: usize,
    /// For the head of a request, and so for an idle connection.
    pub(crate) head: Duration,
    /// For a TLS handshake.
    pub(crate) handshake: Duration,
    /// For all that follows a handshake, or for a whole connection; [`Duration::MAX`] sets no limit.
    pub(crate) connection: Duration,
    /// The largest head of a request in bytes, at least hyper's 8 KiB.
    pub(crate) largest_head: usize,
}

impl Default for Limits {
    /// For clients that this process serves for as long as they like.
    fn default() -> Self {
        Self {
            silent: 256,
            connections: 256,
            by_address: 256,
            head: Duration::from_secs(30),
            handshake: HANDSHAKE_DEADLINE,
            connection: Duration::MAX,
            largest_head: 64 * 1024,
        }
    }
}

impl Limits {
    /// The same, or fewer connections if this process may open few files.
    fn within(self, open_files: Option<u64>) -> Self {
        let files = open_files.and_then(|files| usize::try_from(files).ok());
        let files = files.unwrap_or(usize::MAX).min(USUAL_OPEN_FILES);
        let share = |most: usize| (most * files / USUAL_OPEN_FILES).max(2);
        Self {
            silent: share(self.silent),
            connections: share(self.connections),
            by_address: share(self.by_address),
            ..self
        }
    }
}

/// The other end of a connection, an extension of every request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    /// The address of a TCP connection.
    address: Option<IpAddr>,
    /// The process at a Unix socket.
    pub(crate) process: Option<UCred>,
    progress: Arc<Progress>,
}

/// A bound socket.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// An accepted connection, before anything is read.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        let mut peer = Peer::default();
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                peer.address = Some(address.ip());
                // Only latency depends on it, so an error is ignored.
                let _ = stream.set_nodelay(true);
                Ok((Accepted::Tcp(stream), peer))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                peer.process = stream.peer_cred().ok();
                Ok((Accepted::Unix(stream), peer))
            }
        }
    }
}

impl Accepted {
    /// Waits until the client has sent something or has closed the connection.
    async fn has_begun(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    /// Whether the client, which has begun, begins as in a TLS handshake.
    async fn begins_tls(&self) -> bool {
        const HANDSHAKE_RECORD: u8 = 22;
        let mut first = [0];
        match self {
            Self::Tcp(stream) => {
                let seen = stream.peek(&mut first).await;
                !matches!(seen, Ok(1)) || first[0] == HANDSHAKE_RECORD
            }
            Self::Unix(_) => true,
        }
    }

    fn into_stream(self) -> Box<dyn Stream> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

/// What a handshake for this server name waits for.
pub(crate) type Before = Arc<dyn Fn(String) -> BoxFuture<'static, ()> + Send + Sync>;

/// The configuration of TLS for the next connection.
pub(crate) type TlsConfig = Box<dyn FnMut() -> Arc<ServerConfig> + Send>;

/// Serves `router` within the usual bounds until the future is dropped.
pub(crate) async fn serve(socket: Socket, tls: Option<TlsConfig>, router: Router) {
    serve_within(Limits::default(), socket, tls, router).await;
}

/// The same within other bounds.
pub(crate) async fn serve_within(
    limits: Limits,
    socket: Socket,
    tls: Option<TlsConfig>,
    router: Router,
) {
    let connections = Connections::new(limits);
    connections.serve(socket, tls, router).await;
}

/// The open connections of one or more sockets. Dropping the last reference closes them.
pub(crate) struct Connections {
    limits: Limits,
    /// What each handshake waits for.
    before: Option<Before>,
    open: Mutex<Open>,
}

impl Connections {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Arc::new(Self {
            limits: limits.within(open_files.current),
            before: None,
            open: Mutex::default(),
        })
    }

    /// The same; each handshake waits for `before` once the client has named the server.
    pub(crate) fn after(limits: Limits, before: Before) -> Arc<Self> {
        let mut connections = Self::new(limits);
        if let Some(own) = Arc::get_mut(&mut connections) {
            own.before = Some(before);
        }
        connections
    }

    /// Serves `router` on `socket` until the future is dropped.
    pub(crate) async fn serve(
        self: Arc<Self>,
        socket: Socket,
        tls: Option<TlsConfig>,
        router: Router,
    ) {
        self.serve_both(socket, tls, router, None).await;
    }

    /// The same; clients that begin without TLS get `plain`, if there is one.
    pub(crate) async fn serve_both(
        self: Arc<Self>,
        socket: Socket,
        mut tls: Option<TlsConfig>,
        router: Router,
        plain: Option<Router>,
    ) {
        let mut logged: Option<Instant> = None;
        loop {
            let (stream, peer) = match socket.accept().await {
                Ok(accepted) => accepted,
                // The client went away while it waited.
                Err(error) if is_of_client(&error) => continue,
                Err(error) => {
                    if logged.is_none_or(|at| at.elapsed() >= LOGGED_EVERY) {
                        tracing::warn!(%error, "a connection could not be accepted");
                        logged = Some(Instant::now());
                    }
                    tokio::time::sleep(AFTER_ACCEPT_ERROR).await;
                    continue;
                }
            };
            let acceptor = tls.as_mut().map(|config| config());
            let (limits, router, plain) = (self.limits, router.clone(), plain.clone());
            let before = self.before.clone();
            self.admit(peer.clone(), async move |slot: Slot| {
                let within = match acceptor {
                    Some(_) => limits.head.min(limits.handshake),
                    None => limits.head,
                };
                let begun = tokio::time::timeout(within, stream.has_begun()).await;
                if !matches!(begun, Ok(Ok(()))) || slot.begin().is_err() {
                    return;
                }
                // A connection closed for this one first returns its memory.
                tokio::task::yield_now().await;
                // Boxed: a silent connection must not take the memory for it.
                Box::pin(async {
                    let (acceptor, router) = match plain {
                        Some(plain) if !stream.begins_tls().await => (None, plain),
                        _ => (acceptor, router),
                    };
                    let stream = match acceptor {
                        // Boxed: a connection without TLS must not take the memory for it.
                        Some(config) => {
                            let stream = stream.into_stream();
                            Box::pin(secured(config, before, stream, limits.handshake)).await
                        }
                        None => Some(stream.into_stream()),
                    };
                    // Nothing follows some handshakes, also if it has arrived with the last part.
                    let may_converse = limits.connection > Duration::ZERO;
                    if let Some(stream) = stream.filter(|_| may_converse) {
                        converse(stream, limits, peer, router).await;
                    }
                })
                .await;
            });
        }
    }

    /// Runs `conversation` with `peer` in a task, if there is room or a connection to close.
    fn admit<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        peer: Peer,
        conversation: impl FnOnce(Slot) -> F,
    ) {
        let mut open = self.open();
        let Ok(surplus) = open.make_room(&self.limits, Stage::Silent, &peer) else {
            return;
        };
        let id = open.next_id();
        let slot = Slot(Arc::downgrade(self), id);
        // Spawned under the lock, so that it is listed before it can end.
        let task = tokio::spawn(conversation(slot));
        open.insert(id, peer, task.abort_handle());
        drop(open);
        if let Some(surplus) = surplus {
            surplus.abort();
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        for task in self.open().tasks() {
            task.abort();
        }
    }
}

/// The stream after a handshake. Any client can make one fail; logging it would flood the log.
async fn secured(
    config: Arc<ServerConfig>,
    before: Option<Before>,
    stream: Box<dyn Stream>,
    within: Duration,
) -> Option<Box<dyn Stream>> {
    let Some(before) = before else {
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = tokio::time::timeout(within, handshake).await.ok()?.ok()?;
        return Some(Box::new(stream));
    };
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let hello = tokio::time::timeout(within, hello).await.ok()?.ok()?;
    let name = hello.client_hello().server_name().map(str::to_owned);
    before(name.unwrap_or_default()).await;
    let handshake = tokio::time::timeout(within, hello.into_stream(config));
    Some(Box::new(handshake.await.ok()?.ok()?))
}

/// Removes a connection from the list when dropped.
struct Slot(Weak<Connections>, u64);

impl Slot {
    /// Its client has sent something.
    fn begin(&self) -> Result<(), Full> {
        let connections = self.0.upgrade().ok_or(Full)?;
        let surplus = connections.open().begin(self.1, &connections.limits)?;
        if let Some(surplus) = surplus {
            surplus.abort();
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(connections) = self.0.upgrade() {
            connections.open().remove(self.1);
        }
    }
}

fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionReset)
}

/// Serves `router` on one connection.
pub(crate) async fn converse(stream: impl Stream, limits: Limits, peer: Peer, router: Router) {
    let service = service_fn(|mut request: Request<Incoming>| {
        peer.progress.set(Progress::ANSWERING);
        request.extensions_mut().insert(peer.clone());
        let (reply, progress) = (router.clone().call(request), peer.progress.clone());
        async {
            let reply = reply.await?;
            Ok::<_, Infallible>(reply.map(|body| Reply { body, progress }))
        }
    });
    let stream = Watched {
        stream,
        progress: peer.progress.clone(),
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.largest_head)
        .serve_connection(TokioIo::new(stream), service);
    // The error of a client's connection is not logged: anyone could fill the log.
    let _ = tokio::time::timeout(limits.connection, connection).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::net::http::{Longest, Origin};
    use crate::tls::fakes::{Authority, identifier, is_served, lineage, listener, publisher};

    const LIMITS: Limits = Limits {
        silent: 64,
        connections: 128,
        by_address: 64,
        head: HANDSHAKE_DEADLINE,
        handshake: HANDSHAKE_DEADLINE,
        connection: Duration::MAX,
        largest_head: 8 * 1024,
    };

    #[tokio::test]
    async fn connection_is_removed_when_it_ends() {
        let connections = Connections::new(LIMITS);
        connections.admit(Peer::default(), async |_| ());
        while connections.open().tasks().count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the listener closes the connection, with or without an error.
    async fn closed(stream: &mut TcpStream) {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_sends_nothing_is_cut_at_the_deadline_and_blocks_no_other() {
        let authority = Authority::new();
        let (publisher, credentials, _) = publisher(&[&["example.com"]]);
        let bundle = authority.bundle(&["example.com"]);
        publisher.publish(&lineage("example.com"), &bundle).unwrap();
        let (listener, address) = listener();
        let router = Router::new().fallback(async || "pong");
        let serving = tokio::spawn(credentials.serve(listener, router).unwrap());
        let begun = Instant::now();
        let mut stalled = Vec::new();
        for _ in 0..8 {
            stalled.push(TcpStream::connect(address).await.unwrap());
        }
        let name = identifier("example.com");
        let (mut served, _) = authority.dialer().connect(address, &name).await.unwrap();
        assert!(is_served(&mut served).await);
        for stream in &mut stalled {
            closed(stream).await;
        }
        let waited = begun.elapsed();
        assert!(waited >= HANDSHAKE_DEADLINE, "{waited:?}");
        assert!(waited < HANDSHAKE_DEADLINE * 2, "{waited:?}");
        assert!(
            is_served(&mut served).await,
            "the deadline is only for the handshake"
        );
        // A dropped listener closes every connection and accepts no other.
        serving.abort();
        assert!(serving.await.is_err());
        assert!(!is_served(&mut served).await);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn handshakes_without_an_end_free_their_slots_at_the_deadline() {
        let (_publisher, credentials, _) = publisher(&[&["example.com"]]);
        let (listener, address) = listener();
        let config = credentials.server_config().unwrap();
        let connections = Connections::new(LIMITS);
        let tls: TlsConfig = Box::new(move || config.clone());
        let serving = connections.clone();
        tokio::spawn(serving.serve(Socket::Tcp(listener), Some(tls), Router::new()));
        let count = || connections.open().tasks().count();
        let mut stalled = Vec::new();
        for opened in 1..=8 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // The head of a TLS record that never comes.
            stream.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
            stalled.push(stream);
            while count() < opened {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(HANDSHAKE_DEADLINE - Duration::from_secs(1)).await;
        assert_eq!(count(), 8);
        for stream in &mut stalled {
            closed(stream).await;
        }
        while count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn dropped_server_closes_connections_with_and_without_a_request() {
        let (listener, address) = listener();
        let router = Router::new().fallback(std::future::pending::<()>);
        let serving = tokio::spawn(serve(Socket::Tcp(listener), None, router));
        let mut idle = TcpStream::connect(address).await.unwrap();
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let still_open = tokio::time::timeout(Duration::from_millis(50), closed(&mut asking));
        assert!(still_open.await.is_err());
        serving.abort();
        closed(&mut idle).await;
        closed(&mut asking).await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn slow_reader_of_a_reply_is_not_closed_for_another() {
        // More than the buffers of the kernel hold.
        const LENGTH: usize = 32 << 20;
        let (listener, address) = listener();
        let connections = Connections::new(Limits {
            connections: 2,
            ..LIMITS
        });
        let router = Router::new().fallback(async || vec![b'x'; LENGTH]);
        let serving = connections.clone();
        tokio::spawn(serving.serve(Socket::Tcp(listener), None, router));
        let mut slow = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        slow.write_all(request).await.unwrap();
        let first = slow.read_u8().await.unwrap();
        let mut others = Vec::new();
        for _ in 0..8 {
            let mut other = TcpStream::connect(address).await.unwrap();
            // Most are refused.
            let _ = other.write_all(request).await;
            let _ = other.read_u8().await;
            others.push(other);
        }
        let mut reply = vec![first];
        while !reply.ends_with(b"\r\n\r\n") {
            reply.push(slow.read_u8().await.unwrap());
        }
        let read = slow.read_exact(&mut vec![0; LENGTH]).await;
        assert_eq!(read.unwrap(), LENGTH);
        // All is read, so this connection is idle, and the oldest one.
        while !connections.open().has_idle_request() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(open::SETTLED).await;
        for _ in 0..2 {
            let mut other = TcpStream::connect(address).await.unwrap();
            other.write_all(b"G").await.unwrap();
            others.push(other);
        }
        closed(&mut slow).await;
    }

    #[test]
    fn process_with_few_files_keeps_fewer_connections() {
        assert_eq!(LIMITS.within(None).connections, LIMITS.connections);
        assert_eq!(LIMITS.within(Some(1 << 20)).silent, LIMITS.silent);
        let few = LIMITS.within(Some(256));
        assert_eq!((few.connections, few.by_address), (32, 16));
    }

    #[test]
    fn only_errors_of_this_process_pause_the_listener() {
        use io::ErrorKind::{ConnectionAborted, ConnectionReset};
        for of_client in [ConnectionAborted, ConnectionReset] {
            assert!(is_of_client(&of_client.into()), "{of_client}");
        }
        let no_descriptors = rustix::io::Errno::MFILE.into();
        assert!(!is_of_client(&no_descriptors), "{no_descriptors}");
    }

    #[tokio::test]
    async fn request_has_the_process_at_the_unix_socket() {
        use axum::extract::Extension;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let socket = Socket::Unix(UnixListener::bind(&path).unwrap());
        let pid = async |Extension(peer): Extension<Peer>| {
            let pid = peer.process.and_then(|process| process.pid());
            pid.unwrap_or_default().to_string()
        };
        let router = Router::new().fallback(pid);
        tokio::spawn(serve(socket, None, router));
        let request = Request::get("/").header("host", "x");
        let request = request.body(http_body_util::Full::default()).unwrap();
        let origin = Origin::Unix(path);
        let reply = origin
            .send(request, Duration::from_secs(20), Longest::Whole(99))
            .await;
        let own = std::process::id().to_string();
        assert_eq!(reply.unwrap().1, own.as_bytes());
    }
}
