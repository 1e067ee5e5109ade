//! Bad usage: a clear error, exit code 2, and nothing sent or written.

use crate::support::{certs, text};

fn refused(arguments: &[&str], words: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let output = certs(directory.path()).args(arguments).output().unwrap();
    let told = text(&output);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
    for word in words {
        assert!(told.contains(word), "{arguments:?}: no `{word}` in: {told}");
    }
    assert!(
        std::fs::read_dir(directory.path().join("data/records"))
            .map_or(true, |mut entries| entries.next().is_none()),
        "{arguments:?} wrote a record"
    );
}

#[test]
fn each_mistake_is_named_with_a_hint() {
    refused(&["issue"], &["no name is given", "hint:"]);
    refused(&["issue", "a..b"], &["not a valid DNS name"]);
    refused(&["issue", "https://example.com/"], &["is a URL"]);
    refused(
        &["issue", "localhost", "--agree-tos"],
        &["public CA", "hint:"],
    );
    refused(&["issue", "10.0.0.1", "--agree-tos"], &["private address"]);
    refused(
        &["issue", "example.com"],
        &["terms of service", "--agree-tos"],
    );
    refused(&["issue", "*.example.com", "--agree-tos"], &["wildcard"]);
    refused(
        &["issue", "example.com", "example.com", "--agree-tos"],
        &["given twice"],
    );
    refused(
        &["issue", "example.com", "--ca", "http://ca.example/dir"],
        &["is no CA", "https://"],
    );
    refused(
        &["issue", "example.com", "--agree-tos", "--deploy", "apache"],
        &["no way to hand over"],
    );
    refused(
        &[
            "issue",
            "example.com",
            "--agree-tos",
            "--verify",
            "example.com",
        ],
        &["HOST:PORT"],
    );
    refused(&["issue", "example.com", "--key", "dsa"], &["ecdsa-p256"]);
    refused(
        &["issue", "example.com", "--name", "../x"],
        &["not a valid"],
    );
    refused(&["status", "absent.example"], &["no such certificate"]);
}

#[test]
fn a_taken_port_is_told_with_who_has_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let pid = format!("(pid {})", std::process::id());
    let arguments = [
        "issue",
        "example.com",
        "--agree-tos",
        "--http-listen",
        &address,
    ];
    refused(&arguments, &["cannot listen", &pid, "--webroot"]);
}

#[test]
fn help_and_completions_are_results() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, word) in [
        (vec!["--help"], "issue"),
        (vec!["completions", "bash"], "_certs"),
        (vec!["man"], ".TH"),
    ] {
        let output = certs(directory.path()).args(&arguments).output().unwrap();
        assert!(output.status.success());
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(word),
            "{arguments:?}"
        );
    }
}
