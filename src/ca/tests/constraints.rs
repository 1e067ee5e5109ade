//! The names that a root permits, and the orders that an account may have.

use std::collections::BTreeSet;

use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;

use super::super::authority::Authority;
use super::super::constraints::{PRIVATE, Permitted};
use super::super::directory::StateDirectory;
use super::super::state::{Revocation, SignedCertificate};
use super::*;
use crate::time::{Clock, SystemClock};

fn permitted(further: &[&str]) -> Vec<Permitted> {
    let all = PRIVATE.iter().chain(further);
    all.map(|one| one.parse().unwrap()).collect()
}

/// Whether a client that trusts the root accepts a certificate that it signed for `name`.
fn is_accepted(authority: &Authority, name: &str) -> bool {
    let (identifier, now) = (Identifier::parse(name).unwrap(), SystemClock.now());
    let key = KeyPair::generate().unwrap();
    let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
    let validity = (now - super::super::HOUR, now + super::super::DAY);
    let names = BTreeSet::from([identifier]);
    let (_, chain) = authority.sign(&public, &names, validity, now).unwrap();
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes());
    let chain: Vec<_> = chain.collect::<Result<_, _>>().unwrap();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.root_pem().as_bytes());
    roots.add(root.unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
    let name = ServerName::try_from(name).unwrap();
    let verified = verifier.build().unwrap().verify_server_cert(
        &chain[0],
        &chain[1..],
        &name,
        &[],
        UnixTime::now(),
    );
    verified.is_ok()
}

#[test]
fn root_permits_private_names_and_those_of_its_start_only() {
    let now = SystemClock.now();
    let authority = Authority::open(None, &permitted(&["iana.com"]), None, now).unwrap();
    for (name, is_permitted) in [
        ("localhost", true),
        ("web.test", true),
        ("a.b.home.arpa", true),
        ("iana.com", true),
        ("www.iana.com", true),
        ("www.example.com", true),
        ("127.0.0.1", true),
        ("192.168.7.7", true),
        ("fd00::1", true),
        ("iana.org", false),
        ("notiana.com", false),
        ("atest", false),
        ("9.9.9.9", false),
        ("2606:4700::1", false),
    ] {
        let identifier = Identifier::parse(name).unwrap();
        assert_eq!(authority.permits(&identifier), is_permitted, "{name}");
        assert_eq!(is_accepted(&authority, name), is_permitted, "{name}");
    }
    let all = Authority::open(None, &[], None, now).unwrap();
    assert!(all.permits(&Identifier::parse("iana.org").unwrap()));
    assert!(is_accepted(&all, "iana.org"));
}

#[test]
fn existing_root_keeps_its_constraints() {
    let (directory, now) = (tempfile::tempdir().unwrap(), SystemClock.now());
    let other = Identifier::parse("iana.org").unwrap();
    let open = |permitted: &[Permitted]| {
        let on_disk = StateDirectory::open(&directory.path().join("ca")).unwrap();
        let opened = Authority::open(Some(on_disk.into()), permitted, None, now);
        opened.unwrap().permits(&other)
    };
    assert!(open(&[]));
    assert!(
        open(&permitted(&[])),
        "a root without constraints stays as it is"
    );
}

#[tokio::test]
async fn order_of_a_name_that_the_root_does_not_permit_is_refused() {
    let (server, _) = server(|settings| settings.permitted = permitted(&[]));
    let client = Client::registered(&server).await;
    let url = format!("{BASE}/acme/new-order");
    let order = |name: &str| json!({"identifiers": identifiers(&["web.test", name])}).to_string();
    let refused = client.send(&server, &url, &order("iana.org")).await;
    assert_eq!(refused.problem(), kind(403, "rejectedIdentifier"));
    let subproblems = refused.json()["subproblems"].as_array().unwrap().len();
    assert_eq!(subproblems, 1);
    let placed = client.send(&server, &url, &order("db.internal")).await;
    assert_eq!(placed.status.as_u16(), 201);
}

