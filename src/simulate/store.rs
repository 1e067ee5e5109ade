//! The store that the machines share: documents in memory, and the way of each machine to
//! them. Calls fail as the scenario of their kind of store says, or as the faults of the
//! machine do. What the machines make of it is the program's own.

mod model;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};

use self::model::StoreModel;
use super::kill::KillPoint;
use super::node::Node;
use super::scenario::Scenario;
use super::{SECOND, lock};
use crate::random::{Random, SeededRandom};
use crate::store::documents::memory::MemoryDocuments;
use crate::store::documents::{Document, Documents, DocumentsError, Notice, Version};
use crate::time::{Clock, Timestamp, VirtualClock};

/// A late write comes within this time.
const LATE: Duration = SECOND.saturating_mul(30);
/// Milliseconds of a usual call, and of a slow one: a client waits for ten seconds.
const USUAL: u64 = 20;
const SLOW: u64 = 9000;

type Backup = BTreeMap<String, (u64, Vec<u8>)>;

pub(super) struct StoreServer {
    clock: Arc<VirtualClock>,
    memory: MemoryDocuments,
    /// Whether it tells of changes.
    tells: bool,
    changes: Notify,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The scenario, and its begin.
    fails: Option<(Scenario, Timestamp)>,
    /// The state of each document before its last change.
    before: BTreeMap<String, (Timestamp, Option<Document>)>,
    /// The machine that wrote each document last.
    writers: BTreeMap<String, usize>,
    /// Leases taken from another machine, and refused saves.
    counts: (u64, u64),
}

impl StoreServer {
    pub(super) fn new(clock: Arc<VirtualClock>, chosen: &[Scenario]) -> Self {
        // A directory and S3 tell of nothing.
        let telling = [Scenario::StoreEtcd, Scenario::StorePostgres];
        Self {
            clock,
            memory: MemoryDocuments::default(),
            tells: telling.iter().any(|one| chosen.contains(one)),
            changes: Notify::new(),
            inner: Mutex::default(),
        }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        lock(&self.inner).counts
    }

    /// Begins the faults of a scenario, or ends them.
    pub(super) fn fail(&self, scenario: Option<Scenario>) {
        let now = self.clock.now();
        lock(&self.inner).fails = scenario.map(|scenario| (scenario, now));
    }

    pub(super) fn is_failing(&self) -> bool {
        lock(&self.inner).fails.is_some()
    }

    pub(super) fn backup(&self) -> Backup {
        self.memory.backup()
    }

    pub(super) fn restore(&self, backup: Backup) {
        self.memory.restore(backup);
        lock(&self.inner).before.clear();
        self.changes.notify_waiters();
    }

    /// The faults now, and the time since their begin.
    fn model(&self) -> (StoreModel, Duration) {
        let fails = lock(&self.inner).fails;
        fails.map_or_else(Default::default, |(scenario, since)| {
            (StoreModel::of(scenario), self.clock.now().since(since))
        })
    }

    async fn change(&self, write: &Write) -> Result<Version, DocumentsError> {
        let Write { key, content, .. } = write;
        let before = self.memory.read(key).await?;
        let expected = write.expected.as_ref();
        let changed = match (content, expected) {
            (Some(content), expected) => self.memory.write(key, content, expected).await,
            (None, Some(expected)) => {
                let removed = self.memory.remove(key, expected).await;
                removed.map(|()| expected.clone())
            }
            (None, None) => Err(DocumentsError::Conflict),
        };
        self.note(write, before, &changed);
        changed
    }

    fn note(
        &self,
        write: &Write,
        before: Option<Document>,
        changed: &Result<Version, DocumentsError>,
    ) {
        let mut inner = lock(&self.inner);
        if changed.is_err() {
            inner.counts.1 += u64::from(write.key.starts_with("certificates/"));
            return;
        }
        let writer = inner.writers.insert(write.key.clone(), write.writer);
        let is_taken = before.is_some() && writer != Some(write.writer);
        let is_lease = write.key.starts_with("leases/");
        inner.counts.0 += u64::from(is_lease && is_taken);
        let was = (self.clock.now(), before);
        inner.before.insert(write.key.clone(), was);
        drop(inner);
        self.changes.notify_waiters();
    }

    /// What a read shows that sees no later change than that of `at`.
    fn as_of(&self, key: &str, at: Timestamp) -> Option<Option<Document>> {
        let inner = lock(&self.inner);
        let before = inner.before.get(key);
        before
            .filter(|(changed, _)| *changed > at)
            .map(|(_, was)| was.clone())
    }
}

/// A write on its way.
struct Write {
    key: String,
    /// `None` removes the document.
    content: Option<Vec<u8>>,
    expected: Option<Version>,
    writer: usize,
}

/// The way of one machine to the store.
pub(super) struct StoreLink {
    server: Arc<StoreServer>,
    node: Arc<Node>,
    random: SeededRandom,
}

/// What happens to a call that arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Lost,
    Late,
}

impl StoreLink {
    pub(super) fn new(server: Arc<StoreServer>, node: Arc<Node>, seed: u64) -> Self {
        let random = SeededRandom::new(seed);
        Self {
            server,
            node,
            random,
        }
    }

