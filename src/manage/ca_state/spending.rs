//! The rate limits of a CA: tokens are taken before an order is sent, and settled after it
//! has ended. Nothing is sent here but a request for the CA's time.

use std::collections::BTreeSet;

use super::intended::Intended;
use super::outage::{Operation, note_outage};
use super::shared::change;
use crate::acme::Issuer;
use crate::ca_state::Counted;
use crate::identifier::Identifier;
use crate::manage::error::ManageError;
use crate::manage::services::Services;
use crate::record::PendingOrder;
use crate::renew::policy::CLOCK_READING;
use crate::renew::rate_limits::{self, Line, Priority, Refusal};
use crate::time::Timestamp;

/// Takes the tokens of an order at `ca`, and returns as what the order counts.
///
/// # Errors
/// [`ManageError::LimitExhausted`], or the CA's error if its time is unavailable, since an
/// order would fail too; no token is taken then.
pub(in crate::manage) async fn spend(
    services: &Services,
    ca: &str,
    issuer: &dyn Issuer,
    order: Intended<'_>,
) -> Result<Counted, ManageError> {
    let ours = services.clock.now();
    if rate_limits::rules(ca).is_empty() {
        // Without rate limits the CA's time is not needed.
        return Ok(order.counts_as(ca, ours));
    }
    let reply = issuer.time(CLOCK_READING).await.map_err(ManageError::from);
    let now = match &reply {
        Ok(Some(reading)) => reading.at_ca(services.clock.wall()),
        Ok(None) | Err(_) => ours,
    };
    let spent = change(services, ca, |state| match &reply {
        Ok(_) => order.spend(state, ca, now),
        // The order would fail, so no token is taken; a refusal still comes first.
        Err(_) => order.spend(&mut state.clone(), ca, now),
    });
    let spent = spent.await?;
    if let Err(error) = reply {
        if spent.is_ok() {
            return Err(error);
        }
        if error.is_outage() {
            note_outage(services, ca, Operation::Order(None), &error.to_string()).await;
        }
    }
    spent.map_err(|refusal| {
        // The pause is the same by either clock.
        let until = ours + refusal.until.since(now);
        let line = refusal.every.map(|every| Line {
            ca: ca.to_owned(),
            limit: refusal.limit,
            subject: refusal.subject.clone(),
            priority: order.priority,
            every,
        });
        limit_exhausted(Refusal { until, ..refusal }, line)
    })
}

fn limit_exhausted(refusal: Refusal, line: Option<Line>) -> ManageError {
    ManageError::LimitExhausted {
        limit: refusal.limit,
        subject: refusal.subject,
        until: refusal.until,
        line: line.map(Box::new),
    }
}

/// Takes the token of a new account at `ca`.
///
/// # Errors
/// [`ManageError::LimitExhausted`]; no token is taken then.
pub(in crate::manage) async fn register(services: &Services, ca: &str) -> Result<(), ManageError> {
    let (rules, now) = (rate_limits::rules(ca), services.clock.now());
    if rules.is_empty() {
        return Ok(());
    }
    let taken = change(services, ca, |state| {
        rate_limits::register(state, rules, now)
    });
    let taken = taken.await?;
    // No queue: the first account serves all certificates.
    taken.map_err(|refusal| limit_exhausted(refusal, None))
}

/// Settles the rate limits after an issued order, at `now` by the CA's clock. An order that
/// the CA accepted only without `replaces` counts after all.
pub(in crate::manage) async fn settle_issued(
    services: &Services,
    planned: &PendingOrder,
    sent: Option<&PendingOrder>,
    now: Timestamp,
) {
    let dropped = sent.is_some_and(|sent| sent.replaces.is_none());
    let rules = rate_limits::rules(&planned.ca);
    if rules.is_empty() {
        return;
    }
    let names = &planned.identifiers;
    let counted = change(services, &planned.ca, |state| {
        rate_limits::validated(state, names);
        if !dropped || planned.counted != Counted::Exempt {
            return;
        }
        // The certificate exists, with or without a token.
        let _ = rate_limits::spend(state, rules, names, Counted::Again, Priority::Forced, now);
    });
    if let Err(error) = counted.await {
        tracing::warn!("an order at {} could not be counted: {error}", planned.ca);
    }
}

/// Refunds the tokens of an order that is dropped.
pub(in crate::manage) async fn refund(services: &Services, order: &PendingOrder) {
    settle_failed(services, order, &BTreeSet::new(), services.clock.now()).await;
}

/// Settles the rate limits after a failed order; `invalid` are the names whose validation
/// failed, at `now` by the CA's clock.
pub(in crate::manage) async fn settle_failed(
    services: &Services,
    order: &PendingOrder,
    invalid: &BTreeSet<Identifier>,
    now: Timestamp,
) {
    let rules = rate_limits::rules(&order.ca);
    if rules.is_empty() {
        return;
    }
    let settled = change(services, &order.ca, |state| {
        rate_limits::refund(state, rules, &order.identifiers, order.counted);
        rate_limits::failed(state, rules, invalid, now);
    });
    if let Err(error) = settled.await {
        tracing::warn!(
            "the rate limits of {} could not be settled and count too much: {error}",
            order.ca
        );
    }
}
