//! The documents by which the machines of a fleet know of each other: which certificates have
//! changed, which machine does the scheduled work, what each machine runs, and the challenge
//! answers that any of them gives.
//!
//! ```text
//! fleet                    its number, the last changes in turn, and the issuer
//! nodes/NODE               a machine's version and when it was last there
//! deleted/NAME             the certificates of that name that were deleted
//! challenges/KIND/ID/TOKEN a live answer
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::sealed::{FLEET, busy, failed};
use super::{ATTEMPTS, SharedStore};
use crate::lineage::Lineage;
use crate::store::StoreError;
use crate::store::documents::{Notice, Version};
use crate::time::Timestamp;

/// A machine that has missed more lists the certificates again.
const CHANGES: usize = 500;
/// Answers that are read at once: a CA waits for all of them.
const SIDE_BY_SIDE: usize = 16;
/// The deletions that are remembered of one name.
const DELETIONS: usize = 20;
/// A machine that has not described itself for this time, by the server's clock, is forgotten.
const FORGOTTEN: i64 = 7 * 24 * 3600;
/// Another machine that was seen within this time has our name, though we have just begun.
const RECENT: i64 = 150;

/// The document that each machine follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Fleet {
    /// Drawn when the store was new.
    pub(in crate::store) id: u64,
    /// Drawn when this document was made: another one counts the changes again.
    #[serde(default)]
    pub(in crate::store) begun: u64,
    /// Counts the changes.
    #[serde(default)]
    pub(in crate::store) sequence: u64,
    /// The last changed certificates, with the number of the change.
    #[serde(default)]
    pub(in crate::store) changed: VecDeque<(u64, Lineage)>,
    /// Those of which a machine found a document damaged, or a pair missing, since their last
    /// change: another one may have them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(in crate::store) damaged: BTreeSet<Lineage>,
    /// The machine that does the scheduled work.
    #[serde(default)]
    pub(in crate::store) issuer: Option<Issuer>,
}

/// The machine that does the scheduled work, as long as it goes on counting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Issuer {
    pub(in crate::store) node: String,
    /// Drawn by its process.
    pub(in crate::store) holder: u64,
    pub(in crate::store) beat: u64,
}

impl Fleet {
    pub(in crate::store) fn announce(&mut self, lineage: Lineage) {
        self.sequence += 1;
        self.damaged.remove(&lineage);
        self.changed.retain(|(_, other)| *other != lineage);
        self.changed.push_back((self.sequence, lineage));
        while self.changed.len() > CHANGES {
            self.changed.pop_front();
        }
    }

    /// Asks the machines that have this certificate to put it back.
    pub(in crate::store) fn note_damage(&mut self, lineage: Lineage) {
        if self.damaged.len() < CHANGES {
            self.damaged.insert(lineage);
        }
    }

    /// The certificates that have changed after `sequence`; `None` if some may be forgotten.
    pub(in crate::store) fn since(&self, sequence: u64) -> Option<Vec<Lineage>> {
        let later = self.changed.iter().filter(|(number, _)| *number > sequence);
        let later: Vec<Lineage> = later.map(|(_, lineage)| lineage.clone()).collect();
        let missed = self.sequence.checked_sub(sequence)?;
        // A certificate that changed twice is named once: as many names as changes, or the
        // oldest name is of a change before.
        let oldest = self.changed.front().map_or(0, |(number, _)| *number);
        let all = missed == 0 || self.changed.len() < CHANGES || oldest <= sequence;
        all.then_some(later)
    }
}

/// A machine of the fleet, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetNode {
    /// Its name.
    pub node: String,
    /// Drawn by its process.
    pub process: u64,
    /// The version of the program.
    pub version: String,
    /// Whether it orders certificates.
    pub role: String,
    /// When it wrote this, by its own clock.
    pub seen: Timestamp,
    /// The certificates that it keeps.
    pub certificates: usize,
    /// The generation that its servers were last seen to serve, for the first certificates.
    pub served: BTreeMap<Lineage, u64>,
    /// Its host.
    #[serde(default)]
    pub host: String,
    /// The host of another machine with this name, which was there since the last description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<String>,
}

/// A challenge answer that every machine gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SharedAnswer {
    /// The kind of challenge, by its registered name.
    pub kind: String,
    /// The name to prove.
    pub identifier: String,
    /// The token of the challenge.
    pub token: String,
    /// What the CA expects.
    pub content: String,
}

fn of_answer(kind: &str, identifier: &str, token: &str) -> String {
    // An IPv6 address has colons.
    let identifier = identifier.replace(':', "-");
    format!("challenges/{kind}/{identifier}/{token}")
}

impl SharedStore {
    pub(in crate::store) async fn fleet(&self) -> Result<(Fleet, Option<Version>), StoreError> {
        let (stored, version) = self.documents.load::<Fleet>(FLEET).await?.unzip();
        let id = self.documents.known().unwrap_or_default();
        let new = || Fleet {
            id,
            ..Fleet::default()
        };
        Ok((stored.unwrap_or_else(new), version))
    }

