//! One name whose challenge fails, and another that is fine.

use std::process::Command;

use certs::ca::{Resolve, Validation};
use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::{certs, run};

/// An address other than the listener's: its validation fails.
const DEAD: &str = "127.0.0.2";
const WELL: &str = "127.0.0.1";

/// A CA that connects to the address of each name.
fn ca() -> EmbeddedCa {
    EmbeddedCa::with(|settings| {
        if let Validation::Connect { ports, .. } = settings.validation {
            settings.validation = Validation::Connect {
                ports,
                resolve: Resolve::System,
            };
        }
    })
}

fn issue(ca: &EmbeddedCa, partial: bool) -> Command {
    let mut command = ca.issue(&[DEAD, WELL, "--name", "both"]);
    if partial {
        command.arg("--partial");
    }
    command
}

fn status(ca: &EmbeddedCa) -> Value {
    let status = run(certs(&ca.path("")).args(["status", "--json"]), 0);
    serde_json::from_str::<Value>(&status).unwrap()[0].take()
}

#[test]
fn failing_name_blocks_the_rest_only_without_partial() {
    let ca = ca();
    let printed = run(&mut issue(&ca, false), 5);
    assert!(printed.contains(DEAD), "{printed}");
    let printed = run(&mut issue(&ca, true), 0);
    let line = format!("both: excluded for now: {DEAD}: urn:ietf:params:acme:error:connection");
    assert!(printed.contains(&line), "{printed}");
    let shown = status(&ca);
    assert_eq!(shown["left_out"][0]["identifier"], DEAD, "{shown}");
    assert_eq!(shown["identifiers"].as_array().unwrap().len(), 2);
    assert_eq!(shown["complete"], true);
    let printed = run(certs(&ca.path("")).arg("status"), 0);
    assert!(
        printed.contains(&format!("  excluded: {DEAD}: ")),
        "{printed}"
    );
    let pem = std::fs::read_to_string(ca.path("out/live/both/cert.pem")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
    let leaf = pem.parse_x509().unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);

    // A request by a user tries the name at once; it still fails, and nothing changes.
    let printed = run(&mut issue(&ca, true), 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
    assert!(printed.contains(&line), "{printed}");
    // The stored `--partial` holds until it is switched off: the missing name is a failure again.
    run(&mut issue(&ca, false), 0);
    run(issue(&ca, false).env("CERTS_PARTIAL", "false"), 5);
}
