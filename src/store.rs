//! The durable state. A [`Store`] deals in records, bundles and accounts, not in
//! keys and values, so that files, objects and databases can all implement it.
//!
//! Correctness rests on compare-and-swap: [`Store::save`] takes the revision
//! that was loaded and refuses when another writer was faster. A lease only
//! prevents two processes from doing the same work.

pub(crate) mod documents;
pub mod fs;
pub mod memory;
pub mod node;
pub mod place;
pub(crate) mod seal;
pub mod shared;
#[cfg(test)]
mod tests;

use std::fmt;

use async_trait::async_trait;
use thiserror::Error;

use crate::ca_state::CaState;
use crate::certificate::{Bundle, Secret};
use crate::failure::advice;
use crate::lineage::Lineage;
use crate::record::{Generation, Issued, Record, Revision};

/// Where a document of the store is that machines share.
const OF_SHARED: &str = "of the shared store";

/// Why an operation of the store failed.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub enum StoreError {
    #[error("cannot {operation} {subject}: {source}")]
    Io {
        operation: &'static str,
        /// The path, or another name of the location.
        subject: String,
        source: std::io::Error,
    },
    #[error("the sealing key {from}: {detail}")]
    Seal {
        /// Its file or its program.
        from: String,
        detail: String,
        hint: &'static str,
    },
    #[error("{subject} is damaged: {detail}")]
    Corrupt { subject: String, detail: String },
    #[error(
        "{subject} is of format {found}, and this version of certs reads formats up to {known}"
    )]
    Newer {
        subject: String,
        found: u32,
        known: u32,
    },
    #[error("{subject} was changed by another process (it is at revision {found})")]
    Conflict { subject: String, found: u64 },
    #[error("{lineage} is being worked on by another process")]
    Leased { lineage: Lineage },
    #[error("{subject} was sealed with another key (its number is {number})")]
    OtherKey { subject: String, number: String },
    #[error("the shared store is of another fleet than the certificates of this machine")]
    OtherFleet,
    #[error("the shared store has an older state of {lineage} than this machine")]
    Older { lineage: Lineage },
    #[error("this machine only serves the certificates of its fleet")]
    OnlyServes,
    #[error("{lineage} is stored already")]
    Taken { lineage: Lineage },
    #[error("the account of {ca} was changed by another process")]
    AccountChanged { ca: String },
    #[error("generation {generation} of {lineage} already exists")]
    GenerationExists {
        lineage: Lineage,
        generation: Generation,
    },
}

impl StoreError {
    /// What to do about an error of the store that machines share; `None` for any other.
    pub(crate) fn hint_of_shared(&self) -> Option<&'static str> {
        match self {
            Self::Seal { hint, .. } => Some(hint),
            Self::OtherKey { .. } => Some(
                "seal_key_file must hold the key of this fleet's other machines; two fleets need two prefixes",
            ),
            Self::OtherFleet => Some(
                "name this fleet's own store; to join the other fleet instead, remove copies.json from the data directory",
            ),
            Self::Older { .. } => Some(
                "start certs run on a machine of role full that has the certificate: it puts its newer state back",
            ),
            Self::Newer { subject, .. } if subject.contains(OF_SHARED) => {
                Some("update certs on this machine")
            }
            Self::Corrupt { subject, .. } if subject.contains(OF_SHARED) => {
                Some("remove this document from the store: a machine with a copy stores it again")
            }
            error => advice(error),
        }
    }
}

/// The exclusive right to work on one lineage; a drop or a crash releases it. It has no
/// fencing token: the revision of [`Store::save`] refuses a holder whose lease has ended.
pub trait Lease: Send + Sync + fmt::Debug {}

/// The lease of a store that no other machine uses.
#[derive(Debug)]
struct Alone;

impl Lease for Alone {}

/// The contract of every store; one test suite checks each implementation.
#[async_trait]
pub trait Store: Send + Sync {
    /// The record and the revision to save it against; `None` if there is no record.
    async fn load(&self, lineage: &Lineage) -> Result<Option<(Record, Revision)>, StoreError>;

    /// Saves `record` if the stored revision is still `expected`
    /// (`Revision(0)`: no record yet). A `bundle` is the pair of
    /// `record.issued`'s generation; record and pair are stored both or neither.
    /// Returns the new revision; the data is durable by then.
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

    /// The user's options for the lineage, as JSON that only its writer
    /// understands; `None` if there were none.
    async fn options(&self, lineage: &Lineage) -> Result<Option<String>, StoreError>;

    /// Stores the user's options, also before there is a record, and replaces
    /// earlier ones.
    async fn save_options(&self, lineage: &Lineage, json: &str) -> Result<(), StoreError>;

    /// Removes the record, all its pairs and the user's options in one step, if the stored
    /// revision is still `expected` (`Revision(0)`: no record, or a damaged one). Returns whether there was
    /// anything, also a rest of an earlier call that a crash interrupted.
    async fn delete(&self, lineage: &Lineage, expected: Revision) -> Result<bool, StoreError>;

    /// Gives all that is stored of `from` the name `to`, in one step, if the stored revision
    /// is still `expected` and nothing has that name. The loaded record has its new name.
    async fn rename(
        &self,
        from: &Lineage,
        to: &Lineage,
        expected: Revision,
    ) -> Result<(), StoreError>;

