//! Hints about names, ports, webroots, servers and permissions, each followed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Nginx, certs, free_port, make_script, run, until};

const NAME: &str = "a.example.com";

#[test]
fn hints_about_names_lead_to_names_that_are_taken() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("certs.toml");
    let check = |names: &str, code| {
        let dns = if names.contains("'*.") {
            "dns = 'self'\n"
        } else {
            ""
        };
        let text = format!(
            "agree_tos = true\nca = 'https://ca.internal/dir'\n{dns}[[certificate]]\nname = 'x'\nnames = [{names}]\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = certs(directory.path());
        run(
            command.args(["config", "check", "--config"]).arg(&file),
            code,
        )
    };
    let label = |length: usize| "a".repeat(length);
    let long = |length: usize| format!("{0}.{0}.{0}.{1}.example.com", label(60), label(length));
    for (wrong, words, right) in [
        (
            "''",
            "a DNS name or an IP address belongs here",
            "'www.example.com'",
        ),
        (
            "'a.*.example.com'",
            "a wildcard is one `*.` before a name",
            "'*.a.example.com'",
        ),
        (
            "'https://www.example.com/'",
            "give the host name alone: www.example.com",
            "'www.example.com'",
        ),
        (
            "'www.example.com/a'",
            "give the name alone, without a path: www.example.com",
            "'www.example.com'",
        ),
        (
            "'me@example.com'",
            "here give a host name: example.com",
            "'example.com'",
        ),
        (
            "'fe80::1%eth0'",
            "write an IPv6 address such as 2001:db8::1",
            "'2001:db8::1'",
        ),
        (
            "'www.example.com:8443'",
            "give the name alone: www.example.com",
            "'www.example.com'",
        ),
        (
            "'a..example.com'",
            "remove the extra dot",
            "'a.example.com'",
        ),
        (
            "'a_b.example.com'",
            "CAs sign host names only: letters, digits and hyphens",
            "'a-b.example.com'",
        ),
        (
            "'a.example.com;b.example.com'",
            "give each name alone",
            "'a.example.com', 'b.example.com'",
        ),
        (
            &format!("'{}.example.com'", label(64)),
            "has 63 characters at most",
            &format!("'{}.example.com'", label(63)),
        ),
        (
            &format!("'{}'", long(60)),
            "a name has 253 characters at most",
            &format!("'{}'", long(50)),
        ),
        (
            "'-a.example.com'",
            "a hyphen stands only between other characters",
            "'a.example.com'",
        ),
        (
            "'1.2.3.400'",
            "an IPv4 address is four numbers from 0 to 255",
            "'1.2.3.40'",
        ),
        (
            "'a!.example.com'",
            "a name has letters, digits and hyphens",
            "'a.example.com'",
        ),
    ] {
        let printed = check(wrong, 2);
        assert!(
            printed.contains(words),
            "{wrong}: no `{words}` in {printed}"
        );
        check(right, 0);
    }
}

/// Serves the files below `webroot`, or forwards to another port, as a web server on port 80 does.
pub(super) fn web_server(port: u16, webroot: Option<PathBuf>, forwards_to: u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut request) = (client.unwrap(), vec![0; 4096]);
            let length = client.read(&mut request).unwrap();
            request.truncate(length);
            let path = String::from_utf8_lossy(&request).into_owned();
            let path = path.split(' ').nth(1).unwrap_or("/").to_owned();
            let reply = match &webroot {
                Some(webroot) => {
                    match std::fs::read_to_string(webroot.join(path.trim_start_matches('/'))) {
                        Ok(text) => format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text}")
                            .into_bytes(),
                        Err(_) => b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n".to_vec(),
                    }
                }
                None => forwarded(&request, forwards_to),
            };
            // A client that only looks may have gone.
            let _ = client.write_all(&reply);
        }
    });
}

fn forwarded(request: &[u8], port: u16) -> Vec<u8> {
    let mut reply = Vec::new();
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    // It listens during a validation alone.
    if let Ok(mut server) = server {
        server.write_all(request).unwrap();
        let short = Some(std::time::Duration::from_millis(500));
        server.set_read_timeout(short).unwrap();
        // It keeps the connection.
        let _ = server.read_to_end(&mut reply);
    }
    reply
}

