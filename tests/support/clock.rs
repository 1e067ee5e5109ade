//! Adjustable clocks: those of a running process, and that of the CA in this process.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use certs::time::{Clock, SystemClock, Timestamp};
use tempfile::TempDir;

use super::{certs, text, until};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");

/// The clocks of every process that is started with them.
pub(crate) struct Clocks {
    directory: TempDir,
    numbers: File,
}

/// The numbers in the file, in the order of `clock.c`.
#[derive(Clone, Copy)]
enum Slot {
    Wall,
    Monotonic,
    WallReadings,
    MonotonicReadings,
}

impl Clocks {
    /// `None`, and a line that says why `what` was skipped.
    pub(crate) fn find(what: &str) -> Option<Self> {
        let made = Self::make();
        let made = made.and_then(|clocks| clocks.probe().map(|()| clocks));
        made.inspect_err(|why| {
            eprintln!("SKIPPED: {what}: the clock of a process cannot be adjusted: {why}")
        })
        .ok()
    }

    fn make() -> Result<Self, String> {
        let directory = tempfile::tempdir().unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        compiler.arg(directory.path().join("clock.so")).arg(SOURCE);
        let compiled = compiler.output().map_err(|error| format!("cc: {error}"))?;
        if !compiled.status.success() {
            return Err(format!("cc: {}", text(&compiled)));
        }
        let file = directory.path().join("numbers");
        std::fs::write(&file, [0; 32]).unwrap();
        let numbers = File::options().read(true).write(true).open(file).unwrap();
        Ok(Self { directory, numbers })
    }

    /// A static program ignores preloaded libraries.
    fn probe(&self) -> Result<(), String> {
        let directory = tempfile::tempdir().unwrap();
        let mut status = certs(directory.path());
        let status = self.preload(&mut status).arg("status").output().unwrap();
        if self.read(Slot::MonotonicReadings) == 0 {
            return Err(format!("nothing is preloaded: {}", text(&status)));
        }
        Ok(())
    }

    /// Gives these clocks to the process that `command` starts.
    pub(crate) fn preload<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command
            .env("LD_PRELOAD", self.directory.path().join("clock.so"))
            .env("CLOCK_NUMBERS", self.directory.path().join("numbers"))
    }

    /// Sets their wall clock `seconds` ahead of the right time.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.write(Slot::Wall, seconds);
    }

    /// Lets `time` pass on both clocks. The kernel does not know, so no timer fires: `wake` must give the
    /// process work. Returns once both clocks have been read.
    pub(crate) fn pass(&self, time: Duration, wake: impl FnOnce()) {
        self.pass_or_end(time, wake, || false);
    }

    /// The same for a process that may end first, as `has_ended` tells.
    pub(crate) fn pass_or_end(
        &self,
        time: Duration,
        wake: impl FnOnce(),
        mut has_ended: impl FnMut() -> bool,
    ) {
        let seconds = i64::try_from(time.as_secs()).unwrap();
        for number in [Slot::Wall, Slot::Monotonic] {
            self.write(number, self.read(number) + seconds);
        }
        let readings = [Slot::WallReadings, Slot::MonotonicReadings];
        let before = readings.map(|number| self.read(number));
        wake();
        until("a reading of the clocks", || {
            let mut pairs = readings.into_iter().zip(before);
            pairs.all(|(number, before)| self.read(number) > before) || has_ended()
        });
    }

    fn read(&self, number: Slot) -> i64 {
        let mut bytes = [0; 8];
        self.numbers
            .read_exact_at(&mut bytes, number as u64 * 8)
            .unwrap();
        i64::from_ne_bytes(bytes)
    }

    fn write(&self, number: Slot, value: i64) {
        let bytes = value.to_ne_bytes();
        self.numbers
            .write_all_at(&bytes, number as u64 * 8)
            .unwrap();
    }
}

/// A clock that is ahead of the right time by an adjustable number of seconds.
#[derive(Debug, Default)]
pub(crate) struct AdjustableClock(AtomicI64);

impl AdjustableClock {
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

#[async_trait]
impl Clock for AdjustableClock {
    fn now(&self) -> Timestamp {
        let seconds = self.0.load(Ordering::SeqCst);
        let by = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemClock.now();
        if seconds < 0 { now - by } else { now + by }
    }

    async fn sleep(&self, length: Duration) {
        SystemClock.sleep(length).await;
    }
}
