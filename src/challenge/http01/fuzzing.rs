//! The checks of `fuzz/` on the listener on port 80: only a live token with its own host
//! is answered, and a reply reflects no part of a request but the redirect to https.

use std::sync::Arc;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{LIMITS, PATH, router};
use crate::challenge::responses::Responses;
use crate::challenge::{Answer, ChallengeKind, Token};
use crate::identifier::Identifier;
use crate::net::listen::{Peer, converse};

/// Token and host of the live answers.
const LIVE: [(&str, &str); 2] = [
    ("live-token-of-example-com", "example.com"),
    ("live_token_of_other_example", "other.example"),
];
/// More requests than any seed has on its connection.
const TURNS: usize = 8;
const THUMBPRINT: &str = "THUMBPRINT-OF-THE-ACCOUNT";
/// Every possible body except an answer.
const BODIES: [&str; 6] = [
    "",
    "only GET and HEAD are answered here\n",
    "bodies, upgrades and proxying are refused here\n",
    "no valid Host header\n",
    "no such challenge here\n",
    "the path is malformed\n",
];
/// Every possible header except `location`.
const CONSTANT: [(&str, &[&str]); 3] = [
    ("allow", &["GET, HEAD"]),
    ("connection", &["close", "keep-alive"]),
    (
        "content-type",
        &["text/plain; charset=utf-8", "application/octet-stream"],
    ),
];

/// Checks the replies to all bytes of one connection.
pub(crate) fn conversation(request: &[u8]) {
    let heard = heard(request);
    let mut rest = heard.as_slice();
    while !rest.is_empty() {
        rest = reply(request, rest);
    }
}

/// The bytes of all replies.
fn heard(request: &[u8]) -> Vec<u8> {
    let responses = Responses::default();
    for (token, host) in LIVE {
        let (Ok(token), Ok(identifier)) = (Token::parse(token), Identifier::parse(host)) else {
            panic!("{token} for {host} cannot be live");
        };
        let answer = Answer {
            kind: ChallengeKind::Http01,
            identifier,
            key_authorization: format!("{}.{THUMBPRINT}", token.as_str()),
            token,
            account: Default::default(),
        };
        assert!(matches!(
            responses
                .solver(ChallengeKind::Http01)
                .present(&answer)
                .now_or_never(),
            Some(Ok(()))
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(async {
        let (mut client, ours) = tokio::io::duplex(64 * 1024);
        let (router, mut heard) = (router(responses, Arc::new(|_| {})), Vec::new());
        let (mut receiver, mut sender) = tokio::io::split(&mut client);
        let talk = async {
            // The listener may close the connection; the replies until then count.
            let _ = sender.write_all(request).await;
            // A client that closes at once gets only the first replies.
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
            let _ = sender.shutdown().await;
        };
        let _ = tokio::join!(
            converse(ours, LIMITS, Peer::default(), router),
            talk,
            receiver.read_to_end(&mut heard)
        );
        heard
    })
}

/// Checks the first reply of `heard` and returns the bytes after it.
fn reply<'a>(request: &[u8], heard: &'a [u8]) -> &'a [u8] {
    let end = heard.windows(4).position(|four| four == b"\r\n\r\n");
    let Some((head, rest)) = end.map(|end| (&heard[..end], &heard[end + 4..])) else {
        panic!(
            "a reply without an end: {:?}",
            String::from_utf8_lossy(heard)
        );
    };
    let Ok(head) = std::str::from_utf8(head) else {
        panic!("the head is not text: {head:?}");
    };
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.get(9..12).unwrap_or_default();
    let known = ["200", "308", "400", "404", "405", "414", "431"];
    assert!(
        first.starts_with("HTTP/1.") && known.contains(&status),
        "{first:?}"
    );
    let mut length = 0;
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else {
            panic!("invalid header: {line:?}");
        };
        match name {
            "content-length" => length = value.parse().unwrap_or(usize::MAX),
            "date" => assert!(value.len() == 29 && value.ends_with(" GMT"), "{value:?}"),
            "location" => location(request, status, value),
            _ => {
                let known = CONSTANT.iter().find(|(known, _)| *known == name);
                assert!(
                    known.is_some_and(|(_, all)| all.contains(&value)),
                    "{line:?}"
                );
            }
        }
    }
    // A reply to HEAD has a length and no body.
    let headless = rest.is_empty() || rest.starts_with(b"HTTP/1.");
    let length = if headless { 0 } else { length };
    assert!(length <= rest.len(), "the body is cut off");
    let (body, rest) = rest.split_at(length);
    if status == "200" {
        answered(request, body);
    } else {
        let constant = BODIES.iter().any(|known| known.as_bytes() == body);
        assert!(constant, "{:?}", String::from_utf8_lossy(body));
    }
    rest
}

