//! What `fuzz/` holds against a CA's replies. Each goes the way of a real one,
//! from an [`Exchange`] through a [`Session`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode};

use super::directory::{Cached, Directory, Meta};
use super::error::{Cause, ExchangeError, Phase};
use super::exchange::{Exchange, Reply, Session};
use super::{renewal_info, wire};
use crate::challenge::Token;
use crate::record::Window;
use crate::time::{Timestamp, VirtualClock};

const URL: &str = "https://ca.test/";
const PHASES: [Phase; 3] = [Phase::Directory, Phase::Account, Phase::Order];

/// The reply's body as every document that it may be, and as the problem of
/// every kind of status.
pub(crate) fn documents(body: &[u8]) {
    let now = Timestamp::from_seconds(0);
    let clock = VirtualClock::new(now);
    let session = Canned::reply(200, HeaderMap::new(), body).session(now);
    let directory = now_or_never(Cached::default().read(&session, URL, &clock));
    if let Ok(directory) = &directory {
        only_https(directory);
    }
    if let Ok(order) = wire::order(body) {
        order.error.as_ref().map(wire::kind);
    }
    if let Ok(authorization) = wire::authorization(body) {
        for challenge in authorization.challenges {
            file_names(&challenge.token);
            if let Some(problem) = &challenge.error {
                told(Cause::of_challenge(problem), &Meta::default());
            }
        }
    }
    let none = Meta::default();
    let meta = directory
        .as_ref()
        .map_or(&none, |directory| &directory.meta);
    told(Cause::invalid_profile("classic", meta), meta);
    for status in [400, 403, 429, 500, 503] {
        let mut headers = HeaderMap::new();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, problem);
        let session = Canned::reply(status, headers, body).session(now);
        match now_or_never(session.get("order", URL)) {
            Ok(_) => panic!("HTTP {status} was taken for success"),
            Err(cause) => told(cause, meta),
        }
    }
}

/// The window that `body` suggests, and when to ask again.
pub(crate) fn renewal_info(body: &[u8], now: Timestamp) -> Option<(Window, Duration)> {
    let session = Canned::reply(200, HeaderMap::new(), body).session(now);
    let clock = VirtualClock::new(now);
    match now_or_never(renewal_info::ask(&session, URL, "YQ.Yg", &clock)) {
        Ok(answer) => answer,
        Err(cause) => {
            told(cause, &Meta::default());
            None
        }
    }
}

/// What a `Retry-After` asks for; `text` is its value, and on a second line
/// that of `Date`.
pub(crate) fn retry_after(text: &[u8], now: Timestamp) -> Option<Duration> {
    let mut lines = text.splitn(2, |byte| *byte == b'\n');
    let asked = HeaderValue::from_bytes(lines.next()?).ok()?;
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, asked.clone());
    if let Some(Ok(date)) = lines.next().map(HeaderValue::from_bytes) {
        headers.insert(DATE, date);
    }
    let session = Canned::reply(200, headers.clone(), b"{}").session(now);
    let Ok(Reply { retry_after, .. }) = now_or_never(session.get("order", URL)) else {
        panic!("success was not taken for it");
    };
    // RFC 9110 section 10.2.3: digits are seconds, as far as they can be counted.
    let digits = asked.to_str().unwrap_or_default().trim();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = digits.parse().ok().map(Duration::from_secs);
        assert_eq!(retry_after, seconds, "{digits}");
    }
    let session = Canned::reply(429, headers, b"").session(now);
    match now_or_never(session.get("order", URL)) {
        Err(Cause::RateLimited {
            retry_after: limited,
            ..
        }) => assert_eq!(limited, retry_after),
        other => panic!("{:?}", other.err()),
    }
    retry_after
}

fn only_https(directory: &Directory) {
    let urls = [
        &directory.new_nonce,
        &directory.new_account,
        &directory.new_order,
    ];
    for url in urls.into_iter().chain(&directory.renewal_info) {
        let scheme = url.get(..8).unwrap_or_default();
        assert!(scheme.eq_ignore_ascii_case("https://"), "{url:?}");
    }
}

/// A token that is taken is a plain name of bounded length.
fn file_names(token: &str) {
    if Token::parse(token).is_ok() {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
        assert!(token.len() <= 128 && token.chars().all(plain), "{token:?}");
    }
}

/// Nothing that a CA says steers a terminal, breaks a line or floods a log.
fn told(cause: Cause, meta: &Meta) {
    shown(&cause.to_string());
    let mut cause = cause;
    for phase in PHASES {
        cause = cause.informed_by(meta, phase);
        assert!(!cause.hint().is_empty());
        shown(&cause.hint().replace('\n', "\\n"));
    }
}

fn shown(text: &str) {
    let steers = |letter: char| {
        letter.is_control() && letter != '\n' || ('\u{202a}'..='\u{2069}').contains(&letter)
    };
    assert!(!text.contains(steers), "{text:?}");
    // Each line is an identifier with a type and a detail, all of them cut; of
    // one letter an escape makes ten.
    let longest = if text.contains('\\') { 30_100 } else { 3_100 };
    let line = text.lines().map(|line| line.chars().count()).max();
    assert!(line.unwrap_or(0) <= longest, "{line:?} letters in a line");
    assert!(text.lines().count() <= 101);
}

/// Always the same reply.
struct Canned {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl Canned {
    fn reply(status: u16, headers: HeaderMap, body: &[u8]) -> Self {
        let body = Bytes::copy_from_slice(body);
        Self {
            status,
            headers,
            body,
        }
    }

    fn session(self, now: Timestamp) -> Session {
        Session::new(
            Arc::new(self),
            Arc::new(()),
            Arc::new(VirtualClock::new(now)),
        )
    }
}

#[async_trait]
impl Exchange for Canned {
    async fn exchange(&self, _request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let mut reply = Response::new(self.body.clone());
        *reply.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        *reply.headers_mut() = self.headers.clone();
        Ok(reply)
    }
}

/// A canned reply is there at once.
fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    match future.now_or_never() {
        Some(value) => value,
        None => panic!("it waits for something"),
    }
}
