//! An install beside a `certs run` on the same data directory.

use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;

use super::issued::{started, whole};
use super::{Machine, PLAIN};
use crate::support::sidecar::status;
use crate::support::{Running, assert_says, certs, free_port, run, until};

/// A running sidecar with its admin port and its log.
struct Beside {
    _running: Running,
    admin: u16,
    log: PathBuf,
}

impl Beside {
    fn start(machine: &Machine) -> Self {
        let (admin, log) = (free_port(), machine.path("log"));
        let mut command = certs(machine.directory.path());
        command
            .arg("run")
            .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", free_port()));
        command.env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        let output = std::fs::File::create(&log).unwrap();
        let beside = Self {
            _running: Running::start_logging(&mut command, output.into()),
            admin,
            log,
        };
        until("the sidecar", || beside.log().contains("ready"));
        beside
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The status of `/readyz`; 0 without a reply.
    fn readiness(&self) -> u16 {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin));
        stream.map_or(0, |stream| status(&stream, "close"))
    }
}

#[test]
fn sidecar_that_cannot_write_answers_is_stopped_for_an_install() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let beside = Beside::start(&machine);
    if !beside.log().contains("restricted by Landlock") {
        eprintln!("SKIPPED: a webroot outside of the sandbox: no Landlock here");
        return;
    }
    let before = machine.files();
    let arguments = ["--domain", "example.com"];
    let printed = run(&mut whole(&machine, &ca, &arguments), 2);
    assert_says(
        &printed,
        &[
            "data-webroot is outside the sandbox: it was not configured when `certs run` started",
            "hint: stop `certs run`, repeat this command, and start `certs run` again",
        ],
    );
    assert_eq!(machine.files(), before);
    drop(beside);
    run(&mut whole(&machine, &ca, &arguments), 0);
    let beside = Beside::start(&machine);
    let shown = ca.leaf_at(machine.https, "example.com");
    run(
        certs(machine.directory.path()).args(["renew", "--force"]),
        0,
    );
    assert_ne!(ca.leaf_at(machine.https, "example.com"), shown);
    until("readiness", || beside.readiness() == 200);
}

#[test]
fn undone_install_is_expected_at_nginx_no_longer() {
    for is_beside in [false, true] {
        let Some((machine, ca)) = started(PLAIN) else {
            return;
        };
        let status = || {
            run(
                certs(machine.directory.path()).args(["status", "example.com"]),
                0,
            )
        };
        run(&mut whole(&machine, &ca, &["--domain", "example.com"]), 0);
        let beside = is_beside.then(|| Beside::start(&machine));
        assert!(status().contains("proven by handshake"), "{}", status());
        // nginx would not start without the files.
        let mut delete = certs(machine.directory.path());
        let printed = run(delete.args(["delete", "example.com", "--yes"]), 2);
        assert_says(&printed, &["install nginx --undo --domain example.com"]);
        let printed = run(
            &mut machine.install(&["--undo", "--domain", "example.com"]),
            0,
        );
        assert_says(
            &printed,
            &[" --webroot DIR; to end the certificate: certs delete example.com"],
        );
        assert!(status().contains("not checked"), "{}", status());
        if let Some(beside) = &beside {
            until("readiness", || beside.readiness() == 200);
        }
        drop(beside);
        // A start looks at every endpoint.
        let beside = Beside::start(&machine);
        until("readiness", || beside.readiness() == 200);
        // What is installed again is deployed again.
        run(&mut machine.install(&["--domain", "example.com"]), 0);
        assert!(status().contains("proven by handshake"), "{}", status());
    }
}
