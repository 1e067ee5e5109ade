//! Lengths of time as a user writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::{duration, stored_as_text};

/// A length of time such as `30s`, `10m` or `1h`, of so many seconds by default, and from
/// `SHORTEST` to `LONGEST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Length<const DEFAULT: u64, const SHORTEST: u64, const LONGEST: u64>(Duration);

/// The time between two looks at an endpoint.
pub(crate) type Interval = Length<600, 10, 86_400>;

/// How long a process still answers that was asked to stop.
pub(crate) type DrainTime = Length<0, 0, 3600>;

impl<const D: u64, const S: u64, const L: u64> Length<D, S, L> {
    /// Its length.
    pub(crate) fn length(self) -> Duration {
        self.0
    }
}

impl<const D: u64, const S: u64, const L: u64> Default for Length<D, S, L> {
    fn default() -> Self {
        Self(Duration::from_secs(D))
    }
}

impl<const D: u64, const S: u64, const L: u64> FromStr for Length<D, S, L> {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text.trim()) {
            Some(length) if (S..=L).contains(&length.as_secs()) => Ok(Self(length)),
            Some(_) => Err(format!("`{text}` is not between {S}s and {}h", L / 3600)),
            None => Err(format!("invalid duration `{}`", text.escape_debug())),
        }
    }
}

impl<const D: u64, const S: u64, const L: u64> fmt::Display for Length<D, S, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

stored_as_text!(Interval);
stored_as_text!(DrainTime);
