//! Endpoints of real servers that show their certificate in a way of their own, or not to this machine.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::embedded::EmbeddedCa;
use crate::support::{
    Nginx, Running, assert_says, certs, free_port, listens, make_script, program, run, until,
    until_within,
};
use crate::targets::{NAME, generation, haproxy, issued, live, verify};

/// nginx with the pair of the CA, after `change` of its configuration. The change takes effect with the reload
/// of the next deployment.
fn nginx(ca: &EmbeddedCa, change: impl FnOnce(String) -> String) -> Option<(Nginx, String)> {
    let root = ca.path("nginx");
    let nginx = Nginx::start_at(&live(ca), &root, free_port())?;
    let file = root.join("nginx.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, change(text)).unwrap();
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    Some((nginx, deploy))
}

#[test]
fn nginx_behind_a_balancer_is_verified() {
    let ca = issued();
    let behind = |text: String| text.replace(" ssl;", " ssl proxy_protocol;");
    let Some((nginx, deploy)) = nginx(&ca, behind) else {
        return;
    };
    // nginx waits for the header of the PROXY protocol, which is found out, or configured.
    let configured = format!("{}?proxy_protocol=v2", verify(nginx.port));
    for endpoint in [None, Some(verify(nginx.port)), Some(configured)] {
        let mut renewal = ca.issue(&[NAME, "--force", &deploy]);
        run(renewal.args(endpoint), 0);
    }
    assert_eq!(generation(&ca), 4);
}

#[test]
fn old_server_is_not_proven_and_keeps_its_pair_until_it_offers_what_the_hint_says() {
    const OLD: &str = "ssl_protocols TLSv1.2; ssl_ciphers ECDHE-ECDSA-AES128-SHA;";
    let ca = issued();
    let old = |text: String| text.replacen("location", &format!("{OLD} location"), 1);
    let Some((nginx, deploy)) = nginx(&ca, old) else {
        return;
    };
    let endpoint = verify(nginx.port);
    // Its reload takes the ciphers away that the client has seen before.
    run(&mut ca.issue(&[NAME, "--force", &deploy, &endpoint]), 7);
    let before = generation(&ca);
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy, &endpoint]), 7);
    let hint = "let the server offer TLS 1.3, or 1.2 with ECDHE and AEAD, over TCP";
    assert_says(&printed, &["cannot be proven with this client", hint]);
    assert!(!printed.contains("rolling back"), "{printed}");
    assert!(generation(&ca) > before, "{printed}");
    let file = ca.path("nginx/nginx.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("AES128-SHA;", "AES128-GCM-SHA256;")).unwrap();
    // An endpoint that could not be seen before is asked for five seconds, which a busy machine needs.
    let mut again = ca.issue(&[NAME, &deploy, &endpoint]);
    until_within("the proof", Duration::from_secs(60), || {
        again.output().unwrap().status.success()
    });
}

#[test]
fn nginx_with_both_kinds_of_keys_is_verified_for_each() {
    let ca = issued();
    let rsa = [NAME, "--name", "rsa", "--key", "rsa-2048"];
    run(&mut ca.issue(&rsa), 0);
    let other = ca.path("out/live/rsa");
    let both = |text: String| {
        let pair = format!(
            "ssl_certificate {0}/fullchain.pem; ssl_certificate_key {0}/privkey.pem; location",
            other.display()
        );
        text.replacen("location", &pair, 1)
    };
    let Some((nginx, deploy)) = nginx(&ca, both) else {
        return;
    };
    for names in [&[NAME][..], &rsa[..]] {
        let mut renewal = ca.issue(names);
        run(renewal.args(["--force", &deploy, &verify(nginx.port)]), 0);
    }
}

