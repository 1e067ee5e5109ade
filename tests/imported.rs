//! The renewal of imported certificates: one that cannot be ordered fails alone and is named, and is deployed
//! to its end.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, run, text, until};
use crate::takeover::{letsencrypt, pair};

/// Imports lineages of `ca` from a certbot directory, with these settings and days left.
fn import(ca: &EmbeddedCa, lineages: &[(&str, &str, i64)], more: &[&str]) -> String {
    let source = ca.path("letsencrypt");
    for (name, settings, days) in lineages {
        let file = name.replace('*', "wild");
        letsencrypt(&source, &[(&file, settings, &pair(&[name], *days))]);
        let conf = source.join(format!("renewal/{file}.conf"));
        let text = std::fs::read_to_string(&conf).unwrap();
        let public = "https://acme-v02.api.letsencrypt.org/directory";
        std::fs::write(&conf, text.replace(public, &ca.server.directory_url())).unwrap();
    }
    let mut command = certs(&ca.path(""));
    command.args(["import", "certbot"]).arg(&source);
    command.arg("--ca-root").arg(ca.path("root.pem")).args(more);
    let printed = run(&mut command, 0);
    assert!(
        printed.contains("its account: the source has no account 1"),
        "{printed}"
    );
    printed
}

/// certbot's settings for its own listener on loopback.
fn standalone(port: u16) -> String {
    format!("authenticator = standalone\nhttp01_address = 127.0.0.1\nhttp01_port = {port}")
}

