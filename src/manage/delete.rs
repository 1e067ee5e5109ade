//! Deletes a certificate under its lease: the files of its consumers, then its record with
//! all pairs in one step. A crash leaves the record until the files are gone, so that a
//! repeated command finishes the work. Nothing is revoked, and no server is reloaded.

use std::path::Path;

use super::error::ManageError;
use crate::deploy::removal;
use crate::lineage::Lineage;
use crate::store::{Lease, Store, deletable};

/// Deletes `lineage`, and its files in the output at `root` if it is given. Returns whether
/// there was a record or a rest of one, and the lease: no pass begins before it is dropped.
///
/// # Errors
/// When a pass is in progress, or the store or the output cannot be written.
pub(crate) async fn delete(
    store: &dyn Store,
    lineage: &Lineage,
    root: Option<&Path>,
) -> Result<(bool, Box<dyn Lease>), ManageError> {
    let lease = store.lease(lineage).await?;
    let revision = deletable(store.load(lineage).await)?;
    if let Some(root) = root {
        removal::remove(root, lineage)?;
    }
    Ok((store.delete(lineage, revision).await?, lease))
}
