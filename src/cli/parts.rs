//! Settings turned into parts: what all certificates share is built once, and
//! one client for each distinct CA, so that certificates can be added while
//! the process runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::Call;
use super::issue::{Done, Task};
use super::output::Failure;
use super::progress::Display;
use super::watcher::Watcher;
use super::{embedded, sockets};
use crate::acme::{self, AccountOptions, Client, Exchange, Https, InProcess, Issuer, Paces};
use crate::ca;
use crate::certificate::Known;
use crate::challenge::Solver;
use crate::challenge::http01::{BindError, Listener};
use crate::challenge::responses::Responses;
use crate::challenge::webroot::Webroot;
use crate::config::{
    CaSettings, CertificateSettings, ChallengeSettings, DeployWhen, Directory, Purpose, Remembered,
    RenewSettings, Settings, Sources, shared_file,
};
use crate::deploy::Target;
use crate::deploy::merge::Merged;
use crate::deploy::named::Named;
use crate::deploy::output::Output;
use crate::deploy::owner::{self, Owner};
use crate::deploy::spec::{NAME, Spec};
use crate::deploy::verify::Handshake;
use crate::identifier::Lineage;
use crate::manage::issue::pass_in_turn;
use crate::manage::rehearse::rehearse;
use crate::manage::turns::Turns;
use crate::manage::{
    Certificate, FreshKeys, Maintenance, ManageError, Outcome, Parts, Probed, SPACING, SPREAD,
    StandIn, Wanted,
};
use crate::observe::Metrics;
use crate::random::SystemRandom;
use crate::sandbox::Reach;
use crate::store::fs::FileStore;
use crate::store::memory::MemoryStore;
use crate::store::{Store, StoreError};
use crate::time::SystemClock;

/// Builds certificates out of parts that are built once.
pub(crate) struct Factory {
    /// What all certificates share.
    pub(crate) parts: Parts,
    /// Shows what is being done.
    pub(crate) display: Arc<Display>,
    /// What is left to this process.
    pub(crate) reach: Reach,
    responses: Responses,
    data_dir: PathBuf,
    issuers: Mutex<BTreeMap<String, Arc<dyn Issuer>>>,
    paces: Arc<Paces>,
    turns: Turns,
    servers: Mutex<BTreeMap<Spec, Arc<Merged>>>,
    /// The accounts of rehearsals, which are forgotten.
    rehearsals: MemoryStore,
    /// The CA inside this process, once a certificate asks for it.
    embedded: Mutex<Option<ca::Server>>,
}

impl Factory {
    /// The parts for `settings`; challenges are answered through `responses`.
    pub(crate) fn new(
        call: &Call,
        settings: &Settings,
        store: Arc<dyn Store>,
        responses: Responses,
    ) -> Result<Self, Failure> {
        let display = Arc::new(Display::new(call.terminal.clone()));
        let output = output_for(settings)?;
        Ok(Self {
            parts: Parts {
                store,
                output: Arc::new(output),
                prover: Arc::new(Handshake),
                keys: Arc::new(FreshKeys),
                known: Known::default(),
                probed: Probed::default(),
                clock: Arc::new(SystemClock),
                random: Arc::new(SystemRandom),
                metrics: Metrics::default(),
                spacing: SPACING,
                spread: SPREAD,
                maintenance: maintenance(&settings.renew),
                board: None,
                progress: Some(display.clone()),
            },
            display,
            reach: Reach::default(),
            responses,
            data_dir: settings.data_dir.clone(),
            issuers: Mutex::default(),
            paces: Arc::default(),
            turns: Turns::default(),
            servers: Mutex::default(),
            rehearsals: MemoryStore::default(),
            embedded: Mutex::default(),
        })
    }

    /// For a process that has given up all but `reach`.
    pub(crate) fn within(mut self, reach: Reach) -> Self {
        self.reach = reach;
        self
    }

    /// A certificate with the parts that are its own.
    pub(crate) fn certificate(
        &self,
        settings: &CertificateSettings,
    ) -> Result<Certificate, Failure> {
        self.certificate_for(settings, false)
    }

