//! The certificates of `certs run`: those of the configuration, and those that containers
//! request. An invalid configuration is refused as a whole, and the old one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::challenge::ChallengeSettings;
use crate::challenge::protocol::{Listen, Protocol};
use crate::cli::Call;
use crate::cli::catalog::lacking;
use crate::cli::factory::{Builder, Factory, proxy_to};
use crate::cli::inventory::Inventory;
use crate::cli::kept::{NotKept, Orphan, keep_stored, notice};
use crate::cli::labels::Labels;
use crate::cli::meant;
use crate::config::{CertificateSettings, Origin, Purpose, Settings, Sources};
use crate::discovery::Listing;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage::status::status;
use crate::manage::{Certificate, Keeper};
use crate::net::proxy::Proxies;
use crate::net::systemd::Notifier;
use crate::observe::{Board, Obstacles};
use crate::random::SystemRandom;
use crate::time::{Clock, SystemClock};

/// The configured certificates, and those that containers request.
pub(super) struct ManagedCertificates<'a> {
    pub(super) call: &'a Call,
    pub(super) sources: Sources,
    pub(super) at_start: AtStart,
    pub(super) configured: Settings,
    pub(super) labels: Labels,
    pub(super) factory: Arc<Factory>,
    pub(super) board: Board,
    /// The containers' certificates that the supervisor manages.
    pub(super) requested: Vec<CertificateSettings>,
    /// The stored certificates that are not managed.
    pub(super) not_kept: NotKept,
    /// Those of them that the log names already.
    pub(super) announced: BTreeSet<Lineage>,
    /// The protocols whose challenge listeners the service manager bound, wherever that is.
    pub(super) passed: Vec<Protocol>,
    pub(super) notifier: Arc<Notifier>,
}

