//! The whole story on loopback. An embedded CA issues, a server
//! serves, clients ask without a pause, certificates are renewed below them;
//! then what that proved. It needs no network, no root and no configuration,
//! and leaves nothing behind.

mod load;
mod nginx;
mod page;
mod score;
mod site;
mod stage;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::load::{CLIENTS, Load};
pub(crate) use self::nginx::find as find_nginx;
use self::score::{LEAST_RENEWALS, Score};
use self::stage::{Stage, WINDOW_OPENS_AFTER};
use self::tally::Swap;
use crate::failure::Failure;
use crate::files;
use crate::identifier::Lineage;
use crate::observe::{Board, Status};
use crate::random::{Random, SystemRandom};
use crate::record::Generation;
use crate::supervise::Supervisor;

/// A run that has not seen its renewals by then has failed.
const PATIENCE: Duration = Duration::from_secs(50);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// The load goes on for a while after the last swap: its effects would show.
const AFTERWARDS: Duration = Duration::from_millis(700);
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Plays it, with nginx when `program` is given, and says what it proved.
pub(crate) fn demo(
    narrator: &Narrator<'_>,
    environment: &BTreeMap<String, String>,
    program: Option<&Path>,
) -> Result<Score, Failure> {
    let scratch = Scratch::make(environment)?;
    // Two threads, as the clients would not be on the server's machine.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::unexpected(error.to_string()))?;
    let played = runtime.block_on(until_interrupted(play(narrator, &scratch.0, program)));
    // Before the directory goes: nothing may write into it any more.
    runtime.shutdown_timeout(SHUTDOWN);
    played
}

async fn until_interrupted(
    play: impl Future<Output = Result<Score, Failure>>,
) -> Result<Score, Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::unexpected(format!("signals: {error}")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let interrupted = || Failure::unexpected("interrupted; nothing was left behind".to_owned());
    tokio::select! {
        played = play => played,
        _ = interrupt.recv() => Err(interrupted()),
        _ = terminate.recv() => Err(interrupted()),
    }
}

async fn play(
    narrator: &Narrator<'_>,
    directory: &Path,
    program: Option<&Path>,
) -> Result<Score, Failure> {
    let with = if program.is_some() { "nginx" } else { "front" };
    let stage = Stage::set(directory, program).await?;
    narrator.say(&format!("everything is below {}", directory.display()));
    narrator.say(&format!(
        "an embedded CA signs for 90 days, and asks for renewals after {} s",
        WINDOW_OPENS_AFTER.as_secs()
    ));
    let server = program.map_or("our own listener".into(), |program| {
        program.display().to_string()
    });
    narrator.say(&format!("{server} terminates TLS on {}", stage.address));
    let board = Board::default();
    let (mut supervisor, handle) = Supervisor::new(stage.services.clone(), board.clone());
    let kept = supervisor.keep(stage.certificates.clone()).await;
    kept.map_err(|error| Failure::of("certs demo", &error))?;
    // Ends with this future, however it ends.
    let mut supervising = JoinSet::new();
    supervising.spawn(supervisor.run());
    watch(narrator, &stage, &board).await;
    handle.stop().await;
    while supervising.join_next().await.is_some() {}
    Ok(Score::of(
        with,
        stage.tally.counts(),
        &board.all(),
        narrator.begun.elapsed(),
    ))
}

/// Sets the clients to work once everything is served, and tells what happens
/// until every certificate was renewed often enough.
async fn watch(narrator: &Narrator<'_>, stage: &Stage, board: &Board) {
    let mut load = None;
    let (mut told, mut last_error) = (BTreeSet::new(), None);
    while narrator.begun.elapsed() < PATIENCE {
        let (statuses, swaps) = (board.all(), stage.tally.counts().swaps);
        tell_swaps(narrator, &statuses, &swaps, &mut told);
        let error = statuses.iter().find_map(|status| status.last_error.clone());
        if error.is_some() && error != last_error {
            narrator.say(error.as_deref().unwrap_or_default());
        }
        last_error = error;
        if load.is_none() && statuses.iter().all(|status| proven(status, 1)) {
            narrator.say(&format!("{CLIENTS} clients begin to ask, and do not pause"));
            let (dialer, sites) = (&stage.dialer, &stage.sites);
            load = Some(Load::start(
                dialer,
                stage.address,
                sites,
                stage.manners,
                &stage.tally,
            ));
        }
        let renewed = |status: &Status| {
            let (name, all) = (
                &status.name,
                told.range((status.name.clone(), Generation(2))..),
            );
            all.filter(|(of, _)| of == name).count()
        };
        if statuses
            .iter()
            .all(|status| renewed(status) >= LEAST_RENEWALS)
        {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    tokio::time::sleep(AFTERWARDS).await;
    if let Some(load) = load {
        load.stop().await;
    }
}

fn proven(status: &Status, least: u64) -> bool {
    status.generation_served >= Some(Generation(least))
}

/// Tells of each swap that is verified and was seen by a client, once.
fn tell_swaps(
    narrator: &Narrator<'_>,
    statuses: &[Status],
    swaps: &[Swap],
    told: &mut BTreeSet<(Lineage, Generation)>,
) {
    for swap in swaps {
        let status = statuses.iter().find(|status| status.name == swap.lineage);
        let is_proven = status.is_some_and(|status| proven(status, swap.generation.0));
        let is_seen = swap.generation == Generation(1) || swap.seen_after.is_some();
        if is_proven && is_seen && told.insert((swap.lineage.clone(), swap.generation)) {
            narrator.say(&line(swap));
        }
    }
}

fn line(swap: &Swap) -> String {
    let lineage = swap.lineage.as_str();
    match swap.seen_after.filter(|_| swap.generation > Generation(1)) {
        None => format!("{lineage:<17} issued, handed over, proven"),
        Some(after) => format!(
            "{lineage:<17} renewed to {}, proven; seen by clients in {:.1} ms",
            swap.generation,
            after.as_secs_f64() * 1000.0,
        ),
    }
}

/// Tells the story, with the seconds it took.
pub(crate) struct Narrator<'a> {
    write: Box<dyn Fn(&str) + 'a>,
    begun: Instant,
}

impl<'a> Narrator<'a> {
    /// One whose lines `write` shows.
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

    /// Parts the story from its scoreboard.
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
                "set TMPDIR to a directory that is writable",
            )
        };
        if path.exists() || !base.is_dir() {
            return Err(refused(std::io::ErrorKind::NotFound.into()));
        }
        files::make_directory(&path, 0o700).map_err(refused)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            let path = self.0.display();
            let _ = writeln!(
                std::io::stderr(),
                "warning: {path} could not be removed: {error}"
            );
        }
    }
}
