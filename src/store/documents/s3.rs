//! Documents as objects of S3, or of a server that speaks its language and keeps conditions
//! on a PUT. A version is an `ETag`, which is a hash of the content: each object begins with a
//! line with a random number, so that none is ever repeated, not even after a removal.
//!
//! ```text
//! certs/1 stored NUMBER   and the content
//! certs/1 gone NUMBER     the document was removed
//! ```
//!
//! Not every server keeps a condition on a DELETE. Where the first removal of a process finds
//! that this one does, removals delete the object; elsewhere they write the mark `gone`, which
//! a later document replaces.

mod object;
mod place;
mod probe;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ETAG, HOST, HeaderName, IF_MATCH, IF_NONE_MATCH, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::OnceCell;

use self::object::{GONE_SIZE, Object, object_of, opened};
use self::place::Place;
use super::exchange::{Effect, WITHIN, date, denied, exchange, failed};
use super::settings::ServerSettings;
use super::{Document, Documents, DocumentsError, Version, drawn};
use crate::fingerprint::Fingerprint;
use crate::net::aws::Role;
use crate::net::aws::signature::sign_request;
use crate::net::pool::Pool;
use crate::net::roots::SystemRoots;
use crate::text::printable;
use crate::time::{Clock, SystemClock, Timestamp};

/// What is not escaped in a query, and in a path.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
const PATH: &AsciiSet = &QUERY.remove(b'/');
/// A busy server replies 503 now and then: a call that did nothing is repeated after this
/// time, and after four times as long.
const PAUSE: Duration = Duration::from_millis(100);
const TRIES: u32 = 3;
/// S3's own limit.
const PAGE: usize = 1000;
/// Far above an honest listing: ten million objects.
const MOST_PAGES: usize = 10_000;

/// A bucket, below a prefix that is ours.
pub(super) struct S3Documents {
    pool: Pool,
    role: Role,
    clock: Arc<dyn Clock>,
    place: Place,
    page: usize,
    pause: Duration,
    /// Whether the server keeps a condition on a DELETE; not known before the first removal.
    deletes: OnceCell<bool>,
}

/// A condition of a write.
enum Only<'v> {
    IfAbsent,
    If(&'v str),
}

impl Only<'_> {
    fn header(&self) -> (HeaderName, String) {
        match self {
            Self::IfAbsent => (IF_NONE_MATCH, "*".to_owned()),
            Self::If(tag) => (IF_MATCH, format!("\"{tag}\"")),
        }
    }
}

impl S3Documents {
    /// The documents of a bucket.
    ///
    /// # Errors
    /// What is invalid in the settings.
    pub(super) fn new(settings: ServerSettings) -> Result<Self, String> {
        let place = Place::of(&settings)?;
        let roots = SystemRoots::of(&settings.environment);
        let resolver = settings.resolver.clone();
        let pool = Pool::new(settings.proxies.clone(), resolver.clone(), &roots)?;
        let variables = move |name: &str| settings.variable(name).map(str::to_owned);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        Ok(Self {
            pool,
            role: Role::with(variables, clock.clone(), resolver),
            clock,
            place,
            page: PAGE,
            pause: PAUSE,
            deletes: OnceCell::new(),
        })
    }

    fn path_of(&self, key: &str) -> String {
        let path = format!("{}{key}", self.place.prefix);
        format!("/{}", utf8_percent_encode(&path, PATH))
    }

