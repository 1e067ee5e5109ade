//! The network: one HTTP client ([`http`], and with connections that are kept [`pool`]), proxies ([`proxy`], [`connector`]), DNS ([`dns`]), the
//! credentials of AWS ([`aws`]), the bounds of every listener ([`listen`]), the parameters of TLS
//! ([`tls`], and for a client [`secure`]), the roots of this machine ([`roots`]), connections to Unix sockets ([`unix`]), URLs with
//! secrets ([`url`]), this machine's sockets, and those of the service manager.

use tokio::io::{AsyncRead, AsyncWrite};

// A DNS provider asks for a role.
#[cfg_attr(not(feature = "dns-providers"), allow(dead_code))]
pub(crate) mod aws;
pub(crate) mod connector;
pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod listen;
pub(crate) mod pool;
pub(crate) mod proxy;
pub(crate) mod roots;
#[cfg_attr(not(feature = "store-postgres"), allow(dead_code))]
pub(crate) mod secure;
pub(crate) mod sockets;
pub(crate) mod systemd;
pub(crate) mod tls;
pub(crate) mod unix;
pub(crate) mod url;

/// A connection of any kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
