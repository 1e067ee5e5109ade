//! The two ways to a CA: [`Https`] over the network, and [`InProcess`] into a
//! service of this process (the embedded CA) without a socket.
//!
//! Over the network: https only, perhaps through a proxy, with the public roots that are
//! built in, those of this machine and those that the user adds, bounded in time and size,
//! no redirects.

use std::error::Error;
use std::io;
use std::iter::successors;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderValue, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, ClientConfig};
use tower_service::Service;

use super::error::{ExchangeError, OutsideValidity};
use super::exchange::Exchange;
use crate::net::pool::{self, HttpsClient, Schemes};
use crate::net::proxy::{Proxies, ProxyError, Ways};
use crate::net::roots::SystemRoots;
use crate::net::secure;
use crate::text::printable;
use crate::time::Timestamp;

/// The whole of one request, connecting included.
const DEADLINE: Duration = Duration::from_secs(30);
/// A chain of ten certificates is 20 KiB; a directory is smaller.
const LARGEST_BODY: usize = 256 * 1024;

/// The CA at the other end of a network.
pub struct Https {
    tls: ClientConfig,
    ways: Arc<Ways>,
    /// The proxies of its last request, and the connections that lead through them.
    client: Mutex<(Arc<Proxies>, HttpsClient)>,
}

impl Https {
    /// Trusts the public roots that are built in, and those of `extra_roots`
    /// (PEM); nothing is sent yet.
    ///
    /// # Errors
    /// When the extra roots are not readable.
    pub fn new(extra_roots: Option<&[u8]>) -> Result<Self, String> {
        Self::through(Arc::default(), extra_roots, None)
    }

    /// The same by `ways`, and trusts the roots of this machine, too.
    ///
    /// # Errors
    /// When the extra roots are not readable.
    pub(crate) fn through(
        ways: Arc<Ways>,
        extra_roots: Option<&[u8]>,
        system: Option<&SystemRoots>,
    ) -> Result<Self, String> {
        let tls = secure::trusting(extra_roots, system)?;
        let proxies = ways.proxies();
        let client = pooled(&tls, &ways, &proxies);
        Ok(Self {
            tls,
            ways,
            client: Mutex::new((proxies, client)),
        })
    }

    /// The proxies of now, and the client; connections through others are not used again.
    fn client(&self) -> (Arc<Proxies>, HttpsClient) {
        let mut held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let proxies = self.ways.proxies();
        if !Arc::ptr_eq(&held.0, &proxies) {
            let client = pooled(&self.tls, &self.ways, &proxies);
            *held = (proxies, client);
        }
        held.clone()
    }
}

fn pooled(tls: &ClientConfig, ways: &Ways, proxies: &Arc<Proxies>) -> HttpsClient {
    let (tls, resolver) = (tls.clone(), ways.resolver.clone());
    pool::over(Schemes::Https, tls, proxies.clone(), resolver)
}

/// The proxy to the server of `request`, for messages.
fn proxy_of(proxies: &Proxies, request: &Request<Bytes>) -> Option<String> {
    let proxy = proxies.to(request.uri().host()?).ok()?;
    proxy.map(ToString::to_string)
}

