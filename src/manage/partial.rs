//! An order for all that is wanted and, where the owner allows it, at once
//! another one without the names that failed: they are excluded with their reason
//! and tried again later, by orders that nothing else waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::error::ManageError;
use super::order::Plan;
use super::services::Wanted;
use super::session::Pass;
use crate::identifier::Identifier;
use crate::record::{Quarantine, Record};
use crate::renew::backoff::{FailureKind, after_failure};
use crate::renew::decide;
use crate::renew::quarantine;
use crate::time::Timestamp;

/// After a failure that says no better.
const LATER: Duration = Duration::from_secs(3600);
const LATEST: Duration = Duration::from_secs(86_400);

impl Pass<'_> {
    /// Orders, checks and stores a new generation, if need be without the names that fail.
    ///
    /// # Errors
    /// What kept it from being stored; it is noted in the record.
    pub(super) async fn order_with_exclusions(&mut self, plan: Plan) -> Result<(), ManageError> {
        let Err(error) = self.order_with_fallback(plan.clone()).await else {
            return Ok(());
        };
        let healthy = if self.certificate.wanted.partial {
            let now = self.now();
            self.exclude_failed(&plan, &error, now).await?
        } else {
            None
        };
        let Some(names) = healthy else {
            return Err(error);
        };
        let issued = self.record.issued.as_ref();
        if plan.heals && issued.is_some_and(|issued| issued.facts.identifiers.is_superset(&names)) {
            return Err(error);
        }
        tracing::warn!(lineage = %self.lineage(), "{error}; ordering without what has failed");
        let (record, now) = (&self.record, self.now());
        let replaces = decide::replaces(record, plan.from.ca(record), &names, now);
        let plan = Plan {
            names,
            replaces,
            ..plan
        };
        self.order_with_fallback(plan).await
    }

    /// Notes the names that `error` is about, and returns the others of the order.
    async fn exclude_failed(
        &mut self,
        plan: &Plan,
        error: &ManageError,
        now: Timestamp,
    ) -> Result<Option<BTreeSet<Identifier>>, ManageError> {
        let failed = error.failed_names().iter();
        let failed = failed.map(|one| (one.identifier.clone(), one.reason.clone()));
        let failed: BTreeMap<Identifier, String> = failed.collect();
        let healthy = quarantine::healthy(&plan.names, |name| failed.contains_key(name));
        // What was begun earlier may have been for other names.
        let Some(healthy) = healthy.filter(|_| self.record.order.is_none()) else {
            return Ok(None);
        };
        let record = &mut self.record;
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
            let random = self.services.random.as_ref();
            tries = after_failure(&tries, kind, told, None, now, random);
        }
        record.quarantine = Some(Quarantine { names, tries });
        self.save(None).await?;
        Ok(Some(healthy))
    }

    /// An order for excluded names has failed: what is good already stays as it is,
    /// and the pass goes on.
    ///
    /// # Errors
    /// Of the store: then nothing keeps the next try from coming at once.
    pub(super) async fn postpone_excluded(
        &mut self,
        error: ManageError,
        now: Timestamp,
    ) -> Result<(), ManageError> {
        if quarantine::retry_at(&self.record, now).is_none()
            && let Some(quarantine) = &mut self.record.quarantine
        {
            let until = error.waits_until().filter(|until| *until > now);
            let until = until.unwrap_or(now + LATER).min(now + LATEST);
            quarantine.tries.retry_at = Some(until);
            self.save(None).await?;
        }
        tracing::warn!(lineage = %self.lineage(), "what is left out is left out still: {error}");
        Ok(())
    }
}

/// What is wanted no more need not be excluded, and nothing is unless the owner
/// allows it.
pub(super) fn reconcile(record: &mut Record, wanted: &Wanted) {
    if let Some(quarantine) = &mut record.quarantine {
        let names = &mut quarantine.names;
        names.retain(|name, _| wanted.partial && wanted.identifiers.contains(name));
    }
    record.quarantine.take_if(|left| left.names.is_empty());
}
