//! Documents whose content is JSON, sealed: read, and swapped against a version. A write whose
//! reply was lost is settled by reading.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::store::documents::{Document, Documents, DocumentsError, Version};
use crate::store::seal::Seal;
use crate::store::{OF_SHARED, StoreError};

/// Documents whose content is JSON, sealed.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) documents: Arc<dyn Documents>,
    pub(super) seal: Seal,
    /// The leases that are being released.
    pub(super) releasing: Mutex<JoinSet<()>>,
}

/// A document that was read, and the version to write it against.
pub(super) type Loaded<T> = Option<(T, Version)>;

impl Sealed {
    pub(super) async fn load<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Loaded<T>, StoreError> {
        let read = self
            .documents
            .read(key)
            .await
            .map_err(failed("read", key))?;
        let Some(Document { content, version }) = read else {
            return Ok(None);
        };
        let opened = self.seal.open(key, &content);
        let opened = opened.map_err(|error| self.damaged(key, &error))?;
        let parsed = serde_json::from_slice(opened.expose());
        let parsed = parsed.map_err(|error| self.damaged(key, &error))?;
        Ok(Some((parsed, version)))
    }

    /// Writes against `expected`. `None` if another writer was faster.
    pub(super) async fn swap(
        &self,
        key: &str,
        value: &impl Serialize,
        expected: Option<&Version>,
    ) -> Result<Option<Version>, StoreError> {
        let json = serde_json::to_vec(value).map_err(|error| self.damaged(key, &error))?;
        let sealed = self.seal.seal(key, &json);
        let sealed = sealed.map_err(|error| self.damaged(key, &error))?;
        match self.documents.write(key, &sealed, expected).await {
            Ok(version) => Ok(Some(version)),
            Err(DocumentsError::Conflict) => Ok(None),
            Err(error @ DocumentsError::Unanswered(_)) => {
                // Each seal has its own nonce: equal content is that of this very write.
                let read = self
                    .documents
                    .read(key)
                    .await
                    .map_err(failed("read", key))?;
                match read {
                    Some(stored) if stored.content == sealed => Ok(Some(stored.version)),
                    // It may still arrive: then the next write against `expected` fails.
                    _ => Err(failed("write", key)(error)),
                }
            }
            Err(error) => Err(failed("write", key)(error)),
        }
    }

    fn damaged(&self, key: &str, error: &dyn fmt::Display) -> StoreError {
        let place = self.documents.place();
        StoreError::Corrupt {
            subject: format!("{key} {OF_SHARED} {place}").trim_end().to_owned(),
            detail: error.to_string(),
        }
    }

    /// Removes what has the version `expected`. False if another writer was faster.
    pub(super) async fn remove(&self, key: &str, expected: &Version) -> Result<bool, StoreError> {
        match self.documents.remove(key, expected).await {
            Ok(()) => Ok(true),
            Err(DocumentsError::Conflict) => Ok(false),
            Err(error @ DocumentsError::Unanswered(_)) => {
                let read = self
                    .documents
                    .read(key)
                    .await
                    .map_err(failed("read", key))?;
                match read {
                    None => Ok(true),
                    Some(_) => Err(failed("remove", key)(error)),
                }
            }
            Err(error) => Err(failed("remove", key)(error)),
        }
    }
}

pub(super) fn failed(operation: &'static str, key: &str) -> impl Fn(DocumentsError) -> StoreError {
    let subject = format!("{key} {OF_SHARED}");
    move |error| StoreError::Io {
        operation,
        subject: subject.clone(),
        source: match error {
            DocumentsError::Unanswered(source) | DocumentsError::Failed(source) => source,
            error @ DocumentsError::Conflict => io::Error::other(error),
        },
    }
}

pub(in crate::store) fn busy(key: &str) -> StoreError {
    let source = io::Error::other("other processes change it all the time");
    failed("write", key)(DocumentsError::Failed(source))
}
