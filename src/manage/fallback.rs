//! Orders from the CA that [`crate::renew::fallback`] chooses: the first CA, or the
//! fallback CA. The choice itself is not made here.

use super::error::ManageError;
use super::session::{Pass, Trigger};
use crate::renew::decide::Plan;
use crate::renew::fallback::{Choice, choose, opens_fallback};
use crate::time::Timestamp;

impl Pass<'_> {
    /// Orders, checks and stores a new generation.
    pub(super) async fn order_with_fallback(&mut self, plan: Plan) -> Result<(), ManageError> {
        match plan.from {
            Choice::First => self.order_at_first(plan).await,
            Choice::Fallback => self.order_at_fallback(plan).await,
        }
    }

    async fn order_at_first(&mut self, plan: Plan) -> Result<(), ManageError> {
        let error = match self.order_at_one_ca(plan.clone()).await {
            Err(error) => error,
            done => return done,
        };
        self.note_attempt(&error).await;
        let now = self.now();
        let unreachable = self.unreachable_since(&error).await;
        if !unreachable.is_some_and(|since| opens_fallback(&self.record, since, now)) {
            return Err(error);
        }
        tracing::warn!(lineage = %self.lineage(), "{error}; ordering from the fallback CA");
        match self.order_at_one_ca(plan.at(Choice::Fallback)).await {
            Err(other @ (ManageError::Unreachable { .. } | ManageError::LimitExhausted { .. })) => {
                Err(sooner(error, other))
            }
            ended => ended,
        }
    }

    /// Orders from the fallback CA, or from the first CA while the fallback CA is unreachable
    /// or limited.
    async fn order_at_fallback(&mut self, plan: Plan) -> Result<(), ManageError> {
        let mut error = match self.order_at_one_ca(plan.clone()).await {
            Err(error) => error,
            done => return done,
        };
        let (ManageError::Unreachable { until, .. } | ManageError::LimitExhausted { until, .. }) =
            &error
        else {
            return Err(error);
        };
        let fallback = self.record.fallback.as_ref();
        let retry_before = fallback.and_then(|fallback| fallback.failures.retry_at);
        if let Some(fallback) = &mut self.record.fallback {
            fallback.failures.retry_at = Some(*until);
            fallback.failures.last = Some(error.to_string());
        }
        let choice = choose(&self.record, self.now());
        if let (ManageError::Unreachable { .. }, Some(fallback)) =
            (&error, &mut self.record.fallback)
        {
            // The outage is shared by all certificates and may end earlier than this pause.
            fallback.failures.retry_at = retry_before;
        }
        self.save_or_warn().await;
        match choice {
            Ok(Choice::First) => {
                let ended = self.order_at_one_ca(plan.at(Choice::First)).await;
                ended.map_err(|first| sooner(first, error))
            }
            Ok(Choice::Fallback) => Err(error),
            Err(wait) => {
                let last = error.to_string();
                let ManageError::Unreachable { until, .. } = &mut error else {
                    return Err(ManageError::BackingOff { until: wait, last });
                };
                *until = wait.min(*until);
                Err(error)
            }
        }
    }

    /// Notes an attempt in the record even if nothing was sent: it counts for the choice of CA.
    async fn note_attempt(&mut self, error: &ManageError) {
        let unsent = matches!(
            error,
            ManageError::Unreachable { .. } | ManageError::LimitExhausted { .. }
        );
        if unsent && self.record.fallback.is_some() && self.record.failures.since.is_none() {
            self.record.failures.since = Some(self.now());
            self.save_or_warn().await;
        }
    }

    /// Since when the CA is unreachable. An outage first met by this pass may be short, so it
    /// counts only if a user waits for the outcome.
    async fn unreachable_since(&self, error: &ManageError) -> Option<Timestamp> {
        match error {
            ManageError::Unreachable { since, .. } => Some(*since),
            error if error.is_outage() && self.trigger != Trigger::Scheduled => {
                let (known, _) = self.services.store.ca_state(&self.record.ca).await.ok()?;
                let outage = known.outage.filter(|outage| !outage.windows_only);
                outage.map(|outage| outage.since)
            }
            _ => None,
        }
    }
}

/// The outage with the earlier probe, if both CAs are unreachable; else the error of the
/// first CA.
fn sooner(first: ManageError, fallback: ManageError) -> ManageError {
    match (&first, &fallback) {
        (
            ManageError::Unreachable { until: one, .. },
            ManageError::Unreachable { until: other, .. },
        ) if other < one => fallback,
        _ => first,
    }
}
