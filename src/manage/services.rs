//! The injected services of the flows: those that all flows share, and those of each
//! certificate. The simulation replaces them. No flow is started here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cannot_order::CannotOrder;
use super::error::ManageError;
use super::probes::Probes;
use super::same_names::SameNames;
use crate::acme::Issuer;

use crate::certificate::{Bundle, BundleCache, KeyType, Secret, SigningRequest};
use crate::deploy::coalesce::Gate;
use crate::deploy::endpoint::Endpoint;
use crate::deploy::output::OutputError;
use crate::deploy::verify::Verifier;
use crate::deploy::{Outlet, Target};
use crate::identifier::{Identifier, IdentifierSet};
use crate::lineage::Lineage;
use crate::net::dns::lookup::Resolver;
use crate::observe::{Board, ExcludedName, Metrics, Proof};
use crate::random::Random;
use crate::record::{Generation, Record, Revoked, Terms};
use crate::store::Store;
use crate::store::fs::FileStore;
use crate::time::{Clock, Timestamp};

/// The services that all flows share, built once by the command line.
#[derive(Clone)]
pub(crate) struct Services {
    /// The store of records and pairs.
    pub store: Arc<dyn Store>,
    /// The files that servers read.
    pub output: Arc<dyn Outlet>,
    /// Keeps live pairs still while servers read them.
    pub gate: Gate,
    /// Verifies by a handshake which certificate is served.
    pub verifier: Arc<dyn Verifier>,
    /// Looks up the hosts of deploy targets.
    pub resolver: Resolver,
    /// Generates private keys.
    pub keys: Arc<dyn Keys>,
    /// Stored pairs that were checked before.
    pub bundles: BundleCache,
    /// The failed probes of this process.
    pub probes: Probes,
    /// The orders of this process that may not run at once.
    pub same_names: SameNames,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of randomness.
    pub random: Arc<dyn Random>,
    /// The metrics.
    pub metrics: Metrics,
    /// The least time between two certificates of one lineage that no user requested.
    pub spacing: Duration,
    /// Urgent renewals are spread over this time.
    pub spread: Duration,
    /// How long all endpoints together may keep serving the old certificate.
    pub verify_within: Duration,
    /// The maintenance windows in which renewed certificates are deployed.
    pub maintenance: Option<Arc<dyn Maintenance>>,
    /// The looks at endpoints between deployments; `None`: none is made.
    pub looks: Option<Looks>,
    /// The board that shows the state of each certificate after each step.
    pub board: Option<Board>,
    /// Shows the phases of the work.
    pub progress: Option<Arc<dyn Progress>>,
}

/// How endpoints are looked at between deployments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Looks {
    /// The longest time between two looks at an endpoint.
    pub every: Duration,
    /// Whether each pass looks, as a user's command does.
    pub at_once: bool,
    /// Whether this process has not looked yet: the stored proof may be long past.
    pub first: bool,
}

/// A managed certificate, with its own services.
#[derive(Clone)]
pub(crate) struct Certificate {
    /// The wanted names, CA and key.
    pub wanted: Wanted,
    /// The servers to deploy to.
    pub targets: Vec<Arc<dyn Target>>,
    /// What keeps it.
    pub keeper: Keeper,
    /// What thousands of certificates may share.
    pub shared: Arc<SharedServices>,
}

/// The services of certificates with the same settings.
#[derive(Clone)]
pub(crate) struct SharedServices {
    /// The CA.
    pub issuer: Arc<dyn Issuer>,
    /// The fallback CA, if the operator names one.
    pub fallback: Option<FallbackCa>,
    /// The endpoints to verify.
    pub endpoints: Vec<Endpoint>,
    /// Why they cannot be ordered. They are deployed and looked at nevertheless.
    pub cannot_order: Option<CannotOrder>,
    /// The program that presents their challenge answers.
    pub program: Option<PathBuf>,
}

impl Deref for Certificate {
    type Target = SharedServices;
    fn deref(&self) -> &SharedServices {
        &self.shared
    }
}

