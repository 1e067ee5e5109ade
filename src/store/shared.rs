//! The store that several machines share, over the documents of a server ([`documents`]).
//! Every document is sealed before it leaves the process.
//!
//! ```text
//! certificates/NAME   the record, the user's options, and where its pairs are
//! pairs/FINGERPRINT   the key and chain of a leaf; it never changes
//! accounts/HASH       the credentials of the account at a CA
//! cas/HASH            the state of that CA: rate limits used, outages
//! leases/NAME         the node that works on it, and until when
//! ```
//!
//! [`documents`]: super::documents

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::documents::{Document, Documents, DocumentsError, Version};
use super::seal::{Seal, SealError};
use super::{Lease, Store, StoreError, check_account, check_save, next_revision};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::random::{SystemRandom, Random};
use crate::record::{Generation, Record, Revision};
use crate::time::Timestamp;

/// A lease that its holder does not extend ends after this time, by the server's clock.
const LEASE: Duration = Duration::from_secs(60);
const EXTEND: Duration = Duration::from_secs(20);
/// Writers that are faster than we are: each attempt reads the document anew.
const ATTEMPTS: u32 = 20;

/// A store on a server that other machines use too.
#[derive(Debug)]
pub struct SharedStore {
    documents: Arc<Sealed>,
    /// The name of this machine, for the others.
    node: String,
}

/// What is stored of one certificate.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Certificate {
    /// Drawn when it was first stored: it tells the certificate from a later one of its name.
    id: u64,
    /// Another name, while this is a copy that a rename made: it counts once the certificate
    /// of that name and `id` is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copy_of: Option<Lineage>,
    revision: Revision,
    record: Option<Record>,
    options: Option<String>,
    /// The documents of the stored pairs.
    #[serde(default)]
    pairs: BTreeMap<Generation, String>,
}

#[derive(Serialize, Deserialize)]
struct Pair {
    key: Secret,
    chain: String,
}

#[derive(Default, Serialize, Deserialize)]
struct StoredCa {
    revision: Revision,
    state: CaState,
}

#[derive(Serialize, Deserialize)]
struct StoredLease {
    node: String,
    /// Drawn by its holder: a process may have the name of another.
    holder: u64,
    until: Timestamp,
}

/// Documents whose content is JSON, sealed.
#[derive(Debug)]
struct Sealed {
    documents: Arc<dyn Documents>,
    seal: Seal,
}

/// A document that was read, and the version to write it against.
type Loaded<T> = Option<(T, Version)>;

impl Sealed {
    async fn load<T: DeserializeOwned>(&self, key: &str) -> Result<Loaded<T>, StoreError> {
        let read = self.documents.read(key).await.map_err(failed("read", key))?;
        let Some(Document { content, version }) = read else {
            return Ok(None);
        };
        let opened = self.seal.open(key, &content);
        let opened = opened.map_err(|error| damaged(key, &error))?;
        let parsed = serde_json::from_slice(opened.expose());
        let parsed = parsed.map_err(|error| damaged(key, &error))?;
        Ok(Some((parsed, version)))
    }

    /// Writes against `expected`. `None` if another writer was faster.
    async fn swap(
        &self,
        key: &str,
        value: &impl Serialize,
        expected: Option<&Version>,
    ) -> Result<Option<Version>, StoreError> {
        let json = serde_json::to_vec(value).map_err(|error| damaged(key, &error))?;
        let sealed = self.seal.seal(key, &json);
        let sealed = sealed.map_err(|error| damaged(key, &error))?;
        match self.documents.write(key, &sealed, expected).await {
            Ok(version) => Ok(Some(version)),
            Err(DocumentsError::Conflict) => Ok(None),
            Err(error @ DocumentsError::Unanswered(_)) => {
                // Each seal has its own nonce: equal content is that of this very write.
                let read = self.documents.read(key).await.map_err(failed("read", key))?;
                match read {
                    Some(stored) if stored.content == sealed => Ok(Some(stored.version)),
                    // It may still arrive: then the next write against `expected` fails.
                    _ => Err(failed("write", key)(error)),
                }
            }
            Err(error) => Err(failed("write", key)(error)),
        }
    }

    /// Removes what has the version `expected`. False if another writer was faster.
    async fn remove(&self, key: &str, expected: &Version) -> Result<bool, StoreError> {
        match self.documents.remove(key, expected).await {
            Ok(()) => Ok(true),
            Err(DocumentsError::Conflict) => Ok(false),
            Err(error @ DocumentsError::Unanswered(_)) => {
                let read = self.documents.read(key).await.map_err(failed("read", key))?;
                match read {
                    None => Ok(true),
                    Some(_) => Err(failed("remove", key)(error)),
                }
            }
            Err(error) => Err(failed("remove", key)(error)),
        }
    }
}

