//! The later life of certificates: the two of two keys, revocations that are given up, keys that are revoked under
//! every name, signing requests, and what a deletion removes elsewhere.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record, RecordType};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::proxy::{Manner, Proxy};
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{Running, certs, free_port, make_script, run, until};

const NAME: &str = "example.com";
const RSA: &str = "example.com_rsa";
const BOTH: &str = "--key=ecdsa-p256,rsa-2048";

fn verb(ca: &EmbeddedCa, arguments: &[&str]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args(arguments);
    command
}

fn status(ca: &EmbeddedCa, name: &str) -> Value {
    let json = run(&mut verb(ca, &["status", name, "--json"]), 0);
    let mut all: Value = serde_json::from_str(&json).unwrap();
    all[0].take()
}

fn is_live(ca: &EmbeddedCa, name: &str) -> bool {
    ca.path("out/live").join(name).exists()
}

#[track_caller]
fn assert_has(printed: &str, words: &[&str]) {
    for words in words {
        assert!(printed.contains(words), "no `{words}` in {printed}");
    }
}

#[test]
fn order_of_two_keys_is_kept_and_a_dropped_one_is_orphaned() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, BOTH]), 0);
    let turned = ["--key=rsa-2048,ecdsa-p256"];
    let printed = run(ca.issue(&[NAME]).args(turned), 0);
    assert_has(
        &printed,
        &[
            "example.com has the ecdsa key, example.com_rsa the rsa one",
            "write ecdsa-p256,rsa-2048",
        ],
    );
    assert_eq!(
        printed.matches("not due; generation 0001").count(),
        2,
        "{printed}"
    );
    assert!(
        !printed.contains("next renewal") && !is_live(&ca, "example.com_ecdsa"),
        "{printed}"
    );
    let printed = run(&mut ca.issue(&[NAME, "--key=ecdsa-p256"]), 0);
    let orphaned = "orphaned, and renewed no more: certs issue no longer requests its key";
    assert_has(
        &printed,
        &[RSA, orphaned, "certs delete example.com_rsa removes it"],
    );
    for arguments in [&["renew"][..], &["status"]] {
        let printed = run(&mut verb(&ca, arguments), 0);
        assert_has(&printed, &[orphaned]);
        assert!(!printed.contains("example.com_rsa: not due"), "{printed}");
    }
    assert_eq!(status(&ca, RSA)["orphaned"], true);
    // The commands of the hint.
    let printed = run(&mut verb(&ca, &["renew", RSA]), 0);
    assert_has(&printed, &["example.com_rsa: not due"]);
    run(&mut ca.issue(&[NAME, BOTH]), 0);
    assert_eq!(status(&ca, RSA)["orphaned"], false);
    assert_has(
        &run(&mut verb(&ca, &["renew"]), 0),
        &["example.com_rsa: not due"],
    );
    run(&mut ca.issue(&[NAME, "--key=ecdsa-p256"]), 0);
    run(&mut verb(&ca, &["delete", RSA, "--yes"]), 0);
    assert!(!is_live(&ca, RSA));
}

#[test]
fn configured_keys_keep_their_certificates_in_any_order_and_say_which_is_dropped() {
    let ca = EmbeddedCa::start();
    let file = ca.path("certs.toml");
    let renew = |key: &str| {
        let config = format!(
            "ca = '{}'\nca_root = '{}'\nhttp_listen = ['127.0.0.1:{}']\nagree_tos = true\n\
             [[certificate]]\nname = 'site'\nnames = ['example.com']\nkey = {key}\n",
            ca.server.directory_url(),
            ca.path("root.pem").display(),
            ca.http_port,
        );
        std::fs::write(&file, config).unwrap();
        run(verb(&ca, &["renew", "--config"]).arg(&file), 0)
    };
    renew("['rsa-2048', 'ecdsa-p384']");
    let printed = renew("['ecdsa-p384', 'rsa-2048']");
    assert_has(
        &printed,
        &[
            "site has the rsa key, site_ecdsa the ecdsa one",
            "site_ecdsa: not due",
        ],
    );
    let printed = renew("'rsa-2048'");
    assert_has(
        &printed,
        &[
            "the configuration no longer names its key",
            "both types in `key` of the configuration keep it",
        ],
    );
    let printed = renew("['rsa-2048', 'ecdsa-p384']");
    assert_has(&printed, &["site_ecdsa: not due; generation 0001"]);
    assert!(!printed.contains("orphaned"), "{printed}");
}

