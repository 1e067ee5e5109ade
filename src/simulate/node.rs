//! One machine of the fleet: its clock, its disk, its proxy, its way to the CA
//! and its view of the store. What runs on it is the real supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::authority::Shared;
use super::tally::Tally;
use crate::certificate::{Bundle, Facts, Fingerprint, Secret};
use crate::deploy::output::OutputError;
use crate::deploy::verify::{Place, Prover};
use crate::deploy::{DeployError, Outlet, Target};
use crate::identifier::{Identifier, Lineage};
use crate::record::Generation;
use crate::time::{Clock, Timestamp, VirtualClock};

const PROXY: &str = "proxy";
/// As the machine's own clock does it.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// What the scenarios do to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ailments {
    /// Nothing can be written.
    pub(super) disk_full: bool,
    /// Neither the CA nor the shared store can be reached.
    pub(super) cut_off: bool,
    /// The proxy accepts the signal and does nothing.
    pub(super) deaf: bool,
    /// Nothing moves until then.
    pub(super) frozen_until: Option<Timestamp>,
    /// Milliseconds that its clock is ahead.
    pub(super) ahead: i64,
}

/// One machine.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) world: Arc<VirtualClock>,
    pub(super) authority: Shared,
    tally: Arc<Tally>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    ailments: Ailments,
    /// What `live/NAME` leads to.
    disk: BTreeMap<Lineage, Published>,
    /// What the proxy has loaded.
    served: BTreeMap<Lineage, Published>,
}

#[derive(Clone)]
struct Published {
    generation: Generation,
    facts: Facts,
    key_pem: Secret,
}

impl Node {
    pub(super) fn new(
        index: usize,
        world: Arc<VirtualClock>,
        authority: Shared,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            index,
            world,
            authority,
            tally,
            inside: Mutex::default(),
        }
    }

    pub(super) fn ailments(&self) -> Ailments {
        self.inside().ailments
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Ailments)) {
        change(&mut self.inside().ailments);
    }

    /// What the proxy serves of `lineage`, if that is not a placeholder.
    pub(super) fn serves(&self, lineage: &Lineage) -> Option<(Generation, Timestamp)> {
        let inside = self.inside();
        let served = inside.served.get(lineage)?;
        let real = served.generation > Generation(0);
        real.then_some((served.generation, served.facts.not_after))
    }

    /// The machine is taken away, and all that was on it.
    pub(super) fn retire(&self) {
        let now = self.world.now();
        let mut inside = self.inside();
        for lineage in inside.served.keys() {
            self.tally.withdrawn(&(self.index, lineage.clone()), now);
        }
        *inside = Inside::default();
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, lineage: &Lineage) {
        let mut inside = self.inside();
        let Some(found) = inside.disk.get(lineage).cloned() else {
            return;
        };
        let before = inside.served.insert(lineage.clone(), found.clone());
        self.tally.reload();
        if before.is_some_and(|before| before.facts.fingerprint == found.facts.fingerprint) {
            return;
        }
        // A placeholder is no certificate that clients were promised.
        if found.generation == Generation(0) {
            return;
        }
        let leaf = &found.facts.fingerprint;
        let matches = self.authority.is_pair(leaf, &found.key_pem)
            && found
                .facts
                .identifiers
                .iter()
                .map(Lineage::of)
                .eq([lineage.clone()]);
        let (until, now) = (found.facts.not_after, self.world.now());
        let place = (self.index, lineage.clone());
        self.tally.loaded(place, matches, until, now);
    }
}

/// The node's clock: the world's, give or take what a scenario does to it.
pub(super) struct NodeClock(pub(super) Arc<Node>);

#[async_trait]
impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        let (now, ahead) = (self.0.world.now(), self.0.ailments().ahead);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    async fn sleep_until(&self, instant: Timestamp) {
        loop {
            let left = instant.since(self.now());
            if left.is_zero() {
                break;
            }
            let until = self.0.world.now() + left.min(LONGEST_SLEEP);
            self.0.world.sleep_until(until).await;
            self.thaw().await;
        }
    }
}

impl NodeClock {
    async fn thaw(&self) {
        while let Some(until) = self.0.ailments().frozen_until
            && until > self.0.world.now()
        {
            self.0.world.sleep_until(until).await;
        }
    }
}

/// The node's disk, as the proxy reads it.
pub(super) struct NodeDisk(pub(super) Arc<Node>);

impl NodeDisk {
    fn full(&self, operation: &'static str) -> Result<(), OutputError> {
        if !self.0.ailments().disk_full {
            return Ok(());
        }
        Err(OutputError::Io {
            operation,
            path: "/certs".into(),
            source: std::io::ErrorKind::StorageFull.into(),
        })
    }
}

impl Outlet for NodeDisk {
    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        self.full("write")?;
        let published = Published {
            generation,
            facts: bundle.facts().clone(),
            key_pem: bundle.key_pem().clone(),
        };
        self.0.inside().disk.insert(lineage.clone(), published);
        Ok(())
    }

    fn live(&self, lineage: &Lineage) -> Option<Generation> {
        let inside = self.0.inside();
        inside.disk.get(lineage).map(|live| live.generation)
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        let inside = self.0.inside();
        inside.disk.get(lineage).is_some_and(|live| {
            live.generation == generation && live.facts.fingerprint == bundle.facts().fingerprint
        })
    }

    /// It is there, and never counts as a certificate.
    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError> {
        if self.live(lineage).is_some() {
            return Ok(false);
        }
        self.full("write")?;
        let published = Published {
            generation: Generation(0),
            facts: Facts {
                identifiers: identifiers.clone(),
                not_before: now,
                not_after: now,
                fingerprint: Fingerprint::of(lineage.as_str().as_bytes()),
                renewal_id: None,
            },
            key_pem: Secret::new(String::new()),
        };
        self.0.inside().disk.insert(lineage.clone(), published);
        Ok(true)
    }

    fn live_path(&self, lineage: &Lineage) -> PathBuf {
        PathBuf::from("/certs/live").join(lineage.as_str())
    }
}

/// The proxy of the node, told of one certificate.
pub(super) struct NodeProxy(pub(super) Arc<Node>, pub(super) Lineage);

#[async_trait]
impl Target for NodeProxy {
    fn name(&self) -> &str {
        PROXY
    }

    async fn check(&self) -> Result<(), DeployError> {
        Ok(())
    }

    async fn apply(&self) -> Result<(), DeployError> {
        if !self.0.ailments().deaf {
            self.0.load(&self.1);
        }
        Ok(())
    }
}

/// Looks at the node's proxy.
pub(super) struct NodeProver(pub(super) Arc<Node>);

#[async_trait]
impl Prover for NodeProver {
    async fn look(
        &self,
        place: &Place,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<(), String> {
        let inside = self.0.inside();
        let lineage = Lineage::of(name);
        match inside.served.get(&lineage) {
            Some(served) if served.facts.fingerprint == *wanted => Ok(()),
            Some(_) => Err(format!("{place} serves another certificate")),
            None => Err(format!("{place} serves nothing")),
        }
    }
}
