//! The state of one certificate through its renewals: what was requested, issued
//! and deployed, what was seen served, and what is in progress. It is the whole
//! input of a decision, and it is stored as one value.

mod revocation;
mod terms;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::ca_state::Counted;
use crate::certificate::{Facts, Secret};
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::net::url::{SecretUrl, normalized};
use crate::text::origins;
use crate::time::Timestamp;

pub use revocation::{Revocation, RevocationReason, Revoked, ToRevoke};
pub use terms::{Lifetime, Terms};

/// Counts the certificates of a lineage, from 1; 0 is the placeholder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// How many of a lineage keep their pairs, for a rollback.
    pub(crate) const KEPT: u64 = 3;

    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    /// Four digits at least, as the archive's directories are named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

/// Counts the saved states of a record: the value that compare-and-swap
/// compares. 0 means "not stored yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Revision(pub u64);

/// The durable state of one lineage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name of the lineage.
    pub lineage: Lineage,
    /// The names that the certificate must have.
    pub identifiers: BTreeSet<Identifier>,
    /// The directory URL of the CA to order from.
    #[serde(deserialize_with = "ca_url")]
    pub ca: String,
    /// The certificate profile to request, if any.
    pub profile: Option<String>,
    /// The newest certificate.
    pub issued: Option<Issued>,
    /// Targets by name, and the generation that was last deployed to each.
    #[serde(deserialize_with = "deployed_without_secrets")]
    pub deployed: BTreeMap<String, Generation>,
    /// Endpoints (`host:port`), and the generation last seen there by a handshake.
    pub served: BTreeMap<String, Served>,
    /// The targets that no handshake can verify: no endpoint is configured, and the ports on
    /// which they listen are unknown.
    #[serde(default)]
    pub unchecked: BTreeSet<String>,
    /// The pending order, from before it is sent until it ends.
    pub order: Option<PendingOrder>,
    /// The challenge answers that outlive the process that presents them, from before they
    /// are presented until they are cleaned up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<PresentedAnswer>,
    /// Failed issuances since the last success.
    pub failures: Failures,
    /// Failed deployments of the newest certificate.
    #[serde(
        default,
        rename = "handover",
        deserialize_with = "failures_without_secrets"
    )]
    pub deployment_failures: Failures,
    /// Configured names that the newest certificate excludes for now.
    #[serde(default, rename = "quarantine")]
    pub excluded: Option<Excluded>,
    /// The fallback CA, for when the first CA does not issue; `None` for no fallback.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// An earlier certificate that the operator wants served instead.
    #[serde(default)]
    pub pinned: Option<Pinned>,
    /// The generation that was live before a switch that is not verified yet: a process
    /// that restarts after a kill rolls back to it.
    #[serde(default, rename = "going_back_to")]
    pub rollback_to: Option<Generation>,
    /// Redeployments to a server that had gone back to another certificate.
    #[serde(default)]
    pub drift: Failures,
    /// The last deployment that was rolled back, since the last verified one.
    #[serde(default, rename = "taken_back")]
    pub rolled_back: Option<RolledBack>,
    /// The certificates that are to be revoked.
    #[serde(default)]
    pub revocation: Option<Revocation>,
    /// The revoked ones among the stored generations.
    #[serde(default)]
    pub revoked: BTreeMap<Generation, Revoked>,
    /// The rename in progress.
    #[serde(default)]
    pub renaming: Option<Renaming>,
}

/// A rename in progress. It is stored before the first step, and with the new name until the
/// files of the old one are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renaming {
    /// The old name.
    pub from: Lineage,
    /// The new name.
    pub to: Lineage,
    /// Whether the old live name stays, as a link to the new one.
    pub keep_link: bool,
}

/// A deployment that was rolled back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The generation that was not served.
    pub generation: Generation,
    /// The cause of the failure.
    #[serde(deserialize_with = "text_without_secrets")]
    pub why: String,
    /// The number of failures in a row.
    pub times: u32,
}

/// An earlier certificate that the operator chose to serve until the next one is
/// issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Its generation.
    pub generation: Generation,
    /// The fields of its leaf.
    pub facts: Facts,
    /// From this instant the newest certificate is served again, before this one expires.
    pub until: Timestamp,
}

impl Record {
    /// A record without a certificate.
    #[must_use]
    pub fn new(lineage: Lineage, identifiers: BTreeSet<Identifier>, ca: String) -> Self {
        Self {
            lineage,
            identifiers,
            ca,
            profile: None,
            issued: None,
            deployed: BTreeMap::new(),
            served: BTreeMap::new(),
            unchecked: BTreeSet::new(),
            order: None,
            answers: Vec::new(),
            failures: Failures::default(),
            deployment_failures: Failures::default(),
            excluded: None,
            fallback: None,
            pinned: None,
            rollback_to: None,
            drift: Failures::default(),
            rolled_back: None,
            revocation: None,
            revoked: BTreeMap::new(),
            renaming: None,
        }
    }