fn failed(operation: &'static str, key: &str) -> impl Fn(DocumentsError) -> StoreError {
    let subject = format!("{key} of the shared store");
    move |error| StoreError::Io {
        operation,
        subject: subject.clone(),
        source: match error {
            DocumentsError::Unanswered(source) | DocumentsError::Failed(source) => source,
            error @ DocumentsError::Conflict => io::Error::other(error),
        },
    }
}

fn damaged(key: &str, error: &dyn fmt::Display) -> StoreError {
    StoreError::Corrupt {
        subject: format!("{key} of the shared store"),
        detail: error.to_string(),
    }
}

fn busy(key: &str) -> StoreError {
    let source = io::Error::other("other processes change it all the time");
    failed("write", key)(DocumentsError::Failed(source))
}

fn at(lineage: &Lineage) -> String {
    format!("certificates/{lineage}")
}

fn of_ca(part: &str, ca: &str) -> String {
    format!("{part}/{}", Fingerprint::of(ca.as_bytes()))
}

impl SharedStore {
    /// The store in `documents`, as the machine `node` sees it.
    pub(super) fn new(documents: Arc<dyn Documents>, seal: Seal, node: String) -> Self {
        let documents = Arc::new(Sealed { documents, seal });
        Self { documents, node }
    }

    /// What is stored of `lineage`, and the version to write it against.
    async fn certificate(
        &self,
        lineage: &Lineage,
    ) -> Result<(Certificate, Option<Version>), StoreError> {
        let loaded = self.documents.load::<Certificate>(&at(lineage)).await?;
        let Some((mut stored, version)) = loaded else {
            return Ok((Certificate::new(), None));
        };
        if let Some(original) = stored.copy_of.take()
            && self.original(&original, stored.id).await?.is_some()
        {
            stored = Certificate::new();
        }
        Ok((stored, Some(version)))
    }

    /// The certificate `id`, if it still has that name.
    async fn original(
        &self,
        lineage: &Lineage,
        id: u64,
    ) -> Result<Loaded<Certificate>, StoreError> {
        let loaded = self.documents.load::<Certificate>(&at(lineage)).await?;
        Ok(loaded.filter(|(stored, _)| stored.id == id))
    }

    /// The same, for a write: it ends a rename to this name that has not ended.
    async fn certificate_to_write(
        &self,
        lineage: &Lineage,
    ) -> Result<(Certificate, Option<Version>), StoreError> {
        let loaded = self.documents.load::<Certificate>(&at(lineage)).await?;
        let copy = loaded.and_then(|(stored, _)| Some((stored.copy_of?, stored.id)));
        if let Some((original, id)) = copy
            && let Some((stored, version)) = self.original(&original, id).await?
        {
            // Its next version, so that the rename cannot remove it.
            let key = at(&original);
            let written = self.documents.swap(&key, &stored, Some(&version));
            written.await?.ok_or_else(|| busy(&key))?;
        }
        self.certificate(lineage).await
    }

    /// Removes pairs that no record points to any more; a rest is of no harm.
    async fn remove_pairs(&self, keys: impl IntoIterator<Item = String>) {
        for key in keys {
            let removed = match self.documents.load::<Pair>(&key).await {
                Ok(Some((_, version))) => self.documents.remove(&key, &version).await,
                Ok(None) => Ok(true),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!("an old pair stays: {error}");
            }
        }
    }

    async fn write_pair(&self, bundle: &Bundle) -> Result<String, StoreError> {
        let key = format!("pairs/{}", bundle.facts().fingerprint);
        let pair = Pair {
            key: bundle.key_pem().clone(),
            chain: bundle.chain_pem(),
        };
        match self.documents.swap(&key, &pair, None).await? {
            Some(_) => Ok(key),
            // An earlier attempt wrote this very leaf, perhaps with another chain.
            None => match self.documents.load::<Pair>(&key).await? {
                Some((stored, _)) if stored.key == pair.key => Ok(key),
                _ => Err(busy(&key)),
            },
        }
    }
}

impl Certificate {
    /// One of which nothing is stored.
    fn new() -> Self {
        let id = SystemRandom.below(u64::MAX);
        Self {
            id,
            ..Self::default()
        }
    }
}

