//! How long to leave the CA alone after a failure, by its kind.

use std::time::Duration;

use crate::certificate::Facts;
use crate::random::Random;
use crate::record::Failures;
use crate::time::Timestamp;

const MINUTE: Duration = Duration::from_secs(60);
const HANDOVER_PAUSE: Duration = Duration::from_secs(15);
const LONGEST_HANDOVER_PAUSE: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Let's Encrypt counts certificates over a week.
const LONGEST_LIMIT: Duration = Duration::from_secs(8 * 86_400);
/// Clocks of one fleet that differ by no more are thought to agree.
const TOLERANCE: Duration = Duration::from_secs(300);

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The CA said when to come back, or that we ask too often.
    RateLimited {
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// No usable answer. Says nothing about the certificate.
    Unreachable,
    /// Control of a name was not proven.
    Validation,
    /// Policy, CAA, account: trying again changes nothing soon.
    Refused,
    /// Our own side: disk, key, an unusable certificate.
    Internal,
}

/// The failures to store after one more of `kind`.
#[must_use]
pub fn after_failure(
    failures: &Failures,
    kind: FailureKind,
    message: String,
    facts: Option<&Facts>,
    now: Timestamp,
    random: &dyn Random,
) -> Failures {
    let counted = matches!(
        kind,
        FailureKind::Validation | FailureKind::Refused | FailureKind::Internal
    );
    let count = failures.count.saturating_add(u32::from(counted));
    let pause = match kind {
        // Never earlier than asked for, within the longest window of any CA's
        // limits: no CA stops us for good.
        FailureKind::RateLimited { retry_after } => {
            retry_after.unwrap_or(HOUR).clamp(MINUTE, LONGEST_LIMIT)
        }
        FailureKind::Unreachable => spread(2 * MINUTE, 20, random),
        FailureKind::Validation | FailureKind::Internal => {
            spread(patience(count, facts, now), 10, random)
        }
        FailureKind::Refused => spread(DAY, 10, random),
    };
    Failures {
        count,
        retry_at: Some(now + pause),
        asked_to_wait: matches!(kind, FailureKind::RateLimited { .. }),
        since: failures.since.or(Some(now)),
        noted: Some(now),
        last: Some(message),
    }
}

/// The hand-over's failures after one more: 15 s, doubling up to 5 minutes. It
/// costs no CA anything, and it shall heal soon after its cause is gone.
#[must_use]
pub fn after_handover_failure(failures: &Failures, message: String, now: Timestamp) -> Failures {
    let doublings = failures.count.min(5);
    let pause = (HANDOVER_PAUSE * (1 << doublings)).min(LONGEST_HANDOVER_PAUSE);
    Failures {
        count: failures.count.saturating_add(1),
        retry_at: Some(now + pause),
        asked_to_wait: false,
        since: failures.since.or(Some(now)),
        noted: Some(now),
        last: Some(message),
    }
}

/// A pause that is not over. One that is longer than any, or that begins later than
/// now, was written by a clock that was wrong.
pub(super) fn ahead(failures: &Failures, now: Timestamp) -> Option<Timestamp> {
    let retry_at = failures
        .retry_at
        .filter(|_| !is_of_the_future(failures.noted, now));
    retry_at.filter(|at| *at > now && *at <= now + LONGEST_LIMIT)
}

/// Whether it was noted by a clock that is ahead of the one that shows `now`.
pub(super) fn is_of_the_future(noted: Option<Timestamp>, now: Timestamp) -> bool {
    noted.is_some_and(|noted| noted > now + TOLERANCE)
}

/// 1, 10, 100 minutes, then a day; six hours when a quarter of the life is left.
fn patience(count: u32, facts: Option<&Facts>, now: Timestamp) -> Duration {
    let pause = match count {
        0 | 1 => MINUTE,
        2 => 10 * MINUTE,
        3 => 100 * MINUTE,
        _ => DAY,
    };
    let urgent = facts.is_some_and(|facts| facts.not_after.since(now) < facts.lifetime() / 4);
    if urgent { pause.min(6 * HOUR) } else { pause }
}