#[test]
fn taken_port_is_left_to_its_server_by_each_remedy() {
    for remedy in ["webroot", "forward", "stop"] {
        let ca = EmbeddedCa::start();
        let webroot = ca.path("www");
        std::fs::create_dir(&webroot).unwrap();
        let other = free_port();
        let held = match remedy {
            "webroot" => {
                web_server(ca.http_port, Some(webroot.clone()), 0);
                None
            }
            "forward" => {
                web_server(ca.http_port, None, other);
                None
            }
            _ => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, ca.http_port)).unwrap()),
        };
        let printed = run(&mut ca.issue(&[NAME]), 2);
        for words in [
            "hint: leave the port to that server and use --webroot DIR with it",
            "to another --http-listen ADDR, or stop it",
        ] {
            assert!(printed.contains(words), "{words}: {printed}");
        }
        drop(held);
        let mut again = certs(&ca.path(""));
        let url = ca.server.directory_url();
        again.args(["issue", NAME, "--agree-tos", "--ca", &url, "--ca-root"]);
        again.arg(ca.path("root.pem"));
        match remedy {
            "webroot" => again.arg("--webroot").arg(webroot),
            "forward" => again.args(["--http-listen", &format!("127.0.0.1:{other}")]),
            _ => again.args(["--http-listen", &format!("127.0.0.1:{}", ca.http_port)]),
        };
        run(&mut again, 0);
    }
}

#[test]
fn missing_webroot_is_made_and_then_used() {
    let ca = EmbeddedCa::start();
    let (webroot, url) = (ca.path("www"), ca.server.directory_url());
    let issue = |code| {
        let mut command = certs(&ca.path(""));
        command.args(["issue", NAME, "--agree-tos", "--ca", &url, "--ca-root"]);
        command.arg(ca.path("root.pem"));
        run(command.arg("--webroot").arg(&webroot), code)
    };
    let printed = issue(2);
    let words = "hint: name the directory that the server on port 80 serves";
    assert!(printed.contains(words), "{printed}");
    std::fs::create_dir(&webroot).unwrap();
    web_server(ca.http_port, Some(webroot.clone()), 0);
    issue(0);
}

#[test]
fn server_that_does_not_run_is_started_and_deployed_to() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let place = ca.path("nginx");
    let spec = format!("nginx:{}", place.join("nginx.pid").display());
    let deploy = |code| run(&mut ca.issue(&[NAME, "--deploy", &spec]), code);
    let printed = deploy(7);
    assert!(
        printed.contains("hint: start the server, or name its pid file"),
        "{printed}"
    );
    let live = ca.path("out/live").join(NAME);
    let Some(_nginx) = Nginx::start_at(&live, &place, free_port()) else {
        return;
    };
    let printed = deploy(0);
    assert!(printed.contains("proven by handshake"), "{printed}");
}

#[test]
fn server_that_was_not_reloaded_is_reloaded_and_proven() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let Some(nginx) = Nginx::start(&ca.path("out/live").join(NAME)) else {
        return;
    };
    // What nothing was checked at is checked where the hint says.
    let at = format!("127.0.0.1:{}", nginx.port);
    let printed = run(&mut ca.issue(&[NAME]), 0);
    assert!(printed.contains("hint: --verify HOST:PORT"), "{printed}");
    let printed = run(&mut ca.issue(&[NAME, "--verify", &at]), 0);
    assert!(printed.contains("proven by handshake"), "{printed}");
    let printed = run(&mut ca.issue(&[NAME, "--verify", &at, "--force"]), 7);
    assert!(
        printed.contains("and was reloaded, then run this again"),
        "{printed}"
    );
    let pid = std::fs::read_to_string(&nginx.pid_file).unwrap();
    let reloaded = Command::new("kill").args(["-HUP", pid.trim()]).status();
    assert!(reloaded.unwrap().success());
    let shown = || ca.leaf_at(nginx.port, NAME);
    let before = shown();
    until("the reload", || shown() != before);
    let printed = run(&mut ca.issue(&[NAME, "--verify", &at]), 0);
    assert!(printed.contains("proven by handshake"), "{printed}");
}

