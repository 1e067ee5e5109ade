//! The state of certificates as it is shown: by `certs status`, by the API and
//! in the metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::identifier::{Identifier, Lineage};
use crate::record::{Generation, Served};
use crate::time::Timestamp;

/// What a certificate does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is to be ordered for the first time, or renewed.
    Issue,
    /// It is to be handed over and proven.
    Deploy,
    /// The CA is to be asked for its renewal window.
    Refresh,
    /// Nothing can be done without the owner.
    Halt,
}

/// A name that is wanted and left out for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The name.
    pub identifier: Identifier,
    /// Why the CA does not sign it.
    pub reason: String,
    /// When it is tried again; `None`: with the next pass.
    pub retry_at: Option<Timestamp>,
}

/// That containers ask for a certificate, by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The containers, by name.
    pub containers: BTreeSet<String>,
    /// Since when none of them is there.
    pub gone_since: Option<Timestamp>,
    /// Until when it is renewed all the same.
    pub renewed_until: Option<Timestamp>,
    /// It is not renewed any more.
    pub stopped: bool,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.containers.iter().map(String::as_str).collect();
        let names = names.join(", ");
        match (self.gone_since, self.renewed_until) {
            (Some(since), _) if self.stopped => {
                write!(
                    f,
                    "not renewed any more: not asked for by container {names} since {since}"
                )
            }
            (Some(since), Some(until)) => write!(
                f,
                "no longer asked for by container {names} since {since}; renewed until {until}"
            ),
            _ => write!(f, "asked for by container {names}"),
        }
    }
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its lineage.
    pub name: Lineage,
    /// What it is for.
    pub identifiers: BTreeSet<Identifier>,
    /// The CA's directory URL.
    pub ca: String,
    /// The directory URL of the CA that issued the newest one.
    #[serde(default)]
    pub issued_by: Option<String>,
    /// The last valid second of the newest one; `None` before the first.
    pub not_after: Option<Timestamp>,
    /// What is done next.
    pub next_action: Action,
    /// When; in the past when it is overdue.
    pub next_at: Timestamp,
    /// The newest generation; `None` before the first.
    pub generation_issued: Option<Generation>,
    /// The oldest generation that an endpoint was last seen to serve; `None`
    /// when no endpoint is named, 0 when one serves none of ours yet.
    pub generation_served: Option<Generation>,
    /// What each endpoint was last seen to serve.
    pub served: BTreeMap<String, Served>,
    /// The newest one is for every name that is wanted and not left out.
    pub complete: bool,
    /// What is wanted and left out for now, as the owner allows.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// Issued, handed over, and proven wherever an endpoint is named.
    pub proven: bool,
    /// The renewal is overdue by a twentieth of the lifetime, or the
    /// certificate has expired.
    pub late: bool,
    /// A sixth of the life of the newest one is left, or less: the owner must act.
    pub critical: bool,
    /// The last failure since the last success.
    pub last_error: Option<String>,
    /// Where it comes from, when that is no configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
}

impl Status {
    /// Whether the owner need not worry.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.complete && self.proven && !self.late
    }
}

/// The latest state of every certificate, shared by who writes and who shows it.
#[derive(Clone, Debug, Default)]
pub struct Board(
    Arc<RwLock<BTreeMap<Lineage, Status>>>,
    Arc<RwLock<BTreeMap<Lineage, Asked>>>,
);

impl Board {
    /// Puts the newest state up.
    pub fn post(&self, status: Status) {
        let mut board = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match board.get_mut(&status.name) {
            Some(shown) => *shown = status,
            None => drop(board.insert(status.name.clone(), status)),
        }
    }

    /// Puts the newest state up of what is on the board already.
    pub fn update(&self, status: Status) {
        let mut board = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = board.get_mut(&status.name) {
            *shown = status;
        }
    }

    /// Leaves only `kept` on the board.
    pub fn retain(&self, kept: &BTreeSet<Lineage>) {
        let mut board = self.0.write().unwrap_or_else(PoisonError::into_inner);
        board.retain(|lineage, _| kept.contains(lineage));
    }

    /// Says of each certificate who asks for it.
    pub fn ask(&self, asked: BTreeMap<Lineage, Asked>) {
        *self.1.write().unwrap_or_else(PoisonError::into_inner) = asked;
    }

    /// All of them, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Status> {
        let board = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let asked = self.1.read().unwrap_or_else(PoisonError::into_inner);
        let shown = board.values().cloned().map(|mut status| {
            status.asked = asked.get(&status.name).cloned();
            status
        });
        shown.collect()
    }
}
