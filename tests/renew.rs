//! `certs renew` and dry runs, against Pebble.

use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::Sidecar;
use crate::support::{Pebble, certs, free_port, run, until};

fn certs_here(pebble: &Pebble) -> Command {
    let mut command = certs(&pebble.path(""));
    command.current_dir(pebble.path(""));
    command
}

#[test]
fn renew_uses_options_of_first_issue() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com", "--key", "rsa-2048"]), 0);
    // As from cron: another directory, no option, no variable but the data directory. While nothing is due,
    // another process may use port 80.
    let taken = std::net::TcpListener::bind(("127.0.0.1", pebble.http_port)).unwrap();
    let mut renew = certs(&pebble.path(""));
    let printed = run(renew.current_dir("/").arg("renew"), 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
    let printed = run(certs_here(&pebble).args(["renew", "--force"]), 2);
    assert!(printed.contains("cannot listen"), "{printed}");
    drop(taken);
    let printed = run(certs_here(&pebble).args(["renew", "--force"]), 0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    let key = pebble.path("out/live/example.com/privkey.pem");
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
    assert!(key.is_compatible(&rcgen::PKCS_RSA_SHA256));
}

#[test]
fn renew_continues_past_failed_certificate_and_exits_with_its_code() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    for name in ["a.example.com", "b.example.com", "c.example.com"] {
        run(&mut pebble.issue(&[name]), 0);
    }
    // Now configured with a CA at an unused port.
    let nowhere = format!("https://127.0.0.1:{}/dir", free_port());
    let file = format!(
        "ca = '{nowhere}'\nhttp_listen = '127.0.0.1:{}'\n[[certificate]]\nnames = 'b.example.com'\n",
        pebble.http_port
    );
    std::fs::write(pebble.path("certs.toml"), file).unwrap();
    let printed = run(certs_here(&pebble).args(["renew", "--force"]), 3);
    for line in [
        "a.example.com: issued; generation 0002",
        "b.example.com: failed (exit code 3)",
        "c.example.com: issued; generation 0002",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    let printed = run(
        certs_here(&pebble).args(["renew", "a.example.com", "--force"]),
        0,
    );
    assert!(printed.contains("a.example.com: issued; generation 0003"));
    assert!(!printed.contains("c.example.com"), "{printed}");
}

#[test]
fn issue_of_configured_certificate_needs_only_its_name() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let file = format!(
        "agree_tos = true\nca = '{}'\nca_root = 'root.pem'\nhttp_listen = '127.0.0.1:{}'\nkey = 'ecdsa-p384'\n\
         [[certificate]]\nnames = ['example.com', 'www.example.com']\n",
        pebble.directory_url(),
        pebble.http_port
    );
    std::fs::write(pebble.path("certs.toml"), file).unwrap();
    let printed = run(
        certs_here(&pebble).args(["issue", "example.com", "--json"]),
        0,
    );
    let printed: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&printed["name"], &printed["issued"]),
        (&"example.com".into(), &true.into())
    );
    let status = run(certs_here(&pebble).args(["status", "--json"]), 0);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status[0]["identifiers"].as_array().unwrap().len(), 2);
}

#[test]
fn dry_run_writes_nothing() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let printed = run(&mut pebble.issue(&["example.com", "--dry-run"]), 0);
    assert!(
        printed.contains("dry run: example.com would be issued"),
        "{printed}"
    );
    for name in ["data", "out"] {
        assert!(!pebble.path(name).exists(), "{name} was written");
    }
    // A name whose challenge fails does so in a dry run too.
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let webroot = webroot.to_str().unwrap().to_owned();
    let mut command = certs_here(&pebble);
    command.args([
        "issue",
        "example.com",
        "--dry-run",
        "--agree-tos",
        "--webroot",
        &webroot,
    ]);
    command.args(["--ca", &pebble.directory_url(), "--ca-root", "root.pem"]);
    let printed = run(&mut command, 5);
    assert!(printed.contains("dry run: example.com: "), "{printed}");
    assert_eq!(
        std::fs::read_dir(pebble.path("webroot/.well-known/acme-challenge"))
            .map_or(0, Iterator::count),
        0
    );
}

