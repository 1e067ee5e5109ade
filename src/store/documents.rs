//! The operations that a shared store needs from a server: documents that are read, listed,
//! and written by compare-and-swap on their version. One file for each kind of server; one
//! test suite checks them all.

pub(super) mod directory;
pub(super) mod etcd;
#[cfg(test)]
pub(super) mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use async_trait::async_trait;
use thiserror::Error;

use crate::time::Timestamp;

/// What changes with every write of a document: a number or a tag of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version(pub(super) String);

/// A stored document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) content: Vec<u8>,
    pub(super) version: Version,
}

/// Why an operation failed.
#[derive(Debug, Error)]
pub(super) enum DocumentsError {
    /// Another writer was faster; nothing was written.
    #[error("it was changed by another process")]
    Conflict,
    /// The server may have done it, or do it yet.
    #[error("{0}")]
    Unanswered(io::Error),
    /// Nothing was done.
    #[error("{0}")]
    Failed(io::Error),
}

/// The contract of every kind of server. A key is a path of ASCII letters, digits and
/// `._-/*`, at most 300 bytes long.
#[async_trait]
pub(super) trait Documents: Send + Sync + fmt::Debug {
    /// The document, as it was at some instant after the call began.
    async fn read(&self, key: &str) -> Result<Option<Document>, DocumentsError>;

    /// Writes if the stored version is still `expected` (`None`: there is no document), and
    /// returns the new one. It is durable by then.
    async fn write(
        &self,
        key: &str,
        content: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, DocumentsError>;

    /// Removes the document if its version is still `expected`.
    async fn remove(&self, key: &str, expected: &Version) -> Result<(), DocumentsError>;

    /// The keys that begin with `prefix`, and their versions.
    async fn list(&self, prefix: &str) -> Result<BTreeMap<String, Version>, DocumentsError>;

    /// The time of the server's clock, to the second. The nodes' own clocks may differ.
    async fn time(&self) -> Result<Timestamp, DocumentsError>;

    /// Returns when the document may have changed from `known` (`None`: there was none), also
    /// without a change; never on a server that tells of no changes: the caller asks every
    /// 15 seconds besides.
    async fn changed(&self, _key: &str, _known: Option<&Version>) {
        std::future::pending().await
    }
}
