//! What real CAs do beside RFC 8555, none of which is a reason to fail: long waits, orders that stay pending,
//! lost connections, redirects, relative URLs, unusual chains, and accounts that change.

use std::process::Command;
use std::time::{Duration, Instant};

use certs::certificate::SecretBytes;
use serde_json::json;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Chain, Endpoint, Fault, Which};
use crate::support::{certs, run};

const NAME: &str = "example.com";
const DAY: &str = "86400";

/// Runs `command` and returns its output and how long it took.
#[allow(clippy::disallowed_methods)] // the time of a process
fn timed(command: &mut Command, code: i32) -> (String, Duration) {
    let begun = Instant::now();
    let printed = run(command, code);
    (printed, begun.elapsed())
}

fn full_chain(ca: &EmbeddedCa) -> String {
    let path = ca.path("out/live").join(NAME).join("fullchain.pem");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn retry_after_of_a_day_does_not_end_the_run() {
    let ca = EmbeddedCa::start();
    for endpoint in [Endpoint::Challenge, Endpoint::Order, Endpoint::Finalize] {
        let wait = Fault::Header("retry-after", DAY.to_owned());
        ca.script.add(endpoint, Which::Every, wait);
    }
    // The CA validates and signs slowly.
    for nth in [1, 2] {
        let pending = Fault::Field("/status", "pending".to_owned());
        ca.script.add(Endpoint::Order, Which::Nth(nth), pending);
    }
    let (_, took) = timed(&mut ca.issue(&[NAME]), 0);
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[test]
fn failed_name_of_a_pending_order_exits_5_within_seconds() {
    for (status, challenge) in [
        ("invalid", "invalid"),
        ("pending", "processing"),
        ("pending", "pending"),
    ] {
        let ca = EmbeddedCa::start();
        let pending = Fault::Field("/status", "pending".to_owned());
        ca.script.add(Endpoint::Order, Which::Every, pending);
        let failed = Fault::FailedName(status, challenge);
        ca.script
            .add(Endpoint::Authorization, Which::From(2), failed);
        let (printed, took) = timed(&mut ca.issue(&[NAME]), 5);
        assert!(printed.contains("port 80 is closed"), "{printed}");
        assert!(
            took < Duration::from_secs(30),
            "{status} {challenge}: {took:?}"
        );
    }
}

#[test]
fn conflict_on_a_challenge_that_is_started_is_polled() {
    let ca = EmbeddedCa::start();
    ca.script
        .add(Endpoint::Challenge, Which::Nth(1), Fault::DropAfter);
    let conflict = Fault::problem(409, "conflict", "the challenge is processing");
    ca.script.add(Endpoint::Challenge, Which::Nth(2), conflict);
    run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(ca.script.count(Endpoint::Challenge), 2);
}

#[test]
fn one_failure_at_each_step_does_not_end_the_run() {
    for fault in [
        Fault::html(502),
        Fault::DropBefore,
        Fault::Reply(503, "text/plain", "busy".to_owned(), Some("2")),
    ] {
        let ca = EmbeddedCa::start();
        for endpoint in [
            Endpoint::Directory,
            Endpoint::NewAccount,
            Endpoint::NewOrder,
            Endpoint::Authorization,
            Endpoint::Challenge,
            Endpoint::Order,
            Endpoint::Finalize,
            Endpoint::Certificate,
        ] {
            ca.script.add(endpoint, Which::Nth(1), fault.clone());
        }
        run(&mut ca.issue(&[NAME]), 0);
        assert_eq!(ca.script.committed(Endpoint::NewOrder), 1, "{fault:?}");
    }
    let ca = EmbeddedCa::start();
    ca.script
        .add(Endpoint::NewOrder, Which::Every, Fault::html(502));
    let (_, took) = timed(&mut ca.issue(&[NAME]), 3);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert!(ca.script.count(Endpoint::NewOrder) <= 4);
}

#[test]
fn redirected_directory_relative_urls_and_unusable_renewal_info_are_borne() {
    let ca = EmbeddedCa::start();
    ca.script
        .add(Endpoint::Directory, Which::Nth(1), Fault::Redirect);
    for endpoint in [
        Endpoint::NewAccount,
        Endpoint::NewOrder,
        Endpoint::Authorization,
        Endpoint::Challenge,
        Endpoint::Order,
        Endpoint::Finalize,
    ] {
        ca.script.add(endpoint, Which::Every, Fault::RelativeUrls);
    }
    run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(ca.script.count(Endpoint::Directory), 2);

    for unusable in ["", "http://ca.test/renewal-info", "no url"] {
        let ca = EmbeddedCa::start();
        let unusable = Fault::Field("/renewalInfo", unusable.to_owned());
        ca.script.add(Endpoint::Directory, Which::Every, unusable);
        run(&mut ca.issue(&[NAME]), 0);
    }
}

#[test]
fn action_of_the_user_is_shown_with_its_page() {
    let ca = EmbeddedCa::start();
    let kind = "urn:ietf:params:acme:error:userActionRequired";
    let body = json!({"type": kind, "detail": "new terms", "instance": "https://ca.test/agree/7"});
    let refusal = Fault::Reply(403, "application/problem+json", body.to_string(), None);
    ca.script.add(Endpoint::NewOrder, Which::Every, refusal);
    let printed = run(&mut ca.issue(&[NAME]), 4);
    assert!(printed.contains("https://ca.test/agree/7"), "{printed}");
}

#[test]
fn unusual_chain_and_further_names_are_accepted_and_warned_of_once() {
    for (how, blocks) in [
        (Chain::Swapped, 2),
        (Chain::Doubled, 2),
        (Chain::WithUnrelated, 2),
        (Chain::MoreNames, 2),
    ] {
        let ca = EmbeddedCa::start();
        ca.script
            .add(Endpoint::Certificate, Which::Every, Fault::Chain(how));
        let printed = run(&mut ca.issue(&[NAME]), 0);
        assert_eq!(
            printed.matches("is accepted, but").count(),
            1,
            "{how:?}: {printed}"
        );
        let chain = full_chain(&ca);
        assert_eq!(chain.matches("BEGIN").count(), blocks, "{how:?}");
        let leaf = ca.path("out/live").join(NAME).join("cert.pem");
        let leaf = std::fs::read_to_string(leaf).unwrap();
        assert!(chain.starts_with(&leaf), "{how:?}");
        // It is the right one: nothing is due.
        let printed = run(&mut ca.issue(&[NAME]), 0);
        assert_eq!(ca.script.count(Endpoint::NewOrder), 1, "{how:?}: {printed}");
    }
}

#[test]
fn unusable_certificate_is_not_ordered_again_on_request() {
    let ca = EmbeddedCa::start();
    let wrong = Fault::Chain(Chain::OfAnotherKey);
    ca.script.add(Endpoint::Certificate, Which::Every, wrong);
    run(&mut ca.issue(&[NAME]), 3);
    for _ in 0..5 {
        let printed = run(&mut ca.issue(&[NAME]), 6);
        assert!(printed.contains("--force"), "{printed}");
    }
    assert_eq!(ca.script.count(Endpoint::NewOrder), 1);
    ca.script.clear();
    run(&mut ca.issue(&[NAME, "--force"]), 0);
}

#[test]
fn external_account_binding_is_needed_once_and_has_its_own_hint() {
    let hmac = b"0123456789abcdef0123456789abcdef";
    let ca = EmbeddedCa::with(|settings| {
        let key = SecretBytes::new(hmac.to_vec());
        settings.external_accounts.insert("kid-1".to_owned(), key);
    });
    let file = ca.path("hmac");
    let bound = [
        NAME,
        "--eab-kid=kid-1",
        &format!("--eab-hmac-file={}", file.display()),
    ];
    let printed = run(&mut ca.issue(&bound), 2);
    assert!(
        printed.contains("hmac") && printed.contains("hint:"),
        "{printed}"
    );
    assert_eq!(ca.script.count(Endpoint::NewAccount), 0);

    std::fs::write(&file, "d3JvbmcgaG1hYyBrZXkgb2YgMzIgYnl0ZXMgbG9uZw").unwrap();
    let printed = run(&mut ca.issue(&bound), 4);
    assert!(
        printed.contains("does not accept the external account binding"),
        "{printed}"
    );

    std::fs::write(&file, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY").unwrap();
    run(&mut ca.issue(&bound), 0);
    std::fs::remove_file(&file).unwrap();
    run(&mut ca.issue(&[bound[0], bound[1], bound[2], "--force"]), 0);
    run(&mut ca.issue(&["www.example.com"]), 0);
    assert_eq!(ca.script.accounts(), 1);
}

#[test]
fn changed_email_is_sent_to_the_ca() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME, "--email=a@example.com"]), 0);
    let others = ca.script.count(Endpoint::Account);
    run(
        &mut ca.issue(&[NAME, "--email=b@example.com", "--force"]),
        0,
    );
    run(
        &mut ca.issue(&[NAME, "--email=b@example.com", "--force"]),
        0,
    );
    assert_eq!(ca.script.count(Endpoint::Account), others + 1);
    // Nothing is due.
    let orders = ca.script.count(Endpoint::NewOrder);
    run(&mut ca.issue(&[NAME, "--email=c@example.com"]), 0);
    run(&mut ca.issue(&[NAME, "--email=c@example.com"]), 0);
    assert_eq!(ca.script.count(Endpoint::Account), others + 2);
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders);
    assert_eq!(ca.script.accounts(), 1);
}

#[test]
fn spellings_of_the_directory_url_are_one_ca() {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    let url = ca.server.directory_url();
    let host = url.strip_prefix("https://").unwrap();
    for spelling in [
        format!("HTTPS://{host}"),
        format!("{url}#top"),
        format!("https://user:pw@{host}"),
    ] {
        let mut command = certs(&ca.path(""));
        command
            .args(["issue", NAME, "--agree-tos", "--ca", &spelling, "--ca-root"])
            .arg(ca.path("root.pem"))
            .args(["--http-listen", &format!("127.0.0.1:{}", ca.http_port)]);
        let printed = run(&mut command, 0);
        assert!(!printed.contains("pw"), "{printed}");
    }
    assert_eq!(ca.script.count(Endpoint::NewOrder), 1);
    assert_eq!(ca.script.accounts(), 1);
    let accounts = ca.path("data/accounts").read_dir().unwrap();
    assert_eq!(accounts.count(), 1);
}
