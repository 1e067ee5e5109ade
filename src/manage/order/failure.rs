//! What an order ended with: noted in the record, with the instant of the next try,
//! in the ledger of its CA, and in what is known of whether that CA answers.

use std::collections::BTreeSet;

use super::super::ca_state::{self, Work};
use super::super::issue::Held;
use super::super::{ManageError, Parts};
use crate::acme::{AcmeError, Cause, FailedName, Phase};
use crate::identifier::Identifier;
use crate::record::PendingOrder;
use crate::renew::backoff::{FailureKind, after_failure};
use crate::time::Timestamp;

/// Notes what an order that was sent has ended with.
pub(super) async fn note_failure(
    parts: &Parts,
    held: &mut Held,
    order: &PendingOrder,
    error: &ManageError,
    heals: bool,
    (now, there): (Timestamp, Timestamp),
) {
    if is_silence(error) {
        ca_state::is_silent(parts, &order.ca, Work::Orders, &error.to_string()).await;
    }
    let (kind, ended) = kind_of(error);
    if ended {
        held.record.order = None;
    }
    date_failure(parts, held, &order.ca, error, heals, now).await;
    // After the save: to count too much is the safe side. What was signed and is
    // of no use was signed all the same.
    if ended && matches!(error, ManageError::Acme(_)) {
        let named = failed_names(error).map(|failed| failed.identifier.clone());
        let named: BTreeSet<Identifier> = named.collect();
        let unproven = match kind {
            FailureKind::Validation if named.is_empty() => order.identifiers.clone(),
            FailureKind::Validation => named,
            _ => BTreeSet::new(),
        };
        ca_state::settle_failed(parts, order, &unproven, there).await;
    }
}

/// Notes that the CA keeps an order from being begun.
pub(super) async fn note_unsent(
    parts: &Parts,
    held: &mut Held,
    ca: &str,
    error: &ManageError,
    heals: bool,
) {
    if is_silence(error) {
        ca_state::is_silent(parts, ca, Work::Orders, &error.to_string()).await;
    }
    date_failure(parts, held, ca, error, heals, parts.clock.now()).await;
}

/// Its kind, and whether the order has come to nothing.
fn kind_of(error: &ManageError) -> (FailureKind, bool) {
    match error {
        ManageError::Acme(AcmeError { cause, .. }) => match cause {
            Cause::RateLimited { retry_after, .. } => (
                FailureKind::RateLimited {
                    retry_after: *retry_after,
                },
                false,
            ),
            Cause::Unreachable(_) | Cause::Protocol(_) | Cause::TimedOut(_) => {
                (FailureKind::Unreachable, false)
            }
            Cause::NotProven(_) => (FailureKind::Validation, true),
            Cause::Refused(_) | Cause::NoChallenge { .. } => (FailureKind::Refused, true),
            // Our own disk: the order is as good as before.
            Cause::Solver(_) | Cause::Journal(_) => (FailureKind::Internal, false),
        },
        _ => (FailureKind::Internal, true),
    }
}

/// Makes the failure durable, with the instant of the next try.
async fn date_failure(
    parts: &Parts,
    held: &mut Held,
    ca: &str,
    error: &ManageError,
    heals: bool,
    now: Timestamp,
) {
    let record = &mut held.record;
    let facts = record.issued.as_ref().map(|issued| &issued.facts);
    // What is good already is not held up by what it lacks.
    let healing = record.quarantine.as_mut().filter(|_| heals);
    let facts = facts.filter(|_| healing.is_none());
    let failures = match (healing, &mut record.fallback) {
        (Some(quarantine), _) => &mut quarantine.tries,
        (None, Some(second)) if second.ca == ca => &mut second.failures,
        _ => &mut record.failures,
    };
    *failures = after_failure(
        failures,
        kind_of(error).0,
        error.to_string(),
        facts,
        now,
        parts.random.as_ref(),
    );
    held.save_or_warn(parts).await;
}

/// The names that an order came to nothing for, where the CA tells them.
pub(crate) fn failed_names(error: &ManageError) -> impl Iterator<Item = &FailedName> {
    let failed = match error {
        ManageError::Acme(error) => error.cause.failed_names(),
        _ => &[],
    };
    failed.iter()
}

/// Whether the CA was not to be reached, or failed.
pub(crate) fn is_silence(error: &ManageError) -> bool {
    let ManageError::Acme(AcmeError { phase, cause, .. }) = error else {
        return false;
    };
    match cause {
        Cause::Unreachable(_) => true,
        // Another page in the place of the directory.
        Cause::Protocol(_) => *phase == Phase::Directory,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_in_the_place_of_the_directory_is_silence_and_a_reply_out_of_order_is_none() {
        let failed = |phase| {
            let (ca, cause) = ("https://ca".into(), Cause::Protocol("no JSON".into()));
            ManageError::Acme(AcmeError { ca, phase, cause })
        };
        assert!(is_silence(&failed(Phase::Directory)));
        assert!(!is_silence(&failed(Phase::Finalize)));
    }
}
