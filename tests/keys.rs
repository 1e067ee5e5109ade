//! Keys and what follows from them: an ECDSA and an RSA certificate side by side, signing requests of users,
//! lifetimes, chains, addresses as names, and settings that have changed since the issue.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::ca::{Resolve, Validation};
use certs::certificate::Facts;
use certs::deploy::endpoint::Approach;
use certs::deploy::verify::{Offer, observe};
use certs::identifier::Identifier;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::{Nginx, Pebble, certs, free_port, run};
use crate::targets::{NAME, haproxy, verify};

const RSA: &str = "example.com_rsa";
const BOTH: &str = "--key=ecdsa-p256,rsa-2048";

fn file(ca: &EmbeddedCa, lineage: &str, name: &str) -> PathBuf {
    ca.path("out/live").join(lineage).join(name)
}

fn facts(chain: &Path) -> Facts {
    Facts::of_chain(&std::fs::read_to_string(chain).unwrap()).unwrap()
}

fn pair(ca: &EmbeddedCa, lineage: &str) -> (PathBuf, PathBuf) {
    let file = |name| file(ca, lineage, name);
    (file("fullchain.pem"), file("privkey.pem"))
}

fn deploys_to(nginx: &Nginx) -> String {
    format!("--deploy=nginx:{}", nginx.pid_file.display())
}

/// Whether a client that accepts these kinds of keys alone sees the certificate `lineage`.
fn is_shown(ca: &EmbeddedCa, lineage: &str, port: u16, offer: Offer) -> bool {
    let name = Identifier::parse(NAME).unwrap();
    let address = &SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into();
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    let shown = runtime.block_on(observe(address, Approach::default(), &name, offer));
    let wanted = facts(&file(ca, lineage, "fullchain.pem")).fingerprint;
    shown.unwrap().facts.fingerprint == wanted
}

/// A command on the data of `ca`.
fn command(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

#[test]
fn nginx_serves_and_shows_the_certificates_of_both_keys() {
    let ca = EmbeddedCa::start();
    let printed = run(&mut ca.issue(&[NAME, BOTH]), 0);
    for lineage in [NAME, RSA] {
        let issued = format!("{lineage}: issued; generation 0001");
        assert!(printed.contains(&issued), "{printed}");
    }
    // The same wish again, with the keys that are stored.
    let printed = run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(
        printed.matches("not due; generation 0001").count(),
        2,
        "{printed}"
    );
    let (port, directory) = (free_port(), ca.path("nginx"));
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let both = [pair(&ca, NAME), pair(&ca, RSA)];
    let Some(nginx) = Nginx::with_pairs(&both, &directory, address) else {
        return;
    };
    let (deploy, verify) = (deploys_to(&nginx), verify(port));
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy, &verify]), 0);
    assert_eq!(
        printed.matches("issued; generation 0002").count(),
        2,
        "{printed}"
    );
    assert_eq!(printed.matches("proven").count(), 2, "{printed}");
    assert!(is_shown(&ca, NAME, port, Offer::EllipticCurve));
    assert!(is_shown(&ca, RSA, port, Offer::Rsa));
    // Each is a certificate with a name of its own.
    let printed = run(&mut command(&ca, &["renew", RSA, "--force"]), 0);
    assert!(
        printed.contains("example.com_rsa: issued; generation 0003"),
        "{printed}"
    );
    assert!(!printed.contains("example.com: issued"), "{printed}");
    let printed = run(&mut command(&ca, &["rollback", RSA]), 0);
    assert!(
        printed.contains("example.com_rsa: deployed again; generation 0002"),
        "{printed}"
    );
    assert!(is_shown(&ca, RSA, port, Offer::Rsa));
    let printed = run(&mut command(&ca, &["status"]), 0);
    assert!(
        printed.contains("example.com ") && printed.contains(RSA),
        "{printed}"
    );
    // Without the RSA certificate the server is not proven for it.
    drop(nginx);
    let Some(_nginx) = Nginx::with_pairs(&both[..1], &directory, address) else {
        return;
    };
    let printed = run(&mut command(&ca, &["reload", NAME]), 7);
    assert!(printed.contains("example.com: deployed again"), "{printed}");
    assert!(
        printed.contains("example.com_rsa: failed (exit code 7)"),
        "{printed}"
    );
}

