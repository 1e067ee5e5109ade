//! Proving control of a name (RFC 8555 section 8). A [`Solver`] presents the answer
//! that the CA fetches, and cleans it up afterwards. Each solver has its
//! [`SolverSettings`] beside it; [`ChallengeSettings`] is one of them, and no other
//! module matches on which. Nothing here reads a configuration.

pub mod dns01;
pub mod dns_persist;
mod elsewhere;
pub mod http01;
pub mod listen;
pub mod protocol;
pub mod responses;
pub mod tls_alpn01;
pub mod webroot;
mod zones;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedSender;

use self::protocol::Listen;
use self::responses::{Reserved, Responses};
use crate::identifier::Identifier;

/// The kinds of challenge that solvers answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// RFC 8555 section 8.3.
    Http01,
    /// RFC 8737.
    TlsAlpn01,
    /// RFC 8555 section 8.4.
    Dns01,
    /// draft-ietf-acme-dns-account-label: as DNS-01, at a name of the account's own.
    DnsAccount01,
    /// draft-ietf-acme-dns-persist: a record that stays.
    DnsPersist01,
}

/// The registered names of the kinds that a CA may offer, and our kind if a solver answers
/// it.
const KINDS: [(&str, Option<ChallengeKind>); 5] = [
    ("http-01", Some(ChallengeKind::Http01)),
    ("tls-alpn-01", Some(ChallengeKind::TlsAlpn01)),
    ("dns-01", Some(ChallengeKind::Dns01)),
    ("dns-account-01", Some(ChallengeKind::DnsAccount01)),
    ("dns-persist-01", Some(ChallengeKind::DnsPersist01)),
];

impl ChallengeKind {
    /// Its registered name.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = KINDS.iter().find(|(_, kind)| *kind == Some(self));
        named.map_or("", |(name, _)| name)
    }

    /// The next thing to do when the CA found no valid answer.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Http01 => {
                "port 80 of each name must reach this machine from the internet: check DNS records, firewalls and port forwarding"
            }
            Self::TlsAlpn01 => {
                "port 443 of each name must reach this machine from the internet, and what listens there must forward connections that offer acme-tls/1 to --tls-listen: check DNS records, firewalls and forwarding"
            }
            Self::Dns01 | Self::DnsAccount01 => {
                "the CA asks the name servers of the zone: check that the domain is delegated to those that the provider changes (dig NS NAME), and that all of them answer"
            }
            Self::DnsPersist01 => {
                "the CA looks for the record at _validation-persist.NAME: compare it with the one that certs prints, at every name server of the zone (dig TXT)"
            }
        }
    }

    /// Whether it proves a name by its zone, also one that leads to another machine.
    #[must_use]
    pub fn proves_by_zone(self) -> bool {
        matches!(self, Self::Dns01 | Self::DnsAccount01 | Self::DnsPersist01)
    }

    /// Whether its record stays, and serves every order of the account: it has no token, and is
    /// never cleaned up.
    #[must_use]
    pub fn is_persistent(self) -> bool {
        self == Self::DnsPersist01
    }

    /// Whether the name of its record follows from the account.
    #[must_use]
    pub fn names_account(self) -> bool {
        self == Self::DnsAccount01
    }

    /// Whether it is a draft, which CAs may still change or drop.
    #[must_use]
    pub fn is_draft(self) -> bool {
        matches!(self, Self::DnsAccount01 | Self::DnsPersist01)
    }

    /// The kinds that a solver answers.
    pub fn answered() -> impl Iterator<Item = Self> {
        KINDS.iter().filter_map(|(_, kind)| *kind)
    }

    /// Their names.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Self::answered().map(Self::name).collect()
    }
}

impl FromStr for ChallengeKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match KINDS.iter().find(|(name, _)| *name == text) {
            Some((_, Some(kind))) => Ok(*kind),
            Some((name, None)) => Err(format!("this version does not answer {name}")),
            None => Err(format!("unknown challenge `{}`", text.escape_debug())),
        }
    }
}

/// How control of names is proven: the settings of one solver. They are stored with a
/// certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChallengeSettings {
    /// By our own HTTP-01 listener.
    Listen(http01::Settings),
    /// By our own TLS-ALPN-01 listener.
    TlsListen(tls_alpn01::Settings),
    /// By HTTP-01 through a directory that another server serves on port 80.
    Webroot(webroot::Settings),
    /// By DNS-01 or DNS-ACCOUNT-01.
    Dns(dns01::Settings),
    /// By DNS-PERSIST-01.
    DnsPersist(dns_persist::Settings),
}

