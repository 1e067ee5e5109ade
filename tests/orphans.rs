//! The origin of a certificate decides how long it is kept.

use std::process::Command;

use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{certs, free_port, run, until};

/// What the sidecar's API shows of the certificate `name`.
fn shown(sidecar: &Sidecar, name: &str) -> Value {
    let url = format!("http://127.0.0.1:{}/api/v1/certificates", sidecar.admin);
    let mut curl = Command::new("curl");
    let answer = curl.args(["--silent", "--max-time", "10", &url]).output();
    let all: Vec<Value> = serde_json::from_slice(&answer.unwrap().stdout).unwrap();
    let mut all = all.into_iter();
    all.find(|one| one["name"] == name).unwrap_or_default()
}

fn origin(ca: &EmbeddedCa, name: &str) -> Value {
    let options = ca.path(&format!("data/records/{name}/options.json"));
    let options: Value = serde_json::from_slice(&std::fs::read(options).unwrap()).unwrap();
    options["origin"].clone()
}

#[test]
fn certificate_made_by_a_command_is_kept_by_run_until_it_is_deleted() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["before.example.com"]), 0);
    let sidecar = Sidecar::start(&ca, &["a.example.com"]);
    until("readiness", || sidecar.readiness() == 200);
    assert_eq!(shown(&sidecar, "before.example.com")["orphaned"], false);
    // By the control socket.
    run(&mut ca.issue(&["meanwhile.example.com"]), 0);
    let names = [
        "a.example.com",
        "before.example.com",
        "meanwhile.example.com",
    ];
    for name in names {
        let one = shown(&sidecar, name);
        assert_eq!(
            (&one["orphaned"], &one["next_action"]),
            (&false.into(), &"issue".into()),
            "{name}"
        );
    }
    let origins = names.map(|name| origin(&ca, name));
    assert_eq!(origins, ["configuration", "command", "command"]);
    // The next command for it may bring other options.
    run(
        &mut ca.issue(&["meanwhile.example.com", "--key", "rsa-2048", "--force"]),
        0,
    );
    run(
        certs(&ca.path("")).args(["delete", "before.example.com", "--yes"]),
        0,
    );
    assert_eq!(shown(&sidecar, "before.example.com"), Value::Null);
    sidecar.stop();
    let again = Sidecar::start(&ca, &["a.example.com"]);
    until("readiness", || again.readiness() == 200);
    assert_eq!(
        shown(&again, "meanwhile.example.com")["generation_issued"],
        2
    );
    assert_eq!(shown(&again, "before.example.com"), Value::Null);
    again.stop();
}

#[test]
fn certificate_that_leaves_the_configuration_is_orphaned_everywhere() {
    let ca = EmbeddedCa::start();
    let admin = free_port();
    let mut both = configured(&ca, &[], admin);
    both.env("CERTS_DOMAINS", "a.example.com; b.example.com");
    let sidecar = Sidecar::start_as(&ca, &mut both, admin);
    until("readiness", || sidecar.readiness() == 200);
    sidecar.stop();
    let sidecar = Sidecar::start(&ca, &["a.example.com"]);
    until("readiness", || sidecar.readiness() == 200);
    assert_eq!(shown(&sidecar, "b.example.com")["orphaned"], true);
    assert_eq!(shown(&sidecar, "a.example.com")["orphaned"], false);
    let log = sidecar.log();
    let said = log
        .lines()
        .filter(|line| line.contains("b.example.com") && line.contains("orphaned"));
    assert_eq!(said.count(), 1, "{log}");
    let mut status = certs(&ca.path(""));
    status.env("CERTS_DOMAINS", "a.example.com").arg("status");
    let printed = run(&mut status, 0);
    let why = "orphaned, and renewed no more: the configuration no longer names it; hint: ";
    assert!(printed.contains(why), "{printed}");
    let json = status.arg("--json").output().unwrap().stdout;
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        (&json[0]["orphaned"], &json[1]["orphaned"]),
        (&false.into(), &true.into())
    );
    sidecar.stop();
    // Nor does `renew` keep it, and says so.
    let renew = |more: &[&str]| {
        let mut renew = certs(&ca.path(""));
        for (name, value) in configured(&ca, &["a.example.com"], admin).get_envs() {
            renew.env(name, value.unwrap());
        }
        run(
            renew.env("CERTS_AGREE_TOS", "true").arg("renew").args(more),
            0,
        )
    };
    let printed = renew(&["--force"]);
    assert!(printed.contains("a.example.com: issued"), "{printed}");
    assert!(!printed.contains("b.example.com: issued"), "{printed}");
    assert!(printed.contains(why), "{printed}");
    assert!(renew(&["b.example.com", "--force"]).contains("b.example.com: issued"));
    // A command makes it its own.
    run(&mut ca.issue(&["b.example.com"]), 0);
    assert_eq!(origin(&ca, "b.example.com"), "command");
    assert!(!renew(&[]).contains("orphaned"));
}
