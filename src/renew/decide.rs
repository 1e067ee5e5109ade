//! The decision what a certificate needs next: wait, draw, refresh, issue or
//! deploy. It never acts, and any record has an answer.

use std::collections::BTreeSet;

use super::backoff::{is_from_the_future, pause_end};
use super::fallback::{self, Choice};
use super::partial;
use super::policy::LATEST_REFRESH;
pub(crate) use super::window::due;
use super::window::{critical, share_of_life};
use crate::identifier::Identifier;
use crate::random::Random;
use crate::record::{Issued, Record, Renewal};
use crate::time::Timestamp;

/// What a certificate needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Do nothing before this instant, which is in the future.
    Wait(Timestamp),
    /// Store this renewal instant, then decide again.
    Draw(Renewal),
    /// Request the renewal window from the CA.
    RefreshWindow,
    /// Order a certificate, or finish the pending order.
    Issue(Plan),
    /// Deploy the newest generation and verify that it is served.
    Deploy,
    /// Revoke the certificates that the operator wants revoked.
    Revoke,
    /// Nothing can be done without the operator: the record names no identifier.
    Halt,
}

/// An order before it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The CA to order from.
    pub from: Choice,
    /// The names to order.
    pub names: BTreeSet<Identifier>,
    /// The order only retries excluded names: the newest certificate is good and
    /// stays, even if the order fails.
    pub only_excluded: bool,
    /// The RFC 9773 identifier of the predecessor, if this CA issued it.
    pub replaces: Option<String>,
    /// Whether the order may spend the reserved tokens.
    pub urgent: bool,
}

impl Plan {
    /// The same order at `from`, where it replaces nothing.
    #[must_use]
    pub(crate) fn at(self, from: Choice) -> Self {
        Self {
            from,
            replaces: None,
            ..self
        }
    }
}

/// Decides for `record` at `now`. Total: any record has an answer, and a
/// `Wait` always lies in the future.
#[must_use]
pub(crate) fn next(record: &Record, now: Timestamp, random: &dyn Random) -> Next {
    if record.identifiers.is_empty() {
        return Next::Halt;
    }
    let Some(issued) = &record.issued else {
        return order(record, now);
    };
    let pending = record.revocation.as_ref();
    let at_once = pending.filter(|pending| pending.at_once);
    if at_once.is_some_and(|pending| pause_end(&pending.failures, now).is_none()) {
        return Next::Revoke;
    }
    let renewal = match renew(record, issued, now, random) {
        Next::Wait(until) => Next::Wait(pin_end(record, now).map_or(until, |at| until.min(at))),
        other => other,
    };
    let wanted = record.to_be_served(now);
    let expired = wanted.is_none_or(|(_, facts)| facts.not_after <= now);
    if expired || is_verified(record, now) {
        return match renewal {
            Next::Wait(until) => revocation(record, issued, now, until),
            renewal => renewal,
        };
    }
    // A stored certificate is deployed before another is ordered: it may already
    // be the better one. While its deployment backs off, the renewal proceeds.
    match (deployment_pause(record, issued, now), renewal) {
        (None, _) => Next::Deploy,
        (Some(at), Next::Wait(until)) => Next::Wait(at.min(until)),
        (Some(_), renewal) => renewal,
    }
}

/// The revocation of what a verified certificate has replaced, or the wait for its next try.
fn revocation(record: &Record, issued: &Issued, now: Timestamp, until: Timestamp) -> Next {
    let pending = record.revocation.as_ref();
    let may = pending.filter(|it| it.at_once || it.generation < issued.generation);
    match may.map(|pending| pause_end(&pending.failures, now)) {
        None => Next::Wait(until),
        Some(None) => Next::Revoke,
        Some(Some(at)) => Next::Wait(until.min(at)),
    }
}

/// When the operator's rollback to an earlier generation expires.
fn pin_end(record: &Record, now: Timestamp) -> Option<Timestamp> {
    let until = record.pinned.as_ref()?.until;
    (until > now).then_some(until)
}

fn renew(record: &Record, issued: &Issued, now: Timestamp, random: &dyn Random) -> Next {
    let exclusion = is_only_for_excluded(record, now).then(|| partial::retry_at(record, now));
    match exclusion {
        Some(None) => return order_excluded(record, now),
        None if needs_order(record, now) => return order(record, now),
        _ => {}
    }
    let Some(renewal) = &issued.renewal else {
        let at = share_of_life(&issued.facts, random);
        return Next::Draw(Renewal {
            at,
            window: None,
            refresh_at: None,
            asked: None,
        });
    };
    let due = due(issued, renewal);
    match renewal.refresh_at {
        Some(at) if at <= now || at > now + LATEST_REFRESH => Next::RefreshWindow,
        Some(_) if is_from_the_future(renewal.asked, now) => Next::RefreshWindow,
        refresh_at => {
            let instants = [refresh_at, exclusion.flatten()].into_iter().flatten();
            Next::Wait(instants.fold(due, Timestamp::min))
        }
    }
}

