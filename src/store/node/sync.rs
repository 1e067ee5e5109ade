//! Brings this machine's copy of a certificate and the shared store together. The newer of
//! two states of one certificate counts: a store that was wiped, or restored from a backup,
//! gets back what the machines have. Only a deletion that the store remembers deletes a copy.

use futures_util::{StreamExt, stream};

use super::{COPIES, Copied, NodeStore, Role, lock, options};
use crate::certificate::Bundle;
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::record::{Generation, Record, Revision};
use crate::store::shared::Copy;
use crate::store::{Store, StoreError};

/// Certificates that are read at once.
const SIDE_BY_SIDE: usize = 16;
/// Other writers of one certificate that are faster than we are.
const ATTEMPTS: u32 = 5;

/// What a comparison with the shared store has changed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// This machine has the certificate, or its options, for the first time or again.
    Stored,
    /// Its record has changed, and perhaps its pair.
    Updated,
    /// It was deleted in the fleet, and is still stored here.
    Deleted,
}

/// Whether two states of a certificate are equal for the fleet. The times of requests for a
/// window are each machine's own: they change every few hours.
pub(super) fn is_same(one: &Record, other: &Record) -> bool {
    let shared = |record: &Record| {
        let mut shared = record.without_deployments();
        let renewal = shared.issued.as_mut().and_then(|it| it.renewal.as_mut());
        if let Some(renewal) = renewal {
            (renewal.refresh_at, renewal.asked) = (None, None);
        }
        shared
    };
    shared(one) == shared(other)
}

impl NodeStore {
    /// Compares every certificate with the shared store, and returns what has changed here.
    ///
    /// # Errors
    /// When the shared store cannot be listed, or the copies cannot be written. One damaged
    /// certificate does not affect the others.
    pub async fn sync_all(&self) -> Result<Vec<(Lineage, Change)>, StoreError> {
        self.shared.claim().await?;
        let versions = self.shared.versions().await?;
        let is_copied = |lineage: &Lineage| {
            let copied = self.copied(lineage);
            copied.is_some_and(|copied| {
                Some(&copied.version) == versions.get(lineage).map(|it| &it.0)
            })
        };
        let mut stale: Vec<Lineage> = versions.keys().cloned().collect();
        let own = self.own.list().await?;
        stale.extend(own.into_iter().filter(|one| !versions.contains_key(one)));
        stale.retain(|one| !is_copied(one));
        Ok(self.sync_each(stale).await)
    }

    /// Compares these certificates with the shared store.
    pub(super) async fn sync_each(&self, lineages: Vec<Lineage>) -> Vec<(Lineage, Change)> {
        let is_any = !lineages.is_empty();
        let synced = stream::iter(lineages).map(async |lineage| {
            let change = match self.sync(&lineage).await {
                Ok(change) => change,
                Err(error) => {
                    tracing::warn!(%lineage, "its copy stays as it is: {error}");
                    Change::None
                }
            };
            (lineage, change)
        });
        let synced: Vec<_> = synced.buffer_unordered(SIDE_BY_SIDE).collect().await;
        if is_any {
            self.keep_copies();
        }
        let changed = synced.into_iter();
        changed
            .filter(|(_, change)| *change != Change::None)
            .collect()
    }

    /// Compares one certificate with the shared store.
    ///
    /// # Errors
    /// When the shared store or the copy cannot be read or written.
    pub async fn sync(&self, lineage: &Lineage) -> Result<Change, StoreError> {
        let _changing = self.changing(lineage).await;
        self.compare(lineage).await
    }

    async fn compare(&self, lineage: &Lineage) -> Result<Change, StoreError> {
        for _ in 0..ATTEMPTS {
            let there = self.shared.copy(lineage).await?;
            let copied = self.copied(lineage);
            match (&there, &copied) {
                (None, Some(copied)) if self.shared.was_deleted(lineage, copied.id).await? => {
                    return Ok(match self.own.load(lineage).await {
                        Ok(None) => Change::None,
                        _ => Change::Deleted,
                    });
                }
                (Some(there), Some(copied))
                    if there.id == copied.id && there.revision < copied.revision => {}
                (Some(there), _) => match self.pull(lineage, there).await {
                    Err(StoreError::Conflict { .. }) => continue,
                    pulled => return pulled,
                },
                (None, _) => {}
            }
            // The shared store has less than this machine.
            if self.role == Role::Serve || self.push(lineage, copied, there.as_ref()).await? {
                return Ok(Change::None);
            }
        }
        let subject = format!("the record of {lineage}");
        Err(StoreError::Conflict { subject, found: 0 })
    }

