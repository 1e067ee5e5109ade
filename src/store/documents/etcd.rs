//! Documents in etcd 3.4 or later, by its JSON gateway (`/v3/kv/…`): the gRPC client would
//! need `protoc` to build. A version is the key's `mod_revision`.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HOST};
use http::{Request, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Document, Documents, DocumentsError, Version};
use crate::net::http::{HttpError, Longest, Origin};
use crate::time::Timestamp;

const WITHIN: Duration = Duration::from_secs(10);
/// etcd's own limit of a request is 1.5 MiB; a page of a listing has keys only.
const LONGEST: usize = 16 * 1024 * 1024;
const PAGE: u32 = 10_000;

/// One etcd, below a prefix that is ours.
#[derive(Debug)]
pub(in super::super) struct EtcdDocuments {
    origin: Origin,
    authority: String,
    /// With a slash at its end.
    prefix: String,
}

/// What a reply has beside what its request asks for.
#[derive(Deserialize)]
struct Header {
    #[serde(deserialize_with = "number")]
    revision: u64,
}

#[derive(Deserialize)]
struct Range {
    #[serde(default)]
    kvs: Vec<KeyValue>,
    #[serde(default)]
    more: bool,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(deserialize_with = "number")]
    mod_revision: u64,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Transaction {
    header: Header,
    /// Absent in the JSON of a `false`.
    #[serde(default)]
    succeeded: bool,
}

/// The gateway writes a 64-bit number as text.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

impl EtcdDocuments {
    /// The documents of `etcd://HOST:PORT/PREFIX`.
    pub(in super::super) fn new(authority: &str, prefix: &str) -> Self {
        let authority = authority.to_owned();
        Self {
            origin: Origin::Tcp(authority.clone()),
            authority,
            prefix: format!("{}/", prefix.trim_matches('/')),
        }
    }

    fn encoded(&self, key: &str) -> String {
        STANDARD.encode(format!("{}{key}", self.prefix))
    }

    /// Calls the gateway; `changes` says whether the call writes.
    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        body: &Value,
        changes: bool,
    ) -> Result<T, DocumentsError> {
        let unknown = |error: io::Error| match changes {
            true => DocumentsError::Unanswered(error),
            false => DocumentsError::Failed(error),
        };
        let request = Request::post(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| DocumentsError::Failed(io::Error::other(error)))?;
        let sent = self.origin.send(request, WITHIN, Longest::Whole(LONGEST));
        let (status, reply) = sent.await.map_err(|error| match error {
            HttpError::Connect(error) | HttpError::Tls(error) => DocumentsError::Failed(error),
            error => unknown(io::Error::other(error)),
        })?;
        if status != StatusCode::OK {
            let error = io::Error::other(format!("it replied {status}: {}", reason(&reply)));
            return Err(match status.is_server_error() {
                true => unknown(error),
                false => DocumentsError::Failed(error),
            });
        }
        serde_json::from_slice(&reply).map_err(|error| unknown(io::Error::other(error)))
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
        let done: Transaction = self.call("/v3/kv/txn", &body, true).await?;
        match done.succeeded {
            true => Ok(Version(done.header.revision.to_string())),
            false => Err(DocumentsError::Conflict),
        }
    }
}

/// etcd's own words, printable and bounded.
fn reason(reply: &[u8]) -> String {
    let said: Option<Value> = serde_json::from_slice(reply).ok();
    let said = said.and_then(|said| Some(said.get("message")?.as_str()?.to_owned()));
    let said = said.unwrap_or_default();
    said.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}

fn decoded(text: &str) -> Result<Vec<u8>, DocumentsError> {
    let decoded = STANDARD.decode(text);
    decoded.map_err(|error| DocumentsError::Failed(io::Error::other(error)))
}

#[async_trait]
impl Documents for EtcdDocuments {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        let body = json!({ "key": self.encoded(key) });
        let range: Range = self.call("/v3/kv/range", &body, false).await?;
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
        let mut found = BTreeMap::new();
        let first = format!("{}{prefix}", self.prefix);
        let mut after = first.clone().into_bytes();
        // The first key that does not begin with it: keys are ASCII.
        let end = STANDARD.encode([first.as_bytes(), &[0xff]].concat());
        loop {
            let body = json!({
                "key": STANDARD.encode(&after), "range_end": end, "keys_only": true, "limit": PAGE,
            });
            let range: Range = self.call("/v3/kv/range", &body, false).await?;
            for one in &range.kvs {
                let key = decoded(&one.key)?;
                // The next page begins with the first possible key after this one.
                after = [&key[..], &[0]].concat();
                let key = String::from_utf8_lossy(&key);
                let key = key.strip_prefix(&self.prefix).unwrap_or(&key).to_owned();
                found.insert(key, Version(one.mod_revision.to_string()));
            }
            if !range.more || range.kvs.is_empty() {
                return Ok(found);
            }
        }
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        let failed = |error: io::Error| DocumentsError::Failed(error);
        let request = Request::get("/version").header(HOST, &self.authority);
        let request = request.body(Full::default());
        let request = request.map_err(|error| failed(io::Error::other(error)))?;
        let reply = self.origin.open(request, WITHIN).await;
        let reply = reply.map_err(|error| failed(io::Error::other(error)))?;
        let date = reply
            .headers()
            .get(DATE)
            .and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        date.map(|date| OffsetDateTime::from(date).into())
            .ok_or_else(|| failed(io::Error::other("its reply has no Date")))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    use super::*;

    /// An etcd of this machine, ended when dropped.
    struct Etcd {
        process: Child,
        authority: String,
        _data: tempfile::TempDir,
    }

    impl Drop for Etcd {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn free() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    }

    impl Etcd {
        /// `None` where none is installed.
        async fn start() -> Option<Self> {
            let data = tempfile::tempdir().unwrap();
            let (client, peer) = (free(), free());
            let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
            let mut command = Command::new("etcd");
            command.arg("--data-dir").arg(data.path());
            for (option, url) in [
                ("--listen-client-urls", &client_url),
                ("--advertise-client-urls", &client_url),
                ("--listen-peer-urls", &peer_url),
                ("--initial-advertise-peer-urls", &peer_url),
            ] {
                command.arg(option).arg(url);
            }
            command.arg(format!("--initial-cluster=default={peer_url}"));
            let command = command.stdout(Stdio::null()).stderr(Stdio::null());
            let process = match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    println!("SKIPPED: no etcd is installed");
                    return None;
                }
                process => process.unwrap(),
            };
            let etcd = Self {
                process,
                authority: client,
                _data: data,
            };
            let documents = EtcdDocuments::new(&etcd.authority, "ready");
            while documents.read("any").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Some(etcd)
        }
    }

    #[tokio::test]
    async fn etcd_documents_keep_contract() {
        if let Some(etcd) = Etcd::start().await {
            let documents = EtcdDocuments::new(&etcd.authority, "/certs/test");
            super::super::tests::check(Arc::new(documents)).await;
        }
    }
}