    /// Sends a call. It never arrives from an ended process, and later from a suspended
    /// machine.
    async fn send(&self, moment: KillPoint, writes: bool) -> Result<Fate, DocumentsError> {
        self.node.pass(moment).await;
        let (model, after) = self.server.model();
        let is_slow = self.random.below(1000) < model.slow;
        let most = if is_slow { SLOW } else { USUAL };
        let travels = Duration::from_millis(1 + self.random.below(most));
        self.node.sleep_until(self.node.world.now() + travels).await;
        let (is_gone, refuses) = model.phase(after);
        if is_gone || self.node.faults().no_store {
            return Err(match writes && self.random.below(2) == 0 {
                true => DocumentsError::Unanswered(io::ErrorKind::ConnectionReset.into()),
                false => DocumentsError::Failed(io::ErrorKind::HostUnreachable.into()),
            });
        }
        if writes && refuses {
            let refused = io::ErrorKind::ReadOnlyFilesystem;
            return Err(DocumentsError::Failed(refused.into()));
        }
        let drawn = self.random.below(1000);
        let (failed, lost) = (model.failed, model.failed + model.lost);
        match drawn {
            _ if drawn < failed => Err(DocumentsError::Failed(io::ErrorKind::ResourceBusy.into())),
            _ if drawn >= lost + model.late => Ok(Fate::Done),
            _ if !writes => Err(DocumentsError::Failed(io::ErrorKind::TimedOut.into())),
            _ if drawn < lost => Ok(Fate::Lost),
            _ => Ok(Fate::Late),
        }
    }

    /// The instant whose changes a read is sure to see.
    fn seen(&self) -> Timestamp {
        let stale = self.server.model().0.stale;
        let age = self.random.below(stale.as_millis() as u64 + 1);
        self.node.world.now() - Duration::from_millis(age)
    }

    async fn change(&self, write: Write) -> Result<Version, DocumentsError> {
        let moment = moment(&write.key);
        let fate = self.send(moment, true).await?;
        let lost = || DocumentsError::Unanswered(io::ErrorKind::TimedOut.into());
        if fate == Fate::Late {
            let after = Duration::from_millis(self.random.below(LATE.as_millis() as u64));
            let (server, at) = (self.server.clone(), self.node.world.now() + after);
            tokio::spawn(async move {
                server.clock.sleep_until(at).await;
                let _ = server.change(&write).await;
            });
            return Err(lost());
        }
        let changed = self.server.change(&write).await;
        self.node.pass(moment).await;
        match fate {
            Fate::Done => changed,
            _ => Err(lost()),
        }
    }
}

/// The point at which a process that writes `key` may be killed.
fn moment(key: &str) -> KillPoint {
    match key.split('/').next() {
        Some("certificates") => KillPoint::Save,
        Some("pairs") => KillPoint::Pair,
        Some("cas") => KillPoint::CaState,
        _ => KillPoint::Read,
    }
}

impl fmt::Debug for StoreLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "store of node {}", self.node.index)
    }
}

#[async_trait]
impl Documents for StoreLink {
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError> {
        self.send(KillPoint::Read, false).await?;
        match self.server.as_of(key, self.seen()) {
            Some(was) => Ok(was),
            None => self.server.memory.read(key).await,
        }
    }

    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError> {
        let write = Write {
            key: key.to_owned(),
            content: Some(content.to_vec()),
            expected: expected.cloned(),
            writer: self.node.index,
        };
        self.change(write).await
    }

    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError> {
        let write = Write {
            key: key.to_owned(),
            content: None,
            expected: Some(expected.clone()),
            writer: self.node.index,
        };
        self.change(write).await.map(drop)
    }

    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError> {
        self.send(KillPoint::Read, false).await?;
        let mut listed = self.server.memory.list(prefix).await?;
        let at = self.seen();
        let inner = lock(&self.server.inner);
        let later = inner.before.range(prefix.to_owned()..);
        let later = later.take_while(|(key, _)| key.starts_with(prefix));
        for (key, (_, was)) in later.filter(|(_, (changed, _))| *changed > at) {
            match was {
                Some(was) => listed.insert(key.clone(), was.version.clone()),
                None => listed.remove(key),
            };
        }
        Ok(listed)
    }

    async fn time(&self) -> Result<Timestamp, DocumentsError> {
        self.send(KillPoint::Read, false).await?;
        Ok(Timestamp::from_seconds(self.node.world.now().seconds()))
    }

    async fn watch(&self, key: &str, notices: &watch::Sender<Notice>) {
        if !self.server.tells {
            return;
        }
        loop {
            let next = self.server.changes.notified();
            let is_heard = !self.server.model().0.is_silent;
            if is_heard && !self.node.faults().no_store {
                let found = self.server.memory.read(key).await.ok().flatten();
                let newest = Notice::Newest(found.map(|found| found.version));
                notices
                    .send_if_modified(|known| std::mem::replace(known, newest.clone()) != newest);
            }
            next.await;
        }
    }
}
