//! `kill -9` of a renewal that reloads nginx by a signal or HAProxy over its socket, at every call from the
//! publication on. The server always shows a whole pair, and the next run deploys and verifies it with the
//! same order.

use std::process::Command;

use certs::fingerprint::Fingerprint;
use certs::record::Generation;

use super::KillTally;
use crate::support::embedded::EmbeddedCa;
use crate::support::oracle::Oracle;
use crate::support::renewal::Renewal;
use crate::support::strace::{Call, Point, Strace, is_about, points};
use crate::support::{Nginx, Running, by_depth, free_port, run};
use crate::targets::{NAME, haproxy, issued, live, verify};

/// A server that ends with its test.
enum Server {
    Nginx(Nginx),
    Haproxy { _running: Running, port: u16 },
}

impl Server {
    fn port(&self) -> u16 {
        match self {
            Self::Nginx(nginx) => nginx.port,
            Self::Haproxy { port, .. } => *port,
        }
    }

    fn nginx(ca: &EmbeddedCa) -> Option<Self> {
        Nginx::start(&live(ca)).map(Self::Nginx)
    }

    fn haproxy(ca: &EmbeddedCa) -> Option<Self> {
        let (port, crt) = (free_port(), live(ca).join("combined.pem"));
        let _running = haproxy(&ca.path("haproxy"), port, &crt)?;
        Some(Self::Haproxy { _running, port })
    }
}

struct DeploymentKills {
    /// The first field: dropped first, since the server reads below `ca`.
    server: Server,
    ca: EmbeddedCa,
    oracle: Oracle,
    strace: Strace,
    tally: KillTally,
}

impl DeploymentKills {
    fn start(strace: Strace, server: fn(&EmbeddedCa) -> Option<Server>) -> Option<Self> {
        let ca = issued();
        let kills = Self {
            oracle: Oracle::new(&ca.path(""), &[NAME]),
            server: server(&ca)?,
            ca,
            strace,
            tally: KillTally::default(),
        };
        run(&mut kills.renew(&["--force"]), 0);
        Some(kills)
    }

    fn renew(&self, more: &[&str]) -> Command {
        let deploy = match &self.server {
            Server::Nginx(nginx) => format!("--deploy=nginx:{}", nginx.pid_file.display()),
            Server::Haproxy { .. } => {
                let socket = self.ca.path("haproxy/admin.sock");
                format!("--deploy=haproxy:{}", socket.display())
            }
        };
        let options = [NAME, &deploy, &verify(self.server.port())];
        self.ca.issue(&[&options[..], more].concat())
    }

    fn points(&self) -> Vec<Point> {
        let calls = self.strace.calls(&self.renew(&["--force"]));
        let output = self.ca.path("out");
        let makes = |call: &Call| is_about(call, &[&output]) && call.name.starts_with("mkdir");
        let first = calls.iter().position(makes);
        let points = points(&calls[first.unwrap()..], |_| true);
        assert!(points.len() > 40, "{} points are too few", points.len());
        points
    }

    /// The leaf that the server shows to a new connection.
    fn shown(&self) -> Fingerprint {
        self.ca.leaf_at(self.server.port(), NAME)
    }

    fn survives(&mut self, point: &Point) {
        let case = format!("killed at {point:?}");
        let live = || self.oracle.live().unwrap().unwrap().facts.fingerprint;
        let before = live();
        let mut renewal = Renewal::begin(&self.ca, &[NAME], case.clone());
        // strace does not follow children, so no other program is killed instead.
        let mut killing = self.strace.killing(&self.renew(&["--force"]), point);
        let output = killing.output().unwrap();
        if output.status.success() {
            self.tally.ended += 1;
        } else {
            assert_eq!(output.status.code(), None, "{case}: {output:?}");
            self.tally.kills += 1;
            renewal.is_whole();
            let shown = self.shown();
            assert!(shown == before || shown == live(), "{case}: {shown:?}");
        }
        let orders = renewal.finish_by(|_| run(&mut self.renew(&[]), 0));
        self.tally.add(orders);
        self.is_verified(&case);
    }

    /// Asserts that the pair is deployed and served, by the record and by a handshake.
    fn is_verified(&self, case: &str) {
        let pair = self.oracle.live().unwrap().unwrap();
        assert_eq!(self.shown(), pair.facts.fingerprint, "{case}");
        let record = self.oracle.record().unwrap().unwrap();
        let served = record.served.into_values().map(|served| served.generation);
        let (deployed, seen) = (record.deployed.into_values(), served.collect::<Vec<_>>());
        let deployed: Vec<_> = deployed.collect();
        assert!(!deployed.is_empty() && !seen.is_empty(), "{case}");
        let newest = |one: &Generation| *one == pair.generation;
        assert!(
            deployed.iter().chain(&seen).all(newest),
            "{case}: {deployed:?}, {seen:?}"
        );
    }
}

fn deployments(what: &str, server: fn(&EmbeddedCa) -> Option<Server>, stride: usize) {
    let strace = Strace::find_with_arguments(what);
    let Some(mut kills) = strace.and_then(|strace| DeploymentKills::start(strace, server)) else {
        return;
    };
    for point in kills.points().iter().step_by(stride) {
        kills.survives(point);
    }
    kills.tally.report(what, by_depth(3, 20, 80));
}

#[test]
fn deployment_leaves_whole_pair_and_next_run_verifies_it_after_kill() {
    let stride = by_depth(36, 4, 1);
    deployments("kill points of a deployment", Server::nginx, stride);
    deployments(
        "kill points of a deployment to HAProxy",
        Server::haproxy,
        stride,
    );
}
