//! `certs simulate`: a year of a fleet in virtual time, and its scoreboard.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use super::output::say;
use crate::failure::Failure;
use crate::simulate::{Plan, Scenario, Score, plot, simulate as play};

/// Options of `simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
The program's own decisions, flows, ledger and store run over a clock that jumps
to whatever is next, and over a CA with Let's Encrypt's limits, disks, networks
and proxies that fail by a script. Of ten certificates, five live for 45 days,
four for 90 days and one for 160 hours. Signatures are real; HTTP and files are left out.
The same options give the same output to the byte.

Scenarios: all (the default: all that follow but long-outage), none,
outages (the CA is down for 2.5 h, 7 h 47 min, 24 h and 72 h), long-outage (14
days, all certificates of 45 days), rate-limits, mass-revocation,
useless-certificates, lost-replies, unproven-names, crashes, scaling,
partitions (from the CA and the shared store), store-cuts, ca-cuts (from one of
them), full-disks, deaf-proxies, suspensions, clocks (wrong by an hour, a day,
ten years). One that is named and has no event in the span is a usage error.

Exit code 0: no expired and no mismatched second was served, and no placeholder
where there was a certificate; no order was needless or refused by the CA, at
most two orders for each due renewal; a CA that was down was asked no more often
in a minute than there are machines, and three times; and all was well within 30
minutes after each fault, or as long after it as the CA makes us wait: 1 h 30 min
after rate-limits, 7 h 30 min after mass-revocation (and as long as a machine may
ail just then), 34 h 6 min after useless-certificates, 26 h 54 min after
unproven-names; 1: otherwise.")]
pub struct Simulate {
    /// All that is left to chance follows from it
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Machines with a proxy each, on one store
    #[arg(long, value_name = "N", default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=100))]
    nodes: u16,
    /// Certificates that each of them serves
    #[arg(long, value_name = "N", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..=100_000))]
    certificates: u32,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 365,
        value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// What goes wrong
    #[arg(long = "scenario", value_name = "NAME", num_args = 1.., default_value = "all")]
    scenarios: Vec<String>,
    /// Draw the story as an SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Plays it and prints the scoreboard.
pub(super) fn simulate(options: &Simulate, json: bool) -> Result<(), Failure> {
    let plan = Plan {
        seed: options.seed,
        nodes: options.nodes.into(),
        certificates: options.certificates as usize,
        days: options.days,
        scenarios: scenarios(&options.scenarios)?,
    };
    let named = options.scenarios.iter().flat_map(|names| names.split(','));
    let named: Vec<&str> = named
        .filter(|name| !matches!(*name, "all" | "none"))
        .collect();
    // Before the work, which would be lost.
    let file = options.plot.as_deref().map(create).transpose()?;
    let (score, timeline) = play(&plan).map_err(|error| Failure::unexpected(error.to_string()))?;
    if let Some(name) = named
        .iter()
        .find(|name| score.events.get(**name) == Some(&0))
    {
        return Err(Failure::usage(
            format!("nothing of {name} happens in {} days", plan.days),
            "play more days, or, for scaling, more nodes: the first machine is never taken away",
        ));
    }
    if let Some((path, mut file)) = file {
        let written = file.write_all(plot(&score, &timeline).as_bytes());
        written.map_err(|error| unwritable(path, &error))?;
    }
    if json {
        let json = serde_json::to_string(&score);
        say(json.map_err(|error| Failure::unexpected(error.to_string()))?);
    } else {
        table(&score);
    }
    match score.broken() {
        broken if broken.is_empty() => Ok(()),
        broken => Err(Failure::broken(
            format!("not kept: {}", broken.join(", ")),
            "the same options replay it exactly; -v tells what the parts said",
        )),
    }
}

fn create(path: &Path) -> Result<(&Path, File), Failure> {
    let file = File::create(path).map_err(|error| unwritable(path, &error))?;
    Ok((path, file))
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let message = format!("the plot {} cannot be written: {error}", path.display());
    Failure::usage(
        message,
        "name a file in a directory that exists and is yours",
    )
}

fn scenarios(names: &[String]) -> Result<Vec<Scenario>, Failure> {
    let mut chosen = Vec::new();
    for name in names.iter().flat_map(|names| names.split(',')) {
        match name {
            "all" => chosen.extend(Scenario::all()),
            "none" => {}
            name => chosen.push(name.parse().map_err(|error: String| {
                Failure::usage(error, "certs simulate --help tells what each of them is")
            })?),
        }
    }
    chosen.sort_unstable();
    chosen.dedup();
    if chosen.len() > 1 && chosen.contains(&Scenario::LongOutage) {
        return Err(Failure::usage(
            "long-outage goes with no other scenario",
            "play it by itself: 160 h certificates do not outlive it",
        ));
    }
    Ok(chosen)
}

fn table(score: &Score) {
    say(format_args!(
        "seed {}: {} certificates on {} nodes for {} days",
        score.seed, score.certificates, score.nodes, score.days
    ));
    let scenarios = match score.scenarios.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    say(format_args!("scenarios: {scenarios}"));
    for (what, count) in [
        ("expired seconds served", score.expired_seconds_served),
        ("mismatched seconds served", score.mismatched_seconds_served),
        ("due renewals", score.due_renewals),
        ("orders", score.orders),
        (
            "certificates that nobody needed",
            score.duplicate_certificates,
        ),
        ("orders refused by the CA's limits", score.ledger_breaches),
        (
            "seconds without a certificate there was",
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
            "longest served when called back, seconds",
            score.revoked_seconds_served,
        ),
        ("leases that ran out", score.leases_run_out),
        ("late saves refused", score.late_saves_refused),
        ("reloads", score.reloads),
        ("reloads at most", score.reloads_at_most),
        ("worst recovery, seconds", score.worst_recovery_seconds),
    ] {
        say(format_args!("{what:<42}{count:>12}"));
    }
    if !score.events.is_empty() {
        say(format_args!(
            "{:<30}{:>12}{:>12}",
            "scenario", "events", "recovery, s"
        ));
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
