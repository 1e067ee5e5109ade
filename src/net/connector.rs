//! Connections to the servers of URLs, directly or through a proxy, for a pooling client.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::Stream;
use super::dns::host::HostResolver;
use super::dns::lookup::Resolver;
use super::proxy::Proxies;

/// Connects to the host and port of a URL.
#[derive(Clone)]
pub(crate) struct Connector {
    direct: HttpConnector<HostResolver>,
    proxies: Arc<Proxies>,
    resolver: Resolver,
}

impl Connector {
    pub(crate) fn through(proxies: Arc<Proxies>, resolver: Resolver) -> Self {
        let mut direct = HttpConnector::new_with_resolver(HostResolver(resolver.clone()));
        direct.enforce_http(false);
        // A request is written in two parts: the second must not wait for the first to
        // be acknowledged.
        direct.set_nodelay(true);
        Self {
            direct,
            proxies,
            resolver,
        }
    }
}

/// A connection, perhaps through a proxy.
pub(crate) struct Way(TokioIo<Box<dyn Stream>>);

type AnyError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Way;
    type Error = AnyError;
    type Future = Pin<Box<dyn Future<Output = Result<Way, AnyError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), AnyError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let host = to.host().unwrap_or_default().to_owned();
        let proxy = match to.scheme_str() {
            // A proxy for https is not one for plain http (curl's rule).
            Some("http") => Ok(None),
            _ => self.proxies.to(&host),
        };
        match proxy.map(|proxy| proxy.cloned()) {
            Ok(None) => {
                let connecting = self.direct.call(to);
                Box::pin(async move {
                    let stream: Box<dyn Stream> = Box::new(connecting.await?.into_inner());
                    Ok(Way(TokioIo::new(stream)))
                })
            }
            Ok(Some(proxy)) => {
                let (port, resolver) = (to.port_u16().unwrap_or(443), self.resolver.clone());
                Box::pin(async move {
                    let tunnel = proxy.tunnel(&host, port, &resolver).await?;
                    Ok(Way(TokioIo::new(tunnel)))
                })
            }
            Err(why) => {
                let why = why.to_owned();
                Box::pin(async move { Err(why.into()) })
            }
        }
    }
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Way {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
