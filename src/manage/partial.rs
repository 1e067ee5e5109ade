//! Orders all wanted names and, if the operator allows it, then orders again without the
//! names that failed. Those are excluded with their reason and retried later, by orders
//! that delay nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::error::ManageError;
use super::services::Wanted;
use super::session::Pass;
use crate::identifier::Identifier;
use crate::record::{Excluded, Record};
use crate::renew::backoff::{FailureKind, after_failure};
use crate::renew::decide::{self, Plan};
use crate::renew::partial;
use crate::renew::policy::{LONGEST_RECHECK, RECHECK};
use crate::time::Timestamp;

impl Pass<'_> {
    /// Orders, checks and stores a new generation, if necessary without the names that fail.
    pub(super) async fn order_with_exclusions(&mut self, plan: Plan) -> Result<(), ManageError> {
        let error = match self.order_with_fallback(plan.clone()).await {
            Err(error) => error,
            done => return done,
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
        if plan.only_excluded
            && issued.is_some_and(|issued| issued.facts.identifiers.is_superset(&names))
        {
            return Err(error);
        }
        tracing::warn!(lineage = %self.lineage(), "{error}; ordering without the failed names");
        let (record, now) = (&self.record, self.now());
        let replaces = decide::replaces(record, plan.from.ca(record), &names, now);
        let plan = Plan {
            names,
            replaces,
            ..plan
        };
        self.order_with_fallback(plan).await
    }

    /// Notes the names that `error` reports, and returns the other names of the order.
    async fn exclude_failed(
        &mut self,
        plan: &Plan,
        error: &ManageError,
        now: Timestamp,
    ) -> Result<Option<BTreeSet<Identifier>>, ManageError> {
        let failed = error.failed_names().iter();
        let failed = failed.map(|one| (one.identifier.clone(), one.reason.clone()));
        let failed: BTreeMap<Identifier, String> = failed.collect();
        let healthy = partial::healthy(&plan.names, |name| failed.contains_key(name));
        // A pending order may have other names.
        let Some(healthy) = healthy.filter(|_| self.record.order.is_none()) else {
            return Ok(None);
        };
        let record = &mut self.record;
        let may = |name| partial::may_be_excluded(record, name, now);
        if !failed.keys().all(may) {
            return Ok(None);
        }
        let before = record.excluded.take().unwrap_or_default();
        let mut names = before.names;
        names.retain(|name, _| !plan.names.contains(name));
        names.extend(failed);
        names.retain(|name, _| record.identifiers.contains(name));
        let mut tries = before.tries;
        if !plan.only_excluded {
            let (kind, message) = (FailureKind::Validation, error.to_string());
            let random = self.services.random.as_ref();
            tries = after_failure(&tries, kind, message, None, now, random);
        }
        record.excluded = Some(Excluded { names, tries });
        self.save(None).await?;
        Ok(Some(healthy))
    }

    /// Postpones excluded names after their order has failed: the valid certificate stays,
    /// and the pass continues.
    ///
    /// # Errors
    /// Those of the store: without the stored pause the retry would come at once.
    pub(super) async fn postpone_excluded(
        &mut self,
        error: ManageError,
        now: Timestamp,
    ) -> Result<(), ManageError> {
        if partial::retry_at(&self.record, now).is_none()
            && let Some(excluded) = &mut self.record.excluded
        {
            let until = error.waits_until().filter(|until| *until > now);
            let until = until.unwrap_or(now + RECHECK).min(now + LONGEST_RECHECK);
            excluded.tries.retry_at = Some(until);
            self.save(None).await?;
        }
        tracing::warn!(lineage = %self.lineage(), "the excluded names failed again: {error}");
        Ok(())
    }
}

/// Drops exclusions of names that are no longer wanted, and all of them unless the
/// operator allows exclusions.
pub(super) fn reconcile(record: &mut Record, wanted: &Wanted) {
    if let Some(excluded) = &mut record.excluded {
        let names = &mut excluded.names;
        names.retain(|name, _| wanted.partial && wanted.identifiers.contains(name));
    }
    record.excluded.take_if(|left| left.names.is_empty());
}
