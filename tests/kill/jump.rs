//! `kill -9` of `certs run` while it asks its CA for the time after a clock jump, and a failure of each file
//! call in that time. Nothing is due: it orders nothing, the live pair stays, and an unreachable CA is asked
//! again.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use certs::record::Generation;
use certs::store::Store;
use certs::store::fs::FileStore;

use super::{KillTally, NAMES};
use crate::clocks::alarms;
use crate::errno::errors;
use crate::support::clock::Clocks;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Fault, Which};
use crate::support::renewal::Renewal;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::strace::aimed::{PathPoint, about};
use crate::support::strace::{Call, Point, Strace, is_about, points};
use crate::support::{by_depth, certs, free_port, run, until};

/// The only generation in these tests.
const GENERATION: Generation = Generation(1);

/// The directories of a sidecar.
const TREES: [&str; 2] = ["data", "out"];

/// Longer than the minute between two looks at the clock.
const A_MINUTE: Duration = Duration::from_secs(61);

/// A clock jump under an idle sidecar.
#[derive(Clone, Copy, Debug)]
struct Jump {
    /// In seconds.
    ahead: i64,
    /// Whether the CA is unreachable from then on.
    is_unreachable: bool,
}

const JUMPS: [Jump; 3] = [
    Jump {
        ahead: 3600,
        is_unreachable: false,
    },
    Jump {
        ahead: -3600,
        is_unreachable: false,
    },
    Jump {
        ahead: 3600,
        is_unreachable: true,
    },
];

struct JumpKills {
    ca: EmbeddedCa,
    admin: u16,
    clocks: Clocks,
    strace: Strace,
}

impl JumpKills {
    /// `None`, and a line, if `what` is not possible here.
    fn start(what: &str) -> Option<Self> {
        let (strace, clocks) = (Strace::find_with_arguments(what)?, Clocks::find(what)?);
        let ca = EmbeddedCa::start();
        run(&mut ca.issue(&NAMES), 0);
        for tree in TREES {
            copy(&ca.path(tree), &ca.path(&format!("{tree}.kept")));
        }
        Some(Self {
            ca,
            admin: free_port(),
            clocks,
            strace,
        })
    }

    /// An idle sidecar with no request left to send.
    fn idle_sidecar(&self) -> Sidecar {
        let sidecar = self.ready_sidecar();
        sidecar.settle(&self.clocks, &self.ca);
        sidecar
    }

    /// A sidecar that is ready, with the right time.
    fn ready_sidecar(&self) -> Sidecar {
        self.clocks.set_ahead(0);
        let mut command = configured(&self.ca, &NAMES, self.admin);
        let command = self.clocks.preload(&mut command);
        let sidecar = Sidecar::start_as(&self.ca, command, self.admin);
        until("ready", || sidecar.readiness() == 200);
        sidecar
    }

    /// The clock jumps and a minute passes, until `sidecar` has asked or ended, or `is_over`.
    fn jumps(&self, sidecar: &mut Sidecar, jump: Jump, is_over: impl Fn() -> bool) {
        let asked = sidecar.time_requests();
        if jump.is_unreachable {
            self.ca.script.add(None, Which::Every, Fault::DropBefore);
        }
        self.clocks.set_ahead(jump.ahead);
        let mut woken = vec![self.a_minute_passes(sidecar)];
        let (case, mut looks) = (format!("{jump:?}"), 0);
        until(&case, || {
            looks += 1;
            // A task may read the clock just before the jump and sleep just after, so another minute passes.
            if looks % 50 == 0 {
                woken.push(self.a_minute_passes(sidecar));
            }
            sidecar.running.has_ended() || is_over() || self.has_asked(sidecar, jump, asked)
        });
        self.ca.script.clear();
    }

