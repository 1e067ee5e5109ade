//! Builds services from settings: shared services once, and one client for each
//! distinct CA, so that certificates can be added while the process runs.

mod builder;
mod client;
mod outputs;
mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryFutureExt;

pub(super) use self::builder::Builder;
pub(super) use self::client::{account_of, invalid, proxy_to, reached_by, ways_of};
pub(super) use self::outputs::{emptied, outputs_for, publish_by};
use super::Call;
use super::catalog::{remember, still_imported};
use super::embedded;
use super::listener::Refused;
use super::progress::Display;
use super::watcher::Watcher;
use crate::acme::{self, Client, Issuer, Limiters};
use crate::ca;
use crate::certificate::{BundleCache, SigningRequest};
use crate::challenge::listen::Listener;
use crate::challenge::responses::Responses;
use crate::config::{
    CaSettings, CertificateSettings, DeployWhen, Origin, OutputSettings, RenewSettings, Settings,
};
use crate::control::{Done, Task};
use crate::deploy::coalesce::{Coalesced, Gate};
use crate::deploy::confirmed::Right;
use crate::deploy::outputs::Outputs;
use crate::deploy::removal::Emptied;
use crate::deploy::target::DeployTarget;
use crate::deploy::verify::Handshake;
use crate::failure::Failure;
use crate::lineage::Lineage;
use crate::manage::concurrency::Concurrency;
use crate::manage::pass::pass;
use crate::manage::rehearse::rehearse;
use crate::manage::rename::rename;
use crate::manage::{
    Certificate, FallbackCa, FreshKeys, Keeper, Looks, Maintenance, ManageError, OrderSettings,
    Outcome, Probes, SPACING, SPREAD, SameNames, Services, SharedServices, VERIFY_WITHIN, Wanted,
};
use crate::net::dns::lookup::Resolver;
use crate::net::proxy::Ways;
use crate::observe::Metrics;
use crate::random::SystemRandom;
use crate::record::{Renaming, Terms};
use crate::sandbox::Sandbox;
use crate::store::memory::MemoryStore;
use crate::store::{Lease, Store};
use crate::time::{SystemClock, Timestamp};

/// Builds certificates with shared services.
pub(super) struct Factory {
    pub(super) services: Services,
    pub(super) display: Arc<Display>,
    pub(super) sandbox: Sandbox,
    /// The addresses at which this process cannot answer challenges.
    pub(super) refused: Refused,
    responses: Responses,
    outputs: Arc<Outputs>,
    /// The settings of the process, without certificates.
    process: Settings,
    issuers: Mutex<BTreeMap<String, Arc<dyn Issuer>>>,
    /// How CAs are reached, which a reload may change.
    pub(super) ways: Arc<Ways>,
    limiters: Arc<Limiters>,
    concurrency: Concurrency,
    servers: Mutex<BTreeMap<DeployTarget, Coalesced>>,
    /// The accounts of rehearsals, never stored on disk.
    rehearsals: MemoryStore,
    /// The CA inside this process, opened by the first certificate that uses it.
    embedded: Mutex<Option<ca::Server>>,
}

impl Factory {
    /// The services for `settings`; challenges are answered through `responses`.
    pub(super) fn new(
        call: &Call,
        settings: &Settings,
        store: Arc<dyn Store>,
        responses: Responses,
    ) -> Result<Self, Failure> {
        let display = Arc::new(Display::new(call.terminal.clone()));
        let outputs = Arc::new(outputs_for(settings)?);
        let resolver = Resolver::new(settings.resolver);
        Ok(Self {
            services: Services {
                same_names: SameNames::across(store.clone()),
                store,
                output: outputs.clone(),
                gate: Gate::default(),
                verifier: Arc::new(Handshake::by(resolver.clone())),
                resolver,
                keys: Arc::new(FreshKeys),
                bundles: BundleCache::default(),
                probes: Probes::default(),
                clock: Arc::new(SystemClock),
                random: Arc::new(SystemRandom),
                metrics: Metrics::default(),
                spacing: SPACING,
                spread: SPREAD,
                verify_within: settings
                    .verify_within
                    .map_or(VERIFY_WITHIN, |within| within.length()),
                maintenance: maintenance(&settings.renew),
                looks: Some(Looks {
                    every: settings.verify_every.length(),
                    at_once: true,
                    first: false,
                }),
                board: None,
                progress: Some(display.clone()),
            },
            display,
            outputs,
            process: Settings {
                certificates: Vec::new(),
                ..settings.clone()
            },
            sandbox: Sandbox::default(),
            refused: Refused::default(),
            responses,
            issuers: Mutex::default(),
            ways: ways_of(settings),
            limiters: Arc::default(),
            concurrency: Concurrency::default(),
            servers: Mutex::default(),
            rehearsals: MemoryStore::default(),
            embedded: Mutex::default(),
        })
    }

