//! An order at one CA, from its intent to a stored generation. Its tokens are reserved and
//! its intent is stored before it is sent. The issued certificate is checked; a failure is
//! stored with the time of the retry. Nothing is deployed here.

mod failure;
mod journal;
mod source;
mod store;
mod window;

pub(super) use self::journal::RecordJournal;
use self::source::Source;
use super::ca_state::{self, Intended, Operation, reach};
use super::clock::ca_time;
use super::error::ManageError;
use super::session::{Pass, Trigger};
use crate::acme::{AcmeError, Cause};
use crate::ca_state::EVERY_CA;
use crate::certificate::{Bundle, Facts, Freshness, Secret, key_fingerprint};
use crate::record::{PendingOrder, Record};
use crate::renew::clock::{Evidence, decided_at, signed_at};
use crate::renew::decide::{Plan, due, is_due};
use crate::renew::policy::{CLOCK_READING, MOST_ORDERING, ORDERING, RECHECK};
use crate::renew::rate_limits;
use crate::time::Timestamp;

type Sent = Result<(Bundle, Timestamp), ManageError>;

impl Pass<'_> {
    /// Orders at the CA of `plan`, checks and stores a new generation.
    ///
    /// # Errors
    /// The failure that kept it from being stored; the record notes it.
    pub(super) async fn order_at_one_ca(&mut self, plan: Plan) -> Result<(), ManageError> {
        let source = Source::of(self.certificate, plan.from);
        let (orders, clock) = (&self.services.same_names, self.services.clock.as_ref());
        let pending = self.record.order.as_ref();
        let _turn = match pending.is_some_and(|order| order.ca == source.ca) {
            true => orders.resumed(source.ca, &plan.names).await,
            false => orders.alone(source.ca, &plan.names, clock).await,
        };
        self.wait_for_ca(&source, &plan).await?;
        self.check_due_at_ca(&source, plan.only_excluded).await?;
        self.drop_order_at_other_ca(source.ca).await?;
        let only_excluded = plan.only_excluded;
        let pending = self.pending(&source, plan).await?;
        self.phase("placing the order");
        let (pending, ended) = self.send_with_second_key(&source, pending).await;
        if let Err(error @ ManageError::LimitExhausted { .. }) = ended {
            // Nothing was sent: the stored order keeps waiting.
            return Err(error);
        }
        let services = self.services;
        services.metrics.issuance(source.ca, ended.is_ok());
        self.pace(source.ca, &ended);
        if ended.as_ref().err().is_none_or(ManageError::is_verdict) {
            let operation = Operation::Order(None);
            ca_state::note_available(services, source.ca, operation).await;
        }
        match ended {
            Ok((bundle, signed)) => {
                let there = ca_time(source.issuer, services.clock.as_ref());
                let sent = self.record.order.as_ref();
                ca_state::settle_issued(services, &pending, sent, there).await;
                self.store_generation(&source, &bundle, signed).await?;
                services.bundles.accept(self.lineage(), &bundle);
                self.refresh_window().await
            }
            Err(error) => {
                self.note_failure(&source, &pending, &error, only_excluded)
                    .await;
                Err(error)
            }
        }
    }

    /// Orders more or fewer certificates at a time from now on.
    fn pace(&self, ca: &str, ended: &Sent) {
        match ended {
            Ok(_) if rate_limits::rules(ca).is_empty() => self.permit.succeeded(MOST_ORDERING),
            // The limits that a CA publishes leave no room to find others.
            Ok(_) => self.permit.succeeded(ORDERING),
            Err(error) if error.is_outage() || error.is_rate_limit() => self.permit.refused(),
            _ => {}
        }
    }

    /// Sends a changed e-mail address to the CA, which need not wait for an order.
    pub(super) async fn update_account(&mut self) {
        let certificate = self.certificate;
        let mut journal = RecordJournal::new(self, &certificate.wanted.ca);
        if let Err(error) = certificate.issuer.update_account(&mut journal).await {
            let lineage = &certificate.wanted.lineage;
            tracing::warn!(%lineage, "the account was not updated: {error}");
        }
    }

    /// Fails while the CA is unreachable, unless a user requested the order.
    async fn wait_for_ca(&mut self, source: &Source<'_>, plan: &Plan) -> Result<(), ManageError> {
        if self.trigger != Trigger::Scheduled {
            return Ok(());
        }
        let pending = self.record.order.as_ref();
        let pending = pending.is_some_and(|order| order.ca == source.ca);
        let intended = (!pending).then(|| Intended::of(plan, &self.record, self.trigger));
        let operation = Operation::Order(intended);
        reach(self.services, source.ca, source.issuer, operation).await?;
        Ok(())
    }

    /// Checks a due order by the current clock of its CA too, in case ours is ahead.
    ///
    /// # Errors
    /// [`ManageError::NotDueAtCa`], and the CA's error if it does not tell the time: an order
    /// stored now would be resumed after the outage, due or not.
    async fn check_due_at_ca(
        &mut self,
        source: &Source<'_>,
        only_excluded: bool,
    ) -> Result<(), ManageError> {
        let record = &self.record;
        let due_anyway = record.issued.is_none() || record.order.is_some();
        if due_anyway || self.trigger == Trigger::Forced {
            return Ok(());
        }
        let reply = match source.issuer.time(CLOCK_READING).await {
            Ok(reply) => reply,
            Err(error) => {
                let error = error.into();
                self.note_unsent(source.ca, &error, only_excluded).await;
                return Err(error);
            }
        };
        let record = &self.record;
        let (Some(reply), None) = (reply, &record.excluded) else {
            return Ok(());
        };
        let ours = self.services.clock.wall();
        let theirs = reply.at_ca(ours);
        let at = decided_at(Evidence::of(record), ours, theirs);
        if is_due(record, at) {
            return Ok(());
        }
        let issued = record.issued.as_ref();
        let due = issued.and_then(|issued| Some(due(issued, issued.renewal.as_ref()?)));
        let pause = due.map_or(RECHECK, |due| due.since(at).min(RECHECK));
        Err(ManageError::NotDueAtCa {
            ca: source.ca.to_owned(),
            ours,
            theirs,
            until: self.now() + pause,
        })
    }

    /// Drops a pending order at another CA: a record holds one order at a time.
    async fn drop_order_at_other_ca(&mut self, ca: &str) -> Result<(), ManageError> {
        let Some(other) = self.record.order.take_if(|order| order.ca != ca) else {
            return Ok(());
        };
        self.save(None).await?;
        ca_state::refund(self.services, &other).await;
        Ok(())
    }

    /// The pending order, or a new one that is stored before it is sent.
    async fn pending(
        &mut self,
        source: &Source<'_>,
        plan: Plan,
    ) -> Result<PendingOrder, ManageError> {
        if let Some(pending) = self.record.order.clone() {
            return Ok(pending);
        }
        let only_excluded = plan.only_excluded;
        let intended = self.intend(source, plan).await;
        if let Err(error @ ManageError::Acme(_)) = &intended {
            self.note_unsent(source.ca, error, only_excluded).await;
        }
        intended
    }

    /// Stores the key and the intent before anything is sent.
    async fn intend(
        &mut self,
        source: &Source<'_>,
        plan: Plan,
    ) -> Result<PendingOrder, ManageError> {
        let (services, wanted) = (self.services, &self.certificate.wanted);
        let key_pem = self.key_for_order().await?;
        let intended = Intended::of(&plan, &self.record, self.trigger);
        let counted = ca_state::spend(services, source.ca, source.issuer, intended).await?;
        let now = services.clock.now();
        let pending = PendingOrder {
            ca: source.ca.to_owned(),
            identifiers: plan.names,
            profile: source.profile.cloned(),
            not_after: source.lifetime.map(|lifetime| now + lifetime.length()),
            terms: Some(wanted.terms.clone()),
            key_pem,
            url: None,
            replaces: plan.replaces,
            begun: now,
            counted,
        };
        self.record.order = Some(pending.clone());
        if let Err(error) = self.save(None).await {
            ca_state::refund(services, &pending).await;
            return Err(error);
        }
        Ok(pending)
    }

    /// Whether a revoked certificate had this key, under any name.
    async fn is_revoked(&self, key: &Secret) -> Result<bool, ManageError> {
        let (store, lineage) = (&self.services.store, self.lineage());
        let (everywhere, _) = store.ca_state(EVERY_CA).await?;
        if key_fingerprint(key).is_some_and(|key| everywhere.revoked_keys.contains(&key)) {
            return Ok(true);
        }
        // Those that an earlier version revoked.
        for generation in self.record.revoked.keys() {
            let stored = store.bundle(lineage, *generation).await?;
            if stored.is_some_and(|(stored, _)| stored == *key) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The key of a new order: the one of the user's signing request, the one to reuse, or a
    /// new one.
    async fn key_for_order(&self) -> Result<Secret, ManageError> {
        let (services, wanted) = (self.services, &self.certificate.wanted);
        if let Some(request) = &wanted.request {
            let key = request.in_place_of_key();
            let newest = self.newest_key().await?;
            let replaced = newest.is_some_and(|newest| newest == key) && self.record.must_replace();
            if replaced || self.is_revoked(&key).await? {
                let lineage = &wanted.lineage;
                return Err(ManageError::Impossible {
                    why: "a certificate with the key of this signing request was revoked"
                        .to_owned(),
                    hint: format!(
                        "make a new key with a new request, then certs csr FILE --name {lineage}"
                    ),
                });
            }
            return Ok(key);
        }
        match self.key_to_reuse().await? {
            Some(_) if self.record.must_replace() => {
                tracing::warn!(lineage = %wanted.lineage, "a revoked certificate's key is not used again: this order ignores reuse_key");
                services.keys.make(wanted.terms.key).await
            }
            Some(key) if self.is_revoked(&key).await? => {
                tracing::warn!(lineage = %wanted.lineage, "another certificate with its key was revoked: this order ignores reuse_key");
                services.keys.make(wanted.terms.key).await
            }
            Some(_) if announces_revocation(&self.record) => {
                tracing::warn!(lineage = %wanted.lineage, "the CA's window is past, perhaps since the key leaked: this order ignores reuse_key");
                services.keys.make(wanted.terms.key).await
            }
            Some(key) if key.signing_request().is_none() => Ok(key),
            _ => services.keys.make(wanted.terms.key).await,
        }
    }

    /// The newest certificate's key, if the user wants to reuse it.
    async fn key_to_reuse(&self) -> Result<Option<Secret>, ManageError> {
        match self.certificate.wanted.terms.reuse_key {
            true => self.newest_key().await,
            false => Ok(None),
        }
    }

    async fn newest_key(&self) -> Result<Option<Secret>, ManageError> {
        let Some(issued) = &self.record.issued else {
            return Ok(None);
        };
        let store = &self.services.store;
        let stored = store.bundle(self.lineage(), issued.generation).await?;
        Ok(stored.map(|(key, _)| key))
    }

    /// Sends the order, and retries once with a new key if the CA rejects the first. Returns
    /// the order as it was last sent.
    async fn send_with_second_key(
        &mut self,
        source: &Source<'_>,
        pending: PendingOrder,
    ) -> (PendingOrder, Sent) {
        let ended = self.send(source, &pending).await;
        if !ended.as_ref().is_err_and(ManageError::rejects_key) {
            return (pending, ended);
        }
        match self.with_another_key(&pending).await {
            Ok(Some(second)) => {
                let ended = self.send(source, &second).await;
                return (second, ended);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(lineage = %self.lineage(), "{error}; hint: {}", error.hint());
            }
        }
        (pending, ended)
    }

    /// The stored order with a new key; `None` if no order is pending.
    async fn with_another_key(
        &mut self,
        order: &PendingOrder,
    ) -> Result<Option<PendingOrder>, ManageError> {
        let wanted = &self.certificate.wanted;
        if wanted.request.is_some() {
            // Only its user can make another key.
            return Ok(None);
        }
        let key_pem = self.services.keys.make(wanted.terms.key).await?;
        let Some(another) = &mut self.record.order else {
            return Ok(None);
        };
        tracing::warn!(lineage = %wanted.lineage, "{} rejected the key; retrying once with a new key", order.ca);
        another.key_pem = key_pem;
        self.save(None).await?;
        Ok(self.record.order.clone())
    }

    /// Completes `order`, and returns the checked certificate and when it was signed.
    async fn send(&mut self, source: &Source<'_>, order: &PendingOrder) -> Sent {
        let mut journal = RecordJournal::new(self, source.ca);
        let answered = source.issuer.issue(order.clone(), &mut journal).await;
        let chain = answered.map_err(unwrap_limit)?;
        let begin = Facts::of_chain(&chain).ok().map(|facts| facts.not_before);
        let clock = self.services.clock.as_ref();
        let theirs = ca_time(source.issuer, clock);
        let signed = signed_at(Evidence::of(&self.record), begin, clock.wall(), theirs);
        let (key, names) = (order.key_pem.clone(), &order.identifiers);
        match Bundle::new(key, &chain, names, signed, Freshness::Issued) {
            Ok(bundle) => {
                for oddity in bundle.oddities() {
                    let (ca, lineage) = (&order.ca, self.lineage());
                    tracing::warn!(%lineage, "the certificate from {ca} is accepted, but {oddity}");
                }
                Ok((bundle, signed))
            }
            Err(source) => Err(ManageError::Bundle {
                ca: order.ca.clone(),
                source,
            }),
        }
    }
}

/// Unwraps the error of our own rate limiter, which the journal passes through the client.
/// Any other error of the journal is on our side and leaves the order valid.
fn unwrap_limit(error: AcmeError) -> ManageError {
    let AcmeError { ca, phase, cause } = error;
    let cause = match cause {
        Cause::Journal(refusal) => match refusal.downcast::<ManageError>() {
            Ok(own) if matches!(*own, ManageError::LimitExhausted { .. }) => return *own,
            Ok(other) => Cause::Journal(other),
            Err(other) => Cause::Journal(other),
        },
        cause => cause,
    };
    AcmeError { ca, phase, cause }.into()
}

/// Whether the window was past already when the renewal was drawn: a CA announces a
/// revocation that way (RFC 9773).
fn announces_revocation(record: &Record) -> bool {
    let issued = record.issued.as_ref();
    let renewal = issued.and_then(|issued| issued.renewal.as_ref());
    let window = renewal.and_then(|renewal| renewal.window.as_ref());
    let drawn = window.zip(renewal);
    drawn.is_some_and(|(window, renewal)| window.end <= renewal.at)
}