#[test]
fn haproxy_that_demands_a_client_certificate_is_verified() {
    let ca = issued();
    let (directory, port) = (ca.path("haproxy"), free_port());
    let crt = live(&ca).join("combined.pem");
    let bind = format!(
        "{} ca-file {} verify required ssl-max-ver TLSv1.2 accept-proxy",
        crt.display(),
        live(&ca).join("chain.pem").display()
    );
    let Some(_running) = haproxy(&directory, port, Path::new(&bind)) else {
        return;
    };
    let socket = directory.join("admin.sock");
    let socket = format!("--deploy=haproxy:{}", socket.display());
    run(&mut ca.issue(&[NAME, "--force", &socket, &verify(port)]), 0);
    assert_eq!(generation(&ca), 2);
}

#[test]
fn hitch_that_demands_a_client_certificate_is_verified() {
    let ca = issued();
    let Some(hitch) = program("CERTS_LAB_HITCH", "/usr/sbin/hitch") else {
        return;
    };
    let (directory, port) = (ca.path("hitch"), free_port());
    std::fs::create_dir(&directory).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    let pair = live(&ca).join("combined.pem");
    let chain = live(&ca).join("chain.pem");
    // Its workers refuse to be root's.
    let user = match rustix::process::geteuid().is_root() {
        true => "user = \"nobody\"\ngroup = \"nogroup\"\n",
        false => "",
    };
    let config = format!(
        "frontend = {{ host = \"127.0.0.1\" port = \"{port}\" }}\nbackend = \"[127.0.0.1]:{}\"\n\
         pem-file = \"{}\"\ntls-protos = TLSv1.2\nclient-verify = required\nclient-verify-ca = \"{}\"\n\
         workers = 1\ndaemon = off\n{}",
        free_port(),
        pair.display(),
        chain.display(),
        user,
    );
    std::fs::write(path("hitch.conf"), config).unwrap();
    let mut command = Command::new(hitch);
    command.args(["--config", &path("hitch.conf")]);
    command.arg(format!("--pidfile={}", path("pid")));
    let _running = Running::start(&mut command);
    until("hitch", || listens(port) && directory.join("pid").exists());
    let reload = directory.join("reload");
    make_script(&reload, &format!("kill -HUP $(cat {})", path("pid")));
    let deploy = format!("--deploy=exec:{}", reload.display());
    run(&mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]), 0);
    assert_eq!(generation(&ca), 2);
}

/// As a rootless container has it: a master whose user is another one in its namespace.
#[test]
fn nginx_of_another_user_namespace_is_reloaded_and_verified() {
    let ca = issued();
    let Some(program) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    if !is_root("a user namespace") {
        return;
    }
    let root = ca.path("nginx");
    let Some(nginx) = Nginx::start_at(&live(&ca), &root, free_port()) else {
        return;
    };
    let (port, pid_file) = (nginx.port, nginx.pid_file.clone());
    drop(nginx);
    // No other user exists there.
    let config = root.join("nginx.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("user root;\n{text}")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]).arg(program);
    let started = command.arg("-c").arg(root.join("nginx.conf")).output();
    if !started.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: nginx in a user namespace: this machine allows none");
        return;
    }
    until("nginx", || listens(port) && pid_file.exists());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let _nginx = Mounting(pid.trim().parse().unwrap());
    let deploy = format!("--deploy=nginx:{}", pid_file.display());
    for endpoint in [vec![], vec![verify(port)]] {
        let printed = run(ca.issue(&[NAME, "--force", &deploy]).args(endpoint), 0);
        assert!(printed.contains("proven by handshake"), "{printed}");
    }
}

#[test]
fn server_that_was_unreachable_before_causes_no_rollback() {
    let ca = issued();
    let Some((nginx, deploy)) = nginx(&ca, |text| text) else {
        return;
    };
    // As behind a firewall, or a router that does not lead back.
    let unreachable = verify(free_port());
    let renewal = [NAME, "--force", &deploy, &unreachable, &verify(nginx.port)];
    let printed = run(&mut ca.issue(&renewal), 7);
    assert!(
        printed.contains("refused") && printed.contains("that this machine reaches"),
        "{printed}"
    );
    assert!(!printed.contains("rolling back"), "{printed}");
    assert_eq!(generation(&ca), 2);
    // The reachable server has the new pair.
    run(&mut ca.issue(&[NAME, &deploy, &verify(nginx.port)]), 0);
    assert_eq!(generation(&ca), 2);
}

