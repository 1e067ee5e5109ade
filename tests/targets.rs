//! The deploy targets with their real servers: each loads and serves a renewal, and a failure is rolled back.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::deploy::endpoint::Approach;
use certs::deploy::verify::{Offer, observe};
use certs::fingerprint::Fingerprint;
use certs::identifier::Identifier;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::embedded::EmbeddedCa;
use crate::support::oracle::Oracle;
use crate::support::{
    Nginx, Running, by_depth, certs, free_port, listens, make_script, program, run, until,
};

pub(crate) const NAME: &str = "example.com";

/// A CA that has issued the first generation.
pub(crate) fn issued() -> EmbeddedCa {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    ca
}

pub(crate) fn live(ca: &EmbeddedCa) -> PathBuf {
    ca.path("out/live").join(NAME)
}

/// The live generation.
pub(crate) fn generation(ca: &EmbeddedCa) -> u64 {
    let oracle = Oracle::new(&ca.path(""), &[NAME]);
    oracle.live().unwrap().unwrap().generation.0
}

pub(crate) fn verify(port: u16) -> String {
    format!("--verify=127.0.0.1:{port}")
}

pub(crate) fn script(path: &Path, lines: &str) -> String {
    make_script(path, lines);
    format!("--deploy=exec:{}", path.display())
}

/// HAProxy in the foreground; it ends with its test.
pub(crate) fn haproxy(directory: &Path, port: u16, crt: &Path) -> Option<Running> {
    let program = program("CERTS_LAB_HAPROXY", "/usr/sbin/haproxy")?;
    std::fs::create_dir_all(directory).unwrap();
    let file = directory.join("haproxy.cfg");
    let config = format!(
        "global\n  stats socket {}/admin.sock mode 600 level admin\n\
         defaults\n  mode http\n  timeout client 30s\n  timeout server 30s\n  timeout connect 5s\n\
         frontend tls\n  bind 127.0.0.1:{port} ssl crt {}\n  http-request return status 200 content-type text/plain string ok\n",
        directory.display(),
        crt.display()
    );
    std::fs::write(&file, config).unwrap();
    let running = Running::start(Command::new(program).arg("-db").arg("-f").arg(&file));
    until("HAProxy", || listens(port));
    Some(running)
}

#[test]
fn haproxy_serves_new_pair_from_memory_and_after_restart() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let crt = live(&ca).join("combined.pem");
    let Some(running) = haproxy(&directory, port, &crt) else {
        return;
    };
    let socket = format!(
        "--deploy=haproxy:{}",
        directory.join("admin.sock").display()
    );
    run(&mut ca.issue(&[NAME, "--force", &socket, &verify(port)]), 0);
    assert_eq!(generation(&ca), 2);
    // Without `--verify` the program asks HAProxy for its addresses.
    let printed = run(&mut ca.issue(&[NAME, "--force", &socket]), 0);
    assert!(
        !printed.contains("the deployment is not verified"),
        "{printed}"
    );
    drop(running);
    let _again = haproxy(&directory, port, &crt);
    run(&mut ca.issue(&[NAME, &socket, &verify(port)]), 0);
}

#[test]
fn haproxy_accepts_known_and_new_certificate_files() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let certificates = directory.join("certificates");
    std::fs::create_dir_all(&certificates).unwrap();
    let first = live(&ca).join("combined.pem");
    std::fs::copy(&first, certificates.join("first.pem")).unwrap();
    let Some(running) = haproxy(&directory, port, &certificates) else {
        return;
    };
    let socket = directory.join("admin.sock");
    for (file, name) in [
        ("first.pem", NAME),
        ("second.pem", "second.example.com"),
        ("third.pem", "third.example.com"),
    ] {
        let file = certificates.join(file);
        if name.starts_with("third") {
            // Imitates a process that was killed before HAProxy could use the new file.
            let pair = std::fs::read_to_string(&first).unwrap();
            let pair = pair.replace("\n\n", "\n");
            let shown = file.display();
            for command in [
                format!("new ssl cert {shown}\n"),
                format!("set ssl cert {shown} <<\n{pair}\n"),
                format!("commit ssl cert {shown}\n"),
            ] {
                use std::io::{Read, Write};
                let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
                stream.write_all(command.as_bytes()).unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
            }
        }
        let config = format!(
            "[deploy.front]\nkind = 'haproxy'\nsocket = '{}'\ncertificate = '{}'\n",
            socket.display(),
            file.display()
        );
        std::fs::write(ca.path("certs.toml"), config).unwrap();
        let mut command = ca.issue(&[name, "--force", "--deploy=front", &verify(port)]);
        run(command.current_dir(ca.path("")), 0);
        let written = std::fs::read_to_string(&file).unwrap();
        let live = ca.path("out/live").join(name).join("combined.pem");
        assert_eq!(written, std::fs::read_to_string(live).unwrap());
    }
    drop(running);
}

