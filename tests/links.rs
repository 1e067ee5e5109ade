//! The paths of all names of a certificate, as a proxy reads them that looks for the name a client sends.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::deploy::endpoint::Approach;
use certs::deploy::verify::{Offer, observe};
use certs::fingerprint::Fingerprint;
use serde_json::json;

use crate::labels::{DiscoverySidecar, Docker};
use crate::support::embedded::EmbeddedCa;
use crate::support::{Running, certs, free_port, listens, program, run, until};

/// The shipped proxy for containers with labels, which reads `live` on `port`.
fn proxy(directory: &Path, live: &Path, port: u16, more: &str) -> Option<Running> {
    let program = program("CERTS_LAB_NGINX", "/usr/sbin/nginx")?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx/labels.conf");
    let shipped = std::fs::read_to_string(shipped).unwrap();
    let wildcard = "# *.example.com _wildcard_.example.com;";
    assert!(shipped.contains(wildcard));
    let (place, live) = (directory.display(), live.display());
    // One process, which may read the keys, and ends with its test.
    let config = shipped
        .replace(wildcard, more)
        .replace("/tmp/", &format!("{place}/"))
        .replace("/certs/live/", &format!("{live}/"))
        .replace("8443", &format!("127.0.0.1:{port}"))
        .replace("worker_processes auto", "master_process off");
    std::fs::create_dir_all(directory).unwrap();
    let file = directory.join("labels.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.args(["-e", "stderr", "-c"]).arg(file);
    let running = Running::start(&mut command);
    until("nginx", || listens(port));
    Some(running)
}

/// The leaf that is served for `name`, of any CA; `None` if there is none.
fn leaf(port: u16, name: &str) -> Option<Fingerprint> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let address = &SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
    let name = name.parse().unwrap();
    let seen = observe(address, Approach::default(), &name, Offer::All);
    let seen = runtime.block_on(seen).ok()?;
    Some(seen.facts.fingerprint)
}

#[test]
fn shipped_proxy_serves_every_name_of_a_labels_certificate() {
    let (ca, docker) = (EmbeddedCa::start(), Docker::start());
    let domains = "shop.example.com www.shop.example.com; api.example.com";
    docker.add("shop", json!({"certs.domains": domains}));
    let (live, port) = (ca.path("out/live"), free_port());
    let line = "*.wild.test _wildcard_.wild.test;";
    let Some(_proxy) = proxy(&ca.path("nginx"), &live, port, line) else {
        return;
    };
    let sidecar = DiscoverySidecar::start(&ca, &docker.host(), |command| {
        command.env("CERTS_VERIFY", format!("127.0.0.1:{port}"));
    });
    sidecar.until_issued("shop.example.com");
    sidecar.until_issued("api.example.com");
    let is_ready = || sidecar.get("/readyz").starts_with("HTTP/1.1 200");
    until("every proof", is_ready);
    // As of another tool, which can issue one.
    let wildcard = live.join("_wildcard_.wild.test");
    symlink(live.join("shop.example.com"), wildcard).unwrap();
    let shop = leaf(port, "shop.example.com").unwrap();
    assert_eq!(leaf(port, "www.shop.example.com"), Some(shop.clone()));
    assert_eq!(leaf(port, "any.wild.test"), Some(shop.clone()));
    assert_ne!(leaf(port, "api.example.com").unwrap(), shop);
    assert_eq!(leaf(port, "mail.shop.example.com"), None);

    // All names switch with a renewal.
    run(
        certs(&ca.path("")).args(["renew", "--force", "shop.example.com"]),
        0,
    );
    let renewed = leaf(port, "shop.example.com").unwrap();
    assert_ne!(renewed, shop);
    assert_eq!(leaf(port, "www.shop.example.com"), Some(renewed.clone()));

    // A certificate whose own name it is takes it, and never by a placeholder.
    docker.add("www", json!({"certs.domains": "www.shop.example.com"}));
    until("its own certificate", || {
        leaf(port, "www.shop.example.com").unwrap() != renewed
    });
    sidecar.until_issued("www.shop.example.com");
    assert_eq!(
        leaf(port, "www.shop.example.com").unwrap(),
        ca.leaf_at(port, "www.shop.example.com")
    );
    assert_eq!(leaf(port, "shop.example.com"), Some(renewed.clone()));
    // Each certificate is proven by the names that lead to it.
    let shared = "shop.example.com www.shop.example.com c.example.com";
    docker.add("shared", json!({"certs.domains": shared}));
    sidecar.until_issued("c.example.com");
    until("every proof", is_ready);
    assert_eq!(leaf(port, "shop.example.com"), Some(renewed));
}

#[test]
fn configured_links_follow_and_end_with_their_certificate() {
    let ca = EmbeddedCa::start();
    let names = ["example.com", "www.example.com"];
    let target = |name: &str| std::fs::read_link(ca.path("out/live").join(name)).ok();
    run(&mut ca.issue(&names), 0);
    assert_eq!(target("www.example.com"), None);
    // Nothing is due.
    run(ca.issue(&names).env("CERTS_OUTPUT_LINKS", "true"), 0);
    assert_eq!(
        target("www.example.com"),
        Some(PathBuf::from("example.com"))
    );
    let own = ["www.example.com", "--name", "www.example.com"];
    run(&mut ca.issue(&own), 0);
    run(
        certs(&ca.path("")).args(["renew", "--force", "example.com"]),
        0,
    );
    let archived =
        |name: &str, generation: &str| Some(Path::new("../archive").join(name).join(generation));
    assert_eq!(
        target("www.example.com"),
        archived("www.example.com", "0001")
    );
    assert_eq!(target("example.com"), archived("example.com", "0002"));
    // The first certificate has the name again.
    let delete = |name: &str| {
        let mut command = certs(&ca.path(""));
        run(command.args(["delete", name, "--yes"]), 0);
    };
    delete("www.example.com");
    assert_eq!(
        target("www.example.com"),
        Some(PathBuf::from("example.com"))
    );
    delete("example.com");
    assert_eq!(std::fs::read_dir(ca.path("out/live")).unwrap().count(), 0);
}
