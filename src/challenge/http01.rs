//! The listener on port 80 (RFC 8555 section 8.3). It serves a live answer at its exact
//! path and host, redirects every other page to https, and refuses all else. No part of a
//! request is ever reflected unparsed.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CONTENT_LENGTH, HOST, HeaderValue, LOCATION, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode};
use serde::{Deserialize, Serialize};

use super::protocol::{Listen, Protocol, RequestCounter};
use super::responses::Responses;
use super::{ChallengeKind, Solver, SolverSettings, Unfit, check_http01_name};
use crate::identifier::Identifier;
use crate::net::listen::{HANDSHAKE_DEADLINE, Limits};

const PATH: &str = "/.well-known/acme-challenge/";
pub(super) const LIMITS: Limits = Limits {
    // A silent connection costs about 1 KiB, and one that has begun some 23 KiB in a debug
    // build: all of them stay below 4 MiB.
    silent: 512,
    connections: 96,
    // A CA validates from a handful of addresses, none of which needs more.
    by_address: 48,
    head: Duration::from_secs(5),
    handshake: HANDSHAKE_DEADLINE,
    // Validations take milliseconds, and so does the redirect of a browser.
    connection: Duration::from_secs(30),
    // hyper's smallest buffer, far above the size of an honest request head.
    largest_head: 8 * 1024,
};

/// The addresses of the listener; an empty list means port 80 of all addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Settings(Vec<SocketAddr>);

impl Settings {
    /// The settings for these addresses.
    #[must_use]
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }
}

impl SolverSettings for Settings {
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver> {
        responses.solver(ChallengeKind::Http01)
    }

    fn kind(&self) -> ChallengeKind {
        ChallengeKind::Http01
    }

    fn solver_key(&self) -> String {
        // Every listener serves all responses, whatever its address.
        "listen".to_owned()
    }

    fn listens(&self) -> Vec<Listen> {
        Protocol::Http.at(&self.0)
    }

    fn check_name(&self, name: &Identifier) -> Result<(), Unfit> {
        check_http01_name(name)
    }
}

pub(super) fn router(responses: Responses, tally: RequestCounter) -> Router {
    Router::new().fallback(move |request: Request<Body>| {
        let (responses, tally) = (responses.clone(), tally.clone());
        async move {
            let (head, _) = request.into_parts();
            let reply = answer(&head, &responses).await;
            tally(kind(reply.status()));
            reply
        }
    })
}

fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::OK => "answered",
        StatusCode::NOT_FOUND => "unknown",
        StatusCode::PERMANENT_REDIRECT => "redirected",
        _ => "refused",
    }
}

