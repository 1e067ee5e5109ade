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

mod cas;
pub mod fleet;
mod lease;
mod sealed;
mod stopwatch;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(super) use self::cas::StoredAccount;
use self::lease::SharedLease;
pub(super) use self::sealed::busy;
use self::sealed::{Loaded, Sealed};
pub(super) use self::stopwatch::Stopwatch;
use super::documents::{Documents, Version};
use super::seal::Seal;
use super::{Lease, Store, StoreError, check_save, next_revision};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::record::{Generation, Record, Revision};
use crate::time::Clock;

/// A lease that is not released within this time ends by itself.
const RELEASED: Duration = Duration::from_secs(3);
/// Writers that are faster than we are: each attempt reads the document again.
const ATTEMPTS: u32 = 20;

/// A store on a server that other machines use too.
#[derive(Debug)]
pub struct SharedStore {
    documents: Arc<Sealed>,
    /// The name of this machine, for the others.
    node: String,
    stopwatch: Stopwatch,
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
    /// Drawn at each save of the record: a store that was restored counts its revisions again.
    #[serde(default)]
    stamp: u64,
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

fn at(lineage: &Lineage) -> String {
    format!("certificates/{lineage}")
}

fn of_pair(fingerprint: &Fingerprint) -> String {
    format!("pairs/{fingerprint}")
}

/// What a save has made.
pub(super) struct Saved {
    pub(super) id: u64,
    pub(super) revision: Revision,
    pub(super) stamp: u64,
}

/// All that is stored of one certificate, with its version.
#[derive(Clone)]
pub(super) struct Copy {
    pub(super) lineage: Lineage,
    pub(super) id: u64,
    pub(super) revision: Revision,
    pub(super) stamp: u64,
    pub(super) version: Version,
    pub(super) record: Option<Record>,
    pub(super) options: Option<String>,
}

/// What there is of a certificate.
pub(super) enum Found {
    Absent,
    /// Its document cannot be opened.
    Damaged(Version, StoreError),
    Copy(Box<Copy>),
}

impl SharedStore {
    /// The store in `documents`, as the machine `node` sees it.
    pub(crate) fn new(documents: Arc<dyn Documents>, seal: Seal, node: String) -> Self {
        let documents = Arc::new(Sealed::new(documents, seal));
        let stopwatch = Stopwatch::default();
        Self {
            documents,
            node,
            stopwatch,
        }
    }

    /// The same, where time passes by `clock`.
    pub(crate) fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.stopwatch = Stopwatch::of(clock);
        self
    }

    pub(super) fn stopwatch(&self) -> &Stopwatch {
        &self.stopwatch
    }

    /// What is stored of `lineage`, and the version to write it against.
    async fn certificate(
        &self,
        lineage: &Lineage,
    ) -> Result<(Certificate, Option<Version>), StoreError> {
        let loaded = self.documents.load::<Certificate>(&at(lineage)).await?;
        self.resolved(loaded).await
    }

