//! The checks of `fuzz/` on a CA's replies. Each reply takes the real path, from
//! an [`Exchange`] through a [`Transport`]; nothing is sent.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Request, Response, StatusCode};

use super::directory::{Directory, Meta};
use super::error::{Cause, ExchangeError, Phase};
use super::exchange::{Exchange, Reply, Transport};
use super::{documents, problem, renewal_info};
use crate::challenge::Token;
use crate::record::Window;
use crate::time::{Timestamp, VirtualClock};

const URL: &str = "https://ca.test/";
const PHASES: [Phase; 3] = [Phase::Directory, Phase::Account, Phase::Order];

/// Reads the body as every document of ACME, and as a problem under every class of
/// HTTP status.
pub(crate) fn documents(body: &[u8]) {
    let now = Timestamp::from_seconds(0);
    let transport = FixedReply::new(200, HeaderMap::new(), body).transport(now);
    let directory = now_or_never(Directory::read(&transport, URL));
    if let Ok(directory) = &directory {
        check_urls(directory);
    }
    if let Ok(order) = documents::order(body) {
        order.error.as_ref().map(problem::kind);
    }
    if let Ok(authorization) = documents::authorization(body) {
        for challenge in &authorization.challenges {
            check_token(&challenge.token);
            if let Some(problem) = &challenge.error {
                check_message(Cause::of_challenge(problem), &Meta::default());
            }
        }
    }
    let none = Meta::default();
    let meta = directory
        .as_ref()
        .map_or(&none, |directory| &directory.meta);
    check_message(Cause::invalid_profile("classic", meta), meta);
    for status in [400, 403, 429, 500, 503] {
        let mut headers = HeaderMap::new();
        let problem_json = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, problem_json);
        let transport = FixedReply::new(status, headers, body).transport(now);
        match now_or_never(transport.get("order", URL)) {
            Ok(_) => panic!("HTTP {status} was read as success"),
            Err(cause) => check_message(cause, meta),
        }
    }
}

/// The window that `body` suggests, and when to fetch it again.
pub(crate) fn renewal_info(body: &[u8], now: Timestamp) -> Option<(Window, Duration)> {
    let transport = FixedReply::new(200, HeaderMap::new(), body).transport(now);
    match now_or_never(renewal_info::read(&transport, URL, "YQ.Yg")) {
        Ok(answer) => answer,
        Err(cause) => {
            check_message(cause, &Meta::default());
            None
        }
    }
}

/// The pause of a `Retry-After`. The first line of `text` is its value, the second
/// the value of `Date`.
pub(crate) fn retry_after(text: &[u8], now: Timestamp) -> Option<Duration> {
    let mut lines = text.splitn(2, |byte| *byte == b'\n');
    let value = HeaderValue::from_bytes(lines.next()?).ok()?;
    let mut headers = HeaderMap::new();
    headers.insert(RETRY_AFTER, value.clone());
    if let Some(Ok(date)) = lines.next().map(HeaderValue::from_bytes) {
        headers.insert(DATE, date);
    }
    let transport = FixedReply::new(200, headers.clone(), b"{}").transport(now);
    let Ok(Reply { retry_after, .. }) = now_or_never(transport.get("order", URL)) else {
        panic!("HTTP 200 was not read as success");
    };
    // RFC 9110 section 10.2.3: digits are seconds, if they fit an integer.
    let digits = value.to_str().unwrap_or_default().trim();
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = digits.parse().ok().map(Duration::from_secs);
        assert_eq!(retry_after, seconds, "{digits}");
    }
    let transport = FixedReply::new(429, headers, b"").transport(now);
    match now_or_never(transport.get("order", URL)) {
        Err(Cause::RateLimited {
            retry_after: limited,
            ..
        }) => assert_eq!(limited, retry_after),
        other => panic!("{:?}", other.err()),
    }
    retry_after
}

fn check_urls(directory: &Directory) {
    for url in directory.urls() {
        let scheme = url.get(..8).unwrap_or_default();
        assert!(scheme.eq_ignore_ascii_case("https://"), "{url:?}");
    }
}

/// An accepted token is safe as a file name and bounded.
fn check_token(token: &str) {
    if Token::parse(token).is_ok() {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
        assert!(token.len() <= 128 && token.chars().all(plain), "{token:?}");
    }
}

/// No text of a CA controls a terminal, breaks a line or floods a log.
fn check_message(cause: Cause, meta: &Meta) {
    check_text(&cause.to_string());
    let mut cause = cause;
    for phase in PHASES {
        cause = cause.with_hint_from(meta, phase);
        assert!(!cause.hint().is_empty());
        check_text(&cause.hint().replace('\n', "\\n"));
    }
}

fn check_text(text: &str) {
    let is_control = |letter: char| {
        letter.is_control() && letter != '\n' || ('\u{202a}'..='\u{2069}').contains(&letter)
    };
    assert!(!text.contains(is_control), "{text:?}");
    // A line is an identifier, a type and a detail, each truncated; an escaped
    // letter takes ten.
    let longest = if text.contains('\\') { 30_100 } else { 3_100 };
    let line = text.lines().map(|line| line.chars().count()).max();
    assert!(line.unwrap_or(0) <= longest, "{line:?} letters in a line");
    assert!(text.lines().count() <= 101);
}

/// An exchange with a fixed reply.
struct FixedReply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

impl FixedReply {
    fn new(status: u16, headers: HeaderMap, body: &[u8]) -> Self {
        let body = Bytes::copy_from_slice(body);
        Self {
            status,
            headers,
            body,
        }
    }

    fn transport(self, now: Timestamp) -> Transport {
        Transport::new(
            Arc::new(self),
            Arc::new(()),
            Arc::new(VirtualClock::new(now)),
            Arc::default(),
        )
    }
}

#[async_trait]
impl Exchange for FixedReply {
    async fn exchange(&self, _request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError> {
        let mut reply = Response::new(self.body.clone());
        *reply.status_mut() = StatusCode::from_u16(self.status).unwrap_or_default();
        *reply.headers_mut() = self.headers.clone();
        Ok(reply)
    }
}

/// The result of a future that never waits: a fixed reply is ready at once.
fn now_or_never<T>(future: impl Future<Output = T>) -> T {
    match future.now_or_never() {
        Some(value) => value,
        None => panic!("the future waits"),
    }
}
