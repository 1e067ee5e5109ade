//! `certs delete`, and names that never got a certificate.

use std::path::Path;
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::Sidecar;
use crate::support::strace::{Strace, is_about, points};
use crate::support::{by_depth, certs, make_script, run, until};

fn verb(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

/// What is left of `name` below the data and output directories.
fn left(ca: &EmbeddedCa, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in ["data/records", "out/live", "out/archive"] {
        let entries = std::fs::read_dir(ca.path(part)).into_iter().flatten();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names = names.filter(|found| found.contains(name));
        found.extend(names.map(|name| format!("{part}/{name}")));
    }
    found.sort();
    found
}

/// An issuance whose challenge answers no server serves.
fn fail(ca: &EmbeddedCa, name: &str) -> String {
    let webroot = ca.path("webroot");
    std::fs::create_dir_all(&webroot).unwrap();
    let mut issue = verb(ca, &["issue", name, "--agree-tos", "--webroot"]);
    issue
        .arg(&webroot)
        .arg("--ca-root")
        .arg(ca.path("root.pem"));
    run(issue.args(["--ca", &ca.server.directory_url()]), 5)
}

#[test]
fn never_issued_name_is_said_to_be_one_until_it_is_deleted() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["example.com"]), 0);
    for printed in [
        fail(&ca, "exmaple.com"),
        run(&mut verb(&ca, &["renew"]), 6),
        run(&mut verb(&ca, &["status"]), 0),
    ] {
        assert!(printed.contains("no certificate exists yet"), "{printed}");
        assert!(printed.contains("certs delete exmaple.com"), "{printed}");
        assert!(!printed.contains("in use"), "{printed}");
    }
    let printed = run(&mut verb(&ca, &["delete", "exmaple.com", "--yes"]), 0);
    assert!(printed.contains("no certificate exists yet"), "{printed}");
    assert_eq!(left(&ca, "exmaple"), Vec::<String>::new());
    run(&mut verb(&ca, &["renew"]), 0);
}

#[test]
fn delete_removes_record_and_files_after_a_yes() {
    let ca = EmbeddedCa::start();
    let copy = format!("file:{}", ca.path("copy.pem").display());
    run(&mut ca.issue(&["example.com", "--deploy", &copy]), 0);
    run(&mut ca.issue(&["kept.example.net"]), 0);
    let before = left(&ca, "example.com");
    let places = [
        "data/records/example.com",
        "out/archive/example.com",
        "out/live/example.com",
    ];
    assert_eq!(before, places);
    // No terminal, and no answer.
    let printed = run(&mut verb(&ca, &["delete", "example.com"]), 2);
    for part in [
        "generation 0001",
        "out/live/example.com",
        "out/archive/example.com",
        "copy.pem",
        "nothing was deleted",
        "hint: to delete it: certs delete example.com --yes",
    ] {
        assert!(printed.contains(part), "no `{part}` in {printed}");
    }
    assert_eq!(left(&ca, "example.com"), before);
    let keep = ["delete", "example.com", "--yes", "--keep-files", "--json"];
    let printed = run(&mut verb(&ca, &keep), 0);
    assert!(printed.contains(r#""deleted":true"#), "{printed}");
    assert_eq!(left(&ca, "example.com"), before[1..]);
    // What only its files are left of can be deleted, too.
    run(&mut verb(&ca, &["delete", "example.com", "--yes"]), 0);
    assert_eq!(left(&ca, "example.com"), Vec::<String>::new());
    assert!(ca.path("copy.pem").exists());
    let printed = run(&mut verb(&ca, &["delete", "example.com", "--yes"]), 2);
    assert!(
        printed.contains("unknown certificate example.com"),
        "{printed}"
    );
    assert_eq!(left(&ca, "kept.example.net").len(), 3);
    // The name starts again.
    let printed = run(&mut ca.issue(&["example.com"]), 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
}

#[test]
fn delete_says_that_the_configuration_still_asks() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["example.com"]), 0);
    let mut delete = verb(&ca, &["delete", "example.com"]);
    let printed = run(
        delete.env("CERTS_DOMAINS", "other.example.com; example.com"),
        2,
    );
    assert!(
        printed.contains("the configuration still has it"),
        "{printed}"
    );
}

