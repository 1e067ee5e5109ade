//! Servers with TLS on a Unix socket, behind another server that forwards it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::embedded::EmbeddedCa;
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{
    NOBODY, Nginx, Running, as_nobody, assert_says, certs, free_port, listens, program, run, until,
};
use crate::targets::{NAME, generation, haproxy, issued, live, verify};

/// nginx with the pair of the CA, on a socket alone; `options` are those of its `listen`.
fn nginx(ca: &EmbeddedCa, options: &str) -> Option<(Nginx, PathBuf, String)> {
    let port = free_port();
    let root = ca.path(&format!("nginx-{port}"));
    let nginx = Nginx::start_at(&live(ca), &root, port)?;
    let (file, socket) = (root.join("nginx.conf"), root.join("app.sock"));
    let text = std::fs::read_to_string(&file).unwrap();
    let listen = format!("listen unix:{} {options};", socket.display());
    let text = text.replace(&format!("listen 127.0.0.1:{port} ssl;"), &listen);
    std::fs::write(&file, text).unwrap();
    let pid = std::fs::read_to_string(&nginx.pid_file).unwrap();
    let pid = pid.trim();
    // Before its first worker, nginx may lose a signal.
    let children = format!("/proc/{pid}/task/{pid}/children");
    let has_worker = || std::fs::read_to_string(&children).is_ok_and(|all| !all.is_empty());
    until("a worker", has_worker);
    let reloaded = Command::new("kill").args(["-HUP", pid]).status();
    assert!(reloaded.unwrap().success());
    until("the socket alone", || socket.exists() && !listens(port));
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    Some((nginx, socket, deploy))
}

/// An nginx that forwards `port` to `socket` by the name that clients ask for.
fn front(ca: &EmbeddedCa, port: u16, socket: &Path) -> Option<Running> {
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    if !module.is_file() {
        println!("SKIPPED: a front by SNI: nginx has no stream module");
        return None;
    }
    let (file, log) = (ca.path("front.conf"), ca.path("front.log"));
    let config = format!(
        "load_module {}; pid {}; error_log {}; daemon off; events {{}}\n\
         stream {{ map $ssl_preread_server_name $to {{ {NAME} unix:{}; }}\n\
         server {{ listen 127.0.0.1:{port}; ssl_preread on; proxy_protocol on; proxy_pass $to; }} }}\n",
        module.display(),
        ca.path("front.pid").display(),
        log.display(),
        socket.display()
    );
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?);
    let running = Running::start(command.arg("-e").arg(log).arg("-c").arg(file));
    until("nginx in front", || listens(port));
    Some(running)
}

#[test]
fn nginx_on_a_unix_socket_is_proven_there_and_behind_its_front() {
    let ca = issued();
    let Some((_nginx, socket, deploy)) = nginx(&ca, "ssl proxy_protocol") else {
        return;
    };
    let endpoint = format!("unix:{}", socket.display());
    let configured = format!("--verify={endpoint}?names={NAME}&proxy_protocol=v2");
    for endpoint in [None, Some(format!("--verify={endpoint}")), Some(configured)] {
        let mut renewal = ca.issue(&[NAME, "--force", &deploy]);
        let printed = run(renewal.args(endpoint), 0);
        assert_says(&printed, &["proven by handshake"]);
    }
    assert_eq!(generation(&ca), 4);
    let port = free_port();
    if let Some(_front) = front(&ca, port, &socket) {
        let both = [verify(port), format!("--verify={endpoint}")];
        run(ca.issue(&[NAME, "--force", &deploy]).args(both), 0);
        let chain = std::fs::read_to_string(live(&ca).join("fullchain.pem")).unwrap();
        assert_eq!(ca.leaf_at(port, NAME), leaf(&chain));
    }
    // A pair that nginx does not read is seen at the socket, and rolled back.
    let (config, copies) = (socket.with_file_name("nginx.conf"), ca.path("copies"));
    std::fs::create_dir(&copies).unwrap();
    for file in ["fullchain.pem", "privkey.pem"] {
        std::fs::copy(live(&ca).join(file), copies.join(file)).unwrap();
    }
    let text = std::fs::read_to_string(&config).unwrap();
    let [ours, other] = [live(&ca), copies].map(|path| path.display().to_string());
    std::fs::write(&config, text.replace(&ours, &other)).unwrap();
    let before = generation(&ca);
    let mut renewal = ca.issue(&[NAME, "--force", &deploy]);
    renewal.arg(format!("--verify={endpoint}"));
    let printed = run(renewal.env("CERTS_VERIFY_WITHIN", "10s"), 7);
    let other = format!("{endpoint} serves another certificate");
    assert_says(&printed, &[&other, "rolled back and verified"]);
    assert_eq!(generation(&ca), before);
}

fn leaf(chain: &str) -> certs::fingerprint::Fingerprint {
    use rustls::pki_types::pem::PemObject;
    let leaf = rustls::pki_types::CertificateDer::from_pem_slice(chain.as_bytes());
    certs::fingerprint::Fingerprint::of(&leaf.unwrap())
}

