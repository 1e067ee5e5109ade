//! Tests of what real CAs do beside RFC 8555: orders that stay `pending` when a name has
//! failed, challenges that are started already, redirects, relative URLs, pages for the user,
//! orders that need no validation, and directories of private CAs.

use std::time::Duration;

use serde_json::{Value, json};

use super::error::Cause;
use super::fake::{FakeCa, Memory, NOW, Scripted, issue, pending};
use super::{AcmeError, Issuer};
use crate::time::Clock;

fn shown(status: &str, challenge: &str, error: bool) -> Scripted {
    let error = error.then(
        || json!({"type": "urn:ietf:params:acme:error:connection", "detail": "port 80 is closed"}),
    );
    Scripted::json(
        &json!({"status": status, "identifier": {"type": "dns", "value": "a.example"},
        "challenges": [
            {"type": "http-01", "status": challenge, "error": error,
                "token": "a-token-of-enough-length-0-0", "url": "https://ca.test/challenge/0/0"},
            // An old failure of a challenge without an answer.
            {"type": "dns-01", "status": "pending", "token": "a-token-of-enough-length-1-0",
                "url": "https://ca.test/challenge/1/0",
                "error": {"type": "urn:ietf:params:acme:error:dns", "detail": "none"}},
        ]}),
    )
}

fn still(status: &str) -> Value {
    json!({"status": status, "authorizations": ["https://ca.test/authorization/0/0"],
        "finalize": "https://ca.test/finalize/0"})
}

/// Issues from a CA whose order stays pending, and shows the authorization by `script`.
async fn stuck(script: Vec<Scripted>) -> (std::sync::Arc<FakeCa>, Result<String, AcmeError>) {
    let ca = FakeCa::new();
    for _ in 0..200 {
        ca.script("order", Scripted::json(&still("pending")));
    }
    for scripted in script {
        ca.script("authorization", scripted);
    }
    let result = issue(&ca.client()).await;
    (ca, result)
}

#[tokio::test]
async fn failed_name_of_a_pending_order_is_reported_within_seconds() {
    for (status, challenge) in [
        ("invalid", "invalid"),
        ("pending", "pending"),
        ("pending", "processing"),
        ("pending", "invalid"),
    ] {
        let mut script = vec![shown("pending", "pending", false)];
        script.resize(20, shown(status, challenge, true));
        let (ca, result) = stuck(script).await;
        let error = result.unwrap_err();
        assert!(matches!(error.cause, Cause::NotValidated(_)), "{error}");
        assert!(error.to_string().contains("port 80 is closed"), "{error}");
        assert_eq!(error.cause.failed_names().len(), 1, "{error}");
        let took = ca.clock.now().since(NOW);
        assert!(
            took < Duration::from_secs(15),
            "{status} {challenge}: {took:?}"
        );
    }
}

#[tokio::test]
async fn error_that_passes_and_error_of_another_challenge_do_not_end_an_order() {
    let mut script = vec![shown("pending", "pending", false)];
    script.push(shown("pending", "processing", true));
    script.resize(200, shown("pending", "processing", false));
    let (ca, result) = stuck(script).await;
    let cause = result.unwrap_err().cause;
    assert!(matches!(cause, Cause::TimedOut(_)), "{cause:?}");
    // A sane pace for as long as the run waits.
    assert!(
        ca.count("authorization") < 20,
        "{}",
        ca.count("authorization")
    );
}

#[tokio::test]
async fn challenge_that_is_started_already_is_polled() {
    let processing = shown("pending", "processing", false);
    for (refusal, seen) in [
        (Scripted::problem(409, "conflict"), None),
        (Scripted::problem(400, "malformed"), Some(processing)),
    ] {
        let ca = FakeCa::new();
        ca.script("challenge", refusal);
        if let Some(seen) = seen {
            ca.script("authorization", shown("pending", "pending", false));
            ca.script("authorization", seen);
        }
        ca.script("order", Scripted::json(&still("pending")));
        let valid = json!({"status": "valid", "authorizations": [], "finalize": "https://ca.test/f",
            "certificate": "https://ca.test/certificate/0"});
        ca.script("order", Scripted::json(&valid));
        let (client, mut journal) = (ca.client(), Memory::default());
        let issued = client.issue(pending(&["a.example"]), &mut journal).await;
        issued.unwrap();
        assert_eq!((ca.count("challenge"), ca.count("order")), (1, 2));
    }
    // A refusal of a challenge that was not started is one.
    let ca = FakeCa::new();
    ca.script("challenge", Scripted::problem(400, "malformed"));
    let cause = issue(&ca.client()).await.unwrap_err().cause;
    assert!(matches!(cause, Cause::Refused(_)), "{cause:?}");
}

