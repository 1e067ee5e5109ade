//! Real servers on loopback with ports of their own. Each ends with its test.

pub(crate) mod bind;
pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod dns_api;
pub(crate) mod embedded;
pub(crate) mod faults;
pub(crate) mod oracle;
pub(crate) mod proxy;
pub(crate) mod renewal;
pub(crate) mod replay;
pub(crate) mod sidecar;
pub(crate) mod strace;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The program that `tests/lab` found, or `None` and a `SKIPPED` line.
#[allow(clippy::disallowed_methods)] // the lab's variables are read here alone
pub(crate) fn program(variable: &str, usual: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map_or_else(|| PathBuf::from(usual), PathBuf::from);
    if !found.exists() {
        eprintln!("SKIPPED: {variable}: there is no {}", found.display());
        return None;
    }
    Some(found)
}

/// One of three values by the depth of a test, which `CERTS_TEST_DEPTH` sets: `short` (the default, and
/// `tests/run`), `proof` (`tests/prove`) or `full`.
#[allow(clippy::disallowed_methods)] // as above
pub(crate) fn by_depth<T>(short: T, proof: T, full: T) -> T {
    match std::env::var("CERTS_TEST_DEPTH").as_deref() {
        Err(_) | Ok("short") => short,
        Ok("proof") => proof,
        Ok("full") => full,
        Ok(other) => panic!("CERTS_TEST_DEPTH={other}: write short, proof or full"),
    }
}

