//! Tests of what real CAs do beside RFC 8555: orders that stay `pending` when a name has
//! failed, challenges that are started already, redirects, relative URLs, pages for the user.

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
