//! What is said about a certificate: proven by a handshake, not proven, or not checked at all.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{Nginx, certs, free_port, make_script, run, until, until_within};
use crate::targets::{NAME, issued, live};

const NOTHING: &str = "not checked: no endpoint is configured; hint: --verify HOST:PORT";

/// The command with its result as JSON.
fn json(command: &mut Command, code: i32) -> Value {
    let output = command.arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn proof(ca: &EmbeddedCa) -> Value {
    json(certs(&ca.path("")).arg("status"), 0)[0].clone()
}

/// The page at `path` of the sidecar's admin endpoints, with its status.
pub(crate) fn ask(sidecar: &Sidecar, path: &str) -> (u16, String) {
    let url = format!("http://127.0.0.1:{}{path}", sidecar.admin);
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "10",
        "--write-out",
        "\n%{http_code}",
        &url,
    ]);
    let answer = String::from_utf8(curl.output().unwrap().stdout).unwrap();
    let (body, status) = answer.rsplit_once('\n').unwrap();
    (status.parse().unwrap_or(0), body.to_owned())
}

#[test]
fn certificate_without_endpoint_is_not_checked_everywhere() {
    let ca = EmbeddedCa::start();
    let printed = run(&mut ca.issue(&["example.com"]), 0);
    assert!(
        printed.contains(&format!("example.com: {NOTHING}")),
        "{printed}"
    );
    let issued = json(&mut ca.issue(&["example.com"]), 0);
    assert_eq!(issued["proof"], "not-checked");
    for verb in ["renew", "reload"] {
        let printed = run(certs(&ca.path("")).arg(verb), 0);
        assert!(printed.contains(NOTHING), "{verb}: {printed}");
    }
    let shown = proof(&ca);
    assert_eq!(
        (&shown["proof"], &shown["proven"]),
        (&"not-checked".into(), &false.into())
    );
    assert_eq!(shown["proof_detail"], "no endpoint is configured");
    let printed = run(certs(&ca.path("")).args(["status", "example.com"]), 0);
    assert!(printed.contains(NOTHING), "{printed}");

    let sidecar = Sidecar::start(&ca, &["example.com"]);
    until("readiness", || sidecar.readiness() == 200);
    let (_, ready) = ask(&sidecar, "/readyz");
    assert_eq!(
        ready,
        "ready\nexample.com: not checked: no endpoint is configured\n"
    );
    let (_, api) = ask(&sidecar, "/api/v1/certificates");
    let api: Value = serde_json::from_str(&api).unwrap();
    assert_eq!(
        (&api[0]["proof"], &api[0]["proven"]),
        (&"not-checked".into(), &false.into())
    );
    let (_, page) = ask(&sidecar, "/");
    assert!(
        !page.contains("class=good") && page.contains("not checked"),
        "{page}"
    );
    let (_, metrics) = ask(&sidecar, "/metrics");
    let proof =
        |state: &str| format!("certs_certificate_proof{{name=\"example.com\",proof=\"{state}\"}}");
    for line in [
        proof("proven") + " 0",
        proof("not-proven") + " 0",
        proof("not-checked") + " 1",
    ] {
        assert!(metrics.contains(&line), "no `{line}` in {metrics}");
    }
    sidecar.stop();
}

#[test]
fn server_whose_ports_are_unknown_is_not_checked_and_a_failed_one_not_proven() {
    let ca = EmbeddedCa::start();
    let copy = format!("file:{}", ca.path("copy.pem").display());
    let printed = run(&mut ca.issue(&["copy.example.com", "--deploy", &copy]), 0);
    assert!(
        printed.contains(&format!("copy.example.com: {NOTHING}")),
        "{printed}"
    );
    let printed = run(
        &mut ca.issue(&["a.example.com", "--deploy", "exec:/bin/true"]),
        0,
    );
    let unknown = "not checked: no endpoint is configured, and the ports of exec:/bin/true are unknown; hint: ";
    assert!(printed.contains(unknown), "{printed}");
    let printed = run(
        &mut ca.issue(&["b.example.com", "--deploy", "exec:/bin/false"]),
        7,
    );
    assert!(!printed.contains("not checked"), "{printed}");
    let closed = format!("127.0.0.1:{}", free_port());
    run(&mut ca.issue(&["c.example.com", "--verify", &closed]), 7);
    let all = json(certs(&ca.path("")).arg("status"), 0);
    let states = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["proof"].as_str().unwrap());
    assert_eq!(
        Vec::from_iter(states),
        ["not-checked", "not-proven", "not-proven", "not-checked"]
    );
    let detail = all[2]["proof_detail"].as_str().unwrap();
    assert!(
        detail.starts_with(&closed) && detail.contains("refused"),
        "{detail}"
    );
}

