//! A script of faults for the embedded CA: a layer around its service that loses, delays, breaks and forges.
//! The CA itself does not know of it.

mod forge;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use certs::random::{Random, SeededRandom};
use http::header::{CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower_service::Service;
use x509_parser::prelude::FromDer;

/// The purpose of a request, known by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    Directory,
    NewNonce,
    NewAccount,
    NewOrder,
    Authorization,
    Challenge,
    Order,
    Finalize,
    Certificate,
    RenewalInfo,
    Account,
    KeyChange,
    Revocation,
    Other,
}

impl Endpoint {
    fn of(path: &str) -> Self {
        if path.ends_with("/finalize") {
            return Self::Finalize;
        }
        let rest = path.strip_prefix("/acme/").unwrap_or(path);
        match rest.split('/').next().unwrap_or("") {
            "new-nonce" => Self::NewNonce,
            "new-account" => Self::NewAccount,
            "new-order" => Self::NewOrder,
            "authorization" => Self::Authorization,
            "challenge" => Self::Challenge,
            "order" => Self::Order,
            "certificate" => Self::Certificate,
            "renewal-info" => Self::RenewalInfo,
            "account" => Self::Account,
            "key-change" => Self::KeyChange,
            "revoke-certificate" => Self::Revocation,
            _ if path == "/directory" => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// A fault of one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends before the CA has received the request.
    DropBefore,
    /// The CA has acted, and its reply is lost.
    DropAfter,
    /// The CA never acts, and the connection stays open.
    HangBefore,
    /// The CA has acted, its reply never comes, and the connection stays open.
    HangAfter,
    /// The reply comes late.
    Delay(Duration),
    /// The CA acts once the script is cleared.
    Held,
    /// A reply of our own: status, content type, body, `Retry-After`.
    Reply(u16, &'static str, String, Option<&'static str>),
    /// Half of the body, then the end of the connection.
    Truncated,
    /// 100 MB in place of JSON.
    Endless,
    /// A redirect to another path on the same CA.
    Redirect,
    /// No `Replay-Nonce`.
    NoNonce,
    /// The percentage of nonces that are rejected, each with a fresh one.
    BadNonce(u64),
    /// Every challenge has this token.
    Token(String),
    /// Only challenges of unknown types.
    UnknownChallenges,
    /// A challenge of an unknown type before the others.
    OneMoreChallenge,
    /// The order stays `processing` for ever.
    Processing,
    /// The authorization and its challenges have these statuses, and the challenges an error.
    FailedName(&'static str, &'static str),
    /// The URLs of header and body lack scheme and host.
    RelativeUrls,
    /// An unusual or invalid chain.
    Chain(Chain),
    /// The JSON value at this pointer is replaced; `{}` is the old value.
    Field(&'static str, String),
    /// A header is added or replaced; `{}` is the old value.
    Header(&'static str, String),
    /// The first key of a certificate counts as leaked.
    LeakedKey,
    /// Every key counts as leaked.
    LeakedKeys,
}

/// How a chain is unusual or invalid.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chain {
    OfAnotherKey,
    Swapped,
    Expired,
    NoPem,
    WithoutIntermediate,
    /// The first certificate twice.
    Doubled,
    /// The certificate of another CA after the leaf.
    WithUnrelated,
    /// A leaf for further names of several kinds, signed with a P-521 key.
    MoreNames,
    /// A valid chain, after text that attacks shells and terminals.
    AfterWords,
}

impl Fault {
    pub(crate) fn problem(status: u16, kind: &str, detail: &str) -> Self {
        let kind = format!("urn:ietf:params:acme:error:{kind}");
        let body = json!({"type": kind, "detail": detail, "status": status});
        Self::Reply(status, "application/problem+json", body.to_string(), None)
    }

    pub(crate) fn rate_limited(retry_after: &'static str) -> Self {
        let kind = "urn:ietf:params:acme:error:rateLimited";
        let body = json!({"type": kind, "detail": "too many", "status": 429}).to_string();
        Self::Reply(429, "application/problem+json", body, Some(retry_after))
    }

    pub(crate) fn html(status: u16) -> Self {
        let body = "<html><body>welcome</body></html>".to_owned();
        Self::Reply(status, "text/html; charset=utf-8", body, None)
    }

    /// A reply with renewal information: the body, and `Retry-After`.
    pub(crate) fn renewal(body: &str, retry_after: Option<&'static str>) -> Self {
        Self::Reply(200, "application/json", body.to_owned(), retry_after)
    }
}

/// Which requests to an endpoint, counted from the creation of the rule.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Every,
    /// From 1.
    Nth(u32),
    /// This one and all later ones.
    From(u32),
}

/// The rules of faults, and counts of the requests. Clones share one script.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Scripted>>);

struct Scripted {
    rules: Vec<Rule>,
    counts: BTreeMap<Endpoint, u32>,
    committed: BTreeMap<Endpoint, u32>,
    invalid_orders: BTreeSet<String>,
    unfollowed: Option<String>,
    leaked: BTreeSet<Vec<u8>>,
    accounts: BTreeSet<String>,
    /// Seconds by which the CA's `Date` is ahead of the right time.
    ahead: i64,
    dice: SeededRandom,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            counts: BTreeMap::new(),
            committed: BTreeMap::new(),
            invalid_orders: BTreeSet::new(),
            unfollowed: None,
            leaked: BTreeSet::new(),
            accounts: BTreeSet::new(),
            ahead: 0,
            dice: SeededRandom::new(1),
        }
    }
}

