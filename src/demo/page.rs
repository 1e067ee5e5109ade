//! The one page behind our own listener in the demonstration.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use http::Response;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::tls::terminator::{Handler, Stopping, Stream};

const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Answers every request with the same page.
pub(super) struct Page;

#[async_trait]
impl Handler for Page {
    async fn converse(&self, stream: Stream, _peer: SocketAddr, mut stopping: Stopping) {
        let service = service_fn(|_| async {
            let page = Full::new(Bytes::from_static(b"served by certs\n"));
            Ok::<_, Infallible>(Response::new(page))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_DEADLINE)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = &mut connection => return,
            () = stopping.wait() => connection.as_mut().graceful_shutdown(),
        }
        // An error is counted by the client.
        let _ = connection.await;
    }
}
