//! Connections to hosts, and their addresses for the HTTP client: by the configured resolver,
//! else by the system.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tokio::net::TcpStream;
use tower_service::Service;

use super::lookup::Resolver;

impl Resolver {
    /// Connects to a host, or to an address in brackets or without.
    ///
    /// # Errors
    /// Those of the look-up, else of the last address.
    pub(crate) async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let addresses = self.hosts(host, port).await?;
        let stream = TcpStream::connect(addresses.as_slice()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The same for `HOST:PORT`.
    ///
    /// # Errors
    /// As those of [`connect`](Self::connect).
    pub(crate) async fn connect_to(&self, address: &str) -> io::Result<TcpStream> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let port = port.parse().map_err(io::Error::other)?;
        self.connect(host, port).await
    }
}

/// Looks up a host of a URL.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostResolver(pub(crate) Resolver);

impl Service<Name> for HostResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, host: Name) -> Self::Future {
        let resolver = self.0.clone();
        // The client sets the port.
        Box::pin(async move { Ok(resolver.hosts(host.as_str(), 0).await?.into_iter()) })
    }
}
