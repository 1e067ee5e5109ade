//! Files that threads other than the first write for targets: a copy, a `live` tree, the file that a server
//! watches, and HAProxy's. Each such call is a point at which the run is killed or the call fails; the points
//! come from a traced run. Each file is always whole, old or new, and the next run finishes the renewal.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use certs::record::{Generation, Record};

use crate::errno::{errors, reports_error};
use crate::power::{disk_of, losses};
use crate::support::disk::{Disk, IgnoredFlushes, Loss, Node, Tree};
use crate::support::embedded::EmbeddedCa;
use crate::support::oracle::{Oracle, Pair};
use crate::support::renewal::Renewal;
use crate::support::strace::aimed::PathPoint;
use crate::support::strace::{Call, Strace};
use crate::support::{Running, by_depth, free_port, run, text};
use crate::targets::{NAME, haproxy, issued, live};

/// Targets of the configuration.
const FILES: &[&str] = &["--deploy=copy", "--deploy=tree", "--deploy=edge"];
/// This target is verified too, which takes half a second.
const HAPROXY: &[&str] = &["--deploy=front"];

const COPY: &str = "copies/example.com.pem";
const WATCHED: &str = "copies/example.com.yaml";

struct WrittenTargets {
    /// The first field: dropped first, since HAProxy reads below `ca`.
    _haproxy: Option<Running>,
    port: u16,
    /// [`FILES`] or [`HAPROXY`].
    targets: &'static [&'static str],
    ca: EmbeddedCa,
    oracle: Oracle,
    strace: Strace,
    /// The watched file of one generation, as a pattern for the others.
    watched: String,
}

