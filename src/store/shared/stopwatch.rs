//! The time that a store measures: how long ago something was, and pauses. The time of day, on
//! which the machines of a fleet do not agree, only warns.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::time::{Clock, SystemClock, Timestamp};

/// Reads the monotonic time of a clock.
#[derive(Clone)]
pub(in crate::store) struct Stopwatch(Arc<dyn Clock>);

impl Stopwatch {
    pub(super) fn of(clock: Arc<dyn Clock>) -> Self {
        Self(clock)
    }

    /// A reading, to be compared with later ones.
    pub(in crate::store) fn read(&self) -> Duration {
        self.0.stopwatch()
    }

    /// The time since that reading.
    pub(in crate::store) fn since(&self, reading: Duration) -> Duration {
        self.read().saturating_sub(reading)
    }

    /// This machine's time of day, to be compared with the store's.
    pub(in crate::store) fn now(&self) -> Timestamp {
        self.0.now()
    }

    pub(in crate::store) async fn sleep(&self, length: Duration) {
        self.0.sleep(length).await;
    }
}

impl Default for Stopwatch {
    fn default() -> Self {
        Self(Arc::new(SystemClock))
    }
}

impl fmt::Debug for Stopwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stopwatch")
    }
}
