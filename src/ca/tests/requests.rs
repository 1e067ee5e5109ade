//! Authentication, form and access rights of requests.

use serde_json::json;

use super::*;
use crate::certificate::SecretBytes;

#[tokio::test]
async fn request_without_valid_signature_is_refused() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let url = format!("{BASE}/acme/new-order");
    let wish = json!({"identifiers": identifiers(&["a.example"])}).to_string();
    let forger = Client {
        key: Client::new().key,
        kid: client.kid.clone(),
    };
    let reply = forger.send(&server, &url, &wish).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));

    let header = client.header(&format!("{BASE}/acme/key-change"), &nonce(&server).await);
    let reply = client.send_with(&server, &url, &header, &wish).await;
    assert_eq!(reply.problem(), kind(403, "unauthorized"));

    let header = client.header(&url, &nonce(&server).await);
    assert_eq!(
        client.send_with(&server, &url, &header, &wish).await.status,
        201
    );
    let reply = client.send_with(&server, &url, &header, &wish).await;
    assert_eq!(reply.problem(), kind(400, "badNonce"));

    for (field, value, expected) in [
        ("alg", json!("HS256"), "badSignatureAlgorithm"),
        ("alg", json!("none"), "badSignatureAlgorithm"),
        ("crit", json!(["b64"]), "malformed"),
        ("jwk", client.jwk(), "malformed"),
        (
            "kid",
            json!(format!("{BASE}/acme/account/none")),
            "accountDoesNotExist",
        ),
        ("nonce", json!(null), "badNonce"),
    ] {
        let mut header = client.header(&url, &nonce(&server).await);
        header[field] = value;
        let reply = client.send_with(&server, &url, &header, &wish).await;
        assert_eq!(reply.problem(), kind(400, expected), "{field}");
    }
    let mut jws = client.sign(&client.header(&url, &nonce(&server).await), &wish);
    jws["header"] = json!({"alg": "none"});
    let body = jws.to_string().into_bytes();
    let reply = send(&server, "POST", &url, "application/jose+json", body.clone()).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));
    let reply = send(&server, "POST", &url, "application/json", body).await;
    assert_eq!(reply.problem(), kind(415, "malformed"));
    let large = vec![b' '; 64 * 1024 + 1];
    let reply = send(&server, "POST", &url, "application/jose+json", large).await;
    assert_eq!(reply.problem(), kind(413, "malformed"));
    let reply = send(&server, "GET", &url, "", vec![]).await;
    assert_eq!(reply.problem(), kind(405, "malformed"));
    let reply = send(&server, "GET", &format!("{BASE}/else"), "", vec![]).await;
    assert_eq!(reply.problem(), kind(404, "malformed"));
}

