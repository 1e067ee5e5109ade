//! The CA's keys without its protocol, for a caller that checks orders itself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};

use super::CaError;
use super::authority::Authority;
use crate::certificate::{Facts, Secret};
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// A root and an intermediate in memory that sign without any check.
pub struct Signing {
    authority: Authority,
    /// Parsed public keys by their private keys in PEM: a caller signs for the
    /// same few keys again and again.
    keys: Mutex<BTreeMap<String, SubjectPublicKeyInfo>>,
}

/// The largest number of cached keys.
const MOST_KEYS: usize = 64;

impl Signing {
    /// New keys, valid from `now`.
    ///
    /// # Errors
    /// When the keys cannot be made.
    pub fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self {
            authority: Authority::open(None, now)?,
            keys: Mutex::default(),
        })
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
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if keys.len() >= MOST_KEYS {
            keys.clear();
        }
        let public = match keys.entry(key_pem.expose().to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let key = KeyPair::from_pem(key_pem.expose())?;
                let der = key.subject_public_key_info();
                new.insert(SubjectPublicKeyInfo::from_der(&der)?)
            }
        };
        let leaf = self
            .authority
            .sign_for(public, identifiers, validity, now)?;
        Ok((leaf.facts, leaf.chain_pem))
    }
}
