//! `kill -9` at every system call of a run that is visible outside of it: opens, writes, flushes, renames,
//! locks, and traffic with the CA. The points come from a traced run, so a new call is covered without being
//! listed. A kill before one call is a kill after the previous one. These runs reload no server.

mod deployment;
mod jump;
mod sidecar;

use std::process::Command;

use certs::random::{Random, SeededRandom};

use crate::support::embedded::EmbeddedCa;
use crate::support::renewal::{Orders, Renewal};
use crate::support::strace::{Point, Strace, is_about, points};
use crate::support::{by_depth, run};

const NAMES: [&str; 2] = ["example.com", "www.example.com"];

/// Counts the results of the kills.
#[derive(Debug, Default)]
struct KillTally {
    kills: u32,
    /// Runs that finished because they made fewer such calls.
    ended: u32,
    /// Orders that were placed a second time, and why.
    again: u32,
    lost_urls: u32,
    invalid_orders: u32,
}

impl KillTally {
    fn add(&mut self, orders: Orders) {
        self.again += orders.placed.saturating_sub(1);
        self.lost_urls += orders.lost_urls;
        self.invalid_orders += orders.invalid_orders;
    }

    /// Asserts that most runs reached their kill point, and at least `at_least` of them.
    fn report(&self, what: &str, at_least: u32) {
        eprintln!("{what}: {self:?}");
        assert!(self.kills > self.ended, "{what}: {self:?}");
        assert!(self.kills >= at_least, "{what}: {self:?}");
    }
}

struct CommandKills {
    ca: EmbeddedCa,
    strace: Strace,
    tally: KillTally,
}

impl CommandKills {
    fn start(strace: Strace) -> Self {
        Self {
            ca: EmbeddedCa::start(),
            strace,
            tally: KillTally::default(),
        }
    }

    fn issue(&self, more: &[&str]) -> Command {
        self.ca.issue(&[&NAMES[..], more].concat())
    }

    /// The points from the first call about our files on; before it, the loader is at work.
    fn points(&self, more: &[&str]) -> Vec<Point> {
        let calls = self.strace.calls(&self.issue(more));
        let data = self.ca.path("data");
        let first = calls.iter().position(|call| is_about(call, &[&data]));
        let points = points(&calls[first.unwrap_or(0)..], |_| true);
        assert!(points.len() > 100, "{} points are too few", points.len());
        points
    }

    /// One renewal (or first issuance), killed at each of `kills` in turn and then left to finish.
    fn survives(&mut self, kills: &[&Point], more: &[&str]) {
        let case = format!("killed at {kills:?}");
        let mut renewal = Renewal::begin(&self.ca, &NAMES, case.clone());
        for (at, point) in kills.iter().enumerate() {
            let more = if at == 0 { more } else { &[] };
            let output = self.strace.kill_at(&self.issue(more), point);
            if output.status.success() {
                self.tally.ended += 1;
                break;
            }
            assert_eq!(output.status.code(), None, "{case}: {output:?}");
            self.tally.kills += 1;
            renewal.is_whole();
        }
        self.tally.add(renewal.finish());
    }
}

/// Kills a renewal at every `stride`-th point. All runs share one store, so it has a history of kills.
fn renewals(strace: Strace, rounds: u32, stride: usize) -> KillTally {
    let mut killed = CommandKills::start(strace);
    run(&mut killed.issue(&[]), 0);
    let points = killed.points(&["--force"]);
    for _ in 0..rounds {
        for point in points.iter().step_by(stride) {
            killed.survives(&[point], &["--force"]);
        }
    }
    killed.tally
}

/// Kills a first issuance at every `stride`-th point, each in empty directories.
fn first_issuances(strace: Strace, stride: usize) -> KillTally {
    let mut killed = CommandKills::start(strace);
    let points = killed.points(&[]);
    for point in points.iter().step_by(stride) {
        for directory in ["data", "out"] {
            std::fs::remove_dir_all(killed.ca.path(directory)).unwrap();
        }
        killed.survives(&[point], &[]);
    }
    killed.tally
}

/// Kills renewals, then their next run, and the run after that.
fn repeated_kills(strace: Strace, renewals: u32) -> KillTally {
    let mut killed = CommandKills::start(strace);
    run(&mut killed.issue(&[]), 0);
    let points = killed.points(&["--force"]);
    let dice = SeededRandom::new(7);
    for _ in 0..renewals {
        let draw = || &points[usize::try_from(dice.below(points.len() as u64)).unwrap()];
        let kills = [draw(), draw(), draw()];
        killed.survives(&kills, &["--force"]);
    }
    killed.tally
}

#[test]
fn renewal_keeps_whole_pair_live_and_finishes_after_kill_at_any_call() {
    let what = "kill points of a renewal";
    if let Some(strace) = Strace::find(what) {
        let (rounds, stride) = by_depth((1, 18), (1, 1), (5, 1));
        renewals(strace, rounds, stride).report(what, by_depth(8, 80, 500));
    }
}

#[test]
fn first_issuance_finishes_after_kill_at_any_call() {
    let what = "kill points of a first issuance";
    if let Some(strace) = Strace::find(what) {
        let tally = first_issuances(strace, by_depth(45, 5, 1));
        tally.report(what, by_depth(3, 20, 100));
    }
}

#[test]
fn issuance_finishes_after_repeated_kills() {
    let what = "repeated kills";
    if let Some(strace) = Strace::find(what) {
        let tally = repeated_kills(strace, by_depth(3, 25, 300));
        tally.report(what, by_depth(3, 25, 400));
    }
}
