//! `certs run` beside a real nginx, as an operator meets it: the placeholder, the first certificate, status
//! and metrics, signals, and one-shot commands on the same data directory.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Nginx, Pebble, certs, free_port, run, until};

/// A running `certs run` with its log.
struct PebbleSidecar {
    child: Child,
    log: PathBuf,
    admin: u16,
}

impl PebbleSidecar {
    fn start(pebble: &Pebble, more: impl FnOnce(&mut Command)) -> Self {
        let (log, admin) = (pebble.path("run.log"), free_port());
        let mut command = certs(&pebble.path(""));
        command
            .arg("run")
            .env("CERTS_DOMAINS", "example.com")
            .env("CERTS_AGREE_TOS", "true")
            .env("CERTS_CA", pebble.directory_url())
            .env("CERTS_CA_ROOT", pebble.path("root.pem"))
            .env(
                "CERTS_HTTP_LISTEN",
                format!("127.0.0.1:{}", pebble.http_port),
            )
            .env("CERTS_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap());
        more(&mut command);
        let child = command.spawn().unwrap();
        Self { child, log, admin }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// The status and body from the admin endpoint; 0 without a reply.
    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.admin)) else {
            return (0, String::new());
        };
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let status = reply.get(9..12).unwrap_or("0").parse().unwrap();
        let body = reply.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    fn until_ready(&self) {
        until("readiness", || self.ask("GET", "/readyz").0 == 200);
    }

    fn until_logged(&self, what: &str) {
        until(what, || self.log().contains(what));
    }

    /// Ends it as a service manager does.
    fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }
}

impl Drop for PebbleSidecar {
    fn drop(&mut self) {
        // An error means that the child has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in:\n{metrics}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn sidecar_replaces_placeholder_with_verified_certificate_and_keeps_it_over_a_restart() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    // The CA hangs, and nginx must start all the same.
    pebble.pause();
    let pid_file = pebble.path("nginx/nginx.pid");
    let port = free_port();
    let configure = |command: &mut Command| {
        command
            .env("CERTS_DEPLOY", format!("nginx:{}", pid_file.display()))
            .env("CERTS_VERIFY", format!("127.0.0.1:{port}"));
    };
    let sidecar = PebbleSidecar::start(&pebble, configure);
    let live = pebble.path("out/live/example.com");
    until("the placeholder", || live.join("privkey.pem").exists());
    let Some(_nginx) = Nginx::start_at(&live, &pebble.path("nginx"), port) else {
        return;
    };
    let (status, why) = sidecar.ask("GET", "/readyz");
    assert_eq!((status, why.trim()), (503, "example.com: not issued yet"));
    assert_eq!(sidecar.ask("GET", "/healthz").0, 200);
    let health = |asked: &str, code| {
        let mut command = certs(&pebble.path(""));
        command.env("CERTS_ADMIN_LISTEN", format!("0.0.0.0:{}", sidecar.admin));
        run(command.args(["status", asked]), code)
    };
    assert_eq!(health("--health", 0), "ok\n");
    assert!(health("--health=ready", 1).contains("example.com: not issued yet"));
    pebble.resume();
    sidecar.until_ready();
    assert_eq!(health("--health=ready", 0), "ready\n");

    let (_, metrics) = sidecar.ask("GET", "/metrics");
    let not_after = value(
        &metrics,
        "certs_certificate_not_after_seconds{name=\"example.com\"}",
    );
    let served = format!(
        "certs_served_not_after_seconds{{name=\"example.com\",endpoint=\"127.0.0.1:{port}\"}}"
    );
    assert!(
        (value(&metrics, &served) - not_after).abs() < 1.0,
        "{metrics}"
    );
    assert!(value(&metrics, "certs_next_action_seconds{name=\"example.com\"}") < not_after);
    assert!(
        value(
            &metrics,
            "certs_challenge_requests_total{result=\"answered\"}"
        ) >= 1.0
    );
    assert!(
        value(
            &metrics,
            "certs_deployments_total{target=\"nginx\",result=\"success\"}"
        ) >= 1.0
    );
    assert!(
        metrics.contains("certs_issuances_total{")
            && metrics.contains("certs_acme_requests_total{"),
        "{metrics}"
    );
    let (_, json) = sidecar.ask("GET", "/api/v1/certificates");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json[0]["name"], &json[0]["generation_served"]),
        (&"example.com".into(), &1.into())
    );
    // No request over TCP changes anything.
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/v1/certificates",
    ] {
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            let (status, printed) = sidecar.ask(method, path);
            let refused = [404, 405].contains(&status);
            assert!(refused, "{method} {path}: {status} {printed}");
        }
    }

    let socket = pebble.path("data/admin.sock");
    assert_eq!(
        std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o660
    );
    // The sidecar has port 80, so the command delegates the order to it.
    let printed = run(&mut pebble.issue(&["example.com", "--force"]), 0);
    assert!(printed.contains("issued; generation 0002"), "{printed}");
    let printed = run(&mut pebble.issue(&["example.com"]), 0);
    assert!(printed.contains("not due; generation 0002"), "{printed}");
    sidecar.terminate();
    assert!(!socket.exists());

    let before = std::fs::canonicalize(&live).unwrap();
    for restart in 0..50 {
        let again = PebbleSidecar::start(&pebble, configure);
        again.until_ready();
        let (_, metrics) = again.ask("GET", "/metrics");
        assert!(
            !metrics.contains("certs_issuances_total{"),
            "restart {restart} ordered: {metrics}"
        );
        assert_eq!(std::fs::canonicalize(&live).unwrap(), before);
        again.terminate();
    }
}

