//! An order for all that is wanted and, where the owner allows it, at once
//! another one without the names that failed: they are noted with their reason
//! and tried again later, by orders that nothing else waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ca_state::waits_until;
use super::fallback;
use super::issue::Held;
use super::order::{Plan, failed_names};
use super::{Certificate, ManageError, Parts, Wanted};
use crate::identifier::Identifier;
use crate::record::{Quarantine, Record};
use crate::renew::backoff::{FailureKind, after_failure};
use crate::renew::decide;
use crate::renew::quarantine;
use crate::time::Timestamp;

/// After a failure that says no better.
const LATER: Duration = Duration::from_secs(3600);
const LATEST: Duration = Duration::from_secs(86_400);

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
    let ordered = fallback::order(parts, certificate, held, plan.clone()).await;
    let Err(error) = ordered else {
        return Ok(());
    };
    let healthy = if certificate.wanted.partial {
        let now = parts.clock.now();
        leave_out(parts, held, &plan, &error, now).await?
    } else {
        None
    };
    let Some(names) = healthy else {
        return Err(error);
    };
    let issued = held.record.issued.as_ref();
    if plan.heals && issued.is_some_and(|issued| issued.facts.identifiers.is_superset(&names)) {
        return Err(error);
    }
    let lineage = &held.record.lineage;
    tracing::warn!(%lineage, "{error}; ordering without what has failed");
    let (record, now) = (&held.record, parts.clock.now());
    let replaces = decide::replaces(record, plan.from.ca(record), &names, now);
    let plan = Plan {
        names,
        replaces,
        ..plan
    };
    fallback::order(parts, certificate, held, plan).await
}

/// Notes the names that `error` is about, and returns the others of the order.
async fn leave_out(
    parts: &Parts,
    held: &mut Held,
    plan: &Plan,
    error: &ManageError,
    now: Timestamp,
) -> Result<Option<BTreeSet<Identifier>>, ManageError> {
    let failed = failed_names(error).map(|one| (one.identifier.clone(), one.reason.clone()));
    let failed: BTreeMap<Identifier, String> = failed.collect();
    let healthy = quarantine::healthy(&plan.names, |name| failed.contains_key(name));
    // What was begun earlier may have been for other names.
    let Some(healthy) = healthy.filter(|_| held.record.order.is_none()) else {
        return Ok(None);
    };
    let record = &mut held.record;
    let may = |name| quarantine::may_be_left_out(record, name, now);
    if !failed.keys().all(may) {
        return Ok(None);
    }
    let before = record.quarantine.take().unwrap_or_default();
    let mut names = before.names;
    names.retain(|name, _| !plan.names.contains(name));
    names.extend(failed);
    names.retain(|name, _| record.identifiers.contains(name));
    let mut tries = before.tries;
    if !plan.heals {
        let (kind, told) = (FailureKind::Validation, error.to_string());
        tries = after_failure(&tries, kind, told, None, now, parts.random.as_ref());
    }
    record.quarantine = Some(Quarantine { names, tries });
    held.save(parts, None).await?;
    Ok(Some(healthy))
}

/// An order that was to heal has failed: what is good already stays as it is,
/// and the pass goes on.
///
/// # Errors
/// Of the store: then nothing keeps the next try from coming at once.
pub(super) async fn later(
    parts: &Parts,
    held: &mut Held,
    error: ManageError,
    now: Timestamp,
) -> Result<(), ManageError> {
    if quarantine::retry_at(&held.record, now).is_none()
        && let Some(quarantine) = &mut held.record.quarantine
    {
        let until = waits_until(&error).filter(|until| *until > now);
        let until = until.unwrap_or(now + LATER).min(now + LATEST);
        quarantine.tries.retry_at = Some(until);
        held.save(parts, None).await?;
    }
    tracing::warn!(lineage = %held.record.lineage, "what is left out is left out still: {error}");
    Ok(())
}

/// Whether an order for `names` is one for what is wanted.
pub(super) fn fits(names: &BTreeSet<Identifier>, wanted: &Wanted) -> bool {
    let some = wanted.partial && !names.is_empty() && names.is_subset(&wanted.identifiers);
    *names == wanted.identifiers || some
}

/// What is wanted no more need not be left out, and nothing is unless the owner
/// allows it.
pub(super) fn reconcile(record: &mut Record, wanted: &Wanted) {
    if let Some(quarantine) = &mut record.quarantine {
        let names = &mut quarantine.names;
        names.retain(|name, _| wanted.partial && wanted.identifiers.contains(name));
    }
    record.quarantine.take_if(|left| left.names.is_empty());
}
