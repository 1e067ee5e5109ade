//! A CA that does not answer: one certificate asks it again for all, each time
//! a little later, and nobody else adds to its load.

use std::time::Duration;

use super::backoff::spread;
use crate::ca_state::Outage;
use crate::random::Random;
use crate::time::Timestamp;

const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Between two probes, give or take a fifth.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// However long a CA that is down asks us to wait.
const LONGEST_ASKED: Duration = Duration::from_secs(3600);

/// What is to be known after one more attempt that ended with `last`.
#[must_use]
pub fn after_silence(
    before: Option<&Outage>,
    last: String,
    now: Timestamp,
    random: &dyn Random,
) -> Outage {
    let probes = before.map_or(0, |outage| outage.probes.saturating_add(1));
    Outage {
        since: before.map_or(now, |outage| outage.since),
        probes,
        probe_at: now + pause(probes, random),
        asked: false,
        answered: false,
        last,
    }
}

/// Whether nobody asks at `now`. What lies further ahead than any pause was
/// written by a clock that was wrong.
#[must_use]
pub fn is_waited_for(outage: &Outage, now: Timestamp) -> bool {
    let longest = match outage.asked {
        true => LONGEST_ASKED,
        false => LONGEST_PAUSE * 6 / 5,
    };
    outage.probe_at > now && outage.probe_at <= now + longest
}

/// The CA has answered, and asks to be left alone for that long.
#[must_use]
pub fn after_request(outage: Outage, asked: Duration, now: Timestamp) -> Outage {
    let probe_at = outage.probe_at.max(now + asked.min(LONGEST_ASKED));
    let asked = true;
    Outage {
        probe_at,
        asked,
        ..outage
    }
}

/// 1, 2, 4, then 5 minutes, give or take a fifth.
fn pause(probes: u32, random: &dyn Random) -> Duration {
    let pause = FIRST_PAUSE * (1 << probes.min(3));
    spread(pause.min(LONGEST_PAUSE), 20, random)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SeededRandom;

    #[test]
    fn a_clock_that_was_wrong_blocks_nobody() {
        let (now, random) = (Timestamp::from_seconds(1_800_000_000), SeededRandom::new(1));
        let outage = after_silence(None, "no".into(), now, &random);
        assert!(is_waited_for(&outage, now));
        assert!(!is_waited_for(&outage, outage.probe_at));
        let half_a_year = Duration::from_secs(180 * 86_400);
        assert!(!is_waited_for(&outage, now - half_a_year));
        let asked = after_request(outage.clone(), half_a_year, now);
        assert_eq!(asked.probe_at, now + Duration::from_secs(3600));
        let little = after_request(outage.clone(), Duration::ZERO, now);
        assert_eq!(little.probe_at, outage.probe_at);
        // An hour ahead is what a CA may ask for, and no pause of ours.
        let half_an_hour = Duration::from_secs(1800);
        assert!(is_waited_for(&asked, now + half_an_hour));
        assert!(!is_waited_for(&outage, now - half_an_hour));
    }

    #[test]
    fn it_is_asked_again_after_one_to_five_minutes_and_its_beginning_is_kept() {
        let (start, random) = (Timestamp::from_seconds(1_800_000_000), SeededRandom::new(1));
        let (mut outage, mut now) = (None, start);
        for minutes in [1, 2, 4, 5, 5, 5] {
            let next = after_silence(outage.as_ref(), "no".into(), now, &random);
            let pause = next.probe_at.since(now).as_secs_f64() / 60.0;
            let spread = f64::from(minutes) / 5.0;
            assert!((pause - f64::from(minutes)).abs() <= spread, "{pause}");
            assert_eq!(next.since, start);
            now = next.probe_at;
            outage = Some(next);
        }
    }
}
