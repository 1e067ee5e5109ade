//! What happened under load, counted as it happens.
//!
//! The instants are the monotonic clock's: milliseconds are the point here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::certificate::Fingerprint;
use crate::identifier::Lineage;
use crate::record::Generation;

/// A request that ends this soon after a hand-over may have felt it.
const AROUND_A_SWAP: Duration = Duration::from_secs(1);
/// nginx's old workers may still take a connection that was waiting for them;
/// later than this nobody may be shown the old certificate.
const OLD_LEAF_UNTIL: Duration = Duration::from_secs(1);

/// The ways in which a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// No TCP connection.
    Connect,
    /// A certificate that does not verify up to the CA's root.
    Certificate,
    /// The handshake broke off.
    Handshake,
    /// A kept connection was closed by a server that had no reason to.
    Dropped,
    /// The request or its answer broke off.
    Request,
    /// Another status than 200.
    Status,
    /// No answer within ten seconds.
    Timeout,
    /// The old certificate, a second after the new one was seen.
    OldCertificate,
}

/// One hand-over.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    pub(super) lineage: Lineage,
    pub(super) generation: Generation,
    fingerprint: Fingerprint,
    begun: Instant,
    /// From the hand-over to the first handshake that showed the new leaf.
    pub(super) seen_after: Option<Duration>,
    /// The slowest request that ended within a second of it.
    pub(super) slowest_request: Duration,
}

/// The counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) handshakes: u64,
    pub(super) idle_closes: u64,
    pub(super) failures: BTreeMap<Kind, u64>,
    pub(super) first_failure: Option<String>,
    pub(super) slowest_request: Duration,
    pub(super) swaps: Vec<Swap>,
}

impl Counts {
    /// All failures.
    pub(super) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// Counts of all clients together.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<Counts>);

impl Tally {
    /// As they are now.
    pub(super) fn counts(&self) -> Counts {
        self.lock().clone()
    }

    /// A new pair is about to be handed over.
    pub(super) fn handed_over(
        &self,
        lineage: Lineage,
        generation: Generation,
        fingerprint: Fingerprint,
    ) {
        let mut counts = self.lock();
        // A hand-over that is tried again began with its first try.
        if counts
            .swaps
            .iter()
            .any(|swap| swap.fingerprint == fingerprint)
        {
            return;
        }
        counts.swaps.push(Swap {
            lineage,
            generation,
            fingerprint,
            begun: Instant::now(),
            seen_after: None,
            slowest_request: Duration::ZERO,
        });
    }

    /// A verified handshake that began at `begun` showed `leaf`.
    pub(super) fn shook_hands(&self, lineage: &Lineage, leaf: &Fingerprint, begun: Instant) {
        let mut counts = self.lock();
        counts.handshakes += 1;
        let mut of_lineage = counts
            .swaps
            .iter_mut()
            .filter(|swap| swap.lineage == *lineage);
        let shown = of_lineage.find(|swap| swap.fingerprint == *leaf);
        // Unknown: nginx has read it already, on behalf of another certificate.
        let Some(shown) = shown else { return };
        shown
            .seen_after
            .get_or_insert_with(|| shown.begun.elapsed());
        let outdated = of_lineage.any(|newer| {
            let seen = newer.seen_after.map(|after| newer.begun + after);
            seen.is_some_and(|seen| begun > seen + OLD_LEAF_UNTIL)
        });
        if outdated {
            counts.fail(Kind::OldCertificate, &format!("{lineage}: {leaf}"));
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

    /// A request failed.
    pub(super) fn failed(&self, kind: Kind, detail: &str) {
        self.lock().fail(kind, detail);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn fail(&mut self, kind: Kind, detail: &str) {
        *self.failures.entry(kind).or_default() += 1;
        self.first_failure
            .get_or_insert_with(|| format!("{kind:?}: {detail}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_swap_is_timed_and_the_old_leaf_is_a_failure_later_on() {
        let tally = Tally::default();
        let lineage = Lineage::parse("example.com").unwrap();
        let (old, new) = (Fingerprint::of(b"old"), Fingerprint::of(b"new"));
        let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
        tally.handed_over(lineage.clone(), Generation(1), old.clone());
        tally.shook_hands(&lineage, &old, Instant::now());
        wait(100).await;
        tally.handed_over(lineage.clone(), Generation(2), new.clone());
        let begun = Instant::now();
        wait(7).await;
        tally.answered(begun);
        tally.shook_hands(&lineage, &new, begun);
        tally.shook_hands(&lineage, &old, Instant::now());
        wait(900).await;
        tally.shook_hands(&lineage, &old, Instant::now());
        assert_eq!(tally.counts().failed(), 0);
        wait(200).await;
        tally.shook_hands(&lineage, &new, Instant::now());
        assert_eq!(tally.counts().failed(), 0);
        tally.shook_hands(&lineage, &old, Instant::now());
        let counts = tally.counts();
        assert_eq!(counts.failures, BTreeMap::from([(Kind::OldCertificate, 1)]));
        let seven = Duration::from_millis(7);
        assert_eq!(counts.swaps[1].seen_after, Some(seven));
        assert_eq!(counts.swaps[1].slowest_request, seven);
        assert_eq!((counts.handshakes, counts.requests), (6, 1));
    }
}
