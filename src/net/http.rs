//! The HTTP/1.1 client for most servers: over TCP, TLS or a Unix socket, a connection for
//! each request ([`pool`](super::pool) keeps them). An exchange has a deadline, and a reply a largest size.
//! It follows no redirect, repeats no request and adds no header.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::AsyncBufRead;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::io::StreamReader;

use super::dns::lookup::Resolver;
use super::roots::SystemRoots;
use super::{Stream, tls, unix};

/// Far above the size of an honest reply's head.
pub(super) const LARGEST_HEAD: usize = 64 * 1024;

/// Why there is no reply, or not the whole of it.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum HttpError {
    #[error("invalid request: {0}")]
    Request(#[from] http::Error),
    #[error("{0}")]
    Connect(#[from] io::Error),
    #[error("{0}")]
    Tls(io::Error),
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("its reply has more than {0} bytes")]
    TooLarge(usize),
    #[error("{0}")]
    Reply(#[from] hyper::Error),
    /// The same of a client that keeps its connections.
    #[error("{0}")]
    Broken(String),
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A Unix socket.
    Unix(PathBuf),
    /// A Unix socket in the data directory.
    Data(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String, Resolver),
    /// Host and port, by TLS with a certificate that a public root, or one of this machine,
    /// has signed.
    Tls(String, u16, Resolver),
}

/// The largest length of a reply in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Longest {
    /// A longer reply is an error, and reading stops there.
    Whole(usize),
    /// A longer reply is read to its end, since the server may be working until then, and
    /// cut here.
    Cut(usize),
}

impl Origin {
    /// The server of a URL, whose host `resolver` looks up, or why the URL has none.
    pub(crate) fn of(url: &Uri, resolver: &Resolver) -> Result<Self, String> {
        let host = url.host().ok_or("it names no host")?;
        let port = |default| url.port_u16().unwrap_or(default);
        // A URL has an IPv6 address in brackets, a server's name has none.
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        let resolver = resolver.clone();
        match url.scheme_str() {
            Some("https") => Ok(Self::Tls(plain.to_owned(), port(443), resolver)),
            Some("http") => Ok(Self::Tcp(format!("{host}:{}", port(80)), resolver)),
            _ => Err("it is neither http:// nor https://".to_owned()),
        }
    }

    /// Sends `request` and reads the reply, all `within` this time.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
        longest: Longest,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let whole = async {
            let reply = exchange(self.connect().await?, request).await?;
            Ok((reply.status(), reply.into_body().read(longest).await?))
        };
        in_time(within, whole).await
    }

    /// Sends `request` for a reply without an end; its head must arrive `within` this time.
    pub(crate) async fn open(
        &self,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> Result<Response<ReplyBody>, HttpError> {
        in_time(within, async {
            exchange(self.connect().await?, request).await
        })
        .await
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, HttpError> {
        Ok(match self {
            Self::Unix(path) => Box::new(unix::connect(path).await?),
            Self::Data(path) => Box::new(unix::connect_in_data(path).await?),
            Self::Tcp(address, resolver) => Box::new(resolver.connect_to(address).await?),
            Self::Tls(host, port, resolver) => {
                let stream = resolver.connect(host, *port).await?;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other);
                let mut roots = tls::public_roots();
                SystemRoots::of_this_process().add_to(&mut roots);
                let config = tls::trusting(roots).map_err(io::Error::other);
                let handshake = async {
                    let connector = TlsConnector::from(Arc::new(config?));
                    connector.connect(name?, stream).await
                };
                Box::new(handshake.await.map_err(HttpError::Tls)?)
            }
        })
    }
}

async fn in_time<T>(
    within: Duration,
    exchange: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    let ended = tokio::time::timeout(within, exchange).await;
    ended.unwrap_or(Err(HttpError::TimedOut(within)))
}

/// Sends the only request of a connection; the caller keeps the deadline.
pub(crate) async fn exchange(
    stream: impl Stream + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<ReplyBody>, HttpError> {
    let mut connection = Connection::over(stream).await?;
    let reply = connection.send(request).await?;
    Ok(reply.map(|incoming| ReplyBody {
        incoming,
        _connection: connection,
    }))
}

/// A connection for requests one after the other, closed when dropped.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// Reads and writes; a set, since it aborts its task when dropped.
    _task: JoinSet<()>,
}

impl Connection {
    /// The client's end of `stream`.
    pub(crate) async fn over(stream: impl Stream + 'static) -> Result<Self, HttpError> {
        let mut client = Builder::new();
        let client = client.max_buf_size(LARGEST_HEAD);
        let (sender, connection) = client.handshake(TokioIo::new(stream)).await?;
        let mut task = JoinSet::new();
        // The request gets the error too.
        task.spawn(async { drop(connection.await) });
        Ok(Self {
            sender,
            _task: task,
        })
    }