    /// Every lineage with a record, sorted.
    async fn list(&self) -> Result<Vec<Lineage>, StoreError>;

    /// Leases `lineage`.
    ///
    /// # Errors
    /// [`StoreError::Leased`], without waiting, while another process holds the lease.
    async fn lease(&self, lineage: &Lineage) -> Result<Box<dyn Lease>, StoreError>;

    /// Prepares for steps that change what several machines share, such as an order; the
    /// caller holds the [`lease`](Self::lease), and loads the record again afterwards. `None`
    /// while another machine does them. A user's own request does not wait for the machine
    /// that does the scheduled work.
    ///
    /// # Errors
    /// [`StoreError::Leased`] for a request, while another machine works on it.
    async fn share(
        &self,
        _lineage: &Lineage,
        _requested: bool,
    ) -> Result<Option<Box<dyn Lease>>, StoreError> {
        Ok(Some(Box::new(Alone)))
    }

    /// Whether this machine does the scheduled work that needs no lease.
    fn is_issuer(&self) -> bool {
        true
    }

    /// The stored account credentials for a CA's directory URL.
    async fn account(&self, ca: &str) -> Result<Option<Secret>, StoreError>;

    /// Stores the credentials of a new account unless the CA has some already, and
    /// returns the stored ones: processes that start at once all use one account.
    async fn create_account(&self, ca: &str, credentials: &Secret) -> Result<Secret, StoreError>;

    /// Replaces the stored credentials of an account, if these are still `before`: a stale
    /// writer must not put an old key back.
    async fn save_account(
        &self,
        ca: &str,
        credentials: &Secret,
        before: &Secret,
    ) -> Result<(), StoreError>;

    /// Forgets an account, if its stored credentials are still `before`.
    async fn delete_account(&self, ca: &str, before: &Secret) -> Result<(), StoreError>;

    /// The state of the CA with that directory URL, and the revision to save it
    /// against; the default and `Revision(0)` if none is stored.
    async fn ca_state(&self, ca: &str) -> Result<(CaState, Revision), StoreError>;

    /// Saves the CA's state if the stored revision is still `expected`. Returns the
    /// new revision.
    async fn save_ca_state(
        &self,
        ca: &str,
        state: &CaState,
        expected: Revision,
    ) -> Result<Revision, StoreError>;
}

/// A store in which a machine of a fleet has its copy of the shared one.
#[async_trait]
pub(crate) trait OwnStore: Store + fmt::Debug {
    /// As [`Store::save`], with the pair as it is stored.
    async fn save_pair(
        &self,
        record: &Record,
        expected: Revision,
        pair: Option<(&Secret, &str)>,
    ) -> Result<Revision, StoreError>;

    /// Keeps `content` beside the records.
    fn keep(&self, name: &str, content: &[u8]) -> Result<(), StoreError>;

    /// Adds to what is kept, without a flush.
    fn append(&self, name: &str, content: &[u8]) -> Result<(), StoreError>;

    /// What [`keep`](Self::keep) has kept, of any length.
    fn kept(&self, name: &str) -> Option<String>;

    /// The directory URLs of the accounts in it, as far as they can be read.
    fn accounts(&self) -> Result<Vec<String>, StoreError>;
}

/// Compares the revision that was loaded with the stored one, and returns the next one.
fn next_revision(
    subject: String,
    expected: Revision,
    stored: Revision,
) -> Result<Revision, StoreError> {
    if stored != expected {
        let found = stored.0;
        return Err(StoreError::Conflict { subject, found });
    }
    Ok(Revision(expected.0 + 1))
}

/// The revision to delete a record against. A damaged one has none, and can be deleted.
pub(crate) fn deletable(
    loaded: Result<Option<(Record, Revision)>, StoreError>,
) -> Result<Revision, StoreError> {
    match loaded {
        Err(StoreError::Corrupt { .. }) => Ok(Revision::default()),
        loaded => Ok(loaded?.map(|(_, revision)| revision).unwrap_or_default()),
    }
}

/// Compares the credentials that were read with the stored ones.
fn check_account(ca: &str, stored: Option<&Secret>, before: &Secret) -> Result<(), StoreError> {
    match stored == Some(before) {
        true => Ok(()),
        false => Err(StoreError::AccountChanged { ca: ca.to_owned() }),
    }
}

/// The same for a record. A pair that is `new` must be newer than every stored one.
fn check_save(
    record: &Record,
    expected: Revision,
    stored: Option<&(Record, Revision)>,
    new: Option<&Issued>,
) -> Result<Revision, StoreError> {
    let lineage = &record.lineage;
    let found = stored.map_or(Revision::default(), |(_, revision)| *revision);
    let revision = next_revision(format!("the record of {lineage}"), expected, found)?;
    let newest = stored.and_then(|(record, _)| record.issued.as_ref());
    if let (Some(newest), Some(new)) = (newest, new)
        && newest.generation >= new.generation
    {
        return Err(StoreError::GenerationExists {
            lineage: lineage.clone(),
            generation: new.generation,
        });
    }
    Ok(revision)
}
