//! Rights that only the store names: denied, and seen to be denied before a renewal needs them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::Sidecar;
use crate::support::{certs, run, until};
use crate::targets::script;

const NAME: &str = "shop.example.com";

fn verb(ca: &EmbeddedCa, arguments: &[&str], code: i32) -> String {
    run(certs(&ca.path("")).args(arguments), code)
}

/// The body of `/readyz`.
fn readyz(sidecar: &Sidecar) -> String {
    let url = format!("http://127.0.0.1:{}/readyz", sidecar.admin);
    let mut curl = Command::new("curl");
    let answer = curl.args(["--silent", "--max-time", "10", &url]).output();
    String::from_utf8(answer.unwrap().stdout).unwrap()
}

#[test]
fn sidecar_reads_rights_that_are_confirmed_while_it_runs() {
    let ca = EmbeddedCa::start();
    let hook = script(&ca.path("hook"), "true");
    let sidecar = Sidecar::start(&ca, &["other.example.com"]);
    until("readiness", || sidecar.log().contains(" ready"));
    for name in ["a.example.com", "b.example.com"] {
        run(&mut ca.issue(&[name, &hook]), 0);
        until("the certificate is managed", || {
            readyz(&sidecar).is_empty() || verb(&ca, &["status"], 0).contains(name)
        });
    }
    run(
        crate::support::certs(&ca.path("")).args(["delete", "a.example.com", "--yes"]),
        0,
    );
    sidecar.running.signal(rustix::process::Signal::HUP);
    until("the reload", || {
        sidecar.log().contains("the configuration was reloaded")
    });
    let log = sidecar.log();
    assert!(!log.contains("cannot be used"), "{log}");
    sidecar.stop();
}

#[test]
fn denied_rights_are_shown_before_the_renewal() {
    let ca = EmbeddedCa::start();
    let confirmed = ca.path("data.confirmed/rights.json");
    let hook = script(&ca.path("hook"), "true");
    run(&mut ca.issue(&[NAME, &hook]), 0);
    let own = ca.path("own").display().to_string();
    let moved = ["moved.example.com", "--output-dir", &own];
    run(&mut ca.issue(&moved), 0);
    assert!(!verb(&ca, &["status"], 0).contains("denied"));
    let rights = fs::read_to_string(&confirmed).unwrap();

    fs::remove_file(&confirmed).unwrap();
    let printed = verb(&ca, &["status"], 0);
    for right in [
        format!(
            "denied: the right to deploy to exec:{}",
            ca.path("hook").display()
        ),
        format!("denied: the right to write below {own}"),
    ] {
        let hint = "configured nor confirmed; hint: as root, repeat certs issue with its options";
        let right = format!("{right} is stored, but neither {hint}");
        assert!(printed.contains(&right), "no `{right}` in {printed}");
    }
    let printed = verb(&ca, &["rename", "moved.example.com", "moved"], 8);
    let hint = "hint: as root, repeat certs issue with its options: it confirms them";
    assert!(printed.contains(hint), "{printed}");
    let json = verb(&ca, &["status", "--json"], 0);
    let json: Value = serde_json::from_str(&json).unwrap();
    let first = json[1]["denied"][0].as_str().unwrap();
    assert!(first.starts_with("deploy to exec:"), "{json}");
    let sidecar = Sidecar::start(&ca, &["other.example.com"]);
    let words = [
        format!("{NAME}: denied: deploy to exec:"),
        "moved.example.com: not managed: ".to_owned(),
    ];
    until("the obstacles", || {
        let body = readyz(&sidecar);
        words.iter().all(|words| body.contains(words)) && !body.contains("other.example.com")
    });
    assert_eq!(sidecar.readiness(), 503);
    // The administrator confirms them again.
    run(&mut ca.issue(&[NAME, &hook]), 0);
    until("one obstacle", || !readyz(&sidecar).contains(NAME));
    sidecar.stop();
    run(&mut ca.issue(&moved), 0);
    assert!(!verb(&ca, &["status"], 0).contains("denied"));
    verb(&ca, &["rename", "moved.example.com", "moved"], 0);

    // A damaged file confirms nothing, and no command passes over it.
    fs::write(&confirmed, &rights[..rights.len() / 2]).unwrap();
    for mut command in [
        ca.issue(&[NAME, &hook, "--force"]),
        ca.issue(&["new.example.com", &hook]),
        ca.issue(&[NAME]),
    ] {
        let printed = run(&mut command, 8);
        let shown = confirmed.display();
        for words in [
            format!("the confirmed rights in {shown} cannot be used: "),
            format!("hint: move {shown} away"),
        ] {
            assert!(printed.contains(&words), "no `{words}` in {printed}");
        }
    }
    let printed = verb(&ca, &["status"], 8);
    assert!(
        printed.contains(NAME) && printed.contains("cannot be used"),
        "{printed}"
    );
    assert!(!printed.contains("new.example.com"), "{printed}");
    verb(&ca, &["renew"], 8);
    // The file is moved away, and the rights are confirmed again.
    fs::rename(&confirmed, ca.path("away")).unwrap();
    run(&mut ca.issue(&[NAME, &hook]), 0);
    let printed = verb(&ca, &["status", NAME], 0);
    assert!(!printed.contains("denied"), "{printed}");
}

