//! Deletes a certificate under its lease: the files of its consumers, then its record with
//! all pairs in one step. A crash leaves the record until the files are gone, so that a
//! repeated command finishes the work. Nothing is revoked, and no server is reloaded.

use super::error::ManageError;
use crate::deploy::Outlet;
use crate::deploy::removal::Emptied;
use crate::lineage::Lineage;
use crate::store::{Lease, Store, deletable};

/// Deletes `lineage`, and its files in `output` if it is given; the certificates in `others`
/// get its names at once, as far as they have them. Returns whether there was a record or a
/// rest of one, and the lease: no pass begins before it is dropped.
///
/// # Errors
/// When a pass is in progress, or the store or the output cannot be written.
pub(crate) async fn delete(
    store: &dyn Store,
    lineage: &Lineage,
    output: Option<&Emptied>,
    others: &dyn Outlet,
) -> Result<(bool, Box<dyn Lease>), ManageError> {
    let lease = store.lease(lineage).await?;
    let revision = deletable(store.load(lineage).await)?;
    if let Some(output) = output {
        output.remove(lineage)?;
        restore_links(store, lineage, others).await;
    }
    Ok((store.delete(lineage, revision).await?, lease))
}

/// Restores the links of every other certificate, the one that was issued last first. What
/// cannot be read is left to its next pass.
async fn restore_links(store: &dyn Store, deleted: &Lineage, others: &dyn Outlet) {
    let mut issued = Vec::new();
    for lineage in store.list().await.unwrap_or_default() {
        if lineage != *deleted
            && let Ok(Some((record, _))) = store.load(&lineage).await
        {
            issued.extend(
                record
                    .issued
                    .map(|issued| (issued.at, lineage, issued.facts)),
            );
        }
    }
    issued.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
    for (_, lineage, facts) in issued {
        others.restore_links(&lineage, &facts.identifiers);
    }
}
