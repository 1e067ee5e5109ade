//! The whole of it in one command: nginx answers the CA, then has TLS, then redirects. What nginx does not
//! serve as planned is undone.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use certs::ca::{Ports, Resolve, Validation};

use super::{Machine, PLAIN, pair, write};
use crate::support::embedded::EmbeddedCa;
use crate::support::{assert_says, certs, listens, run, until};

/// A CA that validates at the machine's nginx.
pub(super) fn ca_of(machine: &Machine) -> EmbeddedCa {
    let port = machine.http;
    EmbeddedCa::with(|settings| {
        settings.validation = Validation::Connect {
            ports: Ports::both(port),
            resolve: Resolve::Fixed(Ipv4Addr::LOCALHOST.into()),
        };
    })
}

/// A running machine with this site, and a CA that validates there.
pub(super) fn started(site: &str) -> Option<(Machine, EmbeddedCa)> {
    let machine = Machine::new(site)?;
    let ca = ca_of(&machine);
    machine.start();
    Some((machine, ca))
}

/// `certs install nginx` that orders from this CA.
pub(super) fn whole(machine: &Machine, ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = machine.install(&["--agree-tos", "--ca", &ca.server.directory_url()]);
    command.arg("--ca-root").arg(ca.path("root.pem"));
    command.args(arguments);
    command
}

/// A site, `MINE`, beside another one with TLS.
fn beside_tls(machine: &Machine, mine: &str) {
    let live = pair(machine, "other");
    let other = format!(
        "server_name other.example.com; ssl_certificate {live}/fullchain.pem; \
         ssl_certificate_key {live}/privkey.pem; location / {{ return 200 'other'; }} }}\n"
    );
    let site = mine.replace("OTHER", &other);
    machine.write_site(&site.replace("TLS", &machine.https.to_string()));
}

#[test]
fn install_issues_then_adds_tls_then_redirects() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    let printed = run(
        &mut whole(
            &machine,
            &ca,
            &["--domain", "example.com", "--email", "a@example.com"],
        ),
        0,
    );
    assert!(
        printed.contains("issued, and verified by a handshake"),
        "{printed}"
    );
    assert!(!printed.contains("not checked"), "{printed}");
    for name in ["example.com", "www.example.com"] {
        ca.leaf_at(machine.https, name);
    }
    let moved = machine.ask("http://www.example.com:HTTP/a?b", &[]);
    let target = format!("location: https://www.example.com:{}/a?b", machine.https);
    assert!(
        moved.contains(" 308 ") && moved.contains(&target),
        "{moved}"
    );
    assert!(
        machine
            .ask("http://other.example.com:HTTP/", &[])
            .ends_with("other")
    );
    // It is renewed through nginx, and deployed there.
    let state = machine.directory.path();
    let shown = run(certs(state).args(["status", "--json"]), 0);
    assert!(
        shown.contains(r#""state":"proven""#) || shown.contains("proven"),
        "{shown}"
    );
    run(certs(state).args(["renew", "--force"]), 0);
    let printed = run(
        &mut whole(&machine, &ca, &["--domain", "www.example.com"]),
        0,
    );
    assert!(printed.contains("nothing to change"), "{printed}");
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn refused_order_leaves_nginx_as_before() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    // It validates where nothing answers.
    let ca = EmbeddedCa::start();
    machine.start();
    let before = machine.files();
    let printed = run(&mut whole(&machine, &ca, &["--domain", "example.com"]), 5);
    assert!(
        printed.contains("as it was before this command"),
        "{printed}"
    );
    assert_eq!(machine.files(), before);
    assert!(!listens(machine.https));
    let plain = machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(plain.ends_with("hello"), "{plain}");
    // Options without consent are refused before anything happens.
    let printed = run(
        &mut machine.install(&["--domain", "example.com", "--ca", "letsencrypt"]),
        2,
    );
    assert!(printed.contains("agree"), "{printed}");
    assert_eq!(machine.files(), before);
}