/// A child process that ends with its test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// With this standard input.
    pub(crate) fn start_with(command: &mut Command, input: Stdio) -> Self {
        let quiet = command.stdin(input).stdout(Stdio::null());
        Self(quiet.stderr(Stdio::null()).spawn().unwrap())
    }

    /// Appends its error output to `log`.
    pub(crate) fn start_logging(command: &mut Command, log: Stdio) -> Self {
        let logging = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Self(logging.spawn().unwrap())
    }

    /// Writes its output and its errors to `file`.
    pub(crate) fn start_writing(command: &mut Command, file: std::fs::File) -> Self {
        let errors = file.try_clone().unwrap();
        let writing = command.stdin(Stdio::null()).stdout(file).stderr(errors);
        Self(writing.spawn().unwrap())
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.0.id()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// The exit code of a child that has ended; `None` if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that is free for TCP and UDP. For a minute the kernel gives it to no socket or connection without a
/// fixed port; only a bind to its number succeeds.
pub(crate) fn free_port() -> u16 {
    loop {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        // This end closes first, so the connection keeps the port in TIME_WAIT.
        let near = std::net::TcpStream::connect(address).unwrap();
        drop(socket.accept().unwrap());
        drop(near);
        drop(socket);
        let port = address.port();
        // A program that another test starts at this moment holds the listener until its exec.
        while !is_released(port) {
            std::thread::yield_now();
        }
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Whether no process listens on `port`. A socket that is only bound does not block one that listens.
fn is_released(port: u16) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

/// Waits until `ready` returns true; fails the test after 20 seconds.
pub(crate) fn until(what: &str, ready: impl FnMut() -> bool) {
    until_within(what, Duration::from_secs(20), ready);
}

/// The same with another limit of time.
#[allow(clippy::disallowed_methods)] // real servers take real time
pub(crate) fn until_within(what: &str, within: Duration, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + within;
    while !ready() {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn listens(port: u16) -> bool {
    std::net::TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok()
}

/// Pebble with a DNS server that resolves every name to loopback.
pub(crate) struct Pebble {
    directory: TempDir,
    pub(crate) http_port: u16,
    pub(crate) tls_port: u16,
    pub(crate) management: u16,
    port: u16,
    servers: [Running; 2],
}

impl Pebble {
    /// `rejected` is the percentage of nonces that Pebble rejects.
    pub(crate) fn start(rejected: u8) -> Option<Self> {
        Self::start_asking(rejected, None)
    }

    /// The same, and Pebble asks this DNS server.
    pub(crate) fn start_asking(rejected: u8, server: Option<SocketAddr>) -> Option<Self> {
        let pebble = program("CERTS_LAB_PEBBLE", "/usr/bin/pebble")?;
        let dns = program("CERTS_LAB_CHALLTESTSRV", "/usr/bin/pebble-challtestsrv")?;
        // Another process may take a free port before Pebble binds it.
        let mut tries = (0..5).filter_map(|_| Self::begin(&pebble, &dns, rejected, server));
        let stays = tries.next();
        assert!(stays.is_some(), "Pebble does not start");
        stays
    }

    /// `None` if one of the two ended before it listened.
    fn begin(pebble: &Path, dns: &Path, rejected: u8, server: Option<SocketAddr>) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("root.pem"), made.cert.pem()).unwrap();
        std::fs::write(file("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let [
            port,
            management,
            http_port,
            tls_port,
            dns_port,
            dns_management,
        ] = [(); 6].map(|()| free_port());
        let local = |port: u16| format!("127.0.0.1:{port}");
        let config = serde_json::json!({"pebble": {
            "listenAddress": local(port), "managementListenAddress": local(management),
            "certificate": file("root.pem"), "privateKey": file("key.pem"),
            "httpPort": http_port, "tlsPort": tls_port, "ocspResponderURL": "",
            "externalAccountBindingRequired": false, "caaIdentities": ["pebble.test"], "retryAfter": {"authz": 0, "order": 0},
        }});
        std::fs::write(file("config.json"), config.to_string()).unwrap();
        // Older versions name one option differently and lack the others.
        let help = text(&Command::new(dns).arg("-h").output().unwrap());
        let mut command = Command::new(dns);
        command.args(["-management", &local(dns_management), "-defaultIPv6", ""]);
        command.args(["-http01", "", "-https01", "", "-tlsalpn01", ""]);
        if help.contains("-dnsserver") {
            command.args(["-dnsserver", &local(dns_port), "-doh", ""]);
        } else {
            command.args(["-dns01", &local(dns_port)]);
        }
        let mut dns = Running::start(&mut command);
        let asked = server.map_or_else(|| local(dns_port), |server| server.to_string());
        let mut pebble = Running::start(
            Command::new(pebble)
                .args(["-strict", "-dnsserver", &asked, "-config"])
                .arg(file("config.json"))
                .env("PEBBLE_VA_NOSLEEP", "1")
                // Pebble 2.10 still reuses one authorization in a hundred: it compares with `>`.
                .env("PEBBLE_AUTHZREUSE", "0")
                .env("PEBBLE_ALTERNATE_ROOTS", "2")
                .env("PEBBLE_WFE_NONCEREJECT", rejected.to_string()),
        );
        let mut ended = false;
        until("Pebble", || {
            ended = dns.has_ended() || pebble.has_ended();
            ended || listens(port) && listens(dns_management)
        });
        (!ended).then(|| Self {
            directory,
            http_port,
            tls_port,
            management,
            port,
            servers: [dns, pebble],
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory_url(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// Stops Pebble until it is resumed, like an overloaded CA.
    pub(crate) fn pause(&self) {
        self.servers[1].signal(rustix::process::Signal::STOP);
    }

    pub(crate) fn resume(&self) {
        self.servers[1].signal(rustix::process::Signal::CONT);
    }

    /// `certs issue` against this CA, with a data directory of its own.
    pub(crate) fn issue(&self, arguments: &[&str]) -> Command {
        let mut command = certs(self.directory.path());
        command
            .args([
                "issue",
                "--agree-tos",
                "--ca",
                &self.directory_url(),
                "--ca-root",
            ])
            .arg(self.path("root.pem"))
            .args(["--http-listen", &format!("127.0.0.1:{}", self.http_port)])
            .args(arguments);
        command
    }
}

/// The binary, with its state below `directory` and an empty environment. Its deployments wait a third of the
/// usual time for a server that never serves the pair.
pub(crate) fn certs(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_certs"));
    command.env_clear().stdin(Stdio::null());
    command
        .env("CERTS_VERIFY_WITHIN", "10s")
        .env("CERTS_DATA_DIR", directory.join("data"))
        .env("CERTS_OUTPUT_DIR", directory.join("out"));
    command
}

/// Fails the test unless all of `words` are printed.
pub(crate) fn assert_says(printed: &str, words: &[&str]) {
    for words in words {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

/// A uid without any permissions of its own on this machine.
pub(crate) const NOBODY: u32 = 65_534;

/// Makes an executable from the content of `from`. A child process writes it: a file open for writing here
/// would be inherited by children of other tests, and the kernel refuses to run it until they close it.
pub(crate) fn make_program(path: &Path, from: impl Into<Stdio>) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path);
    let made = install.stdin(from).output().unwrap();
    assert!(made.status.success(), "{}", text(&made));
}

/// The same for a shell script.
pub(crate) fn make_script(path: &Path, lines: &str) {
    let source = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(source.path(), format!("#!/bin/sh\n{lines}\n")).unwrap();
    make_program(path, source.reopen().unwrap());
}

/// The same command as user [`NOBODY`], run from a copy of the program in `directory`: that user may not
/// reach the build directory.
pub(crate) fn as_nobody(command: &Command, directory: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let program = directory.join("certs");
    make_program(
        &program,
        std::fs::File::open(command.get_program()).unwrap(),
    );
    let mut other = Command::new(program);
    other.args(command.get_args()).env_clear();
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    other.envs(set).stdin(Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        other.current_dir(directory);
    }
    other.uid(NOBODY).gid(NOBODY);
    other
}

/// Runs the command, asserts its exit code, and returns its output.
pub(crate) fn run(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(code), "{printed}");
    printed
}

/// Asserts that the key, chain and names of the live pair agree.
pub(crate) fn loads(live: &Path) {
    use certs::certificate::{Bundle, Freshness, Secret};
    use certs::identifier::Identifier;
    use certs::time::{Clock, SystemClock};
    let directory = std::fs::canonicalize(live).unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let key = Secret::new(read("privkey.pem"));
    let names = [Identifier::parse("example.com").unwrap()].into();
    Bundle::new(
        key,
        &read("fullchain.pem"),
        &names,
        SystemClock.now(),
        Freshness::Stored,
    )
    .unwrap();
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// nginx on loopback with the pair below `live`, which must exist.
pub(crate) struct Nginx {
    pub(crate) port: u16,
    pub(crate) pid_file: PathBuf,
    directory: PathBuf,
    _temporary: Option<TempDir>,
    program: PathBuf,
}

impl Nginx {
    pub(crate) fn start(live: &Path) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut nginx = Self::start_at(live, directory.path(), free_port())?;
        nginx._temporary = Some(directory);
        Some(nginx)
    }

    /// Keeps nginx's own files in `directory`, which is created if missing.
    pub(crate) fn start_at(live: &Path, directory: &Path, port: u16) -> Option<Self> {
        let pair = (live.join("fullchain.pem"), live.join("privkey.pem"));
        Self::with_pairs(&[pair], directory, (Ipv4Addr::LOCALHOST, port).into())
    }

    /// The same with several certificates and their keys, for one server.
    pub(crate) fn with_pairs(
        pairs: &[(PathBuf, PathBuf)],
        directory: &Path,
        address: SocketAddr,
    ) -> Option<Self> {
        let program = program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?;
        std::fs::create_dir_all(directory).unwrap();
        let (root, port) = (directory.display(), address.port());
        let pairs = pairs.iter().map(|(chain, key)| {
            let (chain, key) = (chain.display(), key.display());
            format!("ssl_certificate {chain}; ssl_certificate_key {key}; ")
        });
        let pairs: String = pairs.collect();
        let config = format!(
            "pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             server {{ listen {address} ssl; {pairs}\n\
             location / {{ return 200 ok; }} }} }}\n"
        );
        std::fs::write(directory.join("nginx.conf"), config).unwrap();
        let pid_file = directory.join("nginx.pid");
        let nginx = Self {
            port,
            pid_file,
            directory: directory.to_owned(),
            _temporary: None,
            program,
        };
        assert!(nginx.command().status().unwrap().success());
        until("nginx", || std::net::TcpStream::connect(address).is_ok());
        Some(nginx)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("-c")
            .arg(self.directory.join("nginx.conf"))
            .stderr(Stdio::null());
        command
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.command().args(["-s", "stop"]).status();
        let listening = self.port;
        until("nginx's end", || !listens(listening));
    }
}

#[test]
fn free_port_gives_each_port_once() {
    let ports: std::collections::BTreeSet<u16> = (0..500).map(|_| free_port()).collect();
    assert_eq!(ports.len(), 500);
    // The kernel gives them to no socket without a fixed port.
    for _ in 0..500 {
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        assert!(!ports.contains(&any.local_addr().unwrap().port()));
    }
    // A bind to the number succeeds.
    TcpListener::bind((Ipv4Addr::LOCALHOST, *ports.first().unwrap())).unwrap();
}
