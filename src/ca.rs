//! The embedded CA: a strict ACME server (RFC 8555) with HTTP-01, TLS-ALPN-01 and DNS-01
//! validation, renewal information (RFC 9773), profiles of any lifetime and external
//! account binding, for a developer's machine, a private network, the
//! demonstration and the tests.
//!
//! It keeps a root for the user to trust and an issuing intermediate, and signs
//! only validated orders. A revocation shows in the renewal information and in the
//! issuer's revocation list (RFC 5280); there is no OCSP.
//! [`Server::router`] needs no socket and no TLS; [`Server::serve`] adds both.

mod account;
mod authority;
mod bounds;
mod certificates;
mod constraints;
mod directory;
mod jws;
mod listen;
mod nonces;
mod order;
mod problem;
mod renewal;
mod request;
mod revocation;
mod routes;
mod server;
mod signed;
mod signing;
mod state;
mod trust;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use crate::certificate::SecretBytes;
use crate::time::Timestamp;

pub use constraints::{PRIVATE, Permitted};
pub use listen::{Identity, serve};
pub use renewal::share;
pub use server::Server;
pub use signing::Signing;
pub(crate) use trust::{Root, TrustError, TrustStore};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// The settings of the CA.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The start of every URL: `https://` and an authority, no slash at the end.
    pub base_url: String,
    /// The profiles by name; an order without one gets `default`, else the first.
    pub profiles: BTreeMap<String, Profile>,
    /// The renewal window of a certificate.
    pub windows: RenewalWindows,
    /// External account keys (HMAC, decoded) by identifier. Empty: none is required.
    pub external_accounts: BTreeMap<String, SecretBytes>,
    /// How names are validated.
    pub validation: Validation,
    /// The DNS resolver that finds the zones of names, for DNS-01; `None` means the system's.
    pub resolver: Option<SocketAddr>,
    /// The names that a new root permits; all, if there are none. An existing root keeps its
    /// own.
    pub permitted: Vec<Permitted>,
    /// The start of the URLs of revocation lists: `http://` and an authority. Without one, new
    /// certificates name no list.
    pub lists_url: Option<String>,
    /// The directory of keys, accounts and orders; `None` keeps them in memory.
    pub directory: Option<PathBuf>,
}

impl Settings {
    /// The usual settings for `base_url`: the profiles `default` (90 days),
    /// `tlsserver` (45 days) and `shortlived` (160 hours), validation on port
    /// 80 of the resolved address, nothing stored.
    #[must_use]
    pub fn new(base_url: impl Into<String>) -> Self {
        let profile = |name: &str, lifetime, description| {
            (name.to_owned(), Profile::new(lifetime, description))
        };
        Self {
            base_url: base_url.into(),
            profiles: [
                profile("default", 90 * DAY, "90 days"),
                profile("tlsserver", 45 * DAY, "45 days"),
                profile("shortlived", 160 * HOUR, "160 hours"),
            ]
            .into(),
            windows: RenewalWindows::Share,
            external_accounts: BTreeMap::new(),
            validation: Validation::Connect {
                ports: Ports::default(),
                resolve: Resolve::System,
            },
            resolver: None,
            permitted: Vec::new(),
            lists_url: None,
            directory: None,
        }
    }

    fn check(&self) -> Result<(), CaError> {
        let refuse = |what: String| Err(CaError::Settings(what));
        let authority = self.base_url.strip_prefix("https://").unwrap_or("");
        if authority.is_empty() || authority.contains('/') {
            let url = self.base_url.escape_debug();
            return refuse(format!(
                "the base URL `{url}` is not https:// and an authority"
            ));
        }
        if self.profiles.is_empty() {
            return refuse("no profile is configured".into());
        }
        for (name, profile) in &self.profiles {
            let name = name.escape_debug();
            if !(SECOND..=LONGEST_LIFETIME).contains(&profile.lifetime) {
                return refuse(format!(
                    "the lifetime of profile `{name}` is not between a second and ten years"
                ));
            }
        }
        Ok(())
    }

    fn default_profile(&self) -> Option<&str> {
        let usual = self.profiles.get_key_value("default");
        let (name, _) = usual.or_else(|| self.profiles.first_key_value())?;
        Some(name)
    }
}

const LONGEST_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);

/// A certificate profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// From `notBefore` to the end of the second `notAfter`; one second or more.
    pub lifetime: Duration,
    /// Its description in the directory.
    pub description: String,
}

impl Profile {
    /// A profile of that lifetime.
    #[must_use]
    pub fn new(lifetime: Duration, description: impl Into<String>) -> Self {
        Self {
            lifetime,
            description: description.into(),
        }
    }

    /// The validity of a certificate that is signed at `now`, with the requested dates.
    fn validity(
        &self,
        not_before: Option<Timestamp>,
        not_after: Option<Timestamp>,
        now: Timestamp,
    ) -> (Timestamp, Timestamp) {
        let begin = not_before.unwrap_or(now - self.backdate());
        (begin, not_after.unwrap_or(begin + self.lifetime - SECOND))
    }

    /// How far `notBefore` lies in the past, for clients whose clock is behind.
    fn backdate(&self) -> Duration {
        (self.lifetime / 100).min(HOUR)
    }
}

/// The renewal window that the CA suggests (RFC 9773).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalWindows {
    /// Around two thirds of the lifetime (half of one under ten days), a
    /// hundredth of it to each side.
    Share,
    /// From `delay` after the issuance, for `width`.
    After {
        /// Counted from the instant of issuance, not from `notBefore`.
        delay: Duration,
        /// More than zero.
        width: Duration,
    },
}

/// How control of a name is validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// By a connection: HTTP-01 (RFC 8555 section 8.3) or TLS-ALPN-01 (RFC 8737).
    Connect {
        /// The ports to connect to.
        ports: Ports,
        /// How the name resolves.
        resolve: Resolve,
    },
    /// Every challenge is valid without a request, wildcards included: for
    /// simulations only.
    AlwaysValid,
}

/// The ports to which the CA connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// For HTTP-01.
    pub http: u16,
    /// For TLS-ALPN-01.
    pub tls: u16,
}

impl Default for Ports {
    /// Those of a public CA.
    fn default() -> Self {
        Self { http: 80, tls: 443 }
    }
}

impl Ports {
    /// `port` for both.
    #[must_use]
    pub fn both(port: u16) -> Self {
        Self {
            http: port,
            tls: port,
        }
    }
}

/// How a name resolves to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// By the system's resolver.
    System,
    /// Every name and address resolves to this address.
    Fixed(IpAddr),
}

/// Why the CA cannot be opened.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum CaError {
    #[error("{0}")]
    Settings(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is invalid: {detail}")]
    Corrupt { path: PathBuf, detail: String },
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    #[error("the TLS listener cannot be set up: {0}")]
    Tls(String),
}

impl CaError {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        Self::Io { path, source }
    }

    fn corrupt(path: &Path, detail: impl ToString) -> Self {
        let (path, detail) = (path.to_owned(), detail.to_string());
        Self::Corrupt { path, detail }
    }

    /// One next action for the user.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Settings(_) => "correct the settings of the CA",
            Self::Io { .. } => "check the directory's owner, mode and free space",
            Self::Corrupt { .. } => {
                "restore the file from a backup, or move the CA's directory away and trust the new root"
            }
            Self::InUse(_) => "use the CA that is running, or give another --data-dir",
            Self::Signing(_) | Self::Tls(_) => "run again with -v and report its output",
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
