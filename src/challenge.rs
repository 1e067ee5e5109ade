//! Proving control of a name (RFC 8555 section 8). A [`Solver`] lays out the
//! answer that the CA will look for and takes it away again.

mod connections;
pub mod http01;
pub mod responses;
pub mod webroot;

use async_trait::async_trait;
use thiserror::Error;

use crate::identifier::Identifier;

/// The kinds of challenge that a solver may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// RFC 8555 section 8.3.
    Http01,
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
