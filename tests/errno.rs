//! File calls that fail because the disk is full, read-only or broken, or descriptors are exhausted. The live
//! files are unchanged, the message names what failed, and the next run recovers without a second order.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::renewal::Renewal;
use crate::support::strace::{Call, Point, Strace, is_about, points};
use crate::support::{by_depth, run, text};

const NAMES: [&str; 2] = ["example.com", "www.example.com"];

/// The errors that a call can fail with.
pub(crate) fn errors(call: &Call) -> &'static [&'static str] {
    let writes = ["O_CREAT", "O_RDWR", "O_WRONLY"];
    let writes = writes.iter().any(|flag| call.arguments.contains(flag));
    match call.name.as_str() {
        "open" | "openat" if writes => &["ENOSPC", "EROFS", "EIO", "EMFILE"],
        "open" | "openat" => &["EIO", "EMFILE"],
        "write" | "pwrite64" | "writev" | "fsync" | "fdatasync" => &["ENOSPC", "EIO"],
        _ => &["ENOSPC", "EROFS", "EIO"],
    }
}

const ERROR_TEXTS: [(&str, &str); 4] = [
    ("ENOSPC", "No space left on device"),
    ("EROFS", "Read-only file system"),
    ("EIO", "Input/output error"),
    ("EMFILE", "Too many open files"),
];

struct FailingCalls {
    ca: EmbeddedCa,
    strace: Strace,
    /// How many runs ended with each exit code.
    codes: BTreeMap<i32, u32>,
    /// Orders placed a second time because their URL could not be stored.
    second_orders: u32,
}

impl FailingCalls {
    fn start(strace: Strace) -> Self {
        let ca = EmbeddedCa::start();
        run(&mut ca.issue(&NAMES), 0);
        Self {
            ca,
            strace,
            codes: BTreeMap::new(),
            second_orders: 0,
        }
    }

    fn renew(&self) -> Command {
        self.ca.issue(&[&NAMES[..], &["--force"]].concat())
    }

    /// Each call about our files, with the errors it can fail with.
    fn points(&self) -> Vec<(Point, &'static [&'static str])> {
        let (data, output) = (self.ca.path("data"), self.ca.path("out"));
        let calls = self.strace.calls(&self.renew());
        let about = |call: &Call| is_about(call, &[&data, &output]) && call.name != "connect";
        let chosen = calls.iter().filter(|call| about(call));
        let errors = chosen.map(errors).collect::<Vec<_>>();
        let points = points(&calls, about);
        assert_eq!(points.len(), errors.len(), "another thread writes");
        assert!(points.len() > 80, "{} points are too few", points.len());
        points.into_iter().zip(errors).collect()
    }

    /// Runs one renewal in which `point` fails; with `+`, also all such calls after it.
    fn recovers(&mut self, point: &Point, error: &str, also: &str) {
        let case = format!("{error} at {point:?}{also}");
        let mut renewal = Renewal::begin(&self.ca, &NAMES, case.clone());
        let output = self.strace.fail_at(&self.renew(), point, error, also);
        let printed = text(&output);
        let code = output.status.code().unwrap_or(-1);
        *self.codes.entry(code).or_default() += 1;
        match code {
            0 => {}
            8 => reports_error(&case, error, &printed),
            // The root that the command names is outside the store.
            2 => assert!(
                printed.contains("root.pem: ") && printed.contains("hint: "),
                "{case}: {printed}"
            ),
            // The runtime made one more wake-up call than in the traced run, so its own descriptor failed
            // instead of the file.
            101 if printed.contains("failed to wake I/O driver") => {}
            _ => panic!("{case}: exit {code}: {printed}"),
        }
        renewal.is_whole();
        let orders = renewal.finish();
        self.second_orders += orders.placed.saturating_sub(1);
    }
}

pub(crate) fn reports_error(case: &str, error: &str, printed: &str) {
    let (_, words) = ERROR_TEXTS.iter().find(|(name, _)| *name == error).unwrap();
    // An error before the first certificate is processed names the store, or a path in it or beside it.
    let places = [NAMES[0], "store: ", "/data/", "/data.confirmed/"];
    let name = places.iter().any(|place| printed.contains(place));
    assert!(
        name && printed.contains(words) && printed.contains("hint:"),
        "{case}: {printed}"
    );
}

/// Fails every `stride`-th call, each with one of its errors or in turn with all of them.
fn failing(what: &str, also: &str, stride: usize, every_error: bool) {
    let Some(strace) = Strace::find_with_arguments(what) else {
        return;
    };
    let mut failing = FailingCalls::start(strace);
    let mut points = failing.points();
    // Without any write, no message could be printed and the runtime could not wake itself, which no real
    // disk causes. Full disks are tested in `volumes`.
    points.retain(|(point, _)| also.is_empty() || point.call != "write");
    for (at, (point, errors)) in points.iter().enumerate().step_by(stride) {
        let one = [errors[at / stride % errors.len()]];
        let errors = if every_error { errors } else { &one[..] };
        for error in errors {
            failing.recovers(point, error, also);
        }
    }
    let FailingCalls {
        codes,
        second_orders,
        ..
    } = failing;
    let missed = codes.get(&101).copied().unwrap_or_default();
    assert!(
        missed * 10 <= codes.values().sum(),
        "missed the files too often: {codes:?}"
    );
    // Most failures are reported; otherwise nothing was injected.
    let noticed = codes.get(&8).copied().unwrap_or_default();
    assert!(noticed * 2 > codes.values().sum(), "{what}: {codes:?}");
    // Once the fault is gone, the URL is stored with the failure.
    assert!(!also.is_empty() || second_orders == 0, "{second_orders}");
    eprintln!("{what}: exit codes {codes:?}, {second_orders} orders placed again");
}

#[test]
fn live_files_are_unchanged_after_one_failed_file_call_and_next_run_recovers() {
    let (stride, every_error) = by_depth((12, false), (1, false), (1, true));
    failing("file calls that fail once", "", stride, every_error);
}

#[test]
fn live_files_are_unchanged_when_file_calls_keep_failing() {
    let (stride, every_error) = by_depth((24, false), (4, false), (1, true));
    failing(
        "file calls that fail from some point on",
        "+",
        stride,
        every_error,
    );
}
