//! Hints about revocations, rollbacks and signing requests, each followed.

use std::path::Path;
use std::process::Command;

use crate::followed::printed_command;
use crate::keys::{csr, request};
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{assert_says, certs, make_script, run};

const NAME: &str = "a.example.com";

fn verb<W: AsRef<std::ffi::OsStr>>(ca: &EmbeddedCa, words: &[W], code: i32) -> String {
    run(certs(&ca.path("")).args(words), code)
}

/// Runs the printed command between `before` and `after`.
fn follow(ca: &EmbeddedCa, printed: &str, (before, after): (&str, &str), code: i32) -> String {
    verb(ca, &printed_command(printed, before, after), code)
}

#[test]
fn hints_about_revocations_are_followed() {
    let ca = EmbeddedCa::start();
    let url = ca.server.directory_url();
    let live = |name: &str| {
        ca.path(&format!("out/live/{NAME}/{name}"))
            .display()
            .to_string()
    };
    run(&mut ca.issue(&[NAME]), 0);
    // Options that belong to a file are left out.
    let printed = verb(&ca, &["revoke", NAME, "--ca", &url], 2);
    assert_says(&printed, &["hint: leave out --ca and --ca-root"]);
    verb(&ca, &["revoke", NAME], 0);
    // A revocation is final.
    let printed = verb(&ca, &["revoke", NAME, "--cancel"], 2);
    let shown = follow(&ca, &printed, ("hint: certs ", " shows what is revoked"), 0);
    assert_says(&shown, &["generation 0001 is revoked since"]);
    let directory = ca.path("out").display().to_string();
    let printed = verb(&ca, &["revoke", "--cert-file", &directory, "--ca", &url], 2);
    assert_says(&printed, &["hint: name a readable file in PEM"]);
    // The file of a stored certificate: that one is replaced first.
    let printed = verb(
        &ca,
        &["revoke", "--cert-file", &live("cert.pem"), "--ca", &url],
        2,
    );
    let printed = follow(&ca, &printed, ("hint: certs ", " replaces it first"), 0);
    assert_says(&printed, &["generation 0002 is revoked since"]);
    // What is live and revoked is replaced, as two commands say, or deleted.
    let now = ["revoke", NAME, "--now"];
    let printed = verb(&ca, &now, 0);
    follow(
        &ca,
        &printed,
        ("still live; hint: certs ", " replaces it"),
        0,
    );
    verb(&ca, &now, 0);
    let printed = verb(&ca, &["status"], 0);
    follow(
        &ca,
        &printed,
        ("is revoked; hint: certs ", " replaces it"),
        0,
    );
    assert!(!verb(&ca, &["status"], 0).contains("is revoked; hint"));
    // Nothing is left to roll back to.
    let printed = verb(&ca, &["rollback", NAME], 2);
    follow(&ca, &printed, ("hint: certs ", " makes a new one"), 0);
    verb(&ca, &["rollback", NAME], 0);
    verb(&ca, &["reload", NAME], 0);
    // A generation that is gone.
    let mut found = Command::new("find");
    let found = found.arg(ca.path("data/records")).args(["-name", "0006*"]);
    let found = run(found, 0);
    assert_eq!(found.lines().count(), 1, "{found}");
    std::fs::remove_dir_all(found.trim())
        .or_else(|_| std::fs::remove_file(found.trim()))
        .unwrap();
    let printed = verb(&ca, &["revoke", NAME], 2);
    follow(&ca, &printed, ("hint: certs ", " replaces it"), 0);
    verb(&ca, &["revoke", NAME], 0);
    // The account may not revoke, and the key may.
    let refusal = Fault::problem(403, "unauthorized", "not yours");
    ca.script.add(Endpoint::Revocation, Which::Nth(1), refusal);
    let before = ca.script.committed(Endpoint::Revocation);
    let printed = verb(&ca, &now, 4);
    assert_says(
        &printed,
        &["repeat the command with --reason keycompromise"],
    );
    verb(&ca, &[&now[..], &["--reason", "keycompromise"]].concat(), 0);
    assert!(ca.script.committed(Endpoint::Revocation) > before);
    let printed = verb(&ca, &now, 0);
    let delete = ("replaces it, certs ", " ends it");
    let printed = follow(&ca, &printed, delete, 2);
    follow(&ca, &printed, ("to delete it: certs ", "\n"), 0);
    assert_eq!(verb(&ca, &["list", "--json"], 0).trim(), "[]");
}