impl From<ChallengeKind> for ChallengeSettings {
    /// The default settings for challenges of `kind`.
    fn from(kind: ChallengeKind) -> Self {
        match kind {
            ChallengeKind::Http01 => Self::Listen(http01::Settings::default()),
            ChallengeKind::TlsAlpn01 => Self::TlsListen(tls_alpn01::Settings::default()),
            ChallengeKind::Dns01 => Self::Dns(dns01::Settings::default()),
            ChallengeKind::DnsAccount01 => Self::Dns(dns01::Settings::by_account()),
            ChallengeKind::DnsPersist01 => Self::DnsPersist(dns_persist::Settings::default()),
        }
    }
}

impl Default for ChallengeSettings {
    fn default() -> Self {
        ChallengeKind::Http01.into()
    }
}

impl std::ops::Deref for ChallengeSettings {
    type Target = dyn SolverSettings;
    /// The only match on the kind of solver.
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Listen(settings) => settings,
            Self::TlsListen(settings) => settings,
            Self::Webroot(settings) => settings,
            Self::Dns(settings) => settings,
            Self::DnsPersist(settings) => settings,
        }
    }
}

/// The interface of every solver's settings.
pub trait SolverSettings: Send + Sync + 'static {
    /// The solver; the listeners of this process serve `responses`.
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver>;

    /// The kind of challenge that the solver answers.
    fn kind(&self) -> ChallengeKind;

    /// A key that is equal for settings with interchangeable solvers.
    fn solver_key(&self) -> String;

    /// Where this process must answer, and by which protocol; empty if it need not.
    fn listens(&self) -> Vec<Listen> {
        Vec::new()
    }

    /// The program that presents the answers.
    fn program(&self) -> Option<&Path> {
        None
    }

    /// The directories of the written answers.
    fn writes_in(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// The open directories of the written answers, which are created.
    fn open_answers(&self) -> Vec<std::io::Result<File>> {
        Vec::new()
    }

    /// Checks the requirements of an order, such as a directory.
    fn check(&self) -> Result<(), Unfit> {
        Ok(())
    }

    /// Checks that this solver can prove control of `name`.
    fn check_name(&self, name: &Identifier) -> Result<(), Unfit>;
}

/// Why a solver cannot prove control, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// The problem.
    pub message: String,
    /// The next thing to do.
    pub hint: Cow<'static, str>,
}

const WILDCARD_HINT: &str = "prove it by DNS-01: --dns PROVIDER changes the zone at its provider, --dns self needs none; or list the names one by one";

/// Refuses wildcards, which HTTP-01 cannot prove (RFC 8555 section 8.3).
fn check_http01_name(name: &Identifier) -> Result<(), Unfit> {
    if !name.is_wildcard() {
        return Ok(());
    }
    Err(Unfit {
        message: format!("{name}: HTTP-01 cannot prove a wildcard"),
        hint: WILDCARD_HINT.into(),
    })
}

/// A challenge's token: base64url text of bounded length, safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// Accepts 22 to 128 characters of `[A-Za-z0-9_-]`, so that no other text of a CA
    /// reaches a path.
    ///
    /// # Errors
    /// [`SolverError::Token`] for any other text.
    pub fn parse(text: &str) -> Result<Self, SolverError> {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        match (22..=128).contains(&text.len()) && text.bytes().all(known) {
            true => Ok(Self(text.to_owned())),
            false => Err(SolverError::Token),
        }
    }

    /// In place of the token that a challenge does not have.
    #[must_use]
    pub fn absent() -> Self {
        Self("no-token-of-a-challenge".to_owned())
    }

    /// The token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One answer to present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The kind of challenge.
    pub kind: ChallengeKind,
    /// The name to prove; never a wildcard for HTTP-01.
    pub identifier: Identifier,
    /// The token of the challenge.
    pub token: Token,
    /// `token.thumbprint`, which the CA expects to fetch.
    pub key_authorization: String,
    /// The account that orders, for kinds whose records name it.
    pub account: AccountReference,
}

/// How a record refers to the account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountReference {
    /// The account's URL (RFC 8555 section 7.1.2).
    pub url: String,
    /// The account in a persistent record: its URL, or the hash of it that the CA wants.
    pub uri: String,
    /// The names by which a persistent record may call the CA.
    pub issuers: Vec<String>,
    /// Whether the order also has the wildcard of this name.
    pub with_wildcard: bool,
}