struct Rule {
    /// `None` means any endpoint.
    endpoint: Option<Endpoint>,
    which: Which,
    seen: u32,
    fault: Fault,
}

impl Script {
    pub(crate) fn add(&self, endpoint: impl Into<Option<Endpoint>>, which: Which, fault: Fault) {
        let rule = Rule {
            endpoint: endpoint.into(),
            which,
            seen: 0,
            fault,
        };
        self.with(|scripted| scripted.rules.push(rule));
    }

    /// Removes all faults.
    pub(crate) fn clear(&self) {
        self.with(|scripted| scripted.rules.clear());
    }

    /// Makes every reply show a time this many seconds ahead.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.with(|scripted| scripted.ahead = seconds);
    }

    /// The `Date` of the CA's replies; `None` if its server sets the right one.
    fn date(&self) -> Option<HeaderValue> {
        let ahead = self.with(|scripted| scripted.ahead);
        let shown = time::OffsetDateTime::now_utc() + time::Duration::seconds(ahead);
        (ahead != 0).then(|| httpdate::fmt_http_date(shown.into()).parse().unwrap())
    }

    /// The number of requests.
    pub(crate) fn count(&self, endpoint: Endpoint) -> u32 {
        self.with(|scripted| scripted.counts.get(&endpoint).copied().unwrap_or(0))
    }

    /// The number of requests on which the CA has acted, whether or not its reply arrived.
    pub(crate) fn committed(&self, endpoint: Endpoint) -> u32 {
        self.with(|scripted| scripted.committed.get(&endpoint).copied().unwrap_or(0))
    }

    /// The number of orders that the CA has shown as invalid.
    pub(crate) fn invalid_orders(&self) -> u32 {
        self.with(|scripted| u32::try_from(scripted.invalid_orders.len()).unwrap())
    }

    /// The number of keys that the CA has refused.
    pub(crate) fn leaked(&self) -> usize {
        self.with(|scripted| scripted.leaked.len())
    }

    /// The number of accounts that have a URL.
    pub(crate) fn accounts(&self) -> usize {
        self.with(|scripted| scripted.accounts.len())
    }

    /// The URL of the newest order, until its authorization is requested.
    pub(crate) fn unfollowed_order(&self) -> Option<String> {
        self.with(|scripted| scripted.unfollowed.clone())
    }

    /// Counts a request and returns its fault.
    fn next(&self, endpoint: Endpoint) -> Option<Fault> {
        self.with(|scripted| {
            *scripted.counts.entry(endpoint).or_default() += 1;
            if endpoint == Endpoint::Authorization {
                scripted.unfollowed = None;
            }
            let mut hit = None;
            for rule in &mut scripted.rules {
                if rule.endpoint.is_some_and(|wanted| wanted != endpoint) {
                    continue;
                }
                rule.seen += 1;
                let applies = match rule.which {
                    Which::Every => true,
                    Which::Nth(n) => rule.seen == n,
                    Which::From(n) => rule.seen >= n,
                };
                let applies = applies
                    && match rule.fault {
                        Fault::BadNonce(percent) => scripted.dice.below(100) < percent,
                        _ => true,
                    };
                if applies && hit.is_none() {
                    hit = Some(rule.fault.clone());
                }
            }
            hit
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Scripted) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The connection ends without a reply.
#[derive(Debug)]
pub(crate) struct ConnectionDropped;

impl fmt::Display for ConnectionDropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dropped by the script")
    }
}

