//! An order from whichever CA the rule of [`crate::renew::fallback`] names: the
//! one of the first choice, or the one that stands in for it.

use super::issue::{Held, Urge};
use super::order::{Plan, is_silence, order as order_at};
use super::{Certificate, ManageError, Parts};
use crate::renew::fallback::{Choice, choose, stands_in};
use crate::time::Timestamp;

/// Orders, checks and stores a new generation.
///
/// # Errors
/// What kept it from being stored; it is noted in the record.
pub(super) async fn order(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    plan: Plan,
) -> Result<(), ManageError> {
    match plan.from {
        Choice::First => first(parts, certificate, held, plan).await,
        Choice::Fallback => second(parts, certificate, held, plan).await,
    }
}

async fn first(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    plan: Plan,
) -> Result<(), ManageError> {
    let urge = plan.urge;
    let Err(error) = order_at(parts, certificate, held, plan.clone()).await else {
        return Ok(());
    };
    note_try(parts, held, &error).await;
    let now = parts.clock.now();
    let silent = silent_since(parts, &held.record.ca, urge, &error).await;
    if !silent.is_some_and(|since| stands_in(&held.record, since, now)) {
        return Err(error);
    }
    tracing::warn!(lineage = %held.record.lineage, "{error}; the fallback stands in");
    let plan = Plan {
        from: Choice::Fallback,
        replaces: None,
        ..plan
    };
    match order_at(parts, certificate, held, plan).await {
        Err(other @ (ManageError::Down { .. } | ManageError::OutOfBudget { .. })) => {
            Err(sooner(error, other))
        }
        ended => ended,
    }
}

/// One that cannot be asked now makes room for the first choice.
async fn second(
    parts: &Parts,
    certificate: &Certificate,
    held: &mut Held,
    plan: Plan,
) -> Result<(), ManageError> {
    let Err(error) = order_at(parts, certificate, held, plan.clone()).await else {
        return Ok(());
    };
    let (ManageError::Down { until, .. } | ManageError::OutOfBudget { until, .. }) = &error else {
        return Err(error);
    };
    let second = held.record.fallback.as_ref();
    let held_before = second.and_then(|second| second.failures.retry_at);
    if let Some(second) = &mut held.record.fallback {
        second.failures.retry_at = Some(*until);
        second.failures.last = Some(error.to_string());
    }
    let choice = choose(&held.record, parts.clock.now());
    if let (ManageError::Down { .. }, Some(second)) = (&error, &mut held.record.fallback) {
        // All certificates share how long that is, and it may end earlier.
        second.failures.retry_at = held_before;
    }
    held.save_or_warn(parts).await;
    match choice {
        Ok(Choice::First) => {
            let plan = Plan {
                from: Choice::First,
                replaces: None,
                ..plan
            };
            let ended = order_at(parts, certificate, held, plan).await;
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

/// That it was tried counts, also where nothing was sent.
async fn note_try(parts: &Parts, held: &mut Held, error: &ManageError) {
    let unsent = matches!(
        error,
        ManageError::Down { .. } | ManageError::OutOfBudget { .. }
    );
    if unsent && held.record.fallback.is_some() && held.record.failures.since.is_none() {
        held.record.failures.since = Some(parts.clock.now());
        held.save_or_warn(parts).await;
    }
}

/// Since when the CA is found silent; what was found out just now is given time
/// to pass, unless somebody waits for the outcome.
async fn silent_since(
    parts: &Parts,
    ca: &str,
    urge: Urge,
    error: &ManageError,
) -> Option<Timestamp> {
    match error {
        ManageError::Down { since, .. } => Some(*since),
        error if is_silence(error) && urge != Urge::Due => {
            let (known, _) = parts.store.authority(ca).await.ok()?;
            known.outage.map(|outage| outage.since)
        }
        _ => None,
    }
}
