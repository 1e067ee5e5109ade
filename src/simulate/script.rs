//! The faults of one run and their times, known before the start except for the
//! kills, which are logged as they come. It says for how long a machine was
//! undisturbed, so that only the script excuses an unfinished certificate, and
//! never the program's own status.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use super::kill::KillSwitch;
use super::scenario::{Event, at_a_node, at_the_ca, at_the_store};
use super::{DAY, GONE, START, Scenario, SimulationPlan, lock};
use crate::time::Timestamp;

type Span = (Timestamp, Timestamp);

/// Another machine has taken the place of the one that orders, and has ordered.
const REPLACED: Duration = GONE.saturating_add(Duration::from_secs(300));

pub(super) struct Script {
    pub(super) at_the_ca: Vec<Event>,
    pub(super) at_a_node: Vec<Vec<Event>>,
    pub(super) at_the_store: Vec<Event>,
    /// The point at which the first process of each node is killed.
    pub(super) first_ends: Option<KillSwitch>,
    /// The longest allowed time until revoked certificates are replaced.
    replaced_within: Duration,
    log: Mutex<EventLog>,
}

#[derive(Default)]
struct EventLog {
    /// Spans without a process, by node.
    killed: Vec<Vec<Span>>,
    events: BTreeMap<Scenario, u64>,
}

impl Script {
    pub(super) fn new(plan: &SimulationPlan) -> Self {
        let (chosen, seed, span) = (&plan.scenarios, plan.seed, DAY * plan.days);
        let log = EventLog {
            killed: vec![Vec::new(); plan.nodes],
            events: chosen.iter().map(|scenario| (*scenario, 0)).collect(),
        };
        let nodes = (0..plan.nodes).map(|node| at_a_node(chosen, seed, node, span));
        Self {
            at_the_ca: at_the_ca(chosen, seed, span),
            at_a_node: nodes.collect(),
            at_the_store: at_the_store(chosen, seed, span),
            first_ends: None,
            replaced_within: Scenario::MassRevocation.recovers_among(chosen.iter().copied()),
            log: Mutex::new(log),
        }
    }

    pub(super) fn happens(&self, scenario: Scenario) {
        *lock(&self.log).events.entry(scenario).or_default() += 1;
    }

    pub(super) fn happened(&self) -> BTreeMap<Scenario, u64> {
        lock(&self.log).events.clone()
    }

    /// Logs that no process ran on `node` in this span.
    pub(super) fn killed(&self, node: usize, from: Timestamp, until: Timestamp) {
        lock(&self.log).killed[node].push((from, until));
    }

    /// Whether the CA blocks orders at `now`, or did so shortly before: unfinished
    /// certificates then belong to that fault.
    pub(super) fn blocks_orders(&self, now: Timestamp) -> bool {
        let mut spans = self.at_the_ca.iter().map(at_rest);
        spans.any(|(from, until)| from <= now && now < until)
    }

    /// The instant of the mass revocation whose replacements are still allowed at
    /// `now`: they belong to it, even if a node had a fault meanwhile.
    pub(super) fn revoked_at(&self, now: Timestamp) -> Option<Timestamp> {
        let all = self.at_the_ca.iter();
        let all = all.filter(|event| event.scenario == Scenario::MassRevocation);
        let mut ends = all.map(|event| lasting(event).1);
        ends.find(|ended| *ended <= now && now < *ended + self.replaced_within)
    }

    /// The longest span between `from` and `until` without another fault of `node`
    /// or the CA, the pause of `scenario` itself excepted.
    pub(super) fn undisturbed(
        &self,
        scenario: Scenario,
        node: usize,
        from: Timestamp,
        until: Timestamp,
    ) -> Duration {
        let at_the_ca = self.at_the_ca.iter();
        let others = at_the_ca.filter(|event| event.scenario != scenario || at(event) > from);
        let own = self.at_a_node[node].iter().chain(&self.at_the_store);
        let faults = others.map(waiting).chain(own.map(lasting));
        // Any machine may be the one that orders; another one replaces it.
        let elsewhere = self.at_a_node.iter().enumerate();
        let elsewhere = elsewhere.filter(|(other, _)| *other != node);
        let elsewhere = elsewhere.flat_map(|(_, events)| events).map(lasting);
        let killed: Vec<Span> = lock(&self.log).killed.concat();
        let elsewhere = elsewhere.chain(killed);
        let replaced = elsewhere.map(|(begins, ends)| (begins, ends + REPLACED));
        let faults = faults.chain(replaced);
        let faults = faults.filter(|(begins, ends)| *begins < until && *ends > from);
        let mut faults: Vec<Span> = faults.collect();
        faults.sort_unstable();
        let (mut undisturbed, mut since) = (Duration::ZERO, from);
        for (begins, ends) in faults {
            undisturbed = undisturbed.max(begins.since(since));
            since = since.max(ends);
        }
        undisturbed.max(until.since(since))
    }