#[test]
fn name_of_the_second_key_makes_no_third_certificate() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, BOTH]), 0);
    let orders = ca.script.count(Endpoint::NewOrder);
    let printed = run(&mut ca.issue(&[NAME, "--name", RSA]), 2);
    assert_has(
        &printed,
        &[
            "is the certificate for the other key of example.com",
            "certs renew example.com_rsa",
        ],
    );
    run(&mut verb(&ca, &["renew", RSA]), 0);
    run(&mut ca.issue(&[NAME, BOTH, "--name", NAME]), 0);
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders);
    let printed = run(&mut verb(&ca, &["rename", NAME, "site"]), 0);
    assert_has(
        &printed,
        &[
            "example.com_rsa, for the other key, keeps its name; hint: certs rename example.com_rsa site_rsa",
        ],
    );
    run(&mut ca.issue(&[NAME, "--name", RSA]), 2);
    run(&mut verb(&ca, &["rename", RSA, "site_rsa"]), 0);
    assert!(is_live(&ca, "site_rsa"));
    assert_has(
        &run(&mut ca.issue(&[NAME]), 0),
        &["site: not due", "site_rsa: not due"],
    );
    // A hint repeats the option that names the data.
    let data = ca.path("data").display().to_string();
    let printed = run(
        verb(&ca, &["--data-dir", &data, "delete", "site"]).env_remove("CERTS_DATA_DIR"),
        2,
    );
    let other = format!("for the other key, stays: certs --data-dir {data} delete site_rsa");
    assert_has(&printed, &[&other]);
}

#[test]
fn rollback_and_revocation_are_of_the_named_certificate_alone() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, BOTH]), 0);
    run(
        &mut ca.issue(&[NAME, "other.example.com", "--name", "third"]),
        0,
    );
    for name in [RSA, NAME, NAME] {
        run(&mut verb(&ca, &["renew", name, "--force"]), 0);
    }
    let served = |name: &str| {
        let live = std::fs::read_link(ca.path("out/live").join(name)).unwrap();
        live.file_name().unwrap().to_str().unwrap().to_owned()
    };
    let before = [served(RSA), served("third")];
    let printed = run(&mut verb(&ca, &["rollback", NAME, "--to", "2"]), 0);
    assert_has(
        &printed,
        &[
            "example.com_rsa, for the other key, stays",
            "hint: certs rollback example.com_rsa",
        ],
    );
    assert_eq!(served(NAME), "0002");
    assert_eq!([served(RSA), served("third")], before);
    let printed = run(&mut verb(&ca, &["rollback", RSA]), 0);
    assert_has(&printed, &["example.com, for the other key, stays"]);
    // A name of several certificates says nothing about their generations.
    run(&mut ca.issue(&["other.example.com", "--name", "fourth"]), 0);
    let printed = run(&mut verb(&ca, &["rollback", "other.example.com"]), 2);
    assert_has(&printed, &["fourth, third; nothing was rolled back"]);
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--now"]), 0);
    assert_has(
        &printed,
        &["example.com_rsa, for the other key, is not revoked"],
    );
    assert!(
        status(&ca, NAME)["revoked"]
            .as_object()
            .is_some_and(|all| !all.is_empty())
    );
    for other in [RSA, "third", "fourth"] {
        let revoked = status(&ca, other)["revoked"].clone();
        assert!(
            revoked.as_object().is_none_or(serde_json::Map::is_empty),
            "{other}: {revoked}"
        );
    }
}

