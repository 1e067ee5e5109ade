//! A failed order: noted in the record with the time of the retry, in the rate limits of
//! its CA, and in that CA's outage. Nothing is retried here.

use std::collections::BTreeSet;

use super::source::Source;
use crate::identifier::Identifier;
use crate::manage::ca_state::{Operation, note_outage, settle_failed};
use crate::manage::clock::ca_time;
use crate::manage::error::ManageError;
use crate::manage::session::Pass;
use crate::record::PendingOrder;
use crate::renew::backoff::{FailureKind, after_failure};

impl Pass<'_> {
    /// Notes the failure of an order that was sent.
    pub(super) async fn note_failure(
        &mut self,
        source: &Source<'_>,
        order: &PendingOrder,
        error: &ManageError,
        only_excluded: bool,
    ) {
        let clock = self.services.clock.as_ref();
        // The CA counted the order by its own clock only if it judged the order.
        let there = match error.is_verdict() {
            true => ca_time(source.issuer, clock),
            false => clock.now(),
        };
        self.note_ca_outage(&order.ca, error).await;
        let (kind, ended) = error.failure_kind();
        if ended {
            self.record.order = None;
        }
        self.date_failure(&order.ca, error, only_excluded).await;
        // After the save, since counting too much is safe. A certificate that was signed
        // but is invalid counts too.
        if ended && matches!(error, ManageError::Acme(_)) {
            let named = error.failed_names().iter();
            let named: BTreeSet<Identifier> = named.map(|one| one.identifier.clone()).collect();
            let invalid = match kind {
                FailureKind::Validation if named.is_empty() => order.identifiers.clone(),
                FailureKind::Validation => named,
                _ => BTreeSet::new(),
            };
            settle_failed(self.services, order, &invalid, there).await;
        }
    }

    /// Notes a failure of the CA before an order could be sent.
    pub(super) async fn note_unsent(&mut self, ca: &str, error: &ManageError, only_excluded: bool) {
        self.note_ca_outage(ca, error).await;
        self.date_failure(ca, error, only_excluded).await;
    }

    async fn note_ca_outage(&self, ca: &str, error: &ManageError) {
        if error.is_outage() {
            let operation = Operation::Order(None);
            note_outage(self.services, ca, operation, &error.to_string()).await;
        }
    }

    /// Stores the failure with the time of the retry.
    async fn date_failure(&mut self, ca: &str, error: &ManageError, only_excluded: bool) {
        let now = self.now();
        let record = &mut self.record;
        let facts = record.issued.as_ref().map(|issued| &issued.facts);
        // A failed order for excluded names must not delay the renewal of the others.
        let retried = record.excluded.as_mut().filter(|_| only_excluded);
        let facts = facts.filter(|_| retried.is_none());
        let failures = match (retried, &mut record.fallback) {
            (Some(excluded), _) => &mut excluded.tries,
            (None, Some(fallback)) if fallback.ca == ca => &mut fallback.failures,
            _ => &mut record.failures,
        };
        let (kind, _) = error.failure_kind();
        let random = self.services.random.as_ref();
        *failures = after_failure(failures, kind, error.to_string(), facts, now, random);
        self.save_or_warn().await;
    }
}
