//! The start of a pass: the record is loaded under its lease, and reconciled with the
//! configuration, the files on disk, and the servers' endpoints. Nothing is ordered or
//! deployed here.

use std::collections::{BTreeMap, BTreeSet};

use super::ca_state::refund;
use super::clock::PassClock;
use super::concurrency::Permit;
use super::deploy::{on_disk, servers_without_endpoint};
use super::error::ManageError;
use super::partial;
use super::proof::FILES;
use super::services::{Certificate, Keeper, Services, Wanted};
use super::session::{Pass, Trigger};
use crate::deploy::verify::SILENT;
use crate::identifier::Identifier;
use crate::record::{
    Failures, Fallback, Generation, Issued, PendingOrder, Record, Revision, Served,
};
use crate::renew::policy::{CLOCK_READING, OLDEST_ORDER};
use crate::store::StoreError;
use crate::time::{Clock, Timestamp};

/// Targets and endpoints, and what each has.
type Seen = (
    BTreeMap<String, Generation>,
    BTreeMap<String, Served>,
    BTreeSet<String>,
);

impl<'p> Pass<'p> {
    /// Begins a pass; the caller holds its lease.
    pub(super) async fn load(
        services: &'p Services,
        certificate: &'p Certificate,
        trigger: Trigger,
        permit: Permit,
        clock: &PassClock,
    ) -> Result<Self, ManageError> {
        let (record, revision) = stored_or_new(services, &certificate.wanted).await?;
        clock.use_evidence(&record);
        let mut pass = Self {
            services,
            certificate,
            trigger,
            permit,
            record,
            revision,
            shared: None,
            left_to_others: false,
            looked: false,
            unseen: None,
            overtaken: None,
        };
        let stored = pass.record.clone();
        let mut changed = pass.adopt_wanted();
        let now = age_at(&pass.record, certificate, clock).await;
        let is_stale = |record: &Record| {
            let order = record.order.as_ref();
            order.is_some_and(|order| !is_resumable(order, record, certificate, now))
        };
        let mut dropped = None;
        let is_new = pass.revision == Revision::default();
        if is_new || pass.record != stored || is_stale(&pass.record) {
            // In a fleet, the settings of the machine that orders count.
            match pass.share().await? {
                true if is_stale(&pass.record) => dropped = pass.record.order.take(),
                true => {}
                false if is_new => pass.must_share().await?,
                false => (pass.record, changed, pass.left_to_others) = (stored, false, true),
            }
        }
        clear_backoff(&mut pass.record, trigger);
        let seen = pass.seen();
        pass.check_deployments(now).await;
        pass.sync_endpoints().await;
        if changed || dropped.is_some() || pass.seen() != seen {
            // The record shows the last request, also to a renewal without a configuration,
            // and no proof of an endpoint that is checked no more.
            pass.save(None).await?;
        }
        if let Some(order) = dropped {
            // After the save, so that the order is refunded only once.
            Box::pin(refund(services, &order)).await;
        }
        Ok(pass)
    }

    /// Whether this machine changes what a fleet shares: it has the right from now on, and the
    /// newest record. Otherwise another machine does it.
    ///
    /// # Errors
    /// When the store cannot be reached, or another machine works on a user's request.
    pub(super) async fn share(&mut self) -> Result<bool, ManageError> {
        if self.shared.is_some() {
            return Ok(true);
        }
        let (store, is_scheduled) = (&self.services.store, self.trigger == Trigger::Scheduled);
        // A first certificate waits for no issuer: its configuration may lack the name.
        let requested = !is_scheduled || self.record.issued.is_none();
        self.shared = match store.share(self.lineage(), requested).await {
            Err(StoreError::OnlyServes | StoreError::Leased { .. }) if is_scheduled => None,
            shared => shared?,
        };
        if self.shared.is_none() {
            return Ok(false);
        }
        if let Some((record, revision)) = store.load(self.lineage()).await?
            && revision != self.revision
        {
            // Another machine was faster.
            (self.record, self.revision) = (record, revision);
            self.adopt_wanted();
            clear_backoff(&mut self.record, self.trigger);
        }
        Ok(true)
    }

