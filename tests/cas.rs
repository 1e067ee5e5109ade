//! What public CAs want before anything is sent, the roots of this machine, and the CAA records of refused names.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::CAA;
use hickory_proto::rr::{Name, RData, Record};

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Endpoint, Fault, Which};
use crate::support::proxy::{Manner, Proxy};
use crate::support::sidecar::{Sidecar, configured};
use crate::support::{certs, free_port, run, until};

const NAME: &str = "example.com";

#[test]
fn public_cas_say_what_they_want_before_anything_is_sent() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(Manner::Answer(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    ));
    let issue = |arguments: &[&str]| {
        let mut command = certs(directory.path());
        command.args(["issue", "--agree-tos", "--http-listen=127.0.0.1:0"]);
        command.args(arguments).env("HTTPS_PROXY", proxy.url(""));
        command
    };
    let key = directory.path().join("hmac");
    std::fs::write(&key, "c2VjcmV0").unwrap();
    let file = format!("--eab-hmac-file={}", key.display());
    let bound = ["--eab-kid=kid", file.as_str()];
    let email = "--email=me@example.com";
    for (arguments, said) in [
        (
            vec![NAME, "--ca=google", email],
            &["gcloud publicca", "--eab-kid"][..],
        ),
        (
            vec![NAME, "--ca=actalis", email],
            &["actalis.com", "--eab-hmac-file"],
        ),
        (
            vec![NAME, "--ca=zerossl"],
            &["add --email", "app.zerossl.com"],
        ),
        (
            vec![NAME, "--ca=sslcom-rsa"],
            &["without an e-mail address", "API credentials"],
        ),
        (
            vec![NAME, "--ca=sslcom-ecc", bound[0], bound[1]],
            &["without an e-mail address"],
        ),
        (
            vec![
                "*.example.com",
                "--ca=actalis",
                "--dns=self",
                email,
                bound[0],
                bound[1],
            ],
            &["*.example.com: actalis signs no wildcards"],
        ),
        (
            vec![NAME, "--ca=https://ca.test/dir", "--fallback-ca=google"],
            &[
                "google wants",
                "--fallback-eab-kid",
                "--fallback-eab-hmac-file",
            ],
        ),
        (
            vec![NAME, "--ca=https://acme.ssl.com/sslcom-dv-rsa", email],
            &["sslcom-rsa wants an external account binding"],
        ),
    ] {
        let printed = run(&mut issue(&arguments), 2);
        for words in said {
            assert!(printed.contains(words), "{arguments:?}: {words}: {printed}");
        }
    }
    assert_eq!(proxy.asked(), [""; 0]);
    // With them, each CA is asked.
    for (arguments, host) in [
        (vec![NAME, "--ca=zerossl", email], "acme.zerossl.com"),
        (
            vec![NAME, "--ca=google", bound[0], bound[1]],
            "dv.acme-v02.api.pki.goog",
        ),
        (
            vec![NAME, "--ca=sslcom-rsa", email, bound[0], bound[1]],
            "acme.ssl.com",
        ),
    ] {
        let printed = run(&mut issue(&arguments), 3);
        let asked = proxy.asked().pop().unwrap();
        assert!(
            asked.starts_with(&format!("CONNECT {host}:443 ")),
            "{asked}"
        );
        let price = "charges an account with funds";
        assert_eq!(printed.contains(price), host == "acme.ssl.com", "{printed}");
    }
}

