//! Which states of the shared store this machine's copies have. They are kept in a file that
//! grows by a line for each change, and is written again when most of it is out of date. Without
//! it, everything is compared again; it is not flushed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ca_state::CaState;
use crate::lineage::Lineage;
use crate::record::Revision;
use crate::store::OwnStore;

/// The file of the data directory.
const FILE: &str = "copies.json";
/// Lines beyond those that are needed.
const SPARE: usize = 1000;

/// The state that a copy of a certificate has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    pub(super) id: u64,
    pub(super) revision: Revision,
    #[serde(default)]
    pub(super) stamp: u64,
    /// Empty while the other machines may not know of this state.
    pub(super) version: String,
}

/// One change of what is copied.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Change {
    /// The number of the fleet.
    Fleet(u64),
    Certificate(Lineage, Option<Copied>),
    Account(String, Revision),
    Ca(String, Revision, CaState),
}

/// What this machine has copied.
#[derive(Debug, Default)]
pub(super) struct Copies {
    fleet: Option<u64>,
    pub(super) certificates: BTreeMap<Lineage, Copied>,
    accounts: BTreeMap<String, Revision>,
    cas: BTreeMap<String, (CaState, Revision)>,
    /// The lines of the file.
    lines: usize,
}

impl Copies {
    /// Those that `own` has kept.
    pub(super) fn read(own: &dyn OwnStore) -> Self {
        let mut copies = Self::default();
        let text = own.kept(FILE).unwrap_or_default();
        for line in text.lines() {
            copies.lines += 1;
            match serde_json::from_str(line) {
                Ok(change) => copies.apply(change),
                // The file is written again.
                Err(_) => copies.lines += SPARE + text.len(),
            }
        }
        copies
    }

    /// Notes a change, and keeps it in `own`.
    pub(super) fn note(&mut self, change: Change, own: &dyn OwnStore) {
        let line = lines([&change]);
        self.apply(change);
        self.lines += 1;
        let all = self.all();
        let kept = match self.lines > 2 * all + SPARE {
            true => {
                self.lines = all;
                own.keep(FILE, lines(&self.changes()).as_bytes())
            }
            false => own.append(FILE, line.as_bytes()),
        };
        if let Err(error) = kept {
            // The next start compares every certificate.
            tracing::debug!("{FILE}: {error}");
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Fleet(id) => self.fleet = Some(id),
            Change::Certificate(lineage, Some(copied)) => {
                self.certificates.insert(lineage, copied);
            }
            Change::Certificate(lineage, None) => drop(self.certificates.remove(&lineage)),
            Change::Account(ca, revision) => drop(self.accounts.insert(ca, revision)),
            Change::Ca(ca, revision, state) => drop(self.cas.insert(ca, (state, revision))),
        }
    }

    fn all(&self) -> usize {
        1 + self.certificates.len() + self.accounts.len() + self.cas.len()
    }

    /// The changes that make all of this.
    fn changes(&self) -> Vec<Change> {
        let certificates = self.certificates.iter();
        let accounts = self.accounts.iter();
        let cas = self.cas.iter();
        let fleet = self.fleet.iter().map(|id| Change::Fleet(*id));
        fleet
            .chain(
                certificates
                    .map(|(one, copied)| Change::Certificate(one.clone(), Some(copied.clone()))),
            )
            .chain(accounts.map(|(ca, revision)| Change::Account(ca.clone(), *revision)))
            .chain(
                cas.map(|(ca, (state, revision))| Change::Ca(ca.clone(), *revision, state.clone())),
            )
            .collect()
    }

    /// The fleet of the copies; none where nothing binds this machine to it.
    pub(super) fn fleet(&self) -> Option<u64> {
        self.fleet.filter(|_| !self.certificates.is_empty())
    }

    /// Whether the fleet has this number.
    pub(super) fn is_of(&self, id: u64) -> bool {
        self.fleet == Some(id)
    }

    pub(super) fn account(&self, ca: &str) -> Revision {
        self.accounts.get(ca).copied().unwrap_or_default()
    }

    pub(super) fn cas(&self) -> &BTreeMap<String, (CaState, Revision)> {
        &self.cas
    }

    pub(super) fn ca(&self, ca: &str) -> Option<&(CaState, Revision)> {
        self.cas.get(ca)
    }
}

fn lines<'c>(changes: impl IntoIterator<Item = &'c Change>) -> String {
    let lines = changes.into_iter().map(serde_json::to_string);
    lines.flatten().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::fs::FileStore;

    #[test]
    fn copies_are_kept_by_lines_and_survive_a_torn_one() {
        let directory = tempfile::tempdir().unwrap();
        let own = FileStore::open(directory.path().to_owned()).unwrap();
        let one = Lineage::parse("one").unwrap();
        let copied = |revision| Copied {
            id: 1,
            revision: Revision(revision),
            stamp: 2,
            version: "v".into(),
        };
        let mut copies = Copies::read(&own);
        copies.note(Change::Fleet(7), &own);
        assert_eq!(copies.fleet(), None, "nothing binds it");
        for revision in 0..5000 {
            let change = Change::Certificate(one.clone(), Some(copied(revision)));
            copies.note(change, &own);
        }
        copies.note(Change::Account("ca".into(), Revision(3)), &own);
        let length = || own.kept(FILE).unwrap().lines().count();
        assert!(length() < 2 * SPARE, "{}", length());
        own.append(FILE, b"{\"certificate\":[\"on").unwrap();
        let mut read = Copies::read(&own);
        assert_eq!(read.certificates[&one], copied(4999));
        assert_eq!((read.fleet(), read.account("ca")), (Some(7), Revision(3)));
        read.note(Change::Certificate(one.clone(), None), &own);
        assert!(length() <= 3, "{}", length());
        assert!(Copies::read(&own).certificates.is_empty());
    }
}
