//! The service manager: socket activation (`sd_listen_fds(3)`), so that ports below
//! 1024 need no privilege, and notifications (`sd_notify(3)`).

use std::collections::BTreeMap;
use std::net::TcpListener;

use sd_notify::NotifyState;

use crate::failure::Failure;

/// The passed sockets for HTTP-01: those on port 80, and those named `http`
/// (`FileDescriptorName=`). All other passed sockets are closed.
pub(crate) fn listeners(
    environment: &BTreeMap<String, String>,
) -> Result<Vec<TcpListener>, Failure> {
    if !environment.contains_key("LISTEN_FDS") {
        return Ok(Vec::new());
    }
    let mut passed = listenfd::ListenFd::from_env();
    let names = environment.get("LISTEN_FDNAMES");
    let names: Vec<&str> = names
        .map(|names| names.split(':').collect())
        .unwrap_or_default();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let socket = passed.take_tcp_listener(index).map_err(|error| {
            Failure::usage(
                format!("invalid socket {index} from the service manager: {error}"),
                "pass stream sockets only: ListenStream= in the socket unit",
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

/// Notifies the service manager of this process's state.
pub(crate) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("cannot notify the service manager: {error}");
    }
}