#[tokio::test]
async fn orders_of_an_account_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let (server, _) = server(|settings| settings.directory = Some(path));
    let client = Client::registered(&server).await;
    let url = format!("{BASE}/acme/new-order");
    let names: Vec<_> = (0..100).map(|n| format!("n{n}.example")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let body = json!({"identifiers": identifiers(&names)}).to_string();
    let mut placed = Vec::new();
    for _ in 0..10 {
        placed.push(client.send(&server, &url, &body).await);
    }
    assert!(placed.iter().all(|reply| reply.status.as_u16() == 201));
    let refused = client.send(&server, &url, &body).await;
    assert_eq!(refused.problem().1, "rateLimited");
    // Each is deactivated, and so finished: many of them leave a small state.
    for _ in 0..60 {
        let order = placed.pop().unwrap().json();
        let authorization = order["authorizations"][0].as_str().unwrap();
        let update = r#"{"status":"deactivated"}"#;
        client.send(&server, authorization, update).await;
        placed.push(client.send(&server, &url, &body).await);
        assert_eq!(placed.last().unwrap().status.as_u16(), 201);
    }
    let size = std::fs::metadata(directory.path().join("state.json"))
        .unwrap()
        .len();
    assert!(size < 2 << 20, "{size}");
}

#[tokio::test]
async fn certificates_of_an_account_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let (server, clock) = server(|settings| settings.directory = Some(path));
    let size = || {
        std::fs::metadata(directory.path().join("state.json"))
            .unwrap()
            .len()
    };
    let client = Client::registered(&server).await;
    let long = format!("{}.{}", "a".repeat(60), "b".repeat(60));
    let name = |n| format!("n{n}.{long}.example");
    server.look(|state| {
        let certificate = |identifiers: &[&str]| SignedCertificate {
            account: client.kid.as_ref().unwrap()[BASE.len() + "/acme/account/".len()..].to_owned(),
            identifiers: set(identifiers),
            chain_pem: "x".repeat(20_000),
            not_before: NOW,
            not_after: NOW + DAY,
            issued: NOW,
            revoked: None,
        };
        for n in 0..210 {
            state
                .certificates
                .insert(n.to_string(), certificate(&[&name(n)]));
        }
    });
    let wish = || json!({"identifiers": identifiers(&["a.example"])});
    let refused = client.order(&server, wish()).await;
    assert_eq!(refused.problem(), kind(429, "rateLimited"));
    assert!(refused.headers.contains_key("retry-after"));
    let other = Client::registered(&server).await;
    other.issue(&server, &["a.example"], json!({})).await;
    // A newer certificate for the same names makes room.
    server.look(|state| {
        let mut newer = state.certificates["0"].clone();
        newer.issued = NOW + SECOND;
        state.certificates.insert("newer".into(), newer);
        for n in 1..20 {
            let identifiers = state.certificates["0"].identifiers.clone();
            state
                .certificates
                .get_mut(&n.to_string())
                .unwrap()
                .identifiers = identifiers;
        }
    });
    // A revoked one stays for the revocation list.
    server.look(|state| {
        state.certificates.get_mut("1").unwrap().revoked = Some(Revocation { at: NOW, reason: 1 });
    });
    client.issue(&server, &["a.example"], json!({})).await;
    server.look(|state| {
        assert_eq!(state.certificates.len(), 191 + 3);
        assert!(state.certificates.contains_key("newer"));
        assert!(state.certificates.contains_key("1"));
        assert!(!state.certificates.contains_key("0"));
    });
    assert!(size() < 5 << 20, "{}", size());
    // The expired ones of the account are dropped when it has too many, the others stay.
    server.look(|state| {
        let filler = state.certificates["100"].clone();
        for n in 0..20 {
            let mut filler = filler.clone();
            filler.identifiers = set(&[&name(500 + n)]);
            state.certificates.insert(format!("filler{n}"), filler);
        }
    });
    clock.advance(2 * DAY);
    client.issue(&server, &["b.example"], json!({})).await;
    server.look(|state| assert_eq!(state.certificates.len(), 3));
}