    /// Takes the state of one machine from `own`: its deployments, and what was seen there.
    pub(crate) fn set_deployments(&mut self, own: &Self) {
        self.deployed.clone_from(&own.deployed);
        self.served.clone_from(&own.served);
        (self.deployment_failures).clone_from(&own.deployment_failures);
        self.drift.clone_from(&own.drift);
        self.unchecked.clone_from(&own.unchecked);
        self.rollback_to = own.rollback_to;
        self.rolled_back.clone_from(&own.rolled_back);
    }

    /// What the machines of a fleet share: all but the state of one machine.
    #[must_use]
    pub(crate) fn without_deployments(&self) -> Self {
        let mut shared = self.clone();
        let (lineage, names) = (self.lineage.clone(), self.identifiers.clone());
        shared.set_deployments(&Self::new(lineage, names, String::new()));
        shared
    }

    /// The certificate to serve at `now`: the newest, unless the operator chose an
    /// earlier one.
    #[must_use]
    pub fn to_be_served(&self, now: Timestamp) -> Option<(Generation, &Facts)> {
        let pinned = self.pinned.as_ref().filter(|pinned| now < pinned.until);
        let newest = self.issued.as_ref();
        pinned
            .map(|pinned| (pinned.generation, &pinned.facts))
            .or_else(|| newest.map(|issued| (issued.generation, &issued.facts)))
    }
}

/// Excluded names, so that the other names get their certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Each name, and why the CA does not sign it, printable.
    pub names: BTreeMap<Identifier, String>,
    /// Failed orders with these names; no further order before its `retry_at`.
    pub tries: Failures,
}

/// The fallback CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Its directory URL.
    #[serde(deserialize_with = "ca_url")]
    pub ca: String,
    /// Orders that failed there since the last success at any CA.
    #[serde(default)]
    pub failures: Failures,
}

/// A certificate in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Its generation in the lineage.
    pub generation: Generation,
    /// The fields of the leaf.
    pub facts: Facts,
    /// The directory URL of the CA that issued it.
    #[serde(deserialize_with = "ca_url")]
    pub ca: String,
    /// When it was stored.
    pub at: Timestamp,
    /// When to renew it; `None` until an instant is drawn.
    pub renewal: Option<Renewal>,
    /// No renewal before this instant, whatever the CA suggests: a CA that suggests a
    /// past window for each new certificate must not cause a loop.
    #[serde(default)]
    pub renewable_from: Option<Timestamp>,
    /// The number of certificates in a row, up to this one's predecessor, that were
    /// replaced in the first half of their lifetime without a request by the operator.
    #[serde(default)]
    pub early: u32,
    /// The start of the maintenance window to deploy it in, while its predecessor is
    /// still valid; `None`: at once.
    #[serde(default, rename = "handover_at")]
    pub deploy_at: Option<Timestamp>,
    /// The first CA, if the fallback CA issued this one: the change of CA does not
    /// cause an order, and the next order goes to the first CA.
    #[serde(default, deserialize_with = "maybe_ca_url")]
    pub instead_of: Option<String>,
    /// The settings that it was ordered with; `None` if they are unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

/// The stored draw of a renewal instant (RFC 9773 section 4.2): drawn once,
/// kept over restarts and on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The instant to renew at.
    pub at: Timestamp,
    /// The window it was drawn from; `None` if it follows from the lifetime.
    pub window: Option<Window>,
    /// When to request the CA's window again; `None` if the CA offers none.
    pub refresh_at: Option<Timestamp>,
    /// When the window was last requested, or the request was skipped.
    #[serde(default)]
    pub asked: Option<Timestamp>,
}

/// A renewal window as the CA suggests it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Inclusive.
    pub start: Timestamp,
    /// Exclusive; later than `start`.
    pub end: Timestamp,
}

/// An endpoint that was seen serving one of our certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// Its generation.
    pub generation: Generation,
    /// When the handshake saw it.
    pub at: Timestamp,
    /// The last valid second of the leaf that was shown.
    #[serde(default)]
    pub not_after: Option<Timestamp>,
    /// Why the last handshake did not see that generation, printable; `None` if it did.
    #[serde(default)]
    pub problem: Option<String>,
    /// When it is looked at again; `None` if that was not stored.
    #[serde(default)]
    pub again: Option<Timestamp>,
}

impl Served {
    /// An endpoint that has shown no generation of ours at `now`.
    #[must_use]
    pub fn none(now: Timestamp) -> Self {
        Self {
            generation: Generation::default(),
            at: now,
            not_after: None,
            problem: None,
            again: None,
        }
    }
}

