//! Certificates that were signed: downloaded (RFC 8555 section 7.4.2), revoked
//! (section 7.6), and when to renew them (RFC 9773).

use axum::body::Body;
use axum::extract::{Path, State as Shared};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::jws::decode;
use super::problem::{Kind, Problem};
use super::renewal;
use super::server::{Server, Signed, Signer, reply};
use super::state::{Revocation, State};
use crate::certificate::Facts;
use crate::time::Timestamp;

/// The chain of a certificate, for the account that ordered it.
pub(super) async fn certificate(
    Shared(server): Shared<Server>,
    Path(id): Path<String>,
    signed: Signed,
) -> Result<Response, Problem> {
    let account = signed.reader()?;
    let chain = server.look(|state| {
        let certificate = state.certificates.get(&id);
        certificate
            .filter(|certificate| certificate.account == *account)
            .map(|certificate| certificate.chain_pem.clone())
    });
    let chain = chain.ok_or_else(|| Problem::not_found("certificate"))?;
    let mut response = Response::new(Body::from(chain));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/pem-certificate-chain"),
    );
    Ok(response)
}

#[derive(Deserialize)]
struct Revoke {
    certificate: String,
    #[serde(default)]
    reason: u8,
}

/// The reasons of RFC 5280 section 5.3.1 that a subscriber may give.
const REASONS: [u8; 5] = [0, 1, 3, 4, 5];

/// Remembers that a certificate is revoked.
pub(super) async fn revoke(
    Shared(server): Shared<Server>,
    signed: Signed,
) -> Result<Response, Problem> {
    let wish: Revoke = signed.payload()?;
    let der = CertificateDer::from(decode(&wish.certificate)?);
    let facts = Facts::of(&der)
        .map_err(|_| Problem::malformed("what is to be revoked is not a certificate in DER"))?;
    if !REASONS.contains(&wish.reason) {
        let detail = "the reason is none of 0, 1, 3, 4 and 5";
        return Err(Problem::new(Kind::BadRevocationReason, detail));
    }
    let name = facts.renewal_id.unwrap_or_default();
    let now = server.now();
    let revoked = server.change(|state| {
        check_right(state, &signed.signer, &name, &der, now)?;
        let certificate = state.certificates.get_mut(&name);
        let certificate = certificate.ok_or_else(|| Problem::not_found("certificate"))?;
        if certificate.revoked.is_some() {
            let detail = "the certificate is revoked already";
            return Err(Problem::new(Kind::AlreadyRevoked, detail));
        }
        certificate.revoked = Some(Revocation {
            at: now,
            reason: wish.reason,
        });
        Ok(())
    });
    revoked.await?;
    Ok(StatusCode::OK.into_response())
}

/// The account that ordered it, one that may order it now, or its own key.
fn check_right(
    state: &State,
    signer: &Signer,
    name: &str,
    der: &CertificateDer<'_>,
    now: Timestamp,
) -> Result<(), Problem> {
    let held = state.certificates.get(name);
    let stored =
        held.and_then(|held| CertificateDer::from_pem_slice(held.chain_pem.as_bytes()).ok());
    let (Some(held), true) = (held, stored.as_ref() == Some(der)) else {
        return Err(Problem::not_found("certificate"));
    };
    let may = match signer {
        Signer::Account(account) => {
            held.account == *account || state.is_authorized(account, &held.identifiers, now)
        }
        Signer::Key(key) => X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| key.is_key_of(certificate.public_key())),
    };
    if may {
        Ok(())
    } else {
        let detail = "neither the account nor the key may revoke this certificate";
        Err(Problem::new(Kind::Unauthorized, detail))
    }
}

/// The suggested window, for whoever asks.
pub(super) async fn renewal_info(
    Shared(server): Shared<Server>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let held = server.look(|state| state.certificates.get(&id).cloned());
    let held = held.ok_or_else(|| Problem::not_found("certificate"))?;
    let window = match server.suggestion(&id) {
        Ok(single) => single,
        Err(policy) => renewal::window(&held, policy),
    };
    let json = serde_json::json!({
        "suggestedWindow": {"start": window.start, "end": window.end},
    });
    let again = renewal::retry_after(&held).to_string();
    Ok(reply(StatusCode::OK, &json, [(RETRY_AFTER, again)]))
}
