//! The durable truth. A [`Store`] speaks of records, bundles and accounts, not
//! of keys and values, so that files, objects and databases can stand behind
//! it alike.
//!
//! Correctness rests on compare-and-swap: [`Store::save`] takes the revision
//! that was loaded and refuses when another writer was faster. A lease only
//! spares two processes the same work.

#[cfg(test)]
mod contract;
pub mod fs;
pub mod memory;

use std::fmt;

use async_trait::async_trait;
use thiserror::Error;

use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::identifier::Lineage;
use crate::record::{Generation, Record, Revision};

/// Why the store did not do what it was asked to.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum StoreError {
    #[error("{operation} {subject}: {source}")]
    Io {
        operation: &'static str,
        /// The path, or whatever names the place.
        subject: String,
        source: std::io::Error,
    },
    #[error("{subject} is not readable as what it should be: {detail}")]
    Corrupt { subject: String, detail: String },
    #[error("{subject} was changed by another process (it is at revision {found})")]
    Conflict { subject: String, found: u64 },
    #[error("{lineage} is being worked on by another process")]
    Leased { lineage: Lineage },
    #[error("generation {generation} of {lineage} is stored already")]
    GenerationExists {
        lineage: Lineage,
        generation: Generation,
    },
}

/// The right to work on one lineage, given back when dropped, also by a crash.
pub trait Lease: Send + Sync + fmt::Debug {
    /// Grows with every lease of the lineage (a fencing token).
    fn token(&self) -> u64;
}

/// The contract that every store keeps; one suite of tests holds each to it.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record and the revision to save it against; `None` when there is none.
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError>;

    /// Saves `record` if the stored revision is still `expected`
    /// (`Revision(0)`: none is stored), with `bundle` as the pair of
    /// `record.issued`'s generation when one is given: both or neither.
    /// Returns the new revision. It is durable when this returns.
    async fn save(
        &self,
        record: &Record,
        expected: Revision,
        bundle: Option<&Bundle>,
    ) -> Result<Revision, StoreError>;

    /// The key and chain (leaf first, PEM) of a stored generation.
    async fn bundle(
        &self,
        lineage: &Lineage,
        generation: Generation,
    ) -> Result<Option<(Secret, String)>, StoreError>;

    /// What the user asked for when the lineage was made, as JSON that only its
    /// writer understands; `None` when nothing was said.
    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError>;

    /// Stores such options, also before there is a record; what was stored
    /// before is replaced.
    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError>;

    /// Every lineage with a record, sorted.
    async fn list(&self) -> Result<Vec<Lineage>, StoreError>;

    /// The right to work on `lineage`.
    ///
    /// # Errors
    /// [`StoreError::Leased`] while another holder has it; it does not wait.
    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError>;

    /// The stored account credentials for a CA's directory URL.
    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError>;

    /// Stores the credentials of a new account unless there are some, and returns
    /// what is stored then: several that begin at once all use one.
    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError>;

    /// Stores account credentials; what was stored before is replaced.
    async fn save_account(&self, ca: &str, credentials: &Secret) -> Result<(), StoreError>;

    /// What is known of the CA with that directory URL, and the revision to
    /// save it against; the default and `Revision(0)` when that is nothing.
    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError>;

    /// Saves it if the stored revision is still `expected`. Returns the new one.
    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError>;
}
