//! `certs simulate`: simulates a fleet in virtual time and prints its scoreboard.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::{say, say_json};
use crate::failure::Failure;
use crate::simulate::{Scenario, Score, SimulationPlan, plot, simulate as play};

#[derive(Debug, Args)]
#[command(after_help = "\
The program's own decisions, flows, rate limiter and store run in virtual time,
with a CA that has Let's Encrypt's limits, and with disks, networks, proxies and
a shared store that fail by a script. Of ten certificates, five are valid for 45
days, four for 90 days and one for 160 hours. Signatures are real; HTTP and files
are omitted. The same options always give the same output.

Scenarios: all (the default: all of the following except long-outage), none,
outages (the CA is down for 2.5 h, 7 h 47 min, 24 h and 72 h), long-outage (14
days, all certificates of 45 days), rate-limits, mass-revocation,
useless-certificates, lost-replies, unproven-names, crashes, scaling,
partitions (from the CA and the shared store), store-cuts, ca-cuts (from one of
them), full-disks, deaf-proxies, suspensions, clocks (wrong by an hour, a day,
ten years). A named scenario without an event in the span is a usage error.

Those of the shared store last up to six hours: store-s3 (503 SlowDown, late
writes), store-etcd (elections, members that lag, watches that break),
store-postgres (restarts, a replica that refuses writes, lost notifications),
store-directory (NFS: a minute old, stale handles, a server that is gone for
minutes); in these four, replies get lost after the write, and some calls take
seconds. store-full takes no writes; store-restores wipes the store, or restores
yesterday's backup. A machine looks at the store every ten minutes, not every 15
seconds: an issuer that is gone is replaced after 20 minutes, not after one.

Exit code 0: no second with an expired or mismatched certificate was served, nor
with a placeholder instead of a certificate; no order was needless or refused by
the CA, and each due renewal took at most two; a CA that was down got at most
three more requests a minute than there are machines; and the fleet recovered
within 30 minutes of each fault, or as soon as the CA allows: 1 h 30 min after
rate-limits, 7 h 30 min after mass-revocation (longer if a machine has a fault at
that time), 34 h 6 min after useless-certificates, 26 h 54 min after
unproven-names. 1: otherwise.

Example: certs simulate --seed 7 --days 90 --scenario outages,clocks")]
pub(super) struct Simulate {
    /// The seed of all random decisions
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// The number of machines, each with a proxy, on one store
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: u16,
    /// The number of certificates that each machine serves
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    certificates: u32,
    /// The simulated time in days
    #[arg(long, value_name = "N", default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The faults to simulate
    #[arg(long = "scenario", value_name = "NAME", num_args = 1.., default_value = "all")]
    scenarios: Vec<String>,
    /// Draw the timeline as an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Runs the simulation and prints the scoreboard.
pub(super) fn simulate(options: &Simulate, json: bool) -> Result<(), Failure> {
    let plan = SimulationPlan {
        seed: options.seed,
        nodes: options.nodes.into(),
        certificates: options.certificates as usize,
        days: options.days,
        scenarios: scenarios(&options.scenarios)?,
    };
    // Before the simulation: an unwritable file must not waste its result.
    let file = options.plot.as_deref().map(create).transpose()?;
    let (score, timeline) = play(&plan).map_err(Failure::unexpected)?;
    // "all" and "none" are not names of events.
    let mut named = words(&options.scenarios);
    if let Some(name) = named.find(|name| score.events.get(*name) == Some(&0)) {
        return Err(Failure::usage(
            format!("no event of {name} happens in {} days", plan.days),
            "simulate more days, or, for scaling, more nodes: the first machine is never removed",
        ));
    }
    if let Some((path, mut file)) = file {
        let written = file.write_all(plot(&score, &timeline).as_bytes());
        written.map_err(|error| unwritable(path, &error))?;
    }
    if json {
        say_json(serde_json::to_string(&score)?);
    } else {
        table(&score);
    }
    match score.broken() {
        broken if broken.is_empty() => Ok(()),
        broken => Err(Failure::broken(
            format!("the simulation violated: {}", broken.join(", ")),
            "run it again with the same options and -v to see the log",
        )),
    }
}

fn create(path: &Path) -> Result<(&Path, File), Failure> {
    let file = File::create(path).map_err(|error| unwritable(path, &error))?;
    Ok((path, file))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("cannot write the plot {}: {error}", path.display());
    Failure::usage(message, "name a file in an existing, writable directory")
}

fn words(scenarios: &[String]) -> impl Iterator<Item = &str> {
    scenarios.iter().flat_map(|words| words.split(','))
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>, Failure> {
    let mut chosen = Vec::new();
    for name in words(names) {
        match name {
            "all" => chosen.extend(Scenario::all()),
            "none" => {}
            name => chosen.push(name.parse().map_err(|error: String| {
                Failure::usage(error, "certs simulate --help describes each scenario")
            })?),
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.len() > 1 && chosen.contains(&Scenario::LongOutage) {
        return Err(Failure::usage(
            "long-outage cannot be combined with other scenarios",
            "run it alone: certificates of 160 h expire during it",
        ));
    }
    Ok(chosen)
}

fn table(score: &Score) {
    let plan = &score.plan;
    say(format_args!(
        "seed {}: {} certificates on {} nodes for {} days",
        plan.seed, plan.certificates, plan.nodes, plan.days
    ));
    let scenarios: Vec<_> = plan.scenarios.iter().map(ToString::to_string).collect();
    let scenarios = match scenarios.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    say(format_args!("scenarios: {scenarios}"));
    for (label, count) in [
        ("expired seconds served", score.expired_seconds_served),
        ("mismatched seconds served", score.mismatched_seconds_served),
        ("due renewals", score.due_renewals),
        ("orders", score.orders),
        ("needless certificates", score.duplicate_certificates),
        ("orders refused by the CA's limits", score.refused_orders),
        (
            "placeholder seconds served despite a pair",
            score.placeholder_seconds_served,
        ),
        ("certificates never issued", score.certificates_never_issued),
        (
            "most orders for one renewal",
            score.most_orders_for_one_renewal,
        ),
        (
            "requests a minute to a CA that is down",
            score.requests_a_minute_while_down,
        ),
        (
            "longest served after revocation, seconds",
            score.revoked_seconds_served,
        ),
        ("leases expired", score.leases_run_out),
        ("late saves refused", score.late_saves_refused),
        ("reloads", score.reloads),
        ("reloads at most", score.reloads_at_most),
        ("worst recovery, seconds", score.worst_recovery_seconds),
    ] {
        say(format_args!("{label:<42}{count:>12}"));
    }
    if !score.events.is_empty() {
        let (events, recovery) = ("events", "recovery, s");
        say(format_args!("{:<30}{events:>12}{recovery:>12}", "scenario"));
    }
    for (name, count) in &score.events {
        let took = score
            .recovery_seconds
            .get(name)
            .copied()
            .unwrap_or_default();
        say(format_args!("{name:<30}{count:>12}{took:>12}"));
    }
}
