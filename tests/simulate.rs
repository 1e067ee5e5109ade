//! `certs simulate` on the command line. `tests/seeds` proves its results with many seeds; these runs are
//! short.

use std::process::Output;

use crate::support::{certs, run, text};

const SMALL: [&str; 5] = ["simulate", "--nodes", "2", "--certificates", "4"];

/// Runs it, asserts exit code `code`, and returns stdout and stderr.
fn play(arguments: &[&str], code: i32) -> (String, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = certs(directory.path());
    command.args(SMALL).args(arguments);
    if !arguments.contains(&"--days") {
        command.args(["--days", "20"]);
    }
    let output: Output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    // The command needs no directory and creates none.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn simulate_report_is_stable_and_has_fixed_names() {
    let (json, _) = play(&["--json", "--seed", "3"], 0);
    insta::assert_snapshot!("simulate-seed-3", json);
    let score: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (key, value) in [
        ("seed", 3),
        ("nodes", 2),
        ("certificates", 4),
        ("days", 20),
        ("expired_seconds_served", 0),
        ("mismatched_seconds_served", 0),
        ("duplicate_certificates", 0),
        ("ledger_breaches", 0),
    ] {
        assert_eq!(score[key], value, "{key}: {json}");
    }
    for key in ["due_renewals", "orders", "reloads"] {
        assert!(score[key].as_u64().unwrap() >= 4, "{key}: {json}");
    }
    assert!(score["worst_recovery_seconds"].as_u64().is_some(), "{json}");
}

#[test]
fn simulate_rejects_scenario_that_never_occurs() {
    let said = play(&["--days", "9", "--scenario", "outages"], 2).1;
    assert!(
        said.contains("no event of outages happens in 9 days"),
        "{said}"
    );
    assert!(said.contains("hint: simulate more days"), "{said}");
    // A scenario that is not named may be absent.
    play(&["--days", "2", "--scenario", "all"], 0);
}

#[test]
fn simulate_counts_faults_by_scenario() {
    let (json, _) = play(&["--json", "--scenario", "full-disks", "clocks"], 0);
    let score: serde_json::Value = serde_json::from_str(&json).unwrap();
    for scenario in ["full-disks", "clocks"] {
        assert!(score["events"][scenario].as_u64().unwrap() > 0, "{json}");
        assert!(score["recovery_seconds"][scenario].is_u64(), "{json}");
    }
    assert_eq!(score["events"].as_object().unwrap().len(), 2, "{json}");
}

#[test]
fn simulate_rejects_unknown_scenario_and_lists_known_ones() {
    let said = play(&["--scenario", "outage"], 2).1;
    assert!(
        said.contains("unknown scenario `outage`: use all, or one of outages,"),
        "{said}"
    );
    assert!(said.contains("hint: certs simulate --help"), "{said}");
    let said = play(&["--plot", "/nowhere/year.svg"], 2).1;
    assert!(
        said.contains("cannot write the plot /nowhere/year.svg"),
        "{said}"
    );
}

#[test]
fn simulate_writes_svg_plot_and_table() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("year.svg");
    let plot = ["--plot", path.to_str().unwrap()];
    let scenarios = ["--scenario", "outages", "full-disks"];
    let (shown, _) = play(&[&plot[..], &scenarios].concat(), 0);
    assert!(shown.contains("scenarios: outages, full-disks"), "{shown}");
    let none = "expired seconds served                               0";
    assert!(shown.contains(none), "{shown}");
    let svg = std::fs::read_to_string(&path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(svg.contains(">outages</text>"), "{svg}");
}

#[test]
fn hints_of_simulations_are_followed() {
    let directory = tempfile::tempdir().unwrap();
    let few = ["--certificates", "1", "--nodes", "1", "--days"];
    let simulate = |arguments: &[&str], code| {
        let mut command = certs(directory.path());
        run(command.arg("simulate").args(few).args(arguments), code)
    };
    let (absent, plot) = ("absent/plot.svg", "plot.svg");
    let [absent, plot] = [absent, plot].map(|name| directory.path().join(name));
    let [absent, plot] = [absent, plot].map(|path| path.display().to_string());
    for (wrong, words, right) in [
        (
            &["1", "--scenario", "outages"][..],
            "simulate more days",
            &["40", "--scenario", "outages"][..],
        ),
        (
            &["40", "--scenario", "long-outage,outages"],
            "run it alone",
            &["60", "--scenario", "long-outage"],
        ),
        (
            &["1", "--scenario", "none", "--plot", &absent],
            "name a file in an existing, writable directory",
            &["1", "--scenario", "none", "--plot", &plot],
        ),
    ] {
        let printed = simulate(wrong, 2);
        assert!(printed.contains(words), "{words}: {printed}");
        simulate(right, 0);
    }
    // The page that the hint names has the scenarios.
    let printed = simulate(&["1", "--scenario", "nonsense"], 2);
    let words = "hint: certs simulate --help describes each scenario";
    assert!(printed.contains(words), "{printed}");
    let mut help = certs(directory.path());
    let help = run(help.args(["simulate", "--help"]), 0);
    let (_, names) = printed.split_once("or one of ").unwrap();
    for name in names.lines().next().unwrap().split(", ") {
        assert!(help.contains(name), "{name}: {help}");
    }
}
