//! A node's view of the shared store: its deployments and verifications are its
//! own, on its own disk; all else is shared. A lease ends with its holder, and
//! expires when its holder is unreachable for a minute: a late save is refused if
//! another node was faster.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::kill::KillPoint;
use super::node::Node;
use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::lineage::Lineage;
use crate::record::{Failures, Generation, Record, Revision, RolledBack, Served};
use crate::store::memory::MemoryStore;
use crate::store::{Lease, Store, StoreError};
use crate::time::Clock;

/// The state of one certificate on one node.
#[derive(Clone, Debug, Default)]
struct Own {
    deployed: BTreeMap<String, Generation>,
    served: BTreeMap<String, Served>,
    deployment_failures: Failures,
    rollback_to: Option<Generation>,
    rolled_back: Option<RolledBack>,
}

/// The lease of a holder that is unreachable for this time expires.
const LEASE: Duration = Duration::from_secs(60);

/// The store that the fleet shares.
#[derive(Default)]
pub(super) struct SharedStore {
    memory: MemoryStore,
    leases: Mutex<BTreeMap<Lineage, Holder>>,
    last_token: Mutex<u64>,
    /// Expired leases, and refused saves of their former holders.
    counts: Mutex<(u64, u64)>,
}

struct Holder {
    token: u64,
    node: Arc<Node>,
}

impl SharedStore {
    /// The expired leases and the refused late saves.
    pub(super) fn counts(&self) -> (u64, u64) {
        *guard(&self.counts)
    }