/// `certs issue` that trusts the CA by these variables alone.
fn trusting(ca: &EmbeddedCa, variables: &[(&str, String)]) -> Command {
    let mut command = certs(&ca.path(""));
    command.args([
        "issue",
        NAME,
        "--agree-tos",
        "--ca",
        &ca.server.directory_url(),
    ]);
    command.args([
        "--force",
        "--http-listen",
        &format!("127.0.0.1:{}", ca.http_port),
    ]);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

#[test]
fn roots_of_this_machine_are_trusted_beside_those_that_are_built_in() {
    let ca = EmbeddedCa::start();
    let root = ca.path("root.pem").display().to_string();
    let hashed = ca.path("hashed");
    std::fs::create_dir(&hashed).unwrap();
    std::fs::copy(&root, hashed.join("0a1b2c3d.0")).unwrap();
    let hashed = hashed.display().to_string();
    let printed = run(&mut trusting(&ca, &[]), 3);
    assert!(printed.contains("--ca-root"), "{printed}");
    let absent = ("SSL_CERT_FILE", "/absent/bundle.pem".to_owned());
    let printed = run(&mut trusting(&ca, std::slice::from_ref(&absent)), 3);
    assert!(
        printed.contains("SSL_CERT_FILE: /absent/bundle.pem is not read"),
        "{printed}"
    );
    run(&mut trusting(&ca, &[("SSL_CERT_FILE", root.clone())]), 0);
    run(&mut trusting(&ca, &[("SSL_CERT_DIR", hashed), absent]), 0);
    // In the sandbox, too.
    let admin = free_port();
    let mut command = configured(&ca, &["www.example.com"], admin);
    command
        .env_remove("CERTS_CA_ROOT")
        .env("SSL_CERT_FILE", root);
    let sidecar = Sidecar::start_as(&ca, &mut command, admin);
    let live = ca.path("out/live/www.example.com/cert.pem");
    let issued = ca.script.count(Endpoint::Certificate);
    until("a certificate", || {
        live.exists() && ca.script.count(Endpoint::Certificate) > issued
    });
    sidecar.stop();
}

/// A resolver whose only records are these CAA values of `example.com`. It ends with the tests.
fn resolver(values: &'static [&'static str]) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(question.id, question.op_code);
            reply.queries.clone_from(&question.queries);
            let name = question.queries[0].name().clone();
            if name == Name::from_ascii("example.com.").unwrap() {
                for value in values {
                    let mut caa = CAA::new_issue(false, None, Vec::new());
                    caa.value = value.as_bytes().to_vec();
                    reply.add_answer(Record::from_rdata(name.clone(), 60, RData::CAA(caa)));
                }
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            let _ = socket.send_to(&reply.to_vec().unwrap(), from);
        }
    });
    address
}

#[test]
fn caa_records_of_a_refused_name_are_printed_as_advice() {
    let ca = EmbeddedCa::start();
    let forbids = resolver(&["other.test", "third.test; validationmethods=dns-01"]);
    for (kind, is_shown) in [
        ("caa", true),
        ("unauthorized", true),
        ("rejectedIdentifier", false),
    ] {
        let refusal = Fault::problem(403, kind, "not this name");
        ca.script.add(Endpoint::Finalize, Which::Every, refusal);
        let mut issue = ca.issue(&["www.example.com", "--force"]);
        let printed = run(issue.arg(format!("--resolver={forbids}")), 4);
        let shown = "CAA records at example.com: 0 issue \"other.test\", 0 issue \"third.test; validationmethods=dns-01\"";
        assert_eq!(printed.contains(shown), is_shown, "{printed}");
        ca.script.clear();
        // CAA records that forbid the CA do not prevent an order.
        let mut issue = ca.issue(&["www.example.com", "--force"]);
        run(issue.arg(format!("--resolver={forbids}")), 0);
    }
}

#[test]
#[allow(clippy::disallowed_methods)] // the time of a process
fn silent_resolver_delays_the_report_of_a_refusal_by_seconds_only() {
    let ca = EmbeddedCa::start();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let refusal = Fault::problem(403, "caa", "not this name");
    ca.script.add(Endpoint::Finalize, Which::Every, refusal);
    let mut issue = ca.issue(&["www.example.com"]);
    let begun = Instant::now();
    let printed = run(
        issue.arg(format!("--resolver={}", silent.local_addr().unwrap())),
        4,
    );
    assert!(begun.elapsed() < Duration::from_secs(25), "{printed}");
    assert!(
        printed.contains("add the value from the CA's documentation"),
        "{printed}"
    );
}
