//! `kill -9` of `certs run` between its start and its readiness. Started again it becomes ready by itself,
//! with the same order. The work is a first issuance, or a renewal after a change of the CA's URL.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::KillTally;
use crate::support::embedded::EmbeddedCa;
use crate::support::oracle::{Oracle, Pair};
use crate::support::renewal::Renewal;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::strace::{Point, Strace, is_about, points};
use crate::support::{by_depth, free_port, until_within};

const NAMES: [&str; 2] = ["example.com", "www.example.com"];
const MINUTE: Duration = Duration::from_secs(60);

struct SidecarKills {
    ca: EmbeddedCa,
    /// One port for all runs: a new port each time could belong to another test.
    admin: u16,
    oracle: Oracle,
    strace: Strace,
    /// Which of the CA's two URLs is configured.
    other: bool,
    tally: KillTally,
}

impl SidecarKills {
    fn start(strace: Strace) -> Self {
        let ca = EmbeddedCa::start();
        Self {
            oracle: Oracle::new(&ca.path(""), &NAMES),
            ca,
            admin: free_port(),
            strace,
            other: false,
            tally: KillTally::default(),
        }
    }

    fn command(&self) -> Command {
        let mut command = configured(&self.ca, &NAMES, self.admin);
        if self.other {
            let other = format!("{}?other", self.ca.server.directory_url());
            command.env("CERTS_CA", other);
        }
        command
    }

    /// Whether a certificate other than `before` is live and all agrees. It sends the sidecar no request,
    /// since each reply would add calls.
    fn is_done(&self, before: Option<&Pair>) -> bool {
        let settled = self.oracle.settled();
        settled.is_ok_and(|pair| Some(&pair) != before)
    }

    /// The points from the first call about our files on.
    fn points(&self) -> Vec<Point> {
        let (file, before) = (self.ca.path("trace"), self.oracle.live().unwrap());
        let command = self.command();
        let mut traced = self.strace.tracing(&command, &file);
        let sidecar = Sidecar::start_as(&self.ca, &mut traced, self.admin);
        until_within("a certificate", MINUTE, || self.is_done(before.as_ref()));
        sidecar.stop();
        let calls = Strace::traced(&file);
        let data = self.ca.path("data");
        let first = calls.iter().position(|call| is_about(call, &[&data]));
        let points = points(&calls[first.unwrap_or(0)..], |_| true);
        assert!(points.len() > 100, "{} points are too few", points.len());
        points
    }

    fn survives(&mut self, point: &Point) {
        let case = format!("killed at {point:?}");
        let before = self.oracle.live().unwrap();
        let mut renewal = Renewal::begin(&self.ca, &NAMES, case.clone());
        let command = self.command();
        let mut killing = self.strace.killing(&command, point);
        let mut sidecar = Sidecar::start_as(&self.ca, &mut killing, self.admin);
        let is_done = || sidecar.running.has_ended() || self.is_done(before.as_ref());
        until_within(&case, MINUTE, is_done);
        // The sidecar may reach the point while it ends.
        if !sidecar.running.has_ended() {
            sidecar.running.signal(Signal::TERM);
        }
        match sidecar.running.exit_code() {
            None => self.tally.kills += 1,
            code => {
                assert_eq!(code, Some(0), "{case}: {}", sidecar.log());
                self.tally.ended += 1;
            }
        }
        renewal.is_whole();
        let orders = renewal.finish_by(|case| self.becomes_ready(case));
        self.tally.add(orders);
    }

    /// Started again, it becomes ready without help.
    fn becomes_ready(&self, case: &str) -> String {
        let mut command = self.command();
        let sidecar = Sidecar::start_as(&self.ca, &mut command, self.admin);
        until_within(case, 2 * MINUTE, || sidecar.readiness() == 200);
        let printed = sidecar.log();
        sidecar.stop();
        printed
    }
}

/// Each run uses the other URL of the CA than the previous one.
fn renewals(what: &str, stride: usize) {
    let Some(mut kills) = Strace::find_with_arguments(what).map(SidecarKills::start) else {
        return;
    };
    kills.becomes_ready("the first");
    kills.other = true;
    for point in kills.points().iter().step_by(stride) {
        kills.other = !kills.other;
        kills.survives(point);
    }
    kills.tally.report(what, by_depth(3, 20, 100));
}

/// Each run in empty directories.
fn first_issuances(what: &str, stride: usize) {
    let Some(mut kills) = Strace::find_with_arguments(what).map(SidecarKills::start) else {
        return;
    };
    for point in kills.points().iter().step_by(stride) {
        for directory in ["data", "out"] {
            std::fs::remove_dir_all(kills.ca.path(directory)).unwrap();
        }
        kills.survives(point);
    }
    kills.tally.report(what, by_depth(3, 20, 100));
}

#[test]
fn sidecar_renews_after_kill_in_renewal() {
    renewals("kill points of a sidecar that renews", by_depth(45, 5, 1));
}

#[test]
fn sidecar_becomes_ready_after_kill_at_start() {
    first_issuances(
        "kill points of a sidecar's first issuance",
        by_depth(45, 5, 1),
    );
}
