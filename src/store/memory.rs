//! The store in memory: for runs that must leave no trace, such as a rehearsal,
//! and for tests. It passes the same contract as every other store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{Lease, OwnStore, Store, StoreError, check_account, check_save, next_revision};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Revision};

/// A store that is lost when its process ends.
#[derive(Debug, Default)]
pub struct MemoryStore {
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    records: BTreeMap<Lineage, (Record, Revision)>,
    bundles: BTreeMap<(Lineage, Generation), (Secret, String)>,
    options: BTreeMap<Lineage, String>,
    accounts: BTreeMap<String, Secret>,
    ca_states: BTreeMap<String, (CaState, Revision)>,
    leases: BTreeSet<Lineage>,
    kept: BTreeMap<String, String>,
}

impl MemoryStore {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl OwnStore for MemoryStore {
    async fn save_pair(
        &self,
        record: &Record,
        expected: Revision,
        pair: Option<(&Secret, &str)>,
    ) -> Result<Revision, StoreError> {
        let mut inside = self.inside();
        let lineage = &record.lineage;
        let new = record.issued.as_ref().filter(|_| pair.is_some());
        let revision = check_save(record, expected, inside.records.get(lineage), new)?;
        if let (Some((key, chain)), Some(issued)) = (pair, new) {
            let old = Generation(issued.generation.0.saturating_sub(Generation::KEPT));
            if record.rollback_to != Some(old) {
                inside.bundles.remove(&(lineage.clone(), old));
            }
            let place = (lineage.clone(), issued.generation);
            let pair = (key.clone(), chain.to_owned());
            inside.bundles.insert(place, pair);
        }
        let stored = (record.clone(), revision);
        inside.records.insert(lineage.clone(), stored);
        Ok(revision)
    }

    fn keep(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let content = String::from_utf8_lossy(content).into_owned();
        self.inside().kept.insert(name.to_owned(), content);
        Ok(())
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let content = String::from_utf8_lossy(content);
        let kept = &mut self.inside().kept;
        kept.entry(name.to_owned()).or_default().push_str(&content);
        Ok(())
    }

    fn kept(&self, name: &str) -> Option<String> {
        self.inside().kept.get(name).cloned()
    }

    fn accounts(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.inside().accounts.keys().cloned().collect())
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        Ok(self.inside().records.get(lineage).cloned())
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let chain = bundle.map(Bundle::chain_pem);
        let pair = bundle.map(Bundle::key_pem).zip(chain.as_deref());
        self.save_pair(record, expected, pair).await
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        let key = (lineage.clone(), generation);
        Ok(self.inside().bundles.get(&key).cloned())
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        Ok(self.inside().options.get(lineage).cloned())
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        let options = &mut self.inside().options;
        options.insert(lineage.clone(), json.to_owned());
        Ok(())
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        let mut inside = self.inside();
        let found = inside.records.get(lineage).map(|(_, revision)| *revision);
        let subject = format!("the record of {lineage}");
        next_revision(subject, expected, found.unwrap_or_default())?;
        inside.bundles.retain(|(owner, _), _| owner != lineage);
        let had_options = inside.options.remove(lineage).is_some();
        Ok(inside.records.remove(lineage).is_some() || had_options)
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let mut inside = self.inside();
        if inside.records.contains_key(to) || inside.options.contains_key(to) {
            let lineage = to.clone();
            return Err(StoreError::Taken { lineage });
        }
        let stored = inside.records.get(from).map(|(_, revision)| *revision);
        let subject = format!("the record of {from}");
        next_revision(subject, expected, stored.unwrap_or_default())?;
        if let Some((mut record, revision)) = inside.records.remove(from) {
            record.lineage = to.clone();
            inside.records.insert(to.clone(), (record, revision));
        }
        if let Some(options) = inside.options.remove(from) {
            inside.options.insert(to.clone(), options);
        }
        let bundles = std::mem::take(&mut inside.bundles).into_iter();
        inside.bundles = bundles
            .map(|((lineage, generation), pair)| match lineage == *from {
                true => ((to.clone(), generation), pair),
                false => ((lineage, generation), pair),
            })
            .collect();
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        Ok(self.inside().records.keys().cloned().collect())
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        let lineage = lineage.clone();
        if !self.inside().leases.insert(lineage.clone()) {
            return Err(StoreError::Leased { lineage });
        }
        let inside = self.inside.clone();
        Ok(Box::new(MemoryLease { inside, lineage }))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        Ok(self.inside().accounts.get(ca).cloned())
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let mut inside = self.inside();
        let stored = inside.accounts.entry(ca.to_owned());
        Ok(stored.or_insert_with(|| credentials.clone()).clone())
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        let accounts = &mut self.inside().accounts;
        check_account(ca, accounts.get(ca), before)?;
        accounts.insert(ca.to_owned(), credentials.clone());
        Ok(())
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        let accounts = &mut self.inside().accounts;
        check_account(ca, accounts.get(ca), before)?;
        accounts.remove(ca);
        Ok(())
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        let stored = self.inside().ca_states.get(ca).cloned();
        Ok(stored.unwrap_or_default())
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let mut inside = self.inside();
        let stored = inside.ca_states.entry(ca.to_owned()).or_default();
        let revision = next_revision(format!("the state of CA {ca}"), expected, stored.1)?;
        *stored = (state.clone(), revision);
        Ok(revision)
    }
}

#[derive(Debug)]
struct MemoryLease {
    inside: Arc<Mutex<Inside>>,
    lineage: Lineage,
}

impl Lease for MemoryLease {}

impl Drop for MemoryLease {
    fn drop(&mut self) {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.leases.remove(&self.lineage);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_store_keeps_contract() {
        super::super::tests::check(MemoryStore::default).await;
    }
}
