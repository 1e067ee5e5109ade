//! Calls identified by their path, in any thread: with many threads, neither the thread nor its call count is
//! stable between runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use certs::record::Generation;

use super::{Call, Strace, keep_environment};
use crate::support::Running;

/// A call about one path in the next run of the same command.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PathPoint {
    pub(crate) call: String,
    /// `$$` is the pid, and `{n}` the generation that is n older than the newest.
    path: String,
    /// The number among the calls of one thread about it, from 1.
    nth: u32,
}

/// The calls about files below `root` in threads other than the first, each with an example. `newest` is the
/// generation of that run.
pub(crate) fn elsewhere(
    calls: &[Call],
    root: &Path,
    newest: Generation,
) -> BTreeMap<PathPoint, Call> {
    let first = calls.first().map_or(0, |call| call.process);
    let others = calls.iter().filter(|call| call.process != first);
    about(others, root, first, newest)
}

/// The calls about files below `root`, in a run of the process `process`.
pub(crate) fn about<'c>(
    calls: impl IntoIterator<Item = &'c Call>,
    root: &Path,
    process: u32,
    newest: Generation,
) -> BTreeMap<PathPoint, Call> {
    let mut counts: BTreeMap<(u32, String, String), u32> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for call in calls {
        let paths = paths(&call.arguments, root);
        for (at, path) in paths.iter().enumerate() {
            let count = (call.process, call.name.clone(), path.clone());
            let nth = counts.entry(count).or_default();
            *nth += 1;
            if at == 0 {
                let aimed = PathPoint {
                    call: call.name.clone(),
                    path: pattern(path, process, newest),
                    nth: *nth,
                };
                found.entry(aimed).or_insert_with(|| call.clone());
            }
        }
    }
    found
}

impl PathPoint {
    fn path(&self, newest: Generation) -> String {
        (0..=newest.0).fold(self.path.clone(), |path, older| {
            let generation = Generation(newest.0 - older);
            path.replace(&format!("{{{older}}}"), &generation.to_string())
        })
    }
}

/// Each path below `root` that a call names, or has open, once.
fn paths(arguments: &str, root: &Path) -> Vec<String> {
    let root = root.to_str().unwrap();
    let mut paths: Vec<String> = Vec::new();
    for (at, _) in arguments.match_indices(root) {
        let path = arguments[at..].split(['"', '>']).next().unwrap_or_default();
        if !paths.iter().any(|known| known == path) {
            paths.push(path.to_owned());
        }
    }
    paths
}

fn pattern(path: &str, process: u32, newest: Generation) -> String {
    let of_process = format!("new-{process}");
    let parts = path.split('/').map(|part| {
        if part.ends_with(&of_process) {
            return part.replace(&of_process, "new-$$");
        }
        let (before, number) = part.split_at(part.find(|c: char| c.is_ascii_digit()).unwrap_or(0));
        let generation = number.parse().ok().filter(|_| number.len() == 4);
        match generation.and_then(|generation: u64| newest.0.checked_sub(generation)) {
            Some(older) => format!("{before}{{{older}}}"),
            None => part.to_owned(),
        }
    });
    parts.collect::<Vec<_>>().join("/")
}

impl Strace {
    /// `command`, killed when one of its threads is about to execute `aimed`; `newest` is the generation that
    /// it makes.
    pub(crate) fn kill_at_path(
        &self,
        command: &Command,
        aimed: &PathPoint,
        newest: Generation,
    ) -> Command {
        self.aim(command, aimed, newest, "signal=KILL")
    }

    /// `command`, whose call `aimed` fails.
    pub(crate) fn fail_at_path(
        &self,
        command: &Command,
        aimed: &PathPoint,
        newest: Generation,
        error: &str,
    ) -> Command {
        self.aim(command, aimed, newest, &format!("error={error}"))
    }

    fn aim(&self, command: &Command, aimed: &PathPoint, newest: Generation, how: &str) -> Command {
        let PathPoint { call, nth, .. } = aimed;
        let path = aimed.path(newest);
        let (trace, inject) = (
            format!("trace={call}"),
            format!("inject={call}:{how}:when={nth}"),
        );
        let options = ["-f", "-D", "-qq", "-o", "/dev/null"];
        let options = [&options[..], &["-e", &trace, "-e", &inject]].concat();
        let under = self.under(command, &options);
        // Only the shell knows its own pid, and `exec` keeps it; with -D, so does the traced program.
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("exec \"$0\" -P \"{path}\" \"$@\"")]);
        shell.arg(under.get_program()).args(under.get_args());
        keep_environment(command, &mut shell);
        shell
    }

    /// Fails `aimed` in the first thread of `process` once, from now on, and records the failure in `file`.
    /// As [`Self::fail_from_now`].
    pub(crate) fn fail_at_path_from_now(
        &self,
        process: &Running,
        aimed: &PathPoint,
        newest: Generation,
        error: &str,
        file: &Path,
    ) -> Option<Running> {
        let PathPoint { call, nth, .. } = aimed;
        let path = aimed.path(newest).replace("$$", &process.id().to_string());
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:error={error}:when={nth}");
        self.attach(process, &["-P", &path, "-e", &trace, "-e", &inject], file)
    }

    /// Every call about files below `root` in threads other than the first.
    pub(crate) fn elsewhere(
        &self,
        command: &Command,
        root: &Path,
        newest: Generation,
    ) -> BTreeMap<PathPoint, Call> {
        elsewhere(&self.calls(command), root, newest)
    }
}

#[test]
fn calls_of_other_threads_are_identified_by_path() {
    let about = |process: u32, name: &str, arguments: &str| Call {
        process,
        name: name.into(),
        arguments: arguments.into(),
        returned: Some(0),
        nth: 1,
    };
    let calls = [
        about(2007, "fsync", "3</r/a>"),
        about(8, "fsync", "3</r/.a.new-2007>"),
        about(8, "rename", "\"/r/.a.new-2007\", \"/r/a\""),
        about(8, "mkdir", "\"/r/x/.new-0004\", 0700"),
        about(9, "rename", "\"/r/x/.new-0004\", \"/r/x/0004\""),
        about(9, "rmdir", "\"/r/x/0001\""),
        about(9, "rmdir", "\"/r/x/0001\""),
        about(9, "rmdir", "\"/elsewhere\""),
    ];
    let found = elsewhere(&calls, Path::new("/r"), Generation(4));
    let found: Vec<_> = found
        .into_keys()
        .map(|it| (it.call, it.path, it.nth))
        .collect();
    let wanted = [
        ("fsync", "/r/.a.new-$$", 1),
        ("mkdir", "/r/x/.new-{0}", 1),
        ("rename", "/r/.a.new-$$", 1),
        ("rename", "/r/x/.new-{0}", 1),
        ("rmdir", "/r/x/{3}", 1),
        ("rmdir", "/r/x/{3}", 2),
    ];
    let wanted = wanted.map(|(call, path, nth)| (call.to_owned(), path.to_owned(), nth));
    assert_eq!(found, wanted);
}
