//! A certificate signing request (RFC 2986) that a user brings: its private key is elsewhere.
//! It is checked before anything is sent, and then stands where a pair has its private key,
//! in records and in the store, so that a renewal has the same key.

mod signature;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{Secret, pem_block};
use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::text::{printable, stored_as_text};

/// More than any request for a hundred names has.
const LARGEST: usize = 64 << 10;
/// The most names that CAs accept in one certificate.
const MOST_NAMES: usize = 100;
const LABEL: &str = "CERTIFICATE REQUEST";

/// A signing request whose signature, key, names and extensions are valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    pem: String,
    names: Vec<Identifier>,
    fingerprint: Fingerprint,
}

impl SigningRequest {
    /// Reads and checks a request in PEM or DER.
    ///
    /// # Errors
    /// The invalid part, in words.
    pub fn read(content: &[u8]) -> Result<Self, String> {
        if content.len() > LARGEST {
            return Err(format!("larger than {} KiB", LARGEST >> 10));
        }
        let der = match content.first() {
            Some(0x30) => content.to_vec(),
            _ => der_in(content).ok_or("no signing request in PEM or DER found")?,
        };
        let Ok(([], request)) = X509CertificationRequest::from_der(&der) else {
            return Err("not a valid PKCS#10 request".to_owned());
        };
        check_key(&request.certification_request_info.subject_pki)?;
        signature::verify(&request)?;
        check_extensions(&request)?;
        let names = names(&request)?;
        let names = names.ok_or("it has no alternative name (subjectAltName)")?;
        if names.len() > MOST_NAMES {
            let number = names.len();
            return Err(format!("it has {number} names, and CAs take {MOST_NAMES}"));
        }
        Ok(Self {
            pem: pem_block(LABEL, &der),
            names,
            fingerprint: Fingerprint::of(&der),
        })
    }

    /// Its names, in its order.
    #[must_use]
    pub fn names(&self) -> &[Identifier] {
        &self.names
    }

    /// SHA-256 over its DER.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    /// The request where a private key would be.
    #[must_use]
    pub fn in_place_of_key(&self) -> Secret {
        Secret::new(self.pem.clone())
    }
}

impl fmt::Display for SigningRequest {
    /// In PEM.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pem)
    }
}

impl FromStr for SigningRequest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text.as_bytes())
    }
}

stored_as_text!(SigningRequest);

impl Secret {
    /// The DER of the signing request that stands here in place of a private key.
    #[must_use]
    pub fn signing_request(&self) -> Option<Vec<u8>> {
        let text = self.expose();
        text.contains(LABEL).then(|| der_in(text.as_bytes()))?
    }
}

/// Checks that the signature of a request is by its key, and with SHA-2.
///
/// # Errors
/// Why it is not valid, in words.
pub(crate) fn verify_request(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    signature::verify(request)
}

/// The public key of a signing request in DER.
pub(super) fn public_key_of(der: &[u8]) -> Option<Vec<u8>> {
    let (_, request) = X509CertificationRequest::from_der(der).ok()?;
    Some(request.certification_request_info.subject_pki.raw.to_vec())
}

fn der_in(content: &[u8]) -> Option<Vec<u8>> {
    let mut blocks = Pem::iter_from_buffer(content).flatten();
    let request = blocks.find(|block| block.label.trim_start_matches("NEW ") == LABEL)?;
    Some(request.contents)
}

fn check_key(key: &SubjectPublicKeyInfo<'_>) -> Result<(), String> {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => {
            let mut modulus = rsa.modulus.iter().skip_while(|byte| **byte == 0);
            let first = modulus
                .next()
                .map_or(0, |first| 8 - first.leading_zeros() as usize);
            let bits = modulus.count() * 8 + first;
            match (2048..=4096).contains(&bits) {
                true => Ok(()),
                false => Err(format!(
                    "its RSA key has {bits} bits, and CAs take 2048 to 4096"
                )),
            }
        }
        Ok(PublicKey::EC(_)) => {
            let curve = curve_of(key);
            match signature::CURVES.iter().any(|(known, _)| *known == curve) {
                true => Ok(()),
                false => Err(format!(
                    "its key is on the curve {curve}, which is none of P-256, P-384 and P-521"
                )),
            }
        }
        _ => Err("its key is neither RSA nor ECDSA".to_owned()),
    }
}