/// Whether an order is due now, apart from backoff.
fn needs_order(record: &Record, now: Timestamp) -> bool {
    record.order.is_some() && !is_only_for_excluded(record, now) || is_due(record, now)
}

/// Whether an order now would only retry excluded names.
fn is_only_for_excluded(record: &Record, now: Timestamp) -> bool {
    record.excluded.is_some() && !is_due(record, now)
}

/// Whether the newest certificate is missing, expired, due for renewal, or not
/// the wanted one.
#[must_use]
pub(crate) fn is_due(record: &Record, now: Timestamp) -> bool {
    let Some(issued) = &record.issued else {
        return true;
    };
    let wanted = is_wanted(record, issued);
    let usable = issued.facts.not_after > now;
    let renewal = issued.renewal.as_ref();
    let is_due = renewal.is_some_and(|renewal| due(issued, renewal) <= now);
    !wanted || !usable || is_due || record.must_replace()
}

/// Whether `issued` covers the wanted names and comes from the wanted CA, or
/// from the fallback CA on its behalf.
fn is_wanted(record: &Record, issued: &Issued) -> bool {
    let by_fallback = issued.instead_of.as_ref() == Some(&record.ca);
    partial::is_covered(record, issued) && (issued.ca == record.ca || by_fallback)
}

/// The end of the deployment's pause: its window opens, or its backoff ends.
fn deployment_pause(record: &Record, issued: &Issued, now: Timestamp) -> Option<Timestamp> {
    let window = issued.deploy_at.filter(|opens| *opens > now);
    window.max(pause_end(&record.deployment_failures, now))
}

/// A step that is due and backs off after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Delayed {
    /// The order, and its next attempt.
    Issuance(Timestamp),
    /// The deployment, and its next attempt.
    Deployment(Timestamp),
}

/// The step of `record` that is due at `now` and backs off, if any: it tells a
/// failure apart from an idle [`Next::Wait`].
#[must_use]
pub(crate) fn delayed_until(record: &Record, now: Timestamp) -> Option<Delayed> {
    if needs_order(record, now)
        && let Err(until) = fallback::choose(record, now)
    {
        return Some(Delayed::Issuance(until));
    }
    record.issued.as_ref()?;
    if is_verified(record, now) {
        return None;
    }
    pause_end(&record.deployment_failures, now).map(Delayed::Deployment)
}

/// Whether every target and endpoint serves the wanted generation.
#[must_use]
pub(crate) fn is_verified(record: &Record, now: Timestamp) -> bool {
    let Some((wanted, _)) = record.to_be_served(now) else {
        return true;
    };
    let mut deployed = record.deployed.values();
    let mut served = record.served.values();
    deployed.all(|generation| *generation == wanted)
        && served.all(|served| served.generation == wanted)
}

/// The RFC 9773 identifier of the certificate that an order at `ca` for `names`
/// replaces: the same CA must have issued it for the same names.
#[must_use]
pub(crate) fn replaces(
    record: &Record,
    ca: &str,
    names: &BTreeSet<Identifier>,
    now: Timestamp,
) -> Option<String> {
    let issued = record.issued.as_ref()?;
    let same = issued.ca == ca && issued.facts.identifiers == *names;
    let usable = issued.facts.not_after > now;
    issued.facts.renewal_id.clone().filter(|_| same && usable)
}

/// The order that is due, or the end of its backoff.
fn order(record: &Record, now: Timestamp) -> Next {
    match fallback::choose(record, now) {
        Ok(from) => Next::Issue(plan(record, from, now)),
        Err(until) => Next::Wait(until),
    }
}

/// An order for all wanted names, to retry the excluded ones. The fallback CA is
/// not used for it.
fn order_excluded(record: &Record, now: Timestamp) -> Next {
    Next::Issue(Plan {
        only_excluded: true,
        urgent: false,
        ..plan(record, Choice::First, now)
    })
}

fn plan(record: &Record, from: Choice, now: Timestamp) -> Plan {
    let names = partial::target(record, now);
    Plan {
        from,
        only_excluded: false,
        replaces: replaces(record, from.ca(record), &names, now),
        urgent: is_urgent(record, now),
        names,
    }
}

/// Whether an order at `now` may spend reserved tokens: the window has closed,
/// or the critical part of the lifetime has begun.
#[must_use]
pub(crate) fn is_urgent(record: &Record, now: Timestamp) -> bool {
    record.issued.as_ref().is_some_and(|issued| {
        let renewal = issued.renewal.as_ref();
        let window = renewal.and_then(|renewal| renewal.window.as_ref());
        let is_past = window.is_some_and(|window| window.end <= now);
        is_past || critical(&issued.facts) <= now || record.must_replace()
    })
}

#[cfg(test)]
mod tests;