impl std::error::Error for ConnectionDropped {}

/// A CA's service behind a script; usable without a socket too.
#[derive(Clone)]
pub(crate) struct FaultyService {
    router: Router,
    script: Script,
}

impl FaultyService {
    pub(crate) fn new(router: Router, script: Script) -> Self {
        Self { router, script }
    }
}

impl<B> Service<Request<B>> for FaultyService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let endpoint = Endpoint::of(request.uri().path());
        let fault = self.script.next(endpoint);
        let ca = CountedCa {
            router: self.router.clone(),
            script: self.script.clone(),
            endpoint,
        };
        let (script, request) = (self.script.clone(), request.map(Body::new));
        Box::pin(async move {
            let reply = answer(ca, request, fault).await;
            // A body that fails before its first byte ends the connection without a reply.
            let mut reply = reply.unwrap_or_else(|_| Response::new(forge::broken_off()));
            if let Some(date) = script.date() {
                reply.headers_mut().insert(DATE, date);
            }
            Ok(reply)
        })
    }
}

/// The CA itself, behind the script.
struct CountedCa {
    router: Router,
    script: Script,
    endpoint: Endpoint,
}

impl CountedCa {
    async fn ask(&mut self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let reply = ask(&mut self.router, request).await;
        if reply.status().is_success() {
            let endpoint = self.endpoint;
            let url = reply.headers().get(LOCATION);
            let url = url.map(|url| url.to_str().unwrap().to_owned());
            self.script.with(|scripted| {
                *scripted.committed.entry(endpoint).or_default() += 1;
                match endpoint {
                    Endpoint::NewOrder => scripted.unfollowed = url,
                    Endpoint::NewAccount => scripted.accounts.extend(url),
                    _ => {}
                }
            });
        }
        match self.endpoint {
            Endpoint::Order => self.record_invalid(path, reply).await,
            _ => reply,
        }
    }

    async fn record_invalid(&self, path: String, reply: Response<Body>) -> Response<Body> {
        let (parts, body) = reply.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let order: Value = serde_json::from_slice(&body).unwrap_or_default();
        if order["status"] == "invalid" {
            self.script
                .with(|scripted| scripted.invalid_orders.insert(path));
        }
        Response::from_parts(parts, Body::from(body))
    }
}

async fn ask(router: &mut Router, request: Request<Body>) -> Response<Body> {
    let answered: Result<_, Infallible> = router.call(request).await;
    answered.unwrap_or_else(|never| match never {})
}