    /// Obeys the restrictions of `sandbox`.
    pub(super) fn confine(&mut self, sandbox: Sandbox) {
        if let Some(runner) = sandbox.runner() {
            self.responses.run_programs_by(runner);
        }
        self.sandbox = sandbox;
    }

    /// A certificate with its own services.
    pub(super) fn certificate(
        &self,
        settings: &CertificateSettings,
    ) -> Result<Certificate, Failure> {
        self.certificate_for(settings, false)
    }

    /// Publishes a certificate where its settings say, from now on.
    pub(super) fn publish_by(&self, settings: &CertificateSettings) -> Result<(), Failure> {
        publish_by(&self.outputs, &self.process, settings)
    }

    /// The same, and gives the published files to their readers, which may have changed.
    pub(super) fn open_published(&self, settings: &CertificateSettings) -> Result<(), Failure> {
        self.publish_by(settings)?;
        self.open_files_of(settings);
        Ok(())
    }

    fn open_files_of(&self, settings: &CertificateSettings) {
        if let Err(error) = self.outputs.open_published(&settings.lineage) {
            // The next deployment reports it.
            tracing::debug!("{error}");
        }
    }

    fn certificate_for(
        &self,
        settings: &CertificateSettings,
        rehearsal: bool,
    ) -> Result<Certificate, Failure> {
        let denied = settings.unconfirmed.iter();
        if let Some(right) = { denied }.find(|right| !matches!(right, Right::Deploy(_))) {
            return Err(unconfirmed(settings, right));
        }
        self.sandbox.covers(settings)?;
        // A rehearsal has no fallback CA.
        let fallback = settings.fallback.as_ref().filter(|_| !rehearsal);
        let fallback = fallback.map(|ca| -> Result<_, Failure> {
            Ok(FallbackCa {
                ca: ca.directory.identity().to_owned(),
                issuer: self.shared_issuer(ca, settings, rehearsal)?,
            })
        });
        Ok(Certificate {
            wanted: wanted(settings),
            targets: self.targets(settings),
            keeper: match settings.asked_by() {
                Some(origin) if origin.lasts() || origin == Origin::Install => Keeper::Command,
                _ => Keeper::Settings,
            },
            shared: Arc::new(SharedServices {
                issuer: self.shared_issuer(&settings.ca, settings, rehearsal)?,
                fallback: fallback.transpose()?,
                endpoints: settings.verify.clone(),
                cannot_order: { settings.cannot_order.clone() }
                    .or_else(|| self.refused.cause(settings)),
                program: settings.challenge.program().map(Path::to_owned),
            }),
        })
    }

    /// Tries the refused addresses of listeners again: see [`Refused::retry`].
    pub(super) async fn retry_refused(&self) -> (Vec<Listener>, bool) {
        self.refused.retry(&self.responses).await
    }

    /// Does `task` for one certificate.
    pub(super) async fn work(
        &self,
        settings: &CertificateSettings,
        task: Task,
    ) -> Result<Done, Failure> {
        let certificate = self.certificate_for(settings, task == Task::Rehearsal)?;
        self.publish_by(settings)?;
        let lineage = &settings.lineage;
        let permit = self.concurrency.take().await;
        match task {
            Task::Pass(trigger) => {
                self.open_published(settings)?;
                let pass = pass(&self.services, &certificate, trigger, permit);
                let pass = pass.map_ok(|(outcome, _)| outcome);
                let work = self.display.during(lineage, pass);
                self.remembering(settings, work).await
            }
            Task::Rehearsal => {
                if let Some(cause) = certificate.obstacle() {
                    return Err(Failure::on(lineage.as_str())(ManageError::CannotOrder(
                        cause,
                    )));
                }
                let (wanted, clock) = (&certificate.wanted, self.services.clock.as_ref());
                let issuer = certificate.issuer.as_ref();
                let work = rehearse(wanted, issuer, &self.rehearsals, clock);
                let facts = self.display.during(lineage, work).await;
                let subject = format!("dry run: {lineage}");
                facts.map(Done::Rehearsed).map_err(Failure::on(&subject))
            }
        }
    }

