//! The helper process: the same program, started before the sandbox, which reloads the
//! servers that the sandboxed process may not reload. It has no keys, no network and no
//! configuration, and ends when its parent closes the socket. It consists of two
//! processes: one serves requests; the other restarts the first after a crash.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Settings;
use crate::deploy::helper::{self, Helper, Permits, restart};
use crate::failure::Failure;

/// Starts the helper process, or logs why this process runs without a sandbox.
/// `permits` are all rights that it gets.
pub(super) fn start(
    environment: &BTreeMap<String, String>,
    settings: &Settings,
    permits: &Permits,
) -> Option<Arc<Helper>> {
    if !settings.harden {
        tracing::warn!("no sandbox: harden is off");
        return None;
    }
    let log = |error: &_| tracing::warn!("no sandbox: cannot start the helper process: {error}");
    spawn(environment, permits).inspect_err(log).ok()
}

fn spawn(
    environment: &BTreeMap<String, String>,
    permits: &Permits,
) -> std::io::Result<Arc<Helper>> {
    let (near, distant) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("certs").arg("helper");
    // A server's programs must not see our variables, secrets among them.
    for name in environment.keys() {
        let ours = ["CERTS_", "LISTEN_", "NOTIFY_", "WATCHDOG_"];
        if ours.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(OwnedFd::from(distant));
    command.stdout(Stdio::null()).spawn()?;
    Helper::new(near, permits)
}

/// `certs helper`: starts the serving process and restarts it after a crash, until the
/// parent ends.
pub(crate) async fn keep() -> Result<(), Failure> {
    let (stream, _signals) = inherited()?;
    let ended = restart::run_with_restarts(stream, |stream| {
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg0("certs").args(["helper", "--serve"]);
        command.stdin(OwnedFd::from(stream)).stdout(Stdio::null());
        command.kill_on_drop(true).spawn()
    });
    ended.await.map_err(|error| usage(&error))
}

/// `certs helper --serve`: serves the parent's requests.
pub(crate) async fn serve() -> Result<(), Failure> {
    let (stream, _signals) = inherited()?;
    helper::serve(stream).await.map_err(|error| usage(&error))
}

fn usage(error: &std::io::Error) -> Failure {
    Failure::usage(
        format!("certs helper: {error}"),
        "do not run it by hand: certs run starts it",
    )
}

/// The socket to the parent, and the signals that are ignored.
fn inherited() -> Result<(UnixStream, Vec<Signal>), Failure> {
    let usage = |error: std::io::Error| usage(&error);
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let stream = UnixStream::from(stdin.map_err(usage)?);
    stream.peer_addr().map_err(usage)?;
    // Signals to a whole service or terminal are for the parent, which may still
    // need this process.
    let ends = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let signals: Result<Vec<_>, _> = ends.into_iter().map(signal).collect();
    Ok((stream, signals.map_err(usage)?))
}
