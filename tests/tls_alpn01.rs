//! TLS-ALPN-01: by our own listener, and behind servers that have port 443 and forward by ALPN.

use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::embedded::EmbeddedCa;
use crate::support::{Pebble, Running, certs, free_port, listens, program, run, text, until};

const NAMES: [&str; 2] = ["example.com", "www.example.com"];

/// `certs issue` by TLS-ALPN-01, answered on `port`.
fn issue(ca: &EmbeddedCa, port: u16) -> Command {
    let listen = format!("--tls-listen=127.0.0.1:{port}");
    let arguments = ["--challenge", "tls-alpn-01", &listen];
    ca.issue(&[&NAMES[..], &arguments].concat())
}

#[test]
fn own_listener_proves_names_to_embedded_ca() {
    let ca = EmbeddedCa::start();
    run(&mut issue(&ca, ca.tls_port), 0);
    // Nothing listens for HTTP-01 meanwhile: its port may be another server's.
    let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, ca.http_port)).unwrap();
    run(issue(&ca, ca.tls_port).arg("--force"), 0);
    assert!(ca.path("out/live/example.com/fullchain.pem").is_file());
    // The challenge is stored with the certificate.
    let mut renew = certs(ca.path("root.pem").parent().unwrap());
    run(renew.args(["renew", "--force"]), 0);
}

#[test]
fn own_listener_proves_names_and_addresses_to_pebble() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    let listen = format!("--tls-listen=127.0.0.1:{}", pebble.tls_port);
    for names in [&NAMES[..], &["127.0.0.1"]] {
        let arguments = ["--challenge", "tls-alpn-01", &listen];
        run(&mut pebble.issue(&[names, &arguments].concat()), 0);
    }
}

#[test]
fn taken_port_and_wildcard_are_refused_before_any_order() {
    let ca = EmbeddedCa::start();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let printed = run(&mut issue(&ca, port), 2);
    assert!(printed.contains("the port is used by"), "{printed}");
    assert!(
        printed.contains("hint: ") && printed.contains("acme-tls/1"),
        "{printed}"
    );
    let mut wildcard = ca.issue(&["*.example.com", "--challenge", "tls-alpn-01"]);
    let printed = run(&mut wildcard, 2);
    assert!(
        printed.contains("TLS-ALPN-01 cannot prove a wildcard"),
        "{printed}"
    );
    assert!(!ca.path("out/live").exists());
}

#[test]
fn ca_that_cannot_connect_names_the_cause() {
    let ca = EmbeddedCa::start();
    // The CA validates at another port than that of the listener.
    let printed = run(&mut issue(&ca, free_port()), 5);
    assert!(printed.contains("cannot connect to"), "{printed}");
    assert!(printed.contains("port 443"), "{printed}");
}

/// The example below config/, on ports of this test.
fn example(name: &str, ca: &EmbeddedCa, listens: u16) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name);
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("127.0.0.1:10443", &format!("127.0.0.1:{listens}"))
        .replace("listen 443;", &format!("listen 127.0.0.1:{};", ca.tls_port))
        .replace("bind :443", &format!("bind 127.0.0.1:{}", ca.tls_port))
}

