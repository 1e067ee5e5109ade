//! `certs ca serve` from the command line: a directory to order from, a root to trust, and the same state
//! after a restart.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{assert_says, by_depth, certs, free_port, run, text};

/// A CA started by the command line.
struct CaServer {
    child: Child,
    directory: String,
    root: PathBuf,
}

impl CaServer {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = certs(directory);
        command.args(["ca", "serve"]).args(arguments);
        if !arguments.contains(&"--permit") {
            // The tests order for names of the whole internet.
            command.args(["--permit", "*"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = lines.map_while(Result::ok);
        let mut printed = |label: &str| {
            let line = lines.next().unwrap_or_default();
            let value = line.strip_prefix(label);
            value
                .unwrap_or_else(|| panic!("no {label} in {line}"))
                .to_owned()
        };
        Self {
            directory: printed("directory: "),
            root: printed("root: ").into(),
            child,
        }
    }

    /// The exit code after `signal`.
    fn stop(mut self, signal: Signal) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for CaServer {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The options of a CA that validates every name at this port of loopback.
fn on_loopback(port: &str) -> [&str; 6] {
    [
        "--listen",
        "127.0.0.1:0",
        "--http-port",
        port,
        "--resolve-to",
        "127.0.0.1",
    ]
}

#[test]
fn ca_serve_keeps_root_accounts_and_orders_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let listen = format!("127.0.0.1:{}", free_port());
    let out = directory.path().join("root-out.pem");
    let start = |more: &[&str]| {
        let usual = [
            "--listen",
            &listen,
            "--http-port",
            &port,
            "--resolve-to",
            "127.0.0.1",
        ];
        CaServer::start(directory.path(), &[&usual, more].concat())
    };
    let issue = |ca: &CaServer, more: &[&str]| {
        let mut command = certs(directory.path());
        command.args(["issue", "example.com", "--agree-tos", "--ca", &ca.directory]);
        command.arg("--ca-root").arg(&ca.root);
        command.args(["--http-listen", &format!("127.0.0.1:{port}")]);
        run(command.args(more), 0)
    };
    let ca = start(&["--root-out", out.to_str().unwrap()]);
    assert_eq!(ca.root, out);
    assert!(issue(&ca, &[]).contains("issued; generation 0001"));
    assert_eq!(ca.stop(Signal::TERM), Some(0));
    let ca = start(&["--lifetime", "160h"]);
    assert_eq!(ca.root, directory.path().join("data/ca/root.pem"));
    assert_eq!(
        std::fs::read(&ca.root).unwrap(),
        std::fs::read(&out).unwrap()
    );
    assert!(issue(&ca, &["--force"]).contains("issued; generation 0002"));
    assert_eq!(ca.stop(Signal::INT), Some(0));
    let state = std::fs::read(directory.path().join("data/ca/state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["accounts"].as_object().unwrap().len(), 1);
    assert_eq!(state["orders"].as_object().unwrap().len(), 2);
}

#[test]
fn ca_serve_has_a_host_and_permits_it() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = [
        "--listen",
        "0.0.0.0:0",
        "--host",
        "ca.corp.net",
        "--permit",
        "corp.org",
    ];
    let ca = CaServer::start(directory.path(), &arguments);
    let url = ca.directory.clone();
    let port = url.strip_prefix("https://ca.corp.net:").unwrap();
    let port = port.strip_suffix("/directory").unwrap();
    // A client checks the name in the CA's certificate, and the names that the root permits.
    let reached = |url: &str| {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "--resolve",
            &format!("ca.corp.net:{port}:127.0.0.1"),
            url,
        ]);
        let output = curl.arg("--cacert").arg(&ca.root).output();
        output.map(|output| text(&output)).unwrap_or_default()
    };
    if reached("file:///dev/null").is_empty() {
        let shown = reached(&url);
        assert!(
            shown.contains(&format!("https://ca.corp.net:{port}/acme/new-order")),
            "{shown}"
        );
        let root = reached(&format!("http://ca.corp.net:{port}/root.pem"));
        assert_eq!(root, std::fs::read_to_string(&ca.root).unwrap());
        let shown = reached(&format!("http://ca.corp.net:{port}/directory"));
        assert!(shown.contains("use https"), "{shown}");
    } else {
        eprintln!("SKIPPED: the CA's host: curl is not installed");
    }
    assert_eq!(ca.stop(Signal::TERM), Some(0));
    let mut command = certs(directory.path());
    command.args([
        "ca",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--host",
        "ca.other.net",
    ]);
    let printed = run(&mut command, 2);
    assert!(
        printed.contains("does not permit ca.other.net"),
        "{printed}"
    );
}

#[test]
fn ca_serve_loses_nothing_by_kills() {
    let directory = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let port = free_port().to_string();
    let arguments = [
        "--listen",
        &listen,
        "--http-port",
        &port,
        "--resolve-to",
        "127.0.0.1",
    ];
    let client = directory.path().join("client");
    let mut issued = 0;
    let mut root = None;
    for round in 0..by_depth(6, 20, 60) {
        let mut ca = CaServer::start(directory.path(), &arguments);
        let now = std::fs::read(&ca.root).unwrap();
        assert_eq!(*root.get_or_insert_with(|| now.clone()), now);
        let mut command = certs(&client);
        command.args([
            "issue",
            &format!("n{round}.test"),
            "--agree-tos",
            "--ca",
            &ca.directory,
        ]);
        command.arg("--ca-root").arg(&ca.root);
        command.args(["--http-listen", &format!("127.0.0.1:{port}")]);
        let mut client = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Any moment of the order is as good as another.
        std::thread::sleep(Duration::from_millis(round * 137 % 700));
        ca.child.kill().unwrap();
        ca.child.wait().unwrap();
        // An error means that the client has ended already.
        let _ = client.kill();
        issued += usize::from(client.wait().unwrap().success());
        let state = std::fs::read(directory.path().join("data/ca/state.json"));
        let state = state.map_or(serde_json::json!({"certificates": {}}), |state| {
            serde_json::from_slice(&state).unwrap()
        });
        // What a client has got is known.
        let known = state["certificates"].as_object().unwrap().len();
        assert!(known >= issued, "{known} of {issued}");
    }
    let ca = CaServer::start(directory.path(), &arguments);
    assert_eq!(ca.stop(Signal::TERM), Some(0));
}

#[test]
fn ca_serve_requires_external_account() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("hmac");
    std::fs::write(&key, "MDEyMzQ1Njc4OWFiY2RlZg\n").unwrap();
    let bound = [
        "--eab-kid",
        "customer",
        "--eab-hmac-file",
        key.to_str().unwrap(),
    ];
    let ca = CaServer::start(
        directory.path(),
        &[&["--listen", "127.0.0.1:0"], &bound[..]].concat(),
    );
    let mut command = certs(&directory.path().join("client"));
    command.args(["issue", "example.com", "--agree-tos", "--ca", &ca.directory]);
    command.arg("--ca-root").arg(&ca.root);
    let printed = run(command.args(["--http-listen", "127.0.0.1:0"]), 4);
    assert!(printed.contains("externalAccountRequired"), "{printed}");
    assert_eq!(ca.stop(Signal::TERM), Some(0));
    // Several accounts in one file.
    let file = directory.path().join("accounts");
    let other = "ZmVkY2JhOTg3NjU0MzIxMA";
    std::fs::write(
        &file,
        format!("# office\nfirst MDEyMzQ1Njc4OWFiY2RlZg\n\nsecond {other}\n"),
    )
    .unwrap();
    std::fs::write(&key, other).unwrap();
    let port = free_port().to_string();
    let arguments = on_loopback(&port);
    let file = ["--eab-file", file.to_str().unwrap()];
    let ca = CaServer::start(directory.path(), &[&arguments[..], &file].concat());
    for (kid, code) in [("first", 4), ("second", 0)] {
        let mut command = certs(&directory.path().join(kid));
        command.args(["issue", "example.com", "--agree-tos", "--ca", &ca.directory]);
        command
            .arg("--ca-root")
            .arg(&ca.root)
            .args(["--eab-kid", kid, "--eab-hmac-file"]);
        command
            .arg(&key)
            .args(["--http-listen", &format!("127.0.0.1:{port}")]);
        let printed = run(&mut command, code);
        let hint = "hint: the CA does not accept the external account binding";
        assert_eq!(printed.contains(hint), code == 4, "{printed}");
    }
}

/// Wrong options, the words of the message and of its hint, and the options that the hint gives.
type Case<'a> = (&'a [&'a str], &'a str, &'a str, &'a [&'a str]);

#[test]
fn ca_serve_exits_2_with_hint_that_leads_to_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (free, every) = (free_port(), free_port());
    let (free, every) = (format!("127.0.0.1:{free}"), format!("0.0.0.0:{every}"));
    let place = |name: &str| directory.path().join(name).display().to_string();
    let file = |name: &str, text: &str| {
        std::fs::write(place(name), text).unwrap();
        place(name)
    };
    let key = "MDEyMzQ1Njc4OWFiY2RlZg";
    let [none, odd, short, accounts, weak, strong] = [
        ("none", "# none yet\n\n"),
        ("odd", "a MDEyMzQ1Njc4OWFiY2RlZg\nb\n"),
        ("short", "a MDEyMzQ1Njc4OWFiY2RlZg\nb AAAA\n"),
        ("accounts", "a MDEyMzQ1Njc4OWFiY2RlZg\n"),
        ("weak", "AAAA"),
        ("strong", key),
    ]
    .map(|(name, text)| file(name, text));
    let (absent, written) = (place("absent/root.pem"), place("root.pem"));
    let line = "write a line for each account: its ID, a space, and an HMAC key";
    let host = "for example --host ca.internal";
    let given: &[&str] = &["--eab-file", &accounts];
    let cases: &[Case<'_>] = &[
        (
            &["--listen", &taken],
            "cannot listen on",
            "choose another with --listen 127.0.0.1:PORT",
            &["--listen", &free],
        ),
        (
            &["--listen", &every],
            "gives clients no address",
            "this machine: --host ca.internal",
            &["--listen", &every, "--host", "ca.internal"],
        ),
        (
            &["--host", "*.internal"],
            "not a name or an address",
            host,
            &["--host", "ca.internal"],
        ),
        (&["--eab-file", &none], "no account found", line, given),
        (
            &["--eab-file", &odd],
            "line 2 is not an identifier and a key",
            line,
            given,
        ),
        (
            &["--eab-file", &short],
            "a key is shorter than 16 bytes",
            line,
            given,
        ),
        (
            &["--eab-kid", "a", "--eab-hmac-file", &weak],
            "shorter than 16 bytes",
            "write an HMAC key of at least 16 bytes in base64url to the file",
            &["--eab-kid", "a", "--eab-hmac-file", &strong],
        ),
        (
            &["--root-out", &absent],
            "absent/root.pem",
            "name a file in a writable directory",
            &["--root-out", &written],
        ),
        (
            &["--permit", "a b"],
            "--permit `a b`",
            "for example --permit example.com",
            &["--permit", "example.com"],
        ),
    ];
    let serve = |data: &str, arguments: &[&str]| {
        let mut command = certs(&directory.path().join(data));
        command.args(["ca", "serve"]).args(arguments);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        command
    };
    for (wrong, message, hint, right) in cases {
        let printed = run(&mut serve("one", wrong), 2);
        assert_says(&printed, &[message, "hint: ", hint]);
        drop(Serving::start(&mut serve("one", right)));
    }
    let printed = run(&mut serve("one", &["--lifetime", "soon"]), 2);
    assert!(printed.contains("a number with s, m, h or d"), "{printed}");
    // The root of the data directory permits no such host: another host, or another directory.
    let other = ["--host", "ca.iana.org"];
    let printed = run(&mut serve("one", &other), 2);
    let hint = "choose a --host that it permits, such as ca.internal, or a new --data-dir";
    assert_says(&printed, &[hint]);
    let ca = Serving::start(&mut serve("one", &["--host", "ca.internal"]));
    let printed = run(&mut serve("one", &[]), 2);
    let hint = "use the CA that is running, or give another --data-dir";
    assert_says(&printed, &["in use by another process", hint]);
    drop(Serving::start(&mut serve("two", &other)));
    drop(ca);
    // The root of a CA that was never started, and a file without one.
    let trust = |data: &str, root: &[&str], code| {
        let mut command = certs(&directory.path().join(data));
        run(command.args(["ca", "trust"]).args(root), code)
    };
    let hint = "start the CA once with `certs ca serve`, or name its root with --root FILE";
    assert_says(&trust("three", &[], 2), &[hint]);
    trust("one", &[], 0);
    let hint = "name a file with the CA's root alone with --root FILE";
    assert_says(&trust("three", &["--root", &weak], 2), &[hint]);
    trust("three", &["--root", &written], 0);
}

#[test]
fn wrong_settings_of_the_ca_are_named_and_corrected() {
    use certs::ca::{Server, Settings};
    let clock = std::sync::Arc::new(certs::time::SystemClock);
    let made = Server::new(Settings::new("http://ca.test"), clock.clone());
    let error = made.err().unwrap();
    assert!(error.to_string().contains("is not https://"), "{error}");
    assert_eq!(error.hint(), "correct the settings of the CA");
    assert!(Server::new(Settings::new("https://ca.test"), clock).is_ok());
}

/// A CA that has printed its directory; it ends with its test.
struct Serving(Child);

impl Serving {
    fn start(command: &mut Command) -> Self {
        let quiet = command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = quiet.spawn().unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        lines.read_line(&mut line).unwrap();
        let serving = Self(child);
        assert!(line.starts_with("directory: https://"), "{line}");
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn ca_serve_permits_private_names_and_those_that_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let port = free_port().to_string();
    let arguments = [&on_loopback(&port)[..], &["--permit", "iana.com"]].concat();
    let ca = CaServer::start(directory.path(), &arguments);
    let issue = |name: &str, code: i32| {
        let mut command = certs(&directory.path().join("client"));
        command.args(["issue", name, "--agree-tos", "--ca", &ca.directory]);
        command.arg("--ca-root").arg(&ca.root);
        command.args(["--http-listen", &format!("127.0.0.1:{port}")]);
        run(&mut command, code)
    };
    issue("web.test", 0);
    issue("www.iana.com", 0);
    issue("www.example.com", 0);
    let printed = issue("www.iana.org", 4);
    assert!(printed.contains("--permit NAME"), "{printed}");
}
