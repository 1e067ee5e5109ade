//! What the flows work with: services that all share, and the certificates to keep,
//! each with its own. They are injected, so that the simulation replaces the world.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::error::ManageError;
use super::probes::Probes;
use crate::acme::Issuer;
use crate::certificate::{KeyType, Known, Secret};
use crate::deploy::endpoint::Endpoint;
use crate::deploy::verify::Verifier;
use crate::deploy::{Outlet, Target};
use crate::identifier::{Identifier, Lineage};
use crate::observe::{Board, LeftOut, Metrics};
use crate::random::Random;
use crate::record::{Generation, Record};
use crate::store::Store;
use crate::time::{Clock, Timestamp};

/// [`Services::spacing`] as a user gets it.
pub(crate) const SPACING: Duration = Duration::from_secs(3600);
/// [`Services::spread`] of up to [`MANY`] certificates.
pub(crate) const SPREAD: Duration = Duration::from_secs(300);
/// From here on it is an hour.
pub(crate) const MANY: usize = 100;
/// [`Services::spread`] beyond that.
pub(crate) const SPREAD_OF_MANY: Duration = Duration::from_secs(3600);

/// What all flows share, built once by the command line.
#[derive(Clone)]
pub(crate) struct Services {
    /// The durable truth.
    pub store: Arc<dyn Store>,
    /// Files for consumers.
    pub output: Arc<dyn Outlet>,
    /// Verifies what is served.
    pub prover: Arc<dyn Verifier>,
    /// Makes private keys.
    pub keys: Arc<dyn Keys>,
    /// Stored pairs that were found good before.
    pub known: Known,
    /// The probes of this process that failed.
    pub probes: Probes,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// What is counted.
    pub metrics: Metrics,
    /// The least time between two certificates of one lineage that no
    /// user requested.
    pub spacing: Duration,
    /// What must be renewed at once is spread over this time.
    pub spread: Duration,
    /// When renewed certificates may be handed over.
    pub maintenance: Option<Arc<dyn Maintenance>>,
    /// Where the state of what is kept is shown at each step.
    pub board: Option<Board>,
    /// Shows the phases of the work.
    pub progress: Option<Arc<dyn Progress>>,
}

/// A certificate to be kept, with the services that are its own.
#[derive(Clone)]
pub(crate) struct Certificate {
    /// What the user wants.
    pub wanted: Wanted,
    /// The CA.
    pub issuer: Arc<dyn Issuer>,
    /// The CA that stands in for it, if the owner names one.
    pub fallback: Option<FallbackCa>,
    /// Servers to tell of a new certificate.
    pub targets: Vec<Arc<dyn Target>>,
    /// Where the new certificate must be seen.
    pub endpoints: Vec<Endpoint>,
}

/// A CA that stands in for another.
#[derive(Clone)]
pub(crate) struct FallbackCa {
    /// Its directory URL.
    pub ca: String,
    /// The way to it; the account there is its own.
    pub issuer: Arc<dyn Issuer>,
}

impl Services {
    /// Shows the phase of the work on `lineage`.
    pub(crate) fn phase(&self, lineage: &Lineage, phase: &str) {
        if let Some(progress) = &self.progress {
            progress.phase(lineage, phase);
        }
    }
}

/// Makes private keys.
#[async_trait]
pub(crate) trait Keys: Send + Sync {
    /// A fresh key of that kind.
    ///
    /// # Errors
    /// [`ManageError::Key`] when there is no randomness.
    async fn make(&self, kind: KeyType) -> Result<Secret, ManageError>;
}

/// Makes them off the thread that serves: RSA takes up to seconds.
#[derive(Debug, Default)]
pub(crate) struct FreshKeys;

#[async_trait]
impl Keys for FreshKeys {
    async fn make(&self, kind: KeyType) -> Result<Secret, ManageError> {
        match tokio::task::spawn_blocking(move || kind.generate()).await {
            Ok(key) => Ok(key?),
            Err(stopped) => Err(ManageError::Halted(stopped.to_string())),
        }
    }
}

/// Is told what is being done, so that a person can be shown it.
pub(crate) trait Progress: Send + Sync {
    /// `lineage` has come to `phase`, in words such as `proving control`.
    fn phase(&self, lineage: &Lineage, phase: &str);
}

/// The owner's maintenance windows: a renewed certificate is handed over when
/// the next one opens, while its predecessor is still good.
pub(crate) trait Maintenance: Send + Sync {
    /// When the first window after `now` opens; `None` when none ever does.
    fn next_after(&self, now: Timestamp) -> Option<Timestamp>;
}

impl Certificate {
    /// Its targets under the names that records know them by: a second one of the
    /// same name is told apart.
    pub(crate) fn named_targets(&self) -> impl Iterator<Item = (String, &Arc<dyn Target>)> {
        let targets = &self.targets;
        targets.iter().enumerate().map(|(index, target)| {
            let before = targets.iter().take(index);
            let same = before.filter(|other| other.name() == target.name()).count();
            let name = match same {
                0 => target.name().to_owned(),
                _ => format!("{}#{}", target.name(), same + 1),
            };
            (name, target)
        })
    }
}

/// What the user wants of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Its name.
    pub lineage: Lineage,
    /// What it is for.
    pub identifiers: BTreeSet<Identifier>,
    /// The CA's directory URL.
    pub ca: String,
    /// The profile to ask for.
    pub profile: Option<String>,
    /// The kind of key.
    pub key: KeyType,
    /// Whether a renewal keeps the key of its predecessor.
    pub reuse_key: bool,
    /// Whether names that fail may be left out, so that they do not sink the rest.
    pub partial: bool,
}

/// How a pass over one certificate ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The newest generation.
    pub generation: Generation,
    /// Whether this pass issued it.
    pub issued: bool,
    /// Its last valid second.
    pub not_after: Timestamp,
    /// When there is something to do next.
    pub next: Timestamp,
    /// When it will be renewed; `None` when that is not drawn yet.
    pub renewal: Option<Timestamp>,
    /// What is wanted and left out of it for now.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

impl Wanted {
    /// Whether the earlier orders of `record` were for what is wanted now.
    pub(super) fn is_that_of(&self, record: &Record) -> bool {
        record.identifiers == self.identifiers
            && record.ca == self.ca
            && record.profile == self.profile
    }

    /// Whether an order for `names` is one for what is wanted.
    pub(super) fn allows(&self, names: &BTreeSet<Identifier>) -> bool {
        let some = self.partial && !names.is_empty() && names.is_subset(&self.identifiers);
        *names == self.identifiers || some
    }
}
