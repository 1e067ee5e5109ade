//! What the servers of a shared store are given: a URL, and the environment with the variables
//! that their own tools read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};

use super::OTHERS_KEY;
use crate::certificate::Secret;
use crate::files::named;
use crate::net::dns::lookup::Resolver;
use crate::net::proxy::Proxies;
use crate::net::secure::{ClientPair, PairFault};

/// It has no `Debug`: the URL and the environment have passwords.
pub(in super::super) struct ServerSettings {
    /// `s3://…`, `etcd://…` or `postgres://…`.
    pub(in super::super) url: String,
    /// The variables of this process.
    pub(in super::super) environment: BTreeMap<String, String>,
    pub(in super::super) proxies: Proxies,
    /// Looks up the hosts of servers and proxies.
    pub(in super::super) resolver: Resolver,
}

impl ServerSettings {
    /// Those of this process.
    #[allow(clippy::disallowed_methods)] // AWS, etcd and PostgreSQL have named these variables
    pub(in super::super) fn of_this_process(url: String, resolver: Resolver) -> Self {
        let variables = std::env::vars_os();
        let text = |(name, value): (OsString, OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment = variables.filter_map(text).collect();
        Self {
            url,
            resolver,
            proxies: Proxies::of(&environment),
            environment,
        }
    }

    /// A variable that is not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let value = self.environment.get(name)?.trim();
        Some(value).filter(|value| !value.is_empty())
    }
}

/// The content of the file that the setting `name` names.
pub(super) fn read((name, file): (&str, &str)) -> Result<Secret, String> {
    let read = named::read_data(file.as_ref());
    read.map_err(|error| format!("{name} {file}: {error}"))
}

/// The client's certificate and key: each the name of a setting, and the file that it names.
///
/// # Errors
/// When one of them is missing, and why their files cannot be used together.
pub(super) fn client_pair(
    (cert, cert_file): (&str, Option<&str>),
    (key, key_file): (&str, Option<&str>),
) -> Result<Option<ClientPair>, String> {
    let (cert_file, key_file) = match (cert_file, key_file) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(format!("{cert} without {key}")),
        (None, Some(_)) => return Err(format!("{key} without {cert}")),
        (Some(cert_file), Some(key_file)) => (cert_file, key_file),
    };
    let (chain, secret) = (read((cert, cert_file))?, read((key, key_file))?);
    let pair = ClientPair::parse(chain.expose().as_bytes(), secret.expose().as_bytes());
    let pair = pair.map_err(|fault| match fault {
        PairFault::Certificate => format!("{cert} {cert_file}: it has no certificate in PEM"),
        PairFault::Key => {
            format!("{key} {key_file}: it has no private key in PEM, or an encrypted one")
        }
        PairFault::Mismatch => {
            format!("{key} {key_file}: {OTHERS_KEY} in {cert_file}")
        }
    });
    pair.map(Some)
}

/// Whether `prefix` is a path of ASCII letters, digits and `._-`, or empty.
pub(super) fn is_prefix(prefix: &str) -> bool {
    let is_part = |part: &str| !["", ".", ".."].contains(&part) && is_plain(part);
    prefix.len() <= 200 && (prefix.is_empty() || prefix.split('/').all(is_part))
}

/// The message for another prefix.
pub(super) fn invalid_prefix(prefix: &str) -> String {
    format!("invalid prefix `{}`", prefix.escape_debug())
}

/// Whether `text` has ASCII letters, digits and `._-` only.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// Whether a host is this machine, an address that the Internet does not route, or a name of a
/// private network. What is stored is sealed, but a third party on the way could replay old
/// documents: elsewhere it must be TLS.
pub(super) fn is_private(host: &str) -> bool {
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        Ok(IpAddr::V4(one)) => is_private_v4(one),
        Ok(IpAddr::V6(one)) => {
            one.is_loopback() || one.is_unique_local() || one.is_unicast_link_local()
        }
        Err(_) => {
            let endings = [".localhost", ".local", ".internal"];
            !host.contains('.') || endings.iter().any(|ending| host.ends_with(ending))
        }
    }
}

fn is_private_v4(one: Ipv4Addr) -> bool {
    // Shared by carriers and overlays (RFC 6598), and for benchmarks (RFC 2544).
    let is_shared = matches!(one.octets(), [100, 64..=127, ..] | [198, 18 | 19, ..]);
    one.is_loopback()
        || one.is_private()
        || one.is_link_local()
        || one.is_documentation()
        || is_shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_known() {
        for host in [
            "127.0.0.1",
            "[::1]",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "100.100.0.1",
            "[fd00::1]",
            "[fe80::1]",
            "localhost",
            "minio",
            "minio.storage.svc.cluster.local",
            "db.internal",
        ] {
            assert!(is_private(host), "{host}");
        }
        for host in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "[2a00::1]",
            "s3.example.com",
            "local.example",
        ] {
            assert!(!is_private(host), "{host}");
        }
    }

    #[test]
    fn prefix_is_a_plain_path() {
        for prefix in ["", "a", "certs/prod-1/x.y_z"] {
            assert!(is_prefix(prefix), "{prefix}");
        }
        for prefix in ["/a", "a/", "a//b", "a/../b", ".", "a b", "ä", "a*"] {
            assert!(!is_prefix(prefix), "{prefix}");
        }
    }
}
