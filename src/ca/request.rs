//! Certificate signing requests (RFC 2986), checked before signing: the client
//! holds the key, its type is supported, and the names are those of the order.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use super::jws::Jwk;
use super::problem::{ErrorType, Problem};
use crate::identifier::Identifier;

/// Checks a request in DER against the identifiers that were validated and the key of
/// the account, which must not be certified (RFC 8555 section 11.1). Returns its key.
pub(super) fn check(
    der: &[u8],
    wanted: &BTreeSet<Identifier>,
    account: &Jwk,
) -> Result<SubjectPublicKeyInfo, Problem> {
    let Ok(([], csr)) = X509CertificationRequest::from_der(der) else {
        return Err(bad("not a valid PKCS#10 request in DER"));
    };
    csr.verify_signature()
        .map_err(|_| bad("its signature is invalid"))?;
    let spki = &csr.certification_request_info.subject_pki;
    check_key_kind(spki)?;
    if account.is_key_of(spki) {
        return Err(bad("its key is the account key"));
    }
    let found = names(&csr)?;
    if found != *wanted {
        let list = |set: &BTreeSet<Identifier>| {
            let names: Vec<_> = set.iter().take(10).map(ToString::to_string).collect();
            names.join(", ")
        };
        let (found, wanted) = (list(&found), list(wanted));
        let detail = format!("it is for {found}, and the order for {wanted}");
        return Err(bad(&detail));
    }
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| bad("unknown key type"))
}

fn check_key_kind(spki: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), Problem> {
    let fine = match spki.parsed() {
        // Whole bytes: 2048 to 4096 bits.
        Ok(PublicKey::RSA(key)) => {
            let modulus = key.modulus.iter().skip_while(|byte| **byte == 0);
            (256..=512).contains(&modulus.count())
        }
        Ok(PublicKey::EC(point)) => matches!(point.key_size(), 256 | 384),
        _ => false,
    };
    let refusal = || bad("its key must be P-256, P-384, or RSA with 2048 to 4096 bits");
    fine.then_some(()).ok_or_else(refusal)
}

fn names(csr: &X509CertificationRequest<'_>) -> Result<BTreeSet<Identifier>, Problem> {
    let mut identifiers = BTreeSet::new();
    for extension in csr.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    identifiers.insert(identifier(name)?);
                }
            }
            ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
                return Err(bad("it requests a CA certificate"));
            }
            _ => {}
        }
    }
    let subject = &csr.certification_request_info.subject;
    for name in subject.iter_common_name() {
        let text = name.as_str().ok();
        let common = text.and_then(|text| Identifier::parse(text).ok());
        if common.is_none_or(|common| !identifiers.contains(&common)) {
            return Err(bad("its common name is missing from its alternative names"));
        }
    }
    Ok(identifiers)
}

fn identifier(name: &GeneralName<'_>) -> Result<Identifier, Problem> {
    let address = |octets: &[u8]| {
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
    };
    match name {
        GeneralName::DNSName(name) => Identifier::parse(name).ok(),
        GeneralName::IPAddress(octets) => address(octets).ok().map(Identifier::Ip),
        _ => None,
    }
    .ok_or_else(|| bad("an alternative name is not a valid DNS name or IP address"))
}

fn bad(detail: &str) -> Problem {
    let detail = format!("the signing request was refused: {detail}");
    Problem::new(ErrorType::BadCsr, detail)
}
