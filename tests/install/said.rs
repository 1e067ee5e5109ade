//! What an install refuses before anything is ordered, and what it says of its failures: each remedy is followed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::issued::{ca_of, started, whole};
use super::{Machine, PLAIN, write};
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{Running, assert_says, by_depth, certs, free_port, make_script, run, until};

/// Another program that answers a port of this machine before nginx does, until it is dropped.
struct Front(
    SocketAddr,
    Arc<AtomicBool>,
    Option<std::thread::JoinHandle<()>>,
);

impl Front {
    fn start(port: u16) -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let made = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&made, true).unwrap();
        sockopt::set_socket_reuseport(&made, true).unwrap();
        bind(&made, &address).unwrap();
        listen(&made, 64).unwrap();
        let (listener, stop) = (TcpListener::from(made), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let serving = std::thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut client = client.unwrap();
                let mut asked = [0; 1024];
                // A client that only looks may have gone.
                let _ = client.read(&mut asked);
                let _ = client.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfront");
            }
        });
        Self(address, stop, Some(serving))
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.0);
        let _ = self.2.take().map(std::thread::JoinHandle::join);
    }
}

/// The command that an install without consent prints, with this CA.
fn issue_as_printed(machine: &Machine, ca: &crate::support::embedded::EmbeddedCa, printed: &str) {
    let (_, next) = printed.split_once("next: certs ").unwrap();
    let next = next.lines().next().unwrap().split(' ');
    let mut issue = certs(machine.directory.path());
    issue.args(next).args(["--ca", &ca.server.directory_url()]);
    run(issue.arg("--ca-root").arg(ca.path("root.pem")), 0);
}

#[test]
fn missing_redirect_is_named_until_it_is_seen() {
    let site = "server { listen HTTP reuseport; server_name www.example.com; location / { return 200 'hello'; } }";
    let Some((machine, ca)) = started(site) else {
        return;
    };
    let printed = run(&mut machine.install(&[]), 0);
    issue_as_printed(&machine, &ca, &printed);
    let front = Front::start(machine.http);
    for _ in 0..by_depth(1, 2, 2) {
        let printed = run(&mut machine.install(&[]), 7);
        assert_says(
            &printed,
            &[
                "www.example.com: https works, and plain HTTP does not lead to it",
                "127.0.0.1",
                "HTTP/1.1 200 OK",
                "hint: find what answers there instead",
            ],
        );
        ca.leaf_at(machine.https, "www.example.com");
    }
    drop(front);
    run(&mut machine.install(&[]), 0);
    let moved = machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(moved.contains(" 308 "), "{moved}");
}

#[test]
fn old_workers_that_stay_are_no_proof_of_a_redirect() {
    let site = "server { listen 127.0.0.1:HTTP; server_name www.example.com; location / { return 200 'hello'; } }";
    let Some((machine, ca)) = started(site) else {
        return;
    };
    let printed = run(&mut machine.install(&[]), 0);
    issue_as_printed(&machine, &ca, &printed);
    // nginx cannot get the address as long as it has the one of its running configuration.
    let old = machine.site();
    let listen = format!("listen 127.0.0.1:{}", machine.http);
    machine.write_site(&old.replace(&listen, &format!("listen {}", machine.http)));
    let before = machine.files();
    let printed = run(&mut machine.install(&[]), 2);
    assert_says(
        &printed,
        &[
            "its old workers still serve",
            "nginx: ",
            "bind() to 0.0.0.0:",
        ],
    );
    assert_eq!(machine.files(), before);
    // So does the reload of the undone configuration.
    until("the end of both reloads", || {
        let log = std::fs::read_to_string(machine.path("error.log")).unwrap();
        log.matches("still could not bind").count() == 2
    });
    machine.write_site(&old);
    run(&mut machine.install(&[]), 0);
}

