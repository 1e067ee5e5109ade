//! What is counted of what the fleet's clients saw: for how long a certificate
//! was served that was over, called back or not its key's, or none at all, and
//! how long it took after a fault until all was well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Scenario;
use super::script::Script;
use crate::identifier::Lineage;
use crate::time::Timestamp;

/// A certificate as one proxy serves it.
pub(super) type OnNode = (usize, Lineage);

/// A placeholder may stand in for so long after the CA has signed what should be
/// there, where the machine is left in peace: another node looks at what it did
/// not get itself after an hour, and the rest is as after a fault.
const PLACEHOLDER_WITHIN: Duration = Duration::from_secs(5400);

pub(super) struct Tally {
    script: Arc<Script>,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    serving: BTreeMap<OnNode, Served>,
    /// Since when a real certificate should be served there, and is not.
    bare: BTreeMap<OnNode, Timestamp>,
    /// Where there is a machine.
    present: BTreeSet<usize>,
    /// What the CA has signed at least once.
    issued: BTreeSet<Lineage>,
    /// Since when what is served there is called back.
    called_back: BTreeMap<OnNode, Timestamp>,
    sums: Sums,
    recoveries: Vec<Recovery>,
}

/// What has been summed up.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) expired: Duration,
    pub(super) mismatched: Duration,
    /// No certificate, or a placeholder, for longer than it may be.
    pub(super) bare: Duration,
    pub(super) reloads: u64,
    /// The longest that one was served after it was called back.
    pub(super) called_back: Duration,
    /// The longest peace in which what a fault had held up was left undone.
    pub(super) recoveries: BTreeMap<Scenario, Duration>,
}

struct Served {
    since: Timestamp,
    /// Its last valid second.
    until: Timestamp,
    matches: bool,
}

/// What was left undone by a fault that is over.
struct Recovery {
    scenario: Scenario,
    since: Timestamp,
    left: BTreeSet<OnNode>,
}

impl Tally {
    pub(super) fn new(script: Arc<Script>) -> Self {
        Self {
            script,
            inside: Mutex::default(),
        }
    }

    /// A proxy has been told to load what is on disk.
    pub(super) fn reload(&self) {
        self.lock().sums.reloads += 1;
    }

    /// Something of the script has happened.
    pub(super) fn happens(&self, scenario: Scenario) {
        self.script.happens(scenario);
    }

    /// A machine is there, with nothing on it.
    pub(super) fn appears(&self, node: usize, now: Timestamp) {
        let mut inside = self.lock();
        inside.present.insert(node);
        let issued: Vec<Lineage> = inside.issued.iter().cloned().collect();
        for lineage in issued {
            inside.bare.insert((node, lineage), now);
        }
    }

    /// It is gone: what was not done there is nobody's fault.
    pub(super) fn vanishes(&self, node: usize, now: Timestamp) {
        let mut inside = self.lock();
        inside.present.remove(&node);
        let served = inside.serving.keys().filter(|(at, _)| *at == node);
        for place in served.cloned().collect::<Vec<_>>() {
            inside.settle(&place, now);
            inside.served_no_more(&place, now);
        }
        let bare = inside.bare.keys().filter(|(at, _)| *at == node);
        for place in bare.cloned().collect::<Vec<_>>() {
            self.clothed(&mut inside, &place, now);
        }
        for recovery in &mut inside.recoveries {
            recovery.left.retain(|(at, _)| *at != node);
        }
        inside.recoveries.retain(|one| !one.left.is_empty());
    }

    /// The CA has signed the first certificate of `lineage`.
    pub(super) fn issued(&self, lineage: &Lineage, now: Timestamp) {
        let mut inside = self.lock();
        if !inside.issued.insert(lineage.clone()) {
            return;
        }
        let nodes: Vec<usize> = inside.present.iter().copied().collect();
        for node in nodes {
            inside.bare.insert((node, lineage.clone()), now);
        }
    }

    /// A proxy serves another certificate from `now` on.
    pub(super) fn loaded(&self, place: OnNode, matches: bool, until: Timestamp, now: Timestamp) {
        let mut inside = self.lock();
        inside.settle(&place, now);
        inside.served_no_more(&place, now);
        self.clothed(&mut inside, &place, now);
        let served = Served {
            since: now,
            until,
            matches,
        };
        inside.serving.insert(place, served);
    }

    /// A proxy serves a placeholder from `now` on: that is no fault where nothing
    /// is issued, and never ends what should be there.
    pub(super) fn bared(&self, place: OnNode, now: Timestamp) {
        let mut inside = self.lock();
        if inside.serving.contains_key(&place) {
            inside.settle(&place, now);
            inside.served_no_more(&place, now);
            // Nothing excuses it: a placeholder comes first or not at all.
            let unexcused = now - PLACEHOLDER_WITHIN;
            inside.bare.insert(place, unexcused);
        }
    }

    /// What these serve is called back.
    pub(super) fn called_back(&self, places: &BTreeSet<OnNode>, now: Timestamp) {
        let mut inside = self.lock();
        for place in places {
            inside.called_back.entry(place.clone()).or_insert(now);
        }
    }

    /// A fault is over and has left that much undone.
    pub(super) fn fault_over(&self, scenario: Scenario, left: BTreeSet<OnNode>, now: Timestamp) {
        if left.is_empty() {
            return;
        }
        self.lock().recoveries.push(Recovery {
            scenario,
            since: now,
            left,
        });
    }