fn moved(to: &str) -> Scripted {
    Scripted(301, "", String::new(), vec![]).with("location", to)
}

#[tokio::test]
async fn directory_is_followed_within_its_host() {
    for to in [
        "/directory/v2",
        "https://CA.test:443/directory/v2",
        "directory/v2?x",
    ] {
        let ca = FakeCa::new();
        ca.script("directory", moved(to));
        // The nonce's reply redirects, too.
        ca.script("new-nonce", moved("/new-nonce/"));
        issue(&ca.client()).await.unwrap();
        assert_eq!((ca.count("directory"), ca.count("new-nonce")), (2, 2));
    }
}

#[tokio::test]
async fn redirect_is_refused_to_another_host_or_without_end() {
    for to in [
        "https://other.test/directory",
        "https://ca.test:8443/directory",
        "http://ca.test/directory",
        "//other.test/directory",
        "https://ca.test@other.test/directory",
        "/directory",
    ] {
        let ca = FakeCa::new();
        for _ in 0..10 {
            ca.script("directory", moved(to));
        }
        let cause = issue(&ca.client()).await.unwrap_err().cause;
        assert!(matches!(cause, Cause::Protocol(_)), "{to}: {cause}");
        let most = if to == "/directory" { 6 } else { 1 };
        assert_eq!(ca.count("directory"), most, "{to}");
    }
}

#[tokio::test]
async fn relative_urls_of_a_ca_are_resolved() {
    let ca = FakeCa::new();
    let registered = Scripted(201, "application/json", "{}".into(), vec![]);
    let order = json!({"status": "pending", "authorizations": ["authorization/0/0"],
        "finalize": "/finalize/0"});
    let authorization = json!({"status": "pending",
        "identifier": {"type": "dns", "value": "a.example"},
        "challenges": [{"type": "http-01", "status": "pending", "url": "../../challenge/0/0",
            "token": "a-token-of-enough-length-0-0"}]});
    let valid = json!({"status": "valid", "authorizations": [],
        "finalize": "/finalize/0", "certificate": "../certificate/0"});
    // The fake CA knows its account and its order.
    issue(&ca.client()).await.unwrap();
    ca.take_endpoints();
    ca.script("directory", Scripted::json(&json!({
        "newNonce": "/new-nonce", "newAccount": "new-account", "newOrder": "//ca.test/new-order",
        "renewalInfo": "renewal-info",
    })));
    ca.script("new-account", registered.with("location", "/account/0"));
    ca.script(
        "new-order",
        Scripted::json(&order).with("location", "order/0"),
    );
    ca.script("authorization", Scripted::json(&authorization));
    ca.script("order", Scripted::json(&valid));
    let mut journal = Memory::default();
    let client = ca.client();
    let issued = client.issue(pending(&["a.example"]), &mut journal);
    issued.await.unwrap();
    let url = journal.orders[0].url.as_deref();
    assert_eq!(url, Some("https://ca.test/order/0"));
    assert_eq!((ca.count("challenge"), ca.count("certificate")), (1, 1));
}

#[tokio::test]
async fn unusable_renewal_info_does_not_prevent_an_order() {
    for unusable in [
        "\"\"",
        "\"http://ca.test/ari\"",
        "7",
        "{}",
        "null",
        "\"https://\"",
    ] {
        let ca = FakeCa::new();
        let unusable: Value = serde_json::from_str(unusable).unwrap();
        ca.script("directory", Scripted::json(&json!({
            "newNonce": "https://ca.test/new-nonce", "newAccount": "https://ca.test/new-account",
            "newOrder": "https://ca.test/new-order", "renewalInfo": unusable, "meta": 7,
        })));
        let client = ca.client();
        issue(&client).await.unwrap();
        assert_eq!(
            client.renewal_info("YQ.Yg").await.unwrap(),
            None,
            "{unusable}"
        );
    }
}

