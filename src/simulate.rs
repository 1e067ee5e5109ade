//! A fleet for a year in seconds: the real supervisor, flows, decisions, ledger
//! and store, over a clock that jumps to whatever is next, and over a CA,
//! disks, networks and proxies that fail by a script drawn from a seed. Left
//! out are HTTP, real files and the waiting; signatures are real.
//!
//! It asks one question: did any client see a certificate that was over, or one
//! that does not fit its key? The same plan gives the same answer to the byte.

mod authority;
mod disk;
mod faults;
mod fleet;
mod issuer;
mod kill;
mod limits;
mod node;
mod plot;
pub(crate) mod scenario;
mod script;
mod store;
mod tally;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

pub(crate) use plot::plot;
pub(crate) use scenario::Scenario;

use crate::certificate::BundleError;
use crate::time::Timestamp;

const DAY: Duration = Duration::from_secs(86_400);
/// 2026-12-01T00:00:00Z.
const START: Timestamp = Timestamp::from_seconds(1_796_083_200);

/// What is simulated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Everything that is left to chance follows from it.
    pub seed: u64,
    /// Machines with a proxy each, on one store.
    pub nodes: usize,
    /// Certificates that each of them serves.
    pub certificates: usize,
    /// How long.
    pub days: u32,
    /// What goes wrong.
    pub scenarios: Vec<Scenario>,
}

/// The scoreboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Score {
    /// As in the plan.
    pub seed: u64,
    /// As in the plan.
    pub nodes: usize,
    /// As in the plan.
    pub certificates: usize,
    /// As in the plan.
    pub days: u32,
    /// As in the plan, by name.
    pub scenarios: Vec<String>,
    /// Summed over proxies and certificates.
    pub expired_seconds_served: u64,
    /// For how long a certificate was served for another key or another name.
    pub mismatched_seconds_served: u64,
    /// Certificates that somebody needed, first ones among them.
    pub due_renewals: u64,
    /// Orders that the CA took.
    pub orders: u64,
    /// Certificates that nobody needed.
    pub duplicate_certificates: u64,
    /// Orders that the CA refused by its own limits.
    pub ledger_breaches: u64,
    /// How often a proxy was made to load its certificates.
    pub reloads: u64,
    /// How often that may be: once a proxy for each certificate, and what is due
    /// to machines that come back, and to processes and disks that fail.
    pub reloads_at_most: u64,
    /// From the end of a fault to the last certificate that it had held up, of
    /// the faults after which nothing makes us wait.
    pub worst_recovery_seconds: u64,
    /// For how long a proxy served no certificate though the CA had signed one,
    /// beyond an hour and a half of peace; or a placeholder after a certificate.
    pub placeholder_seconds_served: u64,
    /// First certificates that the CA would have signed, had it been asked.
    pub certificates_never_issued: u64,
    /// The most orders for one certificate that was due. What the script has
    /// lost, or made useless, does not count.
    pub most_orders_for_one_renewal: u64,
    /// The most requests of all machines in one minute to a CA that has been down for
    /// five minutes or longer.
    pub requests_a_minute_while_down: u64,
    /// The longest that a certificate was served after it was called back.
    pub revoked_seconds_served: u64,
    /// Leases of machines that were not heard of.
    pub leases_run_out: u64,
    /// What such machines would have stored later, and was refused.
    pub late_saves_refused: u64,
    /// What went wrong how often, by scenario.
    pub events: BTreeMap<String, u64>,
    /// As the worst recovery, by scenario.
    pub recovery_seconds: BTreeMap<String, u64>,
}

impl Score {
    /// What was promised and not kept; empty when all is well.
    #[must_use]
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut zero = |count: u64, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        zero(self.expired_seconds_served, "expired seconds served");
        zero(self.mismatched_seconds_served, "mismatched seconds served");
        zero(
            self.duplicate_certificates,
            "certificates that nobody needed",
        );
        zero(self.ledger_breaches, "orders that the CA had to refuse");
        zero(
            self.placeholder_seconds_served,
            "seconds without a certificate that there was",
        );
        zero(
            self.certificates_never_issued,
            "certificates were never issued",
        );
        if self.orders > 2 * self.due_renewals {
            let (orders, due) = (self.orders, self.due_renewals);
            broken.push(format!("{orders} orders for {due} due renewals"));
        }
        if self.most_orders_for_one_renewal > 2 {
            let orders = self.most_orders_for_one_renewal;
            broken.push(format!("{orders} orders for one renewal"));
        }
        if self.reloads > self.reloads_at_most {
            let (reloads, most) = (self.reloads, self.reloads_at_most);
            broken.push(format!("{reloads} reloads, and {most} are allowed"));
        }
        // One asks for all every few minutes; who knows nothing of the others, or has
        // another time, asks for itself.
        let knocks = self.requests_a_minute_while_down;
        if knocks > self.nodes as u64 + 3 {
            broken.push(format!(
                "a CA that was down was asked {knocks} times a minute"
            ));
        }
        for (name, took) in &self.recovery_seconds {
            let scenario = name.parse::<Scenario>();
            let within = scenario.map_or(0, |scenario| self.allowed(scenario).as_secs());
            if *took > within {
                broken.push(format!(
                    "{took} seconds until all was well after {name}, and {within} are allowed"
                ));
            }
        }
        broken
    }

    /// How long it may take until all is well after `scenario`.
    fn allowed(&self, scenario: Scenario) -> Duration {
        let chosen = self.scenarios.iter().filter_map(|name| name.parse().ok());
        scenario.recovers_among(chosen)
    }
}

/// How it went, for a plot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Timeline {
    /// At the end of each quarter of a day: the least part of a life that was
    /// left of anything served, in thousandths.
    pub least_left: Vec<u32>,
    /// Renewals ordered outside of the window that the CA had suggested: after
    /// an outage that was longer, or because it called a certificate back.
    pub outside_window: u64,
    /// Orders on each day.
    pub orders: Vec<u64>,
    /// What happened, as hours from the beginning, with its name.
    pub events: Vec<(u64, u64, String)>,
}

/// Why there is no result.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum SimulationError {
    #[error("the runtime could not be made: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("the CA's keys could not be made: {0}")]
    Authority(#[from] crate::ca::CaError),
    #[error("a private key could not be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("a name of the simulation is not one: {0}")]
    Name(String),
    #[error("a certificate of the simulation is not usable: {0}")]
    Bundle(#[from] BundleError),
}

/// Plays `plan` to its end.
///
/// # Errors
/// When it could not begin; what goes wrong in it is its result.
pub(crate) fn simulate(plan: &Plan) -> Result<(Score, Timeline), SimulationError> {
    fleet::play(plan)
}

#[cfg(test)]
mod tests;
