//! The counts of what the fleet's clients saw: the time with an expired, revoked,
//! mismatched or missing certificate, and the recovery time after each fault. It
//! never reads the program's own status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::script::Script;
use super::{MINUTE, SECOND, Scenario, lock};
use crate::lineage::Lineage;
use crate::time::Timestamp;

/// A certificate as one proxy serves it.
pub(super) type ProxySlot = (usize, Lineage);

/// The allowed undisturbed time with a placeholder after the CA has signed the
/// first certificate: a node checks for another node's certificate after an hour,
/// and then recovers as after a fault.
const PLACEHOLDER_WITHIN: Duration = MINUTE.saturating_mul(90);

pub(super) struct FleetTally {
    pub(super) script: Arc<Script>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Since when, the last valid second, and whether key and names match.
    serving: BTreeMap<ProxySlot, (Timestamp, Timestamp, bool)>,
    /// Since when an issued certificate is not served there.
    bare: BTreeMap<ProxySlot, Timestamp>,
    present: BTreeSet<usize>,
    /// The lineages with a signed certificate.
    issued: BTreeSet<Lineage>,
    /// Since when a revoked certificate is served there.
    revoked: BTreeMap<ProxySlot, Timestamp>,
    sums: Sums,
    recoveries: Vec<Recovery>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) expired: Duration,
    pub(super) mismatched: Duration,
    /// No certificate, or a placeholder, beyond the allowed time.
    pub(super) bare: Duration,
    pub(super) reloads: u64,
    /// The longest time that one was served after its revocation.
    pub(super) revoked: Duration,
    /// The longest undisturbed time of an unfinished certificate after a fault.
    pub(super) recoveries: BTreeMap<Scenario, Duration>,
}

/// A fault, its end, and the certificates that are unfinished since then.
type Recovery = (Scenario, Timestamp, BTreeSet<ProxySlot>);

impl FleetTally {
    pub(super) fn new(script: Arc<Script>) -> Self {
        Self {
            script,
            inner: Mutex::default(),
        }
    }

    pub(super) fn reload(&self) {
        self.lock().sums.reloads += 1;
    }

    pub(super) fn add_machine(&self, node: usize, now: Timestamp) {
        let mut inner = self.lock();
        inner.present.insert(node);
        let issued: Vec<Lineage> = inner.issued.iter().cloned().collect();
        for lineage in issued {
            inner.bare.insert((node, lineage), now);
        }
    }

    /// Removes a machine; its unfinished certificates no longer count.
    pub(super) fn remove_machine(&self, node: usize, now: Timestamp) {
        let mut inner = self.lock();
        inner.present.remove(&node);
        self.settle_all(&mut inner, |(at, _)| *at == node, now);
        inner.recoveries.retain_mut(|(_, _, left)| {
            left.retain(|(at, _)| *at != node);
            !left.is_empty()
        });
    }

    /// The CA has signed the first certificate of `lineage`.
    pub(super) fn issued(&self, lineage: &Lineage, now: Timestamp) {
        let mut inner = self.lock();
        if !inner.issued.insert(lineage.clone()) {
            return;
        }
        let nodes: Vec<usize> = inner.present.iter().copied().collect();
        for node in nodes {
            inner.bare.insert((node, lineage.clone()), now);
        }
    }

    /// A proxy serves a new certificate from `now` on.
    pub(super) fn loaded(&self, slot: ProxySlot, matches: bool, until: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        inner.settle(&slot, now);
        self.end_bare(&mut inner, &slot, now);
        inner.serving.insert(slot, (now, until, matches));
    }

    /// A proxy serves a placeholder from `now` on. It counts only after a
    /// certificate was served there.
    pub(super) fn loaded_placeholder(&self, slot: ProxySlot, now: Timestamp) {
        let mut inner = self.lock();
        if inner.serving.contains_key(&slot) {
            inner.settle(&slot, now);
            // No allowed time: a placeholder may come only before a certificate.
            let unexcused = now - PLACEHOLDER_WITHIN;
            inner.bare.insert(slot, unexcused);
        }
    }

    /// The CA revokes the certificates that these slots serve.
    pub(super) fn revoked(&self, slots: &BTreeSet<ProxySlot>, now: Timestamp) {
        let mut inner = self.lock();
        for slot in slots {
            inner.revoked.entry(slot.clone()).or_insert(now);
        }
    }

    /// A fault ends with these unfinished certificates.
    pub(super) fn end_fault(&self, scenario: Scenario, left: BTreeSet<ProxySlot>, now: Timestamp) {
        if !left.is_empty() {
            self.lock().recoveries.push((scenario, now, left));
        }
    }

