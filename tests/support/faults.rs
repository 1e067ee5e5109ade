//! The embedded CA on a port of its own, and a script of what goes wrong with
//! it: a layer round its service that loses, delays, breaks and forges. The
//! CA itself knows nothing of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use certs::ca::{Identity, Resolve, Server, Settings, Validation, serve};
use certs::random::{Random, SeededRandom};
use certs::time::SystemClock;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use rcgen::{CertificateParams, Issuer, KeyPair, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tower_service::Service;
use x509_parser::prelude::FromDer;

use super::{certs, free_port};

/// What a request is for, told by its path.
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
            _ if path == "/directory" => Self::Directory,
            _ => Self::Other,
        }
    }
}

/// What goes wrong with one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection ends before the CA has seen the request.
    DropBefore,
    /// The CA has acted; its reply is lost.
    DropAfter,
    /// The reply comes late.
    Delay(Duration),
    /// A reply of our own: status, content type, body, `Retry-After`.
    Reply(u16, &'static str, String, Option<&'static str>),
    /// Half of the body, and the end of the connection.
    Truncated,
    /// 100 MB where JSON belongs.
    Endless,
    /// To another place on the same CA.
    Redirect,
    /// No `Replay-Nonce`.
    NoNonce,
    /// This many of a hundred nonces are rejected, each with a fresh one.
    BadNonce(u64),
    /// Every challenge has this token.
    Token(String),
    /// Nothing but challenges of kinds that nobody knows.
    UnknownChallenges,
    /// A challenge of an unknown kind before the others.
    OneMoreChallenge,
    /// The order is for ever `processing`.
    Processing,
    /// Another chain than the right one.
    Chain(Chain),
}

/// How a chain is wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chain {
    OfAnotherKey,
    Swapped,
    Expired,
    NoPem,
    WithoutIntermediate,
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

    /// A reply about renewal: the body, and `Retry-After`.
    pub(crate) fn renewal(body: &str, retry_after: Option<&'static str>) -> Self {
        Self::Reply(200, "application/json", body.to_owned(), retry_after)
    }
}

/// Which of the requests to an endpoint, counted from when the rule was made.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which {
    Every,
    /// From 1.
    Nth(u32),
}

/// What shall go wrong, and how often was asked for what. Clones are one script.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Scripted>>);

struct Scripted {
    rules: Vec<Rule>,
    counts: BTreeMap<Endpoint, u32>,
    dice: SeededRandom,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            counts: BTreeMap::new(),
            dice: SeededRandom::new(1),
        }
    }
}

struct Rule {
    /// `None`: any.
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

    /// Nothing goes wrong from here on.
    pub(crate) fn clear(&self) {
        self.with(|scripted| scripted.rules.clear());
    }

    /// How many requests there were.
    pub(crate) fn count(&self, endpoint: Endpoint) -> u32 {
        self.with(|scripted| scripted.counts.get(&endpoint).copied().unwrap_or(0))
    }

