//! One machine of the fleet: its clock, its disk, its proxy and its faults. The
//! real supervisor runs on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::ca::SharedCa;
use super::disk::{Disk, PairRead};
use super::kill::{KillPoint, KillSwitch};
use super::tally::FleetTally;
use super::{START, lock};
use crate::acme::ClockReading;
use crate::certificate::{Bundle, Facts, Secret};
use crate::deploy::output::OutputError;
use crate::deploy::verify::{ServedAt, Unreached, Unseen, Verifier};
use crate::deploy::{Delivery, DeployCause, Outlet, Target};
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::{Clock, Timestamp, VirtualClock, sleep_in_parts};

/// The faults of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeFaults {
    /// The disk is full.
    pub(super) disk_full: bool,
    /// The CA cannot be reached.
    pub(super) no_ca: bool,
    /// The shared store cannot be reached.
    pub(super) no_store: bool,
    /// The proxy accepts the signal and does nothing.
    pub(super) deaf: bool,
    /// The machine is suspended until then.
    pub(super) frozen: Option<Timestamp>,
    /// Milliseconds by which its clock is ahead.
    pub(super) ahead: i64,
}

/// One machine.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) world: Arc<VirtualClock>,
    pub(super) ca: SharedCa,
    pub(super) tally: Arc<FleetTally>,
    /// Notified when its process must end.
    pub(super) killed: Notify,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    faults: NodeFaults,
    disk: Disk,
    /// The loaded pairs of the proxy.
    served: BTreeMap<Lineage, PairRead>,
    /// The point at which the process is killed.
    kill_switch: Option<KillSwitch>,
    /// Whether the process has ended; it does nothing then.
    dead: bool,
    /// The last pair of its clock and the CA's clock, in this process.
    reading: Option<ClockReading>,
}

impl Node {
    pub(super) fn new(
        index: usize,
        world: Arc<VirtualClock>,
        ca: SharedCa,
        tally: Arc<FleetTally>,
    ) -> Self {
        tally.add_machine(index, world.now());
        Self {
            index,
            world,
            ca,
            tally,
            killed: Notify::new(),
            inner: Mutex::default(),
        }
    }