/// A port that another process of this machine has.
fn taken() -> (TcpListener, u16) {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

fn options(root: &Path, name: &str) -> Value {
    let path = root.join(format!("data/records/{name}/options.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn renewal_fails_alone_where_its_port_is_taken() {
    let ca = EmbeddedCa::start();
    let (_socket, port) = taken();
    import(
        &ca,
        &[
            ("a.example.com", &standalone(port), 1),
            ("b.example.com", &standalone(ca.http_port), 1),
            ("c.example.com", &standalone(port), 60),
        ],
        &[],
    );
    let renew = |code| run(certs(&ca.path("")).arg("renew"), code);
    let printed = renew(2);
    let why = format!("a.example.com: it cannot be ordered: cannot listen on 127.0.0.1:{port}");
    for words in [
        &*why,
        "the port is used by",
        "a.example.com: failed (exit code 2)",
        "b.example.com: issued",
        "c.example.com: not due",
    ] {
        assert!(printed.contains(words), "no `{words}` in {printed}");
    }
    // Where none can go on, each is named, and nothing else is done.
    let printed = run(certs(&ca.path("")).args(["renew", "a.example.com"]), 2);
    let why = format!("a.example.com: cannot listen on 127.0.0.1:{port}");
    assert!(printed.contains(&why), "{printed}");
    run(certs(&ca.path("")).args(["renew", "c.example.com"]), 0);
}

#[test]
fn sidecar_renews_others_where_the_port_of_a_stored_certificate_is_taken() {
    let ca = EmbeddedCa::start();
    let (_socket, port) = taken();
    import(
        &ca,
        &[
            ("a.example.com", &standalone(port), 1),
            ("b.example.com", &standalone(ca.http_port), 1),
        ],
        &[],
    );
    let old = std::fs::read(ca.path("out/live/b.example.com/fullchain.pem")).unwrap();
    let mut command = certs(&ca.path(""));
    command.arg("run").env("CERTS_ADMIN_LISTEN", "off");
    let log = std::fs::File::create(ca.path("log")).unwrap();
    let _running = Running::start_logging(&mut command, log.into());
    until("the renewal of the other one", || {
        let live = std::fs::read(ca.path("out/live/b.example.com/fullchain.pem"));
        live.is_ok_and(|live| live != old)
    });
    let log = std::fs::read_to_string(ca.path("log")).unwrap();
    let why = format!("not renewable: cannot listen on 127.0.0.1:{port}");
    assert!(log.contains(&why) && log.contains("a.example.com"), "{log}");
    // What the configuration needs must work.
    let port = free_port();
    let other = EmbeddedCa::start();
    let (_socket, used) = taken();
    let mut command = certs(&other.path(""));
    command
        .args(["run", "x.example.com", "--agree-tos"])
        .args(["--admin-listen", &format!("127.0.0.1:{port}")])
        .args(["--http-listen", &format!("127.0.0.1:{used}")]);
    let printed = run(&mut command, 2);
    assert!(printed.contains("cannot listen on"), "{printed}");
}

#[test]
fn wildcard_is_deployed_to_its_end_and_named() {
    for (days, code) in [(60, 0), (1, 2)] {
        let ca = EmbeddedCa::start();
        let copy = ca.path("copy.pem");
        let deploy = format!("--deploy=file:{}", copy.display());
        let dns = "authenticator = dns-cloudflare";
        import(&ca, &[("*.example.com", dns, days)], &[&deploy]);
        let printed = run(certs(&ca.path("")).arg("renew"), code);
        assert!(copy.exists(), "{printed}");
        let why = "*.example.com: HTTP-01 cannot prove a wildcard";
        for words in [
            "wild.example.com",
            "not renewable",
            why,
            "certs delete wild.example.com",
        ] {
            assert!(printed.contains(words), "no `{words}` in {printed}");
        }
        assert_eq!(
            printed.contains("it cannot be ordered"),
            code == 2,
            "{printed}"
        );
        let status = run(certs(&ca.path("")).arg("status"), 0);
        assert!(
            status.contains(&format!("not renewable: {why}")),
            "{status}"
        );
        assert!(status.contains("for *.example.com"), "{status}");
        if code == 0 {
            let printed = certs(&ca.path("")).args(["renew", "-q"]).output().unwrap();
            assert_eq!(text(&printed), "");
        }
    }
}

#[test]
fn import_with_an_nginx_of_its_own_replaces_the_implied_one() {
    for (more, deploy) in [
        (vec![], json!(["nginx"])),
        (
            vec!["--deploy=nginx:/run/other.pid"],
            json!(["nginx:/run/other.pid"]),
        ),
        (vec!["--deploy=coturn"], json!(["coturn", "nginx"])),
    ] {
        let ca = EmbeddedCa::start();
        let nginx = "authenticator = nginx\ninstaller = nginx";
        import(&ca, &[("a.example.com", nginx, 60)], &more);
        assert_eq!(options(&ca.path(""), "a.example.com")["deploy"], deploy);
    }
}

#[test]
fn import_with_a_webroot_names_no_step_for_one() {
    let ca = EmbeddedCa::start();
    let import = |name: &str, more: &[&str]| {
        let settings = "authenticator = nginx\ninstaller = nginx";
        let printed = import(&ca, &[(name, settings, 60)], more);
        let lines = printed.lines().filter(|line| line.contains(name));
        lines.collect::<Vec<_>>().join("\n")
    };
    let step = "then import again with --webroot DIR";
    let printed = import("a.example.com", &[]);
    assert!(printed.contains(step), "{printed}");
    let webroot = format!("--webroot={}", ca.path("").display());
    let printed = import("b.example.com", &[&webroot]);
    assert!(!printed.contains(step), "{printed}");
}

#[test]
fn renewal_without_an_account_names_the_certificate_and_deploys_it() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let source = root.join("letsencrypt");
    letsencrypt(
        &source,
        &[("a.example.com", "", &pair(&["a.example.com"], 60))],
    );
    let copy = root.join("copy.pem");
    let mut import = certs(root);
    import.args(["import", "certbot"]).arg(&source);
    run(import.arg(format!("--deploy=file:{}", copy.display())), 0);
    let printed = run(certs(root).arg("renew"), 2);
    let why = "a.example.com: it cannot be ordered: the terms of service of https://acme-v02.api.letsencrypt.org/directory are not agreed to";
    assert!(printed.contains(why), "{printed}");
    assert!(copy.exists(), "{printed}");
    // The hint works.
    assert!(
        printed.contains("CERTS_AGREE_TOS=true in its environment"),
        "{printed}"
    );
    run(certs(root).arg("renew").env("CERTS_AGREE_TOS", "true"), 0);
    run(certs(root).arg("renew"), 0);
}

/// The page of the read-only endpoints at `path`.
fn page(port: u16, path: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn port_that_is_free_again_is_taken_or_the_restart_named() {
    for harden in ["false", "true"] {
        let ca = EmbeddedCa::start();
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, ca.http_port)).unwrap();
        // One that needs nothing now: where none can go on, the sidecar does not start.
        let both = [
            ("a.example.com", &*standalone(ca.http_port), 1),
            ("b.example.com", &standalone(free_port()), 60),
        ];
        import(&ca, &both, &[]);
        let live = || std::fs::read(ca.path("out/live/a.example.com/fullchain.pem")).ok();
        let (old, admin) = (live(), free_port());
        let mut command = certs(&ca.path(""));
        command.arg("run").env("CERTS_HARDEN", harden);
        command.env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        let log = std::fs::File::create(ca.path("log")).unwrap();
        let running = Running::start_logging(&mut command, log.into());
        let why = format!("not renewable: cannot listen on 127.0.0.1:{}", ca.http_port);
        let hint = "or stop it; then restart certs run";
        let status = || run(certs(&ca.path("")).arg("status"), 0);
        until("the status", || status().contains(&why));
        assert!(status().contains(hint), "{}", status());
        for path in ["/api/v1/certificates", "/readyz"] {
            let shown = page(admin, path);
            let why = why.trim_start_matches("not renewable: ");
            assert!(shown.contains(why) && shown.contains(hint), "{shown}");
        }
        drop(held);
        running.signal(rustix::process::Signal::HUP);
        if harden == "false" {
            until("the renewal", || live() != old);
            assert!(!status().contains("not renewable"), "{}", status());
            continue;
        }
        // The sandbox denies new listeners.
        until("the hint", || {
            status().contains("is free now; hint: restart certs run")
        });
        let log = std::fs::File::create(ca.path("log")).unwrap();
        drop(running);
        let _again = Running::start_logging(&mut command, log.into());
        until("the renewal", || live() != old);
    }
}