#[test]
fn split_form_redirects_after_the_certificate_is_issued() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let printed = run(&mut machine.install(&["--domain", "example.com"]), 0);
    // The printed command runs as it is.
    let (_, next) = printed.split_once("next: certs ").unwrap();
    let next: Vec<&str> = next.lines().next().unwrap().split(' ').collect();
    assert!(!next.contains(&"YOU"), "{printed}");
    let mut issue = certs(machine.directory.path());
    issue
        .args(next)
        .args(["--ca", &ca.server.directory_url(), "--ca-root"]);
    let printed = run(issue.arg(ca.path("root.pem")), 0);
    assert!(printed.contains("proven by handshake"), "{printed}");
    run(&mut machine.install(&["--domain", "example.com"]), 0);
    let moved = machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
}

#[test]
fn taken_port_is_named_and_nothing_is_ordered() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    machine.write_site("server { listen HTTP; server_name example.com; }");
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    let held = TcpListener::bind((Ipv4Addr::UNSPECIFIED, machine.https)).unwrap();
    for printed in [
        run(&mut whole(&machine, &ca, &[]), 2),
        run(&mut machine.install(&[]), 2),
    ] {
        let port = machine.https.to_string();
        assert_says(
            &printed,
            &[
                "is taken by",
                &port,
                &std::process::id().to_string(),
                "hint: stop",
            ],
        );
        assert_eq!(machine.files(), before);
    }
    assert!(!machine.path("out/live").exists());
    drop(held);
    run(&mut whole(&machine, &ca, &[]), 0);
}

#[test]
fn address_that_a_reload_cannot_get_is_undone() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    // nginx still has this socket, which its configuration no longer names.
    let site = "server { listen 127.0.0.1:HTTP; server_name example.com; }\n";
    machine.write_site(&format!(
        "{site}server {{ listen 127.0.0.2:{}; }}\n",
        machine.https
    ));
    machine.start();
    machine.write_site(&site.replace("127.0.0.1:", ""));
    let before = machine.files();
    let printed = run(&mut machine.install(&[]), 2);
    assert_says(
        &printed,
        &[
            "nginx: ",
            "bind() to 0.0.0.0:",
            "as it was before this command",
        ],
    );
    assert_eq!(machine.files(), before);
}

#[test]
fn neighbours_of_an_address_keep_their_clients() {
    for mine in [
        "server { listen HTTP proxy_protocol; server_name www.example.com; location / { return 200 'hello'; } }\n\
         server { listen TLS ssl; OTHER",
        "server { listen [::]:HTTP ipv6only=off; server_name www.example.com; location / { return 200 'hello'; } }\n\
         server { listen TLS ssl; OTHER",
        "server { listen HTTP reuseport; server_name www.example.com; location / { return 200 'hello'; } }\n\
         server { listen [::]:TLS ssl ipv6only=off; OTHER",
        "server { listen 127.0.0.1:HTTP; server_name www.example.com; location / { return 200 'hello'; } }\n\
         server { listen TLS ssl; OTHER",
    ] {
        let Some(machine) = Machine::new("") else {
            return;
        };
        beside_tls(&machine, mine);
        machine.start();
        let before = machine.files();
        let ask = |name: &str| {
            let (url, port) = (format!("https://{name}:HTTPS/"), machine.https);
            machine.ask(&url, &["--resolve", &format!("{name}:{port}:127.0.0.1")])
        };
        run(&mut machine.install(&["--domain", "www.example.com"]), 0);
        assert!(ask("www.example.com").ends_with("hello"), "{mine}");
        assert!(ask("other.example.com").ends_with("other"), "{mine}");
        // So does a client with another name.
        assert!(ask("unknown.example.com").ends_with("other"), "{mine}");
        run(&mut machine.install(&["--undo"]), 0);
        assert_eq!(machine.files(), before);
    }
}

