//! What a certificate is for: DNS names, wildcards and IP addresses (RFC 8555
//! section 9.7.7, RFC 8738).
//!
//! Text becomes an [`Identifier`] once, at the edge; no later code parses a
//! name. Internationalised names are kept as A-labels (RFC 5891).

mod set;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::text::stored_as_text;

pub(crate) use self::set::IdentifierSet;

/// One subject of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
#[error("{message}")]
pub struct IdentifierError {
    message: String,
    hint: String,
}

impl IdentifierError {
    /// `fault` follows `text`, with control characters escaped, in the message.
    pub(crate) fn new(text: &str, fault: &str, hint: impl Into<String>) -> Self {
        Self {
            message: format!("`{}` {fault}", text.escape_debug()),
            hint: hint.into(),
        }
    }

    /// The next thing to do about this very cause.
    #[must_use]
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl Identifier {
    /// The server name by which a CA asks for the answer of TLS-ALPN-01 (RFC 8737 section
    /// 3; RFC 8738 section 6 for addresses).
    #[must_use]
    pub fn challenge_server_name(&self) -> String {
        match self {
            Self::Dns(name) => name.as_str().to_owned(),
            Self::Ip(IpAddr::V4(address)) => {
                let [a, b, c, d] = address.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            Self::Ip(IpAddr::V6(address)) => {
                let nibbles = format!("{:032x}", address.to_bits());
                let reversed: String = nibbles.chars().rev().flat_map(|c| [c, '.']).collect();
                reversed + "ip6.arpa"
            }
        }
    }

    /// Reads a DNS name (also in Unicode), a wildcard or an IP address
    /// (brackets around IPv6 allowed).
    ///
    /// # Errors
    /// [`IdentifierError`] for any other text, with the cause.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(IdentifierError {
                message: "the name is empty".to_owned(),
                hint: "give a DNS name such as www.example.com, or an IP address".to_owned(),
            });
        }
        let unbracketed = text
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = IpAddr::from_str(unbracketed.unwrap_or(text)) {
            return Ok(Self::Ip(address.to_canonical()));
        }
        if text.contains(['/', '@', ':']) {
            return Err(not_a_name_alone(text));
        }
        DnsName::parse(text).map(Self::Dns)
    }

    /// The same, in the memory of `text` if that is its text.
    #[must_use]
    pub(crate) fn sharing(self, text: &Arc<str>) -> Self {
        match self {
            Self::Dns(name) if name.0 == *text => Self::Dns(DnsName(text.clone())),
            other => other,
        }
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
    /// [`IdentifierError`] with the reason.
    pub fn require_public(&self) -> Result<(), IdentifierError> {
        let reason = match self {
            Self::Dns(name) => name.not_public(),
            Self::Ip(IpAddr::V4(address)) => ipv4_not_public(*address),
            Self::Ip(IpAddr::V6(address)) => ipv6_not_public(*address),
        };
        match reason {
            None => Ok(()),
            Some(reason) => Err(IdentifierError::new(
                &self.to_string(),
                &format!("cannot get a certificate from a public CA: {reason}"),
                "use a public name, or a private CA: --ca https://…",
            )),
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
        let (wildcard, base) = match text.strip_prefix("*.") {
            Some(base) => (true, base),
            None => (false, text),
        };
        if base.contains('*') {
            let fault = "has a wildcard that is not the whole leftmost label";
            let hint = "a wildcard is one `*.` before a name, such as *.example.com";
            return Err(IdentifierError::new(text, fault, hint));
        }
        let base = base.strip_suffix('.').unwrap_or(base);
        let malformed = || malformed(text, base);
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
        let base = self.0.strip_prefix("*.").unwrap_or(&self.0);
        let top = base.rsplit('.').next().unwrap_or(base);
        Some(match top {
            "localhost" => "`localhost` names this machine only (RFC 6761)",
            "local" => "`.local` is for multicast DNS (RFC 6762)",
            "internal" => "`.internal` is reserved for private use",
            "test" => "`.test` is reserved for testing (RFC 6761)",
            "example" => "`.example` is reserved for documentation (RFC 6761)",
            "invalid" => "`.invalid` is reserved (RFC 6761)",
            "onion" => "`.onion` needs a CA that signs onion services (RFC 7686)",
            "lan" => "`.lan` is not in the public DNS",
            "arpa" => "`.arpa` is for infrastructure",
            _ if !base.contains('.') => "it has a single label; a public name has a domain",
            _ => return None,
        })
    }
}

/// A text with more in it than a name; the hint shows the name alone, if it is valid.
fn not_a_name_alone(text: &str) -> IdentifierError {
    let is_url = text.contains("://");
    let (_, rest) = text.split_once("://").unwrap_or(("", text));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit('@').next().unwrap_or_default();
    let (fault, hint) = if is_url {
        ("is a URL", "give the host name alone")
    } else if text.contains('/') {
        ("contains a `/`", "give the name alone, without a path")
    } else if text.contains('@') {
        let hint = "an address for the CA goes to --email; here give a host name";
        ("is an e-mail address", hint)
    } else if text.matches(':').count() > 1 && !text.contains("]:") {
        let hint = "write an IPv6 address such as 2001:db8::1, without a zone";
        return IdentifierError::new(text, "is not a valid IPv6 address", hint);
    } else {
        let hint = "a certificate is for a name and all its ports: give the name alone";
        ("has a port", hint)
    };
    let bare = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let bare = bare.trim_matches(['[', ']']);
    let address = IpAddr::from_str(bare).map(Identifier::Ip);
    match address.or_else(|_| DnsName::parse(bare).map(Identifier::Dns)) {
        Ok(name) => IdentifierError::new(text, fault, format!("{hint}: {name}")),
        Err(_) => IdentifierError::new(text, fault, hint),
    }
}

/// Why `base`, which is `text` without a wildcard and a last dot, is not a DNS name.
fn malformed(text: &str, base: &str) -> IdentifierError {
    let any = |fits: fn(&str) -> bool| base.split('.').any(fits);
    let last = base.rsplit('.').next().unwrap_or_default();
    let (fault, hint) = if any(str::is_empty) {
        (": it has an empty label", "remove the extra dot")
    } else if base.contains('_') {
        let hint = "CAs sign host names only: letters, digits and hyphens";
        (": it has an underscore", hint)
    } else if base.contains([' ', ',', ';']) {
        let hint = "give each name alone: as an argument or list item of its own";
        (": it contains a space, `,` or `;`", hint)
    } else if any(|label| label.len() > 63) {
        let hint = "a label, from dot to dot, has 63 characters at most";
        (": it has a label that is too long", hint)
    } else if text.trim_end_matches('.').len() > 253 {
        let hint = "a name has 253 characters at most, with its wildcard";
        (": it is too long", hint)
    } else if any(|label| label.starts_with('-') || label.ends_with('-')) {
        let hint = "a hyphen stands only between other characters of a label";
        (": a label starts or ends with a hyphen", hint)
    } else if last.bytes().all(|byte| byte.is_ascii_digit()) {
        let hint = "an IPv4 address is four numbers from 0 to 255; a name ends in letters";
        (": its last label is a number", hint)
    } else {
        let hint = "a name has letters, digits and hyphens, with a dot between its labels";
        ("", hint)
    };
    IdentifierError::new(text, &format!("is not a valid DNS name{fault}"), hint)
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
    Some(match address.octets() {
        _ if address.is_loopback() => "it is a loopback address",
        _ if address.is_private() => "it is a private address",
        [100, 64..128, ..] => "it is a private address",
        _ if address.is_link_local() => "it is a link-local address",
        _ if address.is_documentation() => "it is reserved for documentation and tests",
        [198, 18 | 19, ..] => "it is reserved for documentation and tests",
        [0 | 224.., ..] | [192, 0, 0, _] => "it is not the address of a host on the internet",
        _ => return None,
    })
}

fn ipv6_not_public(address: Ipv6Addr) -> Option<&'static str> {
    Some(match address.segments() {
        _ if address.is_loopback() => "it is a loopback address",
        _ if address.is_unique_local() => "it is a private address",
        _ if address.is_unicast_link_local() => "it is a link-local address",
        [0x2001, 0x0db8, ..] => "it is reserved for documentation and tests",
        [first, ..] if first & 0xe000 != 0x2000 => "it is not a global unicast address",
        _ => return None,
    })
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

stored_as_text!(Identifier);

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
    fn identifier_error_names_its_cause_with_a_hint_that_fits() {
        let label = "a".repeat(64);
        for (text, cause, hint) in [
            ("", "is empty", "such as www.example.com"),
            ("https://a.com:8443/x", "is a URL", "alone: a.com"),
            ("a.com/x", "contains a `/`", "without a path: a.com"),
            ("10.0.0.0/8", "contains a `/`", "without a path: 10.0.0.0"),
            ("me@a.com", "is an e-mail address", "host name: a.com"),
            ("a.com:443", "has a port", "alone: a.com"),
            ("[::1]:443", "has a port", "alone: ::1"),
            ("fe80::1%eth0", "is not a valid IPv6 address", "zone"),
            ("a.*.com", "wildcard", "*.example.com"),
            ("a..com", "empty label", "dot"),
            ("a.com..", "empty label", "dot"),
            ("a_b.com", "underscore", "hyphens"),
            ("a.com,b.com", "contains a space", "each name"),
            (&format!("{label}.com"), "too long", "63"),
            (&"a.".repeat(128), "is too long", "253"),
            ("a-.com", "hyphen", "between"),
            ("1.2.3", "a number", "four numbers"),
        ] {
            let error = Identifier::parse(text).unwrap_err();
            assert!(error.to_string().contains(cause), "{text}: {error}");
            assert!(error.hint().contains(hint), "{text}: {}", error.hint());
        }
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
