//! The keys that sign: a root, which is never replaced, and an intermediate,
//! which is replaced before it would expire sooner than a leaf that it signs.
//! A replaced one signs its revocation lists until it expires.
//!
//! On disk: `root.pem` (0644) for clients to trust, `root.key` (0600), and
//! `intermediate.pem` (0600) with key and certificate in one file, so that
//! they are replaced together; `former.pem` (0600) has the replaced ones. RFC 5280.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::constraints::{self, Permitted};
use super::directory::StateDirectory;
use super::jws::encode;
use super::nonces::random_bytes;
use super::{CaError, DAY, HOUR, lock};
use crate::certificate::{Facts, Secret};
use crate::identifier::Identifier;
use crate::time::Timestamp;

const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * 86_400);
/// The shortest lifetime of an intermediate: twice that of the leaf, if longer.
const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(365 * 86_400);

const INTERMEDIATE: &str = "intermediate.pem";
const FORMER: &str = "former.pem";
const END: &str = "-----END CERTIFICATE-----\n";

pub(super) struct Authority {
    directory: Option<Arc<StateDirectory>>,
    root: Arc<CaKey>,
    has_new_root: bool,
    /// The last one signs; those before it sign their revocation lists.
    intermediates: Mutex<Vec<Arc<CaKey>>>,
    /// See [`super::Settings::lists_url`].
    lists_url: Option<String>,
}

/// A CA certificate with its key.
pub(super) struct CaKey {
    pem: String,
    key_pem: Secret,
    not_after: Timestamp,
    /// Its key identifier, which is the first part of the RFC 9773 identifiers of what it signs.
    pub(super) key_id: String,
    pub(super) issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the keys from `directory`, or makes them.
    ///
    /// A new root permits the names of `permitted` alone.
    pub(super) fn open(
        directory: Option<Arc<StateDirectory>>,
        permitted: &[Permitted],
        lists_url: Option<String>,
        now: Timestamp,
    ) -> Result<Self, CaError> {
        let on_disk = directory.as_deref();
        let stored = on_disk.map(read_root).transpose()?.flatten();
        let has_new_root = stored.is_none();
        let root = match stored {
            Some(stored) => stored,
            None => make_root(on_disk, permitted, now)?,
        };
        let read = |name| on_disk.map_or(Ok(Vec::new()), |on| read_intermediates(on, name, &root));
        let (mut intermediates, current) = (read(FORMER)?, read(INTERMEDIATE)?);
        // A replacement that was cut off leaves the current one in both files.
        let is_current = |one: &CaKey| current.iter().any(|other| other.key_id == one.key_id);
        intermediates.retain(|one| one.is_needed(now) && !is_current(one));
        intermediates.extend(current);
        let opened = Self {
            directory,
            root: Arc::new(root),
            has_new_root,
            intermediates: Mutex::new(intermediates.into_iter().map(Arc::new).collect()),
            lists_url,
        };
        opened.intermediate_for(now, now)?;
        Ok(opened)
    }

    /// The root or the intermediate with this key identifier.
    pub(super) fn issuer(&self, key_id: &str) -> Option<Arc<CaKey>> {
        let intermediates = lock(&self.intermediates);
        let mut all = std::iter::once(&self.root).chain(intermediates.iter());
        all.find(|one| one.key_id == key_id).cloned()
    }

    /// The distribution point of the list of `issuer`.
    fn list_of(&self, issuer: &CaKey) -> Vec<CrlDistributionPoint> {
        let urls = self.lists_url.iter();
        let urls = urls.map(|url| format!("{url}/crl/{}.crl", issuer.key_id));
        urls.map(|url| CrlDistributionPoint { uris: vec![url] })
            .collect()
    }

    pub(super) fn root_pem(&self) -> &str {
        &self.root.pem
    }

    pub(super) fn has_new_root(&self) -> bool {
        self.has_new_root
    }

    /// Whether the root permits certificates for `identifier`.
    pub(super) fn permits(&self, identifier: &Identifier) -> bool {
        let der = CertificateDer::from_pem_slice(self.root.pem.as_bytes());
        let parsed = der
            .as_ref()
            .ok()
            .and_then(|der| X509Certificate::from_der(der).ok());
        parsed.is_some_and(|(_, root)| constraints::permits(&root, identifier))
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
        let identifiers = identifiers.iter().cloned().collect();
        let (_, chain) = self.sign(&public, &identifiers, (now - HOUR, not_after), now)?;
        Ok((key, chain))
    }

