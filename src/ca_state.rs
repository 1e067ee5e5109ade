//! What is known of one CA beyond its certificates: how much of its limits is
//! spent, and whether it answers. All certificates, and all nodes on one store,
//! share it, so it is stored as one value beside the records.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The durable state of one CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaState {
    /// The buckets that are not full, by limit and by what it counts for: the
    /// instant at which each is full again. Clones share it until one is changed: most
    /// who look at a CA look at whether it answers.
    #[serde(default)]
    pub spent: Arc<BTreeMap<Limit, BTreeMap<String, Timestamp>>>,
    /// Since when it does not answer; `None` while it does.
    #[serde(default)]
    pub outage: Option<Outage>,
    /// Since when it does not tell its renewal windows; it may issue all the same.
    #[serde(default)]
    pub windowless: Option<Outage>,
}

/// What a CA counts, as Let's Encrypt names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// New orders of the account.
    NewOrders,
    /// Certificates that name a registered domain.
    CertificatesPerDomain,
    /// Certificates for the very same set of names.
    DuplicateCertificates,
    /// Validations of one name that failed.
    FailedValidations,
    /// Validations of one name that failed, with none between that succeeded.
    ConsecutiveFailures,
    /// New accounts of this machine's address.
    NewAccounts,
}

impl Limit {
    /// Its name for machines, as it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NewOrders => "new-orders",
            Self::CertificatesPerDomain => "certificates-per-domain",
            Self::DuplicateCertificates => "duplicate-certificates",
            Self::FailedValidations => "failed-validations",
            Self::ConsecutiveFailures => "consecutive-failures",
            Self::NewAccounts => "new-accounts",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewOrders => "new orders",
            Self::CertificatesPerDomain => "certificates per registered domain",
            Self::DuplicateCertificates => "certificates for the same names",
            Self::FailedValidations => "failed validations",
            Self::ConsecutiveFailures => "failed validations in a row",
            Self::NewAccounts => "new accounts",
        })
    }
}

/// As what an order counts at its CA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counted {
    /// A replacement inside the window that the CA itself suggested: nothing.
    #[default]
    Exempt,
    /// The same names as a certificate that this CA has issued.
    Again,
    /// Anything else.
    New,
}

/// A CA that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// When that was first seen.
    pub since: Timestamp,
    /// How often it was asked again, in vain.
    pub probes: u32,
    /// Nobody asks before this instant.
    pub probe_at: Timestamp,
    /// Whether the CA has asked to be left alone until then.
    #[serde(default)]
    pub asked: bool,
    /// Whether its directory was there when it was asked last: then what it fails at is
    /// not all that it does.
    #[serde(default)]
    pub answered: bool,
    /// What the last attempt ended with.
    pub last: String,
}