/// The curve of a key, as an object identifier.
fn curve_of(key: &SubjectPublicKeyInfo<'_>) -> String {
    let curve = key.algorithm.parameters.as_ref();
    let curve = curve.and_then(|curve| curve.as_oid().ok());
    curve.map_or("unknown".to_owned(), |curve| curve.to_id_string())
}

/// Refuses an extension that no CA gives to a server: silently dropped, it would be missed
/// later.
fn check_extensions(request: &X509CertificationRequest<'_>) -> Result<(), String> {
    let attributes = request.certification_request_info.iter_attributes();
    let extensions = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    for extension in extensions.flatten() {
        let is_fine = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(_)
            | ParsedExtension::SubjectKeyIdentifier(_) => true,
            ParsedExtension::BasicConstraints(constraints) => !constraints.ca,
            ParsedExtension::KeyUsage(usage) => !usage.key_cert_sign() && !usage.crl_sign(),
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let others = usage.any || usage.code_signing || usage.email_protection;
                let more = usage.time_stamping || usage.ocsp_signing || !usage.other.is_empty();
                !others && !more
            }
            _ => false,
        };
        if !is_fine {
            let oid = extension.oid.to_id_string();
            return Err(format!(
                "it requests an extension that no server gets: {oid}"
            ));
        }
    }
    Ok(())
}

