//! Deploying again on the owner's word: the current generation, or an earlier one,
//! which then stays until the next one is issued, it would expire, or
//! the owner takes his word back with a reload. Nothing is ordered here.

use std::time::Duration;

use super::deploy::{FILES, stored};
use super::error::ManageError;
use super::session::Pass;
use crate::certificate::Facts;
use crate::record::{Failures, Generation, Pinned, Record};
use crate::renew::window::latest;

impl Pass<'_> {
    /// Forgets what each server has loaded and which was seen to serve, so that all is
    /// deployed and verified again.
    pub(super) fn unprove(&mut self) {
        let record = &mut self.record;
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

    /// Gives up a rollback that failed: the generation that should have been served before
    /// it should be served again, and that is tried at once.
    pub(super) async fn unpin(&mut self, earlier: (Option<Pinned>, Failures)) {
        (self.record.pinned, self.record.handover) = earlier;
        self.save_or_warn().await;
        let served = self.record.to_be_served(self.now());
        if let Some((generation, _)) = served {
            tracing::warn!(lineage = %self.lineage(), "the rollback has failed and is given up: generation {generation} is to be served, as before");
        }
    }

    /// Makes `to`, or the one before what is served now, what shall be served.
    ///
    /// # Errors
    /// [`ManageError::NoWayBack`] when there is none that is good for long enough.
    pub(super) async fn pin(&mut self, to: Option<Generation>) -> Result<(), ManageError> {
        let (services, lineage, now) = (self.services, self.lineage().clone(), self.now());
        let refused = |why: String| ManageError::NoWayBack {
            lineage: lineage.clone(),
            why,
        };
        let served = self.record.to_be_served(now).map(|(served, _)| served);
        let served = served.ok_or_else(|| refused("nothing is issued yet".to_owned()))?;
        let generation = to.unwrap_or(Generation(served.0.saturating_sub(1)));
        let pair = match generation {
            Generation(0) => None,
            generation => services.store.bundle(&lineage, generation).await?,
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
        // Nothing is changed for one that could not be deployed.
        let usable = stored(services, &lineage, generation, &facts).await;
        usable
            .map_err(|error| refused(format!("generation {generation} is of no use: {error}")))?;
        let newest = self.record.issued.as_ref().map(|issued| issued.generation);
        self.record.pinned = (newest != Some(generation)).then_some(Pinned {
            generation,
            facts,
            until,
        });
        Ok(())
    }
}

/// How long a deployment that was rolled back for the same reason waits at least: a
/// try costs two reloads, and it shall still heal soon after its cause is gone.
pub(super) fn patience(record: &Record) -> Option<Duration> {
    const STEP: Duration = Duration::from_secs(300);
    const LONGEST: u32 = 3;
    let times = record.taken_back.as_ref()?.times;
    (times > 1).then(|| STEP * (times - 1).min(LONGEST))
}
