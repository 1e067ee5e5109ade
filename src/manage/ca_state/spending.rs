//! The ledger of a CA: an order is taken out of it before it is sent, and settled when
//! it has ended.

use std::collections::BTreeSet;
use std::time::Duration;

use super::intended::Intended;
use super::outage::is_silent;
use super::shared::change;
use crate::acme::Issuer;
use crate::ca_state::Counted;
use crate::identifier::Identifier;
use crate::manage::error::ManageError;
use crate::manage::probes::Work;
use crate::manage::services::Services;
use crate::record::PendingOrder;
use crate::renew::ledger::{self, Line, Priority, Refusal};
use crate::time::Timestamp;

/// A reply that is older says nothing of what the clock shows now.
pub(in crate::manage) const NEWEST: Duration = Duration::from_secs(60);

/// Takes an order at `ca` out of its ledger, and says as what it counts.
///
/// # Errors
/// [`ManageError::OutOfBudget`], or that the CA does not tell the time, as it would not
/// take an order either; nothing is taken then.
pub(in crate::manage) async fn spend(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    order: Intended<'_>,
) -> Result<Counted, ManageError> {
    let ours = services.clock.now();
    if ledger::rules(ca).is_empty() {
        // Where there is nothing to count it need not be asked for the time.
        return Ok(order.counts_as(ca, ours));
    }
    let heard = issuer.time(NEWEST).await.map_err(ManageError::from);
    let now = match &heard {
        Ok(Some(dated)) => dated.there(services.clock.wall()),
        Ok(None) | Err(_) => ours,
    };
    let spent = change(services, ca, |state| match &heard {
        Ok(_) => order.spend(state, ca, now),
        // The CA would not take it: what is refused anyhow is refused all the same.
        Err(_) => order.spend(&mut state.clone(), ca, now),
    });
    let spent = spent.await?;
    if let Err(error) = heard {
        if spent.is_ok() {
            return Err(error);
        }
        if error.is_outage() {
            is_silent(services, ca, Work::Orders, &error.to_string()).await;
        }
    }
    spent.map_err(|refusal| {
        // The time to wait is the same by either clock.
        let until = ours + refusal.until.since(now);
        let line = refusal.every.map(|every| Line {
            ca: ca.to_owned(),
            limit: refusal.limit,
            subject: refusal.subject.clone(),
            priority: order.priority,
            every,
        });
        out_of_budget(Refusal { until, ..refusal }, line)
    })
}

fn out_of_budget(refusal: Refusal, line: Option<Line>) -> ManageError {
    ManageError::OutOfBudget {
        limit: refusal.limit,
        subject: refusal.subject,
        until: refusal.until,
        line: line.map(Box::new),
    }
}

/// Takes a new account at `ca` out of its ledger.
///
/// # Errors
/// [`ManageError::OutOfBudget`]; nothing is taken then.
pub(in crate::manage) async fn register(services: &Services, ca: &str) -> Result<(), ManageError> {
    let (rules, now) = (ledger::rules(ca), services.clock.now());
    if rules.is_empty() {
        return Ok(());
    }
    let taken = change(services, ca, |state| ledger::register(state, rules, now));
    let taken = taken.await?;
    // The first account that is made is that of all.
    taken.map_err(|refusal| out_of_budget(refusal, None))
}

/// Settles the ledger after an order that came to a certificate: one that the
/// CA took only when it no longer said what it replaces has counted after all, at
/// `now` by the CA's clock.
pub(in crate::manage) async fn settle_issued(
    services: &Services,
    planned: &PendingOrder,
    sent: Option<&PendingOrder>,
    now: Timestamp,
) {
    let dropped = sent.is_some_and(|sent| sent.replaces.is_none());
    let rules = ledger::rules(&planned.ca);
    if rules.is_empty() {
        return;
    }
    let names = &planned.identifiers;
    let counted = change(services, &planned.ca, |state| {
        ledger::proven(state, names);
        if !dropped || planned.counted != Counted::Exempt {
            return;
        }
        // It exists, whether there was a token for it or not.
        let _ = ledger::spend(state, rules, names, Counted::Again, Priority::Forced, now);
    });
    if let Err(error) = counted.await {
        tracing::warn!("an order at {} could not be counted: {error}", planned.ca);
    }
}

/// Settles the ledger after an order that came to nothing; `unproven` are the
/// names whose validation failed, at `now` by the CA's clock.
pub(in crate::manage) async fn settle_failed(
    services: &Services,
    order: &PendingOrder,
    unproven: &BTreeSet<Identifier>,
    now: Timestamp,
) {
    let rules = ledger::rules(&order.ca);
    if rules.is_empty() {
        return;
    }
    let settled = change(services, &order.ca, |state| {
        ledger::refund(state, rules, &order.identifiers, order.counted);
        ledger::failed(state, rules, unproven, now);
    });
    if let Err(error) = settled.await {
        tracing::warn!(
            "the ledger of {} could not be settled, it counts too much: {error}",
            order.ca
        );
    }
}
