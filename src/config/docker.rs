//! The settings of `[docker]`: the API to read containers from, and the limits of the
//! certificates that their labels may request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::deploy::target::DeployTarget;
use crate::identifier::Identifier;

/// How long a certificate is still renewed after its container has gone.
pub(super) const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// How many certificates containers may request.
pub(super) const LIMIT: usize = 100;
/// Containers that request certificates by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DockerSettings {
    /// The address of Docker's API: `unix://PATH` or `tcp://HOST:PORT`.
    pub host: String,
    /// Whether an unfiltered API may be used.
    pub accept_raw_socket: bool,
    /// How long a certificate is still renewed after its container has gone.
    pub grace: Duration,
    /// The names that may be requested; all, when it is empty.
    pub allow: Vec<Pattern>,
    /// How many certificates may be requested.
    pub limit: usize,
    /// All of the file's `[deploy.NAME]`: a label may name each of them, and a label
    /// without targets deploys to all.
    pub deploy: Vec<DeployTarget>,
}

/// A name, or with `*.` before it every name below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Identifier);

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
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let name = Identifier::parse(text);
        name.map(Self).map_err(|error| error.to_string())
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0.to_string()
    }
}

/// A duration such as `90s`, `30m`, `12h` or `7d`, a year at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grace(pub(super) Duration);

impl FromStr for Grace {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("invalid duration `{}`", text.escape_debug());
        let unit = text.chars().last().ok_or_else(wrong)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        let number: u32 = text[..text.len() - unit.len_utf8()]
            .parse()
            .map_err(|_| wrong())?;
        let grace = u64::from(number) * seconds;
        match grace <= 366 * 86_400 {
            true => Ok(Self(Duration::from_secs(grace))),
            false => Err(format!("`{text}` is more than a year")),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