#[test]
fn leading_dot_orders_the_apex_and_names_the_wildcard() {
    let site = "server { listen 127.0.0.1:HTTP; server_name .example.net; location / { return 200 'hello'; } }";
    let Some((machine, ca)) = started(site) else {
        return;
    };
    let before = machine.files();
    let printed = run(&mut whole(&machine, &ca, &[]), 0);
    assert_says(
        &printed,
        &[
            "the certificate excludes *.example.net",
            "for '*.example.net': certs issue example.net '*.example.net' --dns PROVIDER",
        ],
    );
    ca.leaf_at(machine.https, "example.net");
    let ask = |name: &str| {
        let host = format!("{name}:{}:127.0.0.1", machine.http);
        machine.ask(&format!("http://{name}:HTTP/"), &["--resolve", &host])
    };
    assert!(ask("example.net").contains(" 308 "));
    assert!(ask("any.example.net").ends_with("hello"));
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn name_that_was_lacking_gets_its_redirect_with_the_next_install() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    // The block is named by either name; the certificate has one of them.
    run(&mut machine.install(&["--domain", "example.com"]), 0);
    let webroot = machine.path("data-webroot").display().to_string();
    let issue = |names: &[&str]| {
        let mut issue = certs(machine.directory.path());
        issue.arg("issue").args(names);
        issue.args(["--agree-tos", "--webroot", &webroot, "--deploy"]);
        issue.arg(format!("nginx:{}", machine.path("nginx.pid").display()));
        issue.args(["--ca", &ca.server.directory_url(), "--ca-root"]);
        run(issue.arg(ca.path("root.pem")), 0);
    };
    issue(&["example.com"]);
    let printed = run(&mut machine.install(&["--domain", "example.com"]), 0);
    assert!(printed.contains("lacks www.example.com"), "{printed}");
    let plain = || machine.ask("http://www.example.com:HTTP/", &[]);
    assert!(plain().ends_with("hello"), "{}", plain());
    // The printed command has the names that are stored, and that one.
    let (_, wider) = printed.split_once("for it: certs ").unwrap();
    let wider = wider.split(',').next().unwrap();
    assert_eq!(wider, "issue example.com www.example.com");
    run(certs(machine.directory.path()).args(wider.split(' ')), 0);
    let printed = run(&mut machine.install(&["--domain", "example.com"]), 0);
    assert!(
        printed.contains("the redirect is for www.example.com, example.com"),
        "{printed}"
    );
    assert!(plain().contains(" 308 "), "{}", plain());
    let printed = run(&mut machine.install(&["--domain", "example.com"]), 0);
    assert!(printed.contains("nothing to change"), "{printed}");
}

#[test]
fn more_names_than_a_public_ca_takes_are_refused_before_any_change() {
    let block = |numbers: std::ops::Range<u32>| {
        let names: Vec<String> = numbers
            .map(|number| format!("n{number}.example.com"))
            .collect();
        let names = names.join(" ");
        format!("server {{ listen 127.0.0.1:HTTP; server_name {names}; return 200 'hello'; }}\n")
    };
    let Some(machine) = Machine::new(&block(0..101)) else {
        return;
    };
    machine.start();
    let before = machine.files();
    for more in [&["--agree-tos"][..], &[]] {
        let printed = run(
            machine.install(&["--domain", "n0.example.com"]).args(more),
            2,
        );
        assert_says(
            &printed,
            &[
                "n0.example.com: its blocks have 101 names",
                "nothing was changed or ordered",
                "hint: move names to a server block of their own",
            ],
        );
        assert_eq!(machine.files(), before);
        assert!(!machine.path("data/records").exists());
    }
    machine.write_site(&[block(0..100), block(100..101)].concat());
    run(&mut machine.install(&["--domain", "n0.example.com"]), 0);
    run(&mut machine.install(&["--domain", "n100.example.com"]), 0);
}

#[test]
fn block_on_a_unix_socket_alone_is_refused_before_the_order() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    let socket = machine.path("front.sock").display().to_string();
    let site = format!(
        "server {{ listen unix:{socket}; server_name www.example.com; location / {{ return 200 'hello'; }} }}\n\
         server {{ listen 127.0.0.1:HTTP; server_name other.example.com; return 200 'other'; }}\n"
    );
    machine.write_site(&site);
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    let arguments = ["--domain", "www.example.com"];
    let printed = run(&mut whole(&machine, &ca, &arguments), 2);
    assert_says(
        &printed,
        &[
            "the block listens on a Unix socket alone",
            &format!("hint: add `listen {};`", machine.http),
            "certs issue www.example.com --webroot DIR",
        ],
    );
    assert_eq!(machine.files(), before);
    assert!(!machine.path("data/records").exists());
    let both = format!("listen unix:{socket}; listen 127.0.0.1:HTTP;");
    machine.write_site(&site.replace(&format!("listen unix:{socket};"), &both));
    assert!(machine.signal(&["-s", "reload"]));
    run(&mut whole(&machine, &ca, &arguments), 0);
    ca.leaf_at(machine.https, "www.example.com");
}

