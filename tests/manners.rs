//! What a user of other clients expects of every command: nothing left behind, no panic, no empty hint.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{Running, certs, run, text, until};

fn with(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

#[test]
fn unknown_command_is_not_answered_with_another_one() {
    let directory = tempfile::tempdir().unwrap();
    for (word, hint) in [
        ("certonly", "certs issue does its work"),
        ("frobnicate", "certs --help lists the commands"),
    ] {
        let printed = run(certs(directory.path()).arg(word), 2);
        assert!(
            printed.contains(&format!("error: unknown command `{word}`")),
            "{printed}"
        );
        assert!(printed.contains(hint), "{printed}");
        assert!(!printed.contains("similar"), "{printed}");
    }
    let printed = run(certs(directory.path()).arg("isue"), 2);
    assert!(printed.contains("'issue'"), "{printed}");
}

#[test]
fn no_command_panics_on_a_closed_pipe() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["a.example.com"]), 0);
    for arguments in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
        &["man", "issue"],
        &["--help"],
        &["issue", "--help"],
        &["config", "schema"],
        &["config", "check"],
        &["status"],
        &["status", "--json"],
        &["list"],
        &["renew"],
        &["reload"],
        &["simulate", "--certificates", "1", "--days", "1"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = with(&ca, arguments).stdout(writer).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        assert!(!text(&output).contains("panicked"), "{arguments:?}");
    }
}

#[test]
fn every_command_has_a_manual_page_and_completion_offers_values() {
    let directory = tempfile::tempdir().unwrap();
    let generated = |arguments: &[&str]| run(certs(directory.path()).args(arguments), 0);
    let whole = generated(&["man"]);
    let verbs = [
        "issue",
        "run",
        "renew",
        "reload",
        "rollback",
        "status",
        "delete",
        "config",
        "demo",
        "simulate",
        "install",
        "import",
        "ca",
        "completions",
        "man",
    ];
    for verb in verbs {
        assert!(
            whole.contains(&format!("certs\\-{verb}(1)")),
            "{verb} is not in {whole}"
        );
        let page = generated(&["man", verb]);
        assert!(page.contains(&format!(".TH certs-{verb} 1")), "{page}");
    }
    assert!(generated(&["man", "ca", "serve"]).contains(".TH certs-ca-serve 1"));
    assert!(
        generated(&["man", "renew"]).contains("dry"),
        "its options are missing"
    );
    run(certs(directory.path()).args(["man", "helper"]), 2);
    for shell in ["bash", "zsh", "fish"] {
        let script = generated(&["completions", shell]);
        for word in [
            "rsa-3072",
            "letsencrypt-staging",
            "haproxy",
            "webroot",
            "list",
        ] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(
            !script.contains("The helper process"),
            "{shell} offers a hidden command"
        );
        assert!(
            !script.contains("for tests"),
            "{shell} offers a hidden option"
        );
        assert!(
            !script.contains("certs__helper"),
            "{shell} offers a hidden command"
        );
    }
}

#[test]
fn renewal_can_be_rehearsed() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["a.example.com"]), 0);
    let before = std::fs::read(ca.path("data/records/a.example.com/record.json")).unwrap();
    let live = std::fs::read(ca.path("out/live/a.example.com/cert.pem")).unwrap();
    for environment in [("NONE", ""), ("CERTS_DRY_RUN", "true")] {
        let arguments = match environment.0 {
            "NONE" => &["renew", "--dry-run"][..],
            _ => &["renew"],
        };
        let mut renew = with(&ca, arguments);
        let printed = run(renew.env(environment.0, environment.1), 0);
        assert!(
            printed.contains("dry run: a.example.com would be issued"),
            "{printed}"
        );
    }
    assert_eq!(
        std::fs::read(ca.path("data/records/a.example.com/record.json")).unwrap(),
        before
    );
    assert_eq!(
        std::fs::read(ca.path("out/live/a.example.com/cert.pem")).unwrap(),
        live
    );
    run(&mut with(&ca, &["renew", "--dry-run", "--force"]), 2);
    // One that would fail does.
    ca.script.add(
        Endpoint::NewOrder,
        Which::Every,
        Fault::problem(403, "caa", "no"),
    );
    run(&mut with(&ca, &["renew", "--dry-run"]), 4);
}