impl WrittenTargets {
    /// `None` without HAProxy.
    fn start(strace: Strace, targets: &'static [&'static str]) -> Option<Self> {
        let ca = issued();
        std::fs::create_dir(ca.path("copies")).unwrap();
        std::fs::create_dir(ca.path("own")).unwrap();
        let own = ca.path("own/pair.pem");
        std::fs::copy(live(&ca).join("combined.pem"), &own).unwrap();
        let port = free_port();
        let haproxy = match targets {
            FILES => None,
            _ => Some(haproxy(&ca.path("haproxy"), port, &own)?),
        };
        let path = |name: &str| ca.path(name).display().to_string();
        let config = format!(
            "[deploy.copy]\nkind = 'file'\npath = '{}'\n\
             [deploy.tree]\nkind = 'directory'\npath = '{}'\n\
             [deploy.edge]\nkind = 'traefik'\nfile = '{}'\n\
             [deploy.front]\nkind = 'haproxy'\nsocket = '{}'\ncertificate = '{}'\n",
            path("copies/{name}.pem"),
            path("copies/out"),
            path("copies/{name}.yaml"),
            path("haproxy/admin.sock"),
            own.display()
        );
        std::fs::write(ca.path("certs.toml"), config).unwrap();
        let mut written = Self {
            _haproxy: haproxy,
            port,
            targets,
            oracle: Oracle::new(&ca.path(""), &[NAME]),
            ca,
            strace,
            watched: String::new(),
        };
        run(&mut written.renew(&["--force"]), 0);
        if targets == FILES {
            written.watched = std::fs::read_to_string(written.ca.path(WATCHED)).unwrap();
        }
        written.targets_are_whole(&[&written.live()], "at the start");
        Some(written)
    }

    fn renew(&self, more: &[&str]) -> Command {
        let config = format!("--config={}", self.ca.path("certs.toml").display());
        self.ca
            .issue(&[&[NAME, &config], self.targets, more].concat())
    }

    fn live(&self) -> Pair {
        self.oracle.live().unwrap().unwrap()
    }

    /// The generation that the next renewal makes.
    fn newest(&self) -> Generation {
        Generation(self.live().generation.0 + 1)
    }

    fn points(&self) -> BTreeMap<PathPoint, Call> {
        let (renewal, newest) = (self.renew(&["--force"]), self.newest());
        let mut points = self.strace.elsewhere(&renewal, &self.ca.path(""), newest);
        points.retain(|aimed, _| aimed.call != "connect");
        let least = if self.targets == FILES { 60 } else { 10 };
        assert!(points.len() > least, "{} points are too few", points.len());
        points
    }

    /// Asserts that every target holds one of `pairs`, whole, and that no key is readable by others.
    fn targets_are_whole(&self, pairs: &[&Pair], case: &str) {
        let is_one = |place: &str| {
            let found = std::fs::read(self.ca.path(place)).unwrap();
            let whole = pairs.iter().any(|pair| pair.combined() == found);
            assert!(whole, "{case}: {place} is something else");
        };
        if self.targets == HAPROXY {
            is_one("own/pair.pem");
            let shown = self.ca.leaf_at(self.port, NAME);
            let shown = { pairs.iter() }.any(|pair| pair.facts.fingerprint == shown);
            assert!(shown, "{case}: HAProxy shows something else");
        } else {
            is_one(COPY);
            let tree = Oracle::new(&self.ca.path("copies"), &[NAME]);
            let tree = tree.live().unwrap_or_else(|why| panic!("{case}: {why}"));
            let whole = tree.as_ref().is_some_and(|pair| pairs.contains(&pair));
            assert!(whole, "{case}: {tree:?}");
            let found = std::fs::read_to_string(self.ca.path(WATCHED)).unwrap();
            let whole = { pairs.iter() }.any(|pair| self.watched_of(pair.generation) == found);
            assert!(whole, "{case}: {found}");
        }
        for directory in ["copies", "own"] {
            no_key_is_accessible(&self.ca.path(directory), case);
        }
    }

    fn watched_of(&self, generation: Generation) -> String {
        let (_, rest) = self.watched.split_once(" of ").unwrap();
        format!("# Generation {generation} of {rest}")
    }

    /// Lets a disturbed renewal finish.
    fn finish(&self, renewal: Renewal, case: &str) {
        renewal.finish_by(|_| run(&mut self.renew(&[]), 0));
        self.targets_are_whole(&[&self.live()], case);
    }

    /// Whether the run reached its kill point.
    fn survives_kill(&self, aimed: &PathPoint) -> bool {
        let case = format!("killed at {aimed:?}");
        let (before, newest) = (self.live(), self.newest());
        let mut renewal = Renewal::begin(&self.ca, &[NAME], case.clone());
        let mut killing = self
            .strace
            .kill_at_path(&self.renew(&["--force"]), aimed, newest);
        let output = killing.output().unwrap();
        let killed = !output.status.success();
        if killed {
            assert_eq!(output.status.code(), None, "{case}: {output:?}");
            renewal.is_whole();
            self.targets_are_whole(&[&before, &self.live()], &case);
        }
        self.finish(renewal, &case);
        killed
    }

    /// The exit code of the run in which the call failed.
    fn survives_error(&self, aimed: &PathPoint, error: &str) -> i32 {
        let case = format!("{error} at {aimed:?}");
        let (before, newest) = (self.live(), self.newest());
        let mut renewal = Renewal::begin(&self.ca, &[NAME], case.clone());
        let command = self.renew(&["--force"]);
        let mut failing = self.strace.fail_at_path(&command, aimed, newest, error);
        let output = failing.output().unwrap();
        let (code, printed) = (output.status.code().unwrap_or(-1), text(&output));
        match code {
            0 => {}
            // 8: the first thread opens that directory, too, and its call failed.
            7 | 8 => reports_error(&case, error, &printed),
            _ => panic!("{case}: exit {code}: {printed}"),
        }
        renewal.is_whole();
        self.targets_are_whole(&[&before, &self.live()], &case);
        self.finish(renewal, &case);
        code
    }
}

/// Checks every file below `directory`, whatever its name.
fn no_key_is_accessible(directory: &Path, case: &str) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = std::fs::symlink_metadata(&path).unwrap();
        if found.is_dir() {
            no_key_is_accessible(&path, case);
        } else if found.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let holds_one = bytes.windows(11).any(|part| part == b"PRIVATE KEY");
            let (path, mode) = (path.display(), found.mode());
            let open = holds_one && mode & 0o037 != 0;
            assert!(!open, "{case}: {path} is {mode:o}");
        }
    }
}

