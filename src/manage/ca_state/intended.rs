//! An order that is not begun yet, held against the ledger of its CA.

use std::collections::BTreeSet;

use crate::ca_state::{CaState, Counted};
use crate::identifier::Identifier;
use crate::record::Record;
use crate::renew::ledger::{self, Priority, Refusal};
use crate::time::Timestamp;

/// An order as the ledger sees it, before it is begun.
pub(crate) struct Intended<'o> {
    /// What there is already.
    pub(in crate::manage) record: &'o Record,
    /// What it would be for.
    pub(in crate::manage) names: &'o BTreeSet<Identifier>,
    /// The predecessor, as RFC 9773 names it.
    pub(in crate::manage) replaces: Option<&'o str>,
    /// How much of the reserve it may use.
    pub(in crate::manage) priority: Priority,
}

impl Intended<'_> {
    pub(super) fn counts_as(&self, ca: &str, now: Timestamp) -> Counted {
        ledger::counts_as(self.record, ca, self.names, self.replaces, now)
    }

    /// Takes it out of the ledger of `ca`, or says until when it is refused.
    pub(super) fn spend(
        &self,
        state: &mut CaState,
        ca: &str,
        now: Timestamp,
    ) -> Result<Counted, Refusal> {
        let counted = self.counts_as(ca, now);
        let (rules, names, priority) = (ledger::rules(ca), self.names, self.priority);
        ledger::spend(state, rules, names, counted, priority, now)?;
        Ok(counted)
    }

    /// Until when the ledger of `ca`, as it is `known`, would refuse it at `now`.
    pub(super) fn refused_until(
        &self,
        known: &CaState,
        ca: &str,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let mut after = known.clone();
        let refusal = self.spend(&mut after, ca, now).err()?;
        // What had to be rewritten is of a wrong clock's making, or of ours: no refusal.
        (after == *known).then_some(refusal.until)
    }
}
