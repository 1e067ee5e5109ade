//! What all certificates of one CA share: its limits, which are spent before an
//! order is sent, and whether it answers, which one of them finds out for all.

mod outage;

use std::collections::BTreeSet;

pub use self::outage::Probed;
pub(crate) use self::outage::{Work, answers, is_silent, reach, reach_windows, tells_windows};
use super::order::is_silence;
use super::skew;
use super::{ManageError, Outcome, Parts};
use crate::acme::{AcmeError, Cause, Issuer};
use crate::ca_state::{Authority, Counted};
use crate::identifier::Identifier;
use crate::observe::Tokens;
use crate::record::{PendingOrder, Record};
use crate::renew::ledger::{self, Line, Priority, Refusal};
use crate::store::StoreError;
use crate::time::Timestamp;

/// Writers that may be faster, one after the other, before we give up.
const TRIES: usize = 64;

/// Changes what is known of `ca`, from its newest state again when another
/// process was faster.
async fn change<T>(
    parts: &Parts,
    ca: &str,
    mut change: impl FnMut(&mut Authority) -> T,
) -> Result<T, ManageError> {
    let mut faster = None;
    for _ in 0..TRIES {
        let (stored, revision) = parts.store.authority(ca).await?;
        let mut authority = stored.clone();
        let answer = change(&mut authority);
        if authority == stored {
            return Ok(answer);
        }
        match parts.store.save_authority(ca, &authority, revision).await {
            Ok(_) => {
                show(parts, ca, authority);
                return Ok(answer);
            }
            Err(error @ StoreError::Conflict { .. }) => faster = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(faster.map_or_else(
        || ManageError::Halted("the ledger could not be changed".into()),
        ManageError::Store,
    ))
}

/// Shows what is stored of `ca` in the metrics.
pub(crate) async fn show_stored(parts: &Parts, ca: &str) {
    match parts.store.authority(ca).await {
        Ok((authority, _)) => show(parts, ca, authority),
        Err(error) => tracing::warn!("what is known of {ca} cannot be shown: {error}"),
    }
}

fn show(parts: &Parts, ca: &str, authority: Authority) {
    let rules = ledger::rules(ca);
    if rules.is_empty() {
        return;
    }
    parts.metrics.ledger(ca, move |now| {
        let standing = ledger::standing(&authority, rules, now).into_iter();
        let tokens = standing.map(|left| Tokens {
            limit: left.limit.as_str().to_owned(),
            subject: left.subject,
            left: left.tokens,
        });
        tokens.collect()
    });
}

/// An order as the ledger sees it, before it is begun.
pub(crate) struct Intended<'o> {
    /// What there is already.
    pub(crate) record: &'o Record,
    /// What it would be for.
    pub(crate) names: &'o BTreeSet<Identifier>,
    /// The predecessor, as RFC 9773 names it.
    pub(crate) replaces: Option<&'o str>,
    /// How much of the reserve it may use.
    pub(crate) priority: Priority,
}

impl Intended<'_> {
    fn counts_as(&self, ca: &str, now: Timestamp) -> Counted {
        ledger::counts_as(self.record, ca, self.names, self.replaces, now)
    }

    /// Takes it out of the ledger of `ca`, or says until when it is refused.
    fn spend(
        &self,
        authority: &mut Authority,
        ca: &str,
        now: Timestamp,
    ) -> Result<Counted, Refusal> {
        let counted = self.counts_as(ca, now);
        let (rules, names, priority) = (ledger::rules(ca), self.names, self.priority);
        ledger::spend(authority, rules, names, counted, priority, now)?;
        Ok(counted)
    }

    /// Until when the ledger of `ca`, as it is `known`, would refuse it at `now`.
    fn refused_until(&self, known: &Authority, ca: &str, now: Timestamp) -> Option<Timestamp> {
        let mut after = known.clone();
        let refusal = self.spend(&mut after, ca, now).err()?;
        // What had to be rewritten is of a wrong clock's making, or of ours: no refusal.
        (after == *known).then_some(refusal.until)
    }
}

