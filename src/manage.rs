//! Flows that join the parts. They load a record, ask [`crate::renew`] what it
//! needs, do that one thing, store the result, and ask again; they decide
//! nothing themselves.

mod again;
pub(crate) mod ca_state;
pub mod deploy;
mod fallback;
pub mod foresee;
pub mod front;
pub mod import;
pub mod issue;
pub(crate) mod order;
mod partial;
pub mod rehearse;
pub mod schedule;
pub mod skew;
pub mod status;
pub mod turns;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use ca_state::Probed;

use crate::acme::{AcmeError, Issuer};
use crate::ca_state::Limit;
use crate::certificate::{BundleError, KeyType, Known, Secret};
use crate::deploy::endpoint::Endpoint;
use crate::deploy::output::OutputError;
use crate::deploy::verify::{Prover, VerifyError};
use crate::deploy::{DeployError, Outlet, Target};
use crate::identifier::{Identifier, Lineage};
use crate::observe::{Board, LeftOut, Metrics};
use crate::random::Random;
use crate::record::Generation;
use crate::renew::ledger::Line;
use crate::store::{Store, StoreError};
use crate::time::{Clock, Timestamp};

/// [`Parts::spacing`] as a user gets it.
pub const SPACING: Duration = Duration::from_secs(3600);
/// [`Parts::spread`] of up to [`MANY`] certificates.
pub const SPREAD: Duration = Duration::from_secs(300);
/// From here on it is an hour.
pub const MANY: usize = 100;
pub(crate) const SPREAD_OF_MANY: Duration = Duration::from_secs(3600);

/// The parts that all flows share, built once by the command line.
#[derive(Clone)]
pub struct Parts {
    /// The durable truth.
    pub store: Arc<dyn Store>,
    /// Files for consumers.
    pub output: Arc<dyn Outlet>,
    /// Who looks at what is served.
    pub prover: Arc<dyn Prover>,
    /// Who makes private keys.
    pub keys: Arc<dyn Keys>,
    /// Stored pairs that were found good before.
    pub known: Known,
    /// The probes that this process has made in vain.
    pub probed: Probed,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<dyn Random>,
    /// What is counted.
    pub metrics: Metrics,
    /// The least time between two certificates of one lineage that nobody
    /// asked for by hand.
    pub spacing: Duration,
    /// What must be renewed at once is spread over this time.
    pub spread: Duration,
    /// When renewed certificates may be handed over.
    pub maintenance: Option<Arc<dyn Maintenance>>,
    /// Where the state of what is kept is shown at each step.
    pub board: Option<Board>,
    /// Who is told of the phases of the work.
    pub progress: Option<Arc<dyn Progress>>,
}

/// A certificate to be kept, with the parts that are its own.
#[derive(Clone)]
pub struct Certificate {
    /// What the user wants.
    pub wanted: Wanted,
    /// The CA.
    pub issuer: Arc<dyn Issuer>,
    /// The CA that stands in for it, if the owner names one.
    pub fallback: Option<StandIn>,
    /// Servers to tell of a new certificate.
    pub targets: Vec<Arc<dyn Target>>,
    /// Where the new certificate must be seen.
    pub endpoints: Vec<Endpoint>,
}

/// A CA that stands in for another.
#[derive(Clone)]
pub struct StandIn {
    /// Its directory URL.
    pub ca: String,
    /// The way to it; the account there is its own.
    pub issuer: Arc<dyn Issuer>,
}

impl Parts {
    /// Tells whoever looks what is being done.
    fn phase(&self, lineage: &Lineage, phase: &str) {
        if let Some(progress) = &self.progress {
            progress.phase(lineage, phase);
        }
    }
}

/// Makes private keys.
#[async_trait]
pub trait Keys: Send + Sync {
    /// A key of that kind that nobody has had before.
    ///
    /// # Errors
    /// [`ManageError::Key`] when there is no randomness.
    async fn make(&self, kind: KeyType) -> Result<Secret, ManageError>;
}

/// Makes them off the thread that serves: RSA takes up to seconds.
#[derive(Debug, Default)]
pub struct FreshKeys;

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
pub trait Progress: Send + Sync {
    /// `lineage` has come to `phase`, in words such as `proving control`.
    fn phase(&self, lineage: &Lineage, phase: &str);
}

/// The owner's maintenance windows: a renewed certificate is handed over when
/// the next one opens, while its predecessor is still good.
pub trait Maintenance: Send + Sync {
    /// When the first window after `now` opens; `None` when none ever does.
    fn next_after(&self, now: Timestamp) -> Option<Timestamp>;
}

