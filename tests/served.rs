//! What is said about a certificate: proven by a handshake, not proven, or not checked at all.

use std::process::Command;

use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::Sidecar;
use crate::support::{certs, free_port, run, until};

const NOTHING: &str = "not checked: no endpoint is configured; hint: --verify HOST:PORT";

/// The command with its result as JSON.
fn json(command: &mut Command, code: i32) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn proof(ca: &EmbeddedCa) -> Value {
    json(certs(&ca.path("")).arg("status"), 0)[0].clone()
}

/// The page at `path` of the sidecar's admin endpoints, with its status.
fn ask(sidecar: &Sidecar, path: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}{path}", sidecar.admin);
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
        &url,
    ]);
    let answer = String::from_utf8(curl.output().unwrap().stdout).unwrap();
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap_or(0), body.to_owned())
}

#[test]
fn certificate_without_endpoint_is_not_checked_everywhere() {
    let ca = EmbeddedCa::start();
    let printed = run(&mut ca.issue(&["example.com"]), 0);
    assert!(
        printed.contains(&format!("example.com: {NOTHING}")),
        "{printed}"
    );
    let issued = json(&mut ca.issue(&["example.com"]), 0);
    assert_eq!(issued["proof"], "not-checked");
    for verb in ["renew", "reload"] {
        let printed = run(certs(&ca.path("")).arg(verb), 0);
        assert!(printed.contains(NOTHING), "{verb}: {printed}");
    }
    let shown = proof(&ca);
    assert_eq!(
        (&shown["proof"], &shown["proven"]),
        (&"not-checked".into(), &false.into())
    );
    assert_eq!(shown["proof_detail"], "no endpoint is configured");
    let printed = run(certs(&ca.path("")).args(["status", "example.com"]), 0);
    assert!(printed.contains(NOTHING), "{printed}");

    let sidecar = Sidecar::start(&ca, &["example.com"]);
    until("readiness", || sidecar.readiness() == 200);
    let (_, ready) = ask(&sidecar, "/readyz");
    assert_eq!(
        ready,
        "ready\nexample.com: not checked: no endpoint is configured\n"
    );
    let (_, api) = ask(&sidecar, "/api/v1/certificates");
    let api: Value = serde_json::from_str(&api).unwrap();
    assert_eq!(
        (&api[0]["proof"], &api[0]["proven"]),
        (&"not-checked".into(), &false.into())
    );
    let (_, page) = ask(&sidecar, "/");
    assert!(
        !page.contains("class=good") && page.contains("not checked"),
        "{page}"
    );
    let (_, metrics) = ask(&sidecar, "/metrics");
    let proof =
        |state: &str| format!("certs_certificate_proof{{name=\"example.com\",proof=\"{state}\"}}");
    for line in [
        proof("proven") + " 0",
        proof("not-proven") + " 0",
        proof("not-checked") + " 1",
    ] {
        assert!(metrics.contains(&line), "no `{line}` in {metrics}");
    }
    sidecar.stop();
}

#[test]
fn server_whose_ports_are_unknown_is_not_checked_and_a_failed_one_not_proven() {
    let ca = EmbeddedCa::start();
    let copy = format!("file:{}", ca.path("copy.pem").display());
    let printed = run(&mut ca.issue(&["copy.example.com", "--deploy", &copy]), 0);
    assert!(
        printed.contains(&format!("copy.example.com: {NOTHING}")),
        "{printed}"
    );
    let printed = run(
        &mut ca.issue(&["a.example.com", "--deploy", "exec:/bin/true"]),
        0,
    );
    let unknown = "not checked: no endpoint is and the ports of exec are unknown; hint: ";
    assert!(printed.contains(unknown), "{printed}");
    let printed = run(
        &mut ca.issue(&["b.example.com", "--deploy", "exec:/bin/false"]),
        7,
    );
    assert!(!printed.contains("not checked"), "{printed}");
    let closed = format!("127.0.0.1:{}", free_port());
    run(&mut ca.issue(&["c.example.com", "--verify", &closed]), 7);
    let all = json(certs(&ca.path("")).arg("status"), 0);
    let states = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["proof"].as_str().unwrap());
    assert_eq!(
        Vec::from_iter(states),
        ["not-checked", "not-proven", "not-proven", "not-checked"]
    );
    let detail = all[2]["proof_detail"].as_str().unwrap();
    assert!(
        detail.starts_with(&closed) && detail.contains("refused"),
        "{detail}"
    );
}
