//! The time between two looks at an endpoint, as a user writes it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::text::{duration, stored_as_text};

const DEFAULT: Duration = Duration::from_secs(600);
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(86_400);

/// A length of time such as `30s`, `10m` or `1h`: 10 s to a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interval(Duration);

impl Interval {
    /// Its length.
    pub(crate) fn length(self) -> Duration {
        self.0
    }
}

impl Default for Interval {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl FromStr for Interval {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text.trim()) {
            Some(length) if (SHORTEST..=LONGEST).contains(&length) => Ok(Self(length)),
            Some(_) => Err(format!("`{text}` is not between 10s and 1d")),
            None => Err(format!("invalid duration `{}`", text.escape_debug())),
        }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

stored_as_text!(Interval);