#[test]
fn each_server_is_asked_for_its_own_names() {
    let ca = EmbeddedCa::start();
    let names = [NAME, "turn.example.com"];
    run(&mut ca.issue(&names), 0);
    let other = ca.path("other");
    run(&mut ca.issue(&["other.example.com"]), 0);
    std::os::unix::fs::symlink(ca.path("out/live/other.example.com"), &other).unwrap();
    // Its default site has another certificate.
    let port = free_port();
    let site = |text: String| {
        let first = format!(
            "server {{ listen 127.0.0.1:{port} ssl default_server; ssl_certificate {0}/fullchain.pem; \
             ssl_certificate_key {0}/privkey.pem; }} server {{ server_name turn.example.com;",
            other.display()
        );
        text.replacen("server {", &first, 1)
    };
    let root = ca.path("nginx");
    let Some(nginx) = Nginx::start_at(&live(&ca), &root, port) else {
        return;
    };
    let file = root.join("nginx.conf");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, site(text)).unwrap();
    let deploy = format!("--deploy=nginx:{}", nginx.pid_file.display());
    for endpoint in ["", "?names=turn.example.com"] {
        let endpoint = format!("{}{endpoint}", verify(port));
        let mut renewal = ca.issue(&names);
        run(renewal.args(["--force", &deploy, &endpoint]), 0);
    }
    // The table of the configuration says the same.
    let table = format!(
        "[[certificate]]\nnames = ['{NAME}', 'turn.example.com']\ndeploy = ['nginx:{}']\n\
         verify = [{{ address = '127.0.0.1:{port}', names = ['turn.example.com'] }}]\n",
        nginx.pid_file.display()
    );
    std::fs::write(ca.path("certs.toml"), table).unwrap();
    let mut renewal = ca.issue(&names);
    renewal
        .args(["--force", "--config"])
        .arg(ca.path("certs.toml"));
    let printed = run(&mut renewal, 0);
    assert!(printed.contains("names=turn.example.com"), "{printed}");
}

#[test]
fn quiet_command_prints_only_what_needs_the_reader() {
    let ca = issued();
    let Some((nginx, deploy)) = nginx(&ca, |text| text) else {
        return;
    };
    let quiet = [NAME, "-q", &deploy, &verify(nginx.port)];
    for more in [&[][..], &["--force"], &[]] {
        assert_eq!(run(ca.issue(&quiet).args(more), 0), "");
    }
    let mut renew = crate::support::certs(&ca.path(""));
    assert_eq!(run(renew.args(["renew", "-q"]), 0), "");
    let elsewhere = [NAME, "-q", "--deploy", "none", &verify(free_port())];
    let printed = run(&mut ca.issue(&elsewhere), 7);
    assert!(printed.contains("is not verified"), "{printed}");
}

/// Whether this process may make namespaces of its own.
fn is_root(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("SKIPPED: {what}: only root may make namespaces");
    }
    is_root
}

