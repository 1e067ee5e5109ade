//! The names of an install: wildcards by DNS, and names that no certificate can have.

use std::process::Command;

use super::issued::{started, whole};
use super::{Machine, PLAIN};
use crate::support::bind::Bind;
use crate::support::{Pebble, assert_says, certs, run};

const WILD: &str = "server { listen 127.0.0.1:HTTP; server_name *.example.com example.com; location / { return 200 'hello'; } }";

/// The printed command after `before`, up to the end of its phrase.
fn printed_command(printed: &str, before: &str) -> Vec<String> {
    let (_, command) = printed
        .split_once(before)
        .unwrap_or_else(|| panic!("no `{before}` in {printed}"));
    let command = command.split([',', ';', '\n']).next().unwrap();
    let words = command.split_whitespace();
    words
        .map(|word| word.trim_matches('\'').to_owned())
        .collect()
}

#[test]
fn wildcard_is_refused_without_dns_and_installed_with_it() {
    let (Some(machine), Some(bind)) = (Machine::new(WILD), Bind::start()) else {
        return;
    };
    let Some(pebble) = Pebble::start_asking(0, Some(bind.server())) else {
        return;
    };
    machine.start();
    let before = machine.files();
    let root = pebble.path("root.pem").display().to_string();
    let url = pebble.directory_url();
    let ca = ["--agree-tos", "--ca", &url, "--ca-root", &root];
    let wild = ["--domain", "*.example.com"];
    // With consent and without it.
    let mut asked = machine.install(&wild);
    let printed = [run(asked.args(ca), 2), run(&mut machine.install(&wild), 2)];
    for printed in &printed {
        assert_says(
            printed,
            &[
                "*.example.com: nginx cannot answer challenges for a wildcard; nothing was changed or ordered",
                "add --dns PROVIDER and --agree-tos to this command",
            ],
        );
        assert_eq!(machine.files(), before);
        assert!(!machine.path("data/records").exists());
    }
    // The printed command has this command's CA.
    let issue = printed_command(&printed[0], "or certs ");
    let issue = issue.iter().map(|word| word.replace("PROVIDER", "rfc2136"));
    let mut command = certs(machine.directory.path());
    run(bind.configure(command.args(issue)), 0);
    run(&mut machine.install(&wild), 0);
    let ask = |url: &str| {
        let host = |port: u16| format!("any.example.com:{port}:127.0.0.1");
        let (plain, tls) = (host(machine.http), host(machine.https));
        machine.ask(url, &["--resolve", &plain, "--resolve", &tls])
    };
    assert!(ask("https://any.example.com:HTTPS/").ends_with("hello"));
    assert!(ask("http://any.example.com:HTTP/").contains(" 308 "));
    run(&mut machine.install(&["--undo"]), 0);
    let mut delete = certs(machine.directory.path());
    run(delete.args(["delete", "*.example.com", "--yes"]), 0);
    // Both names of the block, in one command.
    let by_dns = |command: &mut Command| {
        command.args(ca).args(["--dns", "rfc2136"]);
        run(bind.configure(command), 0)
    };
    by_dns(&mut machine.install(&["--domain", "example.com"]));
    assert!(ask("https://any.example.com:HTTPS/").ends_with("hello"));
    let status = run(
        certs(machine.directory.path()).args(["status", "--json"]),
        0,
    );
    assert!(status.contains("*.example.com"), "{status}");
}

#[test]
fn challenge_on_the_port_of_nginx_is_refused_before_the_order() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    let arguments = ["--domain", "example.com"];
    let mut command = whole(&machine, &ca, &arguments);
    let printed = run(command.args(["--challenge", "tls-alpn-01"]), 2);
    assert_says(
        &printed,
        &[
            "tls-alpn-01 is answered on port 443, which nginx has; nothing was changed or ordered",
            "hint: leave --challenge out",
        ],
    );
    assert_eq!(machine.files(), before);
    assert!(!machine.path("data/records").exists());
    run(&mut whole(&machine, &ca, &arguments), 0);
}

#[test]
fn block_without_a_name_is_named_and_then_installed() {
    for name in [
        "_",
        "\"\"",
        "~^x\\d+\\.example\\.com$",
        "my_app.example.com",
    ] {
        let site = format!(
            "server {{ listen 127.0.0.1:HTTP; server_name {name}; location / {{ return 200 'hello'; }} }}"
        );
        let Some(machine) = Machine::new(&site) else {
            return;
        };
        machine.start();
        let printed = run(&mut machine.install(&[]), 2);
        let place = machine.path("sites-available/site:1");
        let words = format!(
            "hint: write `server_name` with the domain name into its block, such as the one at {}",
            place.display()
        );
        assert!(printed.contains(&words), "{name}: {printed}");
        machine.write_site(&site.replace("server_name ", "server_name www.example.com "));
        let printed = run(&mut machine.install(&[]), 0);
        let note = match name {
            "my_app.example.com" => "excludes my_app.example.com: not a public DNS name",
            name if name.starts_with('~') => {
                "for a host that it matches, add its name to server_name"
            }
            _ => "to undo: ",
        };
        assert!(printed.contains(note), "{name}: {printed}");
    }
}

