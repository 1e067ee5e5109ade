//! A fleet for a year in seconds: the real supervisor, flows, decisions, rate
//! limits and store, over a clock that jumps to the next event, and over a CA,
//! disks, networks and proxies that fail by a script drawn from a seed. It has no
//! HTTP, no real files and no waiting; signatures are real.
//!
//! The question: did any client see an expired certificate, or one that does not
//! match its key? The same plan gives the same score to the byte.

mod ca;
mod copy;
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
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

pub(crate) use plot::plot;
pub(crate) use scenario::Scenario;

use crate::time::Timestamp;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// An issuer that is gone is replaced after this time; in a real fleet, after a minute.
const GONE: Duration = Duration::from_secs(20 * 60);
/// 2026-12-01T00:00:00Z.
const START: Timestamp = Timestamp::from_seconds(1_796_083_200);

/// The plan of a simulation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct SimulationPlan {
    /// The seed of every random draw.
    pub seed: u64,
    /// Machines with a proxy each, on one store.
    pub nodes: usize,
    /// Certificates that each machine serves.
    pub certificates: usize,
    pub days: u32,
    pub scenarios: Vec<Scenario>,
}

/// The scoreboard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Score {
    #[serde(flatten)]
    pub plan: SimulationPlan,
    /// Summed over proxies and certificates.
    pub expired_seconds_served: u64,
    /// Seconds with a certificate for another key or another name.
    pub mismatched_seconds_served: u64,
    /// Certificates that were needed, first ones included.
    pub due_renewals: u64,
    /// Orders that the CA accepted.
    pub orders: u64,
    pub duplicate_certificates: u64,
    /// Orders that the CA refused by its rate limits.
    #[serde(rename = "ledger_breaches")]
    pub refused_orders: u64,
    /// Reloads of all proxies.
    pub reloads: u64,
    /// The allowed reloads: one for each proxy and certificate, and more for
    /// machines that return, and for processes and disks that fail.
    pub reloads_at_most: u64,
    /// The time from the end of a fault to the last certificate that it delayed,
    /// for faults without a pause of their own.
    pub worst_recovery_seconds: u64,
    /// Seconds in which a proxy served no certificate although the CA had signed
    /// one, beyond 90 undisturbed minutes; or a placeholder after a certificate.
    pub placeholder_seconds_served: u64,
    /// First certificates that were possible and never ordered.
    pub certificates_never_issued: u64,
    /// The most orders for one certificate that was due. Orders that the script
    /// lost or made useless do not count.
    pub most_orders_for_one_renewal: u64,
    /// The most requests of all machines in one minute to a CA that has been down for
    /// five minutes or longer.
    pub requests_a_minute_while_down: u64,
    /// The longest time that a certificate was served after its revocation.
    pub revoked_seconds_served: u64,
    /// Leases of machines that were taken over by another one.
    pub leases_run_out: u64,
    /// Writes of a record that were refused, since another one came first.
    pub late_saves_refused: u64,
    pub events: BTreeMap<String, u64>,
    /// The worst recovery by scenario.
    pub recovery_seconds: BTreeMap<String, u64>,
}

impl Score {
    /// The violated promises.
    #[must_use]
    pub(crate) fn broken(&self) -> Vec<String> {
        let (expired, mismatched) = (self.expired_seconds_served, self.mismatched_seconds_served);
        let (needless, refused) = (self.duplicate_certificates, self.refused_orders);
        let (placeholder, unissued) = (
            self.placeholder_seconds_served,
            self.certificates_never_issued,
        );
        let zero = [
            (expired, "expired seconds served"),
            (mismatched, "mismatched seconds served"),
            (needless, "certificates that were not needed"),
            (refused, "orders refused by the CA's rate limits"),
            (
                placeholder,
                "seconds without the certificate that was issued",
            ),
            (unissued, "certificates were never issued"),
        ];
        let violated = zero.iter().filter(|(count, _)| *count > 0);
        let violated = violated.map(|(count, what)| format!("{count} {what}"));
        let mut broken: Vec<String> = violated.collect();
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
        // One probe serves all; a node that is cut off or whose clock is wrong
        // sends its own.
        let outage_requests = self.requests_a_minute_while_down;
        if outage_requests > self.plan.nodes as u64 + 3 {
            let requests = format!("{outage_requests} requests a minute");
            broken.push(format!("{requests} to a CA that was down"));
        }
        for (name, took) in &self.recovery_seconds {
            let chosen = self.plan.scenarios.iter().copied();
            let within = name.parse().map(|one: Scenario| one.recovers_among(chosen));
            let within = within.unwrap_or_default().as_secs();
            if *took > within {
                broken.push(format!(
                    "{took} seconds to recover after {name}, and {within} are allowed"
                ));
            }
        }
        broken
    }
}

/// The course of a simulation, for a plot.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Timeline {
    /// The shortest remaining lifetime of any served certificate, in thousandths
    /// of its lifetime, every six hours.
    pub least_left: Vec<u32>,
    /// Renewals ordered outside of the suggested window: after a longer outage, or
    /// after a revocation.
    pub outside_window: u64,
    pub orders: Vec<u64>,
    /// The faults: first hour, last hour, name.
    pub events: Vec<(u64, u64, String)>,
}

/// Why a simulation could not run.
#[derive(Debug, Error)]
#[allow(missing_docs)] // each message is its own documentation
pub(crate) enum SimulationError {
    #[error("the runtime could not be made: {0}")]
    Runtime(#[from] std::io::Error),
    #[error("the CA's keys could not be made: {0}")]
    Authority(#[from] crate::ca::CaError),
    #[error("a private key could not be made: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the sealing key could not be read: {0}")]
    Seal(#[from] crate::store::seal::SealError),
    #[error("invalid name in the simulation: {0}")]
    Name(String),
}

/// Runs `plan` to its end.
///
/// # Errors
/// When it cannot start; faults of the script are part of the score.
pub(crate) fn simulate(plan: &SimulationPlan) -> Result<(Score, Timeline), SimulationError> {
    fleet::play_by(plan, script::Script::new(plan))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