#[test]
fn nginx_forwards_by_alpn_as_in_the_example() {
    let Some(nginx) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if !module.is_file() {
        println!("SKIPPED: nginx by ALPN: nginx has no stream module");
        return;
    }
    let (ca, port) = (EmbeddedCa::start(), free_port());
    let (module, root) = (module.display(), ca.path("nginx"));
    std::fs::create_dir_all(&root).unwrap();
    let log = root.join("error.log");
    let config = format!(
        "load_module {module}; pid {0}/nginx.pid; error_log {0}/error.log; daemon off; events {{}}\n{1}",
        root.display(),
        example("nginx-acme-tls.conf", &ca, port)
    );
    std::fs::write(root.join("nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    let server = Running::start(
        command
            .arg("-e")
            .arg(&log)
            .arg("-c")
            .arg(root.join("nginx.conf")),
    );
    until("nginx", || listens(ca.tls_port));
    run(&mut issue(&ca, port), 0);
    server.signal(rustix::process::Signal::TERM);
}

#[test]
fn haproxy_forwards_by_alpn_as_in_the_example() {
    let Some(haproxy) = program("CERTS_LAB_HAPROXY", "/usr/sbin/haproxy") else {
        return;
    };
    let (ca, port) = (EmbeddedCa::start(), free_port());
    let file = ca.path("haproxy.cfg");
    std::fs::write(&file, example("haproxy-acme-tls.cfg", &ca, port)).unwrap();
    let _server = Running::start(Command::new(haproxy).arg("-db").arg("-f").arg(&file));
    until("HAProxy", || listens(ca.tls_port));
    run(&mut issue(&ca, port), 0);
}

#[test]
fn sidecar_without_its_listener_says_which_one_is_missing() {
    let ca = EmbeddedCa::start();
    let (admin, listen) = (free_port(), format!("127.0.0.1:{}", ca.http_port));
    let mut command = certs(ca.path("root.pem").parent().unwrap());
    command.args(["run", "--http-listen", &listen, "--harden=off"]);
    command.args(["--admin-listen", &format!("127.0.0.1:{admin}")]);
    let _sidecar = Running::start(&mut command);
    until("the sidecar", || listens(admin) && listens(ca.http_port));
    let output = issue(&ca, ca.tls_port).output().unwrap();
    let printed = text(&output);
    assert_eq!(output.status.code(), Some(2), "{printed}");
    assert!(printed.contains("no listener for TLS-ALPN-01"), "{printed}");
}

/// A configuration for this CA and these certificates.
fn configured(ca: &EmbeddedCa, certificates: &str) -> PathBuf {
    let file = ca.path("certs.toml");
    let text = format!(
        "ca = '{}'\nca_root = '{}'\nagree_tos = true\nchallenge = 'tls-alpn-01'\nadmin.listen = 'off'\n\
         tls_listen = ['127.0.0.1:{}']\nhttp_listen = ['127.0.0.1:{}']\n{certificates}",
        ca.server.directory_url(),
        ca.path("root.pem").display(),
        ca.tls_port,
        ca.http_port,
    );
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn certificates_that_share_names_are_validated_side_by_side() {
    let ca = EmbeddedCa::start();
    let of_each = (1..=6).map(|number| {
        format!(
            "[[certificate]]\nname = 'n{number}'\n\
             names = ['x.example.com', 'y.example.com', 'n{number}.example.com']\n"
        )
    });
    let file = configured(&ca, &of_each.collect::<String>());
    let mut renew = certs(&ca.path(""));
    let printed = run(renew.arg("renew").env("CERTS_CONFIG", file), 0);
    assert_eq!(
        printed.matches("issued; generation 0001").count(),
        6,
        "{printed}"
    );
}

#[test]
fn commands_that_end_meanwhile_leave_the_port_to_others() {
    let ca = EmbeddedCa::start();
    for round in 0..4 {
        let names = ["a", "b", "c"].map(|name| format!("{name}{round}.example.com"));
        let port = format!("--tls-listen=127.0.0.1:{}", ca.tls_port);
        let started = names.map(|name| {
            let mut command = ca.issue(&[&name, "--challenge", "tls-alpn-01", &port]);
            let piped = command.stdout(Stdio::null()).stderr(Stdio::piped());
            piped.spawn().unwrap()
        });
        for command in started {
            let output = command.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", text(&output));
        }
    }
}

#[test]
fn socket_of_one_protocol_is_none_of_the_other() {
    let ca = EmbeddedCa::start();
    let own = "[[certificate]]\nnames = ['a.example.com']\n";
    let file = configured(&ca, own);
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, ca.tls_port)).unwrap();
    // As systemd starts it: descriptor 3, and the pid of the process. The log is its output.
    let log = ca.path("run.log");
    let mut command = Command::new("/bin/sh");
    let script = "LISTEN_PID=$$ exec \"$@\" 3<&0 0</dev/null 2>\"$LOG\"";
    command
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_certs")])
        .args(["run", "--harden=off"])
        .env_clear()
        .env("LOG", &log)
        .env("CERTS_DATA_DIR", ca.path("data"))
        .env("CERTS_CONFIG", &file)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "https");
    let sidecar = Running::start_with(&mut command, OwnedFd::from(socket).into());
    let logged = |text: &str| {
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        until(text, || read().contains(text));
    };
    logged("issued lineage=a.example.com");
    // The address of its own protocol is the service manager's matter.
    let moved = std::fs::read_to_string(&file).unwrap();
    let moved = moved.replace(&format!("127.0.0.1:{}'", ca.tls_port), "127.0.0.1:1'");
    std::fs::write(&file, moved).unwrap();
    sidecar.signal(rustix::process::Signal::HUP);
    logged("the configuration was reloaded");
    let other = format!("{own}[[certificate]]\nnames = ['b.example.com']\nchallenge = 'http-01'\n");
    configured(&ca, &other);
    sidecar.signal(rustix::process::Signal::HUP);
    logged("the addresses of the challenge listeners change only at a restart");
}
