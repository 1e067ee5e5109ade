//! Tests of the bounds on what a CA sends: counts, sums of bytes, texts, and names that are
//! not in the order.

use std::fmt::Write;

use serde_json::{Value, json};

use super::error::Cause;
use super::fake::{FakeCa, Scripted, issue};
use super::{documents, problem};
use crate::identifier::Identifier;

fn url(path: &str) -> String {
    format!("https://ca.test/{path}")
}

fn placed(authorizations: &[String]) -> Scripted {
    let order = json!({
        "status": "pending", "authorizations": authorizations, "finalize": url("finalize/0"),
    });
    Scripted::json(&order).with("location", url("order/0"))
}

async fn protocol_error(ca: &std::sync::Arc<FakeCa>) -> String {
    match issue(&ca.client()).await.unwrap_err().cause {
        Cause::Protocol(message) => message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn order_has_no_more_authorizations_than_names() {
    for number in [2, 1000] {
        let ca = FakeCa::new();
        let urls = (0..number).map(|one| url(&format!("authorization/{one}")));
        let urls: Vec<_> = urls.collect();
        ca.script("new-order", placed(&urls));
        let message = protocol_error(&ca).await;
        assert!(
            message.contains(&format!("{number} authorizations")),
            "{message}"
        );
        assert_eq!(ca.count("authorization"), 0);
    }
}

#[tokio::test]
async fn authorization_of_another_name_is_never_answered() {
    let token = "abcdefghijklmnopqrstuv";
    for name in ["other.example", "*.a.example", "example"] {
        let ca = FakeCa::new();
        let challenge = json!({"type": "http-01", "url": url("challenge/0"), "status": "pending", "token": token});
        let other = json!({"status": "pending", "challenges": [challenge], "identifier": {"type": "dns", "value": name}});
        ca.script("authorization", Scripted::json(&other));
        let message = protocol_error(&ca).await;
        assert!(message.contains("not in the order"), "{message}");
        assert_eq!(ca.count("challenge"), 0);
        assert_eq!(
            ca.responses
                .lookup(&Identifier::parse(name).unwrap(), token),
            None
        );
    }
}

#[tokio::test]
async fn replies_to_one_order_are_bounded_in_their_sum() {
    let ca = FakeCa::new();
    let padded = json!({
        "status": "processing", "authorizations": [], "finalize": url("finalize/0"),
        "padding": "x".repeat(200 * 1024),
    });
    for _ in 0..99 {
        ca.script("order", Scripted::json(&padded));
    }
    let message = protocol_error(&ca).await;
    assert!(message.contains("too large"), "{message}");
    assert!(ca.count("order") <= 11, "{}", ca.count("order"));
}

#[tokio::test]
async fn chain_of_many_certificates_is_refused() {
    let ca = FakeCa::new();
    let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    let chain = Scripted(
        200,
        "application/pem-certificate-chain",
        block.repeat(10_000),
        vec![],
    );
    ca.script("certificate", chain);
    let message = protocol_error(&ca).await;
    assert!(message.contains("10000 certificates"), "{message}");
}

#[tokio::test]
async fn text_of_a_ca_is_cut() {
    const MOST: usize = 2300;
    let sub = json!({"type": "caa", "detail": "\u{1b}".repeat(200), "identifier": {"type": "dns", "value": "a.example"}});
    let document = json!({
        "type": "urn:ietf:params:acme:error:malformed", "detail": "x".repeat(100_000),
        "subproblems": vec![sub; 1000],
    });
    assert!(problem::describe(&problem::from_value(&document)).len() <= 2048);
    for endpoint in [
        "new-order",
        "authorization",
        "challenge",
        "finalize",
        "certificate",
    ] {
        let ca = FakeCa::new();
        let body = document.to_string();
        let refusal = Scripted(400, "application/problem+json", body, vec![]);
        ca.script(endpoint, refusal);
        let error = issue(&ca.client()).await.unwrap_err();
        assert!(
            error.to_string().len() < MOST,
            "{endpoint}: {}",
            error.to_string().len()
        );
    }
    let ca = FakeCa::new();
    let mut invalid =
        json!({"status": "invalid", "authorizations": [], "finalize": url("finalize/0")});
    invalid["error"] = document;
    ca.script("order", Scripted::json(&invalid));
    let error = issue(&ca.client()).await.unwrap_err();
    assert!(
        error.to_string().len() < MOST,
        "{}",
        error.to_string().len()
    );
}

#[test]
fn list_of_challenges_is_bounded() {
    let mut list = String::new();
    for number in 0..10_000 {
        let _ = write!(
            list,
            r#"{{"type":"new-{number}","url":"https://ca/1","status":"pending"}},"#
        );
    }
    let body = format!(
        r#"{{"status":"pending","identifier":{{"type":"dns","value":"a.example"}},"challenges":[{}]}}"#,
        list.trim_end_matches(',')
    );
    let read = documents::authorization(body.as_bytes()).unwrap();
    assert!(read.challenges.len() <= 32, "{}", read.challenges.len());
    assert!(serde_json::from_str::<Value>(&body).is_ok());
}
