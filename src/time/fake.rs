//! For tests: a wall clock that is set, beside a monotonic clock.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{Clock, Timestamp, VirtualClock};

/// A wall clock that shows another time than `passes`, the clock that time passes by.
pub(crate) struct SetClock {
    pub(crate) passes: Arc<VirtualClock>,
    start: Timestamp,
    /// Seconds ahead of `passes`.
    ahead: Mutex<i64>,
    /// The readings that are left before the clock is set, and by how many seconds.
    pending: Mutex<Option<(u32, i64)>>,
}

impl SetClock {
    /// A clock that shows the time of `passes` at first.
    pub(crate) fn new(passes: Arc<VirtualClock>) -> Self {
        Self {
            start: passes.now(),
            passes,
            ahead: Mutex::default(),
            pending: Mutex::default(),
        }
    }

    /// Sets the clock forward by `seconds`.
    pub(crate) fn by(&self, seconds: i64) {
        *self.ahead.lock().unwrap() += seconds;
    }

    /// Sets the clock forward by `seconds` after that many `readings`.
    pub(crate) fn by_after(&self, seconds: i64, readings: u32) {
        *self.pending.lock().unwrap() = Some((readings, seconds));
    }

    /// Whether the clock waits for readings before it is set.
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.lock().unwrap().is_some()
    }

    fn count_reading(&self) {
        let mut pending = self.pending.lock().unwrap();
        match pending.as_mut() {
            Some((0, seconds)) => self.by(*seconds),
            Some((readings, _)) => {
                *readings -= 1;
                return;
            }
            None => return,
        }
        *pending = None;
    }
}

#[async_trait]
impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        self.count_reading();
        let ahead = *self.ahead.lock().unwrap();
        let by = Duration::from_secs(ahead.unsigned_abs());
        match self.passes.now() {
            now if ahead < 0 => now - by,
            now => now + by,
        }
    }

    fn monotonic(&self) -> Option<Duration> {
        Some(self.passes.now().since(self.start))
    }

    async fn sleep(&self, length: Duration) {
        self.passes.sleep(length).await;
    }
}

/// The clock of a tokio runtime, whose time may be paused.
pub(crate) struct RuntimeClock(tokio::time::Instant);

impl RuntimeClock {
    pub(crate) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

#[async_trait]
impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(1_800_000_000) + self.0.elapsed()
    }

    fn monotonic(&self) -> Option<Duration> {
        Some(self.0.elapsed())
    }

    async fn sleep(&self, length: Duration) {
        tokio::time::sleep(length).await;
    }
}