#[test]
fn pending_revocation_is_shown_and_given_up() {
    let ca = EmbeddedCa::start();
    let (hook, broken) = (ca.path("hook"), ca.path("broken"));
    make_script(&hook, &format!("test ! -e {}", broken.display()));
    let deploy = format!("exec:{}", hook.display());
    run(&mut ca.issue(&[NAME, "--deploy", &deploy]), 0);
    std::fs::write(&broken, "").unwrap();
    let printed = run(&mut verb(&ca, &["revoke", NAME]), 7);
    assert_has(&printed, &["certs revoke example.com --cancel gives it up"]);
    let printed = run(&mut verb(&ca, &["status"]), 0);
    assert_has(
        &printed,
        &[
            "to be revoked once",
            "certs revoke example.com --cancel gives it up",
        ],
    );
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--cancel"]), 0);
    assert_has(&printed, &["example.com: the revocation is given up"]);
    assert!(!run(&mut verb(&ca, &["status"]), 0).contains("to be revoked"));
    std::fs::remove_file(&broken).unwrap();
    run(&mut ca.issue(&[NAME, "--deploy", &deploy]), 0);
    assert_eq!(ca.script.count(Endpoint::Revocation), 0);
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--cancel"]), 2);
    assert_has(
        &printed,
        &[
            "no revocation of example.com is pending",
            "hint: certs status",
        ],
    );
    run(&mut verb(&ca, &["revoke", NAME, "--cancel", "--now"]), 2);
    // One that the CA has not done, beside a sidecar.
    let sidecar = Sidecar::start(&ca, &["side.example.com"]);
    until("the sidecar", || sidecar.readiness() == 200);
    let down = Fault::problem(500, "serverInternal", "down");
    ca.script.add(Endpoint::Revocation, Which::Every, down);
    run(&mut verb(&ca, &["revoke", NAME, "--now"]), 3);
    let printed = run(&mut verb(&ca, &["revoke", NAME, "--cancel"]), 0);
    assert_has(&printed, &["the revocation is given up"]);
    assert!(
        status(&ca, NAME)
            .get("to_be_revoked")
            .is_none_or(Value::is_null)
    );
    sidecar.stop();
}

/// Makes a key and a signing request of `openssl req` for `names`; `None` without that program.
fn openssl_request(
    directory: &Path,
    key: &[&str],
    names: &str,
    options: &[&str],
) -> Option<PathBuf> {
    let (file, csr) = (directory.join("openssl.key"), directory.join("openssl.csr"));
    let mut genpkey = Command::new("openssl");
    genpkey
        .arg("genpkey")
        .args(key)
        .arg("-out")
        .arg(&file)
        .output()
        .ok()?;
    let mut req = Command::new("openssl");
    req.args(["req", "-new", "-subj", "/", "-key"])
        .arg(&file)
        .arg("-out")
        .arg(&csr);
    req.args(["-addext", &format!("subjectAltName={names}")])
        .args(options);
    let output = req.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(csr)
}

const P256: [&str; 4] = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn new_request(ca: &EmbeddedCa, name: &str) -> Option<PathBuf> {
    let made = openssl_request(&ca.path(""), &P256, "DNS:example.com", &[]);
    if made.is_none() {
        eprintln!("SKIPPED: openssl is not installed");
    }
    let file = ca.path(name);
    std::fs::rename(made?, &file).unwrap();
    Some(file)
}

/// `certs csr FILE` against this CA.
fn csr(ca: &EmbeddedCa, file: &Path, arguments: &[&str]) -> Command {
    let issue = ca.issue(arguments);
    let mut command = certs(&ca.path(""));
    command.arg("csr").arg(file).args(issue.get_args().skip(1));
    command
}

