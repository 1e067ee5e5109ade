//! Validation of the answers to challenges. It waits at most five seconds, and reports a
//! wrong answer escaped and shortened. HTTP-01 (RFC 8555 section 8.3) fetches the key
//! authorization and compares it; it follows no redirect and reads at most one kilobyte.
//! DNS-01 (section 8.4) looks for its digest among the TXT values, asking the zone's servers.

mod tls_alpn01;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hickory_proto::rr::Name;
use http::header::{HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::net::TcpStream;

use super::problem::{ErrorType, Problem};
use super::state::{Authorization, ChallengeKind};
use super::{Ports, Resolve};
use crate::identifier::Identifier;
use crate::net::dns::ServerAddress;
use crate::net::dns::lookup::Resolver;
use crate::net::http::{self as client, Longest, ReplyBody};

const DEADLINE: Duration = Duration::from_secs(5);
const DNS_DEADLINE: Duration = Duration::from_secs(20);
const LARGEST_ANSWER: Longest = Longest::Whole(1024);
/// The longest part of a wrong answer in a message, in bytes.
const SHOWN: usize = 100;

/// Validates the challenge that the client has started; `expected` is the key
/// authorization.
pub(super) async fn validate(
    authorization: &Authorization,
    expected: &str,
    ports: Ports,
    (resolve, resolver): (Resolve, Option<SocketAddr>),
) -> Result<(), Problem> {
    let (name, challenge) = (&authorization.identifier, &authorization.challenge);
    match challenge.kind {
        ChallengeKind::Http01 => {
            http01(name, &challenge.token, expected, ports.http, resolve).await
        }
        ChallengeKind::TlsAlpn01 => tls_alpn01::validate(name, expected, ports.tls, resolve).await,
        ChallengeKind::Dns01 => dns01(name, expected, resolver).await,
    }
}

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
    let body = shown(&body);
    let detail =
        format!("{identifier} at {address} answered `{body}` instead of the key authorization");
    Err(Problem::new(ErrorType::Unauthorized, detail))
}

/// Looks for the digest of `expected`, the key authorization, among the TXT values of the name.
async fn dns01(
    identifier: &Identifier,
    expected: &str,
    resolver: Option<SocketAddr>,
) -> Result<(), Problem> {
    let name = identifier.to_string();
    let name = format!(
        "_acme-challenge.{}",
        name.strip_prefix("*.").unwrap_or(&name)
    );
    let wanted = URL_SAFE_NO_PAD.encode(digest(&SHA256, expected.as_bytes()));
    let found = tokio::time::timeout(DNS_DEADLINE, values(&name, resolver)).await;
    let found = found.unwrap_or_else(|_| Err("no answer within 20 s".to_owned()));
    let found = found.map_err(|why| {
        let detail = format!(
            "{identifier}: {name} cannot be looked up: {}",
            shown(why.as_bytes())
        );
        Problem::new(ErrorType::Dns, detail)
    })?;
    if found.contains(&wanted) {
        return Ok(());
    }
    let detail = match found.first() {
        None => format!("{identifier}: no TXT record found at {name}"),
        Some(first) => format!(
            "{identifier}: none of the {} TXT records at {name} is right; the first is `{}`",
            found.len(),
            shown(first.as_bytes())
        ),
    };
    Err(Problem::new(ErrorType::Unauthorized, detail))
}

/// The TXT values at the first server of the zone that answers, else at the resolver.
async fn values(name: &str, resolver: Option<SocketAddr>) -> Result<Vec<String>, String> {
    let resolver = Resolver::new(resolver.map(ServerAddress));
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| error.to_string())?;
    if let Ok(place) = resolver.place(&name).await {
        for server in &place.zone.servers {
            if let Ok(values) = resolver.values_at(server.address, &place.name).await {
                return Ok(values);
            }
        }
    }
    resolver
        .values(&name)
        .await
        .map_err(|error| error.to_string())
}

async fn fetch(
    identifier: &Identifier,
    token: &str,
    port: u16,
    resolve: Resolve,
) -> Result<(SocketAddr, Bytes), Problem> {
    let (address, stream) = connect(identifier, port, resolve).await?;
    let answered = client::exchange(stream, request(identifier, token, port)?).await;
    let answer = answered.map_err(|error| {
        let error = shown(error.to_string().as_bytes());
        let detail = format!("{identifier} at {address} sent no HTTP answer: {error}");
        Problem::new(ErrorType::Connection, detail)
    })?;
    Ok((address, read(identifier, address, answer).await?))
}

fn request(
    identifier: &Identifier,
    token: &str,
    port: u16,
) -> Result<Request<Full<Bytes>>, Problem> {
    let host = match identifier {
        Identifier::Ip(IpAddr::V6(address)) => format!("[{address}]"),
        other => other.to_string(),
    };
    let host = match port {
        80 => host,
        port => format!("{host}:{port}"),
    };
    Request::get(format!("/.well-known/acme-challenge/{token}"))
        .header(HOST, host)
        .header(USER_AGENT, concat!("certs-ca/", env!("CARGO_PKG_VERSION")))
        .body(Full::default())
        .map_err(|error| Problem::internal(&error))
}

async fn read(
    identifier: &Identifier,
    address: SocketAddr,
    answer: Response<ReplyBody>,
) -> Result<Bytes, Problem> {
    let wrong = |what: String| {
        let detail = format!("{identifier} at {address} answered {what}");
        Problem::new(ErrorType::IncorrectResponse, detail)
    };
    let status = answer.status();
    if status.is_redirection() {
        let to = answer.headers().get(LOCATION);
        let to = shown(to.map_or(&b""[..], |to| to.as_bytes()));
        let what = format!("with a redirect to `{to}`, which this CA does not follow");
        return Err(wrong(what));
    }
    if status != StatusCode::OK {
        let status = status.as_u16();
        let detail = format!("{identifier} at {address} answered HTTP {status}");
        return Err(Problem::new(ErrorType::Unauthorized, detail));
    }
    let body = answer.into_body().read(LARGEST_ANSWER).await;
    body.map_err(|_| wrong("with more than 1 KiB, or incompletely".into()))
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
    let Some(last) = last else {
        let detail = format!("{identifier} has no address");
        return Err(Problem::new(ErrorType::Dns, detail));
    };
    let detail = format!("{identifier}: cannot connect to {last}");
    Err(Problem::new(ErrorType::Connection, detail))
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
                let detail = format!("{identifier} does not resolve: {error}");
                Problem::new(ErrorType::Dns, detail)
            })?;
            Ok(found.take(4).collect())
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string();
    match bytes.len() > SHOWN {
        true => format!("{text}…"),
        false => text,
    }
}
