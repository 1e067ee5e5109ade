//! For tests: a clock that somebody sets, beside one that nobody does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{Clock, Timestamp, VirtualClock};

/// Time passes by the one, and this shows another.
pub(crate) struct SetClock {
    pub(crate) passes: Arc<VirtualClock>,
    begun: Timestamp,
    /// Seconds.
    ahead: Mutex<i64>,
    /// How often it is read before it is set by how many seconds.
    trap: Mutex<Option<(u32, i64)>>,
}

impl SetClock {
    /// It shows what `passes` does.
    pub(crate) fn new(passes: Arc<VirtualClock>) -> Self {
        Self {
            begun: passes.now(),
            passes,
            ahead: Mutex::default(),
            trap: Mutex::default(),
        }
    }

    pub(crate) fn by(&self, seconds: i64) {
        *self.ahead.lock().unwrap() += seconds;
    }

    /// By so much, as soon as it was read so often from now on.
    pub(crate) fn by_after(&self, seconds: i64, readings: u32) {
        *self.trap.lock().unwrap() = Some((readings, seconds));
    }

    fn springs(&self) {
        let mut trap = self.trap.lock().unwrap();
        match trap.as_mut() {
            Some((0, seconds)) => self.by(*seconds),
            Some((readings, _)) => {
                *readings -= 1;
                return;
            }
            None => return,
        }
        *trap = None;
    }
}

#[async_trait]
impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        self.springs();
        let ahead = *self.ahead.lock().unwrap();
        let by = Duration::from_secs(ahead.unsigned_abs());
        match self.passes.now() {
            now if ahead < 0 => now - by,
            now => now + by,
        }
    }

    fn steady(&self) -> Option<Duration> {
        Some(self.passes.now().since(self.begun))
    }

    async fn sleep(&self, length: Duration) {
        self.passes.sleep(length).await;
    }
}
