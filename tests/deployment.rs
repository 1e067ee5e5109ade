//! Deployment from end to end, for more than one kind of server: coalesced reloads, and recovery after a
//! failure.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use certs::identifier::Identifier;
use certs::tls::dialer::Dialer;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio_rustls::client::TlsStream;

use crate::protocols::docker;
use crate::support::embedded::EmbeddedCa;
use crate::support::{Nginx, Running, certs, free_port, run, until, until_within};
use crate::targets::{NAME, generation, issued, live, script, verify};

/// The configuration that all these tests share.
fn config(ca: &EmbeddedCa, more: &str) {
    let config = format!(
        "ca = '{}'\nca_root = 'root.pem'\nagree_tos = true\nhttp_listen = ['127.0.0.1:{}']\n\
         data_dir = 'data'\noutput_dir = 'out'\n{more}",
        ca.server.directory_url(),
        ca.http_port,
    );
    std::fs::write(ca.path("certs.toml"), config).unwrap();
}

/// `certs run` with that configuration.
struct DeployingSidecar {
    admin: u16,
    _running: Running,
}

impl DeployingSidecar {
    fn start(ca: &EmbeddedCa, deploy: &str) -> Self {
        let admin = free_port();
        let log = std::fs::File::create(ca.path("log")).unwrap();
        let mut command = certs(&ca.path(""));
        command.arg("run").current_dir(ca.path(""));
        command.env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
        if !deploy.is_empty() {
            command.env("CERTS_DEPLOY", deploy);
        }
        let running = Running::start_logging(&mut command, log.into());
        until("the control socket", || ca.path("data/admin.sock").exists());
        let sidecar = Self {
            admin,
            _running: running,
        };
        until("readiness", || sidecar.is_ready());
        sidecar
    }

    fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)) else {
            return false;
        };
        let ask = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        std::io::Write::write_all(&mut stream, ask).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply.starts_with("HTTP/1.1 200")
    }
}

fn deploy_option(nginx: &Nginx) -> String {
    format!("--deploy=nginx:{}", nginx.pid_file.display())
}

#[test]
fn deployments_of_twenty_certificates_coalesce_reloads_of_one_server() {
    let ca = EmbeddedCa::start();
    let (_runtime, host, done) = docker(&ca, 403, 0);
    let mut more = format!("[deploy.web]\nkind = 'docker'\ncontainer = 'web'\nhost = '{host}'\n");
    for number in 0..20 {
        more += &format!("[[certificate]]\nnames = ['n{number}.example.com']\n");
    }
    config(&ca, &more);
    let mut printed = 0;
    // Issued a few at a time, then deployed all at once.
    for (verb, most) in [("renew", 10), ("reload", 3)] {
        run(certs(&ca.path("")).arg(verb).current_dir(ca.path("")), 0);
        let now = done.lock().unwrap().len();
        let reloads = now - std::mem::replace(&mut printed, now);
        assert!((1..=most).contains(&reloads), "{verb}: {reloads} reloads");
    }
}

#[test]
fn deployment_rolls_back_and_recovers_when_server_ignores_signal() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let (deploy, verify) = (deploy_option(&nginx), verify(nginx.port));
    let master: i32 = std::fs::read_to_string(&nginx.pid_file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let signal = |signal| kill_process(Pid::from_raw(master).unwrap(), signal).unwrap();
    let title = format!("/proc/{master}/cmdline");
    until("the process title", || {
        std::fs::read_to_string(&title)
            .unwrap()
            .contains("master process")
    });
    // The workers continue with the pair they have.
    signal(Signal::STOP);
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 7);
    for part in [
        "within 10 s",
        "serves another certificate",
        "rolling back to the previous",
        "rolled back and verified",
        "hint:",
    ] {
        assert!(printed.contains(part), "no `{part}` in {printed}");
    }
    assert_eq!(generation(&ca), 1);
    signal(Signal::CONT);
    let printed = run(&mut ca.issue(&[NAME, &deploy, &verify]), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
}

#[test]
fn sidecar_recovers_when_one_of_two_servers_fails() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let hook = ca.path("hook");
    script(&hook, "exit 0");
    config(
        &ca,
        &format!(
            "[deploy.web]\nkind = 'nginx'\npid_file = '{}'\n[deploy.hook]\nkind = 'exec'\ncommand = ['{}']\n\
             [[certificate]]\nnames = ['{NAME}']\nverify = ['127.0.0.1:{}']\n",
            nginx.pid_file.display(),
            hook.display(),
            nginx.port,
        ),
    );
    let sidecar = DeployingSidecar::start(&ca, "");
    script(&hook, "echo out of order; exit 1");
    let mut renew = certs(&ca.path(""));
    let printed = run(renew.args(["renew", "--force"]).current_dir(ca.path("")), 7);
    assert!(
        printed.contains("out of order") && printed.contains("hint:"),
        "{printed}"
    );
    // Both servers have their previous pair.
    assert_eq!(generation(&ca), 1);
    assert!(!sidecar.is_ready());
    let log = std::fs::read_to_string(ca.path("log")).unwrap();
    assert!(log.contains("the rollback is not verified"), "{log}");
    script(&hook, "exit 0");
    until_within("readiness", Duration::from_secs(60), || sidecar.is_ready());
    assert_eq!(generation(&ca), 2);
}

/// A connection in the middle of a request, which a reload does not close.
fn open(
    runtime: &tokio::runtime::Runtime,
    root: &Path,
    port: u16,
) -> TlsStream<tokio::net::TcpStream> {
    let dialer = Dialer::new(&std::fs::read(root).unwrap()).unwrap();
    let name = Identifier::parse(NAME).unwrap();
    runtime.block_on(async {
        let connected = dialer
            .connect((Ipv4Addr::LOCALHOST, port).into(), &name)
            .await;
        let (mut stream, _) = connected.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: ex")
            .await
            .unwrap();
        stream.flush().await.unwrap();
        stream
    })
}