#[test]
fn revoked_key_is_refused_under_every_name() {
    let ca = EmbeddedCa::start();
    let Some(request) = new_request(&ca, "one.csr") else {
        return;
    };
    for name in ["one", "two"] {
        run(&mut csr(&ca, &request, &["--name", name]), 0);
    }
    let printed = run(
        &mut verb(
            &ca,
            &["revoke", "one", "--now", "--reason", "keycompromise"],
        ),
        0,
    );
    assert_has(
        &printed,
        &["two, with the same key, is not revoked; hint: certs revoke two --reason keycompromise"],
    );
    // What replaces it: no renewal with its request can.
    assert_has(
        &printed,
        &["hint: certs csr FILE --name one with the request of a new key replaces it"],
    );
    let shown = run(&mut verb(&ca, &["status", "one"]), 0);
    assert_has(
        &shown,
        &["certs csr FILE --name one with the request of a new key replaces it"],
    );
    for printed in [&printed, &shown] {
        assert!(!printed.contains("certs renew one"), "{printed}");
    }
    let orders = ca.script.count(Endpoint::NewOrder);
    let refused = |command: &mut Command| {
        let printed = run(command, 2);
        assert_has(
            &printed,
            &[
                "the key of this signing request was revoked",
                "make a new key",
            ],
        );
    };
    refused(&mut verb(&ca, &["renew", "two", "--force"]));
    refused(&mut csr(&ca, &request, &["--name", "three"]));
    run(&mut verb(&ca, &["delete", "one", "--yes"]), 0);
    refused(&mut csr(&ca, &request, &["--name", "four"]));
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders);
    let Some(new) = new_request(&ca, "new.csr") else {
        return;
    };
    run(&mut csr(&ca, &new, &["--name", "two"]), 0);
}

#[test]
fn key_that_was_revoked_by_its_files_is_not_kept() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, "--reuse-key"]), 0);
    let live = ca.path("out/live/example.com");
    let [cert, key] = ["cert.pem", "privkey.pem"].map(|name| {
        std::fs::copy(live.join(name), ca.path(name)).unwrap();
        ca.path(name)
    });
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    let read = || std::fs::read(live.join("privkey.pem")).unwrap();
    assert_eq!(read(), std::fs::read(&key).unwrap());
    let mut revoke = verb(
        &ca,
        &["revoke", "--ca", &ca.server.directory_url(), "--cert-file"],
    );
    revoke
        .arg(&cert)
        .arg("--key-file")
        .arg(&key)
        .arg("--ca-root");
    run(revoke.arg(ca.path("root.pem")), 0);
    let printed = run(&mut verb(&ca, &["renew", NAME, "--force"]), 0);
    assert_has(&printed, &["this order ignores reuse_key"]);
    assert_ne!(read(), std::fs::read(&key).unwrap());
}

#[test]
fn signing_request_that_a_private_ca_takes_is_issued_and_a_weak_one_is_not_sent() {
    let ca = EmbeddedCa::start();
    let rsa = |bits: &'static str| vec!["-algorithm", "RSA", "-pkeyopt", bits];
    let small = rsa("rsa_keygen_bits:2048");
    let p521 = vec!["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"];
    let pss = vec![
        "-sha512",
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sigopt",
        "rsa_pss_saltlen:-1",
    ];
    let many: Vec<String> = (0..101).map(|n| format!("DNS:n{n}.example.com")).collect();
    let many = many.join(",");
    let name = "DNS:example.com";
    for (key, names, options, cause) in [
        (&small, name, vec!["-sha1"], "SHA-1"),
        (&rsa("rsa_keygen_bits:4104"), name, vec![], "4104 bits"),
        (&small, &*many, vec![], "101 names"),
        (
            &small,
            "DNS:example.com,email:a@example.com",
            vec![],
            "neither a DNS name nor an IP address",
        ),
    ] {
        let Some(file) = openssl_request(&ca.path(""), key, names, &options) else {
            return eprintln!("SKIPPED: openssl is not installed");
        };
        let printed = run(&mut csr(&ca, &file, &[]), 2);
        assert_has(&printed, &[cause, "hint: "]);
        for option in ["--key ", "--reuse-key"] {
            assert!(!printed.contains(option), "{printed}");
        }
    }
    assert_eq!(ca.script.count(Endpoint::Directory), 0);
    for (key, options, name) in [
        (&p521, vec!["-sha512"], "p521"),
        (&small, vec!["-sha512"], "sha512"),
        (&small, pss, "pss"),
    ] {
        let file = openssl_request(&ca.path(""), key, "DNS:example.com", &options).unwrap();
        let printed = run(&mut csr(&ca, &file, &["--name", name]), 0);
        assert_has(&printed, &[": issued; generation 0001"]);
    }
}