#[test]
fn haproxy_and_copies_have_the_pairs_of_both_keys() {
    let ca = EmbeddedCa::start();
    let copies = format!(
        "--deploy=file:{}/copies/{{name}}.pem",
        ca.path("").display()
    );
    std::fs::create_dir(ca.path("copies")).unwrap();
    run(&mut ca.issue(&[NAME, BOTH, &copies]), 0);
    for lineage in [NAME, RSA] {
        let copy = std::fs::read(ca.path("copies").join(format!("{lineage}.pem"))).unwrap();
        assert_eq!(
            copy,
            std::fs::read(file(&ca, lineage, "combined.pem")).unwrap()
        );
    }
    // One file for both would hold one of them.
    let one = format!("--deploy=file:{}/copies/one.pem", ca.path("").display());
    let printed = run(&mut ca.issue(&[NAME, BOTH, &one]), 2);
    assert!(printed.contains("would both be written there"), "{printed}");
    assert!(
        printed.contains("hint: put {name} into the path"),
        "{printed}"
    );
    // HAProxy loads a bundle by the ends of its files' names.
    let (directory, port) = (ca.path("haproxy"), free_port());
    std::fs::create_dir(&directory).unwrap();
    for (lineage, kind) in [(NAME, "ecdsa"), (RSA, "rsa")] {
        let bundle = directory.join(format!("site.pem.{kind}"));
        std::os::unix::fs::symlink(file(&ca, lineage, "combined.pem"), bundle).unwrap();
    }
    let Some(_haproxy) = haproxy(&directory, port, &directory.join("site.pem")) else {
        return;
    };
    let deploy = format!("--deploy=haproxy:{}/admin.sock", directory.display());
    let printed = run(&mut ca.issue(&[NAME, "--force", &deploy, &verify(port)]), 0);
    assert_eq!(
        printed.matches("issued; generation 0002").count(),
        2,
        "{printed}"
    );
    assert!(is_shown(&ca, NAME, port, Offer::EllipticCurve));
    assert!(is_shown(&ca, RSA, port, Offer::Rsa));
}

#[test]
fn certificate_of_the_second_key_survives_a_rename_and_ends_by_its_own_name() {
    let ca = EmbeddedCa::start();
    let names = [NAME, "www.example.com"];
    run(&mut ca.issue(&[names[0], names[1], BOTH]), 0);
    let printed = run(&mut command(&ca, &["delete", NAME]), 2);
    let other = "example.com_rsa, for the other key, stays: certs delete example.com_rsa";
    assert!(printed.contains(other), "{printed}");
    run(&mut command(&ca, &["rename", NAME, "site"]), 0);
    // In another order the names mean the same two certificates.
    let printed = run(&mut ca.issue(&[names[1], names[0]]), 0);
    for lineage in ["site", RSA] {
        let kept = format!("{lineage}: not due; generation 0001");
        assert!(printed.contains(&kept), "{printed}");
    }
    let printed = run(&mut command(&ca, &["delete", "site", "--yes"]), 0);
    assert!(!ca.path("out/live/site").exists(), "{printed}");
    let printed = run(&mut command(&ca, &["renew"]), 0);
    assert!(printed.contains("example.com_rsa: not due"), "{printed}");
    run(&mut command(&ca, &["delete", RSA, "--yes"]), 0);
    assert!(!ca.path("out/live").join(RSA).exists());
}

#[test]
fn configured_keys_make_two_certificates_and_one_again() {
    let ca = EmbeddedCa::start();
    let config = |key: &str| {
        let config = format!(
            "ca = '{}'\nca_root = '{}'\nhttp_listen = ['127.0.0.1:{}']\nagree_tos = true\n\
             [[certificate]]\nnames = ['example.com']\nkey = {key}\n",
            ca.server.directory_url(),
            ca.path("root.pem").display(),
            ca.http_port,
        );
        std::fs::write(ca.path("certs.toml"), config).unwrap();
    };
    let file = ca.path("certs.toml").display().to_string();
    let renew = |code| run(&mut command(&ca, &["renew", "--config", &file]), code);
    config("['rsa-2048', 'ecdsa-p384']");
    let printed = renew(0);
    for lineage in [NAME, "example.com_ecdsa"] {
        assert!(printed.contains(&format!("{lineage}: issued")), "{printed}");
    }
    // What the configuration asks for no more is said, and not renewed.
    config("'rsa-2048'");
    let printed = renew(0);
    assert!(printed.contains("example.com: not due"), "{printed}");
    let orphan = printed.lines().find(|line| line.contains("orphaned"));
    assert!(
        orphan.is_some_and(|line| line.contains("example.com_ecdsa")),
        "{printed}"
    );
    config("['rsa-2048', 'rsa-4096']");
    let printed = renew(2);
    assert!(printed.contains("an ECDSA and an RSA type"), "{printed}");
    config("'dsa'");
    assert!(renew(2).contains("hint: write ecdsa-p256"));
}

