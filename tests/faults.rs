//! Faults of a CA. In each case: the exit code and message of the contract, the live pair unchanged, and once
//! the fault is gone the same command succeeds without a second order.

use std::time::Duration;

use crate::support::embedded::EmbeddedCa;
use crate::support::faults::{Chain, Endpoint, Fault, Which};
use crate::support::oracle::Oracle;
use crate::support::{Running, run, until};

const NAME: &str = "example.com";

/// The files that a server reads, byte for byte.
fn live(ca: &EmbeddedCa) -> Vec<Vec<u8>> {
    [
        "privkey.pem",
        "fullchain.pem",
        "cert.pem",
        "chain.pem",
        "combined.pem",
    ]
    .map(|name| std::fs::read(ca.path("out/live").join(NAME).join(name)).unwrap_or_default())
    .into()
}

fn issued() -> EmbeddedCa {
    let ca = EmbeddedCa::start();
    run(&mut ca.issue(&[NAME]), 0);
    ca
}

/// How many more orders the command needs once the fault is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextRun {
    Resumes,
    OrdersAgain,
    /// Depends on whether the CA fetches the answer before or after its removal.
    Either,
}

/// Renews while every request to `endpoint` fails, then without the fault.
fn fails(ca: &EmbeddedCa, endpoint: Endpoint, fault: Fault, code: i32, then: NextRun) -> String {
    let case = format!("{endpoint:?} {fault:?}")
        .chars()
        .take(200)
        .collect::<String>();
    let before = live(ca);
    ca.script.add(endpoint, Which::Every, fault);
    let arguments = [NAME, "--force"];
    let output = ca.issue(&arguments).output().unwrap();
    let printed = crate::support::text(&output);
    assert_eq!(output.status.code(), Some(code), "{case}: {printed}");
    assert!(
        printed.contains("hint:") && printed.contains(NAME),
        "{case}: {printed}"
    );
    assert!(!printed.contains('\x1b'), "{case}: {printed:?}");
    assert_eq!(live(ca), before, "{case}: what was served has changed");

    ca.script.clear();
    let orders = ca.script.committed(Endpoint::NewOrder);
    let output = ca.issue(&arguments).output().unwrap();
    let after = crate::support::text(&output);
    assert_eq!(output.status.code(), Some(0), "after {case}: {after}");
    let more = ca.script.committed(Endpoint::NewOrder) - orders;
    let wanted = match then {
        NextRun::Resumes => 0..=0,
        NextRun::OrdersAgain => 1..=1,
        NextRun::Either => 0..=1,
    };
    assert!(wanted.contains(&more), "{more} after {case}: {after}");
    assert_ne!(live(ca), before, "after {case}: nothing new is served");
    printed
}

/// The steps of a renewal, in order. From the authorization on there is an order to resume.
const STEPS: [(Endpoint, NextRun); 6] = [
    (Endpoint::Directory, NextRun::OrdersAgain),
    (Endpoint::Authorization, NextRun::Resumes),
    (Endpoint::Challenge, NextRun::Resumes),
    (Endpoint::Order, NextRun::Resumes),
    (Endpoint::Finalize, NextRun::Resumes),
    (Endpoint::Certificate, NextRun::Resumes),
];

/// Tests the steps side by side, each with a CA of its own: a run that fails mostly waits.
fn at_every_step(test: impl Fn(&EmbeddedCa, Endpoint, NextRun) + Sync) {
    std::thread::scope(|scope| {
        for (endpoint, then) in STEPS {
            let test = &test;
            scope.spawn(move || test(&issued(), endpoint, then));
        }
    });
}

#[test]
fn lost_request_exits_3_and_is_retried() {
    at_every_step(|ca, endpoint, then| {
        fails(ca, endpoint, Fault::DropBefore, 3, then);
    });
    let ca = issued();
    fails(
        &ca,
        Endpoint::NewOrder,
        Fault::DropBefore,
        3,
        NextRun::OrdersAgain,
    );
}

#[test]
fn lost_reply_exits_3_and_order_continues() {
    at_every_step(|ca, endpoint, then| {
        let then = match endpoint {
            Endpoint::Challenge => NextRun::Either,
            _ => then,
        };
        let finalized = ca.script.committed(Endpoint::Finalize);
        fails(ca, endpoint, Fault::DropAfter, 3, then);
        let certificates = ca.script.committed(Endpoint::Finalize) - finalized;
        assert_eq!(certificates, 1, "{endpoint:?}: a duplicate certificate");
    });
}

