//! The fallback CA, with two CAs on loopback: the first refuses or is unreachable, the second issues, and the
//! next order goes to the first again.

use std::process::Command;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use certs::ca::{Ports, Resolve, Settings, Validation};
use certs::certificate::SecretBytes;
use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{certs, run};

const NAME: &str = "example.com";

/// Two CAs that fetch HTTP-01 answers from the same address. The root file of the first has both roots.
fn two() -> (EmbeddedCa, EmbeddedCa) {
    two_with(|_| ())
}

fn two_with(change: impl FnOnce(&mut Settings)) -> (EmbeddedCa, EmbeddedCa) {
    let first = EmbeddedCa::start();
    let port = first.http_port;
    let second = EmbeddedCa::with(|settings| {
        settings.validation = Validation::Connect {
            ports: Ports::both(port),
            resolve: Resolve::Fixed(std::net::Ipv4Addr::LOCALHOST.into()),
        };
        change(settings);
    });
    let both = format!("{}{}", first.server.root_pem(), second.server.root_pem());
    std::fs::write(first.path("root.pem"), both).unwrap();
    (first, second)
}

fn issue(first: &EmbeddedCa, second: &EmbeddedCa) -> Command {
    let fallback = second.server.directory_url();
    first.issue(&[NAME, "--fallback-ca", &fallback])
}

fn issued_by(first: &EmbeddedCa) -> String {
    let status = run(certs(&first.path("")).args(["status", "--json"]), 0);
    let status: Value = serde_json::from_str(&status).unwrap();
    status[0]["issued_by"].as_str().unwrap().to_owned()
}

#[test]
fn fallback_ca_issues_after_three_refusals() {
    let (first, second) = two();
    let refusal = Fault::problem(403, "rejectedIdentifier", "not this one");
    first.script.add(Endpoint::NewOrder, Which::Every, refusal);
    for _ in 0..3 {
        run(&mut issue(&first, &second), 4);
    }
    assert_eq!(second.script.committed(Endpoint::NewOrder), 0);
    run(&mut issue(&first, &second), 0);
    assert_eq!(issued_by(&first), second.server.directory_url());
    let printed = run(certs(&first.path("")).arg("status"), 0);
    let line = format!("issued by {}", second.server.directory_url());
    assert!(printed.contains(&line), "{printed}");

    // The fallback's certificate stays until it is due; then the first CA is used.
    first.script.clear();
    let printed = run(&mut issue(&first, &second), 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
    run(issue(&first, &second).arg("--force"), 0);
    assert_eq!(issued_by(&first), first.server.directory_url());
    assert_eq!(second.script.committed(Endpoint::NewOrder), 1);
}

#[test]
fn fallback_ca_issues_after_half_an_hour_of_outage() {
    let (first, second) = two();
    first
        .script
        .add(Endpoint::Directory, Which::Every, Fault::DropBefore);
    run(&mut issue(&first, &second), 3);
    run(&mut issue(&first, &second), 3);
    assert_eq!(second.script.committed(Endpoint::NewOrder), 0);
    // Dates the first failure long ago.
    let path = first.path("data/records").join(NAME).join("record.json");
    let stored = std::fs::read_to_string(&path).unwrap();
    let mut stored: Value = serde_json::from_str(&stored).unwrap();
    let record = match stored.get("record") {
        Some(_) => &mut stored["record"],
        None => &mut stored,
    };
    assert!(record["failures"]["since"].is_string(), "{record}");
    record["failures"]["since"] = "2026-01-01T00:00:00Z".into();
    std::fs::write(&path, stored.to_string()).unwrap();
    run(&mut issue(&first, &second), 0);
    assert_eq!(issued_by(&first), second.server.directory_url());
    // Each CA has an account of its own.
    let accounts = std::fs::read_dir(first.path("data/accounts")).unwrap();
    assert_eq!(accounts.count(), 1, "the dead one never had one");
}

#[test]
fn fallback_ca_gets_its_own_external_account_key() {
    let key = b"a key of the second CA, 32 bytes".to_vec();
    let account = ("kid-2".to_owned(), SecretBytes::new(key.clone()));
    let (first, second) = two_with(|settings| settings.external_accounts = [account].into());
    let refusal = Fault::problem(403, "rejectedIdentifier", "not this one");
    first.script.add(Endpoint::NewOrder, Which::Every, refusal);
    for _ in 0..3 {
        run(&mut issue(&first, &second), 4);
    }
    let printed = run(&mut issue(&first, &second), 4);
    assert!(printed.contains("externalAccountRequired"), "{printed}");
    assert!(printed.contains("--fallback-eab-kid"), "{printed}");
    let file = first.path("second.hmac");
    std::fs::write(&file, BASE64_URL_SAFE_NO_PAD.encode(&key)).unwrap();
    let mut bound = issue(&first, &second);
    bound.args(["--fallback-eab-kid", "kid-2", "--fallback-eab-hmac-file"]);
    run(bound.arg(&file), 0);
    assert_eq!(issued_by(&first), second.server.directory_url());
}

#[test]
fn fallback_ca_with_untrusted_root_is_refused() {
    let ca = EmbeddedCa::start();
    for fallback in ["letsencrypt-staging", "google-staging"] {
        let printed = run(&mut ca.issue(&[NAME, "--fallback-ca", fallback]), 2);
        assert!(printed.contains("is a staging directory"), "{printed}");
    }
    let same = ca.server.directory_url();
    let printed = run(&mut ca.issue(&[NAME, "--fallback-ca", &same]), 2);
    assert!(printed.contains("is the same as the CA"), "{printed}");
}
