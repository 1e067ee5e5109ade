//! One pass over one certificate: under its lease, from its record to a certificate that
//! is issued, deployed and verified. The decisions are those of [`crate::renew`].

use std::sync::Arc;

use super::cannot_order::CannotOrder;
use super::clock::PassClock;
use super::concurrency::Permit;
use super::deploy::stored;
use super::error::ManageError;
use super::proof::proof;
use super::rollback::{nothing_issued, rollback_pause};
use super::services::{Certificate, Outcome, Services};
use super::session::{Pass, Trigger};
use super::status::{excluded, last_failure};
use crate::lineage::reissue;
use crate::record::{Issued, Record, Renewal, Terms};
use crate::renew::backoff::after_deployment_failure;
use crate::renew::decide::{self, Delayed, Next, Plan, next};
use crate::renew::fallback::Choice;
use crate::renew::look::{after_drift, is_drifting};
use crate::renew::policy::{CLOCK_ALARM, ELSEWHERE, RECHECK, WINDOW_PAUSE};
use crate::time::Timestamp;

/// The result of a due order that has not failed.
enum Ordered {
    Issued,
    /// Nothing was ordered: the order is due by our clock, and by the CA's minutes later.
    DueAt(Timestamp),
    /// The excluded names failed again; the valid certificate stays.
    Postponed,
}

/// Does each due step of `certificate` until nothing is due, and returns the record as it
/// is then. The permit is released while the pass deploys.
///
/// # Errors
/// The first failure; the steps before it are stored, and the next pass continues from
/// there.
pub(crate) async fn pass(
    services: &Services,
    certificate: &Certificate,
    trigger: Trigger,
    permit: Permit,
) -> Result<(Outcome, Record), ManageError> {
    let _lease = services.store.lease(&certificate.wanted.lineage).await?;
    // Boxed: a pass that does not get the lease must stay small.
    Box::pin(under_lease(services, certificate, trigger, permit)).await
}

async fn under_lease(
    services: &Services,
    certificate: &Certificate,
    trigger: Trigger,
    permit: Permit,
) -> Result<(Outcome, Record), ManageError> {
    let clock = Arc::new(PassClock::new(services.clock.clone(), certificate));
    let services = &Services {
        clock: clock.clone(),
        ..services.clone()
    };
    let _shown = services.shown(&certificate.wanted.lineage);
    let pass = Pass::load(services, certificate, trigger, permit, &clock);
    let mut pass = Box::pin(pass).await?;
    let ended = match trigger.never_orders() {
        true => Box::pin(pass.redeploy()).await,
        false => pass.work().await,
    };
    match ended {
        Ok(outcome) => Ok((outcome, pass.record)),
        Err(failure) => Err(pass.failed(failure)),
    }
}

