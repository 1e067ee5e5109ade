//! The copy of the shared store that a machine has on its own disk: in memory, lost with the
//! machine. Its writes fail on a full disk, and its process may be killed around each.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::kill::KillPoint;
use super::node::Node;
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Revision};
use crate::store::memory::MemoryStore;
use crate::store::{Lease, OwnStore, Store, StoreError};

pub(super) struct OwnCopy {
    node: Arc<Node>,
    memory: MemoryStore,
}

impl OwnCopy {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let memory = MemoryStore::default();
        Self { node, memory }
    }

    fn writable(&self) -> Result<&MemoryStore, StoreError> {
        match self.node.faults().disk_full {
            true => Err(StoreError::Io {
                operation: "write",
                subject: "the store".into(),
                source: std::io::ErrorKind::StorageFull.into(),
            }),
            false => Ok(&self.memory),
        }
    }

    /// The same, unless the process ends before.
    async fn before(&self, moment: KillPoint) -> Result<&MemoryStore, StoreError> {
        self.node.pass(moment).await;
        self.writable()
    }
}

impl fmt::Debug for OwnCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy of node {}", self.node.index)
    }
}

fn moment<P>(pair: Option<&P>) -> KillPoint {
    pair.map_or(KillPoint::Save, |_| KillPoint::Pair)
}

#[async_trait]
impl OwnStore for OwnCopy {
    async fn save_pair(
        &self,
        record: &Record,
        expected: Revision,
        pair: Option<(&Secret, &str)>,
    ) -> Result<Revision, StoreError> {
        let moment = moment(pair.as_ref());
        let memory = self.before(moment).await?;
        let saved = memory.save_pair(record, expected, pair).await;
        self.node.pass(moment).await;
        saved
    }

    fn keep(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.writable()?.keep(name, content)
    }

    fn append(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        self.writable()?.append(name, content)
    }

    fn kept(&self, name: &str) -> Option<String> {
        self.memory.kept(name)
    }

    fn accounts(&self) -> Result<Vec<String>, StoreError> {
        self.memory.accounts()
    }
}

#[async_trait]
impl Store for OwnCopy {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        self.node.pass(KillPoint::Read).await;
        self.memory.load(lineage).await
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let moment = moment(bundle);
        let memory = self.before(moment).await?;
        let saved = memory.save(record, expected, bundle).await;
        self.node.pass(moment).await;
        saved
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        self.memory.bundle(lineage, generation).await
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        self.memory.options(lineage).await
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        self.writable()?.save_options(lineage, json).await
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        self.writable()?.delete(lineage, expected).await
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        self.memory.list().await
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        self.memory.lease(lineage).await
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        self.memory.account(ca).await
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        self.writable()?.create_account(ca, credentials).await
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        let memory = self.writable()?;
        memory.save_account(ca, credentials, before).await
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        self.writable()?.delete_account(ca, before).await
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        self.writable()?.rename(from, to, expected).await
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        self.memory.ca_state(ca).await
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let memory = self.writable()?;
        memory.save_ca_state(ca, state, expected).await
    }
}
