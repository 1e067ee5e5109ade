//! The latest state of every certificate, for the endpoints, the metrics and the supervisor.
//! Thousands of certificates in the same state share one, and cost a few words each.

mod packed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::packed::Certificates;
pub(crate) use self::packed::Read;
use super::status::{ProofState, RequestedBy, Status};
use crate::lineage::Lineage;
use crate::record::Generation;
use crate::time::Timestamp;

/// The latest state of every certificate, and the containers that request it, shared by
/// writers and readers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Board {
    certificates: Arc<RwLock<Certificates>>,
    requests: Arc<RwLock<BTreeMap<Lineage, RequestedBy>>>,
    orphans: Arc<RwLock<BTreeMap<Lineage, String>>>,
    obstacles: Arc<RwLock<Obstacles>>,
    /// When each endpoint was to be looked at again, as an earlier process stored it.
    stored: Arc<RwLock<BTreeMap<Lineage, NextLooks>>>,
}

/// When each endpoint is looked at again.
type NextLooks = BTreeMap<String, Option<Timestamp>>;

/// Why certificates cannot be managed as they are stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Obstacles {
    /// The rights that each lacks.
    pub denied: BTreeMap<Lineage, Vec<String>>,
    /// Those that are not managed at all, and why.
    pub unmanaged: BTreeMap<Lineage, String>,
    /// Those that cannot be renewed, and why.
    pub not_renewable: BTreeMap<Lineage, String>,
}

impl Board {
    /// Adds or replaces the state of a certificate.
    pub(crate) fn post(&self, status: Status) {
        self.write().set(status);
    }

    /// Adds or replaces the state of a certificate that was read with all others, and notes
    /// whether it was known so.
    pub(crate) fn post_read(&self, status: Status) {
        let name = status.name.clone();
        let is_known = self.get(&name).is_some_and(|known| known == status);
        self.post_stored(status);
        self.write().read.insert(
            name,
            match is_known {
                true => Read::Known,
                false => Read::New,
            },
        );
    }

    /// Whether the certificate was read with all others; once.
    pub(crate) fn take_read(&self, lineage: &Lineage) -> Option<Read> {
        self.write().read.remove(lineage)
    }

    /// Until when nothing is due for the certificate, of which `live` is published.
    pub(crate) fn rests_until(
        &self,
        lineage: &Lineage,
        live: Option<Generation>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let status = self.get(lineage)?;
        let is_published = live.is_some() && live == status.generation_issued;
        let is_quiet = status.complete
            && status.is_ready()
            && status.last_error.is_none()
            && status.excluded.is_empty()
            // What was seen before is looked at after a start.
            && status.served.is_empty()
            && status.rolled_back_to.is_none()
            && status.to_be_revoked.is_none()
            && status.renaming.is_none();
        let rests = is_published && is_quiet && status.next_at > now;
        rests.then_some(status.next_at)
    }

    /// Takes no more memory than the states need.
    pub(crate) fn compact(&self) {
        self.write().compact();
    }

    fn get(&self, lineage: &Lineage) -> Option<Status> {
        self.read().get(lineage)
    }

    /// The same for a state from the store: if the certificate is new on the board, its
    /// endpoints count as not proven until this process has looked at them.
    pub(crate) fn post_stored(&self, status: Status) {
        if !status.served.is_empty() && !self.read().has(&status.name) {
            let served = status.served.iter();
            let again = served.map(|(endpoint, seen)| (endpoint.clone(), seen.again));
            let stored = self.stored.write();
            let mut stored = stored.unwrap_or_else(PoisonError::into_inner);
            stored.insert(status.name.clone(), again.collect());
        }
        self.post(status);
    }

    /// An endpoint of the certificate that this process has not looked at yet.
    fn unlooked(&self, status: &Status) -> Option<String> {
        let stored = self.stored.read().unwrap_or_else(PoisonError::into_inner);
        let stored = stored.get(&status.name)?;
        // Every look stores when the next one is due.
        let mut served = status.served.iter();
        let found = served.find(|(endpoint, seen)| stored.get(*endpoint) == Some(&seen.again));
        found.map(|(endpoint, _)| endpoint.clone())
    }

    /// Whether this process has not looked at an endpoint of `lineage` yet.
    pub(crate) fn is_unlooked(&self, lineage: &Lineage) -> bool {
        let status = self.get(lineage);
        status.is_some_and(|status| self.unlooked(&status).is_some())
    }

    /// Replaces the state of a certificate that is on the board.
    pub(crate) fn update(&self, status: Status) {
        let mut board = self.write();
        if board.has(&status.name) {
            board.set(status);
        }
    }

    /// Removes all certificates but `kept`.
    pub(crate) fn retain(&self, kept: &BTreeSet<Lineage>) {
        self.write().retain(kept);
        let stored = self.stored.write();
        let mut stored = stored.unwrap_or_else(PoisonError::into_inner);
        stored.retain(|lineage, _| kept.contains(lineage));
    }

    /// Sets the containers that request each certificate.
    pub(crate) fn set_requests(&self, requests: BTreeMap<Lineage, RequestedBy>) {
        *self
            .requests
            .write()
            .unwrap_or_else(PoisonError::into_inner) = requests;
    }

    /// Sets the certificates that nothing keeps, and why.
    pub(crate) fn set_orphans(&self, orphans: BTreeMap<Lineage, String>) {
        *self.orphans.write().unwrap_or_else(PoisonError::into_inner) = orphans;
    }