#[test]
fn pending_revocation_is_continued_hastened_or_given_up_as_printed() {
    let ca = EmbeddedCa::start();
    let (hook, broken) = (ca.path("hook"), ca.path("broken"));
    make_script(&hook, &format!("test ! -e {}", broken.display()));
    let deploy = format!("--deploy=exec:{}", hook.display());
    run(&mut ca.issue(&[NAME, &deploy]), 0);
    std::fs::write(&broken, "").unwrap();
    let revoke = || verb(&ca, &["revoke", NAME, "--reason", "superseded"], 7);
    let status = || verb(&ca, &["status"], 0);
    const GIVES_UP: (&str, &str) = (", certs ", " gives it up");
    follow(&ca, &revoke(), GIVES_UP, 0);
    assert!(!status().contains("to be revoked"));
    revoke();
    follow(&ca, &status(), GIVES_UP, 0);
    revoke();
    std::fs::remove_file(&broken).unwrap();
    let continues = ("(superseded); hint: certs ", " continues");
    let printed = follow(&ca, &status(), continues, 0);
    assert_says(&printed, &["is revoked since"]);
    std::fs::write(&broken, "").unwrap();
    let printed = revoke();
    let before = ca.script.committed(Endpoint::Revocation);
    let words = printed_command(&printed, "hint: certs revoke", " waits for no replacement");
    let mut now = certs(&ca.path(""));
    now.arg("revoke").args(words).output().unwrap();
    assert_eq!(ca.script.committed(Endpoint::Revocation), before + 1);
}

#[test]
fn certificate_of_an_earlier_ca_is_revoked_by_the_printed_command() {
    let (ca, new) = (EmbeddedCa::start(), EmbeddedCa::start());
    let file = ca.path("certs.toml");
    let configure = |from: &EmbeddedCa| {
        let text = format!(
            "ca = '{}'\nca_root = '{}'\nhttp_listen = '127.0.0.1:{}'\n[[certificate]]\nnames = '{NAME}'\n",
            from.server.directory_url(),
            from.path("root.pem").display(),
            from.http_port
        );
        std::fs::write(&file, text).unwrap();
    };
    let verb = |words: &[String], code| {
        let mut command = certs(&ca.path(""));
        run(command.args(words).env("CERTS_CONFIG", &file), code)
    };
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    configure(&ca);
    verb(&words(&["renew"]), 0);
    configure(&new);
    let printed = verb(&words(&["revoke", NAME]), 2);
    let place = crate::followed::place(&printed, "privkey.pem of ");
    let archive = ca.path("out").join(place);
    let revoke = printed_command(&printed, "hint: certs ", " with cert.pem");
    let revoke = revoke.iter().map(|word| match word.as_str() {
        "CERT" => archive.join("cert.pem").display().to_string(),
        "KEY" => archive.join("privkey.pem").display().to_string(),
        word => word.to_owned(),
    });
    let root = ca.path("root.pem").display().to_string();
    // The root of a private CA, which no setting names any more.
    let revoke: Vec<String> = revoke.chain(words(&["--ca-root", &root])).collect();
    verb(&revoke, 0);
    assert_eq!(ca.script.committed(Endpoint::Revocation), 1);
    verb(&printed_command(&printed, "and then certs ", "\n"), 0);
    assert!(!verb(&words(&["status"]), 0).contains("to be revoked"));
}

/// The printed command for a signing request, with this file.
fn with_file(ca: &EmbeddedCa, words: &[String], file: &Path, code: i32) -> String {
    let words = words.iter().map(|word| match word.as_str() {
        "FILE" => file.display().to_string(),
        word => word.to_owned(),
    });
    let listen = format!("--http-listen=127.0.0.1:{}", ca.http_port);
    run(certs(&ca.path("")).args(words).arg(listen), code)
}