#[test]
fn changed_setting_is_said_to_apply_to_the_next_renewal_or_now() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    assert!(!run(&mut ca.issue(&[NAME]), 0).contains("next renewal"));
    let changed = ["--key=rsa-2048", "--profile=tlsserver", "--lifetime=30d"];
    let printed = run(ca.issue(&[NAME]).args(changed), 0);
    assert!(printed.contains("not due; generation 0001"), "{printed}");
    let words = "key rsa-2048 (was ecdsa-p256), profile tlsserver (was none), lifetime 30d (was none) \
                 applies to the next renewal";
    assert!(printed.contains(words), "{printed}");
    // It is said until it applies, also where it is only stored.
    let printed = run(&mut command(&ca, &["renew", NAME]), 0);
    assert!(printed.contains(words), "{printed}");
    // The command of the hint.
    assert!(printed.contains("hint: certs"), "{printed}");
    let printed = run(&mut command(&ca, &["renew", NAME, "--force"]), 0);
    assert!(!printed.contains("next renewal"), "{printed}");
    let key = std::fs::read_to_string(file(&ca, NAME, "privkey.pem")).unwrap();
    assert!(key.len() > 1000, "not an RSA key");
    let lifetime = facts(&file(&ca, NAME, "fullchain.pem"))
        .lifetime()
        .as_secs();
    assert!(
        (30 * 86_400..30 * 86_400 + 7200).contains(&lifetime),
        "{lifetime}"
    );
    let json = run(ca.issue(&[NAME]).args(["--json", "--profile", "none"]), 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["changed"][0], "profile none (was tlsserver)");
}

#[test]
fn refused_lifetime_exits_4_with_a_hint_that_helps() {
    let ca = EmbeddedCa::start();
    let refusal = "NotBefore and NotAfter are not supported";
    let refusal = Fault::problem(400, "malformed", refusal);
    ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    let printed = run(&mut ca.issue(&[NAME, "--lifetime", "30d"]), 4);
    assert!(printed.contains("NotAfter are not supported"), "{printed}");
    let hint = printed.lines().find(|line| line.contains("hint:")).unwrap();
    assert!(
        hint.contains("--lifetime none") && hint.contains("shortlived"),
        "{hint}"
    );
    ca.script.clear();
    // The setting is stored, and the hint ends it.
    run(&mut ca.issue(&[NAME, "--lifetime", "none"]), 0);
    let lifetime = facts(&file(&ca, NAME, "fullchain.pem")).lifetime();
    assert_eq!(lifetime.as_secs(), 90 * 86_400);
    // More than the profile allows.
    let printed = run(&mut ca.issue(&["b.example.com", "--lifetime", "91d"]), 4);
    assert!(
        printed.contains("notAfter is in 2160 hours at the latest"),
        "{printed}"
    );
    let printed = run(&mut ca.issue(&[NAME, "--lifetime", "1h"]), 2);
    assert!(printed.contains("between 2h and 3650d"), "{printed}");
}

#[test]
fn unknown_profile_exits_4_and_lists_those_of_the_ca() {
    let ca = EmbeddedCa::start();
    let printed = run(&mut ca.issue(&[NAME, "--profile", "eternal"]), 4);
    let known = "repeat certs issue with --profile and one of: default, shortlived, tlsserver";
    assert!(
        printed.contains("`eternal`") && printed.contains(known),
        "{printed}"
    );
    assert_eq!(ca.script.count(Endpoint::NewOrder), 0);
    run(&mut ca.issue(&[NAME, "--profile", "shortlived"]), 0);
}

