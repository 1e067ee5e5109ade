//! Revocation lists: what they say, by which issuer, and what survives.

use std::path::PathBuf;

use serde_json::json;
use x509_parser::prelude::{CertificateRevocationList, FromDer, ParsedExtension, X509Certificate};

use super::*;

const LISTS: &str = "http://ca.test:14000";

fn with_lists(directory: Option<PathBuf>) -> (Server, std::sync::Arc<VirtualClock>) {
    server(|settings| {
        settings.lists_url = Some(LISTS.into());
        settings.directory = directory;
    })
}

fn certificates(chain: &str) -> Vec<Vec<u8>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let all = CertificateDer::pem_slice_iter(chain.as_bytes());
    all.map(|one| one.unwrap().to_vec()).collect()
}

/// The path of the list that a certificate names.
fn list_of(certificate: &[u8]) -> String {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    let mut extensions = certificate.extensions().iter();
    let points = extensions.find_map(|one| match one.parsed_extension() {
        ParsedExtension::CRLDistributionPoints(points) => Some(points),
        _ => None,
    });
    let text = format!("{:?}", points.unwrap());
    let url = text.split_once(LISTS).unwrap().1;
    url.split_once(".crl").unwrap().0.to_owned() + ".crl"
}

/// What a list says.
#[derive(Debug, PartialEq)]
struct Listed {
    number: Vec<u8>,
    next_update: i64,
    /// Serial number and reason.
    revoked: Vec<(Vec<u8>, Option<u8>)>,
}

