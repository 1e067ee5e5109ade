//! Orders against a scripted CA.

use super::super::fake::{FakeCa, Memory, NOW, Scripted, issue, pem, pending};
use super::super::retry::TRIES;
use super::super::{Client, Issuer};
use super::*;
use std::time::Duration;

async fn run(client: &Client, pending: PendingOrder) -> (Result<String, Cause>, Memory) {
    let mut journal = Memory::default();
    let result = client.issue(pending, &mut journal).await;
    (result.map_err(|error| error.cause), journal)
}

#[tokio::test]
async fn issue_sends_only_the_necessary_requests() {
    let ca = FakeCa::new();
    let client = ca.client();
    issue(&client).await.unwrap();
    let order = [
        "new-order",
        "authorization",
        "challenge",
        "order",
        "finalize",
        "order",
        "certificate",
    ];
    let first = ["directory", "new-nonce", "new-account"];
    assert_eq!(ca.take_endpoints(), [&first[..], &order].concat());
    // The client has the directory, the account and a nonce.
    let (result, _) = run(&client, pending(&["a.example"])).await;
    result.unwrap();
    assert_eq!(ca.take_endpoints(), order);
    ca.issue_at_once();
    run(&client, pending(&["a.example"])).await.0.unwrap();
    let at_once = ["finalize", "certificate"];
    assert_eq!(ca.take_endpoints(), [&order[..4], &at_once].concat());
}

#[tokio::test]
async fn order_is_placed_once_more_without_replaces_after_any_objection() {
    let refusals = [
        (409, "alreadyReplaced"),
        (404, "malformed"),
        (403, "unauthorized"),
        (400, "malformed"),
        // Pebble, for an unknown predecessor.
        (500, "serverInternal"),
    ];
    for (status, kind) in refusals {
        let ca = FakeCa::new();
        let client = ca.client();
        let mut order = pending(&["a.example"]);
        order.replaces = Some("YQ.Yg".into());
        ca.script("new-order", Scripted::problem(status, kind));
        let (result, mut journal) = run(&client, order.clone()).await;
        result.unwrap();
        let sent = ca.payloads("new-order");
        assert_eq!(sent.len(), 2, "{status}");
        assert_eq!(sent[0]["replaces"], "YQ.Yg");
        assert!(sent[1].get("replaces").is_none());
        assert_eq!(journal.orders[0].replaces, None);
        // A refusal without `replaces` is final.
        ca.take_endpoints();
        for _ in 0..=TRIES {
            ca.script("new-order", Scripted::problem(status, kind));
        }
        let final_ones = if status == 500 { TRIES } else { 1 };
        let refused = client.issue(order, &mut journal).await;
        assert!(matches!(
            refused.unwrap_err().cause,
            Cause::Refused(_) | Cause::Unreachable(_)
        ));
        assert_eq!(ca.count("new-order"), 1 + final_ones);
    }
}

#[tokio::test]
async fn order_keeps_replaces_during_an_outage() {
    let ca = FakeCa::new();
    let mut order = pending(&["a.example"]);
    order.replaces = Some("YQ.Yg".into());
    let gateway = Scripted(502, "text/html", "<html>".into(), vec![]);
    ca.persist("new-order", &gateway);
    let (result, _) = run(&ca.client(), order).await;
    assert!(matches!(result, Err(Cause::Unreachable(_))), "{result:?}");
    let sent = ca.payloads("new-order");
    assert_eq!(sent.len(), TRIES);
    assert!(sent.iter().all(|sent| sent["replaces"] == "YQ.Yg"));
}

#[tokio::test]
async fn order_keeps_replaces_at_a_rate_limit() {
    let ca = FakeCa::new();
    let mut order = pending(&["a.example"]);
    order.replaces = Some("YQ.Yg".into());
    ca.script(
        "new-order",
        Scripted::problem(429, "rateLimited").with("retry-after", 90),
    );
    let (result, _) = run(&ca.client(), order).await;
    let Err(Cause::RateLimited {
        message,
        retry_after,
    }) = result
    else {
        panic!("{result:?}")
    };
    assert_eq!(retry_after, Some(Duration::from_secs(90)));
    let until = (NOW + Duration::from_secs(90)).to_string();
    assert!(message.contains(&until), "{message}");
    assert_eq!(ca.count("new-order"), 1);
}