/// An order that may exist at the CA: all that is needed to finish it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    /// The directory URL of the CA it was sent to.
    #[serde(deserialize_with = "ca_url")]
    pub ca: String,
    /// The names of the order.
    pub identifiers: BTreeSet<Identifier>,
    /// The certificate profile to request, if any.
    #[serde(default)]
    pub profile: Option<String>,
    /// The end of the validity to request, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// The settings that it was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
    /// The key that the certificate is for, made before anything is sent.
    pub key_pem: Secret,
    /// The order's URL; `None` until the CA has answered.
    pub url: Option<String>,
    /// The certificate it replaces, as RFC 9773 names it.
    pub replaces: Option<String>,
    /// When it was started.
    pub begun: Timestamp,
    /// How it was counted against the rate limits.
    #[serde(default)]
    pub counted: Counted,
}

/// A challenge answer, for its clean-up by a later process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PresentedAnswer {
    /// The registered name of its kind of challenge.
    pub kind: String,
    /// The name that it proves.
    pub identifier: Identifier,
    /// The token of the challenge.
    pub token: String,
    /// The key authorization, which is public.
    pub key_authorization: String,
    /// The URL of the account, if the name of its record depends on it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub account: String,
}

/// The failures since the last success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// The number of counted failures in a row.
    pub count: u32,
    /// No retry before this instant.
    pub retry_at: Option<Timestamp>,
    /// Whether the CA itself requested that pause, by a rate limit.
    #[serde(default, rename = "asked_to_wait")]
    pub by_retry_after: bool,
    /// Whether the CA signed a certificate that cannot be used: each retry costs another.
    #[serde(default)]
    pub is_signed: bool,
    /// When the first of them was tried.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// When the last of them was recorded.
    #[serde(default)]
    pub noted: Option<Timestamp>,
    /// The last message, printable.
    pub last: Option<String>,
}

/// Earlier versions stored the URL of a CA as it was spelled.
fn ca_url<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|url| normalized(&url))
}

fn maybe_ca_url<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let url = Option::<String>::deserialize(from)?;
    Ok(url.map(|url| normalized(&url)))
}

// Earlier versions stored the whole URLs of webhooks, tokens included.

fn deployed_without_secrets<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, Generation>, D::Error> {
    let stored = BTreeMap::<String, Generation>::deserialize(from)?;
    let clean = stored.into_iter().map(|(name, generation)| {
        let is_clean = origins(&name) == name;
        let name = if is_clean {
            name
        } else {
            SecretUrl::new(name).to_string()
        };
        (name, generation)
    });
    Ok(clean.collect())
}

fn failures_without_secrets<'de, D: Deserializer<'de>>(from: D) -> Result<Failures, D::Error> {
    let mut failures = Failures::deserialize(from)?;
    failures.last = failures.last.as_deref().map(origins);
    Ok(failures)
}

fn text_without_secrets<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(origins(&String::deserialize(from)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_of_earlier_version_is_read() {
        let name = Identifier::parse("example.com").unwrap();
        let record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        let mut json = serde_json::to_value(&record).unwrap();
        for later in ["going_back_to", "taken_back", "pinned", "handover"] {
            assert!(json.as_object_mut().unwrap().remove(later).is_some());
        }
        assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
    }
    #[test]
    fn stored_secrets_of_webhooks_are_cleaned() {
        let name = Identifier::parse("example.com").unwrap();
        let mut record = Record::new(Lineage::of(&name), [name].into(), "https://ca/dir".into());
        let url = "https://u:TOKEN@hooks.example/TOKEN";
        for target in [url, "https://plain.example", "nginx:/run/nginx.pid"] {
            record.deployed.insert(target.to_owned(), Generation(3));
        }
        let message = format!("{url}: it replied 403");
        record.deployment_failures.last = Some(message.clone());
        record.rolled_back = Some(RolledBack {
            generation: Generation(3),
            why: message,
            times: 1,
        });
        let read = |json: &str| serde_json::from_str::<Record>(json).unwrap();
        let clean = read(&serde_json::to_string(&record).unwrap());
        let json = serde_json::to_string(&clean).unwrap();
        assert!(!json.contains("TOKEN"), "{json}");
        assert!(
            json.contains("https://hooks.example/…: it replied 403"),
            "{json}"
        );
        let named = SecretUrl::new(url.to_owned()).to_string();
        let names: Vec<_> = clean.deployed.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            [&*named, "https://plain.example", "nginx:/run/nginx.pid"]
        );
        assert_eq!(clean.ca, "https://ca/dir");
        assert_eq!(read(&json), clean);
    }

    #[test]
    fn ca_of_a_record_is_read_in_its_one_spelling() {
        let name = Identifier::parse("example.com").unwrap();
        let spelled = "https://user:pw@CA.test:443/dir#top";
        let record = Record::new(Lineage::of(&name), [name].into(), spelled.into());
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(spelled), "{json}");
        let read: Record = serde_json::from_str(&json).unwrap();
        assert_eq!(read.ca, "https://ca.test/dir");
    }
}
