//! Redeploys the current generation, or rolls back to an earlier one. The operator's
//! rollback is pinned until the next issuance, until shortly before the expiry, or until a
//! redeploy. Nothing is ordered here.

use std::time::Duration;

use super::deploy::stored;
use super::error::ManageError;
use super::session::Pass;
use crate::certificate::Facts;
use crate::lineage::Lineage;
use crate::record::{Failures, Generation, Pinned, Record};
use crate::renew::policy::{MOST_ROLLBACK_PAUSES, ROLLBACK_PAUSE};
use crate::renew::window::latest;

impl Pass<'_> {
    /// Abandons a failed rollback: the generation from before it is to be served again, at
    /// once.
    pub(super) async fn unpin(&mut self, earlier: (Option<Pinned>, Failures)) {
        (self.record.pinned, self.record.deployment_failures) = earlier;
        self.save_or_warn().await;
        let served = self.record.to_be_served(self.now());
        if let Some((generation, _)) = served {
            tracing::warn!(lineage = %self.lineage(), "the rollback failed and is abandoned: generation {generation} is to be served, as before");
        }
    }

    /// Pins `to`, or the generation before the served one, as the one to be served.
    ///
    /// # Errors
    /// [`ManageError::Impossible`] when that generation is not valid for long enough.
    pub(super) async fn pin(&mut self, to: Option<Generation>) -> Result<(), ManageError> {
        let (services, lineage, now) = (self.services, self.lineage().clone(), self.now());
        let served = self.record.to_be_served(now).map(|(served, _)| served);
        let served = served.ok_or_else(|| nothing_issued(&lineage))?;
        let generation = to.unwrap_or(Generation(served.0.saturating_sub(1)));
        let newest = self.record.issued.as_ref().map(|issued| issued.generation);
        let newest = newest.unwrap_or(served);
        let hint = self.rollback_hint(served, newest).await;
        let refused = |why: String| ManageError::Impossible {
            why: format!("no rollback: {why}"),
            hint: hint.clone(),
        };
        let pair = match generation {
            Generation(0) => None,
            generation => services.store.bundle(&lineage, generation).await?,
        };
        let missing = || match to {
            Some(_) => refused(format!("generation {generation} is not stored")),
            None => refused(format!(
                "generation {served} is live, and none before it is stored"
            )),
        };
        let (_, chain) = pair.ok_or_else(missing)?;
        if let Some(revoked) = self.record.revoked.get(&generation) {
            let (reason, at) = (revoked.reason, revoked.at);
            return Err(refused(format!(
                "generation {generation} was revoked at {at} ({reason})"
            )));
        }
        let facts = Facts::of_chain(&chain).map_err(ManageError::Stored)?;
        let until = latest(&facts);
        if until <= now {
            let not_after = facts.not_after;
            return Err(refused(format!(
                "generation {generation} expires too soon, at {not_after}"
            )));
        }
        // Checked before any change, since an unusable pair could not be deployed.
        let usable = stored(services, &lineage, generation, &facts).await;
        usable
            .map_err(|error| refused(format!("generation {generation} is not usable: {error}")))?;
        self.record.pinned = (newest != generation).then_some(Pinned {
            generation,
            facts,
            until,
        });
        Ok(())
    }

    /// The generations beside the `served` one that can be made live.
    async fn rollback_hint(&self, served: Generation, newest: Generation) -> String {
        let (lineage, store) = (self.lineage(), self.services.store.as_ref());
        let oldest = newest.0.saturating_sub(Generation::KEPT).max(1);
        let mut stored = Vec::new();
        for generation in (oldest..newest.0).map(Generation) {
            let stored_pair = store.bundle(lineage, generation).await;
            let is_usable = generation != served && !self.record.revoked.contains_key(&generation);
            if is_usable && matches!(stored_pair, Ok(Some(_))) {
                stored.push(format!("certs rollback {lineage} --to {}", generation.0));
            }
        }
        if served != newest {
            stored.push(format!("certs reload {lineage} for the newest, {newest}"));
        }
        match stored.is_empty() {
            true => format!("certs renew {lineage} --force makes a new one"),
            false => stored.join(", or "),
        }
    }
}

/// The failure to deploy a certificate before its first issuance.
pub(super) fn nothing_issued(lineage: &Lineage) -> ManageError {
    ManageError::Impossible {
        why: "nothing is issued yet".to_owned(),
        hint: format!(
            "certs renew {lineage} issues it; certs status {lineage} shows the last error"
        ),
    }
}

/// The shortest pause after repeated rollbacks for one cause: each attempt costs two
/// reloads, and it should still recover soon after the cause is gone.
pub(super) fn rollback_pause(record: &Record) -> Option<Duration> {
    let times = record.rolled_back.as_ref()?.times;
    (times > 1).then(|| ROLLBACK_PAUSE * (times - 1).min(MOST_ROLLBACK_PAUSES))
}
