//! Documents whose content is JSON, sealed for one fleet: read, and swapped against a version. A
//! write whose reply was lost is settled by reading. The document `fleet` has the number of the
//! fleet, to which all others are bound; a new store gets one.

use std::fmt;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::random::{Random, SystemRandom};
use crate::store::documents::{Documents, DocumentsError, Version};
use crate::store::seal::{Place, Seal, SealError};
use crate::store::{OF_SHARED, StoreError};

/// The document that all machines follow.
pub(super) const FLEET: &str = "fleet";
const FORMAT: u32 = 1;

/// Documents whose content is JSON, sealed.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) documents: std::sync::Arc<dyn Documents>,
    seal: Seal,
    /// The number of the fleet; 0 until it is known.
    fleet: AtomicU64,
    /// The leases that are being released.
    pub(super) releasing: Mutex<JoinSet<()>>,
}

/// A document that was read, and the version to write it against.
pub(super) type Loaded<T> = Option<(T, Version)>;

/// The part of the document of the fleet that binds all others.
#[derive(Serialize, Deserialize)]
struct Numbered {
    id: u64,
    /// Drawn for each document.
    #[serde(default)]
    begun: u64,
}

impl Sealed {
    pub(super) fn new(documents: std::sync::Arc<dyn Documents>, seal: Seal) -> Self {
        Self {
            documents,
            seal,
            fleet: AtomicU64::default(),
            releasing: Mutex::default(),
        }
    }

    /// The number of the fleet, if it is known.
    pub(super) fn known(&self) -> Option<u64> {
        Some(self.fleet.load(Ordering::SeqCst)).filter(|id| *id != 0)
    }

    async fn id(&self) -> Result<u64, StoreError> {
        match self.known() {
            Some(id) => Ok(id),
            None => self.claim(None, false).await,
        }
    }

    /// Finds out the number of the fleet, and gives one to a new store; `own` is that of this
    /// machine's copies, which also replaces a damaged document if this machine `repairs` it. The
    /// place of another fleet is refused before anything is written there, and so is a server that
    /// cannot compare and swap.
    pub(super) async fn claim(&self, own: Option<u64>, repairs: bool) -> Result<u64, StoreError> {
        let (stored, version) = match self.examine::<Numbered>(FLEET).await? {
            Some((Err(StoreError::Corrupt { .. }), version)) if own.is_some() && repairs => {
                tracing::warn!("the document of the fleet was damaged: it is put back");
                (None, Some(version))
            }
            Some((stored, version)) => (Some(stored?.id), Some(version)),
            None => (None, None),
        };
        let id = match (stored, own) {
            (Some(stored), own) if own.is_none_or(|own| own == stored) => stored,
            // A new machine was the first after the store was wiped: that fleet has nothing yet.
            (stored, own) => {
                let id = own.unwrap_or_else(|| SystemRandom.below(u64::MAX - 1) + 1);
                if (stored.is_some() || own.is_none()) && self.has_certificates().await? {
                    return Err(match stored {
                        Some(_) => StoreError::OtherFleet,
                        None => self.damaged(FLEET, &"it is missing, and certificates are there"),
                    });
                }
                self.probe().await?;
                // Another machine may be faster.
                let begun = SystemRandom.below(u64::MAX);
                let new = Numbered { id, begun };
                let written = self.swap(FLEET, &new, version.as_ref()).await?;
                match (written, self.load::<Numbered>(FLEET).await?) {
                    (None, Some((faster, _))) if own.is_none() => faster.id,
                    (None, _) => return Err(busy(FLEET)),
                    (Some(_), _) => id,
                }
            }
        };
        self.fleet.store(id, Ordering::SeqCst);
        Ok(id)
    }

