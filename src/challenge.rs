//! Proving control of a name (RFC 8555 section 8). A [`Solver`] lays out the
//! answer that the CA will look for and takes it away again. Each solver has its
//! [`SolverSettings`] beside it; [`ChallengeSettings`] is one of them, and no other
//! module matches on which. Nothing here reads a configuration.

mod connections;
pub mod http01;
pub mod responses;
pub mod webroot;

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::responses::Responses;
use crate::identifier::Identifier;

/// The kinds of challenge that a solver may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// RFC 8555 section 8.3.
    Http01,
}

/// Every kind that a CA may offer by its registered name, and ours where a solver
/// answers it.
const KINDS: [(&str, Option<ChallengeKind>); 3] = [
    ("http-01", Some(ChallengeKind::Http01)),
    ("tls-alpn-01", None),
    ("dns-01", None),
];

impl ChallengeKind {
    /// The names of those that are answered.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        let answered = KINDS.iter().filter(|(_, kind)| kind.is_some());
        answered.map(|(name, _)| *name).collect()
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

/// How control of names is proven: the settings of one solver. This is what is
/// stored with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChallengeSettings {
    /// By our own HTTP-01 listener.
    Listen(http01::Settings),
    /// By HTTP-01 through a directory that another server serves on port 80.
    Webroot(webroot::Settings),
}

impl From<ChallengeKind> for ChallengeSettings {
    /// How a challenge of `kind` is answered when nothing more is configured.
    fn from(kind: ChallengeKind) -> Self {
        match kind {
            ChallengeKind::Http01 => Self::Listen(http01::Settings::default()),
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
    /// The one place that tells the solvers apart.
    fn deref(&self) -> &Self::Target {
        match self {
            Self::Listen(settings) => settings,
            Self::Webroot(settings) => settings,
        }
    }
}

/// What the settings of every solver answer.
pub trait SolverSettings: Send + Sync + 'static {
    /// The solver; `responses` is what the listeners of this process give.
    fn solver(&self, responses: &Responses) -> Arc<dyn Solver>;

    /// Equal for settings whose solvers may stand for each other.
    fn solver_key(&self) -> String;

    /// Where this process must answer HTTP-01: `None` when it need not, and no
    /// address for port 80 of all of them.
    fn http_listen(&self) -> Option<&[SocketAddr]> {
        None
    }

    /// The directory that answers are written to.
    fn writes_in(&self) -> Option<&Path> {
        None
    }

    /// Looks at what must be there before an order.
    ///
    /// # Errors
    /// What is missing.
    fn check(&self) -> Result<(), Unfit> {
        Ok(())
    }

    /// Whether control of `name` can be proven at all.
    ///
    /// # Errors
    /// Why not.
    fn check_name(&self, name: &Identifier) -> Result<(), Unfit>;
}

/// Why a solver cannot prove control, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    /// What is wrong.
    pub message: String,
    /// The next thing to do.
    pub hint: &'static str,
}

/// HTTP-01 is refused for wildcards (RFC 8555 section 8.3), whoever answers it.
fn check_http01_name(name: &Identifier) -> Result<(), Unfit> {
    if !name.is_wildcard() {
        return Ok(());
    }
    Err(Unfit {
        message: format!("{name}: HTTP-01 cannot prove a wildcard"),
        hint: "list the names one by one; this version does not answer DNS-01",
    })
}

/// A challenge's token: base64url text of bounded length, safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// Takes 22 to 128 characters of `[A-Za-z0-9_-]`; whatever else a CA sends
    /// never reaches a path.
    ///
    /// # Errors
    /// [`SolverError::Token`] for anything else.
    pub fn parse(text: &str) -> Result<Self, SolverError> {
        let fine = (22..=128).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fine {
            Ok(Self(text.to_owned()))
        } else {
            Err(SolverError::Token)
        }
    }

    /// The token as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One answer to be laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The kind of challenge.
    pub kind: ChallengeKind,
    /// The name that is proven; never a wildcard for HTTP-01.
    pub identifier: Identifier,
    /// Names the answer.
    pub token: Token,
    /// `token.thumbprint`, what the CA expects to read.
    pub key_authorization: String,
}

/// Why an answer could not be laid out.
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
}

/// Lays out answers. Every call may be repeated, also after a crash.
#[async_trait]
pub trait Solver: Send + Sync {
    /// Whether it answers challenges of `kind` for `identifier`.
    fn supports(&self, kind: ChallengeKind, identifier: &Identifier) -> bool;

    /// Lays the answer out; when it returns, the CA can see it as far as that
    /// can be known from here.
    async fn present(&self, answer: &Answer) -> Result<(), SolverError>;

    /// Returns when the CA was seen to fetch the answer. Solvers that cannot
    /// see that never return: the caller polls beside it.
    async fn observed(&self, answer: &Answer);

    /// Takes the answer away; fine when it is gone already.
    async fn clean_up(&self, answer: &Answer) -> Result<(), SolverError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_settings_keep_stored_json() {
        let webroot = ChallengeSettings::Webroot(webroot::Settings::new("/srv/www".into()));
        let address =
            ChallengeSettings::Listen(http01::Settings::new(vec![([127, 0, 0, 1], 8080).into()]));
        for (settings, json) in [
            (ChallengeSettings::default(), r#"{"listen":[]}"#),
            (address, r#"{"listen":["127.0.0.1:8080"]}"#),
            (webroot, r#"{"webroot":"/srv/www"}"#),
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
            let words = format!("this version does not answer {name}");
            assert_eq!(name.parse::<ChallengeKind>(), Err(words));
        }
        let unknown = "unknown challenge `dns`".to_owned();
        assert_eq!("dns".parse::<ChallengeKind>(), Err(unknown));
    }
}