#[test]
fn lost_reply_needs_only_one_more_run() {
    let ca = EmbeddedCa::start();
    ca.script
        .add(Endpoint::Finalize, Which::From(1), Fault::DropAfter);
    run(&mut ca.issue(&[NAME]), 3);
    ca.script.clear();
    run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(ca.script.count(Endpoint::NewOrder), 1);
    assert_eq!(ca.script.committed(Endpoint::Finalize), 1);
}

const ENDPOINTS: [Endpoint; 10] = [
    Endpoint::Directory,
    Endpoint::NewNonce,
    Endpoint::NewAccount,
    Endpoint::NewOrder,
    Endpoint::Authorization,
    Endpoint::Challenge,
    Endpoint::Order,
    Endpoint::Finalize,
    Endpoint::Certificate,
    Endpoint::RenewalInfo,
];

/// Drops the reply to the `nth` request to `endpoint` after the CA has acted. Returns whether there was such
/// a request.
fn lose_reply(ca: &EmbeddedCa, endpoint: Endpoint, nth: u32, first: &[&str]) -> bool {
    let case = format!("{endpoint:?} {nth} {first:?}");
    let counts = || {
        [endpoint, Endpoint::NewOrder, Endpoint::Finalize]
            .map(|endpoint| ca.script.committed(endpoint))
    };
    let before = counts();
    ca.script.add(endpoint, Which::Nth(nth), Fault::DropAfter);
    let output = ca.issue(first).output().unwrap();
    let printed = crate::support::text(&output);
    assert!(
        matches!(output.status.code(), Some(0 | 3)),
        "{case}: {printed}"
    );
    run(&mut ca.issue(&first[..2]), 0);
    ca.script.clear();
    let after = counts();
    let [reached, orders, certificates] = [0, 1, 2].map(|index| after[index] - before[index]);
    assert_eq!(certificates, 1, "{case}: {printed}");
    match endpoint {
        // The URL was lost with the reply.
        Endpoint::NewOrder => assert_eq!(orders, 2, "{case}: {printed}"),
        // The CA may have validated when the listener was gone.
        Endpoint::Challenge => assert!(orders <= 2, "{case}: {printed}"),
        _ => assert_eq!(orders, 1, "{case}: {printed}"),
    }
    let oracle = Oracle::new(&ca.path(""), &first[..2]);
    oracle
        .settled()
        .unwrap_or_else(|why| panic!("{case}: {why}"));
    reached >= nth
}

#[test]
fn lost_reply_after_ca_acted_causes_no_second_certificate() {
    const NAMES: [&str; 2] = [NAME, "www.example.com"];
    let mut lost = Vec::new();
    for endpoint in ENDPOINTS {
        // Once in a first issuance, and once in a renewal.
        let ca = EmbeddedCa::start();
        assert!(
            lose_reply(&ca, endpoint, 1, &NAMES),
            "{endpoint:?} was not asked"
        );
        let renew = [NAMES[0], NAMES[1], "--force"];
        let endpoints = (1..=3).filter(|nth| {
            let once = endpoint == Endpoint::NewOrder && *nth > 1;
            !once && lose_reply(&ca, endpoint, *nth, &renew)
        });
        lost.push((endpoint, 1 + endpoints.count()));
    }
    eprintln!("replies lost one at a time: {lost:?}");
}

#[test]
fn lost_order_url_causes_no_second_certificate() {
    let ca = issued();
    let finalized = ca.script.count(Endpoint::Finalize);
    ca.script
        .add(Endpoint::NewOrder, Which::Every, Fault::DropAfter);
    let before = live(&ca);
    run(&mut ca.issue(&[NAME, "--force"]), 3);
    assert_eq!(live(&ca), before);
    ca.script.clear();
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    assert_eq!(ca.script.count(Endpoint::Finalize) - finalized, 1);
}