#[test]
fn haproxy_unknown_certificate_is_reported_with_known_ones() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let other = ca.path("other.pem");
    let made = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    std::fs::write(&other, made.cert.pem() + &made.signing_key.serialize_pem()).unwrap();
    let Some(_running) = haproxy(&directory, port, &other) else {
        return;
    };
    let socket = format!(
        "--deploy=haproxy:{}",
        directory.join("admin.sock").display()
    );
    let printed = run(&mut ca.issue(&[NAME, "--force", &socket]), 7);
    assert!(
        printed.contains("other.pem") && printed.contains("hint:"),
        "{printed}"
    );
    let printed = run(&mut ca.issue(&["other.example", "--force", &socket]), 7);
    assert!(printed.contains("certificate = "), "{printed}");
    // The error was found before any change.
    assert_eq!(generation(&ca), 1);
}

/// coturn with the live pair, and its deploy option.
pub(crate) struct Coturn {
    pub(crate) port: u16,
    pub(crate) deploy: String,
    _running: Running,
}

impl Coturn {
    pub(crate) fn start(ca: &EmbeddedCa) -> Option<Self> {
        let program = program("CERTS_LAB_COTURN", "/usr/bin/turnserver")?;
        let (port, plain) = (free_port(), free_port());
        let pid_file = ca.path("turnserver.pid");
        let file = ca.path("turnserver.conf");
        let config = format!(
            "listening-ip=127.0.0.1\nrelay-ip=127.0.0.1\nallow-loopback-peers\nlistening-port={plain}\n\
             tls-listening-port={port}\ncert={live}/fullchain.pem\npkey={live}/privkey.pem\npidfile={}\n\
             cli-password=unused\nno-cli\nno-udp\nno-dtls\nlog-file=stdout\nsimple-log\nrealm=example.com\n\
             userdb={}\nlt-cred-mech\nuser=a:b\n",
            pid_file.display(),
            ca.path("turndb").display(),
            live = live(ca).display(),
        );
        std::fs::write(&file, config).unwrap();
        let running = Running::start(Command::new(program).arg("-c").arg(&file));
        until("coturn", || listens(port) && pid_file.exists());
        Some(Self {
            port,
            deploy: format!("--deploy=coturn:{}", pid_file.display()),
            _running: running,
        })
    }
}

#[test]
fn coturn_loads_new_pair() {
    let ca = issued();
    let Some(turn) = Coturn::start(&ca) else {
        return;
    };
    let verify = verify(turn.port);
    run(&mut ca.issue(&[NAME, "--force", &turn.deploy, &verify]), 0);
    let printed = run(&mut ca.issue(&[NAME, "--force", &turn.deploy]), 0);
    assert!(
        !printed.contains("the deployment is not verified"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 3);
}

#[test]
fn failed_hook_leaves_previous_pair_on_every_server_and_recovers() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    let hook = ca.path("hook");
    let log = ca.path("log");
    let seen = format!("echo $RENEWED_LINEAGE $RENEWED_DOMAINS >>{}", log.display());
    let exec = script(&hook, &format!("{seen}; echo out of order >&2; exit 1"));
    let verify = verify(nginx.port);
    let printed = run(
        &mut ca.issue(&[NAME, "--force", &deploy, &exec, &verify]),
        7,
    );
    for part in [
        "out of order",
        "hook",
        "rolling back to the previous",
        "the rollback is not verified",
    ] {
        assert!(printed.contains(part), "no `{part}` in {printed}");
    }
    assert_eq!(generation(&ca), 1);
    // nginx serves the live generation, which is the first one again.
    run(
        &mut ca.issue(&[NAME, "--deploy", &deploy[9..], &verify, "--name", NAME]),
        0,
    );
    assert_eq!(generation(&ca), 2);
    script(&hook, &seen);
    run(&mut ca.issue(&[NAME, &deploy, &exec, &verify]), 0);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.lines()
            .all(|line| line == format!("{} {NAME}", live(&ca).display())),
        "{log}"
    );
}