#[tokio::test]
async fn action_of_the_user_is_shown_with_its_pages() {
    let ca = FakeCa::new();
    let kind = "urn:ietf:params:acme:error:userActionRequired";
    let body = json!({"type": kind, "detail": "new terms",
        "instance": "https://ca.test/agree/7"});
    let refusal = Scripted(403, "application/problem+json", body.to_string(), vec![]);
    let terms = "</terms/v6>;rel=\"terms-of-service\"";
    ca.script("new-order", refusal.with("link", terms));
    let error = issue(&ca.client()).await.unwrap_err();
    for shown in [
        "new terms",
        "https://ca.test/agree/7",
        "https://ca.test/terms/v6",
    ] {
        assert!(error.to_string().contains(shown), "{error}");
    }
    assert!(error.cause.hint().contains("URL in the message"));
}

#[tokio::test]
async fn order_that_is_ready_or_valid_at_once_needs_no_validation() {
    for (status, requests) in [
        (
            "ready",
            &["new-order", "finalize", "order", "certificate"][..],
        ),
        ("valid", &["new-order", "certificate"][..]),
    ] {
        let ca = FakeCa::new();
        let client = ca.client();
        // The fake CA knows its account and its order, and has validated the name.
        issue(&client).await.unwrap();
        ca.take_endpoints();
        let order = json!({"status": status, "finalize": "https://ca.test/finalize/0",
            "authorizations": ["https://ca.test/authorization/0/0"],
            "certificate": "https://ca.test/certificate/0"});
        let order = Scripted::json(&order).with("location", "https://ca.test/order/0");
        ca.script("new-order", order);
        let done = json!({"status": "processing", "authorizations": [],
            "finalize": "https://ca.test/finalize/0"});
        ca.script("finalize", Scripted::json(&done));
        issue(&client).await.unwrap();
        let sent = ca.take_endpoints();
        let sent: Vec<_> = sent.iter().map(String::as_str).collect();
        assert!(sent.ends_with(requests), "{status}: {sent:?}");
        assert!(!sent.contains(&"challenge"), "{status}: {sent:?}");
    }
}

#[tokio::test]
async fn only_pending_authorizations_of_a_mixed_order_are_answered() {
    let ca = FakeCa::new();
    let valid = json!({"status": "valid", "challenges": [],
        "identifier": {"type": "dns", "value": "a.example"}});
    ca.script("authorization", Scripted::json(&valid));
    ca.script(
        "order",
        Scripted::json(&json!({"status": "valid", "authorizations": [],
        "finalize": "https://ca.test/f", "certificate": "https://ca.test/certificate/0"})),
    );
    let names = pending(&["a.example", "b.example"]);
    let client = ca.client();
    client.issue(names, &mut Memory::default()).await.unwrap();
    assert_eq!((ca.count("authorization"), ca.count("challenge")), (2, 1));
}