/// Takes the pairs that are too old to keep out of `pairs`.
fn take_old(pairs: &mut BTreeMap<Generation, String>, record: &Record) -> Vec<String> {
    let newest = record.issued.as_ref().map_or(0, |one| one.generation.0);
    let is_old = |one: &Generation| {
        one.0 + Generation::KEPT <= newest && record.rollback_to != Some(*one)
    };
    let old: Vec<Generation> = pairs.keys().copied().filter(|one| is_old(one)).collect();
    old.iter().filter_map(|one| pairs.remove(one)).collect()
}

#[async_trait]
impl Store for SharedStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        let (stored, _) = self.certificate(lineage).await?;
        Ok(stored.record.map(|mut record| {
            record.lineage = lineage.clone();
            (record, stored.revision)
        }))
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let lineage = &record.lineage;
        for _ in 0..ATTEMPTS {
            let (mut stored, version) = self.certificate_to_write(lineage).await?;
            let before = stored.record.take().map(|record| (record, stored.revision));
            let new = record.issued.as_ref().filter(|_| bundle.is_some());
            stored.revision = check_save(record, expected, before.as_ref(), new)?;
            if let (Some(bundle), Some(issued)) = (bundle, new) {
                let pair = self.write_pair(bundle).await?;
                stored.pairs.insert(issued.generation, pair);
            }
            let old = take_old(&mut stored.pairs, record);
            let revision = stored.revision;
            stored.record = Some(record.clone());
            let written = self.documents.swap(&at(lineage), &stored, version.as_ref());
            // Options that were saved meanwhile are no conflict: the revision tells.
            if written.await?.is_some() {
                self.remove_pairs(old).await;
                return Ok(revision);
            }
        }
        Err(busy(&at(lineage)))
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        let (stored, _) = self.certificate(lineage).await?;
        let Some(key) = stored.pairs.get(&generation) else {
            return Ok(None);
        };
        let pair = self.documents.load::<Pair>(key).await?;
        Ok(pair.map(|(pair, _)| (pair.key, pair.chain)))
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        Ok(self.certificate(lineage).await?.0.options)
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS {
            let (mut stored, version) = self.certificate_to_write(lineage).await?;
            stored.options = Some(json.to_owned());
            let written = self.documents.swap(&at(lineage), &stored, version.as_ref());
            if written.await?.is_some() {
                return Ok(());
            }
        }
        Err(busy(&at(lineage)))
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        for _ in 0..ATTEMPTS {
            let key = at(lineage);
            let (stored, version) = match self.certificate_to_write(lineage).await {
                Err(StoreError::Corrupt { .. }) => {
                    let read = self.documents.documents.read(&key).await;
                    let read = read.map_err(failed("read", &key))?;
                    (Certificate::new(), read.map(|found| found.version))
                }
                read => read?,
            };
            let subject = format!("the record of {lineage}");
            let found = stored.record.as_ref().map(|_| stored.revision);
            next_revision(subject, expected, found.unwrap_or_default())?;
            let Some(version) = version else {
                return Ok(false);
            };
            if self.documents.remove(&key, &version).await? {
                self.remove_pairs(stored.pairs.into_values()).await;
                return Ok(true);
            }
        }
        Err(busy(&at(lineage)))
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let (stored, version) = self.certificate(from).await?;
        let found = stored.record.as_ref().map(|_| stored.revision);
        let subject = format!("the record of {from}");
        next_revision(subject.clone(), expected, found.unwrap_or_default())?;
        let taken = || {
            let lineage = to.clone();
            StoreError::Taken { lineage }
        };
        let (other, place) = self.certificate(to).await?;
        if other.record.is_some() || other.options.is_some() {
            return Err(taken());
        }
        let copy = Certificate {
            copy_of: Some(from.clone()),
            ..stored.clone()
        };
        let copied = self.documents.swap(&at(to), &copy, place.as_ref()).await?;
        let copied = copied.ok_or_else(taken)?;
        let removed = match version {
            Some(version) => self.documents.remove(&at(from), &version).await?,
            None => false,
        };
        if !removed {
            let _ = self.documents.remove(&at(to), &copied).await;
            let found = stored.revision.0 + 1;
            return Err(StoreError::Conflict { subject, found });
        }
        // The mark is of no more use; it stays until the next save if this fails.
        let _ = self.documents.swap(&at(to), &stored, Some(&copied)).await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        let prefix = "certificates/";
        let keys = self.documents.documents.list(prefix).await;
        let keys = keys.map_err(failed("list", prefix))?;
        let mut lineages = Vec::new();
        for key in keys.keys() {
            let name = key.strip_prefix(prefix).unwrap_or_default();
            let Ok(lineage) = Lineage::parse(name) else {
                continue;
            };
            // An unreadable record is one: its load says why it cannot be read.
            if !matches!(self.load(&lineage).await, Ok(None)) {
                lineages.push(lineage);
            }
        }
        lineages.sort();
        Ok(lineages)
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        let key = format!("leases/{lineage}");
        let holder = SystemRandom.below(u64::MAX);
        let now = self.documents.documents.time().await;
        let now = now.map_err(failed("lease", &key))?;
        let stored = self.documents.load::<StoredLease>(&key).await?;
        let lineage = lineage.clone();
        if stored.as_ref().is_some_and(|(lease, _)| now < lease.until) {
            return Err(StoreError::Leased { lineage });
        }
        let lease = StoredLease {
            node: self.node.clone(),
            holder,
            until: now + LEASE,
        };
        let version = stored.map(|(_, version)| version);
        let version = self.documents.swap(&key, &lease, version.as_ref()).await?;
        let version = version.ok_or(StoreError::Leased { lineage })?;
        Ok(Box::new(SharedLease::new(self.documents.clone(), key, lease, version)))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        let loaded = self.documents.load::<Secret>(&of_ca("accounts", ca)).await?;
        Ok(loaded.map(|(credentials, _)| credentials))
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let key = of_ca("accounts", ca);
        for _ in 0..ATTEMPTS {
            if let Some((stored, _)) = self.documents.load::<Secret>(&key).await? {
                return Ok(stored);
            }
            let written = self.documents.swap(&key, credentials, None).await?;
            if written.is_some() {
                return Ok(credentials.clone());
            }
        }
        Err(busy(&key))
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        let key = of_ca("accounts", ca);
        let (stored, version) = self.documents.load::<Secret>(&key).await?.unzip();
        check_account(ca, stored.as_ref(), before)?;
        let written = self.documents.swap(&key, credentials, version.as_ref());
        changed_account(ca, written.await?.is_some())
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        let key = of_ca("accounts", ca);
        let (stored, version) = self.documents.load::<Secret>(&key).await?.unzip();
        check_account(ca, stored.as_ref(), before)?;
        let removed = match version {
            Some(version) => self.documents.remove(&key, &version).await?,
            None => false,
        };
        changed_account(ca, removed)
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        let loaded = self.documents.load::<StoredCa>(&of_ca("cas", ca)).await?;
        let (stored, _) = loaded.unzip();
        let stored: StoredCa = stored.unwrap_or_default();
        Ok((stored.state, stored.revision))
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let (key, subject) = (of_ca("cas", ca), format!("the state of CA {ca}"));
        let (stored, version) = self.documents.load::<StoredCa>(&key).await?.unzip();
        let found = stored.unwrap_or_default().revision;
        let revision = next_revision(subject.clone(), expected, found)?;
        let state = state.clone();
        let stored = StoredCa { revision, state };
        let written = self.documents.swap(&key, &stored, version.as_ref());
        match written.await? {
            Some(_) => Ok(revision),
            None => Err(StoreError::Conflict {
                subject,
                found: revision.0,
            }),
        }
    }
}

