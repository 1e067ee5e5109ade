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
use crate::certificate::verify_request;
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
    verify_request(&csr).map_err(|why| bad(&why))?;
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

/// P-521 as x509-parser counts it: in whole octets.
const P521: usize = 66 * 8;

fn check_key_kind(spki: &x509_parser::x509::SubjectPublicKeyInfo<'_>) -> Result<(), Problem> {
    let fine = match spki.parsed() {
        Ok(PublicKey::RSA(key)) => {
            let strip = |bytes: &'_ [u8]| {
                bytes
                    .iter()
                    .copied()
                    .skip_while(|byte| *byte == 0)
                    .collect()
            };
            let (modulus, exponent): (Vec<u8>, Vec<u8>) = (strip(key.modulus), strip(key.exponent));
            // The first bit is set: no key with fewer than 2048 bits has 256 bytes.
            (256..=512).contains(&modulus.len())
                && modulus[0] >= 0x80
                && matches!(exponent.as_slice(), [1, 0, 1] | [3])
        }
        Ok(PublicKey::EC(point)) => matches!(point.key_size(), 256 | 384 | P521),
        _ => false,
    };
    let refusal = || bad("its key must be P-256, P-384, P-521, or RSA with 2048 to 4096 bits");
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const NAME: &str = "a.test";

    /// A request for [`NAME`] with a key of `openssl genpkey`; `None` without that program.
    fn request(key: &[&str], digest: &str) -> Option<Vec<u8>> {
        let mut genpkey = Command::new("openssl");
        let genpkey = genpkey
            .arg("genpkey")
            .args(key)
            .stderr(Stdio::null())
            .output();
        let key = genpkey.ok()?.stdout;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        std::fs::write(&file, key).unwrap();
        let mut req = Command::new("openssl");
        req.args([
            "req", "-new", "-outform", "DER", "-subj", "/", digest, "-addext",
        ]);
        req.arg(format!("subjectAltName=DNS:{NAME}"))
            .arg("-key")
            .arg(&file);
        let made = req.output().unwrap();
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        Some(made.stdout)
    }

    #[test]
    fn only_strong_keys_are_certified() {
        const EC: [&str; 3] = ["-algorithm", "EC", "-pkeyopt"];
        let account = serde_json::json!({"kty": "EC", "crv": "P-256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"});
        let account = Jwk::try_from(account).unwrap();
        let wanted = BTreeSet::from([Identifier::parse(NAME).unwrap()]);
        let rsa = |bits: &'static str| vec!["-algorithm", "RSA", "-pkeyopt", bits];
        let ec = |curve: &'static str| [&EC[..], &[curve]].concat();
        let small = "rsa_keygen_pubexp:17";
        for (key, digest, is_fine) in [
            (ec("ec_paramgen_curve:P-256"), "-sha256", true),
            (ec("ec_paramgen_curve:P-384"), "-sha384", true),
            (rsa("rsa_keygen_bits:2048"), "-sha256", true),
            (rsa("rsa_keygen_bits:2048"), "-sha1", false),
            (ec("ec_paramgen_curve:P-256"), "-sha1", false),
            (rsa("rsa_keygen_bits:1024"), "-sha256", false),
            (rsa("rsa_keygen_bits:2040"), "-sha256", false),
            (
                [rsa("rsa_keygen_bits:2048"), vec!["-pkeyopt", small]].concat(),
                "-sha256",
                false,
            ),
            (ec("ec_paramgen_curve:P-521"), "-sha512", true),
            (ec("ec_paramgen_curve:secp256k1"), "-sha256", false),
            (ec("ec_paramgen_curve:brainpoolP256r1"), "-sha256", false),
            (vec!["-algorithm", "ED25519"], "-sha256", false),
        ] {
            let Some(der) = request(&key, digest) else {
                eprintln!("SKIPPED: weak keys: openssl is not installed");
                return;
            };
            let checked = check(&der, &wanted, &account);
            assert_eq!(
                checked.is_ok(),
                is_fine,
                "{key:?} {digest}: {:?}",
                checked.err()
            );
        }
    }
}
