//! A private key and its chain as one value.
//!
//! [`Bundle::new`] is the only constructor. It finds the leaf by its key, builds the chain,
//! and checks that all requested names are there and that the dates are valid. Only a
//! `Bundle` is ever stored or published. RFC 5280.

mod chain;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod key_type;
mod known;
mod pkcs12;
mod request;
mod secret;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fingerprint::Fingerprint;
use crate::identifier::Identifier;
use crate::text::printable;
use crate::time::Timestamp;

pub(crate) use chain::{certified_key, key_fingerprint, serial_of};
pub use known::BundleCache;
pub use request::SigningRequest;
pub(crate) use request::verify_request;
pub(crate) use secret::shown;
pub use secret::{Secret, SecretBytes};

/// The type of a certificate's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are the options'
pub enum KeyType {
    #[default]
    #[serde(rename = "ecdsa-p256")]
    EcdsaP256,
    #[serde(rename = "ecdsa-p384")]
    EcdsaP384,
    #[serde(rename = "rsa-2048")]
    Rsa2048,
    #[serde(rename = "rsa-3072")]
    Rsa3072,
    #[serde(rename = "rsa-4096")]
    Rsa4096,
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl KeyType {
    /// All of them, the default first.
    pub const ALL: [Self; 5] = [
        Self::EcdsaP256,
        Self::EcdsaP384,
        Self::Rsa2048,
        Self::Rsa3072,
        Self::Rsa4096,
    ];

    /// As the option has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcdsaP256 => "ecdsa-p256",
            Self::EcdsaP384 => "ecdsa-p384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::Rsa4096 => "rsa-4096",
        }
    }

    /// `ecdsa` or `rsa`: a client may understand one kind alone.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::EcdsaP256 | Self::EcdsaP384 => "ecdsa",
            Self::Rsa2048 | Self::Rsa3072 | Self::Rsa4096 => "rsa",
        }
    }

    /// Makes a new key, in PEM. RSA takes up to seconds: keep it off the
    /// async threads.
    ///
    /// # Errors
    /// When the cryptographic library has no randomness.
    pub fn generate(self) -> Result<Secret, rcgen::Error> {
        let rsa = |size| rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size);
        let key = match self {
            Self::EcdsaP256 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Self::EcdsaP384 => rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Self::Rsa2048 => rsa(rcgen::RsaKeySize::_2048),
            Self::Rsa3072 => rsa(rcgen::RsaKeySize::_3072),
            Self::Rsa4096 => rsa(rcgen::RsaKeySize::_4096),
        }?;
        Ok(Secret::new(key.serialize_pem()))
    }
}

impl std::str::FromStr for KeyType {
    type Err = String;

    /// Reads the option's value, such as `ecdsa-p256`.
    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_value(serde_json::Value::from(text))
            .map_err(|_| format!("unknown key type `{}`", text.escape_debug()))
    }
}

/// A validated key with its certificate chain.
#[derive(Clone, Debug)]
pub struct Bundle {
    key_pem: Secret,
    chain: Arc<[CertificateDer<'static>]>,
    facts: Arc<Facts>,
    oddities: Arc<[String]>,
}

/// The fields of a leaf certificate that the program uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Subject alternative names, sorted. Those of a bundle are the requested ones.
    pub identifiers: BTreeSet<Identifier>,
    /// First instant of validity.
    pub not_before: Timestamp,
    /// Last instant of validity.
    pub not_after: Timestamp,
    /// SHA-256 over the leaf's DER.
    pub fingerprint: Fingerprint,
    /// `base64url(AKI).base64url(serial)`, the RFC 9773 certificate
    /// identifier; `None` if the leaf has no authority key identifier.
    pub renewal_id: Option<String>,
}