#[test]
fn status_shows_names_and_the_short_name_of_the_ca() {
    let ca = EmbeddedCa::start();
    run(
        &mut ca.issue(&["a.example.com", "b.example.com", "--name", "shop"]),
        0,
    );
    let printed = run(&mut with(&ca, &["status"]), 0);
    assert!(
        printed.contains("  for a.example.com, b.example.com\n"),
        "{printed}"
    );
    assert!(printed.contains("Z (in 90 days)  issue "), "{printed}");
    run(&mut ca.issue(&["c.example.com"]), 0);
    let printed = run(&mut with(&ca, &["status", "c.example.com"]), 0);
    assert!(!printed.contains("for c.example.com"), "{printed}");
}

#[test]
fn kept_key_of_another_type_is_named() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&["a.example.com"]), 0);
    let printed = run(
        &mut ca.issue(&["a.example.com", "--reuse-key", "--key", "rsa-2048"]),
        0,
    );
    let words = "its ecdsa-p256 key is kept (reuse_key) and does not become rsa-2048";
    assert!(printed.contains(words), "{printed}");
    // The hint makes a new one.
    let mut issue = ca.issue(&["a.example.com", "--key", "rsa-2048", "--force"]);
    let printed = run(issue.env("CERTS_REUSE_KEY", "false"), 0);
    assert!(!printed.contains("is kept"), "{printed}");
    let key = std::fs::read_to_string(ca.path("out/live/a.example.com/privkey.pem")).unwrap();
    assert!(key.len() > 1000, "{} characters", key.len());
}

#[test]
fn rate_limit_without_an_end_names_the_next_try() {
    let ca = EmbeddedCa::start();
    let limited = Fault::problem(429, "rateLimited", "slow down");
    ca.script.add(Endpoint::NewOrder, Which::Every, limited);
    let printed = run(&mut ca.issue(&["a.example.com"]), 6);
    let (_, hint) = printed.split_once("the next try is at ").unwrap();
    assert!(hint.contains("Z (in "), "{printed}");
}

/// `certs issue` through a webroot, whose CA validates for ever.
struct StalledIssue {
    ca: EmbeddedCa,
    running: Running,
}

impl StalledIssue {
    fn start() -> Self {
        let ca = EmbeddedCa::start();
        std::fs::create_dir(ca.path("www")).unwrap();
        let url = ca
            .server
            .directory_url()
            .replace("/directory", "/acme/challenge/none");
        let challenge = serde_json::json!({
            "type": "http-01", "url": url, "token": "none-of-this-order-at-all", "status": "processing",
        });
        let reply = Fault::Reply(200, "application/json", challenge.to_string(), None);
        ca.script.add(Endpoint::Challenge, Which::Every, reply);
        let running = Running::start(&mut Self::issue(&ca));
        until("the answer", || !answers(&ca.path("www")).is_empty());
        // The answer is there before its challenge is started.
        until("the challenge", || ca.script.count(Endpoint::Challenge) > 0);
        Self { ca, running }
    }

    fn issue(ca: &EmbeddedCa) -> Command {
        let mut command = certs(&ca.path(""));
        command
            .args([
                "issue",
                "a.example.com",
                "--agree-tos",
                "--ca",
                &ca.server.directory_url(),
            ])
            .arg("--ca-root")
            .arg(ca.path("root.pem"))
            .arg("--webroot")
            .arg(ca.path("www"));
        command
    }
}