#[test]
fn delete_ends_the_work_of_a_running_sidecar() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["old.example.com"]), 0);
    let sidecar = Sidecar::start(&ca, &["example.com"]);
    until("the sidecar", || sidecar.readiness() == 200);
    let printed = run(&mut verb(&ca, &["delete", "old.example.com", "--yes"]), 0);
    assert!(printed.contains("old.example.com: deleted"), "{printed}");
    assert_eq!(left(&ca, "old.example.com"), Vec::<String>::new());
    run(verb(&ca, &["renew"]).env("CERTS_AGREE_TOS", "true"), 0);
    assert_eq!(left(&ca, "old.example.com"), Vec::<String>::new());
    sidecar.stop();
}

#[test]
fn delete_killed_at_any_call_is_finished_by_the_next() {
    let Some(strace) = Strace::find_with_arguments("killed deletions") else {
        return;
    };
    let ca = EmbeddedCa::start();
    let delete = verb(&ca, &["delete", "example.com", "--yes"]);
    let issue = || run(&mut ca.issue(&["example.com"]), 0);
    issue();
    let calls = strace.calls(&delete);
    let (data, output) = (ca.path("data"), ca.path("out"));
    let about = |call: &_| is_about(call, &[data.as_path(), output.as_path()] as &[&Path]);
    let points = points(&calls, about);
    assert!(points.len() > 15, "{points:?}");
    for point in points.iter().step_by(by_depth(6, 1, 1)) {
        issue();
        strace.kill_at(&delete, point);
        let again = { delete_again(&ca) };
        // A kill after the last removal has finished it.
        let code = again.status.code();
        assert!(matches!(code, Some(0 | 2)), "{point:?}: {again:?}");
        assert_eq!(left(&ca, "example.com"), Vec::<String>::new(), "{point:?}");
    }
}

fn delete_again(ca: &EmbeddedCa) -> std::process::Output {
    verb(ca, &["delete", "example.com", "--yes"])
        .output()
        .unwrap()
}

#[test]
fn delete_withdraws_the_rights_that_nothing_else_uses() {
    let ca = EmbeddedCa::start();
    let hook = ca.path("hook");
    make_script(&hook, "true\n");
    let (hook, copy) = (hook.display(), ca.path("copy.pem"));
    let deploy = [&format!("exec:{hook}"), &format!("file:{}", copy.display())];
    let deploy = deploy.map(|spec| format!("--deploy={spec}"));
    run(&mut ca.issue(&["a.example.com", &deploy[0], &deploy[1]]), 0);
    run(&mut ca.issue(&["b.example.com", &deploy[0]]), 0);
    let confirmed = || {
        let text = std::fs::read_to_string(ca.path("data.confirmed/rights.json")).unwrap();
        ["/hook", "/copy.pem"].map(|path| text.contains(path))
    };
    assert_eq!(confirmed(), [true, true]);
    let printed = run(&mut verb(&ca, &["delete", "a.example.com", "--yes"]), 0);
    let withdrawn = format!("no longer confirmed: deploy to file:{}", copy.display());
    assert!(printed.contains(&withdrawn), "{printed}");
    assert_eq!(confirmed(), [true, false]);
    run(&mut verb(&ca, &["delete", "b.example.com", "--yes"]), 0);
    assert_eq!(confirmed(), [false, false]);
}

#[test]
fn damaged_record_can_be_deleted() {
    let ca = EmbeddedCa::start();
    for (file, content) in [
        ("record.json", b"{" as &[u8]),
        ("record.json", b"\xff"),
        ("options.json", b"\xff"),
    ] {
        run(&mut ca.issue(&["example.com"]), 0);
        let path = ca.path("data/records/example.com").join(file);
        std::fs::write(&path, content).unwrap();
        let damaged = format!("{} is damaged", path.display());
        let printed = run(&mut verb(&ca, &["delete", "example.com"]), 2);
        assert!(printed.contains(&damaged), "{printed}");
        assert!(!printed.contains("no certificate exists"), "{printed}");
        let sidecar = (file == "options.json").then(|| Sidecar::start(&ca, &["other.example.com"]));
        if let Some(sidecar) = &sidecar {
            until("the report", || sidecar.readiness() == 503);
        }
        run(&mut verb(&ca, &["delete", "example.com", "--yes"]), 0);
        assert_eq!(left(&ca, "/example.com"), Vec::<String>::new());
        if let Some(sidecar) = sidecar {
            until("readiness", || sidecar.readiness() == 200);
            sidecar.stop();
        }
    }
}