#[test]
fn haproxy_on_a_unix_socket_is_proven_by_the_table_of_an_endpoint() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let (pair, socket) = (live(&ca).join("combined.pem"), directory.join("app.sock"));
    let binds = format!(
        "{0}\n  bind unix@{1} mode 666 ssl crt {0} accept-proxy",
        pair.display(),
        socket.display()
    );
    let Some(_running) = haproxy(&directory, port, Path::new(&binds)) else {
        return;
    };
    let table = format!(
        "[[certificate]]\nnames = '{NAME}'\ndeploy = 'haproxy:{}'\n\
         verify = [{{ address = 'unix:{}', names = ['{NAME}'], proxy_protocol = 'v2' }}]\n",
        directory.join("admin.sock").display(),
        socket.display()
    );
    std::fs::write(ca.path("certs.toml"), table).unwrap();
    let mut renewal = ca.issue(&[NAME, "--force", "--config"]);
    let printed = run(renewal.arg(ca.path("certs.toml")), 0);
    let place = format!(
        "proven by handshake at unix:{}?names={NAME}&proxy_protocol=v2",
        socket.display()
    );
    assert_says(&printed, &[&place]);
}

#[test]
fn nginx_on_a_plain_unix_socket_is_left_to_its_front() {
    let ca = issued();
    for options in ["", "proxy_protocol"] {
        let Some((nginx, ..)) = nginx(&ca, options) else {
            return;
        };
        let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
        let printed = run(&mut ca.issue(&[NAME, "--force", &deploy]), 0);
        assert_says(&printed, &["the ports of nginx are unknown"]);
    }
}

#[test]
fn nginx_that_has_given_tls_to_its_front_is_left_to_it() {
    let ca = issued();
    let Some((nginx, socket, deploy)) = nginx(&ca, "ssl") else {
        return;
    };
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy]), 0);
    assert!(!printed.contains("unknown"), "{printed}");
    let file = socket.with_file_name("nginx.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace(" ssl;", ";")).unwrap();
    let pid = std::fs::read_to_string(&nginx.pid_file).unwrap();
    let reloaded = Command::new("kill").args(["-HUP", pid.trim()]).status();
    assert!(reloaded.unwrap().success());
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy]), 0);
    assert_says(
        &printed,
        &["not checked: no endpoint is configured; hint: "],
    );
    assert!(!printed.contains("rolling back"), "{printed}");
}

#[test]
fn socket_without_a_server_is_named_and_causes_no_rollback() {
    let ca = issued();
    let [absent, file, stale] = ["absent", "file", "stale"].map(|name| ca.path(name));
    std::fs::write(&file, "").unwrap();
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for (path, why) in [
        (absent, "no such socket"),
        (file, "this file is not a socket"),
        (stale, "no server listens at this socket any more"),
    ] {
        let endpoint = format!("--verify=unix:{}", path.display());
        let arguments = [NAME, "--force", "--deploy=exec:/bin/true", &endpoint];
        let printed = run(&mut ca.issue(&arguments), 7);
        assert_says(&printed, &[why, "that this machine reaches"]);
        assert!(!printed.contains("rolling back"), "{printed}");
    }
    let printed = run(&mut ca.issue(&[NAME, "--verify=unix:@abstract"]), 2);
    assert_says(
        &printed,
        &["an abstract socket", "hint: HOST:PORT or unix:/PATH"],
    );
}

#[test]
fn socket_of_another_user_is_not_proven_until_its_mode_allows_it() {
    if !rustix::process::geteuid().is_root() {
        return println!("SKIPPED: only root can run certs as another user");
    }
    let ca = issued();
    let Some((_nginx, socket, deploy)) = nginx(&ca, "ssl") else {
        return;
    };
    run(&mut ca.issue(&[NAME, "--force", &deploy]), 0);
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(other.path(), Some(NOBODY), None).unwrap();
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(&ca.path(""), 0o755);
    mode(&socket, 0o600);
    let endpoint = format!("--verify=unix:{}", socket.display());
    let mut order = ca.issue(&[NAME, &endpoint]);
    order.env("CERTS_DATA_DIR", other.path().join("data"));
    order.env("CERTS_OUTPUT_DIR", other.path().join("out"));
    let mut order = as_nobody(&order, &ca.path(""));
    let printed = run(&mut order, 7);
    let why = format!("user {NOBODY} of this process may not connect to this socket");
    assert_says(
        &printed,
        &[
            &why,
            "hint: the certificate is stored and deployed; let that user write to the socket",
        ],
    );
    mode(&socket, 0o666);
    // It can be seen, and has the pair of another data directory.
    assert_says(&run(&mut order, 7), &["serves another certificate"]);
}

#[test]
fn sidecar_looks_at_a_unix_socket_and_names_it_everywhere() {
    let ca = issued();
    let Some((nginx, socket, deploy)) = nginx(&ca, "ssl") else {
        return;
    };
    let endpoint = format!("unix:{}", socket.display());
    let verify = format!("--verify={endpoint}");
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    let admin = free_port();
    let mut command = configured(&ca, &[NAME], admin);
    command.env("CERTS_VERIFY", &endpoint);
    command.env("CERTS_DEPLOY", &deploy["--deploy=".len()..]);
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    until("readiness", || sidecar.readiness() == 200);
    let metrics = crate::served::ask(&sidecar, "/metrics").1;
    let series =
        format!("certs_served_not_after_seconds{{name=\"{NAME}\",endpoint=\"{endpoint}\"}}");
    assert!(metrics.contains(&series), "{metrics}");
    drop(nginx);
    until("no socket", || !socket.exists());
    let printed = run(certs(&ca.path("")).arg("renew"), 7);
    assert_says(&printed, &[&endpoint, "no such socket"]);
    until("no readiness", || sidecar.readiness() == 503);
    let (_, ready) = crate::served::ask(&sidecar, "/readyz");
    assert_says(&ready, &[&endpoint, "no such socket"]);
    let printed = run(certs(&ca.path("")).args(["status", NAME]), 0);
    assert_says(&printed, &["not proven", &endpoint, "no such socket"]);
    sidecar.stop();
}
