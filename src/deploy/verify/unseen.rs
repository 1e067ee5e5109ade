//! What a handshake found instead of the wanted certificate. No connection is made here.

use std::fmt;

use crate::certificate::Facts;
use crate::identifier::Identifier;

/// What was found instead of the wanted certificate.
#[derive(Clone, Debug)]
pub struct Unseen {
    pub(super) found: String,
    pub(super) leaf: Option<Facts>,
}

impl Unseen {
    /// Another leaf was shown.
    #[must_use]
    pub fn other(found: String, leaf: Facts) -> Self {
        let leaf = Some(leaf);
        Self { found, leaf }
    }

    /// The leaf that was shown, if there was a handshake.
    #[must_use]
    pub fn leaf(&self) -> Option<&Facts> {
        self.leaf.as_ref()
    }

    /// Whether another leaf for `name` was shown. One for other names may belong there.
    #[must_use]
    pub fn shows(&self, name: &Identifier) -> bool {
        self.leaf.as_ref().is_some_and(|leaf| {
            let mut names = leaf.identifiers.iter();
            names.any(|pattern| name.is_covered_by(pattern))
        })
    }
}

impl<T: Into<String>> From<T> for Unseen {
    /// A failure without a handshake.
    fn from(found: T) -> Self {
        let found = found.into();
        Self { found, leaf: None }
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)
    }
}
