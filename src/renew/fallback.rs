//! From which CA an order comes: of the first choice, or of the second when the
//! first does not issue. There is no second choice unless the owner names one,
//! and the next cycle begins with the first again.

use std::time::Duration;

use super::backoff::ahead;
use super::window::critical;
use crate::record::{Fallback, Record};
use crate::time::Timestamp;

/// Twice what is waited for a CA that was not to be reached.
const LONGEST_SILENCE: Duration = Duration::from_secs(300);

/// Failures of the first choice after which the second is asked, where nothing
/// usable is left.
const FAILURES: u32 = 3;
/// How long it is tried, whatever it fails with.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Which CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The one that the owner names.
    First,
    /// The one that stands in for it.
    Fallback,
}

impl Choice {
    /// Its directory URL.
    #[must_use]
    pub fn ca(self, record: &Record) -> &str {
        match (self, &record.fallback) {
            (Self::Fallback, Some(fallback)) => &fallback.ca,
            _ => &record.ca,
        }
    }
}

/// Whether a pause until `at` is one of those there are: a CA that was not to be
/// reached is left alone for minutes, and longer only by a clock that was wrong.
fn is_meant(record: &Record, at: Timestamp, now: Timestamp) -> bool {
    let failures = &record.failures;
    let counted = failures.count > 0 || failures.asked_to_wait || failures.last.is_none();
    counted || at <= now + LONGEST_SILENCE
}

/// From whom an order that is needed comes at `now`.
///
/// # Errors
/// Until when it waits: both have failed before, or there is but one.
pub fn choose(record: &Record, now: Timestamp) -> Result<Choice, Timestamp> {
    let first = ahead(&record.failures, now).filter(|at| is_meant(record, *at, now));
    if let Some(second) = &record.fallback {
        let held = ahead(&second.failures, now);
        let opens = opens(record, second, record.failures.since, now);
        match (opens.filter(|opens| *opens > now).max(held), opens, first) {
            (None, Some(_), _) => return Ok(Choice::Fallback),
            (Some(until), Some(_), Some(first)) => return Err(first.min(until)),
            _ => {}
        }
    }
    first.map_or(Ok(Choice::First), Err)
}

/// Whether an order that found the first choice silent since `since` goes to
/// the second.
#[must_use]
pub fn stands_in(record: &Record, since: Timestamp, now: Timestamp) -> bool {
    let Some(second) = &record.fallback else {
        return false;
    };
    if ahead(&second.failures, now).is_some() {
        return false;
    }
    match &record.issued {
        Some(issued) if issued.facts.not_after > now => critical(&issued.facts) <= now,
        _ => {
            let tried = record.failures.since.map_or(since, |at| at.min(since));
            opens(record, second, Some(tried), now).is_some_and(|opens| opens <= now)
        }
    }
}

