//! The admin endpoints under attack: names of other machines, and idle connections without an end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{free_port, run, until};

const NAME: &str = "example.com";

/// The reply to `request`, or nothing.
fn reply(port: u16, path: &str, host: &str) -> String {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return String::new();
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let mut reply = String::new();
    let _ = stream.write_all(request.as_bytes());
    let _ = stream.read_to_string(&mut reply);
    reply
}

/// The command with these limits of open files.
fn limited(command: &Command, limits: &str) -> Command {
    let mut shell = Command::new("sh");
    let script = format!("ulimit {limits} && exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(command.get_program());
    shell.args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

#[test]
fn only_names_of_this_machine_are_answered_and_nothing_is_cached() {
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    let mut command = configured(&ca, &[NAME], admin);
    command.env("CERTS_ADMIN_HOSTS", "certs.example");
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    until("an answer", || sidecar.readiness() != 0);
    for (path, host, status) in [
        ("/", "localhost", "200"),
        ("/metrics", "127.0.0.1", "200"),
        ("/api/v1/certificates", "certs.example:9180", "200"),
        ("/absent", "localhost", "404"),
        ("/", "evil.example", "421"),
        ("/api/v1/certificates", "localhost.evil.example", "421"),
        ("/metrics", "192.0.2.7", "421"),
    ] {
        let reply = reply(admin, path, host);
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status}")),
            "{host}: {reply}"
        );
        assert!(
            reply.contains("x-content-type-options: nosniff\r\n"),
            "{reply}"
        );
        assert!(reply.contains("cache-control: no-store\r\n"), "{reply}");
        let is_refused = status == "421";
        assert_eq!(reply.contains("[admin] hosts"), is_refused, "{reply}");
        assert!(!is_refused || !reply.contains(NAME), "{reply}");
    }
}

#[test]
fn idle_connections_silence_no_listener() {
    const IDLE: usize = 1500;
    let own = getrlimit(Resource::Nofile);
    let current = own.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..own }).unwrap();
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    let command = configured(&ca, &[NAME], admin);
    let mut limited = limited(&command, "-n 1024");
    let sidecar = Sidecar::start_as(&ca, &mut limited, admin);
    until("readiness", || sidecar.readiness() == 200);
    let address = (Ipv4Addr::LOCALHOST, admin);
    let idle: Vec<_> = (0..IDLE)
        .filter_map(|_| TcpStream::connect(address).ok())
        .collect();
    assert_eq!(idle.len(), IDLE);
    let files = std::fs::read_dir(format!("/proc/{}/fd", sidecar.running.id())).unwrap();
    assert!(files.count() < 200);
    assert!(reply(ca.http_port, "/", NAME).starts_with("HTTP/1.1 308"));
    until("an answer beside idle connections", || {
        sidecar.readiness() == 200
    });
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    // Nothing was logged for any of them.
    let log = sidecar.log();
    assert!(!log.contains("could not be accepted"), "{log}");
}

#[test]
fn sidecar_raises_its_limit_of_open_files() {
    let (ca, admin) = (EmbeddedCa::start(), free_port());
    let command = configured(&ca, &[NAME], admin);
    let mut limited = limited(&command, "-S -n 300");
    let sidecar = Sidecar::start_as(&ca, &mut limited, admin);
    until("an answer", || sidecar.readiness() != 0);
    let limits = |pid: &str| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits
            .lines()
            .find(|line| line.starts_with("Max open files"));
        let words: Vec<String> = line
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (words[3].clone(), words[4].clone())
    };
    let id = sidecar.running.id().to_string();
    let (soft, hard) = limits(&id);
    assert_eq!(soft, hard);
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let helper = children.split_whitespace().next().unwrap();
    assert_eq!(limits(helper).0, "300", "programs keep the usual limit");
}
