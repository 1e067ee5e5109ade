//! One HTTP request to a deploy target: over TCP, TLS or a Unix socket, with a deadline
//! and a bound on the length of the reply. Redirects are not followed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

const WITHIN: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: usize = 1 << 20;

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String),
    /// Host and port, by TLS with a checked certificate.
    Tls(String, u16),
}

impl Server {
    /// The server of a URL.
    pub(super) fn of(url: &Uri) -> Result<Self, String> {
        let host = url.host().ok_or("it names no host")?.to_owned();
        match url.scheme_str() {
            Some("https") => Ok(Self::Tls(host, url.port_u16().unwrap_or(443))),
            Some("http") => Ok(Self::Tcp(format!(
                "{host}:{}",
                url.port_u16().unwrap_or(80)
            ))),
            _ => Err("it is neither http:// nor https://".to_owned()),
        }
    }

    /// Sends `request` and reads the reply; a too long reply is an error.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), String> {
        let (status, body, is_whole) = self.send_cutting(request).await?;
        match is_whole {
            true => Ok((status, body)),
            false => Err(format!("its reply has more than {LONGEST_ANSWER} bytes")),
        }
    }

    /// Sends `request` and reads the beginning of a reply of any length. The last value
    /// says whether that is the whole reply.
    pub(super) async fn send_cutting(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes, bool), String> {
        let sent = async {
            let (status, answer) = self.begin(request).await?;
            let (body, is_whole) = answer.cut(LONGEST_ANSWER).await?;
            Ok((status, body, is_whole))
        };
        in_time(sent).await
    }

    /// Sends `request` and reads a reply of at most `longest` bytes; reading stops there.
    pub(super) async fn send_within(
        &self,
        request: Request<Full<Bytes>>,
        longest: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let sent = async {
            let (status, answer) = self.begin(request).await?;
            Ok((status, answer.whole(longest).await?))
        };
        in_time(sent).await
    }

    /// Sends `request` for a reply without an end.
    pub(super) async fn open(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Answer), String> {
        in_time(self.begin(request)).await
    }

    async fn begin(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Answer), String> {
        match self {
            Self::Unix(path) => {
                begin(UnixStream::connect(path).await.map_err(shown)?, request).await
            }
            Self::Tcp(address) => {
                begin(TcpStream::connect(address).await.map_err(shown)?, request).await
            }
            Self::Tls(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(shown)?;
                let name = ServerName::try_from(host.clone()).map_err(shown)?;
                let stream = connector()?.connect(name, stream).await.map_err(shown)?;
                begin(stream, request).await
            }
        }
    }
}

/// A reply whose head has arrived. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    _connection: Connection,
}

#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Answer {
    /// Waits for the next part; `None` at the end of the reply.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, String>> {
        loop {
            match self.body.frame().await? {
                Err(error) => return Some(Err(shown(error))),
                Ok(frame) => {
                    if let Ok(part) = frame.into_data() {
                        return Some(Ok(part));
                    }
                }
            }
        }
    }

    async fn whole(mut self, longest: usize) -> Result<Bytes, String> {
        let mut kept = Vec::new();
        while let Some(part) = self.next().await {
            kept.extend_from_slice(&part?);
            if kept.len() > longest {
                return Err(format!("its reply has more than {longest} bytes"));
            }
        }
        Ok(kept.into())
    }

    /// Reads to the end, since the server may be working until then, and keeps `longest`
    /// bytes.
    async fn cut(mut self, longest: usize) -> Result<(Bytes, bool), String> {
        let (mut kept, mut is_whole) = (Vec::new(), true);
        while let Some(part) = self.next().await {
            let part = part?;
            let room = longest.saturating_sub(kept.len());
            is_whole &= part.len() <= room;
            kept.extend_from_slice(&part[..part.len().min(room)]);
        }
        Ok((kept.into(), is_whole))
    }
}

async fn in_time<T>(sent: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(WITHIN, sent).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
    }
}

fn shown(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn connector() -> Result<TlsConnector, String> {
    let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(shown)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn begin(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Answer), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(shown)?;
    let connection = Connection(tokio::spawn(async {
        // The caller gets the error from the request.
        let _ = connection.await;
    }));
    let answer = sender.send_request(request).await.map_err(shown)?;
    let status = answer.status();
    let body = answer.into_body();
    Ok((
        status,
        Answer {
            body,
            _connection: connection,
        },
    ))
}