    fn take(
        self: &Arc<Self>,
        lineage: &Lineage,
        node: &Arc<Node>,
    ) -> Result<NodeLease, StoreError> {
        let mut leases = guard(&self.leases);
        if let Some(holder) = leases.get(lineage) {
            let silent = holder.node.faults().unreachable_since();
            let now = node.world.now();
            if silent.is_none_or(|since| now.since(since) < LEASE) {
                return Err(StoreError::Leased {
                    lineage: lineage.clone(),
                });
            }
            guard(&self.counts).0 += 1;
        }
        let mut last = guard(&self.last_token);
        *last += 1;
        let (token, node) = (*last, node.clone());
        leases.insert(lineage.clone(), Holder { token, node });
        Ok(NodeLease {
            shared: self.clone(),
            lineage: lineage.clone(),
            token,
        })
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Lease for NodeLease {
    fn token(&self) -> u64 {
        self.token
    }
}

impl Drop for NodeLease {
    fn drop(&mut self) {
        let mut leases = guard(&self.shared.leases);
        if leases
            .get(&self.lineage)
            .is_some_and(|holder| holder.token == self.token)
        {
            leases.remove(&self.lineage);
        }
    }
}

/// The store as one node sees it.
pub(super) struct NodeStore {
    shared: Arc<SharedStore>,
    node: Arc<Node>,
    own: Mutex<BTreeMap<Lineage, Own>>,
}

impl NodeStore {
    pub(super) fn new(shared: Arc<SharedStore>, node: Arc<Node>) -> Self {
        Self {
            shared,
            node,
            own: Mutex::default(),
        }
    }

    fn own(&self) -> MutexGuard<'_, BTreeMap<Lineage, Own>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaches the store, or fails as the node's faults say. It never returns for
    /// an ended process, and returns later for a suspended machine.
    async fn reach(
        &self,
        operation: &'static str,
        writes: bool,
        moment: KillPoint,
    ) -> Result<(), StoreError> {
        self.node.pass(moment).await;
        let faults = self.node.faults();
        let kind = match (faults.no_store, faults.disk_full && writes) {
            (Some(_), _) => std::io::ErrorKind::HostUnreachable,
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
        self.reach("read", false, KillPoint::Read).await?;
        let Some((mut record, revision)) = self.shared.memory.load(lineage).await? else {
            return Ok(None);
        };
        let own = self.own().get(lineage).cloned().unwrap_or_default();
        record.deployed = own.deployed;
        record.served = own.served;
        record.deployment_failures = own.deployment_failures;
        record.rollback_to = own.rollback_to;
        record.rolled_back = own.rolled_back;
        Ok(Some((record, revision)))
    }

    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError> {
        let moment = bundle.map_or(KillPoint::Save, |_| KillPoint::Pair);
        self.reach("write", true, moment).await?;
        let mut shared = record.clone();
        let own = Own {
            deployed: std::mem::take(&mut shared.deployed),
            served: std::mem::take(&mut shared.served),
            deployment_failures: std::mem::take(&mut shared.deployment_failures),
            rollback_to: shared.rollback_to.take(),
            rolled_back: shared.rolled_back.take(),
        };
        let saved = self.shared.memory.save(&shared, expected, bundle).await;
        if let Err(StoreError::Conflict { .. }) = saved {
            guard(&self.shared.counts).1 += 1;
        }
        let saved = saved?;
        // The shared record is saved first, then this machine's own state.
        self.node.pass(moment).await;
        self.own().insert(record.lineage.clone(), own);
        self.node.pass(moment).await;
        Ok(saved)
    }

    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError> {
        self.reach("read", false, KillPoint::Read).await?;
        self.shared.memory.bundle(lineage, generation).await
    }

    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError> {
        self.shared.memory.options(lineage).await
    }

    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError> {
        self.reach("write", true, KillPoint::Save).await?;
        self.shared.memory.save_options(lineage, json).await
    }

    async fn list(&self) -> Result<Vec<Lineage>, StoreError> {
        self.reach("read", false, KillPoint::Read).await?;
        self.shared.memory.list().await
    }

    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError> {
        self.reach("lease", false, KillPoint::Read).await?;
        Ok(Box::new(self.shared.take(lineage, &self.node)?))
    }

    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError> {
        self.reach("read", false, KillPoint::Read).await?;
        self.shared.memory.account(ca).await
    }

    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError> {
        self.reach("write", true, KillPoint::Save).await?;
        self.shared.memory.create_account(ca, credentials).await
    }

    async fn save_account(&self, ca: &str, credentials: &Secret) -> Result<(), StoreError> {
        self.reach("write", true, KillPoint::Save).await?;
        self.shared.memory.save_account(ca, credentials).await
    }

    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError> {
        self.reach("read", false, KillPoint::Read).await?;
        self.shared.memory.ca_state(ca).await
    }

    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError> {
        self.reach("write", true, KillPoint::Ledger).await?;
        let memory = &self.shared.memory;
        let saved = memory.save_ca_state(ca, state, expected).await;
        self.node.pass(KillPoint::Ledger).await;
        saved
    }
}

#[cfg(test)]
mod tests {
    use super::super::ca::SimulatedCa;
    use super::super::script::Script;
    use super::super::tally::Tally;
    use super::super::{Plan, START};
    use super::*;
    use crate::identifier::Identifier;
    use crate::time::VirtualClock;

    #[tokio::test]
    async fn lease_of_unreachable_node_expires_and_its_late_save_is_refused() {
        let plan = Plan {
            seed: 1,
            nodes: 2,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        let world = Arc::new(VirtualClock::new(START));
        let (ca, script) = (
            Arc::new(SimulatedCa::new(START).unwrap()),
            Script::new(&plan),
        );
        let tally = Arc::new(Tally::new(Arc::new(script)));
        let shared = Arc::new(SharedStore::default());
        let store = |index| {
            let (world, ca, tally) = (world.clone(), ca.clone(), tally.clone());
            let node = Arc::new(Node::new(index, world, ca, tally));
            (node.clone(), NodeStore::new(shared.clone(), node))
        };
        let ((silent, one), (_, other)) = (store(0), store(1));
        let name = Identifier::parse("example.com").unwrap();
        let record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        let lineage = record.lineage.clone();

        let lease = one.lease(&lineage).await.unwrap();
        let cut = |since| silent.change(|faults| faults.no_store = since);
        cut(Some(START));
        assert!(one.load(&lineage).await.is_err());
        world.set(START + LEASE - Duration::from_secs(1));
        let taken = other.lease(&lineage).await;
        assert!(matches!(taken, Err(StoreError::Leased { .. })));
        world.set(START + LEASE);
        let second = other.lease(&lineage).await.unwrap();
        assert!(second.token() > lease.token());
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
