//! The listeners that answer challenges: bound here, or by the service manager.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use rustix::io::Errno;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

use super::dns01::responder;
use super::protocol::{Listen, Protocol, RequestCounter};
use super::responses::Responses;
use super::{http01, tls_alpn01};
use crate::net::listen::{Connections, Socket, TlsConfig};
use crate::net::sockets::{BACKLOG, owner_at};

/// Why an address could not be listened on.
#[derive(Debug, Error)]
#[error("cannot listen on {}: {source}{}", .listen.address, shown(.owner.as_ref()))]
pub struct BindError {
    /// The address.
    pub listen: Listen,
    source: io::Error,
    /// The program that has the port, and its process id, if /proc shows them.
    pub owner: Option<(String, u32)>,
}

fn shown(owner: Option<&(String, u32)>) -> String {
    let shown = owner.map(|(program, pid)| {
        let program = program.escape_default();
        format!("; the port is used by {program} (pid {pid})")
    });
    shown.unwrap_or_default()
}

impl BindError {
    fn new(listen: Listen, source: io::Error) -> Self {
        let is_used = source.kind() == io::ErrorKind::AddrInUse;
        Self {
            listen,
            source,
            owner: is_used.then(|| owner_at(listen.address)).flatten(),
        }
    }

    /// Whether the cause is that this machine has no IPv6, or has it switched off.
    #[must_use]
    pub fn is_for_lack_of_ipv6(&self) -> bool {
        let errno = Errno::from_io_error(&self.source);
        let is_lack = matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL));
        self.listen.address.is_ipv6() && is_lack
    }

    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match (self.source.kind(), self.listen.protocol) {
            (io::ErrorKind::AddrInUse, Protocol::Http) => {
                "leave the port to that server and use --webroot DIR with it, have it forward /.well-known/acme-challenge/ to another --http-listen ADDR, or stop it"
            }
            (io::ErrorKind::AddrInUse, Protocol::Tls) => {
                "leave the port to that server and have it forward connections that offer acme-tls/1 to another --tls-listen ADDR (config/nginx-acme-tls.conf, config/haproxy-acme-tls.cfg), use another --challenge, or stop it"
            }
            (io::ErrorKind::PermissionDenied, Protocol::Http) => {
                "ports below 1024 need CAP_NET_BIND_SERVICE, net.ipv4.ip_unprivileged_port_start=80, or a socket from systemd; or use --http-listen with another port that port 80 is forwarded to"
            }
            (io::ErrorKind::PermissionDenied, Protocol::Tls) => {
                "ports below 1024 need CAP_NET_BIND_SERVICE, net.ipv4.ip_unprivileged_port_start=443, or a socket from systemd; or use --tls-listen with another port that port 443 is forwarded to"
            }
            (io::ErrorKind::AddrInUse, Protocol::Dns) => {
                "another DNS server has the port: let certs answer at another address of this machine, --dns-listen ADDRESS:53, or use that server with --dns rfc2136"
            }
            (io::ErrorKind::PermissionDenied, Protocol::Dns) => {
                "ports below 1024 need CAP_NET_BIND_SERVICE, net.ipv4.ip_unprivileged_port_start=53, or root"
            }
            (_, Protocol::Dns) => "check the address given with --dns-listen",
            (_, Protocol::Http) => "check the address given with --http-listen",
            (_, Protocol::Tls) => "check the address given with --tls-listen",
        }
    }
}

/// Bound sockets of one protocol, not served yet.
pub struct Listener {
    protocol: Protocol,
    sockets: Vec<TcpListener>,
    /// Those of UDP, beside the others.
    datagrams: Vec<UdpSocket>,
    responses: Responses,
    tally: RequestCounter,
}

