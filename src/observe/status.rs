//! The state of certificates as `certs status`, the API and the metrics show it. It
//! never decides what a certificate needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::record::{Generation, Renaming, RevocationReason, Revoked, Served};
use crate::time::Timestamp;

/// The next action for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Action {
    /// Order it for the first time, or renew it.
    Issue,
    /// Deploy and verify it.
    Deploy,
    /// Fetch its renewal window from the CA.
    Refresh,
    /// None before the operator acts.
    Halt,
    /// Revoke what was replaced.
    Revoke,
}

/// A requested name that is excluded for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExcludedName {
    /// The name.
    pub identifier: Identifier,
    /// Why the CA does not sign the name.
    pub reason: String,
    /// When the name is retried; `None`: with the next pass.
    pub retry_at: Option<Timestamp>,
}

/// An earlier certificate that is live by an operator's rollback.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RolledBackTo {
    /// Its generation.
    pub generation: Generation,
    /// Its last valid second.
    pub not_after: Timestamp,
    /// When the newest one goes live again, at the latest.
    pub until: Timestamp,
}

impl RolledBackTo {
    /// As a user reads it at `now`.
    pub(crate) fn seen_at(&self, name: &Lineage, now: Timestamp) -> String {
        let generation = self.generation;
        let (not_after, until) = (self.not_after.seen_at(now), self.until.seen_at(now));
        format!(
            "rolled back to generation {generation}, valid to {not_after}; the newest goes live again by certs reload {name}, with the next renewal, or at {until}"
        )
    }
}

/// Certificates that are to be revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToBeRevoked {
    /// Their generations.
    pub generations: Vec<Generation>,
    /// Why.
    pub reason: RevocationReason,
    /// Whether no replacement is waited for.
    pub at_once: bool,
}

/// Whether a certificate was seen served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProofState {
    /// The last handshake with each endpoint has seen it.
    Proven,
    /// An endpoint does not serve it, or it is not deployed.
    NotProven,
    /// It is deployed, and no handshake was made: no endpoint is known.
    #[default]
    NotChecked,
}

impl ProofState {
    /// Each of them, with its name in the metrics.
    pub(crate) const ALL: [(Self, &str); 3] = [
        (Self::Proven, "proven"),
        (Self::NotProven, "not-proven"),
        (Self::NotChecked, "not-checked"),
    ];
}

impl fmt::Display for ProofState {
    /// As a user reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Proven => "proven",
            Self::NotProven => "not proven",
            Self::NotChecked => "not checked",
        })
    }
}

/// The result of the last handshakes with all endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    /// The result.
    #[serde(rename = "proof", default)]
    pub state: ProofState,
    /// When the oldest of these handshakes was.
    #[serde(rename = "proof_at", default)]
    pub at: Option<Timestamp>,
    /// The endpoints, or why it is not proven or not checked.
    #[serde(rename = "proof_detail", default)]
    pub detail: String,
}

impl Proof {
    /// As a user reads it at `now`.
    pub(crate) fn seen_at(&self, now: Timestamp) -> String {
        let (state, detail) = (self.state, &self.detail);
        match (state, self.at) {
            (ProofState::Proven, Some(at)) => {
                format!("{state} by handshake at {detail}, {}", at.seen_at(now))
            }
            (ProofState::NotChecked, _) => format!("{state}: {detail}; hint: --verify HOST:PORT"),
            _ => format!("{state}: {detail}"),
        }
    }
}

/// The containers whose labels request a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestedBy {
    /// The containers, by name.
    pub containers: BTreeSet<String>,
    /// Since when none of the containers exists.
    pub gone_since: Option<Timestamp>,
    /// Until when the certificate is renewed nevertheless.
    pub renewed_until: Option<Timestamp>,
    /// Whether the certificate is not renewed any more.
    pub stopped: bool,
}

