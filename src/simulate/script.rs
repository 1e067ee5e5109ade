//! What goes wrong in one run, and when: known before anything happens, but for
//! the kills, which are noted as they come. It tells for how long a machine was
//! left in peace, so that what was left undone is excused by the script alone
//! and never by what the program says of itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::kill::Fuse;
use super::scenario::{Event, at_a_node, at_the_ca};
use super::{DAY, Plan, START, Scenario};
use crate::time::Timestamp;

/// From one instant to another.
type Span = (Timestamp, Timestamp);

/// All that goes wrong.
pub(super) struct Script {
    /// At the CA.
    pub(super) at_the_ca: Vec<Event>,
    /// By node.
    pub(super) at_a_node: Vec<Vec<Event>>,
    /// Where the first process of each node ends.
    pub(super) first_ends: Option<Fuse>,
    /// How long it may take until what was called back is replaced.
    replaced_within: Duration,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    /// Processes that did not run, by node.
    killed: Vec<Vec<Span>>,
    events: BTreeMap<Scenario, u64>,
}

impl Script {
    pub(super) fn new(plan: &Plan) -> Self {
        let (chosen, seed, span) = (&plan.scenarios, plan.seed, DAY * plan.days);
        let noted = Noted {
            killed: vec![Vec::new(); plan.nodes],
            events: chosen.iter().map(|scenario| (*scenario, 0)).collect(),
        };
        let nodes = 0..plan.nodes;
        Self {
            at_the_ca: at_the_ca(chosen, seed, span),
            at_a_node: nodes
                .map(|node| at_a_node(chosen, seed, node, span))
                .collect(),
            first_ends: None,
            replaced_within: Scenario::MassRevocation.recovers_among(chosen.iter().copied()),
            noted: Mutex::new(noted),
        }
    }

    /// It has happened once more.
    pub(super) fn happens(&self, scenario: Scenario) {
        *self.noted().events.entry(scenario).or_default() += 1;
    }

    /// How often each has happened.
    pub(super) fn happened(&self) -> BTreeMap<Scenario, u64> {
        self.noted().events.clone()
    }

    /// No process ran on `node` meanwhile.
    pub(super) fn killed(&self, node: usize, from: Timestamp, until: Timestamp) {
        self.noted().killed[node].push((from, until));
    }

    /// Whether at `now` the CA keeps orders from coming to anything, or has done
    /// so shortly before: what is left undone then is for that event to answer.
    pub(super) fn holds_up_orders(&self, now: Timestamp) -> bool {
        let mut spans = self.at_the_ca.iter().map(at_rest);
        spans.any(|(from, until)| from <= now && now < until)
    }

    /// When the mass revocation was that at `now` has time left to replace what it
    /// called back: that is for itself to answer, whoever ailed meanwhile.
    pub(super) fn called_back_at(&self, now: Timestamp) -> Option<Timestamp> {
        let all = self.at_the_ca.iter();
        let all = all.filter(|event| event.scenario == Scenario::MassRevocation);
        let mut ends = all.map(|event| lasting(event).1);
        ends.find(|ended| *ended <= now && now < *ended + self.replaced_within)
    }

    /// The longest time between `from` and `until` in which `node` and the CA were
    /// left in peace, but for what `scenario` itself still makes wait.
    pub(super) fn peace(
        &self,
        scenario: Scenario,
        node: usize,
        from: Timestamp,
        until: Timestamp,
    ) -> Duration {
        let at_the_ca = self.at_the_ca.iter();
        let others = at_the_ca.filter(|event| event.scenario != scenario || at(event) > from);
        let own = self.at_a_node[node].iter().map(lasting);
        let killed = self.noted().killed[node].clone();
        let troubles = others.map(waiting).chain(own).chain(killed);
        let troubles = troubles.filter(|(begins, ends)| *begins < until && *ends > from);
        let mut troubles: Vec<Span> = troubles.collect();
        troubles.sort_unstable();
        let (mut peace, mut since) = (Duration::ZERO, from);
        for (begins, ends) in troubles {
            peace = peace.max(begins.since(since));
            since = since.max(ends);
        }
        peace.max(until.since(since))
    }

    /// For how long the CA has kept orders from coming to anything until `now`.
    pub(super) fn held_up_until(&self, now: Timestamp) -> Duration {
        let spans = self.at_the_ca.iter().map(at_rest);
        spans
            .map(|(from, until)| until.min(now).since(from.min(now)))
            .sum()
    }

    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn at(event: &Event) -> Timestamp {
    START + event.begins
}

fn lasting(event: &Event) -> Span {
    (at(event), at(event) + event.lasts)
}

/// Until all of it should be well again.
fn at_rest(event: &Event) -> Span {
    let (begins, ends) = lasting(event);
    (begins, ends + event.scenario.recovers_within())
}

/// Until nothing of it makes anybody wait: what it takes then is as after any
/// other fault.
fn waiting(event: &Event) -> Span {
    let (begins, until) = at_rest(event);
    (begins, until - Scenario::Outages.recovers_within())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peace_is_what_the_longest_gap_between_troubles_is() {
        let plan = Plan {
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
        let peace = |scenario, from, until| {
            script.peace(scenario, 0, START + hour * from, START + hour * until)
        };
        let disks = Scenario::FullDisks;
        assert_eq!(peace(disks, 0, 2), hour * 2);
        assert_eq!(peace(disks, 1, 4), hour);
        // Five hours until the CA says no, and it asks for one more in the end.
        assert_eq!(peace(disks, 5, 12), hour * 5);
        assert_eq!(peace(disks, 9, 20), hour * 6);
        assert_eq!(peace(Scenario::RateLimits, 13, 15), hour * 2);
        script.killed(0, START + hour * 14, START + hour * 15);
        assert_eq!(peace_after_kill(&script, hour), hour * 4);
        assert!(script.holds_up_orders(START + hour * 14));
        assert!(!script.holds_up_orders(START + hour * 15));
    }

    #[test]
    fn what_is_called_back_is_for_the_revocation_to_answer_until_its_time_is_over() {
        let hour = Duration::from_secs(3600);
        let of = |scenarios| {
            let mut script = Script::new(&Plan {
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
        let asked = [9, 10, 16, 17, 30].map(|hours| alone.called_back_at(half + hour * hours));
        let then = Some(START + hour * 10);
        assert_eq!(asked, [None, then, then, None, None]);
        // A machine that is cut off is the one that asks.
        let ailing = of(vec![Scenario::MassRevocation, Scenario::CaCuts]);
        let longest = Scenario::CaCuts.keeps_a_machine_for();
        let over = START + hour * 10 + hour / 2 + hour * 7 + longest;
        assert_eq!(ailing.called_back_at(over - Duration::from_secs(1)), then);
        assert_eq!(ailing.called_back_at(over), None);
    }

    fn peace_after_kill(script: &Script, hour: Duration) -> Duration {
        script.peace(
            Scenario::RateLimits,
            0,
            START + hour * 13,
            START + hour * 19,
        )
    }
}
