//! The embedded CA: a strict ACME server (RFC 8555) with HTTP-01 validation,
//! renewal information (RFC 9773), profiles of any lifetime and external
//! account binding, for a developer's machine, a private network, the
//! demonstration and the tests.
//!
//! It keeps a root for the user to trust and an issuing intermediate, and
//! signs only what was validated. It offers no CRL and no OCSP: a revocation
//! is remembered and shows in the renewal information. It never validates
//! DNS-01, so it refuses wildcards. [`Server::router`] needs no socket: it
//! knows neither a peer's address nor TLS; [`Server::serve`] adds both.

mod account;
mod authority;
mod certificates;
mod jws;
mod listen;
mod nonces;
mod order;
mod problem;
mod renewal;
mod request;
mod server;
mod signing;
mod state;
mod validate;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

pub use listen::{Identity, serve};
pub use renewal::share;
pub use server::Server;
pub use signing::Signing;

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// How the CA behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What every URL starts with: `https://` and an authority, no slash at the end.
    pub base_url: String,
    /// What a client may order, by name; an order that names none gets
    /// `default`, or the first where there is no such profile.
    pub profiles: BTreeMap<String, Profile>,
    /// The renewal window of a certificate.
    pub windows: RenewalWindows,
    /// External account keys (HMAC, decoded) by identifier. Empty: none is required.
    pub external_accounts: BTreeMap<String, Vec<u8>>,
    /// A URL of terms that an account must agree to.
    pub terms_of_service: Option<String>,
    /// Whether names are validated at all.
    pub validation: Validation,
    /// How long an order and its authorizations may stay unfinished.
    pub order_lifetime: Duration,
    /// `Retry-After` on what is pending or processing; `None` leaves it out.
    pub retry_after: Option<Duration>,
    /// Where keys, accounts and orders are kept. `None`: nothing outlives the value.
    pub directory: Option<PathBuf>,
}

impl Settings {
    /// The usual settings for `base_url`: the profiles `default` (90 days),
    /// `tlsserver` (45 days) and `shortlived` (160 hours), validation on port
    /// 80 of whatever a name resolves to, nothing kept.
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
            terms_of_service: None,
            validation: Validation::Http {
                port: 80,
                resolve: Resolve::System,
            },
            order_lifetime: DAY,
            retry_after: None,
            directory: None,
        }
    }

    fn check(&self) -> Result<(), CaError> {
        let authority = self.base_url.strip_prefix("https://").unwrap_or("");
        let refuse = |what: String| Err(CaError::Settings(what));
        if authority.is_empty() || authority.contains('/') {
            return refuse(format!(
                "the base URL `{}` is not https:// and an authority",
                self.base_url.escape_debug()
            ));
        }
        if self.profiles.is_empty() {
            return refuse("there is no profile".into());
        }
        for (name, profile) in &self.profiles {
            if profile.lifetime < Duration::from_secs(1) || profile.lifetime > LONGEST_LIFETIME {
                return refuse(format!(
                    "the lifetime of profile `{}` is not between a second and ten years",
                    name.escape_debug()
                ));
            }
            if profile.backdate >= profile.lifetime {
                return refuse(format!(
                    "profile `{}` dates back by its whole lifetime",
                    name.escape_debug()
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

/// A kind of certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// From `notBefore` to the end of the second `notAfter`; one second or more.
    pub lifetime: Duration,
    /// What the directory says of it.
    pub description: String,
    /// How far `notBefore` lies in the past, for clients whose clock is behind.
    pub backdate: Duration,
}

impl Profile {
    /// A profile that dates back by an hour, or by a hundredth of a lifetime
    /// under 100 hours.
    #[must_use]
    pub fn new(lifetime: Duration, description: impl Into<String>) -> Self {
        Self {
            lifetime,
            description: description.into(),
            backdate: (lifetime / 100).min(HOUR),
        }
    }
}

/// Which renewal window the CA suggests (RFC 9773).
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

/// How control of a name is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {
    /// By HTTP-01 (RFC 8555 section 8.3).
    Http {
        /// The port to connect to; 80 where the world looks on.
        port: u16,
        /// Where the name leads.
        resolve: Resolve,
    },
    /// Every answer counts as right without being fetched, wildcards included:
    /// for simulations only.
    AlwaysValid,
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// To what the system's resolver says.
    System,
    /// Every name and address to this one.
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
    #[error("{path} is not usable: {detail}")]
    Corrupt { path: PathBuf, detail: String },
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    #[error("the TLS listener cannot be set up: {0}")]
    Tls(String),
}

impl CaError {
    /// The next thing to do.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Settings(_) => "correct the settings of the CA",
            Self::Io { .. } => "check the directory's owner, mode and free space",
            Self::Corrupt { .. } => {
                "restore the file from a backup; or move the CA's directory away and trust the new root that is made then"
            }
            Self::InUse(_) => "one CA serves a directory: use that one, or give another --data-dir",
            Self::Signing(_) | Self::Tls(_) => "run again with -v and report what it says",
        }
    }
}
