//! HTTP to the CA: https only, bounded in time and size, no redirects, and a
//! pool of the nonces that every reply carries (RFC 8555 section 6.5).
//!
//! instant-acme spends a `newNonce` request wherever it has lost track of its
//! nonce. Here nonces are taken off each reply into one pool, and its `HEAD`
//! is answered out of that pool, so that one is fetched only when none is left.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use thiserror::Error as ThisError;

use super::error::printable;

/// The whole of one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(30);
/// A chain of ten certificates is 20 KiB; a directory is smaller.
const LARGEST_BODY: usize = 1 << 20;
const NONCE: &str = "replay-nonce";
/// Nonces live for hours at most, and no flow has more in flight.
const POOLED_NONCES: usize = 64;
/// Asked for by [`instant_acme::Account::renewal_info`], which fails without.
const DEFAULT_RETRY_AFTER: HeaderValue = HeaderValue::from_static("21600");

/// Why there is no usable reply.
#[derive(Debug, ThisError)]
pub(super) enum TransportError {
    #[error("{0}")]
    Io(String),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("the CA is not available: HTTP {status}")]
    Unavailable { status: u16 },
    #[error("HTTP {status} with `{content_type}` where JSON or PEM belongs")]
    NotAcme { status: u16, content_type: String },
    #[error("a redirect (HTTP {0}), which ACME does not use")]
    Redirect(u16),
    #[error("a body of more than 1 MiB, or one that was cut off")]
    Body,
    #[error("{0}")]
    Setup(String),
}

#[derive(Clone)]
pub(super) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    nonces: Mutex<Vec<HeaderValue>>,
    retry_after: Mutex<Option<Duration>>,
}

impl Transport {
    /// Trusts the public roots that are built in, and those of `extra_roots`
    /// (PEM).
    pub(super) fn new(extra_roots: Option<&[u8]>) -> Result<Self, TransportError> {
        let mut roots =
            rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        for root in extra_roots
            .into_iter()
            .flat_map(CertificateDer::pem_slice_iter)
        {
            let root = root
                .map_err(|_| TransportError::Setup("the CA's root is not readable PEM".into()))?;
            roots.add(root).map_err(|error| {
                TransportError::Setup(format!("the CA's root is not usable: {error}"))
            })?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| TransportError::Setup(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            shared: Arc::default(),
        })
    }

    /// The `Retry-After` of the last reply, if it had one in seconds.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        *lock(&self.shared.retry_after)
    }

    async fn send(
        self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, TransportError> {
        if request.method() == Method::HEAD
            && let Some(nonce) = lock(&self.shared.nonces).pop()
        {
            return Ok(with_nonce(nonce));
        }
        let wants_nonce = request.method() == Method::HEAD;
        let (mut parts, body) = request.into_parts();
        parts.headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("certs/", env!("CARGO_PKG_VERSION"))),
        );
        let body = body
            .collect()
            .await
            .map_or_else(|never| match never {}, |body| body.to_bytes());
        let request = Request::from_parts(parts, Full::new(body));
        let reply = self
            .client
            .request(request)
            .await
            .map_err(|error| TransportError::Io(chain(&error)))?;
        let (mut parts, body) = reply.into_parts();
        let nonce = parts.headers.remove(NONCE);
        let body = Limited::new(body, LARGEST_BODY)
            .collect()
            .await
            .map_err(|_| TransportError::Body)?;
        self.note(&mut parts.headers);
        match nonce {
            Some(nonce) if wants_nonce => return Ok(with_nonce(nonce)),
            Some(nonce) => {
                let mut pool = lock(&self.shared.nonces);
                pool.truncate(POOLED_NONCES - 1);
                pool.push(nonce);
            }
            None => {}
        }
        screen(parts.status, &parts.headers)?;
        Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
    }

    fn note(&self, headers: &mut http::HeaderMap) {
        let seconds = headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        *lock(&self.shared.retry_after) = seconds.map(Duration::from_secs);
        headers.entry(RETRY_AFTER).or_insert(DEFAULT_RETRY_AFTER);
    }
}

impl HttpClient for Transport {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let sent = self.clone().send(request);
        Box::pin(async move {
            match tokio::time::timeout(DEADLINE, sent).await {
                Ok(Ok(reply)) => Ok(BytesResponse::from(reply)),
                Ok(Err(error)) => Err(Error::Other(Box::new(error))),
                Err(_) => Err(Error::Other(Box::new(TransportError::TimedOut(DEADLINE)))),
            }
        })
    }
}

/// Lets through what ACME knows: success, and problem documents.
fn screen(status: http::StatusCode, headers: &http::HeaderMap) -> Result<(), TransportError> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    if status.is_redirection() {
        return Err(TransportError::Redirect(status.as_u16()));
    }
    if content_type.contains("html") {
        let (status, content_type) = (status.as_u16(), printable(content_type));
        return Err(if status >= 500 {
            TransportError::Unavailable { status }
        } else {
            TransportError::NotAcme {
                status,
                content_type,
            }
        });
    }
    if status.is_server_error() && !content_type.starts_with("application/problem+json") {
        return Err(TransportError::Unavailable {
            status: status.as_u16(),
        });
    }
    Ok(())
}

fn with_nonce(nonce: HeaderValue) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::default());
    reply.headers_mut().insert(NONCE, nonce);
    reply
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    printable(&text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
