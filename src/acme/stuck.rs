//! Tests of orders that some CAs leave `pending` when a name has failed, and of challenges
//! that the CA was told of already.

use std::time::Duration;

use serde_json::{Value, json};

use super::error::Cause;
use super::fake::{FakeCa, Memory, NOW, Scripted, issue, pending};
use super::{Issuer, error::AcmeError};
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
            // An old failure of a challenge that nobody answers.
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
async fn challenge_that_the_ca_was_told_of_is_polled() {
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