#[test]
fn pebble_issues_for_a_lifetime_and_by_a_preferred_chain() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    run(&mut pebble.issue(&[NAME, "--lifetime", "7d"]), 0);
    let chain = pebble.path("out/live/example.com/fullchain.pem");
    let lifetime = facts(&chain).lifetime().as_secs();
    assert!((6 * 86_400..8 * 86_400).contains(&lifetime), "{lifetime}");
    // The warning names the issuers; each of them is then taken.
    let ordered = |preferred: &str| {
        run(
            &mut pebble.issue(&[NAME, "--force", "--preferred-chain", preferred]),
            0,
        )
    };
    let printed = ordered("Nobody's Root");
    assert!(
        printed.contains("no chain of the CA has the topmost issuer `Nobody's Root`"),
        "{printed}"
    );
    let issuers = printed.split_once("its issuers are: ").unwrap().1;
    let issuers: Vec<&str> = issuers.split(';').next().unwrap().split(", ").collect();
    assert_eq!(issuers.len(), 3, "{printed}");
    for issuer in issuers {
        let printed = ordered(issuer);
        assert!(!printed.contains("topmost issuer"), "{printed}");
        let pem = std::fs::read(&chain).unwrap();
        let found = x509_parser::pem::Pem::iter_from_buffer(&pem)
            .flatten()
            .any(|one| {
                let one = one.parse_x509().unwrap();
                let mut names = one.issuer().iter_common_name();
                names.any(|name| name.as_str() == Ok(issuer))
            });
        assert!(found, "{issuer}");
    }
}

/// Writes a signing request of a new key for `names`, and the key.
pub(crate) fn request(directory: &Path, names: &[&str]) -> (PathBuf, PathBuf) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let (file, key_file) = (directory.join("site.csr"), directory.join("site.key"));
    std::fs::write(&file, request).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    (file, key_file)
}

/// `certs csr FILE` against this CA.
pub(crate) fn csr(ca: &EmbeddedCa, file: &Path, arguments: &[&str]) -> Command {
    let issue = ca.issue(arguments);
    let mut command = certs(&ca.path(""));
    command.arg("csr").arg(file).args(issue.get_args().skip(1));
    command
}

#[test]
fn certificate_of_a_signing_request_is_served_with_the_users_key_and_renewed() {
    let ca = EmbeddedCa::start();
    let (csr_file, key) = request(&ca.path(""), &["example.com", "www.example.com"]);
    let printed = run(&mut csr(&ca, &csr_file, &[]), 0);
    assert!(
        printed.contains("example.com: issued; generation 0001"),
        "{printed}"
    );
    let chain = file(&ca, NAME, "fullchain.pem");
    for name in ["privkey.pem", "combined.pem"] {
        assert!(!file(&ca, NAME, name).exists(), "{name}");
    }
    let published = std::fs::read_to_string(file(&ca, NAME, "request.pem")).unwrap();
    assert!(published.contains("BEGIN CERTIFICATE REQUEST"));
    let port = free_port();
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let pairs = [(chain.clone(), key)];
    let Some(nginx) = Nginx::with_pairs(&pairs, &ca.path("nginx"), address) else {
        return;
    };
    // The file is not needed again, and the certificate is meant by its names, too.
    std::fs::remove_file(&csr_file).unwrap();
    let first = facts(&chain).fingerprint;
    let (deploy, verify) = (deploys_to(&nginx), verify(port));
    let names = ["www.example.com", "example.com", "--force"];
    let printed = run(ca.issue(&names).args([&deploy, &verify]), 0);
    assert!(
        printed.contains("issued; generation 0002") && printed.contains("proven"),
        "{printed}"
    );
    let printed = run(&mut command(&ca, &["renew", "--force"]), 0);
    assert!(printed.contains("issued; generation 0003"), "{printed}");
    assert!(is_shown(&ca, NAME, port, Offer::All));
    assert_ne!(facts(&chain).fingerprint, first);
    let printed = run(&mut command(&ca, &["rollback", NAME]), 0);
    assert!(printed.contains("generation 0002"), "{printed}");
    // A new request, with another key, is for the next order.
    std::fs::create_dir(ca.path("other")).unwrap();
    let (other, _) = request(&ca.path("other"), &["example.com", "www.example.com"]);
    let printed = run(&mut csr(&ca, &other, &[]), 0);
    assert!(
        printed.contains("signing request") && printed.contains("next renewal"),
        "{printed}"
    );
    let printed = run(&mut ca.issue(&[names[0], names[1], "--key", "rsa-2048"]), 2);
    assert!(
        printed.contains("the key is that of a signing request"),
        "{printed}"
    );
}