/// Why an answer could not be presented or cleaned up.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum SolverError {
    #[error("the CA sent a challenge token that is not 22 to 128 characters of base64url")]
    Token,
    #[error("{operation} {path}: {source}")]
    Io {
        operation: &'static str,
        path: String,
        source: std::io::Error,
    },
    /// A DNS record, with what to do about it.
    #[error("{message}")]
    Dns {
        message: String,
        hint: Cow<'static, str>,
    },
}

/// Where a solver says what it waits for.
#[derive(Clone, Debug)]
pub struct Report(UnboundedSender<String>);

impl Report {
    /// Reports go to `sender`.
    #[must_use]
    pub fn new(sender: UnboundedSender<String>) -> Self {
        Self(sender)
    }

    /// Reports a phase.
    pub fn say(&self, phase: String) {
        // The reader may have gone.
        let _ = self.0.send(phase);
    }
}

/// Presents answers to challenges. Every call may be repeated, also after a crash.
#[async_trait]
pub trait Solver: Send + Sync {
    /// Whether it answers challenges of `kind` for `identifier`.
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool;

    /// Waits until no other order answers for one of these names, if an answer is found by its
    /// name alone, and keeps them from other orders until the returned value is dropped.
    async fn reserve(&self, _names: &BTreeSet<Identifier>) -> Option<Reserved> {
        None
    }

    /// Presents the answer. When it returns, the CA can fetch it, as far as this process
    /// can know.
    async fn present(&self, answer: &Answer) -> Result<(), SolverError>;

    /// Whether an answer outlives this process, so that an interrupted run must be cleaned
    /// up by a later one.
    fn leaves_traces(&self) -> bool {
        false
    }

    /// Returns when the CA can fetch the presented answer, or when waiting longer is of no
    /// use. It fails only if the CA certainly cannot.
    async fn visible(&self, _answer: &Answer, _report: &Report) -> Result<(), SolverError> {
        Ok(())
    }

    /// Returns when the CA has fetched the answer. A solver that cannot see that never
    /// returns, and the caller polls beside it.
    async fn observed(&self, answer: &Answer);

    /// Removes the answer; a missing one is not an error.
    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError>;

    /// Why the CA may not have seen a presented answer, as far as this machine can tell.
    async fn explain(&self, _answer: &Answer) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_settings_keep_stored_json() {
        let webroot = ChallengeSettings::Webroot(webroot::Settings::new("/srv/www".into()));
        let of_each = [("a.example", "/srv/a"), ("b.example", "/srv/b")];
        let of_each = of_each.map(|(name, root)| (name.parse().unwrap(), root.into()));
        let webroots = ChallengeSettings::Webroot(webroot::Settings::of_each(of_each.into()));
        let address =
            ChallengeSettings::Listen(http01::Settings::new(vec![([127, 0, 0, 1], 8080).into()]));
        let dns = dns01::Settings::new("self".into(), "own".into(), Default::default());
        let dns = ChallengeSettings::Dns(dns);
        let account = ChallengeSettings::from(ChallengeKind::DnsAccount01);
        let persist = ChallengeSettings::from(ChallengeKind::DnsPersist01);
        for (settings, json) in [
            (persist, r#"{"dns_persist":{}}"#),
            (
                account,
                r#"{"dns":{"provider":"","name":"","by_account":true}}"#,
            ),
            (dns, r#"{"dns":{"provider":"self","name":"own"}}"#),
            (ChallengeSettings::default(), r#"{"listen":[]}"#),
            (address, r#"{"listen":["127.0.0.1:8080"]}"#),
            (webroot, r#"{"webroot":"/srv/www"}"#),
            (
                webroots,
                r#"{"webroot":{"a.example":"/srv/a","b.example":"/srv/b"}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&settings).unwrap(), json);
            let read: ChallengeSettings = serde_json::from_str(json).unwrap();
            assert_eq!(read, settings);
        }
    }

    #[test]
    fn answered_kinds_have_solver_and_others_say_so() {
        for name in ChallengeKind::names() {
            let kind: ChallengeKind = name.parse().unwrap();
            let name = "example.com".parse().unwrap();
            assert_eq!(ChallengeSettings::from(kind).check_name(&name), Ok(()));
            let solver = ChallengeSettings::from(kind).solver(&Responses::default());
            assert!(solver.supports(kind, &name));
        }
        let others = KINDS.iter().filter(|(_, kind)| kind.is_none());
        for (name, _) in others {
            let message = format!("this version does not answer {name}");
            assert_eq!(name.parse::<ChallengeKind>(), Err(message));
        }
        let unknown = "unknown challenge `dns`".to_owned();
        assert_eq!("dns".parse::<ChallengeKind>(), Err(unknown));
    }
}
