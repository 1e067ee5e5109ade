//! What another ACME client keeps on disk, read as it lies there: certificates
//! with their keys, accounts, and how each was to be renewed. It reads one
//! directory and nothing outside of it, writes nothing, asks nobody, and decides
//! nothing: what becomes of what was [`Found`] is for others.
//!
//! Everything there is a stranger's text. It is read within bounds, names become
//! [`Lineage`]s before they lead anywhere, and what cannot be understood is named
//! with its reason and left out, so that the rest can be taken.

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
use crate::identifier::Lineage;

/// The clients whose state is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names are the options'
pub(crate) enum Tool {
    Certbot,
    AcmeSh,
    Lego,
    Caddy,
    Traefik,
}

impl Tool {
    /// As it calls itself.
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

    /// Where it keeps its state when it is not told otherwise, in the order in which
    /// that is looked for; `home` is the user's.
    #[must_use]
    pub(crate) fn usual_places(self, home: Option<&Path>) -> Vec<PathBuf> {
        let below_home = |path: &str| home.map(|home| home.join(path));
        match self {
            Self::Certbot => vec!["/etc/letsencrypt".into()],
            Self::AcmeSh => below_home(".acme.sh").into_iter().collect(),
            // It has none but the directory that it is started in.
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

/// In a remark it stands for where the files of the certificate are from here on, or
/// of all of them where the remark is about none.
pub(crate) const LIVE: &str = "LIVE";

/// All that was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Certificates, in the order of their names.
    pub certificates: Vec<Certificate>,
    /// Accounts.
    pub accounts: Vec<Account>,
    /// What is not taken, and what is left to the owner.
    pub remarks: Vec<Remark>,
}

/// Which CA it is, as far as the client keeps that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ca {
    /// The URL of its directory.
    Directory(String),
    /// The host, with its port if it has one, and nothing more.
    Host(String),
}

/// A certificate with all that is known of how it is renewed.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// What it will be called.
    pub lineage: Lineage,
    /// Its private key in PEM.
    pub key_pem: Secret,
    /// Its chain in PEM, leaf first.
    pub chain_pem: String,
    /// Who issued it.
    pub ca: Ca,
    /// The [`Account::name`] that it was ordered with, where that is kept.
    pub account: Option<String>,
    /// How it is renewed.
    pub renewal: Renewal,
    /// What of its settings is not taken, and what is left to the owner.
    pub remarks: Vec<Remark>,
}

/// How a certificate was to be renewed; what is not said is left to defaults.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Renewal {
    /// How control was proven, where HTTP-01 did so.
    pub proof: Option<Proof>,
    /// Whether its key is kept.
    pub reuse_key: bool,
    /// Whether names that fail may be left out.
    pub partial: bool,
    /// The chain to take, by the common name of an issuer in it.
    pub preferred_chain: Option<String>,
    /// The CA's profile.
    pub profile: Option<String>,
    /// Whether nginx is to be told of it.
    pub nginx: bool,
    /// Programs that are to be run after it, by their whole paths.
    pub programs: Vec<PathBuf>,
}

/// How HTTP-01 was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// By a listener of its own; no address means port 80 of all of them.
    Listen(Option<SocketAddr>),
    /// Below a directory that another server serves.
    Webroot(PathBuf),
}

/// An account at a CA.
#[derive(Debug)]
pub(crate) struct Account {
    /// What it is called in the source.
    pub name: String,
    /// The CA.
    pub ca: Ca,
    /// Its key.
    pub key: AccountKey,
    /// Its URL at the CA, where that is kept.
    pub url: Option<String>,
    /// Where the CA may write to.
    pub email: Option<String>,
}

/// An account's key as the client keeps it.
#[derive(Debug)]
pub(crate) enum AccountKey {
    /// PKCS#8, PKCS#1 or SEC1.
    Pem(Secret),
    /// The same in DER and base64.
    Base64(Secret),
    /// A JSON Web Key.
    Jwk(Secret),
}

/// Something that the owner must know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remark {
    /// What it is about, as the source calls it.
    pub subject: String,
    /// What has become of it.
    pub verdict: Verdict,
    /// Why, or what to do.
    pub text: String,
}

/// What became of a part of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A certificate or an account that cannot be used.
    Broken,
    /// A setting without a counterpart here.
    NotTaken,
    /// Something that the owner has to do.
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
/// Why that is no place where `tool` keeps its state.
pub(crate) fn read(tool: Tool, path: &Path) -> Result<Found, String> {
    let of_tree = |read: fn(&tree::Tree) -> Result<Found, String>| {
        let tree = tree::Tree::open(path)?;
        let mut found = read(&tree)?;
        let closed = tree.closed().into_iter();
        let remarks = closed.map(|why| Remark::broken("a directory that cannot be read", why));
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

/// The message about a place where `tool` keeps nothing.
fn is_no_place(tool: Tool, path: &Path, lacks: &str) -> String {
    let (name, path) = (tool.name(), path.display());
    format!("{path} is no directory of {name}: it has no {lacks}")
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

/// What may be an e-mail address.
fn address(text: &str) -> Option<String> {
    const LONGEST: usize = 254;
    let fine = |letter: char| !letter.is_whitespace() && !letter.is_control();
    let fits = text.len() <= LONGEST && text.contains('@') && text.chars().all(fine);
    fits.then(|| text.to_owned())
}
