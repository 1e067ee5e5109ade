//! Orders, from newOrder to the signing request.

use serde_json::json;

use super::*;

#[tokio::test]
async fn invalid_order_is_refused() {
    let (server, _) = server(|settings| {
        settings.validation = Validation::Connect {
            ports: Ports::default(),
            resolve: Resolve::System,
        };
    });
    let client = Client::registered(&server).await;
    let dns = |value: &str| json!([{"type": "dns", "value": value}]);
    for (wish, expected) in [
        (json!({"identifiers": []}), kind(400, "malformed")),
        (json!({"identifiers": dns("a..b")}), kind(400, "malformed")),
        (
            json!({"identifiers": dns("192.0.2.1")}),
            kind(400, "malformed"),
        ),
        (
            json!({"identifiers": dns("a.example.")}),
            kind(400, "malformed"),
        ),
        (
            json!({"identifiers": dns("a.example"), "notAfter": "soon"}),
            kind(400, "malformed"),
        ),
        (
            json!({"identifiers": [{"type": "email", "value": "a@b"}]}),
            kind(403, "rejectedIdentifier"),
        ),
    ] {
        let reply = client.order(&server, wish.clone()).await;
        assert_eq!(reply.problem(), expected, "{wish}");
    }
}

#[tokio::test]
async fn requested_dates_hold_within_the_lifetime_of_the_profile() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    for (begin, end, is_allowed) in [
        (None, Some(NOW + 30 * DAY), true),
        (Some(NOW), Some(NOW + 90 * DAY), true),
        (Some(NOW + DAY), Some(NOW + 2 * DAY), true),
        (Some(NOW - HOUR), None, true),
        (None, Some(NOW + 91 * DAY), false),
        (None, Some(NOW), false),
        (Some(NOW + 2 * DAY), Some(NOW + DAY), false),
        (Some(NOW - DAY), Some(NOW + DAY), false),
        (Some(NOW + 90 * DAY), None, false),
    ] {
        let wish = json!({"notBefore": begin, "notAfter": end});
        if is_allowed {
            let (_, chain) = client.issue(&server, &["a.example"], wish).await;
            let facts = facts(&chain);
            assert_eq!(end.unwrap_or(facts.not_after), facts.not_after);
            assert_eq!(begin.unwrap_or(facts.not_before), facts.not_before);
            continue;
        }
        let mut wish = wish;
        wish["identifiers"] = identifiers(&["a.example"]);
        let reply = client.order(&server, wish.clone()).await;
        assert_eq!(reply.problem(), kind(400, "malformed"), "{wish}");
    }
}

#[tokio::test]
async fn wildcard_is_proven_by_dns_01_alone() {
    let (server, _) = server(|settings| {
        settings.validation = Validation::Connect {
            ports: Ports::default(),
            resolve: Resolve::System,
        };
    });
    let client = Client::registered(&server).await;
    for (name, kinds) in [
        ("*.a.example", vec!["dns-01"]),
        ("a.example", vec!["http-01", "tls-alpn-01", "dns-01"]),
    ] {
        let wish = json!({"identifiers": identifiers(&[name])});
        let order = client.order(&server, wish).await.json();
        let url = order["authorizations"][0].as_str().unwrap().to_owned();
        let authorization = client.read(&server, &url).await;
        let offered = authorization["challenges"].as_array().unwrap();
        let offered: Vec<&str> = offered
            .iter()
            .map(|one| one["type"].as_str().unwrap())
            .collect();
        assert_eq!(offered, kinds, "{name}");
        assert_eq!(authorization["identifier"]["value"], "a.example");
    }
}

#[tokio::test]
async fn signing_request_must_match_the_order() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let wish = json!({"identifiers": identifiers(&["a.example", "b.example"])});
    let order = client.order(&server, wish).await.location();
    let key = rcgen::KeyPair::generate().unwrap();
    let right = csr(&key, &["a.example", "b.example"]);
    let reply = client.finalize(&server, &order, right.clone()).await;
    assert_eq!(reply.problem(), kind(403, "orderNotReady"));
    client.authorize(&server, &order).await;
    let mut forged = right.clone();
    *forged.last_mut().unwrap() ^= 1;
    let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (what, csr) in [
        ("more", csr(&key, &["a.example", "b.example", "c.example"])),
        ("less", csr(&key, &["a.example"])),
        ("forged", forged),
        ("Ed25519", csr(&ed25519, &["a.example", "b.example"])),
        ("no DER", b"text".to_vec()),
    ] {
        let reply = client.finalize(&server, &order, csr).await;
        assert_eq!(reply.problem(), kind(400, "badCSR"), "{what}");
    }
    let reply = client.finalize(&server, &order, right.clone()).await;
    assert_eq!(reply.json()["status"], "valid");
    let reply = client.finalize(&server, &order, right).await;
    assert_eq!(reply.problem(), kind(403, "orderNotReady"));
}

#[tokio::test]
async fn predecessor_is_replaced_once() {
    let (server, _) = server(|_| ());
    let (client, other) = (
        Client::registered(&server).await,
        Client::registered(&server).await,
    );
    let (_, chain) = client.issue(&server, &["a.example"], json!({})).await;
    let id = facts(&chain).renewal_id.unwrap();
    let wish = |name: &str, replaces: &str| json!({"identifiers": identifiers(&[name]), "replaces": replaces});
    let reply = other.order(&server, wish("a.example", &id)).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));
    let reply = client.order(&server, wish("b.example", &id)).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));
    let reply = client.order(&server, wish("a.example", "unknown.id")).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));
    let taken = client.order(&server, wish("a.example", &id)).await;
    assert_eq!(taken.json()["replaces"], id);
    let reply = client.order(&server, wish("a.example", &id)).await;
    assert_eq!(reply.problem(), kind(409, "alreadyReplaced"));
    // A failed order leaves its predecessor free.
    let authorization = taken.json()["authorizations"][0]
        .as_str()
        .unwrap()
        .to_owned();
    client
        .send(&server, &authorization, r#"{"status": "deactivated"}"#)
        .await;
    assert_eq!(
        client.read(&server, &taken.location()).await["status"],
        "invalid"
    );
    assert_eq!(
        client.order(&server, wish("a.example", &id)).await.status,
        201
    );
}

#[tokio::test]
async fn expired_order_is_invalid() {
    let (server, clock) = server(|_| ());
    let client = Client::registered(&server).await;
    let order = client
        .order(&server, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    clock.advance(DAY);
    assert_eq!(
        client.read(&server, &order.location()).await["status"],
        "invalid"
    );
    let authorization = order.json()["authorizations"][0]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        client.read(&server, &authorization).await["status"],
        "invalid"
    );
}

#[tokio::test]
async fn account_key_is_never_certified() {
    let (server, _) = server(|_| ());
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let mut client = Client {
        key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap(),
        kid: None,
    };
    let account = client.post(&server, "new-account", &json!({})).await;
    client.kid = Some(account.location());
    let wish = json!({"identifiers": identifiers(&["a.example"])});
    let order = client.order(&server, wish).await.location();
    client.authorize(&server, &order).await;
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &pkcs8.as_ref().into(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    );
    let csr = csr(&key.unwrap(), &["a.example"]);
    let reply = client.finalize(&server, &order, csr).await;
    assert_eq!(reply.problem(), kind(400, "badCSR"));
}