/// `pause` give or take `percent`.
pub(crate) fn spread(pause: Duration, percent: u32, random: &dyn Random) -> Duration {
    let part = pause * percent / 100;
    let width = u64::try_from(part.as_millis())
        .unwrap_or(0)
        .saturating_mul(2);
    pause - part + Duration::from_millis(random.below(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_that_begins_later_than_now_is_not_believed() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let by_a_clock = |ahead: Duration| {
            after_handover_failure(&Failures::default(), "no".into(), now + ahead)
        };
        let held = |failures: &Failures| ahead(failures, now).is_some();
        assert!(held(&by_a_clock(Duration::ZERO)));
        assert!(held(&by_a_clock(5 * MINUTE)), "they differ a little");
        for wrong in [HOUR, DAY] {
            assert!(!held(&by_a_clock(wrong)), "{wrong:?}");
        }
        // As it was written before that was noted.
        let undated = Failures {
            noted: None,
            ..by_a_clock(HOUR)
        };
        assert!(held(&undated));
        let longer_than_any = Failures {
            retry_at: Some(now + 9 * DAY),
            ..undated
        };
        assert!(!held(&longer_than_any));
    }
    use crate::random::SeededRandom;

    const START: Timestamp = Timestamp::from_seconds(1_800_000_000);

    #[test]
    fn failures_back_off_by_their_kind() {
        let (random, mut failures) = (SeededRandom::new(6), Failures::default());
        let mut pauses = Vec::new();
        for _ in 0..5 {
            failures = after_failure(
                &failures,
                FailureKind::Validation,
                "no".into(),
                None,
                START,
                &random,
            );
            pauses.push(failures.retry_at.unwrap().since(START).as_secs_f64() / 60.0);
        }
        for (pause, wanted) in pauses.iter().zip([1.0, 10.0, 100.0, 1440.0, 1440.0]) {
            assert!((pause / wanted - 1.0).abs() <= 0.1, "{pauses:?}");
        }
        let limited = FailureKind::RateLimited {
            retry_after: Some(Duration::from_secs(90)),
        };
        let limited = after_failure(&failures, limited, "slow down".into(), None, START, &random);
        assert_eq!((limited.count, limited.asked_to_wait), (5, true));
        assert_eq!(limited.retry_at, Some(START + Duration::from_secs(90)));
        let unsaid = FailureKind::RateLimited { retry_after: None };
        let unsaid = after_failure(&failures, unsaid, "slow down".into(), None, START, &random);
        assert_eq!(unsaid.retry_at, Some(START + HOUR));
        let refused = FailureKind::Refused;
        let refused = after_failure(&failures, refused, "never".into(), None, START, &random);
        let pause = refused.retry_at.unwrap().since(START).as_secs_f64();
        assert!((pause / 86_400.0 - 1.0).abs() <= 0.1, "{pause}");
        // With less than a quarter of the life left no validation waits for a day.
        let facts = |left: Duration| Facts {
            identifiers: std::collections::BTreeSet::new(),
            not_before: START + left - 90 * DAY,
            not_after: START + left,
            fingerprint: crate::certificate::Fingerprint::of(b""),
            renewal_id: None,
        };
        let pause = |left: Duration| {
            let (kind, facts) = (FailureKind::Validation, facts(left));
            let failed = after_failure(&failures, kind, "no".into(), Some(&facts), START, &random);
            failed.retry_at.unwrap().since(START).as_secs_f64() / 3600.0
        };
        let (late, early) = (pause(22 * DAY), pause(23 * DAY));
        assert!((late / 6.0 - 1.0).abs() <= 0.1, "{late}");
        assert!((early / 24.0 - 1.0).abs() <= 0.1, "{early}");
        // Whose fault an outage is does not depend on how often it is met.
        let silent = FailureKind::Unreachable;
        let silent = after_failure(&failures, silent, "down".into(), None, START, &random);
        assert_eq!((silent.count, silent.asked_to_wait), (5, false));
    }
}
