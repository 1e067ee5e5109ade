//! Namespaces that end with their test, and networks that a bridge joins.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Running, run, text, until};

/// Set where a test runs in its namespaces.
const INSIDE: &str = "CERTS_TEST_HOSTS";
/// The address of the bridge, where the CA and the balancer are.
pub(super) const HUB: &str = "10.77.0.1";

/// Runs `test` again in namespaces of its own, and returns true there: whatever happens, the kernel ends its
/// processes and networks with the first of them, and its files are removed.
#[allow(clippy::disallowed_methods)] // a variable of our own
pub(super) fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: machines as hosts: only root may make namespaces");
        return false;
    }
    let directory = tempfile::tempdir().unwrap();
    open(directory.path());
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--net",
        "--mount",
        "--pid",
        "--fork",
    ]);
    command
        .args(["--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "yes")
        .env("TMPDIR", directory.path());
    let output = command.output().unwrap();
    let printed = text(&output);
    assert!(output.status.success(), "{printed}");
    for line in printed.lines() {
        // A single thread puts the name of its test before the first one.
        if let Some(at) = ["FIGURES ", "SKIPPED:"].iter().find_map(|it| line.find(it)) {
            println!("{}", &line[at..]);
        }
    }
    false
}

/// Lets other users pass.
pub(super) fn open(directory: &Path) {
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o711)).unwrap();
}

pub(super) fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')), 0);
}

/// A network of its own, joined to all others at `address`.
pub(super) struct Network(Running);

impl Network {
    pub(super) fn join(name: &str, address: IpAddr) -> Self {
        let network = Self(Running::start(
            Command::new("unshare").args(["--net", "sleep", "infinity"]),
        ));
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        until("a network", || {
            std::fs::read_link(network.path()).is_ok_and(|other| other != own)
        });
        ip(&format!(
            "link add {name} type veth peer name eth0 netns {}",
            network.0.id()
        ));
        ip(&format!("link set {name} master hub up"));
        for arguments in [
            "link set lo up",
            &format!("address add {address}/24 dev eth0"),
            "link set eth0 up",
        ] {
            run(network.command("ip").args(arguments.split(' ')), 0);
        }
        network
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// The program in this network, with an empty environment.
    pub(super) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("/usr/bin/nsenter");
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }
}

/// A server of the lab with its standard output and errors in `log`.
pub(super) fn logging(command: &mut Command, log: &Path) -> Running {
    let file = std::fs::File::create(log).unwrap();
    Running::start_writing(command, file)
}

pub(super) fn listens(address: &str) -> bool {
    let address: SocketAddr = address.parse().unwrap();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// Sends a request without TLS, and returns the reply.
pub(super) fn request(address: &str, request: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let within = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, within).ok()?;
    stream.set_read_timeout(Some(within)).unwrap();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).ok()?;
    Some(reply)
}
