//! The status of a certificate, from its record and the decision of [`crate::renew`]. It
//! reads no disk and asks no server.

use super::proof::proof;
use crate::observe::status::{Action, ExcludedName, ProofState, RolledBackTo, Status, ToBeRevoked};
use crate::random::Random;
use crate::record::{Issued, Record};
use crate::renew::decide::{Next, due, next};
use crate::renew::partial::is_covered;
use crate::renew::policy::OVERDUE_PART;
use crate::renew::window::critical;
use crate::time::Timestamp;

/// The status of `record` at `now`.
#[must_use]
pub(crate) fn status(record: &Record, now: Timestamp, random: &dyn Random) -> Status {
    let (next_action, next_at) = upcoming(record, now, random);
    let issued = record.issued.as_ref();
    let proof = proof(record, now);
    Status {
        name: record.lineage.clone(),
        identifiers: record.identifiers.clone(),
        ca: record.ca.clone(),
        issued_by: issued.map(|issued| issued.ca.clone()),
        not_after: issued.map(|issued| issued.facts.not_after),
        next_action,
        next_at,
        generation_issued: issued.map(|issued| issued.generation),
        generation_served: record.served.values().map(|served| served.generation).min(),
        served: record.served.clone(),
        rolled_back_to: rolled_back_to(record, now),
        complete: issued.is_some_and(|issued| {
            is_covered(record, issued) || issued.facts.identifiers.is_superset(&record.identifiers)
        }),
        excluded: excluded(record),
        proven: proof.state == ProofState::Proven,
        proof,
        overdue: issued.is_some_and(|issued| is_overdue(issued, now)),
        critical: issued.is_some_and(|issued| critical(&issued.facts) <= now),
        orphaned: false,
        orphaned_why: None,
        denied: Vec::new(),
        not_renewable: None,
        last_error: last_error(record),
        revoked: record.revoked.clone(),
        to_be_revoked: to_be_revoked(record),
        renaming: record.renaming.clone(),
        requested_by: None,
    }
}

/// The certificate that the operator's rollback keeps live at `now`.
fn rolled_back_to(record: &Record, now: Timestamp) -> Option<RolledBackTo> {
    let pinned = record.pinned.as_ref().filter(|pinned| now < pinned.until)?;
    Some(RolledBackTo {
        generation: pinned.generation,
        not_after: pinned.facts.not_after,
        until: pinned.until,
    })
}

/// The revocation that the operator wants.
fn to_be_revoked(record: &Record) -> Option<ToBeRevoked> {
    record.revocation.as_ref().map(|pending| ToBeRevoked {
        generations: pending.certificates.keys().copied().collect(),
        reason: pending.reason,
        at_once: pending.at_once,
    })
}

/// The wanted names of `record` that are excluded for now.
#[must_use]
pub(crate) fn excluded(record: &Record) -> Vec<ExcludedName> {
    let excluded = record.excluded.iter();
    let names = excluded.flat_map(|excluded| {
        let names = excluded.names.iter();
        names.map(|(identifier, reason)| ExcludedName {
            identifier: identifier.clone(),
            reason: reason.clone(),
            retry_at: excluded.tries.retry_at,
        })
    });
    names.collect()
}

/// The last failures of orders, at the first CA and at the fallback CA.
pub(super) fn last_failure(record: &Record) -> Option<String> {
    let first = record.failures.last.clone();
    let fallback = record.fallback.as_ref();
    match (
        first,
        fallback.and_then(|fallback| fallback.failures.last.clone()),
    ) {
        (Some(first), Some(second)) => Some(format!("{first}; at the fallback CA: {second}")),
        (first, fallback) => first.or(fallback),
    }
}

/// The next action and its instant; a wait is shown as the action that it waits for.
fn upcoming(record: &Record, now: Timestamp, random: &dyn Random) -> (Action, Timestamp) {
    match next(record, now, random) {
        Next::Issue { .. } => (Action::Issue, now),
        Next::Deploy => (Action::Deploy, now),
        Next::RefreshWindow | Next::Draw(_) => (Action::Refresh, now),
        Next::Halt => (Action::Halt, now),
        Next::Revoke => (Action::Revoke, now),
        Next::Wait(until) => match next(record, until, random) {
            Next::Issue { .. } => (Action::Issue, until),
            Next::Deploy => (Action::Deploy, until),
            Next::Halt => (Action::Halt, until),
            Next::Revoke => (Action::Revoke, until),
            // The operator wants to see the renewal, not the requests for windows before it.
            Next::RefreshWindow | Next::Draw(_) | Next::Wait(_) => {
                let renewal = record.issued.as_ref().and_then(|issued| {
                    let renewal = issued.renewal.as_ref()?;
                    Some(due(issued, renewal))
                });
                match renewal {
                    Some(at) => (Action::Issue, at),
                    None => (Action::Refresh, until),
                }
            }
        },
    }
}

