//! The beginning of a pass: the record is read under its lease, and brought in line with
//! what is wanted now, with what lies on disk, and with where servers listen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::ca_state::settle_failed;
use super::clock::{self, Corrected};
use super::concurrency::Permit;
use super::deploy::{FILES, on_disk, places};
use super::error::ManageError;
use super::partial;
use super::services::{Certificate, Services, Wanted};
use super::session::{Pass, Trigger};
use crate::record::{Failures, Fallback, Generation, PendingOrder, Record, Revision, Served};
use crate::time::{Clock, Timestamp};

/// Let's Encrypt's orders live for seven days.
const OLDEST_ORDER: Duration = Duration::from_secs(3 * 86_400);

impl<'p> Pass<'p> {
    /// Begins a pass; its lease is held by now.
    ///
    /// # Errors
    /// Of the store.
    pub(super) async fn load(
        services: &'p Services,
        certificate: &'p Certificate,
        trigger: Trigger,
        permit: Permit,
        clock: &Corrected,
    ) -> Result<Self, ManageError> {
        let (record, revision) = stored_or_new(services, &certificate.wanted).await?;
        clock.knows(&record);
        let mut pass = Self {
            services,
            certificate,
            trigger,
            permit,
            record,
            revision,
        };
        let changed = pass.adopt_wanted();
        let now = age_at(&pass.record, certificate, clock).await;
        let order = &mut pass.record.order;
        let dropped = order.take_if(|order| !is_worth_resuming(order, certificate, now));
        pass.lift_pauses();
        pass.look_at_deployments(now).await;
        pass.look_at_endpoints().await;
        if changed || dropped.is_some() {
            // What is shown, and renewed without a configuration, is what was asked last.
            pass.save(None).await?;
        }
        if let Some(order) = dropped {
            // Once, that is after it is gone for good.
            let (nothing, now) = (BTreeSet::new(), services.clock.now());
            Box::pin(settle_failed(services, &order, &nothing, now)).await;
        }
        Ok(pass)
    }

    /// Puts what is wanted into the record, and says whether that is something else.
    fn adopt_wanted(&mut self) -> bool {
        let (record, wanted) = (&mut self.record, &self.certificate.wanted);
        let changed = !wanted.is_that_of(record);
        if changed {
            // What failed was something else.
            record.failures = Failures::default();
        }
        record.identifiers.clone_from(&wanted.identifiers);
        record.ca.clone_from(&wanted.ca);
        record.profile.clone_from(&wanted.profile);
        record.fallback = second_choice(record, self.certificate, changed);
        partial::reconcile(record, wanted);
        changed
    }

    /// What a user asks for by hand waits for no back-off of ours and for no
    /// maintenance window; only for what the CA itself has said.
    fn lift_pauses(&mut self) {
        let record = &mut self.record;
        if self.trigger == Trigger::Scheduled {
            return;
        }
        record.handover.retry_at = None;
        if self.trigger.never_orders() {
            return;
        }
        let second = record.fallback.as_mut().map(|second| &mut second.failures);
        let tries = record
            .quarantine
            .as_mut()
            .map(|excluded| &mut excluded.tries);
        let all = [&mut record.failures]
            .into_iter()
            .chain(second)
            .chain(tries);
        for failures in all.filter(|failures| !failures.asked_to_wait) {
            failures.retry_at = None;
        }
        if let Some(issued) = record.issued.as_mut() {
            issued.handover_at = None;
        }
    }

    /// What each target has loaded, and which files lie there: what was taken away or
    /// changed since is deployed again.
    async fn look_at_deployments(&mut self, now: Timestamp) {
        let lineage = self.lineage().clone();
        let mut deployed = BTreeMap::new();
        for (name, target) in self.certificate.named_targets() {
            let known = self.record.deployed.get(&name).copied().unwrap_or_default();
            // Its copy may have been taken away meanwhile.
            let gone = known != Generation::default() && target.is_gone(&lineage).await;
            deployed.insert(name, if gone { Generation::default() } else { known });
        }
        let to_be_served = self.record.to_be_served(now);
        let files = on_disk(self.services, &lineage, to_be_served).await;
        let noted = self.record.deployed.get(FILES) == Some(&files);
        if to_be_served.is_some_and(|(generation, _)| generation != files) && !noted {
            // A server that has read the files meanwhile has read others.
            deployed
                .values_mut()
                .for_each(|on| *on = Generation::default());
            for served in self.record.served.values_mut() {
                served.generation = Generation::default();
            }
        }
        // What is there and was not noted is deployed once more: the process that wrote it
        // was killed, perhaps before it was flushed.
        let files = if noted { files } else { Generation::default() };
        deployed.insert(FILES.to_owned(), files);
        self.record.deployed = deployed;
    }

    /// Where it must be seen: places that are gone are forgotten, and new ones unverified.
    async fn look_at_endpoints(&mut self) {
        let places = places(self.certificate).await;
        let places: Vec<String> = places.iter().map(ToString::to_string).collect();
        let (served, now) = (&mut self.record.served, self.services.clock.now());
        served.retain(|place, _| places.contains(place));
        for place in places {
            served.entry(place).or_insert_with(|| Served {
                generation: Generation::default(),
                at: now,
                not_after: None,
            });
        }
    }
}

async fn stored_or_new(
    services: &Services,
    wanted: &Wanted,
) -> Result<(Record, Revision), ManageError> {
    let stored = services.store.load(&wanted.lineage).await?;
    Ok(stored.unwrap_or_else(|| {
        let (lineage, names) = (wanted.lineage.clone(), wanted.identifiers.clone());
        let fresh = Record::new(lineage, names, wanted.ca.clone());
        (fresh, Revision::default())
    }))
}

/// The fallback CA, with what has failed there: at the same one, for the
/// same names.
fn second_choice(record: &Record, certificate: &Certificate, changed: bool) -> Option<Fallback> {
    let ca = &certificate.fallback.as_ref()?.ca;
    let known = record.fallback.clone();
    let known = known.filter(|known| known.ca == *ca && !changed);
    Some(known.unwrap_or_else(|| Fallback {
        ca: ca.clone(),
        failures: Failures::default(),
    }))
}

/// When the order under way, if it looks old, is looked at: a clock that is ahead
/// must not give up one that may have come to a certificate already.
async fn age_at(record: &Record, certificate: &Certificate, ours: &dyn Clock) -> Timestamp {
    let now = ours.now();
    match &record.order {
        Some(order) if now.since(order.begun) >= OLDEST_ORDER => {
            clock::there(certificate.issuer.as_ref(), ours).await
        }
        _ => now,
    }
}

/// Whether an order under way is for what is wanted, and not so old that the CA
/// has forgotten it or fails at it for good.
fn is_worth_resuming(order: &PendingOrder, certificate: &Certificate, now: Timestamp) -> bool {
    let (wanted, age) = (&certificate.wanted, now.since(order.begun));
    let second = certificate.fallback.as_ref();
    let known = order.ca == wanted.ca || second.is_some_and(|second| second.ca == order.ca);
    wanted.allows(&order.identifiers) && known && age < OLDEST_ORDER
}