#[test]
fn pending_order_of_another_signing_request_is_not_resumed() {
    let ca = EmbeddedCa::start();
    let (first, _) = request(&ca.path(""), &[NAME]);
    let down = Fault::html(503);
    ca.script.add(Endpoint::Finalize, Which::Every, down);
    run(&mut csr(&ca, &first, &[]), 3);
    ca.script.clear();
    let (second, _) = request(&ca.path(""), &[NAME]);
    run(&mut csr(&ca, &second, &[]), 0);
    let lines = |path: &Path| -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    };
    assert_eq!(lines(&file(&ca, NAME, "request.pem")), lines(&second));
}

#[test]
fn unfit_signing_request_exits_2_before_anything_is_sent() {
    let ca = EmbeddedCa::start();
    let (good, _) = request(&ca.path(""), &[NAME]);
    let (file, sent) = (ca.path("bad.csr"), std::fs::read_to_string(&good).unwrap());
    let weak = include_str!("../src/certificate/request/rsa1024.csr");
    let wildcard = {
        let directory = ca.path("wildcard");
        std::fs::create_dir(&directory).unwrap();
        let (file, _) = request(&directory, &["*.example.com"]);
        std::fs::read_to_string(file).unwrap()
    };
    for (content, arguments, cause, hint) in [
        (weak.to_owned(), vec![], "1024 bits", "openssl req -new"),
        (
            sent.replace("MI", "MJ"),
            vec![],
            "PKCS#10",
            "openssl req -new",
        ),
        ("x".repeat(70_000), vec![], "larger than", "hint: "),
        (
            "hello".to_owned(),
            vec![],
            "no signing request",
            "openssl req -new",
        ),
        (
            sent.clone(),
            vec!["other.example.com"],
            "it is for example.com",
            "leave the names out",
        ),
        (
            sent.clone(),
            vec!["--key=rsa-2048"],
            "that of a signing request",
            "leave --key out",
        ),
        (
            sent.clone(),
            vec!["--deploy=haproxy:/run/x.sock"],
            "needs the private key",
            "--deploy nginx",
        ),
        (wildcard, vec![], "cannot prove a wildcard", "DNS-01"),
    ] {
        std::fs::write(&file, content).unwrap();
        let printed = run(&mut csr(&ca, &file, &arguments), 2);
        assert!(
            printed.contains(cause) && printed.contains(hint),
            "{cause}: {printed}"
        );
    }
    let printed = run(&mut csr(&ca, &ca.path("absent.csr"), &[]), 2);
    assert!(
        printed.contains("absent.csr") && printed.contains("hint: "),
        "{printed}"
    );
    assert_eq!(ca.script.count(Endpoint::Directory), 0);
    // A certificate with its key here keeps it.
    run(&mut ca.issue(&[NAME]), 0);
    let printed = run(&mut csr(&ca, &good, &[]), 2);
    assert!(printed.contains("has its own key here"), "{printed}");
    assert!(file_exists(&ca, "privkey.pem"));
    run(&mut csr(&ca, &good, &["--name", "example.com_csr"]), 0);
    assert!(file_exists(&ca, "privkey.pem"));
}

fn file_exists(ca: &EmbeddedCa, name: &str) -> bool {
    file(ca, NAME, name).is_file()
}

#[test]
fn revoked_key_of_a_signing_request_gets_no_certificate_again() {
    let ca = EmbeddedCa::start();
    let (csr_file, _) = request(&ca.path(""), &[NAME]);
    run(&mut csr(&ca, &csr_file, &[]), 0);
    let revoke = ["revoke", NAME, "--now", "--reason", "keycompromise"];
    run(&mut command(&ca, &revoke), 0);
    let printed = run(&mut csr(&ca, &csr_file, &[]), 2);
    assert!(
        printed.contains("the key of this signing request was revoked"),
        "{printed}"
    );
    // Nor after another one, whose file has the same name.
    let first = ca.path("first.csr");
    std::fs::copy(&csr_file, &first).unwrap();
    let (other, _) = request(&ca.path(""), &[NAME]);
    run(&mut csr(&ca, &other, &[]), 0);
    run(&mut csr(&ca, &first, &["--force"]), 2);
}

