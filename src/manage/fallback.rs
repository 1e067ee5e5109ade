//! An order from whichever CA the rule of [`crate::renew::fallback`] names: the
//! first choice, or the fallback CA.

use super::error::ManageError;
use super::order::Plan;
use super::session::{Pass, Trigger};
use crate::renew::fallback::{Choice, choose, stands_in};
use crate::time::Timestamp;

impl Pass<'_> {
    /// Orders, checks and stores a new generation.
    ///
    /// # Errors
    /// What kept it from being stored; it is noted in the record.
    pub(super) async fn order_with_fallback(&mut self, plan: Plan) -> Result<(), ManageError> {
        match plan.from {
            Choice::First => self.order_at_first(plan).await,
            Choice::Fallback => self.order_at_fallback(plan).await,
        }
    }

    async fn order_at_first(&mut self, plan: Plan) -> Result<(), ManageError> {
        let Err(error) = self.order_at_one_ca(plan.clone()).await else {
            return Ok(());
        };
        self.note_try(&error).await;
        let now = self.now();
        let silent = self.silent_since(&error).await;
        if !silent.is_some_and(|since| stands_in(&self.record, since, now)) {
            return Err(error);
        }
        tracing::warn!(lineage = %self.lineage(), "{error}; the fallback stands in");
        match self.order_at_one_ca(plan.at(Choice::Fallback)).await {
            Err(other @ (ManageError::Down { .. } | ManageError::OutOfBudget { .. })) => {
                Err(sooner(error, other))
            }
            ended => ended,
        }
    }

    /// A fallback CA that cannot be asked now makes room for the first choice.
    async fn order_at_fallback(&mut self, plan: Plan) -> Result<(), ManageError> {
        let Err(error) = self.order_at_one_ca(plan.clone()).await else {
            return Ok(());
        };
        let (ManageError::Down { until, .. } | ManageError::OutOfBudget { until, .. }) = &error
        else {
            return Err(error);
        };
        let second = self.record.fallback.as_ref();
        let retry_before = second.and_then(|second| second.failures.retry_at);
        if let Some(second) = &mut self.record.fallback {
            second.failures.retry_at = Some(*until);
            second.failures.last = Some(error.to_string());
        }
        let choice = choose(&self.record, self.now());
        if let (ManageError::Down { .. }, Some(second)) = (&error, &mut self.record.fallback) {
            // All certificates share how long that is, and it may end earlier.
            second.failures.retry_at = retry_before;
        }
        self.save_or_warn().await;
        match choice {
            Ok(Choice::First) => {
                let ended = self.order_at_one_ca(plan.at(Choice::First)).await;
                ended.map_err(|first| sooner(first, error))
            }
            Ok(Choice::Fallback) => Err(error),
            Err(wait) if matches!(error, ManageError::Down { .. }) => Err(asked_by(error, wait)),
            Err(until) => Err(ManageError::BackingOff {
                until,
                last: error.to_string(),
            }),
        }
    }

    /// That it was tried counts, also where nothing was sent.
    async fn note_try(&mut self, error: &ManageError) {
        let unsent = matches!(
            error,
            ManageError::Down { .. } | ManageError::OutOfBudget { .. }
        );
        if unsent && self.record.fallback.is_some() && self.record.failures.since.is_none() {
            self.record.failures.since = Some(self.now());
            self.save_or_warn().await;
        }
    }

    /// Since when the CA is unreachable. An outage that this pass has met first is given
    /// time to pass, unless a user waits for the outcome.
    async fn silent_since(&self, error: &ManageError) -> Option<Timestamp> {
        match error {
            ManageError::Down { since, .. } => Some(*since),
            error if error.is_outage() && self.trigger != Trigger::Scheduled => {
                let (known, _) = self.services.store.ca_state(&self.record.ca).await.ok()?;
                known.outage.map(|outage| outage.since)
            }
            _ => None,
        }
    }
}

/// The same silence, which is looked into by `wait` at the latest.
fn asked_by(error: ManageError, wait: Timestamp) -> ManageError {
    match error {
        ManageError::Down {
            ca,
            since,
            until,
            last,
        } => ManageError::Down {
            ca,
            since,
            until: until.min(wait),
            last,
        },
        other => other,
    }
}

/// Of two CAs that do not answer the one that is asked again first; else what
/// the first choice ended with.
fn sooner(first: ManageError, second: ManageError) -> ManageError {
    match (&first, &second) {
        (ManageError::Down { until: one, .. }, ManageError::Down { until: other, .. })
            if other < one =>
        {
            second
        }
        _ => first,
    }
}
