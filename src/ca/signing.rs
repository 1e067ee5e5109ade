//! The CA's keys without its protocol, for who judges the orders himself.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};

use super::CaError;
use super::authority::Authority;
use crate::certificate::{Facts, Secret};
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// A root and an intermediate in memory that sign whatever they are given.
pub struct Signing {
    authority: Authority,
    /// Read already, by their private keys in PEM; whoever makes new keys all
    /// the time reads each only once anyway.
    keys: Mutex<BTreeMap<String, SubjectPublicKeyInfo>>,
}

/// Keys that are remembered.
const MOST_KEYS: usize = 64;

impl Signing {
    /// New keys, valid from `now`.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new(now: Timestamp) -> Result<Self, CaError> {
        Ok(Self {
            authority: Authority::open(None, now)?,
            keys: Mutex::default(),
        })
    }

    /// A certificate for `key_pem` and `identifiers` from the first to the last
    /// second of `validity`: what it says, and the chain in PEM, leaf first.
    ///
    /// # Errors
    /// When the key is not readable.
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