    fn certificate_for(
        &self,
        settings: &CertificateSettings,
        rehearsal: bool,
    ) -> Result<Certificate, Failure> {
        self.reach.covers(settings)?;
        Ok(Certificate {
            wanted: wanted(settings),
            issuer: self.shared_issuer(&settings.ca, settings, rehearsal)?,
            fallback: self.stand_in(settings, rehearsal)?,
            targets: self.targets(settings),
            endpoints: settings.verify.clone(),
        })
    }

    /// Copies first: a server may read one of them.
    fn targets(&self, settings: &CertificateSettings) -> Vec<Arc<dyn Target>> {
        let specs = settings.deploy.iter();
        let (copies, servers): (Vec<_>, Vec<_>) = specs.partition(|spec| spec.is_a_copy());
        let all = copies.into_iter().chain(servers);
        let all = all.map(|spec| spec.for_lineage(&settings.lineage));
        let all: Vec<_> = all.map(|spec| (self.target(&spec), spec)).collect();
        let named = all.iter().map(|(target, spec)| -> Arc<dyn Target> {
            let same = |(other, _): &&(Arc<dyn Target>, Spec)| other.name() == target.name();
            match all.iter().filter(same).count() {
                1 => target.clone(),
                // Two nginx are told apart by their pid files.
                _ => Arc::new(Named::new(spec.to_string(), target.clone())),
            }
        });
        named.collect()
    }

    /// One for each server, so that certificates share its reloads.
    fn target(&self, spec: &Spec) -> Arc<dyn Target> {
        let mut targets = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = targets.entry(spec.clone());
        let shared = shared
            .or_insert_with(|| Arc::new(Merged::new(self.reach.target(spec), spec.loads_all())));
        shared.clone()
    }

    /// Does `task` for one certificate.
    pub(crate) async fn work(
        &self,
        settings: &CertificateSettings,
        task: Task,
    ) -> Result<Done, Failure> {
        let certificate = self.certificate_for(settings, task == Task::Rehearsal)?;
        let lineage = &settings.lineage;
        let turn = self.turns.take().await;
        match task {
            Task::Pass(urge) => {
                let pass = async {
                    let ended = pass_in_turn(&self.parts, &certificate, urge, turn).await;
                    ended.map(|(outcome, _)| outcome)
                };
                let work = self.display.during(lineage, pass);
                self.remembering(settings, work).await
            }
            Task::Rehearsal => {
                let (wanted, clock) = (&certificate.wanted, self.parts.clock.as_ref());
                let issuer = certificate.issuer.as_ref();
                let work = rehearse(wanted, issuer, &self.rehearsals, clock);
                let facts = self.display.during(lineage, work).await;
                let subject = format!("dry run: {lineage}");
                facts
                    .map(Done::Rehearsed)
                    .map_err(|error| Failure::of(&subject, &error))
            }
        }
    }

    /// Keeps the settings of all that is configured, so that they hold when it
    /// is configured no more.
    pub(crate) async fn remember_all(&self, settings: &Settings) {
        for certificate in &settings.certificates {
            if let Err(failure) = remember(self.parts.store.as_ref(), certificate).await {
                tracing::warn!("{}", failure.in_a_line());
            }
        }
    }

    /// `work` is a pass for these settings. They are kept for `certs renew` once
    /// they have proven good, and before that when there are none.
    pub(crate) async fn remembering(
        &self,
        settings: &CertificateSettings,
        work: impl Future<Output = Result<Outcome, ManageError>>,
    ) -> Result<Done, Failure> {
        let (lineage, store) = (&settings.lineage, self.parts.store.as_ref());
        let failed = |error: &ManageError| Failure::of(lineage.as_str(), error);
        let kept = store.options(lineage).await;
        let kept = kept.map_err(|error| failed(&error.into()))?;
        let settings = &still_imported(settings, kept.as_deref());
        if kept.is_none() {
            remember(store, settings).await?;
        }
        let ended = work.await;
        if let Ok(_) | Err(ManageError::Deploy(_) | ManageError::Verify(_)) = &ended {
            remember(store, settings).await?;
        }
        self.done(settings, ended)
    }

