//! The kinds of faults by name, and their times: drawn from the seed before the
//! start.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::{DAY, HOUR, MINUTE};
use crate::random::{Random, SeededRandom};

/// A kind of fault. Its place in this list is part of its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// The CA is down for 2.5 h, 7 h 47 min, 24 h and 72 h in turn.
    Outages,
    /// The CA is down for 14 days; every certificate lives for 45 days.
    LongOutage,
    /// The CA answers every request with 429 for three hours.
    RateLimits,
    /// The CA revokes a third of its certificates.
    MassRevocation,
    /// For four hours the CA signs certificates that expire after five minutes.
    UselessCertificates,
    /// Three replies in a hundred are lost after the CA has acted.
    LostReplies,
    /// One name in fifty fails its validation for up to twelve hours.
    #[serde(rename = "unproven-names")]
    #[value(name = "unproven-names")]
    FailedValidations,
    /// The process is killed at any point, and fifty times in an hour.
    Crashes,
    /// Nodes are removed for days and return empty.
    Scaling,
    /// A node reaches neither the CA nor the shared store for hours.
    Partitions,
    /// A node's disk is full for hours.
    FullDisks,
    /// A node's proxy ignores the signal for hours.
    DeafProxies,
    /// A node is suspended for hours while time passes.
    Suspensions,
    /// A node reaches the CA, and not the shared store, for hours.
    StoreCuts,
    /// A node reaches the shared store, and not the CA, for hours.
    CaCuts,
    /// A node's clock is wrong by an hour, a day or ten years, for hours.
    Clocks,
    /// The shared store fails as a busy S3 does, for hours.
    #[serde(rename = "store-s3")]
    #[value(name = "store-s3")]
    StoreS3,
    /// The shared store fails as etcd does.
    StoreEtcd,
    /// The shared store fails as PostgreSQL does with a replica.
    StorePostgres,
    /// The shared store fails as a directory on NFS does.
    StoreDirectory,
    /// The shared store takes no writes for hours.
    StoreFull,
    /// The shared store is wiped, or restored from yesterday's backup.
    StoreRestores,
}

impl Scenario {
    /// All compatible scenarios: 160 h certificates do not survive the long outage.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let all = Self::value_variants().iter().copied();
        all.filter(|scenario| *scenario != Self::LongOutage)
    }

    /// The longest allowed recovery after the end of a fault, without other faults
    /// meanwhile.
    ///
    /// A fleet that may act takes half an hour: an unreachable CA is probed every
    /// 5 minutes (give or take a fifth), a failed deployment, a failed save and a
    /// taken lease are retried every 5 minutes, and a thousand orders, four at a
    /// time, take the rest. A `Retry-After` or a backoff comes before that.
    #[must_use]
    pub(crate) fn recovers_within(self) -> Duration {
        let waits = match self {
            // Its `Retry-After`.
            Self::RateLimits => HOUR,
            // Windows are refreshed every six hours, and the renewals of revoked
            // certificates are spread over an hour.
            Self::MassRevocation => HOUR * 7,
            // Useless certificates count as duplicates: when three of the five in
            // a week are spent, the next token comes after a fifth of the week.
            // The backoff of a day is shorter.
            Self::UselessCertificates => DAY * 7 / 5,
            // After the fourth failure the backoff is a day, give or take a tenth.
            Self::FailedValidations => DAY * 11 / 10,
            _ => Duration::ZERO,
        };
        waits + MINUTE * 30
    }

    /// The same when any of `chosen` may happen too.
    pub(super) fn recovers_among(self, chosen: impl Iterator<Item = Self>) -> Duration {
        let ailment = chosen.map(Self::longest_at_a_node).max();
        match self {
            // The node that must refresh or order may have a fault just then.
            Self::MassRevocation => self.recovers_within() + ailment.unwrap_or_default(),
            _ => self.recovers_within(),
        }
    }

    /// The longest time for which it stops one machine.
    pub(super) fn longest_at_a_node(self) -> Duration {
        let faults = AT_A_NODE.iter().chain(AT_THE_STORE);
        let longest = faults.filter(|(scenario, ..)| *scenario == self);
        longest
            .map(|(_, _, most)| MINUTE * *most)
            .max()
            .unwrap_or_default()
    }

    /// Whether it is a fault of the CA, which affects all nodes.
    pub(super) fn is_at_the_ca(self) -> bool {
        let mut at_the_ca = AT_THE_CA.iter().chain(LONG);
        at_the_ca.any(|(scenario, ..)| *scenario == self)
    }

    /// Its own sequence of draws.
    pub(super) fn random(self, seed: u64, node: usize) -> SeededRandom {
        let (place, node) = (self as u64, node as u64);
        // Any odd numbers: the generator mixes what they spread.
        let seed = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        SeededRandom::new(seed ^ (place << 48) ^ (node << 32) ^ 0x5851_f42d)
    }
}

impl fmt::Display for Scenario {
    /// As a user names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false).map_err(|_| {
            let all = Self::value_variants().iter();
            let names = all.map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let text = text.escape_debug();
            format!("unknown scenario `{text}`: use all, or one of {names}")
        })
    }
}

/// A fault of the CA or of a node, from one instant to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) scenario: Scenario,
    /// Counted from the start.
    pub(super) begins: Duration,
    pub(super) lasts: Duration,
}

/// A scenario with its shortest and longest duration in minutes.
type Choice = (Scenario, u32, u32);

const AT_THE_CA: &[Choice] = &[
    (Scenario::Outages, 72 * 60, 72 * 60),
    (Scenario::RateLimits, 3 * 60, 3 * 60),
    (Scenario::Outages, 150, 150),
    (Scenario::MassRevocation, 0, 0),
    (Scenario::Outages, 24 * 60, 24 * 60),
    (Scenario::UselessCertificates, 4 * 60, 4 * 60),
    (Scenario::Outages, 467, 467),
    (Scenario::FailedValidations, 60, 12 * 60),
];

