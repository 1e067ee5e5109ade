//! The states of many certificates in little memory: what differs from one to the other is kept
//! for each, and all else once for those that share it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::super::status::Status;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::time::Timestamp;

/// How a certificate was read with all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// As it was shown before.
    Known,
    /// Otherwise.
    New,
}

/// The states by name.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    packed: BTreeMap<Lineage, Packed>,
    /// The shared parts of the latest states.
    recent: VecDeque<Arc<Status>>,
    /// Those that were read with all others, until the supervisor has taken them.
    pub(super) read: BTreeMap<Lineage, Read>,
}

/// Of so many states in turn the shared parts are found again.
const RECENT: usize = 16;

#[derive(Debug)]
struct Packed {
    /// The state without what follows.
    shared: Arc<Status>,
    identifiers: Box<[Identifier]>,
    not_after: Option<Timestamp>,
    next_at: Timestamp,
}

impl Packed {
    fn status(&self, name: &Lineage) -> Status {
        let mut status = Status::clone(&self.shared);
        status.name.clone_from(name);
        status.identifiers = self.identifiers.iter().cloned().collect();
        (status.not_after, status.next_at) = (self.not_after, self.next_at);
        status
    }
}

impl Certificates {
    /// Adds or replaces a state.
    pub(super) fn set(&mut self, status: Status) {
        let name = status.name.clone();
        let packed = self.packed(status);
        self.packed.insert(name, packed);
    }

    fn packed(&mut self, mut status: Status) -> Packed {
        let identifiers = std::mem::take(&mut status.identifiers);
        let (not_after, next_at) = (status.not_after.take(), status.next_at);
        status.next_at = Timestamp::from_seconds(0);
        let found = self.recent.iter().position(|one| {
            // The name of the first is that of all.
            status.name.clone_from(&one.name);
            **one == status
        });
        let found = found.and_then(|place| self.recent.remove(place));
        let shared = found.unwrap_or_else(|| Arc::new(status));
        // The one that was used last is looked at first.
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(shared.clone());
        Packed {
            shared,
            identifiers: identifiers.into_iter().collect(),
            not_after,
            next_at,
        }
    }

    /// How many different states there are but for what is kept for each.
    #[cfg(test)]
    pub(super) fn kinds(&self) -> usize {
        let kinds = self
            .packed
            .values()
            .map(|packed| Arc::as_ptr(&packed.shared));
        kinds.collect::<BTreeSet<_>>().len()
    }

    pub(super) fn has(&self, name: &Lineage) -> bool {
        self.packed.contains_key(name)
    }

    pub(super) fn get(&self, name: &Lineage) -> Option<Status> {
        Some(self.packed.get(name)?.status(name))
    }

    /// Each state in turn, by name.
    pub(super) fn all(&self) -> impl Iterator<Item = Status> {
        self.packed.iter().map(|(name, packed)| packed.status(name))
    }

    /// Takes no more memory than the states need: a tree to which they came in order is half
    /// empty.
    pub(super) fn compact(&mut self) {
        self.packed = std::mem::take(&mut self.packed).into_iter().collect();
    }

    /// Removes all but `kept`.
    pub(super) fn retain(&mut self, kept: &BTreeSet<Lineage>) {
        self.packed.retain(|name, _| kept.contains(name));
        self.read.retain(|name, _| kept.contains(name));
    }
}
