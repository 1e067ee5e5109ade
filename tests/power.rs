//! Power loss after any step of a run. The recorded calls of the real binary are replayed to a disk that
//! keeps flushed data and loses all, the data, or some of the rest. The result must be a whole live pair and
//! a readable store from which the next run continues.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use certs::record::{Generation, Record};

use crate::support::disk::{Disk, IgnoredFlushes, Loss, Node, Tree, write_down};
use crate::support::embedded::EmbeddedCa;
use crate::support::faults::Endpoint;
use crate::support::oracle::Oracle;
use crate::support::replay::{FOR_REPLAY, Replay};
use crate::support::strace::{Call, Point, Strace, is_about, points};
use crate::support::{by_depth, run};

const NAMES: [&str; 2] = ["example.com", "www.example.com"];

/// A run and the disk it ran on.
struct RecordedRun {
    disk: Disk,
    /// The live generation before the run.
    before: Option<Generation>,
    /// The live generation after the run.
    after: Generation,
    found: BTreeMap<Tree, OracleResults>,
}

/// The oracle's results for a tree.
#[derive(Clone)]
struct OracleResults {
    live: Result<Option<Generation>, String>,
    record: Result<Option<Record>, String>,
}

/// Records `runs`. If `kill` is given, the first run is killed there.
fn record(ca: &EmbeddedCa, strace: &Strace, runs: &[&[&str]], kill: Option<&Point>) -> RecordedRun {
    let root = ca.path("");
    let oracle = Oracle::new(&root, &NAMES);
    let generation = || oracle.live().unwrap().map(|pair| pair.generation);
    let before = generation();
    let runs = runs
        .iter()
        .map(|arguments| ca.issue(&[&NAMES[..], arguments].concat()));
    let disk = disk_of(ca, strace, &runs.collect::<Vec<_>>(), kill);
    RecordedRun {
        disk,
        before,
        after: generation().unwrap(),
        found: BTreeMap::new(),
    }
}

/// The disk below `ca` with all steps of `runs`. If `kill` is given, the first run is killed there.
pub(crate) fn disk_of(
    ca: &EmbeddedCa,
    strace: &Strace,
    runs: &[Command],
    kill: Option<&Point>,
) -> Disk {
    let root = ca.path("");
    let before = Disk::of(&root);
    let whole = ["-xx", "-s", "1048576"];
    let mut kill = kill;
    let runs = runs.iter().map(|command| match kill.take() {
        Some(point) => strace.record_killed(command, &FOR_REPLAY, &whole, point),
        None => strace.record(command, &FOR_REPLAY, &whole),
    });
    let runs: Vec<Vec<Call>> = runs.collect();
    let disk = Replay::new(before, &root).all(&runs);
    let (replayed, real) = (disk.seen(disk.steps()), Disk::of(&root).seen(0));
    let differing = replayed
        .iter()
        .find(|(path, node)| real.get(*path) != Some(*node));
    let missing = real.keys().find(|path| !replayed.contains_key(*path));
    assert_eq!(
        (differing.map(|(path, _)| path), missing),
        (None, None),
        "the replay differs from the disk"
    );
    disk
}

impl RecordedRun {
    /// Returns an error for the first crash that the run does not survive.
    fn survives(&mut self, losses: &[Loss], ignored: IgnoredFlushes) -> Result<(), String> {
        let mut durable = self.before;
        for steps in 0..=self.disk.steps() {
            let strict = self.disk.left(steps, Loss::All, ignored);
            durable = durable.max(self.inspect(&strict).live.unwrap_or_default());
            for loss in losses {
                let loss = loss.after(steps);
                let left = self.disk.left(steps, loss, ignored);
                self.survives_one(steps, &left, durable)
                    .map_err(|why| format!("after step {steps}, {loss:?} lost: {why}"))?;
            }
        }
        Ok(())
    }

    fn survives_one(
        &mut self,
        steps: usize,
        left: &Tree,
        durable: Option<Generation>,
    ) -> Result<(), String> {
        let found = self.inspect(left);
        let (live, record) = (found.live?, found.record?);
        let allowed = [self.before, Some(self.after)].contains(&live);
        if !allowed || live < durable {
            return Err(format!("{live:?} is live, {durable:?} was"));
        }
        let stored = record.as_ref().and_then(|record| record.issued.as_ref());
        let stored = stored.map(|issued| issued.generation);
        if stored < live || (self.before.is_some() && stored.is_none()) {
            return Err(format!("{live:?} is live, {stored:?} is stored"));
        }
        let ended = steps == self.disk.steps();
        if ended && live != Some(self.after) {
            return Err(format!("the run succeeded, and {live:?} is live"));
        }
        if ended || self.disk.sends(steps) {
            same_state(&self.disk.seen(steps), left)?;
        }
        Ok(())
    }

