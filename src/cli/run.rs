//! `certs run`: the sidecar. Binds its listeners, starts the supervisor, reports
//! readiness, and then obeys signals until it must stop.

mod drain;
mod following;
mod managed;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use self::drain::Drain;
use self::following::follow;
use self::managed::{AtStart, ManagedCertificates, read_stored, remember_new, with_labels};
use self::worker::Sidecar;
use super::Call;
use super::factory::{Builder, Factory, proxy_to};
use super::kept::{NotKept, keep_stored};
use super::labels::Labels;
use super::listener::{Refused, listeners};
use super::meant;
use super::volume;
use crate::challenge::listen::Listener;
use crate::challenge::protocol::Protocol;
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, Origin, Purpose, Settings};
use crate::control::Control;
use crate::discovery::docker::DockerApi;
use crate::discovery::{Discovery, Listing};
use crate::failure::Failure;
use crate::net::listen::{self, Socket};
use crate::net::systemd::Notifier;
use crate::observe::Board;
use crate::observe::admin::{self, HostNames, Shown};
use crate::sandbox;
use crate::store::Store;
use crate::supervise::{Handle, Supervisor, cron};

/// Between two tries of an address that another program had.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

/// The fleet notices by itself when this machine has gone.
const LEAVING: Duration = Duration::from_secs(2);

/// Keeps every certificate issued, renewed, deployed and verified until SIGTERM.
pub(super) async fn run(call: Call) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let notifier = Arc::new(Notifier::connect(&call.environment));
    let board = Board::default();
    let (configured, labels, mut not_kept, mut settings) = all(&call, &board).await?;
    let mut bound = Bound::new(&call, &settings).await?;
    let known = std::mem::take(&mut not_kept.known);
    let factory = factory(&call, &settings, known, &mut bound)?;
    signals.drain = Drain::new(settings.drain.length());
    let shown = shown(&factory, board, &signals.drain);
    let (mut supervisor, handle) = Supervisor::new(factory.services.clone(), shown.board.clone());
    let mut managed = ManagedCertificates {
        sources: call.sources.clone(),
        at_start: AtStart::of(&configured),
        configured,
        labels,
        factory: factory.clone(),
        board: shown.board.clone(),
        requested: Vec::new(),
        not_kept,
        announced: BTreeSet::new(),
        passed: std::mem::take(&mut bound.passed),
        notifier: notifier.clone(),
        call: &call,
    };
    let started = supervisor.keep(managed.certificates()?).await;
    started.map_err(Failure::on("certs run"))?;
    remember_new(&factory, &settings).await;
    warn_if_empty(&settings);
    let supervising = tokio::spawn(supervisor.run());

    let mut serving = JoinSet::new();
    let listings = discover(&settings, &managed.factory, &mut serving)?;
    let (reload, reloads) = mpsc::channel(1);
    let sidecar = Arc::new(Sidecar {
        reload,
        handle: handle.clone(),
        factory,
        listens: settings.listens().iter().map(|one| one.protocol).collect(),
        board: shown.board.clone(),
    });
    if let Some(fleet) = call.fleet.clone() {
        serving.spawn(follow(fleet, settings.fleet.clone(), sidecar.clone()));
    }
    let clock = sidecar.factory.services.clock.clone();
    bound.serve(&mut serving, sidecar, shown, &notifier);
    // The memory of thousands of settings is for what is kept of them.
    settings.certificates = Vec::new();
    if let Some(schedule) = settings.renew.schedule.clone() {
        serving.spawn(cron::run(schedule, handle.clone(), clock));
    }
    notifier.send(&[NotifyState::Ready]);
    tracing::info!("ready");
    let requests = (listings, reloads);
    let ended = obey(&mut signals, &handle, &mut managed, requests, &mut serving).await;
    notifier.send(&[NotifyState::Stopping]);
    handle.stop().await;
    // The challenge listener serves until the last step in progress has ended.
    let supervised = supervising.await;
    leave(managed.call).await;
    let failed = |error| Failure::unexpected(format!("the supervisor failed: {error}"));
    ended.and(supervised.map_err(failed))
}

/// The certificates that are configured and kept of the store, the labels of containers, what is
/// not kept of the store, and the certificates with those of the labels.
type All = (Settings, Labels, NotKept, Settings);

async fn all(call: &Call, board: &Board) -> Result<All, Failure> {
    let mut configured = call.sources.settings(&Purpose::All)?;
    let stored = read_stored(&configured.data_dir, board)?;
    meant::relate(&call.sources, &mut configured, &stored);
    let labels = Labels::open(&configured.data_dir)?;
    let not_kept = keep_stored(&call.sources, &mut configured, &labels, stored).await?;
    let mut settings = with_labels(&call.sources, &configured, &labels);
    settings.gives_up_root = sandbox::gives_up_root(&settings);
    Ok((configured, labels, not_kept, settings))
}

/// Another machine of the fleet does the scheduled work from now on.
async fn leave(call: &Call) {
    if let Some(fleet) = &call.fleet {
        let _ = timeout(LEAVING, fleet.leave()).await;
    }
}

