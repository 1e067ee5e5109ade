//! The counts of requests, failures and swaps under load. Instants come from the
//! monotonic clock, because swaps take milliseconds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::deploy::Delivery;
use crate::fingerprint::Fingerprint;
use crate::lineage::Lineage;
use crate::record::Generation;

/// A request that ends this soon after a deployment counts as near the swap.
const AROUND_A_SWAP: Duration = Duration::from_secs(1);
/// nginx's old workers may still accept a waiting connection; after this time the
/// old certificate is a failure.
const OLD_LEAF_UNTIL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RequestFailure {
    /// No TCP connection.
    Connect,
    /// Invalid certificate: no chain to the CA's root.
    Certificate,
    /// The handshake broke off.
    Handshake,
    /// A server closed a kept connection without a reload.
    Dropped,
    /// The request or its answer broke off.
    Request,
    /// A status other than 200.
    Status,
    /// No answer within ten seconds.
    Timeout,
    /// The old certificate, more than a second after the new one was seen.
    OldCertificate,
}

impl fmt::Display for RequestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One deployment under load.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    pub(super) lineage: Lineage,
    pub(super) generation: Generation,
    fingerprint: Fingerprint,
    begun: Instant,
    /// From the deployment to the first handshake with the new leaf.
    pub(super) seen_after: Option<Duration>,
    /// The slowest request that ended within a second of it.
    pub(super) slowest_request: Duration,
}

#[derive(Clone, Debug, Default)]
pub(super) struct LoadCounts {
    pub(super) requests: u64,
    pub(super) handshakes: u64,
    pub(super) idle_closes: u64,
    pub(super) failures: BTreeMap<RequestFailure, u64>,
    pub(super) first_failure: Option<String>,
    pub(super) slowest_request: Duration,
    pub(super) swaps: Vec<Swap>,
}

impl LoadCounts {
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Counts of all clients together.
#[derive(Debug, Default)]
pub(super) struct LoadTally(Mutex<LoadCounts>);

impl LoadTally {
    pub(super) fn counts(&self) -> LoadCounts {
        self.lock().clone()
    }

    /// A new pair is about to be deployed.
    pub(super) fn deploying(&self, delivery: &Delivery) {
        let mut counts = self.lock();
        let is_retried = |swap: &Swap| swap.fingerprint == delivery.fingerprint;
        // A retried deployment began with its first attempt.
        if counts.swaps.iter().any(is_retried) {
            return;
        }
        counts.swaps.push(Swap {
            lineage: delivery.lineage.clone(),
            generation: delivery.generation,
            fingerprint: delivery.fingerprint.clone(),
            begun: Instant::now(),
            seen_after: None,
            slowest_request: Duration::ZERO,
        });
    }

    /// A verified handshake that began at `begun` showed `leaf`.
    pub(super) fn handshake(&self, lineage: &Lineage, leaf: &Fingerprint, begun: Instant) {
        let mut counts = self.lock();
        counts.handshakes += 1;
        let all = counts.swaps.iter_mut();
        let mut of_lineage = all.filter(|swap| swap.lineage == *lineage);
        let shown = of_lineage.find(|swap| swap.fingerprint == *leaf);
        // Unknown: nginx already read it when it reloaded for another certificate.
        let Some(shown) = shown else { return };
        let after = shown.begun.elapsed();
        shown.seen_after.get_or_insert(after);
        let outdated = of_lineage.any(|newer| {
            let seen = newer.seen_after.map(|after| newer.begun + after);
            seen.is_some_and(|seen| begun > seen + OLD_LEAF_UNTIL)
        });
        if outdated {
            counts.fail(
                RequestFailure::OldCertificate,
                &format!("{lineage}: {leaf}"),
            );
        }
    }

    /// A request that began at `begun` was answered.
    pub(super) fn answered(&self, begun: Instant) {
        let took = begun.elapsed();
        let mut counts = self.lock();
        counts.requests += 1;
        counts.slowest_request = counts.slowest_request.max(took);
        for swap in &mut counts.swaps {
            if swap.begun.elapsed() < AROUND_A_SWAP {
                swap.slowest_request = swap.slowest_request.max(took);
            }
        }
    }

    /// The server closed a kept connection between two requests.
    pub(super) fn closed_while_idle(&self) {
        self.lock().idle_closes += 1;
    }

    pub(super) fn failed(&self, kind: RequestFailure, detail: &str) {
        self.lock().fail(kind, detail);
    }

    fn lock(&self) -> MutexGuard<'_, LoadCounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoadCounts {
    fn fail(&mut self, kind: RequestFailure, detail: &str) {
        *self.failures.entry(kind).or_default() += 1;
        self.first_failure
            .get_or_insert_with(|| format!("{kind}: {detail}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tally_times_swaps_and_counts_an_old_leaf_as_failure() {
        let tally = LoadTally::default();
        let lineage = Lineage::parse("example.com").unwrap();
        let (old, new) = (Fingerprint::of(b"old"), Fingerprint::of(b"new"));
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let delivery = |generation, leaf: &Fingerprint| Delivery {
            lineage: lineage.clone(),
            names: [].into(),
            generation,
            fingerprint: leaf.clone(),
            not_after: crate::time::Timestamp::from_seconds(0),
            live: "nowhere".into(),
            urgent: false,
            resolver: Default::default(),
        };
        tally.deploying(&delivery(Generation(1), &old));
        tally.handshake(&lineage, &old, Instant::now());
        wait(100).await;
        tally.deploying(&delivery(Generation(2), &new));
        let begun = Instant::now();
        wait(7).await;
        tally.answered(begun);
        tally.handshake(&lineage, &new, begun);
        tally.handshake(&lineage, &old, Instant::now());
        wait(900).await;
        tally.handshake(&lineage, &old, Instant::now());
        assert_eq!(tally.counts().failed(), 0);
        wait(200).await;
        tally.handshake(&lineage, &new, Instant::now());
        assert_eq!(tally.counts().failed(), 0);
        tally.handshake(&lineage, &old, Instant::now());
        let counts = tally.counts();
        assert_eq!(
            counts.failures,
            BTreeMap::from([(RequestFailure::OldCertificate, 1)])
        );
        let seven = Duration::from_millis(7);
        assert_eq!(counts.swaps[1].seen_after, Some(seven));
        assert_eq!(counts.swaps[1].slowest_request, seven);
        assert_eq!((counts.handshakes, counts.requests), (6, 1));
    }
}
