//! A name of the demonstration, and the directory of its pair.

use std::path::PathBuf;

use crate::identifier::Identifier;
use crate::lineage::Lineage;

/// A name that clients request.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) lineage: Lineage,
    pub(super) name: Identifier,
    /// The directory of its pair.
    pub(super) live: PathBuf,
}
