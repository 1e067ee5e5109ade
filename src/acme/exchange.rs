//! One request and its reply. An [`Exchange`] sends it, over https or inside
//! this process. A [`Transport`] signs it with a pooled nonce, repeats it while the
//! CA rejects the nonce (RFC 8555 section 6.5), and turns every reply but success
//! into a [`Cause`].
//!
//! It never sends to a URL that is not https. Each reply keeps its own status,
//! `Retry-After`, `Date`, `Location` and links, so that concurrent requests never
//! read each other's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HeaderName, LINK, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use instant_acme::Problem;
use serde::de::DeserializeOwned;
use serde_json::Value;
use time::OffsetDateTime;

use super::error::{Cause, ExchangeError};
use super::jws::{Signer, is_base64url};
use super::problem;
use super::rate::{Limiter, RateGroup};
use super::{ClockReading, Observer};
use crate::net::url::{normalized, resolved};
use crate::text::printable;
use crate::time::{Clock, Timestamp};

const NONCE: HeaderName = HeaderName::from_static("replay-nonce");
/// More than any flow has in flight; a nonce lives for hours at most.
const POOLED_NONCES: usize = 64;
/// With half of its nonces rejected, one request in two million still fails.
const NONCE_RETRIES: u32 = 20;
/// More alternate chains than any known CA offers.
const MOST_LINKS: usize = 10;
/// A directory may have moved, and its new place again.
const MOST_REDIRECTS: usize = 5;

/// Sends one request to the CA and returns the whole reply. It keeps a deadline,
/// bounds the reply's size, and follows no redirect: a [`Transport`] does, for unsigned
/// requests within one host.
#[async_trait]
pub trait Exchange: Send + Sync {
    /// The reply, whatever its status.
    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ExchangeError>;
}

/// A successful reply.
#[derive(Debug)]
pub(super) struct Reply {
    /// The URL that answered.
    url: String,
    /// `Retry-After`, in seconds or as a date.
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
    /// The targets of `Link: …;rel="alternate"`.
    pub(super) alternates: Vec<String>,
    pub(super) body: Bytes,
}

