//! An order before it is stored, checked against the rate limits of its CA. Nothing is
//! saved here.

use std::collections::BTreeSet;

use crate::ca_state::{CaState, Counted};
use crate::identifier::Identifier;
use crate::manage::session::Trigger;
use crate::record::Record;
use crate::renew::decide::Plan;
use crate::renew::rate_limits::{self, Priority, Refusal};
use crate::time::Timestamp;

/// An order as the rate limiter sees it, before it is stored.
pub(crate) struct Intended<'o> {
    record: &'o Record,
    names: &'o BTreeSet<Identifier>,
    replaces: Option<&'o str>,
    pub(super) priority: Priority,
}

impl<'o> Intended<'o> {
    /// The order of `plan` for `record`.
    pub(in crate::manage) fn of(plan: &'o Plan, record: &'o Record, trigger: Trigger) -> Self {
        Self {
            record,
            names: &plan.names,
            replaces: plan.replaces.as_deref(),
            priority: match (trigger, plan.urgent) {
                (Trigger::Scheduled, false) => Priority::Routine,
                (Trigger::Scheduled, true) => Priority::Urgent,
                _ => Priority::Forced,
            },
        }
    }

    pub(super) fn counts_as(&self, ca: &str, now: Timestamp) -> Counted {
        rate_limits::counts_as(self.record, ca, self.names, self.replaces, now)
    }

    /// Takes its tokens from the rate limits of `ca`, or returns until when it is refused.
    pub(super) fn spend(
        &self,
        state: &mut CaState,
        ca: &str,
        now: Timestamp,
    ) -> Result<Counted, Refusal> {
        let counted = self.counts_as(ca, now);
        let (rules, names, priority) = (rate_limits::rules(ca), self.names, self.priority);
        rate_limits::spend(state, rules, names, counted, priority, now)?;
        Ok(counted)
    }

    /// Until when the rate limits of `ca` in `known` would refuse it at `now`.
    pub(super) fn refused_until(
        &self,
        known: &CaState,
        ca: &str,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut after = known.clone();
        let refusal = self.spend(&mut after, ca, now).err()?;
        // A state that must be corrected was dated by a wrong clock: it refuses nothing.
        (after == *known).then_some(refusal.until)
    }
}
