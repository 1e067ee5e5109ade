//! Volumes that are really full or read-only, under a one-shot command and the sidecar. The message comes at
//! once, live files stay unchanged, and both recover without help. Also a sidecar with a failing disk, and
//! one out of descriptors.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::oracle::Oracle;
use crate::support::renewal::Renewal;
use crate::support::sidecar::{Sidecar, status};
use crate::support::strace::Strace;
use crate::support::{run, text, until, until_within};

const NAMES: [&str; 1] = ["example.com"];

/// A small file system in memory, unmounted with its test.
struct Volume(PathBuf);

impl Volume {
    /// `None`, and a line that says why `what` was skipped.
    fn mount(path: &Path, what: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=2750", "tmpfs"]);
        match mount.arg(path).output() {
            Ok(output) if output.status.success() => Some(Self(path.to_owned())),
            Ok(output) => skipped(what, text(&output).trim()),
            Err(error) => skipped(what, &error.to_string()),
        }
    }

    /// Takes every free byte, so that not even the smallest file fits.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.0.join("filler")).unwrap();
        while file.write(&[0; 4096]).is_ok() {}
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("filler")).unwrap();
    }

    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        let mount = Command::new("mount")
            .args(["-o", &options])
            .arg(&self.0)
            .output();
        let output = mount.unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A lazy unmount: a process that has not ended yet may use it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn skipped<T>(what: &str, why: &str) -> Option<T> {
    eprintln!("SKIPPED: {what}: a file system cannot be mounted: {why}");
    None
}

/// Renews while `disturb` is in effect, calls `mend`, and asserts that the next run recovers. Returns the
/// output of the failed run.
fn failed_renewal_recovers(
    ca: &EmbeddedCa,
    case: &str,
    disturb: impl Fn(),
    mend: impl Fn(),
) -> String {
    let mut renewal = Renewal::begin(ca, &NAMES, case.to_owned());
    disturb();
    let printed = run(&mut ca.issue(&[NAMES[0], "--force"]), 8);
    assert!(printed.contains("hint:"), "{case}: {printed}");
    renewal.is_whole();
    mend();
    let orders = renewal.finish();
    assert!(orders.placed <= 1, "{case}: {orders:?}: {printed}");
    printed
}

#[test]
fn issue_exits_8_on_full_or_read_only_volume_and_next_run_recovers() {
    for place in ["data", "out"] {
        let ca = EmbeddedCa::start();
        let what = format!("a full or read-only {place} directory");
        let Some(volume) = Volume::mount(&ca.path(place), &what) else {
            return;
        };
        run(&mut ca.issue(&NAMES), 0);
        let (fill, empty) = (|| volume.fill(), || volume.empty());
        let printed = failed_renewal_recovers(&ca, &format!("{place} is full"), fill, empty);
        assert!(printed.contains("No space left on device"), "{printed}");
        let (shut, open) = (|| volume.remount("ro"), || volume.remount("rw"));
        let printed = failed_renewal_recovers(&ca, &format!("{place} is read-only"), shut, open);
        assert!(printed.contains("Read-only file system"), "{printed}");
    }
}

/// The sidecar meets `disturb` just before it issues. It must log `words` within a minute, and be ready by
/// itself within two minutes after `mend`. If `disturb` is not possible, it has printed why.
#[allow(clippy::disallowed_methods)] // what is promised is real time
fn alarm_and_recovery<T>(
    ca: &EmbeddedCa,
    words: &str,
    disturb: impl FnOnce(&Sidecar) -> Option<T>,
    mend: impl FnOnce(T),
) {
    ca.script
        .add(Endpoint::NewOrder, Which::Nth(1), Fault::Held);
    let mut sidecar = Sidecar::start(ca, &NAMES);
    until("an order", || ca.script.count(Endpoint::NewOrder) == 1);
    // The placeholder, which servers may use by now.
    let live = ca.path("out/live").join(NAMES[0]);
    let pair =
        || ["fullchain.pem", "privkey.pem"].map(|name| std::fs::read(live.join(name)).unwrap());
    let before = pair();
    // Without descriptors the sidecar accepts no connection.
    let connection = sidecar.connection();
    let Some(disturbed) = disturb(&sidecar) else {
        return;
    };
    ca.script.clear();
    let (minute, begun) = (Duration::from_secs(60), Instant::now());
    // The alarm must name one of the sidecar's own files, not the unreachable CA.
    let directory = ca.path("").display().to_string();
    let parts = ["ERROR", words, &directory, "hint:"];
    let is_alarm = |line: &str| parts.iter().all(|part| line.contains(part));
    until_within("an alarm", minute, || sidecar.log().lines().any(is_alarm));
    let alarm = begun.elapsed();
    assert_eq!(status(&connection, "close"), 503, "{}", sidecar.log());
    assert!(pair() == before, "{words}: what was live has changed");
    mend(disturbed);
    let mended = Instant::now();
    until_within("recovery", 2 * minute, || sidecar.readiness() == 200);
    eprintln!(
        "{words}: reported after {alarm:.1?}, recovered after {:.1?}",
        mended.elapsed()
    );
    assert!(!sidecar.running.has_ended());
    // The URL of the first order may be lost.
    let orders = ca.script.committed(Endpoint::NewOrder);
    assert!(orders <= 2, "{words}: {orders} orders");
    assert_eq!(ca.script.committed(Endpoint::Finalize), 1);
    Oracle::new(&ca.path(""), &NAMES).settled().unwrap();
}

