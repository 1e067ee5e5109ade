//! Deletes a certificate under its lease: the files of its consumers, then its record with
//! all pairs in one step. A crash leaves the record until the files are gone, so that a
//! repeated command finishes the work. Nothing is revoked, and no server is reloaded.

use super::error::ManageError;
use crate::deploy::removal::Emptied;
use crate::lineage::Lineage;
use crate::store::{Lease, Store, deletable};

/// Deletes `lineage`, and its files in `output` if it is given. Returns whether
/// there was a record or a rest of one, and the lease: no pass begins before it is dropped.
///
/// # Errors
/// When a pass is in progress, or the store or the output cannot be written.
pub(crate) async fn delete(
    store: &dyn Store,
    lineage: &Lineage,
    output: Option<&Emptied>,
) -> Result<(bool, Box<dyn Lease>), ManageError> {
    let lease = store.lease(lineage).await?;
    let revision = deletable(store.load(lineage).await)?;
    if let Some(output) = output {
        output.remove(lineage)?;
    }
    Ok((store.delete(lineage, revision).await?, lease))
}
