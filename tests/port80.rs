//! Port 80 under attack while a token is live: clients request other tokens, open connections and stay
//! silent. The token is always answered, nothing else is, and memory stays constant.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{by_depth, until};

const TOKEN: &str = "a-token-that-is-live-throughout";
const PATH: &str = "/.well-known/acme-challenge/";
const MIB: u64 = 1 << 20;

/// `certs issue` whose CA reports for ever that it validates.
struct AttackedIssue {
    child: Child,
    port: u16,
    _ca: EmbeddedCa,
}

impl AttackedIssue {
    fn start() -> Self {
        let ca = EmbeddedCa::start();
        let url = ca
            .server
            .directory_url()
            .replace("/directory", "/acme/challenge/none");
        let challenge = serde_json::json!({
            "type": "http-01", "url": url, "token": TOKEN, "status": "processing",
        });
        let challenge = Fault::Reply(200, "application/json", challenge.to_string(), None);
        let token = Fault::Token(TOKEN.to_owned());
        ca.script.add(Endpoint::Authorization, Which::Every, token);
        ca.script.add(Endpoint::Challenge, Which::Every, challenge);
        let mut command = ca.issue(&["example.com"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let attacked = Self {
            child: command.spawn().unwrap(),
            port: ca.http_port,
            _ca: ca,
        };
        until("the live token", || attacked.token_is_answered());
        attacked
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn token_is_answered(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address()) else {
            return false;
        };
        let path = format!("{PATH}{TOKEN}");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n");
        let mut reply = String::new();
        stream.write_all(request.as_bytes()).is_ok()
            && stream.read_to_string(&mut reply).is_ok()
            && reply.starts_with("HTTP/1.1 200")
            && reply.contains(TOKEN)
    }

    /// The resident memory of its process, in bytes.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() * 1024
    }

    /// How long the program or this client was ready to run but had no processor.
    fn processor_wait(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let its = tasks.filter_map(|task| run_delay(&task.ok()?.path()));
        // On a kernel without this count, all of the time is taken as ours.
        let its = its.max().unwrap_or_default();
        its + run_delay(Path::new("/proc/thread-self")).unwrap_or_default()
    }

    /// Requests the token repeatedly while `attack` lasts. Returns the slowest answer, with and without the
    /// time spent waiting for a processor, and the highest memory use.
    #[allow(clippy::disallowed_methods)] // real servers take real time
    fn during(&self, attack: impl FnOnce() + Send) -> (Slowest, u64) {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                attack();
                over.store(true, Ordering::SeqCst);
            });
            let (mut slowest, mut most) = (Slowest::default(), 0);
            while !over.load(Ordering::SeqCst) {
                let (asked, waited) = (Instant::now(), self.processor_wait());
                assert!(self.token_is_answered(), "the live token was not answered");
                let others = self.processor_wait().saturating_sub(waited);
                let took = asked.elapsed();
                slowest.ours = slowest.ours.max(took.saturating_sub(others));
                slowest.whole = slowest.whole.max(took);
                most = most.max(self.resident());
                thread::sleep(Duration::from_millis(10));
            }
            (slowest, most)
        })
    }
}

