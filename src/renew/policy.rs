//! The tuning constants of renewal, each with its source. "Ours" marks a choice
//! of this program. The limits of a CA itself are in [`super::rate_limits`].

use std::time::Duration;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// A certificate with a shorter lifetime is renewed at half of it, any other at
/// two thirds. Source: Let's Encrypt's integration guide.
pub(crate) const SHORT_LIFETIME: Duration = DAY.saturating_mul(10);
/// The renewal is due at the latest when one part in this many of the lifetime
/// is left. Ours.
pub(crate) const LATEST_PART: u32 = 10;
/// The renewal is urgent when one part in this many of the lifetime is left. Ours.
pub(crate) const CRITICAL_PART: u32 = 6;
/// A renewal that is overdue by one part in this many of the lifetime may
/// exclude a name that the served certificate covers. Ours.
pub(crate) const EXCLUSION_PART: u32 = 20;

/// Bounds of `Retry-After` on renewal information. Source: RFC 9773 section 4.3.2.
pub(crate) const SHORTEST_RECHECK: Duration = MINUTE;
/// See [`SHORTEST_RECHECK`].
pub(crate) const LONGEST_RECHECK: Duration = DAY;
/// A refresh that is due later than this was dated by a wrong clock: the longest
/// recheck, and an hour for clocks that differ a little. Ours.
pub(crate) const LATEST_REFRESH: Duration = HOUR.saturating_mul(25);

/// Pauses after the first, second, third and each later failed order. Source:
/// Let's Encrypt's integration guide.
pub(crate) const ORDER_PAUSES: [Duration; 4] = [
    MINUTE,
    MINUTE.saturating_mul(10),
    MINUTE.saturating_mul(100),
    DAY,
];
/// The longest of these pauses when one part in [`LATE_PART`] of the lifetime is
/// left. Ours.
pub(crate) const LATE_ORDER_PAUSE: Duration = HOUR.saturating_mul(6);
/// See [`LATE_ORDER_PAUSE`].
pub(crate) const LATE_PART: u32 = 4;
/// The pause after a refusal, such as one by policy or CAA. Ours.
pub(crate) const REFUSED_PAUSE: Duration = DAY;
/// The pause after an order that did not reach the CA. Ours: the shared outage
/// in [`super::reachability`] paces the probes.
pub(crate) const UNREACHABLE_PAUSE: Duration = MINUTE.saturating_mul(2);
/// The pause after a rate limit without `Retry-After`, and its lower bound. Ours.
pub(crate) const RATE_LIMIT_PAUSE: Duration = HOUR;
/// See [`RATE_LIMIT_PAUSE`].
pub(crate) const SHORTEST_RATE_LIMIT: Duration = MINUTE;
/// The upper bound of a rate limit. Source: Let's Encrypt counts certificates
/// over seven days; one day more is ours.
pub(crate) const LONGEST_RATE_LIMIT: Duration = DAY.saturating_mul(8);
/// The first pause after a failed deployment; it doubles up to
/// [`LONGEST_DEPLOYMENT_PAUSE`]. Ours: a deployment costs no CA anything.
pub(crate) const DEPLOYMENT_PAUSE: Duration = Duration::from_secs(15);
/// See [`DEPLOYMENT_PAUSE`].
pub(crate) const LONGEST_DEPLOYMENT_PAUSE: Duration = MINUTE.saturating_mul(5);

/// The first pause between two probes of an unreachable CA; it doubles up to
/// [`LONGEST_PROBE_PAUSE`], each give or take a fifth. Ours.
pub(crate) const PROBE_PAUSE: Duration = MINUTE;
/// See [`PROBE_PAUSE`].
pub(crate) const LONGEST_PROBE_PAUSE: Duration = MINUTE.saturating_mul(5);
/// The longest `Retry-After` that is obeyed from a CA that is down. Ours.
pub(crate) const LONGEST_OUTAGE_RETRY_AFTER: Duration = HOUR;

/// The fallback CA gets the order after this many failures of the first CA, or
/// after [`FALLBACK_DELAY`], while no usable certificate is left. Ours.
pub(crate) const FALLBACK_FAILURES: u32 = 3;
/// See [`FALLBACK_FAILURES`].
pub(crate) const FALLBACK_DELAY: Duration = MINUTE.saturating_mul(30);
/// The longest pause that an unreachable CA alone can cause: twice
/// [`UNREACHABLE_PAUSE`], with room for its spread. Ours.
pub(crate) const LONGEST_UNREACHABLE_PAUSE: Duration = MINUTE.saturating_mul(5);

/// Clocks of one fleet that differ by no more count as equal. Ours.
pub(crate) const FLEET_TOLERANCE: Duration = MINUTE.saturating_mul(5);
/// The CA's clock and ours agree when they differ by no more. Ours.
pub(crate) const CLOCK_TOLERANCE: Duration = Duration::from_secs(30);
/// A CA's clock that is further ahead of ours is believed only if the stored
/// certificate shows that ours is behind. Ours.
pub(crate) const LONGEST_CLOCK_LEAD: Duration = DAY;
