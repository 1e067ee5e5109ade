//! The renewal instant: drawn once from the CA's window (RFC 9773 section 4.2)
//! or, without a window, from the certificate's lifetime. It reads no clock.

use std::time::Duration;

use super::backoff::doubled;
use super::policy::{
    CRITICAL_PART, LATEST_PART, LONGEST_RECHECK, SHORT_LIFETIME, SHORTEST_RECHECK,
};
use crate::certificate::Facts;
use crate::random::Random;
use crate::record::{Issued, Renewal, Window};
use crate::time::Timestamp;

/// The CA's window; `None` when it is empty or ends after the certificate
/// expires: such an answer is ignored.
#[must_use]
pub(crate) fn accept(start: Timestamp, end: Timestamp, facts: &Facts) -> Option<Window> {
    (start < end && end <= facts.not_after).then_some(Window { start, end })
}

/// `Retry-After` within the bounds of RFC 9773: one minute to one day.
#[must_use]
pub(crate) fn clamp_retry_after(retry_after: Duration) -> Duration {
    retry_after.clamp(SHORTEST_RECHECK, LONGEST_RECHECK)
}

/// When a window is read, and how far immediate renewals are spread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Now.
    pub now: Timestamp,
    /// A window wholly in the past means "renew at once"; the renewals of many
    /// certificates are spread over this time.
    pub spread: Duration,
}

/// The renewal to store after the CA's reply. An earlier drawn instant is kept
/// while it still fits, so that neither a restart nor a replica draws again.
#[must_use]
pub(crate) fn redraw(
    previous: Option<&Renewal>,
    window: Option<Window>,
    refresh_at: Option<Timestamp>,
    facts: &Facts,
    moment: Moment,
    random: &dyn Random,
) -> Renewal {
    // Without a usable answer the earlier window stays valid.
    let window = window.or_else(|| previous.and_then(|renewal| renewal.window.clone()));
    let fitting = previous.filter(|renewal| match &window {
        Some(window) => {
            // A CA that means "at once" may send another past window each time.
            let is_past = |window: &Window| window.end <= moment.now;
            let was_past = renewal.window.as_ref().is_some_and(is_past);
            let soon = renewal.at <= moment.now + moment.spread;
            (window.start..window.end).contains(&renewal.at) || is_past(window) && was_past && soon
        }
        None => true,
    });
    let at = fitting.map(|renewal| renewal.at);
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

/// The earliest scheduled renewal of a certificate issued `now`: after `spacing`,
/// doubled for each of its `early` predecessors that were replaced in the first
/// half of their lifetimes. From the second on it is at least a twentieth of the
/// lifetime (at most a hundred spacings). This stops a loop of orders at a CA
/// whose windows are always past.
#[must_use]
pub(crate) fn renewable_from(
    facts: &Facts,
    now: Timestamp,
    spacing: Duration,
    early: u32,
) -> Timestamp {
    let life = facts.lifetime();
    let least = match early {
        0 | 1 => spacing,
        _ => (life / 20).min(spacing.saturating_mul(100)),
    };
    now + doubled(spacing, early, life / 3).max(spacing).max(least)
}

/// The renewal instant without a window: two thirds of the lifetime (half of a
/// short one), give or take a hundredth.
#[must_use]
pub(crate) fn share_of_life(facts: &Facts, random: &dyn Random) -> Timestamp {
    let life = facts.lifetime();
    let share = if life < SHORT_LIFETIME {
        life / 2
    } else {
        life / 3 * 2
    };
    facts.not_before + (share - life / 100) + random_part(life / 50, random)
}

/// When the certificate is due for renewal: at the drawn instant, no later than
/// [`latest`], no earlier than `renewable_from`.
#[must_use]
pub(crate) fn due(issued: &Issued, renewal: &Renewal) -> Timestamp {
    let wanted = renewal.at.min(latest(&issued.facts));
    issued
        .renewable_from
        .map_or(wanted, |from| wanted.max(from))
}

/// The latest renewal instant, even when the window is later: a tenth of the
/// lifetime before expiry.
#[must_use]
pub(crate) fn latest(facts: &Facts) -> Timestamp {
    facts.not_after - facts.lifetime() / LATEST_PART
}

/// From here on the renewal is urgent and the operator is alerted: a sixth of
/// the lifetime is left.
#[must_use]
pub(crate) fn critical(facts: &Facts) -> Timestamp {
    facts.not_after - facts.lifetime() / CRITICAL_PART
}

fn random_part(whole: Duration, random: &dyn Random) -> Duration {
    Duration::from_millis(random.below(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)))
}