/// What the admin endpoints show of a process that has just begun.
fn shown(factory: &Factory, board: Board, drain: &Drain) -> Shown {
    Shown {
        board,
        metrics: factory.services.metrics.clone(),
        process: Some(drain.check(factory.sandbox.check())),
    }
}

fn warn_if_empty(settings: &Settings) {
    if settings.certificates.is_empty() && settings.docker.is_none() {
        tracing::warn!(
            "no certificate is configured: set CERTS_DOMAINS, or add [[certificate]] to the configuration and send SIGHUP"
        );
    }
}

/// What the configuration needs must work. A stored certificate, or one of a label, does not
/// stop the others.
fn check_listener(refused: &Refused, settings: &Settings) -> Result<(), Failure> {
    let default = settings.default_challenge();
    let default = default.and_then(|challenge| refused.of(&challenge.listens()));
    if let Some(cause) = default {
        return Err(Failure::usage(cause.why, cause.hint));
    }
    let all = settings.certificates.iter();
    let configured = all.filter(|one| one.origin == Some(Origin::Configuration));
    let failed = configured.filter_map(|one| refused.failure([one])).next();
    failed
        .or_else(|| refused.failure(&settings.certificates))
        .map_or(Ok(()), Err)
}

/// All listeners, bound before the sandbox, which denies new ones.
struct Bound {
    store: Arc<dyn Store>,
    responses: Responses,
    challenges: Vec<Listener>,
    refused: Refused,
    passed: Vec<Protocol>,
    admin: Option<TcpListener>,
    hosts: HostNames,
    control: Control,
}

impl Bound {
    async fn new(call: &Call, settings: &Settings) -> Result<Self, Failure> {
        let responses = Responses::default();
        let bound = listeners(call, &settings.listens(), &responses).await?;
        check_listener(&bound.refused, settings)?;
        bound.refused.at_start();
        let admin = bind_admin(settings.admin_listen).await?;
        let at = admin.as_ref().and_then(|admin| admin.local_addr().ok());
        let at = at.unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
        let hosts = HostNames::new(at, &settings.admin_hosts);
        let store = call.store(settings)?;
        if let Some(fleet) = &call.fleet {
            responses.share_through(fleet.clone());
        }
        if let Some(warning) = volume::warning(&settings.data_dir) {
            tracing::warn!("{warning}");
        }
        let control = Control::bind(&settings.data_dir).await?;
        Ok(Self {
            store,
            responses,
            challenges: bound.listeners,
            refused: bound.refused,
            passed: bound.passed,
            admin,
            hosts,
            control,
        })
    }

    /// Serves on all listeners.
    fn serve(
        self,
        serving: &mut JoinSet<()>,
        sidecar: Arc<Sidecar>,
        shown: Shown,
        notifier: &Arc<Notifier>,
    ) {
        for listener in self.challenges {
            serving.spawn(counted(listener, &sidecar.factory).serve());
        }
        if let Some(listener) = self.admin {
            let router = admin::router(shown, self.hosts);
            let socket = Socket::Tcp(listener);
            serving.spawn(listen::serve_within(admin::LIMITS, socket, None, router));
        }
        let handle = sidecar.handle.clone();
        serving.spawn(self.control.serve(sidecar));
        if let Some(every) = sd_notify::watchdog_enabled() {
            serving.spawn(feed_watchdog(handle, notifier.clone(), every / 2));
        }
    }
}

/// Builds the services and sandboxes this process.
fn factory(
    call: &Call,
    settings: &Settings,
    not_kept: Vec<CertificateSettings>,
    bound: &mut Bound,
) -> Result<Arc<Factory>, Failure> {
    let (store, responses) = (bound.store.clone(), bound.responses.clone());
    let mut factory = Factory::new(call, settings, store, responses)?;
    factory.refused = std::mem::take(&mut bound.refused);
    factory.services.output.prepare();
    let mut builder = Builder::new(&factory);
    for certificate in &settings.certificates {
        // While this process may give files to their readers; an error is reported later.
        let _ = builder.open_published(certificate);
    }
    // After the listeners: sockets from the service manager are ours by now.
    let known = distinct(settings, not_kept);
    announce_proxies(&known);
    factory.prepare_issuers(&known);
    factory.confine(sandbox::confine(&call.surroundings(), settings, &known)?);
    Ok(Arc::new(factory))
}

/// `settings` with the stored certificates that are not kept. Of those with the same settings
/// one is enough, unless a path may have their names in it.
fn distinct(settings: &Settings, not_kept: Vec<CertificateSettings>) -> Settings {
    let mut known = Settings {
        certificates: Vec::new(),
        ..settings.clone()
    };
    let mut seen = BTreeSet::new();
    let all = settings.certificates.iter().chain(&not_kept);
    let distinct = all.filter(|one| {
        let is_new = seen.insert(Arc::as_ptr(&one.shared));
        is_new || !one.deploy.is_empty()
    });
    known.certificates = distinct.cloned().collect();
    known
}