#[test]
fn challenge_is_answered_whatever_the_rules_of_a_block_are() {
    for rules in [
        "return 301 https://elsewhere.example$request_uri;",
        "deny all; auth_basic x; location / { return 200; }",
        "auth_request /no; location = /no { return 401; }",
        "if ($host) { return 403; }",
        "location /.well-known/acme-challenge/ { alias DIR/tokens/; }",
        "location ^~ /.well-known/acme-challenge/ { root DIR/$host; }",
        "location ~ /\\.well-known/acme-challenge/ { proxy_pass http://127.0.0.1:9; }",
        "location ^~ /.well-known/acme-challenge/ { deny all; root DIR; }",
        "return 403; location /.well-known/acme-challenge/ { alias DIR/a/.well-known/acme-challenge/; }",
    ] {
        let Some(machine) = Machine::new("") else {
            return;
        };
        let root = machine.path("").display().to_string();
        let rules = rules
            .replace("DIR/", &root)
            .replace("DIR", root.trim_end_matches('/'));
        machine.write_site(&format!(
            "server {{ listen HTTP; server_name www.example.com; {rules} }}"
        ));
        machine.start();
        let before = machine.files();
        let output = machine.install(&["--json"]).output().unwrap();
        assert!(output.status.success(), "{rules}: {output:?}");
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let token = Path::new(shown["webroot"].as_str().unwrap());
        write(
            &token.join(".well-known/acme-challenge/token"),
            "token.thumb",
        );
        let url = "http://www.example.com:HTTP/.well-known/acme-challenge/token";
        let answer = machine.ask(url, &[]);
        assert!(answer.ends_with("token.thumb"), "{rules}: {answer}");
        run(&mut machine.install(&["--undo"]), 0);
        assert_eq!(machine.files(), before, "{rules}");
    }
}

#[test]
fn name_with_tls_alone_is_answered_on_port_80() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    beside_tls(
        &machine,
        "server { listen TLS ssl; OTHER server { listen HTTP default_server; return 301 https://$host$request_uri; }",
    );
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    run(
        &mut whole(&machine, &ca, &["--domain", "other.example.com"]),
        0,
    );
    ca.leaf_at(machine.https, "other.example.com");
    let moved = machine.ask("http://other.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn certificate_is_installed_in_every_block_of_its_names() {
    let block = |names: &str| {
        format!(
            "server {{ listen 127.0.0.1:HTTP; server_name {names}; location / {{ return 200 'hello'; }} }}\n"
        )
    };
    let site = [
        block("www.example.com example.com"),
        block("xn--bcher-kva.example bücher.example"),
    ]
    .concat();
    let Some(machine) = Machine::new(&site) else {
        return;
    };
    let ca = ca_of(&machine);
    let listen = format!("127.0.0.1:{}", machine.http);
    let state = machine.directory.path();
    let mut issue = ca.issue_below(state, &["bücher.example", "example.com", "--name", "shop"]);
    let at = issue
        .get_args()
        .position(|one| one == "--http-listen")
        .unwrap();
    let mut all: Vec<_> = issue.get_args().map(std::ffi::OsStr::to_owned).collect();
    all[at + 1] = listen.into();
    issue = certs(state);
    run(issue.args(all), 0);
    machine.start();
    let before = machine.files();
    let printed = run(&mut machine.install(&["--domain", "BÜCHER.example"]), 0);
    assert!(printed.contains("lacks www.example.com"), "{printed}");
    let shop = ca.leaf_at(machine.https, "xn--bcher-kva.example");
    assert_eq!(ca.leaf_at(machine.https, "example.com"), shop);
    let port = machine.http;
    let ask = |name: &str| {
        let url = format!("http://{name}:HTTP/");
        machine.ask(&url, &["--resolve", &format!("{name}:{port}:127.0.0.1")])
    };
    assert!(ask("xn--bcher-kva.example").contains(" 308 "));
    assert!(ask("example.com").contains(" 308 "));
    assert!(ask("www.example.com").ends_with("hello"));
    run(
        &mut machine.install(&["--undo", "--domain", "bücher.example"]),
        0,
    );
    assert_eq!(machine.files(), before);
}

