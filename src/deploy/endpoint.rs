//! An endpoint that must serve a certificate, in the form that a user writes.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::proxy_protocol::ProxyProtocol;
use super::starttls::Protocol;
use crate::identifier::Identifier;

/// An endpoint that must serve a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    pub(super) approach: Approach,
    pub(super) place: Place,
    /// The names to ask for, if they do not follow from the host.
    pub(super) names: BTreeSet<Identifier>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Every address of a host, at a port.
    Host(Identifier, u16),
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
}

/// What comes before TLS on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Approach {
    /// The protocol before TLS.
    pub protocol: Protocol,
    /// The header of a balancer.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// The names to ask an endpoint for.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) names: Vec<&'a Identifier>,
    /// Whether it must serve each of them, and not only those that it answers to.
    pub(super) all: bool,
}

impl Endpoint {
    /// The names of a certificate that are asked for here: the configured ones; else the
    /// host, if the certificate covers it; else those to which the endpoint answers.
    pub(super) fn asked<'a>(&'a self, names: &'a BTreeSet<Identifier>) -> Asked<'a> {
        if !self.names.is_empty() {
            let names = self.names.iter().collect();
            return Asked { names, all: true };
        }
        if let Place::Host(host, _) = &self.place
            && names.iter().any(|name| host.is_covered_by(name))
        {
            let names = vec![host];
            return Asked { names, all: true };
        }
        let names = names.iter().collect();
        Asked { names, all: false }
    }
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
    /// it if TLS starts by STARTTLS, or `unix:/PATH`, with `?names=NAME&proxy_protocol=v1|v2`
    /// after it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (text, options) = text.split_once('?').unwrap_or((text, ""));
        let (protocol, place) = match text.strip_prefix("unix:") {
            Some(path) => {
                let path = socket_path(path);
                let path = path.map_err(|why| format!("`{}`: {why}", text.escape_debug()))?;
                (Protocol::Tls, Place::Unix(path))
            }
            None => host_and_port(text)
                .ok_or_else(|| format!("`{}` is not HOST:PORT", text.escape_debug()))?,
        };
        let mut endpoint = Self {
            approach: Approach {
                protocol,
                proxy_protocol: None,
            },
            place,
            names: BTreeSet::new(),
        };
        for option in options.split('&').filter(|option| !option.is_empty()) {
            endpoint.set(option)?;
        }
        Ok(endpoint)
    }
}

fn host_and_port(text: &str) -> Option<(Protocol, Place)> {
    let (protocol, place) = match text.split_once("://") {
        Some((scheme, place)) => (Protocol::of_scheme(scheme)?, place),
        None => (Protocol::Tls, text),
    };
    let (host, port) = place.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some((protocol, Place::Host(Identifier::parse(host).ok()?, port)))
}

/// Parses the path of a Unix socket, also as `//PATH`.
fn socket_path(text: &str) -> Result<PathBuf, String> {
    /// `sun_path`, without the zero byte at its end: unix(7).
    const LONGEST: usize = 107;
    let path = text.strip_prefix("//").unwrap_or(text);
    if path.starts_with('@') {
        return Err(
            "an abstract socket cannot be verified; name HOST:PORT of the server in front of it"
                .to_owned(),
        );
    }
    if !path.starts_with('/') || path.chars().any(char::is_control) {
        return Err("the absolute path of a Unix socket belongs after `unix:`".to_owned());
    }
    match path.len() {
        longer if longer > LONGEST => Err(format!(
            "this path has {longer} bytes, and that of a Unix socket has at most {LONGEST}"
        )),
        _ => Ok(path.into()),
    }
}

