//! One machine of the fleet: its clock, its disk, its proxy, its way to the CA
//! and its view of the store. What runs on it is the real supervisor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::START;
use super::authority::Shared;
use super::disk::{Disk, File, Folder, Found};
use super::kill::{Fuse, Moment};
use super::tally::Tally;
use crate::acme::Dated;
use crate::certificate::{Bundle, Facts, Fingerprint, Secret};
use crate::deploy::output::OutputError;
use crate::deploy::verify::{ServedAt, Verifier};
use crate::deploy::{Delivery, DeployError, Outlet, Target};
use crate::identifier::{Identifier, Lineage};
use crate::record::Generation;
use crate::time::{Clock, Timestamp, VirtualClock, sleep_in_parts};

const PROXY: &str = "proxy";
/// What the scenarios do to a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ailments {
    /// Nothing can be written.
    pub(super) disk_full: bool,
    /// The CA cannot be reached.
    pub(super) no_ca: bool,
    /// The shared store cannot be reached, since then.
    pub(super) no_store: Option<Timestamp>,
    /// The proxy accepts the signal and does nothing.
    pub(super) deaf: bool,
    /// Nothing moves, from the one instant until the other.
    pub(super) frozen: Option<(Timestamp, Timestamp)>,
    /// Milliseconds that its clock is ahead.
    pub(super) ahead: i64,
}

impl Ailments {
    /// Since when nobody hears of it at the store.
    pub(super) fn silent_since(&self) -> Option<Timestamp> {
        let frozen = self.frozen.map(|(since, _)| since);
        [frozen, self.no_store].into_iter().flatten().min()
    }
}

/// One machine.
pub(super) struct Node {
    pub(super) index: usize,
    pub(super) world: Arc<VirtualClock>,
    pub(super) authority: Shared,
    pub(super) tally: Arc<Tally>,
    /// Its process is to be ended.
    pub(super) killed: Notify,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    ailments: Ailments,
    disk: Disk,
    /// What the proxy has loaded.
    served: BTreeMap<Lineage, Found>,
    /// When the process ends by itself.
    fuse: Option<Fuse>,
    /// Whether it has ended: it does nothing any more.
    dead: bool,
    /// What its clock and the CA's have shown at once, in this process.
    dated: Option<Dated>,
}

impl Node {
    pub(super) fn new(
        index: usize,
        world: Arc<VirtualClock>,
        authority: Shared,
        tally: Arc<Tally>,
    ) -> Self {
        tally.appears(index, world.now());
        Self {
            index,
            world,
            authority,
            tally,
            killed: Notify::new(),
            inside: Mutex::default(),
        }
    }

