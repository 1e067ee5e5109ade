//! The operator's schedule, which only wakes the supervisor: due instants are timers of
//! the supervisor itself.

use std::sync::Arc;

use super::Handle;
use crate::manage::Maintenance;
use crate::manage::schedule::Schedule;
use crate::renew::policy::CLOCK_READING;
use crate::time::Clock;

/// Starts a pass over every certificate at each instant of `schedule`, and never returns.
pub(crate) async fn run(schedule: Schedule, handle: Handle, clock: Arc<dyn Clock>) {
    let mut last = clock.now();
    while let Some(next) = schedule.next_after(last) {
        let now = clock.now();
        if next <= now {
            handle.sweep().await;
            last = now;
        } else {
            // After the clock is set back, the instants from there on come again.
            last = last.min(now);
            clock.sleep(next.since(now).min(CLOCK_READING)).await;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::handle::Command;
    use super::*;
    use crate::time::fake::SetClock;
    use crate::time::{Timestamp, VirtualClock};

    /// The instants of the passes in the next `minutes`, in seconds.
    async fn sweeps(schedule: &str, minutes: u32, meanwhile: impl Fn(&SetClock, u32)) -> Vec<i64> {
        let passes = Arc::new(VirtualClock::new(Timestamp::from_seconds(0)));
        let clock = Arc::new(SetClock::new(passes.clone()));
        let (handle, mut commands) = Handle::new();
        tokio::spawn(run(schedule.parse().unwrap(), handle, clock.clone()));
        let mut sweeps = Vec::new();
        for minute in 0..minutes {
            meanwhile(&clock, minute);
            for _ in 0..60 {
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
                while let Ok(Command::Sweep) = commands.try_recv() {
                    sweeps.push(clock.now().seconds());
                }
                passes.advance(Duration::from_secs(1));
            }
        }
        sweeps
    }

    #[tokio::test]
    async fn schedule_starts_a_pass_at_each_instant() {
        let every = sweeps("*/20 * * * *", 61, |_, _| ()).await;
        assert_eq!(every, [1200, 2400, 3600]);
        assert_eq!(sweeps("7 * * * * *", 2, |_, _| ()).await, [7, 67]);
    }

    #[tokio::test]
    async fn schedule_follows_a_clock_that_is_set() {
        // Forward over two instants: one pass, within a minute.
        let forward = |clock: &SetClock, minute| clock.by(if minute == 5 { 3000 } else { 0 });
        assert_eq!(sweeps("*/20 * * * *", 16, forward).await, [3300, 3600]);
        let back = |clock: &SetClock, minute| clock.by(if minute == 25 { -1200 } else { 0 });
        assert_eq!(sweeps("*/20 * * * *", 42, back).await, [1200, 1200]);
    }
}
