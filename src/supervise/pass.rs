//! One pass of the loop: over one certificate, with what is shown of it after.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::handle::Ended;
use crate::acme::AcmeError;
use crate::identifier::Lineage;
use crate::manage::clock::Corrected;
use crate::manage::concurrency::Permit;
use crate::manage::pass::pass;
use crate::manage::{Certificate, ManageError, Services, Trigger};
use crate::record::Record;
use crate::store::StoreError;
use crate::time::{Clock, Timestamp};

/// How a pass over a certificate ended.
pub(super) struct Finished {
    pub(super) lineage: Lineage,
    pub(super) ended: Ended,
    pub(super) record: Option<Record>,
    /// What time it is by the CA's clock, where ours is known to be wrong: what the
    /// pass and its record say is in it.
    pub(super) at: Timestamp,
    pub(super) reply: Option<oneshot::Sender<Ended>>,
}

impl Finished {
    /// Whether another process has its lease. In a fleet that is no failure.
    pub(super) fn is_elsewhere(&self) -> bool {
        is_elsewhere(&self.ended)
    }

    /// The CA that does its work, as how the pass ended shows.
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
                let second = record.fallback.as_ref().map(|fallback| &fallback.ca);
                // The first one may be known to its records by another name.
                let second = second.filter(|second| *second == ca);
                Some(second.unwrap_or(&record.ca).clone())
            }
            _ => None,
        }
    }
}

fn is_elsewhere(ended: &Ended) -> bool {
    matches!(ended, Err(ManageError::Store(StoreError::Leased { .. })))
}

/// Passes over `certificate` once.
pub(super) async fn one_pass(
    services: Arc<Services>,
    certificate: Arc<Certificate>,
    trigger: Trigger,
    permit: Permit,
    reply: Option<oneshot::Sender<Ended>>,
) -> Finished {
    let ended = pass(&services, &certificate, trigger, permit).await;
    let clock = Corrected::new(services.clock.clone(), &certificate);
    let lineage = certificate.wanted.lineage.clone();
    let (ended, record) = match ended {
        Ok((outcome, record)) => (Ok(outcome), Some(record)),
        Err(error) => {
            let ended = Err(error);
            // The process that works on it shows it.
            let record = match is_elsewhere(&ended) {
                true => None,
                false => as_stored(&services, &lineage).await,
            };
            (ended, record)
        }
    };
    if let Some(record) = &record {
        clock.knows(record);
    }
    Finished {
        lineage,
        ended,
        record,
        at: clock.now(),
        reply,
    }
}

/// What lasts, whatever a pass that has failed was about to write down.
async fn as_stored(services: &Services, lineage: &Lineage) -> Option<Record> {
    match services.store.load(lineage).await {
        Ok(stored) => stored.map(|(record, _)| record),
        Err(error) => {
            tracing::warn!(%lineage, "its state cannot be shown: {error}");
            None
        }
    }
}