fn answers(webroot: &Path) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(webroot.join(".well-known/acme-challenge"));
    let entries = directory.into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn interrupted_command_leaves_no_answer() {
    // A closed terminal sends HUP.
    for (signal, code) in [(Signal::HUP, 129), (Signal::INT, 130), (Signal::TERM, 143)] {
        let mut stalled = StalledIssue::start();
        stalled.running.signal(signal);
        assert_eq!(stalled.running.exit_code(), Some(code));
        assert_eq!(answers(&stalled.ca.path("www")), Vec::<PathBuf>::new());
    }
    // nohup has it ignored.
    let StalledIssue { ca, mut running } = StalledIssue::start();
    running.kill();
    let issue = StalledIssue::issue(&ca);
    let mut nohup = Command::new("nohup");
    nohup.arg(issue.get_program()).args(issue.get_args());
    nohup.env_clear().envs(
        issue
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let begun = ca.script.count(Endpoint::Challenge);
    let mut running = Running::start(nohup.env("PATH", "/usr/bin:/bin"));
    until("the challenge", || {
        ca.script.count(Endpoint::Challenge) > begun
    });
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    assert_eq!(running.exit_code(), Some(143));
}

#[test]
fn answer_of_a_killed_command_is_removed_and_a_failure_names_the_webroot() {
    let StalledIssue { ca, mut running } = StalledIssue::start();
    running.kill();
    assert_eq!(answers(&ca.path("www")).len(), 1);
    ca.script.clear();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(ca.path("www"), closed).unwrap();
    // No server serves the webroot, and it is its owner's alone.
    let printed = run(&mut StalledIssue::issue(&ca), 5);
    assert_eq!(answers(&ca.path("www")), Vec::<PathBuf>::new(), "{printed}");
    let words = format!("seen here: the webroot {}", ca.path("www").display());
    assert!(printed.contains(&words), "{printed}");
    assert!(printed.contains("has mode 0700"), "{printed}");
}

#[test]
fn command_waits_for_the_port_of_another_one() {
    let first = EmbeddedCa::start();
    let second = EmbeddedCa::with(|settings| {
        settings.validation = certs::ca::Validation::Connect {
            ports: certs::ca::Ports::both(first.http_port),
            resolve: certs::ca::Resolve::Fixed(std::net::Ipv4Addr::LOCALHOST.into()),
        };
    });
    first
        .script
        .add(Endpoint::NewOrder, Which::Every, Fault::HangBefore);
    let holds = Running::start(&mut first.issue(&["a.example.com"]));
    until("the order", || first.script.count(Endpoint::NewOrder) > 0);
    let mut waits = certs(&second.path(""));
    waits
        .args([
            "issue",
            "b.example.com",
            "--agree-tos",
            "--ca",
            &second.server.directory_url(),
        ])
        .arg("--ca-root")
        .arg(second.path("root.pem"))
        .args(["--http-listen", &format!("127.0.0.1:{}", first.http_port)]);
    let log = std::fs::File::create(second.path("log")).unwrap();
    let mut waits = Running::start_logging(&mut waits, log.into());
    let read = || std::fs::read_to_string(second.path("log")).unwrap();
    until("the other command to wait", || {
        read().contains("waiting up to")
    });
    assert!(
        read().contains(&format!("(pid {})", holds.id())),
        "{}",
        read()
    );
    assert!(!waits.has_ended());
    drop(holds);
    assert_eq!(waits.exit_code(), Some(0), "{}", read());
}

/// A server that has a webroot for each host, until it is dropped.
struct Webroots {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Webroots {
    fn serve(port: u16, roots: Vec<(&'static str, PathBuf)>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = std::thread::spawn(move || {
            while let (Ok((mut stream, _)), false) =
                (listener.accept(), ends.load(Ordering::SeqCst))
            {
                let mut head = [0; 2048];
                let length = stream.read(&mut head).unwrap();
                let head = String::from_utf8_lossy(&head[..length]);
                let path = head.split_whitespace().nth(1).unwrap_or_default();
                let has = |host: &str| head.to_ascii_lowercase().contains(&format!("host: {host}"));
                let root = roots.iter().find(|(host, _)| has(host));
                let file = root.map(|(_, root)| root.join(path.trim_start_matches('/')));
                let body = file.and_then(|file| std::fs::read_to_string(file).ok());
                let (status, body) = body.map_or(("404", String::new()), |body| ("200", body));
                let length = body.len();
                let reply = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                // The client may have gone.
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        Self {
            port,
            is_over,
            thread: Some(thread),
        }
    }
}

impl Drop for Webroots {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

#[test]
fn each_webroot_gets_the_answers_for_the_names_after_it() {
    let ca = EmbeddedCa::start();
    let [one, other] = ["one", "other"].map(|name| ca.path(name));
    for root in [&one, &other] {
        std::fs::create_dir(root).unwrap();
    }
    let roots = [
        ("a.example.com", one.clone()),
        ("b.example.com", one.clone()),
        ("c.example.com", other.clone()),
    ];
    let _server = Webroots::serve(ca.http_port, roots.to_vec());
    let issue = |more: &[&str]| {
        let mut command = with(
            &ca,
            &["issue", "--agree-tos", "--ca", &ca.server.directory_url()],
        );
        command.arg("--ca-root").arg(ca.path("root.pem")).args(more);
        command
    };
    let (first, second) = (one.to_str().unwrap(), other.to_str().unwrap());
    let names = [
        "--webroot",
        first,
        "a.example.com",
        "b.example.com",
        "--webroot",
        second,
        "c.example.com",
    ];
    run(&mut issue(&names), 0);
    // The settings are stored with the certificate.
    run(&mut with(&ca, &["renew", "--force"]), 0);
    let options =
        std::fs::read_to_string(ca.path("data/records/a.example.com/options.json")).unwrap();
    assert!(options.contains(second), "{options}");
    let printed = run(
        &mut issue(&[
            "x.example.com",
            "--webroot",
            first,
            "y.example.com",
            "--webroot",
            second,
        ]),
        2,
    );
    assert!(
        printed.contains("x.example.com: no webroot is named for it"),
        "{printed}"
    );
}