#[test]
fn certificate_not_served_raises_alarm_that_clears_and_never_orders() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let live = pebble.path("out/live/example.com");
    let copy = pebble.path("copy");
    std::fs::create_dir(&copy).unwrap();
    let copy_live = || {
        for name in ["fullchain.pem", "privkey.pem"] {
            std::fs::copy(live.join(name), copy.join(name)).unwrap();
        }
    };
    copy_live();
    let Some(nginx) = Nginx::start(&copy) else {
        return;
    };
    run(&mut pebble.issue(&["example.com", "--force"]), 0);
    // Without a `--verify` address, the sidecar finds where nginx listens.
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command.env(
            "CERTS_DEPLOY",
            format!("nginx:{}", nginx.pid_file.display()),
        );
    });
    until_within(60, "the alarm", || {
        sidecar.log().contains("is not verified")
    });
    let (status, why) = sidecar.ask("GET", "/readyz");
    assert_eq!(status, 503);
    assert!(why.starts_with("example.com: not proven: nginx: "), "{why}");
    copy_live();
    until_within(60, "readiness", || sidecar.ask("GET", "/readyz").0 == 200);
    let (_, metrics) = sidecar.ask("GET", "/metrics");
    assert!(!metrics.contains("certs_issuances_total{"), "{metrics}");
    assert!(
        value(
            &metrics,
            "certs_deployments_total{target=\"nginx\",result=\"failure\"}"
        ) >= 1.0
    );
    sidecar.terminate();
}

#[test]
fn reload_applies_valid_configuration_and_keeps_old_over_invalid() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let file = pebble.path("certs.toml");
    let write = |certificates: &str| std::fs::write(&file, certificates).unwrap();
    write("[[certificate]]\nnames = ['one.example.com']\n");
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command
            .env_remove("CERTS_DOMAINS")
            .env("CERTS_CONFIG", &file);
    });
    sidecar.until_ready();
    write("[[certificate]]\nnames = ['two.example.com', 'a..b']\n");
    sidecar.signal(Signal::HUP);
    sidecar.until_logged("the old configuration stays");
    assert!(
        sidecar.log().contains("`a..b` is not a valid DNS name"),
        "{}",
        sidecar.log()
    );
    assert_eq!(sidecar.ask("GET", "/readyz").0, 200);
    write(
        "[[certificate]]\nnames = ['one.example.com']\n[[certificate]]\nnames = ['two.example.com']\n",
    );
    sidecar.signal(Signal::HUP);
    until("the second certificate", || {
        pebble
            .path("out/live/two.example.com/fullchain.pem")
            .exists()
    });
    sidecar.until_ready();
    sidecar.terminate();
}

#[test]
fn reload_adds_first_certificate_while_sidecar_runs() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let file = pebble.path("certs.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("");
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command
            .env_remove("CERTS_DOMAINS")
            .env("CERTS_CONFIG", &file);
    });
    sidecar.until_logged("no certificate is configured");
    write("[[certificate]]\nnames = ['one.example.com']\n");
    sidecar.signal(Signal::HUP);
    sidecar.until_logged("the configuration was reloaded");
    sidecar.until_ready();
    assert!(pebble.path("out/live/one.example.com/cert.pem").exists());
    sidecar.terminate();
}

#[test]
fn challenge_listener_changes_only_at_restart() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let file = pebble.path("certs.toml");
    let listen = |port: u16| {
        let text =
            format!("http_listen = '127.0.0.1:{port}'\n[[certificate]]\nnames = 'example.com'\n");
        std::fs::write(&file, text).unwrap();
    };
    listen(pebble.http_port);
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command
            .env_remove("CERTS_HTTP_LISTEN")
            .env_remove("CERTS_DOMAINS")
            .env("CERTS_CONFIG", &file);
    });
    sidecar.until_ready();
    listen(free_port());
    sidecar.signal(Signal::HUP);
    sidecar.until_logged("the old configuration stays: the addresses of the challenge listener");
    sidecar.until_logged("hint: restart certs run");
    sidecar.terminate();
}