    /// Takes the state of the shared store over.
    async fn pull(&self, lineage: &Lineage, there: &Copy) -> Result<Change, StoreError> {
        let mut change = Change::None;
        if let Some(shared) = &there.options {
            let known = self.own.options(lineage).await?;
            let options = options::copied(shared, known.as_deref());
            if known.is_none_or(|known| options::shared(&known) != options::shared(&options)) {
                self.own.save_options(lineage, &options).await?;
                change = Change::Stored;
            }
        }
        let own = self.own.load(lineage).await?;
        if let Some(record) = &there.record {
            let is_same = own.as_ref().is_some_and(|(own, _)| is_same(own, record));
            if !is_same {
                self.write_copy(record, own.as_ref()).await?;
                change = match own {
                    Some((own, _)) if own.issued.is_some() && change == Change::None => {
                        Change::Updated
                    }
                    _ => Change::Stored,
                };
            }
        }
        let copied = Copied {
            id: there.id,
            revision: there.revision,
            version: there.version.0.clone(),
        };
        lock(&self.copies).insert(lineage.clone(), copied);
        Ok(change)
    }

    async fn write_copy(
        &self,
        there: &Record,
        own: Option<&(Record, Revision)>,
    ) -> Result<(), StoreError> {
        let (lineage, mut record) = (&there.lineage, there.clone());
        let mut expected = own.map_or(Revision(0), |(_, revision)| *revision);
        let (old, new) = (
            own.and_then(|(own, _)| own.issued.as_ref()),
            record.issued.as_ref(),
        );
        let is_known = |generation| {
            let facts = |issued: &crate::record::Issued| issued.facts.fingerprint.clone();
            old.is_some_and(|old| old.generation == generation) && old.map(facts) == new.map(facts)
        };
        let generation = new.map(|new| new.generation);
        let pair = match generation.filter(|one| !is_known(*one)) {
            Some(generation) => self.shared.bundle(lineage, generation).await?,
            None => None,
        };
        let is_older = |(old, new): (Generation, Generation)| old >= new;
        let numbers = old.map(|old| old.generation).zip(generation);
        if pair.is_some() && numbers.is_some_and(is_older) {
            // What this machine had before it joined, or before a deletion that it missed.
            self.own.delete(lineage, expected).await?;
            expected = Revision(0);
        } else if let Some((own, _)) = own {
            record.set_deployments(own);
        }
        let pair = pair.as_ref().map(|(key, chain)| (key, chain.as_str()));
        self.own.save_pair(&record, expected, pair).await?;
        Ok(())
    }

    /// Gives the shared store what this machine has. False if another machine was faster.
    async fn push(
        &self,
        lineage: &Lineage,
        copied: Option<Copied>,
        there: Option<&Copy>,
    ) -> Result<bool, StoreError> {
        let Some((record, _)) = self.own.load(lineage).await? else {
            return Ok(true);
        };
        let (id, revision) = match &copied {
            Some(copied) => (copied.id, copied.revision),
            None => (SystemRandom.below(u64::MAX), Revision(1)),
        };
        let mut pair = None;
        if let Some(issued) = &record.issued {
            let stored = self.own.bundle(lineage, issued.generation).await?;
            pair = stored.map(|(key, chain)| (issued.generation, key, chain));
        }
        let own = self.own.options(lineage).await?;
        let (options, shared) = (
            own.map(|own| options::shared(&own)),
            record.without_deployments(),
        );
        let before = there.map(|there| &there.version);
        let is_written = self
            .shared
            .put_back(&shared, (id, revision), options, pair, before);
        if !is_written.await? {
            return Ok(false);
        }
        match copied {
            Some(_) => {
                tracing::warn!(%lineage, "the shared store had an older state, or none: it has this machine's again")
            }
            None => tracing::info!(%lineage, "shared with the fleet"),
        }
        let version = String::new();
        let copied = Copied {
            id,
            revision,
            version,
        };
        lock(&self.copies).insert(lineage.clone(), copied);
        self.changed(lineage);
        Ok(true)
    }

    /// Saves the state that the machines share; the caller saves the copy.
    pub(super) async fn save_shared(
        &self,
        record: &Record,
        bundle: Option<&Bundle>,
    ) -> Result<(), StoreError> {
        let lineage = &record.lineage;
        let expected = self.copied(lineage).map_or(Revision(0), |it| it.revision);
        let shared = record.without_deployments();
        let saved = self.shared.save(&shared, expected, bundle).await;
        if let Err(StoreError::Conflict { .. }) = saved {
            // The caller sees the newer state when it begins again.
            self.compare(lineage).await?;
        }
        let revision = saved?;
        let id = match self.copied(lineage) {
            Some(copied) => copied.id,
            None => { self.shared.copy(lineage).await?.map(|there| there.id) }.unwrap_or_default(),
        };
        // The version is read when this change is seen as one of the fleet's.
        let version = String::new();
        let copied = Copied {
            id,
            revision,
            version,
        };
        lock(&self.copies).insert(lineage.clone(), copied);
        self.changed(lineage);
        Ok(())
    }

    pub(super) fn forget(&self, lineage: &Lineage) {
        lock(&self.copies).remove(lineage);
        self.keep_copies();
    }

    fn keep_copies(&self) {
        let json = serde_json::to_vec(&*lock(&self.copies)).unwrap_or_default();
        if let Err(error) = self.own.keep(COPIES, &json) {
            // The next start compares every certificate.
            tracing::debug!("{COPIES}: {error}");
        }
    }
}
