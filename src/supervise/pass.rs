//! One pass of the loop: over one certificate, with what is shown of it after.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Ended, is_elsewhere};
use crate::identifier::Lineage;
use crate::manage::issue::{Urge, pass_in_turn};
use crate::manage::skew::Corrected;
use crate::manage::turns::Turn;
use crate::manage::{Certificate, Parts};
use crate::record::Record;
use crate::time::{Clock, Timestamp};

/// How a pass over a certificate ended.
pub(super) struct Pass {
    pub(super) lineage: Lineage,
    pub(super) ended: Ended,
    pub(super) record: Option<Record>,
    /// What time it is by the CA's clock, where ours is known to be wrong: what the
    /// pass and its record say is in it.
    pub(super) at: Timestamp,
    pub(super) reply: Option<oneshot::Sender<Ended>>,
}

/// Passes over `certificate` once.
pub(super) async fn one_pass(
    parts: Arc<Parts>,
    certificate: Arc<Certificate>,
    urge: Urge,
    turn: Turn,
    reply: Option<oneshot::Sender<Ended>>,
) -> Pass {
    let ended = pass_in_turn(&parts, &certificate, urge, turn).await;
    let clock = Corrected::new(parts.clock.clone(), &certificate);
    let lineage = certificate.wanted.lineage.clone();
    let (ended, record) = match ended {
        Ok((outcome, record)) => (Ok(outcome), Some(record)),
        Err(error) => {
            let ended = Err(error);
            // Whoever works on it shows it.
            let record = match is_elsewhere(&ended) {
                true => None,
                false => as_stored(&parts, &lineage).await,
            };
            (ended, record)
        }
    };
    if let Some(record) = &record {
        clock.knows(record);
    }
    Pass {
        lineage,
        ended,
        record,
        at: clock.now(),
        reply,
    }
}

/// What lasts, whatever a pass that has failed was about to write down.
async fn as_stored(parts: &Parts, lineage: &Lineage) -> Option<Record> {
    match parts.store.load(lineage).await {
        Ok(stored) => stored.map(|(record, _)| record),
        Err(error) => {
            tracing::warn!(%lineage, "its state cannot be shown: {error}");
            None
        }
    }
}
