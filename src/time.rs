//! The wall clock as a value, and the one adapter that reads it.
//!
//! Decisions take a [`Timestamp`]; whoever needs to wait takes a [`Clock`].
//! Nothing else in the crate reads the system's time, so a year can pass in a
//! test within a second.

#[cfg(test)]
pub(crate) mod set;

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
/// Serialised as RFC 3339 in UTC, which has the years 0 to 9999: what lies
/// beyond is its first or last instant. Arithmetic saturates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// What RFC 3339 can say. A CA's offset leads out of it, and a record that
/// could not be stored for it would hold up a renewal.
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

    /// The time from `earlier` to `self`; zero when `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
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

/// What time it is, and waiting for it to be later.
#[async_trait]
pub trait Clock: Send + Sync {
    /// The current time. May jump in either direction between two calls.
    fn now(&self) -> Timestamp;

    /// What this machine's clock shows, where `now` is corrected for how wrong that is.
    fn wall(&self) -> Timestamp {
        self.now()
    }

    /// The time since some instant by a clock that nobody sets, where there is one. It may
    /// stand still while the machine is suspended.
    fn steady(&self) -> Option<Duration> {
        None
    }

    /// How long something takes is the difference of two readings: by the clock that nobody
    /// sets, where there is one.
    fn stopwatch(&self) -> Duration {
        let shown = || self.now().since(Timestamp::from_seconds(0));
        self.steady().unwrap_or_else(shown)
    }

    /// Returns after `length`, or earlier once `now()` is later by as much. It is given no
    /// instant, which may be of before the clock was set back, and then years away: nobody
    /// is held up longer.
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
    #[allow(clippy::disallowed_methods)] // the one place that may read it
    fn now(&self) -> Timestamp {
        Timestamp::from(OffsetDateTime::from(std::time::SystemTime::now()))
    }

    fn steady(&self) -> Option<Duration> {
        static BEGUN: OnceLock<Instant> = OnceLock::new();
        #[allow(clippy::disallowed_methods)] // and this one
        let now = Instant::now();
        Some(now.duration_since(*BEGUN.get_or_init(|| now)))
    }

    async fn sleep(&self, length: Duration) {
        sleep_in_parts(length, || self.now(), tokio::time::sleep).await;
    }
}

/// Sleeps for `length` by pauses of a minute at most, or until `now` shows that as much has
/// passed: so a suspended machine, whose pauses stand still, is noticed.
pub async fn sleep_in_parts<P: Future<Output = ()> + Send>(
    length: Duration,
    now: impl Fn() -> Timestamp + Send,
    pause: impl Fn(Duration) -> P + Send,
) {
    // Of what is no whole millisecond the rest counts, too.
    let (instant, mut slept) = (now() + length + MILLISECOND, Duration::ZERO);
    loop {
        // More is left of it only by a clock that was set back.
        let left = instant.since(now()).min(length.saturating_sub(slept));
        let part = left.min(LONGEST_SLEEP);
        if part.is_zero() {
            return;
        }
        pause(part).await;
        slept += part;
    }
}

/// A clock that stands still until it is moved by hand.
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

    /// Shows `instant` from here on and wakes whoever slept until then.
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
            // A sleeper that gave up has dropped its end.
            let _ = sleeper.send(());
        }
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        let to = self.now() + by;
        self.set(to);
    }

    /// Moves on to the first instant that somebody sleeps until; false when
    /// nobody sleeps.
    pub fn step(&self) -> bool {
        let first = {
            let mut state = self.lock();
            // Who gave up sleeping is no reason to stop there.
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

    /// Returns once it shows `instant`.
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
        // An error means that the clock itself is gone: nothing is left to wait for.
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
    fn shows_rfc_3339_and_reads_it_back() {
        let instant = Timestamp(1_764_000_000_123);
        assert_eq!(instant.to_string(), "2025-11-24T16:00:00Z");
        let json = serde_json::to_string(&instant).unwrap();
        assert_eq!(json, "\"2025-11-24T16:00:00.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), instant);
    }

    #[test]
    fn what_rfc_3339_cannot_say_is_its_first_or_last_instant() {
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
    fn arithmetic_saturates() {
        let last = Timestamp(i64::MAX);
        assert_eq!(last + Duration::MAX, last);
        assert_eq!(Timestamp(0).since(last), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_holds_no_sleeper_up() {
        let (now, slept) = (Mutex::new(Timestamp(3_650_000_000)), Mutex::new(Vec::new()));
        let pause = |part: Duration| {
            slept.lock().unwrap().push(part.as_secs());
            // By its first part it is ten years earlier.
            let mut now = now.lock().unwrap();
            *now = Timestamp(now.0.rem_euclid(3_650_000_000)) + part;
            std::future::ready(())
        };
        sleep_in_parts(LONGEST_SLEEP * 2, || *now.lock().unwrap(), pause).await;
        assert_eq!(*slept.lock().unwrap(), [60, 60]);
    }

    #[tokio::test]
    async fn a_step_ends_at_the_first_who_still_sleeps() {
        let clock = VirtualClock::new(Timestamp(0));
        assert!(!clock.step());
        let mut given_up = clock.sleep(Duration::from_millis(1));
        let mut sleeper = clock.sleep(Duration::from_millis(2));
        assert!((&mut given_up).now_or_never().is_none());
        assert!((&mut sleeper).now_or_never().is_none());
        drop(given_up);
        assert!(clock.step());
        assert_eq!(clock.now(), Timestamp(2));
        sleeper.await;
        assert!(!clock.step());
    }

    #[tokio::test]
    async fn a_virtual_sleeper_wakes_at_its_instant_and_not_before() {
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