impl Endpoint {
    /// Sets `names=NAME` or `proxy_protocol=v1|v2`.
    fn set(&mut self, option: &str) -> Result<(), String> {
        match option.split_once('=') {
            Some(("names", name)) => {
                let name = Identifier::parse(name).map_err(|error| error.to_string())?;
                self.names.insert(name);
            }
            Some(("proxy_protocol", version)) => {
                self.approach.proxy_protocol = Some(version.parse()?);
            }
            _ => {
                return Err(format!(
                    "unknown option `{}` of an endpoint; known: names, proxy_protocol",
                    option.escape_debug()
                ));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Approach {
            protocol,
            proxy_protocol,
        } = self.approach;
        if protocol != Protocol::Tls {
            write!(f, "{protocol}://")?;
        }
        match &self.place {
            Place::Host(Identifier::Ip(IpAddr::V6(address)), port) => {
                write!(f, "[{address}]:{port}")?;
            }
            Place::Host(host, port) => write!(f, "{host}:{port}")?,
            Place::Unix(path) => write!(f, "unix:{}", path.display())?,
        }
        let names = self.names.iter().map(|name| format!("names={name}"));
        let header = proxy_protocol.map(|version| format!("proxy_protocol={version}"));
        for (at, option) in names.chain(header).enumerate() {
            let mark = if at == 0 { '?' } else { '&' };
            write!(f, "{mark}{option}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, String> {
        let endpoint = text.parse::<Endpoint>();
        endpoint.map(|endpoint| endpoint.to_string())
    }

    #[test]
    fn endpoint_is_parsed_and_shown() {
        assert_eq!(shown("Example.com:443").unwrap(), "example.com:443");
        assert_eq!(shown("[::1]:443").unwrap(), "[::1]:443");
        assert_eq!(shown("smtp://[::1]:25").unwrap(), "smtp://[::1]:25");
        assert_eq!(shown("turns://a:5349").unwrap(), "a:5349");
        for whole in [
            "127.0.0.1:443?names=a.example.com&names=b.example.com&proxy_protocol=v2",
            "smtp://mx.example.com:25?proxy_protocol=v1",
            "unix:/run/a b.sock?names=a.example.com&proxy_protocol=v2",
        ] {
            assert_eq!(shown(whole).unwrap(), whole);
        }
        assert_eq!(shown("a:1?").unwrap(), "a:1");
        assert_eq!(shown("unix:///run/a").unwrap(), "unix:/run/a");
        let of_length = |length: usize| shown(&format!("unix:{:a<length$}", "/"));
        assert!(of_length(107).is_ok());
        for (refused, why) in [
            (
                of_length(108),
                "108 bytes, and that of a Unix socket has at most 107",
            ),
            (
                shown("unix:@a"),
                "an abstract socket cannot be verified; name HOST:PORT",
            ),
            (shown("unix:run/a"), "`unix:run/a`: the absolute path"),
            (shown("unix://run/a"), "the absolute path"),
            (shown("unix:/run/\n"), "`unix:/run/\\n`: the absolute path"),
            (shown("smtp://unix:/run/a"), "is not HOST:PORT"),
            (shown("unix:/run/a?name=b"), "unknown option"),
        ] {
            let refused = refused.unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        for text in [
            "example.com",
            "example.com:0",
            "example.com:x",
            "ftp://example.com:21",
            ":443",
            "a b:1",
            "a:1?proxy_protocol=v3",
            "a:1?proxy_protocol",
            "a:1?names=",
            "a:1?name=b",
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }

    #[test]
    fn endpoint_is_asked_for_its_own_name() {
        let names = ["a.example.com", "b.example.com", "*.c.example.com"];
        let names = names.map(|name| Identifier::parse(name).unwrap()).into();
        let asked = |text: &str| {
            let endpoint: Endpoint = text.parse().unwrap();
            let asked = endpoint.asked(&names);
            let names = asked.names.iter().map(|name| name.to_string());
            (names.collect::<Vec<_>>().join(" "), asked.all)
        };
        let own = |names: &str| (names.to_owned(), true);
        assert_eq!(asked("b.example.com:5349"), own("b.example.com"));
        assert_eq!(asked("x.c.example.com:443"), own("x.c.example.com"));
        let both = "a.example.com:443?names=a.example.com&names=b.example.com";
        assert_eq!(asked(both), own("a.example.com b.example.com"));
        for place in ["127.0.0.1:443", "unix:/run/a"] {
            let (all, must) = asked(place);
            assert_eq!((all.split(' ').count(), must), (3, false));
        }
        assert_eq!(asked("unix:/a?names=b.example.com"), own("b.example.com"));
    }
}
