//! A demonstration on loopback: an embedded CA issues, a server terminates TLS,
//! clients send requests all the time while certificates are renewed, and a
//! scoreboard shows the result. It needs no network, no root and no configuration,
//! and leaves no file behind.

mod front;
mod load;
mod nginx;
mod score;
mod setup;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::load::{CLIENTS, Load};
pub(crate) use self::nginx::find as find_nginx;
use self::score::{DemoScore, LEAST_RENEWALS};
use self::setup::{Setup, WINDOW_OPENS_AFTER};
use self::tally::Swap;
use crate::failure::Failure;
use crate::files;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::observe::{Board, Status};
use crate::random::{Random, SystemRandom};
use crate::record::Generation;
use crate::supervise::Supervisor;

/// The deadline for all renewals.
const DEADLINE: Duration = Duration::from_secs(50);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// The load continues after the last swap, to catch its effects.
const AFTERWARDS: Duration = Duration::from_millis(700);
const SHUTDOWN: Duration = Duration::from_secs(2);
/// A port of it that the system chooses.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A name that clients request.
#[derive(Clone, Debug)]
struct Site {
    lineage: Lineage,
    name: Identifier,
    /// The directory of its pair.
    live: PathBuf,
}

/// Runs the demonstration, with nginx if `program` is given.
pub(crate) fn demo(
    log: &Log<'_>,
    environment: &BTreeMap<String, String>,
    program: Option<&Path>,
) -> Result<DemoScore, Failure> {
    let scratch = Scratch::make(environment)?;
    // Two threads: real clients do not share the server's thread.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    let performed = runtime.block_on(until_interrupted(perform(log, &scratch.0, program)));
    // Before the directory is removed: no task may write to it afterwards.
    runtime.shutdown_timeout(SHUTDOWN);
    performed
}

async fn until_interrupted(
    perform: impl Future<Output = Result<DemoScore, Failure>>,
) -> Result<DemoScore, Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::unexpected(format!("signals: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let interrupted = || Failure::unexpected("interrupted; nothing was left behind".to_owned());
    tokio::select! {
        performed = perform => performed,
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
    }
}

async fn perform(
    log: &Log<'_>,
    directory: &Path,
    program: Option<&Path>,
) -> Result<DemoScore, Failure> {
    let with = if program.is_some() { "nginx" } else { "front" };
    let setup = Setup::new(directory, program).await?;
    log.say(&format!(
        "until the end, all files are in {}",
        directory.display()
    ));
    log.say(&format!(
        "an embedded CA signs for 90 days and suggests renewal after {} s",
        WINDOW_OPENS_AFTER.as_secs()
    ));
    let server = program.unwrap_or(Path::new("our own listener")).display();
    log.say(&format!("{server} terminates TLS on {}", setup.address));
    let board = Board::default();
    let (mut supervisor, handle) = Supervisor::new(setup.services.clone(), board.clone());
    let started = supervisor.keep(setup.certificates.clone()).await;
    started.map_err(Failure::on("certs demo"))?;
    // Aborted if this future is dropped.
    let mut supervising = JoinSet::new();
    supervising.spawn(supervisor.run());
    watch(log, &setup, &board).await;
    handle.stop().await;
    while supervising.join_next().await.is_some() {}
    let took = log.begun.elapsed();
    Ok(DemoScore::of(
        with,
        setup.tally.counts(),
        &board.all(),
        took,
    ))
}

/// Starts the clients once all certificates are verified, and logs the swaps
/// until every certificate was renewed often enough.
async fn watch(log: &Log<'_>, setup: &Setup, board: &Board) {
    let mut load = None;
    let (mut logged, mut last_error) = (BTreeSet::new(), None);
    while log.begun.elapsed() < DEADLINE {
        let (statuses, swaps) = (board.all(), setup.tally.counts().swaps);
        log_swaps(log, &statuses, &swaps, &mut logged);
        let error = statuses.iter().find_map(|status| status.last_error.clone());
        if error.is_some() && error != last_error {
            log.say(error.as_deref().unwrap_or_default());
        }
        last_error = error;
        if load.is_none() && statuses.iter().all(|status| verified(status, 1)) {
            log.say(&format!("{CLIENTS} clients start sending requests"));
            let (dialer, sites, policy) = (&setup.dialer, &setup.sites, setup.idle_policy);
            let tally = &setup.tally;
            load = Some(Load::start(dialer, setup.address, sites, policy, tally));
        }
        let is_renewed = |status: &Status| {
            let all = logged.range((status.name.clone(), Generation(2))..);
            all.filter(|(of, _)| *of == status.name).count() >= LEAST_RENEWALS
        };
        if statuses.iter().all(is_renewed) {
            break;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    tokio::time::sleep(AFTERWARDS).await;
    if let Some(load) = load {
        load.stop().await;
    }
}

fn verified(status: &Status, least: u64) -> bool {
    status.generation_served >= Some(Generation(least))
}

/// Logs each swap once, after it is verified and a client has seen it.
fn log_swaps(
    log: &Log<'_>,
    statuses: &[Status],
    swaps: &[Swap],
    logged: &mut BTreeSet<(Lineage, Generation)>,
) {
    for swap in swaps {
        let status = statuses.iter().find(|status| status.name == swap.lineage);
        let is_verified = status.is_some_and(|status| verified(status, swap.generation.0));
        let is_seen = swap.generation == Generation(1) || swap.seen_after.is_some();
        if is_verified && is_seen && logged.insert((swap.lineage.clone(), swap.generation)) {
            log.say(&line(swap));
        }
    }
}

fn line(swap: &Swap) -> String {
    let lineage = swap.lineage.as_str();
    match swap.seen_after.filter(|_| swap.generation > Generation(1)) {
        None => format!("{lineage:<17} issued, deployed, verified"),
        Some(after) => format!(
            "{lineage:<17} renewed to {}, verified; seen by clients in {:.1} ms",
            swap.generation,
            after.as_secs_f64() * 1000.0,
        ),
    }
}

/// Writes the events, each with the seconds since the start.
pub(crate) struct Log<'a> {
    write: Box<dyn Fn(&str) + 'a>,
    begun: Instant,
}

impl<'a> Log<'a> {
    /// A log whose lines go to `write`.
    pub(crate) fn new(write: impl Fn(&str) + 'a) -> Self {
        Self {
            write: Box::new(write),
            begun: Instant::now(),
        }
    }

    fn say(&self, line: &str) {
        let seconds = self.begun.elapsed().as_secs_f64();
        (self.write)(&format!("{seconds:5.1} s  {line}\n"));
    }

    /// Writes the blank line before the scoreboard.
    pub(crate) fn end(&self) {
        (self.write)("\n");
    }
}

/// A directory of our own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(environment: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let base = environment.get("TMPDIR").filter(|path| !path.is_empty());
        let base = base.map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let path = base.join(format!("certs-demo-{:016x}", SystemRandom.below(u64::MAX)));
        let refused = |error: std::io::Error| {
            Failure::usage(
                format!("{}: {error}", path.display()),
                "set TMPDIR to a writable directory",
            )
        };
        files::new_directory(&path, 0o700).map_err(refused)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            let path = self.0.display();
            let _ = writeln!(std::io::stderr(), "warning: cannot remove {path}: {error}");
        }
    }
}