/// The child processes of nginx's master process.
fn workers(nginx: &Nginx) -> Vec<String> {
    let master = fs::read_to_string(&nginx.pid_file).unwrap();
    let master = master.trim();
    let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}

/// The number of workers that finish their connections and accept no new ones.
fn draining(nginx: &Nginx) -> usize {
    let titles = workers(nginx).into_iter();
    titles
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .filter(|title| title.contains("shutting down"))
        .count()
}

/// In seconds. `certs` tells generations of workers apart by their start.
fn youngest_worker_age(nginx: &Nginx) -> f64 {
    const STARTED: usize = 19;
    let number = |text: &str| text.parse::<f64>().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let started = workers(nginx).into_iter().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        fields.split_whitespace().nth(STARTED).map(number)
    });
    let youngest = started.fold(0.0, f64::max) / 100.0;
    number(uptime.split_whitespace().next().unwrap()) - youngest
}

#[test]
fn fourth_reload_waits_for_draining_generations_unless_urgent() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let (deploy, verify) = (deploy_option(&nginx), verify(nginx.port));
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let renew = |code| run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), code);
    let mut open_ones = Vec::new();
    for held in 0..3 {
        // A worker accepts connections until it has received the signal to quit.
        until("draining workers", || draining(&nginx) == held);
        open_ones.push(open(&runtime, &ca.path("root.pem"), nginx.port));
        until("workers older than the next ones", || {
            youngest_worker_age(&nginx) > 0.3
        });
        renew(0);
    }
    until("draining workers", || draining(&nginx) == 3);
    assert_eq!(generation(&ca), 4);
    let printed = renew(7);
    assert!(
        printed.contains("3 generations of its workers still serve old connections"),
        "{printed}"
    );
    // The error was found before any change, so there is no rollback.
    assert!(
        !printed.contains("rolling back to the previous"),
        "{printed}"
    );
    assert_eq!(generation(&ca), 4);
    run(certs(&ca.path("")).args(["reload", NAME]), 7);
    // A rollback has no earlier state to return to, so it does not wait.
    run(certs(&ca.path("")).args(["rollback", NAME, "--to", "4"]), 0);
    drop(open_ones);
    renew(0);
}

#[test]
#[allow(clippy::disallowed_methods)] // a real hook takes real time
fn old_pair_stays_served_when_hook_hangs_or_floods_output() {
    let ca = issued();
    let Some(nginx) = Nginx::start(&live(&ca)) else {
        return;
    };
    let hook = ca.path("hook");
    config(
        &ca,
        &format!(
            "[deploy.web]\nkind = 'nginx'\npid_file = '{}'\n\
             [deploy.hook]\nkind = 'exec'\ncommand = ['{}']\ntimeout = '5s'\n",
            nginx.pid_file.display(),
            hook.display(),
        ),
    );
    for (lines, wanted) in [
        ("sleep 600", "did not end within 5 s"),
        (
            "head -c 100000000 /dev/zero; exit 1",
            "failed (exit status: 1)",
        ),
        // By now three newer generations are stored than the served one.
        ("yes", "did not end within 5 s"),
    ] {
        script(&hook, lines);
        let begun = Instant::now();
        let mut command = ca.issue(&[NAME, "--force", &verify(nginx.port)]);
        let printed = run(command.current_dir(ca.path("")), 7);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        for part in [wanted, "the rollback is not verified", "hint:"] {
            assert!(printed.contains(part), "no `{part}` in {printed}");
        }
        assert!(printed.len() < 100_000);
        assert_eq!(generation(&ca), 1);
    }
}

#[test]
fn messages_distinguish_two_servers_of_one_kind() {
    let ca = issued();
    let (Some(one), Some(other)) = (Nginx::start(&live(&ca)), Nginx::start(&live(&ca))) else {
        return;
    };
    let deploy = [deploy_option(&one), deploy_option(&other)];
    run(&mut ca.issue(&[NAME, "--force", &deploy[0], &deploy[1]]), 0);
    let shown = run(certs(&ca.path("")).args(["status", "--json"]), 0);
    for deploy in &deploy {
        let name = deploy.strip_prefix("--deploy=").unwrap();
        assert!(shown.contains(name), "no {name} in {shown}");
    }
    let gone = deploy[1].strip_prefix("--deploy=").unwrap().to_owned();
    drop(other);
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy[0], &deploy[1]]), 7);
    assert!(
        printed.contains(&format!("{gone}: no pid file")),
        "{printed}"
    );
}

#[test]
fn sidecar_runs_hook_of_stored_certificate() {
    let ca = EmbeddedCa::start();
    let (hook, seen) = (ca.path("hook"), ca.path("seen"));
    let exec = script(
        &hook,
        &format!("echo $RENEWED_DOMAINS >>{}", seen.display()),
    );
    run(&mut ca.issue(&["stored.example.com", &exec]), 0);
    config(&ca, &format!("[[certificate]]\nnames = ['{NAME}']\n"));
    let copies = format!("file:{}/{{name}}.pem", ca.path("").display());
    let _sidecar = DeployingSidecar::start(&ca, &copies);
    let mut renew = certs(&ca.path(""));
    let printed = renew.args(["renew", "stored.example.com", "--force"]);
    run(printed.current_dir(ca.path("")), 0);
    let seen = std::fs::read_to_string(seen).unwrap();
    assert_eq!(seen.lines().collect::<Vec<_>>(), ["stored.example.com"; 2]);
}