impl Certificate {
    /// Its targets under the names that records know them by: a second one of the
    /// same name is told apart.
    pub fn named_targets(&self) -> impl Iterator<Item = (String, &Arc<dyn Target>)> {
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
pub struct Wanted {
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
pub struct Outcome {
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

/// Why a pass did not reach its end.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum ManageError {
    #[error(transparent)]
    Acme(#[from] AcmeError),
    #[error("the certificate that {ca} sent is not usable: {source}")]
    Bundle { ca: String, source: BundleError },
    #[error("the stored certificate is not usable: {0}")]
    Stored(BundleError),
    #[error("a private key could not be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("no new try before {until}; the last one ended with: {last}")]
    BackingOff { until: Timestamp, last: String },
    #[error("not handed over, and no new try before {until}; the last one ended with: {last}")]
    NotHandedOver { until: Timestamp, last: String },
    #[error("{ca} has not answered since {since}, and is asked again at {until}: {last}")]
    Down {
        ca: String,
        since: Timestamp,
        until: Timestamp,
        last: String,
    },
    #[error("{} by our own ledger: no order before {until}", exhausted(.limit, .subject))]
    OutOfBudget {
        limit: Limit,
        subject: String,
        until: Timestamp,
        line: Option<Box<Line>>,
    },
    #[error("it is due by this machine's clock ({ours}) and not by that of {ca} ({theirs})")]
    NotDueThere {
        ca: String,
        ours: Timestamp,
        theirs: Timestamp,
        until: Timestamp,
    },
    #[error("the running `certs run` keeps it {kept}, and not as this command asks for")]
    KeptOtherwise { kept: String },
    #[error("`certs run` ended before the work did")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Deploy(#[from] DeployError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
    #[error("{lineage}: {why}")]
    NoWayBack { lineage: Lineage, why: String },
    #[error("nothing can be done: {0}")]
    Halted(String),
}

impl ManageError {
    /// The next thing for a person to do.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Acme(acme) => acme.cause.hint().into(),
            Self::Bundle { .. } => {
                "nothing was published; what was served before is still served".into()
            }
            Self::BackingOff { .. } => {
                "certs issue with the same names tries at once, unless the CA itself asked to wait; the certificate in use is untouched".into()
            }
            Self::NotHandedOver { .. } => {
                "mend what the last try ended with; certs issue with the same names tries at once".into()
            }
            Self::Down { .. } => {
                "it is asked again by itself, once for all certificates; certs issue with the same names asks at once".into()
            }
            Self::OutOfBudget { limit: Limit::NewAccounts, .. } => {
                "use one data directory for all that is issued here: each new one makes an account, and the CA counts them by this machine's address".into()
            }
            Self::OutOfBudget { .. } => {
                "a part of what the CA allows is kept for what cannot wait: certs issue --force may use it; certs status shows what is left".into()
            }
            Self::NotDueThere { .. } => {
                "set this machine's clock, best by NTP; nothing was ordered".into()
            }
            Self::NoWayBack { .. } => {
                "certs status shows what is served; the last three generations are kept: --to GENERATION names one".into()
            }
            Self::KeptOtherwise { .. } => {
                "change its configuration and send it SIGHUP, or make another certificate with --name NAME".into()
            }
            Self::Stopped => {
                "run the same command again: what was ordered is resumed, not repeated".into()
            }
            Self::Store(StoreError::Corrupt { .. }) => {
                "restore that file from a backup, or move it away: what is missing is then made anew, and what is served stays".into()
            }
            Self::Store(StoreError::Leased { .. }) => {
                "wait until the other process has ended, or let it do the work".into()
            }
            Self::Store(StoreError::Conflict { .. } | StoreError::GenerationExists { .. }) => {
                "another process has done its work first: run the same command again, and it goes on from there".into()
            }
            Self::Stored(_) | Self::Store(_) | Self::Output(_) => STORE_HINT.into(),
            Self::Deploy(deploy) => deploy.hint().to_string(),
            Self::Verify(verify) => verify.hint().to_string(),
            Self::Key(_) | Self::Halted(_) => "run again with -v and report what it says".into(),
        }
    }
}

fn exhausted(limit: &Limit, subject: &str) -> String {
    match subject {
        "" => format!("the {limit} are used up"),
        _ => format!("the {limit} of {subject} are used up"),
    }
}

/// What to do about a store or an output that cannot be used.
pub const STORE_HINT: &str =
    "check the directory's owner, mode and free space; nothing that is served was changed";