#[test]
fn lost_registration_reply_finds_or_creates_account() {
    for fault in [Fault::DropBefore, Fault::DropAfter, Fault::html(502)] {
        let ca = EmbeddedCa::start();
        ca.script.add(Endpoint::NewAccount, Which::Every, fault);
        let printed = run(&mut ca.issue(&[NAME]), 3);
        assert!(printed.contains("hint:"), "{printed}");
        assert!(!ca.path("out/live").join(NAME).join("privkey.pem").exists());
        ca.script.clear();
        run(&mut ca.issue(&[NAME]), 0);
        assert_eq!(ca.script.count(Endpoint::NewOrder), 1);
    }
}

#[test]
fn failing_ca_exits_3_at_every_step() {
    at_every_step(|ca, endpoint, then| {
        let fault = Fault::problem(500, "serverInternal", "on fire");
        let printed = fails(ca, endpoint, fault, 3, then);
        assert!(
            printed.contains("serverInternal") && printed.contains("on fire"),
            "{printed}"
        );
    });
    let ca = issued();
    for status in [500, 502, 504] {
        fails(
            &ca,
            Endpoint::Order,
            Fault::html(status),
            3,
            NextRun::Resumes,
        );
    }
}

#[test]
fn non_acme_server_exits_3() {
    let ca = issued();
    for endpoint in [
        Endpoint::Directory,
        Endpoint::Authorization,
        Endpoint::Certificate,
    ] {
        let then = STEPS.iter().find(|step| step.0 == endpoint).unwrap().1;
        for fault in [
            Fault::html(200),
            Fault::Redirect,
            Fault::Truncated,
            Fault::Endless,
            Fault::Reply(200, "application/json", "{\"status\":".into(), None),
        ] {
            fails(&ca, endpoint, fault, 3, then);
        }
    }
}

#[test]
fn rate_limit_exits_6_with_retry_time() {
    for endpoint in [Endpoint::NewOrder, Endpoint::Finalize] {
        let ca = issued();
        let before = live(&ca);
        ca.script
            .add(endpoint, Which::Every, Fault::rate_limited("7200"));
        let printed = run(&mut ca.issue(&[NAME, "--force"]), 6);
        assert!(
            printed.contains("hint:") && printed.contains("rateLimited"),
            "{printed}"
        );
        let now = time::OffsetDateTime::now_utc() + time::Duration::hours(2);
        let near = [now, now - time::Duration::minutes(1)].map(|instant| {
            format!(
                "{}T{:02}:{:02}",
                instant.date(),
                instant.hour(),
                instant.minute()
            )
        });
        assert!(
            near.iter().any(|until| printed.contains(until)),
            "{near:?}: {printed}"
        );
        assert_eq!(live(&ca), before);
    }
}

#[test]
fn refusal_exits_4_with_sanitized_message() {
    let ca = issued();
    let hostile = "\x1b[2J\x1b]0;owned\x07\r\n$(reboot) `id` \u{202e}";
    for kind in ["rejectedIdentifier", "caa", "unauthorized"] {
        let fault = Fault::problem(403, kind, hostile);
        let printed = fails(&ca, Endpoint::NewOrder, fault, 4, NextRun::OrdersAgain);
        assert!(
            printed.contains(kind) && printed.contains("\\u{1b}[2J"),
            "{printed}"
        );
        assert!(!printed.contains(['\x07', '\r', '\u{202e}']), "{printed:?}");
    }
}

#[test]
fn refused_key_is_replaced_once_within_the_order() {
    let ca = issued();
    let orders = ca.script.count(Endpoint::NewOrder);
    ca.script
        .add(Endpoint::Finalize, Which::Every, Fault::LeakedKey);
    let printed = run(&mut ca.issue(&[NAME, "--force"]), 0);
    assert!(printed.contains("rejected the key"), "{printed}");
    assert_eq!(ca.script.leaked(), 1);
    ca.script.clear();
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders + 1);

    let asked = ca.script.count(Endpoint::Finalize);
    let printed = fails(
        &ca,
        Endpoint::Finalize,
        Fault::LeakedKeys,
        4,
        NextRun::OrdersAgain,
    );
    assert!(printed.contains("this key has leaked"), "{printed}");
    assert_eq!(ca.script.leaked(), 3, "not two keys more");
    // Two refused keys, and the one of the next run.
    assert_eq!(ca.script.count(Endpoint::Finalize), asked + 3);
}

