//! Replies of the CA with a fault in them.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_LENGTH, LINK, LOCATION};
use http_body_util::BodyExt;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer;

use super::{Chain, ConnectionDropped, Fault};

/// The reply with the fault applied.
pub(super) async fn apply(reply: Response<Body>, fault: &Fault) -> Response<Body> {
    let (mut parts, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    parts.headers.remove(CONTENT_LENGTH);
    let json = || serde_json::from_slice::<Value>(&body).unwrap_or_default();
    let body = match fault {
        Fault::NoNonce => {
            parts.headers.remove("replay-nonce");
            Body::from(body)
        }
        Fault::Truncated => {
            let whole = body.len();
            parts.headers.insert(CONTENT_LENGTH, whole.into());
            Body::new(TruncatedBody(Some(body.slice(..whole / 2))))
        }
        Fault::Token(token) => Body::from(forge_challenges(json(), |challenges| {
            for challenge in challenges {
                challenge["token"] = token.as_str().into();
            }
        })),
        Fault::UnknownChallenges => Body::from(forge_challenges(json(), |challenges| {
            for challenge in challenges {
                challenge["type"] = "telepathy-01".into();
            }
        })),
        Fault::OneMoreChallenge => Body::from(forge_challenges(json(), |challenges| {
            let strange = json!({"type": "telepathy-01", "status": "pending", "url": "https://a.example/", "thought": [1]});
            challenges.insert(0, strange);
        })),
        Fault::FailedName(status, challenge) => {
            let mut authorization = json();
            authorization["status"] = (*status).into();
            let kind = "urn:ietf:params:acme:error:connection";
            Body::from(forge_challenges(authorization, |challenges| {
                for one in challenges {
                    one["status"] = (*challenge).into();
                    one["error"] = json!({"type": kind, "detail": "port 80 is closed"});
                }
            }))
        }
        Fault::RelativeUrls => {
            for name in [LOCATION, LINK] {
                let values: Vec<_> = parts.headers.get_all(&name).iter().cloned().collect();
                parts.headers.remove(&name);
                for value in values {
                    let relative = without_origins(value.to_str().unwrap());
                    parts
                        .headers
                        .append(name.clone(), relative.parse().unwrap());
                }
            }
            Body::from(without_origins(std::str::from_utf8(&body).unwrap()))
        }
        Fault::Processing => {
            let mut order = json();
            order["status"] = "processing".into();
            order.as_object_mut().unwrap().remove("certificate");
            Body::from(order.to_string())
        }
        Fault::Field(pointer, value) => {
            let mut document = json();
            set(&mut document, pointer, value);
            Body::from(document.to_string())
        }
        Fault::Header(name, value) => {
            let was = parts.headers.get(*name).map(|was| was.to_str().unwrap());
            let value = value.replace("{}", was.unwrap_or_default());
            parts.headers.insert(*name, value.parse().unwrap());
            Body::from(body)
        }
        Fault::Chain(how) => Body::from(forge_chain(std::str::from_utf8(&body).unwrap(), *how)),
        _ => Body::from(body),
    };
    Response::from_parts(parts, body)
}

/// `text` with each URL reduced to its path.
fn without_origins(text: &str) -> String {
    let mut parts = text.split("https://");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |made, rest| {
        made + rest.find('/').map_or("", |path| &rest[path..])
    })
}

/// Writes `value` at `pointer`, and creates a missing field.
fn set(document: &mut Value, pointer: &str, value: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let Some(parent) = document.pointer_mut(parent) else {
        return;
    };
    let place = match parent {
        Value::Array(items) => items.get_mut(name.parse::<usize>().unwrap()),
        Value::Object(fields) => Some(fields.entry(name).or_insert(Value::Null)),
        _ => None,
    };
    if let Some(place) = place {
        let was = place.as_str().unwrap_or_default();
        *place = value.replace("{}", was).into();
    }
}

fn forge_challenges(mut authorization: Value, forge: impl FnOnce(&mut Vec<Value>)) -> String {
    if let Some(challenges) = authorization["challenges"].as_array_mut() {
        forge(challenges);
    }
    authorization.to_string()
}

fn forge_chain(chain: &str, how: Chain) -> String {
    let (leaf, issuers) = chain.split_at(chain[1..].find("-----BEGIN").unwrap() + 1);
    let der = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = Issuer::new(ca, ca_key);
    let mut params = CertificateParams::new(vec!["example.com".to_owned()]).unwrap();
    let now = time::OffsetDateTime::from(std::time::UNIX_EPOCH)
        + time::Duration::seconds(parsed.validity().not_before.timestamp());
    match how {
        Chain::Swapped => format!("{issuers}{leaf}"),
        Chain::Doubled => format!("{leaf}{chain}"),
        Chain::WithUnrelated => format!("{leaf}{ca_pem}{issuers}"),
        Chain::MoreNames => {
            let issuer_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
            let mut ca = CertificateParams::new(Vec::new()).unwrap();
            ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca_pem = ca.self_signed(&issuer_key).unwrap().pem();
            params.not_before = now;
            params.not_after = now + time::Duration::days(90);
            params.use_authority_key_identifier_extension = true;
            params.subject_alt_names.extend([
                SanType::DnsName("www.example.com".try_into().unwrap()),
                SanType::DnsName("_mta.example.com".try_into().unwrap()),
                SanType::Rfc822Name("me@example.com".try_into().unwrap()),
            ]);
            let issuer = Issuer::new(ca, issuer_key);
            let leaf = params.signed_by(&key, &issuer).unwrap().pem();
            format!("{leaf}{ca_pem}")
        }
        Chain::AfterWords => format!("subject=$(id) `id`; \x1b[2J\n{chain}"),
        Chain::WithoutIntermediate => leaf.to_owned(),
        Chain::NoPem => "-----BEGIN CERTIFICATE-----\nnot base64!\n".to_owned(),
        Chain::OfAnotherKey => {
            params.not_before = now;
            params.not_after = now + time::Duration::days(90);
            let other = KeyPair::generate().unwrap();
            let leaf = params.signed_by(&other, &issuer).unwrap().pem();
            format!("{leaf}{ca_pem}")
        }
        Chain::Expired => {
            params.not_before = now - time::Duration::days(90);
            params.not_after = now - time::Duration::days(1);
            let leaf = params.signed_by(&key, &issuer).unwrap().pem();
            format!("{leaf}{ca_pem}")
        }
    }
}

/// A body that fails at once.
pub(super) fn broken_off() -> Body {
    Body::new(TruncatedBody(None))
}

/// A part of a body and then an error, which ends the connection.
struct TruncatedBody(Option<Bytes>);

impl http_body::Body for TruncatedBody {
    type Data = Bytes;
    type Error = ConnectionDropped;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, ConnectionDropped>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(part) => Ok(http_body::Frame::data(part)),
            None => Err(ConnectionDropped),
        }))
    }
}
