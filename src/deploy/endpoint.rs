//! An endpoint that must serve a certificate, in the form that a user writes.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::starttls::Protocol;
use crate::identifier::Identifier;

/// An endpoint that must serve a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    pub(super) protocol: Protocol,
    pub(super) host: Identifier,
    pub(super) port: u16,
}

impl TryFrom<String> for Endpoint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Parses `HOST:PORT` or `[IPV6]:PORT`, with `smtp://`, `imap://` or `pop3://` before
    /// it if TLS starts by STARTTLS.
    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("`{}` is not HOST:PORT", text.escape_debug());
        let (protocol, place) = match text.split_once("://") {
            Some((scheme, place)) => {
                let protocol = Protocol::of_scheme(scheme);
                (protocol.ok_or_else(malformed)?, place)
            }
            None => (Protocol::Tls, text),
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().ok().filter(|port| *port > 0);
        Ok(Self {
            protocol,
            host: Identifier::parse(host).map_err(|_| malformed())?,
            port: port.ok_or_else(malformed)?,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol != Protocol::Tls {
            write!(f, "{}://", self.protocol)?;
        }
        match &self.host {
            Identifier::Ip(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_parsed_and_shown() {
        let shown = |text: &str| {
            text.parse::<Endpoint>()
                .map(|endpoint| endpoint.to_string())
        };
        assert_eq!(shown("Example.com:443").unwrap(), "example.com:443");
        assert_eq!(shown("[::1]:443").unwrap(), "[::1]:443");
        assert_eq!(shown("smtp://[::1]:25").unwrap(), "smtp://[::1]:25");
        assert_eq!(shown("turns://a:5349").unwrap(), "a:5349");
        for text in [
            "example.com",
            "example.com:0",
            "example.com:x",
            "ftp://example.com:21",
            ":443",
            "a b:1",
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