    /// All is well there again.
    pub(super) fn well(&self, place: &OnNode, now: Timestamp) {
        let mut inside = self.lock();
        let Inside {
            recoveries, sums, ..
        } = &mut *inside;
        recoveries.retain_mut(|recovery| {
            if recovery.left.remove(place) {
                self.recovered(sums, recovery, place, now);
            }
            !recovery.left.is_empty()
        });
    }

    /// Everything until `now`.
    pub(super) fn sums(&self, now: Timestamp) -> Sums {
        let mut inside = self.lock();
        for place in inside.serving.keys().cloned().collect::<Vec<_>>() {
            inside.settle(&place, now);
            inside.served_no_more(&place, now);
        }
        for place in inside.bare.keys().cloned().collect::<Vec<_>>() {
            self.clothed(&mut inside, &place, now);
        }
        for recovery in std::mem::take(&mut inside.recoveries) {
            for place in &recovery.left {
                self.recovered(&mut inside.sums, &recovery, place, now);
            }
        }
        inside.sums.clone()
    }

    fn recovered(&self, sums: &mut Sums, recovery: &Recovery, place: &OnNode, now: Timestamp) {
        let (scenario, since) = (recovery.scenario, recovery.since);
        let worst = sums.recoveries.entry(scenario).or_default();
        // Peace is no longer than the whole.
        if now.since(since) <= *worst {
            return;
        }
        let took = self.script.peace(scenario, place.0, since, now);
        if took > *worst {
            *worst = took;
            tracing::info!(node = place.0, lineage = %place.1, "{scenario} had held it up, {} s after its end at {since}", took.as_secs());
        }
    }

    /// It is bare no more.
    fn clothed(&self, inside: &mut Inside, place: &OnNode, now: Timestamp) {
        let Some(since) = inside.bare.remove(place) else {
            return;
        };
        if now.since(since) <= PLACEHOLDER_WITHIN {
            return;
        }
        // A fault of the CA's has its own time; this is not about orders.
        let peace = self.script.peace(Scenario::Outages, place.0, since, now);
        let longer = peace.saturating_sub(PLACEHOLDER_WITHIN);
        if !longer.is_zero() {
            tracing::info!(node = place.0, lineage = %place.1, "no certificate for {} s since {since}", peace.as_secs());
        }
        inside.sums.bare += longer;
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inside {
    fn settle(&mut self, place: &OnNode, now: Timestamp) {
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

    fn served_no_more(&mut self, place: &OnNode, now: Timestamp) {
        if let Some(since) = self.called_back.remove(place) {
            self.sums.called_back = self.sums.called_back.max(now.since(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Plan, START};
    use super::*;

    const NOW: Timestamp = START;

    fn place() -> OnNode {
        (0, Lineage::parse("example.com").unwrap())
    }

    fn tally() -> Tally {
        let plan = Plan {
            seed: 1,
            nodes: 2,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        Tally::new(Arc::new(Script::new(&plan)))
    }

    #[test]
    fn what_is_served_beyond_its_end_is_counted_to_the_second() {
        let (tally, second) = (tally(), Duration::from_secs(1));
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
        let (tally, minute) = (tally(), Duration::from_secs(60));
        let worst = |tally: &Tally| {
            let sums = tally.lock().sums.recoveries.clone();
            sums.get(&Scenario::Outages).copied().unwrap_or_default()
        };
        let other: OnNode = (1, place().1);
        let left = || BTreeSet::from([place(), other.clone()]);
        tally.fault_over(Scenario::Outages, left(), NOW);
        tally.well(&place(), NOW + minute);
        assert_eq!(worst(&tally), minute);
        tally.well(&other, NOW + minute * 3);
        assert_eq!(worst(&tally), minute * 3);
        tally.fault_over(Scenario::Outages, [other.clone()].into(), NOW + minute * 4);
        // A certificate that is not what was to be done is no recovery.
        tally.loaded(other, true, NOW + minute * 99, NOW + minute * 5);
        let sums = tally.sums(NOW + minute * 9);
        assert_eq!(sums.recoveries[&Scenario::Outages], minute * 5);
    }

    #[test]
    fn a_placeholder_that_stays_or_comes_back_is_counted() {
        let (tally, second) = (tally(), Duration::from_secs(1));
        tally.appears(0, NOW);
        tally.bared(place(), NOW);
        // As long as the CA has signed nothing, there is nothing else to serve.
        let signed = NOW + second * 90_000;
        tally.issued(&place().1, signed);
        let late = signed + PLACEHOLDER_WITHIN + second * 7;
        tally.loaded(place(), true, late + second * 99_999, late);
        assert_eq!(tally.lock().sums.bare, second * 7);
        tally.bared(place(), late + second * 10);
        tally.loaded(place(), true, late + second * 99_999, late + second * 13);
        assert_eq!(tally.sums(late + second * 20).bare, second * 10);
    }

    #[test]
    fn what_is_called_back_counts_until_it_is_replaced() {
        let (tally, second) = (tally(), Duration::from_secs(1));
        tally.loaded(place(), true, NOW + second * 999, NOW);
        tally.called_back(&[place()].into(), NOW + second * 100);
        tally.loaded(place(), true, NOW + second * 999, NOW + second * 150);
        assert_eq!(tally.sums(NOW + second * 500).called_back, second * 50);
    }
}