    /// Reads the files of all CAs in `known`, as long as this process may.
    pub(super) fn prepare_issuers(&self, known: &Settings) {
        let mut seen = BTreeSet::new();
        let distinct = |one: &&CertificateSettings| seen.insert(Arc::as_ptr(&one.shared));
        for settings in known.certificates.iter().filter(distinct) {
            for ca in [Some(&settings.ca), settings.fallback.as_ref()]
                .into_iter()
                .flatten()
            {
                // The pass reports the error.
                let _ = self.shared_issuer(ca, settings, false);
            }
        }
    }

    /// Stores the settings of configured certificates, for when they are no longer configured.
    pub(super) async fn remember_all(
        &self,
        certificates: impl Iterator<Item = &CertificateSettings>,
    ) {
        for certificate in certificates {
            if let Err(failure) = remember(self.services.store.as_ref(), certificate).await {
                tracing::warn!("{}", failure.in_a_line());
            }
        }
    }

    /// Runs the pass `work` and stores its settings for `certs renew`: after the pass
    /// if it succeeds, and before it if none are stored.
    pub(super) async fn remembering(
        &self,
        settings: &CertificateSettings,
        work: impl Future<Output = Result<Outcome, ManageError>>,
    ) -> Result<Done, Failure> {
        let (lineage, store) = (&settings.lineage, self.services.store.as_ref());
        let stored = store.options(lineage).await;
        let stored = stored.map_err(Failure::on(lineage.as_str()))?;
        let settings = &still_imported(settings, stored.as_deref());
        let read = |json| CertificateSettings::stored_as(lineage, json).ok();
        let before = stored.as_deref().and_then(read);
        let by_install = before.is_some_and(|one| one.asked_by() == Some(Origin::Install));
        if stored.is_none() || by_install {
            remember(store, settings).await?;
        }
        let ended = work.await;
        if let Ok(_) | Err(ManageError::Deploy(_) | ManageError::Verify(_)) = &ended {
            remember(store, settings).await?;
        }
        self.done(settings, ended).await
    }

    /// Renames a certificate that was made with these settings. Returns the leases of both
    /// names.
    pub(super) async fn rename(
        &self,
        renaming: &Renaming,
        made_with: Option<&CertificateSettings>,
    ) -> Result<[Box<dyn Lease>; 2], Failure> {
        for lineage in [&renaming.from, &renaming.to] {
            if let Some(made_with) = made_with {
                self.publish_by(&CertificateSettings {
                    lineage: lineage.clone(),
                    ..made_with.clone()
                })?;
            }
        }
        let (services, emptied) = (&self.services, self.emptied(made_with));
        let (store, output) = (services.store.as_ref(), services.output.as_ref());
        let now = services.clock.now();
        let renamed = rename(store, output, &emptied, renaming, now).await;
        renamed.map_err(Failure::on(renaming.from.as_str()))
    }

    /// The output of this process.
    pub(super) fn output(&self) -> &OutputSettings {
        &self.process.output
    }

    /// The output of a certificate that was made with these settings, for its deletion.
    pub(super) fn emptied(&self, made_with: Option<&CertificateSettings>) -> Emptied {
        emptied(made_with, &self.process)
    }

    /// The root of the output of a certificate that was made with these settings.
    pub(super) fn output_root(&self, made_with: Option<&CertificateSettings>) -> PathBuf {
        let own = made_with.map(|settings| self.process.output_of(settings));
        own.unwrap_or(self.process.output.clone()).directory
    }

