//! Endpoints of real servers that show their certificate in a way of their own, or not to this machine.

use std::path::Path;

use crate::support::embedded::EmbeddedCa;
use crate::support::{Nginx, free_port, run};
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