/// A TLS server that reads its pair at each connection, below a link.
struct Served {
    port: u16,
    link: PathBuf,
    open: Option<(oneshot::Sender<()>, std::thread::JoinHandle<()>)>,
}

impl Served {
    fn start(link: PathBuf) -> Self {
        let (port, open) = (free_port(), None);
        let mut server = Self { port, link, open };
        server.open();
        server
    }

    fn open(&mut self) {
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, self.port).into();
        let socket = std::net::TcpListener::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        let (stop, mut stopped) = oneshot::channel();
        let link = self.link.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let socket = tokio::net::TcpListener::from_std(socket).unwrap();
                loop {
                    let stream = tokio::select! {
                        accepted = socket.accept() => accepted.unwrap().0,
                        _ = &mut stopped => return,
                    };
                    if let Some(acceptor) = acceptor(&link) {
                        let _ = acceptor.accept(stream).await;
                    }
                }
            });
        });
        self.open = Some((stop, thread));
    }

    fn close(&mut self) {
        if let Some((stop, thread)) = self.open.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    /// Makes it serve the pair in `directory`, as a restored image does.
    fn go_back_to(&self, directory: &Path) {
        std::fs::remove_file(&self.link).unwrap();
        std::os::unix::fs::symlink(directory, &self.link).unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.close();
    }
}

fn acceptor(directory: &Path) -> Option<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(directory.join("fullchain.pem")).ok()?;
    let chain = chain.collect::<Result<Vec<_>, _>>().ok()?;
    let key = PrivateKeyDer::from_pem_file(directory.join("privkey.pem")).ok()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key);
    Some(TlsAcceptor::from(Arc::new(config.ok()?)))
}

/// A server with two generations, the second one served, and a directory with the first.
fn renewed(ca: &EmbeddedCa) -> (Served, [String; 4], PathBuf) {
    let (live, serving) = (ca.path("out/live/example.com"), ca.path("serving"));
    let (hook, reloads) = (ca.path("hook"), ca.path("reloads"));
    let (from, to, count) = (live.display(), serving.display(), reloads.display());
    make_script(&hook, &format!("ln -sfn {from} {to}; echo >>{count}"));
    let server = Served::start(serving);
    let options = [
        "--deploy".to_owned(),
        format!("exec:{}", hook.display()),
        "--verify".to_owned(),
        format!("127.0.0.1:{}", server.port),
    ];
    let issue = |more: &[&str]| {
        let options = options.iter().map(String::as_str);
        let all: Vec<&str> = ["example.com"]
            .into_iter()
            .chain(options)
            .chain(more.iter().copied())
            .collect();
        run(&mut ca.issue(&all), 0)
    };
    let printed = issue(&[]);
    let proven = format!(
        "example.com: proven by handshake at 127.0.0.1:{}, ",
        server.port
    );
    assert!(printed.contains(&proven), "{printed}");
    let old = ca.path("old");
    let mut copy = Command::new("cp");
    copy.args(["--recursive", "--dereference"])
        .arg(&live)
        .arg(&old);
    assert!(copy.status().unwrap().success());
    issue(&["--force"]);
    (server, options, old)
}

fn reloads(ca: &EmbeddedCa) -> usize {
    std::fs::read_to_string(ca.path("reloads")).unwrap().len()
}