#[test]
fn server_of_both_families_is_verified_on_a_host_without_ipv6() {
    let Some(program) = program("CERTS_LAB_NGINX", "/usr/sbin/nginx") else {
        return;
    };
    if !is_root("a host without IPv6") {
        return;
    }
    // Debian's two lines, and one socket for both families.
    for listen in [
        "listen 443 ssl; listen [::]:443 ssl;",
        "listen [::]:443 ssl ipv6only=off;",
    ] {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().display();
        let live = directory.path().join("out/live").join(NAME);
        let live = live.display();
        let config = format!(
            "pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
             http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;\n\
             uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
             server {{ {listen} ssl_certificate {live}/fullchain.pem; ssl_certificate_key {live}/privkey.pem; }} }}\n"
        );
        std::fs::write(directory.path().join("nginx.conf"), config).unwrap();
        let certs = certs(directory.path());
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-euc"]).arg(
            "ip link set lo up
             for each in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 >$each; done
             issue() { \"$1\" issue example.com --ca embedded --agree-tos --http-listen 127.0.0.1:80 $3; }
             issue \"$@\" ''
             \"$2\" -c \"$PWD/nginx.conf\"
             trap '\"$2\" -c \"$PWD/nginx.conf\" -s stop' EXIT
             issue \"$@\" \"--force --deploy nginx:$PWD/nginx.pid\"",
        );
        command
            .arg("sh")
            .arg(certs.get_program())
            .arg(program.as_path());
        command.current_dir(directory.path());
        for (name, value) in certs.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        let printed = run(&mut command, 0);
        assert!(
            printed.contains("proven by handshake at nginx"),
            "{listen}: {printed}"
        );
    }
}

/// nginx with mounts of its own; it ends with its test.
struct Mounting(u32);

impl Mounting {
    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.to_string(), "--mount", program]);
        run(command.args(arguments), 0);
    }
}

impl Drop for Mounting {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.0).unwrap()).unwrap();
        // An error means that it has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

#[test]
fn mount_that_stays_at_one_generation_is_named_as_the_cause() {
    let ca = issued();
    if program("CERTS_LAB_NGINX", "/usr/sbin/nginx").is_none() || !is_root("mounts of a server") {
        return;
    }
    // What nginx sees at first is a copy.
    let seen = ca.path("seen/live").join(NAME);
    std::fs::create_dir_all(&seen).unwrap();
    for file in ["fullchain.pem", "privkey.pem"] {
        std::fs::copy(live(&ca).join(file), seen.join(file)).unwrap();
    }
    let root = ca.path("nginx");
    let Some(nginx) = Nginx::start_at(&seen, &root, free_port()) else {
        return;
    };
    let (port, pid_file) = (nginx.port, nginx.pid_file.clone());
    drop(nginx);
    let program = program("CERTS_LAB_NGINX", "/usr/sbin/nginx").unwrap();
    let mut command = Command::new("unshare");
    command.arg("--mount").arg(program).arg("-c");
    run(command.arg(root.join("nginx.conf")), 0);
    until("nginx", || listens(port) && pid_file.exists());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let nginx = Mounting(pid.trim().parse().unwrap());
    let deploy = format!("--deploy=nginx:{}", pid_file.display());
    let renews = |code| {
        run(
            &mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]),
            code,
        )
    };
    let text = |path: &Path| path.display().to_string();
    let mount = |source: &Path, place: &Path| {
        nginx.run("mount", &["--bind", &text(source), &text(place)]);
    };
    let unmount = |place: &Path| nginx.run("umount", &[&text(place)]);

    // Single files.
    for file in ["fullchain.pem", "privkey.pem"] {
        mount(&live(&ca).join(file), &seen.join(file));
    }
    let printed = renews(7);
    let place = seen.join("fullchain.pem");
    assert!(
        printed.contains(&format!("nginx reads {}, a mount of ", place.display()))
            && printed.contains(
                "alone, which stays at that generation; mount the whole output directory"
            ),
        "{printed}"
    );
    for file in ["fullchain.pem", "privkey.pem"] {
        unmount(&seen.join(file));
    }
    // The directory of the links alone.
    mount(&ca.path("out/live"), &ca.path("seen/live"));
    let printed = renews(7);
    assert!(
        printed.contains("without the archive beside it"),
        "{printed}"
    );
    unmount(&ca.path("seen/live"));
    // The whole output.
    mount(&ca.path("out"), &ca.path("seen"));
    renews(0);
}
