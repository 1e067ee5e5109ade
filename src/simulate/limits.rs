//! Let's Encrypt's limits as the simulated CA counts them: buckets that refill one
//! token at a time. They share no code with the client's own rate limits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{DAY, HOUR};
use crate::identifier::Identifier;
use crate::time::Timestamp;

/// A limit of the CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CaLimit {
    Orders,
    Domain,
    Duplicates,
    Failures,
}

impl CaLimit {
    /// Tokens in a full bucket, and the time in which one refills.
    pub(super) fn most(self) -> (u32, Duration) {
        match self {
            Self::Orders => (300, 3 * HOUR / 300),
            Self::Domain => (50, 7 * DAY / 50),
            Self::Duplicates => (5, 7 * DAY / 5),
            Self::Failures => (5, HOUR / 5),
        }
    }

    /// The subjects: the account, a registered domain, a set of names, a name.
    pub(super) fn subjects(self, names: &BTreeSet<Identifier>) -> Vec<String> {
        match self {
            Self::Orders => vec![String::new()],
            Self::Duplicates => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                vec![names.join(",")]
            }
            Self::Failures => names.iter().map(ToString::to_string).collect(),
            Self::Domain => {
                let domains: BTreeSet<_> = names.iter().map(registered).collect();
                domains.into_iter().collect()
            }
        }
    }
}

/// The last two labels: all names of the simulation end in .com.
pub(super) fn registered(name: &Identifier) -> String {
    let name = name.to_string();
    let labels: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
    format!("{}.{}", labels.last().unwrap_or(&""), labels[0])
}

/// The limits that apply to an order.
pub(super) fn limits(exempt: bool, again: bool) -> &'static [CaLimit] {
    match (exempt, again) {
        (true, _) => &[],
        (false, true) => &[CaLimit::Duplicates, CaLimit::Failures],
        (false, false) => &[
            CaLimit::Orders,
            CaLimit::Domain,
            CaLimit::Duplicates,
            CaLimit::Failures,
        ],
    }
}

/// When each bucket is full again.
#[derive(Default)]
pub(super) struct Buckets(BTreeMap<(CaLimit, String), Timestamp>);

impl Buckets {
    /// The time until the next token; `None` when there is one.
    pub(super) fn is_full(
        &self,
        limit: CaLimit,
        subject: String,
        now: Timestamp,
    ) -> Option<Duration> {
        let full_at = *self.0.get(&(limit, subject))?;
        let (most, interval) = limit.most();
        let wait = full_at.since(now);
        (wait > interval * (most - 1)).then(|| wait - interval * (most - 1))
    }

    /// Tokens above the fifth that a careful client keeps in reserve.
    pub(super) fn room(&self, limit: CaLimit, subject: String, now: Timestamp) -> u32 {
        let (most, interval) = limit.most();
        let full_at = self.0.get(&(limit, subject)).copied().unwrap_or(now);
        let wait = full_at.since(now).as_millis();
        let missing = wait.div_ceil(interval.as_millis().max(1));
        let missing = u32::try_from(missing).unwrap_or(u32::MAX);
        (most - most / 5).saturating_sub(missing)
    }

    pub(super) fn take(&mut self, limit: CaLimit, subject: String, now: Timestamp) {
        let (_, interval) = limit.most();
        let full_at = self.0.entry((limit, subject)).or_insert(now);
        *full_at = (*full_at).max(now) + interval;
    }
}

/// The shortest time in which a careful client gets the first certificates of
/// `names` within the CA's limits.
pub(super) fn first_issuance<'n>(names: impl Iterator<Item = &'n Identifier>) -> Duration {
    let mut by_domain: BTreeMap<String, u32> = BTreeMap::new();
    for name in names {
        *by_domain.entry(registered(name)).or_default() += 1;
    }
    let all = by_domain.values().sum();
    let most = by_domain.values().copied().max().unwrap_or_default();
    let needs = |limit: CaLimit, orders: u32| {
        let (capacity, interval) = limit.most();
        interval * orders.saturating_sub(capacity - capacity / 5)
    };
    needs(CaLimit::Orders, all).max(needs(CaLimit::Domain, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_seconds(1_800_000_000);

    #[test]
    fn bucket_is_empty_after_its_capacity_and_refills_one_by_one() {
        let (mut buckets, subject) = (Buckets::default(), || "site.com".to_owned());
        assert_eq!(buckets.room(CaLimit::Domain, subject(), NOW), 40);
        for _ in 0..50 {
            assert_eq!(buckets.is_full(CaLimit::Domain, subject(), NOW), None);
            buckets.take(CaLimit::Domain, subject(), NOW);
        }
        let wait = buckets.is_full(CaLimit::Domain, subject(), NOW).unwrap();
        assert_eq!(wait, 7 * DAY / 50);
        assert_eq!(
            buckets.is_full(CaLimit::Domain, subject(), NOW + wait),
            None
        );
        assert_eq!(buckets.room(CaLimit::Domain, subject(), NOW), 0);
    }

    #[test]
    fn first_issuance_takes_as_long_as_the_limits_require() {
        let names = |count: u32, domain: &str| -> Vec<Identifier> {
            let names = (0..count).map(|n| Identifier::parse(&format!("n{n}.{domain}")).unwrap());
            names.collect()
        };
        assert_eq!(first_issuance(names(40, "a.com").iter()), Duration::ZERO);
        assert_eq!(
            first_issuance(names(60, "a.com").iter()),
            20 * (7 * DAY / 50)
        );
        let spread: Vec<_> = (0..34)
            .flat_map(|n| names(10, &format!("s{n}.com")))
            .collect();
        assert_eq!(first_issuance(spread.iter()), 100 * (3 * HOUR / 300));
    }
}
