//! What goes wrong, by name, and when: drawn from the seed before anything
//! happens.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::DAY;
use crate::random::{Random, SeededRandom};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scenario {
    /// The CA is down for 2.5 h, 7 h 47 min, 24 h and 72 h in turn.
    Outages,
    /// The CA is down for 14 days; every certificate lives for 45 days.
    LongOutage,
    /// The CA answers every request with 429 for three hours.
    RateLimits,
    /// The CA calls back a third of what it has issued.
    MassRevocation,
    /// The CA signs certificates that are over in five minutes, for four hours.
    UselessCertificates,
    /// Three replies in a hundred are lost after the CA has acted.
    LostReplies,
    /// Control of one name in fifty cannot be proven for up to twelve hours.
    UnprovenNames,
    /// The process is killed at any moment, and fifty times in an hour.
    Crashes,
    /// Nodes are taken away for days and come back empty.
    Scaling,
    /// A node reaches neither the CA nor the shared store for hours.
    Partitions,
    /// A node can write nothing for hours.
    FullDisks,
    /// A node's proxy ignores the signal for hours.
    DeafProxies,
    /// A node stands still for hours, and its clock does not.
    Suspensions,
    /// A node reaches the CA, and not the shared store, for hours.
    StoreCuts,
    /// A node reaches the shared store, and not the CA, for hours.
    CaCuts,
    /// A node's clock is wrong by an hour, a day or ten years, for hours.
    Clocks,
}

/// All of them, with the names that a user gives them.
const ALL: &[(Scenario, &str)] = &[
    (Scenario::Outages, "outages"),
    (Scenario::LongOutage, "long-outage"),
    (Scenario::RateLimits, "rate-limits"),
    (Scenario::MassRevocation, "mass-revocation"),
    (Scenario::UselessCertificates, "useless-certificates"),
    (Scenario::LostReplies, "lost-replies"),
    (Scenario::UnprovenNames, "unproven-names"),
    (Scenario::Crashes, "crashes"),
    (Scenario::Scaling, "scaling"),
    (Scenario::Partitions, "partitions"),
    (Scenario::FullDisks, "full-disks"),
    (Scenario::DeafProxies, "deaf-proxies"),
    (Scenario::Suspensions, "suspensions"),
    (Scenario::StoreCuts, "store-cuts"),
    (Scenario::CaCuts, "ca-cuts"),
    (Scenario::Clocks, "clocks"),
];

impl Scenario {
    /// All that go together: 160 h certificates do not outlive the long outage.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let all = ALL.iter().map(|(scenario, _)| *scenario);
        all.filter(|scenario| *scenario != Self::LongOutage)
    }

    /// Every name that [`FromStr`] reads.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ALL.iter().map(|(_, name)| *name)
    }

    /// From the end of one of them until all is well at the latest, where nothing
    /// else goes wrong meanwhile.
    ///
    /// Half an hour is what a fleet takes that may act: a CA is asked again every
    /// 5 minutes (give or take a fifth), a hand-over and a store that cannot be
    /// written are tried again every 5 minutes, a lease that is taken is asked for
    /// again as often; a thousand orders, four at a time, take the rest of it.
    /// What the CA has asked us to wait for, or what must wait since it has failed,
    /// comes first.
    #[must_use]
    pub(crate) fn recovers_within(self) -> Duration {
        let waits = match self {
            // Its `Retry-After`.
            Self::RateLimits => HOUR,
            // Its windows are asked for every six hours, and what is called back
            // is spread over an hour.
            Self::MassRevocation => HOUR * 7,
            // What it has signed counts: when three of the five duplicates of a
            // week are spent, the next is there after a fifth of the week. The
            // back-off of a day is shorter.
            Self::UselessCertificates => DAY * 7 / 5,
            // After the fourth failure it is tried again after a day, give or take
            // a tenth.
            Self::UnprovenNames => DAY * 11 / 10,
            _ => Duration::ZERO,
        };
        waits + MINUTE * 30
    }

    /// The same where any of `chosen` may happen besides.
    pub(super) fn recovers_among(self, chosen: impl Iterator<Item = Self>) -> Duration {
        let ailment = chosen.map(Self::keeps_a_machine_for).max();
        match self {
            // Whoever is to ask for the window, or to order, may ail just then.
            Self::MassRevocation => self.recovers_within() + ailment.unwrap_or_default(),
            _ => self.recovers_within(),
        }
    }

    /// How long it keeps one machine from its work at the longest.
    pub(super) fn keeps_a_machine_for(self) -> Duration {
        let ailments = AT_A_NODE.iter();
        let longest = ailments.filter(|(scenario, ..)| *scenario == self);
        longest.map(|(_, _, most)| *most).max().unwrap_or_default()
    }

    /// Whether it happens to the CA, and so to all.
    pub(super) fn is_the_cas(self) -> bool {
        let mut at_the_ca = AT_THE_CA.iter().chain(LONG);
        at_the_ca.any(|(scenario, ..)| *scenario == self)
    }

    /// Its own sequence of draws.
    pub(super) fn random(self, seed: u64, node: usize) -> SeededRandom {
        let place = ALL.iter().position(|(scenario, _)| *scenario == self);
        let (place, node) = (place.unwrap_or_default() as u64, node as u64);
        // Any odd numbers: the generator mixes what they spread.
        let seed = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        SeededRandom::new(seed ^ (place << 48) ^ (node << 32) ^ 0x5851_f42d)
    }
}

