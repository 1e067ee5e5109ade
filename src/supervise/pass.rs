//! One pass of the loop over one certificate, and the record to show after it. It decides
//! nothing.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::Ended;
use crate::acme::AcmeError;
use crate::lineage::Lineage;
use crate::manage::clock::PassClock;
use crate::manage::concurrency::Permit;
use crate::manage::pass::pass;
use crate::manage::{Certificate, ManageError, Services, Trigger};
use crate::record::Record;
use crate::store::StoreError;
use crate::time::{Clock, Timestamp};

/// The result of a pass over a certificate.
pub(super) struct Finished {
    pub(super) lineage: Lineage,
    pub(super) ended: Ended,
    pub(super) record: Option<Record>,
    /// The time of the pass, corrected by the CA's clock; the instants of the pass and its
    /// record are in this time.
    pub(super) at: Timestamp,
    pub(super) reply: Option<oneshot::Sender<Ended>>,
}

impl Finished {
    /// The CA that the result shows to be working.
    pub(super) fn answering_ca(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        match &self.ended {
            Ok(outcome) if outcome.issued => record.issued.as_ref().map(|issued| issued.ca.clone()),
            Err(error) if error.is_verdict() => {
                let (ManageError::Acme(AcmeError { ca, .. }) | ManageError::Bundle { ca, .. }) =
                    error
                else {
                    return None;
                };
                let fallback = record.fallback.as_ref().map(|fallback| &fallback.ca);
                // The error may name the first CA by another URL than the record does.
                let fallback = fallback.filter(|fallback| *fallback == ca);
                Some(fallback.unwrap_or(&record.ca).clone())
            }
            _ => None,
        }
    }
}

/// When the next pass over a certificate is due.
#[derive(Default)]
pub(super) struct Recheck {
    /// The instant; `None` after a failure without a stored time for the retry.
    pub(super) at: Option<Timestamp>,
    /// Whether it is due at the end of its CA's outage, if that is earlier.
    pub(super) waits_for_ca: bool,
}

impl Recheck {
    pub(super) fn at(instant: Timestamp) -> Self {
        Self {
            at: Some(instant),
            waits_for_ca: false,
        }
    }
}

/// Whether another process holds the lease, which is normal in a fleet.
pub(super) fn is_elsewhere(ended: &Ended) -> bool {
    matches!(ended, Err(ManageError::Store(StoreError::Leased { .. })))
}

/// Whether another process changed the record meanwhile, which is normal in a fleet, too.
pub(super) fn is_overtaken(ended: &Ended) -> bool {
    matches!(ended, Err(ManageError::Store(StoreError::Conflict { .. })))
}

/// Runs one pass over `certificate`.
pub(super) async fn one_pass(
    services: Arc<Services>,
    certificate: Arc<Certificate>,
    trigger: Trigger,
    permit: Permit,
    reply: Option<oneshot::Sender<Ended>>,
) -> Finished {
    let ended = pass(&services, &certificate, trigger, permit).await;
    let lineage = certificate.wanted.lineage.clone();
    let (ended, record) = match ended {
        Ok((outcome, record)) => (Ok(outcome), Some(record)),
        Err(error) => (Err(error), None),
    };
    // The process that holds the lease shows the record.
    let record = match &record {
        None if !is_elsewhere(&ended) => as_stored(&services, &lineage).await,
        _ => record,
    };
    let clock = PassClock::new(services.clock.clone(), &certificate);
    if let Some(record) = &record {
        clock.use_evidence(record);
    }
    Finished {
        lineage,
        ended,
        record,
        at: clock.now(),
        reply,
    }
}

/// The stored record, since a failed pass may have unsaved changes.
async fn as_stored(services: &Services, lineage: &Lineage) -> Option<Record> {
    match services.store.load(lineage).await {
        Ok(stored) => stored.map(|(record, _)| record),
        Err(error) => {
            tracing::warn!(%lineage, "the record cannot be read to show its state: {error}");
            None
        }
    }
}

pub(super) fn log_failure(lineage: &Lineage, error: &ManageError) {
    tracing::error!(%lineage, "{error}; hint: {}", error.hint());
}
