//! Stores a checked certificate as the newest generation. Nothing is published here.

use super::source::Source;
use crate::certificate::{Bundle, Facts};
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::manage::session::{Pass, Trigger};
use crate::record::{Failures, Issued, Record};
use crate::renew::window;
use crate::time::Timestamp;

impl Pass<'_> {
    /// Stores `bundle` as issued at `now`, the instant at which its dates were checked. With
    /// an instant from a clock that is ahead, it could not be renewed before its end.
    pub(super) async fn store_generation(
        &mut self,
        source: &Source<'_>,
        bundle: &Bundle,
        now: Timestamp,
    ) -> Result<(), ManageError> {
        let (services, facts) = (self.services, bundle.facts());
        let record = &mut self.record;
        let early = early(record, facts, self.trigger, now);
        let predecessor = record.issued.as_ref();
        let generation = predecessor.map_or_else(Default::default, |issued| issued.generation);
        let deploy_at = maintenance_window(services, predecessor.map(|one| &one.facts), now)
            .filter(|_| !record.must_replace());
        let renewable_from = window::renewable_from(facts, now, services.spacing, early);
        record.issued = Some(Issued {
            generation: generation.next(),
            facts: facts.clone(),
            ca: source.ca.to_owned(),
            at: now,
            renewal: None,
            renewable_from: Some(renewable_from),
            early,
            deploy_at,
            instead_of: source.instead_of.cloned(),
            terms: record.order.take().and_then(|order| order.terms),
        });
        record.pinned = None;
        if let Some(excluded) = &mut record.excluded {
            let names = &mut excluded.names;
            names.retain(|name, _| !facts.identifiers.contains(name));
        }
        record.excluded.take_if(|left| left.names.is_empty());
        record.failures = Failures::default();
        record.deployment_failures = Failures::default();
        if let Some(fallback) = &mut record.fallback {
            fallback.failures = Failures::default();
        }
        self.save(Some(bundle)).await
    }
}

/// The number of certificates in a row that were replaced early, including the current one.
fn early(record: &Record, facts: &Facts, trigger: Trigger, now: Timestamp) -> u32 {
    let Some(issued) = record
        .issued
        .as_ref()
        .filter(|_| trigger == Trigger::Scheduled)
    else {
        return 0;
    };
    // Also from another CA, since its successor is ordered as early.
    let same = issued.facts.identifiers == facts.identifiers;
    let half = issued.facts.not_before + issued.facts.lifetime() / 2;
    // A short lifetime is renewed at its half, give or take a hundredth.
    let grace = issued.facts.lifetime() / 50;
    if same && now + grace < half {
        issued.early.saturating_add(1)
    } else {
        0
    }
}

/// When the new certificate is deployed: in the next maintenance window, if its
/// predecessor is valid for long enough.
fn maintenance_window(
    services: &Services,
    predecessor: Option<&Facts>,
    now: Timestamp,
) -> Option<Timestamp> {
    let opens = services.maintenance.as_ref()?.next_after(now)?;
    let good_until = window::latest(predecessor?);
    (opens <= good_until).then_some(opens)
}