#[test]
fn paused_names_report_url_to_unpause() {
    let ca = issued();
    // The token contains all the names.
    let portal = format!(
        "https://ca.test/sfe/v1/unpause?jwt={}.end",
        "a".repeat(3000)
    );
    let detail = format!("temporarily prevented for {NAME}. Please visit: {portal}");
    let fault = Fault::problem(429, "rateLimited", &detail);
    let asked = ca.script.count(Endpoint::NewOrder);
    let printed = fails(&ca, Endpoint::NewOrder, fault, 4, NextRun::OrdersAgain);
    assert!(printed.contains(&portal), "{printed}");
    // There is no retry without `replaces`; the second order is the next run's.
    assert_eq!(ca.script.count(Endpoint::NewOrder), asked + 2);
    assert!(printed.contains("open the URL"), "{printed}");
}

#[test]
fn unanswered_name_exits_5() {
    let ca = issued();
    let before = live(&ca);
    let webroot = ca.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    // No server answers for this webroot.
    let mut command = crate::support::certs(ca.path("").as_path());
    command
        .args(["issue", NAME, "--force", "--agree-tos", "--ca"])
        .arg(ca.server.directory_url())
        .arg("--ca-root")
        .arg(ca.path("root.pem"))
        .arg("--webroot")
        .arg(&webroot);
    let printed = run(&mut command, 5);
    assert!(
        printed.contains("hint:") && printed.contains(":connection"),
        "{printed}"
    );
    assert_eq!(live(&ca), before);
    run(&mut ca.issue(&[NAME, "--force"]), 0);
}

#[test]
fn hostile_tokens_reach_no_path_and_no_answer() {
    let ca = issued();
    let webroot = ca.path("webroot");
    std::fs::create_dir(&webroot).unwrap();
    let outside = ca.path("owned");
    let long = "a".repeat(10_000);
    for token in [
        "../../../owned",
        "/etc/passwd",
        "$(touch owned)",
        "a b",
        "",
        "abc\u{0}defghijklmnopqrstuvwxyz",
        &long,
    ] {
        let fault = Fault::Token(token.to_owned());
        let printed = fails(&ca, Endpoint::Authorization, fault, 3, NextRun::Resumes);
        assert!(!outside.exists(), "{token}: {printed}");
    }
    assert!(!webroot.read_dir().unwrap().any(|_| true));
}

#[test]
fn unknown_challenge_types_are_skipped() {
    let ca = issued();
    ca.script.add(
        Endpoint::Authorization,
        Which::Every,
        Fault::OneMoreChallenge,
    );
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    ca.script.clear();
    let printed = fails(
        &ca,
        Endpoint::Authorization,
        Fault::UnknownChallenges,
        4,
        NextRun::OrdersAgain,
    );
    assert!(printed.contains("telepathy-01"), "{printed}");
}

#[test]
fn invalid_chain_is_never_published() {
    let ca = issued();
    for how in [Chain::OfAnotherKey, Chain::Expired, Chain::NoPem] {
        fails(
            &ca,
            Endpoint::Certificate,
            Fault::Chain(how),
            3,
            NextRun::OrdersAgain,
        );
    }
}

#[test]
fn leaf_without_issuers_is_accepted() {
    // A private CA may sign with its root. Only a client that holds the root can tell that chain from an
    // incomplete one.
    let ca = EmbeddedCa::start();
    let alone = Fault::Chain(Chain::WithoutIntermediate);
    ca.script.add(Endpoint::Certificate, Which::Every, alone);
    run(&mut ca.issue(&[NAME]), 0);
    let files = live(&ca);
    assert_eq!(files[1], files[2], "fullchain.pem is not the leaf");
    assert!(files[3].is_empty(), "chain.pem is not empty");
}

#[test]
fn issue_succeeds_when_half_the_nonces_are_rejected() {
    let ca = EmbeddedCa::start();
    ca.script.add(None, Which::Every, Fault::BadNonce(50));
    run(&mut ca.issue(&[NAME, "www.example.com"]), 0);
    assert_eq!(ca.script.committed(Endpoint::NewOrder), 1);
}

