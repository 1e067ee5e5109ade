//! When an endpoint is looked at again after its verification, and how soon a server that
//! went back to another certificate is deployed to again. Nothing is connected to here.

use std::time::Duration;

use super::backoff::doubled;
use super::policy::{DRIFT_FORGOTTEN, DRIFT_PAUSE, LONGEST_DRIFT_PAUSE, SOONER_PART};
use crate::random::Random;
use crate::record::{Failures, Record};
use crate::time::Timestamp;

/// When an endpoint of `record` is looked at again; `None` without a certificate or an
/// endpoint. An instant that lies too far ahead was stored by a wrong clock.
#[must_use]
pub(crate) fn look_at(record: &Record, every: Duration, now: Timestamp) -> Option<Timestamp> {
    record.issued.as_ref()?;
    let each = record.served.values().map(|seen| {
        let at = seen.again.unwrap_or(seen.at + every);
        if at > now + every { now } else { at }
    });
    each.min()
}

/// The time until the next look, drawn so that many endpoints are not looked at together.
#[must_use]
pub(crate) fn pause(every: Duration, random: &dyn Random) -> Duration {
    let spread = u64::try_from((every / 5).as_millis()).unwrap_or(u64::MAX);
    every * 3 / 4 + Duration::from_millis(random.below(spread.saturating_add(1)))
}

/// The time until the next look at an endpoint that did not serve the certificate.
#[must_use]
pub(crate) fn sooner(every: Duration) -> Duration {
    every / SOONER_PART
}

/// Which of `count` names to send in a look at `now`: each in turn.
#[must_use]
pub(crate) fn turn(count: usize, every: Duration, now: Timestamp) -> usize {
    let round = now.seconds().unsigned_abs() / every.as_secs().max(1);
    let round = usize::try_from(round).unwrap_or_default();
    round.checked_rem(count).unwrap_or_default()
}

/// The redeployments to store after one more, since an endpoint `found` another
/// certificate. The next one waits longer each time, so that a server that is restored
/// again and again is not reloaded as often.
#[must_use]
pub(crate) fn after_drift(drift: &Failures, found: String, now: Timestamp) -> Failures {
    let recent = is_drifting(drift, now);
    let earlier = if recent { drift.count } else { 0 };
    Failures {
        count: earlier.saturating_add(1),
        retry_at: Some(now + doubled(DRIFT_PAUSE, earlier, LONGEST_DRIFT_PAUSE)),
        by_retry_after: false,
        is_signed: false,
        since: drift.since.filter(|_| recent).or(Some(now)),
        noted: Some(now),
        last: Some(found),
    }
}

/// Whether an endpoint went back to another certificate a short time ago.
#[must_use]
pub(crate) fn is_drifting(drift: &Failures, now: Timestamp) -> bool {
    let noted = drift.noted.filter(|noted| *noted <= now);
    noted.is_some_and(|noted| now.since(noted) < DRIFT_FORGOTTEN)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::random::SeededRandom;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);
    const EVERY: Duration = Duration::from_secs(600);

    #[test]
    fn pause_never_exceeds_the_interval_and_varies() {
        let random = SeededRandom::new(7);
        let drawn: BTreeSet<_> = (0..100).map(|_| pause(EVERY, &random)).collect();
        assert!(drawn.len() > 50);
        assert!(drawn.first().unwrap() >= &(EVERY * 3 / 4) && drawn.last().unwrap() <= &EVERY);
    }

    #[test]
    fn turn_sends_each_name_in_turn() {
        let sent = (0..3).map(|round| turn(3, EVERY, NOW + EVERY * round));
        assert_eq!(sent.collect::<BTreeSet<_>>(), [0, 1, 2].into());
        assert_eq!(turn(0, EVERY, NOW), 0);
    }

    #[test]
    fn drift_waits_longer_each_time_and_is_forgotten_after_a_day() {
        let mut drift = Failures::default();
        let mut now = NOW;
        let pauses = [60, 120, 240, 480, 960, 1920, 3600, 3600].map(|_| {
            drift = after_drift(&drift, "another".into(), now);
            let pause = drift.retry_at.unwrap().since(now);
            now = drift.retry_at.unwrap();
            pause.as_secs()
        });
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        let later = after_drift(&drift, "another".into(), now + DRIFT_FORGOTTEN);
        assert_eq!(later.count, 1);
    }
}