#[test]
fn whole_site_redirects_once_it_is_issued() {
    let Some(machine) = Machine::new("server { listen HTTP; server_name other.example.com; }")
    else {
        return;
    };
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    write(&machine.path("www/index.html"), "<p>app");
    let www = machine.path("www").display().to_string();
    let site = ["--site", "--domain", "new.example.com", "--root", &www];
    run(&mut whole(&machine, &ca, &site), 0);
    ca.leaf_at(machine.https, "new.example.com");
    let host = format!("new.example.com:{}:127.0.0.1", machine.http);
    let moved = machine.ask("http://new.example.com:HTTP/", &["--resolve", &host]);
    assert!(moved.contains(" 308 "), "{moved}");
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn block_on_another_port_gets_tls_itself() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    let port = crate::support::free_port();
    machine.write_site(&format!(
        "server {{ listen 127.0.0.1:{port}; server_name www.example.com; location / {{ return 200 'content'; }} }}\n\
         server {{ listen 127.0.0.1:{port}; listen 127.0.0.1:HTTP; server_name other.example.com other.example.com.;\n\
         location / {{ return 200 'other'; }} }}\n"
    ));
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    let arguments = ["--domain", "www.example.com"];
    run(&mut whole(&machine, &ca, &arguments), 0);
    let shown = machine.ask("https://www.example.com:HTTPS/", &[]);
    assert!(shown.ends_with("content"), "{shown}");
    let moved = machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
    let printed = run(&mut whole(&machine, &ca, &arguments), 0);
    assert!(printed.contains("nothing to change"), "{printed}");
    // The redirect is for port 80 alone: another proxy may use the other one.
    run(
        &mut whole(&machine, &ca, &["--domain", "other.example.com"]),
        0,
    );
    let moved = machine.ask("http://other.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
    let host = format!("other.example.com:{port}:127.0.0.1");
    let inside = format!("http://other.example.com:{port}/");
    let inside = machine.ask(&inside, &["--resolve", &host]);
    assert!(inside.ends_with("other"), "{inside}");
    let printed = run(&mut machine.install(&["--undo"]), 0);
    assert!(
        printed.contains("certs delete www.example.com"),
        "{printed}"
    );
    assert_eq!(machine.files(), before);
}

#[test]
fn webroot_that_nginx_cannot_read_is_named() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: an unreadable webroot: only root can start such an nginx");
        return;
    }
    let main = machine.path("nginx.conf");
    let text = std::fs::read_to_string(&main).unwrap();
    std::fs::write(&main, text.replace("user root;", "user www-data;")).unwrap();
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    let closed = machine.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let webroot = closed.join("webroot").display().to_string();
    let arguments = ["--domain", "example.com", "--webroot", &webroot];
    let printed = run(&mut whole(&machine, &ca, &arguments), 2);
    assert_says(
        &printed,
        &[
            "403 Forbidden",
            "(13: Permission denied)",
            "hint: name a directory",
        ],
    );
    assert_eq!(machine.files(), before);
}

#[test]
fn read_only_file_leaves_no_journal_in_the_way() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let available = machine.path("sites-available");
    let script = format!(
        "mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$@\"",
        available.display()
    );
    let install = machine.install(&["--domain", "example.com"]);
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-c", "true"]);
    if !inside.output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: a read-only mount: no mount namespace");
        return;
    }
    let mut inside = Command::new("unshare");
    inside.args(["-m", "sh", "-c", &script, "sh"]);
    inside
        .arg(install.get_program())
        .args(install.get_args())
        .env_clear();
    for (name, value) in install.get_envs() {
        inside.env(name, value.unwrap_or_default());
    }
    inside.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let before = machine.files();
    let printed = run(&mut inside, 2);
    assert!(printed.contains("Read-only file system"), "{printed}");
    assert_eq!(machine.files(), before);
    machine.start();
    let printed = run(&mut machine.install(&["--domain", "example.com"]), 0);
    assert!(!printed.contains("cut off"), "{printed}");
    until("TLS", || listens(machine.https));
}

#[test]
fn attributes_of_a_file_stay() {
    use rustix::fs::{XattrFlags, getxattr, setxattr};
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    let site = machine.path("sites-available/site");
    // An ACL that lets user 65534 read it: version 2, then tag, rights and id of each entry.
    let mut acl = vec![2, 0, 0, 0];
    for (tag, rights, id) in [
        (1_u16, 6_u16, u32::MAX),
        (2, 4, 65_534),
        (4, 4, u32::MAX),
        (16, 4, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        acl.extend([tag.to_le_bytes(), rights.to_le_bytes()].concat());
        acl.extend(id.to_le_bytes());
    }
    let attributes = [
        ("user.team", b"web".to_vec()),
        ("system.posix_acl_access", acl),
    ];
    for (name, value) in &attributes {
        if setxattr(&site, *name, value, XattrFlags::empty()).is_err() {
            eprintln!("SKIPPED: {name}: not on this file system");
            return;
        }
    }
    let kept = || {
        for (name, value) in &attributes {
            let mut found = vec![0; 256];
            let length = getxattr(&site, *name, &mut found).unwrap();
            assert_eq!(&found[..length], value, "{name}");
        }
    };
    run(&mut machine.install(&["--domain", "example.com"]), 0);
    kept();
    run(&mut machine.install(&["--undo"]), 0);
    kept();
}