impl Drop for AttackedIssue {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The slowest answer.
#[derive(Clone, Copy, Debug, Default)]
struct Slowest {
    whole: Duration,
    /// Without the time spent waiting for a processor.
    ours: Duration,
}

/// The time that a live task has waited for a processor: the second figure of its `schedstat`.
fn run_delay(task: &Path) -> Option<Duration> {
    let figures = std::fs::read_to_string(task.join("schedstat")).ok()?;
    let nanoseconds = figures.split_whitespace().nth(1)?;
    Some(Duration::from_nanos(nanoseconds.parse().unwrap()))
}

/// Requests that must get no answer: other tokens, hosts, spellings, methods, smuggled bodies, heads that are
/// too long.
fn bogus(number: usize) -> String {
    let other = format!("{number:022}");
    let (method, path, host, more) = match number % 10 {
        0 => (
            "GET",
            format!("{PATH}{other}"),
            "example.com",
            String::new(),
        ),
        1 => (
            "GET",
            format!("{PATH}{TOKEN}"),
            "other.example",
            String::new(),
        ),
        2 => (
            "GET",
            format!("{PATH}{}", TOKEN.to_uppercase()),
            "example.com",
            String::new(),
        ),
        3 => (
            "GET",
            format!("{PATH}%61{}", &TOKEN[1..]),
            "example.com",
            String::new(),
        ),
        4 => (
            "GET",
            format!("{PATH}../acme-challenge/{TOKEN}"),
            "example.com",
            String::new(),
        ),
        5 => (
            "POST",
            format!("{PATH}{TOKEN}"),
            "example.com",
            String::new(),
        ),
        6 => (
            "GET",
            format!("{PATH}{TOKEN}"),
            "example.com",
            "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n".to_owned(),
        ),
        7 => (
            "GET",
            format!("/{}", PATH.to_uppercase()),
            "example.com",
            String::new(),
        ),
        8 => (
            "GET",
            format!("{PATH}{TOKEN}"),
            "example.com",
            format!("X: {}\r\n", "x".repeat(16 * 1024)),
        ),
        _ => (
            "GET",
            format!("{PATH}{TOKEN}?{number}#"),
            "example.com:80:80",
            String::new(),
        ),
    };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n")
}

/// Sends requests one after the other on kept connections. Returns how many were answered 200.
fn ask_bogus(address: SocketAddr, numbers: impl Iterator<Item = usize>) -> usize {
    let mut answered = 0;
    let mut connection: Option<BufReader<TcpStream>> = None;
    for number in numbers {
        let mut stream = match connection.take() {
            Some(stream) => stream,
            None => BufReader::new(TcpStream::connect(address).unwrap()),
        };
        if stream
            .get_mut()
            .write_all(bogus(number).as_bytes())
            .is_err()
        {
            continue;
        }
        let (status, kept) = read_reply(&mut stream);
        answered += usize::from(status == 200);
        // After a malformed request both sides close.
        if kept && status != 400 && status != 431 {
            connection = Some(stream);
        }
    }
    answered
}

/// The status (0 without a reply), and whether the connection is kept.
fn read_reply(stream: &mut BufReader<TcpStream>) -> (u16, bool) {
    let (mut status, mut length, mut kept) = (0, 0, true);
    loop {
        let mut line = String::new();
        match stream.read_line(&mut line) {
            Ok(0) | Err(_) => return (status, false),
            Ok(_) => {}
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(rest) = line.strip_prefix("http/1.1 ") {
            status = rest[..3].parse().unwrap();
        } else if let Some(rest) = line.strip_prefix("content-length:") {
            length = rest.trim().parse().unwrap();
        } else if line.starts_with("connection: close") {
            kept = false;
        } else if line.is_empty() {
            let mut body = vec![0; length];
            return (status, stream.read_exact(&mut body).is_ok() && kept);
        }
    }
}

/// Connects from one of many addresses of this machine.
fn connect_from(source: Ipv4Addr, address: SocketAddr) -> rustix::io::Result<TcpStream> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(source, 0))?;
    rustix::net::connect(&socket, &address)?;
    Ok(TcpStream::from(socket))
}

/// Opens connections and sends only the beginning of a request on each.
fn open_slow(address: SocketAddr, count: u32) {
    let mut open = Vec::new();
    for number in 0..count {
        let [.., high, low] = (number / 4 + 2).to_be_bytes();
        let Ok(mut stream) = connect_from(Ipv4Addr::new(127, 1, high, low), address) else {
            panic!("connection {number} was refused");
        };
        // The server may have closed the connection already to make room.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: exam");
        open.push(stream);
    }
}

fn attack_port(requests: usize, connections: u32) {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let attacked = AttackedIssue::start();
    let (address, before) = (attacked.address(), attacked.resident());
    let (slowest, most) = attacked.during(|| {
        let answered: usize = thread::scope(|scope| {
            let asking: Vec<_> = (0..8)
                .map(|start| scope.spawn(move || ask_bogus(address, (start..requests).step_by(8))))
                .collect();
            asking.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!(answered, 0, "bogus requests were answered");
    });
    report(requests, "bogus requests", slowest, before, most);
    let (slowest, most) = attacked.during(|| open_slow(address, connections));
    report(connections, "slow connections", slowest, before, most);
    assert!(attacked.token_is_answered());
}

fn report(count: impl std::fmt::Display, what: &str, slowest: Slowest, before: u64, most: u64) {
    let grown = most.saturating_sub(before);
    println!(
        "{count} {what}: the live token within {} ms throughout ({} ms of it ours), {:.1} MiB more than {:.1}",
        slowest.whole.as_millis(),
        slowest.ours.as_millis(),
        grown as f64 / MIB as f64,
        before as f64 / MIB as f64,
    );
    assert!(slowest.ours < Duration::from_secs(1), "{what}: {slowest:?}");
    assert!(
        slowest.whole < Duration::from_secs(5),
        "{what}: {slowest:?}"
    );
    assert!(grown <= 4 * MIB, "{what}: {grown} bytes more");
}

#[test]
fn live_token_is_answered_under_any_load() {
    let (requests, connections) = by_depth((2_000, 500), (10_000, 2_000), (100_000, 10_000));
    attack_port(requests, connections);
}