#[test]
fn command_reports_running_sidecar() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let sidecar = PebbleSidecar::start(&pebble, |_| {});
    sidecar.until_ready();
    // A dry run needs port 80 too.
    let printed = run(&mut pebble.issue(&["new.example.com", "--dry-run"]), 0);
    assert!(printed.contains("dry run: new.example.com would be issued"));
    assert!(!pebble.path("data/records/new.example.com").exists());
    // The files are in the sidecar's output directory.
    let other = pebble.path("other");
    let mut command = pebble.issue(&["new.example.com", "--output-dir"]);
    let printed = run(command.arg(&other), 2);
    assert!(printed.contains("nothing was ordered"), "{printed}");
    assert!(!pebble.path("data/records/new.example.com").exists());
    let mut command = pebble.issue(&["new.example.com"]);
    let printed = run(command.env_remove("CERTS_OUTPUT_DIR"), 0);
    let path = pebble.path("out/live/new.example.com");
    let there = format!("in {}, valid", path.display());
    assert!(printed.contains(&there) && path.exists(), "{printed}");
    assert!(
        printed.contains("the running `certs run` writes to"),
        "{printed}"
    );
    assert!(!other.exists());
    // A command cannot change a certificate that the sidecar's configuration names.
    let more = ["example.com", "www.example.com"];
    let printed = run(&mut pebble.issue(&more), 2);
    assert!(
        printed.contains("manages it for example.com from"),
        "{printed}"
    );
    assert!(printed.contains("SIGHUP"), "{printed}");
    sidecar.terminate();
}

#[test]
fn dry_run_before_first_order_shares_no_account() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command.env_remove("CERTS_DOMAINS");
    });
    until("the sidecar", || pebble.path("data/admin.sock").exists());
    run(&mut pebble.issue(&["example.com", "--dry-run"]), 0);
    let accounts = || {
        std::fs::read_dir(pebble.path("data/accounts"))
            .unwrap()
            .count()
    };
    assert_eq!(accounts(), 0);
    run(&mut pebble.issue(&["example.com"]), 0);
    assert_eq!(accounts(), 1);
    sidecar.terminate();
}

#[test]
fn issue_skips_certificate_not_due_beside_sidecar_without_listener() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&["example.com"]), 0);
    let webroot = pebble.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command
            .env_remove("CERTS_HTTP_LISTEN")
            .env("CERTS_WEBROOT", &webroot);
    });
    until("the sidecar", || pebble.path("data/admin.sock").exists());
    let mut issue = pebble.issue(&["example.com"]);
    let printed = run(&mut issue, 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
    let printed = run(issue.arg("--force"), 2);
    assert!(printed.contains("has no listener for HTTP-01"), "{printed}");
    sidecar.terminate();
}

#[test]
fn damaged_certificate_is_repaired_and_delays_no_other() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let live = pebble.path("out/live/example.com");
    run(&mut pebble.issue(&["example.com"]), 0);
    run(&mut pebble.issue(&["other.example.com"]), 0);
    // The volume is lost but for its link, and one record is unreadable.
    std::fs::remove_dir_all(pebble.path("out/archive/example.com")).unwrap();
    let record = pebble.path("data/records/other.example.com/record.json");
    std::fs::write(&record, "").unwrap();
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command.env("CERTS_DOMAINS", "other.example.com; example.com");
    });
    sidecar.until_logged("hint: restore that file");
    until("the pair", || live.join("fullchain.pem").exists());
    until("the newest generation", || {
        std::fs::read_link(&live).unwrap().ends_with("0001")
    });
    crate::support::loads(&live);
    let (_, metrics) = sidecar.ask("GET", "/metrics");
    assert!(!metrics.contains("certs_issuances_total{"), "{metrics}");
    sidecar.terminate();
}

#[test]
fn sidecar_notifies_service_manager() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let path = pebble.path("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(20)))
        .unwrap();
    let printed = || {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let until_printed = |what: &str| while !printed().lines().any(|line| line == what) {};
    let sidecar = PebbleSidecar::start(&pebble, |command| {
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000");
    });
    until_printed("READY=1");
    until_printed("WATCHDOG=1");
    until_printed("WATCHDOG=1");
    sidecar.signal(Signal::HUP);
    until_printed("RELOADING=1");
    until_printed("READY=1");
    sidecar.signal(Signal::TERM);
    until_printed("STOPPING=1");
    sidecar.terminate();
}

#[test]
fn second_sidecar_on_same_data_directory_is_refused() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let first = PebbleSidecar::start(&pebble, |_| {});
    first.until_ready();
    let mut second = certs(&pebble.path(""));
    second
        .args([
            "run",
            "example.com",
            "--agree-tos",
            "--http-listen",
            "127.0.0.1:0",
        ])
        .args(["--ca", &pebble.directory_url()])
        .env("CERTS_ADMIN_LISTEN", "off");
    let printed = run(&mut second, 2);
    assert!(
        printed.contains("another `certs run`") && printed.contains("hint:"),
        "{printed}"
    );
    assert_eq!(first.ask("GET", "/readyz").0, 200);
    first.terminate();
}

#[allow(clippy::disallowed_methods)] // real servers take real time
fn until_within(seconds: u64, what: &str, mut ready: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    while !ready() {
        assert!(
            std::time::Instant::now() < end,
            "{what}: not within {seconds} s"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
