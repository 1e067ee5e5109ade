//! Documents in etcd 3.4 or later, by its JSON gateway (`/v3/kv/…`): the gRPC client would
//! need `protoc` to build. A version is the key's `mod_revision`.

mod place;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use self::place::Place;
use self::wire::{Authenticated, Range, Refusal, Transaction};
use super::exchange::{Effect, WITHIN, date, denied, exchange, failed};
use super::settings::{ServerSettings, client_pair, read};
use super::{Document, Documents, DocumentsError, Notice, Version};
use crate::certificate::Secret;
use crate::net::pool::Pool;
use crate::net::roots::SystemRoots;
use crate::time::Timestamp;

/// Each of several members gets a part of the time, and not less.
const LEAST: Duration = Duration::from_secs(3);
const PAGE: u32 = 10_000;
/// A listing is repeated when its revision is compacted meanwhile.
const LISTINGS: u32 = 3;
/// Before a watch that failed is repeated.
const PAUSE: Duration = Duration::from_secs(5);
/// A watch is repeated after this time: its connection may be dead.
const WATCH: Duration = Duration::from_secs(600);
/// A line of a watch holds the document of the fleet.
const LONGEST_LINE: usize = 16 * 1024 * 1024;

/// One etcd, below a prefix that is ours.
#[derive(Debug)]
pub(super) struct EtcdDocuments {
    pool: Pool,
    place: Place,
    /// For one exchange with one member.
    within: Duration,
    /// The member that replied last.
    member: AtomicUsize,
    token: Mutex<Option<Secret>>,
    page: u32,
}

impl EtcdDocuments {
    /// The documents of `etcd://…`.
    ///
    /// # Errors
    /// What is invalid in the settings.
    pub(super) fn new(settings: &ServerSettings) -> Result<Self, String> {
        let place = Place::of(settings)?;
        let members = u32::try_from(place.members.len()).unwrap_or(u32::MAX);
        Ok(Self {
            pool: pool(settings)?,
            place,
            within: (WITHIN / members).max(LEAST),
            member: AtomicUsize::default(),
            token: Mutex::default(),
            page: PAGE,
        })
    }

    fn encoded(&self, key: &str) -> String {
        STANDARD.encode(format!("{}{key}", self.place.prefix))
    }

    fn request(
        &self,
        path: &str,
        body: &Value,
        token: Option<&Secret>,
    ) -> Result<Request<Full<Bytes>>, DocumentsError> {
        let members = &self.place.members;
        let member = &members[self.member.load(Ordering::Relaxed) % members.len()];
        let mut request =
            Request::post(format!("{member}{path}")).header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            let mut token = HeaderValue::from_str(token.expose()).map_err(failed)?;
            token.set_sensitive(true);
            request = request.header(AUTHORIZATION, token);
        }
        request.body(Full::from(body.to_string())).map_err(failed)
    }

    /// Sends a request to the members in turn, until one of them may have obeyed.
    async fn send(
        &self,
        path: &str,
        body: &Value,
        token: Option<&Secret>,
        effect: Effect,
    ) -> Result<Response<Bytes>, DocumentsError> {
        let mut tries = self.place.members.len();
        loop {
            let request = self.request(path, body, token)?;
            let sent = exchange(&self.pool, request, self.within, effect).await;
            let is_down = match &sent {
                Ok(reply) => reply.status() == StatusCode::SERVICE_UNAVAILABLE,
                Err(_) => true,
            };
            if is_down {
                self.member.fetch_add(1, Ordering::Relaxed);
            }
            tries -= 1;
            // A write that has had no answer is not repeated.
            let may_repeat = match &sent {
                Ok(_) => effect == Effect::Reads,
                Err(error) => matches!(error, DocumentsError::Failed(_)),
            };
            if !is_down || !may_repeat || tries == 0 {
                return sent;
            }
        }
    }

    /// The token of our user, a new one in place of `old`.
    async fn token(&self, old: Option<&Secret>) -> Result<Option<Secret>, DocumentsError> {
        let Some((name, password)) = &self.place.user else {
            return Ok(None);
        };
        let mut kept = self.token.lock().await;
        if kept.is_none() || kept.as_ref() == old {
            let body = json!({ "name": name, "password": password.expose() });
            let path = "/v3/auth/authenticate";
            let reply = self.send(path, &body, None, Effect::Reads).await?;
            let reply: Authenticated = parsed(&reply, Effect::Reads)?;
            *kept = Some(reply.token);
        }
        Ok(kept.clone())
    }

    /// Calls the gateway.
    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        body: &Value,
        effect: Effect,
    ) -> Result<T, DocumentsError> {
        let token = self.token(None).await?;
        let mut reply = self.send(path, body, token.as_ref(), effect).await?;
        if token.is_some() && Refusal::of(&reply).is_some_and(|refusal| refusal.wants_new_token()) {
            let token = self.token(token.as_ref()).await?;
            reply = self.send(path, body, token.as_ref(), effect).await?;
        }
        parsed(&reply, effect)
    }

    /// Does `action` if the version is `expected`, and returns the revision of it.
    async fn transact(
        &self,
        key: &str,
        expected: Option<&Version>,
        action: Value,
    ) -> Result<Version, DocumentsError> {
        // The revision of a key that is not there is 0.
        let revision = expected.map_or("0", |version| &version.0);
        let body = json!({
            "compare": [{
                "key": self.encoded(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision,
            }],
            "success": [action],
        });
        let done: Transaction = self.call("/v3/kv/txn", &body, Effect::Writes).await?;
        match done.succeeded {
            true => Ok(Version(done.header.revision.to_string())),
            false => Err(DocumentsError::Conflict),
        }
    }

    /// The keys that begin with `first`, all of one revision.
    async fn list_once(&self, first: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let mut found = BTreeMap::new();
        let mut after = first.as_bytes().to_vec();
        // The first key that does not begin with it: keys are ASCII.
        let end = STANDARD.encode([first.as_bytes(), &[0xff]].concat());
        let mut revision = 0;
        loop {
            let body = json!({
                "key": STANDARD.encode(&after), "range_end": end, "keys_only": true,
                "limit": self.page, "revision": revision,
            });
            let range: Range = self.call("/v3/kv/range", &body, Effect::Reads).await?;
            if revision == 0 {
                revision = range.header.revision;
            }
            for one in &range.kvs {
                let key = decoded(&one.key)?;
                // The next page begins with the first possible key after this one.
                after = [&key[..], &[0]].concat();
                let key = String::from_utf8_lossy(&key);
                let key = key
                    .strip_prefix(&self.place.prefix)
                    .unwrap_or(&key)
                    .to_owned();
                found.insert(key, Version(one.mod_revision.to_string()));
            }
            if !range.more || range.kvs.is_empty() {
                return Ok(found);
            }
        }
    }

    /// Tells of changes until the connection ends, or until it has had its time.
    async fn watch_once(
        &self,
        key: &str,
        notices: &watch::Sender<Notice>,
    ) -> Result<(), DocumentsError> {
        let body = json!({ "key": self.encoded(key), "keys_only": true });
        let range: Range = self.call("/v3/kv/range", &body, Effect::Reads).await?;
        let found = range.kvs.first().map(|one| one.mod_revision);
        let token = self.token(None).await?;
        let next = range.header.revision + 1;
        let body =
            json!({ "create_request": { "key": self.encoded(key), "start_revision": next } });
        let request = self.request("/v3/watch", &body, token.as_ref())?;
        let opened = self.pool.open(request, self.within).await;
        let mut stream = opened.map_err(failed)?.into_body();
        let mut text = Vec::new();
        let newest = |revision: Option<u64>| {
            let version = revision.map(|revision| Version(revision.to_string()));
            notices.send_replace(Notice::Newest(version));
        };
        let (mut has_begun, end) = (false, Instant::now() + WATCH);
        loop {
            let frame = match tokio::time::timeout_at(end, stream.frame()).await {
                Err(_) => return Ok(()),
                Ok(frame) => frame.ok_or_else(|| failed("the watch has ended"))?,
            };
            let frame = frame.map_err(failed)?;
            text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..]));
            while let Some(length) = text.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = text.drain(..=length).collect();
                match has_begun {
                    true => wire::changes(&line)
                        .map_err(failed)?
                        .into_iter()
                        .for_each(newest),
                    false if wire::has_begun(&line) => newest(found),
                    false => return Err(failed("it does not watch")),
                }
                has_begun = true;
            }
            if text.len() > LONGEST_LINE {
                return Err(failed("a line of its watch is too long"));
            }
        }
    }
}

