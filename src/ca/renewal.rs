//! Renewal information (RFC 9773): the suggested window of a certificate, and
//! when to request it again. Pure: no clock and no state.

use std::time::Duration;

use super::state::SignedCertificate;
use super::{HOUR, RenewalWindows, SECOND};
use crate::record::Window;
use crate::time::Timestamp;

/// A certificate with a shorter lifetime is renewed at half of it.
const SHORT: Duration = Duration::from_secs(10 * 86_400);
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(6 * 3600);

/// The window of `certificate`; that of a revoked one is past, so that clients
/// renew at once.
pub(super) fn window(certificate: &SignedCertificate, policy: RenewalWindows) -> Window {
    let (start, length) = match (&certificate.revoked, policy) {
        (Some(revocation), _) => (revocation.at - HOUR, HOUR),
        (None, RenewalWindows::After { delay, width }) => (certificate.issued + delay, width),
        (None, RenewalWindows::Share) => {
            return share(certificate.not_before, certificate.not_after);
        }
    };
    let end = start + length.max(Duration::from_millis(1));
    Window { start, end }
}

/// The window around two thirds of the lifetime (half of a short one), a
/// hundredth of it to each side.
#[must_use]
pub fn share(not_before: Timestamp, not_after: Timestamp) -> Window {
    let life = lifetime(not_before, not_after);
    let share = if life < SHORT { life / 2 } else { life / 3 * 2 };
    let middle = not_before + share;
    Window {
        start: middle - life / 100,
        end: middle + life / 100,
    }
}

/// A twentieth of the lifetime, from a second to six hours, in whole seconds.
pub(super) fn retry_after(certificate: &SignedCertificate) -> u64 {
    let life = lifetime(certificate.not_before, certificate.not_after);
    (life / 20).clamp(SECOND, LONGEST_RETRY_AFTER).as_secs()
}

/// The lifetime including `notAfter`, the last valid second.
fn lifetime(not_before: Timestamp, not_after: Timestamp) -> Duration {
    (not_after + SECOND).since(not_before)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn certificate(seconds: u64) -> SignedCertificate {
        SignedCertificate {
            account: String::new(),
            identifiers: [].into(),
            chain_pem: String::new(),
            not_before: NOW,
            not_after: NOW + Duration::from_secs(seconds - 1),
            issued: NOW,
            revoked: None,
        }
    }

    #[test]
    fn window_share_follows_the_lifetime() {
        const DAY: u64 = 86_400;
        for (seconds, middle, half_width) in [
            (90 * DAY, 60 * DAY, 90 * DAY / 100),
            (45 * DAY, 30 * DAY, 45 * DAY / 100),
            (160 * 3600, 80 * 3600, 160 * 36),
        ] {
            let found = window(&certificate(seconds), RenewalWindows::Share);
            let (middle, half) = (
                NOW + Duration::from_secs(middle),
                Duration::from_secs(half_width),
            );
            assert_eq!((found.start, found.end), (middle - half, middle + half));
        }
        let shortest = window(&certificate(1), RenewalWindows::Share);
        assert!(shortest.start < shortest.end && shortest.end < NOW + SECOND);
    }

    #[test]
    fn window_counts_from_issuance_and_is_past_after_revocation() {
        let mut certificate = certificate(90 * 86_400);
        certificate.issued = NOW + HOUR;
        let (delay, width) = (Duration::from_secs(3), Duration::from_secs(1));
        let policy = RenewalWindows::After { delay, width };
        let found = window(&certificate, policy);
        assert_eq!(
            (found.start, found.end),
            (NOW + HOUR + delay, NOW + HOUR + delay + width)
        );
        certificate.revoked = Some(super::super::state::Revocation {
            at: NOW + HOUR,
            reason: 1,
        });
        assert_eq!(window(&certificate, policy).end, NOW + HOUR);
    }

    #[test]
    fn retry_after_is_bounded() {
        assert_eq!(retry_after(&certificate(90 * 86_400)), 6 * 3600);
        assert_eq!(retry_after(&certificate(600)), 30);
        assert_eq!(retry_after(&certificate(1)), 1);
    }
}
