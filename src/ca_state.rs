//! The known state of one CA: the used tokens of its rate limits, and its outage. All
//! certificates and all nodes on one store share it, so it is one stored value beside the
//! records. It decides nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::time::Timestamp;

/// The stored state of one CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaState {
    /// The buckets that are not full, by limit and subject: the instant at which each is
    /// full again. Shared between clones, since most readers only need the outage.
    #[serde(default)]
    pub spent: Arc<BTreeMap<Limit, BTreeMap<String, Timestamp>>>,
    /// The outage; `None` while the CA is reachable.
    #[serde(default)]
    pub outage: Option<Outage>,
    /// The keys of revoked certificates, oldest first; in the state of [`EVERY_CA`] alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked_keys: Vec<Fingerprint>,
}

/// In place of the URL of a CA, for what holds at each of them.
pub const EVERY_CA: &str = "every-ca";

impl CaState {
    /// The most keys that are kept: no state grows for ever.
    const MOST_KEYS: usize = 10_000;

    /// Keeps the key of a revoked certificate.
    pub fn note_revoked_key(&mut self, key: Fingerprint) {
        if !self.revoked_keys.contains(&key) {
            self.revoked_keys.push(key);
            let surplus = self.revoked_keys.len().saturating_sub(Self::MOST_KEYS);
            self.revoked_keys.drain(..surplus);
        }
    }
}

/// The rate limits of a CA, as Let's Encrypt names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// New orders of the account.
    NewOrders,
    /// Certificates for a registered domain.
    CertificatesPerDomain,
    /// Certificates for the same set of names.
    DuplicateCertificates,
    /// Failed validations of one name.
    FailedValidations,
    /// Failed validations of one name in a row.
    ConsecutiveFailures,
    /// New accounts from this machine's address.
    NewAccounts,
}

impl Limit {
    /// The name in stored state and metrics, and the words for a user.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::NewOrders => ("new-orders", "new orders"),
            Self::CertificatesPerDomain => (
                "certificates-per-domain",
                "certificates per registered domain",
            ),
            Self::DuplicateCertificates => {
                ("duplicate-certificates", "certificates for the same names")
            }
            Self::FailedValidations => ("failed-validations", "failed validations"),
            Self::ConsecutiveFailures => ("consecutive-failures", "failed validations in a row"),
            Self::NewAccounts => ("new-accounts", "new accounts"),
        }
    }

    /// The name of the limit in stored state and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.words().0
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().1)
    }
}

/// How an order counts at its CA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// Not at all: a replacement inside the window that the CA suggested.
    #[default]
    Exempt,
    /// As a duplicate: the same names as a certificate that this CA has issued.
    Again,
    /// As a new certificate.
    New,
}

/// An outage of a CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When it was first seen.
    pub since: Timestamp,
    /// The number of failed probes.
    pub probes: u32,
    /// When the next probe is due.
    pub probe_at: Timestamp,
    /// Whether the CA itself requested that instant.
    #[serde(default, rename = "asked")]
    pub by_retry_after: bool,
    /// Whether the last probe reached the directory: then the outage concerns only some
    /// operations.
    #[serde(default)]
    pub answered: bool,
    /// Whether only renewal windows are unavailable: the CA may issue nevertheless.
    #[serde(default)]
    pub windows_only: bool,
    /// The error of the last attempt.
    pub last: String,
}
