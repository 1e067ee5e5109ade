//! The keys that sign: a root, which is never replaced, and an intermediate,
//! which is replaced before it would expire sooner than a leaf that it signs.
//!
//! On disk: `root.pem` (0644) for clients to trust, `root.key` (0600), and
//! `intermediate.pem` (0600) with key and certificate in one file, so that
//! they are replaced together. RFC 5280.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::nonces::random_bytes;
use super::request::SigningRequest;
use super::{CaError, DAY, HOUR};
use crate::certificate::Facts;
use crate::identifier::Identifier;
use crate::time::Timestamp;
use crate::{certificate, files};

const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// The shortest lifetime of an intermediate: twice that of the leaf, if longer.
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

/// The root and the current intermediate.
pub(super) struct Authority {
    directory: Option<PathBuf>,
    root: CaKey,
    intermediate: Mutex<Arc<CaKey>>,
}

/// A CA certificate with its key.
struct CaKey {
    pem: String,
    key_pem: certificate::Secret,
    not_after: Timestamp,
    issuer: Issuer<'static, KeyPair>,
}

/// A signed leaf.
pub(super) struct Leaf {
    pub(super) facts: Facts,
    /// The leaf and its intermediate.
    pub(super) chain_pem: String,
}

impl Authority {
    /// Loads the keys from `directory`, or makes them.
    pub(super) fn open(directory: Option<&Path>, now: Timestamp) -> Result<Self, CaError> {
        let root = match directory {
            Some(directory) => open_root(directory, now)?,
            None => make_root(now)?,
        };
        let stored = match directory {
            Some(directory) => read_intermediate(directory, &root)?,
            None => None,
        };
        let intermediate = match stored {
            Some(stored) => stored,
            None => make_intermediate(directory, &root, now, now)?,
        };
        Ok(Self {
            directory: directory.map(Path::to_owned),
            root,
            intermediate: Mutex::new(Arc::new(intermediate)),
        })
    }

    pub(super) fn root_pem(&self) -> &str {
        &self.root.pem
    }

