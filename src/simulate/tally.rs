//! What is counted of what the fleet's clients saw: for how long a certificate
//! was served that was over, or not its key's, and how long it took after a
//! fault until all was well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::identifier::Lineage;
use crate::time::Timestamp;

/// A certificate as one proxy serves it.
pub(super) type Place = (usize, Lineage);

#[derive(Default)]
pub(super) struct Tally(Mutex<Inside>);

#[derive(Default)]
struct Inside {
    serving: BTreeMap<Place, Served>,
    sums: Sums,
    recoveries: Vec<Recovery>,
}

/// What has been summed up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) expired: Duration,
    pub(super) mismatched: Duration,
    pub(super) reloads: u64,
    pub(super) worst_recovery: Duration,
}

struct Served {
    since: Timestamp,
    /// Its last valid second.
    until: Timestamp,
    matches: bool,
}

/// What was left undone by a fault that is over.
struct Recovery {
    since: Timestamp,
    left: BTreeSet<Place>,
}

impl Tally {
    /// A proxy has been told to load what is on disk.
    pub(super) fn reload(&self) {
        self.lock().sums.reloads += 1;
    }

    /// A proxy serves another certificate of `lineage` from `now` on.
    pub(super) fn loaded(&self, place: Place, matches: bool, until: Timestamp, now: Timestamp) {
        let mut inside = self.lock();
        inside.settle(&place, now);
        inside.recovered(&place, now);
        let served = Served {
            since: now,
            until,
            matches,
        };
        inside.serving.insert(place, served);
    }

    /// A proxy serves nothing of it any more.
    pub(super) fn withdrawn(&self, place: &Place, now: Timestamp) {
        let mut inside = self.lock();
        inside.settle(place, now);
        // What is gone is nobody's fault.
        for recovery in &mut inside.recoveries {
            recovery.left.remove(place);
        }
    }

    /// A fault begins at one node, or for all of them: what an earlier one has
    /// left undone there is from now on this one's.
    pub(super) fn fault_begins(&self, node: Option<usize>, now: Timestamp) {
        let mut inside = self.lock();
        let concerned = |(at, _): &Place| node.is_none_or(|node| node == *at);
        let left = inside.recoveries.iter().flat_map(|recovery| &recovery.left);
        let left: BTreeSet<Place> = left.filter(|place| concerned(place)).cloned().collect();
        for place in left {
            inside.recovered(&place, now);
        }
    }

    /// A fault is over and has left that much undone.
    pub(super) fn fault_over(&self, left: BTreeSet<Place>, now: Timestamp) {
        if !left.is_empty() {
            self.lock().recoveries.push(Recovery { since: now, left });
        }
    }

    /// Everything until `now`.
    pub(super) fn sums(&self, now: Timestamp) -> Sums {
        let mut inside = self.lock();
        let places: Vec<Place> = inside.serving.keys().cloned().collect();
        for place in places {
            inside.settle(&place, now);
        }
        for recovery in std::mem::take(&mut inside.recoveries) {
            if !recovery.left.is_empty() {
                inside.sums.worst_recovery =
                    inside.sums.worst_recovery.max(now.since(recovery.since));
            }
        }
        inside.sums
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn settle(&mut self, place: &Place, now: Timestamp) {
        let Some(served) = self.serving.remove(place) else {
            return;
        };
        // The last valid second counts.
        let over = served.until + Duration::from_secs(1);
        self.sums.expired += now.since(over.max(served.since));
        if !served.matches {
            self.sums.mismatched += now.since(served.since);
        }
    }

    fn recovered(&mut self, place: &Place, now: Timestamp) {
        let Self {
            recoveries, sums, ..
        } = self;
        recoveries.retain_mut(|recovery| {
            let was_last = recovery.left.remove(place) && recovery.left.is_empty();
            if was_last {
                let took = now.since(recovery.since).as_secs();
                tracing::info!(node = place.0, lineage = %place.1, "the last that a fault had held up, {took} s after its end at {}", recovery.since);
                sums.worst_recovery = sums.worst_recovery.max(now.since(recovery.since));
            }
            !recovery.left.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn place() -> Place {
        (0, Lineage::parse("example.com").unwrap())
    }

    #[test]
    fn what_is_served_beyond_its_end_is_counted_to_the_second() {
        let (tally, second) = (Tally::default(), Duration::from_secs(1));
        tally.loaded(place(), true, NOW + second * 9, NOW);
        tally.loaded(place(), true, NOW + second * 99, NOW + second * 10);
        assert_eq!(tally.lock().sums.expired, Duration::ZERO);
        tally.loaded(place(), true, NOW + second * 999, NOW + second * 103);
        assert_eq!(tally.lock().sums.expired, second * 3);
        // One that is over already when it is loaded counts from then.
        tally.loaded(place(), false, NOW, NOW + second * 200);
        let sums = tally.sums(NOW + second * 207);
        assert_eq!((sums.expired, sums.mismatched), (second * 10, second * 7));
    }

    #[test]
    fn a_recovery_ends_with_the_last_of_what_was_left() {
        let (tally, minute) = (Tally::default(), Duration::from_secs(60));
        let other: Place = (1, place().1);
        tally.fault_over([place(), other.clone()].into(), NOW);
        tally.loaded(place(), true, NOW + minute * 99, NOW + minute);
        assert_eq!(tally.lock().sums.worst_recovery, Duration::ZERO);
        tally.loaded(other.clone(), true, NOW + minute * 99, NOW + minute * 3);
        assert_eq!(tally.lock().sums.worst_recovery, minute * 3);
        tally.fault_over([other].into(), NOW + minute * 4);
        assert_eq!(tally.sums(NOW + minute * 9).worst_recovery, minute * 5);
    }
}
