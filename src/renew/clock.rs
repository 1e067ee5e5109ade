//! The rule for the clock. Each reply of a CA shows its clock beside ours, and either may
//! be wrong.
//!
//! - A pass decides by [`decided_at`]: by our clock where the two agree, else by the CA's.
//!   Ours decides also where the CA's clock is behind the newest certificate, or more than
//!   a day ahead while the certificate does not show that ours is behind. The reply is that
//!   of the first CA, or without a usable one that of the fallback CA; `PassClock` in
//!   `manage::clock` chooses it.
//! - Before an order replaces a certificate, the pass reads the clock of the CA it goes to
//!   and decides again, so that a clock of ours that is ahead orders nothing early.
//! - A new certificate is dated by [`signed_at`], a rate limit by the CA's own clock.
//! - Clocks that are more than five minutes apart raise an alarm. After a start, a jump or
//!   a suspend the supervisor probes the CAs for their time, and decides again.

use super::policy::{CLOCK_ALARM, CLOCK_TOLERANCE, LONGEST_BACKDATING, LONGEST_CLOCK_LEAD};
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
    let is_wrong = |Evidence { not_before, stored }| match theirs < ours {
        true => theirs < not_before,
        false => {
            let is_ours_behind = ours + CLOCK_TOLERANCE < stored.min(not_before);
            theirs.since(ours) > LONGEST_CLOCK_LEAD && !is_ours_behind
        }
    };
    if ours.apart(theirs) <= CLOCK_TOLERANCE || evidence.is_some_and(is_wrong) {
        ours
    } else {
        theirs
    }
}

/// When a certificate that is valid from `not_before` was signed: by the CA's clock, unless
/// only our clock fits its first day. The date of a reply may come from a wrong proxy, so
/// [`decided_at`] chooses if neither clock fits.
#[must_use]
pub(crate) fn signed_at(
    evidence: Option<Evidence>,
    not_before: Option<Timestamp>,
    ours: Timestamp,
    theirs: Timestamp,
) -> Timestamp {
    let fits = |clock: Timestamp| {
        not_before.is_some_and(|begin| {
            begin <= clock + CLOCK_ALARM && clock.since(begin) <= LONGEST_BACKDATING
        })
    };
    match [ours, theirs].map(fits) {
        [_, true] => theirs,
        [true, false] => ours,
        [false, false] => decided_at(evidence, ours, theirs),
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
    use crate::record::{Generation, Issued, Renewal};
    use crate::renew::decide::is_due;

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
            terms: None,
        });
        record
    }

    #[test]
    fn clock_ahead_makes_nothing_due() {
        let record = record();
        for ahead in [HOUR, DAY, DAY * 31, TEN_YEARS] {
            let at = decided_at(Evidence::of(&record), NOW + ahead, NOW);
            assert_eq!(at, NOW);
            assert!(!is_due(&record, at));
        }
        let at = decided_at(Evidence::of(&record), NOW + DAY * 31, NOW + DAY * 31);
        assert!(is_due(&record, at));
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
        assert!(is_due(&record, NOW - TEN_YEARS));
    }

    #[test]
    fn signed_at_follows_the_clock_that_fits_the_certificate() {
        // Let's Encrypt's backdating, a CA that dates from midnight, and a signer slightly ahead.
        for begin in [NOW - HOUR, NOW - HOUR * 20, NOW + Duration::from_secs(2)] {
            for wrong in [DAY * 3, DAY * 40, TEN_YEARS] {
                for wrong in [NOW + wrong, NOW - wrong] {
                    let signed = [(wrong, NOW), (NOW, wrong)]
                        .map(|(ours, theirs)| signed_at(None, Some(begin), ours, theirs));
                    assert_eq!(signed, [NOW; 2], "{begin}: {wrong}");
                }
            }
        }
        // Backdated by an hour: a clock that is an hour behind must not lengthen a lifetime.
        assert_eq!(signed_at(None, Some(NOW - HOUR), NOW - HOUR, NOW), NOW);
        // A certificate that fits neither clock is dated by the CA's.
        let neither = Some(NOW - DAY * 80);
        assert_eq!(signed_at(None, neither, NOW - HOUR, NOW), NOW);
        assert_eq!(signed_at(None, None, NOW - HOUR, NOW), NOW);
        // The predecessor shows that the CA's date is years off.
        let evidence = Evidence::of(&record());
        for wrong in [NOW + TEN_YEARS, NOW - TEN_YEARS] {
            assert_eq!(signed_at(evidence, neither, NOW, wrong), NOW);
        }
    }
}