impl Listener {
    /// Binds an address, at which it serves `responses`.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(at: &Listen, responses: &Responses) -> Result<Self, BindError> {
        let failed = |source| BindError::new(*at, source);
        let socket = listen(at.address).map_err(failed)?;
        let datagrams = match at.protocol {
            Protocol::Dns => vec![beside(&socket).map_err(failed)?],
            _ => Vec::new(),
        };
        let listener = Self::new(at.protocol, vec![socket], responses);
        Ok(Self {
            datagrams,
            ..listener
        })
    }

    /// The same with the sockets of `other`, too.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.sockets.extend(other.sockets);
        self.datagrams.extend(other.datagrams);
        self
    }

    fn new(protocol: Protocol, sockets: Vec<TcpListener>, responses: &Responses) -> Self {
        Self {
            protocol,
            sockets,
            datagrams: Vec::new(),
            responses: responses.clone(),
            tally: Arc::new(|_| {}),
        }
    }

    /// Counts every request with `tally`.
    #[must_use]
    pub fn counted_by(mut self, tally: RequestCounter) -> Self {
        self.tally = tally;
        self
    }

    /// Uses sockets that are bound and listening already.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn from_sockets(
        protocol: Protocol,
        sockets: Vec<std::net::TcpListener>,
        responses: &Responses,
    ) -> Result<Self, BindError> {
        let taken = sockets.into_iter().map(|socket| {
            let unknown = (Ipv4Addr::UNSPECIFIED, protocol.port()).into();
            let address = socket.local_addr().unwrap_or(unknown);
            let at = Listen { protocol, address };
            let nonblocking = socket.set_nonblocking(true);
            let taken = nonblocking.and_then(|()| TcpListener::from_std(socket));
            taken.map_err(|source| BindError::new(at, source))
        });
        let sockets = taken.collect::<Result<_, _>>()?;
        Ok(Self::new(protocol, sockets, responses))
    }

    /// The addresses of the listener, with the ports that the system chose.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.sockets.iter().map(TcpListener::local_addr);
        addresses.flatten().collect()
    }

    /// Serves until the future is dropped.
    pub async fn serve(self) {
        let fleet = self.responses.clone();
        let (limits, tls, router) = match self.protocol {
            Protocol::Dns => {
                return responder::serve(self.datagrams, self.sockets, self.responses).await;
            }
            Protocol::Http => {
                let router = http01::router(self.responses, self.tally);
                (http01::LIMITS, None, router)
            }
            Protocol::Tls => match tls_alpn01::config(self.responses, self.tally) {
                Ok(config) => (tls_alpn01::LIMITS, Some(config), Router::new()),
                Err(error) => {
                    tracing::error!(%error, "TLS-ALPN-01 cannot be answered");
                    return;
                }
            },
        };
        let connections = match (&tls, fleet.fleet()) {
            // A handshake shows a certificate at once, or none.
            (Some(_), Some(_)) => Connections::after(
                limits,
                Arc::new(move |name| {
                    let fleet = fleet.clone();
                    Box::pin(async move { fleet.refresh_for(&name).await })
                }),
            ),
            _ => Connections::new(limits),
        };
        let mut accepting = tokio::task::JoinSet::new();
        for socket in self.sockets.into_iter().map(Socket::Tcp) {
            let tls = tls
                .clone()
                .map(|config| Box::new(move || config.clone()) as TlsConfig);
            accepting.spawn(connections.clone().serve(socket, tls, router.clone()));
        }
        while accepting.join_next().await.is_some() {}
    }
}

/// The socket of UDP at the address of `socket`.
fn beside(socket: &TcpListener) -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let address = socket.local_addr()?;
    let (family, flags) = match address {
        SocketAddr::V4(_) => (AddressFamily::INET, SocketFlags::NONBLOCK),
        SocketAddr::V6(_) => (AddressFamily::INET6, SocketFlags::NONBLOCK),
    };
    let datagrams = socket_with(
        family,
        SocketType::DGRAM,
        flags | SocketFlags::CLOEXEC,
        None,
    )?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&datagrams, true)?;
    }
    bind(&datagrams, &address)?;
    UdpSocket::from_std(datagrams.into())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        // A dual-stack socket would collide with that of IPv4.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_protocol_has_one_port_of_both_families() {
        for protocol in [Protocol::Http, Protocol::Tls, Protocol::Dns] {
            let bind =
                |address| Listener::bind(&Listen { protocol, address }, &Responses::default());
            let first = bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap();
            let port = first.addresses()[0].port();
            if let Err(error) = bind((std::net::Ipv6Addr::UNSPECIFIED, port).into()) {
                assert!(error.is_for_lack_of_ipv6(), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn bind_error_names_the_program_on_the_port() {
        for (protocol, hint) in [(Protocol::Http, "--webroot"), (Protocol::Tls, "acme-tls/1")] {
            let bind =
                |address| Listener::bind(&Listen { protocol, address }, &Responses::default());
            let first = bind(([127, 0, 0, 1], 0).into()).unwrap();
            let error = bind(first.addresses()[0]).err().unwrap();
            let pid = format!("(pid {})", std::process::id());
            assert!(error.to_string().contains(&pid), "{error}");
            assert!(error.hint().contains(hint), "{}", error.hint());
        }
    }
}
