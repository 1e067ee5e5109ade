//! The header that a balancer puts before a connection, so that the server behind it knows
//! the client: the PROXY protocol of HAProxy, versions 1 and 2. We are the client itself.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// The version of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// The binary form.
    V2,
}

/// The first twelve bytes of version 2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
/// Version 2, and the command LOCAL: the connection is the proxy's own.
const VERSION_AND_LOCAL: u8 = 0x20;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

impl ProxyProtocol {
    /// The header of a connection from `client` to `server`.
    ///
    /// # Errors
    /// If the addresses are of two families, which no connection has.
    pub(super) fn header(self, client: SocketAddr, server: SocketAddr) -> io::Result<Vec<u8>> {
        let (family, addresses) = match (client.ip(), server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                (TCP_OVER_IPV4, [from.octets(), to.octets()].concat())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                (TCP_OVER_IPV6, [from.octets(), to.octets()].concat())
            }
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        if self == Self::V1 {
            let name = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (client.ip(), server.ip());
            let (from_port, to_port) = (client.port(), server.port());
            let line = format!("PROXY {name} {from} {to} {from_port} {to_port}\r\n");
            return Ok(line.into_bytes());
        }
        let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
        let length = u16::try_from(addresses.len() + ports.len()).map_err(io::Error::other)?;
        let fixed = [VERSION_AND_COMMAND, family];
        Ok([SIGNATURE, &fixed, &length.to_be_bytes(), &addresses, &ports].concat())
    }
}

impl ProxyProtocol {
    /// The header of a connection without addresses, as to a Unix socket.
    pub(super) fn local(self) -> Vec<u8> {
        match self {
            Self::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
            Self::V2 => [SIGNATURE, &[VERSION_AND_LOCAL, 0, 0, 0]].concat(),
        }
    }
}

impl FromStr for ProxyProtocol {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            other => Err(format!(
                "invalid version `{}` of the PROXY protocol: v1 or v2 belongs here",
                other.escape_debug()
            )),
        }
    }
}

impl fmt::Display for ProxyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_form_of_its_version() {
        let (client, server) = ("192.0.2.1:50000", "192.0.2.2:443");
        let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
        let line = ProxyProtocol::V1.header(client, server).unwrap();
        assert_eq!(line, b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n");
        let header = ProxyProtocol::V2.header(client, server).unwrap();
        let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02";
        assert_eq!(header[..24], fixed[..]);
        assert_eq!(header[24..], [0xc3, 0x50, 0x01, 0xbb]);
        let ipv6: SocketAddr = "[::1]:1".parse().unwrap();
        assert_eq!(ProxyProtocol::V2.header(ipv6, ipv6).unwrap().len(), 52);
        assert!(ProxyProtocol::V1.header(ipv6, server).is_err());
        assert_eq!(ProxyProtocol::V1.local(), b"PROXY UNKNOWN\r\n");
        assert_eq!(ProxyProtocol::V2.local(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
