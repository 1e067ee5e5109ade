//! The server from the client's side, without a socket: a valid request gets its
//! reply, an invalid one the problem that the RFCs name.

mod certificates;
mod constraints;
mod orders;
mod requests;
mod restart;
mod revocation;
mod validation;

use std::collections::BTreeSet;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower_service::Service;

use super::jws::encode;
use super::*;
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::identifier::Identifier;
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

    /// The status and the last part of the problem's type.
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

    /// Starts the challenges of an order and waits until it is not pending.
    async fn authorize(&self, server: &Server, order: &str) -> Value {
        for authorization in self.read(server, order).await["authorizations"]
            .as_array()
            .unwrap()
        {
            let shown = self.read(server, authorization.as_str().unwrap()).await;
            let challenge = shown["challenges"][0]["url"].as_str().unwrap().to_owned();
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

    /// Issues a certificate for `names`: the key and the chain.
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
    let one = |name: &&str| super::problem::identifier_json(&Identifier::parse(name).unwrap());
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