    /// The head of the reply; its body ends with this connection.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, HttpError> {
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

/// The body of a reply. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct ReplyBody {
    incoming: Incoming,
    _connection: Connection,
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.incoming).poll_frame(context)
    }
}

impl ReplyBody {
    /// Reads a body without an end.
    pub(crate) fn reader(self) -> impl AsyncBufRead + Send + Unpin {
        StreamReader::new(self.into_data_stream().map_err(io::Error::other))
    }

    /// Reads to the end.
    pub(crate) async fn read(self, longest: Longest) -> Result<Bytes, HttpError> {
        let (Longest::Whole(most) | Longest::Cut(most)) = longest;
        let (mut parts, mut read) = (self.into_data_stream(), Vec::new());
        while let Some(part) = parts.try_next().await? {
            let room = most - read.len();
            if part.len() > room && matches!(longest, Longest::Whole(_)) {
                return Err(HttpError::TooLarge(most));
            }
            read.extend_from_slice(&part[..part.len().min(room)]);
        }
        Ok(read.into())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(20);

    /// A server that sends these bytes after a request and closes the connection.
    async fn server(reply: String) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(reply.as_bytes()).await;
            }
        });
        Origin::Tcp(address.to_string(), Resolver::default())
    }

    fn request() -> Request<Full<Bytes>> {
        Request::get("/").body(Full::default()).unwrap()
    }

    #[tokio::test]
    async fn reply_is_bounded_or_cut() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n";
        let origin = server(format!("{head}0123456789")).await;
        let (status, body) = origin
            .send(request(), WITHIN, Longest::Whole(10))
            .await
            .unwrap();
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"0123456789"[..]));
        let longer = origin.send(request(), WITHIN, Longest::Whole(9)).await;
        assert!(matches!(longer, Err(HttpError::TooLarge(9))), "{longer:?}");
        let (_, cut) = origin
            .send(request(), WITHIN, Longest::Cut(9))
            .await
            .unwrap();
        assert_eq!(&cut[..], b"012345678");
        let incomplete = server(format!("{head}0123")).await;
        let interrupted = incomplete.send(request(), WITHIN, Longest::Cut(4)).await;
        assert!(
            matches!(interrupted, Err(HttpError::Reply(_))),
            "{interrupted:?}"
        );
        let large_head = format!("{}A: {}\r\n\r\n", &head[..17], "x".repeat(2 * LARGEST_HEAD));
        let refused = server(large_head)
            .await
            .send(request(), WITHIN, Longest::Whole(9))
            .await;
        assert!(matches!(refused, Err(HttpError::Reply(_))), "{refused:?}");
    }

    #[test]
    fn url_leads_to_its_server() {
        let resolver = Resolver::new(Some("192.0.2.53".parse().unwrap()));
        let of = |url: &'static str| Origin::of(&Uri::from_static(url), &resolver).unwrap();
        for (url, host, port) in [
            ("https://[::1]/a", "::1", 443),
            ("https://[2001:db8::1]:8443", "2001:db8::1", 8443),
            ("https://example.com", "example.com", 443),
        ] {
            let wanted = Origin::Tls(host.to_owned(), port, resolver.clone());
            assert_eq!(of(url), wanted);
            assert!(ServerName::try_from(host).is_ok(), "{host}");
        }
        let wanted = Origin::Tcp("[::1]:80".to_owned(), resolver.clone());
        assert_eq!(of("http://[::1]/"), wanted);
    }

    #[tokio::test]
    async fn reply_is_rejected_when_not_http() {
        for reply in ["", "SSH-2.0-x\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 200"] {
            let sent = server(reply.into())
                .await
                .send(request(), WITHIN, Longest::Whole(9))
                .await;
            assert!(matches!(sent, Err(HttpError::Reply(_))), "{reply}");
        }
    }

    #[tokio::test]
    async fn errors_tell_the_steps_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tcp, tls) = (
            Origin::Tcp(format!("127.0.0.1:{port}"), Resolver::default()),
            Origin::Tls("127.0.0.1".into(), port, Resolver::default()),
        );
        let silent = tcp
            .send(request(), Duration::from_millis(10), Longest::Whole(9))
            .await;
        assert!(matches!(silent, Err(HttpError::TimedOut(_))), "{silent:?}");
        let plain = server("220 smtp\r\n".into()).await;
        let Origin::Tcp(address, resolver) = &plain else {
            panic!("{plain:?}")
        };
        let (host, port) = address.rsplit_once(':').unwrap();
        let plain = Origin::Tls(host.into(), port.parse().unwrap(), resolver.clone());
        let handshake = plain.send(request(), WITHIN, Longest::Whole(9)).await;
        assert!(matches!(handshake, Err(HttpError::Tls(_))), "{handshake:?}");
        drop(listener);
        for closed in [tcp, tls, Origin::Unix("/nowhere".into())] {
            let refused = closed.send(request(), WITHIN, Longest::Whole(9)).await;
            assert!(matches!(refused, Err(HttpError::Connect(_))), "{closed:?}");
        }
    }
}