    /// Connects without a request, since a reply would add calls.
    fn a_minute_passes(&self, sidecar: &mut Sidecar) -> Option<TcpStream> {
        let mut connected = None;
        let wake = || connected = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).ok();
        let has_ended = || sidecar.running.has_ended();
        self.clocks.pass_or_end(A_MINUTE, wake, has_ended);
        connected
    }

    /// Whether there are more questions than `asked`.
    fn has_asked(&self, sidecar: &Sidecar, jump: Jump, asked: usize) -> bool {
        match jump.is_unreachable {
            true => self.is_outage_stored(),
            false => sidecar.time_requests() > asked,
        }
    }

    fn is_outage_stored(&self) -> bool {
        let (store, ca) = (self.store(), self.ca.server.directory_url());
        let known = runtime().block_on(store.ca_state(&ca));
        known.is_ok_and(|(state, _)| state.outage.is_some())
    }

    /// Each case begins with the same files, since they decide whether a window is requested too.
    fn restore(&self) {
        for tree in TREES {
            std::fs::remove_dir_all(self.ca.path(tree)).unwrap();
            copy(&self.ca.path(&format!("{tree}.kept")), &self.ca.path(tree));
        }
    }

    fn store(&self) -> FileStore {
        FileStore::existing(self.ca.path("data")).unwrap().unwrap()
    }

    /// The calls from the jump until the question is asked, with the pid; `None` without permission to trace.
    fn calls(&self, jump: Jump) -> Option<(u32, Vec<Call>)> {
        self.restore();
        let (file, mut sidecar) = (self.ca.path("trace"), self.idle_sidecar());
        let tracer = self.strace.trace_from_now(&sidecar.running, &file)?;
        self.jumps(&mut sidecar, jump, || false);
        Strace::detach(tracer);
        let process = sidecar.running.id();
        sidecar.stop();
        let mut calls = Strace::attached_trace(&file);
        // Later calls, as after any start, may come after the end.
        let known = [self.ca.path("data/authorities"), self.ca.path("run.log")];
        let known = known.each_ref().map(PathBuf::as_path);
        let last = calls.iter().rposition(|call| is_about(call, &known));
        calls.truncate(last.map_or(0, |last| last + 1));
        assert!(calls.len() > 10, "{jump:?}: {calls:?}");
        Some((process, calls))
    }

    fn survives_kill(&self, jump: Jump, point: &Point, tally: &mut KillTally) {
        let case = format!("{jump:?}, killed at {point:?}");
        let mut renewal = Renewal::begin(&self.ca, &NAMES, case);
        self.restore();
        let mut sidecar = self.idle_sidecar();
        let tracer = self.strace.kill_from_now(&sidecar.running, point);
        self.jumps(&mut sidecar, jump, || false);
        // Calls may come in another order than in the traced run, so the point may still be ahead.
        let _woken = self.a_minute_passes(&mut sidecar);
        match sidecar.running.has_ended() {
            true => tally.kills += 1,
            // The number of such calls differs between runs.
            false => tally.ended += 1,
        }
        drop((tracer, sidecar));
        renewal.is_whole();
        let orders = renewal.finish_by(|case| {
            let sidecar = self.ready_sidecar();
            self.finds_nothing_due(case);
            let printed = sidecar.log();
            sidecar.stop();
            printed
        });
        assert_eq!(orders.placed, 0, "{jump:?}, {point:?}");
    }

    /// Fails one call. A question that fails is asked again without another jump. Returns whether the call
    /// was made and failed.
    fn survives_error(&self, jump: Jump, aimed: &PathPoint, error: &str) -> bool {
        let case = format!("{jump:?}, {error} at {aimed:?}");
        let mut renewal = Renewal::begin(&self.ca, &NAMES, case);
        self.restore();
        let (file, mut sidecar) = (self.ca.path("trace"), self.idle_sidecar());
        let process = &sidecar.running;
        let strace = &self.strace;
        let tracer = strace.fail_at_path_from_now(process, aimed, GENERATION, error, &file);
        let has_failed = || {
            let printed = std::fs::read_to_string(&file).unwrap();
            printed.contains("(INJECTED)")
        };
        let asked = sidecar.time_requests();
        self.jumps(&mut sidecar, jump, has_failed);
        // Calls may come in another order than in the traced run, so the point may still be ahead.
        let _woken = self.a_minute_passes(&mut sidecar);
        Strace::detach(tracer.unwrap());
        let has_failed = has_failed();
        renewal.is_whole();
        let orders = renewal.finish_by(|case| {
            until(case, || {
                self.clocks.pass(A_MINUTE, || _ = sidecar.readiness());
                // One of the two log lines may be the write that failed.
                sidecar.time_requests() > asked || !alarms(&sidecar.log()).is_empty()
            });
            self.finds_nothing_due(case);
            until(case, || sidecar.readiness() == 200);
            let printed = sidecar.log();
            sidecar.stop();
            printed
        });
        assert_eq!(orders.placed, 0, "{jump:?}, {aimed:?}");
        has_failed
    }

    fn finds_nothing_due(&self, case: &str) {
        let printed = run(certs(&self.ca.path("")).arg("renew"), 0);
        assert!(printed.contains("not due"), "{case}: {printed}");
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn runtime() -> tokio::runtime::Runtime {
    { tokio::runtime::Builder::new_current_thread() }
        .build()
        .unwrap()
}

#[test]
fn sidecar_loses_nothing_after_kill_in_clock_probe() {
    let what = "kill points of a clock probe";
    let Some(kills) = JumpKills::start(what) else {
        return;
    };
    let mut tally = KillTally::default();
    for jump in JUMPS {
        let Some((_, calls)) = kills.calls(jump) else {
            return;
        };
        for point in points(&calls, |_| true).iter().step_by(by_depth(12, 1, 1)) {
            kills.survives_kill(jump, point, &mut tally);
        }
    }
    tally.report(what, by_depth(3, 20, 20));
}

#[test]
fn clock_probe_is_retried_after_failed_file_call() {
    let what = "file errors in a clock probe";
    let Some(kills) = JumpKills::start(what) else {
        return;
    };
    let (mut failed, mut made) = (0, 0);
    for jump in JUMPS {
        let Some((process, calls)) = kills.calls(jump) else {
            return;
        };
        let calls = about(&calls, &kills.ca.path("data"), process, GENERATION);
        for (aimed, call) in calls.iter().step_by(by_depth(9, 1, 1)) {
            for error in errors(call) {
                made += 1;
                failed += u32::from(kills.survives_error(jump, aimed, error));
            }
        }
    }
    eprintln!("{what}: {failed} of {made} calls failed");
    assert!(made > by_depth(3, 30, 30), "{made} calls are too few");
    assert!(failed * 10 > made * 9, "{failed} of {made}");
}