/// nginx lets its old workers accept connections beside the new ones for a while.
#[test]
fn no_connection_sees_previous_pair_after_exit_0() {
    let ca = issued();
    let root = ca.path("nginx");
    let Some(nginx) = Nginx::start_at(&live(&ca), &root, free_port()) else {
        return;
    };
    let config = root.join("nginx.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("worker_processes 1", "worker_processes 8");
    std::fs::write(&config, text).unwrap();
    let reload = format!("kill -HUP \"$(cat {})\"", nginx.pid_file.display());
    let exec = script(&ca.path("hook"), &reload);
    let address = &SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.port)).into();
    let name = Identifier::parse(NAME).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for _ in 0..5 {
        let renewal = [NAME, "--force", &exec, &verify(nginx.port)];
        run(&mut ca.issue(&renewal), 0);
        let pem = std::fs::read(live(&ca).join("fullchain.pem")).unwrap();
        let leaf = CertificateDer::from_pem_slice(&pem).unwrap();
        let wanted = Fingerprint::of(&leaf);
        for _ in 0..100 {
            let seen = runtime.block_on(observe(address, Approach::default(), &name, Offer::All));
            assert_eq!(seen.unwrap().facts.fingerprint, wanted);
        }
    }
}

#[test]
fn invalid_server_configuration_is_found_before_switch() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    let config = nginx.pid_file.with_file_name("nginx.conf");
    let sound = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{sound}\nnonsense;\n")).unwrap();
    let verify = verify(nginx.port);
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 7);
    assert!(
        printed.contains("nonsense") && printed.contains("the server's configuration is invalid"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 1);
    // An error of several lines is one line of a result.
    let status = run(certs(&ca.path("")).arg("status"), 0);
    let last = status.lines().find(|line| line.contains("last error: "));
    let last = last.unwrap_or_default();
    for words in [
        "unknown directive",
        "; nginx: configuration file",
        "test failed",
    ] {
        assert!(last.contains(words), "{words}: {status}");
    }
    assert!(!status.contains("u{a}"), "{status}");
    std::fs::write(&config, sound).unwrap();
    let printed = run(&mut ca.issue(&[NAME, &deploy, &verify]), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
}

#[test]
fn rollback_serves_earlier_generation_until_undone() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    let verify = verify(nginx.port);
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    let certs = || crate::support::certs(&ca.path(""));
    let printed = run(certs().args(["rollback", NAME]), 0);
    assert!(
        printed.contains("deployed again; generation 0001"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 1);
    // The rollback stays; a renewal of due certificates keeps it.
    run(certs().args(["renew"]), 0);
    assert_eq!(generation(&ca), 1);
    let printed = run(certs().args(["rollback", NAME, "--to", "9"]), 2);
    assert!(
        printed.contains("generation 0009 is not stored"),
        "{printed}"
    );
    let printed = run(certs().args(["rollback", NAME]), 2);
    assert!(
        printed.contains("generation 0001 is live, and none before it is stored"),
        "{printed}"
    );
    let printed = run(certs().args(["reload", NAME]), 0);
    assert!(
        printed.contains("deployed again; generation 0002"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 2);
    run(certs().args(["rollback", NAME, "--to", "1"]), 0);
    // The next certificate ends the rollback.
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    assert_eq!(generation(&ca), 3);
}

/// Dovecot in the foreground, with IMAP only.
fn dovecot(directory: &Path, live: &Path, port: u16) -> Option<Running> {
    let program = program("CERTS_LAB_DOVECOT", "/usr/sbin/dovecot")?;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: Dovecot: its master runs as root");
        return None;
    }
    std::fs::create_dir_all(directory).unwrap();
    let file = directory.join("dovecot.conf");
    let root = directory.display();
    let config = format!(
        "base_dir = {root}/run\nlog_path = {root}/log\nprotocols = imap\nlisten = 127.0.0.1\n\
         ssl = yes\nssl_cert = <{live}/fullchain.pem\nssl_key = <{live}/privkey.pem\n\
         service imap-login {{\n  inet_listener imap {{\n    port = {port}\n  }}\n  inet_listener imaps {{\n    port = 0\n  }}\n}}\n\
         passdb {{\n  driver = static\n  args = password=x\n}}\nuserdb {{\n  driver = static\n  args = uid=65534 gid=65534 home=/tmp\n}}\n",
        live = live.display()
    );
    std::fs::write(&file, config).unwrap();
    let running = Running::start(Command::new(program).arg("-F").arg("-c").arg(&file));
    until("Dovecot", || listens(port));
    Some(running)
}

#[test]
fn dovecot_serves_new_pair_after_starttls() {
    let ca = issued();
    let (directory, port) = (ca.path("dovecot"), free_port());
    let Some(_running) = dovecot(&directory, &live(&ca), port) else {
        return;
    };
    let deploy = format!(
        "--deploy=dovecot:{}",
        directory.join("run/master.pid").display()
    );
    let verify = format!("--verify=imap://127.0.0.1:{port}");
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    assert_eq!(generation(&ca), 2);
}

#[test]
fn postfix_serves_new_pair_after_starttls() {
    let ca = issued();
    let Some(program) = program("CERTS_LAB_POSTFIX", "/usr/sbin/postfix") else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: Postfix: its master runs as root");
        return;
    }
    let (directory, port) = (ca.path("postfix"), free_port());
    let mail = Postfix::start(
        &program,
        &directory,
        &live(&ca),
        port,
        ["", "n - n - - smtpd"],
    );
    renewed_by_postfix(&ca, &directory, port);
    drop(mail);
}

