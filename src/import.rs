//! Reads the state of another ACME client: certificates with their keys, accounts,
//! and the settings of each renewal. It reads one directory and nothing outside of
//! it, writes nothing, sends nothing, and leaves all decisions about what it
//! [`Found`] to the caller.
//!
//! All of that is untrusted text. It is read within bounds, and names become
//! [`Lineage`]s before they become paths. An entry that is not understood is reported
//! with the reason and skipped, so that the others can be imported.

mod acme_sh;
mod caddy;
mod certbot;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hook;
mod lego;
mod lines;
#[cfg(test)]
mod tests;
mod traefik;
mod tree;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::certificate::Secret;
use crate::identifier::Identifier;
use crate::lineage::Lineage;
use crate::text::{printable, printable_within};

/// The clients whose state can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    /// /etc/letsencrypt
    Certbot,
    /// ~/.acme.sh
    #[value(name = "acme.sh")]
    AcmeSh,
    /// ./.lego
    Lego,
    /// Its storage: /var/lib/caddy/.local/share/caddy or ~/.local/share/caddy
    Caddy,
    /// Its acme.json
    Traefik,
}

impl Tool {
    /// The name that the client uses for itself.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Certbot => "certbot",
            Self::AcmeSh => "acme.sh",
            Self::Lego => "lego",
            Self::Caddy => "caddy",
            Self::Traefik => "traefik",
        }
    }

    /// The client's default directories, in the order to try; `home` is the user's.
    #[must_use]
    pub(crate) fn usual_places(self, home: Option<&Path>) -> Vec<PathBuf> {
        let below_home = |path: &str| home.map(|home| home.join(path));
        match self {
            Self::Certbot => vec!["/etc/letsencrypt".into()],
            Self::AcmeSh => below_home(".acme.sh").into_iter().collect(),
            // The default is relative to the directory that lego is started in.
            Self::Lego => vec![".lego".into()],
            Self::Caddy => {
                let service = PathBuf::from("/var/lib/caddy/.local/share/caddy");
                let own = below_home(".local/share/caddy");
                [service].into_iter().chain(own).collect()
            }
            Self::Traefik => Vec::new(),
        }
    }
}

/// A placeholder in remarks for the directory of the certificate's files, or of all
/// files if the remark is not about one certificate.
pub(crate) const LIVE: &str = "LIVE";

/// The state that was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order of their names.
    pub certificates: Vec<ImportedCertificate>,
    pub accounts: Vec<ImportedAccount>,
    /// What is not imported, and what the operator has to do.
    pub remarks: Vec<Remark>,
}

/// A CA, as far as the client stores it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum IssuingCa {
    /// The URL of its directory.
    Directory(String),
    /// Only the host, with its port if there is one.
    Host(String),
}

/// A certificate with the settings of its renewal.
#[derive(Debug)]
pub(crate) struct ImportedCertificate {
    /// Its future lineage.
    pub lineage: Lineage,
    pub key_pem: Secret,
    /// Leaf first.
    pub chain_pem: String,
    pub ca: IssuingCa,
    /// The [`ImportedAccount::name`] of its order, if the client stores it.
    pub account: Option<String>,
    pub renewal: RenewalSettings,
    /// Settings that are not imported, and what the operator has to do.
    pub remarks: Vec<Remark>,
}

/// The settings of a renewal; missing ones get defaults.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct RenewalSettings {
    /// How HTTP-01 was answered, if the client used it.
    pub http01: Option<Http01>,
    /// Whether renewals reuse the key.
    pub reuse_key: bool,
    /// Whether names that fail may be excluded.
    pub partial: bool,
    /// The preferred chain, by the common name of an issuer in it.
    pub preferred_chain: Option<String>,
    pub profile: Option<String>,
    /// Whether nginx is reloaded after a renewal.
    pub nginx: bool,
    /// Programs to run after a renewal, as absolute paths.
    pub programs: Vec<PathBuf>,
}

/// How HTTP-01 was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Http01 {
    /// By the client's own listener; `None` is port 80 of all addresses.
    Listen(Option<SocketAddr>),
    /// By a file below a directory that another server serves.
    Webroot(PathBuf),
    /// The same, with a directory for each name.
    Webroots(BTreeMap<Identifier, PathBuf>),
}

/// An account at a CA.
#[derive(Debug)]
pub(crate) struct ImportedAccount {
    /// Its name in the source.
    pub name: String,
    pub ca: IssuingCa,
    pub key: ImportedKey,
    /// Its URL at the CA, if the client stores it.
    pub url: Option<String>,
    pub email: Option<String>,
}

/// An account's key as the client stores it.
#[derive(Debug)]
pub(crate) enum ImportedKey {
    /// PKCS#8, PKCS#1 or SEC1.
    Pem(Secret),
    /// The same in DER and base64.
    Base64(Secret),
    Jwk(Secret),
}

/// A message for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// The entry or setting, by its name in the source.
    pub subject: String,
    /// What it is about.
    pub kind: RemarkKind,
    /// The reason, or what to do.
    pub text: String,
    /// Whether it is void once the import itself says how challenges are answered.
    pub is_of_challenge: bool,
}

/// The subject of a remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RemarkKind {
    /// An invalid certificate or account.
    Invalid,
    /// An unsupported setting.
    Unsupported,
    /// A task for the operator.
    Manual,
    /// A setting that certs obeys from now on.
    Stored,
}