#[async_trait]
impl Exchange for Https {
    async fn exchange(
        &self,
        mut request: Request<Bytes>,
    ) -> Result<Response<Bytes>, ExchangeError> {
        let agent = HeaderValue::from_static(concat!("certs/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        let (proxies, client) = self.client();
        let proxy = proxy_of(&proxies, &request);
        let exchanged = async {
            let reply = client.request(request.map(Full::new)).await;
            whole(reply.map_err(|error| classify(&error))?).await
        };
        let ended = tokio::select! {
            biased;
            ended = exchanged => ended,
            () = deadline() => Err(ExchangeError::TimedOut(DEADLINE)),
        };
        ended.map_err(|error| error.through(proxy))
    }
}

/// By the second: a process that was stopped or moved meanwhile has not looked
/// for its reply, which may have come.
async fn deadline() {
    for _ in 0..DEADLINE.as_secs() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The CA within this process. It has no deadline: the service is our own.
pub struct InProcess(pub axum::Router);

#[async_trait]
impl Exchange for InProcess {
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let Ok(reply) = self.0.clone().call(request.map(Full::new)).await;
        whole(reply).await
    }
}

async fn whole<B>(reply: Response<B>) -> Result<Response<Bytes>, ExchangeError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let (parts, body) = reply.into_parts();
    match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => Ok(Response::from_parts(parts, body.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(ExchangeError::TooLarge(LARGEST_BODY)),
        Err(error) => Err(ExchangeError::Broken(printable(&chain(error.as_ref())))),
    }
}

/// Classifies an error by its remedy.
fn classify(error: &hyper_util::client::legacy::Error) -> ExchangeError {
    let text = printable(&chain(error));
    if let Some(proxy) = caused_by::<ProxyError>(error) {
        return ExchangeError::Proxy {
            message: proxy.to_string(),
            hint: proxy.hint(),
            is_temporary: proxy.is_temporary(),
        };
    }
    if let Some(tls) = caused_by::<rustls::Error>(error) {
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
        return ExchangeError::Connect(printable(&causes(error).last().unwrap_or_default()));
    }
    ExchangeError::Broken(text)
}

/// How the certificate of a server is invalid, if only its dates are.
fn outside_validity(reason: &CertificateError) -> Option<OutsideValidity> {
    let at = |time: UnixTime| Timestamp::from_seconds(time.as_secs().cast_signed());
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

fn caused_by<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let inner = |&error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> {
        // An io::Error shows its content's source, not its content.
        match error.downcast_ref().and_then(io::Error::get_ref) {
            Some(content) => Some(content),
            None => error.source(),
        }
    };
    successors(Some(error), inner).find_map(|error| error.downcast_ref())
}

/// The error and its sources.
fn causes(error: &(dyn Error + 'static)) -> impl Iterator<Item = String> {
    successors(Some(error), |&error| error.source()).map(ToString::to_string)
}

fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn in_process_router_answers_within_bounds() {
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
    async fn closed_port_and_plain_http_are_distinguished() {
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

    /// The port of a server that shows this certificate once.
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

    #[tokio::test]
    async fn self_signed_server_certificate_that_is_a_ca_is_trusted_as_root() {
        let key = rcgen::KeyPair::generate().unwrap();
        let made = |name: &str, year: i32| {
            let mut params = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            params.self_signed(&key).unwrap()
        };
        for (name, year, root, is_trusted) in [
            ("localhost", 2999, true, true),
            ("localhost", 2999, false, false),
            ("other.example", 2999, true, false),
            ("localhost", 2002, true, false),
        ] {
            let shown_one = made(name, year);
            // Another certificate of the same key and name is not the trusted one.
            let other = made(name, 2998);
            let trusted = if root { &shown_one } else { &other };
            let port = shown(&shown_one, &key).await;
            let error = refused(port, Some(trusted.pem().as_bytes())).await;
            // The server only shakes hands.
            let accepted = matches!(error, ExchangeError::Broken(_));
            assert_eq!(accepted, is_trusted, "{name} {year} {root}: {error:?}");
        }
    }

    async fn refused(port: u16, roots: Option<&[u8]>) -> ExchangeError {
        let request = Request::get(format!("https://localhost:{port}/")).body(Bytes::new());
        let https = Https::new(roots).unwrap();
        https.exchange(request.unwrap()).await.unwrap_err()
    }

    #[tokio::test]
    async fn unknown_root_is_reported_with_its_remedy() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let port = shown(&made.cert, &made.signing_key).await;
        let error = refused(port, None).await;
        assert!(matches!(error, ExchangeError::Untrusted(_)), "{error:?}");
        let cause = super::super::Cause::from(error);
        assert!(cause.hint().contains("--ca-root"), "{}", cause.hint());
    }

    #[tokio::test]
    async fn certificate_outside_its_validity_is_reported_with_the_clock() {
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
    fn invalid_roots_are_rejected() {
        assert!(Https::new(Some(b"")).is_err());
        assert!(
            Https::new(Some(
                b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
            ))
            .is_err()
        );
    }
}
