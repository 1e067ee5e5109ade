//! Handing over again on the owner's word: what there is, or an earlier
//! generation, which then stays until the next one is issued, it would run out, or
//! the owner takes his word back with a reload. Nothing is ordered here.

use std::time::Duration;

use super::deploy::{FILES, stored};
use super::issue::Held;
use super::{ManageError, Parts};
use crate::certificate::Facts;
use crate::record::{Failures, Generation, Pinned, Record};
use crate::renew::window::latest;

/// Forgets what each server was told and who was seen to serve, so that all is
/// told and proven again.
pub(super) fn unprove(held: &mut Held) {
    let record = &mut held.record;
    record.handover.retry_at = None;
    for on in record.deployed.values_mut() {
        *on = Generation::default();
    }
    record
        .deployed
        .insert(FILES.to_owned(), Generation::default());
    for served in record.served.values_mut() {
        served.generation = Generation::default();
    }
}

/// Takes the owner's word back after it could not be kept: what should be served
/// before should be served again, and that is tried at once.
pub(super) async fn give_up(parts: &Parts, held: &mut Held, earlier: (Option<Pinned>, Failures)) {
    let lineage = held.record.lineage.clone();
    (held.record.pinned, held.record.handover) = earlier;
    held.save_or_warn(parts).await;
    let served = held.record.to_be_served(parts.clock.now());
    if let Some((generation, _)) = served {
        tracing::warn!(%lineage, "the rollback has failed and is given up: generation {generation} is to be served, as before");
    }
}

/// How long a hand-over that was taken back for the same reason waits at least: a
/// try costs two reloads, and it shall still heal soon after its cause is gone.
pub(super) fn patience(record: &Record) -> Option<Duration> {
    const STEP: Duration = Duration::from_secs(300);
    const LONGEST: u32 = 3;
    let times = record.taken_back.as_ref()?.times;
    (times > 1).then(|| STEP * (times - 1).min(LONGEST))
}

/// Makes `to`, or the one before what is served now, what shall be served.
///
/// # Errors
/// [`ManageError::NoWayBack`] when there is none that is good for long enough.
pub(super) async fn pin(
    parts: &Parts,
    held: &mut Held,
    to: Option<Generation>,
) -> Result<(), ManageError> {
    let (lineage, now) = (held.record.lineage.clone(), parts.clock.now());
    let refused = |why: String| ManageError::NoWayBack {
        lineage: lineage.clone(),
        why,
    };
    let served = held.record.to_be_served(now).map(|(served, _)| served);
    let served = served.ok_or_else(|| refused("nothing is issued yet".to_owned()))?;
    let generation = to.unwrap_or(Generation(served.0.saturating_sub(1)));
    let pair = match generation {
        Generation(0) => None,
        generation => parts.store.bundle(&lineage, generation).await?,
    };
    let (_, chain) =
        pair.ok_or_else(|| refused(format!("generation {generation} is not stored")))?;
    let facts = Facts::of_chain(&chain).map_err(ManageError::Stored)?;
    let until = latest(&facts);
    if until <= now {
        let not_after = facts.not_after;
        return Err(refused(format!(
            "generation {generation} ends too soon, at {not_after}"
        )));
    }
    // Nothing is changed for one that could not be handed over.
    let usable = stored(parts, &lineage, generation, &facts).await;
    usable.map_err(|error| refused(format!("generation {generation} is of no use: {error}")))?;
    let newest = held.record.issued.as_ref().map(|issued| issued.generation);
    held.record.pinned = (newest != Some(generation)).then_some(Pinned {
        generation,
        facts,
        until,
    });
    Ok(())
}