    pub(super) fn ailments(&self) -> Ailments {
        self.inside().ailments
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Ailments)) {
        change(&mut self.inside().ailments);
    }

    /// What its clock shows.
    pub(super) fn clock(&self) -> Timestamp {
        let (now, ahead) = (self.world.now(), self.ailments().ahead);
        let by = Duration::from_millis(ahead.unsigned_abs());
        if ahead < 0 { now - by } else { now + by }
    }

    /// What the proxy serves of `lineage`, if that is not a placeholder.
    pub(super) fn serves(&self, lineage: &Lineage) -> Option<Fingerprint> {
        let inside = self.inside();
        let served = inside.served.get(lineage)?;
        let real = served.generation > Generation(0);
        real.then(|| served.facts.fingerprint.clone())
    }

    /// The least part of a life that is left of anything served, in thousandths.
    pub(super) fn least_left(&self, now: Timestamp) -> u64 {
        let inside = self.inside();
        let real = inside.served.values();
        let real = real.filter(|served| served.generation > Generation(0));
        let left = real.map(|served| {
            let life = served.facts.lifetime().as_secs().max(1);
            served.facts.not_after.since(now).as_secs() * 1000 / life
        });
        left.min().unwrap_or(1000)
    }

    /// The machine is taken away, and all that was on it.
    pub(super) fn retire(&self) {
        self.tally.vanishes(self.index, self.world.now());
        let mut inside = self.inside();
        *inside = Inside {
            ailments: inside.ailments,
            dead: true,
            ..Inside::default()
        };
    }

    /// Its process begins.
    pub(super) fn begin(&self) {
        let mut inside = self.inside();
        (inside.dead, inside.fuse, inside.dated) = (false, None, None);
        inside.disk.sweep();
    }

    /// Its process has ended, and will not have done what it was about to.
    pub(super) fn end(&self) {
        self.inside().dead = true;
    }

    /// Ends the process at a drawn moment.
    pub(super) fn light(&self, fuse: Fuse) {
        self.inside().fuse = Some(fuse);
    }

    /// Whether the process has ended; it ends here when it is to.
    fn ends_at(&self, moment: Moment) -> bool {
        let mut inside = self.inside();
        let burnt = inside.fuse.as_mut().is_some_and(|fuse| fuse.burns(moment));
        if burnt && !inside.dead {
            inside.dead = true;
            self.killed.notify_one();
        }
        inside.dead
    }

    /// Lets the process end here when it is to, and stand still while its machine
    /// does: then nothing more of it is seen.
    pub(super) async fn lives_through(&self, moment: Moment) {
        if self.ends_at(moment) {
            std::future::pending::<()>().await;
        }
        self.thaw().await;
    }

    /// Sleeps by the world's clock, and on while the machine stands still.
    pub(super) async fn sleep_until(&self, instant: Timestamp) {
        self.world.sleep_until(instant).await;
        self.thaw().await;
    }

    async fn thaw(&self) {
        while let Some((_, until)) = self.ailments().frozen
            && until > self.world.now()
        {
            self.world.sleep_until(until).await;
        }
    }

    /// The CA's reply has told the time.
    pub(super) fn hears_the_time(&self) {
        let theirs = Timestamp::from_seconds(self.world.now().seconds());
        let ours = self.clock();
        self.inside().dated = Some(Dated { ours, theirs });
    }

    pub(super) fn dated(&self) -> Option<Dated> {
        let now = self.clock();
        Dated::still(&mut self.inside().dated, now)
    }

    /// The proxy begins anew, with what lies on the disk.
    pub(super) fn proxy_begins(&self) {
        let names = self.inside().disk.names();
        for lineage in names {
            self.load(&lineage);
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load(&self, lineage: &Lineage) {
        let mut inside = self.inside();
        let Some(found) = inside.disk.read(lineage) else {
            return;
        };
        let before = inside.served.insert(lineage.clone(), found.clone());
        drop(inside);
        let same = |before: Found| {
            before.facts.fingerprint == found.facts.fingerprint && before.key_pem == found.key_pem
        };
        if before.is_some_and(same) {
            return;
        }
        let (now, place) = (self.world.now(), (self.index, lineage.clone()));
        if found.generation == Generation(0) {
            self.tally.bared(place, now);
            return;
        }
        let (leaf, names) = (&found.facts.fingerprint, &found.facts.identifiers);
        let matches = self.authority.is_pair(leaf, &found.key_pem)
            && names.iter().map(Lineage::of).eq([lineage.clone()]);
        let until = found.facts.not_after;
        self.tally.loaded(place.clone(), matches, until, now);
        if self.authority.is_the_best(names, leaf, now) {
            self.tally.well(&place, now);
        }
    }

    fn write(&self, folder: Folder, lineage: &Lineage, file: File) -> Result<(), OutputError> {
        if self.ends_at(Moment::Publish) || self.ailments().disk_full {
            return Err(full("write"));
        }
        self.inside().disk.write(folder, lineage, file);
        Ok(())
    }

    fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        facts: Facts,
        key_pem: Secret,
    ) -> Result<(), OutputError> {
        self.write(Folder::Staging, lineage, File::Key(key_pem))?;
        let chain = File::Chain(generation, facts);
        self.write(Folder::Staging, lineage, chain)?;
        if self.ends_at(Moment::Publish) {
            return Err(full("rename"));
        }
        self.inside().disk.rename(lineage);
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

/// The node's clock: the world's, give or take what a scenario does to it.
pub(super) struct NodeClock(pub(super) Arc<Node>);

#[async_trait]
impl Clock for NodeClock {
    fn now(&self) -> Timestamp {
        self.0.clock()
    }

    fn steady(&self) -> Option<Duration> {
        Some(self.0.world.now().since(START))
    }

    async fn sleep(&self, length: Duration) {
        let pause = |part| self.0.sleep_until(self.0.world.now() + part);
        sleep_in_parts(length, || self.now(), pause).await;
    }
}

/// The node's disk, as the proxy reads it.
pub(super) struct NodeDisk(pub(super) Arc<Node>);

impl Outlet for NodeDisk {
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
        self.0.publish(lineage, generation, facts, key_pem)
    }

    fn live(&self, lineage: &Lineage) -> Option<Generation> {
        let inside = self.0.inside();
        inside.disk.live(lineage).map(|(live, ..)| live)
    }

    fn is_live(&self, lineage: &Lineage, generation: Generation, bundle: &Bundle) -> bool {
        let inside = self.0.inside();
        let live = inside.disk.live(lineage);
        live.is_some_and(|(live, facts, key_pem)| {
            let leaf = &bundle.facts().fingerprint;
            live == generation && facts.fingerprint == *leaf && key_pem == bundle.key_pem()
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
        let facts = Facts {
            identifiers: identifiers.clone(),
            not_before: now,
            not_after: now,
            fingerprint: Fingerprint::of(lineage.as_str().as_bytes()),
            renewal_id: None,
        };
        let no_key = Secret::new(String::new());
        self.0.publish(lineage, Generation(0), facts, no_key)?;
        Ok(true)
    }

    fn live_path(&self, lineage: &Lineage) -> PathBuf {
        PathBuf::from("/certs/live").join(lineage.as_str())
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// The proxy of the node, told of one certificate.
pub(super) struct NodeProxy(pub(super) Arc<Node>, pub(super) Lineage);

#[async_trait]
impl Target for NodeProxy {
    fn name(&self) -> &str {
        PROXY
    }

    async fn check(&self, _: &Delivery) -> Result<(), DeployError> {
        Ok(())
    }

    async fn apply(&self, _: &Delivery) -> Result<(), DeployError> {
        self.0.lives_through(Moment::Apply).await;
        if !self.0.ailments().deaf {
            self.0.tally.reload();
            self.0.load(&self.1);
        }
        self.0.lives_through(Moment::Apply).await;
        Ok(())
    }
}

/// Looks at the node's proxy.
pub(super) struct NodeProver(pub(super) Arc<Node>);

#[async_trait]
impl Verifier for NodeProver {
    async fn look(
        &self,
        place: &ServedAt,
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

#[cfg(test)]
mod tests;