#[test]
fn revocation_whose_replacement_needs_another_key_is_not_begun() {
    let ca = EmbeddedCa::start();
    let (csr_file, _) = request(&ca.path(""), &[NAME]);
    run(&mut csr(&ca, &csr_file, &[]), 0);
    let printed = run(&mut command(&ca, &["revoke", NAME]), 2);
    assert!(printed.contains("nothing was revoked"), "{printed}");
    run(&mut command(&ca, &["renew", "--force"]), 0);
}

#[test]
fn second_key_takes_the_name_of_no_other_certificate() {
    let ca = EmbeddedCa::start();
    let other = ["other.example.com", "--name", "v.example.com_rsa"];
    run(&mut ca.issue(&other), 0);
    let both = ["v.example.com", "--key", "ecdsa-p256,rsa-2048"];
    run(&mut ca.issue(&both), 0);
    let listed = run(&mut command(&ca, &["status"]), 0);
    for name in ["other.example.com", "v.example.com_rsa-2"] {
        assert!(listed.contains(name), "{listed}");
    }
    let printed = run(&mut ca.issue(&both), 0);
    assert!(printed.contains("not due"), "{printed}");
    assert!(!printed.contains("rsa-2-2"), "{printed}");
}

#[test]
fn addresses_are_proven_by_both_challenges_and_served_by_nginx() {
    let ports = (free_port(), free_port());
    let ca = EmbeddedCa::with(|settings| {
        let ports = certs::ca::Ports {
            http: ports.0,
            tls: ports.1,
        };
        let resolve = Resolve::System;
        settings.validation = Validation::Connect { ports, resolve };
    });
    let Ok(_) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else {
        return eprintln!("SKIPPED: IPv6: no loopback address");
    };
    for (address, lineage) in [("127.0.0.1", "127.0.0.1"), ("::1", "0--1")] {
        let ip: std::net::IpAddr = address.parse().unwrap();
        let http = SocketAddr::new(ip, ports.0).to_string();
        let tls = SocketAddr::new(ip, ports.1).to_string();
        let mut by_http = certs(&ca.path(""));
        let issue = ca.issue(&[]);
        let shared: Vec<_> = issue
            .get_args()
            .skip(1)
            .take(5)
            .map(ToOwned::to_owned)
            .collect();
        by_http
            .args(["issue", address, "--http-listen", &http])
            .args(&shared);
        let printed = run(&mut by_http, 0);
        assert!(printed.contains(&format!("{lineage}: issued")), "{printed}");
        let served = SocketAddr::new(ip, free_port());
        let directory = ca.path(&format!("nginx-{lineage}"));
        let Some(nginx) = Nginx::with_pairs(&[pair(&ca, lineage)], &directory, served) else {
            return;
        };
        let (deploy, verify) = (deploys_to(&nginx), format!("--verify={served}"));
        let mut by_tls = certs(&ca.path(""));
        by_tls.args([
            "issue",
            address,
            "--challenge=tls-alpn-01",
            "--tls-listen",
            &tls,
        ]);
        let printed = run(by_tls.args(&shared).args(["--force", &deploy, &verify]), 0);
        assert!(
            printed.contains("generation 0002") && printed.contains("proven"),
            "{printed}"
        );
    }
}

#[test]
fn addresses_are_proven_to_pebble_by_both_challenges() {
    let Some(pebble) = Pebble::start(5) else {
        return;
    };
    if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        return eprintln!("SKIPPED: IPv6: no loopback address");
    }
    let http = format!("--http-listen=[::1]:{}", pebble.http_port);
    run(&mut pebble.issue(&["::1", "127.0.0.1", &http]), 0);
    let tls = format!("--tls-listen=[::1]:{}", pebble.tls_port);
    let arguments = [
        "::1",
        "--force",
        "--name=v6",
        "--challenge=tls-alpn-01",
        &tls,
    ];
    run(&mut pebble.issue(&arguments), 0);
    let found = facts(&pebble.path("out/live/0--1/fullchain.pem")).identifiers;
    assert_eq!(found.len(), 2);
}