impl ManagedCertificates<'_> {
    /// Reads the configuration again; an invalid one changes nothing.
    pub(super) async fn reload(&mut self) -> Result<Vec<Certificate>, Failure> {
        let sources = Sources::read(&self.call.options, &self.call.environment);
        // This process may be another user by now, with another default.
        let sources = sources.with_default_data_dir(&self.at_start.process.data_dir);
        let read = sources.settings(&Purpose::All).map_err(Failure::from);
        let mut read = read.map_err(|failure| {
            let files = sources.files();
            self.factory.sandbox.cause(failure, &files)
        })?;
        let stored = read_stored(&read.data_dir, &self.board)?;
        meant::relate(&sources, &mut read, &stored);
        let not_kept = keep_stored(&sources, &mut read, &self.labels, stored).await?;
        let bound = &self.at_start.listens;
        let is_bound = |needed: &Listen| {
            self.passed.contains(&needed.protocol) || bound.iter().any(|one| one.serves(needed))
        };
        if !read.listens().iter().all(is_bound) {
            let message = "the addresses of the challenge listeners change only at a restart";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&self.at_start.process, &read) {
            tracing::warn!(
                "listeners, directories, the schedule and the Docker host change only at a restart"
            );
        }
        if read.docker.is_none() {
            // Discovery stops only at a restart: do not drop its certificates before.
            read.docker.clone_from(&self.configured.docker);
        }
        // First, so that an invalid configuration changes nothing.
        let ways = &self.factory.ways;
        let before = ways.change(Arc::new(read.proxies.clone()));
        if let Err(failure) = reachable(&read).and_then(|()| check(&self.factory, &read)) {
            ways.change(before);
            return Err(failure);
        }
        if *before != read.proxies {
            super::announce_proxies(&read);
        }
        (self.sources, self.configured, self.not_kept) = (sources, read, not_kept);
        let certificates = self.certificates()?;
        self.remember().await;
        Ok(certificates)
    }

    /// Reads the store again, after a command has made or deleted a certificate.
    pub(super) async fn restock(&mut self) -> Result<Vec<Certificate>, Failure> {
        let mut configured = self.configured.clone();
        configured
            .certificates
            .retain(|one| one.origin == Some(Origin::Configuration));
        let stored = read_stored(&configured.data_dir, &self.board)?;
        // A command may have renamed one.
        meant::relate(&self.sources, &mut configured, &stored);
        let kept = keep_stored(&self.sources, &mut configured, &self.labels, stored).await;
        self.not_kept = kept?;
        self.configured = configured;
        self.certificates()
    }

    /// Applies a whole list of containers; `None` if the certificates are unchanged.
    pub(super) async fn listed(&mut self, listing: &Listing) -> Option<Vec<Certificate>> {
        let now = self.factory.services.clock.now();
        if !self
            .labels
            .apply(listing, &self.sources, &self.configured, now)
        {
            return None;
        }
        let requested = self.labels.certificates(&self.sources, &self.configured);
        if requested == self.requested {
            // Only the requesting containers have changed.
            self.board.set_requests(self.labels.requests());
            return None;
        }
        match self.restock().await {
            Ok(certificates) => {
                self.remember().await;
                Some(certificates)
            }
            Err(failure) => {
                let failure = failure.in_a_line();
                tracing::error!("the containers' previous certificates stay: {failure}");
                None
            }
        }
    }

    /// All certificates. An invalid one from a label does not affect the others.
    pub(super) fn certificates(&mut self) -> Result<Vec<Certificate>, Failure> {
        let mut unmanaged = self.not_kept.unusable.clone();
        let mut all = certificates(&self.factory, &self.configured, &mut unmanaged)?;
        self.requested = self.labels.certificates(&self.sources, &self.configured);
        let factory = self.factory.clone();
        let mut builder = Builder::new(&factory);
        for settings in &self.requested {
            match builder.published(settings) {
                Ok(certificate) => all.push(certificate),
                Err(failure) => refuse(settings, &failure, &mut unmanaged),
            }
        }
        self.board.set_requests(self.labels.requests());
        all.extend(self.orphaned());
        self.board.set_obstacles(Obstacles {
            denied: denied(&self.configured),
            unmanaged,
            not_renewable: self.not_renewable(&all),
        });
        if self.configured.docker.is_none() {
            // Only labels ask for their names; they are read again with the store.
            let configured = &mut self.configured.certificates;
            configured.retain(|one| one.origin == Some(Origin::Configuration));
            configured.shrink_to_fit();
        }
        Ok(all)
    }

    /// Why certificates cannot be renewed. The log names each once.
    fn not_renewable(&self, all: &[Certificate]) -> BTreeMap<Lineage, String> {
        let known = self.board.obstacles().not_renewable;
        let stuck = all.iter().filter_map(|one| {
            let (lineage, cause) = (one.wanted.lineage.clone(), one.cannot_order.as_ref()?);
            let shown = cause.shown();
            if known.get(&lineage) != Some(&shown) {
                tracing::error!(%lineage, "{}", cause.warning());
            }
            Some((lineage, shown))
        });
        stuck.collect()
    }

    /// The orphaned certificates, which are only looked at. The log names each once.
    fn orphaned(&mut self) -> Vec<Certificate> {
        let why = |orphan: &Orphan| (orphan.settings.lineage.clone(), orphan.why.to_owned());
        self.board
            .set_orphans(self.not_kept.orphans.iter().map(why).collect());
        let announced = self
            .not_kept
            .orphans
            .iter()
            .map(|one| one.settings.lineage.clone());
        let announced = std::mem::replace(&mut self.announced, announced.collect());
        let mut watched = Vec::new();
        let mut builder = Builder::new(&self.factory);
        for Orphan { settings, why } in &self.not_kept.orphans {
            let lineage = &settings.lineage;
            if !announced.contains(lineage) {
                tracing::warn!(%lineage, "{}", notice(lineage, &settings.names, why));
            }
            match builder.published(settings) {
                Ok(certificate) => watched.push(Certificate {
                    keeper: Keeper::Nothing,
                    ..certificate
                }),
                Err(failure) => tracing::error!(%lineage, "{}", failure.in_a_line()),
            }
        }
        watched
    }

    async fn remember(&self) {
        let settings = with_labels(&self.sources, &self.configured, &self.labels);
        remember_new(&self.factory, &settings).await;
    }
}

