//! The service manager: sockets that it opened for us (`sd_listen_fds(3)`), so that
//! ports below 1024 need no privilege of our own, and what it is told.

use std::collections::BTreeMap;
use std::net::TcpListener;

use sd_notify::NotifyState;

use crate::failure::Failure;

/// The sockets for HTTP-01: those of port 80, and those that the unit calls
/// `http` (`FileDescriptorName=`). The others are closed.
pub(crate) fn listeners(
    environment: &BTreeMap<String, String>,
) -> Result<Vec<TcpListener>, Failure> {
    if !environment.contains_key("LISTEN_FDS") {
        return Ok(Vec::new());
    }
    let mut handed = listenfd::ListenFd::from_env();
    let names = environment.get("LISTEN_FDNAMES");
    let names: Vec<&str> = names
        .map(|names| names.split(':').collect())
        .unwrap_or_default();
    let mut sockets = Vec::new();
    for index in 0..handed.len() {
        let socket = handed.take_tcp_listener(index).map_err(|error| {
            Failure::usage(
                format!("the socket {index} that was handed over: {error}"),
                "let the unit hand over stream sockets only (ListenStream=)",
            )
        })?;
        let Some(socket) = socket else { continue };
        let port = socket.local_addr().map(|address| address.port());
        if names.get(index) == Some(&"http") || port.is_ok_and(|port| port == 80) {
            sockets.push(socket);
        }
    }
    Ok(sockets)
}

/// Tells it the state of this process.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