fn start(what: &str, targets: &'static [&'static str]) -> Option<WrittenTargets> {
    WrittenTargets::start(Strace::find_with_arguments(what)?, targets)
}

fn kills(what: &str, targets: &'static [&'static str]) {
    let Some(written) = start(what, targets) else {
        return;
    };
    let points = written.points().into_keys();
    // strace counts the calls of each thread, and the runtime divides them as it likes: a run that
    // has ended before its point shows nothing, and is repeated once.
    let is_killed = |aimed: &PathPoint| (0..2).any(|_| written.survives_kill(aimed));
    let (killed, ended): (Vec<_>, Vec<_>) =
        { points.step_by(by_depth(7, 1, 1)) }.partition(is_killed);
    eprintln!("{what}: {} kills; not reached: {ended:?}", killed.len());
    assert!(killed.len() > ended.len() * 5, "{what}: {ended:?}");
    // Every kind of call was killed at least once, except among the few points of the short form.
    let kind = |aimed: &PathPoint| { killed.iter() }.any(|other| other.call == aimed.call);
    assert!(
        by_depth(true, ended.iter().all(kind), ended.iter().all(kind)),
        "{what}: {ended:?}"
    );
}

/// Fails each call with one of its errors, or at full depth with all of them.
fn errors_of(what: &str, targets: &'static [&'static str]) {
    let Some(written) = start(what, targets) else {
        return;
    };
    let mut codes: BTreeMap<i32, u32> = BTreeMap::new();
    let stride = by_depth(12, 1, 1);
    for (at, (aimed, call)) in written.points().iter().enumerate().step_by(stride) {
        let errors = errors(call);
        let one = [errors[at / stride % errors.len()]];
        for error in by_depth(&one[..], &one[..], errors) {
            let code = written.survives_error(aimed, error);
            *codes.entry(code).or_default() += 1;
        }
    }
    eprintln!("{what}: exit codes {codes:?}");
    let noticed: u32 = [7, 8].iter().filter_map(|code| codes.get(code)).sum();
    assert!(noticed * 2 > codes.values().sum(), "{what}: {codes:?}");
}

/// The generation of each target after a power loss; each must be whole.
fn found_after(
    written: &WrittenTargets,
    tree: &Tree,
    pairs: &[&Pair],
) -> Result<[Generation; 3], String> {
    let content = |path: &Path| match tree.get(path) {
        Some(Node::File { bytes, .. }) => Ok(&bytes[..]),
        other => Err(format!("{} is {other:?}", path.display())),
    };
    let found = |path: &Path, is_of: &dyn Fn(&Pair, &[u8]) -> bool| {
        let found = content(path)?;
        let whole = pairs.iter().find(|pair| is_of(pair, found));
        let whole = whole.map(|pair| pair.generation);
        whole.ok_or_else(|| format!("{} is something else", path.display()))
    };
    let copy = found(Path::new(COPY), &|pair, found| pair.combined() == found)?;
    let watched = found(Path::new(WATCHED), &|pair, found| {
        written.watched_of(pair.generation).as_bytes() == found
    })?;
    let link = "copies/out/live/example.com";
    let Some(Node::Link(target)) = tree.get(Path::new(link)) else {
        return Err(format!("{link} is not there"));
    };
    let target = target.strip_prefix("../").ok_or("the link leads out")?;
    let live = PathBuf::from("copies/out").join(target);
    let leads_to = target.rsplit('/').next().and_then(|it| it.parse().ok());
    let leads_to = leads_to.map(Generation);
    let pair = pairs.iter().find(|pair| Some(pair.generation) == leads_to);
    let pair = pair.ok_or_else(|| format!("the link leads to {target}"))?;
    for (name, bytes) in pair.files() {
        found(&live.join(name), &|_, found| found == bytes)?;
    }
    Ok([copy, pair.generation, watched])
}