    /// Refuses a server that does not compare and swap.
    pub(in crate::store) async fn probe(&self) -> Result<(), StoreError> {
        self.documents.probe().await
    }

    /// Finds out the number of the fleet, and gives one to a new store; `own` is that of this
    /// machine's copies, which also replaces a damaged document if this machine `repairs` it.
    ///
    /// # Errors
    /// When the store is of another fleet, or cannot compare and swap: nothing is written then.
    pub(in crate::store) async fn claim(
        &self,
        own: Option<u64>,
        repairs: bool,
    ) -> Result<u64, StoreError> {
        self.documents.claim(own, repairs).await
    }

    /// The time by the clock of the store.
    pub(in crate::store) async fn time(&self) -> Result<Timestamp, StoreError> {
        let time = self.documents.documents.time().await;
        time.map_err(failed("ask for its time", FLEET))
    }

    /// Swaps the document; `None` if another machine was faster.
    pub(in crate::store) async fn swap_fleet(
        &self,
        fleet: &Fleet,
        expected: Option<&Version>,
    ) -> Result<Option<Version>, StoreError> {
        self.documents.swap(FLEET, fleet, expected).await
    }

    /// Tells of the changes of the document as [`Documents::watch`] does.
    ///
    /// [`Documents::watch`]: crate::store::documents::Documents::watch
    pub(in crate::store) fn watch_fleet(&self, notices: watch::Sender<Notice>) -> JoinSet<()> {
        let documents = self.documents.documents.clone();
        let mut watching = JoinSet::new();
        watching.spawn(async move { documents.watch(FLEET, &notices).await });
        watching
    }