/// The same with a volume for `place`.
fn on_a_volume(place: &str, words: &str, disturb: impl Fn(&Volume), mend: impl Fn(&Volume)) {
    let ca = EmbeddedCa::start();
    let what = format!("the sidecar and its {place} directory: {words}");
    let Some(volume) = Volume::mount(&ca.path(place), &what) else {
        return;
    };
    let disturb = |_: &Sidecar| {
        disturb(&volume);
        Some(())
    };
    alarm_and_recovery(&ca, words, disturb, |()| mend(&volume));
}

#[test]
fn sidecar_reports_read_only_volume_and_recovers() {
    // The store cannot be remounted read-only while its lease is held: the kernel refuses.
    let words = "Read-only file system";
    on_a_volume("out", words, |it| it.remount("ro"), |it| it.remount("rw"));
}

#[test]
fn sidecar_reports_full_volume_and_recovers() {
    for place in ["data", "out"] {
        let words = "No space left on device";
        on_a_volume(place, words, Volume::fill, Volume::empty);
    }
}

#[test]
fn sidecar_reports_failing_disk_and_recovers() {
    // A flush of the store, and the link to the live pair, which only the output has.
    for calls in ["fsync,fdatasync", "?symlink,symlinkat"] {
        let Some(strace) = Strace::find("the sidecar and a broken disk") else {
            return;
        };
        let ca = EmbeddedCa::start();
        let fail = |sidecar: &Sidecar| strace.fail_from_now(&sidecar.running, calls, "EIO");
        alarm_and_recovery(&ca, "Input/output error", fail, Strace::detach);
    }
}

/// Sets the soft limit of open descriptors as the user of `process`, since root needs a capability for that.
fn allow_descriptors(process: Pid, soft: u64) {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).unwrap();
    let id = |name: &str| -> u32 {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let mut prlimit = Command::new("prlimit");
    prlimit.arg(format!("--pid={}", process.as_raw_nonzero()));
    prlimit.arg(format!("--nofile={soft}:"));
    if rustix::process::geteuid().is_root() {
        prlimit.uid(id("Uid:")).gid(id("Gid:"));
    }
    let done = prlimit.output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

/// Limits `process` to its present descriptors.
fn exhaust(process: Pid) {
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).unwrap();
    let names = open.map(|entry| entry.unwrap().file_name());
    let numbers = names.map(|name| name.to_str().unwrap().parse().unwrap());
    let open: BTreeSet<u64> = numbers.collect();
    // A new descriptor takes the lowest free number.
    let lowest = (0..).find(|number| !open.contains(number)).unwrap();
    allow_descriptors(process, lowest);
}

#[test]
fn sidecar_reports_exhausted_descriptors_and_recovers() {
    let ca = EmbeddedCa::start();
    let process = |sidecar: &Sidecar| Pid::from_raw(i32::try_from(sidecar.running.id()).unwrap());
    let exhaust = |sidecar: &Sidecar| {
        let process = process(sidecar)?;
        exhaust(process);
        Some(process)
    };
    let allow = |process| allow_descriptors(process, 1024);
    alarm_and_recovery(&ca, "Too many open files", exhaust, allow);
}