#[tokio::test]
async fn hundred_names_are_one_order() {
    let names: Vec<String> = (0..100)
        .map(|number| format!("n{number}.example"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let ca = FakeCa::new();
    let client = ca.client();
    client
        .issue(pending(&names), &mut Memory::default())
        .await
        .unwrap();
    for (endpoint, requests) in [("new-order", 1), ("authorization", 100), ("challenge", 100)] {
        assert_eq!(ca.count(endpoint), requests, "{endpoint}");
    }
    let sent = &ca.payloads("new-order")[0]["identifiers"];
    assert_eq!(sent.as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn refused_names_among_good_ones_are_each_reported() {
    let ca = FakeCa::new();
    let kind = |kind: &str| format!("urn:ietf:params:acme:error:{kind}");
    let sub = |name: &str, of: &str, detail: &str| json!({"type": kind(of), "detail": detail, "identifier": {"type": "dns", "value": name}});
    let body = json!({"type": kind("compound"), "detail": "some names are refused", "subproblems": [
        sub("b.example", "rejectedIdentifier", "on a list"), sub("c.example", "caa", "forbidden"),
    ]});
    let refusal = Scripted(
        400,
        "application/problem+json; charset=utf-8",
        body.to_string(),
        vec![],
    );
    ca.script("new-order", refusal);
    let names = pending(&["a.example", "b.example", "c.example"]);
    let ended = ca.client().issue(names, &mut Memory::default()).await;
    let error = ended.unwrap_err();
    assert!(matches!(error.cause, Cause::Refused(_)), "{error}");
    let text = error.to_string();
    for line in [
        "b.example: urn:ietf:params:acme:error:rejectedIdentifier: on a list",
        "c.example: urn:ietf:params:acme:error:caa: forbidden",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let failed = error.cause.failed_names().iter();
    let failed: Vec<_> = failed.map(|one| one.identifier.to_string()).collect();
    assert_eq!(failed, ["b.example", "c.example"]);
    assert!(
        error.cause.hint().contains("remove that name"),
        "{}",
        error.cause.hint()
    );
}

#[tokio::test]
async fn directories_of_private_cas_are_read_as_documented() {
    let json_type = "application/json; charset=utf-8";
    let required = ["newNonce", "newAccount", "newOrder"];
    let endpoints =
        ["new-nonce", "new-account", "new-order"].map(|one| format!("https://ca.test/{one}"));
    for (ca_name, more) in [
        // No metadata at all.
        (
            "step-ca",
            json!({"revokeCert": "https://ca.test/acme/acme/revoke-cert",
            "keyChange": "https://ca.test/acme/acme/key-change"}),
        ),
        (
            "Vault",
            json!({"revokeCert": "https://ca.test/v1/pki/acme/revoke-cert", "newAuthz": "",
            "keyChange": null, "meta": {"externalAccountRequired": false}}),
        ),
        (
            "EJBCA",
            json!({"revokeCert": "https://ca.test/ejbca/acme/alias/revokeCert", "newAuthz": null,
            "meta": {"termsOfService": null, "website": "", "caaIdentities": null, "profiles": []}}),
        ),
    ] {
        let ca = FakeCa::new();
        let mut directory = more;
        for (name, url) in required.iter().zip(&endpoints) {
            directory[*name] = url.as_str().into();
        }
        ca.script(
            "directory",
            Scripted(200, json_type, directory.to_string(), vec![]),
        );
        let client = ca.client();
        issue(&client)
            .await
            .unwrap_or_else(|error| panic!("{ca_name}: {error}"));
        assert_eq!(
            client.renewal_info("YQ.Yg").await.unwrap(),
            None,
            "{ca_name}"
        );
    }
}

#[tokio::test]
async fn ca_that_answers_503_for_an_hour_issues_the_same_order_afterwards() {
    let ca = FakeCa::new();
    let client = ca.client();
    let mut journal = Memory::default();
    let busy = Scripted(503, "text/html", "<p>".into(), vec![]);
    let minute = Duration::from_secs(60);
    ca.persist("finalize", &busy);
    let mut order = pending(&["a.example"]);
    for _ in 0..60 {
        let cause = client.issue(order, &mut journal).await.unwrap_err().cause;
        assert!(matches!(cause, Cause::Unreachable(_)), "{cause:?}");
        order = journal.orders.last().unwrap().clone();
        ca.persist("order", &busy);
        ca.clock.sleep(minute).await;
    }
    ca.forget_scripts();
    client.issue(order, &mut journal).await.unwrap();
    assert!(ca.clock.now().since(NOW) > minute * 60);
    assert_eq!(
        (ca.orders(), ca.count("new-order"), ca.count("new-account")),
        (1, 1, 1)
    );
    // With the time of its end it is a limit, and no failure.
    ca.script("new-order", busy.with("retry-after", 3600));
    let limited = issue(&client).await.unwrap_err().cause;
    let Cause::RateLimited { retry_after, .. } = limited else {
        panic!("{limited:?}")
    };
    assert_eq!(retry_after, Some(minute * 60));
}

#[tokio::test]
async fn order_that_expires_is_replaced_once() {
    let invalid = |expires: &str| {
        Scripted::json(&json!({"status": "invalid", "authorizations": [],
            "finalize": "https://ca.test/f", "expires": expires}))
    };
    let (past, future) = ("2027-01-15T07:59:59Z", "2027-01-16T00:00:00Z");
    for (expires, times, placed, is_issued) in [
        (past, 1, 2, true),
        (past, 2, 2, false),
        (future, 1, 1, false),
    ] {
        let ca = FakeCa::new();
        for _ in 0..times {
            ca.script("order", invalid(expires));
        }
        let result = issue(&ca.client()).await;
        assert_eq!(result.is_ok(), is_issued, "{expires} {times}: {result:?}");
        assert_eq!(ca.count("new-order"), placed, "{expires} {times}");
    }
    // The CA may forget it, too.
    let ca = FakeCa::new();
    let placed = json!({"status": "processing", "authorizations": [],
        "finalize": "https://ca.test/f", "expires": past});
    let placed = Scripted::json(&placed).with("location", "https://ca.test/order/7");
    ca.script("new-order", placed);
    issue(&ca.client()).await.unwrap();
    assert_eq!((ca.count("new-order"), ca.orders()), (2, 1));
}
