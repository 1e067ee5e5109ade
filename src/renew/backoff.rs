//! The pause after a failed order or deployment, by the kind of failure. It
//! never sleeps and sends nothing.

use std::time::Duration;

use super::policy::{
    CLOCK_ALARM, LATE_ORDER_PAUSE, LATE_PART, LOCAL_PAUSE, LONGEST_LOCAL_PAUSE, LONGEST_RATE_LIMIT,
    ORDER_PAUSES, RATE_LIMIT_PAUSE, REFUSED_PAUSE, SHORTEST_RATE_LIMIT, UNREACHABLE_PAUSE,
};
use crate::certificate::Facts;
use crate::random::Random;
use crate::record::Failures;
use crate::time::Timestamp;

/// The kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The CA sent `Retry-After` or a rate limit.
    RateLimited {
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The CA sent no usable answer. It does not count against the certificate.
    Unreachable,
    /// A name failed its validation.
    Validation,
    /// The CA refused by policy, CAA or account: a retry soon is useless.
    Refused,
    /// A failure on our side: the disk, the key.
    Internal,
    /// The CA signed a certificate that cannot be used, and counts it.
    Unusable,
}

/// The failures to store after one more failed order of `kind`.
#[must_use]
pub(crate) fn after_failure(
    failures: &Failures,
    kind: FailureKind,
    message: String,
    facts: Option<&Facts>,
    now: Timestamp,
    random: &dyn Random,
) -> Failures {
    let counted = matches!(
        kind,
        FailureKind::Validation
            | FailureKind::Refused
            | FailureKind::Internal
            | FailureKind::Unusable
    );
    let count = failures.count.saturating_add(u32::from(counted));
    let pause = match kind {
        // Bounded, so that no `Retry-After` stops renewal for good.
        FailureKind::RateLimited { retry_after } => retry_after
            .unwrap_or(RATE_LIMIT_PAUSE)
            .clamp(SHORTEST_RATE_LIMIT, LONGEST_RATE_LIMIT),
        FailureKind::Unreachable => spread(UNREACHABLE_PAUSE, 20, random),
        FailureKind::Validation | FailureKind::Internal | FailureKind::Unusable => {
            spread(order_pause(count, facts, now), 10, random)
        }
        FailureKind::Refused => spread(REFUSED_PAUSE, 10, random),
    };
    Failures {
        count,
        retry_at: Some(now + pause),
        by_retry_after: matches!(kind, FailureKind::RateLimited { .. }),
        is_signed: kind == FailureKind::Unusable,
        since: failures.since.or(Some(now)),
        noted: Some(now),
        last: Some(message),
    }
}

/// The failures to store after one more failed deployment, which should recover soon
/// after its cause.
#[must_use]
pub(crate) fn after_deployment_failure(
    failures: &Failures,
    message: String,
    now: Timestamp,
) -> Failures {
    Failures {
        count: failures.count.saturating_add(1),
        retry_at: Some(now + local_pause(failures.count)),
        by_retry_after: false,
        is_signed: false,
        since: failures.since.or(Some(now)),
        noted: Some(now),
        last: Some(message),
    }
}

/// The pause after a failure that costs no CA anything, and follows `earlier` others.
#[must_use]
pub(crate) fn local_pause(earlier: u32) -> Duration {
    doubled(LOCAL_PAUSE, earlier, LONGEST_LOCAL_PAUSE)
}

/// `pause`, doubled `times`, and at most `longest`.
pub(super) fn doubled(pause: Duration, times: u32, longest: Duration) -> Duration {
    pause.saturating_mul(1 << times.min(16)).min(longest)
}

/// The end of the pause, while it lasts. A pause that is longer than any, or
/// that begins in the future, was stored by a wrong clock and is ignored.
pub(super) fn pause_end(failures: &Failures, now: Timestamp) -> Option<Timestamp> {
    let retry_at = failures
        .retry_at
        .filter(|_| !is_from_the_future(failures.noted, now));
    retry_at.filter(|at| *at > now && *at <= now + LONGEST_RATE_LIMIT)
}

/// Whether the clock that wrote `noted` was ahead of the one that shows `now`.
pub(super) fn is_from_the_future(noted: Option<Timestamp>, now: Timestamp) -> bool {
    noted.is_some_and(|noted| noted > now + CLOCK_ALARM)
}

/// The pause after `count` failures; shorter when little lifetime is left.
fn order_pause(count: u32, facts: Option<&Facts>, now: Timestamp) -> Duration {
    let index = (count.max(1) - 1) as usize;
    let pause = ORDER_PAUSES[index.min(ORDER_PAUSES.len() - 1)];
    let late = |facts: &Facts| facts.not_after.since(now) < facts.lifetime() / LATE_PART;
    match facts.is_some_and(late) {
        true => pause.min(LATE_ORDER_PAUSE),
        false => pause,
    }
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

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn pause_end_ignores_pause_that_begins_in_the_future() {
        let now = Timestamp::from_seconds(1_800_000_000);
        let by_a_clock = |ahead: Duration| {
            after_deployment_failure(&Failures::default(), "no".into(), now + ahead)
        };
        let held = |failures: &Failures| pause_end(failures, now).is_some();
        assert!(held(&by_a_clock(Duration::ZERO)));
        assert!(held(&by_a_clock(5 * MINUTE)), "within the tolerance");
        for wrong in [HOUR, DAY] {
            assert!(!held(&by_a_clock(wrong)), "{wrong:?}");
        }
        // Records of earlier versions carry no date.
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
    fn after_failure_pauses_by_kind() {
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
        assert_eq!((limited.count, limited.by_retry_after), (5, true));
        assert_eq!(limited.retry_at, Some(START + Duration::from_secs(90)));
        let bare = FailureKind::RateLimited { retry_after: None };
        let bare = after_failure(&failures, bare, "slow down".into(), None, START, &random);
        assert_eq!(bare.retry_at, Some(START + HOUR));
        let refused = FailureKind::Refused;
        let refused = after_failure(&failures, refused, "never".into(), None, START, &random);
        let pause = refused.retry_at.unwrap().since(START).as_secs_f64();
        assert!((pause / 86_400.0 - 1.0).abs() <= 0.1, "{pause}");
        // With less than a quarter of the lifetime left, no pause lasts a day.
        let facts = |left: Duration| Facts {
            identifiers: std::collections::BTreeSet::new(),
            not_before: START + left - 90 * DAY,
            not_after: START + left,
            fingerprint: crate::fingerprint::Fingerprint::of(b""),
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
        // An outage does not count against the certificate.
        let down = FailureKind::Unreachable;
        let down = after_failure(&failures, down, "down".into(), None, START, &random);
        assert_eq!((down.count, down.by_retry_after), (5, false));
    }
}