    /// Refuses a server that does not compare and swap.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        let probed = self.documents.probe().await;
        probed.map_err(failed("use", FLEET))
    }

    async fn has_certificates(&self) -> Result<bool, StoreError> {
        let listed = self.documents.list("certificates/").await;
        Ok(!listed.map_err(failed("list", "certificates/"))?.is_empty())
    }

    pub(super) async fn load<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Loaded<T>, StoreError> {
        match self.examine(key).await? {
            Some((opened, version)) => Ok(Some((opened?, version))),
            None => Ok(None),
        }
    }

    /// The same for a document that its next writer makes again: a damaged one has no content.
    pub(super) async fn load_if_whole<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<(Option<T>, Option<Version>), StoreError> {
        match self.examine(key).await? {
            Some((Ok(found), version)) => Ok((Some(found), Some(version))),
            Some((Err(StoreError::Corrupt { .. }), version)) => Ok((None, Some(version))),
            Some((Err(error), _)) => Err(error),
            None => Ok((None, None)),
        }
    }

    /// What a document holds, or why it cannot be opened, and its version in both cases.
    pub(super) async fn examine<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<Loaded<Result<T, StoreError>>, StoreError> {
        let read = self.documents.read(key).await;
        let Some(read) = read.map_err(failed("read", key))? else {
            return Ok(None);
        };
        let opened = self.seal.open(self.place(key).await?, &read.content);
        let parsed = opened
            .map_err(|error| self.unsealed(key, error))
            .and_then(|opened| {
                serde_json::from_slice(opened.expose()).map_err(|error| self.damaged(key, &error))
            });
        Ok(Some((parsed, read.version)))
    }

    async fn place<'k>(&self, name: &'k str) -> Result<Place<'k>, StoreError> {
        let fleet = match name {
            FLEET => 0,
            // Boxed: it reads the document of the fleet.
            _ => Box::pin(self.id()).await?,
        };
        Ok(Place { fleet, name })
    }

    /// Writes against `expected`. `None` if another writer was faster.
    pub(super) async fn swap(
        &self,
        key: &str,
        value: &impl Serialize,
        expected: Option<&Version>,
    ) -> Result<Option<Version>, StoreError> {
        let json = serde_json::to_vec(value).map_err(|error| self.damaged(key, &error))?;
        let sealed = self.seal.seal(self.place(key).await?, &json);
        let sealed = sealed.map_err(|error| self.unsealed(key, error))?;
        match self.documents.write(key, &sealed, expected).await {
            Ok(version) => Ok(Some(version)),
            Err(DocumentsError::Conflict) => Ok(None),
            Err(error @ DocumentsError::Unanswered(_)) => {
                // Each seal has its own nonce: equal content is that of this very write.
                let read = self.documents.read(key).await;
                match read.map_err(failed("read", key))? {
                    Some(stored) if stored.content == sealed => Ok(Some(stored.version)),
                    // It may still arrive: then the next write against `expected` fails.
                    _ => Err(failed("write", key)(error)),
                }
            }
            Err(error) => Err(failed("write", key)(error)),
        }
    }

    fn subject(&self, key: &str) -> String {
        let place = self.documents.place();
        format!("{key} {OF_SHARED} {place}").trim_end().to_owned()
    }

    fn damaged(&self, key: &str, error: &dyn fmt::Display) -> StoreError {
        StoreError::Corrupt {
            subject: self.subject(key),
            detail: error.to_string(),
        }
    }

    /// Why the document `key` cannot be opened or sealed.
    fn unsealed(&self, key: &str, error: SealError) -> StoreError {
        let subject = self.subject(key);
        match error {
            SealError::OtherKey(number) => StoreError::OtherKey { subject, number },
            SealError::Format(found) => StoreError::Newer {
                subject,
                found: found.into(),
                known: FORMAT,
            },
            error => self.damaged(key, &error),
        }
    }

    /// Removes what has the version `expected`. False if another writer was faster.
    pub(super) async fn remove(&self, key: &str, expected: &Version) -> Result<bool, StoreError> {
        match self.documents.remove(key, expected).await {
            Ok(()) => Ok(true),
            Err(DocumentsError::Conflict) => Ok(false),
            Err(error @ DocumentsError::Unanswered(_)) => {
                let read = self.documents.read(key).await;
                match read.map_err(failed("read", key))? {
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
