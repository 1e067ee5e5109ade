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
#[cfg(test)]
mod fixture;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod hook;
mod lego;
mod lines;
mod traefik;
mod tree;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::certificate::Secret;
use crate::lineage::Lineage;

/// The clients whose state can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
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
    /// Certificates, in the order of their names.
    pub certificates: Vec<Certificate>,
    /// Accounts.
    pub accounts: Vec<Account>,
    /// What is not imported, and what the operator has to do.
    pub remarks: Vec<Remark>,
}

/// A CA, as far as the client stores it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ca {
    /// The URL of its directory.
    Directory(String),
    /// Only the host, with its port if there is one.
    Host(String),
}

/// A certificate with the settings of its renewal.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// Its future lineage.
    pub lineage: Lineage,
    /// Its private key in PEM.
    pub key_pem: Secret,
    /// Its chain in PEM, leaf first.
    pub chain_pem: String,
    /// The CA that issued it.
    pub ca: Ca,
    /// The [`Account::name`] of its order, if the client stores it.
    pub account: Option<String>,
    /// The settings of its renewal.
    pub renewal: Renewal,
    /// Settings that are not imported, and what the operator has to do.
    pub remarks: Vec<Remark>,
}

/// The settings of a renewal; missing ones get defaults.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// How HTTP-01 was answered, if the client used it.
    pub proof: Option<Proof>,
    /// Whether renewals reuse the key.
    pub reuse_key: bool,
    /// Whether names that fail may be excluded.
    pub partial: bool,
    /// The preferred chain, by the common name of an issuer in it.
    pub preferred_chain: Option<String>,
    /// The CA's profile.
    pub profile: Option<String>,
    /// Whether nginx is reloaded after a renewal.
    pub nginx: bool,
    /// Programs to run after a renewal, as absolute paths.
    pub programs: Vec<PathBuf>,
}

/// How HTTP-01 was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// By the client's own listener; `None` is port 80 of all addresses.
    Listen(Option<SocketAddr>),
    /// By a file below a directory that another server serves.
    Webroot(PathBuf),
}

/// An account at a CA.
#[derive(Debug)]
pub(crate) struct Account {
    /// Its name in the source.
    pub name: String,
    /// Its CA.
    pub ca: Ca,
    /// Its key.
    pub key: AccountKey,
    /// Its URL at the CA, if the client stores it.
    pub url: Option<String>,
    /// The contact address at the CA.
    pub email: Option<String>,
}

/// An account's key as the client stores it.
#[derive(Debug)]
pub(crate) enum AccountKey {
    /// PKCS#8, PKCS#1 or SEC1.
    Pem(Secret),
    /// The same in DER and base64.
    Base64(Secret),
    /// A JSON Web Key.
    Jwk(Secret),
}

/// A message for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// The entry or setting, by its name in the source.
    pub subject: String,
    /// What happened to it.
    pub verdict: Verdict,
    /// The reason, or what to do.
    pub text: String,
}

/// What happened to an entry or setting of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An invalid certificate or account.
    Broken,
    /// An unsupported setting.
    NotTaken,
    /// A task for the operator.
    ByHand,
}

impl Remark {
    fn new(verdict: Verdict, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            verdict,
            text: text.into(),
        }
    }

    fn broken(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Verdict::Broken, subject, text)
    }

    fn not_taken(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Verdict::NotTaken, subject, text)
    }

    fn by_hand(subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Verdict::ByHand, subject, text)
    }
}

/// Reads the state of `tool` at `path`.
///
/// # Errors
/// Why `path` does not have the state of `tool`.
pub(crate) fn read(tool: Tool, path: &Path) -> Result<Found, String> {
    let of_tree = |read: fn(&tree::Tree) -> Result<Found, String>| {
        let tree = tree::Tree::open(path)?;
        let mut found = read(&tree)?;
        let unreadable = tree.unreadable().into_iter();
        let remarks = unreadable.map(|why| Remark::broken("unreadable directory", why));
        found.remarks.extend(remarks);
        Ok::<_, String>(found)
    };
    let mut found = match tool {
        Tool::Certbot => of_tree(certbot::read),
        Tool::AcmeSh => of_tree(acme_sh::read),
        Tool::Lego => of_tree(lego::read),
        Tool::Caddy => of_tree(caddy::read),
        Tool::Traefik => traefik::read(path),
    }?;
    found
        .certificates
        .sort_by(|one, other| one.lineage.cmp(&other.lineage));
    Ok(found)
}

/// The message about a directory without the state of `tool`.
fn not_a_directory_of(tool: Tool, path: &Path, missing: &str) -> String {
    let (name, path) = (tool.name(), path.display());
    format!("{path} is not a directory of {name}: no {missing} found")
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