    /// The slot serves the newest certificate again.
    pub(super) fn well(&self, slot: &ProxySlot, now: Timestamp) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.recoveries.retain_mut(|(scenario, since, left)| {
            if left.remove(slot) {
                self.recovered(&mut inner.sums, (*scenario, *since), slot, now);
            }
            !left.is_empty()
        });
    }

    pub(super) fn sums(&self, now: Timestamp) -> Sums {
        let mut inner = self.lock();
        self.settle_all(&mut inner, |_| true, now);
        for (scenario, since, left) in std::mem::take(&mut inner.recoveries) {
            for slot in &left {
                self.recovered(&mut inner.sums, (scenario, since), slot, now);
            }
        }
        inner.sums.clone()
    }

    /// Ends what is counted at the slots of `of`.
    fn settle_all(&self, inner: &mut Inner, of: impl Fn(&ProxySlot) -> bool, now: Timestamp) {
        let all = inner.serving.keys().chain(inner.bare.keys());
        let slots: BTreeSet<_> = all.filter(|slot| of(slot)).cloned().collect();
        for slot in slots {
            inner.settle(&slot, now);
            self.end_bare(inner, &slot, now);
        }
    }

    fn recovered(
        &self,
        sums: &mut Sums,
        (scenario, since): (Scenario, Timestamp),
        slot: &ProxySlot,
        now: Timestamp,
    ) {
        let worst = sums.recoveries.entry(scenario).or_default();
        // The undisturbed time is at most the whole.
        if now.since(since) <= *worst {
            return;
        }
        let took = self.script.undisturbed(scenario, slot.0, since, now);
        if took > *worst {
            *worst = took;
            tracing::info!(node = slot.0, lineage = %slot.1, "recovered from {scenario} {} s after its end at {since}", took.as_secs());
        }
    }

    /// Ends the time without a certificate at `slot`.
    fn end_bare(&self, inner: &mut Inner, slot: &ProxySlot, now: Timestamp) {
        let bare = inner.bare.remove(slot);
        let Some(since) = bare.filter(|since| now.since(*since) > PLACEHOLDER_WITHIN) else {
            return;
        };
        // The pauses of CA faults apply as after an outage.
        let after = Scenario::Outages;
        let undisturbed = self.script.undisturbed(after, slot.0, since, now);
        let longer = undisturbed.saturating_sub(PLACEHOLDER_WITHIN);
        if !longer.is_zero() {
            tracing::info!(node = slot.0, lineage = %slot.1, "no certificate for {} s since {since}", undisturbed.as_secs());
        }
        inner.sums.bare += longer;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Inner {
    /// Ends the time with the certificate at `slot`.
    fn settle(&mut self, slot: &ProxySlot, now: Timestamp) {
        if let Some(since) = self.revoked.remove(slot) {
            self.sums.revoked = self.sums.revoked.max(now.since(since));
        }
        if let Some((since, until, matches)) = self.serving.remove(slot) {
            // The last valid second is valid to its end.
            let over = until + SECOND;
            self.sums.expired += now.since(over.max(since));
            if !matches {
                self.sums.mismatched += now.since(since);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{START, SimulationPlan};
    use super::*;

    const NOW: Timestamp = START;

    fn slot() -> ProxySlot {
        (0, Lineage::parse("example.com").unwrap())
    }

    fn tally() -> FleetTally {
        let plan = SimulationPlan {
            seed: 1,
            nodes: 2,
            certificates: 1,
            days: 1,
            scenarios: vec![],
        };
        FleetTally::new(Arc::new(Script::new(&plan)))
    }

    #[test]
    fn expired_time_is_counted_to_the_second() {
        let (tally, second) = (tally(), Duration::from_secs(1));
        tally.loaded(slot(), true, NOW + second * 9, NOW);
        tally.loaded(slot(), true, NOW + second * 99, NOW + second * 10);
        assert_eq!(tally.lock().sums.expired, Duration::ZERO);
        tally.loaded(slot(), true, NOW + second * 999, NOW + second * 103);
        assert_eq!(tally.lock().sums.expired, second * 3);
        // A certificate that is loaded expired counts from the load.
        tally.loaded(slot(), false, NOW, NOW + second * 200);
        let sums = tally.sums(NOW + second * 207);
        assert_eq!((sums.expired, sums.mismatched), (second * 10, second * 7));
    }

    #[test]
    fn recovery_ends_with_the_last_unfinished_certificate() {
        let (tally, minute) = (tally(), Duration::from_secs(60));
        let worst = |tally: &FleetTally| {
            let sums = tally.lock().sums.recoveries.clone();
            sums.get(&Scenario::Outages).copied().unwrap_or_default()
        };
        let other: ProxySlot = (1, slot().1);
        let left = || BTreeSet::from([slot(), other.clone()]);
        tally.end_fault(Scenario::Outages, left(), NOW);
        tally.well(&slot(), NOW + minute);
        assert_eq!(worst(&tally), minute);
        tally.well(&other, NOW + minute * 3);
        assert_eq!(worst(&tally), minute * 3);
        tally.end_fault(Scenario::Outages, [other.clone()].into(), NOW + minute * 4);
        // A load that is not the newest certificate does not end a recovery.
        tally.loaded(other, true, NOW + minute * 99, NOW + minute * 5);
        let sums = tally.sums(NOW + minute * 9);
        assert_eq!(sums.recoveries[&Scenario::Outages], minute * 5);
    }

    #[test]
    fn placeholder_is_counted_when_it_stays_or_returns() {
        let (tally, second) = (tally(), Duration::from_secs(1));
        tally.add_machine(0, NOW);
        tally.loaded_placeholder(slot(), NOW);
        // Before the first certificate is issued, a placeholder does not count.
        let signed = NOW + second * 90_000;
        tally.issued(&slot().1, signed);
        let late = signed + PLACEHOLDER_WITHIN + second * 7;
        tally.loaded(slot(), true, late + second * 99_999, late);
        assert_eq!(tally.lock().sums.bare, second * 7);
        tally.loaded_placeholder(slot(), late + second * 10);
        tally.loaded(slot(), true, late + second * 99_999, late + second * 13);
        assert_eq!(tally.sums(late + second * 20).bare, second * 10);
    }

    #[test]
    fn revoked_time_counts_until_replacement() {
        let (tally, second) = (tally(), Duration::from_secs(1));
        tally.loaded(slot(), true, NOW + second * 999, NOW);
        tally.revoked(&[slot()].into(), NOW + second * 100);
        tally.loaded(slot(), true, NOW + second * 999, NOW + second * 150);
        assert_eq!(tally.sums(NOW + second * 500).revoked, second * 50);
    }
}
