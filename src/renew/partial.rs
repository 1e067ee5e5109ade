//! Partial certificates, where the operator allows them: a name that fails its
//! validation is excluded and retried, and the other names get a certificate.
//! Retries never replace the served certificate by a smaller one.

use std::collections::BTreeSet;

use super::backoff::pause_end;
use super::policy::OVERDUE_PART;
use super::window::due;
use crate::identifier::Identifier;
use crate::record::{Issued, Record};
use crate::time::Timestamp;

/// The end of the excluded names' backoff; `None`: they may be retried now.
#[must_use]
pub(crate) fn retry_at(record: &Record, now: Timestamp) -> Option<Timestamp> {
    let excluded = record.excluded.as_ref()?;
    pause_end(&excluded.tries, now)
}

/// The names to order at `now`: all wanted ones, without the excluded names
/// while they back off. Never empty.
#[must_use]
pub(crate) fn target(record: &Record, now: Timestamp) -> BTreeSet<Identifier> {
    let (Some(excluded), Some(_)) = (&record.excluded, retry_at(record, now)) else {
        return record.identifiers.clone();
    };
    let included = without(record, |name| excluded.names.contains_key(name));
    if included.is_empty() {
        record.identifiers.clone()
    } else {
        included
    }
}

/// Whether `issued` covers exactly the wanted names without the excluded ones.
#[must_use]
pub(crate) fn is_covered(record: &Record, issued: &Issued) -> bool {
    let Some(excluded) = &record.excluded else {
        return issued.facts.identifiers == record.identifiers;
    };
    issued.facts.identifiers == without(record, |name| excluded.names.contains_key(name))
}

/// The names of `tried` without those that failed; `None` when all of them
/// failed, or none.
#[must_use]
pub(crate) fn healthy(
    tried: &BTreeSet<Identifier>,
    has_failed: impl Fn(&Identifier) -> bool,
) -> Option<BTreeSet<Identifier>> {
    let left = tried.iter().filter(|name| !has_failed(name));
    let left: BTreeSet<Identifier> = left.cloned().collect();
    (!left.is_empty() && left.len() < tried.len()).then_some(left)
}

/// Whether an order at `now` may exclude `name`. A name that the valid
/// certificate covers stays until the renewal is overdue: its failure may pass.
#[must_use]
pub(crate) fn may_be_excluded(record: &Record, name: &Identifier, now: Timestamp) -> bool {
    let issued = record.issued.as_ref();
    let serving = issued.filter(|issued| issued.facts.not_after > now);
    let Some(issued) = serving.filter(|issued| issued.facts.identifiers.contains(name)) else {
        return true;
    };
    let grace = issued.facts.lifetime() / OVERDUE_PART;
    let renewal = issued.renewal.as_ref();
    renewal.is_some_and(|renewal| due(issued, renewal) + grace <= now)
}

fn without(record: &Record, excluded: impl Fn(&Identifier) -> bool) -> BTreeSet<Identifier> {
    let names = record.identifiers.iter();
    names.filter(|name| !excluded(name)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::certificate::Facts;
    use crate::fingerprint::Fingerprint;
    use crate::lineage::Lineage;
    use crate::random::SeededRandom;
    use crate::record::{Excluded, Failures, Generation, Renewal};
    use crate::renew::decide::{Next, Plan, delayed_until, next};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn name(number: usize) -> Identifier {
        Identifier::parse(&format!("n{number}.example.com")).unwrap()
    }

    /// Three names are wanted; the first is excluded until `retry_at`.
    fn record(retry_at: Option<Timestamp>) -> Record {
        let names: BTreeSet<_> = (0..3).map(name).collect();
        let mut record = Record::new(Lineage::of(&name(0)), names, "https://ca".into());
        record.excluded = Some(Excluded {
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
            deploy_at: None,
            instead_of: None,
            terms: None,
        });
        record
    }

    #[test]
    fn excluded_name_is_retried_after_backoff_and_does_not_delay_the_renewal() {
        let random = SeededRandom::new(1);
        let at = NOW + Duration::from_secs(600);
        let mut record = record(Some(at));
        assert_eq!(next(&record, NOW, &random), Next::Wait(at));
        assert_eq!(delayed_until(&record, NOW), None);
        let Next::Issue(Plan {
            names,
            only_excluded,
            replaces,
            ..
        }) = next(&record, at, &random)
        else {
            panic!("it is time");
        };
        assert!(only_excluded);
        assert_eq!((names.len(), replaces), (3, None), "another set");

        // A renewal that is due meanwhile orders the other names.
        let due = NOW + DAY * 60;
        record.excluded.as_mut().unwrap().tries.retry_at = Some(due + DAY);
        let Next::Issue(Plan {
            names,
            only_excluded,
            replaces,
            ..
        }) = next(&record, due, &random)
        else {
            panic!("it is due");
        };
        assert!(!only_excluded);
        assert_eq!((names.len(), replaces.as_deref()), (2, Some("a.b")));
    }

    #[test]
    fn served_name_is_not_excluded_before_the_renewal_is_overdue() {
        let record = record(None);
        let (due, late) = (NOW + DAY * 60, NOW + DAY * 65);
        assert!(may_be_excluded(&record, &name(0), NOW));
        assert!(!may_be_excluded(&record, &name(1), due));
        assert!(may_be_excluded(&record, &name(1), late));
        let expired = NOW + DAY * 91;
        assert!(may_be_excluded(&record, &name(1), expired));
    }

    #[test]
    fn missing_name_is_ordered_at_once_without_exclusions() {
        let mut record = record(None);
        record.excluded = None;
        let Next::Issue(Plan {
            only_excluded,
            names,
            ..
        }) = next(&record, NOW, &SeededRandom::new(1))
        else {
            panic!("a name is missing");
        };
        assert_eq!((only_excluded, names.len()), (false, 3));
    }

    proptest! {
        #[test]
        fn order_names_are_never_empty_or_unwanted(
            wanted in prop::collection::btree_set(0_usize..6, 1..6),
            out in prop::collection::btree_set(0_usize..6, 0..6),
            failed in prop::collection::btree_set(0_usize..6, 0..6),
            ahead in any::<bool>(),
        ) {
            let mut record = record(ahead.then_some(NOW + DAY));
            record.identifiers = wanted.into_iter().map(name).collect();
            let names = out.into_iter().map(|number| (name(number), "no".to_owned()));
            record.excluded.as_mut().unwrap().names = names.collect();
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