    /// How a pass ended, as it is told.
    pub(crate) fn done(
        &self,
        settings: &CertificateSettings,
        ended: Result<Outcome, ManageError>,
    ) -> Result<Done, Failure> {
        let lineage = &settings.lineage;
        let outcome = ended.map_err(|error| Failure::of(lineage.as_str(), &error))?;
        let path = self.parts.output.live_path(lineage);
        Ok(Done::Passed { outcome, path })
    }

    /// One client for each way of talking to a CA: its nonces and its account
    /// are shared by all certificates that it issues. Rehearsals have others,
    /// whose accounts are forgotten.
    fn shared_issuer(
        &self,
        ca: &CaSettings,
        settings: &CertificateSettings,
        rehearsal: bool,
    ) -> Result<Arc<dyn Issuer>, Failure> {
        let webroot = match &settings.challenge {
            ChallengeSettings::Webroot(path) => Some(path),
            ChallengeSettings::Listen(_) => None,
        };
        let key = serde_json::json!([ca, webroot, rehearsal]).to_string();
        let mut issuers = self.issuers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(issuer) = issuers.get(&key) {
            return Ok(issuer.clone());
        }
        let issuer = self.issuer(ca, settings)?;
        issuers.insert(key, issuer.clone());
        Ok(issuer)
    }

    /// The CA that stands in; a rehearsal has none.
    fn stand_in(
        &self,
        settings: &CertificateSettings,
        rehearsal: bool,
    ) -> Result<Option<StandIn>, Failure> {
        let Some(ca) = settings.fallback.as_ref().filter(|_| !rehearsal) else {
            return Ok(None);
        };
        Ok(Some(StandIn {
            ca: ca.directory.identity().to_owned(),
            issuer: self.shared_issuer(ca, settings, rehearsal)?,
        }))
    }

    fn issuer(
        &self,
        ca: &CaSettings,
        settings: &CertificateSettings,
    ) -> Result<Arc<dyn Issuer>, Failure> {
        let surroundings = |message: String| Failure::usage(message, "see --ca-root and --eab-kid");
        let account = AccountOptions {
            email: ca.email.clone(),
            terms_agreed: ca.agree_tos,
            external: ca.read_binding().map_err(surroundings)?,
        };
        let identity = ca.directory.identity().to_owned();
        let (directory, exchange): (_, Arc<dyn Exchange>) = if ca.directory.is_embedded() {
            let server = self.embedded(settings)?;
            (server.directory_url(), Arc::new(InProcess(server.router())))
        } else {
            let roots = ca.read_root().map_err(surroundings)?;
            let https = Https::new(roots.as_deref()).map_err(surroundings)?;
            (identity.clone(), Arc::new(https))
        };
        let client = Client::new(acme::Options {
            directory,
            account,
            exchange,
            solvers: vec![self.solver(settings)],
            paces: self.paces.clone(),
            clock: self.parts.clock.clone(),
            observer: Arc::new(Watcher::new(identity, &self.parts)),
            preferred_chain: ca.preferred_chain.clone(),
        });
        Ok(Arc::new(client.map_err(surroundings)?))
    }

    fn embedded(&self, settings: &CertificateSettings) -> Result<ca::Server, Failure> {
        let mut opened = self.embedded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = &*opened {
            return Ok(server.clone());
        }
        let answers_at = match &settings.challenge {
            ChallengeSettings::Listen(addresses) => addresses.first().copied(),
            ChallengeSettings::Webroot(_) => None,
        };
        let server = embedded::open(&self.data_dir, answers_at, self.parts.clock.clone())?;
        *opened = Some(server.clone());
        Ok(server)
    }

    fn solver(&self, settings: &CertificateSettings) -> Arc<dyn Solver> {
        match &settings.challenge {
            ChallengeSettings::Webroot(path) => Arc::new(Webroot::new(path.clone())),
            ChallengeSettings::Listen(_) => Arc::new(self.responses.clone()),
        }
    }
}

fn owner(settings: &Settings) -> Result<Owner, Failure> {
    let refused = |message: String| {
        Failure::usage(
            message,
            "name one that exists with [output] owner and group, or its number",
        )
    };
    let (user, group) = (&settings.output.owner, &settings.output.group);
    Ok(Owner {
        user: user
            .as_deref()
            .map(owner::user)
            .transpose()
            .map_err(refused)?,
        group: group
            .as_deref()
            .map(owner::group)
            .transpose()
            .map_err(refused)?,
    })
}

