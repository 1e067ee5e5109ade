//! HAProxy by every form of its sockets, with certificates of a `crt-store`, and with one transaction at a time;
//! the distribution's version and 3.x.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::embedded::EmbeddedCa;
use crate::support::{NOBODY, Running, certs, free_port, listens, program, run, text, until};
use crate::targets::{NAME, generation, issued, live, verify};

/// HAProxy with a master process and each kind of socket.
struct Haproxy {
    port: u16,
    socket: PathBuf,
    tcp: u16,
    master: PathBuf,
    running: Running,
}

const OLD: (&str, &str) = ("CERTS_LAB_HAPROXY", "/usr/sbin/haproxy");
/// Found by `tests/lab` alone.
const NEW: (&str, &str) = ("CERTS_LAB_HAPROXY3", "/usr/local/sbin/haproxy");

impl Haproxy {
    /// Serves `crt`, with `more` sections before.
    fn start(version: (&str, &str), directory: &Path, crt: &str, more: &str) -> Option<Self> {
        let program = program(version.0, version.1)?;
        std::fs::create_dir_all(directory).unwrap();
        let (port, tcp) = (free_port(), free_port());
        let (socket, master) = (directory.join("admin.sock"), directory.join("master.sock"));
        let config = format!(
            "global\n  stats socket {} mode 600 level admin\n  stats socket ipv4@127.0.0.1:{tcp} level admin\n\
             defaults\n  mode http\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\n{more}\
             frontend tls\n  bind 127.0.0.1:{port} ssl crt {crt}\n  http-request return status 200\n",
            socket.display(),
        );
        let file = directory.join("haproxy.cfg");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(program);
        command.args(["-W", "-S"]).arg(&master).arg("-f").arg(&file);
        let running = Running::start(&mut command);
        until("HAProxy", || listens(port) && listens(tcp));
        Some(Self {
            port,
            socket,
            tcp,
            master,
            running,
        })
    }

    fn command(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    /// Begins a transaction that another client then has open.
    fn begin(&self, file: &str, pem: &str) {
        while !self.is_begun(file, pem) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_begun(&self, file: &str, pem: &str) -> bool {
        let reply = self.command(&format!("set ssl cert {file} <<\n{pem}"));
        reply.contains("Transaction created")
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // Its workers end with it.
        self.running.signal(rustix::process::Signal::TERM);
        let _ = self.running.exit_code();
    }
}

/// A self-signed pair, without empty lines.
fn self_signed(name: &str) -> String {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let pem = made.cert.pem() + &made.signing_key.serialize_pem();
    pem.lines()
        .filter(|line| !line.is_empty())
        .fold(String::new(), |all, line| all + line + "\n")
}

fn config(ca: &EmbeddedCa, directory: &Path, more: &str) {
    let config = format!(
        "ca = '{}'\nca_root = '{}'\nagree_tos = true\nhttp_listen = ['127.0.0.1:{}']\n{more}",
        ca.server.directory_url(),
        ca.path("root.pem").display(),
        ca.http_port,
    );
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("certs.toml"), config).unwrap();
}

#[test]
fn haproxy_gets_pair_through_every_form_of_its_sockets() {
    for version in [OLD, NEW] {
        let ca = issued();
        let crt = live(&ca).join("combined.pem").display().to_string();
        let Some(haproxy) = Haproxy::start(version, &ca.path("haproxy"), &crt, "") else {
            continue;
        };
        let (socket, master) = (haproxy.socket.display(), haproxy.master.display());
        for (at, form) in [
            format!("127.0.0.1:{}", haproxy.tcp),
            format!("ipv4@127.0.0.1:{}", haproxy.tcp),
            format!("unix@{socket}"),
            format!("{master}"),
        ]
        .iter()
        .enumerate()
        {
            let deploy = format!("--deploy=haproxy:{form}");
            // Without `--verify` HAProxy is asked for its addresses.
            let own = verify(haproxy.port);
            let printed = match at % 2 {
                0 => run(&mut ca.issue(&[NAME, "--force", &deploy, &own]), 0),
                _ => run(&mut ca.issue(&[NAME, "--force", &deploy]), 0),
            };
            assert!(!printed.contains("not verified"), "{form}: {printed}");
            assert_eq!(generation(&ca), at as u64 + 2);
        }
    }
}

#[test]
fn haproxy_port_of_another_user_gets_no_key() {
    const LISTEN: &str = "import socket, sys\n\
        server = socket.create_server(('', int(sys.argv[1])))\n\
        while True:\n    client, _ = server.accept()\n    client.recv(65536)\n    client.close()\n";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: another user needs root");
    }
    let Some(python) = program("CERTS_LAB_PYTHON", "/usr/bin/python3") else {
        return;
    };
    let (ca, port) = (issued(), free_port());
    let mut listen = Command::new(python);
    listen
        .args(["-c", LISTEN])
        .arg(port.to_string())
        .current_dir("/");
    let _listens = Running::start(listen.uid(NOBODY).gid(NOBODY));
    until("the port", || listens(port));
    // Any address of this machine leads there; no packet is sent to find one.
    let outward = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    let own = outward.connect(("192.0.2.1", 9));
    let own = own.and_then(|()| outward.local_addr());
    let own = own.ok().map(|own| own.ip().to_string());
    for address in ["127.0.0.1".to_owned()].into_iter().chain(own) {
        let deploy = format!("--deploy=haproxy:{address}:{port}");
        let printed = run(&mut ca.issue(&[NAME, "--force", &deploy]), 7);
        assert!(printed.contains("is of user 65534"), "{printed}");
    }
}

