//! The cost of a renewal for connected clients: they send requests while certificates are swapped, and each
//! kind of server prints one line. Half of the clients keep their connection, half open one for each request.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use certs::certificate::{Bundle, Freshness, Secret};
use certs::identifier::Identifier;
use certs::lineage::Lineage;
use certs::time::{Clock, SystemClock};
use certs::tls::credentials::Publisher;
use certs::tls::dialer::Dialer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Nginx, by_depth, free_port, run, until};
use crate::targets::{NAME, haproxy, live, verify};

const CLIENTS: usize = 8;
const ASK: &[u8] = b"GET / HTTP/1.1\r\nhost: example.com\r\n\r\n";
const ASK_ONCE: &[u8] = b"GET / HTTP/1.1\r\nhost: example.com\r\nconnection: close\r\n\r\n";

/// The number of swaps and of requests meanwhile.
fn size() -> (u64, u64) {
    by_depth((3, 1_000), (5, 2_000), (50, 100_000))
}

#[derive(Default)]
struct RequestTally {
    requests: AtomicU64,
    failed: AtomicU64,
    handshakes: AtomicU64,
    closed_idle: AtomicU64,
    slowest_micros: AtomicU64,
    stop: AtomicBool,
}

impl RequestTally {
    fn fail(&self, why: &str) {
        if self.failed.fetch_add(1, Ordering::Relaxed) < 5 {
            eprintln!("a request has failed: {why}");
        }
    }

    fn count(&self, counter: &AtomicU64) {
        let _ = self;
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends one request on an open connection.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    question: &[u8],
) -> Result<(), String> {
    stream
        .write_all(question)
        .await
        .map_err(|error| error.to_string())?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer).await {
            Ok(0) if answer.is_empty() => return Err("closed".to_owned()),
            Ok(0) => return Err("cut off".to_owned()),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if answer.is_empty() => return Err(format!("closed: {error}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&answer).into_owned()),
    }
}

struct Client {
    dialer: Dialer,
    address: SocketAddr,
    keeps: bool,
    /// Whether the server may close a kept connection between two requests.
    may_close: bool,
    tally: Arc<RequestTally>,
}

impl Client {
    async fn dial(&self) -> Option<TlsStream<TcpStream>> {
        let name = Identifier::parse(NAME).unwrap();
        self.tally.count(&self.tally.handshakes);
        match self.dialer.connect(self.address, &name).await {
            Ok((stream, _)) => Some(stream),
            Err(error) => {
                self.tally.fail(&format!("no connection: {error}"));
                None
            }
        }
    }

    async fn work(self) {
        let mut kept: Option<TlsStream<TcpStream>> = None;
        while !self.tally.stop.load(Ordering::Relaxed) {
            let begun = tokio::time::Instant::now();
            let reused = kept.is_some();
            let stream = match kept.take() {
                Some(stream) => Some(stream),
                None => self.dial().await,
            };
            let Some(mut stream) = stream else { continue };
            let question = if self.keeps { ASK } else { ASK_ONCE };
            match ask(&mut stream, question).await {
                Ok(()) => {
                    self.tally.count(&self.tally.requests);
                    let took = u64::try_from(begun.elapsed().as_micros()).unwrap();
                    self.tally.slowest_micros.fetch_max(took, Ordering::Relaxed);
                    kept = self.keeps.then_some(stream);
                }
                Err(why) if reused && self.may_close && why.starts_with("closed") => {
                    self.tally.count(&self.tally.closed_idle);
                }
                Err(why) => self.tally.fail(&why),
            }
            // The pause leaves processor time, so that the swap is measured and not an overloaded machine.
            tokio::time::sleep(Duration::from_millis(if self.keeps { 1 } else { 5 })).await;
        }
    }
}

/// Swaps while clients send requests, and prints the results.
fn measure(ca: &EmbeddedCa, server: &str, port: u16, may_close: bool, mut swap: impl FnMut()) {
    let (swaps, requests) = size();
    let root = std::fs::read(ca.path("root.pem")).unwrap();
    let tally = Arc::new(RequestTally::default());
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                dialer: Dialer::new(&root).unwrap(),
                address: (Ipv4Addr::LOCALHOST, port).into(),
                keeps: number % 2 == 0,
                may_close,
                tally: tally.clone(),
            };
            runtime.spawn(client.work())
        })
        .collect();
    for _ in 0..swaps {
        swap();
    }
    let done = || tally.requests.load(Ordering::Relaxed);
    crate::support::until_within(
        "the requests",
        Duration::from_secs(by_depth(120, 120, 900)),
        || done() >= requests,
    );
    tally.stop.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for client in clients {
            client.await.unwrap();
        }
    });
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{server}: {swaps} swaps, {} requests, {} failed, {} handshakes, slowest {} ms, {} kept connections closed while idle",
        read(&tally.requests),
        read(&tally.failed),
        read(&tally.handshakes),
        read(&tally.slowest_micros) / 1000,
        read(&tally.closed_idle),
    );
    assert_eq!(read(&tally.failed), 0, "{server}");
    assert!(may_close || read(&tally.closed_idle) == 0, "{server}");
    assert!(read(&tally.requests) >= requests, "{server}");
}

