//! What a certificate is for: DNS names, wildcards and IP addresses (RFC 8555
//! section 9.7.7, RFC 8738).
//!
//! Text becomes an [`Identifier`] once, at the edge; no later code parses a
//! name. Internationalised names are kept as A-labels (RFC 5891).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One subject of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Identifier {
    /// A fully qualified DNS name, possibly a wildcard.
    Dns(DnsName),
    /// An IPv4 or IPv6 address.
    Ip(IpAddr),
}

/// A DNS name in A-label form and lower case, without a trailing dot; at most
/// its leftmost label is `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnsName(Arc<str>);

/// Why a text is not a valid identifier, or the CA cannot sign it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[allow(missing_docs)] // each message is its own documentation
pub enum IdentifierError {
    #[error("the name is empty")]
    Empty,
    #[error("`{}` is a URL; give the host name alone", .0.escape_debug())]
    Url(String),
    #[error("`{}` carries a port; certificates are for names, not ports", .0.escape_debug())]
    Port(String),
    #[error("`{}` is not a valid DNS name", .0.escape_debug())]
    Malformed(String),
    #[error("`{}` has a wildcard that is not the whole leftmost label", .0.escape_debug())]
    Wildcard(String),
    #[error("`{name}` cannot get a certificate from a public CA: {reason}")]
    NotPublic { name: String, reason: &'static str },
}

impl Identifier {
    /// Reads a DNS name (also in Unicode), a wildcard or an IP address
    /// (brackets around IPv6 allowed).
    ///
    /// # Errors
    /// [`IdentifierError`] for any other text, with the cause.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(IdentifierError::Empty);
        }
        let unbracketed = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = IpAddr::from_str(unbracketed.unwrap_or(text)) {
            return Ok(Self::Ip(address.to_canonical()));
        }
        if text.contains("://") || text.contains('/') {
            return Err(IdentifierError::Url(text.to_owned()));
        }
        if text.contains(':') {
            return Err(IdentifierError::Port(text.to_owned()));
        }
        DnsName::parse(text).map(Self::Dns)
    }

    /// Whether it is a wildcard, which needs DNS-01.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        matches!(self, Self::Dns(name) if name.0.starts_with("*."))
    }

    /// Refuses names that no publicly trusted CA may sign: internal and reserved
    /// names (RFC 6761, 6762, 7686) and addresses that are not globally
    /// routable (RFC 6890).
    ///
    /// # Errors
    /// [`IdentifierError::NotPublic`] with the reason.
    pub fn require_public(&self) -> Result<(), IdentifierError> {
        let reason = match self {
            Self::Dns(name) => name.not_public(),
            Self::Ip(IpAddr::V4(address)) => ipv4_not_public(*address),
            Self::Ip(IpAddr::V6(address)) => ipv6_not_public(*address),
        };
        match reason {
            None => Ok(()),
            Some(reason) => Err(IdentifierError::NotPublic {
                name: self.to_string(),
                reason,
            }),
        }
    }

    /// Whether a certificate's subject alternative name `pattern` covers this
    /// identifier, as a TLS client sees it (RFC 6125: one label per wildcard).
    #[must_use]
    pub fn is_covered_by(&self, pattern: &Self) -> bool {
        if self == pattern {
            return true;
        }
        let (Self::Dns(name), Self::Dns(pattern)) = (self, pattern) else {
            return false;
        };
        let (Some(suffix), Some((first, rest))) =
            (pattern.0.strip_prefix("*."), name.0.split_once('.'))
        else {
            return false;
        };
        first != "*" && rest == suffix
    }
}

impl DnsName {
    fn parse(text: &str) -> Result<Self, IdentifierError> {
        let malformed = || IdentifierError::Malformed(text.to_owned());
        let (wildcard, base) = match text.strip_prefix("*.") {
            Some(base) => (true, base),
            None => (false, text),
        };
        if base.contains('*') {
            return Err(IdentifierError::Wildcard(text.to_owned()));
        }
        let base = base.strip_suffix('.').unwrap_or(base);
        let ascii = idna::domain_to_ascii_strict(base).map_err(|_| malformed())?;
        let labels_are_valid = ascii.split('.').all(is_valid_label);
        // A last label of digits would be read as an IPv4 address by URL parsers.
        let numeric_end = ascii
            .rsplit('.')
            .next()
            .is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let length = ascii.len() + if wildcard { 2 } else { 0 };
        if !labels_are_valid || numeric_end || length > 253 {
            return Err(malformed());
        }
        Ok(Self(if wildcard {
            format!("*.{ascii}").into()
        } else {
            ascii.into()
        }))
    }

    /// The name in A-label form, `*.` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn not_public(&self) -> Option<&'static str> {
        const RESERVED: [(&str, &str); 9] = [
            (
                "localhost",
                "`localhost` names this machine only (RFC 6761)",
            ),
            ("local", "`.local` is for multicast DNS (RFC 6762)"),
            ("internal", "`.internal` is reserved for private use"),
            ("test", "`.test` is reserved for testing (RFC 6761)"),
            (
                "example",
                "`.example` is reserved for documentation (RFC 6761)",
            ),
            ("invalid", "`.invalid` is reserved (RFC 6761)"),
            (
                "onion",
                "`.onion` needs a CA that signs onion services (RFC 7686)",
            ),
            ("lan", "`.lan` is not in the public DNS"),
            ("arpa", "`.arpa` is for infrastructure"),
        ];
        let base = self.0.strip_prefix("*.").unwrap_or(&self.0);
        let top = base.rsplit('.').next().unwrap_or(base);
        if let Some((_, reason)) = RESERVED.iter().find(|(name, _)| *name == top) {
            return Some(reason);
        }
        (!base.contains('.')).then_some("it has a single label; a public name has a domain")
    }
}

