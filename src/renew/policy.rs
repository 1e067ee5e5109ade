//! Every tuning constant of renewal, passes and the supervisor, each with its source.
//! "Ours" marks a choice of this program. The limits of a CA itself are in
//! [`super::rate_limits`].

use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
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
/// A renewal is overdue once it has been due for one part in this many of the
/// lifetime. From then on it may exclude a name that the served certificate covers. Ours.
pub(crate) const OVERDUE_PART: u32 = 20;
/// The least time between two certificates of one lineage that no user requested. Ours.
pub(crate) const SPACING: Duration = HOUR;
/// Immediate renewals are spread over this time, for up to [`MANY`] certificates. Ours.
pub(crate) const SPREAD: Duration = MINUTE.saturating_mul(5);
/// The number of certificates above which [`SPREAD_OF_MANY`] applies. Ours.
pub(crate) const MANY: usize = 100;
/// See [`MANY`].
pub(crate) const SPREAD_OF_MANY: Duration = HOUR;
/// After a start or a reload, the passes over more than [`MANY`] certificates that need nothing
/// begin at this distance. Ours: twenty a second are a small part of one processor.
pub(crate) const RESTING_PAUSE: Duration = Duration::from_millis(50);
/// A renewal that is due within this time may become due before its pass ends. Ours.
pub(crate) const PREFLIGHT_MARGIN: Duration = MINUTE.saturating_mul(5);
/// The age up to which an order is resumed. Source: Let's Encrypt's orders expire after seven
/// days. No less: a CA may have signed it just before an outage of days, and a second order
/// would be a needless certificate.
pub(crate) const OLDEST_ORDER: Duration = DAY.saturating_mul(7);

/// Bounds of `Retry-After` on renewal information. Source: RFC 9773 section 4.3.2.
pub(crate) const SHORTEST_RECHECK: Duration = MINUTE;
/// See [`SHORTEST_RECHECK`].
pub(crate) const LONGEST_RECHECK: Duration = DAY;
/// The pause after a request for a window that failed. Source: RFC 9773 section 4.3.3.
pub(crate) const WINDOW_PAUSE: Duration = HOUR.saturating_mul(6);
/// Window requests that are due at one instant are spread over this time: the first one
/// finds out for all whether windows are available. Ours.
pub(crate) const WINDOW_SPREAD: Duration = SECOND.saturating_mul(10);
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
/// The first pause after a failure that costs no CA anything, such as a deployment or a
/// full disk; it doubles up to [`LONGEST_LOCAL_PAUSE`]. Ours.
pub(crate) const LOCAL_PAUSE: Duration = SECOND.saturating_mul(15);
/// See [`LOCAL_PAUSE`].
pub(crate) const LONGEST_LOCAL_PAUSE: Duration = MINUTE.saturating_mul(5);
/// The pause for each rollback in a row for one cause, up to
/// [`MOST_ROLLBACK_PAUSES`] of them. Ours: each attempt costs two reloads.
pub(crate) const ROLLBACK_PAUSE: Duration = MINUTE.saturating_mul(5);
/// See [`ROLLBACK_PAUSE`].
pub(crate) const MOST_ROLLBACK_PAUSES: u32 = 3;
/// The first pause between two redeployments of a server that goes back to another
/// certificate; it doubles up to [`LONGEST_DRIFT_PAUSE`]. Ours: each costs a reload.
pub(crate) const DRIFT_PAUSE: Duration = MINUTE;
/// See [`DRIFT_PAUSE`].
pub(crate) const LONGEST_DRIFT_PAUSE: Duration = HOUR;
/// After this time without one, the next redeployment is the first again. Ours.
pub(crate) const DRIFT_FORGOTTEN: Duration = DAY;
/// An endpoint that does not serve the certificate is looked at again after one part in
/// this many of the interval. Ours.
pub(crate) const SOONER_PART: u32 = 10;
/// How long all endpoints together may keep serving the old certificate by default. Ours.
pub(crate) const VERIFY_WITHIN: Duration = SECOND.saturating_mul(30);
/// The most that the time of a slow check adds to that. Ours.
pub(crate) const VERIFY_SLOW_WITHIN: Duration = MINUTE.saturating_mul(5);
/// The same for an endpoint of which this machine saw nothing before the deployment: a
/// program that starts its server may still need a moment. Ours.
pub(crate) const VERIFY_BLIND_WITHIN: Duration = SECOND.saturating_mul(5);

