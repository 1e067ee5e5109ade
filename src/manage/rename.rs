//! Renames a certificate under the leases of both names. The intent is stored first; the
//! pair is published under the new name; then one rename moves all that is stored; then the
//! files of the old name go. A crash leaves the certificate under one of the names, and the
//! same command finishes the work. Nothing is ordered, and no server is reloaded.

use super::error::ManageError;
use super::proof::FILES;
use crate::certificate::{Bundle, Facts, Freshness};
use crate::deploy::Outlet;
use crate::deploy::removal::Emptied;
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Renaming};
use crate::store::{Lease, Store};
use crate::time::Timestamp;

/// Renames as `wanted` says. `output` publishes both names where `emptied` removes them.
/// Returns the leases: no pass begins before they are dropped.
///
/// # Errors
/// When a pass is in progress, the new name is taken, or the store or the output cannot be
/// written.
pub(crate) async fn rename(
    store: &dyn Store,
    output: &dyn Outlet,
    emptied: &Emptied,
    wanted: &Renaming,
    now: Timestamp,
) -> Result<[Box<dyn Lease>; 2], ManageError> {
    let (from, to) = (&wanted.from, &wanted.to);
    let leases = [store.lease(from).await?, store.lease(to).await?];
    if !is_moved(store, wanted).await? {
        move_stored(store, output, emptied, wanted, now).await?;
    }
    emptied.leave(from, wanted.keep_link.then_some(to))?;
    if let Some((mut record, revision)) = store.load(to).await? {
        record.renaming = None;
        // Copies may have the name in their paths; servers are verified again.
        for (target, on) in &mut record.deployed {
            if target != FILES {
                *on = Generation::default();
            }
        }
        store.save(&record, revision, None).await?;
    }
    Ok(leases)
}

/// Whether an earlier call has moved what is stored.
async fn is_moved(store: &dyn Store, wanted: &Renaming) -> Result<bool, ManageError> {
    let stored = store.load(&wanted.to).await?;
    let renaming = stored.and_then(|(record, _)| record.renaming);
    Ok(renaming.is_some_and(|it| it.from == wanted.from && it.to == wanted.to))
}

async fn move_stored(
    store: &dyn Store,
    output: &dyn Outlet,
    emptied: &Emptied,
    wanted: &Renaming,
    now: Timestamp,
) -> Result<(), ManageError> {
    let (from, to) = (&wanted.from, &wanted.to);
    let Some((mut record, mut revision)) = store.load(from).await? else {
        return Err(ManageError::Impossible {
            why: format!("unknown certificate {from}"),
            hint: "certs status lists the stored ones".to_owned(),
        });
    };
    if store.load(to).await?.is_some() || store.options(to).await?.is_some() {
        return Err(ManageError::Impossible {
            why: format!("nothing was renamed: {to} is stored already"),
            hint: "choose another name: certs status lists the stored ones".to_owned(),
        });
    }
    let before = record.renaming.replace(wanted.clone());
    if before.as_ref().map(|before| &before.to) != Some(to) {
        check_free(emptied, to)?;
    }
    // An earlier command wanted another name, and was interrupted.
    if let Some(other) = before.filter(|before| before.to != *to) {
        emptied.remove(&other.to)?;
    }
    revision = store.save(&record, revision, None).await?;
    publish(store, output, &record, to, now).await?;
    Ok(store.rename(from, to, revision).await?)
}

fn check_free(emptied: &Emptied, to: &Lineage) -> Result<(), ManageError> {
    let present = emptied.present(to)?;
    let Some(taken) = present.first() else {
        return Ok(());
    };
    Err(ManageError::Impossible {
        why: format!("nothing was renamed: {} exists", taken.display()),
        hint: format!("choose another name, or remove what is left of it: certs delete {to} --yes"),
    })
}

/// Publishes the pair to be served under the new name.
async fn publish(
    store: &dyn Store,
    output: &dyn Outlet,
    record: &Record,
    to: &Lineage,
    now: Timestamp,
) -> Result<(), ManageError> {
    let live = output.live(&record.lineage)?;
    let served = record.to_be_served(now).map(|(generation, _)| generation);
    // A switch that is not verified yet may have been rolled back.
    let Some(generation) = live.or(served).filter(|it| *it != Generation::default()) else {
        return Ok(());
    };
    let Some((key, chain)) = store.bundle(&record.lineage, generation).await? else {
        return Ok(());
    };
    let facts = Facts::of_chain(&chain).map_err(ManageError::Stored)?;
    let names = &facts.identifiers;
    let bundle = Bundle::new(key, &chain, names, now, Freshness::Any);
    let bundle = bundle.map_err(ManageError::Stored)?;
    Ok(output.publish(to, generation, &bundle)?)
}
