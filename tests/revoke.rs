//! `certs revoke`: a replacement first, the certificate's own key, files, and what a revoked certificate does.

use std::process::Command;

use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::sidecar::Sidecar;
use crate::support::strace::{Strace, is_about, points};
use crate::support::{Pebble, by_depth, certs, make_script, run, until};

const NAME: &str = "example.com";

fn verb(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

/// A CA whose state can be read.
fn open_ca() -> (EmbeddedCa, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("ca");
    let ca = EmbeddedCa::with(|settings| settings.directory = Some(state));
    (ca, directory)
}

/// The reasons with which the CA has revoked certificates, and the number of those that are valid.
fn revoked(directory: &tempfile::TempDir) -> (Vec<u64>, usize) {
    let json = std::fs::read_to_string(directory.path().join("ca/state.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    let all = json["certificates"].as_object().unwrap();
    let mut reasons: Vec<u64> = all
        .values()
        .filter_map(|one| one["revoked"]["reason"].as_u64())
        .collect();
    reasons.sort_unstable();
    (reasons.clone(), all.len() - reasons.len())
}

fn key(ca: &EmbeddedCa) -> String {
    std::fs::read_to_string(ca.path("out/live/example.com/privkey.pem")).unwrap()
}

fn status(ca: &EmbeddedCa) -> Value {
    let json = run(&mut verb(ca, &["status", NAME, "--json"]), 0);
    let mut all: Value = serde_json::from_str(&json).unwrap();
    all[0].take()
}

#[test]
fn revoke_replaces_first_and_never_keeps_the_key() {
    let (ca, directory) = open_ca();
    let names = [NAME, "www.example.com"];
    let reuse = [&names[..], &["--reuse-key"]].concat();
    run(&mut ca.issue(&reuse), 0);
    run(&mut ca.issue(&[&reuse[..], &["--force"]].concat()), 0);
    let before = key(&ca);
    let printed = run(
        &mut verb(
            &ca,
            &["revoke", "www.example.com", "--reason", "keyCompromise"],
        ),
        0,
    );
    assert!(printed.contains("issued; generation 0003"), "{printed}");
    assert!(printed.contains("--reuse-key does not hold"), "{printed}");
    // Both certificates of the compromised key.
    for line in [
        "generation 0001 is revoked since",
        "generation 0002 is revoked since",
        "(keycompromise)",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    assert_ne!(key(&ca), before);
    assert_eq!(revoked(&directory), (vec![1, 1], 1));
    let shown = status(&ca);
    assert_eq!(shown["revoked"]["2"]["reason"], "keycompromise");
    assert_eq!(shown.get("to_be_revoked"), None);
    let printed = run(&mut verb(&ca, &["rollback", NAME]), 2);
    assert!(printed.contains("generation 0002 was revoked"), "{printed}");
    // The next renewal may keep the new key again.
    let new = key(&ca);
    run(&mut verb(&ca, &["renew", "--force"]), 0);
    assert_eq!(key(&ca), new);
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--json"]), 0);
    let json: Value = serde_json::from_str(printed.lines().next().unwrap()).unwrap();
    assert_eq!(json["revoked"]["4"]["reason"], "unspecified", "{json}");
    assert_eq!(
        (&json["issued"], &json["generation"]),
        (&true.into(), &5.into())
    );
    assert_eq!(revoked(&directory), (vec![0, 1, 1], 2));
}

#[test]
fn revoke_waits_until_the_replacement_is_deployed() {
    let (ca, directory) = open_ca();
    let (hook, broken) = (ca.path("hook"), ca.path("broken"));
    make_script(&hook, &format!("test ! -e {}", broken.display()));
    let deploy = format!("exec:{}", hook.display());
    run(&mut ca.issue(&[NAME, "--deploy", &deploy]), 0);
    std::fs::write(&broken, "").unwrap();
    let revoke = ["revoke", NAME, "--reason", "superseded"];
    let printed = run(&mut verb(&ca, &revoke), 7);
    assert!(printed.contains("not revoked"), "{printed}");
    assert_eq!(revoked(&directory), (vec![], 2));
    assert_eq!(
        status(&ca)["to_be_revoked"]["generations"],
        serde_json::json!([1])
    );
    let printed = run(&mut verb(&ca, &["status"]), 0);
    let line = "to be revoked once its replacement is served: generation 0001 (superseded)";
    assert!(printed.contains(line), "{printed}");
    // The replacement is not ordered again.
    run(&mut verb(&ca, &revoke), 7);
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 2);
    // Any pass that verifies it revokes the old one.
    std::fs::remove_file(&broken).unwrap();
    run(&mut ca.issue(&[NAME, "--deploy", &deploy]), 0);
    assert_eq!(revoked(&directory), (vec![4], 1));
    assert_eq!(status(&ca)["revoked"]["1"]["reason"], "superseded");
}

#[test]
fn failed_revocation_is_continued_without_another_order() {
    let (ca, directory) = open_ca();
    run(&mut ca.issue(&[NAME]), 0);
    let down = Fault::problem(500, "serverInternal", "down");
    ca.script.add(Endpoint::Revocation, Which::Every, down);
    let printed = run(&mut verb(&ca, &["revoke", NAME]), 3);
    assert!(printed.contains("revoking the certificate at"), "{printed}");
    assert!(printed.contains("not revoked"), "{printed}");
    ca.script.clear();
    // The CA acts, and its reply is lost: it is revoked already.
    ca.script
        .add(Endpoint::Revocation, Which::Nth(1), Fault::DropAfter);
    run(&mut verb(&ca, &["revoke", NAME]), 0);
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 2);
    assert_eq!(revoked(&directory), (vec![0], 1));
}

#[test]
fn revoke_now_orders_nothing_and_says_what_is_served() {
    let (ca, directory) = open_ca();
    run(&mut ca.issue(&[NAME]), 0);
    let now = ["revoke", NAME, "--reason", "5", "--now"];
    let printed = run(&mut verb(&ca, &now), 0);
    assert!(printed.contains("nothing was ordered"), "{printed}");
    assert!(
        printed.contains("still live; hint: certs renew example.com"),
        "{printed}"
    );
    assert_eq!(revoked(&directory), (vec![5], 0));
    let printed = run(&mut verb(&ca, &["status"]), 0);
    assert!(
        printed.contains("the certificate to be served is revoked"),
        "{printed}"
    );
    // A second revocation is not an error, and asks the CA for nothing.
    run(&mut verb(&ca, &now), 0);
    assert_eq!(ca.script.count(Endpoint::Revocation), 1);
    let before = key(&ca);
    run(&mut verb(&ca, &["renew", NAME]), 0);
    assert_eq!(status(&ca)["generation_issued"], 2);
    assert_ne!(key(&ca), before);
}

#[test]
fn revoke_by_a_key_alone_needs_no_account() {
    let (ca, directory) = open_ca();
    run(&mut ca.issue(&[NAME]), 0);
    let live = ca.path("out/live/example.com");
    let [cert, key] = ["cert.pem", "privkey.pem"].map(|name| {
        let copy = ca.path(name);
        std::fs::copy(live.join(name), &copy).unwrap();
        copy.display().to_string()
    });
    let files = ["revoke", "--cert-file", &cert, "--key-file", &key];
    let (url, root) = (ca.server.directory_url(), ca.path("root.pem"));
    let at_ca = |directory: &str, arguments: &[&str]| {
        let mut command = certs(&ca.path(directory));
        command.args(arguments).args(["--ca", &url, "--ca-root"]);
        command.arg(&root);
        command
    };
    let printed = run(&mut at_ca("", &files), 2);
    assert!(
        printed.contains("hint: certs revoke example.com"),
        "{printed}"
    );
    let other = ca.path("other.pem").display().to_string();
    let made = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&other, made.serialize_pem()).unwrap();
    let wrong = ["revoke", "--cert-file", &cert, "--key-file", &other];
    let printed = run(&mut at_ca("elsewhere", &wrong), 2);
    let hint = "hint: give the certificate in PEM, and its own key; nothing was sent";
    assert!(printed.contains(hint), "{printed}");
    let printed = run(&mut at_ca("elsewhere", &files[..3]), 2);
    let hint = "hint: add the certificate's own key with --key-file, or name its CA with --ca";
    assert!(printed.contains(hint), "{printed}");
    assert_eq!(ca.script.count(Endpoint::Revocation), 0);
    let printed = run(
        &mut at_ca("elsewhere", &[&files[..], &["--json"]].concat()),
        0,
    );
    assert!(printed.contains(r#""revoked":true"#), "{printed}");
    assert_eq!(revoked(&directory), (vec![0], 0));
    assert_eq!(ca.script.accounts(), 1);
    assert!(!ca.path("elsewhere/data").exists());
    // A second time it is revoked already.
    run(&mut at_ca("elsewhere", &files), 0);
}

#[test]
fn wrong_revocations_send_nothing() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, "www.example.com"]), 0);
    run(&mut ca.issue(&["www.example.com", "--name", "second"]), 0);
    for (arguments, words) in [
        (vec!["revoke"], "<NAME>"),
        (vec!["revoke", "absent.example.com"], "unknown certificate"),
        (vec!["revoke", "www.example.com"], "nothing was revoked"),
        (
            vec!["revoke", NAME, "--reason", "cacompromise"],
            "keycompromise (1)",
        ),
        (vec!["revoke", NAME, "--ca", "letsencrypt"], "--cert-file"),
        (vec!["revoke", "--cert-file", "/absent.pem"], "/absent.pem"),
    ] {
        let printed = run(&mut verb(&ca, &arguments), 2);
        assert!(printed.contains(words), "{arguments:?}: {printed}");
    }
    assert_eq!(ca.script.count(Endpoint::Revocation), 0);
    let unauthorized = Fault::problem(403, "unauthorized", "not yours");
    ca.script
        .add(Endpoint::Revocation, Which::Every, unauthorized);
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--now"]), 4);
    assert!(
        printed.contains("or for a file with --key-file KEY"),
        "{printed}"
    );
}

