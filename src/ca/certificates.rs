//! Requests about issued certificates: download (RFC 8555 section 7.4.2), revoke
//! (section 7.6), renewal information (RFC 9773), revocation lists. They sign nothing else.

use axum::extract::{Path, State as Shared};
use axum::response::IntoResponse;
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;
use serde_json::json;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::jws::decode;
use super::problem::{ErrorType, Problem, ensure};
use super::renewal;
use super::server::{HandlerResult, Server, reply};
use super::signed::Signed;
use super::state::{Revocation, State};
use crate::certificate::Facts;
use crate::time::Timestamp;

/// The chain of a certificate, for the account that ordered it.
pub(super) async fn certificate(Path(id): Path<String>, signed: Signed) -> HandlerResult {
    let account = signed.reader()?;
    let chain = signed.server.look(|state| {
        let certificate = state.certificates.get(&id);
        let own = certificate.filter(|certificate| certificate.account == *account);
        own.map(|certificate| certificate.chain_pem.clone())
    });
    let chain = chain.ok_or_else(|| Problem::not_found("certificate"))?;
    let kind = [(CONTENT_TYPE, "application/pem-certificate-chain")];
    Ok((kind, chain).into_response())
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
pub(super) async fn revoke(signed: Signed) -> HandlerResult {
    let request: RevocationRequest = signed.payload()?;
    let (der, reason) = (decode(&request.certificate)?, request.reason);
    let der = CertificateDer::from(der);
    let facts = Facts::of(&der)
        .map_err(|_| Problem::malformed("the certificate to revoke is not valid DER"))?;
    let (is_known, detail) = (
        REASONS.contains(&reason),
        "the reason must be 0, 1, 3, 4 or 5",
    );
    ensure(is_known, ErrorType::BadRevocationReason, detail)?;
    let name = facts.renewal_id.unwrap_or_default();
    let at = signed.server.now();
    let revoked = signed.server.change(|state| {
        check_right(state, &signed, &name, &der, at)?;
        let certificate = state.certificates.get_mut(&name);
        let certificate = certificate.ok_or_else(|| Problem::not_found("certificate"))?;
        let is_valid = certificate.revoked.is_none();
        let detail = "the certificate is already revoked";
        ensure(is_valid, ErrorType::AlreadyRevoked, detail)?;
        certificate.revoked = Some(Revocation { at, reason });
        Ok(())
    });
    revoked.await?;
    Ok(StatusCode::OK.into_response())
}

/// A revocation may come from the account that ordered the certificate, from one
/// that may order it now, or from the certificate's own key.
fn check_right(
    state: &State,
    signed: &Signed,
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
    let may = match &signed.signer {
        Some(account) => {
            certificate.account == *account
                || state.is_authorized(account, &certificate.identifiers, now)
        }
        None => X509Certificate::from_der(der)
            .is_ok_and(|(_, certificate)| signed.key.is_key_of(certificate.public_key())),
    };
    let detail = "neither the account nor the key may revoke this certificate";
    ensure(may, ErrorType::Unauthorized, detail)
}

/// The suggested renewal window; the request is unsigned.
pub(super) async fn renewal_info(
    Shared(server): Shared<Server>,
    Path(id): Path<String>,
) -> HandlerResult {
    let certificate = server.look(|state| state.certificates.get(&id).cloned());
    let certificate = certificate.ok_or_else(|| Problem::not_found("certificate"))?;
    let window = renewal::window(&certificate, server.0.settings.windows);
    let recheck = renewal::retry_after(&certificate).to_string();
    let json = json!({"suggestedWindow": window});
    Ok(reply(StatusCode::OK, json, [(RETRY_AFTER, recheck)]))
}

/// The list of an issuer, `KEY_ID.crl`; the request is unsigned.
pub(super) async fn list(
    Shared(server): Shared<Server>,
    Path(file): Path<String>,
) -> HandlerResult {
    let issuer = file.strip_suffix(".crl");
    let issuer = issuer.and_then(|key_id| server.0.authority.issuer(key_id));
    let issuer = issuer.ok_or_else(|| Problem::not_found("revocation list"))?;
    let now = server.now();
    let revoked = server.look(|state| state.revoked_by(&issuer.key_id, now));
    let der = server.0.lists.current(&issuer, revoked, now)?;
    Ok(([(CONTENT_TYPE, "application/pkix-crl")], der).into_response())
}

/// The root, for machines that are to trust it once its fingerprint is compared.
pub(super) async fn root(Shared(server): Shared<Server>) -> HandlerResult {
    let pem = server.root_pem().to_owned();
    Ok(([(CONTENT_TYPE, "application/x-pem-file")], pem).into_response())
}