/// The alternative names; `None` without any. The common name must be one of them.
fn names(request: &X509CertificationRequest<'_>) -> Result<Option<Vec<Identifier>>, String> {
    let mut names = Vec::new();
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(found) = extension else {
            continue;
        };
        for name in &found.general_names {
            let name = identifier(name)?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let subject = &request.certification_request_info.subject;
    for common in subject.iter_common_name() {
        let text = common.as_str().unwrap_or_default();
        let parsed = Identifier::parse(text).ok();
        if parsed.is_none_or(|common| !names.contains(&common)) {
            let text = printable(text);
            return Err(format!(
                "its common name `{text}` is not among its alternative names (subjectAltName)"
            ));
        }
    }
    Ok((!names.is_empty()).then_some(names))
}

fn identifier(name: &GeneralName<'_>) -> Result<Identifier, String> {
    let address = |octets: &[u8]| {
        let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
        v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
    };
    let of_another_type =
        || "an alternative name is neither a DNS name nor an IP address".to_owned();
    match name {
        GeneralName::DNSName(name) => match Identifier::parse(name) {
            // An order would be for the address, and the request for another name.
            Ok(Identifier::Ip(_)) => Err(format!("the DNS name {name} is an IP address")),
            parsed => parsed.map_err(|error| error.to_string()),
        },
        GeneralName::IPAddress(octets) => {
            let address = address(octets).map_err(|_| of_another_type())?;
            Ok(Identifier::Ip(address))
        }
        _ => Err(of_another_type()),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, KeyPair};

    use super::super::{Bundle, Freshness, KeyType};
    use super::*;
    use crate::time::{Clock, SystemClock};

    fn params(names: &[&str]) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
    }

    fn der(params: &CertificateParams, key: &KeyPair) -> Vec<u8> {
        params.serialize_request(key).unwrap().der().to_vec()
    }

    #[test]
    fn request_is_read_from_pem_and_der_with_its_names_in_order() {
        let key = KeyPair::generate().unwrap();
        let names = ["www.example.com", "example.com", "192.0.2.7", "2001:db8::7"];
        let mut params = params(&names);
        params
            .distinguished_name
            .push(DnType::CommonName, "example.com");
        let der = der(&params, &key);
        let read = SigningRequest::read(&der).unwrap();
        let found: Vec<_> = read.names().iter().map(ToString::to_string).collect();
        assert_eq!(found, names);
        let pem = read.to_string();
        for text in [
            pem.clone(),
            pem.replace(LABEL, &format!("NEW {LABEL}")),
            format!("{}{pem}", key.serialize_pem()),
        ] {
            assert_eq!(SigningRequest::read(text.as_bytes()), Ok(read.clone()));
        }
        assert_eq!(read.in_place_of_key().signing_request(), Some(der));
        assert_eq!(Secret::new(key.serialize_pem()).signing_request(), None);
    }

    #[test]
    fn unfit_request_is_refused_with_its_cause() {
        let key = KeyPair::generate().unwrap();
        let good = der(&params(&["example.com"]), &key);
        let mut forged = good.clone();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        let with = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = params(&["example.com"]);
            change(&mut params);
            der(&params, &key)
        };
        let is_ca = with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        let stapled = with(&|params| {
            let staple = CustomExtension::from_oid_content(
                &[1, 3, 6, 1, 5, 5, 7, 1, 24],
                vec![0x30, 3, 2, 1, 5],
            );
            params.custom_extensions = vec![staple];
        });
        let other_name = with(&|params| {
            params
                .distinguished_name
                .push(DnType::CommonName, "other.example");
        });
        let mail = with(&|params| {
            let mail = "a@example.com".try_into().unwrap();
            params
                .subject_alt_names
                .push(rcgen::SanType::Rfc822Name(mail));
        });
        let bare = der(&params(&[]), &key);
        let many: Vec<String> = (0..101).map(|n| format!("n{n}.example.com")).collect();
        let mut many = CertificateParams::new(many).unwrap();
        many.distinguished_name = rcgen::DistinguishedName::new();
        let many = der(&many, &key);
        let long = [good.clone(), vec![0]].concat();
        for (content, cause) in [
            (forged, "signature is invalid"),
            (is_ca, "2.5.29.19"),
            (stapled, "1.3.6.1.5.5.7.1.24"),
            (other_name, "common name `other.example`"),
            (mail, "neither a DNS name nor an IP address"),
            (bare, "no alternative name"),
            (many, "101 names"),
            (long, "not a valid PKCS#10"),
            (vec![b'x'; LARGEST + 1], "larger than 64 KiB"),
            (
                b"-----BEGIN CERTIFICATE-----".to_vec(),
                "no signing request",
            ),
            (Vec::new(), "no signing request"),
        ] {
            let refused = SigningRequest::read(&content).unwrap_err();
            assert!(refused.contains(cause), "{cause}: {refused}");
        }
    }

    /// Made by `openssl req -new -newkey rsa:1024` and with the curves `prime192v1` and
    /// `secp256k1`.
    #[test]
    fn weak_key_is_refused() {
        for (pem, cause) in [
            (include_str!("request/rsa1024.csr"), "1024 bits"),
            (include_str!("request/p192.csr"), "1.2.840.10045.3.1.1"),
            (include_str!("request/k256.csr"), "1.3.132.0.10"),
            (include_str!("request/ed25519.csr"), "neither RSA nor ECDSA"),
        ] {
            let refused = pem.parse::<SigningRequest>().unwrap_err();
            assert!(refused.contains(cause), "{cause}: {refused}");
        }
    }

    #[test]
    fn certificate_of_a_request_is_a_pair_without_its_key() {
        for key_type in [KeyType::EcdsaP384, KeyType::Rsa2048] {
            let pem = key_type.generate().unwrap();
            let key = KeyPair::from_pem(pem.expose()).unwrap();
            let params = params(&["example.com"]);
            let request = SigningRequest::read(&der(&params, &key)).unwrap();
            let chain = params.self_signed(&key).unwrap().pem();
            let names = request.names().iter().cloned().collect();
            let now = SystemClock.now();
            let pair = |key: Secret| Bundle::new(key, &chain, &names, now, Freshness::Any);
            let bundle = pair(request.in_place_of_key()).unwrap();
            assert!(!bundle.has_key());
            assert!(pair(pem).unwrap().has_key());
            let other = der(&params, &KeyPair::generate().unwrap());
            let other = SigningRequest::read(&other).unwrap();
            let refused = pair(other.in_place_of_key()).unwrap_err();
            assert_eq!(refused, super::super::BundleError::KeyMismatch);
        }
    }
}