    /// The same for a step that nothing else can stand in for.
    pub(super) async fn must_share(&mut self) -> Result<(), ManageError> {
        match self.share().await? {
            true => Ok(()),
            false => {
                let lineage = self.lineage().clone();
                Err(StoreError::Leased { lineage }.into())
            }
        }
    }

    /// Copies the wanted settings into the record, and returns whether they have changed.
    fn adopt_wanted(&mut self) -> bool {
        let mut wanted = self.certificate.wanted.clone();
        if self.is_behind() {
            wanted.identifiers = self.record.identifiers.iter().cloned().collect();
        }
        let (record, wanted) = (&mut self.record, &wanted);
        let mut changed = adopt(record, wanted);
        if self.trigger == Trigger::Requested {
            changed |= end_rollback(record);
        }
        record.profile.clone_from(&wanted.terms.profile);
        record.fallback = fallback_of(record, self.certificate, changed);
        partial::reconcile(record, wanted);
        changed
    }

    /// Whether a command, perhaps on another machine of the fleet, has got a certificate of names
    /// that this process does not know yet: a scheduled pass keeps them.
    fn is_behind(&self) -> bool {
        let (record, names) = (&self.record, &self.record.identifiers);
        let is_issued = |it: &Issued| it.facts.identifiers == *names;
        self.certificate.keeper == Keeper::Command
            && self.certificate.wanted.request.is_none()
            && self.trigger == Trigger::Scheduled
            && record.issued.as_ref().is_some_and(is_issued)
    }

    /// The state of targets and endpoints, as stored.
    fn seen(&self) -> Seen {
        let record = &self.record;
        let (deployed, served) = (record.deployed.clone(), record.served.clone());
        (deployed, served, record.unchecked.clone())
    }

    /// Compares the record with the targets and the files on disk: copies that were removed
    /// or changed since are deployed again.
    async fn check_deployments(&mut self, now: Timestamp) {
        let lineage = self.lineage().clone();
        let mut deployed = BTreeMap::new();
        for (name, target) in self.certificate.named_targets() {
            let known = self.record.deployed.get(&name).copied().unwrap_or_default();
            // Another process may have removed the copy.
            let gone = known != Generation::default() && target.is_gone(&lineage).await;
            deployed.insert(name, if gone { Generation::default() } else { known });
        }
        let to_be_served = self.record.to_be_served(now);
        let files = on_disk(self.services, &lineage, to_be_served).await;
        let noted = self.record.deployed.get(FILES) == Some(&files);
        let differ = to_be_served.is_some_and(|(generation, _)| generation != files);
        self.record.deployed = deployed;
        if differ && !noted {
            // A server may have loaded the changed files.
            self.mark_unverified();
        }
        // Files that the record does not know are deployed again: their writer was killed,
        // perhaps before the files were flushed.
        let files = if noted { files } else { Generation::default() };
        self.record.deployed.insert(FILES.to_owned(), files);
    }

    /// Updates the endpoints to verify: old ones are dropped, and new ones are unverified. A
    /// server that was seen and listens no more stays, as unverified.
    async fn sync_endpoints(&mut self) {
        let found = self.endpoints_to_verify().await;
        let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
        let (served, now) = (&mut self.record.served, self.services.clock.now());
        let servers = servers_without_endpoint(self.certificate);
        served.retain(|endpoint, _| found.contains(endpoint) || servers.contains(endpoint));
        for (endpoint, seen) in served.iter_mut() {
            if !found.contains(endpoint) {
                // A look may have found why.
                seen.problem.get_or_insert_with(|| SILENT.to_owned());
            }
        }
        for endpoint in &found {
            let entry = served.entry(endpoint.clone());
            entry.or_insert_with(|| Served::none(now));
        }
        let known = |server: &String| served.contains_key(server);
        self.record.unchecked = servers.into_iter().filter(|it| !known(it)).collect();
    }
}

/// The stored record of `wanted`, or a new one.
pub(crate) async fn stored_or_new(
    services: &Services,
    wanted: &Wanted,
) -> Result<(Record, Revision), ManageError> {
    let stored = services.store.load(&wanted.lineage).await?;
    Ok(stored.unwrap_or_else(|| {
        let (lineage, names) = (wanted.lineage.clone(), wanted.identifiers.tree());
        let fresh = Record::new(lineage, names, wanted.ca.clone());
        (fresh, Revision::default())
    }))
}

