//! The addresses of hosts for the HTTP client: by the configured resolver, else by the system.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;

use super::lookup::Resolver;

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
