//! An order at one CA, from its intent to a stored generation: taken out of the ledger,
//! written down before it is sent, checked when it comes back, and its failure
//! dated so that the next pass knows when to try again.

mod failure;
mod journal;
mod plan;
mod store;
mod window;

pub(super) use self::plan::Plan;

use std::collections::BTreeSet;

use self::journal::RecordJournal;
use self::plan::Source;
use super::ca_state::{self, reach};
use super::clock;
use super::error::ManageError;
use super::session::{Pass, Trigger};
use crate::acme::{AcmeError, Cause};
use crate::certificate::{Bundle, Facts, Freshness, Secret};
use crate::record::{PendingOrder, Record};
use crate::time::Timestamp;

type Sent = Result<(Bundle, Timestamp), ManageError>;

impl Pass<'_> {
    /// Orders at the CA of `plan`, checks and stores a new generation.
    ///
    /// # Errors
    /// What kept it from being stored; it is noted in the record.
    pub(super) async fn order_at_one_ca(&mut self, plan: Plan) -> Result<(), ManageError> {
        let source = Source::of(self.certificate, plan.from);
        self.wait_for_ca(&source, &plan).await?;
        self.give_up_elsewhere(source.ca).await?;
        let heals = plan.heals;
        let pending = self.pending(&source, plan).await?;
        self.phase("placing the order");
        let (pending, ended) = self.send_with_second_key(&source, pending).await;
        if let Err(error @ ManageError::OutOfBudget { .. }) = ended {
            // Nothing was sent: the order waits as it is written down.
            return Err(error);
        }
        let services = self.services;
        services.metrics.issuance(source.ca, ended.is_ok());
        if ended.as_ref().err().is_none_or(ManageError::is_verdict) {
            ca_state::answers(services, source.ca).await;
        }
        match ended {
            Ok((bundle, signed)) => {
                let there = clock::there(source.issuer, services.clock.as_ref()).await;
                let sent = self.record.order.as_ref();
                ca_state::settle_issued(services, &pending, sent, there).await;
                self.store_generation(&source, &bundle, signed).await?;
                services.known.accept(self.lineage(), &bundle);
                self.refresh_window().await
            }
            Err(error) => {
                let now = self.now();
                // Only what it has judged was counted by its clock.
                let there = match error.is_verdict() {
                    true => clock::there(source.issuer, services.clock.as_ref()).await,
                    false => now,
                };
                let when = (now, there);
                self.note_failure(&pending, &error, heals, when).await;
                Err(error)
            }
        }
    }

    /// Waits while the CA is unreachable, and while the order is due by our clock alone.
    async fn wait_for_ca(&mut self, source: &Source<'_>, plan: &Plan) -> Result<(), ManageError> {
        if self.trigger == Trigger::Scheduled {
            let begun = self.record.order.as_ref();
            let begun = begun.is_some_and(|order| order.ca == source.ca);
            let intended = (!begun).then(|| plan.intended(&self.record, self.trigger));
            reach(self.services, source.ca, source.issuer, intended).await?;
        }
        if self.trigger != Trigger::Forced {
            let (ca, issuer) = (source.ca, source.issuer);
            let due = clock::due_there(self.services, ca, issuer, &self.record).await;
            if let Err(error @ ManageError::Acme(_)) = &due {
                self.note_unsent(ca, error, plan.heals).await;
            }
            due?;
        }
        Ok(())
    }

    /// An order at another CA comes to nothing: there is one at a time.
    async fn give_up_elsewhere(&mut self, ca: &str) -> Result<(), ManageError> {
        let Some(other) = self.record.order.take_if(|order| order.ca != ca) else {
            return Ok(());
        };
        self.save(None).await?;
        let (nothing, now) = (BTreeSet::new(), self.now());
        ca_state::settle_failed(self.services, &other, &nothing, now).await;
        Ok(())
    }

    /// The order that is begun already, or a new one, written down before it is sent.
    async fn pending(
        &mut self,
        source: &Source<'_>,
        plan: Plan,
    ) -> Result<PendingOrder, ManageError> {
        if let Some(pending) = self.record.order.clone() {
            return Ok(pending);
        }
        let heals = plan.heals;
        let intended = self.intend(source, plan).await;
        if let Err(error @ ManageError::Acme(_)) = &intended {
            self.note_unsent(source.ca, error, heals).await;
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
        let key_pem = match self.kept_key().await? {
            Some(_) if is_called_back(&self.record) => {
                tracing::warn!(lineage = %wanted.lineage, "the CA calls it back, perhaps for its key: reuse_key is not obeyed this once");
                services.keys.make(wanted.key).await?
            }
            Some(key) => key,
            None => services.keys.make(wanted.key).await?,
        };
        let intended = plan.intended(&self.record, self.trigger);
        let counted = ca_state::spend(services, source.ca, source.issuer, intended).await?;
        let pending = PendingOrder {
            ca: source.ca.to_owned(),
            identifiers: plan.names,
            profile: source.profile.cloned(),
            key_pem,
            url: None,
            replaces: plan.replaces,
            begun: services.clock.now(),
            counted,
        };
        self.record.order = Some(pending.clone());
        if let Err(error) = self.save(None).await {
            let (nothing, now) = (BTreeSet::new(), services.clock.now());
            ca_state::settle_failed(services, &pending, &nothing, now).await;
            return Err(error);
        }
        Ok(pending)
    }

    /// The newest certificate's key, where the user wants it kept.
    async fn kept_key(&self) -> Result<Option<Secret>, ManageError> {
        let wanted = &self.certificate.wanted;
        let (true, Some(issued)) = (wanted.reuse_key, &self.record.issued) else {
            return Ok(None);
        };
        let store = &self.services.store;
        let stored = store.bundle(&wanted.lineage, issued.generation).await?;
        Ok(stored.map(|(key, _)| key))
    }

    /// Sends it; once more with another key where the CA does not take the first. Returns
    /// the order as it was sent last.
    async fn send_with_second_key(
        &mut self,
        source: &Source<'_>,
        pending: PendingOrder,
    ) -> (PendingOrder, Sent) {
        let ended = self.send(source, &pending).await;
        if !ended.as_ref().is_err_and(ManageError::is_about_the_key) {
            return (pending, ended);
        }
        match self.with_another_key(&pending).await {
            Ok(Some(pending)) => {
                let ended = self.send(source, &pending).await;
                (pending, ended)
            }
            Ok(None) => (pending, ended),
            Err(error) => {
                tracing::error!(lineage = %self.lineage(), "{error}; hint: {}", error.hint());
                (pending, ended)
            }
        }
    }

    /// The order as it is written down, for a new key; `None` when it is no more.
    async fn with_another_key(
        &mut self,
        order: &PendingOrder,
    ) -> Result<Option<PendingOrder>, ManageError> {
        let wanted = &self.certificate.wanted;
        let key_pem = self.services.keys.make(wanted.key).await?;
        let Some(another) = &mut self.record.order else {
            return Ok(None);
        };
        tracing::warn!(lineage = %wanted.lineage, "{} does not take the key; it gets another one, once", order.ca);
        another.key_pem = key_pem;
        let another = another.clone();
        self.save(None).await?;
        Ok(Some(another))
    }

    /// Takes `order` to a certificate that was checked, and says when it was signed.
    async fn send(&mut self, source: &Source<'_>, order: &PendingOrder) -> Sent {
        let mut journal = RecordJournal::new(self, source.ca);
        let answered = source.issuer.issue(order.clone(), &mut journal).await;
        let chain = answered.map_err(own_refusal)?;
        let facts = Facts::of_chain(&chain).ok();
        let clock = self.services.clock.as_ref();
        let signed = clock::when_signed(source.issuer, &self.record, clock, facts.as_ref());
        let (key, names) = (order.key_pem.clone(), &order.identifiers);
        match Bundle::new(key, &chain, names, signed, Freshness::Issued) {
            Ok(bundle) => Ok((bundle, signed)),
            Err(source) => Err(ManageError::Bundle {
                ca: order.ca.clone(),
                source,
            }),
        }
    }
}

/// What our own ledger has against it, which the journal could only pass on; of
/// anything else that the journal failed with, the CA knows nothing: its order
/// is as good as before.
fn own_refusal(error: AcmeError) -> ManageError {
    let AcmeError { ca, phase, cause } = error;
    let cause = match cause {
        Cause::Journal(refusal) => match refusal.downcast::<ManageError>() {
            Ok(own) if matches!(*own, ManageError::OutOfBudget { .. }) => return *own,
            Ok(other) => Cause::Journal(other),
            Err(other) => Cause::Journal(other),
        },
        cause => cause,
    };
    AcmeError { ca, phase, cause }.into()
}

/// Whether the window lay in the past already when its instant was drawn: that
/// is how a CA tells of a certificate that it will revoke.
fn is_called_back(record: &Record) -> bool {
    let renewal = record
        .issued
        .as_ref()
        .and_then(|issued| issued.renewal.as_ref());
    renewal.is_some_and(|renewal| {
        let window = renewal.window.as_ref();
        window.is_some_and(|window| window.end <= renewal.at)
    })
}