fn changed_account(ca: &str, is_written: bool) -> Result<(), StoreError> {
    match is_written {
        true => Ok(()),
        false => Err(StoreError::AccountChanged { ca: ca.to_owned() }),
    }
}

/// Extends its lease until it is dropped. A lease that cannot be extended ends by itself: the
/// saves of its holder are then refused if another machine was faster.
struct SharedLease {
    documents: Arc<Sealed>,
    key: String,
    latest: Arc<Mutex<Version>>,
    extending: JoinSet<()>,
}

impl SharedLease {
    fn new(documents: Arc<Sealed>, key: String, lease: StoredLease, version: Version) -> Self {
        let latest = Arc::new(Mutex::new(version));
        let mut extending = JoinSet::new();
        extending.spawn(extend(documents.clone(), key.clone(), lease, latest.clone()));
        Self {
            documents,
            key,
            latest,
            extending,
        }
    }
}

async fn extend(
    documents: Arc<Sealed>,
    key: String,
    mut lease: StoredLease,
    latest: Arc<Mutex<Version>>,
) {
    loop {
        tokio::time::sleep(EXTEND).await;
        let Ok(now) = documents.documents.time().await else {
            continue;
        };
        lease.until = now + LEASE;
        let before = lock(&latest).clone();
        match documents.swap(&key, &lease, Some(&before)).await {
            Ok(Some(version)) => *lock(&latest) = version,
            Ok(None) => {
                tracing::warn!("{key} of the shared store was taken by another machine");
                return;
            }
            Err(error) => tracing::debug!("a lease is not extended: {error}"),
        }
    }
}

