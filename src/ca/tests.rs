//! The server from its clients' side, without a socket: what is right is
//! answered, what is wrong is refused with the problem that the RFCs name.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower_service::Service;

use super::jws::encode;
use super::*;
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::identifier::Identifier;
use crate::record::Window;
use crate::time::{Clock, Timestamp, VirtualClock};

const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
const BASE: &str = "https://embedded.certs.internal";

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn location(&self) -> String {
        self.headers["location"].to_str().unwrap().to_owned()
    }

    /// The status and the last word of the problem's type.
    fn problem(&self) -> (u16, String) {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let kind = self.json()["type"].as_str().unwrap().to_owned();
        let kind = kind.strip_prefix("urn:ietf:params:acme:error:").unwrap();
        assert_eq!(self.json()["status"], self.status.as_u16());
        (self.status.as_u16(), kind.to_owned())
    }
}

fn server(change: impl FnOnce(&mut Settings)) -> (Server, std::sync::Arc<VirtualClock>) {
    let clock = std::sync::Arc::new(VirtualClock::new(NOW));
    let mut settings = Settings::new(BASE);
    settings.validation = Validation::AlwaysValid;
    change(&mut settings);
    (Server::new(settings, clock.clone()).unwrap(), clock)
}

async fn send(server: &Server, method: &str, url: &str, kind: &str, body: Vec<u8>) -> Reply {
    let path = url.strip_prefix(BASE).unwrap();
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", kind).body(Body::from(body));
    let reply = server.router().call(request.unwrap()).await.unwrap();
    let (parts, body) = reply.into_parts();
    Reply {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

async fn nonce(server: &Server) -> String {
    let reply = send(
        server,
        "HEAD",
        &format!("{BASE}/acme/new-nonce"),
        "",
        vec![],
    )
    .await;
    assert_eq!((reply.status.as_u16(), reply.body.len()), (200, 0));
    reply.headers["replay-nonce"].to_str().unwrap().to_owned()
}

/// An account's key, and its URL once it has one.
struct Client {
    key: EcdsaKeyPair,
    kid: Option<String>,
}

impl Client {
    fn new() -> Self {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref());
        Self {
            key: key.unwrap(),
            kid: None,
        }
    }

    async fn registered(server: &Server) -> Self {
        let mut client = Self::new();
        let reply = client.post(server, "new-account", &json!({})).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{:?}", reply.json());
        client.kid = Some(reply.location());
        client
    }

    fn jwk(&self) -> Value {
        let (x, y) = self.key.public_key().as_ref()[1..].split_at(32);
        json!({"kty": "EC", "crv": "P-256", "x": encode(x), "y": encode(y)})
    }

    fn header(&self, url: &str, nonce: &str) -> Value {
        let mut header = json!({"alg": "ES256", "url": url, "nonce": nonce});
        match &self.kid {
            Some(kid) => header["kid"] = kid.as_str().into(),
            None => header["jwk"] = self.jwk(),
        }
        header
    }

    fn sign(&self, header: &Value, payload: &str) -> Value {
        let (head, body) = (
            encode(header.to_string().as_bytes()),
            encode(payload.as_bytes()),
        );
        let signed = self
            .key
            .sign(&SystemRandom::new(), format!("{head}.{body}").as_bytes());
        json!({"protected": head, "payload": body, "signature": encode(signed.unwrap().as_ref())})
    }

    async fn send(&self, server: &Server, url: &str, payload: &str) -> Reply {
        let header = self.header(url, &nonce(server).await);
        self.send_with(server, url, &header, payload).await
    }

    async fn send_with(&self, server: &Server, url: &str, header: &Value, payload: &str) -> Reply {
        let body = self.sign(header, payload).to_string().into_bytes();
        let reply = send(server, "POST", url, "application/jose+json", body).await;
        assert!(reply.headers.contains_key("replay-nonce"));
        let index = format!("<{BASE}/directory>;rel=\"index\"");
        assert!(
            reply
                .headers
                .get_all("link")
                .iter()
                .any(|link| *link == index)
        );
        reply
    }

    async fn post(&self, server: &Server, endpoint: &str, payload: &Value) -> Reply {
        let url = format!("{BASE}/acme/{endpoint}");
        self.send(server, &url, &payload.to_string()).await
    }

    async fn read(&self, server: &Server, url: &str) -> Value {
        self.send(server, url, "").await.json()
    }

    async fn order(&self, server: &Server, payload: Value) -> Reply {
        self.post(server, "new-order", &payload).await
    }

    /// Takes the challenges of an order on and waits for its end.
    async fn authorize(&self, server: &Server, order: &str) -> Value {
        for authorization in self.read(server, order).await["authorizations"]
            .as_array()
            .unwrap()
        {
            let held = self.read(server, authorization.as_str().unwrap()).await;
            let challenge = held["challenges"][0]["url"].as_str().unwrap().to_owned();
            let reply = self.send(server, &challenge, "{}").await;
            let up = format!("<{}>;rel=\"up\"", authorization.as_str().unwrap());
            assert!(reply.headers.get_all("link").iter().any(|link| *link == up));
        }
        loop {
            let order = self.read(server, order).await;
            if order["status"] != "pending" {
                return order;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The whole way to a certificate for `names`: the key and the chain.
    async fn issue(&self, server: &Server, names: &[&str], more: Value) -> (Secret, String) {
        let mut wish = more;
        wish["identifiers"] = identifiers(names);
        let reply = self.order(server, wish).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{}", reply.json());
        let order = reply.location();
        assert_eq!(self.authorize(server, &order).await["status"], "ready");
        let key = rcgen::KeyPair::generate().unwrap();
        let reply = self.finalize(server, &order, csr(&key, names)).await;
        assert_eq!(reply.json()["status"], "valid", "{}", reply.json());
        let certificate = reply.json()["certificate"].as_str().unwrap().to_owned();
        let chain = self.send(server, &certificate, "").await;
        assert_eq!(
            chain.headers["content-type"],
            "application/pem-certificate-chain"
        );
        (
            Secret::new(key.serialize_pem()),
            String::from_utf8(chain.body).unwrap(),
        )
    }

    async fn finalize(&self, server: &Server, order: &str, csr: Vec<u8>) -> Reply {
        let payload = json!({"csr": encode(&csr)}).to_string();
        self.send(server, &format!("{order}/finalize"), &payload)
            .await
    }
}

fn identifiers(names: &[&str]) -> Value {
    let one = |name: &&str| order::identifier_json(&Identifier::parse(name).unwrap());
    names.iter().map(one).collect()
}

fn csr(key: &rcgen::KeyPair, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = rcgen::CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serialize_request(key).unwrap().der().to_vec()
}

fn set(names: &[&str]) -> BTreeSet<Identifier> {
    names
        .iter()
        .map(|name| Identifier::parse(name).unwrap())
        .collect()
}

fn facts(chain: &str) -> Facts {
    use rustls::pki_types::pem::PemObject;
    let leaf = rustls::pki_types::CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    Facts::of(&leaf).unwrap()
}

fn kind(status: u16, kind: &str) -> (u16, String) {
    (status, kind.to_owned())
}

#[tokio::test]
async fn a_certificate_is_sound_and_its_chain_ends_at_the_root() {
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
async fn lifetimes_go_down_to_a_second() {
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
async fn a_request_that_is_not_signed_right_does_nothing() {
    let (server, _) = server(|_| ());
    let client = Client::registered(&server).await;
    let url = format!("{BASE}/acme/new-order");
    let wish = json!({"identifiers": identifiers(&["a.example"])}).to_string();
    let stranger = Client {
        key: Client::new().key,
        kid: client.kid.clone(),
    };
    let reply = stranger.send(&server, &url, &wish).await;
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
async fn what_is_another_accounts_looks_as_if_it_were_not_there() {
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

#[tokio::test]
async fn a_signing_request_must_be_exactly_the_order() {
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
async fn orders_that_cannot_be_are_refused() {
    let (server, _) = server(|settings| {
        settings.validation = Validation::Http {
            port: 80,
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
            json!({"identifiers": dns("a.example"), "notAfter": "2030-01-01T00:00:00Z"}),
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
    let reply = client
        .order(&server, json!({"identifiers": dns("*.a.example")}))
        .await;
    assert_eq!(reply.problem(), kind(403, "rejectedIdentifier"));
    assert_eq!(
        reply.json()["subproblems"][0]["identifier"]["value"],
        "*.a.example"
    );
    assert!(reply.json()["detail"].as_str().unwrap().contains("dns-01"));
}

#[tokio::test]
async fn accounts_are_found_changed_bound_and_ended() {
    let (server, _) = server(|settings| {
        settings
            .external_accounts
            .insert("customer".into(), b"0123456789abcdef".to_vec());
        settings.terms_of_service = Some("https://terms.example".into());
    });
    let directory = send(&server, "GET", &format!("{BASE}/directory"), "", vec![]).await;
    assert_eq!(directory.json()["meta"]["externalAccountRequired"], true);
    let mut client = Client::new();
    let url = format!("{BASE}/acme/new-account");
    let bind = |secret: &[u8], kid: &str, jwk: &Value| {
        let header = json!({"alg": "HS256", "kid": kid, "url": url});
        let (head, body) = (
            encode(header.to_string().as_bytes()),
            encode(jwk.to_string().as_bytes()),
        );
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, format!("{head}.{body}").as_bytes());
        json!({"protected": head, "payload": body, "signature": encode(tag.as_ref())})
    };
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
            json!({"externalAccountBinding": bind(secret, "nobody", &jwk)}),
            kind(403, "unauthorized"),
        ),
        (
            json!({"externalAccountBinding": bind(secret, "customer", &Client::new().jwk())}),
            kind(400, "malformed"),
        ),
        (
            json!({"externalAccountBinding": good}),
            kind(403, "userActionRequired"),
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

    let kid = made.location();
    client.kid = Some(kid.clone());
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

#[tokio::test]
async fn a_predecessor_is_replaced_once() {
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
    // An order that came to nothing leaves its predecessor free.
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
async fn the_window_follows_the_policy_a_suggestion_and_a_revocation() {
    let (server, clock) = server(|_| ());
    let client = Client::registered(&server).await;
    let (_, chain) = client.issue(&server, &["a.example"], json!({})).await;
    let id = facts(&chain).renewal_id.unwrap();
    let url = format!("{BASE}/acme/renewal-info/{id}");
    let window = async || {
        let reply = send(&server, "GET", &url, "", vec![]).await;
        assert_eq!(reply.headers["retry-after"], "21600");
        let window = &reply.json()["suggestedWindow"];
        serde_json::from_value::<Window>(window.clone()).unwrap()
    };
    let usual = window().await;
    let middle = facts(&chain).not_before + 60 * DAY;
    assert!(usual.start < middle && middle < usual.end && usual.end.since(usual.start) < 2 * DAY);
    let (delay, width) = (Duration::from_secs(5), Duration::from_secs(2));
    server.suggest_by(RenewalWindows::After { delay, width });
    assert_eq!(
        window().await,
        Window {
            start: NOW + delay,
            end: NOW + delay + width
        }
    );
    let past = Window {
        start: NOW - DAY,
        end: NOW - HOUR,
    };
    server.suggest(&id, past.clone());
    assert_eq!(window().await, past);
    let unknown = send(
        &server,
        "GET",
        &format!("{BASE}/acme/renewal-info/a.b"),
        "",
        vec![],
    )
    .await;
    assert_eq!(unknown.problem(), kind(404, "malformed"));

    let (_, chain) = client.issue(&server, &["a.example"], json!({})).await;
    clock.advance(HOUR);
    let der = certificate_der(&chain);
    let payload = json!({"certificate": encode(&der), "reason": 1});
    let stranger = Client::registered(&server).await;
    let reply = stranger.post(&server, "revoke-certificate", &payload).await;
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

fn certificate_der(chain: &str) -> Vec<u8> {
    use rustls::pki_types::pem::PemObject;
    let leaf = rustls::pki_types::CertificateDer::from_pem_slice(chain.as_bytes());
    leaf.unwrap().to_vec()
}

#[tokio::test]
async fn a_certificate_is_revoked_by_its_own_key() {
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
    let stranger = Client::new();
    let reply = stranger.post(&server, "revoke-certificate", &payload).await;
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
async fn an_order_that_is_not_finished_in_time_is_invalid() {
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
async fn a_restart_keeps_the_root_the_accounts_and_the_orders() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca");
    let open = || server(|settings| settings.directory = Some(path.clone())).0;
    let first = open();
    let client = Client::registered(&first).await;
    let order = client
        .order(&first, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    client.authorize(&first, &order.location()).await;
    let root = first.root_pem().to_owned();
    let clock = std::sync::Arc::new(VirtualClock::new(NOW));
    let mut settings = Settings::new(BASE);
    settings.directory = Some(path.clone());
    assert!(matches!(
        Server::new(settings, clock),
        Err(CaError::InUse(_))
    ));
    // The task of the validation holds on to the server until it has written.
    while std::sync::Arc::strong_count(&first.0) > 1 {
        tokio::task::yield_now().await;
    }
    drop(first);
    let second = open();
    assert_eq!(second.root_pem(), root);
    let key = rcgen::KeyPair::generate().unwrap();
    let reply = client
        .finalize(&second, &order.location(), csr(&key, &["a.example"]))
        .await;
    assert_eq!(reply.json()["status"], "valid", "{}", reply.json());
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&path), 0o700);
    for (name, expected) in [
        ("root.pem", 0o644),
        ("root.key", 0o600),
        ("intermediate.pem", 0o600),
        ("state.json", 0o600),
    ] {
        assert_eq!(mode(&path.join(name)), expected, "{name}");
    }
    drop(second);
    std::fs::write(path.join("root.key"), "").unwrap();
    let clock = std::sync::Arc::new(VirtualClock::new(NOW));
    let mut settings = Settings::new(BASE);
    settings.directory = Some(path.clone());
    let refused = Server::new(settings, clock);
    assert!(matches!(refused, Err(CaError::Corrupt { .. })));
    assert_eq!(
        std::fs::read_to_string(path.join("root.pem")).unwrap(),
        root
    );
}

#[tokio::test]
async fn the_intermediate_is_made_anew_before_it_ends() {
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

/// Answers one request on `listener` with `reply` and gives the request's head.
async fn answer(listener: tokio::net::TcpListener, reply: String) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(reply.as_bytes()).await.unwrap();
    String::from_utf8(head).unwrap()
}

async fn validated(reply: Option<&str>) -> (Result<(), problem::Problem>, String) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let resolve = Resolve::Fixed(Ipv4Addr::LOCALHOST.into());
    let name = Identifier::parse("a.example").unwrap();
    let asked = validate::http01(&name, "TOKEN", "TOKEN.thumb", port, resolve);
    match reply {
        Some(reply) => tokio::join!(asked, answer(listener, reply.to_owned())),
        None => {
            drop(listener);
            (asked.await, String::new())
        }
    }
}

#[tokio::test]
async fn validation_takes_the_key_authorization_and_nothing_else() {
    let ok = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let (ended, head) = validated(Some(&ok("TOKEN.thumb\n"))).await;
    assert_eq!(ended, Ok(()));
    assert!(
        head.starts_with("GET /.well-known/acme-challenge/TOKEN HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.to_lowercase().contains("host: a.example:"), "{head}");
    for (reply, kind, words) in [
        (
            Some(ok("TOKEN.other")),
            problem::Kind::Unauthorized,
            "`TOKEN.other`",
        ),
        (
            Some(ok("\x1b[31mred")),
            problem::Kind::Unauthorized,
            "\\x1b[31mred",
        ),
        (
            Some(ok(&"x".repeat(1025))),
            problem::Kind::IncorrectResponse,
            "1 KiB",
        ),
        (
            Some("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()),
            problem::Kind::Unauthorized,
            "HTTP 404",
        ),
        (
            Some(
                "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n"
                    .into(),
            ),
            problem::Kind::IncorrectResponse,
            "redirect to `http://10.0.0.1/`",
        ),
        (
            Some("nonsense\r\n\r\n".into()),
            problem::Kind::Connection,
            "no HTTP answer",
        ),
        (None, problem::Kind::Connection, "127.0.0.1"),
    ] {
        let problem = validated(reply.as_deref()).await.0.unwrap_err();
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.to_string().contains(words), "{problem}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_answer_makes_its_order_invalid() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let resolve = Resolve::Fixed(Ipv4Addr::LOCALHOST.into());
    drop(listener);
    let (server, _) = server(|settings| settings.validation = Validation::Http { port, resolve });
    let client = Client::registered(&server).await;
    let order = client
        .order(&server, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    let ended = client.authorize(&server, &order.location()).await;
    assert_eq!(ended["status"], "invalid");
    assert_eq!(
        ended["error"]["subproblems"][0]["identifier"]["value"],
        "a.example"
    );
    let authorization = order.json()["authorizations"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let held = client.read(&server, &authorization).await;
    assert_eq!(
        held["challenges"][0]["error"]["type"],
        "urn:ietf:params:acme:error:connection"
    );
}
