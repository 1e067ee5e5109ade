//! Issued certificates, their renewal windows and their revocation.

use serde_json::json;

use super::*;
use crate::record::Window;

#[tokio::test]
async fn certificate_is_valid_and_chains_to_the_root() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let names = ["example.com", "www.example.com", "192.0.2.7", "2001:db8::1"];
    let (key, chain) = client.issue(&server, &names, json!({})).await;
    let to_the_root = format!("{chain}{}", server.root_pem());
    let bundle = Bundle::new(key, &to_the_root, &set(&names), NOW, Freshness::Issued).unwrap();
    assert_eq!(bundle.chain().len(), 3);
    assert_eq!(bundle.facts().lifetime(), 90 * DAY);
    assert!(bundle.facts().renewal_id.is_some());
    let wildcard = client.issue(&server, &["*.example.com"], json!({})).await;
    assert_eq!(facts(&wildcard.1).identifiers, set(&["*.example.com"]));
}

#[tokio::test]
async fn profile_lifetime_may_be_one_second() {
    let (server, _) = server(|settings| {
        for seconds in [1, 30] {
            let profile = Profile::new(Duration::from_secs(seconds), "short");
            settings.profiles.insert(seconds.to_string(), profile);
        }
    });
    let client = Client::registered(&server).await;
    for (profile, seconds) in [("1", 1), ("30", 30), ("shortlived", 160 * 3600)] {
        let (_, chain) = client
            .issue(&server, &["a.example"], json!({"profile": profile}))
            .await;
        assert_eq!(facts(&chain).lifetime(), Duration::from_secs(seconds));
        assert!(facts(&chain).not_before <= NOW);
    }
    let wish = json!({"identifiers": identifiers(&["a.example"]), "profile": "eternal"});
    let reply = client.order(&server, wish).await;
    assert_eq!(reply.problem(), kind(400, "invalidProfile"));
}

#[tokio::test]
async fn window_follows_policy() {
    let (delay, width) = (Duration::from_secs(5), Duration::from_secs(2));
    let window = async |windows| {
        let (server, _) = server(|settings| settings.windows = windows);
        let client = Client::registered(&server).await;
        let (_, chain) = client.issue(&server, &["a.example"], json!({})).await;
        let facts = facts(&chain);
        let id = facts.renewal_id.as_ref().unwrap();
        let url = format!("{BASE}/acme/renewal-info/{id}");
        let reply = send(&server, "GET", &url, "", vec![]).await;
        assert_eq!(reply.headers["retry-after"], "21600");
        let window = &reply.json()["suggestedWindow"];
        let window = serde_json::from_value::<Window>(window.clone()).unwrap();
        (window, facts)
    };
    let (usual, facts) = window(RenewalWindows::Share).await;
    let middle = facts.not_before + 60 * DAY;
    assert!(usual.start < middle && middle < usual.end && usual.end.since(usual.start) < 2 * DAY);
    let (start, end) = (NOW + delay, NOW + delay + width);
    let after = window(RenewalWindows::After { delay, width }).await.0;
    assert_eq!(after, Window { start, end });
    let (server, _) = server(|_| ());
    let unknown = send(
        &server,
        "GET",
        &format!("{BASE}/acme/renewal-info/a.b"),
        "",
        vec![],
    )
    .await;
    assert_eq!(unknown.problem(), kind(404, "malformed"));
}

#[tokio::test]
async fn revocation_needs_the_account_and_makes_the_window_past() {
    let (server, clock) = server(|_| ());
    let client = Client::registered(&server).await;
    let (_, chain) = client.issue(&server, &["a.example"], json!({})).await;
    clock.advance(HOUR);
    let der = certificate_der(&chain);
    let payload = json!({"certificate": encode(&der), "reason": 1});
    let other = Client::registered(&server).await;
    let reply = other.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.problem(), kind(403, "unauthorized"));
    let wrong = json!({"certificate": encode(&der), "reason": 7});
    let reply = client.post(&server, "revoke-certificate", &wrong).await;
    assert_eq!(reply.problem(), kind(400, "badRevocationReason"));
    assert_eq!(
        client
            .post(&server, "revoke-certificate", &payload)
            .await
            .status,
        200
    );
    let reply = client.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.problem(), kind(400, "alreadyRevoked"));
    let id = facts(&chain).renewal_id.unwrap();
    let reply = send(
        &server,
        "GET",
        &format!("{BASE}/acme/renewal-info/{id}"),
        "",
        vec![],
    )
    .await;
    let window: Window = serde_json::from_value(reply.json()["suggestedWindow"].clone()).unwrap();
    assert_eq!(window.end, clock.now());
}

#[tokio::test]
async fn certificate_is_revoked_by_its_own_key() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let order = client
        .order(&server, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    client.authorize(&server, &order.location()).await;
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let owner = Client {
        key: EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap(),
        kid: None,
    };
    let key = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(
        &pkcs8.as_ref().into(),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    );
    let reply = client
        .finalize(
            &server,
            &order.location(),
            csr(&key.unwrap(), &["a.example"]),
        )
        .await;
    let url = reply.json()["certificate"].as_str().unwrap().to_owned();
    let chain = client.send(&server, &url, "").await.body;
    let der = certificate_der(std::str::from_utf8(&chain).unwrap());
    let payload = json!({"certificate": encode(&der)});
    let other = Client::new();
    let reply = other.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.problem(), kind(403, "unauthorized"));
    assert_eq!(
        owner
            .post(&server, "revoke-certificate", &payload)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn intermediate_is_replaced_before_it_expires() {
    let (server, clock) = server(|_| ());
    let client = Client::registered(&server).await;
    let (_, before) = client.issue(&server, &["a.example"], json!({})).await;
    clock.advance(300 * DAY);
    let (key, after) = client.issue(&server, &["a.example"], json!({})).await;
    let intermediate = |chain: &str| {
        chain
            .split_inclusive("END CERTIFICATE-----\n")
            .nth(1)
            .unwrap()
            .to_owned()
    };
    assert_ne!(intermediate(&before), intermediate(&after));
    let to_the_root = format!("{after}{}", server.root_pem());
    let bundle = Bundle::new(
        key,
        &to_the_root,
        &set(&["a.example"]),
        clock.now(),
        Freshness::Issued,
    );
    assert_eq!(bundle.unwrap().facts().lifetime(), 90 * DAY);
}

fn certificate_der(chain: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let leaf = rustls::pki_types::CertificateDer::from_pem_slice(chain.as_bytes());
    leaf.unwrap().to_vec()
}