impl DerefMut for Certificate {
    /// A change is for this certificate alone.
    fn deref_mut(&mut self) -> &mut SharedServices {
        Arc::make_mut(&mut self.shared)
    }
}

/// What keeps a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// The configuration or a label, whose settings apply.
    #[default]
    Settings,
    /// The command that made it, until the next command for it.
    Command,
    /// Nothing: it is orphaned, and a scheduled pass only looks at its endpoints.
    Nothing,
}

impl Certificate {
    /// Whether nothing keeps it.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.keeper == Keeper::Nothing
    }

    /// Why it cannot be ordered now. A program is looked at each time: it may come and go.
    pub(crate) fn obstacle(&self) -> Option<CannotOrder> {
        let by_program = || CannotOrder::by_program(self.program.as_deref()?);
        self.cannot_order.clone().or_else(by_program)
    }
}

/// The CA that issues while the first CA does not.
#[derive(Clone)]
pub(crate) struct FallbackCa {
    /// Its directory URL.
    pub ca: String,
    /// Its client, with an account of its own.
    pub issuer: Arc<dyn Issuer>,
}

impl Services {
    /// Makes `bundle` the live pair, while no server reads pairs.
    ///
    /// # Errors
    /// Those of the output.
    pub(crate) async fn publish(
        &self,
        lineage: &Lineage,
        generation: Generation,
        bundle: &Bundle,
    ) -> Result<(), OutputError> {
        let _alone = self.gate.moving().await;
        self.output.publish(lineage, generation, bundle)
    }

    /// Shows the phase of the work on `lineage`.
    pub(crate) fn phase(&self, lineage: &Lineage, phase: &str) {
        if let Some(progress) = &self.progress {
            progress.phase(lineage, phase);
        }
    }

    /// Shows no phase of `lineage` any more once the result is dropped.
    pub(super) fn shown<'s>(&'s self, lineage: &'s Lineage) -> Shown<'s> {
        Shown {
            progress: self.progress.as_deref(),
            lineage,
        }
    }
}

/// Generates private keys.
#[async_trait]
pub(crate) trait Keys: Send + Sync {
    /// Generates a new key of that kind.
    ///
    /// # Errors
    /// [`ManageError::Key`] without randomness.
    async fn make(&self, kind: KeyType) -> Result<Secret, ManageError>;
}

/// Generates keys on a blocking thread, since RSA takes up to seconds.
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

/// Receives the phases of the work, to show them to a user.
pub(crate) trait Progress: Send + Sync {
    /// Shows that `lineage` has reached `phase`, such as `placing the order`.
    fn phase(&self, lineage: &Lineage, phase: &str);
    /// Shows `lineage` no more: its work has ended.
    fn ended(&self, lineage: &Lineage);
}

/// A certificate whose phases are shown.
pub(super) struct Shown<'s> {
    progress: Option<&'s dyn Progress>,
    lineage: &'s Lineage,
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Some(progress) = self.progress {
            progress.ended(self.lineage);
        }
    }
}

/// The operator's maintenance windows: a renewed certificate is deployed when the next one
/// opens, if its predecessor stays valid until then.
pub(crate) trait Maintenance: Send + Sync {
    /// When the first window after `now` opens; `None` when no window opens.
    fn next_after(&self, now: Timestamp) -> Option<Timestamp>;
}

impl Certificate {
    /// Its CAs, first and fallback, by directory URL, with their clients.
    pub(crate) fn cas(&self) -> impl Iterator<Item = (&String, &Arc<dyn Issuer>)> {
        let fallback = self.fallback.iter();
        let fallback = fallback.map(|fallback| (&fallback.ca, &fallback.issuer));
        [(&self.wanted.ca, &self.issuer)]
            .into_iter()
            .chain(fallback)
    }