/// Copies the wanted names and CA into `record`, and returns whether they have changed.
pub(super) fn adopt(record: &mut Record, wanted: &Wanted) -> bool {
    let changed = !wanted.matches(record);
    if changed {
        // The failures belong to the previous settings.
        record.failures = Failures::default();
    }
    record.identifiers = wanted.identifiers.tree();
    record.ca.clone_from(&wanted.ca);
    changed
}

/// Ends a rollback to a certificate without some of the names that a user requests, and
/// returns whether there was one.
fn end_rollback(record: &mut Record) -> bool {
    let excluded = record.excluded.as_ref();
    let is_missing = |name: &Identifier, has: &BTreeSet<Identifier>| {
        !has.contains(name) && !excluded.is_some_and(|excluded| excluded.names.contains_key(name))
    };
    let ended = record.pinned.take_if(|pinned| {
        let has = &pinned.facts.identifiers;
        record.identifiers.iter().any(|name| is_missing(name, has))
    });
    if let Some(pinned) = &ended {
        let (lineage, generation) = (&record.lineage, pinned.generation);
        tracing::warn!(%lineage, "the rollback to generation {generation} ends: it lacks a requested name");
    }
    ended.is_some()
}

/// Clears backoff and maintenance window for a pass that a user requested. A pause that
/// the CA itself asked for stays, and one after an unusable certificate until it is forced.
pub(super) fn clear_backoff(record: &mut Record, trigger: Trigger) {
    if trigger == Trigger::Scheduled {
        return;
    }
    record.deployment_failures.retry_at = None;
    if trigger.never_orders() {
        return;
    }
    let fallback = record.fallback.iter_mut();
    let tries = record.excluded.iter_mut();
    let all = [&mut record.failures]
        .into_iter()
        .chain(fallback.map(|fallback| &mut fallback.failures))
        .chain(tries.map(|excluded| &mut excluded.tries));
    let is_kept = |failures: &Failures| {
        failures.by_retry_after || (failures.is_signed && trigger != Trigger::Forced)
    };
    for failures in all.filter(|failures| !is_kept(failures)) {
        failures.retry_at = None;
    }
    if let Some(issued) = record.issued.as_mut() {
        issued.deploy_at = None;
    }
}

/// The fallback CA, with its failures so far if the CA and the names are unchanged.
fn fallback_of(record: &Record, certificate: &Certificate, changed: bool) -> Option<Fallback> {
    let ca = &certificate.fallback.as_ref()?.ca;
    let known = record.fallback.clone();
    let known = known.filter(|known| known.ca == *ca && !changed);
    Some(known.unwrap_or_else(|| Fallback {
        ca: ca.clone(),
        failures: Failures::default(),
    }))
}

/// The time by which the age of the pending order is judged. If the order looks old, the
/// CA's clock is read again, since a clock that is ahead must not drop an order that may
/// be issued already.
async fn age_at(record: &Record, certificate: &Certificate, clock: &PassClock) -> Timestamp {
    let begun = record.order.as_ref().map(|order| order.begun);
    if begun.is_some_and(|begun| clock.now().since(begun) >= OLDEST_ORDER)
        && let Err(error) = certificate.issuer.time(CLOCK_READING).await
    {
        tracing::debug!("the CA's time is unknown: {error}");
    }
    clock.now()
}

/// Whether a pending order matches the names of `record`, and the wanted CA and signing request,
/// and is recent enough to be resumed.
fn is_resumable(
    order: &PendingOrder,
    record: &Record,
    certificate: &Certificate,
    now: Timestamp,
) -> bool {
    let has_wanted_key = match &certificate.wanted.request {
        Some(request) => order.key_pem == request.in_place_of_key(),
        None => order.key_pem.signing_request().is_none(),
    };
    let is_recent = now.since(order.begun) < OLDEST_ORDER;
    let is_allowed = certificate
        .wanted
        .allows(&order.identifiers, &record.identifiers);
    is_allowed && is_recent && has_wanted_key && certificate.cas().any(|(ca, _)| *ca == order.ca)
}