/// `request` without its body, which is never read.
async fn answer(request: &Parts, responses: &Responses) -> Response {
    let headers = &request.headers;
    if request.method != Method::GET && request.method != Method::HEAD {
        let text = "only GET and HEAD are answered here\n";
        return (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")], text).into_response();
    }
    let refuse = |text: &'static str| (StatusCode::BAD_REQUEST, text).into_response();
    if has_body(headers) || headers.contains_key(UPGRADE) || request.uri.authority().is_some() {
        return refuse("bodies, upgrades and proxying are refused here\n");
    }
    let Some(host) = host(headers) else {
        return refuse("no valid Host header\n");
    };
    let Some(token) = request.uri.path().strip_prefix(PATH) else {
        return match location(&host, &request.uri) {
            Some(location) => {
                (StatusCode::PERMANENT_REDIRECT, [(LOCATION, location)], "").into_response()
            }
            None => refuse("the path is malformed\n"),
        };
    };
    match responses.lookup_anywhere(&host, token).await {
        Some(key_authorization) => Bytes::from(key_authorization).into_response(),
        None => (StatusCode::NOT_FOUND, "no such challenge here\n").into_response(),
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    headers.contains_key(TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

/// The one `Host`, without its port.
fn host(headers: &HeaderMap) -> Option<Identifier> {
    let mut hosts = headers.get_all(HOST).iter();
    let (text, None) = (hosts.next()?.to_str().ok()?, hosts.next()) else {
        return None;
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let bare = match text.rsplit_once(':') {
        Some((host, port)) if is_port(port) && !host.ends_with(':') => host,
        _ => text,
    };
    let host = Identifier::parse(bare).ok();
    host.filter(|host| !host.is_wildcard())
}

/// The same page over https.
fn location(host: &Identifier, uri: &http::Uri) -> Option<HeaderValue> {
    let host = match host {
        Identifier::Ip(IpAddr::V6(address)) => format!("[{address}]"),
        other => other.to_string(),
    };
    let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let location = HeaderValue::from_str(&format!("https://{host}{path}"));
    location.ok().filter(|_| path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    mod flood;

    use super::*;
    use crate::challenge::listen::Listener;
    use crate::challenge::{Answer, Token};
    use crate::net::listen::{Peer, converse};

    const TOKEN: &str = "abcdefghijklmnopqrstuv";

    fn the_answer() -> Answer {
        Answer {
            kind: ChallengeKind::Http01,
            identifier: Identifier::parse("example.com").unwrap(),
            token: Token::parse(TOKEN).unwrap(),
            key_authorization: format!("{TOKEN}.thumbprint"),
            account: Default::default(),
        }
    }

    /// The time until the listener closes the connection of a client that sends `first`
    /// and then `more` after each pause.
    async fn closed_after(first: &str, pause: Duration, more: &str) -> Duration {
        let begun = tokio::time::Instant::now();
        let (mut client, ours) = tokio::io::duplex(64 * 1024);
        let router = router(Responses::default(), Arc::new(|_| {}));
        let peer = Peer::default();
        let converses = tokio::spawn(converse(ours, LIMITS, peer, router));
        client.write_all(first.as_bytes()).await.unwrap();
        while !converses.is_finished() {
            tokio::time::sleep(pause).await;
            // The connection may be closed already.
            let _ = client.write_all(more.as_bytes()).await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn slow_and_endless_connections_are_closed() {
        let tenth = Duration::from_millis(100);
        let near =
            |took: Duration, deadline: Duration| took >= deadline && took <= deadline + tenth;
        let whole = "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
        let idle = closed_after("", tenth, "").await;
        assert!(near(idle, LIMITS.head), "{idle:?}");
        let slow = closed_after("GET / HTTP/1.1\r\nA: ", tenth, "a").await;
        assert!(near(slow, LIMITS.head), "{slow:?}");
        let busy = closed_after(whole, tenth * 10, whole).await;
        assert!(busy >= LIMITS.connection, "{busy:?}");
        assert!(busy <= LIMITS.connection + tenth * 10, "{busy:?}");
    }

    fn solver(responses: &Responses) -> Arc<dyn Solver> {
        Settings::default().solver(responses)
    }

    fn bind(responses: &Responses) -> Listener {
        let address = ([127, 0, 0, 1], 0).into();
        let protocol = Protocol::Http;
        Listener::bind(&Listen { protocol, address }, responses).unwrap()
    }

    async fn serving() -> (SocketAddr, Responses) {
        let responses = Responses::default();
        solver(&responses).present(&the_answer()).await.unwrap();
        let listener = bind(&responses);
        let address = listener.addresses()[0];
        tokio::spawn(listener.serve());
        (address, responses)
    }

    async fn talk(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        // A refused connection may end by a reset.
        let _ = stream.read_to_string(&mut reply).await;
        reply
    }

    async fn fetch(
        address: SocketAddr,
        method: &str,
        path: &str,
        host: &str,
        more: &str,
    ) -> String {
        talk(
            address,
            &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"),
        )
        .await
    }

    #[tokio::test]
    async fn live_answer_is_served_to_its_host_and_observed() {
        let (address, responses) = serving().await;
        let path = format!("{PATH}{TOKEN}");
        let (waiting, answered) = tokio::join!(
            async { solver(&responses).observed(&the_answer()).await },
            fetch(address, "GET", &path, "Example.COM:80", ""),
        );
        let () = waiting;
        assert!(
            answered.starts_with("HTTP/1.1 200") && answered.ends_with(".thumbprint"),
            "{answered}"
        );
        solver(&responses).clean_up(&the_answer()).await.unwrap();
        assert!(
            fetch(address, "GET", &path, "example.com", "")
                .await
                .starts_with("HTTP/1.1 404")
        );
    }

    #[tokio::test]
    async fn responses_explain_a_host_that_a_proxy_has_changed() {
        let (address, responses) = serving().await;
        assert_eq!(solver(&responses).explain(&the_answer()).await, None);
        let path = format!("{PATH}{TOKEN}");
        fetch(address, "GET", &path, "127.0.0.1", "").await;
        let explained = solver(&responses).explain(&the_answer()).await.unwrap();
        assert!(explained.contains("`Host: 127.0.0.1`"), "{explained}");
        assert!(explained.contains("proxy_set_header"), "{explained}");
        fetch(address, "GET", &path, "example.com", "").await;
        let explained = solver(&responses).explain(&the_answer()).await.unwrap();
        assert!(explained.contains("was fetched here"), "{explained}");
    }

    #[tokio::test]
    async fn answer_is_refused_to_another_host_path_or_method() {
        let (address, _responses) = serving().await;
        let path = format!("{PATH}{TOKEN}");
        for (method, path, host, more, status) in [
            ("GET", path.as_str(), "example.org", "", "404"),
            (
                "GET",
                &format!("{PATH}{}", TOKEN.to_uppercase()),
                "example.com",
                "",
                "404",
            ),
            (
                "GET",
                &format!("{PATH}%61bcdefghijklmnopqrstuv"),
                "example.com",
                "",
                "404",
            ),
            (
                "GET",
                &format!("{PATH}../acme-challenge/{TOKEN}"),
                "example.com",
                "",
                "404",
            ),
            ("GET", &path.to_uppercase(), "example.com", "", "308"),
            ("POST", &path, "example.com", "", "405"),
            ("GET", &path, "example.com", "Content-Length: 3\r\n", "400"),
            (
                "GET",
                &path,
                "example.com",
                "Transfer-Encoding: chunked\r\n",
                "400",
            ),
            ("GET", &path, "example.com", "Upgrade: h2c\r\n", "400"),
            ("GET", &path, "example.com", "Host: example.com\r\n", "400"),
            ("GET", &path, "a b", "", "400"),
            ("GET", "http://example.com/", "example.com", "", "400"),
        ] {
            let reply = fetch(address, method, path, host, more).await;
            assert!(
                reply.starts_with(&format!("HTTP/1.1 {status}")),
                "{method} {path} {host} {more}: {reply}"
            );
            assert!(!reply.contains("thumbprint"));
        }
    }

    #[tokio::test]
    async fn other_pages_redirect_to_https() {
        let (address, _responses) = serving().await;
        for (path, host, location) in [
            ("/a?b=c", "example.com:8080", "https://example.com/a?b=c"),
            ("/", "[2001:db8::1]:80", "https://[2001:db8::1]/"),
            (
                "//evil.example/",
                "example.com",
                "https://example.com//evil.example/",
            ),
        ] {
            let reply = fetch(address, "GET", path, host, "").await;
            assert!(reply.starts_with("HTTP/1.1 308"), "{reply}");
            assert!(
                reply.contains(&format!("location: {location}\r\n")),
                "{reply}"
            );
        }
    }

    #[tokio::test]
    async fn requests_are_counted_by_result() {
        let counted = Arc::new(Mutex::new(Vec::new()));
        let tally = {
            let counted = counted.clone();
            Arc::new(move |kind| counted.lock().unwrap().push(kind))
        };
        let listener = bind(&Responses::default()).counted_by(tally);
        let address = listener.addresses()[0];
        tokio::spawn(listener.serve());
        for (method, path) in [("GET", "/"), ("GET", PATH), ("PUT", "/")] {
            fetch(address, method, path, "example.com", "").await;
        }
        let counted = counted.lock().unwrap();
        assert_eq!(*counted, ["redirected", "unknown", "refused"]);
    }

    #[tokio::test]
    async fn oldest_idle_connection_of_an_address_is_closed_for_the_next() {
        let (address, _responses) = serving().await;
        let mut idle = Vec::new();
        let most = LIMITS.silent / 2;
        for _ in 0..most {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        // Until then they keep their places.
        tokio::time::sleep(Duration::from_millis(400)).await;
        idle.push(TcpStream::connect(address).await.unwrap());
        let path = format!("{PATH}{TOKEN}");
        let reply = fetch(address, "GET", &path, "example.com", "").await;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        let ended = idle[0].read(&mut [0]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "the oldest is still open");
        let last = idle[most].try_read(&mut [0]);
        assert!(last.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
}
