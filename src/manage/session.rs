//! A session: a record that is locked under its lease for one pass, with what the pass
//! works on and why it runs. It saves; what to do is for the flows that are built on it.

use serde::{Deserialize, Serialize};

use super::concurrency::Permit;
use super::error::ManageError;
use super::services::{Certificate, Services};
use super::status::status;
use crate::certificate::Bundle;
use crate::identifier::Lineage;
use crate::record::{Generation, Record, Revision};
use crate::time::Timestamp;

/// Why a pass runs, and so when it orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trigger {
    /// Its instant has come: it orders when that is due and not backing off.
    Scheduled,
    /// A user requested it: it orders when that is due; an earlier failure does not delay
    /// it unless the CA itself said when to come back.
    Requested,
    /// It orders now, once.
    Forced,
    /// It never orders: the current generation is deployed once more.
    Redeploy,
    /// It never orders: this generation, or the one before, is deployed and stays.
    Rollback(Option<Generation>),
}

impl Trigger {
    /// Whether it is about deploying alone.
    #[must_use]
    pub(crate) fn never_orders(self) -> bool {
        matches!(self, Self::Redeploy | Self::Rollback(_))
    }
}

/// One pass over one certificate, with its record and the revision to save it against.
pub(super) struct Pass<'p> {
    pub(super) services: &'p Services,
    pub(super) certificate: &'p Certificate,
    pub(super) trigger: Trigger,
    pub(super) permit: Permit,
    pub(super) record: Record,
    pub(super) revision: Revision,
}

impl Pass<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.services.clock.now()
    }

    pub(super) fn lineage(&self) -> &Lineage {
        &self.record.lineage
    }

    /// Shows the phase of the work.
    pub(super) fn phase(&self, phase: &str) {
        self.services.phase(self.lineage(), phase);
    }

    /// Makes the record durable as it is now.
    ///
    /// # Errors
    /// Of the store, a conflict among them.
    pub(super) async fn save(&mut self, bundle: Option<&Bundle>) -> Result<(), ManageError> {
        let services = self.services;
        let saved = services.store.save(&self.record, self.revision, bundle);
        self.revision = saved.await?;
        if let Some(board) = &services.board {
            let (now, random) = (services.clock.now(), services.random.as_ref());
            board.update(status(&self.record, now, random));
        }
        Ok(())
    }

    /// Makes a failure durable. That failure is what the user must hear of, not
    /// that the disk which caused it cannot keep a note of it.
    pub(super) async fn save_or_warn(&mut self) {
        if let Err(error) = self.save(None).await {
            tracing::warn!(lineage = %self.lineage(), "the failure could not be noted: {error}");
        }
    }
}