#[test]
fn haproxy_pairs_of_a_crt_store_are_replaced_by_their_names() {
    let ca = issued();
    let directory = ca.path("haproxy");
    std::fs::create_dir_all(&directory).unwrap();
    for name in ["own", "other"] {
        let pem = self_signed(&format!("{name}.example.com"));
        std::fs::write(directory.join(format!("{name}.pem")), pem).unwrap();
    }
    let (live_pair, own) = (live(&ca), directory.join("own.pem"));
    let store = format!(
        "crt-store web\n  load crt {live}/fullchain.pem key {live}/privkey.pem alias site\n  \
         load crt {} alias own\n  load crt {}/other.pem alias other\n",
        own.display(),
        directory.display(),
        live = live_pair.display(),
    );
    let bind = "@web/site crt @web/own crt @web/other";
    let Some(haproxy) = Haproxy::start(NEW, &directory, bind, &store) else {
        return;
    };
    let deploy = format!("--deploy=haproxy:{}", haproxy.socket.display());
    // By the live files behind an alias.
    run(
        &mut ca.issue(&[NAME, "--force", &deploy, &verify(haproxy.port)]),
        0,
    );
    // By the file behind an alias, which is kept for the next start.
    let front = format!(
        "[deploy.front]\nkind = 'haproxy'\nsocket = '{}'\ncertificate = '{}'\n",
        haproxy.socket.display(),
        own.display()
    );
    std::fs::write(ca.path("certs.toml"), front).unwrap();
    let named = ["own.example.com", "--deploy=front", &verify(haproxy.port)];
    run(ca.issue(&named).current_dir(ca.path("")), 0);
    let kept = std::fs::read(&own).unwrap();
    let combined = ca.path("out/live/own.example.com/combined.pem");
    assert_eq!(kept, std::fs::read(combined).unwrap());
    // The message for one that HAProxy reads elsewhere works as it stands.
    let other = ["other.example.com", &deploy, &verify(haproxy.port)];
    let printed = run(&mut ca.issue(&other), 7);
    let combined = ca.path("out/live/other.example.com/combined.pem");
    let advice = format!("load crt \"{}\" alias \"other\"", combined.display());
    assert!(printed.contains(&advice), "{printed}");
    drop(haproxy);
    let store = store.replace(
        &format!("load crt {}/other.pem alias other", directory.display()),
        &advice,
    );
    let haproxy = Haproxy::start(NEW, &directory, bind, &store).unwrap();
    let other = ["other.example.com", &deploy, &verify(haproxy.port)];
    run(&mut ca.issue(&other), 0);
    // An alias of HAProxy is not a file that `certs` can replace.
    std::fs::write(
        ca.path("certs.toml"),
        "[deploy.front]\nkind = 'haproxy'\nsocket = '/s'\ncertificate = '@web/own'\n",
    )
    .unwrap();
    let printed = run(ca.issue(&named).current_dir(ca.path("")), 2);
    assert!(
        printed.contains("write the file of its `load` line"),
        "{printed}"
    );
}