impl Reply {
    /// A URL of the reply as a whole one: it may be relative.
    pub(super) fn absolute(&self, url: &str) -> String {
        resolved(&self.url, url)
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Cause> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

/// The connection state of one CA: nonces, limiter, last `Date`.
pub(super) struct Transport {
    exchange: Arc<dyn Exchange>,
    observer: Arc<dyn Observer>,
    pub(super) clock: Arc<dyn Clock>,
    limiter: Arc<Limiter>,
    nonces: Mutex<Vec<String>>,
    reading: Mutex<Option<ClockReading>>,
}

impl Transport {
    pub(super) fn new(
        exchange: Arc<dyn Exchange>,
        observer: Arc<dyn Observer>,
        clock: Arc<dyn Clock>,
        limiter: Arc<Limiter>,
    ) -> Self {
        Self {
            exchange,
            observer,
            clock,
            limiter,
            nonces: Mutex::default(),
            reading: Mutex::default(),
        }
    }

    /// Both clocks at the last reply with a `Date`.
    pub(super) fn clocks(&self) -> Option<ClockReading> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        ClockReading::usable(&mut reading, self.clock.now())
    }

    /// An unsigned GET.
    pub(super) async fn get(&self, endpoint: RateGroup, url: &str) -> Result<Reply, Cause> {
        let (url, reply) = self.follow(endpoint, Method::GET, url).await?;
        self.keep_nonce(reply.headers());
        self.classify(&url, &reply)
    }

    /// Sends an unsigned request and follows redirects within its host. Returns the reply
    /// with its URL.
    async fn follow(
        &self,
        endpoint: RateGroup,
        method: Method,
        url: &str,
    ) -> Result<(String, Response<Bytes>), Cause> {
        let mut url = url.to_owned();
        for redirects in 0.. {
            let reply = self.send(endpoint, method.clone(), &url, Bytes::new());
            let reply = reply.await?;
            match redirect(&url, &reply).filter(|_| redirects < MOST_REDIRECTS) {
                Some(next) => url = next,
                None => return Ok((url, reply)),
            }
        }
        Err(Cause::Protocol("endless redirects".into()))
    }

    /// A signed POST of `payload`, or a POST-as-GET without one. Without a pooled
    /// nonce, one is fetched at `new_nonce`.
    pub(super) async fn post(
        &self,
        endpoint: RateGroup,
        url: &str,
        signer: Signer<'_>,
        new_nonce: &str,
        payload: Option<&Value>,
    ) -> Result<Reply, Cause> {
        let mut nonce = self.nonce(new_nonce).await?;
        let mut retries = 0;
        loop {
            let body = signer.sign(url, &nonce, payload).map_err(|_| {
                Cause::Protocol("the account's key could not sign the request".into())
            })?;
            let reply = self.send(endpoint, Method::POST, url, body.into()).await?;
            if retries == NONCE_RETRIES || !problem::is_bad_nonce(&reply) {
                self.keep_nonce(reply.headers());
                return self.classify(url, &reply);
            }
            retries += 1;
            nonce = match nonce_of(reply.headers()) {
                Some(nonce) => nonce,
                None => self.nonce(new_nonce).await?,
            };
        }
    }

    async fn nonce(&self, new_nonce: &str) -> Result<String, Cause> {
        if let Some(nonce) = self.nonces().pop() {
            return Ok(nonce);
        }
        let (url, reply) = self.follow("new-nonce", Method::HEAD, new_nonce).await?;
        self.classify(&url, &reply)?;
        nonce_of(reply.headers())
            .ok_or_else(|| Cause::Protocol("the reply to newNonce contains no nonce".into()))
    }

    async fn send(
        &self,
        endpoint: RateGroup,
        method: Method,
        url: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, Cause> {
        let mut request = Request::builder().method(&method).uri(https(url)?);
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/jose+json");
        }
        let request = request
            .body(body)
            .map_err(|error| Cause::Protocol(printable(&error.to_string())))?;
        self.limiter.wait(endpoint, self.clock.as_ref()).await;
        let result = self.exchange.exchange(request).await;
        let status = result.as_ref().map_or(0, |reply| reply.status().as_u16());
        self.observer.request(endpoint, status);
        if let Err(ExchangeError::OutsideValidity(outside)) = &result {
            self.observer.outside_validity(*outside);
        }
        let reply = result?;
        if let Some(date) = header(reply.headers(), &DATE).and_then(instant) {
            self.observer.date(date);
            let (ours, theirs) = (self.clock.now(), date);
            let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            *reading = Some(ClockReading { ours, theirs });
        }
        Ok(reply)
    }

    /// A successful reply, or the cause of its failure.
    fn classify(&self, url: &str, reply: &Response<Bytes>) -> Result<Reply, Cause> {
        let (status, headers) = (reply.status(), reply.headers());
        let retry_after = retry_after(headers, self.clock.now());
        let content_type = header(headers, &CONTENT_TYPE).unwrap_or("");
        if status.is_redirection() {
            return Err(Cause::Protocol(format!(
                "a redirect (HTTP {}) of a signed request, to another host, or one of too many",
                status.as_u16()
            )));
        }
        if status.is_success() && !content_type.contains("html") {
            return Ok(Reply {
                url: url.to_owned(),
                retry_after,
                location: header(headers, &LOCATION).map(|to| resolved(url, to)),
                alternates: links(headers, "alternate", url),
                body: reply.body().clone(),
            });
        }
        let mut problem = problem::parse(content_type, reply.body());
        let terms = links(headers, "terms-of-service", url);
        if let (Some(problem), Some(terms)) = (&mut problem, terms.first()) {
            problem::add_terms(problem, terms);
        }
        Err(self.failure(status, content_type, retry_after, problem))
    }

    fn failure(
        &self,
        status: StatusCode,
        content_type: &str,
        retry_after: Option<Duration>,
        problem: Option<Problem>,
    ) -> Cause {
        let number = status.as_u16();
        let message = problem.as_ref().map_or_else(
            || format!("the CA is not available: HTTP {number}"),
            problem::describe,
        );
        let limited = match status {
            StatusCode::TOO_MANY_REQUESTS => true,
            // With neither, a gateway reports that the CA is down.
            StatusCode::SERVICE_UNAVAILABLE => retry_after.is_some() || problem.is_some(),
            _ => problem.as_ref().is_some_and(problem::is_rate_limit),
        };
        match problem {
            Some(problem) if problem::is_pause(&problem) => Cause::of_reply(&problem),
            _ if limited => Cause::rate_limited(message, retry_after, self.clock.now()),
            _ if status.is_server_error() => Cause::failing(message, problem.as_ref()),
            Some(problem) => Cause::of_reply(&problem),
            None => Cause::Protocol(format!(
                "HTTP {number} with content type `{}` instead of JSON or PEM",
                printable(content_type)
            )),
        }
    }

    fn keep_nonce(&self, headers: &HeaderMap) {
        let mut pool = self.nonces();
        pool.extend(nonce_of(headers));
        if pool.len() > POOLED_NONCES {
            // The oldest nonce is the likeliest to have expired.
            pool.remove(0);
        }
    }

    fn nonces(&self) -> MutexGuard<'_, Vec<String>> {
        self.nonces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parses `url`, which must be https with a host, as every URL of a CA.
pub(super) fn https(url: &str) -> Result<Uri, Cause> {
    let is_https = |uri: &Uri| uri.scheme_str() == Some("https") && uri.host().is_some();
    url.parse().ok().filter(is_https).ok_or_else(|| {
        let url = printable(url);
        Cause::Protocol(format!(
            "the CA names `{url}`, which is not an https:// URL"
        ))
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The reply's nonce, if it is valid base64url (RFC 8555 section 6.5.1).
fn nonce_of(headers: &HeaderMap) -> Option<String> {
    let nonce = header(headers, &NONCE)?;
    (nonce.len() <= 512 && is_base64url(nonce)).then(|| nonce.to_owned())
}

/// Seconds, or a date by the CA's clock (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = header(headers, &RETRY_AFTER)?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let theirs = header(headers, &DATE).and_then(instant).unwrap_or(now);
    Some(instant(text)?.since(theirs))
}

fn instant(text: &str) -> Option<Timestamp> {
    let parsed = httpdate::parse_http_date(text.trim()).ok()?;
    Some(OffsetDateTime::from(parsed).into())
}

/// The URL to which `reply` redirects a request for `url`, if it is on the same host.
fn redirect(url: &str, reply: &Response<Bytes>) -> Option<String> {
    let origin = |url: &str| {
        let url: Uri = normalized(url).parse().ok()?;
        Some((url.scheme()?.clone(), url.authority()?.clone()))
    };
    let to = header(reply.headers(), &LOCATION).filter(|_| reply.status().is_redirection())?;
    let to = resolved(url, to);
    (origin(&to).is_some() && origin(&to) == origin(url)).then_some(to)
}

/// The targets of the `Link` headers with this relation.
fn links(headers: &HeaderMap, relation: &str, url: &str) -> Vec<String> {
    let links = headers.get_all(LINK).into_iter();
    let links = links.filter_map(|value| value.to_str().ok());
    let targets = links.flat_map(|value| value.split(',')).filter_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_it = |one: &str| {
            let named = one.trim().strip_prefix("rel=");
            named.is_some_and(|named| named.trim_matches('"') == relation)
        };
        let is_it = parameters.split(';').any(is_it);
        is_it.then(|| resolved(url, target))
    });
    targets.take(MOST_LINKS).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Issuer;
    use super::super::fake::{FakeCa, Memory, Scripted, issue, pending};
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn retry_after_is_parsed_in_both_forms() {
        let now = Timestamp::from_seconds(784_111_777);
        let read = |pairs: &[(&'static str, &str)]| retry_after(&headers(pairs), now);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(read(&[("retry-after", "120")]), seconds(120));
        let date = ("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(read(&[date]), seconds(60));
        // The CA's clock is a minute ahead of ours.
        let ahead = ("date", "Sun, 06 Nov 1994 08:50:37 GMT");
        assert_eq!(read(&[date, ahead]), seconds(0));
        assert_eq!(
            read(&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")]),
            seconds(0)
        );
        for invalid in ["", "-1", "soon", "1.5"] {
            assert_eq!(read(&[("retry-after", invalid)]), None, "{invalid}");
        }
    }

    #[test]
    fn url_is_rejected_unless_https_with_a_host() {
        https("https://ca.example/acme?x=1").unwrap();
        for url in [
            "http://ca.example/",
            "/acme/order/1",
            "file:///etc/passwd",
            "https:///x",
            "",
            "https://a b/",
        ] {
            assert!(matches!(https(url), Err(Cause::Protocol(_))), "{url}");
        }
    }

    #[test]
    fn links_and_nonces_are_ignored_when_invalid() {
        let links = headers(&[(
            "link",
            "<https://ca/dir>;rel=\"index\", <https://ca/1>;rel=\"alternate\"",
        )]);
        assert_eq!(
            super::links(&links, "alternate", "https://ca/"),
            ["https://ca/1"]
        );
        let nonce = |text: &str| nonce_of(&headers(&[("replay-nonce", text)]));
        assert_eq!(nonce("a_B-9").as_deref(), Some("a_B-9"));
        assert_eq!(nonce("a b"), None);
        assert_eq!(nonce(&"a".repeat(513)), None);
    }

    #[tokio::test]
    async fn request_is_repeated_for_twenty_rejected_nonces_and_no_more() {
        for (rejected, status) in [(20, 400), (20, 403), (21, 400)] {
            let ca = FakeCa::new();
            for _ in 0..rejected {
                ca.script("new-order", Scripted::problem(status, "badNonce"));
            }
            let result = issue(&ca.client()).await;
            assert_eq!(result.is_ok(), rejected == 20, "{rejected}: {result:?}");
            assert_eq!(ca.count("new-order"), 21);
            // Each rejection brings the nonce for the next try.
            assert_eq!(ca.count("new-nonce"), 1);
        }
    }

    #[tokio::test]
    async fn issue_succeeds_at_once_when_half_of_the_nonces_are_rejected() {
        for seed in 0..100 {
            let ca = FakeCa::new();
            ca.reject_nonces(seed, 50);
            issue(&ca.client()).await.unwrap();
            assert_eq!(ca.orders(), 1);
        }
    }

    /// Twenty tries are not always enough for nine in ten; a failed order is resumed,
    /// never placed twice.
    #[tokio::test]
    async fn issue_resumes_one_order_when_nine_in_ten_nonces_are_rejected() {
        for seed in 0..100 {
            let ca = FakeCa::new();
            ca.reject_nonces(seed, 90);
            let (client, mut journal) = (ca.client(), Memory::default());
            let mut order = pending(&["a.example"]);
            for tries in 1.. {
                match client.issue(order.clone(), &mut journal).await {
                    Ok(_) => break,
                    Err(error) => assert!(matches!(error.cause, Cause::Protocol(_)), "{error}"),
                }
                assert!(tries < 30, "seed {seed}");
                order = journal.orders.last().cloned().unwrap_or(order);
            }
            assert_eq!((ca.orders(), ca.accounts()), (1, 1));
        }
    }

    #[tokio::test]
    async fn directory_is_rejected_with_a_plain_http_url() {
        let ca = FakeCa::new();
        let mut directory = serde_json::json!({});
        for name in ["newNonce", "newAccount", "newOrder"] {
            directory[name] = format!("https://ca.test/{name}").into();
        }
        directory["newOrder"] = "http://ca.test/new-order".into();
        ca.script("directory", Scripted::json(&directory));
        let cause = issue(&ca.client()).await.unwrap_err().cause;
        assert!(matches!(cause, Cause::Protocol(_)), "{cause}");
        assert_eq!(ca.take_endpoints(), ["directory"]);
    }

    #[tokio::test]
    async fn reply_is_classified_as_rate_limit_or_outage() {
        let html = |status| Scripted(status, "text/html", "<p>".into(), vec![]);
        let cause = async |scripted| {
            let ca = FakeCa::new();
            ca.persist("new-order", &scripted);
            issue(&ca.client()).await.unwrap_err().cause
        };
        for scripted in [
            html(429),
            html(503).with("retry-after", 5),
            Scripted::problem(503, "rateLimited"),
            Scripted::problem(403, "rateLimited"),
        ] {
            let cause = cause(scripted.clone()).await;
            assert!(
                matches!(cause, Cause::RateLimited { .. }),
                "{scripted:?}: {cause}"
            );
        }
        for scripted in [
            html(503),
            html(500),
            Scripted::problem(500, "serverInternal"),
        ] {
            let cause = cause(scripted.clone()).await;
            assert!(
                matches!(cause, Cause::Unreachable(_)),
                "{scripted:?}: {cause}"
            );
        }
    }

    #[tokio::test]
    async fn observer_counts_requests_and_reads_the_cas_clock() {
        #[derive(Default)]
        struct Seen(Mutex<Vec<(&'static str, u16)>>, Mutex<Vec<Timestamp>>);
        impl Observer for Seen {
            fn request(&self, endpoint: &'static str, status: u16) {
                self.0.lock().unwrap().push((endpoint, status));
            }
            fn date(&self, instant: Timestamp) {
                self.1.lock().unwrap().push(instant);
            }
        }
        let (ca, seen) = (FakeCa::new(), Arc::new(Seen::default()));
        let mut options = ca.settings();
        options.observer = seen.clone();
        let client = super::super::Client::new(options).unwrap();
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        ca.script(
            "new-account",
            Scripted::problem(403, "externalAccountRequired").with("date", date),
        );
        let cause = issue(&client).await.unwrap_err().cause;
        assert!(cause.hint().contains("--eab-kid"));
        ca.lose_reply("new-account");
        issue(&client).await.unwrap_err();
        let expected = [
            ("directory", 200),
            ("new-nonce", 200),
            ("new-account", 403),
            ("new-account", 0),
        ];
        assert_eq!(seen.0.lock().unwrap()[..4], expected);
        assert_eq!(
            *seen.1.lock().unwrap(),
            [Timestamp::from_seconds(784_111_777)]
        );
    }
}
