//! A node's view of the shared store: its deployments and verifications are its
//! own, on its own disk; all else is shared. A lease ends with its holder, and
//! expires when its holder is unreachable for a minute: a late save is refused if
//! another node was faster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::kill::KillPoint;
use super::node::Node;
use super::{MINUTE, lock};
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Revision};
use crate::store::memory::MemoryStore;
use crate::store::{Lease, Store, StoreError};
use crate::time::Clock;

/// The lease of a holder that is unreachable for this time expires.
const LEASE: std::time::Duration = MINUTE;

#[derive(Default)]
pub(super) struct SharedStore {
    memory: MemoryStore,
    leases: Mutex<Leases>,
}

#[derive(Default)]
struct Leases {
    /// The token and the node of each holder.
    holders: BTreeMap<Lineage, (u64, Arc<Node>)>,
    last_token: u64,
    /// Expired leases, and refused saves of their former holders.
    counts: (u64, u64),
}

impl SharedStore {
    pub(super) fn counts(&self) -> (u64, u64) {
        lock(&self.leases).counts
    }

    fn take(
        self: &Arc<Self>,
        lineage: &Lineage,
        node: &Arc<Node>,
    ) -> Result<NodeLease, StoreError> {
        let (mut leases, lineage) = (lock(&self.leases), lineage.clone());
        if let Some((_, holder)) = leases.holders.get(&lineage) {
            let unreachable = holder.faults().unreachable_since();
            let now = node.world.now();
            if unreachable.is_none_or(|since| now.since(since) < LEASE) {
                return Err(StoreError::Leased { lineage });
            }
            leases.counts.0 += 1;
        }
        leases.last_token += 1;
        let (shared, token) = (self.clone(), leases.last_token);
        leases
            .holders
            .insert(lineage.clone(), (token, node.clone()));
        Ok(NodeLease {
            shared,
            lineage,
            token,
        })
    }
}

struct NodeLease {
    shared: Arc<SharedStore>,
    lineage: Lineage,
    token: u64,
}

impl std::fmt::Debug for NodeLease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "lease {} of {}", self.token, self.lineage)
    }
}

impl Lease for NodeLease {}

impl Drop for NodeLease {
    fn drop(&mut self) {
        let mut leases = lock(&self.shared.leases);
        let own = |(token, _): &(u64, _)| *token == self.token;
        if leases.holders.get(&self.lineage).is_some_and(own) {
            leases.holders.remove(&self.lineage);
        }
    }
}

pub(super) struct NodeStore {
    shared: Arc<SharedStore>,
    node: Arc<Node>,
    /// Records of which only the deployments count.
    own: Mutex<BTreeMap<Lineage, Record>>,
}

impl NodeStore {
    pub(super) fn new(shared: Arc<SharedStore>, node: Arc<Node>) -> Self {
        let own = Mutex::default();
        Self { shared, node, own }
    }

    /// Reaches the store, or fails as the node's faults say; `moment` is around the
    /// write. It never returns for an ended process, and returns later for a suspended
    /// machine.
    async fn reach(&self, moment: KillPoint) -> Result<&MemoryStore, StoreError> {
        self.node.pass(moment).await;
        let (faults, writes) = (self.node.faults(), moment != KillPoint::Read);
        let kind = match faults.no_store {
            Some(_) => std::io::ErrorKind::HostUnreachable,
            None if faults.disk_full && writes => std::io::ErrorKind::StorageFull,
            None => return Ok(&self.shared.memory),
        };
        Err(StoreError::Io {
            operation: if writes { "write" } else { "read" },
            subject: "the store".into(),
            source: kind.into(),
        })
    }
}

#[async_trait]
impl Store for NodeStore {
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError> {
        let mut stored = self.reach(KillPoint::Read).await?.load(lineage).await?;
        if let (Some((record, _)), Some(own)) = (&mut stored, lock(&self.own).get(lineage)) {
            record.set_deployments(own);
        }
        Ok(stored)
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let moment = bundle.map_or(KillPoint::Save, |_| KillPoint::Pair);
        let memory = self.reach(moment).await?;
        let shared = record.without_deployments();
        let saved = memory.save(&shared, expected, bundle).await;
        if let Err(StoreError::Conflict { .. }) = saved {
            lock(&self.shared.leases).counts.1 += 1;
        }
        let saved = saved?;
        // The shared record is saved first, then this machine's own state.
        self.node.pass(moment).await;
        lock(&self.own).insert(record.lineage.clone(), record.clone());
        self.node.pass(moment).await;
        Ok(saved)
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        let memory = self.reach(KillPoint::Read).await?;
        memory.bundle(lineage, generation).await
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        self.shared.memory.options(lineage).await
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.save_options(lineage, json).await
    }

    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.delete(lineage, expected).await
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        self.reach(KillPoint::Read).await?.list().await
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        self.reach(KillPoint::Read).await?;
        Ok(Box::new(self.shared.take(lineage, &self.node)?))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        self.reach(KillPoint::Read).await?.account(ca).await
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.create_account(ca, credentials).await
    }

    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.save_account(ca, credentials, before).await
    }

    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.delete_account(ca, before).await
    }

    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError> {
        let memory = self.reach(KillPoint::Save).await?;
        memory.rename(from, to, expected).await
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        self.reach(KillPoint::Read).await?.ca_state(ca).await
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        let memory = self.reach(KillPoint::CaState).await?;
        let saved = memory.save_ca_state(ca, state, expected).await;
        self.node.pass(KillPoint::CaState).await;
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::super::ca::SharedCa;
    use super::super::script::Script;
    use super::super::tally::FleetTally;
    use super::super::{SECOND, START, SimulationPlan};
    use super::*;
    use crate::identifier::Identifier;
    use crate::time::VirtualClock;

    #[tokio::test]
    async fn lease_of_unreachable_node_expires_and_its_late_save_is_refused() {
        let plan = SimulationPlan {
            seed: 1,
            nodes: 2,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        let world = Arc::new(VirtualClock::new(START));
        let (ca, script) = (SharedCa::new(START).unwrap(), Script::new(&plan));
        let tally = Arc::new(FleetTally::new(Arc::new(script)));
        let shared = Arc::new(SharedStore::default());
        let store = |index| {
            let (world, ca, tally) = (world.clone(), ca.clone(), tally.clone());
            let node = Arc::new(Node::new(index, world, ca, tally));
            (node.clone(), NodeStore::new(shared.clone(), node))
        };
        let ((unreachable, one), (_, other)) = (store(0), store(1));
        let name = Identifier::parse("example.com").unwrap();
        let record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        let lineage = record.lineage.clone();

        let lease = one.lease(&lineage).await.unwrap();
        let cut = |since| unreachable.change(|faults| faults.no_store = since);
        cut(Some(START));
        assert!(one.load(&lineage).await.is_err());
        world.set(START + LEASE - SECOND);
        let taken = other.lease(&lineage).await;
        assert!(matches!(taken, Err(StoreError::Leased { .. })));
        world.set(START + LEASE);
        let _second = other.lease(&lineage).await.unwrap();
        other.save(&record, Revision(0), None).await.unwrap();
        cut(None);
        let late = one.save(&record, Revision(0), None).await;
        assert!(matches!(late, Err(StoreError::Conflict { .. })));
        // Dropping the expired lease does not release the new one.
        drop(lease);
        assert!(one.lease(&lineage).await.is_err());
        assert_eq!(shared.counts(), (1, 1));
    }
}