/// Takes an order at `ca` out of its ledger, and says as what it counts.
///
/// # Errors
/// [`ManageError::OutOfBudget`], or that the CA does not tell the time, as it would not
/// take an order either; nothing is taken then.
pub(crate) async fn spend(
    parts: &Parts,
    ca: &str,
    issuer: &dyn Issuer,
    order: Intended<'_>,
) -> Result<Counted, ManageError> {
    let ours = parts.clock.now();
    if ledger::rules(ca).is_empty() {
        // Where there is nothing to count it need not be asked for the time.
        return Ok(order.counts_as(ca, ours));
    }
    let heard = issuer.time(skew::NEWEST).await.map_err(ManageError::from);
    let now = match &heard {
        Ok(Some(dated)) => dated.there(parts.clock.wall()),
        Ok(None) | Err(_) => ours,
    };
    let spent = change(parts, ca, |authority| match &heard {
        Ok(_) => order.spend(authority, ca, now),
        // Nobody would take it: what is refused anyhow is refused all the same.
        Err(_) => order.spend(&mut authority.clone(), ca, now),
    });
    let spent = spent.await?;
    if let Err(error) = heard {
        if spent.is_ok() {
            return Err(error);
        }
        if is_silence(&error) {
            is_silent(parts, ca, Work::Orders, &error.to_string()).await;
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
pub(crate) async fn register(parts: &Parts, ca: &str) -> Result<(), ManageError> {
    let (rules, now) = (ledger::rules(ca), parts.clock.now());
    if rules.is_empty() {
        return Ok(());
    }
    let taken = change(parts, ca, |authority| {
        ledger::register(authority, rules, now)
    });
    let taken = taken.await?;
    // The account of whoever comes first is everybody's.
    taken.map_err(|refusal| out_of_budget(refusal, None))
}

/// Settles the ledger after an order that came to a certificate: one that the
/// CA took only when it no longer said what it replaces has counted after all, at
/// `now` by the CA's clock.
pub(crate) async fn settle_issued(
    parts: &Parts,
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
    let counted = change(parts, &planned.ca, |authority| {
        ledger::proven(authority, names);
        if !dropped || planned.counted != Counted::Exempt {
            return;
        }
        // It exists, whether there was a token for it or not.
        let _ = ledger::spend(
            authority,
            rules,
            names,
            Counted::Again,
            Priority::Forced,
            now,
        );
    });
    if let Err(error) = counted.await {
        tracing::warn!("an order at {} could not be counted: {error}", planned.ca);
    }
}

/// Settles the ledger after an order that came to nothing; `unproven` are the
/// names whose validation failed, at `now` by the CA's clock.
pub(crate) async fn settle_failed(
    parts: &Parts,
    order: &PendingOrder,
    unproven: &BTreeSet<Identifier>,
    now: Timestamp,
) {
    let rules = ledger::rules(&order.ca);
    if rules.is_empty() {
        return;
    }
    let settled = change(parts, &order.ca, |authority| {
        ledger::refund(authority, rules, &order.identifiers, order.counted);
        ledger::failed(authority, rules, unproven, now);
    });
    if let Err(error) = settled.await {
        tracing::warn!(
            "the ledger of {} could not be settled, it counts too much: {error}",
            order.ca
        );
    }
}

/// The CA that does its work, as how a pass over `record` ended shows.
#[must_use]
pub(crate) fn who_answered(
    ended: &Result<Outcome, ManageError>,
    record: Option<&Record>,
) -> Option<String> {
    let record = record?;
    match ended {
        Ok(outcome) if outcome.issued => record.issued.as_ref().map(|issued| issued.ca.clone()),
        Err(error) if is_an_answer(error) => {
            let (ManageError::Acme(AcmeError { ca, .. }) | ManageError::Bundle { ca, .. }) = error
            else {
                return None;
            };
            let second = record.fallback.as_ref().map(|fallback| &fallback.ca);
            // The first one may be known to its records by another name.
            let second = second.filter(|second| *second == ca);
            Some(second.unwrap_or(&record.ca).clone())
        }
        _ => None,
    }
}

/// Whether an order that failed so was understood and judged by the CA; one that
/// is overloaded, or a gateway in its place, is not at work yet.
pub(crate) fn is_an_answer(error: &ManageError) -> bool {
    match error {
        ManageError::Acme(error) => matches!(
            error.cause,
            Cause::NotProven(_) | Cause::Refused(_) | Cause::NoChallenge { .. }
        ),
        error => matches!(error, ManageError::Bundle { .. }),
    }
}

/// When the certificates that a CA keeps waiting may go on.
#[must_use]
pub(crate) fn waits_until(error: &ManageError) -> Option<Timestamp> {
    match error {
        ManageError::Down { until, .. }
        | ManageError::OutOfBudget { until, .. }
        | ManageError::NotDueThere { until, .. } => Some(*until),
        _ => None,
    }
}