/// Says through which proxy each CA is reached.
fn announce_proxies(known: &Settings) {
    let cas = known.certificates.iter();
    let cas = cas.flat_map(|one| [Some(&one.ca), one.fallback.as_ref()]);
    let ways = cas.flatten().filter_map(|ca| {
        let proxy = proxy_to(ca, &known.proxies).ok()?;
        Some((ca.directory.short_name(), proxy))
    });
    for (ca, proxy) in ways.collect::<BTreeMap<_, _>>() {
        if let Some(proxy) = proxy {
            tracing::info!("{ca} is reached through the proxy {proxy}");
        }
    }
}

/// Starts the discovery of containers, if it is configured.
fn discover(
    settings: &Settings,
    factory: &Factory,
    serving: &mut JoinSet<()>,
) -> Result<Option<watch::Receiver<Listing>>, Failure> {
    let Some(docker) = &settings.docker else {
        return Ok(None);
    };
    let resolver = &factory.services.resolver;
    let daemon = DockerApi::new(&docker.host, resolver, docker.accept_raw_socket);
    let daemon = daemon.map_err(|error| {
        Failure::usage(error, "set --docker-host tcp://HOST:2375 or unix:///PATH")
    })?;
    let (discovery, listings) =
        Discovery::new(Arc::new(daemon.through(factory.sandbox.docker_relay())));
    serving.spawn(discovery.run());
    Ok(Some(listings))
}

/// What changes the certificates while the process runs: containers and commands.
type Requests = (
    Option<watch::Receiver<Listing>>,
    mpsc::Receiver<oneshot::Sender<()>>,
);

async fn reload(managed: &mut ManagedCertificates<'_>, handle: &Handle) {
    match managed.reload().await {
        Ok(certificates) => {
            tracing::info!(
                certificates = certificates.len(),
                "the configuration was reloaded"
            );
            handle.replace(certificates).await;
        }
        Err(failure) => {
            tracing::error!("the old configuration stays: {}", failure.in_a_line());
        }
    }
}

/// Tries the addresses again that another program had at the start.
async fn retry_refused(
    managed: &mut ManagedCertificates<'_>,
    handle: &Handle,
    serving: &mut JoinSet<()>,
) {
    let (listeners, is_new) = managed.factory.retry_refused().await;
    for listener in listeners {
        serving.spawn(counted(listener, &managed.factory).serve());
    }
    if is_new {
        match managed.restock().await {
            Ok(certificates) => handle.update(certificates).await,
            Err(failure) => tracing::error!("{}", failure.in_a_line()),
        }
    }
}

/// The listener, whose requests are counted in the metrics.
fn counted(listener: Listener, factory: &Factory) -> Listener {
    let metrics = factory.services.metrics.clone();
    listener.counted_by(Arc::new(move |result| metrics.challenge_request(result)))
}

async fn obey(
    signals: &mut Signals,
    handle: &Handle,
    managed: &mut ManagedCertificates<'_>,
    (mut listings, mut reloads): Requests,
    serving: &mut JoinSet<()>,
) -> Result<(), Failure> {
    // Outside of the loop: each event would put it off.
    let mut again = interval_at(Instant::now() + REFUSED_AGAIN, REFUSED_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => if !signals.drain.begin(managed, serving) {
                return Ok(());
            },
            () = signals.drain.ended() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    managed.notifier.send(&[NotifyState::Reloading, now]);
                }
                retry_refused(managed, handle, serving).await;
                reload(managed, handle).await;
                managed.notifier.send(&[NotifyState::Ready]);
            }
            Some(reply) = reloads.recv() => {
                match managed.restock().await {
                    Ok(certificates) => handle.update(certificates).await,
                    Err(failure) => tracing::error!("{}", failure.in_a_line()),
                }
                // The caller may have gone.
                let _ = reply.send(());
            }
            _ = again.tick(), if !managed.factory.refused.is_empty() => {
                retry_refused(managed, handle, serving).await;
            }
            listing = newest(&mut listings) => {
                if let Some(certificates) = managed.listed(&listing).await {
                    handle.update(certificates).await;
                }
            }
            _ = serving.join_next() => {
                return Err(Failure::unexpected("a listener stopped"));
            }
        }
    }
}

/// The next whole list of containers; waits forever without discovery.
async fn newest(listings: &mut Option<watch::Receiver<Listing>>) -> Listing {
    if let Some(listings) = listings
        && listings.changed().await.is_ok()
    {
        return listings.borrow_and_update().clone();
    }
    std::future::pending().await
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    /// What follows the first of `terminate`.
    drain: Drain,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::unexpected(format!("signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            drain: Drain::default(),
        })
    }
}

async fn bind_admin(address: Option<SocketAddr>) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = address else {
        return Ok(None);
    };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|error| {
        Failure::usage(
            format!("cannot listen on {address} for the admin endpoints: {error}"),
            "set another address with [admin] listen or CERTS_ADMIN_LISTEN, or `off`",
        )
    })
}

/// Notifies the service manager that the supervisor's loop runs, so that a hanging
/// process is restarted.
async fn feed_watchdog(handle: Handle, notifier: Arc<Notifier>, every: Duration) {
    while handle.ping().await {
        notifier.send(&[NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}