/// Why a key and a chain are not a valid pair.
#[derive(Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub enum BundleError {
    #[error("the private key is not valid PEM (PKCS#8, PKCS#1 or SEC1)")]
    Key,
    #[error("the chain is not valid PEM, or has no certificate")]
    Chain,
    #[error("certificate {0} of the chain is not valid DER: {1}")]
    Der(usize, String),
    #[error("the key does not match the certificate")]
    KeyMismatch,
    #[error("the certificate is for {found}, but {wanted} were requested")]
    Names { wanted: String, found: String },
    #[error("none of the other {0} certificates of the chain signed the leaf")]
    Link(usize),
    #[error("not valid before {0}")]
    NotYetValid(Timestamp),
    #[error("expired at {0}")]
    Expired(Timestamp),
    #[error(
        "valid from {not_before} to {not_after}: shorter than an hour, or more than half expired"
    )]
    TooShort {
        not_before: Timestamp,
        not_after: Timestamp,
    },
}

/// Which dates are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Just issued: valid for at least an hour, of which more than half is left.
    Issued,
    /// From our own store: not expired. "Not yet valid" passes, so that a clock that
    /// was set back does not make a stored pair unusable.
    Stored,
    /// For reading only: any dates.
    Any,
}

const MOST_NAMES_SHOWN: usize = 20;

/// Allowed clock skew: a CA whose clock is ahead of ours dates a certificate later.
const SKEW: Duration = Duration::from_secs(300);

impl Bundle {
    /// Checks that `key_pem` and `chain_pem` match, are for `identifiers` and have valid
    /// dates at `now`. The chain may be in any order; what does not belong to it is dropped,
    /// as are further names of the leaf.
    ///
    /// # Errors
    /// [`BundleError`], the first check that failed.
    pub fn new(
        key_pem: Secret,
        chain_pem: &str,
        identifiers: &BTreeSet<Identifier>,
        now: Timestamp,
        freshness: Freshness,
    ) -> Result<Self, BundleError> {
        let given = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| BundleError::Chain)?;
        let chain = chain::built(&given, chain::leaf_of(&key_pem, &given)?)?;
        let mut facts = Facts::of(&chain[0])?;
        if !facts.identifiers.is_superset(identifiers) {
            let [wanted, found] = [identifiers, &facts.identifiers].map(|set| {
                if set.is_empty() {
                    return "no name".to_owned();
                }
                let names: Vec<_> = set.iter().map(ToString::to_string).collect();
                names.join(", ")
            });
            return Err(BundleError::Names { wanted, found });
        }
        facts.check_dates(now, freshness)?;
        let further = other_names(&parse(0, &chain[0])?, identifiers);
        facts.identifiers.clone_from(identifiers);
        let mut oddities = Vec::new();
        if !further.is_empty() {
            oddities.push(format!("it is also for {}", further.join(", ")));
        }
        if chain != given {
            let (given, kept) = (given.len(), chain.len());
            oddities.push(format!(
                "its chain of {given} certificates is out of order or has others in it; {kept} are kept"
            ));
        }
        Ok(Self {
            key_pem,
            chain: chain.into(),
            facts: Arc::new(facts),
            oddities: oddities.into(),
        })
    }

    /// What the CA did that was not requested, and does no harm.
    #[must_use]
    pub fn oddities(&self) -> &[String] {
        &self.oddities
    }

    /// The fields of the leaf.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The private key in PEM, or the signing request in its place.
    #[must_use]
    pub fn key_pem(&self) -> &Secret {
        &self.key_pem
    }

    /// Whether its private key is here, and not with the user that brought a signing request.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.key_pem.signing_request().is_none()
    }

    /// The chain, leaf first, as a TLS server sends it.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The leaf alone in PEM.
    #[must_use]
    pub fn leaf_pem(&self) -> String {
        self.chain.iter().take(1).map(pem).collect()
    }

    /// The issuers without the leaf in PEM; empty for a self-signed certificate.
    #[must_use]
    pub fn issuers_pem(&self) -> String {
        self.chain.iter().skip(1).map(pem).collect()
    }

    /// The whole chain in PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem).collect()
    }
}

