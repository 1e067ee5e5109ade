//! Documents in memory, for tests and simulations; on request a reply is lost after the write.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{Document, Documents, DocumentsError, Notice, Version};
use crate::time::Timestamp;

/// The number of writes, and each document with the number of its write.
type Inside = (u64, BTreeMap<String, (u64, Vec<u8>)>);

#[derive(Clone, Debug, Default)]
pub(crate) struct MemoryDocuments {
    inside: Arc<Mutex<Inside>>,
    /// The calls so far.
    pub(crate) calls: Arc<AtomicU32>,
    /// Whether the server is unreachable.
    pub(crate) is_down: Arc<AtomicBool>,
    /// How many of the next writes get no reply.
    pub(crate) lost: Arc<AtomicU32>,
    /// Whether another writer of a certificate is always faster than its removal.
    pub(in super::super) keeps: Arc<AtomicBool>,
    /// Whether the server tells of changes.
    pub(in super::super) tells: Arc<AtomicBool>,
    /// Counts the changes.
    changes: Arc<watch::Sender<u64>>,
}

/// The keys of one call of a listing.
const PAGE: usize = 1000;

impl MemoryDocuments {
    /// The same documents, whose calls are counted apart.
    #[cfg(test)]
    pub(in super::super) fn of_another_machine(&self) -> Self {
        Self {
            calls: Arc::default(),
            ..self.clone()
        }
    }

    /// All documents, to restore them later.
    pub(crate) fn backup(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        self.inside().1.clone()
    }

    pub(crate) fn restore(&self, backup: BTreeMap<String, (u64, Vec<u8>)>) {
        {
            let mut inside = self.inside();
            // As some servers do, it counts on from the backup, and gives numbers again.
            let last = backup.values().map(|(version, _)| *version).max();
            *inside = (last.unwrap_or_default(), backup);
        }
        self.changes.send_modify(|count| *count += 1);
    }

    /// The writes so far.
    #[cfg(test)]
    pub(in super::super) fn writes(&self) -> u64 {
        self.inside().0
    }

    fn call(&self) -> Result<MutexGuard<'_, Inside>, DocumentsError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.is_down.load(Ordering::SeqCst) {
            true => Err(DocumentsError::Failed(
                io::ErrorKind::HostUnreachable.into(),
            )),
            false => Ok(self.inside()),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply<T>(&self, done: T) -> Result<T, DocumentsError> {
        self.changes.send_modify(|count| *count += 1);
        let left = |left: u32| left.checked_sub(1);
        match (self.lost).fetch_update(Ordering::SeqCst, Ordering::SeqCst, left) {
            Ok(_) => Err(DocumentsError::Unanswered(io::ErrorKind::TimedOut.into())),
            Err(_) => Ok(done),
        }
    }
}

fn check(
    stored: Option<&(u64, Vec<u8>)>,
    expected: Option<&Version>,
) -> Result<(), DocumentsError> {
    let stored = stored.map(|(version, _)| Version(version.to_string()));
    match stored.as_ref() == expected {
        true => Ok(()),
        false => Err(DocumentsError::Conflict),
    }
}

#[async_trait]
impl Documents for MemoryDocuments {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        let stored = self.call()?.1.get(key).cloned();
        Ok(stored.map(|(version, content)| Document {
            content,
            version: Version(version.to_string()),
        }))
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let version = {
            let mut inside = self.call()?;
            check(inside.1.get(key), expected)?;
            inside.0 += 1;
            let version = inside.0;
            inside.1.insert(key.to_owned(), (version, content.to_vec()));
            version
        };
        self.reply(Version(version.to_string()))
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        {
            let mut inside = self.call()?;
            check(inside.1.get(key), Some(expected))?;
            if self.keeps.load(Ordering::SeqCst) && key.starts_with("certificates/") {
                return Err(DocumentsError::Conflict);
            }
            inside.0 += 1;
            inside.1.remove(key);
        }
        self.reply(())
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        let inside = self.call()?;
        let found = inside.1.range(prefix.to_owned()..);
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        let found = found.map(|(key, (one, _))| (key.clone(), Version(one.to_string())));
        let found: BTreeMap<_, _> = found.collect();
        let pages = u32::try_from(found.len() / PAGE).unwrap_or(u32::MAX);
        self.calls.fetch_add(pages, Ordering::SeqCst);
        Ok(found)
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        drop(self.call()?);
        Ok(Timestamp::from_seconds(1_800_000_000))
    }

    /// As that of S3 does, it writes.
    async fn probe(&self) -> Result<(), DocumentsError> {
        let version = self.write("probe/one", b"", None).await?;
        self.remove("probe/one", &version).await
    }

    async fn watch(&self, key: &str, notices: &watch::Sender<Notice>) {
        if !self.tells.load(Ordering::SeqCst) || self.call().is_err() {
            return;
        }
        let mut changes = self.changes.subscribe();
        loop {
            let stored = self
                .inside()
                .1
                .get(key)
                .map(|(one, _)| Version(one.to_string()));
            let stored = Notice::Newest(stored);
            notices
                .send_if_modified(|notices| std::mem::replace(notices, stored.clone()) != stored);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
