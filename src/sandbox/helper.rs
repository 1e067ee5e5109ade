//! The helper process: the same program, started before anything is given up, which
//! reloads the servers that the confined process may not reload. It has no keys, no
//! network and no configuration, and ends with the socket to its parent. It is two
//! processes: one serves requests, and one restarts it after its death, which the
//! confined process may not do.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Settings;
use crate::deploy::helper::{self, Helper, restart};
use crate::deploy::target::DeployTarget;
use crate::failure::Failure;

/// Starts it, or says why this process goes on as it is. `programs` are those
/// of the user's own that it may run, and no other.
pub(super) fn start(
    environment: &BTreeMap<String, String>,
    settings: &Settings,
    programs: &[DeployTarget],
) -> Option<Arc<Helper>> {
    if !settings.harden {
        tracing::warn!("nothing is given up: harden is off");
        return None;
    }
    match spawn(environment, programs) {
        Ok(helper) => Some(helper),
        Err(error) => {
            tracing::warn!("nothing is given up: the helper process: {error}");
            None
        }
    }
}

fn spawn(
    environment: &BTreeMap<String, String>,
    programs: &[DeployTarget],
) -> std::io::Result<Arc<Helper>> {
    let (near, distant) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("certs").arg("helper");
    // Our own variables, secrets among them, are none of nginx's business.
    for name in environment.keys() {
        let ours = ["CERTS_", "LISTEN_", "NOTIFY_", "WATCHDOG_"];
        if ours.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.stdin(OwnedFd::from(distant));
    command.stdout(Stdio::null()).spawn()?;
    Helper::new(near, programs)
}

/// `certs helper`: starts the process that serves, and again after its death, until the
/// parent has ended.
pub(crate) async fn keep() -> Result<(), Failure> {
    let (stream, _heard) = inherited()?;
    let kept = restart::keep_running(stream, |stream| {
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg0("certs").args(["helper", "--serve"]);
        command.stdin(OwnedFd::from(stream)).stdout(Stdio::null());
        command.kill_on_drop(true).spawn()
    });
    kept.await.map_err(|error| usage(&error))
}

/// `certs helper --serve`: serves the parent's requests.
pub(crate) async fn serve() -> Result<(), Failure> {
    let (stream, _heard) = inherited()?;
    helper::serve(stream).await.map_err(|error| usage(&error))
}

fn usage(error: &std::io::Error) -> Failure {
    Failure::usage(
        format!("certs helper: {error}"),
        "it is started by certs run alone",
    )
}

/// The socket to the parent, and the signals that are ignored.
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