#[test]
fn inherited_socket_answers_challenge() {
    use std::os::fd::OwnedFd;

    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let socket = std::net::TcpListener::bind(("127.0.0.1", pebble.http_port)).unwrap();
    // Starts it as systemd does: descriptor 3, and the pid of the process.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$@\" 3<&0 0</dev/null", "sh"])
        .arg(env!("CARGO_BIN_EXE_certs"))
        .args([
            "issue",
            "example.com",
            "--agree-tos",
            "--ca",
            &pebble.directory_url(),
            "--ca-root",
        ])
        .arg(pebble.path("root.pem"))
        .env_clear()
        .env("CERTS_DATA_DIR", pebble.path("data"))
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "http")
        .stdin(OwnedFd::from(socket));
    let printed = run(&mut command, 0);
    assert!(printed.contains("issued; generation 0001"), "{printed}");
}

#[test]
fn damaged_certificate_affects_no_other() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    for name in ["a.example.com", "b.example.com", "c.example.com"] {
        run(&mut pebble.issue(&[name]), 0);
    }
    let records = |name: &str| pebble.path("data/records").join(name);
    std::fs::write(records("a.example.com").join("record.json"), "{").unwrap();
    // The settings of this certificate name a missing webroot.
    let options = records("b.example.com").join("options.json");
    let settings = std::fs::read_to_string(&options).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&settings).unwrap();
    settings["challenge"] = serde_json::json!({"webroot": pebble.path("gone")});
    std::fs::write(&options, settings.to_string()).unwrap();

    let printed = run(certs_here(&pebble).args(["renew", "--force"]), 2);
    for line in [
        "b.example.com: failed (exit code 2)",
        "a.example.com: failed (exit code 8)",
        "c.example.com: issued; generation 0002",
        "restore that file from a backup",
    ] {
        assert!(printed.contains(line), "no `{line}` in {printed}");
    }
    let printed = run(certs_here(&pebble).args(["renew", "c.example.com"]), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
    let printed = run(certs_here(&pebble).arg("status"), 8);
    assert!(printed.contains("a.example.com: "), "{printed}");
    assert!(printed.contains("c.example.com  "), "{printed}");
}

#[test]
fn names_in_any_order_mean_the_stored_certificate() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com", "www.example.com"]), 0);
    let printed = run(&mut pebble.issue(&["www.example.com", "example.com"]), 0);
    let unchanged = "example.com: not due; generation 0001";
    assert!(printed.starts_with(unchanged), "{printed}");
    for names in ["www.example.com example.com", "example.com www.example.com"] {
        let mut renew = certs_here(&pebble);
        renew.arg("renew").env("CERTS_DOMAINS", names);
        renew.env("CERTS_CA", pebble.directory_url());
        renew.env("CERTS_CA_ROOT", pebble.path("root.pem"));
        renew.env("CERTS_AGREE_TOS", "true");
        let printed = run(&mut renew, 0);
        assert!(printed.starts_with(unchanged), "{printed}");
        // The result, and its proof.
        assert_eq!(printed.lines().count(), 2, "{printed}");
    }
    let names = || {
        let status = run(certs_here(&pebble).args(["status", "--json"]), 0);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status.as_array().unwrap().len(), 1, "{status}");
        status[0]["identifiers"].as_array().unwrap().len()
    };
    for fewer in [
        &["example.com"][..],
        &["www.example.com"],
        &["example.com", "api.example.com"],
        &["api.example.com", "www.example.com", "--force"],
    ] {
        let printed = run(&mut pebble.issue(fewer), 2);
        for part in [
            "the certificate example.com also has ",
            "nothing was ordered",
            "hint: ",
        ] {
            assert!(printed.contains(part), "{printed}");
        }
        assert!(printed.contains(" --name example.com"), "{printed}");
    }
    assert_eq!(names(), 2);
    let more = ["api.example.com", "www.example.com", "example.com"];
    let printed = run(&mut pebble.issue(&more), 0);
    let grown = "example.com: issued; generation 0002";
    assert!(printed.contains(grown), "{printed}");
    assert_eq!(names(), 3);
    let fewer = ["www.example.com", "example.com", "--name", "example.com"];
    let printed = run(&mut pebble.issue(&fewer), 0);
    assert!(printed.contains("issued; generation 0003"), "{printed}");
    assert_eq!(names(), 2);
    // A request that was never issued is withdrawn.
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let mut more = certs_here(&pebble);
    more.args([
        "issue",
        "--agree-tos",
        "example.com",
        "www.example.com",
        "typo.example.com",
    ]);
    more.args(["--ca", &pebble.directory_url(), "--ca-root", "root.pem"]);
    run(more.arg("--webroot").arg(&webroot), 5);
    let printed = run(&mut pebble.issue(&["example.com", "www.example.com"]), 0);
    assert!(printed.contains("not due; generation 0003"), "{printed}");
    assert_eq!(names(), 2);
    let smaller = ["example.com", "--name", "example.com"];
    let printed = run(&mut pebble.issue(&smaller), 0);
    assert!(printed.contains("issued; generation 0004"), "{printed}");
    assert_eq!(names(), 1);
}

