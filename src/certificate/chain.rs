//! The leaf of a key among the certificates that a CA sends, and its chain: each issuer after
//! the certificate that it signed. Whether a client trusts the chain is not checked here.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::asn1_rs::{Any, FromDer};
use x509_parser::prelude::X509Certificate;

use super::{BundleError, Secret, parse, request};
use crate::fingerprint::Fingerprint;

/// The index of the certificate of `key_pem` in `given`.
pub(super) fn leaf_of(
    key_pem: &Secret,
    given: &[CertificateDer<'_>],
) -> Result<usize, BundleError> {
    let key = public_key_of(key_pem).ok_or(BundleError::Key)?;
    let is_its = |der| parse(0, der).is_ok_and(|found| found.public_key().raw == key);
    if let Some(index) = given.iter().position(is_its) {
        return Ok(index);
    }
    parse(0, given.first().ok_or(BundleError::Chain)?)?;
    Err(BundleError::KeyMismatch)
}

/// SHA-256 over the public key of a private key or of a signing request.
pub(crate) fn key_fingerprint(key_pem: &Secret) -> Option<Fingerprint> {
    public_key_of(key_pem).map(|key| Fingerprint::of(&key))
}

/// SHA-256 over the public key in the first certificate of a chain.
pub(crate) fn certified_key(chain_pem: &str) -> Option<Fingerprint> {
    let leaf = CertificateDer::from_pem_slice(chain_pem.as_bytes()).ok()?;
    let leaf = parse(0, &leaf).ok()?;
    Some(Fingerprint::of(leaf.public_key().raw))
}

/// The public key in DER.
fn public_key_of(key_pem: &Secret) -> Option<Vec<u8>> {
    if let Some(request) = key_pem.signing_request() {
        return request::public_key_of(&request);
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes()).ok()?;
    let key = any_supported_type(&key).ok()?;
    Some(key.public_key()?.as_ref().to_vec())
}

/// The chain of the leaf `given[leaf]`, up to the topmost issuer that is given.
pub(super) fn built(
    given: &[CertificateDer<'static>],
    leaf: usize,
) -> Result<Vec<CertificateDer<'static>>, BundleError> {
    let mut chain = vec![given[leaf].clone()];
    let mut left: Vec<_> = given.iter().filter(|one| **one != given[leaf]).collect();
    loop {
        let last = &chain[chain.len() - 1];
        let subject = parse(chain.len() - 1, last)?;
        if is_signed_by(last, &subject, &subject) {
            break;
        }
        let issues = |der: &&CertificateDer<'_>| {
            parse(0, der).is_ok_and(|issuer| is_signed_by(last, &subject, &issuer))
        };
        let Some(index) = left.iter().position(issues) else {
            if chain.len() == 1 && !left.is_empty() {
                // The server would send its leaf alone, which few clients trust.
                return Err(BundleError::Link(left.len()));
            }
            break;
        };
        let issuer = left.remove(index).clone();
        left.retain(|one| **one != issuer);
        chain.push(issuer);
    }
    Ok(chain)
}

/// Whether `issuer` signed the certificate `der`. A signature of a kind that this program
/// cannot verify counts: it is not false.
fn is_signed_by(
    der: &CertificateDer<'_>,
    subject: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> bool {
    if subject.issuer() != issuer.subject() {
        return false;
    }
    let (Some(signature), Some(key)) = (algorithm(der, 1), algorithm(issuer.public_key().raw, 0))
    else {
        return false;
    };
    let known = default_provider().signature_verification_algorithms;
    let mut fitting = known.all.iter().filter(|one| {
        one.signature_alg_id().as_ref() == signature && one.public_key_alg_id().as_ref() == key
    });
    let Some(verifier) = fitting.next() else {
        return true;
    };
    let (key, message) = (
        &issuer.public_key().subject_public_key,
        &subject.tbs_certificate,
    );
    let signed = &subject.signature_value;
    verifier
        .verify_signature(&key.data, message.as_ref(), &signed.data)
        .is_ok()
}

/// The content of the AlgorithmIdentifier that follows `skipped` members of the sequence `der`.
fn algorithm(der: &[u8], skipped: usize) -> Option<&[u8]> {
    let (_, sequence) = Any::from_der(der).ok()?;
    let mut rest = sequence.data;
    for _ in 0..skipped {
        rest = Any::from_der(rest).ok()?.0;
    }
    Some(Any::from_der(rest).ok()?.1.data)
}
/// The serial number of the first certificate in `pem`, in upper-case hexadecimal digits as
/// OpenSSL shows it; `None` if there is none.
#[must_use]
pub(crate) fn serial_of(pem: &str) -> Option<String> {
    let leaf = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, leaf) = X509Certificate::from_der(&leaf).ok()?;
    // Before a high first bit DER has a zero byte.
    let mut octets = leaf.raw_serial().iter().skip_while(|octet| **octet == 0);
    let first = octets.next().map(|octet| format!("{octet:02X}"))?;
    Some(octets.fold(first, |all, octet| all + &format!("{octet:02X}")))
}
