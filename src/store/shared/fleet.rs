//! The documents by which the machines of a fleet know of each other: which certificates have
//! changed, which machine does the scheduled work, what each machine runs, and the challenge
//! answers that any of them gives.
//!
//! ```text
//! fleet                    the last changes in turn, and the issuer
//! nodes/NODE               a machine's version and when it was last there
//! deleted/NAME             the certificates of that name that were deleted
//! challenges/KIND/ID/TOKEN a live answer
//! ```

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::sealed::{busy, failed};
use super::{ATTEMPTS, SharedStore};
use crate::lineage::Lineage;
use crate::store::StoreError;
use crate::store::documents::Version;
use crate::time::Timestamp;

const FLEET: &str = "fleet";
/// A machine that has missed more lists the certificates again.
const CHANGES: usize = 500;
/// The deletions that are remembered of one name.
const DELETIONS: usize = 20;

/// The document that each machine reads every few seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct Fleet {
    /// Counts the changes.
    pub(in crate::store) sequence: u64,
    /// The last changed certificates, with the number of the change.
    pub(in crate::store) changed: VecDeque<(u64, Lineage)>,
    /// The machine that does the scheduled work.
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
        self.changed.retain(|(_, other)| *other != lineage);
        self.changed.push_back((self.sequence, lineage));
        while self.changed.len() > CHANGES {
            self.changed.pop_front();
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
        let loaded = self.documents.load::<Fleet>(FLEET).await?.unzip();
        Ok((loaded.0.unwrap_or_default(), loaded.1))
    }

    /// Refuses a server that does not compare and swap.
    pub(in crate::store) async fn probe(&self) -> Result<(), StoreError> {
        let probed = self.documents.documents.probe().await;
        probed.map_err(failed("use", FLEET))
    }

    /// Opens the document of the fleet, and makes it in a new store: a place of another fleet
    /// is refused before anything is written there, and so is one that cannot compare and swap.
    pub(in crate::store) async fn claim(&self) -> Result<(), StoreError> {
        if let (fleet, None) = self.fleet().await? {
            self.probe().await?;
            // Another machine may be faster.
            self.swap_fleet(&fleet, None).await?;
            self.fleet().await?;
        }
        Ok(())
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

    /// Returns when the document may have changed; never where the server tells of nothing.
    pub(in crate::store) async fn fleet_changed(&self, known: Option<&Version>) {
        self.documents.documents.changed(FLEET, known).await;
    }

    /// Writes this machine's own document, and returns the one that it replaces.
    pub(in crate::store) async fn describe(
        &self,
        node: &FleetNode,
    ) -> Result<Option<FleetNode>, StoreError> {
        let key = format!("nodes/{}", self.node);
        for _ in 0..ATTEMPTS {
            let (before, version) = self.documents.load::<FleetNode>(&key).await?.unzip();
            if self
                .documents
                .swap(&key, node, version.as_ref())
                .await?
                .is_some()
            {
                return Ok(before);
            }
        }
        Err(busy(&key))
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
        let key = format!("deleted/{lineage}");
        for _ in 0..ATTEMPTS {
            let (ids, version) = self.documents.load::<VecDeque<u64>>(&key).await?.unzip();
            let mut ids = ids.unwrap_or_default();
            if ids.contains(&id) {
                return Ok(());
            }
            ids.push_back(id);
            if ids.len() > DELETIONS {
                ids.pop_front();
            }
            if self
                .documents
                .swap(&key, &ids, version.as_ref())
                .await?
                .is_some()
            {
                return Ok(());
            }
        }
        Err(busy(&key))
    }

    /// Whether the certificate `id` of that name was deleted.
    pub(in crate::store) async fn was_deleted(
        &self,
        lineage: &Lineage,
        id: u64,
    ) -> Result<bool, StoreError> {
        let key = format!("deleted/{lineage}");
        let ids = self.documents.load::<VecDeque<u64>>(&key).await?;
        Ok(ids.is_some_and(|(ids, _)| ids.contains(&id)))
    }

    /// Gives `answer` to every machine.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn put_answer(&self, answer: &SharedAnswer) -> Result<(), StoreError> {
        let key = of_answer(&answer.kind, &answer.identifier, &answer.token);
        for _ in 0..ATTEMPTS {
            let (stored, version) = self.documents.load::<SharedAnswer>(&key).await?.unzip();
            if stored.as_ref() == Some(answer) {
                return Ok(());
            }
            if self
                .documents
                .swap(&key, answer, version.as_ref())
                .await?
                .is_some()
            {
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
        if let Some((_, version)) = self.documents.load::<SharedAnswer>(&key).await? {
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
        let mut live = BTreeMap::new();
        for (key, version) in self.keys("challenges/").await? {
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
            if let Some(answer) = answer {
                live.insert(key, (version, answer));
            }
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
