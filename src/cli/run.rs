//! `certs run`: the sidecar. Binds what it serves, takes the certificates over,
//! says that it is ready, and then obeys signals until it is told to end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};

use super::Call;
use super::control::Control;
use super::harden;
use super::output::Failure;
use super::parts::{Factory, keep_imported, listener, open_store, settings};
use crate::challenge::responses::Responses;
use crate::config::{ChallengeSettings, Purpose, Settings, Sources};
use crate::manage::Certificate;
use crate::manage::schedule;
use crate::manage::supervise::{Handle, Supervisor};
use crate::observe::admin::{self, Shown};

/// Keeps every certificate issued, renewed, deployed and proven until SIGTERM.
pub(super) async fn run(call: Call) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut settings = settings(&call, &Purpose::All)?;
    keep_imported(&call, &mut settings).await?;
    let responses = Responses::default();
    let handed = call.environment.contains_key("LISTEN_FDS");
    let listener = listener(&call, &settings, &responses)?;
    let admin = bind_admin(settings.admin_listen).await?;
    let store = Arc::new(open_store(settings.data_dir.clone())?);
    let control = Control::bind(&settings.data_dir).await?;
    let factory = Factory::new(&call, &settings, store, responses)?;
    factory.parts.output.prepare();
    // Those that a service manager handed over are ours alone by now.
    let reach = harden::confine(&call, &settings).await?;
    let factory = Arc::new(factory.within(reach));
    let shown = Shown {
        metrics: factory.parts.metrics.clone(),
        ..Shown::default()
    };
    let (mut supervisor, handle) = Supervisor::new(factory.parts.clone(), shown.board.clone());
    let kept = supervisor.keep(certificates(&factory, &settings)?).await;
    kept.map_err(|error| Failure::of("certs run", &error))?;
    factory.remember_all(&settings).await;
    if settings.certificates.is_empty() {
        tracing::warn!(
            "no certificate is configured: set CERTS_DOMAINS, or add [[certificate]] to the configuration and send SIGHUP"
        );
    }
    let supervising = tokio::spawn(supervisor.run());

    let mut serving = JoinSet::new();
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
    let reload = async || {
        let sources = Sources::read(&call.options, &call.environment);
        let read = sources.settings(&Purpose::All);
        let mut read = read.map_err(|problems| {
            let failure = Failure::configuration(problems);
            factory.reach.behind(failure, &sources.files())
        })?;
        keep_imported(&call, &mut read).await?;
        if !handed && !covers(settings.http_listen(), read.http_listen()) {
            let message = "where challenges are answered changes with a restart only";
            return Err(Failure::usage(message, "restart certs run"));
        }
        if !same_process(&settings, &read) {
            tracing::warn!("listeners, directories and the schedule change with a restart only");
        }
        let certificates = certificates(&factory, &read)?;
        factory.remember_all(&read).await;
        Ok(certificates)
    };
    let ended = obey(&mut signals, &handle, reload, &mut serving).await;
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
    reload: impl AsyncFn() -> Result<Vec<Certificate>, Failure>,
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
                match reload().await {
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
            _ = serving.join_next() => {
                return Err(Failure::unexpected("a listener has stopped".into()));
            }
        }
    }
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
