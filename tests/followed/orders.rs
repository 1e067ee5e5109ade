//! Hints about orders, their names, files and addresses, each followed.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use crate::followed::printed_command;
use crate::followed::servers::web_server;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{NOBODY, as_nobody, assert_says, certs, free_port, make_script, run, text};

const NAME: &str = "a.example.com";

fn verb<W: AsRef<std::ffi::OsStr>>(ca: &EmbeddedCa, words: &[W], code: i32) -> String {
    run(certs(&ca.path("")).args(words), code)
}

/// `certs issue` without an option for a challenge.
fn issue(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(["issue", "--agree-tos", "--ca", &ca.server.directory_url()]);
    command.arg("--ca-root").arg(ca.path("root.pem"));
    command.args(arguments);
    command
}

#[test]
fn address_of_another_machine_is_corrected() {
    let ca = EmbeddedCa::start();
    let local = |port: u16| format!("127.0.0.1:{port}");
    let tls = ["--challenge", "tls-alpn-01"];
    for (name, challenge, option, right) in [
        (NAME, &[][..], "--http-listen", ca.http_port),
        ("t.example.com", &tls, "--tls-listen", ca.tls_port),
    ] {
        let order = |address: &str, code| {
            let mut command = issue(&ca, &[name, option, address]);
            run(command.args(challenge), code)
        };
        let hint = format!("hint: check the address given with {option}");
        assert_says(&order("192.0.2.1:4430", 2), &[&hint]);
        order(&local(right), 0);
    }
    // DNS-01: without a delegation, the order fails later.
    let order = |address: &str| {
        let mut command = issue(
            &ca,
            &["d.example.com", "--dns", "self", "--dns-listen", address],
        );
        let ended = command
            .env("CERTS_RESOLVER", "127.0.0.1:1")
            .output()
            .unwrap();
        (ended.status.code(), text(&ended))
    };
    let (code, printed) = order("192.0.2.1:5300");
    assert_says(
        &printed,
        &["hint: check the address given with --dns-listen"],
    );
    let (later, printed) = order(&local(free_port()));
    assert!(code == Some(2) && later == Some(5), "{later:?} {printed}");
}

#[test]
fn roots_and_programs_that_hints_name_are_corrected() {
    let ca = EmbeddedCa::start();
    let (wrong, hook) = (ca.path("wrong.pem"), ca.path("hook"));
    let lines = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&wrong, lines).unwrap();
    let order = |root: &str, code| {
        let mut command = certs(&ca.path(""));
        let url = ca.server.directory_url();
        command.args(["issue", NAME, "--agree-tos", "--ca", &url, "--ca-root"]);
        command.arg(ca.path(root)).arg("--http-listen");
        run(command.arg(format!("127.0.0.1:{}", ca.http_port)), code)
    };
    for (root, words) in [
        (
            "absent.pem",
            "name an existing file that this user may read",
        ),
        ("wrong.pem", "check the file of --ca-root"),
    ] {
        assert_says(&order(root, 2), &[words]);
    }
    order("root.pem", 0);
    // A command that orders nothing.
    let show = |root: &str, code| {
        let url = ca.server.directory_url();
        let root = ca.path(root).display().to_string();
        verb(
            &ca,
            &["account", "show", "--ca", &url, "--ca-root", &root],
            code,
        )
    };
    std::fs::write(&wrong, "no certificate").unwrap();
    let words = "check the file of --ca-root: its path and its content";
    assert_says(&show("wrong.pem", 2), &[words]);
    show("root.pem", 0);
    let deploy = format!("--deploy=exec:{}", hook.display());
    let printed = run(&mut ca.issue(&[NAME, &deploy]), 7);
    assert_says(
        &printed,
        &["hint: name a program that exists and may be executed"],
    );
    make_script(&hook, "true");
    run(&mut ca.issue(&[NAME, &deploy]), 0);
}

#[test]
fn webroots_are_named_before_their_names_and_writable() {
    let ca = EmbeddedCa::start();
    let webroot = ca.path("www");
    std::fs::create_dir(&webroot).unwrap();
    web_server(ca.http_port, Some(webroot.clone()), 0);
    let root = webroot.to_str().unwrap();
    let other = ca.path("other").display().to_string();
    std::fs::create_dir(&other).unwrap();
    let both = [
        "--webroot",
        root,
        "b.example.com",
        "--webroot",
        &other,
        "c.example.com",
    ];
    let printed = run(&mut issue(&ca, &[&[NAME], &both[..]].concat()), 2);
    let words = "hint: name each webroot before its names: --webroot DIR NAME…";
    assert_says(&printed, &[words]);
    run(
        &mut issue(&ca, &[&["--webroot", root, NAME], &both[2..3]].concat()),
        0,
    );
    // What is in the way of the answers is moved away.
    let blocked = webroot.join(".well-known");
    let _ = std::fs::remove_dir_all(&blocked);
    std::fs::write(&blocked, "").unwrap();
    let order = |code| run(&mut issue(&ca, &["--webroot", root, "d.example.com"]), code);
    assert_says(&order(8), &["hint: certs did not make it: move it away"]);
    std::fs::remove_file(&blocked).unwrap();
    order(0);
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: only root gives directories to other users");
    }
    // As a user that may not write there.
    let other = tempfile::tempdir().unwrap();
    for path in [other.path(), &ca.path(""), &webroot] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    chown(other.path(), Some(NOBODY), None).unwrap();
    let _ = std::fs::remove_dir_all(webroot.join(".well-known"));
    let mut order = issue(&ca, &["--webroot", root, "c.example.com"]);
    order.env("CERTS_DATA_DIR", other.path().join("data"));
    order.env("CERTS_OUTPUT_DIR", other.path().join("out"));
    let mut order = as_nobody(&order, &ca.path(""));
    let printed = run(&mut order, 8);
    assert_says(
        &printed,
        &["hint: check the --webroot directory and its owner"],
    );
    chown(&webroot, Some(NOBODY), None).unwrap();
    run(&mut order, 0);
}

