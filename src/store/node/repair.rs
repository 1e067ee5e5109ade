//! What is damaged or missing in the shared store is put back by a machine that has it: of role
//! full, and no command, which refuses it. A machine that finds such a document and has no copy
//! asks the others for it, in the document of the fleet.

use std::collections::BTreeSet;

use super::sync::is_late;
use super::{NodeStore, Role, lock};
use crate::lineage::Lineage;
use crate::store::StoreError;
use crate::store::documents::Version;

impl NodeStore {
    pub(super) fn repairs(&self) -> bool {
        let is_command = self.is_command.load(std::sync::atomic::Ordering::SeqCst);
        self.role == Role::Full && !is_command
    }

    /// Replaces the damaged document of a certificate by this machine's copy.
    ///
    /// # Errors
    /// The `damage`, where that may not be.
    pub(super) async fn repair(
        &self,
        lineage: &Lineage,
        version: &Version,
        damage: StoreError,
    ) -> Result<(), StoreError> {
        let copied = self.copied(lineage);
        let is_deleted = match &copied {
            Some(copied) => self.shared.was_deleted(lineage, copied.id).await?,
            None => false,
        };
        if !self.repairs() || is_deleted || self.own.load(lineage).await?.is_none() {
            return Err(damage);
        }
        if self.push(lineage, copied, Some(version)).await? {
            tracing::warn!(%lineage, "{damage}: this machine's copy has replaced it");
        }
        Ok(())
    }

    /// Puts back what another machine has found damaged, as far as this one has it. Returns those
    /// that must be looked at again.
    pub(super) async fn repair_each(&self, damaged: &BTreeSet<Lineage>) -> BTreeSet<Lineage> {
        let mut late = BTreeSet::new();
        for lineage in damaged.iter().filter(|_| self.repairs()) {
            if let Err(error) = self.repair_pair(lineage).await {
                tracing::debug!(%lineage, "not put back: {error}");
                if is_late(&error) {
                    late.insert(lineage.clone());
                }
            }
        }
        late
    }

    async fn repair_pair(&self, lineage: &Lineage) -> Result<(), StoreError> {
        self.sync_idle(lineage).await?;
        let Some((record, _)) = self.own.load(lineage).await? else {
            return Ok(());
        };
        let Some(issued) = &record.issued else {
            return Ok(());
        };
        let Some((key, chain)) = self.own.bundle(lineage, issued.generation).await? else {
            return Ok(());
        };
        let fingerprint = &issued.facts.fingerprint;
        if self.shared.put_pair_back(fingerprint, key, chain).await? {
            tracing::warn!(%lineage, "its pair was missing or damaged in the shared store: it has this machine's again");
            // The machine that missed it looks again.
            self.changed(lineage);
        }
        Ok(())
    }

    /// Says an error of a certificate, once.
    pub(super) fn say_once(&self, lineage: &Lineage, error: Option<&StoreError>) {
        let mut said = lock(&self.said);
        let Some(error) = error.map(ToString::to_string) else {
            said.remove(lineage);
            return;
        };
        if said.get(lineage) != Some(&error) {
            tracing::error!(%lineage, "its copy stays as it is: {error}");
            said.insert(lineage.clone(), error);
        }
    }
}