    /// Whether a pass over `other` would do the same: only what made them may be new.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let fallback = |one: &Self| {
            let fallback = one.fallback.as_ref();
            fallback.map(|it| (it.ca.clone(), Arc::as_ptr(&it.issuer).cast::<()>()))
        };
        let (one, another) = (&self.shared, &other.shared);
        let same_services = Arc::ptr_eq(one, another)
            || Arc::ptr_eq(&one.issuer, &another.issuer)
                && fallback(self) == fallback(other)
                && one.endpoints == another.endpoints
                && one.cannot_order == another.cannot_order
                && one.program == another.program;
        let names = |one: &Self| one.targets.iter().map(|it| it.name()).collect::<Vec<_>>();
        let (wanted, others) = (&self.wanted, &other.wanted);
        self.keeper == other.keeper
            && wanted.identifiers == others.identifiers
            && wanted.order == others.order
            && same_services
            && self.targets.len() == other.targets.len()
            && names(self) == names(other)
    }

    /// The targets with their names in records; a second target of the same name gets a
    /// number.
    pub(crate) fn named_targets(&self) -> impl Iterator<Item = (String, &Arc<dyn Target>)> {
        let targets = &self.targets;
        targets.iter().enumerate().map(|(index, target)| {
            let before = targets.iter().take(index);
            let same = before.filter(|other| other.name() == target.name()).count();
            let name = match same {
                0 => target.name(),
                _ => format!("{}#{}", target.name(), same + 1),
            };
            (name, target)
        })
    }
}

/// The settings of one certificate, as the user wants them.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The name of the lineage.
    pub lineage: Lineage,
    /// The names that the certificate must have.
    pub identifiers: IdentifierSet,
    /// What thousands of certificates may share.
    pub order: Arc<OrderSettings>,
}

/// The settings of orders but for their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderSettings {
    /// The CA's directory URL.
    pub ca: String,
    /// The other settings of its orders.
    pub terms: Terms,
    /// The signing request instead of a key, if the key is elsewhere.
    pub request: Option<SigningRequest>,
    /// Whether names that fail may be excluded, so that the others are still issued.
    pub partial: bool,
}

impl Deref for Wanted {
    type Target = OrderSettings;
    fn deref(&self) -> &OrderSettings {
        &self.order
    }
}

impl DerefMut for Wanted {
    /// A change is for this certificate alone.
    fn deref_mut(&mut self) -> &mut OrderSettings {
        Arc::make_mut(&mut self.order)
    }
}

/// The result of a successful pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The generation to be served.
    pub generation: Generation,
    /// Whether this pass issued a certificate.
    pub issued: bool,
    /// Its last valid second.
    pub not_after: Timestamp,
    /// When the next step is due.
    pub next: Timestamp,
    /// When the renewal is due; `None` when no instant is drawn yet.
    pub renewal: Option<Timestamp>,
    /// The wanted names that are excluded for now.
    #[serde(default, rename = "left_out")]
    pub excluded: Vec<ExcludedName>,
    /// Whether its servers were seen to serve it.
    #[serde(default)]
    pub proof: Proof,
    /// The revoked ones among the stored generations.
    #[serde(default)]
    pub revoked: BTreeMap<Generation, Revoked>,
    /// The settings that have changed since it was ordered, in words.
    #[serde(default)]
    pub changed: Vec<String>,
}

impl Wanted {
    /// Whether the earlier orders of `record` were for the same names, CA and profile.
    pub(super) fn matches(&self, record: &Record) -> bool {
        self.identifiers == record.identifiers
            && record.ca == self.ca
            && record.profile == self.terms.profile
    }

    /// Whether an order for `names` satisfies these settings for all names, `all`.
    pub(super) fn allows(&self, names: &BTreeSet<Identifier>, all: &BTreeSet<Identifier>) -> bool {
        let some = self.partial && !names.is_empty() && names.is_subset(all);
        names == all || some
    }
}
/// Whether `data_dir` has an account of `ca`. An account that cannot be seen counts as none.
pub(crate) fn is_registered(data_dir: PathBuf, ca: &str) -> bool {
    let store = FileStore::existing(data_dir).ok().flatten();
    store.is_some_and(|store| store.has_account(ca))
}
