//! Docker's API for a sidecar that has given up root: its socket is open to root alone, and
//! the discovery of containers reads it. The helper process answers from it the requests of
//! the discovery and no others, since the whole API gives root on the host.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

use crate::deploy::docker::Api;
use crate::net::http::HttpError;

/// More than the sidecar opens at once.
const MOST: usize = 16;
/// The deadline for the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

type Reply = Response<BoxBody<Bytes, hyper::Error>>;

/// Serves the connections of `listener` from the API at `socket`, until the process ends.
pub(super) async fn relay(listener: StdListener, socket: PathBuf) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MOST));
    loop {
        let (near, _) = listener.accept().await?;
        let (permits, socket) = (permits.clone(), socket.clone());
        tokio::spawn(async move {
            let _permit = permits.acquire().await;
            let service = service_fn(|request| answer(request, &socket));
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new());
            server.header_read_timeout(HEAD_WITHIN).keep_alive(false);
            // The sidecar reports a connection that has failed.
            drop(server.serve_connection(TokioIo::new(near), service).await);
        });
    }
}

/// The API's reply to a request of the discovery.
async fn answer(request: Request<Incoming>, socket: &Path) -> Result<Reply, Infallible> {
    let api = Api::at_socket(socket);
    let path = request
        .uri()
        .path_and_query()
        .map_or("", |path| path.as_str());
    let answered = match *request.method() {
        Method::GET if is_read_by_discovery(path) => api.open(path).await.map(|reply| {
            let (head, body) = reply.into_parts();
            // Docker's own headers are of its connection.
            with_status(head.status, body.boxed())
        }),
        // The probe for a filter; nothing of this request is forwarded.
        Method::POST if path == Api::PROBE => api.probe().await.map(empty),
        _ => Ok(empty(StatusCode::FORBIDDEN)),
    };
    Ok(answered.unwrap_or_else(|error: HttpError| {
        tracing::warn!("{}: {error}", socket.display());
        empty(StatusCode::BAD_GATEWAY)
    }))
}

/// Whether the discovery reads this: the list, the events, and a container's environment.
fn is_read_by_discovery(path: &str) -> bool {
    let (place, query) = path.split_once('?').unwrap_or((path, ""));
    let container = |path: &str| {
        let id = path.strip_prefix("/containers/")?.strip_suffix("/json")?;
        Some(!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    };
    match place {
        "/events" => true,
        "/containers/json" => query.is_empty(),
        place => query.is_empty() && container(place).unwrap_or(false),
    }
}

fn with_status(status: StatusCode, body: BoxBody<Bytes, hyper::Error>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply
}

fn empty(status: StatusCode) -> Reply {
    let body = Full::default().map_err(|never| match never {});
    with_status(status, body.boxed())
}
