//! The published limits of CAs, and the arithmetic of one bucket.

use std::time::Duration;

use super::Left;
use crate::ca_state::Limit;
use crate::time::Timestamp;

pub(super) const HOUR: Duration = Duration::from_secs(3600);
const THREE_HOURS: Duration = HOUR.saturating_mul(3);
const WEEK: Duration = HOUR.saturating_mul(7 * 24);

/// One limit of one CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The limit.
    pub limit: Limit,
    /// Tokens in a full bucket.
    pub capacity: u32,
    /// The time in which an empty bucket refills.
    pub refill: Duration,
    /// Tokens that scheduled renewals do not spend.
    pub reserve: u32,
}

/// The limits of Let's Encrypt. Source: its rate-limits page of 2026-08-05; the
/// reserve, a fifth of each and two of the five duplicates, is ours.
pub const LETS_ENCRYPT: &[Rule] = &[
    rule(Limit::NewOrders, 300, THREE_HOURS, 60),
    rule(Limit::CertificatesPerDomain, 50, WEEK, 10),
    rule(Limit::DuplicateCertificates, 5, WEEK, 2),
    rule(Limit::FailedValidations, 5, HOUR, 1),
    // One token a day.
    rule(
        Limit::ConsecutiveFailures,
        1152,
        HOUR.saturating_mul(24 * 1152),
        230,
    ),
    // No reserve: without an account there is no certificate at all.
    rule(Limit::NewAccounts, 10, THREE_HOURS, 0),
];

/// The limits of Let's Encrypt's staging directory, from the same source.
const STAGING: &[Rule] = &[
    rule(Limit::NewOrders, 1500, THREE_HOURS, 300),
    rule(Limit::CertificatesPerDomain, 30_000, WEEK, 6000),
    rule(Limit::DuplicateCertificates, 30_000, WEEK, 6000),
    rule(Limit::FailedValidations, 200, HOUR, 40),
];

const fn rule(limit: Limit, capacity: u32, refill: Duration, reserve: u32) -> Rule {
    Rule {
        limit,
        capacity,
        refill,
        reserve,
    }
}

/// The limits of the CA with the directory URL `ca`; empty when they are unknown.
#[must_use]
pub fn rules(ca: &str) -> &'static [Rule] {
    match ca {
        "https://acme-v02.api.letsencrypt.org/directory" => LETS_ENCRYPT,
        "https://acme-staging-v02.api.letsencrypt.org/directory" => STAGING,
        _ => &[],
    }
}

impl Rule {
    /// The time in which one token refills.
    pub(super) fn interval(&self) -> Duration {
        self.refill / self.capacity.max(1)
    }

    /// Tokens left in a bucket that is full again at `full_at`.
    pub(super) fn left(&self, full_at: Timestamp, now: Timestamp) -> u32 {
        let interval = self.interval().as_millis().max(1);
        let missing = full_at.since(now).as_millis().div_ceil(interval);
        self.capacity
            .saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX))
    }

    pub(super) fn remaining(
        &self,
        subject: String,
        full_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Left {
        let full_at = full_at.filter(|full_at| *full_at > now);
        Left {
            limit: self.limit,
            subject,
            tokens: full_at.map_or(self.capacity, |full_at| self.left(full_at, now)),
            capacity: self.capacity,
            full_at,
        }
    }

    /// When the bucket has a token above `reserve`.
    pub(super) fn free_at(&self, full_at: Timestamp, reserve: u32) -> Timestamp {
        let usable = self.capacity.saturating_sub(reserve).max(1);
        full_at - self.interval() * (usable - 1)
    }
}
