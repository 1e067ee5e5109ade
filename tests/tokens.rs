//! The tokens and passwords in the URLs of webhooks: they reach their server and no output.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, text, until};

const NAME: &str = "example.com";
/// In every part of a URL that may be secret.
const TOKEN: &str = "T0kenOfTheWebhook";

/// Refuses every request with 403; returns its port. Its thread ends with the test's process.
fn refusing() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        }
    });
    port
}

fn command(ca: &EmbeddedCa, admin: u16, targets: &str, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .args(arguments)
        .args(["-v", "-v"])
        .env("CERTS_AGREE_TOS", "true")
        .env("CERTS_CA", ca.server.directory_url())
        .env("CERTS_CA_ROOT", ca.path("root.pem"))
        .env("CERTS_DEPLOY", targets)
        .env("CERTS_DOMAINS", NAME)
        .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", ca.http_port))
        .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    command
}

fn page(admin: u16, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, admin)) else {
        return String::new();
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reply = String::new();
    let _ = stream.read_to_string(&mut reply);
    reply
}

#[test]
fn tokens_of_webhooks_never_appear_in_any_output() {
    let ca = EmbeddedCa::start();
    let (admin, at) = (free_port(), format!("127.0.0.1:{}", refusing()));
    let targets = format!(
        "http://user:{TOKEN}@{at}/{TOKEN}/a?{TOKEN} http://user:{TOKEN}@{at}/{TOKEN}/b http://{at}/{TOKEN}/c"
    );
    let log = ca.path("run.log");
    let sidecar = Running::start_logging(
        &mut command(&ca, admin, &targets, &["run"]),
        std::fs::File::create(&log).unwrap().into(),
    );
    until("a refused webhook on the page", || {
        page(admin, "/api/v1/certificates").contains("replied 403")
    });
    let mut printed = String::new();
    for path in [
        "/",
        "/metrics",
        "/api/v1/certificates",
        "/healthz",
        "/readyz",
    ] {
        printed += &page(admin, path);
    }
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["status", NAME],
        &["config", "check", "--json"],
        &["reload"],
        &["issue", NAME, "--force"],
        &["renew", "--force", "--json"],
    ] {
        let mut command = command(&ca, admin, &targets, arguments);
        printed += &text(&command.output().unwrap());
    }
    drop(sidecar);
    for invalid in [
        format!("htps://{at}/{TOKEN}"),
        format!("https:/{at}/{TOKEN}"),
        format!("caddy:http://u:{TOKEN}@{at}"),
        format!("{targets} {targets}"),
    ] {
        let mut check = command(&ca, admin, &invalid, &["config", "check"]);
        printed += &text(&check.output().unwrap());
    }
    for (variable, value) in [
        ("CERTS_CA", format!("https://u:{TOKEN}@{at}/directory")),
        ("CERTS_CA", format!("http://u:{TOKEN}@{at}/directory")),
        ("CERTS_DOCKER_HOST", format!("tcp://u:{TOKEN}@{at}")),
        ("CERTS_VERIFY", format!("https://u:{TOKEN}@{at}")),
    ] {
        let mut check = command(&ca, admin, &targets, &["config", "check"]);
        printed += &text(&check.env(variable, value).output().unwrap());
    }
    printed += &std::fs::read_to_string(&log).unwrap();
    let record = ca.path("data/records").join(NAME).join("record.json");
    printed += &std::fs::read_to_string(record).unwrap();
    for words in [
        "DEBUG",
        "certs_deployments_total",
        &at,
        "hint",
        "given twice",
        "takes no user",
    ] {
        assert!(printed.contains(words), "nothing said `{words}`: {printed}");
    }
    let leaks: Vec<_> = printed
        .lines()
        .filter(|line| line.contains(TOKEN))
        .collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    // Webhooks of one host are distinct.
    let metrics = printed
        .lines()
        .filter(|line| line.contains("target=\"http://"));
    let named: std::collections::BTreeSet<_> = metrics
        .filter_map(|line| line.split('"').find(|part| part.starts_with("http://")))
        .collect();
    assert_eq!(named.len(), 3, "{named:?}");
}