#[tokio::test]
async fn object_of_another_account_is_not_found() {
    let (server, _) = server(|_| ());
    let (owner, other) = (
        Client::registered(&server).await,
        Client::registered(&server).await,
    );
    let wish = json!({"identifiers": identifiers(&["a.example"])});
    let order = owner.order(&server, wish).await;
    let authorization = order.json()["authorizations"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let challenge = owner.read(&server, &authorization).await;
    let challenge = challenge["challenges"][0]["url"]
        .as_str()
        .unwrap()
        .to_owned();
    for url in [&order.location(), &authorization, &challenge] {
        let reply = other.send(&server, url, "").await;
        assert_eq!(reply.problem(), kind(404, "malformed"), "{url}");
    }
    let reply = other.send(&server, owner.kid.as_ref().unwrap(), "").await;
    assert_eq!(reply.problem(), kind(403, "unauthorized"));
    owner.authorize(&server, &order.location()).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let reply = other
        .finalize(&server, &order.location(), csr(&key, &["a.example"]))
        .await;
    assert_eq!(reply.problem(), kind(404, "malformed"));
}

/// An external account binding of `jwk`, signed with `secret`.
fn bind(secret: &[u8], kid: &str, jwk: &Value) -> Value {
    let url = format!("{BASE}/acme/new-account");
    let header = json!({"alg": "HS256", "kid": kid, "url": url});
    let (head, body) = (
        encode(header.to_string().as_bytes()),
        encode(jwk.to_string().as_bytes()),
    );
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
    let tag = aws_lc_rs::hmac::sign(&key, format!("{head}.{body}").as_bytes());
    json!({"protected": head, "payload": body, "signature": encode(tag.as_ref())})
}

#[tokio::test]
async fn new_account_needs_binding_and_valid_contacts() {
    let (server, _) = server(|settings| {
        settings.external_accounts.insert(
            "customer".into(),
            SecretBytes::new(b"0123456789abcdef".to_vec()),
        );
    });
    let directory = send(&server, "GET", &format!("{BASE}/directory"), "", vec![]).await;
    assert_eq!(directory.json()["meta"]["externalAccountRequired"], true);
    let client = Client::new();
    let (secret, jwk) = (b"0123456789abcdef", client.jwk());
    let good = bind(secret, "customer", &jwk);
    for (payload, expected) in [
        (
            json!({"onlyReturnExisting": true}),
            kind(400, "accountDoesNotExist"),
        ),
        (json!({}), kind(403, "externalAccountRequired")),
        (
            json!({"externalAccountBinding": bind(b"another secret!!", "customer", &jwk)}),
            kind(403, "unauthorized"),
        ),
        (
            json!({"externalAccountBinding": bind(secret, "unknown", &jwk)}),
            kind(403, "unauthorized"),
        ),
        (
            json!({"externalAccountBinding": bind(secret, "customer", &Client::new().jwk())}),
            kind(400, "malformed"),
        ),
        (
            json!({"externalAccountBinding": good, "contact": ["tel:+1"]}),
            kind(400, "unsupportedContact"),
        ),
        (
            json!({"externalAccountBinding": good, "contact": ["mailto:a"]}),
            kind(400, "invalidContact"),
        ),
    ] {
        let reply = client.post(&server, "new-account", &payload).await;
        assert_eq!(reply.problem(), expected, "{payload}");
    }
    let payload = json!({"externalAccountBinding": good, "termsOfServiceAgreed": true, "contact": ["mailto:a@b.example"]});
    let made = client.post(&server, "new-account", &payload).await;
    assert_eq!(
        (made.status.as_u16(), &made.json()["status"]),
        (201, &json!("valid"))
    );
    let found = client
        .post(&server, "new-account", &json!({"onlyReturnExisting": true}))
        .await;
    assert_eq!(
        (found.status.as_u16(), found.location()),
        (200, made.location())
    );
}

#[tokio::test]
async fn account_is_updated_given_a_new_key_and_deactivated() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let kid = client.kid.clone().unwrap();
    let contact = r#"{"contact": ["mailto:a@b.example"]}"#;
    let changed = client.send(&server, &kid, contact).await;
    assert_eq!(changed.json()["contact"], json!(["mailto:a@b.example"]));
    let changed = client.send(&server, &kid, r#"{"contact": []}"#).await;
    assert_eq!(changed.json()["contact"], json!([]));

    let mut next = Client::new();
    let change_url = format!("{BASE}/acme/key-change");
    let inner = json!({"alg": "ES256", "jwk": next.jwk(), "url": change_url});
    let inner = next.sign(
        &inner,
        &json!({"account": kid, "oldKey": client.jwk()}).to_string(),
    );
    let reply = client.send(&server, &change_url, &inner.to_string()).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json());
    assert_eq!(
        client.send(&server, &kid, "").await.problem(),
        kind(400, "malformed")
    );
    next.kid = Some(kid.clone());
    let ended = next
        .send(&server, &kid, r#"{"status": "deactivated"}"#)
        .await;
    assert_eq!(ended.json()["status"], "deactivated");
    assert_eq!(
        next.send(&server, &kid, "").await.problem(),
        kind(401, "unauthorized")
    );
}

/// The inner JWS of a key change, signed by `new`.
fn change(new: &Client, header: &Value, payload: &Value) -> String {
    let header = json!({"alg": "ES256", "jwk": header["jwk"], "url": header["url"], "nonce": header["nonce"]});
    let header = super::super::problem::without_nulls(header);
    new.sign(&header, &payload.to_string()).to_string()
}

#[tokio::test]
async fn key_change_that_is_wrong_or_taken_is_refused() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let (other, next) = (Client::registered(&server).await, Client::new());
    let url = format!("{BASE}/acme/key-change");
    let (kid, old) = (client.kid.clone().unwrap(), client.jwk());
    let header = json!({"jwk": next.jwk(), "url": url});
    let payload = json!({"account": kid, "oldKey": old});
    let with = |base: &Value, field: &str, value: Value| {
        let mut changed = base.clone();
        changed[field] = value;
        changed
    };
    for (what, inner) in [
        (
            "another URL",
            change(&next, &with(&header, "url", json!(BASE)), &payload),
        ),
        (
            "a nonce",
            change(&next, &with(&header, "nonce", json!("n")), &payload),
        ),
        (
            "no signature of the new key",
            change(&client, &header, &payload),
        ),
        (
            "another account",
            change(&next, &header, &with(&payload, "account", json!(other.kid))),
        ),
        (
            "another old key",
            change(&next, &header, &with(&payload, "oldKey", other.jwk())),
        ),
        (
            "no old key",
            change(&next, &header, &json!({"account": kid})),
        ),
        ("no JWS", "{}".to_owned()),
    ] {
        let reply = client.send(&server, &url, &inner).await;
        assert_eq!(reply.problem(), kind(400, "malformed"), "{what}");
    }
    // RFC 8555 section 7.3.5: 409, with the account that has the key.
    let taken = change(&other, &with(&header, "jwk", other.jwk()), &payload);
    let reply = client.send(&server, &url, &taken).await;
    assert_eq!(reply.problem(), kind(409, "malformed"));
    assert_eq!(Some(reply.location()), other.kid);
    // Nothing has changed.
    assert_eq!(client.send(&server, &kid, "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn deactivated_account_orders_nothing_and_loses_its_orders() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let kid = client.kid.clone().unwrap();
    let wish = json!({"identifiers": identifiers(&["a.example"])});
    let order = client.order(&server, wish.clone()).await.location();
    client.authorize(&server, &order).await;
    let listed = client.send(&server, &format!("{kid}/orders"), "").await;
    assert_eq!(listed.json()["orders"], json!([order]));
    let wrong = r#"{"status": "revoked"}"#;
    let reply = client.send(&server, &kid, wrong).await;
    assert_eq!(reply.problem(), kind(400, "malformed"));
    let ended = r#"{"status": "deactivated"}"#;
    client.send(&server, &kid, ended).await;
    for reply in [
        client.order(&server, wish).await,
        client.send(&server, &order, "").await,
    ] {
        assert_eq!(reply.problem(), kind(401, "unauthorized"));
    }
    let id = order.rsplit('/').next().unwrap().to_owned();
    server.look(|state| {
        assert_eq!(json!(state.orders[&id].status), json!("invalid"));
        let mut all = state.authorizations.values();
        assert!(all.all(|one| json!(one.status) == json!("deactivated")));
    });
    // Its key cannot come back as another account.
    let again = Client {
        key: client.key,
        kid: None,
    };
    let reply = again.post(&server, "new-account", &json!({})).await;
    assert_eq!(reply.problem(), kind(401, "unauthorized"));
}