#[test]
fn block_with_tls_on_a_unix_socket_gets_the_stored_certificate() {
    let Some(machine) = Machine::new("") else {
        return;
    };
    let socket = machine.path("front.sock").display().to_string();
    let old = super::pair(&machine, "old");
    // The block on port 80 stands for the server in front.
    machine.write_site(&format!(
        "server {{ listen unix:{socket} ssl proxy_protocol; server_name www.example.com; return 200 'hello';\n\
         ssl_certificate {old}/fullchain.pem; ssl_certificate_key {old}/privkey.pem; }}\n\
         server {{ listen 127.0.0.1:HTTP; server_name front.example.com; root {}; }}\n",
        machine.path("www").display()
    ));
    let ca = ca_of(&machine);
    machine.start();
    let before = machine.files();
    let arguments = ["--domain", "www.example.com"];
    let printed = run(&mut whole(&machine, &ca, &arguments), 2);
    assert_says(
        &printed,
        &[
            "the block has TLS on a Unix socket alone",
            "hint: issue the certificate first",
            "certs issue www.example.com --webroot DIR",
        ],
    );
    assert_eq!(machine.files(), before);
    let mut issue = certs(machine.directory.path());
    issue.args(["issue", "www.example.com", "--agree-tos", "--ca"]);
    issue.arg(ca.server.directory_url()).arg("--ca-root");
    issue.arg(ca.path("root.pem")).arg("--webroot");
    run(issue.arg(machine.path("www")), 0);
    let printed = run(&mut whole(&machine, &ca, &arguments), 0);
    assert_says(&printed, &["certificate paths replaced"]);
    let status = run(certs(machine.directory.path()).arg("status"), 0);
    assert_says(&status, &["proven"]);
    // It is renewed and proven there, and a block that serves another is undone.
    let printed = run(
        certs(machine.directory.path()).args(["renew", "--force"]),
        0,
    );
    assert_says(&printed, &["proven by handshake at nginx"]);
    run(&mut machine.install(&["--undo"]), 0);
    assert_eq!(machine.files(), before);
}

#[test]
fn slow_test_of_nginx_is_given_up_at_the_configured_time() {
    let Some(mut machine) = Machine::new(PLAIN) else {
        return;
    };
    machine.start();
    let script = machine.path("slow/nginx");
    std::fs::create_dir(machine.path("slow")).unwrap();
    let nginx = machine.nginx.display();
    make_script(
        &script,
        &format!("case \"$*\" in *-t*) sleep 1.5;; esac\nexec {nginx} \"$@\""),
    );
    machine.nginx = script;
    let before = machine.files();
    let install = |timeout: &str, code| {
        let table = format!("[deploy.web]\nkind = 'nginx'\ntimeout = '{timeout}'\n");
        write(&machine.path("slow/certs.toml"), &table);
        let mut install = machine.install(&["--domain", "example.com"]);
        run(
            install.arg("--config").arg(machine.path("slow/certs.toml")),
            code,
        )
    };
    let printed = install("1s", 2);
    assert_says(
        &printed,
        &[
            "`nginx -t` did not end within 1 s",
            "`timeout` in a [deploy.NAME] of nginx",
            "nothing was changed",
        ],
    );
    assert_eq!(machine.files(), before);
    install("1m", 0);
    let _ = machine.signal(&["-s", "stop"]);
}

#[test]
fn failed_first_install_is_continued_by_no_other_command() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let before = machine.files();
    let arguments = ["--domain", "example.com"];
    // An order that the CA would still complete.
    ca.script
        .add(Endpoint::Finalize, Which::Every, Fault::html(503));
    let printed = run(&mut whole(&machine, &ca, &arguments), 3);
    assert_says(
        &printed,
        &[
            "nothing orders it before this command succeeds",
            "hint: run it again once the cause is mended, or certs delete example.com forgets it",
            "as it was before this command",
        ],
    );
    assert_eq!(machine.files(), before);
    ca.script.clear();
    let orders = ca.script.count(Endpoint::NewOrder);
    let asked = ca.script.count(Endpoint::Order);
    let root = machine.directory.path();
    run(certs(root).arg("renew"), 0);
    let log = machine.path("log");
    let mut sidecar = certs(root);
    sidecar.arg("run").env("CERTS_ADMIN_LISTEN", "off");
    sidecar.env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", free_port()));
    let output = std::fs::File::create(&log).unwrap();
    let running = Running::start_logging(&mut sidecar, output.into());
    let said = |words: &str| std::fs::read_to_string(&log).unwrap().contains(words);
    until("the sidecar", || said("ready"));
    assert!(said("its installation in nginx has not ended"));
    drop(running);
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders);
    assert_eq!(ca.script.count(Endpoint::Order), asked);
    let status = run(certs(root).arg("status"), 0);
    assert!(
        status.contains("its installation in nginx has not ended"),
        "{status}"
    );
    // The same command continues the order, and then it is kept.
    run(&mut whole(&machine, &ca, &arguments), 0);
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders);
    let status = run(certs(root).arg("status"), 0);
    assert!(!status.contains("orphaned"), "{status}");
    run(certs(root).args(["renew", "--force"]), 0);
}