/// The list that `leaf` names, which `issuer` must have signed.
async fn listed(server: &Server, leaf: &[u8], issuer: &[u8]) -> Listed {
    // A client without TLS gets it.
    let request = Request::get(list_of(leaf)).body(Body::empty()).unwrap();
    let reply = server.public_router().call(request).await.unwrap();
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()["content-type"], "application/pkix-crl");
    let der = reply.into_body().collect().await.unwrap().to_bytes();
    let (_, list) = CertificateRevocationList::from_der(&der).unwrap();
    let (_, issuer) = X509Certificate::from_der(issuer).unwrap();
    list.verify_signature(issuer.public_key()).unwrap();
    assert_eq!(list.issuer(), issuer.subject());
    let (mut number, mut authority) = (None, None);
    for extension in list.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::CRLNumber(found) => number = Some(found.to_bytes_be()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    let own = issuer
        .extensions()
        .iter()
        .find_map(|one| match one.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
    assert_eq!(authority, own);
    let revoked = list.iter_revoked_certificates().map(|one| {
        let reason = one.reason_code().map(|(_, code)| code.0);
        (one.raw_serial().to_vec(), reason)
    });
    Listed {
        number: number.unwrap(),
        next_update: list.next_update().unwrap().timestamp(),
        revoked: revoked.collect(),
    }
}

fn serial(certificate: &[u8]) -> Vec<u8> {
    let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
    certificate.raw_serial().to_vec()
}

async fn revoke(client: &Client, server: &Server, leaf: &[u8], reason: u8) {
    let payload = json!({"certificate": encode(leaf), "reason": reason});
    let reply = client.post(server, "revoke-certificate", &payload).await;
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn list_has_revoked_certificates_until_they_expire() {
    let (server, clock) = with_lists(None);
    let client = Client::registered(&server).await;
    let first = certificates(&client.issue(&server, &["a.example"], json!({})).await.1);
    let second = certificates(&client.issue(&server, &["b.example"], json!({})).await.1);
    let empty = listed(&server, &first[0], &first[1]).await;
    assert_eq!(empty.revoked, []);
    assert_eq!(empty.next_update, (NOW + 7 * DAY).seconds());
    revoke(&client, &server, &first[0], 1).await;
    let one = listed(&server, &first[0], &first[1]).await;
    assert_eq!(one.revoked, [(serial(&first[0]), Some(1))]);
    assert!(one.number > empty.number);
    // Unchanged, it is not signed again within the hour.
    assert_eq!(listed(&server, &first[0], &first[1]).await, one);
    clock.advance(HOUR);
    let later = listed(&server, &first[0], &first[1]).await;
    assert!(later.number > one.number && later.next_update > one.next_update);
    // The unspecified reason is left out.
    revoke(&client, &server, &second[0], 0).await;
    let both = listed(&server, &second[0], &second[1]).await;
    assert_eq!(both.revoked.len(), 2);
    assert!(both.revoked.contains(&(serial(&second[0]), None)));
    // The intermediate names the list of the root.
    let root = certificates(server.root_pem());
    let of_root = listed(&server, &first[1], &root[0]).await;
    assert_eq!(of_root.revoked, []);
    assert_ne!(list_of(&first[0]), list_of(&first[1]));
    clock.advance(92 * DAY);
    assert_eq!(listed(&server, &first[0], &first[1]).await.revoked, []);
    let unknown = send(&server, "GET", &format!("{BASE}/crl/AAAA.crl"), "", vec![]).await;
    assert_eq!(unknown.problem(), kind(404, "malformed"));
}

#[tokio::test]
async fn replaced_intermediate_signs_its_list_also_after_restarts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca");
    let (first, clock) = with_lists(Some(path.clone()));
    let client = Client::registered(&first).await;
    let old = certificates(&client.issue(&first, &["a.example"], json!({})).await.1);
    clock.advance(280 * DAY);
    let late = certificates(&client.issue(&first, &["b.example"], json!({})).await.1);
    assert_ne!(old[1], late[1]);
    let end = async |server: Server| {
        while std::sync::Arc::strong_count(&server.0) > 1 {
            tokio::task::yield_now().await;
        }
    };
    end(first).await;
    let open = |at: Timestamp| {
        let clock = std::sync::Arc::new(VirtualClock::new(at));
        let mut settings = Settings::new(BASE);
        settings.validation = Validation::AlwaysValid;
        settings.lists_url = Some(LISTS.into());
        settings.directory = Some(path.clone());
        Server::new(settings, clock).unwrap()
    };
    let second = open(clock.now());
    revoke(&client, &second, &late[0], 4).await;
    assert_eq!(listed(&second, &old[0], &old[1]).await.revoked, []);
    let before = listed(&second, &late[0], &late[1]).await;
    assert_eq!(before.revoked, [(serial(&late[0]), Some(4))]);
    end(second).await;
    // As a kill between the writes of the two files leaves them.
    let current = std::fs::read_to_string(path.join("intermediate.pem")).unwrap();
    let former = std::fs::read_to_string(path.join("former.pem")).unwrap();
    std::fs::write(path.join("former.pem"), format!("{former}{current}")).unwrap();
    let third = open(clock.now() + HOUR);
    let after = listed(&third, &late[0], &late[1]).await;
    assert_eq!(after.revoked, before.revoked);
    assert!(after.number > before.number);
    assert_eq!(listed(&third, &old[0], &old[1]).await.revoked, []);
    let again = certificates(&client.issue(&third, &["c.example"], json!({})).await.1);
    assert_eq!(again[1], late[1]);
    end(third).await;
    // Once expired, it is forgotten.
    let fourth = open(NOW + 400 * DAY);
    let request = Request::get(list_of(&old[0])).body(Body::empty()).unwrap();
    let reply = fourth.public_router().call(request).await.unwrap();
    assert_eq!(reply.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn account_that_could_order_it_may_revoke_a_certificate() {
    let (server, _) = with_lists(None);
    let (owner, other) = (
        Client::registered(&server).await,
        Client::registered(&server).await,
    );
    let names = ["a.example", "b.example"];
    let leaf = certificates(&owner.issue(&server, &names, json!({})).await.1).remove(0);
    let payload = json!({"certificate": encode(&leaf), "reason": 5});
    // One of the names is not enough.
    other.issue(&server, &names[..1], json!({})).await;
    let reply = other.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.problem(), kind(403, "unauthorized"));
    other.issue(&server, &names[1..], json!({})).await;
    let reply = other.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.status, StatusCode::OK);
    // An unknown certificate is not revoked, nor one with a changed signature.
    let mut forged = leaf.clone();
    *forged.last_mut().unwrap() ^= 1;
    let payload = json!({"certificate": encode(&forged)});
    let reply = owner.post(&server, "revoke-certificate", &payload).await;
    assert_eq!(reply.problem(), kind(404, "malformed"));
}

#[tokio::test]
async fn nothing_but_lists_and_the_root_is_served_without_tls() {
    let (server, _) = with_lists(None);
    let get = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let reply = server.public_router().call(request).await.unwrap();
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    assert_eq!(get("/root.pem").await, (200, server.root_pem().to_owned()));
    for path in ["/directory", "/acme/new-nonce", "/crl", "/"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
    assert!(get("/directory").await.1.contains("https"));
}
