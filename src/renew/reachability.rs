//! An unreachable CA: one probe serves all certificates, at growing pauses, so
//! that a fleet does not load a CA that is down. It sends nothing itself.

use std::time::Duration;

use super::backoff::{doubled, spread};
use super::policy::{LONGEST_OUTAGE_RETRY_AFTER, LONGEST_PROBE_PAUSE, PROBE_PAUSE};
use crate::ca_state::Outage;
use crate::random::Random;
use crate::time::Timestamp;

/// The outage to store after one more failed attempt; `last` is its error.
#[must_use]
pub(crate) fn after_failed_probe(
    before: Option<&Outage>,
    last: String,
    now: Timestamp,
    random: &dyn Random,
) -> Outage {
    let probes = before.map_or(0, |outage| outage.probes.saturating_add(1));
    // 1, 2, 4, then 5 minutes, give or take a fifth.
    let pause = doubled(PROBE_PAUSE, probes, LONGEST_PROBE_PAUSE);
    Outage {
        since: before.map_or(now, |outage| outage.since),
        probes,
        probe_at: now + spread(pause, 20, random),
        by_retry_after: false,
        answered: false,
        windows_only: before.is_some_and(|outage| outage.windows_only),
        last,
    }
}

/// Whether no request may be sent at `now`. A probe that is scheduled further
/// ahead than any pause was dated by a wrong clock and does not block.
#[must_use]
pub(crate) fn is_waited_for(outage: &Outage, now: Timestamp) -> bool {
    let longest = match outage.by_retry_after {
        true => LONGEST_OUTAGE_RETRY_AFTER,
        false => LONGEST_PROBE_PAUSE * 6 / 5,
    };
    outage.probe_at > now && outage.probe_at <= now + longest
}

/// The outage after a reply with `Retry-After`.
#[must_use]
pub(crate) fn after_retry_after(outage: Outage, retry_after: Duration, now: Timestamp) -> Outage {
    let retry_at = now + retry_after.min(LONGEST_OUTAGE_RETRY_AFTER);
    Outage {
        probe_at: outage.probe_at.max(retry_at),
        by_retry_after: true,
        ..outage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    #[test]
    fn outage_blocks_no_request_when_dated_by_wrong_clock() {
        let (now, random) = (Timestamp::from_seconds(1_800_000_000), SeededRandom::new(1));
        let outage = after_failed_probe(None, "no".into(), now, &random);
        assert!(is_waited_for(&outage, now));
        assert!(!is_waited_for(&outage, outage.probe_at));
        let half_a_year = Duration::from_secs(180 * 86_400);
        assert!(!is_waited_for(&outage, now - half_a_year));
        let requested = after_retry_after(outage.clone(), half_a_year, now);
        assert_eq!(requested.probe_at, now + Duration::from_secs(3600));
        let little = after_retry_after(outage.clone(), Duration::ZERO, now);
        assert_eq!(little.probe_at, outage.probe_at);
        // Half an hour ahead fits a `Retry-After`, but no pause of ours.
        let half_an_hour = Duration::from_secs(1800);
        assert!(is_waited_for(&requested, now + half_an_hour));
        assert!(!is_waited_for(&outage, now - half_an_hour));
    }

    #[test]
    fn probes_come_after_one_to_five_minutes_and_keep_the_start() {
        let (start, random) = (Timestamp::from_seconds(1_800_000_000), SeededRandom::new(1));
        let (mut outage, mut now) = (None, start);
        for minutes in [1, 2, 4, 5, 5, 5] {
            let next = after_failed_probe(outage.as_ref(), "no".into(), now, &random);
            let pause = next.probe_at.since(now).as_secs_f64() / 60.0;
            let spread = f64::from(minutes) / 5.0;
            assert!((pause - f64::from(minutes)).abs() <= spread, "{pause}");
            assert_eq!(next.since, start);
            now = next.probe_at;
            outage = Some(next);
        }
    }
}