/// The command of a hint, run by a shell.
fn follow(printed: &str, before: &str) {
    let (_, command) = printed
        .split_once(before)
        .unwrap_or_else(|| panic!("no `{before}` in {printed}"));
    let command = command.lines().next().unwrap();
    let command = command.split(", then").next().unwrap();
    let done = Command::new("sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

#[test]
fn permissions_of_a_program_are_corrected_by_the_printed_commands() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: programs of other users: only root makes them");
        return;
    }
    let ca = EmbeddedCa::start();
    let program = ca.path("reload");
    make_script(&program, "exit 0");
    let spec = format!("exec:{}", program.display());
    let deploy = |code| run(&mut ca.issue(&[NAME, "--deploy", &spec]), code);
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o777)).unwrap();
    follow(&refused(&deploy, &program), "; hint: ");
    std::os::unix::fs::chown(&program, Some(crate::support::NOBODY), None).unwrap();
    follow(&refused(&deploy, &program), "; hint: ");
    deploy(0);
}

/// What is printed about a program that others can change.
fn refused(deploy: &impl Fn(i32) -> String, program: &Path) -> String {
    let printed = deploy(7);
    assert!(
        printed.contains(&program.display().to_string()),
        "{printed}"
    );
    printed
}

#[test]
fn commands_of_hints_run_as_they_are_printed() {
    let ca = EmbeddedCa::start();
    let verb = |arguments: &[&str], code| run(certs(&ca.path("")).args(arguments), code);
    let printed = |before: &str, printed: &str| -> Vec<String> {
        let (_, command) = printed
            .split_once(before)
            .unwrap_or_else(|| panic!("no `{before}` in {printed}"));
        let command = command.split(['\n', ',', ';']).next().unwrap();
        command.split_whitespace().map(str::to_owned).collect()
    };
    let follow = |command: &[String], code| run(certs(&ca.path("")).args(command), code);
    // A command that does not exist.
    let shown = verb(&["frobnicate"], 2);
    assert!(shown.contains("certs --help lists the commands"), "{shown}");
    verb(&["--help"], 0);
    run(&mut ca.issue(&[NAME]), 0);
    // An account that is changed and ended.
    let shown = verb(&["account", "update"], 2);
    assert!(
        shown.contains("give --email ADDRESS, --agree-tos, or both"),
        "{shown}"
    );
    verb(&["account", "update", "--email", "a@example.com"], 0);
    let shown = verb(&["account", "deactivate"], 2);
    follow(&printed("to deactivate it: certs ", &shown), 0);
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    // A name that stays the same.
    let shown = verb(&["rename", NAME, NAME], 2);
    assert!(shown.contains("hint: give another name"), "{shown}");
    verb(&["rename", NAME, "shop"], 0);
    // A key that applies later is applied now.
    let shown = run(&mut ca.issue(&[NAME, "--key", "rsa-2048"]), 0);
    let renewed = follow(
        &printed("applies to the next renewal; hint: certs ", &shown)[..3],
        0,
    );
    assert!(renewed.contains("issued"), "{renewed}");
    let shown = run(&mut ca.issue(&[NAME]), 0);
    assert!(!shown.contains("applies to the next renewal"), "{shown}");
    // A certificate of fewer names by the command that says so.
    run(&mut ca.issue(&["b.example.com", "c.example.com"]), 0);
    let shown = run(&mut ca.issue(&["b.example.com"]), 2);
    for before in [
        "for all of these names in one certificate: certs ",
        "for a second certificate: certs ",
        "to take c.example.com out of b.example.com: certs ",
    ] {
        let mut issue = printed(before, &shown);
        issue.extend([
            "--http-listen".to_owned(),
            format!("127.0.0.1:{}", ca.http_port),
        ]);
        follow(&issue, 0);
    }
}
