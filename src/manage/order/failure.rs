//! How an order ended: noted in the record, with the instant of the next try, in the
//! ledger of its CA, and in what is known of whether that CA answers.

use std::collections::BTreeSet;

use crate::identifier::Identifier;
use crate::manage::ca_state;
use crate::manage::error::ManageError;
use crate::manage::probes::Work;
use crate::manage::session::Pass;
use crate::record::PendingOrder;
use crate::renew::backoff::{FailureKind, after_failure};
use crate::time::Timestamp;

impl Pass<'_> {
    /// Notes how an order that was sent has failed: `now`, and what the CA's clock showed.
    pub(super) async fn note_failure(
        &mut self,
        order: &PendingOrder,
        error: &ManageError,
        heals: bool,
        (now, there): (Timestamp, Timestamp),
    ) {
        self.note_outage(&order.ca, error).await;
        let (kind, ended) = error.failure_kind();
        if ended {
            self.record.order = None;
        }
        self.date_failure(&order.ca, error, heals, now).await;
        // After the save: to count too much is the safe side. What was signed and is
        // of no use was signed all the same.
        if ended && matches!(error, ManageError::Acme(_)) {
            let named = error.failed_names().iter();
            let named: BTreeSet<Identifier> = named.map(|one| one.identifier.clone()).collect();
            let unproven = match kind {
                FailureKind::Validation if named.is_empty() => order.identifiers.clone(),
                FailureKind::Validation => named,
                _ => BTreeSet::new(),
            };
            ca_state::settle_failed(self.services, order, &unproven, there).await;
        }
    }

    /// Notes that the CA keeps an order from being begun.
    pub(super) async fn note_unsent(&mut self, ca: &str, error: &ManageError, heals: bool) {
        self.note_outage(ca, error).await;
        self.date_failure(ca, error, heals, self.now()).await;
    }

    async fn note_outage(&self, ca: &str, error: &ManageError) {
        if error.is_outage() {
            ca_state::is_silent(self.services, ca, Work::Orders, &error.to_string()).await;
        }
    }

    /// Makes the failure durable, with the instant of the next try.
    async fn date_failure(&mut self, ca: &str, error: &ManageError, heals: bool, now: Timestamp) {
        let record = &mut self.record;
        let facts = record.issued.as_ref().map(|issued| &issued.facts);
        // What is good already is not held up by what it lacks.
        let healing = record.quarantine.as_mut().filter(|_| heals);
        let facts = facts.filter(|_| healing.is_none());
        let failures = match (healing, &mut record.fallback) {
            (Some(quarantine), _) => &mut quarantine.tries,
            (None, Some(second)) if second.ca == ca => &mut second.failures,
            _ => &mut record.failures,
        };
        let (kind, _) = error.failure_kind();
        let random = self.services.random.as_ref();
        *failures = after_failure(failures, kind, error.to_string(), facts, now, random);
        self.save_or_warn().await;
    }
}
