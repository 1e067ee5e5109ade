//! Two clocks that disagree: by which one it is decided whether a certificate is
//! due. A certificate must not be thought expired because ours is years ahead,
//! and not be thought fresh because ours is behind; and a CA whose clock is wrong
//! must not make us order either.

use std::time::Duration;

use super::decide::{due, is_wanted};
use crate::record::Record;
use crate::time::Timestamp;

/// Clocks that are this near each other agree.
const AGREEMENT: Duration = Duration::from_secs(30);
/// How far a CA's clock may be ahead of ours and be believed, where nothing else
/// shows that ours is behind.
const BELIEVED_AHEAD: Duration = Duration::from_secs(86_400);

/// What the newest certificate of a record says of the time: both lie in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// From when on it holds, by the CA's clock.
    pub not_before: Timestamp,
    /// When it was stored.
    pub stored: Timestamp,
}

impl Evidence {
    /// `None` while nothing is issued.
    #[must_use]
    pub fn of(record: &Record) -> Option<Self> {
        record.issued.as_ref().map(|issued| Self {
            not_before: issued.facts.not_before,
            stored: issued.at,
        })
    }
}

/// The instant to decide at, when our clock shows `ours` and the CA's `theirs`.
/// Where nothing is issued no order can be needless, and what the CA signs is
/// good by its own clock: it is believed.
#[must_use]
pub fn decided_at(evidence: Option<Evidence>, ours: Timestamp, theirs: Timestamp) -> Timestamp {
    if ours.since(theirs).max(theirs.since(ours)) <= AGREEMENT {
        return ours;
    }
    let Some(Evidence { not_before, stored }) = evidence else {
        return theirs;
    };
    if theirs < ours {
        // A CA that has not yet come to the day of its own certificate is wrong.
        return if theirs < not_before { ours } else { theirs };
    }
    // It was stored in the past, whatever our clock shows.
    let is_behind = ours + AGREEMENT < stored.min(not_before);
    if is_behind || theirs.since(ours) <= BELIEVED_AHEAD {
        theirs
    } else {
        ours
    }
}

/// Whether an order for `record` is due at `at`, for its time or for what it
/// lacks.
///
/// # Errors
/// When it will be.
pub fn is_due_at(record: &Record, at: Timestamp) -> Result<(), Timestamp> {
    let Some(issued) = record.issued.as_ref().filter(|_| record.order.is_none()) else {
        return Ok(());
    };
    if !is_wanted(record, issued) || record.quarantine.is_some() {
        return Ok(());
    }
    let end = issued.facts.not_after;
    let renewal = issued.renewal.as_ref();
    let due = renewal.map_or(end, |renewal| due(issued, renewal).min(end));
    if due <= at { Ok(()) } else { Err(due) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{Facts, Fingerprint};
    use crate::identifier::{Identifier, Lineage};
    use crate::record::{Generation, Issued, Renewal};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    const TEN_YEARS: Duration = Duration::from_secs(3652 * 86_400);

    /// 30 days old, of 90, to be renewed after 60.
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
            handover_at: None,
            instead_of: None,
        });
        record
    }

    #[test]
    fn a_clock_that_is_ahead_makes_nothing_due() {
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
    fn a_clock_that_is_behind_makes_nothing_fresh() {
        let record = record();
        for behind in [HOUR, DAY, DAY * 61, TEN_YEARS] {
            let at = decided_at(Evidence::of(&record), NOW - behind, NOW);
            assert_eq!(at, NOW, "{behind:?}");
        }
    }

    #[test]
    fn a_ca_whose_clock_is_wrong_makes_nothing_due_and_nothing_wait_for_ever() {
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
    fn what_is_missing_is_due_whatever_the_time() {
        let mut record = record();
        let other = Identifier::parse("www.example.com").unwrap();
        record.identifiers.insert(other);
        assert_eq!(is_due_at(&record, NOW - TEN_YEARS), Ok(()));
    }
}