/// The first pause between two probes of an unreachable CA; it doubles up to
/// [`LONGEST_PROBE_PAUSE`], each give or take a fifth. Ours.
pub(crate) const PROBE_PAUSE: Duration = MINUTE;
/// See [`PROBE_PAUSE`].
pub(crate) const LONGEST_PROBE_PAUSE: Duration = MINUTE.saturating_mul(5);
/// The longest `Retry-After` that is obeyed from a CA that is down. Ours.
pub(crate) const LONGEST_OUTAGE_RETRY_AFTER: Duration = HOUR;
/// For this time after a probe is due, an order without a token does not probe. Ours.
pub(crate) const TOKENS_FIRST: Duration = MINUTE.saturating_mul(5);
/// For this time after a probe of orders is due, a request for a window does not probe:
/// only an order shows that the CA issues again. Later no order is waiting. Ours.
pub(crate) const ORDERS_FIRST: Duration = HOUR;
/// How much longer than other machines this one waits after a failed probe of its own:
/// the probes of a machine that is cut off must not block theirs. Ours.
pub(crate) const STEP_BACK: Duration = SECOND.saturating_mul(20);

/// The fallback CA gets the order after this many failures of the first CA, or
/// after [`FALLBACK_DELAY`], while no usable certificate is left. Ours.
pub(crate) const FALLBACK_FAILURES: u32 = 3;
/// See [`FALLBACK_FAILURES`].
pub(crate) const FALLBACK_DELAY: Duration = MINUTE.saturating_mul(30);
/// The longest pause that an unreachable CA alone can cause: twice
/// [`UNREACHABLE_PAUSE`], with room for its spread. Ours.
pub(crate) const LONGEST_UNREACHABLE_PAUSE: Duration = MINUTE.saturating_mul(5);

/// Clocks that differ by more are wrong: the operator gets an alarm, and instants that
/// lie further ahead are ignored. Ours.
pub(crate) const CLOCK_ALARM: Duration = MINUTE.saturating_mul(5);
/// The pause between two alarms for one clock. Ours.
pub(crate) const CLOCK_ALARM_PAUSE: Duration = HOUR;
/// The CA's clock and ours agree when they differ by no more. Ours.
pub(crate) const CLOCK_TOLERANCE: Duration = SECOND.saturating_mul(30);
/// A CA's clock that is further ahead of ours is believed only if the stored
/// certificate shows that ours is behind. Ours.
pub(crate) const LONGEST_CLOCK_LEAD: Duration = DAY;
/// The age up to which a reply corrects our clock. Ours: windows are requested daily.
pub(crate) const OLDEST_READING: Duration = DAY;
/// The pause after a failed revocation, which an operator can repeat at once. Ours.
pub(crate) const REVOCATION_PAUSE: Duration = HOUR;
/// The longest time by which a CA backdates a certificate: some date all certificates of
/// a day from its midnight. Ours.
pub(crate) const LONGEST_BACKDATING: Duration = HOUR.saturating_mul(25);
/// A reading of a clock is current for this long: our clock may be set, and the machine
/// may be suspended. Ours.
pub(crate) const CLOCK_READING: Duration = MINUTE;
/// The pause between the start and the first probe for the time, since due steps contact
/// the CAs anyway. Ours.
pub(crate) const FIRST_TIME_PROBE: Duration = SECOND.saturating_mul(5);

/// The longest pause after a failure and after a skipped request: the cause may be
/// repaired, and the record may be older than the settings. Ours.
pub(crate) const RECHECK: Duration = HOUR;
/// The pause of a machine while another one of its fleet does a due step: its result wakes the
/// others, unless that machine is gone. Ours.
pub(crate) const ELSEWHERE: Duration = MINUTE;
/// The longest pause while another process holds the lease; the shortest is a quarter. Ours.
pub(crate) const LEASED_PAUSE: Duration = SECOND.saturating_mul(20);
/// The number of passes in a row without the lease after which a message is logged. Ours.
pub(crate) const LONG_LEASED: u32 = 50;
/// How long passes in progress may take to end at a stop. Source: `docker stop` kills
/// after ten seconds.
pub(crate) const STOP_GRACE: Duration = SECOND.saturating_mul(8);
/// Certificates ordered at the same time at first, and at a CA with known limits. Ours.
pub(crate) const ORDERING: usize = 4;
/// Certificates ordered at the same time at most, at a CA whose limits are unknown. Ours: more
/// are not faster at any CA that was measured.
pub(crate) const MOST_ORDERING: usize = 32;
/// Passes in progress at the same time, including those that deploy. Each holds a record
/// and a pair, and one connection while it verifies. Ours.
pub(crate) const SIDE_BY_SIDE: usize = 32;
/// The number of conflicts with other writers of a CA's state before an update fails. Ours.
pub(crate) const CONFLICTS: usize = 64;