    /// Writes this machine's own document in place of `known`, the last one that it has written.
    /// Whatever else is there is of another machine with this name, which the document then
    /// names.
    pub(in crate::store) async fn describe(
        &self,
        node: &mut FleetNode,
        known: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let key = format!("nodes/{}", self.node);
        let mut expected = known.cloned();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 || known.is_none() {
                let (found, version) = self.documents.load_if_whole::<FleetNode>(&key).await?;
                expected = version;
                let is_other = |found: &FleetNode| {
                    let age = node.seen.seconds() - found.seen.seconds();
                    let is_elsewhere = found.host != node.host && age.abs() < RECENT;
                    found.process != node.process && (known.is_some() || is_elsewhere)
                };
                node.rival = found.filter(is_other).map(|found| found.host);
            }
            let written = self.documents.swap(&key, &*node, expected.as_ref());
            if let Some(version) = written.await? {
                return Ok(version);
            }
        }
        Err(busy(&key))
    }

    /// Removes the document `key` of a machine, if it has not been seen for long.
    pub(in crate::store) async fn forget_node(&self, key: &str) -> Result<(), StoreError> {
        let now = self.documents.documents.time().await;
        let now = now.map_err(failed("read", key))?.seconds();
        let (node, version) = self.documents.load_if_whole::<FleetNode>(key).await?;
        let is_gone = node.is_none_or(|node| now - node.seen.seconds() > FORGOTTEN);
        if let Some(version) = version.filter(|_| is_gone) {
            self.documents.remove(key, &version).await?;
            tracing::info!("{key}: this machine has not been seen for a week, and is forgotten");
        }
        Ok(())
    }

    /// The machines of the fleet, by name.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn nodes(&self) -> Result<Vec<FleetNode>, StoreError> {
        let mut nodes = Vec::new();
        for key in self.keys("nodes/").await?.keys() {
            // One that has left meanwhile, or a damaged one, hides no other.
            if let Ok(Some((node, _))) = self.documents.load::<FleetNode>(key).await {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    /// Removes this machine's own document.
    pub(in crate::store) async fn leave(&self, process: u64) {
        let key = format!("nodes/{}", self.node);
        let stored = self.documents.load::<FleetNode>(&key).await;
        // Another machine may have the same name.
        if let Ok(Some((node, version))) = stored
            && node.process == process
        {
            let _ = self.documents.remove(&key, &version).await;
        }
    }

    pub(in crate::store) async fn keys(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<String, Version>, StoreError> {
        let keys = self.documents.documents.list(prefix).await;
        keys.map_err(failed("list", prefix))
    }

    /// Notes that the certificate `id` of that name is deleted, before it is.
    pub(in crate::store) async fn note_deletion(
        &self,
        lineage: &Lineage,
        id: u64,
    ) -> Result<(), StoreError> {
        let note = |ids: &mut VecDeque<u64>| {
            ids.push_back(id);
            if ids.len() > DELETIONS {
                ids.pop_front();
            }
        };
        self.change_deletions(lineage, (id, true), note).await
    }

    /// Withdraws that the certificate `id` of that name is deleted: it was not, or is there
    /// again.
    pub(in crate::store) async fn forget_deletion(
        &self,
        lineage: &Lineage,
        id: u64,
    ) -> Result<(), StoreError> {
        let forget = |ids: &mut VecDeque<u64>| ids.retain(|one| *one != id);
        self.change_deletions(lineage, (id, false), forget).await
    }

    /// Changes the deletions of that name, unless `id` `is_noted` in them as it should be.
    async fn change_deletions(
        &self,
        lineage: &Lineage,
        (id, is_noted): (u64, bool),
        change: impl Fn(&mut VecDeque<u64>) + Send,
    ) -> Result<(), StoreError> {
        let key = format!("deleted/{lineage}");
        for _ in 0..ATTEMPTS {
            let (mut ids, version) = self.deletions(&key).await?;
            if ids.contains(&id) == is_noted {
                return Ok(());
            }
            change(&mut ids);
            let is_written = match &version {
                Some(version) if ids.is_empty() => self.documents.remove(&key, version).await?,
                version => {
                    let written = self.documents.swap(&key, &ids, version.as_ref());
                    written.await?.is_some()
                }
            };
            if is_written {
                return Ok(());
            }
        }
        Err(busy(&key))
    }

    async fn deletions(&self, key: &str) -> Result<(VecDeque<u64>, Option<Version>), StoreError> {
        let (ids, version) = self.documents.load_if_whole::<VecDeque<u64>>(key).await?;
        Ok((ids.unwrap_or_default(), version))
    }

    /// Whether the certificate `id` of that name was deleted.
    pub(in crate::store) async fn was_deleted(
        &self,
        lineage: &Lineage,
        id: u64,
    ) -> Result<bool, StoreError> {
        let key = format!("deleted/{lineage}");
        Ok(self.deletions(&key).await?.0.contains(&id))
    }

    /// Gives `answer` to every machine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_answer(&self, answer: &SharedAnswer) -> Result<(), StoreError> {
        let key = of_answer(&answer.kind, &answer.identifier, &answer.token);
        for _ in 0..ATTEMPTS {
            let (stored, version) = self.documents.load_if_whole(&key).await?;
            if stored.as_ref() == Some(answer) {
                return Ok(());
            }
            let written = self.documents.swap(&key, answer, version.as_ref());
            if written.await?.is_some() {
                return Ok(());
            }
        }
        Err(busy(&key))
    }

    /// Takes `answer` back; a missing one does not matter.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn remove_answer(&self, answer: &SharedAnswer) -> Result<(), StoreError> {
        let key = of_answer(&answer.kind, &answer.identifier, &answer.token);
        let (_, version) = self.documents.load_if_whole::<SharedAnswer>(&key).await?;
        if let Some(version) = version {
            self.documents.remove(&key, &version).await?;
        }
        Ok(())
    }

    /// The live answers, by key: of those in `known` whose version has not changed, they are
    /// taken from there.
    pub(in crate::store) async fn answers(
        &self,
        known: &BTreeMap<String, (Version, SharedAnswer)>,
    ) -> Result<BTreeMap<String, (Version, SharedAnswer)>, StoreError> {
        let keys = self.keys("challenges/").await?;
        let each = stream::iter(keys).map(async |(key, version)| {
            let known = known.get(&key).filter(|(before, _)| *before == version);
            let answer = match known {
                Some((_, answer)) => Some(answer.clone()),
                // One that was withdrawn meanwhile, or a damaged one, hides no other.
                None => match self.documents.load::<SharedAnswer>(&key).await {
                    Ok(found) => found.map(|(answer, _)| answer),
                    Err(StoreError::Corrupt { .. }) => None,
                    Err(error) => return Err(error),
                },
            };
            Ok(answer.map(|answer| (key, (version, answer))))
        });
        let read: Vec<_> = each.buffer_unordered(SIDE_BY_SIDE).collect().await;
        let mut live = BTreeMap::new();
        for answer in read {
            live.extend(answer?);
        }
        Ok(live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fleet_names_what_changed_since() {
        let name = |number: usize| Lineage::parse(&format!("n{number}")).unwrap();
        let mut fleet = Fleet::default();
        assert_eq!(fleet.since(0), Some(vec![]));
        for number in 0..CHANGES + 10 {
            fleet.announce(name(number));
        }
        let last = fleet.sequence;
        assert_eq!(fleet.since(last), Some(vec![]));
        assert_eq!(fleet.since(last - 1), Some(vec![name(CHANGES + 9)]));
        assert_eq!(fleet.since(last - CHANGES as u64), fleet.since(10));
        assert_eq!(fleet.since(0), None, "the first ones are forgotten");
        assert_eq!(fleet.since(last + 1), None, "a store of yesterday");
        fleet.announce(name(CHANGES));
        assert_eq!(fleet.since(last), Some(vec![name(CHANGES)]), "named once");
    }
}
