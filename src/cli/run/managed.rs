//! The certificates of `certs run`: those of the configuration, and those that containers
//! request. An invalid configuration is refused as a whole, and the old one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::challenge::ChallengeSettings;
use crate::challenge::protocol::{Listen, Protocol};
use crate::cli::Call;
use crate::cli::catalog::lacking;
use crate::cli::factory::{Factory, proxy_to};
use crate::cli::kept::{NotKept, Orphan, keep_stored, notice};
use crate::cli::labels::Labels;
use crate::cli::meant;
use crate::config::{CertificateSettings, Origin, Purpose, Settings, Sources};
use crate::discovery::Listing;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage::{Certificate, Keeper};
use crate::net::proxy::Proxies;
use crate::net::systemd::Notifier;
use crate::observe::{Board, Obstacles};

/// The configured certificates, and those that containers request.
pub(super) struct ManagedCertificates<'a> {
    pub(super) call: &'a Call,
    pub(super) sources: Sources,
    pub(super) at_start: Settings,
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
        let sources = sources.with_default_data_dir(&self.at_start.data_dir);
        let read = meant::settings(&sources, &Purpose::All).await;
        let mut read = read.map_err(|failure| {
            let files = sources.files();
            self.factory.sandbox.cause(failure, &files)
        })?;
        let not_kept = keep_stored(&sources, &mut read, &self.labels).await?;
        let bound = self.at_start.listens();
        let is_bound = |needed: &Listen| {
            self.passed.contains(&needed.protocol) || bound.iter().any(|one| one.serves(needed))
        };
        if !read.listens().iter().all(is_bound) {
            let message = "the addresses of the challenge listeners change only at a restart";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&self.at_start, &read) {
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
        if let Err(failure) =
            reachable(&read).and_then(|()| certificates(&self.factory, &read, &mut BTreeMap::new()))
        {
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
        // A command may have renamed one.
        meant::relate(&self.sources, &mut configured).await?;
        self.not_kept = keep_stored(&self.sources, &mut configured, &self.labels).await?;
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
        for settings in &self.requested {
            match published(&self.factory, settings) {
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
        for Orphan { settings, why } in &self.not_kept.orphans {
            let lineage = &settings.lineage;
            if !announced.contains(lineage) {
                tracing::warn!(%lineage, "{}", notice(lineage, why));
            }
            match published(&self.factory, settings) {
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
        self.factory.remember_all(&settings).await;
    }
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

/// The certificate, which is published in the output of its settings.
fn published(factory: &Factory, settings: &CertificateSettings) -> Result<Certificate, Failure> {
    let certificate = factory.certificate(settings)?;
    factory.publish_by(settings)?;
    Ok(certificate)
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
    for settings in &settings.certificates {
        match published(factory, settings) {
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