#[test]
fn haproxy_certificate_of_the_same_name_that_wins_is_named() {
    for version in [OLD, NEW] {
        let ca = EmbeddedCa::start();
        let (directory, certificates) = (ca.path("haproxy"), ca.path("haproxy/certificates"));
        std::fs::create_dir_all(&certificates).unwrap();
        let [old, own] = ["a-old.pem", "own.pem"].map(|name| certificates.join(name));
        for file in [&old, &own] {
            std::fs::write(file, self_signed(NAME)).unwrap();
        }
        // HAProxy 2.6 reads a directory; the other one has a store.
        let (store, crt) = match version {
            OLD => (String::new(), certificates.display().to_string()),
            _ => {
                let load =
                    |file: &Path, alias| format!("  load crt {} alias {alias}\n", file.display());
                let store = format!("crt-store web\n{}{}", load(&old, "old"), load(&own, "own"));
                (store, "@web/old crt @web/own".to_owned())
            }
        };
        let Some(haproxy) = Haproxy::start(version, &directory, &crt, &store) else {
            continue;
        };
        let front = format!(
            "[deploy.front]\nkind = 'haproxy'\nsocket = '{}'\ncertificate = '{}'\n",
            haproxy.socket.display(),
            own.display()
        );
        std::fs::write(ca.path("certs.toml"), front).unwrap();
        let issue = |port, code| {
            let mut issue = ca.issue(&[NAME, "--deploy=front", &verify(port)]);
            run(issue.current_dir(ca.path("")), code)
        };
        let printed = issue(haproxy.port, 7);
        let shown = match version {
            OLD => old.display().to_string(),
            _ => format!("@web/old ({})", old.display()),
        };
        for words in [
            &*format!("HAProxy also has {shown}, which is for names of {NAME}"),
            &*format!("take {shown} out of its configuration"),
            "serves another certificate",
        ] {
            assert!(printed.contains(words), "{words}: {printed}");
        }
        // The remedy works.
        drop(haproxy);
        std::fs::remove_file(&old).unwrap();
        let store: String = store
            .lines()
            .filter(|line| !line.contains("a-old"))
            .fold(String::new(), |all, line| all + line + "\n");
        let crt = crt.replace("@web/old crt ", "");
        let haproxy = Haproxy::start(version, &directory, &crt, &store).unwrap();
        issue(haproxy.port, 0);
    }
}

#[test]
fn haproxy_that_hangs_is_not_said_to_be_gone() {
    use rustix::process::{Pid, Signal, kill_process};
    let ca = issued();
    let crt = live(&ca).join("combined.pem").display().to_string();
    let Some(haproxy) = Haproxy::start(OLD, &ca.path("haproxy"), &crt, "") else {
        return;
    };
    let deploy = format!("--deploy=haproxy:{}", haproxy.socket.display());
    run(&mut ca.issue(&[NAME, "--force", &deploy]), 0);
    let info = haproxy.command("show info");
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid: "));
    let worker = Pid::from_raw(pid.unwrap().trim().parse().unwrap()).unwrap();
    let renewed = || certs(&ca.path("")).arg("renew").output().unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let hung = renewed();
    kill_process(worker, Signal::CONT).unwrap();
    let printed = text(&hung);
    assert_eq!(hung.status.code(), Some(7), "{printed}");
    let words = "does not answer: it hangs or is stopped";
    assert!(printed.contains(words), "{printed}");
    assert!(!printed.contains("no longer listens"), "{printed}");
    run(certs(&ca.path("")).arg("renew"), 0);
    kill_process(worker, Signal::KILL).unwrap();
    until("its end", || !listens(haproxy.port));
    let printed = text(&renewed());
    assert!(printed.contains("it no longer listens"), "{printed}");
    assert!(!printed.contains("hangs"), "{printed}");
}