fn is_valid_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn ipv4_not_public(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    if address.is_loopback() {
        Some("it is a loopback address")
    } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
        Some("it is a private address")
    } else if address.is_link_local() {
        Some("it is a link-local address")
    } else if address.is_documentation() || (a == 198 && (b == 18 || b == 19)) {
        Some("it is reserved for documentation and tests")
    } else if a == 0 || a >= 224 || (a, b, c) == (192, 0, 0) {
        Some("it is not the address of a host on the internet")
    } else {
        None
    }
}

fn ipv6_not_public(address: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = address.segments();
    if address.is_loopback() {
        Some("it is a loopback address")
    } else if address.is_unique_local() {
        Some("it is a private address")
    } else if address.is_unicast_link_local() {
        Some("it is a link-local address")
    } else if first == 0x2001 && second == 0x0db8 {
        Some("it is reserved for documentation and tests")
    } else if first & 0xe000 != 0x2000 {
        Some("it is not a global unicast address")
    } else {
        None
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(&name.0),
            Self::Ip(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for Identifier {
    type Err = IdentifierError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Identifier {
    type Error = IdentifierError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<Identifier> for String {
    fn from(identifier: Identifier) -> Self {
        identifier.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Lineage;

    fn parse(text: &str) -> String {
        match Identifier::parse(text) {
            Ok(identifier) => identifier.to_string(),
            Err(error) => format!("refused: {error}"),
        }
    }

    #[test]
    fn identifier_parses_names_wildcards_and_addresses() {
        assert_eq!(parse("Example.COM."), "example.com");
        assert_eq!(parse("*.Example.com"), "*.example.com");
        assert_eq!(parse("bücher.example.com"), "xn--bcher-kva.example.com");
        assert_eq!(parse("192.0.2.7"), "192.0.2.7");
        assert_eq!(parse("[2001:DB8::1]"), "2001:db8::1");
        assert_eq!(parse("::ffff:192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn identifier_refuses_invalid_names() {
        for text in [
            "",
            "a..b",
            "-a.com",
            "a-.com",
            "a_b.com",
            "a.*.com",
            "*",
            "**.a.com",
            "*a.com",
            "1.2.3",
            "1.2.3.4.5",
            "http://a.com",
            "a.com:443",
            "a.com/",
            "a b.com",
            "a\n.com",
            "xn--zzzzzz---.com",
            "../etc",
        ] {
            assert!(Identifier::parse(text).is_err(), "{text:?} was accepted");
        }
        assert!(Identifier::parse(&format!("{}.com", "a".repeat(64))).is_err());
        assert!(Identifier::parse(&"a.".repeat(128)).is_err());
    }

    #[test]
    fn identifier_errors_escape_control_characters() {
        for (text, shown) in [
            ("w\u{7f}w.com", "w\\u{7f}w.com"),
            ("a\u{1b}[2J:1", "a\\u{1b}[2J:1"),
            ("\u{9b}/x", "\\u{9b}/x"),
            ("a.*\r.com", "a.*\\r.com"),
        ] {
            let error = Identifier::parse(text).unwrap_err().to_string();
            assert!(error.contains(shown), "{error:?}");
            assert!(!error.contains(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn require_public_refuses_reserved_names() {
        for text in [
            "localhost",
            "a.localhost",
            "db.internal",
            "printer.local",
            "a.test",
            "host",
            "127.0.0.1",
            "10.0.0.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "100.64.0.1",
        ] {
            assert!(
                Identifier::parse(text).unwrap().require_public().is_err(),
                "{text}"
            );
        }
        for text in ["example.com", "*.example.com", "8.8.8.8", "2606:4700::1111"] {
            assert_eq!(
                Identifier::parse(text).unwrap().require_public(),
                Ok(()),
                "{text}"
            );
        }
    }

    #[test]
    fn wildcard_covers_one_label() {
        let wildcard = Identifier::parse("*.example.com").unwrap();
        let covered = |text: &str| Identifier::parse(text).unwrap().is_covered_by(&wildcard);
        assert!(covered("www.example.com"));
        assert!(covered("*.example.com"));
        assert!(!covered("example.com"));
        assert!(!covered("a.b.example.com"));
    }

    proptest::proptest! {
        #[test]
        fn identifier_parse_is_idempotent_and_lineage_safe(text in "\\PC{0,40}") {
            if let Ok(identifier) = Identifier::parse(&text) {
                let shown = identifier.to_string();
                proptest::prop_assert_eq!(Identifier::parse(&shown).unwrap(), identifier.clone());
                let lineage = Lineage::of(&identifier);
                proptest::prop_assert_eq!(Lineage::parse(lineage.as_str()).unwrap(), lineage);
            }
        }
    }
}
