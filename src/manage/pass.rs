//! One pass over one certificate: under its lease, from what the record says
//! to a certificate that is issued, deployed and verified.

use std::sync::Arc;

use super::clock::{Corrected, is_slight};
use super::concurrency::Permit;
use super::error::ManageError;
use super::order::Plan;
use super::rollback::patience;
use super::services::{Certificate, Outcome, Services};
use super::session::{Pass, Trigger};
use super::status::{last_failure, left_out};
use crate::record::{Record, Renewal};
use crate::renew::backoff::after_handover_failure;
use crate::renew::decide::{self, HeldUp, Next, next};
use crate::renew::fallback::Choice;
use crate::time::Timestamp;

/// Does what `certificate` needs until nothing is due; its permit is released while it
/// deploys. Also returns the record as it is then.
///
/// # Errors
/// The first failure; what was reached until then is stored, and the next pass
/// goes on from there.
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
    let clock = Arc::new(Corrected::new(services.clock.clone(), certificate));
    let services = &Services {
        clock: clock.clone(),
        ..services.clone()
    };
    let pass = Pass::load(services, certificate, trigger, permit, &clock);
    let mut pass = Box::pin(pass).await?;
    let outcome = match trigger.never_orders() {
        true => Box::pin(pass.redeploy()).await?,
        false => pass.work().await?,
    };
    Ok((outcome, pass.record))
}

/// What became of an order that was due.
enum Ordered {
    Issued,
    /// It was for excluded names alone, has failed, and is tried later.
    Postponed,
    /// It is not due yet, by a clock that is a little behind ours.
    Waits(Timestamp),
}

impl Pass<'_> {
    /// Does what the record asks for until nothing is due.
    async fn work(&mut self) -> Result<Outcome, ManageError> {
        let mut issued = false;
        if self.trigger == Trigger::Forced {
            let plan = self.forced();
            Box::pin(self.order_with_exclusions(plan)).await?;
            issued = true;
        }
        // What could not be deployed is told in the end: first comes what else is
        // due, or a server that is down would keep it from being renewed.
        let mut stuck: Option<ManageError> = None;
        loop {
            let now = self.now();
            match next(&self.record, now, self.services.random.as_ref()) {
                // One order a pass, whatever the CA says of its newest certificate.
                Next::Issue { .. } if issued => {
                    return stuck.map_or_else(|| self.outcome(issued, now, now), Err);
                }
                Next::Issue {
                    from,
                    names,
                    heals,
                    replaces,
                    urgent,
                } => {
                    let plan = Plan {
                        from,
                        names,
                        heals,
                        replaces,
                        urgent,
                    };
                    match self.order_due(plan, stuck.as_ref(), now).await? {
                        Ordered::Issued => issued = true,
                        Ordered::Postponed => {}
                        Ordered::Waits(until) => return self.outcome(issued, now, until),
                    }
                }
                Next::RefreshWindow => self.ask_for_window().await?,
                // The process that stored it was killed before the CA could be asked.
                Next::Draw(_) if has_a_window(&self.record) => self.ask_for_window().await?,
                Next::Draw(renewal) => self.keep_drawn(renewal).await?,
                Next::Deploy => stuck = Box::pin(self.deploy_or_note()).await.err(),
                Next::Wait(until) => {
                    return match (stuck, decide::held_up(&self.record, now)) {
                        (Some(error), _) => Err(error),
                        (None, Some(held_up)) => Err(waiting(&self.record, held_up)),
                        (None, None) => self.outcome(issued, now, until),
                    };
                }
                Next::Halt(reason) => return Err(ManageError::Halted(format!("{reason:?}"))),
            }
        }
    }

    /// An order that is not due, on a user's word.
    fn forced(&self) -> Plan {
        let (record, now) = (&self.record, self.now());
        Plan {
            from: Choice::First,
            names: record.identifiers.clone(),
            heals: false,
            replaces: decide::replaces(record, &record.ca, &record.identifiers, now),
            urgent: false,
        }
    }

    /// Orders what is due; `stuck` is what could not be deployed before.
    async fn order_due(
        &mut self,
        plan: Plan,
        stuck: Option<&ManageError>,
        now: Timestamp,
    ) -> Result<Ordered, ManageError> {
        let heals = plan.heals;
        self.permit.reacquire().await;
        // Few passes order: the others do not carry its state about.
        let ordered = Box::pin(self.order_with_exclusions(plan)).await;
        let Err(error) = ordered else {
            return Ok(Ordered::Issued);
        };
        if let Some(stuck) = stuck {
            tracing::error!(lineage = %self.lineage(), "{stuck}; hint: {}", stuck.hint());
        }
        if is_slight(&error) {
            return Ok(Ordered::Waits(error.waits_until().unwrap_or(now)));
        }
        if !heals {
            return Err(error);
        }
        Box::pin(self.postpone_excluded(error, now)).await?;
        Ok(Ordered::Postponed)
    }

    async fn ask_for_window(&mut self) -> Result<(), ManageError> {
        self.permit.reacquire().await;
        Box::pin(self.refresh_window()).await
    }

    async fn keep_drawn(&mut self, renewal: Renewal) -> Result<(), ManageError> {
        if let Some(issued) = self.record.issued.as_mut() {
            issued.renewal = Some(renewal);
        }
        self.save(None).await
    }

    /// Deploys once more what shall be served, whatever was seen before.
    async fn redeploy(&mut self) -> Result<Outcome, ManageError> {
        let earlier = (self.record.pinned.clone(), self.record.handover.clone());
        match self.trigger {
            Trigger::Rollback(to) => self.pin(to).await?,
            _ => self.record.pinned = None,
        }
        self.unprove();
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

    /// Deploys, and stores what it failed with: the next pass tries again.
    async fn deploy_or_note(&mut self) -> Result<(), ManageError> {
        self.permit.release();
        let Err(error) = self.deploy().await else {
            return Ok(());
        };
        let now = self.now();
        let failures = after_handover_failure(&self.record.handover, error.to_string(), now);
        self.record.handover = failures;
        if let Some(patience) = patience(&self.record) {
            let handover = &mut self.record.handover;
            handover.retry_at = handover.retry_at.max(Some(now + patience));
        }
        self.save_or_warn().await;
        Err(error)
    }

    /// What is served `now`, and `until` when nothing is due.
    fn outcome(
        &self,
        issued: bool,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Outcome, ManageError> {
        let record = &self.record;
        let served = record.to_be_served(now);
        let both = record.issued.as_ref().zip(served);
        let (newest, (generation, facts)) = both.ok_or_else(|| ManageError::NoWayBack {
            lineage: record.lineage.clone(),
            why: "nothing is issued yet".into(),
        })?;
        let renewal = newest.renewal.as_ref();
        Ok(Outcome {
            generation,
            issued,
            not_after: facts.not_after,
            next: until,
            renewal: renewal.map(|renewal| decide::due(newest, renewal)),
            left_out: left_out(record),
        })
    }
}

/// Whether a CA can be asked when to renew it.
fn has_a_window(record: &Record) -> bool {
    let issued = record.issued.as_ref();
    issued.is_some_and(|issued| issued.facts.renewal_id.is_some())
}

/// Something is due that has failed before: that is no success, though there
/// is nothing to do now.
fn waiting(record: &Record, held_up: HeldUp) -> ManageError {
    match held_up {
        HeldUp::Issuance { until } => ManageError::BackingOff {
            until,
            last: last_failure(record).unwrap_or_default(),
        },
        HeldUp::Handover { until } => ManageError::NotHandedOver {
            until,
            last: record.handover.last.clone().unwrap_or_default(),
        },
    }
}