    fn inspect(&mut self, tree: &Tree) -> OracleResults {
        let tree = of_interest(tree);
        if let Some(found) = self.found.get(&tree) {
            return found.clone();
        }
        let directory = tempfile::tempdir().unwrap();
        write_down(&tree, directory.path());
        let oracle = Oracle::new(directory.path(), &NAMES);
        let live = oracle.live().map(|pair| pair.map(|pair| pair.generation));
        let found = OracleResults {
            live,
            record: oracle.record(),
        };
        self.found.insert(tree, found.clone());
        found
    }
}

/// Replies to the CA and output for the user rely on these files: their content at that moment must be
/// durable.
fn same_state(seen: &Tree, left: &Tree) -> Result<(), String> {
    for (path, node) in seen {
        let is_state = path.starts_with("data") && path.extension().is_some_and(|is| is == "json");
        if is_state && left.get(path) != Some(node) {
            return Err(format!(
                "{} has lost a change on which a request or output relied",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Leaves out locks, tokens and files under temporary names, on which nothing depends.
fn of_interest(tree: &Tree) -> Tree {
    let of_interest = |path: &Path| {
        let names = path.iter().map(|name| name.to_str().unwrap());
        let mut names =
            names.filter(|name| ["leases", "lock"].contains(name) || name.contains(".new"));
        names.next().is_none()
    };
    let kept = tree.iter().filter(|(path, _)| of_interest(path));
    kept.map(|(path, node)| (path.clone(), node.clone()))
        .collect()
}

impl Loss {
    /// Gives every step its own seed.
    pub(crate) fn after(self, steps: usize) -> Self {
        match self {
            Self::Some(seed) => Self::Some(seed * 100_000 + steps as u64),
            other => other,
        }
    }
}

pub(crate) fn losses(by_chance: u64) -> Vec<Loss> {
    let by_chance = (0..by_chance).map(Loss::Some);
    [Loss::All, Loss::Data, Loss::HalfOfData]
        .into_iter()
        .chain(by_chance)
        .collect()
}

/// Runs the real binary on every `stride`-th different tree.
fn continues(ca: &EmbeddedCa, recorded: &RecordedRun, losses: &[Loss], stride: usize) -> usize {
    let mut different: BTreeMap<Tree, String> = BTreeMap::new();
    for steps in 0..=recorded.disk.steps() {
        for loss in losses.iter().map(|loss| loss.after(steps)) {
            let left = recorded.disk.left(steps, loss, IgnoredFlushes::None);
            different
                .entry(left)
                .or_insert_with(|| format!("after step {steps}, {loss:?} lost"));
        }
    }
    // First the trees with an order: the others place new ones, and the CA keeps the last 20 of an account.
    let runs = [true, false].map(|is_known| {
        let chosen = different.iter().step_by(stride);
        let run = |(tree, case): &(&Tree, &String)| continues_from(ca, tree, case, is_known);
        chosen.filter(run).count()
    });
    runs.iter().sum()
}

/// Runs on `tree` if the store in it knows the order or the certificate as `is_known` says.
fn continues_from(ca: &EmbeddedCa, tree: &Tree, case: &str, is_known: bool) -> bool {
    let directory = tempfile::tempdir().unwrap();
    write_down(tree, directory.path());
    let oracle = Oracle::new(directory.path(), &NAMES);
    let known = oracle
        .record()
        .unwrap()
        .is_some_and(|record| match &record.order {
            Some(order) => order.url.is_some(),
            None => record.issued.is_some(),
        });
    if known != is_known {
        return false;
    }
    let orders = ca.script.committed(Endpoint::NewOrder);
    let certificates = ca.script.committed(Endpoint::Finalize);
    let output = ca.issue_below(directory.path(), &NAMES).output().unwrap();
    let printed = crate::support::text(&output);
    assert_eq!(output.status.code(), Some(0), "{case}: {printed}");
    oracle
        .settled()
        .unwrap_or_else(|why| panic!("{case}: {why}: {printed}"));
    // The CA is at the end of the recorded run: an order or certificate that the store knows must not be
    // requested again.
    let orders = ca.script.committed(Endpoint::NewOrder) - orders;
    let certificates = ca.script.committed(Endpoint::Finalize) - certificates;
    assert!(
        orders <= u32::from(!known),
        "{case}: {orders} orders: {printed}"
    );
    assert_eq!(orders, certificates, "{case}: {printed}");
    true
}

/// The flushes whose absence loses something, and the others.
fn sort_flushes(recorded: &mut RecordedRun, losses: &[Loss]) -> [Vec<String>; 2] {
    let flushes = recorded.disk.flushes().to_vec();
    let mut sorted = [Vec::new(), Vec::new()];
    for (nth, path) in flushes.into_iter().enumerate() {
        let caught = recorded.survives(losses, IgnoredFlushes::One(nth)).is_err();
        sorted[usize::from(!caught)].push(path);
    }
    sorted
}

fn check_power_loss(
    what: &str,
    arguments: &[&str],
    ca: &EmbeddedCa,
    strace: &Strace,
    by_chance: u64,
    stride: usize,
) {
    let mut recorded = record(ca, strace, &[arguments], None);
    no_key_is_accessible_to_others(&recorded.disk);
    let losses = losses(by_chance);
    recorded
        .survives(&losses, IgnoredFlushes::None)
        .unwrap_or_else(|why| panic!("{what}: {why}"));
    let trees = recorded.found.len();
    let runs = continues(ca, &recorded, &losses, stride);
    let caught = recorded.survives(&losses, IgnoredFlushes::All);
    let [needed, spare] = sort_flushes(&mut recorded, &losses[..3]);
    eprintln!(
        "{what}: {} steps, {trees} different trees, {runs} runs that continued; of {} flushes {} are needed, not those of {spare:?}; without any: {caught:?}",
        recorded.disk.steps(),
        needed.len() + spare.len(),
        needed.len(),
    );
    assert!(
        caught.is_err(),
        "{what}: a disk without any flush goes unnoticed"
    );
    // No ordering guarantee protects any of these.
    let needed = |path: &String| path.ends_with(".pem") || path.ends_with("/live");
    assert!(!spare.iter().any(needed), "{what}: {spare:?}");
}

/// Checks the mode at every step, from creation on: the group must not write the file, and others must have
/// no access.
fn no_key_is_accessible_to_others(disk: &Disk) {
    let mut keys = 0;
    for steps in 0..=disk.steps() {
        for (path, node) in disk.seen(steps) {
            let Node::File { mode, bytes } = node else {
                continue;
            };
            let name = path.file_name().unwrap().to_string_lossy();
            let holds_one = bytes.windows(11).any(|part| part == b"PRIVATE KEY");
            if holds_one || name.starts_with("privkey") {
                let path = path.display();
                assert_eq!(mode & 0o037, 0, "{path} is {mode:o} after step {steps}");
                keys += 1;
            }
        }
    }
    assert!(keys > disk.steps(), "{keys} keys were looked at");
}

#[test]
fn renewal_keeps_whole_pair_live_and_continues_after_power_loss() {
    let what = "power loss in a renewal";
    let Some(strace) = Strace::find_with_arguments(what) else {
        return;
    };
    let ca = EmbeddedCa::start();
    // Four generations, so that one is deleted.
    for _ in 0..4 {
        run(&mut ca.issue(&[&NAMES[..], &["--force"]].concat()), 0);
    }
    let (by_chance, stride) = by_depth((2, 20), (4, 4), (50, 1));
    check_power_loss(what, &["--force"], &ca, &strace, by_chance, stride);
}

#[test]
fn first_issuance_continues_after_power_loss() {
    let what = "power loss in a first issuance";
    let Some(strace) = Strace::find_with_arguments(what) else {
        return;
    };
    let (by_chance, stride) = by_depth((2, 20), (4, 4), (50, 1));
    check_power_loss(what, &[], &EmbeddedCa::start(), &strace, by_chance, stride);
}

/// A run is killed, the next one succeeds, and then the power fails: everything the first had not flushed
/// must be durable too. `arguments` are those of the first run; each run starts from `prepare`.
fn after_kills(what: &str, arguments: &[&str], stride: usize, prepare: impl Fn(&EmbeddedCa)) {
    let Some(strace) = Strace::find_with_arguments(what) else {
        return;
    };
    let ca = EmbeddedCa::start();
    prepare(&ca);
    let calls = strace.calls(&ca.issue(&[&NAMES[..], arguments].concat()));
    let (data, output) = (ca.path("data"), ca.path("out"));
    let about = |call: &Call| is_about(call, &[&data, &output]) && call.name != "connect";
    let points = points(&calls, about);
    assert!(points.len() > 80, "{} points are too few", points.len());
    let mut kills = 0;
    for point in points.iter().step_by(stride) {
        prepare(&ca);
        let mut recorded = record(&ca, &strace, &[arguments, &[]], Some(point));
        let survived = recorded.survives(&losses(2), IgnoredFlushes::None);
        survived.unwrap_or_else(|why| panic!("{what}: killed at {point:?}: {why}"));
        kills += 1;
    }
    eprintln!("{what}: {kills} kills");
}

fn issued(ca: &EmbeddedCa) {
    run(&mut ca.issue(&NAMES), 0);
}

fn empty_directories(ca: &EmbeddedCa) {
    for directory in ["data", "out"].map(|name| ca.path(name)) {
        if directory.exists() {
            std::fs::remove_dir_all(directory).unwrap();
        }
    }
}

#[test]
fn power_loss_takes_nothing_after_kill_and_successful_run() {
    let what = "power loss after a kill";
    after_kills(what, &["--force"], by_depth(60, 12, 3), issued);
}

#[test]
fn power_loss_takes_nothing_after_kill_in_first_issuance_and_successful_run() {
    let what = "power loss after a kill in a first issuance";
    after_kills(what, &[], by_depth(90, 24, 4), empty_directories);
}