#[tokio::test]
async fn order_omits_replaces_for_a_ca_without_renewal_info() {
    let ca = FakeCa::new();
    let url = |name: &str| format!("https://ca.test/{name}");
    ca.script("directory", Scripted::json(&json!({
        "newNonce": url("new-nonce"), "newAccount": url("new-account"), "newOrder": url("new-order"),
    })));
    let mut order = pending(&["a.example"]);
    order.replaces = Some("YQ.Yg".into());
    run(&ca.client(), order).await.0.unwrap();
    assert!(ca.payloads("new-order")[0].get("replaces").is_none());
}

#[tokio::test]
async fn order_url_is_stored_when_the_body_is_invalid() {
    let ca = FakeCa::new();
    let client = ca.client();
    let invalid = Scripted(201, "application/json", "{".into(), vec![]);
    ca.script(
        "new-order",
        invalid.with("location", "https://ca.test/order/7"),
    );
    let (result, journal) = run(&client, pending(&["a.example"])).await;
    assert!(matches!(result, Err(Cause::Protocol(_))), "{result:?}");
    assert_eq!(
        journal.orders[0].url.as_deref(),
        Some("https://ca.test/order/7")
    );
    for location in ["http://ca.test/order/1", "file:///etc/passwd"] {
        ca.script(
            "new-order",
            Scripted::json(&json!({})).with("location", location),
        );
        let (result, journal) = run(&client, pending(&["a.example"])).await;
        assert!(matches!(result, Err(Cause::Protocol(_))), "{result:?}");
        assert!(journal.orders.is_empty(), "{location} was stored");
    }
}

#[tokio::test]
async fn order_is_resumed_by_its_url_after_a_lost_reply_at_any_step() {
    for endpoint in [
        "authorization",
        "challenge",
        "order",
        "finalize",
        "certificate",
    ] {
        let ca = FakeCa::new();
        ca.lose_reply(endpoint);
        let (result, journal) = run(&ca.client(), pending(&["a.example"])).await;
        assert!(
            matches!(result, Err(Cause::Unreachable(_))),
            "{endpoint}: {result:?}"
        );
        let stored = journal.orders.last().unwrap().clone();
        ca.take_endpoints();
        run(&ca.client(), stored).await.0.unwrap();
        assert_eq!(ca.orders(), 1, "{endpoint}");
        let again = usize::from(!["finalize", "certificate"].contains(&endpoint));
        assert_eq!(ca.count("finalize"), again, "{endpoint}");
    }
}

#[tokio::test]
async fn order_is_placed_again_when_unknown_or_invalid_and_kept_in_an_outage() {
    let ca = FakeCa::new();
    let client = ca.client();
    let mut resumed = pending(&["a.example"]);
    resumed.url = Some("https://ca.test/order/99".into());
    let (result, journal) = run(&client, resumed.clone()).await;
    result.unwrap();
    assert_eq!(
        journal.orders[0].url.as_deref(),
        Some("https://ca.test/order/0")
    );
    let invalid =
        json!({"status": "invalid", "authorizations": [], "finalize": "https://ca.test/f"});
    ca.script("order", Scripted::json(&invalid));
    run(&client, resumed.clone()).await.0.unwrap();
    assert_eq!(ca.orders(), 2);
    for scripted in [
        Scripted::problem(500, "serverInternal"),
        Scripted(502, "text/html", "<p>".into(), vec![]),
    ] {
        ca.persist("order", &scripted);
        let (result, _) = run(&client, resumed.clone()).await;
        assert!(matches!(result, Err(Cause::Unreachable(_))), "{result:?}");
    }
    assert_eq!(ca.orders(), 2);
}

