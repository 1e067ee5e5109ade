//! `certs account`: shown, updated, rolled over, deactivated, imported.

use std::process::Command;

use certs::certificate::SecretBytes;
use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::sidecar::Sidecar;
use crate::support::strace::{Strace, is_about, points};
use crate::support::{Pebble, by_depth, certs, run, until};

const NAME: &str = "example.com";

fn account(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.arg("account").args(arguments);
    command
}

fn shown(ca: &EmbeddedCa) -> Value {
    let output = account(ca, &["show", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
    all[0].take()
}

fn force(ca: &EmbeddedCa) -> String {
    let mut command = certs(&ca.path(""));
    run(command.args(["renew", "--force"]), 0)
}

#[test]
fn account_is_shown_and_its_changes_are_the_cas() {
    let ca = EmbeddedCa::with(|settings| {
        let key = SecretBytes::new(b"secret".to_vec());
        settings.external_accounts.insert("kid-1".to_owned(), key);
    });
    let printed = run(&mut account(&ca, &["show"]), 2);
    assert!(printed.contains("no account is stored"), "{printed}");
    let hmac = ca.path("hmac");
    std::fs::write(&hmac, "c2VjcmV0").unwrap();
    let mut issue = ca.issue(&[NAME, "--email", "a@example.com", "--eab-kid", "kid-1"]);
    run(issue.arg("--eab-hmac-file").arg(&hmac), 0);
    // The binding is needed for the registration only.
    std::fs::remove_file(&hmac).unwrap();
    let first = shown(&ca);
    assert_eq!(first["status"], "valid");
    assert_eq!(first["contacts"][0], "mailto:a@example.com");
    assert_eq!(first["external_account"], "kid-1");
    assert_eq!(first["certificates"][0], NAME);
    assert_eq!(first["ca"], ca.server.directory_url());
    let printed = run(&mut account(&ca, &["show"]), 0);
    let thumbprint = first["thumbprint"].as_str().unwrap();
    for part in [
        thumbprint,
        "mailto:a@example.com",
        "kid-1",
        first["url"].as_str().unwrap(),
    ] {
        assert!(printed.contains(part), "no {part} in {printed}");
    }
    run(&mut account(&ca, &["update"]), 2);
    let update = ["update", "--email", "b@example.com", "--agree-tos"];
    run(&mut account(&ca, &update), 0);
    assert_eq!(shown(&ca)["contacts"][0], "mailto:b@example.com");
    // The stored settings do not send the old address again.
    let sent = ca.script.count(Endpoint::Account);
    force(&ca);
    assert_eq!(ca.script.count(Endpoint::Account), sent);
    assert_eq!(shown(&ca)["contacts"][0], "mailto:b@example.com");
    assert_eq!(shown(&ca)["thumbprint"], thumbprint);
}

#[test]
fn rollover_changes_the_key_and_the_sidecar_follows() {
    let ca = EmbeddedCa::start();
    let sidecar = Sidecar::start(&ca, &[NAME]);
    until("the sidecar", || sidecar.readiness() == 200);
    let before = shown(&ca);
    let printed = run(&mut account(&ca, &["rollover"]), 0);
    let after = shown(&ca);
    assert_ne!(after["thumbprint"], before["thumbprint"]);
    assert_eq!(after["url"], before["url"]);
    assert!(
        printed.contains(after["thumbprint"].as_str().unwrap()),
        "{printed}"
    );
    let mut renew = certs(&ca.path(""));
    let renew = renew
        .args(["renew", "--force"])
        .env("CERTS_AGREE_TOS", "true");
    assert!(run(renew, 0).contains("generation 0002"));
    assert_eq!(ca.script.accounts(), 1);
    sidecar.stop();
}

#[test]
fn rollover_survives_lost_replies() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let before = shown(&ca);
    ca.script
        .add(Endpoint::KeyChange, Which::Nth(1), Fault::DropAfter);
    run(&mut account(&ca, &["rollover"]), 0);
    let first = shown(&ca);
    assert_ne!(first["thumbprint"], before["thumbprint"]);
    ca.script.clear();
    // Nothing comes back any more, and the CA may have acted.
    for fault in [Fault::DropAfter, Fault::DropBefore] {
        let before = shown(&ca);
        ca.script
            .add(Endpoint::KeyChange, Which::Every, fault.clone());
        ca.script
            .add(Endpoint::NewAccount, Which::Every, Fault::DropBefore);
        run(&mut account(&ca, &["rollover"]), 3);
        ca.script.clear();
        force(&ca);
        let acted = matches!(fault, Fault::DropAfter);
        let after = shown(&ca);
        assert_eq!(after["thumbprint"] != before["thumbprint"], acted);
        assert_eq!(after["rollover_pending"], !acted);
    }
    run(&mut account(&ca, &["rollover"]), 0);
    assert_eq!(shown(&ca)["rollover_pending"], false);
    assert_eq!(ca.script.accounts(), 1);
    let refused = Fault::problem(403, "unauthorized", "no");
    ca.script.add(Endpoint::KeyChange, Which::Every, refused);
    run(&mut account(&ca, &["rollover"]), 4);
    ca.script.clear();
    force(&ca);
}

#[test]
fn rollover_killed_at_any_call_loses_no_account() {
    let Some(strace) = Strace::find("killed rollovers") else {
        return;
    };
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let rollover = account(&ca, &["rollover"]);
    let calls = strace.calls(&rollover);
    let data = ca.path("data");
    let first = calls.iter().position(|call| is_about(call, &[&data]));
    let points = points(&calls[first.unwrap_or(0)..], |_| true);
    assert!(points.len() > 30, "{} points", points.len());
    for point in points.iter().step_by(by_depth(24, 3, 1)) {
        strace.kill_at(&rollover, point);
        assert_eq!(shown(&ca)["status"], "valid", "{point:?}");
        run(&mut account(&ca, &["rollover"]), 0);
        assert_eq!(shown(&ca)["rollover_pending"], false, "{point:?}");
    }
    force(&ca);
    assert_eq!(ca.script.accounts(), 1);
}

#[test]
fn deactivated_account_is_forgotten_after_a_yes() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let printed = run(&mut account(&ca, &["deactivate"]), 2);
    for part in [
        "example.com depend on it",
        "nothing was deactivated",
        "deactivate --ca https://",
    ] {
        assert!(printed.contains(part), "no {part} in {printed}");
    }
    assert_eq!(shown(&ca)["status"], "valid");
    // All replies are lost: the same command finishes it.
    ca.script
        .add(Endpoint::Account, Which::Every, Fault::DropAfter);
    let yes = ["deactivate", "--yes", "--json"];
    run(&mut account(&ca, &yes), 3);
    ca.script.clear();
    let printed = run(&mut account(&ca, &yes), 0);
    assert!(printed.contains(r#""deactivated":true"#), "{printed}");
    run(&mut account(&ca, &["show"]), 2);
    // The certificate stays, and its renewal registers another account.
    force(&ca);
    assert_eq!(ca.script.accounts(), 2);
}

#[test]
fn several_accounts_are_shown_and_one_is_to_be_named() {
    let (ca, other) = (EmbeddedCa::start(), EmbeddedCa::start());
    run(&mut ca.issue(&[NAME]), 0);
    run(
        &mut other.issue_below(&ca.path(""), &["other.example.com"]),
        0,
    );
    let json = run(&mut account(&ca, &["show", "--json"]), 0);
    let all: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2, "{json}");
    let printed = run(&mut account(&ca, &["rollover"]), 2);
    assert!(printed.contains("name one with --ca"), "{printed}");
    let url = other.server.directory_url();
    run(&mut account(&ca, &["rollover", "--ca", &url]), 0);
    let counts = [&ca, &other].map(|ca| ca.script.committed(Endpoint::KeyChange));
    assert_eq!(counts, [0, 1]);
    let printed = run(&mut account(&ca, &["show", "--ca", "zerossl"]), 2);
    assert!(printed.contains("no account of zerossl"), "{printed}");
}

#[test]
fn imported_key_is_the_account_of_the_ca() {
    let ca = EmbeddedCa::start();
    let key = ca.path("key.pem").display().to_string();
    let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    std::fs::write(&key, made.serialize_pem()).unwrap();
    let url = ca.server.directory_url();
    let import = ["import", &key, "--ca", &url];
    let printed = run(&mut account(&ca, &import), 0);
    assert!(printed.contains("ECDSA P-384"), "{printed}");
    run(&mut account(&ca, &import), 0);
    run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(shown(&ca)["key"], "ECDSA P-384");
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let printed = run(&mut account(&ca, &import), 2);
    assert!(printed.contains("another account is stored"), "{printed}");
    std::fs::write(&key, "no key").unwrap();
    run(&mut account(&ca, &import), 2);
}

#[test]
fn changed_terms_name_the_command_that_agrees() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let kind = "urn:ietf:params:acme:error:userActionRequired";
    let body = format!(
        r#"{{"type":"{kind}","detail":"the terms have changed","instance":"https://ca.test/terms/2"}}"#
    );
    let changed = Fault::Reply(403, "application/problem+json", body, None);
    ca.script.add(Endpoint::NewOrder, Which::Every, changed);
    let printed = run(&mut ca.issue(&[NAME, "--force"]), 4);
    assert!(
        printed.contains("open https://ca.test/terms/2"),
        "{printed}"
    );
    assert!(
        printed.contains(&format!(
            "certs account update --ca {} ",
            ca.server.directory_url()
        )),
        "{printed}"
    );
    run(&mut account(&ca, &["update", "--agree-tos"]), 0);
    ca.script.clear();
    force(&ca);
}

#[test]
fn pebble_changes_keys_and_ends_accounts() {
    let Some(pebble) = Pebble::start(15) else {
        return;
    };
    run(&mut pebble.issue(&[NAME]), 0);
    let verb = |arguments: &[&str]| {
        let mut command = certs(pebble.path("").as_path());
        command.arg("account").args(arguments);
        command
    };
    let before = run(&mut verb(&["show"]), 0);
    run(&mut verb(&["rollover"]), 0);
    let after = run(&mut verb(&["show"]), 0);
    assert_ne!(before, after);
    run(&mut verb(&["update", "--email", "new@example.com"]), 0);
    let shown = run(&mut verb(&["show"]), 0);
    assert!(shown.contains("mailto:new@example.com"), "{shown}");
    run(&mut pebble.issue(&[NAME, "--force"]), 0);
    run(&mut verb(&["deactivate", "--yes"]), 0);
    run(&mut pebble.issue(&[NAME, "--force"]), 0);
}