/// A client with the files of etcdctl's variables.
fn pool(settings: &ServerSettings) -> Result<Pool, String> {
    let [root, cert, key] = ["ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"];
    let file = |name| settings.variable(name);
    let pair = client_pair((cert, file(cert)), (key, file(key)))?;
    let pem = file(root).map(|file| read((root, file))).transpose()?;
    let pem = pem.as_ref().map(|pem| pem.expose().as_bytes());
    let system = SystemRoots::of(&settings.environment);
    let way = (settings.proxies.clone(), settings.resolver.clone());
    let pool = Pool::presenting(way, (pem, &system), pair.as_ref());
    pool.map_err(|error| format!("{root}: {error}"))
}

/// What the gateway replied.
fn parsed<T: for<'de> Deserialize<'de>>(
    reply: &Response<Bytes>,
    effect: Effect,
) -> Result<T, DocumentsError> {
    let Some(refusal) = Refusal::of(reply) else {
        return serde_json::from_slice(reply.body()).map_err(|error| effect.unknown(error));
    };
    let shown = refusal.to_string();
    match reply.status().is_server_error() {
        true => Err(effect.unknown(shown)),
        false => Err(denied(shown)),
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, DocumentsError> {
    STANDARD.decode(text).map_err(failed)
}

#[async_trait]
impl Documents for EtcdDocuments {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        let body = json!({ "key": self.encoded(key) });
        let range: Range = self.call("/v3/kv/range", &body, Effect::Reads).await?;
        let Some(found) = range.kvs.first() else {
            return Ok(None);
        };
        Ok(Some(Document {
            content: decoded(&found.value)?,
            version: Version(found.mod_revision.to_string()),
        }))
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let put = json!({ "key": self.encoded(key), "value": STANDARD.encode(content) });
        let action = json!({ "request_put": put });
        self.transact(key, expected, action).await
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let action = json!({ "request_delete_range": { "key": self.encoded(key) } });
        self.transact(key, Some(expected), action).await.map(drop)
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let first = format!("{}{prefix}", self.place.prefix);
        let mut tries = 1;
        loop {
            match self.list_once(&first).await {
                Err(error) if tries < LISTINGS && error.to_string().contains("compacted") => {
                    tries += 1;
                }
                listed => return listed,
            }
        }
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        let body = json!({ "key": self.encoded("time"), "keys_only": true });
        let token = self.token(None).await?;
        let sent = self.send("/v3/kv/range", &body, token.as_ref(), Effect::Reads);
        date(sent.await?.headers())
    }

    async fn watch(&self, key: &str, notices: &watch::Sender<Notice>) {
        loop {
            if self.watch_once(key, notices).await.is_err() {
                notices.send_replace(Notice::Nothing);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
