//! The limiter of requests per second. A CA refuses too many requests of one
//! address with 503, for every client behind that address; so each request waits
//! for a token. It never counts orders or names: [`crate::renew`] does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::time::Clock;

/// The purpose of a request, as counted and limited.
pub(super) type RateGroup = &'static str;

/// Let's Encrypt's limits per address (its rate-limits page of 2026-08-05): the
/// endpoint, requests a second, and the size of the bucket.
const LETS_ENCRYPT: &[(RateGroup, u32, u32)] = &[
    ("directory", 40, 40),
    ("new-nonce", 20, 10),
    ("new-account", 5, 15),
    ("new-order", 300, 200),
    ("revoke-cert", 10, 100),
    ("renewal-info", 1000, 100),
];
/// The shared limit of all other requests below `/acme/`.
const OTHERS: (RateGroup, u32, u32) = ("acme", 250, 125);
/// The tenths of a limit that we use: other clients may share our address.
const SHARE: u32 = 8;

/// One limiter per CA: a CA counts by address, so all clients of a process share
/// it.
#[derive(Debug, Default)]
pub struct Limiters(Mutex<BTreeMap<String, Arc<Limiter>>>);

impl Limiters {
    /// The limiter of the CA with this directory URL.
    pub(super) fn at(&self, directory: &str) -> Arc<Limiter> {
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limiter = limiters.entry(directory.to_owned());
        let new = || Arc::new(Limiter::at(directory));
        limiter.or_insert_with(new).clone()
    }
}

/// The limiter of one CA: a token bucket per endpoint.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    limited: bool,
    /// By endpoint: when the bucket is full again, by the clock's stopwatch.
    full_at: Mutex<BTreeMap<RateGroup, Duration>>,
}

impl Limiter {
    /// The limiter of the CA with this directory URL; without known limits it never waits.
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

    /// Waits until a request for `endpoint` may be sent.
    pub(super) async fn wait(&self, endpoint: RateGroup, clock: &dyn Clock) {
        if self.limited {
            let pause = self.reserve(endpoint, clock.stopwatch());
            if !pause.is_zero() {
                clock.sleep(pause).await;
            }
        }
    }

    /// Reserves a token and returns how long to wait for it.
    fn reserve(&self, endpoint: RateGroup, now: Duration) -> Duration {
        let named = LETS_ENCRYPT.iter().find(|(name, ..)| *name == endpoint);
        let (bucket, per_second, burst) = *named.unwrap_or(&OTHERS);
        let interval = Duration::from_secs(10) / (per_second * SHARE);
        let capacity = interval * (burst * SHARE / 10);
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        let full_at = buckets.entry(bucket).or_default();
        *full_at = (*full_at).max(now) + interval;
        full_at.saturating_sub(now + capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRODUCTION: &str = "https://acme-v02.api.letsencrypt.org/directory";
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    /// The wait of the last of `count` simultaneous requests.
    fn last_of(limiter: &Limiter, count: u32, endpoint: RateGroup, now: Duration) -> Duration {
        let pauses = (0..count).map(|_| limiter.reserve(endpoint, now));
        pauses.last().unwrap_or_default()
    }

    #[test]
    fn limiter_delays_requests_after_the_burst() {
        let limiter = Limiter::at(PRODUCTION);
        assert_eq!(last_of(&limiter, 8, "new-nonce", NOW), Duration::ZERO);
        // Sixteen a second from there on.
        assert_eq!(
            last_of(&limiter, 16, "new-nonce", NOW),
            Duration::from_secs(1)
        );
        let later = NOW + Duration::from_secs(10);
        assert_eq!(last_of(&limiter, 8, "new-nonce", later), Duration::ZERO);
    }

    #[test]
    fn limiter_is_shared_by_clients_of_one_ca() {
        let limiters = Limiters::default();
        let first = last_of(&limiters.at(PRODUCTION), 8, "new-nonce", NOW);
        let second = last_of(&limiters.at(PRODUCTION), 16, "new-nonce", NOW);
        assert_eq!((first, second), (Duration::ZERO, Duration::from_secs(1)));
    }

    #[test]
    fn endpoints_without_their_own_limit_share_one() {
        let limiter = Limiter::at(PRODUCTION);
        assert_eq!(last_of(&limiter, 100, "authorization", NOW), Duration::ZERO);
        assert_eq!(last_of(&limiter, 200, "order", NOW), Duration::from_secs(1));
        assert_eq!(last_of(&limiter, 160, "new-order", NOW), Duration::ZERO);
    }

    #[tokio::test]
    async fn wait_is_not_longer_after_clock_is_set_back() {
        use crate::time::fake::SetClock;
        use crate::time::{Timestamp, VirtualClock};
        let begun = Timestamp::from_seconds(1_800_000_000);
        let passes = Arc::new(VirtualClock::new(begun));
        let (clock, limiter) = (SetClock::new(passes.clone()), Limiter::at(PRODUCTION));
        for _ in 0..8 {
            limiter.wait("new-nonce", &clock).await;
        }
        clock.by(-86_400);
        let ninth = async {
            limiter.wait("new-nonce", &clock).await;
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
    async fn limiter_waits_only_for_a_ca_with_known_limits() {
        use crate::time::{Timestamp, VirtualClock};
        let clock = VirtualClock::new(Timestamp::from_seconds(1_800_000_000));
        let limiter = Limiter::at("https://ca.internal/directory");
        for _ in 0..10_000 {
            limiter.wait("new-nonce", &clock).await;
        }
        let limiter = Limiter::at(PRODUCTION);
        for _ in 0..8 {
            limiter.wait("new-nonce", &clock).await;
        }
        let ninth = limiter.wait("new-nonce", &clock);
        let waits = tokio::select! {
            biased;
            () = ninth => false,
            () = std::future::ready(()) => true,
        };
        assert!(waits);
    }
}
