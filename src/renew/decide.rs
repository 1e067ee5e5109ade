//! The one decision: what does this certificate need next?

use std::collections::BTreeSet;
use std::time::Duration;

use super::backoff::{ahead, is_of_the_future};
use super::fallback::{self, Choice};
use super::quarantine;
use super::window::{critical, latest, share_of_life};
use crate::identifier::Identifier;
use crate::random::Random;
use crate::record::{Issued, Record, Renewal};
use crate::time::Timestamp;

/// No window is asked for later than a day from now: an instant beyond it was
/// written by a clock that was wrong. An hour for clocks that differ a little.
const LATEST_REFRESH: Duration = Duration::from_secs(25 * 3600);

/// What a certificate needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing before this instant, which is in the future.
    Wait(Timestamp),
    /// Store this renewal instant, then ask again.
    Draw(Renewal),
    /// Ask the CA for its renewal window.
    RefreshWindow,
    /// Order a certificate, or finish the order under way.
    Issue {
        /// From whom.
        from: Choice,
        /// For what.
        names: BTreeSet<Identifier>,
        /// The newest certificate is good, and not for all that is wanted: it
        /// stays, whatever becomes of this order.
        heals: bool,
        /// The predecessor, as RFC 9773 names it, when this CA issued it.
        replaces: Option<String>,
        /// Whether it may use what is kept in reserve.
        urgent: bool,
    },
    /// Hand the newest generation over and prove that it is served.
    Deploy,
    /// Nothing can be done without the owner.
    Halt(Reason),
}

/// Why nothing can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The record asks for no identifier.
    NoIdentifiers,
}

/// Decides for `record` at `now`. Total: any record has an answer, and a
/// `Wait` always lies in the future.
#[must_use]
pub fn next(record: &Record, now: Timestamp, random: &dyn Random) -> Next {
    if record.identifiers.is_empty() {
        return Next::Halt(Reason::NoIdentifiers);
    }
    let Some(issued) = &record.issued else {
        return order(record, now);
    };
    let renewal = match renew(record, issued, now, random) {
        Next::Wait(until) => Next::Wait(unpinned(record, now).map_or(until, |at| until.min(at))),
        other => other,
    };
    let served = record.to_be_served(now);
    let is_over = served.is_none_or(|(_, facts)| facts.not_after <= now);
    if is_over || is_proven(record, now) {
        return renewal;
    }
    // A certificate in hand comes first: it may be the better one already. While
    // it waits after a failed hand-over, it may well be renewed.
    match (handover_held(record, issued, now), renewal) {
        (None, _) => Next::Deploy,
        (Some(at), Next::Wait(until)) => Next::Wait(at.min(until)),
        (Some(_), renewal) => renewal,
    }
}

/// When the owner's word for an earlier certificate holds no longer.
fn unpinned(record: &Record, now: Timestamp) -> Option<Timestamp> {
    let until = record.pinned.as_ref()?.until;
    (until > now).then_some(until)
}

fn renew(record: &Record, issued: &Issued, now: Timestamp, random: &dyn Random) -> Next {
    let healing = heals(record, now).then(|| quarantine::retry_at(record, now));
    match healing {
        Some(None) => return heal(record, now),
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
        Some(_) if is_of_the_future(renewal.asked, now) => Next::RefreshWindow,
        refresh_at => {
            let instants = [refresh_at, healing.flatten()].into_iter().flatten();
            Next::Wait(instants.fold(due, Timestamp::min))
        }
    }
}

/// Whether there must be an order now, were it not for earlier failures.
fn needs_order(record: &Record, now: Timestamp) -> bool {
    record.order.is_some() && !heals(record, now) || is_due(record, now)
}

/// Whether an order now is for names alone that were left out.
fn heals(record: &Record, now: Timestamp) -> bool {
    record.quarantine.is_some() && !is_due(record, now)
}

