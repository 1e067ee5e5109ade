//! The two ways to a CA: [`Https`] over the network, and [`InProcess`] into a
//! service of this process (the embedded CA) without a socket.
//!
//! Over the network: https only, the public roots that are built in and those
//! that the user adds, bounded in time and size, no redirects.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::CertificateError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use tower_service::Service;

use super::error::{ExchangeError, OutsideValidity};
use super::exchange::Exchange;
use crate::text::printable;
use crate::time::Timestamp;

/// The whole of one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(30);
/// A chain of ten certificates is 20 KiB; a directory is smaller.
const LARGEST_BODY: usize = 1 << 20;

/// The CA at the other end of a network.
pub struct Https {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Https {
    /// Trusts the public roots that are built in, and those of `extra_roots`
    /// (PEM); nothing is sent yet.
    ///
    /// # Errors
    /// When the extra roots are not readable.
    pub fn new(extra_roots: Option<&[u8]>) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots(extra_roots)?)
            .with_no_client_auth();
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(connector());
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(https),
        })
    }
}

/// A request is written in two parts: the second must not wait for the first
/// to be acknowledged.
fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector
}

fn roots(extra: Option<&[u8]>) -> Result<rustls::RootCertStore, String> {
    let mut roots =
        rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let Some(pem) = extra else {
        return Ok(roots);
    };
    let built_in = roots.len();
    for root in CertificateDer::pem_slice_iter(pem) {
        let root = root.map_err(|_| "the CA's root is not readable PEM")?;
        roots
            .add(root)
            .map_err(|error| format!("the CA's root is not usable: {error}"))?;
    }
    if roots.len() == built_in {
        return Err("there is no certificate in the file of the CA's root".into());
    }
    Ok(roots)
}

#[async_trait]
impl Exchange for Https {
    async fn exchange(
        &self,
        mut request: Request<Bytes>,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let agent = HeaderValue::from_static(concat!("certs/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let exchanged = async {
            let reply = self.client.request(request.map(Full::new)).await;
            whole(reply.map_err(|error| sort(&error))?).await
        };
        tokio::select! {
            biased;
            ended = exchanged => ended,
            () = deadline() => Err(ExchangeError::TimedOut(DEADLINE)),
        }
    }
}

/// By the second: a process that was stopped or moved meanwhile has not looked
/// for its reply, which may have come.
async fn deadline() {
    for _ in 0..DEADLINE.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The CA within this process: anything that serves requests as an axum
/// router does. It has no deadline: what it serves is our own.
pub struct InProcess<S>(pub S);

#[async_trait]
impl<S, B> Exchange for InProcess<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync,
    S::Error: std::fmt::Display,
    S::Future: Send,
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let mut service = self.0.clone();
        let broken = |error: S::Error| ExchangeError::Broken(printable(&error.to_string()));
        std::future::poll_fn(|context| service.poll_ready(context))
            .await
            .map_err(broken)?;
        whole(service.call(request.map(Full::new)).await.map_err(broken)?).await
    }
}

async fn whole<B>(reply: Response<B>) -> Result<Response<Bytes>, ExchangeError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (parts, body) = reply.into_parts();
    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let body =
        body.map_err(
            |error| match error.downcast_ref::<http_body_util::LengthLimitError>() {
                Some(_) => ExchangeError::TooLarge(LARGEST_BODY),
                None => ExchangeError::Broken(printable(&chain(error.as_ref()))),
            },
        )?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// Tells a name that does not resolve, a port that is closed and a server that
/// is not trusted apart: each has another remedy.
fn sort(error: &hyper_util::client::legacy::Error) -> ExchangeError {
    let text = printable(&chain(error));
    if let Some(tls) = tls_error(error) {
        return match tls {
            rustls::Error::InvalidCertificate(reason) => match outside_validity(reason) {
                Some(outside) => outside.into(),
                None => ExchangeError::Untrusted(printable(&reason.to_string())),
            },
            other => ExchangeError::Tls(printable(&other.to_string())),
        };
    }
    if text.contains("dns error") {
        return ExchangeError::Unresolved(text);
    }
    if error.is_connect() {
        return ExchangeError::Connect(printable(&innermost(error).to_string()));
    }
    ExchangeError::Broken(text)
}

