//! `certs run`: the sidecar. Binds what it serves, takes the certificates over,
//! says that it is ready, and then obeys signals until it is told to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::Call;
use super::labels::Labels;
use super::output::Failure;
use super::parts::{Factory, keep_imported, listener, open_store, settings};
use super::volume;
use crate::challenge::responses::Responses;
use crate::config::{CertificateSettings, ChallengeSettings, Purpose, Settings, Sources};
use crate::control::Control;
use crate::discovery::docker::Docker;
use crate::discovery::{Follower, Listing};
use crate::manage::Certificate;
use crate::manage::schedule;
use crate::observe::Board;
use crate::observe::admin::{self, Shown};
use crate::sandbox;
use crate::supervise::{Handle, Supervisor};

/// Keeps every certificate issued, renewed, deployed and proven until SIGTERM.
pub(super) async fn run(call: Call) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut configured = settings(&call, &Purpose::All)?;
    keep_imported(&call.sources, &mut configured).await?;
    let labels = Labels::open(&configured.data_dir);
    let settings = with_labels(&call.sources, &configured, &labels);
    let responses = Responses::default();
    let handed = call.environment.contains_key("LISTEN_FDS");
    let listener = listener(&call, &settings, &responses)?;
    let admin = bind_admin(settings.admin_listen).await?;
    let store = Arc::new(open_store(settings.data_dir.clone())?);
    if let Some(why) = volume::is_lost(&settings.data_dir) {
        tracing::warn!("{why}");
    }
    let control = Control::bind(&settings.data_dir).await?;
    let factory = Factory::new(&call, &settings, store, responses)?;
    factory.parts.output.prepare();
    // Those that a service manager handed over are ours alone by now.
    let reach = sandbox::confine(&call, &settings).await?;
    let factory = Arc::new(factory.within(reach));
    let shown = Shown {
        metrics: factory.parts.metrics.clone(),
        ..Shown::default()
    };
    let (mut supervisor, handle) = Supervisor::new(factory.parts.clone(), shown.board.clone());
    let mut keeping = Keeping {
        sources: call.sources.clone(),
        at_start: configured.clone(),
        configured,
        labels,
        factory: factory.clone(),
        board: shown.board.clone(),
        asked: Vec::new(),
        handed,
        call: &call,
    };
    let kept = supervisor.keep(keeping.certificates()?).await;
    kept.map_err(|error| Failure::of("certs run", &error))?;
    factory.remember_all(&settings).await;
    if settings.certificates.is_empty() && settings.docker.is_none() {
        tracing::warn!(
            "no certificate is configured: set CERTS_DOMAINS, or add [[certificate]] to the configuration and send SIGHUP"
        );
    }
    let supervising = tokio::spawn(supervisor.run());

    let mut serving = JoinSet::new();
    let listings = follow(&settings, &mut serving)?;
    if let Some(listener) = listener {
        let metrics = factory.parts.metrics.clone();
        let tally = Arc::new(move |result| metrics.challenge_request(result));
        serving.spawn(listener.counted_by(tally).serve());
    }
    if let Some(admin) = admin {
        serving.spawn(async move {
            if let Err(error) = axum::serve(admin, admin::router(shown)).await {
                tracing::error!("the admin listener has failed: {error}");
            }
        });
    }
    let listens = settings.http_listen().is_some();
    serving.spawn(control.serve(handle.clone(), factory.clone(), listens));
    if let Some(every) = sd_notify::watchdog_enabled() {
        serving.spawn(feed_watchdog(handle.clone(), every / 2));
    }
    let cron = match &settings.renew.schedule {
        Some(schedule) => Some(schedule::start(schedule, handle.clone()).await.map_err(
            |error| Failure::unexpected(format!("the schedule could not be started: {error}")),
        )?),
        None => None,
    };
    notify(&[NotifyState::Ready]);
    tracing::info!("ready");
    let ended = obey(&mut signals, &handle, &mut keeping, listings, &mut serving).await;
    notify(&[NotifyState::Stopping]);
    handle.stop().await;
    // Answers on port 80 are given until the last step under way has ended.
    let ended = ended.and(finished(supervising).await);
    if let Some(mut cron) = cron
        && let Err(error) = cron.shutdown().await
    {
        tracing::debug!("the schedule did not end cleanly: {error}");
    }
    ended
}

/// What is configured, and what containers ask for beside it.
struct Keeping<'a> {
    call: &'a Call,
    sources: Sources,
    at_start: Settings,
    configured: Settings,
    labels: Labels,
    factory: Arc<Factory>,
    board: Board,
    /// What containers asked for when it was managed last.
    asked: Vec<CertificateSettings>,
    handed: bool,
}