#[test]
fn what_is_in_the_way_is_moved_as_the_hint_says() {
    const CONTENT: &str = "location / { return 200 'hello'; }";
    let Some(machine) = Machine::new("") else {
        return;
    };
    let live = super::pair(&machine, "other");
    let pair =
        format!("ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem;");
    let mine = format!("server {{ listen HTTP; server_name www.example.com; {CONTENT} }}\n");
    let (tls, other) = (machine.https, crate::support::free_port());
    let secured = |pairs: &str| {
        format!("server {{ listen {tls} ssl; server_name www.example.com; {pairs} {CONTENT} }}\n")
    };
    machine.write_site(&mine);
    machine.start();
    for (before, words, after) in [
        (
            secured(&format!("{pair} {pair}")),
            "keep only one ssl_certificate and one ssl_certificate_key in that block",
            secured(&pair),
        ),
        (
            format!("{mine}server {{ listen {tls}; server_name other.example.com; {CONTENT} }}\n"),
            "move that block to another port",
            format!("{mine}server {{ listen {other}; server_name other.example.com; {CONTENT} }}\n"),
        ),
        (
            "server { listen HTTP; server_name www.example.com; return 301 https://$host$request_uri; }\n".to_owned(),
            "remove it, or give www.example.com a server block with its content; then run this command again",
            mine.clone(),
        ),
    ] {
        machine.write_site(&before);
        let arguments = ["--domain", "www.example.com"];
        let printed = run(&mut machine.install(&arguments), 2);
        assert!(printed.contains(words), "{words}: {printed}");
        machine.write_site(&after);
        run(&mut machine.install(&arguments), 0);
        run(&mut machine.install(&["--undo"]), 0);
    }
    // A whole site.
    let www = machine.path("www").display().to_string();
    let elsewhere = machine.path("elsewhere.conf").display().to_string();
    let read = machine.path("sites-enabled/new.conf").display().to_string();
    let site = ["--site", "--domain", "new.example.com", "--root", &www];
    for (option, wrong, words, right) in [
        (
            "--api",
            "http://x; }",
            "write it as http://127.0.0.1:8080",
            "http://127.0.0.1:8080",
        ),
        (
            "--file",
            &*elsewhere,
            "choose another file with --file FILE, or add an include",
            &read,
        ),
    ] {
        let printed = run(machine.install(&site).args([option, wrong]), 2);
        assert!(printed.contains(words), "{words}: {printed}");
        run(machine.install(&site).args([option, right]), 0);
        run(&mut machine.install(&["--undo"]), 0);
    }
    // Another nginx than the one on PATH.
    let mut command = certs(machine.directory.path());
    let printed = run(command.args(["install", "nginx", "--nginx", "absent"]), 2);
    assert!(
        printed.contains("or name its program with --nginx FILE"),
        "{printed}"
    );
    run(&mut machine.install(&["--domain", "www.example.com"]), 0);
}

#[test]
fn block_and_its_certificate_are_written_as_the_hints_say() {
    const PLAIN: &str =
        "server { listen HTTP; server_name www.example.com; return 200 'hello'; }\n";
    let Some(machine) = Machine::new("") else {
        return;
    };
    let install = |code| run(&mut machine.install(&["--domain", "www.example.com"]), code);
    // No block: one of its own, or a whole site.
    machine.write_site("# nothing\n");
    let words = "or a whole site with --site --domain NAME --root DIR";
    assert_says(&run(&mut machine.install(&[]), 2), &[words]);
    let root = machine.path("www").display().to_string();
    let site = ["--site", "--domain", "new.example.com", "--root", &root];
    run(&mut machine.install(&site), 0);
    run(&mut machine.install(&["--undo"]), 0);
    machine.write_site(PLAIN);
    run(&mut machine.install(&[]), 0);
    run(&mut machine.install(&["--undo"]), 0);
    // A certificate in a file that other blocks may include.
    let source = machine.path("letsencrypt");
    let stored = crate::takeover::pair(&["www.example.com"], 60);
    crate::takeover::letsencrypt(&source, &[("www.example.com", "", &stored)]);
    let mut import = certs(machine.directory.path());
    run(import.args(["import", "certbot"]).arg(&source), 0);
    let live = super::pair(&machine, "other");
    let pair =
        format!("ssl_certificate {live}/fullchain.pem;\nssl_certificate_key {live}/privkey.pem;\n");
    std::fs::write(machine.path("pair.conf"), &pair).unwrap();
    let secured = |pair: &str| {
        let listen = format!("listen HTTP; listen {} ssl; {pair}", machine.https);
        PLAIN.replace("listen HTTP;", &listen)
    };
    machine.write_site(&secured("include pair.conf;"));
    let words = "hint: move ssl_certificate and ssl_certificate_key into the server block itself";
    assert_says(&install(2), &[words]);
    machine.write_site(&secured(&pair));
    install(0);
}
