//! Everything known about one certificate through its renewals: what was
//! asked for, what was issued, what was handed over, what was seen served, and
//! what is under way. It is the whole input of a decision, and it is stored as
//! one value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ca_state::Counted;
use crate::certificate::{Facts, Secret};
use crate::identifier::{Identifier, Lineage};
use crate::time::Timestamp;

/// Counts the certificates of a lineage, from 1; 0 is the placeholder.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
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
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

/// The durable state of one lineage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub lineage: Lineage,
    /// What the certificate shall be for.
    pub identifiers: BTreeSet<Identifier>,
    /// The directory URL of the CA that shall issue it.
    pub ca: String,
    /// The certificate profile to ask for, if any.
    pub profile: Option<String>,
    /// The newest certificate.
    pub issued: Option<Issued>,
    /// Targets by name, and the generation that each was last told to load.
    pub deployed: BTreeMap<String, Generation>,
    /// Endpoints (`host:port`), and the generation last seen there by a handshake.
    pub served: BTreeMap<String, Served>,
    /// The order under way; present from before it is sent until it ends.
    pub order: Option<PendingOrder>,
    /// Failed issuances since the last success.
    pub failures: Failures,
    /// Failed hand-overs of the newest certificate.
    #[serde(default)]
    pub handover: Failures,
    /// What is wanted and left out of the newest certificate for now.
    #[serde(default)]
    pub quarantine: Option<Quarantine>,
    /// Where it is ordered when its CA does not issue it; `None`: nowhere.
    #[serde(default)]
    pub fallback: Option<Fallback>,
    /// An earlier certificate that the owner wants served instead.
    #[serde(default)]
    pub pinned: Option<Pinned>,
    /// What was live before a switch that is not proven yet: whoever is killed in
    /// between still knows what to go back to.
    #[serde(default)]
    pub going_back_to: Option<Generation>,
    /// The last hand-over that was taken back, since the last that was proven.
    #[serde(default)]
    pub taken_back: Option<TakenBack>,
}

/// A hand-over that was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenBack {
    /// Which one was not served.
    pub generation: Generation,
    /// What it failed with.
    pub why: String,
    /// How often in a row it did so.
    pub times: u32,
}

/// An earlier certificate that is served on the owner's word, until the next one
/// is issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Which one.
    pub generation: Generation,
    /// What its leaf says.
    pub facts: Facts,
    /// From here on the newest one is served again, before this one ends.
    pub until: Timestamp,
}

impl Record {
    /// A record of which nothing is issued yet.
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
            order: None,
            failures: Failures::default(),
            handover: Failures::default(),
            quarantine: None,
            fallback: None,
            pinned: None,
            going_back_to: None,
            taken_back: None,
        }
    }
}

impl Record {
    /// The certificate that shall be served at `now`: the newest, unless the owner
    /// wants an earlier one.
    #[must_use]
    pub fn to_be_served(&self, now: Timestamp) -> Option<(Generation, &Facts)> {
        let pinned = self.pinned.as_ref().filter(|pinned| now < pinned.until);
        let newest = self.issued.as_ref();
        pinned
            .map(|pinned| (pinned.generation, &pinned.facts))
            .or_else(|| newest.map(|issued| (issued.generation, &issued.facts)))
    }
}

/// Names that must not sink the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Each, and why the CA does not sign it, fit to be shown.
    pub names: BTreeMap<Identifier, String>,
    /// Orders with them that have failed; no further one before its `retry_at`.
    pub tries: Failures,
}

/// The CA of the second choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// Its directory URL.
    pub ca: String,
    /// Orders that failed there since the last success anywhere.
    #[serde(default)]
    pub failures: Failures,
}

/// A certificate in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Which one of the lineage it is.
    pub generation: Generation,
    /// What the leaf says.
    pub facts: Facts,
    /// The directory URL of the CA that issued it.
    pub ca: String,
    /// When it was stored.
    pub at: Timestamp,
    /// When to renew it; `None` until it was drawn.
    pub renewal: Option<Renewal>,
    /// No renewal before this instant, whatever the CA suggests: a window that
    /// lies in the past for each new certificate must not become a loop.
    #[serde(default)]
    pub renewable_from: Option<Timestamp>,
    /// How many in a row, this one's predecessor last, were replaced in the first
    /// half of their lives without anybody asking for it.
    #[serde(default)]
    pub early: u32,
    /// Handed over in the maintenance window that opens then, since its
    /// predecessor is still good; `None`: at once.
    #[serde(default)]
    pub handover_at: Option<Timestamp>,
    /// The CA that should have issued it, when it comes from the fallback: it is
    /// no reason to order again, and the next one comes from there.
    #[serde(default)]
    pub instead_of: Option<String>,
}

/// The stored draw of a renewal instant (RFC 9773 section 4.2): drawn once,
/// kept over restarts and on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The instant to renew at.
    pub at: Timestamp,
    /// The window it was drawn from; `None` when it comes from the lifetime.
    pub window: Option<Window>,
    /// When to ask the CA for its window again; `None` when it offers none.
    pub refresh_at: Option<Timestamp>,
    /// When it was asked last, or was not to be asked.
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
    /// Which one.
    pub generation: Generation,
    /// When the handshake saw it.
    pub at: Timestamp,
    /// The last valid second of the leaf that was shown.
    #[serde(default)]
    pub not_after: Option<Timestamp>,
}

/// An order that may exist at the CA: all that is needed to finish it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOrder {
    /// The directory URL of the CA it was sent to.
    pub ca: String,
    /// What it is for.
    pub identifiers: BTreeSet<Identifier>,
    /// The certificate profile to ask for, if any.
    #[serde(default)]
    pub profile: Option<String>,
    /// The key that the certificate is for, made before anything is sent.
    pub key_pem: Secret,
    /// The order's URL; `None` until the CA has answered.
    pub url: Option<String>,
    /// The certificate it replaces, as RFC 9773 names it.
    pub replaces: Option<String>,
    /// When it was begun.
    pub begun: Timestamp,
    /// As what it was taken out of the ledger.
    #[serde(default)]
    pub counted: Counted,
}

/// What went wrong since the last success.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many counted failures in a row.
    pub count: u32,
    /// No further try before this instant.
    pub retry_at: Option<Timestamp>,
    /// Whether the CA itself asked for that pause.
    #[serde(default)]
    pub asked_to_wait: bool,
    /// When the first try of them was.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// When the last of them was noted.
    #[serde(default)]
    pub noted: Option<Timestamp>,
    /// The last message, fit to be shown.
    pub last: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_an_earlier_version_is_read() {
        let name = Identifier::parse("example.com").unwrap();
        let record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        let mut json = serde_json::to_value(&record).unwrap();
        for later in ["going_back_to", "taken_back", "pinned", "handover"] {
            assert!(json.as_object_mut().unwrap().remove(later).is_some());
        }
        assert_eq!(serde_json::from_value::<Record>(json).unwrap(), record);
    }
}
