//! The protocols by which this process answers challenges, and where.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::net::sockets::serves;

/// The protocol of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// For HTTP-01.
    Http,
    /// For TLS-ALPN-01.
    Tls,
    /// For DNS-01 by our own name server: UDP and TCP.
    Dns,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Http, Self::Tls, Self::Dns];

    /// The port to which a CA connects.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Tls => 443,
            Self::Dns => 53,
        }
    }

    /// Listening at `addresses`; none means its own port of all addresses.
    pub(super) fn at(self, addresses: &[SocketAddr]) -> Vec<Listen> {
        let everywhere = [
            (Ipv4Addr::UNSPECIFIED, self.port()).into(),
            (Ipv6Addr::UNSPECIFIED, self.port()).into(),
        ];
        let addresses = match addresses {
            [] => &everywhere,
            addresses => addresses,
        };
        let all = addresses.iter();
        all.map(|address| Listen {
            protocol: self,
            address: *address,
        })
        .collect()
    }

    /// The challenge that it answers.
    #[must_use]
    pub const fn challenge(self) -> &'static str {
        match self {
            Self::Http => "HTTP-01",
            Self::Tls => "TLS-ALPN-01",
            Self::Dns => "DNS-01",
        }
    }

    /// The name of its sockets at the service manager (`FileDescriptorName=`).
    #[must_use]
    pub const fn socket_name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "https",
            Self::Dns => "dns",
        }
    }
}

/// An address at which challenges are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listen {
    /// How they are answered.
    pub protocol: Protocol,
    /// The address of the socket.
    pub address: SocketAddr,
}

impl Listen {
    /// Whether a listener here answers what comes to `other`, too.
    #[must_use]
    pub fn serves(&self, other: &Self) -> bool {
        self.protocol == other.protocol && serves(self.address, other.address)
    }
}

/// Counts each request by its result: `answered`, `unknown`, `redirected` or `refused`.
pub type RequestCounter = Arc<dyn Fn(&'static str) + Send + Sync>;