#[tokio::test]
async fn order_not_ready_is_polled_and_finalized_again() {
    let ca = FakeCa::new();
    ca.script("finalize", Scripted::problem(403, "orderNotReady"));
    issue(&ca.client()).await.unwrap();
    assert_eq!((ca.count("finalize"), ca.count("order")), (2, 3));
}

#[tokio::test]
async fn profile_is_sent_with_the_order_only_if_the_ca_offers_it() {
    let ca = FakeCa::new();
    let client = ca.client();
    let mut order = pending(&["a.example"]);
    order.profile = Some("shortlived".into());
    run(&client, order.clone()).await.0.unwrap();
    assert_eq!(ca.payloads("new-order")[0]["profile"], "shortlived");
    order.profile = Some("tlsserver".into());
    let Err(cause) = run(&client, order).await.0 else {
        panic!()
    };
    assert!(
        cause.hint().contains("classic, shortlived"),
        "{}",
        cause.hint()
    );
    assert_eq!(ca.count("new-order"), 1);
}

#[tokio::test]
async fn alternate_chains_are_fetched_only_for_a_preferred_chain() {
    let certificate = |name: &str| {
        let pem_type = "application/pem-certificate-chain";
        Scripted(200, pem_type, pem(name), vec![]).with(
            "link",
            "<https://ca.test/certificate/0/1>;rel=\"alternate\"",
        )
    };
    for (preferred, fetched) in [
        (None, 1),
        (Some("First"), 1),
        (Some("Second"), 2),
        (Some("Third"), 2),
    ] {
        let ca = FakeCa::new();
        ca.script("certificate", certificate("First"));
        ca.script("certificate", certificate("Second"));
        let mut options = ca.settings();
        options.preferred_chain = preferred.map(str::to_owned);
        let chain = issue(&Client::new(options).unwrap()).await.unwrap();
        assert_eq!(ca.count("certificate"), fetched, "{preferred:?}");
        let expected = if preferred == Some("Second") {
            "Second"
        } else {
            "First"
        };
        assert!(topmost(&chain).contains(expected), "{preferred:?}");
    }
}

#[tokio::test]
async fn reply_is_invalid_for_redirects_html_and_unexpected_json() {
    let html = |status| Scripted(status, "text/html", "<p>hello</p>".into(), vec![]);
    let redirect = Scripted(302, "", String::new(), vec![]).with("location", "https://ca.test/x");
    for scripted in [redirect, html(200), html(404), Scripted::json(&json!([]))] {
        for endpoint in [
            "new-account",
            "new-order",
            "authorization",
            "order",
            "certificate",
        ] {
            if endpoint == "new-account" && scripted.1 == "application/json" {
                continue;
            }
            let ca = FakeCa::new();
            ca.script(endpoint, scripted.clone());
            let result = issue(&ca.client()).await.map_err(|error| error.cause);
            assert!(
                matches!(result, Err(Cause::Protocol(_))),
                "{endpoint}: {result:?}"
            );
        }
    }
}

#[test]
fn chain_matches_only_by_its_topmost_issuer() {
    let named = |name: &str, issuer: &str| {
        let params = |name: &str| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let kind = rcgen::DnType::CommonName;
            params.distinguished_name.push(kind, name);
            params
        };
        let key = || rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::new(params(issuer), key());
        params(name).signed_by(&key(), &issuer).unwrap().pem()
    };
    let (leaf, issuer) = (named("Leaf", "Issuer"), named("Issuer", "Root X1"));
    let root = named("Root X1", "Root X1");
    for chain in [
        format!("{leaf}{issuer}"),
        format!("{leaf}{issuer}{root}"),
        format!("{root}{issuer}{leaf}"),
        format!("{leaf}{leaf}{issuer}"),
    ] {
        assert_eq!(topmost(&chain), ["Root X1".to_owned()].into());
    }
    assert!(topmost("").is_empty());
    let broken = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    assert!(topmost(broken).is_empty());
}