/// A signing request of a new key.
fn new_request(ca: &EmbeddedCa, place: &str) -> std::path::PathBuf {
    std::fs::create_dir(ca.path(place)).unwrap();
    request(&ca.path(place), &[NAME]).0
}

#[test]
fn hints_about_signing_requests_are_followed() {
    let ca = EmbeddedCa::start();
    let (first, absent) = (new_request(&ca, "first"), ca.path("absent.csr"));
    // Files without a signing request.
    std::fs::write(ca.path("large"), "x".repeat(70_000)).unwrap();
    for (file, words) in [
        (absent, "name an existing file that this user may read"),
        (ca.path("large"), "name a signing request in PEM or DER"),
    ] {
        assert_says(&run(&mut csr(&ca, &file, &[]), 2), &[words]);
    }
    let haproxy = "--deploy=haproxy:/run/x.sock";
    let printed = run(&mut csr(&ca, &first, &[haproxy]), 2);
    assert_says(&printed, &["--deploy none deploys to nothing"]);
    run(&mut csr(&ca, &first, &["--deploy", "none"]), 0);
    // Its key is its user's.
    let printed = run(&mut ca.issue(&[NAME, "--key", "rsa-2048"]), 2);
    assert_says(&printed, &["hint: leave --key out"]);
    run(&mut ca.issue(&[NAME]), 0);
    let another = printed_command(&printed, "for another key, certs ", " with its request");
    let second = new_request(&ca, "second");
    with_file(
        &ca,
        &[&another[..], &["--name".into(), NAME.into()]].concat(),
        &second,
        0,
    );
    // A certificate that has a request cannot get another key by itself.
    let printed = verb(&ca, &["revoke", NAME], 2);
    assert!(!printed.contains("--cancel"), "{printed}");
    let order = printed_command(&printed, "hint: certs ", " with the request of a new key");
    with_file(&ca, &order, &new_request(&ca, "third"), 0);
    let cert = ca
        .path("out")
        .join(crate::followed::place(&printed, "cert.pem of "))
        .join("cert.pem");
    let revoke = printed_command(&printed, "and then certs ", " with the cert.pem");
    let revoke = revoke.iter().map(|word| match word.as_str() {
        "CERT" => cert.display().to_string(),
        word => word.to_owned(),
    });
    let revoke: Vec<String> = revoke.collect();
    verb(&ca, &revoke, 0);
    follow(&ca, &printed, ("or certs ", "\n"), 0);
    // A revoked key gets no certificate again.
    let printed = run(&mut csr(&ca, &ca.path("third/site.csr"), &[]), 2);
    let (before, after) = ("a new request, then certs ", "\n");
    let order = printed_command(&printed, before, after);
    with_file(&ca, &order, &new_request(&ca, "fourth"), 0);
}

#[test]
fn certificate_with_its_key_here_keeps_it_or_ends_as_printed() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let file = new_request(&ca, "request");
    let printed = run(&mut csr(&ca, &file, &[]), 2);
    let second = printed_command(&printed, "for a second certificate: certs ", ";");
    with_file(&ca, &second, &file, 0);
    let delete = ("to end the first one: certs ", "\n");
    let printed = follow(&ca, &printed, delete, 2);
    follow(&ca, &printed, ("to delete it: certs ", "\n"), 0);
    // The names are those of the other certificate now.
    let printed = run(&mut csr(&ca, &file, &[]), 0);
    assert_says(&printed, &["a.example.com_csr: not due"]);
}

#[test]
fn signing_request_that_the_hint_makes_is_taken() {
    let ca = EmbeddedCa::start();
    let key = ca.path("key.pem").display().to_string();
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let file = ca.path("made.csr");
    std::fs::write(&file, "hello").unwrap();
    let printed = run(&mut csr(&ca, &file, &[]), 2);
    let words = printed_command(&printed, "hint: openssl ", " makes one");
    let words = words.iter().map(|word| word.replace("KEY", &key));
    let made = Command::new("openssl").args(words).output();
    let Ok(made) = made else {
        return eprintln!("SKIPPED: openssl is not installed");
    };
    std::fs::write(&file, made.stdout).unwrap();
    run(&mut csr(&ca, &file, &[]), 0);
}
