//! `certs demo` as a user runs it: it prints its numbers and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{certs, program, text, until};

fn demo(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = certs(directory);
    command.env("TMPDIR", directory).arg("demo").args(arguments);
    command
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

/// Asserts what every demonstration must print.
fn successful(output: &Output) -> serde_json::Value {
    let printed = text(output);
    assert_eq!(output.status.code(), Some(0), "{printed}");
    let score: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let number = |key: &str| score[key].as_f64().unwrap();
    assert_eq!(number("failures"), 0.0, "{printed}");
    assert_eq!(number("certificates"), 2.0, "{printed}");
    assert!(number("renewals") >= 6.0, "{printed}");
    // Four generations of three names.
    assert!(number("proofs") >= 12.0, "{printed}");
    assert!(number("requests") >= 500.0, "{printed}");
    // Half of the clients open a connection for each request, the others keep one.
    assert!(number("handshakes") >= 200.0, "{printed}");
    assert!(number("handshakes") < number("requests"), "{printed}");
    assert!(number("slowest_swap_ms") > 0.0, "{printed}");
    assert!(number("seconds") < 60.0, "{printed}");
    score
}

#[test]
fn demo_fails_no_request_over_three_renewals_under_load_and_cleans_up() {
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &["--json"]).output().unwrap();
    let score = successful(&output);
    assert_eq!(score["with"], "front");
    assert_eq!(score["closed_while_idle"], 0, "a swap ended a connection");
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(printed.contains("renewed to 0004, verified"), "{printed}");
    assert!(is_empty(directory.path()), "something was left behind");
}

#[test]
fn demo_renews_nginx_without_failed_request_and_stops_it() {
    let Some(nginx) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let output = demo(directory.path(), &["--with", "nginx", "--json", "--quiet"])
        .env("PATH", nginx.parent().unwrap())
        .output()
        .unwrap();
    let score = successful(&output);
    assert_eq!(score["with"], "nginx");
    assert!(output.stderr.is_empty(), "{}", text(&output));
    assert!(is_empty(directory.path()), "something was left behind");
}

#[test]
fn demo_cleans_up_and_reports_when_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let child = demo(directory.path(), &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the stage", || {
        let scratch = std::fs::read_dir(directory.path()).unwrap().next();
        scratch.is_some_and(|scratch| scratch.unwrap().path().join("certs/live").exists())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(1), "{printed}");
    assert!(printed.contains("interrupted"), "{printed}");
    assert!(
        is_empty(directory.path()),
        "something was left behind: {printed}"
    );
}

#[test]
fn demo_reports_missing_path_before_start() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let output = demo(&missing, &[]).output().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(
        printed.contains("hint:") && printed.contains("TMPDIR"),
        "{printed}"
    );
    assert!(!missing.exists());
}