impl Pass<'_> {
    /// Does each due step until nothing is due.
    async fn work(&mut self) -> Result<Outcome, ManageError> {
        if Box::pin(self.only_revokes()).await? {
            let now = self.now();
            return self.outcome(false, now, now);
        }
        if self.certificate.is_orphaned() && self.trigger == Trigger::Scheduled {
            return self.watch().await;
        }
        let mut issued = self.begin().await?;
        // A failed deployment is reported at the end, so that a server that is down does
        // not block the renewal.
        let mut stuck: Option<ManageError> = None;
        loop {
            let (now, had_share) = (self.now(), self.shared.is_some());
            match next(&self.record, now, self.services.random.as_ref()) {
                // At most one order a pass, even if the CA wants its newest certificate replaced.
                Next::Issue { .. } if issued => {
                    return stuck.map_or_else(|| self.outcome(issued, now, now), Err);
                }
                Next::Issue(_) if self.certificate.obstacle().is_some() => {
                    match self.due_looks(now) {
                        Some(looks) => Box::pin(self.look(looks)).await?,
                        None => return self.end(stuck, issued, now, now),
                    }
                }
                Next::RefreshWindow if !self.services.store.is_issuer() => {
                    self.leave_window_to_issuer(now).await?;
                }
                step if self.is_elsewhere(&step).await? => match self.due_looks(now) {
                    Some(looks) => Box::pin(self.look(looks)).await?,
                    None => return self.end(stuck, issued, now, now + ELSEWHERE),
                },
                Next::Issue(_) | Next::Revoke if !had_share => {}
                Next::Issue(plan) => match self.order_due(plan, stuck.as_ref(), now).await? {
                    Ordered::Issued => issued = true,
                    Ordered::DueAt(at) => {
                        return stuck.map_or_else(|| self.outcome(false, now, at), Err);
                    }
                    Ordered::Postponed => {}
                },
                Next::RefreshWindow => self.request_window().await?,
                // The process that stored the certificate was killed before it requested a window.
                Next::Draw(_) if has_a_window(&self.record) => self.request_window().await?,
                Next::Draw(renewal) => self.keep_drawn(renewal).await?,
                Next::Deploy => stuck = Box::pin(self.deploy_or_note()).await.err(),
                Next::Revoke => Box::pin(self.revoke()).await?,
                Next::Wait(until) => match self.due_looks(now) {
                    Some(looks) => Box::pin(self.look(looks)).await?,
                    None => {
                        // It may be gone.
                        let again = self.left_to_others.then_some(now + ELSEWHERE);
                        let until = again.map_or(until, |again| until.min(again));
                        return self.end(stuck, issued, now, until);
                    }
                },
                Next::Halt => return Err(ManageError::Halted("the record has no names".into())),
            }
        }
    }

    /// Whether another machine of the fleet does `step`. This one has the right to an order or
    /// a revocation afterwards; the record may be a newer one then.
    async fn is_elsewhere(&mut self, step: &Next) -> Result<bool, ManageError> {
        let is_elsewhere = match step {
            Next::Issue(_) | Next::Revoke => !self.share().await?,
            Next::Draw(_) => !self.services.store.is_issuer(),
            Next::RefreshWindow | Next::Deploy | Next::Wait(_) | Next::Halt => false,
        };
        if is_elsewhere && self.record.issued.is_none() {
            self.must_share().await?;
        }
        Ok(is_elsewhere)
    }

    /// Does what a user's request comes with; whether a certificate was issued.
    async fn begin(&mut self) -> Result<bool, ManageError> {
        if self.trigger == Trigger::Requested {
            Box::pin(self.update_account()).await;
        }
        if matches!(self.trigger, Trigger::Requested | Trigger::Forced) {
            self.note_key().await;
        }
        if self.trigger != Trigger::Forced {
            return Ok(false);
        }
        if let Some(cause) = self.certificate.obstacle() {
            return Err(ManageError::CannotOrder(cause));
        }
        self.must_share().await?;
        let plan = self.forced();
        Box::pin(self.order_with_exclusions(plan)).await?;
        Ok(true)
    }

    /// Does what a command wants with a revocation; whether that is all.
    async fn only_revokes(&mut self) -> Result<bool, ManageError> {
        match self.trigger {
            Trigger::Revoke {
                reason,
                at_once,
                generation,
            } => {
                self.must_share().await?;
                self.intend_revocation(reason, at_once, generation).await?;
                if at_once {
                    self.revoke().await?;
                }
                Ok(at_once)
            }
            Trigger::CancelRevocation => {
                self.must_share().await?;
                self.cancel_revocation().await.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// The issuer of the fleet requests the window; this machine looks again later.
    async fn leave_window_to_issuer(&mut self, now: Timestamp) -> Result<(), ManageError> {
        let issued = self.record.issued.as_mut();
        if let Some(renewal) = issued.and_then(|issued| issued.renewal.as_mut()) {
            (renewal.refresh_at, renewal.asked) = (Some(now + WINDOW_PAUSE), Some(now));
        }
        self.save(None).await
    }

    /// Finds out the type of the newest key where it is not stored, and warns where it stays:
    /// a kept key decides its type, whatever the settings say.
    async fn note_key(&mut self) {
        let (wanted, issued) = (&self.certificate.wanted, self.record.issued.as_mut());
        let terms = &wanted.terms;
        let Some(issued) = issued.filter(|it| terms.reuse_key || it.terms.is_none()) else {
            return;
        };
        let (lineage, key) = (&wanted.lineage, terms.key);
        let kept = stored(self.services, lineage, issued.generation, &issued.facts).await;
        let Some(kept) = kept.ok().and_then(|kept| kept.key_type()) else {
            return;
        };
        issued.terms.get_or_insert_with(|| Terms {
            key: kept,
            ..terms.clone()
        });
        if terms.reuse_key && kept != key {
            let again = reissue(lineage, &wanted.identifiers);
            tracing::warn!(%lineage, "its {kept} key is kept (reuse_key) and does not become {key}; hint: CERTS_REUSE_KEY=false {again} --key {key} --force makes a new key");
        }
    }

    /// Only looks at the endpoints: nothing keeps the certificate.
    async fn watch(&mut self) -> Result<Outcome, ManageError> {
        let now = self.now();
        if let Some(looks) = self.due_looks(now) {
            Box::pin(self.look(looks)).await?;
        }
        self.outcome(false, now, now + RECHECK)
    }

    /// The result when nothing is due before `until`. What a look did not see fails the pass
    /// of a user; the supervisor looks again.
    fn end(
        &mut self,
        stuck: Option<ManageError>,
        issued: bool,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Outcome, ManageError> {
        let at_once = self.services.looks.is_some_and(|looks| looks.at_once);
        let unseen = self.unseen.take().filter(|_| at_once);
        let fails = |cause: &CannotOrder| until <= now || at_once && !cause.only_when_due;
        if let Some(cause) = self.certificate.obstacle().filter(fails) {
            if let Some(stuck) = stuck {
                tracing::error!(lineage = %self.lineage(), "{stuck}; hint: {}", stuck.hint());
            }
            return Err(ManageError::CannotOrder(cause));
        }
        match (stuck, decide::delayed_until(&self.record, now), unseen) {
            (Some(error), ..) => Err(error),
            (None, Some(delayed), _) => Err(waiting(&self.record, delayed)),
            (None, None, Some(unseen)) => Err(unseen.into()),
            (None, None, None) => self.outcome(issued, now, until),
        }
    }

    /// An order that is not due, forced by a user.
    fn forced(&self) -> Plan {
        let (record, now) = (&self.record, self.now());
        Plan {
            from: Choice::First,
            names: record.identifiers.clone(),
            only_excluded: false,
            replaces: decide::replaces(record, &record.ca, &record.identifiers, now),
            urgent: false,
        }
    }

    /// Places a due order; `stuck` is the error of an earlier deployment. An order for
    /// excluded names alone may fail.
    async fn order_due(
        &mut self,
        plan: Plan,
        stuck: Option<&ManageError>,
        now: Timestamp,
    ) -> Result<Ordered, ManageError> {
        let only_excluded = plan.only_excluded;
        self.permit.reacquire().await;
        // Boxed: few passes order, and the others must stay small.
        let error = match Box::pin(self.order_with_exclusions(plan)).await {
            Ok(()) => return Ok(Ordered::Issued),
            Err(ManageError::NotDueAtCa {
                ours,
                theirs,
                until,
                ..
            }) if ours.apart(theirs) <= CLOCK_ALARM => return Ok(Ordered::DueAt(until)),
            Err(error) => error,
        };
        if let Some(stuck) = stuck {
            tracing::error!(lineage = %self.lineage(), "{stuck}; hint: {}", stuck.hint());
        }
        if !only_excluded {
            return Err(error);
        }
        Box::pin(self.postpone_excluded(error, now)).await?;
        Ok(Ordered::Postponed)
    }

    async fn request_window(&mut self) -> Result<(), ManageError> {
        self.permit.reacquire().await;
        Box::pin(self.refresh_window()).await
    }

    async fn keep_drawn(&mut self, renewal: Renewal) -> Result<(), ManageError> {
        if let Some(issued) = self.record.issued.as_mut() {
            issued.renewal = Some(renewal);
        }
        self.save(None).await
    }

    /// Deploys and verifies the generation to be served once more.
    async fn redeploy(&mut self) -> Result<Outcome, ManageError> {
        let earlier = (
            self.record.pinned.clone(),
            self.record.deployment_failures.clone(),
        );
        match self.trigger {
            Trigger::Rollback(to) => self.pin(to).await?,
            _ => self.record.pinned = None,
        }
        self.record.deployment_failures.retry_at = None;
        self.mark_unverified();
        self.save(None).await?;
        if self.record.issued.is_some()
            && let Err(error) = self.deploy_or_note().await
        {
            if matches!(self.trigger, Trigger::Rollback(_)) {
                self.unpin(earlier).await;
            }
            return Err(error);
        }
        let now = self.now();
        self.outcome(false, now, now)
    }

    /// Deploys, and stores a failure for the next pass to retry.
    async fn deploy_or_note(&mut self) -> Result<(), ManageError> {
        self.permit.release();
        let Err(error) = self.deploy().await else {
            return Ok(());
        };
        let now = self.now();
        let failures =
            after_deployment_failure(&self.record.deployment_failures, error.to_string(), now);
        self.record.deployment_failures = failures;
        if is_drifting(&self.record.drift, now) {
            self.record.drift = after_drift(&self.record.drift, error.to_string(), now);
            let deployment = &mut self.record.deployment_failures;
            deployment.retry_at = deployment.retry_at.max(self.record.drift.retry_at);
        }
        if let Some(rollback_pause) = rollback_pause(&self.record) {
            let deployment = &mut self.record.deployment_failures;
            deployment.retry_at = deployment.retry_at.max(Some(now + rollback_pause));
        }
        self.save_or_warn().await;
        Err(error)
    }

    /// The result of a pass: the generation served `now`, and `until` when nothing is due.
    fn outcome(
        &self,
        issued: bool,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Outcome, ManageError> {
        let record = &self.record;
        let served = record.to_be_served(now);
        let both = record.issued.as_ref().zip(served);
        let (newest, (generation, facts)) = both.ok_or_else(|| nothing_issued(&record.lineage))?;
        let renewal = newest.renewal.as_ref();
        Ok(Outcome {
            generation,
            issued,
            not_after: facts.not_after,
            next: until,
            renewal: renewal.map(|renewal| decide::due(newest, renewal)),
            excluded: excluded(record),
            proof: proof(record, now),
            revoked: record.revoked.clone(),
            changed: changed(newest, &self.certificate.wanted.terms),
        })
    }
}

/// The settings that differ from those that the newest certificate was ordered with.
fn changed(newest: &Issued, wanted: &Terms) -> Vec<String> {
    let made = newest.terms.as_ref();
    made.map_or_else(Vec::new, |made| wanted.changed_since(made))
}

/// Whether the CA offers a renewal window for the certificate.
fn has_a_window(record: &Record) -> bool {
    let issued = record.issued.as_ref();
    issued.is_some_and(|issued| issued.facts.renewal_id.is_some())
}

/// The error for a step that failed before and backs off: the pass has failed, although
/// nothing can be done now.
fn waiting(record: &Record, delayed: Delayed) -> ManageError {
    match delayed {
        Delayed::Issuance(until) => ManageError::BackingOff {
            until,
            last: last_failure(record).unwrap_or_default(),
        },
        Delayed::Deployment(until) => ManageError::NotDeployed {
            until,
            last: record.deployment_failures.last.clone().unwrap_or_default(),
        },
    }
}
