//! One HTTP request to a server that is told: over TCP, TLS or a Unix socket, with
//! a deadline and a bound on what is read. Redirects are not followed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

const WITHIN: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: usize = 1 << 20;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// A socket of this machine.
    Unix(PathBuf),
    /// `host:port`, in the clear.
    Tcp(String),
    /// The host and the port, by TLS, its certificate checked.
    Tls(String, u16),
}

impl Server {
    /// That of a URL.
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

    /// Sends `request` and reads the answer, which is an error when it is too long.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), String> {
        let (status, body, is_whole) = self.send_cutting(request).await?;
        match is_whole {
            true => Ok((status, body)),
            false => Err(format!("its answer has more than {LONGEST_ANSWER} bytes")),
        }
    }

    /// The same with the beginning of an answer of any length, and whether that is
    /// all of it.
    pub(super) async fn send_cutting(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes, bool), String> {
        let sent = async {
            match self {
                Self::Unix(path) => {
                    exchange(UnixStream::connect(path).await.map_err(shown)?, request).await
                }
                Self::Tcp(place) => {
                    exchange(TcpStream::connect(place).await.map_err(shown)?, request).await
                }
                Self::Tls(host, port) => {
                    let stream = TcpStream::connect((host.as_str(), *port))
                        .await
                        .map_err(shown)?;
                    let name = ServerName::try_from(host.clone()).map_err(shown)?;
                    let stream = connector()?.connect(name, stream).await.map_err(shown)?;
                    exchange(stream, request).await
                }
            }
        };
        match tokio::time::timeout(WITHIN, sent).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {WITHIN:?}")),
        }
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

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes, bool), String> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(shown)?;
    // It ends with its sender.
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(shown)?;
    let status = answer.status();
    let (mut body, mut kept, mut is_whole) = (answer.into_body(), Vec::new(), true);
    // To its end: with it ends what says it.
    while let Some(frame) = body.frame().await {
        let Ok(part) = frame.map_err(shown)?.into_data() else {
            continue;
        };
        let room = LONGEST_ANSWER.saturating_sub(kept.len());
        is_whole &= part.len() <= room;
        kept.extend_from_slice(&part[..part.len().min(room)]);
    }
    connection.abort();
    Ok((status, kept.into(), is_whole))
}