fn maintenance(renew: &RenewSettings) -> Option<Arc<dyn Maintenance>> {
    match (&renew.schedule, renew.deploy) {
        (Some(schedule), DeployWhen::OnSchedule) => Some(Arc::new(schedule.clone())),
        _ => None,
    }
}

/// The directory that is shared with consumers.
pub(crate) fn output_for(settings: &Settings) -> Result<Output, Failure> {
    Ok(Output::new(settings.output.directory.clone()).owned_by(owner(settings)?))
}

/// What a pass is asked for.
pub(crate) fn wanted(settings: &CertificateSettings) -> Wanted {
    Wanted {
        lineage: settings.lineage.clone(),
        identifiers: settings.names.iter().cloned().collect::<BTreeSet<_>>(),
        ca: settings.ca.directory.identity().to_owned(),
        profile: settings.profile.clone(),
        key: settings.key,
        reuse_key: settings.reuse_key,
        partial: settings.partial,
    }
}

/// The listener that must be served while `settings` are worked on. Bound
/// before anything is written: a port that is taken changes nothing.
pub(crate) fn listener(
    call: &Call,
    settings: &Settings,
    responses: &Responses,
) -> Result<Option<Listener>, Failure> {
    let Some(addresses) = settings.http_listen() else {
        return Ok(None);
    };
    let handed = sockets::handed_over(&call.environment)?;
    let bound = if handed.is_empty() {
        bind(&addresses, responses)
    } else {
        Listener::from_sockets(handed, responses.clone())
    };
    let listener = bound.map_err(|error| Failure::usage(error.to_string(), error.hint()))?;
    Ok(Some(listener))
}

fn bind(addresses: &[SocketAddr], responses: &Responses) -> Result<Listener, BindError> {
    if !addresses.is_empty() {
        return Listener::bind(addresses, responses.clone());
    }
    let everywhere = [
        (Ipv4Addr::UNSPECIFIED, 80).into(),
        (Ipv6Addr::UNSPECIFIED, 80).into(),
    ];
    // A machine without IPv6 has only the first.
    Listener::bind(&everywhere, responses.clone()).or_else(|error| {
        if error.is_for_lack_of_ipv6() {
            Listener::bind(&everywhere[..1], responses.clone())
        } else {
            Err(error)
        }
    })
}

/// The settings of one call, or every error of its configuration.
pub(crate) fn settings(call: &Call, purpose: &Purpose) -> Result<Settings, Failure> {
    call.sources
        .settings(purpose)
        .map_err(Failure::configuration)
}

/// Opens the store.
pub(crate) fn open_store(directory: PathBuf) -> Result<FileStore, Failure> {
    FileStore::open(directory).map_err(|error| Failure::of("store", &error.into()))
}

/// Answers challenges until the future is dropped.
pub(crate) async fn serve(listener: Option<Listener>) {
    match listener {
        Some(listener) => listener.serve().await,
        None => std::future::pending().await,
    }
}

/// A command that works on a certificate that was taken over once does not take it
/// from `certs run`; a configuration that names it does.
fn still_imported(settings: &CertificateSettings, kept: Option<&str>) -> CertificateSettings {
    let mut settings = settings.clone();
    let kept = kept.and_then(|json| serde_json::from_str::<CertificateSettings>(json).ok());
    let kept = kept.and_then(|kept| kept.imported);
    settings.imported = settings.imported.or(kept);
    settings
}

/// Keeps the settings that made a certificate, for [`recall`].
async fn remember(store: &dyn Store, settings: &CertificateSettings) -> Result<(), Failure> {
    let lineage = &settings.lineage;
    let failed = |error: StoreError| Failure::of(lineage.as_str(), &error.into());
    let json = serde_json::to_string_pretty(settings)
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    if store.options(lineage).await.map_err(failed)?.as_ref() == Some(&json) {
        return Ok(());
    }
    store.save_options(lineage, &json).await.map_err(failed)
}

