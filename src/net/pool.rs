//! The HTTP/1.1 client that keeps its connections: for a CA, and for the servers of a shared
//! store. TLS trusts the public roots that are built in, those of this machine and those that
//! the user adds; https may go through a proxy, plain http never does.

use std::error::Error;
use std::io;
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;

use super::connector::Connector;
use super::dns::lookup::Resolver;
use super::http::{HttpError, LARGEST_HEAD};
use super::proxy::Proxies;
use super::roots::SystemRoots;
use super::secure::{self, ClientPair};
use crate::text::printable;

/// A client of servers with https, or of both kinds.
pub(crate) type HttpsClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// Which URLs a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Schemes {
    Https,
    HttpsAndHttp,
}

/// A client with this configuration of TLS; `resolver` looks up servers and proxies.
pub(crate) fn over(
    schemes: Schemes,
    tls: ClientConfig,
    proxies: Arc<Proxies>,
    resolver: Resolver,
) -> HttpsClient {
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
    let https = match schemes {
        Schemes::Https => https.https_only(),
        Schemes::HttpsAndHttp => https.https_or_http(),
    };
    let https = https
        .enable_http1()
        .wrap_connector(Connector::through(proxies, resolver));
    Client::builder(TokioExecutor::new())
        .http1_max_buf_size(LARGEST_HEAD)
        .build(https)
}

/// Such a client with bounds. A request has a whole URL.
#[derive(Clone, Debug)]
pub(crate) struct Pool(HttpsClient);

impl Pool {
    /// For servers with https or plain http; it trusts the roots of `system` too.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub(crate) fn new(
        proxies: Proxies,
        resolver: Resolver,
        system: &SystemRoots,
    ) -> Result<Self, String> {
        Self::presenting((proxies, resolver), (None, system), None)
    }

    /// The same, which trusts the roots in PEM, too, and presents `pair`.
    ///
    /// # Errors
    /// When the roots are not readable.
    pub(crate) fn presenting(
        (proxies, resolver): (Proxies, Resolver),
        (roots, system): (Option<&[u8]>, &SystemRoots),
        pair: Option<&ClientPair>,
    ) -> Result<Self, String> {
        let mut tls = secure::trusting(roots, Some(system))?;
        if let Some(pair) = pair {
            pair.present(&mut tls);
        }
        let schemes = Schemes::HttpsAndHttp;
        Ok(Self(over(schemes, tls, Arc::new(proxies), resolver)))
    }

    /// Sends `request` and reads a reply of `most` bytes at the most, all `within` this time.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
        most: usize,
    ) -> Result<Response<Bytes>, HttpError> {
        let whole = async {
            let reply = self.0.request(request).await;
            let (parts, body) = reply.map_err(|error| unsent(&error))?.into_parts();
            match Limited::new(body, most).collect().await {
                Ok(body) => Ok(Response::from_parts(parts, body.to_bytes())),
                Err(error) if error.is::<LengthLimitError>() => Err(HttpError::TooLarge(most)),
                Err(error) => Err(HttpError::Broken(shown(error.as_ref()))),
            }
        };
        let ended = tokio::time::timeout(within, whole).await;
        ended.unwrap_or(Err(HttpError::TimedOut(within)))
    }

    /// Sends `request` for a reply without an end; its head must arrive `within` this time.
    pub(crate) async fn open(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<Incoming>, HttpError> {
        let head = tokio::time::timeout(within, self.0.request(request)).await;
        let head = head.map_err(|_| HttpError::TimedOut(within))?;
        head.map_err(|error| unsent(&error))
    }
}

fn unsent(error: &legacy::Error) -> HttpError {
    match error.is_connect() {
        true => HttpError::Connect(io::Error::other(shown(error))),
        false => HttpError::Broken(shown(error)),
    }
}

/// The causes, without the client's own words for the step.
fn shown(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |&error| error.source()).map(ToString::to_string);
    let mut causes: Vec<String> = causes.collect();
    if causes.len() > 1 {
        causes.remove(0);
    }
    causes.dedup();
    printable(&causes.join(": "))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    fn pool(environment: &[(&str, &str)]) -> Pool {
        let pairs = environment.iter();
        let environment = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        let proxies = Proxies::of(&environment.collect());
        Pool::new(proxies, Resolver::default(), &SystemRoots::default()).unwrap()
    }

    fn request(url: &str) -> Request<Full<Bytes>> {
        Request::get(url).body(Full::default()).unwrap()
    }

    /// The URL of a server that sends these bytes for each request.
    async fn server(reply: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        format!("http://{address}/")
    }

    #[tokio::test]
    async fn reply_is_bounded_and_errors_tell_the_steps_apart() {
        let url = server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789").await;
        // The proxy is for https.
        let pool = pool(&[("https_proxy", "http://127.0.0.1:1")]);
        let reply = pool.send(request(&url), WITHIN, 10).await.unwrap();
        assert_eq!(&reply.body()[..], b"0123456789");
        let longer = pool.send(request(&url), WITHIN, 9).await;
        assert!(matches!(longer, Err(HttpError::TooLarge(9))), "{longer:?}");
        let cut = server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0").await;
        let cut = pool.send(request(&cut), WITHIN, 10).await;
        assert!(matches!(cut, Err(HttpError::Broken(_))), "{cut:?}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        let silent = request(&format!("http://{address}/"));
        let silent = pool.send(silent, Duration::from_millis(10), 9).await;
        assert!(matches!(silent, Err(HttpError::TimedOut(_))), "{silent:?}");
        drop(closed);
        let refused = pool.send(request(&format!("http://{address}/")), WITHIN, 9);
        let refused = refused.await.unwrap_err();
        assert!(matches!(refused, HttpError::Connect(_)), "{refused:?}");
        assert!(refused.to_string().contains("refused"), "{refused}");
        let proxied = pool.send(request("https://127.0.0.1:2/"), WITHIN, 9).await;
        let error = proxied.unwrap_err().to_string();
        assert!(error.contains("the proxy"), "{error}");
    }
}
