//! Tells before a pass whether it may order and so needs the services of an order: while
//! nothing is due, port 80 may belong to another process. Nothing is opened here.

use super::load::{adopt, clear_backoff};
use super::services::Wanted;
use super::session::Trigger;
use crate::random::Random;
use crate::record::Record;
use crate::renew::decide::{Next, next};
use crate::renew::policy::PREFLIGHT_MARGIN;
use crate::time::Timestamp;

/// Whether a pass over `record` may order; in doubt, it may.
#[must_use]
pub(crate) fn may_order(
    record: Option<&Record>,
    wanted: &Wanted,
    trigger: Trigger,
    now: Timestamp,
    random: &dyn Random,
) -> bool {
    if trigger.never_orders() || trigger == Trigger::CancelRevocation {
        return false;
    }
    if let Trigger::Revoke { at_once, .. } = trigger {
        return !at_once;
    }
    let (Some(record), false) = (record, trigger == Trigger::Forced) else {
        return true;
    };
    let mut record = record.clone();
    adopt(&mut record, wanted);
    clear_backoff(&mut record, trigger);
    // The step that matters is the one after all deployments.
    if let Some(issued) = &record.issued {
        let generation = issued.generation;
        record.deployed.values_mut().for_each(|on| *on = generation);
        for served in record.served.values_mut() {
            served.generation = generation;
        }
    }
    match next(&record, now, random) {
        Next::Wait(until) => until <= now + PREFLIGHT_MARGIN,
        Next::Halt => false,
        // What comes after it.
        Next::Revoke => record.must_replace(),
        _ => true,
    }
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
    use crate::record::{Generation, Issued, Renewal, Terms};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn wanted() -> Wanted {
        let name = Identifier::parse("example.com").unwrap();
        Wanted {
            lineage: Lineage::of(&name),
            identifiers: [name].into(),
            order: std::sync::Arc::new(crate::manage::OrderSettings {
                ca: "https://ca".into(),
                terms: Terms::default(),
                request: None,
                partial: false,
            }),
        }
    }

    fn record(renewed_at: Timestamp) -> Record {
        let wanted = wanted();
        let ca = wanted.ca.clone();
        let mut record = Record::new(wanted.lineage, wanted.identifiers.tree(), ca);
        record.issued = Some(Issued {
            generation: Generation(1),
            facts: Facts {
                identifiers: wanted.identifiers.tree(),
                not_before: NOW,
                not_after: NOW + DAY * 90,
                fingerprint: Fingerprint::of(b"leaf"),
                renewal_id: None,
            },
            ca: "https://ca".into(),
            at: NOW,
            renewal: Some(Renewal {
                at: renewed_at,
                window: None,
                refresh_at: None,
                asked: None,
            }),
            renewable_from: None,
            early: 0,
            deploy_at: None,
            instead_of: None,
            terms: None,
        });
        record.deployed.insert("nginx".into(), Generation(0));
        record
    }

    fn asks(record: Option<&Record>, wanted: &Wanted, trigger: Trigger) -> bool {
        may_order(record, wanted, trigger, NOW, &SeededRandom::new(1))
    }

    #[test]
    fn may_order_is_false_for_undeployed_certificate_that_is_not_due() {
        let later = record(NOW + DAY * 60);
        assert!(!asks(Some(&later), &wanted(), Trigger::Scheduled));
        assert!(!asks(Some(&later), &wanted(), Trigger::Requested));
    }

    #[test]
    fn may_order_is_true_for_any_pass_that_may_order() {
        assert!(asks(None, &wanted(), Trigger::Scheduled));
        let later = record(NOW + DAY * 60);
        assert!(asks(Some(&later), &wanted(), Trigger::Forced));
        assert!(asks(Some(&record(NOW)), &wanted(), Trigger::Scheduled));
        let soon = record(NOW + Duration::from_secs(10));
        assert!(asks(Some(&soon), &wanted(), Trigger::Scheduled));
        let mut more = wanted();
        more.identifiers = ["example.com", "www.example.com"]
            .map(|name| name.parse().unwrap())
            .into();
        assert!(asks(Some(&later), &more, Trigger::Scheduled));
        let mut other = wanted();
        other.ca = "https://other".into();
        assert!(asks(Some(&later), &other, Trigger::Scheduled));
    }

    #[test]
    fn may_order_ignores_backoff_when_the_user_requests_it() {
        let mut failed = record(NOW);
        failed.failures.retry_at = Some(NOW + DAY);
        assert!(!asks(Some(&failed), &wanted(), Trigger::Scheduled));
        assert!(asks(Some(&failed), &wanted(), Trigger::Requested));
    }
}
