//! HTTP-01 validation (RFC 8555 section 8.3): fetches the key authorization and
//! compares it. It follows no redirect, waits at most five seconds, reads at most
//! one kilobyte, and reports a wrong answer escaped and shortened.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::Resolve;
use super::problem::{ErrorType, Problem};
use crate::identifier::Identifier;

const DEADLINE: Duration = Duration::from_secs(5);
const LARGEST_ANSWER: usize = 1024;
/// The longest part of a wrong answer in a message, in bytes.
const SHOWN: usize = 100;

/// Fetches `/.well-known/acme-challenge/TOKEN` from `identifier` and compares
/// it with `expected`, the key authorization.
pub(super) async fn http01(
    identifier: &Identifier,
    token: &str,
    expected: &str,
    port: u16,
    resolve: Resolve,
) -> Result<(), Problem> {
    let fetched = tokio::time::timeout(DEADLINE, fetch(identifier, token, port, resolve));
    let (address, body) = fetched.await.unwrap_or_else(|_| {
        let detail = format!("{identifier}: no answer on port {port} within 5 s");
        Err(Problem::new(ErrorType::Connection, detail))
    })?;
    // RFC 8555 section 8.3: white space at the end does not count.
    if body.trim_ascii_end() == expected.as_bytes() {
        return Ok(());
    }
    let detail = format!(
        "{identifier} at {address} answered `{}` instead of the key authorization",
        shown(&body)
    );
    Err(Problem::new(ErrorType::Unauthorized, detail))
}

async fn fetch(
    identifier: &Identifier,
    token: &str,
    port: u16,
    resolve: Resolve,
) -> Result<(SocketAddr, Bytes), Problem> {
    let (address, stream) = connect(identifier, port, resolve).await?;
    let failed = |error: &dyn std::error::Error| {
        let detail = format!(
            "{identifier} at {address} sent no HTTP answer: {}",
            shown(error.to_string().as_bytes())
        );
        Problem::new(ErrorType::Connection, detail)
    };
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(16 * 1024)
        .handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(|error| failed(&error))?;
    let exchange = async {
        let answered = sender.send_request(request(identifier, token, port)?).await;
        read(
            identifier,
            address,
            answered.map_err(|error| failed(&error))?,
        )
        .await
    };
    let body = tokio::select! {
        body = exchange => body?,
        // The connection is only polled for progress: `exchange` returns the
        // answer even when the peer closes the connection after it.
        never = async { let _ = connection.await; std::future::pending().await } => never,
    };
    Ok((address, body))
}

fn request(
    identifier: &Identifier,
    token: &str,
    port: u16,
) -> Result<Request<Empty<Bytes>>, Problem> {
    let host = match identifier {
        Identifier::Ip(IpAddr::V6(address)) => format!("[{address}]"),
        other => other.to_string(),
    };
    let host = if port == 80 {
        host
    } else {
        format!("{host}:{port}")
    };
    Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(HOST, host)
        .header(USER_AGENT, concat!("certs-ca/", env!("CARGO_PKG_VERSION")))
        .body(Empty::new())
        .map_err(|error| Problem::internal(&error))
}

async fn read(
    identifier: &Identifier,
    address: SocketAddr,
    answer: Response<Incoming>,
) -> Result<Bytes, Problem> {
    let wrong = |what: String| {
        let detail = format!("{identifier} at {address} answered {what}");
        Problem::new(ErrorType::IncorrectResponse, detail)
    };
    let status = answer.status();
    if status.is_redirection() {
        let to = answer
            .headers()
            .get(LOCATION)
            .map_or(&b""[..], |to| to.as_bytes());
        return Err(wrong(format!(
            "with a redirect to `{}`, which this CA does not follow",
            shown(to)
        )));
    }
    if status != StatusCode::OK {
        let detail = format!(
            "{identifier} at {address} answered HTTP {}",
            status.as_u16()
        );
        return Err(Problem::new(ErrorType::Unauthorized, detail));
    }
    let body = Limited::new(answer.into_body(), LARGEST_ANSWER)
        .collect()
        .await;
    let body = body.map_err(|_| wrong("with more than 1 KiB, or incompletely".into()))?;
    Ok(body.to_bytes())
}

async fn connect(
    identifier: &Identifier,
    port: u16,
    resolve: Resolve,
) -> Result<(SocketAddr, TcpStream), Problem> {
    let mut last = None;
    for address in addresses(identifier, port, resolve).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok((address, stream)),
            Err(error) => last = Some(format!("{address}: {error}")),
        }
    }
    Err(match last {
        Some(last) => Problem::new(
            ErrorType::Connection,
            format!("{identifier}: cannot connect to {last}"),
        ),
        None => Problem::new(ErrorType::Dns, format!("{identifier} has no address")),
    })
}

async fn addresses(
    identifier: &Identifier,
    port: u16,
    resolve: Resolve,
) -> Result<Vec<SocketAddr>, Problem> {
    match (resolve, identifier) {
        (Resolve::Fixed(address), _) => Ok(vec![SocketAddr::new(address, port)]),
        (Resolve::System, Identifier::Ip(address)) => Ok(vec![SocketAddr::new(*address, port)]),
        (Resolve::System, Identifier::Dns(name)) => {
            let found = tokio::net::lookup_host((name.as_str(), port)).await;
            let found = found.map_err(|error| {
                let error = shown(error.to_string().as_bytes());
                Problem::new(
                    ErrorType::Dns,
                    format!("{identifier} does not resolve: {error}"),
                )
            })?;
            Ok(found.take(4).collect())
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string();
    if bytes.len() > SHOWN {
        format!("{text}…")
    } else {
        text
    }
}