    /// The total time until `now` in which the CA blocked orders.
    pub(super) fn blocked_until(&self, now: Timestamp) -> Duration {
        let spans = self.at_the_ca.iter().map(at_rest);
        let times = spans.map(|(from, until)| until.min(now).since(from.min(now)));
        times.sum()
    }
}

fn at(event: &Event) -> Timestamp {
    START + event.begins
}

fn lasting(event: &Event) -> Span {
    (at(event), at(event) + event.lasts)
}

/// The fault with its allowed recovery.
fn at_rest(event: &Event) -> Span {
    let (begins, ends) = lasting(event);
    (begins, ends + event.scenario.recovers_within())
}

/// The fault with its own pause, such as a `Retry-After`, without the recovery
/// that follows every fault.
fn waiting(event: &Event) -> Span {
    let (begins, until) = at_rest(event);
    (begins, until - Scenario::Outages.recovers_within())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undisturbed_is_the_longest_gap_between_faults() {
        let plan = SimulationPlan {
            seed: 1,
            nodes: 1,
            certificates: 1,
            days: 30,
            scenarios: vec![],
        };
        let hour = Duration::from_secs(3600);
        let mut script = Script::new(&plan);
        let event = |scenario, begins, lasts| Event {
            scenario,
            begins: hour * begins,
            lasts: hour * lasts,
        };
        script.at_the_ca = vec![event(Scenario::RateLimits, 10, 3)];
        script.at_a_node = vec![vec![event(Scenario::FullDisks, 2, 3)]];
        let undisturbed = |scenario, from, until| {
            script.undisturbed(scenario, 0, START + hour * from, START + hour * until)
        };
        let disks = Scenario::FullDisks;
        assert_eq!(undisturbed(disks, 0, 2), hour * 2);
        assert_eq!(undisturbed(disks, 1, 4), hour);
        // Five hours until the rate limit, which adds an hour of `Retry-After`.
        assert_eq!(undisturbed(disks, 5, 12), hour * 5);
        assert_eq!(undisturbed(disks, 9, 20), hour * 6);
        assert_eq!(undisturbed(Scenario::RateLimits, 13, 15), hour * 2);
        script.killed(0, START + hour * 14, START + hour * 15);
        assert_eq!(undisturbed_after_kill(&script, hour), hour * 4 - REPLACED);
        assert!(script.blocks_orders(START + hour * 14));
        assert!(!script.blocks_orders(START + hour * 15));
    }

    #[test]
    fn revoked_at_covers_the_allowed_replacement_time() {
        let hour = Duration::from_secs(3600);
        let of = |scenarios| {
            let mut script = Script::new(&SimulationPlan {
                seed: 1,
                nodes: 1,
                certificates: 1,
                days: 30,
                scenarios,
            });
            let event = |scenario| Event {
                scenario,
                begins: hour * 10,
                lasts: Duration::ZERO,
            };
            script.at_the_ca = vec![event(Scenario::Outages), event(Scenario::MassRevocation)];
            script
        };
        let alone = of(vec![Scenario::MassRevocation]);
        let half = START + hour / 2;
        let found = [9, 10, 16, 17, 30].map(|hours| alone.revoked_at(half + hour * hours));
        let then = Some(START + hour * 10);
        assert_eq!(found, [None, then, then, None, None]);
        // The node that must refresh may be cut off.
        let ailing = of(vec![Scenario::MassRevocation, Scenario::CaCuts]);
        let longest = Scenario::CaCuts.longest_at_a_node();
        let over = START + hour * 10 + hour / 2 + hour * 7 + longest;
        assert_eq!(ailing.revoked_at(over - Duration::from_secs(1)), then);
        assert_eq!(ailing.revoked_at(over), None);
    }

    fn undisturbed_after_kill(script: &Script, hour: Duration) -> Duration {
        script.undisturbed(
            Scenario::RateLimits,
            0,
            START + hour * 13,
            START + hour * 19,
        )
    }
}
