//! The renewal instant: drawn once from the CA's window (RFC 9773 section 4.2)
//! or, where there is none, from the certificate's lifetime.

use std::time::Duration;

use crate::certificate::Facts;
use crate::random::Random;
use crate::record::{Renewal, Window};
use crate::time::Timestamp;

/// Certificates that live for less are renewed at half of their life.
const SHORT: Duration = Duration::from_secs(10 * 86_400);
const SHORTEST_RECHECK: Duration = Duration::from_secs(60);
const LONGEST_RECHECK: Duration = Duration::from_secs(86_400);

/// The window, unless it is empty or ends after the certificate does: then the
/// CA counts as not having answered.
#[must_use]
pub fn accept(start: Timestamp, end: Timestamp, facts: &Facts) -> Option<Window> {
    (start < end && end <= facts.not_after).then_some(Window { start, end })
}

/// `Retry-After` is the least and the most we wait, within a minute and a day.
#[must_use]
pub fn clamp_retry_after(asked: Duration) -> Duration {
    asked.clamp(SHORTEST_RECHECK, LONGEST_RECHECK)
}

/// When a window is looked at, and how soon what is urgent must be done.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Now.
    pub now: Timestamp,
    /// A window that lies wholly in the past means at once; many certificates
    /// that hear so together are spread over this time.
    pub spread: Duration,
}

/// The renewal to store after the CA was asked: what was drawn before is kept
/// while it still fits, so that neither a restart nor a replica draws again.
#[must_use]
pub fn redraw(
    previous: Option<&Renewal>,
    window: Option<Window>,
    refresh_at: Option<Timestamp>,
    facts: &Facts,
    moment: Moment,
    random: &dyn Random,
) -> Renewal {
    // A CA that gives no usable answer takes back nothing it said before.
    let window = window.or_else(|| previous.and_then(|renewal| renewal.window.clone()));
    let kept = previous.filter(|renewal| match &window {
        Some(window) => {
            // A CA that means "at once" may say so with another window each time.
            let is_past = |window: &Window| window.end <= moment.now;
            let was_past = renewal.window.as_ref().is_some_and(is_past);
            let soon = renewal.at <= moment.now + moment.spread;
            (window.start..window.end).contains(&renewal.at) || is_past(window) && was_past && soon
        }
        None => true,
    });
    let at = kept.map(|renewal| renewal.at);
    let at = at.unwrap_or_else(|| match &window {
        Some(window) if window.end <= moment.now => moment.now + random_part(moment.spread, random),
        Some(window) => window.start + random_part(window.end.since(window.start), random),
        None => share_of_life(facts, random),
    });
    Renewal {
        at,
        window,
        refresh_at,
        asked: Some(moment.now),
    }
}

/// No renewal by itself before this instant, for a certificate issued `now`:
/// `spacing` after it, and twice as long for each of its predecessors in a row
/// that was replaced in the first half of its life, and from the second on a
/// twentieth of its life (a hundred spacings at most), so that a CA which finds every certificate overdue is not
/// asked for one after the other.
#[must_use]
pub fn renewable_from(facts: &Facts, now: Timestamp, spacing: Duration, early: u32) -> Timestamp {
    let pause = spacing.saturating_mul(1 << early.min(16));
    let life = facts.lifetime();
    let least = match early {
        0 | 1 => spacing,
        _ => (life / 20).min(spacing.saturating_mul(100)),
    };
    now + pause.min(life / 3).max(spacing).max(least)
}

/// Two thirds of the life (half of a short one), give or take a hundredth.
#[must_use]
pub fn share_of_life(facts: &Facts, random: &dyn Random) -> Timestamp {
    let life = facts.lifetime();
    let share = if life < SHORT { life / 2 } else { life / 3 * 2 };
    facts.not_before + (share - life / 100) + random_part(life / 50, random)
}

/// The latest instant to renew at, whatever the window says: a tenth of the
/// life before its end.
#[must_use]
pub fn latest(facts: &Facts) -> Timestamp {
    facts.not_after - facts.lifetime() / 10
}

/// From here on the owner must hear of it: a sixth of the life is left.
#[must_use]
pub fn critical(facts: &Facts) -> Timestamp {
    facts.not_after - facts.lifetime() / 6
}

fn random_part(whole: Duration, random: &dyn Random) -> Duration {
    Duration::from_millis(random.below(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)))
}