#[test]
fn hints_for_a_signing_request_name_no_option_of_issue() {
    let ca = EmbeddedCa::start();
    let key = openssl_request(
        &ca.path(""),
        &P256,
        "DNS:example.com,DNS:www.example.com",
        &[],
    );
    let Some(both) = key else {
        return eprintln!("SKIPPED: openssl is not installed");
    };
    run(&mut csr(&ca, &both, &[]), 0);
    let one = openssl_request(&ca.path(""), &P256, "DNS:example.com", &[]).unwrap();
    let printed = run(&mut csr(&ca, &one, &[]), 2);
    assert_has(
        &printed,
        &[
            "also has www.example.com",
            "make a new signing request for example.com www.example.com, then certs csr FILE",
            "certs csr FILE --name example.com",
        ],
    );
    assert!(!printed.contains("certs issue"), "{printed}");
    for (kind, hint) in [
        (
            "badCSR",
            "make a new signing request, such as with a P-256 key",
        ),
        (
            "badPublicKey",
            "make a new signing request, such as with a P-256 key",
        ),
        (
            "rejectedIdentifier",
            "make a new signing request without that name",
        ),
    ] {
        let refusal = Fault::problem(400, kind, "no");
        ca.script.add(Endpoint::Finalize, Which::Every, refusal);
        let printed = run(
            &mut csr(&ca, &one, &["--name", kind.to_lowercase().as_str()]),
            4,
        );
        assert_has(&printed, &[hint]);
        assert!(
            !printed.contains("--key") && !printed.contains("--reuse-key"),
            "{printed}"
        );
        ca.script.clear();
    }
}

#[test]
fn address_that_the_ca_refuses_exits_4_with_a_hint() {
    let ca = EmbeddedCa::start();
    for kind in ["rejectedIdentifier", "unsupportedIdentifier"] {
        let refusal = Fault::problem(400, kind, "addresses are not signed here");
        ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
        let printed = run(&mut ca.issue(&["127.0.0.1"]), 4);
        assert_has(
            &printed,
            &[
                "addresses are not signed here",
                "hint: ",
                "remove that name, or use another CA",
            ],
        );
        ca.script.clear();
    }
}

#[test]
fn deletion_removes_records_that_an_order_has_left_and_names_those_that_stay() {
    let ca = EmbeddedCa::start();
    let (program, records, broken) = (ca.path("change-dns"), ca.path("records"), ca.path("broken"));
    std::fs::create_dir(&records).unwrap();
    make_script(
        &program,
        &format!(
            "case $1 in\npresent) touch {records}/$3 ;;\ncleanup) test ! -e {broken} && rm -f {records}/$3 ;;\nesac",
            records = records.display(),
            broken = broken.display()
        ),
    );
    let left = || std::fs::read_dir(&records).unwrap().count();
    let nowhere = format!("127.0.0.1:{}", free_port());
    std::fs::write(&broken, "").unwrap();
    for name in ["a.example.com", "b.example.com"] {
        // The CA finds no zone, and the clean-up fails.
        let mut issue = ca.issue(&[name, "--dns", "exec", "--resolver", &nowhere]);
        run(issue.env("CERTS_DNS_EXEC_PROGRAM", &program), 5);
    }
    assert_eq!(left(), 2);
    let printed = run(&mut verb(&ca, &["delete", "a.example.com", "--yes"]), 0);
    assert_has(
        &printed,
        &[
            "remove the record _acme-challenge.a.example.com. TXT \"",
            "from its zone by hand",
        ],
    );
    assert_eq!(left(), 2);
    std::fs::remove_file(&broken).unwrap();
    // Nothing is removed before the question is answered.
    run(&mut verb(&ca, &["delete", "b.example.com"]), 2);
    assert_eq!(left(), 2);
    let printed = run(&mut verb(&ca, &["delete", "b.example.com", "--yes"]), 0);
    assert_has(
        &printed,
        &["removed the record _acme-challenge.b.example.com. TXT \""],
    );
    assert_eq!(left(), 1);
}