    /// Sets what keeps certificates from being managed.
    pub(crate) fn set_obstacles(&self, obstacles: Obstacles) {
        let shown = self.obstacles.write();
        *shown.unwrap_or_else(PoisonError::into_inner) = obstacles;
    }

    /// What keeps certificates from being managed.
    pub(crate) fn obstacles(&self) -> Obstacles {
        let shown = self.obstacles.read();
        shown.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state of every certificate, by name.
    pub(crate) fn all(&self) -> Vec<Status> {
        let mut all = Vec::new();
        self.each(|status| all.push(status));
        all
    }

    /// Shows the state of every certificate, by name: no more than one is made at a time.
    pub(crate) fn each(&self, mut show: impl FnMut(Status)) {
        let board = self.read();
        let requests = self.requests.read().unwrap_or_else(PoisonError::into_inner);
        let orphans = self.orphans.read().unwrap_or_else(PoisonError::into_inner);
        let obstacles = self.obstacles.read();
        let obstacles = obstacles.unwrap_or_else(PoisonError::into_inner);
        for status in board.all() {
            let name = &status.name;
            let status = Status {
                requested_by: requests.get(name).cloned(),
                orphaned: orphans.contains_key(name),
                orphaned_why: orphans.get(name).cloned(),
                denied: obstacles.denied.get(name).cloned().unwrap_or_default(),
                not_renewable: obstacles.not_renewable.get(name).cloned(),
                ..status
            };
            show(self.looked_at(status));
        }
    }

    /// A stored proof is none for the certificates that are kept: their server may be gone.
    fn looked_at(&self, mut status: Status) -> Status {
        if status.proof.state == ProofState::Proven
            && !status.orphaned
            && let Some(endpoint) = self.unlooked(&status)
        {
            status.proven = false;
            status.proof.state = ProofState::NotProven;
            status.proof.detail = format!("{endpoint}: not looked at since the start");
        }
        status
    }

    fn read(&self) -> RwLockReadGuard<'_, Certificates> {
        let board = self.certificates.read();
        board.unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Certificates> {
        let board = self.certificates.write();
        board.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::status::{Action, Proof};
    use super::*;
    use crate::identifier::Identifier;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    pub(in crate::observe) fn status(number: usize) -> Status {
        let identifier = Identifier::parse(&format!("n{number}.example")).unwrap();
        Status {
            name: Lineage::of(&identifier),
            identifiers: [identifier].into(),
            ca: "https://ca".into(),
            issued_by: Some("https://ca".into()),
            not_after: Some(NOW + std::time::Duration::from_secs(number as u64)),
            next_action: Action::Issue,
            next_at: NOW + std::time::Duration::from_secs(1 + number as u64),
            generation_issued: Some(Generation(1)),
            generation_served: None,
            served: BTreeMap::new(),
            rolled_back_to: None,
            complete: true,
            excluded: Vec::new(),
            proof: Proof::default(),
            proven: false,
            overdue: false,
            critical: false,
            orphaned: false,
            orphaned_why: None,
            denied: Vec::new(),
            not_renewable: None,
            revoked: BTreeMap::new(),
            to_be_revoked: None,
            renaming: None,
            last_error: (number % 10 == 3).then(|| format!("{number} failed")),
            requested_by: None,
        }
    }

    #[test]
    fn states_come_back_as_they_were_posted_and_share_what_is_the_same() {
        let board = Board::default();
        let posted: Vec<Status> = (0..500).map(status).collect();
        for status in &posted {
            board.post(status.clone());
        }
        board.compact();
        let mut sorted = posted.clone();
        sorted.sort_by(|one, other| one.name.cmp(&other.name));
        assert_eq!(board.all(), sorted);
        // One for those without an error, and one for each that has one.
        assert_eq!(board.read().kinds(), 1 + 50);
        board.retain(&posted[..2].iter().map(|one| one.name.clone()).collect());
        assert_eq!(board.all(), posted[..2]);
    }

    #[test]
    fn state_is_read_as_known_or_new_once() {
        let board = Board::default();
        let (one, mut other) = (status(1), status(2));
        board.post(one.clone());
        board.post(other.clone());
        other.last_error = Some("meanwhile".into());
        for status in [&one, &other, &status(4)] {
            board.post_read(status.clone());
        }
        let read = [&one, &other, &status(4), &one].map(|one| board.take_read(&one.name));
        assert_eq!(
            read,
            [Some(Read::Known), Some(Read::New), Some(Read::New), None]
        );
    }

    #[test]
    fn only_what_is_published_and_needs_nothing_rests() {
        let board = Board::default();
        let rests = |change: fn(&mut Status), live: Option<u64>| {
            let mut status = status(1);
            change(&mut status);
            board.post(status.clone());
            let until = board.rests_until(&status.name, live.map(Generation), NOW);
            assert!(until.is_none_or(|until| until == status.next_at));
            until.is_some()
        };
        assert!(rests(|_| (), Some(1)));
        assert!(!rests(|_| (), None) && !rests(|_| (), Some(2)));
        let changes: [fn(&mut Status); 5] = [
            |status| status.next_at = NOW,
            |status| status.complete = false,
            |status| status.last_error = Some("failed".into()),
            |status| status.proof.state = ProofState::NotProven,
            |status| {
                let seen = crate::record::Served::none(NOW);
                status.served.insert("localhost:443".into(), seen);
            },
        ];
        for change in changes {
            assert!(!rests(change, Some(1)));
        }
    }
}