#[test]
fn install_that_was_cut_off_after_the_order_keeps_the_certificate_when_repeated() {
    for origin in ["install", "command"] {
        let Some((machine, ca)) = started(PLAIN) else {
            return;
        };
        let root = machine.directory.path();
        run(&mut whole(&machine, &ca, &["--domain", "example.com"]), 0);
        run(&mut machine.install(&["--undo"]), 0);
        // As it was stored before the blocks had TLS, or by certs issue --webroot alone.
        let options = machine.path("data/records/example.com/options.json");
        let stored = std::fs::read_to_string(&options).unwrap();
        let mut stored: Value = serde_json::from_str(&stored).unwrap();
        (stored["origin"], stored["deploy"]) = (json!(origin), json!([]));
        std::fs::write(&options, stored.to_string()).unwrap();
        run(&mut machine.install(&["--domain", "example.com"]), 0);
        let before = ca.leaf_at(machine.https, "example.com");
        run(certs(root).args(["renew", "--force"]), 0);
        let after = ca.leaf_at(machine.https, "example.com");
        assert_ne!(before, after, "{origin}: nginx has the new certificate");
        let status = run(certs(root).arg("status"), 0);
        assert!(
            status.contains("proven") && !status.contains("not renewed"),
            "{status}"
        );
    }
}

#[test]
fn hints_of_refusals_are_followed() {
    let Some(machine) = Machine::new(PLAIN) else {
        return;
    };
    // Several blocks.
    let printed = run(&mut machine.install(&[]), 2);
    assert!(
        printed.contains("choose one with --domain NAME"),
        "{printed}"
    );
    run(&mut machine.install(&["--domain", "www.example.com"]), 0);
    // A name that no block has.
    let new = ["--domain", "new.example.com"];
    let printed = run(&mut machine.install(&new), 2);
    let added = "server_name new.example.com;";
    assert!(
        printed.contains(&format!("hint: add `{added}` to its block")),
        "{printed}"
    );
    let block = format!(
        "server {{ listen 127.0.0.1:{}; {added} return 200 'new'; }}\n",
        machine.http
    );
    std::fs::write(machine.path("sites-enabled/new"), block).unwrap();
    run(&mut machine.install(&new), 0);
    // A name that only a pattern has.
    let wild = ["--domain", "a.wild.example.com"];
    let printed = run(&mut machine.install(&wild), 2);
    let hint = "give a.wild.example.com a server block of its own";
    assert!(printed.contains(hint), "{printed}");
    let block = format!(
        "server {{ listen 127.0.0.1:{}; server_name a.wild.example.com; return 200 'wild'; }}\n",
        machine.http
    );
    std::fs::write(machine.path("sites-enabled/wild"), block).unwrap();
    run(&mut machine.install(&wild), 0);
    // A site whose file exists.
    let www = machine.path("www").display().to_string();
    let site = ["--site", "--domain", "site.example.com", "--root", &www];
    write(
        &machine.path("sites-available/site.example.com.conf"),
        "# mine\n",
    );
    let printed = run(&mut machine.install(&site), 2);
    assert!(
        printed.contains("or name another with --file FILE"),
        "{printed}"
    );
    let file = machine.path("sites-enabled/other.conf");
    run(machine.install(&site).arg("--file").arg(file), 0);
}

#[test]
fn options_of_an_issued_certificate_are_named_with_the_command_that_applies_them() {
    let Some((machine, ca)) = started(PLAIN) else {
        return;
    };
    let arguments = ["--domain", "example.com", "--email", "a@example.com"];
    let install = |more: &[&str]| run(whole(&machine, &ca, &arguments).args(more), 0);
    install(&[]);
    let printed = install(&[]);
    assert!(!printed.contains("is issued already"), "{printed}");
    let other = ["--key", "rsa-2048", "--reuse-key"];
    let printed = install(&other);
    let words = "example.com is issued already, and not with --key rsa-2048 --reuse-key; to change that: certs ";
    let (_, command) = printed
        .split_once(words)
        .unwrap_or_else(|| panic!("{printed}"));
    let command = command.lines().next().unwrap();
    for option in [
        "--ca https://",
        "--ca-root /",
        "--agree-tos",
        "--email a@example.com",
    ] {
        assert!(command.contains(option), "{option}: {command}");
    }
    let mut applied = certs(machine.directory.path());
    let printed = run(applied.args(command.split(' ')), 0);
    assert!(
        printed.contains("key rsa-2048 (was ecdsa-p256)") || printed.contains("reuse_key true"),
        "{printed}"
    );
    let printed = install(&other);
    assert!(!printed.contains("is issued already"), "{printed}");
}