#[test]
fn program_that_others_can_change_is_not_confirmed_for_later() {
    let ca = EmbeddedCa::start();
    let (shared, seen) = (ca.path("shared"), ca.path("seen"));
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    let hook = script(&shared.join("hook"), &format!("echo >{}", seen.display()));
    let printed = run(&mut ca.issue(&[NAME, &hook]), 7);
    assert!(
        printed.contains("not confirmed: the right to deploy to exec:"),
        "{printed}"
    );
    // The directory is mended, with what another user has left in it.
    fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
    let printed = verb(&ca, &["renew", NAME, "--force"], 7);
    assert!(printed.contains("nor confirmed"), "{printed}");
    assert!(!seen.exists());
    run(&mut ca.issue(&[NAME, &hook]), 0);
    assert!(seen.exists());
}

#[test]
fn output_outside_the_sandbox_is_refused_before_an_order() {
    let ca = EmbeddedCa::start();
    let sidecar = Sidecar::start(&ca, &["kept.example.com"]);
    until("readiness", || sidecar.readiness() == 200);
    let own = ca.path("own").display().to_string();
    for name in [NAME, "kept.example.com"] {
        let printed = run(&mut ca.issue(&[name, "--output-dir", &own]), 2);
        assert!(printed.contains("outside its sandbox"), "{printed}");
        assert!(
            printed.contains("hint: leave out --output-dir"),
            "{printed}"
        );
    }
    assert!(!ca.path(&format!("data/records/{NAME}")).exists());
    // A command that names none takes that of the sidecar.
    run(ca.issue(&[NAME]).env_remove("CERTS_OUTPUT_DIR"), 0);
    assert!(ca.path(&format!("out/live/{NAME}")).exists());
    sidecar.stop();
    run(&mut ca.issue(&[NAME, "--output-dir", &own]), 0);
    assert!(ca.path(&format!("own/live/{NAME}")).exists());
}

#[test]
fn readyz_reports_that_the_helper_process_is_gone() {
    let ca = EmbeddedCa::start();
    let sidecar = Sidecar::start(&ca, &[NAME]);
    until("readiness", || sidecar.readiness() == 200);
    let id = sidecar.running.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let helper: i32 = children.trim().parse().unwrap();
    let helper = rustix::process::Pid::from_raw(helper).unwrap();
    rustix::process::kill_process(helper, rustix::process::Signal::KILL).unwrap();
    until("the report", || sidecar.readiness() == 503);
    assert!(readyz(&sidecar).contains("helper process is gone"));
}

#[test]
fn certificate_whose_output_is_denied_is_deleted_without_its_files() {
    let ca = EmbeddedCa::start();
    let (own, hook) = (
        ca.path("own").display().to_string(),
        script(&ca.path("hook"), "true"),
    );
    run(&mut ca.issue(&[NAME, "--output-dir", &own, &hook]), 0);
    let rights = ca.path("data.confirmed/rights.json");
    let confirmed = fs::read_to_string(&rights).unwrap();
    fs::remove_file(&rights).unwrap();
    let printed = verb(&ca, &["delete", NAME, "--yes"], 8);
    let words = crate::followed::printed_command(&printed, "without those files: certs ", "\n");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    verb(&ca, &words, 0);
    assert!(ca.path(&format!("own/live/{NAME}")).exists());
    // What nothing uses any more is withdrawn, or removed by hand.
    fs::write(&rights, confirmed).unwrap();
    let other = "other.example.com";
    for name in [NAME, other] {
        run(&mut ca.issue(&[name, &hook]), 0);
    }
    let options = ca.path(&format!("data/records/{other}/options.json"));
    let readable = fs::read_to_string(&options).unwrap();
    fs::write(&options, "{").unwrap();
    let printed = verb(&ca, &["delete", NAME, "--yes"], 0);
    let hint = format!(
        "hint: remove from {} what nothing else uses",
        rights.display()
    );
    assert!(printed.contains(&hint), "{printed}");
    fs::write(&options, readable).unwrap();
    verb(&ca, &["delete", other, "--yes"], 0);
    fs::write(&rights, r#"{"rights":[]}"#).unwrap();
    verb(&ca, &["status"], 0);
}
