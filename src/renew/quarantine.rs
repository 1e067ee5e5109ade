//! One dead name must not sink the rest, where the owner allows it: what is
//! wanted and what is issued are two sets, and their difference is tried again
//! and again without touching what is served.

use std::collections::BTreeSet;

use super::backoff::ahead;
use super::decide::due;
use crate::identifier::Identifier;
use crate::record::{Issued, Record};
use crate::time::Timestamp;

/// Until when the names that are left out are not tried; `None`: they may be.
#[must_use]
pub fn retry_at(record: &Record, now: Timestamp) -> Option<Timestamp> {
    let quarantine = record.quarantine.as_ref()?;
    ahead(&quarantine.tries, now)
}

/// What an order at `now` is for: everything, but for the names whose time to
/// be tried again has not come. Never for nothing.
#[must_use]
pub fn target(record: &Record, now: Timestamp) -> BTreeSet<Identifier> {
    let (Some(quarantine), Some(_)) = (&record.quarantine, retry_at(record, now)) else {
        return record.identifiers.clone();
    };
    let healthy = without(record, |name| quarantine.names.contains_key(name));
    if healthy.is_empty() {
        record.identifiers.clone()
    } else {
        healthy
    }
}

/// Whether `issued` is for all that is wanted, but for what is left out.
#[must_use]
pub fn is_covered(record: &Record, issued: &Issued) -> bool {
    let Some(quarantine) = &record.quarantine else {
        return issued.facts.identifiers == record.identifiers;
    };
    issued.facts.identifiers == without(record, |name| quarantine.names.contains_key(name))
}

/// What is left of `tried` when the names that `has_failed` are left out;
/// `None` where that is everything or nothing.
#[must_use]
pub fn healthy(
    tried: &BTreeSet<Identifier>,
    has_failed: impl Fn(&Identifier) -> bool,
) -> Option<BTreeSet<Identifier>> {
    let left = tried.iter().filter(|name| !has_failed(name));
    let left: BTreeSet<Identifier> = left.cloned().collect();
    (!left.is_empty() && left.len() < tried.len()).then_some(left)
}

/// Whether `name` may be left out of an order at `now`: one that the certificate
/// in use is for is not dropped for a failure that may pass, before the renewal
/// is late for it.
#[must_use]
pub fn may_be_left_out(record: &Record, name: &Identifier, now: Timestamp) -> bool {
    let issued = record.issued.as_ref();
    let serving = issued.filter(|issued| issued.facts.not_after > now);
    let Some(issued) = serving.filter(|issued| issued.facts.identifiers.contains(name)) else {
        return true;
    };
    let grace = issued.facts.lifetime() / 20;
    let renewal = issued.renewal.as_ref();
    renewal.is_some_and(|renewal| due(issued, renewal) + grace <= now)
}

fn without(record: &Record, left_out: impl Fn(&Identifier) -> bool) -> BTreeSet<Identifier> {
    let names = record.identifiers.iter();
    names.filter(|name| !left_out(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::certificate::{Facts, Fingerprint};
    use crate::identifier::Lineage;
    use crate::random::SeededRandom;
    use crate::record::{Failures, Generation, Quarantine, Renewal};
    use crate::renew::decide::{Next, held_up, next};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn name(number: usize) -> Identifier {
        Identifier::parse(&format!("n{number}.example.com")).unwrap()
    }

    /// Wanted for three, of which the first is left out until `retry_at`.
    fn record(retry_at: Option<Timestamp>) -> Record {
        let names: BTreeSet<_> = (0..3).map(name).collect();
        let mut record = Record::new(Lineage::of(&name(0)), names, "https://ca".into());
        record.quarantine = Some(Quarantine {
            names: [(name(0), "no".to_owned())].into(),
            tries: Failures {
                retry_at,
                ..Failures::default()
            },
        });
        record.issued = Some(Issued {
            generation: Generation(1),
            facts: Facts {
                identifiers: [name(1), name(2)].into(),
                not_before: NOW,
                not_after: NOW + DAY * 90,
                fingerprint: Fingerprint::of(b""),
                renewal_id: Some("a.b".into()),
            },
            ca: "https://ca".into(),
            at: NOW,
            renewal: Some(Renewal {
                at: NOW + DAY * 60,
                window: None,
                refresh_at: None,
                asked: None,
            }),
            renewable_from: None,
            early: 0,
            handover_at: None,
            instead_of: None,
        });
        record
    }

    #[test]
    fn what_is_left_out_is_tried_in_its_time_and_does_not_hold_up_the_rest() {
        let random = SeededRandom::new(1);
        let at = NOW + Duration::from_secs(600);
        let mut record = record(Some(at));
        assert_eq!(next(&record, NOW, &random), Next::Wait(at));
        assert_eq!(held_up(&record, NOW), None);
        let Next::Issue {
            names,
            heals,
            replaces,
            ..
        } = next(&record, at, &random)
        else {
            panic!("it is time");
        };
        assert!(heals);
        assert_eq!((names.len(), replaces), (3, None), "another set");

        // A renewal that is due meanwhile is for those that are well.
        let due = NOW + DAY * 60;
        record.quarantine.as_mut().unwrap().tries.retry_at = Some(due + DAY);
        let Next::Issue {
            names,
            heals,
            replaces,
            ..
        } = next(&record, due, &random)
        else {
            panic!("it is due");
        };
        assert!(!heals);
        assert_eq!((names.len(), replaces.as_deref()), (2, Some("a.b")));
    }

    #[test]
    fn a_name_that_is_served_is_not_dropped_before_the_renewal_is_late() {
        let record = record(None);
        let (due, late) = (NOW + DAY * 60, NOW + DAY * 65);
        assert!(may_be_left_out(&record, &name(0), NOW));
        assert!(!may_be_left_out(&record, &name(1), due));
        assert!(may_be_left_out(&record, &name(1), late));
        let expired = NOW + DAY * 91;
        assert!(may_be_left_out(&record, &name(1), expired));
    }

    #[test]
    fn without_a_quarantine_a_name_that_is_missing_is_ordered_at_once() {
        let mut record = record(None);
        record.quarantine = None;
        let Next::Issue { heals, names, .. } = next(&record, NOW, &SeededRandom::new(1)) else {
            panic!("a name is missing");
        };
        assert_eq!((heals, names.len()), (false, 3));
    }

    proptest! {
        #[test]
        fn no_order_is_for_nothing_or_for_what_nobody_wants(
            wanted in prop::collection::btree_set(0_usize..6, 1..6),
            out in prop::collection::btree_set(0_usize..6, 0..6),
            failed in prop::collection::btree_set(0_usize..6, 0..6),
            ahead in any::<bool>(),
        ) {
            let mut record = record(ahead.then_some(NOW + DAY));
            record.identifiers = wanted.into_iter().map(name).collect();
            let names = out.into_iter().map(|number| (name(number), "no".to_owned()));
            record.quarantine.as_mut().unwrap().names = names.collect();
            let target = target(&record, NOW);
            prop_assert!(!target.is_empty() && target.is_subset(&record.identifiers));
            let failed: BTreeSet<_> = failed.into_iter().map(name).collect();
            match healthy(&target, |name| failed.contains(name)) {
                Some(left) => {
                    prop_assert!(!left.is_empty() && left.is_disjoint(&failed));
                    prop_assert!(left.len() < target.len());
                }
                None => prop_assert!(target.is_subset(&failed) || target.is_disjoint(&failed)),
            }
        }
    }
}
