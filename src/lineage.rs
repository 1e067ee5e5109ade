//! The name of a certificate through its renewals, safe as a file name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::identifier::{Identifier, IdentifierError};
use crate::text::stored_as_text;

/// The name of a certificate through its renewals. It is also a directory's name: it
/// has only `[a-z0-9._-]` and never starts with a dot or a hyphen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(Arc<str>);

/// The longest file name, minus `.` and `.new` around it.
const LONGEST_LINEAGE: usize = 255 - 5;

impl Lineage {
    /// The default name for a certificate whose first identifier is `first`:
    /// `*.` becomes `_wildcard_.`, an IPv6 `:` becomes `-`. A name that is too long for
    /// a file name is cut and ends in a hash.
    #[must_use]
    pub fn of(first: &Identifier) -> Self {
        let text = first.to_string();
        let text = match text.strip_prefix("*.") {
            Some(base) => format!("_wildcard_.{base}"),
            None => text.replace(':', "-"),
        };
        // `::1` would start with a hyphen, which commands read as an option.
        if text.starts_with('-') {
            return Self(format!("0{text}").into());
        }
        if text.len() <= LONGEST_LINEAGE {
            return Self(text.into());
        }
        let hash = Fingerprint::of(text.as_bytes()).to_string();
        let prefix: String = text
            .chars()
            .take(LONGEST_LINEAGE - 1 - hash.len())
            .collect();
        Self(format!("{prefix}-{hash}").into())
    }

    /// Reads a name that the user chose.
    ///
    /// # Errors
    /// [`IdentifierError`] if it is not a safe file name.
    pub fn parse(text: &str) -> Result<Self, IdentifierError> {
        let is_valid = (1..=LONGEST_LINEAGE).contains(&text.len())
            && !text.starts_with(['.', '-'])
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        match is_valid {
            true => Ok(Self(text.into())),
            false => Err(IdentifierError::new(
                text,
                "is not a valid name of a certificate",
                "letters a to z, digits, `.`, `_` and `-`, and none of `.` and `-` first",
            )),
        }
    }

    /// The name as text, fit for a path component.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Lineage {
    type Err = IdentifierError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

stored_as_text!(Lineage);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_is_safe_directory_name() {
        let of = |text: &str| Lineage::of(&Identifier::parse(text).unwrap()).to_string();
        assert_eq!(of("*.example.com"), "_wildcard_.example.com");
        assert_eq!(of("2001:db8::1"), "2001-db8--1");
        assert_eq!(of("::1"), "0--1");
        for text in ["", ".", "..", "../x", "a/b", "-x", "A", "a\0b", ".hidden"] {
            assert!(Lineage::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn lineage_of_longest_name_fits_file_name() {
        let labels = format!("{0}.{0}.{0}.", "a".repeat(63));
        let mut seen = std::collections::BTreeSet::new();
        for name in [
            format!("{labels}{}.com", "b".repeat(57)),
            format!("{labels}{}.net", "b".repeat(57)),
            format!("*.{labels}{}.com", "b".repeat(55)),
        ] {
            let lineage = Lineage::of(&Identifier::parse(&name).unwrap());
            assert_eq!(Lineage::parse(lineage.as_str()).unwrap(), lineage);
            assert!(format!(".{lineage}.new").len() <= 255, "{lineage}");
            assert!(seen.insert(lineage), "two names share a lineage");
        }
        assert!(Lineage::parse(&"x".repeat(LONGEST_LINEAGE)).is_ok());
        assert!(Lineage::parse(&"x".repeat(LONGEST_LINEAGE + 1)).is_err());
    }

    #[test]
    fn lineage_errors_escape_control_characters() {
        let error = Lineage::parse("a\u{7}").unwrap_err().to_string();
        assert!(error.contains("`a\\u{7}`"), "{error:?}");
    }
}