    pub(super) fn faults(&self) -> NodeFaults {
        self.inner().faults
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut NodeFaults)) {
        change(&mut self.inner().faults);
    }

    /// The certificate that the proxy serves for `lineage`, placeholders excluded.
    pub(super) fn serves(&self, lineage: &Lineage) -> Option<Fingerprint> {
        let inner = self.inner();
        let served = inner.served.get(lineage)?;
        let leaf = || served.facts.fingerprint.clone();
        served.is_real().then(leaf)
    }

    /// The shortest remaining lifetime of the served certificates, in thousandths.
    pub(super) fn least_left(&self, now: Timestamp) -> u64 {
        let inner = self.inner();
        let real = inner.served.values().filter(|served| served.is_real());
        let left = real.map(|served| {
            let life = served.facts.lifetime().as_secs().max(1);
            served.facts.not_after.since(now).as_secs() * 1000 / life
        });
        left.min().unwrap_or(1000)
    }

    /// Removes the machine with all its data.
    pub(super) fn retire(&self) {
        self.tally.remove_machine(self.index, self.world.now());
        let mut inner = self.inner();
        *inner = Inner {
            faults: inner.faults,
            dead: true,
            ..Inner::default()
        };
    }

    /// Starts its process.
    pub(super) fn begin(&self) {
        let mut inner = self.inner();
        (inner.dead, inner.kill_switch, inner.reading) = (false, None, None);
        inner.disk.staging.clear();
    }

    /// Ends its process; pending steps are not done.
    pub(super) fn end(&self) {
        self.inner().dead = true;
    }

    /// Kills the process at a given point.
    pub(super) fn arm(&self, kill_switch: KillSwitch) {
        self.inner().kill_switch = Some(kill_switch);
    }

    /// Whether the process has ended, at this point or before.
    fn ends_at(&self, moment: KillPoint) -> bool {
        let mut inner = self.inner();
        let kill_switch = inner.kill_switch.as_mut();
        let fires = kill_switch.is_some_and(|kill_switch| kill_switch.fires(moment));
        if fires && !inner.dead {
            inner.dead = true;
            self.killed.notify_one();
        }
        inner.dead
    }

    /// Passes a point: never returns when the process is killed there, and waits
    /// while its machine is suspended.
    pub(super) async fn pass(&self, moment: KillPoint) {
        if self.ends_at(moment) {
            std::future::pending::<()>().await;
        }
        self.wait_while_frozen().await;
    }

    /// Sleeps by the world's clock, and longer while the machine is suspended.
    pub(super) async fn sleep_until(&self, instant: Timestamp) {
        self.world.sleep_until(instant).await;
        self.wait_while_frozen().await;
    }

    async fn wait_while_frozen(&self) {
        while let Some(until) = self.faults().frozen
            && until > self.world.now()
        {
            self.world.sleep_until(until).await;
        }
    }

    /// Notes the time of a CA's reply.
    pub(super) fn observe_ca_time(&self) {
        let theirs = Timestamp::from_seconds(self.world.now().seconds());
        let ours = self.now();
        self.inner().reading = Some(ClockReading { ours, theirs });
    }

    pub(super) fn clocks(&self) -> Option<ClockReading> {
        let now = self.now();
        ClockReading::usable(&mut self.inner().reading, now)
    }

    /// Restarts the proxy, which loads the pairs on the disk.
    pub(super) fn restart_proxy(&self) {
        let names: Vec<_> = self.inner().disk.live.keys().cloned().collect();
        for lineage in names {
            self.load(&lineage);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn load(&self, lineage: &Lineage) {
        let mut inner = self.inner();
        let Some(found) = inner.disk.read(lineage) else {
            return;
        };
        let before = inner.served.insert(lineage.clone(), found.clone());
        drop(inner);
        let same = |before: PairRead| {
            before.facts.fingerprint == found.facts.fingerprint && before.key_pem == found.key_pem
        };
        if before.is_some_and(same) {
            return;
        }
        let (now, place) = (self.world.now(), (self.index, lineage.clone()));
        if !found.is_real() {
            self.tally.loaded_placeholder(place, now);
            return;
        }
        let (leaf, names) = (&found.facts.fingerprint, &found.facts.identifiers);
        let matches = self.ca.lock().is_pair(leaf, &found.key_pem)
            && names.iter().map(Lineage::of).eq([lineage.clone()]);
        let until = found.facts.not_after;
        self.tally.loaded(place.clone(), matches, until, now);
        if self.ca.lock().is_the_newest(names, leaf, now) {
            self.tally.well(&place, now);
        }
    }

    fn write(&self, write: impl FnOnce(&mut Disk)) -> Result<(), OutputError> {
        if self.ends_at(KillPoint::Publish) || self.faults().disk_full {
            return Err(full("write"));
        }
        write(&mut self.inner().disk);
        Ok(())
    }

    fn publish_files(
        &self,
        lineage: &Lineage,
        generation: Generation,
        facts: Facts,
        key_pem: Secret,
    ) -> Result<(), OutputError> {
        self.write(|disk| disk.staged(lineage).key = Some(key_pem))?;
        self.write(|disk| disk.staged(lineage).chain = Some((generation, facts)))?;
        if self.ends_at(KillPoint::Publish) {
            return Err(full("rename"));
        }
        self.inner().disk.rename(lineage);
        Ok(())
    }
}

fn full(operation: &'static str) -> OutputError {
    OutputError::Io {
        operation,
        path: "/certs".into(),
        source: std::io::ErrorKind::StorageFull.into(),
    }
}

/// The node's clock: the world's, plus its error.
#[async_trait]
impl Clock for Node {
    fn now(&self) -> Timestamp {
        let (now, ahead) = (self.world.now(), self.faults().ahead);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    fn monotonic(&self) -> Option<Duration> {
        Some(self.world.now().since(START))
    }

    async fn sleep(&self, length: Duration) {
        let pause = |part| self.sleep_until(self.world.now() + part);
        sleep_in_parts(length, || self.now(), pause).await;
    }
}

/// Its time since the start of the simulation, which no wrong clock changes.
pub(super) struct Uptime(pub(super) Arc<Node>);

#[async_trait]
impl Clock for Uptime {
    fn now(&self) -> Timestamp {
        self.0.world.now()
    }

    fn monotonic(&self) -> Option<Duration> {
        self.0.monotonic()
    }

    async fn sleep(&self, length: Duration) {
        self.0.sleep_until(self.now() + length).await;
    }
}

/// The node's disk, as the proxy reads it.
impl Outlet for Node {
    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        if self.is_live(lineage, generation, bundle) {
            return Ok(());
        }
        let (facts, key_pem) = (bundle.facts().clone(), bundle.key_pem().clone());
        self.publish_files(lineage, generation, facts, key_pem)
    }

    fn live(&self, lineage: &Lineage) -> Result<Option<Generation>, OutputError> {
        let live = self.inner().disk.read(lineage);
        Ok(live.map(|live| live.generation))
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        let live = self.inner().disk.read(lineage);
        live.is_some_and(|live| {
            let is_leaf = live.facts.fingerprint == bundle.facts().fingerprint;
            live.generation == generation && is_leaf && live.key_pem == *bundle.key_pem()
        })
    }

    /// Generation 0, which never counts as a certificate.
    fn placeholder(
        &self,
        lineage: &Lineage,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
    ) -> Result<bool, OutputError> {
        if self.live(lineage)?.is_some() {
            return Ok(false);
        }
        let facts = Facts {
            identifiers: identifiers.clone(),
            not_before: now,
            not_after: now,
            fingerprint: Fingerprint::of(lineage.as_str().as_bytes()),
            renewal_id: None,
        };
        let no_key = Secret::new(String::new());
        self.publish_files(lineage, Generation(0), facts, no_key)?;
        Ok(true)
    }

    fn live_path(&self, lineage: &Lineage) -> PathBuf {
        PathBuf::from("/certs/live").join(lineage.as_str())
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// The proxy of the node, as the target of one certificate.
pub(super) struct NodeProxy(pub(super) Arc<Node>, pub(super) Lineage);

#[async_trait]
impl Target for NodeProxy {
    fn name(&self) -> String {
        "proxy".to_owned()
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployCause> {
        Ok(())
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployCause> {
        self.0.pass(KillPoint::Apply).await;
        if !self.0.faults().deaf {
            self.0.tally.reload();
            self.0.load(&self.1);
        }
        self.0.pass(KillPoint::Apply).await;
        Ok(())
    }
}

/// Verifies the certificates of the node's proxy.
#[async_trait]
impl Verifier for Node {
    async fn look(
        &self,
        place: &ServedAt,
        name: &Identifier,
        wanted: &Fingerprint,
    ) -> Result<Unreached, Unseen> {
        match self.inner().served.get(&Lineage::of(name)) {
            Some(served) if served.facts.fingerprint == *wanted => Ok(Unreached::new()),
            Some(_) => Err(format!("{place} serves another certificate").into()),
            None => Err(format!("{place} serves no certificate").into()),
        }
    }
}

#[cfg(test)]
mod tests;
