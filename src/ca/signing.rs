//! The CA's keys without its protocol, for a caller that checks orders itself.

use std::collections::BTreeSet;

use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};

use super::CaError;
use super::authority::Authority;
use crate::certificate::{Facts, Secret};
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// A root and an intermediate in memory that sign without any check.
pub struct Signing(Authority);

impl Signing {
    /// New keys, valid from `now`.
    ///
    /// # Errors
    /// When the keys cannot be made.
    pub fn new(now: Timestamp) -> Result<Self, CaError> {
        Authority::open(None, &[], None, now).map(Self)
    }

    /// The root in PEM.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        self.0.root_pem()
    }

    /// Signs a certificate for `key_pem` and `identifiers`, valid from the first to
    /// the last second of `validity`: its facts and the chain in PEM, leaf first.
    ///
    /// # Errors
    /// When the key is invalid.
    pub fn sign(
        &self,
        key_pem: &Secret,
        identifiers: &BTreeSet<Identifier>,
        validity: (Timestamp, Timestamp),
        now: Timestamp,
    ) -> Result<(Facts, String), CaError> {
        let key = KeyPair::from_pem(key_pem.expose())?;
        let public = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())?;
        self.0.sign(&public, identifiers, validity, now)
    }
}
