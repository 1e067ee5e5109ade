//! The CA's directory (RFC 8555 section 7.1.1): where to send what, and what
//! the CA says of itself. Read once a day at most.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;

use super::error::Cause;
use super::exchange::{Session, https};
use crate::time::Clock;

const FRESH_FOR: Duration = Duration::from_secs(86_400);

/// The URLs of a CA; all of them https.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Directory {
    pub(super) new_nonce: String,
    pub(super) new_account: String,
    pub(super) new_order: String,
    /// Present when the CA suggests renewal windows (RFC 9773).
    pub(super) renewal_info: Option<String>,
    #[serde(default, deserialize_with = "meta")]
    pub(super) meta: Meta,
}

/// What the CA says of itself; nothing of it is needed to issue.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) terms_of_service: Option<String>,
    pub(super) caa_identities: Vec<String>,
    /// Descriptions by name.
    pub(super) profiles: BTreeMap<String, String>,
}

/// Takes what has the expected shape and leaves the rest.
fn meta<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Meta, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let identities = value.get("caaIdentities").and_then(Value::as_array);
    let profiles = value.get("profiles").and_then(Value::as_object);
    Ok(Meta {
        terms_of_service: value.get("termsOfService").and_then(text),
        caa_identities: identities.into_iter().flatten().filter_map(text).collect(),
        profiles: profiles
            .into_iter()
            .flatten()
            .map(|(name, description)| (name.clone(), text(description).unwrap_or_default()))
            .collect(),
    })
}

impl Directory {
    async fn fetch(session: &Session, url: &str) -> Result<Self, Cause> {
        let directory: Self = session.get("directory", url).await?.json()?;
        let required = [
            &directory.new_nonce,
            &directory.new_account,
            &directory.new_order,
        ];
        for url in required.into_iter().chain(&directory.renewal_info) {
            https(url)?;
        }
        Ok(directory)
    }
}

/// The directory as last read, and when that was by the clock's stopwatch.
#[derive(Default)]
pub(super) struct Cached(Mutex<Option<(Duration, Arc<Directory>)>>);

impl Cached {
    /// The directory, read anew when it is a day old; who asks meanwhile waits
    /// for that one reading.
    pub(super) async fn read(
        &self,
        session: &Session,
        url: &str,
        clock: &dyn Clock,
    ) -> Result<Arc<Directory>, Cause> {
        let mut cached = self.0.lock().await;
        let now = clock.stopwatch();
        if let Some((at, directory)) = cached.as_ref()
            && now.saturating_sub(*at) < FRESH_FOR
        {
            return Ok(directory.clone());
        }
        let directory = Arc::new(Directory::fetch(session, url).await?);
        *cached = Some((now, directory.clone()));
        Ok(directory)
    }

    /// Reads it anew, old or not.
    pub(super) async fn renew(
        &self,
        session: &Session,
        url: &str,
        clock: &dyn Clock,
    ) -> Result<(), Cause> {
        let directory = Directory::fetch(session, url).await?;
        *self.0.lock().await = Some((clock.stopwatch(), Arc::new(directory)));
        Ok(())
    }
}
