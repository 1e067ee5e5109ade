//! The names that the root permits (RFC 5280 section 4.2.1.10), so that a machine that trusts
//! it does not trust its key for the whole internet. They are in the root itself, made once.

use std::net::IpAddr;

use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use crate::identifier::Identifier;

/// The names and networks that belong to no one on the internet (RFC 2606, 6761, 6762, 8375,
/// 1918, 4193, 5737, 3849).
pub const PRIVATE: [&str; 24] = [
    "localhost",
    "test",
    "example",
    "example.com",
    "example.net",
    "example.org",
    "invalid",
    "internal",
    "local",
    "lan",
    "home.arpa",
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "100.64.0.0/10",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "2001:db8::/32",
];

/// What a root may sign for: a name with all below it, or a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permitted {
    /// A DNS name and all names below it.
    Name(String),
    /// A network: its address, and the number of its leading bits.
    Network(IpAddr, u8),
}

impl std::str::FromStr for Permitted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').unwrap_or((text, ""));
        let Ok(address) = address.parse::<IpAddr>() else {
            let name = text.trim_start_matches("*.").trim_start_matches('.');
            let is_name = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
            return match is_name {
                true => Ok(Self::Name(name.to_ascii_lowercase())),
                false => Err("write a DNS name, an IP address or a network".to_owned()),
            };
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            "" if !text.contains('/') => Some(most),
            digits => digits.parse().ok().filter(|length| *length <= most),
        };
        let length = length.ok_or("write a network such as 10.0.0.0/8")?;
        Ok(Self::Network(address, length))
    }
}

impl Permitted {
    fn subtree(&self) -> GeneralSubtree {
        match self {
            Self::Name(name) => GeneralSubtree::DnsName(name.clone()),
            Self::Network(address, length) => {
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, *length))
            }
        }
    }
}

/// The extension; `None` without any bound.
pub(super) fn extension(permitted: &[Permitted]) -> Option<NameConstraints> {
    (!permitted.is_empty()).then(|| NameConstraints {
        permitted_subtrees: permitted.iter().map(Permitted::subtree).collect(),
        excluded_subtrees: Vec::new(),
    })
}

/// Whether a root permits a certificate for `identifier`.
pub(super) fn permits(root: &X509Certificate<'_>, identifier: &Identifier) -> bool {
    let mut extensions = root.extensions().iter();
    let constraints = extensions.find_map(|one| match one.parsed_extension() {
        ParsedExtension::NameConstraints(constraints) => Some(constraints),
        _ => None,
    });
    let permitted = constraints.and_then(|constraints| constraints.permitted_subtrees.as_ref());
    let Some(permitted) = permitted else {
        return true;
    };
    permitted.iter().any(|one| match (&one.base, identifier) {
        (GeneralName::DNSName(base), Identifier::Dns(_)) => {
            let name = identifier.to_string();
            let name = name.trim_start_matches("*.");
            let above = name.strip_suffix(base);
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        }
        (GeneralName::IPAddress(network), Identifier::Ip(address)) => match address {
            IpAddr::V4(address) => is_within(&address.octets(), network),
            IpAddr::V6(address) => is_within(&address.octets(), network),
        },
        _ => false,
    })
}

/// `network` is an address and its mask.
fn is_within(address: &[u8], network: &[u8]) -> bool {
    let Some((base, mask)) = network.split_at_checked(address.len()) else {
        return false;
    };
    let bits = address.iter().zip(base).zip(mask);
    mask.len() == address.len() && { bits }.all(|((one, base), mask)| one & mask == base & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permitted_names_and_networks_are_read() {
        let read = |text: &str| text.parse::<Permitted>();
        assert_eq!(
            read("*.Example.test"),
            Ok(Permitted::Name("example.test".into()))
        );
        let address = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(read("192.0.2.1"), Ok(Permitted::Network(address, 32)));
        for wrong in ["", "*", "a b", "10.0.0.0/33", "10.0.0.0/", "::/129", "a/8"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(PRIVATE.iter().all(|one| read(one).is_ok()));
    }
}