impl RequestedBy {
    /// As a user reads it at `now`.
    pub(crate) fn seen_at(&self, now: Timestamp) -> String {
        let names: Vec<&str> = self.containers.iter().map(String::as_str).collect();
        let names = names.join(", ");
        let since = self.gone_since.map(|since| since.seen_at(now));
        match (since, self.renewed_until) {
            (Some(since), _) if self.stopped => {
                format!("not renewed any more: not requested by container {names} since {since}")
            }
            (Some(since), Some(until)) => format!(
                "no longer requested by container {names} since {since}; renewed until {}",
                until.seen_at(now)
            ),
            _ => format!("requested by container {names}"),
        }
    }
}

/// The state of one certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The lineage.
    pub name: Lineage,
    /// The names.
    pub identifiers: BTreeSet<Identifier>,
    /// The CA's directory URL.
    pub ca: String,
    /// The directory URL of the CA that issued the newest generation.
    #[serde(default)]
    pub issued_by: Option<String>,
    /// The last valid second of the newest generation; `None` before the first.
    pub not_after: Option<Timestamp>,
    /// The next action.
    pub next_action: Action,
    /// When the next action is due; in the past if overdue.
    pub next_at: Timestamp,
    /// The newest generation; `None` before the first.
    pub generation_issued: Option<Generation>,
    /// The oldest generation that an endpoint served at its last check; `None` without
    /// endpoints, 0 if an endpoint serves no generation of ours yet.
    pub generation_served: Option<Generation>,
    /// What each endpoint served at its last check.
    pub served: BTreeMap<String, Served>,
    /// The earlier generation that is live by a rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<RolledBackTo>,
    /// Whether the newest generation covers every requested name but the excluded.
    pub complete: bool,
    /// The excluded names, if the operator permits exclusion.
    #[serde(default, rename = "left_out")]
    pub excluded: Vec<ExcludedName>,
    /// Whether a handshake with every endpoint has seen the generation to be served.
    #[serde(flatten)]
    pub proof: Proof,
    /// Whether that is so: for readers of earlier versions.
    pub proven: bool,
    /// Whether the renewal is overdue by a twentieth of the lifetime, or the
    /// certificate has expired.
    #[serde(rename = "late")]
    pub overdue: bool,
    /// Whether a sixth of the lifetime is left, or less: the operator must act.
    pub critical: bool,
    /// Whether nothing keeps it: it is not renewed.
    #[serde(default)]
    pub orphaned: bool,
    /// Why nothing keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphaned_why: Option<String>,
    /// The rights that it lacks: stored, and neither configured nor confirmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied: Vec<String>,
    /// Why it cannot be renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_renewable: Option<String>,
    /// The revoked ones among the stored generations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked: BTreeMap<Generation, Revoked>,
    /// The certificates that are to be revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_be_revoked: Option<ToBeRevoked>,
    /// The rename in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renaming: Option<Renaming>,
    /// The last failure since the last success.
    pub last_error: Option<String>,
    /// The containers that request it, if the configuration does not.
    #[serde(default, rename = "asked", skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<RequestedBy>,
}

impl Status {
    /// Whether the certificate to be served is revoked.
    pub(crate) fn is_revoked(&self) -> bool {
        let chosen = self.rolled_back_to.as_ref().map(|it| it.generation);
        let served = chosen.or(self.generation_issued);
        served.is_some_and(|served| self.revoked.contains_key(&served))
    }

    /// Whether the certificate is complete, not overdue, and deployed, and no endpoint lacks
    /// it. Without an endpoint there is nothing to prove.
    pub(crate) fn is_ready(&self) -> bool {
        match self.orphaned {
            // Only what an endpoint still serves needs the operator.
            true => self.proof.state != ProofState::Proven,
            false => {
                let is_good = self.complete && self.denied.is_empty() && !self.overdue;
                let is_good = is_good && !self.is_revoked();
                is_good && self.proof.state != ProofState::NotProven
            }
        }
    }
}