#[test]
fn postfix_behind_postscreen_is_verified_after_its_greet_wait() {
    // Postscreen lets each new client wait for 6 s.
    if by_depth(true, false, false) {
        return;
    }
    let ca = issued();
    let Some(program) = program("CERTS_LAB_POSTFIX", "/usr/sbin/postfix") else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: Postfix: its master runs as root");
        return;
    }
    let (directory, port) = (ca.path("postfix"), free_port());
    let main = "postscreen_access_list =\npostscreen_greet_wait = 6s\n";
    let services = "n - n - 1 postscreen\nsmtpd pass - - n - - smtpd\ntlsproxy unix - - n - 0 tlsproxy\n\
                    dnsblog unix - - n - 0 dnsblog";
    let mail = Postfix::start(&program, &directory, &live(&ca), port, [main, services]);
    renewed_by_postfix(&ca, &directory, port);
    let log = std::fs::read_to_string(directory.join("log")).unwrap();
    assert!(log.contains("PASS NEW [127.0.0.1]"), "{log}");
    drop(mail);
}

/// Renews with Postfix as the target, and verifies it by STARTTLS at `port`.
fn renewed_by_postfix(ca: &EmbeddedCa, directory: &Path, port: u16) {
    let deploy = format!(
        "--deploy=postfix:{}",
        directory.join("queue/pid/master.pid").display()
    );
    let verify = format!("--verify=smtp://127.0.0.1:{port}");
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    assert_eq!(generation(ca), 2);
}

/// Postfix with directories of its own.
struct Postfix {
    program: PathBuf,
    config: PathBuf,
}

impl Postfix {
    /// With more settings, and `listener` at `port`.
    fn start(
        program: &Path,
        directory: &Path,
        live: &Path,
        port: u16,
        [more, listener]: [&str; 2],
    ) -> Self {
        let (config, root) = (directory.join("etc"), directory.display());
        for part in ["etc", "queue", "data"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        let main = format!(
            "compatibility_level = 3.6\nqueue_directory = {root}/queue\ndata_directory = {root}/data\n\
             mail_owner = postfix\nsetgid_group = postdrop\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\n\
             mydestination =\nmyhostname = mail.example.com\nalias_maps =\nlocal_recipient_maps =\nmaillog_file_prefixes = {root}\nmaillog_file = {root}/log\n\
             smtpd_tls_security_level = may\n\
             smtpd_tls_cert_file = {live}/fullchain.pem\nsmtpd_tls_key_file = {live}/privkey.pem\n{more}",
            live = live.display()
        );
        std::fs::write(config.join("main.cf"), main).unwrap();
        let services = format!(
            "127.0.0.1:{port} inet {listener}\npostlog unix-dgram n - n - 1 postlogd\n\
             tlsmgr unix - - n 1000? 1 tlsmgr\nanvil unix - - n - 1 anvil\n\
             rewrite unix - - n - - trivial-rewrite\nproxymap unix - - n - - proxymap\n"
        );
        std::fs::write(config.join("master.cf"), services).unwrap();
        // Postfix must own its data directory, and its services must be able to reach it.
        let open = |path: &Path| std::fs::set_permissions(path, PermissionsExt::from_mode(0o755));
        open(directory.parent().unwrap()).unwrap();
        let mut owned = Command::new("chown");
        owned.arg("-R").arg("postfix").arg(directory.join("data"));
        assert!(owned.status().unwrap().success());
        let mail = Self {
            program: program.to_owned(),
            config,
        };
        mail.command("start");
        until("Postfix", || listens(port));
        mail
    }

    fn command(&self, verb: &str) {
        let mut command = Command::new(&self.program);
        let output = command
            .arg("-c")
            .arg(&self.config)
            .arg(verb)
            .output()
            .unwrap();
        let printed = crate::support::text(&output);
        assert!(
            output.status.success() || std::thread::panicking(),
            "postfix {verb}: {printed}"
        );
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        self.command("stop");
    }
}