impl Keeping<'_> {
    /// The configuration as it is now; the old one stays when it is wrong.
    async fn reload(&mut self) -> Result<Vec<Certificate>, Failure> {
        let sources = Sources::read(&self.call.options, &self.call.environment);
        let read = sources.settings(&Purpose::All);
        let mut read = read.map_err(|problems| {
            let failure = Failure::configuration(problems);
            self.factory.reach.behind(failure, &sources.files())
        })?;
        keep_imported(&sources, &mut read).await?;
        if !self.handed && !covers(self.at_start.http_listen(), read.http_listen()) {
            let message = "where challenges are answered changes with a restart only";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&self.at_start, &read) {
            tracing::warn!(
                "listeners, directories, the schedule and the Docker host change with a restart only"
            );
        }
        if read.docker.is_none() {
            // Whoever asked by a label is not dropped without a word.
            read.docker.clone_from(&self.configured.docker);
        }
        // Before anything is taken over: a wrong one is refused whole.
        certificates(&self.factory, &read)?;
        (self.sources, self.configured) = (sources, read);
        let certificates = self.certificates()?;
        self.remember().await;
        Ok(certificates)
    }

    /// What a whole list of containers asks for; `None` when that is as before.
    async fn listed(&mut self, listing: &Listing) -> Option<Vec<Certificate>> {
        let now = self.factory.parts.clock.now();
        if !self
            .labels
            .take(listing, &self.sources, &self.configured, now)
        {
            return None;
        }
        let asked = self.labels.certificates(&self.sources, &self.configured);
        if asked == self.asked {
            // Another asks for it, or nobody for a moment: it is renewed as before.
            self.board.ask(self.labels.asked());
            return None;
        }
        match self.certificates() {
            Ok(certificates) => {
                self.remember().await;
                Some(certificates)
            }
            Err(failure) => {
                tracing::error!("what was asked for before stays: {}", failure.in_a_line());
                None
            }
        }
    }

    /// All of them. One that a label asks for and cannot be had holds up no other.
    fn certificates(&mut self) -> Result<Vec<Certificate>, Failure> {
        let mut all = certificates(&self.factory, &self.configured)?;
        self.asked = self.labels.certificates(&self.sources, &self.configured);
        for settings in &self.asked {
            match self.factory.certificate(settings) {
                Ok(certificate) => all.push(certificate),
                Err(failure) => {
                    tracing::error!("{}: {}", settings.lineage, failure.in_a_line());
                }
            }
        }
        self.board.ask(self.labels.asked());
        Ok(all)
    }

    async fn remember(&self) {
        let settings = with_labels(&self.sources, &self.configured, &self.labels);
        self.factory.remember_all(&settings).await;
    }
}

fn with_labels(sources: &Sources, configured: &Settings, labels: &Labels) -> Settings {
    let mut settings = configured.clone();
    let asked = labels.certificates(sources, configured);
    settings.certificates.extend(asked);
    settings
}

/// Follows the containers, where that is wanted.
fn follow(
    settings: &Settings,
    serving: &mut JoinSet<()>,
) -> Result<Option<watch::Receiver<Listing>>, Failure> {
    let Some(docker) = &settings.docker else {
        return Ok(None);
    };
    let daemon = Docker::new(&docker.host, docker.accept_raw_socket);
    let daemon = daemon.map_err(|error| {
        Failure::usage(error, "give --docker-host tcp://HOST:2375 or unix:///PATH")
    })?;
    let (follower, listings) = Follower::new(Arc::new(daemon));
    serving.spawn(follower.follow());
    Ok(Some(listings))
}

/// Whether what is listened to since the start is all that is needed now.
fn covers(bound: Option<Vec<SocketAddr>>, needed: Option<Vec<SocketAddr>>) -> bool {
    match (bound, needed) {
        (_, None) => true,
        (None, Some(_)) => false,
        // None at all stands for port 80 of every address.
        (Some(bound), Some(needed)) if bound.is_empty() || needed.is_empty() => bound == needed,
        (Some(bound), Some(needed)) => needed.iter().all(|address| bound.contains(address)),
    }
}

/// Whether all but the certificates is as it was.
fn same_process(one: &Settings, other: &Settings) -> bool {
    let fixed = |settings: &Settings| {
        let mut fixed = settings.clone();
        fixed.certificates.clear();
        if let Some(docker) = &mut fixed.docker {
            // What may be asked for is read with every list.
            (docker.grace, docker.limit) = Default::default();
            docker.allow.clear();
            docker.deploy.clear();
        }
        fixed.challenge = ChallengeSettings::Listen(Vec::new());
        fixed
    };
    fixed(one) == fixed(other)
}

fn certificates(factory: &Factory, settings: &Settings) -> Result<Vec<Certificate>, Failure> {
    let wanted = settings.certificates.iter();
    wanted
        .map(|settings| factory.certificate(settings))
        .collect()
}

async fn finished(supervising: JoinHandle<()>) -> Result<(), Failure> {
    supervising
        .await
        .map_err(|error| Failure::unexpected(format!("the supervisor has failed: {error}")))
}

async fn obey(
    signals: &mut Signals,
    handle: &Handle,
    keeping: &mut Keeping<'_>,
    mut listings: Option<watch::Receiver<Listing>>,
    serving: &mut JoinSet<()>,
) -> Result<(), Failure> {
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => {
                if let Ok(now) = NotifyState::monotonic_usec_now() {
                    notify(&[NotifyState::Reloading, now]);
                }
                match keeping.reload().await {
                    Ok(certificates) => {
                        tracing::info!(certificates = certificates.len(), "the configuration was read again");
                        handle.replace(certificates).await;
                    }
                    Err(failure) => {
                        tracing::error!("the old configuration stays: {}", failure.in_a_line());
                    }
                }
                notify(&[NotifyState::Ready]);
            }
            listing = newest(&mut listings) => {
                if let Some(certificates) = keeping.listed(&listing).await {
                    handle.replace(certificates).await;
                }
            }
            _ = serving.join_next() => {
                return Err(Failure::unexpected("a listener has stopped".into()));
            }
        }
    }
}

/// The next whole list of containers; never, where nobody follows them.
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
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::unexpected(format!("signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
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
            "give another address with [admin] listen or CERTS_ADMIN_LISTEN, or `off`",
        )
    })
}

/// Tells the service manager that the supervisor's loop turns; a loop that does
/// not is restarted.
async fn feed_watchdog(handle: Handle, every: Duration) {
    while handle.ping().await {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(every).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