#[test]
fn rejected_nonces_delay_order_and_never_repeat_it() {
    let ca = EmbeddedCa::start();
    ca.script.add(None, Which::Every, Fault::BadNonce(90));
    let ended = (0..50).any(|_| {
        let output = ca.issue(&[NAME]).output().unwrap();
        let printed = crate::support::text(&output);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{printed}");
        output.status.success()
    });
    assert!(ended, "50 runs were not enough");
    assert_eq!(ca.script.committed(Endpoint::Finalize), 1);
}

#[test]
fn missing_nonce_is_requested_and_exits_3_when_none_comes() {
    let ca = issued();
    for endpoint in [
        Endpoint::NewOrder,
        Endpoint::Authorization,
        Endpoint::Order,
        Endpoint::Finalize,
    ] {
        ca.script.add(endpoint, Which::Every, Fault::NoNonce);
    }
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    ca.script.clear();
    fails(
        &ca,
        Endpoint::NewNonce,
        Fault::NoNonce,
        3,
        NextRun::OrdersAgain,
    );
}

#[test]
fn issue_waits_for_slow_ca() {
    let ca = EmbeddedCa::start();
    ca.script
        .add(None, Which::Every, Fault::Delay(Duration::from_millis(300)));
    run(&mut ca.issue(&[NAME]), 0);
    assert_eq!(ca.script.count(Endpoint::NewOrder), 1);
}

#[test]
fn hanging_ca_exits_3_after_deadline() {
    let ca = issued();
    let hanging = Fault::Delay(Duration::from_secs(90));
    fails(&ca, Endpoint::Finalize, hanging, 3, NextRun::Resumes);
}

#[test]
fn order_stuck_in_processing_is_resumed_when_it_ends() {
    let ca = issued();
    let before = live(&ca);
    for endpoint in [Endpoint::Finalize, Endpoint::Order] {
        ca.script.add(endpoint, Which::Every, Fault::Processing);
    }
    let (orders, polls) = (
        ca.script.count(Endpoint::NewOrder),
        ca.script.count(Endpoint::Order),
    );
    let mut waiting = Running::start(&mut ca.issue(&[NAME, "--force"]));
    until("three polls", || {
        ca.script.count(Endpoint::Order) >= polls + 3
    });
    waiting.kill();
    assert_eq!(live(&ca), before);
    ca.script.clear();
    run(&mut ca.issue(&[NAME, "--force"]), 0);
    assert_eq!(ca.script.count(Endpoint::NewOrder), orders + 1);
    assert_ne!(live(&ca), before);
}

#[test]
fn malformed_renewal_information_never_blocks_issuance() {
    let window = |start: &str, end: &str| {
        format!(r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}}}}"#)
    };
    let (early, late) = ("2001-01-01T00:00:00Z", "2001-01-02T00:00:00Z");
    let (far, farther) = ("2999-01-01T00:00:00Z", "2999-01-02T00:00:00Z");
    for fault in [
        Fault::renewal(&window(late, early), Some("21600")),
        Fault::renewal(&window(early, early), Some("21600")),
        Fault::renewal(&window(early, late), Some("21600")),
        Fault::renewal(&window(far, farther), Some("21600")),
        Fault::renewal(&window("soon", "later"), Some("21600")),
        Fault::renewal(&window(far, farther), None),
        Fault::renewal(&window(far, farther), Some("99999999999999999999")),
        Fault::renewal(&window(far, farther), Some("-1")),
        Fault::renewal("{", None),
        Fault::renewal("[]", Some("1")),
        Fault::problem(404, "malformed", "no such certificate"),
        Fault::problem(500, "serverInternal", "on fire"),
        Fault::rate_limited("60"),
        Fault::html(200),
        Fault::Redirect,
        Fault::Truncated,
        Fault::DropBefore,
        Fault::Endless,
    ] {
        let case = format!("{fault:?}");
        let ca = EmbeddedCa::start();
        ca.script.add(Endpoint::RenewalInfo, Which::Every, fault);
        let output = ca.issue(&[NAME]).output().unwrap();
        let printed = crate::support::text(&output);
        assert_eq!(output.status.code(), Some(0), "{case}: {printed}");
        assert_eq!(ca.script.count(Endpoint::NewOrder), 1, "{case}");
        assert!(ca.script.count(Endpoint::RenewalInfo) <= 4, "{case}");
    }
}