#[test]
fn renew_looks_at_each_endpoint_and_repairs_a_server_that_went_back() {
    let ca = EmbeddedCa::start();
    let (mut server, _, old) = renewed(&ca);
    let newest = ca.leaf_at(server.port, "example.com");
    for verb in [&["renew"][..], &["issue", "example.com"]] {
        let (before, mut command) = (reloads(&ca), certs(&ca.path("")));
        if verb[0] == "issue" {
            command = ca.issue(&["example.com"]);
            command.args(["--verify", &format!("127.0.0.1:{}", server.port)]);
            command.args(["--deploy", &format!("exec:{}", ca.path("hook").display())]);
        } else {
            command.arg("renew");
        }
        server.go_back_to(&old);
        assert_ne!(ca.leaf_at(server.port, "example.com"), newest);
        let printed = run(&mut command, 0);
        assert!(
            printed.contains("went back to another certificate"),
            "{verb:?}: {printed}"
        );
        assert_eq!(ca.leaf_at(server.port, "example.com"), newest, "{verb:?}");
        assert_eq!(reloads(&ca), before + 1);
        run(&mut command, 0);
        assert_eq!(reloads(&ca), before + 1, "{verb:?}: nothing was wrong");
    }
    // A server that is down is not reloaded, and the command fails.
    server.close();
    let before = reloads(&ca);
    let printed = run(certs(&ca.path("")).arg("renew"), 7);
    assert!(
        printed.contains("Connection refused") && printed.contains("hint: "),
        "{printed}"
    );
    let shown = proof(&ca);
    assert_eq!(
        (&shown["proof"], &shown["proven"]),
        (&"not-proven".into(), &false.into())
    );
    server.open();
    run(certs(&ca.path("")).arg("renew"), 0);
    assert_eq!(
        (&proof(&ca)["proof"], reloads(&ca)),
        (&"proven".into(), before)
    );
}

#[test]
fn sidecar_looks_again_and_repairs_a_server_that_went_back() {
    let ca = EmbeddedCa::start();
    let (mut server, options, old) = renewed(&ca);
    let (newest, admin) = (ca.leaf_at(server.port, "example.com"), free_port());
    let mut command = configured(&ca, &["example.com"], admin);
    command.args(["--verify-every", "10s"]).args(&options);
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    until("readiness", || sidecar.readiness() == 200);
    let before = reloads(&ca);
    server.go_back_to(&old);
    until_within("a repair", Duration::from_secs(30), || {
        ca.leaf_at(server.port, "example.com") == newest
    });
    assert_eq!(reloads(&ca), before + 1);
    let log = sidecar.log();
    assert!(log.contains("went back to another certificate"), "{log}");
    until("readiness", || sidecar.readiness() == 200);
    let series = format!(
        "certs_served_not_after_seconds{{name=\"example.com\",endpoint=\"127.0.0.1:{}\"}}",
        server.port
    );
    assert!(ask(&sidecar, "/metrics").1.contains(&series));
    server.close();
    until_within("an alarm", Duration::from_secs(30), || {
        sidecar.readiness() == 503
    });
    assert!(!ask(&sidecar, "/metrics").1.contains(&series));
    let (_, why) = ask(&sidecar, "/readyz");
    assert!(
        why.starts_with("example.com: not proven: 127.0.0.1:"),
        "{why}"
    );
    server.open();
    until_within("readiness", Duration::from_secs(30), || {
        sidecar.readiness() == 200
    });
    assert_eq!(reloads(&ca), before + 1);
    sidecar.stop();
}

#[test]
fn server_that_is_gone_at_the_start_makes_it_unready_until_it_is_back() {
    let ca = issued();
    let root = ca.path("nginx");
    let Some(mut nginx) = Nginx::start_at(&live(&ca), &root, free_port()) else {
        return;
    };
    // A configured endpoint, and the ports that nginx is found to listen on.
    for endpoint in [Some(format!("127.0.0.1:{}", nginx.port)), None] {
        let (port, deploy) = (nginx.port, format!("nginx:{}", nginx.pid_file.display()));
        let start = || {
            let admin = free_port();
            let mut command = configured(&ca, &[NAME], admin);
            command
                .env("CERTS_DEPLOY", &deploy)
                .env("CERTS_VERIFY_EVERY", "10s");
            command.envs(endpoint.iter().map(|endpoint| ("CERTS_VERIFY", endpoint)));
            Sidecar::start_as(&ca, &mut command, admin)
        };
        let sidecar = start();
        until("readiness", || sidecar.readiness() == 200);
        sidecar.stop();
        drop(nginx);
        let sidecar = start();
        until("the first look", || {
            let readiness = sidecar.readiness();
            assert!([0, 503].contains(&readiness), "{}", sidecar.log());
            sidecar.log().contains("does not serve the certificate")
        });
        assert_eq!(sidecar.readiness(), 503);
        nginx = Nginx::start_at(&live(&ca), &root, port).unwrap();
        until("readiness", || sidecar.readiness() == 200);
        sidecar.stop();
    }
}
