//! The address of a server's socket, in the forms in which servers write it themselves: a
//! path, HAProxy's `unix@PATH` and `ipv4@HOST:PORT`, Caddy's `unix//PATH|MODE`. One address
//! has one form here, so that two forms of it are equal.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{HoldsPath, PathKey};

const FORMS: &str = "write a path or HOST:PORT";
const UNIX: [&str; 3] = ["unix@", "unix:", "unix/"];
const TCP: [&str; 6] = ["ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@", "tcp/"];

/// A Unix socket or a TCP port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(inline, with = "String")]
pub(in crate::deploy) enum Address {
    /// A Unix socket; a relative path starts at the file in which it is written.
    Unix(PathKey),
    /// `HOST:PORT`, with an IPv6 address in brackets.
    Tcp(String),
}

impl Address {
    /// The path of a Unix socket.
    pub(in crate::deploy) fn unix(&self) -> Option<PathBuf> {
        match self {
            Self::Unix(path) => Some(path.to_path_buf()),
            Self::Tcp(_) => None,
        }
    }
}

impl HoldsPath for Address {
    fn path(&mut self) -> Option<&mut PathKey> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let after = |prefixes: &[&str]| prefixes.iter().find_map(|it| text.strip_prefix(it));
        // A URL may have a password in it: nothing of the text is shown.
        let is_plain = |text: &str| !text.is_empty() && !text.contains('@');
        if let Some(path) = after(&UNIX) {
            let (path, _mode) = path.split_once('|').unwrap_or((path, ""));
            return match is_plain(path) {
                true => Ok(Self::Unix(PathBuf::from(path).into())),
                false => Err(FORMS),
            };
        }
        let place = after(&TCP);
        if let Some(tcp) = tcp(place.unwrap_or(&text)) {
            return Ok(Self::Tcp(tcp));
        }
        let is_path = place.is_none() && is_plain(&text) && !text.contains("://");
        match is_path && (text.starts_with('/') || !text.contains(':')) {
            true => Ok(Self::Unix(PathBuf::from(text).into())),
            false => Err(FORMS),
        }
    }
}

/// `HOST:PORT`; HAProxy's IPv6 addresses need no brackets, and no host is any address.
fn tcp(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-._".contains(letter);
    match plain {
        "" | "*" => Some(format!("localhost:{port}")),
        _ if plain.parse::<std::net::Ipv6Addr>().is_ok() => Some(format!("[{plain}]:{port}")),
        _ => plain
            .chars()
            .all(is_name)
            .then(|| format!("{plain}:{port}")),
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        match address {
            Address::Unix(path) => path.display().to_string(),
            Address::Tcp(address) => address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<String, &'static str> {
        Address::try_from(text.to_owned()).map(String::from)
    }

    #[test]
    fn forms_of_one_address_are_one_address() {
        for (written, wanted) in [
            ("/run/h.sock", "/run/h.sock"),
            ("unix@/run/h.sock", "/run/h.sock"),
            ("unix:/run/h.sock", "/run/h.sock"),
            ("unix//run/h.sock", "/run/h.sock"),
            ("unix//run/h.sock|0220", "/run/h.sock"),
            ("/run/a:1", "/run/a:1"),
            ("h.sock", "h.sock"),
            ("127.0.0.1:9999", "127.0.0.1:9999"),
            ("ipv4@127.0.0.1:9999", "127.0.0.1:9999"),
            ("ipv6@[::1]:9999", "[::1]:9999"),
            ("ipv6@::1:9999", "[::1]:9999"),
            ("tcp/localhost:2019", "localhost:2019"),
            ("*:9999", "localhost:9999"),
            ("ipv4@:9999", "localhost:9999"),
        ] {
            assert_eq!(shown(written).unwrap(), wanted, "{written}");
            assert_eq!(shown(wanted).unwrap(), wanted);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "abns@h",
            "fd@3",
            "ipv4@/run/h.sock",
            "ipv4@127.0.0.1",
            "unix@",
            "http://u:p@h:2019",
            "http://h:2019",
            "h:0",
            "h:x",
            "h b:1",
        ] {
            assert!(shown(text).is_err(), "{text}");
        }
    }
}