    /// The certificate of its document; a copy of a rename that has not ended is none.
    async fn resolved(
        &self,
        loaded: Loaded<Certificate>,
    ) -> Result<(Certificate, Option<Version>), StoreError> {
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

    /// Returns once the released leases are gone: a process that ends leaves none behind.
    pub(super) async fn settle(&self) {
        let releasing = self.documents.releasing.lock();
        let releasing = std::mem::take(&mut *releasing.unwrap_or_else(PoisonError::into_inner));
        tokio::select! {
            biased;
            _ = releasing.join_all() => {}
            () = self.stopwatch.sleep(RELEASED) => {}
        }
    }

    /// This machine's name.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// All that is stored of `lineage`.
    pub(super) async fn copy(&self, lineage: &Lineage) -> Result<Option<Copy>, StoreError> {
        match self.find(lineage).await? {
            Found::Absent => Ok(None),
            Found::Damaged(_, error) => Err(error),
            Found::Copy(copy) => Ok(Some(*copy)),
        }
    }

    /// The same; a damaged document is found with its version.
    pub(super) async fn find(&self, lineage: &Lineage) -> Result<Found, StoreError> {
        let examined = self.documents.examine::<Certificate>(&at(lineage)).await?;
        let loaded = match examined {
            None => None,
            Some((Ok(stored), version)) => Some((stored, version)),
            Some((Err(error @ StoreError::Corrupt { .. }), version)) => {
                return Ok(Found::Damaged(version, error));
            }
            Some((Err(error), _)) => return Err(error),
        };
        let (stored, Some(version)) = self.resolved(loaded).await? else {
            return Ok(Found::Absent);
        };
        Ok(Found::Copy(Box::new(Copy {
            lineage: lineage.clone(),
            id: stored.id,
            revision: stored.revision,
            stamp: stored.stamp,
            version,
            record: stored.record.map(|mut record| {
                record.lineage = lineage.clone();
                record
            }),
            options: stored.options,
        })))
    }

    /// Stores the copy that a machine has of a certificate in place of an older state of the
    /// store, `before`, or of none. False if another machine was faster.
    pub(super) async fn put_back(
        &self,
        record: &Record,
        copy: (u64, Revision, u64),
        options: Option<String>,
        pair: Option<(Generation, Secret, String)>,
        before: Option<&Version>,
    ) -> Result<bool, StoreError> {
        let (id, revision, stamp) = copy;
        let mut pairs = BTreeMap::new();
        if let (Some((generation, key, chain)), Some(issued)) = (pair, &record.issued) {
            let fingerprint = &issued.facts.fingerprint;
            pairs.insert(generation, self.write_pair(fingerprint, key, chain).await?);
        }
        let stored = Certificate {
            id,
            copy_of: None,
            revision,
            stamp,
            record: Some(record.clone()),
            options,
            pairs,
        };
        let key = at(&record.lineage);
        let written = self.documents.swap(&key, &stored, before).await?;
        Ok(written.is_some())
    }

    /// Stores the pair of `record` again, if it is missing or damaged. Whether it was.
    pub(super) async fn put_pair_back(
        &self,
        fingerprint: &Fingerprint,
        key: Secret,
        chain: String,
    ) -> Result<bool, StoreError> {
        let document = of_pair(fingerprint);
        let (whole, version) = self.documents.load_if_whole::<Pair>(&document).await?;
        if whole.is_some() {
            return Ok(false);
        }
        let pair = Pair { key, chain };
        let written = self.documents.swap(&document, &pair, version.as_ref());
        Ok(written.await?.is_some())
    }

    /// As [`Store::lease`], and whether the holder before has let its lease end.
    pub(super) async fn take_lease(
        &self,
        lineage: &Lineage,
    ) -> Result<(Box<dyn Lease>, bool), StoreError> {
        let taken =
            SharedLease::take(&self.documents, &self.node, lineage, &self.stopwatch).await?;
        Ok((Box::new(taken.0), taken.1))
    }

    /// The version of each certificate's document.
    pub(super) async fn versions(&self) -> Result<BTreeMap<Lineage, Version>, StoreError> {
        let prefix = "certificates/";
        let keys = self.keys(prefix).await?.into_iter();
        let named = keys.filter_map(|(key, version)| {
            let name = key.strip_prefix(prefix)?;
            Some((Lineage::parse(name).ok()?, version))
        });
        Ok(named.collect())
    }

    /// As [`Store::save`]; the stored record must also be the one of `stamp`, if it is given.
    pub(super) async fn save_after(
        &self,
        record: &Record,
        expected: Revision,
        stamp: Option<u64>,
        bundle: Option<&Bundle>,
    ) -> Result<Saved, StoreError> {
        let lineage = &record.lineage;
        for _ in 0..ATTEMPTS {
            let (mut stored, version) = self.certificate_to_write(lineage).await?;
            let before = stored.record.take().map(|record| (record, stored.revision));
            if stamp.is_some_and(|stamp| stamp != stored.stamp) {
                let (subject, found) = (format!("the record of {lineage}"), stored.revision.0);
                return Err(StoreError::Conflict { subject, found });
            }
            stored.stamp = SystemRandom.below(u64::MAX);
            let new = record.issued.as_ref().filter(|_| bundle.is_some());
            stored.revision = check_save(record, expected, before.as_ref(), new)?;
            if let (Some(bundle), Some(issued)) = (bundle, new) {
                let (fingerprint, key) = (&bundle.facts().fingerprint, bundle.key_pem());
                let chain = bundle.chain_pem();
                let pair = self.write_pair(fingerprint, key.clone(), chain).await?;
                stored.pairs.insert(issued.generation, pair);
            }
            let old = take_old(&mut stored.pairs, record);
            let saved = Saved {
                id: stored.id,
                revision: stored.revision,
                stamp: stored.stamp,
            };
            stored.record = Some(record.clone());
            let key = at(lineage);
            let written = self.documents.swap(&key, &stored, version.as_ref());
            // Options that were saved meanwhile do not conflict: the revision tells.
            if written.await?.is_some() {
                self.remove_pairs(old).await;
                return Ok(saved);
            }
        }
        Err(busy(&at(lineage)))
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

    async fn write_pair(
        &self,
        fingerprint: &Fingerprint,
        key: Secret,
        chain: String,
    ) -> Result<String, StoreError> {
        let document = of_pair(fingerprint);
        let pair = Pair { key, chain };
        if self.documents.swap(&document, &pair, None).await?.is_some() {
            return Ok(document);
        }
        // An earlier attempt wrote this very leaf, perhaps with another chain.
        match self.documents.load_if_whole::<Pair>(&document).await? {
            (Some(stored), _) if stored.key == pair.key => Ok(document),
            (None, version) => {
                let written = self.documents.swap(&document, &pair, version.as_ref());
                match written.await? {
                    Some(_) => Ok(document),
                    None => Err(busy(&document)),
                }
            }
            _ => Err(busy(&document)),
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
    let is_old =
        |one: &Generation| one.0 + Generation::KEPT <= newest && record.rollback_to != Some(*one);
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
        let saved = self.save_after(record, expected, None, bundle).await?;
        Ok(saved.revision)
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
            let key = at(lineage);
            let written = self.documents.swap(&key, &stored, version.as_ref());
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
                    let whole = self.documents.load_if_whole::<Certificate>(&key).await?;
                    (Certificate::new(), whole.1)
                }
                read => read?,
            };
            let subject = format!("the record of {lineage}");
            let found = stored.record.as_ref().map(|_| stored.revision);
            next_revision(subject, expected, found.unwrap_or_default())?;
            let Some(version) = version else {
                return Ok(false);
            };
            self.note_deletion(lineage, stored.id).await?;
            match self.documents.remove(&key, &version).await {
                Ok(true) => {
                    self.remove_pairs(stored.pairs.into_values()).await;
                    return Ok(true);
                }
                // It stays: another machine has changed it.
                Ok(false) => self.forget_deletion(lineage, stored.id).await?,
                // It may be removed yet.
                Err(error) => return Err(error),
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
        // The other machines drop the old name, and find the new one.
        self.note_deletion(from, stored.id).await?;
        let removed = match version {
            Some(version) => self.documents.remove(&at(from), &version).await?,
            None => false,
        };
        if !removed {
            self.forget_deletion(from, stored.id).await?;
            let _ = self.documents.remove(&at(to), &copied).await;
            let found = stored.revision.0 + 1;
            return Err(StoreError::Conflict { subject, found });
        }
        // It may have had this name before.
        self.forget_deletion(to, stored.id).await?;
        // The mark is of no more use; it stays until the next save if this fails.
        let _ = self.documents.swap(&at(to), &stored, Some(&copied)).await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        let mut lineages = Vec::new();
        for lineage in self.versions().await?.into_keys() {
            // An unreadable record is one: its load says why it cannot be read.
            if !matches!(self.load(&lineage).await, Ok(None)) {
                lineages.push(lineage);
            }
        }
        lineages.sort();
        Ok(lineages)
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        Ok(self.take_lease(lineage).await?.0)
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        Ok(self.stored_account(ca).await?.0.credentials)
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        self.new_account(ca, credentials).await
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        self.replace_account(ca, before, Some(credentials)).await
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        self.replace_account(ca, before, None).await
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        self.stored_ca_state(ca).await
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        self.swap_ca_state(ca, state, expected).await
    }
}
