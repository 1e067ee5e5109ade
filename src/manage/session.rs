//! A session: a record locked under its lease for one pass, with the pass's services and
//! trigger. It saves the record; the flows built on it decide nothing here.

use serde::{Deserialize, Serialize};

use super::concurrency::Permit;
use super::error::ManageError;
use super::services::{Certificate, Services};
use super::status::status;
use crate::certificate::Bundle;
use crate::deploy::verify::VerifyError;
use crate::lineage::Lineage;
use crate::record::{Generation, Record, Revision, RevocationReason};
use crate::renew::decide::is_verified;
use crate::store::{Lease, StoreError};
use crate::time::Timestamp;

/// Why a pass runs, which determines when it orders. A command sends it to a sidecar that
/// may be of another version: the words on the socket stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trigger {
    /// The scheduled instant: the pass orders if a renewal is due and not backing off.
    #[serde(rename = "due")]
    Scheduled,
    /// A user's request: the pass orders if a renewal is due, and ignores our backoff, but not
    /// a pause that the CA itself asked for.
    #[serde(rename = "asked")]
    Requested,
    /// A user's request to order now, once.
    #[serde(rename = "force")]
    Forced,
    /// The current generation is deployed again; nothing is ordered.
    #[serde(rename = "reload")]
    Redeploy,
    /// This generation, or the previous one, is deployed and pinned; nothing is ordered.
    Rollback(Option<Generation>),
    /// The certificate is revoked: once its replacement is verified, or at once, and then
    /// nothing is ordered.
    Revoke {
        /// The reason to give to the CA.
        reason: RevocationReason,
        /// Whether to revoke before a replacement is served.
        at_once: bool,
        /// The one that is meant; else the newest.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<Generation>,
    },
    /// A revocation that is pending is given up; nothing is ordered.
    CancelRevocation,
}

impl Trigger {
    /// Whether the pass only deploys.
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
    /// The right to change what the machines of a fleet share, once it is needed.
    pub(super) shared: Option<Box<dyn Lease>>,
    /// Whether another machine of the fleet puts new settings into effect.
    pub(super) left_to_others: bool,
    /// Whether the endpoints were looked at.
    pub(super) looked: bool,
    /// What the looks did not see.
    pub(super) unseen: Option<VerifyError>,
    /// Another process has changed the record meanwhile: that one counts, and a failure of
    /// this pass does not.
    pub(super) overtaken: Option<StoreError>,
}

impl Pass<'_> {
    pub(super) fn now(&self) -> Timestamp {
        self.services.clock.now()
    }

    pub(super) fn lineage(&self) -> &Lineage {
        &self.record.lineage
    }

    /// Whether every target and endpoint has the generation to be served.
    pub(super) fn is_verified(&self, now: Timestamp) -> bool {
        is_verified(&self.record, now)
    }

    /// Shows the phase of the work.
    pub(super) fn phase(&self, phase: &str) {
        self.services.phase(self.lineage(), phase);
    }

    /// Saves the record, with `bundle` if one was issued.
    ///
    /// # Errors
    /// Those of the store, including a conflict.
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

    /// Resets what each server has loaded and serves, so that all targets are deployed and
    /// verified again.
    pub(super) fn mark_unverified(&mut self) {
        for on in self.record.deployed.values_mut() {
            *on = Generation::default();
        }
        for served in self.record.served.values_mut() {
            served.generation = Generation::default();
        }
    }

    /// Saves the record after a failure. If that fails too, it only warns, since the user must
    /// see the first failure.
    pub(super) async fn save_or_warn(&mut self) {
        match self.save(None).await {
            Err(ManageError::Store(error @ StoreError::Conflict { .. })) => {
                self.overtaken = Some(error);
            }
            Err(error) => {
                tracing::warn!(lineage = %self.lineage(), "the record could not be stored: {error}");
            }
            Ok(()) => {}
        }
    }

    /// What the pass ends with, after `failure`.
    pub(super) fn failed(&mut self, failure: ManageError) -> ManageError {
        let Some(overtaken) = self.overtaken.take() else {
            return failure;
        };
        tracing::debug!(lineage = %self.lineage(), "{overtaken}; before: {failure}");
        overtaken.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn triggers_keep_their_words_on_the_socket() {
        for (trigger, word) in [
            (Trigger::Scheduled, r#""due""#),
            (Trigger::Requested, r#""asked""#),
            (Trigger::Forced, r#""force""#),
            (Trigger::Redeploy, r#""reload""#),
            (Trigger::Rollback(None), r#"{"rollback":null}"#),
            (
                Trigger::Revoke {
                    reason: RevocationReason::KeyCompromise,
                    at_once: true,
                    generation: None,
                },
                r#"{"revoke":{"reason":"keycompromise","at_once":true}}"#,
            ),
            (Trigger::CancelRevocation, r#""cancel-revocation""#),
        ] {
            assert_eq!(serde_json::to_string(&trigger).unwrap(), word);
            assert_eq!(serde_json::from_str::<Trigger>(word).unwrap(), trigger);
        }
    }
}