    /// Sends a signed request, again where the server is busy and has done nothing; the path
    /// and the query, if any, are escaped.
    async fn call(
        &self,
        method: Method,
        path: &str,
        only: Option<Only<'_>>,
        body: Vec<u8>,
    ) -> Result<Response<Bytes>, DocumentsError> {
        let effect = match method {
            Method::GET => Effect::Reads,
            _ => Effect::Writes,
        };
        let body = Bytes::from(body);
        let mut pause = self.pause;
        for _ in 1..TRIES {
            let sent = self.send(&method, path, only.as_ref(), &body, effect).await;
            match sent {
                Ok(reply) if is_busy(&reply, effect) => {}
                sent => return sent,
            }
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
        self.send(&method, path, only.as_ref(), &body, effect).await
    }

    async fn send(
        &self,
        method: &Method,
        path: &str,
        only: Option<&Only<'_>>,
        body: &Bytes,
        effect: Effect,
    ) -> Result<Response<Bytes>, DocumentsError> {
        let Place {
            bucket,
            host,
            region,
            ..
        } = &self.place;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{bucket}{path}"))
            .header(HOST, host);
        if let Some((name, value)) = only.map(Only::header) {
            request = request.header(name, value);
        }
        let (mut head, ()) = request.body(()).map_err(failed)?.into_parts();
        let keys = self.role.keys().await.map_err(failed)?;
        let hash = Fingerprint::of(body);
        sign_request(&mut head, &hash, &keys, region, self.clock.now()).map_err(failed)?;
        let agent = concat!("certs/", env!("CARGO_PKG_VERSION"));
        head.headers
            .insert(USER_AGENT, http::HeaderValue::from_static(agent));
        let request = Request::from_parts(head, Full::new(body.clone()));
        exchange(&self.pool, request, WITHIN, effect).await
    }

    /// What a reply that says no success means for a call with this effect.
    fn refused(&self, reply: &Response<Bytes>, effect: Effect) -> DocumentsError {
        let (code, said) = reply::error(reply.body());
        let status = reply.status();
        let lost = match code.as_str() {
            "NoSuchKey" => effect == Effect::Writes,
            "ConditionalRequestConflict" | "OperationAborted" => true,
            _ => status == StatusCode::PRECONDITION_FAILED,
        };
        if lost {
            return DocumentsError::Conflict;
        }
        let mut shown = match code.is_empty() {
            true => format!("{} replied {status}, not as S3 does", self.place.host),
            false => format!("{} replied {status}: {code}: {said}", self.place.host),
        };
        let header = |name| {
            reply
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        if let Some(region) = header("x-amz-bucket-region").filter(|one| *one != self.place.region)
        {
            shown += &format!(" (the bucket is in {region}: set AWS_REGION)");
        }
        if let ("RequestTimeTooSkewed", Ok(theirs)) = (code.as_str(), date(reply.headers())) {
            let ours = self.clock.now();
            shown += &format!(" (the server's clock says {theirs}, that of this machine {ours})");
        }
        let shown = printable(&shown);
        let did_nothing = ["SlowDown", "NotImplemented"].contains(&&*code);
        match status.is_server_error() && !did_nothing {
            true => effect.unknown(shown),
            false if status.is_server_error() => failed(shown),
            false => denied(shown),
        }
    }

    /// An object and its tag; `None` where there is none.
    async fn object(&self, key: &str) -> Result<Option<(Object, String)>, DocumentsError> {
        let reply = self
            .call(Method::GET, &self.path_of(key), None, Vec::new())
            .await?;
        // A page of another server that says "404 Not Found" does not say that we have none.
        if reply.status() == StatusCode::NOT_FOUND && reply::error(reply.body()).0 == "NoSuchKey" {
            return Ok(None);
        }
        if reply.status() != StatusCode::OK {
            return Err(self.refused(&reply, Effect::Reads));
        }
        let tag = tag_of(&reply).ok_or_else(|| failed("its reply has no ETag"))?;
        Ok(Some((opened(reply.body())?, tag)))
    }

    /// Writes an object on a condition, and returns its tag.
    async fn put(
        &self,
        key: &str,
        content: Option<&[u8]>,
        only: Only<'_>,
    ) -> Result<Version, DocumentsError> {
        let (path, body) = (self.path_of(key), object_of(content));
        let reply = self.call(Method::PUT, &path, Some(only), body).await?;
        match (reply.status().is_success(), tag_of(&reply)) {
            (true, Some(tag)) => Ok(Version(tag)),
            (true, None) => Err(Effect::Writes.unknown("its reply has no ETag")),
            (false, _) => Err(self.refused(&reply, Effect::Writes)),
        }
    }

    async fn delete(&self, key: &str, only: Option<Only<'_>>) -> Result<(), DocumentsError> {
        let path = self.path_of(key);
        let reply = self.call(Method::DELETE, &path, only, Vec::new()).await?;
        match reply.status().is_success() {
            true => Ok(()),
            false => Err(self.refused(&reply, Effect::Writes)),
        }
    }
}

/// Whether the server is busy, and has done nothing that a repetition would do twice.
fn is_busy(reply: &Response<Bytes>, effect: Effect) -> bool {
    reply.status().is_server_error()
        && (effect == Effect::Reads || reply::error(reply.body()).0 == "SlowDown")
}

fn tag_of(reply: &Response<Bytes>) -> Option<String> {
    let tag = reply.headers().get(ETAG)?.to_str().ok()?;
    // A proxy that compresses makes it a weak one.
    let tag = tag.trim_start_matches("W/").trim_matches('"');
    (!tag.is_empty()).then(|| tag.to_owned())
}

impl fmt::Debug for S3Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Documents").field(&self.place).finish()
    }
}