const LONG: &[Choice] = &[(Scenario::LongOutage, 14 * 24 * 60, 14 * 24 * 60)];

const AT_A_NODE: &[Choice] = &[
    (Scenario::FullDisks, 60, 4 * 60),
    (Scenario::Partitions, 60, 4 * 60),
    (Scenario::DeafProxies, 10, 4 * 60),
    (Scenario::Suspensions, 10, 4 * 60),
    (Scenario::StoreCuts, 60, 4 * 60),
    (Scenario::CaCuts, 60, 4 * 60),
    (Scenario::Clocks, 60, 12 * 60),
];

/// One of these happens to the store of the whole fleet.
const AT_THE_STORE: &[Choice] = &[
    (Scenario::StoreS3, 60, 6 * 60),
    (Scenario::StoreRestores, 0, 0),
    (Scenario::StoreEtcd, 60, 6 * 60),
    (Scenario::StoreFull, 60, 6 * 60),
    (Scenario::StorePostgres, 60, 6 * 60),
    (Scenario::StoreDirectory, 60, 6 * 60),
];

/// The least time between two mass revocations: the program treats a CA that
/// revokes the same certificates again and again as broken, and waits longer.
const BETWEEN_REVOCATIONS: Duration = DAY.saturating_mul(60);

/// The faults of the CA: never two at once, and with days between them, since one
/// alone may use up the rest of a short lifetime.
pub(super) fn at_the_ca(chosen: &[Scenario], seed: u64, span: Duration) -> Vec<Event> {
    let random = Scenario::Outages.random(seed, 0);
    let mut events = plan(AT_THE_CA, chosen, &random, span, DAY * 10);
    let mut last = None;
    events.retain(|event: &Event| {
        let revoked = event.scenario == Scenario::MassRevocation;
        let soon = last.is_some_and(|last| event.begins < last + BETWEEN_REVOCATIONS);
        if revoked && !soon {
            last = Some(event.begins);
        }
        !revoked || !soon
    });
    events.extend(plan(LONG, chosen, &random, span, DAY * 60));
    events
}

/// The faults of one node; the others continue meanwhile.
pub(super) fn at_a_node(chosen: &[Scenario], seed: u64, node: usize, span: Duration) -> Vec<Event> {
    let random = Scenario::FullDisks.random(seed, node);
    plan(AT_A_NODE, chosen, &random, span, DAY * 5)
}

/// The faults of the store.
pub(super) fn at_the_store(chosen: &[Scenario], seed: u64, span: Duration) -> Vec<Event> {
    let random = Scenario::StoreS3.random(seed, 0);
    plan(AT_THE_STORE, chosen, &random, span, DAY * 5)
}

/// One fault in each slot, in turn from a drawn first one, at a drawn instant.
fn plan(
    choices: &[Choice],
    chosen: &[Scenario],
    random: &dyn Random,
    span: Duration,
    slot: Duration,
) -> Vec<Event> {
    let choices = choices.iter();
    let choices = choices.filter(|(scenario, ..)| chosen.contains(scenario));
    let choices: Vec<&Choice> = choices.collect();
    if choices.is_empty() {
        return Vec::new();
    }
    let first = random.below(choices.len() as u64) as usize;
    let slots = (span.as_secs() / slot.as_secs()) as usize;
    let events = (0..slots).map(|number| {
        let (scenario, least, most) = choices[(first + number) % choices.len()];
        let lasts = MINUTE * *least + part(MINUTE * (*most - *least), random);
        // At least the last fifth of the slot has no fault, so that the fleet
        // recovers before the next one.
        let free = slot.saturating_sub(lasts).saturating_sub(slot / 5);
        Event {
            scenario: *scenario,
            begins: slot * number as u32 + part(free, random),
            lasts,
        }
    });
    events.collect()
}

/// The errors of a clock, in turn: milliseconds ahead.
pub(super) const AHEAD: [i64; 6] = {
    const HOUR: i64 = 3_600_000;
    let (day, decade) = (24 * HOUR, 3652 * 24 * HOUR);
    [HOUR, -HOUR, day, -day, decade, -decade]
};

/// Whole seconds up to `whole`.
pub(super) fn part(whole: Duration, random: &dyn Random) -> Duration {
    Duration::from_secs(random.below(whole.as_secs() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenario_name_round_trips() {
        for scenario in Scenario::value_variants() {
            assert_eq!(scenario.to_string().parse(), Ok(*scenario));
        }
        assert_eq!(Scenario::FailedValidations.to_string(), "unproven-names");
        let error = "outage".parse::<Scenario>().unwrap_err();
        assert!(error.contains("outages, long-outage"), "{error}");
    }

    #[test]
    fn ca_faults_never_overlap_and_last_as_planned() {
        let all: Vec<_> = Scenario::all().collect();
        for seed in 0..50 {
            let events = at_the_ca(&all, seed, DAY * 365);
            assert_eq!(events.len(), 36);
            for pair in events.windows(2) {
                let over = pair[0].begins + pair[0].lasts;
                assert!(over + DAY <= pair[1].begins, "{pair:?}");
            }
            let outages = events
                .iter()
                .filter(|one| one.scenario == Scenario::Outages);
            let longest = outages.map(|one| one.lasts).max().unwrap();
            assert_eq!(longest, HOUR * 72);
            assert_eq!(events, at_the_ca(&all, seed, DAY * 365));
        }
        assert!(at_the_ca(&[Scenario::Crashes], 1, DAY * 365).is_empty());
    }
}
