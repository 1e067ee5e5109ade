//! SIGTERM behind a load balancer: the machine is not ready at once, and answers until its drain is over.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured, status};
use crate::support::{Running, certs, free_port, until};

const NAME: &str = "example.com";
const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n";

/// `certs run` of a machine of a fleet, with its state below a directory of its own.
fn machine(ca: &EmbeddedCa, node: &str, http: u16, admin: u16) -> Command {
    let key = ca.path("seal.key");
    std::fs::write(&key, KEY).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let home = ca.path(node);
    std::fs::create_dir_all(&home).unwrap();
    std::fs::create_dir_all(ca.path("shared")).unwrap();
    let mut command = certs(&home);
    command
        .args(["run", "--agree-tos"])
        .env("CERTS_NODE", node)
        .env("CERTS_STORE", ca.path("shared"))
        .env("CERTS_SEAL_KEY_FILE", key)
        .env("CERTS_CA", ca.server.directory_url())
        .env("CERTS_CA_ROOT", ca.path("root.pem"))
        .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{http}"))
        .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    command
}

/// Starts it with its log in a file.
fn start(ca: &EmbeddedCa, node: &str, command: &mut Command) -> (Running, PathBuf) {
    let log = ca.path(&format!("{node}.log"));
    let file = std::fs::File::create(&log).unwrap();
    (Running::start_logging(command, file.into()), log)
}

fn readiness(admin: u16) -> u16 {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, admin));
    stream.map_or(0, |stream| status(&stream, "close"))
}

#[test]
fn drained_machine_answers_for_the_one_that_takes_its_place() {
    let ca = EmbeddedCa::start();
    let (first, second) = (free_port(), free_port());
    let notified = UnixDatagram::bind(ca.path("notify")).unwrap();
    notified.set_nonblocking(true).unwrap();
    let mut command = machine(&ca, "one", ca.http_port, first);
    command
        .env("CERTS_DRAIN", "1h")
        .env("NOTIFY_SOCKET", ca.path("notify"));
    let (mut one, log) = start(&ca, "one", &mut command);
    until("the first machine", || readiness(first) == 200);
    one.signal(Signal::TERM);
    until("the drain", || readiness(first) == 503);
    until("the free place", || {
        let log = std::fs::read_to_string(&log).unwrap();
        log.contains("another machine of the fleet does the scheduled work")
    });
    let mut said = String::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = notified.recv(&mut buffer) {
        said += &String::from_utf8_lossy(&buffer[..length]);
    }
    // systemd waits for the drain, whatever TimeoutStopSec says.
    for word in ["STOPPING=1", "EXTEND_TIMEOUT_USEC=3620000000"] {
        assert!(said.contains(word), "{said}");
    }
    // The CA asks the first machine for the answer of the second one.
    let mut command = machine(&ca, "two", free_port(), second);
    let (mut two, _) = start(&ca, "two", command.env("CERTS_DOMAINS", NAME));
    until("the certificate", || readiness(second) == 200);
    assert!(ca.path("two/out/live").join(NAME).exists());
    assert!(!one.has_ended() && readiness(first) == 503);
    // A second signal ends it at once.
    one.signal(Signal::TERM);
    assert_eq!(one.exit_code(), Some(0));
    two.signal(Signal::TERM);
    assert_eq!(two.exit_code(), Some(0));
}

#[test]
#[allow(clippy::disallowed_methods)] // the drain takes real time
fn drain_ends_after_its_time() {
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    let mut command = configured(&ca, &[NAME], admin);
    let sidecar = Sidecar::start_as(&ca, command.env("CERTS_DRAIN", "1s"), admin);
    until("readiness", || sidecar.readiness() == 200);
    let begun = Instant::now();
    sidecar.stop();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}
