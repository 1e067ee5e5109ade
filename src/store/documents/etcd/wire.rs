//! The messages of etcd's JSON gateway.

use std::fmt;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::certificate::Secret;
use crate::text::printable;

/// What a reply has beside what its request asks for.
#[derive(Deserialize)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) revision: u64,
}

#[derive(Deserialize)]
pub(super) struct Range {
    pub(super) header: Header,
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    #[serde(default)]
    pub(super) more: bool,
}

#[derive(Deserialize)]
pub(super) struct KeyValue {
    pub(super) key: String,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: u64,
    #[serde(default)]
    pub(super) value: String,
}

#[derive(Deserialize)]
pub(super) struct Transaction {
    pub(super) header: Header,
    /// Absent in the JSON of a `false`.
    #[serde(default)]
    pub(super) succeeded: bool,
}

#[derive(Deserialize)]
pub(super) struct Authenticated {
    pub(super) token: Secret,
}

/// The gateway writes a 64-bit number as text.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(serde::de::Error::custom)
}

/// A reply that says no success.
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    pub(super) fn of(reply: &Response<Bytes>) -> Option<Self> {
        let status = reply.status();
        let message = || {
            let said: Value = serde_json::from_slice(reply.body()).ok()?;
            Some(
                said.get("message")
                    .or_else(|| said.get("error"))?
                    .as_str()?
                    .to_owned(),
            )
        };
        (status != StatusCode::OK).then(|| Self {
            status,
            message: message().unwrap_or_default(),
        })
    }

    /// Whether a new token helps: the old one has expired, or users were changed.
    pub(super) fn wants_new_token(&self) -> bool {
        self.status == StatusCode::UNAUTHORIZED || self.message.contains("auth store is old")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "it replied {}: {}",
            self.status,
            printable(&self.message)
        )?;
        match self.message.contains("user name is empty") {
            true => f.write_str(" (it wants a user: write USER:PASSWORD@ before HOST in store)"),
            false => Ok(()),
        }
    }
}

/// Whether the first message of a watch says that it watches.
pub(super) fn has_begun(line: &[u8]) -> bool {
    let said: Option<Value> = serde_json::from_slice(line).ok();
    let result = said.as_ref().and_then(|said| said.get("result"));
    let is = |name| result.and_then(|result| result.get(name)) == Some(&Value::Bool(true));
    is("created") && !is("canceled")
}

/// The revisions that the document has by an event of a watch; `None`: it was removed.
pub(super) fn changes(line: &[u8]) -> Result<Vec<Option<u64>>, serde_json::Error> {
    let said: Watched = serde_json::from_slice(line)?;
    let events = said.result.events.into_iter();
    Ok(events
        .map(|event| (event.kind != "DELETE").then_some(event.kv.mod_revision))
        .collect())
}

#[derive(Deserialize)]
struct Watched {
    result: Events,
}

#[derive(Deserialize)]
struct Events {
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Event {
    /// Absent in the JSON of a write.
    #[serde(default, rename = "type")]
    kind: String,
    kv: KeyValue,
}