/// The generations that the record on that disk lists as deployed.
fn recorded_in(tree: &Tree) -> Result<[Generation; 3], String> {
    let record = tree.get(Path::new("data/records/example.com/record.json"));
    let Some(Node::File { bytes, .. }) = record else {
        return Err(format!("the record is {record:?}"));
    };
    let printed = |error: serde_json::Error| format!("the record: {error}");
    let mut stored: serde_json::Value = serde_json::from_slice(bytes).map_err(printed)?;
    let record: Record = serde_json::from_value(stored["record"].take()).map_err(printed)?;
    Ok(["file:", "directory:", "traefik:"].map(|kind| {
        let mut deployed = record.deployed.iter();
        let found = deployed.find(|(target, _)| target.starts_with(kind));
        *found.unwrap_or_else(|| panic!("{kind} {record:?}")).1
    }))
}

/// How many crashes each target survives, and how many of them came after all was recorded. Returns an error
/// for the first crash that it does not survive.
fn crashes(
    written: &WrittenTargets,
    disk: &Disk,
    ignored: IgnoredFlushes,
    pairs: &[&Pair],
) -> Result<[usize; 2], String> {
    let mut counts = [0; 2];
    for steps in 0..=disk.steps() {
        for loss in losses(3).into_iter().map(|loss| loss.after(steps)) {
            let left = disk.left(steps, loss, ignored);
            let case = |why| format!("after step {steps}, {loss:?} lost: {why}");
            let found = found_after(written, &left, pairs).map_err(case)?;
            let recorded = recorded_in(&left).map_err(case)?;
            if found
                .iter()
                .zip(&recorded)
                .any(|(found, said)| found < said)
            {
                return Err(case(format!(
                    "{recorded:?} is recorded, {found:?} is there"
                )));
            }
            counts[0] += 1;
            counts[1] += usize::from(recorded == [pairs[1].generation; 3]);
        }
    }
    Ok(counts)
}

#[test]
fn files_are_whole_and_next_run_finishes_after_kill_in_another_thread() {
    kills("kill points of other threads", FILES);
    kills("kill points of HAProxy's file", HAPROXY);
}

#[test]
fn files_are_whole_and_next_run_recovers_after_failed_call_of_another_thread() {
    errors_of("failed calls of other threads", FILES);
    errors_of("failed calls for HAProxy", HAPROXY);
}

#[test]
fn files_are_whole_and_recorded_files_exist_after_power_loss() {
    let what = "power loss while targets are written";
    let Some(written) = start(what, FILES) else {
        return;
    };
    let before = written.live();
    let renewal = written.renew(&["--force"]);
    let disk = disk_of(&written.ca, &written.strace, &[renewal], None);
    let after = written.live();
    let pairs = [&before, &after];
    let survived = crashes(&written, &disk, IgnoredFlushes::None, &pairs);
    let [survived, recorded] = survived.unwrap_or_else(|why| panic!("{why}"));
    eprintln!("{what}: {survived} crashes, {recorded} of them after all was recorded");
    assert!(recorded > 0);
    let last = found_after(
        &written,
        &disk.left(disk.steps(), Loss::All, IgnoredFlushes::None),
        &pairs,
    );
    assert_eq!(last, Ok([after.generation; 3]), "the run succeeded");
    // Every flush is needed, except those of directories that existed before.
    let stood = ["/copies", "/copies/out", "/copies/out/archive"];
    let (mut needed, mut spare) = (0, Vec::new());
    for (nth, path) in disk.flushes().iter().enumerate() {
        if path.starts_with("/copies") {
            match crashes(&written, &disk, IgnoredFlushes::One(nth), &pairs) {
                Err(_) => needed += 1,
                Ok(_) => spare.push(path.as_str()),
            }
        }
    }
    eprintln!("{what}: {needed} flushes are needed, not those of {spare:?}");
    assert!(needed > 9, "{needed}");
    assert!(spare.iter().all(|path| stood.contains(path)), "{spare:?}");
}
