//! `certs run` with its log, configured by variables alone.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::clock::Clocks;
use super::embedded::EmbeddedCa;
use super::faults::Endpoint;
use super::{Running, certs, free_port, until};

pub(crate) struct Sidecar {
    pub(crate) running: Running,
    pub(crate) log: PathBuf,
    pub(crate) admin: u16,
    /// The number of requests for a renewal window before the start.
    windows: u32,
}

/// The command without a process; `admin` is the port for readiness.
pub(crate) fn configured(ca: &EmbeddedCa, names: &[&str], admin: u16) -> Command {
    let mut command = certs(&ca.path(""));
    command
        .args(["run", "--agree-tos"])
        .env("CERTS_CA", ca.server.directory_url())
        .env("CERTS_DOMAINS", names.join(","))
        .env("CERTS_CA_ROOT", ca.path("root.pem"))
        .env("CERTS_HTTP_LISTEN", format!("127.0.0.1:{}", ca.http_port))
        .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    command
}

impl Sidecar {
    pub(crate) fn start(ca: &EmbeddedCa, names: &[&str]) -> Self {
        let admin = free_port();
        let mut command = configured(ca, names, admin);
        Self::start_as(ca, &mut command, admin)
    }

    /// Starts the command of [`configured`], possibly changed or wrapped in another program.
    pub(crate) fn start_as(ca: &EmbeddedCa, command: &mut Command, admin: u16) -> Self {
        let log = ca.path("run.log");
        let log_file = std::fs::File::create(&log).unwrap();
        Self {
            running: Running::start_logging(command, Stdio::from(log_file)),
            log,
            admin,
            windows: ca.script.count(Endpoint::RenewalInfo),
        }
    }

    /// Advances `clocks` past the requests of a start and past the time for which it keeps connections.
    pub(crate) fn settle(&self, clocks: &Clocks, ca: &EmbeddedCa) {
        let pass = |seconds: u64| {
            let time = Duration::from_secs(seconds);
            clocks.pass(time, || _ = self.readiness());
        };
        let asked = || ca.script.count(Endpoint::RenewalInfo) > self.windows;
        pass(6);
        until("a first request", || self.time_requests() > 0 || asked());
        pass(120);
    }

    /// How many times its CA has answered with the time.
    pub(crate) fn time_requests(&self) -> usize {
        self.log().matches("the time probe of ").count()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The status of `/readyz`; 0 without a reply.
    pub(crate) fn readiness(&self) -> u16 {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin));
        stream.map_or(0, |stream| status(&stream, "close"))
    }

    /// The CPU time that it has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = format!("/proc/{}/stat", self.running.id());
        let stat = std::fs::read_to_string(stat).unwrap();
        // utime and stime, by proc(5), after the name in brackets.
        let fields = stat.rsplit_once(") ").unwrap().1.split(' ');
        let ticks = fields
            .skip(11)
            .take(2)
            .map(|ticks| ticks.parse::<f64>().unwrap());
        ticks.sum::<f64>() / 100.0
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        self.running.signal(Signal::TERM);
        assert_eq!(self.running.exit_code(), Some(0), "{}", self.log());
    }

    /// An accepted connection, for requests at a time when no new one is accepted.
    pub(crate) fn connection(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)).unwrap();
        status(&stream, "keep-alive");
        stream
    }
}

/// The status of `/readyz` on `stream`; 0 if it ends without one.
pub(crate) fn status(mut stream: &TcpStream, then: &str) -> u16 {
    // A reply to HEAD has no body, so the connection can be used again.
    let request = format!("HEAD /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: {then}\r\n\r\n");
    // A connection that is never accepted would wait for ever.
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    if stream.write_all(request.as_bytes()).is_err() {
        return 0;
    }
    let head = BufReader::new(stream.take(4096)).lines();
    let head = head.map_while(Result::ok);
    let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
    let status = head.first().and_then(|line| line.get(9..12));
    status.unwrap_or("0").parse().unwrap()
}
