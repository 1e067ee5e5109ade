//! The process apart: the same program, started before anything is given up,
//! which tells servers what the confined one may not tell them. It has no keys,
//! no network and no configuration, and ends with the socket to its parent. It is
//! two: one does the errands, and one starts another when that has died, which the
//! confined process may not do.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Settings;
use crate::deploy::hand::{self, Hand, keeper};
use crate::deploy::spec::Spec;
use crate::failure::Failure;

/// Starts it, or says why this process goes on as it is. `programs` are those
/// of the user's own that it may run, and no other.
pub(super) fn start(
    environment: &BTreeMap<String, String>,
    settings: &Settings,
    programs: &[Spec],
) -> Option<Arc<Hand>> {
    if !settings.harden {
        tracing::warn!("nothing is given up: harden is off");
        return None;
    }
    match spawn(environment, programs) {
        Ok(hand) => Some(hand),
        Err(error) => {
            tracing::warn!("nothing is given up: the process that tells servers: {error}");
            None
        }
    }
}

fn spawn(environment: &BTreeMap<String, String>, programs: &[Spec]) -> std::io::Result<Arc<Hand>> {
    let (near, distant) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("certs").arg("hand");
    // What concerns us alone, secrets among it, is no business of nginx.
    for name in environment.keys() {
        let ours = ["CERTS_", "LISTEN_", "NOTIFY_", "WATCHDOG_"];
        if ours.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(OwnedFd::from(distant));
    command.stdout(Stdio::null()).spawn()?;
    Hand::new(near, programs)
}

/// The other end, `certs hand`: keeps a process at the errands until nobody can ask.
pub(crate) async fn keep() -> Result<(), Failure> {
    let (stream, _heard) = inherited()?;
    let kept = keeper::keep(stream, |stream| {
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg0("certs").args(["hand", "--errands"]);
        command.stdin(OwnedFd::from(stream)).stdout(Stdio::null());
        command.kill_on_drop(true).spawn()
    });
    kept.await.map_err(|error| usage(&error))
}

/// `certs hand --errands`: does what it is asked.
pub(crate) async fn serve() -> Result<(), Failure> {
    let (stream, _heard) = inherited()?;
    hand::serve(stream).await.map_err(|error| usage(&error))
}

fn usage(error: &std::io::Error) -> Failure {
    Failure::usage(
        format!("certs hand: {error}"),
        "it is started by certs run alone",
    )
}

/// The way to the parent, and the signals that are heard and not obeyed.
fn inherited() -> Result<(UnixStream, Vec<Signal>), Failure> {
    let usage = |error: std::io::Error| usage(&error);
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let stream = UnixStream::from(stdin.map_err(usage)?);
    stream.peer_addr().map_err(usage)?;
    // Those that are sent to all of a service, or of a terminal, are for the
    // parent: it may have something left to be done.
    let ends = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let heard: Result<Vec<_>, _> = ends.into_iter().map(signal).collect();
    Ok((stream, heard.map_err(usage)?))
}