/// What is wrong with no more than the time of it.
fn outside_validity(reason: &CertificateError) -> Option<OutsideValidity> {
    let at = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_seconds(seconds)
    };
    match *reason {
        CertificateError::ExpiredContext { time, not_after } => Some(OutsideValidity::Expired {
            ours: at(time),
            end: at(not_after),
        }),
        CertificateError::NotValidYetContext { time, not_before } => {
            Some(OutsideValidity::NotYetValid {
                ours: at(time),
                begin: at(not_before),
            })
        }
        _ => None,
    }
}

fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref() {
            return Some(tls);
        }
        // An io::Error shows its content's source, not its content.
        let content = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match content {
            Some(content) => Some(content),
            None => error.source(),
        };
    }
    None
}

fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_router_of_this_process_answers_within_bounds() {
        use axum::routing::get;
        let router = axum::Router::new()
            .route("/small", get(async || "fine"))
            .route("/large", get(async || vec![b'x'; LARGEST_BODY + 1]));
        let ca = InProcess(router);
        let ask = |path: &str| {
            let request = Request::get(format!("https://ca.example{path}")).body(Bytes::new());
            ca.exchange(request.unwrap())
        };
        assert_eq!(ask("/small").await.unwrap().body(), "fine");
        let large = ask("/large").await;
        assert!(
            matches!(large, Err(ExchangeError::TooLarge(_))),
            "{large:?}"
        );
    }

    #[tokio::test]
    async fn a_closed_port_and_plain_http_are_told_apart() {
        let https = Https::new(None).unwrap();
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = closed.local_addr().unwrap().port();
        drop(closed);
        let ask = |url: String| https.exchange(Request::get(url).body(Bytes::new()).unwrap());
        let refused = ask(format!("https://127.0.0.1:{port}/")).await;
        assert!(
            matches!(refused, Err(ExchangeError::Connect(_))),
            "{refused:?}"
        );
        let plain = ask(format!("http://127.0.0.1:{port}/")).await;
        assert!(plain.is_err(), "{plain:?}");
    }

    /// Where somebody shows this certificate, once.
    async fn shown(made: &rcgen::Certificate, key: &rcgen::KeyPair) -> u16 {
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key.unwrap())
            .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let _ = acceptor.accept(stream).await;
        });
        port
    }

    async fn refused(port: u16, roots: Option<&[u8]>) -> ExchangeError {
        let request = Request::get(format!("https://localhost:{port}/")).body(Bytes::new());
        let https = Https::new(roots).unwrap();
        https.exchange(request.unwrap()).await.unwrap_err()
    }

    #[tokio::test]
    async fn an_unknown_root_is_told_with_its_remedy() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let port = shown(&made.cert, &made.signing_key).await;
        let error = refused(port, None).await;
        assert!(matches!(error, ExchangeError::Untrusted(_)), "{error:?}");
        let cause = super::super::Cause::from(error);
        assert!(cause.hint().contains("--ca-root"), "{}", cause.hint());
    }

    #[tokio::test]
    async fn a_certificate_that_is_over_or_not_yet_valid_is_told_with_the_clock() {
        let key = rcgen::KeyPair::generate().unwrap();
        let year = |year| rcgen::date_time_ymd(year, 1, 1);
        for (from, to) in [(2001, 2002), (2998, 2999)] {
            let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
            (params.not_before, params.not_after) = (year(from), year(to));
            let made = params.self_signed(&key).unwrap();
            let port = shown(&made, &key).await;
            let error = refused(port, Some(made.pem().as_bytes())).await;
            let ExchangeError::OutsideValidity(outside) = &error else {
                panic!("{error:?}");
            };
            let bound = match outside {
                OutsideValidity::Expired { end, .. } => (2002, *end),
                OutsideValidity::NotYetValid { begin, .. } => (2998, *begin),
            };
            assert!([from, to].contains(&bound.0), "{error}");
            assert_eq!(bound.1, year(bound.0).into(), "{error}");
            let cause = super::super::Cause::from(error);
            let hint = cause.hint();
            assert!(hint.contains("this machine's clock"), "{hint}");
        }
    }

    #[test]
    fn roots_that_are_none_are_refused() {
        assert!(Https::new(Some(b"")).is_err());
        assert!(
            Https::new(Some(
                b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
            ))
            .is_err()
        );
    }
}
