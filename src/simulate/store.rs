//! A node's view of the shared store: what it has handed over and seen served
//! is its own, kept on its own disk; all else is the fleet's.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::node::Node;
use crate::authority::Authority;
use crate::certificate::{Bundle, Secret};
use crate::identifier::Lineage;
use crate::record::{Failures, Generation, Record, Revision, Served};
use crate::store::memory::MemoryStore;
use crate::store::{Lease, Store, StoreError};

/// What one node has of one certificate.
#[derive(Clone, Debug, Default)]
struct Own {
    deployed: BTreeMap<String, Generation>,
    served: BTreeMap<String, Served>,
    handover: Failures,
}

/// The store as one node sees it.
pub(super) struct NodeStore {
    shared: Arc<MemoryStore>,
    node: Arc<Node>,
    own: Mutex<BTreeMap<Lineage, Own>>,
}

impl NodeStore {
    pub(super) fn new(shared: Arc<MemoryStore>, node: Arc<Node>) -> Self {
        Self {
            shared,
            node,
            own: Mutex::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<Lineage, Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reach(&self, operation: &'static str, writes: bool) -> Result<(), StoreError> {
        let ailments = self.node.ailments();
        let kind = match (ailments.cut_off, ailments.disk_full && writes) {
            (true, _) => std::io::ErrorKind::HostUnreachable,
            (_, true) => std::io::ErrorKind::StorageFull,
            _ => return Ok(()),
        };
        Err(StoreError::Io {
            operation,
            subject: "the store".into(),
            source: kind.into(),
        })
    }
}

#[async_trait]
impl Store for NodeStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        self.reach("read", false)?;
        let Some((mut record, revision)) = self.shared.load(lineage).await? else {
            return Ok(None);
        };
        let own = self.own().get(lineage).cloned().unwrap_or_default();
        record.deployed = own.deployed;
        record.served = own.served;
        record.handover = own.handover;
        Ok(Some((record, revision)))
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        self.reach("write", true)?;
        let mut shared = record.clone();
        let own = Own {
            deployed: std::mem::take(&mut shared.deployed),
            served: std::mem::take(&mut shared.served),
            handover: std::mem::take(&mut shared.handover),
        };
        let saved = self.shared.save(&shared, expected, bundle).await?;
        self.own().insert(record.lineage.clone(), own);
        Ok(saved)
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        self.reach("read", false)?;
        self.shared.bundle(lineage, generation).await
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        self.shared.options(lineage).await
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        self.reach("write", true)?;
        self.shared.save_options(lineage, json).await
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        self.reach("read", false)?;
        self.shared.list().await
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        self.reach("lease", false)?;
        self.shared.lease(lineage).await
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        self.reach("read", false)?;
        self.shared.account(ca).await
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        self.reach("write", true)?;
        self.shared.create_account(ca, credentials).await
    }

    async fn save_account(&self, ca: &str, credentials: &Secret) -> Result<(), StoreError> {
        self.reach("write", true)?;
        self.shared.save_account(ca, credentials).await
    }

    async fn authority(&self, ca: &str) -> Result<(Authority, Revision), StoreError> {
        self.reach("read", false)?;
        self.shared.authority(ca).await
    }

    async fn save_authority(
        &self,
        ca: &str,
        authority: &Authority,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        self.reach("write", true)?;
        self.shared.save_authority(ca, authority, expected).await
    }
}