#[test]
fn reload_changes_the_proxy_and_a_command_says_that_its_own_is_not_used() {
    let (ca, first, second) = (
        EmbeddedCa::start(),
        Proxy::start(Manner::Tunnel),
        Proxy::start(Manner::Tunnel),
    );
    let (file, admin) = (ca.path("run.toml"), free_port());
    let configure = |proxy: &str| std::fs::write(&file, format!("proxy = '{proxy}'\n")).unwrap();
    configure(&first.url(""));
    let mut command = configured(&ca, &[NAME], admin);
    let sidecar = Sidecar::start_as(&ca, command.arg("--config").arg(&file), admin);
    until("readiness", || sidecar.readiness() == 200);
    assert!(!first.asked().is_empty() && second.asked().is_empty());
    let reload = |proxy: &str, words: &str| {
        configure(proxy);
        sidecar.running.signal(Signal::HUP);
        until(words, || sidecar.log().contains(words));
    };
    reload(
        &second.url(""),
        &format!("is reached through the proxy {}", second.url("")),
    );
    let before = first.asked().len();
    run(&mut verb(&ca, &["renew", NAME, "--force"]), 0);
    assert_eq!(
        first.asked().len(),
        before,
        "a connection of before was used"
    );
    assert!(!second.asked().is_empty());
    // One that cannot be used is refused, and the last one stays.
    reload("socks5://127.0.0.1:1", "the old configuration stays");
    let other = ["other.example.com", "--proxy", "http://127.0.0.1:1"];
    let printed = run(&mut ca.issue(&other), 0);
    assert_has(
        &printed,
        &[
            "--proxy: not used: the running `certs run`",
            "hint: set it in its configuration",
        ],
    );
    assert_eq!(first.asked().len(), before, "the old proxy came back");
    assert!(
        !sidecar.log().contains("the proxy and"),
        "{}",
        sidecar.log()
    );
    sidecar.stop();
}

/// A resolver to which every name below `lab.test` is this machine; it keeps the names that it was asked for. It ends
/// with the tests.
fn resolver() -> (String, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let names = asked.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let request = Message::from_vec(&buffer[..length]).unwrap();
            let question = request.queries[0].clone();
            let mut reply = Message::response(request.id, request.op_code);
            reply.add_query(question.clone());
            let name = question.name().to_ascii();
            let is_zone = name == "lab.test.";
            let found = match question.query_type() {
                RecordType::A if name.ends_with("lab.test.") => {
                    Some(RData::A(A(Ipv4Addr::LOCALHOST)))
                }
                RecordType::SOA if is_zone => {
                    let name = question.name();
                    Some(RData::SOA(SOA::new(
                        name.clone(),
                        name.clone(),
                        1,
                        60,
                        60,
                        60,
                        60,
                    )))
                }
                _ => None,
            };
            if let Some(found) = found {
                reply.add_answer(Record::from_rdata(question.name().clone(), 60, found));
            }
            names.lock().unwrap().push(name);
            let _ = socket.send_to(&reply.to_vec().unwrap(), from);
        }
    });
    (address, asked)
}

#[test]
fn named_resolver_finds_the_ca_the_proxy_and_the_endpoint() {
    let ca = EmbeddedCa::with(|settings| {
        settings.base_url = settings.base_url.replace("127.0.0.1", "ca.lab.test");
    });
    let (resolver, asked) = resolver();
    let hook = ca.path("hook");
    make_script(&hook, "true");
    let deploy = format!("--deploy=exec:{}", hook.display());
    let unreached = format!("--verify=served.lab.test:{}", free_port());
    let resolver = ["--resolver", &resolver];
    // Nothing listens at the endpoint.
    run(ca.issue(&[NAME, &deploy, &unreached]).args(resolver), 7);
    let proxy = Proxy::start(Manner::Tunnel);
    let through = proxy.url("").replace("127.0.0.1", "proxy.lab.test");
    let mut issue = ca.issue(&[NAME, "--force", &deploy, &unreached, "--proxy", &through]);
    // The tunnel leads to a name that only the resolver knows.
    run(issue.args(resolver), 3);
    assert!(!proxy.asked().is_empty());
    let asked = asked.lock().unwrap().clone();
    for name in ["ca", "served", "proxy"] {
        assert!(
            asked.contains(&format!("{name}.lab.test.")),
            "{name}: {asked:?}"
        );
    }
}