async fn answer(
    mut ca: CountedCa,
    request: Request<Body>,
    fault: Option<Fault>,
) -> Result<Response<Body>, ConnectionDropped> {
    let Some(fault) = fault else {
        return Ok(ca.ask(request).await);
    };
    if let Fault::LeakedKey | Fault::LeakedKeys = fault {
        let all = matches!(fault, Fault::LeakedKeys);
        return Ok(ask_with_leaked_key(ca, request, all).await);
    }
    match fault {
        Fault::DropBefore => return Err(ConnectionDropped),
        Fault::HangBefore => return std::future::pending().await,
        Fault::HangAfter => {
            ca.ask(request).await;
            return std::future::pending().await;
        }
        Fault::BadNonce(_) if request.method() == http::Method::POST => {
            return Ok(bad_nonce(ca.router).await);
        }
        Fault::Reply(status, kind, body, retry_after) => {
            return Ok(scripted(status, kind, body, retry_after));
        }
        Fault::Redirect => {
            let mut reply = scripted(307, "text/plain", String::new(), None);
            let to = HeaderValue::from_static("/directory");
            reply.headers_mut().insert(LOCATION, to);
            return Ok(reply);
        }
        Fault::Endless => {
            let mut reply = scripted(200, "application/json", String::new(), None);
            *reply.body_mut() = Body::new(Flood(100_000_000));
            return Ok(reply);
        }
        Fault::Delay(by) => tokio::time::sleep(by).await,
        Fault::Held => {
            while ca.script.with(|scripted| !scripted.rules.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        _ => {}
    }
    let reply = ca.ask(request).await;
    match fault {
        Fault::DropAfter => Err(ConnectionDropped),
        fault => Ok(forge::apply(reply, &fault).await),
    }
}

/// Refuses the key of the request's CSR if it is the first, or if `all` are refused.
async fn ask_with_leaked_key(
    mut ca: CountedCa,
    request: Request<Body>,
    all: bool,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let key = key_asked_for(&body);
    let leaked = ca.script.with(|scripted| {
        if all || scripted.leaked.is_empty() {
            scripted.leaked.insert(key.clone());
        }
        scripted.leaked.contains(&key)
    });
    if leaked {
        let kind = "urn:ietf:params:acme:error:badPublicKey";
        let body = json!({"type": kind, "detail": "this key has leaked", "status": 400});
        let mut reply = scripted(400, "application/problem+json", body.to_string(), None);
        let nonce = bad_nonce(ca.router).await.headers()["replay-nonce"].clone();
        reply.headers_mut().insert("replay-nonce", nonce);
        return reply;
    }
    ca.ask(Request::from_parts(parts, Body::from(body))).await
}

fn key_asked_for(body: &[u8]) -> Vec<u8> {
    let decode = |value: &Value| {
        let text = value.as_str().unwrap();
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    };
    let jws: Value = serde_json::from_slice(body).unwrap();
    let payload: Value = serde_json::from_slice(&decode(&jws["payload"])).unwrap();
    let der = decode(&payload["csr"]);
    let parsed = x509_parser::certification_request::X509CertificationRequest::from_der(&der);
    let info = parsed.unwrap().1.certification_request_info;
    info.subject_pki.raw.to_vec()
}

fn scripted(
    status: u16,
    kind: &'static str,
    body: String,
    retry_after: Option<&'static str>,
) -> Response<Body> {
    let mut reply = Response::new(Body::from(body));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(wait) = retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from_static(wait));
    }
    reply
}

async fn bad_nonce(mut router: Router) -> Response<Body> {
    let head = Request::head("/acme/new-nonce")
        .body(Body::empty())
        .unwrap();
    let fresh = ask(&mut router, head).await;
    let kind = "urn:ietf:params:acme:error:badNonce";
    let body = json!({"type": kind, "detail": "as scripted", "status": 400}).to_string();
    let mut reply = scripted(400, "application/problem+json", body, None);
    let nonce = fresh.headers()["replay-nonce"].clone();
    reply.headers_mut().insert("replay-nonce", nonce);
    reply
}

/// A number of spaces, which may precede any JSON.
struct Flood(u64);

impl http_body::Body for Flood {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        static PIECE: [u8; 65_536] = [b' '; 65_536];
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        self.0 = self.0.saturating_sub(PIECE.len() as u64);
        let frame = http_body::Frame::data(Bytes::from_static(&PIECE));
        Poll::Ready(Some(Ok(frame)))
    }
}
