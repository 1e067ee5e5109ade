//! The wall clock as a value, and the one adapter that reads it.
//!
//! Decisions take a [`Timestamp`]; code that waits takes a [`Clock`]. No other code
//! in the crate reads the system's time, so a year can pass in a test within a
//! second.

#[cfg(test)]
pub(crate) mod fake;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Add, Sub};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::oneshot;

/// An instant of civil time: milliseconds since 1970-01-01T00:00:00Z.
///
/// Serialised as RFC 3339 in UTC, which has the years 0 to 9999; other instants are
/// clamped to that range. Arithmetic saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The range of RFC 3339. A CA's time offset can lead out of it, and a record that
/// cannot be stored would block a renewal.
const FIRST: Timestamp = Timestamp::from_seconds(-62_167_219_200);
const LAST: Timestamp = Timestamp(253_402_300_799_999);

impl Timestamp {
    /// From whole seconds since the epoch.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The time between the two, whichever is later.
    #[must_use]
    pub fn apart(self, other: Self) -> Duration {
        self.since(other).max(other.since(self))
    }

    /// As a user reads it at `now`: `2026-12-01T10:00:00Z (in 3 h)`.
    #[must_use]
    pub(crate) fn seen_at(self, now: Self) -> String {
        let (ahead, behind) = (self.since(now), now.since(self));
        if ahead.max(behind) < Duration::from_secs(1) {
            format!("{self} (now)")
        } else if ahead > behind {
            format!("{self} (in {})", length(ahead))
        } else {
            format!("{self} ({} ago)", length(behind))
        }
    }
}

/// A length as a user reads it, rounded: `45 s`, `45 min`, `3 h` or `41 days`.
pub(crate) fn length(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", (seconds + 30) / 60),
        7200..172_800 => format!("{} h", (seconds + 1800) / 3600),
        _ => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(milliseconds(by)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(milliseconds(by)))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(instant: OffsetDateTime) -> Self {
        let seconds = Self::from_seconds(instant.unix_timestamp());
        Self(seconds.0.saturating_add(instant.millisecond().into())).clamp(FIRST, LAST)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339, whole seconds, UTC.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp(self.seconds())
            .ok()
            .and_then(|instant| instant.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "{} s since 1970", self.seconds()),
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanoseconds = i128::from(self.clamp(&FIRST, &LAST).0) * 1_000_000;
        let instant = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds);
        let text = instant.map_err(ser::Error::custom)?.format(&Rfc3339);
        serializer.serialize_str(&text.map_err(ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        OffsetDateTime::parse(&text, &Rfc3339)
            .map(Self::from)
            .map_err(de::Error::custom)
    }
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// The current time, and sleep.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The current time. May jump in either direction between two calls.
    fn now(&self) -> Timestamp;

    /// The time of this machine's clock, where `now` is corrected for its skew.
    fn wall(&self) -> Timestamp {
        self.now()
    }

    /// The time since an arbitrary instant by a monotonic clock, if there is one. That
    /// clock may stop while the machine is suspended.
    fn monotonic(&self) -> Option<Duration> {
        None
    }

    /// A reading for measurements of time: the difference of two readings is a duration.
    /// It uses the monotonic clock if there is one.
    fn stopwatch(&self) -> Duration {
        let wall = || self.now().since(Timestamp::from_seconds(0));
        self.monotonic().unwrap_or_else(wall)
    }

    /// Returns after `length`, or earlier once `now()` is later by `length`. The argument is
    /// a duration and not an instant: after the clock is set back, an instant may be years
    /// away.
    async fn sleep(&self, length: Duration);
}

/// The machine's own clock.
#[derive(Debug, Default)]
pub struct SystemClock;

const MILLISECOND: Duration = Duration::from_millis(1);

/// No single sleep is longer, so that a suspend or a changed clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

#[async_trait]
impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the only reading of the system's time
    fn now(&self) -> Timestamp {
        Timestamp::from(OffsetDateTime::from(std::time::SystemTime::now()))
    }

    fn monotonic(&self) -> Option<Duration> {
        static FIRST_READING: OnceLock<Instant> = OnceLock::new();
        #[allow(clippy::disallowed_methods)] // the only reading of the monotonic clock
        let now = Instant::now();
        Some(now.duration_since(*FIRST_READING.get_or_init(|| now)))
    }

    async fn sleep(&self, length: Duration) {
        sleep_in_parts(length, || self.now(), tokio::time::sleep).await;
    }
}