    /// Signs a certificate that is valid from the first to the last second of its
    /// validity: its facts, and the chain of the leaf and its intermediate in PEM.
    pub(super) fn sign(
        &self,
        public: &SubjectPublicKeyInfo,
        identifiers: &BTreeSet<Identifier>,
        (not_before, not_after): (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Result<(Facts, String), CaError> {
        let signer = self.intermediate_for(not_after, now)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let names = identifiers.iter().map(alternative_name);
        params.subject_alt_names = names.collect::<Result<_, _>>()?;
        params.not_before = instant(not_before);
        // A leaf that outlived its issuer would not verify.
        params.not_after = instant(not_after.min(signer.not_after));
        params.serial_number = Some(serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.crl_distribution_points = self.list_of(&signer);
        params.key_identifier_method = key_identifier(public);
        let signed = params.signed_by(public, &signer.issuer)?;
        let facts = Facts::of(signed.der());
        let facts = facts.map_err(|error| CaError::corrupt("the new leaf".as_ref(), error))?;
        Ok((facts, format!("{}{}", signed.pem(), signer.pem)))
    }

    /// The intermediate, replaced if it would expire before `not_after`.
    fn intermediate_for(
        &self,
        not_after: Timestamp,
        now: Timestamp,
    ) -> Result<Arc<CaKey>, CaError> {
        let mut all = lock(&self.intermediates);
        let last = self.root.not_after;
        let lasts = |one: &CaKey| one.not_after >= not_after + DAY || one.not_after >= last;
        if let Some(current) = all.last().filter(|one| lasts(one)) {
            return Ok(current.clone());
        }
        let mut former = all.clone();
        former.retain(|one| one.is_needed(now));
        if let Some(directory) = self.directory.as_ref().filter(|_| !former.is_empty()) {
            // First, so that no moment lacks a key that signs a list.
            let text: String = former.iter().map(|one| one.in_one_file()).collect();
            directory.write(FORMER, 0o600, Secret::new(text).expose().as_bytes())?;
        }
        let made = Arc::new(self.make_intermediate(now, not_after)?);
        if let Some(directory) = &self.directory {
            let both = Secret::new(made.in_one_file());
            directory.write(INTERMEDIATE, 0o600, both.expose().as_bytes())?;
        }
        former.push(made.clone());
        *all = former;
        Ok(made)
    }

    fn make_intermediate(&self, now: Timestamp, needed: Timestamp) -> Result<CaKey, CaError> {
        let (key, root) = (KeyPair::generate()?, &self.root);
        let lifetime = INTERMEDIATE_LIFETIME.max(needed.since(now) * 2);
        let not_after = (now + lifetime).min(root.not_after);
        let path_length = BasicConstraints::Constrained(0);
        let mut params = ca_params("intermediate", path_length, now - HOUR, not_after);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.crl_distribution_points = self.list_of(root);
        params.key_identifier_method = key_identifier(&key);
        let pem = params.signed_by(&key, &root.issuer)?.pem();
        let made = signer(pem, key.serialize_pem(), None);
        made.map_err(|detail| CaError::corrupt("the new intermediate".as_ref(), detail))
    }
}

impl CaKey {
    /// Its key and its certificate.
    fn in_one_file(&self) -> String {
        format!("{}{}", self.key_pem.expose(), self.pem)
    }

    /// Whether a client may still ask for its revocation list.
    fn is_needed(&self, now: Timestamp) -> bool {
        self.not_after + DAY >= now
    }
}

fn read_root(directory: &StateDirectory) -> Result<Option<CaKey>, CaError> {
    let corrupt = |detail| directory.corrupt("root.pem", detail);
    match (directory.read("root.pem")?, directory.read("root.key")?) {
        (Some(pem), Some(key)) => signer(pem, key, None).map(Some).map_err(corrupt),
        (Some(_), None) => Err(corrupt("its key `root.key` is missing".to_owned())),
        // Without `root.pem` no client can trust the key yet: it is replaced.
        (None, _) => Ok(None),
    }
}

fn make_root(
    directory: Option<&StateDirectory>,
    permitted: &[Permitted],
    now: Timestamp,
) -> Result<CaKey, CaError> {
    let key = KeyPair::generate()?;
    let length = BasicConstraints::Unconstrained;
    let mut params = ca_params("root", length, now - HOUR, now + ROOT_LIFETIME);
    params.name_constraints = constraints::extension(permitted);
    params.key_identifier_method = key_identifier(&key);
    let pem = params.self_signed(&key)?.pem();
    let made = signer(pem, key.serialize_pem(), None);
    let made = made.map_err(|detail| CaError::corrupt("the new root".as_ref(), detail))?;
    if let Some(directory) = directory {
        directory.write("root.key", 0o600, made.key_pem.expose().as_bytes())?;
        directory.write("root.pem", 0o644, made.pem.as_bytes())?;
    }
    Ok(made)
}

fn read_intermediates(
    directory: &StateDirectory,
    name: &str,
    root: &CaKey,
) -> Result<Vec<CaKey>, CaError> {
    const BOUNDARY: &str = "-----BEGIN CERTIFICATE-----";
    let text = directory.read(name)?.unwrap_or_default();
    let pairs = text
        .split_inclusive(END)
        .filter(|pair| !pair.trim().is_empty());
    let read = pairs.map(|pair| {
        let at = pair.find(BOUNDARY).ok_or("no certificate found")?;
        let (key, pem) = pair.split_at(at);
        signer(pem.to_owned(), key.to_owned(), Some(root))
    });
    let read: Result<_, String> = read.collect();
    read.map_err(|detail| directory.corrupt(name, detail))
}

fn ca_params(
    role: &str,
    path_length: BasicConstraints,
    not_before: Timestamp,
    not_after: Timestamp,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    let serial = serial();
    // Browsers and `openssl` find an issuer by its name, so the names of two
    // roots on one machine must differ.
    let bytes = serial.to_bytes();
    let tag = bytes[..4].iter().map(|byte| format!("{byte:02x}"));
    let common = format!("certs {role} {}", tag.collect::<String>());
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "certs embedded CA");
    name.push(DnType::CommonName, common);
    params.distinguished_name = name;
    params.serial_number = Some(serial);
    params.not_before = instant(not_before);
    params.not_after = instant(not_after);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Checks a certificate of the CA with its key, and with the `root` that must have signed it.
///
/// # Errors
/// The invalid part, in words.
fn signer(pem: String, key_pem: String, root: Option<&CaKey>) -> Result<CaKey, String> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| "not a valid certificate in PEM")?;
    let (_, certificate) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
    let key = KeyPair::from_pem(&key_pem).map_err(|_| "its private key is invalid")?;
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err("the private key belongs to another certificate".to_owned());
    }
    let is_signed_by = |root: &CaKey| {
        let key = root.issuer.key().subject_public_key_info();
        let parsed = x509_parser::x509::SubjectPublicKeyInfo::from_der(&key);
        parsed.is_ok_and(|(_, key)| certificate.verify_signature(Some(&key)).is_ok())
    };
    if root.is_some_and(|root| !is_signed_by(root)) {
        return Err("the root did not sign it".to_owned());
    }
    let key_id = certificate
        .extensions()
        .iter()
        .find_map(|one| match one.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(encode(id.0)),
            _ => None,
        });
    Ok(CaKey {
        key_id: key_id.ok_or("no subject key identifier found")?,
        not_after: Timestamp::from_seconds(certificate.validity().not_after.timestamp()),
        issuer: Issuer::from_ca_cert_der(&der, key).map_err(|error| error.to_string())?,
        key_pem: Secret::new(key_pem),
        pem,
    })
}

fn alternative_name(identifier: &Identifier) -> Result<SanType, rcgen::Error> {
    Ok(match identifier {
        Identifier::Dns(name) => SanType::DnsName(name.as_str().try_into()?),
        Identifier::Ip(address) => SanType::IpAddress(*address),
    })
}

/// Method 1 of RFC 7093: from the bits of the public key alone.
fn key_identifier(key: &impl PublicKeyData) -> KeyIdMethod {
    KeyIdMethod::PreSpecified(digest(&SHA256, key.der_bytes()).as_ref()[..20].to_vec())
}

/// 126 random bits, positive and of full length (RFC 5280 section 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = random_bytes();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(super) fn instant(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(timestamp.seconds()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