fn is_overdue(issued: &Issued, now: Timestamp) -> bool {
    let grace = issued.facts.lifetime() / OVERDUE_PART;
    let overdue = issued
        .renewal
        .as_ref()
        .is_some_and(|renewal| due(issued, renewal) + grace < now);
    overdue || issued.facts.not_after < now
}

fn last_error(record: &Record) -> Option<String> {
    let deployment = record.deployment_failures.last.clone();
    let revocation = record.revocation.as_ref();
    let revocation = || revocation.and_then(|pending| pending.failures.last.clone());
    deployment
        .or_else(|| last_failure(record))
        .or_else(revocation)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::Facts;
    use crate::fingerprint::Fingerprint;
    use crate::identifier::Identifier;
    use crate::lineage::Lineage;
    use crate::random::SeededRandom;
    use crate::record::{Generation, Renewal};

    const START: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn issued() -> Record {
        let name = Identifier::parse("example.com").unwrap();
        let mut record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        record.issued = Some(Issued {
            generation: Generation(1),
            facts: Facts {
                identifiers: record.identifiers.clone(),
                not_before: START,
                not_after: START + DAY * 90,
                fingerprint: Fingerprint::of(b""),
                renewal_id: None,
            },
            ca: record.ca.clone(),
            at: START,
            renewal: Some(Renewal {
                at: START + DAY * 60,
                window: None,
                refresh_at: Some(START + DAY),
                asked: None,
            }),
            renewable_from: None,
            early: 0,
            deploy_at: None,
            instead_of: None,
            terms: None,
        });
        record
    }

    #[test]
    fn status_shows_renewal_instead_of_window_requests() {
        let shown = status(&issued(), START, &SeededRandom::new(0));
        assert_eq!(shown.next_action, Action::Issue);
        assert_eq!(shown.next_at, START + DAY * 60);
        assert!(shown.is_ready());
    }

    #[test]
    fn status_is_not_ready_before_every_name_is_covered() {
        let mut record = issued();
        record
            .identifiers
            .insert(Identifier::parse("www.example.com").unwrap());
        let shown = status(&record, START, &SeededRandom::new(0));
        assert_eq!(shown.proof.state, ProofState::NotChecked);
        assert!(!shown.is_ready());
        record.identifiers.clear();
        assert!(status(&record, START, &SeededRandom::new(0)).is_ready());
    }

    #[test]
    fn status_shows_excluded_names_and_stays_ready() {
        let mut record = issued();
        let dead = Identifier::parse("dead.example.com").unwrap();
        record.identifiers.insert(dead.clone());
        let retry_at = Some(START + DAY);
        let mut excluded = crate::record::Excluded::default();
        excluded.names.insert(dead.clone(), "no".into());
        excluded.tries.retry_at = retry_at;
        record.excluded = Some(excluded);
        let shown = status(&record, START, &SeededRandom::new(0));
        let reason = "no".to_owned();
        let excluded = ExcludedName {
            identifier: dead,
            reason,
            retry_at,
        };
        assert_eq!(shown.excluded, [excluded]);
        assert!(shown.is_ready());
        assert_eq!(shown.next_at, START + DAY, "the name is retried");
        record
            .identifiers
            .insert(Identifier::parse("new.example.com").unwrap());
        assert!(!status(&record, START, &SeededRandom::new(0)).is_ready());
    }

    #[test]
    fn status_is_critical_when_a_sixth_of_the_lifetime_is_left() {
        let critical =
            |days: u32| status(&issued(), START + DAY * days, &SeededRandom::new(0)).critical;
        assert_eq!([critical(74), critical(76)], [false, true]);
    }

    #[test]
    fn status_is_late_a_twentieth_of_the_lifetime_after_the_due_date() {
        let overdue =
            |days: u32| status(&issued(), START + DAY * days, &SeededRandom::new(0)).overdue;
        assert_eq!(
            [overdue(60), overdue(64), overdue(65), overdue(91)],
            [false, false, true, true]
        );
    }

    #[test]
    fn status_is_not_ready_before_issuance_deployment_and_verification() {
        let mut record = issued();
        record.deployed.insert("nginx".into(), Generation(0));
        record.deployment_failures.last = Some("it ignores the signal".into());
        let shown = status(&record, START, &SeededRandom::new(0));
        assert_eq!(
            (shown.proof.state, shown.next_action),
            (ProofState::NotProven, Action::Deploy)
        );
        assert_eq!(shown.last_error.as_deref(), Some("it ignores the signal"));
        record.issued = None;
        assert!(!status(&record, START, &SeededRandom::new(0)).is_ready());
    }
}
