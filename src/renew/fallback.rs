//! The CA of an order: the first one, or the fallback CA when the first does not
//! issue. Without a configured fallback there is only the first; each renewal
//! starts with the first again.

use super::backoff::pause_end;
use super::policy::{FALLBACK_DELAY, FALLBACK_FAILURES, LONGEST_UNREACHABLE_PAUSE};
use super::window::critical;
use crate::record::{Fallback, Record};
use crate::time::Timestamp;

/// The CA of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The configured CA.
    First,
    /// The fallback CA.
    Fallback,
}

impl Choice {
    /// The directory URL of that CA.
    #[must_use]
    pub(crate) fn ca(self, record: &Record) -> &str {
        match (self, &record.fallback) {
            (Self::Fallback, Some(fallback)) => &fallback.ca,
            _ => &record.ca,
        }
    }
}

/// Whether a pause until `at` is plausible: an unreachable CA causes a pause of
/// minutes, and a longer one was stored by a wrong clock.
fn is_plausible(record: &Record, at: Timestamp, now: Timestamp) -> bool {
    let failures = &record.failures;
    let counted = failures.count > 0 || failures.by_retry_after || failures.last.is_none();
    counted || at <= now + LONGEST_UNREACHABLE_PAUSE
}

/// The CA of an order that is due at `now`.
///
/// # Errors
/// The end of the backoff, when no CA may be tried yet.
pub(crate) fn choose(record: &Record, now: Timestamp) -> Result<Choice, Timestamp> {
    let first = pause_end(&record.failures, now).filter(|at| is_plausible(record, *at, now));
    if let Some(fallback) = &record.fallback {
        let pause = pause_end(&fallback.failures, now);
        let opens = opens(record, fallback, record.failures.since, now);
        match (opens.filter(|opens| *opens > now).max(pause), opens, first) {
            (None, Some(_), _) => return Ok(Choice::Fallback),
            (Some(until), Some(_), Some(first)) => return Err(first.min(until)),
            _ => {}
        }
    }
    first.map_or(Ok(Choice::First), Err)
}

/// Whether an order goes to the fallback CA when the first CA has been
/// unreachable since `since`.
#[must_use]
pub(crate) fn opens_fallback(record: &Record, since: Timestamp, now: Timestamp) -> bool {
    let Some(fallback) = &record.fallback else {
        return false;
    };
    if pause_end(&fallback.failures, now).is_some() {
        return false;
    }
    match &record.issued {
        Some(issued) if issued.facts.not_after > now => critical(&issued.facts) <= now,
        _ => {
            let tried = record.failures.since.map_or(since, |at| at.min(since));
            opens(record, fallback, Some(tried), now).is_some_and(|opens| opens <= now)
        }
    }
}

/// The instant from which the fallback CA may be used although the first CA is
/// reachable; `None` while a usable certificate is left, or nothing was tried.
fn opens(
    record: &Record,
    fallback: &Fallback,
    tried: Option<Timestamp>,
    now: Timestamp,
) -> Option<Timestamp> {
    // A pending order is finished at its own CA.
    let pending = record.order.as_ref();
    if pending.is_some_and(|order| order.ca == fallback.ca) {
        return Some(now);
    }
    let issued = record.issued.as_ref();
    if issued.is_some_and(|issued| issued.facts.not_after > now) {
        return None;
    }
    if record.failures.count >= FALLBACK_FAILURES {
        return Some(now);
    }
    // A date further ahead than the delay came from a wrong clock; the attempt
    // it dates did happen.
    tried.map(|at| {
        if at > now + FALLBACK_DELAY {
            now
        } else {
            at + FALLBACK_DELAY
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::certificate::Facts;
    use crate::fingerprint::Fingerprint;
    use crate::identifier::Identifier;
    use crate::lineage::Lineage;
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

    /// With a certificate of 90 days that expires after `left`.
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
            deploy_at: None,
            instead_of: None,
            terms: None,
        });
        record
    }

    #[test]
    fn outage_opens_fallback_when_a_sixth_is_left_or_after_half_an_hour_without_certificate() {
        assert!(!opens_fallback(&with(DAY * 16), NOW - DAY, NOW));
        assert!(opens_fallback(&with(DAY * 14), NOW, NOW));
        assert!(!opens_fallback(&record(), NOW - MINUTE * 29, NOW));
        assert!(opens_fallback(&record(), NOW - MINUTE * 30, NOW));
        let mut alone = with(DAY);
        alone.fallback = None;
        assert!(!opens_fallback(&alone, NOW - DAY, NOW));
        let mut failed = with(DAY);
        failed.fallback.as_mut().unwrap().failures.retry_at = Some(NOW + MINUTE);
        assert!(!opens_fallback(&failed, NOW - DAY, NOW), "its own backoff");
    }

    #[test]
    fn three_failures_open_fallback_without_usable_certificate() {
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
    fn attempt_dated_by_wrong_clock_opens_fallback() {
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
        /// No CA is chosen during its own pause, the fallback CA never while a
        /// usable certificate is left, and one CA as soon as either may be tried.
        #[test]
        fn choose_respects_the_pause_of_each_ca(
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
                    prop_assert!(count >= FALLBACK_FAILURES || since.is_some());
                }
                Err(until) => {
                    prop_assert!(until > NOW && waits(first) && until <= first.unwrap());
                    prop_assert!(usable || !named || count < FALLBACK_FAILURES || waits(second));
                }
            }
        }
    }
}
