//! The service manager: socket activation (`sd_listen_fds(3)`), so that ports below
//! 1024 need no privilege, and notifications (`sd_notify(3)`).

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;

use crate::failure::Failure;

/// The passed sockets, each with its name (`FileDescriptorName=`). Those that are not taken
/// are closed.
#[derive(Default)]
pub(crate) struct PassedSockets(Vec<(String, TcpListener)>);

impl PassedSockets {
    /// Takes the sockets on `port` and those with this name.
    pub(crate) fn take(&mut self, name: &str, port: u16) -> Vec<TcpListener> {
        let is_meant = |(own, socket): &mut (String, TcpListener)| {
            let address = socket.local_addr();
            own == name || address.is_ok_and(|address| address.port() == port)
        };
        let taken = self.0.extract_if(.., is_meant);
        taken.map(|(_, socket)| socket).collect()
    }
}

/// The sockets that the service manager has passed to this process.
pub(crate) fn listeners(environment: &BTreeMap<String, String>) -> Result<PassedSockets, Failure> {
    if !environment.contains_key("LISTEN_FDS") {
        return Ok(PassedSockets::default());
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
        let name = names.get(index).copied().unwrap_or_default();
        sockets.push((name.to_owned(), socket));
    }
    Ok(PassedSockets(sockets))
}

/// The service manager's socket for this process's state. It is connected before this
/// process gives up the right to connect.
#[derive(Debug)]
pub(crate) struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// The socket that `environment` names.
    pub(crate) fn connect(environment: &BTreeMap<String, String>) -> Self {
        let address = environment.get("NOTIFY_SOCKET");
        Self(address.and_then(|address| {
            connect(address)
                .inspect_err(|error| tracing::warn!("no service manager at {address}: {error}"))
                .ok()
        }))
    }

    /// Notifies the service manager of this process's state.
    pub(crate) fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.0 else {
            return;
        };
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            tracing::debug!("cannot notify the service manager: {error}");
        }
    }
}

fn connect(address: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match address.strip_prefix('@') {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(address)?,
    }
    Ok(socket)
}