impl Remark {
    /// Text of the source in it is made printable.
    fn new(kind: RemarkKind, subject: impl AsRef<str>, text: impl AsRef<str>) -> Self {
        let (subject, text) = (printable(subject.as_ref()), printable(text.as_ref()));
        Self {
            subject,
            kind,
            text,
            is_of_challenge: false,
        }
    }

    /// The same about the answers to challenges.
    fn of_challenge(self) -> Self {
        Self {
            is_of_challenge: true,
            ..self
        }
    }

    fn invalid(subject: impl AsRef<str>, text: impl AsRef<str>) -> Self {
        Self::new(RemarkKind::Invalid, subject, text)
    }

    /// A setting that is not imported, and why.
    #[must_use]
    pub(crate) fn unsupported(subject: impl AsRef<str>, text: impl AsRef<str>) -> Self {
        Self::new(RemarkKind::Unsupported, subject, text)
    }

    /// A task for the operator.
    #[must_use]
    pub(crate) fn manual(subject: impl AsRef<str>, text: impl AsRef<str>) -> Self {
        Self::new(RemarkKind::Manual, subject, text)
    }

    /// A setting that certs obeys from now on.
    #[must_use]
    pub(crate) fn stored(subject: impl AsRef<str>, text: impl AsRef<str>) -> Self {
        Self::new(RemarkKind::Stored, subject, text)
    }

    /// A way to answer challenges that this version does not have.
    fn no_solver(setting: &str, method: &str, is_dns: bool) -> Self {
        let method = part(method);
        let why = match is_dns {
            true => {
                ": credentials of DNS providers are not taken: the renewal will use HTTP-01 on port 80, which cannot \
                 validate a wildcard"
            }
            false => {
                " has no counterpart: the renewal will use HTTP-01 on port 80; import again with --webroot DIR if \
                 another server uses that port"
            }
        };
        Self::unsupported(setting, format!("{method}{why}")).of_challenge()
    }
}

/// A part of the source within a remark, so short that the remark's own words stay whole.
fn part(text: &str) -> String {
    const LONGEST: usize = 200;
    printable_within(text, LONGEST)
}

impl Found {
    /// Adds a certificate, or the reason why it is invalid.
    fn certificate(&mut self, subject: &str, read: Result<ImportedCertificate, String>) {
        match read {
            Ok(certificate) => self.certificates.push(certificate),
            Err(why) => self.remarks.push(Remark::invalid(subject, why)),
        }
    }

    /// The same for an account.
    fn account(&mut self, name: &str, read: Result<ImportedAccount, String>) {
        match read {
            Ok(account) => self.accounts.push(account),
            Err(why) => {
                let subject = format!("account {name}");
                self.remarks.push(Remark::invalid(subject, why));
            }
        }
    }
}

/// Reads the state of `tool` at `path`.
///
/// # Errors
/// Why `path` does not have the state of `tool`.
pub(crate) fn read(tool: Tool, path: &Path) -> Result<Found, String> {
    let reader = match tool {
        Tool::Certbot => certbot::read,
        Tool::AcmeSh => acme_sh::read,
        Tool::Lego => lego::read,
        Tool::Caddy => caddy::read,
        Tool::Traefik => return traefik::read(path).map(sorted),
    };
    let tree = tree::StateTree::open(path)?;
    let found = reader(&tree);
    let unreadable = tree.unreadable.into_inner();
    let mut found = found.map_err(|missing| {
        let (name, path) = (tool.name(), tree.root.display());
        let unread: String = unreadable.iter().map(|why| format!("; {why}")).collect();
        format!("{path} is not a directory of {name}: no {missing} found{unread}")
    })?;
    let unreadable = unreadable.into_iter();
    let remarks = unreadable.map(|why| Remark::invalid("unreadable directory", why));
    found.remarks.extend(remarks);
    Ok(sorted(found))
}

fn sorted(mut found: Found) -> Found {
    let by_name = |one: &ImportedCertificate| one.lineage.clone();
    found.certificates.sort_by_key(by_name);
    found
}

/// The lineage of a certificate by its first name.
fn lineage_of(name: &str) -> Result<Lineage, String> {
    let first = Identifier::parse(name).map_err(|error| error.to_string())?;
    Ok(Lineage::of(&first))
}

/// The host of an https URL, with its port if it has one.
fn host_of(url: &str) -> Option<String> {
    let url: http::Uri = url.parse().ok()?;
    let is_https = url.scheme_str() == Some("https");
    let authority = url.authority().filter(|_| is_https)?;
    Some(authority.as_str().to_ascii_lowercase())
}

/// The first e-mail address among the contacts of an account (RFC 8555 section 7.1.2).
fn email(contacts: &serde_json::Value) -> Option<String> {
    let contacts = contacts.as_array().into_iter().flatten();
    let mut addresses = contacts.filter_map(|contact| contact.as_str()?.strip_prefix("mailto:"));
    addresses.find_map(address)
}

/// `text`, if it may be an e-mail address.
fn address(text: &str) -> Option<String> {
    const LONGEST: usize = 254;
    let is_plain = |letter: char| !letter.is_whitespace() && !letter.is_control();
    let is_valid = text.len() <= LONGEST && text.contains('@') && text.chars().all(is_plain);
    is_valid.then(|| text.to_owned())
}