#[test]
fn haproxy_transactions_of_many_certificates_and_processes_take_turns() {
    for version in [OLD, NEW] {
        let ca = EmbeddedCa::start();
        let (directory, certificates) = (ca.path("haproxy"), ca.path("haproxy/certificates"));
        std::fs::create_dir_all(&certificates).unwrap();
        let file = |name: &str| certificates.join(format!("{name}.pem"));
        let foreign = self_signed("foreign.example.com");
        std::fs::write(file("foreign"), &foreign).unwrap();
        let crt = certificates.display().to_string();
        let Some(haproxy) = Haproxy::start(version, &directory, &crt, "") else {
            continue;
        };
        let places = [ca.path("one"), ca.path("two")];
        for (at, place) in places.iter().enumerate() {
            let mut more = String::new();
            for (target, socket) in [
                ("path", haproxy.socket.display().to_string()),
                ("tcp", format!("127.0.0.1:{}", haproxy.tcp)),
                ("master", haproxy.master.display().to_string()),
            ] {
                more += &format!(
                    "[deploy.{target}]\nkind = 'haproxy'\nsocket = '{socket}'\ncertificate = '{}'\n",
                    file("{name}").display()
                );
            }
            for number in 0..6 {
                let target = ["path", "tcp", "master"][number % 3];
                more += &format!(
                    "[[certificate]]\nnames = ['n{number}.p{at}.example.com']\ndeploy = ['{target}']\n\
                     verify = ['127.0.0.1:{}']\n",
                    haproxy.port
                );
            }
            config(&ca, place, &more);
            // New certificates of one process.
            run(certs(place).arg("renew").current_dir(place), 0);
        }
        // A client that has ended left its transaction open.
        let foreign_file = file("foreign").display().to_string();
        haproxy.begin(&foreign_file, &foreign);
        let reload = |place: &PathBuf| {
            let (place, mut command) = (place.clone(), certs(place));
            std::thread::spawn(move || run(command.arg("reload").current_dir(place), 0))
        };
        let first = reload(&places[0]).join().unwrap();
        assert!(first.contains("was left open"), "{first}");
        // HAProxy 2.6 mixes up the pairs of clients that know nothing of each other.
        let (held, free) = match version {
            OLD => (Duration::from_millis(500), Duration::from_secs(2)),
            _ => (Duration::from_millis(20), Duration::from_millis(200)),
        };
        // Two processes, and a client that keeps beginning transactions of its own.
        let (both, stop) = (places.each_ref().map(reload), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let mut committed = 0;
                while !stop.load(Ordering::SeqCst) {
                    if haproxy.is_begun(&foreign_file, &foreign) {
                        std::thread::sleep(held);
                        let ended = haproxy.command(&format!("commit ssl cert {foreign_file}"));
                        committed += usize::from(ended.contains("Success!"));
                    }
                    std::thread::sleep(free);
                }
                committed
            });
            let ended = both.map(std::thread::JoinHandle::join);
            stop.store(true, Ordering::SeqCst);
            let committed = others.join().unwrap();
            for ended in ended {
                let printed = ended.unwrap();
                assert!(!printed.contains("was left open"), "{printed}");
            }
            assert!(committed > 0);
        });
    }
}