#[test]
fn names_are_given_in_each_way_that_the_hint_lists() {
    let ca = EmbeddedCa::start();
    let listen = format!("--http-listen=127.0.0.1:{}", ca.http_port);
    let printed = run(&mut ca.issue(&[]), 2);
    let command = printed_command(&printed, "hint: certs ", ", CERTS_DOMAINS=");
    let issued = run(certs(&ca.path("")).args(&command).arg(&listen), 0);
    assert_says(&issued, &["example.com: issued"]);
    let (_, rest) = printed.split_once("CERTS_DOMAINS=\"").unwrap();
    let (domains, rest) = rest.split_once('"').unwrap();
    assert!(
        rest.starts_with(", or [[certificate]] in certs.toml"),
        "{rest}"
    );
    let issued = run(ca.issue(&[]).env("CERTS_DOMAINS", domains), 0);
    assert_says(&issued, &["example.com: issued; generation 0002"]);
    std::fs::write(
        ca.path("certs.toml"),
        format!("[[certificate]]\nnames = '{NAME}'\n"),
    )
    .unwrap();
    let issued = run(ca.issue(&[]).current_dir(ca.path("")), 0);
    assert_says(&issued, &["a.example.com: issued"]);
}

#[test]
fn certificate_that_was_never_issued_is_retried_or_forgotten_as_printed() {
    let ca = EmbeddedCa::start();
    let names = ["intranet.example.com", "printer", "--name", "office"];
    let refusal = Fault::problem(400, "rejectedIdentifier", "not ours");
    ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    let printed = run(&mut ca.issue(&names), 4);
    ca.script.clear();
    let forget = printed_command(&printed, "if the name is wrong, forget it: certs ", "\n");
    // `certs run` names the command that goes on.
    let sidecar = crate::support::sidecar::Sidecar::start(&ca, &["kept.example.com"]);
    crate::support::until("the certificate that nothing keeps", || {
        sidecar
            .log()
            .contains("not managed, because no certificate exists yet")
    });
    let log = sidecar.log();
    sidecar.stop();
    let retry = printed_command(&log, "no certificate exists yet; hint: certs ", " retries");
    let printed = verb(&ca, &retry, 0);
    assert_says(&printed, &["office: issued"]);
    let printed = verb(&ca, &forget, 2);
    verb(
        &ca,
        &printed_command(&printed, "to delete it: certs ", "\n"),
        0,
    );
    verb(&ca, &["status", "office"], 2);
}

#[test]
fn refused_profile_is_ended_and_kept_key_is_replaced_as_printed() {
    let ca = EmbeddedCa::start();
    let none = Fault::Field("/meta/profiles", "{}".to_owned());
    ca.script.add(Endpoint::Directory, Which::Every, none);
    let printed = run(&mut ca.issue(&[NAME, "--profile", "fast"]), 4);
    let words = "this CA offers no profiles: repeat certs issue with --profile none";
    assert_says(&printed, &[words]);
    run(
        &mut ca.issue(&[NAME, "--profile", "none", "--reuse-key"]),
        0,
    );
    // A kept key decides its type, until it is no longer kept.
    let printed = run(&mut ca.issue(&[NAME, "--key", "rsa-2048"]), 0);
    let replace = printed_command(
        &printed,
        "hint: CERTS_REUSE_KEY=false certs ",
        " makes a new key",
    );
    let mut command = certs(&ca.path(""));
    let printed = run(command.args(replace).env("CERTS_REUSE_KEY", "false"), 0);
    assert_says(&printed, &["issued; generation 0002"]);
    let printed = verb(&ca, &["renew", "--force"], 0);
    assert!(!printed.contains("is kept (reuse_key)"), "{printed}");
}