    /// Signs a checked request; `not_after` is the last valid second.
    pub(super) fn sign(
        &self,
        request: &SigningRequest,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Leaf, CaError> {
        self.sign_key(
            &request.public_key,
            request.identifiers.iter(),
            not_before,
            not_after,
            now,
        )
    }

    /// Signs a certificate with these dates.
    pub(super) fn sign_for(
        &self,
        public: &SubjectPublicKeyInfo,
        identifiers: &BTreeSet<Identifier>,
        validity: (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Result<Leaf, CaError> {
        self.sign_key(public, identifiers.iter(), validity.0, validity.1, now)
    }

    /// Signs a certificate for the CA's own listener: its key and chain.
    pub(super) fn sign_own(
        &self,
        identifiers: &[Identifier],
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<(KeyPair, String), CaError> {
        let key = KeyPair::generate()?;
        let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())?;
        let leaf = self.sign_key(&public, identifiers.iter(), now - HOUR, not_after, now)?;
        Ok((key, leaf.chain_pem))
    }

    fn sign_key<'a>(
        &self,
        public: &SubjectPublicKeyInfo,
        identifiers: impl Iterator<Item = &'a Identifier>,
        not_before: Timestamp,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Leaf, CaError> {
        let signer = self.intermediate_for(not_after, now)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = identifiers
            .map(alternative_name)
            .collect::<Result<_, _>>()?;
        params.not_before = instant(not_before);
        // A leaf that outlived its issuer would not verify.
        params.not_after = instant(not_after.min(signer.not_after));
        params.serial_number = Some(serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(public, &signer.issuer)?;
        let facts = Facts::of(signed.der()).map_err(|error| corrupt("the new leaf", &error))?;
        Ok(Leaf {
            facts,
            chain_pem: format!("{}{}", signed.pem(), signer.pem),
        })
    }

    /// The intermediate, replaced if it would expire before `not_after`.
    fn intermediate_for(
        &self,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Arc<CaKey>, CaError> {
        let mut current = self
            .intermediate
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let last = self.root.not_after;
        if current.not_after < not_after + DAY && current.not_after < last {
            let made = make_intermediate(self.directory.as_deref(), &self.root, now, not_after)?;
            *current = Arc::new(made);
        }
        Ok(current.clone())
    }
}

fn open_root(directory: &Path, now: Timestamp) -> Result<CaKey, CaError> {
    let (pem_path, key_path) = (directory.join("root.pem"), directory.join("root.key"));
    files::make_directory(directory, 0o700).map_err(|error| io_error(directory, error))?;
    match (read(&pem_path)?, read(&key_path)?) {
        (Some(pem), Some(key)) => signer(pem, key, &pem_path),
        (Some(_), None) => Err(corrupt_file(&pem_path, "its key `root.key` is missing")),
        // Without `root.pem` no client can trust the key yet: it is replaced.
        (None, _) => {
            let made = make_root(now)?;
            let write = |path: &Path, mode, text: &str| {
                files::replace(path, mode, text.as_bytes()).map_err(|error| io_error(path, error))
            };
            write(&key_path, 0o600, made.key_pem.expose())?;
            write(&pem_path, 0o644, &made.pem)?;
            Ok(made)
        }
    }
}

fn make_root(now: Timestamp) -> Result<CaKey, CaError> {
    let key = KeyPair::generate()?;
    let params = ca_params(
        "root",
        BasicConstraints::Unconstrained,
        now - HOUR,
        now + ROOT_LIFETIME,
    );
    let pem = params.self_signed(&key)?.pem();
    signer(pem, key.serialize_pem(), Path::new("the new root"))
}

fn read_intermediate(directory: &Path, root: &CaKey) -> Result<Option<CaKey>, CaError> {
    let path = directory.join("intermediate.pem");
    let Some(text) = read(&path)? else {
        return Ok(None);
    };
    const BOUNDARY: &str = "-----BEGIN CERTIFICATE-----";
    let Some(at) = text.find(BOUNDARY) else {
        return Err(corrupt_file(&path, "no certificate found"));
    };
    let (key, pem) = text.split_at(at);
    let stored = signer(pem.to_owned(), key.to_owned(), &path)?;
    let (below, above) = (der(pem, &path)?, der(&root.pem, &path)?);
    let (below, above) = (parsed(&below, &path)?, parsed(&above, &path)?);
    if below.verify_signature(Some(above.public_key())).is_err() {
        return Err(corrupt_file(&path, "the root did not sign it"));
    }
    Ok(Some(stored))
}

fn make_intermediate(
    directory: Option<&Path>,
    root: &CaKey,
    now: Timestamp,
    needed: Timestamp,
) -> Result<CaKey, CaError> {
    let key = KeyPair::generate()?;
    let lifetime = INTERMEDIATE_LIFETIME.max(needed.since(now) * 2);
    let not_after = (now + lifetime).min(root.not_after);
    let path_length = BasicConstraints::Constrained(0);
    let mut params = ca_params("intermediate", path_length, now - HOUR, not_after);
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let pem = params.signed_by(&key, &root.issuer)?.pem();
    let key = key.serialize_pem();
    if let Some(directory) = directory {
        let path = directory.join("intermediate.pem");
        let both = certificate::Secret::new(format!("{key}{pem}"));
        files::replace(&path, 0o600, both.expose().as_bytes())
            .map_err(|error| io_error(&path, error))?;
    }
    signer(pem, key, Path::new("the new intermediate"))
}

fn ca_params(
    role: &str,
    constraints: BasicConstraints,
    not_before: Timestamp,
    not_after: Timestamp,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    let serial = serial();
    // Browsers and `openssl` find an issuer by its name, so the names of two
    // roots on one machine must differ.
    let tag: String = serial.to_bytes()[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "certs embedded CA");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("certs {role} {tag}"));
    params.serial_number = Some(serial);
    params.not_before = instant(not_before);
    params.not_after = instant(not_after);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn signer(pem: String, key_pem: String, path: &Path) -> Result<CaKey, CaError> {
    let der = der(&pem, path)?;
    let certificate = parsed(&der, path)?;
    let key = KeyPair::from_pem(&key_pem)
        .map_err(|_| corrupt_file(path, "its private key is invalid"))?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(corrupt_file(
            path,
            "the private key belongs to another certificate",
        ));
    }
    Ok(CaKey {
        not_after: Timestamp::from_seconds(certificate.validity().not_after.timestamp()),
        issuer: Issuer::from_ca_cert_der(&der, key)?,
        key_pem: certificate::Secret::new(key_pem),
        pem,
    })
}

fn der(pem: &str, path: &Path) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| corrupt_file(path, "not a valid certificate in PEM"))
}

fn parsed<'a>(der: &'a CertificateDer<'_>, path: &Path) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| corrupt_file(path, &error.to_string()))
}

fn alternative_name(identifier: &Identifier) -> Result<SanType, rcgen::Error> {
    Ok(match identifier {
        Identifier::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        Identifier::Ip(address) => SanType::IpAddress(*address),
    })
}

/// 126 random bits, positive and of full length (RFC 5280 section 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = random_bytes();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn instant(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(timestamp.seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, error)),
    }
}

fn io_error(path: &Path, source: io::Error) -> CaError {
    CaError::Io {
        path: path.to_owned(),
        source,
    }
}

fn corrupt(what: &str, error: &dyn std::fmt::Display) -> CaError {
    corrupt_file(Path::new(what), &error.to_string())
}

fn corrupt_file(path: &Path, detail: &str) -> CaError {
    CaError::Corrupt {
        path: path.to_owned(),
        detail: detail.to_owned(),
    }
}