fn lock(version: &Mutex<Version>) -> MutexGuard<'_, Version> {
    version.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SharedLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl Lease for SharedLease {}

impl Drop for SharedLease {
    fn drop(&mut self) {
        self.extending.abort_all();
        let (documents, key) = (self.documents.clone(), self.key.clone());
        let latest = self.latest.clone();
        // Without a runtime, as at the end of the process, the lease ends by its time.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let version = lock(&latest).clone();
                let _ = documents.remove(&key, &version).await;
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::documents::memory::MemoryDocuments;
    use super::super::seal::tests::ONE;
    use super::*;
    use crate::identifier::Identifier;

    fn store(documents: &MemoryDocuments) -> SharedStore {
        let documents: Arc<dyn Documents> = Arc::new(documents.clone());
        SharedStore::new(documents, Seal::new(ONE).unwrap(), "node".to_owned())
    }

    fn record(name: &str) -> Record {
        let name = Identifier::parse(name).unwrap();
        Record::new(Lineage::of(&name), [name].into(), "https://ca".into())
    }

    #[tokio::test]
    async fn shared_store_keeps_contract() {
        super::super::tests::check(|| store(&MemoryDocuments::default())).await;
    }

    #[tokio::test]
    async fn write_whose_reply_is_lost_is_done_once() {
        let documents = MemoryDocuments::default();
        let (store, one) = (store(&documents), record("example.com"));
        documents.lost.store(1, Ordering::SeqCst);
        let first = store.save(&one, Revision(0), None).await.unwrap();
        documents.lost.store(1, Ordering::SeqCst);
        assert_eq!(store.save(&one, first, None).await.unwrap(), Revision(2));
        assert_eq!(store.load(&one.lineage).await.unwrap().unwrap().1.0, 2);
        documents.lost.store(1, Ordering::SeqCst);
        assert!(store.delete(&one.lineage, Revision(2)).await.unwrap());
        assert_eq!(store.list().await.unwrap(), []);
    }

    #[tokio::test]
    async fn rename_that_was_interrupted_changes_nothing() {
        let documents = MemoryDocuments::default();
        let (store, one) = (store(&documents), record("old.example.com"));
        let first = store.save(&one, Revision(0), None).await.unwrap();
        let (stored, _) = store.certificate(&one.lineage).await.unwrap();
        let copy_of = Some(one.lineage.clone());
        let copy = Certificate { copy_of, ..stored };
        let to = Lineage::parse("new").unwrap();
        store.documents.swap(&at(&to), &copy, None).await.unwrap();
        // The process was killed here.
        assert_eq!(store.load(&to).await.unwrap(), None);
        assert_eq!(store.list().await.unwrap(), [one.lineage.clone()]);
        let (_, version) = store.certificate(&one.lineage).await.unwrap();
        let mut other = record("other.example.com");
        other.lineage = to.clone();
        store.save(&other, Revision(0), None).await.unwrap();
        // The rename goes on, too late.
        let version = version.unwrap();
        let removed = store.documents.remove(&at(&one.lineage), &version).await;
        assert!(!removed.unwrap(), "the name was taken meanwhile");
        let again = store.rename(&one.lineage, &to, first).await;
        assert!(matches!(again, Err(StoreError::Taken { .. })));
        let free = Lineage::parse("free").unwrap();
        store.rename(&one.lineage, &free, first).await.unwrap();
        assert!(store.load(&free).await.unwrap().is_some());
        assert_eq!(store.list().await.unwrap(), [free, to]);
    }

    #[tokio::test]
    async fn document_under_another_name_is_refused() {
        let documents = MemoryDocuments::default();
        let (store, one) = (store(&documents), record("one.example.com"));
        store.save(&one, Revision(0), None).await.unwrap();
        let sealed = documents.read(&at(&one.lineage)).await.unwrap().unwrap();
        let two = record("two.example.com").lineage;
        let content = &sealed.content;
        documents.write(&at(&two), content, None).await.unwrap();
        let loaded = store.load(&two).await;
        assert!(matches!(loaded, Err(StoreError::Corrupt { .. })), "{loaded:?}");
        let text = String::from_utf8_lossy(content).into_owned();
        assert!(!text.contains("example.com"), "names are sealed too: {text}");
    }
}