    /// Counts a request and says what goes wrong with it.
    fn next(&self, endpoint: Endpoint) -> Option<Fault> {
        self.with(|scripted| {
            *scripted.counts.entry(endpoint).or_default() += 1;
            let mut hit = None;
            for rule in &mut scripted.rules {
                if rule.endpoint.is_some_and(|wanted| wanted != endpoint) {
                    continue;
                }
                rule.seen += 1;
                let applies = match rule.which {
                    Which::Every => true,
                    Which::Nth(n) => rule.seen == n,
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
pub(crate) struct Dropped;

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("dropped by the script")
    }
}

impl std::error::Error for Dropped {}

/// A CA's service with a script round it; also without any socket.
#[derive(Clone)]
pub(crate) struct Faulty {
    router: Router,
    script: Script,
}

impl Faulty {
    pub(crate) fn new(router: Router, script: Script) -> Self {
        Self { router, script }
    }
}

impl<B> Service<Request<B>> for Faulty
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Body>;
    type Error = Dropped;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Dropped>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Dropped>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let endpoint = Endpoint::of(request.uri().path());
        let fault = self.script.next(endpoint);
        let router = self.router.clone();
        Box::pin(answer(router, request.map(Body::new), fault))
    }
}

async fn ask(mut router: Router, request: Request<Body>) -> Response<Body> {
    let answered: Result<_, Infallible> = router.call(request).await;
    answered.unwrap_or_else(|never| match never {})
}

async fn answer(
    router: Router,
    request: Request<Body>,
    fault: Option<Fault>,
) -> Result<Response<Body>, Dropped> {
    let Some(fault) = fault else {
        return Ok(ask(router, request).await);
    };
    match fault {
        Fault::DropBefore => return Err(Dropped),
        Fault::BadNonce(_) if request.method() == http::Method::POST => {
            return Ok(bad_nonce(router).await);
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
        _ => {}
    }
    let reply = ask(router, request).await;
    match fault {
        Fault::DropAfter => Err(Dropped),
        fault => Ok(spoil(reply, &fault).await),
    }
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

async fn bad_nonce(router: Router) -> Response<Body> {
    let head = Request::head("/acme/new-nonce")
        .body(Body::empty())
        .unwrap();
    let fresh = ask(router, head).await;
    let kind = "urn:ietf:params:acme:error:badNonce";
    let body = json!({"type": kind, "detail": "as scripted", "status": 400}).to_string();
    let mut reply = scripted(400, "application/problem+json", body, None);
    let nonce = fresh.headers()["replay-nonce"].clone();
    reply.headers_mut().insert("replay-nonce", nonce);
    reply
}

async fn spoil(reply: Response<Body>, fault: &Fault) -> Response<Body> {
    let (mut parts, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let json = || serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let body = match fault {
        Fault::NoNonce => {
            parts.headers.remove("replay-nonce");
            Body::from(body)
        }
        Fault::Truncated => {
            let whole = body.len();
            parts.headers.insert(CONTENT_LENGTH, whole.into());
            Body::new(Cut(Some(body.slice(..whole / 2))))
        }
        Fault::Token(token) => Body::from(forge_challenges(json(), |challenges| {
            for challenge in challenges {
                challenge["token"] = token.as_str().into();
            }
        })),
        Fault::UnknownChallenges => Body::from(forge_challenges(json(), |challenges| {
            for challenge in challenges {
                challenge["type"] = "telepathy-01".into();
            }
        })),
        Fault::OneMoreChallenge => Body::from(forge_challenges(json(), |challenges| {
            let strange = json!({"type": "telepathy-01", "status": "pending", "url": "https://a.example/", "thought": [1]});
            challenges.insert(0, strange);
        })),
        Fault::Processing => {
            let mut order = json();
            order["status"] = "processing".into();
            order.as_object_mut().unwrap().remove("certificate");
            Body::from(order.to_string())
        }
        Fault::Chain(how) => Body::from(forge_chain(std::str::from_utf8(&body).unwrap(), *how)),
        _ => Body::from(body),
    };
    Response::from_parts(parts, body)
}

fn forge_challenges(mut authorization: Value, forge: impl FnOnce(&mut Vec<Value>)) -> String {
    if let Some(challenges) = authorization["challenges"].as_array_mut() {
        forge(challenges);
    }
    authorization.to_string()
}

fn forge_chain(chain: &str, how: Chain) -> String {
    let (leaf, issuers) = chain.split_at(chain[1..].find("-----BEGIN").unwrap() + 1);
    let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let mut params = CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
    let now = time::OffsetDateTime::from(std::time::UNIX_EPOCH)
        + time::Duration::seconds(parsed.validity().not_before.timestamp());
    match how {
        Chain::Swapped => format!("{issuers}{leaf}"),
        Chain::WithoutIntermediate => leaf.to_owned(),
        Chain::NoPem => "-----BEGIN CERTIFICATE-----\nnot base64!\n".to_owned(),
        Chain::OfAnotherKey => {
            params.not_before = now;
            params.not_after = now + time::Duration::days(90);
            let other = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&other, &issuer).unwrap().pem();
            format!("{leaf}{ca_pem}")
        }
        Chain::Expired => {
            params.not_before = now - time::Duration::days(90);
            params.not_after = now - time::Duration::days(1);
            let leaf = params.signed_by(&key, &issuer).unwrap().pem();
            format!("{leaf}{ca_pem}")
        }
    }
}

/// So many bytes of white space, which begin any JSON.
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

/// A part of a body, and then an error, which ends the connection.
struct Cut(Option<Bytes>);

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = Dropped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Dropped>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(part) => Ok(http_body::Frame::data(part)),
            None => Err(Dropped),
        }))
    }
}

/// The embedded CA over TLS on loopback, with a script; it sends every name to
/// loopback and keeps nothing.
pub(crate) struct EmbeddedCa {
    pub(crate) script: Script,
    pub(crate) server: Server,
    /// Where it fetches HTTP-01 answers.
    pub(crate) http_port: u16,
    directory: TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl EmbeddedCa {
    pub(crate) fn start() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let http_port = free_port();
        let mut settings = Settings::new(format!("https://{address}"));
        settings.validation = Validation::Http {
            port: http_port,
            resolve: Resolve::Fixed(Ipv4Addr::LOCALHOST.into()),
        };
        change(&mut settings);
        let server = Server::new(settings, Arc::new(SystemClock)).unwrap();
        std::fs::write(directory.path().join("root.pem"), server.root_pem()).unwrap();
        let script = Script::default();
        let service = Faulty::new(server.router(), script.clone());
        let identity = Identity::new(&server, address.ip()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, identity, service) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            script,
            server,
            http_port,
            directory,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `certs issue` against this CA, with its own data directory.
    pub(crate) fn issue(&self, arguments: &[&str]) -> Command {
        let mut command = certs(self.directory.path());
        command
            .args(["issue", "--agree-tos", "--ca", &self.server.directory_url()])
            .arg("--ca-root")
            .arg(self.path("root.pem"))
            .args(["--http-listen", &format!("127.0.0.1:{}", self.http_port)])
            .args(arguments);
        command
    }
}

impl Drop for EmbeddedCa {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // A thread that has ended already is what was wanted.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the CA's thread has failed"
            );
        }
    }
}
