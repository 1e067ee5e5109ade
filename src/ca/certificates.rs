//! Requests about issued certificates: download (RFC 8555 section 7.4.2), revoke
//! (section 7.6), renewal information (RFC 9773). They sign nothing.

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
use super::problem::{ErrorType, Problem};
use super::renewal;
use super::server::{Server, reply};
use super::signed::{RequestSigner, Signed};
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
struct RevocationRequest {
    certificate: String,
    #[serde(default)]
    reason: u8,
}

/// The reasons of RFC 5280 section 5.3.1 that a subscriber may give.
const REASONS: [u8; 5] = [0, 1, 3, 4, 5];

/// Records the revocation of a certificate.
pub(super) async fn revoke(
    Shared(server): Shared<Server>,
    signed: Signed,
) -> Result<Response, Problem> {
    let request: RevocationRequest = signed.payload()?;
    let der = CertificateDer::from(decode(&request.certificate)?);
    let facts = Facts::of(&der)
        .map_err(|_| Problem::malformed("the certificate to revoke is not valid DER"))?;
    if !REASONS.contains(&request.reason) {
        let detail = "the reason must be 0, 1, 3, 4 or 5";
        return Err(Problem::new(ErrorType::BadRevocationReason, detail));
    }
    let name = facts.renewal_id.unwrap_or_default();
    let now = server.now();
    let revoked = server.change(|state| {
        check_right(state, &signed.signer, &name, &der, now)?;
        let certificate = state.certificates.get_mut(&name);
        let certificate = certificate.ok_or_else(|| Problem::not_found("certificate"))?;
        if certificate.revoked.is_some() {
            let detail = "the certificate is already revoked";
            return Err(Problem::new(ErrorType::AlreadyRevoked, detail));
        }
        certificate.revoked = Some(Revocation {
            at: now,
            reason: request.reason,
        });
        Ok(())
    });
    revoked.await?;
    Ok(StatusCode::OK.into_response())
}

/// A revocation may come from the account that ordered the certificate, from one
/// that may order it now, or from the certificate's own key.
fn check_right(
    state: &State,
    signer: &RequestSigner,
    name: &str,
    der: &CertificateDer<'_>,
    now: Timestamp,
) -> Result<(), Problem> {
    let certificate = state.certificates.get(name);
    let stored = certificate.and_then(|certificate| {
        CertificateDer::from_pem_slice(certificate.chain_pem.as_bytes()).ok()
    });
    let (Some(certificate), true) = (certificate, stored.as_ref() == Some(der)) else {
        return Err(Problem::not_found("certificate"));
    };
    let may = match signer {
        RequestSigner::Account(account) => {
            certificate.account == *account
                || state.is_authorized(account, &certificate.identifiers, now)
        }
        RequestSigner::Key(key) => X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| key.is_key_of(certificate.public_key())),
    };
    if may {
        Ok(())
    } else {
        let detail = "neither the account nor the key may revoke this certificate";
        Err(Problem::new(ErrorType::Unauthorized, detail))
    }
}

/// The suggested renewal window; the request is unsigned.
pub(super) async fn renewal_info(
    Shared(server): Shared<Server>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let certificate = server.look(|state| state.certificates.get(&id).cloned());
    let certificate = certificate.ok_or_else(|| Problem::not_found("certificate"))?;
    let window = match server.suggestion(&id) {
        Ok(single) => single,
        Err(policy) => renewal::window(&certificate, policy),
    };
    let json = serde_json::json!({
        "suggestedWindow": {"start": window.start, "end": window.end},
    });
    let recheck = renewal::retry_after(&certificate).to_string();
    Ok(reply(StatusCode::OK, &json, [(RETRY_AFTER, recheck)]))
}