    /// The result of a pass, for the user.
    pub(super) async fn done(
        &self,
        settings: &CertificateSettings,
        ended: Result<Outcome, ManageError>,
    ) -> Result<Done, Failure> {
        let lineage = &settings.lineage;
        let outcome = match ended {
            Ok(outcome) => outcome,
            Err(error) => {
                let now = self.services.clock.now();
                let (exists, retry_at) = self.stored(lineage).await;
                let lineage = lineage.as_str();
                return Err(Failure::of_pass(lineage, &error, now, exists, retry_at));
            }
        };
        let path = self.services.output.live_path(lineage);
        Ok(Done::Passed { outcome, path })
    }

    /// Whether a certificate is stored, and when its next order is tried; an unreadable
    /// record may have one.
    async fn stored(&self, lineage: &Lineage) -> (bool, Option<Timestamp>) {
        match self.services.store.load(lineage).await {
            Ok(Some((record, _))) => (record.issued.is_some(), record.failures.retry_at),
            Ok(None) => (false, None),
            Err(_) => (true, None),
        }
    }

    /// One client for each CA and solver: certificates share its nonces and its
    /// account. Rehearsals have clients of their own.
    fn shared_issuer(
        &self,
        ca: &CaSettings,
        settings: &CertificateSettings,
        rehearsal: bool,
    ) -> Result<Arc<dyn Issuer>, Failure> {
        let solver = settings.challenge.solver_key();
        let key = serde_json::json!([ca, solver, rehearsal]).to_string();
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(issuer) = issuers.get(&key) {
            return Ok(issuer.clone());
        }
        let issuer = self.issuer(ca, settings)?;
        issuers.insert(key, issuer.clone());
        Ok(issuer)
    }

    fn issuer(
        &self,
        ca: &CaSettings,
        settings: &CertificateSettings,
    ) -> Result<Arc<dyn Issuer>, Failure> {
        let account = account_of(ca)?;
        let identity = ca.directory.identity().to_owned();
        let (directory, exchange) =
            reached_by(ca, (&self.process, &self.ways), || self.embedded(settings))?;
        let client = Client::new(acme::ClientSettings {
            directory,
            account,
            exchange,
            solvers: vec![settings.challenge.solver(&self.responses)],
            limiters: self.limiters.clone(),
            clock: self.services.clock.clone(),
            observer: Arc::new(Watcher::new(identity, &self.services)),
            preferred_chain: ca.preferred_chain.clone(),
            notice: ca.directory.notice(),
        });
        let resolver = Arc::new(self.services.resolver.clone());
        Ok(Arc::new(client.map_err(invalid)?.with_caa(resolver)))
    }

    fn embedded(&self, settings: &CertificateSettings) -> Result<ca::Server, Failure> {
        let mut opened = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*opened {
            return Ok(server.clone());
        }
        let answers_at = settings.challenge.listens().first().map(|one| one.address);
        let server = embedded::open(
            &self.process.data_dir,
            answers_at,
            self.services.clock.clone(),
        )?;
        *opened = Some(server.clone());
        Ok(server)
    }
}

fn unconfirmed(settings: &CertificateSettings, right: &Right) -> Failure {
    let lineage = &settings.lineage;
    Failure::usage(
        format!("{lineage}: the right to {right} is stored, but neither configured nor confirmed"),
        "as root, or as the user of certs run, repeat certs issue with its options: it confirms them, and orders nothing before it is due",
    )
}

fn maintenance(renew: &RenewSettings) -> Option<Arc<dyn Maintenance>> {
    match (&renew.schedule, renew.deploy) {
        (Some(schedule), DeployWhen::OnSchedule) => Some(Arc::new(schedule.clone())),
        _ => None,
    }
}

/// The certificate that a pass must provide.
pub(super) fn wanted(settings: &CertificateSettings) -> Wanted {
    Wanted {
        lineage: settings.lineage.clone(),
        identifiers: settings.names.iter().cloned().collect(),
        order: Arc::new(OrderSettings {
            ca: settings.ca.directory.identity().to_owned(),
            terms: Terms {
                key: settings.key_type(),
                reuse_key: settings.reuse_key,
                profile: settings.profile.clone(),
                preferred_chain: settings.ca.preferred_chain.clone(),
                lifetime: settings.lifetime,
                request: settings.request.as_ref().map(SigningRequest::fingerprint),
            },
            request: settings.request.clone(),
            partial: settings.partial,
        }),
    }
}