/// Whether what there is does not do.
fn is_due(record: &Record, now: Timestamp) -> bool {
    let Some(issued) = &record.issued else {
        return true;
    };
    let wanted = is_wanted(record, issued);
    let usable = issued.facts.not_after > now;
    let renewal = issued.renewal.as_ref();
    let is_due = renewal.is_some_and(|renewal| due(issued, renewal) <= now);
    !wanted || !usable || is_due
}

/// Whether `issued` is for what is wanted, and comes from the CA of the first
/// choice or in its place.
pub(super) fn is_wanted(record: &Record, issued: &Issued) -> bool {
    let in_its_place = issued.instead_of.as_ref() == Some(&record.ca);
    quarantine::is_covered(record, issued) && (issued.ca == record.ca || in_its_place)
}

/// Until when the hand-over waits: for its window, or after it has failed.
fn handover_held(record: &Record, issued: &Issued, now: Timestamp) -> Option<Timestamp> {
    let window = issued.handover_at.filter(|opens| *opens > now);
    window.max(ahead(&record.handover, now))
}

/// A step that is due and waits because it has failed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeldUp {
    /// The order.
    Issuance {
        /// When it is tried again.
        until: Timestamp,
    },
    /// The hand-over.
    Handover {
        /// When it is tried again.
        until: Timestamp,
    },
}

/// What of `record` is due at `now` and waits after a failure: a [`Next::Wait`]
/// is then no sign that all is well.
#[must_use]
pub fn held_up(record: &Record, now: Timestamp) -> Option<HeldUp> {
    if needs_order(record, now)
        && let Err(until) = fallback::choose(record, now)
    {
        return Some(HeldUp::Issuance { until });
    }
    record.issued.as_ref()?;
    if is_proven(record, now) {
        return None;
    }
    ahead(&record.handover, now).map(|until| HeldUp::Handover { until })
}

/// When the certificate shall be renewed: the drawn instant, no later than a
/// tenth of the life before its end, no earlier than its issuance allows.
#[must_use]
pub fn due(issued: &Issued, renewal: &Renewal) -> Timestamp {
    let wanted = renewal.at.min(latest(&issued.facts));
    issued
        .renewable_from
        .map_or(wanted, |from| wanted.max(from))
}

/// Whether every target and endpoint has the certificate that shall be served.
#[must_use]
pub fn is_proven(record: &Record, now: Timestamp) -> bool {
    let Some((wanted, _)) = record.to_be_served(now) else {
        return true;
    };
    let mut deployed = record.deployed.values();
    let mut served = record.served.values();
    deployed.all(|generation| *generation == wanted)
        && served.all(|served| served.generation == wanted)
}

/// The certificate that an order at `ca` for `names` would replace, as RFC 9773 names it:
/// only the CA that issued it, for the same names, can be told of it.
#[must_use]
pub fn replaces(
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

/// The order that is due, or until when it waits after those that have failed.
fn order(record: &Record, now: Timestamp) -> Next {
    match fallback::choose(record, now) {
        Ok(from) => {
            let names = quarantine::target(record, now);
            Next::Issue {
                from,
                heals: false,
                replaces: replaces(record, from.ca(record), &names, now),
                urgent: is_urgent(record, now),
                names,
            }
        }
        Err(until) => Next::Wait(until),
    }
}

/// An order for all that is wanted. It is worth no other CA.
fn heal(record: &Record, now: Timestamp) -> Next {
    let names = quarantine::target(record, now);
    Next::Issue {
        from: Choice::First,
        heals: true,
        replaces: replaces(record, &record.ca, &names, now),
        urgent: false,
        names,
    }
}

/// Whether an order at `now` could not wait.
#[must_use]
pub fn is_urgent(record: &Record, now: Timestamp) -> bool {
    record.issued.as_ref().is_some_and(|issued| {
        let window_is_past = issued
            .renewal
            .as_ref()
            .and_then(|r| r.window.as_ref())
            .is_some_and(|w| w.end <= now);
        window_is_past || critical(&issued.facts) <= now
    })
}

#[cfg(test)]
mod tests;