/// What is stored of a certificate that is configured no more: its settings,
/// or why they are not to be had.
pub(crate) type Recalled = (Lineage, Result<CertificateSettings, Failure>);

/// Every stored certificate that `configured` does not name, with the settings
/// that made it. One that is damaged holds up no other.
pub(crate) async fn recall(
    sources: &Sources,
    configured: &Settings,
) -> Result<Vec<Recalled>, Failure> {
    let Some(store) = FileStore::existing(configured.data_dir.clone()) else {
        return Ok(Vec::new());
    };
    let lineages = store.list().await;
    let lineages = lineages.map_err(|error| Failure::of("stored certificates", &error.into()))?;
    let named = |lineage: &Lineage| {
        let mut all = configured.certificates.iter();
        all.any(|certificate| certificate.lineage == *lineage)
    };
    let mut recalled = Vec::new();
    for lineage in lineages.into_iter().filter(|lineage| !named(lineage)) {
        let settings = match remembered(&store, &lineage).await {
            Ok(stored) => {
                let settings = sources.remembered(&stored);
                settings.map_err(Failure::configuration)
            }
            Err(error) => Err(Failure::of(lineage.as_str(), &error.into())),
        };
        recalled.push((lineage, settings));
    }
    Ok(recalled)
}

/// Adds the certificates that were taken over from another client and are not
/// configured: whoever takes them over wants them kept. One that cannot be kept is
/// told and holds up no other.
pub(crate) async fn keep_imported(
    sources: &Sources,
    configured: &mut Settings,
) -> Result<(), Failure> {
    let stored = as_stored(configured).await;
    let is_imported = |lineage: &Lineage| {
        let mut all = stored.iter();
        all.any(|one| one.lineage == *lineage && one.imported.is_some())
    };
    let recalled = recall(sources, configured).await?.into_iter();
    for (lineage, settings) in recalled.filter(|(lineage, _)| is_imported(lineage)) {
        match settings {
            Ok(mut settings) => {
                // Another's file is the other's.
                let others = &configured.certificates;
                while let Some((path, whose)) = shared_file(&settings, others.iter()) {
                    tracing::error!(%lineage, "{}: {whose} is written there, and this one is not; hint: put {NAME} into the path", path.display());
                    let leads_there =
                        |spec: &Spec| spec.for_lineage(&lineage).writes().as_ref() == Some(&path);
                    settings.deploy.retain(|spec| !leads_there(spec));
                }
                configured.certificates.push(settings);
            }
            Err(failure) => tracing::error!(%lineage, "it is not kept: {}", failure.in_a_line()),
        }
    }
    Ok(())
}

/// The settings of every stored certificate that `configured` does not name, as they
/// are stored, where that can be read.
pub(crate) async fn as_stored(configured: &Settings) -> Vec<CertificateSettings> {
    let Some(store) = FileStore::existing(configured.data_dir.clone()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for lineage in store.list().await.unwrap_or_default() {
        if let Ok(Remembered::Whole(settings)) = remembered(&store, &lineage).await {
            found.push(*settings);
        }
    }
    let named = |one: &CertificateSettings| {
        let mut all = configured.certificates.iter();
        all.any(|certificate| certificate.lineage == one.lineage)
    };
    found.retain(|one| !named(one));
    found
}

async fn remembered(store: &FileStore, lineage: &Lineage) -> Result<Remembered, StoreError> {
    let corrupt = |what: &str, detail: String| StoreError::Corrupt {
        subject: format!("the stored {what} of {lineage}"),
        detail,
    };
    if let Some(json) = store.options(lineage).await? {
        let settings = serde_json::from_str(&json);
        let settings = settings.map_err(|error| corrupt("options", error.to_string()))?;
        return Ok(Remembered::Whole(Box::new(settings)));
    }
    let record = store.load(lineage).await?;
    let (record, _) = record.ok_or_else(|| corrupt("record", "it is gone".to_owned()))?;
    Ok(Remembered::Record {
        lineage: lineage.clone(),
        names: record.identifiers.into_iter().collect(),
        directory: record.ca.parse::<Directory>().ok(),
        profile: record.profile,
    })
}
