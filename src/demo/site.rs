//! A name of the demonstration, and where its pair lies.

use std::path::PathBuf;

use crate::identifier::{Identifier, Lineage};

/// A name that is asked for.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) lineage: Lineage,
    pub(super) name: Identifier,
    /// The directory of its pair.
    pub(super) live: PathBuf,
}