/// A server at a port of this machine that answers each connection as a web server does, and closes it. It ends with
/// the tests.
fn answering() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        }
    });
    port
}

#[test]
fn named_resolver_finds_deploy_targets_stores_and_acme_dns() {
    let ca = EmbeddedCa::start();
    let (resolver, asked) = resolver();
    let (resolver, port) = (["--resolver", &resolver], answering());
    for (target, code) in [
        (format!("http://hook.lab.test:{port}/"), 0),
        (format!("caddy:caddy.lab.test:{port}"), 0),
        // The one does not speak as HAProxy does, and the other is an unfiltered API.
        (format!("haproxy:haproxy.lab.test:{port}"), 7),
        ("docker:web".to_owned(), 7),
    ] {
        let mut issue = ca.issue(&[NAME, "--force", &format!("--deploy={target}")]);
        issue.env("DOCKER_HOST", format!("tcp://docker.lab.test:{port}"));
        run(issue.args(resolver), code);
    }
    // None of them has TLS, which all of them must have.
    let seal = ca.path("seal.key");
    std::fs::write(&seal, format!("{}=\n", "A".repeat(43))).unwrap();
    std::fs::set_permissions(&seal, PermissionsExt::from_mode(0o600)).unwrap();
    for store in [
        format!("etcds://etcd.lab.test:{port}/certs"),
        format!("postgres://certs@postgres.lab.test:{port}/certs"),
        "s3://bucket/certs".to_owned(),
    ] {
        let mut issue = verb(&ca, &["issue", NAME, "--store", &store]);
        issue
            .env("AWS_ENDPOINT_URL", format!("https://s3.lab.test:{port}"))
            .env("AWS_ACCESS_KEY_ID", "id")
            .env("AWS_SECRET_ACCESS_KEY", "secret")
            .env("CERTS_SEAL_KEY_FILE", &seal);
        run(issue.args(resolver), 8);
    }
    let mut issue = ca.issue(&["www.lab.test", "--dns", "acmedns"]);
    for (field, value) in [
        ("SERVER", format!("https://acme-dns.lab.test:{port}")),
        ("USERNAME", "user".to_owned()),
        ("PASSWORD", "password".to_owned()),
        ("SUBDOMAIN", "sub".to_owned()),
    ] {
        issue.env(format!("CERTS_DNS_ACMEDNS_{field}"), value);
    }
    run(issue.args(resolver), 5);
    let asked = asked.lock().unwrap().clone();
    for name in [
        "hook", "caddy", "haproxy", "docker", "etcd", "postgres", "s3", "acme-dns",
    ] {
        let name = format!("{name}.lab.test.");
        assert!(asked.contains(&name), "{name}: {asked:?}");
    }
}

#[test]
fn next_run_removes_the_webroot_answer_of_a_killed_one() {
    let ca = EmbeddedCa::start();
    let (webroot, data) = (ca.path("webroot"), ca.path("data"));
    std::fs::create_dir(&webroot).unwrap();
    let answers = || {
        let found = std::fs::read_dir(webroot.join(".well-known/acme-challenge"));
        found.map_or(0, Iterator::count)
    };
    let issue = |names: &[&str]| {
        let mut command = verb(&ca, &["issue", "--agree-tos", "--webroot"]);
        command
            .arg(&webroot)
            .arg("--ca-root")
            .arg(ca.path("root.pem"));
        command
            .args(["--ca", &ca.server.directory_url()])
            .args(names);
        command
    };
    ca.script
        .add(Endpoint::Challenge, Which::Every, Fault::HangBefore);
    let mut issuing = Running::start(&mut issue(&[NAME]));
    until("the answer", || answers() == 1);
    let record = data.join("records").join(NAME).join("record.json");
    let record = || std::fs::read_to_string(&record).unwrap();
    assert!(record().contains("http-01"), "{}", record());
    issuing.kill();
    ca.script.clear();
    assert_eq!(answers(), 1);
    // Another order, with other tokens, whose answers no server serves.
    run(&mut issue(&[NAME, "www.example.com"]), 5);
    assert_eq!(answers(), 0);
}