/// From when on the second choice is asked though the first was not found
/// silent; `None` while there is something usable, or nothing was tried.
fn opens(
    record: &Record,
    second: &Fallback,
    tried: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    // What was begun there is finished there.
    let begun = record.order.as_ref();
    if begun.is_some_and(|order| order.ca == second.ca) {
        return Some(now);
    }
    let issued = record.issued.as_ref();
    if issued.is_some_and(|issued| issued.facts.not_after > now) {
        return None;
    }
    if record.failures.count >= FAILURES {
        return Some(now);
    }
    // What lies further ahead than any pause was written by a clock that was
    // wrong; that there was a try is true all the same.
    tried.map(|at| {
        if at > now + PATIENCE {
            now
        } else {
            at + PATIENCE
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::certificate::{Facts, Fingerprint};
    use crate::identifier::{Identifier, Lineage};
    use crate::record::{Generation, Issued};

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    fn record() -> Record {
        let name = Identifier::parse("example.com").unwrap();
        let mut record = Record::new(Lineage::of(&name), [name].into(), "https://first".into());
        record.fallback = Some(Fallback {
            ca: "https://second".into(),
            failures: Default::default(),
        });
        record
    }

    /// With a certificate of 90 days of which `left` is left.
    fn with(left: Duration) -> Record {
        let mut record = record();
        record.issued = Some(Issued {
            generation: Generation(1),
            facts: Facts {
                identifiers: record.identifiers.clone(),
                not_before: NOW + left - DAY * 90,
                not_after: NOW + left,
                fingerprint: Fingerprint::of(b""),
                renewal_id: None,
            },
            ca: record.ca.clone(),
            at: NOW,
            renewal: None,
            renewable_from: None,
            early: 0,
            handover_at: None,
            instead_of: None,
        });
        record
    }

    #[test]
    fn an_outage_counts_when_a_sixth_is_left_or_after_half_an_hour_without_any() {
        assert!(!stands_in(&with(DAY * 16), NOW - DAY, NOW));
        assert!(stands_in(&with(DAY * 14), NOW, NOW));
        assert!(!stands_in(&record(), NOW - MINUTE * 29, NOW));
        assert!(stands_in(&record(), NOW - MINUTE * 30, NOW));
        let mut alone = with(DAY);
        alone.fallback = None;
        assert!(!stands_in(&alone, NOW - DAY, NOW));
        let mut failed = with(DAY);
        failed.fallback.as_mut().unwrap().failures.retry_at = Some(NOW + MINUTE);
        assert!(!stands_in(&failed, NOW - DAY, NOW), "it has its own pause");
    }

    #[test]
    fn three_failures_count_where_nothing_is_usable() {
        let mut failed = record();
        assert_eq!(choose(&failed, NOW), Ok(Choice::First));
        failed.failures.retry_at = Some(NOW + DAY);
        failed.failures.since = Some(NOW - MINUTE);
        failed.failures.count = 2;
        assert_eq!(choose(&failed, NOW), Err(NOW + MINUTE * 29));
        failed.failures.count = 3;
        assert_eq!(choose(&failed, NOW), Ok(Choice::Fallback));
        let mut usable = with(DAY);
        usable.failures = failed.failures.clone();
        assert_eq!(choose(&usable, NOW), Err(NOW + DAY));
        let mut expired = with(Duration::ZERO);
        expired.failures = failed.failures;
        assert_eq!(choose(&expired, NOW), Ok(Choice::Fallback));
    }

    #[test]
    fn a_try_of_a_clock_that_was_wrong_is_long_ago() {
        let mut failed = record();
        failed.failures.since = Some(NOW + DAY * 3650);
        assert_eq!(choose(&failed, NOW), Ok(Choice::Fallback));
        failed.failures.since = Some(NOW + MINUTE);
        assert_eq!(choose(&failed, NOW), Ok(Choice::First));
    }

    fn instant() -> impl Strategy<Value = Option<Timestamp>> {
        let within = (-40_000_i64..40_000).prop_map(|s| Timestamp::from_seconds(NOW.seconds() + s));
        proptest::option::of(within)
    }

    proptest! {
        /// Whatever has failed and when: nobody is asked during their own pause,
        /// the second never while the first is to be trusted, and somebody is as
        /// soon as one of them may be.
        #[test]
        fn each_ca_has_its_own_pause(
            count in 0_u32..6, since in instant(), first in instant(), second in instant(),
            left in proptest::option::of(0_u64..7_776_000), named in any::<bool>(),
        ) {
            let mut record = left.map_or_else(record, |left| with(Duration::from_secs(left)));
            (record.failures.count, record.failures.since) = (count, since);
            record.failures.retry_at = first;
            record.fallback.as_mut().unwrap().failures.retry_at = second;
            if !named {
                record.fallback = None;
            }
            let usable = record.issued.as_ref().is_some_and(|i| i.facts.not_after > NOW);
            let waits = |at: Option<Timestamp>| at.is_some_and(|at| at > NOW);
            match choose(&record, NOW) {
                Ok(Choice::First) => prop_assert!(!waits(first)),
                Ok(Choice::Fallback) => {
                    prop_assert!(named && !usable && !waits(second));
                    prop_assert!(count >= FAILURES || since.is_some());
                }
                Err(until) => {
                    prop_assert!(until > NOW && waits(first) && until <= first.unwrap());
                    prop_assert!(usable || !named || count < FAILURES || waits(second));
                }
            }
        }
    }
}