/// The settings that hold until a restart.
pub(super) struct AtStart {
    process: Settings,
    listens: Vec<Listen>,
}

impl AtStart {
    pub(super) fn of(configured: &Settings) -> Self {
        Self {
            listens: configured.listens(),
            process: Settings {
                certificates: Vec::new(),
                ..configured.clone()
            },
        }
    }
}

/// Reads all that is stored, and shows it.
pub(super) fn read_stored(data_dir: &Path, board: &Board) -> Result<Inventory, Failure> {
    let now = SystemClock.now();
    Inventory::read_with(data_dir, |record| {
        board.post_read(status(record, now, &SystemRandom));
    })
}

/// Stores the settings of certificates that the configuration or a label names. Those of a
/// command are stored: they were read with the others.
pub(super) async fn remember_new(factory: &Factory, settings: &Settings) {
    let made_here = |one: &&CertificateSettings| !one.asked_by().is_some_and(Origin::lasts);
    factory
        .remember_all(settings.certificates.iter().filter(made_here))
        .await;
}

/// The configured certificates and those that containers request.
pub(super) fn with_labels(sources: &Sources, configured: &Settings, labels: &Labels) -> Settings {
    let mut settings = configured.clone();
    let requested = labels.certificates(sources, configured);
    settings.certificates.extend(requested);
    settings
}

/// Whether the settings are equal apart from certificates and label rules.
fn same_process(one: &Settings, other: &Settings) -> bool {
    let fixed = |settings: &Settings| {
        let mut fixed = settings.clone();
        fixed.certificates.clear();
        if let Some(docker) = &mut fixed.docker {
            // These rules are applied to every list.
            (docker.grace, docker.limit) = Default::default();
            docker.allow.clear();
            docker.deploy.clear();
        }
        fixed.challenge = ChallengeSettings::default();
        // It is changed by the reload.
        fixed.proxies = Proxies::default();
        fixed
    };
    fixed(one) == fixed(other)
}

/// Whether every configured certificate can be built.
fn check(factory: &Factory, settings: &Settings) -> Result<(), Failure> {
    let all = settings.certificates.iter();
    let mut configured = all.filter(|one| one.origin == Some(Origin::Configuration));
    configured.try_for_each(|one| factory.certificate(one).map(drop))
}

/// Whether the proxies to all CAs of the configuration can be used.
fn reachable(settings: &Settings) -> Result<(), Failure> {
    let configured = settings.certificates.iter();
    let configured = configured.filter(|one| one.origin == Some(Origin::Configuration));
    let mut cas = configured.flat_map(|one| [Some(&one.ca), one.fallback.as_ref()]);
    cas.try_for_each(|ca| match ca {
        Some(ca) => proxy_to(ca, &settings.proxies).map(drop),
        None => Ok(()),
    })
}

/// Leaves a certificate out, which does not affect the others.
fn refuse(
    settings: &CertificateSettings,
    failure: &Failure,
    unmanaged: &mut BTreeMap<Lineage, String>,
) {
    let (lineage, why) = (&settings.lineage, failure.in_a_line());
    tracing::error!(%lineage, "{why}");
    unmanaged.insert(lineage.clone(), why);
}

/// The rights that each certificate lacks.
fn denied(settings: &Settings) -> BTreeMap<Lineage, Vec<String>> {
    let lacks = settings.certificates.iter();
    let lacks = lacks.filter(|one| !one.unconfirmed.is_empty());
    lacks
        .map(|one| (one.lineage.clone(), lacking(&one.unconfirmed)))
        .collect()
}

/// The certificates; those left out are added to `unmanaged`.
fn certificates(
    factory: &Factory,
    settings: &Settings,
    unmanaged: &mut BTreeMap<Lineage, String>,
) -> Result<Vec<Certificate>, Failure> {
    let mut built = Vec::new();
    let mut builder = Builder::new(factory);
    for settings in &settings.certificates {
        match builder.published(settings) {
            Ok(certificate) => built.push(certificate),
            // A stored one does not affect the others.
            Err(failure) if settings.origin != Some(Origin::Configuration) => {
                refuse(settings, &failure, unmanaged);
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(built)
}