/// Checks that the request has the token's exact path, and its host.
fn answered(request: &[u8], body: &[u8]) {
    let asked = |(token, host): &(&str, &str)| {
        let paths = ["GET", "HEAD"].map(|method| format!("{method} {PATH}{token}"));
        let path = lines(request).any(|line| {
            let rest = paths
                .iter()
                .find_map(|path| line.strip_prefix(path.as_bytes()));
            rest.is_some_and(|rest| matches!(rest.first(), Some(b' ' | b'?' | b'#')))
        });
        let answer = format!("{token}.{THUMBPRINT}");
        path && hosts(request).any(|named| named == *host)
            && (body.is_empty() || body == answer.as_bytes())
    };
    assert!(
        LIVE.iter().any(asked),
        "{:?}",
        String::from_utf8_lossy(body)
    );
}

/// Checks that the redirect leads to the requested host, over https, and to no challenge.
fn location(request: &[u8], status: &str, value: &str) {
    assert_eq!(status, "308");
    let bare = value.strip_prefix("https://").unwrap_or_default();
    let (host, path) = bare.split_at(bare.find('/').unwrap_or(bare.len()));
    assert!(!path.starts_with(PATH), "{value:?} reflects a token");
    assert!(
        path.bytes().all(|byte| byte > b' ' && byte != 0x7f),
        "{value:?}"
    );
    let host = Identifier::parse(host);
    let named = |text: String| Identifier::parse(&text).is_ok_and(|named| Ok(named) == host);
    assert!(hosts(request).any(named), "{value:?} leads elsewhere");
}

fn lines(request: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = request.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line))
}

/// The value of each `Host:` in lower case, without port and final dot.
fn hosts(request: &[u8]) -> impl Iterator<Item = String> {
    lines(request).filter_map(|line| {
        let (name, value) = line.split_at_checked(5)?;
        let value = std::str::from_utf8(value).ok()?.trim().to_ascii_lowercase();
        let port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let bare = match value.rsplit_once(':') {
            Some((host, digits)) if port(digits) && !host.ends_with(':') => host.trim(),
            _ => &value,
        };
        let host = bare.strip_suffix('.').unwrap_or(bare);
        name.eq_ignore_ascii_case(b"host:").then(|| host.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_seed_reaches_the_answer() {
        let seed = include_bytes!("../../../fuzz/seeds/http1/pipelined.http");
        let heard = String::from_utf8(heard(seed)).unwrap();
        let statuses: Vec<_> = heard
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|text| &text[..3])
            .collect();
        assert_eq!(statuses, ["200", "308", "404"]);
        assert!(heard.contains(THUMBPRINT));
        let alone = super::heard(include_bytes!(
            "../../../fuzz/seeds/http1/unknown-token.http"
        ));
        assert!(alone.starts_with(b"HTTP/1.1 404 "), "{alone:?}");
    }

    #[test]
    fn forged_replies_are_detected() {
        let request =
            b"GET /.well-known/acme-challenge/unknown HTTP/1.1\r\nHost: example.com\r\n\r\n";
        reply(
            request,
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 23\r\n\r\nno such challenge here\n",
        );
        for forged in [
            "HTTP/1.1 404 Not Found\r\ncontent-length: 7\r\n\r\nunknown",
            "HTTP/1.1 404 unknown\r\nx-token: unknown\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlive",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 308 Permanent Redirect\r\nlocation: https://example.com/.well-known/acme-challenge/unknown\r\n\r\n",
            "HTTP/1.1 308 Permanent Redirect\r\nlocation: https://evil.example/\r\n\r\n",
            "HTTP/1.1 500 Internal Server Error\r\n\r\n",
            "HTTP/1.1 404 Not",
        ] {
            let judged = std::panic::catch_unwind(|| reply(request, forged.as_bytes()).len());
            assert!(judged.is_err(), "{forged}");
        }
    }
}