/// Sleeps for `length` in pauses of at most a minute, or until `now` is later by `length`:
/// the pauses stop while a machine is suspended, its wall clock does not.
pub async fn sleep_in_parts<P: Future<Output = ()> + Send>(
    length: Duration,
    now: impl Fn() -> Timestamp + Send,
    pause: impl Fn(Duration) -> P + Send,
) {
    // `now` has whole milliseconds: round `length` up.
    let (instant, mut slept) = (now() + length + MILLISECOND, Duration::ZERO);
    loop {
        // A clock that was set back must not prolong the sleep.
        let left = instant.since(now()).min(length.saturating_sub(slept));
        let part = left.min(LONGEST_SLEEP);
        if part.is_zero() {
            return;
        }
        pause(part).await;
        slept += part;
    }
}

/// A clock for tests and simulations, which stands still until a caller moves it.
#[derive(Debug)]
pub struct VirtualClock {
    state: Mutex<VirtualState>,
}

#[derive(Debug)]
struct VirtualState {
    now: Timestamp,
    sleepers: BTreeMap<Timestamp, Vec<oneshot::Sender<()>>>,
}

impl VirtualClock {
    /// A clock that shows `now`.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            state: Mutex::new(VirtualState {
                now,
                sleepers: BTreeMap::new(),
            }),
        }
    }

    /// Sets the time to `instant` and wakes the sleepers whose time has come.
    pub fn set(&self, instant: Timestamp) {
        let mut state = self.lock();
        state.now = instant;
        let later = state
            .sleepers
            .split_off(&(instant + Duration::from_millis(1)));
        for sleeper in std::mem::replace(&mut state.sleepers, later)
            .into_values()
            .flatten()
        {
            // A cancelled sleeper has dropped its receiver.
            let _ = sleeper.send(());
        }
    }

    /// Moves the clock forward by `by`.
    pub fn advance(&self, by: Duration) {
        let to = self.now() + by;
        self.set(to);
    }

    /// Moves the clock to the first instant that a task sleeps until; false if no task
    /// sleeps.
    pub fn step(&self) -> bool {
        let first = {
            let mut state = self.lock();
            // Cancelled sleepers do not count.
            while let Some(mut earliest) = state.sleepers.first_entry() {
                earliest.get_mut().retain(|sleeper| !sleeper.is_closed());
                if !earliest.get().is_empty() {
                    break;
                }
                earliest.remove();
            }
            state.sleepers.keys().next().copied()
        };
        let Some(first) = first else { return false };
        self.set(first);
        true
    }

    /// Whether a task sleeps until a later instant.
    #[cfg(test)]
    pub(crate) fn has_sleeper(&self) -> bool {
        let state = self.lock();
        let mut sleepers = state.sleepers.values().flatten();
        sleepers.any(|sleeper| !sleeper.is_closed())
    }

    /// Returns once the clock reaches `instant`.
    pub async fn sleep_until(&self, instant: Timestamp) {
        let woken = {
            let mut state = self.lock();
            if state.now >= instant {
                return;
            }
            let (wake, woken) = oneshot::channel();
            state.sleepers.entry(instant).or_default().push(wake);
            woken
        };
        // An error means that the clock itself was dropped.
        let _ = woken.await;
    }

    fn lock(&self) -> MutexGuard<'_, VirtualState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        self.lock().now
    }

    async fn sleep(&self, length: Duration) {
        self.sleep_until(self.now() + length).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn timestamp_round_trips_as_rfc_3339() {
        let instant = Timestamp(1_764_000_000_123);
        assert_eq!(instant.to_string(), "2025-11-24T16:00:00Z");
        let json = serde_json::to_string(&instant).unwrap();
        assert_eq!(json, "\"2025-11-24T16:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), instant);
    }

    #[test]
    fn instant_is_shown_with_its_distance_from_now() {
        let now = Timestamp::from_seconds(1_764_000_000);
        let at = |seconds: i64| {
            let shown = Timestamp::from_seconds(now.seconds() + seconds).seen_at(now);
            shown.split_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(now.seen_at(now), "2025-11-24T16:00:00Z (now)");
        for (seconds, shown) in [
            (1, "(in 1 s)"),
            (119, "(in 119 s)"),
            (120, "(in 2 min)"),
            (3 * 3600 - 1, "(in 3 h)"),
            (-45 * 60, "(45 min ago)"),
            (-47 * 3600, "(47 h ago)"),
            (41 * 86_400 - 60, "(in 41 days)"),
            (-2 * 86_400, "(2 days ago)"),
        ] {
            assert_eq!(at(seconds), shown);
        }
    }

    #[test]
    fn timestamp_is_clamped_to_rfc_3339() {
        for (text, shown) in [
            ("0000-01-01T00:00:00+23:59", "0000-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59-23:59", "9999-12-31T23:59:59.999Z"),
        ] {
            let instant: Timestamp = serde_json::from_value(text.into()).unwrap();
            assert_eq!(serde_json::to_value(instant).unwrap(), shown);
            let again: Timestamp = serde_json::from_value(shown.into()).unwrap();
            assert_eq!(again, instant);
        }
        for (end, shown) in [(i64::MIN, "0000"), (i64::MAX, "9999")] {
            let text = serde_json::to_string(&Timestamp(end)).unwrap();
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn timestamp_arithmetic_saturates() {
        let last = Timestamp(i64::MAX);
        assert_eq!(last + Duration::MAX, last);
        assert_eq!(Timestamp(0).since(last), Duration::ZERO);
    }

    #[tokio::test]
    async fn sleep_ends_in_time_after_clock_is_set_back() {
        let (now, slept) = (Mutex::new(Timestamp(3_650_000_000)), Mutex::new(Vec::new()));
        let pause = |part: Duration| {
            slept.lock().unwrap().push(part.as_secs());
            // The first pause sets the clock back by weeks.
            let mut now = now.lock().unwrap();
            *now = Timestamp(now.0.rem_euclid(3_650_000_000)) + part;
            std::future::ready(())
        };
        sleep_in_parts(LONGEST_SLEEP * 2, || *now.lock().unwrap(), pause).await;
        assert_eq!(*slept.lock().unwrap(), [60, 60]);
    }

    #[tokio::test]
    async fn step_skips_cancelled_sleepers() {
        let clock = VirtualClock::new(Timestamp(0));
        assert!(!clock.step());
        let mut cancelled = clock.sleep(Duration::from_millis(1));
        let mut sleeper = clock.sleep(Duration::from_millis(2));
        assert!((&mut cancelled).now_or_never().is_none());
        assert!((&mut sleeper).now_or_never().is_none());
        drop(cancelled);
        assert!(clock.step());
        assert_eq!(clock.now(), Timestamp(2));
        sleeper.await;
        assert!(!clock.step());
    }

    #[tokio::test]
    async fn virtual_sleeper_wakes_at_its_instant_and_not_before() {
        let clock = std::sync::Arc::new(VirtualClock::new(Timestamp(0)));
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(Timestamp(5_000)).await }
        });
        tokio::task::yield_now().await;
        clock.set(Timestamp(4_999));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_millis(1));
        sleeper.await.unwrap();
    }
}
