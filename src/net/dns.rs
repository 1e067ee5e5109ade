//! DNS: questions to resolvers and to the servers of a zone ([`lookup`], [`caa`]) over UDP and TCP
//! ([`wire`]). Every reply is untrusted: its size, the length of a chain of aliases and the
//! number of servers are bounded, and its names are escaped before they are shown.

pub(crate) mod caa;
pub(crate) mod host;
pub(crate) mod lookup;
pub(crate) mod wire;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use hickory_proto::rr::Name;

use crate::text::{printable, stored_as_text};

/// The port of DNS servers.
pub(crate) const PORT: u16 = 53;

/// A name without the dot at its end, safe to show.
pub(crate) fn shown(name: &Name) -> String {
    let text = name.to_ascii();
    printable(text.strip_suffix('.').unwrap_or(&text))
}

/// The address of a DNS server: an IP address, with a port if it is not 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ServerAddress(pub SocketAddr);

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let address = bare.unwrap_or(text).parse::<IpAddr>();
        let address = address.map(|address| (address, PORT).into());
        let address = address.or_else(|_| text.parse::<SocketAddr>());
        address
            .map(Self)
            .map_err(|_| format!("invalid address of a DNS server `{}`", printable(text)))
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

stored_as_text!(ServerAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_address_has_port_53_unless_it_names_one() {
        for (text, address) in [
            ("192.0.2.1", "192.0.2.1:53"),
            ("192.0.2.1:5353", "192.0.2.1:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ] {
            let parsed: ServerAddress = text.parse().unwrap();
            assert_eq!(parsed.to_string(), address);
        }
        for text in [
            "",
            "ns.example.com",
            "192.0.2.1:",
            "192.0.2.1:66000",
            "\u{1b}",
        ] {
            let error = text.parse::<ServerAddress>().unwrap_err();
            assert!(error.contains("invalid") && !error.contains('\u{1b}'));
        }
    }
}