#[async_trait]
impl Documents for S3Documents {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        Ok(match self.object(key).await? {
            Some((Object::Stored(content), tag)) => Some(Document {
                content,
                version: Version(tag),
            }),
            Some((Object::Gone, _)) | None => None,
        })
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        if let Some(Version(tag)) = expected {
            return self.put(key, Some(content), Only::If(tag)).await;
        }
        match self.put(key, Some(content), Only::IfAbsent).await {
            Err(DocumentsError::Conflict) => match self.object(key).await? {
                Some((Object::Gone, tag)) => self.put(key, Some(content), Only::If(&tag)).await,
                _ => Err(DocumentsError::Conflict),
            },
            written => written,
        }
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let only = Only::If(&expected.0);
        match self.deletes.get_or_init(|| self.keeps_deletes()).await {
            true => self.delete(key, Some(only)).await,
            false => self.put(key, None, only).await.map(drop),
        }
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let escaped = |text: &str| utf8_percent_encode(text, QUERY).to_string();
        let ours = &self.place.prefix;
        let mut found = BTreeMap::new();
        let mut next: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let page = self.page;
            let below = escaped(&format!("{ours}{prefix}"));
            let mut path =
                format!("/?encoding-type=url&list-type=2&max-keys={page}&prefix={below}");
            if let Some(next) = &next {
                path += &format!("&continuation-token={}", escaped(next));
            }
            let reply = self.call(Method::GET, &path, None, Vec::new()).await?;
            if reply.status() != StatusCode::OK {
                return Err(self.refused(&reply, Effect::Reads));
            }
            let page = reply::page(reply.body()).map_err(failed)?;
            let stored = page.objects.into_iter().filter(|one| one.size > GONE_SIZE);
            found.extend(stored.filter_map(|one| {
                let key = one.key.strip_prefix(ours)?;
                (key.starts_with(prefix) && is_key(key)).then(|| (key.to_owned(), Version(one.tag)))
            }));
            next = page.next;
            if next.is_none() {
                return Ok(found);
            }
        }
        Err(failed("its listing has no end"))
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        let reply = self
            .call(Method::GET, &self.path_of("time"), None, Vec::new())
            .await?;
        let is_absent = reply::error(reply.body()).0 == "NoSuchKey";
        match is_absent || reply.status().is_success() {
            true => date(reply.headers()),
            false => Err(self.refused(&reply, Effect::Reads)),
        }
    }

    async fn probe(&self) -> Result<(), DocumentsError> {
        let key = format!("probe/{}", drawn());
        let checked = self.check_conditions(&key).await;
        // It is ours alone; a role without the right to delete leaves it there.
        let _ = self.delete(&key, None).await;
        checked
    }
}

/// Whether it can be the key of a document: another program may store things here.
fn is_key(key: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/*".contains(&byte);
    key.bytes().all(is_known) && !key.ends_with('/')
}
