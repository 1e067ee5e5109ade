//! Hints beside a running `certs run`, each followed.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::followed::servers::web_server;
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{assert_says, certs, free_port, run, until};

const NAME: &str = "a.example.com";

/// Writes the configuration of `certs run`, with these lines.
fn configure(ca: &EmbeddedCa, lines: &str) {
    let text = format!("agree_tos = true\n{lines}\n[[certificate]]\nnames = '{NAME}'\n");
    std::fs::write(ca.path("certs.toml"), text).unwrap();
}

/// `certs run` with that configuration alone.
fn start(ca: &EmbeddedCa, admin: u16) -> Sidecar {
    let mut command = configured(ca, &[], admin);
    for variable in ["CERTS_DOMAINS", "CERTS_HTTP_LISTEN"] {
        command.env_remove(variable);
    }
    command.arg("--config").arg(ca.path("certs.toml"));
    let sidecar = Sidecar::start_as(ca, &mut command, admin);
    until("readiness", || sidecar.readiness() == 200);
    sidecar
}

fn http(ca: &EmbeddedCa) -> String {
    format!("http_listen = '127.0.0.1:{}'", ca.http_port)
}

#[test]
fn hints_about_the_admin_endpoints_are_followed() {
    let ca = EmbeddedCa::start();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let printed = run(&mut configured(&ca, &[NAME], taken.port()), 2);
    assert_says(
        &printed,
        &["hint: set another address with [admin] listen or CERTS_ADMIN_LISTEN"],
    );
    let refusal = Fault::problem(400, "rejectedIdentifier", "not ours");
    ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    let health = |address: &str, code| {
        let mut command = certs(&ca.path(""));
        command.args(["status", "--health=ready"]);
        run(command.env("CERTS_ADMIN_LISTEN", address), code)
    };
    let admin = free_port();
    let address = format!("127.0.0.1:{admin}");
    let words = "hint: set an address with [admin] listen or CERTS_ADMIN_LISTEN";
    assert_says(&health("off", 2), &[words]);
    let words = "hint: start certs run, or set its [admin] listen for this command too";
    assert_says(&health(&address, 1), &[words]);
    let sidecar = Sidecar::start_as(&ca, &mut configured(&ca, &[NAME], admin), admin);
    let status = || run(certs(&ca.path("")).arg("status"), 0);
    until("the refusal", || {
        sidecar.readiness() == 503 && status().contains("last error")
    });
    let printed = health(&address, 1);
    assert_says(
        &printed,
        &["hint: certs status shows the last error of each certificate"],
    );
    assert_says(&status(), &["last error: ", "not ours"]);
    ca.script.clear();
    run(&mut ca.issue(&[NAME]), 0);
    until("readiness", || sidecar.readiness() == 200);
    health(&address, 0);
    sidecar.stop();
}

/// The status and body for this host.
fn asked(admin: u16, host: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--max-time",
        "10",
        "--header",
        &format!("Host: {host}"),
    ]);
    let url = format!("http://127.0.0.1:{admin}/readyz");
    run(curl.arg(url), 0)
}

#[test]
fn hints_of_commands_beside_certs_run_are_followed() {
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    configure(&ca, &http(&ca));
    let sidecar = start(&ca, admin);
    let printed = asked(admin, "proxy.example.com");
    let words =
        "hint: use the address or the host name of this one, or add the name to [admin] hosts";
    assert_says(&printed, &[words]);
    assert!(!asked(admin, &format!("127.0.0.1:{admin}")).contains("hint: "));
    // Another key than the configured one: for another certificate, or in the configuration.
    let key = [NAME, "--key", "rsa-2048"];
    let printed = run(&mut ca.issue(&key), 2);
    let words = "change the configuration of `certs run` and send it SIGHUP, or issue another certificate with --name NAME";
    assert_says(&printed, &[words]);
    run(&mut ca.issue(&[&key[..], &["--name", "other"]].concat()), 0);
    configure(&ca, &format!("{}\nkey = 'rsa-2048'", http(&ca)));
    sidecar.running.signal(Signal::HUP);
    until("the reload", || {
        sidecar.log().contains("the configuration was reloaded")
    });
    run(&mut ca.issue(&key), 0);
    // A challenge without a listener.
    let tls = format!("127.0.0.1:{}", ca.tls_port);
    let by_tls = [
        "t.example.com",
        "--challenge",
        "tls-alpn-01",
        "--tls-listen",
        &tls,
    ];
    let printed = run(&mut ca.issue(&by_tls), 2);
    let words = "set tls_listen and challenge = \"tls-alpn-01\" in its configuration and restart it, or stop it first";
    assert_says(&printed, &[words]);
    sidecar.stop();
    run(&mut ca.issue(&by_tls), 0);
    let lines = format!("tls_listen = '{tls}'\nchallenge = 'tls-alpn-01'");
    configure(
        &ca,
        &format!("{lines}\n[admin]\nhosts = ['proxy.example.com']"),
    );
    let sidecar = start(&ca, admin);
    let again = [&by_tls[..], &["--force"]].concat();
    run(&mut ca.issue(&again), 0);
    assert!(!asked(admin, "proxy.example.com").contains("hint: "));
    sidecar.stop();
}

#[test]
fn challenge_without_a_listener_of_certs_run_is_answered_as_the_hint_says() {
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    let words = "hint: use --webroot with its directory, or stop `certs run` first";
    let tls = format!("tls_listen = '127.0.0.1:{}'", ca.tls_port);
    configure(&ca, &format!("{tls}\nchallenge = 'tls-alpn-01'"));
    let sidecar = start(&ca, admin);
    let printed = run(&mut ca.issue(&["h.example.com"]), 2);
    assert_says(&printed, &[words]);
    sidecar.stop();
    run(&mut ca.issue(&["h.example.com"]), 0);
    let mut delete = certs(&ca.path(""));
    run(delete.args(["delete", "h.example.com", "--yes"]), 0);
    // Beside the server whose directory `certs run` has.
    let webroot = ca.path("www");
    std::fs::create_dir(&webroot).unwrap();
    web_server(ca.http_port, Some(webroot.clone()), 0);
    configure(&ca, &format!("webroot = '{}'", webroot.display()));
    let sidecar = start(&ca, admin);
    let printed = run(&mut ca.issue(&["w.example.com"]), 2);
    assert_says(&printed, &[words]);
    let by_webroot = |root: &Path| {
        let mut command = certs(&ca.path(""));
        let url = ca.server.directory_url();
        command.args([
            "issue",
            "w.example.com",
            "--agree-tos",
            "--ca",
            &url,
            "--ca-root",
        ]);
        command.arg(ca.path("root.pem")).arg("--webroot").arg(root);
        run(&mut command, 0)
    };
    by_webroot(&webroot);
    sidecar.stop();
}
