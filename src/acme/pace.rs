//! How fast requests may follow one another. A CA that limits the requests of
//! an address refuses with 503 and holds up everybody behind that address, so
//! we keep below its limits instead of finding them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::exchange::Endpoint;
use crate::time::Clock;

/// Requests a second, and how many at once beyond them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    per_second: u32,
    burst: u32,
}

const fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst }
}

/// Let's Encrypt's limits per address (its rate-limits page of 2026-08-05), by
/// what we call an endpoint.
const LETS_ENCRYPT: &[(Endpoint, Rate)] = &[
    ("directory", rate(40, 40)),
    ("new-nonce", rate(20, 10)),
    ("new-account", rate(5, 15)),
    ("new-order", rate(300, 200)),
    ("renewal-info", rate(1000, 100)),
];
/// Those of everything else below its `/acme/`, together.
const THE_REST: (Endpoint, Rate) = ("acme", rate(250, 125));
/// In tenths: others may share our address.
const SHARE: u32 = 8;

/// The pace at each CA: a CA counts an address, so all clients of a process
/// share one.
#[derive(Debug, Default)]
pub struct Paces(Mutex<BTreeMap<String, Arc<Pace>>>);

impl Paces {
    /// That of the CA whose directory is `directory`.
    pub(super) fn at(&self, directory: &str) -> Arc<Pace> {
        let mut paces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pace = paces.entry(directory.to_owned());
        pace.or_insert_with(|| Arc::new(Pace::at(directory)))
            .clone()
    }
}

/// The pace at one CA.
#[derive(Debug, Default)]
pub(super) struct Pace {
    limited: bool,
    /// By endpoint: when its bucket is full again, by the clock's stopwatch.
    full_at: Mutex<BTreeMap<Endpoint, Duration>>,
}

impl Pace {
    /// That of the CA whose directory is `directory`; none where no limits are known.
    pub(super) fn at(directory: &str) -> Self {
        let limited = matches!(
            directory,
            "https://acme-v02.api.letsencrypt.org/directory"
                | "https://acme-staging-v02.api.letsencrypt.org/directory"
        );
        Self {
            limited,
            ..Self::default()
        }
    }

    /// Returns when a request for `endpoint` may be sent.
    pub(super) async fn wait(&self, endpoint: Endpoint, clock: &dyn Clock) {
        if !self.limited {
            return;
        }
        let pause = self.take(endpoint, clock.stopwatch());
        if !pause.is_zero() {
            clock.sleep(pause).await;
        }
    }

    /// Takes a place, and says how far off it is.
    fn take(&self, endpoint: Endpoint, now: Duration) -> Duration {
        let named = LETS_ENCRYPT.iter().find(|(name, _)| *name == endpoint);
        let (bucket, rate) = *named.unwrap_or(&THE_REST);
        let interval = Duration::from_secs(10) / (rate.per_second * SHARE);
        let held = interval * (rate.burst * SHARE / 10);
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.entry(bucket).or_default();
        *full_at = (*full_at).max(now) + interval;
        full_at.saturating_sub(now + held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    /// How long the last of `count` requests at once has to wait.
    fn last_of(pace: &Pace, count: u32, endpoint: Endpoint, now: Duration) -> Duration {
        let pauses = (0..count).map(|_| pace.take(endpoint, now));
        pauses.last().unwrap_or_default()
    }

    #[test]
    fn a_burst_passes_and_what_comes_after_it_keeps_the_rate() {
        let pace = Pace::at(PRODUCTION);
        assert_eq!(last_of(&pace, 8, "new-nonce", NOW), Duration::ZERO);
        // Sixteen a second from there on.
        assert_eq!(last_of(&pace, 16, "new-nonce", NOW), Duration::from_secs(1));
        let later = NOW + Duration::from_secs(10);
        assert_eq!(last_of(&pace, 8, "new-nonce", later), Duration::ZERO);
    }

    #[test]
    fn those_who_ask_one_ca_share_its_pace() {
        let paces = Paces::default();
        let one = last_of(&paces.at(PRODUCTION), 8, "new-nonce", NOW);
        let other = last_of(&paces.at(PRODUCTION), 16, "new-nonce", NOW);
        assert_eq!((one, other), (Duration::ZERO, Duration::from_secs(1)));
    }

    #[test]
    fn what_has_no_limit_of_its_own_shares_one() {
        let pace = Pace::at(PRODUCTION);
        assert_eq!(last_of(&pace, 100, "authorization", NOW), Duration::ZERO);
        assert_eq!(last_of(&pace, 200, "order", NOW), Duration::from_secs(1));
        assert_eq!(last_of(&pace, 160, "new-order", NOW), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_keeps_nobody_waiting_longer() {
        use crate::time::set::SetClock;
        use crate::time::{Timestamp, VirtualClock};
        let begun = Timestamp::from_seconds(1_800_000_000);
        let passes = Arc::new(VirtualClock::new(begun));
        let (clock, pace) = (SetClock::new(passes.clone()), Pace::at(PRODUCTION));
        for _ in 0..8 {
            pace.wait("new-nonce", &clock).await;
        }
        clock.by(-86_400);
        let ninth = async {
            pace.wait("new-nonce", &clock).await;
            passes.now().since(begun)
        };
        let wakes = async {
            tokio::task::yield_now().await;
            assert!(passes.step());
        };
        let (waited, ()) = tokio::join!(ninth, wakes);
        assert!(waited <= Duration::from_millis(100), "{waited:?}");
    }

    #[tokio::test]
    async fn only_where_limits_are_known_does_anybody_wait() {
        use crate::time::{Timestamp, VirtualClock};
        let clock = VirtualClock::new(Timestamp::from_seconds(1_800_000_000));
        let pace = Pace::at("https://ca.internal/directory");
        for _ in 0..10_000 {
            pace.wait("new-nonce", &clock).await;
        }
        let pace = Pace::at(PRODUCTION);
        for _ in 0..8 {
            pace.wait("new-nonce", &clock).await;
        }
        let ninth = pace.wait("new-nonce", &clock);
        let waits = tokio::select! {
            biased;
            () = ninth => false,
            () = std::future::ready(()) => true,
        };
        assert!(waits);
    }
}