impl Facts {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// [`BundleError::Der`] if it is not valid X.509.
    pub fn of(leaf: &CertificateDer<'_>) -> Result<Self, BundleError> {
        let certificate = parse(0, leaf)?;
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        let validity = certificate.validity();
        Ok(Self {
            // No server is asked for any other, such as an e-mail address.
            identifiers: names.filter_map(identifier).collect(),
            not_before: Timestamp::from_seconds(validity.not_before.timestamp()),
            not_after: Timestamp::from_seconds(validity.not_after.timestamp()),
            fingerprint: Fingerprint::of(leaf),
            renewal_id: renewal_id(&certificate),
        })
    }

    /// Reads the leaf of a chain in PEM.
    ///
    /// # Errors
    /// [`BundleError::Chain`] or [`BundleError::Der`].
    pub fn of_chain(pem: &str) -> Result<Self, BundleError> {
        let leaf = CertificateDer::from_pem_slice(pem.as_bytes());
        Self::of(&leaf.map_err(|_| BundleError::Chain)?)
    }

    /// The lifetime, including `notAfter`, which is the last valid second.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        (self.not_after + Duration::from_secs(1)).since(self.not_before)
    }

    fn check_dates(&self, now: Timestamp, freshness: Freshness) -> Result<(), BundleError> {
        if freshness == Freshness::Any {
            return Ok(());
        }
        if now > self.not_after {
            return Err(BundleError::Expired(self.not_after));
        }
        if freshness == Freshness::Stored {
            return Ok(());
        }
        if now + SKEW < self.not_before {
            return Err(BundleError::NotYetValid(self.not_before));
        }
        let lifetime = self.lifetime();
        if lifetime < Duration::from_secs(3600) || self.not_after.since(now) <= lifetime / 2 {
            return Err(BundleError::TooShort {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        Ok(())
    }
}

fn parse<'a>(
    index: usize,
    der: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, BundleError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(BundleError::Der(index, "trailing bytes".into())),
        Err(error) => Err(BundleError::Der(index, error.to_string())),
    }
}

/// An alternative name as an identifier, if it can be one.
fn identifier(name: &GeneralName<'_>) -> Option<Identifier> {
    match name {
        GeneralName::DNSName(name) => Identifier::parse(name).ok(),
        GeneralName::IPAddress(octets) => address(octets).map(Identifier::Ip),
        _ => None,
    }
}

/// The alternative names of `leaf` that were not requested, safe to show.
fn other_names(leaf: &X509Certificate<'_>, requested: &BTreeSet<Identifier>) -> Vec<String> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|names| &names.value.general_names);
    let other = names.filter(|name| identifier(name).is_none_or(|name| !requested.contains(&name)));
    let other = other.map(|name| match (identifier(name), name) {
        (Some(name), _) => name.to_string(),
        (
            None,
            GeneralName::DNSName(text) | GeneralName::RFC822Name(text) | GeneralName::URI(text),
        ) => printable(text),
        _ => "a name of another type".to_owned(),
    });
    other.take(MOST_NAMES_SHOWN).collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| octets.try_into().map(<[u8; 16]>::into)).ok()
}

fn renewal_id(certificate: &X509Certificate<'_>) -> Option<String> {
    let mut extensions = certificate.extensions().iter();
    let key_identifier = extensions.find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref(),
        _ => None,
    })?;
    let parts = [key_identifier.0, certificate.raw_serial()];
    let parts = parts.map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes));
    Some(parts.join("."))
}

pub(crate) fn pem(der: &CertificateDer<'_>) -> String {
    pem_block("CERTIFICATE", der)
}

fn pem_block(label: &str, der: &[u8]) -> String {
    const LINE: usize = 64;
    let encoded = BASE64_STANDARD.encode(der);
    let lines = encoded.as_bytes().chunks(LINE);
    let lines: String = lines
        .map(|line| String::from_utf8_lossy(line) + "\n")
        .collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

#[cfg(test)]
mod tests;