#[test]
fn running_sidecar_revokes_and_replaces() {
    let (ca, directory) = open_ca();
    let sidecar = Sidecar::start(&ca, &[NAME]);
    until("the sidecar", || sidecar.readiness() == 200);
    run(&mut verb(&ca, &["revoke", NAME, "--reason", "1"]), 0);
    assert_eq!(revoked(&directory), (vec![1], 1));
    // Its own certificate is replaced without a command, too.
    run(&mut verb(&ca, &["revoke", NAME, "--now"]), 0);
    until("the replacement", || status(&ca)["generation_issued"] == 3);
    until("readiness", || sidecar.readiness() == 200);
    sidecar.stop();
}

#[test]
fn revoke_killed_at_any_call_is_finished_with_one_order() {
    let Some(strace) = Strace::find("killed revocations") else {
        return;
    };
    let (ca, directory) = open_ca();
    run(&mut ca.issue(&[NAME]), 0);
    let revoke = verb(&ca, &["revoke", NAME, "--reason", "superseded"]);
    let calls = strace.calls(&revoke);
    let data = ca.path("data");
    let first = calls.iter().position(|call| is_about(call, &[&data]));
    let points = points(&calls[first.unwrap_or(0)..], |_| true);
    for point in points.iter().step_by(by_depth(60, 9, 2)) {
        let (orders, (gone, _)) = (ca.script.committed(Endpoint::NewOrder), revoked(&directory));
        strace.kill_at(&revoke, point);
        if revoked(&directory).0.len() == gone.len() {
            run(
                &mut verb(&ca, &["revoke", NAME, "--reason", "superseded"]),
                0,
            );
        }
        // A kill after the CA has acted leaves the rest to any pass.
        run(&mut verb(&ca, &["renew"]), 0);
        let (reasons, valid) = revoked(&directory);
        assert_eq!((reasons.len(), valid), (gone.len() + 1, 1), "{point:?}");
        let placed = ca.script.committed(Endpoint::NewOrder) - orders;
        assert!(placed <= 2, "{point:?}: {placed} orders");
    }
}

#[test]
fn pebble_revokes_by_account_and_by_key() {
    let Some(pebble) = Pebble::start(15) else {
        return;
    };
    let serial = |generation: &str| {
        let pem = pebble.path(&format!("out/archive/example.com/{generation}/cert.pem"));
        let pem = std::fs::read(pem).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).unwrap();
        format!("{:x}", pem.parse_x509().unwrap().tbs_certificate.serial)
    };
    run(&mut pebble.issue(&[NAME]), 0);
    for (reason, code, generation) in [("superseded", 4, "0001"), ("keycompromise", 1, "0002")] {
        let mut revoke = certs(pebble.path("").as_path());
        run(revoke.args(["revoke", NAME, "--reason", reason]), 0);
        let url = format!(
            "https://localhost:{}/cert-status-by-serial/{}",
            pebble.management,
            serial(generation)
        );
        let asked = Command::new("curl").args(["-sk", &url]).output().unwrap();
        let json: Value = serde_json::from_slice(&asked.stdout).unwrap_or_default();
        assert_eq!(json["Status"], "Revoked", "{json}");
        assert_eq!(json["Reason"], code, "{json}");
    }
}
