//! The settings of `[docker]`: the API to read containers from, and the limits of the
//! certificates that their labels may request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deploy::target::DeployTarget;
use crate::identifier::{Identifier, IdentifierError};
use crate::text::{duration, stored_as_text};

/// How long a certificate is still renewed after its container has gone.
pub(super) const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// How many certificates containers may request.
pub(super) const LIMIT: usize = 100;

/// Containers that request certificates by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerSettings {
    /// The address of Docker's API: `unix://PATH` or `tcp://HOST:PORT`.
    pub host: String,
    pub accept_raw_socket: bool,
    pub grace: Duration,
    /// The names that may be requested; all, when it is empty.
    pub allow: Vec<Pattern>,
    pub limit: usize,
    /// All of the file's `[deploy.NAME]`: a label may name each of them, and a label
    /// without targets deploys to all.
    pub deploy: Vec<DeployTarget>,
}

/// A name, or with `*.` before it every name below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Identifier);

impl Pattern {
    pub(super) fn allows(&self, name: &Identifier) -> bool {
        let (pattern, name) = (self.0.to_string(), name.to_string());
        match pattern.strip_prefix('*') {
            Some(below) => name.ends_with(below),
            None => name == pattern,
        }
    }
}

impl FromStr for Pattern {
    type Err = IdentifierError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Identifier::parse(text).map(Self)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

stored_as_text!(Pattern);

/// A length of time such as `90s`, `30m`, `12h` or `7d`, a year at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grace(pub(super) Duration);

impl FromStr for Grace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text.trim()) {
            Some(grace) if grace <= Duration::from_secs(366 * 86_400) => Ok(Self(grace)),
            Some(_) => Err(format!("`{text}` is more than a year")),
            None => Err(format!("invalid duration `{}`", text.escape_debug())),
        }
    }
}