fn issued() -> EmbeddedCa {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    ca
}

#[test]
fn nginx_fails_no_connection_while_certificates_are_swapped() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    let verify = verify(nginx.port);
    measure(&ca, "nginx", nginx.port, true, || {
        run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    });
}

#[test]
fn haproxy_fails_no_connection_while_certificates_are_swapped() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let crt = live(&ca).join("combined.pem");
    let Some(_running) = haproxy(&directory, port, &crt) else {
        return;
    };
    let deploy = format!(
        "--deploy=haproxy:{}",
        directory.join("admin.sock").display()
    );
    let verify = verify(port);
    measure(&ca, "HAProxy", port, false, || {
        run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    });
}

fn pair(live: &Path) -> Bundle {
    let read = |name: &str| std::fs::read_to_string(live.join(name)).unwrap();
    let names = [Identifier::parse(NAME).unwrap()].into();
    let key = Secret::new(read("privkey.pem"));
    let (chain, now) = (read("fullchain.pem"), SystemClock.now());
    Bundle::new(key, &chain, &names, now, Freshness::Stored).unwrap()
}

#[test]
fn own_listener_fails_no_connection_while_certificates_are_swapped() {
    let ca = issued();
    let lineage = Lineage::parse(NAME).unwrap();
    let names = [Identifier::parse(NAME).unwrap()].into();
    let served = vec![(lineage.clone(), names)];
    let (publisher, credentials) = Publisher::new(served, Arc::new(SystemClock));
    publisher.publish(&lineage, &pair(&live(&ca))).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let inside = runtime.enter();
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let page = axum::Router::new().fallback(async || "ok");
    runtime.spawn(credentials.serve(listener, page).unwrap());
    drop(inside);
    measure(&ca, "our own listener", port, false, || {
        run(&mut ca.issue(&[NAME, "--force"]), 0);
        publisher.publish(&lineage, &pair(&live(&ca))).unwrap();
    });
}

#[test]
fn coturn_calls_survive_every_renewal() {
    let ca = issued();
    let Some(turn) = crate::targets::Coturn::start(&ca) else {
        return;
    };
    let Some(client) =
        crate::support::program("CERTS_LAB_TURN_CLIENT", "/usr/bin/turnutils_uclient")
    else {
        return;
    };
    // Each session relays a message to itself every 20 ms over TLS. The calls must outlast the renewals.
    let (sessions, renewals, messages) = by_depth((10, 2, 600), (10, 3, 1000), (50, 20, 1500));
    let mut calls = Command::new(client);
    calls.args([
        "-S", "-t", "-y", "-u", "a", "-w", "b", "-z", "20", "-l", "170",
    ]);
    calls.args(["-m", &sessions.to_string(), "-n", &messages.to_string()]);
    calls.args(["-p", &turn.port.to_string(), "127.0.0.1"]);
    let calls = calls
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let calls = calls.spawn().unwrap();
    // The client closes some connections of its start: their number must stay for half a second.
    let (mut connected, mut stays) = (0, 0);
    until("the sessions", || {
        let now = established(turn.port);
        let is_same = now == connected && now >= sessions;
        stays = if is_same { stays + 1 } else { 0 };
        connected = now;
        stays >= 25
    });
    let verify = verify(turn.port);
    for _ in 0..renewals {
        run(&mut ca.issue(&[NAME, "--force", &turn.deploy, &verify]), 0);
    }
    let still = established(turn.port);
    assert!(
        still >= connected,
        "{still} of {connected} connections are left"
    );
    let ended = calls.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&ended.stdout);
    let total = printed
        .lines()
        .rev()
        .find(|line| line.contains("tot_send_msgs"));
    let total = total.unwrap_or_else(|| panic!("no total in {printed}"));
    println!("coturn: {sessions} sessions over TLS, {renewals} renewals: {total}");
    // The client leaves before the answers to its last messages arrive, the earlier the busier the machine is:
    // without any renewal 50 sessions lose 2% of 300 messages each.
    let [sent, received] = ["tot_send_msgs=", "tot_recv_msgs="].map(|key| number(total, key));
    let lost = sent - received;
    assert!(
        sent >= sessions * messages && lost <= sent / 10,
        "{printed}"
    );
}

fn number(line: &str, key: &str) -> usize {
    let rest = line.split_once(key).unwrap().1;
    let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next();
    digits.unwrap().parse().unwrap()
}

/// The number of connections to `port` of this machine.
fn established(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!(":{port:04X}");
    let open = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[1].ends_with(&local) && fields[3] == "01"
    };
    table.lines().filter(open).count()
}
