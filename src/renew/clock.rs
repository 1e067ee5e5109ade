//! Clock skew: which of two clocks decides whether a certificate is due. A clock
//! of ours that is years ahead must not make a certificate expired, one that is
//! behind must not make it fresh, and a CA's wrong clock must not cause an order.

use super::decide::is_wanted;
use super::policy::{CLOCK_TOLERANCE, LONGEST_CLOCK_LEAD};
use super::window::due;
use crate::record::Record;
use crate::time::Timestamp;

/// Two instants of the newest certificate that lie in the past for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// The start of its validity, by the CA's clock.
    pub not_before: Timestamp,
    /// When it was stored, by our clock.
    pub stored: Timestamp,
}

impl Evidence {
    /// `None` while nothing is issued.
    #[must_use]
    pub(crate) fn of(record: &Record) -> Option<Self> {
        record.issued.as_ref().map(|issued| Self {
            not_before: issued.facts.not_before,
            stored: issued.at,
        })
    }
}

/// The instant to decide at, when our clock shows `ours` and the CA's `theirs`.
/// Without an issued certificate the CA's clock wins: no order is needless then,
/// and the CA dates what it signs by its own clock.
#[must_use]
pub(crate) fn decided_at(
    evidence: Option<Evidence>,
    ours: Timestamp,
    theirs: Timestamp,
) -> Timestamp {
    if ours.since(theirs).max(theirs.since(ours)) <= CLOCK_TOLERANCE {
        return ours;
    }
    let Some(Evidence { not_before, stored }) = evidence else {
        return theirs;
    };
    if theirs < ours {
        // A CA's clock before the CA's own certificate is wrong.
        return if theirs < not_before { ours } else { theirs };
    }
    let is_behind = ours + CLOCK_TOLERANCE < stored.min(not_before);
    if is_behind || theirs.since(ours) <= LONGEST_CLOCK_LEAD {
        theirs
    } else {
        ours
    }
}

/// Whether an order for `record` is due at `at`.
///
/// # Errors
/// The instant at which it will be due.
pub(crate) fn is_due_at(record: &Record, at: Timestamp) -> Result<(), Timestamp> {
    let Some(issued) = record.issued.as_ref().filter(|_| record.order.is_none()) else {
        return Ok(());
    };
    if !is_wanted(record, issued) || record.excluded.is_some() {
        return Ok(());
    }
    let end = issued.facts.not_after;
    let renewal = issued.renewal.as_ref();
    let due = renewal.map_or(end, |renewal| due(issued, renewal).min(end));
    if due <= at { Ok(()) } else { Err(due) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::certificate::Facts;
    use crate::fingerprint::Fingerprint;
    use crate::identifier::Identifier;
    use crate::lineage::Lineage;
    use crate::record::{Generation, Issued, Renewal};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    const TEN_YEARS: Duration = Duration::from_secs(3652 * 86_400);

    /// A certificate of 90 days, 30 days old, to be renewed after 60.
    fn record() -> Record {
        let name = Identifier::parse("example.com").unwrap();
        let mut record = Record::new(Lineage::of(&name), [name].into(), "https://ca".into());
        let begun = NOW - DAY * 30;
        record.issued = Some(Issued {
            generation: Generation(1),
            facts: Facts {
                identifiers: record.identifiers.clone(),
                not_before: begun,
                not_after: begun + DAY * 90,
                fingerprint: Fingerprint::of(b""),
                renewal_id: None,
            },
            ca: record.ca.clone(),
            at: begun,
            renewal: Some(Renewal {
                at: begun + DAY * 60,
                window: None,
                refresh_at: None,
                asked: None,
            }),
            renewable_from: None,
            early: 0,
            deploy_at: None,
            instead_of: None,
        });
        record
    }

    #[test]
    fn clock_ahead_makes_nothing_due() {
        let record = record();
        for ahead in [HOUR, DAY, DAY * 31, TEN_YEARS] {
            let at = decided_at(Evidence::of(&record), NOW + ahead, NOW);
            assert_eq!(at, NOW);
            assert_eq!(is_due_at(&record, at), Err(NOW + DAY * 30));
        }
        let at = decided_at(Evidence::of(&record), NOW + DAY * 31, NOW + DAY * 31);
        assert_eq!(is_due_at(&record, at), Ok(()));
    }

    #[test]
    fn clock_behind_makes_nothing_fresh() {
        let record = record();
        for behind in [HOUR, DAY, DAY * 61, TEN_YEARS] {
            let at = decided_at(Evidence::of(&record), NOW - behind, NOW);
            assert_eq!(at, NOW, "{behind:?}");
        }
    }

    #[test]
    fn wrong_ca_clock_makes_nothing_due_and_delays_nothing_for_ever() {
        let record = record();
        for wrong in [DAY * 2, TEN_YEARS] {
            assert_eq!(
                decided_at(Evidence::of(&record), NOW, NOW + wrong),
                NOW,
                "{wrong:?}"
            );
        }
        let late = NOW + DAY * 40;
        assert_eq!(
            decided_at(Evidence::of(&record), late, late - TEN_YEARS),
            late
        );
        let near = NOW + Duration::from_secs(30);
        assert_eq!(decided_at(Evidence::of(&record), NOW, near), NOW);
    }

    #[test]
    fn missing_name_is_due_at_any_time() {
        let mut record = record();
        let other = Identifier::parse("www.example.com").unwrap();
        record.identifiers.insert(other);
        assert_eq!(is_due_at(&record, NOW - TEN_YEARS), Ok(()));
    }
}
