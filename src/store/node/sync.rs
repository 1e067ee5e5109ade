//! Brings this machine's copy of a certificate and the shared store together. The newer of
//! two states of one certificate counts: a store that was wiped, or restored from a backup,
//! gets back what the machines have. Only a deletion that the store remembers deletes a copy.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::{Copied, NodeStore, Role, lock, options};
use crate::certificate::Bundle;
use crate::lineage::Lineage;
use crate::random::{Random, SystemRandom};
use crate::record::{Generation, Record, Revision};
use crate::store::documents::Version;
use crate::store::shared::{Copy, Found};
use crate::store::{Store, StoreError};
use crate::time::Timestamp;

/// Certificates that are read at once.
const SIDE_BY_SIDE: usize = 16;
/// Most passes that do not order end within this time; the others delay a copy by another look.
const PASS: Duration = Duration::from_secs(1);
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

/// The result of several comparisons.
#[derive(Debug, Default)]
pub struct Synced {
    /// What has changed here.
    pub changed: Vec<(Lineage, Change)>,
    /// Those that must be compared again.
    pub failed: Vec<Lineage>,
    /// Those that the shared store has in a form that is refused, and why.
    pub refused: Vec<(Lineage, StoreError)>,
}

/// Whether the next look may find that it has passed.
pub(super) fn is_late(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Leased { .. } | StoreError::Conflict { .. } | StoreError::Io { .. }
    )
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

fn issued_at(record: &Record) -> Option<Timestamp> {
    record.issued.as_ref().map(|issued| issued.at)
}

impl NodeStore {
    /// Compares every certificate with the shared store, and returns what has changed here.
    ///
    /// # Errors
    /// When the shared store cannot be listed. One damaged certificate does not affect the
    /// others.
    pub async fn sync_all(&self) -> Result<Synced, StoreError> {
        self.claim().await?;
        Ok(self.sync_each(self.stale().await?).await)
    }

    /// The certificates whose copy may differ from the shared store.
    pub(super) async fn stale(&self) -> Result<Vec<Lineage>, StoreError> {
        let versions = self.shared.versions().await?;
        let is_copied = |lineage: &Lineage| {
            let there = versions.get(lineage).map(|version| &version.0);
            let copied = self.copied(lineage);
            copied.is_some_and(|copied| Some(&copied.version) == there)
        };
        let mut stale: Vec<Lineage> = versions.keys().cloned().collect();
        let own = self.own.list().await?;
        stale.extend(own.into_iter().filter(|one| !versions.contains_key(one)));
        stale.retain(|one| !is_copied(one));
        Ok(stale)
    }

    /// Compares these certificates with the shared store.
    pub(super) async fn sync_each(&self, lineages: Vec<Lineage>) -> Synced {
        let each = stream::iter(lineages).map(async |lineage| {
            let change = self.sync_idle(&lineage).await;
            (lineage, change)
        });
        let each: Vec<_> = each.buffer_unordered(SIDE_BY_SIDE).collect().await;
        let mut synced = Synced::default();
        for (lineage, change) in each {
            self.say_once(
                &lineage,
                change.as_ref().err().filter(|error| !is_late(error)),
            );
            match change {
                Ok(Change::None) => {}
                Ok(change) => synced.changed.push((lineage, change)),
                Err(error) if is_late(&error) => {
                    tracing::debug!(%lineage, "{error}");
                    synced.failed.push(lineage);
                }
                Err(error) => {
                    lock(&self.damaged).insert(lineage.clone());
                    synced.refused.push((lineage, error));
                }
            }
        }
        synced
    }