#[test]
fn renew_in_backoff_is_not_success() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    // No server listens there.
    let verify = format!("127.0.0.1:{}", free_port());
    let printed = run(&mut pebble.issue(&["example.com", "--verify", &verify]), 7);
    assert!(printed.contains("is not verified"), "{printed}");
    let printed = run(certs_here(&pebble).arg("renew"), 7);
    assert!(
        printed.contains("not deployed; the next try is at"),
        "{printed}"
    );
    assert!(printed.contains("hint: "), "{printed}");
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let other = format!(
        "agree_tos = true\nca = '{}'\nca_root = 'root.pem'\nwebroot = 'webroot'\n\
         [[certificate]]\nnames = 'other.example.com'\n",
        pebble.directory_url()
    );
    std::fs::write(pebble.path("certs.toml"), other).unwrap();
    run(certs_here(&pebble).args(["issue", "other.example.com"]), 5);
    let printed = run(certs_here(&pebble).args(["renew", "other.example.com"]), 6);
    assert!(printed.contains("the next try is at"), "{printed}");
}

/// The pair of the live generation, as its number and directory.
fn generation_in(output: &std::path::Path) -> Option<String> {
    let target = std::fs::read_link(output.join("live/example.com")).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

#[test]
fn later_commands_use_the_output_of_the_first() {
    let ca = EmbeddedCa::start();
    let (own, usual) = (ca.path("own"), ca.path("out"));
    let verb = |arguments: &[&str]| {
        let mut command = certs(&ca.path(""));
        command.args(arguments);
        command
    };
    run(ca.issue(&["example.com", "--output-dir"]).arg(&own), 0);
    assert_eq!(generation_in(&own).as_deref(), Some("0001"));
    run(&mut verb(&["renew", "--force"]), 0);
    assert_eq!(generation_in(&own).as_deref(), Some("0002"));
    run(&mut verb(&["rollback", "example.com"]), 0);
    assert_eq!(generation_in(&own).as_deref(), Some("0001"));
    run(&mut verb(&["reload", "example.com"]), 0);
    assert_eq!(generation_in(&own).as_deref(), Some("0002"));
    let printed = run(&mut verb(&["status", "example.com"]), 0);
    for line in [
        format!("output.directory: {}", own.display()),
        format!("ca.directory: {}", ca.server.directory_url()),
        "names: example.com".to_owned(),
    ] {
        assert!(printed.contains(&line), "no `{line}` in {printed}");
    }
    // The sidecar renews what is stored, by its own output for all else.
    let mut sidecar = Sidecar::start(&ca, &["other.example.com"]);
    until("the sidecar", || sidecar.readiness() == 200);
    run(&mut verb(&["renew", "example.com", "--force"]), 0);
    assert_eq!(generation_in(&own).as_deref(), Some("0003"));
    assert!(usual.join("live/other.example.com").exists());
    sidecar.running.kill();
    run(&mut verb(&["delete", "example.com", "--yes"]), 0);
    assert!(!own.join("archive/example.com").exists());
    assert!(!usual.join("live/example.com").is_symlink());
}