/// Orders of the CA, each refused once: the endpoint and kind, the words of the hint, and the options before
/// and after.
type Refusal<'a> = (Endpoint, &'a str, &'a str, &'a [&'a str], &'a [&'a str]);

#[test]
fn refusals_of_the_ca_are_answered_as_their_hints_say() {
    let ca = EmbeddedCa::start();
    let rows: [Refusal<'_>; 3] = [
        (
            Endpoint::NewAccount,
            "invalidContact",
            "correct or remove --email",
            &[NAME, "--email", "a@example.com"],
            &[NAME],
        ),
        (
            Endpoint::NewOrder,
            "rejectedIdentifier",
            "remove that name, or use another CA",
            &["b.example.com", "c.example.com"],
            &["b.example.com"],
        ),
        (
            Endpoint::Finalize,
            "badPublicKey",
            "use another --key, without --reuse-key",
            &["d.example.com"],
            &["d.example.com", "--key", "ecdsa-p384"],
        ),
    ];
    for (endpoint, kind, hint, before, after) in rows {
        let refusal = Fault::problem(400, kind, "no");
        ca.script.add(endpoint, Which::Every, refusal);
        assert_says(&run(&mut ca.issue(before), 4), &[hint]);
        ca.script.clear();
        run(&mut ca.issue(after), 0);
    }
    let refusal = Fault::problem(400, "badRevocationReason", "no");
    ca.script.add(Endpoint::Revocation, Which::Nth(1), refusal);
    let revoke =
        |reason: &str, code| verb(&ca, &["revoke", NAME, "--now", "--reason", reason], code);
    assert_says(
        &revoke("superseded", 4),
        &["hint: the CA does not take this reason: give another --reason"],
    );
    revoke("unspecified", 0);
    // A signing request is its user's.
    let file = |place: &str| {
        std::fs::create_dir(ca.path(place)).unwrap();
        crate::keys::request(&ca.path(place), &["e.example.com"]).0
    };
    let refusal = Fault::problem(400, "badCSR", "no");
    ca.script.add(Endpoint::Finalize, Which::Nth(1), refusal);
    let printed = run(&mut crate::keys::csr(&ca, &file("first"), &[]), 4);
    let command = printed_command(&printed, "SHA-256, then certs ", "; if the name is wrong");
    let second = file("second").display().to_string();
    let command = command.iter().map(|word| word.replace("FILE", &second));
    let mut command: Vec<String> = command.collect();
    command.push(format!("--http-listen=127.0.0.1:{}", ca.http_port));
    verb(&ca, &command, 0);
}

#[test]
fn external_account_is_given_and_corrected_as_the_hints_say() {
    let key = b"0123456789abcdef";
    let ca = EmbeddedCa::with(|settings| {
        let key = certs::certificate::SecretBytes::new(key.to_vec());
        settings.external_accounts.insert("kid-1".to_owned(), key);
    });
    let hmac = ca.path("hmac").display().to_string();
    let order = |more: &[&str], code| run(ca.issue(&[NAME]).args(more), code);
    let both = ["--eab-kid", "kid-1", "--eab-hmac-file", &hmac];
    let words = "then set --eab-kid and --eab-hmac-file";
    assert_says(&order(&[], 4), &[words]);
    let words = "the CA gives both: a key identifier, and an HMAC key to put into a file";
    assert_says(&order(&both[..2], 2), &[words]);
    std::fs::write(&hmac, "ZmVkY2JhOTg3NjU0MzIxMA").unwrap();
    let words = "the CA does not accept the external account binding: correct --eab-kid and --eab-hmac-file";
    assert_says(&order(&both, 4), &[words]);
    std::fs::write(&hmac, "MDEyMzQ1Njc4OWFiY2RlZg").unwrap();
    order(&both, 0);
}

#[test]
fn ca_is_reached_as_the_hints_say() {
    let ca = EmbeddedCa::start();
    let port = free_port();
    web_server(port, Some(ca.path("")), 0);
    let listen = format!("127.0.0.1:{}", ca.http_port);
    let order = |url: &str, more: &[&str], proxy: &str, code| {
        let mut command = certs(&ca.path(""));
        command.args([
            "issue",
            NAME,
            "--agree-tos",
            "--http-listen",
            &listen,
            "--ca",
            url,
        ]);
        command.env("HTTPS_PROXY", "socks5://127.0.0.1:1");
        run(command.args(more).env("CERTS_PROXY", proxy), code)
    };
    let (url, root) = (
        ca.server.directory_url(),
        ca.path("root.pem").display().to_string(),
    );
    let with_root = ["--ca-root", root.as_str()];
    let printed = order(&url, &with_root, "", 2);
    assert_says(&printed, &["CERTS_PROXY=none uses none"]);
    let printed = order(&url, &[], "none", 3);
    assert_says(
        &printed,
        &["for a private CA, name its root: --ca-root root.pem"],
    );
    let printed = order(
        &format!("https://127.0.0.1:{port}/directory"),
        &with_root,
        "none",
        3,
    );
    assert_says(
        &printed,
        &["check that the directory URL names an https server"],
    );
    order(&url, &with_root, "none", 0);
}