    /// The same for one, while no pass works on it: its record must not change meanwhile.
    pub(super) async fn sync_idle(&self, lineage: &Lineage) -> Result<Change, StoreError> {
        let end = self.stopwatch().read() + PASS;
        loop {
            match self.own.lease(lineage).await {
                Err(StoreError::Leased { .. }) if self.stopwatch().read() < end => {
                    self.stopwatch().sleep(PASS / 20).await;
                }
                lease => {
                    let _lease = lease?;
                    return self.sync(lineage).await;
                }
            }
        }
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
            let there = match self.shared.find(lineage).await? {
                Found::Absent => None,
                Found::Copy(copy) => Some(*copy),
                Found::Damaged(version, damage) => {
                    let repaired = self.repair(lineage, &version, damage).await;
                    return repaired.map(|()| Change::None);
                }
            };
            let copied = self.copied(lineage);
            let copied = match (&there, copied) {
                // Another certificate has the name; this machine's was deleted before.
                (Some(there), Some(own)) if there.id != own.id => {
                    if self.was_deleted_here(lineage, &own).await? {
                        return Ok(Change::Deleted);
                    }
                    // Unless the other one is of the past.
                    self.is_past(there).await?.then_some(own)
                }
                (_, copied) => copied,
            };
            let copied = match (&there, copied) {
                // A certificate counts more than an order that has brought none.
                (Some(there), None) if self.has_more(there).await? => Some(after(there)),
                (_, copied) => copied,
            };
            match (&there, &copied) {
                (None, Some(copied)) if self.shared.was_deleted(lineage, copied.id).await? => {
                    return Ok(match self.own.load(lineage).await {
                        Ok(None) => Change::None,
                        _ => Change::Deleted,
                    });
                }
                (Some(there), Some(copied))
                    if there.id != copied.id || self.is_older(there, copied).await? => {}
                (Some(there), _) => match self.pull(lineage, there).await {
                    Err(StoreError::Conflict { .. }) => continue,
                    pulled => return pulled,
                },
                (None, _) => {}
            }
            // The shared store has less than this machine.
            let is_known = copied.is_some();
            if self.role == Role::Serve {
                let older = StoreError::Older {
                    lineage: lineage.clone(),
                };
                return there
                    .filter(|_| is_known)
                    .map_or(Ok(Change::None), |_| Err(older));
            }
            let before = there.as_ref().map(|there| &there.version);
            if self.push(lineage, copied, before).await? {
                if is_known {
                    tracing::warn!(%lineage, "the shared store had an older state, or none: it has this machine's again");
                }
                return Ok(Change::None);
            }
        }
        let subject = format!("the record of {lineage}");
        Err(StoreError::Conflict { subject, found: 0 })
    }

    async fn was_deleted_here(&self, lineage: &Lineage, own: &Copied) -> Result<bool, StoreError> {
        let is_here = !matches!(self.own.load(lineage).await, Ok(None));
        Ok(is_here && self.shared.was_deleted(lineage, own.id).await?)
    }

    /// Whether a certificate of another number than this machine's of that name is older: one
    /// that was deleted, or whose leaf was issued before.
    async fn is_past(&self, there: &Copy) -> Result<bool, StoreError> {
        let lineage = &there.lineage;
        if self.shared.was_deleted(lineage, there.id).await? {
            return Ok(true);
        }
        let own = self.own.load(lineage).await?;
        let own = own.and_then(|(own, _)| issued_at(&own));
        Ok(own > there.record.as_ref().and_then(issued_at))
    }

    /// Whether this machine has a certificate, and the shared store has none of that name.
    async fn has_more(&self, there: &Copy) -> Result<bool, StoreError> {
        let is_issued = |record: &Record| record.issued.is_some();
        let own = self.own.load(&there.lineage).await?;
        let is_own = own.is_some_and(|(own, _)| is_issued(&own));
        Ok(is_own && !there.record.as_ref().is_some_and(is_issued))
    }

    /// Whether the shared store has an older state than this machine. Of two states with one
    /// number, as after a restore, that with the newer certificate counts.
    async fn is_older(&self, there: &Copy, copied: &Copied) -> Result<bool, StoreError> {
        if there.revision != copied.revision || there.stamp == copied.stamp {
            return Ok(there.revision < copied.revision);
        }
        let own = self.own.load(&there.lineage).await?;
        let own = own.and_then(|(own, _)| issued_at(&own));
        Ok(own > there.record.as_ref().and_then(issued_at))
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
            stamp: there.stamp,
            version: there.version.0.clone(),
        };
        self.note_copy(lineage, Some(copied));
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
            Some(generation) => {
                let pair = self.shared.bundle(lineage, generation).await?;
                Some(pair.ok_or_else(|| StoreError::Corrupt {
                    subject: format!("{lineage} in the shared store"),
                    detail: format!("the pair of generation {generation} is missing"),
                })?)
            }
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
    pub(super) async fn push(
        &self,
        lineage: &Lineage,
        copied: Option<Copied>,
        before: Option<&Version>,
    ) -> Result<bool, StoreError> {
        let Some((record, _)) = self.own.load(lineage).await? else {
            return Ok(true);
        };
        let drawn = || SystemRandom.below(u64::MAX);
        let (id, revision, stamp) = match &copied {
            Some(copied) => (copied.id, copied.revision, copied.stamp),
            None => (drawn(), Revision(1), drawn()),
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
        let is_written =
            self.shared
                .put_back(&shared, (id, revision, stamp), options, pair, before);
        if !is_written.await? {
            return Ok(false);
        }
        if copied.is_none() {
            tracing::info!(%lineage, "shared with the fleet");
        }
        let version = String::new();
        let copied = Copied {
            id,
            revision,
            stamp,
            version,
        };
        self.note_copy(lineage, Some(copied));
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
        if self.role == Role::Serve {
            return Err(StoreError::OnlyServes);
        }
        let copied = self.copied(lineage);
        let expected = copied.as_ref().map_or(Revision(0), |it| it.revision);
        let stamp = copied.map(|copied| copied.stamp);
        let shared = record.without_deployments();
        let saved = self.shared.save_after(&shared, expected, stamp, bundle);
        let saved = saved.await;
        if let Err(StoreError::Conflict { .. }) = saved {
            // The caller sees the newer state when it begins again.
            self.compare(lineage).await?;
        }
        let saved = saved?;
        let copied = Copied {
            id: saved.id,
            revision: saved.revision,
            stamp: saved.stamp,
            // It is read when this change is seen as one of the fleet's.
            version: String::new(),
        };
        self.note_copy(lineage, Some(copied));
        self.changed(lineage);
        Ok(())
    }

    /// Saves the record as it is, so that the store refuses what a machine whose lease has ended
    /// still saves when it wakes.
    pub(super) async fn fence(&self, lineage: &Lineage) -> Result<(), StoreError> {
        let _changing = self.changing(lineage).await;
        for _ in 0..ATTEMPTS {
            let Some((record, _)) = self.own.load(lineage).await? else {
                return Ok(());
            };
            match self.save_shared(&record, None).await {
                // It has just saved: the copy is compared.
                Err(StoreError::Conflict { .. }) => {}
                saved => return saved,
            }
        }
        Err(crate::store::shared::busy(&format!(
            "certificates/{lineage}"
        )))
    }
}

/// A copy that replaces the shared state.
fn after(there: &Copy) -> Copied {
    Copied {
        id: there.id,
        revision: Revision(there.revision.0 + 1),
        stamp: SystemRandom.below(u64::MAX),
        version: String::new(),
    }
}
