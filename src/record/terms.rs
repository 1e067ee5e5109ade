//! The settings of an order apart from its names and its CA. A certificate keeps those that
//! it was ordered with, so that a later change of them can be reported.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::certificate::KeyType;
use crate::fingerprint::Fingerprint;
use crate::text::{duration, stored_as_text};

/// The settings of an order apart from its names and its CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The type of the key.
    pub key: KeyType,
    /// Whether a renewal keeps the key.
    pub reuse_key: bool,
    /// The certificate profile to request.
    pub profile: Option<String>,
    /// The common name of the topmost issuer to prefer among alternate chains.
    pub preferred_chain: Option<String>,
    /// The lifetime to request.
    pub lifetime: Option<Lifetime>,
    /// The user's signing request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Fingerprint>,
}

impl Terms {
    fn each(&self) -> [(&'static str, Option<String>); 6] {
        [
            ("key", Some(self.key.to_string())),
            ("reuse_key", Some(self.reuse_key.to_string())),
            ("profile", self.profile.clone()),
            ("preferred_chain", self.preferred_chain.clone()),
            ("lifetime", self.lifetime.map(|it| it.to_string())),
            (
                "signing request",
                self.request.as_ref().map(ToString::to_string),
            ),
        ]
    }

    /// What has changed since `made`, in words. A key that is kept keeps its type.
    #[must_use]
    pub fn changed_since(&self, made: &Self) -> Vec<String> {
        let keeps_key = self.reuse_key || self.request.is_some();
        let both = self.each().into_iter().zip(made.each());
        let changed = both.filter(|(now, before)| now != before);
        let changed = changed.filter(|((name, _), _)| *name != "key" || !keeps_key);
        let words = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        let shown = changed.map(|((name, now), (_, before))| {
            format!("{name} {} (was {})", words(now), words(before))
        });
        shown.collect()
    }
}

/// A lifetime to request, such as `30d` or `12h`: 2 hours to 10 years. A shorter one could be
/// half over when it is issued, since CAs date certificates back by an hour. `none` is that of
/// the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime(Duration);

const SHORTEST: Duration = Duration::from_secs(2 * 3600);
const LONGEST: Duration = Duration::from_secs(3650 * 86_400);

impl Lifetime {
    /// Its length.
    #[must_use]
    pub fn length(self) -> Duration {
        self.0
    }

    /// Whether the CA chooses it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_zero()
    }
}

impl FromStr for Lifetime {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match duration(text.trim()) {
            None if text.trim() == "none" => Ok(Self(Duration::ZERO)),
            Some(length) if (SHORTEST..=LONGEST).contains(&length) => Ok(Self(length)),
            Some(_) => Err(format!("`{text}` is not between 2h and 3650d")),
            None => Err(format!("invalid duration `{}`", text.escape_debug())),
        }
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return f.write_str("none");
        }
        let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
        let whole = units
            .into_iter()
            .find(|(_, unit)| seconds.is_multiple_of(*unit));
        let (name, unit) = whole.unwrap_or(("s", 1));
        write!(f, "{}{name}", seconds / unit)
    }
}

stored_as_text!(Lifetime);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetime_is_read_within_its_bounds_and_stored_as_written() {
        for text in ["2h", "36h", "150m", "30d", "3650d", "none"] {
            let read: Lifetime = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            let json = serde_json::to_string(&read).unwrap();
            assert_eq!(serde_json::from_str::<Lifetime>(&json).unwrap(), read);
        }
        for text in ["119m", "3651d", "0s", "30", "-1d", "1y", ""] {
            assert!(text.parse::<Lifetime>().is_err(), "{text}");
        }
    }

    #[test]
    fn changed_terms_are_named_with_both_values() {
        let made = Terms::default();
        assert!(made.changed_since(&made).is_empty());
        let wanted = Terms {
            key: KeyType::Rsa2048,
            profile: Some("shortlived".to_owned()),
            lifetime: "30d".parse().ok(),
            ..made.clone()
        };
        let changed = [
            "key rsa-2048 (was ecdsa-p256)",
            "profile shortlived (was none)",
            "lifetime 30d (was none)",
        ];
        assert_eq!(wanted.changed_since(&made), changed);
        // The renewal keeps the key, whatever type is wanted.
        let keeps = Terms {
            reuse_key: true,
            ..wanted
        };
        assert_eq!(keeps.changed_since(&made)[0], "reuse_key true (was false)");
    }
}