impl fmt::Display for Scenario {
    /// As a user names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = ALL.iter().find(|(scenario, _)| scenario == self);
        f.write_str(named.map_or("", |(_, name)| name))
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = ALL.iter().find(|(_, name)| *name == text);
        named.map(|(scenario, _)| *scenario).ok_or_else(|| {
            let names: Vec<_> = Self::names().collect();
            format!(
                "`{}` is no scenario: there are {}, and all",
                text.escape_debug(),
                names.join(", ")
            )
        })
    }
}

/// What happens to the CA, or to a node, from one instant to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) scenario: Scenario,
    /// After the beginning.
    pub(super) begins: Duration,
    pub(super) lasts: Duration,
}

/// One thing that may happen, and how long it may last.
type Choice = (Scenario, Duration, Duration);

const AT_THE_CA: &[Choice] = &[
    (
        Scenario::Outages,
        HOUR.saturating_mul(72),
        HOUR.saturating_mul(72),
    ),
    (
        Scenario::RateLimits,
        HOUR.saturating_mul(3),
        HOUR.saturating_mul(3),
    ),
    (
        Scenario::Outages,
        MINUTE.saturating_mul(150),
        MINUTE.saturating_mul(150),
    ),
    (Scenario::MassRevocation, Duration::ZERO, Duration::ZERO),
    (Scenario::Outages, DAY, DAY),
    (
        Scenario::UselessCertificates,
        HOUR.saturating_mul(4),
        HOUR.saturating_mul(4),
    ),
    (
        Scenario::Outages,
        MINUTE.saturating_mul(467),
        MINUTE.saturating_mul(467),
    ),
    (Scenario::UnprovenNames, HOUR, HOUR.saturating_mul(12)),
];

const LONG: &[Choice] = &[(
    Scenario::LongOutage,
    DAY.saturating_mul(14),
    DAY.saturating_mul(14),
)];

const AT_A_NODE: &[Choice] = &[
    (Scenario::FullDisks, HOUR, HOUR.saturating_mul(4)),
    (Scenario::Partitions, HOUR, HOUR.saturating_mul(4)),
    (
        Scenario::DeafProxies,
        MINUTE.saturating_mul(10),
        HOUR.saturating_mul(4),
    ),
    (
        Scenario::Suspensions,
        MINUTE.saturating_mul(10),
        HOUR.saturating_mul(4),
    ),
    (Scenario::StoreCuts, HOUR, HOUR.saturating_mul(4)),
    (Scenario::CaCuts, HOUR, HOUR.saturating_mul(4)),
    (Scenario::Clocks, HOUR, HOUR.saturating_mul(12)),
];

/// A CA that calls the same certificates back again and again is taken for one
/// that has gone wrong, and is left alone for longer each time.
const BETWEEN_REVOCATIONS: Duration = DAY.saturating_mul(60);

/// What happens to the CA: never two things at once, and all is well for days
/// in between, since each of them alone may take what a short life leaves.
pub(super) fn at_the_ca(chosen: &[Scenario], seed: u64, span: Duration) -> Vec<Event> {
    let random = Scenario::Outages.random(seed, 0);
    let mut events = plan(AT_THE_CA, chosen, &random, span, DAY * 10);
    let mut last = None;
    events.retain(|event: &Event| {
        let called_back = event.scenario == Scenario::MassRevocation;
        let soon = last.is_some_and(|last| event.begins < last + BETWEEN_REVOCATIONS);
        if called_back && !soon {
            last = Some(event.begins);
        }
        !called_back || !soon
    });
    events.extend(plan(LONG, chosen, &random, span, DAY * 60));
    events
}

/// What happens to one node; the others go on meanwhile.
pub(super) fn at_a_node(chosen: &[Scenario], seed: u64, node: usize, span: Duration) -> Vec<Event> {
    let random = Scenario::FullDisks.random(seed, node);
    plan(AT_A_NODE, chosen, &random, span, DAY * 5)
}

/// One thing in each slot, in turn from a drawn beginning, at a drawn instant.
fn plan(
    choices: &[Choice],
    chosen: &[Scenario],
    random: &dyn Random,
    span: Duration,
    slot: Duration,
) -> Vec<Event> {
    let choices: Vec<&Choice> = choices
        .iter()
        .filter(|(scenario, ..)| chosen.contains(scenario))
        .collect();
    if choices.is_empty() {
        return Vec::new();
    }
    let first = random.below(choices.len() as u64) as usize;
    let slots = (span.as_secs() / slot.as_secs()) as usize;
    let events = (0..slots).map(|number| {
        let (scenario, least, most) = choices[(first + number) % choices.len()];
        let lasts = *least + part(*most - *least, random);
        // A fifth of the slot at least is quiet, at its end: what it has left
        // undone is done before the next one begins.
        let free = slot.saturating_sub(lasts).saturating_sub(slot / 5);
        Event {
            scenario: *scenario,
            begins: slot * number as u32 + part(free, random),
            lasts,
        }
    });
    events.collect()
}

/// By how much a clock is wrong, in turn: milliseconds ahead.
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
    fn every_name_is_read_as_it_is_written() {
        for name in Scenario::names() {
            assert_eq!(name.parse::<Scenario>().unwrap().to_string(), name);
        }
        let error = "outage".parse::<Scenario>().unwrap_err();
        assert!(error.contains("outages, long-outage"), "{error}");
    }

    #[test]
    fn what_happens_to_the_ca_never_overlaps_and_lasts_what_it_should() {
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
